"""The folder of windows that `prepare` makes: its manifest, how it is written, and how it is read.

`train.tokens.bin` and `held_out.tokens.bin` hold content ids, each once; `*.windows.bin` say which of them make a
window; `manifest.json` says the rest, and is written last. While `prepare` runs there is `progress.json` instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate, combinations
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from minialbert_runtime.encoding import Ids
from numpy.typing import NDArray
from torch.utils.data import Dataset

from minialbert.data.corpora import DocumentSeparator
from minialbert.data.tokenizers import special_affixes, special_ids, tokenizer_fingerprint, tokenizer_name
from minialbert.errors import UserError, failing_as, local_path, quoted
from minialbert.runs.files import sha256_of
from minialbert.runs.untrusted import record_from_plain, without_empty

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)
FORMAT = "minialbert-windows"
FORMAT_VERSION = 1

MANIFEST, PROGRESS, TOKENIZER = "manifest.json", "progress.json", "tokenizer"
# Ids are stored in four bytes at most, and so are the lengths of windows.
_MOST = 2**32


@dataclass(frozen=True)
class WindowOptions:
    """The options of `prepare` that decide what is written.

    Attributes:
        window_length: tokens, special tokens included.
        overlap: content tokens that a window shares with the one before.
        max_windows_per_document: of a document that has more, this many are drawn; None: all.
        truncate: keep only the first window of each document (`overlap` then does not matter).
        held_out_fraction: of the documents, in [0, 1).
        seed: of the draws.
        separator: what ends a document of a text file.
        text_field: field or column of JSON lines, csv, tsv, Parquet, hub data sets and rows in memory.
        max_document_bytes: a longer document is refused.
        pair_field: field or column of a second text of each row; both are then documents cut to one window, the one
            after the other, and are held out together. None: rows have one text.
    """

    window_length: int = 256
    overlap: int = 128
    max_windows_per_document: int | None = 10
    truncate: bool = False
    held_out_fraction: float = 0.01
    seed: int = 42
    separator: DocumentSeparator = "blank-line"
    text_field: str = "text"
    max_document_bytes: int = 16_000_000
    pair_field: str | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """Those of a row's texts."""
        return (self.text_field,) if self.pair_field is None else (self.text_field, self.pair_field)


