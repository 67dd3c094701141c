"""The verbs about labelled tasks, from files to figures, and what each says about bad input."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys

import pytest
from conftest import write_tiny_task
from minialbert_runtime.lines import six_digits

import minialbert
from minialbert.cli.main import main
from minialbert.errors import UserError
from minialbert.tasks.predict import Predictor

QUICK = ("--set", "tuning.batch_size=8", "--set", "tuning.learning_rate=3e-3", "--set", "tuning.dropout=0")
ONE_STEP = ("--set", "task.max_train_rows=8", "--set", "tuning.epochs=1")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_lines(text):
    return [json.loads(line) for line in text.splitlines()]


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


# Entities of one's own, in three commands


def test_tune_evaluate_and_predict_entities(call, tiny_student_dir, tmp_path):
    data = write_tiny_task(tmp_path / "history", "ner")
    run, scores = tmp_path / "run", tmp_path / "scores"
    status, out, _ = call(
        "finetune", "--model", tiny_student_dir, "--task", "ner", "--data", data, "--output", run, *QUICK,
        "--set", "tuning.epochs=6",
    )  # fmt: skip
    assert status == 0
    for shown in ("history, test", "history, validation", "entity F1", "Person", "Place", str(run / "model")):
        assert shown in out
    tuned = json.loads((run / "result.json").read_text())
    assert tuned["score"] > 0.9

    status, out, _ = call("evaluate", "--model", run / "model", "--data", data, "--output", scores)
    assert status == 0
    assert "history, test" in out
    assert f"{tuned['score']:.4f}" in out
    figures = tuned["metrics"]["test"]
    for name, shown, twin in (
        ("entity_f1_strict", "F1 strict", "f1"),
        ("span_recall", "span recall", "recall"),
    ):
        assert (shown in out) == (figures[name] != figures[f"entity_{twin}"])  # the same figure is shown once
    assert str(scores) in out
    assert json.loads((scores / "result.json").read_text())["metrics"]["test"] == tuned["metrics"]["test"]
    assert len(read_lines((scores / "predictions.jsonl").read_text())) == 32

    texts = ["The king of it, and the RIVER!", "by one to the of"]
    status, out, _ = call("predict", "--model", run / "model", *texts)
    assert status == 0
    first, second = read_lines(out)
    assert [first["text"], second["text"]] == texts
    found = [(entity["text"], entity["label"]) for entity in first["entities"]]
    assert ("king", "Person") in found
    assert ("RIVER", "Place") in found
    for entity in first["entities"]:
        assert texts[0][entity["start"] : entity["end"]] == entity["text"]
    assert second["entities"] == []


# finetune


def test_finetune_adapters_says_how_much_is_trained(call, tiny_student_dir, tuned, tmp_path, caplog):
    data = tuned("classification").data
    with caplog.at_level("INFO", "minialbert"):
        status, _, _ = call(
            "finetune", "--model", tiny_student_dir, "--task", "classification", "--data", data, "--adapters",
            "--output", tmp_path / "run", *ONE_STEP,
        )  # fmt: skip
    assert status == 0
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    trained, total = (record["model"][key] for key in ("trainable_parameters", "parameters"))
    assert trained < total / 2
    assert f"{trained:,} of {total:,} parameters are trained" in caplog.text
    assert entries(tmp_path / "run" / "adapters")


@pytest.fixture
def words(tiny_student_dir, tuned, tmp_path):
    start = ("finetune", "--model", tiny_student_dir, "--task", "ner", "--data", tuned("ner").data)
    return (*start, "--output", tmp_path / "run", *ONE_STEP)


def test_a_run_killed_before_its_page_gets_it_by_resume(call, refuse, words, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert call(*words)[0] == 0
    page, record = (run / "report.html").read_text(), (run / "result.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(
            "minialbert.tasks.finetune.plan_finetuning", None
        )  # nothing is read, and nothing said of it
        assert "nothing is left to resume" in refuse(*words, "--resume")
        assert "--resume and --overwrite exclude each other" in refuse(*words, "--resume", "--overwrite")
    (run / "report.html").rename(run / ".report.html.partial")
    assert "nothing is left to resume" in refuse(*words, "--resume", "--json")  # it leaves no page
    assert "another recipe; different: seed: 7" in refuse(*words, "--resume", "--seed", 7)
    (run / ".report.html.partial").write_text(page[:100])
    status, out, _ = call(*words, "--resume")
    assert status == 0
    assert "holds a finished run" in out and f"page: {run / 'report.html'}" in out
    assert (run / "report.html").read_text() == page and (run / "result.json").read_bytes() == record
    assert not (run / ".report.html.partial").exists()


def test_a_run_in_place_of_another_does_not_keep_its_page(call, words, tmp_path):
    run = tmp_path / "run"
    assert call(*words)[0] == 0
    assert (run / "report.html").exists()
    assert call(*words, "--overwrite", "--json")[0] == 0
    assert (run / "result.json").exists() and not (run / "report.html").exists()


def test_json_is_the_record_and_nothing_else(call, tiny_student_dir, tuned, tmp_path):
    made = tuned("regression")
    status, out, _ = call(
        "finetune", "--model", tiny_student_dir, "--task", "regression", "--data", made.data, "--json",
        "--output", tmp_path / "run", *ONE_STEP,
    )  # fmt: skip
    assert status == 0
    assert json.loads(out) == json.loads((tmp_path / "run" / "result.json").read_text())
    status, out, _ = call("evaluate", "--model", made.model, "--data", made.data, "--json")
    assert status == 0
    assert json.loads(out)["score"] == made.record["score"]


def test_a_recipe_of_ones_own(call, tiny_student_dir, tuned, tmp_path):
    mine = tmp_path / "mine.yaml"
    assert call("recipes", "cp", "finetune/default", mine)[0] == 0
    mine.write_text(mine.read_text().replace("epochs: 3", "epochs: 0.05"))
    status, out, _ = call("recipes", "show", mine)
    assert status == 0
    assert "epochs: 0.05" in out
    assert "learning_rate:" in out
    status, out, _ = call("recipes", "show", "finetune/default")
    assert status == 0
    assert "epochs: 3.0" in out
    status, out, _ = call(
        "finetune", "--model", tiny_student_dir, "--task", "classification", "--recipe", mine, "--json",
        "--data", tuned("classification").data, "--output", tmp_path / "run",
    )  # fmt: skip
    assert status == 0
    assert json.loads(out)["recipe"]["tuning"]["epochs"] == 0.05


@pytest.mark.parametrize("option", [("--jobs", 2), ("--ray", "auto"), ("--keep-models", "all")])
def test_options_of_grids_need_a_grid(option, refuse, tiny_student_dir, tuned, tmp_path):
    line = refuse(
        "finetune", "--model", tiny_student_dir, "--task", "classification", *option,
        "--data", tuned("classification").data, "--output", tmp_path / "run",
    )  # fmt: skip
    assert "give --grid too" in line
    assert not (tmp_path / "run").exists()


def test_a_grid_is_not_both_resumed_and_replaced(refuse, tmp_path):
    (tmp_path / "cells").mkdir()
    assert "give one of them at most" in refuse(
        "finetune", "--grid", "--resume", "--overwrite", "--output", tmp_path
    )
    assert (tmp_path / "cells").is_dir()


def test_an_earlier_run_is_not_touched(refuse, tiny_student_dir, tuned, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    line = refuse(
        "finetune", "--model", tiny_student_dir, "--task", "classification",
        "--data", tuned("classification").data, "--output", run,
    )  # fmt: skip
    assert "is not empty" in line
    assert entries(run) == ["notes.txt"]


# Bad input: one line each, and no directory


@pytest.fixture
def finetune(refuse, tiny_student_dir, tmp_path):
    """Tune as it must be refused; returns the line."""

    def command(task, data, *arguments):
        line = refuse(
            "finetune", "--model", tiny_student_dir, "--task", task, "--data", data, *arguments,
            "--output", tmp_path / "run",
        )  # fmt: skip
        assert not (tmp_path / "run").exists()
        return line

    return command


@pytest.fixture
def people(tmp_path):
    """Tagged sentences of two words or more, in three small files."""
    folder = tmp_path / "people"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        (folder / f"{split}.tsv").write_text("the\tO\nking\tB-Person\n\nto\tO\nit\tO\n")
    return folder


@pytest.fixture
def moods(tmp_path):
    """Labelled texts in two small csv files."""
    folder = tmp_path / "moods"
    folder.mkdir()
    for split in ("train", "dev"):
        (folder / f"{split}.csv").write_text("text,label\nthe king,glad\nthe river,sad\n")
    return folder


def test_a_directory_that_lacks_a_file(finetune, people, moods, tmp_path):
    (people / "train.tsv").unlink()
    line = finetune("ner", people)
    assert f"{people}: no train split; expected train with one of .csv" in line
    assert "found dev.tsv, test.tsv" in line
    (moods / "train.csv").unlink()
    assert f"{moods}: no train split" in finetune("classification", moods)
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "train.tsv").write_text("x\t1\t\tthe king\n")
    line = finetune("cola", tmp_path / "CoLA")
    assert "has no dev.tsv, which cola needs; there is: train.tsv" in line


def test_a_row_with_too_few_columns(finetune, people, moods, tmp_path):
    (people / "dev.tsv").write_text("the\tO\nking\n")
    line = finetune("ner", people)
    assert f"{people / 'dev.tsv'}:2: expected at least 2 columns" in line
    assert "found 1: 'king'" in line
    (moods / "train.csv").write_text("text,label\nthe king,glad\nthe river\n")
    line = finetune("classification", moods)
    assert f"{moods / 'train.csv'}:3: expected 2 columns as in the header, found 1" in line
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "dev.tsv").write_text("x\t1\t\tthe king\nx\t1\tthe river\n")
    (tmp_path / "CoLA" / "train.tsv").write_text("x\t1\t\tthe king\nx\t0\t\tthe river\n")
    assert "dev.tsv:2: expected 4 columns split at TAB, found 3" in finetune("cola", tmp_path / "CoLA")


def test_an_unknown_label_in_dev(finetune, moods, tmp_path):
    (moods / "dev.csv").write_text("text,label\nthe king,calm\nthe river,angry\n")
    line = finetune("classification", moods)
    assert f"{moods / 'dev.csv'}:2: the label 'calm'" in line
    assert "is not among those of the train split: 'glad', 'sad'" in line
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "train.tsv").write_text("sentence\tlabel\nthe king\t1\n")
    (tmp_path / "SST-2" / "dev.tsv").write_text("sentence\tlabel\nthe king\t2\n")
    assert "dev.tsv:2: unknown label '2'; expected one of 0, 1" in finetune("sst2", tmp_path / "SST-2")


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("Person", "expected a tag O, B-TYPE or I-TYPE, found 'Person'"),
        ("B-", "expected a tag O, B-TYPE or I-TYPE, found 'B-'"),
        ("S-", "expected a tag O, B-TYPE or I-TYPE, found 'S-'"),
    ],
)
def test_a_tag_outside_bio(tag, message, finetune, people):
    (people / "train.tsv").write_text(f"the\tO\n\nking\t{tag}\n")
    line = finetune("ner", people)
    assert f"{people / 'train.tsv'}:3: " in line
    assert message in line


def test_an_inside_tag_after_nothing_is_repaired_and_counted(
    call, tiny_student_dir, people, tmp_path, caplog
):
    (people / "train.tsv").write_text("the\tO\nking\tI-Person\n\nking\tI-Person\nking\tI-Person\n")
    with caplog.at_level("INFO", "minialbert"):
        status, _, _ = call(
            "finetune", "--model", tiny_student_dir, "--task", "ner", "--data", people,
            "--output", tmp_path / "run", "--set", "tuning.epochs=1",
        )  # fmt: skip
    assert status == 0
    note = "train: 2 I- tags that followed nothing were read as B-"
    assert note in caplog.text
    assert note in json.loads((tmp_path / "run" / "result.json").read_text())["notes"]


def test_an_inside_tag_after_nothing_is_refused_on_request(finetune, people):
    (people / "train.tsv").write_text("the\tO\nking\tI-Person\n")
    line = finetune("ner", people, "--set", "task.iob=refuse")
    assert f"{people / 'train.tsv'}:2: 'I-Person' follows no entity: expected 'B-Person'" in line


def test_a_sentence_without_words(finetune, people, tmp_path):
    (people / "train.tsv").write_text("the\tO\n \tB-Person\n")
    assert f"{people / 'train.tsv'}:2: the word in column 1 is empty" in finetune("ner", people)
    table = tmp_path / "table"
    table.mkdir()
    rows = [{"tokens": ["the", "king"], "tags": ["O", "B-Person"]}, {"tokens": [], "tags": []}]
    write_rows(table / "train.jsonl", rows)
    line = finetune("ner", table)
    assert f"{table / 'train.jsonl'}:2: there are no words in column 'tokens'" in line


def test_a_missing_column_lists_those_that_are_there(finetune, moods):
    (moods / "train.csv").write_text("comment,label\nthe king,glad\nthe river,sad\n")
    line = finetune("classification", moods)
    assert str(moods / "train.csv") in line
    assert "no text column" in line
    assert "found the columns 'comment', 'label'" in line
    line = finetune("classification", moods, "--set", "task.text=remark")
    assert "expected 'remark', found the columns 'comment', 'label'" in line


def test_a_score_that_is_no_number(finetune, moods):
    (moods / "train.csv").write_text("text,score\nthe king,1.5\nthe river,high\n")
    (moods / "dev.csv").write_text("text,score\nthe king,1.5\n")
    line = finetune("regression", moods)
    assert f"{moods / 'train.csv'}:3: expected a finite number as score, found 'high'" in line


def test_no_training_rows(finetune, people, moods, tmp_path):
    (people / "train.tsv").write_text("")
    assert f"{people / 'train.tsv'} has 0 sentences" in finetune("ner", people)
    for text in ("", "text,label\n"):
        (moods / "train.csv").write_text(text)
        assert str(moods / "train.csv") in finetune("classification", moods)
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "train.tsv").write_text("sentence\tlabel\n")
    (tmp_path / "SST-2" / "dev.tsv").write_text("sentence\tlabel\nthe king\t1\n")
    assert "train.tsv has no labelled row" in finetune("sst2", tmp_path / "SST-2")


# evaluate


def test_evaluating_what_does_not_fit(refuse, tuned, moods, people, tiny_student_dir, tmp_path):
    made, scores = tuned("classification"), tmp_path / "scores"

    def evaluate(model, data, *arguments):
        line = refuse("evaluate", "--model", model, "--data", data, "--output", scores, *arguments)
        assert not scores.exists()
        return line

    other = "train.csv:2: the label 'glad' is not among those of the model: 'with', 'without'"
    assert other in evaluate(made.model, moods)
    animals = people.with_name("animals")
    shutil.copytree(people, animals)
    for file in animals.iterdir():
        file.write_text(file.read_text().replace("Person", "Animal"))
    line = evaluate(tuned("ner").model, animals)
    assert "the label 'Animal' is not among those of the model: 'O', 'B-Person', 'I-Person'" in line
    assert "has no task head" in evaluate(tiny_student_dir, moods, "--task", "classification")
    assert "was tuned for a single-label task, ner is a token one" in evaluate(
        made.model, people, "--task", "ner"
    )
    assert "has no split 'tests': there are train, validation, test" in evaluate(
        made.model, made.data, "--split", "tests"
    )
    assert "nowhere" in evaluate(made.model, tmp_path / "nowhere")
    assert "unknown key; did you mean max_length?" in evaluate(
        made.model, made.data, "--set", "task.max_lengt=8"
    )
    assert "no unlabelled split" in evaluate(made.model, made.data, "--submission", tmp_path / "glue")
    assert not (tmp_path / "glue").exists()
    line = refuse("evaluate", "--model", made.model, "--data", made.data, "--output", made.run, "--overwrite")
    assert "is the record of another run (finetune)" in line


def test_evaluate_takes_options_and_shows_notes(call, tuned):
    made = tuned("classification")
    status, out, _ = call(
        "evaluate", "--model", made.model, "--data", made.data, "--split", "validation", "--batch-size", 5,
        "--set", "task.max_length=8", "--set", "task.overlap=0", "--set", "task.long_texts=cut",
    )  # fmt: skip
    assert status == 0
    assert "of 24 texts were cut at 8 tokens" in out
    assert "my-classification, validation" in out
    # Inputs are otherwise as long as in tuning.
    status, out, _ = call("evaluate", "--model", made.model, "--data", made.data, "--set", "task.label=label")
    assert status == 0
    assert "cut" not in out
    assert f"{made.record['score']:.4f}" in out


# predict


@pytest.fixture
def predict(call, tuned):
    """Predict with a tuned classifier; returns the results."""

    def command(*arguments):
        status, out, err = call("predict", "--model", tuned("classification").model, *arguments)
        assert status == 0, err
        return read_lines(out)

    return command


@pytest.fixture
def said(tuned):
    """What the library says about texts."""

    def results(texts):
        predictor = Predictor.load(str(tuned("classification").model), precision="auto")
        return six_digits(list(predictor.predict(texts)))

    return results


TEXTS = ["the king of it", "by the river", "to", ""]


def test_predict_texts_files_and_standard_input(predict, said, tmp_path, monkeypatch):
    expected = said(TEXTS)
    assert {result["label"] for result in expected} == {"with", "without"}
    assert predict(*TEXTS[:3]) == said(TEXTS[:3])

    lines = "".join(f"{text}\n" for text in TEXTS)
    (tmp_path / "texts.txt").write_text(lines)
    assert predict("--input", tmp_path / "texts.txt") == expected

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert predict("--input", "-") == expected

    (tmp_path / "table.csv").write_text("id,text\n" + "".join(f"7,{text}\n" for text in TEXTS[:3]))
    assert predict("--input", tmp_path / "table.csv") == [{"id": "7"} | result for result in said(TEXTS[:3])]
    write_rows(tmp_path / "table.jsonl", [{"remark": text} for text in TEXTS])
    files = ("--input", tmp_path / "table.jsonl", "--input", tmp_path / "texts.txt")
    # Batches hold other texts together, so that the last digits may differ.
    both = predict(*files, "--column", "remark")
    assert [result["text"] for result in both] == TEXTS * 2
    assert [result["file"] for result in both] == [
        str(tmp_path / name) for name in ("table.jsonl", "texts.txt") for _ in TEXTS
    ]
    assert [result["label"] for result in both] == [result["label"] for result in expected] * 2


def test_predict_pairs(call, refuse, tuned, tmp_path):
    (tmp_path / "pairs.tsv").write_text("a\tb\nthe king\tto it\nthe river\tas it is\n")
    pairs = [("the king", "to it"), ("the river", "as it is")]
    columns = ("--input", tmp_path / "pairs.tsv", "--column", "a", "--pair-column", "b")
    single, of_pairs = tuned("classification").model, tmp_path / "model"
    told = refuse("predict", "--model", single, *columns)
    assert (
        "pairs.tsv:2: found a pair, but the model was tuned on single texts: leave the second text out; 2 of 2 rows"
        in told
    )
    shutil.copytree(single, of_pairs)
    task = json.loads((of_pairs / "task.json").read_text())
    (of_pairs / "task.json").write_text(json.dumps(task | {"pairs": True}))
    status, out, _ = call("predict", "--model", of_pairs, *columns)
    assert status == 0
    assert read_lines(out) == six_digits(list(Predictor.load(str(of_pairs), precision="auto").predict(pairs)))
    assert "text 1: found a single text, but the model was tuned on pairs" in refuse(
        "predict", "--model", of_pairs, "the king"
    )
    status, one, _ = call("predict", "--model", of_pairs, "the king", "--pair", "to it")
    assert (status, read_lines(one)) == (0, read_lines(out)[:1])
    # Columns with usual names are found, and need no option.
    (tmp_path / "usual.csv").write_text("id,Premise,hypothesis\n,the king,to it\n,the river,as it is\n")
    status, usual, _ = call("predict", "--model", of_pairs, "--input", tmp_path / "usual.csv")
    assert [{**line, "id": ""} for line in read_lines(out)] == read_lines(usual) and status == 0
    for given, message in (
        (
            columns[:2],
            "the model takes pairs of texts: --column and --pair-column name them; found the columns",
        ),
        (columns[:4], "--column and --pair-column name them; found the columns 'a', 'b'"),
        ((*columns[:4], "--pair-column", "c"), "no column 'c'; --pair-column names it; found the columns"),
        ((*columns, "--id-column", "c"), "no column 'c'; --id-column names it"),
        ((*columns, "--pair", "x"), "--pair is for texts on the command line"),
    ):
        assert message in refuse("predict", "--model", of_pairs, *given)


def test_predict_with_a_threshold(call, refuse, tuned):
    for threshold, labels in ((0, ["king", "river"]), (1, [])):
        status, out, _ = call(
            "predict", "--model", tuned("multi-label").model, "--threshold", threshold, "the king"
        )
        assert status == 0
        assert json.loads(out)["labels"] == labels
    _, out, _ = call("predict", "--model", tuned("ner").model, "--threshold", 1, "the king")
    assert json.loads(out)["entities"] == []
    _, out, _ = call(
        "predict", "--model", tuned("classification").model, "--threshold", 1, "--top-k", 1, "king"
    )
    assert json.loads(out)["label"] is None and len(json.loads(out)["scores"]) == 1
    assert "a regression model has no use for threshold" in refuse(
        "predict", "--model", tuned("regression").model, "--threshold", 0.5, "the king"
    )


def test_predict_to_a_file(call, refuse, said, tuned, tmp_path):
    output = tmp_path / "out" / "results.jsonl"
    output.parent.mkdir()
    usual = ("predict", "--model", tuned("classification").model, "--output", output)
    status, out, _ = call(*usual, *TEXTS[:2])
    assert (status, out) == (0, "")
    assert read_lines(output.read_text()) == said(TEXTS[:2])
    assert "results.jsonl exists: give --overwrite" in refuse(*usual, "to")
    assert len(output.read_text().splitlines()) == 2
    assert call(*usual, "--overwrite", "to")[0] == 0
    assert read_lines(output.read_text()) == said(["to"])
    assert entries(output.parent) == ["results.jsonl"]
    assert call(*usual[:-1], output.with_suffix(".csv"), "to")[0] == 0  # in the form that its name tells
    assert output.with_suffix(".csv").read_text().startswith('"id",')
    assert read_lines(call(*usual[:-1], "-", "to")[1]) == said(["to"])
    with pytest.raises(UserError, match="- is no name of a file: give one"):
        minialbert.render(said(["to"]), "-", format="jsonl")


def test_predict_never_replaces_what_it_reads(refuse, tuned, tmp_path):
    given, folder = tmp_path / "q.jsonl", tmp_path / "notes"
    given.write_text('{"text": "the king"}\n')
    (tmp_path / "link.jsonl").symlink_to(given)
    folder.mkdir()
    (folder / "a.txt").write_text("to")
    usual = ("predict", "--model", tuned("classification").model, "--overwrite", "--input")
    for output in (given, tmp_path / "notes" / ".." / "q.jsonl", tmp_path / "link.jsonl"):
        assert "q.jsonl): give another output" in refuse(*usual, given, "--output", output)
    assert "would replace what is read" in refuse(
        *usual, folder, "--documents", "--output", folder / "a.txt", "--format", "csv"
    )
    brat = ("--documents", "--format", "brat", "--output", folder)
    assert "would replace what is read" in refuse(*usual, folder / "a.txt", *brat)
    assert (given.read_text(), (folder / "a.txt").read_text()) == ('{"text": "the king"}\n', "to")


def test_a_refused_prediction_leaves_the_former_file_and_its_own_answers(refuse, tuned, tmp_path):
    output = tmp_path / "out" / "results.jsonl"
    output.parent.mkdir()
    (tmp_path / "texts.txt").write_bytes(b"the king\n" * 600 + b"\xff\n")  # past the first chunk
    usual = ("predict", "--model", tuned("classification").model, "--input", tmp_path / "texts.txt")
    partial = output.with_name(".results.jsonl.partial")
    told = refuse(*usual, "--output", output)
    assert "texts.txt:601: not UTF-8" in told
    assert told.endswith(f"the 600 lines before are in {partial}")
    assert [result["text"] for result in read_lines(partial.read_text())] == ["the king"] * 600
    assert entries(output.parent) == [partial.name]
    output.write_text("former")
    (tmp_path / "texts.txt").write_bytes(b"\xff\n")
    assert "answers" not in refuse(*usual, "--output", output, "--overwrite")
    assert output.read_text() == "former"
    assert entries(output.parent) == ["results.jsonl"]


def test_predict_for_people_and_programs(call, refuse, tuned, tmp_path, caplog):
    usual = ("predict", "--model", tuned("ner").model, "the king of it")
    status, out, _ = call(*usual, "--format", "table")
    assert status == 0 and out.startswith("the [king Person ")
    assert call(*usual, "--format", "csv")[1].splitlines()[0] == '"id","start","end","label","score","text"'
    assert json.loads(call(*usual, "--format", "json")[1])[0]["entities"][0]["text"] == "king"
    assert "<mark" in call(*usual, "--format", "html")[1]
    assert "brat takes a folder: give --output" in refuse(*usual, "--format", "brat")
    assert call(*usual, "--format", "brat", "--output", tmp_path / "brat")[0] == 0
    assert (tmp_path / "brat" / "text-1.ann").read_text() == "T1\tPerson 4 8\tking\n"
    assert "is not empty" in refuse(*usual, "--format", "brat", "--output", tmp_path / "brat")
    classes = ("predict", "--model", tuned("classification").model, "the king")
    assert "brat takes entities" in refuse(*classes, "--format", "brat", "--output", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_terminal_shows_entities_in_colour(call, tuned, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = call("predict", "--model", tuned("ner").model, "the king of it")[1]
    assert re.fullmatch(r"the \x1b\[[0-9;]+m\[king Person [0-9.]{1,5}\]\x1b\[0m of it\n", out)


def test_a_table_is_refused_before_the_first_prediction(refuse, tuned, tmp_path, capsys):
    write_rows(tmp_path / "rows.jsonl", [{"text": "the king"}] * 3 + [{"text": None}])
    line = refuse("predict", "--model", tuned("classification").model, "--input", tmp_path / "rows.jsonl")
    assert "rows.jsonl:4: expected a text in column 'text', found nothing" in line


def test_notes_in_files_are_documents(call, tuned, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "notes").mkdir()
    for name in ("a", "b"):
        (tmp_path / "notes" / f"{name}.txt").write_text("the\nking of it\n")
    usual = ("predict", "--model", tuned("ner").model, "--input", tmp_path / "notes")
    results = read_lines(call(*usual, "--documents")[1])
    assert [result["file"] for result in results] == [
        str(tmp_path / "notes" / name) for name in ("a.txt", "b.txt")
    ]
    assert results[0]["text"] == "the\nking of it\n"
    assert (results[0]["entities"][0]["start"], results[0]["entities"][0]["end"]) == (4, 8)
    assert call(*usual)[0] == 2
    call(*usual[:-1], tmp_path / "notes" / "a.txt")
    assert "text files are read as one text a line; --documents takes each file as one text" in caplog.text


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_what_is_printed_is_utf_8_on_any_stream(tuned, monkeypatch, encoding):
    for arguments in (
        ["predict", "--model", str(tuned("classification").model), "Größe 温度"],
        ["report", str(tuned("classification").run)],
        ["recipes", "ls"],
    ):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "argv", ["minialbert", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        stream.flush()
        printed = stream.buffer.getvalue().decode("utf-8")
        assert arguments[0] != "predict" or json.loads(printed)["text"] == "Größe 温度"


def test_predicting_what_does_not_fit(refuse, tuned, tiny_student_dir, tmp_path):
    model = tuned("classification").model
    (tmp_path / "texts.txt").write_text("the king\n")
    (tmp_path / "table.csv").write_text("remark\nthe king\n")
    usual = ("predict", "--model", model)
    assert "give either texts or --input" in refuse(*usual, "to", "--input", tmp_path / "texts.txt")
    assert "give either texts or --input" in refuse(*usual)
    assert "need --input" in refuse(*usual, "to", "--column", "text")
    assert f"is a file: give --input {tmp_path}" in refuse(*usual, tmp_path / "texts.txt")
    assert "- stands for standard input: give --input -" in refuse(*usual, "-")
    assert "columns are for tables" in refuse(*usual, "--input", tmp_path / "texts.txt", "--column", "text")
    assert "no column 'text'; --column names it; found only one column, 'remark'" in refuse(
        *usual, "--input", tmp_path / "table.csv"
    )
    assert "no such file" in refuse(*usual, "--input", tmp_path / "nothing.txt")
    assert "unknown extension" in refuse(*usual, "--input", tmp_path / "texts.doc")
    assert "expected a threshold from 0 to 1" in refuse(*usual, "--threshold", 2, "to")
    assert "cannot be written" in refuse(*usual, "--output", tmp_path / "texts.txt" / "file.jsonl", "to")
    assert "has no task head" in refuse("predict", "--model", tiny_student_dir, "to")
    assert "nowhere" in refuse("predict", "--model", tmp_path / "nowhere", "to")


# report


def test_report_of_two_runs(call, tuned, tmp_path):
    texts, entities = tuned("classification"), tuned("ner")
    status, page, _ = call("report", texts.run, entities.run)
    assert status == 0
    assert page.startswith("# Results\n")
    for made in (texts, entities):
        assert made.record["task"] in page
        assert f"{100 * made.record['score']:.1f}" in page
    output = tmp_path / "report"
    status, out, _ = call("report", texts.run, entities.run, "--output", output)
    assert status == 0
    assert f"report in {output / 'report.md'}" in out
    assert (output / "report.md").read_text() == page
    _, printed, _ = call("report", texts.run, entities.run, "--json")
    assert list(json.loads(printed).values()) == [made.record for made in (texts, entities)]
    tables = [name for name in entries(output) if name.endswith(".csv")]
    assert tables
    assert "my-classification" in "".join((output / name).read_text() for name in tables)


def test_report_without_records(refuse, call, tuned, tmp_path):
    (tmp_path / "empty").mkdir()
    line = refuse("report", tmp_path / "empty", "--output", tmp_path / "report")
    assert "has no result.json below it" in line
    assert not (tmp_path / "report").exists()
    # An evaluation is not a fine-tuning, and does not disturb the tables of one beside it.
    made = tuned("classification")
    shutil.copytree(made.run, tmp_path / "runs" / "a", ignore=shutil.ignore_patterns("model"))
    alone = call("report", tmp_path / "runs")[1]
    scores = tmp_path / "runs" / "scores"
    assert call("evaluate", "--model", made.model, "--data", made.data, "--output", scores)[0] == 0
    assert (scores / "report.html").exists()
    status, page, _ = call("report", tmp_path / "runs")
    assert status == 0
    assert "## Evaluations" in page and "## Evaluations" not in alone
    assert [line for line in alone.splitlines() if line not in page.splitlines()] == []
    status, page, _ = call("report", scores)
    assert status == 0
    assert "has accuracy 100.0 % on my-classification, test" in page and "| test.accuracy | 1 |" in page


# Formats of annotation tools


def test_data_are_converted_split_and_forced_to_be_what_they_are_not(call, tiny_student_dir, tmp_path):
    spans = [[0, 5, "Sign"], [0, 14, "Sign"]]
    rows = [{"id": f"n{n}", "text": f"fever and pain {n}", "spans": spans, "ward": n // 2} for n in range(20)]
    source = write_rows(tmp_path / "notes.jsonl", rows)
    status, out, err = call(
        "convert-data",
        source,
        tmp_path / "out",
        "--format",
        "doccano",
        "--split",
        "80,10,10",
        "--group",
        "ward",
    )
    assert status == 0, err
    assert entries(tmp_path / "out") == ["test.jsonl", "train.jsonl", "validation.jsonl"]
    assert "16 train, 2 validation, 2 test documents" in out and "those of one ward stay together" in out
    status, _, err = call("convert-data", source, tmp_path / "a.conll", "--format", "conll")
    assert (status, err.count("\n")) == (2, 1) and "notes.jsonl:1: entities overlap" in err
    status, out, _ = call(
        "convert-data", source, tmp_path / "a.conll", "--format", "conll", "--overlaps", "first", "--json"
    )
    assert status == 0 and json.loads(out)["documents"] == {"train": 20}
    usual = ("convert-data", source, tmp_path / "b.jsonl", "--format", "jsonl", "--set")
    assert call(*usual, "task.text=text")[0] == 0
    assert (
        "--set 'text': expected what a column holds and its name, as in text=note" in call(*usual, "text")[2]
    )
    status, _, err = call(
        "finetune", "--model", tiny_student_dir, "--task", "ner", "--data", source, "--format", "pubtator",
        "--output", tmp_path / "r",
    )  # fmt: skip
    assert status == 2 and "notes.jsonl:1: expected ID|t|TITLE" in err
