"""What the report of a suite says, in sections: claims, what is kept, tables, charts, students, what is missing."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..progress import duration
from ..report import paper as published
from ..report.blocks import Block, Listing, Point, ScatterChart, Section, Text
from ..report.plots import Bench, latency_charts, paper_chart, size_chart
from ..report.provenance import made_with
from ..report.tables import Table, Value
from ..report.training import Distilled, recipe_listing, training_sections
from .cells import Cell, expand
from .claims import Compared, compare, judge, kept
from .records import Result
from .schema import Claim, Comparison, Suite, SuiteTable, list_suites, split_side
from .tables import difference, mean_over_tasks

Marks = Mapping[str, str]


def summary_blocks(
    suite: Suite, compared: Mapping[str, Sequence[Compared]], results: Mapping[str, Result]
) -> list[Block]:
    """Return what stands at the head of the page: how much is done, and the verdicts.

    Args:
        suite: the suite.
        compared: what the comparisons of each claim came to.
        results: the records of finished cells.

    Returns:
        The blocks.
    """
    cells = expand(suite)
    tuned = [cell for cell in cells if not cell.is_distillation]
    done = sum(cell.name in results for cell in tuned)
    blocks: list[Block] = [Text(suite.description)] if suite.description else []
    blocks.append(
        Text(
            f"{done} of {len(tuned)} tunings and {len(results) - done} of {len(cells) - len(tuned)} students are done. "
            "Every student is distilled once; what stands behind ± is the spread over seeds of the tuning alone."
        )
    )
    if suite.claims:
        rows = tuple((claim.text, _verdict(claim, compared[claim.name])) for claim in suite.claims)
        blocks.append(Table("Claims", ("claim", "verdict"), rows))
    return blocks


def suite_sections(
    suite: Suite,
    compared: Mapping[str, Sequence[Compared]],
    results: Mapping[str, Result],
    marks: Marks,
    tables: Mapping[str, Table],
    benches: Sequence[Bench],
) -> list[Section]:
    """Return the sections of the page.

    Args:
        suite: the suite.
        compared: what the comparisons of each claim came to.
        results: the records of finished cells.
        marks: tasks that tell little, with the reason.
        tables: of the suite, and that of the distillations, by name.
        benches: measured latencies, whose models are called like rows.

    Returns:
        The sections.
    """
    sections = [_claims(suite, compared, results, marks), _reach(suite, results)]
    sections += [Section(table.title, (tables[table.name],)) for table in suite.tables]
    sections += [
        _charts(suite, results, benches),
        _students(suite, results, tables["distillation"]),
        _settings(suite, results),
        _commands(suite),
        _missing(suite, results),
        _made_with(results),
    ]
    return [section for section in sections if section.blocks or section.sections]


def _claims(
    suite: Suite,
    compared: Mapping[str, Sequence[Compared]],
    results: Mapping[str, Result],
    marks: Marks,
) -> Section:
    if not suite.claims:
        return Section("Claims", ())
    rule = (
        "A comparison says that a - b is more than a bound. It is held if the whole "
        f"{100 * suite.confidence:g} % interval of the mean over tasks lies above the bound, reversed if all of it "
        "lies below, and undecided otherwise. The interval comes from how the differences of one task scatter over "
        "seeds (pairs of the same task and seed; degrees of freedom after Welch and Satterthwaite); with fewer than "
        f"two pairs of a task, or {suite.min_pairs} in all, a comparison is unfinished. While pairs are missing a "
        "verdict is an interim one. A claim is held if each of its comparisons is, reversed if one is, and unfinished "
        "as long as one is; comparisons in brackets have no say. The interval says nothing about other tasks or other "
        "distillations of the same rows, and of many claims at this level one in twenty may be judged wrongly."
    )
    told = [Text(f"‡ {suite.tasks[task].label}: {why}.") for task, why in marks.items()]
    parts = [_claim(suite, claim, compared[claim.name], results, marks) for claim in suite.claims]
    return Section("Claims", (Text(rule), *told), tuple(parts))


def _claim(
    suite: Suite,
    claim: Claim,
    compared: Sequence[Compared],
    results: Mapping[str, Result],
    marks: Marks,
) -> Section:
    columns = ("a", "b", "said to exceed", "a - b", "pairs", "by task", "without ‡", "verdict")
    rows: list[tuple[Value, ...]] = []
    for comparison, one in zip(claim.comparisons, compared, strict=True):
        means = ", ".join(
            f"{suite.tasks[task].label}{'‡' if task in marks else ''} {value:+.1f}"
            for task, value in one.task_means().items()
        )
        verdict = _worded(one.verdict, one.interim)
        rows.append(
            (
                comparison.a + (f", {comparison.label}" if comparison.label else ""),
                comparison.b,
                f"{comparison.exceeds:+g}" + (" % of the time" if comparison.figure == "step-time" else ""),
                difference(one),
                f"{len(one.differences)} of {one.planned}",
                means or None,
                _without_marked(suite, comparison, results, marks),
                verdict if comparison.counts else f"({verdict})",
            )
        )
    head = [Text(f"Paper: {claim.paper}")] if claim.paper else []
    judged = Text(f"Verdict: {_verdict(claim, compared)}", strong=True)
    return Section(claim.text, (*head, Table(claim.text, columns, tuple(rows)), judged))


def _verdict(claim: Claim, compared: Sequence[Compared]) -> str:
    verdict = judge(claim, compared)
    counting = [one for comparison, one in zip(claim.comparisons, compared, strict=True) if comparison.counts]
    return _worded(verdict, verdict != "unfinished" and any(one.interim for one in counting))


def _worded(verdict: str, interim: bool) -> str:
    return f"{verdict}, interim" if interim else verdict


def _without_marked(
    suite: Suite, comparison: Comparison, results: Mapping[str, Result], marks: Marks
) -> Value:
    marked = [task for task in comparison.tasks if task in marks]
    if not marked or len(marked) == len(comparison.tasks):
        return None
    return difference(compare(suite, comparison, results, without=marked))


def _reach(suite: Suite, results: Mapping[str, Result]) -> Section:
    keep = suite.reach
    if keep is None:
        return Section("What is kept", ())
    rows: list[tuple[Value, ...]] = []
    for side in (keep.of, *keep.beside):
        one = kept(suite, keep, side, results)
        share = None
        if one.share is not None:
            share = f"{one.share:.1f} %" + (f" ± {one.sd:.1f}" if one.sd is not None else "")
        reached = "unfinished" if one.reached is None else "yes" if one.reached else "no"
        rows.append((side, share, f"{one.n} of {one.planned}", reached))
    tasks = ", ".join(suite.tasks[task].label for task in keep.tasks)
    what = (
        f"Share of the mean of {keep.against} over {tasks}, by seed; {keep.share:g} % are asked of {keep.of}."
    )
    table = Table("What is kept", ("row", "kept", "seeds", "reached"), tuple(rows))
    return Section("What is kept", (Text(what), table))


def _charts(suite: Suite, results: Mapping[str, Result], benches: Sequence[Bench]) -> Section:
    parts = [_charts_of(suite, table, results, benches) for table in suite.tables]
    timed = any(
        isinstance(block, ScatterChart) and " ms" in f" {block.x_label}"
        for part in parts
        for block in part.blocks
    )
    note = Text(
        "No latency was measured: minialbert bench --models ROW=MODEL --output RECORDS/bench adds it."
    )
    shown = tuple(part for part in parts if part.blocks)
    return Section("Size, speed and score", (note,) if shown and not timed else (), shown)


def _charts_of(
    suite: Suite, table: SuiteTable, results: Mapping[str, Result], benches: Sequence[Bench]
) -> Section:
    points = []
    for row in table.rows:
        mean = mean_over_tasks(suite, row.of, table.tasks, results)
        name, mode = split_side(row.of)
        records = [result for key, result in results.items() if key.startswith(f"{name}/{mode}/")]
        if mean is None or not records:
            continue
        size = records[0].record["model"]["encoder_parameters"]
        sd = None if mean.sd is None else 100 * mean.sd
        points.append(Point(name, float(size), 100 * mean.mean, sd, suite.modes[mode].label))
    if (
        len({point.x for point in points}) < 2 and not table.paper
    ):  # rows of one size differ in nothing that is plotted
        return Section(table.title, ())
    what = f"mean of {', '.join(suite.tasks[task].label for task in table.tasks)}, %"
    charts: list[Block] = []
    if points:
        charts = [size_chart(f"{table.title}: size against score", points, what)]
        charts += latency_charts(points, benches, what)
    if points and table.paper:
        charts.append(paper_chart(published.ner_rows() if table.paper == "ner" else published.glue_rows()))
    return Section(table.title, tuple(charts))


def _students(suite: Suite, results: Mapping[str, Result], table: Table) -> Section:
    runs = [
        Distilled(cell.row, results[cell.name].file.parent, results[cell.name].record)
        for cell in expand(suite)
        if cell.is_distillation and cell.name in results
    ]
    return Section("Distillation", (table,) if table.rows else (), tuple(training_sections(runs)))


def _settings(suite: Suite, results: Mapping[str, Result]) -> Section:
    """Return the resolved recipes: of every student, and of one tuning of each kind."""
    listings = []
    shown = set()
    for cell in expand(suite):
        kind = cell.row if cell.is_distillation else f"tuning, {cell.mode}"
        if cell.name not in results or kind in shown:
            continue
        shown.add(kind)
        title = kind if cell.is_distillation else f"{kind} (of {cell.name})"
        listings.append(recipe_listing(title, results[cell.name].record))
    return Section("Hyper-parameters", tuple(listings))


def _commands(suite: Suite) -> Section:
    teachers = " ".join(f"--teacher {shlex.quote(name)}=TEACHER" for name in suite.teachers)
    name = suite.name if suite.name in list_suites() else f"{shlex.quote(suite.name)}.yaml"
    run = f"minialbert suite run {name} {teachers} --data DATA --output RUNS"
    lines = (
        " ".join(run.split()),
        f"minialbert suite run {name} --only GROUP --records RECORDS ...  # what RECORDS lacks",
        f"minialbert suite report {name} --records RUNS --output REPORT --with-records",
    )
    return Section("Commands", (Listing("Commands", lines, folded=False, language="sh"),))


def _missing(suite: Suite, results: Mapping[str, Result]) -> Section:
    missing: dict[str, list[Cell]] = {}
    for cell in expand(suite):
        if cell.name not in results:
            missing.setdefault(f"{cell.row}/{cell.mode}", []).append(cell)
    if not missing:
        return Section("Unfinished cells", ())
    count = sum(map(len, missing.values()))
    rows = tuple((side, str(len(cells)), _tasks_and_seeds(cells)) for side, cells in missing.items())
    table = Table("Unfinished cells", ("row", "cells", "tasks: seeds"), rows)
    return Section("Unfinished cells", (Text(f"{count} cells have no record."), table))


def _tasks_and_seeds(cells: Iterable[Cell]) -> str | None:
    """Return tasks with their seeds, those that have the same ones together; None for a distillation."""
    seeds: dict[str, list[str]] = {}
    for cell in cells:
        if cell.task:
            seeds.setdefault(cell.task, []).append(str(cell.seed))
    tasks: dict[str, list[str]] = {}
    for task, of in seeds.items():
        tasks.setdefault(", ".join(of), []).append(task)
    return "; ".join(f"{', '.join(names)}: {of}" for of, names in tasks.items()) or None


def _made_with(results: Mapping[str, Result]) -> Section:
    seconds = sum(result.seconds for result in results.values())
    lines = made_with(result.record for result in results.values())
    told = (f"training in all: {duration(seconds)}, over all cells", *lines)
    return Section("Made with", (Listing("Made with", told, folded=False),))


def bench_records(folder: Path) -> list[Path]:
    """Return the benchmarks beside a suite's records."""
    return sorted(folder.glob("bench*/result.json"))


__all__ = ["bench_records", "suite_sections", "summary_blocks"]
