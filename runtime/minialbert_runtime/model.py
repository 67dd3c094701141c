"""A model in an exported folder, run by ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer, pre_tokenizers

from .answers import ANSWERS, Logits, TextModel
from .errors import UserError, one_line
from .folder import MODEL_FILE, TOKENIZER_FILE, Folder, read_folder
from .session import open_session
from .windows import Cutter, Row

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Model(TextModel):
    """A model that labels texts, read from an exported folder.

    Args:
        folder: a folder that `minialbert export` wrote for a task.
        batch_size: inputs per run of the model.
        threshold: probability over which a label of a multi-label task applies.
        threads: threads of one run; None for one on each physical core that the process may use.

    Raises:
        UserError: a file is missing or damaged, the model labels no text, or an option is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        batch_size: int = 32,
        threshold: float = 0.5,
        threads: int | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise UserError(f"expected at least 1 thread, found {threads}")
        self.folder = read_folder(folder)
        super().__init__(
            self.folder.problem,
            self.folder.labels,
            batch_size=batch_size,
            threshold=threshold,
            words=self.folder.words,
        )
        tokenizer = _load_tokenizer(self.folder)
        self._pad = _token_id(tokenizer, self.folder.pad_token, self.folder.pad_token_id)
        self._cuts = Cutter(
            tokenizer,
            max_length=self.folder.max_length,
            overlap=self.folder.overlap,
            pad_token_id=self._pad,
            unknown_token_id=_token_id(tokenizer, self.folder.unknown_token, self._pad),
            token_types=self.folder.has_token_types,
        )
        self._session = _load_session(self.folder, threads or _physical_cores())
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._output = self._session.get_outputs()[0].name

    def _cutter(self) -> Cutter:
        return self._cuts

    def _logits(self, rows: Sequence[Row]) -> list[Logits]:
        # Longest first, so that batches need little padding.
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
            if row.token_type_ids is not None:
                types[index, :length] = row.token_type_ids
        columns = dict(zip(_INPUTS, (ids, mask, types), strict=True))
        path = self.folder.path / MODEL_FILE
        try:
            (logits,) = self._session.run([self._output], {name: columns[name] for name in self._inputs})
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise UserError(
                f"{path} could not be run on {shape[0]} inputs of {shape[1]} tokens ({one_line(error)})"
            ) from error
        expected = (*shape, len(self.labels)) if self.tagging else (shape[0], len(self.labels))
        if logits.shape != expected:
            raise UserError(
                f"{path} gives logits of shape {logits.shape}, expected {expected}: config.json or export.json belong "
                "to another model"
            )
        if not np.isfinite(logits).all():
            raise UserError(f"{path}: its outputs are not finite; export the model again")
        return np.asarray(logits, dtype=np.float32)


def _load_tokenizer(folder: Folder) -> Tokenizer:
    path = folder.path / TOKENIZER_FILE
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the parser raises Exception itself
        raise UserError(f"{path} is damaged ({one_line(error)}): export the model again") from error
    # What the file says about lengths is for training; a text must come through whole.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = folder.split_special_tokens
    rule = tokenizer.pre_tokenizer
    # Byte-level BPE tells a word by the space before it; words alone have none.
    if folder.problem not in ANSWERS and isinstance(rule, pre_tokenizers.ByteLevel):
        rule.add_prefix_space = True
    return tokenizer


def _token_id(tokenizer: Tokenizer, token: str | None, otherwise: int) -> int:
    found = None if token is None else tokenizer.token_to_id(token)
    return otherwise if found is None else int(found)


def _load_session(folder: Folder, threads: int) -> InferenceSession:
    path = folder.path / MODEL_FILE
    try:
        session = open_session(path, threads)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise UserError(f"{path} could not be loaded ({one_line(error)}): export the model again") from error
    strange = [node.name for node in session.get_inputs() if node.name not in _INPUTS]
    if strange:
        raise UserError(
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
