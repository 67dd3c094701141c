"""Hyper-parameter grids: every combination and seed a run of its own, chosen by validation, one record in the end."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .errors import UserError
from .finetuning import plan_finetuning
from .folders import sole_user
from .grid_cells import (
    GridCell,
    best_cell,
    expand,
    grid_record,
    grid_rows,
    select,
    validation_score,
    without_grid,
)
from .grid_driver import Waiting, drive, failure
from .grid_workers import Job, LocalWorkers, RayWorkers, Workers, import_ray
from .interrupts import GracefulStop
from .progress import duration, stderr_console
from .recipe import dump_recipe, load_recipe
from .runs import RunDirectory, check_same_recipe, write_atomically, write_result, writing
from .tuning_schema import FinetuneRecipe

__all__ = [
    "GridCell",
    "KeepModels",
    "expand",
    "grid_record",
    "grid_rows",
    "run_grid",
    "select",
]

logger = logging.getLogger(__name__)

KeepModels = Literal["selected", "all", "none"]
_KEPT = ("model", "adapters")
_ADVICE = "make room, then start the same command again"
_SAME = "Give the same settings, another --output, or --overwrite"


def run_grid(
    recipe: FinetuneRecipe,
    *,
    output: str | Path,
    jobs: int = 1,
    ray_address: str | None = None,
    keep_models: KeepModels = "selected",
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Tune a model for every cell of a grid, and choose the combination that is best on validation.

    Every cell is a run directory `cells/NAME` under the output, written by a process of its own. Finished cells
    are never run again and half-done ones go on, so the same command continues a grid that was stopped or
    killed, and a longer list of values adds to a finished one. A worker that dies is started once more.

    The choice is by the mean of the validation score over seeds, whatever split is reported.

    With Ray, one task per cell starts the same process on some node. The output, local models and data have to
    lie on storage that all nodes share under the same path, and minialbert has to be installed on each.

    Args:
        recipe: the resolved recipe.
        output: the directory of the grid.
        jobs: cells at a time on one machine (with Ray: on each node); they share its cores and GPUs.
        ray_address: "local", "auto", "host:port" or "ray://host:port"; None for processes on this machine.
        keep_models: which models stay: that of the chosen combination's best seed, all, or none (none are written).
            A kept best one is also copied to `model/` (and `adapters/`) under the output.
        overwrite: replace an earlier grid.
        progress: show a bar on a terminal, and a line per finished cell.

    Returns:
        The record, of kind "grid", as left in `result.json` under the output.

    Raises:
        UserError: if model, data, recipe and directory do not fit together, or if a cell's worker died twice.
        MissingExtraError: if Ray is asked for and not installed.
        KeyboardInterrupt: after all workers have stopped, when the grid was asked to by Ctrl-C or SIGTERM.
    """
    if jobs < 1:
        raise UserError(f"jobs is {jobs}: expected at least one cell at a time")
    if ray_address is not None:
        import_ray()
    output = Path(output).absolute()
    cells = expand(recipe)
    if not overwrite:
        _check_folder(output, recipe)
    pending = [
        cell for cell in cells if overwrite or not _is_finished(output, cell, with_model=keep_models == "all")
    ]
    if pending:  # a mistake is told once, and before anything is written
        plan_finetuning(pending[0].recipe)
    with sole_user(output, "grid"):
        if overwrite:
            _remove_earlier(output)
        with writing(output, advice=_ADVICE):
            (output / "cells").mkdir(exist_ok=True)
            write_atomically(output / "recipe.yaml", dump_recipe(recipe))
        work = _Work(output, jobs, ray_address, keep_models != "none")
        shown = _GridProgress(cells, pending, progress)
        work.run(pending, shown)
        records = {cell.name: _read_record(output, cell) for cell in cells}
        chosen = select(cells, records)
        best = best_cell(chosen, records)
        if keep_models != "none" and not (output / "cells" / best.name / "model").is_dir():
            logger.info("%s: chosen, but its model was not kept: it runs again", best.name)
            work.run([best], _GridProgress([best], [best], progress))
            records[best.name] = _read_record(output, best)
        with writing(output, advice=_ADVICE):
            if keep_models != "none":
                _copy_models(output / "cells" / best.name, output)
            record = write_result(output / "result.json", grid_record(recipe, cells, records, chosen))
        for cell in cells:
            # A worker that was killed at the very end has left its checkpoints.
            dropped = _KEPT if keep_models == "selected" and cell is not best else ()
            for name in ("checkpoints", *dropped):
                shutil.rmtree(output / "cells" / cell.name / name, ignore_errors=True)
    return record


