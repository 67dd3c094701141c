"""What every verb of the command line shares: consoles, common options, and how a run is interrupted."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from minialbert_runtime.reading import line
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from minialbert.errors import FinishedRunError, UserError, printable
from minialbert.runs.files import to_json
from minialbert.runs.stopping import handling, rank, world_size


class PlainConsole(Console):
    """A console that takes text as text: brackets and `:name:` have no meaning, and controls are spelled out."""

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


_COLOURS = ("cyan", "yellow", "green", "magenta", "red", "blue")  # of labels
out = PlainConsole()
err = PlainConsole(stderr=True)
_loading = err.status("loading ...")
_AGAIN = "the same command starts it again"


def option(help: str, *names: str, **limits: Any) -> Any:
    """Return an option with what `--help` says of it."""
    return typer.Option(*names, help=help, **limits)


class _Plain:
    """A command: its help has options in groups and types in plain words, and former options get their new names."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, each with its group and the word for its type."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]  # typer's
        trains = any(param.name == "lr" for param in params)
        for param in params:
            groups = [group for group, names in _GROUPS.items() if param.name in names.split()]
            param.rich_help_panel = next((one for one in groups if one != "Training" or trains), None)
            if param.metavar is None and hasattr(param, "display_type"):
                kind = re.sub(r"list\[(.*)\]| range.*", r"\1", param.display_type(ctx).strip("<>"))
                word = _WORDS.get(kind.lower(), kind)
                param.display_type_rich = lambda ctx, word=word: word
        return params

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse a command line, in which each former option gets its new name, which is said."""
        for at, word in enumerate(args):
            name, equals, value = word.partition("=")
            if now := _FORMER.get((ctx.info_name, name)):
                args[at] = now + equals + value
                say(f"minialbert: {name} is now called {now}", err)
        return super().parse_args(ctx, args)  # type: ignore[misc,no-any-return]


class Verb(_Plain, TyperCommand):
    """A verb."""


class Verbs(_Plain, TyperGroup):
    """A group of verbs."""


# Groups of options in `--help`, and the parameters of any verb that stand in them.
_GROUPS = {
    "Training": "steps epochs time batch_size lr seed precision set_",
    "Texts": "column pair pair_column id_column documents max_characters text_field pair_field max_document_mb",
    "Windows": "window_length overlap max_windows_per_document truncate held_out_fraction",
    "Grid": "grid jobs ray keep_models",
    "Depth": "num_iterations exit_threshold",
    "ONNX (--to onnx)": "quantize calibration head opset tolerance",
    "Hub (--to hub)": "repo_id push private license_ language",
    "Run": "seed batch_size workers set_ threads resume overwrite yes dry_run as_json",
}
_WORDS = {"str": "TEXT", "path": "PATH", "int": "NUMBER", "float": "NUMBER", "bool": ""}
_FORMER = {
    ("bench", "--models"): "--model", ("export", "--evaluate"): "--task", ("status", "--output"): "--records",
    ("prepare", "--text-field"): "--column", ("trim", "--text-field"): "--column",
}  # fmt: skip
Precision = StrEnum("Precision", ["auto", "fp32", "bf16", "fp16"])
PrecisionOption = Annotated[Precision | None, option("Arithmetic (default: the faster on this machine).")]
InputFiles = Annotated[
    list[str] | None,
    option("Files (.txt: a text a line; .csv, .tsv, .jsonl, .parquet) or - for standard input.", "--input"),
]
Rows = Annotated[int, option("Inputs per forward pass.", min=1)]
JsonFlag = Annotated[bool, option("Print the record as JSON on standard output.", "--json")]
OverwriteFlag = Annotated[bool, option("Replace the results of an earlier run.", "--overwrite")]
YesFlag = Annotated[bool, option("Start even if the run takes more than a day.", "--yes")]
ResumeFlag = Annotated[bool, option("Continue the run in the output directory.", "--resume")]


_KEYS = {"steps": "max_steps", "lr": "learning_rate"}


def chosen(section: str, settings: Sequence[str] | None, **options: Any) -> list[str]:
    """Return the entries of `--set`, those that other options stand for among them; one given twice is a UserError."""
    entries = list(settings or ())
    for name, value in options.items():
        key = f"{section}.{_KEYS.get(name, name)}"
        if value is not None and any(entry.partition("=")[0].strip() == key for entry in entries):
            raise UserError(f"--{name.replace('_', '-')} and --set {key} are one setting: give one of them")
        entries += [f"{key}={value}"] * (value is not None)
    return entries


def patience(yes: bool) -> float | None:
    """Return the hours that a run may take which a person starts on a terminal without `--yes`; None for any."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    seen = all(stream is not None and stream.isatty() for stream in streams)
    return 24.0 if seen and not yes else None


@contextmanager
def loading() -> Iterator[None]:
    """Show on a terminal that a verb is being loaded, until it runs (`interruptible`) or ends."""
    if err.is_terminal and not {"-h", "--help"} & set(sys.argv):
        _loading.start()
    try:
        yield
    finally:
        _loading.stop()


def leave_page(output: Path) -> None:
    """Write the page of a run beside its record, and say where it is, or why there is none."""
    from minialbert.report import leave_page as leave

    with interruptible(f"all but the page is written; minialbert report {output} --output DIR writes one"):
        say(leave(output))


@contextmanager
def with_page(output: Path, as_json: bool) -> Iterator[None]:
    """Give a run that is to be resumed, but was killed between its record and its page, that page, and end well."""
    try:
        yield
    except FinishedRunError:
        if as_json or (output / "report.html").exists() or rank() != 0:
            raise
        say(
            f"{output} holds a finished run, with its record in {output / 'result.json'}; only its page was missing"
        )
        leave_page(output)
        raise typer.Exit from None


def print_json(record: Any) -> None:
    """Write a record to standard output."""
    sys.stdout.write(to_json(record) + "\n")


def printed_json(record: Mapping[str, Any], as_json: bool) -> bool:
    """Return whether a record is empty, as of all processes of a job but the first, or was printed as JSON here."""
    if record and as_json:
        print_json(record)
    return as_json or not record


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], figures: int | None = None) -> None:
    """Print a table; columns of figures, from the one that is told on, are set to the right."""
    table = Table(*header)
    for column in table.columns[len(header) if figures is None else figures :]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    out.print(table)


def print_answers(results: Iterable[dict[str, Any]]) -> None:
    """Print what a model says of texts, a line each, each label in a colour of its own."""
    styles: dict[str, str] = {}
    console = Console(markup=False, emoji=False, highlight=False)
    for result in results:
        told = Text()
        for part, label in line(result):
            if label:
                styles.setdefault(label, f"black on bright_{_COLOURS[len(styles) % len(_COLOURS)]}")
            told.append(part, styles.get(label or ""))
        told.rstrip()
        console.print(told, soft_wrap=True)


def say(text: str, console: Console = out) -> None:
    """Print a line as it is: brackets in a path are not markup, and a long path is not broken."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def way_on(output: Path, *, overwrite: bool, then: str | None = None) -> Callable[[], str]:
    """Return what says how an interrupted run goes on, by what it has left in its folder.

    It takes `--resume`, unless the same command goes on by itself, as in "goes on where it stopped" (`then`).
    """
    from minialbert.runs.checkpoints import has_known_data

    def files() -> list[tuple[str, int]]:
        return sorted((path.name, path.lstat().st_mtime_ns) for path in output.glob("*"))

    before = files() if overwrite else []  # of a run that is to be replaced

    def told() -> str:
        if files() == before:
            return _AGAIN
        if then is not None:
            return f"the same command {'without --overwrite ' * overwrite}{then}"
        goes_on = "starts its training"
        if (output / "result.json").is_file():
            goes_on = "writes its page, which alone is missing"
        elif has_known_data(output / "checkpoints") is not None:
            goes_on = "goes on from the last checkpoint"
        elif (output / "teacher-labels").is_dir():
            goes_on = "goes on with the labels that the teacher has given"
        return f"the same command with --resume{' in place of --overwrite' * overwrite} {goes_on}"

    return told


@contextmanager
def interruptible(advice: str | Callable[[], str] = _AGAIN) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into one line that says how to go on, and exit status 130.

    Transformers' bars and loading reports are left out; what matters of them is in our own lines.
    """
    from minialbert.runs.progress import silence_transformers

    silence_transformers()
    _loading.stop()
    # One of several processes may wait inside torch for another that has failed: no handler would run there, and its
    # launcher could not end it.
    signals = [signal.SIGTERM] if world_size() == 1 else []
    try:
        with handling(signal.default_int_handler, *signals):
            yield
    except KeyboardInterrupt:
        if rank() == 0:
            said = advice if isinstance(advice, str) else advice()
            say(f"minialbert: interrupted; {said}", err)
        sys.exit(130)
