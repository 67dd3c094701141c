"""Words of a text with their place in it, and the runs of words that IOB2 tags mark.

The rules are those of `minialbert.data.spans`, on which a tagger was trained; the main test suite holds both equal.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

# BERT's list of ideograph blocks, with the planes 2 and 3 as a whole.
_IDEOGRAPHS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


def split_words(text: str) -> list[tuple[int, int]]:
    """Return the start and end (exclusive) of each word of a text.

    A run of letters, digits, underscores and combining marks is a word; an ideograph, and every other character
    that is no whitespace, is a word of its own.

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


def entity_runs(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Yield the type, the first and the last word of each entity.

    An I- tag that follows nothing or another type starts an entity, as in conlleval.

    Args:
        tags: O, B-TYPE or I-TYPE, one for each word.

    Yields:
        The entities in the order of the words.
    """
    current: tuple[str, int] | None = None
    for index, tag in enumerate(tags):
        label = tag[2:]
        if current is not None and (tag[0] != "I" or label != current[0]):
            yield *current, index - 1
            current = None
        if label and current is None:
            current = (label, index)
    if current is not None:
        yield *current, len(tags) - 1
