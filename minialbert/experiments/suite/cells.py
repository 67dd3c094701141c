"""The cells of a suite: a distillation per row, a tuning per row, mode, task and seed; and the records they have."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from minialbert.errors import UserError
from minialbert.experiments.suite.schema import DISTILL, Suite, split_side
from minialbert.recipes.load import apply_overrides, load_recipe
from minialbert.recipes.schema import FinetuneRecipe, Mark, Recipe, flat_settings, marked
from minialbert.runs.packed import RECORDS, is_run_file, read_run_file


@dataclass(frozen=True)
class Cell:
    """One run of a suite: a tuning, or a distillation, which has no task and its recipe's seed."""

    row: str
    mode: str  # the way of tuning, or "distill"
    group: str  # the first that asks for it
    task: str | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """Its folder below `cells/`."""
        return f"{self.row}/{self.mode}" + ("" if self.task is None else f"/{self.task}-{self.seed}")

    @property
    def is_distillation(self) -> bool:
        """Whether it makes the row's student."""
        return self.mode == DISTILL


@dataclass(frozen=True)
class Places:
    """What stands where on this machine."""

    data: Path  # the folder with tasks and corpora
    teachers: Mapping[str, str]  # directory or hub id, by name
    models: Path  # where distilled students are kept


def expand(suite: Suite) -> list[Cell]:
    """Return the cells of a suite in the order they are run, each once.

    They come group by group, seed by seed, row by row; a row's distillation stands before its first tuning.
    """
    cells: dict[str, Cell] = {}
    for group in suite.groups:
        for seed in group.seeds:
            for side in group.cells:
                row, mode = split_side(side)
                if suite.rows[row].recipe is not None:
                    made = Cell(row, DISTILL, group.name)
                    cells.setdefault(made.name, made)
                for task in group.tasks:
                    tuned = Cell(row, mode, group.name, task, seed)
                    cells.setdefault(tuned.name, tuned)
    return list(cells.values())


def select(cells: list[Cell], patterns: tuple[str, ...] | list[str]) -> list[Cell]:
    """Return the cells that one of some patterns names, in their order; all of them without a pattern.

    Patterns are names of groups or rows, or globs over names of cells, as in `student-*/full/cola-*`, or
    comma-separated lists of them. One that names nothing is a `UserError`.
    """
    chosen: set[Cell] = set()
    wanted = [part.strip() for pattern in patterns for part in pattern.split(",") if part.strip()]
    for one in wanted:
        named = {cell for cell in cells if one in (cell.group, cell.row) or fnmatchcase(cell.name, one)}
        if not named:
            kinds = {of: dict.fromkeys(getattr(cell, of) for cell in cells) for of in ("group", "row")}
            known = (f"{of}s: {', '.join(names)}" for of, names in kinds.items())
            advice = "or a glob over cells as `suite run --dry-run` lists them"
            raise UserError(f"--only {one}: names no cell; {'; '.join(known)}; {advice}")
        chosen |= named
    return [cell for cell in cells if cell in chosen or not wanted]


def recipe_of(suite: Suite, cell: Cell, places: Places | None) -> Recipe | FinetuneRecipe:
    """Return the resolved recipe of a cell, without teachers, models and data where `places` is None."""
    if cell.task is None:
        return distillation_recipe(suite, cell.row, places)
    row, mode, task = suite.rows[cell.row], suite.modes[cell.mode], suite.tasks[cell.task]
    # Decoding as in the paper, and in records from before there was another.
    settings: dict[str, Any] = {"task.decoding": "alone"} | mode.settings | mode.tasks.get(cell.task, {})
    settings |= {"task.name": task.name, **{f"task.{key}": value for key, value in task.settings.items()}}
    settings |= {"tuning.seed": cell.seed, "model.name": row.model}
    if places is not None:
        if row.recipe is not None:
            settings["model.name"] = str(places.models / cell.row)
        elif row.teacher is not None:
            settings["model.name"] = places.teachers[row.teacher]
        if task.data is not None:
            settings["task.data"] = str(places.data / task.data)
    with _naming(f"suite {suite.name}, cell {cell.name}"):
        return apply_overrides(load_recipe(mode.recipe, FinetuneRecipe), settings)


def distillation_recipe(suite: Suite, name: str, places: Places | None) -> Recipe:
    """Return the recipe that makes a row's student; see `recipe_of`."""
    row = suite.rows[name]
    assert row.recipe is not None
    settings: dict[str, Any] = {"name": name, **row.settings}
    if places is not None:
        if row.teacher is not None:
            settings["teacher.model"] = places.teachers[row.teacher]
        if row.corpus is not None:
            settings["data.corpus"] = [str(places.data / suite.corpora[row.corpus])]
    with _naming(f"suite {suite.name}, row {name}"):
        return apply_overrides(load_recipe(row.recipe, Recipe), settings)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Put the place in front of the message of a `UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {str(error).removeprefix('settings').lstrip(': ')}") from None


@dataclass(frozen=True)
class Result:
    """The record of a finished cell, and the file that it stands in."""

    file: Path
    record: Mapping[str, Any]

    def end(self) -> Mapping[str, Any]:
        """Return what a distillation measured last; of first weights, their only measurement."""
        metrics = self.record["metrics"]
        return metrics.get("student_end") or metrics.get("student_start") or {}

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
    """Return the records of a suite's finished cells, by the names of cells, in the suite's order.

    Folders are outputs of the suite, or hold only their records; of two records of a cell that of the first folder
    counts. One of another recipe than the suite's, or one that cannot be read, is a `UserError`.
    """
    found: dict[str, Result] = {}
    homes = [folder / "cells" for folder in folders]
    for cell in expand(suite) if cells is None else cells:
        files = (home / cell.name / "result.json" for home in homes)
        if file := next(filter(is_run_file, files), None):
            found[cell.name] = _read(suite, cell, file)
    return found


def _read(suite: Suite, cell: Cell, file: Path) -> Result:
    expected = recipe_of(suite, cell, None)
    shown = file if file.is_file() else f"{file}, a line of {RECORDS},"
    kinds = ("distillation", "initialisation") if cell.is_distillation else ("finetune",)
    try:
        record = json.loads(read_run_file(file))
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
            f"{shown} is not a record of the cell {cell.name} ({type(error).__name__}: {why}): remove it, and run the "
            "suite again"
        ) from error
    one, other = flat_settings(made.model_dump()), flat_settings(expected.model_dump())
    different = [
        f"{key} {one.get(key)} instead of {other.get(key)}"
        for key in other
        if key not in marked(Mark.NAME, Mark.PLACE, Mark.PACE)
        and one.get(key) != other.get(key)
        and not (key.endswith(".precision") and "auto" in (one.get(key), other.get(key)))
        and not (key == "tuning.learning_rate" and other[key] is None)  # that of the model
    ]
    if cell.is_distillation and suite.rows[cell.row].distilled != (record["kind"] == "distillation"):
        different.append(f"it is of kind {record['kind']}")
    if different:
        raise UserError(
            f"{shown} was made by other settings than the suite {suite.name} has for {cell.name}: "
            f"{'; '.join(different[:5])}. Move it away, or give another --output"
        )
    return result
