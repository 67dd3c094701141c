"""Passes over an ONNX graph: each weight stored once, as its MatMul reads it, and costly fusions undone.

A graph that was traced from a recursive model names its shared matrices once per iteration, and transposes them
on the way into each MatMul. Here they become one tensor each, which is also what `onnx_int8` quantises. Equal tensors
and unused nodes are found by onnx_ir's passes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx_ir.passes import InPlacePass
from onnx_ir.passes.common import DeduplicateHashedInitializersPass, RemoveUnusedNodesPass

Array = NDArray[np.generic]
_LARGE = 65536  # values of a matrix whose Gemm is worth splitting


def initializers(graph: GraphProto) -> dict[str, TensorProto]:
    """Return the graph's stored tensors by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def store_weights_once(model: ModelProto) -> None:
    """Leave one copy of every stored matrix, laid out as the MatMul that reads it wants it, in place.

    A matrix that an embedding looks up and a MatMul reads transposed (a tied decoder) stays as the embedding
    has it; the Transpose before that MatMul stays too, and a runtime folds it away when it loads the file.
    """
    # The tracer folds Transposes of weights that it sees once, so a tied decoder may come as a copy.
    _apply(model, DeduplicateHashedInitializersPass(), RemoveUnusedNodesPass())
    graph = model.graph
    _split_large_gemms(graph)
    tensors = initializers(graph)
    looked_up = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    renamed: dict[str, str] = {}
    kept: list[NodeProto] = []
    for node in graph.node:
        if not _is_matrix_transpose(node, tensors) or node.input[0] in looked_up:
            kept.append(node)
            continue
        source = node.input[0]
        target = f"{source}.transposed"
        if target not in tensors:
            values = np.ascontiguousarray(numpy_helper.to_array(tensors[source]).T)
            tensors[target] = numpy_helper.from_array(values, target)
            graph.initializer.append(tensors[target])
        renamed[node.output[0]] = target
    replace_nodes(graph, kept)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    _untie_transposed(graph)
    drop_unused(model)


def keep_layer_norms_apart(model: ModelProto) -> None:
    """Write the sum before each LayerNormalization as `Sum`, in place; the same values.

    ONNX Runtime fuses Add and LayerNormalization into SkipLayerNormalization, whose CPU kernel takes more
    than twice as long as the two apart (results/onnx-kernels). It leaves `Sum` alone.
    """
    normalised = {node.input[0] for node in model.graph.node if node.op_type == "LayerNormalization"}
    tensors = initializers(model.graph)
    for node in model.graph.node:
        if node.op_type == "Add" and node.output[0] in normalised and not tensors.keys() & set(node.input):
            node.op_type = "Sum"


def keep_biases_apart(model: ModelProto) -> None:
    """Write the bias before each Gelu as `Sum`, in place; the same values.

    ONNX Runtime's fused BiasGelu takes longer on a CPU than Sum and Gelu (results/onnx-kernels).
    An int8 graph has no such Add left when it is fused: MatMul takes the bias.
    """
    activated = {node.input[0] for node in model.graph.node if node.op_type == "Gelu"}
    for node in model.graph.node:
        if node.op_type == "Add" and node.output[0] in activated:
            node.op_type = "Sum"


def weight_bytes(model: ModelProto) -> int:
    """Return how many bytes the stored tensors take."""
    stored = model.graph.initializer
    return sum(len(tensor.raw_data) or numpy_helper.to_array(tensor).nbytes for tensor in stored)


def drop_unused(model: ModelProto) -> None:
    """Remove nodes and stored tensors that lead to no output, in place."""
    _apply(model, RemoveUnusedNodesPass())


def slim(model: ModelProto) -> ModelProto:
    """Return a copy without what engines do not need: shapes of values within, names of nodes, long names of values.

    Stored tensors keep their names, by which weights are read back; integers the end by which the runtime knows them.
    """
    smaller = ModelProto()
    smaller.CopyFrom(model)
    graph, names = smaller.graph, dict[str, str]()
    del graph.value_info[:]
    kept = {output.name for output in graph.output}
    for node in graph.node:
        node.ClearField("name")
        for name in (one for one in node.output if one and one not in kept):
            names[name] = f"{len(names)}.int8" if name.endswith("int8") else str(len(names))
        for places in (node.input, node.output):
            places[:] = [names.get(one, one) for one in places]
    return smaller


def _apply(model: ModelProto, *passes: InPlacePass) -> None:
    graph = onnx_ir.from_proto(model)
    modified = [one(graph).modified for one in passes]  # all of them run
    if any(modified):  # no copy of a model that stays as it is
        model.CopyFrom(onnx_ir.to_proto(graph))


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Set the graph's nodes, in place."""
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def _is_matrix_transpose(node: NodeProto, tensors: dict[str, TensorProto]) -> bool:
    if node.op_type != "Transpose" or node.input[0] not in tensors:
        return False
    order = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [1, 0])
    return len(tensors[node.input[0]].dims) == 2 and order == [1, 0]


def _split_large_gemms(graph: GraphProto) -> None:
    """Write Gemm with a large stored matrix (a pooler) as Transpose, MatMul and Add, which are quantised."""
    tensors = initializers(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = settings.get("alpha", 1) == settings.get("beta", 1) == 1 and not settings.get("transA")
        stored = tensors.get(node.input[1]) if node.op_type == "Gemm" and plain else None
        if stored is None or np.prod(stored.dims) < _LARGE:
            nodes.append(node)
            continue
        values, matrix, result = node.input[0], node.input[1], node.output[0]
        if settings.get("transB"):
            matrix = f"{result}.matrix"
            nodes.append(helper.make_node("Transpose", [node.input[1]], [matrix], perm=[1, 0]))
        product = f"{result}.product" if len(node.input) > 2 else result
        nodes.append(helper.make_node("MatMul", [values, matrix], [product], name=f"{node.name}.product"))
        if len(node.input) > 2:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [result], name=node.name))
    replace_nodes(graph, nodes)


def _untie_transposed(graph: GraphProto) -> None:
    """Read a matrix that is the transpose of a looked-up table from that table."""
    tensors = initializers(graph)
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather" and node.input[0] in tensors}
    flat = (name for name in tables if len(tensors[name].dims) == 2)
    by_identity = {_identity(numpy_helper.to_array(tensors[name]).T): name for name in flat}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            table = by_identity.get(_identity(numpy_helper.to_array(tensors[node.input[1]])))
            if table is not None:
                name = f"{node.output[0]}.table"
                nodes.append(helper.make_node("Transpose", [table], [name], perm=[1, 0]))
                node.input[1] = name
        nodes.append(node)
    replace_nodes(graph, nodes)


def _identity(values: Array) -> tuple[str, tuple[int, ...], str]:
    digest = hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).hexdigest()
    return str(values.dtype), values.shape, digest
