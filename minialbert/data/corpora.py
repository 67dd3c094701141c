"""Text files, JSON lines, csv, Parquet, PubMed's XML, the hub and texts in memory as one stream of documents.

Every reader streams: no more than one document (and one read buffer) is held at a time, whatever the
size of the file. Whatever is wrong with the input is told as one line that names the file and the row.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from minialbert.data.cells import missing
from minialbert.data.hub import PREFIX, load_hub
from minialbert.data.rows import is_dataset, is_frame, numbered_rows
from minialbert.data.text_fields import pubmed_texts, separated_texts
from minialbert.data.text_streams import COMPRESSIONS, IN_MEMORY, Asked, ReadStats, open_text
from minialbert.errors import UserError, listed, local_path, one_line, quoted, shown
from minialbert.runs.files import check_fetched, files_below

logger = logging.getLogger(__name__)

DocumentSeparator = Literal["blank-line", "line", "file"]
SourceKind = Literal["text", "jsonl", "csv", "parquet", "xml", "hub", "memory", "other"]

_KIND_OF_SUFFIX: dict[str, SourceKind] = {
    ".txt": "text", ".text": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".xml": "xml",
}  # fmt: skip
# Kinds whose documents are one field of several.
_OF_FIELDS = ("jsonl", "csv", "parquet", "hub", "memory")
_KIND_NAMES = {
    "text": "text", "jsonl": "JSON lines", "csv": "csv or tsv", "parquet": "Parquet", "xml": "PubMed XML",
    "hub": "from the hub", "memory": "list of texts in memory", "other": "read by a registered reader",
}  # fmt: skip
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_A_LINE = "a corpus in JSON has one object on each line, rather than an array"
_IN_MEMORY = "texts in memory"
_Item = TypeVar("_Item")
_Fields = tuple[str, ...]  # of a row, with one text or two


# Readers by suffix that `register_reader` added.
_REGISTERED: dict[str, Callable[[Path], Iterable[str]]] = {}


def register_reader(suffix: str, read: Callable[[Path], Iterable[str]]) -> None:
    """Make files with a suffix (".srt") part of corpora, until the process ends; .csv, .tsv, .xml instead of ours.

    `read` is called with the path and yields a file's documents, one at a time and in the same order each time, which
    is how an interrupted `prepare` goes on. What it raises as `UserError` is told as it is.
    """
    suffix = suffix.lower()
    is_ours = _KIND_OF_SUFFIX.get(suffix, "other") not in ("other", "csv", "xml")
    if is_ours or suffix in COMPRESSIONS or not re.fullmatch(r"\.\w+", suffix):
        advice = "give a new suffix, as in '.srt'"
        raise UserError(f"a reader cannot be registered for {quoted(suffix)}: {advice}")
    _KIND_OF_SUFFIX[suffix], _REGISTERED[suffix] = "other", read


class TextsInMemory:
    """Texts that a caller has, in rows of any kind that `numbered_rows` reads, of one or two of their fields."""

    def __init__(self, rows: Any, *fields: str) -> None:
        self._rows, self._fields = rows, fields
        # Whether they can be read a second time, as those of an iterator cannot.
        self.once = not hasattr(rows, "__len__")
        # Of all texts in UTF-8, once they have been read to their end: the same for a list as for an iterator.
        self.digest, self.num_bytes = "", 0

    def read(self, source: Source) -> Iterator[tuple[int, str]]:
        """Yields row numbers and texts, the empty string for a row without one."""
        digest, num_bytes, fields = hashlib.sha256(), 0, self._fields
        alone = fields[0] if len(fields) == 1 else None
        for row, value in numbered_rows(self._rows, str(source.path), alone):
            texts = [value] if alone and isinstance(value, str) else [""] * len(fields)
            if not alone and isinstance(value, tuple) and len(value) == len(fields):
                value = dict(zip(fields, value, strict=True))
            if isinstance(value, Mapping):
                texts = _texts_of_record(value, source, row, fields)
            elif value is not None and not (alone and isinstance(value, str)):
                expected = "a text" if alone else "two texts in a tuple"
                named = f"field{'s' * (len(fields) > 1)} {' and '.join(map(quoted, fields))}"
                expected += f", or a dictionary with the {named}"
                raise source.error(row, f"expected {expected}, found {type(value).__name__}")
            for text in (text.encode("utf-8", "replace") for text in texts):
                digest.update(len(text).to_bytes(8, "little") + text)
                num_bytes += len(text)
                yield row, text.decode("utf-8")
        self.digest, self.num_bytes = digest.hexdigest(), num_bytes


@dataclass(frozen=True)
class Source:
    """One file of a corpus, one hub data set, or texts in memory."""

    path: Path  # of a hub data set the name as in `hub:owner/name:config:split`; of texts what messages call them
    kind: SourceKind
    num_bytes: int  # on disk or in memory, 0 where unknown (hub, iterators)
    texts: TextsInMemory | None = field(default=None, compare=False)
    asked: Asked = field(default=Asked(), compare=False)

    @property
    def reads_once(self) -> bool:
        """Whether there is no reading it from the start again."""
        return self.texts is not None and self.texts.once

    def error(self, row: int, message: str) -> UserError:
        """Returns the error that names the source and the row."""
        return UserError(f"{self.path}:{row}: {message}")

    def decode(self, raw: bytes, row: int, offset: int) -> str:
        """Returns the text of lines from a row on, without their last line end; CR LF is LF.

        Raises UserError with row and offset, in the decompressed text, of what is not UTF-8.
        """
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            place = f"byte 0x{raw[error.start]:02x} at offset {offset + error.start} of the text"
            row += raw.count(b"\n", 0, error.start)
            raise self.error(row, f"not UTF-8 ({place}); convert the file to UTF-8") from error
        return text.replace("\r\n", "\n").rstrip("\n") if "\r" in text else text.rstrip("\n")

    def too_long(self, row: int, limit: int, separator: DocumentSeparator | None = None) -> UserError:
        """Returns the error for a document of more than so many bytes, and how to cut it or raise the limit."""
        option, raises = self.asked.documents, self.asked.limit and f"{self.asked.limit} raises the limit"
        cuts = {
            "file": f"{option}blank-line or {option}line cuts the file into documents",
            "blank-line": f"{option}line makes every line a document",
        }.get((option and separator) or "")
        advice = ", ".join(filter(None, (cuts, raises))) or "cut it into several"
        return self.error(row, f"the document that starts here is longer than {limit / 1e6:g} MB; {advice}")


@dataclass(frozen=True, slots=True)
class Document:
    """One document, never empty and never only whitespace, and the line or row where it starts, counted from 1."""

    text: str
    row: int


Corpus = str | Path | Source | Iterable[Any]


def by_row(items: Iterable[_Item], per_row: int) -> Iterator[tuple[_Item, ...]]:
    """Returns what belongs to each row, of items that stand one after the other."""
    return zip(*[iter(items)] * per_row, strict=True)


def corpus_entries(corpus: Corpus, *, of_pairs: bool = False) -> list[Any]:
    """Returns what `find_sources` takes, of what a caller of `prepare` may give.

    Strings alone are ambiguous. A list or iterator is one of texts where, of the first twenty strings, one has several
    words and none looks like a place: a file that is there, a name with a known suffix, `hub:`, `~` or `/`. One
    `of_pairs` may be of tuples.
    """
    if isinstance(corpus, (str, Path, Source)) or is_frame(corpus) or is_dataset(corpus):
        return [corpus]
    if isinstance(corpus, Mapping) or not isinstance(corpus, Iterable):
        advice = "give files, texts, or one split of a data set"
        raise UserError(f"a corpus cannot be a {type(corpus).__name__}: {advice}")
    iterator = iter(corpus)
    first = [entry for _, entry in islice(numbered_rows(iterator, _IN_MEMORY), 20)]
    rows = chain(first, iterator) if iterator is corpus else corpus
    first = [{} if of_pairs and isinstance(entry, tuple) else entry for entry in first]
    of_rows = any(isinstance(entry, Mapping) or _is_text(entry) for entry in first)
    return [rows] if of_rows and not any(map(_is_place, first)) else list(rows)


def _is_text(entry: object) -> bool:
    return isinstance(entry, str) and len(entry.split(maxsplit=2)) > 1


def _is_place(entry: object) -> bool:
    if not isinstance(entry, str):
        return isinstance(entry, (Path, Source, Iterable)) and not isinstance(entry, Mapping)
    if entry.startswith((PREFIX, "~", "/", "./", "../")):
        return True
    # Unlike those of `Path`, this `exists` also takes what is too long for a name.
    short = 0 < len(entry) < 1024 and "\n" not in entry and "\0" not in entry
    return short and (_kind(Path(entry)) is not None or os.path.exists(entry))


def find_sources(
    corpus: Any, text_field: str = "text", pair_field: str | None = None, *, asked: Asked | None = None
) -> list[Source]:
    """Returns the files, hub data sets and texts that a corpus consists of, in a fixed order.

    Entries keep their order; the files of a directory or glob are sorted; a file named twice is read once.
    A directory gives its files with a known suffix, hidden ones left out; a file that is named itself may
    have any suffix and is read as text where the suffix says nothing. Both are said. A `text_field` is refused where
    no source has fields, a `pair_field` where one has none. Nothing is fetched here. Texts in memory that can be read
    again are read once for their fingerprint.

    A corpus is of files, directories (searched recursively), glob patterns, or hub data sets as `hub:owner/name` or
    `hub:owner/name:config:split`; a string `owner/name` that is not a local path is a hub id, too. A list may also hold
    sources that were found before, lists and iterators of texts, data sets and frames. At least one is not empty.
    Messages name what was `asked` as the caller calls it, by default as `prepare` does.
    """
    entries = [corpus] if isinstance(corpus, (str, Path, Source)) else list(corpus)
    if sum(isinstance(entry, tuple) and len(entry) < 4 for entry in entries) > 1:  # of a text and its label
        advice = "give the texts alone, as in [row[0] for row in rows], or both texts of a pair with pair_field='pair'"
        raise UserError(f"the corpus is a list of tuples: {advice}")
    fields = (text_field,) if pair_field is None else (text_field, pair_field)
    sources: dict[str, Source] = {}
    for entry in entries:
        for source in _sources_of_entry(entry, fields, asked):
            key = str(source.path) if source.kind in ("hub", "memory") else str(source.path.resolve())
            sources.setdefault(f"{key} {len(sources)}" if source.kind == "memory" else key, source)
    names = listed(entry if isinstance(entry, (str, Path)) else type(entry).__name__ for entry in entries)
    if not sources:
        known = " ".join(sorted(_KIND_OF_SUFFIX))
        raise UserError(f"the corpus ({names}) has no file: expected {known}, also with .gz or .zst")
    if not any(source.num_bytes or source.kind == "hub" or source.reads_once for source in sources.values()):
        what = "texts in memory" if all(s.kind == "memory" for s in sources.values()) else "file(s)"
        raise UserError(f"the corpus ({names}) is empty: all of its {len(sources)} {what} have 0 bytes")
    found = [replace(source, asked=asked) if asked else source for source in sources.values()]
    if text_field != "text" and not any(source.kind in _OF_FIELDS for source in found):
        told = f"no file of the corpus ({listed(one.path.name for one in found)}) has fields"
        advice = "as jsonl, csv, tsv and parquet do: leave it out"
        raise UserError(f"{found[0].asked.text} {quoted(text_field)}: {told}, {advice}")
    if pair_field is not None and (without := [one.path.name for one in found if one.kind not in _OF_FIELDS]):
        advice = "pairs are read from jsonl, csv, tsv and parquet"
        raise UserError(
            f"{found[0].asked.pair} {quoted(pair_field)}: {listed(without)} has no columns: {advice}"
        )
    return found


def count_kinds(sources: Iterable[Source]) -> str:
    """Returns how many sources of each kind there are, in words."""
    counts = Counter(source.kind for source in sources)
    return ", ".join(f"{count:,} {_KIND_NAMES[kind]}" for kind, count in counts.items())


def _sources_of_entry(entry: Any, fields: tuple[str, ...], asked: Asked | None) -> list[Source]:
    if isinstance(entry, Source):
        return [entry]
    if not isinstance(entry, (str, Path)):
        return [_memory_source(entry, fields, asked or IN_MEMORY)]
    name = str(entry)
    if isinstance(entry, str) and name.startswith(PREFIX):
        return [_hub_source(name)]
    path = local_path(name)
    if path.is_dir():
        files = files_below(path)
        if left_out := [file.name for file in files if _kind(file) is None]:
            told = "%s: %d files left out, since their suffix says nothing of how to read them: %s"
            logger.info(told, path, len(left_out), listed(left_out))
        return [_file_source(file) for file in files if _kind(file) is not None]
    if path.exists() or path.is_symlink():
        return _named_sources([path])
    if glob.has_magic(name):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        files = [match for match in matches if not match.is_dir()]
        within = {parent for file in files for parent in file.parents}
        if left_out := [match.name for match in matches if match.is_dir() and match not in within]:
            told = "%s: folders that match are left out; name them to have the files in them: %s"
            logger.info(told, shown(name, 200), listed(left_out))
        if not files:
            raise UserError(f"no file matches {quoted(name)}")
        return _named_sources(files)
    if isinstance(entry, str) and _HUB_ID.fullmatch(name) and _kind(path) is None:
        return [_hub_source(PREFIX + name)]
    hint = f'; a text is given as {{"{fields[0]}": ...}}' if _is_text(name) else ""
    raise UserError(f"no such file or directory: {shown(name, 200)}{hint}")


def _suffix(path: Path) -> str:
    """Returns what a file's name says of its contents, whether or not it is compressed."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path).suffix.lower()


