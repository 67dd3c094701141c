"""The loss of a task, and of a fine-tuned teacher beside it, as sums over what is labelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minialbert.data.examples import Problem
from minialbert.data.task_inputs import IGNORED
from minialbert.errors import UserError
from minialbert.method.elastic import ElasticObjective
from minialbert.method.encoders import forward_inputs
from minialbert.method.losses import hidden_loss, layer_map, softened_divergence


def task_loss(
    logits: Tensor, labels: Tensor, problem: Problem, class_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the summed loss on gold labels in nats (regression: squared error), and the weight it sums over.

    Their quotient, taken over a whole optimiser step, is the mean that torch's losses take over a batch: of
    cross-entropy (weighted by class, (L,), where weights are given), of binary cross-entropy over all
    classes, or of squared errors. Both are scalars in fp32. Logits are (B, L), or (B, T, L) for token labels;
    labels (B,), (B, L) or (B, T), -100 ignored.
    """
    logits = logits.float()
    if problem == "regression":
        return nn.functional.mse_loss(logits.squeeze(-1), labels, reduction="sum"), _count(labels)
    if problem == "multi-label":
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        return loss, _count(labels)
    flat, targets = logits.flatten(0, -2), labels.flatten()
    loss = nn.functional.cross_entropy(
        flat, targets, weight=class_weights, reduction="sum", ignore_index=IGNORED
    )
    return loss, label_weight(labels, problem, class_weights)


def label_weight(labels: Tensor, problem: Problem, class_weights: Tensor | None = None) -> Tensor:
    """Return what a batch's loss is divided by: its labels, each with the weight of its class."""
    if problem in ("regression", "multi-label"):
        return _count(labels)
    targets = labels.flatten()
    targets = targets[targets != IGNORED]
    return _count(targets) if class_weights is None else class_weights.to(targets.device)[targets].sum()


def _count(tensor: Tensor) -> Tensor:
    return torch.tensor(float(tensor.numel()), device=tensor.device)


@dataclass
class TaskTeacher:
    """A fine-tuned teacher whose logits, and hidden states of matched layers, a student learns while tuned.

    `order` has for each of the task's labels the teacher's id of the same name; `hidden_weight` is that of
    Eq. 8 between matched layers, and `temperature` softens both distributions.
    """

    model: PreTrainedModel
    order: Tensor
    logit_weight: float
    hidden_weight: float
    temperature: float

    def __post_init__(self) -> None:
        """Freeze the teacher."""
        self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def view(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the teacher's logits in the task's label order, and its hidden states."""
        outputs = self.model(
            **forward_inputs(self.model, batch), output_hidden_states=bool(self.hidden_weight)
        )
        return outputs.logits.float()[..., self.order.to(outputs.logits.device)], outputs.hidden_states or ()


def logit_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, problem: Problem, temperature: float
) -> Tensor:
    """Return the summed loss between a student's and a teacher's logits, (B, L) or (B, T, L), in fp32.

    One class of several, and tokens: T^2 KL(teacher || student) of the softened distributions (Hinton et al.,
    2015, as in Eq. 10), at labelled positions. Several classes at once: the same of each Bernoulli variable.
    Regression: the squared difference.
    """
    student = student.float()
    if problem == "regression":
        return nn.functional.mse_loss(student, teacher, reduction="sum")
    if problem == "multi-label":
        targets = torch.sigmoid(teacher / temperature)
        cross = nn.functional.binary_cross_entropy_with_logits(
            student / temperature, targets, reduction="sum"
        )
        entropy = nn.functional.binary_cross_entropy_with_logits(
            teacher / temperature, targets, reduction="sum"
        )
        return temperature**2 * (cross - entropy)
    kept = labels.flatten() != IGNORED
    ours, theirs = (logits.flatten(0, -2)[kept] for logits in (student, teacher))
    return temperature**2 * softened_divergence(ours, theirs, temperature).sum()


def elastic_loss(
    elastic: ElasticObjective,
    logits: Tensor,
    last_logits: Tensor,
    labels: Tensor,
    problem: Problem,
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
    summed, _ = task_loss(logits, labels, problem, class_weights)
    value = elastic.label_weight * summed / max(weight, 1e-9)
    if elastic.last_weight:
        divergence = logit_loss(logits, last_logits.detach().float(), labels, problem, 1.0)
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
