"""Vectors of texts: PyTorch against pooling by hand, the exported folder against PyTorch, and files of vectors."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import torch
from minialbert_runtime.model import Model
from minialbert_runtime.reading import line
from transformers import AutoModel, AutoTokenizer

import minialbert
from minialbert.errors import UserError
from minialbert.method.sentence_vectors import Dense, Pooling, write_pooling
from minialbert.tasks.exported import OnnxEncoder

TEXTS = ["the cat sat on the mat", "a dog", "the big red house is old and the small tree is new"]
LONG = "the cat sat on the mat and a dog ran in the sun " * 6


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture(scope="module")
def encoder(tiny_student_dir, tmp_path_factory):
    """A sentence encoder of 8 dimensions that reads 24 tokens at once, with a tokenizer of no class of its own."""
    folder = tmp_path_factory.mktemp("encoder") / "model"
    shutil.copytree(tiny_student_dir, folder)
    torch.manual_seed(0)
    pooling = Pooling("mean", (Dense(torch.randn(8, 32)),), prompts={"query": "the sun : "})
    write_pooling(folder, pooling, width=32, max_tokens=24)
    settings = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["[MASK]"]}
    change(folder / "tokenizer_config.json", **settings)
    return folder


@pytest.fixture(scope="module")
def exported(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "graph"
    minialbert.export(encoder, folder, head="features")
    return folder


def test_vectors_are_those_of_the_model_pooled_by_hand(encoder):
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    torch.manual_seed(0)
    weight = torch.randn(8, 32)
    vectors = minialbert.embed(str(encoder), TEXTS, precision="fp32")
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        by_hand = torch.nn.functional.normalize(weight @ states.mean(0), dim=0)
        np.testing.assert_allclose(vector, by_hand, atol=1e-6)


def test_a_text_has_the_same_vector_to_the_bit_alone_and_in_a_batch(exported):
    texts = [
        "the cat sat on the mat and ran",
        "a dog ran in the big red house",
        "it is the small tree of a cat",
    ]
    model = Model(exported, batch_size=1)
    alone = np.concatenate([model.embed(text) for text in texts])
    assert np.array_equal(Model(exported, batch_size=3).embed(texts), alone)


@pytest.mark.parametrize("texts", [pandas.DataFrame({"text": TEXTS}), {"text": TEXTS}, None, b"a dog"])
def test_what_is_no_list_of_texts_is_refused(encoder, exported, texts):
    for model in (encoder, exported):
        with pytest.raises(UserError, match=f"expected a list of texts, found {type(texts).__name__}"):
            minialbert.embed(str(model), texts)


def test_the_exported_folder_gives_the_same_vectors_without_torch(encoder, exported):
    ours = minialbert.embed(str(encoder), [*TEXTS, LONG], precision="fp32")
    np.testing.assert_allclose(minialbert.embed(str(exported), [*TEXTS, LONG]), ours, atol=1e-5)
    np.testing.assert_allclose(Model(exported).embed(TEXTS), ours[:3], atol=1e-5)
    record = json.loads((exported / "result.json").read_text())
    assert record["parity"]["lowest_cosine"] > 0.9999


class OrtModel(OnnxEncoder):
    """What sentence-transformers takes of optimum-onnx, which needs an earlier Transformers than this package."""

    _save_pretrained = None

    @classmethod
    def from_pretrained(cls, folder, config, export, **given):
        assert not export
        assert not given["trust_remote_code"]
        return cls(Path(folder) / "model.onnx", config)

    def forward(self, *, return_dict, **batch):
        assert return_dict
        return super().forward(**batch)


@pytest.fixture
def optimum(monkeypatch):
    module = ModuleType("optimum.onnxruntime")
    module.ONNX_WEIGHTS_NAME = "model.onnx"
    for task in ("CausalLM", "FeatureExtraction", "MaskedLM", "SequenceClassification"):
        setattr(module, f"ORTModelFor{task}", OrtModel)
    monkeypatch.setitem(sys.modules, "optimum", ModuleType("optimum"))
    monkeypatch.setitem(sys.modules, "optimum.onnxruntime", module)


def test_sentence_transformers_runs_the_graph_without_this_package(exported, optimum, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = tmp_path / "graph"
    shutil.copytree(exported, folder)
    change(folder / "config.json", model_type="unheard-of")  # as ours is to Transformers alone
    encoder = sentence_transformers.SentenceTransformer(str(folder), backend="onnx", device="cpu")
    ours = Model(exported).embed(TEXTS)
    np.testing.assert_allclose(encoder.encode(TEXTS), ours, atol=1e-6)
    asked = encoder.encode(TEXTS[:2], prompt_name="query")
    np.testing.assert_allclose(asked, Model(exported).embed(TEXTS[:2], prompt="the sun : "), atol=1e-6)
    assert encoder.max_seq_length == 24
    config = encoder[0].model.config
    assert (config.model_type, config.hidden_size, config.max_position_embeddings) == ("bert", 32, 64)


def test_the_tokenizers_settings_have_the_names_of_transformers_4(encoder, exported):
    settings = json.loads((exported / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["[MASK]"]
    assert "extra_special_tokens" not in settings
    again, before = (AutoTokenizer.from_pretrained(folder) for folder in (exported, encoder))
    assert type(again) is type(before)
    assert again.all_special_ids == before.all_special_ids
    assert again([*TEXTS, "the [MASK]"]) == before([*TEXTS, "the [MASK]"])


def test_a_long_text_is_the_mean_of_its_windows_of_length_one(encoder):
    words = ("the small house is in a " * 11).split()  # each of them one token
    tokens = AutoTokenizer.from_pretrained(encoder)(" ".join(words), add_special_tokens=False)["input_ids"]
    assert len(tokens) == len(words) == 66  # three times what a window holds beside its two special tokens
    parts = [" ".join(words[at : at + 22]) for at in (0, 22, 44)]
    mean = minialbert.embed(str(encoder), parts, precision="fp32").mean(axis=0)
    (vector,) = minialbert.embed(str(encoder), " ".join(words), precision="fp32")
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_leading_dimensions_have_length_one(encoder):
    whole, two = (minialbert.embed(str(encoder), TEXTS, dim=dim, precision="fp32") for dim in (None, 2))
    np.testing.assert_allclose(
        two, whole[:, :2] / np.linalg.norm(whole[:, :2], axis=1, keepdims=True), atol=1e-6
    )
    with pytest.raises(UserError, match="expected from 1 to 8 dimensions, found 9"):
        minialbert.embed(str(encoder), TEXTS, dim=9)


@pytest.mark.parametrize("place", ["encoder", "exported"])
def test_a_prompt_by_name_or_as_it_is(place, request):
    folder = str(request.getfixturevalue(place))
    by_name = minialbert.embed(folder, TEXTS, prompt="query")
    np.testing.assert_array_equal(by_name, minialbert.embed(folder, TEXTS, prompt="the sun : "))
    np.testing.assert_allclose(
        by_name, minialbert.embed(folder, [f"the sun : {text}" for text in TEXTS]), atol=1e-6
    )
    with pytest.raises(UserError, match=r"the model has no prompt 'passage' \(it has query\)"):
        minialbert.embed(folder, TEXTS, prompt="passage")


def test_vectors_have_length_one_where_it_is_asked_for(tiny_student_dir, exported, call, tmp_path):
    plain = str(tiny_student_dir)  # no modules: the mean of its tokens, as it is
    given, brought = (
        minialbert.embed(plain, TEXTS, normalize=asked, precision="fp32") for asked in (False, True)
    )
    lengths = np.linalg.norm(given, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.01
    np.testing.assert_allclose(brought, given / lengths, atol=1e-6)
    file = tmp_path / "v.npy"
    assert call("embed", "--model", plain, "--output", file, "--normalize", *TEXTS)[0] == 0
    np.testing.assert_allclose(np.linalg.norm(np.load(file), axis=1), 1, atol=1e-6)
    assert np.array_equal(Model(exported).embed(TEXTS), Model(exported).embed(TEXTS, normalize=False))
    np.testing.assert_allclose(np.linalg.norm(Model(exported).embed(TEXTS), axis=1), 1, atol=1e-6)


def test_no_text_has_no_vector(encoder):
    assert minialbert.embed(str(encoder), []).shape == (0, 8)


@pytest.mark.parametrize(
    ("texts", "message"), [([1], "text 1: expected a text"), ([("a", "b")], "found a pair")]
)
def test_what_is_no_text_is_refused(texts, message, encoder):
    with pytest.raises(UserError, match=message):
        minialbert.embed(str(encoder), texts)


def test_a_model_that_labels_texts_gives_no_vectors(tuned, tmp_path):
    minialbert.export(tuned("classification").model, tmp_path / "graph")
    with pytest.raises(UserError, match="a single-label model gives no vectors: give a sentence encoder"):
        minialbert.embed(str(tmp_path / "graph"), TEXTS)


def test_predict_points_to_embed_and_a_terminal_sees_the_size(exported, refuse):
    assert "minialbert embed gives its vectors" in refuse("predict", "--model", exported, "a text")
    (result,) = Model(exported).predict(["a small house"])
    assert "".join(part for part, _ in line(result)) == "[8 dimensions] a small house"


def test_files_of_vectors(encoder, call, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    expected = minialbert.embed(str(encoder), TEXTS)
    for name in ("v.npy", "v.parquet", "v.jsonl"):
        code, told, _ = call(
            "embed", "--model", encoder, "--input", tmp_path / "texts.txt", "--output", tmp_path / name
        )
        assert (code, "3 vectors of 8 dimensions" in told) == (0, True)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)
    table = pq.read_table(tmp_path / "v.parquet").to_pydict()
    assert table["text"] == TEXTS
    np.testing.assert_allclose(table["vector"], expected, atol=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    np.testing.assert_allclose([line["vector"] for line in lines], expected, atol=1e-5)


def test_a_file_that_cannot_hold_them_is_refused_first(encoder, refuse, tmp_path):
    message = refuse("embed", "--model", encoder, "a text", "--output", tmp_path / "v.csv")
    assert "vectors go into a file that ends with .npy, .parquet, .jsonl" in message
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n')
    given = ("--input", tmp_path / "t.jsonl", "--output", tmp_path / "t.jsonl", "--overwrite")
    assert "would replace what is read" in refuse("embed", "--model", encoder, *given)
    (tmp_path / "v.npy").write_bytes(b"old")
    assert "--overwrite" in refuse("embed", "--model", encoder, "a text", "--output", tmp_path / "v.npy")
