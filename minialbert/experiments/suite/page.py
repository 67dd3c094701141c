"""The page of a suite: each claim with its numbers and a verdict, tables beside the paper's, charts, what is left."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path

from minialbert.errors import UserError
from minialbert.experiments.pool import ADVICE
from minialbert.experiments.suite.cells import Cell, Result, expand, find_results
from minialbert.experiments.suite.claims import Compared, chance_marks, compare, judge, kept, means_by_seed
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
from minialbert.report import sections as contents
from minialbert.report import write_page
from minialbert.report.blocks import Bar, BarChart, Block, Listing, Point, ScatterChart, Section, Text
from minialbert.report.sections import Run
from minialbert.report.tables import Difference, Table, Value, show
from minialbert.runs.files import to_json, write_atomically, writing
from minialbert.runs.packed import is_run_file, pack_files, read_run_file
from minialbert.runs.progress import duration
from minialbert.runs.records import Cell as Measured
from minialbert.runs.records import grouped, known_task, mean_and_sd

_BENCHES = "bench*/result.json"  # the benchmarks beside a suite's records


def write_suite_report(
    suite: Suite, records: Path, output: Path | None = None, *, with_records: bool = False
) -> str:
    """Return a page with the records of a suite as Markdown; no record, or one that does not fit, is a `UserError`.

    The records are the suite's output, or a folder with them; benchmarks in `bench*` beside them, whose models are
    called like rows, add plots of latency. A directory as output gets `report.md`, `report.html`, `claims.csv` and one
    CSV file per table, in place of those of earlier calls; `with_records` also copies records, logs and attention maps
    there, without models: all that another `--records` needs.
    """
    results = find_results(suite, [records])
    if not results:
        advice = "name the --output of minialbert suite run, or a folder with its cells/"
        raise UserError(f"{records} has no record of the suite {suite.name}: {advice}")
    page = _Page(suite, results, records)
    title = f"Suite {suite.name}"
    text = write_page(
        title, page.sections(), output, name="report", summary=page.summary(), tables=page.tables
    )
    if output is not None and with_records:
        _copy_records(results, records, output)
    return text


class _Page:
    """What the page of a suite says, from its definition and its records."""

    def __init__(self, suite: Suite, results: Mapping[str, Result], records: Path) -> None:
        self._suite, self._results = suite, results
        self._cells = expand(suite)
        self._students = [cell for cell in self._cells if cell.is_distillation]
        self._marks = chance_marks(suite, results)  # tasks that tell little, with the reason
        self._benches = [contents.read_bench(file) for file in sorted(records.glob(_BENCHES))]
        self._compared = {
            claim.name: [compare(suite, one, results) for one in claim.comparisons] for claim in suite.claims
        }
        self.tables = {table.name: self._table(table) for table in suite.tables}
        self.tables |= {"distillation": self._distillations(), "claims": self._comparisons()}

    def summary(self) -> list[Block]:
        """Return what stands at the head of the page: what is kept, the verdicts, and how much is done."""
        made, claims = len(self._distilled()), self._suite.claims
        done, tunings = len(self._results) - made, len(self._cells) - len(self._students)
        what = (
            f"{done} of {tunings} tunings and {made} of {len(self._students)} students are done. Every student was "
            "distilled once; ± is the standard deviation over seeds of the tuning."
        )
        verdicts = Counter(self._verdict(claim).partition(",")[0] for claim in claims)
        found = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
        told = [self._kept(), f"Of {len(claims)} claims: {found}." if claims else ""]
        ran = [[bool(one.differences) for one in self._compared[claim.name]] for claim in claims]
        counts = zip(claims, (f"{sum(one)} of {len(one)}" for one in ran), strict=True)
        rows = tuple((one.text, self._verdict(one), count, one.caveat or None) for one, count in counts)
        head: list[Block] = [Text(" ".join(told).strip(), strong=True)] if any(told) else []
        if rows:
            head.append(Table("Claims", ("claim", "verdict", "comparisons that ran", "caveat"), rows))
        return [*head, *self._forest(), Text(f"{self._suite.description} {what}".strip())]

    def _kept(self) -> str:
        """Return in words what share of its reference's mean a row keeps; nothing where that is not known."""
        keep = self._suite.reach
        if keep is None or (share := kept(self._suite, keep, keep.of, self._results).share) is None:
            return ""
        sides = (keep.of, keep.against)
        sizes = (self._tunings(side)[0].record["model"]["encoder_parameters"] for side in sides)
        names = [f"{side} ({size / 1e6:.1f} M parameters)" for side, size in zip(sides, sizes, strict=True)]
        return f"{names[0]} keeps {share:.1f} % of the mean of {names[1]} over {len(keep.tasks)} tasks."

    def _forest(self) -> Iterator[BarChart]:
        """Yield the intervals of the comparisons that count, each against its bound."""
        bars = tuple(
            Bar(f"{claim.text.partition(' ')[0]} {said.a} against {said.b}", one.mean,
                f"{one.verdict} {show(difference(one))}", one.interval, said.exceeds, one.verdict.partition(" ")[0])
            for claim in self._suite.claims
            for said, one in self._pairs(claim)
            if said.counts and said.figure == "score" and one.mean is not None and one.interval is not None
        )  # fmt: skip
        if bars:
            yield BarChart("Measured difference in points, its interval, and the bound of the claim", bars)

    def sections(self) -> list[Section]:
        """Return the sections of the page."""
        tables = [Section(table.title, (self.tables[table.name],)) for table in self._suite.tables]
        runs = [self._charts(), self._distillation(), self._settings(), self._commands()]
        sections = [self._claims(), self._reach(), *tables, *runs, self._missing(), self._made_with()]
        return [section for section in sections if section.blocks or section.sections]

    def _comparisons(self) -> Table:
        """Return a row per comparison."""
        columns = "claim,a,b,figure,exceeds,counts,mean,low,high,pairs,planned,verdict,claim verdict"
        rows: list[tuple[Value, ...]] = []
        for claim in self._suite.claims:
            verdict = judge(claim, self._compared[claim.name])
            for said, one in self._pairs(claim):
                what = (claim.name, said.a, said.b, said.figure, Decimal(str(said.exceeds)), str(said.counts))
                figures = (one.mean, *(one.interval or (None, None)))
                shown = (None if value is None else Decimal(f"{value:.4f}") for value in figures)
                rows.append((*what, *shown, len(one.differences), one.planned, one.verdict, verdict))
        return Table("Claims", tuple(columns.split(",")), tuple(rows))

    # Claims

    def _pairs(self, claim: Claim) -> Iterator[tuple[Comparison, Compared]]:
        return zip(claim.comparisons, self._compared[claim.name], strict=True)

    def _claims(self) -> Section:
        suite = self._suite
        if not suite.claims:
            return Section("Claims", ())
        rule = (
            "Each comparison tests whether A beats B by more than a bound. It is held if the whole "
            f"{100 * suite.confidence:g} % interval of the mean difference over tasks lies above the bound, reversed "
            "if all of it lies below, and undecided otherwise. The interval comes from how the differences of each "
            "task scatter over seeds (pairs of the same task and seed; degrees of freedom after Welch and "
            f"Satterthwaite). With fewer than two pairs of a task, or {suite.min_pairs} in all, a comparison is "
            "unfinished; while pairs are missing, its verdict is interim. A claim is held if each of its comparisons "
            "is, reversed if one is, and unfinished as long as one is. Comparisons in brackets do not count towards "
            "the verdict. The interval does not cover other tasks, nor a second distillation of the same row; and at "
            "this level one verdict in twenty may be wrong."
        )
        told = [Text(f"‡ {suite.tasks[task].label}: {why}.") for task, why in self._marks.items()]
        return Section("Claims", (Text(rule), *told), tuple(map(self._claim, suite.claims)))

    def _claim(self, claim: Claim) -> Section:
        columns = (
            "A", "B", "bound", "A − B, points", "pairs", "by task", "without those marked ‡", "verdict",
        )  # fmt: skip
        rows: list[tuple[Value, ...]] = []
        for said, one in self._pairs(claim):
            a = said.a + (f", {said.label}" if said.label else "")
            bound = f"{said.exceeds:+g}" + (" % of the time" if said.figure == "step-time" else "")
            pairs = f"{len(one.differences)} of {one.planned}"
            means = ", ".join(f"{self._label(task)} {value:+.1f}" for task, value in one.task_means().items())
            verdict = one.verdict + (", interim" if one.interim else "")
            verdict = verdict if said.counts else f"({verdict})"
            marked = [task for task in said.tasks if task in self._marks]
            others = None
            if 0 < len(marked) < len(said.tasks):
                others = difference(compare(self._suite, said, self._results, without=marked))
            rows.append((a, said.b, bound, difference(one), pairs, means or None, others, verdict))
        head = [Text(f"Paper: {claim.paper}")] if claim.paper else []
        judged = Text(f"Verdict: {self._verdict(claim)}. {claim.caveat}".strip(), strong=True)
        return Section(claim.text, (*head, Table(claim.text, columns, tuple(rows)), judged))

    def _verdict(self, claim: Claim) -> str:
        verdict = judge(claim, self._compared[claim.name])
        interim = any(one.interim for said, one in self._pairs(claim) if said.counts)
        return verdict + (", interim" if interim and verdict != "unfinished" else "")

    def _reach(self) -> Section:
        keep = self._suite.reach
        if keep is None:
            return Section("What is kept", ())
        rows: list[tuple[Value, ...]] = []
        for side in (keep.of, *keep.beside):
            one = kept(self._suite, keep, side, self._results)
            spread = f" ± {one.sd:.1f}" if one.sd is not None else ""
            share = None if one.share is None else f"{one.share:.1f} %{spread}"
            reached = "unfinished" if one.reached is None else "yes" if one.reached else "no"
            rows.append((side, share, f"{one.n} of {one.planned}", reached))
        what = f"Share of the mean of {keep.against} over {self._labels(keep.tasks)}, by seed."
        table = Table("What is kept", ("row", "kept", "seeds", "reached"), tuple(rows))
        return Section("What is kept", (Text(f"{what} Target for {keep.of}: {keep.share:g} %."), table))

    # Tables

    def _table(self, table: SuiteTable) -> Table:
        """Return one of the suite's tables, with a row per row of the definition and the paper's rows between them."""
        columns = {"row": "row", "tuned": "tuned", "size": "#params"}
        columns |= {f"score {task}": self._label(task) for task in table.tasks} | {"mean": "mean"}
        columns |= {"difference": f"against {table.reference}"} if table.reference else {}
        columns |= {"average": "paper: average"} if table.paper else {}
        columns |= {"printed": "paper"} if any(row.printed for row in table.rows) else {}
        found: list[dict[str, Value]] = []
        absent = [row.of for row in table.rows if not self._tunings(row.of)]
        for row in table.rows:
            found += [] if row.of in absent else [self._measured_row(table, row)]
            if row.paper is not None:
                found.append(_paper_row(self._suite, table, row))
        rows = tuple(tuple(one.get(column) for column in columns) for one in found)
        told = "Mean ± sample standard deviation (number of seeds), in percent; the mean over tasks needs all of them."
        notes = [told]
        if table.reference is not None:
            interval = f"{100 * self._suite.confidence:g} % interval in brackets"
            notes.append(
                f"Against {table.reference}: mean difference over pairs of one task and seed, {interval}."
            )
        marked = [task for task in table.tasks if task in self._marks]
        notes += [f"‡ {self._suite.tasks[task].label}: {self._marks[task]}." for task in marked]
        notes += [f"Not run: {', '.join(absent)}."] if absent else []
        if table.paper:
            notes.append("Paper rows are as printed; their average is over all columns of the paper.")
        return Table(table.title, tuple(columns.values()), rows, (*notes, *table.notes))

    def _measured_row(self, table: SuiteTable, row: TableRow) -> dict[str, Value]:
        suite, results, (name, mode) = self._suite, self._results, split_side(row.of)
        values: dict[str, Value] = {"row": name, "tuned": suite.modes[mode].label, "printed": row.printed}
        if records := self._tunings(row.of):
            values["size"] = int(records[0].record["model"]["encoder_parameters"])
        for column, tasks in (("mean", table.tasks), *((f"score {task}", [task]) for task in table.tasks)):
            values[column] = measured(suite, row.of, tasks, results)
        if table.reference is not None and split_side(table.reference) != (name, mode):
            said = Comparison(a=row.of, b=table.reference, tasks=table.tasks)
            values["difference"] = difference(compare(suite, said, results))
        return values

    def _distillations(self) -> Table:
        """Return what each distillation came to on held-out text."""
        rows: list[tuple[Value, ...]] = []
        for row, result in self._distilled():
            end = result.end()
            speed = result.record["training"].get("tokens_per_second")
            cosines = [f"{value:.3f}" for key, value in end.items() if key.startswith("cosine_")]
            accuracy = f"{100 * end['mlm_accuracy']:.1f}" if "mlm_accuracy" in end else None
            losses = (f"{end[name]:.3f}" if name in end else None for name in ("mlm_loss", "output_kl"))
            size = int(result.record["model"]["encoder_parameters"])
            rows.append((
                row, size, str(result.steps), accuracy, *losses, " / ".join(cosines) or None,
                None if speed is None else f"{speed:,.0f}", duration(result.seconds),
            ))  # fmt: skip
        columns = (
            "row", "#params", "steps", "masked tokens, %", "MLM loss", "output KL", "cosine by iteration",
            "tokens/s", "time",
        )  # fmt: skip
        return Table("Distillation, on held-out text", columns, tuple(rows))

    def _tunings(self, side: str) -> list[Result]:
        start = "/".join(split_side(side)) + "/"
        return [result for name, result in self._results.items() if name.startswith(start)]

    def _distilled(self) -> list[tuple[str, Result]]:
        return [(cell.row, self._results[cell.name]) for cell in self._students if cell.name in self._results]

    def _label(self, task: str) -> str:
        return self._suite.tasks[task].label + ("‡" if task in self._marks else "")

    def _labels(self, tasks: list[str]) -> str:
        return ", ".join(self._suite.tasks[task].label for task in tasks)

    # What else is told

    def _charts(self) -> Section:
        parts = tuple(part for table in self._suite.tables if (part := self._charts_of(table)).blocks)
        shown = [one.title for part in parts for one in part.blocks if isinstance(one, ScatterChart | Table)]
        timed = any(title.startswith("Latency") for title in shown)
        advice = "No latency was measured: minialbert bench --model ROW=MODEL --output RECORDS/bench adds it."
        return Section("Size, speed and score", (Text(advice),) if parts and not timed else (), parts)

    def _charts_of(self, table: SuiteTable) -> Section:
        points = []
        for row in table.rows:
            name, mode = split_side(row.of)
            records = self._tunings(row.of)
            mean = measured(self._suite, row.of, table.tasks, self._results)
            if mean is None or not records:
                continue
            size = float(records[0].record["model"]["encoder_parameters"])
            sd = None if mean.sd is None else 100 * mean.sd
            points.append(Point(name, size, 100 * mean.mean, sd, self._suite.modes[mode].label))
        # Rows of one size differ in nothing that is plotted.
        if not points or (len({point.x for point in points}) < 2 and not table.paper):
            return Section(table.title, ())
        what = f"mean of {self._labels(table.tasks)}, %"
        sizes = contents.size_chart(f"{table.title}: size against score", points, what)
        paper = [contents.paper_chart(_paper_rows(table))] if table.paper else []
        return Section(table.title, (sizes, *contents.latency_charts(points, self._benches, what), *paper))

    def _distillation(self) -> Section:
        table = self.tables["distillation"]
        runs = [Run(row, result.file, result.record) for row, result in self._distilled()]
        sections = tuple(contents.training_sections(runs))
        return Section("Distillation", (table,) if table.rows else (), sections)

    def _settings(self) -> Section:
        """Return the resolved recipes: of every student, and of one tuning of each kind."""
        listings: dict[str, Listing] = {}
        for cell in self._cells:
            kind = cell.row if cell.is_distillation else f"tuning, {cell.mode}"
            if cell.name in self._results and kind not in listings:
                title = kind if cell.is_distillation else f"{kind} (of {cell.name})"
                listings[kind] = contents.recipe_listing(title, self._results[cell.name].record)
        return Section("Hyper-parameters", tuple(listings.values()))

    def _commands(self) -> Section:
        suite = self._suite
        teachers = " ".join(f"--teacher {shlex.quote(name)}=TEACHER" for name in suite.teachers)
        name = suite.name if suite.name in list_suites() else f"{shlex.quote(suite.name)}.yaml"
        run = f"minialbert suite run {name} {teachers} --data DATA --output RUNS"
        more = f"minialbert suite run {name} --only GROUP --records RECORDS ...  # what RECORDS lacks"
        report = f"minialbert suite report {name} --records RUNS --output REPORT --with-records"
        lines = (" ".join(run.split()), more, report)
        return Section("Commands", (Listing("Commands", lines, folded=False, language="sh"),))

    def _missing(self) -> Section:
        absent = [cell for cell in self._cells if cell.name not in self._results]
        if not absent:
            return Section("Unfinished cells", ())
        missing = grouped((f"{cell.row}/{cell.mode}", cell) for cell in absent)
        rows = tuple((side, str(len(cells)), _tasks_and_seeds(cells)) for side, cells in missing.items())
        table = Table("Unfinished cells", ("row", "cells", "tasks: seeds"), rows)
        return Section("Unfinished cells", (Text(f"{len(absent)} cells have no record."), table))

    def _made_with(self) -> Section:
        seconds = sum(result.seconds for result in self._results.values())
        lines = contents.made_with(result.record for result in self._results.values())
        told = (f"training in all: {duration(seconds)}, over all cells", *lines)
        return Section("Made with", (Listing("Made with", told, folded=False),))


