"""Tables of a suite: each row measured over its tasks, and below it the row of the paper that it stands for."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from decimal import Decimal

from ..errors import UserError
from ..progress import duration
from ..report import paper as published
from ..report.records import Cell as Measured
from ..report.tables import Difference, Table, Value
from .cells import expand
from .claims import Compared, compare, result_of, seeds_of
from .records import Result
from .schema import Comparison, Suite, SuiteTable, TableRow, split_side


def suite_table(
    suite: Suite, table: SuiteTable, results: Mapping[str, Result], marks: Mapping[str, str]
) -> Table:
    """Return one of a suite's tables.

    Args:
        suite: the suite.
        table: what it shows.
        results: the records of finished cells.
        marks: tasks that tell little.

    Returns:
        The table, with a row per row of the definition, measured or not, and the paper's rows between them.
    """
    printed = any(row.printed for row in table.rows)
    labels = [suite.tasks[task].label + ("‡" if task in marks else "") for task in table.tasks]
    columns = ["row", "tuned", "#params", *labels, "mean"]
    columns += [f"against {table.reference}"] if table.reference else []
    columns += ["paper: average"] if table.paper else []
    columns += ["paper"] if printed else []
    rows: list[tuple[Value, ...]] = []
    for row in table.rows:
        values = _measured(suite, table, row, results)
        values += [None] if table.paper else []
        values += [row.printed] if printed else []
        rows.append(tuple(values))
        if row.paper is not None:
            rows.append(_paper_row(suite, table, row, printed=printed))
    notes = [
        "Mean ± sample standard deviation (number of seeds), in percent; the mean over tasks needs all of them."
    ]
    if table.reference is not None:
        notes.append(
            f"Against {table.reference}: mean difference over pairs of one task and seed, {100 * suite.confidence:g} % "
            "interval in brackets."
        )
    notes += [f"‡ {suite.tasks[task].label}: {marks[task]}." for task in table.tasks if task in marks]
    if table.paper:
        notes.append("Paper rows are as printed; their average is over all columns of the paper.")
    return Table(table.title, tuple(columns), tuple(rows), (*notes, *table.notes))


def distillation_table(suite: Suite, results: Mapping[str, Result]) -> Table:
    """Return what each distillation came to on held-out text.

    Args:
        suite: the suite.
        results: the records of finished cells.

    Returns:
        The table; without rows where no distillation is done.
    """
    rows: list[tuple[Value, ...]] = []
    for cell in expand(suite):
        if not cell.is_distillation or cell.name not in results:
            continue
        record = results[cell.name].record
        metrics = record["metrics"]
        end = metrics.get("student_end") or metrics.get("student_start") or {}
        speed = record["training"].get("tokens_per_second")
        cosines = [value for key, value in end.items() if key.startswith("cosine_")]
        rows.append(
            (
                cell.row,
                int(record["model"]["encoder_parameters"]),
                str(results[cell.name].steps),
                _fixed(100 * end["mlm_accuracy"] if "mlm_accuracy" in end else None, 1),
                _fixed(end.get("mlm_loss"), 3),
                _fixed(end.get("output_kl"), 3),
                " / ".join(f"{value:.3f}" for value in cosines) or None,
                None if speed is None else f"{speed:,.0f}",
                duration(results[cell.name].seconds),
            )
        )
    columns = (
        "row", "#params", "steps", "masked tokens, %", "MLM loss", "output KL", "cosine by iteration",
        "tokens/s", "time",
    )  # fmt: skip
    return Table("Distillation, on held-out text", columns, tuple(rows))


def measured(suite: Suite, side: str, task: str, results: Mapping[str, Result]) -> Measured | None:
    """Return a row's score on a task over seeds.

    Args:
        suite: the suite.
        side: ROW or ROW/MODE.
        task: the task.
        results: the records of finished cells.

    Returns:
        Mean, spread and seeds; None where no seed is done.
    """
    found = {seed: result_of(results, side, task, seed) for seed in seeds_of(suite, side, task)}
    return _over_seeds({seed: result.points for seed, result in found.items() if result is not None})


def mean_over_tasks(
    suite: Suite, side: str, tasks: list[str], results: Mapping[str, Result]
) -> Measured | None:
    """Return a row's mean over tasks, over the seeds that have all of them; see `measured`."""
    means = {}
    for seed in seeds_of(suite, side, tasks[0]):
        found = [result_of(results, side, task, seed) for task in tasks]
        points = [result.points for result in found if result is not None]
        if len(points) == len(tasks):
            means[seed] = statistics.fmean(points)
    return _over_seeds(means)


def difference(one: Compared) -> Difference | None:
    """Return what a comparison came to as a value of a table; None without pairs."""
    return None if one.mean is None else Difference(one.mean, one.interval)


def _measured(suite: Suite, table: SuiteTable, row: TableRow, results: Mapping[str, Result]) -> list[Value]:
    name, mode = split_side(row.of)
    records = [
        result.record
        for key, result in results.items()
        if key.startswith(f"{name}/{mode}/") and key.count("/") == 2
    ]
    values: list[Value] = [
        name,
        suite.modes[mode].label,
        int(records[0]["model"]["encoder_parameters"]) if records else None,
        *(measured(suite, row.of, task, results) for task in table.tasks),
        mean_over_tasks(suite, row.of, table.tasks, results),
    ]
    if table.reference is not None:
        same = split_side(table.reference) == (name, mode)
        one = compare(suite, Comparison(a=row.of, b=table.reference, tasks=table.tasks), results)
        values.append(None if same else difference(one))
    return values


def _paper_row(suite: Suite, table: SuiteTable, row: TableRow, *, printed: bool) -> tuple[Value, ...]:
    _, mode = split_side(row.of)
    found = find_paper_row(table, row, suite.modes[mode].marks)
    columns = published.NER_COLUMNS if table.paper == "ner" else published.GLUE_COLUMNS
    scores: list[Value] = []
    for task in table.tasks:
        names = {published.known_task(suite.tasks[task].name), published.known_task(suite.tasks[task].label)}
        scores.append(
            next((found.scores[i] for i, column in enumerate(columns) if column.task in names), None)
        )
    shown = [score for score in scores if isinstance(score, Decimal)]
    mean = published.average(shown) if len(shown) == len(scores) else None
    difference: list[Value] = [None] if table.reference else []
    return (
        f"paper: {found.label}", found.source, found.params, *scores, mean, *difference, found.average,
        *([None] if printed else []),
    )  # fmt: skip


def find_paper_row(table: SuiteTable, row: TableRow, marks: str) -> published.PaperRow:
    """Return the row of the paper that a table's row names.

    Args:
        table: the table, which says in which of the paper's it is.
        row: the row.
        marks: the paper's marks of its way of tuning.

    Returns:
        The paper's row.

    Raises:
        UserError: if the paper has none of that name.
    """
    rows = published.ner_rows() if table.paper == "ner" else published.glue_rows()
    label = f"{row.paper} {marks}".strip()
    for one in rows:
        if one.label == label:
            return one
    names = ", ".join(one.label for one in rows)
    raise UserError(f"table {table.name}: the paper's {rows[0].source} has no row {label!r}; it has {names}")


def _over_seeds(points: Mapping[int, float]) -> Measured | None:
    if not points:
        return None
    values = [value / 100 for value in points.values()]
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Measured(statistics.fmean(values), sd, len(values), tuple(points))


def _fixed(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


__all__ = ["difference", "distillation_table", "find_paper_row", "mean_over_tasks", "measured", "suite_table"]
