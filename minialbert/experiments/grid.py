"""Hyper-parameter grids: every combination and seed a run of its own, chosen by validation, one record in the end."""

from __future__ import annotations

import json
import logging
import math
import shlex
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from minialbert.data.examples import LOWER_IS_BETTER
from minialbert.errors import UserError
from minialbert.experiments.pool import (
    Job,
    LocalWorkers,
    RayWorkers,
    Waiting,
    Workers,
    drive,
    failure,
    import_ray,
)
from minialbert.recipes.load import dump_recipe, load_recipe
from minialbert.recipes.schema import FinetuneRecipe, GridRecipe
from minialbert.runs.directory import RunDirectory, check_same_recipe, write_atomically, write_result, writing
from minialbert.runs.files import sole_user
from minialbert.runs.progress import duration, stderr_console
from minialbert.runs.stopping import GracefulStop
from minialbert.tasks.finetune import finetune_command, plan_finetuning

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


@dataclass(frozen=True)
class GridCell:
    """One combination with one seed.

    Attributes:
        name: its folder's name, which says both.
        recipe: the recipe of its run, with an empty grid.
    """

    name: str
    recipe: FinetuneRecipe

    @property
    def configuration(self) -> tuple[float, int, float]:
        """Learning rate, batch size and epochs: what a choice is made between."""
        tuning = self.recipe.tuning
        return tuning.learning_rate, tuning.batch_size, tuning.epochs


def expand(recipe: FinetuneRecipe) -> list[GridCell]:
    """Return the cells of a recipe's grid.

    Args:
        recipe: the recipe; an empty list of its grid stands for the value under `tuning`.

    Returns:
        One cell per learning rate, batch size, number of epochs and seed, the seeds of a combination together.

    Raises:
        UserError: if a combination is no recipe.
    """
    grid, tuning = recipe.grid, recipe.tuning
    cells = []
    for rate, batch, epochs, seed in product(
        grid.learning_rate or [tuning.learning_rate],
        grid.batch_size or [tuning.batch_size],
        grid.epochs or [tuning.epochs],
        grid.seed or [tuning.seed],
    ):
        values = without_grid(recipe).model_dump()
        values["tuning"] |= {"learning_rate": rate, "batch_size": batch, "epochs": epochs, "seed": seed}
        name = f"lr{_short(rate)}-bs{batch}-ep{_short(epochs)}-seed{seed}"
        try:
            cells.append(GridCell(name, FinetuneRecipe.model_validate(values)))
        except ValidationError as error:
            raise UserError(f"grid cell {name}: {error.errors()[0]['msg']}") from None
    return cells


def select(cells: Sequence[GridCell], records: dict[str, dict[str, Any]]) -> list[GridCell]:
    """Return the cells of the combination with the best mean validation score over its seeds.

    Args:
        cells: the cells in their order.
        records: their records by name.

    Returns:
        The chosen combination's cells, one per seed; of equal ones the earlier. A score that is no number loses.
    """
    groups: dict[tuple[float, int, float], list[GridCell]] = {}
    for cell in cells:
        groups.setdefault(cell.configuration, []).append(cell)
    return max(groups.values(), key=lambda group: _merit([records[cell.name] for cell in group]))


def grid_record(
    recipe: FinetuneRecipe,
    cells: Sequence[GridCell],
    records: dict[str, dict[str, Any]],
    chosen: Sequence[GridCell],
) -> dict[str, Any]:
    """Return the record of a finished grid.

    Args:
        recipe: the grid's recipe.
        cells: all cells.
        records: their records by name.
        chosen: the cells of the chosen combination.

    Returns:
        What was chosen with its figures, a line per cell, and the means of all figures of the chosen runs.
    """
    runs = [records[cell.name] for cell in chosen]
    first = runs[0]
    rate, batch, epochs = chosen[0].configuration
    seeds = [cell.recipe.tuning.seed for cell in chosen]
    score, sd = _mean_sd([run["score"] for run in runs])
    on_validation, validation_sd = _mean_sd([validation_score(run) for run in runs])
    used = ("learning_rate", "batch_size", "epochs", "seed")
    grid = [f"grid.{name}={getattr(recipe.grid, name)}" for name in used if getattr(recipe.grid, name)]
    options = [word for value in grid for word in ("--set", value)]
    return {
        "kind": "grid",
        "name": recipe.name,
        "task": first["task"],
        "problem": first["problem"],
        "metric": first["metric"],
        "split": first["split"],
        "selected": {
            "learning_rate": rate,
            "batch_size": batch,
            "epochs": epochs,
            "score": score,
            "sd": sd,
            "n": len(runs),
            "seed": seeds[0] if len(seeds) == 1 else None,
            "seeds": seeds,
            "validation_score": on_validation,
            "validation_sd": validation_sd,
            "cells": [cell.name for cell in chosen],
            "best_cell": best_cell(chosen, records).name,
            "mode": first["mode"],
            "adapter_init": first["adapter_init"],
            "teacher": first["teacher"],
            "model": first["model"],
            "recipe": first["recipe"],
        },
        "cells": [
            {
                "name": cell.name,
                "learning_rate": cell.recipe.tuning.learning_rate,
                "batch_size": cell.recipe.tuning.batch_size,
                "epochs": cell.recipe.tuning.epochs,
                "seed": cell.recipe.tuning.seed,
                "validation_score": validation_score(records[cell.name]),
                "score": records[cell.name]["score"],
                "wall_seconds": records[cell.name]["training"]["wall_seconds"],
            }
            for cell in cells
        ],
        "metrics": _mean([run["metrics"] for run in runs]),
        "seed": seeds,
        "mode": first["mode"],
        "model": first["model"],
        "data": first["data"],
        "notes": first["notes"],
        "recipe": {
            **first["recipe"],
            "tuning": recipe.tuning.model_dump(),
            "grid": recipe.grid.model_dump(),
        },
        "command": f"{finetune_command(recipe)} {shlex.join([*options, '--grid'])}",
    }


