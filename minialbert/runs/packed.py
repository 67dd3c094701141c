"""Records and logs of many runs in two files: what a folder holds instead of the run directories below it.

`packed-records.jsonl` has a line per `result.json`, `packed-logs.jsonl.gz` one per `log.jsonl` and `attention.json`:
`{"file": "student/full/cola-1/result.json", "content": …}`, the record itself, or the text of a log. A packed file is
read by the path that it would have on the disk; a file that is on the disk counts before it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from minialbert.errors import UserError, failing_as, quoted
from minialbert.runs.files import write_atomically, writing

RECORDS, LOGS = "packed-records.jsonl", "packed-logs.jsonl.gz"
_RECORD = "result.json"
_NAMES = {RECORDS: (_RECORD,), LOGS: ("log.jsonl", "attention.json")}
# What is read of a pack at most, unpacked: half of the miniature suite's 629 cells have 3 MiB.
_MOST_BYTES = 256 * 2**20
_MOST_LEVELS = 8  # of folders between a pack and what it holds


def packed(file: Path) -> bytes | None:
    """Return a run's file out of a pack in a folder above it; None where it is on the disk, or in no pack."""
    name = RECORDS if file.name == _RECORD else LOGS
    if file.name not in _NAMES[name] or file.exists():
        return None
    for folder in islice(file.parents, _MOST_LEVELS):
        content = _contents(folder / name).get(file.relative_to(folder).as_posix())
        if content is not None:
            return content.encode()
    return None


def is_run_file(file: Path) -> bool:
    """Return whether a run's file is there, on the disk or packed."""
    return file.is_file() or packed(file) is not None


def read_run_file(file: Path) -> str:
    """Return the text of a run's file, from the disk or out of a pack."""
    content = packed(file)
    return (file.read_bytes() if content is None else content).decode()


def find_run_records(path: Path) -> list[Path]:
    """Return every `result.json` below a path, on the disk or packed, or the file that the path names."""
    if path.is_file():
        if path.name != RECORDS:
            return [path]
        path = path.parent
    packs = [*path.rglob(RECORDS), *(folder / RECORDS for folder in islice(path.parents, _MOST_LEVELS))]
    held = {pack.parent / name for pack in packs for name in _contents(pack)}
    return sorted({*path.rglob(_RECORD), *(file for file in held if path in (file, *file.parents))})


def pack_files(folder: Path, texts: Mapping[str, str]) -> None:
    """Add files, by their paths below the folder, to its packs; one that is packed already is replaced."""
    for name, held in _NAMES.items():
        new = {path: text for path, text in texts.items() if PurePosixPath(path).name in held}
        if not new:
            continue
        files = _contents(folder / name) | new
        plain = "".join(f"{_line(path, files[path])}\n" for path in sorted(files)).encode()
        if len(plain) > _MOST_BYTES:
            advice = "pack fewer runs into one folder"
            raise UserError(f"{folder / name} would have more than {_MOST_BYTES // 2**20} MiB: {advice}")
        with writing(folder / name, advice="make room, then start the same command again"):
            write_atomically(folder / name, gzip.compress(plain, mtime=0) if name == LOGS else plain)


def _line(path: str, text: str) -> str:
    content = json.loads(text) if path.endswith(_RECORD) else text
    return json.dumps({"file": path, "content": content}, ensure_ascii=False)


def _contents(pack: Path) -> dict[str, str]:
    """Return the texts in a pack by their paths below its folder; none where there is no pack."""
    try:
        seen = pack.stat()
    except (OSError, ValueError):
        return {}
    return _read(pack, seen.st_mtime_ns, seen.st_size)


@lru_cache(maxsize=8)
def _read(pack: Path, changed: int, size: int) -> dict[str, str]:
    """Return the texts in a pack, which are read again when the file has changed."""
    advice = "get it again, or pack its runs again"
    with failing_as(f"{pack} cannot be read", (OSError, EOFError, zlib.error), advice):
        if not pack.is_file():  # a pipe would never end
            raise UserError(f"{pack} is not a file: expected packed records or logs")
        with gzip.open(pack) if pack.name == LOGS else pack.open("rb") as file:
            plain = file.read(_MOST_BYTES + 1)
    if len(plain) > _MOST_BYTES:
        raise UserError(f"{pack} has more than {_MOST_BYTES // 2**20} MiB: packed records and logs have less")
    texts: dict[str, str] = {}
    for number, line in enumerate(plain.splitlines(), 1):
        try:
            path, text = _entry(json.loads(line), _NAMES[pack.name])
            if path in texts:
                raise ValueError(f"{quoted(path)} is repeated")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{pack}, line {number} is not a packed file of a run: {error}") from error
        texts[path] = text
    return texts


def _entry(entry: Any, names: tuple[str, ...]) -> tuple[str, str]:
    """Return path and text of a line's file."""
    if not isinstance(entry, dict) or not isinstance(path := entry.get("file"), str):
        raise ValueError("expected an object with file and content")
    parts = PurePosixPath(path).parts
    if path != "/".join(parts) or ".." in parts or "\\" in path or "\0" in path or parts[-1:] == ():
        raise ValueError(f"{quoted(path)} is not a path below its folder")
    if parts[-1] not in names:
        raise ValueError(f"{quoted(path)} is not called {' or '.join(names)}")
    content = entry.get("content")
    if not isinstance(content, dict if names == (_RECORD,) else str):
        raise ValueError(f"the content of {quoted(path)} is missing")
    return path, content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
