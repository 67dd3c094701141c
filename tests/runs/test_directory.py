"""Run directories and records."""

from __future__ import annotations

import json
import os

import pytest

from minialbert.errors import UserError, display_name, spelled_as_path
from minialbert.recipes.load import apply_overrides, dump_recipe, load_recipe
from minialbert.recipes.schema import FinetuneRecipe
from minialbert.runs.checkpoints import last_whole_checkpoint, new_checkpoint
from minialbert.runs.directory import RunDirectory
from minialbert.runs.files import write_atomically
from minialbert.runs.machine import environment
from minialbert.runs.records import write_result

TINY = load_recipe("tiny")


def test_a_new_directory_gets_the_recipe(tmp_path):
    run = RunDirectory(tmp_path / "a" / "run")
    run.open(TINY, data={"windows": 3})
    assert load_recipe(str(run.recipe)) == TINY
    assert json.loads(run.data.read_text()) == {"windows": 3}


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(UserError, match="exclude each other"):
        RunDirectory(tmp_path / "run").open(TINY, resume=True, overwrite=True)


def test_overwrite_removes_what_runs_write_and_nothing_else(tmp_path):
    run = RunDirectory(tmp_path)
    run.open(TINY, data={}, overwrite=True)
    (run.checkpoints / "checkpoint-3").mkdir(parents=True)
    run.model.mkdir()
    run.append_log({"step": 1})
    (tmp_path / "notes.txt").write_text("mine")
    run.open(TINY, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "recipe.yaml"]


@pytest.mark.parametrize("recipe", [load_recipe("tiny"), load_recipe("default", FinetuneRecipe)])
def test_resume_wants_the_same_recipe_and_fills_in_keys_that_are_newer_than_the_run(recipe, tmp_path):
    run = RunDirectory(tmp_path)
    run.open(recipe)
    section = "tuning" if isinstance(recipe, FinetuneRecipe) else "training"
    lines = dump_recipe(recipe).splitlines()
    run.recipe.write_text("\n".join(line for line in lines if "max_skipped_steps" not in line))
    run.open(recipe, resume=True)
    assert load_recipe(str(run.recipe), type(recipe)) == recipe
    with pytest.raises(UserError, match="another recipe; different: max_skipped_steps: 3"):
        run.open(apply_overrides(recipe, [f"{section}.max_skipped_steps=3"]), resume=True)


def test_resume_wants_the_same_data(tmp_path):
    def data(fingerprint):
        folder = {"name": "a", "windows": 3, "held_out_windows": 1, "fingerprint": fingerprint}
        return {"folders": [folder]}

    run = RunDirectory(tmp_path)
    run.open(TINY, data=data("1"))
    run.open(TINY, data=data("1"), resume=True)
    with pytest.raises(UserError, match=r"a run on other data \(a .*\): give the same --data"):
        run.open(TINY, data=data("2"), resume=True)
    run.data.write_text("[1")
    with pytest.raises(UserError, match="data.json is damaged"):
        run.open(TINY, data=data("1"), resume=True)
    run.data.write_text("[1]")
    with pytest.raises(UserError, match="what the run says of its windows is damaged"):
        run.open(TINY, data=data("1"), resume=True)


def test_what_else_is_read_is_compared_by_name(tmp_path, caplog):
    data = {"teacher": {"name": "a", "weights": "1" * 64, "config": None}, "rows": {"labels": ["x", "y"]}}
    run = RunDirectory(tmp_path)
    run.open(TINY, data=data)
    moved = {**data, "teacher": {**data["teacher"], "name": "b"}}
    run.open(TINY, data=moved, resume=True)
    other = {"teacher": {"name": "a", "weights": "2" * 64, "config": "3"}, "rows": {"labels": ["x", "z"]}}
    told = r"teacher: weights 11111111111…, now 22222222222…; rows: labels x, y, now x, z\): give the same"
    with pytest.raises(UserError, match=told):
        run.open(TINY, data=other, resume=True)
    assert caplog.text == ""  # without a checkpoint there is nothing to go on with
    with new_checkpoint(run.checkpoints, 1, keep=None):
        pass
    run.open(TINY, data=data, resume=True)
    assert "no fingerprint of teacher to compare" in caplog.text and "rows" not in caplog.text
    # What is not known now is remembered from before.
    run.open(TINY, data={**data, "teacher": {"name": "a", "weights": None, "config": "3"}}, resume=True)
    assert json.loads(run.data.read_text())["teacher"] == {"name": "a", "weights": "1" * 64, "config": "3"}
    with pytest.raises(UserError, match="teacher: weights 11111111111…, now 22222222222…"):
        run.open(TINY, data={**other, "rows": data["rows"]}, resume=True)


