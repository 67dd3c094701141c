"""Labelled rows in memory: the same tasks as from files, and messages that name the row."""

from __future__ import annotations

import enum
import json

import datasets
import numpy
import pandas
import pytest

from minialbert.data.examples import TextExample, TokenExample
from minialbert.data.rows import numbered_rows
from minialbert.data.tables import load_table
from minialbert.data.tasks import load_task
from minialbert.errors import UserError
from minialbert.recipes.schema import TaskRecipe

ROWS = [
    {"text": "the cat", "label": "yes"},
    {"text": "a dog", "label": "no"},
    {"text": "a mat", "label": "yes"},
]
NAMED = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
LABEL_FIRST = pandas.DataFrame(ROWS)[["label", "text"]]
KINDS = {
    "list": ROWS,
    "pairs": [(row["text"], row["label"]) for row in ROWS],
    "columns": {key: [row[key] for row in ROWS] for key in ("text", "label")},
    "arrays by split": {"train": {key: numpy.array([row[key] for row in ROWS]) for key in ("text", "label")}},
    "tuple": tuple(ROWS),
    "data set": datasets.Dataset.from_list(ROWS),
    "data set with classes": datasets.Dataset.from_list(ROWS).cast(NAMED),
    "torch's format": datasets.Dataset.from_list(ROWS).cast(NAMED).with_format("torch"),
    "stream": datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    "frame": pandas.DataFrame(ROWS, index=["x", "y", "z"]),
    "numpy": [(numpy.str_(row["text"]), numpy.array(row["label"])) for row in ROWS],
    "array": numpy.array([[row["text"], row["label"]] for row in ROWS]),
    "records": LABEL_FIRST.to_records(index=False),
    "named tuples": LABEL_FIRST.itertuples(),
    "rows of a frame": [row for _, row in LABEL_FIRST.iterrows()],
    "categories": pandas.DataFrame(ROWS).astype({"label": "category"}),
}


def error_of(function, *args, **options):
    with pytest.raises(UserError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize("kind", [*KINDS, "iterator"])
def test_every_kind_gives_the_task_of_the_file(kind, tmp_path):
    rows = iter(ROWS) if kind == "iterator" else KINDS[kind]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    expected = load_table(tmp_path / "train.jsonl", "single-label")
    task = load_table(rows, "single-label")
    assert task.splits == expected.splits
    assert (task.name, task.labels, task.notes) == ("in-memory", ("no", "yes"), ())


def test_splits_by_name():
    label = {"train": ROWS, "val": pandas.DataFrame(ROWS[:1]), "test": [("x", None)], "unsupervised": [1]}
    task = load_table(label, "single-label")
    assert {split: len(rows) for split, rows in task.splits.items()} == {
        "train": 3,
        "validation": 1,
        "test": 1,
    }
    assert task.reported_split == "validation"
    unscored = "test: no row has a label, so none is scored; found the columns 'text', 'label'"
    assert task.notes == ("rows in memory: left out the split unsupervised", unscored)
    data = datasets.DatasetDict(train=KINDS["data set"], validation=KINDS["data set"].select([0]))
    assert load_table(data, "single-label").splits["validation"] == [TextExample("the cat", None, "yes")]


def test_pairs_scores_and_several_classes():
    task = load_table([("a", "b", 1.5), ("c", "d", 2)], "regression")
    assert task.splits["train"] == [TextExample("a", "b", 1.5), TextExample("c", "d", 2.0)]
    frame = pandas.DataFrame({"text": ["a", "b"], "score": [0.5, 2]})
    assert [row.label for row in load_table(frame, "regression").splits["train"]] == [0.5, 2.0]
    task = load_table([{"text": "a", "labels": {"x", "y"}}, {"text": "b", "labels": []}], "multi-label")
    assert [set(row.label or ()) for row in task.splits["train"]] == [{"x", "y"}, set()]
    names = datasets.Features(
        text=datasets.Value("string"), labels=datasets.List(datasets.ClassLabel(names=["x", "y"]))
    )
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "labels": [[0, 1], []]}, features=names)
    assert [row.label for row in load_table(data, "multi-label").splits["train"]] == [("x", "y"), ()]
    frame = pandas.DataFrame({"id": [7, 8], "text": ["a", "b"], "label": [0, 1]})
    assert load_table(frame, "single-label").splits["train"][1] == TextExample("b", None, "1", "8")


