"""A folder of token windows: what is in it, and reading it.

For each split it holds `SPLIT.tokens.bin` (content ids, 2 bytes each while the vocabulary allows it) and
`SPLIT.windows.bin` (start and length of each window in that stream), beside `manifest.json` and a copy of the
tokenizer. Overlapping windows share their ids, so a token is stored once; special tokens are added on
reading.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from minialbert.data.corpora import DocumentSeparator
from minialbert.data.tokenizers import tokenizer_fingerprint, tokenizer_name
from minialbert.errors import UserError

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)
FORMAT = "minialbert-windows"
FORMAT_VERSION = 1

MANIFEST, PROGRESS = "manifest.json", "progress.json"


@dataclass(frozen=True)
class WindowOptions:
    """The options of `prepare` that decide what is written; see there."""

    window_length: int
    overlap: int
    max_windows_per_document: int | None
    truncate: bool
    held_out_fraction: float
    seed: int
    separator: DocumentSeparator
    text_field: str
    max_document_bytes: int


@dataclass(frozen=True)
class TokenizerRecord:
    """What has to be known of the tokenizer to read its windows.

    Args:
        name: last part of its name or path.
        fingerprint: see `tokenizer_fingerprint`.
        vocab_size: with added tokens.
        special_ids: name of each special token and its id.
        prefix_ids: put before the content of each window.
        suffix_ids: put after it.
    """

    name: str
    fingerprint: str
    vocab_size: int
    special_ids: dict[str, int]
    prefix_ids: list[int]
    suffix_ids: list[int]


@dataclass(frozen=True)
class SourceRecord:
    """A file of the corpus by its name (never opened through it), its kind and its size."""

    name: str
    kind: str
    num_bytes: int


@dataclass
class SplitCounts:
    """Counts of one split.

    Args:
        documents: that have at least one window.
        windows: rows of the table.
        tokens: content ids stored; one that several windows share counts once.
        token_slots: content tokens of all windows together.
    """

    documents: int = 0
    windows: int = 0
    tokens: int = 0
    token_slots: int = 0


@dataclass(frozen=True)
class WindowsManifest:
    """What a folder of windows says of itself (`manifest.json`).

    Args:
        tokenizer: whose ids are stored.
        options: of `prepare`.
        sources: the corpus.
        splits: counts of "train" and "held_out".
        skipped_documents: empty or whitespace-only, or without a token.
        bytes_per_token: bytes of all data files per token stored.
        versions: of Python and the libraries that wrote the folder.
        format: always "minialbert-windows".
        format_version: of this layout.
    """

    tokenizer: TokenizerRecord
    options: WindowOptions
    sources: list[SourceRecord]
    splits: dict[str, SplitCounts]
    skipped_documents: int
    bytes_per_token: float
    versions: dict[str, str]
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @property
    def token_dtype(self) -> np.dtype[Any]:
        """Type of the stored ids."""
        return token_type(self.tokenizer.vocab_size)

    @property
    def window_dtype(self) -> np.dtype[Any]:
        """Type of the rows of the window table."""
        return table_type(self.options.window_length)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON.

        Returns:
            What `from_dict` takes.
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WindowsManifest:
        """Returns the manifest that `to_dict` wrote.

        Args:
            values: as read from JSON.

        Returns:
            The manifest.

        Raises:
            UserError: these are not the values of a manifest of this version.
        """
        if values.get("format") != FORMAT:
            raise UserError(f"{MANIFEST} was not written by prepare (no format {FORMAT!r})")
        if values.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{MANIFEST} has format_version {values.get('format_version')}, this program reads "
                f"{FORMAT_VERSION}: prepare the corpus again"
            )
        try:
            splits = {split: SplitCounts(**values["splits"][split]) for split in SPLITS}
            nested = {
                "tokenizer": TokenizerRecord(**values["tokenizer"]),
                "options": WindowOptions(**values["options"]),
                "sources": [SourceRecord(**source) for source in values["sources"]],
                "splits": splits,
            }
            manifest = cls(**{**values, **nested})
            sizes = [n for counts in splits.values() for n in asdict(counts).values()]
            numbers = [*sizes, manifest.tokenizer.vocab_size, manifest.options.window_length]
            if not all(type(number) is int and number >= 0 for number in numbers):
                raise TypeError("a count is not a natural number")
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{MANIFEST} is damaged ({error}): prepare the corpus again") from error
        return manifest

    @classmethod
    def load(cls, directory: str | Path) -> WindowsManifest:
        """Returns the manifest of a folder whose data files have the sizes that it states.

        Args:
            directory: that `prepare` has finished.

        Returns:
            The manifest.

        Raises:
            UserError: the folder is none of ours, not finished, or damaged.
        """
        folder = Path(directory)
        if not (folder / MANIFEST).is_file():
            hint = (
                "prepare was interrupted: run it again"
                if (folder / PROGRESS).exists()
                else "run prepare first"
            )
            raise UserError(f"{folder}: no {MANIFEST} ({hint})")
        manifest = cls.from_dict(read_json(folder / MANIFEST))
        for split in SPLITS:
            counts = manifest.splits[split]
            for path, size in data_sizes(folder, split, counts, manifest.token_dtype, manifest.window_dtype):
                found = path.stat().st_size if path.is_file() else None
                if found != size:
                    state = "is missing" if found is None else f"has {found} bytes, the manifest says {size}"
                    raise UserError(f"{path} {state}: prepare the corpus again (--overwrite)")
        return manifest


class WindowDataset(Dataset[dict[str, Any]]):
    """The windows of one split, read from disk as they are asked for.

    It can be pickled and forked: each process maps the files for itself at its first access.

    Args:
        directory: that `prepare` has finished.
        split: "train" or "held_out".

    Raises:
        UserError: the folder is not finished or is damaged.
    """

    def __init__(self, directory: str | Path, split: Split = "train") -> None:
        if split not in SPLITS:
            raise UserError(f"no split {split!r}: expected one of {', '.join(SPLITS)}")
        self.directory = Path(directory)
        self.split = split
        self.manifest = WindowsManifest.load(self.directory)
        self._prefix = np.array(self.manifest.tokenizer.prefix_ids, dtype=np.int64)
        self._suffix = np.array(self.manifest.tokenizer.suffix_ids, dtype=np.int64)
        self._files: tuple[NDArray[Any], NDArray[Any]] | None = None

    def __len__(self) -> int:
        return self.manifest.splits[self.split].windows

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one window.

        Args:
            index: in [0, number of windows).

        Returns:
            "input_ids", an int64 array with special tokens of at most `window_length`, and "window_id", the
            index.

        Raises:
            IndexError: there is no such window.
            UserError: the files hold something that cannot be a window.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        tokens, windows = self._map_files()
        start, length = (int(value) for value in windows[index])
        content = tokens[start : start + length].astype(np.int64)
        if len(content) != length or length == 0 or content.max() >= self.manifest.tokenizer.vocab_size:
            raise UserError(f"{self.directory}: window {index} of {self.split} is damaged: prepare it again")
        return {"input_ids": np.concatenate([self._prefix, content, self._suffix]), "window_id": int(index)}

    def _map_files(self) -> tuple[NDArray[Any], NDArray[Any]]:
        if self._files is None:
            tokens = np.memmap(self.directory / f"{self.split}.tokens.bin", self.manifest.token_dtype, "r")
            windows = np.memmap(self.directory / f"{self.split}.windows.bin", self.manifest.window_dtype, "r")
            self._files = tokens, windows
        return self._files

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the mapped files out, which would be pickled as their whole content.

        Returns:
            The state to pickle.
        """
        return {**self.__dict__, "_files": None}


