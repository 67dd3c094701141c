"""The steps of `prepare` below its story: which split, which windows, and writing that survives a kill."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from minialbert.data.encoding import Ids
from minialbert.data.window_files import (
    MANIFEST,
    PROGRESS,
    SPLITS,
    Split,
    SplitCounts,
    TokenizerRecord,
    WindowOptions,
    data_sizes,
)
from minialbert.errors import UserError

TOKENIZER = "tokenizer"
TEMPORARY = ".tmp"
_DATA_FILES = tuple(f"{split}.{part}.bin" for split in SPLITS for part in ("tokens", "windows"))
# What save_pretrained may write; these and nothing else are removed from the tokenizer's folder.
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model"),
    "chat_template.jinja",
)
_CHOICES = 3  # the Philox stream of the choice of windows; masking.py uses 1


def is_held_out(document: int, options: WindowOptions) -> bool:
    """Returns whether a document belongs to the held-out split: a function of (seed, document).

    Args:
        document: index in the corpus, documents without a token left out.
        options: of `prepare`.

    Returns:
        True for about `held_out_fraction` of the documents, and for one of the first two.
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
    """Returns the windows of one document, and the ids that they cover.

    Args:
        ids: all content ids of the document, at least one.
        document: index as for `is_held_out`; the draw is a function of (seed, document).
        options: of `prepare`.
        tokenizer: says how many special tokens a window has.

    Returns:
        The covered ids, each once and in order; the start of each window in them; its length.
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

    Args:
        folder: of the windows.
        split: which files.
        counts: what the files hold that can be trusted; kept up to date by `write`.
        token_dtype: of the ids.
        table_dtype: of the rows of the table.

    Raises:
        UserError: a file holds less than the counts say.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        counts: SplitCounts,
        token_dtype: np.dtype[Any],
        table_dtype: np.dtype[Any],
    ) -> None:
        self._counts, self._token_dtype, self._table_dtype = counts, token_dtype, table_dtype
        self._ids: list[Ids] = []
        self._starts: list[NDArray[np.int64]] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._end = counts.tokens
        self._documents = 0
        self._files: list[IO[bytes]] = []
        for path, size in data_sizes(folder, split, counts, token_dtype, table_dtype):
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
        """Takes the windows of one document, as from `choose_windows`, for the next `write`.

        Args:
            ids: covered by the windows.
            starts: within `ids`.
            lengths: in tokens.
        """
        self._ids.append(ids)
        self._starts.append(starts + self._end)
        self._lengths.append(lengths)
        self._end += len(ids)
        self._documents += 1

    def write(self) -> None:
        """Appends what was added since the last call."""
        if not self._ids:
            return
        tokens = np.concatenate(self._ids).astype(self._token_dtype)
        lengths = np.concatenate(self._lengths)
        table = np.empty(len(lengths), dtype=self._table_dtype)
        table["start"], table["length"] = np.concatenate(self._starts), lengths
        for file, array in zip(self._files, (tokens, table), strict=True):
            block = memoryview(array.tobytes())
            while block:
                block = block[file.write(block) :]
        self._counts.documents += self._documents
        self._counts.windows += len(table)
        self._counts.tokens += len(tokens)
        self._counts.token_slots += int(lengths.sum())
        self._ids, self._starts, self._lengths, self._documents = [], [], [], 0

    def sync(self) -> None:
        """Waits until what was written is on the disk."""
        for file in self._files:
            os.fsync(file.fileno())


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file that is, at any moment, either the old one or the whole new one.

    Args:
        path: the file.
        values: its content.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def remove_own_files(folder: Path) -> None:
    """Removes what `prepare` writes, by name, and nothing else.

    Args:
        folder: of the windows.
    """
    own = [MANIFEST, PROGRESS, *_DATA_FILES]
    for name in [*own, *(name + TEMPORARY for name in (MANIFEST, PROGRESS))]:
        (folder / name).unlink(missing_ok=True)
    for name in _TOKENIZER_FILES:
        (folder / TOKENIZER / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (folder / TOKENIZER).rmdir()


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns what a full or read-only disk raises into one line.

    Args:
        folder: that is written to.

    Yields:
        Nothing.

    Raises:
        UserError: a file could not be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"no room to write to {folder} ({error.strerror}): free some space (or raise the limit) and "
                "run the same command again, it goes on where it stopped"
            ) from error
        raise UserError(f"cannot write to {folder} ({error.strerror or error})") from error
