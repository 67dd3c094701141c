"""What every verb of the command line shares: consoles, common options, and how a run is interrupted."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from minialbert.errors import printable
from minialbert.runs.files import to_json
from minialbert.runs.stopping import handling, rank, world_size


class PlainConsole(Console):
    """A console that takes text as text: brackets are no markup, `:name:` no picture, and controls are spelled out."""

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


def option(help: str, *names: str, **limits: Any) -> Any:  # noqa: ANN401 - as typer has it
    """Return an option with what `--help` says of it."""
    return typer.Option(*names, help=help, **limits)


JsonFlag = Annotated[bool, option("Print the record as JSON on standard output.", "--json")]
OverwriteFlag = Annotated[bool, option("Replace what an earlier run left there.", "--overwrite")]
YesFlag = Annotated[bool, option("Start a run on a terminal even if it takes more than a day.", "--yes")]
ResumeFlag = Annotated[bool, option("Go on with the run in the directory.", "--resume")]


def patience(yes: bool) -> float | None:
    """Return the hours that a run may take which a person starts on a terminal without `--yes`; None for any."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    seen = all(stream is not None and stream.isatty() for stream in streams)
    return 24.0 if seen and not yes else None


def print_json(record: Any) -> None:  # noqa: ANN401
    """Write a record to standard output."""
    sys.stdout.write(to_json(record) + "\n")


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], figures: int | None = None) -> None:
    """Print a table; columns of figures, from the one that is told on, are set to the right."""
    table = Table(*header)
    for column in table.columns[len(header) if figures is None else figures :]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    out.print(table)


def say(text: str) -> None:
    """Print a line as it is: brackets in a path are no markup, and a long path is not broken."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def interruptible(advice: str = "the same command starts it again") -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into one line that says how to go on, and exit status 130.

    Transformers' bars and loading reports are left out; what matters of them is in our own lines.
    """
    from minialbert.runs.progress import silence_transformers

    silence_transformers()
    # One of several processes may wait inside torch for another that has failed: no handler would run there, and its
    # launcher could not end it.
    signals = [signal.SIGTERM] if world_size() == 1 else []
    try:
        with handling(signal.default_int_handler, *signals):
            yield
    except KeyboardInterrupt:
        if rank() == 0:
            err.print(f"minialbert: interrupted; {advice}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
