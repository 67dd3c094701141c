"""Asks pip-audit for known vulnerabilities of what is pinned and installed; never waits longer than its limit.

Exit status 1 means that a package has one which is not in the list of ignored ones, or that pip-audit is broken. Where
its database cannot be reached, nothing is audited: that is told in one line, and is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 60.0
# What errors of a network are called in a traceback of pip-audit and of the libraries under it.
_NETWORK = re.compile(r"Connection|Timeout|timed out|ProxyError|SSLError|Max retries|HTTPError|ServiceError")
_SHOWN = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit, and tell the outcome.

    Args:
        arguments: of the command line; the process's own by default.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("constraints", type=Path, help="file of pinned versions")
    parser.add_argument(
        "--pip-audit", default=str(Path(sys.executable).parent / "pip-audit"), help="its command"
    )
    parser.add_argument("--ignored", type=Path, default=Path(__file__).parent / "audit-ignored.txt")
    parser.add_argument(
        "--limit", type=float, default=LIMIT_SECONDS, help="seconds after which it is stopped"
    )
    options = parser.parse_args(arguments)
    ignored = read_ignored(options.ignored)
    try:
        status, out, err = _run(options.pip_audit, requirements(options.constraints), options.limit)
    except FileNotFoundError:
        return _tell(f"not done: {options.pip_audit} is not installed (pip install pip-audit)")
    except subprocess.TimeoutExpired:
        return _tell(f"not done: no answer within {options.limit:g} seconds")
    try:
        packages = json.loads(out)["dependencies"]
    except (ValueError, LookupError, TypeError):
        last = (err.strip().splitlines() or ["it said nothing"])[-1]
        if _NETWORK.search(err):
            return _tell(f"not done: the database of vulnerabilities cannot be reached ({last[:200]})")
        return _tell(f"pip-audit failed with status {status}: {last[:200]}", status=1)
    return _judge(packages, ignored)


def requirements(constraints: Path) -> list[str]:
    """Return pinned and installed packages, each once, as NAME==VERSION.

    Args:
        constraints: file of pinned versions, whose packages need not be installed.

    Returns:
        The requirements; without this repository's own packages, and without local versions such as +cpu.
    """
    lines = constraints.read_text(encoding="utf-8").splitlines()
    pinned = [line.partition("#")[0].strip() for line in lines]
    installed = [f"{found.metadata['Name']}=={found.version}" for found in metadata.distributions()]
    versions = {}
    for requirement in (*pinned, *installed):
        name, _, version = requirement.partition("==")
        name = re.sub(r"[-_.]+", "-", name).lower()
        if version and not name.startswith("minialbert"):
            versions[name] = version.partition("+")[0]
    return [f"{name}=={versions[name]}" for name in sorted(versions)]


def read_ignored(file: Path) -> dict[str, str]:
    """Return why each ignored vulnerability does no harm.

    Args:
        file: lines of an id and a reason; those that begin with # are passed over.

    Returns:
        The reason by id.

    Raises:
        SystemExit: a line has no reason.
    """
    ignored = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        name, _, reason = line.strip().partition(" ")
        if name and not name.startswith("#"):
            if not reason.strip():
                raise SystemExit(f"{file}:{number}: {name} has no reason: write why it does no harm")
            ignored[name] = reason.strip()
    return ignored


def _run(command: str, packages: Sequence[str], limit: float) -> tuple[int, str, str]:
    """Return exit status and output of pip-audit; whatever it started is gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        listed, out, err = (Path(scratch) / name for name in ("requirements.txt", "out", "err"))
        listed.write_text("".join(f"{package}\n" for package in packages), encoding="utf-8")
        options = ["--disable-pip", "--no-deps", "--format", "json", "--progress-spinner", "off"]
        with out.open("wb") as output, err.open("wb") as errors:
            process = subprocess.Popen(
                [command, "--requirement", str(listed), *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
            try:
                status = process.wait(limit)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        return status, *(file.read_text(encoding="utf-8", errors="replace") for file in (out, err))


def _judge(packages: Sequence[dict[str, Any]], ignored: dict[str, str]) -> int:
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        return _tell(f"not done: the database answers for none of the {len(packages)} packages")
    status = 0
    for package in known:
        for found in package["vulns"]:
            names = [found["id"], *found.get("aliases", ())]
            reason = next((ignored[name] for name in names if name in ignored), None)
            repaired = ", ".join(found.get("fix_versions", ())) or "no version yet"
            where = f"{package['name']} {package['version']}: {' '.join(names)}"
            if reason is None:
                status = _tell(f"{where}, repaired in {repaired}", status=1)
            else:
                _tell(f"{where}, ignored: {reason}")
    rest = f", and {len(unknown)} that the database does not have: {_some(unknown)}" if unknown else ""
    return _tell(f"{len(known)} packages{rest}", status=status)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")


def _tell(text: str, status: int = 0) -> int:
    sys.stdout.write(f"audit: {text}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
