"""A run directory: resolved recipe, log, checkpoints, model, and one JSON record of the result."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .errors import UserError

FORMAT_VERSION = 1


class RunDirectory:
    """The files of one run, each under a fixed name.

    Args:
        path: the directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.log = self.path / "log.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.teacher_cache = self.path / "teacher-cache"
        self.model = self.path / "model"
        self.adapters = self.path / "adapters"
        self.result = self.path / "result.json"

    @property
    def _own(self) -> tuple[Path, ...]:
        return (
            self.recipe, self.log, self.checkpoints, self.teacher_cache, self.model, self.adapters, self.result
        )  # fmt: skip

    def open(self, recipe_text: str, *, resume: bool = False, overwrite: bool = False) -> None:
        """Create the directory, or take an existing one over.

        Args:
            recipe_text: the resolved recipe as YAML, written to `recipe.yaml`.
            resume: go on with a run of the same recipe; a directory without one starts anew.
            overwrite: remove what an earlier run left here. Files that no run writes are never touched.

        Raises:
            UserError: if the directory is not empty and neither is asked for, if it holds a run of another
                recipe, or if it cannot be written.
        """
        if resume and overwrite:
            raise UserError(
                "--resume and --overwrite exclude each other: resume keeps what overwrite removes"
            )
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: expected a directory for the run")
        if self.path.is_dir() and any(self.path.iterdir()):
            if overwrite:
                for entry in self._own:
                    if entry.is_dir():
                        shutil.rmtree(entry)
                    else:
                        entry.unlink(missing_ok=True)
            elif not resume:
                raise UserError(
                    f"{self.path} is not empty: give --resume to go on with the run in it, --overwrite to replace it, "
                    "or another --output"
                )
            elif self.recipe.is_file():
                self._check_same_recipe(recipe_text)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.recipe, recipe_text)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror or error})") from error

    def _check_same_recipe(self, recipe_text: str) -> None:
        before, now = self.recipe.read_text(encoding="utf-8").splitlines(), recipe_text.splitlines()
        if before != now:
            different = [line.strip() for line in now if line not in before] or ["(fewer settings)"]
            raise UserError(
                f"{self.path} holds a run of another recipe; different here: {'; '.join(different[:5])}. Resume with "
                "the same settings, or give another --output"
            )

    def last_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint, or None."""
        found = [
            (int(path.name.rpartition("-")[2]), path)
            for path in self.checkpoints.glob("checkpoint-*")
            if path.name.rpartition("-")[2].isdigit() and (path / "trainer_state.json").is_file()
        ]
        return max(found)[1] if found else None

    def append_log(self, record: dict[str, Any]) -> None:
        """Add one line to `log.jsonl`."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def rewind_log(self, step: int) -> None:
        """Drop log records past a step: a resumed run writes them again."""
        if not self.log.is_file():
            return
        kept = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # a line that was being written when the run was killed
                continue
            if record.get("step", 0) <= step:
                kept.append(line)
        write_atomically(self.log, "".join(f"{line}\n" for line in kept))

    def read_log(self) -> list[dict[str, Any]]:
        """Return all log records."""
        if not self.log.is_file():
            return []
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a crash leaves either the old or the new contents.

    Args:
        path: the file.
        text: its contents.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_result(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write a `result.json` and return it, completed with versions, commit and machine.

    Args:
        path: the file.
        record: at least `kind`, `metrics`, `seed` and `model`.

    Returns:
        The record as written.
    """
    complete = {"format_version": FORMAT_VERSION, **record, **environment()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(complete, indent=2) + "\n")
    return complete


def environment() -> dict[str, Any]:
    """Return what a number was measured with: versions, commit, machine."""
    packages = ("minialbert", "torch", "transformers", "datasets", "accelerate", "numpy", "onnxruntime")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "commit": _commit(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
    }


def display_name(model: str | Path | None) -> str | None:
    """Return how a record names a model or data: its hub id, or the last part of a local path.

    The `model` folder of a run has the run's name.
    """
    if model is None:
        return None
    if not Path(model).exists():
        return str(model)
    path = Path(model).resolve()
    return path.parent.name if path.name == "model" else path.name


def _commit() -> str | None:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # installed from a wheel
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
