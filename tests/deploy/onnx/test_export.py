"""Exports: the graph computes what the model does, holds each weight once, or does not appear."""

from __future__ import annotations

import json
import pickle
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from minialbert_runtime import Model
from minialbert_runtime.limits import PROVED_ENGINES
from minialbert_runtime.session import has_openvino
from small_graphs import count_operators
from transformers import AutoConfig, AutoModelForMaskedLM
from typer.testing import CliRunner

import minialbert
from minialbert import (
    MiniAlbertConfig,
    MiniAlbertForMaskedLM,
    MiniAlbertForQuestionAnswering,
    MiniAlbertForSequenceClassification,
    MiniAlbertForTokenClassification,
)
from minialbert.cli.main import app
from minialbert.deploy.onnx import export
from minialbert.deploy.onnx import parity as onnx_parity
from minialbert.deploy.onnx.export import calibration_batches, export_onnx
from minialbert.deploy.onnx.graph import drop_unused, initializers
from minialbert.deploy.onnx.int8 import quantize_int8
from minialbert.deploy.onnx.trace import trace_onnx
from minialbert.deploy.web import _check_exported
from minialbert.errors import UserError
from minialbert.method.encoders import load_encoder
from minialbert.method.graph_weights import has_type_int4, read_weights
from minialbert.recipes.schema import TaskRecipe
from minialbert.runs.results import Result
from minialbert.tasks.evaluate import evaluate
from minialbert.tasks.exported import OnnxEncoder, load_exported
from minialbert.tasks.models import TaskInputs, save_tuned

needs_openvino = pytest.mark.skipif(not has_openvino(), reason="openvino is not installed")
ITERATIONS = 2
INPUTS = TaskInputs("colours", "single-label", "accuracy", 32, 8)


def _config(tokenizer, **changes):
    values = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "embedding_size": 16, "num_hidden_layers": ITERATIONS,
        "num_attention_heads": 4, "intermediate_size": 128, "adapter_reduction_factor": 4,
        "max_position_embeddings": 48, "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.2,
    }  # fmt: skip
    return MiniAlbertConfig(**(values | changes))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tiny_tokenizer):
    torch.manual_seed(1)
    config = _config(tiny_tokenizer, num_labels=3, id2label={0: "red", 1: "green", 2: "blue"})
    folder = tmp_path_factory.mktemp("classifier")
    save_tuned(MiniAlbertForSequenceClassification(config), tiny_tokenizer, INPUTS, folder)
    return folder


@pytest.fixture(scope="module")
def graph(classifier):
    """Trace once; each test quantises a copy."""
    model = MiniAlbertForSequenceClassification.from_pretrained(classifier)
    return export._trace(model, "sequence-classification", export.DEFAULT_OPSET, None)


@pytest.fixture
def traced(graph, monkeypatch):
    """Exports of the classifier take the graph that is there."""

    def copy(*_):
        model = onnx.ModelProto()
        model.CopyFrom(graph)
        return model

    monkeypatch.setattr(export, "_trace", copy)


def _data(tmp_path):
    rows = [{"text": f"the {animal} sat", "label": label} for animal in ("cat", "dog", "house", "red big")
            for label in ("red", "green", "blue")]  # fmt: skip
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("head", "cls", "opset"),
    [
        ("masked-lm", MiniAlbertForMaskedLM, 23),
        ("token-classification", MiniAlbertForTokenClassification, 20),
        ("question-answering", MiniAlbertForQuestionAnswering, 18),
    ],
)
def test_every_head_gives_what_the_model_gives(head, cls, opset, tiny_tokenizer, tmp_path):
    torch.manual_seed(0)
    cls(_config(tiny_tokenizer)).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    record = export_onnx(str(tmp_path / "model"), tmp_path / "out", opset=opset)
    assert record["head"] == head and record["opset"] == opset and record["precision"] == "fp32"
    stored = onnx.load(tmp_path / "out" / "model.onnx")
    assert next(entry.version for entry in stored.opset_import if entry.domain == "") == opset
    assert record["parity"]["max_difference"] < 1e-4
    assert len(record["parity"]["shapes"]) == 6
    # Another batch and length than any that was traced or compared, with padding on the left too.
    model = cls.from_pretrained(tmp_path / "model").eval()
    ids = torch.randint(5, len(tiny_tokenizer), (5, 31))
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    mask[2, :4] = 0
    exported = OnnxEncoder(tmp_path / "out" / "model.onnx", model.config)
    with torch.no_grad():
        for wanted, found in zip(
            model(ids, attention_mask=mask).to_tuple(), exported(ids, mask).to_tuple(), strict=True
        ):
            seen = mask.bool() if wanted.shape[:2] == mask.shape else slice(None)
            torch.testing.assert_close(found[seen], wanted[seen], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("precision", "error"), [("int8", 0.02), ("int4", 0.12)])
