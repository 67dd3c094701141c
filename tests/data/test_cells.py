"""Several classes in a cell, as people have them; spans as tools write them; lists that csv holds as text."""

from __future__ import annotations

import json
from itertools import product

import pytest
from minialbert_runtime.words import Span

from minialbert.data.cells import list_in, without_overlaps
from minialbert.data.tables import load_table
from minialbert.data.words import gold_spans
from minialbert.errors import UserError

ROWS = [("a", ["x", "y"]), ("b", []), ("c", ["y"]), ("d", ["x", "y", "z"]), ("e", ["z"])]
EXPECTED = [tuple(names) for _, names in ROWS]


def table(tmp_path, rows, header="text,labels", name="train.csv"):
    path = tmp_path / name
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def quoted(cell):
    return '"' + cell.replace('"', '""') + '"'


def labels_of(task, split="train"):
    return [row.label for row in task.splits[split]]


def error_of(*args, **options):
    with pytest.raises(UserError) as caught:
        load_table(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


SPELLINGS = {
    "JSON": json.dumps,
    "Python": str,
    "a tuple": lambda names: str(tuple(names)),
    "a set": lambda names: "{" + ", ".join(map(repr, names)) + "}" if names else "set()",
    "a frozen set": lambda names: f"frozenset({{{', '.join(map(repr, names))}}})" if names else "frozenset()",
    "an array": lambda names: f"array({names}, dtype=object)",
    "numpy": lambda names: "[" + " ".join(map(repr, names)) + "]",
    "bars": "|".join,
    "commas": ", ".join,
    "semicolons": ";".join,
    "slashes": " / ".join,
    "lines": "\n".join,
    "a mark at the end": lambda names: "".join(f"{name}; " for name in names),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_several_classes_in_a_csv_cell(tmp_path, spelling):
    rows = [f"{text},{quoted(SPELLINGS[spelling](names))}" for text, names in ROWS]
    task = load_table(table(tmp_path, rows), "multi-label")
    assert (labels_of(task), task.labels) == (EXPECTED, ("x", "y", "z"))
    marks = {"commas": ",", "semicolons": ";", "a mark at the end": ";", "slashes": "/", "lines": "\n"}
    said = (
        (f"the classes in column 'labels' are divided by {marks[spelling]!r}",) if spelling in marks else ()
    )
    assert task.notes == said


def test_the_divider_is_that_of_all_splits_and_may_be_named(tmp_path):
    table(tmp_path, ['a,"x, y"', "b,x", "c,y"])
    table(tmp_path, ['d,"y, x"'], name="dev.csv")
    assert labels_of(load_table(tmp_path, "multi-label"), "validation") == [("y", "x")]
    path = table(tmp_path, ['a,"diabetes, type 2"', "b,asthma"], name="other.csv")
    message = error_of(path, "multi-label")
    assert "'diabetes, type 2' in column 'labels' may be one class or several" in message
    assert "set task.label_separator to ',' to divide such cells, or to '|' to leave them whole" in message
    assert load_table(path, "multi-label", label_separator="|").labels == ("asthma", "diabetes, type 2")
    assert load_table(path, "multi-label", label_separator=",").labels == ("asthma", "diabetes", "type 2")


def test_the_mark_that_leaves_the_fewest_names_divides(tmp_path):
    path = table(tmp_path, ['a,"diabetes, type 2|asthma"', 'b,"diabetes, type 2"', "c,asthma", "d,a/b"])
    assert load_table(path, "multi-label").labels == ("a/b", "asthma", "diabetes, type 2")
    path = table(tmp_path, ['a,"x, y"', 'b,"y, z"', "c,z", "d,x|y"])
    assert load_table(path, "multi-label").labels == ("x", "x|y", "y", "z")
    path = table(tmp_path, ["a,yes/no", "b,n/a"])
    assert load_table(path, "multi-label").labels == ("n/a", "yes/no")


def test_a_list_that_cannot_be_read_is_no_class(tmp_path):
    for cell in ("[x, y]", "[x y]", "[x|y]", "{x,y}", "['x', nan]", "Index(['x', 'y'])"):
        path = table(tmp_path, ["b,x", f'a,"{cell}"'])
        expected = f'{path}:3: "{cell}"' if "'" in cell else f"{path}:3: '{cell}'"
        for separator in (None, ","):
            error = error_of(path, "multi-label", label_separator=separator)
            assert error.startswith(f"{expected} looks like a list and cannot be read")


def test_one_class_in_a_list(tmp_path):
    path = table(tmp_path, ["a,['x']", 'b,"[""y""]"', "c,x"], "text,label")
    assert labels_of(load_table(path, "single-label")) == ["x", "y", "x"]
    path = table(tmp_path, ["c,x", "a,\"['x', 'y']\""], "text,label")
    assert "several classes are a multi-label task" in error_of(path, "single-label")
    path = table(tmp_path, ["c,x", "a,[]"], "text,label")
    assert error_of(path, "single-label").startswith(
        f"{path}:3: expected a class as text or integer, found []"
    )
    path = table(tmp_path, ["a,(1)", "b,[sic] x"], "text,label")
    assert labels_of(load_table(path, "single-label")) == ["(1)", "[sic] x"]


def test_a_column_for_each_class(tmp_path):
    rows = [f"{text},{','.join(str(int(name in names)) for name in 'zxy')}" for text, names in ROWS]
    path = table(tmp_path, rows, "text,z,x,y")
    task = load_table(path, "multi-label", columns={"label": ["z", "x", "y"]})
    assert [set(names) for names in labels_of(task)] == [set(names) for names in EXPECTED]
    assert (task.labels, task.columns) == (("z", "x", "y"), "text, label 'z', 'x', 'y'")
    advice = "name them all, as in task.label=[z, x, y]"
    assert advice in error_of(path, "multi-label")
    assert advice in error_of(path, "multi-label", columns={"label": "x"})
    assert "no column 'q'" in error_of(path, "multi-label", columns={"label": ["x", "q"]})
    assert "several are for multi-label tasks" in error_of(
        path, "single-label", columns={"label": ["x", "y"]}
    )
    path = table(tmp_path, ["a,1,0", "b,2,1"], "text,x,y")
    message = error_of(path, "multi-label", columns={"label": ["x", "y"]})
    assert message == f"{path}:3: expected 0 or 1 in the column 'x' of a class, found '2'"
    path = table(tmp_path, ["a,1,0", "b,,"], "text,x,y")
    assert "no label; every row of train needs one" in error_of(
        path, "multi-label", columns={"label": ["x", "y"]}
    )


@pytest.mark.parametrize("kind", ["jsonl", "csv", "floats"])
def test_a_vector_for_each_row(tmp_path, kind):
    vectors = [[int(name in names) for name in "xyz"] for _, names in ROWS]
    path = tmp_path / "train.jsonl"
    if kind == "csv":
        rows = [f"{text},{quoted(str(vector))}" for (text, _), vector in zip(ROWS, vectors, strict=True)]
        path = table(tmp_path, rows)
    else:
        cells = [list(map(float, vector)) if kind == "floats" else vector for vector in vectors]
        rows = [{"text": text, "labels": cell} for (text, _), cell in zip(ROWS, cells, strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_table(path, "multi-label", labels=["x", "y", "z"])
    assert (labels_of(task), task.labels) == (EXPECTED, ("x", "y", "z"))
    assert task.notes == ("the 0 and 1 in column 'labels' are those of x, y, z, in this order",)
    assert "a 0 or 1 for each of 3 classes, and their names are not known" in error_of(path, "multi-label")
    assert "and `labels` names 2" in error_of(path, "multi-label", labels=["x", "y"])


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("['a', \"b's\"]", ["a", "b's"]),
        ("[1 0\n 1]", [1, 0, 1]),
        ("[0. 1.]", [0.0, 1.0]),
        ("['a b' 'c'\n 'd']", ["a b", "c", "d"]),
        ("[]", []),
        ("('a',)", ["a"]),
        ("{'a': 1}", None),
        ("{}", []),
        ("[a, b]", None),
        ("['a'", None),
        ("a, b", None),
        ("['a' + 'b']", None),
        ("[__import__('os')]", None),
        ("[" * 50_000 + "]" * 50_000, None),
        ("[" + "1" * 60_000 + "x]", None),
        ("[" + " " * 60_000 + "x]", None),
    ],
)
def test_lists_that_are_spelled(cell, found):
    assert list_in(cell) == found


def test_words_and_tags_as_pandas_writes_lists(tmp_path):
    rows = ["\"['a', 'b c']\",\"['B-X', 'O']\"", "[ 1 ],O O B-X"]
    task = load_table(table(tmp_path, rows, "tokens,tags"), "token")
    assert [row.words for row in task.splits["train"]] == [("a", "b c"), ("[", "1", "]")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", '{"tokens": ["Ebola ", "\\u00a0virus", "is "], "tags": ["B-X", "I-X ", "O"]}\n'),
        ("train.tsv", "Ebola \tB-X\n virus\tI-X\nis\u00a0\tO \n"),
    ],
)
def test_whitespace_around_words_belongs_to_no_entity(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    (row,) = load_table(tmp_path / name, "token").splits["train"]
    assert (row.words, gold_spans(row)) == (("Ebola", "virus", "is"), [Span(0, 11, "X")])


def test_doubles_are_found_without_the_whitespace_around_them():
    text = "Ebola virus is"
    spans = [Span(0, 5, "X"), Span(0, 6, "X"), Span(5, 11, "X"), Span(6, 12, "X"), Span(12, 14, "X")]
    kept = [spans[0], spans[2], spans[4]]
    assert without_overlaps(text, spans, "refuse") == (kept, 2, 0)
    beyond = [Span(12, 14, "X"), Span(12, 20, "X")]
    assert without_overlaps(text, beyond, "refuse")[:2] == (beyond, 0)


def test_tags_that_are_numbers(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"tokens": ["a", "b", "c"], "ner_tags": [1, 2, 0]}\n')
    task = load_table(path, "token", labels=["O", "B-X", "I-X"])
    assert task.splits["train"][0].tags == ("B-X", "I-X", "O")
    as_csv = table(tmp_path, ["\"['a', 'b', 'c']\",[1 2 0]"], "tokens,ner_tags")
    assert load_table(as_csv, "token", labels=["O", "B-X", "I-X"]).splits == task.splits
    assert "expected tags from 0 to 1" in error_of(path, "token", labels=["O", "B-X"])
    assert "their names are not known" in error_of(path, "token")


SPANS = {
    "floats": [{"start": 0.0, "end": 3.0, "label": "X"}],
    "numbers as text": [{"start": "0", "end": "3", "label": "X"}],
    "columns": {"start": [0], "end": [3], "label": ["X"]},
    "doccano": [{"id": 1, "start_offset": 0, "end_offset": 3, "label": "X"}],
    "Label Studio": [{"start": 0, "end": 3, "text": "abc", "labels": ["X"]}],
    "spaCy": [{"start_char": 0, "end_char": 3, "type": "X"}],
}


@pytest.mark.parametrize(
    ("form", "column"), [pair for pair in product(SPANS, ("spans", "label")) if pair != ("columns", "label")]
)
def test_spans_as_tools_write_them(tmp_path, form, column):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"text": "abc d", column: SPANS[form]}) + "\n")
    task = load_table(path, "token")
    assert task.splits["train"][0].tags == ("B-X", "O")
    as_csv = tmp_path / "train.csv"
    as_csv.write_text(f"text,spans\nabc d,{quoted(str(SPANS[form]))}\n")
    assert load_table(as_csv, "token").splits == task.splits