def check_tokenizer(manifest: WindowsManifest, tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks that a tokenizer gives the ids that are stored.

    Args:
        manifest: of the windows.
        tokenizer: of the model that is to read them.

    Raises:
        UserError: they differ.
    """
    fingerprint, recorded = tokenizer_fingerprint(tokenizer), manifest.tokenizer
    if fingerprint != recorded.fingerprint:
        raise UserError(
            f"the windows were made with the tokenizer {recorded.name} ({recorded.vocab_size} tokens, "
            f"fingerprint {recorded.fingerprint[:12]}), not with {tokenizer_name(tokenizer)} "
            f"({len(tokenizer)} tokens, {fingerprint[:12]}): prepare the corpus with this model's"
        )


def token_type(vocab_size: int) -> np.dtype[Any]:
    """Returns the smallest of uint16 and uint32 that holds every id.

    Args:
        vocab_size: largest id plus one.

    Returns:
        A little-endian type.
    """
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def table_type(window_length: int) -> np.dtype[Any]:
    """Returns the type of a row of the window table: start and length, packed.

    Args:
        window_length: upper bound of the lengths.

    Returns:
        A structured little-endian type.
    """
    return np.dtype([("start", "<u8"), ("length", "<u2" if window_length < 2**16 else "<u4")])


def data_sizes(
    folder: Path, split: Split, counts: SplitCounts, token_dtype: np.dtype[Any], table_dtype: np.dtype[Any]
) -> list[tuple[Path, int]]:
    """Returns the two data files of a split and the bytes each must have.

    The names are fixed here and never taken from a manifest, so none can lead out of the folder.

    Args:
        folder: of the windows.
        split: whose files.
        counts: of that split.
        token_dtype: of the ids.
        table_dtype: of the rows of the table.

    Returns:
        Tokens, then windows.
    """
    return [
        (folder / f"{split}.tokens.bin", counts.tokens * token_dtype.itemsize),
        (folder / f"{split}.windows.bin", counts.windows * table_dtype.itemsize),
    ]


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Args:
        path: the file.

    Returns:
        Its values.

    Raises:
        UserError: it holds no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or was not written by prepare: it is not JSON") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged or was not written by prepare: it is not a JSON object")
    return values