def test_the_encoder_is_the_same_with_a_masked_lm_head_and_without(
    precision, error, tiny_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr("minialbert.deploy.onnx.int8._LARGE_TABLE", 1)
    monkeypatch.setattr("minialbert.deploy.onnx.int8._WIDE_BIAS", len(tiny_tokenizer))
    torch.manual_seed(0)
    model = MiniAlbertForMaskedLM(_config(tiny_tokenizer, tie_word_embeddings=True))
    torch.nn.init.normal_(model.mlm_head.decoder.bias)  # zeros would be folded away
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    for head in ("features", "masked-lm"):
        export_onnx(str(tmp_path / "model"), tmp_path / head, head=head, precision=precision, tolerance=1.0)
    tuned = []
    for head in ("features", "masked-lm"):  # as `finetune` loads them, with a head that is drawn
        torch.manual_seed(2)
        tuned.append(load_encoder(tmp_path / head, "token-classification").model.state_dict())
    assert tuned[0].keys() == tuned[1].keys()
    assert all(torch.equal(it, tuned[1][key]) for key, it in tuned[0].items())
    wanted, found = (load_encoder(tmp_path / one).model.state_dict() for one in ("model", "masked-lm"))
    for key, it in wanted.items():
        assert (found[key] - it).norm() <= error * it.norm()
    stored = initializers(onnx.load(tmp_path / "masked-lm" / "model.onnx").graph)
    size = len(tiny_tokenizer)
    over = {tuple(one.dims): one.data_type for one in stored.values() if size in one.dims}
    kind, width = (onnx.TensorProto.INT8, 16) if precision == "int8" else (onnx.TensorProto.UINT8, 8)
    assert {dims for dims in over if len(dims) == 2 and 1 not in dims} == {
        (size, width)
    }  # one table for both
    assert over[size, width] == kind


def test_the_exporters_own_package_is_named_if_it_is_missing(classifier, monkeypatch):
    def without(*_, **__):
        raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")

    monkeypatch.setattr(export, "trace_onnx", without)
    model = MiniAlbertForSequenceClassification.from_pretrained(classifier)
    with pytest.raises(UserError, match=r"export to ONNX needs onnxscript: pip install .*\[export\]"):
        export._trace(model, "sequence-classification", export.DEFAULT_OPSET, None)


@pytest.mark.parametrize(
    ("precision", "error"), [("fp32", 0), ("int8", 0.02), ("int8-dynamic", 0.02), ("int4", 0.12)]
)
def test_weights_are_read_back_from_a_graph(precision, error, classifier, traced, tmp_path, caplog):
    export_onnx(str(classifier), tmp_path / "out", precision=precision, tolerance=1.0)
    wanted = load_encoder(classifier, "sequence-classification").model.state_dict()
    with caplog.at_level("INFO", "minialbert"):
        found = load_encoder(tmp_path / "out", "sequence-classification").model.state_dict()
    assert found.keys() == wanted.keys()
    distances = [((found[key] - it).norm() / it.norm().clamp_min(1e-9)).item() for key, it in wanted.items()]
    assert max(distances) <= error and (not error or max(distances) > 0)
    assert ("rounded" in caplog.text) == (precision != "fp32")


def test_weights_are_read_back_of_tied_tables_groups_and_adapters_that_start_as_the_identity(
    tiny_tokenizer, tmp_path
):
    config = _config(
        tiny_tokenizer, num_hidden_layers=3, num_hidden_groups=2, adapter_layer_norm=False, adapter_init="identity",
        adapter_kind="bottleneck+lora+layer-norm+scale", lora_rank=5,
    )  # fmt: skip
    torch.manual_seed(1)
    MiniAlbertForMaskedLM(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    export_onnx(str(tmp_path / "model"), tmp_path / "out")
    wanted, found = (load_encoder(tmp_path / one).model.state_dict() for one in ("model", "out"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], it) for key, it in wanted.items())


def test_int4_of_before_is_read_and_runs_alike_and_is_refused_for_the_web(classifier, traced, tmp_path):
    options = {"precision": "int4", "opset": 22, "tolerance": 1.0}
    export_onnx(str(classifier), tmp_path / "out", **options)
    wanted = read_weights(tmp_path / "out")
    texts = ["the cat sat on the mat", "a dog"]
    answers = list(Model(tmp_path / "out").predict(texts))
    file = tmp_path / "out" / "model.onnx"
    model = onnx.load(file)
    assert not has_type_int4(file)
    stored = initializers(model.graph)
    for name in [name for name in stored if name.endswith(".int8.4")]:
        packed = onnx.numpy_helper.to_array(stored[name])
        numbers = np.concatenate([packed & 15, packed >> 4]).astype(np.int8) - 8
        pairs = numbers.reshape(-1, 2) & 15  # as ONNX has them: neighbours in a byte
        data = (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8).tobytes()
        stored[name].CopyFrom(
            onnx.helper.make_tensor(name, onnx.TensorProto.INT4, numbers.shape, data, raw=True)
        )
        nodes = iter(model.graph.node)
        assert any(name in node.input for node in nodes)
        last = next(node for node in nodes if node.op_type == "Sub")  # of those that unpack it
        del last.attribute[:], last.input[:]
        last.op_type = "Cast"
        last.input.append(name)
        last.attribute.append(onnx.helper.make_attribute("to", onnx.TensorProto.FLOAT))
    drop_unused(model)
    onnx.save(model, file)
    assert has_type_int4(file)
    found = read_weights(tmp_path / "out")
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], it) for key, it in wanted.items())
    assert list(Model(tmp_path / "out").predict(texts)) == answers
    with pytest.raises(UserError, match="give --quantize int8 .or int4. to export it again"):
        _check_exported(tmp_path / "out")


