"""Processes that run the cells of a grid or a suite, one process per cell, on this machine or on the nodes of Ray.

A worker reads its job from standard input, which stays open for as long as whoever started it lives: at its end
the worker stops too. So no way of dying, of either, leaves a process behind.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, Protocol

from minialbert.errors import MissingExtraError, UserError
from minialbert.runs.stopping import GracefulStop

__all__ = [
    "Job",
    "LocalWorkers",
    "Outcome",
    "RayWorkers",
    "Workers",
    "end_processes",
    "import_ray",
    "node_share",
    "outcome_of",
    "run_on_node",
    "start_process",
    "usable_cores",
]

logger = logging.getLogger(__name__)


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


# What a worker gets for its step and its checkpoint after it was asked to stop.
GRACE_SECONDS = 20.0
_POLL_SECONDS = 0.1


class LocalWorkers:
    """Processes on this machine.

    Args:
        jobs: how many at a time; they share the cores.
    """

    def __init__(self, jobs: int) -> None:
        self.threads = max(1, usable_cores() // jobs)
        self._devices = _visible_devices()
        self._free = list(range(jobs))
        self._running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}

    @property
    def has_room(self) -> bool:
        """Whether another job may start now."""
        return bool(self._free)

    @property
    def running(self) -> int:
        """How many jobs are under way."""
        return len(self._running)

    def start(self, job: Job) -> None:
        """Start a job in a process of its own.

        Args:
            job: the job.
        """
        slot = self._free.pop(0)
        device = self._devices[slot % len(self._devices)] if len(self._devices) > 1 else None
        self._running[slot] = (job, start_process(job, self.threads, device))

    def wait(self, seconds: float) -> list[tuple[Job, Outcome]]:
        """Return the jobs that ended.

        Args:
            seconds: the longest wait for the first of them.

        Returns:
            The jobs and how they ended.
        """
        deadline = time.monotonic() + seconds
        while True:
            ended = [slot for slot, (_, process) in self._running.items() if process.poll() is not None]
            if ended or time.monotonic() >= deadline:
                break
            time.sleep(_POLL_SECONDS)
        self._free = sorted([*self._free, *ended])
        found = [self._running.pop(slot) for slot in ended]
        return [(job, outcome_of(process, Path(job.log))) for job, process in found]

    def stop(self) -> None:
        """Ask all workers to stop, and kill those that do not within the time of grace."""
        end_processes([process for _, process in self._running.values()])
        self._running.clear()


class RayWorkers:
    """Tasks of a Ray cluster, each of which starts such a process on its node.

    Args:
        address: "local" for an instance of its own, "auto", "host:port" or "ray://host:port" for a cluster.
        jobs: how many cells share a node.

    Raises:
        UserError: if the cluster cannot be reached.
        MissingExtraError: if ray is not installed.
    """

    def __init__(self, address: str, jobs: int) -> None:
        self._ray = import_ray()
        self._owner = not self._ray.is_initialized()
        if self._owner:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent unasked
            options = {"include_dashboard": False} if address == "local" else {}
            try:
                self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"--ray {address}: no Ray cluster answers there ({_first_line(error)}); `ray start --head` starts "
                    "one, --ray local runs an instance for this grid alone"
                ) from error
        cpus, gpus = node_share(self._ray.nodes(), jobs)
        # The driver counts attempts itself, so that one that was killed is told from one that was stopped.
        self._task = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(run_on_node)
        self._threads = cpus
        self._running: dict[Any, Job] = {}

    @property
    def has_room(self) -> bool:
        """Always: Ray keeps what does not fit waiting."""
        return True

    @property
    def running(self) -> int:
        """How many jobs are handed in and not ended."""
        return len(self._running)

    def start(self, job: Job) -> None:
        """Hand a job to the cluster.

        Args:
            job: the job.
        """
        self._running[self._task.remote(asdict(job), self._threads)] = job

    def wait(self, seconds: float) -> list[tuple[Job, Outcome]]:
        """Return the jobs that ended.

        Args:
            seconds: the longest wait for the first of them.

        Returns:
            The jobs and how they ended.
        """
        if not self._running:
            return []
        ended, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        found = []
        for reference in ended:
            try:
                outcome = Outcome(**self._ray.get(reference))
            except self._ray.exceptions.RayError as error:  # its node or its Ray worker is gone
                outcome = Outcome("crashed", _first_line(error))
            found.append((self._running.pop(reference), outcome))
        return found

    def stop(self) -> None:
        """Cancel all tasks, wait for what they save, and leave the cluster."""
        references = list(self._running)
        try:
            for reference in references:
                self._ray.cancel(reference, force=False)
            if references:
                self._ray.wait(references, num_returns=len(references), timeout=GRACE_SECONDS + 5)
        finally:
            self._running.clear()
            if self._owner:
                self._ray.shutdown()


def import_ray() -> Any:  # noqa: ANN401 - a module
    """Return the module ray.

    Returns:
        The module.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "--ray") from error
    return ray


