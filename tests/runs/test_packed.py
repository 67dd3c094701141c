"""Packed records and logs read like the files they hold, never too much of them, and never outside their folder."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from suite_records import make_suite, write_record, write_suite

from minialbert.errors import UserError
from minialbert.experiments.suite.cells import find_results
from minialbert.experiments.suite.page import write_suite_report
from minialbert.experiments.suite.run import plan_work
from minialbert.report import report as write_report
from minialbert.report.curves import held_out_curves, read_curves
from minialbert.runs import packed
from minialbert.runs.packed import LOGS, RECORDS, find_run_records, is_run_file, pack_files, read_run_file
from minialbert.runs.records import find_records

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "pages")
    import pack_records

    return pack_records


@pytest.fixture
def suite(tmp_path):
    """Return a suite's folder with records and logs of some cells."""
    folder = tmp_path / "run"
    for row, score in (("small", 0.7), ("plain", 0.6), ("teacher", 0.8)):
        if row != "teacher":
            cell = write_record(folder, make_suite(), f"{row}/distill", score / 2).parent
            lines = [{"kind": "training", "step": step, "loss": score / step} for step in (1, 2, 3)]
            lines.append({"kind": "evaluation", "step": 3, "eval_mlm_accuracy": score})
            (cell / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        for seed in (1, 2):
            write_record(folder, make_suite(), f"{row}/full/king-{seed}", score + seed / 100)
    return folder


def texts_of(folder):
    names = ("result.json", "log.jsonl", "attention.json")
    return {
        file.relative_to(folder).as_posix(): file.read_text() for name in names for file in folder.rglob(name)
    }


def packed_copy(folder, script, within="."):
    copy = folder.with_name("packed")
    shutil.copytree(folder, copy)
    script.pack(copy / within)
    return copy


def test_a_packed_suite_reads_like_an_unpacked_one(suite, script, tmp_path, call):
    copy = packed_copy(suite, script, "cells")
    assert sorted(file.relative_to(copy).as_posix() for file in copy.rglob("*") if file.is_file()) == [
        f"cells/{LOGS}",
        f"cells/{RECORDS}",
    ]
    one, other = (find_results(make_suite(), [folder]) for folder in (suite, copy))
    assert {name: result.record for name, result in one.items()} == {
        name: result.record for name, result in other.items()
    }
    pages = [
        write_suite_report(make_suite(), folder, tmp_path / folder.name / "page") for folder in (suite, copy)
    ]
    assert pages[0] == pages[1]
    for name in ("report.md", "report.html", "claims.csv", "first.csv", "distillation.csv"):
        assert (suite / "page" / name).read_bytes() == (copy / "page" / name).read_bytes()
    assert "Training curves" in (copy / "page" / "report.html").read_text()
    path = write_suite(tmp_path / "trial.yaml")
    listed = [call("suite", "status", path, "--records", folder, "--json")[1] for folder in (suite, copy)]
    assert listed[0] == listed[1]


def test_a_suite_goes_on_from_packed_records(suite, script, tmp_path):
    expected = plan_work(make_suite(), teachers=None, output=suite)
    copy = packed_copy(suite, script, "cells")
    for places in ({"output": copy}, {"output": tmp_path / "new", "records": copy}):
        work = plan_work(make_suite(), teachers=None, **places)
        assert (work.pending, work.jobs) == (expected.pending, expected.jobs)
        assert 0 < len(work.results) == len(expected.results)


def test_curves_of_a_packed_log_are_those_of_the_log(suite, script):
    copy = packed_copy(suite, script, "cells")
    for read in (read_curves, held_out_curves):
        expected = read(suite / "cells" / "small" / "distill" / "log.jsonl")
        assert expected and read(copy / "cells" / "small" / "distill" / "log.jsonl") == expected
    pairs = [
        write_report([folder / "cells" / name / "distill" for name in ("small", "plain")], compare=True)
        for folder in (suite, copy)
    ]
    assert pairs[0] == pairs[1] and "loss" in pairs[0]


def test_records_are_found_below_any_folder_and_by_name(suite, script):
    copy = packed_copy(suite, script)
    for below in (
        ".",
        "cells",
        "cells/small",
        "cells/small/full/king-1",
        "cells/small/full/king-1/result.json",
    ):
        found = [file.relative_to(copy) for file in find_run_records(copy / below)]
        assert found and found == [file.relative_to(suite) for file in find_run_records(suite / below)]
    assert find_run_records(copy / RECORDS) == find_run_records(copy)
    assert find_run_records(copy / "cells" / "nothing") == []
    with pytest.raises(UserError, match="nothing does not exist: expected a result.json"):
        find_records([copy / "cells" / "nothing"])
    assert not is_run_file(copy / "cells" / "nothing" / "result.json")


def test_what_is_on_the_disk_counts_before_a_pack_and_adds_to_it(suite, script):
    copy = packed_copy(suite, script, "cells")
    write_record(copy, make_suite(), "small/full/king-1", 0.9)
    write_record(copy, make_suite(), "small/full/king-3", 0.5)
    found = find_results(make_suite(), [copy])
    assert found["small/full/king-1"].points == 90
    assert found.keys() == find_results(make_suite(), [suite]).keys() | {"small/full/king-3"}
    assert len(find_run_records(copy)) == len(find_run_records(suite)) + 1


def test_a_report_takes_packed_records_along_and_adds_to_those_there(suite, script, tmp_path):
    output = tmp_path / "kept"
    write_suite_report(make_suite(), suite, output, with_records=True)
    assert texts_of(output) == {}
    assert {name for name in texts_of(suite)} == {
        file.relative_to(output).as_posix() for name in texts_of(suite) if is_run_file(file := output / name)
    }
    first = [(output / "cells" / name).read_bytes() for name in (RECORDS, LOGS)]
    write_suite_report(make_suite(), output, output, with_records=True)
    assert [(output / "cells" / name).read_bytes() for name in (RECORDS, LOGS)] == first
    more = tmp_path / "more"
    write_record(more, make_suite(), "small/full/king-3", 0.5)
    write_suite_report(make_suite(), more, output, with_records=True)
    kept = find_results(make_suite(), [output])
    assert kept.keys() == find_results(make_suite(), [suite]).keys() | {"small/full/king-3"}


def test_what_a_report_left_unpacked_is_replaced_where_it_stands(suite, tmp_path):
    output = tmp_path / "kept"
    record = write_record(output, make_suite(), "small/full/king-1", 0.1)
    write_suite_report(make_suite(), suite, output, with_records=True)
    assert json.loads(record.read_text())["score"] == pytest.approx(0.71)
    assert find_results(make_suite(), [output])["small/full/king-1"].points == pytest.approx(71)


def test_a_packed_record_of_other_settings_tells_where_it_is(suite, script):
    write_record(suite, make_suite(), "plain/full/king-1", metric=3, kind="bench")
    copy = packed_copy(suite, script, "cells")
    with pytest.raises(
        UserError, match=f"king-1/result.json, a line of {RECORDS}, is not a record of the cell"
    ):
        find_results(make_suite(), [copy])


def test_a_log_that_would_unpack_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_MOST_BYTES", 2**20)
    bomb = tmp_path / LOGS
    bomb.write_bytes(gzip.compress(b" " * 2**26))
    with pytest.raises(UserError, match="has more than 1 MiB: packed records and logs have less"):
        is_run_file(tmp_path / "run" / "log.jsonl")
    (tmp_path / RECORDS).write_bytes(b" " * (2**20 + 1))
    with pytest.raises(UserError, match="has more than 1 MiB"):
        find_records([tmp_path])
    with pytest.raises(UserError, match="would have more than 1 MiB: pack fewer runs"):
        pack_files(tmp_path / "new", {"run/log.jsonl": "x" * 2**20})
    assert not (tmp_path / "new").exists()


def test_reading_a_bomb_takes_no_more_memory_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_MOST_BYTES", 2**20)
    (tmp_path / LOGS).write_bytes(gzip.compress(b" " * 2**26))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="has more than 1 MiB"):
            is_run_file(tmp_path / "run" / "log.jsonl")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "path",
    ["../result.json", "/etc/result.json", "a/../../result.json", "./result.json", "a//result.json", "a\\result.json",
     "", ".", "a/passwd", "a/log.jsonl", "a/result.json/", "a\0/result.json"],
)  # fmt: skip
def test_a_path_that_leaves_the_folder_or_names_something_else_is_refused(tmp_path, path):
    (tmp_path / RECORDS).write_text(json.dumps({"file": path, "content": {"kind": "finetune"}}) + "\n")
    with pytest.raises(UserError, match=f"{RECORDS}, line 1 is not a packed file of a run: .*") as caught:
        find_records([tmp_path])
    assert "\n" not in str(caught.value)


