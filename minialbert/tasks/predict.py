"""Predictions of a tuned model for plain texts: classes, scores, or entities with their place in the text."""

from __future__ import annotations

import codecs
import json
import logging
import math
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from minialbert.data.examples import Task
from minialbert.data.spans import split_words, tags_to_spans
from minialbert.data.table_files import EXTENSIONS, read_table
from minialbert.data.task_inputs import Encoded, WordWindow, word_windows
from minialbert.data.text_windows import Text, text_windows
from minialbert.errors import UserError, listed, quoted
from minialbert.runs.machine import resolve_precision
from minialbert.tasks.models import TaskInputs, load_tuned, model_labels
from minialbert.tasks.predictions import Logits, depth_arguments, depth_notes, make_collator, run_model

if TYPE_CHECKING:
    from minialbert.data.text_windows import Text

logger = logging.getLogger(__name__)


STDIN = "-"
_PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_CHUNK_BATCHES = 16  # batches whose texts are read, and sorted by length, together
_CHUNK_CHARACTERS = 1 << 22  # a chunk ends here too, so that long texts do not add up
# Ends of a line for some readers, and what commands some terminals: JSON allows both inside a string as they are.
_SPELLED_OUT = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}


class Predictor:
    """A tuned model that takes texts and gives results as dictionaries.

    Args:
        model: a model with a task head.
        tokenizer: its tokenizer.
        inputs: the kind of task, and how long inputs are.
        precision: "auto", "fp32", "bf16" or "fp16".
        batch_size: inputs per forward pass.
        threshold: probability over which a label of a multi-label task applies.
        num_iterations: how often a MiniALBERT applies its block; None for its own depth.
        exit_threshold: confidence at which an input leaves a MiniALBERT early; None for what its config says.

    Raises:
        UserError: an option is out of range, or the labels of a token task are not IOB2 tags.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        inputs: TaskInputs,
        *,
        precision: str = "fp32",
        batch_size: int = 32,
        threshold: float = 0.5,
        num_iterations: int | None = None,
        exit_threshold: float | None = None,
    ) -> None:
        if precision not in _PRECISIONS:
            raise UserError(f"unknown precision {precision!r}: expected one of {', '.join(_PRECISIONS)}")
        if batch_size < 1:
            raise UserError(f"expected a batch size of at least 1, found {batch_size}")
        if not 0 <= threshold <= 1:
            raise UserError(f"expected a threshold from 0 to 1, found {threshold}")
        self._depth = depth_arguments(model, num_iterations, exit_threshold)
        for note in depth_notes(model, num_iterations):
            logger.warning(note)
        self.model, self.tokenizer, self.inputs = model, tokenizer, inputs
        self.labels = model_labels(model)
        self.precision, self.batch_size = resolve_precision(precision), batch_size
        self._logit_threshold = _logit(threshold)
        self._collator = make_collator(
            Task(inputs.task, inputs.problem, self.labels, inputs.metric, {}), tokenizer
        )
        if inputs.problem == "token":
            try:
                tags_to_spans(self.labels, [(0, 1)] * len(self.labels))
            except ValueError as error:
                names = ", ".join(self.labels[:6])
                raise UserError(
                    f"entities need a model whose labels are O, B-TYPE and I-TYPE; this one has {names}"
                ) from error

    @classmethod
    def load(cls, name: str, **options: Any) -> Predictor:  # noqa: ANN401
        """Return the predictor of a model that was tuned before, on the GPU where there is one.

        Args:
            name: directory or hub id.
            **options: of `Predictor`, by name.

        Returns:
            The predictor.

        Raises:
            UserError: if the model cannot be loaded or has no task head, or an option is out of range.
        """
        model, tokenizer, inputs = load_tuned(name)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model, tokenizer, inputs, **options)

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
            UserError: a text is no text, or a pair where the task wants none, or the logits are not finite.
        """
        if isinstance(texts, str):
            raise UserError("predict expects an iterable of texts: give [text] for one text")
        return self._results(texts)

    def _results(self, texts: Iterable[Text]) -> Iterator[dict[str, Any]]:
        for chunk in _chunks(texts, _CHUNK_BATCHES * self.batch_size, self.inputs.problem == "token"):
            yield from self._entities(chunk) if self.inputs.problem == "token" else self._classes(chunk)

    def _classes(self, texts: Sequence[Text]) -> Iterator[dict[str, Any]]:
        inputs = self.inputs
        windows = text_windows(texts, self.tokenizer, max_length=inputs.max_length, overlap=inputs.overlap)
        rows = [row for part in windows for row in part.rows]
        owners = [owner for owner, part in enumerate(windows) for _ in part.rows]
        logits = self._logits(Encoded(rows, owners))
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
        if self.inputs.problem == "regression":
            return {"score": float(logits[0])}
        multi = self.inputs.problem == "multi-label"
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
        words = [split_words(text) for text in sentences]
        owners: list[int] = []
        windows: list[WordWindow] = []
        for owner, (text, offsets) in enumerate(zip(sentences, words, strict=True)):
            cut = word_windows(
                [text[start:end] for start, end in offsets],
                self.tokenizer,
                max_length=self.inputs.max_length,
                overlap=self.inputs.overlap,
            )
            windows += cut
            owners += [owner] * len(cut)
        rows = [{"input_ids": list(window.input_ids)} for window in windows]
        tags = [["O"] * len(offsets) for offsets in words]
        probabilities = [[0.0] * len(offsets) for offsets in words]
        for owner, window, logits in zip(owners, windows, self._logits(Encoded(rows, owners)), strict=True):
            # As in `predictions.word_tags`: a word has the tag of its first piece.
            best = logits.argmax(axis=1).tolist()
            chances = _softmax(logits.astype(np.float64)).max(axis=1).tolist()
            for position, (word, first) in enumerate(zip(window.words, window.firsts, strict=True)):
                if first:
                    tags[owner][word] = self.labels[best[position]]
                    probabilities[owner][word] = chances[position]
        for text, offsets, its_tags, its_chances in zip(sentences, words, tags, probabilities, strict=True):
            yield {"text": text, "entities": _spelled_out(text, offsets, its_tags, its_chances)}

    def _logits(self, encoded: Encoded) -> list[Logits]:
        results = run_model(
            self.model,
            encoded,
            self._collator,
            batch_size=self.batch_size,
            precision=self.precision,
            **self._depth,
        )
        if not all(np.isfinite(values).all() for values in results):
            raise UserError(
                f"the model's outputs are not finite in {self.precision}: "
                + ("its weights are damaged" if self.precision == "fp32" else "use the precision fp32")
            )
        return results


