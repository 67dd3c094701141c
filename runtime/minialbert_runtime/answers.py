"""What texts are: classes, scores or entities, whatever engine computes the logits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import UserError, quoted
from .lines import SHORTEN
from .questions import OPEN, QUESTIONS, answer_in
from .windows import Cutter, Row, Text, WordWindow
from .words import Span, WordRule, likeliest_path, tags_to_spans

Logits = NDArray[np.float32]
Over = float | NDArray[np.float64]  # a logit for all labels, or one for each

_CHUNK_BATCHES = 16  # batches whose texts are read, and sorted by length, together
_CHUNK_CHARACTERS = 1 << 20  # a chunk ends here too, so that long texts do not add up
MAX_CHARACTERS = 1_000_000
_UNIT = 1e-3  # a vector this near to length one was made so


@dataclass(frozen=True)
class Decision:
    """How a calibrated model turns logits into answers; a model without calibration has the defaults.

    Attributes:
        temperature: what logits are divided by, so that probabilities are as large as the share of right answers.
        thresholds: by class or type of entity, the probability from which on it is chosen. 0.5 is what the model does
            by itself; a lower one finds more, a higher one less that is wrong.
        decoding: of tags: "alone", each word its likeliest, or "viterbi", the likeliest path without a broken I- tag.
    """

    temperature: float = 1.0
    thresholds: Mapping[str, float] = field(default_factory=dict)
    decoding: str = "alone"

    def over(self, labels: Sequence[str], *, tagging: bool) -> NDArray[np.float64] | None:
        """Return what is taken from each label's logit before labels are compared, None where there is no threshold.

        It is the logit of the label's threshold; tags (`tagging`) have that of their type.
        """
        if not self.thresholds:
            return None
        names = [label[2:] if tagging else label for label in labels]
        return np.array([_logit(self.thresholds.get(name, 0.5)) for name in names])


def decision_of(values: object) -> Decision:
    """Return how answers are chosen, by what a task.json holds as `decision`; ValueError for what is no such rule."""
    found = {} if values is None else values
    if not isinstance(found, dict) or not {*found} <= {"temperature", "thresholds", "decoding"}:
        raise ValueError("decision is not a mapping of temperature, thresholds and decoding")
    rule = Decision(**found)
    shares = [*rule.thresholds.values()] if isinstance(rule.thresholds, dict) else [None]
    if not all(isinstance(one, float) and 0 < one < 1 for one in shares):
        raise ValueError("decision.thresholds are not probabilities between 0 and 1 by label")
    if not isinstance(rule.temperature, int | float) or not 0 < rule.temperature < math.inf:
        raise ValueError(f"decision.temperature is {rule.temperature!r}, expected a number above 0")
    if rule.decoding not in ("alone", "viterbi"):
        raise ValueError(f"decision.decoding is {rule.decoding!r}, expected alone or viterbi")
    return rule


class TextModel(ABC):
    """A model that labels texts; an engine gives the windows and their logits.

    Args:
        problem: a name of `ANSWERS`, "question-answering" or "token".
        labels: their names, by id.
        batch_size: inputs per run of the model; 32 without.
        threshold: probability over which a label of a multi-label task applies (0.5 without), one label of several is
            given, or an entity is kept (always without).
        top_k: of how many labels, the most probable ones, results have scores; all without.
        max_characters: of a text, or of each text of a pair; a longer one is refused.
        pairs: whether the model was tuned on pairs of texts; None where nobody knows.
        words: how texts are cut into words for a token task; None for a word at every punctuation mark.
        decision: how a calibrated model chooses; a `threshold` stands in place of its thresholds.

    Raises:
        UserError: an option is out of range, or not for this problem.
    """

    prompts: Mapping[str, str] = MappingProxyType({})  # of a sentence encoder, by name
    # Whether results of a tagger have its words' offsets too (`words`), and their `logits`.
    keeps_logits = False

    def __init__(
        self,
        problem: str,
        labels: Sequence[str],
        *,
        batch_size: int | None = None,
        threshold: float | None = None,
        top_k: int | None = None,
        max_characters: int = MAX_CHARACTERS,
        pairs: bool | None = None,
        words: WordRule | None = None,
        decision: Decision | None = None,
    ) -> None:
        numbers = {"a batch size": batch_size, "top_k": top_k, "max_characters": max_characters}
        for name, value in numbers.items():
            if value is not None and not (hasattr(value, "__index__") and value >= 1):
                raise UserError(f"expected {name} of at least 1, found {quoted(value)}")
        if threshold is not None and not (hasattr(threshold, "__float__") and 0 <= threshold <= 1):
            raise UserError(f"expected a threshold from 0 to 1, found {quoted(threshold)}")
        for option, given, without in (
            ("threshold", threshold, ("regression", "embedding")),
            ("top_k", top_k, ("regression", "embedding", "token")),
        ):
            if given is not None and problem in without:
                raise UserError(f"a {problem} model has no use for {option}: leave it out")
        self.problem, self.labels = problem, tuple(labels)
        self.tagging = is_tagging(problem)
        self.batch_size = 32 if batch_size is None else batch_size
        self._words = words or WordRule()
        self._threshold, self._top_k = threshold, top_k
        self.decision = decision or Decision()
        self._over = self.decision.over(self.labels, tagging=self.tagging) if threshold is None else None
        self.max_characters, self._pairs = max_characters, True if problem == QUESTIONS else pairs

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

        - single-label: `label` (None where a threshold is given and not exceeded), its probability as `score`, and
          all probabilities by name as `scores`;
        - multi-label: `labels`, the names over the threshold, and all probabilities as `scores`;
          with `top_k`, `scores` has the highest ones alone, the highest first;
        - regression: `score`;
        - embedding: `vector`, see `embed`;
        - question-answering, of pairs of a question and a text: `answer`, its `start` and `end` in the text and its
          probability as `score`; of a model that learnt questions without an answer also `answerable`, and `answer`
          is None where that does not exceed the threshold; with `top_k` the likeliest `answers`;
        - token: `entities`, each with `start` and `end` (exclusive) in the text as given, `text`, `label`, and as
          `score` the mean probability of its words' tags.

        A text that is too long for the model is read in windows that overlap. Of a token task each word is
        tagged in one of them, and an answer may lie in any. Else the logits of the windows are averaged, each weighted
        by the number of tokens that no window before it held; `windows` then tells how many there were. Of a pair the
        longer text is windowed and the shorter repeated; where that one fills more than half of a window its end is
        left out, and `cut` tells how many tokens that are. Of a question the text is always what is windowed. A model
        that was tuned on texts that were cut reads the first window alone, and `cut` tells how many tokens it did not
        read. An empty text has no entities; it is classified as an input of special tokens alone.

        Args:
            texts: texts, or pairs of texts (as tuples or lists); may be endless.

        Returns:
            The results.

        Raises:
            UserError: an input is not a text, too long, or a pair where the task wants none (or the other way round),
                or the model cannot be run. What comes before such a text has its results.
        """
        return self._results(_listed(texts))

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        dim: int | None = None,
        prompt: str = "",
        normalize: bool = False,
    ) -> NDArray[np.float32]:
        """Return one vector a text, (texts, V), of a sentence encoder.

        A long text is read in windows, whose vectors are averaged by the tokens that each adds; the mean of vectors of
        length one is brought to length one again.

        Args:
            texts: a text, or any number of them.
            dim: so many leading dimensions, as models trained for it (Matryoshka) allow; then of length one.
            prompt: put before each text.
            normalize: bring vectors to length one where the model does not; models with a module Normalize always do.

        Returns:
            float32 vectors, in the order of the texts.

        Raises:
            UserError: as `predict`; the model gives no vectors, or has fewer dimensions.
        """
        if self.problem != "embedding":
            raise UserError(f"a {self.problem} model gives no vectors: give a sentence encoder")
        if dim is not None and not (hasattr(dim, "__index__") and 1 <= dim <= len(self.labels)):
            raise UserError(f"expected from 1 to {len(self.labels)} dimensions, found {dim}")
        given = [texts] if isinstance(texts, str) else _listed(texts)
        results = self.predict(prompt + text if isinstance(text, str) else text for text in given)
        vectors = np.array([result["vector"][:dim] for result in results], np.float32).reshape(
            -1, dim or len(self.labels)
        )
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(lengths, 1e-12) if normalize or dim is not None else vectors

    def _results(self, texts: Iterable[Text | list[str]]) -> Iterator[dict[str, Any]]:
        for chunk in self._chunks(texts):
            yield from self._entities(chunk) if self.tagging else self._answered(chunk)

    def _chunks(self, texts: Iterable[Text | list[str]]) -> Iterator[list[Text]]:
        chunk: list[Text] = []
        characters = 0
        try:
            for number, given in enumerate(texts, start=1):
                if fault := self.fault(given):
                    raise UserError(f"text {number}: {fault}")
                text: Text = given if isinstance(given, str) else (given[0], given[1])
                characters += len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
                chunk.append(text)
                if len(chunk) >= _CHUNK_BATCHES * self.batch_size or characters >= _CHUNK_CHARACTERS:
                    yield chunk
                    chunk, characters = [], 0
        except UserError:  # of this text, or of a file that could not be read on
            if chunk:
                yield chunk
            raise
        if chunk:
            yield chunk

    def fault(self, given: Text | list[str]) -> str | None:
        """Return what is wrong with a text, or with a pair, for this model; None if nothing is."""
        pair = isinstance(given, tuple | list) and len(given) == 2
        for part in given if pair else (given,):
            if not isinstance(part, str):
                return f"expected a text or a pair of texts, found {type(part).__name__}"
            if len(part) > self.max_characters:
                return f"{len(part):,} characters, and the limit is {self.max_characters:,}: {SHORTEN}"
            try:
                part.encode()
            except UnicodeEncodeError:
                return "holds half of a surrogate pair, which is not a character; decode the input as UTF-8"
        if pair and self.tagging:
            return "found a pair, but entities are found in single texts"
        if self._pairs is not None and pair != self._pairs:
            if pair:
                return "found a pair, but the model was tuned on single texts: leave the second text out"
            return "found a single text, but the model was tuned on pairs of texts: give the second text, too"
        if self.problem == QUESTIONS and not given[0].strip():
            return "the question is empty"
        return None

    def _answered(self, texts: Sequence[Any]) -> Iterator[dict[str, Any]]:
        asks = self.problem == QUESTIONS
        windows = list(self._cutter().contexts(texts) if asks else self._cutter().texts(texts))
        logits = iter(self._logits([row for part in windows for row in part.rows]))
        for text, part in zip(texts, windows, strict=True):
            own = [next(logits) for _ in part.rows]
            result = {"text": text[0], "pair": text[1]} if isinstance(text, tuple) else {"text": text}
            result |= self._span(text[1], part.rows, own) if asks else self._answer(own, part.weights)
            if len(part.rows) > 1:
                result["windows"] = len(part.rows)
            if part.cut:
                result["cut"] = part.cut
            yield result

    def _span(self, text: str, rows: Sequence[Row], logits: Sequence[Logits]) -> dict[str, Any]:
        over = None if self._over is None else float(self._over[0])
        if self._threshold is not None or (over is None and self.labels == OPEN):
            over = _logit(0.5 if self._threshold is None else self._threshold)
        scaled = [values / np.float32(self.decision.temperature) for values in logits]
        return answer_in(text, rows, scaled, over=over, most=self._top_k)

    def _answer(self, logits: Sequence[Logits], weights: Sequence[int]) -> dict[str, Any]:
        mean = pooled(logits, weights) / self.decision.temperature
        if self.problem == "embedding" and abs(np.linalg.norm(logits[0]) - 1) < _UNIT:
            mean /= np.linalg.norm(mean)
        one = _logit(0.5 if self._threshold is None else self._threshold)
        over: Over = one if self._over is None else self._over
        answer = ANSWERS[self.problem](mean, self.labels, over)
        if self._threshold is not None and "label" in answer and answer.get("score", 1.0) <= self._threshold:
            answer["label"] = None
        if self._top_k is not None and "scores" in answer:
            highest = sorted(answer["scores"].items(), key=lambda item: -item[1])
            answer["scores"] = dict(highest[: self._top_k])
        return answer

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
            values = values / self.decision.temperature
            tags, chances = tags_of(values, self.labels, self._over, self.decision.decoding)
            found = entities_at(text, its_offsets, tags_to_spans(tags, its_offsets, text), chances)
            least = self._threshold
            kept = [one for one in found if least is None or one["score"] > least]
            evidence = {"words": its_offsets, "logits": values} if self.keeps_logits else {}
            yield {"text": text, "entities": kept, **evidence}