def test_weights_of_old_damaged_and_hostile_graphs_are_not_read(classifier, traced, tmp_path):
    export_onnx(str(classifier), tmp_path / "out")
    file = tmp_path / "out" / "model.onnx"
    whole, graph = file.read_bytes(), onnx.load(file)

    def refused(data):
        file.write_bytes(data)
        with pytest.raises(UserError) as caught:
            load_encoder(tmp_path / "out", "sequence-classification")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "damaged" in refused(whole[: len(whole) // 2]) and "damaged" in refused(b"no graph")
    (noted,) = graph.metadata_props
    places = json.loads(noted.value)
    for value in ("{", "[]", json.dumps({"weight": [[10**6, 10**6], 0]}), json.dumps({"weight": 3})):
        noted.value = value
        assert "notes of its weights is damaged" in refused(graph.SerializeToString())
    noted.value = json.dumps(dict(list(places.items())[:3]))
    assert "missing or of another shape" in refused(graph.SerializeToString())
    del graph.metadata_props[:]
    assert "export the model anew" in refused(graph.SerializeToString())
    (tmp_path / "secret").write_bytes(bytes(4 * 64))
    outside = graph.graph.initializer[0]
    outside.ClearField("raw_data")
    outside.data_location = onnx.TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="../secret")
    assert "which no exported model has" in refused(graph.SerializeToString())


def test_the_encoder_of_any_head_at_a_chosen_depth(classifier, tmp_path):
    record = export_onnx(str(classifier), tmp_path / "out", head="features", num_iterations=1)
    assert (record["head"], record["iterations"]) == ("features", 1)
    assert not (tmp_path / "out" / "task.json").exists() and "errors_by_iteration" not in record
    model = MiniAlbertForSequenceClassification.from_pretrained(classifier).minialbert.eval()
    ids = torch.tensor([[2, 7, 9, 3]])
    with torch.no_grad():
        wanted = model(ids, num_iterations=1).last_hidden_state
    found = OnnxEncoder(tmp_path / "out" / "model.onnx", model.config)(ids).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_errors_of_rounding_are_those_of_the_hidden_states(classifier, traced, tmp_path):
    errors = {}
    for precision in ("int8", "int4"):
        record = export_onnx(str(classifier), tmp_path / precision, precision=precision, tolerance=1.0)
        errors[precision] = record["errors_by_iteration"]
        assert len(errors[precision]) == ITERATIONS
        assert ("four_bits" in record) == (precision == "int4")
    assert 0.5 < record["four_bits"] < 1  # the position table is small
    assert all(0 < few < many < 0.5 for few, many in zip(errors["int8"], errors["int4"], strict=True))


def test_int4_that_stores_nothing_in_four_bits_is_refused(classifier, traced, tmp_path, monkeypatch):
    monkeypatch.setattr("minialbert.deploy.onnx.int8._BLOCK", 7)  # no width is a multiple of it
    with pytest.raises(UserError, match="has nothing that int4 stores in 4 bits"):
        export_onnx(str(classifier), tmp_path / "out", precision="int4", tolerance=1.0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_graph_says_nothing_of_the_machine_that_made_it(precision, classifier, tmp_path):
    export_onnx(str(classifier), tmp_path / "graph", precision=precision)
    held = (tmp_path / "graph" / "model.onnx").read_bytes()
    assert b".py" not in held and b"stack_trace" not in held and b"/modeling_" not in held


def test_another_encoder_is_exported_too(tiny_teacher_dir, tmp_path):
    record = export_onnx(str(tiny_teacher_dir), tmp_path / "out")
    assert record["model"]["model_type"] == "bert" and record["head"] == "masked-lm"
    wanted, found = (load_encoder(one).model.state_dict() for one in (tiny_teacher_dir, tmp_path / "out"))
    assert all(torch.equal(found[key], it) for key, it in wanted.items())


def test_a_model_that_others_tuned_is_run_as_it_is_in_pytorch(classifier, tiny_tokenizer, tmp_path):
    model = MiniAlbertForSequenceClassification.from_pretrained(classifier)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")  # as Transformers' Trainer leaves it: no task.json
    assert export_onnx(str(tmp_path / "model"), tmp_path / "out")["task"] is None
    texts = ["the cat sat on the mat", " ".join(["a dog ran in the sun"] * 30)]  # more than an input holds
    wanted = minialbert.predict(tmp_path / "model", texts)
    found = list(Model(tmp_path / "out").predict(texts))
    assert [one["label"] for one in found] == [one["label"] for one in wanted]
    assert [one["scores"] for one in found] == [pytest.approx(one["scores"], abs=1e-5) for one in wanted]
    assert minialbert.predict(tmp_path / "out", texts) == found


ROTARY = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


@pytest.mark.parametrize(
    ("family", "precision", "settings"),
    [
        ("modernbert", "int8", ROTARY | {"cls_token_id": 2, "sep_token_id": 3, "local_attention": 8}),
        ("eurobert", "fp32", ROTARY | {"num_key_value_heads": 2, "mask_token_id": 4}),
    ],
)
def test_encoders_with_rotary_positions_local_layers_and_shared_keys(
    family, precision, settings, tiny_tokenizer, tmp_path
):
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    config = AutoConfig.for_model(
        family, vocab_size=len(tiny_tokenizer), max_position_embeddings=64, **sizes, **settings
    )
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config).eval()
    for place in (model, tiny_tokenizer):
        place.save_pretrained(tmp_path / "model")
    export_onnx(str(tmp_path / "model"), tmp_path / "out", precision=precision)
    batch = tiny_tokenizer(
        ["the cat sat on the mat and a dog ran in the sun", "a dog"], padding=True, return_tensors="pt"
    )
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    found = OnnxEncoder(tmp_path / "out" / "model.onnx", config)(**inputs).logits
    with torch.no_grad():
        wanted = model(**inputs).logits
    inside = inputs["attention_mask"].bool()
    torch.testing.assert_close(
        found[inside], wanted[inside], rtol=0, atol=2e-5 if precision == "fp32" else 0.05
    )


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-dynamic"])
def test_the_shared_block_is_stored_once(precision, classifier, traced, tmp_path):
    record = export_onnx(str(classifier), tmp_path / "out", precision=precision)
    stored = initializers(onnx.load(tmp_path / "out" / "model.onnx").graph)
    # Two of the block's (up and down), of width 64 x 128, for two iterations.
    assert sum(sorted(tensor.dims) == [64, 128] for tensor in stored.values()) == 2
    assert sum(list(tensor.dims) == [64, 64] for tensor in stored.values()) == 4
    wide = onnx.TensorProto.FLOAT if precision == "fp32" else onnx.TensorProto.INT8
    assert {tensor.data_type for tensor in stored.values() if len(tensor.dims) == 2 and 64 in tensor.dims
            and min(tensor.dims) >= 16} == {wide}  # fmt: skip
    parity = record["parity"]
    assert 0 < parity["max_difference"] <= parity["allowed"]
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert {"model.onnx", "config.json", "tokenizer.json", "task.json", "export.json"} <= set(files)
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == json.loads(json.dumps(record))
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == {
        "format_version": 2, "head": "sequence-classification", "precision": precision, "opset": 23, "iterations": 2,
        **({"batches": "one length"} if precision == "int8" else {}),
    }  # fmt: skip
    config = (tmp_path / "out" / "config.json").read_text()
    assert "auto_map" not in config and str(classifier) not in config


def test_groups_and_adapters_of_every_kind_are_stored_once(tiny_tokenizer, tmp_path):
    config = _config(
        tiny_tokenizer, num_hidden_layers=3, num_hidden_groups=2, groups_share_attention=True, lora_rank=5,
        adapter_kind="bottleneck+lora+layer-norm+scale+iteration-embedding", lora_layers=["query", "ffn"],
    )  # fmt: skip
    torch.manual_seed(1)
    model = MiniAlbertForSequenceClassification(config)
    with torch.no_grad():  # what starts at zero would be folded away
        for parameter in model.minialbert.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_tuned(model, tiny_tokenizer, INPUTS, tmp_path / "model")
    record = export_onnx(str(tmp_path / "model"), tmp_path / "out", precision="int8")
    assert 0 < record["parity"]["max_difference"] <= record["parity"]["allowed"]
    stored = initializers(onnx.load(tmp_path / "out" / "model.onnx").graph)
    kept = [sorted(tensor.dims) for tensor in stored.values() if tensor.data_type == onnx.TensorProto.INT8]
    # Two networks and one attention; bottlenecks of 16 in two places of three iterations, and the projection.
    assert (kept.count([64, 128]), kept.count([64, 64]), kept.count([16, 64])) == (4, 4, 2 * 2 * 3 + 1)
    # Matrices too small to be worth a scale stay fp32: those of rank 5.
    narrow = [sorted(tensor.dims) for tensor in stored.values() if len(tensor.dims) == 2 and 5 in tensor.dims]
    assert sorted(narrow) == [[5, 64]] * 9 + [[5, 128]] * 3


SIZES = (
    r"In 4 bits MiniALBERT-128 \((\S+) M parameters\) takes (\S+) MB, and a student of (\S+) M (\S+) MB; "
    r"in int8 they take (\S+) and (\S+)\. "
)


@pytest.mark.parametrize("small", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_bytes_of_students_are_those_that_the_guide_says(small):
    guide = " ".join((Path(__file__).parents[3] / "docs/deployment.md").read_text(encoding="utf-8").split())
    said = [float(one) for one in re.search(SIZES, guide).groups()]
    shape = {"embedding_size": 64, "hidden_size": 384, "num_hidden_layers": 3, "intermediate_size": 1536}
    model = MiniAlbertForSequenceClassification(
        MiniAlbertConfig(**(shape if small else {"embedding_size": 128}))
    )
    graph, found = trace_onnx(model.eval(), "sequence-classification"), []
    for four_bits in (True, False):
        quantised = onnx.ModelProto()
        quantised.CopyFrom(graph)
        quantize_int8(quantised, four_bits=four_bits)
        found.append(round(export.slim(quantised).ByteSize() / 1e6, 1))
    assert [round(model.num_parameters() / 1e6, 1), *found] == [
        *said[2 * small : 2 * small + 2],
        said[4 + small],
    ]
    assert found[0] <= (2.5 if small else 8)


def _random_texts(count):
    generator = random.Random(1)
    words = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "in", "big", "red", "house"]
    return [" ".join(generator.choices(words, k=generator.randint(0, 30))) for _ in range(count)]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_text_has_the_same_bits_in_any_batch_order_and_company(precision, classifier, traced, tmp_path):
    record = export_onnx(str(classifier), tmp_path / "out", precision=precision, tolerance=1.0)
    generator, texts = random.Random(0), _random_texts(50)
    alone = Model(tmp_path / "out", threads=1)
    expected = {text: alone(text) for text in texts}
    for batch_size in (None, 1, 3, 64):
        model = Model(tmp_path / "out", batch_size=batch_size, threads=2)
        assert model.batch_size == (batch_size or 32)
        for _ in range(3):
            batch = generator.choices(texts, k=generator.randint(1, 80))
            assert list(model.predict(batch)) == [expected[text] for text in batch]
    fp32 = export_onnx(str(classifier), tmp_path / "fp32")
    assert record["bytes"] < fp32["bytes"]
    pairs = [
        [np.array(list(one["scores"].values())) for one in (expected[text], wanted)]
        for text, wanted in zip(texts, Model(tmp_path / "fp32").predict(texts), strict=True)
    ]
    cosines = [found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted) for found, wanted in pairs]
    assert np.mean(cosines) > (0.998 if precision == "int8" else 0.9)  # of random weights


