"""An fp32 ONNX graph as an int8 one: weights by channel, activations by call (dynamic) or from calibration (static).

    y = W x,  W ~ s_w W_q (one s_w per output channel, symmetric),  x ~ s_x (x_q - z_x) (uint8)
    y ~ s_x s_w W_q (x_q - z_x)

Only standard operators are written; ONNX Runtime fuses them into its own when it loads the file. A matrix that
several iterations share is quantised and stored once, whatever the iterations' activations are: their scales
belong to the call, not to the matrix. Lookup tables have one scale per row, so a decoder that is tied to one
reads the same int8 table with one scale per output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from minialbert_runtime.session import open_session
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from minialbert.deploy.onnx.graph import drop_unused, initializers, replace_nodes

LEVELS = 127  # of symmetric int8
_SMALLEST = 1024  # values; a smaller tensor is not worth a scale
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


def quantize_int8(model: ModelProto, ranges: Mapping[str, ActivationRange] | None = None) -> None:
    """Quantise the weights of a graph, seen by `graph.store_weights_once`, and the activations they meet, in place.

    `ranges` are those of `activation_ranges`; None quantises activations by their range at each call.
    """
    _Quantizer(model, ranges).run()


def quantized_inputs(model: ModelProto) -> list[str]:
    """Return the names of the activations that `quantize_int8` quantises: what MatMuls with stored weights read."""
    matrices = _Matrices(model)
    return list(dict.fromkeys(node.input[0] for node in model.graph.node if matrices.of(node) is not None))


def activation_ranges(
    model: ModelProto, batches: Iterable[Mapping[str, NDArray[np.int64]]], *, coverage: float = 0.9999
) -> dict[str, ActivationRange]:
    """Return, by name, the range of every activation that static quantisation fixes, measured on an fp32 graph.

    Padding counts as the rest does; give batches of equal length, or one text each. Of each batch the quantiles
    (1 - coverage) / 2 and 1 - (1 - coverage) / 2 are taken, and of these the extremes over batches: single values
    far out would cost all others resolution. Each range contains zero. A MatMul has its own input, so each iteration
    has its own range.
    """
    names = quantized_inputs(model)
    probe = ModelProto()
    probe.CopyFrom(model)
    for name in names:
        probe.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = open_session(probe.SerializeToString())
    low, high = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    tail = (1 - coverage) / 2
    for batch in batches:
        for name, values in zip(names, session.run(names, dict(batch)), strict=True):
            least, most = np.quantile(values, [tail, 1 - tail])
            low[name], high[name] = min(low[name], float(least)), max(high[name], float(most))
    return {name: ActivationRange(low[name], high[name]) for name in names}


class _Matrices:
    """Which MatMuls read a stored matrix, directly or as the transpose of a table."""

    def __init__(self, model: ModelProto) -> None:
        self.tensors = initializers(model.graph)
        self.transposed = {
            node.output[0]: node.input[0]
            for node in model.graph.node
            if node.op_type == "Transpose" and node.input[0] in self.tensors
        }

    def of(self, node: NodeProto) -> str | None:
        """Return the stored matrix that a MatMul reads, if it is worth quantising."""
        if node.op_type != "MatMul":
            return None
        name = self.transposed.get(node.input[1], node.input[1])
        tensor = self.tensors.get(name)
        return name if tensor is not None and _is_large_matrix(tensor) else None


class _Quantizer:
    def __init__(self, model: ModelProto, ranges: Mapping[str, ActivationRange] | None) -> None:
        self.model, self.graph, self.ranges = model, model.graph, ranges
        self.matrices = _Matrices(model)
        self.tables = {
            node.input[0]
            for node in self.graph.node
            if node.op_type == "Gather"
            and node.input[0] in self.matrices.tensors
            and _is_large_matrix(self.matrices.tensors[node.input[0]])
        }
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, tuple[str, str]] = {}
        self.activations: dict[str, tuple[str, str, str]] = {}

    def run(self) -> None:
        for node in self.graph.node:
            matrix = self.matrices.of(node)
            if matrix is not None:
                self._matmul(node, matrix)
            elif node.op_type == "Gather" and node.input[0] in self.tables:
                self._gather(node)
            else:
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
        if name not in self.weights:
            values = numpy_helper.to_array(self.matrices.tensors[name]).astype(np.float32)
            axis = 1 if name in self.tables else 0
            scales = (np.maximum(np.abs(values).max(axis=axis, keepdims=True), 1e-12) / LEVELS).astype(
                np.float32
            )
            integers = np.clip(np.rint(values / scales), -LEVELS, LEVELS).astype(np.int8)
            self.weights[name] = (
                self._store(f"{name}.int8", integers),
                self._store(f"{name}.scales", scales.reshape(-1)),
            )
        return self.weights[name]

    def _activation(self, name: str) -> tuple[str, str, str]:
        """Return names of an activation as uint8, of its scale and of its zero point."""
        if name not in self.activations:
            parts = (f"{name}.uint8", f"{name}.scale", f"{name}.zero_point")
            if self.ranges is None:
                self._add("DynamicQuantizeLinear", [name], list(parts))
            else:
                fixed = self.ranges[name]
                self._store(parts[1], np.array(fixed.scale, np.float32))
                self._store(parts[2], np.array(fixed.zero_point, np.uint8))
                self._add("QuantizeLinear", [name, parts[1], parts[2]], [parts[0]])
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
        integers, scales = self._weight(node.input[0])
        ids, result = node.input[1], node.output[0]
        self._add("Gather", [integers, ids], [f"{result}.int8"], axis=0)
        self._add("Cast", [f"{result}.int8"], [f"{result}.rows"], to=TensorProto.FLOAT)
        self._add("Gather", [scales, ids], [f"{result}.row_scales"], axis=0)
        self._store(f"{result}.last_axis", np.array([-1], np.int64))
        self._add("Unsqueeze", [f"{result}.row_scales", f"{result}.last_axis"], [f"{result}.row_scale"])
        self._add("Mul", [f"{result}.rows", f"{result}.row_scale"], [result])


def _is_large_matrix(tensor: TensorProto) -> bool:
    return (
        len(tensor.dims) == 2
        and tensor.data_type == TensorProto.FLOAT
        and int(np.prod(tensor.dims)) >= _SMALLEST
    )