@dataclass(frozen=True)
class TokenizerRecord:
    """What has to be known of the tokenizer to read its windows."""

    name: str  # the last part of its name or path
    fingerprint: str
    vocab_size: int  # with added tokens
    special_ids: dict[str, int]
    prefix_ids: list[int]  # put before the content of each window
    suffix_ids: list[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> TokenizerRecord:
        """Returns the record of a tokenizer."""
        name, size = tokenizer_name(tokenizer), max(tokenizer.get_vocab().values()) + 1
        ids = special_ids(tokenizer), *special_affixes(tokenizer)
        return cls(name, tokenizer_fingerprint(tokenizer), size, *ids)


@dataclass(frozen=True)
class SourceRecord:
    """A file of the corpus by its name (never opened through it), its kind, its size, and the SHA-256 of its bytes."""

    name: str
    kind: str
    num_bytes: int
    sha256: str | None = None  # None for the hub, texts in memory, and folders of earlier versions


@dataclass
class SplitCounts:
    """Counts of one split."""

    documents: int = 0  # that have at least one window
    windows: int = 0
    tokens: int = 0  # content ids stored; one that several windows share counts once
    token_slots: int = 0  # content tokens of all windows together


@dataclass(frozen=True)
class Plan:
    """What decides the bytes of a folder; two calls of `prepare` with the same plan continue each other."""

    tokenizer: TokenizerRecord
    options: WindowOptions
    sources: list[SourceRecord]

    @property
    def types(self) -> tuple[np.dtype[Any], np.dtype[Any]]:
        """Types of the stored ids, and of the rows of the window table."""
        return data_types(self.tokenizer.vocab_size, self.options.window_length)


@dataclass(frozen=True)
class WindowsManifest(Plan):
    """What a folder of windows says of itself (`manifest.json`)."""

    splits: dict[str, SplitCounts]
    skipped_documents: int  # empty or whitespace-only, or without a token
    bytes_per_token: float  # of all data files, per token stored
    versions: dict[str, str]  # of Python and the libraries that wrote the folder
    # SHA-256 of the data files; empty in earlier versions.
    files: dict[str, str] = field(default_factory=dict)
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON, which `from_dict` takes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WindowsManifest:
        """Returns the manifest that `to_dict` wrote; raises UserError if it is of no or another version."""
        if values.get("format") != FORMAT:
            raise UserError(f"{MANIFEST} was not written by prepare (no format {FORMAT!r})")
        if (found := values.get("format_version")) != FORMAT_VERSION:
            told = f"{MANIFEST} has format_version {quoted(found, 20)}, this program reads {FORMAT_VERSION}"
            raise UserError(f"{told}: prepare the corpus again")
        with failing_as(f"{MANIFEST} is damaged", ValueError, "prepare the corpus again"):
            manifest = record_from_plain(cls, values)
            _check_manifest(manifest)
        return manifest

    @classmethod
    def load(cls, directory: str | Path) -> WindowsManifest:
        """Returns the manifest of a finished folder whose data files have the sizes that it states.

        Raises UserError if the folder is none of ours, not finished, or damaged.
        """
        folder = local_path(directory)
        if not local_path(folder / MANIFEST).is_file():
            begun = (folder / PROGRESS).exists()
            hint = "prepare was interrupted: run it again" if begun else "run prepare first"
            state = f"{folder}: no {MANIFEST}" if folder.exists() else f"{folder} does not exist"
            raise UserError(f"{state} ({hint})")
        values = read_json(folder / MANIFEST)
        try:
            manifest = cls.from_dict(values)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error
        for split in SPLITS:
            for path, size in data_sizes(folder, split, manifest.splits[split], manifest.types):
                found = path.stat().st_size if path.is_file() else None
                if found != size:
                    state = "is missing" if found is None else f"has {found} bytes, the manifest says {size}"
                    raise UserError(f"{path} {state}: prepare the corpus again (--overwrite)")
        return manifest


def hash_data(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each data file of a folder, by name: about 0.7 s for a GB, or 500 million tokens."""
    return {name: sha256_of(folder / name) for name in _DATA_FILES}


def data_types(vocab_size: int, window_length: int) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Returns the types, packed and little-endian, of an id and of a row of the window table: start and length.

    They are as small as holds every id below `vocab_size`, and every length.
    """
    token = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    return token, np.dtype([("start", "<u8"), ("length", "<u2" if window_length < 2**16 else "<u4")])


def data_sizes(
    folder: Path, split: Split, counts: SplitCounts, types: Sequence[np.dtype[Any]]
) -> list[tuple[Path, int]]:
    """Returns the two data files of a split, tokens then windows, and the bytes that each must have.

    The names are fixed here and never taken from a manifest, so none can lead out of the folder.
    """
    names, items = (f"{split}.tokens.bin", f"{split}.windows.bin"), (counts.tokens, counts.windows)
    return [(folder / n, count * kind.itemsize) for n, count, kind in zip(names, items, types, strict=True)]


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; raises UserError if it holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or was not written by prepare: it is not JSON") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged or was not written by prepare: it is not a JSON object")
    return values


def _check_manifest(manifest: WindowsManifest) -> None:
    """Raises ValueError for values of the right types that no corpus gives."""
    tokenizer, length = manifest.tokenizer, manifest.options.window_length
    affixes = [*tokenizer.prefix_ids, *tokenizer.suffix_ids]
    if set(manifest.splits) != set(SPLITS):
        raise ValueError(f"splits: expected {' and '.join(SPLITS)}")
    counts = [number for split in SPLITS for number in asdict(manifest.splits[split]).values()]
    if not all(0 <= number < 2**63 for number in [*counts, manifest.skipped_documents]):
        raise ValueError("a count is not a natural number")
    if not all(text.isprintable() for text in (tokenizer.name, tokenizer.fingerprint)):
        raise ValueError("the tokenizer's name and fingerprint have to be of one line")
    if not 0 < tokenizer.vocab_size <= _MOST:
        raise ValueError(f"tokenizer.vocab_size: expected 1 to {_MOST:,}")
    if not len(affixes) < length < _MOST:
        raise ValueError("options.window_length: no room beside the special tokens, or too long for a table")
    if not all(0 <= number < tokenizer.vocab_size for number in affixes):
        raise ValueError("tokenizer: a special token is not in the vocabulary")
    if any(manifest.splits[split].windows and not manifest.splits[split].tokens for split in SPLITS):
        raise ValueError("splits: windows without tokens")
    if any(manifest.splits[split].windows % len(manifest.options.fields) for split in SPLITS):
        raise ValueError("splits: half of a pair")


_DATA_FILES = tuple(f"{split}.{part}.bin" for split in SPLITS for part in ("tokens", "windows"))
# What save_pretrained may write; these and nothing else are removed from the tokenizer's folder.
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model"),
    "chat_template.jinja",
)
# What a kill in the middle of writing JSON leaves, of this and of earlier versions.
HALF_WRITTEN = tuple(name for file in (MANIFEST, PROGRESS) for name in (f".{file}.partial", f"{file}.tmp"))
_CHOICES = 3  # the Philox stream of the choice of windows; masking.py uses 1


