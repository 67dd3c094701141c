"""Files with a tag on every word, and the one reader of such tags: checked, repaired, converted to IOB2."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from minialbert_runtime.words import TAG

from minialbert.data.table_files import TAGGED, Table, file_error, numbered_lines
from minialbert.errors import UserError, quoted, shown

Repair = Literal["repair", "refuse"]
LINES = "lines"  # of each word, in the rows of tagged files

# Prefixes of BIOES, BILOU and BMES, and what they are in IOB2; behind those of `_ENDS` an entity is over.
_OTHER_SCHEME = re.compile(r"([SELUM])-(.+)", re.DOTALL)
_IN_IOB2 = {"S": "B", "U": "B", "E": "I", "L": "I", "M": "I"}
_ENDS = "SUEL"
_NUMBER = re.compile(
    r"[0-9]+([-.][0-9]+)?"
)  # of a word, or in CoNLL-U of several as one ("3-4") and of one left out
_DOCUMENT_START = "-DOCSTART-"
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
    row, of which CoNLL-U's of several words as one ("3-4") are left out. Columns are separated by TAB, or by spaces
    where the first row has no TAB. A blank line ends a sentence. `-DOCSTART-` lines are left out, and so are lines of
    one column that start with "# ". Quotes are ordinary characters. A file without a sentence is refused, and so is any
    row without a word or a tag.
    """
    blocks = list(_blocks(path))
    column = int(_is_numbered(blocks))
    rows, doubles = [], 0
    for numbered in blocks:
        block = [entry for entry in numbered if not column or entry[1][0].isdecimal()]
        doubles += len(numbered) - len(block)
        for line, columns in block:
            if not columns[column].strip():
                raise file_error(path, line, f"the word in column {column} is empty: mend or remove the row")
        words, tags = [columns[column] for _, columns in block], [columns[-1].strip() for _, columns in block]
        rows.append((numbered[0][0], {"tokens": words, "tags": tags, LINES: [line for line, _ in block]}))
    if not rows:
        raise UserError(
            f"{path} has 0 sentences: expected lines of a word, TAB and a tag (O, B-TYPE, I-TYPE)"
        )
    notes = ["the first column has numbers, so the words are read from the second"] if column else []
    notes += [f"{doubles} rows whose number is not a whole one are left out"] if doubles else []
    return Table(str(path), ("tokens", "tags"), rows, notes=tuple(notes))


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
                    raise self.error(
                        row,
                        f"{quoted(given.strip())} follows {before}: expected {quoted(f'B-{type_}')} at the start of an "
                        "entity; mend the file, or have it repaired",
                    )
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


def _blocks(path: Path) -> Iterator[_Block]:
    """Yield the sentences of a file, as a row number and the columns of each word."""
    lines = list(numbered_lines(path))
    separator = _separator(lines)
    block: _Block = []
    for row, line in lines:
        if not line.strip() or _starts_document(line):
            if block:
                yield block
            block = []
            continue
        if separator == "TAB" and _is_comment(line):
            continue
        columns = line.split("\t") if separator == "TAB" else re.split(r"[ \t]+", line.strip(" \t"))
        if len(columns) < 2:
            expected = f"expected at least 2 columns separated by {separator}, found 1"
            raise file_error(path, row, f"{expected}: {quoted(columns[0])}")
        block.append((row, columns))
    if block:
        yield block


def _is_numbered(blocks: Sequence[_Block]) -> bool:
    """Tell whether the first of three columns or more is a number in every row: of the word, not the word."""
    rows = [columns for block in blocks for _, columns in block]
    return len(rows) > 1 and all(len(columns) > 2 and _NUMBER.fullmatch(columns[0]) for columns in rows)


def _starts_document(line: str) -> bool:
    return line.split(maxsplit=1)[:1] == [_DOCUMENT_START]


def _is_comment(line: str) -> bool:
    return line.startswith("# ") and "\t" not in line


def _separator(lines: Iterable[tuple[int, str]]) -> Literal["TAB", "spaces"]:
    for _, line in lines:
        if line.strip() and not _starts_document(line) and not _is_comment(line):
            return "TAB" if "\t" in line else "spaces"
    return "spaces"
