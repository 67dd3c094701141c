"""Rows as BigBio makes them, in files, of the `datasets` library and in memory."""

from __future__ import annotations

import copy
import json

import pytest

from minialbert.data.convert_data import convert_data, read_documents
from minialbert.data.tables import load_table
from minialbert.errors import UserError

TITLE, ABSTRACT = "Breast or ovarian cancer.", "Fever, with aspirin."


def entity(name, label, *parts, text=TITLE + " " + ABSTRACT, db=()):
    quotes = [text[start:end] for start, end in parts]
    known = [{"db_name": "MESH", "db_id": one} for one in db]
    offsets = [list(part) for part in parts]
    return {"id": name, "type": label, "text": quotes, "offsets": offsets, "normalized": known}


ROW = {
    "id": "0",
    "document_id": "227508",
    "passages": [
        {"id": "0-t", "type": "title", "text": [TITLE], "offsets": [[0, 25]]},
        {"id": "0-a", "type": "abstract", "text": [ABSTRACT], "offsets": [[26, 46]]},
    ],
    "entities": [
        entity("T1", "Disease", (0, 6), (18, 24), db=["D001943", "D2"]),
        entity("T2", "Disease", (10, 17), (18, 24)),  # whitespace alone is between
        entity("T3", "Drug", (38, 45)),
    ],
    "events": [],
    "coreferences": [],
    "relations": [{"id": "R1", "type": "treats", "arg1_id": "T3", "arg2_id": "T1", "normalized": []}],
}
OTHER = ROW | {"id": "1", "document_id": "9", "entities": [], "relations": []}


def changed(change):
    row = copy.deepcopy(ROW)
    change(row)
    return [row]


def of_library(path):
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_list([ROW, OTHER])


def in_parquet(path):
    of_library(path).to_parquet(path / "train.parquet")
    return path / "train.parquet"


def in_lines(path):
    (path / "t.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(OTHER) + "\n")
    return path / "t.jsonl"


@pytest.mark.parametrize("given", [lambda path: [ROW, OTHER], in_lines, of_library, in_parquet])
def test_offsets_are_those_of_the_document(tmp_path, given):
    task = load_table(given(tmp_path), "token")
    first, second = task.splits["train"]
    assert first.text == f"{TITLE} {ABSTRACT}" and second.text == first.text
    words = {"ovarian": "B-Disease", "cancer": "I-Disease", "aspirin": "B-Drug"}
    assert [(one, tag) for one, tag in zip(first.words, first.tags, strict=True) if tag != "O"] == [
        *words.items()
    ]
    assert set(second.tags) == {"O"}  # annotated, without an entity
    assert task.notes[0] == "train: left out: relations (1)"
    what = "entities in several parts, since a word has one tag"
    assert task.notes[1].startswith(f"train: left out: {what} (the first: ") and task.notes[1].endswith(
        " (1)"
    )
    assert "document 227508, entity T1" in task.notes[1]
    assert task.columns == "read as BigBio's schema: text, spans; left out 'id'"


def test_parts_identifiers_and_passages_are_kept(tmp_path):
    made = convert_data([ROW, OTHER], tmp_path / "t.bioc.json", format="bioc-json")
    for documents in (read_documents([ROW, OTHER], [])["train"], read_documents(made.output, [])["train"]):
        one = documents[0]
        assert one.entities[0].parts == ((0, 6), (18, 24))
        assert one.entities[0].meta == {"identifier": "MESH:D001943,MESH:D2"}
        assert [(start, end) for start, end, _ in one.passages] == [(0, 25), (26, 46)]
        assert [document.id for document in documents] == ["227508", "9"]


def test_lists_for_each_key_are_read():
    def turn(row):
        for key in ("passages", "entities"):
            row[key] = {name: [one[name] for one in row[key]] for name in row[key][0]}

    assert read_documents(changed(turn), [])["train"] == read_documents([ROW], [])["train"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda row: row["entities"][2].update(offsets=[[38, 47]]),
            "document 227508, entity T3: the entity 38-47 (Drug) is empty or outside the text, which has 46 characters",
        ),
        (lambda row: row["entities"][2].update(offsets=[]), "document 227508, entity T3: the entity"),
        (
            lambda row: row["passages"][1].update(offsets=[[0, 20]]),
            "document 227508: the passage 'Fever, with aspirin.' begins at 0, where the text before it has 25",
        ),
        (
            lambda row: [one.update(offsets=[[1, 5]]) for one in row["entities"]],
            "document 227508, entity T1: the entity 1-5 quotes 'Breast cancer', where 'reas' stands; so do 3 of 3",
        ),
        (lambda row: row["entities"][0].pop("type"), "not a document of BigBio (KeyError: 'type')"),
    ],
)
def test_what_does_not_fit_names_document_and_entity(change, message):
    with pytest.raises(UserError) as caught:
        read_documents(changed(change), [])
    assert message in str(caught.value)


def test_a_list_of_plain_passages_is_a_column_as_any(tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "a", "label": "x", "passages": ["b"]}) + "\n")
    assert read_documents(tmp_path / "t.jsonl", [])["train"][0].text == "a"
