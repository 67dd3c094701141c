"""The folder for browsers and Node: JavaScript's answers beside the Python runtime's, offline, and what is refused."""

from __future__ import annotations

import functools
import http.server
import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from minialbert_runtime import Model
from minialbert_runtime.answers import Decision, TextModel
from minialbert_runtime.session import open_session
from minialbert_runtime.windows import Cutter
from minialbert_runtime.words import WordRule, likeliest_path
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

import minialbert
from minialbert import MiniAlbertConfig, MiniAlbertForSequenceClassification, MiniAlbertForTokenClassification
from minialbert.deploy import web
from minialbert.deploy.onnx.int8 import quantize_int8
from minialbert.errors import UserError
from minialbert.method.sentence_vectors import Pooling, write_pooling
from minialbert.tasks.models import TaskInputs, save_tuned

NODE = shutil.which("node")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_node = pytest.mark.skipif(NODE is None, reason="needs node on the PATH")
ROOT = Path(__file__).parents[2]
TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tiny-tokenizer" / "tokenizer.json"
TAGS = ("O", "B-City", "I-City", "B-King", "I-King")
RULE = WordRule(joined=("w|-w", "w-|w", "w|,$"), whole=("river king", "city\u00e9"))
SCRIPTS = (
    (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x52F), (0x590, 0x6FF), (0x900, 0x97F),
    (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xF900, 0xFFFF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0x20000, 0x2FA1F),
    (0x0, 0x9F),
)  # fmt: skip
WORDS = """
    the city king house river all was language x 1 beta-king naïve king's ΣΑΣ ΌΣΟΣ İI straße don’t 3.5% U.S.A. 患者 再診
    𠀀𠀁 โรงพยาบาล مرحبا שלום नमस्ते 한국어 ひらがな 👍🏽 [SEP] [MASK] _ ① ½ ٣ 𝒜𝓑 Ⅷ ﬁ
""".split()  # noqa: SIM905 - so many
WORDS += [
    "👨\u200d👩\u200d👧", "e\u0301", "\u200b\u200d", "\ufeff", "co\u00adop", "\r\n", " \n", "\t", "\u2028", "\u0085",
    "\u3000", "\x00", "\ufffd",
]  # fmt: skip
FIXED = [
    "",
    " ",
    "\r\n",
    "\u200b",
    "\u0301",
    "👍",
    "x" * 120,
    "the river " * 300,
    "中" * 200,
    "a\r\nb\r\n",
    "city\u00e9 x",
]


def texts(count: int) -> list[str]:
    """Return texts of all scripts."""
    chance = random.Random(0)

    def mixed() -> str:
        return "".join(chr(chance.randint(*chance.choice(SCRIPTS))) for _ in range(chance.randint(1, 60)))

    def of_words() -> str:
        ends = ("", " ", " ", "-", ", ", "\r\n")
        return "".join(chance.choice(WORDS) + chance.choice(ends) for _ in range(chance.randint(1, 90)))

    return FIXED + [mixed() if number % 3 == 0 else of_words() for number in range(count - len(FIXED))]


