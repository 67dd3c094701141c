"""An int8 graph as a program for the engine "native": few instructions, on rows of numbers without padding.

The graph is followed from its inputs. What depends on lengths and masks alone only places tokens in a padded batch and
is left out; every other operator must be one that is known here, with the shapes that belong together, or
`UnknownGraphError` says which is not. Products with a bias, an activation and a residual become one instruction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import registers as ops
from .folding import ASIDE, FOLDS, Array, UnknownGraphError, folded, reshaped
from .graph import Graph, Node
from .registers import Program, Weights, join, reads, share_registers

__all__ = ["Program", "UnknownGraphError", "compile_graph"]
_INDICES = {"input_ids": ops.IDS, "token_type_ids": ops.TYPES}
_ERRORS = AttributeError, IndexError, KeyError, MemoryError, OverflowError, TypeError, ValueError
_INPUTS = {"attention_mask", *_INDICES}
_TEXTS = 5  # of the batch on which that is computed
_MOST_TOKENS = 131
_WIDEST = 1 << 22  # columns; and inputs of a product of int8, whose sums would leave 32 bits
_MOST_INPUTS = 1 << 16
_MASKED = -1e4  # a score to which this or less is added counts nothing
_STEP = 1 / 127
_NO_NEGATIVE = 0.1699  # ops.GELU gives nothing below -0.16997


@dataclass(frozen=True)
class Rows:
    """A register: a row of numbers for each token, or for each text; and the shape of it for the batch of asides."""

    index: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Lookup:
    """Rows of a table, of which each has a scale or none, and which rows: a number of `_INDICES`, or positions."""

    table: Array
    which: int
    scales: Array | None = None


@dataclass(frozen=True)
class _Aside:
    """What lengths and masks alone decide: its values for a batch of texts of several lengths."""

    values: Array


@dataclass(frozen=True)
class _Stage:
    """Rows on their way through operators that are one instruction: `name` is what they are at last."""

    name: str
    rows: Rows
    detail: Any = None


_Value = Any  # Array (known now), Rows, _Lookup, _Aside, _Stage, or None for an input that is left out


def compile_graph(graph: Graph, outputs: Sequence[str]) -> Program:
    """Return the program that gives these outputs of a graph, or raise UnknownGraphError."""
    compiler = _Compiler(graph, outputs)
    compiler.run()
    results = [compiler.values.get(name) for name in outputs]
    program = compiler.program
    found = {
        value.rows if isinstance(value, _Stage) and value.name == "single" else compiler.rows(value)
        for value in results
    }
    if len(found) != 1 or not any(one.kind == ops.INT8_MATRIX for one in program.weights):
        raise UnknownGraphError("it has outputs that are computed apart, or no product of int8 by token")
    (result,) = found
    if result.shape[:-1] not in ((_TEXTS, compiler.tokens), (_TEXTS,)):
        raise UnknownGraphError("its output has another shape than texts or tokens")
    for name, value in zip(outputs, results, strict=True):
        program.columns[name] = value.detail if isinstance(value, _Stage) else None
    join(program, result.index)
    if program.code[-1][1] != result.index:
        raise UnknownGraphError("its output is not computed last")
    keys = {it[3] for it in program.code if it[0] == ops.ATTEND}
    others = [[*it[:3], -1, *it[4:]] if it[0] == ops.ATTEND else it for it in program.code]
    if keys & {register for it in others for register in reads(it)}:
        raise UnknownGraphError("keys are read elsewhere too")
    share_registers(program)
    return program


class _Compiler:
    def __init__(self, graph: Graph, outputs: Sequence[str]) -> None:
        self.program = Program()
        needed, self.nodes = set(outputs), list[Node]()
        for node in reversed(graph.nodes):
            if needed & {*node.outputs}:
                self.nodes.insert(0, node)
                needed |= {*node.inputs}
        made = [
            *graph.inputs,
            *graph.tensors,
            *(name for node in graph.nodes for name in node.outputs if name),
        ]
        if (
            len(made) > len({*made})
            or "input_ids" not in graph.inputs
            or not _INPUTS.issuperset(graph.inputs)
        ):
            raise UnknownGraphError("it has other inputs than a text's, or two values of one name")
        sliced = [graph.tensors.get(node.inputs[0]) for node in self.nodes if node.operator == "Slice"]
        stored = [one.shape[1] for one in sliced if one is not None and one.ndim == 2]  # positions
        self.tokens = min([_MOST_TOKENS, *(size - 1 for size in stored)])
        if self.tokens < 4:
            raise UnknownGraphError("it has too few positions")
        self.lengths = np.array([self.tokens, 1, self.tokens // 2, 3, self.tokens - 1])
        self.mask = np.arange(self.tokens) < self.lengths[:, None]
        self.makers: dict[int, list[Any]] = {}  # of registers
        self.known: dict[tuple[int, int, int], int] = {}  # weights by kind and arrays
        inputs: dict[str, _Value] = {"attention_mask": _Aside(self.mask.astype(np.int64))}
        inputs |= {
            name: _Stage("index", Rows(-1, self.mask.shape), which) for name, which in _INDICES.items()
        }
        self.values: dict[str, _Value] = {**graph.tensors, "": None}
        self.values |= {name: inputs[name] for name in graph.inputs}

    def run(self) -> None:
        for node in self.nodes:
            try:
                found = self._value(node, [self.values[name] for name in node.inputs])
                parts = found if isinstance(found, list) else [found]
                self.values.update(
                    {name: part for name, part in zip(node.outputs, parts, strict=True) if name}
                )
            except UnknownGraphError:
                raise
            except _ERRORS as error:
                raise UnknownGraphError(f"{node.operator} is used in a way that is not known") from error
            if any(part is None for part in parts):
                raise UnknownGraphError(f"{node.operator} is used in a way that is not known")

    def rows(self, value: _Value) -> Rows:
        """Return the register of a value."""
        if isinstance(value, Rows):
            return value
        if isinstance(value, _Lookup):
            table, scales = value.table, value.scales
            if table.ndim != 2 or (scales is not None and scales.size != len(table)):
                raise UnknownGraphError("a table has another shape than its scales")
            weight = self._weight(ops.FP32_TABLE if scales is None else ops.INT8_TABLE, table, scales)
            return self._emit(ops.GATHER, (*self.mask.shape, table.shape[1]), b=value.which, c=weight)
        raise UnknownGraphError("a value is used in a way that is not known")

    def _value(self, node: Node, values: list[_Value]) -> _Value:
        """Return what an operator makes of its inputs; None if that is not known."""
        given = [value for value in values if value is not None]
        if node.operator == "Shape":
            shape = given[0].values.shape if isinstance(given[0], _Aside) else _shape(given[0])
            return _Aside(FOLDS["Shape"](node, np.broadcast_to(0, shape)))
        if all(isinstance(value, np.ndarray) for value in given):
            return folded(node, values)
        if all(isinstance(value, np.ndarray | _Aside) for value in given) and not _is_lookup(node, given):
            if node.operator not in ASIDE:
                return None
            made = folded(node, [one.values if isinstance(one, _Aside) else one for one in values])
            return None if made is None else _Aside(made)
        if any(isinstance(value, _Lookup) for value in given) and (found := _lookup(node, given)) is not None:
            return found
        handler = getattr(self, f"_on_{node.operator.lower()}", None)
        return None if handler is None else handler(node, values)

    # ------------------------------------------------------------------------------------------- instructions

    def _weight(self, kind: int, array: Array, scales: Array | None = None) -> int:
        key = kind, id(array), id(scales)
        if key not in self.known:
            self.known[key] = len(self.program.weights)
            values = array.astype(np.int8 if kind in (ops.INT8_MATRIX, ops.INT8_TABLE) else np.float32)
            if kind in (ops.INT8_MATRIX, ops.INT8_TABLE) and not np.array_equal(values, array):
                raise UnknownGraphError("a matrix or table of int8 holds other numbers")
            kept = None if scales is None else np.ascontiguousarray(scales).reshape(-1)
            real = array if kept is None else kept
            if real.dtype != np.float32 or not np.isfinite(real).all():
                raise UnknownGraphError("its weights are not finite numbers of fp32")
            self.program.weights.append(Weights(kind, np.ascontiguousarray(values), kept, (array, scales)))
        return self.known[key]

    def _vector(self, array: Array, rows: Rows) -> int:
        if array.shape != rows.shape[-1:]:
            raise UnknownGraphError("a vector has another width than its rows")
        return self._weight(ops.VECTOR, array)

    def _emit(self, operation: int, shape: tuple[int, ...], **places: Any) -> Rows:
        rows, count = Rows(len(self.program.widths), shape), math.prod(shape[:-1])
        if count not in (_TEXTS, self.mask.size) or not 0 < shape[-1] <= _WIDEST:
            raise UnknownGraphError("its rows are neither of tokens nor of texts, or too wide")
        self.program.widths.append(shape[-1])
        self.program.of_texts.append(count == _TEXTS)
        given = {"a": -1, "b": -1, "c": -1, "d": 0, "e": -1, "value": 0.0, **places}
        self.makers[rows.index] = [operation, rows.index, *given.values()]
        self.program.code.append(self.makers[rows.index])
        return rows

    def _like(self, operation: int, rows: Rows, **places: Any) -> Rows:
        return self._emit(operation, rows.shape, a=rows.index, **places)

    def _multiply(
        self, rows: Rows, matrix: Array, kind: int, scales: Array | None = None, **places: Any
    ) -> Rows:
        fits = (
            matrix.ndim == 2
            and len(matrix) == rows.shape[-1]
            and (kind == ops.FP32_MATRIX or len(matrix) < _MOST_INPUTS)
        )
        if not fits or (scales is not None and scales.shape != matrix.shape[1:]):
            raise UnknownGraphError("a matrix has another shape than its rows or scales")
        shape = (*rows.shape[:-1], matrix.shape[1])
        return self._emit(ops.LINEAR, shape, a=rows.index, b=self._weight(kind, matrix, scales), **places)

    # ------------------------------------------------------------------------------------------- operators

    def _on_gather(self, node: Node, values: list[_Value]) -> _Value:
        source, index = values
        axis = node.attributes.get("axis", 0)
        if isinstance(source, np.ndarray) and isinstance(index, _Aside | _Stage):
            if isinstance(index, _Stage):
                which = _parts(index, "index")[1]
            elif self._counts(index.values):
                which = ops.POSITIONS
            else:
                raise UnknownGraphError("its positions do not count from 0")
            return None if source.ndim > 2 or axis else _Lookup(source, which)
        first = axis == 1 and isinstance(index, np.ndarray) and index.size == 1 and not index.any()
        return self._first(self.rows(source), (1,) * index.ndim) if first else None

    def _counts(self, values: Array) -> bool:
        counted = np.arange(self.tokens)
        fits = values.shape in (counted.shape, (1, self.tokens), self.mask.shape)
        return fits and bool((values == counted).all())

    def _on_slice(self, node: Node, values: list[_Value]) -> _Value:
        rows = self.rows(values[0])
        first, end, axis, step = (int(value.item()) for value in [*values[1:], np.array(1)][:4])
        if (first, end, axis, step) == (0, 1, 1, 1):
            return self._first(rows, (1,))
        if axis not in (-1, len(rows.shape) - 1) or (end, step) != (first + 1, 1):
            return None
        return _Stage("column", rows, range(rows.shape[-1])[first]) if first >= 0 else None

    def _first(self, rows: Rows, between: tuple[int, ...]) -> Rows | None:
        shape = (_TEXTS, *between, rows.shape[-1])
        if rows.shape[:-1] == (_TEXTS, 1):
            return Rows(rows.index, shape)
        return self._emit(ops.FIRST, shape, a=rows.index) if rows.shape[:-1] == self.mask.shape else None

    def _on_abs(self, node: Node, values: list[_Value]) -> _Value:
        return _Stage("size", self.rows(values[0]))

    def _on_reducemax(self, node: Node, values: list[_Value]) -> _Value:
        if not _over_columns(node, values):
            return None
        sizes = isinstance(values[0], _Stage) and values[0].name == "size"
        rows = values[0].rows if sizes else self.rows(values[0])
        return _Stage("most", rows, sizes)

    def _on_max(self, node: Node, values: list[_Value]) -> _Value:
        stage, least = values[0], float(values[1].item())
        enough = stage.detail or (self.makers[stage.rows.index][0] == ops.GELU and least > _NO_NEGATIVE)
        return _Stage("largest", stage.rows, least) if stage.name == "most" and enough else None

    def _on_reciprocal(self, node: Node, values: list[_Value]) -> _Value:
        return _Stage("factor", *_parts(values[0], "largest"))

    def _on_quantizelinear(self, node: Node, values: list[_Value]) -> _Value:
        stage, step, middle = values
        return _Stage("int8", *_parts(stage, "shares")) if _is_step(step, middle) else None

    def _on_matmulintegertofloat(self, node: Node, values: list[_Value]) -> _Value:
        stage, matrix, step, scales, middle = values
        rows, least = _parts(stage, "int8")
        if not _is_step(step, middle) or matrix.dtype != np.int8:
            return None
        return _Stage(
            "product", self._multiply(rows, matrix, ops.INT8_MATRIX, scales, value=least), (rows, least)
        )

    def _on_mul(self, node: Node, values: list[_Value]) -> _Value:
        left, right = values
        if isinstance(left, _Stage) and left.name == "scores":
            queries, keys, heads, scale, masked = left.detail
            detail = queries, keys, heads, scale * float(right.item()), masked
            return None if masked else _Stage("scores", left.rows, detail)
        if isinstance(right, _Stage) and right.name == "factor":
            return _Stage("shares", right.rows, right.detail) if self.rows(left) == right.rows else None
        if isinstance(left, _Stage) and left.name == "product":
            return left.rows if _parts(right, "largest") == left.detail else None
        if isinstance(left, np.ndarray):
            left, right = right, left
        rows = self.rows(left)
        return self._like(ops.AFFINE, rows, b=self._vector(right, rows))

    def _on_matmul(self, node: Node, values: list[_Value]) -> _Value:
        left, right = values
        if isinstance(left, _Aside):
            rows = self.rows(right)
            fits = rows.shape[:-1] == self.mask.shape and np.array_equal(left.values, self.mask[:, None])
            return _Stage("sum", rows, 1) if fits else None
        if isinstance(left, _Stage) and left.name == "weights":
            queries, keys, heads, scale, _ = left.detail
            rows, (given, axes) = _parts(right, "heads")
            attended = self._attend(queries, keys, rows, heads, scale)
            return (
                _Stage("heads", attended, (heads, axes)) if (given, axes) == (heads, (0, 2, 1, 3)) else None
            )
        if isinstance(left, _Stage):
            (queries, (heads, axes)), (keys, turned) = _parts(left, "heads"), _parts(right, "heads")
            fits = axes == (0, 2, 1, 3) and turned == (heads, (0, 2, 3, 1))
            return _Stage("scores", queries, (queries, keys, heads, 1.0, False)) if fits else None
        return self._multiply(self.rows(left), right, ops.FP32_MATRIX)

    def _on_gemm(self, node: Node, values: list[_Value]) -> _Value:
        one = {"alpha": 1.0, "beta": 1.0, "transA": 0}
        rows = self.rows(values[0])
        if len(rows.shape) != 2 or any(
            node.attributes.get(name, value) != value for name, value in one.items()
        ):
            return None
        matrix = values[1].T if node.attributes.get("transB") else values[1]
        made = self._multiply(rows, matrix, ops.FP32_MATRIX)
        if values[2:] and values[2] is not None:
            self.makers[made.index][ops.BIAS] = self._vector(values[2], made)
        return made

    def _on_add(self, node: Node, values: list[_Value]) -> _Value:
        left, right = values
        if isinstance(left, np.ndarray | _Aside):
            left, right = right, left
        if isinstance(left, _Stage) and left.name == "scores":
            queries, keys, heads, scale, masked = left.detail
            fits = not masked and self._hides_padding(right, left.rows, heads)
            return _Stage("scores", left.rows, (queries, keys, heads, scale, True)) if fits else None
        if isinstance(left, _Stage) and left.name == "most":
            tiny = left.detail and 0 <= float(right.item()) < 1e-30
            return _Stage("largest", left.rows, 0.0) if tiny else None
        if isinstance(right, np.ndarray):
            rows = self.rows(left)
            return self._like(ops.AFFINE, rows, c=self._vector(right, rows))
        rows, others = self.rows(left), self.rows(right)
        if rows.shape != others.shape:
            raise UnknownGraphError("rows of two kinds are added")
        return self._like(ops.ADD, rows, b=others.index)

    _on_sum = _on_add

    def _on_gelu(self, node: Node, values: list[_Value]) -> _Value:
        return (
            None
            if node.attributes.get("approximate") == "tanh"
            else self._like(ops.GELU, self.rows(values[0]))
        )

    def _on_tanh(self, node: Node, values: list[_Value]) -> _Value:
        return self._like(ops.TANH, self.rows(values[0]))

    def _on_relu(self, node: Node, values: list[_Value]) -> _Value:
        return self._like(ops.RELU, self.rows(values[0]))

    def _on_layernormalization(self, node: Node, values: list[_Value]) -> _Value:
        rows = self.rows(values[0])
        gain, bias = (self._vector(value, rows) for value in values[1:3])
        last = node.attributes.get("axis", -1) in (-1, len(rows.shape) - 1)
        return (
            self._like(ops.NORM, rows, b=gain, c=bias, value=node.attributes.get("epsilon", 1e-5))
            if last
            else None
        )

    # ------------------------------------------------------------------------------------------- attention, pooling

    def _on_reshape(self, node: Node, values: list[_Value]) -> _Value:
        """Columns put as heads, or back: rows stay as they are."""
        value, parts = values[0], values[1].values if isinstance(values[1], _Aside) else values[1]
        rows, order = _parts(value, "heads") if isinstance(value, _Stage) else (self.rows(value), None)
        if order and order[1] != (0, 1, 2, 3):
            return None
        before = (*rows.shape[:-1], order[0], rows.shape[-1] // order[0]) if order else rows.shape
        shape = reshaped(before, parts, node.attributes.get("allowzero"))
        if shape[-1] == rows.shape[-1]:
            return Rows(rows.index, shape)
        heads = shape[2]
        fits = len(shape) == 4 and shape[:2] == rows.shape[:-1] and heads > 0
        return _Stage("heads", rows, (heads, (0, 1, 2, 3))) if fits else None

    def _on_transpose(self, node: Node, values: list[_Value]) -> _Value:
        rows, (heads, axes) = _parts(values[0], "heads")
        return _Stage("heads", rows, (heads, tuple(axes[axis] for axis in node.attributes["perm"])))

    def _on_softmax(self, node: Node, values: list[_Value]) -> _Value:
        rows, detail = _parts(values[0], "scores")
        return _Stage("weights", rows, detail) if node.attributes.get("axis", -1) in (-1, 3) else None

    def _on_attention(self, node: Node, values: list[_Value]) -> _Value:
        queries, keys, mass = map(self.rows, values[:3])
        heads, scale = node.attributes.get("q_num_heads"), node.attributes.get("scale")
        plain = not node.attributes.get("is_causal") and not node.attributes.get("softcap")
        one = plain and len(node.outputs) == 1 and not any(value is not None for value in values[4:])
        if not (one and heads and scale and heads == node.attributes.get("kv_num_heads")):
            return None
        mask = values[3] if values[3:] else None
        fits = mask is None or self._hides_padding(mask, queries, heads)
        return self._attend(queries, keys, mass, heads, scale) if fits else None

    def _hides_padding(self, aside: _Aside, queries: Rows, heads: int) -> bool:
        """Tell whether a mask lets every token of a text see just the tokens of that text."""
        shape = _TEXTS, heads, queries.shape[1], self.tokens
        values = np.broadcast_to(aside.values, shape)
        asking = self.mask[:, None, : shape[2], None]
        hidden = ~values if values.dtype == np.bool_ else values <= _MASKED
        exact = hidden if values.dtype == np.bool_ else values != 0
        wanted = ~self.mask[:, None, None]
        return not (((hidden != wanted) | (exact != wanted)) & asking).any()

    def _attend(self, queries: Rows, keys: Rows, values: Rows, heads: int, scale: float) -> Rows:
        width = queries.shape[-1]
        if heads < 1 or width % (heads * ops.LANES) or not math.isfinite(scale):
            raise UnknownGraphError(f"its heads are not of a multiple of {ops.LANES} columns")
        tokens = (*self.mask.shape, width)
        if {keys.shape, values.shape} != {tokens} or queries.shape not in (tokens, (_TEXTS, 1, width)):
            raise UnknownGraphError("an attention reads texts, not tokens")
        return self._like(ops.ATTEND, queries, b=keys.index, c=values.index, d=int(heads), value=scale)

    def _on_squeeze(self, node: Node, values: list[_Value]) -> _Value:
        value, axes = values
        if isinstance(value, _Stage) and value.name == "column":
            last = axes.tolist() in ([-1], [len(value.rows.shape) - 1])
            return _Stage("single", value.rows, value.detail) if last else None
        if axes.tolist() not in ([1], [-2]):
            return None
        if isinstance(value, _Stage):
            return _Stage("sum", _parts(value, "sum")[0], 0)
        return Rows(value.index, (_TEXTS, value.shape[-1])) if value.shape[:-1] == (_TEXTS, 1) else None

    def _on_div(self, node: Node, values: list[_Value]) -> _Value:
        left, right = values
        if isinstance(right, _Aside):
            rows, between = _parts(left, "sum")
            shape = (_TEXTS, *(1,) * between)
            fits = np.array_equal(right.values, self.lengths.reshape(*shape, 1))
            return self._emit(ops.MEAN, (*shape, rows.shape[-1]), a=rows.index) if fits else None
        rows, least = _parts(right, "length")
        return self._like(ops.UNIT_LENGTH, left, value=least) if rows == left else None

    def _on_reducel2(self, node: Node, values: list[_Value]) -> _Value:
        return _Stage("length", self.rows(values[0]), 0.0) if _over_columns(node, values) else None

    def _on_clip(self, node: Node, values: list[_Value]) -> _Value:
        stage, least = values
        return _Stage("length", _parts(stage, "length")[0], float(least.item()))

    def _on_expand(self, node: Node, values: list[_Value]) -> _Value:
        rows, _ = _parts(values[0], "length")
        return values[0] if tuple(values[1].values.tolist()) == rows.shape else None

    def _on_split(self, node: Node, values: list[_Value]) -> _Value:
        rows = self.rows(values[0])
        width = rows.shape[-1]
        each = len(node.outputs) == width and node.attributes.get("axis", 0) in (-1, len(rows.shape) - 1)
        return [_Stage("column", rows, at) for at in range(width)] if each else None


def _parts(value: _Value, name: str) -> tuple[Rows, Any]:
    """Return rows and detail of a stage, which must be the one of this name."""
    if not isinstance(value, _Stage) or value.name != name:
        raise UnknownGraphError("operators follow each other in an order that is not known")
    return value.rows, value.detail


def _shape(value: _Value) -> tuple[int, ...]:
    if isinstance(value, _Stage):
        return _parts(value, "index")[0].shape
    shape: tuple[int, ...] = value.shape
    return shape


def _over_columns(node: Node, values: Sequence[_Value]) -> bool:
    return node.attributes.get("keepdims", 1) == 1 and values[1].tolist() == [-1]


def _is_step(step: _Value, middle: _Value) -> bool:
    return abs(float(step.item()) / _STEP - 1) < 1e-6 and middle.dtype == np.uint8 and middle.item() == 128


def _is_lookup(node: Node, given: Sequence[_Value]) -> bool:
    return node.operator == "Gather" and isinstance(given[0], np.ndarray) and given[0].size > 1


def _lookup(node: Node, given: Sequence[_Value]) -> _Lookup | None:
    """Return the rows of a table that was changed row by row instead: the same as what becomes of its rows."""
    lookups = [value for value in given if isinstance(value, _Lookup)]
    if len({one.which for one in lookups}) > 1 or any(one.scales is not None for one in lookups):
        return None
    first, which = lookups[0].table, lookups[0].which
    if node.operator == "Unsqueeze":  # of scales
        return (
            _Lookup(first[:, None], which) if first.ndim == 1 and given[1].tolist() in ([-1], [2]) else None
        )
    if node.operator == "Mul" and len(lookups) == 2:
        scales = lookups[1].table
        return _Lookup(first, which, scales) if scales.shape == (len(first), 1) else None
    changed = node.operator in ("Cast", "BitwiseAnd", "BitShift", "Sub")
    plain = changed and all(isinstance(value, _Lookup) or value.size == 1 for value in given)
    joined = node.operator == "Concat" and len(lookups) == len(given) and node.attributes["axis"] in (-1, 2)
    if joined or plain:
        tables = [value.table if isinstance(value, _Lookup) else value for value in given]
        return _Lookup(
            np.concatenate(tables, -1) if joined else np.asarray(FOLDS[node.operator](node, *tables)), which
        )
    return None
