"""A user's table: every format, every problem, and what is wrong with a file is told with file and row."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import tempfile
from decimal import Decimal
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minialbert.data.examples import TextExample, TokenExample, first_rows
from minialbert.data.table_files import find_tables, read_table, unsplit_tables
from minialbert.data.tables import load_table
from minialbert.errors import UserError


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_jsonl(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def error(path, problem="single-label", **options):
    with pytest.raises(UserError) as caught:
        load_table(path, problem, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# csv and tsv


def test_pairs_of_a_text_and_its_entities_as_spacy_trains_on(tmp_path):
    file = tmp_path / "train.json"
    file.write_text('[["Aspirin helps.", {"entities": [[0, 7, "CHEM"]]}], ["No drug.", {"entities": []}]]')
    (first, second) = (cells for _, cells in read_table(file).rows)
    assert first == {"text": "Aspirin helps.", "spans": {"entities": [[0, 7, "CHEM"]]}}
    assert second["spans"] == {"entities": []}
    for other in ('"the entities"', "1", "null", '["entities"]', '{"cats": {}}'):
        file.write_text(f'[["Aspirin helps.", {other}]]')
        with pytest.raises(UserError, match="expected a JSON object, found an array"):
            read_table(file)


def test_csv_with_quotes_line_ends_and_byte_order_mark(tmp_path):
    content = '\ufefftext,label\r\n"a, ""b""\r\nc",x\r\n\r\nplain,y\r\n"last",x'
    path = write(tmp_path / "t.csv", content)
    assert read_table(path).columns == ("text", "label")
    assert read_table(path).rows == [
        (2, {"text": 'a, "b"\r\nc', "label": "x"}),
        (5, {"text": "plain", "label": "y"}),
        (6, {"text": "last", "label": "x"}),
    ]
    task = load_table(path, "single-label")
    assert (task.name, task.labels, task.metric, task.notes) == ("t", ("x", "y"), "accuracy", ())
    assert list(task.splits) == ["train"]
    assert task.splits["train"][1] == TextExample("plain", None, "y")


def test_csv_agrees_with_pyarrow(tmp_path):
    content = (
        'text,label,id\n"a ""quoted"" text, with comma",x,7\n"over\n\nlines",y,8\nü – 漢字, z,9\n"",y,10\n'
    )
    path = write(tmp_path / "t.csv", content)
    options = pa_csv.ConvertOptions(
        column_types={"text": pa.string(), "label": pa.string(), "id": pa.string()}, strings_can_be_null=False
    )
    expected = pa_csv.read_csv(
        path, parse_options=pa_csv.ParseOptions(newlines_in_values=True), convert_options=options
    ).to_pylist()
    assert len(expected) == 4
    assert [cells for _, cells in read_table(path).rows] == expected


_CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@settings(deadline=None, max_examples=150)
@given(
    rows=st.lists(st.tuples(_CELL, _CELL, _CELL), min_size=1, max_size=6),
    line_end=st.sampled_from(["\n", "\r\n"]),
    delimiter=st.sampled_from([",", ";"]),
)
def test_csv_round_trip(rows, line_end, delimiter):
    buffer = io.StringIO()
    # With "\n" as line end the writer of Python 3.11 leaves a carriage return unquoted.
    quoting = csv.QUOTE_MINIMAL if line_end == "\r\n" else csv.QUOTE_ALL
    writer = csv.writer(buffer, lineterminator=line_end, delimiter=delimiter, quoting=quoting)
    writer.writerow(["one", "two", "three"])
    begins = []
    for row in rows:
        begins.append(len(buffer.getvalue().replace("\r\n", "\n").replace("\r", "\n").split("\n")))
        writer.writerow(row)
    with tempfile.TemporaryDirectory() as folder:
        read = read_table(write(Path(folder) / "t.csv", buffer.getvalue())).rows
    assert [tuple(cells.values()) for _, cells in read] == rows
    assert [number for number, _ in read] == begins


def test_semicolons_where_the_header_has_no_comma(tmp_path):
    path = write(tmp_path / "a.csv", 'text;label\n"x; y, z";1,5\nb;2\n')
    assert [tuple(cells.values()) for _, cells in read_table(path).rows] == [("x; y, z", "1,5"), ("b", "2")]
    quoted = write(tmp_path / "b.csv", '"text, long";label\nx;y\n')
    assert read_table(quoted).columns == ("text, long", "label")
    commas = write(tmp_path / "c.csv", '"a;b",label\nx;y,z\n')
    assert read_table(commas).rows == [(2, {"a;b": "x;y", "label": "z"})]


def test_tsv_knows_no_quoting(tmp_path):
    path = write(tmp_path / "t.tsv", 'text\tlabel\r\n"open, quote\ta\r\nx "y" z"\tb\n')
    assert read_table(path).rows == [
        (2, {"text": '"open, quote', "label": "a"}),
        (3, {"text": 'x "y" z"', "label": "b"}),
    ]


def test_long_fields_are_read_and_the_limit_of_the_process_is_kept(tmp_path):
    limit = csv.field_size_limit()
    text = "word " * 100_000
    task = load_table(write(tmp_path / "t.csv", f"text,label\n{text},a\nb,b\n"), "single-label")
    assert task.splits["train"][0].text == text
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "content", "row", "message"),
    [
        ("t.csv", "text,label\na,x\nb\n", 3, "expected 2 columns as in the header, found 1; a field with"),
        ("t.csv", 'text,label\n"a\n\nb",x\nc,d,y\n', 5, "expected 2 columns as in the header, found 3"),
        ("t.csv", "text,label\na,x\ntext,label\nb,y\n", 3, "the header once more, as of files put together"),
        ("t.tsv", "text\tlabel\na\tb\tx\n", 2, "expected 2 columns as in the header, found 3"),
        ("t.csv", 'text,label\na,x\n"b\nc,y\n', 3, "a quote that opens in this row is never closed"),
        ("t.csv", 'text,label\n"a\n1" b,x\n', 2, "not readable as csv"),
        ("t.csv", b"text,label\r\na,x\r\nb\0,y\r\n", 3, "a NUL byte; expected UTF-8 text"),
        ("t.csv", "text,label\na,x\n".encode("utf-16-le"), 1, "a NUL byte"),
        ("t.csv", b"\xef\xbb\xbftext,label\na,x\nb,\xe9\n", 3, "not UTF-8 (byte 0xe9)"),
        ("t.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', 2, "not UTF-8 (byte 0xff)"),
        ("t.csv", "\ntext,label,text\na,x,b\n", 2, "the header names 'text' more than once"),
        ("t.csv", "text,label\na,x\n \t ,y\n", 3, "the text in column 'text' is empty"),
        ("t.csv", "text,label\na,x\nb, \n", 3, "no label; every row of train needs one"),
        ("t.jsonl", '{"text": "a", "label": 1}\n\n{"text": "b"\n', 3, "not JSON (Expecting"),
        ("t.jsonl", '{"text": "a"}\n["b"]\n', 2, "expected a JSON object, found an array"),
        ("t.jsonl", "3\n", 1, "expected a JSON object, found a plain value"),
        ("t.jsonl", "[" * 100_000 + "\n", 1, "not JSON"),
        ("t.jsonl", '{"text": "a", "text": "b"}\n', 1, "the key 'text' occurs twice"),
        ("t.jsonl", '{"text": "\\ud83d", "label": 1}\n', 1, "half of a surrogate pair"),
        ("t.jsonl", '{"text": 5, "label": 1}\n', 1, "expected a text in column 'text', found 5"),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"label": 1}\n', 2, "the text in column 'text' is empty"),
        ("t.jsonl", '{"text": "a", "label": 0.5}\n', 1, "expected a class as text or integer, found 0.5"),
    ],
)
def test_errors_name_file_and_row(tmp_path, name, content, row, message):
    path = write(tmp_path / name, content)
    found = error(path)
    assert found.startswith(f"{path}:{row}: ")
    assert message in found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "the file is empty"),
        ("t.parquet", "", "the file is empty"),
        ("t.csv", "\n\r\n\n", "the file holds blank lines only; expected a header"),
        ("t.csv", "text,label\n\n", "0 rows; expected at least one"),
        ("t.jsonl", "\n\n", "0 rows; expected at least one"),
        ("t.txt", "a", "unknown extension; expected one of .csv .tsv .jsonl .ndjson .json .parquet"),
        ("t.json", "[]", "0 rows; expected at least one"),
        ("t.json", '[{"text": "a"}', "not JSON (Expecting ',' delimiter"),
        ("t.parquet", b"PAR1 and then nothing PAR1", "not readable as Parquet after row 0"),
        ("t.csv", "text,label\na,x\n".encode("utf-16"), "found UTF-16 text (convert it to UTF-8)"),
        ("t.csv", gzip.compress(b"text,label\na,x\n"), "found gzip (unpack it)"),
        ("t.csv", b"PK\x03\x04 as .xlsx", "found zip (unpack it; save a spreadsheet as csv)"),
        ("t.csv", b"\xd0\xcf\x11\xe0 as .xls", "found a file of Office (save a spreadsheet as csv)"),
        ("t.jsonl", b"PAR1\x15\x04\x15", "found Parquet (give the file the suffix .parquet)"),
        ("t.csv", "Body,Label\na,x\n", "no text column; expected one of text, sentence,"),
        ("t.csv", "Body,Label\na,x\n", "found the columns 'Body', 'Label': set task.text to its name"),
        (
            "t.csv",
            "text^label\na^x\n",
            "found only one column, 'text^label': commas, semicolons, TABs or bars (|) divide",
        ),
        (
            "t.tsv",
            "text,label\na,x\n",
            "found only one column, 'text,label': TABs divide the columns of a .tsv file",
        ),
        (
            "t.csv",
            "text,target\na,x\n",
            "no label column; expected one of label, labels, class, gold_label, found the col",
        ),
        ("t.csv", "text,sentence,label\na,b,x\n", "'text' and 'sentence' could each be the text column: set"),
        (
            "t.csv",
            "label,text\nA good film.,1\nBad.,0\nFine.,1\nAwful.,0\nSo so.,1\n",
            "each of its 5 rows has a label of its own, as 'A good film.': set task.label to the column of the",
        ),
        ("t.csv", "text,label\na,x\nb,x\n", "expected at least two labels, found only 'x'"),
    ],
)
def test_errors_that_have_no_row(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    found = error(path)
    assert found.startswith(f"{path}:")
    assert message in found


# Parquet


def test_parquet_gives_what_json_lines_give(tmp_path):
    rows = [
        {"text": "a", "labels": ["x", "y"], "id": 1},
        {"text": "b", "labels": [], "id": 2},
        {"text": "c", "labels": ["y"], "id": None},
    ]
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    tables = [
        load_table(write_jsonl(tmp_path / "t.ndjson", rows), "multi-label"),
        load_table(write_parquet(tmp_path / "t.parquet", **columns), "multi-label"),
    ]
    assert tables[0] == tables[1]
    assert tables[0].splits["train"] == [
        TextExample("a", None, ("x", "y"), "1"),
        TextExample("b", None, (), "2"),
        TextExample("c", None, ("y",), None),
    ]


def test_damaged_parquet_and_rows_of_parquet(tmp_path):
    path = write_parquet(tmp_path / "t.parquet", text=["a", "b", None], label=[1, 2, 1])
    assert error(path).startswith(f"{path}:3: the text in column 'text' is empty")
    strings = pa.array(["fine", "broken"]).cast(pa.binary())
    broken = pa.array([strings[0].as_py(), b"\xff\xfe"], pa.binary()).view(pa.string())
    path = write_parquet(tmp_path / "u.parquet", text=broken, label=["x", "y"])
    assert error(path).startswith(f"{path}: not readable as Parquet after row 0 (")
    whole = write_parquet(tmp_path / "v.parquet", text=["some text"] * 3000, label=["x"] * 3000).read_bytes()
    path = write(tmp_path / "w.parquet", whole[: len(whole) // 2])
    assert error(path).startswith(f"{path}: not readable as Parquet after row 0 (")


def test_parquet_columns_of_other_types_do_no_harm_and_names_are_unique(tmp_path):
    when = [datetime.datetime(2020, 1, 1), None]
    path = write_parquet(tmp_path / "t.parquet", text=["a", "b"], label=[True, False], when=when)
    assert load_table(path, "single-label").labels == ("False", "True")
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, tmp_path / "u.parquet")
    assert error(tmp_path / "u.parquet").endswith("u.parquet: the header names 'text' more than once")


# Splits


def test_splits_of_a_directory(tmp_path):
    write(tmp_path / "Train.CSV", "text,label\na,1\nb,0\n")
    write(tmp_path / "devel.tsv", "text\tlabel\nc\t1\n")
    write_jsonl(tmp_path / "test.jsonl", [{"text": "d"}, {"text": "e"}])
    write(tmp_path / "train.csv.bak", "")
    write(tmp_path / "README.md", "about")
    task = load_table(str(tmp_path), "single-label", name="mine")
    assert (task.name, task.metric, task.labels) == ("mine", "accuracy", ("0", "1"))
    assert {split: len(rows) for split, rows in task.splits.items()} == {
        "train": 2,
        "validation": 1,
        "test": 2,
    }
    assert task.splits["test"] == [TextExample("d"), TextExample("e")]
    assert task.reported_split == "validation"
    assert load_table(tmp_path, "single-label").name == tmp_path.name


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train.csv", "train.tsv"],
            "both train.csv and train.tsv could be the train split: keep one of them",
        ),
        (
            ["train.csv", "dev.csv", "validation.csv"],
            "both dev.csv and validation.csv could be the validation split",
        ),
        (["test.csv"], "no train split; expected train with one of .csv"),
        (["train.csv.gz"], "train.csv.gz: unknown extension"),
        (["train.csv", "test.xlsx"], "test.xlsx: unknown extension"),
    ],
)
def test_ambiguous_and_missing_splits(tmp_path, names, message):
    for name in names:
        write(tmp_path / name, "text,label\na,x\nb,y\n")
    with pytest.raises(UserError) as caught:
        find_tables(tmp_path)
    assert message in str(caught.value)


def test_missing_path(tmp_path):
    assert error(tmp_path / "nowhere") == f"no such file or directory: {tmp_path / 'nowhere'}"


def test_unlabelled_rows_only_in_test_and_only_all_of_them(tmp_path):
    write(tmp_path / "train.csv", "text,label\na,x\nb,y\n")
    test = write(tmp_path / "test.csv", "text,label\nc,\nd,\n")
    assert [example.label for example in load_table(tmp_path, "single-label").splits["test"]] == [None, None]
    write(test, "text,label\nc,x\nd,\ne,y\n")
    assert error(tmp_path) == f"{test}:3: no label, but 2 rows of test have one; label all rows or none"
    test.unlink()
    validation = write(tmp_path / "valid.csv", "text,label\nc,x\nd,\n")
    assert error(tmp_path) == f"{validation}:3: no label; every row of validation needs one"
    write(validation, "text\nc\n")
    assert error(tmp_path).startswith(f"{validation}: no label column")


# Texts and pairs


@pytest.mark.parametrize(
    "names", [("sentence1", "sentence2"), ("premise", "hypothesis"), ("Question1", "Question2")]
)
def test_pairs_with_common_names(tmp_path, names):
    path = write(tmp_path / "t.csv", f"id,{','.join(names)},label\n9,a,b,x\n,c,d,y\n")
    assert load_table(path, "single-label").splits["train"] == [
        TextExample("a", "b", "x", "9"),
        TextExample("c", "d", "y", None),
    ]


def test_columns_with_names_of_their_own(tmp_path):
    path = write(tmp_path / "t.csv", "q,answer,y,key\na,b,x,k1\nc,d,z,k2\n")
    columns = dict(text="q", pair="answer", label="y", id="key")
    assert load_table(path, "single-label", columns=columns).splits["train"][1] == TextExample(
        "c", "d", "z", "k2"
    )
    assert "no pair column; expected 'b', found the columns 'q', 'answer', 'y', 'key'" in error(
        path, columns=dict(text="q", pair="b", label="y")
    )
    assert "no label column; expected 'Y', found" in error(path, columns=dict(text="q", label="Y"))


def test_a_pair_needs_its_second_text_in_every_row_and_split(tmp_path):
    train = write(tmp_path / "train.csv", "sentence1,sentence2,label\na,b,x\nc,d,y\n")
    test = write(tmp_path / "test.csv", "sentence1,sentence2\na,b\nc,\n")
    assert error(tmp_path) == f"{test}:3: the text in column 'sentence2' is empty; fill it or remove the row"
    write(test, "sentence1\na\n")
    assert error(tmp_path) == f"{test}: single texts, but {train} has pairs; name the columns"


# Labels


def test_order_of_labels(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\na,10\nb,9\nc,-1\nd, 9\n")
    assert load_table(path, "single-label").labels == ("-1", "9", "10")
    assert load_table(path, "single-label", labels=["10", "9", "-1", "8"]).labels == ("10", "9", "-1", "8")
    write(path, "text,label\na,10\nb,9\nc,x\n")
    assert load_table(path, "single-label").labels == ("10", "9", "x")
    integers = write_jsonl(tmp_path / "t.jsonl", [{"text": "a", "label": n} for n in (11, 2, 1)])
    assert load_table(integers, "single-label").labels == ("1", "2", "11")


def test_labels_that_train_does_not_have(tmp_path):
    write(tmp_path / "train.csv", "text,label\na,x\nb,y\n")
    dev = write(tmp_path / "dev.csv", 'text,label\n"c\nc",x\nd,z\n')
    task = load_table(tmp_path, "single-label")
    assert task.notes == (
        "validation: labels that are not among those of the train split count as missed: z (1)",
    )
    assert (task.labels, task.splits["validation"][1].label) == (("x", "y"), "z")
    write(dev, 'text,label\n"c\nc",q\nd,z\n')
    assert error(tmp_path) == f"{dev}:2: the label 'q' is not among those of the train split: 'x', 'y'"
    train = tmp_path / "train.csv"
    assert (
        error(tmp_path, labels=["x", "z"])
        == f"{train}:3: the label 'y' is not among those of `labels`: 'x', 'z'"
    )
    assert load_table(tmp_path, "single-label", labels=["x", "y", "z"]).labels == ("x", "y", "z")
    write(train, 'text,label\na,x\nb,"y\ny"\n')
    assert error(tmp_path).endswith("the label 'q' is not among those of the train split: 'x', 'y\\ny'")


def test_multi_label_cells_of_csv(tmp_path):
    write(tmp_path / "train.csv", "text,label\na,x|y\nb,\nc, z | x \n")
    test = write(tmp_path / "test.csv", "text,label\nd,y\ne,\n")
    task = load_table(tmp_path, "multi-label")
    assert [example.label for example in task.splits["train"]] == [("x", "y"), (), ("z", "x")]
    assert [example.label for example in task.splits["test"]] == [("y",), ()]
    assert (task.labels, task.metric, task.notes) == (("x", "y", "z"), "f1_micro", ())
    write(test, "text,label\nd,\ne,\n")
    task = load_table(tmp_path, "multi-label")
    assert [example.label for example in task.splits["test"]] == [None, None]
    told = "test: no row has a label, so none is scored; found the columns 'text', "
    assert task.notes == (f"{told}'label'",)
    write(test, "text,label\nd,x|q\n")
    task = load_table(tmp_path, "multi-label")
    assert task.splits["test"][0].label == ("x", "q")
    assert task.notes == ("test: labels that are not among those of the train split count as missed: q (1)",)
    write(test, "text,category\nd,x\n")
    write(tmp_path / "train.csv", "text,label\na,x\nb,y\n")
    assert load_table(tmp_path, "single-label").notes == (f"{told}'category'",)


def test_multi_label_separator_and_bad_cells(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\na,x; y\nb,z\n")
    assert load_table(path, "multi-label", label_separator=";").labels == ("x", "y", "z")
    assert "expected a label separator that is not a blank, found ''" in error(
        path, "multi-label", label_separator=""
    )
    write(path, "text,label\na,x||y\n")
    assert error(path, "multi-label").startswith(f"{path}:2: expected a class as text or integer, found ''")
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "a", "label": [0]}, {"text": "b", "label": [1, 0, 1]}])
    assert error(path, "multi-label").startswith(f"{path}:2: a class occurs twice in [1, 0, 1]")
    write_jsonl(path, [{"text": "a", "label": 3}])
    assert error(path, "multi-label") == f"{path}:1: expected a list of classes, found 3"
    write_jsonl(path, [{"text": "a", "label": []}])
    assert "no row has a class" in error(path, "multi-label")


def test_scores(tmp_path):
    path = write(tmp_path / "t.csv", "sentence1,sentence2,score\na,b,-4.5\nc,d, 1e3 \n")
    task = load_table(path, "regression")
    assert [example.label for example in task.splits["train"]] == [-4.5, 1000.0]
    assert (task.labels, task.metric) == ((), "pearson_spearman")
    path = write_parquet(tmp_path / "t.parquet", text=["a", "b"], label=[Decimal("1.25"), Decimal("2.5")])
    assert [example.label for example in load_table(path, "regression").splits["train"]] == [1.25, 2.5]


@pytest.mark.parametrize("cell", ["nan", "-inf", "1_0", "high", "3,5"])
def test_scores_that_are_no_number(tmp_path, cell):
    path = write(tmp_path / "t.tsv", f"text\tscore\na\t1\nb\t{cell}\n")
    advice = "; write a point for the decimal comma" if "," in cell else ""
    assert error(path, "regression") == f"{path}:3: expected a finite number as score, found {cell!r}{advice}"
    write(path, "text\tscore\na\t-1e39\n")
    assert error(path, "regression").startswith(f"{path}:2: expected a number up to 3.4e38 (of 32 bits)")


@pytest.mark.parametrize("cell", ["true", "NaN", "1" + "0" * 400, "[1]"])
def test_json_scores_that_are_no_number(tmp_path, cell):
    path = write(tmp_path / "t.jsonl", f'{{"text": "a", "label": {cell}}}\n')
    wanted = "no label" if cell == "NaN" else "expected a finite number as score, found "
    assert error(path, "regression").startswith(f"{path}:1: {wanted}")


def test_what_pandas_has_for_a_missing_cell_is_none():
    for nothing in (float("nan"), np.float64("nan"), pd.NA, pd.NaT):
        rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
        with pytest.raises(UserError, match="row 1: no label; every row of train needs one"):
            load_table([{"text": "a", "label": nothing}, *rows], "single-label")
        unlabelled = {"train": rows, "test": [{"text": "c", "label": nothing}]}
        assert load_table(unlabelled, "single-label").splits["test"][0].label is None
        spans = [{"text": "a b", "spans": [[0, 1, "X"]]}]
        given = {"train": spans, "test": [{"text": "c", "spans": nothing}]}
        assert load_table(given, "token").splits["test"][0].tags is None


def test_rows_that_hold_frames_are_told():
    with pytest.raises(UserError, match="row 1: expected a class as text or integer, found"):
        load_table(pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]}).groupby("label"), "single-label")


def test_hidden_files_are_no_tables(tmp_path):
    for name in ("a.csv", "train.csv"):
        write(tmp_path / name[0] / name, "text,label\na,x\nb,y\n")
        for hidden in (f"._{name}", f".{name}"):  # of a Mac, and of an editor
            write(tmp_path / name[0] / hidden, b"\0\5")
    assert find_tables(tmp_path / "t") == ({"train": [tmp_path / "t" / "train.csv"]}, [])
    assert unsplit_tables(tmp_path / "a") == [tmp_path / "a" / "a.csv"]


def test_a_label_that_may_be_none_is_noted(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\na,nan\nb,x\nc,x\nd,none\n")
    (note,) = load_table(path, "single-label").notes
    assert note == f"{path}: 'nan' is a label: if rows have none there, remove or label them"


def test_max_train_rows(tmp_path):
    write(tmp_path / "train.csv", "text,label\na,x\nb,x\nc,y\n")
    write(tmp_path / "dev.csv", "text,label\nd,y\ne,y\nf,y\n")
    whole = load_table(tmp_path, "single-label")
    task = first_rows(whole, 2)
    assert [example.text for example in task.splits["train"]] == ["a", "b"]
    assert len(task.splits["validation"]) == 3
    assert task.labels == ("x", "y")
    assert task.notes == ("train: the first 2 of 3 rows",)
    assert first_rows(whole, 3) == whole and whole.notes == ()


@pytest.mark.parametrize(
    ("problem", "options", "message"),
    [
        (
            "ranking",
            {},
            "unknown problem 'ranking'; expected one of single-label, multi-label, regression, token",
        ),
        ("regression", {"labels": ["a"]}, "regression has scores and no classes"),
        ("single-label", {"labels": ["a", "b", "a"]}, "expected `labels` to name each class once"),
        ("single-label", {"labels": []}, "expected `labels` to name each class once, found []"),
        ("token", {"labels": ["Disease"]}, "'O' among them; found Disease"),
        ("token", {"columns": dict(tokens="a", spans="b")}, "name the columns of one of them"),
    ],
)
def test_options_that_do_not_fit(tmp_path, problem, options, message):
    assert message in error(write(tmp_path / "t.csv", "text,label\na,x\nb,y\n"), problem, **options)


# Tokens


def test_words_and_tags_in_every_format(tmp_path):
    words = [["Ebola", "and", "flu"], ["no", "disease"]]
    tags = [["B-Virus", "O", "B-Disease"], ["O", "O"]]
    rows = [{"tokens": w, "ner_tags": t} for w, t in zip(words, tags, strict=True)]
    lines = [" ".join(w) + "\t" + " ".join(t) for w, t in zip(words, tags, strict=True)]
    paths = [
        write_jsonl(tmp_path / "a.jsonl", rows),
        write_parquet(tmp_path / "b.parquet", words=words, tags=tags),
        write(tmp_path / "c.tsv", "Tokens\tLabels\n" + "\n".join(lines)),
    ]
    for path in paths:
        task = load_table(path, "token")
        assert task.splits["train"] == [
            TokenExample(tuple(w), tuple(t)) for w, t in zip(words, tags, strict=True)
        ]
        assert task.labels == ("O", "B-Disease", "I-Disease", "B-Virus", "I-Virus")
        assert (task.metric, task.notes) == ("entity_f1", ())


def test_tags_that_are_not_iob2_are_repaired_and_counted(tmp_path):
    path = write(tmp_path / "train.csv", "tokens,tags\na b c d e f g,I-X I-X O I-Y I-X B-X I-X\n")
    write(tmp_path / "test.csv", "tokens\nunlabelled words\n")
    task = load_table(tmp_path, "token")
    assert task.splits["train"][0].tags == ("B-X", "I-X", "O", "B-Y", "B-X", "B-X", "I-X")
    unlabelled = "test: no row has a label, so none is scored; found the columns 'tokens'"
    assert task.notes == ("train: 3 I- tags that followed nothing were read as B-", unlabelled)
    assert task.splits["test"] == [TokenExample(("unlabelled", "words"))]
    write(path, "tokens,tags\na b c,B-X E-X S-X\n")
    task = load_table(tmp_path, "token")
    assert task.splits["train"][0].tags == ("B-X", "I-X", "B-X")
    assert task.notes == ("train: tags in BIOES were read as IOB2 (1 E-, 1 S-)", unlabelled)
    write(path, "tokens,tags\na b,O O\n")
    assert "expected at least two labels, found only 'O'" in error(tmp_path, "token")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"tokens": ["a", "b", "c"], "tags": ["O", "O"]},
            "3 words and 2 tags; expected one tag for each word",
        ),
        ({"tokens": ["a"], "tags": []}, "1 words and 0 tags"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "word 2 is empty"),
        ({"tokens": [], "tags": []}, "there are no words in column 'tokens'"),
        ({"tokens": ["a", 1], "tags": ["O", "O"]}, "expected a list of strings in column 'tokens'"),
        (
            {"tokens": ["a"], "tags": [0]},
            "the tags in column 'tags' are numbers, and their names are not known",
        ),
        ({"tokens": ["a"], "tags": [0.5]}, "expected a list of strings in column 'tags', found [0.5]"),
        ({"tokens": ["a"], "tags": ["B-"]}, "expected a tag O, B-TYPE or I-TYPE, found 'B-'"),
        ({"tokens": ["a"], "tags": ["B- X"]}, "expected a tag O, B-TYPE or I-TYPE, found 'B- X'"),
        ({"tokens": ["a"], "tags": None}, "no label; every row of train needs one"),
    ],
)
def test_bad_words_and_tags(tmp_path, row, message):
    path = write_jsonl(tmp_path / "t.jsonl", [{"tokens": ["a"], "tags": ["B-X"]}, row])
    found = error(path, "token")
    assert found.startswith(f"{path}:2: ")
    assert message in found


def test_tags_unknown_to_train(tmp_path):
    write(tmp_path / "train.tsv", "tokens\ttags\na b\tB-X O\n")
    dev = write(tmp_path / "dev.tsv", "tokens\ttags\na b\tB-X I-X\nc\tB-Y\n")
    task = load_table(tmp_path, "token")
    assert task.labels == ("O", "B-X", "I-X")
    assert task.notes == (
        "validation: labels that are not among those of the train split count as missed: Y (1)",
    )
    write(dev, "tokens\ttags\na b\tO O\nc\tB-Y\n")
    assert load_table(tmp_path, "token").notes == task.notes
    message = error(tmp_path, "token", model_labels=["O", "B-Z", "I-Z"])
    assert "train.tsv:2: the label 'X' is not among those of the model: 'O', 'B-Z', 'I-Z'" in message
    assert "train.tsv:2: the label 'B-X' is not among those of `labels`" in error(
        tmp_path, "token", labels=["O", "I-X", "B-Y"]
    )
    labels = ["O", "B-Y", "I-Y", "B-X", "I-X"]
    assert load_table(tmp_path, "token", labels=labels).labels == tuple(labels)


SPAN_FORMS = [
    [{"start": 0, "end": 5, "label": "Virus"}, {"start": 19, "end": 26, "label": "Disease"}],
    [{"begin": 0, "end": 5, "type": "Virus"}, {"begin": 19, "end": 26, "entity": "Disease"}],
    [[0, 5, "Virus"], [19, 26, "Disease"]],
]


@pytest.mark.parametrize("spans", SPAN_FORMS)
@pytest.mark.parametrize("extension", ["jsonl", "csv", "tsv"])
def test_text_and_spans(tmp_path, spans, extension):
    text = "Ebola causes a bad red eye."
    path = tmp_path / f"train.{extension}"
    if extension == "jsonl":
        write_jsonl(path, [{"text": text, "entities": spans}, {"text": "none", "entities": []}])
    elif extension == "csv":
        buffer = io.StringIO()
        csv.writer(buffer).writerows([["text", "spans"], [text, json.dumps(spans)], ["none", "[]"]])
        write(path, buffer.getvalue())
    else:
        write(path, f"text\tspans\n{text}\t{json.dumps(spans)}\nnone\t[]\n")
    write(tmp_path / "test.csv", "text\nflu!\n")
    task = load_table(tmp_path, "token")
    words = ("Ebola", "causes", "a", "bad", "red", "eye", ".")
    offsets = ((0, 5), (6, 12), (13, 14), (15, 18), (19, 22), (23, 26), (26, 27))
    tags = ("B-Virus", "O", "O", "O", "B-Disease", "I-Disease", "O")
    assert task.splits["train"] == [
        TokenExample(words, tags, text, offsets),
        TokenExample(("none",), ("O",), "none", ((0, 4),)),
    ]
    assert task.labels == ("O", "B-Disease", "I-Disease", "B-Virus", "I-Virus")
    assert task.splits["test"] == [TokenExample(("flu", "!"), None, "flu!", ((0, 3), (3, 4)))]


def test_spans_of_parquet_are_structs(tmp_path):
    spans = [[{"start": 2, "end": 4, "label": "X"}], []]
    path = write_parquet(tmp_path / "t.parquet", text=["a bc d", "e"], spans=spans)
    assert [example.tags for example in load_table(path, "token").splits["train"]] == [
        ("O", "B-X", "O"),
        ("O",),
    ]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([[0, 99, "X"]], "99"),
        ([[3, 3, "X"]], "3"),
        ([[0, 2, "X"], [1, 3, "Y"]], "share no word; task.overlaps=longest (or first) keeps one of them"),
        ([[0, 2, " "]], "label"),
        ([[0, 99, "X\nY"]], "99"),
        ([[0, 2]], "expected a span as start, end (integers) and label, found [0, 2]"),
        ([[0, True, "X"]], "expected a span as start, end (integers) and label"),
        ([{"start": 0.5, "end": 1, "label": "X"}], "expected a span as start"),
        ([{"start": "0x1", "end": "2", "label": "X"}], "expected a span as start"),
        ([{"start": 0, "end": 1}], "expected a span as start"),
        (["X"], "expected a span as start"),
        ({"start": [0], "end": [1, 2], "label": ["X"]}, "expected lists of one length"),
        ({"start": 0, "end": 1, "label": "X"}, "expected a list of spans, found"),
        ("0-3 X", "expected spans as a JSON list, found '0-3 X'"),
        (None, "no label; every row of train needs one"),
    ],
)
def test_bad_spans(tmp_path, spans, message):
    rows = [{"text": "abc", "spans": [[0, 3, "X"]]}, {"text": "abc def", "spans": spans}]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    found = error(path, "token")
    assert found.startswith(f"{path}:2: ")
    assert message in found


def test_which_form_a_token_table_has(tmp_path):
    both = {"text": "a b", "tokens": ["a", "b"], "tags": ["B-X", "O"], "spans": [[2, 3, "Y"]]}
    path = write_jsonl(tmp_path / "t.jsonl", [both])
    assert load_table(path, "token").labels == ("O", "B-X", "I-X")
    assert load_table(path, "token", columns=dict(spans="spans")).labels == ("O", "B-Y", "I-Y")
    del both["tags"]
    write_jsonl(path, [both])
    assert load_table(path, "token").labels == ("O", "B-Y", "I-Y")
    write_jsonl(path, [{"text": "a", "label": "x"}])
    assert "expected columns tokens and tags, or text and spans; found the columns 'text', 'label'" in error(
        path, "token"
    )


# What people have


def test_a_pair_under_its_usual_names_and_what_is_left_out(tmp_path):
    for first, second in [
        ("text", "text_pair"),
        ("question", "context"),
        ("text_a", "text_b"),
        ("query", "passage"),
    ]:
        path = write(tmp_path / "t.csv", f"source,{first},{second},gold_label\ns,a,b,x\ns,c,d,y\n")
        task = load_table(path, "single-label")
        assert task.splits["train"][0] == TextExample("a", "b", "x")
        assert task.columns.startswith("text") and f"pair '{second}', label 'gold_label'" in task.columns
        assert task.columns.endswith("; left out 'source'")
    path = write(tmp_path / "t.csv", "query,passage,extra,label\na,b,c,x\nd,e,f,y\n")
    assert load_table(path, "single-label", columns={"text": "extra"}).columns == (
        "text 'extra', label; left out 'query', 'passage'"
    )
    path = write(tmp_path / "t.csv", "query,passage,premise,hypothesis,label\na,b,c,d,x\n")
    assert (
        "'premise', 'hypothesis', 'query', 'passage' could each be the text or its pair; name them"
        in error(path)
    )
    path = write(tmp_path / "t.csv", "text,question,context,label\na,b,c,x\nd,e,f,y\n")
    assert "'question', 'context', 'text' could each be the text or its pair" in error(path)
    assert load_table(path, "single-label", columns={"text": "text"}).splits["train"][0] == TextExample(
        "a", None, "x"
    )
    assert "task.text and task.pair are both 'text'; found" in error(
        path, columns={"text": "text", "pair": "text"}
    )
    path = write(tmp_path / "t.csv", "#1 String,#2 String,label\na,b,x\nd,e,y\n")  # of MRPC
    assert load_table(path, "single-label").splits["train"][0] == TextExample("a", "b", "x")
    path = write(tmp_path / "t.csv", "Sentence 1,Sentence-2,label\na,b,x\nd,e,y\n")
    assert load_table(path, "single-label").splits["train"][0] == TextExample("a", "b", "x")


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("t.csv", "text\tlabel\na, b\tx\nc\ty\n", "train: columns are divided by TABs"),
        ("t.csv", "text|label\na, b|x\nc|y\n", "train: columns are divided by bars (|)"),
        ("t.csv", 'text;"label, main"\na, b;x\nc;y\n', "train: columns are divided by semicolons"),
        ("t.csv", "text;label, main\na, b;x\nc;y\n", "train: columns are divided by semicolons"),
        ("t.csv", "sep=;\r\ntext;label\r\na, b;x\r\nc;y\r\n", "train: columns are divided by semicolons"),
        ("t.csv", 'sep=,\ntext,label\n"a, b",x\nc,y\n', None),
        ("t.csv", '"label", "text"\n"x", "a, b"\ny,  c\n', None),
    ],
)
def test_csv_as_spreadsheets_write_it(tmp_path, name, content, note):
    task = load_table(
        write(tmp_path / name, content), "single-label", columns={"label": content_label(content)}
    )
    assert [row.text for row in task.splits["train"]] == ["a, b", "c"]
    assert task.notes == (() if note is None else (note,))


def content_label(content):
    return "label, main" if "label, main" in content else "label"


def test_a_row_is_named_behind_a_line_of_the_delimiter(tmp_path):
    path = write(tmp_path / "t.csv", "sep=;\ntext;label\na;x\nb\n")
    assert error(path).startswith(f"{path}:4: expected 2 columns as in the header, found 1")
    path = write(tmp_path / "t.csv", "text:label\na:x\nb,c:y\n")
    assert "the header 'text:label' is one column where commas divide them" in error(path)


QUOTED_TSV = [
    'text\tlabel\n"a\nb"\tx\nc\ty\n',  # a line end
    'text\tlabel\n"a ""b"""\tx\nc\ty\n',  # quotes
    'text\tlabel\n"a, b"\tx\nc\ty\n',  # Excel's, for a comma
    '"text"\t"label"\n"a"\t"x"\n"c"\t"y"\n',
    'text\tlabel\n"a\tb"\tx\nc\ty\n',
]
PLAIN_TSV = [
    'text\tlabel\n"a"\tx\nc\ty\n',
    'text\tlabel\n"a, b"\tx\nc, d\ty\n',
    'text\tlabel\n"a\tx\nb"\ty\n',
    'text\tlabel\n"a" b\tx\nc\ty\n',
    'text\tlabel\nhe said "a"\tx\n"c, d"\ty\n',
]


