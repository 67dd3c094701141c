"""The command `minialbert-runtime`: texts in, one line for each out, as JSON or to be read."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .errors import UserError
from .limits import ENGINES, Limits
from .lines import STDIN, read_lines, read_text, to_json_line
from .reading import line

if TYPE_CHECKING:
    from .windows import Text

_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".xml")  # whose lines are not texts
_MODEL = "exported folder, or name of an installed model, as biomedical-ner-2mb"
_EXAMPLES = """\
minialbert-runtime exported/ "Aspirin relieves pain."
minialbert-runtime exported/ --input notes.txt > answers.jsonl
cat notes.txt | minialbert-runtime biomedical-ner-2mb --input - --format table

For an HTTP server see `minialbert-runtime serve --help`."""
_SERVED = """\
minialbert-runtime serve exported/
minialbert-runtime serve drugs=exported/ diseases=biomedical-ner-2mb --port 8081
curl -d '{"texts": ["Aspirin relieves pain."]}' http://127.0.0.1:8080/predict"""


class _Help(argparse.HelpFormatter):
    """Leaves the lines of the examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process: 0, 2 after a mistake of the user, 130 after Ctrl-C."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if words[:1] == ["serve"]:
            _serve(words[1:])
        else:
            _end_at_interrupt()
            _run(words)
    except UserError as error:
        sys.stderr.write(f"minialbert-runtime: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader has gone. Python would write what is left, and complain, when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)


def _end_at_interrupt() -> None:
    """Let a thread wait for Ctrl-C, and end the process at once.

    Python itself would raise KeyboardInterrupt, but only when a run of the model or a read of standard input is over.
    Threads that are started later keep the mask, so that the signal reaches none of ONNX Runtime's.
    """
    if sys.platform == "win32":
        return

    def wait() -> None:
        signal.sigwait({signal.SIGINT})
        os._exit(130)

    # Where Ctrl-C was switched off, as for a shell's background jobs, it stays so.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        threading.Thread(target=wait, daemon=True).start()


def check_given(texts: Sequence[str] | None, files: object) -> None:
    """Refuse texts beside files, neither of them, and a text that is the name of a file."""
    if bool(texts) == bool(files):
        raise UserError("give either texts or --input (a file, or - for standard input)")
    for text in texts or ():
        if text == STDIN:
            raise UserError("- stands for standard input: give --input - to read it")
        if os.path.isfile(text):
            raise UserError(f"{text} is a file: give --input {text} to read it")


def _run(arguments: Sequence[str]) -> None:
    options = _parser().parse_intermixed_args(arguments)
    check_given(options.texts, options.input)
    if options.documents and options.input is None:
        raise UserError("--documents is for a file: give --input too")
    if options.input not in (None, STDIN) and not os.path.isfile(options.input):
        raise UserError(f"no such file: {options.input}")
    if Path(options.input or "").suffix.lower() in _TABLES:
        raise UserError(
            f"{options.input} is a table, and --input takes a file of one text a line: write its texts as lines, or "
            "give the table to `minialbert predict`"
        )
    guard = None
    if options.prove_offline is not None:
        from .offline import Guard  # listens before the libraries are imported

        guard = Guard()
    try:
        from .model import Model  # the libraries behind it take a fifth of a second
    except ImportError as error:  # the library brings this package along without them
        raise UserError(f"{error.name} is missing: pip install {error.name}") from error

    given = ("batch_size", "threshold", "threads", "engine", "top_k", "max_characters")
    chosen = {name: value for name in given if (value := getattr(options, name)) is not None}
    model = Model(options.model, **chosen)
    texts: Iterable[str] = options.texts
    if options.input is not None:
        read = _whole if options.documents else read_lines
        texts = read(options.input, max_characters=model.max_characters)
    shown = options.format or ("table" if sys.stdout.isatty() else "jsonl")
    count = 0
    for count, result in enumerate(model.predict(_with_pair(texts, options.pair)), start=1):  # noqa: B007
        told = (
            to_json_line(result) if shown == "jsonl" else "".join(part for part, _ in line(result)).rstrip()
        )
        sys.stdout.buffer.write(f"{told}\n".encode())
        sys.stdout.buffer.flush()
    if guard is not None:
        guard.record(Path(options.prove_offline), model.folder.path, count)


def _serve(arguments: Sequence[str]) -> None:
    """Serve models until a signal comes."""
    options = vars(_serve_parser().parse_args(arguments))
    given = options["folders"]
    folders = [one if "=" in one and not Path(one).is_dir() else f"default={one}" for one in given]
    folders += options["model"]
    if not folders:
        raise UserError("give a folder that `minialbert export` wrote, or several as NAME=FOLDER")
    limits = Limits(**{one.name: options[one.name] for one in fields(Limits)})
    try:
        from .server import serve
    except ImportError as error:
        advice = "pip install './runtime[serve]' in the checkout"
        raise UserError(f"{error.name} is missing: {advice}") from error
    chosen = {name: options[name] for name in ("threshold", "top_k", "batch_size", "threads")}
    if options["engine"]:
        chosen["engine"] = options["engine"]
    serve(folders, options["host"], options["port"], limits, **chosen)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minialbert-runtime",
        description="Label texts with an exported model: entities marked in the text, or one JSON object a line.",
        epilog=_EXAMPLES,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL_DIR", help=_MODEL)
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="texts, or give --input")
    parser.add_argument(
        "--input", metavar="FILE", help="a file of one text per line, or - for standard input"
    )
    parser.add_argument("--file", dest="input", help=argparse.SUPPRESS)  # its former name
    parser.add_argument("--documents", action="store_true", help="with --input: the file is one text")
    parser.add_argument("--pair", metavar="TEXT", help="second text of each pair, for a task of pairs")
    _add_model_options(parser, threads=None)
    parser.add_argument(
        "--format",
        choices=("table", "jsonl"),
        help="table: lines for people (default on a terminal); jsonl: JSON with offsets (default elsewhere)",
    )
    parser.add_argument("--max-characters", type=int, help="longest text accepted, in characters (1,000,000)")
    parser.add_argument(
        "--prove-offline",
        metavar="FILE",
        help="block the network, and write a JSON record of attempts to use it",
    )
    return parser


def _serve_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minialbert-runtime serve",
        description="Answer over HTTP with exported models: JSON, an OpenAPI document, and a page to try them.",
        epilog=_SERVED,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders",
        metavar="MODEL_DIR or NAME=FOLDER",
        nargs="*",
        help=f"{_MODEL}; requests call it default, unless NAME is given",
    )
    parser.add_argument(
        "--model", metavar="NAME=FOLDER", action="append", default=[], help="the same as NAME=FOLDER alone"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8080, help="port to listen at (8080; 0 for a free one)")
    _add_model_options(parser, threads=1)
    for one in fields(Limits):
        parser.add_argument(
            f"--{one.name.replace('_', '-')}",
            type=type(one.default),
            default=one.default,
            metavar="NUMBER",
            help=f"{one.metadata['help']} ({one.default:,.9g})",
        )
    return parser


def _add_model_options(parser: argparse.ArgumentParser, *, threads: int | None) -> None:
    parser.add_argument(
        "--threshold",
        type=float,
        help="lowest probability of an answer (0; with several labels per text 0.5)",
    )
    parser.add_argument("--top-k", type=int, help="show only this many scores, the highest first (all)")
    parser.add_argument(
        "--batch-size", type=int, help="most inputs per run of the model (32; dynamic int8: 1)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=threads,
        help=f"threads of one run ({threads or 'one per physical core'})",
    )
    parser.add_argument(
        "--engine",
        choices=("auto", *ENGINES),
        help="engine; auto measures for a second (default: that of the export)",
    )


def _whole(path: str, *, max_characters: int) -> Iterator[str]:
    yield read_text(path, max_characters=max_characters)


def _with_pair(texts: Iterable[str], pair: str | None) -> Iterator[Text]:
    for text in texts:
        yield text if pair is None else (text, pair)
