"""The cells of a grid: made from a recipe, compared on validation, and told in one record."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from .errors import UserError
from .finetuning_command import finetune_command
from .metrics import LOWER_IS_BETTER
from .progress import duration
from .tuning_schema import FinetuneRecipe, GridRecipe


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
