"""Running a suite: what is not done yet, in order, each cell a process of its own, from wherever it was stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from minialbert.data.prepare import prepare, recipe_options
from minialbert.data.tasks import load_task, task_identity
from minialbert.errors import UserError, failing_as
from minialbert.experiments import pool
from minialbert.experiments.pool import LocalWorkers
from minialbert.experiments.suite.cells import (
    Cell,
    Places,
    Result,
    distillation_recipe,
    expand,
    find_results,
    recipe_of,
    select,
)
from minialbert.experiments.suite.schema import Suite
from minialbert.experiments.suite.time_left import time_left
from minialbert.method.live import MODEL_FILES, hash_files
from minialbert.recipes.load import apply_overrides, dump_recipe
from minialbert.recipes.schema import FinetuneRecipe, Recipe, TaskRecipe
from minialbert.runs.device import resolve_precision
from minialbert.runs.directory import RunDirectory, data_differences, tell_unchecked
from minialbert.runs.files import check_folder, sole_user, write_json, writing
from minialbert.runs.progress import duration

logger = logging.getLogger(__name__)

KeepModels = Literal["needed", "all"]


@dataclass(frozen=True)
class Work:
    """What a suite has left to do, and all its records.

    The jobs are the cells to run, in order: those pending, and the distillations that are made again because a pending
    tuning needs a model that is gone.
    """

    asked: list[Cell]  # whose teachers are there
    pending: list[Cell]  # those of them without a record
    jobs: list[Cell]
    left_out: list[Cell]  # asked for too, but their teacher was not named
    results: dict[str, Result]


def plan_work(
    suite: Suite,
    *,
    teachers: Mapping[str, str] | None,
    output: Path,
    records: Path | None = None,
    only: Sequence[str] = (),
) -> Work:
    """Return what of the cells that `select` finds is left to do; a record that does not fit is a `UserError`.

    The output need not exist, and `records` is another folder with records of finished cells. Teachers are by name;
    None is as if all were there.
    """
    results = find_results(suite, [output] if records is None else [output, records])
    chosen = select(expand(suite), list(only))
    missing = set() if teachers is None else {*suite.teachers} - {*teachers}
    left_out = [one for one in chosen if suite.rows[one.row].teacher in missing and one.name not in results]
    asked = [cell for cell in chosen if cell not in left_out]
    pending = [cell for cell in asked if cell.name not in results]
    distilled = {cell.row: cell for cell in expand(suite) if cell.is_distillation}
    jobs: dict[str, Cell] = {}
    for cell in pending:
        made = None if cell.is_distillation else distilled.get(cell.row)
        if made is not None and not _model(output, cell.row).is_dir():
            jobs.setdefault(made.name, made)
        jobs.setdefault(cell.name, cell)
    return Work(asked, pending, list(jobs.values()), left_out, results)


def run_suite(
    suite: Suite,
    *,
    teachers: Mapping[str, str],
    data: str | Path,
    output: str | Path,
    records: str | Path | None = None,
    only: Sequence[str] = (),
    jobs: int = 1,
    keep_models: KeepModels = "needed",
    progress: bool = True,
) -> dict[str, Result]:
    """Run the cells of a suite that have no record yet.

    Every cell is a run directory `cells/ROW/…` under the output, written by a process of its own. Finished cells are
    never run again and half-done ones go on, so the same command continues a suite that was stopped or killed. A
    distilled student is kept in `models/ROW` while a tuning needs it; one that is gone is made again from its recipe,
    in `again/ROW`, and its first record stays. Tuned models are not kept.

    `teachers` has directories or hub ids by the suite's names; rows of others are left out. `data` is the folder with
    its tasks and corpora, `records` another one with records of finished cells, which is only read; `only` is as for
    `select`. Students that no cell of the suite needs any more go, unless all models are kept.

    Returns the records of all finished cells, by name. A UserError tells that teachers, data and suite do not fit
    together, or that a cell's worker died twice; after Ctrl-C or SIGTERM a KeyboardInterrupt comes when all workers
    have stopped.
    """
    if jobs < 1:
        raise UserError(f"jobs is {jobs}: expected at least one cell at a time")
    for name in teachers:
        if name not in suite.teachers:
            told = f"it has {', '.join(suite.teachers) or 'none, its recipes name their own'}"
            raise UserError(f"--teacher {name}=…: the suite {suite.name} has no teacher of that name; {told}")
    output, data = Path(output).absolute(), Path(data).expanduser().absolute()
    extra = None if records is None else Path(records).expanduser().absolute()
    if extra is not None and not (extra / "cells").is_dir():
        advice = "name the directory of a suite, or of its records"
        raise UserError(f"--records {extra}: has no folder cells; {advice}")
    check_folder(output, "suite", overwrite=True, marker="cells", advice="give another --output")
    # Absolute where it is local: workers and later commands may start elsewhere.
    local = {name: Path(where).expanduser().absolute() for name, where in teachers.items()}
    located = {name: str(path) if path.exists() else teachers[name] for name, path in local.items()}
    places = Places(data, located, output / "models")
    work = plan_work(suite, teachers=teachers, output=output, records=extra, only=only)
    _check_data(suite, work.jobs, data)
    with sole_user(output, "suite"):
        text = yaml.safe_dump(suite.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=1000)
        pool.begin_folder(output / "suite.yaml", text)
        check_teachers(output / "teachers.json", extra, located)
        check_tasks(suite, output / "tasks.json", extra, work, data)
        for cell in expand(suite):
            if cell.is_distillation:
                _settle(output, cell)
        work = plan_work(suite, teachers=teachers, output=output, records=extra, only=only)
        for name in work.results:  # a worker that was killed at the very end has left its checkpoints
            shutil.rmtree(output / "cells" / name / "checkpoints", ignore_errors=True)
        for name in suite.teachers:
            if count := sum(suite.rows[cell.row].teacher == name for cell in work.left_out):
                logger.info("%d cells are left out: no --teacher %s=DIR was given", count, name)
        run = _Run(suite, places, output, [output] if extra is None else [output, extra], work, keep_models)
        run.clean()
        if work.jobs:
            windows = prepare_windows(suite, work.jobs, places, output / "windows", progress=progress)
            run.go(windows, jobs, progress)
        elif progress:
            logger.info("suite %s: all %d cells are done", suite.name, len(work.asked))
        return run.results


class _Run:
    """One call of `run_suite`: its jobs, what is done when one ends, and what is told of it."""

    def __init__(
        self, suite: Suite, places: Places, output: Path, folders: list[Path], work: Work, keep: KeepModels
    ) -> None:
        self._suite, self._places, self._output, self._folders = suite, places, output, folders
        self._work, self._keep = work, keep
        self._left = {cell.name: cell for cell in work.jobs}
        self._overheads: list[float] = []
        self.results = dict(work.results)

    def go(self, windows: Mapping[str, str], jobs: int, progress: bool) -> None:
        """Run all jobs, so many at a time."""
        asked, cells, name = self._work.asked, dict(self._left), self._suite.name
        done, left = sum(cell.name in self.results for cell in asked), self._told(jobs)
        if progress:
            logger.info("suite %s: %d of %d cells are done; %s", name, done, len(asked), left)

        def finish(job: pool.Job, seconds: float) -> None:
            cell = cells[job.name]
            again = cell.name in self.results
            if cell.is_distillation:
                _settle(self._output, cell)
            result = find_results(self._suite, self._folders, (cell,))[cell.name]
            self._overheads.append(max(0.0, seconds - result.seconds))
            self.results[cell.name] = result
            del self._left[cell.name]
            self.clean()
            left = self._told(jobs)
            what = "made again" if again else _figure(cell, result)
            line = f"{cell.name}: {what} ({duration(result.seconds)})  suite: {left}"
            tell(line, left, not again and cell in asked)

        with pool.cell_bar(f"suite {name}", len(asked), done, shown=progress, left=left) as tell:
            todo, logs = [self._job(cell, windows) for cell in cells.values()], self._output / "logs"
            pool.run_jobs(todo, lambda most: LocalWorkers(min(jobs, most)), finish, logs=logs)

    def clean(self) -> None:
        """Remove students that no cell needs any more."""
        if self._keep == "all":
            return
        left = [cell for cell in expand(self._suite) if cell.name not in self.results]
        needed = {cell.row for cell in left if not cell.is_distillation}
        models = self._places.models
        for folder in models.iterdir() if models.is_dir() else ():
            if folder.name in self._suite.rows and folder.name not in needed:
                shutil.rmtree(folder, ignore_errors=True)

    def _job(self, cell: Cell, windows: Mapping[str, str]) -> pool.Job:
        row = self._suite.rows[cell.row]
        folder, words, needs = self._output / "cells" / cell.name, ["finetune", "--keep-models", "none"], None
        if cell.is_distillation:
            words = ["distill", "--data", windows[cell.row], *([] if row.distilled else ["--start-only"])]
            folder = self._output / "again" / cell.row if cell.name in self.results else folder
        elif row.recipe is not None:
            needs = str(_model(self._output, cell.row))
        recipe = dump_recipe(_settled(recipe_of(self._suite, cell, self._places)))
        log = self._output / "logs" / f"{cell.name}.log"
        return pool.Job(cell.name, words, recipe, str(folder), str(log), str(Path.cwd()), needs)

    def _told(self, jobs: int) -> str:
        if not self._left:
            return "nothing left"
        overhead = statistics.median(self._overheads) if self._overheads else 0.0
        return time_left(self._suite, self._left.values(), self.results, overhead).told(jobs)


def _figure(cell: Cell, result: Result) -> str:
    if not cell.is_distillation:
        return f"{str(result.record['metric']).replace('_', ' ')} {result.points:.1f} on {result.record['split']}"
    accuracy = result.end().get("mlm_accuracy")
    return "made" if accuracy is None else f"masked-token accuracy {100 * accuracy:.1f} %"


def _check_data(suite: Suite, cells: Sequence[Cell], data: Path) -> None:
    """Refuse data that is not there before hours are spent on what stands before it."""
    wanted = {suite.tasks[cell.task].data for cell in cells if cell.task is not None}
    corpora = {suite.rows[cell.row].corpus for cell in cells if cell.is_distillation}
    wanted |= {suite.corpora[corpus] for corpus in corpora if corpus is not None}
    absent = sorted(name for name in wanted if name is not None and not (data / name).exists())
    if absent:
        told = "add it, or choose others with --only"
        raise UserError(f"--data {data}: has no {', '.join(absent)}, which the cells asked for need; {told}")


def _model(output: Path, row: str) -> Path:
    return output / "models" / row


def _settle(output: Path, cell: Cell) -> None:
    """Move a finished distillation's student out of its run directory, where records stay without weights."""
    for folder in (output / "again" / cell.row, output / "cells" / cell.name):
        run = RunDirectory(folder)
        if not (run.result.is_file() and run.model.is_dir()):
            continue
        target = _model(output, cell.row)
        with writing(target, advice=pool.ADVICE):
            target.parent.mkdir(exist_ok=True)
            if target.is_dir():
                shutil.rmtree(run.model)
            else:
                os.replace(run.model, target)
        shutil.rmtree(run.checkpoints, ignore_errors=True)