def _listed(texts: Iterable[Text]) -> Iterable[Text]:
    """Return texts as given; refuse what gives no texts: keys of a mapping, a frame's columns, a data set's rows."""
    readable = hasattr(texts, "__iter__") or hasattr(texts, "__getitem__")
    is_table = hasattr(texts, "columns") or hasattr(texts, "column_names")
    if not readable or is_table or isinstance(texts, str | bytes | Mapping):
        raise UserError(
            f"expected a list of texts, found {type(texts).__name__}: give [text] for one text, and of a table the "
            "column with the texts"
        )
    return texts


def prompt_of(model: TextModel, prompt: str | None) -> str:
    """Return the text of a prompt that a model has by that name, or a text with a space or colon as it is."""
    if prompt is None or prompt in model.prompts:
        return model.prompts[prompt] if prompt is not None else ""
    if not any(sign in prompt for sign in " :"):
        raise UserError(
            f"the model has no prompt {quoted(prompt)} (it has {', '.join(model.prompts) or 'none'}): give one of "
            "them, or the text itself, as in 'query: '"
        )
    return prompt


def class_of(logits: NDArray[np.float64], labels: Sequence[str], logit_threshold: Over) -> dict[str, Any]:
    """Return the likeliest class of a text and all probabilities, from its logits (labels,)."""
    scores = dict(zip(labels, _softmax(logits).tolist(), strict=True))
    of_each = isinstance(logit_threshold, np.ndarray)  # one for all changes nothing here
    label = labels[int((logits - logit_threshold if of_each else logits).argmax())]
    return {"label": label, "score": scores[label], "scores": scores}


