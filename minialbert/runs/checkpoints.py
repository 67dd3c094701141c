"""Checkpoints that are whole or not there: written aside, synced, hashed, renamed into place, verified before use."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from minialbert.errors import UserError, printable
from minialbert.runs.files import sha256_of, sync

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_PREFIX = "checkpoint-"
_PARTIAL = "partial"
_FORMAT = "minialbert-checkpoint"


@contextmanager
def new_checkpoint(root: Path, step: int, *, keep: int | None) -> Iterator[Path]:
    """Yield an empty folder; when the block ends without an error it is `checkpoint-STEP`, and the oldest are gone.

    Before it gets its name, everything in it is on the disk, and its manifest holds size and SHA-256 of each file, and
    whether `data.json` beside the checkpoints says what the run reads. Only then are others removed: those before the
    newest `keep` (None: none), and those of later steps, which are damaged or belong to a past that the run has left.
    An error leaves the checkpoints from before.
    """
    partial, final = root / _PARTIAL, root / f"{_PREFIX}{step}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        _seal(partial, step)
        # One of the same step is damaged, or does not fit: a run writes none again that it goes on from.
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        sync(root)
    except (OSError, RuntimeError, SafetensorError) as error:
        # Torch and safetensors have their own for a full disk.
        shutil.rmtree(partial, ignore_errors=True)
        before = last_whole_checkpoint(root)
        left = f"{before.name} is whole" if before is not None else "there is none from before"
        advice = "make room, then go on with --resume"
        raise UserError(f"{final} could not be written ({_reason(error, root)}); {left}: {advice}") from error
    others = [path for number, path in _found(root) if number < step]
    stale = [path for number, path in _found(root) if number > step]
    surplus = others[: max(0, len(others) - (keep - 1))] if keep else []
    for path in (*stale, *surplus):
        shutil.rmtree(path, ignore_errors=True)


def last_whole_checkpoint(
    root: Path, *, tell: bool = False, find_misfit: Callable[[Path], str | None] | None = None
) -> Path | None:
    """Return the newest checkpoint whose files are those of its manifest, or None.

    `tell` says what ails newer ones; `find_misfit` returns why one that is whole does not serve either.
    """
    for _, path in reversed(_found(root)):
        damage = find_damage(path)
        if damage is None and find_misfit is not None:
            damage = find_misfit(path)
        if damage is None:
            return path
        if tell:
            logger.warning("%s is damaged (%s): the one before it is used", path.name, printable(damage))
    if tell and _found(root):
        logger.warning("%s holds no checkpoint that can be used: the run starts anew", root)
    return None


def has_known_data(root: Path) -> bool | None:
    """Return whether a checkpoint was written by a run that kept what it reads; None where there is no checkpoint."""
    manifests = [path / MANIFEST for _, path in _found(root) if (path / MANIFEST).is_file()]
    return any(b'"data": true' in file.read_bytes() for file in manifests) if manifests else None


def step_of(checkpoint: Path) -> int:
    """Return the number of optimiser steps that a checkpoint's name tells."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def find_damage(checkpoint: Path) -> str | None:
    """Return the first file that is not as a checkpoint's manifest has it, and how, in a few words; None if all are."""
    try:
        values = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        files = {
            str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in values["files"].items()
        }
        if values["format"] != _FORMAT or int(values["step"]) != step_of(checkpoint):
            return f"{MANIFEST} belongs to something else"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} cannot be read"
    present = {path.name for path in checkpoint.iterdir()} - {MANIFEST}
    if strange := sorted(present ^ files.keys()):
        return f"{strange[0]} is {'not in the manifest' if strange[0] in present else 'missing'}"
    for name, (size, digest) in files.items():
        path = checkpoint / name
        if path.is_symlink() or not path.is_file():
            return f"{name} is not a file"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if sha256_of(path) != digest:
            return f"the contents of {name} have changed"
    return None


def _found(root: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of all checkpoints, the oldest first."""
    folders = (path for path in root.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal())
    return sorted((step_of(path), path) for path in folders)


def _seal(folder: Path, step: int) -> None:
    files: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest = folder / MANIFEST
    has_data = folder.parent.with_name("data.json").is_file()
    values = {"format": _FORMAT, "step": step, "data": has_data, "files": files}
    manifest.write_text(json.dumps(values, indent=2), encoding="utf-8")
    sync(manifest)
    sync(folder)


def _reason(error: Exception, root: Path) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    free = shutil.disk_usage(root).free // 2**20
    return f"{' '.join(str(error).split())[:160]}; {free:,} MB are free there"
