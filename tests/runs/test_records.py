"""Records have types: what a verb writes is held to them, and what is read is told with file and field."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from minialbert.errors import UserError
from minialbert.runs.records import (
    _TYPES,
    FinetuneRecord,
    GridRecord,
    RunRecord,
    _record,
    check_output,
    load_record,
    mean_and_sd,
    record_files,
    typed_record,
    write_result,
)

RESULTS = Path(__file__).parents[2] / "results"


def tuned(**changes):
    return {
        "kind": "finetune", "task": "cola", "problem": "single-label", "metric": "accuracy", "split": "validation",
        "score": 0.5, "metrics": {"validation": {"accuracy": 0.5}}, "seed": 1, "mode": "full", "recipe": {},
        "model": {"name": "student", "parameters": 9, "encoder_parameters": 7, "trainable_parameters": 9},
        **changes,
    }  # fmt: skip


def test_every_record_of_the_repository_has_the_type_of_its_kind():
    files = record_files([RESULTS])
    read = [
        (data := load_record(file), typed_record(data, _TYPES.get(data["kind"], RunRecord), file))
        for file in files
    ]
    assert {"finetune", "distillation", "grid", "bench", "export"} <= {made.kind for _, made in read}
    for data, made in read:
        assert made.model_dump(exclude_unset=True) == data  # nothing is dropped or converted


def test_what_a_verb_writes_is_held_to_its_type(tmp_path):
    file = tmp_path / "result.json"
    with pytest.raises(ValidationError, match="seed"):
        write_result(file, tuned(seed=1.5))
    assert not file.exists()
    assert math.isnan(write_result(file, tuned(score=math.nan))["score"])
    written = write_result(file, tuned(of_a_later_version={"a": 1}))
    assert json.loads(file.read_text()) == written
    assert list(written)[:2] == ["format_version", "kind"] and written["of_a_later_version"] == {"a": 1}
    made = typed_record(load_record(file), FinetuneRecord, file)
    assert (made.model.encoder_parameters, made.seed, made.commit) == (7, 1, written["commit"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 3}, "the field model should be an object, but is 3"),
        ({"model": {"name": "x", "encoder_parameters": 1}}, "lacks the field model.trainable_parameters"),
        ({"metrics": {"validation": 1}}, "the field metrics.validation should be an object"),
        ({"score": float("inf")}, "the field score should be a finite number"),
        ({"adapter_init": "best"}, "adapter_init should be one of pre-trained, as-published or identity"),
        ({"mode": "adapters"}, "adapter_init should be one of"),
        ({"notes": {}}, "the field notes should be a list"),
    ],
)  # fmt: skip
def test_a_fault_is_told_in_one_line_with_file_and_field(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        typed_record(tuned(**changes), FinetuneRecord, Path("run/result.json"))
    assert str(caught.value).startswith("run/result.json") and "\n" not in str(caught.value)


def test_a_grid_without_its_cells():
    with pytest.raises(UserError, match="lacks the field cells"):
        typed_record({"kind": "grid", "selected": {}}, GridRecord, Path("result.json"))


def test_a_precision_that_was_left_open_counts_as_what_the_run_had():
    training = {"steps": 1, "wall_seconds": 1.0, "precision": "fp32"}
    made = [
        _record(
            tuned(recipe={"tuning": {"precision": one}}, training=training, seed=seed), Path("result.json")
        )
        for seed, one in enumerate(("auto", "fp32"))
    ]
    assert made[0].settings == made[1].settings == {"tuning.precision": "fp32"}


def test_mean_and_deviation_over_seeds():
    mean, sd = mean_and_sd([0.40, 0.44, 0.45])
    assert (mean, sd) == (pytest.approx(0.43), pytest.approx(0.0264575))
    assert mean_and_sd([0.5]) == (0.5, None)


def test_the_record_of_another_run_is_not_written_over(tmp_path):
    write_result(tmp_path / "result.json", {"kind": "bench", "settings": {}, "models": {}})
    with pytest.raises(UserError, match="holds a result.json: give --overwrite"):
        check_output(tmp_path, kind="bench", overwrite=False)
    check_output(tmp_path, kind="bench", overwrite=True)
    with pytest.raises(UserError, match=r"is the record of another run \(bench\)"):
        check_output(tmp_path, kind="evaluation", overwrite=True)
