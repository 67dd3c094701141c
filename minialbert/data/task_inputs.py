"""Labelled examples to model inputs: label ids, windows of long sentences, batches of equal length.

A sentence of words may be longer than the model's input. It is cut into windows that share words; every word
belongs to exactly one of them, the one in which it has most context, so that none is dropped or counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from minialbert.data.examples import TextExample, TokenExample
from minialbert.data.tokenizers import special_affixes
from minialbert.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from minialbert.data.examples import Task

IGNORED = -100
_BUCKET_BATCHES = 50  # batches whose rows are sorted by length together


@dataclass(frozen=True, slots=True)
class WordWindow:
    """A window of a sentence as model input.

    Attributes:
        input_ids: ids with the special tokens.
        words: per position the index of its word in the sentence; -1 for special tokens and for words that
            belong to another window.
        firsts: whether a position is the first piece of a word that belongs here.
    """

    input_ids: tuple[int, ...]
    words: tuple[int, ...]
    firsts: tuple[bool, ...]


@dataclass(slots=True)
class Encoded:
    """A split ready for the model.

    Attributes:
        rows: one mapping per input: `input_ids`, perhaps `token_type_ids`, and `labels`.
        owners: the example of each row.
        windows: for token labels the window of each row.
        cut: how many texts were longer than the model's input and lost their end.
    """

    rows: list[dict[str, Any]]
    owners: list[int]
    windows: list[WordWindow] = field(default_factory=list)
    cut: int = 0

    def __len__(self) -> int:
        """Return the number of inputs."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one input."""
        return self.rows[index]

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each input."""
        return [len(row["input_ids"]) for row in self.rows]


def encode_texts(
    examples: Sequence[TextExample],
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    *,
    max_length: int,
) -> Encoded:
    """Return texts or pairs as model inputs, cut at `max_length` (a pair at the end of its longer text).

    Args:
        examples: the examples, labelled or not.
        tokenizer: a fast tokenizer.
        task: names the labels; ids are their positions.
        max_length: in tokens, special tokens included.

    Returns:
        One input per example; `labels` is an int, a float, or one float per class.
    """
    if not examples:
        return Encoded([], [])
    paired = any(example.pair is not None for example in examples)
    texts = [example.text for example in examples]
    pairs = [example.pair or "" for example in examples] if paired else None
    encoded = tokenizer(texts, pairs, truncation=False, padding=False, verbose=False)
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    ids = {name: index for index, name in enumerate(task.labels)}
    rows, cut = [], 0
    for index, example in enumerate(examples):
        row: dict[str, Any] = {name: encoded[name][index] for name in names}
        if len(row["input_ids"]) > max_length:
            cut += 1
            pair = pairs[index] if pairs is not None else None
            shorter = tokenizer(texts[index], pair, truncation=True, max_length=max_length)
            row = {name: shorter[name] for name in names}
        if example.label is not None:
            row["labels"] = label_value(example.label, ids)
        rows.append(row)
    return Encoded(rows, list(range(len(rows))), cut=cut)


def label_value(label: str | float | tuple[str, ...], ids: Mapping[str, int]) -> int | float | list[float]:
    """Return a label as the loss wants it: an id, a score, or one 0/1 per class.

    Args:
        label: a name, a score, or the names that apply.
        ids: id of each name.

    Returns:
        The value.
    """
    if isinstance(label, tuple):
        return [float(name in label) for name in ids]
    return ids[label] if isinstance(label, str) else float(label)


def encode_sentences(
    examples: Sequence[TokenExample],
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    *,
    max_length: int,
    overlap: int,
    all_pieces: bool = False,
) -> Encoded:
    """Return sentences of words as windows, with the tag of each word on its first piece.

    Args:
        examples: the sentences, tagged or not.
        tokenizer: a fast tokenizer.
        task: names the tags.
        max_length: in tokens, special tokens included.
        overlap: pieces that neighbouring windows share at most.
        all_pieces: tag the other pieces too, with I- where the task has that tag (what
            `aggregation_strategy="simple"` relies on); otherwise they are ignored by the loss.

    Returns:
        One input per window.
    """
    ids = {name: index for index, name in enumerate(task.labels)}
    rows, owners, windows = [], [], []
    for owner, example in enumerate(examples):
        for window in word_windows(example.words, tokenizer, max_length=max_length, overlap=overlap):
            row: dict[str, Any] = {"input_ids": list(window.input_ids)}
            if example.tags is not None:
                row["labels"] = [
                    IGNORED
                    if word < 0 or not (first or all_pieces)
                    else (ids[example.tags[word]] if first else ids.get(_inside(example.tags[word]), IGNORED))
                    for word, first in zip(window.words, window.firsts, strict=True)
                ]
            rows.append(row)
            owners.append(owner)
            windows.append(window)
    return Encoded(rows, owners, windows)


def word_windows(
    words: Sequence[str], tokenizer: PreTrainedTokenizerFast, *, max_length: int, overlap: int
) -> list[WordWindow]:
    """Return a sentence cut into windows at word boundaries.

    A word without pieces (a control character) becomes the unknown token, and one that is longer than a whole
    window loses its end, so that every word has a first piece in exactly one window.

    Args:
        words: the words.
        tokenizer: a fast tokenizer.
        max_length: in tokens, special tokens included.
        overlap: pieces that neighbouring windows share at most.

    Returns:
        At least one window; none for a sentence without words.

    Raises:
        UserError: if the special tokens leave no room for words.
    """
    prefix, suffix = special_affixes(tokenizer)
    room = max_length - len(prefix) - len(suffix)
    if room < 1:
        raise UserError(
            f"max_length {max_length} leaves no room for words beside {len(prefix) + len(suffix)} special tokens: "
            "give a larger one"
        )
    pieces = [word_pieces[:room] for word_pieces in _pieces(words, tokenizer)]
    spans = _spans([len(word_pieces) for word_pieces in pieces], room, overlap)
    windows = []
    for (begin, end), (first_owned, last_owned) in zip(spans, _owned(pieces, spans), strict=True):
        ids, indices, firsts = list(prefix), [-1] * len(prefix), [False] * len(prefix)
        for word in range(begin, end):
            here = first_owned <= word < last_owned
            ids += pieces[word]
            indices += [word if here else -1] * len(pieces[word])
            firsts += [here] + [False] * (len(pieces[word]) - 1)
        windows.append(
            WordWindow(
                tuple(ids + suffix),
                tuple(indices + [-1] * len(suffix)),
                tuple(firsts + [False] * len(suffix)),
            )
        )
    return windows


def _pieces(words: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    if not words:
        return []
    encoded = tokenizer(
        list(words), is_split_into_words=True, add_special_tokens=False, truncation=False, verbose=False
    )
    pieces: list[list[int]] = [[] for _ in words]
    for piece, word in zip(encoded["input_ids"], encoded.word_ids(), strict=True):
        pieces[word].append(piece)
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.pad_token_id
    return [ids or [unknown] for ids in pieces]


def _spans(lengths: Sequence[int], room: int, overlap: int) -> list[tuple[int, int]]:
    """Return first and last word (exclusive) of each window."""
    spans: list[tuple[int, int]] = []
    begin = 0
    while begin < len(lengths):
        end, taken = begin, 0
        while end < len(lengths) and taken + lengths[end] <= room:
            taken += lengths[end]
            end += 1
        spans.append((begin, end))
        if end == len(lengths):
            break
        start, shared = end, 0
        while start - 1 > begin and shared + lengths[start - 1] <= overlap:
            start -= 1
            shared += lengths[start]
        # Repeat only as much as leaves room for the next word.
        while start < end and shared + lengths[end] > room:
            shared -= lengths[start]
            start += 1
        begin = start
    return spans


def _owned(pieces: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the words that belong to each window: what two windows share is parted in the middle."""
    first = 0
    for index, (_, end) in enumerate(spans):
        last = end
        if index + 1 < len(spans):
            begin_next = spans[index + 1][0]
            last = begin_next + (end - begin_next + 1) // 2
        yield first, last
        first = last


