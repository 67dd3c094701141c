"""Losses of a task and of a teacher beside it, against torch's own and cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, kl_divergence
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from minialbert.data.masking import IGNORED_LABEL
from minialbert.data.task_types import task_type
from minialbert.errors import UserError
from minialbert.tasks.losses import TaskTeacher, hidden_state_loss, label_order, logits_of

WEIGHTS = torch.tensor([0.5, 2.0, 1.25])


def task_loss(logits, labels, problem, weights=None):
    return task_type(problem).loss(logits, labels, weights)


def label_weight(labels, problem, weights=None):
    return task_type(problem).weight(labels, weights)


def logit_loss(student, teacher, labels, problem, temperature):
    return task_type(problem).logit_loss(student, teacher, labels, temperature)


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


def some_labels(problem, rows, draw):
    """Logits and labels of `rows` rows; of tokens a third is ignored."""
    if problem == "regression":
        return torch.randn(rows, 1, generator=draw), 5 * torch.rand(rows, generator=draw)
    if problem == "multi-label":
        labels = (torch.rand(rows, 3, generator=draw) < 0.4).float()
        return 3 * torch.randn(rows, 3, generator=draw), labels
    if problem == "single-label":
        labels = torch.randint(3, (rows,), generator=draw)
        return 3 * torch.randn(rows, 3, generator=draw), labels
    labels = torch.randint(3, (rows, 7), generator=draw)
    labels[torch.rand(rows, 7, generator=draw) < 1 / 3] = IGNORED_LABEL
    return 3 * torch.randn(rows, 7, 3, generator=draw), labels


# Gold labels


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_one_class_is_torchs_mean(draw, weights):
    logits, labels = some_labels("single-label", 12, draw)
    total, weight = task_loss(logits, labels, "single-label", weights)
    torch.testing.assert_close(total / weight, nn.CrossEntropyLoss(weight=weights)(logits, labels))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_tokens_are_torchs_mean_over_what_is_labelled(draw, weights):
    logits, labels = some_labels("token", 5, draw)
    total, weight = task_loss(logits, labels, "token", weights)
    loss = nn.CrossEntropyLoss(weight=weights, ignore_index=IGNORED_LABEL)(logits.transpose(1, 2), labels)
    torch.testing.assert_close(total / weight, loss)
    if weights is None:
        assert weight == (labels != IGNORED_LABEL).sum()


def test_several_classes_are_torchs_mean(draw):
    logits, labels = some_labels("multi-label", 6, draw)
    total, weight = task_loss(logits, labels, "multi-label")
    torch.testing.assert_close(total / weight, nn.BCEWithLogitsLoss()(logits, labels))


def test_scores_are_torchs_mean(draw):
    logits, labels = some_labels("regression", 6, draw)
    total, weight = task_loss(logits, labels, "regression")
    torch.testing.assert_close(total / weight, nn.MSELoss()(logits[:, 0], labels))


def test_one_row_keeps_its_shape():
    total, weight = task_loss(torch.tensor([[1.0]]), torch.tensor([3.0]), "regression")
    assert (total.item(), weight.item()) == (4.0, 1.0)


def test_a_loss_by_hand():
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]))
    total, weight = task_loss(logits, torch.tensor([1, 2]), "single-label", WEIGHTS)
    assert total.item() == pytest.approx(-2.0 * math.log(0.5) - 1.25 * math.log(0.1))
    assert weight.item() == pytest.approx(3.25)


def test_nothing_labelled_is_zero_over_zero_labels():
    labels = torch.full((2, 3), IGNORED_LABEL)
    logits = torch.randn(2, 3, 3, requires_grad=True)
    for weights in (None, WEIGHTS):
        total, weight = task_loss(logits, labels, "token", weights)
        assert (total.item(), weight.item()) == (0.0, 0.0)
    total.backward()
    assert not logits.grad.any()


@pytest.mark.parametrize("problem", ["single-label", "multi-label", "regression", "token"])
def test_half_precision_logits_are_summed_in_single(draw, problem):
    logits, labels = some_labels(problem, 4, draw)
    total, weight = task_loss(logits.bfloat16(), labels, problem)
    assert total.dtype == weight.dtype == torch.float32
    torch.testing.assert_close(total, task_loss(logits.bfloat16().float(), labels, problem)[0])


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("problem", ["single-label", "multi-label", "regression", "token"])
def test_micro_batches_add_up_to_the_batch(draw, problem, weights):
    weights = weights if problem in ("single-label", "token") else None
    logits, labels = some_labels(problem, 9, draw)
    logits.requires_grad_()
    total, weight = task_loss(logits, labels, problem, weights)
    (whole,) = torch.autograd.grad(total / weight, logits)
    parts = [slice(0, 1), slice(1, 5), slice(5, 9)]
    sums = [task_loss(logits[part], labels[part], problem, weights) for part in parts]
    step = sum(label_weight(labels[part], problem, weights) for part in parts)
    torch.testing.assert_close(step, weight)
    torch.testing.assert_close(sum(part for _, part in sums), weight)
    torch.testing.assert_close(sum(part for part, _ in sums) / step, total / weight)
    (summed,) = torch.autograd.grad(sum(part for part, _ in sums) / step, logits)
    torch.testing.assert_close(summed, whole)


# A teacher's logits


def test_one_class_is_the_divergence_from_the_teacher(draw):
    (student, labels), (teacher, _) = (some_labels("single-label", 8, draw) for _ in range(2))
    by_torch = kl_divergence(Categorical(logits=teacher / 2), Categorical(logits=student / 2)).sum()
    torch.testing.assert_close(logit_loss(student, teacher, labels, "single-label", 2.0), 4 * by_torch)


def test_a_divergence_by_hand():
    # At T = 2 the squared roots of the odds count: teacher (1/2, 1/2), student (1/4, 3/4).
    teacher, student = torch.zeros(1, 2), torch.tensor([[0.0, 2 * math.log(3)]])
    expected = 4 * (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75))
    found = logit_loss(student, teacher, torch.tensor([0]), "single-label", 2.0)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_several_classes_are_a_divergence_each(draw):
    (student, labels), (teacher, _) = (some_labels("multi-label", 8, draw) for _ in range(2))
    by_torch = kl_divergence(Bernoulli(logits=teacher / 2), Bernoulli(logits=student / 2)).sum()
    torch.testing.assert_close(
        logit_loss(student, teacher, labels, "multi-label", 2.0), 4 * by_torch, rtol=1e-4, atol=1e-4
    )


def test_tokens_that_are_ignored_do_not_count(draw):
    (student, labels), (teacher, _) = (some_labels("token", 4, draw) for _ in range(2))
    kept = labels != IGNORED_LABEL
    by_torch = kl_divergence(Categorical(logits=teacher / 2), Categorical(logits=student / 2))[kept].sum()
    torch.testing.assert_close(logit_loss(student, teacher, labels, "token", 2.0), 4 * by_torch)
    wild = teacher.clone()
    wild[~kept] = 1e4
    torch.testing.assert_close(
        logit_loss(student, wild, labels, "token", 2.0), logit_loss(student, teacher, labels, "token", 2.0)
    )


def test_scores_differ_by_their_square(draw):
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]])
    assert logit_loss(student, teacher, torch.zeros(2), "regression", 2.0).item() == 5.0


@pytest.mark.parametrize("problem", ["single-label", "multi-label", "regression", "token"])
def test_a_student_that_says_the_same_has_no_loss(draw, problem):
    logits, labels = some_labels(problem, 4, draw)
    student = logits.clone().requires_grad_()
    loss = logit_loss(student, logits, labels, problem, 3.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-4)
    assert student.grad.abs().max() < 1e-5


@pytest.mark.parametrize("problem", ["single-label", "multi-label", "token"])
def test_logits_without_bound_give_a_finite_loss(draw, problem):
    logits, labels = some_labels(problem, 4, draw)
    loss = logit_loss(-1e4 * logits, 1e4 * logits, labels, problem, 1.0)
    assert torch.isfinite(loss)
    assert loss > 0


@pytest.mark.parametrize("problem", ["single-label", "multi-label", "regression", "token"])
def test_micro_batches_of_logits_add_up(draw, problem):
    (student, labels), (teacher, _) = (some_labels(problem, 6, draw) for _ in range(2))
    parts = [slice(0, 2), slice(2, 6)]
    torch.testing.assert_close(
        sum(logit_loss(student[part], teacher[part], labels[part], problem, 2.0) for part in parts),
        logit_loss(student, teacher, labels, problem, 2.0),
    )


# A teacher's hidden states


def test_equal_states_have_no_loss(draw):
    states = tuple(torch.randn(2, 5, 4, generator=draw) for _ in range(3))
    loss = hidden_state_loss(states, states, torch.ones(2, 5))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert hidden_state_loss(tuple(7 * state for state in states), states, torch.ones(2, 5)).item() == (
        pytest.approx(0.0, abs=1e-6)
    )


def test_states_by_hand():
    # Two iterations match layers 2 and 4; the embedding output (first) matches nothing.
    wild = torch.full((1, 3, 2), 9.0)
    east, north, west = (torch.tensor(v) for v in ([1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]))
    student = (wild, torch.stack([east, east, east])[None], torch.stack([north, north, north])[None])
    teacher = (
        wild,
        wild,
        torch.stack([east, north, wild[0, 0]])[None],  # cosines 1, 0; the last token is padding
        wild,
        torch.stack([-north, west, wild[0, 0]])[None],  # cosines -1, 0
    )
    loss = hidden_state_loss(student, teacher, torch.tensor([[1, 1, 0]]))
    assert loss.item() == pytest.approx((0 + 1) / 2 + (2 + 1) / 2)


# Label names


def test_labels_are_matched_by_name():
    teacher, task = ("c", "a", "b"), ("a", "b", "c")
    order = label_order(teacher, task, "t")
    assert order.tolist() == [1, 2, 0]
    assert [teacher[index] for index in order] == list(task)


@pytest.mark.parametrize("names", [("a", "x"), ("a",), ("a", "b", "c"), ("a", "b", "b")])
def test_other_labels_are_refused(names):
    with pytest.raises(UserError, match="teacher roberta was tuned for other labels: it has a") as caught:
        label_order(names, ("a", "b"), "roberta")
    assert "the task has a, b" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_regression_has_one_output_of_any_name():
    assert label_order(("LABEL_0",), (), "t").tolist() == [0]
    with pytest.raises(UserError, match="teacher t has 2 classes, but the task is a regression"):
        label_order(("no", "yes"), (), "t")


# The teacher itself


@pytest.mark.parametrize("hidden_weight", [0.0, 1.0])
def test_a_teacher_is_frozen_and_speaks_in_the_tasks_order(hidden_weight):
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
        num_labels=3,
    )  # fmt: skip
    model = BertForSequenceClassification(config).train()
    teacher = TaskTeacher(model, torch.tensor([2, 0, 1]), 1.0, hidden_weight, 2.0)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    batch = {
        "input_ids": torch.tensor([[2, 5, 3], [2, 3, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "labels": torch.tensor([0, 1]),
    }
    logits, states = teacher.view(batch)
    with torch.no_grad():
        own = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(logits, torch.stack([own[:, 2], own[:, 0], own[:, 1]], dim=1))
    assert not logits.requires_grad
    assert len(states) == (3 if hidden_weight else 0)


def test_logits_of_a_head_for_answers_are_those_of_first_and_last_token():
    config = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    outputs = BertForQuestionAnswering(config)(torch.tensor([[1, 2, 3]]))
    assert logits_of(outputs).shape == (1, 3, 2)
    assert torch.equal(logits_of(outputs)[..., 1], outputs.end_logits)
    assert logits_of(BertForSequenceClassification(config)(torch.tensor([[1, 2, 3]]))).shape == (1, 2)
