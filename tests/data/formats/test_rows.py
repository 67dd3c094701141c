"""doccano, Prodigy and Label Studio's JSON-MIN, row by row."""

from __future__ import annotations

import json

import pytest

from minialbert.data.convert_data import read_documents
from minialbert.data.tables import load_table


def put(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labels(path, problem="single-label", **options):
    task = load_table(path, problem, **options)
    return [row.label for row in task.splits["train"]], task


SPAN = [[0, 1, "X"]]
RELATION = [{"id": 0, "label": "X", "start_offset": 0, "end_offset": 1}]


@pytest.mark.parametrize(
    "given", [{"label": SPAN}, {"labels": SPAN}, {"entities": RELATION, "relations": []}]
)
def test_doccanos_three_shapes(tmp_path, given):
    path = put(
        tmp_path / "a.jsonl",
        {"id": 1, "text": "a b", **given},
        {"id": 2, "text": "c", **{k: [] for k in given}},
    )
    task = load_table(path, "token")
    assert [row.tags for row in task.splits["train"]] == [("B-X", "O"), ("O",)]
    assert task.columns.startswith("read as doccano: text, spans")
    first, second = read_documents(path, [])["train"]
    assert (first.id, first.entities[0].parts, second.entities) == ("1", ((0, 1),), ())


def test_classes_of_doccano_and_choices_of_prodigy(tmp_path):
    rows = ({"id": 1, "text": "a b", "label": ["x"]}, {"id": 2, "text": "c", "label": ["y"]})
    assert labels(put(tmp_path / "a.jsonl", *rows))[0] == ["x", "y"]
    options = [{"id": "x", "text": "X"}, {"id": "y", "text": "Y"}]
    rows = (
        {"text": "a", "options": options, "accept": ["x"], "answer": "accept", "_task_hash": 1},
        {"text": "b", "options": options, "accept": ["y", "x"], "answer": "accept", "_task_hash": 2},
        {"text": "c", "options": options, "accept": [], "answer": "ignore", "_task_hash": 3},
        {"text": "d", "options": options, "accept": ["y"], "answer": "reject", "_task_hash": 4},
    )
    found, task = labels(put(tmp_path / "b.jsonl", *rows), "multi-label")
    assert found == [("x",), ("y", "x")] and task.columns.startswith("read as Prodigy: text, label")
    assert "train: 2 rows left out that an annotator rejected, ignored or cancelled" in task.notes
    documents = read_documents(tmp_path / "b.jsonl", [])["train"]
    assert [one.labels for one in documents] == [("x",), ("y", "x")]


def test_json_min_with_its_own_names(tmp_path):
    common = {"annotator": 3, "annotation_id": 1, "lead_time": 1.0}
    regions = [{"start": 0, "end": 1, "text": "a", "labels": ["X"]}]
    rows = ({"text": "a b", "id": 1, "ner": regions, **common}, {"text": "c", "id": 2, **common})
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    assert [row.tags for row in load_table(path, "token").splits["train"]] == [("B-X", "O"), ("O",)]
    rows = (
        {"text": "a", "id": 1, "topic": {"choices": ["x", "y"]}, **common},
        {"text": "c", "topic": "y", **common},
    )
    path.write_text(json.dumps(rows))
    found, _ = labels(path, "multi-label", columns={"label": "topic"})
    assert found == [("x", "y"), ("y",)]


def test_a_text_of_which_nobody_chose_a_class_is_left_out(tmp_path):
    rows = [{"text": text, "options": [], "accept": chosen, "answer": "accept"} for text, chosen in [
        ("a", ["x"]), ("b", []), ("c", ["y"])
    ]]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_table(path, "single-label")
    assert [row.label for row in task.splits["train"]] == ["x", "y"]
    assert "train: 1 text left out that has no annotation of label" in task.notes
    assert [row.label for row in load_table(path, "multi-label").splits["train"]] == [("x",), (), ("y",)]


def test_an_accepted_text_without_spans_has_no_entity_if_others_have(tmp_path):
    rows = [
        {"text": "a b", "spans": [{"start": 0, "end": 1, "label": "X"}], "answer": "accept"},
        {"text": "c d", "answer": "accept"},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row.tags for row in load_table(path, "token").splits["train"]] == [("B-X", "O"), ("O", "O")]
    assert [one.entities == () for one in read_documents(path, [])["train"]] == [False, True]
