"""Kinds of tasks: what the figures of each say beyond their numbers."""

from __future__ import annotations

import numpy as np
import pytest

from minialbert.data.examples import Task
from minialbert.data.task_types import task_type


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
