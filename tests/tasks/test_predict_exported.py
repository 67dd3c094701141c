"""Exported folders: the torch-free runtime says what `Predictor` says of the same model, and cuts texts alike."""

import copy
import json
import os
import shutil
import subprocess
import sys
import tomllib
import warnings
from dataclasses import asdict
from itertools import repeat
from pathlib import Path

import minialbert_runtime
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from minialbert_runtime import Model
from minialbert_runtime.folder import is_exported
from minialbert_runtime.windows import Cutter
from minialbert_runtime.words import WordRule
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from minialbert import MiniAlbertForSequenceClassification, MiniAlbertForTokenClassification
from minialbert.data.examples import Task
from minialbert.data.task_inputs import Encoded, make_cutter
from minialbert.errors import MissingExtraError, UserError
from minialbert.tasks.calibrate import calibrate
from minialbert.tasks.exported import load_exported
from minialbert.tasks.finetune import tuning_recipe
from minialbert.tasks.models import TaskInputs, save_tuned
from minialbert.tasks.predict import Predictor, load_predictor
from minialbert.tasks.predictions import make_collator, run_model
from minialbert.tasks.unlabelled import teach

DATA = Path(__file__).parents[1] / "fixtures"
ROOT = Path(__file__).parents[2]
TAGS = ("O", "B-City", "I-City", "B-King", "I-King")
CLASSES = ("a", "b", "c")
LONG = " ".join(["the city king house river all was language x 1"] * 7) + " teachers, 1984"
TEXTS = [
    "the king was in the city, at 1984",
    "",
    " \t\n",
    "x",
    LONG,
    "\U0001f600 the ki\u0301ng\u4e2d\u6587 river\u2028house\u200b \U0001f468\u200d\U0001f469\u200d\U0001f467 city. "
    + LONG[:60],
    "[SEP] the [MASK] river [CLS]",
    LONG[: len(LONG) // 2],
    "déjà vu\x00: Ångström's “language” naïve\x85all \u0e01\u0e33 x",
]
PAIRS = [
    ("the king", "was in the city"),
    ("", ""),
    ("x", ""),
    ("the city", LONG),
    (LONG, LONG + " x"),
    (LONG, "king"),
]


class _Logits(nn.Module):
    """A model as the graph of an exported folder: three inputs by name, logits as the first output."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).logits


def export(model, file):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50, (2, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    names = ("input_ids", "attention_mask", "token_type_ids")
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=64)}
    with warnings.catch_warnings():
        # torch's exporter: a deprecation of its own, and axes of three inputs that share a name on purpose.
        warnings.filterwarnings(
            "ignore", message="`isinstance\\(treespec, LeafSpec\\)`", category=FutureWarning
        )
        warnings.filterwarnings(
            "ignore", message="# The axis name: .* will not be used", category=UserWarning
        )
        program = torch.onnx.export(
            _Logits(model).eval(), (ids, mask, torch.zeros_like(ids)), input_names=names, output_names=["logits"],
            dynamic_shapes=(axes,) * 3, dynamo=True, verbose=False,
        )  # fmt: skip
    program.save(str(file))


def build(model_class, labels, problem_type=None):
    """Random weights, so large that texts get different logits."""
    from minialbert import MiniAlbertConfig

    config = MiniAlbertConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(DATA / "tiny-tokenizer")),
        embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, adapter_reduction_factor=8, initializer_range=0.3,
        id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)},
        problem_type=problem_type,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = model_class(config)
    return model.eval()


@pytest.fixture(scope="session")
def both(tiny_tokenizer, tmp_path_factory):
    """Return, for a problem, the directory of a model and the folder with its export; each is made once."""
    graphs, made = {}, {}

    def make(problem, max_length=64, overlap=8):
        key = (problem, max_length)
        if key in made:
            return made[key]
        folder = tmp_path_factory.mktemp(problem)
        inputs = TaskInputs("test", problem, "accuracy", max_length, overlap)
        labels = {"token": TAGS, "regression": ("score",)}.get(problem, CLASSES)
        token = problem == "token"
        model = build(
            MiniAlbertForTokenClassification if token else MiniAlbertForSequenceClassification, labels
        )
        if token:  # so that most texts have words inside and outside of entities
            with torch.no_grad():
                logits = model(**tiny_tokenizer(LONG[:150], return_tensors="pt")).logits[0]
                model.classifier.bias -= logits.mean(0)
                model.classifier.bias[0] += logits.std()
        save_tuned(model, tiny_tokenizer, inputs, folder / "model")
        exported = folder / "exported"
        exported.mkdir()
        if labels not in graphs:  # single-label and multi-label are one network
            graphs[labels] = exported / "model.onnx"
            export(model, graphs[labels])
        else:
            (exported / "model.onnx").write_bytes(graphs[labels].read_bytes())
        copy.deepcopy(tiny_tokenizer).save_pretrained(exported)
        model.config.save_pretrained(exported)
        (exported / "task.json").write_text(json.dumps(asdict(inputs)))
        head = "token-classification" if token else "sequence-classification"
        record = {"format_version": 1, "head": head, "precision": "fp32", "opset": 18, "iterations": 2}
        (exported / "export.json").write_text(json.dumps(record))
        made[key] = str(folder / "model"), str(exported)
        return made[key]

    return make


def close(left, right, tolerance=1e-4):
    """Equal, but for floats within a tolerance; dictionaries in the same order of their keys."""
    if isinstance(left, dict):
        return list(left) == list(right) and all(close(left[key], right[key], tolerance) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(close, left, right, repeat(tolerance)))
    return abs(left - right) <= tolerance if isinstance(left, float) else left == right


# The same results


@pytest.mark.parametrize("max_length", [64, 16])
@pytest.mark.parametrize("problem", ["single-label", "multi-label", "regression"])
def test_classes_are_those_of_the_model(both, problem, max_length):
    model, exported = both(problem, max_length)
    texts = TEXTS + PAIRS
    expected = list(Predictor.load(model, batch_size=4).predict(texts))
    found = list(load_predictor(exported, batch_size=4).predict(texts))
    assert close(found, expected)
    assert max(result.get("windows", 1) for result in found) > 1
    if problem == "regression":
        assert len({round(result["score"], 3) for result in found}) > 8
        # A prediction moves when it is made of the first window alone.
        short, long = (abs(found[4]["score"] - found[index]["score"]) for index in (4, 7))
        assert short == 0 and long > 1e-3


@pytest.mark.parametrize("max_length", [64, 16])
def test_entities_are_those_of_the_model(both, max_length):
    model, exported = both("token", max_length)
    expected = list(Predictor.load(model).predict(TEXTS))
    found = list(load_predictor(exported).predict(TEXTS))
    assert close(found, expected)
    assert sum(len(result["entities"]) for result in found) > 10
    assert len(found[5]["entities"]) > 1
    assert found[5]["entities"][-1]["start"] > TEXTS[5].index("city")
    for result in found:
        for entity in result["entities"]:
            assert entity["text"] == result["text"][entity["start"] : entity["end"]]


@pytest.mark.parametrize("problem", ["token", "single-label", "regression"])
def test_rules_of_words_and_of_long_texts_are_those_of_the_model(both, tmp_path, problem):
    rule = {"joined": ["w|-w", "w-|w", "w|,$"], "cut": [], "whole": ["river king"]}
    changes = {"words": rule} if problem == "token" else {"long_texts": "cut"}
    texts = ["the city-king, the river-house x-1, and city", LONG] if problem == "token" else [*TEXTS, *PAIRS]
    results, before = [], []
    for source, load in zip(both(problem, 16), (Predictor.load, load_predictor), strict=True):
        before.append(list(load(source).predict(texts)))
        folder = shutil.copytree(source, tmp_path / Path(source).name)
        (folder / "task.json").write_text(
            json.dumps(json.loads((folder / "task.json").read_text()) | changes)
        )
        results.append(list(load(str(folder)).predict(texts)))
    assert close(results[1], results[0])
    assert results[0] != before[0]
    if problem != "token":
        assert {"windows" in result for result in results[0]} == {False}
        assert results[0][4]["cut"] > 50
        assert results[0][0] == before[0][0]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9, 1.0])
def test_threshold_is_that_of_the_model(both, threshold):
    model, exported = both("multi-label")
    expected = Predictor.load(model, threshold=threshold).predict(TEXTS)
    assert close(list(load_predictor(exported, threshold=threshold).predict(TEXTS)), list(expected))


def test_command_answers_without_torch(both):
    _, exported = both("token")
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'minialbert'): sys.modules[name] = None\n"
        "from minialbert_runtime.cli import main\n"
        "main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(minialbert_runtime.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program, exported, *TEXTS[3:6]],
        env=environment, capture_output=True, encoding="utf-8", timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert close(found, list(load_predictor(exported).predict(TEXTS[3:6])))


# The same cuts


def trained(model, trainer, rule, specials, template):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = rule
    tokenizer.train_from_iterator([LONG, *TEXTS], trainer)
    if template is not None:
        tokenizer.post_processor = template(tokenizer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "token_type_ids"], **specials
    )


def _wordpiece():
    return AutoTokenizer.from_pretrained(DATA / "tiny-tokenizer")


def _byte_level():
    """As RoBERTa's: four special tokens around a pair, and a space in front of each word."""
    specials = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=list(specials.values()), show_progress=False
    )
    return trained(
        models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=True), specials,
        lambda tokenizer: processors.RobertaProcessing(
            ("</s>", tokenizer.token_to_id("</s>")), ("<s>", tokenizer.token_to_id("<s>"))
        ),
    )  # fmt: skip


