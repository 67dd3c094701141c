"""The machine: memory that is freed, its cores, and what a number was measured with."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tell glibc's allocator not to hand large blocks back when they are freed; return whether it took that.

    A step allocates the same large tensors as the one before. By default each of them is mapped anew, and
    every page faults once, which can cost an element-wise operation more than its arithmetic.
    """
    mallopt = _libc_function("mallopt") or (lambda *_: 0)
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def release_freed_memory() -> None:
    """Hand back what `keep_freed_memory` has kept.

    Tensors whose size varies from step to step (logits at masked positions) leave gaps of all sizes behind,
    so what is kept grows; called now and then, this bounds it.
    """
    malloc_trim = _libc_function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def of_proc(file: str, name: str) -> str:
    """Return what stands behind a name in a file of Linux's /proc; empty where there is none."""
    path = Path("/proc") / file
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def instruction_sets() -> list[str]:
    """Return which vector instructions decide the speed of products here, as Linux names them; empty elsewhere."""
    named = r"avx2|avx_vnni|avx512(f|_vnni|_bf16|_fp16)|amx_\w+|asimd\w*|bf16|i8mm|sve2?"
    flags = (of_proc("cpuinfo", "flags") or of_proc("cpuinfo", "Features")).split()
    return sorted(flag for flag in flags if re.fullmatch(named, flag))


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _libc_function(name: str) -> Any:
    with suppress(OSError, AttributeError):  # another libc
        return getattr(ctypes.CDLL(None), name) if sys.platform == "linux" else None
    return None


def installed_versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def environment() -> dict[str, Any]:
    """Return what a number was measured with: versions, commit, machine."""
    import torch  # all else here is asked for where nothing is computed

    packages = ("minialbert", "torch", "transformers", "datasets", "accelerate", "numpy", "onnxruntime")
    return {
        "versions": installed_versions(*packages),
        "commit": _commit(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": of_proc("cpuinfo", "model name") or platform.processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
    }


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed from a wheel
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=10).strip()
    except (OSError, subprocess.SubprocessError):
        return None