def measured(suite: Suite, side: str, tasks: list[str], results: Mapping[str, Result]) -> Measured | None:
    """Return a row's mean over tasks, over the seeds that have all of them; None where there is none."""
    means = {seed: mean / 100 for seed, mean in means_by_seed(suite, side, tasks, results).items()}
    return Measured(*mean_and_sd(list(means.values())), len(means), tuple(means)) if means else None


def find_paper_row(table: SuiteTable, row: TableRow, marks: str) -> published.PaperRow:
    """Return the row of the paper that a table's row names, with the paper's marks of its way of tuning."""
    rows = _paper_rows(table)
    label = f"{row.paper} {marks}".strip()
    for one in rows:
        if one.label == label:
            return one
    names = ", ".join(one.label for one in rows)
    raise UserError(f"table {table.name}: the paper's {rows[0].source} has no row {label!r}; it has {names}")


def _paper_row(suite: Suite, table: SuiteTable, row: TableRow) -> dict[str, Value]:
    found = find_paper_row(table, row, suite.modes[split_side(row.of)[1]].marks)
    columns = published.NER_COLUMNS if table.paper == "ner" else published.GLUE_COLUMNS
    scores: dict[str, Decimal] = {}
    for task in table.tasks:
        names = {known_task(suite.tasks[task].name), known_task(suite.tasks[task].label)}
        score = next((found.scores[i] for i, column in enumerate(columns) if column.task in names), None)
        scores |= {} if score is None else {f"score {task}": score}
    mean = published.average(list(scores.values())) if len(scores) == len(table.tasks) else None
    told = {"row": f"paper: {found.label}", "tuned": found.source, "size": found.params}
    return {**told, **scores, "mean": mean, "average": found.average}