def _kind(path: Path) -> SourceKind | None:
    return _KIND_OF_SUFFIX.get(_suffix(path))


def _named_sources(files: list[Path]) -> list[Source]:
    if unknown := [file.name for file in files if _kind(file) is None]:
        logger.warning("read as plain text, since the suffix says nothing: %s", listed(unknown))
    return [_file_source(file) for file in files]


def _file_source(path: Path) -> Source:
    check_fetched(path)
    kind = _kind(path) or "text"
    if kind == "parquet" and path.suffix.lower() in COMPRESSIONS:
        raise UserError(f"{path}: a Parquet file compressed as a whole cannot be read; decompress it first")
    if kind == "other" and path.suffix.lower() in COMPRESSIONS:
        raise UserError(f"{path}: a registered reader takes no compressed file; decompress it first")
    return Source(path, kind, path.stat().st_size)


def _hub_source(name: str) -> Source:
    parts = name.removeprefix(PREFIX).split(":")
    if not parts[0] or len(parts) > 3:
        advice = "expected hub:owner/name or hub:owner/name:config:split"
        raise UserError(f"{quoted(name)} is not a hub data set: {advice}")
    return Source(Path(name), "hub", 0)


def _memory_source(rows: Any, fields: tuple[str, ...], asked: Asked) -> Source:
    if isinstance(rows, Mapping) or not (isinstance(rows, Iterable) or is_frame(rows)):
        advice = "expected a path, a hub id, a list or iterator of texts, or one split of a data set"
        raise UserError(f"an entry of the corpus is a {type(rows).__name__}: {advice}")
    texts = TextsInMemory(rows, *fields)
    source = Source(Path(_IN_MEMORY), "memory", 0, texts, asked)
    if texts.once:
        return source
    for _ in texts.read(source):  # for the fingerprint
        pass
    return replace(source, num_bytes=texts.num_bytes)


