"""Questions whose answer is a span of a text, or that have none: read, learnt and scored as SQuAD 1.1 and 2.0."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from minialbert_runtime.answers import Logits
from minialbert_runtime.questions import OPEN, QUESTIONS, answer_in
from minialbert_runtime.windows import Row
from torch import Tensor

from minialbert.data.masking import IGNORED_LABEL
from minialbert.data.metrics import normalised
from minialbert.data.task_inputs import Encoded, make_cutter
from minialbert.data.task_types import Answers, Loss, TaskType, register_task_type
from minialbert.errors import quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from minialbert.data.examples import Task, TextExample

_START, _END = 1, 2  # what is added at the first and at the last token of an answer


class Gold(tuple[str, ...]):
    """The right answers to a question, none where it has none, and at which character of the text each begins."""

    starts: tuple[int, ...]

    def __new__(cls, texts: Sequence[str], starts: Sequence[int] = ()) -> Gold:
        """Return answers with their places, which a copy gets later."""
        gold = super().__new__(cls, texts)
        gold.starts = tuple(starts)
        return gold


class QuestionAnswering(TaskType):
    """A span of a text that answers a question, or none."""

    name, option, label = QUESTIONS, "qa", "answer"
    metrics = ("f1", "exact_match", "answered_f1", "answered_exact_match", "unanswerable_accuracy", "best_f1")
    head = QUESTIONS
    package = ("numpy", "numpy")

    def read_cell(self, cell: object) -> Gold:
        """Return the answers in a cell: SQuAD's list of objects, or an object of lists."""
        found: Any = json.loads(cell) if isinstance(cell, str) and cell.lstrip()[:1] in ("{", "[") else cell
        try:
            if isinstance(found, Mapping):
                texts, starts = list(found["text"]), list(found["answer_start"])
            else:
                texts, starts = ([one[key] for one in found] for key in ("text", "answer_start"))
            whole = all(not isinstance(start, bool) and float(start).is_integer() for start in starts)
            if (
                len(texts) == len(starts)
                and whole
                and all(isinstance(text, str) and text.strip() for text in texts)
            ):
                return Gold(texts, list(map(int, starts)))
        except (LookupError, OverflowError, TypeError, ValueError):
            pass
        shape = "{'text': [...], 'answer_start': [...]}, or a list of such pairs"
        expected = f"expected answers as {shape}, each a text and where it starts"
        raise ValueError(f"{expected}; found {quoted(cell)}")

    def checked(self, example: TextExample) -> TextExample:
        """Return a question whose answers stand where they should; those of one text are a group."""
        text = example.pair
        if text is None:
            raise ValueError("a question needs a text that holds the answer: name its column as task.pair")
        if isinstance(example.label, Gold):
            for start, answer in zip(example.label.starts, example.label, strict=True):
                if start < 0 or text[start : start + len(answer)] != answer:
                    there = quoted(text[max(0, start) : max(0, start) + len(answer)])
                    told = f"does not stand at character {start}, but {there}"
                    raise ValueError(f"the answer {quoted(answer)} {told}")
        return replace(example, group=f"{zlib.crc32(text.encode()):08x}")

    def encode(
        self,
        examples: Sequence[Any],
        tokenizer: PreTrainedTokenizerFast,
        task: Task,
        *,
        max_length: int,
        overlap: int,
        **_: Any,
    ) -> Encoded:
        """Return questions as windows, with a label for each token that may begin or end an answer.

        It is 1 where the first answer that lies in the window begins, plus 2 where it ends, else 0; of a window without
        an answer the first token, which stands for that, has 3. All other tokens are ignored.
        """
        encoded = Encoded([], [])
        cutter = make_cutter(tokenizer, max_length=max_length, overlap=overlap)
        parts = cutter.contexts([(example.text, example.pair) for example in examples])
        for owner, (example, part) in enumerate(zip(examples, parts, strict=True)):
            held = not example.label
            for row, window in zip(encoded.add(owner, part), part.rows, strict=True):
                row["window"] = window
                if example.label is not None:
                    row["labels"] = _labels(window, example.label)
                    held = held or row["labels"][0] == 0
            encoded.unheld += not held
        return encoded

    def weight(self, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Return the number of windows."""
        return (labels != IGNORED_LABEL).any(-1).sum().float()

    def loss(self, logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Loss:
        """Return the mean of the cross-entropies of first and last token over those of the text, in nats."""
        likely = self._likely(logits, labels)
        sides = [((labels >= 0) & (labels & one > 0)) for one in (_START, _END)]
        losses = torch.stack([-likely[..., side][gold].sum() for side, gold in enumerate(sides)])
        return losses.mean(), self.weight(labels, class_weights)

    def logit_loss(self, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """Return T^2 KL(teacher || student) over the tokens of the text, the mean of first and last."""
        kept = labels >= 0
        ours, theirs = (self._likely(logits / temperature, labels)[kept] for logits in (student, teacher))
        return temperature**2 * (theirs.exp() * (theirs - ours)).sum() / 2

    def _likely(self, logits: Tensor, labels: Tensor) -> Tensor:
        hidden = (labels < 0).unsqueeze(-1)
        return logits.float().masked_fill(hidden, -torch.inf).log_softmax(1)

    def shifted(self, logits: Logits, over: Any) -> Logits:
        """Return logits of which "no answer", the first token, has what a threshold asks of the others."""
        moved = logits.copy()
        moved[0, 0] += over[0]
        return moved

    def results(
        self, task: Task, examples: Sequence[Any], encoded: Encoded, logits: Sequence[Logits]
    ) -> Answers:
        """Return answers as `predict` gives them, and the figures of SQuAD's script.

        Beside those of all questions they are of the answered ones and of those without an answer; `best_f1` is that
        of the best threshold, `best_threshold`.
        """
        windows: list[list[int]] = [[] for _ in examples]
        for at, owner in enumerate(encoded.owners):
            windows[owner].append(at)
        over = 0.0 if task.labels == OPEN else None
        said = []
        for one, own in zip(examples, windows, strict=True):
            rows = [encoded.rows[at]["window"] for at in own]
            said.append(answer_in(one.pair, rows, [logits[at] for at in own], over=over, most=1))
        if any(example.label is None for example in examples):
            return said, {}
        texts = [(answer["answer"], _best(answer)) for answer in said]
        pairs = zip(examples, texts, strict=True)
        scores = np.array([[squad_scores(one.label, text or "") for text in both] for one, both in pairs])
        has = np.array([bool(example.label) for example in examples])
        exact, f1 = scores[:, 0].mean(axis=0).tolist()
        figures = {"exact_match": exact, "f1": f1}
        if not has.all():
            figures["unanswerable_accuracy"] = float(scores[~has, 0, 0].mean())
            if has.any():
                figures["answered_exact_match"], figures["answered_f1"] = scores[has, 0].mean(axis=0).tolist()
        if over is not None:
            figures |= _best_threshold(np.array([one["answerable"] for one in said]), scores[:, 1, 1], ~has)
        return said, figures


def _best(answer: Mapping[str, Any]) -> str | None:
    return next((one["answer"] for one in answer["answers"]), None)


def _best_threshold(chances: Any, f1: Any, without: Any) -> dict[str, float]:
    """Return the highest F1 that a threshold on the chance of an answer gives, and that threshold."""
    order = np.argsort(-chances, kind="stable")  # the first k are answered
    total = np.concatenate([[0.0], np.cumsum((f1 - without)[order])]) + without.sum()
    ends = np.append(np.diff(chances[order]) != 0, True)  # equal ones are answered together
    allowed = np.concatenate([[True], ends])
    best = int(np.argmax(np.where(allowed, total, -1)))
    around = np.concatenate([[1.0], chances[order], [0.0]])
    threshold = float((around[best] + around[best + 1]) / 2)
    return {"best_f1": float(total[best] / len(f1)), "best_threshold": threshold}


def _labels(window: Row, gold: Gold) -> list[int]:
    """Return the label of each token of a window."""
    offsets, size = window.offsets, len(window.offsets)
    labels = [IGNORED_LABEL] * len(window.input_ids)
    labels[window.first : window.first + size] = [0] * size
    for start, text in zip(gold.starts, gold, strict=True):
        end = start + len(text)
        inside = [at for at, (a, b) in enumerate(offsets) if a < end and b > start]
        if inside and offsets[inside[0]][0] <= start and offsets[inside[-1]][1] >= end:
            labels[window.first + inside[0]] += _START
            labels[window.first + inside[-1]] += _END
            labels[0] = 0
            return labels
    labels[0] = _START + _END
    return labels


def squad_scores(gold: Sequence[str], answer: str) -> tuple[float, float]:
    """Return whether an answer is one of the right ones, and the highest F1 of its words, as SQuAD 2.0's script."""
    rights = [text for text in gold if normalised(text)] or [""]
    return tuple(max(values) for values in zip(*(_scores(right, answer) for right in rights), strict=True))  # type: ignore[return-value]


def _scores(right: str, answer: str) -> tuple[float, float]:
    one, other = normalised(right).split(), normalised(answer).split()
    shared = (Counter(one) & Counter(other)).total()
    if not (one and other):
        return float(one == other), float(one == other)
    return float(one == other), 2 * shared / (len(one) + len(other))


register_task_type(QuestionAnswering())
