"""Starts jobs of several processes, none of which outlives its test."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent
# What a launcher of our own may have told the test's process.
_OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def torchrun(processes: int, *options: str) -> list[str]:
    """Return the words that start so many processes on this machine; for one, none are needed."""
    if processes == 1 and not options:
        return [sys.executable]
    options = options or ("--master-port", str(free_port()))
    return [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *options,
    ]  # fmt: skip


def accelerate_launch(processes: int) -> list[str]:
    """Return the words that start so many processes on the CPU with accelerate's launcher."""
    return [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port",
        str(free_port()),
    ]  # fmt: skip


class Job:
    """A running command with all its descendants, and what it has written.

    Args:
        words: the command.
        environment: variables to set besides those of this process.
    """

    def __init__(self, words: Sequence[object], **environment: str) -> None:
        clean = {name: value for name, value in os.environ.items() if name not in _OF_A_LAUNCHER}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        settings = {
            **clean,
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "COLUMNS": "200",
            **environment,
        }
        # Launchers put each process into a session of its own: what is left of a job is found by this mark.
        self._mark = f"MINIALBERT_TEST_JOB={uuid.uuid4()}".encode()
        settings.update([self._mark.decode().split("=")])  # type: ignore[list-item]
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [str(word) for word in words],
            env=settings,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )

    @property
    def out(self) -> str:
        """What came on standard output so far."""
        return _read(self._out)

    @property
    def err(self) -> str:
        """What came on standard error so far."""
        return _read(self._err)

    def wait(self, seconds: float = 150) -> int:
        """Return the exit status of the command."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s\n{self.out}\n{self.err}") from None

    def succeed(self, seconds: float = 150) -> Job:
        """Wait for an end without an error."""
        status = self.wait(seconds)
        assert status == 0, f"exit status {status}\n{self.out}\n{self.err}"
        return self

    def until(self, happened: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until something has happened."""
        end = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, f"ended too early\n{self.out}\n{self.err}"
            assert time.monotonic() < end, f"waited {seconds} s\n{self.out}\n{self.err}"
            time.sleep(0.05)

    def members(self) -> list[int]:
        """Return the process ids of what is left of the job."""
        return [member for member in _process_ids() if self._mark in _environment(member)]

    def worker(self, rank: int) -> int:
        """Return the process id of one of the training processes."""
        for member in self.members():
            if f"RANK={rank}".encode() in _environment(member):
                return member
        raise AssertionError(f"there is no process of rank {rank}")

    def end(self) -> None:
        """End whatever is left of it."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for member in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        self._out.close()
        self._err.close()


@contextlib.contextmanager
def job(words: Sequence[object], **environment: str) -> Iterator[Job]:
    """Run a command for as long as the block lasts."""
    running = Job(words, **environment)
    try:
        yield running
    finally:
        running.end()


def _process_ids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]


def _environment(process: int) -> list[bytes]:
    """Return the variables of a process; none of one that has ended or is another user's."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return []


def _read(file: object) -> str:
    descriptor = file.fileno()  # type: ignore[attr-defined]
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0).decode(errors="replace")
