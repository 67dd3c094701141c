"""A pool of commands: every cell of a grid or a suite is a run of its own, in a process of its own.

A worker is `minialbert finetune` or `minialbert distill`, which goes on from wherever an earlier attempt was stopped.
Its standard input stays open for as long as whoever started it lives: at its end the worker stops too. So no way of
dying, of either, leaves a process behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.progress import MofNCompleteColumn, TimeElapsedColumn

from minialbert.errors import UserError
from minialbert.runs.files import check_own, write_atomically, writing
from minialbert.runs.machine import usable_cores
from minialbert.runs.progress import progress_bar
from minialbert.runs.stopping import GracefulStop

logger = logging.getLogger(__name__)

# What a worker gets for its step and its checkpoint after it was asked to stop.
GRACE_SECONDS = 20.0
POLL_SECONDS = 0.1
# The module that a worker runs: the command line, which ends when nobody is left who started it.
WORKER = "minialbert.cli.worker"
ADVICE = "make room, then start the same command again (without --overwrite)"
_ATTEMPTS = 2


@dataclass(frozen=True)
class Job:
    """One cell, in a form that travels between machines."""

    name: str
    words: Sequence[str]  # the command and its options, without recipe and output
    recipe: str  # as YAML
    output: str  # its run directory
    log: str  # the file that takes what the command prints; its recipe is written beside it
    directory: str  # where relative paths of the recipe start
    needs: str | None = None  # what has to be there before it can start

    @property
    def recipe_file(self) -> Path:
        """The file that the command reads its recipe from."""
        return Path(f"{self.log.removesuffix('.log')}.yaml")

    @property
    def is_finished(self) -> bool:
        """Whether this machine sees its record, and its student if it is to make one."""
        run = Path(self.output)
        return (run / "result.json").is_file() and (self.words[0] == "finetune" or (run / "model").is_dir())

    def write_recipe(self) -> None:
        """Write what the command reads."""
        with writing(self.recipe_file, advice=ADVICE):
            write_atomically(self.recipe_file, self.recipe)


@dataclass(frozen=True)
class Outcome:
    """How a worker ended: "done" (the record is written), with a "mistake" (a `UserError`), or "crashed"."""

    status: Literal["done", "mistake", "crashed"]
    message: str = ""


class Workers(ABC):
    """Those who run jobs."""

    has_room = True  # whether another job may start now
    _running: dict[Any, Any]

    @property
    def running(self) -> int:
        """How many jobs are under way."""
        return len(self._running)

    @abstractmethod
    def start(self, job: Job) -> None:
        """Start a job."""

    @abstractmethod
    def wait(self, seconds: float) -> list[tuple[Job, Outcome]]:
        """Return the jobs that ended, after that time at most."""

    @abstractmethod
    def stop(self) -> None:
        """End all that still runs; it saves what it can."""


class LocalWorkers(Workers):
    """Processes on this machine, so many at a time; they share its cores and take turns on its GPUs."""

    def __init__(self, jobs: int) -> None:
        self.threads = max(1, usable_cores() // jobs)
        self._devices = _visible_devices()
        self._free = list(range(jobs))
        self._running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}

    def start(self, job: Job) -> None:
        """Start a job in a process of its own."""
        slot = self._free.pop(0)
        device = self._devices[slot % len(self._devices)] if len(self._devices) > 1 else None
        self._running[slot] = (job, start_process(job, self.threads, device))
        self.has_room = bool(self._free)

    def wait(self, seconds: float) -> list[tuple[Job, Outcome]]:
        """Return the jobs that ended, after that time at most."""
        deadline = time.monotonic() + seconds
        while True:
            ended = [slot for slot, (_, process) in self._running.items() if process.poll() is not None]
            if ended or time.monotonic() >= deadline:
                break
            time.sleep(POLL_SECONDS)
        self._free = sorted([*self._free, *ended])
        self.has_room = bool(self._free)
        found = [self._running.pop(slot) for slot in ended]
        return [(job, outcome_of(job, process)) for job, process in found]

    def stop(self) -> None:
        """Ask all workers to stop, and kill those that do not within the time of grace."""
        end_processes([process for _, process in self._running.values()])
        self._running.clear()


@contextlib.contextmanager
def cell_bar(
    title: str, total: int, done: int, *, shown: bool, left: str = ""
) -> Iterator[Callable[[str, str, bool], None]]:
    """Show a bar over cells with the time left, of which `left` is said before anything is measured.

    Yields what tells a cell's end: with its line, what is left, and whether it counts, as one that was done before
    does not.
    """
    columns = (MofNCompleteColumn(), TimeElapsedColumn(), "{task.fields[left]}")
    with progress_bar(title, *columns, shown=shown) as bar:
        task = bar.add_task(title, total=total, completed=done, left=left)

        def finish(line: str, left: str, counts: bool) -> None:
            nonlocal done
            done += counts
            bar.update(task, completed=done, left=left)
            if shown:
                logger.info("%d/%d %s", done, total, line)

        yield finish


def begin_folder(definition: Path, text: str) -> None:
    """Write what a grid or a suite is into its folder, which exists."""
    folder = definition.parent
    own = ("cells", "cells/*", "cells/*/*", "logs", "logs/*", "again", "again/*")
    check_own(*(path for pattern in own for path in folder.glob(pattern)))
    with writing(folder, advice=ADVICE):
        (folder / "cells").mkdir(exist_ok=True)
        write_atomically(definition, text)


def run_jobs(
    jobs: Sequence[Job],
    make_workers: Callable[[int], Workers],
    finish: Callable[[Job, float], None],
    *,
    logs: Path,
) -> None:
    """Run jobs until each has its record, as many at a time as there is room for.

    They start in their order, each as soon as what it needs is there, and one whose worker dies is started once more.
    `make_workers` makes those who run so many jobs; they are stopped in the end, however it comes. `finish` is called
    with each job that is done, and the seconds since it started. A job that is a mistake, failed twice, or left no
    record on this machine is a `UserError`, which names the folder of the logs; to be stopped, a `KeyboardInterrupt`.
    """
    stop, waiting = GracefulStop(), list(jobs)
    attempts, failed, started = Counter[str](), dict[str, str](), dict[str, float]()
    with stop.listening(), contextlib.ExitStack() as ending:
        workers = make_workers(len(jobs))
        ending.callback(workers.stop)
        while True:
            while workers.has_room and not stop.requested and (job := _take(waiting)) is not None:
                started[job.name] = time.monotonic()
                job.write_recipe()
                workers.start(job)
            if not workers.running and not stop.requested:
                break
            for job, outcome in workers.wait(0.5) if workers.running else []:
                if outcome.status == "mistake":
                    raise UserError(f"{job.name}: {outcome.message}")
                if outcome.status == "done":
                    _check_written(job)
                    shutil.rmtree(Path(job.output) / "checkpoints", ignore_errors=True)  # it never goes on
                    finish(job, time.monotonic() - started[job.name])
                    continue
                attempts[job.name] += 1
                again = attempts[job.name] < _ATTEMPTS
                if not stop.requested:
                    verb = "is started again" if again else "failed"
                    logger.warning("%s: its worker %s (%s)", job.name, verb, outcome.message)
                if again:
                    waiting.insert(0, job)  # others may need what it makes
                else:
                    failed[job.name] = outcome.message
            if stop.requested:
                raise KeyboardInterrupt
    if failed:
        told = "; ".join(f"{name} ({why})" for name, why in failed.items())
        raise UserError(
            f"{len(failed)} of {len(jobs)} cells failed twice, the others are finished: {told}. Logs are in {logs}; "
            "the same command (without --overwrite) tries again what is missing"
        )


def _take(waiting: list[Job]) -> Job | None:
    """Take the first job that may start now out of a list."""
    for index, job in enumerate(waiting):
        if job.needs is None or Path(job.needs).exists():
            return waiting.pop(index)
    return None


def _check_written(job: Job) -> None:
    if not (Path(job.output) / "result.json").is_file():
        raise UserError(
            f"{job.name} is finished, but {job.output} has no result.json on this machine: with --ray, give an "
            "--output on storage that all nodes share"
        )


def start_process(job: Job, threads: int, device: str | None = None) -> subprocess.Popen[bytes]:
    """Return a worker that was started on a job, whose recipe is written; None as its device lets it see all GPUs.

    The threads are for torch and the tokenizer; a lower OMP_NUM_THREADS that is set already stays. It leads a session
    of its own, so that Ctrl-C in a terminal reaches its parent only.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    count = str(min(threads, int(given)) if given.isdigit() and int(given) else threads)
    threaded = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), count)
    # The same modules as here, whatever put them on the path.
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = {**os.environ, **threaded, "PYTHONPATH": path}
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    where = ["--recipe", str(job.recipe_file), "--output", job.output, "--resume"]
    with Path(job.log).open("ab") as log:
        command = [sys.executable, "-P", "-m", WORKER, *job.words, *where]
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log}
        return subprocess.Popen(
            command, **streams, cwd=job.directory, env=environment, start_new_session=True
        )


