"""A folder that appears complete or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(directory: str | Path, *, replaces: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty folder beside the directory; when the block ends without an error it takes its place.

    What the directory held before stays, but for files that were written anew and for those of `replaces`. After an
    error the directory is as it was.

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
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        staging.mkdir(parents=True)
        yield staging
        _put_in_place(target, staging, replaces)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


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
