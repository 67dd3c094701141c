"""What travels between the driver of a grid and those who run its cells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from .errors import UserError


@dataclass(frozen=True)
class Job:
    """One cell, in a form that travels between processes.

    Attributes:
        name: the cell's name.
        recipe: its recipe.
        output: its run directory.
        log: the file that takes what the worker writes to standard error.
        marker: a file of the grid, which every machine that runs a cell has to see.
        directory: where relative paths of the recipe start.
        keep_model: write the model, where the job is a tuning.
        kind: a tuning, a distillation, or a student as it starts, which learns nothing.
        windows: what a distillation reads.
    """

    name: str
    recipe: dict[str, Any]
    output: str
    log: str
    marker: str
    directory: str
    keep_model: bool
    kind: Literal["finetune", "distill", "initialise"] = "finetune"
    windows: str | None = None

    def check_written(self) -> None:
        """Raise a `UserError` if this machine does not see the record of the finished job."""
        if not (Path(self.output) / "result.json").is_file():
            raise UserError(
                f"{self.name} is finished, but {self.output} has no result.json on this machine: with --ray, give an "
                "--output on storage that all nodes share"
            )


@dataclass(frozen=True)
class Outcome:
    """How a worker ended.

    Attributes:
        status: "done" (the record is written), "mistake" (a `UserError`), "interrupted" or "crashed".
        message: one line about it.
    """

    status: Literal["done", "mistake", "interrupted", "crashed"]
    message: str = ""


class Workers(Protocol):
    """What the driver of a grid needs of those who run its cells."""

    @property
    def has_room(self) -> bool:
        """Whether another job may start now."""

    @property
    def running(self) -> int:
        """How many jobs are under way."""

    def start(self, job: Job) -> None:
        """Start a job."""

    def wait(self, seconds: float) -> list[tuple[Job, Outcome]]:
        """Return the jobs that ended, after that time at most."""

    def stop(self) -> None:
        """End all that still runs; it saves what it can."""
