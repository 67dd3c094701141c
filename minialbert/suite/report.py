"""The report of a suite: its tables beside the paper's, and each claim with its numbers and a verdict."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UserError
from ..progress import duration
from ..report.tables import Table, escape
from ..runs import write_atomically, writing
from .cells import expand
from .claims import Compared, chance_marks, compare, judge, kept
from .records import Result, find_results
from .schema import Claim, Suite
from .tables import distillation_table, signed, suite_table


def write_suite_report(
    suite: Suite, records: Path, output: Path | None = None, *, with_records: bool = False
) -> str:
    """Put the records of a suite on one Markdown page.

    Args:
        suite: the suite.
        records: its output, or a folder with its records.
        output: a directory for `report.md`, `claims.csv` and one CSV file per table; those of earlier calls are
            replaced.
        with_records: also copy records and logs there, without models: all that another `--records` needs.

    Returns:
        The page.

    Raises:
        UserError: if there is no record, if one does not fit the suite, or if `output` cannot be written.
    """
    results = find_results(suite, [records])
    if not results:
        raise UserError(
            f"{records} has no record of the suite {suite.name}: name the --output of minialbert suite run, or a "
            "folder with its cells/"
        )
    marks = chance_marks(suite, results)
    tables = {table.name: suite_table(suite, table, results, marks) for table in suite.tables}
    tables["distillation"] = distillation_table(suite, results)
    compared = {
        claim.name: [compare(suite, one, results) for one in claim.comparisons] for claim in suite.claims
    }
    parts = [
        _head(suite, results),
        _claims(suite, compared, results, marks),
        _reach(suite, results),
        *(_section(table) for table in tables.values()),
        _missing(suite, results),
        _made_with(results),
    ]
    page = "\n".join(part for part in parts if part)
    if output is not None:
        _write(output, page, tables, _claims_csv(suite, compared))
        if with_records:
            _copy_records(results, records, output)
    return page


def _head(suite: Suite, results: Mapping[str, Result]) -> str:
    cells = expand(suite)
    tuned = [cell for cell in cells if not cell.is_distillation]
    done = sum(cell.name in results for cell in tuned)
    lines = [f"# Suite {escape(suite.name)}", ""]
    lines += [escape(suite.description), ""] if suite.description else []
    lines.append(
        f"{done} of {len(tuned)} tunings and {len(results) - done} of {len(cells) - len(tuned)} students are done. "
        "Every row is distilled once; what stands behind ± is the spread over seeds of the tuning alone."
    )
    return "\n".join([*lines, ""])


def _claims(
    suite: Suite,
    compared: Mapping[str, Sequence[Compared]],
    results: Mapping[str, Result],
    marks: Mapping[str, str],
) -> str:
    if not suite.claims:
        return ""
    percent = f"{100 * suite.confidence:g} %"
    lines = ["## Claims", "", "| claim | verdict |", "|---|---|"]
    lines += [
        f"| {escape(claim.text)} | **{judge(claim, compared[claim.name])}** |" for claim in suite.claims
    ]
    lines += [
        "",
        f"A comparison says that a - b is more than a bound. It is held if the whole {percent} interval of the mean "
        "over pairs of cells (same task, same seed; Student's t) lies above the bound, reversed if all of it lies "
        f"below, and undecided otherwise; with fewer than {suite.min_pairs} pairs it is unfinished. A claim is held if "
        "each of its comparisons is, and reversed if one is; comparisons in brackets have no say. Pairs share their "
        "students, so the interval says nothing about other distillations of the same rows.",
        "",
    ]
    lines += [f"‡ {escape(suite.tasks[task].label)}: {escape(why)}." for task, why in marks.items()]
    lines += [""] if marks else []
    for claim in suite.claims:
        lines += _claim(suite, claim, compared[claim.name], results, marks)
    return "\n".join(lines)


def _claim(
    suite: Suite,
    claim: Claim,
    compared: Sequence[Compared],
    results: Mapping[str, Result],
    marks: Mapping[str, str],
) -> list[str]:
    lines = [f"### {escape(claim.text)}", ""]
    lines += [f"Paper: {escape(claim.paper)}", ""] if claim.paper else []
    lines += [
        "| a | b | said to exceed | a - b | pairs | by task | without ‡ | verdict |",
        "|---|---|---:|---:|---:|---|---:|---|",
    ]
    for comparison, one in zip(claim.comparisons, compared, strict=True):
        means = ", ".join(
            f"{escape(suite.tasks[task].label)}{'‡' if task in marks else ''} {value:+.1f}"
            for task, value in one.task_means().items()
        )
        marked = [task for task in comparison.tasks if task in marks]
        rest = "-"
        if marked and len(marked) < len(comparison.tasks):
            rest = _difference(compare(suite, comparison, results, without=marked))
        unit = " % of the time" if comparison.figure == "step-time" else ""
        a = comparison.a + (f", {comparison.label}" if comparison.label else "")
        cells = [
            escape(a),
            escape(comparison.b),
            f"{comparison.exceeds:+g}{unit}",
            _difference(one),
            f"{len(one.differences)} of {one.planned}",
            means or "-",
            rest,
            one.verdict if comparison.counts else f"({one.verdict})",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", f"Verdict: **{judge(claim, compared)}**", ""]


def _difference(one: Compared) -> str:
    return signed(one.mean, one.interval)


def _reach(suite: Suite, results: Mapping[str, Result]) -> str:
    keep = suite.reach
    if keep is None:
        return ""
    tasks = ", ".join(escape(suite.tasks[task].label) for task in keep.tasks)
    lines = [
        "## What is kept",
        "",
        f"Share of the mean of {escape(keep.against)} over {tasks}, by seed; {keep.share:g} % are asked of "
        f"{escape(keep.of)}.",
        "",
        "| row | kept | seeds | reached |",
        "|---|---:|---:|---|",
    ]
    for side in (keep.of, *keep.beside):
        one = kept(suite, keep, side, results)
        share = (
            "-"
            if one.share is None
            else f"{one.share:.1f} %" + (f" ± {one.sd:.1f}" if one.sd is not None else "")
        )
        reached = "unfinished" if one.reached is None else "yes" if one.reached else "no"
        lines.append(f"| {escape(side)} | {share} | {one.n} of {one.planned} | {reached} |")
    return "\n".join([*lines, ""])


def _section(table: Table) -> str:
    return f"## {escape(table.title)}\n\n{table.to_markdown()}" if table.rows else ""


def _missing(suite: Suite, results: Mapping[str, Result]) -> str:
    missing: dict[str, list[str]] = {}
    for cell in expand(suite):
        if cell.name not in results:
            missing.setdefault(f"{cell.row}/{cell.mode}", []).append(
                f"{cell.task}-{cell.seed}" if cell.task else ""
            )
    if not missing:
        return ""
    count = sum(map(len, missing.values()))
    lines = ["## Unfinished cells", "", f"{count} cells have no record.", ""]
    lines += [
        f"- {escape(side)}" + (f": {escape(', '.join(names))}" if any(names) else "")
        for side, names in missing.items()
    ]
    return "\n".join([*lines, ""])


def _made_with(results: Mapping[str, Result]) -> str:
    versions: dict[str, dict[str, None]] = {}
    machines: dict[str, None] = {}
    commits: dict[str, None] = {}
    for result in results.values():
        for package, version in (result.record.get("versions") or {}).items():
            versions.setdefault(str(package), {})[str(version)] = None
        machine = result.record.get("machine") or {}
        machines[", ".join(str(machine[key]) for key in ("processor", "device") if machine.get(key))] = None
        if result.record.get("commit"):
            commits[str(result.record["commit"])[:12]] = None
    seconds = sum(result.seconds for result in results.values())
    lines = [f"training in all: {duration(seconds)}, over all cells"]
    lines += [f"{package} {', '.join(sorted(versions[package]))}" for package in sorted(versions)]
    lines += [f"commit {', '.join(sorted(commits))}"] if commits else []
    lines += [f"machine: {machine}" for machine in sorted(machines) if machine]
    return "\n".join(["## Made with", "", *(f"- {escape(line)}" for line in lines), ""])


def _claims_csv(suite: Suite, compared: Mapping[str, Sequence[Compared]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        [
            "claim",
            "a",
            "b",
            "figure",
            "exceeds",
            "counts",
            "mean",
            "low",
            "high",
            "pairs",
            "planned",
            "verdict",
            "claim verdict",
        ]
    )
    for claim in suite.claims:
        verdict = judge(claim, compared[claim.name])
        for comparison, one in zip(claim.comparisons, compared[claim.name], strict=True):
            low, high = one.interval or (None, None)
            figures = ["" if value is None else f"{value:.4f}" for value in (one.mean, low, high)]
            writer.writerow(
                [
                    claim.name,
                    comparison.a,
                    comparison.b,
                    comparison.figure,
                    comparison.exceeds,
                    comparison.counts,
                ]
                + [*figures, len(one.differences), one.planned, one.verdict, verdict]
            )
    return file.getvalue()


def _write(output: Path, page: str, tables: Mapping[str, Table], claims: str) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / "report.md", page)
        write_atomically(output / "claims.csv", claims)
        for name, table in tables.items():
            if table.rows:
                write_atomically(output / f"{name}.csv", table.to_csv())
            else:  # of an earlier report, which report.md no longer shows
                (output / f"{name}.csv").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{output} cannot be written ({error.strerror or error}): name a directory"
        ) from error


def _copy_records(results: Mapping[str, Result], records: Path, output: Path) -> None:
    """Copy what a suite goes on from: records, the curves behind them, and checksums of the teachers."""
    files = [records / "teachers.json"]
    files += [
        result.file.parent / name for result in results.values() for name in ("log.jsonl", "result.json")
    ]
    for file in files:
        target = output / file.relative_to(records)
        if file.is_file() and file.resolve() != target.resolve():
            with writing(target, advice="make room, then start the same command again"):
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(target, file.read_text(encoding="utf-8"))


__all__ = ["write_suite_report"]
