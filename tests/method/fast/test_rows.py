"""Attention that is compared as it is made, against softmax, KL and autograd in the open."""

from __future__ import annotations

import itertools

import pytest
import torch

from minialbert.method.fast import rows as module
from minialbert.method.fast.rows import AttentionInputs, attend_and_compare, compare_rows
from minialbert.method.losses import attention_loss, mean_divergence

BATCH, HEADS, LENGTH, SIZE = 2, 3, 7, 4
EXACT = {"rtol": 1e-11, "atol": 1e-12}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Three queries per block, so that the last block is not full."""
    monkeypatch.setitem(module._BLOCK_BYTES, "cpu", 3 * 4 * HEADS * LENGTH)


def tensors(count, dtype=torch.float64, size=SIZE):
    generator = torch.Generator().manual_seed(count)
    return list(2 * torch.randn(count, BATCH, HEADS, LENGTH, size, generator=generator, dtype=dtype))


def masks(kind):
    if kind == "none":
        return None
    seen = torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool)
    if kind == "blocks":
        words = torch.tensor([0, 0, 0, 1, 1, -1, -1])
        seen[0] = words[:, None] == words
    else:
        seen[1, :, :, 5:] = False
    if kind == "additive":
        return torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)
    return seen[:, :, :1] if kind == "keys" else seen


def log_rows(inputs):
    scores = inputs.query @ inputs.key.transpose(2, 3) * (inputs.scaling or inputs.query.shape[-1] ** -0.5)
    if inputs.bias is not None:
        scores = scores + inputs.bias
    if inputs.mask is not None:
        hidden = ~inputs.mask if inputs.mask.dtype == torch.bool else inputs.mask == -torch.inf
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    return scores.log_softmax(-1)


def plain(inputs, reference, direction):
    ours, theirs = log_rows(inputs), log_rows(reference)
    first, second = (theirs, ours) if direction == "teacher-student" else (ours, theirs)
    return ours.exp() @ inputs.value, (first.exp() * (first - second)).sum(-1)


@pytest.mark.parametrize("direction", ["teacher-student", "student-teacher"])
@pytest.mark.parametrize("kind", ["none", "keys", "whole", "blocks", "additive"])
@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients_are_those_of_the_open_form(direction, kind, biased):
    *ours, teacher_query, teacher_key, d_attended, d_rows = tensors(7)
    bias = torch.linspace(-1, 1, HEADS * LENGTH**2, dtype=torch.float64).view(1, HEADS, LENGTH, LENGTH)
    reference = AttentionInputs(
        teacher_query, teacher_key, mask=masks(kind), scaling=0.3, bias=bias if biased else None
    )
    results = []
    for function in (plain, attend_and_compare):
        leaves = [value.clone().requires_grad_() for value in ours]
        inputs = AttentionInputs(*leaves, mask=masks(kind), bias=-bias if biased else None)
        attended, divergence = function(inputs, reference, direction=direction)
        ((attended * d_attended).sum() + (divergence * d_rows[..., 0]).sum()).backward()
        results.append([attended.detach(), divergence.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(*results, **EXACT)
    assert results[0][1].mean() > 0.1


@pytest.mark.parametrize("direction", ["teacher-student", "student-teacher"])
def test_rows_alone_can_be_compared_of_heads_of_other_sizes(direction):
    query, key = (value.requires_grad_() for value in tensors(2))
    reference = AttentionInputs(*tensors(3, size=6)[:2])
    inputs = AttentionInputs(query, key, query)
    expected = plain(inputs, reference, direction)[1]
    expected_gradients = torch.autograd.grad(expected.sum(), (query, key))
    divergence = compare_rows(inputs, reference, direction=direction)
    torch.testing.assert_close(divergence, expected, **EXACT)
    torch.testing.assert_close(
        torch.autograd.grad(divergence.sum(), (query, key)), expected_gradients, **EXACT
    )


@pytest.mark.parametrize("direction", ["teacher-student", "student-teacher"])
@pytest.mark.parametrize("reduction", ["rows", "elements"])
def test_the_mean_of_the_divergences_is_the_attention_loss_of_the_rows(direction, reduction):
    valid = torch.tensor([[1] * LENGTH, [1] * 5 + [0] * (LENGTH - 5)])
    losses, gradients = [], []
    for fast in (False, True):
        query, key, *others = tensors(4)
        inputs = AttentionInputs(query.requires_grad_(), key.requires_grad_(), mask=masks("keys"))
        reference = AttentionInputs(*others, mask=masks("keys"))
        if fast:
            divergence = compare_rows(inputs, reference, direction=direction)
            loss = mean_divergence(divergence, valid, reduction=reduction)
        else:
            rows = (log_rows(inputs).exp(), log_rows(reference).exp())
            loss = attention_loss(*rows, valid, direction=direction, reduction=reduction)
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, (query, key)))
    torch.testing.assert_close(*losses, **EXACT)
    torch.testing.assert_close(*gradients, **EXACT)
    assert losses[0] > 0.01


def test_the_reference_receives_no_gradient():
    query, key, value, *others = tensors(5)
    others = [other.requires_grad_() for other in others]
    attended, divergence = attend_and_compare(
        AttentionInputs(query.requires_grad_(), key, value), AttentionInputs(*others)
    )
    (attended.sum() + divergence.sum()).backward()
    assert query.grad is not None and all(other.grad is None for other in others)


def test_equal_attention_diverges_nowhere():
    query, key, value = tensors(3)
    inputs = AttentionInputs(query.requires_grad_(), key, value)
    _, divergence = attend_and_compare(inputs, inputs)
    assert divergence.abs().max() < 1e-14
    divergence.sum().backward()
    assert query.grad.abs().max() < 1e-14


def test_dropout_drops_the_same_weights_backwards():
    """Attended values are linear in the values, so their gradient is the dropped weights themselves."""
    query, key, value, *others = tensors(5)
    value = torch.eye(LENGTH, dtype=torch.float64).expand(BATCH, HEADS, -1, -1).clone().requires_grad_()
    inputs = AttentionInputs(query.requires_grad_(), key, value)
    torch.manual_seed(5)
    weights, divergence = attend_and_compare(inputs, AttentionInputs(*others), dropout=0.4)
    rows = log_rows(inputs).exp()
    kept = weights != 0
    assert 0.4 < kept.double().mean() < 0.8
    torch.testing.assert_close(weights, torch.where(kept, rows / 0.6, 0), **EXACT)
    # What is compared is not dropped.
    torch.testing.assert_close(
        divergence, plain(inputs, AttentionInputs(*others), "teacher-student")[1], **EXACT
    )
    d_weights = torch.randn_like(weights)
    gradients = torch.autograd.grad((weights * d_weights).sum(), (query, value))
    expected = torch.autograd.grad((torch.where(kept, rows / 0.6, 0) * d_weights).sum(), query)[0]
    torch.testing.assert_close(gradients[0], expected, **EXACT)
    torch.testing.assert_close(gradients[1], weights.detach().transpose(2, 3) @ d_weights, **EXACT)
    torch.manual_seed(5)
    again, _ = attend_and_compare(inputs, AttentionInputs(*others), dropout=0.4)
    other, _ = attend_and_compare(inputs, AttentionInputs(*others), dropout=0.4)
    assert torch.equal(weights, again) and not torch.equal(weights, other)


def test_half_precision_is_compared_in_fp32():
    exact = [value.requires_grad_() for value in tensors(5, torch.float32)]
    half = [value.detach().bfloat16().requires_grad_() for value in exact]
    results = []
    for query, key, value, *others in (exact, half):
        attended, divergence = attend_and_compare(
            AttentionInputs(query, key, value), AttentionInputs(*others)
        )
        (attended.sum() + divergence.sum()).backward()
        results.append((attended, divergence, query.grad))
    assert [value.dtype for value in results[1]] == [torch.bfloat16, torch.float32, torch.bfloat16]
    for ours, wanted in zip(results[1], results[0], strict=True):
        assert (ours.float() - wanted).norm() < 0.02 * wanted.norm()


def test_nothing_of_the_size_of_the_rows_is_kept():
    """What the backward pass keeps grows with the length, not with its square."""
    sizes = []
    for length in (32, 128):
        query, key, value, *others = torch.randn(5, 1, HEADS, length, SIZE)
        kept = 0

        def count(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            attend_and_compare(AttentionInputs(query.requires_grad_(), key, value), AttentionInputs(*others))
        sizes.append(kept)
    assert sizes[1] == 4 * sizes[0]


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_another_batch_head_count_or_length_is_refused(changed):
    query, key, value = tensors(3)
    shape = list(query.shape)
    shape[changed] += 1
    reference = AttentionInputs(torch.zeros(shape), torch.zeros(shape))
    with pytest.raises(ValueError, match="that of the teacher"):
        attend_and_compare(AttentionInputs(query, key, value), reference)


def test_values_are_needed_to_attend():
    query, key = tensors(2)
    with pytest.raises(ValueError, match="needs values"):
        attend_and_compare(AttentionInputs(query, key), AttentionInputs(query, key))


@pytest.mark.parametrize(("limit", "blocks"), [(1, BATCH * LENGTH), (3 * HEADS * LENGTH, 6), (10**6, 1)])
def test_blocks_cover_every_query_once(monkeypatch, limit, blocks):
    monkeypatch.setitem(module._BLOCK_BYTES, "cpu", 4 * limit)
    found = list(module._blocks(torch.zeros(BATCH, HEADS, LENGTH, SIZE)))
    assert [number for number, _, _ in found] == list(range(blocks))
    covered = [
        (row, place)
        for _, rows, queries in found
        for row in range(BATCH)[rows]
        for place in range(LENGTH)[queries]
    ]
    assert covered == list(itertools.product(range(BATCH), range(LENGTH)))


def test_sequences_that_fit_are_taken_together(monkeypatch):
    monkeypatch.setitem(module._BLOCK_BYTES, "cpu", 2 * 4 * HEADS * LENGTH**2)
    query, key, value, *others = tensors(5)
    inputs = [torch.cat([part, part.flip(0)[:1]]) for part in (query, key, value)]  # three sequences
    references = [torch.cat([part, part.flip(0)[:1]]) for part in others]
    assert len(list(module._blocks(inputs[0]))) == 2
    found = attend_and_compare(AttentionInputs(*inputs), AttentionInputs(*references))
    expected = plain(AttentionInputs(*inputs), AttentionInputs(*references), "teacher-student")
    torch.testing.assert_close(found, expected, **EXACT)
