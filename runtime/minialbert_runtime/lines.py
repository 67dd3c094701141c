"""Texts from lines of a file or of standard input, and results as lines of JSON."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from .errors import UserError

STDIN = "-"
SHORTEN = "split it, or give a larger max_characters (--max-characters)"
# Ends of a line for some readers, and what commands some terminals: JSON allows both inside a string as they are.
_SPELLED_OUT = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}


def to_json_line(result: dict[str, Any]) -> str:
    """Return a result as JSON on one line, without its line end; characters stay as they are, numbers have six digits.

    Any parser takes it: a number that is not finite is a ValueError.
    """
    return json.dumps(six_digits(result), ensure_ascii=False, allow_nan=False).translate(_SPELLED_OUT)


def six_digits(value: Any) -> Any:
    """Return a value with its numbers, wherever in it, at six digits; large ones are whole."""
    if isinstance(value, float):
        return float(f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}")
    if isinstance(value, dict):
        return {key: six_digits(one) for key, one in value.items()}
    return [six_digits(one) for one in value] if isinstance(value, list) else value


def read_lines(
    path: str, stdin: BinaryIO | None = None, *, max_characters: int | None = None
) -> Iterator[str]:
    """Yield the lines of a file, or of standard input for "-", blank ones too, without their ends.

    A line of many more than `max_characters` is refused before it is in memory as a whole.
    """
    most = _bytes_of(max_characters)
    with _opened(path, stdin) as (stream, name):
        for number, line in enumerate(iter(lambda: stream.readline(most), b""), start=1):
            if len(line) == most and not line.endswith(b"\n"):
                raise UserError(
                    f"{name}:{number}: the line has more than {max_characters:,} characters: {SHORTEN}"
                )
            if number == 1 and not line.endswith(b"\n") and line.rstrip(b"\r").count(b"\r") > 1:
                raise UserError(
                    f"{name}:1: its lines end with CR alone, as on old Macs; expected LF or CR LF"
                )
            yield _decoded(line.removesuffix(b"\n").removesuffix(b"\r"), name, number)


def read_text(path: str, stdin: BinaryIO | None = None, *, max_characters: int | None = None) -> str:
    """Return a file as one text, its line ends as they are; a byte order mark is left out. Else as `read_lines`."""
    most = _bytes_of(max_characters)
    with _opened(path, stdin) as (stream, name):
        content = stream.read(most)
        if len(content) == most:
            raise UserError(f"{name}: more than {max_characters:,} characters: {SHORTEN}")
        return _decoded(content, name, 1)


def _bytes_of(max_characters: int | None) -> int:
    # A character has four bytes at most; there may be a byte order mark and an end of line.
    return -1 if max_characters is None else 4 * max_characters + 8


@contextmanager
def _opened(path: str, stdin: BinaryIO | None) -> Iterator[tuple[BinaryIO, str]]:
    if path == STDIN:
        yield sys.stdin.buffer if stdin is None else stdin, "stdin"
        return
    try:
        with open(path, "rb") as file:
            yield file, path
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _decoded(content: bytes, name: str, line: int) -> str:
    """Return what begins on a line of a file as text, or raise the error that names the line of a bad byte."""
    content = content.removeprefix(codecs.BOM_UTF8) if line == 1 else content
    at = content.find(b"\0")
    message = "a NUL byte; expected UTF-8 text (is this UTF-16, or another kind of file?)"
    if at < 0:
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            at = error.start
            message = f"not UTF-8 (byte 0x{content[at]:02x}); convert the input to UTF-8"
    number = line + content.count(b"\n", 0, at)
    raise UserError(f"{name}:{number}: {message}")
