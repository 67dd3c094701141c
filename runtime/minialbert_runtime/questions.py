"""Answers to questions: the likeliest spans over all windows of a text, and whether there is one at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .windows import Row

QUESTIONS = "question-answering"
# What a model's two outputs are called. One that learnt questions without an answer has OPEN, and its decision may have
# a threshold for "answer"; another answers always.
SURE, OPEN = ("start", "end"), ("answer", "end")
_BEST, _LONGEST = 20, 30  # spans that share the probability, and their tokens, as SQuAD's script has them


def best_spans(
    text: str, rows: Sequence[Row], logits: Sequence[NDArray[Any]]
) -> tuple[list[tuple[int, int, float]], float]:
    """Return the 20 spans with the highest sums of start and end logit, the best first, and that of no answer.

    The text's windows are those of `Cutter.contexts`, and have logits (tokens, 2). No answer is the first token of the
    window that is least sure of it.
    """
    found: dict[tuple[int, int], float] = {}
    for row, values in zip(rows, logits, strict=True):
        size = len(row.offsets)
        part = values[row.first : row.first + size].astype(np.float64)
        sums = np.full((size, _LONGEST), -np.inf)  # by first token, and tokens that follow it
        for more in range(min(size, _LONGEST)):
            sums[: size - more, more] = part[: size - more, 0] + part[more:, 1]
        for place in np.argsort(-sums, axis=None, kind="stable")[: 2 * _BEST].tolist():
            first, more = divmod(place, _LONGEST)
            if sums[first, more] > -np.inf:
                start, end = row.offsets[first][0], row.offsets[first + more][1]
                start, end = end - len(text[start:end].lstrip()), start + len(text[start:end].rstrip())
                if start < end:
                    found[start, end] = max(found.get((start, end), -np.inf), float(sums[first, more]))
    spans = sorted(((*span, value) for span, value in found.items()), key=lambda span: -span[2])
    return spans[:_BEST], min(float(values[0].astype(np.float64).sum()) for values in logits)


def answer_in(
    text: str,
    rows: Sequence[Row],
    logits: Sequence[NDArray[Any]],
    *,
    over: float | None,
    most: int | None = None,
) -> dict[str, Any]:
    """Return the answer to a question, where it stands, and its probability among the likeliest spans.

    The best span has to exceed "no answer" by `over`; None where there is always an answer. With it comes `answerable`,
    the probability that the best span, rather than none, is right. `answers` tells of as many spans as `most`.
    """
    spans, none = best_spans(text, rows, logits)
    sums = np.array([*(value for *_, value in spans), *([] if over is None and spans else [none])])
    shares = np.exp(sums - sums.max()) / np.exp(sums - sums.max()).sum()
    found = [
        {"answer": text[start:end], "start": start, "end": end, "score": float(share)}
        for (start, end, _), share in zip(spans, shares, strict=False)
    ]
    result: dict[str, Any] = {"answer": None, "start": None, "end": None, "score": float(shares[-1])}
    margin = spans[0][2] - none if spans else -np.inf
    if found and (over is None or margin > over):
        result = dict(found[0])
    if over is not None:
        result["answerable"] = float(np.exp(-np.logaddexp(0, -margin)))
    return result if most is None else result | {"answers": found[:most]}
