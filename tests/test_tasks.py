"""Tasks by name: which reader is asked, what is set apart for validation, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minialbert.data.tasks import load_task, task_summary
from minialbert.errors import UserError
from minialbert.tuning_schema import TaskRecipe


def table(path: Path, count: int = 20, **columns: object) -> Path:
    rows = [{"text": f"the cat {row}", "label": ("yes", "no")[row % 2], **columns} for row in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def cola(folder: Path, name: str = "CoLA") -> Path:
    (folder / name).mkdir(parents=True)
    for split in ("train", "dev"):
        rows = [f"x\t{row % 2}\t\tthe cat sat {row}\n" for row in range(6)]
        (folder / name / f"{split}.tsv").write_text("".join(rows))
    return folder


def ner(folder: Path, *splits: str, count: int = 10) -> Path:
    folder.mkdir()
    for split in splits:
        (folder / f"{split}.tsv").write_text("the\tO\ncat\tB-Animal\n\n" * count)
    return folder


@pytest.mark.parametrize("name", ["cola", "CoLA"])
def test_a_glue_task(name, tmp_path):
    task = load_task(TaskRecipe(name=name, data=str(cola(tmp_path / "glue"))))
    assert (task.name, task.problem, task.metric) == ("cola", "single-label", "matthews_correlation")
    assert task.labels == ("unacceptable", "acceptable")
    assert task_summary(task) == {
        "rows": {"train": 6, "validation": 6}, "labels": ["unacceptable", "acceptable"], "notes": list(task.notes),
    }  # fmt: skip


def test_tagged_sentences(tmp_path):
    task = load_task(TaskRecipe(name="ner", data=str(ner(tmp_path / "Animals", "train", "devel", "test"))))
    assert (task.name, task.problem, task.reported_split) == ("animals", "token", "test")
    assert task.labels == ("O", "B-Animal", "I-Animal")


def test_ner_in_a_table(tmp_path):
    (tmp_path / "train.jsonl").write_text(
        json.dumps({"tokens": ["the", "cat"], "tags": ["O", "B-Animal"]}) + "\n"
        + json.dumps({"tokens": ["a", "mat"], "tags": ["O", "O"]}) + "\n"
    )  # fmt: skip
    task = load_task(TaskRecipe(name="ner", data=str(tmp_path / "train.jsonl")))
    assert (task.problem, task.labels) == ("token", ("O", "B-Animal", "I-Animal"))


@pytest.mark.parametrize(
    ("name", "problem", "label", "metric"),
    [
        ("classification", "single-label", "a", "accuracy"),
        ("multi-label", "multi-label", ["a", "b"], "f1_micro"),
        ("regression", "regression", 1.5, "pearson_spearman"),
    ],
)
def test_tables_by_kind(name, problem, label, metric, tmp_path):
    rows = [
        {"text": f"row {row}", "label": label if row else {"a": "b"}.get(str(label), label)}
        for row in range(9)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(TaskRecipe(name=name, data=str(tmp_path / "mine.jsonl")))
    assert (task.name, task.problem, task.metric) == ("mine", problem, metric)


def test_a_name_and_columns_of_ones_own(tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [{"said": f"row {row}", "mood": ("glad", "sad")[row % 2]} for row in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = TaskRecipe(
        name="moods", problem="single-label", data=str(path), text="said", label="mood", labels=["sad", "glad"],
        metric="f1_macro",
    )  # fmt: skip
    task = load_task(recipe)
    assert (task.name, task.labels, task.metric) == ("moods", ("sad", "glad"), "f1_macro")
    # A problem makes the name one's own, also where GLUE has such a task.
    assert load_task(recipe.model_copy(update={"name": "cola"})).labels == ("sad", "glad")


def test_validation_is_set_apart_the_same_way_each_time(tmp_path):
    path = table(tmp_path / "mine.jsonl", 30)
    recipe = TaskRecipe(name="classification", data=str(path), validation_fraction=0.2)
    task = load_task(recipe)
    assert {name: len(rows) for name, rows in task.splits.items()} == {"train": 24, "validation": 6}
    assert "validation: 6 of the 30 training rows, set apart at random" in task.notes
    texts = [row.text for split in task.splits.values() for row in split]
    assert sorted(texts) == sorted(f"the cat {row}" for row in range(30))
    assert [row.text for row in task.splits["validation"]] != [f"the cat {row}" for row in range(6)]
    assert load_task(recipe).splits == task.splits
    assert [row.text for row in task.splits["train"]] == [
        f"the cat {row}" for row in range(30) if f"the cat {row}" in {r.text for r in task.splits["train"]}
    ]


def test_nothing_is_set_apart_where_that_is_not_wanted(tmp_path):
    recipe = TaskRecipe(name="classification", data=str(table(tmp_path / "mine.jsonl", 5)))
    task = load_task(recipe, carve=False)
    assert {name: len(rows) for name, rows in task.splits.items()} == {"train": 5}
    assert not any("set apart" in note for note in task.notes)


def test_validation_that_is_there_is_used(tmp_path):
    table(tmp_path / "train.jsonl", 8)
    table(tmp_path / "dev.jsonl", 3)
    task = load_task(TaskRecipe(name="classification", data=str(tmp_path)))
    assert {name: len(rows) for name, rows in task.splits.items()} == {"train": 8, "validation": 3}


def test_one_row_cannot_be_parted(tmp_path):
    with pytest.raises(UserError, match="1 training rows are too few"):
        load_task(TaskRecipe(name="regression", data=str(table(tmp_path / "mine.jsonl", 1, label=1.0))))


def test_the_first_training_rows(tmp_path):
    task = load_task(TaskRecipe(name="cola", data=str(cola(tmp_path / "glue")), max_train_rows=4))
    assert len(task.splits["train"]) == 4
    path = table(tmp_path / "mine.jsonl", 20)
    task = load_task(TaskRecipe(name="classification", data=str(path), max_train_rows=10))
    texts = {row.text for split in task.splits.values() for row in split}
    assert texts == {f"the cat {row}" for row in range(10)}
    assert {name: len(rows) for name, rows in task.splits.items()} == {"train": 9, "validation": 1}
    data = ner(tmp_path / "animals", "train", "devel")
    task = load_task(TaskRecipe(name="ner", data=str(data), max_train_rows=4))
    assert len(task.splits["train"]) == 4
    assert len(task.splits["validation"]) == 10
    assert "train: the first 4 of 10 rows" in task.notes
    task = load_task(TaskRecipe(name="ner", data=str(data), max_train_rows=400))
    assert len(task.splits["train"]) == 10


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no task: give --task, one of mnli, .*regression, or task.problem"),
        ({"name": "colla", "data": "x"}, "no task is called 'colla': expected one of mnli"),
        ({"name": "classification"}, "task classification has no data: give --data"),
        ({"name": "ner"}, "task ner has no data"),
        ({"name": "mine", "problem": "regression"}, "task mine has no data"),
        ({"name": "classification", "data": "missing-folder"}, "missing-folder"),
        ({"name": "ner", "data": "missing-folder"}, "missing-folder"),
        ({"name": "cola", "data": "missing-folder"}, "missing-folder does not exist"),
    ],
)
def test_what_is_missing_is_named(values, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_task(TaskRecipe(**values))
    assert "\n" not in str(caught.value)


def test_a_metric_of_another_problem(tmp_path):
    path = table(tmp_path / "mine.jsonl")
    with pytest.raises(UserError, match="'entity_f1': a single-label task has accuracy, f1"):
        load_task(TaskRecipe(name="classification", data=str(path), metric="entity_f1"))
    task = load_task(TaskRecipe(name="cola", data=str(cola(tmp_path / "glue")), metric="accuracy"))
    assert task.metric == "accuracy"


def test_iob_repair_or_refusal(tmp_path):
    folder = ner(tmp_path / "animals", "train", "devel")
    (folder / "train.tsv").write_text("the\tO\ncat\tI-Animal\n\n")
    task = load_task(TaskRecipe(name="ner", data=str(folder)))
    assert task.splits["train"][0].tags == ("O", "B-Animal")
    with pytest.raises(UserError, match="row 2: 'I-Animal' follows no entity"):
        load_task(TaskRecipe(name="ner", data=str(folder), iob="refuse"))