def grid_rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a table of a grid's combinations: its header, the chosen one, then the others, the best first.

    Args:
        record: as `run_grid` returns it.

    Returns:
        One row per combination: mean and deviation of its validation score, and its time. The reported score is
        that of the chosen one alone: figures of the test split are not for choosing.
    """
    chosen = record["selected"]
    groups: dict[tuple[float, int, float], list[dict[str, Any]]] = {}
    for cell in record["cells"]:
        groups.setdefault((cell["learning_rate"], cell["batch_size"], cell["epochs"]), []).append(cell)
    sign = -1.0 if record["metric"] in LOWER_IS_BETTER else 1.0
    rows = []
    for (rate, batch, epochs), cells in groups.items():
        mean, sd = _mean_sd([cell["validation_score"] for cell in cells])
        is_chosen = (rate, batch, epochs) == tuple(
            chosen[name] for name in ("learning_rate", "batch_size", "epochs")
        )
        seconds = sum(cell["wall_seconds"] for cell in cells)
        row = (
            _short(rate),
            str(batch),
            _short(epochs),
            str(len(cells)),
            _with_deviation(mean, sd),
            _with_deviation(chosen["score"], chosen["sd"]) if is_chosen else "",
            duration(seconds),
        )
        rows.append((not is_chosen, -_finite(sign * mean), row))
    header = (
        "learning rate",
        "batch size",
        "epochs",
        "seeds",
        f"{record['metric'].replace('_', ' ')} on validation",
        f"selected, on {record['split']}",
        "time",
    )
    return [header, *(row for *_, row in sorted(rows, key=lambda entry: entry[:2]))]


def without_grid(recipe: FinetuneRecipe) -> FinetuneRecipe:
    """Return a recipe with an empty grid."""
    return recipe.model_copy(update={"grid": GridRecipe()})


def _short(value: float) -> str:
    text = f"{value:g}"
    return text if float(text) == value else repr(value)


def validation_score(record: dict[str, Any]) -> float:
    """Return what a run is chosen by."""
    return float(record["metrics"]["validation"][record["metric"]])


def _merit(records: Sequence[dict[str, Any]]) -> float:
    mean = statistics.fmean(validation_score(record) for record in records)
    return _finite(-mean if records[0]["metric"] in LOWER_IS_BETTER else mean)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def best_cell(chosen: Sequence[GridCell], records: dict[str, dict[str, Any]]) -> GridCell:
    """Return the cell with the best validation score, of equal ones the first."""
    return max(chosen, key=lambda cell: _merit([records[cell.name]]))


def _mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation; None for the latter with one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _mean(values: Sequence[Any]) -> Any:  # noqa: ANN401 - figures, nested
    """Return the mean of figures nested in dictionaries, of those that all have."""
    first = values[0]
    if isinstance(first, dict):
        return {
            key: _mean([value[key] for value in values])
            for key in first
            if all(key in value for value in values)
        }
    if all(isinstance(value, int | float) and value == first for value in values):
        return first  # counts stay whole
    return statistics.fmean(values)


def _with_deviation(mean: float, sd: float | None) -> str:
    return f"{mean:.4f}" if sd is None else f"{mean:.4f} ± {sd:.4f}"


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