def _bare():
    """No special tokens at all, and an unknown token for what it has not seen."""
    specials = {"pad_token": "<pad>", "unk_token": "<unk>"}
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<unk>", "<pad>"], unk_token="<unk>", show_progress=False
    )
    return trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(), specials, None)


def test_an_exported_folder_teaches_what_its_model_does(both, tmp_path):
    folder, exported = both("token")
    own, said = load_predictor(exported), {}
    for name, teacher in {"model": folder, "exported": exported, "loaded": own}.items():
        recipe = tuning_recipe(None, teacher=str(folder), unlabelled=["texts"])
        options = {"progress": False, "max_hours": None}
        said[name] = teach(
            recipe, teacher, [[LONG, *TEXTS, "the king of a city"]], None, tmp_path / name, **options
        )
    assert "logits" not in own("the king of a city")  # a caller's own stays as it is
    assert said["exported"].identity == said["loaded"].identity != said["model"].identity
    assert said["exported"].task.splits == said["model"].task.splits
    for text, (words, logits) in said["model"].soft.items():
        assert words == said["exported"].soft[text][0]
        assert np.allclose(logits, said["exported"].soft[text][1], atol=5e-3)


@pytest.fixture(scope="module", params=[_wordpiece, _byte_level, _bare])
def tokenizer(request):
    return request.param()