TEXTS = ["the cat sat on the mat", "", "a dog ran in the big red house", "the mat"]


@needs_openvino
def test_a_folder_for_openvino_runs_in_both_engines(classifier, traced, tmp_path, caplog):
    caplog.set_level("INFO")
    record = export_onnx(str(classifier), tmp_path / "out", precision="int8", engine="openvino")
    assert "passages of Python's documentation: give --calibration" in caplog.text
    assert record["parity"]["max_difference"] <= record["parity"]["allowed"]
    contract = json.loads((tmp_path / "out" / "export.json").read_text())
    assert contract["engines"] == record["engines"] == ["openvino", "onnx"]
    stored = initializers(onnx.load(tmp_path / "out" / "model.onnx").graph)
    assert sum(sorted(tensor.dims) == [64, 128] for tensor in stored.values()) == 2  # each once, as int8
    model = Model(tmp_path / "out", threads=1)
    assert model.engine == "openvino" and pickle.loads(pickle.dumps(model)).engine == "openvino"
    generator, texts = random.Random(0), [*TEXTS, *_random_texts(40)]
    alone = {text: model(text) for text in texts}
    one_by_one = Model(tmp_path / "out", threads=1, batch_size=1)
    for _ in range(3):
        batch = generator.choices(texts, k=generator.randint(1, 80))
        assert list(one_by_one.predict(batch)) == [alone[text] for text in batch]  # to the bit
        for text, found in zip(batch, model.predict(batch), strict=True):  # fp32 sums of a batch: nearly
            assert found["scores"] == pytest.approx(alone[text]["scores"], abs=1e-3)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(model, 5 * TEXTS)) == [alone[text] for text in 5 * TEXTS]
    other = Model(tmp_path / "out", threads=1, engine="onnx")
    assert other.engine == "onnx"
    for text in TEXTS:
        assert other(text)["scores"] == pytest.approx(alone[text]["scores"], abs=0.05)
    assert Model(tmp_path / "out", engine="auto").engine in PROVED_ENGINES
    assert load_exported(tmp_path / "out")[0].runtime.engine == "openvino"
    assert sys.modules["openvino_telemetry"] is None  # nothing is sent, and no consent is kept


