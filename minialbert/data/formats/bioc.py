"""BioC, as XML and as JSON: collections of documents in passages, whose annotations have offsets in the document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from minialbert.data.formats.documents import Document, Entity, Reading, reading_as
from minialbert.data.table_files import file_error, read_text
from minialbert.errors import UserError, one_line, quoted

# Characters between two passages that are filled, so that offsets stay; beyond, one line end.
_LARGEST_GAP = 1000
_TYPES = ("type", "label", "semantic_type", "Type", "NE")


def read_xml(path: Path, reading: Reading) -> Iterator[Document]:
    """Yields the documents of an XML file; one that declares or uses entities of its own is refused."""
    text = read_text(path)
    if (at := text.find("<!ENTITY")) >= 0:
        told = "entities are declared: a file with entities of its own is not read"
        raise file_error(path, text.count("\n", 0, at) + 1, told)
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise file_error(path, error.position[0], f"not readable as XML ({one_line(error)})") from error
    if root.tag not in ("collection", "document"):
        raise UserError(f"{path}: an XML file of {quoted(root.tag)}: of XML, BioC's <collection> is read")
    documents = [root] if root.tag == "document" else root.findall("document")
    yield from from_json([(str(path), {"documents": [_plain(one) for one in documents]})], reading)


def _plain(element: ElementTree.Element) -> dict[str, Any]:
    """Returns what BioC's JSON has in place of an element."""
    infons = {one.get("key", ""): one.text or "" for one in element.findall("infon")}
    plain: dict[str, Any] = {"infons": infons, **dict(element.items())}
    for name in ("id", "offset", "text"):
        if (child := element.find(name)) is not None:
            plain[name] = child.text or ""
    inner = ("passage", "sentence", "annotation", "relation", "location")
    return plain | {f"{name}s": [_plain(child) for child in element.findall(name)] for name in inner}


def is_record(record: Mapping[str, Any]) -> bool:
    """Tells whether an object of JSON is a collection, or a document of one."""
    inner = next((record[key] for key in ("documents", "PubTator3") if key in record), [record])
    first = inner[0] if isinstance(inner, list) and inner else None
    passages = first.get("passages") if isinstance(first, Mapping) else None
    return isinstance(passages, list) and all(isinstance(one, Mapping) for one in passages)


def from_json(records: Iterable[tuple[str, Mapping[str, Any]]], reading: Reading) -> Iterator[Document]:
    """Yields the documents of collections, given with their places."""
    for place, record in records:
        inner = record.get("documents", record.get("PubTator3", [record]))
        for number, document in enumerate(inner, start=1):
            where = place if len(inner) == 1 else f"{place}, document {number}"
            with reading_as("a document of BioC", where):
                yield _document(document, where, reading)


def _document(document: Mapping[str, Any], place: str, reading: Reading) -> Document:
    text, passages, entities = "", [], list[Entity]()
    relations = len(document.get("relations") or ())
    for passage in document["passages"]:
        sentences = passage.get("sentences") or ()
        begin, waiting = None, [] if not sentences else list(passage.get("annotations") or ())
        for piece in sentences or [passage]:
            relations += len(piece.get("relations") or ())
            if piece.get("text") is None:
                reading.left_out["passages without a text"] += 1
                continue
            offset, given = _whole_number(piece["offset"], place), str(piece["text"])
            gap = offset - len(text)
            if 0 < gap < _LARGEST_GAP:
                text += "\n".ljust(gap)
            elif gap and text:  # offsets that go back, or far ahead
                text += "\n"
            begin = len(text) if begin is None else begin
            shift, annotations = len(text) - offset, [*waiting, *(piece.get("annotations") or ())]
            entities += (_entity(one, shift, place) for one in annotations)
            text, waiting = text + given, []
        if begin is not None:
            passages.append((begin, len(text), dict(passage.get("infons") or {})))
    entities += (_entity(one, 0, place) for one in document.get("annotations") or ())
    if relations:
        reading.left_out["relations"] += relations
    name = None if document.get("id") is None else str(document["id"])
    meta = dict(document.get("infons") or {})
    by = meta.pop("annotator", None)
    return Document(text, tuple(entities), None, name, by, meta, tuple(passages), place=place)


