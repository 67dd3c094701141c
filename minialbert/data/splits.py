"""Rows set apart at random, whole documents and patients together; and texts that stand in two splits."""

from __future__ import annotations

import random
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from itertools import combinations

_ANY = ""  # a class that every row is of
_FEWEST = 5  # words of a text that is compared: shorter ones recur by chance
_SKETCH, _ALIKE = 24, 0.8  # hashes kept of a text, and the share of them that near-same texts have in common
_MOST = 50_000  # texts that are compared for near-sameness
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Thai, Lao, kana, ideographs: each a word
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def apart(
    kinds: Sequence[Collection[str]], groups: Sequence[Hashable], fraction: float, seed: int = 0
) -> set[int]:
    """Returns the rows to set apart, so that each class has its share in both parts; none if they are too few.

    A class with two rows or more has one in each part, where rows of one group (a patient, a document, a text), which
    stay together, allow it. Which are chosen depends on the rows and the seed alone. `kinds` are the classes of each
    row, or the types of its entities.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    units = random.Random(seed).sample(list(members.values()), len(members))
    units.sort(key=lambda unit: len(unit) > fraction * len(kinds))  # those of many rows last
    counts = [Counter(kind for index in unit for kind in {_ANY, *kinds[index]}) for unit in units]
    left, taken = Counter[str](), Counter[str]()
    having: dict[str, list[int]] = {}
    for place, found in enumerate(counts):
        left.update(found)
        for kind in found:
            having.setdefault(kind, []).append(place)
    wanted = {kind: max(1, round(fraction * rows)) for kind, rows in left.items() if rows > 1}
    chosen: set[int] = set()
    for kind in sorted(wanted, key=lambda name: (left[name], name)):  # the rarest first
        for place in having[kind]:
            if taken[kind] >= wanted[kind]:
                break
            if place not in chosen and all(left[name] > number for name, number in counts[place].items()):
                chosen.add(place)
                taken.update(counts[place])
                left.subtract(counts[place])
    return {index for place in chosen for index in units[place]}


def shared_texts(splits: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yields for each two splits how many texts of the later also stand in the earlier, the same or nearly, if any.

    The same are texts with the same words, whatever their case and punctuation. Nearly the same are those that share
    four fifths of their runs of three words, by a sketch of them. Texts of fewer than five words are not compared.
    """
    near = sum(map(len, splits.values())) <= _MOST
    cut = {name: [_WORD.findall(plain(text)) for text in texts] for name, texts in splits.items()}
    words = {name: [one if len(one) >= _FEWEST else [] for one in texts] for name, texts in cut.items()}
    whole = {name: [" ".join(one) for one in texts] for name, texts in words.items()}
    sketches = {name: [_sketch(one) if near else () for one in texts] for name, texts in words.items()}
    for earlier, later in combinations(splits, 2):
        known = set(whole[earlier]) - {""}
        same = [one in known for one in whole[later]]
        alike = _alike(sketches[earlier], sketches[later])
        nearly = sum(one and not other for one, other in zip(alike, same, strict=True))
        if sum(same) or nearly:
            yield (
                f"{later}: {sum(same):,} of {len(same):,} texts stand in {earlier} too, and {nearly:,} more nearly so; "
                "scores on them say little about new texts"
            )


def plain(text: str) -> str:
    """Returns a text without what tells two spellings of the same words apart: case and the form of its accents."""
    return unicodedata.normalize("NFKC", text).casefold()


def _sketch(words: Sequence[str]) -> tuple[int, ...]:
    """Returns the smallest hashes of a text's runs of three words."""
    runs = {zlib.crc32(" ".join(words[at : at + 3]).encode()) for at in range(len(words) - 2)}
    return tuple(sorted(runs)[:_SKETCH])


def _alike(earlier: Sequence[tuple[int, ...]], later: Sequence[tuple[int, ...]]) -> list[bool]:
    """Tells for each later sketch whether an earlier one shares most of its hashes."""
    holders: dict[int, list[int]] = {}
    for place, sketch in enumerate(earlier):
        for one in sketch:
            holders.setdefault(one, []).append(place)
    found = []
    for sketch in later:
        # Runs that stand in many texts are of forms; a near copy shares rarer ones too.
        shared = Counter(place for one in sketch for place in holders.get(one, ())[:50])
        near = ((count, max(len(sketch), len(earlier[place]))) for place, count in shared.most_common(3))
        found.append(any(count >= _ALIKE * most for count, most in near))
    return found
