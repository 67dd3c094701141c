"""What every verb of the command line shares: consoles, common options, and how a run is interrupted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

out = Console()
err = Console(stderr=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the record as JSON on standard output.")]
OverwriteFlag = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left there.")]


def given(value: Any, default: Any) -> Any:  # noqa: ANN401
    """Return an option's value, or what stands in when it is absent."""
    return default if value is None else value


def print_json(record: Any) -> None:  # noqa: ANN401
    """Write a record to standard output."""
    sys.stdout.write(json.dumps(record, indent=2) + "\n")


def say(text: str) -> None:
    """Print a line as it is: brackets in a path are no markup, and a long path is not broken."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """Turn Ctrl-C into one line that says how to go on, and exit status 130."""
    try:
        yield
    except KeyboardInterrupt:
        err.print(f"minialbert: interrupted; {advice}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None


def quiet_transformers() -> None:
    """Leave out Transformers' bars and loading reports; what matters of them is in our own lines."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
