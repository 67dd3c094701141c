"""Files of a user's table (csv, tsv, JSON lines, Parquet), read into rows that know their row number."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minialbert.data.hub import SPLIT_NAMES, assign_splits
from minialbert.errors import UserError, one_line, quoted

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_NAMES = tuple(extension[1:] for extension in EXTENSIONS)
_LINE_END = re.compile(rb"\r\n|\n|\r")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_LARGEST_FIELD = 2**31 - 1  # a C long on every platform
_PARQUET_BATCH = 1024


@dataclass(frozen=True)
class Table:
    """One split, read: row numbers, and cells by column, which can be lists and numbers, but for csv and tsv.

    The number is the line on which the row begins, counted from 1; of Parquet and rows in memory the row, counted from
    1. JSON lines leave out the keys that a line does not have.
    """

    name: str  # the file, or what messages call rows that come from none
    columns: tuple[str, ...]  # in the order of the file; of JSON lines all keys that occur
    rows: list[tuple[int, dict[str, Any]]]
    is_file: bool = True

    def error(self, row: int, message: str) -> UserError:
        """Returns the error that names the file, or what stands for it, and the row."""
        return UserError(f"{self.name}{':' if self.is_file else ', row '}{row}: {message}")


def find_tables(data: Path) -> dict[str, Path]:
    """Returns the file of each split, under "train", "validation", "test", in this order.

    A file is the train split; a directory has train.EXT and, where there are such, validation.EXT (valid, dev, devel)
    and test.EXT, one of each. Other files are left alone.
    """
    if data.is_file():
        return {"train": data}
    if not data.is_dir():
        raise UserError(f"no such file or directory: {data}")
    stems = {path.name: path.name.partition(".")[0] for path in sorted(data.iterdir()) if path.is_file()}
    tables = {name: stem for name, stem in stems.items() if name.partition(".")[2].lower() in _NAMES}
    found = assign_splits(tables, str(data))
    # A table beside train.txt is meant; train.txt alone would be a split that silently goes missing.
    for name in sorted(stems.keys() - tables.keys()):
        if any(stems[name].lower() in names for split, names in SPLIT_NAMES.items() if split not in found):
            raise _unknown_extension(data / name)
    if "train" not in found:
        raise UserError(f"{data}: no train split; expected train with one of {' '.join(EXTENSIONS)}")
    return {split: data / name for split, name in found.items()}


def _unknown_extension(path: Path) -> UserError:
    hint = "; a file with one JSON object a line is named .jsonl" if path.suffix.lower() == ".json" else ""
    return UserError(f"{path}: unknown extension; expected one of {' '.join(EXTENSIONS)}{hint}")


def read_table(path: Path) -> Table:
    """Returns all rows of a file; its extension says how it is read.

    - csv: RFC 4180 quoting, a field may hold line ends; the delimiter is the comma, or the semicolon where
      the header has no comma. A header is required.
    - tsv: one TAB between columns. Quoting is off: a quote is a character as any other, and a field can hold
      neither TAB nor line end. A header is required.
    - jsonl, ndjson: one JSON object a line.
    - parquet: read by pyarrow.

    Text is UTF-8, with or without byte order mark. Blank lines are left out, and keep their number. A file that cannot
    be read, is damaged or has no rows is refused.
    """
    suffix = path.suffix.lower()
    if suffix not in EXTENSIONS:
        raise _unknown_extension(path)
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty")
        if suffix == ".parquet":
            table = _read_parquet(path)
        elif suffix in (".csv", ".tsv"):
            table = _read_separated(path, tabs=suffix == ".tsv")
        else:
            table = _read_json_lines(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
    if not table.rows:
        raise UserError(f"{path}: 0 rows; expected at least one")
    return table


def _read_separated(path: Path, *, tabs: bool) -> Table:
    text = _read_text(path)
    records = _records(path, text, tabs=tabs)
    header_line, header = next(records, (1, None))
    if header is None:
        raise UserError(f"{path}: the file holds blank lines only; expected a header")
    names = tuple(name.strip() for name in header)
    _check_unique(path, header_line, names)
    rows = []
    for line, fields in records:
        if len(fields) != len(names):
            advice = "" if tabs else "; a field with a delimiter or line end in it must be in quotes"
            counts = f"expected {len(names)} columns as in the header, found {len(fields)}"
            raise file_error(path, line, counts + advice)
        rows.append((line, dict(zip(names, fields, strict=True))))
    return Table(str(path), names, rows)


def _records(path: Path, text: str, *, tabs: bool) -> Iterator[tuple[int, list[str]]]:
    lines = io.StringIO(text, newline="")
    if tabs:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, delimiter=_delimiter(text), strict=True)
    begin = 1
    while True:
        try:
            with _long_fields():
                fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = str(error)
            if problem == "unexpected end of data":
                problem = "a quote that opens in this row is never closed"
            raise file_error(path, begin, f"not readable as {path.suffix[1:].lower()} ({problem})") from error
        if fields:
            yield begin, fields
        begin = reader.line_num + 1


def _delimiter(text: str) -> str:
    first_line = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    header = _QUOTED.sub("", first_line)
    return ";" if ";" in header and "," not in header else ","


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lifts the limit of 131072 characters a field; it belongs to the whole process, so it is put back."""
    before = csv.field_size_limit(_LARGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_json_lines(path: Path) -> Table:
    rows, columns = [], dict[str, None]()
    for line, content in enumerate(_read_text(path).split("\n"), start=1):
        if content.strip():
            record = _json_object(path, line, content)
            rows.append((line, record))
            columns.update(dict.fromkeys(record))
    return Table(str(path), tuple(columns), rows)


def _json_object(path: Path, line: int, content: str) -> dict[str, Any]:
    try:
        record = json.loads(content, object_pairs_hook=_without_duplicates)
        if "\\u" in content:  # JSON can spell half of a surrogate pair, which no tokenizer takes
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise file_error(path, line, "holds half of a surrogate pair, which is no character") from error
    except (ValueError, RecursionError) as error:
        raise file_error(path, line, f"not JSON ({one_line(error)}); expected one object a line") from error
    if not isinstance(record, dict):
        found = "an array" if isinstance(record, list) else "a plain value"
        raise file_error(path, line, f"expected a JSON object, found {found}")
    return record


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {quoted(twice)} occurs twice")
    return record


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        with pq.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
            _check_unique(path, None, names)
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                rows.extend(enumerate(batch.to_pylist(), start=len(rows) + 1))
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, ArithmeticError, TypeError) as error:
        # Dates beyond the calendar, unknown time zones, structs that name a field twice: the list is pyarrow's.
        message = f"not readable as Parquet after row {len(rows)} ({one_line(error)})"
        raise UserError(f"{path}: {message}") from error
    return Table(str(path), names, rows)


def _read_text(path: Path, *, in_lines: bool = False) -> str:
    """Returns the text of a UTF-8 file; where LF alone ends its lines, NUL is a character as any other."""
    try:
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    message = "a NUL byte; expected UTF-8 text (is this UTF-16, or another kind of file?)"
    offset = raw.find(0)
    if offset < 0 or in_lines:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            offset = error.start
            message = f"not UTF-8 (byte 0x{raw[offset]:02x}); convert the file to UTF-8"
    ends = raw.count(b"\n", 0, offset) if in_lines else len(_LINE_END.findall(raw, 0, offset))
    raise file_error(path, ends + 1, message)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the number and the text of each line of a UTF-8 file; LF or CR LF ends a line, and nothing else does."""
    for number, line in enumerate(_read_text(path, in_lines=True).split("\n"), start=1):
        yield number, line.removesuffix("\r")


def _check_unique(path: Path, line: int | None, names: tuple[str, ...]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        message = f"the header names {quoted(twice[0])} more than once"
        raise file_error(path, line, message) if line else UserError(f"{path}: {message}")


def file_error(path: Path, row: int, message: str) -> UserError:
    """Returns the error that names a file, the row and what is wrong there."""
    return UserError(f"{path}:{row}: {message}")
