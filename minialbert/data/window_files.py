"""A folder of token windows: which files are in it, and what its manifest says.

For each split it holds `SPLIT.tokens.bin` (content ids, 2 bytes each while the vocabulary allows it) and
`SPLIT.windows.bin` (start and length of each window in that stream), beside `manifest.json` and a copy of the
tokenizer. Overlapping windows share their ids, so a token is stored once; special tokens are added on
reading.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from pydantic import TypeAdapter, ValidationError

from minialbert.data.corpora import DocumentSeparator
from minialbert.errors import UserError
from minialbert.user_input import local_path, quoted

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)
FORMAT = "minialbert-windows"
FORMAT_VERSION = 1

MANIFEST, PROGRESS = "manifest.json", "progress.json"
# Ids are stored in four bytes at most, and so are the lengths of windows.
_MOST = 2**32

Record = TypeVar("Record")


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
                f"{MANIFEST} has format_version {quoted(values.get('format_version'), 20)}, this program "
                f"reads {FORMAT_VERSION}: prepare the corpus again"
            )
        try:
            manifest = record_from_plain(cls, values)
            _check_manifest(manifest)
        except ValueError as error:
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
        folder = local_path(directory)
        if not local_path(folder / MANIFEST).is_file():
            hint = (
                "prepare was interrupted: run it again"
                if (folder / PROGRESS).exists()
                else "run prepare first"
            )
            raise UserError(f"{folder}: no {MANIFEST} ({hint})")
        values = read_json(folder / MANIFEST)
        try:
            manifest = cls.from_dict(values)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error
        for split in SPLITS:
            counts = manifest.splits[split]
            for path, size in data_sizes(folder, split, counts, manifest.token_dtype, manifest.window_dtype):
                found = path.stat().st_size if path.is_file() else None
                if found != size:
                    state = "is missing" if found is None else f"has {found} bytes, the manifest says {size}"
                    raise UserError(f"{path} {state}: prepare the corpus again (--overwrite)")
        return manifest


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
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged or was not written by prepare: it is not a JSON object")
    return values


def record_from_plain(kind: type[Record], values: object) -> Record:
    """Returns a dataclass from what `asdict` gave and JSON kept; nothing is converted, left out or passed over.

    Args:
        kind: the dataclass.
        values: as read from JSON.

    Returns:
        The record.

    Raises:
        ValueError: the values are not those of such a record; says in one line which.
    """
    try:
        record: Record = _adapter(kind).validate_json(json.dumps(values), strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"] if str(part).isprintable())
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None
    if asdict(record) != values:  # type: ignore[call-overload]
        raise ValueError("it has entries that no version of this program writes")
    return record


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:  # noqa: ANN401 - a dataclass
    return TypeAdapter(kind)


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
