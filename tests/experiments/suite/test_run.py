"""Running a suite: order, resuming, models that are made again, and one real run that is killed and goes on."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_tiny_task
from suite_records import DEFINITION, make_suite, record_of, write_record, write_suite

from minialbert.data.examples import Task, TextExample
from minialbert.errors import UserError
from minialbert.experiments.pool import Outcome
from minialbert.experiments.suite.cells import expand, find_results
from minialbert.experiments.suite.run import check_teachers, plan_work, run_suite
from minialbert.experiments.suite.schema import load_suite
from minialbert.recipes.load import dump_recipe, load_recipe
from minialbert.recipes.schema import FinetuneRecipe, Recipe
from minialbert.runs.device import resolve_precision
from minialbert.runs.files import sole_user

ROWS = ["small", "plain", "start"]


class FakeWorkers:
    """Runs a job when it is waited for, the oldest first; `ends` is what else happens to a name."""

    def __init__(self, suite, ends=None, room=1):
        self.suite, self.ends, self._room = (
            suite,
            {name: list(queue) for name, queue in (ends or {}).items()},
            room,
        )
        self.started, self.jobs, self.stopped, self._running = [], {}, 0, []

    @property
    def has_room(self):
        return len(self._running) < self._room

    @property
    def running(self):
        return len(self._running)

    def start(self, job):
        self.started.append(job.name)
        self.jobs[job.name] = job
        if job.words[0] == "finetune":
            assert job.words[1:] == ["--keep-models", "none"]
            model = Path(recipe_of_job(job).model.name)
            assert model.is_dir(), f"{job.name} starts before its model is there"
        self._running.append(job)

    def wait(self, seconds):
        job = self._running.pop(0)
        outcome = self.ends[job.name].pop(0) if self.ends.get(job.name) else Outcome("done")
        if outcome.status == "done":
            leave(self.suite, job)
        return [(job, outcome)]

    def stop(self):
        self.stopped += 1
        self._running.clear()


def recipe_of_job(job):
    return load_recipe(str(job.recipe_file), FinetuneRecipe if job.words[0] == "finetune" else Recipe)


def leave(suite, job):
    """Write what a worker leaves."""
    folder = Path(job.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe_of_job(job)))
    if job.words[0] != "finetune":
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(job.output)
    (folder / "result.json").write_text(json.dumps(record_of(suite, job.name)))


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """Call `run_suite` with fake workers; the call returns them."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("corpus.txt", "king", "river"):
        (data / name).touch()
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "model.safetensors").write_text("weights")
    prepared = []

    def prepare_windows(suite, cells, places, folder, *, progress):
        prepared.append([cell.row for cell in cells if cell.is_distillation])
        return {cell.row: str(folder / "text") for cell in cells if cell.is_distillation}

    def load_task(recipe, *, data):
        rows = {"train": [TextExample(data.read_text(), label="a")]}
        return Task(recipe.name, "single-label", ("a", "b"), "accuracy", rows)

    monkeypatch.setattr("minialbert.experiments.suite.run.prepare_windows", prepare_windows)
    monkeypatch.setattr("minialbert.experiments.suite.run.load_task", load_task)

    def run(suite=None, *, ends=None, room=1, teachers=None, **options):
        suite = suite or make_suite()
        workers = FakeWorkers(suite, ends, room)
        monkeypatch.setattr("minialbert.experiments.suite.run.LocalWorkers", lambda jobs: workers)
        named = {"main": str(teacher)} if teachers is None else teachers
        options = {"progress": False, **options}
        workers.results = run_suite(
            suite, teachers=named, data=data, output=tmp_path / "run", jobs=room, **options
        )
        workers.prepared = prepared
        return workers

    run.output, run.data, run.teacher = tmp_path / "run", data, teacher
    return run


def models(trial):
    folder = trial.output / "models"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def names_of(*rows):
    return [cell.name for cell in expand(make_suite()) if cell.row in (rows or [*ROWS, "teacher"])]


