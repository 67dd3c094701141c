"""Reports: many run records on one page, with tables beside the paper's rows, plots, curves and what made them."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from types import ModuleType
from typing import Any

from minialbert.data.task_types import is_tagging
from minialbert.errors import UserError
from minialbert.report.blocks import Block, Listing, Point, Section, Text
from minialbert.report.markdown import markdown_page
from minialbert.report.page import html_page
from minialbert.report.sections import (
    Bench,
    Run,
    command_lines,
    headline,
    latency_charts,
    made_with,
    read_bench,
    recipe_listing,
    size_chart,
    training_sections,
)
from minialbert.report.tables import (
    Table,
    distillation_table,
    entity_table,
    glue_table,
    ner_table,
    other_table,
)
from minialbert.runs.files import write_atomically, writing
from minialbert.runs.records import Record, cell, find_records, group, load_record, record_files


def report(
    paths: str | Path | Sequence[str | Path], output: str | Path | None = None, *, compare: bool = False
) -> str:
    """Put the records of runs into tables beside the paper's rows, or two runs side by side.

    The package itself can be called: `minialbert.report("runs/", "page/")`.

    Args:
        paths: records, run directories, or trees of them.
        output: a directory for the page, its tables and figures.
        compare: put two runs of one kind side by side instead.

    Returns:
        The page as Markdown.

    Raises:
        UserError: if there is no record, one cannot be used, or `output` cannot be written.
    """
    places = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    target = None if output is None else Path(output)
    if not compare:
        return write_report(places, target)
    from minialbert.report.compare import write_comparison

    if len(places) != 2:
        raise UserError(f"two runs can be compared, not {len(places)}")
    return write_comparison(places[0], places[1], target)


class _Report(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> str:
        return report(*args, **kwargs)


sys.modules[__name__].__class__ = _Report  # `minialbert.report` is both the room and the verb


def write_report(paths: Sequence[Path], output: Path | None = None) -> str:
    """Put all records below some paths on one page: fine-tunings, distillations, and benchmarks for the plots.

    Tables without a measured row are left out. If there is no record of fine-tuning or distillation, if one cannot be
    used, or if the directory cannot be written, it is a `UserError`.

    Args:
        paths: records, run directories, or trees of them.
        output: a directory for `report.md`, `report.html`, one CSV file per table and the charts as
            `figures/report-*.svg`; reports of earlier calls in it are replaced.

    Returns:
        The page as Markdown.
    """
    records = find_records(paths)
    runs, benches = _others(paths)
    if not records and not runs:
        named = ", ".join(str(path) for path in paths)
        raise UserError(
            f"no record of fine-tuning or distillation below {named}: run minialbert finetune or distill, and name its "
            "output directory"
        )
    tables = {
        "glue": glue_table(records),
        "ner": ner_table(records),
        "entities": entity_table(records),
        "other": other_table(records),
        "distillation": distillation_table(records),
    }
    counted = [record for record in records if record.selected]
    sections = [Section(table.title, (table,)) for table in tables.values() if table.rows]
    sections.append(Section("Size, speed and score", tuple(_plots(counted, benches))))
    sections.append(Section("Distillation runs", (), tuple(training_sections(runs))))
    sections.append(Section("Hyper-parameters", tuple(recipe_listing(run.name, run.record) for run in runs)))
    sections += _provenance(counted, runs)
    sections = [section for section in sections if section.blocks or section.sections]
    told = f"Fine-tunings: {len(counted)}. Distillations: {len(runs)}."
    first = headline(runs[0]) if len(runs) == 1 else ""
    summary = ([Text(first, strong=True)] if first else []) + [Text(told)]
    return write_page("Results", sections, output, name="report", summary=summary, tables=tables)


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

    Args:
        title: of the page.
        sections: its parts.
        output: the directory; None writes nothing. One that cannot be written is a `UserError`.
        name: of the files, without their endings.
        summary: what stands before the sections.
        tables: CSV files by name; one without rows is removed if an earlier report left it.

    Returns:
        The page as Markdown.
    """
    page = markdown_page(title, sections, summary=summary)
    if output is None:
        return page
    figures: dict[str, str] = {}
    html = html_page(title, sections, summary=summary, figures=figures)
    with writing(output, advice="name a directory"):
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / f"{name}.md", page)
        write_atomically(output / f"{name}.html", html)
        for old in output.glob(f"figures/{name}-*.svg"):  # of an earlier report
            old.unlink()
        for stem, figure in figures.items():
            (output / "figures").mkdir(exist_ok=True)
            write_atomically(output / "figures" / f"{name}-{stem}.svg", figure)
        for stem, table in (tables or {}).items():
            if table.rows:
                write_atomically(output / f"{stem}.csv", table.to_csv())
            else:  # of an earlier report, which the page no longer shows
                (output / f"{stem}.csv").unlink(missing_ok=True)
    return page


def _others(paths: Sequence[Path]) -> tuple[list[Run], list[Bench]]:
    """Return the distillations and benchmarks among the records."""
    runs: dict[str, Run] = {}
    benches = []
    for file in record_files(paths):
        record = load_record(file)
        if record.get("kind") in ("distillation", "initialisation", "demo"):
            run = Run("", file, record)
            for part in ("recipe", "metrics.student_start", "metrics.student_end", "versions", "machine"):
                run.part(part)  # a record that is broken is told before anything is drawn
            found = run.part("model").get("name")
            base = found if isinstance(found, str) and found else file.parent.name
            name = next(one for one in chain([base], (f"{base} {at}" for at in count(2))) if one not in runs)
            runs[name] = replace(run, name=name)
        elif record.get("kind") == "bench":
            benches.append(read_bench(file))
    return list(runs.values()), benches


def _plots(records: Sequence[Record], benches: Sequence[Bench]) -> Iterator[Block]:
    """Yield plots of the mean over the tasks that all rows share, by size and by latency."""
    # An encoder may have a pooler for one of the two kinds of tasks alone, and so two sizes.
    for kind, tagging in (("texts", False), ("tagging", True)):
        groups = group(record for record in records if is_tagging(record.problem) == tagging)
        cells = {key: cell(members) for key, members in groups.items()}
        rows = dict.fromkeys(row for row, _ in groups)
        shared = [
            task
            for task in sorted({task for _, task in groups})
            if all((one := cells.get((row, task))) and one.percent for row in rows)
        ]
        points = []
        for row in rows if shared else ():
            scores = [100 * one.mean for task in shared if (one := cells[row, task]) is not None]
            label = row.label.removeprefix(f"{row.model}, ")
            size = groups[row, shared[0]][0].parameters
            points.append(Point(row.model, float(size), statistics.fmean(scores), None, label))
        if points:
            what = f"mean of {', '.join(shared)}, %"
            yield size_chart(f"Size against score, {kind}", points, what)
            yield from latency_charts(points, benches, what)


def _provenance(records: Sequence[Record], runs: Sequence[Run]) -> list[Section]:
    sections = []
    commands = [record.command for record in records if record.command is not None]
    commands += [run.record["command"] for run in runs if isinstance(run.record.get("command"), str)]
    if commands:
        listing = Listing("Commands", command_lines(commands), folded=False, language="sh")
        note = Text("Words in capitals stand for paths and seeds.")
        sections.append(Section("Commands", (note, listing)))
    made = [{"versions": one.versions, "commit": one.commit, "machine": one.machine} for one in records]
    if lines := made_with([*made, *(run.record for run in runs)]):
        sections.append(Section("Versions", (Listing("Versions", lines, folded=False),)))
    return sections
