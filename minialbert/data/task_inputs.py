"""Labelled examples to model inputs: label ids, windows of long sentences, batches of equal length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from minialbert_runtime.answers import Logits, pooled
from minialbert_runtime.windows import Cutter, TextWindows, WordWindow
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from minialbert.data.masking import IGNORED_LABEL
from minialbert.data.words import split_differently

if TYPE_CHECKING:
    from minialbert_runtime.words import WordRule
    from transformers import PreTrainedTokenizerFast

    from minialbert.data.examples import Task, TextExample, TokenExample

_BUCKET_BATCHES = 50  # batches whose rows are sorted by length together


@dataclass(slots=True)
class Encoded:
    """A split ready for the model."""

    rows: list[dict[str, Any]]  # one per input: `input_ids`, perhaps `token_type_ids`, and `labels`
    owners: list[int]  # the example of each row
    windows: list[WordWindow] = field(default_factory=list)  # for token labels the window of each row
    cut: int = 0  # how many texts were longer than the model's input and lost their end
    # Of each window in its text's answer; none where texts are inputs.
    weights: list[int] = field(default_factory=list)
    unheld: int = 0  # how many questions have an answer, and no window that holds it
    tokens: tuple[int, int] = (0, 0)  # of all texts, and those of them that no input holds
    # Sentences whose words running text is not cut into: as `predict` cuts them, by number; and their inputs.
    running: tuple[dict[int, TokenExample], Encoded] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def add(self, owner: int, part: TextWindows) -> list[dict[str, Any]]:
        """Take the windows of a text or pair as inputs, and return their rows, which have no labels yet."""
        rows: list[dict[str, Any]] = [{"input_ids": window.input_ids} for window in part.rows]
        for row, window in zip(rows, part.rows, strict=True):
            if window.token_type_ids is not None:
                row["token_type_ids"] = window.token_type_ids
        self.rows += rows
        self.owners += [owner] * len(rows)
        self.cut += bool(part.cut)
        self.tokens = self.tokens[0] + part.tokens, self.tokens[1] + part.cut
        return rows

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
    overlap: int = 0,
    long_texts: str = "cut",
) -> Encoded:
    """Return texts or pairs as model inputs of at most `max_length` tokens, as `predict` reads them.

    A longer text is "cut" (a pair at the end of its longer text), or read in "windows" that share at most `overlap`
    tokens, of which each has the label of its text. `labels` of labelled examples is an int, a float, or one float per
    class.
    """
    encoded = Encoded([], [])
    paired = any(example.pair is not None for example in examples)
    texts = [(example.text, example.pair or "") if paired else example.text for example in examples]
    ids = {name: index for index, name in enumerate(task.labels)}
    cutter = make_cutter(tokenizer, max_length=max_length, overlap=overlap, long_texts=long_texts)
    weights = []
    for owner, (example, part) in enumerate(zip(examples, cutter.texts(texts), strict=True)):
        weights += part.weights
        for row in encoded.add(owner, part):
            if example.label is not None:
                row["labels"] = label_value(example.label, ids)
    if len(encoded) > len(examples):
        encoded.weights = weights
    return encoded


def one_for_each(encoded: Encoded, logits: Sequence[Logits]) -> tuple[Encoded, list[Logits]]:
    """Return one input and its logits for each text, those of its windows averaged."""
    if not encoded.weights:
        return encoded, list(logits)
    starts = [at for at, owner in enumerate(encoded.owners) if at == 0 or owner != encoded.owners[at - 1]]
    edges = pairwise([*starts, len(encoded)])
    means = [pooled(logits[a:b], encoded.weights[a:b]).astype(np.float32) for a, b in edges]
    return Encoded([encoded[at] for at in starts], [encoded.owners[at] for at in starts]), means


def label_value(label: str | float | tuple[str, ...], ids: Mapping[str, int]) -> int | float | list[float]:
    """Return a label as the loss wants it: an id (-100 for an unknown class), a score, or one 0/1 per class."""
    if isinstance(label, tuple):
        return [float(name in label) for name in ids]
    return ids.get(label, IGNORED_LABEL) if isinstance(label, str) else float(label)


def encode_sentences(
    examples: Sequence[TokenExample],
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    *,
    max_length: int,
    overlap: int,
    all_pieces: bool = False,
    rule: WordRule | None = None,
    **_: Any,  # of texts
) -> Encoded:
    """Return sentences of words, tagged or not, as windows, with the tag of each word on its first piece.

    Windows have at most `max_length` tokens, special tokens included, and share at most `overlap` pieces. `all_pieces`
    tags the other pieces too, with I- where the task has that tag (what `aggregation_strategy="simple"` relies on);
    otherwise they are ignored by the loss. With the `rule` that cuts running text, sentences that it cuts otherwise are
    encoded as it does too.
    """
    ids = {name: index for index, name in enumerate(task.labels)}
    cutter = make_cutter(tokenizer, max_length=max_length, overlap=overlap)
    encoded = Encoded([], [])
    cut = cutter.words([example.words for example in examples])
    for owner, (example, windows) in enumerate(zip(examples, cut, strict=True)):
        for window in windows:
            row: dict[str, Any] = {"input_ids": list(window.input_ids)}
            if example.tags is not None:
                row["labels"] = _tag_ids(example.tags, window, ids, all_pieces=all_pieces)
            encoded.rows.append(row)
        encoded.owners += [owner] * len(windows)
        encoded.windows += windows
    if rule is not None and (other := split_differently(examples, rule)):
        texts = list(other.values())
        as_text = encode_sentences(texts, tokenizer, task, max_length=max_length, overlap=overlap)
        encoded.running = other, as_text
    return encoded


def make_cutter(
    tokenizer: PreTrainedTokenizerFast, *, max_length: int, overlap: int, long_texts: str = "windows"
) -> Cutter:
    """Return what cuts texts and words into a model's inputs, as an exported folder's model does.

    It shares the tokenizer's backend, which calls of the tokenizer change: use it before the next of them.
    """
    backend = tokenizer.backend_tokenizer
    # What a tokenizer.json says about lengths is for training; a text must come through whole.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    pad, unknown = int(tokenizer.pad_token_id or 0), tokenizer.unk_token_id
    return Cutter(
        backend,
        max_length=max_length,
        overlap=overlap,
        pad_token_id=pad,
        unknown_token_id=pad if unknown is None else unknown,
        token_types="token_type_ids" in tokenizer.model_input_names,
        long_texts=long_texts,
    )


def _tag_ids(
    tags: Sequence[str], window: WordWindow, ids: Mapping[str, int], *, all_pieces: bool
) -> list[int]:
    """Return the id of its word's tag for each position that bears one, else `IGNORED_LABEL`."""
    found = [IGNORED_LABEL] * len(window.words)
    if all_pieces:
        inside = [
            ids.get(tag.replace("B-", "I-", 1) if tag[:2] == "B-" else tag, IGNORED_LABEL) for tag in tags
        ]
        found = [IGNORED_LABEL if word < 0 else inside[word] for word in window.words]
    for position, word in zip(*window.first_pieces, strict=True):
        found[position] = ids.get(tags[word], IGNORED_LABEL)
    return found


