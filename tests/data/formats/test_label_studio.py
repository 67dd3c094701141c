"""Label Studio's tasks: several annotators, what is not read, and predictions to start from."""

from __future__ import annotations

import json

import pytest

import minialbert
from minialbert.data.convert_data import convert_data, read_documents
from minialbert.data.tables import load_table
from minialbert.errors import UserError


def region(start, end, label, kind="labels"):
    return {
        "id": "r",
        "from_name": "l",
        "to_name": "t",
        "type": kind,
        "value": {"start": start, "end": end, kind: [label]},
    }


def task(number, text, *annotations):
    return {"id": number, "data": {"note": text, "ward": "B"}, "annotations": list(annotations)}


def by(who, *results, **more):
    return {"completed_by": who, "result": list(results), **more}


TASKS = [
    task(
        1,
        "fever and pain",
        by({"id": 3, "email": "a@b"}, region(0, 5, "Sign")),
        by(4, region(10, 14, "Sign")),
    ),
    task(2, "no pain today", by(4, region(3, 7, "Sign"), {"type": "relation", "from_id": "r", "to_id": "r"})),
    task(3, "cancelled one", by(4, region(0, 9, "Sign"), was_cancelled=True)),
    task(4, "nothing", by(4)),
]


def put(path, tasks):
    path.write_text(json.dumps(tasks))
    return path


def test_each_annotation_is_a_document_and_returns_to_its_task(tmp_path):
    path = put(tmp_path / "a.json", TASKS)
    notes: list[str] = []
    (documents,) = read_documents(path, notes).values()
    assert [(one.id, one.annotator, one.entities and one.entities[0].parts) for one in documents] == [
        ("1", "a@b", ((0, 5),)), ("1", "4", ((10, 14),)), ("2", "4", ((3, 7),)), ("3", None, None), ("4", "4", ())
    ]  # fmt: skip
    assert notes[0] == "train: left out: annotations that were cancelled (1), results of type relation (1)"
    made = convert_data(path, tmp_path / "b.json", format="label-studio")
    again = json.loads(made.output.read_text())
    assert [(one["id"], len(one["annotations"])) for one in again] == [(1, 2), (2, 1), (3, 0), (4, 1)]
    assert read_documents(made.output, [])["train"] == documents


def test_a_task_learns_from_annotated_texts_and_keeps_annotators_of_one_together(tmp_path):
    task = load_table(put(tmp_path / "a.json", TASKS), "token")
    rows = task.splits["train"]
    assert [(row.text, row.group) for row in rows] == [
        ("fever and pain", "1"), ("fever and pain", "1"), ("no pain today", "2"), ("nothing", "4")
    ]  # fmt: skip
    assert "train: 1 text left out that has no annotation of spans" in task.notes


def test_choices_are_classes_and_choices_of_a_region_are_none(tmp_path):
    choice = {"type": "choices", "value": {"choices": ["good"]}}
    of_region = {"type": "choices", "value": {"start": 0, "end": 4, "choices": ["sure"]}}
    tasks = [
        task(1, "one text", by(1, choice, of_region)),
        task(2, "two", by(1, {**choice, "value": {"choices": ["bad"]}})),
    ]
    loaded = load_table(put(tmp_path / "a.json", tasks), "single-label")
    assert [row.label for row in loaded.splits["train"]] == ["good", "bad"]
    assert loaded.notes[0] == "train: left out: results of type choices (1)"


def test_predictions_to_start_from():
    text = "fever and pain"
    entity = {"start": 0, "end": 5, "text": "fever", "label": "Sign", "score": 0.75}
    answers = [{"id": "n1", "text": text, "entities": [entity]}, {"id": 2, "text": "b", "entities": []}]
    first, second = json.loads(minialbert.render(answers, format="label-studio"))
    assert first["data"] == {"text": text, "document": "n1"} and second["data"]["document"] == "2"
    (prediction,) = first["predictions"]
    assert prediction["score"] == 0.75 and second["predictions"][0]["result"] == []
    assert prediction["result"] == [
        {
            "id": "0-0", "from_name": "label", "to_name": "text", "type": "labels", "score": 0.75,
            "value": {"start": 0, "end": 5, "text": "fever", "labels": ["Sign"]},
        }
    ]  # fmt: skip
    (classes,) = json.loads(
        minialbert.render([{"text": "a", "label": "x", "score": 0.5}], format="label-studio")
    )
    assert classes["predictions"][0]["result"][0]["value"] == {"choices": ["x"]}
    assert minialbert.render(answers, format="conll").startswith("# newdoc id = n1\nfever\tB-Sign\nand\tO\n")
    assert json.loads(minialbert.render(answers[:1], format="doccano")) == {
        "id": "n1", "text": text, "label": [[0, 5, "Sign"]]
    }  # fmt: skip


