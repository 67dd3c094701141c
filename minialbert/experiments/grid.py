"""Hyper-parameter grids: every combination and seed a run of its own, chosen by validation, one record in the end."""

from __future__ import annotations

import json
import logging
import math
import shlex
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from minialbert.errors import UserError, failing_as, in_words
from minialbert.experiments import pool
from minialbert.experiments.pool import LocalWorkers
from minialbert.experiments.ray import RayWorkers, import_ray
from minialbert.recipes.load import apply_overrides, dump_recipe, load_recipe
from minialbert.recipes.schema import FinetuneRecipe, GridRecipe
from minialbert.runs.directory import RunDirectory, check_same_recipe, tell_unchecked
from minialbert.runs.files import check_folder, sole_user, writing
from minialbert.runs.progress import duration
from minialbert.runs.records import grouped, lower_is_better, mean_and_sd, write_result
from minialbert.tasks.finetune import FinetuningPlan, finetune_command, plan_finetuning, tuning_identity

logger = logging.getLogger(__name__)

_MOST_CELLS = 10_000

KeepModels = Literal["selected", "all", "none"]
_KEPT = ("model", "adapters")
_VALUES = ("learning_rate", "batch_size", "epochs")
_OTHER = "give another --output, or --overwrite to replace what an earlier run left there"


