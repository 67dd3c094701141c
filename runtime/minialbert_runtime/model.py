"""A model in an exported folder, run by one of the engines."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import file_digest
from pathlib import Path
from time import perf_counter
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from .answers import MAX_CHARACTERS, Logits, TextModel, is_tagging
from .encoding import check_normalizer
from .errors import UserError, one_line, panics_as_errors, shown
from .folder import MODEL_FILE, TOKENIZER_FILE, Folder, read_folder
from .limits import ENGINES
from .native import has_native
from .questions import QUESTIONS
from .session import has_openvino, open_session, rows_per_run, run_side_by_side
from .windows import Cutter, Row

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_TAKEN = frozenset((name, "tensor(int64)") for name in _INPUTS)
_GIVEN = ("tensor(float)", "tensor(float16)", "tensor(double)")
_MEASURED_TOKENS, _MEASURED_SECONDS = 128, 0.4  # of each engine, to choose one
_models: WeakSet[Model] = WeakSet()  # all that a forked process inherits
_TokenizerKey = tuple[bytes, bool, bool]
# Of each tokenizer; before tokenizers 0.23 there are no weak references to themselves.
_cutters: WeakValueDictionary[_TokenizerKey, Cutter] = WeakValueDictionary()


class Model(TextModel):
    """A model that labels texts, read from an exported folder.

    A copy, also one by pickle, reads the folder again; a process that was forked since opens the graph anew.

    Args:
        folder: a folder that `minialbert export` wrote for a task, or the name of a model in the distribution
            minialbert-models.
        batch_size: most inputs per run of the model. None for 32; but for 1 where activations are quantised by their
            range at each call (int8-dynamic, and int8 of older folders), because more would give a text another answer
            beside other texts. Where they are quantised by token (int8, int4) a run has inputs of one length only.
            Where there are many texts, a run has 256 tokens (OpenVINO: 1,024), and ONNX Runtime makes one on each
            thread at a time, in a second session, which holds the weights once more. The engine native takes texts of
            any length together, and 4,096 tokens.
        threshold: probability over which a label of a multi-label task applies (0.5 without), one label of several is
            given, or an entity is kept (always without).
        threads: threads of one run, or runs at a time; None for one on each physical core that the process may use.
        engine: "onnx", "openvino" or "native"; "auto" measures for about a second which of the engines that can run
            the graph and are installed is the fastest. None for "native" where that is installed and can run the graph,
            else for the engine that the folder was exported for. `engine` of the model is the one chosen.
        top_k: of how many labels, the most probable ones, results have scores; all without.
        max_characters: of a text, or of each text of a pair; a longer one is refused.

    Raises:
        UserError: a file is missing or damaged, the model labels no text, or an option is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        batch_size: int | None = None,
        threshold: float | None = None,
        threads: int | None = None,
        engine: str | None = None,
        top_k: int | None = None,
        max_characters: int = MAX_CHARACTERS,
    ) -> None:
        if threads is not None and threads < 1:
            raise UserError(f"expected at least 1 thread, found {threads}")
        if engine not in (None, "auto", *ENGINES):
            raise UserError(f"engine: expected auto, {', '.join(ENGINES)}, found {engine}")
        self.folder = read_folder(folder)
        options: dict[str, Any] = {"threshold": threshold, "top_k": top_k, "max_characters": max_characters}
        super().__init__(
            self.folder.problem, self.folder.labels, pairs=self.folder.pairs, words=self.folder.words,
            batch_size=1 if batch_size is None and _by_range(self.folder) else batch_size,
            decision=self.folder.decision, **options,
        )  # fmt: skip
        self.prompts = self.folder.prompts
        tokenizer, key = _load_tokenizer(self.folder)
        self._pad = _token_id(tokenizer, self.folder.pad_token, self.folder.pad_token_id)
        self._cuts = Cutter(
            tokenizer, max_length=self.folder.max_length, overlap=self.folder.overlap, pad_token_id=self._pad,
            unknown_token_id=_token_id(tokenizer, self.folder.unknown_token, self._pad),
            token_types=self.folder.has_token_types, long_texts=self.folder.long_texts,
        )  # fmt: skip
        _cutters[key] = self._cuts
        self._graph = (self.folder.path / MODEL_FILE).absolute()
        self._file = _identity(self._graph)
        self._threads = threads or _physical_cores()
        self.engine, self._session = self._chosen(engine)
        self._single: Any = None  # of one thread, where there are many runs
        options |= {"batch_size": batch_size, "threads": threads, "engine": self.engine}
        self._again = partial(Model, self.folder.path.absolute(), **options)
        self._inputs = [node.name for node in self._session.get_inputs()]
        outputs = [node.name for node in self._session.get_outputs()]
        named = {"embedding": ["sentence_embedding"], QUESTIONS: ["start_logits", "end_logits"]}
        self.outputs = named.get(self.problem, outputs[:1])
        if lost := [name for name in self.outputs if name not in outputs]:
            raise UserError(f"{self._graph} gives no {lost[0]}: export the model again")
        _models.add(self)

    def _chosen(self, engine: str | None) -> tuple[str, Any]:
        """Return the name of the engine that is asked for, and its session."""
        if engine not in (None, "auto"):
            return engine, _load_session(self._graph, self._threads, engine)
        native = None
        if self.folder.one_length and has_native():
            with suppress(UserError):  # a graph that it does not know
                native = _load_session(self._graph, self._threads, "native")
        if engine == "auto":
            chosen = _fastest(self._graph, self._threads, self.folder, native)
        else:
            chosen = self.folder.engines[0] if native is None else "native"
        return chosen, native if chosen == "native" else _load_session(self._graph, self._threads, chosen)

    def __reduce__(self) -> tuple[Callable[[], Model], tuple[()]]:
        """Return what makes the model again from its folder."""
        return self._again, ()

    def _cutter(self) -> Cutter:
        return self._cuts

    def _logits(self, rows: Sequence[Row]) -> list[Logits]:
        lengths = [len(row.input_ids) for row in rows]
        batches = self._batches(lengths)
        full = -(-sum(lengths) // rows_per_run(1, self.engine))  # runs, if each were full
        threads = min(self._threads, len(batches), full) if self.engine == "onnx" else 1
        session = self._open(several=threads > 1)
        run = partial(self._run, session=session)
        taken = [[rows[row] for row in batch] for batch in batches]
        found = run_side_by_side(run, taken, threads) if threads > 1 else map(run, taken)
        results: dict[int, Logits] = {}
        for batch, logits in zip(batches, found, strict=True):
            for row, values in zip(batch, logits, strict=True):
                results[row] = values[: len(rows[row].input_ids)] if values.ndim == 2 else values
        return [results[row] for row in range(len(rows))]

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return the rows of each run. The longest come first, so that runs need little padding."""
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        batches: list[list[int]] = []
        for row in order:
            longest = lengths[batches[-1][0]] if batches else 0
            most = min(self.batch_size, rows_per_run(longest, self.engine))
            fits = batches and len(batches[-1]) < most
            together = self.engine == "native" or not self.folder.one_length or lengths[row] == longest
            if fits and together:
                batches[-1].append(row)
            else:
                batches.append([row])
        return batches

    def _open(self, *, several: bool) -> Any:
        """Return the session of all threads, or that of one, for several runs at a time."""
        same = _identity(self._graph) == self._file
        if several and self._single is None and same:
            self._single = _load_session(self._graph, 1, self.engine)
        if several and self._single is not None:
            return self._single
        if self._session is None:  # in a process that was forked since
            if not same:
                raise UserError(
                    f"{self._graph} is not the file that was loaded before the fork: load the model again"
                )
            self._session = _load_session(self._graph, self._threads, self.engine)
        return self._session

    def _run(self, rows: Sequence[Row], session: Any) -> Logits:
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
        path = self._graph
        try:
            results = session.run(self.outputs, {name: columns[name] for name in self._inputs})
        except Exception as error:  # of the engines, with no common base
            raise UserError(
                f"{path} could not be run on {shape[0]} inputs of {shape[1]} tokens ({one_line(error)})"
            ) from error
        logits = results[0] if len(results) == 1 else np.stack(results, axis=-1)
        by_token = self.tagging or self.problem == QUESTIONS
        expected = (*shape, len(self.labels)) if by_token else (shape[0], len(self.labels))
        if logits.shape != expected:
            raise UserError(
                f"{path} gives logits of shape {logits.shape}, expected {expected}: config.json or export.json belong "
                "to another model"
            )
        if not np.isfinite(logits).all():
            raise UserError(f"{path}: its outputs are not finite; export the model again")
        return np.asarray(logits, dtype=np.float32)


def _by_range(folder: Folder) -> bool:
    """Return whether activations are quantised by their range in a run."""
    return folder.precision in ("int8", "int8-dynamic") and not folder.one_length


def _load_tokenizer(folder: Folder) -> tuple[Tokenizer, _TokenizerKey]:
    """Return the tokenizer of a folder, and its file and use; where a loaded model has the same, that model's.

    A tokenizer of 30,000 pieces takes more memory than a small graph.
    """
    path, words = folder.path / TOKENIZER_FILE, is_tagging(folder.problem)
    try:
        with path.open("rb") as file:
            key = file_digest(file, "sha256").digest(), folder.split_special_tokens, words
        if (loaded := _cutters.get(key)) is not None:
            return loaded.tokenizer, key
        check_normalizer(path)
        with panics_as_errors():
            tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the parser raises Exception itself
        raise UserError(f"{path} is damaged ({one_line(error)}): export the model again") from error
    # What the file says about lengths is for training; a text must come through whole.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = folder.split_special_tokens
    rule = tokenizer.pre_tokenizer
    # Byte-level BPE tells a word by the space before it; words alone have none.
    if words and isinstance(rule, pre_tokenizers.ByteLevel):
        rule.add_prefix_space = True
    return tokenizer, key


def _token_id(tokenizer: Tokenizer, token: str | None, otherwise: int) -> int:
    found = None if token is None else tokenizer.token_to_id(token)
    return otherwise if found is None else int(found)


def _fastest(path: Path, threads: int, folder: Folder, native: Any) -> str:
    """Return the engine that takes the least time for a text of 128 tokens; `native` is its session, or None."""
    engines = [engine for engine in folder.engines if engine == "onnx" or has_openvino()]
    engines += ["native"] if native else []
    if len(engines) == 1:
        return engines[0]
    ones = np.ones((1, min(_MEASURED_TOKENS, folder.max_length)), dtype=np.int64)
    medians = {}
    # OpenVINO, which folders name first, before ONNX Runtime, whose threads go on spinning after a run.
    for engine in engines:
        session = native if engine == "native" else _load_session(path, threads, engine)
        inputs = {node.name: ones for node in session.get_inputs()}
        seconds: list[float] = []
        while sum(seconds) < _MEASURED_SECONDS:
            started = perf_counter()
            session.run(None, inputs)
            seconds.append(perf_counter() - started)
        medians[engine] = sorted(seconds)[len(seconds) // 2]
    return min(medians, key=medians.__getitem__)


def _load_session(path: Path, threads: int, engine: str) -> Any:
    try:
        session = open_session(path, threads, engine=engine)
    except UserError:
        raise
    except Exception as error:  # of the engines, with no common base
        raise UserError(f"{path} could not be loaded ({one_line(error)}): export the model again") from error
    strange = [node for node in session.get_inputs() if (node.name, node.type) not in _TAKEN]
    if strange:
        raise UserError(
            f"{path} wants the inputs {shown(strange[0].name)} as {strange[0].type}: expected some "
            f"of {', '.join(_INPUTS)}, as tensor(int64)"
        )
    outputs = session.get_outputs()
    if not outputs or outputs[0].type not in _GIVEN:
        given = outputs[0].type if outputs else "nothing"
        raise UserError(f"{path} gives {shown(given)}: expected logits as one of {', '.join(_GIVEN)}")
    return session


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _drop_sessions() -> None:
    """Let a forked process open its graphs anew: the sessions that it inherits have lost their threads.

    When one is freed it would wait for them; so it is kept for good.
    """
    for model in list(_models):
        for session in filter(None, (model._session, model._single)):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        model._session = model._single = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_sessions)


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