class PaddingCollator:
    """Pads a batch to its longest row; labels are of type and shape "class", "score", "classes", "token", "answer"."""

    def __init__(self, pad_token_id: int, labels: str) -> None:
        self.pad_token_id = pad_token_id
        self.labels = labels

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return tensors `input_ids`, `attention_mask`, perhaps `token_type_ids` and `labels`, (B, T) or (B, …)."""
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, value: int) -> Tensor:
            return torch.tensor([list(row[name]) + [value] * (longest - len(row[name])) for row in rows])

        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        batch = {"input_ids": padded("input_ids", self.pad_token_id), "attention_mask": mask}
        if "token_type_ids" in rows[0]:
            batch["token_type_ids"] = padded("token_type_ids", 0)
        if all("teacher_logits" in row for row in rows):
            given = [torch.from_numpy(row["teacher_logits"]).float() for row in rows]
            batch["teacher_logits"] = pad_sequence(given, batch_first=True)
        if all("labels" in row for row in rows):
            if self.labels in ("token", "answer"):
                batch["labels"] = padded("labels", IGNORED_LABEL)
            else:
                dtype = torch.long if self.labels == "class" else torch.float
                batch["labels"] = torch.tensor([row["labels"] for row in rows], dtype=dtype)
        return batch


class LengthGroupedSampler(Sampler[int]):
    """An order in which rows of a batch are of similar length, a function of seed and epoch alone.

    Rows are shuffled, then sorted by length within buckets of 50 batches, and the batches shuffled again. The order
    ends with as many `len(lengths)`, which is not a row, as make its length a multiple of `multiple_of`, so that all
    processes get equally many batches.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, multiple_of: int = 1) -> None:
        self.lengths, self.batch_size, self.seed = list(lengths), batch_size, seed
        self.missing = -len(self.lengths) % multiple_of
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.missing

    def __iter__(self) -> Iterator[int]:
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
        shuffled = (full[index] for index in torch.randperm(len(full), generator=generator).tolist())
        yield from chain(*shuffled, *rest, [len(self.lengths)] * self.missing)