def node(program: str, *values: object) -> object:
    """Return what a module prints as JSON; it reads `given`."""
    head = 'import { readFileSync } from "node:fs"; const given = JSON.parse(readFileSync(0, "utf8"));\n'
    done = subprocess.run(
        [str(NODE), "--input-type=module", "--eval", head + program],
        input=json.dumps(values), capture_output=True, encoding="utf-8", timeout=600,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def in_utf16(text: str, at: int) -> int:
    return len(text[:at].encode("utf-16-le")) // 2


def differences(found: list[dict], expected: list[dict]) -> float:
    """Return the largest difference of numbers, after all else was found to be the same."""
    most = 0.0
    for one, other in zip(found, expected, strict=True):
        for entity in other.get("entities", ()):
            entity |= {name: in_utf16(other["text"], entity[name]) for name in ("start", "end")}
        most = max(most, difference(one, other))
    return most


def difference(one: object, other: object) -> float:
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        return max((difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other), (one, other)
        return max(map(difference, one, other), default=0.0)
    if isinstance(other, float):
        return abs(one - other)
    assert one == other
    return 0.0


# Without packages of npm's: the tables, and words, windows and answers on logits of a formula


def values(table: dict) -> list[str]:
    """Return a table's value of every character."""
    ends = [*itertools.accumulate(table["steps"]), 0x110000]
    runs = zip(table["values"], itertools.pairwise(ends), strict=True)
    return [table["names"][name] for name, (start, end) in runs for _ in range(start, min(end, 0x31000))]


@pytest.mark.parametrize("lowercase", [True, False])
def test_tables_of_characters_are_those_of_the_tokenizer(lowercase):
    normalizer, decomposed = normalizers.BertNormalizer(lowercase=lowercase), normalizers.NFD()
    forms, borders = values(web._normal_forms(normalizer)), values(web._borders())
    cuts = {" ": "\n", "mark": "\n{}\n", "inside": "{}"}
    for text in ["☃", *texts(120)]:
        normal = "".join(
            decomposed.normalize_str(one) if forms[ord(one)] == "\1" else forms[ord(one)].replace("\0", one)
            for one in text
        )
        assert normal == normalizer.normalize_str(text)
        pieces = "".join(cuts[borders[ord(one)]].format(one) for one in normal).split("\n")
        expected = [piece for piece, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normal)]
        assert [piece for piece in pieces if piece] == expected


class Formula(TextModel):
    """Logits that are a function of the ids."""

    def __init__(self, cutter: Cutter, problem: str, labels: tuple[str, ...], **options: object) -> None:
        super().__init__(problem, labels, words=RULE, **options)
        self.cutter = cutter

    def _cutter(self):
        return self.cutter

    def _logits(self, rows):
        size, found = len(self.labels), []
        for row in rows:
            by_token = [[4 * math.sin(token * (at + 2)) for at in range(size)] for token in row.input_ids]
            found.append(
                np.array(
                    by_token if self.tagging else [sum(at) for at in zip(*by_token, strict=True)], np.float32
                )
            )
        return found


PROGRAM = """
const { Model } = await import(given[0]);
const answers = [];
for (const [facts, options, encoded, texts] of given[1]) {
  const encode = (text) => [...encoded[text]];
  const run = async ({ ids }) => {
    const byToken = ids.map((id) => facts.labels.map((_, at) => 4 * Math.sin(id * (at + 2))));
    if (facts.problem === "token") return Float32Array.from(byToken.flat());
    return Float32Array.from(facts.labels, (_, at) => byToken.reduce((sum, row) => sum + row[at], 0));
  };
  const model = new Model(facts, encode, run, options);
  const found = [];
  for (const text of texts) found.push(await model.predict(...[text].flat()));
  answers.push(found);
}
console.log(JSON.stringify(answers));
"""


@needs_node
def test_words_windows_and_answers_are_those_of_the_runtime():
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    given, expected = [], []
    singles = texts(120)
    pairs = [[one, other] for one, other in zip(singles[::2], singles[1::2], strict=False)]
    cases = [
        ("token", TAGS, {}, singles, "windows"), ("token", TAGS, {"threshold": 0.9}, singles[:40], "windows"),
        ("single-label", ("a", "b", "c"), {"threshold": 0.8, "top_k": 2}, singles, "windows"),
        ("multi-label", ("a", "b", "c"), {"threshold": 0.3}, pairs, "windows"),
        ("regression", ("score",), {}, singles[:40], "cut"), ("embedding", tuple("0123"), {}, singles[:40], "windows"),
        ("token", TAGS, {"decision": Decision(1.7, {"City": 0.9, "King": 0.2})}, singles, "windows"),
        ("token", TAGS, {"decision": Decision(decoding="viterbi")}, singles, "windows"),
        ("token", TAGS, {"decision": Decision(1.7, {"City": 0.9}, "viterbi")}, singles, "windows"),
        ("single-label", ("a", "b", "c"), {"decision": Decision(9.0, {"a": 0.8, "c": 0.1})}, singles, "windows"),
        ("multi-label", ("a", "b", "c"), {"decision": Decision(2.0, {"b": 0.99})}, singles[:40], "windows"),
    ]  # fmt: skip
    for problem, labels, options, some, long_texts in cases:
        cutter = Cutter(
            tokenizer, max_length=24, overlap=7, pad_token_id=0, unknown_token_id=1, long_texts=long_texts
        )
        model = Formula(cutter, problem, labels, **options)
        expected.append(list(model.predict(some)))
        parts = {part for text in some for part in ([text] if isinstance(text, str) else text)}
        if problem == "token":
            parts = {text[start:end] for text in parts for start, end in RULE.split(text)}
        facts = {
            "problem": problem, "labels": labels, "pairs": None, "max_length": 24, "overlap": 7, "pad_token_id": 0,
            "unknown_token_id": 1, "token_types": True, "long_texts": long_texts, "max_characters": 10**6,
            "layouts": {"single": cutter.layout(paired=False), "pair": cutter.layout(paired=True)},
            "kinds": web._kinds(), "words": {"joined": RULE.joined, "cut": RULE.cut, "whole": RULE.whole},
        }  # fmt: skip
        over = model.decision.over(labels, tagging=model.tagging)
        facts |= {"temperature": model.decision.temperature, "over": None if over is None else over.tolist()}
        facts["decoding"] = model.decision.decoding
        options.pop("decision", None)
        own = {{"top_k": "topK"}.get(name, name): number for name, number in options.items()}
        encoded = {part: tokenizer.encode(part, add_special_tokens=False).ids for part in parts}
        given.append((facts, own, encoded, some))
    found = node(PROGRAM, (web._ASSETS / "minialbert.js").as_uri(), given)
    assert [round(differences(*pair), 4) for pair in zip(found, expected, strict=True)] == [0.0] * len(cases)
    assert sum(len(result["entities"]) for result in found[0]) > 500
    assert max(result.get("windows", 1) for result in found[2]) > 3
    assert any("cut" in result for result in found[4])
    assert found[7] != found[0] and found[8] != found[6]


@needs_node
def test_the_likeliest_path_is_that_of_the_runtime():
    rng, labels = np.random.default_rng(0), ("O", "B-A", "I-A", "B-B", "I-B", "I-C")
    logits = [rng.normal(size=(words, len(labels))).astype(np.float32) for words in range(40)]
    logits += [np.round(one) for one in logits]  # with ties
    program = """
    const { likeliestPath } = await import(given[0]);
    console.log(JSON.stringify(given[1].map((rows) => likeliestPath(rows, given[2]))));
    """
    found = node(program, (web._ASSETS / "minialbert.js").as_uri(), [one.tolist() for one in logits], labels)
    assert found == [likeliest_path(one, labels).tolist() for one in logits]
    assert found[30] != logits[30].argmax(axis=1).tolist()


@needs_node
def test_halves_of_surrogate_pairs_and_what_is_no_text_are_refused():
    program = """
    const { Model } = await import(given[0]);
    const texts = { pairs: false, max_characters: 9, layouts: {}, temperature: 1 };
    const facts = { problem: "regression", labels: ["score"], kinds: given[1], ...texts };
    const said = [];
    const model = new Model(facts, () => [], null);
    for (const given of [["\\ud800x"], [3], ["a", "b"], ["0123456789"]])
      await model.predict(...given).catch((error) => said.push(error.message));
    try { new Model(facts, () => [], null, { topK: 2 }); } catch (error) { said.push(error.message); }
    console.log(JSON.stringify(said));
    """
    said = node(program, (web._ASSETS / "minialbert.js").as_uri(), web._kinds())
    signs = ("surrogate pair", "found number", "found a pair", "more than 9 characters", "no use for topK")
    for message, sign in zip(said, signs, strict=True):
        assert sign in message


def test_javascript_stays_small():
    lines = [len(file.read_text(encoding="utf-8").splitlines()) for file in web._ASSETS.glob("*.js")]
    assert sum(lines) <= 600


def test_missing_packages_are_told_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"ort.wasm.min.mjs is missing: run npm install .*onnxruntime-web@"):
        minialbert.export(tmp_path / "model", tmp_path / "site", to="web", vendor=tmp_path)
    assert not (tmp_path / "site").exists()


