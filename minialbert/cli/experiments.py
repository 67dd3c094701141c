"""The verbs about suites: run, status and report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minialbert.cli.shared import JsonFlag, Verb, Verbs, interruptible, option, print_json, print_table, say
from minialbert.errors import UserError

if TYPE_CHECKING:
    from minialbert.experiments.suite.cells import Cell
    from minialbert.experiments.suite.run import Work
    from minialbert.experiments.suite.schema import Suite

suite_app = typer.Typer(
    cls=Verbs, help="Run many recipes as one experiment, and test claims.", no_args_is_help=True
)

_EXAMPLE = "minialbert suite {} miniature"
_SuiteName = Annotated[str, typer.Argument(help="miniature, paper, sharing, or a YAML file of your own.")]
_Records = Annotated[Path | None, option("Folder with records of cells that need not run again.")]
_Only = Annotated[list[str] | None, option("Groups, rows, or globs as in 'small-*/full/*', comma-separated.")]
KeepStudents = StrEnum("KeepStudents", ["needed", "all"])


@suite_app.command(
    "run", cls=Verb, epilog=_EXAMPLE.format("run") + " --teacher TEACHER --data data/ --output suite/"
)
def suite_run(
    suite: _SuiteName,
    data: Annotated[Path, option("Folder with the tasks and corpora that the suite names.")],
    output: Annotated[Path, option("Folder for the suite.")],
    teacher: Annotated[list[str] | None, option("Directory or hub id; NAME=DIRECTORY of several.")] = None,
    only: _Only = None,
    jobs: Annotated[int, option("Cells to run at a time; they share cores and GPUs.", min=1)] = 1,
    records: _Records = None,
    keep_models: Annotated[KeepStudents, option("Students to keep on disk.")] = KeepStudents.needed,
    dry_run: Annotated[bool, option("List the cells and their time, and stop.", "--dry-run")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run the cells of a suite that have no record yet."""
    from minialbert.experiments.suite.run import plan_work, run_suite
    from minialbert.experiments.suite.schema import load_suite
    from minialbert.experiments.suite.time_left import time_left

    loaded = load_suite(suite)
    teachers = _teachers(loaded, teacher or [])
    if dry_run:
        work = plan_work(loaded, teachers=teachers, output=output, records=records, only=only or [])
        left = time_left(loaded, work.jobs, work.results).told(jobs)
        if as_json:
            print_json({"cells": _listed(work), "left": left})
            return
        for line in _listed(work):
            say(f"{line['state']:<12} {line['group']:<12} {line['cell']}")
        say(f"suite {loaded.name}: {len(work.jobs)} cells to run; {left if work.jobs else 'nothing left'}")
        return
    with interruptible("the same command goes on; finished cells are not run again"):
        results = run_suite(
            loaded, teachers=teachers, data=data, output=output, records=records, only=only or [], jobs=jobs,
            keep_models=keep_models.value, progress=not as_json,  # type: ignore[arg-type]
        )  # fmt: skip
    if as_json:
        print_json({name: str(result.file) for name, result in results.items()})
        return
    from minialbert.experiments.suite.page import write_suite_report

    try:
        write_suite_report(loaded, output, output)
        told = f"page: {output / 'report.html'}"
    except UserError as error:  # its cells are finished all the same
        told = f"no page: {error}"
    say(f"{len(results)} records in {output / 'cells'}; {told}")


