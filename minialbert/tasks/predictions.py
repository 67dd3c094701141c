"""What a tuned model says about labelled examples, and the figures that follow from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from minialbert_runtime.answers import Decision, Logits, TextModel, tags_of, word_logits
from minialbert_runtime.windows import Row
from minialbert_runtime.words import Span, tags_to_spans
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from minialbert.data.examples import Example, Task, TokenExample
from minialbert.data.metrics import AREAS, entity_metrics, span_metrics, subword_f1
from minialbert.data.task_inputs import Encoded, PaddingCollator, one_for_each
from minialbert.data.words import gold_spans, running_text
from minialbert.errors import UserError, quoted
from minialbert.method.encoders import evaluating, forward_inputs
from minialbert.runs.device import autocast
from minialbert.runs.progress import progress_bar
from minialbert.tasks.losses import logits_of
from minialbert.tasks.models import is_minialbert

_SIDE_BY_SIDE = 512  # inputs that an exported folder is given at a time, so that a bar can move


@dataclass(frozen=True)
class Predictions:
    """What a model says about a split, in the order of its examples.

    `values` are of each row a label name, a score, the names that apply, or one tag per word; `metrics` empty without
    gold labels; `evidence` has the logits of a text, or the probabilities of its tags. `exit_iterations` has how often
    the block was applied to each input, where inputs could leave early.
    """

    values: list[Any]
    metrics: dict[str, Any]
    exit_iterations: list[int] | None = None
    evidence: Sequence[Any] = ()

    @property
    def mean_iterations(self) -> float | None:
        """Iterations per input, where inputs could leave early."""
        return float(np.mean(self.exit_iterations)) if self.exit_iterations else None


def input_notes(split: str, examples: Sequence[Example], encoded: Encoded, max_length: int) -> list[str]:
    """Return what to know of a split's inputs: what was cut, windows, words that running text is not cut into."""
    notes, rows = [], len(examples)
    if encoded.cut:
        share = f"{encoded.tokens[1] / max(1, encoded.tokens[0]):.1%} of all tokens are not read"
        notes.append(f"{split}: {encoded.cut:,} of {rows:,} texts were cut at {max_length} tokens; {share}")
    if not (encoded.weights or encoded.windows) and len(encoded) > rows:
        notes.append(
            f"{split}: {rows:,} questions are read in {len(encoded):,} windows of {max_length} tokens"
        )
    if encoded.unheld:
        notes.append(
            f"{split}: no window of {max_length} tokens holds the answer of {encoded.unheld:,} of {rows:,} questions, "
            "so they count as unanswerable in training; raise task.max_length or task.overlap"
        )
    if encoded.weights:
        notes.append(
            f"{split}: {rows:,} texts are read in {len(encoded):,} windows of {max_length} tokens; logits are averaged"
        )
    if encoded.running is not None:
        others, _ = encoded.running
        first, cut = next((examples[index], other) for index, other in others.items())
        words = [word for word in cast("TokenExample", first).words if word not in cut.words] or cut.words
        notes.append(
            f"{split}: {len(others):,} of {rows:,} sentences have words that running text is not cut into, such as "
            f"{quoted(words[0])}: entity_f1 is of the words as given, span_f1 of what predict returns"
        )
    return notes


def cut_record(encoded: Mapping[str, Encoded]) -> dict[str, dict[str, float]]:
    """Return what a record says of texts that lost their end: rows, and their share of all tokens, by split."""
    return {
        split: {"rows": inputs.cut, "share_of_tokens": round(inputs.tokens[1] / max(1, inputs.tokens[0]), 6)}
        for split, inputs in encoded.items()
        if inputs.cut
    }


def make_collator(task: Task, tokenizer: PreTrainedTokenizerFast) -> PaddingCollator:
    """Return the collator of a task's batches."""
    return PaddingCollator(int(tokenizer.pad_token_id or 0), task.type.label)


