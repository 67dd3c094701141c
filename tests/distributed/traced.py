"""Runs the command line and notes what this process writes in a folder.

    traced.py NOTES FOLDER ARGUMENTS...

NOTES.RANK receives the names, right under FOLDER, of all that was opened for writing, made, renamed or removed.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from minialbert.cli import main

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "shutil.rmtree",
)
NOTES, FOLDER = f"{sys.argv[1]}.{os.environ['RANK']}", Path(sys.argv[2]).resolve()
found: set[str] = set()


def note(path: object) -> None:
    """Remember a path in the folder."""
    if isinstance(path, (str, bytes, os.PathLike)):
        resolved = Path(os.path.abspath(os.fsdecode(path)))
        if FOLDER in resolved.parents:
            found.add(resolved.relative_to(FOLDER).parts[0])


def listen(event: str, arguments: tuple[Any, ...]) -> None:
    """Take note of what Python opens and changes."""
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
        note(arguments[0])
    elif event in _CHANGES:
        for argument in arguments:
            note(argument)


def noting(function: Any, place: int) -> Any:
    """Return a function that writes from outside of Python, and takes note of the path."""

    def call(*arguments: Any, **named: Any) -> Any:
        note(arguments[place] if len(arguments) > place else named.get("filename"))
        return function(*arguments, **named)

    return call


sys.addaudithook(listen)
safetensors.torch.save_file = noting(safetensors.torch.save_file, 1)
safetensors.torch.save_model = noting(safetensors.torch.save_model, 1)
torch.save = noting(torch.save, 1)
atexit.register(lambda: Path(NOTES).write_text(json.dumps(sorted(found))))
sys.argv = ["minialbert", *sys.argv[3:]]
main.main()
