"""The one exception that means: the person who called can mend this."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path


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


class MissingExtraError(UserError):
    """An optional dependency is not installed.

    Args:
        package: the module that could not be imported.
        extra: the extra of this distribution that brings it.
        purpose: what it is needed for, as in "reading .zst files".
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: pip install 'minialbert[{extra}]'")


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


def listed(names: Iterable[object], limit: int = 240) -> str:
    """Return names for a message, divided by commas, as many as `limit` characters hold; "none" for none."""
    parts = (shown(name, limit) for name in islice(names, limit))
    return shown(", ".join(parts), limit) or "none"


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return an exception's first line, cut to `limit` characters."""
    lines = str(error).strip().splitlines()
    return shown(lines[0] if lines else type(error).__name__, limit)


def local_path(name: str | Path) -> Path:
    """Return a path with its home directory filled in, whether or not there is such a file.

    Args:
        name: as the user wrote it.

    Returns:
        The path.

    Raises:
        UserError: if no file can have this path, or the system does not let it be looked at.
    """
    try:
        path = Path(name).expanduser()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError, ValueError) as error:  # as for "~nobody/x", "\0" and 10,000 letters
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise UserError(f"{shown(name, 120)} is no path that can be opened ({reason})") from error
    return path


def spelled_as_path(name: str, *, slashes: int = 1) -> bool:
    """Tell whether a name is spelled as a path, not as a hub id, whatever there is on the disk.

    Args:
        name: of a model or of data.
        slashes: how many a hub id may have; 0 where hub ids begin with "hub:".

    Returns:
        True for "./x", "~/x", "/x", a drive's letter, and for more slashes than these.
    """
    marked = name.startswith((".", "~", "/")) or re.match(r"[A-Za-z]:|hub:/", name) or "\\" in name
    return bool(marked) or name.count("/") > slashes


def display_name(name: str | Path | None) -> str | None:
    """Return how a record names a model or data: its hub id, or the last part of a local path.

    The `model` folder of a run has the run's name.
    """
    if not name:
        return None
    if not spelled_as_path(str(name)) and not Path(name).exists():
        return str(name)
    path = Path(name).expanduser().resolve()
    return path.parent.name if path.name == "model" else path.name
