"""Labelled data of one's own (tables, tagged files, a hub data set, rows in memory) as a task.

`table_files`, `rows` and `ner` read the rows, `cells` what stands in them; here their columns are found, and each row
becomes an example.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minialbert_runtime.questions import OPEN, SURE
from minialbert_runtime.words import spans_to_tags

from minialbert.data.cells import (
    ClassCells,
    Overlaps,
    Quotes,
    class_name,
    classes_of_flags,
    flag_columns,
    missing,
    score_of,
    spans_of,
    tags_of,
    text_of,
    understand_classes,
    without_overlaps,
    words_of,
)
from minialbert.data.columns import (
    Columns,
    Used,
    columns_told,
    find,
    find_required,
    find_spans,
    find_texts,
    flag_names,
    is_in_words,
    used_columns,
)
from minialbert.data.examples import Example, Task, TextExample, TokenExample, counted_labels, label_of
from minialbert.data.formats.documents import DOCUMENT
from minialbert.data.labelled import Labelled, annotated
from minialbert.data.ner import DOCUMENT_START, LINES, Repair, TagReader
from minialbert.data.rows import LabelledData
from minialbert.data.splits import plain
from minialbert.data.table_files import Table, unsplit_tables
from minialbert.data.task_types import TaskType, task_type
from minialbert.errors import UserError, listed, local_path, quoted

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")

_Cells = Mapping[str, Any]
_Rows = list[tuple[int, Example]]


def load_table(
    data: LabelledData,
    problem: str,
    *,
    name: str | None = None,
    columns: Columns | None = None,
    labels: Sequence[str] | None = None,
    model_labels: Sequence[str] | None = None,
    label_separator: str | None = None,
    repair: Repair = "repair",
    overlaps: Overlaps = "refuse",
    format: str | None = None,
) -> Task:
    """Returns labelled data as a task.

    docs/data.md has every shape that is read, repaired or refused; for files see `table_files.read_table` and
    `ner.read_tagged`. Rows of train and validation must be labelled; those of test all or none. Rows that an annotator
    rejected are left out. Labels of validation and test that train does not have count as missed, which the notes say.

    The data are a file, which is train, or a directory, see `table_files.find_tables`; `hub:OWNER/NAME[:CONFIG]`; or
    rows in memory, see `rows.table_in_memory`, alone the train split, else by split. `columns` are those of `ROLES`
    that do not have their common names. `labels` are in the order of their ids, of a token task the tags, "O"
    among them; by default those of train, sorted: by number if all are integers, else by the alphabet; tags as O, B-X,
    I-X, B-Y. With `model_labels`, those of a model to be scored, a train split is not needed. `repair` is for an I- tag
    that follows nothing or another type, `overlaps` for spans that share a word; `format` is one of `formats.NAMES`.
    """
    kind = task_type(problem)
    columns = columns or {}
    _check_options(kind, labels, label_separator, columns)
    labelled = Labelled(kind.tagging, columns, model_labels is None, format)
    notes = labelled.notes
    default_name, tables = labelled.splits(data)
    reader = _Reader(kind, columns, labels, repair, overlaps, notes)
    main_split, main = next(iter(tables.items()))
    rows: dict[str, _Rows] = {}
    used: dict[str, Used] = {}
    in_words = kind.tagging and is_in_words(main, columns)
    classes = None
    if kind.label == "classes":
        classes = _class_cells(tables, columns, labels or model_labels, label_separator, notes)
    for split, table in tables.items():
        label = columns.get("label") or "label"
        column = "spans" if kind.tagging else str(label)
        tables[split] = table = annotated(table, split, column, notes, one_class=kind.label == "class")
        if not kind.tagging:
            rows[split], used[split] = reader.texts(table, split, classes)
        else:
            rows[split], used[split] = (reader.sentences if in_words else reader.spans)(table, split)
        _check_labelled(table, rows[split], split)
        if all(label_of(example) is None for _, example in rows[split]):
            found = listed(map(quoted, table.columns))
            notes.append(f"{split}: no row has a label, so none is scored; found the columns {found}")
        if columns.get("group") is not None and (split == "train" or columns["group"] in table.columns):
            rows[split] = _with_groups(table, rows[split], str(columns["group"]))
            used[split] = used[split] | {"group": (str(columns["group"]),)}
        elif kind.label != "answer":  # whose texts are their groups
            rows[split] = _with_documents(table, rows[split])
    _check_pairs(tables, used)
    own = tuple(labels or model_labels or flag_names(columns)) if kind.has_classes else ()
    names = own or _label_names(kind, rows[main_split])
    if kind.has_classes:
        _check_number_of_labels(main, kind, names, 0 if own else len(rows[main_split]))
        source = "`labels`" if labels else "the model" if model_labels else "the train split"
        for split, table in tables.items() if kind.label != "answer" else ():
            strict = split == "train" and model_labels is None
            notes += _unknown_labels(table, split, rows[split], names, source, strict=strict)
        notes += _notes_on_names(main, used[main_split], names)
    examples = {split: [example for _, example in split_rows] for split, split_rows in rows.items()}
    told = columns_told(main, used[main_split])
    return Task(name or default_name, problem, names, kind.metrics[0], examples, tuple(notes), told)


def is_pair(entry: object) -> bool:
    """Returns whether something is two texts, of which one may be missing."""
    if not isinstance(entry, tuple | list):
        return False
    return len(entry) == 2 and all(isinstance(text, str | None) for text in entry)


def read_pairs(places: Iterable[Any], columns: Columns, notes: list[str]) -> Iterator[tuple[str, str] | None]:
    """Yields the pairs that are among the places, and of labelled data those of all splits; labels are left alone.

    Of a folder in which no file is named as a split all tables are read.
    Yields None for a row in which a text is empty. Where a table has no columns of the names given, the usual ones are
    looked for.
    """
    tables, given = list[Any](), list[dict[str, Any]]()
    for one in places:
        if is_pair(one):
            given.append({"text1": one[0], "text2": one[1]})
        elif isinstance(one, str | Path) and (several := unsplit_tables(local_path(one))):
            tables += several
        else:
            tables.append(one)
    for place in (*tables, given) if given else tables:
        if isinstance(place, list) and isinstance(place[0], str):
            raise UserError(f"pairs are to be labelled: give tuples of two texts, found {quoted(place[0])}")
        labelled = Labelled(False, columns, False, None)
        found = labelled.splits(place)[1]
        notes += labelled.notes
        for table in found.values():
            has_named = {name for name in columns.values() if name} <= {*table.columns}
            text, pair = find_texts(table, columns if has_named else {})
            if pair is None:
                raise table.lacks("pairs are to be labelled: set task.text and task.pair to their columns")
            for row, cells in table.rows:
                empty = missing(cells.get(text)) or missing(cells.get(pair))
                yield None if empty else (text_of(table, row, cells, text), text_of(table, row, cells, pair))


@dataclass
class _Reader:
    """What a caller asked for, and the notes on what was read."""

    kind: TaskType
    columns: Columns
    labels: Sequence[str] | None
    repair: Repair
    overlaps: Overlaps
    notes: list[str]

    def texts(self, table: Table, split: str, classes: ClassCells | None) -> tuple[_Rows, Used]:
        """Returns the rows of texts or pairs, and which columns they were made of."""
        kind, columns = self.kind, self.columns
        text, pair = find_texts(table, columns)
        common = "answers" if kind.label == "answer" else "label" if kind.has_classes else "score"
        labels = tuple(flag_names(columns))
        if labels and not (split == "test" and not set(labels) & set(table.columns)):
            if lost := [column for column in labels if column not in table.columns]:
                raise table.lacks(f"no column {listed(map(quoted, lost))}")
        elif not labels and (found := find(table, "label", columns, common, required=split != "test")):
            labels = (found,)
        id_column = find(table, "id", columns, required=columns.get("id") is not None)
        # An empty string is "no class" in a multi-label table, but a test split without a single class is unlabelled.
        empty = all(missing(cells.get(label)) for _, cells in table.rows for label in labels)
        empty_is_no_class = classes is not None and not (empty and split == "test")

        def value(row: int, cells: _Cells) -> str | float | tuple[str, ...] | None:
            if flag_names(columns):
                return classes_of_flags(table, row, cells, labels)
            cell = cells.get(labels[0]) if labels else None
            if cell is None or (missing(cell) and not empty_is_no_class):
                return None
            own = _at(table, row, kind.read_cell, cell)
            if own is not NotImplemented:
                return own
            if classes is not None:
                return classes.read(table, row, cell)
            return (class_name if kind.has_classes else score_of)(table, row, cell)

        def example(row: int, cells: _Cells) -> TextExample:
            second = None if pair is None else text_of(table, row, cells, pair)
            row_id = "" if id_column is None else cells.get(id_column)
            row_id = None if row_id in (None, "") else str(row_id)
            found = TextExample(text_of(table, row, cells, text), second, value(row, cells), row_id)
            return _at(table, row, kind.checked, found)

        rows: _Rows = [(row, example(row, cells)) for row, cells in table.rows]
        return rows, used_columns(text=text, pair=pair, label=labels or None, id=id_column)

    def spans(self, table: Table, split: str) -> tuple[_Rows, Used]:
        """Returns the rows of texts with spans, and which columns they were made of."""
        text = find_required(table, "text", self.columns)
        column = find_spans(table, self.columns, required=split != "test")
        left_out, quotes = Counter[str](), Quotes()

        def example(row: int, cells: _Cells) -> TokenExample:
            said = text_of(table, row, cells, text)
            cell = None if column is None else cells.get(column)
            found = [] if missing(cell) else spans_of(table, row, cell, said, quotes)
            kept, doubles, overlapping = without_overlaps(said, found, self.overlaps)
            left_out["are repeated"] += doubles
            if self.overlaps != "refuse":
                left_out[f"overlap a kept one (task.overlaps={self.overlaps})"] += overlapping
            try:
                words, offsets, tags = spans_to_tags(said, kept)
            except ValueError as error:
                advice = "; task.overlaps=longest (or first) keeps one of them" if overlapping else ""
                raise table.error(row, " ".join(str(error).split()) + advice) from error
            return TokenExample(words, None if missing(cell) else tags, said, offsets)

        rows: _Rows = [(row, example(row, cells)) for row, cells in table.rows]
        title = split if table.is_file else table.name
        self.notes += (f"{title}: spans left out that {why}: {n:,}" for why, n in left_out.items() if n)
        self.notes += quotes.notes()
        return rows, used_columns(text=text, spans=column)

    def sentences(self, table: Table, split: str) -> tuple[_Rows, Used]:
        """Returns the rows of words with tags, and which columns they were made of."""
        tokens = find_required(table, "tokens", self.columns)
        column = find(table, "tags", self.columns, required=split != "test")
        reader, title = TagReader(table.error, self.repair), split if table.is_file else table.name

        def example(row: int, cells: _Cells) -> TokenExample:
            if missing(cells.get(tokens)) or cells[tokens] == []:
                told = f"there are no words in column {quoted(tokens)}"
                raise table.error(row, f"{told}; fill it or remove the row")
            words = words_of(table, row, cells[tokens], tokens)
            if column is None or missing(cells.get(column)):
                return TokenExample(words)
            tags = tags_of(table, row, cells[column], column, words, self.labels)
            return TokenExample(words, reader.read(tags, cells.get(LINES) or [row] * len(tags)))

        # Published data sets have empty sentences, which nobody can remove from there.
        kept = [(row, cells) for row, cells in table.rows if table.is_file or cells.get(tokens) != []]
        rows: _Rows = [(row, example(row, cells)) for row, cells in kept]
        self.notes += reader.notes(title)
        if left_out := len(table.rows) - len(kept):
            self.notes.append(f"{title}: {left_out} row{'s' if left_out > 1 else ''} without words left out")
        if not rows:
            raise UserError(f"{title} has 0 sentences: expected rows with words in {quoted(tokens)}")
        return rows, used_columns(tokens=tokens, tags=column)


def _check_options(
    kind: TaskType, labels: Sequence[str] | None, label_separator: str | None, columns: Columns
) -> None:
    if labels is not None and not kind.has_classes:
        raise UserError(f"{kind.name} has scores and no classes; leave `labels` out")
    if labels is not None and (not labels or len(set(labels)) < len(labels)):
        raise UserError(f"expected `labels` to name each class once, found {quoted(list(labels), 200)}")
    if labels is not None and kind.tagging and "O" not in labels:
        raise UserError(f"`labels` of a {kind.name} task are tags, 'O' among them; found {listed(labels)}")
    if label_separator is not None and not label_separator.strip():
        raise UserError(f"expected a label separator that is not a blank, found {quoted(label_separator)}")
    if (flags := flag_names(columns)) and (kind.label != "classes" or len(set(flags)) < len(flags)):
        expected = "several are for multi-label tasks, a 0 or 1 in each, each named once"
        raise UserError(f"the label columns {listed(flags)}: {expected}")


def _class_cells(
    tables: Mapping[str, Table],
    columns: Columns,
    labels: Sequence[str] | None,
    separator: str | None,
    notes: list[str],
) -> ClassCells:
    """Returns how the cells of several classes are read, which those of all splits say together."""
    main = next(iter(tables.values()))
    column = None if flag_names(columns) else find(main, "label", columns, required=False)
    if column is not None:
        return understand_classes(column, list(tables.values()), labels, separator, notes)
    if not flag_names(columns) and not main.format and (flags := flag_columns(main)):
        advice = f"name them all, as in task.label=[{', '.join(flags)}]"
        told = "no label column; of one column with 0 and 1 for each class"
        raise UserError(f"{main.name}: {told} {advice}")
    return ClassCells("|")


def _with_groups(table: Table, rows: _Rows, column: str) -> _Rows:
    if column not in table.columns:
        raise table.lacks(f"no column {quoted(column)} to group rows by")
    cells = {row: found.get(column) for row, found in table.rows}
    for row, cell in cells.items():
        if missing(cell):
            raise table.error(row, f"the group in column {quoted(column)} is empty; fill it")
    return [(row, replace(example, group=str(cells[row]))) for row, example in rows]


def _with_documents(table: Table, rows: _Rows) -> _Rows:
    """Returns the rows with the document of each as its group, where several are of one."""
    names = {row: _document(cells) for row, cells in table.rows}
    if None in names.values() or len(set(names.values())) == len(names):
        return rows
    return [(row, replace(example, group=f"{names[row]}")) for row, example in rows]


def _document(cells: _Cells) -> str | int | None:
    """Returns the document of a tagged sentence, or the id of a tool's document."""
    row, name = cells.get(DOCUMENT_START, (None, None))
    return cells[DOCUMENT].id if DOCUMENT in cells else name or row