@dataclass(frozen=True)
class GridCell:
    """One combination with one seed: the name of its folder, and the recipe of its run, with an empty grid."""

    name: str
    recipe: FinetuneRecipe

    @property
    def configuration(self) -> tuple[float | None, int, float]:
        """Learning rate, batch size and epochs: what a choice is made between."""
        tuning = self.recipe.tuning
        return tuning.learning_rate, tuning.batch_size, tuning.epochs


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

    `jobs` cells run at a time on one machine (with Ray: on each node). With Ray, at the address "local", "auto",
    "host:port" or "ray://host:port", one task per cell starts the same process on some node. The output, local
    models and data have to lie on storage that all nodes share under the same path, and minialbert has to be
    installed on each. `keep_models` says which models stay: that of the chosen combination's best seed, all, or
    none (none are written). A kept best one is also copied to `model/` (and `adapters/`) under the output.

    Returns the record, of kind "grid", as left in `result.json`. A UserError tells that model, data, recipe and
    directory do not fit together, or that a cell's worker died twice. When the grid was asked to stop, by Ctrl-C
    or SIGTERM, a KeyboardInterrupt comes after all workers have stopped.
    """
    if jobs < 1:
        raise UserError(f"jobs is {jobs}: expected at least one cell at a time")
    if ray_address is not None:
        import_ray()
    output = Path(output).absolute()
    if not overwrite:
        check_folder(output, "grid", overwrite=True, marker="cells", advice=_OTHER)
        recipe = RunDirectory(output).as_begun(recipe, "tuning") or recipe
        _check_same(output, output / "recipe.yaml", recipe)
    # A mistake is told once, and before anything is written; what is left open is settled once for all cells.
    plan = plan_finetuning(max(expand(recipe), key=lambda cell: cell.recipe.tuning.epochs).recipe)
    identity, recipe = tuning_identity(plan), _settled(recipe, plan, progress=progress)
    cells = expand(recipe)
    pending = [
        cell for cell in cells if overwrite or not _is_finished(output, cell, with_model=keep_models == "all")
    ]
    if not overwrite:
        _check_same_data(output, cells, identity)
    with sole_user(output, "grid"):
        if overwrite:
            _remove_earlier(output)
        pool.begin_folder(output / "recipe.yaml", dump_recipe(recipe))
        words = ("finetune", *(("--keep-models", "none") if keep_models == "none" else ()))

        def workers(cells: int) -> pool.Workers:
            return LocalWorkers(min(jobs, cells)) if ray_address is None else RayWorkers(ray_address, jobs)

        _run_cells(output, cells, pending, words, workers, progress=progress)
        records = {cell.name: _read_record(output, cell) for cell in cells}
        chosen = select(cells, records)
        best = best_cell(chosen, records)
        if keep_models != "none" and not (output / "cells" / best.name / "model").is_dir():
            logger.info("%s: chosen, but its model was not kept: it runs again", best.name)
            _run_cells(output, [best], [best], words, workers, progress=progress)
            records[best.name] = _read_record(output, best)
        with writing(output, advice=pool.ADVICE):
            if keep_models != "none":
                _copy_models(output / "cells" / best.name, output)
            record = write_result(output / "result.json", grid_record(recipe, cells, records, chosen))
        for cell in cells:
            # A worker that was killed at the very end has left its checkpoints.
            dropped = _KEPT if keep_models == "selected" and cell is not best else ()
            for name in ("checkpoints", *dropped):
                shutil.rmtree(output / "cells" / cell.name / name, ignore_errors=True)
    return record


def _settled(recipe: FinetuneRecipe, plan: FinetuningPlan, *, progress: bool) -> FinetuneRecipe:
    """Return a grid's recipe with the precision of a cell's plan, and its learning rate unless there are several."""
    names = {"precision"}
    if not recipe.grid.learning_rate:
        names.add("learning_rate")
        for note in plan.notes if progress else ():
            if note.startswith("learning rate: "):
                logger.info("%s", note)
    settled = plan.recipe.tuning.model_dump(include=names)
    return apply_overrides(recipe, {f"tuning.{name}": value for name, value in settled.items()})


def _run_cells(
    output: Path,
    cells: Sequence[GridCell],
    pending: Sequence[GridCell],
    words: Sequence[str],
    workers: Callable[[int], pool.Workers],
    *,
    progress: bool,
) -> None:
    """Run the cells that are pending until each has a record. Cells count by their epochs for the time left."""
    if not pending:
        return
    jobs = []
    for cell in pending:
        folder, log = output / "cells" / cell.name, output / "logs" / f"{cell.name}.log"
        if (folder / "result.json").is_file():  # finished, but without the model
            shutil.rmtree(folder)
        recipe = dump_recipe(cell.recipe)
        jobs.append(pool.Job(cell.name, words, recipe, str(folder), str(log), str(Path.cwd())))
    left = {cell.name: cell for cell in pending}
    epochs, started = 0.0, time.monotonic()
    if progress and len(pending) < len(cells):
        logger.info("%d of %d cells are finished already", len(cells) - len(pending), len(cells))

    def finish(job: pool.Job, _: float) -> None:
        nonlocal epochs
        cell = left.pop(job.name)
        record = _read_record(output, cell)
        epochs += cell.recipe.tuning.epochs
        left_epochs = sum(one.recipe.tuning.epochs for one in left.values())
        told = f"left {duration((time.monotonic() - started) / epochs * left_epochs)}"
        score = f"validation {record['metric'].replace('_', ' ')} {validation_score(record):.4f}"
        tell(f"{cell.name}: {score} ({duration(record['training']['wall_seconds'])})  {told}", told, True)

    with pool.cell_bar("grid", len(cells), len(cells) - len(pending), shown=progress) as tell:
        pool.run_jobs(jobs, workers, finish, logs=output / "logs")


def expand(recipe: FinetuneRecipe) -> list[GridCell]:
    """Return one cell per learning rate, batch size, number of epochs and seed, the seeds of a combination together.

    An empty list of a recipe's grid stands for the value under `tuning`; a combination that is not a recipe is a
    `UserError`.
    """
    names = (*_VALUES, "seed")
    values_of = [getattr(recipe.grid, name) or [getattr(recipe.tuning, name)] for name in names]
    if (count := math.prod(map(len, values_of))) > _MOST_CELLS:
        raise UserError(f"the grid has {count:,} cells: at most {_MOST_CELLS:,} can be run at a time")
    cells = []
    for chosen in product(*values_of):
        values = without_grid(recipe).model_dump()
        values["tuning"] |= dict(zip(names, chosen, strict=True))
        rate, batch, epochs, seed = chosen
        rated = "" if rate is None else f"lr{_short(rate)}-"  # it follows the model
        name = f"{rated}bs{batch}-ep{_short(epochs)}-seed{seed}"
        try:
            cells.append(GridCell(name, FinetuneRecipe.model_validate(values)))
        except ValidationError as error:
            raise UserError(f"grid cell {name}: {error.errors()[0]['msg']}") from None
    return cells


def select(cells: Sequence[GridCell], records: dict[str, dict[str, Any]]) -> list[GridCell]:
    """Return the cells of the combination with the best mean validation score over seeds, of equal ones the earlier."""
    groups = grouped((cell.configuration, cell) for cell in cells)
    return max(groups.values(), key=lambda group: _merit(*(records[cell.name] for cell in group)))


def grid_record(
    recipe: FinetuneRecipe,
    cells: Sequence[GridCell],
    records: dict[str, dict[str, Any]],
    chosen: Sequence[GridCell],
) -> dict[str, Any]:
    """Return the record of a grid: what was chosen, a line per cell, the means of all figures of the chosen runs."""
    runs = [records[cell.name] for cell in chosen]
    first = runs[0]
    seeds = [cell.recipe.tuning.seed for cell in chosen]
    score, sd = mean_and_sd([run["score"] for run in runs])
    on_validation, validation_sd = mean_and_sd([validation_score(run) for run in runs])
    used = (*_VALUES, "seed")
    grid = [f"grid.{name}={getattr(recipe.grid, name)}" for name in used if getattr(recipe.grid, name)]
    options = [word for value in grid for word in ("--set", value)]
    selected = {
        **dict(zip(_VALUES, chosen[0].configuration, strict=True)),
        "score": score, "sd": sd, "n": len(runs), "seed": seeds[0] if len(seeds) == 1 else None, "seeds": seeds,
        "validation_score": on_validation, "validation_sd": validation_sd,
        "cells": [cell.name for cell in chosen], "best_cell": best_cell(chosen, records).name,
        **{key: first[key] for key in ("mode", "adapter_init", "teacher", "model", "recipe")},
    }  # fmt: skip
    every = [
        {
            "name": cell.name, **{name: getattr(cell.recipe.tuning, name) for name in used},
            "validation_score": validation_score(record), "score": record["score"],
            "wall_seconds": record["training"]["wall_seconds"],
        }
        for cell, record in ((cell, records[cell.name]) for cell in cells)
    ]  # fmt: skip
    return {
        "kind": "grid", "name": recipe.name, **{key: first[key] for key in ("task", "problem", "metric", "split")},
        "selected": selected, "cells": every, "metrics": _mean([run["metrics"] for run in runs]), "seed": seeds,
        **{key: first[key] for key in ("mode", "model", "data", "notes")},
        "recipe": first["recipe"] | recipe.model_dump(include={"tuning", "grid"}),
        "command": f"{finetune_command(recipe)} {shlex.join([*options, '--grid'])}",
    }  # fmt: skip


def grid_rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a table of a grid's combinations: its header, the chosen one, then the others, the best first.

    Of each it has mean and deviation of the validation score, and the time. The reported score is that of the chosen
    one alone: figures of the test split are not for choosing.
    """
    chosen = record["selected"]
    groups = grouped((tuple(cell[name] for name in _VALUES), cell) for cell in record["cells"])
    rows = []
    for values, cells in groups.items():
        mean, sd = mean_and_sd([cell["validation_score"] for cell in cells])
        is_chosen = values == tuple(chosen[name] for name in _VALUES)
        told = _with_deviation(chosen["score"], chosen["sd"]) if is_chosen else ""
        seconds = duration(sum(cell["wall_seconds"] for cell in cells))
        shown = (_short(values[0]), str(values[1]), _short(values[2]), str(len(cells)))
        row = (*shown, _with_deviation(mean, sd), told, seconds)
        rows.append((not is_chosen, -_signed(mean, record["metric"]), row))
    metric, split = in_words(record["metric"]), record["split"]
    figures = (f"{metric} on validation", f"selected, on {split}")
    header = ("learning rate", "batch size", "epochs", "seeds", *figures, "time")
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