def test_of_several_texts_the_one_that_regions_are_of_is_read(tmp_path):
    def of(control, start, end):
        return region(start, end, "X") | {"to_name": control}

    data = {"title": "Fever", "abstract": "No pain.", "patient": "P1"}
    tasks = [
        {"id": 1, "data": data, "annotations": [by(1, of("title", 0, 5), of("abstract", 3, 7), of("abstract", 0, 2))]},
        {"id": 2, "data": data, "annotations": [], "predictions": [{"result": [of("title", 0, 5)]}]},
    ]  # fmt: skip
    notes: list[str] = []
    documents = read_documents(put(tmp_path / "a.json", tasks), notes)["train"]
    assert [(one.text, [e.parts for e in one.entities or ()]) for one in documents] == [
        ("No pain.", [((3, 7),), ((0, 2),)]), ("No pain.", [])
    ]  # fmt: skip
    assert notes[0] == "train: left out: results of other texts (1), predictions (1)"
    named = load_table(tmp_path / "a.json", "token", columns={"text": "title"}).splits["train"]
    assert [(row.text, row.tags) for row in named] == [("Fever", ("B-X",))]
    with pytest.raises(
        UserError, match="under one of ward; found title, abstract, patient: set task.text to its name"
    ):
        read_documents(tmp_path / "a.json", [], columns={"text": "ward"})
    unknown = [{**tasks[0], "annotations": [by(1, region(0, 2, "X"))]}]
    with pytest.raises(UserError, match="note; found title, abstract, patient: set task.text to its name"):
        read_documents(put(tmp_path / "b.json", unknown), [])


def test_regions_in_csv_are_entities(tmp_path):
    cell = json.dumps([{"start": 0, "end": 5, "text": "Fever", "labels": ["Sign"]}]).replace('"', '""')
    path = tmp_path / "a.csv"
    path.write_text(
        f'annotation_id,annotator,id,label,lead_time,text\n1,2,3,[],1,None\n4,2,5,"{cell}",1,Fever now\n'
    )
    none, one = read_documents(path, [])["train"]
    assert (none.entities, one.entities[0].label, one.entities[0].parts, one.labels) == (
        (),
        "Sign",
        ((0, 5),),
        None,
    )


def test_choices_of_several_controls_are_columns_of_their_own(tmp_path):
    def chosen(control, *names):
        return {"type": "choices", "from_name": control, "value": {"choices": list(names)}}

    tasks = [
        task(1, "one", by(1, chosen("topic", "x"), chosen("mood", "sad"))),
        task(2, "two", by(1, chosen("topic", "y"))),
        task(3, "three", by(1, chosen("mood", "glad"))),
    ]
    path = put(tmp_path / "a.json", tasks)
    topic = load_table(path, "single-label", columns={"label": "topic"})
    assert [(row.text, row.label) for row in topic.splits["train"]] == [("one", "x"), ("two", "y")]
    assert "train: 1 text left out that has no annotation of topic" in topic.notes
    assert "train: label has the choices of mood, topic: name one of them as task.label" in topic.notes
    both = load_table(path, "multi-label").splits["train"]
    assert [row.label for row in both] == [("x", "sad"), ("y",), ("glad",)]
    with pytest.raises(
        UserError, match=r"a class .* found \['x', 'sad'\]: several classes .* \(set task.label to one\)"
    ):
        load_table(path, "single-label")


def test_several_choices_in_csv_and_texts_that_nobody_chose_for(tmp_path):
    path = tmp_path / "a.csv"
    cell = '"{""choices"": [""x"", ""y""]}"'
    path.write_text(
        f"annotation_id,annotator,id,topic,lead_time,text\n1,1,1,x,1,a\n2,1,2,{cell},1,b\n3,1,3,,1,c\n"
    )
    rows = load_table(path, "multi-label", columns={"label": "topic"}).splits["train"]
    assert [row.label for row in rows] == [("x",), ("x", "y"), ()]
    short = [{"annotation_id": 1, "lead_time": 1, "id": at, "text": text} for at, text in enumerate("abc")]
    short = [short[0] | {"topic": "x"}, short[1] | {"topic": {"choices": ["x", "y"]}}, short[2]]
    rows = load_table(put(tmp_path / "b.json", short), "multi-label", columns={"label": "topic"})
    assert [row.label for row in rows.splits["train"]] == [("x",), ("x", "y")]


def test_tasks_in_memory_are_those_of_a_file(tmp_path):
    path = put(tmp_path / "a.json", TASKS)
    assert read_documents(TASKS, [])["train"] == read_documents(path, [])["train"]
    named = load_table(TASKS, "token", columns={"text": "note"})
    assert named.columns.startswith("read as Label Studio: text 'note', spans")


def test_line_ends_that_it_quotes_as_letters_are_no_difference():
    one = region(0, 3, "X")
    one["value"]["text"] = "a\\nb"
    notes: list[str] = []
    read_documents([task(1, "a\nb c", by(1, one))], notes)
    assert notes == ["train: read as Label Studio"]
