"""Which arithmetic forward passes use."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch


def resolve_precision(precision: str) -> str:
    """Return a precision with "auto" resolved: bf16 on a GPU that has it, else fp32.

    Args:
        precision: "auto", "fp32", "bf16" or "fp16".

    Returns:
        "fp32", "bf16" or "fp16".
    """
    if precision != "auto":
        return precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def autocast(device_type: str, precision: str) -> Any:  # noqa: ANN401 - a context manager
    """Return the context in which forward passes of a precision run.

    Args:
        device_type: "cpu" or "cuda".
        precision: "fp32", "bf16" or "fp16".

    Returns:
        The context.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device_type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)
