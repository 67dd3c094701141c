"""One JSON object for each text: doccano, Prodigy, Label Studio's short form (JSON-MIN), and plain rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from minialbert_runtime.words import Span

from minialbert.data.cells import Quotes, list_in, missing, spans_of, text_of
from minialbert.data.formats.documents import Document, Entity
from minialbert.data.table_files import Table
from minialbert.errors import UserError

_OF_SPANS = {
    "start", "end", "label", "labels", "type", "text", "start_offset", "end_offset", "token_start", "token_end"
}  # fmt: skip
ANSWERS = ("accept", "reject", "ignore")  # of Prodigy
_ANNOTATORS = ("annotator", "_annotator_id", "username", "user", "completed_by")


def shape(columns: Iterable[str], record: Mapping[str, Any]) -> str | None:
    """Returns which tool wrote rows, from their columns and one of them; None of rows as any."""
    names = set(columns)
    if names & {"_input_hash", "_task_hash", "_view_id"} or record.get("answer") in ANSWERS:
        return "prodigy"
    if "annotation_id" in names and {"annotator", "lead_time", "updated_at", "created_at"} & names:
        return "label-studio-min"
    for column in ("label", "labels", "entities"):
        first = next(iter(list_in(record.get(column)) or ()), None)
        if isinstance(first, Mapping) and "start_offset" in first:
            return "doccano"
        if column != "entities" and isinstance(first, list) and len(first) == 3 and "text" in names:
            return "doccano"
    return "doccano" if {"id", "text", "Comments"} <= names and {"label", "entities"} & names else None


def usual(table: Table) -> Table:
    """Returns rows of Prodigy and of JSON-MIN with their spans and classes under the usual names too."""
    regions = {"spans"} & {*table.columns}
    regions = regions or {key for _, cells in table.rows for key, cell in cells.items() if _are_regions(cell)}
    regions = regions if len(regions) == 1 else set()  # of several one is to be named, as task.spans
    rows = []
    for row, cells in table.rows:
        named = {key: _choices(cell) or cell for key, cell in cells.items()}
        for key in regions:  # which is not there where a text has none
            named["spans"] = cells.get(key) or []
            if key in ("label", "labels"):
                named.pop(key, None)
        if isinstance(cells.get("accept"), list) and "options" in cells:  # a choice
            named["label"] = cells["accept"]
        rows.append((row, named))
    columns = dict.fromkeys(key for _, cells in rows for key in cells)
    return replace(table, columns=tuple(columns), rows=rows)


def _are_regions(cell: object) -> bool:
    first = cell[0] if isinstance(cell, list) and cell else None
    return isinstance(first, Mapping) and {"start", "end", "labels"} <= first.keys()


def _choices(cell: object) -> list[Any]:
    """Returns several choices of one control, which csv spells as JSON; else none."""
    if isinstance(cell, str) and cell.startswith('{"choices"'):
        with suppress(ValueError, RecursionError):
            cell = json.loads(cell)
    found = cell.get("choices") if isinstance(cell, Mapping) else None
    return found if isinstance(found, list) else []


def document_of(
    table: Table, row: int, cells: Mapping[str, Any], columns: Mapping[str, str | None], quotes: Quotes
) -> Document:
    """Returns a row as a document, given its columns by what they hold: text, spans, label and id."""
    text, place = cells.get(str(columns["text"])), table.place(row)
    text = text if isinstance(text, str) else text_of(table, row, cells, str(columns["text"]))
    entities = labels = None
    spans_in, label_in = columns.get("spans") or "", columns.get("label") or ""
    if not missing(raw := cells.get(spans_in)):
        spans = spans_of(table, row, raw, text, quotes)
        items = raw if isinstance(raw, list) and len(raw) == len(spans) else [{}] * len(spans)
        entities = tuple(_entity(span, item, place) for span, item in zip(spans, items, strict=True))
    if not missing(cell := cells.get(label_in)):
        parts = list_in(cell)
        labels = tuple(str(part) for part in (parts if parts is not None else [cell]))
    annotator = next((str(cells[key]) for key in _ANNOTATORS if not missing(cells.get(key))), None)
    taken = {*filter(None, columns.values()), *_ANNOTATORS, "answer"}
    others = {key: cell for key, cell in cells.items() if key not in taken}
    meta = {key: cell for key, cell in others.items() if cell not in (None, [], {}, "")}
    if isinstance(meta.get("meta"), Mapping):  # of Prodigy
        meta |= meta.pop("meta")
    name = cells.get(columns.get("id") or "", meta.pop("id", None))
    known = None if missing(name) else str(name)
    return Document(text, entities, labels, known, annotator, meta, place=place)


def _entity(span: Span, item: object, place: str) -> Entity:
    """Returns a span with what its object says beside the place and the type."""
    found = dict(item) if isinstance(item, Mapping) else {}
    name, score = found.pop("id", None), found.pop("score", None)
    meta = {key: value for key, value in found.items() if key not in _OF_SPANS}
    known = None if name is None else str(name)
    return Entity(span.label, ((span.start, span.end),), known, score, meta, place=place)


def _lines(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    return (json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _common(document: Document, number: int) -> dict[str, Any]:
    known = {"id": document.id or str(number), "annotator": document.annotator}
    return {key: value for key, value in known.items() if value is not None}


def _span(entity: Entity) -> dict[str, Any]:
    known = {"id": entity.id, "score": entity.score}
    span = {**entity.meta, "start": entity.start, "end": entity.end, "label": entity.label}
    return span | {key: value for key, value in known.items() if value is not None}


def write_doccano(documents: Iterable[Document]) -> Iterator[str]:
    """Yields JSON lines for doccano: a text, and its spans or its classes as its label."""
    for number, document in enumerate(documents, start=1):
        if document.entities and document.labels:
            told = "doccano has entities or classes, and this text has both: take label-studio or jsonl"
            raise UserError(f"{document.place}: {told}")
        spans = [[one.start, one.end, one.label] for one in document.entities or ()]
        record = {**document.meta, **_common(document, number), "text": document.text}
        yield from _lines([{**record, "label": spans or list(document.labels or ())}])


def write_prodigy(documents: Iterable[Document]) -> Iterator[str]:
    """Yields JSON lines for Prodigy: accepted spans, or a choice among the classes."""
    for number, document in enumerate(documents, start=1):
        own = {key: value for key, value in document.meta.items() if key.startswith("_") or key == "tokens"}
        meta = {key: value for key, value in document.meta.items() if key not in {*own, "answer"}}
        record: dict[str, Any] = {"text": document.text, **own}
        if document.entities is not None:
            record["spans"] = [_span(one) for one in document.entities]
        if document.labels is not None:
            choices = [{"id": name, "text": name} for name in document.labels]
            record |= {"options": list(meta.pop("options", ())) or choices, "accept": list(document.labels)}
        known = {} if document.annotator is None else {"_annotator_id": document.annotator}
        meta = {**meta, "id": document.id or str(number)}
        yield from _lines([{**record, "meta": meta, "answer": "accept", **known}])


def write_rows(documents: Iterable[Document]) -> Iterator[str]:
    """Yields JSON lines with text, spans, label and all else that is known."""
    for number, document in enumerate(documents, start=1):
        record = {**document.meta, **_common(document, number), "text": document.text}
        if document.entities is not None:
            record["spans"] = [_span(one) for one in document.entities]
        if document.labels is not None:
            record["label"] = list(document.labels) if len(document.labels) != 1 else document.labels[0]
        yield from _lines([record])
