"""The proof that a run asked for no network: a guard that refuses and notes, and the record of what it saw."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from . import __version__
from .errors import UserError, one_line
from .folder import digest

_NETWORK = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
            "socket.gethostbyaddr", "socket.bind")  # fmt: skip
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")


class Guard:
    """Refuses every connection, look-up and new program of this process from now on, and notes each."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []  # what was asked for: the event and its object
        self._before = _open_sockets()
        # Said again: the environment may have been replaced since this package was imported.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _NETWORK or event in _PROGRAMS:
            what = next((one for one in arguments if not isinstance(one, socket.socket)), "")
            self.asked.append([event, str(what)[:200]])
            raise PermissionError(f"refused while proving that nothing is asked for: {event}")

    def record(self, file: Path, model: Path, texts: int) -> None:
        """Write what was seen while a model answered so many texts; a UserError where something was asked for."""
        telemetry = "off" if os.environ.get("ORT_DISABLE_TELEMETRY") == "1" else "on"
        sockets = sorted(_open_sockets() - self._before)
        record = {
            "format_version": 1,
            "offline": not self.asked and not sockets and telemetry == "off",
            "asked": self.asked,
            "open_sockets": sockets,
            "onnxruntime_telemetry": telemetry,
            "interfaces": [name for _, name in socket.if_nameindex()],
            "model": {"name": model.resolve().name, "files": digest(model)},
            "texts": texts,
            "versions": {
                "python": platform.python_version(),
                "minialbert_runtime": __version__,
                **_versions(),
            },
            "system": platform.system(),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seen": "what Python code asks for, and sockets that are open at the end. Under `unshare --net` there is "
            "no network, and `interfaces` has lo alone.",
        }
        try:
            part = file.with_name(f".{file.name}.part")
            part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            part.replace(file)
        except OSError as error:
            raise UserError(f"{file}: the record cannot be written ({one_line(error)})") from error
        if not record["offline"]:
            found = [*(f"{event} {what}".strip() for event, what in self.asked), *sockets]
            found += ["ONNX Runtime's telemetry is on"] if telemetry == "on" else []
            raise UserError(f"the run was not offline: {found[0]} ({len(found)} in all, see {file})")


def _open_sockets() -> set[str]:
    """Return the sockets that the process has open; none where there is no /proc to tell."""
    found = set()
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # that of the listing is closed by now
                found.add(os.readlink(f"/proc/self/fd/{name}"))
    return {name for name in found if name.startswith("socket:")}


def _versions() -> dict[str, str]:
    found = {}
    for name in ("onnxruntime", "tokenizers", "numpy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
