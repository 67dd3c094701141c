"""Attention and the divergence of its rows from a reference, without keeping rows for the backward pass.

A row of attention is needed twice, to attend and to be compared (Eq. 7), and a third time in the backward
pass. Kept in the open that is several (B, H, T, T) tensors per layer; here they are made block by block, and
made again from queries and keys when gradients are wanted.

Symbols: B batch, H heads, T tokens; s scores of the student, t of the reference, p their softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minialbert.method.losses import KLDirection

# Bytes of one block of scores: small enough for a core's cache, and many rows at a time on a GPU.
_BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}


@dataclass(frozen=True)
class AttentionInputs:
    """What a layer's attention rows are made of: query, key and, where it is wanted, value, (B, H, T, d).

    The mask is bool (true: may be seen) or additive, broadcastable to (B, H, T, T); None when nothing is
    hidden. Every query must see a key: gradients of one that sees none would be wrong. The scores' factor is
    1 / sqrt(d) when absent; a bias, broadcastable to (B, H, T, T), is added to them.
    """

    query: Tensor
    key: Tensor
    value: Tensor | None = None
    mask: Tensor | None = None
    scaling: float | None = None
    bias: Tensor | None = None

    @property
    def factor(self) -> float:
        """Factor of the scores."""
        return float(self.scaling or self.query.shape[-1] ** -0.5)

    def detach(self) -> AttentionInputs:
        """Return the same without gradients."""
        return replace(self, query=self.query.detach(), key=self.key.detach())

    def scores(self, rows: slice, queries: slice) -> Tensor:
        """Return masked scores of some sequences and queries, (rows, H, queries, T), fp32 or fp64, to be changed."""
        # Queries are scaled, not scores, of which there are T / d times as many.
        scores = torch.matmul(self.query[rows, :, queries] * self.factor, self.key[rows].transpose(2, 3))
        scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        lowest = torch.finfo(scores.dtype).min
        if self.bias is not None:
            scores += _part(self.bias, rows, queries)
        if self.mask is not None:
            hidden = _part(self.mask, rows, queries)
            if hidden.dtype == torch.bool:
                scores.masked_fill_(~hidden, lowest)
            else:
                scores.add_(hidden).clamp_(min=lowest)
        return scores


def attend_and_compare(
    inputs: AttentionInputs,
    reference: AttentionInputs,
    *,
    direction: KLDirection = "teacher-student",
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return attended values, and the KL divergence of each attention row from the reference's (Eq. 7).

    attended_n = p_s,n V, and D_n = KL(p_t,n || p_s,n) ("teacher-student", p_t the reference's) or the other
    way round. Their gradient with respect to the scores s is p_s (dp - <dp, p_s>) + g (p_s - p_t), or with g
    p_s (log p_s - log p_t - D) in place of the second term; rows are computed again for it. The rows that are
    compared are those before dropout.

    Shapes: (B, H, T, d) in the values' dtype, and (B, H, T) in nats, fp32 (fp64 stays fp64). Gradients flow
    to query, key and value of `inputs` alone, once (they have no gradients of their own). Raises ValueError
    if the shapes do not fit.
    """
    if inputs.value is None:
        raise ValueError("attend_and_compare needs values; compare_rows does without")
    _check_shapes(inputs, reference)
    # One draw from torch's own generator, from which every block's dropout is derived, twice alike.
    seed = int(torch.randint(2**62, ())) if dropout else 0
    attended, divergence = _Compare.apply(
        inputs.query, inputs.key, inputs.value, inputs, reference.detach(), direction, dropout, seed
    )
    return attended, divergence


def compare_rows(
    inputs: AttentionInputs, reference: AttentionInputs, *, direction: KLDirection = "teacher-student"
) -> Tensor:
    """Return the divergences of `attend_and_compare` alone, (B, H, T)."""
    _check_shapes(inputs, reference)
    _, divergence = _Compare.apply(
        inputs.query, inputs.key, None, inputs, reference.detach(), direction, 0.0, 0
    )
    return divergence


class _Compare(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor | None,
        inputs: AttentionInputs,
        reference: AttentionInputs,
        direction: KLDirection,
        dropout: float,
        seed: int,
    ) -> tuple[Tensor | None, Tensor]:
        ours = replace(inputs, query=query, key=key, value=value)
        ctx.kernels = _kernels(ours, reference, dropout)
        forward = ctx.kernels.forward if ctx.kernels is not None else _forward
        attended, divergence, normaliser, other = forward(ours, reference, direction, dropout, seed)
        ctx.save_for_backward(
            query, key, value, attended, divergence, normaliser, other, reference.query, reference.key
        )
        ctx.inputs = replace(inputs, query=query.detach()[:0], key=key.detach()[:0], value=None)
        ctx.reference = replace(reference, query=reference.query[:0], key=reference.key[:0], value=None)
        ctx.direction, ctx.dropout, ctx.seed = direction, dropout, seed
        return attended, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_attended: Tensor | None, d_divergence: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, attended, divergence, normaliser, other, reference_query, reference_key = (
            ctx.saved_tensors
        )
        ours = replace(ctx.inputs, query=query, key=key, value=value)
        reference = replace(ctx.reference, query=reference_query, key=reference_key)
        backward = ctx.kernels.backward if ctx.kernels is not None else _backward
        gradients = backward(
            ours, reference, attended, divergence, normaliser, other, d_attended, d_divergence,
            ctx.direction, ctx.dropout, ctx.seed,
        )  # fmt: skip
        return (*gradients, None, None, None, None, None)


def _kernels(inputs: AttentionInputs, reference: AttentionInputs, dropout: float) -> ModuleType | None:
    """Return the GPU's kernels where they can do it."""
    if inputs.query.device.type != "cuda":
        return None
    from minialbert.method.fast import rows_triton

    return rows_triton if rows_triton.supports(inputs, reference, dropout) else None