def test_cells_run_in_the_order_of_the_suite_and_no_student_stays(trial, caplog):
    caplog.set_level(logging.INFO)
    workers = trial(progress=True)
    assert workers.started == names_of()
    assert set(workers.results) == set(names_of())
    assert models(trial) == []
    assert workers.prepared == [ROWS]
    for name in names_of():
        assert (trial.output / "cells" / name / "result.json").is_file()
    assert not list(trial.output.glob("cells/**/model"))
    assert "2 cells are left out: no --teacher other=DIR was given" in caplog.messages
    windows = ["distill", "--data", str(trial.output / "windows" / "text")]
    assert workers.jobs["small/distill"].words == windows
    assert workers.jobs["start/distill"].words == [*windows, "--start-only"]
    tuned = recipe_of_job(workers.jobs["small/full/king-1"])
    assert tuned.tuning.precision == resolve_precision("auto")  # no cell measures for itself
    assert tuned.model.name == str(trial.output / "models" / "small")
    first = next(line for line in caplog.messages if line.startswith("2/22 small/full/king-1:"))
    assert "accuracy 50.0 on test (0:10)" in first
    assert caplog.messages[-1].endswith("suite: nothing left")


def test_a_student_is_kept_as_long_as_a_cell_needs_it(trial):
    trial(only=["core"])
    assert models(trial) == ["small"]  # for the group `more`; plain has nothing left
    trial()
    assert models(trial) == []


def test_all_students_stay_if_asked_for(trial):
    trial(keep_models="all")
    assert models(trial) == sorted(ROWS)
    assert trial(keep_models="all").started == []


def test_finished_cells_are_never_run_again(trial, caplog):
    trial()
    before = {path: path.stat().st_mtime_ns for path in trial.output.glob("cells/**/result.json")}
    caplog.set_level(logging.INFO)
    assert trial(progress=True).started == []
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "suite trial: all 22 cells are done" in caplog.messages


def test_a_missing_cell_gets_its_student_made_again_and_the_first_record_stays(trial, caplog):
    caplog.set_level(logging.INFO)
    trial()
    record = trial.output / "cells" / "small" / "distill" / "result.json"
    record.write_text(json.dumps(record_of(make_suite(), "small/distill", 0.25)))
    shutil.rmtree(trial.output / "cells" / "small" / "full" / "river-2")
    workers = trial(progress=True)
    assert workers.started == ["small/distill", "small/full/river-2"]
    assert workers.jobs["small/distill"].output == str(trial.output / "again" / "small")
    told = [line for line in caplog.messages if "made again" in line]
    assert told == [
        "21/22 small/distill: made again (0:40)  suite: about 0:10 of compute left on this machine"
    ]
    assert json.loads(record.read_text())["metrics"]["student_end"]["mlm_accuracy"] == 0.25
    assert models(trial) == []


def test_records_of_elsewhere_count_as_done(trial, tmp_path):
    suite, records = make_suite(), tmp_path / "records"
    for cell in expand(suite):
        if cell.row != "foreign" and cell.name not in ("small/full/king-2", "teacher/full/king-1"):
            write_record(records, suite, cell.name)
    workers = trial(records=records)
    assert workers.started == ["small/distill", "small/full/king-2", "teacher/full/king-1"]
    assert not (trial.output / "cells" / "small" / "distill").exists()
    assert len(workers.results) == 22
    with pytest.raises(UserError, match="--records .*: has no folder cells"):
        trial(records=tmp_path)


def test_a_chosen_tuning_brings_its_distillation_with_it(trial):
    workers = trial(only=["plain/full/king-2"])
    assert workers.started == ["plain/distill", "plain/full/king-2"]
    assert models(trial) == ["plain"]
    assert trial(only=["plain/full/king-1"]).started == ["plain/full/king-1"]


def test_two_at_a_time_keep_the_order_where_they_can(trial):
    workers = trial(room=2)
    # While small is distilled its tunings wait, and the next distillation does not.
    assert workers.started[:3] == ["small/distill", "plain/distill", "small/full/king-1"]
    assert sorted(workers.started) == sorted(names_of())


