"""A model in an exported folder, and what it says about texts."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers

from .errors import RuntimeUserError, one_line
from .folder import MODEL_FILE, TOKENIZER_FILE, Folder, read_folder
from .windows import Cutter, Row, Text, WordWindow
from .words import entity_runs, split_words

Logits = NDArray[np.float32]

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_CHUNK_BATCHES = 16  # batches whose texts are read, and sorted by length, together
_CHUNK_CHARACTERS = 1 << 22  # a chunk ends here too, so that long texts do not add up
_FATAL = 4  # ONNX Runtime's log level: its errors come as exceptions, and need not be printed too


class Model:
    """A model that labels texts, read from an exported folder.

    Args:
        folder: a folder that `minialbert export` wrote for a task.
        batch_size: inputs per run of the model.
        threshold: probability over which a label of a multi-label task applies.
        threads: threads of one run; None for one on each physical core that the process may use.

    Raises:
        RuntimeUserError: a file is missing or damaged, the model labels no text, or an option is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        batch_size: int = 32,
        threshold: float = 0.5,
        threads: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise RuntimeUserError(f"expected a batch size of at least 1, found {batch_size}")
        if not 0 <= threshold <= 1:
            raise RuntimeUserError(f"expected a threshold from 0 to 1, found {threshold}")
        if threads is not None and threads < 1:
            raise RuntimeUserError(f"expected at least 1 thread, found {threads}")
        self.folder = read_folder(folder)
        self.batch_size = batch_size
        self._logit_threshold = _logit(threshold)
        tokenizer = _load_tokenizer(self.folder)
        self._pad = _token_id(tokenizer, self.folder.pad_token, self.folder.pad_token_id)
        self._cutter = Cutter(
            tokenizer,
            max_length=self.folder.max_length,
            overlap=self.folder.overlap,
            pad_token_id=self._pad,
            unknown_token_id=_token_id(tokenizer, self.folder.unknown_token, self._pad),
        )
        self._session = _load_session(self.folder, threads or _physical_cores())
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._output = self._session.get_outputs()[0].name

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, by id."""
        return self.folder.labels

    @property
    def problem(self) -> str:
        """The kind of task: "single-label", "multi-label", "regression" or "token"."""
        return self.folder.problem

    def __call__(self, text: str, pair: str | None = None) -> dict[str, Any]:
        """Return the result of one text or pair, as `predict` does of many.

        Args:
            text: the text.
            pair: the second text, for a task of pairs.

        Returns:
            The result.

        Raises:
            RuntimeUserError: as `predict`.
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
        and `cut` tells how many tokens that are.

        Args:
            texts: texts, or pairs of texts; may be endless.

        Returns:
            The results.

        Raises:
            RuntimeUserError: a text is no text, or a pair where the task wants none, or the model cannot be run.
        """
        if isinstance(texts, str):
            raise RuntimeUserError("predict expects an iterable of texts: give [text] for one text")
        return self._results(texts)

    def _results(self, texts: Iterable[Text]) -> Iterator[dict[str, Any]]:
        single = self.problem == "token"
        for chunk in _chunks(texts, _CHUNK_BATCHES * self.batch_size, single=single):
            yield from self._entities(chunk) if single else self._classes(chunk)

    def _classes(self, texts: Sequence[Text]) -> Iterator[dict[str, Any]]:
        windows = list(self._cutter.texts(texts))
        logits = self._logits([row for part in windows for row in part.rows])
        begin = 0
        for text, part in zip(texts, windows, strict=True):
            end = begin + len(part.rows)
            mean = np.average(np.stack(logits[begin:end]).astype(np.float64), axis=0, weights=part.weights)
            begin = end
            pair = isinstance(text, tuple)
            result: dict[str, Any] = {"text": text[0], "pair": text[1]} if pair else {"text": text}
            result |= self._answer(mean)
            if len(part.rows) > 1:
                result["windows"] = len(part.rows)
            if part.cut:
                result["cut"] = part.cut
            yield result

    def _answer(self, logits: NDArray[np.float64]) -> dict[str, Any]:
        if self.problem == "regression":
            return {"score": float(logits[0])}
        multi = self.problem == "multi-label"
        # Of -x, and as a logarithm: exp(x) would overflow.
        values = np.exp(-np.logaddexp(0, -logits)) if multi else _softmax(logits)
        scores = dict(zip(self.labels, values.tolist(), strict=True))
        if multi:
            chosen = (logits > self._logit_threshold).tolist()
            names = [name for name, applies in zip(self.labels, chosen, strict=True) if applies]
            return {"labels": names, "scores": scores}
        label = self.labels[int(logits.argmax())]
        return {"label": label, "score": scores[label], "scores": scores}

    def _entities(self, texts: Sequence[Text]) -> Iterator[dict[str, Any]]:
        sentences = [text for text in texts if isinstance(text, str)]
        offsets = [split_words(text) for text in sentences]
        words = [
            [text[start:end] for start, end in its_offsets]
            for text, its_offsets in zip(sentences, offsets, strict=True)
        ]
        windows = list(self._cutter.words(words))
        logits = iter(self._logits([window.row for its_windows in windows for window in its_windows]))
        for text, its_offsets, its_windows in zip(sentences, offsets, windows, strict=True):
            tags, chances = self._tags(len(its_offsets), its_windows, logits)
            entities = []
            for label, first, last in entity_runs(tags):
                start, end = its_offsets[first][0], its_offsets[last][1]
                inside = chances[first : last + 1]
                entities.append(
                    {
                        "start": start,
                        "end": end,
                        "text": text[start:end],
                        "label": label,
                        "score": sum(inside) / len(inside),
                    }
                )
            yield {"text": text, "entities": entities}

    def _tags(
        self, count: int, windows: Sequence[WordWindow], logits: Iterator[Logits]
    ) -> tuple[list[str], list[float]]:
        """Return the tag of each word, that of its first piece, and the tag's probability."""
        tags, chances = ["O"] * count, [0.0] * count
        for window in windows:
            values = next(logits)
            best = values.argmax(axis=1).tolist()
            highest = _softmax(values.astype(np.float64)).max(axis=1).tolist()
            for position, word in window.first_pieces:
                tags[word] = self.labels[best[position]]
                chances[word] = highest[position]
        return tags, chances

    def _logits(self, rows: Sequence[Row]) -> list[Logits]:
        """Return the logits of every input, computed longest first so that batches need little padding."""
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row].input_ids))
        results: dict[int, Logits] = {}
        for begin in range(0, len(order), self.batch_size):
            batch = order[begin : begin + self.batch_size]
            logits = self._run([rows[row] for row in batch])
            for row, values in zip(batch, logits, strict=True):
                results[row] = values[: len(rows[row].input_ids)] if values.ndim == 2 else values
        return [results[row] for row in range(len(rows))]

    def _run(self, rows: Sequence[Row]) -> Logits:
        shape = (len(rows), max(len(row.input_ids) for row in rows))
        ids = np.full(shape, self._pad, dtype=np.int64)
        mask, types = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for index, row in enumerate(rows):
            length = len(row.input_ids)
            ids[index, :length] = row.input_ids
            mask[index, :length] = 1
            # Taggers were trained without token types, which is zeros.
            if self.folder.has_token_types and self.problem != "token":
                types[index, :length] = row.token_type_ids
        columns = dict(zip(_INPUTS, (ids, mask, types), strict=True))
        path = self.folder.path / MODEL_FILE
        try:
            (logits,) = self._session.run([self._output], {name: columns[name] for name in self._inputs})
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise RuntimeUserError(
                f"{path} could not be run on {shape[0]} inputs of {shape[1]} tokens ({one_line(error)})"
            ) from error
        expected = (*shape, len(self.labels)) if self.problem == "token" else (shape[0], len(self.labels))
        if logits.shape != expected:
            raise RuntimeUserError(
                f"{path} gives logits of shape {logits.shape}, expected {expected}: config.json or export.json belong "
                "to another model"
            )
        if not np.isfinite(logits).all():
            raise RuntimeUserError(f"{path}: its outputs are not finite; export the model again")
        return np.asarray(logits, dtype=np.float32)


