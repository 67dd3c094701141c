"""Sessions of the engine "native": int8 by token in a compiled kernel, on processors with AVX-512 VNNI.

The numbers are those of ONNX Runtime on the same graph but for the last digits of fp32: the same integers are
multiplied. A text alone and beside others has the same bits, and padding is never computed.
"""

from __future__ import annotations

import ctypes
import hashlib
import warnings
import weakref
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import UserError
from .graph import read_graph
from .program import Program, compile_graph
from .registers import Weights

NATIVE = "minialbert-native (pip install ./native in the repository), and a processor with AVX-512 VNNI"
_FORMAT = 2  # of what the kernel is given, which both packages must know
# Outputs that are asked for; of other graphs the first.
_NAMED = (("sentence_embedding",), ("start_logits", "end_logits"))


class Port(NamedTuple):
    """Name and type of an input or output."""

    name: str
    type: str


def has_native() -> bool:
    """Tell whether the engine is installed, and this processor can run it."""
    if find_spec("minialbert_native") is None:
        return False
    import minialbert_native

    if getattr(minialbert_native, "FORMAT", 1) != _FORMAT:
        told = (
            "minialbert-native is of another version than minialbert-runtime, and not used: install both anew"
        )
        warnings.warn(told, stacklevel=2)
        return False
    return minialbert_native.LIBRARY.is_file() and minialbert_native.is_supported()


class PackedWeight:
    """A weight in the kernel's order, until no session that was opened with it is left."""

    def __init__(self, weight: Weights) -> None:
        from minialbert_native import Weight, library

        scales = None if weight.scales is None else weight.scales.ctypes.data
        shape = np.atleast_2d(weight.values).shape
        given, kernel = Weight(weight.kind, *shape, weight.values.ctypes.data, scales), library()
        self.address = kernel.minialbert_pack(given)
        if not self.address:
            raise MemoryError("the engine native has no memory for the weights")
        weakref.finalize(self, kernel.minialbert_release, self.address).atexit = False


_PACKED: weakref.WeakValueDictionary[bytes, PackedWeight] = weakref.WeakValueDictionary()


def packed_weight(weight: Weights) -> PackedWeight:
    """Return a weight, the same for all that hold the same numbers: models on one backbone have it in memory once."""
    digest = hashlib.blake2b(repr((weight.kind, weight.values.shape)).encode())
    for part in (weight.values, weight.scales):
        digest.update(b"" if part is None else part.data)
    # Two threads at once may pack one twice, which costs memory alone; a lock could be held in the moment of a fork.
    return _PACKED.get(digest.digest()) or _PACKED.setdefault(digest.digest(), PackedWeight(weight))


class NativeSession:
    """A graph in the compiled kernel, with those methods of ONNX Runtime's session that are used here.

    Threads may run it at the same time: one at a time has the session's threads, others each their own alone. Inputs of
    a run may differ in length.
    """

    def __init__(self, graph: str | Path | bytes, threads: int = 0) -> None:
        if not has_native():
            raise UserError(f"the engine native needs {NATIVE}; or choose the engine onnx")
        from minialbert_native import Instruction, library

        content = graph if isinstance(graph, bytes) else Path(graph).read_bytes()
        try:
            read = read_graph(content)
            named = next((names for names in _NAMED if {*names} <= {*read.outputs}), read.outputs[:1])
            program = compile_graph(read, named)
        except (ValueError, IndexError) as error:
            told = f"the engine native cannot run this graph ({error})"
            raise UserError(f"{told}: choose the engine onnx") from error
        outputs = dict.fromkeys([*named, *read.outputs])
        self._inputs = [Port(name, "tensor(int64)") for name in read.inputs]
        self._outputs = [Port(name, "tensor(float)") for name in outputs]
        self._columns = program.columns
        self._width, self._of_texts = _result(program)
        self._kernel = library()
        code = (Instruction * len(program.code))(*(Instruction(*one) for one in program.code))
        packed = [packed_weight(one) for one in program.weights]
        weights = (ctypes.c_void_p * len(packed))(*(one.address for one in packed))
        widths, of_texts = (np.array(values, np.int32) for values in (program.widths, program.of_texts))
        self._session = self._kernel.minialbert_open(
            code, len(code), widths.ctypes.data, of_texts.ctypes.data, len(widths), weights, len(weights),
            max(1, threads),
        )  # fmt: skip
        if not self._session:
            raise MemoryError("the engine native has no memory for a session")
        self._weights = packed
        weakref.finalize(self, self._kernel.minialbert_close, self._session).atexit = False

    def get_inputs(self) -> list[Port]:
        """Return names and types of the inputs."""
        return self._inputs

    def get_outputs(self) -> list[Port]:
        """Return names and types of the outputs."""
        return self._outputs

    def run(
        self, names: Sequence[str] | None, inputs: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[np.float32]]:
        """Return the outputs of these names, or all that are computed; of padding, zeros.

        A ValueError tells of a text without a token, with padding before one, or with one whose id, type or position
        the model does not have.
        """
        ids, types = (
            None if values is None else np.ascontiguousarray(values, np.int64)
            for values in (inputs["input_ids"], inputs.get("token_type_ids"))
        )
        assert ids is not None
        count, longest = ids.shape
        mask = inputs.get("attention_mask")
        if any(one is not None and one.shape != ids.shape for one in (types, mask)):
            raise ValueError("inputs differ in shape")
        lengths = np.full(count, longest, np.int32) if mask is None else mask.sum(axis=1, dtype=np.int32)
        if mask is not None and (mask[:, 1:] > mask[:, :-1]).any():
            raise ValueError("padding stands before a token")
        shape = (count, self._width) if self._of_texts else (count, longest, self._width)
        found = np.zeros(shape, np.float32)
        failed = self._kernel.minialbert_run(
            self._session, count, lengths.ctypes.data, longest, ids.ctypes.data,
            None if types is None else types.ctypes.data, found.ctypes.data, 1 if self._of_texts else longest,
        )  # fmt: skip
        if failed == 1:
            raise MemoryError("the engine native has no memory for the inputs, or no threads")
        if failed:
            told = "a text has no token, or one whose id, type or position is not among those of the model"
            raise ValueError(told)
        columns = (self._columns[name] for name in names or self._columns)
        return [found if column is None else found[..., column] for column in columns]


def _result(program: Program) -> tuple[int, bool]:
    register = program.code[-1][1]
    return program.widths[register], program.of_texts[register]
