"""PubTator: `ID|t|title`, `ID|a|abstract`, a line with TABs for each entity, and an empty line after each document."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from minialbert.data.formats.documents import Document, Entity, Reading, flat
from minialbert.data.table_files import file_error, numbered_lines
from minialbert.errors import quoted

_TEXT = re.compile(r"([^|\t]+)\|([ta])\|(.*)")
_NUMBER = re.compile(r"[0-9]{1,9}")
_NONE = "-"  # no identifier: other readers take a line without one for a relation
_EXPECTED = "ID|t|TITLE, ID|a|ABSTRACT, or ID, START, END, TEXT and TYPE divided by TABs"


def is_file(path: Path) -> bool:
    """Tells whether the first line of a file is that of a title."""
    first = next((line for _, line in numbered_lines(path) if line.strip()), "")
    return bool((match := _TEXT.fullmatch(first)) and match[2] == "t")


def read(path: Path, reading: Reading) -> Iterator[Document]:
    """Yields the documents; a title and its abstract are one text, with a space between them.

    What follows the type of an entity is kept as its `identifier`. Relations are counted, and kept as lines.
    """
    block: list[tuple[int, str]] = []
    for row, line in [*numbered_lines(path), (0, "")]:
        match = _TEXT.fullmatch(line)
        if block and (not line.strip() or (match and match[2] == "t")):
            yield _document(path, block, reading)
            block = []
        if line.strip():
            block.append((row, line))


def _document(path: Path, block: list[tuple[int, str]], reading: Reading) -> Document:
    texts: dict[str, str] = {}
    entities, relations = [], []
    first = _TEXT.fullmatch(block[0][1])
    name = first[1] if first else ""
    for row, line in block:
        cells = line.split("\t")
        if match := _TEXT.fullmatch(line):
            if match[1] != name or match[2] in texts:
                told = f"a second text within document {quoted(name)}: an empty line is missing"
                raise file_error(path, row, told)
            texts[match[2]] = match[3]
        elif cells[0] != name:
            expected = f"expected {_EXPECTED}, of document {quoted(name)}"
            raise file_error(path, row, f"{expected}; found {quoted(line)}")
        elif len(cells) > 4 and _NUMBER.fullmatch(cells[1]) and _NUMBER.fullmatch(cells[2]):
            identifier = "\t".join(cells[5:]).rstrip("\t")
            meta = {} if identifier in ("", _NONE) else {"identifier": identifier}
            parts = ((int(cells[1]), int(cells[2])),)
            entities.append(Entity(cells[4].strip(), parts, meta=meta, quote=cells[3], place=f"{path}:{row}"))
        elif len(cells) > 3 and not re.match(r"\s*[-+]?\s*[0-9]", cells[1]):
            reading.kept["relations"] += 1
            relations.append("\t".join(cells[1:]))
        else:
            raise file_error(path, row, f"expected {_EXPECTED}; found {quoted(line)}")
    passages, text = list[tuple[int, int, dict[str, Any]]](), ""
    for key, kind in (("t", "title"), ("a", "abstract")):
        if texts.get(key) or (key == "t" and key in texts):
            text += " " if passages else ""
            passages.append((len(text), len(text) + len(texts[key]), {"type": kind}))
            text += texts[key]
    known = {"pubtator": relations} if relations else {}
    place = f"{path}:{block[0][0]}"
    return Document(text, tuple(entities), id=name, meta=known, passages=tuple(passages), place=place)


def write(documents: Iterable[Document]) -> Iterator[str]:
    """Yields documents; the first line of a text that has no title is the title, and other line ends are spaces."""
    for number, document in enumerate(documents, start=1):
        text, name = flat(document.text), re.sub(r"[|\s]+", "_", document.id or str(number))
        title = document.text.find("\n")
        if len(document.passages) == 2 and document.passages[0][1] + 1 == document.passages[1][0]:
            title = document.passages[0][1]
        title = len(text) if title < 0 else title
        lines = [f"{name}|t|{text[:title]}", f"{name}|a|{text[title + 1 :]}"]
        for entity in document.entities or ():
            start, end = entity.start, entity.end
            cells = [name, str(start), str(end), text[start:end], flat(entity.label)]
            lines.append("\t".join([*cells, flat(str(entity.meta.get("identifier", _NONE)))]))
        lines += (f"{name}\t{relation}" for relation in document.meta.get("pubtator", ()))
        yield "\n".join([*lines, "", ""])
