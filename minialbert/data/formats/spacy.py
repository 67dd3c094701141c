"""spaCy's own files: DocBin (`.spacy`), which needs spaCy, and the JSON that its second version trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from minialbert_runtime.words import WordRule, tags_to_spans

from minialbert.data.formats.documents import Document, Entity, Reading, reading_as
from minialbert.data.ner import TagReader
from minialbert.errors import UserError, failing_as, needs_extra, quoted

_GROUP = "sc"  # where spaCy keeps spans that overlap


def read(path: Path, reading: Reading) -> Iterator[Document]:
    """Yields the documents of a DocBin: entities, or where there are none the spans of its groups, and classes."""
    with needs_extra("spacy", "reading .spacy files", "spaCy"):
        from spacy.tokens import DocBin
        from spacy.vocab import Vocab
    # Whatever zlib and msgpack raise.
    with failing_as(f"{path}: not readable as spaCy's DocBin", Exception, named=True):
        docs = list(DocBin().from_disk(path).get_docs(Vocab()))
    for number, doc in enumerate(docs, start=1):
        place = f"{path}, document {number}"
        groups = [span for spans in doc.spans.values() for span in spans]
        found = list(doc.ents) or groups
        if groups and doc.ents:
            reading.left_out["spans in groups beside the entities"] += len(groups)
        entities = tuple(_entity(span, place) for span in found)
        is_annotated = found or doc.has_annotation("ENT_IOB")
        labels = tuple(name for name, value in doc.cats.items() if value >= 0.5) if doc.cats else None
        known = {key: value for key, value in doc.user_data.items() if isinstance(key, str)}
        name, annotator = known.pop("id", None), known.pop("annotator", None)
        yield Document(
            doc.text, entities if is_annotated else None, labels, None if name is None else str(name), annotator,
            known, place=place,
        )  # fmt: skip


def _entity(span: Any, place: str) -> Entity:
    meta = {"identifier": span.kb_id_} if span.kb_id_ else {}
    return Entity(span.label_, ((span.start_char, span.end_char),), span.id_ or None, meta=meta, place=place)


def write(documents: Iterable[Document]) -> bytes:
    """Returns a DocBin; spans that overlap are in the group "sc"."""
    with needs_extra("spacy", "writing .spacy files", "spaCy"):
        from spacy.tokens import Doc, DocBin, Span
        from spacy.util import get_words_and_spaces
        from spacy.vocab import Vocab
    vocab, packed = Vocab(), DocBin(store_user_data=True)
    kept = list(documents)
    classes = sorted({label for document in kept for label in document.labels or ()})
    for document in kept:
        entities = document.entities or ()
        borders = {border for one in entities for border in (one.start, one.end)}
        borders |= {border for word in WordRule().split(document.text) for border in word}
        cuts = sorted(borders | {0, len(document.text)})
        pieces = [document.text[start:end] for start, end in pairwise(cuts)]
        words, spaces = get_words_and_spaces([one for one in pieces if one.strip()], document.text)
        known = {"id": document.id, "annotator": document.annotator}
        data = {**document.meta, **{key: value for key, value in known.items() if value is not None}}
        doc = Doc(vocab, words=words, spaces=spaces, user_data=data)
        starts, ends = {one.idx: one.i for one in doc}, {one.idx + len(one): one.i + 1 for one in doc}
        if any(one.start not in starts or one.end not in ends for one in entities):
            told = "spaCy cannot hold a span that begins or ends in whitespace"
            raise UserError(f"document {quoted(document.id)}: {told}")
        spans = [
            Span(doc, starts[one.start], ends[one.end], one.label, kb_id=str(one.meta.get("identifier", "")))
            for one in entities
        ]
        taken = sorted((one.start, one.end) for one in entities)
        if any(after[0] < before[1] for before, after in pairwise(taken)):
            doc.spans[_GROUP] = spans
        elif document.entities is not None:
            doc.set_ents(spans)
        if document.labels is not None:
            doc.cats = {name: float(name in document.labels) for name in classes}
        packed.add(doc)
    return bytes(packed.to_bytes())


def is_record(record: Mapping[str, Any]) -> bool:
    """Tells whether an object of JSON is a document of spaCy's second version."""
    inner = record.get("paragraphs")
    first = inner[0] if isinstance(inner, list) and inner else None
    return isinstance(first, Mapping) and "sentences" in first


def from_json(records: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[Document]:
    """Yields the paragraphs of spaCy's JSON, given with their places."""
    for place, record in records:
        with reading_as("JSON of spaCy", place):
            for number, paragraph in enumerate(record["paragraphs"], start=1):
                name = str(record.get("id", "")) + (f"-{number}" if len(record["paragraphs"]) > 1 else "")
                yield _paragraph(place, name, paragraph)


def _paragraph(place: str, name: str, paragraph: Mapping[str, Any]) -> Document:
    tokens = [token for sentence in paragraph["sentences"] for token in sentence["tokens"]]
    text = paragraph.get("raw")
    if text is None:
        text = "".join(token["orth"] + token.get("space", " ") for token in tokens).rstrip()
    at, offsets = 0, []
    for token in tokens:
        start = text.find(token["orth"], at)
        if start < 0:
            told = f"the token {quoted(token['orth'])} does not stand in the text after character {at}"
            raise UserError(f"{place}: {told}")
        at = start + len(token["orth"])
        offsets.append((start, at))
    given = [str(token.get("ner") or "O") for token in tokens]
    reader = TagReader(lambda row, message: UserError(f"{place}: token {row}: {message}"), "repair")
    tags = reader.read(["O" if tag == "-" else tag for tag in given], range(1, len(tokens) + 1))
    spans = tags_to_spans(tags, offsets)
    entities = [Entity(one.label, ((one.start, one.end),), place=place) for one in spans]
    cats = paragraph.get("cats") or ()
    labels = tuple(one["label"] for one in cats if one["value"] >= 0.5) if cats else None
    has_tags = any("ner" in token for token in tokens)
    return Document(text, tuple(entities) if has_tags else None, labels, name or None, place=place)