def _at(table: Table, row: int, read: Callable[[Any], Any], given: object) -> Any:
    """Returns what a kind of task makes of a part of a row, or raises the error that names the row."""
    try:
        return read(given)
    except ValueError as error:
        raise table.error(row, str(error)) from error


def _check_labelled(table: Table, rows: _Rows, split: str) -> None:
    without = [row for row, example in rows if label_of(example) is None]
    if without and split != "test":
        raise table.error(without[0], f"no label; every row of {split} needs one")
    if without and len(without) < len(rows):
        others = f"{len(rows) - len(without)} rows of test have one"
        raise table.error(without[0], f"no label, but {others}; label all rows or none")


def _check_pairs(tables: Mapping[str, Table], used: Mapping[str, Used]) -> None:
    main = next(iter(tables))
    for split, table in tables.items():
        if ("pair" in used[split]) != ("pair" in used[main]):
            here, there = ("pairs", "single texts") if "pair" in used[split] else ("single texts", "pairs")
            raise UserError(f"{table.name}: {here}, but {tables[main].name} has {there}; name the columns")


def _label_names(kind: TaskType, rows: _Rows) -> tuple[str, ...]:
    if not kind.has_classes:
        return ()
    names = {name for _, example in rows for name in counted_labels(example)}
    if kind.label == "answer":
        return OPEN if "no answer" in names else SURE
    if kind.tagging:
        return ("O", *(f"{prefix}-{one}" for one in sorted(names) for prefix in "BI"))
    if all(_INTEGER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _notes_on_names(table: Table, used: Used, names: Sequence[str]) -> Iterator[str]:
    """Yields notes on names that may be one or none, and on classes that a data set names and no row has."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(plain(name).strip().removesuffix(".0"), []).append(name)
    for several in (several for several in alike.values() if len(several) > 1):
        yield f"the labels {listed(map(quoted, several))} are apart: if they are one, spell them alike in the data"
    columns = used.get("label", used.get("tags", ()))
    if lost := [name for name in names if name.lower() in ("nan", "<na>", "null")]:
        yield f"{table.name}: {listed(map(quoted, lost))} is a label: if rows have none there, remove or label them"
    declared = (name for column in columns for name in table.classes.get(column, ()))
    if lost := [name for name in declared if name not in names]:
        yield f"{table.name}: no row has {listed(map(quoted, lost))}, so they are not labels; task.labels keeps them"


def _check_number_of_labels(train: Table, kind: TaskType, names: Sequence[str], rows: int) -> None:
    # One class is not a classification, and Transformers takes a head with one output for a regression.
    if kind.label == "classes":
        if not names:
            raise UserError(f"{train.name}: no row has a class; there is nothing to learn")
    elif len(names) < 2:
        found = quoted(names[0]) if names else "none"
        raise UserError(f"{train.name}: expected at least two labels, found only {found}")
    elif kind.label == "class" and len(names) == rows > 4:  # as where columns were swapped
        told = f"each of its {rows:,} rows has a label of its own, as {quoted(names[0])}"
        advice = "set task.label to the column of the classes, and task.text to that of the texts"
        raise UserError(f"{train.name}: {told}: {advice}")


def _unknown_labels(
    table: Table, split: str, rows: _Rows, names: Sequence[str], source: str, *, strict: bool
) -> Iterator[str]:
    """Yields a note about labels that are not among those of the model, or raises.

    It raises for train, and where no label is known; a dev split of entities of one rare type is not an error.
    """
    known = {*names, *(name[2:] for name in names if name.startswith("B-"))}

    def labels(example: Example) -> tuple[str, ...]:
        return (isinstance(example, TokenExample) and strict and example.tags) or counted_labels(example)

    found = Counter(name for _, example in rows for name in labels(example))
    unknown = {name: count for name, count in found.items() if name not in known}
    is_rare = source == "the train split" and isinstance(rows[0][1], TokenExample)
    if unknown and (strict or (len(unknown) == len(found) and not is_rare)):
        row, name = next((row, name) for row, example in rows for name in labels(example) if name in unknown)
        have = listed(map(quoted, names))
        have += "; give the classes' own names as id2label in its config.json" * (names[0] == "LABEL_0")
        raise table.error(row, f"the label {quoted(name)} is not among those of {source}: {have}")
    if unknown:
        lost = listed(f"{name} ({count:,})" for name, count in Counter(unknown).most_common())
        yield f"{split}: labels that are not among those of {source} count as missed: {lost}"
