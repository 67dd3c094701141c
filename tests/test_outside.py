"""Nothing is sent, and nothing is left outside of the folders that were named: not by a verb, not by a prediction."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

# Runs verbs, one after the other, in a process that notes each host that Python code asks for.
VERBS = """
import json, sys

asked = []

def note(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        asked.append([event, str(arguments[-1])])

sys.addaudithook(note)
from minialbert.cli.main import main

for verb in json.loads(sys.argv[1]):
    sys.argv = ["minialbert", *verb]
    try:
        main()
    except SystemExit as end:
        assert not end.code, verb
with open("asked.json", "w") as file:
    json.dump(asked, file)
"""


def test_the_guard_of_all_tests_refuses_other_machines(hosts_asked_for):
    with pytest.raises(OSError, match=r"tests have no network, and this one asked for 192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(OSError, match="asked for name.invalid"):
        socket.getaddrinfo("name.invalid", 80)
    assert hosts_asked_for == ["192.0.2.1", "name.invalid"]
    hosts_asked_for.clear()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=1),
    ):
        pass


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_verbs_ask_for_no_host_and_leave_nothing_outside_their_folders(tuned, tmp_path, full):
    made = tuned("classification")
    usual = ["--model", made.model]
    verbs = [["predict", *usual, "the king"], ["report", made.run, "--output", "page"]]
    if full:
        verbs += [
            ["evaluate", *usual, "--data", made.data, "--output", "scores"],
            ["export", *usual, "--to", "onnx", "--quantize", "int8", "--output", "exported"],
            ["predict", "--model", "exported", "the king"],
        ]
    for name in ("home", "scratch", "here"):
        (tmp_path / name).mkdir()
    home, scratch = str(tmp_path / "home"), str(tmp_path / "scratch")
    places = dict.fromkeys(
        ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "USERPROFILE"), home
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MPL", "ORT_"))}
    subprocess.run(
        [sys.executable, "-c", VERBS, json.dumps(verbs, default=str)],
        env=kept | places | {"TMPDIR": scratch}, cwd=tmp_path / "here", check=True, capture_output=True,
    )  # fmt: skip
    assert json.loads((tmp_path / "here" / "asked.json").read_text()) == []
    written = {path.name for path in (tmp_path / "here").iterdir()}
    assert written == {"asked.json", "page"} | ({"scores", "exported"} if full else set())
    assert list((tmp_path / "home").rglob("*")) == []
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []
