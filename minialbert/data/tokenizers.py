"""Loading a tokenizer, telling two apart, and turning batches of documents into ids in several processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from minialbert_runtime.encoding import Ids, check_normalizer, encode_documents
from minialbert_runtime.errors import panics_as_errors
from minialbert_runtime.folder import find_folder, is_exported
from tokenizers import Tokenizer, normalizers

from minialbert.data.hub import sparing_attempts
from minialbert.errors import UserError, failing_as
from minialbert.runs.untrusted import TOKENIZER_SETTINGS, check_model_folder, check_tokenizer_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

# Upper case, accents, digits, punctuation, a long word: whatever a normaliser may treat in its own way.
_PROBE = "The QUICK brown fox, déjà vu: Ångström's 3.14159 (x ≤ 42) naïve-looking re-tokenisation!?\tEnd  ."

# Uncased vocabularies have upper case in special tokens alone.
_FEW_CASED = 0.05

logger = logging.getLogger(__name__)

_WORKER = "minialbert_runtime.encoding"  # imports neither torch nor transformers

Tag = TypeVar("Tag")


def load_tokenizer(
    tokenizer: str | Path | PreTrainedTokenizerFast, **settings: Any
) -> PreTrainedTokenizerFast:
    """Returns the fast tokenizer of that directory or hub id, or the one that was given.

    `settings` are for Transformers, as `revision`. Raises UserError if there is none of that name, or it has no fast
    backend.
    """
    if isinstance(tokenizer, (str, Path)):
        from transformers import AutoTokenizer

        tokenizer = find_folder(tokenizer) if is_exported(tokenizer) else tokenizer  # by name, out of the box
        advice = "give a directory with tokenizer.json or a hub id"
        unread = f"no tokenizer could be loaded from {tokenizer}: {advice}"
        is_path = str(tokenizer).startswith((".", "/", "~")) or str(tokenizer).endswith("/")  # no hub id is
        if is_path and not os.path.exists(tokenizer):
            raise UserError(f"no tokenizer could be loaded from {tokenizer}: there is no such directory")
        # Transformers raises OSError, ValueError, and whatever the parser raises.
        with failing_as(unread, Exception, named=True), sparing_attempts(tokenizer):
            check_model_folder(folder := _folder_of_settings(str(tokenizer), settings.get("revision")))
            if (folder / "tokenizer.json").is_file():
                check_normalizer(folder / "tokenizer.json")
            with panics_as_errors():
                read = partial(AutoTokenizer.from_pretrained, str(tokenizer), trust_remote_code=False)
                loaded = read(**settings)
                if _lowers_upper_case(loaded) and not _says_lower_case(loaded):
                    loaded = read(**settings | {"do_lower_case": False})
                    told = "the tokenizer %s keeps upper case: its vocabulary has it, and no tokenizer_config.json says"
                    logger.warning(f"{told} do_lower_case", tokenizer)
            if getattr(loaded, "is_fast", False):
                _lower_case_first(loaded, folder)
                with panics_as_errors(silent=True):  # a damaged normaliser says so at the first text
                    loaded.backend_tokenizer.encode("the end")
    else:
        loaded = tokenizer
    name = tokenizer_name(loaded)
    if not getattr(loaded, "is_fast", False):
        kind = f"{name} ({type(loaded).__name__})"
        raise UserError(f"the tokenizer {kind} has no fast backend: use one that has a tokenizer.json")
    # A folder with a config.json and no tokenizer files gives a tokenizer that knows no word.
    if len(loaded) <= len(loaded.all_special_ids):
        raise UserError(f"the tokenizer {name} has no vocabulary: the folder needs tokenizer.json")
    check_tokenizer_files(loaded, name)
    if share := _lowers_upper_case(loaded):
        cased = f"{100 * share:.0f} % of its vocabulary have upper case"
        advice = "if the model is a cased one, set do_lower_case to false in its tokenizer_config.json"
        logger.warning("the tokenizer %s is set to lower-case every text, but %s: %s", name, cased, advice)
    return loaded


def _lowers_upper_case(tokenizer: PreTrainedTokenizerFast) -> float:
    """Returns the share of entries with upper case where a tokenizer never gives them; 0 if there are few."""
    normalizer = getattr(tokenizer, "backend_tokenizer", None) and tokenizer.backend_tokenizer.normalizer
    if normalizer is None or "Q" in normalizer.normalize_str("QUICK"):
        return 0.0
    # Byte-level vocabularies spell bytes as the letters U+0080 to U+017F.
    words = [word for word in tokenizer.get_vocab() if not word.startswith(("[", "<"))]
    cased = sum(any(c.isupper() and not "\x80" <= c < "\u0180" for c in word) for word in words)
    return cased / len(words) if cased > _FEW_CASED * len(words) else 0.0


def _says_lower_case(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Returns whether a file says that a tokenizer lower-cases, rather than the default of its class."""
    vocabulary = tokenizer.init_kwargs.get("vocab_file")
    if not isinstance(vocabulary, str):  # tokenizer.json says it all
        return True
    # Beside a vocabulary, Transformers leaves out what tokenizer.json says of case.
    beside = Path(vocabulary).with_name
    settings, backend = beside(TOKENIZER_SETTINGS[0]), beside("tokenizer.json")
    try:
        if settings.is_file() and "do_lower_case" in json.loads(settings.read_text(encoding="utf-8")):
            return True
        rules = json.loads(backend.read_text(encoding="utf-8"))["normalizer"] if backend.is_file() else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False
    return any(mark in json.dumps(rules) for mark in ('"lowercase": true', '"Lowercase"'))


