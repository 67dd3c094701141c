"""Texts from lines of a file or of standard input, and results as lines of JSON."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from .errors import UserError

STDIN = "-"
# Ends of a line for some readers, and what commands some terminals: JSON allows both inside a string as they are.
_SPELLED_OUT = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}


def to_json_line(result: dict[str, Any]) -> str:
    """Return a result as JSON on one line, without its line end; characters stay as they are.

    Args:
        result: what `TextModel.predict` yields.

    Returns:
        JSON that any parser takes: a number that is not finite is refused.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(result, ensure_ascii=False, allow_nan=False).translate(_SPELLED_OUT)


def read_lines(
    path: str, stdin: BinaryIO | None = None, *, max_characters: int | None = None
) -> Iterator[str]:
    """Yield the lines of a file, blank ones too, without their ends.

    Args:
        path: a text file, or "-".
        stdin: the stream that "-" means, of bytes; the process's by default.
        max_characters: of a line; a much longer one is refused before it is in memory as a whole.

    Yields:
        The lines.

    Raises:
        UserError: the file cannot be read, or is not UTF-8; names the line.
    """
    if path == STDIN:
        yield from _lines(sys.stdin.buffer if stdin is None else stdin, "stdin", max_characters)
        return
    try:
        with open(path, "rb") as file:
            yield from _lines(file, path, max_characters)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _lines(stream: BinaryIO, name: str, max_characters: int | None) -> Iterator[str]:
    # A character has four bytes at most; there may be a byte order mark and an end of line.
    most = -1 if max_characters is None else 4 * max_characters + 8
    for number, line in enumerate(iter(lambda: stream.readline(most), b""), start=1):
        if len(line) == most and not line.endswith(b"\n"):
            raise UserError(
                f"{name}:{number}: the line has more than {max_characters:,} characters: divide it, or give a larger "
                "max_characters (--max-characters)"
            )
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if b"\0" in content:
            raise UserError(
                f"{name}:{number}: a NUL byte; expected UTF-8 text (is this UTF-16, or another kind of file?)"
            )
        try:
            yield content.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            byte = content[error.start]
            message = f"not UTF-8 (byte 0x{byte:02x}); convert the input to UTF-8"
            raise UserError(f"{name}:{number}: {message}") from error