def read_documents(
    source: Source,
    *,
    separator: DocumentSeparator = "blank-line",
    text_field: str = "text",
    max_document_bytes: int = 16_000_000,
    pair_field: str | None = None,
    stats: ReadStats | None = None,
) -> Iterator[Document]:
    """Yields the documents of one source, one at a time; empty and whitespace-only ones are skipped and counted.

    The separator is what ends a document of a text file: a blank line, every line end, or the end of the file. JSON
    lines, csv, tsv, Parquet and hub data sets have one document per row, XML one per article. A longer document than
    `max_document_bytes` of UTF-8 (JSON, csv: of the whole row) is refused. With a `pair_field` a row has two documents,
    or none where one of them is empty. The counters are kept up to date.
    """
    stats = ReadStats() if stats is None else stats
    fields, most = (text_field,) if pair_field is None else (text_field, pair_field), max_document_bytes
    if source.kind == "text":
        documents = _read_text(source, separator, most, stats)
    else:
        documents = _READERS[source.kind](source, fields, most, stats)
    for row in by_row(documents, len(fields)):
        for text in (document.text for document in row):
            # A character takes at most four bytes, so most documents need no encoding to be found short enough.
            if 4 * len(text) > most and len(text.encode("utf-8", "replace")) > most:
                raise source.too_long(row[0].row, most)
        if all(document.text.strip() for document in row):
            yield from row
        else:
            stats.skipped += len(row)


