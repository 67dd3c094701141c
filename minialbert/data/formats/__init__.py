"""What annotation tools write and read, through one door: a file is recognised, and read as a table of documents.

Each format has a module that reads it and writes it; `documents` has what they share. Files that are tables, or have a
word and its tag a line, are read by `table_files` and `ner`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from minialbert.data.cells import Overlaps, without_overlaps
from minialbert.data.formats import bigbio, bioc, brat, conll, label_studio, pubtator, rows, spacy, squad
from minialbert.data.formats.documents import RAW, Document, Reading, flat, table_of
from minialbert.data.ner import is_tagged, read_tagged
from minialbert.data.table_files import EXTENSIONS, TAGGED, Table, read_json, read_tables, unknown_extension
from minialbert.errors import UserError, quoted
from minialbert.runs.files import whole_file

TABLE = "table"  # rows without the marks of a tool, as csv, JSON or Parquet
_Lines = Callable[[Iterable[Document]], Iterator[str]]


@dataclass(frozen=True)
class Format:
    """A format that documents are written in."""

    title: str  # in messages
    suffix: str  # of its files; "" for a folder of them
    # Of parts (entities in several), overlaps, details (all that is said of an entity, or keys of it), classes,
    # passages, id, annotator, meta, and absence (that a text is not annotated).
    holds: str
    lines: _Lines | None = None  # writes documents; None where they are not lines


_ALL = "overlaps details classes id annotator meta absence"
_BIOC = "parts overlaps details passages id annotator meta"
_TAGS = {
    "conll": "CoNLL", "conllu": "CoNLL-U", "iob1": "IOB1", "iob2": "IOB2", "bioes": "BIOES", "bilou": "BILOU"
}  # fmt: skip
FORMATS = {
    "brat": Format("brat", "", "parts overlaps id"),
    "pubtator": Format("PubTator", ".pubtator", "overlaps identifier passages id", pubtator.write),
    "bioc": Format("BioC's XML", ".xml", _BIOC, bioc.write_xml),
    "bioc-json": Format("BioC's JSON", ".json", _BIOC, bioc.write_json),
    "doccano": Format("doccano", ".jsonl", "overlaps classes id annotator meta", rows.write_doccano),
    "label-studio": Format("Label Studio", ".json", _ALL, label_studio.write),
    "prodigy": Format("Prodigy", ".jsonl", _ALL, rows.write_prodigy),
    "spacy": Format("spaCy's DocBin", ".spacy", _ALL.replace("details", "identifier")),
    "jsonl": Format("JSON lines", ".jsonl", _ALL, rows.write_rows),
    "conll2003": Format("CoNLL-2003", ".conll", "", partial(conll.write, scheme="conll2003")),
    **{
        name: Format(title, ".conll", "id", partial(conll.write, scheme=name))
        for name, title in _TAGS.items()
    },
}
# What the name of a type cannot have there, since it ends a cell or a line.
_UNFIT = dict.fromkeys(("pubtator", *_TAGS), r"[\t\r\n]+") | {"conllu": r"[\t\r\n|]+", "conll2003": r"\s+"}
_TITLES = {name: form.title for name, form in FORMATS.items()}
_TITLES |= {"label-studio-min": "Label Studio's JSON-MIN", "spacy-json": "spaCy's JSON"}
_TITLES |= {"bigbio": "BigBio's schema", "squad": "SQuAD", TABLE: ""}
NAMES = tuple(_TITLES)
_FILES = {"pubtator": pubtator.read, "bioc": bioc.read_xml, "spacy": spacy.read, "brat": brat.read}
_RECORDS: dict[str, tuple[Callable[[Any], bool], Callable[[Any, Reading], Iterator[Document]]]] = {
    "bigbio": (bigbio.is_record, bigbio.read),
    "bioc-json": (bioc.is_record, bioc.from_json),
    "label-studio": (label_studio.is_record, label_studio.read),
    "spacy-json": (spacy.is_record, lambda records, _: spacy.from_json(records)),
}
SUFFIXES = (".spacy",)
TAGGED_SUFFIXES = (*TAGGED, ".pubtator", ".xml", ".bioc", ".spacy")


def read(
    paths: Sequence[Path],
    forced: str | None,
    *,
    tagging: bool,
    columns: Iterable[str],
    reading: Reading,
) -> Table:
    """Returns the rows of a file, of the shards of one, or of brat's folder.

    The format is the forced one, or what the file shows: its suffix, its first line, the keys of its first object.
    `columns` are the names that show a tsv to be a table, where words have tags.
    """
    path = paths[0]
    name = forced or _of_file(path, tagging=tagging)
    if name in _FILES:
        table = table_of(str(path), list(_FILES[name](path, reading)), reading)
        return replace(table, format=_TITLES[name])
    if name in conll.SCHEMES or (name is None and tagging and len(paths) == 1 and is_tagged(path, columns)):
        return read_tagged(path)
    suffixes = (*EXTENSIONS, *(TAGGED_SUFFIXES if tagging else SUFFIXES))
    if forced is None and path.suffix.lower() not in suffixes:
        raise unknown_extension(path, suffixes)
    table = read_tables(list(paths)) if forced in (None, TABLE) else read_json(path)
    record = table.rows[0][1]
    if name in _RECORDS or (name is None and not squad.is_record(record) and of_records(table)):
        return in_documents(table, reading, name)
    name = name or ("squad" if squad.is_record(record) else rows.shape(table.columns, record))
    if name in ("prodigy", "label-studio-min", "squad"):
        table = squad.rows(table) if name == "squad" else rows.usual(table)
    return replace(table, format=_TITLES[name]) if name is not None else table


def of_records(table: Table) -> str | None:
    """Returns the format whose records the rows of a table are, each a document or several; None of other rows."""
    return next((name for name, (is_one, _) in _RECORDS.items() if is_one(table.rows[0][1])), None)


def in_documents(table: Table, reading: Reading, name: str | None = None) -> Table:
    """Returns a row for each document of a tool's records, of the format of this name or the one that they show."""
    name = name or of_records(table)
    if name is None:
        return table
    records = ((table.place(row), cells) for row, cells in table.rows)
    found = table_of(table.name, list(_RECORDS[name][1](records, reading)), reading)
    return replace(found, is_file=table.is_file, format=_TITLES[name])


