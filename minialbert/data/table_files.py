"""Files of labelled data (csv, tsv, JSON, Parquet): which is which split, and rows that know their number."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from minialbert.data.hub import SPLIT_NAMES, assign_splits, class_names, named_classes
from minialbert.data.text_streams import check_text
from minialbert.errors import UserError, failing_as, listed, one_line, quoted
from minialbert.runs.files import check_fetched

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
# Files of a word and its tag a line; .tsv may be one too.
TAGGED = (".txt", ".conll", ".conllu", ".bio", ".iob", ".iob2")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_FIRST_LINE = re.compile(r"[\r\n]*([^\r\n]*)(?:\r\n|\r|\n)?")
SEPARATOR_LINE = re.compile(r'"?sep=.?"?', re.IGNORECASE)  # Excel's, for itself
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "TABs", "|": "bars (|)"}
QUOTED = re.compile(r'"(?:[^"]|"")*"')
_QUOTED_CELL = re.compile(r'(?:(?<=[\t\r\n])|\A)"([^"]*(?:""[^"]*)*)"(?=[\t\r\n]|\Z)')
_SHARD = re.compile(r"(.+?)-\d{3,9}-of-(\d{3,9})(\..+)?")
_LARGEST_FIELD = 2**31 - 1  # a C long on every platform
_SAMPLE = 100  # records that a delimiter must fit
_PARQUET_BATCH = 1024


@dataclass(frozen=True)
class Table:
    """One split, read: row numbers, and cells by column, which can be lists and numbers, but for csv and tsv.

    The number is the line on which the row begins, counted from 1; of Parquet, JSON arrays and rows in memory the row,
    counted from 1. JSON leaves out the keys that a row does not have.
    """

    name: str  # the file, or what messages call rows that come from none
    columns: tuple[str, ...]  # in the order of the file; of JSON all keys that occur
    rows: list[tuple[int, dict[str, Any]]]
    is_file: bool = True
    notes: tuple[str, ...] = ()  # what was seen of the file that is not as usual, a line each
    # That the `datasets` library names, by column.
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    format: str = ""  # of a tool that it was recognised as
    unused: tuple[str, ...] = ()  # what of documents is of no use to a task, a line each
    places: Mapping[int, str] = field(default_factory=dict)  # of rows that are not lines of the file

    def place(self, row: int) -> str:
        """Returns the file, or what stands for it, and the row."""
        return self.places.get(row) or f"{self.name}{':' if self.is_file else ', row '}{row}"

    def error(self, row: int, message: str) -> UserError:
        """Returns the error that names the file, or what stands for it, and the row."""
        return UserError(f"{self.place(row)}: {message}")

    def lacks(self, what: str) -> UserError:
        """Returns the error that names the columns there are, and what of them was expected."""
        return UserError(f"{self.name}: {what}; found {self.have()}")

    def have(self, advice: str = "") -> str:
        """Returns the columns there are and the advice; of a csv or tsv of one column what divides columns."""
        columns, suffix = listed(map(quoted, self.columns)), Path(self.name).suffix.lower()
        if len(self.columns) > 1 or not self.is_file or suffix not in (".csv", ".tsv"):
            return f"the columns {columns}{advice}"
        marks = DELIMITERS["\t"] if suffix == ".tsv" else "commas, semicolons, TABs or bars (|)"
        return f"only one column, {columns}: {marks} divide the columns of a {suffix} file"


def find_tables(
    data: Path, *, also: Sequence[str] = (), needs_train: bool = True
) -> tuple[dict[str, list[Path]], list[str]]:
    """Returns the files of each split, under "train", "validation", "test", in this order, and what was left out.

    A file is the train split; a directory has train.EXT and, where there are such, validation.EXT (valid, val, dev,
    devel, testa) and test.EXT (testb), one of each. Shards of one name (train-00000-of-00002.EXT) are one, in order.
    More may stand between name and extension (dev.final.csv) where there is no dev.csv. Where no file has one of these
    names, the only one with train, with dev or valid, and with test in its name is the split (CDR_TrainingSet.txt).
    Other data files and folders are left out, and named. `also` are extensions that are read beside those of tables.
    """
    check_fetched(data)
    if data.is_file():
        return {"train": [data]}, []
    if not data.is_dir():
        raise UserError(f"no such file or directory: {data}")
    extensions = (*EXTENSIONS, *also)
    entries = sorted(path for path in data.iterdir() if not path.name.startswith("."))
    stems = {path.name: path.name.partition(".")[0] for path in entries if not path.is_dir()}
    groups: dict[str, list[str]] = {}  # the files of a table, of which there are several only of shards
    for name in stems:
        if Path(name).suffix.lower() in extensions:
            shard = _SHARD.fullmatch(name)
            groups.setdefault(f"{shard[1]}{shard[3]}" if shard else name, []).append(name)
    plain = {key.partition(".")[0].lower() for key in groups if key.count(".") == 1}
    tables = {key: key.partition(".")[0] for key in groups}
    usual = {key: stem for key, stem in tables.items() if key.count(".") == 1 or stem.lower() not in plain}
    found = assign_splits(usual, str(data)) or _named_alike(tables)
    missing = {name for split, names in SPLIT_NAMES.items() if split not in found for name in names}
    # A table beside train.xlsx is meant; train.xlsx alone would be a split that silently goes missing.
    for name, stem in stems.items():
        if Path(name).suffix.lower() not in extensions and stem.lower() in missing:
            raise unknown_extension(data / name, extensions)
    if not found and (data / "data").is_dir():
        return find_tables(data / "data", also=also, needs_train=needs_train)
    if "train" not in found and (needs_train or not found):
        have = f"; found {listed([path.name for path in entries[:10]])}"
        wanted = "no train split; expected train" if needs_train else "no split; expected train, dev or test"
        raise UserError(f"{data}: {wanted} with one of {' '.join(extensions)}{have}")
    files = {split: [data / name for name in _whole(data, groups[key])] for split, key in found.items()}
    left_out = [key for key in groups if key not in found.values()]
    left_out += [f"{path.name}/" for path in entries if path.is_dir() and path.name.lower() in missing]
    return files, left_out


def is_split_table(path: Path) -> bool:
    """Tells whether a file is a table that is named as a split, or the shard of one."""
    stem = path.name.partition(".")[0].partition("-")[0].lower()
    return path.suffix.lower() in EXTENSIONS and any(stem in names for names in SPLIT_NAMES.values())


def unsplit_tables(folder: Path) -> list[Path]:
    """Returns the tables of a folder in which none is named as a split; of any other folder, and of files, none."""
    tables = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in EXTENSIONS)
    of_library = any(path.name in ("dataset_info.json", "dataset_dict.json") for path in tables)
    stems = {path.name: path.name.partition(".")[0].partition("-")[0] for path in tables}
    return [] if of_library or assign_splits(stems, str(folder)) or _named_alike(stems) else tables


def _named_alike(tables: Mapping[str, str]) -> dict[str, str]:
    """Returns the only file with train, dev or test in its name, for each split; {} without train."""
    parts = {"train": "train", "validation": "dev|valid", "test": "test"}
    said = {
        key: [split for split, part in parts.items() if re.search(part, stem.lower())]
        for key, stem in tables.items()
    }
    alike = {split: [key for key, splits in said.items() if splits == [split]] for split in parts}
    found = {split: keys[0] for split, keys in alike.items() if len(keys) == 1}
    return found if "train" in found else {}


def _whole(folder: Path, names: list[str]) -> list[str]:
    """Returns the files of one split, all of which are there."""
    shard = _SHARD.fullmatch(names[0])
    if (shard or len(names) > 1) and len(names) != (wanted := int(shard[2]) if shard else 1):
        raise UserError(f"{folder}: {listed(names)}: expected {wanted:,} shards, found {len(names)}")
    for name in names:
        check_fetched(folder / name)
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is no file")
    return names


def unknown_extension(path: Path, extensions: tuple[str, ...] = EXTENSIONS) -> UserError:
    """Returns the error that names a file, and the extensions of those that are read."""
    return UserError(f"{path}: unknown extension; expected one of {' '.join(extensions)}")


def read_tables(paths: list[Path]) -> Table:
    """Returns all rows of a file, or of the shards of one, whose rows are then counted through."""
    first, *others = [read_table(path) for path in paths]
    if not others:
        return first
    columns, rows = dict.fromkeys(first.columns), list(first.rows)
    for table in others:
        columns.update(dict.fromkeys(table.columns))
        begin = rows[-1][0]
        rows += [(begin + row, cells) for row, cells in table.rows]
    return replace(first, columns=tuple(columns), rows=rows)


def read_table(path: Path) -> Table:
    """Returns all rows of a file; its extension says how it is read.

    - csv: RFC 4180 quoting, a field may hold line ends; the delimiter is the first of comma, semicolon, TAB and bar
      that parts all rows (the first hundred) as the header; a first line `sep=;` is left out. A header is required.
    - tsv: one TAB between columns. A quote is a character as any other, and a field can hold neither TAB nor line
      end, unless the file is quoted as Excel and pandas do. A header is required.
    - jsonl, ndjson: one JSON object a line. json: the same, or an array of objects.
    - parquet: read by pyarrow. Classes have their names where the file was written by the `datasets` library.

    Text is UTF-8, with or without byte order mark. Blank lines are left out, and keep their number. A file that cannot
    be read, is damaged or has no rows is refused.
    """
    suffix = path.suffix.lower()
    if suffix not in EXTENSIONS:
        raise unknown_extension(path)
    with failing_as(f"{path}: cannot be read", OSError):
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty")
        if suffix == ".parquet":
            table = _read_parquet(path)
        elif suffix in (".csv", ".tsv"):
            table = _read_separated(path, tabs=suffix == ".tsv")
        else:
            table = read_json(path, may_be_array=suffix == ".json")
    if not table.rows:
        raise UserError(f"{path}: 0 rows; expected at least one")
    return table


def _read_separated(path: Path, *, tabs: bool) -> Table:
    text, delimiter, notes = read_text(path), "\t", list[str]()
    begin, quoted_cells = 1, not tabs
    first = _FIRST_LINE.match(text)
    if first is not None and SEPARATOR_LINE.fullmatch(first[1]):
        begin += len(_LINE_END.findall(first[0].encode()))
        text = text[first.end() :]
    if tabs:
        quoted_cells = _is_quoted(path, text)
        if quoted_cells:
            notes.append("cells in quotes are read without them, as spreadsheets write them")
    else:
        delimiter = _delimiter(path, text)
        if delimiter != ",":
            notes.append(f"columns are divided by {DELIMITERS[delimiter]}")
    lines = io.StringIO(text, newline="")
    records = separated_records(path, lines, delimiter, quoted_cells=quoted_cells, begin=begin)
    header_line, header = next(records, (1, None))
    if header is None:
        raise UserError(f"{path}: the file holds blank lines only; expected a header")
    names = tuple(name.strip() for name in header)
    _check_unique(path, header_line, names)
    rows = []
    for line, fields in records:
        if len(fields) != len(names):
            held = "a delimiter or line end" if quoted_cells else "a TAB or line end"
            alone = f"the header {quoted(names[0])} is one column where {DELIMITERS[delimiter]} divide them"
            advice = alone if len(names) == 1 else f"a field with {held} in it must be in quotes"
            counts = f"expected {len(names)} columns as in the header, found {len(fields)}"
            raise file_error(path, line, f"{counts}; {advice}")
        if len(names) > 1 and fields == header:
            raise file_error(path, line, "the header once more, as of files put together: remove the line")
        rows.append((line, dict(zip(names, fields, strict=True))))
    return Table(str(path), names, rows, notes=tuple(notes))


def separated_records(
    path: Path, lines: Iterable[str], delimiter: str, *, quoted_cells: bool, begin: int = 1
) -> Iterator[tuple[int, list[str]]]:
    """Yields the line where each record of csv or tsv begins, and its cells; the first line has the number `begin`.

    Where a space follows each delimiter of the header, spaces after a delimiter are no part of the cells.
    """
    before = begin - 1
    lines = iter(lines)
    header = next(lines, "")
    how: dict[str, Any] = {"strict": True} if quoted_cells else {"quoting": csv.QUOTE_NONE}
    names = QUOTED.sub("", header).split(delimiter)[1:]
    how["skipinitialspace"] = quoted_cells and bool(names) and all(name.startswith(" ") for name in names)
    reader = csv.reader(chain([header], lines), delimiter=delimiter, **how)
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
            kind = "tsv" if ".tsv" in path.name.lower() else "csv"
            raise file_error(path, begin, f"not readable as {kind} ({problem})") from error
        if fields:
            yield begin, fields
        begin = before + reader.line_num + 1


def _widths(
    path: Path, text: str, delimiter: str, *, quoted_cells: bool, at_most: int | None = None
) -> list[int]:
    """Returns the columns of the first records, the header's first; 0 ends them where the text cannot be read so."""
    widths = []
    try:
        records = separated_records(path, io.StringIO(text, newline=""), delimiter, quoted_cells=quoted_cells)
        for _, fields in islice(records, at_most):
            widths.append(len(fields))
    except UserError:
        widths.append(0)
    return widths