def test_an_exported_folder_is_taken_as_it_is_or_exported_again(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "_checked_packages", lambda modules: {})
    monkeypatch.setattr(web, "_facts", lambda model: {})  # which take long
    folder = tmp_path / "exported"
    minialbert.export(build("token", tmp_path / "model", tiny_tokenizer), folder, opset=23, progress=False)
    with pytest.raises(UserError, match="has opset 23, .* give --quantize int8 .or int4. to export it again"):
        minialbert.export(folder, tmp_path / "site", to="web", progress=False)
    assert not (tmp_path / "site").exists()
    options = {"to": "web", "tolerance": 1.0, "progress": False}
    again = minialbert.export(folder, tmp_path / "site", quantize="int4", **options)
    assert (again.record["precision"], again.record["opset"]) == ("int4", 22)
    assert (again.path / "index.html").is_file()
    minialbert.export(again, tmp_path / "as-it-is", to="web", progress=False)
    files = [place / "model.onnx" for place in (again.path, tmp_path / "as-it-is")]
    assert files[0].read_bytes() == files[1].read_bytes()


# With packages: whole folders, in Node and in Chromium


@pytest.fixture(scope="module")
def vendor() -> Path:
    folder = Path(os.environ.get("MINIALBERT_NODE_MODULES", Path(__file__).parents[2] / "node_modules"))
    if not folder.is_dir():
        pytest.skip(
            f"needs packages of npm's: {web.INSTALL} (MINIALBERT_NODE_MODULES names another node_modules)"
        )
    return folder


