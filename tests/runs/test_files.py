"""Files and folders appear complete or not at all, where one may write, and belong to one process at a time."""

from __future__ import annotations

import json
import math
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import save_file

from minialbert.errors import UserError
from minialbert.runs import files
from minialbert.runs.files import (
    check_file,
    check_folder,
    check_own,
    sole_user,
    whole_file,
    whole_folder,
    write_atomically,
    write_json,
    writing,
)


def _names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_it_appears_at_the_end(tmp_path):
    target = tmp_path / "deep" / "folder"
    with whole_folder(target) as staging:
        (staging / "a.txt").write_text("a")
        assert not target.exists()
    assert _names(tmp_path) == ["deep/folder/a.txt"]


def test_an_error_leaves_what_was_there(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "a.txt").write_text("old")
    with pytest.raises(KeyError), whole_folder(target) as staging:
        (staging / "a.txt").write_text("new")
        raise KeyError
    assert _names(tmp_path) == ["folder/a.txt"]
    assert (target / "a.txt").read_text() == "old"


def test_an_error_leaves_no_empty_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    for place in (tmp_path / "deep" / "folder", tmp_path / "mine"):
        for open_ in (
            whole_folder,
            lambda folder: sole_user(folder, "run"),
            lambda folder: whole_file(folder / "x"),
        ):
            with pytest.raises(KeyError), open_(place):
                raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(KeyError), sole_user(tmp_path / "deep" / "folder", "run"):
        (tmp_path / "deep" / "log").write_text("x")
        raise KeyError
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["log"]


def test_what_is_not_written_anew_stays_but_for_what_it_replaces(tmp_path):
    target = tmp_path / "folder"
    (target / "sub").mkdir(parents=True)
    for name in ("a.txt", "notes.txt", "sub/stale.json", "sub/kept.json"):
        (target / name).write_text("old")
    with whole_folder(target, replaces=("sub/stale.json",)) as staging:
        (staging / "a.txt").write_text("new")
    assert _names(tmp_path) == ["folder/a.txt", "folder/notes.txt", "folder/sub/kept.json"]
    assert (target / "a.txt").read_text() == "new"


