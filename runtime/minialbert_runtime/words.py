"""Words of a text with their place in it; entities as character spans, and as IOB2 tags of the words.

What a word of running text is stands here alone. A text is cut at whitespace, and every punctuation mark is a word of
its own, but for what a model's own `WordRule` says, which was learnt from the words that the model was tuned on.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .errors import UserError, quoted, shown

TAG = re.compile(r"O|([BI])-(.+)", re.DOTALL)
Part = tuple[int, int, str]  # start and end (exclusive) in a text, and kind

_RUNS = ("x", "X", "9")
_RUN_BORDERS = ("X|9", "9|X")
_OF_NUMBERS = ".,:%"
_JOINER = "\u200d"
# Hyphens and apostrophes that look alike.
_ALIKE = {"\u2010": "-", "\u2011": "-", "\u2019": "'", "\u02bc": "'"}
# BERT's list of ideograph blocks, with the planes 2 and 3 as a whole.
_IDEOGRAPHS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


@dataclass(frozen=True, slots=True)
class Span:
    """An entity in a text."""

    start: int  # its first character
    end: int  # the character after its last
    label: str  # its type ("Disease")


@dataclass(frozen=True)
class WordRule:
    """Which words of running text hold punctuation; none does without a word about it.

    A border lies between two neighbours that no whitespace parts: runs of letters, runs of digits, and single marks.
    Its keys (`border_keys`) go from the closest description to the widest, and the first that is listed decides. If
    none is, letters and digits stay together, and all else is cut.
    """

    joined: tuple[str, ...] = ()  # keys of borders that lie inside a word
    cut: tuple[str, ...] = ()  # keys of borders that part two words
    whole: tuple[str, ...] = ()  # words that are kept as they are, whatever the keys say

    @cached_property
    def _decided(self) -> dict[str, bool]:
        return dict.fromkeys(self.joined, True) | dict.fromkeys(self.cut, False)

    @cached_property
    def _whole(self) -> frozenset[str]:
        return frozenset(self.whole)

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.whole), default=0)

    def split(self, text: str) -> list[tuple[int, int]]:
        """Return the start and end (exclusive) of each word of a text, as this rule cuts it.

        Of a rule that says nothing a run of letters, digits, underscores and combining marks is a word; an ideograph,
        and every other character but whitespace, is a word of its own. What is not seen by itself (soft hyphens,
        joiners, direction marks, variation selectors) belongs to what it stands beside.
        """
        parts = text_parts(text)
        joins = [keys is not None and self.joins(keys) for keys in borders(parts)]
        if self._whole:
            self._keep_whole(text, parts, joins)
        words: list[tuple[int, int]] = []
        for (start, end, _), is_joined in zip(parts, joins, strict=True):
            words.append((words.pop()[0] if is_joined else start, end))
        return words

    def joins(self, keys: Sequence[str]) -> bool:
        """Tell whether a border with such keys lies inside a word."""
        for key in keys:
            if key in self._decided:
                return self._decided[key]
        return keys[-1] in _RUN_BORDERS

    def _keep_whole(self, text: str, parts: Sequence[Part], joins: list[bool]) -> None:
        """Join the parts of the longest listed word that starts where a word does."""
        first = 0
        while first < len(parts):
            last = first + 1
            if not joins[first]:
                start, best = parts[first][0], first
                while last < len(parts) and parts[last][0] == parts[last - 1][1]:
                    if parts[last][1] - start > self._longest:
                        break
                    if text[start : parts[last][1]] in self._whole:
                        best = last
                    last += 1
                joins[first + 1 : best + 1] = [True] * (best - first)
                last = best + 1
            first = last


def word_rule(values: object) -> WordRule | None:
    """Return the rule that a task.json holds, None where there is none; ValueError for what is no such rule."""
    if values is None:
        return None
    names = [field.name for field in fields(WordRule)]
    if not isinstance(values, dict) or not {*values} <= {*names}:
        raise ValueError(f"words is not a mapping of {', '.join(names)}")
    lists = [values.get(name, []) for name in names]
    if not all(isinstance(part, list) and all(isinstance(item, str) for item in part) for part in lists):
        raise ValueError("words holds something else than lists of texts")
    return WordRule(*map(tuple, lists))


def text_parts(text: str) -> list[Part]:
    """Return the runs of letters, the runs of digits and the single marks of a text, each with its kind.

    That is "x" for a letter alone, "X" for letters, "9" for digits, else the mark.
    """
    parts: list[Part] = []
    start, letters, kind = -1, 0, ""  # of the part that is open; start is -1 where none is

    def close(end: int) -> None:
        if start >= 0:
            parts.append((start, end, "x" if kind == "X" and letters == 1 else kind or text[start]))

    for position, character in enumerate(text):
        its_kind = character_kind(character)
        goes_on = (
            its_kind == "beside"
            or not kind
            or (its_kind == kind and kind in ("9", "X"))
            or (its_kind == "picture" and kind not in ("9", "X") and text[position - 1] == _JOINER)
        )
        if its_kind == " " or not goes_on:
            close(position)
            start, letters, kind = -1, 0, ""
        if its_kind == " ":
            continue
        start = position if start < 0 else start
        if not kind and its_kind != "beside":
            kind = _ALIKE.get(character, character) if its_kind in ("mark", "picture") else its_kind
        letters += its_kind == "X"
    close(len(text))
    return parts


@lru_cache(maxsize=1 << 14)
def character_kind(character: str) -> str:
    """Return " " for whitespace, "X" or "9" for what runs on, "mark" or "picture", and "beside" for the unseen."""
    if character.isspace():
        return " "
    category, code = unicodedata.category(character), ord(character)
    # Format characters; combining marks with the variation selectors; the skin tones of pictographs.
    if category == "Cf" or category[0] == "M" or 0x1F3FB <= code <= 0x1F3FF:
        return "beside"
    if any(first <= code <= last for first, last in _IDEOGRAPHS):
        return "mark"
    if category[0] in "LN" or character == "_":
        return "9" if category[0] == "N" else "X"
    return "picture" if category == "So" else "mark"


def borders(parts: Sequence[Part]) -> list[tuple[str, ...] | None]:
    """Return the keys of the border before each part of a text, None where whitespace stands before it."""
    kinds = [kind for _, _, kind in parts]
    touches = [False] + [start == end for (_, end, _), (start, _, _) in pairwise(parts)] + [False]
    found: list[tuple[str, ...] | None] = []
    for at, kind in enumerate(kinds):
        before = kinds[at - 2] if touches[at - 1] else ""
        after = kinds[at + 1] if touches[at + 1] else ""
        found.append(border_keys(before, kinds[at - 1], kind, after) if touches[at] else None)
    return found


@lru_cache(maxsize=1 << 14)
def border_keys(before: str, left: str, right: str, after: str) -> tuple[str, ...]:
    """Return the keys of a border between two parts, by the kinds of four, from the closest description to the widest.

    A mark is described with what stands behind it: "X|-X" is the border before the hyphen of "beta-blocker", "X-|X"
    the one after it, "9|%$" that of "10%", "^(|X" that of "(see". Wider keys do not tell a single letter from several
    ("X" for both), then not letters from digits ("w"), but for marks that mean another thing in numbers. Closer is
    ".x|.$", after an earlier dot of the same word. `before` and `after` are "" where there is none, or whitespace.
    """
    if left in _RUNS and right in _RUNS:
        keys = [f"{left}|{right}", f"{left}|{right}".upper()]
    elif left not in _RUNS and right not in _RUNS:
        keys = [f"{left}|{right}"]
    elif left in _RUNS:
        pairs = _wider(right, left, "$" if after not in _RUNS else after)
        again = [f"{right}{run}|{right}{last}" for run, last in pairs] if before == right else []
        keys = again + [f"{run}|{right}{last}" for run, last in pairs]
    else:
        keys = [
            f"{first}{left}|{run}"
            for first, run in _wider(left, "^" if before not in _RUNS else before, right)
        ]
    return tuple(dict.fromkeys(keys))


def _wider(mark: str, *kinds: str) -> list[tuple[str, ...]]:
    levels = [kinds, tuple("X" if kind == "x" else kind for kind in kinds)]
    if mark not in _OF_NUMBERS:
        levels.append(tuple("w" if kind in _RUNS else kind for kind in kinds))
    return levels


def spans_to_tags(
    text: str, spans: Sequence[Span], rule: WordRule | None = None, *, at_spans: bool = True
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...], tuple[str, ...]]:
    """Return the words of a text, their offsets, and IOB2 tags for the entities in it.

    Whitespace at the ends of an entity is left out of it. Words are split also where an entity starts or ends inside
    one, so that each entity is a run of whole words; without `at_spans` a word that holds a part of an entity has the
    tag of the first of them. A ValueError tells of a span that is empty, holds only whitespace, reaches outside the
    text, has no label, or overlaps another in more than whitespace.
    """
    pairs = sorted(((_trimmed(text, span), span) for span in spans), key=lambda pair: pair[0].start)
    for (before, before_given), (after, after_given) in pairwise(pairs):
        if after.start < before.end:
            raise ValueError(
                f"{_described(after_given)} overlaps {_described(before_given)}: expected spans that share no word"
            )
    entities = [span for span, _ in pairs]
    cuts = sorted({border for span in entities for border in (span.start, span.end)}) if at_spans else []
    offsets = tuple(_split_at((rule or WordRule()).split(text), cuts))
    tags = ["O"] * len(offsets)
    waiting = iter(entities)
    span = next(waiting, None)
    for index, (start, end) in enumerate(offsets):
        while span is not None and span.end <= start:
            span = next(waiting, None)
        if span is not None and span.start < end:
            tags[index] = f"{'B' if start <= span.start else 'I'}-{span.label}"
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

    An I- tag that follows nothing or another type starts an entity, as in conlleval. Offsets are those of whole words,
    or of tokens that carry a space in front. Where the text is given, offsets outside it are a ValueError, as other
    tags are, and whitespace at the ends of an entity is left out of it.
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


@lru_cache(maxsize=16)
def _broken(labels: tuple[str, ...]) -> NDArray[np.bool_]:
    """Return which tag may not follow which, (labels + 1, labels); the last row is of a text's first word."""
    inside = np.array([label.startswith("I-") and f"B-{label[2:]}" in labels for label in labels])
    kinds = np.array([label[2:] for label in labels] + [""])
    return np.asarray(inside & (kinds[:, None] != kinds[:-1]))