def build(kind: str, folder: Path, tokenizer: object) -> Path:
    """Write a model with random weights, so large that texts get different answers."""
    labels = {"token": TAGS, "regression": ("score",)}.get(kind, ("a", "b", "c"))
    config = MiniAlbertConfig(
        vocab_size=len(tokenizer), embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, adapter_reduction_factor=8, initializer_range=0.3,
        id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)},
    )  # fmt: skip
    classes = {"token": MiniAlbertForTokenClassification, "embedding": minialbert.MiniAlbertModel}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = classes.get(kind, MiniAlbertForSequenceClassification)(config).eval()
    if kind == "embedding":
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_pooling(folder, Pooling(normalize=True), width=32, max_tokens=48)
    else:
        save_tuned(
            model, tokenizer, TaskInputs("test", kind, "accuracy", 48, 8, pairs=kind == "regression"), folder
        )
    return folder


@pytest.fixture(scope="module")
def site(vendor, tiny_tokenizer, tmp_path_factory):
    """Return, for a kind and a precision, the folder for the web; each is made once."""

    @functools.cache
    def make(kind: str, precision: str) -> Path:
        place = tmp_path_factory.mktemp(kind)
        source = build(kind, place / "model", tiny_tokenizer)
        if precision == "fp32":  # exported before
            minialbert.export(source, place / "exported", opset=22, progress=False)
            source = place / "exported"
        options = {"quantize": "int4", "tolerance": 1.0} if precision == "int4" else {}
        minialbert.export(source, place / "site", to="web", vendor=vendor, progress=False, **options)
        return place / "site"

    return make


ANSWERS = """
const { load } = await import(given[0] + "/minialbert.js");
const model = await load("./");
const found = [];
for (const text of given[1]) found.push(await model.predict(...[text].flat()));
"""


def agree(one: dict, other: dict) -> bool:
    """Tell whether answers have the same labels in the same places, or vectors the same direction."""
    if "vector" in other:
        vectors = np.array([one["vector"], other["vector"]])
        return float(vectors.prod(0).sum() / np.linalg.norm(vectors, axis=1).prod()) > 0.99
    places = [[(at["text"], at["label"]) for at in answer.get("entities", ())] for answer in (one, other)]
    return places[0] == places[1] and one.get("label") == other.get("label")


@needs_node
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("kind", ["token", "single-label", "regression", "embedding"])
def test_node_answers_as_the_runtime_does(site, kind, precision):
    folder = site(kind, precision)
    some = texts(500)
    if kind == "regression":
        some = [[one, other] for one, other in zip(some[::2], some[1::2], strict=False)]
    expected = list(Model(folder, threads=1).predict(some))
    found = node(ANSWERS + "console.log(JSON.stringify(found));", folder.as_uri(), some)
    if precision == "fp32":
        assert differences(found, expected) < 1e-3
        return
    # Random weights leave no answer sure: a step of rounding, which the last bit of a float decides, changes many.
    alike = [agree(one, other) for one, other in zip(found, expected, strict=True)]
    assert np.mean(alike) > 0.9