KILLED = """
import os, sys
from pathlib import Path
from minialbert.runs import files
if sys.argv[2] != "exchange":
    files._exchange = lambda one, other: False
calls = [0]
def bomb(module, name):
    call = getattr(module, name)
    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] == at:
            os.kill(os.getpid(), 9)
        return call(*args, **kwargs)
    setattr(module, name, counted)
for name in ("rename", "replace", "mkdir", "fsync", "link", "unlink", "rmdir"):
    bomb(os, name)
bomb(files, "_exchange")
for line in sys.stdin:  # one fork for each, which takes no time to start
    at = int(line)
    if (child := os.fork()) == 0:
        with files.whole_folder(sys.argv[1]) as staging:
            (staging / "a.txt").write_text("new")
            (staging / "b.txt").write_text("new")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="exchanges folders")
@pytest.mark.parametrize("way", ["exchange", "rename"])
def test_killed_at_any_moment_there_is_the_old_or_the_new_folder_and_nothing_else_after_the_next(
    way, tmp_path
):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "folder"), way]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def write(at):
        writer.stdin.write(f"{at}\n")
        writer.stdin.flush()
        return int(writer.stdout.readline())

    def contents():
        return {name: (tmp_path / "folder" / name).read_text() for name in ("a.txt", "b.txt", "notes.txt")}

    old, new = (
        dict.fromkeys(("a.txt", "b.txt", "notes.txt"), "old"),
        {"a.txt": "new", "b.txt": "new", "notes.txt": "old"},
    )
    gone, found, at = 0, [], 0
    while True:
        at += 1
        (tmp_path / "folder").mkdir(exist_ok=True)
        for name in old:
            (tmp_path / "folder" / name).write_text("old")
        if write(at) == 0:
            break
        if (tmp_path / "folder").exists():
            found.append(contents())
        else:
            gone += 1
        if at % 5 == 0 or not (tmp_path / "folder").exists():
            assert write(0) == 0
            assert _names(tmp_path) == ["folder/a.txt", "folder/b.txt", "folder/notes.txt"]
            assert contents() == new
    writer.communicate(timeout=60)
    assert at > 10 and old in found and new in found and all(state in (old, new) for state in found)
    assert (gone > 0) == (way == "rename")  # between two renames; the next one put it back


def test_a_folder_of_another_process_that_is_being_written_is_left_alone(tmp_path):
    with whole_folder(tmp_path / "folder") as one:
        (one / "a.txt").write_text("one")
        with whole_folder(tmp_path / "folder") as other:
            (other / "a.txt").write_text("other")
        assert (one / "a.txt").read_text() == "one"
    assert _names(tmp_path) == ["folder/a.txt"]


def test_everything_is_on_the_disk_before_a_folder_appears(tmp_path, monkeypatch):
    events = []
    kept, put = files.sync, files._put_in_place
    monkeypatch.setattr(
        files, "sync", lambda *paths: (events.extend(path.name for path in paths), kept(*paths))
    )
    monkeypatch.setattr(files, "_put_in_place", lambda *args: (events.append("appears"), put(*args)))
    with whole_folder(tmp_path / "folder") as staging:
        (staging / "sub").mkdir()
        for name in ("a.txt", "sub/b.txt"):
            (staging / name).write_text("x")
    assert set(events[: events.index("appears")]) == {"a.txt", "sub", "b.txt", staging.name}
    assert events[-1] == tmp_path.name


def test_a_mounted_volume_gets_its_files_one_by_one(tmp_path, monkeypatch):
    target = tmp_path / "volume"
    (target / "sub").mkdir(parents=True)
    for name in ("a.txt", "notes.txt", "sub/stale.json"):
        (target / name).write_text("old")
    before = target.stat().st_ino
    monkeypatch.setattr(files.os.path, "ismount", lambda path: path == target)
    with whole_folder(target, replaces=("a.txt", "sub/stale.json")) as staging:
        assert staging.parent == target
        (staging / "new").mkdir()
        (staging / "new" / "b.txt").write_text("new")
        (staging / "a.txt").write_text("new")
    assert _names(tmp_path) == ["volume/a.txt", "volume/new/b.txt", "volume/notes.txt"]
    assert (target / "a.txt").read_text() == "new"
    assert target.stat().st_ino == before
    with pytest.raises(KeyError), whole_folder(target) as staging:
        (staging / "a.txt").write_text("newer")
        raise KeyError
    assert _names(tmp_path) == ["volume/a.txt", "volume/new/b.txt", "volume/notes.txt"]
    assert (target / "a.txt").read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="permission bits of POSIX systems")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_weights_may_be_read_by_those_who_may_read_the_rest(tmp_path, umask, mode):
    target = tmp_path / "model"
    former = os.umask(umask)
    try:
        with whole_folder(target) as staging:
            save_file({"weight": torch.zeros(1)}, staging / "model.safetensors")
            (staging / "config.json").write_text("{}")
        assert os.umask(umask) == umask  # as it was
    finally:
        os.umask(former)
    assert [
        stat.S_IMODE((target / name).stat().st_mode) for name in ("config.json", "model.safetensors")
    ] == [mode] * 2


def test_a_file_in_the_way_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), whole_folder(tmp_path / "file" / "folder"):
        pass


HOLD = """
import sys, time
from pathlib import Path
from minialbert.runs.files import sole_user
with sole_user(Path(sys.argv[1]), "run"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_kept_out_as_long_as_it_lives(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        said = f"another run is running in {folder}: wait for it, or stop it"
        with pytest.raises(UserError, match=said), sole_user(folder, "run"):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with sole_user(folder, "run"):
        assert _names(tmp_path) == []  # nothing is left that says so


def test_one_that_is_about_to_end_is_waited_for(tmp_path):
    let_go = threading.Event()

    def hold():
        with sole_user(tmp_path, "run"):
            held.set()
            let_go.wait(30)

    held = threading.Event()
    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    threading.Timer(0.2, let_go.set).start()
    begun = time.monotonic()
    with sole_user(tmp_path, "run", patience=20):
        assert 0.1 < time.monotonic() - begun < 15
    holder.join()


def test_a_file_in_the_way_of_a_directory_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="file is a file: expected a folder to write into"),
        sole_user(tmp_path / "file", "run"),
    ):
        pass


