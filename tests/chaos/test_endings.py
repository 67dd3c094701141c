"""How commands end that are asked to stop, or have no room to write: in one line, and with all they need to go on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from chaos import Chaos
from comparing import differences
from injected import Fault
from inputs import make_commands
from processes import ForkServer, environment

from minialbert.runs.checkpoints import find_damage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ForkServer(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture(scope="module")
def commands(server, tmp_path_factory):
    return make_commands(tmp_path_factory.mktemp("inputs") / "inputs", server)


@pytest.fixture(scope="module")
def references(server, commands, tmp_path_factory):
    """Undisturbed runs, each made when it is first asked for."""
    made = {}

    def reference(kind):
        if kind not in made:
            made[kind] = Chaos(server, commands[kind], tmp_path_factory.mktemp(kind), lambda line: None)
        return made[kind]

    return reference


@pytest.fixture
def goes_on(server, commands, references, tmp_path):
    """Start the command again, and compare what it leaves."""

    def check(kind, output=None):
        ended = server.run(commands[kind].into(output or tmp_path / "run"))
        assert ended.status == 0, ended.err
        assert differences(kind, references(kind).reference, output or tmp_path / "run") == []

    return check


# A full disk


def damages(output):
    return {path.name: find_damage(path) for path in (output / "checkpoints").glob("checkpoint-*")}


@pytest.mark.parametrize(
    ("point", "nth", "room"),
    [
        ("checkpoint: half of the weights", 2, 1000),
        ("checkpoint: half of the optimiser", 2, 1000),
        ("checkpoint: before the manifest", 2, 10),
    ],
)
def test_no_room_for_a_checkpoint(point, nth, room, server, commands, goes_on, tmp_path):
    for kind, steps in (("distill", (2, 4)), ("finetune", (1, 2))):
        output = tmp_path / kind
        ended = server.run(commands[kind].into(output), Fault(point, nth, "full", room))
        assert ended.status == 2, ended.err
        assert f"checkpoint-{steps[1]} could not be written (" in ended.line
        assert f"checkpoint-{steps[0]} is whole: make room, then go on with --resume" in ended.line
        assert damages(output) == {f"checkpoint-{steps[0]}": None}
        goes_on(kind, output)


@pytest.mark.parametrize("kind", ["distill", "finetune"])
@pytest.mark.parametrize(
    ("point", "room", "named"),
    [
        ("recipe.yaml: half", 10, "run"),
        ("data.json: half", 10, "run"),
        ("log: half a line", 100, "log.jsonl"),
        ("model: half of the weights", 1000, "model"),
        ("tokenizer: before", 100, "model"),
        ("result.json: half", 100, "result.json"),
    ],
)
def test_no_room_for_anything_else(kind, point, room, named, server, commands, goes_on, tmp_path):
    output = tmp_path / "run"
    ended = server.run(commands[kind].into(output), Fault(point, 1, "full", room))
    assert ended.status == 2, ended.err
    assert f"{named} cannot be written (File too large)" in ended.line
    assert not (output / "model").exists() or named == "result.json"
    assert not list(output.glob(".*"))
    goes_on(kind)


@pytest.mark.parametrize(
    ("point", "nth", "room"),
    [("windows: half a batch", 4, 60), ("progress.json: half", 3, 10), ("tokenizer: before", 1, 100),
     ("manifest.json: half", 1, 10)],
)  # fmt: skip
def test_no_room_in_prepare(point, nth, room, server, commands, goes_on, tmp_path):
    ended = server.run(commands["prepare"].into(tmp_path / "run"), Fault(point, nth, "full", room))
    assert ended.status == 2, ended.err
    assert "cannot be written (File too large): free some space" in ended.line
    goes_on("prepare")


def test_no_room_for_the_model_of_a_grid(server, commands, goes_on, tmp_path):
    ended = server.run(
        commands["grid"].into(tmp_path / "run"), Fault("grid: copying the model", 1, "full", 10)
    )
    assert ended.status == 2, ended.err
    assert "cannot be written (File too large): make room, then start the same command again" in ended.line
    goes_on("grid")


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of so many kilobytes; returns its folder, and what gives it more room."""
    folder = tmp_path / "disk"

    def mount(*words):
        try:
            return (
                subprocess.run(["mount", *words, str(folder)], capture_output=True, check=False).returncode
                == 0
            )
        except FileNotFoundError:
            return False

    def make(kilobytes):
        folder.mkdir()
        if not mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs"):
            pytest.skip("mounting needs rights that this process does not have")
        return folder, lambda: mount("-o", "remount,size=64m")

    yield make
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["distill", "finetune"])
def test_a_small_disk(kind, server, commands, references, goes_on, small_disk):
    reference = references(kind).reference
    newest = max((reference / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)
    pages = sum(-(-path.stat().st_size // 4096) for path in newest.iterdir())
    disk, make_room = small_disk(4 * (pages + pages // 2) + 80)
    output = disk / "run"
    ended = server.run(commands[kind].into(output))
    assert ended.status == 2, ended.err
    assert "could not be written (" in ended.line and "is whole: make room" in ended.line
    assert list(damages(output).values()) == [None]
    again = server.run(commands[kind].into(output))  # still no room
    assert again.status == 2 and "is whole: make room" in again.line
    assert make_room()
    goes_on(kind, output)


# Asked to stop


@pytest.mark.parametrize(
    ("kind", "point", "nth"),
    [
        ("distill", "plan", 1),
        ("distill", "first measurement", 2),
        ("distill", "batch", 6),
        ("distill", "optimiser step", 3),
        ("distill", "evaluation", 7),
        ("distill", "checkpoint: between two files", 2),
        ("distill", "checkpoint: rotation", 1),
        ("distill", "model: half of the weights", 1),
        ("finetune", "plan", 1),
        ("finetune", "batch", 6),
        ("finetune", "evaluation", 2),
        ("finetune", "final measurement", 2),
        ("finetune", "result.json: half", 1),
        ("prepare", "windows: half a batch", 4),
        ("prepare", "tokenizer: before", 1),
        ("grid", "plan", 1),
        ("grid", "grid: starting a worker", 1),
    ],
)
@pytest.mark.parametrize("action", ["terminate", "interrupt"])
def test_asked_to_stop(kind, point, nth, action, server, commands, goes_on, tmp_path, record_property):
    if kind == "grid" and action == "interrupt":
        pytest.skip("as by SIGTERM, and a grid takes long")
    ended = server.run(commands[kind].into(tmp_path / "run"), Fault(point, nth, action))
    assert ended.status == 130, (ended.status, ended.err)
    assert ended.line.startswith("minialbert: interrupted; the same command ")
    assert ended.after_fault < 30
    record_property("measured", f"ended after {ended.after_fault:.1f} s")
    assert not list((tmp_path / "run").glob(".model.*"))
    goes_on(kind)


def test_a_grid_asked_to_stop_while_its_workers_work(server, commands, references, goes_on, tmp_path):
    seconds = 0.4 * references("grid").seconds
    ended = server.run(
        commands["grid"].into(tmp_path / "run"),
        kill_after=seconds,
        kill=lambda pid: os.kill(pid, signal.SIGTERM),
    )
    assert ended.status == 130, ended.err
    assert ended.line.startswith("minialbert: interrupted; the same command goes on")
    assert ended.after_fault < 30
    goes_on("grid")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_real_process_asked_to_stop_after_any_time(number, commands, references, tmp_path, record_property):
    """Started as users start it, from the first moments of importing on."""
    longest = 0.0
    for seconds in (0.3, 2.0, 5.0, 9.0, 14.0):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "minialbert", *commands["distill"].into(tmp_path / "run")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(),
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        time.sleep(seconds)
        asked = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        longest = max(longest, time.monotonic() - asked)
        assert process.returncode in (0, 1, 130, -number), err
        if number == signal.SIGTERM:
            assert "Traceback" not in err
        if process.returncode == 130:
            assert err.strip().splitlines()[-1].startswith("minialbert: interrupted; ")
    assert longest < 30
    record_property("measured", f"{number.name}: ended after {longest:.1f} s at most")