def _inside(tag: str) -> str:
    return f"I-{tag[2:]}" if tag.startswith("B-") else tag


class PaddingCollator:
    """Pads a batch to its longest row.

    Args:
        pad_token_id: fills `input_ids`.
        labels: "class", "score", "classes" or "token": type and shape of the labels.
    """

    def __init__(self, pad_token_id: int, labels: str) -> None:
        self.pad_token_id = pad_token_id
        self.labels = labels

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return tensors `input_ids`, `attention_mask`, perhaps `token_type_ids` and `labels`, (B, T) or (B, …)."""
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, value: int) -> Tensor:
            return torch.tensor([list(row[name]) + [value] * (longest - len(row[name])) for row in rows])

        batch = {
            "input_ids": padded("input_ids", self.pad_token_id),
            "attention_mask": torch.tensor(
                [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
            ),
        }
        if "token_type_ids" in rows[0]:
            batch["token_type_ids"] = padded("token_type_ids", 0)
        if all("labels" in row for row in rows):
            if self.labels == "token":
                batch["labels"] = padded("labels", IGNORED)
            else:
                dtype = torch.long if self.labels == "class" else torch.float
                batch["labels"] = torch.tensor([row["labels"] for row in rows], dtype=dtype)
        return batch


class LengthGroupedSampler(Sampler[int]):
    """An order in which rows of a batch are of similar length, a function of seed and epoch alone.

    Rows are shuffled, then sorted by length within buckets of 50 batches, and the batches shuffled again.

    Args:
        lengths: tokens of each row.
        batch_size: rows per batch.
        seed: of the order.
        multiple_of: the order ends with as many `len(lengths)`, which is no row, as make its length a multiple of
            this, so that all processes get equally many batches.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, multiple_of: int = 1) -> None:
        self.lengths, self.batch_size, self.seed = list(lengths), batch_size, seed
        self.missing = -len(self.lengths) % multiple_of
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the length of the order."""
        return len(self.lengths) + self.missing

    def __iter__(self) -> Iterator[int]:
        """Yield row numbers."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        size = self.batch_size
        batches = []
        for begin in range(0, len(order), size * _BUCKET_BATCHES):
            bucket = sorted(order[begin : begin + size * _BUCKET_BATCHES], key=lambda row: -self.lengths[row])
            batches += [bucket[start : start + size] for start in range(0, len(bucket), size)]
        # Only full batches change places, so that the short one stays last.
        full = [batch for batch in batches if len(batch) == size]
        rest = [batch for batch in batches if len(batch) < size]
        for index in torch.randperm(len(full), generator=generator).tolist():
            yield from full[index]
        for batch in rest:
            yield from batch
        for _ in range(self.missing):
            yield len(self.lengths)
