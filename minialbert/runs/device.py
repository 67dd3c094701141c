"""What torch computes on: the device's memory and precision, and the context of a forward pass."""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional

from minialbert.runs.machine import of_proc

_FEWEST_TURNS = 3


def peak_memory_mb() -> float:
    """Return the most memory that this process has held so far, in MB (with a GPU: on it; on Windows: 0)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    # getrusage's figure would include what the parent held when it started this process.
    if held := of_proc("self/status", "VmHWM"):
        return int(held.split()[0]) * 1024 / 1e6
    if sys.platform == "win32":
        return 0.0  # the standard library has no such figure there
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


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