def _entity(annotation: Mapping[str, Any], shift: int, place: str) -> Entity:
    infons = dict(annotation.get("infons") or {})
    key = next((key for key in _TYPES if infons.get(key)), None)
    name = None if annotation.get("id") is None else str(annotation["id"])
    place += f", annotation {name}"
    if key is None:
        raise UserError(f"{place}: the annotation has no infon 'type'; found {quoted(infons)}")
    parts = []
    for location in annotation["locations"]:
        start = _whole_number(location["offset"], place) + shift
        parts.append((start, start + _whole_number(location["length"], place)))
    label = str(infons.pop(key))
    return Entity(label, tuple(parts), name, meta=infons, quote=annotation.get("text"), place=place)


def _whole_number(value: object, place: str) -> int:
    if (isinstance(value, str) and value.strip().isdecimal() and len(value) < 12) or type(value) is int:
        return int(value)
    raise UserError(f"{place}: expected an offset or a length as a whole number, found {quoted(value)}")


def _records(documents: Iterable[Document]) -> Iterator[dict[str, Any]]:
    for number, document in enumerate(documents, start=1):
        passages = document.passages or ((0, len(document.text), {}),)
        found: list[dict[str, Any]] = [
            {"offset": start, "infons": dict(infons), "text": document.text[start:end], "sentences": [],
             "annotations": [], "relations": []}
            for start, end, infons in passages
        ]  # fmt: skip
        for place, entity in enumerate(document.entities or (), start=1):
            at = max((n for n, (start, _, _) in enumerate(passages) if start <= entity.start), default=0)
            infons = {"type": entity.label, **entity.meta}
            infons |= {} if entity.score is None else {"score": entity.score}
            text = " ".join(document.text[start:end] for start, end in entity.parts)
            locations = [{"offset": start, "length": end - start} for start, end in entity.parts]
            said = {"id": entity.id or str(place), "infons": infons, "text": text, "locations": locations}
            found[at]["annotations"].append(said)
        known = {} if document.annotator is None else {"annotator": document.annotator}
        meta = document.meta.items()
        infons = {key: value if isinstance(value, str) else json.dumps(value) for key, value in meta}
        yield {"id": document.id or str(number), "infons": infons | known, "passages": found, "relations": []}


def write_json(documents: Iterable[Document]) -> Iterator[str]:
    """Yields a collection in JSON."""
    yield '{"source": "minialbert", "date": "", "key": "", "infons": {}, "documents": [\n'
    for number, record in enumerate(_records(documents)):
        yield (",\n" if number else "") + json.dumps(record, ensure_ascii=False)
    yield "\n]}\n"


def write_xml(documents: Iterable[Document]) -> Iterator[str]:
    """Yields a collection in XML."""
    yield '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE collection SYSTEM "BioC.dtd">\n<collection>'
    yield "<source>minialbert</source><date></date><key></key>\n"
    for record in _records(documents):
        yield ElementTree.tostring(_element("document", record), encoding="unicode") + "\n"
    yield "</collection>\n"


def in_xml(text: str) -> str:
    """Returns a text of the same length without control characters, which XML lacks, and carriage returns."""
    return re.sub("[^\t\n -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", " ", text)


def _element(name: str, record: Mapping[str, Any]) -> ElementTree.Element:
    if name == "location":
        return ElementTree.Element(name, {key: str(value) for key, value in record.items()})
    element = ElementTree.Element(name, {"id": record["id"]} if name == "annotation" else {})

    def child(tag: str, value: object, **attributes: str) -> None:
        ElementTree.SubElement(element, tag, attributes).text = in_xml(str(value))

    if name == "document":
        child("id", record["id"])
    for key, value in record["infons"].items():
        child("infon", value, key=key)
    if name == "passage":
        child("offset", record["offset"])
        child("text", record["text"])
    for tag in ("passage", "annotation", "location"):
        element.extend(_element(tag, one) for one in record.get(f"{tag}s", ()))
    if name == "annotation":
        child("text", record["text"])
    return element
