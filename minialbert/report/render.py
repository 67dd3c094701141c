"""What a model answers, for people and for programs: marked texts, a page, JSON, CSV, and files for brat."""

from __future__ import annotations

import csv
import html
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from minialbert_runtime.lines import six_digits, to_json_line
from minialbert_runtime.reading import line, parts

from minialbert.data import formats
from minialbert.data.formats import label_studio
from minialbert.data.formats.documents import Document, of_answer
from minialbert.errors import UserError, listed, quoted
from minialbert.report.blocks import Section
from minialbert.report.page import html_page
from minialbert.report.tables import Marked, Table, csv_line, no_formula
from minialbert.runs.files import check_file, check_folder, whole_file, whole_folder, writing

logger = logging.getLogger(__name__)

Answers = Iterable[Mapping[str, Any]]
_COLUMNS = ("file", "id", "start", "end", "label", "score", "text", "pair")
_MOST_TEXTS, _MOST_CHARACTERS = 300, 600_000  # of a page


class Rendered(str):
    """Answers as text; notebooks show a page as it is."""

    def _repr_html_(self) -> str | None:
        frame = f'<iframe srcdoc="{html.escape(self)}" width="100%" height="480" frameborder="0"></iframe>'
        return frame if self.startswith("<!DOCTYPE") else None


def render(
    answers: Answers | Mapping[str, Any],
    output: str | Path | None = None,
    *,
    format: str | None = None,
    overwrite: bool = False,
) -> Rendered:
    """Render predictions as a page, as lines for a terminal, or as a file for programs.

    Examples:
        >>> answers = [{"text": "A large house.", "label": "large", "score": 0.98}]
        >>> print(minialbert.render(answers, format="table"), end="")
        [large 0.98] A large house.

    Args:
        answers: what `predict` returns, or one of them; `id` and `file` are shown where a dictionary has them.
        output: a file, or for brat a folder, to write instead.
        format: "html", "table" (a line of text each), "jsonl", "json", "csv" (a row per entity or text), "label-studio"
            (tasks with predictions), "doccano", "conll" (a word and its tag a line), "spacy" (a DocBin), or "brat" (a
            `.txt` and an `.ann` file per text). Default: what the output's name ends with, else "html".
        overwrite: replace existing files.

    Returns:
        The text, which a notebook displays if it is a page; empty if it went to `output`.

    Raises:
        UserError: if the format is unknown or not for such answers, or the output cannot be written.
    """
    answers = [answers] if isinstance(answers, Mapping) else answers  # that of one text
    format = format or format_of(output, "html")
    if format not in (FORMATS if output is None else (*FORMATS, *FILES)):
        advice = f"expected {listed(FORMATS)}, or brat with a folder or spacy with a file as output"
        raise UserError(f"{quoted(format)}: {advice}")
    if output is None:
        return Rendered("".join(FORMATS[format](answers)))
    if format in FILES:
        _write_files(answers, Path(output), format, overwrite=overwrite)
        return Rendered()
    file, written = Path(output), 0
    check_file(file, overwrite=overwrite)
    try:
        with writing(file, advice=None), whole_file(file, keep=(UserError, OSError)) as stream:
            for written, piece in enumerate(FORMATS[format](answers), start=1):  # noqa: B007 - told below
                stream.write(piece)
    except UserError as error:
        partial = file.with_name(f".{file.name}.partial")
        # How much of it a full disk took nobody knows.
        lines = (
            "answers that had room" if isinstance(error.__cause__, OSError) else f"{written:,} lines before"
        )
        raise UserError(
            f"{error}; the {lines} are in {partial}" if partial.is_file() else str(error)
        ) from error
    return Rendered()


def _page(answers: Answers) -> Iterator[str]:
    """Yield a page with a legend and as many of the first texts as it holds."""
    looks: dict[str, int] = defaultdict(count().__next__)
    counts: Counter[str] = Counter()
    rows: list[tuple[str, Marked]] = []
    number = characters = 0
    for number, answer in enumerate(answers, start=1):
        found = list(parts(answer))
        counts.update(label for _, label, _ in found if label)
        characters += sum(len(text) for text, _, _ in found)
        if len(rows) < _MOST_TEXTS and characters < _MOST_CHARACTERS:
            name = " ".join(str(answer[key]) for key in ("file", "id") if key in answer)
            marks = ((text, None if label is None else looks[label], tag) for text, label, tag in found)
            rows.append((name or str(number), Marked(tuple(marks))))
    left = (f"These are the first {len(rows):,} of {number:,} texts.",) if len(rows) < number else ()
    legend = tuple((Marked((("", looks[one], one),)), f"{many:,}") for one, many in counts.most_common())
    labels = Table("Labels", ("label", "count"), legend)
    texts = Table("Texts", ("text", "answer"), tuple(rows), left)
    shown = [Section(one.title, (one,)) for one in (labels, texts) if one.rows]
    yield html_page("What the model answers", shown)