def test_a_worker_that_dies_is_started_again(trial, caplog):
    crash = Outcome("crashed", "killed by SIGKILL")
    workers = trial(ends={"small/distill": [crash]})
    assert workers.started[:2] == ["small/distill", "small/distill"]
    assert "small/distill: its worker is started again (killed by SIGKILL)" in caplog.messages
    assert len(workers.results) == 22


def test_what_fails_twice_holds_up_only_what_needs_it(trial):
    crash = Outcome("crashed", "out of memory")
    with pytest.raises(UserError, match=r"1 of 22 cells failed twice, .*: plain/distill \(out of memory\)"):
        trial(ends={"plain/distill": [crash, crash]})
    done = set(find_results(make_suite(), [trial.output]))
    assert done == set(names_of("small", "start", "teacher"))
    assert trial().started == names_of("plain")


def test_a_mistake_ends_the_suite_and_names_its_cell(trial):
    with pytest.raises(UserError, match="^small/full/king-1: row 3 has no label$"):
        trial(ends={"small/full/king-1": [Outcome("mistake", "row 3 has no label")]})


def test_a_run_that_was_killed_before_its_student_was_moved_goes_on(trial):
    suite = make_suite()
    folder = write_record(trial.output, suite, "plain/distill").parent
    (folder / "model").mkdir()
    assert trial(only=["plain"]).started == names_of("plain")[1:]


def test_ctrl_c_stops_the_workers_and_starts_none(trial, monkeypatch):
    original = FakeWorkers.wait
    stopped = []
    monkeypatch.setattr(FakeWorkers, "stop", lambda self: stopped.append(len(self.started)))

    def wait(self, seconds):
        signal.raise_signal(signal.SIGINT)
        return original(self, seconds)

    monkeypatch.setattr(FakeWorkers, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        trial()
    assert stopped == [1]
    monkeypatch.setattr(FakeWorkers, "wait", original)
    assert trial().started == names_of()[1:]


def test_a_record_of_other_settings_is_refused(trial):
    trial(only=["plain"])
    rows = {
        **DEFINITION["rows"],
        "plain": {**DEFINITION["rows"]["plain"], "settings": {"training.max_steps": 9}},
    }
    with pytest.raises(
        UserError, match=r"made by other settings than the suite trial has for plain/distill: "
    ) as caught:
        trial(make_suite(rows=rows))
    assert "training.max_steps 4 instead of 9" in str(caught.value)
    assert "student.adapter_reduction_factor None instead of 4" in str(caught.value)


def test_a_record_from_before_a_key_counts_and_so_does_one_logged_elsewhere(trial):
    trial(only=["plain"])
    for name, section in (("plain/distill", "training"), ("plain/full/king-1", "tuning")):
        path = trial.output / "cells" / name / "result.json"
        record = json.loads(path.read_text())
        del record["recipe"][section]["max_skipped_steps"]
        record["recipe"][section]["report_to"] = ["tensorboard"]
        path.write_text(json.dumps(record))
    assert trial(only=["plain"]).started == []


def test_a_rate_that_the_suite_leaves_open_is_that_of_the_record(trial):
    trial(only=["plain"])
    path = trial.output / "cells" / "plain" / "full" / "king-1" / "result.json"
    record = json.loads(path.read_text())
    record["recipe"]["tuning"]["learning_rate"] = 3e-4
    path.write_text(json.dumps(record))
    assert trial(only=["plain"]).started == []
    full = json.loads(json.dumps(DEFINITION["modes"]["full"]))
    full["settings"]["tuning.learning_rate"] = 1e-4
    told = "plain/full/king-1: tuning.learning_rate 0.0003 instead of 0.0001"
    with pytest.raises(UserError, match=told):
        trial(make_suite(modes={**DEFINITION["modes"], "full": full}), only=["plain"])


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "finetune"}', '{"kind": "grid"}'])
def test_a_damaged_record_is_named(trial, text):
    trial(only=["plain"])
    path = trial.output / "cells" / "plain" / "full" / "king-1" / "result.json"
    path.write_text(text)
    with pytest.raises(
        UserError, match=r"king-1/result.json is not a record of the cell plain/full/king-1 \("
    ):
        trial()


