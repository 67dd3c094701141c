"""Tasks by name: which reader is asked, what is set apart for validation, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from minialbert.data.tasks import load_task, task_summary, understood
from minialbert.errors import UserError
from minialbert.recipes.schema import TaskRecipe


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
        "rows": {"train": 6, "validation": 6}, "labels": ["unacceptable", "acceptable"],
        "label_counts": {label: {"train": 3, "validation": 3} for label in ("unacceptable", "acceptable")},
        "columns": "", "longest_characters": 13, "notes": list(task.notes),
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
    assert "validation: 6 of the 30 training rows, set apart at random by class" in task.notes
    texts = [row.text for split in task.splits.values() for row in split]
    assert sorted(texts) == sorted(f"the cat {row}" for row in range(30))
    assert [row.text for row in task.splits["validation"]] != [f"the cat {row}" for row in range(6)]
    assert load_task(recipe).splits == task.splits
    assert [row.text for row in task.splits["train"]] == [
        f"the cat {row}" for row in range(30) if f"the cat {row}" in {r.text for r in task.splits["train"]}
    ]


def labelled(path: Path, *labels: object, **columns: list[object]) -> str:
    rows = [
        {"text": f"row {row}", "label": label, **{name: cells[row] for name, cells in columns.items()}}
        for row, label in enumerate(labels)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_rare_class_is_in_both_parts(tmp_path):
    data = labelled(tmp_path / "rare.jsonl", *["control"] * 198, "case", "case")
    task = load_task(TaskRecipe(name="classification", data=data))
    assert len(task.splits["validation"]) == 21
    for split in ("train", "validation"):
        assert [row.label for row in task.splits[split]].count("case") == 1
    alone = load_task(
        TaskRecipe(name="classification", data=labelled(tmp_path / "one.jsonl", *"a" * 30, "b"))
    )
    assert "validation: no row of 'b'" in alone.notes
    assert [row.label for row in alone.splits["train"]].count("b") == 1


def test_classes_keep_their_shares(tmp_path):
    labels = ["a"] * 100 + ["b"] * 60 + ["c"] * 40
    task = load_task(TaskRecipe(name="classification", data=labelled(tmp_path / "mine.jsonl", *labels)))
    found = [row.label for row in task.splits["validation"]]
    assert [found.count(name) for name in "abc"] == [10, 6, 4]
    several = [["x"], ["x", "y"], ["y"], [], ["z", "x"], ["z"]] * 5
    task = load_task(TaskRecipe(name="multi-label", data=labelled(tmp_path / "several.jsonl", *several)))
    for rows in task.splits.values():
        assert {name for row in rows for name in row.label} == {"x", "y", "z"}


def test_rows_of_a_group_stay_together(tmp_path):
    labels = [("case" if row % 10 == 0 else "control") for row in range(200)]
    data = labelled(tmp_path / "mine.jsonl", *labels, patient=[row // 5 for row in range(200)])
    task = load_task(TaskRecipe(name="classification", data=data, group="patient"))
    groups = [{row.group for row in task.splits[split]} for split in ("train", "validation")]
    assert groups[0] | groups[1] == {str(patient) for patient in range(40)} and not groups[0] & groups[1]
    assert 20 <= len(task.splits["validation"]) <= 30
    assert {row.label for row in task.splits["validation"]} == {"case", "control"}
    assert any(note.endswith("by class; rows of one patient stay together") for note in task.notes)
    with pytest.raises(
        UserError, match=r"mine.jsonl: no column 'document' to group rows by; found the columns 'text'"
    ):
        load_task(TaskRecipe(name="classification", data=data, group="document"))
    one = labelled(tmp_path / "one.jsonl", *"abab", patient=[1] * 4)
    with pytest.raises(UserError, match="4 training rows are too few to set some apart"):
        load_task(TaskRecipe(name="classification", data=one, group="patient"))
    with pytest.raises(UserError, match="task.group names a column of a table, and this data has none"):
        load_task(TaskRecipe(name="cola", data=str(cola(tmp_path / "glue")), group="patient"))


@pytest.mark.parametrize(
    ("labels", "named", "positive"),
    [
        (["case", "control", "case"], None, "case"),  # by its name, though it is not the rarer
        (["no", "yes"], None, "yes"),
        (["0", "1"], None, "1"),
        (["x", "y", "x"], None, "y"),  # the rarer
        (["x", "y", "y"], None, "x"),
        (["x", "y"], None, "y"),  # the last
        (["case", "control"], "control", "control"),
        (["a", "b", "c"], None, None),
    ],
)
def test_the_class_that_f1_is_about(labels, named, positive, tmp_path):
    data = labelled(tmp_path / "mine.jsonl", *labels)
    task = load_task(TaskRecipe(name="classification", data=data, positive=named), carve=False)
    assert task.positive == positive


def test_the_positive_class_of_glue_is_class_1_and_another_must_be_there(tmp_path):
    glue = str(cola(tmp_path / "glue"))
    assert load_task(TaskRecipe(name="cola", data=glue)).positive == "acceptable"
    assert load_task(TaskRecipe(name="cola", data=glue, positive="unacceptable")).positive == "unacceptable"
    with pytest.raises(
        UserError, match="task.positive 'good': expected one of two classes, and cola has 'unaccept"
    ):
        load_task(TaskRecipe(name="cola", data=glue, positive="good"))


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
    assert {name: len(rows) for name, rows in task.splits.items()} == {"train": 8, "validation": 2}
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
        ({}, "no task: give --task, one of mnli, .*regression, ner, qa, or task.problem"),
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


# Tags: one reader, whatever the file

# In IOB1: an entity starts with I-, and with B- only behind one of its type; so two entities are one in the last row.
IOB1 = [
    (["the", "cat"], ["O", "I-Animal"]),
    (["cat", "dog", "Rome", "New", "York"], ["I-Animal", "B-Animal", "I-City", "I-City", "O"]),
    (["cat", "Rome"], ["B-Animal", "I-City"]),
]
REPAIRED = [
    ("O", "B-Animal"),
    ("B-Animal", "B-Animal", "B-City", "I-City", "O"),
    ("B-Animal", "B-City"),
]
IOB2 = [(words, list(tags)) for (words, _), tags in zip(IOB1, REPAIRED, strict=True)]


def write_tagged(folder: Path, kind: str, rows: list[tuple[list[str], list[str]]]) -> str:
    """Writes tagged sentences as the train split, and returns what `task.data` says."""
    if kind == "hub":
        columns = {"tokens": [words for words, _ in rows], "tags": [tags for _, tags in rows]}
        datasets.DatasetDict(train=datasets.Dataset.from_dict(columns)).save_to_disk(folder / "hub")
        return "hub:owner/name"
    path = folder / f"train.{kind}"
    joined = [(" ".join(words), " ".join(tags)) for words, tags in rows]
    if kind == "conll":
        blocks = ["".join(f"{w}\t{t}\n" for w, t in zip(*row, strict=True)) for row in rows]
        path.write_text("\n".join(blocks))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"tokens": w, "tags": t}) + "\n" for w, t in rows))
    elif kind == "parquet":
        pyarrow.parquet.write_table(
            pyarrow.table({"tokens": [w for w, _ in rows], "tags": [t for _, t in rows]}), path
        )
    else:
        between = "," if kind == "csv" else "\t"
        path.write_text("".join(f"{w}{between}{t}\n" for w, t in [("tokens", "tags"), *joined]))
    return str(folder if kind == "conll" else path)


KINDS = ["conll", "csv", "tsv", "jsonl", "parquet", "hub"]


@pytest.fixture
def tagged(tmp_path, monkeypatch):
    """Loads tagged sentences, written as a kind of file, and returns the task."""
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_: datasets.DatasetDict.load_from_disk(tmp_path / "hub")
    )

    def load(kind, rows, **options):
        data = write_tagged(tmp_path, kind, rows)
        # A .tsv of words and tags is a table only where the problem is named.
        named = {"name": "mine", "problem": "token"} if kind == "tsv" else {"name": "ner"}
        return load_task(TaskRecipe(**named, data=data, **options), carve=False)

    return load


@pytest.mark.parametrize("kind", KINDS)
def test_iob1_is_repaired_in_every_kind_of_file(tagged, kind):
    task = tagged(kind, IOB1)
    assert [row.tags for row in task.splits["train"]] == REPAIRED
    assert task.labels == ("O", "B-Animal", "I-Animal", "B-City", "I-City")
    assert [note for note in task.notes if note.endswith(": 4 I- tags that followed nothing were read as B-")]


@pytest.mark.parametrize("kind", KINDS)
def test_iob2_stays_as_it_is_in_every_kind_of_file(tagged, kind):
    for iob in ("repair", "refuse"):
        task = tagged(kind, IOB2, iob=iob)
        assert [row.tags for row in task.splits["train"]] == REPAIRED
        assert not [note for note in task.notes if "I- tag" in note]


# Of the first sentence's last tag, the third's first and the third's last: the line, of Parquet and the hub the row.
PLACES = {
    "conll": ("train.conll:2: ", "train.conll:10: ", "train.conll:11: "),
    "csv": ("train.csv:2: ", "train.csv:4: ", "train.csv:4: "),
    "tsv": ("train.tsv:2: ", "train.tsv:4: ", "train.tsv:4: "),
    "jsonl": ("train.jsonl:1: ", "train.jsonl:3: ", "train.jsonl:3: "),
    "parquet": ("train.parquet:1: ", "train.parquet:3: ", "train.parquet:3: "),
    "hub": tuple(f"hub:owner/name (train), row {row}: " for row in (1, 3, 3)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_refusing_names_the_row_in_every_kind_of_file(tagged, kind):
    first, _, last = PLACES[kind]
    with pytest.raises(UserError) as caught:
        tagged(kind, IOB1, iob="refuse")
    assert f"{first}'I-Animal' follows no entity: expected 'B-Animal' at the start" in str(caught.value)
    with pytest.raises(UserError) as caught:
        tagged(kind, [*IOB2[:2], IOB1[2]], iob="refuse")
    assert f"{last}'I-City' follows an entity Animal: expected 'B-City' at the start" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("S-", "expected a tag O, B-TYPE or I-TYPE, found 'S-'"),
        ("City", "expected a tag O, B-TYPE or I-TYPE, found 'City'"),
    ],
)
def test_a_tag_that_is_none_is_refused_in_every_kind_of_file(tagged, kind, tag, message):
    rows = [*IOB2[:2], (["cat", "Rome"], [tag, "O"])]
    with pytest.raises(UserError) as caught:
        tagged(kind, rows)
    assert PLACES[kind][1] + message in str(caught.value)
    assert "\n" not in str(caught.value)


# What was understood


def test_what_was_understood_is_told_in_two_lines(tmp_path):
    table(tmp_path / "train.jsonl", 5, source="s")
    table(tmp_path / "dev.jsonl", 2)
    task = load_task(TaskRecipe(name="classification", data=str(tmp_path)))
    assert understood(task) == [
        f"{tmp_path.name}: 5 train, 2 validation rows; longest 9 characters; text, label; left out 'source'",
        "labels (train/validation): yes 3/1, no 2/1",
    ]
    assert task_summary(task)["label_counts"] == {
        "yes": {"train": 3, "validation": 1},
        "no": {"train": 2, "validation": 1},
    }
    task = load_task(
        TaskRecipe(name="ner", data=str(ner(tmp_path / "animals", "train", "test"))), carve=False
    )
    assert understood(task) == [
        "animals: 10 train, 10 test rows; longest 2 words; tokens, tags", "entities (train/test): Animal 10/10",
    ]  # fmt: skip
    rows = [{"text": "a", "label": 1.5}, {"text": "bc", "label": 4}]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = load_task(TaskRecipe(name="regression", data=str(tmp_path / "scores.jsonl")), carve=False)
    assert understood(scores)[1:] == ["train: scores from 1.5 to 4"]
    classes = [{"text": str(n), "label": [f"c{n}"] if n else []} for n in range(20)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in classes))
    many = load_task(TaskRecipe(name="multi-label", data=str(tmp_path / "many.jsonl")), carve=False)
    assert understood(many)[1].endswith(" and 8 more") and "c1 1" in understood(many)[1]


@pytest.mark.parametrize("problem", ["classification", "multi-label", "regression"])
def test_a_hub_data_set_of_every_kind(problem, monkeypatch):
    names = datasets.ClassLabel(names=["no", "yes"])
    label = {
        "classification": names,
        "multi-label": datasets.List(names),
        "regression": datasets.Value("float32"),
    }
    cells = {"classification": [0, 1], "multi-label": [[0, 1], []], "regression": [0.5, 2]}
    features = datasets.Features(text=datasets.Value("string"), label=label[problem])
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": cells[problem]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(train=data, test=data))
    task = load_task(TaskRecipe(name=problem, data="hub:me/Reviews"), carve=False)
    expected = {"classification": ["no", "yes"], "multi-label": [("no", "yes"), ()], "regression": [0.5, 2.0]}
    assert task.name == "reviews" and [row.label for row in task.splits["test"]] == expected[problem]


def test_rows_of_one_text_are_set_apart_together_if_they_can_be(tmp_path):
    rows = [{"text": f"row {row // 3}", "label": "ab"[row // 3 % 2]} for row in range(120)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(TaskRecipe(name="classification", data=str(tmp_path / "mine.jsonl")))
    parts = [{row.text for row in task.splits[split]} for split in ("train", "validation")]
    assert not parts[0] & parts[1] and len(task.splits["validation"]) == 12
