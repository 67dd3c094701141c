"""Files and folders: may one write here, whole or not at all, by one process at a time, and disk errors in a line."""

from __future__ import annotations

import ctypes
import glob
import hashlib
import json
import logging
import math
import os
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Collection, Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

from minialbert.errors import UserError, listed, local_path

with suppress(ImportError):  # Windows has none
    import fcntl

logger = logging.getLogger(__name__)

REPLACE = "give --overwrite to replace it, or another --output"

_POINTER = b"version https://git-lfs"
_PARTIAL, _FORMER = ".partial", ".former"
_HAS_LOCKS = "fcntl" in sys.modules
_POLL_SECONDS = 0.5


def check_file(path: Path, *, overwrite: bool, advice: str = REPLACE) -> None:
    """Refuse to write over a file that is there; `advice` says what to do."""
    if str(path) == "-":
        raise UserError("- is no name of a file: give one")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: {advice}")


def check_fetched(path: Path) -> None:
    """Refuse what stands for a file that was not fetched: a link of DVC or git-annex, a pointer of Git LFS."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to a file that is not there: fetch it, or remove the link")
    with suppress(OSError):  # told by whoever reads it
        if path.is_file():
            with path.open("rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    told = "is a pointer of Git LFS to a file that is not here: fetch it (git lfs pull)"
                    raise UserError(f"{path} {told}")


def visible(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder and all below it, but for what is hidden: itself, or in a folder that is."""
    paths = ((path, path.relative_to(folder).parts) for path in folder.rglob("*"))
    return (path for path, names in paths if not any(name.startswith(".") for name in names))


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and all below it, but for hidden ones; links to folders are left out and told."""
    paths = sorted(visible(folder))
    if linked := [path.name for path in paths if path.is_symlink() and path.is_dir()]:
        told = "%s: links to folders are not followed; give what they lead to as well: %s"
        logger.info(told, folder, listed(linked))
    return [path for path in paths if path.is_file() or (path.is_symlink() and not path.exists())]


def check_apart(path: Path, inputs: Iterable[str | Path]) -> None:
    """Refuse to write over what is read, by whatever name or link: an input, a file in it, a folder that holds it."""
    for read in filter(Path.exists, map(local_path, inputs)):
        if path.is_dir():
            same = path.resolve() in (read.resolve(), *read.resolve().parents)
        else:
            others = (one for one in (read, *read.rglob("*")) if one.exists())
            same = path.exists() and any(map(path.samefile, others))
        if same:
            raise UserError(f"{path} would replace what is read ({read}): give another output")


def check_folder(
    path: Path, what: str, *, overwrite: bool, advice: str = REPLACE, marker: str | None = None
) -> None:
    """Refuse to write into a folder with files in it, unless to overwrite them, and where a folder should be a file.

    It is for a `what`, as in "run"; even one to be overwritten has to hold the `marker`, if it holds anything.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: expected a folder to write into")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if marker is not None and not (path / marker).exists():
        other = "give another --output" if advice == REPLACE else advice
        raise UserError(f"{path} is not empty and holds no {what}: {other}")
    if not overwrite:
        raise UserError(f"{path} is not empty: {advice}")


def check_own(*paths: Path) -> None:
    """Refuse a link, a pipe or a device in the place of what we write, empty or delete: it may lead anywhere."""
    for path in paths:
        with suppress(FileNotFoundError, NotADirectoryError):
            kind = path.lstat().st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
                what = "link" if stat.S_ISLNK(kind) else "pipe or device"
                advice = "remove it, or take another folder"
                raise UserError(f"{path} is a {what}, which this program never writes: {advice}")


