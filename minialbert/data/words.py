"""The rule by which running text is cut into words, learnt from the words of training data and kept with the model."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, cast

from minialbert_runtime.words import Span, WordRule, borders, spans_to_tags, tags_to_spans, text_parts

from minialbert.errors import quoted

if TYPE_CHECKING:
    from minialbert.data.examples import Example, Task, TokenExample

_MOST_WHOLE = 5000  # words that are kept as they are, the most frequent first
_LONGEST_RUN = 6  # words whose letters together may be another word of the file
_CLOSING = ".,;:!?%\u2026"
_OPENING = "$\u00a3\u20ac#"
_Chunk = tuple[str, ...]  # words that no whitespace parts


def learn_words(sentences: Sequence[Example]) -> tuple[WordRule, str]:
    """Return the rule that cuts running text into words as training data have them, and a line that states it.

    For every border inside a word and between two words that touch, all its keys are counted, and the majority
    decides. A file of words does not say which of them touch: a word that is a closing mark touches what stands before
    it, an opening one what follows, any other single mark both. Words that the keys do not make are listed, if their
    parts do not stand more often as words of their own.
    """
    chunks = Counter(chunk for sentence in _tagged(sentences) for chunk in _chunks(sentence))
    words: Counter[str] = Counter()
    inside: Counter[tuple[str, ...]] = Counter()
    between: Counter[tuple[str, ...]] = Counter()
    apart: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for keys, is_cut in _borders_of(chunk):
            (between if is_cut else inside)[keys] += count
        for word in chunk:
            words[word] += count
            if len(chunk) > 1:  # in the joined text the word stands alone
                for keys, _ in _borders_of((word,)):
                    inside[keys] += count
        for size in range(2, min(len(chunk), _LONGEST_RUN) + 1):
            for first in range(len(chunk) - size + 1):
                apart["".join(chunk[first : first + size])] += count
    rule = _majority(inside, between)
    lost = [word for word, count in words.most_common() if count > apart[word] and not _makes(rule, word)]
    whole = [word for word in lost if not any(map(str.isspace, word))]
    rule = replace(rule, whole=tuple(sorted(whole[:_MOST_WHOLE])))
    return rule, _statement(rule, [word for word in lost if not _makes(rule, word)])


def _tagged(sentences: Sequence[Example]) -> Sequence[TokenExample]:
    return cast("Sequence[TokenExample]", sentences)


def _chunks(sentence: TokenExample) -> Iterator[_Chunk]:
    """Yield the words of a sentence, those that touch in running text together."""
    chunk: list[str] = []
    for index, word in enumerate(sentence.words):
        if chunk and not _touch(sentence, index):
            yield tuple(chunk)
            chunk = []
        chunk.append(word)
    if chunk:
        yield tuple(chunk)


def _touch(sentence: TokenExample, index: int) -> bool:
    """Tell whether a word stands right after the one before."""
    if sentence.offsets is not None:
        return sentence.offsets[index - 1][1] == sentence.offsets[index][0]
    left, right = sentence.words[index - 1], sentence.words[index]
    return (
        (_is_mark(right) and right not in _OPENING and unicodedata.category(right) not in ("Ps", "Pi"))
        or (_is_mark(left) and left not in _CLOSING and unicodedata.category(left) not in ("Pe", "Pf"))
        or (right[0] in "'\u2019" and len(right) > 1)
        or (left[-1] in "'\u2019" and len(left) > 1)
    )


def _is_mark(word: str) -> bool:
    return len(word) == 1 and not word.isalnum()


def _borders_of(chunk: _Chunk) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Yield the keys of each border of words that touch, and whether it lies between two of them."""
    text = "".join(chunk)
    starts = set(accumulate(map(len, chunk)))
    parts = text_parts(text)
    for (start, _, _), keys in zip(parts, borders(parts), strict=True):
        if keys is not None:
            yield keys, start in starts


def _majority(inside: Counter[tuple[str, ...]], between: Counter[tuple[str, ...]]) -> WordRule:
    """Return the shortest rule that decides every border as the majority of its closest key does."""
    balance: Counter[str] = Counter()
    for counts, sign in ((inside, 1), (between, -1)):
        for keys, count in counts.items():
            # The last dot of "b.i.d." says nothing of words that end in their first.
            after_another = [key for key in keys if len(key) > len(keys[-1])]
            balance.update(dict.fromkeys(after_another or keys, sign * count))
    decided: dict[str, bool] = {}
    for keys in {*inside, *between}:
        joins = WordRule().joins(keys)
        for key in reversed(keys):
            # On a draw what was counted changes nothing.
            wanted = balance[key] > 0 if balance[key] else joins
            if wanted != joins:
                decided[key] = joins = wanted
    return WordRule(
        joined=tuple(sorted(key for key, joins in decided.items() if joins)),
        cut=tuple(sorted(key for key, joins in decided.items() if not joins)),
    )


