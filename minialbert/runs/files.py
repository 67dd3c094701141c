"""A folder that appears complete or not at all, and one that a single process works in."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minialbert.errors import UserError

logger = logging.getLogger(__name__)

_HAS_LOCKS = importlib.util.find_spec("fcntl") is not None
_POLL_SECONDS = 0.5


@contextmanager
def whole_folder(directory: str | Path, *, replaces: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty folder beside the directory; when the block ends without an error it takes its place.

    What the directory held before stays, but for files that were written anew and for those of `replaces`. After an
    error in the block the directory is as it was.

    A directory that cannot be renamed, as a mounted volume or one in a folder of somebody else, holds the new folder
    itself and gets its files one by one in the end, which a full disk or a kill may cut short. Weights may be read by
    whom the umask lets read the other files: safetensors 0.8 writes them for their owner alone, and a service under
    another user could not load them.

    Args:
        directory: the folder to write.
        replaces: files, relative and with forward slashes, that an earlier run may have left and this one need not
            write again.

    Yields:
        Where to write.

    Raises:
        OSError: if it cannot be written.
    """
    target = Path(directory).expanduser().resolve()
    fixed = _cannot_be_renamed(target)
    staging = (target if fixed else target.parent) / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        staging.mkdir(parents=True)
        yield staging
        _give_usual_modes(staging)
        (_move_files if fixed else _put_in_place)(target, staging, replaces)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def sole_user(directory: Path, what: str, *, patience: float = 0.0) -> Iterator[None]:
    """Create a directory and keep a second process out of it, where the system has locks; they go with the process.

    Args:
        directory: the directory.
        what: what works in it, as in "grid".
        patience: seconds to wait for another one to end.

    Yields:
        Nothing.

    Raises:
        UserError: if another one works there, or if the directory cannot be written.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: expected a directory for the {what}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY) if _HAS_LOCKS else None
    except OSError as error:
        raise UserError(f"{directory} cannot be written ({error.strerror or error})") from error
    if handle is None:
        yield
        return
    import fcntl

    try:
        _lock(handle, directory, what, time.monotonic() + patience)
        yield
    finally:
        with suppress(OSError):  # of all copies, which processes forked since may hold
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _lock(handle: int, directory: Path, what: str, deadline: float) -> None:
    import fcntl

    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"another {what} is running in {directory}: wait for it, or stop it first"
                ) from None
        except OSError:  # a file system without locks
            logger.debug("%s has no locks", directory)
            return
        if not told:
            logger.info("another %s is still running in %s: waiting for its end", what, directory)
        told = True
        time.sleep(_POLL_SECONDS)


def _give_usual_modes(folder: Path) -> None:
    umask = os.umask(0o077)  # it can only be read by setting it: for this moment, to the strictest
    os.umask(umask)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o666 & ~umask)


def _cannot_be_renamed(folder: Path) -> bool:
    return folder.is_dir() and (os.path.ismount(folder) or not os.access(folder.parent, os.W_OK))


def _move_files(target: Path, staging: Path, replaces: Collection[str]) -> None:
    written = [path.relative_to(staging) for path in sorted(staging.rglob("*")) if not path.is_dir()]
    for name in written:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).replace(target / name)
    for stale in set(replaces) - {name.as_posix() for name in written}:
        (target / stale).unlink(missing_ok=True)


def _put_in_place(target: Path, staging: Path, replaces: Collection[str]) -> None:
    if not target.exists():
        staging.rename(target)
        return
    former = staging.with_suffix(".former")
    target.rename(former)
    try:
        staging.rename(target)
    except OSError:
        former.rename(target)
        raise
    for file in sorted(path for path in former.rglob("*") if not path.is_dir()):
        name = file.relative_to(former)
        if name.as_posix() not in replaces and not (target / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            file.rename(target / name)
    shutil.rmtree(former)
