"""Rows that a caller has in memory: lists, iterators, data sets of the `datasets` library, pandas frames.

They are read as files are: one row after the other, each with its number, counted from 1, under a name for messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from minialbert.data.hub import class_names, named_classes
from minialbert.data.table_files import Table
from minialbert.errors import UserError, listed, one_line, quoted

# Labelled data: a path or `hub:` name; rows, a data set or a frame, which are then train; or those by split.
LabelledData = str | Path | Iterable[Any] | Mapping[str, Any]


def kept(data: LabelledData) -> LabelledData:
    """Returns labelled data that can be read more than once: iterators are lists."""
    if isinstance(data, Mapping):
        return {split: list(rows) if isinstance(rows, Iterator) else rows for split, rows in data.items()}
    return list(data) if isinstance(data, Iterator) else data


def is_frame(rows: object) -> bool:
    """Returns whether something is a pandas frame; pandas is not imported for it."""
    return hasattr(rows, "itertuples") and hasattr(rows, "columns")


def is_dataset(rows: object) -> bool:
    """Returns whether something is one split of the `datasets` library."""
    return hasattr(rows, "features") and hasattr(rows, "column_names") and not isinstance(rows, Mapping)


def numbered_rows(
    rows: Any, name: str, column: str | None = None, failure: Callable[[int], str] | None = None
) -> Iterator[tuple[int, Any]]:
    """Yields the number and the content of each row.

    Rows of data sets and frames are dictionaries, perhaps of the one column that is wanted; classes have their names,
    and what is missing is None. Rows of anything else are what it yields. Where it raises an error, a message says that
    no row could be read after the one of this number, or what `failure` makes of it.
    """
    iterator, row = _iterate(rows, column), 0
    try:
        for row, value in enumerate(iterator, start=1):  # the row of the last that could be read
            yield row, value
    except UserError:
        raise
    except Exception as error:  # of an iterator that somebody else has written, or of the hub's transport
        what = failure(row) if failure is not None else f"{name}: no row could be read after row {row}"
        raise UserError(f"{what} ({type(error).__name__}: {one_line(error)})") from error


def _iterate(rows: Any, column: str | None) -> Iterator[Any]:
    if is_frame(rows) and column in rows.columns:
        rows = rows[[column]]
    if hasattr(rows, "notna"):  # a frame, or one of its columns
        rows = rows.astype(object).where(rows.notna(), None)
    if names := getattr(getattr(rows, "dtype", None), "names", None):  # numpy's records
        return (dict(zip(names, row.tolist(), strict=True)) for row in rows)
    if is_frame(rows):
        names = [str(name) for name in rows.columns]
        if len(set(names)) < len(names):
            twice = quoted(max(names, key=names.count))
            raise UserError(f"the frame names the column {twice} more than once")
        cells = rows.itertuples(index=False, name=None)
        return (_plain(dict(zip(names, row, strict=True))) for row in cells)
    if is_dataset(rows):
        if column in (rows.column_names or ()):
            rows = rows.select_columns([column])
        classes = _classes_of(rows)
        return (named_classes(_plain(row), classes) for row in rows)
    return iter(rows)


def _classes_of(rows: Any) -> dict[str, tuple[str, ...]]:
    features = (is_dataset(rows) and rows.features) or {}
    return {name: names for name, feature in features.items() if (names := class_names(feature))}


def _plain(cell: Any) -> Any:
    """Returns a row or a cell without arrays, tensors and numbers of a library's own, wherever in it.

    What pandas has for a missing cell is None.
    """
    if isinstance(cell, str):
        return str.__str__(cell)  # of a member of an enumeration its text, not its name
    if isinstance(cell, Mapping):
        return {name: _plain(one) for name, one in cell.items()}
    if isinstance(cell, set | frozenset):
        return _plain(sorted(cell, key=str))  # in an order that is that of the next process too
    if isinstance(cell, list | tuple):
        return [_plain(one) for one in cell]
    cell = cell.tolist() if hasattr(cell, "tolist") else cell
    return (
        None
        if type(cell).__name__ in ("NAType", "NaTType") or (isinstance(cell, float) and cell != cell)
        else cell
    )


def table_in_memory(rows: Any, name: str, *, in_words: bool) -> Table:
    """Returns rows in memory, at least one, as a table, as `read_table` returns a file.

    They are dictionaries (or named tuples, or rows of a frame), a data set or a frame, or a list for each column by its
    name; or pairs of text and label; or a text, a second one and their label; or, `in_words`, pairs of words and tags,
    or of a text and its spans.
    """
    if isinstance(rows, Mapping):
        rows = _in_rows(rows, name)
    if isinstance(rows, str) or not (isinstance(rows, Iterable) or is_frame(rows)):
        raise UserError(f"{name}: expected rows, a data set or a frame, found {type(rows).__name__}")
    table = Table(name, (), [], is_file=False)
    columns = dict[str, None]()
    for row, given in numbered_rows(rows, name):
        plain = next((way for way in ("_asdict", "to_dict", "tolist") if hasattr(given, way)), None)
        value = given if plain is None else getattr(given, plain)()
        if isinstance(value, Mapping):
            cells = _plain({str(column): cell for column, cell in value.items()})
        elif isinstance(value, (tuple, list)) and len(value) in (2, 3):
            names = _columns_of(value, in_words=in_words)
            if table.rows and not columns.keys() >= {*names}:
                raise table.error(row, f"{listed(names)}, but rows before it have {listed(columns)}")
            cells = _plain(dict(zip(names, value, strict=True)))
        else:
            found = f"{type(value).__name__} {quoted(value)}"
            raise table.error(row, f"expected a dictionary, or a text and its label, found {found}")
        if _has_half_a_pair(list(cells.values())):
            raise table.error(row, "holds half of a surrogate pair, which is not a character")
        table.rows.append((row, cells))
        columns.update(dict.fromkeys(cells))
    if not table.rows:
        raise UserError(f"{name}: 0 rows; expected at least one")
    return replace(table, columns=tuple(columns), classes=_classes_of(rows))


def _in_rows(columns: Mapping[Any, Any], name: str) -> list[dict[Any, Any]]:
    """Returns rows of what is given by column, as data sets and frames hand it out."""
    lengths = {
        str(key): "no list" if isinstance(cells, str) or not hasattr(cells, "__len__") else len(cells)
        for key, cells in columns.items()
    }
    if len({*lengths.values()}) > 1 or "no list" in lengths.values():
        found = listed(f"{key} ({length})" for key, length in lengths.items())
        raise UserError(f"{name}: expected rows, or lists of one length for each column; found {found}")
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _has_half_a_pair(cell: Any, depth: int = 4) -> bool:
    """Returns whether a cell, or what lies in it, holds half of a surrogate pair, which no tokenizer takes."""
    if isinstance(cell, str):
        return not cell.isascii() and any("\ud800" <= letter <= "\udfff" for letter in cell)
    inner = cell.values() if isinstance(cell, Mapping) else cell if isinstance(cell, list | tuple) else ()
    return depth > 0 and any(_has_half_a_pair(item, depth - 1) for item in inner)


def _columns_of(value: tuple[Any, ...] | list[Any], *, in_words: bool) -> tuple[str, ...]:
    if len(value) == 3:
        return "sentence1", "sentence2", "label"
    if not in_words:
        return "text", "label"
    return ("text", "spans") if isinstance(value[0], str) else ("tokens", "tags")
