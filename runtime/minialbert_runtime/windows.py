"""Texts, pairs and words as model inputs; what is longer than an input is cut into windows that overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tokenizers import Encoding, Tokenizer

from .errors import UserError, one_line, panics_as_errors, shown

Text = str | tuple[str, str]

_GROUP = 1024  # sentences whose encodings, large beside their ids, are in memory together


@dataclass(frozen=True, slots=True)
class Row:
    """One model input, with its special tokens; the types only where the model was trained with them.

    Of a question and a text, `offsets` are the characters of the text's tokens, which begin at position `first`.
    """

    input_ids: list[int]
    token_type_ids: list[int] | None = None
    first: int = 0
    offsets: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class TextWindows:
    """The windows of one text or pair."""

    rows: list[Row]
    # Tokens of the text that each window is the first to hold; its share of the prediction.
    weights: list[int]
    cut: int = 0  # tokens that no window holds: at the end of a pair's shorter text, or of all that is cut
    tokens: int = 0  # of the text or pair, without special ones


@dataclass(frozen=True, slots=True)
class WordWindow:
    """A window of a sentence's words as model input."""

    input_ids: tuple[int, ...]  # with the special tokens
    # The word of each position, by its place in the sentence; -1 for special tokens and words of another window.
    words: tuple[int, ...]

    @property
    def first_pieces(self) -> tuple[list[int], list[int]]:
        """Positions of the first piece of each word that belongs here, and those words."""
        before = (-1, *self.words)
        positions = [at for at, word in enumerate(self.words) if word >= 0 and word != before[at]]
        return positions, [self.words[at] for at in positions]