def _read_text(
    source: Source, separator: DocumentSeparator, max_document_bytes: int, stats: ReadStats
) -> Iterator[Document]:
    # The lines of the current document, its first row, its byte offset (decompressed) and its length.
    lines: list[bytes] = []
    first_row, offset, length = 1, 0, 0
    row = position = 0
    with open_text(source.path, stats) as stream:
        while line := stream.readline(max_document_bytes + 2):
            row += 1
            blank = separator == "blank-line" and not line.strip()
            if not blank:
                if not lines:
                    first_row, offset, length = row, position, 0
                lines.append(line)
                length += len(line)
                if row == 1 and line.rstrip(b"\r").count(b"\r") > 1 and not line.endswith(b"\n"):
                    told = "its lines end with CR alone, as on old Macs; expected LF or CR LF"
                    raise source.error(1, told)
                if len(line.rstrip(b"\r\n")) + length - len(line) > max_document_bytes:
                    raise source.too_long(first_row, max_document_bytes, separator)
            position += len(line)
            if lines and (blank or separator == "line"):
                yield Document(source.decode(b"".join(lines), first_row, offset), first_row)
                lines = []
        if lines:
            yield Document(source.decode(b"".join(lines), first_row, offset), first_row)


def _read_jsonl(source: Source, fields: _Fields, limit: int, stats: ReadStats) -> Iterator[Document]:
    for line in _read_text(source, "line", limit, stats):
        texts = _texts_of_json(line, source, fields) if line.text.strip() else [""] * len(fields)
        yield from (Document(text, line.row) for text in texts)