@contextmanager
def writing(
    path: str | Path, *, advice: str | None = "make room, then go on with --resume"
) -> Iterator[None]:
    """Turn what a full or read-only disk raises, in whatever library, into one line with some advice."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = disk_error(error)
        if reason is None:
            raise
        raise UserError(f"{path} cannot be written ({reason})" + (f": {advice}" if advice else "")) from error


def disk_error(error: Exception) -> str | None:
    """Return what the system said, if it is the cause: safetensors and tokenizers have it in their text alone."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    code = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(code[1])) if code is not None else None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes; about 0.7 s for a GB."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(*paths: Path) -> None:
    """Wait until files or directories, without what is in them, are on the disk."""
    for path in paths if os.name != "nt" else ():  # which opens no directory
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def whole_file(
    path: Path,
    mode: str = "x",
    *,
    by: str = "",
    synced: bool = True,
    keep: type[BaseException] | tuple[type[BaseException], ...] = (),
) -> Iterator[IO[Any]]:
    """Yield a new file beside another; when the block ends without an error it takes its place, synced or not.

    Folders above it are made, and go again after an error if they stay empty. A crash leaves either the old or the new
    contents. The mode is "x" for text, "xb" for bytes; `by` tells this process's new file from those of others that
    write the same one. What an error of a kind in `keep` left unfinished stays beside the file, unless it is empty.
    """
    partial = path.with_name(f".{path.name}{by}.partial")
    with new_folder(path.parent):
        partial.unlink(missing_ok=True)  # left by a crash, or a link planted in a run from elsewhere
        try:
            with partial.open(mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                if synced:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(partial, path)
            if synced:
                sync(path.parent)
        except BaseException as error:
            with suppress(OSError):
                if not isinstance(error, keep) or not partial.stat().st_size:
                    partial.unlink(missing_ok=True)
            raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a crash leaves either the old or the new contents."""
    with whole_file(path, "xb" if isinstance(content, bytes) else "x") as file:
        file.write(content)


def free_name(base: str, joint: str, taken: Container[str]) -> str:
    """Return a name, with a number where it is taken."""
    names = chain([base], (f"{base}{joint}{at}" for at in count(2)))
    return next(name for name in names if name not in taken)


def write_json(path: Path, values: object, *, indent: int | None = 2) -> None:
    """Write plain values as JSON, whole or not at all; what is not finite is told, and null."""
    write_atomically(path, to_json(values, indent=indent, where=path) + "\n")


def to_json(values: object, *, indent: int | None = 2, where: Path | None = None) -> str:
    """Return plain values as JSON, in which a number that is not finite is null; `where` it goes is told."""
    try:
        return json.dumps(values, indent=indent, allow_nan=False)
    except ValueError:
        lost: list[str] = []
        text = json.dumps(_finite(values, "", lost), indent=indent, allow_nan=False)
        if where is not None:
            logger.warning("%s: not finite, and null there: %s", where, listed(lost))
        return text


def _finite(values: Any, place: str, lost: list[str]) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value, f"{place}.{key}".lstrip("."), lost) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value, f"{place}.{index}", lost) for index, value in enumerate(values)]
    if isinstance(values, float) and not math.isfinite(values):
        lost.append(place)
        return None
    return values


@contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """Create a folder, and those above it; after an error in the block those of them go again that are empty."""
    created = [one for one in (path, *path.parents) if not one.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for one in created:
            with suppress(OSError):
                one.rmdir()
        raise


@contextmanager
def whole_folder(directory: str | Path, *, replaces: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty folder beside the directory; when the block ends without an error it takes its place.

    What the directory held before stays, but for files that were written anew and for those of `replaces`. After an
    error in the block the directory is as it was; killed at any moment, it is the old or the new one, and what is left
    beside it goes when it is written again. The new folder is on the disk before it takes its place.

    A directory that cannot be renamed, as a mounted volume or one in a folder of somebody else, holds the new folder
    itself and gets its files one by one in the end, which a full disk or a kill may cut short. Weights may be read by
    whom the umask lets read the other files: safetensors 0.8 writes them for their owner alone, and a service under
    another user could not load them.

    `replaces` are files, relative and with forward slashes, that an earlier run may have left and this one need not
    write again.
    """
    target = Path(directory).expanduser().resolve()
    fixed = target.is_dir() and (os.path.ismount(target) or not os.access(target.parent, os.W_OK))
    place = target if fixed else target.parent
    with new_folder(place), ExitStack() as stack:
        _clear_left_over(place, target)
        staging = place / f".{target.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}"
        staging.mkdir()
        stack.callback(shutil.rmtree, staging, ignore_errors=True)
        with _held(staging):
            yield staging
            _give_usual_modes(staging)
            if not fixed and target.is_dir():
                _keep_others(target, staging, replaces)
            sync(*(path for path in staging.rglob("*") if not path.is_symlink()), staging)
            if fixed:
                _move_files(target, staging, replaces)
            else:
                _put_in_place(target, staging)
            sync(place)


@contextmanager
def sole_user(directory: Path, what: str, *, patience: float = 0.0) -> Iterator[None]:
    """Create a directory and keep a second process out of it, where the system has locks; they go with the process.

    What works in it is called `what`, as in "grid"; `patience` is how many seconds to wait for another one to end.
    """
    check_folder(directory, what, overwrite=True)
    with ExitStack() as stack:
        with writing(directory, advice=None):
            stack.enter_context(new_folder(directory))
            # Of the directory itself: a file for it would stay behind, in a folder that is to be empty.
            handle = os.open(directory, os.O_RDONLY) if _HAS_LOCKS else None
        if handle is None:
            yield
            return
        try:
            deadline, told = time.monotonic() + patience, False
            while _lock(handle) is False:
                if time.monotonic() >= deadline:
                    advice = "wait for it, or stop it first"
                    raise UserError(f"another {what} is running in {directory}: {advice}")
                if not told:
                    logger.info("another %s is still running in %s: waiting for its end", what, directory)
                told = True
                time.sleep(_POLL_SECONDS)
            yield
        finally:
            with suppress(OSError):  # of all copies, which processes forked since may hold
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def _give_usual_modes(folder: Path) -> None:
    umask = os.umask(0o077)  # it can only be read by setting it: for this moment, to the strictest
    os.umask(umask)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o666 & ~umask)


def _move_files(target: Path, staging: Path, replaces: Collection[str]) -> None:
    written = _files_in(staging)
    for name in written:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).replace(target / name)
    for stale in set(replaces) - {name.as_posix() for name in written}:
        (target / stale).unlink(missing_ok=True)


def _keep_others(target: Path, staging: Path, replaces: Collection[str]) -> None:
    """Give the new folder what the old one holds beside it, before it takes its place."""
    for name in _files_in(target):
        if name.as_posix() not in replaces and not os.path.lexists(staging / name):
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(target / name, staging / name, follow_symlinks=False)
            except OSError:  # a file system without hard links
                shutil.copy2(target / name, staging / name, follow_symlinks=False)


def _files_in(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return [path.relative_to(folder) for path in found]


def _put_in_place(target: Path, staging: Path) -> None:
    if not target.exists():
        staging.rename(target)
    elif not _exchange(staging, target):
        # Killed here, there is neither: the next one that writes puts the former back, `_clear_left_over`.
        former = staging.with_suffix(_FORMER)
        target.rename(former)
        try:
            staging.rename(target)
        except OSError:
            former.rename(target)
            raise
        shutil.rmtree(former, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step, and return whether the system can: Linux, on most of its file systems."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Lock a folder inside the block, so that others see that it is in use; yield whether nobody else holds it."""
    free = False  # also where nobody knows: on a file system without locks
    with ExitStack() as stack:
        with suppress(OSError):  # gone, or another process's
            if _HAS_LOCKS:
                handle = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, handle)
                free = _lock(handle) is True
        yield free


def _lock(handle: int) -> bool | None:
    """Lock an open folder; return whether nobody else holds it, None on a file system without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _clear_left_over(place: Path, target: Path) -> None:
    """Remove what processes that were killed have left beside a folder, after finishing what they were about."""
    for suffix in (_FORMER, _PARTIAL):
        for path in place.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}{suffix}"):
            if path.is_dir() and not path.is_symlink():
                with _held(path) as free:
                    if free and suffix == _FORMER and not target.exists():
                        path.rename(target)
                    elif free:
                        shutil.rmtree(path, ignore_errors=True)
