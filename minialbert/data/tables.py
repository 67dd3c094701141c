"""A user's own labelled table (csv, tsv, JSON lines, Parquet, a hub data set, rows in memory) as a task.

`table_files` and `rows` read the rows; here their columns are found, and each row becomes an example.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from minialbert_runtime.words import Span, spans_to_tags

from minialbert.data.examples import Example, Task, TextExample, TokenExample, label_of
from minialbert.data.hub import PREFIX, assign_splits, load_splits
from minialbert.data.ner import Repair, TagReader
from minialbert.data.rows import LabelledData, table_in_memory
from minialbert.data.table_files import Table, find_tables, read_table
from minialbert.data.task_types import TaskType, task_type
from minialbert.errors import UserError, listed, local_path, quoted

_COMMON_NAMES = {
    "text": ("text", "sentence", "sentence1", "premise", "question", "question1"),
    "label": ("label", "labels", "class"),
    "score": ("label", "labels", "class", "score"),
    "tokens": ("tokens", "words"),
    "tags": ("tags", "ner_tags", "labels"),
    "spans": ("spans", "entities"),
    "id": ("id", "idx"),
}
_PAIR_OF_TEXT = {"sentence1": "sentence2", "premise": "hypothesis", "question1": "question2"}
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")

_Cells = Mapping[str, Any]
_Rows = list[tuple[int, Example]]


# The columns that may be named, by what they hold; a second text ("pair") is found beside the first alone.
_Columns = Mapping[str, str | None]
ROLES = ("text", "pair", "label", "tokens", "tags", "spans", "id")


def load_table(
    data: LabelledData,
    problem: str,
    *,
    name: str | None = None,
    columns: _Columns | None = None,
    labels: Sequence[str] | None = None,
    label_separator: str = "|",
    metric: str | None = None,
    repair: Repair = "repair",
) -> Task:
    """Returns a labelled table as a task.

    A label of a single-label task is a text or an integer. Those of a multi-label task are a list, or one string
    whose parts `label_separator` divides (an empty string: no class). A token task has either a column of words
    and a column of tags (lists, or strings divided by spaces), or a text and the entities in it: a list, in csv and
    tsv as JSON, of `{"start": 0, "end": 4, "label": "Disease"}` (also "begin", and "type" or "entity") or
    `[0, 4, "Disease"]`, the end exclusive. Tags are IOB2, or become it by the repair, which the notes count. For how
    the files are read see `table_files.read_table`; tsv knows no quoting.

    Rows of train and validation must be labelled; those of test all or none.

    Args:
        data: a file (the task then has a train split only), or a directory with train.EXT and perhaps
            validation.EXT (or dev, devel, valid) and test.EXT; EXT is csv, tsv, jsonl, ndjson or parquet. Or
            `hub:OWNER/NAME` or `hub:OWNER/NAME:CONFIG`. Or rows in memory: dictionaries, pairs of text and label (words
            and tags; text and spans), a data set of the `datasets` library or a pandas frame; alone they are the train
            split, of several splits they stand under their names.
        problem: which kind of label the table has.
        name: what records call the task; by default the name of the directory or file.
        columns: the columns of `ROLES` that do not have their common names.
        labels: label names in the order of their ids; of a token task the tags, "O" among them. By default those of
            the train split, sorted: by number if all are integers, else by the alphabet; tags as O, B-X, I-X, B-Y, ...
        label_separator: divides the classes of a multi-label cell.
        metric: the figure that counts, where it is not the usual one of the problem.
        repair: what to do with an I- tag that follows nothing or another type: read it as B-, or refuse the table.

    Returns:
        The task. A `UserError` names the file and the row where the table is not as described.
    """
    columns = columns or {}
    kind = task_type(problem)
    _check_options(kind, labels, label_separator)
    notes: list[str] = []
    rows: dict[str, _Rows] = {}
    default_name, tables = _read_tables(data, kind, notes)
    in_words = kind.tagging and _train_is_in_words(tables["train"], columns)
    for split, table in tables.items():
        if kind.tagging:
            rows[split] = _token_rows(table, split, columns, in_words, repair, notes)
        else:
            rows[split] = _text_rows(table, split, columns, kind, label_separator, notes)
        _check_labelled(table, rows[split], split)
    if not kind.tagging:
        _check_pairs(tables, rows)
    names = tuple(labels) if labels is not None else _label_names(kind, rows["train"])
    if kind.has_classes:
        _check_number_of_labels(tables["train"], kind, names)
        for split, table in tables.items():
            _check_known(table, rows[split], names, "`labels`" if labels is not None else "the train split")
    splits = {split: [example for _, example in split_rows] for split, split_rows in rows.items()}
    return Task(name or default_name, problem, names, metric or kind.metrics[0], splits, tuple(notes))


def _read_tables(data: LabelledData, kind: TaskType, notes: list[str]) -> tuple[str, dict[str, Table]]:
    """Returns a name for the task, and the table of each split."""
    if isinstance(data, (str, Path)) and not str(data).startswith(PREFIX):
        path = local_path(data)
        tables = {split: read_table(file) for split, file in find_tables(path).items()}
        return path.resolve().name if path.is_dir() else path.stem, tables
    name, title = "in-memory", "rows in memory"
    splits: Mapping[str, Any] = data if isinstance(data, Mapping) else {"train": data}
    if isinstance(data, str):
        (name, splits), title = load_splits(data), data
    found = assign_splits({str(key): str(key) for key in splits}, title)
    if "train" not in found:
        raise UserError(f"{title} has no train split: expected train, found {listed(splits)}")
    if others := [str(key) for key in splits if key not in found.values()]:
        notes.append(f"{title}: left out the split{'s' if len(others) > 1 else ''} {listed(others)}")
    return name.lower(), {
        split: table_in_memory(splits[key], f"{title} ({key})", in_words=kind.tagging)
        for split, key in found.items()
    }


def _check_options(kind: TaskType, labels: Sequence[str] | None, label_separator: str) -> None:
    if labels is not None and not kind.has_classes:
        raise UserError(f"{kind.name} has scores and no classes; leave `labels` out")
    if labels is not None and (not labels or len(set(labels)) < len(labels)):
        raise UserError(f"expected `labels` to name each class once, found {quoted(list(labels), 200)}")
    if labels is not None and kind.tagging and "O" not in labels:
        raise UserError(f"`labels` of a {kind.name} task are tags, 'O' among them; found {listed(labels)}")
    if not label_separator.strip():
        raise UserError(f"expected a label separator that is no blank, found {quoted(label_separator)}")


# Columns


def _find(
    table: Table, role: str, columns: _Columns, common: str | None = None, *, required: bool
) -> str | None:
    """Returns the column of a role; None where there is none and none is required."""
    names, named = _COMMON_NAMES[common or role], columns.get(role)
    found = [column for column in table.columns if column.lower() in names]
    if named is not None:
        found = [named] if named in table.columns else []
    if len(found) > 1:
        both = " and ".join(quoted(column) for column in found[:3])
        raise UserError(f"{table.name}: {both} could each be the {role} column; name the one that is")
    if not found and required:
        wanted = quoted(named) if named is not None else f"one of {', '.join(names)}"
        have = listed(map(quoted, table.columns))
        raise UserError(f"{table.name}: no {role} column; expected {wanted}, found the columns {have}")
    return found[0] if found else None


def _find_required(table: Table, role: str, columns: _Columns) -> str:
    column = _find(table, role, columns, required=True)
    assert column is not None
    return column


def _find_pair(table: Table, text: str, columns: _Columns) -> str | None:
    if columns.get("pair") is not None:
        return _find(table, "pair", columns, "text", required=True)
    partner = _PAIR_OF_TEXT.get(text.lower())
    return next((column for column in table.columns if column.lower() == partner), None)


def _train_is_in_words(table: Table, columns: _Columns) -> bool:
    """Whether the table has words and tags, rather than a text and spans."""
    in_words, in_text = (
        any(columns.get(role) is not None for role in roles)
        for roles in (("tokens", "tags"), ("text", "spans"))
    )
    if in_words and in_text:
        raise UserError(
            "a token task has tokens and tags, or text and spans; name the columns of one of them"
        )
    if in_words or in_text:
        return in_words
    tokens, spans = (_find(table, role, {}, required=False) for role in ("tokens", "spans"))
    if tokens is None and spans is None:
        have = listed(map(quoted, table.columns))
        raise UserError(
            f"{table.name}: expected columns tokens and tags, or text and spans; found the columns {have}"
        )
    return spans is None or (tokens is not None and _find(table, "tags", {}, required=False) is not None)


# Cells


def _missing(cell: object) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _text(table: Table, row: int, cells: _Cells, column: str) -> str:
    cell = cells.get(column)
    if _missing(cell):
        raise table.error(row, f"the text in column {quoted(column)} is empty; fill it or remove the row")
    if not isinstance(cell, str):
        raise table.error(row, f"expected a text in column {quoted(column)}, found {quoted(cell)}")
    return cell


def _class_name(table: Table, row: int, cell: object) -> str:
    if isinstance(cell, (str, int)) and not _missing(cell):
        return str(cell).strip()
    raise table.error(row, f"expected a class as text or integer, found {quoted(cell)}")


def _class_names(table: Table, row: int, cell: object, separator: str) -> tuple[str, ...]:
    if isinstance(cell, str):
        parts: list[Any] = cell.split(separator) if cell.strip() else []
    elif isinstance(cell, list):
        parts = cell
    else:
        raise table.error(row, f"expected a list of classes, found {quoted(cell)}")
    names = tuple(_class_name(table, row, part) for part in parts)
    if len(set(names)) < len(names):
        raise table.error(
            row, f"a class occurs twice in {quoted(cell)}; expected the name of each class that applies, once"
        )
    return names


def _score(table: Table, row: int, cell: object) -> float:
    try:
        if isinstance(cell, bool) or not isinstance(cell, (int, float, Decimal, str)) or "_" in str(cell):
            raise ValueError
        score = float(cell)
    except (ValueError, OverflowError):
        score = math.nan
    if math.isfinite(score):
        return score
    raise table.error(row, f"expected a finite number as score, found {quoted(cell)}")


def _list_of_words(table: Table, row: int, cell: object, column: str) -> tuple[str, ...]:
    if isinstance(cell, str):
        return tuple(word for word in cell.split(" ") if word)
    if isinstance(cell, list) and all(isinstance(word, str) for word in cell):
        return tuple(cell)
    raise table.error(row, f"expected a list of strings in column {quoted(column)}, found {quoted(cell)}")


def _spans(table: Table, row: int, cell: object) -> list[Span]:
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            message = f"expected spans as a JSON list, found {quoted(cell)}"
            raise table.error(row, message) from error
    if not isinstance(cell, list):
        raise table.error(row, f"expected a list of spans, found {quoted(cell)}")
    return [_span(table, row, item) for item in cell]


def _span(table: Table, row: int, item: object) -> Span:
    parts: tuple[object, ...] = ()
    if isinstance(item, Mapping):
        keys = (("start", "begin"), ("end",), ("label", "type", "entity"))
        parts = tuple(next((item[k] for k in names if item.get(k) is not None), None) for names in keys)
    elif isinstance(item, (list, tuple)):
        parts = tuple(item)
    match parts:
        case (int(start), int(end), str(label)) if not isinstance(start, bool) and not isinstance(end, bool):
            return Span(start, end, label.strip())
    raise table.error(row, f"expected a span as start, end (integers) and label, found {quoted(item)}")


# Rows


def _text_rows(
    table: Table, split: str, columns: _Columns, kind: TaskType, separator: str, notes: list[str]
) -> _Rows:
    text = _find_required(table, "text", columns)
    pair = _find_pair(table, text, columns)
    common = "label" if kind.has_classes else "score"
    label = _find(table, "label", columns, common, required=split != "test")
    id_column = _find(table, "id", columns, required=columns.get("id") is not None)
    # An empty string is "no class" in a multi-label table, but a test split without a single class is unlabelled.
    empty = label is None or all(_missing(cells.get(label)) for _, cells in table.rows)
    several = kind.label == "classes"
    empty_is_no_class = several and not (empty and split == "test")
    if several and label is not None and empty and split == "test":
        notes.append(f"test: every cell of {quoted(label)} is empty, so the split counts as unlabelled")

    def value(row: int, cells: _Cells) -> str | float | tuple[str, ...] | None:
        cell = None if label is None else cells.get(label)
        if cell is None or (_missing(cell) and not empty_is_no_class):
            return None
        try:
            own = kind.read_cell(cell)
        except ValueError as error:
            raise table.error(row, str(error)) from error
        if own is not NotImplemented:
            return own
        if several:
            return _class_names(table, row, cell, separator)
        return (_class_name if kind.has_classes else _score)(table, row, cell)

    def example(row: int, cells: _Cells) -> TextExample:
        second = None if pair is None else _text(table, row, cells, pair)
        row_id = "" if id_column is None else cells.get(id_column)
        row_id = None if row_id in (None, "") else str(row_id)
        return TextExample(_text(table, row, cells, text), second, value(row, cells), row_id)

    return [(row, example(row, cells)) for row, cells in table.rows]


def _token_rows(
    table: Table, split: str, columns: _Columns, in_words: bool, repair: Repair, notes: list[str]
) -> _Rows:
    if not in_words:
        text = _find_required(table, "text", columns)
        spans = _find(table, "spans", columns, required=split != "test")
        return [(row, _example_of_spans(table, row, cells, text, spans)) for row, cells in table.rows]
    tokens = _find_required(table, "tokens", columns)
    tags = _find(table, "tags", columns, required=split != "test")
    reader = TagReader(table.error, repair)
    # Published data sets have empty sentences, which nobody can remove from there.
    kept = [(row, cells) for row, cells in table.rows if table.is_file or cells.get(tokens) != []]
    rows: _Rows = [(row, _example_of_words(table, row, cells, tokens, tags, reader)) for row, cells in kept]
    title = split if table.is_file else table.name
    notes.extend(reader.notes(title))
    if left_out := len(table.rows) - len(kept):
        notes.append(f"{title}: {left_out} row{'s' if left_out > 1 else ''} without words left out")
    if not rows:
        raise UserError(f"{title} has 0 sentences: expected rows with words in {quoted(tokens)}")
    return rows


def _example_of_words(
    table: Table, row: int, cells: _Cells, tokens: str, tags: str | None, reader: TagReader
) -> TokenExample:
    if _missing(cells.get(tokens)) or cells[tokens] == []:
        raise table.error(row, f"there are no words in column {quoted(tokens)}; fill it or remove the row")
    words = _list_of_words(table, row, cells[tokens], tokens)
    if not all(word.strip() for word in words):
        raise table.error(row, f"word {[bool(w.strip()) for w in words].index(False) + 1} is empty")
    if tags is None or _missing(cells.get(tags)):
        return TokenExample(words)
    found = _list_of_words(table, row, cells[tags], tags)
    if len(found) != len(words):
        raise table.error(row, f"{len(words)} words and {len(found)} tags; expected one tag for each word")
    return TokenExample(words, reader.read(found, [row] * len(found)))


def _example_of_spans(table: Table, row: int, cells: _Cells, column: str, spans: str | None) -> TokenExample:
    text = _text(table, row, cells, column)
    cell = cells.get(spans) if spans is not None else None
    labelled = not _missing(cell)
    try:
        words, offsets, tags = spans_to_tags(text, _spans(table, row, cell) if labelled else [])
    except UserError:
        raise
    except ValueError as error:
        raise table.error(row, " ".join(str(error).split())) from error
    return TokenExample(words, tags if labelled else None, text, offsets)


# What must hold of all rows


def _check_labelled(table: Table, rows: _Rows, split: str) -> None:
    without = [row for row, example in rows if label_of(example) is None]
    if without and split != "test":
        raise table.error(without[0], f"no label; every row of {split} needs one")
    if without and len(without) < len(rows):
        raise table.error(
            without[0],
            f"no label, but {len(rows) - len(without)} rows of test have one; label all rows or none",
        )


def _check_pairs(tables: Mapping[str, Table], rows: Mapping[str, _Rows]) -> None:
    paired = {
        split: isinstance(first, TextExample) and first.pair is not None
        for split, ((_, first), *_) in rows.items()
    }
    for split, table in tables.items():
        if paired[split] != paired["train"]:
            here, there = ("pairs", "single texts") if paired[split] else ("single texts", "pairs")
            raise UserError(f"{table.name}: {here}, but {tables['train'].name} has {there}; name the columns")


def _label_names(kind: TaskType, rows: _Rows) -> tuple[str, ...]:
    if not kind.has_classes:
        return ()
    names = {name for _, example in rows for name in _names_in(example)}
    if kind.tagging:
        types = sorted({name[2:] for name in names if name != "O"})
        return ("O", *(f"{prefix}-{one}" for one in types for prefix in "BI"))
    if all(_INTEGER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _names_in(example: Example) -> tuple[str, ...]:
    label = label_of(example)
    if isinstance(label, str):
        return (label,)
    return label if isinstance(label, tuple) else ()


def _check_number_of_labels(train: Table, kind: TaskType, names: Sequence[str]) -> None:
    # One class is no classification, and Transformers takes a head with one output for a regression.
    if kind.label == "classes":
        if not names:
            raise UserError(f"{train.name}: no row has a class; there is nothing to learn")
    elif len(names) < 2:
        raise UserError(f"{train.name}: expected at least two labels, found only {quoted(names[0])}")


def _check_known(table: Table, rows: _Rows, names: Sequence[str], source: str) -> None:
    known = set(names)
    for row, example in rows:
        for name in _names_in(example):
            if name not in known:
                raise table.error(
                    row,
                    f"the label {quoted(name)} is not among those of {source}: {listed(map(quoted, names))}",
                )