class Cutter:
    """Turns texts into model inputs with a `tokenizers` tokenizer, which neither truncates nor pads.

    An input has at most `max_length` tokens, special tokens included, of which neighbouring windows share `overlap` at
    most. The padding token stands for a text without tokens where there are no special ones either, the unknown token
    for a word without. `long_texts` are in "windows", or "cut" to the first; words are always in windows.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        overlap: int,
        pad_token_id: int,
        unknown_token_id: int,
        token_types: bool = True,
        long_texts: str = "windows",
    ) -> None:
        self.tokenizer = tokenizer
        self._max_length, self._overlap = max_length, overlap
        self.pad_token_id, self.unknown_token_id = pad_token_id, unknown_token_id
        self._token_types, self._cuts_texts = token_types, long_texts == "cut"
        self._single = _Layout(tokenizer, paired=False)

    @cached_property
    def _paired(self) -> _Layout:
        return _Layout(self.tokenizer, paired=True)

    def layout(self, *, paired: bool) -> list[tuple[int, int, int | None]]:
        """Return id, token type and None of each special token of an input, and 0 or 1 where a text is put in."""
        positions = (self._paired if paired else self._single).positions
        texts = [sequence for _, _, sequence in positions]
        return [one for at, one in enumerate(positions) if one[2] is None or texts.index(one[2]) == at]

    def texts(self, texts: Sequence[Text]) -> Iterator[TextWindows]:
        """Yield the windows of each text or pair.

        Of a pair the longer text is windowed (the second, if both are as long) and the shorter is repeated in every
        window, cut to half of the window where it is longer than that.
        """
        parts = [text if isinstance(text, tuple) else (text,) for text in texts]
        flat = [part for its_parts in parts for part in its_parts]
        encodings = iter(self._encode(flat))
        for its_parts in parts:
            yield self._cut([next(encodings).ids for _ in its_parts])

    def contexts(self, pairs: Sequence[tuple[str, str]]) -> Iterator[TextWindows]:
        """Yield the windows of each text that holds the answer to a question, which is repeated in every window.

        A question that fills more than half of a window loses its end.
        """
        marks = [sequence for _, _, sequence in self._paired.positions]
        encodings = iter(self._encode([part for pair in pairs for part in pair]))
        for _ in pairs:
            question, text = next(encodings).ids, next(encodings)
            room, size = self._room(self._paired, "text"), len(text.ids)
            asked = question[: room // 2]
            room -= len(asked)
            rows: list[Row] = []
            begin = seen = 0
            while not rows or seen < size:
                seen = min(begin + room, size)
                row = self._row(self._paired, [asked, text.ids[begin:seen]])
                first = marks[: marks.index(1)].count(None) + len(asked)
                rows.append(replace(row, first=first, offsets=text.offsets[begin:seen]))
                begin = seen - min(self._overlap, room // 2)
            yield TextWindows(rows, [1] * len(rows), len(question) - len(asked), len(question) + size)

    def _encode(self, batch: list[Any], *, is_pretokenized: bool = False) -> list[Encoding]:
        try:
            with panics_as_errors():
                return self.tokenizer.encode_batch(
                    batch, is_pretokenized=is_pretokenized, add_special_tokens=False
                )
        except (TypeError, ValueError):  # of the texts
            raise
        except Exception as error:  # tokenizers raises Exception itself
            raise UserError(
                f"the tokenizer cannot take a text apart ({shown(one_line(error), 120)}): is tokenizer.json whole?"
            ) from error

    def _cut(self, parts: list[list[int]]) -> TextWindows:
        layout = self._paired if len(parts) == 2 else self._single
        longer, lost, tokens = 0, 0, sum(map(len, parts))
        if tokens + layout.special_tokens <= self._max_length:
            return TextWindows([self._row(layout, parts)], [1], 0, tokens)
        room = self._room(layout, "text")
        if len(parts) == 2:
            longer = 0 if len(parts[0]) > len(parts[1]) else 1
            shorter = parts[1 - longer]
            parts[1 - longer] = shorter[: room // 2]
            lost = len(shorter) - len(parts[1 - longer])
            room -= len(parts[1 - longer])
        content = parts[longer]
        shared = min(self._overlap, room // 2)
        rows, weights, seen, begin = [], [], 0, 0
        while seen < len(content):
            end = min(begin + room, len(content))
            parts[longer] = content[begin:end]
            rows.append(self._row(layout, parts))
            weights.append(end - seen)
            seen, begin = end, end - shared
            if self._cuts_texts:
                lost += len(content) - seen
                break
        return TextWindows(rows, weights, lost, tokens)

    def _room(self, layout: _Layout, what: str) -> int:
        room = self._max_length - layout.special_tokens
        if room < 1:
            raise UserError(
                f"max_length {self._max_length} leaves no room for {what} beside {layout.special_tokens} special "
                "tokens: give a larger one"
            )
        return room

    def _row(self, layout: _Layout, parts: Sequence[list[int]]) -> Row:
        ids, types = layout.fill(parts)
        return Row(ids or [self.pad_token_id], (types or [0]) if self._token_types else None)

    def words(self, texts: Sequence[Sequence[str]]) -> Iterator[list[WordWindow]]:
        """Yield the windows of each text's words, cut at word boundaries.

        Every word belongs to exactly one window, the one in which it has most context: of the words that two share,
        the first half belongs to the one before. A word without pieces (a control character) becomes the unknown
        token; one that is longer than a window loses its end.
        """
        room = self._room(self._single, "words")
        for begin in range(0, len(texts), _GROUP):
            group = texts[begin : begin + _GROUP]
            filled = [list(words) for words in group if words]
            encodings = iter(self._encode(filled, is_pretokenized=True))
            for words in group:
                yield self._word_windows(len(words), next(encodings), room) if words else []

    def _word_windows(self, count: int, encoding: Encoding, room: int) -> list[WordWindow]:
        pieces: list[list[int]] = [[] for _ in range(count)]
        for piece, word in zip(encoding.ids, encoding.word_ids, strict=True):
            if word is not None:  # only special tokens belong to no word
                pieces[word].append(piece)
        pieces = [its_pieces[:room] or [self.unknown_token_id] for its_pieces in pieces]
        spans = list(_spans([len(its_pieces) for its_pieces in pieces], room, self._overlap))
        windows, first_owned = [], 0
        for index, (begin, end) in enumerate(spans):
            last_owned = end
            if index + 1 < len(spans):
                begin_next = spans[index + 1][0]
                last_owned = begin_next + (end - begin_next + 1) // 2
            ids: list[int] = []
            indices: list[int] = []
            for word in range(begin, end):
                ids += pieces[word]
                indices += [word if first_owned <= word < last_owned else -1] * len(pieces[word])
            before = [-1] * self._single.before
            whole, _ = self._single.fill([ids])
            after = [-1] * (len(whole) - len(before) - len(ids))
            windows.append(WordWindow(tuple(whole), (*before, *indices, *after)))
            first_owned = last_owned
        return windows


class _Layout:
    """Where a tokenizer puts special tokens and token types, read off a text that it encoded."""

    def __init__(self, tokenizer: Tokenizer, *, paired: bool) -> None:
        try:
            with panics_as_errors(silent=True):
                probe = tokenizer.encode("the end", "the end" if paired else None)
        except Exception as error:  # tokenizers raises Exception itself
            raise UserError(
                f"the tokenizer cannot take plain words apart ({shown(one_line(error), 120)}): is tokenizer.json whole?"
            ) from error
        self.positions = list(zip(probe.ids, probe.type_ids, probe.sequence_ids, strict=True))
        if 0 not in probe.sequence_ids:
            raise UserError("the tokenizer finds no token in plain words: tokenizer.json has no vocabulary")
        self.special_tokens = probe.sequence_ids.count(None)
        self.before = probe.sequence_ids.index(0)

    def fill(self, parts: Sequence[list[int]]) -> tuple[list[int], list[int]]:
        """Return the ids and the token types of texts as one input."""
        ids: list[int] = []
        types: list[int] = []
        waiting = dict(enumerate(parts))
        for token, token_type, sequence in self.positions:
            content = [token] if sequence is None else waiting.pop(sequence, [])
            ids += content
            types += [token_type] * len(content)
        return ids, types


def _spans(lengths: Sequence[int], room: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Yield first and last word (exclusive) of each window."""
    begin = 0
    while begin < len(lengths):
        end, taken = begin, 0
        while end < len(lengths) and taken + lengths[end] <= room:
            taken += lengths[end]
            end += 1
        yield begin, end
        if end == len(lengths):
            return
        start, shared = end, 0
        while start - 1 > begin and shared + lengths[start - 1] <= overlap:
            start -= 1
            shared += lengths[start]
        # Repeat only as much as leaves room for the next word.
        while start < end and shared + lengths[end] > room:
            shared -= lengths[start]
            start += 1
        begin = start
