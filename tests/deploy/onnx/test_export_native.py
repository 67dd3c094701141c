"""The engine native against ONNX Runtime on the same graphs, and against the model in fp32."""

from __future__ import annotations

import _ctypes
import gc
import json
import os
import shutil
import threading
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from minialbert_runtime import Model, native, registers, session
from minialbert_runtime.errors import UserError
from minialbert_runtime.graph import read_graph
from minialbert_runtime.program import UnknownGraphError, compile_graph
from minialbert_runtime.serving import ServedModel
from onnx import numpy_helper
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForTokenClassification,
)

import minialbert
from minialbert import (
    MiniAlbertConfig,
    MiniAlbertForMaskedLM,
    MiniAlbertForQuestionAnswering,
    MiniAlbertForSequenceClassification,
    MiniAlbertForTokenClassification,
)
from minialbert.deploy.onnx.int8 import quantize_int8
from minialbert.deploy.onnx.trace import trace_onnx

pytestmark = pytest.mark.skipif(
    not native.has_native(), reason="minialbert-native is not installed, or no AVX-512"
)
VOCABULARY, LONGEST = 120, 64
BASE = {
    "vocab_size": VOCABULARY, "embedding_size": 40, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3,
    "intermediate_size": 200, "max_position_embeddings": LONGEST, "adapter_reduction_factor": 4, "num_labels": 3,
}  # fmt: skip
BERT = {
    "vocab_size": VOCABULARY, "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 200, "max_position_embeddings": LONGEST, "num_labels": 3,
}  # fmt: skip
DISTILBERT = {
    "vocab_size": VOCABULARY, "dim": 96, "n_layers": 2, "n_heads": 3, "hidden_dim": 200,
    "max_position_embeddings": LONGEST,
}  # fmt: skip


def student(kind=MiniAlbertForSequenceClassification, **changed):
    return lambda: kind(MiniAlbertConfig(**{**BASE, **changed}))


MODELS = {
    "classes": ("sequence-classification", student()),
    "tags": ("token-classification", student(MiniAlbertForTokenClassification)),
    "questions": ("question-answering", student(MiniAlbertForQuestionAnswering, num_labels=2)),
    "masked": ("masked-lm", student(MiniAlbertForMaskedLM)),
    "no adapters": ("sequence-classification", student(adapter_reduction_factor=None)),
    "small tables": ("sequence-classification", student(embedding_size=8)),
    "full rank": ("sequence-classification", student(embedding_size=96)),
    "two blocks": ("sequence-classification", student(num_hidden_groups=2)),
    "as released": ("sequence-classification", student(adapter_layer_norm=True)),
    "lora": ("sequence-classification", student(adapter_kind="lora", lora_rank=8)),
    "norms": ("token-classification", student(MiniAlbertForTokenClassification, adapter_kind="layer-norm")),
    "scales": ("sequence-classification", student(adapter_kind="scale")),
    "embedded": ("sequence-classification", student(adapter_kind="bottleneck+iteration-embedding")),
    "bert": ("sequence-classification", lambda: BertForSequenceClassification(BertConfig(**BERT))),
    "distilbert": (
        "token-classification",
        lambda: DistilBertForTokenClassification(DistilBertConfig(**DISTILBERT)),
    ),
}

QUICK = ("classes", "tags", "questions", "norms", "distilbert")  # the others take as long, and fail with them