def _delimiter(path: Path, text: str) -> str:
    widths = {mark: _widths(path, text, mark, quoted_cells=True, at_most=_SAMPLE) for mark in DELIMITERS}
    fitting = [mark for mark, found in widths.items() if found and found[0] > 1 and len(set(found)) == 1]
    # Where none fits a row is wrong, which is told as of the one that parts the header.
    return fitting[0] if fitting else max(DELIMITERS, key=lambda mark: widths[mark][0] if widths[mark] else 0)


def _is_quoted(path: Path, text: str) -> bool:
    """Tells whether the quotes of tsv are those of a spreadsheet rather than characters of the texts."""
    if '"' not in text or '"' in _QUOTED_CELL.sub("", text):
        return False  # a spreadsheet puts every cell with a quote in quotes, and doubles it
    if len(set(_widths(path, text, "\t", quoted_cells=False))) > 1:
        return len(set(_widths(path, text, "\t", quoted_cells=True))) == 1
    cells = _QUOTED_CELL.findall(text)
    # Excel quotes also what has a comma: then every cell with one is in quotes.
    commas = all("," in cell for cell in cells) and "," not in _QUOTED_CELL.sub("", text)
    return not any("\t" in cell for cell in cells) and (
        text.lstrip("\r\n").startswith('"') or commas or any('""' in cell for cell in cells)
    )


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lifts the limit of 131072 characters a field; it belongs to the whole process, so it is put back."""
    before = csv.field_size_limit(_LARGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def read_json(path: Path, *, may_be_array: bool = True) -> Table:
    """Returns the rows of a file with a JSON object on each line, of an array of them, or of a single one."""
    text = read_text(path)
    lines: Iterator[tuple[int, str]] = enumerate(text.split("\n"), start=1)
    if may_be_array and text.lstrip()[:1] == "[":
        records = enumerate(_whole_json(path, text, "an array of objects"), start=1)
        lines = ((row, json.dumps(record)) for row, record in records)
    elif may_be_array and text.lstrip()[:1] == "{" and _opens_only(text.lstrip().partition("\n")[0]):
        lines = iter([(1, json.dumps(_whole_json(path, text, "one object")))])
    rows, columns = [], dict[str, None]()
    for line, content in lines:
        if content.strip():
            record = _json_object(path, line, content)
            rows.append((line, record))
            columns.update(dict.fromkeys(record))
    return Table(str(path), tuple(columns), rows)


def _whole_json(path: Path, text: str, expected: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        place = f"{path}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else str(path)
        raise UserError(f"{place}: not JSON ({one_line(error)}): expected {expected}") from error


def _opens_only(line: str) -> bool:
    """Tells whether a line begins an object that later lines end."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line.rstrip())
    except (ValueError, RecursionError):
        pass
    return False


