"""Files of text, compressed or not, as a stream of bytes that is checked and counted."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from minialbert.errors import UserError, failing_as, needs_extra

COMPRESSIONS = {".gz": "gzip", ".zst": "zstandard"}
# How files that are no text begin, so much of it that no text does ("PAR1" is also a protein).
_MAGIC = {
    rb"\x1f\x8b": "gzip",
    rb"\x28\xb5\x2f\xfd": "zstandard",
    rb"PAR1\x15": "Parquet (give the file the suffix .parquet)",
    rb"%PDF-": "PDF",
    rb"PK\x03\x04": "zip (unpack it; save a spreadsheet as csv)",
    rb"\xd0\xcf\x11\xe0": "a file of Office (save a spreadsheet as csv)",
    rb"\x89PNG": "PNG",
    rb"\xff\xd8\xff": "JPEG",
    rb"\x7fELF": "ELF",
    rb"BZh[1-9]1AY&SY": "bzip2",
    rb"\xfd7zXZ": "xz",
    rb"\xff\xfe|\xfe\xff": "UTF-16 text (convert it to UTF-8)",
}
_FIRST_BLOCK = 8192
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Asked:
    """How a caller says what it wants of a corpus, for messages; "" for what it cannot say."""

    text: str = "--column"
    pair: str = "--pair-column"
    documents: str = "--documents "
    limit: str = "--max-document-mb"


IN_MEMORY = Asked("text_field", "pair_field", "separator=", "max_document_bytes")


@dataclass
class ReadStats:
    """Counters that `read_documents` keeps up to date while it is iterated."""

    bytes_read: int = 0  # taken from the file so far, before decompression
    skipped: int = 0  # empty or whitespace-only documents (for `line`: lines) left out so far


def check_text(path: Path, block: bytes, *, unpacks: bool = False) -> None:
    """Refuses a file whose first bytes are those of another kind than text, and names the kind.

    A reader that `unpacks` does so by the suffix.
    """
    if found := next((kind for mark, kind in _MAGIC.items() if re.match(mark, block)), None):
        packed = {kind: suffix for suffix, kind in COMPRESSIONS.items()}.get(found)
        advice = f"give the file the suffix {packed}" if unpacks else "unpack it"
        raise UserError(f"{path}: expected UTF-8 text, found {found}" + (f" ({advice})" if packed else ""))


@contextmanager
def open_text(path: Path, stats: ReadStats) -> Iterator[IO[bytes]]:
    """Yields the decompressed bytes after a byte order mark; system errors become `UserError`."""
    suffix = path.suffix.lower()
    unreadable = f"{path}: not readable as {COMPRESSIONS.get(suffix, 'file')}"
    with failing_as(unreadable, (OSError, EOFError, zlib.error)), _CountedFile(path) as file:
        file.stats = stats
        counted = io.BufferedReader(file, 1 << 18)
        stream: IO[bytes]
        if suffix == ".gz":
            stream = io.BufferedReader(cast("Any", gzip.GzipFile(fileobj=counted)), 1 << 18)
        elif suffix == ".zst":
            stream = io.BufferedReader(_ZstdReader(counted), 1 << 18)
        else:
            stream = counted
        block = cast("io.BufferedReader", stream).peek(_FIRST_BLOCK)[:_FIRST_BLOCK]
        check_text(path, block, unpacks=True)
        if b"\0" in block:
            found = f"a binary file (NUL byte at offset {block.index(0)})"
            raise UserError(f"{path}: {found}, expected UTF-8 text")
        if block.startswith(_BOM):
            stream.read(len(_BOM))
        yield stream


class _CountedFile(io.FileIO):
    """A file that counts what is read of it."""

    stats: ReadStats

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer) or 0
        self.stats.bytes_read += count
        return count


class _ZstdReader(io.RawIOBase):
    """Decompresses zstandard frames; unlike the library's own reader it notices a file that was cut off."""

    def __init__(self, file: IO[bytes]) -> None:
        with needs_extra("zstd", "reading .zst files", "zstandard"):
            import zstandard
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