def _texts_of_json(line: Document, source: Source, fields: _Fields) -> list[str]:
    try:
        record = json.loads(line.text)
    except (ValueError, RecursionError) as error:
        raise source.error(line.row, f"not a row of JSON ({one_line(error)}); {_A_LINE}") from error
    if not isinstance(record, dict):
        raise source.error(line.row, f"expected a JSON object, found {type(record).__name__}; {_A_LINE}")
    return _texts_of_record(record, source, line.row, fields)


def _texts_of_record(record: Mapping[str, Any], source: Source, row: int, fields: _Fields) -> list[str]:
    named = zip(fields, (source.asked.text, source.asked.pair), strict=False)
    return [_text_of_record(record, source, row, *one) for one in named]


def _text_of_record(record: Mapping[str, Any], source: Source, row: int, text_field: str, option: str) -> str:
    if text_field not in record:
        raise source.error(row, f"no field {quoted(text_field)}; the fields are: {listed(record)} ({option})")
    text = record[text_field]
    if not isinstance(text, str) and missing(text):  # as an empty cell of csv and Parquet
        text = ""
    if not isinstance(text, str):
        raise source.error(row, f"the field {quoted(text_field)} is {type(text).__name__}, not a string")
    # JSON can spell half of a surrogate pair, which is not text and which no tokenizer takes.
    return text.encode("utf-8", "replace").decode("utf-8")


