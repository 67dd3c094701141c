"""Cross-entropy and divergence over the vocabulary in one pass over the logits, for both directions of autograd.

The masked-LM and the output term (Eqs. 6 and 10) need the same softmax over 30,000 scores per token. It is
computed once, a few tokens at a time, and again in the backward pass, so that nothing of the size of the
logits is kept but the logits.

Symbols: M predicted positions, V vocabulary; s scores of the student, t of the teacher, p their softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minialbert.data.masking import IGNORED_LABEL
from minialbert.method.fast.rows import softmax
from minialbert.method.losses import KLDirection, check_same_shape

# Bytes of one block of logits: small enough for a core's cache, and many rows at a time on a GPU.
_BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 128 << 20}


def vocabulary_losses(
    student_logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
    *,
    direction: KLDirection = "teacher-student",
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return, for every position, the cross-entropy with its label and the KL divergence from the teacher.

    CE_n = lse(s_n) - s_n[Y_n] and D_n = KL(p_t,n || p_s,n) ("teacher-student"), or the other way round (Eq.
    10 as printed), both logits (M, V) divided by the temperature. Their gradients are p_s - onehot(Y) and
    (p_s - p_t) / temperature, or p_s (log p_s - log p_t - D) / temperature. The divergence is not multiplied
    by the square of the temperature here.

    Both are (M,) in nats, fp32 (fp64 stays fp64); 0 where the label is -100, or without a teacher. Gradients
    flow to the student's logits alone, once. Raises ValueError if the shapes do not fit.
    """
    if labels.shape != student_logits.shape[:1]:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of {tuple(student_logits.shape)}"
        )
    if teacher_logits is not None:
        check_same_shape("logits", student_logits, teacher_logits)
        teacher_logits = teacher_logits.detach()
    losses: tuple[Tensor, Tensor] = _VocabularyLosses.apply(
        student_logits, labels, teacher_logits, direction, temperature
    )
    return losses


class _VocabularyLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_logits: Tensor,
        labels: Tensor,
        teacher_logits: Tensor | None,
        direction: KLDirection,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if student_logits.dtype == torch.float64 else torch.float32
        cross_entropy, divergence, label_lse, student_lse, teacher_lse = student_logits.new_zeros(
            5, len(labels), dtype=dtype
        ).unbind(0)
        for rows in _blocks(student_logits):
            scores = student_logits[rows].to(dtype)
            probabilities, label_lse[rows] = softmax(scores)
            wanted = labels[rows].clamp(min=0).unsqueeze(-1)
            loss = label_lse[rows] - scores.gather(-1, wanted).squeeze(-1)
            cross_entropy[rows] = torch.where(labels[rows] == IGNORED_LABEL, 0, loss)
            if teacher_logits is None:
                continue
            others = teacher_logits[rows].to(dtype)
            student_lse[rows] = label_lse[rows]
            if temperature != 1:
                scores, others = scores / temperature, others / temperature
                probabilities, student_lse[rows] = softmax(scores)
            targets, teacher_lse[rows] = softmax(others)
            if direction == "teacher-student":
                divergence[rows] = (targets.mul_(others - scores)).sum(-1)
                divergence[rows] += student_lse[rows] - teacher_lse[rows]
            else:
                divergence[rows] = (probabilities.mul_(scores - others)).sum(-1)
                divergence[rows] += teacher_lse[rows] - student_lse[rows]
        ctx.save_for_backward(
            student_logits, labels, teacher_logits, divergence, label_lse, student_lse, teacher_lse
        )
        ctx.direction, ctx.temperature = direction, temperature
        ctx.set_materialize_grads(False)
        return cross_entropy, divergence

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_cross_entropy: Tensor | None, d_divergence: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        student_logits, labels, teacher_logits, divergence, label_lse, student_lse, teacher_lse = (
            ctx.saved_tensors
        )
        d_logits = torch.empty_like(student_logits)
        for rows in _blocks(student_logits):
            scores = student_logits[rows].to(label_lse.dtype)
            probabilities = None
            if d_cross_entropy is None:
                d_scores = torch.zeros_like(scores)
            else:
                probabilities = (scores - label_lse[rows].unsqueeze(-1)).exp_()
                weight = torch.where(labels[rows] == IGNORED_LABEL, 0, d_cross_entropy[rows]).unsqueeze(-1)
                d_scores = probabilities * weight
                d_scores.scatter_add_(-1, labels[rows].clamp(min=0).unsqueeze(-1), -weight)
            if d_divergence is not None and teacher_logits is not None:
                weight = (d_divergence[rows] / ctx.temperature).unsqueeze(-1)
                log_student = (scores / ctx.temperature).sub_(student_lse[rows].unsqueeze(-1))
                log_teacher = teacher_logits[rows].to(scores.dtype) / ctx.temperature
                log_teacher -= teacher_lse[rows].unsqueeze(-1)
                if probabilities is None or ctx.temperature != 1:
                    probabilities = log_student.exp()
                if ctx.direction == "teacher-student":
                    d_scores.addcmul_(probabilities.sub_(log_teacher.exp_()), weight)
                else:
                    log_student.sub_(log_teacher).sub_(divergence[rows].unsqueeze(-1))
                    d_scores.addcmul_(probabilities.mul_(log_student), weight)
            d_logits[rows] = d_scores
        return d_logits, None, None, None, None


def _blocks(logits: Tensor) -> Iterator[slice]:
    limit = _BLOCK_BYTES.get(logits.device.type, _BLOCK_BYTES["cpu"])
    step = max(1, limit // (4 * logits.shape[1]))
    for start in range(0, len(logits), step):
        yield slice(start, min(start + step, len(logits)))
