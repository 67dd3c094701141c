"""Verdicts against cases worked out by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from scipy.stats import t, ttest_ind
from suite_records import DEFINITION, cell_named, make_suite, record_of

from minialbert.errors import MissingExtraError
from minialbert.experiments.suite.cells import Result
from minialbert.experiments.suite.claims import (
    Compared,
    chance_marks,
    compare,
    judge,
    kept,
    mean_interval,
    seeds_of,
    verdict_of,
)
from minialbert.experiments.suite.schema import Claim, Comparison
from minialbert.experiments.suite.time_left import time_left


def results_of(suite, scores, **changes):
    """Records of full tunings: percent by "row/task" or "row/mode/task", one per seed."""
    results = {}
    for side, values in scores.items():
        row, *mode, task = side.split("/")
        for seed, value in enumerate(values, start=1):
            name = f"{row}/{mode[0] if mode else 'full'}/{task}-{seed}"
            if value is not None:
                record = record_of(suite, name, value / 100, **changes.get(row, {}))
                results[name] = Result(Path(name), record)
    return results


def test_the_interval_of_one_task_is_students():
    # n = 4, mean 2, sd sqrt(20/3); t(0.975, 3) = 3.182446 from printed tables.
    low, high = mean_interval([[-1.0, 1.0, 3.0, 5.0]], 0.95)
    half = 3.182446 * math.sqrt(20 / 3) / 2
    assert (low, high) == (pytest.approx(2 - half, abs=1e-5), pytest.approx(2 + half, abs=1e-5))
    assert mean_interval([[1.0, 3.0]], 0.95)[1] == pytest.approx(2 + 12.7062, abs=1e-3)
    assert mean_interval([[1.5, 1.5, 1.5], [4.5, 4.5]], 0.95) == (3, 3)


def test_the_interval_over_tasks_is_that_of_the_spread_within_them():
    # Two tasks of equal variance 1, three seeds each: df 4, t(0.975, 4) = 2.776445, half = t sqrt(2/3) / 2.
    low, high = mean_interval([[0.0, 1.0, 2.0], [30.0, 31.0, 32.0]], 0.95)
    half = 2.776445 * math.sqrt(2 / 3) / 2
    assert (low, high) == (pytest.approx(16 - half, abs=1e-5), pytest.approx(16 + half, abs=1e-5))
    # A task that does not scatter lends no degrees of freedom: t(0.975, 2) = 4.302653.
    low, high = mean_interval([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]], 0.95)
    half = 4.302653 * math.sqrt(1 / 3) / 2
    assert (low, high) == (pytest.approx(3 - half, abs=1e-5), pytest.approx(3 + half, abs=1e-5))


def test_the_interval_is_that_of_welchs_test():
    # Welch's test of a against b is the interval of the mean of a and -b, twice as wide.
    a, b = [1.0, 4.0, 2.5, 7.0], [0.5, 0.25, 1.0]
    theirs = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    ours = mean_interval([a, [-value for value in b]], 0.95)
    assert [2 * end for end in ours] == pytest.approx([theirs.low, theirs.high])


@pytest.mark.parametrize(
    ("interval", "exceeds", "verdict"),
    [
        ((0.1, 2.0), 0.0, "held"),
        ((0.0, 2.0), 0.0, "undecided at this size"),
        ((-1.0, 1.0), 0.0, "undecided at this size"),
        ((-2.0, -0.1), 0.0, "reversed"),
        # "close to, within 2 points": not worse by 2.
        ((-1.9, -0.5), -2.0, "held"),
        ((-2.1, 1.0), -2.0, "undecided at this size"),
        ((-9.0, -2.5), -2.0, "reversed"),
        # "collapses, by more than 5".
        ((5.5, 9.0), 5.0, "held"),
        ((1.0, 4.0), 5.0, "reversed"),
    ],
)
def test_a_verdict_is_where_the_whole_interval_lies(interval, exceeds, verdict):
    assert verdict_of(interval, exceeds) == verdict


def test_pairs_have_one_task_and_one_seed():
    suite = make_suite()
    scores = {
        "small/king": [60, 64, 70],
        "plain/king": [58, 60, 64],
        "small/river": [90, 90],
        "teacher/river": [10, 10],
    }
    one = compare(suite, Comparison(a="small", b="plain", tasks=["king"]), results_of(suite, scores))
    assert one.differences == {
        ("king", 1): pytest.approx(2),
        ("king", 2): pytest.approx(4),
        ("king", 3): pytest.approx(6),
    }
    # t(0.975, 2) = 4.302653; sd 2, so half = 4.302653 * 2 / sqrt(3) = 4.968
    assert one.mean == pytest.approx(4)
    assert one.interval == (pytest.approx(-0.968, abs=1e-3), pytest.approx(8.968, abs=1e-3))
    assert (one.planned, one.verdict) == (3, "undecided at this size")
    assert one.task_means() == {"king": pytest.approx(4)}


def test_cells_that_are_missing_are_missing():
    suite = make_suite()
    comparison = Comparison(a="small", b="plain", tasks=["king"])
    one = compare(
        suite, comparison, results_of(suite, {"small/king": [60, 64], "plain/king": [58, None, 64]})
    )
    assert (len(one.differences), one.planned, one.interval, one.verdict) == (1, 3, None, "unfinished")
    two = compare(suite, comparison, results_of(suite, {"small/king": [60, 64], "plain/king": [58, 62]}))
    assert (len(two.differences), two.verdict) == (2, "unfinished")
    assert two.interval == (pytest.approx(2), pytest.approx(2))
    none = compare(suite, comparison, {})
    assert (none.mean, none.interval, none.planned, none.verdict) == (None, None, 3, "unfinished")


def test_tasks_count_alike_and_can_be_left_out():
    suite = make_suite()
    scores = {
        "teacher/king": [70, 72],
        "start/king": [60, 60],
        "teacher/river": [50, 54],
        "start/river": [50, 50],
    }
    comparison = Comparison(a="teacher", b="start", tasks=["king", "river"])
    results = results_of(suite, scores)
    one = compare(suite, comparison, results)
    assert sorted(one.differences.values()) == pytest.approx([0, 4, 10, 12])
    assert one.task_means() == {"king": pytest.approx(11), "river": pytest.approx(2)}
    # Variances of the means 1 and 4: df (1 + 4)^2 / (1 + 16) = 25/17.
    half = float(t.ppf(0.975, 25 / 17)) * math.sqrt(5) / 2
    assert one.interval == (pytest.approx(6.5 - half), pytest.approx(6.5 + half))
    rest = compare(suite, comparison, results, without=["river"])
    assert (rest.mean, rest.planned) == (pytest.approx(11), 2)
    assert compare(suite, comparison, results, without=["king", "river"]).interval is None


def test_a_task_with_one_pair_leaves_a_comparison_unfinished():
    suite = make_suite()
    scores = {"teacher/king": [70, 72], "start/king": [60, 60], "teacher/river": [50], "start/river": [40]}
    one = compare(
        suite, Comparison(a="teacher", b="start", tasks=["king", "river"]), results_of(suite, scores)
    )
    assert (one.mean, one.interval, one.verdict) == (pytest.approx(10.5), None, "unfinished")


def test_time_saved_is_percent_of_the_others_step():
    suite = make_suite()
    results = results_of(suite, {"small/king": [50, 50, 50], "small/adapters/king": [50, 50, 50]})
    for seed, (full, adapters) in enumerate([(1.0, 0.7), (2.0, 1.5), (0.5, 0.4)], start=1):
        for mode, seconds in (("full", full), ("adapters", adapters)):
            training = {"steps": 5, "wall_seconds": 9.0, "seconds_per_step": seconds}
            name = f"small/{mode}/king-{seed}"
            results[name] = Result(Path(name), record_of(suite, name, training=training))
    comparison = Comparison(a="small/adapters", b="small", tasks=["king"], figure="step-time", exceeds=20)
    one = compare(suite, comparison, results)
    assert list(one.differences.values()) == pytest.approx([30, 25, 20])
    # mean 25, half 4.302653 * 5 / sqrt(3) = 12.42
    assert one.interval == (pytest.approx(12.58, abs=0.01), pytest.approx(37.42, abs=0.01))
    assert one.verdict == "undecided at this size"


def claim_of(*counts):
    return Claim(
        name="c", text="t",
        comparisons=[Comparison(a="small", b="plain", tasks=["king"], counts=count) for count in counts],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "counts", "expected"),
    [
        (["held", "held"], [True, True], "held"),
        (["held", "undecided at this size"], [True, True], "undecided at this size"),
        (["held", "reversed", "undecided at this size"], [True, True, True], "reversed"),
        (["held", "unfinished", "reversed"], [True, True, True], "unfinished"),
        (["held", "reversed"], [True, False], "held"),
        (["held", "unfinished"], [True, False], "held"),
    ],
)
def test_a_claim_needs_all_its_comparisons(verdicts, counts, expected):
    compared = [Compared({}, 3, 0.0, (0.0, 0.0), verdict) for verdict in verdicts]
    assert judge(claim_of(*counts), compared) == expected


def test_what_is_kept_is_the_ratio_of_means_by_seed():
    suite = make_suite()
    assert suite.reach is not None
    scores = {
        "teacher/king": [80, 70],
        "teacher/river": [40, 50],
        "small/king": [75, 66, 1],
        "small/river": [39, 48],
    }
    one = kept(suite, suite.reach, "small", results_of(suite, scores))
    # (75 + 39) / (80 + 40) = 95 %, (66 + 48) / (70 + 50) = 95 %
    assert (one.share, one.sd, one.n, one.planned, one.reached) == (
        pytest.approx(95), pytest.approx(0, abs=1e-9), 2, 2, True,
    )  # fmt: skip
    scores["small/river"] = [39, None]
    part = kept(suite, suite.reach, "small", results_of(suite, scores))
    assert (part.share, part.sd, part.n, part.reached) == (pytest.approx(95), None, 1, None)
    scores["small/river"] = [30, 30]
    assert kept(suite, suite.reach, "small", results_of(suite, scores)).reached is False
    assert kept(suite, suite.reach, "start", {}).share is None


def test_tasks_at_chance_are_marked():
    suite = make_suite()  # King: chance 50, margin 2; River: chance 0
    scores = {
        "teacher/king": [60, 60],
        "small/king": [51, 51, 52],
        "plain/king": [50, 51, 53],
        "teacher/river": [1, 2],
    }
    assert chance_marks(suite, results_of(suite, scores)) == {
        "king": "all students are at chance",
        "river": "the fully tuned teacher is at chance",
    }
    scores |= {"plain/king": [55, 50, 55], "teacher/river": [2, 2]}
    assert chance_marks(suite, results_of(suite, scores)) == {}


def test_a_teacher_tuned_in_full_is_known_by_its_recipe_whatever_its_mode_is_called():
    slow = {"label": "slow", "settings": {"tuning.epochs": 2}}
    groups = [
        {"name": "g", "cells": ["teacher/slow", "teacher/adapters"], "tasks": ["king"], "seeds": [1]},
        *DEFINITION["groups"],
    ]
    suite = make_suite(modes={**DEFINITION["modes"], "slow": slow}, groups=groups)
    low = {"teacher/slow/king": [50], "teacher/adapters/king": [50]}
    told = {"king": "the fully tuned teacher is at chance"}
    assert chance_marks(suite, results_of(suite, low)) == told
    assert chance_marks(suite, results_of(suite, {**low, "teacher/slow/king": [60]})) == {}


def test_seeds_are_those_of_all_groups():
    suite = make_suite()
    assert seeds_of(suite, "small", "king") == [1, 2, 3]
    assert seeds_of(suite, "small/full", "river") == [1, 2]
    assert seeds_of(suite, "small/adapters", "river") == []


def test_without_scipy_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(
        MissingExtraError, match=r"the report of a suite needs scipy: pip install .*\[tasks\]'"
    ):
        mean_interval([[1.0, 2.0]], 0.95)


# How long it will take


def test_time_is_that_of_cells_like_those_that_are_done():
    rows = {
        **DEFINITION["rows"],
        "longer": {
            "recipe": "tiny",
            "settings": {"training.max_steps": 40},
            "teacher": "main",
            "corpus": "text",
        },
    }
    groups = [*DEFINITION["groups"], {"name": "long", "cells": ["longer"], "tasks": ["king"], "seeds": [1]}]
    suite = make_suite(rows=rows, groups=groups)
    made = record_of(suite, "small/distill")  # 4 steps, 40 s
    results = {"small/distill": Result(Path("x"), made)} | results_of(suite, {"small/king": [50]})  # 10 s
    left = [cell_named(suite, name) for name in ("longer/distill", "longer/full/king-1", "start/distill")]
    one = time_left(suite, left, results)
    assert (one.seconds, one.unknown) == (pytest.approx(400 + 10), 0)
    assert time_left(suite, left, results, overhead=5.0).seconds == pytest.approx(410 + 15)
    assert one.told(2) == "about 3:25 of compute left on this machine"
    river = cell_named(suite, "teacher/full/river-1")
    two = time_left(suite, [*left, river], results)
    assert two.told() == (
        "about 0.1 h of compute left on this machine, not counting 1 cell unlike any that is done (river)"
    )
    assert time_left(suite, [river], {}).told() == (
        "no estimate yet: the first of each kind is to be measured (river)"
    )
