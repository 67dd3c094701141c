"""The compiled kernel of minialbert-runtime's engine "native": a library that is called through ctypes."""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from pathlib import Path

LIBRARY = Path(__file__).with_name("kernel.so")
FORMAT = (
    2  # of what is called, as kernel.cpp has it: another number, or none, is a library of another version
)
_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int


class Instruction(ctypes.Structure):
    """An instruction of a program; what the numbers mean by operation, kernel.cpp says."""

    _fields_ = [(name, ctypes.c_int32) for name in ("op", "to", "a", "b", "c", "d", "e")] + [
        ("value", ctypes.c_float)
    ]


class Weight(ctypes.Structure):
    """A matrix, table or vector, contiguous, by address: its kind, shape, values, and scales or none."""

    _fields_ = [
        ("kind", ctypes.c_int32), ("rows", ctypes.c_int32), ("columns", ctypes.c_int32), ("values", _POINTER),
        ("scales", _POINTER),
    ]  # fmt: skip


@cache
def library() -> ctypes.CDLL:
    """Return the library, with the types of its functions; an OSError where it is of another version than this file."""
    kernel = ctypes.CDLL(str(LIBRARY))
    if not hasattr(kernel, "minialbert_format") or kernel.minialbert_format() != FORMAT:
        raise OSError(f"{LIBRARY} is of another version")
    kernel.minialbert_pack.restype = kernel.minialbert_open.restype = _POINTER
    kernel.minialbert_pack.argtypes = [ctypes.POINTER(Weight)]
    kernel.minialbert_open.argtypes = [
        _POINTER, _NUMBER, _POINTER, _POINTER, _NUMBER, _POINTER, _NUMBER, _NUMBER,
    ]  # fmt: skip
    kernel.minialbert_run.argtypes = [
        _POINTER, _NUMBER, _POINTER, ctypes.c_int64, _POINTER, _POINTER, _POINTER, _NUMBER,
    ]  # fmt: skip
    kernel.minialbert_release.argtypes = kernel.minialbert_close.argtypes = [_POINTER]
    kernel.minialbert_release.restype = kernel.minialbert_close.restype = None
    return kernel


@cache
def is_supported() -> bool:
    """Tell whether this processor has the instructions that the kernel needs: AVX-512 with VNNI.

    Where the library cannot be loaded, as one from a newer system or of another version, that is a warning, and the
    answer is no.
    """
    try:
        return bool(library().minialbert_supported())
    except OSError as error:
        warnings.warn(
            f"minialbert-native is not used, install it anew on this machine: {error}", stacklevel=2
        )
        return False
