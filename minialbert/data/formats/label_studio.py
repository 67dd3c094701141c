"""Label Studio's JSON: tasks with the annotations, or the predictions, that they have."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, groupby
from typing import Any

from minialbert.data.formats.documents import Document, Entity, Reading, reading_as
from minialbert.errors import UserError, listed, quoted

_TEXTS = ("text", "sentence", "document", "body", "content", "note")
_ENTITIES, _CLASSES = ("labels", "hypertextlabels"), ("choices",)
_Choices = Mapping[str, Sequence[str]]  # of a text, by control


def is_record(record: Mapping[str, Any]) -> bool:
    """Tells whether an object of JSON is a task with its data."""
    known = {"annotations", "completions", "predictions"} & record.keys()
    return isinstance(record.get("data"), Mapping) and bool(known)


def read(records: Iterable[tuple[str, Mapping[str, Any]]], reading: Reading) -> Iterator[Document]:
    """Yields a document for each annotation of each task, given with their places; one for a task without any.

    Annotations that were cancelled, and predictions, are counted and left out. Of regions those of texts are read, and
    of choices those of whole texts. Of several texts in a task the one is read that was named, or that regions are of.
    """
    found: list[tuple[Document, _Choices]] = []
    tasks = list(records)
    names = [reading.text] if reading.text else [*_shown(record for _, record in tasks), *_TEXTS]
    for place, record in tasks:
        with reading_as("a task of Label Studio", place):
            found += _documents(place, record, names, reading)
    controls = sorted({control for _, choices in found for control in choices})
    if len(controls) > 1:
        reading.notes.append(f"label has the choices of {listed(controls)}: name one of them as task.label")
    # Where texts have regions as well as choices, one with choices alone has no region.
    regions = any(document.entities for document, _ in found)
    for one, choices in found:
        meta = {**one.meta, **choices} if len(controls) > 1 else one.meta
        none = regions and one.labels is not None and one.entities is None
        yield replace(one, meta=meta, entities=() if none else one.entities)


def _shown(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the text that most regions are of, by the name that tasks give it, if a control has the same name."""
    names = Counter[str]()
    for record in records:
        with suppress(LookupError, TypeError, AttributeError):  # which is told where the task is read
            results = chain.from_iterable(one["result"] for one in _annotations(record))
            of = (one["to_name"] for one in results if one["type"] in _ENTITIES)
            names.update(name for name in of if isinstance(record["data"].get(name), str))
    return [name for name, _ in names.most_common(1)]