def test_spans_that_overlap(tmp_path):
    path = tmp_path / "train.jsonl"
    spans = [[0, 8, "X"], [4, 7, "Y"], [8, 11, "X"], [8, 11, "X"], [8, 11, "X"], [3, 16, "Z"]]
    path.write_text(json.dumps({"text": "abc def ghi jklm", "spans": spans}) + "\n")
    assert "task.overlaps=longest (or first) keeps one of them" in error_of(path, "token")
    first = load_table(path, "token", overlaps="first")
    assert first.splits["train"][0].tags == ("B-X", "I-X", "B-X", "O")
    assert first.notes == (
        "train: spans left out that are repeated: 2",
        "train: spans left out that overlap a kept one (task.overlaps=first): 2",
    )
    longest = load_table(path, "token", overlaps="longest")
    assert longest.splits["train"][0].tags == ("O", "B-Z", "I-Z", "I-Z")
    assert longest.notes[1].endswith("(task.overlaps=longest): 3")
    path.write_text(json.dumps({"text": "abc def", "spans": [[0, 4, "X"], [3, 7, "Y"]]}) + "\n")
    assert load_table(path, "token", overlaps="longest").splits["train"][0].tags == ("B-X", "B-Y")


@pytest.mark.parametrize(
    ("start", "end", "unit"),
    [(13, 20, "bytes of UTF-8"), (9, 16, "UTF-16 units"), (7, 14, "CR LF as one character"), (8, 14, None)],
)
def test_spans_stand_where_their_quotes_do_or_are_told(tmp_path, start, end, unit):
    path = tmp_path / "train.jsonl"
    good = {"start": 8, "end": 15, "label": "X", "text": " insulin\n"}
    rows = [[good, {**good, "start": 0, "end": 7, "text": None}], [{**good, "start": start, "end": end}]]
    text = "caf\u00e9 \U0001f600\u00e9 insulin was given"
    text = text.replace("f\u00e9 ", "\r\nf") if unit and "CR" in unit else text
    path.write_text("".join(json.dumps({"text": text, "spans": spans}) + "\n" for spans in rows))
    task = load_table(path, "token")
    (note,) = task.notes
    (row,) = task.splits["train"][1:]
    if unit is not None:
        assert note == (
            f"{path}:2: offsets are read as {unit}, since what they quote stands there (1 such entities)"
        )
        assert row.words[row.tags.index("B-X")] == "insulin" and "I-X" not in row.tags
    else:
        assert note.startswith(f"{path}:2: the span {start}-{end} quotes ' insulin\\n', where ")
        assert note.endswith("offsets count characters from 0, the end exclusive (1 such entities)")