def run_model(
    model: PreTrainedModel,
    encoded: Encoded,
    collator: PaddingCollator,
    **options: Any,
) -> list[Logits]:
    """Return the logits of every input, in order: (labels,), or (tokens, labels) for token labels.

    The model is put in eval mode and back; options are those of `run_with_exits`.
    """
    return run_with_exits(model, encoded, collator, **options)[0]


@torch.inference_mode()
def run_with_exits(
    model: PreTrainedModel,
    encoded: Encoded,
    collator: PaddingCollator,
    *,
    batch_size: int = 64,
    precision: str = "fp32",
    progress: str | None = None,
    num_iterations: int | None = None,
    exit_threshold: float | None = None,
) -> tuple[list[Logits], list[int] | None]:
    """Return the logits as `run_model`, and iterations per input; None where all inputs ran the full depth.

    Without `num_iterations` and `exit_threshold` (the confidence at which an input leaves early) a MiniALBERT
    runs as its config says. `precision` is "fp32", or "bf16" / "fp16" for autocast; `progress` the title of a
    bar. An exported folder settles all but the bar. Raises UserError if depth or threshold are out of range, or not
    for this model.
    """
    depth = depth_arguments(model, num_iterations, exit_threshold)
    exported: TextModel | None = getattr(model, "runtime", None)
    if exported is not None:
        return _run_exported(exported, encoded, progress), None
    if collator.labels == "score":
        precision = "fp32"  # half of it has three digits, and a score may be as large as a price
    lengths = encoded.lengths
    results: list[Logits | None] = [None] * len(encoded)
    exits: dict[int, int] = {}
    with evaluating(model):
        for rows, inputs in input_batches(model, encoded, collator, batch_size=batch_size, progress=progress):
            with autocast(model.device.type, precision):
                output = model(**inputs, **depth)
            logits = logits_of(output).float().cpu().numpy()
            for row, values in zip(rows, logits, strict=True):
                results[row] = values[: lengths[row]] if values.ndim == 2 else values
            taken = getattr(output, "exit_iterations", None)
            if taken is not None:
                exits.update(zip(rows, taken.tolist(), strict=True))
    iterations = [exits[row] for row in range(len(encoded))] if exits else None
    return cast("list[Logits]", results), iterations


def _run_exported(model: TextModel, encoded: Encoded, progress: str | None) -> list[Logits]:
    """Return the logits of every input of an exported folder, run as in `predict`."""
    results: dict[int, Logits] = {}
    for part in _longest_first(encoded, _SIDE_BY_SIDE, progress):
        inputs = [Row(encoded[row]["input_ids"], encoded[row].get("token_type_ids")) for row in part]
        results |= zip(part, model._logits(inputs), strict=True)
    return [results[row] for row in range(len(encoded))]