def outcome_of(job: Job, process: subprocess.Popen[bytes]) -> Outcome:
    """Return how a worker that has ended did so, by its record, its exit status and the end of its log."""
    _close(process)
    status, log = process.returncode, Path(job.log)
    if job.is_finished:  # by this worker, or by one that it waited for, of a driver that was killed
        return Outcome("done")
    if status < 0:
        hint = ", which the system sends when memory runs out" if -status == signal.SIGKILL else ""
        return Outcome("crashed", f"killed by {signal.Signals(-status).name}{hint}")
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    mistakes = [line.removeprefix("minialbert: ") for line in lines if line.startswith("minialbert: ")]
    if status == 2 and mistakes:
        return Outcome("mistake", mistakes[-1])
    return Outcome("crashed", f"ended with status {status}" + (f": {lines[-1]}" if lines else ""))


def end_processes(processes: list[subprocess.Popen[bytes]], grace: float = GRACE_SECONDS) -> None:
    """Ask workers to stop; after so many seconds of grace kill them, with all that they started.

    An exception in the meantime, as by Ctrl-C, kills at once. Those that have ended are passed over.
    """
    try:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and any(process.poll() is None for process in processes):
            time.sleep(POLL_SECONDS)
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            _close(process)


def _visible_devices() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device.strip() for device in named.split(",") if device.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
