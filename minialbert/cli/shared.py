"""What every verb of the command line shares: consoles, common options, and how a run is interrupted."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from minialbert.errors import printable
from minialbert.runs.stopping import rank, world_size


class PlainConsole(Console):
    """A console that takes text as text, whatever data it comes from.

    Brackets are no markup, `:name:` no picture, and control characters reach no terminal: they are spelled
    out.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the parts to be printed; a table's cells come through here too."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                lines = (printable(line) for line in segment.text.split("\n"))
                yield Segment("\n".join(lines), segment.style)


out = PlainConsole()
err = PlainConsole(stderr=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the record as JSON on standard output.")]
OverwriteFlag = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left there.")]
ResumeFlag = Annotated[bool, typer.Option("--resume", help="Go on with the run in the directory.")]


def print_json(record: Any) -> None:  # noqa: ANN401
    """Write a record to standard output."""
    sys.stdout.write(json.dumps(record, indent=2) + "\n")


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    out.print(table)


def say(text: str) -> None:
    """Print a line as it is: brackets in a path are no markup, and a long path is not broken."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into one line that says how to go on, and exit status 130."""
    try:
        with _sigterm_as_ctrl_c():
            yield
    except KeyboardInterrupt:
        if rank() == 0:
            err.print(f"minialbert: interrupted; {advice}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    # The main thread alone may set handlers. One of several processes may wait inside torch for another that has
    # failed: no handler would run there, and its launcher could not end it.
    if threading.current_thread() is not threading.main_thread() or world_size() > 1:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def quiet_transformers() -> None:
    """Leave out Transformers' bars and loading reports; what matters of them is in our own lines."""
    from minialbert.runs.progress import silence_transformers

    silence_transformers()