@suite_app.command("status", cls=Verb, epilog=_EXAMPLE.format("status") + " --records suite/")
def suite_status(
    suite: _SuiteName,
    records: Annotated[list[Path], option("Folder of the suite or records; a second: finished cells.")],
    only: _Only = None,
    jobs: Annotated[int, option("Cells to run at a time, for the estimate.", min=1)] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Show which cells of a suite are done and which are missing."""
    from minialbert.experiments.suite.run import plan_work
    from minialbert.experiments.suite.schema import load_suite
    from minialbert.experiments.suite.time_left import time_left

    loaded = load_suite(suite)
    if len(records) > 2:
        raise UserError(f"--records: expected one folder or two, found {len(records)}")
    finished = records[1] if len(records) == 2 else None
    work = plan_work(loaded, teachers=None, output=records[0], records=finished, only=only or [])

    def told(todo: Sequence[Cell]) -> str:
        return time_left(loaded, todo, work.results).told(jobs) if todo else "nothing left"

    left, groups = told(work.jobs), list[dict[str, str | int]]()
    for name in dict.fromkeys(cell.group for cell in work.asked):
        cells = [cell for cell in work.asked if cell.group == name]
        count = sum(cell.name in work.results for cell in cells)
        todo = told([cell for cell in work.jobs if cell.group == name])
        groups.append({"group": name, "done": count, "cells": len(cells), "left": todo})
    rows: dict[tuple[str, str], list[str]] = {}
    for cell in work.asked:
        rows.setdefault((cell.row, cell.mode), []).append(cell.name)
    lacking = {key: [name for name in names if name not in work.results] for key, names in rows.items()}
    done = {key: len(names) - len(lacking[key]) for key, names in rows.items()}
    if as_json:
        counts = [
            {"row": key[0], "what": key[1], "done": done[key], "cells": len(names)}
            for key, names in rows.items()
        ]
        missing = [cell.name for cell in work.pending]
        print_json({"suite": loaded.name, "rows": counts, "groups": groups, "missing": missing, "left": left})
        return
    lines = []
    for key, names in lacking.items():
        shown = ", ".join(name.rpartition("/")[2] for name in names[:4])
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        lines.append((*key, f"{done[key]} of {len(rows[key])}", shown + more))
    print_table(("row", "what", "done", "missing"), lines)
    for group in groups:
        say(f"{group['group']}: {group['done']} of {group['cells']} cells are done; {group['left']}")
    say(f"in all: {len(work.asked) - len(work.pending)} of {len(work.asked)} cells are done; {left}")


@suite_app.command("report", cls=Verb, epilog=_EXAMPLE.format("report") + " --records suite/ --output page/")
def suite_report(
    suite: _SuiteName,
    records: Annotated[Path, option("Folder of the suite, or of its records.")],
    output: Annotated[Path | None, option("Folder for the page and the tables as CSV.")] = None,
    with_records: Annotated[bool, option("Copy records and logs there too.", "--with-records")] = False,
) -> None:
    """Put the records of a suite into tables, and test its claims."""
    from minialbert.experiments.suite.page import write_suite_report
    from minialbert.experiments.suite.schema import load_suite

    if with_records and output is None:
        raise UserError("--with-records copies to the directory of the report: give --output too")
    page = write_suite_report(load_suite(suite), records, output, with_records=with_records)
    if output is None:
        sys.stdout.write(page)
    else:
        say(f"report in {output / 'report.md'}, as a page in {output / 'report.html'}")


@suite_app.command("ls", cls=Verb, epilog="minialbert suite ls")
def suite_ls() -> None:
    """List the shipped suites."""
    from minialbert.experiments.suite.cells import expand
    from minialbert.experiments.suite.schema import list_suites, load_suite

    suites = ((name, load_suite(name)) for name in list_suites())
    rows = ((name, loaded.description, str(len(expand(loaded)))) for name, loaded in suites)
    print_table(("suite", "what", "cells"), rows)


def _teachers(suite: Suite, given: list[str]) -> dict[str, str]:
    """Return the teachers by name; one without a name is the suite's first."""
    found: dict[str, str] = {}
    for one in given:
        name, equals, where = one.partition("=")
        if not equals or name not in suite.teachers:
            if not suite.teachers:
                raise UserError(
                    f"--teacher {one}: the suite {suite.name} takes none, its recipes name their own"
                )
            name, where = suite.teachers[0], one
        if name in found:
            raise UserError(
                f"--teacher: two are given for {name}; the suite {suite.name} has {', '.join(suite.teachers)}, named "
                "as in --teacher NAME=DIR"
            )
        found[name] = where
    return found


def _listed(work: Work) -> list[dict[str, str]]:
    states: dict[Cell, str] = {}
    for cell in work.jobs:
        again = cell not in work.pending and cell.name in work.results
        states[cell] = "to run again" if again else "to run"
    for cells, state in ((work.asked, "done"), (work.left_out, "no teacher")):
        for cell in cells:
            states.setdefault(cell, state)
    return [{"cell": cell.name, "group": cell.group, "state": state} for cell, state in states.items()]
