"""brat's standoff: a text in a .txt file, and beside it an .ann file with an annotation on each line."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from minialbert.data.cells import between
from minialbert.data.formats.documents import Document, Entity, Reading
from minialbert.data.table_files import file_error, numbered_lines, read_text
from minialbert.errors import UserError, quoted
from minialbert.runs.files import check_fetched, files_below, free_name, visible

_ENTITY = re.compile(r"(T[^\t ]+)\t(\S+) ([0-9]{1,9} [0-9]{1,9}(?:;[0-9]{1,9} [0-9]{1,9})*)(?:\t(.*))?")
_OTHERS = {
    "R": "relations", "*": "relations", "E": "events", "A": "attributes", "M": "attributes", "N": "normalisations",
    "#": "comments",
}  # fmt: skip


def is_file(path: Path) -> bool:
    """Tells whether a path is that of an .ann file which is not hidden."""
    return path.suffix.lower() == ".ann" and not path.name.startswith(".")


def is_folder(folder: Path) -> bool:
    """Tells whether a folder, or any folder below it, holds .ann files."""
    return any(map(is_file, visible(folder)))


def read(folder: Path, reading: Reading) -> Iterator[Document]:
    """Yields the documents of a folder and of all below it, by their names; ids are their paths in it, without `.txt`.

    Relations, events, attributes, normalisations and comments are counted, and kept as lines under `brat`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: brat's files are read as a folder of .txt and .ann, and this is one file")
    files = files_below(folder)
    texts = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}
    for path in filter(is_file, files):
        beside = texts.pop(path.with_suffix(""), None)
        if beside is None:
            raise UserError(f"{path}: there is no {path.stem}.txt beside it, which should have the text")
        check_fetched(beside)
        text = read_text(beside, in_lines=True)
        entities, others = [], []
        for row, line in numbered_lines(path):
            if match := _ENTITY.fullmatch(line):
                pairs = (part.split() for part in match[3].split(";"))
                parts = tuple((int(start), int(end)) for start, end in pairs)
                entities.append(Entity(match[2], parts, match[1], quote=match[4], place=f"{path}:{row}"))
            elif line[:1] in _OTHERS and "\t" in line:
                reading.kept[_OTHERS[line[0]]] += 1
                others.append(line)
            elif line.strip():
                raise file_error(path, row, f"expected T1<TAB>TYPE START END<TAB>text, found {quoted(line)}")
        if beside.read_bytes().startswith(codecs.BOM_UTF8):
            entities = _behind_mark(entities, text, str(path), reading)
        name = path.relative_to(folder).with_suffix("").as_posix()
        meta = {"brat": others} if others else {}
        yield Document(text, tuple(entities), id=name, meta=meta, place=str(path))
    reading.left_out["texts without an .ann file"] += len(texts)


def _behind_mark(entities: list[Entity], text: str, place: str, reading: Reading) -> list[Entity]:
    """Returns the entities of a text that begins with a mark of byte order, which brat itself counts as a character."""
    moved = [replace(one, parts=tuple((start - 1, end - 1) for start, end in one.parts)) for one in entities]
    given, other = (
        sum(one.quote is not None and between(text, one.parts).split() == one.quote.split() for one in way)
        for way in (entities, moved)
    )
    if other > given:
        reading.notes.append(f"{place}: offsets count the mark of byte order, and are read so")
    return moved if other > given else entities


class _Names(dict[str, str]):
    """Names that brat and every file system can hold, by what they stand for."""

    def __missing__(self, raw: str) -> str:
        name = re.sub(r"[^\w-]+", "_", raw).strip("_")[:50] or "unnamed"  # a letter has up to four bytes
        self[raw] = free_name(name, "-", self.values())
        return self[raw]


def write(documents: Iterable[Document], notes: list[str]) -> Iterator[tuple[str, str]]:
    """Yields the name and the content of two files for each document; names that had to be changed are noted."""
    types, files, marks = _Names(), _Names(), 0
    for number, document in enumerate(documents, start=1):
        raw = document.id or f"text-{number}"
        name = files[raw if raw not in files else f"{raw} (text {number})"]
        # At the beginning of a file it is no character for most programs, and all offsets would be wrong by one.
        text = re.sub(r"^\ufeff", " ", document.text)
        marks += text != document.text
        entities = document.entities or ()
        ids = [str(entity.id) for entity in entities]
        own = len(set(ids)) == len(ids) and all(re.fullmatch(r"T\d+", one) for one in ids)
        lines = []
        for place, entity in enumerate(entities, start=1):
            # A part over the end of a line is one on each.
            pieces = [(start, re.finditer(r"[^\r\n]+", text[start:end])) for start, end in entity.parts]
            found = [(start + one.start(), start + one.end()) for start, each in pieces for one in each]
            where = ";".join(f"{start} {end}" for start, end in found)
            quote = " ".join(text[start:end] for start, end in found)
            lines.append(f"{entity.id if own else f'T{place}'}\t{types[entity.label]} {where}\t{quote}")
        lines += document.meta.get("brat", ()) if own else ()
        yield f"{name}.ann", "".join(f"{line}\n" for line in lines)
        yield f"{name}.txt", text
    changed = [f"{quoted(raw)} is {name}" for raw, name in [*types.items(), *files.items()] if raw != name]
    if marks:
        told = f"byte order marks at the beginning of {marks:,} texts became spaces"
        notes.append(f"{told}, so that offsets stay")
    if changed:
        notes.append(f"names that files or brat cannot hold are changed: {', '.join(changed[:5])}")
