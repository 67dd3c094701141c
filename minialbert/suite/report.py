"""The report of a suite: its tables beside the paper's, charts, and each claim with its numbers and a verdict."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UserError
from ..recipe_settings import without_places
from ..report import write_page
from ..report.plots import read_bench
from ..runs import write_atomically, writing
from .claims import Compared, chance_marks, compare, judge
from .records import Result, find_results
from .schema import Suite
from .sections import bench_records, suite_sections, summary_blocks
from .tables import distillation_table, suite_table


def write_suite_report(
    suite: Suite, records: Path, output: Path | None = None, *, with_records: bool = False
) -> str:
    """Put the records of a suite on one page.

    Args:
        suite: the suite.
        records: its output, or a folder with its records; benchmarks in `bench*` beside them, whose models are called
            like rows, add plots of latency.
        output: a directory for `report.md`, `report.html`, `claims.csv` and one CSV file per table; those of earlier
            calls are replaced.
        with_records: also copy records, logs and attention maps there, without models: all that another `--records`
            needs.

    Returns:
        The page as Markdown.

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
    compared = {
        claim.name: [compare(suite, one, results) for one in claim.comparisons] for claim in suite.claims
    }
    benches = [read_bench(file) for file in bench_records(records)]
    tables = {table.name: suite_table(suite, table, results, marks) for table in suite.tables}
    tables["distillation"] = distillation_table(suite, results)
    page = write_page(
        f"Suite {suite.name}",
        suite_sections(suite, compared, results, marks, tables, benches),
        output,
        name="report",
        summary=summary_blocks(suite, compared, results),
        tables=tables,
    )
    if output is not None:
        with writing(output / "claims.csv"):
            write_atomically(output / "claims.csv", _claims_csv(suite, compared))
        if with_records:
            _copy_records(results, records, output)
    return page


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


def _copy_records(results: Mapping[str, Result], records: Path, output: Path) -> None:
    """Copy what a suite goes on from: records, curves and maps behind them, and checksums of the teachers."""
    files = [records / "teachers.json", *bench_records(records)]
    names = ("log.jsonl", "attention.json", "result.json")
    files += [result.file.parent / name for result in results.values() for name in names]
    for file in files:
        target = output / file.relative_to(records)
        if file.is_file() and file.resolve() != target.resolve():
            with writing(target, advice="make room, then start the same command again"):
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(target, _without_places(file.read_text(encoding="utf-8"), file.name))


def _without_places(text: str, name: str) -> str:
    """Return a record as it may travel: without the folders of the machine that made it."""
    if name != "result.json":
        return text
    record = json.loads(text)
    recipe = record.get("recipe")
    if not isinstance(recipe, dict) or without_places(recipe) == recipe:
        return text
    return json.dumps({**record, "recipe": without_places(recipe)}, indent=2, ensure_ascii=False) + "\n"


__all__ = ["write_suite_report"]