def _merit(*records: dict[str, Any]) -> float:
    return _signed(statistics.fmean(map(validation_score, records)), records[0]["metric"])


def _signed(score: float, metric: str) -> float:
    """Return a score of which more is better; one that is not a number loses."""
    value = -score if lower_is_better(metric) else score
    return value if math.isfinite(value) else -math.inf


def best_cell(chosen: Sequence[GridCell], records: dict[str, dict[str, Any]]) -> GridCell:
    """Return the cell with the best validation score, of equal ones the first."""
    return max(chosen, key=lambda cell: _merit(records[cell.name]))


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean of figures nested in dictionaries, of those that all have."""
    first = values[0]
    if isinstance(first, dict):
        common = [key for key in first if all(key in value for value in values)]
        return {key: _mean([value[key] for value in values]) for key in common}
    if all(isinstance(value, int | float) and value == first for value in values):
        return first  # counts stay whole
    return statistics.fmean(values)


def _with_deviation(mean: float, sd: float | None) -> str:
    return f"{mean:.4f}" if sd is None else f"{mean:.4f} ± {sd:.4f}"


def _check_same(folder: Path, file: Path, recipe: FinetuneRecipe) -> None:
    """Refuse a directory of another recipe than this, whatever their lists of values."""
    if file.is_file():
        earlier = without_grid(load_recipe(str(file), FinetuneRecipe))
        advice = "Give the same settings, another --output, or --overwrite"
        check_same_recipe(folder, earlier, without_grid(recipe), advice=advice)


def _check_same_data(output: Path, cells: Sequence[GridCell], identity: dict[str, Any]) -> None:
    """Refuse to mix cells of other data or models with those to come."""
    unknown: dict[str, None] = {}
    for cell in cells:
        run = RunDirectory(output / "cells" / cell.name)
        if run.recipe.is_file():
            unknown |= dict.fromkeys(run.check_same_data(identity, advice=_OTHER))
    if unknown:
        tell_unchecked(output, unknown)


def _is_finished(output: Path, cell: GridCell, *, with_model: bool) -> bool:
    run = RunDirectory(output / "cells" / cell.name)
    _check_same(run.path, run.recipe, cell.recipe)
    return run.result.is_file() and (run.model.is_dir() or not with_model)


def _read_record(output: Path, cell: GridCell) -> dict[str, Any]:
    path = output / "cells" / cell.name / "result.json"
    advice = f"remove {path.parent} and start the same command again (without --overwrite)"
    with failing_as(
        f"{path} is not a record of a fine-tuning", (OSError, ValueError, KeyError, TypeError), advice
    ):
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        validation_score(record)
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
