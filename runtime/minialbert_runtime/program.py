"""An int8 graph as a program for the engine "native": few instructions, on rows of numbers without padding.

The graph is followed from its inputs. What depends on lengths and masks alone only places tokens in a padded batch and
is left out; every other operator must be one that is known here, with the shapes that belong together, or
`UnknownGraphError` says which is not. Products with a bias, an activation and a residual become one instruction.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import DTYPES, Graph, Node

Array = NDArray[Any]
# Operations, indices and kinds of weights, with the numbers that kernel.cpp gives them.
GATHER, ADD, AFFINE, NORM, LINEAR, GELU, TANH, RELU, ATTEND, FIRST, MEAN, UNIT_LENGTH = range(12)
_IDS, _POSITIONS, _TYPES = range(3)
_INT8_MATRIX, _FP32_MATRIX, _VECTOR, _INT8_TABLE, _FP32_TABLE = range(5)
_READ = {GATHER: (), ADD: (2, 3), LINEAR: (2, 6), ATTEND: (2, 3, 4)}  # places of registers in an instruction
_CROSSING = {ATTEND: (3, 4), FIRST: (2,), MEAN: (2,)}  # of those whose other rows are read too
_BIAS, _ACTIVATION, _RESIDUAL = 4, 5, 6  # places in a LINEAR
_LANES = 16
_INDICES = {"input_ids": _IDS, "token_type_ids": _TYPES}
# What makes masks of attention masks, and shapes. A mask by distance (a window) needs others, and is not known.
_ASIDE = {
    "And", "Cast", "Concat", "ConstantOfShape", "Equal", "Expand", "Gather", "GatherND", "GreaterOrEqual", "Max", "Mul",
    "Range", "ReduceSum", "Reshape", "Shape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


class UnknownGraphError(ValueError):
    """A graph holds what the engine "native" does not know; the message says what."""


@dataclass(frozen=True)
class Rows:
    """A register: a row of numbers for each token, or for each text."""

    index: int


@dataclass(frozen=True)
class _Lookup:
    """Rows of a table, of which each has a scale or none, and which rows: a number of `_INDICES`, or positions."""

    table: Array
    which: int
    scales: Array | None = None


@dataclass(frozen=True)
class _Aside:
    """What lengths and masks alone decide; of a shape the parts that are known."""

    parts: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class _Stage:
    """Rows on their way through operators that are one instruction: `name` is what they are at last."""

    name: str
    rows: Rows
    detail: Any = None


_Value = Any  # Array (known now), Rows, _Lookup, _Aside, _Stage, or None for an input that is left out


@dataclass(eq=False)
class Weights:
    """A matrix, table or vector of the program."""

    kind: int
    values: Array
    scales: Array | None
    source: Array  # as it came: two uses of it are one weight


@dataclass
class Program:
    """Instructions [operation, to, a, b, c, d, e, value], registers by width and kind, and weights.

    The last instruction gives the result, of whose columns `columns` names those of each output; None for all.
    """

    code: list[list[Any]] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    of_texts: list[bool] = field(default_factory=list)
    weights: list[Weights] = field(default_factory=list)
    columns: dict[str, int | None] = field(default_factory=dict)


def compile_graph(graph: Graph, outputs: Sequence[str]) -> Program:
    """Return the program that gives these outputs of a graph, or raise UnknownGraphError."""
    compiler = _Compiler(graph, outputs)
    compiler.run()
    results = [compiler.values[name] for name in outputs]
    program = compiler.program
    found = [value.rows if isinstance(value, _Stage) else compiler.rows(value) for value in results]
    if len(set(found)) > 1 or not any(one.kind == _INT8_MATRIX for one in program.weights):
        raise UnknownGraphError("it has outputs that are computed apart, or no product of int8 by token")
    if program.code[-1][1] != found[0].index:
        raise UnknownGraphError("its output is not computed last")
    for name, value in zip(outputs, results, strict=True):
        program.columns[name] = value.detail if isinstance(value, _Stage) and value.name == "column" else None
    _share_registers(program)
    return program


class _Compiler:
    def __init__(self, graph: Graph, outputs: Sequence[str]) -> None:
        self.program = Program()
        needed, self.nodes = set(outputs), list[Node]()
        for node in reversed(graph.nodes):
            if needed & {*node.outputs}:
                self.nodes.insert(0, node)
                needed |= {*node.inputs}
        self.uses = Counter([*outputs, *(name for node in self.nodes for name in node.inputs)])
        self.makers: dict[int, list[Any]] = {}  # of registers
        self.known: dict[tuple[int, int], int] = {}  # weights by kind and array
        self.values: dict[str, _Value] = {**graph.tensors, "": None, "attention_mask": _Aside()}
        self.values |= {name: _Stage("index", Rows(-1), which) for name, which in _INDICES.items()}

    def run(self) -> None:
        for node in self.nodes:
            values = [self.values.get(name) for name in node.inputs]
            try:
                found = self._value(node, values)
            except UnknownGraphError:
                raise
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                raise UnknownGraphError(f"{node.operator} is used in a way that is not known") from error
            if found is None:
                raise UnknownGraphError(f"{node.operator} is used in a way that is not known")
            parts = found if isinstance(found, list) else [found, *[_Aside()] * (len(node.outputs) - 1)]
            self.values.update(zip(node.outputs, parts, strict=True))

    def rows(self, value: _Value) -> Rows:
        """Return the register of a value."""
        if isinstance(value, Rows):
            return value
        if isinstance(value, _Stage) and value.name in ("heads", "attended"):  # put as before
            return value.rows
        if isinstance(value, _Lookup):
            table, scales = value.table, value.scales
            if table.ndim != 2 or (scales is not None and len(scales) != len(table)):
                raise UnknownGraphError("a table has another shape than its scales")
            weight = self._weight(_FP32_TABLE if scales is None else _INT8_TABLE, table, scales)
            return self._emit(GATHER, table.shape[1], False, b=value.which, c=weight)
        raise UnknownGraphError("a value is used in a way that is not known")

    def _value(self, node: Node, values: list[_Value]) -> _Value:
        """Return what an operator makes of its inputs; None if that is not known."""
        given = [value for value in values if value is not None]
        if all(isinstance(value, np.ndarray) for value in given):
            return _folded(node, given)
        if all(isinstance(value, np.ndarray | _Aside) for value in given) and not _is_lookup(node, given):
            return _aside(node, given)
        if any(isinstance(value, _Lookup) for value in given) and (found := _lookup(node, given)) is not None:
            return found
        handler = getattr(self, f"_on_{node.operator.lower()}", None)
        return None if handler is None else handler(node, values)

    # ------------------------------------------------------------------------------------------- instructions

    def _weight(self, kind: int, array: Array, scales: Array | None = None) -> int:
        key = kind, id(array)
        if key not in self.known:
            self.known[key] = len(self.program.weights)
            values = array.astype(np.int8 if kind in (_INT8_MATRIX, _INT8_TABLE) else np.float32)
            if kind in (_INT8_MATRIX, _INT8_TABLE) and not np.array_equal(values, array):
                raise UnknownGraphError("a matrix or table of int8 holds other numbers")
            kept = None if scales is None else np.ascontiguousarray(scales, np.float32).reshape(-1)
            self.program.weights.append(Weights(kind, np.ascontiguousarray(values), kept, array))
        return self.known[key]

    def _vector(self, array: Array, rows: Rows) -> int:
        if array.shape != (self._width(rows),):
            raise UnknownGraphError("a vector has another width than its rows")
        return self._weight(_VECTOR, array)

    def _emit(self, operation: int, width: int, of_texts: bool, **places: Any) -> Rows:
        rows = Rows(len(self.program.widths))
        self.program.widths.append(width)
        self.program.of_texts.append(of_texts)
        given = {"a": -1, "b": -1, "c": -1, "d": 0, "e": -1, "value": 0.0, **places}
        self.makers[rows.index] = [operation, rows.index, *given.values()]
        self.program.code.append(self.makers[rows.index])
        return rows

    def _width(self, rows: Rows) -> int:
        return self.program.widths[rows.index]

    def _of_texts(self, rows: Rows) -> bool:
        return self.program.of_texts[rows.index]

    def _like(self, operation: int, rows: Rows, **places: Any) -> Rows:
        return self._emit(operation, self._width(rows), self._of_texts(rows), a=rows.index, **places)

    def _product(self, rows: Rows, name: str, place: int) -> list[Any] | None:
        """Return the product that gives these rows, if nobody else reads them and nothing was added from a place on."""
        made = self.makers[rows.index]
        untouched = [-1, 0, -1][place - _BIAS :]
        return (
            made
            if made[0] == LINEAR and self.uses[name] == 1 and made[place : _RESIDUAL + 1] == untouched
            else None
        )

    def _multiply(self, rows: Rows, matrix: Array, kind: int, scales: Array | None = None) -> Rows:
        scaled = scales is None or scales.size == matrix.shape[-1]
        if matrix.ndim != 2 or len(matrix) != self._width(rows) or not scaled:
            raise UnknownGraphError("a matrix has another shape than its rows or scales")
        return self._emit(
            LINEAR, matrix.shape[1], self._of_texts(rows), a=rows.index, b=self._weight(kind, matrix, scales)
        )

    # ------------------------------------------------------------------------------------------- operators

    def _on_gather(self, node: Node, values: list[_Value]) -> _Value:
        source, index = values[:2]
        if isinstance(source, np.ndarray) and isinstance(index, _Aside | _Stage):
            which = index.detail if isinstance(index, _Stage) and index.name == "index" else _POSITIONS
            return _Lookup(source, which) if source.ndim <= 2 and not node.attributes.get("axis") else None
        first = (
            node.attributes.get("axis") == 1
            and isinstance(index, np.ndarray)
            and index.size == 1
            and not index.any()
        )
        return self._first(self.rows(source)) if first else None

    def _on_shape(self, node: Node, values: list[_Value]) -> _Value:
        return _Aside()

    def _on_slice(self, node: Node, values: list[_Value]) -> _Value:
        first, end, axis = (int(value.item()) for value in values[1:4])
        if (first, end, axis) == (0, 1, 1):
            return self._first(self.rows(values[0]))
        return _Stage("column", self.rows(values[0]), first) if axis in (-1, 2) and end == first + 1 else None

    def _first(self, rows: Rows) -> Rows:
        return rows if self._of_texts(rows) else self._emit(FIRST, self._width(rows), True, a=rows.index)

    def _on_abs(self, node: Node, values: list[_Value]) -> _Value:
        return _Stage("size", self.rows(values[0]))

    def _on_reducemax(self, node: Node, values: list[_Value]) -> _Value:
        sizes = isinstance(values[0], _Stage) and values[0].name == "size"
        return _Stage("most", values[0].rows if sizes else self.rows(values[0]))

    def _on_max(self, node: Node, values: list[_Value]) -> _Value:
        return _Stage("largest", values[0].rows) if values[0].name == "most" else None

    def _on_reciprocal(self, node: Node, values: list[_Value]) -> _Value:
        return _Stage("factor", values[0].rows) if values[0].name == "largest" else None

    def _on_quantizelinear(self, node: Node, values: list[_Value]) -> _Value:
        return _Stage("int8", values[0].rows) if values[0].name == "shares" else None

    def _on_matmulintegertofloat(self, node: Node, values: list[_Value]) -> _Value:
        stage, matrix, _, scales = values[:4]
        if stage.name != "int8":
            return None
        return _Stage("product", self._multiply(stage.rows, matrix, _INT8_MATRIX, scales))

    def _on_mul(self, node: Node, values: list[_Value]) -> _Value:
        left, right = values
        if isinstance(left, _Stage) and left.name == "scores":
            queries, keys, heads, scale = left.detail
            return _Stage("scores", left.rows, (queries, keys, heads, scale * float(right)))
        if isinstance(right, _Stage) and right.name == "factor":
            return _Stage("shares", right.rows) if self.rows(left) == right.rows else None
        if isinstance(left, _Stage) and left.name == "product":
            return left.rows if right.name == "largest" else None
        if isinstance(left, np.ndarray):
            left, right = right, left
        rows = self.rows(left)
        return self._like(AFFINE, rows, b=self._vector(right, rows))

    def _on_matmul(self, node: Node, values: list[_Value]) -> _Value:
        left, right = values
        if isinstance(left, _Aside):
            return _Stage("sum", self.rows(right))
        if isinstance(left, _Stage) and left.name == "scores":
            queries, keys, heads, scale = left.detail
            return self._attend(queries, keys, self.rows(right), heads, scale)
        if isinstance(left, _Stage) and isinstance(right, _Stage):
            return _Stage("scores", left.rows, (left.rows, right.rows, left.detail, 1.0))
        return self._multiply(self.rows(left), right, _FP32_MATRIX)

    def _on_gemm(self, node: Node, values: list[_Value]) -> _Value:
        one = {"alpha": 1.0, "beta": 1.0, "transA": 0}
        if any(node.attributes.get(name, value) != value for name, value in one.items()):
            return None
        matrix = values[1].T if node.attributes.get("transB") else values[1]
        rows = self._multiply(self.rows(values[0]), matrix, _FP32_MATRIX)
        if len(values) > 2:
            self.makers[rows.index][_BIAS] = self._vector(values[2], rows)
        return rows

    def _on_add(self, node: Node, values: list[_Value]) -> _Value:
        if len(values) != 2:
            return None
        for value, name, other in _both_ways(values, node.inputs):
            if isinstance(value, _Stage) and value.name in ("scores", "most") and not isinstance(other, Rows):
                return _Stage("largest", value.rows) if value.name == "most" else value
            if isinstance(other, np.ndarray):
                rows = self.rows(value)
                if (made := self._product(rows, name, _BIAS)) is None:
                    return self._like(AFFINE, rows, c=self._vector(other, rows))
                made[_BIAS] = self._vector(other, rows)
                return rows
        left, right = map(self.rows, values)
        if self._width(left) != self._width(right) or self._of_texts(left) != self._of_texts(right):
            raise UnknownGraphError("rows of two kinds are added")
        for rows, name, other in _both_ways([left, right], node.inputs):
            made = self._product(rows, name, _RESIDUAL)
            if made is not None and other.index < rows.index:
                made[_RESIDUAL] = other.index
                return rows
        return self._like(ADD, left, b=right.index)

    _on_sum = _on_add

    def _on_gelu(self, node: Node, values: list[_Value]) -> _Value:
        return None if node.attributes.get("approximate") == "tanh" else self._activate(GELU, node, values)

    def _on_tanh(self, node: Node, values: list[_Value]) -> _Value:
        return self._activate(TANH, node, values)

    def _on_relu(self, node: Node, values: list[_Value]) -> _Value:
        return self._activate(RELU, node, values)

    def _activate(self, operation: int, node: Node, values: list[_Value]) -> Rows:
        rows = self.rows(values[0])
        if (made := self._product(rows, node.inputs[0], _ACTIVATION)) is None:
            return self._like(operation, rows)
        made[_ACTIVATION] = operation
        return rows

    def _on_layernormalization(self, node: Node, values: list[_Value]) -> _Value:
        rows = self.rows(values[0])
        gain, bias = (self._vector(value, rows) for value in values[1:3])
        return self._like(NORM, rows, b=gain, c=bias, value=node.attributes.get("epsilon", 1e-5))

    # ------------------------------------------------------------------------------------------- attention, pooling

    def _on_reshape(self, node: Node, values: list[_Value]) -> _Value:
        """Columns put as heads, or back: rows stay as they are."""
        value, shape = values
        parts = shape.parts if isinstance(shape, _Aside) else tuple(shape.tolist())
        rows = self.rows(value)
        return _Stage("heads", rows, parts[2]) if len(parts) == 4 else rows

    def _on_transpose(self, node: Node, values: list[_Value]) -> _Value:
        return values[0] if isinstance(values[0], _Stage) else None

    def _on_softmax(self, node: Node, values: list[_Value]) -> _Value:
        over_keys = node.attributes.get("axis", -1) in (-1, 3)
        return values[0] if values[0].name == "scores" and over_keys else None

    def _on_attention(self, node: Node, values: list[_Value]) -> _Value:
        queries, keys, mass = map(self.rows, values[:3])
        heads, scale = node.attributes.get("q_num_heads"), node.attributes.get("scale")
        plain = not node.attributes.get("is_causal") and not node.attributes.get("softcap")
        one = plain and len(node.outputs) == 1 and not any(value is not None for value in values[4:])
        same = heads == node.attributes.get("kv_num_heads") and isinstance(values[3], _Aside | None)
        if heads is None or scale is None or not (one and same):
            return None
        return self._attend(queries, keys, mass, heads, scale)

    def _attend(self, queries: Rows, keys: Rows, values: Rows, heads: int, scale: float) -> _Stage:
        width = self._width(queries)
        if {self._width(keys), self._width(values)} != {width} or not heads or width % (heads * _LANES):
            raise UnknownGraphError(f"its heads are not of a multiple of {_LANES} columns")
        if self._of_texts(keys) or self._of_texts(values):
            raise UnknownGraphError("an attention reads texts, not tokens")
        places = {"b": keys.index, "c": values.index, "d": int(heads), "value": scale}
        return _Stage("attended", self._like(ATTEND, queries, **places))

    def _on_squeeze(self, node: Node, values: list[_Value]) -> _Value:
        value = values[0]
        return value if isinstance(value, _Stage) or self._of_texts(value) else None

    def _on_div(self, node: Node, values: list[_Value]) -> _Value:
        left, right = values
        if isinstance(left, _Stage) and left.name == "sum" and isinstance(right, _Aside):
            return self._emit(MEAN, self._width(left.rows), True, a=left.rows.index)
        if isinstance(right, _Stage) and right.name == "length" and right.rows == left:
            return self._like(UNIT_LENGTH, left, value=right.detail)
        return None

    def _on_reducel2(self, node: Node, values: list[_Value]) -> _Value:
        return _Stage("length", self.rows(values[0]), 0.0)

    def _on_clip(self, node: Node, values: list[_Value]) -> _Value:
        stage, least = values
        return _Stage("length", stage.rows, float(least)) if stage.name == "length" else None

    def _on_expand(self, node: Node, values: list[_Value]) -> _Value:
        return values[0] if values[0].name == "length" else None

    def _on_split(self, node: Node, values: list[_Value]) -> _Value:
        rows = self.rows(values[0])
        width = self._width(rows)
        return [_Stage("column", rows, at) for at in range(width)] if len(node.outputs) == width else None


def _both_ways(values: Sequence[_Value], names: Sequence[str]) -> list[tuple[_Value, str, _Value]]:
    return [(values[0], names[0], values[1]), (values[1], names[1], values[0])]


def _is_lookup(node: Node, given: Sequence[_Value]) -> bool:
    return node.operator == "Gather" and isinstance(given[0], np.ndarray) and given[0].size > 1


def _aside(node: Node, given: Sequence[_Value]) -> _Aside | None:
    if node.operator not in _ASIDE:
        return None
    if node.operator != "Concat":
        return _Aside()
    return _Aside(tuple(int(v.item()) if isinstance(v, np.ndarray) and v.size == 1 else None for v in given))


def _folded(node: Node, given: Sequence[Array]) -> Array | None:
    """Return what an operator makes of stored tensors; None for one that exports do not use on them."""
    fold = _FOLDS.get(node.operator)
    return None if fold is None else np.asarray(fold(node, *given))


def _lookup(node: Node, given: Sequence[_Value]) -> _Lookup | None:
    """Return the rows of a table that was changed row by row instead: the same as what becomes of its rows."""
    lookups = [value for value in given if isinstance(value, _Lookup)]
    if len({one.which for one in lookups}) > 1 or any(one.scales is not None for one in lookups):
        return None
    which = lookups[0].which
    if node.operator == "Unsqueeze":  # of scales
        return lookups[0] if lookups[0].table.ndim == 1 else None
    if node.operator == "Mul" and len(lookups) == 2:
        return _Lookup(lookups[0].table, which, lookups[1].table)
    if node.operator in ("Cast", "BitwiseAnd", "BitShift", "Concat", "Sub"):
        tables = [value.table if isinstance(value, _Lookup) else value for value in given]
        found = _folded(node, tables)
        return None if found is None else _Lookup(found, which)
    return None


_FOLDS: dict[str, Callable[..., Array]] = {
    "Cast": lambda node, x: x.astype(DTYPES[node.attributes["to"]]),
    "Add": lambda node, *x: operator.add(*x),
    "Sub": lambda node, *x: operator.sub(*x),
    "Mul": lambda node, *x: operator.mul(*x),
    "BitwiseAnd": lambda node, *x: operator.and_(*x),
    "BitShift": lambda node, *x: operator.rshift(*x),
    "Concat": lambda node, *x: np.concatenate(x, axis=node.attributes["axis"]),
    "Reshape": lambda node, x, shape: x.reshape(shape),
    "Squeeze": lambda node, x, *axes: x.squeeze(*map(tuple, axes)),
    "Unsqueeze": lambda node, x, axes: np.expand_dims(x, tuple(axes)),
    "Transpose": lambda node, x: x.transpose(node.attributes.get("perm")),
}


def _reads(instruction: Sequence[Any]) -> list[int]:
    return [instruction[place] for place in _READ.get(instruction[0], (2,)) if instruction[place] >= 0]


def _share_registers(program: Program) -> None:
    """Let values whose time is over give their registers to others of their kind, so that few are in use at a time.

    One whose other rows are read keeps its register until the next such reading: a thread may be ahead of another.
    """
    last = {register: at for at, it in enumerate(program.code) for register in _reads(it)}
    keys = {it[3] for it in program.code if it[0] == ATTEND}
    crossing = {it[place] for it in program.code for place in _CROSSING.get(it[0], ())}
    kinds = [
        (width, of_texts, register in keys, register in crossing)
        for register, (width, of_texts) in enumerate(zip(program.widths, program.of_texts, strict=True))
    ]
    free: dict[Any, list[int]] = {}
    waiting: list[tuple[Any, int]] = []
    new: dict[int, int] = {}
    shared: list[Any] = []
    for at, it in enumerate(program.code):
        if it[0] in _CROSSING:
            for kind, register in waiting:
                free.setdefault(kind, []).append(register)
            waiting = []
        kind = kinds[it[1]]
        if not free.get(kind):
            free[kind] = [len(shared)]
            shared.append(kind)
        new[it[1]] = free[kind].pop()
        for register in {*_reads(it)}:
            if last[register] == at:
                waiting.append((kinds[register], new[register]))
    for it in program.code:
        for place in (1, *_READ.get(it[0], (2,))):
            if it[place] >= 0:
                it[place] = new[it[place]]
    program.widths, program.of_texts = [kind[0] for kind in shared], [kind[1] for kind in shared]
