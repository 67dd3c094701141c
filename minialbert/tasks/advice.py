"""What a tuning is told: a learning rate by the model's width, and what to change where it learns next to nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from minialbert.recipes.load import apply_overrides
from minialbert.recipes.schema import FinetuneRecipe
from minialbert.runs.muon import has_muon
from minialbert.tasks.models import is_minialbert

# Learning rates of full and of adapter-tuning: the paper's, whose models are 768 wide, and for narrower students and
# encoders those of results/tuning-rate, whose models are 384 wide.
_NARROW = 512
_WIDE, _STUDENT = {"full": 5e-5, "adapters": 5e-4}, {"full": 3e-4, "adapters": 1e-3}
_MUON = 2e-3  # of a student's adapters, by results/optimiser
_MORE = "; with more passes and Muon they learn more (--epochs 8 --set tuning.optimizer=muon)"
_ENCODER = 1e-4
_FEW_STEPS, _ENOUGH_STEPS = 50, 200
_NOTHING = 0.1  # of entities, classes or answers found, or of the variance of scores
_CHANCE = 1.05  # times the mean recall of an answer that is always the same


def with_rate(recipe: FinetuneRecipe, model: PreTrainedModel) -> tuple[FinetuneRecipe, list[str]]:
    """Return a recipe with a learning rate, and a line about one that was left open or is low for the model."""
    mode, rate = recipe.tuning.mode, recipe.tuning.learning_rate
    width, student = model.config.hidden_size, is_minialbert(model)
    usual = _WIDE[mode] if width >= _NARROW else _STUDENT[mode] if student else _ENCODER
    tip, muon = "", recipe.tuning.optimizer == "muon"
    if student and width < _NARROW and mode == "adapters":
        usual = _MUON if muon else usual
        tip = "" if muon or not has_muon() else _MORE
    if rate is None:
        kind = "a recursive student" if student else "an encoder"
        how = "its adapters" if mode == "adapters" else "all of it"
        said = f"learning rate: {usual:g}, by the model ({how}; {kind} {width} wide){tip}"
        return apply_overrides(recipe, {"tuning.learning_rate": usual}), [said]
    if not (student and width < _NARROW and mode == "full" and rate <= _ENCODER):
        return recipe, []
    return recipe, [
        f"learning rate: {rate:g} suits encoders as wide as BERT (768); for a student {width} wide try {usual:g} "
        f"(--lr {usual:g})"
    ]


def few_steps(steps: int, max_steps: int) -> list[str]:
    """Return a line where the steps, of one pass and in all, are so few that a model may stay at chance."""
    if max_steps >= _FEW_STEPS:
        return []
    more = math.ceil(_ENOUGH_STEPS / steps)
    return [
        f"training: {max_steps} steps in all are few for a new head; if the figures stay at chance, give more "
        f"epochs (--epochs {more} makes them {more * steps})"
    ]


def is_chance(figures: Mapping[str, Any]) -> bool:
    """Return whether figures are hardly better than those of one answer to everything; False where that is unknown."""
    names = ["entity_f1", "f1_micro", "r2"]
    if "exact_match" in figures:
        names += ["answered_f1", "f1"]  # of questions that have an answer, else of all
    for name in names:
        if name in figures:
            return bool(figures[name] <= _NOTHING)
    recalls = [one["recall"] for one in (figures.get("per_class") or {}).values() if one["support"]]
    return len(recalls) > 1 and statistics.fmean(recalls) <= _CHANCE / len(recalls)


def remedy(record: Mapping[str, Any]) -> str | None:
    """Return what to change before the model of a record is of use, None where its figures are above chance."""
    if not is_chance(record["metrics"][record["split"]]):
        return None
    notes = [note for note in record["notes"] if note.startswith(("training: ", "learning rate: "))]
    said = [note for note in notes if "(--" in note]
    rate = record["recipe"]["tuning"]["learning_rate"]
    other = f"give more rows, a longer training (--epochs) or another learning rate (--lr, it was {rate:g})"
    return f"the figures are hardly above chance, so tune again before an export; {'; '.join(said) or other}"
