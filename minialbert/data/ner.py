"""Files with a tag on every word, and the one reader of such tags: checked, repaired, converted to IOB2."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from minialbert_runtime.words import TAG

from minialbert.data.table_files import TAGGED, Table, file_error, numbered_lines
from minialbert.errors import UserError, quoted, shown

Repair = Literal["repair", "refuse"]
# In the rows of tagged files: the line of each word, the document of a sentence, and which words touch the next one.
# NUL begins them, so that no column of a table has such a name.
LINES, DOCUMENT_START, GLUED = "\0lines", "\0document_start", "\0glued"

# Prefixes of BIOES, BILOU, BMES and BMEWO, and what they are in IOB2; behind those of `_ENDS` an entity is over.
_OTHER_SCHEME = re.compile(r"([SELUMW])-(.+)", re.DOTALL)
_IN_IOB2 = {"S": "B", "U": "B", "E": "I", "L": "I", "M": "I", "W": "B"}
_ENDS = "SUELW"
# Of a word, or in CoNLL-U of several as one ("3-4") and of one left out.
_NUMBER = re.compile(r"[0-9]+([-.][0-9]+)?")
_DOCUMENT_START = "-DOCSTART-"
_NEW_DOCUMENT = re.compile(r"# ?newdoc(?: id)?(?: ?= ?(.*))?")
_IN_MISC = re.compile(r"(?:^|\|)(?:NER|NE|ner|ne|entity)=([^|]+)")  # of CoNLL-U's last column
_ANY_TAG = re.compile(r"O|[BIESLUMW]-.+", re.DOTALL)
_Block = list[tuple[int, list[str]]]


def is_tagged(path: Path, names: Iterable[str]) -> bool:
    """Return whether a file has a word and its tag on each line; tsv may also be a table, with such columns."""
    if path.suffix.lower() != ".tsv":
        return path.suffix.lower() in TAGGED
    known = {name.lower() for name in names}
    for _, line in numbered_lines(path):
        if line.strip():
            header = [column.strip().strip('"').lower() for column in line.split("\t")]
            return sum(column in known for column in header) < min(2, len(header))
    return True


def read_tagged(path: Path) -> Table:
    """Return the sentences of a file with a word and its tag on each line as rows, with the line of each word.

    The word is in the first column and the tag in the last; the word in the second where the first is a number in every
    row, of which CoNLL-U's of several words as one ("3-4") are left out. The tag may then also be a NER= in the last
    column, or stand in another where the last has none. Columns are separated by TAB, or by spaces where the first row
    has no TAB. A blank line ends a sentence. `-DOCSTART-` lines and `# newdoc` begin a document; other lines that start
    with "# " are left out where they have one column, or stand above a sentence and end in no tag. Quotes are ordinary
    characters. A file without a sentence is refused, and so is any row without a word or a tag.
    """
    blocks = list(_blocks(path))
    lines = [columns for _, block in blocks for _, columns in block]
    column = int(_is_numbered(lines))
    tag_in, in_misc = _tag_column(lines, numbered=bool(column))
    rows, doubles = [], 0
    for document, numbered in blocks:
        block = [entry for entry in numbered if not column or entry[1][0].isdecimal()]
        doubles += len(numbered) - len(block)
        for line, columns in block:
            if not columns[column].strip():
                told = f"the word in column {column + 1} is empty"
                raise file_error(path, line, f"{told}: mend or remove the row")
        words = [columns[column] for _, columns in block]
        tags = [columns[tag_in].strip() for _, columns in block]
        cells: dict[str, Any] = {"tokens": words, "tags": tags, LINES: [line for line, _ in block]}
        if in_misc:
            cells["tags"] = [match[1] if (match := _IN_MISC.search(misc)) else "O" for misc in tags]
            cells[GLUED] = ["SpaceAfter=No" in misc for misc in tags]
        rows.append((numbered[0][0], cells if document is None else cells | {DOCUMENT_START: document}))
    if not rows:
        advice = "expected lines of a word, TAB and a tag (O, B-TYPE, I-TYPE)"
        raise UserError(f"{path} has 0 sentences: {advice}")
    notes = ["the first column has numbers, so the words are read from the second"] if column else []
    notes += ["tags are read from the last column, where it says NER="] if in_misc else []
    notes += [f"tags are read from column {tag_in + 1}, since the last has none"] if tag_in >= 0 else []
    notes += [f"{doubles} rows whose number is not a whole one are left out"] if doubles else []
    return Table(str(path), ("tokens", "tags"), rows, notes=tuple(notes))


def _tag_column(rows: Sequence[list[str]], *, numbered: bool) -> tuple[int, bool]:
    """Return which column has the tags, -1 for the last, and whether they stand in CoNLL-U's last column."""
    if not numbered or any(_ANY_TAG.fullmatch(columns[-1].strip()) for columns in rows):
        return -1, False
    if any(len(columns) == 10 and _IN_MISC.search(columns[-1]) for columns in rows):
        return -1, True
    width = min(map(len, rows))
    full = [at for at in range(2, width) if all(_ANY_TAG.fullmatch(columns[at].strip()) for columns in rows)]
    return (full[-1] if full else -1), False


class TagReader:
    """Checks, converts and repairs the tags of one file or split, whatever its format, and counts what it did.

    An `error` is made of a row and a message.
    """

    def __init__(self, error: Callable[[int, str], UserError], repair: Repair) -> None:
        self.error = error
        self.repair = repair
        self.repaired = 0
        self.converted = Counter[str]()

    def read(self, tags: Sequence[str], rows: Sequence[int]) -> tuple[str, ...]:
        """Return the tags of one sentence as IOB2, given the row of each."""
        read, previous = [], None
        for given, row in zip(tags, rows, strict=True):
            tag, ends = given.strip(), False
            if other := _OTHER_SCHEME.fullmatch(tag):
                self.converted[other[1]] += 1
                tag, ends = f"{_IN_IOB2[other[1]]}-{other[2]}", other[1] in _ENDS
            match = TAG.fullmatch(tag)
            if match is None or match[2] != (match[2] and match[2].strip()):
                raise self.error(row, f"expected a tag O, B-TYPE or I-TYPE, found {quoted(given.strip())}")
            prefix, type_ = match.groups()
            if prefix == "I" and type_ != previous:
                if self.repair == "refuse":
                    before = f"an entity {shown(previous)}" if previous else "no entity"
                    expected = f"expected {quoted(f'B-{type_}')} at the start of an entity"
                    told = f"{quoted(given.strip())} follows {before}: {expected}"
                    raise self.error(row, f"{told}; mend the file, or have it repaired")
                self.repaired += 1
                tag = f"B-{type_}"
            read.append(tag)
            previous = None if ends else type_
        return tuple(read)

    def notes(self, title: str) -> list[str]:
        """Return what was converted and what was repaired, a line each."""
        notes = []
        if self.converted:
            scheme = "BILOU" if {"L", "U"} & set(self.converted) else "BIOES"
            counts = ", ".join(f"{count:,} {prefix}-" for prefix, count in sorted(self.converted.items()))
            notes.append(f"{title}: tags in {scheme} were read as IOB2 ({counts})")
        if self.repaired:
            one = self.repaired == 1
            tags = "I- tag that followed nothing was" if one else "I- tags that followed nothing were"
            notes.append(f"{title}: {self.repaired} {tags} read as B-")
        return notes


def _blocks(path: Path) -> Iterator[tuple[tuple[int, str] | None, _Block]]:
    """Yield the sentences of a file, as a row number and the columns of each word, with the document they are in.

    It is the row where the document begins and its id, which may be empty; None where no line parts documents.
    """
    lines = list(numbered_lines(path))
    separator = _separator(lines)
    block: _Block = []
    document: tuple[int, str] | None = None
    for row, line in [*lines, (0, "")]:
        comment = (separator == "TAB" and _is_comment(line)) or (not block and _is_remark(line))
        begins = _starts_document(line) or (comment and _NEW_DOCUMENT.fullmatch(line.strip()))
        if not line.strip() or begins:
            if block:
                yield document, block
            block = []
            if begins:
                document = row, (not isinstance(begins, bool) and begins[1]) or ""
            continue
        if comment:
            continue
        columns = line.split("\t") if separator == "TAB" else re.split(r"[ \t]+", line.strip(" \t"))
        if len(columns) < 2:
            expected = f"expected at least 2 columns separated by {separator}, found 1"
            raise file_error(path, row, f"{expected}: {quoted(columns[0])}")
        block.append((row, columns))


def _is_numbered(rows: Sequence[list[str]]) -> bool:
    """Tell whether the first of three columns or more is a number in every row: of the word, not the word."""
    return len(rows) > 1 and all(len(columns) > 2 and _NUMBER.fullmatch(columns[0]) for columns in rows)


def _starts_document(line: str) -> bool:
    return line.split(maxsplit=1)[:1] == [_DOCUMENT_START]


def _is_comment(line: str) -> bool:
    return line.startswith("# ") and "\t" not in line


def _is_remark(line: str) -> bool:
    """Tell whether a line is one that MultiCoNER and others have above a sentence, rather than the word "#"."""
    parts, last = line.split(), line.rpartition("\t")[2].strip()
    return line.startswith("# ") and len(parts) > 2 and not any(map(_ANY_TAG.fullmatch, (parts[-1], last)))


def _separator(lines: Iterable[tuple[int, str]]) -> Literal["TAB", "spaces"]:
    for _, line in lines:
        if line.strip() and not _starts_document(line) and not _is_comment(line) and not _is_remark(line):
            return "TAB" if "\t" in line else "spaces"
    return "spaces"