def moved(model):
    """The model with vectors and adapters that are not where they start, so that each of them counts."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for values in model.parameters():
            if values.ndim == 1 or not values.any():
                values += 0.1 * torch.randn(values.shape, generator=generator)
    return model.eval()


@cache
def _traced(name):
    head, build = MODELS[name]
    torch.manual_seed(0)
    return trace_onnx(moved(build()), head).SerializeToString()


def traced(name):
    return onnx.load_from_string(_traced(name))


def saved(graph, folder: Path, *, four_bits=False) -> Path:
    quantize_int8(graph, four_bits=four_bits)
    onnx.save(graph, folder / "model.onnx")
    return folder / "model.onnx"


def inputs(lengths, seed=0):
    random, longest = np.random.default_rng(seed), max(lengths)
    mask = (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int64)
    ids = random.integers(1, VOCABULARY, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask * (np.arange(longest) % 2)}


def read_weights(path):
    graph = read_graph(path.read_bytes())
    return compile_graph(graph, graph.outputs[:1]).weights


def taken(names, columns):
    return {one.name: columns[one.name] for one in names}


def whole(engine, columns):
    names = [one.name for one in engine.get_outputs()]
    return np.stack(engine.run(names, taken(engine.get_inputs(), columns)), axis=-1)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return saved(traced("classes"), tmp_path_factory.mktemp("native"))


@pytest.mark.parametrize(
    ("name", "four_bits"),
    [
        *(pytest.param(name, False, marks=[] if name in QUICK else pytest.mark.slow) for name in MODELS),
        ("classes", True),
        pytest.param("masked", True, marks=pytest.mark.slow),
    ],
)
def test_results_are_those_of_onnx_runtime(name, four_bits, tmp_path):
    graph = traced(name)
    exact = session.open_session(graph.SerializeToString())
    path = saved(graph, tmp_path, four_bits=four_bits)
    ours, theirs = native.NativeSession(path, 2), session.open_session(path)
    apart, errors = [], []
    for length in (1, 2, 3, 5, 8, 13, 16, 17, 31, 32, 33, 40, 47, 48, 63, 64):
        columns = inputs([length], seed=length)
        wanted, found, plain = whole(theirs, columns), whole(ours, columns), whole(exact, columns)
        assert found.shape == wanted.shape
        apart.append(np.abs(found - wanted).max() / np.abs(wanted).max())
        errors.append([np.linalg.norm(one - plain) / np.linalg.norm(plain) for one in (found, wanted)])
    # A value that lies between two integers may go either way by its last digit, and what follows with it.
    assert np.median(apart) < 3e-6
    assert max(apart) < 0.1
    mine, other = np.mean(errors, axis=0)
    assert mine < 1.2 * other + 1e-6


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, LONGEST), min_size=1, max_size=24), seed=st.integers(0, 99),
    threads=st.sampled_from([1, 2, 3]),
)  # fmt: skip
def test_a_text_has_the_same_bits_alone_and_beside_others(classes, lengths, seed, threads):
    columns = inputs(lengths, seed)
    alone = native.NativeSession(classes, 1)
    (found,) = native.NativeSession(classes, threads).run(None, columns)
    for row, length in enumerate(lengths):
        (one,) = alone.run(None, {name: values[row : row + 1, :length] for name, values in columns.items()})
        np.testing.assert_array_equal(one[0], found[row])


def test_tokens_have_the_same_bits_too_and_padding_is_zero(tmp_path):
    path = saved(traced("tags"), tmp_path)
    lengths = [64, 3, 17, 40, 1]
    columns = inputs(lengths)
    (found,) = native.NativeSession(path, 2).run(None, columns)
    for row, length in enumerate(lengths):
        part = {name: values[row : row + 1, :length] for name, values in columns.items()}
        np.testing.assert_array_equal(
            native.NativeSession(path, 1).run(None, part)[0][0], found[row, :length]
        )
        assert not found[row, length:].any()


def test_threads_may_run_a_session_at_the_same_time(classes):
    shared = native.NativeSession(classes, 2)
    columns = [inputs([40, 9, 33], seed) for seed in range(4)]
    wanted = [shared.run(None, one)[0] for one in columns]
    wrong = []

    def work(seed):
        for _ in range(30):
            if not np.array_equal(shared.run(None, columns[seed])[0], wanted[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input_ids", VOCABULARY),
        ("input_ids", -1),
        ("input_ids", 2**40),
        ("token_type_ids", 2),
        ("token_type_ids", -1),
    ],
)
def test_a_token_that_the_model_does_not_have_is_refused(classes, name, value):
    columns = inputs([9])
    columns[name][0, 4] = value
    with pytest.raises(ValueError, match="not among those of the model"):
        native.NativeSession(classes, 2).run(None, columns)


def test_a_text_of_more_tokens_than_positions_is_refused(classes):
    with pytest.raises(ValueError, match="position is not among"):
        native.NativeSession(classes, 2).run(None, inputs([LONGEST + 1]))


@pytest.mark.parametrize(
    ("mask", "told"), [([0, 0, 0], "no token"), ([0, 1, 1], "before"), ([9, 0, 0], "no token")]
)
def test_a_mask_that_is_not_that_of_a_padded_text_is_refused(classes, mask, told):
    columns = inputs([3]) | {"attention_mask": np.array([mask])}
    with pytest.raises(ValueError, match=told):
        native.NativeSession(classes, 2).run(None, columns)


def test_the_number_of_registers_does_not_grow_with_iterations():
    counts = []
    for iterations in (3, 5):
        graph = trace_onnx(student(num_hidden_layers=iterations)().eval(), "sequence-classification")
        quantize_int8(graph)
        program = compile_graph(read_graph(graph.SerializeToString()), ["logits"])
        counts.append((len(program.widths), len(program.code)))
    assert counts[0][0] == counts[1][0]
    assert counts[0][1] < counts[1][1]


def _other_width(graph):
    tensor = next(one for one in graph.initializer if one.name.endswith(".bias"))
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(7, np.float32), tensor.name))


def _fewer_scales(graph):
    tensor = next(one for one in graph.initializer if one.name.endswith("ffn.weight.transposed.scales"))
    tensor.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), tensor.name))


def _another_operator(graph):
    next(node for node in graph.node if node.op_type == "Attention").op_type = "Hardmax"


def _matrix_of_another_shape(graph):
    tensor = next(one for one in graph.initializer if one.name.endswith("ffn_output.weight.transposed.int8"))
    tensor.CopyFrom(numpy_helper.from_array(np.ones((3, 5), np.int8), tensor.name))


def _node(graph, operator):
    return next(node for node in graph.node if node.op_type == operator)


def _causal(graph):
    _node(graph, "Attention").attribute.append(onnx.helper.make_attribute("is_causal", 1))


def _set(graph, operator, name, value):
    node = _node(graph, operator)
    kept = [one for one in node.attribute if one.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def _store(graph, name, value):
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def _insert(graph, before, operator, *others, **attributes):
    """What a kind of node reads first goes through another operator."""
    node = _node(graph, before)
    graph.node.insert(
        [*graph.node].index(node),
        onnx.helper.make_node(operator, [node.input[0], *others], ["inserted"], **attributes),
    )
    node.input[0] = "inserted"


def _keys_that_are_values(graph):
    node = _node(graph, "Attention")
    node.input[2] = node.input[1]


def _queries_that_are_keys(graph):
    node = _node(graph, "Attention")
    node.input[1] = node.input[0]


def _biased_by_distance(graph):
    _node(graph, "Attention").input[3] = _store(graph, "bias", np.linspace(0, 1, 64, dtype=np.float32))


def _causal_by_mask(graph):
    node = _node(graph, "Attention")
    counted = _node(graph, "Range").output[0]
    for name, axis in (("down", 1), ("along", 0)):
        made = onnx.helper.make_node("Unsqueeze", [counted, _store(graph, f"{name}.axis", [axis])], [name])
        graph.node.insert([*graph.node].index(node), made)
    made = onnx.helper.make_node("GreaterOrEqual", ["down", "along"], ["causal"])
    graph.node.insert([*graph.node].index(node), made)
    node.input[3] = "causal"


def _positions_from_two(graph):
    _store(graph, "two", np.int64(2))
    _node(graph, "Range").input[0] = "two"


def _not_a_number(graph):
    tensor = next(one for one in graph.initializer if one.name.endswith("LayerNorm.weight"))
    values = numpy_helper.to_array(tensor).copy()
    values[3] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _another_least(graph):
    tensor = next(one for one in graph.initializer if one.name == "rows.least")
    tensor.CopyFrom(numpy_helper.from_array(np.array(0.5, np.float32), tensor.name))


def _another_step(graph):
    tensor = next(one for one in graph.initializer if one.name == "rows.step")
    tensor.CopyFrom(numpy_helper.from_array(np.array(1 / 64, np.float32), tensor.name))


def _heads_below_none(graph):
    _set(graph, "Attention", "q_num_heads", -3)
    _set(graph, "Attention", "kv_num_heads", -3)


def _an_output_on_its_way(graph):
    graph.output[0].name = _node(graph, "Abs").output[0]


def _a_mask_made_too_late(graph):
    node = next(one for one in graph.node if _node(graph, "Attention").input[3] in one.output)
    graph.node.remove(node)
    graph.node.append(node)


def _an_input_that_is_stored(graph):
    graph.input.remove(next(one for one in graph.input if one.name == "attention_mask"))
    _store(graph, "attention_mask", np.ones((1, 1), np.int64))


WRONG = [
    _other_width, _fewer_scales, _another_operator, _matrix_of_another_shape, _causal, _keys_that_are_values,
    _queries_that_are_keys, _biased_by_distance, _causal_by_mask, _not_a_number, _another_least,
    _another_step, _heads_below_none, _an_output_on_its_way, _a_mask_made_too_late, _an_input_that_is_stored,
    lambda graph: _set(graph, "LayerNormalization", "axis", 1), lambda graph: _set(graph, "ReduceMax", "keepdims", 0),
    lambda graph: _insert(graph, "QuantizeLinear", "Relu"), lambda graph: _insert(graph, "LayerNormalization", "Abs"),
    lambda graph: _insert(graph, "LayerNormalization", "Transpose", perm=[0, 2, 1]),
]  # fmt: skip


@pytest.mark.parametrize("change", WRONG)
def test_a_graph_that_is_not_understood_is_refused(change, classes, tmp_path):
    model = onnx.load(classes)
    change(model.graph)
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(
        UserError, match=r"the engine native cannot run this graph \(.+\): choose the engine onnx"
    ) as found:
        native.NativeSession(tmp_path / "changed.onnx", 1)
    assert isinstance(found.value.__cause__, UnknownGraphError)


def test_a_product_that_is_read_twice_keeps_its_own_value(classes, tmp_path):
    model = onnx.load(classes)
    graph = model.graph
    first = next(node for node in graph.node if node.op_type == "Gelu")
    product, gelu, at = first.input[0], first.output[0], [*graph.node].index(first)
    for node in graph.node:
        node.input[:] = ["both" if name == gelu else name for name in node.input]
    graph.node.insert(at + 1, onnx.helper.make_node("Add", [gelu, "beside"], ["both"]))
    graph.node.insert(at, onnx.helper.make_node("Tanh", [product], ["beside"]))
    onnx.save(model, tmp_path / "model.onnx")
    engines = native.NativeSession(tmp_path / "model.onnx", 1), session.open_session(tmp_path / "model.onnx")
    mine, theirs, plain = (whole(one, inputs([31])) for one in (*engines, session.open_session(classes)))
    assert np.abs(mine - theirs).max() < 1e-3
    assert np.abs(theirs - plain).max() > 1e-2


def test_values_that_overflow_are_no_numbers(classes, tmp_path):
    model = onnx.load(classes)
    tensor = next(one for one in model.graph.initializer if one.name.endswith("LayerNorm.weight"))
    tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, 3e38, np.float32), tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    assert not np.isfinite(whole(native.NativeSession(tmp_path / "model.onnx", 1), inputs([9]))).any()


def test_inputs_of_several_shapes_are_refused(classes):
    with pytest.raises(ValueError, match="differ in shape"):
        native.NativeSession(classes, 1).run(
            None, inputs([9]) | {"token_type_ids": np.zeros((1, 3), np.int64)}
        )


@pytest.mark.parametrize("by_call", [None, True])
def test_a_graph_without_products_by_token_is_refused(by_call, tmp_path):
    graph = traced("classes")
    if by_call:
        quantize_int8(graph, by_call=True)
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(UserError, match="the engine native cannot run this graph"):
        native.NativeSession(tmp_path / "model.onnx", 1)


@pytest.fixture(scope="module")
def folders(tiny_tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    config = MiniAlbertConfig(**{**BASE, "vocab_size": len(tiny_tokenizer)})
    model = moved(MiniAlbertForSequenceClassification(config))
    place = tmp_path_factory.mktemp("folders")
    for precision in ("int8", None):
        folder = place / str(precision)
        minialbert.export(model, folder, tokenizer=tiny_tokenizer, quantize=precision, tolerance=1)
        task = {
            "task": "test",
            "problem": "single-label",
            "metric": "accuracy",
            "max_length": LONGEST,
            "overlap": 8,
        }
        (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    return place


TEXTS = ["the cat sat on the mat", "a dog", "it was a big red house in the sun", "new"] * 9


def test_a_model_uses_it_where_it_can(folders, monkeypatch):
    model = Model(folders / "int8", threads=2)
    other = Model(folders / "int8", engine="onnx")
    assert (model.engine, other.engine) == ("native", "onnx")
    mine, theirs = ([one["scores"] for one in engine.predict(TEXTS)] for engine in (model, other))
    apart = [max(abs(a[name] - b[name]) for name in a) for a, b in zip(mine, theirs, strict=True)]
    assert np.median(apart) < 1e-5
    assert max(apart) < 0.02
    assert model(TEXTS[2])["scores"] == mine[2]
    assert Model(folders / "None").engine == "onnx"
    assert Model(folders / "int8", engine="auto").engine in ("native", "onnx")
    with pytest.raises(UserError, match="the engine native cannot run this graph"):
        Model(folders / "None", engine="native")
    served = [
        ServedModel("m", folders / "int8", engine=engine).version for engine in (None, "native", "onnx")
    ]
    assert served[0] == served[1] != served[2]
    monkeypatch.setattr("minialbert_runtime.model.has_native", lambda: False)
    assert ServedModel("m", folders / "int8").version == served[2]
    monkeypatch.setattr(native, "has_native", lambda: False)
    assert Model(folders / "int8").engine == "onnx"
    with pytest.raises(UserError, match=r"the engine native needs minialbert-native \(pip install"):
        Model(folders / "int8", engine="native")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_forked_process_opens_the_graph_anew(folders):
    model = Model(folders / "int8", threads=2)
    wanted = list(model.predict(TEXTS))
    child = os.fork()
    if not child:
        os._exit(0 if list(model.predict(TEXTS)) == wanted else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(model.predict(TEXTS)) == wanted


def test_models_on_one_backbone_have_its_weights_in_memory_once(tmp_path):
    torch.manual_seed(1)
    model = moved(student()())
    paths = [saved(trace_onnx(model, "sequence-classification"), tmp_path)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adapter" in name or "classifier" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    (tmp_path / "other").mkdir()
    paths.append(saved(trace_onnx(model, "sequence-classification"), tmp_path / "other"))
    columns = inputs([5, 9], seed=3)
    alone = [whole(native.NativeSession(path, 1), columns) for path in paths]
    assert not np.array_equal(*alone)
    gc.collect()
    before = len(native._PACKED)
    first = native.NativeSession(paths[0], 1)
    own = len(native._PACKED) - before
    second = native.NativeSession(paths[1], 1)
    shared = {one.address for one in first._weights} & {one.address for one in second._weights}
    large = [one for one in read_weights(paths[0]) if one.kind == registers.INT8_MATRIX]
    # The matrices of the block, the projection from the table and the table; not the adapters', nor the classifier's.
    assert len(large) >= 6
    assert {native.packed_weight(one).address for one in large} <= shared
    assert len(native._PACKED) - before - own < own
    assert np.array_equal(whole(first, columns), alone[0])
    del first
    gc.collect()
    assert np.array_equal(whole(second, columns), alone[1])
    del second
    gc.collect()
    assert len(native._PACKED) == before


@pytest.mark.parametrize("made", ["on a newer system", "from another version"])
def test_a_library_that_cannot_be_loaded_is_a_warning(made, folders, tmp_path, monkeypatch):
    package = pytest.importorskip("minialbert_native")
    if made == "on a newer system":
        (tmp_path / "kernel.so").write_text(made)
    else:  # any library that has none of its functions
        shutil.copy(_ctypes.__file__, tmp_path / "kernel.so")
    monkeypatch.setattr(package, "LIBRARY", tmp_path / "kernel.so")
    # The functions without their caches, which hold the library that loaded.
    monkeypatch.setattr(package, "library", package.library.__wrapped__)
    monkeypatch.setattr(package, "is_supported", package.is_supported.__wrapped__)
    with pytest.warns(
        UserWarning, match="minialbert-native is not used, install it anew on this machine: .+kernel.so"
    ):
        assert Model(folders / "int8").engine == "onnx"


def test_a_package_of_another_version_is_a_warning(folders, monkeypatch):
    monkeypatch.setattr("minialbert_native.FORMAT", 1)
    with pytest.warns(UserWarning, match="minialbert-native is of another version than minialbert-runtime"):
        assert Model(folders / "int8").engine == "onnx"