@dataclass
class _Work:
    """Runs cells on whichever workers were asked for.

    Attributes:
        output: the grid's directory.
        jobs: cells at a time.
        ray_address: a cluster, or None.
        keep_model: write models.
    """

    output: Path
    jobs: int
    ray_address: str | None
    keep_model: bool

    def run(self, cells: Sequence[GridCell], shown: _GridProgress) -> None:
        """Run cells until each has a record."""
        if not cells:
            return
        names = {cell.name: cell for cell in cells}
        for cell in cells:
            if RunDirectory(self._folder(cell)).result.is_file():  # finished, but without the model
                shutil.rmtree(self._folder(cell))
        stop = GracefulStop()
        with stop.listening(), shown:
            workers = self._workers(len(cells))
            try:
                failed = drive(
                    workers,
                    Waiting([self._job(cell) for cell in cells]),
                    stop,
                    lambda job: shown.finish(names[job.name], _read_record(self.output, names[job.name])),
                )
            finally:
                workers.stop()
        if failed:
            raise failure(failed, len(cells), str(self.output / "logs"))

    def _workers(self, cells: int) -> Workers:
        if self.ray_address is not None:
            return RayWorkers(self.ray_address, self.jobs)
        return LocalWorkers(min(self.jobs, cells))

    def _job(self, cell: GridCell) -> Job:
        return Job(
            name=cell.name,
            recipe=cell.recipe.model_dump(),
            output=str(self._folder(cell)),
            log=str(self.output / "logs" / f"{cell.name}.log"),
            marker=str(self.output / "recipe.yaml"),
            directory=str(Path.cwd()),
            keep_model=self.keep_model,
        )

    def _folder(self, cell: GridCell) -> Path:
        return self.output / "cells" / cell.name


class _GridProgress:
    """A bar over cells with the time left, and a line per finished cell. Cells count by their epochs."""

    def __init__(self, cells: Sequence[GridCell], pending: Sequence[GridCell], shown: bool) -> None:
        self._shown = shown
        self._total, self._done = len(cells), len(cells) - len(pending)
        self._left = sum(cell.recipe.tuning.epochs for cell in pending)
        self._epochs = 0.0
        self._started = 0.0
        console = stderr_console()
        self._bar = Progress(
            TextColumn("grid"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not (shown and console.is_terminal),
        )

    def __enter__(self) -> None:
        if self._shown and self._done:
            logger.info("%d of %d cells are finished already", self._done, self._total)
        self._started = time.monotonic()
        self._bar.start()
        self._task = self._bar.add_task("grid", total=self._total, completed=self._done, left="")

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def finish(self, cell: GridCell, record: dict[str, Any]) -> None:
        """Count a cell and say how it went."""
        self._done += 1
        self._epochs += cell.recipe.tuning.epochs
        self._left -= cell.recipe.tuning.epochs
        left = duration((time.monotonic() - self._started) / self._epochs * self._left)
        self._bar.update(self._task, completed=self._done, left=f"left {left}")
        if self._shown:
            logger.info(
                "%d/%d %s: validation %s %.4f (%s)  left %s",
                self._done,
                self._total,
                cell.name,
                record["metric"].replace("_", " "),
                validation_score(record),
                duration(record["training"]["wall_seconds"]),
                left,
            )


def _check_folder(output: Path, recipe: FinetuneRecipe) -> None:
    """Refuse a directory that holds something else than a grid of this recipe, whatever its lists of values."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: expected a directory for the grid")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / "cells").is_dir():
        raise UserError(
            f"{output} is not empty and holds no grid: give another --output, or --overwrite to replace what an "
            "earlier run left there"
        )
    _check_same(output, output / "recipe.yaml", recipe)


def _check_same(folder: Path, file: Path, recipe: FinetuneRecipe) -> None:
    if file.is_file():
        earlier = without_grid(load_recipe(str(file), FinetuneRecipe))
        check_same_recipe(folder, earlier, without_grid(recipe), advice=_SAME)


def _is_finished(output: Path, cell: GridCell, *, with_model: bool) -> bool:
    run = RunDirectory(output / "cells" / cell.name)
    _check_same(run.path, run.recipe, cell.recipe)
    return run.result.is_file() and (run.model.is_dir() or not with_model)


def _read_record(output: Path, cell: GridCell) -> dict[str, Any]:
    path = output / "cells" / cell.name / "result.json"
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        validation_score(record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no record of a fine-tuning ({error}): remove {path.parent} and start the same command again"
        ) from error
    return record


def _remove_earlier(output: Path) -> None:
    for name in ("cells", "logs", *_KEPT):
        shutil.rmtree(output / name, ignore_errors=True)
    for name in ("recipe.yaml", "result.json"):
        (output / name).unlink(missing_ok=True)


def _copy_models(source: Path, target: Path) -> None:
    for name in _KEPT:
        partial = target / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, partial)
        shutil.rmtree(target / name, ignore_errors=True)
        if partial.is_dir():
            partial.rename(target / name)
