"""The report of a suite, on made-up records."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pytest
from suite_records import make_suite, write_record, write_suite

from minialbert.errors import UserError
from minialbert.experiments.suite.cells import expand, find_results
from minialbert.experiments.suite.page import find_paper_row, write_suite_report
from minialbert.experiments.suite.schema import SuiteTable, TableRow
from minialbert.runs.packed import LOGS, RECORDS, read_run_file

SCORES = {
    "teacher/king": [0.80, 0.82], "teacher/river": [0.40, 0.42], "small/king": [0.70, 0.72, 0.74],
    "small/river": [0.38, 0.40], "plain/king": [0.60, 0.61, 0.62], "start/king": [0.55, 0.56],
}  # fmt: skip


@pytest.fixture
def records(tmp_path):
    suite = make_suite()
    for side, values in SCORES.items():
        row, task = side.split("/")
        for seed, score in enumerate(values, start=1):
            write_record(tmp_path / "run", suite, f"{row}/full/{task}-{seed}", score)
    for seed in (1, 2, 3):
        training = {"steps": 5, "wall_seconds": 8.0, "seconds_per_step": 0.6 + seed / 100}
        write_record(tmp_path / "run", suite, f"small/adapters/king-{seed}", 0.69, training=training)
    for row in ("small", "start"):
        write_record(tmp_path / "run", suite, f"{row}/distill", 0.25)
    return tmp_path / "run"


def row_of(page, beginning):
    return next(line for line in page.splitlines() if line.startswith(f"| {beginning}"))


def test_tables_stand_beside_the_papers(records):
    page = write_suite_report(make_suite(), records)
    assert row_of(page, "row | tuned") == (
        "| row | tuned | \\#params | King | River | mean | against teacher | paper: average | paper |"
    )
    assert row_of(page, "teacher | full") == (
        "| teacher | full | 1.2M | 81.0 ± 1.4 (2) | 41.0 ± 1.4 (2) | 61.0 ± 1.4 (2) | - | - | - |"
    )
    # -10 and -10 on King, -2 and -2 on River: nothing scatters over seeds.
    assert row_of(page, "small | full") == (
        "| small | full | 1.2M | 72.0 ± 2.0 (3) | 39.0 ± 1.4 (2) | 55.0 ± 1.4 (2) | -6.0 (-6.0, -6.0) | - | -1.5 |"
    )
    # -11 and -13 on King; River has none, so there is no interval.
    assert row_of(page, "small | adapters") == (
        "| small | adapters † | 1.2M | 69.0 ± 0.0 (3) | - | - | -12.0 | - | - |"
    )
    assert "| paper: BERT-base | Table 1 | 110M | - | - | - | - | 83.81 | - |" in page
    assert "| paper: MiniALBERT\\_128, adapters † | Table 1 | 0.9M | - | - | - | - | 78.40 | - |" in page


def test_every_claim_has_its_numbers_and_a_verdict(records):
    page = write_suite_report(make_suite(), records)
    # 10, 11, 12: mean 11, half 4.3027 / sqrt(3) = 2.48
    line = "| small | plain | +0 | +11.0 (+8.5, +13.5) | 3 of 3 | King +11.0 | - | held |"
    assert line in page
    assert "| Small beats plain. | held |" in page
    assert "Paper: 79.92 against 74.10" in page
    beside = row_of(page, "teacher, beside")
    assert beside.startswith("| teacher, beside | start | +0 | +25.5 | ")
    assert "| 2 of 4 |" in beside
    assert beside.endswith("| (unfinished) |")
    # Saved: 39, 38 and 37 %.
    faster = row_of(page, "small/adapters | small")
    assert "+20 % of the time | +38.0 (+35.5, +40.5) | 3 of 3" in faster
    assert "| Adapters are faster. | held |" in page


def test_a_verdict_on_some_of_its_pairs_is_an_interim_one(records):
    suite = make_suite().model_copy(update={"min_pairs": 2})
    (records / "cells/plain/full/king-3/result.json").unlink()
    page = write_suite_report(suite, records)
    line = row_of(page, "small | plain | +0 | +10.5 ")
    assert "| 2 of 3 |" in line
    assert line.endswith("| held, interim |")  # 10 and 11: 10.5 - 12.7 * 0.71 / sqrt(2) = 4.1
    assert "| Small beats plain. | held, interim |" in page
    assert "Verdict: held, interim" in page
    assert "| Adapters are faster. | held |" in page


def test_what_is_kept(records):
    page = write_suite_report(make_suite(), records)
    # (70 + 38) / (80 + 40) = 90 %, (72 + 40) / (82 + 42) = 90.3 %
    assert "| small | 90.2 % ± 0.2 | 2 of 2 | no |" in page
    assert "| start | - | 0 of 2 | unfinished |" in page


def test_distillations_and_what_is_missing(records):
    page = write_suite_report(make_suite(), records)
    assert "| small | 1.2M | 4 | 25.0 | 5.000 | 1.500 | 0.500 / 0.750 | 2,048 | 0:40 |" in page
    assert "| start | 1.2M | 0 | 25.0 |" in page
    assert "17 of 20 tunings and 2 of 4 students are done." in page
    assert "5 cells have no record." in page
    missing = page.partition("## Unfinished cells")[2]
    rows = ("plain/distill | 1 | -", "start/full | 2 | river: 1, 2", "foreign/full | 1 | river: 1")
    for row in rows:
        assert f"| {row} |" in missing.splitlines()
    assert "torch 2.13" in page
    assert "machine: Some CPU, cpu" in page


def test_missing_tasks_of_the_same_seeds_stand_together(tmp_path):
    suite = make_suite()
    write_record(tmp_path, suite, "small/distill")
    write_record(tmp_path, suite, "start/full/king-2")
    missing = write_suite_report(suite, tmp_path).partition("## Unfinished cells")[2].splitlines()
    assert "| teacher/full | 4 | king, river: 1, 2 |" in missing
    assert "| start/full | 3 | king: 1; river: 1, 2 |" in missing


def test_a_finished_suite_lists_nothing_missing(tmp_path):
    suite = make_suite()
    for cell in expand(suite):
        write_record(tmp_path, suite, cell.name)
    page = write_suite_report(suite, tmp_path)
    assert "Unfinished" not in page
    # All have 50 %: students are at chance on King, and King alone is marked.
    assert "‡ King: the fully tuned teacher is at chance." in page
    assert "| row | tuned | \\#params | King‡ | River |" in page


def test_a_claim_without_marked_tasks_stands_beside(tmp_path):
    suite = make_suite()
    for task, (teacher, start) in {"king": (0.50, 0.50), "river": (0.40, 0.30)}.items():
        for seed in (1, 2):
            write_record(tmp_path, suite, f"teacher/full/{task}-{seed}", teacher)
            write_record(tmp_path, suite, f"start/full/{task}-{seed}", start)
    line = row_of(write_suite_report(suite, tmp_path), "teacher, beside")
    assert "King‡ +0.0, River +10.0 | +10.0 (+10.0, +10.0) |" in line


def test_files(records, tmp_path, call):
    path, output = write_suite(tmp_path / "trial.yaml"), tmp_path / "report"
    status, out, _ = call("suite", "report", path, "--records", records, "--output", output)
    assert (status, out) == (
        0,
        f"report in {output / 'report.md'}, as a page in {output / 'report.html'}\n",
    )
    page = (output / "report.md").read_text(encoding="utf-8")
    assert page == write_suite_report(make_suite(), records)
    claims = list(csv.DictReader(io.StringIO((output / "claims.csv").read_text())))
    assert (claims[0]["claim verdict"], claims[0]["mean"], claims[0]["pairs"]) == ("held", "11.0000", "3")
    assert {file.name for file in output.iterdir()} == {
        "report.md",
        "report.html",
        "figures",
        "claims.csv",
        "first.csv",
        "distillation.csv",
    }
    first = list(csv.DictReader(io.StringIO((output / "first.csv").read_text())))
    assert (first[0]["King"], first[0]["King sd"], first[0]["King n"]) == ("81.0000", "1.4142", "2")
    assert call("suite", "report", path, "--records", records)[1] == page


def test_the_records_can_be_taken_along(records, tmp_path, call, refuse):
    path, output = write_suite(tmp_path / "trial.yaml"), tmp_path / "report"
    cell = records / "cells" / "small" / "distill"
    (cell / "log.jsonl").write_text('{"step": 1}\n')
    (cell / "model").mkdir()
    (cell / "model" / "weights").write_text("large")
    (records / "teachers.json").write_text("{}")
    assert call("suite", "report", path, "--records", records, "--output", output, "--with-records")[0] == 0
    copied = {file.relative_to(output).as_posix() for file in output.rglob("*") if file.is_file()}
    assert {"teachers.json", "cells/packed-records.jsonl", "cells/packed-logs.jsonl.gz"} <= copied
    for name in ("small/distill/log.jsonl", "small/full/king-3/result.json"):
        assert read_run_file(output / "cells" / name) and not (output / "cells" / name).exists()
    assert not [name for name in copied if "model" in name]
    packs = [
        (output / "cells" / RECORDS).read_bytes(),
        gzip.decompress((output / "cells" / LOGS).read_bytes()),
    ]
    assert not any(b"large" in pack for pack in packs)
    suite = make_suite()
    assert find_results(suite, [output]).keys() == find_results(suite, [records]).keys()
    again = call("suite", "report", path, "--records", output, "--output", output, "--with-records")
    assert again[0] == 0
    assert "give --output too" in refuse("suite", "report", path, "--records", output, "--with-records")


def test_no_record_is_no_report(tmp_path):
    with pytest.raises(
        UserError, match="has no record of the suite trial: name the --output of minialbert suite run"
    ):
        write_suite_report(make_suite(), tmp_path)


def test_an_unknown_row_of_the_paper_is_told():
    row = TableRow(of="small", paper="MiniALBERT_129, adapters")
    table = SuiteTable(name="t", title="T", tasks=["king"], paper="glue", rows=[row])
    with pytest.raises(
        UserError,
        match="table t: the paper's Table 1 has no row 'MiniALBERT_129, adapters'; it has BERT-base",
    ):
        find_paper_row(table, row, "")


def test_a_score_that_is_no_number_is_refused(tmp_path):
    path = write_record(tmp_path, make_suite(), "plain/full/king-1")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "score": float("nan")}))
    with pytest.raises(
        UserError, match="is not a record of the cell plain/full/king-1 .*a figure is not finite"
    ):
        write_suite_report(make_suite(), tmp_path)
