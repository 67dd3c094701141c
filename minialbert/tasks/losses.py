"""What is learnt beside a task's labels: a fine-tuned teacher's logits and states, and depths before the last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from minialbert.data.task_types import TaskType
from minialbert.errors import UserError
from minialbert.method.elastic import ElasticObjective
from minialbert.method.encoders import forward_inputs
from minialbert.method.losses import hidden_loss, layer_map
from minialbert.tasks.models import Scale


def logits_of(outputs: Any) -> Tensor:
    """Return a head's logits; those of a head for answers in a text, of first and last token, as (B, T, 2)."""
    if "logits" in outputs:
        return outputs.logits
    return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)


@dataclass
class TaskTeacher:
    """A fine-tuned teacher whose logits, and hidden states of matched layers, a student learns while tuned.

    `order` has for each of the task's labels the teacher's id of the same name; `hidden_weight` is that of
    Eq. 8 between matched layers, and `temperature` softens both distributions. `scale` is that of the student's scores.
    Without a model the teacher has been asked before, and batches hold its logits.
    """

    model: PreTrainedModel | None
    order: Tensor
    logit_weight: float
    hidden_weight: float
    temperature: float
    scale: Scale = Scale()

    def __post_init__(self) -> None:
        if self.model is not None:
            self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def view(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the teacher's logits in the task's label order, and its hidden states."""
        if self.model is None:
            return self.scale.to_standard(batch["teacher_logits"]), ()
        outputs = self.model(
            **forward_inputs(self.model, batch), output_hidden_states=bool(self.hidden_weight)
        )
        logits = logits_of(outputs).float()
        logits = self.scale.to_standard(logits[..., self.order.to(logits.device)])
        return logits, outputs.hidden_states or ()


def elastic_loss(
    elastic: ElasticObjective,
    logits: Tensor,
    last_logits: Tensor,
    labels: Tensor,
    kind: TaskType,
    *,
    weight: float,
    count: float,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return what a depth before the last is tuned for: the gold labels, and the logits of the last depth.

    L_elastic = label_weight L_task(k) + last_weight L_logit(last || k), at temperature 1. The sum over gold
    labels is divided by `weight`, that over logits by `count`. The last depth is the teacher here, and gets
    no gradient.
    """
    summed, _ = kind.loss(logits, labels, class_weights)
    value = elastic.label_weight * summed / max(weight, 1e-9)
    if elastic.last_weight:
        divergence = kind.logit_loss(logits, last_logits.detach().float(), labels, 1.0)
        value = value + elastic.last_weight * divergence / max(count, 1e-9)
    return value


def hidden_state_loss(
    student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], attention_mask: Tensor
) -> Tensor:
    """Return Eq. 8 summed over iterations: 1 - cosine(student, teacher), a mean over the batch's tokens.

    Both are the embedding output and that of every iteration or layer, (B, T, D) of one width.
    """
    mask = attention_mask.bool()
    layers = layer_map(len(student) - 1, len(teacher) - 1)
    losses = [
        hidden_loss(states[mask], teacher[layer][mask])
        for states, layer in zip(student[1:], layers, strict=True)
        if layer
    ]
    return torch.stack(losses).sum()


def label_order(teacher_labels: tuple[str, ...], task_labels: tuple[str, ...], name: str) -> Tensor:
    """Return for each of the task's labels the teacher's id of the same name, int64 (L,).

    A regression has no labels. Raises UserError if the names differ.
    """
    if not task_labels:
        if len(teacher_labels) != 1:
            raise UserError(f"teacher {name} has {len(teacher_labels)} classes, but the task is a regression")
        return torch.zeros(1, dtype=torch.long)
    if set(teacher_labels) != set(task_labels) or len(teacher_labels) != len(task_labels):
        raise UserError(
            f"teacher {name} was tuned for other labels: it has {', '.join(teacher_labels[:6])}, the task has "
            f"{', '.join(task_labels[:6])}; if only its names differ, give them by id with teacher.labels"
        )
    return torch.tensor([teacher_labels.index(label) for label in task_labels])
