"""What a suite has already: the record of each cell, checked against the recipe that the suite says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import UserError
from ..recipe_schema import Recipe
from ..recipe_settings import flat_settings
from ..tuning_schema import FinetuneRecipe
from .cells import Cell, expand, recipe_of
from .schema import Suite

# Settings that name a run, or pace and log it, but do not change what it learns; and what differs between machines.
_IMMATERIAL = {
    "name",
    "description",
    "paper",
    "command",
    "teacher.model",
    "model.name",
    "student.init_from",
    "data.corpus",
    "data.tokenizer",
    "task.data",
    "training.micro_batch_size",
    "training.logging_steps",
    "training.eval_steps",
    "training.save_steps",
    "training.keep_checkpoints",
    "training.eval_windows",
    "training.num_workers",
    "training.report_to",
    "tuning.micro_batch_size",
    "tuning.eval_batch_size",
    "tuning.logging_steps",
    "tuning.report_to",
}


@dataclass(frozen=True)
class Result:
    """The record of a finished cell.

    Attributes:
        file: where it stands.
        record: the record.
    """

    file: Path
    record: Mapping[str, Any]

    @property
    def points(self) -> float:
        """The reported score of a tuning, in percent."""
        return 100 * float(self.record["score"])

    @property
    def seconds(self) -> float:
        """How long its training took."""
        return float(self.record["training"]["wall_seconds"])

    @property
    def steps(self) -> int:
        """Its optimiser steps."""
        return int(self.record["training"]["steps"])


def find_results(
    suite: Suite, folders: Iterable[Path], cells: Iterable[Cell] | None = None
) -> dict[str, Result]:
    """Return the records of a suite's finished cells.

    Args:
        suite: the suite.
        folders: outputs of the suite, or folders that hold only their records; of two records of a cell that of the
            first folder counts.
        cells: which cells; None: all.

    Returns:
        The records by the names of cells, in the suite's order.

    Raises:
        UserError: if a folder has a record of another recipe than the suite's, or one that cannot be read.
    """
    found: dict[str, Result] = {}
    homes = [folder / "cells" for folder in folders]
    for cell in expand(suite) if cells is None else cells:
        for home in homes:
            file = home / cell.name / "result.json"
            if file.is_file():
                found[cell.name] = _read(suite, cell, file)
                break
    return found


def _read(suite: Suite, cell: Cell, file: Path) -> Result:
    expected = recipe_of(suite, cell, None)
    kinds = ("distillation", "initialisation") if cell.is_distillation else ("finetune",)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["kind"] not in kinds:
            raise ValueError(f"its kind is {record['kind']}")
        made = type(expected).model_validate(record["recipe"])
        result = Result(file, record)
        figures = [result.seconds, float(result.steps)] + ([] if cell.is_distillation else [result.points])
        if not all(map(math.isfinite, figures)):
            raise ValueError("a figure is not finite")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(
            f"{file} is no record of the cell {cell.name} ({type(error).__name__}: {why}): remove it, and run the "
            "suite again"
        ) from error
    different = _differences(made, expected)
    if cell.is_distillation and suite.rows[cell.row].distilled != (record["kind"] == "distillation"):
        different.append(f"it is of kind {record['kind']}")
    if different:
        raise UserError(
            f"{file} was made by other settings than the suite {suite.name} has for {cell.name}: "
            f"{'; '.join(different[:5])}. Move it away, or give another --output"
        )
    return result


def _differences(made: Recipe | FinetuneRecipe, expected: Recipe | FinetuneRecipe) -> list[str]:
    one, other = flat_settings(made.model_dump()), flat_settings(expected.model_dump())
    return [
        f"{key} {one.get(key)} instead of {other.get(key)}"
        for key in other
        if key not in _IMMATERIAL and one.get(key) != other.get(key)
    ]
