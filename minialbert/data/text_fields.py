"""Texts out of csv, tsv and PubMed's XML, one row or article at a time, whatever the size of the file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import chain
from typing import IO, TYPE_CHECKING
from xml.parsers import expat

from minialbert.data.table_files import DELIMITERS, QUOTED, SEPARATOR_LINE, separated_records
from minialbert.errors import listed, one_line, quoted

if TYPE_CHECKING:
    from minialbert.data.corpora import Source

# Names of the column with the text, where none was given.
USUAL_COLUMNS = (
    "text", "sentence", "document", "body", "content", "abstract", "note", "note_text", "article",
)  # fmt: skip
_BLOCK = 1 << 16
_ROOTS = ("PubmedArticleSet", "MedlineCitationSet", "PubmedArticle", "MedlineCitation")
_ARTICLES = ("MedlineCitation", "PubmedBookArticle")
# What is read of an article, each with the element that it stands in; `OtherAbstract` is in another language.
_FIELDS = {
    "ArticleTitle": ("Article", "BookDocument"), "BookTitle": ("Book",), "AbstractText": ("Abstract",)
}  # fmt: skip

logger = logging.getLogger(__name__)


class _RecordLines(Iterator[str]):
    """The lines of a file of records, which may go over several, each of them of so many bytes at most."""

    def __init__(self, source: Source, stream: IO[bytes], limit: int) -> None:
        self._source, self._stream, self._limit = source, stream, limit
        self.row = self._offset = self._size = 0  # of the last line, and of the record up to it
        self._begin = 1

    def end_record(self) -> None:
        self._begin, self._size = self.row + 1, 0

    def __next__(self) -> str:
        """Return a line with its end, which is LF."""
        line = self._stream.readline(self._limit + 2)
        if not line:
            raise StopIteration
        self.row += 1
        if self._size == 0 and not line.strip():
            self._begin = self.row + 1
        else:
            self._size += len(line)
        if self._size - len(line) + len(line.rstrip(b"\r\n")) > self._limit:
            raise self._source.too_long(self._begin, self._limit)
        text = self._source.decode(line, self.row, self._offset)
        self._offset += len(line)
        return text + "\n"


def separated_texts(
    source: Source, stream: IO[bytes], wanted: tuple[str, ...], limit: int, *, tabs: bool
) -> Iterator[tuple[int, str]]:
    """Yield the line where each row of a csv or tsv file begins, and the text in each column that is `wanted`.

    A csv is divided by what parts its header: commas, semicolons, TABs or bars; its cells may be in quotes and hold
    line ends. A tsv has one row a line; cells in quotes, as spreadsheets write them, are read without. Columns are
    found in whatever case, or where the first is "text" and there is none, the one of `USUAL_COLUMNS` that is there,
    which is said. A row of more than `limit` bytes is refused.
    """
    lines = _RecordLines(source, stream, limit)
    said = (line for line in lines if line.strip() and not SEPARATOR_LINE.fullmatch(line.strip()))
    first = next(said, None)
    if first is None:
        return
    delimiter = "\t" if tabs else max(DELIMITERS, key=QUOTED.sub("", first).count)
    rows = chain([first], lines)
    records = separated_records(source.path, rows, delimiter, quoted_cells=not tabs, begin=lines.row)
    names: list[str] | None = None
    columns: list[int] = []
    for begin, fields in records:
        lines.end_record()
        if names is None:
            names = [name.strip() for name in fields]
            named = zip(wanted, (source.asked.text, source.asked.pair), strict=False)
            columns = [_column(source, begin, names, *one) for one in named]
        elif len(fields) != len(names):
            counts = f"expected {len(names)} columns as in the header, found {len(fields)}"
            advice = "" if tabs else "; a cell with a delimiter, line end or quote in it must be in quotes"
            raise source.error(begin, counts + advice)
        elif len(names) > 1 and [name.strip() for name in fields] == names:
            raise source.error(begin, "the header once more, as of files put together: remove the line")
        else:
            for cell in (fields[column] for column in columns):
                yield begin, cell[1:-1].replace('""', '"') if tabs and QUOTED.fullmatch(cell) else cell


def _column(source: Source, row: int, names: list[str], text_field: str, option: str) -> int:
    found = [index for index, name in enumerate(names) if name == text_field]
    found = found or [index for index, name in enumerate(names) if name.lower() == text_field.lower()]
    if not found and text_field == "text" and option == source.asked.text:
        found = [index for index, name in enumerate(names) if name.lower() in USUAL_COLUMNS]
    if len(found) != 1:
        several = f"{len(found)} columns may be the text" if found else f"no column {quoted(text_field)}"
        raise source.error(row, f"{several}; the columns are: {listed(names)} ({option})")
    if names[found[0]] != text_field:
        told = "%s: the text is the column %s of %s"
        logger.info(told, source.path, quoted(names[found[0]]), listed(names))
    return found[0]


def pubmed_texts(source: Source, stream: IO[bytes], limit: int) -> Iterator[tuple[int, str]]:
    """Yield the line where each article of PubMed's XML begins, and its title and abstract, one paragraph each.

    Nothing but the five entities of XML is expanded and nothing is fetched: a file that declares entities, or uses some
    that are declared elsewhere, is refused.
    """
    reader = _PubMed(source, limit)
    while block := stream.read(_BLOCK):
        yield from reader.feed(block)
    yield from reader.feed(b"")


class _PubMed:
    """What expat has said so far: the elements that are open, and the article that is being read."""

    def __init__(self, source: Source, limit: int) -> None:
        self._source, self._limit = source, limit
        self._open: list[str] = []
        # The depths of the article and of the field that are being read, 0 where there is none.
        self._article = self._field = 0
        self._begin = self._size = 0
        self._paragraphs: list[list[str]] = []
        self._done: list[tuple[int, str]] = []
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.EntityDeclHandler = self._entity
        self._parser.SkippedEntityHandler = self._entity

    def feed(self, block: bytes) -> list[tuple[int, str]]:
        """Return the articles that a block completes; an empty one ends the file."""
        self._done = []
        try:
            self._parser.Parse(block, not block)
        except expat.ExpatError as error:
            raise self._source.error(error.lineno, f"not readable as XML ({one_line(error)})") from error
        return self._done

    def _start(self, name: str, _: dict[str, str]) -> None:
        line = self._parser.CurrentLineNumber
        if not self._open and name not in _ROOTS:
            known = "of XML, PubMed's articles alone are read (PubmedArticleSet)"
            advice = "write the texts into a .txt, .jsonl or .csv file"
            raise self._source.error(line, f"an XML file of {quoted(name)}: {known}; {advice}")
        if len(self._open) > 100:
            raise self._source.error(line, "elements within elements, more than a hundred deep")
        if name in _ARTICLES and not self._article:
            self._article = len(self._open) + 1
            self._begin, self._size, self._paragraphs = line, 0, []
        if self._article and not self._field and self._open and self._open[-1] in _FIELDS.get(name, ()):
            self._field = len(self._open) + 1
            self._paragraphs.append([])
            self._text("")
        self._open.append(name)

    def _end(self, _: str) -> None:
        if len(self._open) == self._field:
            self._field = 0
        if len(self._open) == self._article:
            self._article = 0
            texts = (" ".join("".join(parts).split()) for parts in self._paragraphs)
            self._done.append((self._begin, "\n".join(text for text in texts if text)))
        self._open.pop()

    def _text(self, text: str) -> None:
        if self._field:
            self._size += len(text.encode()) + 1
            if self._size > self._limit:
                raise self._source.too_long(self._begin, self._limit)
            self._paragraphs[-1].append(text)

    def _entity(self, name: str, *_: object) -> None:
        told = f"the entity {quoted(name)} is declared or used: a file with entities of its own is not read"
        raise self._source.error(self._parser.CurrentLineNumber, told)