def likeliest_path(logits: NDArray[np.floating], labels: tuple[str, ...]) -> NDArray[np.intp]:
    """Return the ids of the allowed tags with the largest sum of logits, (words,), from logits (words, labels).

    An I- tag may only follow a B- or I- tag of its type; one whose type has no B- tag may stand everywhere.
    """
    best, broken = logits.argmax(axis=1), _broken(labels)
    if not broken[np.r_[len(labels), best][:-1], best].any():
        return best  # each the largest, so that no sum is larger
    costs, values = np.where(broken, -np.inf, 0.0), logits.astype(np.float64)
    sums, back = values[0] + costs[-1], []
    for row in values[1:]:
        paths = sums[:, None] + costs[:-1]
        back.append(paths.argmax(axis=0))
        sums = paths.max(axis=0) + row
    path = [sums.argmax()]
    for before in reversed(back):
        path.append(before[path[-1]])
    return np.array(path[::-1])


def check_tags(labels: Sequence[str], where: str = "") -> None:
    """Refuse labels of a tagger that are no IOB2 tags; `where` begins the message, as in "config.json: "."""
    if not all(map(TAG.fullmatch, labels)):
        names = ", ".join(labels[:6])
        raise UserError(
            f"{where}entities need a model whose labels are O, B-TYPE and I-TYPE; this one has {names}"
        )
