"""Results as people read them: a text with its entities marked, or its classes and then the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .errors import printable

_LONG, _AROUND = 4000, 120  # characters of a text that is shown whole; shown around entities of a longer one
_KEPT = "\n\t\u200c\u200d"  # line ends, and what joins letters of Persian or parts of an emoji


def marked(text: str, entities: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Yield a text in parts, each with its entities; those that overlap share one. A long text is cut around them."""
    groups: list[list[Mapping[str, Any]]] = []
    at = end = 0
    for one in sorted(entities, key=lambda one: (one["start"], -one["end"])):
        if one["start"] >= end:
            groups.append([])
        groups[-1].append(one)
        end = max(end, one["end"])
    around = len(text) if len(text) <= _LONG else _AROUND
    for group in groups:
        start, end = group[0]["start"], max(one["end"] for one in group)
        yield _cut(text[at:start], around if at else 0, around), []
        yield text[start:end], group
        at = end
    yield _cut(text[at:], around, 0), []


def _cut(text: str, first: int, last: int) -> str:
    return text if len(text) <= first + last else f"{text[:first]} … {text[len(text) - last :]}"


def _start(text: str) -> str:
    return text if len(text) <= _LONG else _cut(text, _AROUND, 0)


def digits(score: float) -> str:
    """Return a score with three digits, and a large one whole."""
    return f"{score:.3g}" if abs(score) < 1000 else f"{score:,.0f}"


def parts(result: Mapping[str, Any]) -> Iterator[tuple[str, str | None, str]]:
    """Yield a result in parts: text, the label that it is about, and that label with its score."""
    if "entities" in result:
        for text, found in marked(result["text"], result["entities"]):
            tags = (f"{one['label']} {digits(one['score'])}" for one in found)
            yield text, found[0]["label"] if found else None, ", ".join(tags)
        return
    if "vector" in result:
        yield "", "", f"{len(result['vector'])} dimensions"
        yield f" {_start(result['text'])}", None, ""
        return
    one = result.get("label") or result.get("answer")
    labels = [one] if one else result.get("labels", [])
    # Of several labels top_k may leave out the score of one that applies.
    scores = dict.fromkeys(labels, result["score"]) if "score" in result else result.get("scores", {})
    for label in labels:
        yield "", label, f"{label} {digits(scores[label])}" if label in scores else label
    if not labels:
        yield "", "", "none" if {"label", "labels", "answer"} & result.keys() else digits(result["score"])
    text = "  |  ".join(result[key] for key in ("text", "pair") if key in result)
    yield f" {_start(text)}", None, ""
    if "cut" in result:
        yield f" ({result['cut']:,} tokens not read)", None, ""


def line(result: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yield a line about a result in parts, each with its label; what could command a terminal is spelled out."""
    known = " ".join(str(result[key]) for key in ("file", "id") if key in result)
    for text, label, tag in [(f"{known}: " if known else "", None, ""), *parts(result)]:
        shown = text if label is None else f"[{f'{text} {tag}'.lstrip(' ')}]"
        yield "".join(one if one in _KEPT else printable(one) for one in shown.replace("\r\n", "\n")), label
