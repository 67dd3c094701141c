"""Int8 graphs against arithmetic done in numpy, value by value."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from minialbert_runtime import session
from minialbert_runtime.graph import with_uint8_weights
from onnx import TensorProto, helper
from small_graphs import _floats, _model, _run, count_operators

from minialbert.deploy.onnx.graph import initializers, weight_bytes
from minialbert.deploy.onnx.int8 import (
    ActivationRange,
    activation_ranges,
    errors_by_iteration,
    four_bit_rows,
    four_bits,
    quantize_int8,
    quantized_inputs,
)

X = [("x", TensorProto.FLOAT, [None, 40])]


def _two_iterations(random):
    """The same matrix twice, with activations of another size in between."""
    weight = _floats(random, 40, 40) * np.linspace(0.01, 1, 40, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    return _model(nodes, X, ["y"], {"w": weight}), weight


def _integers(weight):
    scales = np.abs(weight).max(axis=0) / 127
    return np.rint(weight / scales).astype(np.int64), scales


def _by_hand(x, weight, low, high):
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    values = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64) - int(zero)
    integers, scales = _integers(weight)
    return (values @ integers).astype(np.float32) * (scale * scales)


def test_dynamic_int8_is_the_arithmetic_of_its_definition(random):
    model, weight = _two_iterations(random)
    x = _floats(random, 5, 40)
    quantize_int8(model, by_call=True)
    found = _run(model, x=x)[0]
    hidden = np.tanh(_by_hand(x, weight, min(x.min(), 0), max(x.max(), 0)))
    wanted = _by_hand(hidden, weight, hidden.min(), hidden.max())
    # One level of one activation may round the other way.
    np.testing.assert_allclose(found, wanted, atol=2 * np.abs(weight).max() / 127)
    assert np.abs(found - np.tanh(x @ weight) @ weight).max() < 0.2
    assert set(initializers(model.graph)) == {"w.int8", "w.scales"}
    assert weight_bytes(model) == 40 * 40 + 4 * 40
    assert count_operators(model)["DynamicQuantizeLinear"] == 2


def test_static_int8_has_one_matrix_and_a_scale_for_each_iteration(random):
    model, weight = _two_iterations(random)
    x = 8 * _floats(random, 6, 40)
    assert quantized_inputs(model) == ["x", "t"]
    ranges = activation_ranges(model, [{"x": x[:3]}, {"x": x[3:]}])
    hidden = np.tanh(x @ weight)
    for name, values in (("x", x), ("t", hidden)):
        assert ranges[name].low == pytest.approx(values.min(), rel=1e-4)
        assert ranges[name].high == pytest.approx(values.max(), rel=1e-4)
    assert ranges["x"].scale > 8 * ranges["t"].scale
    quantize_int8(model, ranges)
    found = _run(model, x=x)[0]
    hidden = np.tanh(_by_hand(x, weight, ranges["x"].low, ranges["x"].high))
    wanted = _by_hand(hidden, weight, ranges["t"].low, ranges["t"].high)
    np.testing.assert_allclose(found, wanted, atol=2 * np.abs(weight).max() / 127)
    assert "DynamicQuantizeLinear" not in count_operators(model)
    assert sum(name.endswith(".int8") for name in initializers(model.graph)) == 1


def test_errors_of_rounding_are_shares_of_the_hidden_states_without_padding(random):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Tanh", ["product"], ["first"]),
        helper.make_node("Slice", ["first", "zero", "one", "one"], ["token"]),
        helper.make_node("MatMul", ["token", "w"], ["last"]),  # of the first token alone
    ]
    inputs = [("x", TensorProto.FLOAT, [None] * 3), ("attention_mask", TensorProto.INT64, [None, None])]
    weight = _floats(random, 40, 40)
    tensors = {"w": weight, "zero": np.array([0]), "one": np.array([1])}
    exact, rounded = (_model(nodes, inputs, ["last"], tensors) for _ in range(2))
    quantize_int8(rounded, by_call=True)

    class Student:
        def __call__(self, x, attention_mask, output_hidden_states):
            first = torch.tanh(x @ torch.from_numpy(weight))
            self.hidden_states = (x, first, first @ torch.from_numpy(weight))
            return self

    batches = [
        {"x": torch.from_numpy(_floats(random, len(mask), len(mask[0]), 40)), "attention_mask": torch.tensor(mask)}
        for mask in ([[1, 1, 1]], [[1, 1], [1, 0]])
    ]  # fmt: skip
    found = errors_by_iteration(Student(), exact, rounded, batches)
    rows = [[], []]
    for batch in batches:
        x, kept = batch["x"].numpy(), batch["attention_mask"].bool().numpy()
        hidden = _by_hand(x.reshape(-1, 40), weight, min(x.min(), 0), max(x.max(), 0)).reshape(x.shape)
        rounded_first, first = np.tanh(hidden), np.tanh(x @ weight)
        rows[0].append((rounded_first[kept] - first[kept], first[kept]))
        token = rounded_first[:, 0]
        last = _by_hand(token, weight, min(token.min(), 0), max(token.max(), 0))
        rows[1].append((last - (first @ weight)[:, 0], (first @ weight)[:, 0]))
    norms = [[np.linalg.norm(np.concatenate(part)) for part in zip(*one, strict=True)] for one in rows]
    assert found == pytest.approx([error / size for error, size in norms], rel=0.02)
    assert errors_by_iteration(Student(), rounded, rounded, batches) == []  # it has no such states


def test_a_range_holds_the_one_value_far_out_and_always_zero(random):
    """Trained models have such features; a range that cut them would change what is built on them."""
    model, _ = _two_iterations(random)
    x = np.full((1000, 40), 2.0, np.float32)
    x[0, 0] = 60
    ranges = activation_ranges(model, [{"x": x[:500]}, {"x": x[500:]}])
    assert ranges["x"] == ActivationRange(0.0, 60.0)
    assert ranges["x"].zero_point == 0
    assert ActivationRange(-1.0, 1.0).zero_point in (127, 128)
    assert ActivationRange(-3.0, 0.0).zero_point == 255
    assert ActivationRange(0.0, 0.0).scale > 0


def test_embedding_and_tied_decoder_share_one_int8_table(random):
    table = _floats(random, 50, 40) * np.linspace(0.01, 3, 50, dtype=np.float32)[:, None]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["h"], axis=0),
        helper.make_node("Transpose", ["table"], ["decoder"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "decoder"], ["logits"]),
    ]
    model = _model(nodes, [("ids", TensorProto.INT64, [None, None])], ["logits", "h"], {"table": table})
    quantize_int8(model, by_call=True)
    stored = initializers(model.graph)
    assert sorted(name for name in stored if stored[name].dims and len(stored[name].dims) == 2) == [
        "table.int8"
    ]
    ids = np.array([[0, 17, 49]])
    logits, rows = _run(model, ids=ids)
    scales = np.abs(table).max(axis=1, keepdims=True) / 127
    integers = np.rint(table / scales)
    np.testing.assert_allclose(rows[0], (integers * scales)[ids[0]], rtol=1e-5)
    wanted = _by_hand(rows[0], table.T, rows.min(), rows.max())
    np.testing.assert_allclose(logits[0], wanted, atol=0.05)


def _by_row(x, integers, scales):
    """By hand: every row with a scale of its own."""
    largest = np.abs(x).max(axis=1, keepdims=True)
    return (np.rint(x / largest * 127) @ integers).astype(np.float32) * scales * largest / 127


@pytest.mark.parametrize("by_token", [True, False])
def test_by_token_a_row_has_the_same_bits_beside_any_others(by_token, random):
    weight, narrow = _floats(random, 64, 64), _floats(random, 64, 32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Gelu", ["x"], ["g"]),
        helper.make_node("MatMul", ["g", "w"], ["z"]),
        helper.make_node("MatMul", ["x", "n"], ["v"]),
    ]
    given = [("x", TensorProto.FLOAT, [None, 64])]
    model = _model(nodes, given, ["y", "z", "v"], {"w": weight, "n": narrow})
    quantize_int8(model, by_call=not by_token)
    x = np.concatenate(
        [4 * _floats(random, 6, 64), np.zeros((1, 64), np.float32), _floats(random, 1, 64) - 9]
    )
    found = _run(model, x=x)
    assert all(np.isfinite(values).all() for values in found)
    together = [
        [values[rows].tolist() for values in found] == [values.tolist() for values in _run(model, x=x[rows])]
        for rows in ([0], [3, 1], [7, 6, 0], [2, 2, 2, 5, 4])
    ]
    assert all(together) if by_token else not any(together)
    if by_token:
        # One level of one activation may round the other way.
        level = 2 * np.abs(x).max() * np.abs(weight).max() / 127
        np.testing.assert_allclose(found[0][:6], _by_row(x[:6], *_integers(weight)), atol=level)
        integers, scales = _integers(narrow)
        np.testing.assert_allclose(found[2], x @ (integers * scales), rtol=1e-4, atol=1e-3)
        assert count_operators(model)["MatMulIntegerToFloat"] == 2
        assert sum(name.endswith(".int8") for name in initializers(model.graph)) == 2


def test_four_bits_are_multiplied_out_to_int8_when_the_graph_is_loaded(random, tmp_path):
    weight = _floats(random, 64, 70) * np.linspace(0.1, 2, 64, dtype=np.float32)[:, None]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = _model(nodes, [("x", TensorProto.FLOAT, [None, 64])], ["y"], {"w": weight})
    model.opset_import[0].version = 21  # the first with numbers of 4 bits
    quantize_int8(model, four_bits=True)
    assert weight_bytes(model) < 64 * 70 * (0.5 + 1 / 16) + 4 * 70 + 100
    scales = np.abs(weight).max(axis=0) / 127
    integers, multipliers = four_bits(weight / scales)
    assert np.abs(integers).max() == 7 and 0 < multipliers.min() < multipliers.max() <= 18
    levels = np.repeat(multipliers[:, 0].astype(np.int64), 16, axis=0) * integers
    assert np.abs(levels * scales - weight).mean() < np.abs(weight).mean() / 10
    x = _floats(random, 5, 64)
    level = 2 * np.abs(x).max() * np.abs(weight).max() / 127
    np.testing.assert_allclose(_run(model, x=x)[0], _by_row(x, levels, scales), atol=level)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kept = count_operators(onnx.load(tmp_path / "loaded.onnx"))
    assert set(kept) & {"Cast", "Reshape"} == set() and kept["MatMulIntegerToFloat"] == 1


def test_large_lookup_tables_have_four_bits_and_a_decoder_reads_them_as_they_are(random):
    large, tied, small = (_floats(random, rows, 32) for rows in (4096, 4096, 512))
    large[5, 0] = 40  # cutting it would cost more than it gains, or not: the closer of both is kept
    nodes = [
        helper.make_node("Gather", ["large", "ids"], ["a"]),
        helper.make_node("Gather", ["tied", "ids"], ["b"]),
        helper.make_node("Gather", ["small", "ids"], ["c"]),
        helper.make_node("Transpose", ["tied"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["b", "turned"], ["y"]),
    ]
    tables = {"large": large, "tied": tied, "small": small}
    model = _model(nodes, [("ids", TensorProto.INT64, [None, None])], ["a", "b", "c", "y"], tables)
    model.opset_import[0].version = 21
    quantize_int8(model, four_bits=True)
    assert weight_bytes(model) < 2 * 4096 * (16 + 4) + 512 * (32 + 4) + 200
    ids = random.integers(0, 512, (3, 7))
    found = _run(model, ids=ids)
    levels, scales = four_bit_rows(large)
    np.testing.assert_allclose(found[0], (levels * scales)[ids], rtol=1e-6)
    assert (levels.min(), levels.max()) == (-8, 7)
    error, plain = ((levels * scales - large) ** 2).sum(1), np.abs(large).max(1, keepdims=True) / 7
    assert (error <= ((np.rint(large / plain) * plain - large) ** 2).sum(1) * (1 + 1e-5)).all()
    assert np.sqrt(error.sum() / (large**2).sum()) < 0.13
    assert np.abs(found[2] - small[ids]).max() <= np.abs(small).max() / 127
    levels, scales = four_bit_rows(tied)
    rows = (levels * scales)[ids]
    np.testing.assert_allclose(found[1], rows, rtol=1e-6)
    exact = rows @ (levels * scales).T
    np.testing.assert_allclose(found[3], exact, atol=0.02 * np.abs(exact).max())


def test_small_tensors_and_other_operators_stay_as_they_are(random):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["y", "b"], ["z"])]
    tensors = {"w": _floats(random, 40, 2), "b": _floats(random, 2)}
    model = _model(nodes, X, ["z"], tensors)
    before = model.SerializeToString()
    quantize_int8(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("options", [{}, {"four_bits": True}, {"by_call": True}])
def test_weights_are_uint8_where_a_processor_cuts_sums_and_answers_are_the_same(random, monkeypatch, options):
    product = onnx.load_from_string(session._PRODUCT)
    onnx.checker.check_model(product)
    assert onnx.numpy_helper.to_array(product.graph.initializer[0]).tolist() == [[127]] * 4
    table = _floats(random, 96, 64)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["t"]),
        helper.make_node("Gather", ["table", "ids"], ["words"]),
        helper.make_node("Add", ["t", "words"], ["sum"]),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["sum", "turned"], ["y"]),
    ]
    inputs = [("x", TensorProto.FLOAT, [None, 64]), ("ids", TensorProto.INT64, [None])]
    model = _model(nodes, inputs, ["y"], {"w": _floats(random, 64, 64), "table": table})
    quantize_int8(model, **options)
    changed = onnx.load_from_string(with_uint8_weights(model.SerializeToString()))
    products = [node for node in changed.graph.node if node.op_type.startswith("MatMulInteger")]
    weights = [node.input[1] for node in products]
    assert len(products) == 3 and {node.input[-1] for node in products} == {"weights.middle"}
    assert weights[0] == weights[1]
    assert count_operators(changed)["BitwiseXor"] == 2
    given = {"x": _floats(random, 5, 64), "ids": np.arange(5)}
    changed.graph.output.append(helper.make_tensor_value_info(weights[2], TensorProto.UINT8, None))
    _, raised = _run(changed, **given)
    levels = np.rint(table / np.abs(table).max(1, keepdims=True) * 127)
    np.testing.assert_array_equal(raised.astype(int), levels.T.astype(int) + 128)
    found = []
    for cuts in (False, True):
        monkeypatch.setattr(session, "cuts_sums", lambda cuts=cuts: cuts)
        found.append(_run(model, **given)[0])
    np.testing.assert_array_equal(*found)


def test_products_of_other_weights_and_with_a_zero_of_their_own_stay_as_they_are():
    assert with_uint8_weights(session._PRODUCT) == session._PRODUCT
    tensors = {"w.int8": np.ones((4, 1), np.int8), "middle": np.uint8(1), "zero": np.int8(2)}
    for inputs in (["x", "w.int8", "middle", "zero"], ["x", "y.uint8"], ["x"]):
        node = helper.make_node("MatMulInteger", inputs, ["y"])
        model = _model([node], [("x", TensorProto.UINT8, [None, 4])], [], tensors).SerializeToString()
        assert with_uint8_weights(model) == model


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-user")
@pytest.mark.parametrize(("processor", "cuts"), [("Haswell", "True"), ("Nehalem", "False")])
def test_emulated_processors_that_cut_sums_answer_as_this_one(processor, cuts, random, tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    model = _model(nodes, [("x", TensorProto.FLOAT, [None, 64])], ["y"], {"w": _floats(random, 64, 64)})
    quantize_int8(model)
    x = _floats(random, 50, 64)
    onnx.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", x)
    program = (
        "import numpy as np; from minialbert_runtime import native, session; "
        "print(session.cuts_sums(), native.has_native()); "
        "np.save('y.npy', session.open_session('model.onnx', 1).run(None, {'x': np.load('x.npy')})[0])"
    )
    done = subprocess.run(
        ["qemu-x86_64", "-cpu", processor, sys.executable, "-c", program], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, capture_output=True,
        encoding="utf-8", check=True,
    )  # fmt: skip
    assert done.stdout.split() == [cuts, "False"]  # the compiled engine is not for them
    found, here = np.load(tmp_path / "y.npy"), _run(model, x=x)[0]
    assert np.linalg.norm(found - here) / np.linalg.norm(here) < 1e-3
