"""Whether a claim held: differences over paired cells, their interval, and a verdict by a fixed rule."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from minialbert.errors import needs_extra
from minialbert.experiments.suite.cells import Cell, Result
from minialbert.experiments.suite.schema import DISTILL, Claim, Comparison, Keep, Suite, split_side
from minialbert.runs.records import grouped, mean_and_sd

Verdict = Literal["held", "reversed", "undecided at this size", "unfinished"]


@dataclass(frozen=True)
class Compared:
    """What a comparison came to."""

    differences: Mapping[tuple[str, int], float]  # a - b by (task, seed), in points or percent
    planned: int  # how many pairs there are to be
    mean: float | None  # of the tasks' means; None without pairs
    interval: tuple[float, float] | None  # of the mean over seeds; None while a task has fewer than two pairs
    verdict: Verdict  # of the statement that the difference exceeds what the comparison says

    @property
    def interim(self) -> bool:
        """Whether pairs are still missing; said of a verdict other than "unfinished"."""
        return self.verdict != "unfinished" and len(self.differences) < self.planned

    def task_means(self) -> dict[str, float]:
        """Return the mean difference of each task."""
        return {task: statistics.fmean(values) for task, values in _by_task(self.differences).items()}


@dataclass(frozen=True)
class Kept:
    """What share of a reference's mean a row keeps."""

    share: float | None  # percent, the mean over seeds; None where no seed has all tasks
    sd: float | None  # sample standard deviation over seeds
    n: int  # seeds that have all tasks
    planned: int  # seeds that there are to be
    reached: bool | None  # whether it is as much as was asked for; None as long as seeds are missing


