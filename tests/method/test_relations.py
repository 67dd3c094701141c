"""MiniLMv2's relations against the formula written out."""

from __future__ import annotations

import pytest
import torch

from minialbert.method.fast.rows import AttentionInputs
from minialbert.method.relations import relation_loss

BATCH, LENGTH = 2, 5


def layer(heads, width, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, BATCH, LENGTH, heads, width // heads, generator=generator, dtype=torch.float64)
    seen = torch.ones(BATCH, heads, LENGTH, LENGTH, dtype=torch.bool)
    seen[1, :, :, 3:] = False
    return AttentionInputs(*(value.transpose(1, 2).requires_grad_() for value in values), mask=seen)


def written_out(student, teacher, pairs, heads, valid):
    total = 0
    for left, right in pairs:
        logs = []
        for inputs in (student, teacher):
            split = [
                getattr(inputs, name).transpose(1, 2).reshape(BATCH, LENGTH, -1).chunk(heads, dim=-1)
                for name in (left, right)
            ]
            maps = [
                (a @ b.transpose(1, 2) / a.shape[-1] ** 0.5)
                .masked_fill(~inputs.mask[:, 0], torch.finfo(torch.float64).min)
                .log_softmax(-1)
                for a, b in zip(*split, strict=True)
            ]
            logs.append(torch.stack(maps, dim=1))
        ours, theirs = logs
        rows = (theirs.exp() * (theirs - ours)).sum(-1)  # (B, heads, T)
        total = total + (rows * valid[:, None]).sum() / heads / valid.sum()
    return total


@pytest.mark.parametrize("heads", [None, 1, 2, 6])
def test_the_value_and_gradients_are_those_of_the_formula(heads):
    student, teacher = layer(3, 12, 0), layer(4, 24, 1)  # neither widths nor head counts agree
    valid = torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    pairs = [("query", "key"), ("value", "value")]
    expected = written_out(student, teacher, pairs, heads or 4, valid)
    wanted = torch.autograd.grad(expected, (student.query, student.key, student.value))
    loss = relation_loss(student, teacher, valid, heads=heads)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    loss.backward()
    found = tuple(value.grad for value in (student.query, student.key, student.value))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert teacher.query.grad is None
    half = relation_loss(student, teacher, valid, heads=heads, count=2 * valid.sum())
    torch.testing.assert_close(half, expected / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("relation", ["query-query", "key-key"])
def test_each_relation_is_one_of_two_parts(relation):
    student, teacher = layer(2, 8, 0), layer(2, 8, 1)
    part = relation.split("-")[0]
    valid = torch.ones(BATCH, LENGTH)
    loss = relation_loss(student, teacher, relations=[relation])
    torch.testing.assert_close(loss, written_out(student, teacher, [(part, part)], 2, valid))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "student's width 12 cannot be split into 5"),
        ({"relations": ["query-values"]}, "relation 'query-values' is not known"),
        ({"relations": []}, "no relations"),
    ],
)
def test_what_cannot_be_compared_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        relation_loss(layer(3, 12, 0), layer(4, 24, 1), **options)
