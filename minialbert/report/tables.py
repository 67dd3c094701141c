"""Tables of measured results beside the paper's rows, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from typing import Literal

from minialbert.report import paper as published
from minialbert.report.paper import Column, PaperRow
from minialbert.runs.records import Cell, Record, Row, cell, group, is_tagging, known_task


@dataclass(frozen=True)
class Difference:
    """How far one figure lies above another, in points or percent."""

    mean: float
    interval: tuple[float, float] | None = None  # of the mean; None where there are too few to have one


@dataclass(frozen=True)
class Marked:
    """Text in parts, each with its look on a page, None for plain text, and a tag; or a figure that is a share."""

    parts: tuple[tuple[str, int | None, str], ...]
    share: float | None = None

    def __str__(self) -> str:
        return "".join(text if look is None else f"[{text} {tag}]" for text, look, tag in self.parts)


Value = str | int | Decimal | Cell | Difference | Marked | None
_GLUE = {column.task for column in published.GLUE_COLUMNS}
_MOST_CLASSES = 30
_NER = {column.task for column in published.NER_COLUMNS}
Groups = Mapping[tuple[Row, str], Sequence[Record]]

# Controls, line separators, lone surrogates, and marks that would turn the text after them around.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_MARKUP = re.compile(r"([\\`*_\[\]|#~$])")


@dataclass(frozen=True)
class Table:
    """Rows under headings, with notes of a line each.

    A row has as many values as columns: text, a parameter count, a printed or computed figure in percent, a measured
    figure, or None where nothing was measured.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()
    page_only: bool = False  # left out of Markdown, which goes to terminals too

    def to_markdown(self) -> str:
        """Return the table and its notes; markup in names and notes is shown as text."""
        rows = [list(map(escape, self.columns)), ["---" if words else "---:" for words in self._any(str)]]
        rows += ([escape(show(value)) for value in row] for row in self.rows)
        lines = [f"| {' | '.join(row)} |" for row in rows]
        if self.notes:
            lines += ["", *(f"- {escape(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def to_csv(self) -> str:
        """Return the table with figures as numbers; a measured column becomes three: mean, sd and n.

        Text that a spreadsheet would take for a formula gets a single quote in front.
        """
        measured = self._any(Cell)
        heads = [[name, f"{name} sd", f"{name} n"] for name in map(_one_line, self.columns)]
        lines = []
        for row in (heads, *([_csv_cells(value) for value in row] for row in self.rows)):
            parts = (cells if wide else cells[:1] for cells, wide in zip(row, measured, strict=True))
            lines.append(csv_line(chain.from_iterable(parts)))
        return "".join(lines)

    def _any(self, kind: type) -> list[bool]:
        """Return for each column whether it has values of a kind."""
        return [any(isinstance(row[index], kind) for row in self.rows) for index in range(len(self.columns))]


def escape(text: str) -> str:
    """Return a line of Markdown that shows any text as it is."""
    visible = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(visible.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _MARKUP.sub(r"\\\1", line)
    return line.replace("://", ":\\//").replace("www.", "www\\.")  # no link that nobody asked for


def clean(text: str) -> str:
    """Return text in which letters that UTF-8 or a browser cannot show are replaced by U+FFFD."""
    return _UNSEEN.sub("\ufffd", text)


def number(value: float) -> str:
    """Return a number of a chart for a reader: four significant digits, and large numbers whole."""
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    # From here on, four digits round up to five, which "g" would write as 1e+04.
    return f"{value:.0f}" if 9999.5 <= abs(value) < 1e15 else f"{value:.4g}"


def show(value: Value) -> str:
    """Return a value for a reader: "41.2 ± 1.3 (3)" for a measured figure, "-" for a missing one, "4.6M" for a count.

    A difference and its interval are "+1.2 (-0.1, +2.5)".
    """
    if value is None:
        return "-"
    if isinstance(value, Difference):
        interval = "" if value.interval is None else " ({:+.1f}, {:+.1f})".format(*value.interval)
        return f"{value.mean:+.1f}{interval}"
    if isinstance(value, Cell):
        scale, digits = (100, 1) if value.percent else (1, 3)
        spread = "" if value.sd is None else f" ± {scale * value.sd:.{digits}f}"
        return f"{scale * value.mean:.{digits}f}{spread} ({value.n})"
    if isinstance(value, int):
        return f"{value / 1e6:.1f}M" if value >= 100_000 else f"{value / 1e3:.1f}K"
    return str(value)


# Tables of records. Records of one row and task that have no common mean are a `UserError`; where nothing was measured,
# a table has no rows.


def glue_table(records: Iterable[Record]) -> Table:
    """Return GLUE in the form of the paper's Table 1, with the paper's rows."""
    kept = [record for record in records if record.task in _GLUE and not is_tagging(record.problem)]
    notes = (
        "Paper rows: GLUE development sets. The paper names no metrics; accuracy, Matthews correlation for CoLA, F1 "
        "for QQP and MRPC and a mean of both correlations for STS-B fit its values.",
        "DistilBERT_base, ALBERT_6 and ALBERT_12 are the paper's own, trained on MiniALBERT's data and steps.",
    )
    return _paper_table("GLUE", kept, published.GLUE_COLUMNS, published.glue_rows(), notes)


def ner_table(records: Iterable[Record]) -> Table:
    """Return biomedical NER in the form of the paper's Table 2: entity F1 by word, in percent."""
    kept = [record for record in records if record.task in _NER and is_tagging(record.problem)]
    notes = (
        "Paper rows: test sets. The paper's release scores word pieces, the measured rows words; the sub-word F1 is "
        "in the table of entities.",
    )
    return _paper_table("Biomedical NER", kept, published.NER_COLUMNS, published.ner_rows(), notes)


def other_table(records: Iterable[Record]) -> Table:
    """Return a user's own tasks, a column each."""
    plain = [record for record in records if record.row.teacher is None]
    kept = [record for record in plain if record.task not in (_NER if is_tagging(record.problem) else _GLUE)]
    return _task_table("Other tasks" if len(kept) < len(plain) else "Tasks", kept)


def distillation_table(records: Iterable[Record]) -> Table:
    """Return what was tuned with a task teacher: another protocol than the paper's, so a table of its own."""
    kept = [record for record in records if record.row.teacher is not None]
    return _task_table("Task-specific distillation", kept)


def entity_table(records: Iterable[Record]) -> Table:
    """Return precision, recall and F1 of every token task, over all entities and by type."""
    groups = group(record for record in records if is_tagging(record.problem))
    rows: list[tuple[Value, ...]] = []
    names = ("precision", "recall", "f1")
    for (row, task), members in groups.items():
        every = (*names, "f1_subword")
        figures = [cell(members, (f"entity_{one}",)) or cell(members, (one,)) for one in every]
        rows.append((row.label, _heading(task), "all", *figures))
        for holder, kind in sorted(_entity_types(members)):
            figures = [cell(members, (holder, kind, name)) for name in names]
            rows.append((row.label, _heading(task), kind, *figures, None))
    columns = ("model", "task", "entities", "precision", "recall", "F1", "sub-word F1")
    notes = (
        "precision, recall, F1: an entity counts by its words, with both ends and its type right.",
        "sub-word F1: the release's measure, which tags and scores every word piece.",
    )
    return Table("Entities", columns, tuple(rows), notes if rows else ())


def class_table(records: Iterable[Record]) -> Table:
    """Return precision, recall and F1 of every class of every classification, where it has not more than 30."""
    rows: list[tuple[Value, ...]] = []
    notes = []
    for (row, task), members in group(record for record in records if not is_tagging(record.problem)).items():
        classes = dict.fromkeys(
            name for one in members for name in (one.metrics.get(one.split) or {}).get("per_class", ())
        )
        if len(classes) > _MOST_CLASSES:
            what = f"{row.label}, {_heading(task)}"
            notes.append(f"{what}: {len(classes)} classes, left out; its record has them.")
            continue
        for name in classes:
            figures = [cell(members, ("per_class", name, key)) for key in ("precision", "recall", "f1")]
            rows.append((row.label, _heading(task), name, *figures))
    columns = ("model", "task", "class", "precision", "recall", "F1")
    return Table("Classes", columns, tuple(rows), tuple(notes))


# The tables of a report, by the names of their CSV files.
TABLES = {
    "glue": glue_table, "ner": ner_table, "entities": entity_table, "other": other_table, "classes": class_table,
    "distillation": distillation_table,
}  # fmt: skip


def _paper_table(
    title: str,
    records: Sequence[Record],
    columns: Sequence[Column],
    paper_rows: Sequence[PaperRow],
    paper_notes: Sequence[str],
) -> Table:
    groups = group(record for record in records if record.row.teacher is None)
    measured = {row: _cells(groups, row, columns) for row in _rows(groups)}
    every = range(len(columns))
    shown = [at for at in every if measured and None not in [cells[at] for cells in measured.values()]]
    partial = 0 < len(shown) < len(columns)
    rows: list[tuple[Value, ...]] = []
    for row, cells in measured.items():
        figures = [None if one is None else Decimal(repr(round(100 * one.mean, 9))) for one in cells]
        means = [_mean_of(figures, every), _mean_of(figures, shown)]
        rows.append((row.label, "measured", *_parameters(groups, row), *cells, *means[: 1 + partial]))
    headings = ("model", "source", "#params", "trainable", *(column.label for column in columns), "Avg")
    notes = _notes(groups, columns)
    if partial:
        notes.append(
            f"mean of shown: over {', '.join(columns[index].label for index in shown)}, which every measured row has; "
            "truncated like Avg."
        )
    if rows:
        for one in paper_rows:
            params = (None, one.params) if "†" in one.marks else (one.params, None)
            means = [one.average, _mean_of(one.scores, shown)]
            rows.append((one.label, f"paper, {one.source}", *params, *one.scores, *means[: 1 + partial]))
        notes += [
            f"Avg: as in the paper, over all {len(columns)} columns, truncated to two decimals, and N/A counts as 0; "
            "a measured row has one only where it has every column.",
            f"Paper rows: {paper_rows[0].source} of {published.SOURCE}, as printed. Its #params of adapter-tuned rows "
            "are the trained ones, so they stand under trainable.",
            *paper_notes,
        ]
    return Table(title, (*headings, *(["mean of shown"] if partial else [])), tuple(rows), tuple(notes))


def _mean_of(figures: Sequence[Decimal | None], shown: Sequence[int]) -> Decimal | None:
    kept = [figures[index] for index in shown]
    return published.average(kept) if kept and None not in kept else None


def _task_table(title: str, records: Sequence[Record]) -> Table:
    groups = group(records)
    tasks = sorted({task for _, task in groups})
    known = [column for column in published.GLUE_COLUMNS + published.NER_COLUMNS if column.task in tasks]
    columns = known + [Column(task, task) for task in tasks if known_task(task) not in _GLUE | _NER]
    rows = [(row.label, *_parameters(groups, row), *_cells(groups, row, columns)) for row in _rows(groups)]
    headings = ("model", "#params", "trainable", *(column.label for column in columns))
    return Table(title, headings, tuple(rows), tuple(_notes(groups, columns)))


def _rows(groups: Groups) -> list[Row]:
    return list(dict.fromkeys(row for row, _ in groups))


def _cells(groups: Groups, row: Row, columns: Sequence[Column]) -> list[Cell | None]:
    found = [(groups.get((row, column.task)), column.mismatched) for column in columns]
    return [cell(records, mismatched=mismatched) if records else None for records, mismatched in found]


def _parameters(groups: Groups, row: Row) -> tuple[Value, Value]:
    records = [record for (other, _), members in groups.items() if other == row for record in members]
    trained = [record.trainable_parameters for record in records]
    least, most = min(trained), max(trained)  # heads differ between tasks
    same = show(least) == show(most)
    return records[0].parameters, most if same else f"{show(least)} to {show(most)}"


def _heading(task: str) -> str:
    labels = {column.task: column.label for column in published.GLUE_COLUMNS + published.NER_COLUMNS}
    return "MNLI" if task == "mnli" else labels.get(task, task)


def _entity_types(records: Sequence[Record]) -> set[tuple[str, str]]:
    """Return where figures by entity type stand: the key of the group of types, and the type."""
    return {
        (holder, kind)
        for record in records
        for holder, types in (record.metrics.get(record.split) or {}).items()
        if isinstance(types, dict) and holder != "span_per_type"  # the same types, by characters
        for kind, figures in types.items()
        if isinstance(figures, dict) and "f1" in figures
    }


def _notes(groups: Groups, columns: Sequence[Column]) -> list[str]:
    if not groups:
        return []
    records = [record for members in groups.values() for record in members]
    seeds = sorted({record.seed for record in records if record.seed is not None})
    notes = [
        "Measured: mean ± sample standard deviation (number of seeds), in percent unless said otherwise."
    ]
    if seeds:
        notes.append(f"Seeds: {', '.join(map(str, seeds))}.")
    for what, attribute in (("Split", "split"), ("Metric", "metric")):
        notes += [f"{what}: {line}." for line in _by_value(groups, attribute)]
    plain = {task for (_, task), members in groups.items() if (one := cell(members)) and not one.percent}
    if raw := sorted({column.label for column in columns if column.task in plain}):
        notes.append(f"Not in percent: {', '.join(raw)}.")
    labels = " ".join(row.label for row in _rows(groups))
    if "†" in labels:
        notes.append("† adapter-tuned: only the adapters and the task head were trained.")
    if "∗" in labels:
        notes.append("∗ adapters that pre-training had not: they start fresh, in the paper at random.")
    notes += [f"Hyper-parameters: {line}." for line in _lines(groups, lambda record: [_hyper(record)])]
    grid = _lines(groups, lambda record: ["chosen by a grid"] if record.grid else [])
    notes += [f"Hyper-parameters {line}." for line in grid]
    notes += [f"Note: {line}." for line in _lines(groups, lambda record: record.made.notes or ())]
    return notes


def _by_value(groups: Groups, attribute: str) -> list[str]:
    """Return one line per split or metric, with its tasks; rows are named where they differ in a task."""
    values: dict[str, dict[str, set[Row]]] = {}
    rows_of: dict[str, set[Row]] = {}
    for (row, task), members in groups.items():
        values.setdefault(getattr(members[0], attribute), {}).setdefault(task, set()).add(row)
        rows_of.setdefault(task, set()).add(row)
    lines = []
    for value, tasks in values.items():
        parts = []
        for task, rows in sorted(tasks.items()):
            some = sorted(rows, key=lambda row: row.order) if rows != rows_of[task] else []
            parts.append(_heading(task) + (f" of {', '.join(row.label for row in some)}" if some else ""))
        lines.append(f"{value} ({'; '.join(parts)})")
    return lines


def _hyper(record: Record) -> str:
    names = {"epochs": "epochs", "learning_rate": "learning rate", "batch_size": "batch"}
    settings = record.settings
    found = ((label, settings.get(f"tuning.{name}", settings.get(name))) for name, label in names.items())
    return ", ".join(f"{label} {value}" for label, value in found if value is not None)


def _lines(groups: Groups, texts: Callable[[Record], Iterable[str]]) -> list[str]:
    """Return every distinct text once, with the rows and tasks it holds for where there are several."""
    places: dict[str, dict[str, dict[str, None]]] = {}
    for (row, task), members in groups.items():
        for record in members:
            for text in texts(record):
                if text:
                    places.setdefault(text.rstrip("."), {}).setdefault(row.label, {})[_heading(task)] = None
    if len(groups) == 1:
        return list(places)
    return [
        f"{text} — " + "; ".join(f"{label} ({', '.join(tasks)})" for label, tasks in rows.items())
        for text, rows in places.items()
    ]


def _csv_cells(value: Value) -> list[str]:
    """Return mean, sd and n as text; what is not a measured figure has neither sd nor n."""
    if isinstance(value, Cell):
        scale = 100 if value.percent else 1
        spread = "" if value.sd is None else f"{scale * value.sd:.4f}"
        return [f"{scale * value.mean:.4f}", spread, str(value.n)]
    if isinstance(value, Difference):
        return [f"{value.mean:.4f}", "", ""]
    return ["" if value is None else _one_line(value) if isinstance(value, str) else str(value), "", ""]


def _one_line(text: str) -> str:
    # The csv module leaves a lone carriage return unquoted, after which a formula would begin a row.
    return no_formula("".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text))


def no_formula(text: str) -> str:
    """Return text with a single quote in front, where a spreadsheet would take it for a formula."""
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text


def csv_line(values: Iterable[object], quoting: Literal[0, 2] = csv.QUOTE_MINIMAL) -> str:
    """Return a row of a CSV file with its line end."""
    line = io.StringIO()
    csv.writer(line, quoting=quoting, lineterminator="\n").writerow(values)
    return line.getvalue()
