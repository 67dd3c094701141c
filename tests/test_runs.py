"""Run directories and records."""

from __future__ import annotations

import json

import pytest

from minialbert.errors import UserError
from minialbert.runs import RunDirectory, display_name, environment, write_atomically, write_result


def test_a_new_directory_gets_the_recipe(tmp_path):
    run = RunDirectory(tmp_path / "a" / "run")
    run.open("name: x\n")
    assert run.recipe.read_text() == "name: x\n"


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(UserError, match="exclude each other"):
        RunDirectory(tmp_path / "run").open("", resume=True, overwrite=True)


def test_overwrite_removes_what_runs_write_and_nothing_else(tmp_path):
    run = RunDirectory(tmp_path)
    run.open("name: x\n", overwrite=True)
    (run.checkpoints / "checkpoint-3").mkdir(parents=True)
    run.model.mkdir()
    run.append_log({"step": 1})
    (tmp_path / "notes.txt").write_text("mine")
    run.open("name: y\n", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "recipe.yaml"]


def test_the_last_checkpoint_is_the_newest_complete_one(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.last_checkpoint() is None
    for step in (2, 10, 30):
        (run.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
    for step in (2, 10):
        (run.checkpoints / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (run.checkpoints / "partial").mkdir()
    assert run.last_checkpoint().name == "checkpoint-10"


def test_a_log_is_rewound_past_a_line_that_was_cut_off(tmp_path):
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        run.append_log({"step": step})
    with run.log.open("a") as file:
        file.write('{"step": 4, "lo')
    run.rewind_log(2)
    assert run.read_log() == [{"step": 1}, {"step": 2}]


def test_a_record_says_what_it_was_measured_with(tmp_path):
    record = write_result(
        tmp_path / "result.json", {"kind": "x", "metrics": {"a": 1.0}, "seed": 1, "model": "m"}
    )
    assert json.loads((tmp_path / "result.json").read_text()) == record
    assert record["metrics"] == {"a": 1.0}
    assert {"versions", "commit", "machine"} <= set(environment())
    assert record["versions"]["torch"]
    assert record["machine"]["cores"] >= 1


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    import os

    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_local_models_are_named_without_their_path(tmp_path):
    (tmp_path / "teacher").mkdir()
    assert display_name(tmp_path / "teacher") == "teacher"
    assert display_name("bert-base-uncased") == "bert-base-uncased"
    assert display_name(None) is None