@needs_openvino
def test_ranges_of_openvinos_int8_differ_by_iteration(classifier, traced, tmp_path):
    options = {"engine": "openvino", "precision": "int8", "tolerance": 0.5}
    export_onnx(str(classifier), tmp_path / "out", calibration=TEXTS, **options)
    stored = onnx.load(tmp_path / "out" / "model.onnx")
    scales = [
        float(onnx.numpy_helper.to_array(tensor))
        for name, tensor in initializers(stored.graph).items()
        if name.endswith(".scale")
    ]
    assert len(scales) == len(set(scales)) == count_operators(stored)["QuantizeLinear"]
    with pytest.raises(UserError, match="the calibration file has none"):
        export_onnx(str(classifier), tmp_path / "none", calibration=[" ", ""], **options)
    assert not (tmp_path / "none").exists()


@needs_openvino
def test_a_process_that_was_forked_runs_openvino_anew(classifier, traced, tmp_path):
    export_onnx(str(classifier), tmp_path / "out", engine="openvino")
    code = """if True:
        import os, sys
        from minialbert_runtime import Model
        model = Model(sys.argv[1], threads=2)
        before = model("the cat sat")
        child = os.fork()
        if child == 0:
            os._exit(0 if model("the cat sat") == before else 3)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or model("the cat sat") != before)
    """
    subprocess.run([sys.executable, "-c", code, tmp_path / "out"], check=True, timeout=60)