def _paper_rows(table: SuiteTable) -> tuple[published.PaperRow, ...]:
    return tuple(published.ner_rows() if table.paper == "ner" else published.glue_rows())


def difference(one: Compared) -> Difference | None:
    """Return what a comparison came to as a value of a table; None without pairs."""
    return None if one.mean is None else Difference(one.mean, one.interval)


def _tasks_and_seeds(cells: Iterable[Cell]) -> str | None:
    """Return tasks with their seeds, those that have the same ones together; None for a distillation."""
    seeds = grouped((cell.task, str(cell.seed)) for cell in cells if cell.task)
    tasks = grouped((", ".join(of), task) for task, of in seeds.items())
    return "; ".join(f"{', '.join(names)}: {of}" for of, names in tasks.items()) or None


def _copy_records(results: Mapping[str, Result], records: Path, output: Path) -> None:
    """Copy what a suite goes on from: records, curves and maps behind them, and checksums of the teachers.

    Cells are packed, but for files that `output` has already, as a suite's own directory does.
    """
    files = [records / "teachers.json", records / "tasks.json", *sorted(records.glob(_BENCHES))]
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
        with writing(target, advice=ADVICE):
            write_atomically(target, text)
    pack_files(output / "cells", texts)


def _without_places(text: str, name: str) -> str:
    """Return a record as it may travel: without the folders of the machine that made it."""
    record = json.loads(text) if name == "result.json" else {}
    recipe = record.get("recipe")
    if not isinstance(recipe, dict) or without_places(recipe) == recipe:
        return text
    return to_json({**record, "recipe": without_places(recipe)}) + "\n"
