"""Which columns of a labelled table hold what: found by their usual names, or named."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, TypeGuard

from minialbert.data.cells import list_in
from minialbert.data.table_files import Table
from minialbert.errors import UserError, listed, quoted

# What a pair of texts is called, in lower case and without underscores, hyphens and spaces.
_PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text", "textpair"),
    ("text1", "text2"), ("texta", "textb"), ("sentencea", "sentenceb"), ("text", "text2"), ("question", "context"),
    ("question", "passage"), ("question", "sentence"), ("question", "answer"), ("query", "passage"),
    ("query", "document"), ("claim", "evidence"), ("#1string", "#2string"),
)  # fmt: skip
COMMON_NAMES = {
    "text": ("text", "sentence", "sentence1", "premise", "question", "question1"),
    "label": ("label", "labels", "class", "gold_label"),
    "score": ("label", "labels", "class", "gold_label", "score"),
    "answers": ("answers",),
    "tokens": ("tokens", "words"),
    "tags": ("tags", "ner_tags", "labels"),
    "spans": ("spans", "entities"),
    "id": ("id", "idx"),
}

# The columns that may be named, by what they hold; a second text ("pair") is found beside the first alone. Of several
# classes the label may be the columns that hold a 0 or 1 for each.
Columns = Mapping[str, str | Sequence[str] | None]
Used = dict[str, tuple[str, ...]]  # columns by role
ROLES = ("text", "pair", "label", "tokens", "tags", "spans", "id", "group")


def is_by_split(data: object, columns: Columns) -> TypeGuard[Mapping[str, Any]]:
    """Returns whether labelled data in memory are splits by their names, rather than columns, or rows alone."""
    names = {*chain(*COMMON_NAMES.values()), *(str(name).lower() for name in columns.values())}
    return isinstance(data, Mapping) and names.isdisjoint(str(key).lower() for key in data)


def flag_names(columns: Columns) -> list[str]:
    """Returns the columns that hold a 0 or 1 for each class, where several are named."""
    label = columns.get("label")
    return [] if label is None or isinstance(label, str) else list(label)


def find(
    table: Table, role: str, columns: Columns, common: str | None = None, *, required: bool
) -> str | None:
    """Returns the column of a role; None where there is none and none is required."""
    names, named = COMMON_NAMES[common or role], columns.get(role)
    found = find_all(table, common or role)
    if named is not None:
        found = [str(named)] if named in table.columns else []
    if len(found) > 1:
        both = " and ".join(quoted(column) for column in found[:3])
        raise UserError(f"{table.name}: {both} could each be the {role} column: set task.{role} to one")
    if not found and required:
        wanted = quoted(named) if named is not None else f"one of {', '.join(names)}"
        have = table.have(f": set task.{role} to its name (--set task.{role}=NAME)")
        raise UserError(f"{table.name}: no {role} column; expected {wanted}, found {have}")
    return found[0] if found else None


def find_required(table: Table, role: str, columns: Columns) -> str:
    """Returns the column of a role; there has to be one."""
    column = find(table, role, columns, required=True)
    assert column is not None
    return column


def find_texts(table: Table, columns: Columns) -> tuple[str, str | None]:
    """Returns the columns of the text and of the second one of a pair, if there is such."""
    if columns.get("pair") is not None:
        text = find_required(table, "text", columns)
        if text == columns["pair"]:
            raise table.lacks(f"task.text and task.pair are both {quoted(text)}")
        return text, find(table, "pair", columns, "text", required=True)
    named = columns.get("text")
    pairs = usual_pairs(table, named)
    if not pairs:
        return find_required(table, "text", columns), None
    others = [column for column in find_all(table, "text") if column not in pairs[0]]
    if named is None and (others or len(pairs) > 1):
        texts = listed(map(quoted, dict.fromkeys([*pairs[0], *others, *pairs[-1]])))
        advice = "name them (task.text, task.pair)"
        raise UserError(f"{table.name}: {texts} could each be the text or its pair; {advice}")
    return pairs[0]


def usual_pairs(table: Table, text: object = None) -> list[tuple[str, str]]:
    """Returns the columns with usual names of two texts; those beside a text alone, where its column is named."""
    own = {re.sub("[ _-]", "", column.lower()): column for column in table.columns}
    pairs = [(own[first], own[second]) for first, second in _PAIRS if first in own and second in own]
    return [pair for pair in pairs if text in (None, pair[0])]


def find_spans(table: Table, columns: Columns, *, required: bool) -> str | None:
    """Returns the column of spans, which doccano and Label Studio call label."""
    found = find(table, "spans", columns, required=False)
    if found is None and columns.get("spans") is None:
        for column in find_all(table, "label"):
            first = next(filter(None, (list_in(cells.get(column)) for _, cells in table.rows)), None)
            if first and isinstance(first[0], list | Mapping):
                return column
    return found or find(table, "spans", columns, required=required)


def find_all(table: Table, role: str) -> list[str]:
    """Returns all columns with a usual name of a role."""
    return [column for column in table.columns if column.lower() in COMMON_NAMES[role]]


def is_in_words(table: Table, columns: Columns) -> bool:
    """Whether the table has words and tags, rather than a text and spans."""
    named = {role for role, column in columns.items() if column is not None}
    in_words, in_text = bool(named & {"tokens", "tags"}), bool(named & {"text", "spans"})
    if in_words and in_text:
        advice = "name the columns of one of them"
        raise UserError(f"a token task has tokens and tags, or text and spans; {advice}")
    if in_words or in_text:
        return in_words
    tokens, spans = find(table, "tokens", {}, required=False), find_spans(table, {}, required=False)
    if tokens is None and spans is None:
        raise table.lacks("expected columns tokens and tags, or text and spans")
    return spans is None or (tokens is not None and find(table, "tags", {}, required=False) is not None)


def used_columns(**columns: str | tuple[str, ...] | None) -> Used:
    """Returns the columns that were used, by role, in which there may be several."""
    used = {role: own for role, own in columns.items() if own is not None}
    return {role: (own,) if isinstance(own, str) else own for role, own in used.items()}


def columns_told(table: Table, used: Used) -> str:
    """Returns which columns were used for what, and which were left out."""
    told = [role if own == (role,) else f"{role} {listed(map(quoted, own))}" for role, own in used.items()]
    taken = {column for columns in used.values() for column in columns}
    others = [quoted(column) for column in table.columns if column not in taken]
    read_as = f"read as {table.format}: " if table.format else ""
    return read_as + ", ".join(told) + (f"; left out {listed(others)}" if others else "")
