"""Whether a claim held: differences over paired cells, their interval, and a verdict by a fixed rule."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from minialbert.errors import MissingExtraError
from minialbert.experiments.suite.cells import Cell, Result
from minialbert.experiments.suite.schema import Claim, Comparison, Keep, Suite, split_side

Verdict = Literal["held", "reversed", "undecided at this size", "unfinished"]


@dataclass(frozen=True)
class Compared:
    """What a comparison came to.

    Attributes:
        differences: a - b by (task, seed), in points or percent.
        planned: how many pairs there are to be.
        mean: the mean of the tasks' means; None without pairs.
        interval: of the mean over seeds; None as long as a task has fewer pairs than two.
        verdict: of the statement that the difference exceeds what the comparison says.
    """

    differences: Mapping[tuple[str, int], float]
    planned: int
    mean: float | None
    interval: tuple[float, float] | None
    verdict: Verdict

    @property
    def interim(self) -> bool:
        """Whether pairs are still missing; said of a verdict other than "unfinished"."""
        return self.verdict != "unfinished" and len(self.differences) < self.planned

    def task_means(self) -> dict[str, float]:
        """Return the mean difference of each task."""
        return {task: statistics.fmean(values) for task, values in _by_task(self.differences).items()}


@dataclass(frozen=True)
class Kept:
    """What share of a reference's mean a row keeps.

    Attributes:
        share: percent, the mean over seeds; None where no seed has all tasks.
        sd: sample standard deviation over seeds.
        n: seeds that have all tasks.
        planned: seeds that there are to be.
        reached: whether it is as much as was asked for; None as long as seeds are missing.
    """

    share: float | None
    sd: float | None
    n: int
    planned: int
    reached: bool | None


def mean_interval(groups: Sequence[Sequence[float]], confidence: float) -> tuple[float, float]:
    """Return the interval of a mean of groups' means, from the spread within the groups alone.

    Its variance is sum_t s_t^2 / n_t over the square of the number of groups, its degrees of freedom are those of
    Welch and Satterthwaite. Of one group it is Student's interval. What differs between groups, which are given and
    not drawn, does not widen it.

    Args:
        groups: at least two values each: the differences of a task, by seed.
        confidence: as in 0.95.

    Returns:
        Its ends.

    Raises:
        MissingExtraError: if scipy is not installed.
    """
    try:
        from scipy.stats import t
    except ImportError as error:
        raise MissingExtraError("scipy", "tasks", "the report of a suite") from error
    mean = statistics.fmean(statistics.fmean(values) for values in groups)
    parts = [statistics.variance(values) / len(values) for values in groups]
    variance = sum(parts)
    if variance == 0:
        return mean, mean
    freedom = variance**2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, groups, strict=True)
    )
    half = float(t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(variance) / len(groups)
    return mean - half, mean + half


def verdict_of(interval: tuple[float, float], exceeds: float) -> Verdict:
    """Return whether a difference exceeds a bound: by its whole interval, by none of it, or undecided.

    Args:
        interval: of the difference.
        exceeds: the bound.

    Returns:
        The verdict.
    """
    low, high = interval
    if low > exceeds:
        return "held"
    return "reversed" if high < exceeds else "undecided at this size"


def compare(
    suite: Suite,
    comparison: Comparison,
    results: Mapping[str, Result],
    *,
    without: Sequence[str] = (),
) -> Compared:
    """Compare two rows over the pairs of cells with the same task and seed.

    Args:
        suite: the suite.
        comparison: what is compared.
        results: the records of finished cells.
        without: tasks to leave out.

    Returns:
        What it came to.
    """
    differences: dict[tuple[str, int], float] = {}
    planned = 0
    tasks = [task for task in comparison.tasks if task not in without]
    for task in tasks:
        seeds = [
            seed
            for seed in seeds_of(suite, comparison.a, task)
            if seed in seeds_of(suite, comparison.b, task)
        ]
        planned += len(seeds)
        for seed in seeds:
            a, b = (result_of(results, side, task, seed) for side in (comparison.a, comparison.b))
            value = None if a is None or b is None else _difference(a, b, comparison.figure)
            if value is not None:
                differences[task, seed] = value
    groups = _by_task(differences)
    interval = None
    if groups and all(len(groups.get(task, ())) > 1 for task in tasks):
        interval = mean_interval(list(groups.values()), suite.confidence)
    verdict: Verdict = "unfinished"
    if interval is not None and len(differences) >= suite.min_pairs:
        verdict = verdict_of(interval, comparison.exceeds)
    mean = statistics.fmean(map(statistics.fmean, groups.values())) if groups else None
    return Compared(differences, planned, mean, interval, verdict)


def judge(claim: Claim, compared: Sequence[Compared]) -> Verdict:
    """Return the verdict of a claim.

    Args:
        claim: the claim.
        compared: what each of its comparisons came to.

    Returns:
        "unfinished" if one of those that count is; "reversed" if one is; "held" if all are; undecided otherwise.
    """
    verdicts = [
        one.verdict for comparison, one in zip(claim.comparisons, compared, strict=True) if comparison.counts
    ]
    if "unfinished" in verdicts:
        return "unfinished"
    if "reversed" in verdicts:
        return "reversed"
    return "held" if all(verdict == "held" for verdict in verdicts) else "undecided at this size"


def kept(suite: Suite, keep: Keep, side: str, results: Mapping[str, Result]) -> Kept:
    """Return what share of the reference's mean over the tasks a row keeps, by seed.

    Args:
        suite: the suite.
        keep: reference, tasks, and what should be kept.
        side: the row.
        results: the records of finished cells.

    Returns:
        The share.
    """
    planned = [
        seed
        for seed in seeds_of(suite, side, keep.tasks[0])
        if all(seed in seeds_of(suite, one, task) for one in (side, keep.against) for task in keep.tasks)
    ]
    shares = []
    for seed in planned:
        scores = [
            [result_of(results, one, task, seed) for task in keep.tasks] for one in (side, keep.against)
        ]
        means = [
            statistics.fmean(result.points for result in row if result is not None)
            for row in scores
            if None not in row
        ]
        if len(means) == 2 and means[1] > 0:
            shares.append(100 * means[0] / means[1])
    share = statistics.fmean(shares) if shares else None
    sd = statistics.stdev(shares) if len(shares) > 1 else None
    complete = share is not None and len(shares) == len(planned)
    return Kept(
        share, sd, len(shares), len(planned), share >= keep.share if complete and share is not None else None
    )


def chance_marks(suite: Suite, results: Mapping[str, Result]) -> dict[str, str]:
    """Return the tasks that tell little at this size, with the reason.

    Args:
        suite: the suite.
        results: the records of finished cells.

    Returns:
        By task: that a fully tuned teacher is at chance, or that all students are.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    tuned_in_full = set()
    for name, result in results.items():
        row, mode, *rest = name.split("/")
        if rest:
            if result.record["recipe"]["tuning"]["mode"] == "full":
                tuned_in_full.add(f"{row}/{mode}")
            scores.setdefault(rest[0].rpartition("-")[0], {}).setdefault(f"{row}/{mode}", []).append(
                result.points
            )
    marks = {}
    for task, sides in scores.items():
        bound = suite.tasks[task].chance + suite.chance_margin
        means = {side: statistics.fmean(values) for side, values in sides.items()}
        others = [side for side in means if suite.rows[split_side(side)[0]].recipe is None]
        students = [side for side in means if side not in others]
        teachers = [
            side for side in others if side in tuned_in_full and suite.rows[split_side(side)[0]].teacher
        ]
        low = list(dict.fromkeys(split_side(side)[0] for side in teachers if means[side] < bound))
        if low:
            marks[task] = f"the fully tuned {', '.join(low)} is at chance"
        elif students and all(means[side] < bound for side in students):
            marks[task] = "all students are at chance"
    return marks


