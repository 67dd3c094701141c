"""Graph passes, on graphs written by hand: what is stored, how often, and that outputs stay what they were."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from small_graphs import _floats, _model, _run, count_operators

from minialbert.deploy.onnx import graph as onnx_graph


def test_a_matrix_that_two_iterations_transpose_is_stored_once_as_it_is_read(random):
    weight, x = _floats(random, 6, 4), _floats(random, 3, 4)
    back = _floats(random, 4, 6)
    nodes = [
        helper.make_node("Transpose", ["w"], ["w1"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("MatMul", ["h", "back"], ["y"]),
        helper.make_node("Transpose", ["copy"], ["w2"]),  # no perm: the order reversed
        helper.make_node("MatMul", ["y", "w2"], ["z"]),
        helper.make_node("Neg", ["x"], ["unused"]),
    ]
    tensors = {"w": weight, "copy": weight.copy(), "back": np.ascontiguousarray(back.T)}
    model = _model(nodes, [("x", TensorProto.FLOAT, [None, 4])], ["z"], tensors | {"nobody": weight})
    before = _run(model, x=x)[0]
    onnx_graph.store_weights_once(model)
    assert count_operators(model) == {"MatMul": 3}
    assert {name: tuple(t.dims) for name, t in onnx_graph.initializers(model.graph).items()} == {
        "w.transposed": (4, 6), "back": (6, 4),
    }  # fmt: skip
    assert onnx_graph.weight_bytes(model) == 2 * 24 * 4
    np.testing.assert_array_equal(_run(model, x=x)[0], before)


@pytest.mark.parametrize("folded", [False, True])
def test_a_tied_decoder_reads_the_table_of_the_embedding(random, folded):
    """The tracer may keep the Transpose, or have made a second, transposed copy."""
    table, ids = _floats(random, 30, 4), np.array([[3, 7, 29]])
    nodes = [helper.make_node("Gather", ["table", "ids"], ["h"], axis=0)]
    tensors = {"table": table}
    if folded:
        tensors["decoder"] = np.ascontiguousarray(table.T)
    else:
        nodes.append(helper.make_node("Transpose", ["table"], ["decoder"], perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", ["h", "decoder"], ["logits"]))
    model = _model(nodes, [("ids", TensorProto.INT64, [None, None])], ["logits"], tensors)
    onnx_graph.store_weights_once(model)
    assert set(onnx_graph.initializers(model.graph)) == {"table"}
    np.testing.assert_allclose(_run(model, ids=ids)[0][0], table[[3, 7, 29]] @ table.T, rtol=1e-5)


def test_sums_before_layer_norm_and_gelu_are_left_alone_by_the_runtime(random, tmp_path):
    x, bias, scale = _floats(random, 2, 3, 8), _floats(random, 8), np.ones(8, np.float32)
    nodes = [
        helper.make_node("Add", ["x", "x"], ["twice"]),
        helper.make_node("LayerNormalization", ["twice", "scale", "bias"], ["normal"], epsilon=1e-12),
        helper.make_node("Add", ["normal", "bias"], ["biased"]),
        helper.make_node("Gelu", ["biased"], ["y"]),
        helper.make_node("Add", ["y", "bias"], ["z"]),
    ]
    model = _model(nodes, [("x", TensorProto.FLOAT, [None, None, 8])], ["z"], {"scale": scale, "bias": bias})
    before = _run(model, x=x)[0]
    onnx_graph.keep_layer_norms_apart(model)
    assert count_operators(model) == {"Sum": 1, "LayerNormalization": 1, "Add": 2, "Gelu": 1}
    onnx_graph.keep_biases_apart(model)
    assert count_operators(model)["Sum"] == 2
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    np.testing.assert_allclose(session.run(None, {"x": x})[0], before, rtol=1e-6, atol=1e-6)
    kinds = count_operators(onnx.load(tmp_path / "optimised.onnx"))
    assert "SkipLayerNormalization" not in kinds and "BiasGelu" not in kinds and kinds["Sum"] == 2


def test_a_pooler_is_written_so_that_it_can_be_quantised(random):
    large, small, bias = _floats(random, 256, 300), _floats(random, 4, 256), _floats(random, 256)
    nodes = [
        helper.make_node("Gemm", ["x", "large", "bias"], ["h"], transB=1),
        helper.make_node("Gemm", ["h", "small"], ["y"], transB=1),
        helper.make_node("Gemm", ["x", "large"], ["scaled"], transB=1, alpha=2.0),
    ]
    tensors = {"large": large, "small": small, "bias": bias}
    model = _model(nodes, [("x", TensorProto.FLOAT, [None, 300])], ["y", "scaled"], tensors)
    x = _floats(random, 3, 300)
    onnx_graph.store_weights_once(model)
    assert count_operators(model) == {"MatMul": 1, "Add": 1, "Gemm": 2}
    y, scaled = _run(model, x=x)
    np.testing.assert_allclose(y, (x @ large.T + bias) @ small.T, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(scaled, 2 * x @ large.T, rtol=1e-4, atol=1e-3)
