"""Self-attention relations: an alignment that wants neither equal widths nor equal head counts.

Source: Wang et al., *MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
Transformers*, Findings of ACL 2021, Eqs. 5 to 8. It is not in the paper of MiniALBERT.

Symbols: B batch, T tokens, D width, A relation heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from torch import Tensor

from minialbert.method.fast.rows import AttentionInputs, compare_rows
from minialbert.method.losses import KLDirection, mean_divergence

Relation = Literal["query-key", "query-query", "key-key", "value-value"]


def relation_loss(
    student: AttentionInputs,
    teacher: AttentionInputs,
    attention_mask: Tensor | None = None,
    *,
    relations: Sequence[Relation] = ("query-key", "value-value"),
    heads: int | None = None,
    direction: KLDirection = "teacher-student",
    count: Tensor | float | None = None,
) -> Tensor:
    """Return the KL divergence between relations of two layers, summed over the kinds of relation, in nats.

    L = sum_XY 1 / (A N) sum_a sum_n D_KL(R_t || R_s), with R = softmax(X_a Y_a^T / sqrt(D / A)) by row

    X and Y are queries, keys or values of all heads, concatenated and split anew into A relation heads (the
    teacher's own number when absent). What is kept for the backward pass grows with T, not with its square.
    The student's queries, keys and values (B, H, T, d) have gradients. The rows of padded queries (0 in the
    mask, (B, T)) are skipped; `count` are the valid ones to divide by. "teacher-student" is KL(teacher ||
    student), as in MiniLMv2. Raises ValueError if a width cannot be split into so many heads, or a relation
    is not known.
    """
    heads, known = heads or teacher.query.shape[1], get_args(Relation)
    if not relations:
        raise ValueError(f"no relations: give one or more of {', '.join(known)}")
    losses = []
    for relation in relations:
        if relation not in known:
            raise ValueError(f"relation {relation!r} is not known: give one of {', '.join(known)}")
        ours = _related(student, relation, heads, "student")
        theirs = _related(teacher, relation, heads, "teacher")
        divergence = compare_rows(ours, theirs, direction=direction)
        losses.append(mean_divergence(divergence, attention_mask, count=count))
    return sum(losses[1:], losses[0])


def _related(inputs: AttentionInputs, relation: Relation, heads: int, whose: str) -> AttentionInputs:
    assert inputs.value is not None
    parts = {"query": inputs.query, "key": inputs.key, "value": inputs.value}
    left, right = (_split(parts[name], heads, whose) for name in relation.split("-"))
    # Masks that tell heads apart, and biases, belong to the model's own heads.
    mask = inputs.mask
    if mask is not None and mask.dim() == 4:
        mask = mask[:, :1]
    return replace(inputs, query=left, key=right, value=None, mask=mask, scaling=None, bias=None)


def _split(values: Tensor, heads: int, whose: str) -> Tensor:
    batch, _, length, _ = values.shape
    joined = values.transpose(1, 2).reshape(batch, length, -1)
    if joined.shape[-1] % heads:
        raise ValueError(
            f"the {whose}'s width {joined.shape[-1]} cannot be split into {heads} relation heads: give a divisor"
        )
    return joined.view(batch, length, heads, -1).transpose(1, 2)
