"""Labelled data of one's own (tables, tagged files, a hub data set, rows in memory) as a task.

`table_files`, `rows` and `ner` read the rows, `cells` what stands in them; here their columns are found, and each row
becomes an example.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minialbert_runtime.words import spans_to_tags

from minialbert.data.cells import (
    ClassCells,
    Overlaps,
    class_name,
    classes_of_flags,
    flag_columns,
    flag_of,
    missing,
    score_of,
    spans_of,
    tags_of,
    text_of,
    understand_classes,
    without_overlaps,
    words_of,
)
from minialbert.data.examples import (
    Example,
    Task,
    TextExample,
    TokenExample,
    counted_labels,
    label_of,
)
from minialbert.data.hub import PREFIX, assign_splits, load_saved, load_splits
from minialbert.data.ner import LINES, Repair, TagReader, is_tagged, read_tagged
from minialbert.data.rows import LabelledData, table_in_memory
from minialbert.data.table_files import Table, find_tables, read_tables
from minialbert.data.task_types import TaskType, task_type
from minialbert.errors import UserError, listed, local_path, quoted, shown

# What a pair of texts is called, in lower case and without underscores, hyphens and spaces.
_PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text", "textpair"),
    ("text1", "text2"), ("texta", "textb"), ("sentencea", "sentenceb"), ("text", "text2"), ("question", "context"),
    ("question", "passage"), ("question", "sentence"), ("question", "answer"), ("query", "passage"),
    ("query", "document"), ("claim", "evidence"),
)  # fmt: skip
_COMMON_NAMES = {
    "text": ("text", "sentence", "sentence1", "premise", "question", "question1"),
    "label": ("label", "labels", "class", "gold_label"),
    "score": ("label", "labels", "class", "gold_label", "score"),
    "tokens": ("tokens", "words"),
    "tags": ("tags", "ner_tags", "labels"),
    "spans": ("spans", "entities"),
    "id": ("id", "idx"),
}
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_ANSWERS = ("accept", "reject", "ignore")  # of Prodigy

_Cells = Mapping[str, Any]
_Rows = list[tuple[int, Example]]
_Used = dict[str, tuple[str, ...]]  # columns by role


# The columns that may be named, by what they hold; a second text ("pair") is found beside the first alone. Of several
# classes the label may be the columns that hold a 0 or 1 for each.
_Columns = Mapping[str, str | Sequence[str] | None]
ROLES = ("text", "pair", "label", "tokens", "tags", "spans", "id", "group")


def load_table(
    data: LabelledData,
    problem: str,
    *,
    name: str | None = None,
    columns: _Columns | None = None,
    labels: Sequence[str] | None = None,
    model_labels: Sequence[str] | None = None,
    label_separator: str | None = None,
    repair: Repair = "repair",
    overlaps: Overlaps = "refuse",
) -> Task:
    """Returns labelled data as a task.

    docs/data.md has every shape that is read, repaired or refused; for files see `table_files.read_table` and
    `ner.read_tagged`. Rows of train and validation must be labelled; those of test all or none. Rows that an annotator
    rejected are left out. Labels of validation and test that train does not have count as missed, which the notes say.

    Args:
        data: a file, which is train, or a directory, see `table_files.find_tables`; `hub:OWNER/NAME` or
            `hub:OWNER/NAME:CONFIG`. Or rows in memory: dictionaries, pairs of text and label (words and tags; text and
            spans), a data set of the `datasets` library or a pandas frame; alone they are the train split, of several
            splits they stand under their names.
        problem: which kind of label the data have.
        name: what records call the task; by default the name of the directory or file.
        columns: the columns of `ROLES` that do not have their common names.
        labels: label names in the order of their ids; of a token task the tags, "O" among them. By default those of
            the train split, sorted: by number if all are integers, else by the alphabet; tags as O, B-X, I-X, B-Y, ...
        model_labels: those of a model to be scored, where `labels` are not given; a train split is then not needed.
        label_separator: divides the classes of a multi-label cell; by default what the cells themselves show.
        repair: what to do with an I- tag that follows nothing or another type: read it as B-, or refuse the data.
        overlaps: what to do with spans that share a word: refuse the data, or keep the longest or the first.

    Returns:
        The task. A `UserError` names the file and the row where the data are not as described.
    """
    kind = task_type(problem)
    columns = columns or {}
    _check_options(kind, labels, label_separator, columns)
    reader = _Reader(kind, columns, labels, repair, overlaps, needs_train=model_labels is None)
    notes = reader.notes
    default_name, tables = reader.splits(data)
    main_split, main = next(iter(tables.items()))
    rows: dict[str, _Rows] = {}
    used: dict[str, _Used] = {}
    in_words = kind.tagging and _is_in_words(main, columns)
    classes = None
    if kind.label == "classes":
        classes = _class_cells(tables, columns, labels or model_labels, label_separator, notes)
    for split, table in tables.items():
        if not kind.tagging:
            rows[split], used[split] = reader.texts(table, split, classes)
        else:
            rows[split], used[split] = (reader.sentences if in_words else reader.spans)(table, split)
        _check_labelled(table, rows[split], split)
        if columns.get("group") is not None and split == "train":
            rows[split] = _with_groups(table, rows[split], str(columns["group"]))
            used[split] = used[split] | {"group": (str(columns["group"]),)}
    _check_pairs(tables, used)
    own = tuple(labels or model_labels or _flag_names(columns)) if kind.has_classes else ()
    names = own or _label_names(kind, rows[main_split])
    if kind.has_classes:
        _check_number_of_labels(main, kind, names)
        source = "`labels`" if labels else "the model" if model_labels else "the train split"
        for split, table in tables.items():
            strict = split == "train" and model_labels is None
            notes += _unknown_labels(table, split, rows[split], names, source, strict=strict)
        notes += _notes_on_names(main, used[main_split], names)
    examples = {split: [example for _, example in split_rows] for split, split_rows in rows.items()}
    told = _columns_told(main, used[main_split])
    return Task(name or default_name, problem, names, kind.metrics[0], examples, tuple(notes), told)


@dataclass
class _Reader:
    """What a caller asked for, and the notes on what was read."""

    kind: TaskType
    columns: _Columns
    labels: Sequence[str] | None
    repair: Repair
    overlaps: Overlaps
    needs_train: bool
    notes: list[str] = field(default_factory=list)

    def splits(self, data: LabelledData) -> tuple[str, dict[str, Table]]:
        """Returns a name for the task, and the table of each split, without the rows that an annotator rejected."""
        splits: Mapping[str, Any] | None = None
        name = title = "rows in memory"
        if isinstance(data, str) and data.startswith(PREFIX):
            (name, splits), title = load_splits(data), data
            name = name.lower()
        elif isinstance(data, str | Path):
            path = local_path(data)
            name, title, splits = (
                path.resolve().name if path.is_dir() else path.stem,
                str(path),
                load_saved(path),
            )
            if splits is None:
                tables = self._read_files(path)
                if any(LINES in table.rows[0][1] for table in tables.values()):
                    name = name.lower()
        else:
            name, splits = "in-memory", data if isinstance(data, Mapping) else {"train": data}
        if splits is not None:
            tables = self._tables_of(splits, title)
        return name, {split: self._accepted(table, split) for split, table in tables.items()}

    def _read_files(self, path: Path) -> dict[str, Table]:
        files, left_out = find_tables(path, tagged=self.kind.tagging, needs_train=self.needs_train)
        if left_out:
            self.notes.append(f"{shown(path.name)}: left out {listed(left_out)}")
        roles = ("text", "tokens", "tags", "spans", "label")
        names = [*(name for role in roles for name in _COMMON_NAMES[role]), *map(str, self.columns.values())]
        tables = {}
        for split, paths in files.items():
            one_tagged = self.kind.tagging and len(paths) == 1 and is_tagged(paths[0], names)
            tables[split] = read_tagged(paths[0]) if one_tagged else read_tables(paths)
            self.notes += (f"{split}: {note}" for note in tables[split].notes)
            if path.is_dir() and paths[0].name.count(".") > 1:
                self.notes.append(f"{split}: read from {shown(paths[0].name)}")
        return tables

    def _tables_of(self, splits: Mapping[str, Any], title: str) -> dict[str, Table]:
        found = assign_splits({str(key): str(key) for key in splits}, title)
        if "train" not in found and (self.needs_train or not found):
            raise UserError(f"{title} has no train split: expected train, found {listed(splits)}")
        if others := [str(key) for key in splits if key not in found.values()]:
            self.notes.append(f"{title}: left out the split{'s' if len(others) > 1 else ''} {listed(others)}")
        return {
            split: table_in_memory(splits[key], f"{title} ({key})", in_words=self.kind.tagging)
            for split, key in found.items()
        }

    def _accepted(self, table: Table, split: str) -> Table:
        """Returns the rows that nobody rejected, ignored (Prodigy) or cancelled (Label Studio), and notes the rest."""
        answers = [str(cells.get("answer") or "accept").strip().casefold() for _, cells in table.rows]
        from_prodigy = all(answer in _ANSWERS for answer in answers)

        kept = [
            (row, cells)
            for answer, (row, cells) in zip(answers, table.rows, strict=True)
            if not (flag_of(cells.get("was_cancelled")) or (from_prodigy and answer != "accept"))
        ]
        if left_out := len(table.rows) - len(kept):
            rows = f"{left_out:,} row{'s' if left_out > 1 else ''}"
            self.notes.append(f"{split}: {rows} left out that an annotator rejected, ignored or cancelled")
        if not kept:
            raise UserError(
                f"{table.name}: an annotator rejected, ignored or cancelled every row; 0 rows are left"
            )
        return replace(table, rows=kept)

    def texts(self, table: Table, split: str, classes: ClassCells | None) -> tuple[_Rows, _Used]:
        """Returns the rows of texts or pairs, and which columns they were made of."""
        kind, columns = self.kind, self.columns
        text, pair = _find_texts(table, columns)
        common = "label" if kind.has_classes else "score"
        labels = tuple(_flag_names(columns))
        if labels and not (split == "test" and not set(labels) & set(table.columns)):
            if lost := [column for column in labels if column not in table.columns]:
                raise table.lacks(f"no column {listed(map(quoted, lost))}")
        elif not labels and (found := _find(table, "label", columns, common, required=split != "test")):
            labels = (found,)
        id_column = _find(table, "id", columns, required=columns.get("id") is not None)
        # An empty string is "no class" in a multi-label table, but a test split without a single class is unlabelled.
        empty = all(missing(cells.get(label)) for _, cells in table.rows for label in labels)
        empty_is_no_class = classes is not None and not (empty and split == "test")
        if classes is not None and set(labels or ()) & set(table.columns) and empty and split == "test":
            self.notes.append(
                f"test: every cell of {listed(map(quoted, labels))} is empty, so the split counts as unlabelled"
            )

        def value(row: int, cells: _Cells) -> str | float | tuple[str, ...] | None:
            if _flag_names(columns):
                return classes_of_flags(table, row, cells, labels)
            cell = cells.get(labels[0]) if labels else None
            if cell is None or (missing(cell) and not empty_is_no_class):
                return None
            try:
                own = kind.read_cell(cell)
            except ValueError as error:
                raise table.error(row, str(error)) from error
            if own is not NotImplemented:
                return own
            if classes is not None:
                return classes.read(table, row, cell)
            return (class_name if kind.has_classes else score_of)(table, row, cell)

        def example(row: int, cells: _Cells) -> TextExample:
            second = None if pair is None else text_of(table, row, cells, pair)
            row_id = "" if id_column is None else cells.get(id_column)
            row_id = None if row_id in (None, "") else str(row_id)
            return TextExample(text_of(table, row, cells, text), second, value(row, cells), row_id)

        rows: _Rows = [(row, example(row, cells)) for row, cells in table.rows]
        return rows, _used(text=text, pair=pair) | ({"label": labels} if labels else {}) | _used(id=id_column)

    def spans(self, table: Table, split: str) -> tuple[_Rows, _Used]:
        """Returns the rows of texts with spans, and which columns they were made of."""
        text = _find_required(table, "text", self.columns)
        column = _find_spans(table, self.columns, required=split != "test")
        left_out, elsewhere = Counter[str](), list[str]()

        def example(row: int, cells: _Cells) -> TokenExample:
            said = text_of(table, row, cells, text)
            cell = None if column is None else cells.get(column)
            found = [] if missing(cell) else spans_of(table, row, cell, said, elsewhere)
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
        self.notes += [f"{first} ({len(elsewhere):,} such spans)" for first in elsewhere[:1]]
        return rows, _used(text=text, spans=column)

    def sentences(self, table: Table, split: str) -> tuple[_Rows, _Used]:
        """Returns the rows of words with tags, and which columns they were made of."""
        tokens = _find_required(table, "tokens", self.columns)
        column = _find(table, "tags", self.columns, required=split != "test")
        reader, title = TagReader(table.error, self.repair), split if table.is_file else table.name

        def example(row: int, cells: _Cells) -> TokenExample:
            if missing(cells.get(tokens)) or cells[tokens] == []:
                raise table.error(
                    row, f"there are no words in column {quoted(tokens)}; fill it or remove the row"
                )
            words = words_of(table, row, cells[tokens], tokens)
            if not all(word.strip() for word in words):
                raise table.error(row, f"word {[bool(w.strip()) for w in words].index(False) + 1} is empty")
            if column is None or missing(cells.get(column)):
                return TokenExample(words)
            tags = tags_of(table, row, cells[column], column, self.labels)
            if len(tags) != len(words):
                raise table.error(
                    row, f"{len(words)} words and {len(tags)} tags; expected one tag for each word"
                )
            return TokenExample(words, reader.read(tags, cells.get(LINES) or [row] * len(tags)))

        # Published data sets have empty sentences, which nobody can remove from there.
        kept = [(row, cells) for row, cells in table.rows if table.is_file or cells.get(tokens) != []]
        rows: _Rows = [(row, example(row, cells)) for row, cells in kept]
        self.notes += reader.notes(title)
        if left_out := len(table.rows) - len(kept):
            self.notes.append(f"{title}: {left_out} row{'s' if left_out > 1 else ''} without words left out")
        if not rows:
            raise UserError(f"{title} has 0 sentences: expected rows with words in {quoted(tokens)}")
        return rows, _used(tokens=tokens, tags=column)


def _check_options(
    kind: TaskType, labels: Sequence[str] | None, label_separator: str | None, columns: _Columns
) -> None:
    if labels is not None and not kind.has_classes:
        raise UserError(f"{kind.name} has scores and no classes; leave `labels` out")
    if labels is not None and (not labels or len(set(labels)) < len(labels)):
        raise UserError(f"expected `labels` to name each class once, found {quoted(list(labels), 200)}")
    if labels is not None and kind.tagging and "O" not in labels:
        raise UserError(f"`labels` of a {kind.name} task are tags, 'O' among them; found {listed(labels)}")
    if label_separator is not None and not label_separator.strip():
        raise UserError(f"expected a label separator that is not a blank, found {quoted(label_separator)}")
    if (flags := _flag_names(columns)) and (kind.label != "classes" or len(set(flags)) < len(flags)):
        raise UserError(
            f"the label columns {listed(flags)}: several are for multi-label tasks, a 0 or 1 in each, each named once"
        )


# Columns


def _flag_names(columns: _Columns) -> list[str]:
    """Returns the columns that hold a 0 or 1 for each class, where several are named."""
    label = columns.get("label")
    return [] if label is None or isinstance(label, str) else list(label)


def _find(
    table: Table, role: str, columns: _Columns, common: str | None = None, *, required: bool
) -> str | None:
    """Returns the column of a role; None where there is none and none is required."""
    names, named = _COMMON_NAMES[common or role], columns.get(role)
    found = _find_all(table, common or role)
    if named is not None:
        found = [str(named)] if named in table.columns else []
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


def _find_texts(table: Table, columns: _Columns) -> tuple[str, str | None]:
    """Returns the columns of the text and of the second one of a pair, if there is such."""
    if columns.get("pair") is not None:
        text = _find_required(table, "text", columns)
        return text, _find(table, "pair", columns, "text", required=True)
    own = {re.sub("[ _-]", "", column.lower()): column for column in table.columns}
    named = columns.get("text")
    pairs = [(own[first], own[second]) for first, second in _PAIRS if first in own and second in own]
    pairs = [pair for pair in pairs if named in (None, pair[0])]
    if not pairs:
        return _find_required(table, "text", columns), None
    others = [column for column in _find_all(table, "text") if column not in pairs[0]]
    if named is None and (others or len(pairs) > 1):
        texts = listed(map(quoted, dict.fromkeys([*pairs[0], *others, *pairs[-1]])))
        raise UserError(
            f"{table.name}: {texts} could each be the text or its pair; name them (task.text, task.pair)"
        )
    return pairs[0]


def _find_spans(table: Table, columns: _Columns, *, required: bool) -> str | None:
    """Returns the column of spans, which doccano and Label Studio call label."""
    found = _find(table, "spans", columns, required=False)
    if found is None and columns.get("spans") is None:
        for column in _find_all(table, "label"):
            first = next((cells[column] for _, cells in table.rows if cells.get(column)), None)
            if isinstance(first, list) and isinstance(first[0], list | Mapping):
                return column
    return found or _find(table, "spans", columns, required=required)


def _find_all(table: Table, role: str) -> list[str]:
    return [column for column in table.columns if column.lower() in _COMMON_NAMES[role]]


def _is_in_words(table: Table, columns: _Columns) -> bool:
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
    tokens, spans = _find(table, "tokens", {}, required=False), _find_spans(table, {}, required=False)
    if tokens is None and spans is None:
        raise table.lacks("expected columns tokens and tags, or text and spans")
    return spans is None or (tokens is not None and _find(table, "tags", {}, required=False) is not None)


def _used(**columns: str | None) -> _Used:
    return {role: (column,) for role, column in columns.items() if column is not None}


def _columns_told(table: Table, used: _Used) -> str:
    """Returns which columns were used for what, and which were left out."""
    told = [
        role if columns == (role,) else f"{role} {listed(map(quoted, columns))}"
        for role, columns in used.items()
    ]
    taken = {column for columns in used.values() for column in columns}
    others = [quoted(column) for column in table.columns if column not in taken]
    return ", ".join(told) + (f"; left out {listed(others)}" if others else "")


def _class_cells(
    tables: Mapping[str, Table],
    columns: _Columns,
    labels: Sequence[str] | None,
    separator: str | None,
    notes: list[str],
) -> ClassCells:
    """Returns how the cells of several classes are read, which those of all splits say together."""
    main = next(iter(tables.values()))
    column = None if _flag_names(columns) else _find(main, "label", columns, required=False)
    if column is not None:
        return understand_classes(column, list(tables.values()), labels, separator, notes)
    if not _flag_names(columns) and (flags := flag_columns(main)):
        raise UserError(
            f"{main.name}: no label column; of one column with 0 and 1 for each class name them all, as in "
            f"task.label=[{', '.join(flags)}]"
        )
    return ClassCells("|")


def _with_groups(table: Table, rows: _Rows, column: str) -> _Rows:
    if column not in table.columns:
        raise table.lacks(f"no column {quoted(column)} to group rows by")
    cells = {row: found.get(column) for row, found in table.rows}
    for row, cell in cells.items():
        if missing(cell):
            raise table.error(row, f"the group in column {quoted(column)} is empty; fill it")
    return [(row, replace(example, group=str(cells[row]))) for row, example in rows]


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


def _check_pairs(tables: Mapping[str, Table], used: Mapping[str, _Used]) -> None:
    main = next(iter(tables))
    for split, table in tables.items():
        if ("pair" in used[split]) != ("pair" in used[main]):
            here, there = ("pairs", "single texts") if "pair" in used[split] else ("single texts", "pairs")
            raise UserError(f"{table.name}: {here}, but {tables[main].name} has {there}; name the columns")


def _label_names(kind: TaskType, rows: _Rows) -> tuple[str, ...]:
    if not kind.has_classes:
        return ()
    names = {name for _, example in rows for name in counted_labels(example)}
    if kind.tagging:
        return ("O", *(f"{prefix}-{one}" for one in sorted(names) for prefix in "BI"))
    if all(_INTEGER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _notes_on_names(table: Table, used: _Used, names: Sequence[str]) -> Iterator[str]:
    """Yields notes on names that may be one, and on classes that a data set names and no row has."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.strip().casefold().removesuffix(".0"), []).append(name)
    for several in (several for several in alike.values() if len(several) > 1):
        yield f"the labels {listed(map(quoted, several))} are apart: if they are one, spell them alike in the data"
    declared = (
        name for column in used.get("label", used.get("tags", ())) for name in table.classes.get(column, ())
    )
    if lost := [name for name in declared if name not in names]:
        yield f"{table.name}: no row has {listed(map(quoted, lost))}, so they are not labels; task.labels keeps them"


def _check_number_of_labels(train: Table, kind: TaskType, names: Sequence[str]) -> None:
    # One class is not a classification, and Transformers takes a head with one output for a regression.
    if kind.label == "classes":
        if not names:
            raise UserError(f"{train.name}: no row has a class; there is nothing to learn")
    elif len(names) < 2:
        found = quoted(names[0]) if names else "none"
        raise UserError(f"{train.name}: expected at least two labels, found only {found}")


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
        raise table.error(row, f"the label {quoted(name)} is not among those of {source}: {have}")
    if unknown:
        lost = listed(f"{name} ({count:,})" for name, count in Counter(unknown).most_common())
        yield f"{split}: labels that are not among those of {source} count as missed: {lost}"
