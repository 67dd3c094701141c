"""What is measured of a tagger is what it delivers: words, tags, spans."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from minialbert_runtime import Model

import minialbert
from minialbert import MiniAlbertForTokenClassification
from minialbert.recipes.load import apply_overrides, load_recipe
from minialbert.recipes.schema import FinetuneRecipe, TaskRecipe
from minialbert.tasks.evaluate import evaluate
from minialbert.tasks.finetune import finetune
from minialbert.tasks.predict import Predictor

KINGS = ("t-king", "5-king", "king/s", "k.k.", "(k)", "1.5", "king\u00adly", "k%")


def tag_rows(seed, count, names=KINGS, marks=("(", ")", ".", ",")):
    """Sentences of a tagged file, in which marks also stand alone."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        words = generator.choices(["the", "of", "and", "to", "in", "is", *marks], k=generator.randint(3, 8))
        row = [(word, "O") for word in words]
        for name in generator.choices(names, k=2):
            row.insert(generator.randint(0, len(row)), (name, "B-King"))
        rows.append(row)
    return rows


def tune(student, folder, data):
    recipe = apply_overrides(
        load_recipe("default", FinetuneRecipe),
        [
            f"model.name={student}", "task.name=ner", f"task.data={data}", "tuning.batch_size=8",
            "tuning.epochs=6", "tuning.learning_rate=3e-3", "tuning.dropout=0",
        ],
    )  # fmt: skip
    return finetune(recipe=recipe, output=folder / "tuned", progress=False).record


def delivered_f1(model, texts, gold, load=Predictor.load):
    found = load(str(model)).predict(texts)
    said = [{(e["start"], e["end"], e["label"]) for e in result["entities"]} for result in found]
    right = sum(len(one & other) for one, other in zip(said, gold, strict=True))
    precision, recall = right / sum(map(len, said)), right / sum(map(len, gold))
    return 2 * precision * recall / (precision + recall)


def joined(row):
    """A sentence as text, and its entities of one word by character."""
    at, spans = 0, set()
    for word, tag in row:
        if tag != "O":
            spans.add((at, at + len(word), tag[2:]))
        at += len(word) + 1
    return " ".join(word for word, _ in row), spans


def scored(model, data):
    return evaluate(model, task=TaskRecipe(data=str(data)), progress=False).record


@pytest.fixture(scope="module")
def hyphened(tiny_student_dir, tmp_path_factory):
    """A tagger of words with marks inside, its test sentences, its folder and its record."""
    folder = tmp_path_factory.mktemp("hyphened")
    (folder / "data").mkdir()
    rows = {
        name: tag_rows(seed, count)
        for seed, (name, count) in enumerate((("train", 200), ("dev", 16), ("test", 40)))
    }
    for name, split in rows.items():
        blocks = ("".join(f"{word}\t{tag}\n" for word, tag in row) for row in split)
        (folder / "data" / f"{name}.tsv").write_text("\n".join(blocks), encoding="utf-8")
    return folder, rows["test"], tune(tiny_student_dir, folder, folder / "data")


def test_the_score_is_that_of_what_predict_returns(hyphened):
    folder, rows, tuning = hyphened
    record = scored(folder / "tuned" / "model", folder / "data")
    figures = record["metrics"]["test"]
    assert figures["entity_f1"] > 0.5
    texts, gold = zip(*map(joined, rows), strict=True)
    assert figures["entity_f1"] == figures["span_f1"] == delivered_f1(folder / "tuned" / "model", texts, gold)
    assert figures["per_type"] == figures["span_per_type"]
    assert figures == tuning["metrics"]["test"]
    assert not any("cut" in note for note in record["notes"])


def test_the_rule_stands_in_the_record_and_in_the_model(hyphened):
    folder, _, tuning = hyphened
    (statement,) = (note for note in tuning["notes"] if note.startswith("words: "))
    assert "- . / inside" in statement
    assert json.loads((folder / "tuned" / "model" / "task.json").read_text())["words"]["joined"]


