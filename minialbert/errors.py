"""The one exception that means: the person who called can mend this.

It is the runtime's own, so that one `except` takes the mistakes of both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from itertools import islice
from pathlib import Path

from minialbert_runtime.errors import UserError, printable, quoted, shown

__all__ = [
    "MissingExtraError",
    "UserError",
    "listed",
    "local_path",
    "one_line",
    "printable",
    "quoted",
    "shown",
]


class MissingExtraError(UserError):
    """An optional dependency is not installed.

    Args:
        package: the module that could not be imported.
        extra: the extra of this distribution that brings it.
        purpose: what it is needed for, as in "reading .zst files".
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: {_installing(extra)}")


def _installing(extra: str) -> str:
    """Return the command that brings an extra; a checkout that was installed, or is only run, brings it itself."""
    if (Path(__file__).resolve().parents[1] / "pyproject.toml").is_file():
        return f"pip install -e '.[{extra}]' in the checkout"
    with suppress(PackageNotFoundError):
        if '"file:' in (distribution("minialbert").read_text("direct_url.json") or ""):
            return f"pip install '.[{extra}]' in the checkout"
    return f"pip install 'minialbert[{extra}]'"


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