def test_another_teacher_is_refused(trial):
    trial(only=["plain/distill"])
    (trial.teacher / "model.safetensors").write_text("other weights")
    with pytest.raises(UserError, match="--teacher main=.*: other weights than the finished cells of"):
        trial()


def test_other_rows_of_a_task_are_not_mixed_with_those_of_finished_cells(trial, caplog):
    trial(only=["plain/full/king-*"])
    kept = trial.output / "tasks.json"
    assert list(json.loads(kept.read_text())) == ["king"]
    (trial.data / "king").write_text("other text")
    with pytest.raises(
        UserError, match=r"--data .*: other data than the finished cells .*\(king: train .*, now "
    ):
        trial()
    kept.unlink()  # a suite of an earlier version
    trial()
    assert "no fingerprint of king to compare" in caplog.text


def test_teachers_of_records_count_too(tmp_path):
    teacher, records = tmp_path / "teacher", tmp_path / "records"
    for folder in (teacher, records):
        folder.mkdir()
    (teacher / "model.safetensors").write_text("weights")
    check_teachers(records / "teachers.json", None, {"main": str(teacher)})
    check_teachers(tmp_path / "teachers.json", records, {"main": str(teacher), "hub": "some/model"})
    assert set(json.loads((tmp_path / "teachers.json").read_text())) == {"main", "hub"}
    (teacher / "model.safetensors").write_text("other weights")
    with pytest.raises(UserError, match="other weights"):
        check_teachers(tmp_path / "new" / "teachers.json", records, {"main": str(teacher)})


def test_what_does_not_fit_is_told_before_anything_is_written(trial, tmp_path):
    with pytest.raises(UserError, match="the suite trial has no teacher of that name; it has main, other"):
        trial(teachers={"mian": "x"})
    (trial.data / "river").unlink()
    with pytest.raises(
        UserError, match="has no river, which the cells asked for need; add it, or choose others"
    ):
        trial()
    assert not trial.output.exists()
    assert trial(only=["core"]).started == [name for name in names_of() if name in workers_of("core")]
    with pytest.raises(UserError, match="jobs is 0"):
        trial(room=0)


def workers_of(group):
    return {cell.name for cell in expand(make_suite()) if cell.group == group}