def _load_tokenizer(folder: Folder) -> Tokenizer:
    path = folder.path / TOKENIZER_FILE
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the parser raises Exception itself
        raise RuntimeUserError(f"{path} is damaged ({one_line(error)}): export the model again") from error
    # What the file says about lengths is for training; a text must come through whole.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = folder.split_special_tokens
    rule = tokenizer.pre_tokenizer
    # Byte-level BPE tells a word by the space before it; words alone have none.
    if folder.problem == "token" and isinstance(rule, pre_tokenizers.ByteLevel):
        rule.add_prefix_space = True
    return tokenizer


def _token_id(tokenizer: Tokenizer, token: str | None, otherwise: int) -> int:
    found = None if token is None else tokenizer.token_to_id(token)
    return otherwise if found is None else int(found)


def _load_session(folder: Folder, threads: int) -> onnxruntime.InferenceSession:
    path = folder.path / MODEL_FILE
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise RuntimeUserError(
            f"{path} could not be loaded ({one_line(error)}): export the model again"
        ) from error
    strange = [node.name for node in session.get_inputs() if node.name not in _INPUTS]
    if strange:
        raise RuntimeUserError(
            f"{path} wants the inputs {', '.join(strange)}: expected some of {', '.join(_INPUTS)}"
        )
    return session


def _physical_cores() -> int:
    """Return the number of physical cores that this process may use; 0, ONNX Runtime's own count, elsewhere.

    ONNX Runtime counts all cores of the machine, and ties its threads to them, where it has to count by itself.
    """
    try:
        allowed = os.sched_getaffinity(0)
        siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
        return len({Path(siblings.format(cpu)).read_text(encoding="ascii") for cpu in allowed})
    except (AttributeError, OSError):
        return 0


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
            raise RuntimeUserError(f"text {number}: expected a text or a pair of texts, found {found}")
        try:
            part.encode()
        except UnicodeEncodeError as error:
            message = "holds half of a surrogate pair, which is no character"
            raise RuntimeUserError(f"text {number}: {message}; decode the input as UTF-8") from error
        characters += len(part)
    if single and len(parts) > 1:
        raise RuntimeUserError(f"text {number}: found a pair, but entities are found in single texts")
    return characters


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _logit(probability: float) -> float:
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability) - math.log1p(-probability)