def prepare_windows(
    suite: Suite, cells: Sequence[Cell], places: Places, folder: Path, *, progress: bool = True
) -> dict[str, str]:
    """Return the folder with the windows of each row, cut once per corpus, tokenizer and settings, or there already."""
    made: dict[str, Path] = {}
    found: dict[str, str] = {}
    for cell in (cell for cell in cells if cell.is_distillation):
        recipe = distillation_recipe(suite, cell.row, places)
        options, where = recipe_options(recipe), f"suite {suite.name}, row {cell.row}"
        if not options["corpus"]:
            advice = "give it one of the suite's corpora, or one in its recipe"
            raise UserError(f"{where}: has no corpus; {advice}")
        if options["tokenizer"] is None:
            raise UserError(f"{where}: has no tokenizer; give it a teacher, or a tokenizer in its recipe")
        digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{suite.rows[cell.row].corpus or 'corpus'}-{options['window_length']}-{digest}"
        if name not in made:
            target = made[name] = folder / name
            if progress and not (target / "manifest.json").is_file():
                logger.info("windows of %s, in %s", ", ".join(map(str, options["corpus"])), target)
            prepare(output=target, recipe=recipe, progress=progress)
        found[cell.row] = str(made[name])
    return found


def check_teachers(file: Path, records: Path | None, teachers: Mapping[str, str]) -> None:
    """Refuse other teachers than the suite, or a folder with its records, was begun with: both have their checksums."""
    known = _known(file, records)
    for name, where in teachers.items():
        # A hub id stands for itself.
        digest = (hash_files(Path(where), MODEL_FILES["weights"]) or "") if Path(where).is_dir() else where
        if known.setdefault(name, digest) != digest:
            raise UserError(
                f"--teacher {name}={where}: other weights than the finished cells of {file.parent} were made with; "
                "give the same teacher, or another --output"
            )
    with writing(file, advice=pool.ADVICE):
        write_json(file, known)


