"""Running a suite: what is not done yet, in order, each cell a process of its own, from wherever it was stopped."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from ..errors import UserError
from ..folders import sole_user
from ..grid_driver import drive, failure
from ..grid_jobs import Job
from ..grid_workers import LocalWorkers
from ..interrupts import GracefulStop
from ..runs import RunDirectory, write_atomically, writing
from .cells import Cell, Places, expand, recipe_of, select
from .preparing import check_teachers, prepare_windows
from .progress import SuiteProgress
from .records import Result, find_results
from .schema import Suite

logger = logging.getLogger(__name__)

KeepModels = Literal["needed", "all"]
_ADVICE = "make room, then start the same command again"


@dataclass(frozen=True)
class Work:
    """What a suite has left to do.

    Attributes:
        asked: the cells that were asked for, whose teachers are there.
        pending: those of them without a record.
        jobs: the cells to run, in order: the pending ones, and the distillations that are made again because a pending
            tuning needs a model that is gone.
        left_out: cells that were asked for, but whose teacher was not named.
        results: all records.
    """

    asked: list[Cell]
    pending: list[Cell]
    jobs: list[Cell]
    left_out: list[Cell]
    results: dict[str, Result]


def plan_work(
    suite: Suite,
    *,
    teachers: Mapping[str, str] | None,
    output: Path,
    records: Path | None = None,
    only: Sequence[str] = (),
) -> Work:
    """Return what a suite has left to do.

    Args:
        suite: the suite.
        teachers: its teachers by name; None: as if all were there.
        output: its directory, which need not exist.
        records: another folder with records of finished cells.
        only: which cells; see `select`.

    Returns:
        The work.

    Raises:
        UserError: if a pattern names nothing, or a record does not fit the suite.
    """
    folders = [output] if records is None else [output, records]
    results = find_results(suite, folders)
    chosen = select(expand(suite), list(only))
    missing = [name for name in suite.teachers if teachers is not None and name not in teachers]
    left_out = [
        cell for cell in chosen if suite.rows[cell.row].teacher in missing and cell.name not in results
    ]
    asked = [cell for cell in chosen if cell not in left_out]
    pending = [cell for cell in asked if cell.name not in results]
    distilled = {cell.row: cell for cell in expand(suite) if cell.is_distillation}
    jobs: dict[str, Cell] = {}
    for cell in pending:
        if not cell.is_distillation and cell.row in distilled:
            made = distilled[cell.row]
            if not _model(output, cell.row).is_dir():
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

    Args:
        suite: the suite.
        teachers: directory or hub id of its teachers, by name; rows of others are left out.
        data: the folder with its tasks and corpora.
        output: the directory of the suite.
        records: another folder with records of finished cells, which is only read.
        only: which cells; see `select`.
        jobs: cells at a time; they share the cores and GPUs.
        keep_models: which distilled students stay: those that a cell of the suite still needs, or all.
        progress: show a bar on a terminal, and a line per finished cell.

    Returns:
        The records of all finished cells, by name.

    Raises:
        UserError: if teachers, data and suite do not fit together, or if a cell's worker died twice.
        KeyboardInterrupt: after all workers have stopped, when it was asked to by Ctrl-C or SIGTERM.
    """
    if jobs < 1:
        raise UserError(f"jobs is {jobs}: expected at least one cell at a time")
    _check_names(suite, teachers)
    output, data = Path(output).absolute(), Path(data).expanduser().absolute()
    extra = None if records is None else Path(records).expanduser().absolute()
    if extra is not None and not (extra / "cells").is_dir():
        raise UserError(
            f"--records {extra}: has no folder cells; name the directory of a suite, or of its records"
        )
    _check_folder(output)
    places = Places(data, {name: _located(where) for name, where in teachers.items()}, output / "models")
    work = plan_work(suite, teachers=teachers, output=output, records=extra, only=only)
    _check_data(suite, work.jobs, data)
    with sole_user(output, "suite"):
        with writing(output, advice=_ADVICE):
            (output / "cells").mkdir(exist_ok=True)
            write_atomically(output / "suite.yaml", _dumped(suite))
        check_teachers(output / "teachers.json", extra, {name: places.teachers[name] for name in teachers})
        for cell in expand(suite):
            if cell.is_distillation:
                _settle(output, cell)
        work = plan_work(suite, teachers=teachers, output=output, records=extra, only=only)
        _tell_left_out(suite, work.left_out)
        run = _Run(suite, places, output, extra, work, keep_models)
        run.clean()
        if work.jobs:
            run.windows = prepare_windows(suite, work.jobs, places, output / "windows", progress=progress)
            run.go(jobs, progress)
        elif progress:
            logger.info("suite %s: all %d cells are done", suite.name, len(work.asked))
        return run.results


