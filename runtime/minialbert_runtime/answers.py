"""What texts are: classes, scores or entities, whatever engine computes the logits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import UserError
from .windows import Cutter, Row, Text, WordWindow
from .words import WordRule, tags_to_spans

Logits = NDArray[np.float32]

_CHUNK_BATCHES = 16  # batches whose texts are read, and sorted by length, together
_CHUNK_CHARACTERS = 1 << 22  # a chunk ends here too, so that long texts do not add up


class TextModel(ABC):
    """A model that labels texts; an engine gives the windows and their logits.

    Args:
        problem: a name of `ANSWERS`, or "token".
        labels: their names, by id.
        batch_size: inputs per run of the model.
        threshold: probability over which a label of a multi-label task applies.
        words: how texts are cut into words for a token task; None for a word at every punctuation mark.

    Raises:
        UserError: an option is out of range.
    """

    def __init__(
        self,
        problem: str,
        labels: Sequence[str],
        *,
        batch_size: int,
        threshold: float,
        words: WordRule | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"expected a batch size of at least 1, found {batch_size}")
        if not 0 <= threshold <= 1:
            raise UserError(f"expected a threshold from 0 to 1, found {threshold}")
        self.problem, self.labels = problem, tuple(labels)
        self.tagging = problem not in ANSWERS
        self.batch_size = batch_size
        self._words = words or WordRule()
        self._logit_threshold = _logit(threshold)

    @abstractmethod
    def _cutter(self) -> Cutter:
        """Return what cuts texts into inputs."""

    @abstractmethod
    def _logits(self, rows: Sequence[Row]) -> list[Logits]:
        """Return the logits of every input, in order: (labels,), or (tokens, labels) of a token task."""

    def __call__(self, text: str, pair: str | None = None) -> dict[str, Any]:
        """Return the result of one text or pair, as `predict` does of many.

        Args:
            text: the text.
            pair: the second text, for a task of pairs.

        Returns:
            The result.

        Raises:
            UserError: as `predict`.
        """
        (result,) = self.predict([text if pair is None else (text, pair)])
        return result

    def predict(self, texts: Iterable[Text]) -> Iterator[dict[str, Any]]:
        """Return one result per text, in the order of the texts, which are read a chunk at a time.

        Each result repeats its `text` (and `pair`) and adds

        - single-label: `label`, its probability as `score`, and all probabilities by name as `scores`;
        - multi-label: `labels`, the names over the threshold, and all probabilities as `scores`;
        - regression: `score`;
        - token: `entities`, each with `start` and `end` (exclusive) in the text as given, `text`, `label`, and as
          `score` the mean probability of its words' tags.

        A text that is too long for the model is read in windows that overlap. Of a token task each word is
        tagged in one of them. Else the logits of the windows are averaged, each weighted by the number of tokens
        that no window before it held; `windows` then tells how many there were. Of a pair the longer text is
        windowed and the shorter repeated; where that one fills more than half of a window its end is left out,
        and `cut` tells how many tokens that are. An empty text has no entities; it is classified as an input of
        special tokens alone.

        Args:
            texts: texts, or pairs of texts; may be endless.

        Returns:
            The results.

        Raises:
            UserError: a text is no text, or a pair where the task wants none, or the model cannot be run.
        """
        if isinstance(texts, str):
            raise UserError("predict expects an iterable of texts: give [text] for one text")
        return self._results(texts)

    def _results(self, texts: Iterable[Text]) -> Iterator[dict[str, Any]]:
        for chunk in _chunks(texts, _CHUNK_BATCHES * self.batch_size, single=self.tagging):
            yield from self._entities(chunk) if self.tagging else self._classes(chunk)

    def _classes(self, texts: Sequence[Text]) -> Iterator[dict[str, Any]]:
        windows = list(self._cutter().texts(texts))
        logits = self._logits([row for part in windows for row in part.rows])
        begin = 0
        for text, part in zip(texts, windows, strict=True):
            end = begin + len(part.rows)
            mean = np.average(np.stack(logits[begin:end]).astype(np.float64), axis=0, weights=part.weights)
            begin = end
            pair = isinstance(text, tuple)
            result: dict[str, Any] = {"text": text[0], "pair": text[1]} if pair else {"text": text}
            result |= ANSWERS[self.problem](mean, self.labels, self._logit_threshold)
            if len(part.rows) > 1:
                result["windows"] = len(part.rows)
            if part.cut:
                result["cut"] = part.cut
            yield result

    def _entities(self, texts: Sequence[Text]) -> Iterator[dict[str, Any]]:
        sentences = [text for text in texts if isinstance(text, str)]
        offsets = [self._words.split(text) for text in sentences]
        words = [
            [text[start:end] for start, end in its_offsets]
            for text, its_offsets in zip(sentences, offsets, strict=True)
        ]
        windows = list(self._cutter().words(words))
        flat = [window for its_windows in windows for window in its_windows]
        owners = [owner for owner, its_windows in enumerate(windows) for _ in its_windows]
        logits = self._logits([Row(list(window.input_ids)) for window in flat])
        by_word = word_logits(list(map(len, words)), owners, flat, logits, len(self.labels))
        for text, its_offsets, values in zip(sentences, offsets, by_word, strict=True):
            tags = [self.labels[best] for best in values.argmax(axis=1).tolist()]
            chances = _softmax(values.astype(np.float64)).max(axis=1).tolist()
            yield {"text": text, "entities": _entities(text, its_offsets, tags, chances)}


def class_of(
    logits: NDArray[np.float64],
    labels: Sequence[str],
    logit_threshold: float,  # noqa: ARG001 - of several classes
) -> dict[str, Any]:
    """Return the likeliest class of a text and all probabilities, from its logits (labels,)."""
    scores = dict(zip(labels, _softmax(logits).tolist(), strict=True))
    label = labels[int(logits.argmax())]
    return {"label": label, "score": scores[label], "scores": scores}


def classes_over(
    logits: NDArray[np.float64], labels: Sequence[str], logit_threshold: float
) -> dict[str, Any]:
    """Return the classes of a text that are over a threshold, and all probabilities, from its logits (labels,)."""
    chosen = (logits > logit_threshold).tolist()
    names = [name for name, applies in zip(labels, chosen, strict=True) if applies]
    # Of -x, and as a logarithm: exp(x) would overflow.
    values = np.exp(-np.logaddexp(0, -logits))
    return {"labels": names, "scores": dict(zip(labels, values.tolist(), strict=True))}


def score_of(
    logits: NDArray[np.float64],
    labels: Sequence[str],  # noqa: ARG001 - of classes
    logit_threshold: float,  # noqa: ARG001
) -> dict[str, Any]:
    """Return the score of a text, from its logits (1,)."""
    return {"score": float(logits[0])}


# What the logits of a text say, by kind of task; a kind that is none of these labels words.
ANSWERS: dict[str, Callable[[NDArray[np.float64], Sequence[str], float], dict[str, Any]]] = {
    "single-label": class_of,
    "multi-label": classes_over,
    "regression": score_of,
}


def word_logits(
    counts: Sequence[int],
    owners: Sequence[int],
    windows: Sequence[WordWindow],
    logits: Sequence[Logits],
    num_labels: int,
) -> list[Logits]:
    """Return the logits of each word: those of its first piece, in the window to which it belongs.

    Args:
        counts: words of each text.
        owners: the text of each window.
        windows: the windows of all texts.
        logits: of each window, (tokens, labels).
        num_labels: labels of the model.

    Returns:
        For each text (words, labels).
    """
    found = [np.zeros((count, num_labels), np.float32) for count in counts]
    for owner, window, values in zip(owners, windows, logits, strict=True):
        positions, words = window.first_pieces
        found[owner][words] = values[positions]
    return found


def _entities(
    text: str, offsets: Sequence[tuple[int, int]], tags: Sequence[str], chances: Sequence[float]
) -> list[dict[str, Any]]:
    starts = [start for start, _ in offsets]
    entities = []
    for span in tags_to_spans(tags, offsets, text):
        inside = chances[bisect_left(starts, span.start) : bisect_left(starts, span.end)]
        entities.append(
            {
                "start": span.start,
                "end": span.end,
                "text": text[span.start : span.end],
                "label": span.label,
                "score": sum(inside) / len(inside),
            }
        )
    return entities


def _chunks(texts: Iterable[Text], size: int, *, single: bool) -> Iterator[list[Text]]:
    chunk: list[Text] = []
    characters = 0
    for number, text in enumerate(texts, start=1):
        characters += _checked_length(number, text, single=single)
        chunk.append(text)
        if len(chunk) >= size or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _checked_length(number: int, text: object, *, single: bool) -> int:
    parts = text if isinstance(text, tuple) and len(text) == 2 else (text,)
    characters = 0
    for part in parts:
        if not isinstance(part, str):
            found = type(part).__name__
            raise UserError(f"text {number}: expected a text or a pair of texts, found {found}")
        try:
            part.encode()
        except UnicodeEncodeError as error:
            message = "holds half of a surrogate pair, which is no character"
            raise UserError(f"text {number}: {message}; decode the input as UTF-8") from error
        characters += len(part)
    if single and len(parts) > 1:
        raise UserError(f"text {number}: found a pair, but entities are found in single texts")
    return characters


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _logit(probability: float) -> float:
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability) - math.log1p(-probability)