WORDS = TokenExample(("the", "cat"), ("O", "B-Animal"))


@pytest.mark.parametrize(
    "rows",
    [
        [{"tokens": ["the", "cat"], "tags": ["O", "B-Animal"]}],
        [(["the", "cat"], ["O", "B-Animal"])],
        [(("the", "cat"), ("O", "B-Animal"))],
        pandas.DataFrame({"words": [["the", "cat"]], "ner_tags": [["O", "I-Animal"]]}),
        datasets.Dataset.from_dict(
            {"tokens": [[], ["the", "cat"]], "ner_tags": [[], [0, 1]]},
            features=datasets.Features(
                tokens=datasets.List(datasets.Value("string")),
                ner_tags=datasets.List(datasets.ClassLabel(names=["O", "B-Animal"])),
            ),
        ),
    ],
    ids=["list", "pairs", "tuples", "frame", "data set"],
)
def test_tagged_words(rows):
    task = load_task(TaskRecipe(name="ner"), data=rows, carve=False)
    assert list(task.splits["train"]) == [WORDS]
    assert task.labels == ("O", "B-Animal", "I-Animal")


@pytest.mark.parametrize(
    "span",
    [
        (4, 7, "Animal"),
        {"start": 4, "end": 7, "label": "Animal"},
        (numpy.int64(4), numpy.int64(7), "Animal"),
    ],
)
def test_texts_with_spans(span):
    for row in ("the cat", [span]), {"text": "the cat", "entities": [span]}:
        (example,) = load_task(TaskRecipe(name="ner"), data=[row], carve=False).splits["train"]
        assert (example.words, example.tags, example.text) == (WORDS.words, WORDS.tags, "the cat")


def test_classes_without_rows_and_names_that_may_be_one_are_told():
    names = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["a", "b", "c"]))
    data = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [0, 2]}, features=names)
    task = load_table(data, "single-label")
    assert task.labels == ("a", "c")
    told = "rows in memory (train): no row has 'b', so they are not labels; task.labels keeps them"
    assert task.notes == (told,)
    assert load_table(data, "single-label", labels=["a", "b", "c"]).notes == ()
    rows = [
        ("x", "Yes"),
        ("y", "yes"),
        ("z", "no"),
        ("u", 1),
        ("v", "1.0"),
        ("w", "no"),
        ("s", "\u00e9"),
        ("t", "e\u0301"),
    ]
    told = "the labels {} are apart: if they are one, spell them alike in the data"
    notes = (told.format("'1', '1.0'"), told.format("'Yes', 'yes'"), told.format("'e\u0301', '\u00e9'"))
    assert load_table(rows, "single-label").notes == notes


