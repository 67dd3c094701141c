"""What the operators of a graph make of tensors that are known, in NumPy."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import DTYPES, Node

Array = NDArray[Any]
# What makes masks of attention masks, and shapes. A mask by distance (a window) needs others, and is not known.
ASIDE = {
    "And", "Cast", "Concat", "Equal", "Expand", "Gather", "GatherND", "GreaterOrEqual", "Max", "Mul", "Range",
    "ReduceSum", "Reshape", "Shape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


class UnknownGraphError(ValueError):
    """A graph holds what the engine "native" does not know; the message says what."""


def folded(node: Node, given: Sequence[Array | None]) -> Array | None:
    """Return what an operator makes of stored tensors; None for one that exports do not use on them."""
    fold = FOLDS.get(node.operator)
    return None if fold is None or node.attributes.get("batch_dims") else np.asarray(fold(node, *given))


def reshaped(shape: tuple[int, ...], parts: Array, allowzero: Any) -> tuple[int, ...]:
    """Return the shape that Reshape gives what has a shape."""
    kept = [shape[at] if not part and not allowzero else part for at, part in enumerate(parts.tolist())]
    return np.broadcast_to(0, shape).reshape(kept).shape


def _sliced(node: Node, x: Array, *bounds: Array) -> Array:
    first, end, axes = bounds[:3]
    steps = bounds[3] if bounds[3:] else np.ones(len(axes), np.int64)
    cut = [slice(None)] * x.ndim
    for at, axis in enumerate(axes.tolist()):
        cut[axis] = slice(*(int(bound[at]) for bound in (first, end, steps)))
        if steps[at] < 1:
            raise UnknownGraphError("it slices backwards")
    return x[tuple(cut)]


FOLDS: dict[str, Callable[..., Array]] = {
    "Add": lambda node, *x: operator.add(*x),
    "And": lambda node, *x: operator.and_(*x),
    "BitShift": lambda node, *x: {"RIGHT": operator.rshift, "LEFT": operator.lshift}[
        node.attributes["direction"]
    ](*x),
    "BitwiseAnd": lambda node, *x: operator.and_(*x),
    "Cast": lambda node, x: x.astype(DTYPES[node.attributes["to"]]),
    "Concat": lambda node, *x: np.concatenate(x, axis=node.attributes["axis"]),
    "Equal": lambda node, *x: operator.eq(*x),
    "Expand": lambda node, x, shape: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape.tolist()))),
    "Gather": lambda node, x, at: np.take(x, at, axis=node.attributes.get("axis", 0)),
    "GatherND": lambda node, x, at: x[tuple(np.moveaxis(at, -1, 0))],
    "GreaterOrEqual": lambda node, *x: operator.ge(*x),
    "Max": lambda node, *x: reduce(np.maximum, x),
    "Mul": lambda node, *x: operator.mul(*x),
    "Range": lambda node, *x: np.arange(*(one.item() for one in x)),
    "ReduceSum": lambda node, x, axes: x.sum(
        tuple(axes.tolist()), keepdims=node.attributes.get("keepdims", 1) == 1
    ),
    "Reshape": lambda node, x, to: x.reshape(reshaped(x.shape, to, node.attributes.get("allowzero"))),
    "Shape": lambda node, x: np.array(x.shape[node.attributes.get("start", 0) : node.attributes.get("end")]),
    "Slice": _sliced,
    "Squeeze": lambda node, x, *axes: x.squeeze(*(tuple(one.tolist()) for one in axes)),
    "Sub": lambda node, *x: operator.sub(*x),
    "Transpose": lambda node, x: x.transpose(node.attributes.get("perm")),
    "Unsqueeze": lambda node, x, axes: np.expand_dims(x, tuple(axes.tolist())),
    "Where": lambda node, *x: np.where(*x),
}
