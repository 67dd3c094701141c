"""What a tuned model says about labelled examples, and the figures that follow from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from .data.examples import Example, Task, TextExample, TokenExample
from .data.task_encoding import Encoded, PaddingCollator, encode_sentences, encode_texts
from .metrics import entity_metrics, multi_label_metrics, regression_metrics, single_label_metrics, subword_f1
from .precision import autocast
from .progress import stderr_console
from .teachers import forward_inputs

Logits = NDArray[np.float32]

_LABEL_KINDS = {"single-label": "class", "multi-label": "classes", "regression": "score", "token": "token"}


@dataclass(frozen=True)
class Predictions:
    """What a model says about a split, in the order of its examples.

    Attributes:
        values: a label name, a score, the names that apply, or one tag per word.
        logits: (rows, labels) of a text task; empty for token labels.
        metrics: figures by name, empty without gold labels.
        inputs: model inputs that were run (windows, for long sentences).
        cut: texts that lost their end.
        finite: whether no output was NaN or infinite.
    """

    values: list[Any]
    logits: Logits
    metrics: dict[str, Any]
    inputs: int
    cut: int
    finite: bool = True


def encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    *,
    max_length: int,
    overlap: int,
    all_pieces: bool = False,
) -> Encoded:
    """Return examples of any task as model inputs.

    Args:
        examples: one split.
        tokenizer: a fast tokenizer.
        task: names problem and labels.
        max_length: tokens per input.
        overlap: pieces that windows of a long sentence share.
        all_pieces: see `encode_sentences`.

    Returns:
        The inputs.
    """
    if task.problem == "token":
        sentences = cast("Sequence[TokenExample]", examples)
        return encode_sentences(
            sentences, tokenizer, task, max_length=max_length, overlap=overlap, all_pieces=all_pieces
        )
    return encode_texts(cast("Sequence[TextExample]", examples), tokenizer, task, max_length=max_length)


def make_collator(task: Task, tokenizer: PreTrainedTokenizerFast) -> PaddingCollator:
    """Return the collator of a task's batches.

    Args:
        task: names the problem.
        tokenizer: names the padding token.

    Returns:
        The collator.
    """
    return PaddingCollator(int(tokenizer.pad_token_id or 0), _LABEL_KINDS[task.problem])


@torch.inference_mode()
def run_model(
    model: PreTrainedModel,
    encoded: Encoded,
    collator: PaddingCollator,
    *,
    batch_size: int = 64,
    precision: str = "fp32",
    progress: str | None = None,
) -> list[Logits]:
    """Return the logits of every input, computed longest first so that batches need little padding.

    Args:
        model: a model with a task head; it is put in eval mode and back.
        encoded: the inputs.
        collator: pads them.
        batch_size: inputs per forward pass.
        precision: "fp32", or "bf16" / "fp16" for autocast.
        progress: title of a progress bar; None for none.

    Returns:
        One array per input, in order: (labels,), or (tokens, labels) for token labels.
    """
    device = model.device
    lengths = encoded.lengths
    order = sorted(range(len(encoded)), key=lambda row: -lengths[row])
    batches = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
    results: list[Logits | None] = [None] * len(encoded)
    was_training = model.training
    model.eval()
    try:
        for rows in _tracked(batches, progress):
            batch = collator([encoded[row] for row in rows])
            inputs = {name: value.to(device) for name, value in forward_inputs(model, batch).items()}
            with autocast(device.type, precision):
                logits = model(**inputs).logits.float().cpu().numpy()
            for row, values in zip(rows, logits, strict=True):
                results[row] = values[: lengths[row]] if values.ndim == 2 else values
    finally:
        model.train(was_training)
    return cast("list[Logits]", results)


def evaluate_split(
    model: PreTrainedModel,
    examples: Sequence[Example],
    encoded: Encoded,
    task: Task,
    collator: PaddingCollator,
    *,
    order: Sequence[int] | None = None,
    **options: Any,  # noqa: ANN401
) -> Predictions:
    """Return predictions and, where there are examples and all have gold labels, the task's figures.

    Args:
        model: a model with a task head.
        examples: one split.
        encoded: the same examples as inputs.
        task: names problem and labels.
        collator: pads batches.
        order: for each of the task's labels the model's id of the same name; None when they agree.
        **options: of `run_model`.

    Returns:
        The predictions.
    """
    logits = run_model(model, encoded, collator, **options)
    if order is not None:
        logits = [values[..., list(order)] for values in logits]
    finite = all(bool(np.isfinite(values).all()) for values in logits)
    if task.problem == "token":
        sentences = cast("Sequence[TokenExample]", examples)
        tags = word_tags(sentences, encoded, logits, task.labels)
        metrics: dict[str, Any] = {}
        if sentences and all(sentence.tags is not None for sentence in sentences):
            gold = [list(sentence.tags or ()) for sentence in sentences]
            metrics = entity_metrics(gold, tags)
            metrics["entity_f1_subword"] = subword_f1(*_piece_tags(encoded, gold, tags))
        return Predictions(tags, np.empty((0, 0), np.float32), metrics, len(encoded), encoded.cut, finite)
    if not logits:
        return Predictions([], np.empty((0, len(task.labels) or 1), np.float32), {}, 0, encoded.cut)
    stacked = np.stack(logits)
    texts = cast("Sequence[TextExample]", examples)
    gold_labels = [row.get("labels") for row in encoded.rows]
    labelled = all(label is not None for label in gold_labels)
    values, metrics = _text_result(task, stacked, gold_labels if labelled else None)
    assert len(values) == len(texts)
    return Predictions(values, stacked, metrics, len(encoded), encoded.cut, finite)


def _text_result(task: Task, logits: Logits, gold: list[Any] | None) -> tuple[list[Any], dict[str, Any]]:
    if task.problem == "regression":
        scores = logits[:, 0].tolist()
        return scores, regression_metrics(gold, scores) if gold is not None else {}
    if task.problem == "multi-label":
        chosen = logits > 0  # a probability above one half
        named = [tuple(name for name, is_in in zip(task.labels, row, strict=True) if is_in) for row in chosen]
        return named, multi_label_metrics(np.array(gold, dtype=bool), chosen) if gold is not None else {}
    ids = logits.argmax(axis=1).tolist()
    metrics = single_label_metrics(gold, ids, len(task.labels)) if gold is not None else {}
    return [task.labels[index] for index in ids], metrics


def word_tags(
    sentences: Sequence[TokenExample], encoded: Encoded, logits: Sequence[Logits], labels: Sequence[str]
) -> list[list[str]]:
    """Return one tag per word: that of its first piece, in the window to which the word belongs.

    Args:
        sentences: the sentences.
        encoded: their windows.
        logits: of each window, (tokens, labels).
        labels: tag names by id.

    Returns:
        Tags per sentence, as many as it has words.
    """
    tags = [["O"] * len(sentence.words) for sentence in sentences]
    for owner, window, values in zip(encoded.owners, encoded.windows, logits, strict=True):
        best = values.argmax(axis=1)
        for position, (word, first) in enumerate(zip(window.words, window.firsts, strict=True)):
            if first:
                tags[owner][word] = labels[best[position]]
    return tags


def _piece_tags(
    encoded: Encoded, gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> tuple[list[list[str]], list[list[str]]]:
    """Return gold and predicted tags with a copy of each word's tag for every one of its pieces."""
    gold_pieces: list[list[str]] = [[] for _ in gold]
    predicted_pieces: list[list[str]] = [[] for _ in gold]
    for owner, window in zip(encoded.owners, encoded.windows, strict=True):
        for word in window.words:
            if word >= 0:
                gold_pieces[owner].append(gold[owner][word])
                predicted_pieces[owner].append(predicted[owner][word])
    return gold_pieces, predicted_pieces


def _tracked(batches: list[list[int]], title: str | None) -> Iterator[list[int]]:
    if title is None:
        yield from batches
        return
    console = stderr_console()
    yield from track(batches, title, console=console, transient=True, disable=not console.is_terminal)