def test_columns_and_options_are_those_of_the_recipe():
    data = {"train": [{"review": "a", "y": "1"}, {"review": "b", "y": "0"}] * 10}
    recipe = TaskRecipe(name="mine", problem="single-label", text="review", label="y", max_train_rows=10)
    task = load_task(recipe, data=data)
    assert (task.name, len(task.splits["train"]), len(task.splits["validation"])) == ("mine", 8, 2)
    assert load_task(recipe.model_copy(update={"data": "/nowhere"}), data=data).splits == task.splits


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, {"text": "", "label": "no"}], "rows in memory (train), row 4: the text in column 'text' is empty"),
        ([*ROWS, {"text": "x"}], "rows in memory (train), row 4: no label; every row of train needs one"),
        ([*ROWS, 3], "rows in memory (train), row 4: expected a dictionary, or a text and its label, found int 3"),
        (["a text"], "rows in memory (train), row 1: expected a dictionary, or a text and its label, found str"),
        ([("a", "b", "x"), ("c", "y")], "row 2: text, label, but rows before it have sentence1, sentence2, label"),
        ([("half \ud83d", "x")], "rows in memory (train), row 1: holds half of a surrogate pair"),
        (pandas.DataFrame({"text": ["a", None], "label": [1, 2]}), "rows in memory (train), row 2: the text in"),
        (pandas.DataFrame({"text": ["a", "b"], "label": [1, None]}), "row 2: no label; every row of train needs one"),
        ({"text": ["a", "b"], "label": ["x"]}, "(train): expected rows, or lists of one length for each column; found "
         "text (2), label (1)"),
        ({"text": "a", "label": "x"}, "lists of one length for each column; found text (no list), label (no list)"),
        (pandas.DataFrame({"body": ["a"], "label": [1]}), "rows in memory (train): no text column; expected one of"),
        (pandas.DataFrame([["a", "b", "x"]], columns=["text", "text", "label"]), "names the column 'text'"),
        ([], "rows in memory (train): 0 rows; expected at least one"),
        ({}, "rows in memory has no train split: expected train, found none"),
        ({"dev": ROWS}, "rows in memory has no train split: expected train, found dev"),
        ({"train": ROWS, "dev": ROWS, "valid": ROWS}, "rows in memory: both dev and valid could be the validation"),
        ({"train": "data/"}, "rows in memory (train): expected rows, a data set or a frame, found str"),
        ({"train": 3}, "rows in memory (train): expected rows, a data set or a frame, found int"),
        ({"train": ROWS, "dev": [("x", "maybe")]}, "(dev), row 1: the label 'maybe' is not among those of the train"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(rows, message):
    assert message in error_of(load_table, rows, "single-label")


def test_integers_that_pandas_made_floats_are_their_classes():
    frame = pandas.DataFrame({"text": ["a", "b", "c"], "label": [1, 0, None]})
    task = load_table({"train": frame[:2], "test": frame[2:]}, "single-label")
    assert (task.labels, task.splits["train"][0].label) == (("0", "1"), "1")


def test_sets_of_classes_have_an_order_that_is_no_chance():
    names = {f"class {at}" for at in range(9)}
    (row, *_) = load_table([("a", names), ("b", {"class 1"})], "multi-label").splits["train"]
    assert row.label == tuple(sorted(names))


def test_a_backslash_is_no_surrogate():
    rows = [("C:\\udata", "x"), ("\U0001f600", "y")]
    assert [row.text for row in load_table(rows, "single-label").splits["train"]] == [
        text for text, _ in rows
    ]


def test_an_iterator_that_fails_names_the_row_before():
    def rows():
        yield ROWS[0]
        raise OSError("the line broke\nfor good")

    message = "rows in memory (train): no row could be read after row 1 (OSError: the line broke)"
    with pytest.raises(UserError) as caught:
        load_table(rows(), "single-label")
    assert str(caught.value) == message and isinstance(caught.value.__cause__, OSError)


def test_rows_of_frames_and_data_sets_are_plain():
    frame = pandas.DataFrame({"a": [1, 2], "b": [None, "x"], "c": [0.5, float("nan")]})
    expected = [(1, {"a": 1, "b": None, "c": 0.5}), (2, {"a": 2, "b": "x", "c": None})]
    assert list(numbered_rows(frame, "")) == expected
    assert list(numbered_rows(frame, "", "b")) == [(1, {"b": None}), (2, {"b": "x"})]
    assert type(next(numbered_rows(frame, ""))[1]["a"]) is int
    data = KINDS["data set with classes"]
    assert list(numbered_rows(data, "", "label"))[:2] == [(1, {"label": "yes"}), (2, {"label": "no"})]


def test_a_classification_data_set_of_the_hub(monkeypatch):
    calls = []
    data = datasets.DatasetDict(train=KINDS["data set with classes"], test=KINDS["data set"])
    monkeypatch.setattr("datasets.load_dataset", lambda *args: calls.append(args) or data)
    task = load_task(TaskRecipe(name="classification", data="hub:owner/Name:small"), carve=False)
    assert calls == [("owner/Name", "small")]
    assert (task.name, task.labels, task.reported_split) == ("name", ("no", "yes"), "test")
    columns = dict(label="kind")
    assert error_of(load_table, "hub:owner/name", "single-label", columns=columns).startswith(
        "hub:owner/name (train): no label column; expected 'kind'"
    )


def test_members_of_an_enumeration_are_their_text():
    class Answer(str, enum.Enum):  # noqa: UP042 - of which str() is the name
        YES = "yes"
        NO = "no"

    task = load_table([("the cat", Answer.YES), ("a dog", Answer.NO)], "single-label")
    assert task.labels == ("no", "yes")


def test_training_data_of_spacy():
    rows = [("Ebola kills", {"entities": [(0, 5, "Virus")]}), ("a dog", {"entities": []})]
    assert [row.tags for row in load_table(rows, "token").splits["train"]] == [("B-Virus", "O"), ("O", "O")]
