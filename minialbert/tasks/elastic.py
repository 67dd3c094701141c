"""Tuning a student for every depth: the loss of a depth before the last, and which depths a model is tuned for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from minialbert.data.examples import Problem
from minialbert.errors import UserError, display_name
from minialbert.method.elastic import draw_depth, mark_depths
from minialbert.recipes.schema import FinetuneRecipe, resolve_depths
from minialbert.tasks.losses import logit_loss, task_loss
from minialbert.tasks.models import is_minialbert


@dataclass(frozen=True)
class ElasticTuning:
    """What a depth before the last is tuned for: the gold labels, and the logits of the last depth.

    L_elastic = task_weight L_task(k) + logit_weight L_logit(last || k), both as `tasks.losses` has them, at
    temperature 1. The last depth is the teacher here, and gets no gradient.

    Attributes:
        depths: depths before the last; a step tunes one of them.
        task_weight: weight of the loss on gold labels.
        logit_weight: weight of the loss on the last depth's logits.
    """

    depths: tuple[int, ...]
    task_weight: float = 1.0
    logit_weight: float = 1.0

    def draw(self, *, seed: int, step: int) -> int:
        """Return the depth that an optimiser step tunes; see `method.elastic.draw_depth`."""
        return draw_depth(self.depths, seed=seed, step=step)

    def __call__(
        self,
        logits: Tensor,
        last_logits: Tensor,
        labels: Tensor,
        problem: Problem,
        *,
        weight: float,
        count: float,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the term for one depth.

        Args:
            logits: what the head reads at that depth, (B, L) or (B, T, L).
            last_logits: the same of the last depth.
            labels: gold labels, as for `task_loss`.
            problem: the kind of task.
            weight: what the sum over gold labels is divided by.
            count: what the sum over logits is divided by.
            class_weights: (L,) or None.

        Returns:
            A scalar in fp32, with gradients towards `logits` only.
        """
        summed, _ = task_loss(logits, labels, problem, class_weights)
        value = self.task_weight * summed / max(weight, 1e-9)
        if self.logit_weight:
            divergence = logit_loss(logits, last_logits.detach().float(), labels, problem, 1.0)
            value = value + self.logit_weight * divergence / max(count, 1e-9)
        return value


def plan_elastic(recipe: FinetuneRecipe, model: PreTrainedModel, notes: list[str]) -> ElasticTuning | None:
    """Return how depths before the last are tuned, or None, and mark the model's config accordingly.

    Args:
        recipe: the resolved recipe.
        model: the model to tune; its config is changed.
        notes: receives a line when depths are tuned.

    Returns:
        The plan; None for the last depth alone.

    Raises:
        UserError: if the model has no such depths.
    """
    tuning = recipe.tuning
    if not tuning.elastic:
        mark_depths(model.config, None)
        return None
    if not is_minialbert(model):
        raise UserError(
            f"tuning.elastic needs a MiniALBERT; {display_name(recipe.model.name)} is a {model.config.model_type}: "
            "set it to false, or distil a student from it first"
        )
    iterations = model.config.num_hidden_layers
    chosen = tuning.elastic_depths
    if chosen is None and model.config.elastic_depths is not None:
        chosen = [depth for depth in model.config.elastic_depths if depth < iterations] or None
    try:
        depths = resolve_depths(chosen, iterations)
    except ValueError as error:
        raise UserError(f"tuning: {error}") from error
    mark_depths(model.config, depths)
    notes.append(
        f"elastic: besides depth {iterations}, every step tunes one of {', '.join(map(str, depths))}"
    )
    return ElasticTuning(depths, tuning.elastic_task_weight, tuning.elastic_logit_weight)


def measure_depths(
    elastic: ElasticTuning | None, splits: Iterable[str], measure: Callable[[str, int], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the figures of every split at every depth that was tuned besides the last.

    Args:
        elastic: which depths; None for none.
        splits: names of splits.
        measure: returns the figures of a split at a depth.

    Returns:
        Figures by depth, as text for JSON, and by split.
    """
    splits = tuple(splits)
    depths = elastic.depths if elastic is not None else ()
    return {str(depth): {split: measure(split, depth) for split in splits} for depth in depths}


__all__ = ["ElasticTuning", "measure_depths", "plan_elastic"]