def test_without_openvino_its_folder_names_what_is_missing(classifier, traced, tmp_path, monkeypatch):
    monkeypatch.setattr("minialbert_runtime.session.has_openvino", lambda: False)
    monkeypatch.setattr("minialbert_runtime.model.has_openvino", lambda: False)
    monkeypatch.setattr(export, "has_openvino", lambda: False)
    with pytest.raises(UserError, match=r"export for OpenVINO needs openvino: pip install .*\[openvino\]"):
        export_onnx(str(classifier), tmp_path / "out", engine="openvino")
    export_onnx(str(classifier), tmp_path / "out")
    with pytest.raises(
        UserError, match="openvino is missing: pip install openvino, or choose the engine onnx"
    ):
        Model(tmp_path / "out", engine="openvino")
    contract = tmp_path / "out" / "export.json"
    contract.write_text(json.dumps(json.loads(contract.read_text()) | {"engines": ["openvino", "onnx"]}))
    assert Model(tmp_path / "out", engine="auto").engine == "onnx"
    with pytest.raises(UserError, match="engine: expected auto, onnx, openvino, native, found tflite"):
        Model(tmp_path / "out", engine="tflite")
    contract.write_text(json.dumps(json.loads(contract.read_text()) | {"engines": ["tflite"]}))
    with pytest.raises(UserError, match="is damaged .*expected some of onnx, openvino"):
        Model(tmp_path / "out")


