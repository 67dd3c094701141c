"""Thresholds for leaving early: simulated against run, and the choice against runs at every threshold."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from early_exits import KINDS, build
from transformers import pipeline

from minialbert.data.examples import Task, TextExample, TokenExample
from minialbert.data.task_types import SingleLabel
from minialbert.data.tasks import load_task
from minialbert.errors import UserError
from minialbert.recipes.schema import TaskRecipe
from minialbert.tasks.calibrate import calibrate, candidate_thresholds, choose_threshold, measure_depths
from minialbert.tasks.evaluate import evaluate
from minialbert.tasks.models import load_tuned
from minialbert.tasks.predict import Predictor
from minialbert.tasks.predictions import evaluate_split, make_collator, run_with_exits

TEXTS = (
    "the king was small",
    "a",
    "what a large city by the river",
    "he",
    "they were all of one house, not that",
)


@KINDS
def test_the_simulation_is_what_happens(kind, tiny_tokenizer):
    model = build(kind, vocab_size=len(tiny_tokenizer))
    labels = ("O", "B-A", "I-A") if kind == "token" else ("x", "y", "z")
    problem = {"single": "single-label", "multi": "multi-label", "token": "token"}[kind]
    task = Task("t", problem, labels, "m", {})
    words = [text.split()[shift:] + text.split()[:shift] for text in TEXTS for shift in range(4)]
    examples = [TokenExample(tuple(w)) if kind == "token" else TextExample(" ".join(w)) for w in words]
    encoded = task.type.encode(examples, tiny_tokenizer, task, max_length=12, overlap=4)
    collator = make_collator(task, tiny_tokenizer)
    model.train()
    outputs = measure_depths(model, encoded, collator, batch_size=7)
    assert model.training
    assert outputs.depths == (1, 2, 3, 4)
    thresholds = candidate_thresholds(outputs.confidences)
    assert len(thresholds) > 10
    seen = set()
    for threshold in (*thresholds[::7], 1.0):
        logits, exits = run_with_exits(model, encoded, collator, batch_size=5, exit_threshold=threshold)
        simulated, simulated_exits = outputs.leaving_at(threshold)
        assert exits == simulated_exits
        for found, expected in zip(logits, simulated, strict=True):
            assert (found.argmax(-1) == expected.argmax(-1)).all()
            np.testing.assert_allclose(found, expected, atol=1e-4)
        seen |= set(exits)
    assert seen > {1, 4}


def test_candidates_part_the_confidences_and_are_never_on_one():
    confidences = np.array([[0.5, 0.9, 0.1], [0.7, 0.9, 0.2]], np.float32)  # the last column is of no account
    found = candidate_thresholds(confidences)
    assert len(found) == 4
    for threshold, (low, high) in zip(found, [(0, 0.5), (0.5, 0.7), (0.7, 0.9)], strict=False):
        assert low < threshold < high
    assert found[-1] == 1.0
    many = np.linspace(0.4, 1, 3000, dtype=np.float32).reshape(1000, 3)
    some = candidate_thresholds(many, count=20)
    assert len(some) == 21
    assert some == sorted(some)
    assert some[0] < 0.4
    assert some[-2] > 0.99
    same = np.full((5, 2), 1.0, np.float32)
    assert candidate_thresholds(same)[-1] == 1.0


def test_the_smallest_threshold_that_is_near_enough():
    rows = [{"threshold": t, "score": s} for t, s in ((0.9, 0.795), (0.5, 0.6), (0.7, 0.79), (1.0, 0.8))]
    assert choose_threshold(rows, 0.8, 1.0)["threshold"] == 0.7
    assert choose_threshold(rows, 0.8, 0.6)["threshold"] == 0.9
    assert choose_threshold(rows, 0.8, 0)["threshold"] == 1.0
    assert choose_threshold(rows, 0.8, 20)["threshold"] == 0.5
    assert choose_threshold(rows[:3], 0.9, 0) is None


def copied(tuned, kind, tmp_path, name="copy"):
    folder = tmp_path / name
    shutil.copytree(tuned(kind).model, folder)
    return folder


def calibrated(model, data, **options):
    return calibrate(model, task=TaskRecipe(data=str(data)), progress=False, **options).record


@pytest.mark.parametrize("kind", ["classification", "multi-label", "ner"])
def test_it_chooses_what_runs_at_every_threshold_choose(kind, tuned, tmp_path):
    folder, data = copied(tuned, kind, tmp_path), tuned(kind).data
    record = calibrated(folder, data, split="validation", max_drop=30)
    model, tokenizer, inputs = load_tuned(str(tuned(kind).model))
    task = load_task(TaskRecipe(name=kind, data=str(data)))
    rows = task.splits["validation"]
    encoded = task.type.encode(rows, tokenizer, task, max_length=inputs.max_length, overlap=inputs.overlap)

    def run(**options):
        return evaluate_split(model, rows, encoded, task, make_collator(task, tokenizer), **options)

    full = run().metrics[task.metric]
    assert record["rows"] == 24
    assert record["full_depth_score"] == full
    assert record["score_by_depth"] == {"1": run(num_iterations=1).metrics[task.metric], "2": full}
    near = []
    for tried in record["thresholds"]:
        result = run(exit_threshold=tried["threshold"])
        assert result.metrics[task.metric] == tried["score"]
        assert result.mean_iterations == tried["mean_iterations"]
        assert tried["compute_share"] == pytest.approx(tried["mean_iterations"] / 2)
        if result.metrics[task.metric] >= full - 0.3 - 1e-9:
            near.append(tried["threshold"])
    assert len(record["thresholds"]) > 10
    assert record["exit_threshold"] == min(near)
    assert record["mean_iterations"] < 2
    # Written: the model now does so by itself.
    assert json.loads((folder / "config.json").read_text())["exit_threshold"] == min(near)
    after = evaluate(folder, task=TaskRecipe(data=str(data)), split="validation", progress=False).record
    assert after["exit_threshold"] == min(near)
    assert after["score"] == record["score"]
    assert after["mean_iterations"] == {"validation": record["mean_iterations"]}


def test_early_exit_is_scored_with_the_thresholds_that_the_model_answers_by(tuned, tmp_path):
    folder, data = copied(tuned, "multi-label", tmp_path), tuned("multi-label").data
    plain = calibrated(folder, data, split="validation", dry_run=True)["full_depth_score"]
    task = json.loads((folder / "task.json").read_text())
    label = next(iter(load_tuned(str(folder))[0].config.id2label.values()))
    task["decision"] = {"thresholds": {label: 0.999}}
    (folder / "task.json").write_text(json.dumps(task))
    found = calibrated(folder, data, split="validation", dry_run=True)["full_depth_score"]
    asked = {"task": TaskRecipe(data=str(data)), "split": "validation", "progress": False}
    assert found == evaluate(folder, **asked).score != plain


def test_rows_are_drawn_from_train_by_the_seed(tuned, tmp_path, monkeypatch):
    drawn, encode = [], SingleLabel.encode

    def recording(kind, examples, *arguments, **options):
        drawn.append([example.text for example in examples])
        return encode(kind, examples, *arguments, **options)

    monkeypatch.setattr(SingleLabel, "encode", recording)
    model, data = copied(tuned, "classification", tmp_path), tuned("classification").data
    for options in ({}, {}, {"seed": 1}, {"rows": 5}, {"fraction": 0.5}):
        record = calibrated(model, data, dry_run=True, **options)
        assert record["split"] == "train"
        assert any("optimistic" in note for note in record["notes"])
    train = [json.loads(line)["text"] for line in (data / "train.jsonl").read_text().splitlines()]
    assert [len(rows) for rows in drawn] == [16, 16, 16, 5, 80]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(set(rows) <= set(train) for rows in drawn)


def test_rows_that_would_be_reported_are_set_apart_from_train(tuned, tmp_path):
    model, data = copied(tuned, "classification", tmp_path), tmp_path / "only-train"
    data.mkdir()
    shutil.copy(tuned("classification").data / "train.jsonl", data)
    reported = evaluate(model, task=TaskRecipe(data=str(data)), progress=False).record
    record = calibrated(model, data, fraction=1.0, dry_run=True)
    assert record["rows"] == 160 - reported["rows"]["validation"] < 160


def test_a_dry_run_changes_nothing_and_a_real_one_only_the_threshold(tuned, tmp_path):
    folder, data = copied(tuned, "classification", tmp_path), tuned("classification").data
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    record = calibrated(folder, data, max_drop=100, dry_run=True, output=tmp_path / "scores")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not record["written"]
    written = json.loads((tmp_path / "scores" / "result.json").read_text())
    assert written == record
    assert written["kind"] == "exit-calibration"
    assert record["exit_threshold"] == record["thresholds"][0]["threshold"]
    with pytest.raises(UserError, match="--overwrite"):
        calibrated(folder, data, output=tmp_path / "scores")
    assert calibrated(folder, data, max_drop=100, output=tmp_path / "scores", overwrite=True)["written"]
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = json.loads(after.pop("config.json"))
    assert changed["exit_threshold"] == record["exit_threshold"]
    assert changed == {**json.loads(before.pop("config.json")), "exit_threshold": record["exit_threshold"]}
    assert after == before


def test_where_nothing_is_saved_the_full_depth_stays(tuned, tmp_path, monkeypatch):
    from minialbert.tasks import calibrate

    folder, data = copied(tuned, "classification", tmp_path), tuned("classification").data
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "exit_threshold": 0.6}))
    monkeypatch.setattr(calibrate, "candidate_thresholds", lambda _: [1.0])
    record = calibrated(folder, data)
    assert record["exit_threshold"] is None
    assert (record["mean_iterations"], record["compute_share"]) == (2, 1)
    assert any("keeps its full depth" in note for note in record["notes"])
    assert json.loads((folder / "config.json").read_text())["exit_threshold"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": -1.0}, "max_drop: expected points from 0 to 100"),
        ({"split": "test"}, "must not choose the threshold"),
        ({"fraction": 0.0}, "fraction: expected a share"),
        ({"rows": 0}, "rows: expected at least 1"),
        ({"rows": 1000}, "has 160 in train, fewer than 1,000"),
    ],
)
def test_options_out_of_range(options, message, tuned):
    with pytest.raises(UserError, match=message):
        calibrated(tuned("classification").model, tuned("classification").data, **options)


def test_models_that_cannot_be_calibrated(tuned, tmp_path):
    with pytest.raises(UserError, match="a score has no confidence"):
        calibrated(tuned("regression").model, tuned("regression").data)
    with pytest.raises(UserError, match="is not a model directory"):
        calibrated("someone/a-model", tuned("classification").data)
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="of type bert"):
        calibrated(folder, tuned("classification").data)


# Use of what was written


def test_pipeline_on_a_calibrated_model(tuned, tmp_path):
    folder = copied(tuned, "classification", tmp_path)
    texts = ["the king of it", "by the river", "one of the king in the of a"]
    before = pipeline("text-classification", model=str(folder), device="cpu")(texts, batch_size=3)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "exit_threshold": 0.5}))
    classify = pipeline("text-classification", model=str(folder), device="cpu")
    with torch.no_grad():
        encoded = classify.tokenizer(texts, padding=True, return_tensors="pt")
        assert classify.model(**encoded).exit_iterations.tolist() == [
            1,
            1,
            1,
        ]  # of two classes one has a half
    early = classify(texts, batch_size=3)
    shallow = Predictor.load(str(folder), num_iterations=1).predict(texts)
    for result, expected in zip(early, shallow, strict=True):
        assert result["label"] == expected["label"]
        assert result["score"] == pytest.approx(expected["score"], abs=1e-5)
    assert [result["score"] for result in early] != pytest.approx([result["score"] for result in before])


def test_another_depth_is_recorded(tuned):
    made = tuned("classification")

    def score(**options):
        return evaluate(made.model, task=TaskRecipe(data=str(made.data)), progress=False, **options).record

    full = score()
    assert not {"num_iterations", "exit_threshold", "mean_iterations"} & full.keys()
    shallow = score(num_iterations=1)
    assert shallow["num_iterations"] == 1
    assert "mean_iterations" not in shallow
    assert any("1 iterations are not what the model was trained for" in note for note in shallow["notes"])
    early = score(exit_threshold=0.5)  # of two classes one has a half
    assert early["exit_threshold"] == 0.5
    assert early["mean_iterations"] == {"test": 1.0}
    assert early["metrics"] == shallow["metrics"]
    assert score(exit_threshold=0.5, num_iterations=2)["num_iterations"] == 2
    with pytest.raises(UserError, match="num_iterations: expected at least 1, found -1"):
        score(num_iterations=-1)
