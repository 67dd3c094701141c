"""GLUE tasks from files made by hand, from hub rows and from rows in memory."""

from __future__ import annotations

import csv

import datasets
import pytest

from minialbert.data.examples import TextExample, first_rows
from minialbert.data.glue import (
    GLUE_TASKS,
    glue_task_name,
    load_glue,
)
from minialbert.errors import UserError

RTE = "index\tsentence1\tsentence2\tlabel\n0\ta b\tc\tentailment\n1\td\te f\tnot_entailment\n"
MNLI_TEXTS = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2"
)
# One train and one dev file of each task in its official layout, and the examples that they hold.
LAYOUTS = {
    "cola": (
        "gj04\t1\t\tShe ran.\nbc01\t0\t*\tRan she the.\n",
        [TextExample("She ran.", None, "acceptable"), TextExample("Ran she the.", None, "unacceptable")],
    ),
    "sst2": (
        "sentence\tlabel\nso good \t1\nso bad \t0\n",
        [TextExample("so good", None, "positive"), TextExample("so bad", None, "negative")],
    ),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t11\t12\tone\ttwo\n0\t13\t14\tthree\tfour\n",
        [TextExample("one", "two", "equivalent"), TextExample("three", "four", "not_equivalent")],
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tg\tf\ty\to\tnone\tnone\ta\tb\t5.000\n1\tg\tf\ty\to\tnone\tnone\tc\td\t4.57142857142857\n",
        [TextExample("a", "b", 5.0, "0"), TextExample("c", "d", 4.57142857142857, "1")],
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n7\t1\t2\twho?\twho is?\t1\n9\t3\t4\tx?\ty?\t0\n",
        [TextExample("who?", "who is?", "duplicate", "7"), TextExample("x?", "y?", "not_duplicate", "9")],
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel\n0\twhy?\tso.\tentailment\n1\twhen?\tno.\tnot_entailment\n",
        [TextExample("why?", "so.", "entailment", "0"), TextExample("when?", "no.", "not_entailment", "1")],
    ),
    "rte": (
        RTE,
        [TextExample("a b", "c", "entailment", "0"), TextExample("d", "e f", "not_entailment", "1")],
    ),
    "wnli": (
        "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n1\tc\td\t0\n",
        [TextExample("a", "b", "entailment", "0"), TextExample("c", "d", "not_entailment", "1")],
    ),
}


