"""A folder appears complete or not at all."""

from __future__ import annotations

import pytest

from minialbert.folders import whole_folder


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


def test_what_is_not_written_anew_stays_but_for_what_it_replaces(tmp_path):
    target = tmp_path / "folder"
    (target / "sub").mkdir(parents=True)
    for name in ("a.txt", "notes.txt", "sub/stale.json", "sub/kept.json"):
        (target / name).write_text("old")
    with whole_folder(target, replaces=("sub/stale.json",)) as staging:
        (staging / "a.txt").write_text("new")
    assert _names(tmp_path) == ["folder/a.txt", "folder/notes.txt", "folder/sub/kept.json"]
    assert (target / "a.txt").read_text() == "new"


def test_a_file_in_the_way_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), whole_folder(tmp_path / "file" / "folder"):
        pass
