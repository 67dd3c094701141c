"""The benchmark's files, read back."""

from __future__ import annotations

import csv
import logging

import pytest

from minialbert.data.glue import GLUE_TASKS, load_glue, write_submission
from minialbert.errors import UserError


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file, delimiter="\t"))


# What the benchmark's instructions ask for: 0 and 1, or words.
@pytest.mark.parametrize(
    ("task", "split", "file", "predictions", "spelled"),
    [
        ("CoLA", "test", "CoLA.tsv", ["acceptable", "unacceptable"], ["1", "0"]),
        ("SST-2", "test", "SST-2.tsv", ["negative", "positive"], ["0", "1"]),
        ("MRPC", "test", "MRPC.tsv", ["equivalent", "not_equivalent"], ["1", "0"]),
        ("QQP", "test", "QQP.tsv", ["duplicate", "not_duplicate"], ["1", "0"]),
        ("WNLI", "test", "WNLI.tsv", ["not_entailment", "entailment"], ["0", "1"]),
        ("RTE", "test", "RTE.tsv", ["not_entailment", "entailment"], ["not_entailment", "entailment"]),
        ("qnli", "test", "QNLI.tsv", ["not_entailment", "entailment"], ["not_entailment", "entailment"]),
        ("mnli", "test", "MNLI-m.tsv", ["neutral", "contradiction"], ["neutral", "contradiction"]),
        ("mnli", "test_mismatched", "MNLI-mm.tsv", ["entailment", "neutral"], ["entailment", "neutral"]),
        ("mnli", "diagnostic", "AX.tsv", ["neutral", "entailment"], ["neutral", "entailment"]),
        ("sts-b", "test", "STS-B.tsv", [3.14159, -0.2], ["3.142", "0.000"]),
        ("stsb", "test", "STS-B.tsv", [5.7, 2], ["5.000", "2.000"]),
    ],
)
def test_files_of_the_benchmark(task, split, file, predictions, spelled, tmp_path):
    path = write_submission(task, split, [None, None], predictions, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / file
    assert rows_of(path) == [["index", "prediction"], ["0", spelled[0]], ["1", spelled[1]]]
    assert [entry.name for entry in path.parent.iterdir()] == [file]


def test_every_task_has_a_file(tmp_path):
    names = {
        write_submission(name, "test", ["0"], [task.labels[0] if task.labels else 1.0], tmp_path).name
        for name, task in GLUE_TASKS.items()
    }
    assert len(names) == 9


def test_indexes_of_the_test_file_are_kept(tmp_path):
    for name, header in (("train", "sentence\tlabel"), ("dev", "sentence\tlabel")):
        (tmp_path / f"{name}.tsv").write_text(f"{header}\nso good\t1\n")
    (tmp_path / "test.tsv").write_text("index\tsentence\n2\tso bad\n0\tso good\n")
    test = load_glue("sst2", tmp_path).splits["test"]
    path = write_submission(
        "sst2", "test", [example.id for example in test], ["negative", "positive"], tmp_path
    )
    assert path.read_text() == "index\tprediction\n2\t0\n0\t1\n"


def test_the_official_number_of_rows(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        write_submission("wnli", "test", [None] * 146, ["entailment"] * 146, tmp_path)
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING):
        path = write_submission("wnli", "test", [None] * 145, ["entailment"] * 145, tmp_path)
    assert caplog.messages == [
        "WNLI.tsv: 145 rows, but the official split has 146: the benchmark would refuse the file"
    ]
    assert len(rows_of(path)) == 146


@pytest.mark.parametrize(
    ("task", "split", "ids", "predictions", "expected"),
    [
        ("imdb", "test", ["0"], ["x"], "'imdb' is no GLUE task"),
        ("rte", "validation", ["0"], ["entailment"], "split 'validation' of rte: expected one of test$"),
        ("mnli", "train", ["0"], ["neutral"], "expected one of test, test_mismatched, diagnostic$"),
        ("rte", "test", ["0", "1"], ["entailment"], "1 predictions for 2 rows"),
        ("rte", "test", [], [], "0 predictions for 0 rows"),
        ("rte", "test", ["0", "0"], ["entailment"] * 2, "index 0 is repeated"),
        ("rte", "test", ["0", None], ["entailment"] * 2, "1 of 2 rows have no index"),
        ("rte", "test", ["0"], ["neutral"], "index 0: unknown label 'neutral'; expected one of entailment, not"),
        ("cola", "test", ["4"], ["1"], "CoLA.tsv, index 4: unknown label '1'; expected one of unacceptable, acc"),
        ("stsb", "test", ["0"], [float("nan")], "score nan; expected a finite number"),
        ("stsb", "test", ["0"], ["2.5"], "score '2.5'; expected a finite number"),
    ],
)  # fmt: skip
def test_what_the_benchmark_would_refuse(task, split, ids, predictions, expected, tmp_path):
    with pytest.raises(UserError, match=expected):
        write_submission(task, split, ids, predictions, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"RTE\.tsv cannot be written"):
        write_submission("rte", "test", ["0"], ["entailment"], tmp_path / "file")


@pytest.mark.parametrize("index", ["1\t2", "1\n2", "\ud800", ""])
def test_an_index_that_would_break_the_file(index, tmp_path):
    with pytest.raises(UserError, match="expected the benchmark's number of the row"):
        write_submission("rte", "test", [index], ["entailment"], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("score", "written"), [(10**400, "5.000"), (-(10**400), "0.000")])
def test_a_score_beyond_floats_is_cut_like_any_other(score, written, tmp_path):
    path = write_submission("stsb", "test", ["7"], [score], tmp_path)
    assert path.read_text() == f"index\tprediction\n7\t{written}\n"
