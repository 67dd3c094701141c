"""A document as annotation tools see it: a text, its entities and classes, and whatever else a file says of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import Any

from minialbert_runtime.words import Span

from minialbert.data.cells import Quotes, between
from minialbert.data.table_files import Table
from minialbert.errors import UserError, failing_as, shown

# In the rows of tools' files, where no column has such a name: what the row was made of.
DOCUMENT = "\0document"
RAW = ("brat", "pubtator")  # in `meta`: lines that only the format of this name can have

Part = tuple[int, int]  # first and last character (exclusive)


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity in one part or several."""

    label: str
    parts: tuple[Part, ...]
    id: str | None = None
    score: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    quote: str | None = field(default=None, compare=False)  # what the file says stands there
    place: str = field(default="", compare=False)  # file and row, for messages

    @property
    def start(self) -> int:
        """Its first character."""
        return min(start for start, _ in self.parts)

    @property
    def end(self) -> int:
        """Its last character (exclusive)."""
        return max(end for _, end in self.parts)


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its entities and classes; None where nobody annotated them."""

    text: str
    entities: tuple[Entity, ...] | None = None
    labels: tuple[str, ...] | None = None
    id: str | None = None
    annotator: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)  # whatever else is known of it
    passages: tuple[tuple[int, int, Mapping[str, Any]], ...] = ()  # title, abstract, ...
    words: tuple[tuple[Part, ...], ...] | None = None  # by sentence, where the file has words
    place: str = field(default="", compare=False)

    def whole(self, entity: Entity) -> Span | None:
        """Returns an entity as one span, None if something else stands between its parts."""
        gaps = pairwise(sorted(entity.parts))
        if any(end > start or self.text[end:start].strip() for (_, end), (start, _) in gaps):
            return None
        return Span(entity.start, entity.end, entity.label)

    @property
    def spans(self) -> list[Span]:
        """The entities that are in one part, or in parts with only whitespace between them."""
        return [span for entity in self.entities or () if (span := self.whole(entity)) is not None]


@dataclass
class Reading:
    """What a reader is to know of a file, and what it says of it beside its documents, by its plural and in lines."""

    text: str | None = None  # the name of the text, if the caller gave it
    left_out: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)  # as lines, which are of use to the same format alone
    notes: list[str] = field(default_factory=list)


def reading_as(what: str, place: str) -> AbstractContextManager[None]:
    """Tells of a record that is not built as it should be what it is not."""
    kinds = (LookupError, TypeError, ValueError, AttributeError)
    return failing_as(f"{place}: not {what}", kinds, named=True)


def checked(documents: Iterable[Document], reading: Reading) -> list[Document]:
    """Returns documents whose entities stand where their quotes do; refuses those empty or outside their text."""
    quotes, found = Quotes(), []
    for document in documents:
        size, entities = len(document.text), []
        for given in document.entities or ():
            where = ";".join(f"{start}-{end}" for start, end in given.parts)
            place = given.place or document.place
            parts = quotes.compare(place, f"the entity {where}", given.quote, document.text, given.parts)
            entity = given if parts == given.parts else replace(given, parts=parts)
            if not entity.label.strip():
                raise UserError(f"{place}: the entity {where} has no type")
            if not entity.parts or not all(0 <= start < end <= size for start, end in entity.parts):
                wrong = f"is empty or outside the text, which has {size} characters"
                raise UserError(f"{place}: the entity {where} ({shown(entity.label)}) {wrong}")
            if not between(document.text, entity.parts).strip():
                raise UserError(f"{place}: the entity {where} ({shown(entity.label)}) holds only whitespace")
            entities.append(entity)
        found.append(document if document.entities is None else replace(document, entities=tuple(entities)))
    reading.notes += quotes.notes()
    return found


def table_of(name: str, documents: Sequence[Document], reading: Reading) -> Table:
    """Returns documents as rows with the columns text, spans, label, id and annotator, and what else is known."""
    documents = checked(documents, reading)
    if not documents:
        lost = "".join(f"; {note}" for note in _left_out(reading.left_out))
        raise UserError(f"{name}: 0 documents; expected at least one{lost}")
    rows = []
    parted: list[str] = []
    for number, document in enumerate(documents, start=1):
        cells: dict[str, Any] = {reading.text or "text": document.text}
        if document.entities is not None:
            cells["spans"] = [[one.start, one.end, one.label] for one in document.spans]
            apart = (one for one in document.entities if document.whole(one) is None)
            parted += (one.place or document.place for one in apart)
        if document.labels is not None:
            cells["label"] = list(document.labels)
        known = {"id": document.id, "annotator": document.annotator}
        cells |= {key: value for key, value in known.items() if value is not None}
        meta = {key: value for key, value in document.meta.items() if key not in RAW}
        rows.append((number, {**meta, **cells, DOCUMENT: document}))
    if parted:
        what = f"entities in several parts, since a word has one tag (the first: {parted[0]})"
        reading.kept[what] = len(parted)
    notes, unused = (*reading.notes, *_left_out(reading.left_out)), tuple(_left_out(reading.kept))
    columns = dict.fromkeys(chain.from_iterable(cells for _, cells in rows))
    columns.pop(DOCUMENT)
    places = {row: document.place for (row, _), document in zip(rows, documents, strict=True)}
    return Table(name, tuple(columns), rows, notes=notes, unused=unused, places=places)


def _left_out(things: Counter[str]) -> list[str]:
    """Returns the line that counts things, if there are any."""
    many = ", ".join(f"{what} ({count:,})" for what, count in things.items() if count)
    return [f"left out: {many}"] if many else []


def of_answer(answer: Mapping[str, Any], number: int, file: str | None = None) -> Document:
    """Returns what a model answers to a text as a document; `file` names the one that it is from."""
    entities = labels = None
    meta = {key: answer[key] for key in ("file", "pair", "score", "scores") if key in answer}
    if "entities" in answer:
        found = [(one, ((one["start"], one["end"]),)) for one in answer["entities"]]
        entities = tuple(Entity(one["label"], parts, score=one.get("score")) for one, parts in found)
    elif "labels" in answer:
        labels = tuple(answer["labels"])
    elif "label" in answer:
        labels = (answer["label"],) if answer["label"] else ()
    known = (file, answer.get("id"))
    name = "-".join(str(one) for one in known if one is not None) or f"text-{number}"
    return Document(answer["text"], entities, labels, name, meta=meta)


def flat(text: str) -> str:
    """Returns a text of the same length in one line, without TABs."""
    return re.sub(r"[\r\n\t]", " ", text)
