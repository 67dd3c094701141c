"""Kinds of tasks: what the figures of each say beyond their numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minialbert.data.examples import Task, TextExample, TokenExample, repeats
from minialbert.data.task_types import task_type
from minialbert.errors import UserError


def test_figures_name_classes_and_follow_the_positive_one():
    task = Task("mine", "single-label", ("case", "control"), "f1", {}, positive="case")
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]], np.float32)
    answers, figures = task.type.answers(task, logits, [0, 0, 1])
    assert answers == ["case", "control", "control"]
    assert figures["f1"] == figures["per_class"]["case"]["f1"] == pytest.approx(2 / 3)
    assert figures["auroc"] == figures["average_precision"] == 1.0
    assert figures["confusion"] == {"case": {"case": 1, "control": 1}, "control": {"control": 1}}
    nothing = np.array([[0.0, 9.0]] * 3, np.float32)
    _, figures = task.type.answers(task, nothing, [0, 0, 1])
    assert task.type.remarks(figures) == ["never predicted: 'case' (2 rows)"]


def test_areas_rank_answers_that_are_all_sure():
    task = Task("mine", "single-label", ("no", "yes"), "accuracy", {}, positive="yes")
    margins = [17.0, 18.0, 20.0, 22.0, 25.0]  # in 32 bits each is a probability of 1
    _, figures = task.type.answers(
        task, np.array([[0.0, one] for one in margins], np.float32), [0, 0, 1, 1, 1]
    )
    assert figures["auroc"] == figures["average_precision"] == 1.0


def test_a_score_that_only_has_the_right_order_is_no_sound_state():
    kind = task_type("regression")
    prices = [95_000.0, 105_000.0, 96_000.0, 104_000.0]
    task = Task("prices", "regression", (), "pearson_spearman", {})
    for scores, sound in ((prices, True), ([100_000.1, 100_000.4, 100_000.2, 100_000.3], False)):
        _, figures = kind.answers(task, np.array(scores, np.float64)[:, None], prices)
        assert figures["pearson"] > 0.9
        assert kind.is_sound(figures) is sound
        assert bool(kind.remarks(figures)) is not sound
    assert "2.05e+07" in kind.remarks(figures)[0]  # the mean of the squares of 5,000 and 4,000
    _, figures = kind.answers(task, np.array([[1.0], [2.0]]), [5.0, 5.0])
    assert kind.remarks(figures) == [
        "all scores are the same, of which there is no correlation: it is 0 here"
    ]


def test_focal_loss_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [50.0, 0.0], [1.0, 1.0]], requires_grad=True)
    labels, weights = torch.tensor([0, 0, 0, -100]), torch.tensor([2.0, 1.0])
    p = logits.detach().softmax(-1)[:2, 0]
    kind = task_type("single-label").focal(2.0)
    loss, weight = kind.loss(logits, labels)
    assert loss.item() == pytest.approx(float((-((1 - p) ** 2) * p.log()).sum()))
    assert weight == 3
    assert kind.loss(logits, labels, weights)[0].item() == pytest.approx(2 * loss.item())
    assert task_type("single-label").focal(0.0) is task_type("single-label")
    task_type("single-label").focal(0.5).loss(logits, labels)[0].backward()  # p of the third label is 1
    assert logits.grad.isfinite().all() and not logits.grad[3].any()
    several = torch.tensor([[0.0, 3.0]])
    wrong = torch.sigmoid(-torch.tensor([0.0, 3.0])).double()
    expected = -((1 - wrong) ** 2 * wrong.log()).sum()
    found, _ = task_type("multi-label").focal(2.0).loss(several, torch.zeros(1, 2))
    assert found.item() == pytest.approx(float(expected))
    with pytest.raises(UserError, match=r"tuning.focal_gamma: a regression task has no classes"):
        task_type("regression").focal(1.0)


def test_rows_of_rare_classes_are_repeated():
    rows = (
        [TextExample("t", label="a")] * 16 + [TextExample("t", label="b")] * 4 + [TextExample("t", label="c")]
    )
    assert repeats(rows, 0.5) == ([1] * 16 + [2] * 4 + [4], {"c": 4, "b": 2, "a": 1})
    assert repeats(rows, 1.0)[1] == {"c": 16, "b": 4, "a": 1}
    words = [TokenExample(("w",), ("O",))] * 8 + [
        TokenExample(("w", "v"), ("B-X", "B-Y")),
        TokenExample(("w",), ("B-X",)),
    ]
    assert repeats(words, 1.0) == ([1] * 8 + [8, 4], {"Y": 8, "X": 4})
    assert repeats([TextExample("t", label=("a", "b")), TextExample("t", label=())], 1.0) == (
        [1, 1],
        {"a": 1, "b": 1},
    )