def test_words_that_no_rule_makes_are_told_with_both_figures(hyphened, tmp_path):
    folder, _, _ = hyphened
    texts = [(("the", "O"), ("5-king of", "B-King"), ("5-king", "B-King")), (("the", "O"),)]
    (tmp_path / "test.tsv").write_text("\n".join("".join(f"{w}\t{t}\n" for w, t in row) for row in texts))
    (tmp_path / "train.tsv").write_text("the\tO\n5-king\tB-King\n")
    record = scored(folder / "tuned" / "model", tmp_path)
    (note,) = (note for note in record["notes"] if note.startswith("test: 1 of 2 sentences"))
    assert "'5-king of'" in note
    figures = record["metrics"]["test"]
    rows = list(map(joined, texts))
    assert figures["span_f1"] == delivered_f1(
        folder / "tuned" / "model", [text for text, _ in rows], [spans for _, spans in rows]
    )
    assert figures["span_f1"] < figures["entity_f1"]


def test_a_model_without_a_rule_says_so_and_is_scored_as_it_answers(hyphened):
    folder, rows, _ = hyphened
    file = folder / "tuned" / "model" / "task.json"
    kept = file.read_text()
    values = json.loads(kept)
    del values["words"]
    file.write_text(json.dumps(values))
    try:
        record = scored(file.parent, folder / "data")
        texts, gold = zip(*map(joined, rows), strict=True)
        assert record["metrics"]["test"]["span_f1"] == delivered_f1(file.parent, texts, gold)
    finally:
        file.write_text(kept)
    assert any("has no rule of words" in note for note in record["notes"])
    assert record["metrics"]["test"]["span_f1"] < record["metrics"]["test"]["entity_f1"]


def test_spans_inside_words_count_as_predict_finds_them(hyphened, tmp_path):
    """Gold borders inside a word are nobody's at prediction time."""
    folder, _, _ = hyphened
    rows = [
        {"text": "the 5-king of k.k., is", "spans": [[4, 10, "King"], [14, 18, "King"]]},
        {"text": "to kingof in t-king", "spans": [[3, 7, "King"], [13, 19, "King"]]},
    ]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = scored(folder / "tuned" / "model", tmp_path)
    gold = [{tuple(span) for span in row["spans"]} for row in rows]
    figures = record["metrics"]["test"]
    expected = delivered_f1(folder / "tuned" / "model", [row["text"] for row in rows], gold)
    assert figures["entity_f1"] == figures["span_f1"] == expected > 0.5
    assert figures["entity_recall"] <= 3 / 4
    assert any(
        "test: 1 of 4 entities start or end inside a word, such as 'king' in 'kingof'" in note
        for note in record["notes"]
    )


@pytest.mark.parametrize("decoding", ["alone", "viterbi"])
def test_a_sequence_that_starts_inside_is_scored_as_delivered(hyphened, tmp_path, decoding):
    """A tagger that says I- where B- should be: what predict and an exported folder return is what counts."""
    folder, rows, tuning = hyphened
    assert tuning["decoding"] == "viterbi"  # of a tuning without a recipe of its own
    model = shutil.copytree(folder / "tuned" / "model", tmp_path / "model")
    swapped = MiniAlbertForTokenClassification.from_pretrained(model)
    order = [swapped.config.label2id[label] for label in ("O", "I-King", "B-King")]
    for values in (swapped.classifier.weight.data, swapped.classifier.bias.data):
        values.copy_(values[order].clone())
    swapped.save_pretrained(model)
    task = json.loads((model / "task.json").read_text())
    assert task.pop("decision") == {"temperature": 1.0, "thresholds": {}, "decoding": "viterbi"}
    chosen = (
        {"decision": {"decoding": decoding}} if decoding == "viterbi" else {}
    )  # none, as before there was one
    (model / "task.json").write_text(json.dumps(task | chosen))
    minialbert.export(model, tmp_path / "exported", opset=22, progress=False)

    texts, gold = zip(*map(joined, rows), strict=True)
    for place, load in ((model, Predictor.load), (tmp_path / "exported", Model)):
        record = scored(place, folder / "data")
        figures = record["metrics"]["test"]
        assert record["model"].get("engine") == (None if place == model else Model(place).engine)
        assert record["decoding"] == decoding and not any("calibrated" in note for note in record["notes"])
        assert figures["entity_f1"] == figures["span_f1"] == delivered_f1(str(place), texts, gold, load) > 0.2
        assert figures["entity_f1_strict"] < 0.1 if decoding == "alone" else figures["entity_f1_strict"] > 0.2
        other = {"alone": "viterbi", "viterbi": "alone"}[decoding]
        again = evaluate(place, folder / "data", settings={"task.decoding": other}, progress=False).record
        assert again["decoding"] == other and again["score"] != record["score"]
    version = json.loads((tmp_path / "exported" / "export.json").read_text())["format_version"]
    assert version == {"alone": 2, "viterbi": 4}[decoding]
