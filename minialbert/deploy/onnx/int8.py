"""An fp32 ONNX graph as an int8 one: weights by channel, activations by token, by call, or from calibration texts.

    y = W x,  W ~ s_w W_q (one s_w per output channel, symmetric),  x ~ s_x (x_q - z_x) (uint8)
    y ~ s_x s_w W_q (x_q - z_x)

By token, s_x is the largest value of the token's own row over 127: what other rows hold changes no bit of it. By call
(dynamic), all rows of a run share one range. From calibration texts, every activation of every iteration has a fixed
range; such a graph is written in pairs of QuantizeLinear and DequantizeLinear, which OpenVINO turns into integer
products. A matrix that several iterations share is quantised and stored once,
whatever the iterations' activations are: their scales belong to the call, not to the matrix. Lookup tables have one
scale per row, so a decoder that is tied to one reads the same int8 table with one scale per output.

With four bits a matrix is stored as W_q ~ m q: q of 4 bits, and m a whole number per block of 16 inputs. ONNX Runtime
multiplies them out when it loads the file, so the products are those of int8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from minialbert_runtime.session import open_session
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor, nn

from minialbert.deploy.onnx.graph import drop_unused, initializers, keep_biases_apart, replace_nodes
from minialbert.runs import noise

LEVELS = noise.LEVELS["int8"]
_NARROW = 64  # columns or rows; the product with a narrower matrix (an adapter's) is faster in fp32
_FOUR_BITS, _BLOCK = noise.LEVELS["int4"], noise.BLOCK
_LEAST_GELU = 0.17  # GELU gives nothing below its negative
_CONTRIB = "com.microsoft"
_SMALLEST = 1024  # values; a smaller tensor is not worth a scale
_LARGE_TABLE = 1 << 16  # values; a smaller lookup table is not worth the rounding of 4 bits
_WIDE_BIAS = 1 << 14  # values; only one over a vocabulary has so many
_ZERO, _CLIPS = 8, 11  # which of 0 … 15 stands for zero; how many scales are tried for a row
Array = NDArray[np.float32]


@dataclass(frozen=True)
class ActivationRange:
    """What one MatMul of one iteration was seen to receive."""

    low: float  # at most 0
    high: float  # at least 0

    @property
    def scale(self) -> float:
        """Step of the uint8 grid."""
        return max((self.high - self.low) / 255, 1e-12)

    @property
    def zero_point(self) -> int:
        """Which of 0 … 255 stands for zero."""
        return int(np.clip(round(-self.low / self.scale), 0, 255))


def quantize_int8(
    model: ModelProto,
    ranges: Mapping[str, ActivationRange] | None = None,
    *,
    by_call: bool = False,
    four_bits: bool = False,
) -> None:
    """Quantise the weights of a graph, seen by `graph.store_weights_once`, and the activations they meet, in place.

    Activations are quantised by token. `ranges`, those of `activation_ranges`, fix their ranges instead; `by_call`
    takes the range of a whole run. With `four_bits` matrices and large lookup tables are stored in 4 bits, small ones
    in 8. A decoder tied to a table reads it as it is stored, so an encoder is the same under any head; its bias
    over the vocabulary is stored as int8 with one scale.
    """
    if ranges is not None:
        _FixedQuantizer(model, ranges).run()
        return
    (_Quantizer if by_call else _TokenQuantizer)(model, four_bits).run()
    if not by_call:
        keep_biases_apart(model)


def quantized_inputs(model: ModelProto) -> list[str]:
    """Return the names of the activations that `quantize_int8` quantises: what MatMuls with stored weights read."""
    matrices = _matrices(model.graph)
    return list(dict.fromkeys(node.input[0] for node in model.graph.node if node.output[0] in matrices))


def activation_ranges(
    model: ModelProto, batches: Iterable[Mapping[str, NDArray[np.int64]]]
) -> dict[str, ActivationRange]:
    """Return, by name, the range of every activation that static quantisation fixes, measured on an fp32 graph.

    It holds all values that were seen, and zero. The few far out are the same features of the same tokens in every
    text, which later iterations build on: to leave out one value in 10,000 made the error of a trained tagger's logits
    four times as large. Padding counts as the rest does; give batches of equal length, or one text each.
    A MatMul has its own input, so each iteration has its own range.
    """
    names = quantized_inputs(model)
    session = open_probe(model, names)
    low, high = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for batch in batches:
        for name, values in zip(names, session.run(names, dict(batch)), strict=True):
            low[name], high[name] = min(low[name], float(values.min())), max(high[name], float(values.max()))
    return {name: ActivationRange(low[name], high[name]) for name in names}


def open_probe(model: ModelProto, names: Iterable[str]) -> Any:
    """Return a session of a graph that gives these tensors within it too."""
    probe = ModelProto()
    probe.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    probe.graph.output.extend(ValueInfoProto(name=name) for name in names if name not in known)
    return open_session(probe.SerializeToString())


@torch.inference_mode()
def errors_by_iteration(
    model: nn.Module, exact: ModelProto, rounded: ModelProto, batches: list[dict[str, Tensor]], **depth: int
) -> list[float]:
    """Return ||rounded - exact|| / ||exact|| of the hidden states after each iteration, over all tokens but padding.

    In the fp32 graph, which gave the quantised one, they are the tensors with the values of the model's; nothing is
    returned if one is not found.
    """
    given = [{name: values.numpy() for name, values in batch.items()} for batch in batches]
    every = [name for node in exact.graph.node for name in node.output if name]
    found = list(zip(every, open_probe(exact, every).run(every, given[0]), strict=True))
    names: list[str] = []
    states = model(**batches[0], output_hidden_states=True, **depth).hidden_states[1:]
    for state in states:
        first = state[:, :1].numpy()  # a classifier's last iteration computes no other token
        near = partial(np.allclose, first, rtol=0, atol=1e-3 * np.abs(first).max())
        names += [name for name, it in found if it.shape[2:] == first.shape[2:] and near(it[:, :1])][:1]
    if len(names) < len(states):
        return []
    sessions = [open_probe(graph, names) for graph in (exact, rounded)]
    squares = np.zeros((2, len(names)))  # of errors and of states
    for inputs in given:
        for at, (wanted, got) in enumerate(zip(*(one.run(names, inputs) for one in sessions), strict=True)):
            kept = inputs["attention_mask"][:, : wanted.shape[1]].astype(bool)
            squares[:, at] += ((got - wanted)[kept] ** 2).sum(), (wanted[kept] ** 2).sum()
    return [round(float(error), 6) for error in np.sqrt(squares[0] / squares[1])]


def _matrices(graph: GraphProto) -> dict[str, str]:
    """Return the stored matrices that MatMuls read, directly or as a table's transpose, by the MatMuls' results."""
    large = {tensor.name for tensor in graph.initializer if _is_large_matrix(tensor)}
    turned = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose"}
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    read = {result: turned.get(name, name) for result, name in products.items()}
    return {result: name for result, name in read.items() if name in large}


class _Quantizer:
    def __init__(self, model: ModelProto, four_bits: bool = False) -> None:
        self.model, self.graph, self.four_bits = model, model.graph, four_bits
        self.tensors, self.matrices = initializers(model.graph), _matrices(model.graph)
        large = {name for name, tensor in self.tensors.items() if _is_large_matrix(tensor)}
        self.tables = {node.input[0] for node in self.graph.node if node.op_type == "Gather"} & large
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, tuple[str, str]] = {}
        self.activations: dict[str, tuple[str, str, str]] = {}
        self.constants: dict[str, str] = {}

    def run(self) -> None:
        for node in self.graph.node:
            if (matrix := self.matrices.get(node.output[0])) is not None:
                self._matmul(node, matrix)
            elif node.op_type == "Gather" and node.input[0] in self.tables:
                self._gather(node)
            else:
                if node.op_type == "Add":
                    self._shrink_wide_bias(node)
                self.nodes.append(node)
        replace_nodes(self.graph, self.nodes)
        drop_unused(self.model)

    def _add(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=outputs[0], **attributes))

    def _store(self, name: str, values: NDArray) -> str:
        self.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _weight(self, name: str) -> tuple[str, str]:
        """Store a matrix as int8 with one scale per output channel; of a table that is per row."""
        if name not in self.weights and self._is_table_of_four_bits(name):
            packed, scales = self._table(name)
            self._unpack(packed, name, f"{name}.levels", axis=1)
            self._add("Cast", [f"{name}.levels"], [f"{name}.int8"], to=TensorProto.INT8)
            self._add("Squeeze", [scales], [f"{name}.row_scales"])
            self.weights[name] = f"{name}.int8", f"{name}.row_scales"
        elif name not in self.weights:
            values = numpy_helper.to_array(self.tensors[name]).astype(np.float32)
            axis = 1 if name in self.tables else 0
            largest = np.maximum(np.abs(values).max(axis=axis, keepdims=True), 1e-12)
            scales = (largest / LEVELS).astype(np.float32)
            levels, stored = values / scales, f"{name}.int8"
            if self.four_bits and axis == 0 and values.ndim == 2 and len(values) % _BLOCK == 0:
                self._four_bits(stored, levels)
            else:
                self._store(stored, np.clip(np.rint(levels), -LEVELS, LEVELS).astype(np.int8))
            self.weights[name] = stored, self._store(f"{name}.scales", scales.reshape(-1))
        return self.weights[name]

    def _shrink_wide_bias(self, node: NodeProto) -> None:
        """Store a bias over the vocabulary, which is added to what rounding moves much further, as int8."""
        for at, name in enumerate(node.input):
            tensor = self.tensors.get(name)
            if tensor is not None and len(tensor.dims) == 1 and tensor.dims[0] >= _WIDE_BIAS:
                integers, scale = self._weight(name)
                self._add("Cast", [integers], [f"{name}.levels"], to=TensorProto.FLOAT)
                self._add("Mul", [f"{name}.levels", scale], [f"{name}.rounded"])
                node.input[at] = f"{name}.rounded"

    def _four_bits(self, name: str, levels: Array) -> None:
        """Store levels, at most 127, as multipliers of 4-bit numbers, and the nodes that give their product as int8."""
        rows, columns = levels.shape
        integers, multipliers = four_bits(levels)
        self._pack(f"{name}.4", integers, axis=0)
        self._store(f"{name}.multipliers", multipliers)
        for part, shape in (("blocks", [-1, _BLOCK, columns]), ("shape", [rows, columns])):
            self._store(f"{name}.{part}", np.array(shape, np.int64))
        self._unpack(f"{name}.4", name, f"{name}.wide", axis=0)
        self._add("Reshape", [f"{name}.wide", f"{name}.blocks"], [f"{name}.blocked"])
        self._add("Cast", [f"{name}.multipliers"], [f"{name}.factors"], to=TensorProto.FLOAT)
        self._add("Mul", [f"{name}.blocked", f"{name}.factors"], [f"{name}.product"])
        self._add("Reshape", [f"{name}.product", f"{name}.shape"], [f"{name}.levels"])
        self._add("Cast", [f"{name}.levels"], [name], to=TensorProto.INT8)

    def _pack(self, name: str, numbers: NDArray[np.int8], axis: int) -> None:
        """Store numbers of -8 … 7, two in a byte: the low bits have the first half of an axis, high ones the second.

        Bytes, because ONNX Runtime for the web does not know the type INT4.
        """
        low, high = np.split((numbers + _ZERO).astype(np.uint8), 2, axis=axis)
        self._store(name, low | high << 4)

    def _unpack(self, packed: str, prefix: str, result: str, axis: int) -> None:
        """Add the nodes that make numbers of such bytes."""
        for name, value in (("mask", np.uint8(15)), ("shift", np.uint8(4)), ("zero", np.float32(_ZERO))):
            if name not in self.constants:
                self.constants[name] = self._store(f"four_bits.{name}", np.array(value))
        mask, shift, zero = (self.constants[name] for name in ("mask", "shift", "zero"))
        self._add("BitwiseAnd", [packed, mask], [f"{prefix}.low"])
        self._add("BitShift", [packed, shift], [f"{prefix}.high"], direction="RIGHT")
        self._add("Concat", [f"{prefix}.low", f"{prefix}.high"], [f"{prefix}.uint4"], axis=axis)
        self._add("Cast", [f"{prefix}.uint4"], [f"{prefix}.above_zero"], to=TensorProto.FLOAT)
        self._add("Sub", [f"{prefix}.above_zero", zero], [result])

    def _activation(self, name: str) -> tuple[str, str, str]:
        """Return names of an activation as uint8, of its scale and of its zero point."""
        if name not in self.activations:
            parts = (f"{name}.uint8", f"{name}.scale", f"{name}.zero_point")
            self._add("DynamicQuantizeLinear", [name], list(parts))
            self.activations[name] = parts
        return self.activations[name]

    def _matmul(self, node: NodeProto, matrix: str) -> None:
        result = node.output[0]
        integers, scales = self._weight(matrix)
        values, scale, zero_point = self._activation(node.input[0])
        if node.input[1] != matrix:  # the table behind a Transpose
            self._add("Transpose", [integers], [f"{result}.table_int8"], perm=[1, 0])
            integers = f"{result}.table_int8"
        self._add("MatMulInteger", [values, integers, zero_point], [f"{result}.int32"])
        self._add("Cast", [f"{result}.int32"], [f"{result}.product"], to=TensorProto.FLOAT)
        self._add("Mul", [scale, scales], [f"{result}.product_scale"])
        self._add("Mul", [f"{result}.product", f"{result}.product_scale"], [result])

    def _gather(self, node: NodeProto) -> None:
        (name, ids), result = node.input, node.output[0]
        if self._is_table_of_four_bits(name):
            packed, scales = self._table(name)
            self._add("Gather", [packed, ids], [f"{result}.bytes"], axis=0)
            self._unpack(f"{result}.bytes", result, f"{result}.rows", axis=-1)
            self._add("Gather", [scales, ids], [f"{result}.row_scale"], axis=0)
            self._add("Mul", [f"{result}.rows", f"{result}.row_scale"], [result])
            return
        integers, scales = self._weight(name)
        self._add("Gather", [integers, ids], [f"{result}.int8"], axis=0)
        self._add("Cast", [f"{result}.int8"], [f"{result}.rows"], to=TensorProto.FLOAT)
        self._add("Gather", [scales, ids], [f"{result}.row_scales"], axis=0)
        self._store(f"{result}.last_axis", np.array([-1], np.int64))
        self._add("Unsqueeze", [f"{result}.row_scales", f"{result}.last_axis"], [f"{result}.row_scale"])
        self._add("Mul", [f"{result}.rows", f"{result}.row_scale"], [result])

    def _is_table_of_four_bits(self, name: str) -> bool:
        dims = self.tensors[name].dims
        return self.four_bits and name in self.tables and np.prod(dims) >= _LARGE_TABLE and not dims[1] % 2

    def _table(self, name: str) -> tuple[str, str]:
        """Store a table in 4 bits, with one scale per row (V, 1)."""
        packed, scales = f"{name}.4", f"{name}.scales"
        if packed not in self.constants:
            levels, values = four_bit_rows(numpy_helper.to_array(self.tensors[name]))
            self._pack(packed, levels, axis=1)
            self.constants[packed] = self._store(scales, values)
        return packed, scales


class _TokenQuantizer(_Quantizer):
    """Every row of an activation with a scale of its own."""

    def run(self) -> None:
        if not quantized_inputs(self.model):
            return
        self.after_gelu = {node.output[0] for node in self.graph.node if node.op_type == "Gelu"}
        for name, value in (
            ("last_axis", np.array([-1], np.int64)),
            ("least", np.array(np.finfo(np.float32).tiny)),  # of a row of zeros
            ("least_gelu", np.array(_LEAST_GELU, np.float32)),
            ("step", np.array(1 / LEVELS, np.float32)),
            ("middle", np.array(128, np.uint8)),
        ):
            self._store(f"rows.{name}", value)
        if all(entry.domain != _CONTRIB for entry in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
        super().run()

    def _activation(self, name: str) -> tuple[str, str, str]:
        """Return names of an activation as uint8, of the largest value of each row, and of the zero point."""
        if name not in self.activations:
            largest = f"{name}.largest"
            if name in self.after_gelu:
                self._add("ReduceMax", [name, "rows.last_axis"], [f"{name}.most"])
                self._add("Max", [f"{name}.most", "rows.least_gelu"], [largest])
            else:
                self._add("Abs", [name], [f"{name}.sizes"])
                self._add("ReduceMax", [f"{name}.sizes", "rows.last_axis"], [f"{name}.most"])
                self._add("Add", [f"{name}.most", "rows.least"], [largest])
            self._add("Reciprocal", [largest], [f"{name}.factor"])
            self._add("Mul", [name, f"{name}.factor"], [f"{name}.shares"])
            self._add("QuantizeLinear", [f"{name}.shares", "rows.step", "rows.middle"], [f"{name}.uint8"])
            self.activations[name] = f"{name}.uint8", largest, "rows.middle"
        return self.activations[name]

    def _matmul(self, node: NodeProto, matrix: str) -> None:
        result = node.output[0]
        integers, scales = self._weight(matrix)
        is_table = node.input[1] != matrix
        if min(self.tensors[matrix].dims) < _NARROW and not is_table:
            self._add("Cast", [integers], [f"{result}.levels"], to=TensorProto.FLOAT)
            self._add("Mul", [f"{result}.levels", scales], [f"{result}.weight"])
            self._add("MatMul", [node.input[0], f"{result}.weight"], [result])
            return
        values, largest, middle = self._activation(node.input[0])
        if is_table:
            self._add("Transpose", [integers], [f"{result}.table_int8"], perm=[1, 0])
            integers = f"{result}.table_int8"
        product = [values, integers, "rows.step", scales, middle]
        self._add("MatMulIntegerToFloat", product, [f"{result}.product"], domain=_CONTRIB)
        self._add("Mul", [f"{result}.product", largest], [result])


class _FixedQuantizer(_Quantizer):
    """Every activation with a range of its own, in the operators that engines recognise and fuse."""

    def __init__(self, model: ModelProto, ranges: Mapping[str, ActivationRange]) -> None:
        super().__init__(model)
        self.ranges = ranges
        self.numbers: set[str] = set()  # of stored matrices, each once

    def _activation(self, name: str) -> tuple[str, str, str]:
        """Return names of an activation as the numbers that its integers stand for, of its scale and zero point."""
        if name not in self.activations:
            parts = (f"{name}.rounded", f"{name}.scale", f"{name}.zero_point")
            fixed = self.ranges[name]
            self._store(parts[1], np.array(fixed.scale, np.float32))
            self._store(parts[2], np.array(fixed.zero_point, np.uint8))
            self._add("QuantizeLinear", [name, *parts[1:]], [f"{name}.uint8"])
            self._add("DequantizeLinear", [f"{name}.uint8", *parts[1:]], [parts[0]])
            self.activations[name] = parts
        return self.activations[name]

    def _matmul(self, node: NodeProto, matrix: str) -> None:
        is_table, values = node.input[1] != matrix, f"{matrix}.rounded"
        if values not in self.numbers:
            self._add("DequantizeLinear", list(self._weight(matrix)), [values], axis=0 if is_table else 1)
            self.numbers.add(values)
        if is_table:
            self._add("Transpose", [values], [f"{node.output[0]}.table"], perm=[1, 0])
            values = f"{node.output[0]}.table"
        self._add("MatMul", [self._activation(node.input[0])[0], values], [*node.output])


def four_bit_share(model: ModelProto) -> float:
    """Return the share of a quantised graph's weights that are stored in 4 bits rather than in 8."""
    values = {4: 0, 8: 0}
    for tensor in model.graph.initializer:
        if tensor.name.endswith((".4", ".int8")):
            bits = 4 if tensor.name.endswith(".4") else 8
            values[bits] += int(np.prod(tensor.dims)) * 8 // bits
    return values[4] / max(1, sum(values.values()))


