"""Reports: many run records on one page, with tables beside the paper's rows, plots, curves and what made them."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from minialbert.errors import UserError
from minialbert.report import sections as contents
from minialbert.report.answers import answer
from minialbert.report.blocks import Block, Listing, Point, Section, Text
from minialbert.report.errors import error_section
from minialbert.report.markdown import markdown_page
from minialbert.report.page import html_page
from minialbert.report.tables import TABLES, Table
from minialbert.runs.files import free_name, write_atomically, writing
from minialbert.runs.records import (
    Record,
    Row,
    cell,
    find_records,
    group,
    is_tagging,
    load_record,
    look_up,
    record_files,
)
from minialbert.runs.results import Result


def report(
    paths: str | Path | Result | Sequence[str | Path | Result],
    output: str | Path | None = None,
    *,
    compare: bool = False,
) -> str:
    """Put the records of runs into tables beside the paper's rows, or two runs side by side.

    The package itself can be called. Tables without a measured row are left out.

    Examples:
        >>> page = minialbert.report(["run", "tuned"], "page")
        >>> sorted(file.name for file in Path("page").glob("report.*"))
        ['report.html', 'report.md']

    Args:
        paths: records, run directories, or trees of them, or what a verb gave back.
        output: a directory for `report.md`, `report.html`, a CSV file per table and the charts as
            `figures/report-*.svg`, in place of those of earlier calls.
        compare: put two runs of one kind side by side instead.

    Returns:
        The page as Markdown.

    Raises:
        UserError: if there is no record, one cannot be used, or `output` cannot be written.
    """
    places = [_place(path) for path in ([paths] if isinstance(paths, str | Path | Result) else paths)]
    target = None if output is None else Path(output)
    if not compare:
        title, summary, sections, tables = _report(places)
        return write_page(title, sections, target, name="report", summary=summary, tables=tables)
    from minialbert.report.compare import compare_runs

    if len(places) != 2:
        raise UserError(f"two runs can be compared, not {len(places)}")
    return write_page("Comparison of two runs", compare_runs(*places), target, name="compare")


def _place(given: str | Path | Result) -> Path:
    path = given.path if isinstance(given, Result) else given
    if path is None:
        advice = "give its verb output=DIR"
        raise UserError(f"the result was not written, so that there is no record of it: {advice}")
    return Path(path)


class _Report(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> str:
        return report(*args, **kwargs)


sys.modules[__name__].__class__ = _Report  # `minialbert.report` is both the room and the verb


def leave_page(folder: Path) -> str:
    """Write the page of one run, `report.html`, into its directory; return a line that says where, or why not."""
    try:
        title, summary, sections, _ = _report([folder / "result.json"])
        with writing(folder, advice=None):
            write_atomically(folder / "report.html", html_page(title, sections, summary=summary))
    except UserError as error:
        return f"no page: {error}"
    return f"page: {folder / 'report.html'}"


def _report(paths: Sequence[Path]) -> tuple[str, list[Block], list[Section], dict[str, Table]]:
    """Return title, summary, sections and tables of a page with all records below some paths."""
    records, found = find_records(paths), _runs(paths)
    sorts = (_STUDENTS, ("finetune",), ("evaluation",), ("bench",))
    students, tuned, evaluated, timed = (
        [one for one in found if one.record["kind"] in sort] for sort in sorts
    )
    if not records and not found:
        raise UserError(
            f"no record of fine-tuning or distillation below {', '.join(map(str, paths))}: run minialbert finetune or "
            "distill, and name its output directory"
        )
    tables = {name: table(records) for name, table in TABLES.items()}
    counted = [record for record in records if record.selected]
    benches = {run.name: contents.read_bench(run.file) for run in timed}
    first = [run for run in students if run.record["kind"] == "demo"] or [*students, *tuned] or found
    sections = [
        *(Section(table.title, (table,)) for table in tables.values() if table.rows),
        error_section([*evaluated, *tuned]),
        Section("Size, speed and score", tuple(_plots(counted, list(benches.values())))),
        Section("Benchmarks", tuple(contents.timing_table(*one) for one in benches.items())),
        Section("Evaluations", tuple(map(contents.figure_table, evaluated))),
        contents.tuning_curves(tuned),
        Section("Distillation runs", (), tuple(contents.training_sections(students))),
        Section("Hyper-parameters", tuple(contents.recipe_listing(run.name, run.record) for run in students)),
        *_provenance(counted, [*students, *evaluated, *timed]),
    ]
    sections = [section for section in sections if section.blocks or section.sections]
    if len(first) == 1:
        return first[0].name, answer(first[0]), sections, tables
    told = f"Tuned models: {len(counted)}. Distilled students: {len(students)}. Benchmarks: {len(benches)}."
    return "Results", [Text(told)], sections, tables


def write_page(
    title: str,
    sections: Sequence[Section],
    output: Path | None,
    *,
    name: str,
    summary: Sequence[Block] = (),
    tables: Mapping[str, Table] | None = None,
) -> str:
    """Return a page as Markdown; write it as NAME.md and NAME.html, with charts as `figures/NAME-*.svg`.

    Without a directory as output nothing is written; one that cannot be written is a `UserError`. The tables become
    CSV files by their names; one without rows is removed if an earlier report left it.
    """
    page = markdown_page(title, sections, summary=summary)
    if output is None:
        return page
    figures: dict[str, str] = {}
    files = {f"{name}.md": page, f"{name}.html": html_page(title, sections, summary=summary, figures=figures)}
    files |= {f"figures/{name}-{stem}.svg": figure for stem, figure in figures.items()}
    files |= {f"{stem}.csv": table.to_csv() for stem, table in (tables or {}).items() if table.rows}
    with writing(output, advice="name a directory that can be written"):
        # What an earlier report left, and this one no longer shows.
        gone = [output / f"{stem}.csv" for stem in tables or ()]
        for old in (*output.glob(f"figures/{name}-*.svg"), *gone):
            old.unlink(missing_ok=True)
        for file, content in files.items():
            write_atomically(output / file, content)
    return page


def _runs(paths: Sequence[Path]) -> list[contents.Run]:
    """Return what a page shows of the records of runs, each by a name of its own."""
    runs: dict[str, contents.Run] = {}
    loaded = [contents.Run("", file, load_record(file)) for file in record_files(paths)]
    for run in sorted(loaded, key=lambda one: one.record.get("kind") not in _STUDENTS):
        if run.record.get("kind") in (*_STUDENTS, "finetune", "evaluation", "bench"):
            for part in ("recipe", "metrics.student_start", "metrics.student_end", "versions", "machine"):
                run.part(part)  # a record that is broken is told before anything is drawn
            folder = run.file.parent.name
            name = look_up(run.record, "model", "name", kind=str) or folder
            name = free_name(f"{name}, {folder}" if name in runs else name, " ", runs)
            runs[name] = replace(run, name=name)
    return list(runs.values())


_STUDENTS = ("distillation", "initialisation", "demo")


def _plots(records: Sequence[Record], benches: Sequence[contents.Bench]) -> Iterator[Block]:
    """Yield plots of the mean over the tasks that all rows share, by size and by latency."""
    # An encoder may have a pooler for one of the two kinds of tasks alone, and so two sizes.
    for kind, tagging in (("texts", False), ("tagging", True)):
        groups = group(record for record in records if is_tagging(record.problem) == tagging)
        scores: dict[Row, dict[str, float]] = {row: {} for row, _ in groups}
        for (row, task), members in groups.items():
            if (one := cell(members)) is not None and one.percent:
                scores[row][task] = 100 * one.mean
        shared = sorted(set.intersection(*(set(found) for found in scores.values()))) if scores else []
        points = []
        for row, found in scores.items() if shared else ():
            label = row.label.removeprefix(f"{row.model}, ")
            size = groups[row, shared[0]][0].parameters
            mean = statistics.fmean(found[task] for task in shared)
            points.append(Point(row.model, float(size), mean, None, label))
        what = f"mean of {', '.join(shared)}, %"
        if len(points) > 2:  # of fewer, the tables have as much
            yield contents.size_chart(f"Size against score, {kind}", points, what)
        yield from contents.latency_charts(points, benches, what)


def _provenance(records: Sequence[Record], runs: Sequence[contents.Run]) -> list[Section]:
    sections = []
    commands = [record.made.command for record in records if record.made.command is not None]
    commands += [command for run in runs if isinstance(command := run.record.get("command"), str)]
    if commands:
        listing = Listing("Commands", contents.command_lines(commands), folded=False, language="sh")
        told = "Words in capitals stand for paths and seeds; models and data have their names, without their folders."
        sections.append(Section("Commands", (Text(told), listing)))
    if lines := contents.made_with(
        [*(vars(record.made) for record in records), *(run.record for run in runs)]
    ):
        sections.append(Section("Versions", (Listing("Versions", lines, folded=False),)))
    return sections
