"""How long the cells that are left will take, from those that are done."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minialbert.experiments.suite.cells import Cell, Result, distillation_recipe, expand
from minialbert.experiments.suite.schema import Suite
from minialbert.recipes.schema import Recipe
from minialbert.runs.progress import duration


@dataclass(frozen=True)
class TimeLeft:
    """An estimate."""

    seconds: float  # of all cells that can be estimated, one after the other
    unknown: int  # cells that cannot, because none like them is done
    kinds: tuple[str, ...]  # of those: "distillation", and tasks by name

    def told(self, jobs: int = 1) -> str:
        """Return it as a line, for so many cells at a time. Those that are done are taken to have run as many."""
        without = ", ".join(self.kinds)
        if self.unknown and not self.seconds:
            return f"no estimate yet: the first of each kind is to be measured ({without})"
        seconds = self.seconds / jobs
        told = duration(seconds) if seconds < 360 else f"{seconds / 3600:.1f} h"
        line = f"about {told} of compute left on this machine"
        if not self.unknown:
            return line
        unknown = "1 cell" if self.unknown == 1 else f"{self.unknown} cells"
        return f"{line}, not counting {unknown} unlike any that is done ({without})"


def time_left(
    suite: Suite, left: Iterable[Cell], results: Mapping[str, Result], overhead: float = 0.0
) -> TimeLeft:
    """Return an estimate of what is left; `overhead` is what a cell takes besides its training, in seconds.

    A distillation takes its steps at the speed of those with as many layers of the same kind and the same need of a
    teacher, else of all; a tuning takes the time of those on its task with the same mode and the same kind of row, else
    of all on its task.
    """
    done: dict[tuple[Any, ...], list[float]] = {}
    for cell in expand(suite):
        if (result := results.get(cell.name)) is not None:
            cost = result.seconds / max(result.steps, 1) if cell.is_distillation else result.seconds
            for key in _keys(suite, cell):
                done.setdefault(key, []).append(cost)
    seconds, unknown = 0.0, []
    for cell in left:
        if cell.is_distillation and not suite.rows[cell.row].distilled:
            seconds += overhead
            continue
        measured = next((done[key] for key in _keys(suite, cell) if key in done), None)
        if measured is None:
            unknown.append(cell)
            continue
        steps = _steps(distillation_recipe(suite, cell.row, None), results) if cell.is_distillation else 1
        seconds += statistics.fmean(measured) * steps + overhead
    kinds = dict.fromkeys(cell.task or "distillation" for cell in unknown)
    return TimeLeft(seconds, len(unknown), tuple(sorted(kinds, key=lambda kind: kind != "distillation")))


def _keys(suite: Suite, cell: Cell) -> list[tuple[Any, ...]]:
    """Return what a cell is like, the closest likeness first; nothing for a student that is not distilled."""
    row = suite.rows[cell.row]
    shape: tuple[Any, ...] = ("model",)
    if row.recipe is not None:
        recipe = distillation_recipe(suite, cell.row, None)
        shape = (recipe.student.arch, recipe.student.num_hidden_layers)
        if cell.is_distillation:
            of = recipe.distill
            weights = (of.attention_weight, of.hidden_weight, of.output_weight)
            asks_teacher = any(weight is None or weight > 0 for weight in weights)
            return [("distill", *shape, asks_teacher), ("distill",)] if row.distilled else []
    tails: tuple[tuple[Any, ...], ...] = ((cell.mode, *shape), (cell.mode,), shape, ())
    return [("tune", cell.task, *tail) for tail in tails]


def _steps(recipe: Recipe, results: Mapping[str, Result]) -> float:
    """Return the steps of a recipe; of one that counts epochs, those of a distillation of as many."""
    training = recipe.training
    if training.max_steps is not None:
        return training.max_steps
    assert training.epochs is not None
    for result in results.values():
        if epochs := (result.record["recipe"].get("training") or {}).get("epochs"):
            return result.steps * training.epochs / float(epochs)
    return 0.0