@pytest.mark.parametrize("mark", ["::", " and ", "\uff0c"])
def test_cells_that_nothing_known_divides_are_told(tmp_path, mark):
    path = table(tmp_path, [f"{text},{quoted(mark.join(names))}" for text, names in ROWS])
    assert "no cell in column 'labels' names two classes" in load_table(path, "multi-label").notes[0]
    divided = load_table(path, "multi-label", label_separator=mark)
    assert (labels_of(divided), divided.notes) == (EXPECTED, ())


def test_overlaps_are_found_in_little_time():
    text = "a " * 30_000
    spans = [Span(2 * n, 2 * n + 3, "X") for n in range(29_000)]
    kept, doubles, overlapping = without_overlaps(text, spans + spans[:5], "first")
    assert (len(kept), doubles, overlapping) == (14_500, 5, 14_500)


def test_an_empty_cell_among_vectors_is_no_class(tmp_path):
    path = table(tmp_path, ['a,"[1, 0]"', "b,", 'c,"[0, 1]"'])
    task = load_table(path, "multi-label", labels=["x", "y"])
    assert labels_of(task) == [("x",), (), ("y",)]


def test_a_policy_that_keeps_all_entities_of_a_word_is_refused_with_what_to_do():
    with pytest.raises(
        UserError,
        match=r"overlaps 'layers': expected refuse, longest, first; .* convert-data --overlaps layers",
    ):
        without_overlaps("a b", [Span(0, 3, "X"), Span(2, 3, "Y")], "layers")
