"""Text files, JSON lines, Parquet and hub data sets as one stream of documents.

Every reader streams: no more than one document (and one read buffer) is held at a time, whatever the
size of the file. Whatever is wrong with the input is told as one line that names the file and the row.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from minialbert.errors import MissingExtraError, UserError, listed, local_path, one_line, quoted, shown

logger = logging.getLogger(__name__)

DocumentSeparator = Literal["blank-line", "line", "file"]
SourceKind = Literal["text", "jsonl", "parquet", "hub"]

_KIND_OF_SUFFIX: dict[str, SourceKind] = {
    ".txt": "text",
    ".text": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
_COMPRESSION_SUFFIXES = (".gz", ".zst")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MAGIC = {
    b"\x1f\x8b": "gzip (give the file the suffix .gz)",
    b"\x28\xb5\x2f\xfd": "zstandard (give the file the suffix .zst)",
    b"PAR1": "Parquet (give the file the suffix .parquet)",
    b"%PDF": "PDF",
    b"PK\x03\x04": "zip",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"\x7fELF": "ELF",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\xff\xfe": "UTF-16 text (convert it to UTF-8)",
    b"\xfe\xff": "UTF-16 text (convert it to UTF-8)",
}
_FIRST_BLOCK = 8192
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Source:
    """One file of a corpus, or one hub data set.

    Args:
        path: the file; for a hub data set the name as in `hub:owner/name:config:split`.
        kind: how it is read.
        num_bytes: its size on disk, 0 where unknown (hub).
    """

    path: Path
    kind: SourceKind
    num_bytes: int

    @property
    def compression(self) -> str | None:
        """`".gz"`, `".zst"` or None."""
        suffix = self.path.suffix.lower()
        return suffix if suffix in _COMPRESSION_SUFFIXES else None


@dataclass(frozen=True, slots=True)
class Document:
    """One document.

    Args:
        text: never empty, never only whitespace.
        row: 1-based line (text, JSON lines) or row (Parquet, hub) where it starts.
    """

    text: str
    row: int


@dataclass
class ReadStats:
    """Counters that `read_documents` keeps up to date while it is iterated.

    Args:
        bytes_read: bytes taken from the file so far, before decompression.
        skipped: empty or whitespace-only documents (for `line`: lines) left out so far.
    """

    bytes_read: int = 0
    skipped: int = 0


def find_sources(corpus: Sequence[str | Path]) -> list[Source]:
    """Returns the files and hub data sets that a corpus consists of, in a fixed order.

    Entries keep their order; the files of a directory or glob are sorted; a file named twice is read once.
    A directory gives its files with a known suffix, hidden ones left out; a file that is named itself may
    have any suffix and is read as text where the suffix says nothing. Nothing is fetched here.

    Args:
        corpus: files, directories (searched recursively), glob patterns, or hub data sets as `hub:owner/name`
            or `hub:owner/name:config:split`; a string `owner/name` that is no local path is a hub id, too.

    Returns:
        At least one source, and at least one that is not empty.

    Raises:
        UserError: an entry does not exist, or nothing in the corpus can hold text.
    """
    entries = [corpus] if isinstance(corpus, (str, Path)) else list(corpus)
    sources: dict[str, Source] = {}
    for entry in entries:
        for source in _sources_of_entry(entry):
            key = str(source.path) if source.kind == "hub" else str(source.path.resolve())
            sources.setdefault(key, source)
    names = listed(entries)
    if not sources:
        known = " ".join(sorted(_KIND_OF_SUFFIX))
        raise UserError(f"the corpus ({names}) has no file: expected {known}, also with .gz or .zst")
    if all(source.num_bytes == 0 and source.kind != "hub" for source in sources.values()):
        raise UserError(f"the corpus ({names}) is empty: all of its {len(sources)} file(s) have 0 bytes")
    return list(sources.values())


def _sources_of_entry(entry: str | Path) -> list[Source]:
    name = str(entry)
    if isinstance(entry, str) and name.startswith("hub:"):
        return [_hub_source(name)]
    path = local_path(name)
    if path.is_dir():
        return [_file_source(file) for file in sorted(path.rglob("*")) if _belongs_to_corpus(file, path)]
    if path.exists():
        return [_file_source(path)]
    if glob.has_magic(name):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        files = [match for match in matches if match.is_file()]
        if not files:
            raise UserError(f"no file matches {quoted(name)}")
        return [_file_source(file) for file in files]
    if isinstance(entry, str) and _HUB_ID.fullmatch(name) and _kind(path) is None:
        return [_hub_source("hub:" + name)]
    raise UserError(f"no such file or directory: {shown(name, 200)}")


def _belongs_to_corpus(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    if hidden or not path.is_file():
        return False
    if _kind(path) is None:
        logger.info("left out %s: unknown suffix", path)
        return False
    return True


def _kind(path: Path) -> SourceKind | None:
    name = path.with_suffix("") if path.suffix.lower() in _COMPRESSION_SUFFIXES else path
    return _KIND_OF_SUFFIX.get(name.suffix.lower())


def _file_source(path: Path) -> Source:
    kind = _kind(path) or "text"
    source = Source(path, kind, path.stat().st_size)
    if kind == "parquet" and source.compression:
        raise UserError(f"{path}: a Parquet file compressed as a whole cannot be read; decompress it first")
    return source


def _hub_source(name: str) -> Source:
    parts = name.removeprefix("hub:").split(":")
    if not parts[0] or len(parts) > 3:
        raise UserError(
            f"{quoted(name)} is no hub data set: expected hub:owner/name or hub:owner/name:config:split"
        )
    return Source(Path(name), "hub", 0)


def read_documents(
    source: Source,
    *,
    separator: DocumentSeparator = "blank-line",
    text_field: str = "text",
    max_document_bytes: int = 16_000_000,
    stats: ReadStats | None = None,
) -> Iterator[Document]:
    """Yields the documents of one source, one at a time.

    Args:
        source: one of `find_sources`.
        separator: what ends a document of a text file: a blank line, every line end, or the end of the file.
            JSON lines, Parquet and hub data sets have one document per row.
        text_field: the field or column that holds the text of a row.
        max_document_bytes: a longer document is refused, in bytes of UTF-8 (JSON: of the whole row).
        stats: counters to keep up to date.

    Yields:
        Documents in the order of the source. Empty and whitespace-only ones are skipped and counted.

    Raises:
        UserError: the source cannot be read, is not UTF-8 text, or has a row that is not as expected.
    """
    stats = ReadStats() if stats is None else stats
    if source.kind == "text":
        documents = _read_text(source, separator, max_document_bytes, stats)
    elif source.kind == "jsonl":
        documents = _read_jsonl(source, text_field, max_document_bytes, stats)
    elif source.kind == "parquet":
        documents = _read_parquet(source, text_field, max_document_bytes, stats)
    else:
        documents = _read_hub(source, text_field, max_document_bytes)
    for document in documents:
        if not document.text or document.text.isspace():
            stats.skipped += 1
        else:
            yield document


def _read_text(
    source: Source, separator: DocumentSeparator, max_document_bytes: int, stats: ReadStats
) -> Iterator[Document]:
    # The lines of the current document, its first row, its byte offset (decompressed) and its length.
    lines: list[bytes] = []
    first_row, offset, length = 1, 0, 0
    row = position = 0
    with _open(source, stats) as stream:
        while line := stream.readline(max_document_bytes + 2):
            row += 1
            blank = separator == "blank-line" and not line.strip()
            if not blank:
                if not lines:
                    first_row, offset, length = row, position, 0
                lines.append(line)
                length += len(line)
                if len(line.rstrip(b"\r\n")) + length - len(line) > max_document_bytes:
                    raise _too_long(source, first_row, max_document_bytes, separator)
            position += len(line)
            if lines and (blank or separator == "line"):
                yield Document(_decode(b"".join(lines), source, first_row, offset), first_row)
                lines = []
        if lines:
            yield Document(_decode(b"".join(lines), source, first_row, offset), first_row)


def _read_jsonl(
    source: Source, text_field: str, max_document_bytes: int, stats: ReadStats
) -> Iterator[Document]:
    row = position = 0
    with _open(source, stats) as stream:
        while line := stream.readline(max_document_bytes + 2):
            row += 1
            if len(line.rstrip(b"\r\n")) > max_document_bytes:
                raise _too_long(source, row, max_document_bytes, None)
            text = _decode(line, source, row, position)
            position += len(line)
            if text.strip():
                text = _text_of_json(text, source, row, text_field)
            yield Document(text, row)


def _text_of_json(line: str, source: Source, row: int, text_field: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source.path}:{row}: not a row of JSON ({one_line(error)})") from error
    if not isinstance(record, dict):
        raise UserError(f"{source.path}:{row}: expected a JSON object, found {type(record).__name__}")
    return _text_of_record(record, source, row, text_field)


def _text_of_record(record: dict[str, Any], source: Source, row: int, text_field: str) -> str:
    if text_field not in record:
        raise UserError(
            f"{source.path}:{row}: no field {quoted(text_field)}; the fields are: {listed(record)} (--text-field)"
        )
    text = record[text_field]
    if not isinstance(text, str):
        found = type(text).__name__
        raise UserError(f"{source.path}:{row}: the field {quoted(text_field)} is {found}, not a string")
    # JSON can spell half of a surrogate pair, which is no text and which no tokenizer takes.
    return text.encode("utf-8", "replace").decode("utf-8")


def _read_parquet(
    source: Source, text_field: str, max_document_bytes: int, stats: ReadStats
) -> Iterator[Document]:
    # Late, as datasets below: most corpora are text, and these imports take seconds.
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        # Buffered columns are decoded page by page: a large row group is never in memory as a whole.
        with pq.ParquetFile(source.path, buffer_size=1 << 20, pre_buffer=False) as file:
            columns = file.schema_arrow.names
            if text_field not in columns:
                raise UserError(
                    f"{source.path}: no column {quoted(text_field)}; the columns are: {listed(columns)} "
                    "(--text-field)"
                )
            column_type = file.schema_arrow.field(text_field).type
            if not (pa.types.is_string(column_type) or pa.types.is_large_string(column_type)):
                found = shown(column_type)
                raise UserError(f"{source.path}: the column {quoted(text_field)} is {found}, not string")
            for batch in file.iter_batches(batch_size=64, columns=[text_field]):
                for value in batch.column(0):
                    row += 1
                    text = value.as_py() or ""
                    _check_length(text, source, row, max_document_bytes)
                    stats.bytes_read = source.num_bytes * row // max(row, file.metadata.num_rows)
                    yield Document(text, row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # Raised in here only by pyarrow: what the consumer of a generator raises does not pass through it.
        message = f"{source.path}: not readable as Parquet after row {row} ({one_line(error)})"
        raise UserError(message) from error


def _read_hub(source: Source, text_field: str, max_document_bytes: int) -> Iterator[Document]:
    name, config, split = (str(source.path).removeprefix("hub:").split(":") + ["", ""])[:3]
    import datasets

    try:
        rows = iter(datasets.load_dataset(name, config or None, split=split or "train", streaming=True))
    except Exception as error:  # the hub client raises whatever its transport raises
        raise _hub_error(name, error) from error
    row = 0
    while True:
        try:
            record = cast("dict[str, Any]", next(rows))
        except StopIteration:
            return
        except Exception as error:
            raise _hub_error(f"{name} (after row {row})", error) from error
        row += 1
        text = _text_of_record(record, source, row, text_field)
        _check_length(text, source, row, max_document_bytes)
        yield Document(text, row)


def _hub_error(name: str, error: Exception) -> UserError:
    return UserError(
        f"could not reach the hub for {name}: give a local path, or check the name and the network "
        f"({type(error).__name__}: {one_line(error)})"
    )


@contextmanager
def _open(source: Source, stats: ReadStats) -> Iterator[IO[bytes]]:
    """Yields the decompressed bytes after a byte order mark; system errors become `UserError`."""
    name = {".gz": "gzip", ".zst": "zstandard"}.get(source.compression or "", "file")
    try:
        with source.path.open("rb") as file:
            counted = io.BufferedReader(_CountingReader(file, stats), 1 << 18)
            stream: IO[bytes]
            if source.compression == ".gz":
                stream = io.BufferedReader(cast("Any", gzip.GzipFile(fileobj=counted)), 1 << 18)
            elif source.compression == ".zst":
                stream = io.BufferedReader(_ZstdReader(counted), 1 << 18)
            else:
                stream = counted
            block = cast("io.BufferedReader", stream).peek(_FIRST_BLOCK)[:_FIRST_BLOCK]
            _check_text(block, source)
            if block.startswith(_BOM):
                stream.read(len(_BOM))
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{source.path}: not readable as {name} ({one_line(error)})") from error


class _CountingReader(io.RawIOBase):
    """A raw reader that counts what passes."""

    def __init__(self, file: IO[bytes], stats: ReadStats) -> None:
        self._file, self._stats = file, stats

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(len(buffer))
        buffer[: len(block)] = block
        self._stats.bytes_read += len(block)
        return len(block)


class _ZstdReader(io.RawIOBase):
    """Decompresses zstandard frames; unlike the library's own reader it notices a file that was cut off."""

    def __init__(self, file: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise MissingExtraError("zstandard", "zstd", "reading .zst files") from error
        self._library = zstandard
        self._file, self._pending, self._input = file, b"", b""
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            # Small inputs, so that a highly compressible file does not unfold into memory at once.
            self._input = self._input or self._file.read(8192)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the last frame is not complete")
                return 0
            self._decompress()
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def _decompress(self) -> None:
        if self._frame is None:
            self._frame = self._library.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        try:
            self._pending = self._frame.decompress(self._input)
        except self._library.ZstdError as error:
            raise OSError(str(error)) from error
        self._input = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None


def _check_text(block: bytes, source: Source) -> None:
    for magic, name in _MAGIC.items():
        if block.startswith(magic):
            raise UserError(f"{source.path}: expected UTF-8 text, found {name}")
    if b"\0" in block:
        raise UserError(
            f"{source.path}: a binary file (NUL byte at offset {block.index(0)}), expected UTF-8 text"
        )


def _decode(raw: bytes, source: Source, first_row: int, offset: int) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        row = first_row + raw.count(b"\n", 0, error.start)
        raise UserError(
            f"{source.path}:{row}: not UTF-8 (byte 0x{raw[error.start]:02x} at offset {offset + error.start} "
            "of the text); convert the file to UTF-8"
        ) from error
    return text.replace("\r\n", "\n").rstrip("\n") if "\r" in text else text.rstrip("\n")


def _check_length(text: str, source: Source, row: int, max_document_bytes: int) -> None:
    # A character takes at most four bytes, so most documents need no encoding to be found short enough.
    if 4 * len(text) > max_document_bytes and len(text.encode()) > max_document_bytes:
        raise _too_long(source, row, max_document_bytes, None)


def _too_long(source: Source, row: int, limit: int, separator: DocumentSeparator | None) -> UserError:
    if separator == "file":
        advice = "--documents blank-line or --documents line cuts the file into documents, "
    elif separator == "blank-line":
        advice = "--documents line makes every line a document, "
    else:
        advice = ""
    return UserError(
        f"{source.path}:{row}: the document that starts here is longer than {limit / 1e6:g} MB; "
        f"{advice}--max-document-mb raises the limit"
    )
