"""The audit of dependencies: red for what is known to be vulnerable, told in one line where it cannot be asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CLEAN = {"name": "numpy", "version": "2.4.6", "vulns": []}
SKIPPED = {
    "name": "torch",
    "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0)",
}
VULNERABLE = {
    "name": "rich", "version": "15.0.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["15.0.1"], "description": "…"}],
}  # fmt: skip


@pytest.fixture
def audit(tmp_path):
    """Run the audit with a pip-audit of ours, a shell script; returns exit status and lines."""

    def run(
        body: str,
        ignored: str = "# none\n",
        limit: float = 20.0,
        pins: str = "numpy==2.4.6  # x\nrich==15.0.0\n",
    ):
        command = tmp_path / "pip-audit"
        command.write_text(f"#!/bin/sh\n{body}\n")
        command.chmod(0o755)
        (tmp_path / "ignored.txt").write_text(ignored)
        (tmp_path / "constraints.txt").write_text(pins)
        done = subprocess.run(
            [sys.executable, ROOT / "tools" / "audit.py", tmp_path / "constraints.txt", "--pip-audit", command,
             "--ignored", tmp_path / "ignored.txt", "--limit", str(limit)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return done.returncode, (done.stdout + done.stderr).splitlines()

    return run


def answer(*packages: dict, status: int = 0) -> str:
    return f"cat <<'END'\n{json.dumps({'dependencies': packages, 'fixes': []})}\nEND\nexit {status}"


def test_nothing_known_is_green(audit):
    assert audit(answer(CLEAN)) == (0, ["audit: 1 packages"])
    told = "audit: 1 packages, and 1 that the database does not have: torch"
    assert audit(answer(CLEAN, SKIPPED)) == (0, [told])


def test_a_vulnerability_is_red(audit):
    status, lines = audit(answer(CLEAN, VULNERABLE, status=1))
    assert status == 1
    assert lines == ["audit: rich 15.0.0: PYSEC-1 CVE-1, repaired in 15.0.1", "audit: 2 packages"]


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_one_that_is_ignored_with_a_reason_is_told_and_green(name, audit):
    status, lines = audit(answer(VULNERABLE, status=1), ignored=f"# ids\n\n{name}  not reachable from here\n")
    assert status == 0
    assert lines[0] == "audit: rich 15.0.0: PYSEC-1 CVE-1, ignored: not reachable from here"


def test_an_ignored_one_without_a_reason_is_red(audit):
    status, lines = audit(answer(CLEAN), ignored="PYSEC-1\n")
    assert status == 1
    assert lines[0].endswith("ignored.txt:1: PYSEC-1 has no reason: write why it does no harm")


@pytest.mark.parametrize(
    "last",
    [
        "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='pypi.org', port=443): Max retries exceeded",
        "requests.exceptions.ProxyError: Unable to connect to proxy",
        "requests.exceptions.HTTPError: 403 Client Error: Forbidden",
        "pip_audit._service.interface.ConnectionError: Could not connect to PyPI's vulnerability feed",
    ],
)
def test_an_unreachable_database_is_told_in_one_line_and_green(last, audit):
    status, lines = audit(f'echo "Traceback" >&2\necho "{last}" >&2\nexit 1')
    assert (status, len(lines)) == (0, 1)
    assert lines[0].startswith("audit: not done: the database of vulnerabilities cannot be reached (")
    assert last[:40] in lines[0]


def test_a_database_that_has_no_package_at_all_audits_nothing(audit):
    assert audit(answer(SKIPPED)) == (0, ["audit: not done: the database answers for none of the 1 packages"])


def test_one_that_hangs_is_stopped_with_what_it_started(audit, tmp_path):
    started = time.monotonic()
    body = f"sleep 300 &\necho $! > {tmp_path}/child\nwait"
    assert audit(body, limit=0.5) == (0, ["audit: not done: no answer within 0.5 seconds"])
    assert time.monotonic() - started < 20
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        try:
            os.kill(child, 0)
            if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
                break
        except (ProcessLookupError, FileNotFoundError):
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child is still there")


def test_a_broken_pip_audit_is_red(audit):
    assert audit("echo 'error: unrecognized arguments: --x' >&2\nexit 2") == (
        1, ["audit: pip-audit failed with status 2: error: unrecognized arguments: --x"],
    )  # fmt: skip
    assert audit("exit 0") == (1, ["audit: pip-audit failed with status 0: it said nothing"])


def test_without_pip_audit_it_says_so(tmp_path):
    (tmp_path / "constraints.txt").write_text("numpy==2.4.6\n")
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "audit.py", tmp_path / "constraints.txt", "--pip-audit", tmp_path / "none"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"audit: not done: {tmp_path / 'none'} is not installed (pip install pip-audit)\n"


def test_pinned_and_installed_packages_are_asked_for_once_each(audit):
    body = 'cat "$2" >&2\nexit 3'  # pip-audit --requirement FILE …: the last line of it is told
    status, lines = audit(body, pins="numpy==0.0.1\nzzz_Zz.z==1.0+cpu\nminialbert==9\n# numpy==3\n")
    assert status == 1
    assert lines == ["audit: pip-audit failed with status 3: zzz-zz-z==1.0"]
    status, lines = audit('grep -c "^numpy==" "$2" >&2\nexit 3', pins="numpy==0.0.1\n")
    assert lines == ["audit: pip-audit failed with status 3: 1"]