def _read_csv_or_xml(source: Source, fields: _Fields, limit: int, stats: ReadStats) -> Iterator[Document]:
    with open_text(source.path, stats) as stream:
        if source.kind == "xml":
            found = pubmed_texts(source, stream, limit)
        else:
            tabs = _suffix(source.path) == ".tsv"
            found = separated_texts(source, stream, fields, limit, tabs=tabs)
        yield from (Document(text, row) for row, text in found)


def _read_parquet(source: Source, fields: _Fields, _: int, stats: ReadStats) -> Iterator[Document]:
    # Late, as datasets below: most corpora are text, and these imports take seconds.
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        # Buffered columns are decoded page by page: a large row group is never in memory as a whole.
        with pq.ParquetFile(source.path, buffer_size=1 << 20, pre_buffer=False) as file:
            columns = file.schema_arrow.names
            for name, option in zip(fields, (source.asked.text, source.asked.pair), strict=False):
                if name not in columns:
                    found = f"no column {quoted(name)}; the columns are: {listed(columns)} ({option})"
                    raise UserError(f"{source.path}: {found}")
                column_type = file.schema_arrow.field(name).type
                if not (pa.types.is_string(column_type) or pa.types.is_large_string(column_type)):
                    found = shown(column_type)
                    raise UserError(f"{source.path}: the column {quoted(name)} is {found}, not string")
            for batch in file.iter_batches(batch_size=64, columns=[*fields]):
                for values in zip(*map(batch.column, fields), strict=True):
                    row += 1
                    stats.bytes_read = source.num_bytes * row // max(row, file.metadata.num_rows)
                    yield from (Document(value.as_py() or "", row) for value in values)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # Raised in here only by pyarrow: what the consumer of a generator raises does not pass through it.
        message = f"{source.path}: not readable as Parquet after row {row} ({one_line(error)})"
        raise UserError(message) from error


def _read_hub(source: Source, fields: _Fields, _limit: int, _stats: ReadStats) -> Iterator[Document]:
    name, config, split = (str(source.path).removeprefix(PREFIX).split(":") + ["", ""])[:3]
    failure = "could not reach the hub for {}: give a local path, or check the name and the network"
    rows = load_hub(name, config or None, failure.format(name), split=split or "train", streaming=True)

    def failed_after(row: int) -> str:
        return failure.format(f"{name} (after row {row})" if row else name)

    for row, record in numbered_rows(rows, name, failure=failed_after):
        yield from (Document(text, row) for text in _texts_of_record(record, source, row, fields))


def _read_other(source: Source, _fields: _Fields, _limit: int, stats: ReadStats) -> Iterator[Document]:
    for row, text in enumerate(_REGISTERED[source.path.suffix.lower()](source.path), 1):
        if not isinstance(text, str):
            raise UserError(f"{source.path}:{row}: its reader gave {type(text).__name__}, not a string")
        stats.bytes_read = min(stats.bytes_read + len(text.encode("utf-8", "replace")), source.num_bytes)
        yield Document(text.encode("utf-8", "replace").decode("utf-8"), row)


def _read_memory(source: Source, _fields: _Fields, _limit: int, stats: ReadStats) -> Iterator[Document]:
    assert source.texts is not None
    for row, text in source.texts.read(source):
        stats.bytes_read += len(text.encode())
        yield Document(text, row)


_READERS = {
    "jsonl": _read_jsonl,
    "csv": _read_csv_or_xml,
    "xml": _read_csv_or_xml,
    "parquet": _read_parquet,
    "hub": _read_hub,
    "other": _read_other,
    "memory": _read_memory,
}