def check_tasks(suite: Suite, file: Path, records: Path | None, work: Work, data: Path) -> None:
    """Refuse to mix scores on other rows or labels with those of cells that are finished.

    What was read is kept in a file, as by `check_teachers`.
    """
    known = _known(file, records)
    unknown = []
    for name in dict.fromkeys(cell.task for cell in work.pending if cell.task is not None):
        task = suite.tasks[name]
        if task.data is None:  # from the hub: not looked at
            continue
        recipe = TaskRecipe.model_validate({"name": task.name, **task.settings})
        found = {name: task_identity(load_task(recipe, data=data / task.data))}
        if differences := data_differences(known, found):
            raise UserError(
                f"--data {data}: other data than the finished cells of {file.parent} were made with ({differences}); "
                "give the same data, or another --output"
            )
        done = (cell.task for cell in expand(suite) if cell.name in work.results)
        if name not in known and name in done:
            unknown.append(name)
        known |= found
    if unknown:
        tell_unchecked(file.parent, unknown)
    with writing(file, advice=pool.ADVICE):
        write_json(file, known)


def _known(file: Path, records: Path | None) -> dict[str, Any]:
    """Return what is kept in a file, and in one of the same name in a folder with records."""
    known: dict[str, Any] = {}
    for one in (*([] if records is None else [records / file.name]), file):
        kinds = (OSError, ValueError, TypeError, RecursionError)
        with failing_as(f"{one} is damaged", kinds, "remove it, and run the suite again"):
            known |= json.loads(one.read_text("utf-8")) if one.is_file() else {}
    return known


def _settled(recipe: Recipe | FinetuneRecipe) -> Recipe | FinetuneRecipe:
    """Return a recipe with the precision of this device for "auto": each cell of a suite would measure for itself."""
    section = "training" if isinstance(recipe, Recipe) else "tuning"
    precision = resolve_precision(getattr(recipe, section).precision)
    return apply_overrides(recipe, {f"{section}.precision": precision})