def test_tsv_in_the_quotes_of_a_spreadsheet(tmp_path):
    texts = []
    for content in QUOTED_TSV:
        task = load_table(write(tmp_path / "t.tsv", content), "single-label")
        assert task.notes == ("train: cells in quotes are read without them, as spreadsheets write them",)
        texts.append(task.splits["train"][0].text)
    assert texts == ["a\nb", 'a "b"', "a, b", "a", "a\tb"]
    for content in PLAIN_TSV:
        task = load_table(write(tmp_path / "t.tsv", content), "single-label")
        assert task.notes == () and '"' in "".join(row.text for row in task.splits["train"])


def test_rows_that_an_annotator_rejected(tmp_path):
    rows = [
        {"text": "a b", "spans": [[0, 1, "X"]], "answer": answer} for answer in ("accept", "Reject", "ignore")
    ]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    task = load_table(path, "token")
    assert len(task.splits["train"]) == 1
    assert task.notes == ("train: 2 rows left out that an annotator rejected, ignored or cancelled",)
    write_jsonl(path, rows[1:])
    assert "rejected, ignored or cancelled every row" in error(path, "token")
    answers = [{"text": "a", "label": "x", "answer": "yes"}, {"text": "b", "label": "y", "answer": "no"}]
    assert load_table(write_jsonl(path, answers), "single-label").notes == ()
    answers[0]["answer"] = "reject"
    assert "found 'no'; for other rows give --format table" in error(
        write_jsonl(path, answers), "single-label"
    )
    cancelled = [{"text": t, "label": t, "was_cancelled": t == "c"} for t in "abc"]
    assert load_table(write_jsonl(path, cancelled), "single-label").labels == ("a", "b")


