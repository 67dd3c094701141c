"""The one exception that means: the person who called can mend this; and how its message quotes what they gave."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext


def printable(text: str) -> str:
    """Return text with line ends, control characters and all else that does not print spelled out."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


class UserError(ValueError):
    """A mistake in the input, told in one line.

    The message says what was expected, what came, where (file, row) and what to do next. The command
    line prints it without a traceback and exits with status 2; libraries can catch it as a `ValueError`.

    What a message quotes of a file can neither break the line nor command a terminal: letters that do not print are
    spelled out.

    Args:
        message: the line.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


def shown(text: object, limit: int = 60) -> str:
    """Return text for a message: cut to `limit` characters, line ends and control characters spelled out."""
    whole = str(text)
    line = printable(whole[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def quoted(value: object, limit: int = 60) -> str:
    """Return a value for a message as Python spells it, cut to `limit` characters."""
    try:
        return shown(repr(value[: limit + 1] if isinstance(value, str | bytes) else value), limit)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of thousands of digits
        return f"a large {type(value).__name__}"


@contextmanager
def panics_as_errors(*, silent: bool = False) -> Iterator[None]:
    """Make an exception of a panic of tokenizers, which is none, so that `except Exception` takes it.

    A panic also writes to the standard error by itself; `silent` keeps that of the whole process closed inside the
    block, so it is for what takes a moment.
    """
    with _without_stderr() if silent else nullcontext():
        try:
            yield
        except BaseException as error:
            if type(error).__name__ == "PanicException":
                raise RuntimeError(str(error)) from error
            raise


@contextmanager
def _without_stderr() -> Iterator[None]:
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # there is none
        yield
        return
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