def test_a_folder_with_something_else_or_somebody_else_in_it_is_refused(trial):
    trial.output.mkdir()
    (trial.output / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no suite"):
        trial()
    (trial.output / "cells").mkdir()
    said = pytest.raises(UserError, match="another suite is running in")
    with sole_user(trial.output, "suite"), said:
        trial()


def test_the_work_that_is_left(tmp_path):
    suite = make_suite()
    write_record(tmp_path, suite, "small/distill")
    write_record(tmp_path, suite, "small/full/king-1")
    work = plan_work(suite, teachers=None, output=tmp_path, only=["core"])
    assert (len(work.asked), len(work.pending), work.left_out) == (11, 9, [])
    assert work.jobs[0].name == "plain/distill"
    assert "small/distill" in [cell.name for cell in work.jobs]  # its student is not there
    assert set(work.results) == {"small/distill", "small/full/king-1"}


# The command line


def test_status_and_dry_run(call, tmp_path):
    suite = make_suite()
    path, run = write_suite(tmp_path / "trial.yaml"), tmp_path / "run"
    for name in ("small/distill", "small/full/king-1", "small/full/king-2"):
        write_record(run, suite, name)
    before = sorted(path.name for path in run.iterdir())
    status, out, _ = call("suite", "status", path, "--records", run, "--json")
    assert status == 0
    told = json.loads(out)
    assert told["rows"][:2] == [
        {"row": "small", "what": "distill", "done": 1, "cells": 1},
        {"row": "small", "what": "full", "done": 2, "cells": 5},
    ]
    assert "small/full/king-3" in told["missing"]
    core = {"group": "core", "done": 3, "cells": 11, "left": "about 2:30 of compute left on this machine"}
    assert told["groups"][0] == core
    assert "king-3, river-1" in call("suite", "status", path, "--records", run)[1]
    status, out, _ = call(
        "suite",
        "run",
        path,
        "--output",
        run,
        "--data",
        tmp_path,
        "--teacher",
        "somewhere",
        "--only",
        "core",
        "--dry-run",
    )
    lines = out.splitlines()
    assert "to run again core         small/distill" in lines
    assert "done         core         small/full/king-1" in lines
    assert lines[-1].startswith("suite trial: 9 cells to run; about 2:30 of compute left on this machine")
    assert sorted(path.name for path in run.iterdir()) == before


def test_teachers_on_the_command_line(refuse, tmp_path):
    path = write_suite(tmp_path / "trial.yaml")
    arguments = ("suite", "run", path, "--output", tmp_path / "run", "--data", tmp_path)
    assert "two are given for main" in refuse(*arguments, "--teacher", "a", "--teacher", "main=b")
    assert "takes none, its recipes name their own" in refuse(
        "suite", "run", "paper", "--output", tmp_path / "run", "--data", tmp_path, "--teacher", "a"
    )


# A real run


@pytest.fixture
def real(tmp_path, tiny_teacher_dir, tiny_corpus):
    """A suite of two rows, one task and one seed, with all that it needs."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(tiny_corpus, data / "corpus.txt")
    write_tiny_task(data / "king", "classification")
    (tmp_path / "short.yaml").write_text(
        "base: tiny\ndata: {window_length: 32, overlap: 8}\ntraining: {max_steps: 6, save_steps: 2, eval_steps: 6}\n"
    )
    long = {
        "recipe": "short.yaml",
        "settings": {"training.max_steps": 400},
        "teacher": "main",
        "corpus": "text",
    }
    compared = {"a": "long", "b": "start", "tasks": ["king"]}
    path = write_suite(
        tmp_path / "real.yaml",
        name="real",
        rows={
            "start": {**long, "distilled": False},
            "long": long,
            "teacher": {"teacher": "main"},
        },
        tasks={"king": {**DEFINITION["tasks"]["king"], "settings": {"max_length": 32, "overlap": 8}}},
        groups=[{"name": "all", "cells": ["start", "long", "teacher"], "tasks": ["king"], "seeds": [1]}],
        tables=[],
        claims=[{"name": "one", "text": "Distillation helps.", "comparisons": [compared]}],
        reach=None,
    )  # fmt: skip
    command = [
        sys.executable, "-m", "minialbert", "suite", "run", str(path), "--teacher", str(tiny_teacher_dir),
        "--data", str(data), "--output", str(tmp_path / "run"), "--only", "start,long",
    ]  # fmt: skip
    return path, tmp_path / "run", command


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_real_suite_is_killed_and_goes_on(real, call):
    path, output, command = real
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    checkpoints = output / "cells" / "long" / "distill" / "checkpoints"
    deadline = time.monotonic() + 200
    while (
        not list(checkpoints.glob("checkpoint-*")) and time.monotonic() < deadline and started.poll() is None
    ):
        time.sleep(0.05)
    started.kill()
    _, told = started.communicate()
    assert list(checkpoints.glob("checkpoint-*")), told.decode()
    assert set(find_results(load_suite(str(path)), [output])) == {"start/distill", "start/full/king-1"}
    time.sleep(1.0)  # the worker sees that it is alone, and saves
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "resuming from checkpoint-" in (output / "logs" / "long" / "distill.log").read_text()
    results = find_results(load_suite(str(path)), [output])
    assert set(results) == {"start/distill", "start/full/king-1", "long/distill", "long/full/king-1"}
    first, last = (results[f"{row}/distill"].record for row in ("start", "long"))
    assert (first["kind"], first["training"]["steps"]) == ("initialisation", 0)
    assert first["metrics"]["student_start"] == last["metrics"]["student_start"]
    assert last["metrics"]["student_end"]["mlm_loss"] < last["metrics"]["student_start"]["mlm_loss"]
    assert results["long/full/king-1"].record["model"]["name"] == "long"
    assert not list((output / "models").iterdir())
    status, out, _ = call("suite", "report", path, "--records", output)
    assert status == 0
    assert "| Distillation helps. | unfinished |" in out