def _of_file(path: Path, *, tagging: bool) -> str | None:
    if path.is_dir():
        return "brat"
    suffix = path.suffix.lower()
    if tagging and (suffix == ".pubtator" or (suffix in (*TAGGED, ".tsv") and pubtator.is_file(path))):
        return "pubtator"
    return {".spacy": "spacy", ".xml": "bioc", ".bioc": "bioc", ".ann": "brat"}.get(suffix)


def fit(
    splits: Mapping[str, Iterable[Document]], name: str, overlaps: Overlaps, notes: list[str]
) -> dict[str, list[Document]]:
    """Returns the documents of splits without what a format cannot hold, which is counted in one note for all."""
    lost = Counter[str]()
    fitting = {
        split: [_fitting(document, name, overlaps, lost) for document in documents]
        for split, documents in splits.items()
    }
    if lost:
        many = ", ".join(f"{what} ({count:,})" for what, count in lost.items())
        notes.append(f"left out, since {FORMATS[name].title} cannot hold them: {many}")
    return fitting


def layers(document: Document) -> Iterator[Document]:
    """Yields a document with each layer of its entities: the longest that do not overlap, then those of the others."""
    left = document.entities or ()
    while True:
        spans = [document.whole(entity) for entity in left]
        chosen = {None, *without_overlaps(document.text, [one for one in spans if one], "longest")[0]}
        own = [span in chosen for span in spans]
        kept = tuple(entity for entity, is_own in zip(left, own, strict=True) if is_own)
        yield document if document.entities is None else replace(document, entities=kept)
        left = tuple(entity for entity, is_own in zip(left, own, strict=True) if not is_own)
        if not left:
            return


def _fitting(document: Document, name: str, overlaps: Overlaps, lost: Counter[str]) -> Document:
    holds, title = FORMATS[name].holds.split(), FORMATS[name].title
    entities, labels = document.entities, document.labels
    if labels is not None and "classes" not in holds:
        if entities is None:
            told = f"{title} has no classes of texts, and this one has nothing else"
            raise UserError(f"{document.place}: {told}")
        lost["classes of texts"] += 1
        labels = None
    if entities is None and "absence" not in holds and labels is None:
        lost["that a text is not annotated"] += 1
    kept = [(one, span) for one in entities or () if (span := document.whole(one)) is not None]
    if entities is not None and "parts" not in holds:
        lost["entities in several parts"] += len(entities) - len(kept)
        entities = tuple(replace(one, parts=((span.start, span.end),)) for one, span in kept)
    if entities is not None and "overlaps" not in holds:
        first = {span: one for one, span in reversed(kept)}
        chosen, doubles, overlapping = without_overlaps(document.text, [span for _, span in kept], overlaps)
        lost["repeated entities"] += doubles
        if overlapping and overlaps == "refuse":
            told = f"entities overlap, and {title} has one tag for a word"
            advice = "overlaps=longest (or first) keeps one of them, layers writes them apart"
            raise UserError(f"{document.place}: {told}: {advice}")
        lost[f"entities that overlap a kept one ({overlaps})"] += overlapping
        entities = tuple(first[span] for span in chosen)
    if (unfit := _UNFIT.get(name)) and entities is not None:
        fitting = tuple(replace(one, label=re.sub(unfit, "_", one.label.strip())) for one in entities)
        pairs = zip(fitting, entities, strict=True)
        lost["characters of types, which became _"] += sum(one.label != other.label for one, other in pairs)
        entities = fitting
    for what in ("id", "annotator"):
        lost[f"{what}s"] += getattr(document, what) is not None and what not in holds
    lost["passages of texts"] += len(document.passages) > 1 and "passages" not in holds
    if "details" not in holds:
        said = ({**one.meta, **({} if one.score is None else {"score": 0})} for one in entities or ())
        lost.update(f"{quoted(key)} of entities" for one in said for key in one if key not in holds)
    lost["line ends and TABs of texts"] += name == "pubtator" and document.text != flat(document.text)
    lost["control characters of texts"] += name == "bioc" and document.text != bioc.in_xml(document.text)
    lost["texts without a word"] += name in conll.SCHEMES and not document.text.strip()
    if "meta" not in holds:
        lost.update(f"{quoted(key)} of texts" for key in document.meta if key not in RAW)
    for key in RAW:
        lost[f"lines that only {key} has"] += len(document.meta.get(key, ())) if key != name else 0
    lost += Counter()  # without those that are 0
    meta = {key: value for key, value in document.meta.items() if key not in RAW or key == name}
    return replace(document, entities=entities, labels=labels, meta=meta)


def write(
    documents: Iterable[Document], name: str, path: Path, notes: list[str], *, predicted: bool = False
) -> None:
    """Writes documents to a file, or into a folder that is there; of Label Studio `predicted` are predictions."""
    form = FORMATS[name]
    if name == "brat":
        for file, content in brat.write(documents, notes):
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_bytes(content.encode())
        return
    with whole_file(path, "xb") as stream:
        if form.lines is None:
            stream.write(spacy.write(documents))
            return
        lines = partial(label_studio.write, predicted=predicted) if name == "label-studio" else form.lines
        for piece in lines(documents):
            stream.write(piece.encode())