def classes_over(logits: NDArray[np.float64], labels: Sequence[str], logit_threshold: Over) -> dict[str, Any]:
    """Return the classes of a text that are over a threshold, and all probabilities, from its logits (labels,)."""
    chosen = (logits > logit_threshold).tolist()
    names = [name for name, applies in zip(labels, chosen, strict=True) if applies]
    # Of -x, and as a logarithm: exp(x) would overflow.
    values = np.exp(-np.logaddexp(0, -logits))
    return {"labels": names, "scores": dict(zip(labels, values.tolist(), strict=True))}


def score_of(logits: NDArray[np.float64], labels: Sequence[str], logit_threshold: Over) -> dict[str, Any]:
    """Return the score of a text, from its logits (1,)."""
    return {"score": float(logits[0])}


# What the logits of a text say, by kind of task.
ANSWERS: dict[str, Callable[[NDArray[np.float64], Sequence[str], Any], dict[str, Any]]] = {
    "single-label": class_of,
    "multi-label": classes_over,
    "regression": score_of,
    "embedding": lambda logits, labels, logit_threshold: {"vector": logits.tolist()},  # (V,)
}


def is_tagging(problem: str) -> bool:
    """Tell whether a kind of task labels words."""
    return problem not in ANSWERS and problem != QUESTIONS