GOOD = json.dumps({"file": "a/result.json", "content": {}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense\n", "line 1 is not a packed file of a run"),
        (f"{GOOD}\n[]\n", "line 2 is not a packed file of a run: expected an object with file and content"),
        (f"{GOOD}\n{GOOD}\n", r"line 2 .*: 'a/result.json' is repeated"),
        ('{"file": 3, "content": {}}', "expected an object with file and content"),
        ('{"file": "a/result.json"}', "the content of 'a/result.json' is missing"),
        ('{"file": "a/result.json", "content": "text"}', "the content of 'a/result.json' is missing"),
        ("[" * 100_000, "line 1 is not a packed file of a run"),
    ],
)
def test_wrong_contents_are_told_in_one_line(tmp_path, text, message, refuse):
    (tmp_path / RECORDS).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        find_run_records(tmp_path)
    assert "\n" not in str(caught.value)
    assert RECORDS in refuse("report", tmp_path)


@pytest.mark.parametrize("content", [b"no gzip at all", gzip.compress(b"x" * 10_000, mtime=0)[:-30], b""])
def test_a_damaged_archive_is_told_in_one_line(tmp_path, content):
    (tmp_path / LOGS).write_bytes(content)
    if content:
        with pytest.raises(
            UserError, match=f"{LOGS} cannot be read .*: get it again, or pack its runs again"
        ):
            read_curves(tmp_path / "run" / "log.jsonl")
    else:  # an empty archive holds nothing
        assert not is_run_file(tmp_path / "run" / "log.jsonl")


