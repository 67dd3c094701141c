"""BigBio's schema for knowledge bases: a document in passages, whose entities have offsets in the whole document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from minialbert.data.formats.documents import Document, Entity, Reading, reading_as
from minialbert.errors import UserError, quoted

_LARGEST_GAP = 1000  # characters between two passages
_OTHERS = ("events", "relations", "coreferences")


def is_record(record: Mapping[str, Any]) -> bool:
    """Tells whether a row is a document of the schema."""
    return {"document_id", "passages", "entities"} <= record.keys()


def read(records: Iterable[tuple[str, Mapping[str, Any]]], reading: Reading) -> Iterator[Document]:
    """Yields a document for each row, given with its place; spaces are between passages, as their offsets tell.

    Identifiers of an entity are one, DATABASE:ID, with commas between several. Events, relations and coreferences are
    counted and left out.
    """
    for place, record in records:
        with reading_as("a document of BigBio", place):
            yield _document(place, record, reading)


def _document(place: str, record: Mapping[str, Any], reading: Reading) -> Document:
    name = str(record.get("document_id") or record["id"])
    place = f"{place}, document {name}"
    pieces = []
    for passage in _inner(record["passages"]):
        for (start, _), piece in zip(passage["offsets"], passage["text"], strict=True):
            pieces.append((int(start), piece, passage.get("type")))
    text, passages = "", []
    for start, piece, kind in sorted(pieces, key=lambda one: one[0]):
        there = text[start:]
        if not 0 <= start < len(text) + _LARGEST_GAP or there != piece[: len(there)]:
            told = f"the passage {quoted(piece)} begins at {start}, where the text before it has {len(text)}"
            raise UserError(f"{place}: {told} characters: expected offsets in the whole document")
        text = text.ljust(start) + piece[len(there) :]
        passages.append((start, start + len(piece), {"type": kind} if kind else {}))
    entities = []
    for one in _inner(record["entities"]):
        parts = tuple((int(start), int(end)) for start, end in one["offsets"])
        known = [f"{norm['db_name']}:{norm['db_id']}" for norm in _inner(one.get("normalized"))]
        meta, quote = {"identifier": ",".join(known)} if known else {}, " ".join(one["text"])
        where = f"{place}, entity {one['id']}"
        entities.append(Entity(str(one["type"]), parts, str(one["id"]), meta=meta, quote=quote, place=where))
    for key in _OTHERS:
        reading.left_out[key] += len(_inner(record.get(key)))
    return Document(text, tuple(entities), id=name, passages=tuple(passages), place=place)


def _inner(records: Any) -> Sequence[Mapping[str, Any]]:
    """Returns records inside a row, which the `datasets` library may give as a list for each key."""
    if isinstance(records, Mapping):
        return [dict(zip(records, values, strict=True)) for values in zip(*records.values(), strict=True)]
    return records or ()
