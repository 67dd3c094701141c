"""Thresholds and confidences of answers: found by hand on few rows, kept, and honoured by all that answers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from minialbert_runtime.answers import Decision, decision_of, tags_of
from minialbert_runtime.folder import version_of

from minialbert.data.examples import Task, TextExample, TokenExample
from minialbert.errors import UserError
from minialbert.tasks.calibrate import calibrate
from minialbert.tasks.decisions import Held, choose_thresholds, fit_temperature, read_wishes
from minialbert.tasks.evaluate import evaluate
from minialbert.tasks.models import TaskInputs, read_task_file
from minialbert.tasks.predict import predict


def known(problem, logits, labels, examples):
    return Held(Task("t", problem, labels, "m", {}), examples, [np.array(one, np.float32) for one in logits])


# Probabilities of "a" in five texts, of which the first three have it; a text at 0.3 lies between.
CHANCES = np.array([0.9, 0.6, 0.2, 0.3, 0.1])
ODDS = np.log(CHANCES / (1 - CHANCES))[:, None]
SEVERAL = known("multi-label", ODDS, ("a",), [TextExample("x", label=("a",) * (n < 3)) for n in range(5)])
ONE = known(
    "single-label", np.column_stack([ODDS, 0 * ODDS]), ("a", "b"),
    [TextExample("x", label="ab"[n > 2]) for n in range(5)],
)  # fmt: skip


@pytest.mark.parametrize(
    ("least", "low", "high"),
    [
        ({"recall": 1.0}, 0.1, 0.2),
        ({"recall": 0.6}, 0.1, 0.2),  # has the highest F1 of those that fulfil it
        ({"precision": 1.0}, 0.3, 0.6),
        ({"precision": 0.7, "recall": 0.9}, 0.1, 0.2),
    ],
)
def test_the_threshold_of_the_highest_f1_that_fulfils_the_wish(least, low, high):
    for rows in (SEVERAL, ONE):
        assert low < choose_thresholds(rows, 1.0, {"a": least}).thresholds["a"] < high


def test_a_wish_that_cannot_be_reached_is_answered_with_the_nearest():
    both = {"a": {"recall": 1.0, "precision": 0.8}}
    said = "a recall of 1 and a precision of 0.8 for 'a' .* nearest is a recall of 1.0000 and a precision of 0.75"
    with pytest.raises(UserError, match=said):
        choose_thresholds(SEVERAL, 1.0, both)
    mixed = known(
        "multi-label", [[2.0], [2.0]], ("a",), [TextExample("x", label=("a",)), TextExample("x", label=())]
    )
    with pytest.raises(
        UserError, match="a precision of 0.9 for 'a' .* recall of 1.0000 and a precision of 0.5000"
    ):
        choose_thresholds(mixed, 1.0, {"a": {"precision": 0.9}})
    with pytest.raises(UserError, match="there is no 'x' in these rows: they have a, b"):
        read_wishes({"x": 1.0}, {}, ONE)
    with pytest.raises(UserError, match="min_precision of a: expected a share above 0 and up to 1, found 95"):
        read_wishes({}, {"a": 95}, ONE)
    assert read_wishes({"a": 0.5}, {"a": 0.25}, ONE) == {"a": {"recall": 0.5, "precision": 0.25}}


TAGS = ("O", "B-A", "I-A")
# Three sentences of two words: an entity found, one that O hides, and an invented one.
TAGGED = known(
    "token", [[[0, 2, 0], [0, 0, 3]], [[1, 0.5, 0], [4, 0, 0]], [[0, 1.5, 0], [3, 0, 0]]], TAGS,
    [TokenExample(("x", "y"), tags) for tags in (("B-A", "I-A"), ("B-A", "O"), ("O", "O"))],
)  # fmt: skip


def test_entities():
    assert TAGGED.figures("A", Decision()) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert choose_thresholds(TAGGED, 1.0, {"A": {"recall": 1.0}}).thresholds["A"] < 0.5
    sure = choose_thresholds(TAGGED, 1.0, {"A": {"precision": 1.0}})
    assert TAGGED.figures("A", sure) == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}


def test_a_temperature_lowers_the_calibration_error():
    rng = np.random.default_rng(0)
    true = rng.random(2000)
    examples = [TextExample("x", label=("a",) * bool(one)) for one in rng.random(2000) < true]
    sure = known(
        "multi-label", 3 * np.log(true / (1 - true))[:, None], ("a",), examples
    )  # three times too sure
    temperature, error = fit_temperature(sure)
    assert temperature == pytest.approx(3, rel=0.15)
    assert error["after"] < 0.04 < 0.1 < error["before"]
    assert fit_temperature(replace(sure, examples=examples[:1], logits=[np.array([9.0])]))[0] == 1


def test_a_threshold_of_one_half_changes_nothing():
    logits = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    over = Decision(1.0, {"A": 0.5}).over(TAGS, tagging=True)
    assert tags_of(logits, TAGS, over) == tags_of(logits, TAGS)
    assert Decision().over(TAGS, tagging=True) is None


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ([], "not a mapping"),
        ({"bias": 1}, "not a mapping"),
        ({"thresholds": {"A": 1.0}}, "between 0 and 1"),
        ({"thresholds": {"A": True}}, "between 0 and 1"),
        ({"temperature": 0}, "temperature is 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"decoding": "beam"}, "decoding is 'beam', expected alone or viterbi"),
    ],
)
def test_a_damaged_decision_is_refused(values, fault):
    with pytest.raises(ValueError, match=fault):
        decision_of(values)


def test_a_model_without_a_decision_is_written_as_before():
    inputs = TaskInputs("t", "token", "entity_f1", 16, 4)
    assert "decision" not in inputs.to_json()
    assert replace(inputs, decision=Decision(2.0)).to_json()["decision"] == {
        "temperature": 2.0,
        "thresholds": {},
    }
    assert (
        replace(inputs, decision=Decision(decoding="viterbi")).to_json()["decision"]["decoding"] == "viterbi"
    )
    assert [version_of(Decision(*one)) for one in ((), (2.0,), (1.0, {}, "viterbi"))] == [2, 3, 4]


@pytest.fixture
def copied(tuned, tmp_path):
    def copy(kind):
        return shutil.copytree(tuned(kind).model, tmp_path / kind), tuned(kind).data

    return copy


@pytest.mark.parametrize(
    ("kind", "label", "key"),
    [
        ("ner", "Person", "per_type"),
        ("classification", "with", "per_class"),
        ("multi-label", "king", "per_class"),
    ],
)
def test_it_is_kept_and_honoured(copied, kind, label, key, tmp_path):
    folder, data = copied(kind)
    wish = {label: 0.9}
    record = calibrate(folder, data, min_recall=wish, output=tmp_path / "record", progress=False).record
    kept = read_task_file(folder).decision
    assert record["kind"] == "answer-calibration" and record["decision"] == vars(kept)
    assert record["labels"][label]["after"]["recall"] >= 0.9
    scored = evaluate(folder, data, split="validation", progress=False).record
    assert scored["metrics"]["validation"][key][label]["recall"] == record["labels"][label]["after"]["recall"]
    assert any(note.startswith("calibrated: ") for note in scored["notes"])
    assert kept.decoding == ("viterbi" if kind == "ner" else "alone")
    other = {"task.decoding": "alone"}
    again = calibrate(folder, data, confidences=True, settings=other, dry_run=True, progress=False).record
    assert f"earlier thresholds are gone, those of {label}: give all wishes at once" in again["notes"]
    assert again["decision"]["decoding"] == "alone"
    # Of a threshold that nothing reaches there are no answers, by score and by predict.
    values = json.loads((folder / "task.json").read_text())
    values["decision"] = {"temperature": 2.0, "thresholds": {label: 1 - 1e-9}}
    (folder / "task.json").write_text(json.dumps(values))
    never = evaluate(folder, data, progress=False).record
    assert never["metrics"]["test"][key][label]["recall"] == 0
    (answer,) = predict(folder, ["the king was"], precision="fp32")
    chosen = (
        [one["label"] for one in answer.get("entities", ())] or answer.get("labels") or [answer.get("label")]
    )
    assert label not in chosen
    if kind == "multi-label":
        (answer,) = predict(folder, ["the king was"], threshold=0.5, precision="fp32")
        assert "king" in answer["labels"]  # what a caller gives stands in place of it


def test_the_command_line(copied, call, refuse):
    folder, data = copied("ner")
    before = (folder / "task.json").read_text()
    given = ("calibrate", "--model", folder, "--data", data)
    status, out, _ = call(*given, "--min-recall", "Person=0.5", "--min-precision", "Place=0.5", "--dry-run")
    assert status == 0 and "calibration error (ECE)" in out and "2 thresholds (nothing is written)" in out
    assert (folder / "task.json").read_text() == before
    assert "as in Disease=0.95; found 'Person'" in refuse(*given, "--min-recall", "Person")
    twice = refuse(*given, "--min-recall", "Person=0.9", "--min-recall", "Person=0.8")
    assert "--min-recall: 'Person' is given twice: give one share for it" in twice
    assert "expected a share above 0 and up to 1, found 95" in refuse(*given, "--min-recall", "Person=95")
    assert "max_drop is for early exit" in refuse(*given, "--confidences", "--max-drop", "1")
    (folder / "task.json").unlink()
    assert "task.json is missing" in refuse(*given, "--task", "ner", "--confidences")


def test_a_score_has_nothing_to_calibrate(copied):
    folder, data = copied("regression")
    with pytest.raises(UserError, match="a regression task has no confidences to calibrate"):
        calibrate(folder, data, confidences=True, progress=False)