def pooled(logits: Sequence[Logits], weights: Sequence[int]) -> NDArray[np.float64]:
    """Return the mean logits of a text's windows, (labels,), weighted by the tokens that each is the first to hold."""
    if len(logits) == 1:
        return logits[0].astype(np.float64)
    return np.asarray(np.average(np.stack(logits).astype(np.float64), axis=0, weights=weights))


def word_logits(
    counts: Sequence[int],
    owners: Sequence[int],
    windows: Sequence[WordWindow],
    logits: Sequence[Logits],
    num_labels: int,
) -> list[Logits]:
    """Return the logits of each word, (words, labels) of each text: those of its first piece, in the window it is of.

    Given are the number of words of each text, the text of each window, and the windows with logits (tokens, labels).
    """
    found = [np.zeros((count, num_labels), np.float32) for count in counts]
    for owner, window, values in zip(owners, windows, logits, strict=True):
        positions, words = window.first_pieces
        found[owner][words] = values[positions]
    return found


def tags_of(
    logits: Logits, labels: Sequence[str], over: NDArray[np.float64] | None = None, decoding: str = "alone"
) -> tuple[list[str], list[float]]:
    """Return the tag of each word of a text, and its probability, from logits (words, labels).

    `over` is that of a decision, taken from the logits first; a path runs over all words of the text.
    """
    values = logits if over is None else logits - over
    best = likeliest_path(values, tuple(labels)) if decoding == "viterbi" else values.argmax(axis=1)
    chances = _softmax(logits.astype(np.float64))[np.arange(len(best)), best].tolist()
    return [labels[one] for one in best.tolist()], chances


def entities_at(
    text: str, offsets: Sequence[tuple[int, int]], spans: Sequence[Span], chances: Sequence[float]
) -> list[dict[str, Any]]:
    """Return entities as results have them, scored by the mean of `chances`, the probabilities of their words' tags."""
    starts = [start for start, _ in offsets]
    entities = []
    for span in spans:
        # An entity that somebody annotated may begin inside a word.
        inside = chances[max(0, bisect_right(starts, span.start) - 1) : bisect_left(starts, span.end)]
        entity = {"start": span.start, "end": span.end, "text": text[span.start : span.end]}
        entities.append(entity | {"label": span.label, "score": sum(inside) / max(1, len(inside))})
    return entities


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _logit(probability: float) -> float:
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability) - math.log1p(-probability)