class _Run:
    """One call of `run_suite`: the jobs in their order, and what is done when one ends."""

    def __init__(
        self, suite: Suite, places: Places, output: Path, records: Path | None, work: Work, keep: KeepModels
    ) -> None:
        self._suite, self._places, self._output, self._keep = suite, places, output, keep
        self._folders = [output] if records is None else [output, records]
        self._work = work
        self._waiting = list(work.jobs)
        self._cells = {cell.name: cell for cell in work.jobs}
        self.windows: dict[str, str] = {}
        self.results = dict(work.results)
        self._shown: SuiteProgress | None = None

    def go(self, jobs: int, progress: bool) -> None:
        """Run all jobs."""
        stop = GracefulStop()
        work = self._work
        self._shown = SuiteProgress(
            self._suite, work.asked, work.jobs, self.results, jobs=jobs, shown=progress
        )
        with stop.listening(), self._shown:
            workers = LocalWorkers(min(jobs, len(work.jobs)))
            try:
                failed = drive(workers, self, stop, self._finish, names_mistakes=True)
            finally:
                workers.stop()
        if failed:
            raise failure(failed, len(work.jobs), str(self._output / "logs"))

    def take(self) -> Job | None:
        """Return the first job whose model is there, or that needs none."""
        for index, cell in enumerate(self._waiting):
            if self._is_ready(cell):
                del self._waiting[index]
                if self._shown is not None:
                    self._shown.start(cell.name)
                return self._job(cell)
        return None

    def put_back(self, job: Job) -> None:
        """Take a job back that is to be started again, before the others: they may need its model."""
        self._waiting.insert(0, self._cells[job.name])

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

    def _is_ready(self, cell: Cell) -> bool:
        row = self._suite.rows[cell.row]
        return cell.is_distillation or row.recipe is None or _model(self._output, cell.row).is_dir()

    def _job(self, cell: Cell) -> Job:
        again = cell.is_distillation and cell.name in self.results
        folder = self._output / "again" / cell.row if again else self._output / "cells" / cell.name
        kind: Literal["finetune", "distill", "initialise"] = "finetune"
        if cell.is_distillation:
            kind = "distill" if self._suite.rows[cell.row].distilled else "initialise"
        return Job(
            name=cell.name,
            recipe=recipe_of(self._suite, cell, self._places).model_dump(),
            output=str(folder),
            log=str(self._output / "logs" / f"{cell.name}.log"),
            marker=str(self._output / "suite.yaml"),
            directory=str(Path.cwd()),
            keep_model=False,
            kind=kind,
            windows=self.windows.get(cell.row),
        )

    def _finish(self, job: Job) -> None:
        cell = self._cells[job.name]
        if cell.is_distillation:
            _settle(self._output, cell)
        found = find_results(self._suite, self._folders, (cell,))
        self.results |= found
        if self._shown is not None:
            self._shown.finish(cell, found[cell.name])
        self.clean()


def _check_names(suite: Suite, teachers: Mapping[str, str]) -> None:
    for name in teachers:
        if name not in suite.teachers:
            raise UserError(
                f"--teacher {name}=…: the suite {suite.name} has no teacher of that name; it has "
                f"{', '.join(suite.teachers) or 'none, its recipes name their own'}"
            )


def _tell_left_out(suite: Suite, left_out: Sequence[Cell]) -> None:
    for name in suite.teachers:
        count = sum(suite.rows[cell.row].teacher == name for cell in left_out)
        if count:
            logger.info("%d cells are left out: no --teacher %s=DIR was given", count, name)


def _check_folder(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: expected a directory for the suite")
    if output.is_dir() and any(output.iterdir()) and not (output / "cells").is_dir():
        raise UserError(f"{output} is not empty and holds no suite: give another --output")


def _check_data(suite: Suite, cells: Sequence[Cell], data: Path) -> None:
    """Refuse data that is not there before hours are spent on what stands before it."""
    wanted = {suite.tasks[cell.task].data for cell in cells if cell.task is not None}
    for cell in cells:
        corpus = suite.rows[cell.row].corpus
        if cell.is_distillation and corpus is not None:
            wanted.add(suite.corpora[corpus])
    absent = sorted(name for name in wanted if name is not None and not (data / name).exists())
    if absent:
        raise UserError(
            f"--data {data}: has no {', '.join(absent)}, which the cells asked for need; add it, or choose others "
            "with --only"
        )


def _located(model: str) -> str:
    """Return a local model's absolute path, since workers and later commands may start elsewhere."""
    path = Path(model).expanduser()
    return str(path.absolute()) if path.exists() else model


def _model(output: Path, row: str) -> Path:
    return output / "models" / row


def _settle(output: Path, cell: Cell) -> None:
    """Move a finished distillation's student out of its run directory, where records stay without weights."""
    for folder in (output / "again" / cell.row, output / "cells" / cell.name):
        run = RunDirectory(folder)
        if not (run.result.is_file() and run.model.is_dir()):
            continue
        target = _model(output, cell.row)
        with writing(target, advice=_ADVICE):
            target.parent.mkdir(exist_ok=True)
            if target.is_dir():
                shutil.rmtree(run.model)
            else:
                os.replace(run.model, target)
        shutil.rmtree(run.checkpoints, ignore_errors=True)


def _dumped(suite: Suite) -> str:
    values = json.loads(suite.model_dump_json())
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


__all__ = ["KeepModels", "Work", "plan_work", "run_suite"]
