"""Texts and pairs of any length as model inputs: what is longer than the model's input is cut into windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minialbert.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Text = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class TextWindows:
    """The windows of one text or pair.

    Attributes:
        rows: model inputs, each with its special tokens: `input_ids`, perhaps `token_type_ids`.
        weights: how many tokens of the text each window is the first to hold; their share of the prediction.
        cut: tokens at the end of a pair's shorter text that no window holds.
    """

    rows: list[dict[str, list[int]]]
    weights: list[int]
    cut: int = 0


def text_windows(
    texts: Sequence[Text], tokenizer: PreTrainedTokenizerFast, *, max_length: int, overlap: int
) -> list[TextWindows]:
    """Return each text or pair as one input, or as windows that overlap when it is too long for one.

    Of a pair the longer text is windowed (the second, if both are as long) and the shorter is repeated in
    every window, cut to half of the window where it is longer than that.

    Args:
        texts: texts, and pairs of texts.
        tokenizer: a fast tokenizer.
        max_length: tokens of an input at most, special tokens included.
        overlap: tokens that neighbouring windows share; at most half of what fits into one.

    Returns:
        The windows of each text.

    Raises:
        UserError: if the special tokens leave no room for text.
    """
    windows: list[TextWindows | None] = [None] * len(texts)
    for paired in (False, True):
        indices = [index for index, text in enumerate(texts) if isinstance(text, tuple) is paired]
        if indices:
            cut = _windows_of_kind([texts[index] for index in indices], tokenizer, max_length, overlap)
            for index, result in zip(indices, cut, strict=True):
                windows[index] = result
    return [result for result in windows if result is not None]


def _windows_of_kind(
    texts: list[Text], tokenizer: PreTrainedTokenizerFast, max_length: int, overlap: int
) -> Iterator[TextWindows]:
    """Yield the windows of texts that are all single, or all pairs."""
    parts = [text if isinstance(text, tuple) else (text,) for text in texts]
    options: dict[str, Any] = {"truncation": False, "padding": False, "verbose": False}
    encoded = tokenizer(*map(list, zip(*parts, strict=True)), **options)
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    layout = _Layout(tokenizer, names, paired=len(parts[0]) == 2)
    for index, its_parts in enumerate(parts):
        row = {name: encoded[name][index] for name in names}
        if not row["input_ids"]:  # an empty text, and a tokenizer without special tokens
            row = {name: [tokenizer.pad_token_id if name == "input_ids" else 0] for name in names}
        if len(row["input_ids"]) <= max_length:
            yield TextWindows([row], [1])
        else:
            ids = [tokenizer(part, add_special_tokens=False, **options)["input_ids"] for part in its_parts]
            yield _cut(ids, layout, max_length, overlap)


class _Layout:
    """Where a tokenizer puts special tokens and token types, read off a text that it encoded."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, names: list[str], *, paired: bool) -> None:
        probe = tokenizer("the end", "the end" if paired else None, truncation=False, padding=False)[0]
        self._positions = list(zip(probe.ids, probe.type_ids, probe.sequence_ids, strict=True))
        self._names = names
        self.special_tokens = probe.sequence_ids.count(None)

    def row(self, parts: Sequence[list[int]]) -> dict[str, list[int]]:
        ids: list[int] = []
        types: list[int] = []
        waiting = dict(enumerate(parts))
        for token, token_type, sequence in self._positions:
            content = [token] if sequence is None else waiting.pop(sequence, [])
            ids += content
            types += [token_type] * len(content)
        columns = {"input_ids": ids, "token_type_ids": types}
        return {name: columns[name] for name in self._names}


def _cut(parts: list[list[int]], layout: _Layout, max_length: int, overlap: int) -> TextWindows:
    room, longer, lost = max_length - layout.special_tokens, 0, 0
    if room < 1:
        raise UserError(
            f"max_length {max_length} leaves no room for text beside {layout.special_tokens} special tokens: "
            "give a larger one"
        )
    parts = list(parts)
    if len(parts) == 2:
        longer = 0 if len(parts[0]) > len(parts[1]) else 1
        shorter = parts[1 - longer]
        parts[1 - longer] = shorter[: room // 2]
        lost = len(shorter) - len(parts[1 - longer])
        room -= len(parts[1 - longer])
    content = parts[longer]
    shared = min(overlap, room // 2)
    rows, weights, seen, begin = [], [], 0, 0
    while seen < len(content):
        end = min(begin + room, len(content))
        parts[longer] = content[begin:end]
        rows.append(layout.row(parts))
        weights.append(end - seen)
        seen, begin = end, end - shared
    return TextWindows(rows, weights, lost)
