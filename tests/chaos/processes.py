"""Starts commands, kills them, and says where they were: by a fork server, or as users start them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from injected import VARIABLE, Fault

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
_TIME_LIMIT = 240.0


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: exit status, or the negative number of the signal that killed it.
        out: its standard output.
        err: its standard error.
        phase: where it was last.
        seconds: from start to end.
        killed: it was killed, or its fault happened.
        after_fault: seconds from that fault to the end.
    """

    status: int
    out: str
    err: str
    phase: str
    seconds: float
    killed: bool
    after_fault: float

    @property
    def line(self) -> str:
        """The one line of an error; an assertion fails where there is more, or a traceback."""
        lines = [line for line in self.err.splitlines() if line.startswith("minialbert:")]
        assert "Traceback" not in self.err, self.err
        assert len(lines) == 1, self.err
        assert self.err.strip().splitlines()[-1] == lines[0], self.err
        return lines[0]


def environment() -> dict[str, str]:
    """Return the environment of commands: one thread, no network, the package of this checkout."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "runtime"), str(HERE)])
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": path,
    }


class ForkServer:
    """Runs commands in children of one process that has imported everything.

    Args:
        folder: for what commands write to instead of a terminal.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "forking.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )
        self._answer()

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)
        self._server.stdout.close()

    def run(
        self,
        arguments: list[str],
        fault: Fault | None = None,
        *,
        kill_after: float | None = None,
        kill: Callable[[int], None] | None = None,
    ) -> Ended:
        """Run a command until it ends.

        Args:
            arguments: of the command line.
            fault: what goes wrong at which point.
            kill_after: seconds after which the process and its group are killed.
            kill: how, given its process id; SIGKILL to the group when absent.

        Returns:
            How it ended.
        """
        fault = fault or Fault()
        fault.phase, fault.fired = str(self._folder / "phase"), str(self._folder / "fired")
        Path(fault.phase).write_text("start-up")
        Path(fault.fired).unlink(missing_ok=True)
        files = {name: str(self._folder / name) for name in ("stdout", "stderr")}
        readers = {name: _Reader(Path(path)) for name, path in files.items()}
        assert self._server.stdin is not None
        started = time.monotonic()
        request = {"arguments": arguments, "environment": {VARIABLE: json.dumps(asdict(fault))}, **files}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        pid = self._answer()["pid"]
        killed = threading.Event()
        struck = 0.0

        def strike() -> None:
            nonlocal struck
            struck = time.time()
            killed.set()
            (kill or _kill_group)(pid)

        timers = [threading.Timer(_TIME_LIMIT, _kill_group, [pid])]
        if kill_after is not None:
            timers.append(threading.Timer(kill_after, strike))
        for timer in timers:
            timer.daemon = True
            timer.start()
        status = self._answer()["status"]
        for timer in timers:
            timer.cancel()
        return Ended(
            status,
            readers["stdout"].text(),
            readers["stderr"].text(),
            Path(fault.phase).read_text(errors="replace").strip(),
            time.monotonic() - started,
            Path(fault.fired).is_file() or (killed.is_set() and status != 0),
            time.time() - (Path(fault.fired).stat().st_mtime if Path(fault.fired).is_file() else struck),
        )

    def _answer(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the fork server has died"
        answer: dict[str, Any] = json.loads(line)
        return answer


class _Reader(threading.Thread):
    """Reads what a command writes to a pipe with a name: unlike a file, that has room on a full disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        self._path, self._text = path, ""
        self.start()

    def run(self) -> None:
        """Read until every writer has closed it."""
        self._text = self._path.read_text(encoding="utf-8", errors="replace")

    def text(self) -> str:
        """Return all of it."""
        self.join(timeout=30)
        return self._text


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # not yet the leader of a group, or gone
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