def _forward(
    ours: AttentionInputs, reference: AttentionInputs, direction: KLDirection, dropout: float, seed: int
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Return attended values, divergences, and the normalisers of both softmaxes."""
    query, value = ours.query, ours.value
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    attended = None if value is None else _like_projection(value)
    divergence = query.new_empty(query.shape[:-1], dtype=dtype)
    # What the softmax of each row divides by, as logarithm: with it a block is made again in one pass.
    normaliser, other = torch.empty_like(divergence), torch.empty_like(divergence)
    with torch.autocast(query.device.type, enabled=False):
        for number, rows, queries in _blocks(query):
            at = (rows, slice(None), queries)
            scores, others = ours.scores(rows, queries), reference.scores(rows, queries)
            student, normaliser[at] = softmax(scores)
            target, other[at] = softmax(others)
            if attended is not None and value is not None:
                keep = _keep(student, dropout, seed + number)
                weights = student if keep is None else keep.mul_(student)
                attended[at] = torch.matmul(weights.to(value.dtype), value[rows])
            if direction == "teacher-student":
                divergence[at] = target.mul_(others.sub_(scores)).sum(-1)
                divergence[at] += normaliser[at] - other[at]
            else:
                divergence[at] = student.mul_(scores.sub_(others)).sum(-1)
                divergence[at] += other[at] - normaliser[at]
    return attended, divergence, normaliser, other


def _backward(
    ours: AttentionInputs,
    reference: AttentionInputs,
    attended: Tensor | None,
    divergence: Tensor,
    normaliser: Tensor,
    other: Tensor,
    d_attended: Tensor | None,
    d_divergence: Tensor,
    direction: KLDirection,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of queries, keys and values."""
    query, key, value = ours.query, ours.key, ours.value
    d_query, d_key = _like_projection(query), _like_projection(key).zero_()
    d_value = None if value is None else _like_projection(value).zero_()
    for number, rows, queries in _blocks(query):
        at = (rows, slice(None), queries)
        log_student = ours.scores(rows, queries).sub_(normaliser[at].unsqueeze(-1))
        log_reference = reference.scores(rows, queries).sub_(other[at].unsqueeze(-1))
        weight = d_divergence[at].unsqueeze(-1)
        if direction == "teacher-student":
            student = log_student.exp_()
            d_scores = torch.sub(student, log_reference.exp_(), out=log_reference)
        else:
            student = log_student.exp()
            d_scores = log_student.sub_(log_reference).sub_(divergence[at].unsqueeze(-1)).mul_(student)
        d_scores *= weight
        if value is not None and d_value is not None and attended is not None:
            assert d_attended is not None
            keep = _keep(student, dropout, seed + number)
            d_weights = torch.matmul(d_attended[at], value[rows].transpose(2, 3)).to(student.dtype)
            weights = student if keep is None else student * keep
            d_value[rows] += torch.matmul(weights.transpose(2, 3).to(value.dtype), d_attended[at])
            if keep is not None:
                d_weights *= keep
            d_weights -= (d_attended[at] * attended[at]).sum(-1, keepdim=True, dtype=student.dtype)
            d_scores.addcmul_(student, d_weights)
        d_scores = d_scores.to(query.dtype)
        d_query[at] = torch.matmul(d_scores, key[rows]) * ours.factor
        d_key[rows] += torch.matmul(d_scores.transpose(2, 3), query[at] * ours.factor)
    return d_query, d_key, d_value


def _blocks(query: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """Yield number, sequences and queries of each block of rows: several short sequences, or part of a long one."""
    batch, heads, length, _ = query.shape
    limit = _BLOCK_BYTES.get(query.device.type, _BLOCK_BYTES["cpu"])
    sequence = 4 * heads * length**2
    together = max(1, min(batch, limit // sequence))
    parts = min(length, -(-sequence // limit))
    step = -(-length // parts)
    number = 0
    for row in range(0, batch, together):
        for start in range(0, length, step):
            yield number, slice(row, row + together), slice(start, start + step)
            number += 1


def softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities, and the logarithm of what each row was divided by."""
    probabilities = nn.functional.softmax(scores, dim=-1)
    return probabilities, scores.amax(-1) - probabilities.amax(-1).log()


def _keep(rows: Tensor, dropout: float, seed: int) -> Tensor | None:
    """Return what dropout multiplies rows with: 0, or 1 / (1 - dropout); None for no dropout."""
    if not dropout:
        return None
    generator = torch.Generator(rows.device).manual_seed(seed % 2**63)
    kept = torch.empty_like(rows).bernoulli_(1 - dropout, generator=generator)
    return kept.div_(1 - dropout) if dropout < 1 else kept


def _part(values: Tensor, rows: slice, queries: slice) -> Tensor:
    """Return a block of what broadcasts to (B, H, T, T)."""
    values = values[(None,) * (4 - values.dim())]
    values = values[rows] if values.shape[0] > 1 else values
    return values[:, :, queries] if values.shape[2] > 1 else values


def _like_projection(values: Tensor) -> Tensor:
    """Return an uninitialised (B, H, T, d) that lies in memory as (B, T, H, d), as projections and heads do."""
    batch, heads, length, size = values.shape
    return values.new_empty(batch, length, heads, size).transpose(1, 2)


def _check_shapes(inputs: AttentionInputs, reference: AttentionInputs) -> None:
    if inputs.query.shape[:-1] != reference.query.shape[:-1]:
        raise ValueError(
            f"attention of the student has (batch, heads, tokens) {tuple(inputs.query.shape[:-1])}, that of the "
            f"teacher {tuple(reference.query.shape[:-1])}"
        )