def _lower_case_first(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Makes a tokenizer lower-case every text where sentence-transformers does so before it."""
    settings = folder / "sentence_bert_config.json"
    if settings.is_file() and json.loads(settings.read_text(encoding="utf-8")).get("do_lower_case") is True:
        backend = tokenizer.backend_tokenizer
        before = [backend.normalizer] if backend.normalizer else []
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])


def _folder_of_settings(name: str, revision: str | None) -> Path:
    """Returns the folder with the files that a tokenizer's are named in: that of a hub id is in the cache."""
    from transformers.utils import cached_file

    if Path(name).is_dir():
        return Path(name)
    kinds = ("gated_repo", "missing_entries", "connection_errors")
    silent: dict[str, Any] = {f"_raise_exceptions_for_{kind}": False for kind in kinds}
    places = [cached_file(name, file, revision=revision, **silent) for file in TOKENIZER_SETTINGS]
    return next((Path(place).parent for place in places if place is not None), Path(name))


def tokenizer_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the last part of the tokenizer's name or path, for messages and records."""
    return Path(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__).name


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a sha256 that two tokenizers share when they give the same ids.

    It covers the sorted vocabulary, the special token ids, and the ids of a fixed probe sentence with upper
    case, accents, digits and punctuation; not the name, not the padding or truncation settings.
    """
    probe = tokenizer(_PROBE, truncation=False, padding=False, add_special_tokens=True)["input_ids"]
    facts = [sorted(tokenizer.get_vocab().items()), sorted(special_ids(tokenizer).items()), list(probe)]
    return hashlib.sha256(json.dumps(facts, ensure_ascii=True).encode()).hexdigest()


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Returns the ids of the special tokens by their roles, as `{"cls_token": 101}`."""
    named = tokenizer.special_tokens_map.items()
    return {name: int(tokenizer.convert_tokens_to_ids(t)) for name, t in named if isinstance(t, str)}


def special_affixes(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Returns the ids that the tokenizer puts before and after a single sequence, as `([101], [102])` for BERT.

    Raises UserError if its template is not "prefix, content, suffix".
    """
    content, whole = (
        tokenizer("the end", add_special_tokens=special, truncation=False, padding=False)["input_ids"]
        for special in (False, True)
    )
    for start in range(len(whole) - len(content) + 1):
        if content and whole[start : start + len(content)] == content:
            return whole[:start], whole[start + len(content) :]
    name = tokenizer_name(tokenizer)
    raise UserError(f"the tokenizer {name} does not put its special tokens around a sequence")


def serialized_backend(tokenizer: PreTrainedTokenizerFast) -> str:
    """Returns the backend as JSON, for `tokenizers.Tokenizer.from_str`, without truncation and padding."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    # Some published tokenizer.json files cut at 128 tokens; a document must come through whole.
    backend.no_truncation()
    backend.no_padding()
    return backend.to_str()


def encode_batches(
    batches: Iterable[tuple[list[str], Tag]], backend: str, num_workers: int
) -> Generator[tuple[list[Ids], Tag], None, None]:
    """Yields the ids of each batch of documents, in order, whatever the number of processes.

    No more than two batches per worker are in flight, so memory does not grow with the corpus. With one worker the work
    is done in this process. Each batch has a tag, which comes back beside its ids; the backend is as from
    `serialized_backend`.
    """
    if num_workers == 1:
        tokenizer = Tokenizer.from_str(backend)
        for texts, tag in batches:
            with _one_thread():
                encoded = encode_documents(tokenizer, texts)
            yield encoded, tag
        return
    workers: list[_Worker] = []
    idle: SimpleQueue[_Worker] = SimpleQueue()
    # A thread waits for each process, so that no pipe ever has both of its ends waiting.
    threads = ThreadPoolExecutor(num_workers)

    def encode(texts: list[str]) -> list[Ids]:
        worker = idle.get()
        try:
            return worker.encode(texts)
        finally:
            idle.put(worker)

    in_flight: deque[tuple[Future[list[Ids]], Tag]] = deque()
    try:
        for _ in range(num_workers):
            workers.append(_Worker(backend))
            idle.put(workers[-1])
        for texts, tag in batches:
            in_flight.append((threads.submit(encode, texts), tag))
            if len(in_flight) >= 2 * num_workers:
                future, first_tag = in_flight.popleft()
                yield future.result(), first_tag
        while in_flight:
            future, first_tag = in_flight.popleft()
            yield future.result(), first_tag
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()
        threads.shutdown(wait=True)
        for worker in workers:
            worker.close()


class _Worker:
    """A process that runs `_WORKER`; it ends when its input does, so also when this process is killed."""

    def __init__(self, backend: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # It finds what this process finds, a notebook's own folders too.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        self._first_message: str | None = backend

    def encode(self, texts: list[str]) -> list[Ids]:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None
        try:
            if self._first_message is not None:
                pickle.dump(self._first_message, requests)
                self._first_message = None
            pickle.dump(texts, requests, pickle.HIGHEST_PROTOCOL)
            requests.flush()
            flat, lengths = pickle.load(answers)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            told = "a worker process of prepare died (was it out of memory?)"
            advice = "run the same command again with fewer, --workers 1 (and without --overwrite)"
            raise UserError(f"{told}: {advice}: it goes on where it stopped") from error
        ends = np.cumsum(lengths).tolist()
        return [flat[end - length : end] for end, length in zip(ends, lengths, strict=True)]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            # A request that the process did not live to read is lost, as it should be.
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps the tokenizer to this thread: its own threads would make a later fork (DataLoader) unsafe."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
