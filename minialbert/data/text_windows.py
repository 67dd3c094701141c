"""Texts and pairs of any length as model inputs: what is longer than the model's input is cut into windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    """
    windows: list[TextWindows | None] = [None] * len(texts)
    for paired in (False, True):
        indices = [index for index, text in enumerate(texts) if isinstance(text, tuple) is paired]
        if not indices:
            continue
        columns = list(zip(*(texts[index] for index in indices), strict=True)) if paired else None
        firsts = columns[0] if columns else [texts[index] for index in indices]
        options: dict[str, Any] = {"truncation": False, "padding": False, "verbose": False}
        encoded = tokenizer(list(firsts), list(columns[1]) if columns else None, **options)
        names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
        layout = _Layout(tokenizer, names, paired)
        for position, index in enumerate(indices):
            row = {name: encoded[name][position] for name in names}
            if not row["input_ids"]:  # an empty text, and a tokenizer without special tokens
                row = {name: [tokenizer.pad_token_id if name == "input_ids" else 0] for name in names}
            if len(row["input_ids"]) <= max_length:
                windows[index] = TextWindows([row], [1])
                continue
            text = texts[index]
            parts = [
                tokenizer(part, add_special_tokens=False, **options)["input_ids"]
                for part in (text if isinstance(text, tuple) else (text,))
            ]
            windows[index] = _cut(parts, layout, max_length, overlap)
    return [window for window in windows if window is not None]


class _Layout:
    """Where a tokenizer puts special tokens and token types, read off a text that it encoded."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, names: list[str], paired: bool) -> None:
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
    room = max_length - layout.special_tokens
    longer, lost = 0, 0
    if len(parts) == 2:
        longer = 0 if len(parts[0]) > len(parts[1]) else 1
        kept = parts[1 - longer][: room // 2]
        lost = len(parts[1 - longer]) - len(kept)
        parts[1 - longer] = kept
        room -= len(kept)
    content = parts[longer]
    shared = min(overlap, room // 2)
    rows, weights, seen, begin = [], [], 0, 0
    while seen < len(content):
        end = min(begin + room, len(content))
        window = content[begin:end]
        rows.append(layout.row([window if part == longer else kept for part, kept in enumerate(parts)]))
        weights.append(end - seen)
        seen, begin = end, end - shared
    return TextWindows(rows, weights, lost)