def write(folder, **files):
    """Writes `train="..."` as `train.tsv`, byte for byte."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.tsv").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def mnli_rows(*rows, annotators):
    """Rows of premise, hypothesis and gold label; every annotator says "neutral"."""
    header = "\t".join([MNLI_TEXTS, *(f"label{n + 1}" for n in range(annotators)), "gold_label"])
    lines = [
        "\t".join([str(n), *["x"] * 7, premise, hypothesis, *["neutral"] * annotators, gold])
        for n, (premise, hypothesis, gold) in enumerate(rows)
    ]
    return "\n".join([header, *lines]) + "\n"


def message(call, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("cola", ("unacceptable", "acceptable")),
        ("sst2", ("negative", "positive")),
        ("mrpc", ("not_equivalent", "equivalent")),
        ("qqp", ("not_duplicate", "duplicate")),
        ("stsb", ()),
        ("mnli", ("entailment", "neutral", "contradiction")),
        ("qnli", ("entailment", "not_entailment")),
        ("rte", ("entailment", "not_entailment")),
        ("wnli", ("not_entailment", "entailment")),
    ],
)
def test_label_ids_are_those_of_the_hub(name, labels):
    assert GLUE_TASKS[name].labels == labels


def test_reported_metrics():
    special = {name: task.metric for name, task in GLUE_TASKS.items() if task.metric != "accuracy"}
    assert special == {
        "cola": "matthews_correlation", "mrpc": "f1", "qqp": "f1", "stsb": "pearson_spearman",
    }  # fmt: skip
    assert len(GLUE_TASKS) == 9


def test_spellings_of_task_names():
    official = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI"]
    assert {glue_task_name(name) for name in official} == set(GLUE_TASKS)
    assert all(GLUE_TASKS[glue_task_name(name)].folder == name for name in official)
    assert [glue_task_name(name) for name in ("sts-b", "SST2", "sst_2")] == ["stsb", "sst2", "sst2"]
    assert glue_task_name("ncbi-disease") is None
    assert "expected one of cola, mnli" in message(load_glue, "imdb", ".")


@pytest.mark.parametrize("name", LAYOUTS)
def test_official_layouts(name, tmp_path):
    content, examples = LAYOUTS[name]
    write(tmp_path / GLUE_TASKS[name].folder, train=content, dev=content)
    task = load_glue(name, tmp_path)
    assert task.splits == {"train": examples, "validation": examples}
    assert (task.name, task.labels, task.notes) == (name, GLUE_TASKS[name].labels, ())
    assert task.problem == ("regression" if name == "stsb" else "single-label")
    assert task.reported_split == "validation"


@pytest.mark.parametrize("name", LAYOUTS)
def test_crlf_and_no_line_end_after_the_last_row(name, tmp_path):
    content, examples = LAYOUTS[name]
    changed = content.replace("\n", "\r\n")
    write(tmp_path, train=changed, dev=changed.removesuffix("\r\n"))
    assert load_glue(name, tmp_path).splits == {"train": examples, "validation": examples}


def test_quoting_is_off(tmp_path):
    content = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\t" he said\tb\n0\t3\t4\tc\t" she\n'
    # The trap is there: with quoting, as csv has it by default, both rows run together.
    assert len(list(csv.reader(content.splitlines(), delimiter="\t"))) == 2
    write(tmp_path, train=content, dev=content)
    train = load_glue("mrpc", tmp_path).splits["train"]
    assert [(example.text, example.pair) for example in train] == [('" he said', "b"), ("c", '" she')]


def test_only_lf_ends_a_row(tmp_path):
    content = "sentence\tlabel\na\u2028b\x85c\t1\n"
    write(tmp_path, train=content, dev=content)
    assert [example.text for example in load_glue("sst2", tmp_path).splits["train"]] == ["a\u2028b\x85c"]


def test_mnli_columns_are_found_by_name(tmp_path):
    rows = [("a", "b", "entailment"), ("c", "d", "contradiction")]
    examples = [TextExample("a", "b", "entailment", "0"), TextExample("c", "d", "contradiction", "1")]
    train, dev = mnli_rows(*rows, annotators=1), mnli_rows(*rows, annotators=5)
    assert (len(train.split("\n")[0].split("\t")), len(dev.split("\n")[0].split("\t"))) == (12, 16)
    write(tmp_path / "MNLI", train=train, dev_matched=dev, dev_mismatched=dev)
    task = load_glue("mnli", tmp_path)
    assert task.splits == dict.fromkeys(["train", "validation", "validation_mismatched"], examples)
    assert task.notes == ()


def test_mnli_without_consensus_or_mismatched(tmp_path):
    rows = [("a", "b", "-"), ("c", "d", "neutral"), ("e", "f", "-")]
    write(tmp_path, train=mnli_rows(rows[1], annotators=1), dev_matched=mnli_rows(*rows, annotators=5))
    task = load_glue("mnli", tmp_path)
    assert task.splits["validation"] == [TextExample("c", "d", "neutral", "1")]
    assert task.notes == (
        "dev_matched.tsv: left out 2 rows without an agreed label",
        "no mismatched validation split (dev_mismatched.tsv): MNLI-mm is not reported",
    )


def test_mnli_takes_a_plain_dev_file_and_says_so(tmp_path):
    rows = mnli_rows(("a", "b", "neutral"), annotators=1)
    write(tmp_path, train=rows, dev=rows)
    task = load_glue("mnli", tmp_path)
    assert len(task.splits["validation"]) == 1
    assert "validation: dev.tsv, as there is no dev_matched.tsv" in task.notes
    write(tmp_path, dev_matched=mnli_rows(("m", "n", "neutral"), annotators=5))
    assert load_glue("mnli", tmp_path).splits["validation"][0].text == "m"


@pytest.mark.parametrize(
    ("name", "test", "examples"),
    [
        ("cola", "index\tsentence\n0\tShe ran.\n1\tHe ran.\n", [("She ran.", None), ("He ran.", None)]),
        ("sst2", "index\tsentence\n0\tso good\n1\tso bad\n", [("so good", None), ("so bad", None)]),
        (
            "mrpc", "\ufeffindex\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t5\t6\ta\tb\n1\t7\t8\tc\td\n",
            [("a", "b"), ("c", "d")],
        ),
        ("qqp", "id\tquestion1\tquestion2\n0\ta?\tb?\n1\tc?\td?\n", [("a?", "b?"), ("c?", "d?")]),
        ("rte", "index\tsentence1\tsentence2\n0\ta\tb\n1\tc\td\n", [("a", "b"), ("c", "d")]),
    ],
)  # fmt: skip
def test_test_splits_have_ids_and_no_labels(name, test, examples, tmp_path):
    content = LAYOUTS[name][0]
    write(tmp_path, train=content, dev=content, test=test)
    task = load_glue(name, tmp_path)
    expected = [TextExample(text, pair, None, str(n)) for n, (text, pair) in enumerate(examples)]
    assert task.splits["test"] == expected
    assert task.reported_split == "validation"


@pytest.mark.parametrize("place", ["MNLI", "diagnostic"])
def test_mnli_test_and_diagnostic_splits(place, tmp_path):
    rows = mnli_rows(("a", "b", "neutral"), annotators=1)
    texts = f"{MNLI_TEXTS}\n0{chr(9)}{chr(9).join('x' * 7)}\tp\th\n"
    write(
        tmp_path / "MNLI",
        train=rows, dev_matched=rows, dev_mismatched=rows, test_matched=texts, test_mismatched=texts,
    )  # fmt: skip
    write(tmp_path / place, diagnostic="index\tsentence1\tsentence2\n0\tcats\tanimals\n")
    task = load_glue("mnli", tmp_path)
    assert task.splits["test"] == task.splits["test_mismatched"] == [TextExample("p", "h", None, "0")]
    assert task.splits["diagnostic"] == [TextExample("cats", "animals", None, "0")]


def test_folders_are_found(tmp_path, monkeypatch):
    for parent, folder in (("a", "RTE"), ("b", "rte"), ("c", "anything")):
        write(tmp_path / parent / folder, train=RTE, dev=RTE)
    (tmp_path / "a" / "CoLA").mkdir()
    for data in ("a", "a/RTE", "b", "c/anything"):
        assert len(load_glue("rte", str(tmp_path / data)).splits["train"]) == 2
    monkeypatch.chdir(tmp_path / "c" / "anything")
    assert len(load_glue("RTE", ".").splits["train"]) == 2


def test_what_is_missing_is_named(tmp_path):
    assert "nowhere does not exist" in message(load_glue, "rte", tmp_path / "nowhere")
    file = write(tmp_path, stray=RTE) / "stray.tsv"
    assert "stray.tsv is a file" in message(load_glue, "rte", file)
    text = message(load_glue, "rte", tmp_path)
    assert "neither a directory RTE nor the files of rte (train.tsv, dev.tsv); there is: stray.tsv" in text
    folder = write(tmp_path / "RTE", dev=RTE)
    text = message(load_glue, "rte", tmp_path)
    assert text == f"{folder} has no train.tsv, which rte needs; there is: dev.tsv"
    write(folder, train=RTE)
    (folder / "dev.tsv").unlink()
    assert "has no dev.tsv, which rte needs; there is: train.tsv" in message(load_glue, "rte", folder)
    write(tmp_path / "MNLI", train=RTE)
    assert "has no dev_matched.tsv or dev.tsv, which mnli" in message(load_glue, "mnli", tmp_path)
    (tmp_path / "WNLI").mkdir()
    assert "WNLI has no train.tsv, which wnli needs; there is: nothing" in message(
        load_glue, "wnli", tmp_path
    )


def test_max_train_rows(tmp_path):
    write(tmp_path, train=RTE + "2\tg\th\tentailment\n", dev=RTE)
    whole = load_glue("rte", tmp_path)
    task = first_rows(whole, 2)
    assert [example.id for example in task.splits["train"]] == ["0", "1"]
    assert task.notes == ("train: the first 2 of 3 rows",)
    assert first_rows(whole, 3) == whole and whole.notes == ()
    assert "max_train_rows is 0" in message(first_rows, whole, 0)


BAD_ROWS = [
    ("rte", "2\tonly\ttwo", "train.tsv:4: expected 4 columns split at TAB, found 3"),
    ("rte", "2\ta\tstray tab\tb\tentailment", "train.tsv:4: expected 4 columns split at TAB, found 5"),
    ("rte", "2\ta\tb\tneutral", ":4: unknown label 'neutral'; expected one of entailment, not_entailment"),
    ("rte", "2\ta\tb\t", ":4: unknown label ''; expected one of"),
    ("rte", "2\ta\t \tentailment", ":4: 'sentence2' is empty"),
    ("cola", "x\t2\t\tHe ran.", "train.tsv:3: unknown label '2'; expected one of 0, 1"),
    ("cola", "x\t1\tHe ran.", ":3: expected 4 columns split at TAB, found 3"),
    ("sst2", " \t1", ":4: 'sentence' is empty"),
    *(
        ("stsb", f"2\tg\tf\ty\to\tn\tn\ta\tb\t{score}", f":4: score '{score}'; expected a number from 0 to 5")
        for score in ("high", "", "nan", "5.01", "-0.1", "inf")
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "expected"), BAD_ROWS)
def test_bad_rows_are_named(name, row, expected, tmp_path):
    content = LAYOUTS[name][0]
    write(tmp_path, train=content + row + "\n", dev=content)
    assert expected in message(load_glue, name, tmp_path)


def test_mnli_refuses_a_label_of_no_class(tmp_path):
    rows = mnli_rows(("a", "b", "maybe"), annotators=1)
    write(tmp_path, train=rows, dev=rows)
    text = message(load_glue, "mnli", tmp_path)
    assert text.endswith(":2: unknown label 'maybe'; expected one of entailment, neutral, contradiction")


def test_empty_columns_after_the_last_are_let_be(tmp_path):
    write(tmp_path, train=RTE.replace("entailment\n", "entailment\t\n"), dev=RTE)
    assert load_glue("rte", tmp_path).splits["train"] == LAYOUTS["rte"][1]


def test_known_defects_of_qqp_are_counted(tmp_path):
    content = LAYOUTS["qqp"][0]
    broken = '"\tWas he?\t0\n' + "8\t1\t2\t\twho?\t0\n" + "8\t1\t2\twho?\t\t1\n"
    # In a test split each index must be predicted, so an empty question stays.
    write(
        tmp_path, train=content + broken, dev=content, test="id\tquestion1\tquestion2\n0\t\tb?\n1\tc?\td?\n"
    )
    task = load_glue("qqp", tmp_path)
    assert task.splits["train"] == LAYOUTS["qqp"][1]
    assert task.notes == (
        "train.tsv: left out 2 rows with an empty question",
        "train.tsv: left out 1 row with too few or too many columns",
    )
    assert task.splits["test"][0] == TextExample("", "b?", None, "0")
    write(tmp_path, test="id\tquestion1\tquestion2\n0\tb?\n")
    assert "test.tsv:2: expected 3 columns split at TAB, found 2" in message(load_glue, "qqp", tmp_path)


def test_rows_are_needed(tmp_path):
    header = RTE.split("\n")[0] + "\n"
    write(tmp_path, train=header, dev=RTE)
    assert message(load_glue, "rte", tmp_path) == "rte: train.tsv has no labelled row: expected at least one"
    write(tmp_path, train="")
    assert "train.tsv is empty: expected a header line" in message(load_glue, "rte", tmp_path)
    write(tmp_path, dev=LAYOUTS["cola"][0])
    assert "cola: train.tsv has no labelled row" in message(load_glue, "cola", tmp_path)


def test_not_utf8(tmp_path):
    write(tmp_path, train=RTE.encode() + "2\tcafé\tb\tentailment\n".encode("latin-1"), dev=RTE)
    assert "train.tsv:4: not UTF-8" in message(load_glue, "rte", tmp_path)
    write(tmp_path, train=RTE.encode("utf-16"))
    assert "train.tsv: expected UTF-8 text, found UTF-16 text" in message(load_glue, "rte", tmp_path)


def test_missing_columns_are_listed(tmp_path):
    write(tmp_path, train=RTE.replace("sentence2", "hypothesis", 1), dev=RTE)
    text = message(load_glue, "rte", tmp_path)
    assert "has no column sentence2; the columns are: index, sentence1, hypothesis, label" in text
    write(tmp_path, train=RTE.replace("label", "gold", 1))
    assert "has no column label; the columns are: index, sentence1" in message(load_glue, "rte", tmp_path)


# The hub


def hub_split(rows, names=None):
    label = datasets.ClassLabel(names=names) if names else datasets.Value("float32")
    features = {key: datasets.Value("int32" if key == "idx" else "string") for key in rows[0]}
    return datasets.Dataset.from_list(rows, features=datasets.Features({**features, "label": label}))


RTE_HUB = [
    {"sentence1": "a", "sentence2": "b", "label": 0, "idx": 0},
    {"sentence1": "c", "sentence2": "d", "label": 1, "idx": 1},
]


def test_hub_rows_of_a_classification_task(monkeypatch):
    names = ["entailment", "not_entailment"]
    rows = datasets.DatasetDict(
        train=hub_split(RTE_HUB, names),
        validation=hub_split(RTE_HUB[1:], names),
        test=hub_split([{**RTE_HUB[0], "label": -1}], names),
    )
    calls = []
    monkeypatch.setattr("datasets.load_dataset", lambda *args: calls.append(args) or rows)
    for data in (None, "hub"):
        task = first_rows(load_glue("RTE", data), 1)
        assert task.splits == {
            "train": [TextExample("a", "b", "entailment", "0")],
            "validation": [TextExample("c", "d", "not_entailment", "1")],
            "test": [TextExample("a", "b", None, "0")],
        }
        assert task.notes == ("train: the first 1 of 2 rows",)
    assert calls == [("nyu-mll/glue", "rte")] * 2


def test_hub_labels_go_by_name_not_by_id():
    names = ["not_entailment", "entailment"]
    task = load_glue("rte", dict.fromkeys(["train", "validation"], hub_split(RTE_HUB, names)))
    assert [example.label for example in task.splits["train"]] == ["not_entailment", "entailment"]
    assert task.labels == ("entailment", "not_entailment")
    other = hub_split(RTE_HUB, ["yes", "no"])
    text = message(load_glue, "rte", {"train": other, "validation": other})
    assert "train, row 1: unknown label 'yes'; expected one of 0, 1, entailment, not_entailment" in text


def test_hub_scores_lose_their_single_precision():
    rows = hub_split([{"sentence1": "a", "sentence2": "b", "label": 3.8, "idx": 0}])
    assert rows[0]["label"] != 3.8  # the trap is there
    task = load_glue("stsb", {"train": rows, "validation": rows, "test": rows})
    assert task.splits["train"] == [TextExample("a", "b", 3.8, "0")]
    assert task.splits["test"] == [TextExample("a", "b", None, "0")]
    for score in (None, -1.0):
        wrong = {"train": [{"sentence1": "a", "sentence2": "b", "label": score}], "validation": rows}
        assert "expected a number from 0 to 5" in message(load_glue, "stsb", wrong)


def test_hub_mnli():
    row = {"premise": "a", "hypothesis": "b", "label": 2, "idx": 4}
    names = ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched")
    task = load_glue("mnli", {name: [row, {**row, "label": -1}] for name in names})
    assert task.splits["validation_mismatched"] == [TextExample("a", "b", "contradiction", "4")]
    assert task.splits["test_mismatched"] == [TextExample("a", "b", None, "4")] * 2
    assert "validation_matched: left out 1 row without an agreed label" in task.notes


def test_hub_rows_that_are_wrong():
    text = message(load_glue, "rte", {"train": RTE_HUB, "other": RTE_HUB})
    assert "has no split validation; the splits are: train, other" in text
    text = message(load_glue, "qnli", {"train": RTE_HUB, "validation": RTE_HUB})
    assert "train, row 1: no column question, sentence; the columns are: sentence1, sentence2" in text
    text = message(load_glue, "rte", {"train": [{**RTE_HUB[0], "label": -1}], "validation": RTE_HUB})
    assert "unknown label '-1'; expected one of 0, 1" in text
    text = message(load_glue, "rte", {"train": [{**RTE_HUB[0], "sentence1": None}], "validation": RTE_HUB})
    assert "'sentence1' is empty" in text


def test_hub_out_of_reach(monkeypatch):
    def load_dataset(*args):
        raise ConnectionError("no route\nsecond line")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    text = message(load_glue, "STS-B")
    assert text.startswith("could not get nyu-mll/glue (stsb) from the hub: check the network, or give")
    assert "STS-B/train.tsv" in text
    assert text.endswith("(ConnectionError: no route)")


# Rows in memory


def test_rows_in_memory():
    rows = [{"sentence1": "a", "sentence2": "b", "label": "entailment"}, RTE_HUB[1]]
    task = load_glue("rte", {"train": rows, "dev": rows[1:], "test": [{"sentence1": "a", "sentence2": "b"}]})
    assert task.splits == {
        "train": [TextExample("a", "b", "entailment", None), TextExample("c", "d", "not_entailment", "1")],
        "validation": [TextExample("c", "d", "not_entailment", "1")],
        "test": [TextExample("a", "b", None, None)],
    }
    names = ["not_entailment", "entailment"]
    swapped = datasets.DatasetDict(train=hub_split(RTE_HUB, names), validation=hub_split(RTE_HUB, names))
    assert [row.label for row in load_glue("rte", swapped).splits["train"]] == [
        "not_entailment",
        "entailment",
    ]


def test_tuples_in_memory_have_the_columns_of_the_task():
    rows = {"train": [("a", 1), ("b", 0)], "dev": [("c", "acceptable")], "test": [("d", None)]}
    task = load_glue("cola", rows)
    assert [(row.text, row.label) for row in task.splits["train"]] == [
        ("a", "acceptable"),
        ("b", "unacceptable"),
    ]
    assert [row.label for split in ("validation", "test") for row in task.splits[split]] == [
        "acceptable",
        None,
    ]
    pair = [("a", "b", "neutral")]
    (row,) = load_glue("mnli", {"train": pair, "validation_matched": pair}).splits["train"]
    assert (row.text, row.pair, row.label) == ("a", "b", "neutral")


def test_rows_in_memory_without_an_agreed_label():
    label = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
    row = {"premise": "a", "hypothesis": "b"}
    split = datasets.Dataset.from_list(
        [{**row, "label": 2}, {**row, "label": -1}],
        features=datasets.Features(
            premise=datasets.Value("string"), hypothesis=datasets.Value("string"), label=label
        ),
    )
    task = load_glue("mnli", {"train": split, "validation_matched": split})
    assert [row.label for row in task.splits["validation"]] == ["contradiction"]
    assert "validation_matched: left out 1 row without an agreed label" in task.notes


def test_rows_in_memory_that_are_wrong():
    text = message(load_glue, "rte", RTE_HUB)
    assert text == "rows in memory (rte) has no split validation; the splits are: train"
    text = message(load_glue, "rte", {"train": [*RTE_HUB, {**RTE_HUB[0], "label": "yes"}], "dev": RTE_HUB})
    assert text.startswith("rows in memory (rte), train, row 3: unknown label 'yes'; expected one of 0, 1, ")
    text = message(load_glue, "rte", {"train": RTE_HUB, "dev": [("a", "b", "entailment"), 3]})
    assert text.startswith("rows in memory (rte), dev, row 2: expected a dictionary")
    text = message(load_glue, "rte", {"train": RTE_HUB, "dev": RTE_HUB, "validation": RTE_HUB})
    assert "both dev and validation could be the validation split" in text
