"""What the report of a suite says, in sections: claims, what is kept, tables, charts, students, what is missing."""

from __future__ import annotations

import csv
import io
import json
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from minialbert.errors import UserError
from minialbert.experiments.suite.cells import Cell, Result, expand, find_results
from minialbert.experiments.suite.claims import (
    Compared,
    chance_marks,
    compare,
    judge,
    kept,
    result_of,
    seeds_of,
)
from minialbert.experiments.suite.schema import (
    Claim,
    Comparison,
    Suite,
    SuiteTable,
    TableRow,
    list_suites,
    split_side,
)
from minialbert.recipes.schema import without_places
from minialbert.report import paper as published
from minialbert.report import write_page
from minialbert.report.blocks import Block, Listing, Point, ScatterChart, Section, Text
from minialbert.report.sections import (
    Bench,
    Distilled,
    latency_charts,
    made_with,
    paper_chart,
    read_bench,
    recipe_listing,
    size_chart,
    training_sections,
)
from minialbert.report.tables import Difference, Table, Value
from minialbert.runs.directory import write_atomically, writing
from minialbert.runs.packed import is_run_file, pack_files, read_run_file
from minialbert.runs.progress import duration
from minialbert.runs.records import Cell as Measured
from minialbert.runs.records import known_task


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
        names = {known_task(suite.tasks[task].name), known_task(suite.tasks[task].label)}
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
        with_records: also take records, logs and attention maps along, packed and without models: all that another
            `--records` needs.

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
    """Copy what a suite goes on from: records, curves and maps behind them, and checksums of the teachers.

    Cells are packed, but for files that `output` has already, as a suite's own directory does.
    """
    files = [records / "teachers.json", *bench_records(records)]
    names = ("log.jsonl", "attention.json", "result.json")
    cells = {result.file.parent / name: None for result in results.values() for name in names}
    texts: dict[str, str] = {}
    for file in [*files, *cells]:
        target = output / file.relative_to(records)
        if not is_run_file(file) or (file.exists() and file.resolve() == target.resolve()):
            continue
        text = _without_places(read_run_file(file), file.name)
        if file in cells and not target.exists():
            texts[target.relative_to(output / "cells").as_posix()] = text
            continue
        with writing(target, advice="make room, then start the same command again"):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, text)
    pack_files(output / "cells", texts)


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