def _makes(rule: WordRule, word: str) -> bool:
    return rule.split(word) == [(0, len(word))]


def _statement(rule: WordRule, lost: Sequence[str]) -> str:
    places: dict[str, set[str]] = {"inside": set(), "at the end": set(), "at the start": set()}
    for key in rule.joined:
        left, right = key[: key.index("|", 1)], key[key.index("|", 1) + 1 :]
        if right[-1:] == "$":
            places["at the end"].add(right[0])
        elif len(left) > 1 and left[0] == "^":
            places["at the start"].add(left[-1])
        else:
            places["inside"].update(mark for mark in left[-1] + right[0] if mark not in "xX9w")
    said = [f"{' '.join(sorted(marks))} {place}" for place, marks in places.items() if marks]
    if any(all(part in "xX9w" for part in key.split("|")) for key in rule.cut):
        said.append("a cut between digits and letters")
    if rule.whole:
        more = ", …" if len(rule.whole) > 3 else ""
        said.append(f"{len(rule.whole):,} kept as they are ({', '.join(map(quoted, rule.whole[:3]))}{more})")
    cannot = f"; {len(lost):,} of train cannot be made, such as {quoted(lost[0])}" if lost else ""
    holds = f" but for {'; '.join(said)}" if said else ""
    return f"words: running text is cut at whitespace and at every punctuation mark{holds}{cannot}"


def running_text(sentence: TokenExample) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return a sentence as running text, its own or its words with a space between them, and the words' offsets."""
    if sentence.text is not None and sentence.offsets is not None:
        return sentence.text, sentence.offsets
    ends = list(accumulate(len(word) + 1 for word in sentence.words))
    offsets = tuple((end - 1 - len(word), end - 1) for word, end in zip(sentence.words, ends, strict=True))
    return " ".join(sentence.words), offsets


def gold_spans(sentence: TokenExample) -> list[Span]:
    """Return the entities of a tagged sentence by their place in its running text."""
    if sentence.spans is not None:
        return list(sentence.spans)
    return tags_to_spans(sentence.tags or (), running_text(sentence)[1])


def as_delivered(sentence: TokenExample, rule: WordRule, *, at_spans: bool = False) -> TokenExample:
    """Return a sentence with the words that a rule cuts its running text into, `at_spans` also where entities end."""
    text, _ = running_text(sentence)
    spans = gold_spans(sentence) if sentence.tags is not None else []
    words, offsets, tags = spans_to_tags(text, spans, rule, at_spans=at_spans)
    if sentence.tags is None:
        return replace(sentence, words=words, text=text, offsets=offsets)
    return replace(sentence, words=words, tags=tags, text=text, offsets=offsets, spans=tuple(spans))


def with_words(task: Task, rule: WordRule, *, tuning: bool) -> Task:
    """Return a token task whose running texts are cut by a rule, with a note on entities that end inside a word.

    For `tuning` the texts of train are also cut where an entity starts or ends. Nowhere else are they: nobody has
    those borders when a text is to be labelled. Sentences that came as words keep theirs.
    """
    splits, notes = {}, list(task.notes)
    for name, rows in task.splits.items():
        at_spans = tuning and name == "train"
        splits[name] = [
            row if row.text is None else as_delivered(row, rule, at_spans=at_spans) for row in _tagged(rows)
        ]
        notes += _notes_on_spans(name, splits[name], rule, at_spans=at_spans)
    return replace(task, splits=splits, notes=tuple(notes))


def _notes_on_spans(name: str, rows: Sequence[TokenExample], rule: WordRule, *, at_spans: bool) -> list[str]:
    total, example, count = 0, "", 0
    for row in rows:
        if not row.spans or row.text is None:
            continue
        words = rule.split(row.text)
        starts, ends = {start for start, _ in words}, {end for _, end in words}
        inside = [span for span in row.spans if span.start not in starts or span.end not in ends]
        total, count = total + len(row.spans), count + len(inside)
        if inside and not example:
            first = inside[0]
            held = [row.text[start:end] for start, end in words if start < first.end and first.start < end]
            example = f"{quoted(row.text[first.start : first.end])} in {quoted(' '.join(held))}"
    if not count:
        return []
    missed = "no word border meets them, so they count as missed"
    then = "words are cut there to learn them" if at_spans else missed
    return [f"{name}: {count:,} of {total:,} entities start or end inside a word, such as {example}: {then}"]


def split_differently(sentences: Sequence[Example], rule: WordRule) -> dict[int, TokenExample]:
    """Return the sentences whose words a rule does not make of their running text, as it cuts them, by number."""
    found = {}
    for index, sentence in enumerate(_tagged(sentences)):
        text, offsets = running_text(sentence)
        if sentence.spans is None and tuple(rule.split(text)) != offsets:
            found[index] = as_delivered(sentence, rule)
    return found