def test_json_arrays_shards_and_names_with_more_dots(tmp_path):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    write(tmp_path / "train.json", json.dumps(rows, indent=1))
    for number, row in enumerate(rows):
        write_parquet(
            tmp_path / f"test-0000{number}-of-00002.parquet", text=[row["text"]], label=[row["label"]]
        )
    write_jsonl(tmp_path / "dev.final.jsonl", rows[:1])
    write_jsonl(tmp_path / "train.old.jsonl", rows[:1])
    task = load_table(tmp_path, "single-label")
    assert {split: [row.text for row in part] for split, part in task.splits.items()} == {
        "train": ["a", "b"],
        "validation": ["a"],
        "test": ["a", "b"],
    }
    assert f"{tmp_path.name}: left out train.old.jsonl" in task.notes
    assert "validation: read from dev.final.jsonl" in task.notes
    (tmp_path / "test-00001-of-00002.parquet").unlink()
    assert "test-00000-of-00002.parquet: expected 2 shards, found 1" in error(tmp_path)
    assert error(write(tmp_path / "t.json", "[3]")).endswith(
        "t.json:1: expected a JSON object, found a plain value"
    )


def test_a_split_that_is_a_link_to_nothing(tmp_path):
    write(tmp_path / "train.csv", "text,label\na,x\nb,y\n")
    (tmp_path / "dev.csv").symlink_to(tmp_path / "not-fetched")
    gone = "is a link to a file that is not there: fetch it"
    assert f"{tmp_path / 'dev.csv'} {gone}, or remove the link" in error(tmp_path)
    assert f"{tmp_path / 'dev.csv'} {gone}" in error(tmp_path / "dev.csv")
    (tmp_path / "dev.csv").unlink()
    write(tmp_path / "dev.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    for data in (tmp_path, tmp_path / "dev.csv"):
        assert error(data).startswith(
            f"{tmp_path / 'dev.csv'} is a pointer of Git LFS to a file that is not here"
        )
    (tmp_path / "dev.csv").unlink()
    (tmp_path / "dev").mkdir()
    assert load_table(tmp_path, "single-label").notes == (f"{tmp_path.name}: left out dev/",)


def test_class_names_in_parquet_and_in_folders_of_datasets(tmp_path):
    features = datasets.Features(
        tokens=datasets.List(datasets.Value("string")),
        ner_tags=datasets.List(datasets.ClassLabel(names=["O", "B-X", "I-X"])),
    )
    data = datasets.Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[1, 2]]}, features=features)
    data.to_parquet(tmp_path / "train.parquet")
    datasets.DatasetDict(train=data).save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "train.parquet", tmp_path / "saved", tmp_path / "saved" / "train"):
        assert load_table(path, "token").splits["train"] == [TokenExample(("a", "b"), ("B-X", "I-X"))]
    write(tmp_path / "saved" / "dataset_dict.json", "{")
    assert "not readable as a data set that was saved to disk" in error(tmp_path / "saved", "token")


def test_a_split_to_be_scored_needs_no_train_split(tmp_path):
    write(tmp_path / "test.csv", "text,label\na,x\nb,q\n")
    task = load_table(tmp_path, "single-label", model_labels=("y", "x"))
    assert (task.labels, list(task.splits)) == (("y", "x"), ["test"])
    assert task.notes == ("test: labels that are not among those of the model count as missed: q (1)",)
    assert error(tmp_path, model_labels=("y", "z")).endswith("is not among those of the model: 'y', 'z'")
    nameless = error(tmp_path, model_labels=("LABEL_0", "LABEL_1"))
    assert nameless.endswith("'LABEL_1'; give the classes' own names as id2label in its config.json")


def test_wide_headers_and_objects_are_read_in_little_time(tmp_path):
    names = [f"c{number}" for number in range(30_000)]
    path = write(tmp_path / "t.csv", ",".join([*names, "c0"]) + "\n")
    assert error(path).endswith("the header names 'c0' more than once")
    twice = "{" + ",".join(f'"{name}": 1' for name in [*names, names[-1]]) + "}"
    assert "occurs twice" in error(write(tmp_path / "t.jsonl", twice))
