"""Checkpoints: whole or not there, verified before use, and never the last good one lost."""

from __future__ import annotations

import errno
import json
import os
import resource

import pytest
import torch

from minialbert.errors import UserError
from minialbert.runs.checkpoints import (
    MANIFEST,
    find_damage,
    last_whole_checkpoint,
    new_checkpoint,
    step_of,
)


def write(root, step, keep=None, contents="weights"):
    with new_checkpoint(root, step, keep=keep) as folder:
        (folder / "model.safetensors").write_text(f"{contents} {step}")
        (folder / "optimizer.pt").write_bytes(bytes(range(256)))
    return root / f"checkpoint-{step}"


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_a_checkpoint_is_what_its_manifest_says(tmp_path):
    checkpoint = write(tmp_path / "a" / "checkpoints", 20)
    assert find_damage(checkpoint) is None and step_of(checkpoint) == 20
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    assert manifest["files"]["optimizer.pt"] == {
        "bytes": 256,
        # sha256sum of the bytes 0 to 255
        "sha256": "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880",
    }
    assert names(checkpoint.parent) == ["checkpoint-20"]


DAMAGES = {
    "a byte changed": (lambda c: _flip(c / "optimizer.pt"), "contents of optimizer.pt have changed"),
    "cut off": (lambda c: os.truncate(c / "optimizer.pt", 100), "optimizer.pt has 100 bytes, not 256"),
    "empty": (lambda c: os.truncate(c / "model.safetensors", 0), "model.safetensors has 0 bytes"),
    "missing": (lambda c: (c / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "one more": (lambda c: (c / "evil.bin").write_text("x"), "evil.bin is not in the manifest"),
    "a link": (lambda c: _link(c / "optimizer.pt"), "optimizer.pt is not a file"),
    "no manifest": (lambda c: (c / MANIFEST).unlink(), "manifest.json is missing"),
    "half a manifest": (lambda c: os.truncate(c / MANIFEST, 40), "manifest.json cannot be read"),
    "another manifest": (
        lambda c: (c / MANIFEST).write_text('{"files": {}}'),
        "manifest.json cannot be read",
    ),
    "a list": (lambda c: (c / MANIFEST).write_text("[]"), "manifest.json cannot be read"),
    "of another step": (lambda c: _rename_step(c), "manifest.json belongs to something else"),
}


def _flip(path):
    values = bytearray(path.read_bytes())
    values[17] ^= 1
    path.write_bytes(bytes(values))


def _link(path):
    copy = path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(copy)


def _rename_step(checkpoint):
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    (checkpoint / MANIFEST).write_text(json.dumps(manifest | {"step": 19}))


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(kind, tmp_path, caplog):
    damage, message = DAMAGES[kind]
    write(tmp_path, 10)
    damage(write(tmp_path, 20))
    assert last_whole_checkpoint(tmp_path, tell=True) == tmp_path / "checkpoint-10"
    (line,) = caplog.messages
    assert line.startswith("checkpoint-20 is damaged (") and message in line


def test_without_a_whole_one_there_is_none(tmp_path):
    assert last_whole_checkpoint(tmp_path / "nowhere") is None
    os.truncate(write(tmp_path, 10) / "optimizer.pt", 1)
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "partial").mkdir()
    assert last_whole_checkpoint(tmp_path) is None


def test_the_oldest_go_and_the_newest_stay(tmp_path):
    for step in (9, 10, 100):
        write(tmp_path, step, keep=2)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100"]
    write(tmp_path, 200)
    assert len(names(tmp_path)) == 3


def test_rotation_keeps_the_new_one_and_drops_a_damaged_one_of_a_later_step(tmp_path):
    write(tmp_path, 20, keep=1)
    os.truncate(write(tmp_path, 40, keep=2) / "optimizer.pt", 1)
    # The run went on from 20 and was asked to stop at 30, with room for a single checkpoint.
    write(tmp_path, 30, keep=1)
    assert names(tmp_path) == ["checkpoint-30"] and find_damage(tmp_path / "checkpoint-30") is None


def test_a_damaged_one_of_the_same_step_is_replaced(tmp_path):
    os.truncate(write(tmp_path, 10) / "optimizer.pt", 1)
    write(tmp_path, 10, contents="again")
    assert find_damage(tmp_path / "checkpoint-10") is None
    assert (tmp_path / "checkpoint-10" / "model.safetensors").read_text() == "again 10"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (
            RuntimeError("PytorchStreamWriter failed\nwriting file"),
            "PytorchStreamWriter failed writing file; ",
        ),
    ],
)
def test_an_error_while_writing_leaves_the_one_before(error, reason, tmp_path):
    write(tmp_path, 10, keep=1)
    with pytest.raises(UserError) as caught, new_checkpoint(tmp_path, 20, keep=1) as folder:
        (folder / "model.safetensors").write_text("half")
        raise error
    assert reason in str(caught.value) and "checkpoint-10 is whole" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["checkpoint-10"] and find_damage(tmp_path / "checkpoint-10") is None


def test_a_real_limit_on_the_size_of_files(tmp_path):
    """The kernel refuses to let a file grow, as it does on a full disk, in the middle of torch's own writer."""
    write(tmp_path, 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError) as caught, new_checkpoint(tmp_path, 20, keep=2) as folder:
            torch.save({"moment": torch.zeros(100_000)}, folder / "optimizer.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "checkpoint-20 could not be written" in str(caught.value)
    assert "checkpoint-10 is whole" in str(caught.value)
    assert names(tmp_path) == ["checkpoint-10"]


def test_an_interrupt_while_writing_leaves_nothing_that_looks_like_a_checkpoint(tmp_path):
    write(tmp_path, 10)
    with pytest.raises(KeyboardInterrupt), new_checkpoint(tmp_path, 20, keep=1) as folder:
        (folder / "model.safetensors").write_text("half")
        raise KeyboardInterrupt
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    write(tmp_path, 30, keep=1)
    assert names(tmp_path) == ["checkpoint-30"]