def input_batches(
    model: PreTrainedModel,
    encoded: Encoded,
    collator: PaddingCollator,
    *,
    batch_size: int,
    progress: str | None = None,
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yield which inputs and what to call the model with, on its device, longest first."""
    if not (hasattr(batch_size, "__index__") and batch_size >= 1):
        raise UserError(f"expected a batch size of at least 1, found {quoted(batch_size)}")
    for rows in _longest_first(encoded, batch_size, progress):
        inputs = forward_inputs(model, collator([encoded[row] for row in rows]))
        yield rows, {name: value.to(model.device) for name, value in inputs.items()}


def _longest_first(encoded: Encoded, size: int, progress: str | None) -> Iterator[list[int]]:
    """Yield the inputs of each batch, by number; those of one are of like length, for little padding."""
    lengths = encoded.lengths
    order = sorted(range(len(encoded)), key=lambda row: -lengths[row])
    batches = [order[begin : begin + size] for begin in range(0, len(order), size)]
    with progress_bar(progress or "", shown=progress is not None, transient=True) as bar:
        yield from bar.track(batches)


def depth_arguments(
    model: PreTrainedModel, num_iterations: int | None, exit_threshold: float | None
) -> dict[str, Any]:
    """Return what to call a model with for another depth than its own; None means as its config says.

    Raises UserError if one is out of range, or not for this model.
    """
    asked = {"num_iterations": num_iterations, "exit_threshold": exit_threshold}
    given = {name: value for name, value in asked.items() if value is not None}
    if given and hasattr(model, "runtime"):
        raise UserError(
            f"{' and '.join(given)} cannot be chosen any more in an exported folder: leave it out, or give the model "
            "that was exported"
        )
    if given and not is_minialbert(model):
        kind = model.config.model_type
        raise UserError(
            f"{' and '.join(given)}: only a MiniALBERT can run at another depth, not a {kind} model"
        )
    if num_iterations is not None and num_iterations < 1:
        raise UserError(f"num_iterations: expected at least 1, found {num_iterations}")
    if exit_threshold is not None:
        if not 0 < exit_threshold <= 1:
            raise UserError(f"exit_threshold: expected a number above 0 and up to 1, found {exit_threshold}")
        if not getattr(model, "has_confidence", False):
            raise UserError(
                "exit_threshold: a score has no confidence; give num_iterations for fewer iterations"
            )
    return given


def depth_notes(model: PreTrainedModel, num_iterations: int | None) -> list[str]:
    """Return what to know of a number of iterations: that the model was not trained to be read there."""
    if num_iterations is None:
        return []
    own = model.config.num_hidden_layers
    depths = sorted({*(getattr(model.config, "elastic_depths", None) or ()), own})
    if num_iterations == own or num_iterations in depths:
        return []
    trained = f"its head was trained to read the output of {', '.join(map(str, depths))} iterations"
    beyond = "; past the last one the last adapters repeat" if num_iterations > own else ""
    return [f"{num_iterations} iterations are not what the model was trained for: {trained}{beyond}"]


def evaluate_split(
    model: PreTrainedModel,
    examples: Sequence[Example],
    encoded: Encoded,
    task: Task,
    collator: PaddingCollator,
    *,
    order: Sequence[int] | None = None,
    name: str = "the model",
    decision: Decision | None = None,
    **options: Any,
) -> Predictions:
    """Return predictions and, where there are examples and all have gold labels, the task's figures.

    Those of a token task are of the words of the examples, and as `span_f1` of what `predict` returns for them as
    running text.

    `order` has for each of the task's labels the model's id of the same name, None when they agree; `decision` is that
    of a calibrated model; options are those of `run_with_exits`.
    """
    logits, exits = run_with_exits(model, encoded, collator, **options)
    how: dict[str, Any] = {"order": order, "name": name, "decision": decision}
    result = read_predictions(examples, encoded, task, logits, exit_iterations=exits, **how)
    if task.type.tagging and "entity_f1" in result.metrics:
        sentences = cast("Sequence[TokenExample]", examples)
        found = [_found_spans(*pair) for pair in zip(sentences, result.values, strict=True)]
        if encoded.running is not None:
            others, inputs = encoded.running
            cut = list(others.values())
            again = read_predictions(cut, inputs, task, run_model(model, inputs, collator, **options), **how)
            for index, sentence, tags in zip(others, cut, again.values, strict=True):
                found[index] = _found_spans(sentence, tags)
        delivered = span_metrics(list(map(gold_spans, sentences)), found)
        delivered["span_per_type"] = delivered.pop("per_type")
        result.metrics.update({name.replace("entity", "span"): value for name, value in delivered.items()})
    return result


def _found_spans(sentence: TokenExample, tags: Sequence[str]) -> list[Span]:
    text, offsets = running_text(sentence)
    return tags_to_spans(tags, offsets, text)


def read_predictions(
    examples: Sequence[Example],
    encoded: Encoded,
    task: Task,
    logits: list[Logits],
    *,
    order: Sequence[int] | None = None,
    name: str = "the model",
    decision: Decision | None = None,
    exit_iterations: list[int] | None = None,
) -> Predictions:
    """Return what the logits of `run_model` say about examples; the rest is as for `evaluate_split`.

    Raises UserError where they are not finite, calling the model by its name.
    """
    if order is not None:
        logits = [values[..., list(order)] for values in logits]
    if not all(np.isfinite(values).all() for values in logits):
        raise UserError(
            f"the outputs of {name} are not finite: its weights are damaged, or it needs --set tuning.precision=fp32"
        )
    decision = decision or Decision()
    over = decision.over(task.labels, tagging=task.type.tagging)
    logits = [values / np.float32(decision.temperature) for values in logits]
    if task.type.tagging:
        sentences = cast("Sequence[TokenExample]", examples)
        tags, chances = word_tags(sentences, encoded, logits, task.labels, over, decision.decoding)
        metrics: dict[str, Any] = {}
        if sentences and all(sentence.tags is not None for sentence in sentences):
            gold = [list(sentence.tags or ()) for sentence in sentences]
            metrics = entity_metrics(gold, tags)
            if any(sentence.spans is not None for sentence in sentences):
                found = [_found_spans(*pair) for pair in zip(sentences, tags, strict=True)]
                metrics |= span_metrics(list(map(gold_spans, sentences)), found)
            metrics["entity_f1_subword"] = subword_f1(*(_piece_tags(encoded, one) for one in (gold, tags)))
        return Predictions(tags, metrics, exit_iterations, chances)
    if not logits:
        return Predictions([], {})
    rows, logits = one_for_each(encoded, logits)
    values, metrics = task.type.results(task, examples, rows, logits)
    if over is not None:
        areas = {one: metrics[one] for one in AREAS if one in metrics}  # which no threshold changes
        values, metrics = task.type.results(
            task, examples, rows, [task.type.shifted(one, over) for one in logits]
        )
        metrics |= areas
    assert len(values) == len(examples)
    of_each = logits if len(logits) == len(values) else [None] * len(values)  # not of windows
    return Predictions(values, metrics, exit_iterations, of_each)


def logits_of_each(
    examples: Sequence[Example],
    encoded: Encoded,
    task: Task,
    logits: list[Logits],
    order: Sequence[int] | None = None,
) -> list[Logits]:
    """Return the logits of `run_model` by example, in the order of the task's labels: (labels,), or (words, labels)."""
    if order is not None:
        logits = [values[..., list(order)] for values in logits]
    if not task.type.tagging:
        return one_for_each(encoded, logits)[1]
    counts = [len(example.words) for example in cast("Sequence[TokenExample]", examples)]
    return word_logits(counts, encoded.owners, encoded.windows, logits, len(task.labels))


def remarks(task: Task, results: Mapping[str, Predictions]) -> list[str]:
    """Return what a reader of the figures of some splits has to be told, a line each."""
    return [
        f"{split}: {line}"
        for split, result in results.items()
        if result.metrics
        for line in task.type.remarks(result.metrics)
    ]


def word_tags(
    sentences: Sequence[TokenExample],
    encoded: Encoded,
    logits: Sequence[Logits],
    labels: Sequence[str],
    over: NDArray[np.float64] | None = None,
    decoding: str = "alone",
) -> tuple[list[list[str]], list[list[float]]]:
    """Return one tag per word, that of its first piece in the window to which the word belongs, and its probability.

    The logits are (tokens, labels) of each window, the labels tag names by id; `over` and `decoding` are a decision's.
    """
    counts = [len(sentence.words) for sentence in sentences]
    by_word = word_logits(counts, encoded.owners, encoded.windows, logits, len(labels))
    answers = [tags_of(values, labels, over, decoding) for values in by_word]
    return [tags for tags, _ in answers], [chances for _, chances in answers]


def _piece_tags(encoded: Encoded, tags: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return tags with a copy of each word's tag for every one of its pieces."""
    of_pieces: list[list[str]] = [[] for _ in tags]
    for owner, window in zip(encoded.owners, encoded.windows, strict=True):
        of_pieces[owner] += [tags[owner][word] for word in window.words if word >= 0]
    return of_pieces
