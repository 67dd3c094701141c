"""The machine: its memory and precision, and what a number was measured with."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_FEWEST_TURNS = 3


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


def peak_memory_mb() -> float:
    """Return the most memory that this process has held so far, in MB (with a GPU: on it; on Windows: 0)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    # getrusage's figure would include what the parent held when it started this process.
    if held := _of_proc("self/status", "VmHWM"):
        return int(held.split()[0]) * 1024 / 1e6
    if sys.platform == "win32":
        return 0.0  # the standard library has no such figure there
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _of_proc(file: str, name: str) -> str:
    """Return what stands behind a name in a file of Linux's /proc; empty where there is none."""
    path = Path("/proc") / file
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def instruction_sets() -> list[str]:
    """Return which vector instructions decide the speed of products here, as Linux names them; empty elsewhere."""
    named = r"avx2|avx_vnni|avx512(f|_vnni|_bf16|_fp16)|amx_\w+|asimd\w*|bf16|i8mm|sve2?"
    flags = (_of_proc("cpuinfo", "flags") or _of_proc("cpuinfo", "Features")).split()
    return sorted(flag for flag in flags if re.fullmatch(named, flag))


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _libc_function(name: str) -> Any:
    with suppress(OSError, AttributeError):  # another libc
        return getattr(ctypes.CDLL(None), name) if sys.platform == "linux" else None
    return None


def resolve_precision(precision: str) -> str:
    """Return a precision with "auto" resolved by the device alone: bf16 on a GPU that has it, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def bf16_speed(width: int, inner: int, tokens: int) -> float:
    """Return how many times as fast this CPU computes a feed-forward block, both ways, in bf16 as in fp32.

    The block has weights of `width` x `inner`. Both take turns for about a second; the first turn only warms up.
    """
    inputs = torch.randn(tokens, width, requires_grad=True)
    up, down = torch.randn(inner, width, requires_grad=True), torch.randn(width, inner, requires_grad=True)
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    started = time.perf_counter()
    while len(seconds["bf16"]) < _FEWEST_TURNS or time.perf_counter() - started < 1.0:
        for precision, measured in seconds.items():
            begun = time.perf_counter()
            with autocast("cpu", precision):
                hidden = functional.gelu(functional.linear(inputs, up))
                functional.linear(hidden, down).sum().backward()
            measured.append(time.perf_counter() - begun)
    return statistics.median(seconds["fp32"][1:]) / statistics.median(seconds["bf16"][1:])


def autocast(device_type: str, precision: str) -> Any:
    """Return the context in which forward passes of a precision ("fp32", "bf16", "fp16") run on "cpu" or "cuda"."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device_type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def installed_versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def environment() -> dict[str, Any]:
    """Return what a number was measured with: versions, commit, machine."""
    packages = ("minialbert", "torch", "transformers", "datasets", "accelerate", "numpy", "onnxruntime")
    return {
        "versions": installed_versions(*packages),
        "commit": _commit(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _of_proc("cpuinfo", "model name") or platform.processor(),
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
