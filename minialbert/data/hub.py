"""Data sets on the Hugging Face hub, and the names that the splits of any data have."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from minialbert.errors import UserError, failing_as, quoted, shown

PREFIX = "hub:"
_LABELLED = re.compile(r"hub:([\w.-]+/([\w.-]+))(?::([^:]+))?")
_SECONDS = 5  # to reach the hub
# How files and data sets call each split; of a directory with train.csv, dev.csv and test.csv all three are found.
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev", "devel", "testa"),
    "test": ("test", "testb"),
}


@contextmanager
def sparing_attempts(name: str | Path) -> Iterator[None]:
    """Look for a hub id in the cache alone where the hub is not reached.

    The hub's client would try each file six times, and say so each time. What is there as a file or folder needs no
    hub.
    """
    if os.path.exists(name) or constants.HF_HUB_OFFLINE or _is_reached():
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _is_reached() -> bool:
    with suppress(Exception):  # of the hub client's transport
        _ask(constants.ENDPOINT)
        return True
    return False


@cache  # a hub that answered is not asked again; a failure is not kept
def _ask(hub: str) -> None:
    from huggingface_hub.utils import get_session  # takes a while, and most names are folders

    get_session().head(hub, timeout=_SECONDS)


def load_hub(name: str, config: str | None, failure: str, **options: Any) -> Any:
    """Returns a data set of the hub, or its splits by name, as `datasets.load_dataset` does.

    The failure is what a message says of data that cannot be had: what was wanted, and what to do.
    """
    import datasets  # takes seconds, and most data are files

    # The hub client raises whatever its transport raises.
    with sparing_attempts(name), failing_as(failure, Exception, named=True):
        return datasets.load_dataset(name, config, **options)


def load_splits(data: str) -> tuple[str, Mapping[str, Any]]:
    """Returns the name, without its owner, and the splits of a labelled data set, `hub:OWNER/NAME[:CONFIG]`."""
    match = _LABELLED.fullmatch(data)
    if match is None:
        told = "expected hub:OWNER/NAME or hub:OWNER/NAME:CONFIG"
        raise UserError(f"{quoted(data)} is not a hub data set: {told}")
    advice = "give a local directory, or check the name, the configuration and the network"
    return match[2], load_hub(match[1], match[3], f"could not load {data}: {advice}")


def split_name(name: str | None) -> str | None:
    """Returns what a split is called here: "validation" for "dev"."""
    return next((split for split, names in SPLIT_NAMES.items() if str(name).lower() in names), name)


def assign_splits(stems: Mapping[str, str], title: str) -> dict[str, str]:
    """Returns which of some files or splits is train, validation and test, no two the same; others are left out.

    What each is called stands in `stems` under what it is known as, which is returned; `title` is that of them all.
    """
    found = {}
    for split, names in SPLIT_NAMES.items():
        candidates = [key for key, stem in stems.items() if stem.lower() in names]
        if len(candidates) > 1:
            both = shown(" and ".join(candidates), 200)
            raise UserError(f"{title}: both {both} could be the {split} split: keep one of them")
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
    return row | {column: _name(row[column], names) for column, names in classes.items() if column in row}


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