def mean_interval(groups: Sequence[Sequence[float]], confidence: float) -> tuple[float, float]:
    """Return the ends of the interval of a mean of groups' means, from the spread within the groups alone.

    Each group has two values at least: the differences of a task, by seed. The variance is sum_t s_t^2 / n_t over the
    square of the number of groups, the degrees of freedom are those of Welch and Satterthwaite. Of one group it is
    Student's interval. What differs between groups, which are given and not drawn, does not widen it.
    """
    with needs_extra("tasks", "the report of a suite", "scipy"):
        from scipy.stats import t
    mean = statistics.fmean(statistics.fmean(values) for values in groups)
    parts = [statistics.variance(values) / len(values) for values in groups]
    variance = sum(parts)
    if variance == 0:
        return mean, mean
    pairs = zip(parts, groups, strict=True)
    freedom = variance**2 / sum(part**2 / (len(values) - 1) for part, values in pairs)
    half = float(t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(variance) / len(groups)
    return mean - half, mean + half


def verdict_of(interval: tuple[float, float], exceeds: float) -> Verdict:
    """Return whether a difference exceeds a bound: by its whole interval, by none of it, or undecided."""
    low, high = interval
    return "held" if low > exceeds else "reversed" if high < exceeds else "undecided at this size"


def compare(
    suite: Suite, comparison: Comparison, results: Mapping[str, Result], *, without: Sequence[str] = ()
) -> Compared:
    """Compare two rows over the pairs of cells with the same task and seed, some tasks left out."""
    differences: dict[tuple[str, int], float] = {}
    planned = 0
    tasks = [task for task in comparison.tasks if task not in without]
    for task in tasks:
        others = seeds_of(suite, comparison.b, task)
        seeds = [seed for seed in seeds_of(suite, comparison.a, task) if seed in others]
        planned += len(seeds)
        for seed in seeds:
            a, b = (result_of(results, side, task, seed) for side in (comparison.a, comparison.b))
            if a and b and (value := _difference(a, b, comparison.figure)) is not None:
                differences[task, seed] = value
    groups = _by_task(differences)
    interval: tuple[float, float] | None = None
    verdict: Verdict = "unfinished"
    if groups and all(len(groups.get(task, ())) > 1 for task in tasks):
        interval = mean_interval(list(groups.values()), suite.confidence)
        if len(differences) >= suite.min_pairs:
            verdict = verdict_of(interval, comparison.exceeds)
    mean = statistics.fmean(map(statistics.fmean, groups.values())) if groups else None
    return Compared(differences, planned, mean, interval, verdict)


def judge(claim: Claim, compared: Sequence[Compared]) -> Verdict:
    """Return the verdict of a claim, from what each of its comparisons came to.

    It is "unfinished" if one of those that count is; "reversed" if one is; "held" if all are; undecided otherwise.
    """
    pairs = zip(claim.comparisons, compared, strict=True)
    verdicts = {one.verdict for comparison, one in pairs if comparison.counts}
    worst: Sequence[Verdict] = ("unfinished", "reversed", "undecided at this size")
    return next((verdict for verdict in worst if verdict in verdicts), "held")


def kept(suite: Suite, keep: Keep, side: str, results: Mapping[str, Result]) -> Kept:
    """Return what share of the reference's mean over the tasks a row keeps, by seed."""
    sides = (side, keep.against)
    planned = set.intersection(*(set(seeds_of(suite, one, task)) for one in sides for task in keep.tasks))
    mine, others = (means_by_seed(suite, one, keep.tasks, results) for one in sides)
    shares = [100 * mine[seed] / others[seed] for seed in mine if seed in planned and others.get(seed, 0) > 0]
    share, sd = mean_and_sd(shares) if shares else (None, None)
    reached = share >= keep.share if share is not None and len(shares) == len(planned) else None
    return Kept(share, sd, len(shares), len(planned), reached)


def chance_marks(suite: Suite, results: Mapping[str, Result]) -> dict[str, str]:
    """Return the tasks that tell little here, with the reason: a fully tuned teacher, or all students, at chance."""
    by_task: dict[str, dict[str, list[Result]]] = {}
    for name, result in results.items():
        side, _, last = name.rpartition("/")
        if last != DISTILL:
            by_task.setdefault(last.rpartition("-")[0], {}).setdefault(side, []).append(result)
    marks = {}
    for task, sides in by_task.items():
        bound = suite.tasks[task].chance + suite.chance_margin
        students, low = [], dict[str, None]()
        for side, found in sides.items():
            name = split_side(side)[0]
            row, is_low = suite.rows[name], statistics.fmean(result.points for result in found) < bound
            if row.recipe is not None:
                students.append(is_low)
            elif is_low and row.teacher and found[0].record["recipe"]["tuning"]["mode"] == "full":
                low[name] = None
        if low:
            marks[task] = f"the fully tuned {', '.join(low)} is at chance"
        elif students and all(students):
            marks[task] = "all students are at chance"
    return marks


def means_by_seed(
    suite: Suite, side: str, tasks: Sequence[str], results: Mapping[str, Result]
) -> dict[int, float]:
    """Return a row's mean over tasks in percent, for each seed that has all of them."""
    means = {}
    for seed in seeds_of(suite, side, tasks[0]):
        found = [result_of(results, side, task, seed) for task in tasks]
        points = [result.points for result in found if result is not None]
        if len(points) == len(tasks):
            means[seed] = statistics.fmean(points)
    return means


def seeds_of(suite: Suite, side: str, task: str) -> list[int]:
    """Return the seeds that a row is to be tuned with on a task: those of all groups that ask for it."""
    asking = [
        one for one in suite.groups if task in one.tasks and split_side(side) in map(split_side, one.cells)
    ]
    return list(dict.fromkeys(seed for group in asking for seed in group.seeds))


def result_of(results: Mapping[str, Result], side: str, task: str, seed: int) -> Result | None:
    """Return the record of one tuning, or None if it is not done."""
    return results.get(Cell(*split_side(side), "", task, seed).name)


def _difference(a: Result, b: Result, figure: str) -> float | None:
    if figure == "score":
        return a.points - b.points
    times = [result.record["training"].get("seconds_per_step") for result in (a, b)]
    return None if not all(times) else 100 * (1 - times[0] / times[1])


def _by_task(differences: Mapping[tuple[str, int], float]) -> dict[str, list[float]]:
    return grouped((task, value) for (task, _), value in differences.items())