def cutter(tokenizer, max_length, overlap):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return Cutter(
        backend,
        max_length=max_length,
        overlap=overlap,
        pad_token_id=tokenizer.pad_token_id,
        unknown_token_id=tokenizer.unk_token_id,
    )


plain = st.text(max_size=80) | st.text("ab1 .\n\u0301\u4e2d\U0001f600\x00\u200b", max_size=80)
spelled = st.lists(st.sampled_from([*LONG.split(), "[SEP]", "</s>", "é"]), max_size=60).map(" ".join)
texts = plain | spelled


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    given_texts=st.lists(texts | st.tuples(texts, texts), max_size=5),
    max_length=st.integers(8, 40),
    overlap=st.integers(0, 20),
)
def test_windows_of_texts_agree(tokenizer, given_texts, max_length, overlap):
    found = list(cutter(tokenizer, max_length, overlap).texts(given_texts))
    assert found == list(make_cutter(tokenizer, max_length=max_length, overlap=overlap).texts(given_texts))
    for text, part in zip(given_texts, found, strict=True):
        texts = text if isinstance(text, tuple) else (text,)
        whole = tokenizer(*([one] for one in texts), verbose=False)  # in lists: else an empty pair is none
        ids, types = whole["input_ids"][0], whole["token_type_ids"][0]
        if len(ids) <= max_length:
            (row,) = part.rows
            assert (row.input_ids, row.token_type_ids) == (ids or [tokenizer.pad_token_id], types or [0])
        else:
            contents = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
            assert sum(part.weights) == max(map(len, contents))
            assert sum(part.weights) + part.cut <= sum(map(len, contents))
            assert all(len(row.input_ids) <= max_length for row in part.rows)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(given_texts=st.lists(texts, max_size=4), max_length=st.integers(8, 40), overlap=st.integers(0, 20))
def test_windows_of_words_agree(tokenizer, given_texts, max_length, overlap):
    sentences = [[text[start:end] for start, end in WordRule().split(text)] for text in given_texts]
    found = list(cutter(tokenizer, max_length, overlap).words(sentences))
    assert found == list(make_cutter(tokenizer, max_length=max_length, overlap=overlap).words(sentences))
    room = max_length - tokenizer.num_special_tokens_to_add()
    for words, windows in zip(sentences, found, strict=True):
        pieces = [[] for _ in words]
        if words:
            whole = tokenizer(words, is_split_into_words=True, add_special_tokens=False, verbose=False)
            for piece, word in zip(whole["input_ids"], whole.word_ids(), strict=True):
                pieces[word].append(piece)
        expected = [piece for ids in pieces for piece in ids[:room] or [tokenizer.unk_token_id]]
        owned = [
            piece
            for window in windows
            for piece, word in zip(window.input_ids, window.words, strict=True)
            if word >= 0
        ]
        assert owned == expected
        assert [word for window in windows for word in window.first_pieces[1]] == list(range(len(words)))


@pytest.mark.parametrize(
    "changes",
    [{}, {"tokenizer_class": "TokenizersBackend"}, {"model_input_names": ["input_ids", "attention_mask"]}],
)
def test_token_types_are_fed_where_the_tokenizer_has_them(both, tmp_path, changes):
    model, exported = both("regression")
    for source in (model, exported):
        folder = shutil.copytree(source, tmp_path / Path(source).name)
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    expected = list(Predictor.load(str(tmp_path / "model")).predict(PAIRS))
    assert close(list(load_predictor(str(tmp_path / "exported")).predict(PAIRS)), expected)
    usual = list(load_predictor(exported).predict(PAIRS))
    assert close(expected, usual) is not bool(changes)


# Loading


@pytest.mark.parametrize(
    ("contract", "shapes"),
    [
        ({"precision": "int8"}, {(1, 15), (1, 4), (1, 3)}),  # the range of a run: texts alone
        ({"precision": "int8", "batches": "one length"}, {(17, 15), (8, 15), (25, 4), (25, 3)}),
        ({"precision": "fp32"}, {(17, 15), (32, 4), (9, 3)}),
    ],
)
@pytest.mark.parametrize("problem", ["single-label", "token"])
def test_evaluation_runs_texts_as_prediction_does(both, problem, contract, shapes, tmp_path, tiny_tokenizer):
    folder = shutil.copytree(both(problem)[1], tmp_path / "out")
    record = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps(record | contract))
    task = Task("t", problem, CLASSES, "", {})
    rows = [{"input_ids": ids} for ids in tiny_tokenizer(["the king", LONG[:60], "x"])["input_ids"]] * 25
    encoded, collator = Encoded(rows, [0] * 75), make_collator(task, tiny_tokenizer)
    model, taken = load_exported(folder)[0], []
    run = model.runtime._run
    model.runtime._run = lambda rows, session: (
        taken.append((len(rows), max(len(row.input_ids) for row in rows))) or run(rows, session)
    )
    for depth in ({"num_iterations": 1}, {"exit_threshold": 0.5}):
        with pytest.raises(UserError, match="cannot be chosen any more in an exported folder"):
            run_model(model, encoded, collator, **depth)
    with pytest.raises(UserError, match="exit_threshold cannot be chosen any more"):
        calibrate(str(folder), [("the king", "a")], dry_run=True, progress=False)
    found = run_model(model, encoded, collator)
    assert set(taken) == shapes
    for one, row in zip(found, rows, strict=True):
        alone = run_model(model, Encoded([row], [0]), collator)[0]
        assert np.array_equal(one, alone) if "batches" in contract else np.allclose(one, alone, atol=1e-4)


def test_folder_is_told_from_model(both):
    model, exported = both("single-label")
    assert (is_exported(model), is_exported(exported), is_exported("no/such")) == (False, True, False)
    assert isinstance(load_predictor(model, precision="fp32"), Predictor)
    predictor = load_predictor(exported, num_iterations=None)
    assert isinstance(predictor, Model)
    assert predictor.labels == CLASSES


def test_what_the_export_settled_cannot_be_chosen(both):
    _, exported = both("single-label")
    with pytest.raises(UserError, match="in which num iterations and precision cannot be chosen"):
        load_predictor(exported, num_iterations=2, precision="bf16")


def test_mistakes_are_user_errors(both, tmp_path):
    _, exported = both("token")
    (tmp_path / "export.json").write_text('{"format_version": 1, "head": "features"}')
    with pytest.raises(UserError, match="has no task, so it does not label text: `minialbert finetune"):
        load_predictor(str(tmp_path))
    with pytest.raises(UserError, match="batch size of at least 1"):
        load_predictor(exported, batch_size=0)
    with pytest.raises(UserError, match="text 2: found a pair"):
        list(load_predictor(exported).predict(["x", ("a", "b")]))
    with pytest.raises(UserError, match=r"give \[text\]"):
        load_predictor(exported).predict("x")


def test_missing_runtime_is_named(both, monkeypatch):
    _, exported = both("token")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in ("model", "session"):
        monkeypatch.delitem(sys.modules, f"minialbert_runtime.{name}")
    with pytest.raises(MissingExtraError, match=r"folder needs onnxruntime: pip install .*\[export\]'"):
        load_predictor(exported)


def _version(bound):
    return tuple(int(part) for part in bound.split(",")[0].split("."))


def test_library_brings_the_runtime_along():
    library, runtime = (
        tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))
        for folder in (".", "runtime")
    )
    assert library["project"]["version"] == runtime["project"]["version"] == minialbert_runtime.__version__
    assert "runtime/minialbert_runtime" in library["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    bounds, own = (
        dict(name.split(">=") for name in project["project"]["dependencies"] if name.count(">=") == 1)
        for project in (runtime, library)
    )
    onnx = f"onnxruntime>={bounds.pop('onnxruntime')}"
    assert onnx in library["project"]["optional-dependencies"]["export"]
    assert all(_version(own[name]) >= _version(bound) for name, bound in bounds.items())
    assert library["project"]["scripts"].items() >= runtime["project"]["scripts"].items()


def test_model_of_the_runtime_takes_one_text(both):
    _, exported = both("single-label")
    (expected,) = load_predictor(exported).predict([PAIRS[0]])
    assert Model(exported)(*PAIRS[0]) == expected