@needs_node
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_what_is_integers_has_the_same_bits(vendor, tmp_path, precision):
    """Rounding of activations, their products with stored matrices, and scales; what rounds is floats before them."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(256, 320)).astype(np.float32)
    given = rng.normal(size=(64, 256)).astype(np.float32) * np.exp(rng.normal(size=(64, 1)) * 4).astype(
        np.float32
    )
    given[:8] = rng.integers(-254, 255, (8, 256)) / 2  # halves of a step, where the largest is 127
    given[:8, 0], given[8] = 127, 0
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["y"])], "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 320])],
        [numpy_helper.from_array(weights, "weights")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    quantize_int8(model, four_bits=precision == "int4")
    onnx.save(model, tmp_path / "model.onnx")
    for name, place in web._VENDOR.items():
        shutil.copyfile(vendor / place, tmp_path / name)
    shutil.copyfile(web._ASSETS / "package.json", tmp_path / "package.json")
    program = """
    const [folder, path, rows, columns, values] = given;
    const ort = await import(`${folder}/ort.js`);
    ort.env.wasm.wasmPaths = { mjs: `${folder}/ort-wasm.js`, wasm: `${folder}/ort-wasm.wasm` };
    ort.env.wasm.wasmBinary = readFileSync(`${path}/ort-wasm.wasm`);
    ort.env.wasm.numThreads = 1;
    const graph = readFileSync(`${path}/model.onnx`);
    const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
    const { y } = await session.run({ x: new ort.Tensor("float32", Float32Array.from(values), [rows, columns]) });
    console.log(JSON.stringify(Array.from(y.data)));
    """
    found = node(program, tmp_path.as_uri(), str(tmp_path), *given.shape, given.ravel().tolist())
    (expected,) = open_session(model.SerializeToString(), 1).run(None, {"x": given})
    assert np.array_equal(np.array(found, np.float32).reshape(expected.shape), expected)
    largest = np.abs(given).max(axis=1, keepdims=True)
    steps = np.rint(given / np.maximum(largest, 1e-30) * 127) * largest / 127
    assert np.abs(expected - steps @ weights).max() < 0.2 * np.abs(expected).max()


def least_lead(result: dict, spans: set[tuple[str, int, int]]) -> float:
    """Return the least lead of a tag over the next, as probabilities, of words in these spans of UTF-16."""
    powers = np.exp(result["logits"] - result["logits"].max(axis=1, keepdims=True))
    best = np.sort(powers / powers.sum(axis=1, keepdims=True), axis=1)
    offsets = [[in_utf16(result["text"], at) for at in word] for word in result["words"]]
    touched = [any(start < last and first < end for _, first, last in spans) for start, end in offsets]
    return float((best[:, -1] - best[:, -2])[touched].min())


@needs_node
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_trained_tagger_answers_alike_but_where_it_is_not_sure(vendor, tmp_path, precision):
    """Sentences of its field, and texts of all scripts, which are not."""
    options = {"quantize": "int8"} if precision == "int8" else {}
    folder = ROOT / "models" / "minialbert_models" / "biomedical-ner-2mb"
    minialbert.export(folder, tmp_path / "site", to="web", vendor=vendor, progress=False, **options)
    model = Model(tmp_path / "site", threads=1, engine="onnx")
    model.keeps_logits = True
    sample = ROOT / "docs" / "tutorials" / "bc5cdr-sample.pubtator"
    lines = (line.split("|", 2) for line in sample.read_text(encoding="utf-8").splitlines() if "|a|" in line)
    sentences = [one for _, _, text in lines for one in re.split(r"(?<=[.?!]) (?=[A-Z])", text)][:500]
    assert len(sentences) == 500
    for some, most_changed, least_near in ((sentences, 3, 420), (texts(500), 5, 420)):
        program = ANSWERS + "console.log(JSON.stringify(found));"
        differences, leads, entities = [], [], 0
        found = node(program, (tmp_path / "site").as_uri(), some)
        for one, other in zip(found, model.predict(some), strict=True):
            mine = {(it["label"], it["start"], it["end"]): it["score"] for it in one["entities"]}
            theirs = {
                (it["label"], *(in_utf16(other["text"], it[side]) for side in ("start", "end"))): it["score"]
                for it in other["entities"]
            }
            entities += len(theirs)
            if mine.keys() == theirs.keys():
                differences.append(max((abs(mine[key] - theirs[key]) for key in mine), default=0))
            else:
                leads.append(least_lead(other, mine.keys() ^ theirs.keys()))
        assert entities > 100
        assert len(leads) <= most_changed
        assert max(leads, default=0) < 0.4
        assert sum(difference <= 1e-3 for difference in differences) >= least_near
        assert max(differences) < 0.05


@needs_node
@pytest.mark.slow
def test_byte_level_bpe_takes_texts_apart_alike(vendor):
    tokenizer, some = Tokenizer(models.BPE()), texts(500)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet, specials = pre_tokenizers.ByteLevel.alphabet(), ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(some[:100], trainer)
    program = """
    const [{ makeEncoder }, { Tokenizer }] = [await import(given[0]), await import(given[1])];
    const encode = makeEncoder(Tokenizer, given[2], { split_special_tokens: false, add_prefix_space: false });
    console.log(JSON.stringify(given[3].map(encode)));
    """
    files = [web._ASSETS / "minialbert.js", vendor / web._VENDOR["tokenizers.js"]]
    some.append("a <s> b</s>")
    found = node(program, *(file.as_uri() for file in files), json.loads(tokenizer.to_str()), some)
    assert found == [tokenizer.encode(text, add_special_tokens=False).ids for text in some]


@pytest.fixture
def served(site, request) -> Iterator[tuple[Path, http.server.ThreadingHTTPServer]]:
    """Yield the folder of a tagger, in fp32 or the precision that is asked for, and a plain server of it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    folder = site("token", getattr(request, "param", "fp32"))
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, server
    server.shutdown()
    server.server_close()