def _annotations(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return record.get("annotations", record.get("completions")) or []


def _documents(
    place: str, record: Mapping[str, Any], names: Sequence[str], reading: Reading
) -> Iterator[tuple[Document, _Choices]]:
    data = record["data"]
    texts = [key for key, value in data.items() if isinstance(value, str)]
    usual = [key for key in names if key in texts]
    if not usual and (reading.text or len(texts) != 1):
        told = f"expected a text in `data`, under one of {', '.join(names)}; found {listed(data)}"
        raise UserError(f"{place}: {told}: set task.text to its name")
    key = (usual or texts)[0]
    text, meta = data[key], {one: value for one, value in data.items() if one != key}
    name = str(meta.pop("document", record.get("id", place.rpartition(":")[2])))
    meta |= {"task_meta": record["meta"]} if record.get("meta") else {}
    given = _annotations(record)
    annotations = [one for one in given if not one.get("was_cancelled")]
    for annotation in annotations:
        own = [one for one in annotation["result"] if one.get("to_name", key) not in {*texts} - {key}]
        entities, choices = _results(place, own, reading)
        labels = tuple(dict.fromkeys(chain.from_iterable(choices.values()))) if choices else None
        by = annotation.get("completed_by")
        by = by.get("email", by.get("id")) if isinstance(by, Mapping) else by
        by = None if by is None else str(by)
        yield Document(text, entities, labels, name, by, meta, place=place), choices
        reading.left_out["results of other texts"] += len(annotation["result"]) - len(own)
    if not annotations:
        yield Document(text, id=name, meta=meta, place=place), {}
    reading.left_out["annotations that were cancelled"] += len(given) - len(annotations)
    reading.left_out["predictions"] += len(record.get("predictions") or ())


def _results(
    place: str, results: Sequence[Mapping[str, Any]], reading: Reading
) -> tuple[tuple[Entity, ...] | None, _Choices]:
    entities: list[Entity] = []
    choices: dict[str, list[str]] = {}
    for one in results:
        kind, value = one["type"], one.get("value") or {}
        if kind in _ENTITIES:
            value = {**value, **(value.get("globalOffsets") or {})}
            if type(value.get("start")) is not int or type(value.get("end")) is not int:
                expected = "expected a region with start and end (integers)"
                raise UserError(f"{place}: {expected}, found {quoted(value)}")
            names = _names(value.get(kind) or value.get("labels"))
            if not names:
                reading.left_out["regions without a label"] += 1
            parts = ((value["start"], value["end"]),)
            quote = value.get("text")
            quote = quote.replace("\\n", "\n") if isinstance(quote, str) else None  # as it writes line ends
            said = (one.get("id"), one.get("score"), one.get("meta") or {}, quote, place)
            entities += (Entity(name, parts, *said) for name in names)
        elif kind in _CLASSES and "start" not in value:
            choices.setdefault(str(one.get("from_name")), []).extend(_names(value["choices"]))
        else:
            reading.left_out[f"results of type {kind}"] += 1
    # An annotation without any result says that there is no entity.
    return None if choices and not entities else tuple(entities), choices


def _names(given: object) -> list[str]:
    names = [given] if isinstance(given, str) else given
    return [str(name) for name in names] if isinstance(names, list) else []


def write(documents: Iterable[Document], *, predicted: bool = False) -> Iterator[str]:
    """Yields tasks in an array; what stands side by side under one id is one task with several annotations."""
    yield "["
    tasks = groupby(enumerate(documents, start=1), key=lambda pair: (pair[1].id or pair[0], pair[1].text))
    for place, ((name, text), group) in enumerate(tasks, start=1):
        several = [document for _, document in group]
        scores = ("score", "scores") if predicted else ()
        meta = {key: value for key, value in several[0].meta.items() if key not in scores}
        data = {"text": text, **{key: value for key, value in meta.items() if key != "task_meta"}}
        task: dict[str, Any] = {"id": place, "data": {**data, "document": name}}
        if str(name).isdecimal() and not predicted:
            task = {"id": int(name), "data": data}
        if "task_meta" in meta:
            task["meta"] = meta["task_meta"]
        answers = [_answer(one, number) for number, one in enumerate(several) if _is_annotated(one)]
        if predicted:  # Label Studio gives imported tasks ids of its own
            own = [{"model_version": "minialbert", **one} for one in answers]
            task = {"data": task["data"], "predictions": own}
        else:
            for document, answer in zip(several, answers, strict=False):
                by = document.annotator
                answer |= {} if by is None else {"completed_by": int(by) if by.isdecimal() else {"email": by}}
            task["annotations"] = answers
        yield ("\n" if place == 1 else ",\n") + json.dumps(task, ensure_ascii=False)
    yield "\n]\n"


def _is_annotated(document: Document) -> bool:
    return document.entities is not None or document.labels is not None


def _answer(document: Document, number: int) -> dict[str, Any]:
    results = []
    for place, one in enumerate(document.entities or ()):
        quote = document.text[one.start : one.end]
        value = {"start": one.start, "end": one.end, "text": quote, "labels": [one.label]}
        known = {"score": one.score, "meta": dict(one.meta) or None}
        kept = {key: what for key, what in known.items() if what is not None}
        results.append({**_result("label", "labels", one.id or f"{number}-{place}", value), **kept})
    if document.labels is not None:
        value = {"choices": list(document.labels)}
        results.append(_result("choice", "choices", f"{number}-choice", value))
    scores = [one["score"] for one in results if "score" in one] or [document.meta.get("score")]
    return {"result": results} | ({} if scores[0] is None else {"score": sum(scores) / len(scores)})


def _result(control: str, kind: str, name: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "from_name": control, "to_name": "text", "type": kind, "value": value}
