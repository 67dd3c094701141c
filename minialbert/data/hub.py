"""Data sets on the Hugging Face hub, and the names that the splits of any data have."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

from minialbert.errors import UserError, failing_as, quoted, shown

PREFIX = "hub:"
_LABELLED = re.compile(r"hub:([\w.-]+/([\w.-]+))(?::([^:]+))?")
# How files and data sets call each split; of a directory with train.csv, dev.csv and test.csv all three are found.
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "dev", "devel", "testa"),
    "test": ("test", "testb"),
}


@contextmanager
def sparing_attempts(name: str | Path) -> Iterator[None]:
    """Look for a hub id in the cache alone while the hub's host has no address.

    The hub's client would try each file six times, and say so each time. A proxy finds addresses itself. What is
    there as a file or folder needs no hub.
    """
    host = urlsplit(constants.ENDPOINT).hostname
    if os.path.exists(name) or constants.HF_HUB_OFFLINE or getproxies() or _has_address(host):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _has_address(host: str | None) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def load_hub(name: str, config: str | None, failure: str, **options: Any) -> Any:
    """Returns a data set of the hub, or its splits by name, as `datasets.load_dataset` does.

    The failure is what a message says of data that cannot be had: what was wanted, and what to do.
    """
    import datasets  # takes seconds, and most data are files

    with (
        sparing_attempts(name),
        failing_as(failure, Exception, named=True),
    ):  # the hub client raises whatever its transport raises
        return datasets.load_dataset(name, config, **options)


def load_splits(data: str) -> tuple[str, Mapping[str, Any]]:
    """Returns the name, without its owner, and the splits of a labelled data set, `hub:OWNER/NAME[:CONFIG]`."""
    match = _LABELLED.fullmatch(data)
    if match is None:
        raise UserError(
            f"{quoted(data)} is not a hub data set: expected hub:OWNER/NAME or hub:OWNER/NAME:CONFIG"
        )
    advice = "give a local directory, or check the name, the configuration and the network"
    return match[2], load_hub(match[1], match[3], f"could not load {data}: {advice}")


def assign_splits(stems: Mapping[str, str], title: str) -> dict[str, str]:
    """Returns which of some files or splits is train, validation and test, no two the same; others are left out.

    What each is called stands in `stems` under what it is known as, which is returned; `title` is that of them all.
    """
    found = {}
    for split, names in SPLIT_NAMES.items():
        candidates = [key for key, stem in stems.items() if stem.lower() in names]
        if len(candidates) > 1:
            raise UserError(
                f"{title}: both {shown(' and '.join(candidates), 200)} could be the {split} split: keep one of them"
            )
        if candidates:
            found[split] = candidates[0]
    return found


def class_names(feature: Any) -> tuple[str, ...]:
    """Returns the names behind the numbers of a column of the `datasets` library, or of its lists; () for others.

    The feature is the library's own, or what it writes of one as JSON.
    """
    get = feature.get if isinstance(feature, Mapping) else lambda name: getattr(feature, name, None)
    if isinstance(feature, list) and feature:  # how it once wrote lists
        return class_names(feature[0])
    if names := get("names"):
        return tuple(map(str, names))
    element = get("feature")
    return class_names(element) if element is not None else ()


def named_classes(row: dict[str, Any], classes: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Returns a row with names in place of the numbers of its classes, given those of each column that has classes."""
    return {
        **row,
        **{column: _name(row[column], names) for column, names in classes.items() if column in row},
    }


def _name(cell: Any, names: tuple[str, ...]) -> Any:
    """Returns the name of a class, or those of a list; None where the number is the one that stands for none."""
    if isinstance(cell, list):
        named = [_name(item, names) for item in cell]
        return named if any(named) or not named else None
    if not isinstance(cell, int) or not -1 <= cell < len(names):
        return cell
    return None if cell == -1 else names[cell]


def load_saved(folder: Path) -> Mapping[str, Any] | None:
    """Returns the splits of a folder that `save_to_disk` of the `datasets` library wrote, None of any other folder."""
    is_one = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    if not is_one and not (folder / "dataset_dict.json").is_file():
        return None
    import datasets

    # Whatever Arrow raises.
    with failing_as(f"{folder}: not readable as a data set that was saved to disk", Exception, named=True):
        saved = datasets.load_from_disk(folder)
    return saved if isinstance(saved, Mapping) else {"train": saved}