@pytest.fixture
def chromium(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, which drives the browser")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'chromium'}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "localhost,127.0.0.1")
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
        browser.set_script_timeout(600)
        try:
            yield browser
        finally:
            browser.quit()


def wait_for(browser, script: str) -> object:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 120).until(lambda browser: browser.execute_script(f"return {script}"))


def typed(browser, text: str) -> list[str]:
    """Return the entities that the page marks when a text is put in."""
    browser.execute_script(
        """
        document.getElementById("answer").replaceChildren();
        const field = document.getElementById("text");
        field.value = arguments[0];
        field.dispatchEvent(new Event("input"));
        """,
        text,
    )
    wait_for(browser, "document.getElementById('answer').childNodes.length")
    return browser.execute_script(
        "return Array.from(document.querySelectorAll('mark'), (one) => one.textContent)"
    )


def answered(browser, address: str, some: list[str]) -> list[dict]:
    """Return what the page's module answers."""
    browser.get(address)
    wait_for(browser, "document.documentElement.dataset.loaded")
    found = browser.execute_async_script(
        "const given = [location.origin, arguments[0]], done = arguments[1]; (async () => {"
        f'{ANSWERS} return JSON.stringify(found); }})().then(done, (error) => done(`"${{error}}"`));',
        some,
    )
    return json.loads(found)


@needs_node
@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("served", ["int8", "int4"], indirect=True)
def test_chromium_rounds_as_node_does(served, chromium):
    """Their Math.exp differ in the last digit; a step of rounding would show from the fourth on."""
    folder, server = served
    some = texts(100)
    found = answered(chromium, f"http://127.0.0.1:{server.server_port}/", some)
    assert sum(len(one["entities"]) for one in found) > 100
    others = node(ANSWERS + "console.log(JSON.stringify(found));", folder.as_uri(), some)
    assert difference(found, others) < 1e-9


@pytest.mark.slow
@pytest.mark.browser
def test_chromium_answers_offline_and_asks_no_other_host(served, chromium):
    folder, server = served
    address = f"http://127.0.0.1:{server.server_port}/"
    model, some = Model(folder, threads=1), texts(500)
    found = answered(chromium, address, some)
    assert differences(found, list(model.predict(some))) < 1e-3
    text = "the king was in the city\r\n👍 house river"
    expected = [entity["text"] for entity in model(text.replace("\r\n", "\n"))["entities"]]
    assert typed(chromium, text) == expected != []
    assert not chromium.execute_script("return document.getElementById('pair').checkVisibility()")

    server.shutdown()
    server.server_close()
    chromium.get(address)  # without its server
    wait_for(chromium, "document.documentElement.dataset.loaded")
    assert typed(chromium, text) == expected
    assert chromium.execute_script("return crossOriginIsolated")
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [
        one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"
    ]
    assert asked
    assert [url for url in asked if not url.startswith((address, "data:", "blob:", "about:", "chrome"))] == []
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []
