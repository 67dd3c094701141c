"""Graphs written by hand, run, and numbers to run them on."""

from __future__ import annotations

from collections import Counter

import numpy as np
from minialbert_runtime.session import open_session
from onnx import TensorProto, helper, numpy_helper


def _model(nodes, inputs, outputs, tensors):
    values = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    stored = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "graph", values, results, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _run(model, **inputs):
    return open_session(model.SerializeToString()).run(None, inputs)


def _floats(random, *shape):
    return random.normal(size=shape).astype(np.float32)


def count_operators(model):
    """How many nodes of each kind a graph has."""
    return Counter(node.op_type for node in model.graph.node)