def node_share(nodes: Iterable[dict[str, Any]], jobs: int) -> tuple[int, float]:
    """Return the cores and GPUs of one cell, when so many share a node.

    Args:
        nodes: as `ray.nodes()` describes them.
        jobs: cells per node.

    Returns:
        Cores (whole) and GPUs (at most 1), from the smallest node that has any.

    Raises:
        UserError: if no node has a core to give.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    cpus = [node["CPU"] for node in alive if node.get("CPU", 0) >= 1]
    gpus = [node["GPU"] for node in alive if node.get("GPU", 0) >= 1]
    if not cpus:
        raise UserError("the Ray cluster has no node with a free core: add one, or leave out --ray")
    return max(1, int(min(cpus)) // jobs), min(1.0, min(gpus) / jobs) if gpus else 0.0


def run_on_node(values: dict[str, Any], threads: int) -> dict[str, Any]:
    """Run a job on the machine that this is called on: the body of a Ray task.

    Args:
        values: the fields of a `Job`.
        threads: for the worker.

    Returns:
        The fields of an `Outcome`.
    """
    job = Job(**values)
    for path in (job.marker, job.directory):
        if not Path(path).exists():
            return asdict(
                Outcome(
                    "mistake",
                    f"{path} is not there on node {platform.node()}: with --ray, give an --output (and run from a "
                    "directory) on storage that all nodes share under the same path",
                )
            )
    process = start_process(job, threads)
    try:
        while process.poll() is None:  # in short waits, because Ray cancels between two bytecodes
            time.sleep(_POLL_SECONDS)
        return asdict(outcome_of(process, Path(job.log)))
    finally:
        end_processes([process])


def start_process(job: Job, threads: int, device: str | None = None) -> subprocess.Popen[bytes]:
    """Start a worker and hand it its job.

    Args:
        job: the job.
        threads: for torch and the tokenizer; a lower OMP_NUM_THREADS that is set already stays.
        device: the GPU that it is to see; None for all.

    Returns:
        The process, leader of a session of its own, so that Ctrl-C in a terminal reaches its parent only.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    count = str(min(threads, int(given)) if given.isdigit() and int(given) else threads)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "RAYON_NUM_THREADS": count,
        # The same modules as here, whatever put them on the path.
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
    }
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    Path(job.log).parent.mkdir(parents=True, exist_ok=True)
    with Path(job.log).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=job.directory,
            env=environment,
            start_new_session=True,
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it ended at once; its exit status and log say why
        process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
        process.stdin.flush()
    return process


def outcome_of(process: subprocess.Popen[bytes], log: Path) -> Outcome:
    """Return how a worker that has ended did so.

    Args:
        process: the ended process.
        log: its log file.

    Returns:
        What it said itself, or a crash with the signal or the last line of its log.
    """
    assert process.stdout is not None
    said = process.stdout.read()
    _close(process)
    with contextlib.suppress(ValueError, TypeError):
        return Outcome(**json.loads(said))
    status = process.returncode
    if status < 0:
        hint = ", which the system sends when memory runs out" if -status == signal.SIGKILL else ""
        return Outcome("crashed", f"killed by {signal.Signals(-status).name}{hint}")
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return Outcome("crashed", f"ended with status {status}" + (f": {last}" if last else ""))


def end_processes(processes: list[subprocess.Popen[bytes]], grace: float = GRACE_SECONDS) -> None:
    """Ask workers to stop; kill, with all that they started, those that take too long.

    Args:
        processes: the workers; ended ones are passed over.
        grace: seconds until they are killed. An exception in the meantime, as by Ctrl-C, kills at once.
    """
    try:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and any(process.poll() is None for process in processes):
            time.sleep(_POLL_SECONDS)
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            _close(process)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main() -> NoReturn:
    """Run the job that standard input names, and answer how it went on standard output."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints belongs in the log
    signal.signal(signal.SIGTERM, _interrupt)
    job = Job(**json.loads(_read_line()))
    threading.Thread(target=_stop_when_alone, daemon=True).start()
    try:
        _run(job)
        outcome = Outcome("done")
    except UserError as error:
        outcome = Outcome("mistake", str(error))
    except KeyboardInterrupt:
        outcome = Outcome("interrupted", "interrupted")
    except Exception as error:
        traceback.print_exc()
        outcome = Outcome("crashed", f"{type(error).__name__}: {_first_line(error)}")
    answer.write(json.dumps(asdict(outcome)))
    answer.close()
    sys.exit(0 if outcome.status == "done" else 1)


def _run(job: Job) -> None:
    import torch
    from transformers.utils import logging as transformers_logging

    from minialbert.runs.directory import RunDirectory

    run = RunDirectory(job.output)
    if run.result.is_file() and (
        job.kind == "finetune" or run.model.is_dir()
    ):  # an earlier attempt got that far
        return
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        if job.kind == "finetune":
            _tune(job)
        else:
            _make_student(job)
    except UserError:
        if not run.result.is_file():
            raise
        # The worker of a driver that was killed, which was waited for, has finished the cell.
    shutil.rmtree(run.checkpoints, ignore_errors=True)  # a finished cell never goes on


def _tune(job: Job) -> None:
    from minialbert.recipes.schema import FinetuneRecipe
    from minialbert.tasks.finetune import finetune

    recipe = FinetuneRecipe.model_validate(job.recipe)
    finetune(recipe, output=job.output, resume=True, keep_model=job.keep_model)


def _make_student(job: Job) -> None:
    from minialbert.method.distill import distill, initialise
    from minialbert.recipes.schema import Recipe

    recipe = Recipe.model_validate(job.recipe)
    assert job.windows is not None
    if job.kind == "initialise":
        initialise(recipe, data=job.windows, output=job.output, resume=True)
    else:
        distill(recipe, data=job.windows, output=job.output, resume=True)


def _read_line() -> bytes:
    """Read the job, and not a byte further: the rest of standard input is only waited for."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    return line


def _stop_when_alone() -> None:
    """Stop when standard input ends, because nobody is left to start the next cell or to read the answer."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _visible_devices() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device.strip() for device in named.split(",") if device.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


if __name__ == "__main__":
    main()


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