def test_a_graph_that_computes_something_else_leaves_nothing_behind(classifier, graph, tmp_path, monkeypatch):
    def damaged(*_):
        model = onnx.ModelProto()
        model.CopyFrom(graph)
        largest = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
        values = onnx.numpy_helper.to_array(largest) * 1.2
        largest.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), largest.name))
        return model

    monkeypatch.setattr(export, "_trace", damaged)
    with pytest.raises(
        UserError, match="outputs differ too much from the model's: largest difference .* nothing was"
    ):
        export_onnx(str(classifier), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_is_too_large_leaves_nothing_behind(classifier, traced, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_GRAPH_BYTES", 0)
    monkeypatch.setitem(export.SIZE_LIMITS, "fp32", 0.9)
    with pytest.raises(UserError, match="more than 0.9 of the model's"):
        export_onnx(str(classifier), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_score_that_falls_too_far_leaves_nothing_behind(classifier, traced, tmp_path, monkeypatch):
    task = TaskRecipe(name="classification", data=str(_data(tmp_path)))
    record = export_onnx(str(classifier), tmp_path / "out", task=task, precision="int8")
    score = record["metrics"]
    assert (score["task"], score["split"], score["metric"]) == ("data", "test", "accuracy")
    assert score["before"] == evaluate(classifier, task=task, progress=False).score
    assert score["after"] == evaluate(tmp_path / "out", task=task, progress=False).score
    assert score["drop_points"] == pytest.approx(100 * (score["before"] - score["after"]), abs=1e-3)

    def worse(name, **options):
        found = evaluate(name, **options).record
        lower = {"score": found["score"] + change} if ".other" in str(name) else {"metric": metric}
        return Result(found | lower)

    change, metric = -0.02, "accuracy"
    monkeypatch.setattr(export, "evaluate", worse)
    drop = score["drop_points"] + 2
    with pytest.raises(
        UserError, match=f"accuracy gets worse by {drop:.2f} points.*at most 1.5 were allowed"
    ):
        export_onnx(str(classifier), tmp_path / "other", task=task, precision="int8", max_drop=1.5)
    assert not (tmp_path / "other").exists()
    change, metric = 0.9, "mean_squared_error"  # of which less is better
    with pytest.raises(UserError, match="mean_squared_error gets worse by .* points"):
        export_onnx(str(classifier), tmp_path / "other", task=task, precision="int8", max_drop=1.5)


def test_a_class_whose_recall_falls_too_far_is_named(classifier, traced, tmp_path, monkeypatch):
    task = TaskRecipe(name="classification", data=str(_data(tmp_path)))

    def worse(name, **options):
        record = evaluate(name, **options).record
        rare = next(iter(record["certificate"]["per_class"].values()))
        rare["recall"] = 0.5 if name == str(classifier) else 0.47
        return Result(record)

    monkeypatch.setattr(export, "evaluate", worse)
    record = export_onnx(str(classifier), tmp_path / "other", task=task, max_drop=100)
    (label, figures), *_ = record["metrics"]["certificates"]["after"]["per_class"].items()
    assert figures["recall"] == 0.47
    with pytest.raises(
        UserError, match=f"recall falls for {label} by 3.00 points, from .* and at most 2 points were"
    ):
        export_onnx(str(classifier), tmp_path / "more", task=task, max_drop=2)
    assert not (tmp_path / "more").exists()


def test_parity_counts_what_it_compares():
    """Against figures worked out by hand."""

    class Fixed(torch.nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = torch.tensor(logits)

        def forward(self, **_):
            return {"logits": self.logits}

    one = Fixed([[[0.0, 4.0], [1.0, 0.0], [9.0, 0.0]], [[2.0, 1.0], [9.0, 0.0], [0.0, 9.0]]])
    other = Fixed([[[0.0, 3.5], [0.9, 1.0], [0.0, 9.0]], [[2.0, 1.0], [0.0, 9.0], [9.0, 0.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])  # three tokens count, one of them changes its label
    batch = {"input_ids": mask, "attention_mask": mask}
    found = onnx_parity.measure_parity(one, other, [batch], ("logits",), tolerance=0.2)
    assert (found.max_difference, found.largest_output, found.rows) == (1.0, 4.0, 3)
    assert found.argmax_agreement == pytest.approx(2 / 3)
    assert not found.holds and found.allowed == pytest.approx(0.8)
    assert "argmax agreement 66.67%" in onnx_parity.parity_line(found.to_dict())
    # Padding is no output of the model: it does not raise what may differ.
    ends, moved = (
        lambda near=near, **_: {"end_logits": near} for near in (torch.ones(2, 3), torch.zeros(2, 3))
    )
    found = onnx_parity.measure_parity(ends, moved, [batch], ("end_logits",), tolerance=0.2)
    assert (found.max_difference, found.largest_output, found.holds) == (1.0, 1.0, False)
    broken = Fixed([[[float("nan")] * 2] * 3] * 2)
    assert not onnx_parity.measure_parity(one, broken, [batch], ("logits",), tolerance=1.0).holds


def test_loading_an_export_that_is_damaged(classifier, traced, tmp_path):
    export_onnx(str(classifier), tmp_path / "out")
    model, _, inputs = load_exported(tmp_path / "out")
    assert inputs == INPUTS and model.config.id2label[2] == "blue"
    (tmp_path / "out" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"model.onnx could not be loaded .*: export the model again"):
        load_exported(tmp_path / "out")
    (tmp_path / "out" / "task.json").unlink()
    with pytest.raises(UserError, match="not tuned for a task"):
        load_exported(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 17}, "opset 17 is not supported: expected 18 to 23"),
        ({"precision": "int3"}, "unknown precision 'int3'"),
        ({"engine": "tflite"}, "unknown engine 'tflite': expected onnx or openvino"),
        (
            {"engine": "openvino", "precision": "int4"},
            "unknown precision 'int4' for openvino: expected one of fp32, int8",
        ),
        (
            {"precision": "int8", "calibration": ["a text"]},
            "--calibration is for --engine openvino --quantize int8",
        ),
        ({"head": "masked-lm"}, "no head for masked-lm: it is a MiniAlbertForSequenceClassification"),
        ({"head": "translation"}, "unknown head 'translation'"),
        ({"num_iterations": 0}, "num_iterations must be at least 1, got 0"),
        ({"max_drop": -1.0}, "max_drop is in points"),
        ({"tolerance": 0.0}, "tolerance is a share"),
    ],
)
def test_mistakes_are_told_in_one_line(options, message, classifier, traced, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        export_onnx(str(classifier), tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_calibration_file_offers_no_option_of_another_verb(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "a.txt").write_text("a text")
    with pytest.raises(UserError, match="--calibration is for --engine openvino"):
        minialbert.export("model", tmp_path / "out", calibration=tmp_path / "a.txt")
    assert caplog.messages == ["text files are read as one text a line"]


def test_what_is_in_the_way(classifier, traced, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        export_onnx(str(classifier), tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(UserError, match="holds no export: give another --output"):
        export_onnx(str(classifier), tmp_path / "mine", overwrite=True)
    export_onnx(str(classifier), tmp_path / "out")
    with pytest.raises(UserError, match="give --overwrite"):
        export_onnx(str(classifier), tmp_path / "out")
    for name in ("modules.json", "config_onnx.json", "mine.txt"):  # an earlier export was a sentence encoder
        (tmp_path / "out" / name).write_text("{}")
    export_onnx(str(classifier), tmp_path / "out", overwrite=True)
    assert {"modules.json", "config_onnx.json", "mine.txt"} & {
        file.name for file in (tmp_path / "out").iterdir()
    } == {"mine.txt"}
    with pytest.raises(UserError, match="would replace what is read"):
        export_onnx(str(tmp_path / "out"), tmp_path / "out", overwrite=True)
    with pytest.raises(UserError, match="cannot be written"):
        export_onnx(str(classifier), tmp_path / "file" / "out")


def test_calibration_texts_are_one_by_one_and_limited(classifier, tiny_tokenizer):
    model = MiniAlbertForSequenceClassification.from_pretrained(classifier)
    texts = ["the cat", " ", "the dog sat in the big red house the dog sat in the big red house"] * 5
    batches = calibration_batches(model, tiny_tokenizer, texts, max_length=9, limit=4)
    assert len(batches) == 4
    assert [batch["input_ids"].shape[1] for batch in batches][1::2] == [9, 9]
    assert all(batch["attention_mask"].all() for batch in batches)


def test_the_command_line(classifier, traced, tmp_path):
    runner = CliRunner()
    arguments = ["export", "--model", str(classifier), "--output", str(tmp_path / "out")]
    result = runner.invoke(app, [*arguments, "--quantize", "int8", "--tolerance", "0.5"])
    assert result.exit_code == 0, result.output
    assert "sequence-classification, int8, 2 iterations" in result.output
    assert "parity: largest difference" in result.output and "argmax agreement" in result.output
    for more, message in (
        (["--max-drop", "1"], "--max-drop: only with --task"),
        (["--push"], "--push: no option of --to onnx"),
        (["--to", "hub", "--quantize", "int8"], "--quantize: no option of --to hub"),
        (["--to", "web", "--engine", "openvino"], "--engine: no option of --to web"),
        (["--engine", "openvino", "--quantize", "int4"], "unknown precision 'int4' for openvino"),
    ):
        result = runner.invoke(app, [*arguments, "--overwrite", *more])
        assert isinstance(result.exception, UserError) and message in str(result.exception)


def test_the_command_line_says_nothing_that_is_not_ours(classifier, tmp_path):
    words = ["export", "--model", str(classifier), "--output", str(tmp_path / "out"), "--quantize", "int8"]
    done = subprocess.run(
        [sys.executable, "-m", "minialbert", *words], capture_output=True, text=True, check=True, timeout=240
    )
    assert done.stderr == ""
    assert [line.split()[0] for line in done.stdout.splitlines()][1:] == ["parity:", "error", "folder:"]