def read_inputs(
    paths: Sequence[str],
    *,
    column: str | None = None,
    pair_column: str | None = None,
    stdin: BinaryIO | None = None,
) -> Iterator[Text]:
    """Return the texts of files, in order: one per line of text files and stdin, one per row of tables.

    All paths are looked at before the first text is read. Blank lines are texts too, so that results can be put
    beside their lines; blank lines of tables are no rows.

    Args:
        paths: .txt files; tables (.csv, .tsv, .jsonl, .ndjson, .parquet); "-" for stdin.
        column: the column of a table that holds the text; `text` by default.
        pair_column: the column with the second text of a pair.
        stdin: the stream that "-" means, of bytes; the process's by default.

    Returns:
        Texts, or pairs where there is a `pair_column`.

    Raises:
        UserError: a file is missing, of an unknown kind, damaged or not UTF-8, or lacks the column or a cell of it;
            names the file and the row.
    """
    kinds = [_kind(path) for path in paths]
    if (column is not None or pair_column is not None) and "table" not in kinds:
        raise UserError(
            f"columns are for tables ({' '.join(EXTENSIONS)}), and there is none: leave the column out"
        )
    stream = sys.stdin.buffer if stdin is None else stdin
    return _all_inputs(list(zip(paths, kinds, strict=True)), column or "text", pair_column, stream)