def _csv(answers: Answers) -> Iterator[str]:
    """Yield a table by rows: one per entity, or one per text with its classes divided by "|"."""
    number = empty = 0
    columns: list[str] = []
    for number, answer in enumerate(answers, start=1):
        columns = columns or [name for name in _COLUMNS if name not in ("file", "pair") or name in answer]
        if number == 1:
            yield csv_line(columns, csv.QUOTE_NONNUMERIC)
        rows = [{**answer, **entity} for entity in answer.get("entities", ())]
        if "entities" not in answer:
            one = answer.get("label") or answer.get("answer")
            labels = answer.get("labels", [one] if one else [])
            known = answer.get("scores", {})  # top_k may leave out that of a label
            scores = (str(six_digits(known[one])) if one in known else "" for one in labels)
            rows = [{"score": "|".join(scores), **answer, "label": "|".join(labels)}]
        empty += not rows
        for row in rows:
            values = (six_digits(row.get(name, number if name == "id" else "")) for name in columns)
            shown = (no_formula(one) if isinstance(one, str) else one for one in values)
            yield csv_line(shown, csv.QUOTE_NONNUMERIC)
    if empty:
        logger.info("%s of %s texts have no entity, and so no row", f"{empty:,}", f"{number:,}")


def _json_lines(answers: Answers) -> Iterator[str]:
    return (f"{to_json_line(dict(answer))}\n" for answer in answers)


def _of_tool(name: str, answers: Answers) -> Iterator[str]:
    """Yield answers as an annotation tool reads them."""
    lines = formats.FORMATS[name].lines
    lines = partial(label_studio.write, predicted=True) if name == "label-studio" else lines
    assert lines is not None
    documents = _documents(name, answers)
    return lines(chain(list(islice(documents, 1)), documents))  # refused before a piece is written


def _documents(name: str, answers: Answers) -> Iterator[Document]:
    """Yield answers as a format's documents; one of which it holds nothing is refused."""
    classes = "classes" in formats.FORMATS[name].holds
    names, taken = dict[str, str](), set[str]()
    for number, answer in enumerate(answers, start=1):
        if (file := answer.get("file")) is not None and file not in names:
            parts = Path(file).with_suffix("").parts
            ends = ("/".join(parts[at:]) for at in range(len(parts) - 1, -1, -1))
            names[file] = next((end for end in ends if end not in taken), file)
            taken.add(names[file])
        document = of_answer(answer, number, names[file] if file is not None else None)
        if document.entities is None and not (classes and document.labels is not None):
            wanted = "entities or classes" if classes else "entities"
            raise UserError(f"{name} takes {wanted}, and this model gives none: take csv or jsonl")
        yield document


FILES = ("brat", "spacy")  # that are no text
# What is written as one text.
FORMATS: dict[str, Callable[[Answers], Iterator[str]]] = {
    "table": lambda answers: (f"{''.join(part for part, _ in line(one)).rstrip()}\n" for one in answers),
    "json": lambda answers: iter([f"[{','.join(_json_lines(answers))}]\n"]),
    "jsonl": _json_lines,
    "csv": _csv,
    "html": _page,
    **{name: partial(_of_tool, name) for name in ("label-studio", "doccano", "conll")},
}


def format_of(output: str | Path | None, usual: str) -> str:
    """Return the format that the name of an output tells, else the usual one; UserError for what is not written."""
    ending = "" if output is None else Path(output).suffix[1:].lower()
    if ending in ("tsv", "parquet", "xlsx", "xml"):
        raise UserError(f"{output}: answers are not written as {ending}: end its name with .csv or .jsonl")
    return ending if ending in (*FORMATS, *FILES) else usual


def _write_files(answers: Answers, output: Path, name: str, *, overwrite: bool) -> None:
    """Write a DocBin, or for brat a text and its entities as two files each in a folder."""
    notes: list[str] = []
    documents = _documents(name, answers)
    if name == "brat":
        check_folder(output, "brat files", overwrite=overwrite)
        with writing(output, advice=None), whole_folder(output) as staging:
            formats.write(documents, name, staging, notes)
    else:
        check_file(output, overwrite=overwrite)
        with writing(output, advice=None):
            formats.write(documents, name, output, notes)
    for note in notes:
        logger.info("%s", note)