def four_bits(levels: Array) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Return numbers of -7 … 7 (K, N), and multipliers (K / 16, 1, N), whose products are closest to levels (K, N)."""
    blocks = levels.reshape(-1, _BLOCK, levels.shape[1])
    closest = np.full((len(blocks), 1, levels.shape[1]), np.inf)
    integers, multipliers = np.zeros(blocks.shape, np.int8), np.zeros(closest.shape, np.int8)
    for multiplier in range(1, LEVELS // _FOUR_BITS + 1):
        tried = np.clip(np.rint(blocks / multiplier), -_FOUR_BITS, _FOUR_BITS)
        error = ((multiplier * tried - blocks) ** 2).sum(axis=1, keepdims=True)
        better = error < closest
        closest = np.where(better, error, closest)
        multipliers = np.where(better, multiplier, multipliers).astype(np.int8)
        integers = np.where(better, tried, integers).astype(np.int8)
    return integers.reshape(levels.shape), multipliers


def four_bit_rows(table: Array) -> tuple[NDArray[np.int8], Array]:
    """Return numbers of -8 … 7 (V, r), and one scale per row (V, 1), whose products are close to a table (V, r).

    The largest value of a row may be cut, by up to a half, where that brings the row closer in squares.
    """
    largest = np.maximum(np.abs(table).max(axis=1, keepdims=True), 1e-12)
    levels, scales = np.zeros(table.shape, np.int8), np.zeros_like(largest)
    closest = np.full_like(largest, np.inf)
    for share in np.linspace(0.5, 1, _CLIPS):
        scale = largest * np.float32(share) / _FOUR_BITS
        tried = np.clip(np.rint(table / scale), -_ZERO, _ZERO - 1)
        error = ((tried * scale - table) ** 2).sum(axis=1, keepdims=True)
        better = error < closest
        closest, scales = np.where(better, error, closest), np.where(better, scale, scales)
        levels = np.where(better, tried, levels).astype(np.int8)
    return levels, scales.astype(np.float32)


def _is_large_matrix(tensor: TensorProto) -> bool:
    is_matrix = len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT
    return is_matrix and int(np.prod(tensor.dims)) >= _SMALLEST
