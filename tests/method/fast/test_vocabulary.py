"""Cross-entropy and divergence in one pass, against the plain formulas of `losses`."""

from __future__ import annotations

import pytest
import torch

from minialbert.method.fast import vocabulary as module
from minialbert.method.fast.vocabulary import vocabulary_losses
from minialbert.method.losses import masked_lm_loss, output_loss

POSITIONS, VOCABULARY = 9, 11


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Four positions per block, so that the last block is not full."""
    monkeypatch.setitem(module._BLOCK_BYTES, "cpu", 4 * 4 * VOCABULARY)


def logits_and_labels(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, POSITIONS, VOCABULARY, generator=generator, dtype=dtype)
    labels = torch.randint(VOCABULARY, (POSITIONS,), generator=generator)
    labels[[3, 8]] = -100
    return student, teacher, labels


@pytest.mark.parametrize("direction", ["teacher-student", "student-teacher"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weights", [(1.0, 5.0), (1.0, 0.0), (0.0, 5.0)])
def test_values_and_gradients_are_those_of_the_plain_formulas(direction, temperature, weights):
    student, teacher, labels = logits_and_labels()
    plain, fast = student.clone().requires_grad_(), student.clone().requires_grad_()
    mlm = masked_lm_loss(plain, labels, count=7)
    output = output_loss(plain, teacher, direction=direction, temperature=temperature, count=9)
    (weights[0] * mlm + weights[1] * output).backward()

    cross_entropy, divergence = vocabulary_losses(
        fast, labels, teacher, direction=direction, temperature=temperature
    )
    assert cross_entropy.shape == divergence.shape == (POSITIONS,)
    assert cross_entropy[3] == cross_entropy[8] == 0 and (cross_entropy > 0).sum() == 7
    terms = cross_entropy.sum() / 7, temperature**2 * divergence.sum() / 9
    torch.testing.assert_close(terms, (mlm.detach(), output.detach()), rtol=1e-12, atol=1e-12)
    sum(weight * term for weight, term in zip(weights, terms, strict=True) if weight).backward()
    torch.testing.assert_close(fast.grad, plain.grad, rtol=1e-12, atol=1e-14)


def test_without_a_teacher_there_is_no_divergence():
    student, _, labels = logits_and_labels()
    cross_entropy, divergence = vocabulary_losses(student.requires_grad_(), labels)
    (cross_entropy.sum() + divergence.sum()).backward()
    assert (divergence == 0).all()
    assert (student.grad[[3, 8]] == 0).all() and (student.grad[0] != 0).all()


def test_of_no_positions_the_losses_are_empty():
    student = torch.zeros(0, VOCABULARY, requires_grad=True)
    losses = vocabulary_losses(student, torch.zeros(0, dtype=torch.int64), torch.zeros(0, VOCABULARY))
    assert [loss.shape for loss in losses] == [(0,), (0,)]
    sum(loss.sum() for loss in losses).backward()
    assert student.grad.shape == (0, VOCABULARY)


def test_half_precision_logits_are_compared_in_fp32():
    student, teacher, labels = logits_and_labels(torch.float32)
    exact = vocabulary_losses(student, labels, teacher)
    half = student.bfloat16().requires_grad_()
    losses = vocabulary_losses(half, labels, teacher.bfloat16())
    assert all(loss.dtype == torch.float32 for loss in losses)
    torch.testing.assert_close(losses, exact, rtol=3e-2, atol=3e-2)
    losses[0].sum().backward()
    assert half.grad.dtype == torch.bfloat16


def test_scores_far_apart_stay_finite():
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    losses = vocabulary_losses(student, torch.tensor([1]), torch.tensor([[-1e4, 1e4, 0.0]]))
    assert [loss.tolist() for loss in losses] == [[2e4], [2e4]]
    sum(loss.sum() for loss in losses).backward()
    assert student.grad.tolist() == [[2.0, -2.0, 0.0]]


@pytest.mark.parametrize(
    ("labels", "teacher", "message"),
    [((4,), (3, 5), "labels of shape"), ((3,), (3, 6), "those of the teacher")],
)
def test_shapes_that_do_not_fit_are_refused(labels, teacher, message):
    with pytest.raises(ValueError, match=message):
        vocabulary_losses(torch.zeros(3, 5), torch.zeros(labels, dtype=torch.int64), torch.zeros(teacher))