def _json_object(path: Path, line: int, content: str) -> dict[str, Any]:
    try:
        record = json.loads(content, object_pairs_hook=_without_duplicates)
        if "\\u" in content:  # JSON can spell half of a surrogate pair, which no tokenizer takes
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise file_error(path, line, "holds half of a surrogate pair, which is not a character") from error
    except (ValueError, RecursionError) as error:
        raise file_error(path, line, f"not JSON ({one_line(error)}); expected one object a line") from error
    match record:
        case [str(text), {"entities": _} as spans]:  # what spaCy 2 trains on
            return {"text": text, "spans": spans}
    if not isinstance(record, dict):
        found = "an array" if isinstance(record, list) else "a plain value"
        raise file_error(path, line, f"expected a JSON object, found {found}")
    return record


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"the key {quoted(max(counts, key=counts.__getitem__))} occurs twice")
    return record


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        with pq.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
            _check_unique(path, None, names)
            classes = _classes_of(file.schema_arrow.metadata or {})
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                cells = (named_classes(row, classes) for row in batch.to_pylist())
                rows.extend(enumerate(cells, start=len(rows) + 1))
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, ArithmeticError, TypeError) as error:
        # Dates beyond the calendar, unknown time zones, structs that name a field twice: the list is pyarrow's.
        message = f"not readable as Parquet after row {len(rows)} ({one_line(error)})"
        raise UserError(f"{path}: {message}") from error
    return Table(str(path), names, rows, classes=classes)


def _classes_of(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Returns the names of classes by column that the `datasets` library wrote into a Parquet file."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {column: names for column, feature in features.items() if (names := class_names(feature))}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def read_text(path: Path, *, in_lines: bool = False) -> str:
    """Returns the text of a UTF-8 file; where LF alone ends its lines, NUL is a character as any other."""
    try:
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    check_text(path, raw)
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
    text = read_text(path, in_lines=True)
    if "\n" not in text and "\r" in text.rstrip("\r"):
        raise file_error(path, 1, "its lines end with CR alone, as on old Macs; expected LF or CR LF")
    for number, line in enumerate(text.split("\n"), start=1):
        yield number, line.removesuffix("\r")


def _check_unique(path: Path, line: int | None, names: tuple[str, ...]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1 and name)
    if twice:
        message = f"the header names {quoted(twice[0])} more than once"
        raise file_error(path, line, message) if line else UserError(f"{path}: {message}")


def file_error(path: Path, row: int, message: str) -> UserError:
    """Returns the error that names a file, the row and what is wrong there."""
    return UserError(f"{path}:{row}: {message}")
