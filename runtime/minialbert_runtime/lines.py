"""Texts from lines of a file or of standard input, and results as lines of JSON."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterable, Iterator
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


def read_lines(path: str, stdin: BinaryIO | None = None) -> Iterator[str]:
    """Yield the lines of a file, blank ones too, without their ends.

    Args:
        path: a text file, or "-".
        stdin: the stream that "-" means, of bytes; the process's by default.

    Yields:
        The lines.

    Raises:
        UserError: the file cannot be read, or is not UTF-8; names the line.
    """
    if path == STDIN:
        yield from _lines(sys.stdin.buffer if stdin is None else stdin, "stdin")
        return
    try:
        with open(path, "rb") as file:
            yield from _lines(file, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _lines(stream: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
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
