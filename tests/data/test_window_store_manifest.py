"""Manifests that somebody else wrote: refused in one line, or read as what they say."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest

import minialbert.data.prepare as windows_module
from minialbert.data.prepare import make_windows
from minialbert.data.window_store import (
    WindowDataset,
    WindowsManifest,
    data_types,
    read_json,
    record_from_plain,
)
from minialbert.errors import UserError

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tiny-tokenizer"
HOSTILE = [
    None,
    True,
    -1,
    0,
    1.5,
    10**400,
    2**63,
    float("nan"),
    "12",
    "two\nlines",
    "\ud800",
    [],
    [[[1]]],
    [-1],
    [10**30],
    ["2"],
    {},
    {"a\nb": {"c": [1]}},
]


def places(value, path=()):
    """Yields the path of every value of nested lists and dictionaries."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(values, path, new):
    values = copy.deepcopy(values)
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return values


@pytest.fixture(scope="module")
def folder(tiny_windows, tmp_path_factory):
    return shutil.copytree(tiny_windows, tmp_path_factory.mktemp("hostile") / "w")


def refusal(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 700
    str(caught.value).encode()
    return str(caught.value)


def test_every_value_of_a_manifest_may_be_anything(folder):
    values = json.loads((folder / "manifest.json").read_text())
    refused = read = 0
    for path in places(values):
        for new in HOSTILE:
            (folder / "manifest.json").write_text(json.dumps(changed(values, path, new)))
            try:
                dataset = WindowDataset(folder)
                assert dataset[0]["input_ids"].max() < dataset.tokenizer.vocab_size
                read += 1
            except UserError as error:
                assert len(str(error).splitlines()) == 1 and len(str(error)) < 700, (path, new)
                refused += 1
    (folder / "manifest.json").write_text(json.dumps(values))
    assert refused > 20 * read / 3  # what is read is another name, seed or option of the same kind
    assert WindowDataset(folder)[0]["window_id"] == 0


@pytest.mark.parametrize(
    ("path", "new", "expected"),
    [
        (("tokenizer", "prefix_ids"), [10**6], "a special token is not in the vocabulary"),
        (("tokenizer", "prefix_ids"), [2] * 40, "no room beside the special tokens"),
        (("tokenizer", "vocab_size"), 2**40, "vocab_size: expected 1 to"),
        (("tokenizer", "name"), "a\nb", "of one line"),
        (("options", "window_length"), "32", "options.window_length: Input should be a valid integer"),
        (("options", "separator"), "comma", "options.separator"),
        (("splits", "train", "tokens"), -1, "not a natural number"),
        (("splits", "train", "tokens"), 0, "windows without tokens"),
        (("splits",), {}, "splits: expected train and held_out"),
        (("sources", 0, "path"), "/etc/passwd", "entries that no version"),
        (("format_version",), "1\n2", r"format_version '1\n2', this program reads 1"),
    ],
)
def test_what_is_wrong_is_named(folder, path, new, expected):
    values = json.loads((folder / "manifest.json").read_text())
    message = refusal(WindowsManifest.from_dict, changed(values, path, new))
    assert expected in message and "prepare the corpus again" in message


def test_files_that_are_no_manifest(folder, tmp_path):
    before = (folder / "manifest.json").read_text()
    for text in (
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"format": ' + "9" * 5000 + "}",
        "nul",
        '"' + "x" * 1000 + '"',
    ):
        (folder / "manifest.json").write_text(text)
        assert str(folder) in refusal(WindowDataset, folder)
    (folder / "manifest.json").write_bytes(b"\xff\xfe{}")
    assert "it is not JSON" in refusal(WindowDataset, folder)
    (folder / "manifest.json").write_text(before)
    assert "cannot be read (Is a directory)" in refusal(read_json, tmp_path)
    for name in ("a\0b", "x" * 5000):
        refusal(WindowDataset, name)


def test_nested_values_are_no_records():
    deep: object = 1
    for _ in range(400):
        deep = [deep]
    with pytest.raises(ValueError, match="."):
        record_from_plain(WindowsManifest, {"tokenizer": deep})


@pytest.mark.parametrize("key", ["x" * 5000, "\x1b[31m" * 100])
def test_a_key_of_any_length_makes_a_short_line(folder, key):
    path = folder / "manifest.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"splits": {key: 1}}))
    message = refusal(WindowDataset, folder)
    path.write_text(before)
    assert "splits." in message and len(message) < 400 and message.isprintable()


def test_windows_longer_than_the_manifest_says_are_damaged(folder):
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(changed(values, ("options", "window_length"), 5)))
    assert "is damaged: prepare it again" in refusal(lambda: WindowDataset(folder)[0])
    (folder / "manifest.json").write_text(json.dumps(values))


def test_every_value_of_a_progress_file_may_be_anything(tiny_corpus, tmp_path, monkeypatch):
    options = {
        "window_length": 32,
        "overlap": 8,
        "held_out_fraction": 0.15,
        "num_workers": 1,
        "progress": False,
    }
    with monkeypatch.context() as patch:
        patch.setattr(windows_module, "_finish", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(windows_module, "BATCHES_PER_SAVE", 1)
        with pytest.raises(KeyboardInterrupt):
            make_windows([tiny_corpus], TOKENIZER, tmp_path / "out", **options)
    path = tmp_path / "out" / "progress.json"
    values = json.loads(path.read_text())
    assert values["state"]["documents"] == 60
    for where in places(values):
        for new in ({"a": 1}, [1], "x", -1, 10**30, None):
            path.write_text(json.dumps(changed(values, where, new)))
            try:
                windows_module._read_progress(path)
            except UserError as error:
                assert len(str(error).splitlines()) == 1 and "start anew with --overwrite" in str(error)


def test_ids_take_two_bytes_while_they_fit():
    assert [data_types(size, 128)[0].itemsize for size in (1, 2**16, 2**16 + 1)] == [2, 2, 4]
