"""Grids: cells, the choice on validation, resuming, and workers that end in every way."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml

from minialbert import MiniAlbertForSequenceClassification
from minialbert.errors import MissingExtraError, UserError
from minialbert.experiments import grid as grids
from minialbert.experiments import pool
from minialbert.experiments import ray as grid_ray
from minialbert.experiments.grid import expand, grid_record, grid_rows, run_grid, select
from minialbert.experiments.pool import (
    Job,
    LocalWorkers,
    Outcome,
    end_processes,
    outcome_of,
    run_jobs,
    start_process,
)
from minialbert.experiments.ray import import_ray, node_share, run_on_node
from minialbert.recipes.load import apply_overrides, dump_recipe, load_recipe
from minialbert.recipes.schema import FinetuneRecipe
from minialbert.runs.files import sole_user
from minialbert.runs.records import cell as measured_cell
from minialbert.runs.records import find_records, group
from minialbert.tasks.models import load_tuned


def make_recipe(grid=None, *, task=None, model="student", **tuning) -> FinetuneRecipe:
    return FinetuneRecipe.model_validate(
        {
            "name": "trial",
            "model": {"name": str(model)},
            "task": task or {"name": "classification", "data": "rows"},
            "tuning": tuning,
            "grid": grid or {},
        }
    )


# Cells


def test_a_grid_is_every_combination_with_every_seed():
    cells = expand(make_recipe({"learning_rate": [5e-5, 0.001], "epochs": [3, 0.5], "seed": [1, 2]}))
    assert [cell.name for cell in cells] == [
        "lr5e-05-bs32-ep3-seed1", "lr5e-05-bs32-ep3-seed2", "lr5e-05-bs32-ep0.5-seed1", "lr5e-05-bs32-ep0.5-seed2",
        "lr0.001-bs32-ep3-seed1", "lr0.001-bs32-ep3-seed2", "lr0.001-bs32-ep0.5-seed1", "lr0.001-bs32-ep0.5-seed2",
    ]  # fmt: skip
    tuning = cells[2].recipe.tuning
    assert (tuning.learning_rate, tuning.batch_size, tuning.epochs, tuning.seed) == (5e-5, 32, 0.5, 1)
    assert all(not any(cell.recipe.grid.model_dump().values()) for cell in cells)


def test_an_empty_list_is_the_recipes_own_value():
    recipe = make_recipe(learning_rate=2e-5, batch_size=4, epochs=2.0, seed=7)
    (cell,) = expand(recipe)
    seeds = list(range(10_001))
    with pytest.raises(UserError, match="the grid has 10,001 cells: at most 10,000"):
        expand(make_recipe({"seed": seeds}))
    assert (cell.name, cell.recipe) == ("lr2e-05-bs4-ep2-seed7", recipe)


def test_close_values_have_folders_of_their_own():
    names = {cell.name for cell in expand(make_recipe({"learning_rate": [1e-5, 1.0000001e-5]}))}
    assert len(names) == 2


def test_a_cell_that_is_no_recipe_is_named():
    recipe = make_recipe({"batch_size": [32, 8]}, micro_batch_size=16)
    with pytest.raises(UserError, match=r"grid cell bs8-ep3-seed42: .*batch_size 8 is not a multiple"):
        expand(recipe)


# The choice


def record_of(cell, validation, test=None, *, metric="accuracy"):
    """A record as `finetune` leaves it, with made-up figures."""
    split = "validation" if test is None else "test"
    metrics = {"validation": {metric: validation, "per_type": {"A": {"f1": validation, "support": 3}}}}
    if test is not None:
        metrics["test"] = {metric: test}
    recipe = cell.recipe
    return {
        "format_version": 1,
        "kind": "finetune",
        "name": recipe.name,
        "task": "classification",
        "problem": "single-label",
        "metric": metric,
        "split": split,
        "score": metrics[split][metric],
        "metrics": metrics,
        "seed": recipe.tuning.seed,
        "mode": "full",
        "adapter_init": None,
        "teacher": None,
        "model": {
            "name": "student", "model_type": "minialbert", "parameters": 9, "encoder_parameters": 7,
            "trainable_parameters": 9,
        },
        "training": {"steps": 10, "wall_seconds": 10.0 * recipe.tuning.epochs},
        "data": {"rows": {"train": 8}},
        "notes": [],
        "recipe": recipe.model_dump(),
    }  # fmt: skip


def records_of(cells, values, **more):
    return {
        cell.name: record_of(cell, *(value if isinstance(value, tuple) else (value,)), **more)
        for cell, value in zip(cells, values, strict=True)
    }


TWO_BY_TWO = {"learning_rate": [1e-5, 3e-5], "seed": [1, 2]}


@pytest.mark.parametrize(
    ("values", "metric", "rate"),
    [
        ([0.5, 0.9, 0.6, 0.7], "accuracy", 1e-5),
        ([0.9, 0.3, 0.7, 0.6], "accuracy", 3e-5),  # not the best single run
        ([0.5, 0.75, 0.75, 0.5], "accuracy", 1e-5),  # equal: the earlier
        ([0.5, 0.9, 0.6, 0.7], "mean_squared_error", 3e-5),
        ([float("nan"), 0.9, 0.1, 0.1], "accuracy", 3e-5),
        ([float("nan"), 0.0, 9.0, 9.0], "mean_squared_error", 3e-5),
    ],
)
def test_the_best_mean_over_seeds_on_validation_is_chosen(values, metric, rate):
    cells = expand(make_recipe(TWO_BY_TWO))
    chosen = select(cells, records_of(cells, values, metric=metric))
    assert [(cell.recipe.tuning.learning_rate, cell.recipe.tuning.seed) for cell in chosen] == [
        (rate, 1),
        (rate, 2),
    ]


def test_the_test_split_is_reported_and_never_chosen_by():
    recipe = make_recipe(TWO_BY_TWO)
    cells = expand(recipe)
    values = [(0.8, 0.5), (0.6, 0.6), (0.2, 0.9), (0.4, 1.0)]
    records = records_of(cells, values)
    record = grid_record(recipe, cells, records, select(cells, records))
    selected = record["selected"]
    assert (record["split"], selected["learning_rate"], selected["n"]) == ("test", 1e-5, 2)
    assert selected["score"] == pytest.approx(0.55)
    assert selected["sd"] == pytest.approx(0.1 / 2**0.5)  # of 0.5 and 0.6
    assert selected["validation_score"] == pytest.approx(0.7)
    assert selected["validation_sd"] == pytest.approx(0.2 / 2**0.5)
    assert selected["best_cell"] == cells[0].name  # better on validation, worse on test
    assert record["metrics"]["test"] == {"accuracy": pytest.approx(0.55)}
    assert record["metrics"]["validation"]["per_type"] == {"A": {"f1": pytest.approx(0.7), "support": 3}}


def test_the_record_names_every_cell_and_how_to_run_it_again():
    recipe = make_recipe(TWO_BY_TWO)
    cells = expand(recipe)
    records = records_of(cells, [0.1, 0.2, 0.3, 0.4])
    record = grid_record(recipe, cells, records, select(cells, records))
    assert (record["kind"], record["seed"]) == ("grid", [1, 2])
    assert record["recipe"]["grid"] == recipe.grid.model_dump()
    assert record["selected"]["cells"] == [cell.name for cell in cells[2:]]
    assert record["cells"][3] == {
        "name": "lr3e-05-bs32-ep3-seed2", "learning_rate": 3e-5, "batch_size": 32, "epochs": 3.0, "seed": 2,
        "validation_score": 0.4, "score": 0.4, "wall_seconds": 30.0,
    }  # fmt: skip
    assert record["command"].endswith(
        "--set 'grid.learning_rate=[1e-05, 3e-05]' --set 'grid.seed=[1, 2]' --grid"
    )


def test_one_seed_has_no_deviation():
    recipe = make_recipe({"learning_rate": [1e-5, 3e-5]})
    cells = expand(recipe)
    records = records_of(cells, [0.1, 0.2])
    selected = grid_record(recipe, cells, records, select(cells, records))["selected"]
    assert (selected["n"], selected["sd"], selected["validation_sd"], selected["seed"]) == (1, None, None, 42)


def test_the_table_has_the_chosen_first_and_no_other_test_score():
    recipe = make_recipe({"learning_rate": [1e-5, 3e-5, 5e-5], "seed": [1, 2]})
    cells = expand(recipe)
    records = records_of(cells, [(0.1, 0.9), (0.1, 0.9), (0.6, 0.5), (0.8, 0.6), (0.3, 0.9), (0.3, 0.9)])
    rows = grid_rows(grid_record(recipe, cells, records, select(cells, records)))
    assert rows[0][4:6] == ("accuracy on validation", "selected, on test")
    assert rows[1:] == [
        ("3e-05", "32", "3", "2", "0.7000 ± 0.1414", "0.5500 ± 0.0707", "1:00"),
        ("5e-05", "32", "3", "2", "0.3000 ± 0.0000", "", "1:00"),
        ("1e-05", "32", "3", "2", "0.1000 ± 0.0000", "", "1:00"),
    ]


# The driver, with workers that leave made-up records


class FakeWorkers:
    """Runs a job when it is waited for. `scores` are by learning rate, `ends` what else happens to a name."""

    def __init__(self, scores=None, ends=None):
        self.scores, self.ends = scores or {}, {name: list(queue) for name, queue in (ends or {}).items()}
        self.started, self.stopped, self._jobs = [], 0, []

    has_room = True

    @property
    def running(self):
        return len(self._jobs)

    def start(self, job):
        self.started.append(job.name)
        self._jobs.append(job)

    def wait(self, seconds):
        job = self._jobs.pop(0)
        outcome = next(iter(self.ends.get(job.name, [])), Outcome("done"))
        if self.ends.get(job.name):
            self.ends[job.name].pop(0)
        if outcome.status == "done":
            write_cell(job, self.scores)
        return [(job, outcome)]

    def stop(self):
        self.stopped += 1
        self._jobs.clear()


def write_cell(job, scores):
    recipe, folder = load_recipe(str(job.recipe_file), FinetuneRecipe), Path(job.output)
    cell = SimpleNamespace(recipe=recipe)
    tuning = recipe.tuning
    score = scores.get(tuning.learning_rate, tuning.learning_rate) + tuning.seed / 1e6
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    assert job.words[0] == "finetune"
    if "none" not in job.words:
        for name in ("model", "adapters"):
            (folder / name).mkdir()
            (folder / name / "weights").write_text(job.name)
    (folder / "result.json").write_text(json.dumps(record_of(cell, score)))


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """Call `run_grid` with fake workers; the call returns them, with the record."""
    planned = []

    def plan(recipe):  # of a narrow student, on a processor that multiplies bf16 faster
        planned.append(recipe)
        tuning = recipe.tuning
        measured = {"auto": "bf16"}.get(tuning.precision, tuning.precision)
        settled = {"tuning.precision": measured, "tuning.learning_rate": tuning.learning_rate or 3e-4}
        notes = ("learning rate: 0.0003, by the model",) * (tuning.learning_rate is None)
        return SimpleNamespace(recipe=apply_overrides(recipe, settled), notes=notes)

    monkeypatch.setattr(grids, "plan_finetuning", plan)
    monkeypatch.setattr(grids, "tuning_identity", lambda plan: {})

    def run(recipe, *, scores=None, ends=None, **options):
        workers = FakeWorkers(scores, ends)
        monkeypatch.setattr(grids, "LocalWorkers", lambda jobs: workers)
        workers.planned = planned
        workers.record = run_grid(recipe, output=tmp_path / "grid", **options)
        return workers

    run.output = tmp_path / "grid"
    run.cells = tmp_path / "grid" / "cells"
    return run


def models(grid):
    return sorted(path.parent.name for path in grid.cells.glob("*/model"))


def test_a_grid_leaves_its_cells_one_model_and_a_record(grid, caplog):
    caplog.set_level(logging.INFO)
    recipe = make_recipe(TWO_BY_TWO)
    workers = grid(recipe)
    assert workers.started == [cell.name for cell in expand(recipe)]
    assert workers.record == json.loads((grid.output / "result.json").read_text())
    assert {"versions", "commit", "machine", "format_version"} <= workers.record.keys()
    best = "lr3e-05-bs32-ep3-seed2"
    assert workers.record["selected"]["best_cell"] == best
    assert models(grid) == [best]
    for name in ("model", "adapters"):
        assert (grid.output / name / "weights").read_text() == best
    finished = [line for line in caplog.messages if line.startswith("4/4 ")]
    assert finished == ["4/4 lr3e-05-bs32-ep3-seed2: validation accuracy 0.0000 (0:30)  left 0:00"]


def test_the_report_reads_a_grid(grid):
    grid(make_recipe(TWO_BY_TWO), scores={1e-5: 0.25, 3e-5: 0.5})
    for path in (grid.output, grid.output / "result.json"):
        (members,) = group(find_records([path])).values()
        assert measured_cell(members).mean == pytest.approx(0.5 + 1.5e-6)
        assert measured_cell(members).n == 2


def test_a_finished_cell_is_never_run_again(grid):
    recipe = make_recipe(TWO_BY_TWO)
    grid(recipe)
    files = list(grid.cells.glob("*/result.json"))
    before = [path.stat().st_mtime_ns for path in files]
    again = grid(recipe)
    assert again.started == []
    assert len(again.planned) == 2  # by each call: the data may have changed
    assert [path.stat().st_mtime_ns for path in files] == before
    (grid.cells / "lr1e-05-bs32-ep3-seed2" / "result.json").unlink()  # as if it had been killed half-way
    assert grid(recipe).started == ["lr1e-05-bs32-ep3-seed2"]


def test_a_longer_list_adds_to_a_grid(grid):
    grid(make_recipe({"learning_rate": [1e-5, 3e-5]}))
    longer = grid(make_recipe({"learning_rate": [1e-5, 3e-5, 5e-5]}))
    assert longer.started == ["lr5e-05-bs32-ep3-seed42"]
    assert (grid.output / "model" / "weights").read_text() == "lr5e-05-bs32-ep3-seed42"
    assert models(grid) == ["lr5e-05-bs32-ep3-seed42"]


def test_a_chosen_cell_whose_model_is_gone_runs_again(grid):
    grid(make_recipe({"learning_rate": [1e-5, 3e-5]}))
    shorter = grid(make_recipe({"learning_rate": [1e-5]}))
    assert shorter.started == ["lr1e-05-bs32-ep3-seed42"]
    assert (grid.output / "model" / "weights").read_text() == "lr1e-05-bs32-ep3-seed42"


def test_which_models_stay(grid):
    recipe = make_recipe({"learning_rate": [1e-5, 3e-5]})
    grid(recipe, keep_models="none")
    assert models(grid) == []
    assert not (grid.output / "model").exists()
    assert grid(recipe, keep_models="selected").started == ["lr3e-05-bs32-ep3-seed42"]
    assert grid(recipe, keep_models="all").started == ["lr1e-05-bs32-ep3-seed42"]
    assert len(models(grid)) == 2
    assert (grid.output / "model").is_dir()


def test_another_recipe_is_refused_and_can_be_replaced(grid):
    grid(make_recipe({"learning_rate": [1e-5]}))
    other = make_recipe({"learning_rate": [2e-5]}, weight_decay=0.5)
    with pytest.raises(UserError, match=r"holds a run of another recipe; different: weight_decay: 0\.5"):
        grid(other)
    grid(other, overwrite=True)
    assert [path.name for path in grid.cells.iterdir()] == ["lr2e-05-bs32-ep3-seed42"]


def test_a_cell_folder_of_another_recipe_is_refused(grid):
    recipe = make_recipe({"learning_rate": [1e-5]})
    folder = grid.cells / "lr1e-05-bs32-ep3-seed42"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump_recipe(make_recipe(dropout=0.3)))
    with pytest.raises(UserError, match=r"lr1e-05-bs32-ep3-seed42 holds a run of another recipe"):
        grid(recipe)
    assert grid(recipe, overwrite=True).started == [folder.name]


def without_keys(file, *keys):
    """Take keys out of a grid's or cell's recipe, as if it had been written before there were such keys."""
    recipe = yaml.safe_load(file.read_text())
    for key in keys:
        section, _, name = key.partition(".")
        del recipe[section][name]
    file.write_text(yaml.safe_dump(recipe))


def test_a_grid_from_before_a_key_goes_on(grid):
    recipe = make_recipe(TWO_BY_TWO)
    grid(recipe)
    (grid.cells / "lr1e-05-bs32-ep3-seed2" / "result.json").unlink()  # as if it had been killed half-way
    for file in (grid.output / "recipe.yaml", *grid.cells.glob("*/recipe.yaml")):
        without_keys(file, "tuning.max_skipped_steps", "task.iob")
    assert grid(recipe).started == ["lr1e-05-bs32-ep3-seed2"]
    # What is asked for now is not what such a key stood for then.
    without_keys(grid.output / "recipe.yaml", "tuning.max_skipped_steps", "task.iob")
    refusing = make_recipe(TWO_BY_TWO, task={"name": "classification", "data": "rows", "iob": "refuse"})
    with pytest.raises(UserError, match="another recipe; different: iob: refuse"):
        grid(refusing)
    assert (grid.output / "result.json").is_file()


def test_all_cells_have_one_precision_and_a_grid_keeps_it(grid, monkeypatch):
    recipe = make_recipe({"epochs": [1, 9, 2], "seed": [1, 2]})
    assert [cell.tuning.epochs for cell in grid(recipe).planned] == [
        9
    ]  # what is longest is worth a measurement
    monkeypatch.setattr(
        grids, "plan_finetuning", lambda recipe: SimpleNamespace(recipe=recipe, notes=())
    )  # measures no more
    assert len(grid(make_recipe({"epochs": [1, 9, 2], "seed": [1, 2, 3]})).started) == 3
    files = (grid.output / "recipe.yaml", *grid.cells.glob("*/recipe.yaml"))
    assert {load_recipe(str(file), FinetuneRecipe).tuning.precision for file in files} == {"bf16"}
    with pytest.raises(UserError, match="another recipe; different: precision: fp32"):
        grid(make_recipe({"epochs": [1, 9, 2]}, precision="fp32"))


def test_all_cells_have_the_rate_of_the_model_and_a_grid_keeps_it(grid, caplog):
    caplog.set_level(logging.INFO)
    assert grid(make_recipe({"seed": [1]})).started == ["lr0.0003-bs32-ep3-seed1"]
    assert caplog.messages.count("learning rate: 0.0003, by the model") == 1
    longer = grid(make_recipe({"seed": [1, 2]}))
    assert longer.started == ["lr0.0003-bs32-ep3-seed2"]
    assert (
        longer.record["selected"]["learning_rate"]
        == longer.record["recipe"]["tuning"]["learning_rate"]
        == 3e-4
    )
    # As an earlier version began it, which had 5e-5 for every model.
    earlier = grid(make_recipe({"seed": [1]}, learning_rate=5e-5), overwrite=True)
    assert earlier.started == ["lr5e-05-bs32-ep3-seed1"]
    assert grid(make_recipe({"seed": [1, 2]})).started == ["lr5e-05-bs32-ep3-seed2"]
    listed = grid(make_recipe({"learning_rate": [1e-5]}), overwrite=True)
    assert listed.record["recipe"]["tuning"]["learning_rate"] is None  # the grid's stand in its place
    assert "tuning.learning_rate" not in listed.record["command"]
    assert caplog.messages.count("learning rate: 0.0003, by the model") == 1


def test_where_the_log_goes_alone_does_not_stop_a_grid(grid):
    grid(make_recipe(TWO_BY_TWO))
    (grid.cells / "lr1e-05-bs32-ep3-seed2" / "result.json").unlink()
    told = make_recipe(TWO_BY_TWO, report_to=["tensorboard"])
    assert grid(told).started == ["lr1e-05-bs32-ep3-seed2"]


def test_a_folder_with_something_else_is_refused_untouched(grid):
    grid.output.mkdir()
    (grid.output / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no grid"):
        grid(make_recipe())
    grid(make_recipe(), overwrite=True)
    assert (grid.output / "notes.txt").read_text() == "mine"


def test_a_file_in_the_place_of_the_folder_is_refused(grid):
    grid.output.write_text("mine")
    with pytest.raises(UserError, match="is a file: expected a folder to write into"):
        grid(make_recipe())


def test_a_damaged_record_is_named(grid):
    recipe = make_recipe()
    grid(recipe)
    (path,) = grid.cells.glob("*/result.json")
    path.write_text("{")
    with pytest.raises(UserError, match=r"result\.json is not a record of a fine-tuning .*: remove "):
        grid(recipe)


def test_two_grids_do_not_share_a_folder(grid):
    grid.output.mkdir()
    said = pytest.raises(UserError, match="another grid is running in")
    with sole_user(grid.output, "grid"), said:
        grid(make_recipe())


def test_no_cell_at_a_time_is_refused(grid):
    with pytest.raises(UserError, match="jobs is 0"):
        grid(make_recipe(), jobs=0)


def test_a_mistake_in_the_data_is_told_before_anything_is_written(tmp_path):
    recipe = make_recipe(task={"name": "classification", "data": str(tmp_path / "none.csv")})
    with pytest.raises(UserError, match=r"none\.csv"):
        run_grid(recipe, output=tmp_path / "grid", progress=False)
    assert not (tmp_path / "grid").exists()


def test_a_mistake_ends_the_grid_at_once(grid):
    recipe = make_recipe(TWO_BY_TWO)
    second = expand(recipe)[1].name
    with pytest.raises(UserError, match=f"^{second}: row 3 has no label$"):
        grid(recipe, ends={second: [Outcome("mistake", "row 3 has no label")]})
    assert [path.parent.name for path in grid.cells.glob("*/result.json")] == [expand(recipe)[0].name]
    assert not (grid.output / "result.json").exists()


def test_a_worker_that_dies_is_started_again(grid, caplog):
    recipe = make_recipe(TWO_BY_TWO)
    first, *others = [cell.name for cell in expand(recipe)]
    workers = grid(recipe, ends={first: [Outcome("crashed", "killed by SIGKILL")]})
    assert workers.started == [first, *others, first]
    assert workers.record["cells"][0]["name"] == first
    assert f"{first}: its worker is started again (killed by SIGKILL)" in caplog.messages


def test_a_cell_that_fails_twice_is_named_when_the_others_are_done(grid):
    recipe = make_recipe(TWO_BY_TWO)
    first, *others = [cell.name for cell in expand(recipe)]
    with pytest.raises(UserError, match=rf"1 of 4 cells failed twice, .*: {first} \(out of memory\)\. Logs"):
        grid(recipe, ends={first: [Outcome("crashed", "killed"), Outcome("crashed", "out of memory")]})
    assert sorted(path.parent.name for path in grid.cells.glob("*/result.json")) == sorted(others)
    assert not (grid.output / "result.json").exists()
    assert grid(recipe).started == [first]


def test_a_request_to_stop_stops_the_workers_and_starts_none(grid, monkeypatch):
    workers = FakeWorkers()
    monkeypatch.setattr(grids, "LocalWorkers", lambda jobs: workers)
    original = workers.wait

    def wait(seconds):
        signal.raise_signal(signal.SIGINT)
        return original(seconds)

    monkeypatch.setattr(workers, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        run_grid(make_recipe(TWO_BY_TWO), output=grid.output)
    assert (len(workers.started), workers.stopped) == (4, 1)
    assert len(list(grid.cells.glob("*/result.json"))) == 1


# Processes


def shell(script: str, **options) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True, **options)


def job_in(folder: Path, recipe: FinetuneRecipe, name: str = "cell", words=("finetune",)) -> Job:
    job = Job(name, words, dump_recipe(recipe), str(folder / name), str(folder / f"{name}.log"), str(folder))
    job.write_recipe()
    return job


@pytest.mark.parametrize(
    ("script", "status", "message"),
    [
        ("echo minialbert: no rows; exit 2", "mistake", "no rows"),
        ("echo Error: no such option; exit 2", "crashed", "ended with status 2: Error: no such option"),
        ("kill -9 $$", "crashed", "killed by SIGKILL, which the system sends when memory runs out"),
        ("kill -11 $$", "crashed", "killed by SIGSEGV"),
        ("printf 'Traceback\n\nImportError: no module\n\n'; exit 3", "crashed",
         "ended with status 3: ImportError: no module"),
        ("mkdir -p cell; touch cell/result.json; exit 2", "done", ""),
        ("mkdir -p cell; touch cell/result.json; kill -9 $$", "done", ""),
    ],
)  # fmt: skip
def test_how_a_worker_ended_is_told(tmp_path, script, status, message):
    job = job_in(tmp_path, make_recipe())
    process = shell(f"cd {tmp_path}; exec > cell.log; {script}")
    process.wait()
    assert outcome_of(job, process) == Outcome(status, message)


def test_a_student_is_made_only_when_its_model_is_there(tmp_path):
    job = job_in(tmp_path, make_recipe(), words=("distill", "--data", "windows"))
    process = shell(f"cd {tmp_path}; mkdir cell; touch cell/result.json")
    process.wait()
    assert outcome_of(job, process) == Outcome("crashed", "ended with status 0")
    (tmp_path / "cell" / "model").mkdir()
    assert outcome_of(job, process) == Outcome("done")


def is_alive(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_worker_that_does_not_listen_is_killed_with_its_children():
    process = shell("trap '' TERM; sleep 60 & echo $!; wait; wait", stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as said:
        child = int(said.readline())
    started = time.monotonic()
    end_processes([process], grace=0.3)
    assert time.monotonic() - started < 5
    assert process.returncode == -signal.SIGKILL
    while time.monotonic() - started < 5 and is_alive(child):  # a signal takes effect a moment later
        time.sleep(0.01)
    assert not is_alive(child)


@pytest.mark.parametrize(("set_before", "expected"), [(None, "3"), ("2", "2"), ("8", "3"), ("x", "3")])
def test_workers_share_the_threads(tmp_path, monkeypatch, set_before, expected):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho $OMP_NUM_THREADS $MKL_NUM_THREADS $CUDA_VISIBLE_DEVICES $*\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.delenv("OMP_NUM_THREADS")
    if set_before is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", set_before)
    process = start_process(job_in(tmp_path, make_recipe()), 3, "1")
    process.wait()
    assert (tmp_path / "cell.log").read_text().split() == [
        expected, expected, "1", "-P", "-m", "minialbert.cli.worker", "finetune", "--recipe",
        str(tmp_path / "cell.yaml"), "--output", str(tmp_path / "cell"), "--resume",
    ]  # fmt: skip
    end_processes([process])


def test_workers_take_turns_on_the_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(pool, "usable_cores", lambda: 8)
    seen = []

    def start(job, threads, device):
        seen.append((job.name, threads, device))
        return shell(f"sleep 0.05; mkdir {job.output}; touch {job.output}/result.json")

    monkeypatch.setattr(pool, "start_process", start)
    workers = LocalWorkers(3)
    recipe = make_recipe()
    for name in "abc":
        assert workers.has_room
        workers.start(job_in(tmp_path, recipe, name))
    assert not workers.has_room
    assert seen == [("a", 2, "4"), ("b", 2, "6"), ("c", 2, "4")]
    ended = []
    while workers.running:
        ended += workers.wait(5)
    assert sorted(job.name for job, _ in ended) == ["a", "b", "c"]
    assert {outcome for _, outcome in ended} == {Outcome("done")}
    assert workers.has_room


# Real workers: processes of their own import torch and Transformers anew, which takes its time


@pytest.fixture
def student(tiny_student_config, tiny_tokenizer, tmp_path):
    folder = tmp_path / "student"
    MiniAlbertForSequenceClassification(tiny_student_config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path):
    """Sentences about a cat or a dog, as csv files for three splits."""
    folder, generator = tmp_path / "rows", random.Random(0)
    folder.mkdir()
    words = ("the", "sat", "on", "mat", "and", "ran", "in", "sun", "it", "was", "big", "red", "small", "old")
    for split, count in (("train", 24), ("validation", 12), ("test", 12)):
        lines = ["text,label"]
        for _ in range(count):
            animal = generator.choice(("cat", "dog"))
            lines.append(f"{' '.join(generator.choices(words, k=4))} {animal},{animal}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def real_recipe(student, rows, grid, **tuning):
    task = {"name": "classification", "data": str(rows), "max_length": 32, "overlap": 8}
    return make_recipe(grid, task=task, model=student, batch_size=8, **tuning)


class InProcess:
    """Runs the command of a job here, as its worker would."""

    def __init__(self, call):
        self.call, self.started, self._jobs = call, [], []

    has_room = True

    @property
    def running(self):
        return len(self._jobs)

    def start(self, job):
        self.started.append(job.name)
        self._jobs.append(job)

    def wait(self, seconds):
        job = self._jobs.pop()
        where = ("--recipe", job.recipe_file, "--output", job.output, "--resume")
        status, out, err = self.call(*job.words, *where)
        Path(job.log).write_text(out + err)
        return [(job, outcome_of(job, SimpleNamespace(returncode=status, stdin=None)))]

    def stop(self):
        self._jobs.clear()


def run_here(call, job) -> InProcess:
    workers = InProcess(call)
    run_jobs([job], lambda jobs: workers, lambda job, seconds: None, logs=Path(job.log).parent)
    return workers


@pytest.mark.parametrize("keep", [True, False])
def test_a_job_leaves_a_finished_run_without_checkpoints(keep, student, rows, tmp_path, call):
    words = ("finetune", *(() if keep else ("--keep-models", "none")))
    job = job_in(tmp_path, real_recipe(student, rows, {}, epochs=1.0), words=words)
    checkpoint = Path(job.output) / "checkpoints" / "checkpoint-1"
    checkpoint.mkdir(parents=True)  # of an attempt that was killed before it was complete
    run_here(call, job)
    result = Path(job.output) / "result.json"
    assert json.loads(result.read_text())["kind"] == "finetune"
    assert (Path(job.output) / "model").exists() == keep
    if keep:
        assert load_tuned(str(Path(job.output) / "model"))[0].config.id2label == {0: "cat", 1: "dog"}
    assert not checkpoint.parent.exists()
    written = result.stat().st_mtime_ns
    run_here(call, job)  # as by a driver that saw no record yet
    assert result.stat().st_mtime_ns == written


def test_cells_of_other_labels_are_not_mixed_with_finished_ones(student, rows, tmp_path, call, monkeypatch):
    monkeypatch.setattr(grids, "LocalWorkers", lambda jobs: InProcess(call))
    one, two = (
        real_recipe(student, rows, {"learning_rate": rates}, epochs=1.0) for rates in ([1e-3], [1e-3, 1e-4])
    )
    options = {"output": tmp_path / "grid", "keep_models": "none", "progress": False}
    run_grid(one, **options)
    text = (rows / "train.csv").read_text()
    (rows / "train.csv").write_text(re.sub(",(cat|dog)", lambda m: ",dog" if m[1] == "cat" else ",cat", text))
    for recipe in (one, two):
        with pytest.raises(
            UserError, match=r"cells/lr0.001.* on other data \(data: train .*\): give another --out"
        ):
            run_grid(recipe, **options)
    (rows / "train.csv").write_text(text)
    assert len(run_grid(two, **options)["cells"]) == 2


def test_a_job_of_another_recipe_does_not_go_on_in_its_folder(student, rows, tmp_path, call):
    run_here(call, job_in(tmp_path, real_recipe(student, rows, {}, epochs=0.5)))
    (tmp_path / "cell" / "result.json").unlink()
    with pytest.raises(UserError, match=r"cell holds a run of another recipe; different: epochs: 1\.0"):
        run_here(call, job_in(tmp_path, real_recipe(student, rows, {}, epochs=1.0)))


@pytest.mark.parametrize(("option", "steps"), [((), 4), (("--start-only",), 0)])
def test_a_job_may_make_a_student(option, steps, tiny_teacher_dir, tiny_windows, tmp_path, call):
    recipe = apply_overrides(load_recipe("tiny"), [f"teacher.model={tiny_teacher_dir}"])
    words = ("distill", "--data", str(tiny_windows), *option)
    job = Job(
        "row/distill", words, dump_recipe(recipe), str(tmp_path / "run"), str(tmp_path / "log"), str(tmp_path)
    )
    run_here(call, job)
    result = Path(job.output) / "result.json"
    assert json.loads(result.read_text())["training"]["steps"] == steps
    assert load_recipe(str(Path(job.output) / "recipe.yaml")) == recipe
    assert not (tmp_path / "run" / "checkpoints").exists()
    shutil.rmtree(tmp_path / "run" / "model")  # moved away, and wanted again
    run_here(call, job)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_a_finished_job_has_its_record_here(tmp_path):
    class Elsewhere(FakeWorkers):
        def wait(self, seconds):
            return [(self._jobs.pop(), Outcome("done"))]

    with pytest.raises(UserError, match="cell is finished, but .* has no result.json on this machine"):
        job = job_in(tmp_path, make_recipe())
        run_jobs([job], lambda jobs: Elsewhere(), lambda job, seconds: None, logs=tmp_path)


@pytest.mark.slow
def test_two_workers_tune_a_grid(student, rows, tmp_path):
    recipe = real_recipe(student, rows, {"learning_rate": [1e-3, 1e-6]}, epochs=1.0)
    output = tmp_path / "grid"
    record = run_grid(recipe, output=output, jobs=2, progress=False)
    found = {path.parent.name: json.loads(path.read_text()) for path in output.glob("cells/*/result.json")}
    assert set(found) == {cell.name for cell in expand(recipe)}
    assert record["split"] == "test"
    best = max(cell["validation_score"] for cell in record["cells"])
    assert record["selected"]["validation_score"] == best
    name = record["selected"]["best_cell"]
    assert record["selected"]["score"] == found[name]["metrics"]["test"]["accuracy"]
    assert load_tuned(str(output / "model"))[0].config.id2label == {0: "cat", 1: "dog"}
    assert [path.parent.name for path in output.glob("cells/*/model")] == [name]
    (members,) = group(find_records([output])).values()
    assert measured_cell(members).mean == record["selected"]["score"]
    assert "validation" in (output / "logs" / f"{name}.log").read_text()


@pytest.mark.slow
def test_ctrl_c_saves_and_leaves_no_process(student, rows, tmp_path):
    recipe = real_recipe(student, rows, {"seed": [1, 2, 3]}, epochs=100000.0, logging_steps=1)
    output = tmp_path / "grid"
    pressed = []

    def press():
        while len(list(output.glob("cells/*/log.jsonl"))) < 2 and len(pressed) < 1200:
            pressed.append(None)
            time.sleep(0.1)
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    with pytest.raises(KeyboardInterrupt):
        run_grid(recipe, output=output, jobs=2, progress=False)
    took = time.monotonic() - pressed[-1]
    finger.join()
    assert took < 10
    assert psutil.Process().children(recursive=True) == []
    for seed in (1, 2):
        folder = output / "cells" / f"lr0.0003-bs8-ep100000-seed{seed}"
        assert len(list(folder.glob("checkpoints/checkpoint-*"))) == 1
        assert not (folder / "result.json").exists()


@pytest.mark.slow
def test_a_worker_ends_when_nobody_is_left_to_read_its_answer(student, rows, tmp_path):
    process = start_process(job_in(tmp_path, real_recipe(student, rows, {}, epochs=100000.0)), 1)
    log = tmp_path / "cell" / "recipe.yaml"
    deadline = time.monotonic() + 120
    while not log.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert log.is_file()
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=15)
    assert process.returncode == 130
    assert "minialbert: interrupted" in (tmp_path / "cell.log").read_text()


# Ray


def test_a_missing_ray_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"--ray needs ray: pip install .*\[ray\]'"):
        import_ray()
    with pytest.raises(MissingExtraError):
        run_grid(make_recipe(), output=tmp_path / "grid", ray_address="auto")


NODES = [
    {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 4.0, "memory": 1.0}},
    {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 2.0}},
    {"Alive": False, "Resources": {"CPU": 1.0}},
    {"Alive": True, "Resources": {"CPU": 0.0}},  # a head that runs no tasks
]


@pytest.mark.parametrize(("jobs", "share"), [(1, (8, 1.0)), (2, (4, 1.0)), (4, (2, 0.5)), (32, (1, 0.0625))])
def test_cells_share_the_smallest_node(jobs, share):
    assert node_share(NODES, jobs) == share


def test_nodes_without_gpus_or_cores():
    assert node_share([{"Alive": True, "Resources": {"CPU": 6.0}}], 4) == (1, 0.0)
    with pytest.raises(UserError, match="no node with a free core"):
        node_share([{"Alive": True, "Resources": {}}], 1)


@pytest.mark.parametrize("missing", ["log", "directory"])
def test_a_node_that_does_not_see_the_grid_says_so(tmp_path, missing):
    job = job_in(tmp_path, make_recipe())
    values = {**vars(job), missing: str(tmp_path / "elsewhere")}
    outcome = Outcome(**run_on_node(values, 1))
    assert outcome.status == "mistake"
    name = "elsewhere.yaml" if missing == "log" else "elsewhere"
    assert f"{name} is not there on node" in outcome.message
    assert "storage that all nodes share" in outcome.message


class FakeRay:
    """As much of ray as the driver calls; a task runs when it is waited for."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

    def __init__(self, reachable=True):
        self.calls, self.reachable, self.options = [], reachable, {}

    def is_initialized(self):
        return False

    def init(self, **options):
        self.calls.append(("init", options["address"]))
        if not self.reachable:
            raise ConnectionError("Could not find any running Ray instance.\nPlease specify")

    def nodes(self):
        return NODES

    def remote(self, **options):
        self.options = options
        return lambda function: SimpleNamespace(remote=lambda *values: (function, json.dumps(values)))

    def wait(self, references, *, num_returns, timeout):
        return references[:num_returns], references[num_returns:]

    def get(self, reference):
        function, values = reference
        return function(*json.loads(values))

    def cancel(self, reference, *, force):
        self.calls.append(("cancel", force))

    def shutdown(self):
        self.calls.append(("shutdown",))


