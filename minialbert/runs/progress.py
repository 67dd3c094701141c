"""What is shown of work under way: the one bar and our log lines, without those of Transformers."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec

from rich import filesize
from rich import progress as bars
from rich.console import Console

from minialbert.errors import StandardError, UserError, quoted

# How many blocks of all threads are quiet, and how Transformers spoke before the first of them.
_quiet, _counting = 0, threading.Lock()
_spoken: tuple[int, bool] | None = None


def progress_bar(
    title: str,
    *columns: str | bars.ProgressColumn,
    shown: bool = True,
    transient: bool = False,
    in_files: bool = False,
) -> bars.Progress:
    """Return a bar on standard error: drawn where that is a terminal, or a notebook with ipywidgets.

    Its title may be a template of rich. After the bar stand `columns`; without, how many of how many, and the time gone
    by and left. `transient` leaves nothing behind; `in_files` writes its last state where standard error is a file or a
    pipe. It is a context, with rich's `add_task`, `update` and `track`.
    """
    console = Console(stderr=True)
    in_notebook = console.is_jupyter  # where rich can draw with ipywidgets alone
    drawn = find_spec("ipywidgets") is not None if in_notebook else in_files or console.is_terminal
    if not columns:
        left = bars.TimeRemainingColumn(elapsed_when_finished=False)
        columns = (bars.MofNCompleteColumn(), bars.TimeElapsedColumn(), "left", left)
    return bars.Progress(
        title, bars.BarColumn(), *columns, console=console, transient=transient, disable=not (shown and drawn)
    )


@contextmanager
def speaking(shown: bool = True) -> Iterator[None]:
    """Show our log lines inside the block, unless somebody has set up logging, who gets them there.

    Transformers' bars and loading reports, which frighten people who did nothing wrong, reach nobody in the meantime.
    """
    ours = logging.getLogger("minialbert")
    import_module("transformers")  # which every such verb needs: so it is quiet from here on
    with quiet_transformers(), ExitStack() as stack:
        if shown and not ours.hasHandlers():
            handler = StandardError()
            ours.addHandler(handler)
            stack.callback(ours.removeHandler, handler)
            stack.callback(ours.setLevel, ours.level)
            ours.setLevel(logging.INFO)
        yield


def silence_transformers() -> None:
    """Keep Transformers' bars and loading reports off the screen until the process ends, if it is imported."""
    if "transformers" not in sys.modules:  # which takes most of a second
        return
    from transformers.utils import logging as theirs

    theirs.set_verbosity_error()
    theirs.disable_progress_bar()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep Transformers' bars and loading reports off the screen inside the block; what matters is in our lines.

    They are for all threads together, so the last one that leaves such a block restores them. Where Transformers is not
    imported yet, the first block inside that comes after it is makes the whole quiet.
    """
    global _quiet, _spoken
    with _counting:
        _quiet += 1
        if _spoken is None and "transformers" in sys.modules:
            from transformers.utils import logging as theirs

            _spoken = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
            silence_transformers()
    try:
        yield
    finally:
        with _counting:
            _quiet -= 1
            if not _quiet and _spoken is not None:
                from transformers.utils import logging as theirs

                theirs.set_verbosity(_spoken[0])
                if _spoken[1]:
                    theirs.enable_progress_bar()
                _spoken = None


def duration(seconds: float) -> str:
    """Return a time span as h:mm:ss or m:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def seconds_of(text: str) -> float:
    """Return the seconds of a time span such as "2h", "90m", "45s" or "1h30m"."""
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+)m)?(?:(\d+)s)?", str(text).strip())
    hours, minutes, seconds = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, 0.0)
    if not (total := 3600 * hours + 60 * minutes + seconds):
        raise UserError(f"time: expected a span such as 2h, 90m, 45s or 1h30m, found {quoted(text)}")
    return total


def size(num_bytes: float) -> str:
    """Return a number of bytes with its unit, as in "1.2 MB"."""
    return filesize.decimal(round(num_bytes))
