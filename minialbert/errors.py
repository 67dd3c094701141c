"""The one exception that means: the person who called can mend this.

It is the runtime's own, so that one `except` takes the mistakes of both.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, distribution
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError

from minialbert_runtime.errors import UserError as UserError
from minialbert_runtime.errors import printable as printable
from minialbert_runtime.errors import quoted as quoted
from minialbert_runtime.errors import shown as shown


class MissingExtraError(UserError):
    """An optional package is not installed: the extra that brings it, and a purpose, as in "reading .zst files"."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: {_installing(extra)}")


class FinishedRunError(UserError):
    """A run that was to be resumed has its record: there is nothing left to train."""


def _installing(extra: str) -> str:
    """Return the command that brings an extra; a checkout that was installed, or is only run, brings it itself."""
    if (Path(__file__).resolve().parents[1] / "pyproject.toml").is_file():
        return f"pip install -e '.[{extra}]' in the checkout"
    with suppress(PackageNotFoundError):
        if '"file:' in (distribution("minialbert").read_text("direct_url.json") or ""):
            return f"pip install '.[{extra}]' in the checkout"
    return f"pip install 'minialbert[{extra}]'"


class StandardError(logging.Handler):
    """Writes log lines to whatever standard error is at the time, so that they pass above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        lines = (printable(line) for line in self.format(record).split("\n"))
        sys.stderr.write("\n".join(lines) + "\n")


@contextmanager
def needs_extra(extra: str, purpose: str, package: str = "") -> Iterator[None]:
    """Tell which extra brings a module that cannot be imported inside the block; `package` is its other name."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(package or str(error.name).partition(".")[0], extra, purpose) from error


@contextmanager
def failing_as(
    what: str, kinds: type[Exception] | tuple[type[Exception], ...], advice: str = "", *, named: bool = False
) -> Iterator[None]:
    """Turn errors of some kinds inside the block into a `UserError`: what failed, why, and what to do.

    The reason is the error's first line, `named` after its kind. A `UserError` of the block says it all itself.
    """
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        reason = f"{type(error).__name__}: {one_line(error)}" if named else one_line(error)
        raise UserError(f"{what} ({reason})" + (f": {advice}" if advice else "")) from error


def listed(names: Iterable[object], limit: int = 240) -> str:
    """Return names for a message, divided by commas, as many as `limit` characters hold; "none" for none."""
    parts = (shown(name, limit) for name in islice(names, limit))
    return shown(", ".join(parts), limit) or "none"


def in_words(name: str) -> str:
    """Return the name of a figure as a reader writes it: "entity_f1" as "entity F1"."""
    return re.sub(r"\bf1\b", "F1", name.replace("_", " "))


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return an exception's first line, cut to `limit` characters."""
    if isinstance(error, UnpicklingError):  # PyTorch's own advice is to run the code
        return "a .bin file is damaged or holds code, which is never run: get the weights as safetensors"
    lines = str(error).strip().splitlines()
    return shown(lines[0] if lines else type(error).__name__, limit)


def local_path(name: str | Path) -> Path:
    """Return a path with its home directory filled in, whether or not there is such a file.

    That no file can have this path, or that the system does not let it be looked at, is a `UserError`.
    """
    try:
        path = Path(name).expanduser()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError, ValueError) as error:  # as for "~nobody/x", "\0" and 10,000 letters
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise UserError(f"{shown(name, 120)} is not a path that can be opened ({reason})") from error
    return path


def spelled_as_path(name: str, *, slashes: int = 1) -> bool:
    """Tell whether a name is spelled as a path, not as a hub id, whatever there is on the disk.

    It is true for "./x", "~/x", "/x", a drive's letter, and for more slashes than a hub id may have: 0 where hub ids
    begin with "hub:".
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
