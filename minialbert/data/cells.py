"""What a cell of a labelled table says: a class or several, a score, words with their tags, spans of a text."""

from __future__ import annotations

import ast
import json
import math
import re
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import accumulate
from typing import Any, Literal, get_args

from minialbert_runtime.words import Span

from minialbert.data.table_files import Table
from minialbert.errors import UserError, listed, quoted

Overlaps = Literal["refuse", "longest", "first"]

_SEPARATORS = ("|", ";", ",", "\n", "/", "+", "&")
_DOUBTFUL = ("\n", "/", "+", "&")
_ZEROS, _ONES = ("0", "0.0", "False", "false", "FALSE"), ("1", "1.0", "True", "true", "TRUE")
_LITERAL = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[-+]?\d+(?:\.\d*)?|True|False|None"""
# Also numpy's, without commas: Python itself would join 'a' 'b' to one text.
_LIST = re.compile(rf"\s*(?:(?:{_LITERAL})(?:[\s,]+(?:{_LITERAL}))*[\s,]*)?")
# Around a list where Python's sets and numpy's arrays were written as they are shown.
_WRAPPED = re.compile(r"(?:frozenset|set|array)\((.*?)(?:,\s*dtype=[^()]*)?\)", re.DOTALL)
_LIKE_A_LIST = re.compile(r"[\[{].*[\]}]|\w+\([\[{(].*\)", re.DOTALL)
_LARGEST_SCORE = 3.4e38  # that a model can answer
_START = ("start", "begin", "start_offset", "start_char")
_END = ("end", "end_offset", "end_char")
_TYPE = ("label", "type", "entity", "labels", "entity_type", "entity_group", "tag")


# In what other tools count offsets, as the size of each character of a text.
_UNITS: dict[str, Callable[[str], Iterable[int]]] = {
    "UTF-16 units": lambda text: (1 + (one > "\uffff") for one in text),
    "CR LF as one character": lambda text: (
        one + two != "\r\n" for one, two in zip(text, text[1:] + " ", strict=True)
    ),
    "bytes of UTF-8": lambda text: (len(one.encode("utf-8", "replace")) for one in text),
}
_Parts = tuple[tuple[int, int], ...]


@dataclass
class Quotes:
    """What spans quote of their texts, compared with what stands at their offsets."""

    compared: int = 0
    others: int = 0  # whose letters are other ones, too
    # What to tell, of each that differs by more than whitespace.
    elsewhere: list[str] = field(default_factory=list)
    # The places of those whose offsets are in other units, by these.
    in_units: dict[str, list[str]] = field(default_factory=dict)
    _borders: tuple[str, dict[str, dict[int, int]]] = (
        "",
        {},
    )  # of the last text: places by offsets in each unit

    def compare(self, place: str, what: str, quote: object, text: str, parts: _Parts) -> _Parts:
        """Returns the parts of a span, given in whatever unit its quote stands at their offsets exactly.

        The quote, if it is a text, is compared with what stands there; `what` names the span.
        """
        if not isinstance(quote, str):
            return parts
        self.compared += 1
        there = between(text, parts)
        if quote.split() == there.split():
            return parts
        if quote.strip() and (not text.isascii() or "\r\n" in text):
            for unit, borders in self._borders_of(text).items():
                found = tuple((borders.get(start, 0), borders.get(end, 0)) for start, end in parts)
                if between(text, found).split() == quote.split():
                    self.in_units.setdefault(unit, []).append(place)
                    return found
        self.elsewhere.append(f"{place}: {what} quotes {quoted(quote)}, where {quoted(there)} stands")
        self.others += _letters(quote) != _letters(there)
        return parts

    def _borders_of(self, text: str) -> dict[str, dict[int, int]]:
        if self._borders[0] != text:
            sizes = {unit: accumulate(size(text), initial=0) for unit, size in _UNITS.items()}
            self._borders = text, {unit: {at: n for n, at in enumerate(ends)} for unit, ends in sizes.items()}
        return self._borders[1]

    def notes(self) -> list[str]:
        """Returns a line where some differ; UserError where most of three or more do: their offsets count otherwise."""
        rule = "offsets count characters from 0, the end exclusive"
        if self.others > 2 and 2 * self.others > self.compared:
            many = f"so do {self.others:,} of {self.compared:,}: {rule}, CR LF as two, and neither bytes, UTF-16 units"
            raise UserError(f"{self.elsewhere[0]}; {many} nor a mark of byte order")
        notes = [f"{first}: {rule} ({len(self.elsewhere):,} such entities)" for first in self.elsewhere[:1]]
        for unit, places in self.in_units.items():
            told = f"offsets are read as {unit}, since what they quote stands there"
            notes.append(f"{places[0]}: {told} ({len(places):,} such entities)")
        return notes


def between(text: str, parts: Sequence[tuple[int, int]]) -> str:
    """Returns the parts of a text with a space between them."""
    return " ".join(text[max(start, 0) : max(end, 0)] for start, end in parts)


def _letters(text: str) -> str:
    return re.sub(r"\W+", "", text).casefold()


def missing(cell: object) -> bool:
    """Returns whether a cell holds nothing, as pandas writes it too."""
    return (
        cell is None
        or (isinstance(cell, str) and not cell.strip())
        or (isinstance(cell, float) and cell != cell)
    )


def text_of(table: Table, row: int, cells: Mapping[str, Any], column: str) -> str:
    """Returns the text in a column."""
    cell = cells.get(column)
    if missing(cell):
        raise table.error(row, f"the text in column {quoted(column)} is empty; fill it or remove the row")
    if not isinstance(cell, str):
        raise table.error(row, f"expected a text in column {quoted(column)}, found {quoted(cell)}")
    return cell


def class_name(table: Table, row: int, cell: object) -> str:
    """Returns the name of the one class that a cell names, also as the only one of a list."""
    if not isinstance(cell, str) or cell.lstrip().startswith("["):
        found = list_in(cell)
        cell = cell if found is None else found[0] if len(found) == 1 else found
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # as pandas has integers beside a missing one
    if isinstance(cell, (str, int)) and not missing(cell):
        return str(cell).strip()
    several = isinstance(cell, list) and len(cell) > 1 and all(isinstance(one, str) for one in cell)
    advice = ": several classes are a multi-label task, or answer several questions (set task.label to one)"
    advice = advice if several else ""
    raise table.error(row, f"expected a class as text or integer, found {quoted(cell)}{advice}")


def score_of(table: Table, row: int, cell: object) -> float:
    """Returns the number in a cell."""
    try:
        if isinstance(cell, bool) or not isinstance(cell, (int, float, Decimal, str)) or "_" in str(cell):
            raise ValueError
        score = float(cell)
    except (ValueError, OverflowError):
        score = math.nan
    if abs(score) <= _LARGEST_SCORE:
        return score
    what = "a number up to 3.4e38 (of 32 bits)" if math.isfinite(score) else "a finite number"
    advice = "; write a point for the decimal comma" if re.fullmatch(r"\s*[-+]?\d+,\d+\s*", str(cell)) else ""
    raise table.error(row, f"expected {what} as score, found {quoted(cell)}{advice}")


def list_in(cell: object) -> list[Any] | None:
    """Returns the list that a cell is or spells, as JSON, Python and numpy write texts and numbers; else None."""
    if not isinstance(cell, str):
        return cell if isinstance(cell, list) else None
    cell = cell.strip()
    if wrapped := _WRAPPED.fullmatch(cell):
        cell = wrapped[1] or "[]"
    if cell[:1] + cell[-1:] not in ("[]", "()", "{}"):
        return None
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        if not _LIST.fullmatch(cell[1:-1]):
            return None
        try:
            value = [ast.literal_eval(item) for item in re.findall(_LITERAL, cell[1:-1])]
        except (ValueError, SyntaxError):
            return None
    return value if isinstance(value, list) else [] if value == {} else None


@dataclass(frozen=True)
class ClassCells:
    """How the cells of a multi-label column name their classes, found from all of them."""

    separator: str  # between the names in a text
    vector: tuple[str, ...] | None = None  # the class of each place where the cells have a 0 or 1 for each

    def read(self, table: Table, row: int, cell: object) -> tuple[str, ...]:
        """Returns the names of the classes that apply."""
        parts = _parts(cell, self.separator)
        if parts is None:
            raise table.error(row, f"expected a list of classes, found {quoted(cell)}")
        if self.vector is not None and parts:
            return tuple(name for name, part in zip(self.vector, parts, strict=True) if flag_of(part))
        names = tuple(class_name(table, row, part) for part in parts)
        if len(set(names)) < len(names):
            advice = "expected the name of each class that applies, once"
            raise table.error(row, f"a class occurs twice in {quoted(cell)}; {advice}")
        return names


def understand_classes(
    column: str,
    tables: Sequence[Table],
    labels: Sequence[str] | None,
    separator: str | None,
    notes: list[str],
) -> ClassCells:
    """Returns how the cells of a multi-label column, of all splits together, name their classes.

    Without a separator given it is the mark that leaves the fewest names, if these are not more than there are
    combinations. A 0 or 1 for each class needs the names.
    """
    cells = [(table, row, value[column]) for table in tables for row, value in table.rows if column in value]
    cells = [(table, row, cell) for table, row, cell in cells if not missing(cell)]
    are_numbers = bool(labels and set(labels) <= {*_ZEROS, *_ONES})
    if cells and not are_numbers and all(flag_of(cell) is not None for _, _, cell in cells):
        table, row, _ = cells[0]
        advice = f"name them all, as in task.label=[{', '.join(flag_columns(table)) or column}]"
        told = f"the column {quoted(column)} holds 0 and 1 alone; of one column for each class"
        raise table.error(row, f"{told} {advice}")
    for table, row, cell in cells:
        if isinstance(cell, str) and _LIKE_A_LIST.fullmatch(cell.strip()) and list_in(cell) is None:
            advice = f"write it as JSON, or names divided by {quoted(separator or _SEPARATORS[0])}"
            raise table.error(row, f"{quoted(cell)} looks like a list and cannot be read as one: {advice}")
    if separator is None:
        texts = {cell for _, _, cell in cells if isinstance(cell, str) and list_in(cell) is None}
        separator = _separator(cells[0][0] if cells else None, column, texts, notes)
    lists = [(table, row, _parts(cell, separator)) for table, row, cell in cells]
    widths = {len(parts or ()) for _, _, parts in lists}
    are_flags = all(parts and all(flag_of(part) is not None for part in parts) for _, _, parts in lists)
    if not are_flags or are_numbers or widths <= {1} or len(widths) > 1:
        if lists and widths <= {0, 1}:
            told = f"no cell in column {quoted(column)} names two classes or is divided by"
            advice = "if one should be, name what divides it as task.label_separator"
            notes.append(f"{told} {quoted(separator)}: {advice}")
        return ClassCells(separator)
    width, (table, row, _) = widths.pop(), lists[0]
    if labels is None or len(labels) != width:
        named = f"`labels` names {len(labels)}" if labels else "their names are not known"
        told = f"{quoted(column)} has a 0 or 1 for each of {width} classes, and {named}"
        advice = "name them in the order of the columns, as in task.labels=[A, B, C]"
        raise table.error(row, f"{told}: {advice}")
    notes.append(f"the 0 and 1 in column {quoted(column)} are those of {listed(labels)}, in this order")
    return ClassCells(separator, tuple(labels))


def _separator(table: Table | None, column: str, texts: set[str], notes: list[str]) -> str:
    names = {mark: {part.strip() for text in texts for part in text.split(mark)} for mark in _SEPARATORS}
    there = [mark for mark in _SEPARATORS if any(mark in text for text in texts)]
    # A mark divides if the parts are classes of other cells too; one that names often hold, only if it saves some.
    most = {mark: len(texts) - (mark in _DOUBTFUL) for mark in there}
    dividing = [mark for mark in there if len(names[mark] - {""}) <= most[mark]]
    if dividing:
        mark = min(dividing, key=lambda mark: len(names[mark]))
        if mark != _SEPARATORS[0]:
            notes.append(f"the classes in column {quoted(column)} are divided by {quoted(mark)}")
        return mark
    mark = next(iter(there), _SEPARATORS[0])
    if table is not None and mark != _SEPARATORS[0] and mark not in _DOUBTFUL:
        example = next(text for text in texts if mark in text)
        told = f"{quoted(example)} in column {quoted(column)} may be one class or several"
        advice = f"to {quoted(mark)} to divide such cells, or to '|' to leave them whole"
        raise UserError(f"{table.name}: {told}: set task.label_separator {advice}")
    return _SEPARATORS[0]


def _parts(cell: object, separator: str) -> list[Any] | None:
    parts = list_in(cell)
    if parts is None and isinstance(cell, str):
        stripped = cell.strip().removesuffix(separator)
        parts = list(stripped.split(separator)) if stripped.strip() else []
    return parts


def flag_columns(table: Table) -> list[str]:
    """Returns the columns that hold a 0 or 1 in every row."""
    rows = [cells for _, cells in table.rows]
    return [name for name in table.columns if all(flag_of(row.get(name)) is not None for row in rows)]


def classes_of_flags(
    table: Table, row: int, cells: Mapping[str, Any], columns: Sequence[str]
) -> tuple[str, ...] | None:
    """Returns the columns that hold a 1; None where all of them are empty."""
    if all(missing(cells.get(column)) for column in columns):
        return None
    flags = {column: flag_of(cells.get(column)) for column in columns}
    for column, flag in flags.items():
        if flag is None:
            found = f"the column {quoted(column)} of a class, found {quoted(cells.get(column))}"
            raise table.error(row, f"expected 0 or 1 in {found}")
    return tuple(column for column, flag in flags.items() if flag)


def flag_of(cell: object) -> bool | None:
    """Returns what a 0 or 1, a true or false says, None for any other cell."""
    if isinstance(cell, int | float):
        return bool(cell) if cell in (0, 1) else None
    spelled = cell.strip() if isinstance(cell, str) else None
    return True if spelled in _ONES else False if spelled in _ZEROS else None


def words_of(table: Table, row: int, cell: object, column: str) -> tuple[str, ...]:
    """Returns the words, or tags, in a cell: a list, or a text divided by spaces. No whitespace is around them."""
    found = list_in(cell)
    if isinstance(cell, str) and (found is None or not all(isinstance(word, str) for word in found)):
        found = [word for word in cell.split(" ") if word]
    if found is not None and all(isinstance(word, str) for word in found):
        if empty := [at for at, word in enumerate(found, start=1) if not word.strip()]:
            raise table.error(row, f"word {empty[0]} is empty in column {quoted(column)}")
        return tuple(map(str.strip, found))
    raise table.error(row, f"expected a list of strings in column {quoted(column)}, found {quoted(cell)}")


def tags_of(
    table: Table, row: int, cell: object, column: str, words: Sequence[str], labels: Sequence[str] | None
) -> tuple[str, ...]:
    """Returns the tags in a cell, one for each of the words; whole numbers are the places of `labels`."""
    numbers = list_in(cell)
    if not numbers or not all(type(tag) is int for tag in numbers):
        tags = words_of(table, row, cell, column)
    elif labels is None:
        told = f"the tags in column {quoted(column)} are numbers, and their names are not known"
        advice = "name them in the order of the numbers, as in task.labels=[O, B-X, I-X]"
        raise table.error(row, f"{told}: {advice}")
    elif not all(0 <= tag < len(labels) for tag in numbers):
        raise table.error(row, f"expected tags from 0 to {len(labels) - 1} (`labels`), found {quoted(cell)}")
    else:
        tags = tuple(labels[tag] for tag in numbers)
    if len(tags) != len(words):
        raise table.error(row, f"{len(words)} words and {len(tags)} tags; expected one tag for each word")
    return tags


def spans_of(table: Table, row: int, cell: object, text: str, quotes: Quotes) -> list[Span]:
    """Returns the spans in a cell, in their order; what they quote is compared with their text."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            try:
                cell = ast.literal_eval(str(cell).strip())  # what pandas writes of a list
            except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
                raise table.error(row, f"expected spans as a JSON list, found {quoted(cell)}") from error
    if isinstance(cell, Mapping) and isinstance(
        own := cell.get("entities"), list
    ):  # of spaCy's training data
        cell = own
    if isinstance(cell, Mapping) and cell and all(isinstance(part, list) for part in cell.values()):
        if len({len(part) for part in cell.values()}) > 1:
            raise table.error(row, f"expected lists of one length in {quoted(cell)}")
        cell = [dict(zip(cell, values, strict=True)) for values in zip(*cell.values(), strict=True)]
    if not isinstance(cell, list):
        raise table.error(row, f"expected a list of spans, found {quoted(cell)}")
    spans = [_span(table, row, item) for item in cell]
    found = []
    for span, item in zip(spans, cell, strict=True):
        quote, parts = item.get("text") if isinstance(item, Mapping) else None, ((span.start, span.end),)
        what = f"the span {span.start}-{span.end}"
        ((start, end),) = quotes.compare(table.place(row), what, quote, text, parts)
        found.append(Span(start, end, span.label))
    return found