@pytest.fixture
def ray(monkeypatch):
    monkeypatch.setattr(grids, "plan_finetuning", lambda recipe: SimpleNamespace(recipe=recipe, notes=()))
    monkeypatch.setattr(grids, "tuning_identity", lambda plan: {})
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)

    def install(node, **options):
        fake = FakeRay(**options)
        monkeypatch.setitem(sys.modules, "ray", fake)
        monkeypatch.setattr(grid_ray, "run_on_node", node)
        return fake

    yield install
    os.environ.pop("RAY_USAGE_STATS_ENABLED", None)


def test_a_grid_runs_as_tasks_of_a_cluster(ray, tmp_path):
    died = []

    def node(values, threads):
        assert threads == 4
        if not died:
            died.append(values["name"])
            raise FakeRay.exceptions.RayError("The node died.\nMore.")
        write_cell(Job(**values), {})
        return {"status": "done", "message": ""}

    fake = ray(node)
    record = run_grid(make_recipe(TWO_BY_TWO), output=tmp_path / "grid", ray_address="head:6379", jobs=2)
    assert fake.options == {"num_cpus": 4, "num_gpus": 1.0, "max_retries": 0}
    assert fake.calls == [("init", "head:6379"), ("shutdown",)]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert len(record["cells"]) == 4
    assert died == ["lr1e-05-bs32-ep3-seed1"]


