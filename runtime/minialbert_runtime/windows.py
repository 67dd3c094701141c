"""Texts, pairs and words as model inputs; what is longer than an input is cut into windows that overlap.

The rules are those of `minialbert.data.text_windows` and `minialbert.data.task_inputs`, which need Transformers; the
main test suite holds both equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer

from .errors import RuntimeUserError

Text = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """One model input, with its special tokens."""

    input_ids: list[int]
    token_type_ids: list[int]


@dataclass(frozen=True, slots=True)
class TextWindows:
    """The windows of one text or pair.

    Attributes:
        rows: model inputs.
        weights: how many tokens of the text each window is the first to hold; their share of the prediction.
        cut: tokens at the end of a pair's shorter text that no window holds.
    """

    rows: list[Row]
    weights: list[int]
    cut: int = 0


@dataclass(frozen=True, slots=True)
class WordWindow:
    """A window of a text's words.

    Attributes:
        row: the model input.
        first_pieces: position in the input, and index in the text, of each word that this window decides.
    """

    row: Row
    first_pieces: list[tuple[int, int]]


class Cutter:
    """Turns texts into model inputs with a `tokenizers` tokenizer.

    Args:
        tokenizer: neither truncates nor pads.
        max_length: tokens of an input at most, special tokens included.
        overlap: tokens that neighbouring windows share at most.
        pad_token_id: stands for a text without tokens where there are no special ones either.
        unknown_token_id: stands for a word without tokens.

    Raises:
        RuntimeUserError: the special tokens leave no room for text, or the tokenizer knows no word.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, max_length: int, overlap: int, pad_token_id: int, unknown_token_id: int
    ) -> None:
        self._tokenizer = tokenizer
        self._max_length, self._overlap = max_length, overlap
        self._pad, self._unknown = pad_token_id, unknown_token_id
        self._layouts = {paired: _Layout(tokenizer, paired=paired) for paired in (False, True)}
        special = max(layout.special_tokens for layout in self._layouts.values())
        if special >= max_length:
            raise RuntimeUserError(
                f"max_length {max_length} leaves no room for text beside {special} special tokens"
            )

    def texts(self, texts: Sequence[Text]) -> Iterator[TextWindows]:
        """Yield the windows of each text or pair.

        Of a pair the longer text is windowed (the second, if both are as long) and the shorter is repeated in every
        window, cut to half of the window where it is longer than that.

        Args:
            texts: texts, and pairs of texts.

        Yields:
            At least one window for each.
        """
        parts = [text if isinstance(text, tuple) else (text,) for text in texts]
        flat = [part for its_parts in parts for part in its_parts]
        encodings = iter(self._tokenizer.encode_batch(flat, add_special_tokens=False))
        for its_parts in parts:
            yield self._cut([next(encodings).ids for _ in its_parts])

    def _cut(self, parts: list[list[int]]) -> TextWindows:
        layout = self._layouts[len(parts) == 2]
        room, longer, lost = self._max_length - layout.special_tokens, 0, 0
        if sum(map(len, parts)) <= room:
            row = layout.row(parts)
            return TextWindows([row if row.input_ids else Row([self._pad], [0])], [1])
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
            rows.append(layout.row(parts))
            weights.append(end - seen)
            seen, begin = end, end - shared
        return TextWindows(rows, weights, lost)

    def words(self, texts: Sequence[Sequence[str]]) -> Iterator[list[WordWindow]]:
        """Yield the windows of each text's words, cut at word boundaries.

        Every word belongs to exactly one window: of the words that two share, the first half belongs to the one
        before. A word without pieces becomes the unknown token; one that is longer than a window loses its end.

        Args:
            texts: the words of each text.

        Yields:
            The windows; none for a text without words.
        """
        filled = [list(words) for words in texts if words]
        encodings = iter(self._tokenizer.encode_batch(filled, is_pretokenized=True, add_special_tokens=False))
        for words in texts:
            yield self._word_windows(len(words), next(encodings)) if words else []

    def _word_windows(self, count: int, encoding: Encoding) -> list[WordWindow]:
        layout = self._layouts[False]
        room = self._max_length - layout.special_tokens
        pieces: list[list[int]] = [[] for _ in range(count)]
        for piece, word in zip(encoding.ids, encoding.word_ids, strict=True):
            if word is not None:  # only special tokens belong to no word
                pieces[word].append(piece)
        pieces = [its_pieces[:room] or [self._unknown] for its_pieces in pieces]
        spans = list(_spans([len(its_pieces) for its_pieces in pieces], room, self._overlap))
        windows, first_owned = [], 0
        for index, (begin, end) in enumerate(spans):
            last_owned = end
            if index + 1 < len(spans):
                begin_next = spans[index + 1][0]
                last_owned = begin_next + (end - begin_next + 1) // 2
            ids: list[int] = []
            first_pieces = []
            for word in range(begin, end):
                if first_owned <= word < last_owned:
                    first_pieces.append((layout.before + len(ids), word))
                ids += pieces[word]
            windows.append(WordWindow(layout.row([ids]), first_pieces))
            first_owned = last_owned
        return windows


class _Layout:
    """Where a tokenizer puts special tokens and token types, read off a text that it encoded."""

    def __init__(self, tokenizer: Tokenizer, *, paired: bool) -> None:
        probe = tokenizer.encode("the end", "the end" if paired else None)
        self._positions = list(zip(probe.ids, probe.type_ids, probe.sequence_ids, strict=True))
        if 0 not in probe.sequence_ids:
            raise RuntimeUserError(
                "the tokenizer finds no token in plain words: tokenizer.json has no vocabulary"
            )
        self.special_tokens = probe.sequence_ids.count(None)
        self.before = probe.sequence_ids.index(0)

    def row(self, parts: Sequence[list[int]]) -> Row:
        """Return texts as one input."""
        ids: list[int] = []
        types: list[int] = []
        waiting = dict(enumerate(parts))
        for token, token_type, sequence in self._positions:
            content = [token] if sequence is None else waiting.pop(sequence, [])
            ids += content
            types += [token_type] * len(content)
        return Row(ids, types)


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