def test_a_process_that_was_forked_does_not_hold_the_lock_on(tmp_path):
    with sole_user(tmp_path, "run"):
        child = os.fork()
        if not child:  # as a data loader's worker that outlives the run
            time.sleep(30)
            os._exit(0)
    try:
        with sole_user(tmp_path, "run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_system_without_locks_goes_without(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_HAS_LOCKS", False)
    monkeypatch.setattr(os, "open", None)
    with sole_user(tmp_path / "run", "run"), sole_user(tmp_path / "run", "run"):
        assert (tmp_path / "run").is_dir()


@pytest.mark.parametrize("content", ["new", b"new"])
def test_a_file_is_replaced_whole(tmp_path, content):
    path = tmp_path / "file"
    path.write_text("old")
    write_atomically(path, content)
    assert path.read_text() == "new" and _names(tmp_path) == ["file"]


def test_folders_above_a_file_are_made(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "file", "new")
    assert (tmp_path / "a" / "b" / "file").read_text() == "new"


def test_a_link_in_the_place_of_a_new_file_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("mine")
    (tmp_path / ".file.partial").symlink_to(tmp_path / "secret")
    write_atomically(tmp_path / "file", "new")
    assert ((tmp_path / "secret").read_text(), (tmp_path / "file").read_text()) == ("mine", "new")


def test_an_error_in_the_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and _names(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_links_and_pipes_are_not_ours(kind, tmp_path):
    path = tmp_path / "x"
    path.symlink_to(tmp_path / "nowhere") if kind == "link" else os.mkfifo(path)
    check_own(tmp_path, tmp_path / "none", tmp_path / "none" / "deeper")
    with pytest.raises(UserError, match=f"x is a {kind}"):
        check_own(tmp_path, path)


def test_what_is_there_is_told_before_it_is_written_over(tmp_path):
    (tmp_path / "file").write_text("")
    check_file(tmp_path / "file", overwrite=True)
    with pytest.raises(UserError, match="file exists: give --overwrite to replace it, or another --output"):
        check_file(tmp_path / "file", overwrite=False)
    check_folder(tmp_path / "new", "grid", overwrite=False)
    check_folder(tmp_path, "grid", overwrite=True)
    with pytest.raises(UserError, match="file is a file: expected a folder to write into"):
        check_folder(tmp_path / "file", "grid", overwrite=True)
    with pytest.raises(UserError, match="is not empty: give --overwrite"):
        check_folder(tmp_path, "grid", overwrite=False)
    with pytest.raises(UserError, match="is not empty and holds no grid: give another --output"):
        check_folder(tmp_path, "grid", overwrite=True, marker="cells", advice="give another --output")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "x cannot be written (No space left on device): make room"),
        (RuntimeError("in safetensors: I/O error (os error 28)"), "x cannot be written (No space left on device)"),
    ],
)  # fmt: skip
def test_an_error_of_the_disk_in_one_line(error, told):
    with pytest.raises(UserError) as caught, writing("x"):
        raise error
    assert str(caught.value).startswith(told)
    with pytest.raises(UserError, match=r"\(No space left on device\)$"), writing("x", advice=None):
        raise error


def test_other_errors_pass_unchanged():
    with pytest.raises(KeyError), writing("x"):
        raise KeyError


def test_no_number_in_json_is_none_of_json(tmp_path, caplog):
    write_json(tmp_path / "x.json", {"a": [1.5, math.nan], "b": {"c": -math.inf, "d": "é"}})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [1.5, None], "b": {"c": None, "d": "é"}}
    assert "x.json: not finite, and null there: a.1, b.c" in caplog.text
