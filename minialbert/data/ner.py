"""Named-entity files with a tag on every word (IOB2) as a `Task`, and the one reader of such tags."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from minialbert_runtime.words import TAG

from minialbert.data.examples import Task, TokenExample
from minialbert.data.hub import assign_splits
from minialbert.data.table_files import file_error, numbered_lines
from minialbert.data.task_types import Token
from minialbert.errors import UserError, listed, local_path, quoted, shown

Repair = Literal["repair", "refuse"]

_OTHER_SCHEME = re.compile(r"[SELUM](-.+)?")
_DOCUMENT_START = "-DOCSTART-"
_SUFFIXES = (".tsv", ".txt", ".conll", ".bio", ".iob", ".iob2")


@dataclass(frozen=True)
class BioFile:
    """The sentences of one file, with IOB2 tags."""

    sentences: list[TokenExample]  # at least one, each with at least one word
    repaired: int  # how many I- tags followed nothing or another type and were read as B-
    notes: tuple[str, ...]  # what was repaired or left out, a line each
    first_seen: Mapping[
        str, tuple[int, str]
    ]  # entity types in order, each with row and text of its first tag


def read_bio(path: Path, *, repair: Repair = "repair") -> BioFile:
    """Return the sentences of a file with a word and its tag in the first and the last column of each line.

    Columns are separated by TAB, or by spaces where the first row has no TAB. A blank line ends a sentence.
    `-DOCSTART-` lines are left out, and so are lines of one column that start with "# ". Quotes are ordinary
    characters. An I- tag that follows nothing or another type is read as B- by the repair, so that files in IOB1 become
    IOB2; else the file is refused. So is one without a sentence, and any row without a word or a tag of IOB2.
    """
    tags = TagReader(partial(file_error, path), repair)
    sentences = []
    for block in _blocks(path):
        rows, words, file_tags = zip(*block, strict=True)
        sentences.append(TokenExample(words, tags.read(file_tags, rows)))
    if not sentences:
        raise UserError(
            f"{path} has 0 sentences: expected lines of a word, TAB and a tag (O, B-TYPE, I-TYPE)"
        )
    short_name = f"{path.resolve().parent.name}/{path.name}"
    return BioFile(sentences, tags.repaired, tags.notes(short_name), tags.first_seen)


def load_ner(data: str | Path, *, name: str | None = None, repair: Repair = "repair") -> Task:
    """Return a named-entity task from a directory of tagged files; `tables.load_table` reads tables and the hub.

    The labels are "O", then B-TYPE and I-TYPE for the entity types of train in alphabetical order; other splits have
    none but these. The directory has train.tsv and, if there are any, devel.tsv and test.tsv (also dev, valid,
    validation, testa; testb; and .txt .conll .bio .iob .iob2), as `read_bio` reads them. Records call the task by its
    name, by default the directory's in lower case.
    """
    folder = local_path(data)
    paths = _find_splits(folder)
    files = {split: read_bio(path, repair=repair) for split, path in paths.items()}
    default_name = folder.resolve().name
    types = sorted(files["train"].first_seen)
    if not types:
        raise UserError(f"{paths['train']} has no entity: expected B-TYPE and I-TYPE tags, all are O")
    for split, file in files.items():
        _check_types(file, paths[split], types)
    notes = [note for file in files.values() for note in file.notes]
    if "validation" not in files:
        notes.append(f"{default_name}: there is no validation split")
    return Task(
        name=name or default_name.lower(),
        problem=Token.name,
        labels=("O", *(f"{prefix}-{type_}" for type_ in types for prefix in "BI")),
        metric=Token.metrics[0],
        splits={split: file.sentences for split, file in files.items()},
        notes=tuple(notes),
    )


class TagReader:
    """Checks and repairs the tags of one file or split, whatever its format, and keeps what was found.

    An `error` is made of a row and a message.
    """

    def __init__(self, error: Callable[[int, str], UserError], repair: Repair) -> None:
        self.error = error
        self.repair = repair
        self.repaired = 0
        self.first_seen: dict[str, tuple[int, str]] = {}

    def read(self, tags: Sequence[str], rows: Sequence[int]) -> tuple[str, ...]:
        """Return the tags of one sentence as IOB2, given the row of each."""
        read, previous = [], None
        for given, row in zip(tags, rows, strict=True):
            tag = given.strip()
            match = TAG.fullmatch(tag)
            if match is None or match[2] != (match[2] and match[2].strip()):
                raise self.error(row, _bad_tag(tag))
            prefix, type_ = match.groups()
            if prefix == "I" and type_ != previous:
                if self.repair == "refuse":
                    before = f"an entity {shown(previous)}" if previous else "no entity"
                    raise self.error(
                        row,
                        f"{quoted(tag)} follows {before}: expected {quoted(f'B-{type_}')} at the start of an entity; "
                        "mend the file, or have it repaired",
                    )
                self.repaired += 1
                tag = f"B-{type_}"
            if type_ is not None:
                self.first_seen.setdefault(type_, (row, match.group()))
            read.append(tag)
            previous = type_
        return tuple(read)

    def notes(self, short_name: str) -> tuple[str, ...]:
        """Return what was repaired, in at most one line."""
        if not self.repaired:
            return ()
        tags = (
            "I- tag that followed nothing was" if self.repaired == 1 else "I- tags that followed nothing were"
        )
        return (f"{short_name}: {self.repaired} {tags} read as B-",)


def _bad_tag(tag: str) -> str:
    if _OTHER_SCHEME.fullmatch(tag):
        return (
            f"the tag {quoted(tag)} is of another scheme (BIOES, BILOU): convert the file to IOB2 (O, B-TYPE, "
            "I-TYPE)"
        )
    return f"expected a tag O, B-TYPE or I-TYPE, found {quoted(tag)}"


def _blocks(path: Path) -> Iterator[list[tuple[int, str, str]]]:
    """Yield the sentences of a file, as a row number, word and tag for each word."""
    lines = list(numbered_lines(path))
    separator = _separator(lines)
    block: list[tuple[int, str, str]] = []
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
        if not columns[0].strip():
            raise file_error(path, row, "the word in column 0 is empty: mend or remove the row")
        block.append((row, columns[0], columns[-1].strip()))
    if block:
        yield block


def _starts_document(line: str) -> bool:
    return line.split(maxsplit=1)[:1] == [_DOCUMENT_START]


def _is_comment(line: str) -> bool:
    return line.startswith("# ") and "\t" not in line


def _separator(lines: Iterable[tuple[int, str]]) -> Literal["TAB", "spaces"]:
    for _, line in lines:
        if line.strip() and not _starts_document(line) and not _is_comment(line):
            return "TAB" if "\t" in line else "spaces"
    return "spaces"


def _find_splits(folder: Path) -> dict[str, Path]:
    expected = f"a directory with train.tsv, devel.tsv and test.tsv (also {' '.join(_SUFFIXES[1:])})"
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {state}: expected {expected}, or hub:OWNER/NAME")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    candidates = [path for path in files if path.suffix.lower() in _SUFFIXES]
    found = assign_splits({path.name: path.stem for path in candidates}, str(folder))
    if "train" not in found:
        there = listed(path.name for path in files[:10]) if files else "no file"
        raise UserError(f"{folder} has no train file: expected {expected}, found {there}")
    return {split: folder / file for split, file in found.items()}


def _check_types(file: BioFile, path: Path, types: Sequence[str]) -> None:
    for type_, (row, tag) in file.first_seen.items():
        if type_ not in types:
            unknown = (
                f"the entity type of the tag {quoted(tag)} does not occur in train, which has {listed(types)}"
            )
            raise file_error(
                path, row, f"{unknown}; no model learns it: rename the type, or tag such words O"
            )