def test_a_pipe_is_no_pack(tmp_path):
    os.mkfifo(tmp_path / RECORDS)
    with pytest.raises(UserError, match="is not a file: expected packed records or logs"):
        find_run_records(tmp_path)


def test_a_changed_pack_is_read_again(tmp_path):
    pack_files(tmp_path, {"a/log.jsonl": "one\n"})
    assert read_run_file(tmp_path / "a" / "log.jsonl") == "one\n"
    pack_files(tmp_path, {"a/log.jsonl": "another\n", "a/b/attention.json": "{}"})
    assert read_run_file(tmp_path / "a" / "log.jsonl") == "another\n"
    assert read_run_file(tmp_path / "a" / "b" / "attention.json") == "{}"


def test_packing_keeps_every_text_and_removes_only_what_it_packed(tmp_path, script):
    texts = {"a/log.jsonl": 'half a line, "é\u2028\r\n', "a/b/attention.json": "[1.0, NaN]"}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "a" / "note.md").write_text("kept")
    (tmp_path / "log.jsonl").write_text("the folder's own")
    assert script.pack(tmp_path) == 2
    assert {name: read_run_file(tmp_path / name) for name in texts} == texts
    left = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*")}
    assert left == {LOGS, "a", "a/note.md", "log.jsonl"}


def test_the_grids_of_packed_cells_are_grids(script, tmp_path):
    folder, grid = tmp_path / "unpacked", "student-64-adapters-stsb"
    for file in find_run_records(RESULTS / "tuning-rate" / grid):
        target = folder / file.relative_to(RESULTS / "tuning-rate")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(read_run_file(file))
    copy = packed_copy(folder, script)
    for what in (grid, f"{grid}/result.json"):
        one, other = find_records([folder / what]), find_records([copy / what])
        assert [replace(record, file=Path(), grid=None) for record in one] == [
            replace(record, file=Path(), grid=None) for record in other
        ]
        assert [record.file.relative_to(folder) for record in one] == [
            record.file.relative_to(copy) for record in other
        ]
    assert write_report([folder / grid]) == write_report([copy / grid])


def test_results_are_few_files_and_every_pack_of_them_reads():
    done = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        pytest.skip("no git checkout")
    files = done.stdout.split()
    assert len(files) <= 250
    for file in files:
        if file.endswith((RECORDS, LOGS)):
            assert packed._contents(ROOT / file)
