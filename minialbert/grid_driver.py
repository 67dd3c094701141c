"""The loop that keeps workers busy: cells start as soon as they may, and one whose worker dies is started once more."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Protocol

from .errors import UserError
from .grid_jobs import Job, Workers
from .interrupts import GracefulStop

logger = logging.getLogger(__name__)

_ATTEMPTS = 2


class JobSource(Protocol):
    """Where the jobs come from."""

    def take(self) -> Job | None:
        """Return the next job that may start now, or None."""

    def put_back(self, job: Job) -> None:
        """Take a job back that is to be started again."""


class Waiting:
    """Jobs of which none waits for another.

    Args:
        jobs: in the order in which they start.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = deque(jobs)

    def take(self) -> Job | None:
        """Return the next job, or None when all have been taken."""
        return self._jobs.popleft() if self._jobs else None

    def put_back(self, job: Job) -> None:
        """Take a job back, as the last one."""
        self._jobs.append(job)


def drive(
    workers: Workers,
    source: JobSource,
    stop: GracefulStop,
    finish: Callable[[Job], None],
    *,
    names_mistakes: bool = False,
) -> dict[str, str]:
    """Keep all workers busy until nothing is left that can start.

    Args:
        workers: who runs the jobs; the caller stops them.
        source: the jobs.
        stop: whether to stop.
        finish: called with each job that is done; the source may have more to start after it.
        names_mistakes: begin a mistake's message with its job.

    Returns:
        Why jobs failed twice, by name.

    Raises:
        UserError: if a job is a mistake, or left no record on this machine.
        KeyboardInterrupt: if it was asked to stop.
    """
    attempts, failed = Counter[str](), dict[str, str]()
    while True:
        while workers.has_room and not stop.requested and (taken := source.take()) is not None:
            workers.start(taken)
        if not workers.running and not stop.requested:
            return failed
        for job, outcome in workers.wait(0.5) if workers.running else []:
            if outcome.status == "mistake":
                raise UserError(f"{job.name}: {outcome.message}" if names_mistakes else outcome.message)
            if outcome.status == "done":
                job.check_written()
                finish(job)
                continue
            attempts[job.name] += 1
            again = attempts[job.name] < _ATTEMPTS
            if not stop.requested:
                verb = "is started again" if again else "failed"
                logger.warning("%s: its worker %s (%s)", job.name, verb, outcome.message)
            if again:
                source.put_back(job)
            else:
                failed[job.name] = outcome.message
        if stop.requested:
            raise KeyboardInterrupt


def failure(failed: dict[str, str], cells: int, logs: str) -> UserError:
    """Return the error that tells which cells failed.

    Args:
        failed: as `drive` returns it.
        cells: how many there were.
        logs: where their logs are.

    Returns:
        The error.
    """
    told = "; ".join(f"{name} ({why})" for name, why in failed.items())
    return UserError(
        f"{len(failed)} of {cells} cells failed twice, the others are finished: {told}. Logs are in {logs}; "
        "the same command tries again what is missing"
    )