def test_checkpoints_without_what_they_belong_to_are_refused(tmp_path, caplog):
    run = RunDirectory(tmp_path)
    run.open(TINY)  # as versions did that kept no data of a tuning
    with new_checkpoint(run.checkpoints, 1, keep=None):
        pass
    run.open(TINY, data={"rows": {"train": "1"}}, resume=True)
    assert "no fingerprint of rows to compare" in caplog.text
    with new_checkpoint(run.checkpoints, 2, keep=None):
        pass
    for file in (run.data, run.recipe):
        kept = file.read_bytes()
        file.unlink()
        with pytest.raises(UserError, match=f"{file.name} is missing; it identifies the checkpoints"):
            run.open(TINY, data={"rows": {"train": "1"}}, resume=True)
        assert not file.exists()
        file.write_bytes(kept)
    run.open(TINY, data={"rows": {"train": "1"}}, resume=True)


def test_the_last_checkpoint_is_the_newest_whole_one(tmp_path):
    run = RunDirectory(tmp_path)
    assert last_whole_checkpoint(run.checkpoints) is None
    for step in (2, 10):
        with new_checkpoint(run.checkpoints, step, keep=None) as folder:
            (folder / "weights").write_text("1")
    (run.checkpoints / "checkpoint-30").mkdir()
    (run.checkpoints / "partial").mkdir()
    assert last_whole_checkpoint(run.checkpoints) == run.checkpoints / "checkpoint-10"


def test_a_log_is_rewound_past_a_line_that_was_cut_off(tmp_path):
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        run.append_log({"step": step})
    with run.log.open("a") as file:
        file.write('5\n[]\n{"step": "x"}\n{"step": 4, "lo')
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
    assert display_name("/gone/since/run/model") == "run"
    assert display_name("runs/a/student") == "student"


@pytest.mark.parametrize("name", ["./x", "~/x", "/x", "C:x", "a\\b", "a/b/c"])
def test_a_path_does_not_look_like_a_hub_id(name):
    assert spelled_as_path(name)
    assert not spelled_as_path("owner/name") and spelled_as_path("owner/name", slashes=0)


def test_links_planted_in_a_run_from_elsewhere_lead_nowhere(tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.path.joinpath(".result.json.partial").symlink_to(target)
    run.result.symlink_to(target)
    write_result(run.result, {"kind": "x", "metrics": {}, "seed": 1, "model": "m"})
    assert not run.result.is_symlink()
    run.log.symlink_to(target)
    with pytest.raises(UserError, match="log.jsonl is a link"):
        run.append_log({"step": 1})
    assert target.read_text() == "mine"


def test_a_run_keeps_others_out_of_its_directory(tmp_path, monkeypatch):
    monkeypatch.setattr("minialbert.runs.directory._PATIENCE", 0.2)
    with RunDirectory(tmp_path / "run").alone():
        for resume in (False, True):
            said = pytest.raises(UserError, match="another run is running in")
            with said, RunDirectory(tmp_path / "run").alone(resume=resume):
                pass
        monkeypatch.setenv("RANK", "1")  # another process of the same run
        with RunDirectory(tmp_path / "run").alone():
            pass


def test_a_log_may_go_elsewhere_when_a_run_is_resumed(tmp_path):
    recipe, run = TINY, RunDirectory(tmp_path / "run")
    run.open(recipe)
    run.open(apply_overrides(recipe, ["training.report_to=tensorboard"]), resume=True)
    with pytest.raises(UserError, match="seed: 7"):
        run.open(apply_overrides(recipe, ["training.seed=7"]), resume=True)


@pytest.mark.parametrize(
    "place",
    [
        "checkpoints",
        "checkpoints/checkpoint-9",
        "checkpoints/partial",
        "model",
        "teacher-cache/0",
        "tracking",
    ],
)
def test_a_run_from_elsewhere_goes_on_in_no_folder_that_a_link_leads_to(place, tmp_path):
    run, outside = RunDirectory(tmp_path / "run"), tmp_path / "outside"
    run.open(TINY)
    (outside / "checkpoint-1").mkdir(parents=True)
    (run.path / place).parent.mkdir(exist_ok=True)
    (run.path / place).symlink_to(outside)
    with pytest.raises(UserError, match=f"{place} is a link"):
        run.open(TINY, resume=True)
    if "/" not in place:  # only the link is removed
        run.open(TINY, overwrite=True)
        assert not (run.path / place).exists()
    assert [path.name for path in outside.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize("name", ["log.jsonl", "data.json", "recipe.yaml", "result.json"])
def test_a_pipe_in_the_place_of_a_file_is_told_at_once(name, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.open(TINY, data={})
    (run.path / name).unlink(missing_ok=True)
    os.mkfifo(run.path / name)
    with pytest.raises(UserError, match=f"{name} is a pipe or device"):
        run.open(TINY, data={}, resume=True)


@pytest.mark.parametrize("name", ["checkpoints", "model", "teacher-cache"])
def test_a_file_in_the_place_of_a_folder_of_the_run_is_told(name, tmp_path):
    RunDirectory(tmp_path).open(TINY)
    (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=f"{name} is a file: expected a folder"):
        RunDirectory(tmp_path).open(TINY, resume=True)