def _span(table: Table, row: int, item: object) -> Span:
    parts: tuple[object, ...] = ()
    if isinstance(item, Mapping):
        names = (_START, _END, _TYPE)
        parts = tuple(next((item[key] for key in keys if item.get(key) is not None), None) for keys in names)
    elif isinstance(item, (list, tuple)):
        parts = tuple(item)
    if len(parts) == 3:
        start, end, label = _offset(parts[0]), _offset(parts[1]), parts[2]
        if isinstance(label, list) and len(label) == 1:
            label = label[0]
        if start is not None and end is not None and isinstance(label, str):
            return Span(start, end, label.strip())
    raise table.error(row, f"expected a span as start, end (integers) and label, found {quoted(item)}")


def _offset(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,9}(\.0*)?\s*", value):
        return int(float(value))
    return value if type(value) is int else None


def without_overlaps(text: str, spans: Sequence[Span], keep: Overlaps) -> tuple[list[Span], int, int]:
    """Returns the spans without doubles, and without those that overlap; how many were double, how many overlap.

    Of those that overlap the longest is kept, or the first, of equals the one that stands first; "refuse" keeps all.
    """
    if keep not in get_args(Overlaps):
        raise UserError(
            f"overlaps {quoted(keep)}: expected {', '.join(get_args(Overlaps))}; a word has one tag, so tune a tagger "
            "for each layer of nested entities: 'minialbert convert-data --overlaps layers' writes them apart"
        )
    first: dict[tuple[int, int, str], Span] = {}
    for span in spans:
        first.setdefault((*_trimmed(text, span), span.label), span)
    unique = list(first.values())
    trimmed = [(span, *_trimmed(text, span)) for span in unique]
    length = (lambda entry: entry[1] - entry[2]) if keep == "longest" else (lambda entry: entry[1])
    kept: list[tuple[int, int, Span]] = []  # sorted, none overlaps another
    for span, start, end in sorted(trimmed, key=lambda entry: (length(entry), entry[1], -entry[2])):
        place = bisect_right(kept, (start, end), key=lambda other: other[:2])
        before, after = kept[max(place - 1, 0) : place], kept[place : place + 1]
        if not (before and before[0][1] > start) and not (after and after[0][0] < end):
            insort(kept, (start, end, span), key=lambda other: other[:2])
    chosen = {span for _, _, span in kept}
    overlapping = len(unique) - len(chosen)
    result = unique if keep == "refuse" else [span for span in unique if span in chosen]
    return result, len(spans) - len(unique), overlapping


def _trimmed(text: str, span: Span) -> tuple[int, int]:
    inner = text[span.start : span.end] if 0 <= span.start <= span.end <= len(text) else ""
    start = span.start + len(inner) - len(inner.lstrip())
    return start, start + len(inner.strip()) if inner else span.end
