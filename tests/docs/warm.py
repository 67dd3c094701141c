"""A process that has imported everything, and forks a child for each command of a page: a second instead of five.

`python warm.py SOCKET` serves. `program()` is the text of a command that hands its arguments, its folder, its
environment and its three streams to that process, and ends as the child does. `Page` is a child that runs the Python
blocks of a page, one after the other, with one set of names.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

_PRELOADED = (
    "minialbert.cli.main", "minialbert.data.prepare", "minialbert.deploy.export", "minialbert.deploy.hub",
    "minialbert.experiments.grid", "minialbert.experiments.suite.run", "minialbert.method.distill",
    "minialbert.report", "minialbert.tasks.finetune", "minialbert.tasks.predict", "minialbert_runtime.cli",
)  # fmt: skip
_CLIENT = """#!{python} -IS
import json, os, socket, sys
words, name = sys.argv[1:], os.path.basename(sys.argv[0])
if name.startswith("python") and words[:1] != ["-m"] and not (words and os.path.isfile(words[0])):
    os.execv({python!r}, [{python!r}, *words])
with socket.socket(socket.AF_UNIX) as link:
    link.connect({path!r})
    request = {{"program": name, "words": words, "folder": os.getcwd(), "environment": dict(os.environ)}}
    socket.send_fds(link, [json.dumps(request).encode() + b"\\n"], [0, 1, 2])
    answer = link.makefile().readline()
sys.exit(json.loads(answer)["status"] if answer else 1)
"""


def program(path: Path) -> str:
    """Return the text of a command that runs what it is called as in a child of the server at `path`."""
    return _CLIENT.format(python=sys.executable, path=str(path))


class Page:
    """A child of the server that runs the Python blocks of a page; a context."""

    def __init__(
        self, path: Path, folder: Path, environment: Mapping[str, str], names: str, printed: Path
    ) -> None:
        self._link = socket.socket(socket.AF_UNIX)
        self._link.connect(str(path))
        request = {"program": "page", "words": [], "folder": str(folder), "environment": dict(environment)}
        with printed.open("ab") as output, open(os.devnull) as nothing:
            streams = [nothing.fileno(), output.fileno(), output.fileno()]
            socket.send_fds(self._link, [json.dumps(request).encode() + b"\n"], streams)
        self._answers = self._link.makefile()
        self.run(names, "names that the page takes for granted")

    def run(self, code: str, where: str) -> None:
        """Run a block; an error in it is raised here, with its traceback."""
        self._link.sendall(json.dumps({"code": code, "where": where}).encode() + b"\n")
        answer = self._answers.readline()
        if not answer:
            raise RuntimeError(f"{where}: the process has ended")
        if error := json.loads(answer)["error"]:
            raise RuntimeError(f"{where}\n{error}")

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._link.close()


def serve(path: str) -> None:
    """Import what commands import, say so on standard output, and fork a child for every connection."""
    for module in _PRELOADED:
        importlib.import_module(module)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(64)
    gc.freeze()  # children write to fewer pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        link, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _become(link)
        link.close()


def _become(link: socket.socket) -> NoReturn:
    """Turn a forked child into the process that a request describes; it ends when the other side hangs up."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sent, streams, _, _ = socket.recv_fds(link, 1 << 20, 3)
    lines = link.makefile()
    request = json.loads(sent if sent.endswith(b"\n") else sent.decode() + lines.readline())
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["program"] == "page":
        _run_blocks(link, lines)
        os._exit(0)
    fcntl.fcntl(link, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(link, fcntl.F_SETFL, fcntl.fcntl(link, fcntl.F_GETFL) | os.O_ASYNC)  # SIGIO ends it
    status = _run(request["program"], request["words"])
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    link.sendall(json.dumps({"status": status}).encode() + b"\n")
    os._exit(0)  # taking all modules apart would take seconds


def _run(name: str, words: list[str]) -> int:
    """Run a command, and return its exit status."""
    sys.argv = [name, *words]
    try:
        if name.startswith("python"):
            sys.path.insert(0, os.getcwd())
            if words[0] == "-m":
                sys.argv = words[1:]
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = words
                runpy.run_path(words[0], run_name="__main__")
        elif name == "minialbert-runtime":
            importlib.import_module("minialbert_runtime.cli").main()
        else:
            importlib.import_module("minialbert.cli.main").main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # what the interpreter would do
        traceback.print_exc()
        return 1
    return 0


def _run_blocks(link: socket.socket, lines: Any) -> None:
    """Run blocks as they come, with one set of names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    sys.argv = [""]
    while line := lines.readline():
        request, error = json.loads(line), None
        try:
            exec(compile(request["code"], request["where"], "exec", dont_inherit=True), names)
        except BaseException:  # whatever it is, the page is told
            error = traceback.format_exc()
        sys.stdout.flush()
        link.sendall(json.dumps({"error": error}).encode() + b"\n")


if __name__ == "__main__":
    serve(sys.argv[1])