def to_json_line(result: dict[str, Any]) -> str:
    """Return a result as JSON on one line, without its line end; characters stay as they are.

    Args:
        result: what `Predictor.predict` yields.

    Returns:
        JSON that any parser takes: a number that is not finite is refused.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(result, ensure_ascii=False, allow_nan=False).translate(_SPELLED_OUT)


def _chunks(texts: Iterable[Text], size: int, single: bool) -> Iterator[list[Text]]:
    chunk: list[Text] = []
    characters = 0
    for number, text in enumerate(texts, start=1):
        characters += _checked_length(number, text, single)
        chunk.append(text)
        if len(chunk) >= size or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _checked_length(number: int, text: object, single: bool) -> int:
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


def _spelled_out(
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


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _logit(probability: float) -> float:
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability) - math.log1p(-probability)


def _kind(path: str) -> str:
    if path == STDIN:
        return "stdin"
    suffix = Path(path).suffix.lower()
    if suffix != ".txt" and suffix not in EXTENSIONS:
        expected = " ".join((".txt", *EXTENSIONS))
        raise UserError(f"{path}: unknown extension; expected one of {expected}, or - for stdin")
    if not Path(path).is_file():
        raise UserError(f"no such file: {path}")
    return "table" if suffix in EXTENSIONS else "lines"


def _all_inputs(
    sources: Sequence[tuple[str, str]], column: str, pair_column: str | None, stdin: BinaryIO
) -> Iterator[Text]:
    for path, kind in sources:
        if kind == "table":
            yield from _table_inputs(Path(path), column, pair_column)
        elif kind == "stdin":
            yield from _lines(stdin, "stdin")
        else:
            try:
                with open(path, "rb") as file:
                    yield from _lines(file, path)
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _lines(stream: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if b"\0" in content:
            raise UserError(
                f"{name}:{number}: a NUL byte; expected UTF-8 text (is this UTF-16, or another kind of file?)"
            )
        try:
            yield content.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            byte = content[error.start]
            message = f"not UTF-8 (byte 0x{byte:02x}); convert the input to UTF-8"
            raise UserError(f"{name}:{number}: {message}") from error


def _table_inputs(path: Path, column: str, pair_column: str | None) -> Iterator[Text]:
    table = read_table(path)
    names = [column] if pair_column is None else [column, pair_column]
    for name in names:
        if name not in table.columns:
            have = listed(quoted(found) for found in table.columns)
            raise UserError(f"{path}: no column {quoted(name)}; name one of its columns, which are {have}")
    for row, cells in table.rows:
        for name in names:
            if not isinstance(cells.get(name), str):
                found = "nothing" if cells.get(name) is None else type(cells[name]).__name__
                raise table.error(row, f"expected a text in column {name!r}, found {found}")
        yield cells[column] if pair_column is None else (cells[column], cells[pair_column])


EXPORT_FILE = "export.json"


class ExportedPredictor:
    """The model of an exported folder, with the results and the errors of `minialbert.tasks.predict.Predictor`.

    Args:
        folder: a folder that `minialbert export` wrote for a task.
        batch_size: inputs per run of the model.
        threshold: probability over which a label of a multi-label task applies.
        threads: threads of one run; None for one on each physical core.

    Raises:
        UserError: `minialbert-runtime` is not installed, a file is missing or damaged, the model labels no text, or
            an option is out of range.
    """

    def __init__(
        self, folder: str | Path, *, batch_size: int = 32, threshold: float = 0.5, threads: int | None = None
    ) -> None:
        try:
            from minialbert_runtime import Model, RuntimeUserError
        except ImportError as error:
            raise UserError(
                "predicting with an exported folder needs minialbert-runtime: pip install it from the folder runtime/ "
                f"of the repository ({error.name} is missing)"
            ) from error
        self._mistake = RuntimeUserError
        try:
            self.model = Model(folder, batch_size=batch_size, threshold=threshold, threads=threads)
        except RuntimeUserError as error:
            raise UserError(str(error)) from error

    def predict(self, texts: Iterable[Text]) -> Iterator[dict[str, Any]]:
        """Return one result per text, as `Predictor.predict` does.

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
        try:
            yield from self.model.predict(texts)
        except self._mistake as error:
            raise UserError(str(error)) from error


def is_exported(name: str | Path) -> bool:
    """Tell whether a name is that of an exported folder."""
    return (Path(name) / EXPORT_FILE).is_file()


def load_predictor(
    name: str,
    *,
    batch_size: int = 32,
    threshold: float = 0.5,
    precision: str = "auto",
    **options: Any,
) -> Predictor | ExportedPredictor:
    """Return the predictor of a tuned model, or of an exported folder.

    Args:
        name: directory or hub id of a tuned model, or a folder that `minialbert export` wrote.
        batch_size: inputs per forward pass.
        threshold: probability over which a label of a multi-label task applies.
        precision: "auto", "fp32", "bf16" or "fp16"; an exported folder has its own, and takes "auto" alone.
        **options: further options of `Predictor.load`; those that are None are left at their defaults.

    Returns:
        The predictor.

    Raises:
        UserError: the model cannot be loaded, or an option is out of range or settled by the export.
    """
    chosen = {option: value for option, value in options.items() if value is not None}
    if not is_exported(name):
        return Predictor.load(name, batch_size=batch_size, threshold=threshold, precision=precision, **chosen)
    settled = [*chosen, *(["precision"] if precision != "auto" else [])]
    if settled:
        raise UserError(
            f"{name} is an exported folder, in which {' and '.join(settled).replace('_', ' ')} cannot be chosen any "
            "more: leave it out, or give the model that was exported"
        )
    return ExportedPredictor(name, batch_size=batch_size, threshold=threshold)
