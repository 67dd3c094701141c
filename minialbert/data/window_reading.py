"""Reading the windows of one prepared folder, or of several as one data set."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from minialbert.data.tokenizers import tokenizer_fingerprint, tokenizer_name
from minialbert.data.window_files import SPLITS, SourceRecord, Split, TokenizerRecord, WindowsManifest
from minialbert.errors import UserError
from minialbert.user_input import listed, local_path, quoted, shown

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


class WindowDataset(Dataset[dict[str, Any]]):
    """The windows of one split, read from disk as they are asked for.

    Those of several folders are numbered through, folder after folder, in the order that the folders are given.
    It can be pickled and forked: each process maps the files for itself, each folder at its first access.

    Args:
        directories: that `prepare` has finished, one or several, of one tokenizer.
        split: "train" or "held_out".

    Raises:
        UserError: a folder is not finished, is damaged, is given twice or has nothing to train on, or the folders
            are of different tokenizers.
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
    def sources(self) -> list[SourceRecord]:
        """The files of all corpora."""
        return [source for manifest in self.manifests for source in manifest.sources]

    def __len__(self) -> int:
        return self._ends[-1]

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
        folder = bisect_right(self._ends, index)
        row = int(index) - (self._ends[folder - 1] if folder else 0)
        tokens, windows = self._map_files(folder)
        start, length = (int(value) for value in windows[row])
        content = tokens[start : start + length].astype(np.int64)
        longest = self.manifests[folder].options.window_length - len(self._prefix) - len(self._suffix)
        whole = len(content) == length and 0 < length <= longest
        if not whole or content.max() >= self.tokenizer.vocab_size:
            raise UserError(
                f"{self.directories[folder]}: window {row} of {self.split} is damaged: prepare it again"
            )
        return {"input_ids": np.concatenate([self._prefix, content, self._suffix]), "window_id": int(index)}

    def _map_files(self, folder: int) -> tuple[NDArray[Any], NDArray[Any]]:
        if folder not in self._files:
            directory, manifest = self.directories[folder], self.manifests[folder]
            tokens = np.memmap(directory / f"{self.split}.tokens.bin", manifest.token_dtype, "r")
            windows = np.memmap(directory / f"{self.split}.windows.bin", manifest.window_dtype, "r")
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
                raise UserError(
                    f"{first} and {directory} were made with different tokenizers ({_described(recorded)}; "
                    f"{_described(found)}): prepare both with the teacher's"
                )
            if self.split == "train" and not manifest.splits["train"].windows:
                raise UserError(f"{directory} has no windows to train on: leave it out, or prepare more text")

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the mapped files out, which would be pickled as their whole content.

        Returns:
            The state to pickle.
        """
        return {**self.__dict__, "_files": {}}


def check_tokenizer(recorded: TokenizerRecord, tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks that a tokenizer gives the ids that are stored.

    Args:
        recorded: of the windows.
        tokenizer: of the model that is to read them.

    Raises:
        UserError: they differ.
    """
    fingerprint = tokenizer_fingerprint(tokenizer)
    if fingerprint != recorded.fingerprint:
        raise UserError(
            f"the windows were made with the tokenizer {_described(recorded)}, not with "
            f"{tokenizer_name(tokenizer)} ({len(tokenizer)} tokens, {fingerprint[:12]}): prepare the corpus with "
            "this model's"
        )


def data_identity(windows: WindowDataset) -> dict[str, Any]:
    """Returns what a run has to keep of its windows to know them again; where they lie does not matter.

    Args:
        windows: of either split.

    Returns:
        Plain values for JSON: "folders", in order, each with its "name", its numbers of "windows" and
        "held_out_windows", and a "fingerprint" of everything its manifest says but the versions.
    """
    return {
        "folders": [
            {
                "name": directory.resolve().name,
                "windows": manifest.splits["train"].windows,
                "held_out_windows": manifest.splits["held_out"].windows,
                "fingerprint": _fingerprint(manifest),
            }
            for directory, manifest in zip(windows.directories, windows.manifests, strict=True)
        ]
    }


def data_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns how the windows of a run differ from those it began with.

    Args:
        before: `data_identity` when it began, as read from JSON.
        now: `data_identity` of today.

    Returns:
        One line for a message, empty when the windows are the same in the same order.
    """
    folders = before.get("folders") if isinstance(before, Mapping) else None
    if not isinstance(folders, list) or not all(isinstance(folder, dict) for folder in folders):
        return "what the run says of its windows is damaged"
    old, new = ([folder.get("fingerprint") for folder in side] for side in (folders, now["folders"]))
    if old == new:
        return ""
    if len(old) != len(new):
        return f"{_number(folders)}, now {_number(now['folders'])}"
    if sorted(map(str, old)) == sorted(map(str, new)):
        return f"the same folders in another order: {_names(folders)}, now {_names(now['folders'])}"
    place = next(place for place, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1])
    return f"{_folder(folders[place])}, now {_folder(now['folders'][place])}"


def _reading_of(recorded: TokenizerRecord) -> tuple[object, ...]:
    return recorded.fingerprint, recorded.prefix_ids, recorded.suffix_ids, recorded.vocab_size


def _described(recorded: TokenizerRecord) -> str:
    return f"{recorded.name} ({recorded.vocab_size} tokens, fingerprint {recorded.fingerprint[:12]})"


def _fingerprint(manifest: WindowsManifest) -> str:
    said = manifest.to_dict()
    del said["versions"]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _number(folders: Sequence[Mapping[str, Any]]) -> str:
    return f"{len(folders)} folder{'s' * (len(folders) != 1)} ({_names(folders)})"


def _names(folders: Sequence[Mapping[str, Any]]) -> str:
    return listed(folder.get("name") for folder in folders)


def _folder(folder: Mapping[str, Any]) -> str:
    name, fingerprint = shown(folder.get("name")), shown(str(folder.get("fingerprint"))[:12])
    return f"{name} ({quoted(folder.get('windows'))} windows, fingerprint {fingerprint})"