def is_held_out(document: int, options: WindowOptions) -> bool:
    """Returns whether a document belongs to the held-out split: a function of (seed, document).

    True for about `held_out_fraction` of the documents, and for one of the first two; those without a token are not
    counted.
    """

    def uniform(index: int) -> float:
        digest = hashlib.blake2b(f"{options.seed}:{index}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") / 2**64

    if options.held_out_fraction == 0:
        return False
    if document < 2:
        return (uniform(0) < 0.5) == (document == 0)
    return uniform(document) < options.held_out_fraction


def choose_windows(
    ids: Ids, document: int, options: WindowOptions, tokenizer: TokenizerRecord
) -> tuple[Ids, NDArray[np.int64], NDArray[np.int64]]:
    """Returns the content ids that the windows of one document cover, the start of each window in them, and its length.

    The document has at least one id; the draw is a function of (seed, document), as in `is_held_out`.
    """
    content = options.window_length - len(tokenizer.prefix_ids) - len(tokenizer.suffix_ids)
    if len(ids) <= content or options.truncate:
        covered = ids[:content]
        return covered, np.zeros(1, dtype=np.int64), np.array([len(covered)], dtype=np.int64)
    step = content - options.overlap
    count = 1 + -(-(len(ids) - content) // step)
    chosen = np.arange(count, dtype=np.int64)
    limit = options.max_windows_per_document
    if limit is not None and count > limit:
        key, counter = np.array([options.seed, document], np.uint64), np.array([0, 0, 0, _CHOICES], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
        chosen = np.sort(generator.choice(count, limit, replace=False))
    starts = chosen * step
    ends = np.minimum(starts + content, len(ids))
    # What lies between the end of one chosen window and the start of the next is not stored.
    before = np.concatenate([[0], ends[:-1]])
    gaps = np.maximum(starts - before, 0)
    first_new = np.maximum(starts, before)
    covered = np.concatenate([ids[new:end] for new, end in zip(first_new, ends, strict=True)])
    return covered, starts - np.cumsum(gaps), ends - starts


class SplitWriter:
    """Appends windows to the two data files of a split, after cutting them back to the counts given.

    These are what the files hold that can be trusted, which `write` keeps up to date; a file may not hold less.
    """

    def __init__(
        self, folder: Path, split: Split, counts: SplitCounts, types: tuple[np.dtype[Any], np.dtype[Any]]
    ) -> None:
        self._counts, self._types = counts, types
        # The ids of each document, the starts and the lengths of its windows.
        self._waiting: list[tuple[Ids, NDArray[np.int64], NDArray[np.int64]]] = []
        self._end = counts.tokens
        self._files: list[IO[bytes]] = []
        for path, size in data_sizes(folder, split, counts, types):
            # Unbuffered, so that a write that fails leaves nothing behind that fails again on closing.
            path.touch()
            file = path.open("r+b", buffering=0)
            self._files.append(file)
            if file.seek(0, os.SEEK_END) < size:
                self.__exit__()
                raise UserError(f"{path} is shorter than {PROGRESS} says: start anew with --overwrite")
            file.truncate(size)
            file.seek(size)

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files:
            file.close()

    def add(self, ids: Ids, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        """Takes the windows of one document, as from `choose_windows`, for the next `write`."""
        self._waiting.append((ids, starts + self._end, lengths))
        self._end += len(ids)

    def write(self) -> None:
        """Appends what was added since the last call."""
        if not self._waiting:
            return
        ids, starts, lengths = map(np.concatenate, zip(*self._waiting, strict=True))
        tokens, table = ids.astype(self._types[0]), np.empty(len(lengths), dtype=self._types[1])
        table["start"], table["length"] = starts, lengths
        for file, array in zip(self._files, (tokens, table), strict=True):
            block = memoryview(array.tobytes())
            while block:
                block = block[file.write(block) :]
        self._counts.documents += len(self._waiting)
        self._counts.windows += len(table)
        self._counts.tokens += len(tokens)
        self._counts.token_slots += int(lengths.sum())
        self._waiting = []

    def sync(self) -> None:
        """Waits until what was written is on the disk."""
        for file in self._files:
            os.fsync(file.fileno())


def own_files(folder: Path) -> list[Path]:
    """Returns the paths of what `prepare` may write, by name, and of nothing else; the tokenizer's folder is last."""
    names = (MANIFEST, PROGRESS, *_DATA_FILES, *HALF_WRITTEN)
    tokenizer = folder / TOKENIZER
    return [*(folder / name for name in names), *(tokenizer / name for name in _TOKENIZER_FILES), tokenizer]


def remove_own_files(folder: Path) -> None:
    """Removes what `prepare` writes, and nothing else."""
    for path in own_files(folder)[:-1]:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (folder / TOKENIZER).rmdir()


class WindowDataset(Dataset[dict[str, Any]]):
    """The windows of one split, read from disk as they are asked for.

    Those of several folders are numbered through, folder after folder, in the order that the folders are given.
    It can be pickled and forked: each process maps the files for itself, each folder at its first access. The folders
    are whole, of one tokenizer, and none is given twice or has nothing to train on.
    """

    def __init__(self, directories: str | Path | Sequence[str | Path], split: Split = "train") -> None:
        if split not in SPLITS:
            raise UserError(f"no split {split!r}: expected one of {', '.join(SPLITS)}")
        several = [directories] if isinstance(directories, str | Path) else directories
        self.directories = tuple(local_path(directory) for directory in several)
        if not self.directories:
            raise UserError("no folder of windows: give at least one that prepare has made")
        self.split = split
        self.manifests = tuple(WindowsManifest.load(directory) for directory in self.directories)
        self._check_folders()
        self._ends = list(accumulate(manifest.splits[split].windows for manifest in self.manifests))
        self._prefix = np.array(self.tokenizer.prefix_ids, dtype=np.int64)
        self._suffix = np.array(self.tokenizer.suffix_ids, dtype=np.int64)
        self._files: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}

    @property
    def tokenizer(self) -> TokenizerRecord:
        """Whose ids are stored, in every folder."""
        return self.manifests[0].tokenizer

    @property
    def window_length(self) -> int:
        """Tokens of the longest windows, special tokens included."""
        return max(manifest.options.window_length for manifest in self.manifests)

    @property
    def texts_per_row(self) -> int:
        """2 where windows 2i and 2i + 1 are a pair of texts, or 1."""
        return len(self.manifests[0].options.fields)

    @property
    def num_tokens(self) -> int:
        """Tokens of all windows together, special tokens included."""
        content = sum(manifest.splits[self.split].token_slots for manifest in self.manifests)
        return content + len(self) * (len(self._prefix) + len(self._suffix))

    @property
    def sources(self) -> list[SourceRecord]:
        """The files of all corpora."""
        return [source for manifest in self.manifests for source in manifest.sources]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one window: "input_ids", int64 and with special tokens, and "window_id", the index.

        Raises IndexError if there is none, and UserError if the files hold something that cannot be one.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        folder = bisect_right(self._ends, index)
        row = int(index) - (self._ends[folder - 1] if folder else 0)
        tokens, windows = self._map_files(folder)
        start, length = (int(value) for value in windows[row])
        content = tokens[start : start + length].astype(np.int64)
        longest = self.manifests[folder].options.window_length - len(self._prefix) - len(self._suffix)
        whole = len(content) == length and 0 < length <= longest
        if not whole or content.max() >= self.tokenizer.vocab_size:
            place = f"{self.directories[folder]}: window {row} of {self.split}"
            raise UserError(f"{place} is damaged: prepare it again")
        return {"input_ids": np.concatenate([self._prefix, content, self._suffix]), "window_id": int(index)}

    def _map_files(self, folder: int) -> tuple[NDArray[Any], NDArray[Any]]:
        if folder not in self._files:
            directory, manifest = self.directories[folder], self.manifests[folder]
            files = data_sizes(directory, self.split, manifest.splits[self.split], manifest.types)
            pairs = zip(files, manifest.types, strict=True)
            tokens, windows = (np.memmap(path, kind, "r") for (path, _), kind in pairs)
            self._files[folder] = tokens, windows
        return self._files[folder]

    def _check_folders(self) -> None:
        first, recorded = self.directories[0], self.tokenizer
        for one, other in combinations(self.directories, 2):
            if one.samefile(other):
                raise UserError(f"{other} is given twice: its windows would count double")
        for directory, manifest in zip(self.directories, self.manifests, strict=True):
            found = manifest.tokenizer
            if _reading_of(found) != _reading_of(recorded):
                told = f"{first} and {directory} were made with different tokenizers"
                both = f"{_described(recorded)}; {_described(found)}"
                raise UserError(f"{told} ({both}): prepare both with the teacher's")
            if len(manifest.options.fields) != self.texts_per_row:
                advice = "prepare both with pair_field (--pair-column), or both without"
                raise UserError(f"of {first} and {directory} one alone holds pairs of texts: {advice}")
            if self.split == "train" and not manifest.splits["train"].windows:
                raise UserError(f"{directory} has no windows to train on: leave it out, or prepare more text")

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the mapped files out, which would be pickled as their whole content."""
        return {**self.__dict__, "_files": {}}


def check_tokenizer(recorded: TokenizerRecord, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError if a model's tokenizer does not give the ids that are stored."""
    fingerprint = tokenizer_fingerprint(tokenizer)
    if fingerprint != recorded.fingerprint:
        told = f"the windows were made with the tokenizer {_described(recorded)}"
        other = f"{tokenizer_name(tokenizer)} ({len(tokenizer)} tokens, {fingerprint[:12]})"
        advice = "prepare the corpus with this model's, or keep both with student.own_vocabulary=true"
        raise UserError(f"{told}, not with {other}: {advice}")


def data_identity(windows: WindowDataset) -> dict[str, Any]:
    """Returns what a run has to keep of its windows to know them again; where they lie does not matter.

    Plain values for JSON: "folders", in order, each with its "name", its numbers of "windows" and "held_out_windows", a
    "fingerprint" of everything its manifest says but the versions, and one of what its data files hold, which are read
    for it. Raises UserError for a file that has changed since `prepare` wrote it.
    """
    folders = []
    for folder, manifest in zip(windows.directories, windows.manifests, strict=True):
        train, held_out = (manifest.splits[split].windows for split in SPLITS)
        known = {"name": folder.resolve().name, "windows": train, "held_out_windows": held_out}
        folders.append(known | {"fingerprint": _fingerprint(manifest), "content": _content(folder, manifest)})
    return {"folders": folders}


def _content(folder: Path, manifest: WindowsManifest) -> str:
    found = hash_data(folder)
    for name, digest in manifest.files.items():
        if found.get(name) != digest:
            advice = "prepare again (--overwrite)"
            raise UserError(f"{folder}: {quoted(name)} does not hold what prepare wrote: {advice}")
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _reading_of(recorded: TokenizerRecord) -> tuple[object, ...]:
    return recorded.fingerprint, recorded.prefix_ids, recorded.suffix_ids, recorded.vocab_size


def _described(recorded: TokenizerRecord) -> str:
    return f"{recorded.name} ({recorded.vocab_size} tokens, fingerprint {recorded.fingerprint[:12]})"


def _fingerprint(manifest: WindowsManifest) -> str:
    said = manifest.to_dict()
    del said["versions"], said["files"]  # `_content` is of what the files hold
    said["options"] = without_empty(said["options"])
    for source in said["sources"]:
        del source["sha256"]  # as above: how an equal text was packed does not matter
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