def test_a_result_that_stays_on_its_node_is_a_mistake(ray, tmp_path):
    fake = ray(lambda values, threads: {"status": "done", "message": ""})
    with pytest.raises(
        UserError, match=r"has no result\.json on this machine: with --ray, give an --output on"
    ):
        run_grid(make_recipe(TWO_BY_TWO), output=tmp_path / "grid", ray_address="auto")
    assert fake.calls == [("init", "auto"), *[("cancel", False)] * 3, ("shutdown",)]


def test_no_cluster_is_told_in_one_line(ray, tmp_path):
    ray(lambda values, threads: {}, reachable=False)
    with pytest.raises(
        UserError, match=r"--ray auto: no Ray cluster answers there \(Could not find any"
    ) as told:
        run_grid(make_recipe(), output=tmp_path / "grid", ray_address="auto")
    assert "\n" not in str(told.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of ray itself
def test_a_grid_on_a_ray_instance_of_its_own(student, rows, tmp_path):
    pytest.importorskip("ray")
    recipe = real_recipe(student, rows, {"seed": [1, 2]}, epochs=1.0)
    record = run_grid(recipe, output=tmp_path / "grid", jobs=2, ray_address="local", progress=False)
    assert record["selected"]["seeds"] == [1, 2]
    assert (tmp_path / "grid" / "model" / "config.json").is_file()
    assert psutil.Process().children(recursive=True) == []