def seeds_of(suite: Suite, side: str, task: str) -> list[int]:
    """Return the seeds that a row is to be tuned with on a task.

    Args:
        suite: the suite.
        side: ROW or ROW/MODE.
        task: the task.

    Returns:
        The seeds of all groups that ask for it.
    """
    wanted = split_side(side)
    seeds: dict[int, None] = {}
    for group in suite.groups:
        if task in group.tasks and any(split_side(one) == wanted for one in group.cells):
            seeds |= dict.fromkeys(group.seeds)
    return list(seeds)


def result_of(results: Mapping[str, Result], side: str, task: str, seed: int) -> Result | None:
    """Return the record of one tuning, or None if it is not done.

    Args:
        results: the records of finished cells.
        side: ROW or ROW/MODE.
        task: the task.
        seed: the seed.

    Returns:
        The record.
    """
    row, mode = split_side(side)
    return results.get(Cell(row, mode, "", task, seed).name)


def _difference(a: Result, b: Result, figure: str) -> float | None:
    if figure == "score":
        return a.points - b.points
    times = [result.record["training"].get("seconds_per_step") for result in (a, b)]
    return None if not all(times) else 100 * (1 - times[0] / times[1])


def _by_task(differences: Mapping[tuple[str, int], float]) -> dict[str, list[float]]:
    by_task: dict[str, list[float]] = {}
    for (task, _), value in differences.items():
        by_task.setdefault(task, []).append(value)
    return by_task
