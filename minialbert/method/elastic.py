"""Training one student for every depth: which iteration a step trains too, and what that adds to the loss."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from minialbert.data.masking import IGNORED_LABEL
from minialbert.method.fast.vocabulary import vocabulary_losses
from minialbert.method.losses import at_least_one
from minialbert.recipes.schema import resolve_depths


def mark_depths(config: PreTrainedConfig, depths: Sequence[int] | None) -> None:
    """Write into a model's config which depths before the last it is trained for; None takes an earlier mark away."""
    if depths is not None:
        config.elastic_depths = list(depths)
    elif getattr(config, "elastic_depths", None) is not None:
        config.elastic_depths = None


def plan_elastic(
    model: PreTrainedModel,
    depths: Sequence[int] | None,
    *,
    label_weight: float,
    last_weight: float,
    notes: list[str],
    verb: str = "trains",
) -> ElasticObjective:
    """Return how depths before the last (all, when None) are trained too; the model's config is marked.

    `notes` receives a line that says what a step does. Raises ValueError if the model has no such depths.
    """
    iterations = model.config.num_hidden_layers
    chosen = resolve_depths(depths, iterations)
    mark_depths(model.config, chosen)
    notes.append(
        f"elastic: besides depth {iterations}, every step {verb} one of {', '.join(map(str, chosen))}"
    )
    return ElasticObjective(chosen, label_weight, last_weight)


@dataclass(frozen=True)
class ElasticObjective:
    """What a depth before the last is trained for: the labels, and the prediction of the last depth.

    L_elastic = label_weight CE(k) + last_weight T^2 KL(last || k), at masked tokens, with T the temperature
    of the output loss. The last depth is the teacher here, and gets no gradient. A step trains one of the
    `depths`. For the labels of a task, see `tasks.losses.elastic_loss`.
    """

    depths: tuple[int, ...]
    label_weight: float = 1.0
    last_weight: float = 5.0

    def draw(self, *, seed: int, step: int) -> int:
        """Return the depth that an optimiser step trains, every one as likely as the others.

        It depends on the run's seed and the steps before this one alone. So all processes and micro-batches of a
        step agree, and a resumed run goes on as an uninterrupted one does.
        """
        digest = hashlib.blake2b(f"elastic depth {seed} {step}".encode(), digest_size=8).digest()
        return self.depths[int.from_bytes(digest, "big") % len(self.depths)]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain data, under the names of a distillation's recipe."""
        return {
            "depths": list(self.depths),
            "mlm_weight": self.label_weight,
            "output_weight": self.last_weight,
        }

    def __call__(
        self,
        depth_logits: Mapping[int, Tensor],
        last_logits: Tensor | None,
        labels: Tensor,
        *,
        count: Tensor | float,
        temperature: float = 1.0,
    ) -> Tensor:
        """Return the term, summed over the depths given, with gradients towards `depth_logits` only.

        These are, by depth, what the head reads there at the masked tokens, (M, V); `last_logits`, (N, V),
        may be at more. Labels are int64 (N,), -100 where a token was not masked; the sum over tokens is
        divided by `count`, as in the MLM term. Raises ValueError if logits are missing.
        """
        if last_logits is None or not depth_logits:
            raise ValueError(
                "the elastic term needs the student's logits at the last depth and at one before it: call the "
                "student with positions and depths"
            )
        last = last_logits.detach()
        if any(len(logits) != len(labels) for logits in depth_logits.values()):
            masked = labels != IGNORED_LABEL
            last, labels = last[masked], labels[masked]
        total = last.new_zeros((), dtype=torch.float64 if last.dtype == torch.float64 else torch.float32)
        for logits in depth_logits.values():
            cross_entropy, divergence = vocabulary_losses(
                logits, labels, last if self.last_weight else None, temperature=temperature
            )
            total = total + self.label_weight * cross_entropy.sum()
            if self.last_weight:
                total = total + self.last_weight * temperature**2 * divergence.sum()
        return total / at_least_one(count)
