"""Words of a text with their place in it; entities as character spans, and as IOB2 tags of the words.

What a word of running text is stands here alone: for texts that are labelled, and for texts with spans that a tagger is
trained on. Training data that come as words keep theirs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from .errors import UserError, quoted, shown

TAG = re.compile(r"O|([BI])-(.+)", re.DOTALL)
# BERT's list of ideograph blocks, with the planes 2 and 3 as a whole.
_IDEOGRAPHS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


@dataclass(frozen=True, slots=True)
class Span:
    """An entity in a text.

    Attributes:
        start: its first character.
        end: the character after its last.
        label: its type ("Disease").
    """

    start: int
    end: int
    label: str


def split_words(text: str) -> list[tuple[int, int]]:
    """Return the start and end (exclusive) of each word of a text.

    A run of letters, digits, underscores and combining marks is a word; an ideograph, and every other character
    that is no whitespace, is a word of its own. So each character stands in one word, or is whitespace.

    Args:
        text: any text.

    Returns:
        The words in the order of the text.
    """
    words: list[tuple[int, int]] = []
    run_start: int | None = None
    for position, character in enumerate(text):
        kind = _kind(character)
        if kind == "run":
            run_start = position if run_start is None else run_start
            continue
        if run_start is not None:
            words.append((run_start, position))
            run_start = None
        if kind == "single":
            words.append((position, position + 1))
    if run_start is not None:
        words.append((run_start, len(text)))
    return words


@lru_cache(maxsize=1 << 14)
def _kind(character: str) -> Literal["space", "run", "single"]:
    if character.isspace():
        return "space"
    if character != "_" and unicodedata.category(character)[0] not in "LMN":
        return "single"
    code = ord(character)
    return "single" if any(first <= code <= last for first, last in _IDEOGRAPHS) else "run"


def spans_to_tags(
    text: str, spans: Sequence[Span]
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...], tuple[str, ...]]:
    """Return the words of a text, their offsets, and IOB2 tags for the entities in it.

    Words are also split where an entity starts or ends inside one, so that each entity is a run of whole words.
    Whitespace at the ends of an entity is left out of it.

    Args:
        text: the text.
        spans: the entities, in any order.

    Returns:
        Words, start and end of each, and the tag of each.

    Raises:
        ValueError: a span is empty, holds only whitespace, reaches outside the text, has no label, or overlaps another
            in more than whitespace.
    """
    pairs = sorted(((_trimmed(text, span), span) for span in spans), key=lambda pair: pair[0].start)
    for (before, before_given), (after, after_given) in pairwise(pairs):
        if after.start < before.end:
            raise ValueError(
                f"{_described(after_given)} overlaps {_described(before_given)}: expected spans that share no word"
            )
    entities = [span for span, _ in pairs]
    cuts = sorted({border for span in entities for border in (span.start, span.end)})
    offsets = tuple(_split_at(split_words(text), cuts))
    tags = ["O"] * len(offsets)
    waiting = iter(entities)
    span = next(waiting, None)
    for index, (start, end) in enumerate(offsets):
        while span is not None and span.end <= start:
            span = next(waiting, None)
        if span is not None and span.start <= start and end <= span.end:
            tags[index] = f"{'B' if start == span.start else 'I'}-{span.label}"
    return tuple(text[start:end] for start, end in offsets), offsets, tuple(tags)


def _trimmed(text: str, span: Span) -> Span:
    if not span.label.strip():
        raise ValueError(f"the span {shown(span.start, 20)}-{shown(span.end, 20)} has no label")
    if not 0 <= span.start <= len(text) or not 0 <= span.end <= len(text):
        raise ValueError(
            f"{_described(span)} reaches outside the text, which has {len(text)} characters: expected 0 <= start < end "
            f"<= {len(text)}"
        )
    if span.start >= span.end:
        raise ValueError(f"{_described(span)} is empty: expected an end (exclusive) after the start")
    start, end = _without_whitespace(text, span.start, span.end)
    if start == end:
        raise ValueError(f"{_described(span)} holds only whitespace")
    return Span(start, end, span.label)


def _without_whitespace(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _described(span: Span) -> str:
    return f"the span {shown(span.start, 20)}-{shown(span.end, 20)} ({shown(span.label)})"


def _split_at(words: Sequence[tuple[int, int]], cuts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the words in pieces that no cut falls into; the cuts are sorted."""
    next_cut = 0
    for start, end in words:
        while next_cut < len(cuts) and cuts[next_cut] < end:
            if cuts[next_cut] > start:
                yield start, cuts[next_cut]
                start = cuts[next_cut]
            next_cut += 1
        yield start, end


def tags_to_spans(
    tags: Sequence[str], offsets: Sequence[tuple[int, int]], text: str | None = None
) -> list[Span]:
    """Return the entities that IOB2 tags mark, as character spans.

    An I- tag that follows nothing or another type starts an entity, as in conlleval.

    Args:
        tags: O, B-TYPE or I-TYPE.
        offsets: start and end (exclusive) of each word; whole words, or tokens that carry a space in front.
        text: the text; where given, offsets outside it are refused, and whitespace at the ends of an entity is left
            out of it.

    Returns:
        The entities in the order of the text.

    Raises:
        ValueError: there are more or fewer tags than offsets, a tag is not IOB2, or an offset is outside the text.
    """
    if len(tags) != len(offsets):
        raise ValueError(f"{len(tags)} tags and {len(offsets)} offsets: expected one for each word")
    spans = [Span(offsets[first][0], offsets[last][1], label) for label, first, last in _labelled_runs(tags)]
    if text is None:
        return spans
    for span in spans:
        if not 0 <= span.start <= span.end <= len(text):
            raise ValueError(f"{_described(span)} reaches outside the text, which has {len(text)} characters")
    trimmed = [Span(*_without_whitespace(text, span.start, span.end), span.label) for span in spans]
    return [span for span in trimmed if span.start < span.end]


def _labelled_runs(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Yield the type, the first and the last word of each entity."""
    current: tuple[str, int] | None = None
    for index, tag in enumerate(tags):
        match = TAG.fullmatch(tag)
        if match is None:
            raise ValueError(f"the tag {quoted(tag)} of word {index} is not O, B-TYPE or I-TYPE")
        prefix, label = match.groups()
        if current is not None and (prefix != "I" or label != current[0]):
            yield *current, index - 1
            current = None
        if label is not None and current is None:
            current = (label, index)
    if current is not None:
        yield *current, len(tags) - 1


def check_tags(labels: Sequence[str], where: str = "") -> None:
    """Refuse labels that are no IOB2 tags.

    Args:
        labels: of a tagger.
        where: what the message begins with, as in "config.json: ".

    Raises:
        UserError: naming the first labels.
    """
    if not all(map(TAG.fullmatch, labels)):
        names = ", ".join(labels[:6])
        raise UserError(
            f"{where}entities need a model whose labels are O, B-TYPE and I-TYPE; this one has {names}"
        )
