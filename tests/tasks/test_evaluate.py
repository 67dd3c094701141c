"""Scoring a tuned model: the figures of its tuning again, on any split, and the benchmark's files."""

from __future__ import annotations

import json
import shutil
from itertools import chain

import pytest
import torch
from conftest import write_tiny_task
from safetensors.torch import load_file, save_file

from minialbert.data.examples import Task
from minialbert.data.tasks import load_task
from minialbert.errors import UserError, display_name
from minialbert.recipes.schema import TaskRecipe
from minialbert.tasks.evaluate import evaluate
from minialbert.tasks.models import TaskInputs, load_for_tuning, load_tuned, save_tuned
from minialbert.tasks.predict import Predictor

KINDS = ("classification", "multi-label", "regression", "ner")


def score(model, data=None, split=None, *, output=None, submission=None, overwrite=False, **task):
    recipe = TaskRecipe(**task) if data is None else TaskRecipe(data=str(data), **task)
    options = {"split": split, "output": output, "submission": submission, "overwrite": overwrite}
    return evaluate(model, task=recipe, progress=False, **options).record


@pytest.fixture
def copy_of(tuned, tmp_path):
    """Copy a tuned model and change it: `config`, `weights` and `task` are called with its dictionaries."""

    def copy(kind, *, config=None, weights=None, task=None, name="copy"):
        folder = tmp_path / name
        shutil.copytree(tuned(kind).model, folder)
        for file, change in (("config.json", config), ("task.json", task)):
            if change is not None:
                values = json.loads((folder / file).read_text())
                change(values)
                (folder / file).write_text(json.dumps(values))
        if weights is not None:
            tensors = load_file(folder / "model.safetensors")
            weights(tensors)
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return copy


def named(*labels):
    """A change of config.json that gives the labels other names."""

    def change(config):
        config["id2label"] = {str(index): label for index, label in enumerate(labels)}
        config["label2id"] = {label: index for index, label in enumerate(labels)}

    return change


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


# Figures


@pytest.mark.parametrize("kind", KINDS)
def test_the_figures_are_those_of_the_tuning(kind, tuned):
    made = tuned(kind)
    assert made.record["score"] > 0.7  # else a model that says one thing alone would do
    record = score(made.model, made.data, name=kind)
    assert record["split"] == made.record["split"] == "test"
    assert record["score"] == made.record["score"] == record["metrics"]["test"][record["metric"]]
    assert record["metrics"] == {"test": made.record["metrics"]["test"]}
    assert record["rows"] == {"test": 32}
    for key in ("task", "problem", "metric"):
        assert record[key] == made.record[key]
    assert (record["kind"], record["name"], record["submission"]) == ("evaluation", "tuned", [])
    assert record["model"]["parameters"] == made.record["model"]["parameters"]


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_task_it_is_the_models_own(kind, tuned):
    made = tuned(kind)
    assert score(made.model, made.data)["metrics"]["test"] == made.record["metrics"]["test"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_split_can_be_chosen(kind, tuned):
    made = tuned(kind)
    record = score(made.model, made.data, "validation")
    assert record["metrics"] == {"validation": made.record["metrics"]["validation"]}
    assert record["rows"] == {"validation": 24}
    assert record["notes"] == []
    assert score(made.model, made.data, "Dev")["metrics"] == record["metrics"]
    record = score(made.model, made.data, "train")
    assert record["rows"] == {"train": 160}
    assert list(record["metrics"]) == ["train"]
    assert record["notes"] == [
        "train: the figures say nothing about other texts if the model was tuned on these rows"
    ]


@pytest.mark.parametrize("kind", ["classification", "multi-label", "ner"])
def test_labels_are_matched_by_name_whatever_their_ids(kind, tuned, copy_of):
    made = tuned(kind)
    labels = json.loads((made.model / "config.json").read_text())["id2label"]
    new = [*range(1, len(labels)), 0]  # for each new id the old one

    def permute(tensors):
        for key in ("classifier.weight", "classifier.bias"):
            tensors[key] = tensors[key][new].contiguous()

    model = copy_of(kind, config=named(*(labels[str(old)] for old in new)), weights=permute)
    assert load_tuned(str(model))[0].config.id2label[0] == labels["1"]
    given = {"labels": list(labels.values())} if kind == "classification" else {}
    assert score(model, made.data, **given)["metrics"]["test"] == made.record["metrics"]["test"]
    assert score(model, made.data)["score"] == made.record["score"]
    # Names alone, over rows in the old order, are other labels.
    renamed = copy_of(kind, config=named(*(labels[str(old)] for old in new)), name="renamed")
    assert score(renamed, made.data)["score"] < made.record["score"]


def test_accuracy_counted_from_the_predictions_themselves(tuned, tmp_path):
    made = tuned("classification")
    record = score(made.model, made.data, output=tmp_path / "scores")
    truth = read_rows(made.data / "test.jsonl")
    lines = read_rows(tmp_path / "scores" / "predictions.jsonl")
    assert [(line["text"], line["label"]) for line in lines] == [(row["text"], row["label"]) for row in truth]
    predictor = Predictor.load(str(made.model), precision="auto")
    said = [result["label"] for result in predictor.predict(row["text"] for row in truth)]
    assert [line["predicted"] for line in lines] == said
    right = sum(row["label"] == label for row, label in zip(truth, said, strict=True))
    assert record["metrics"]["test"]["accuracy"] == right / len(truth)


def test_a_table_with_only_some_of_the_models_labels(tuned, tmp_path):
    made = tuned("classification")
    rows = [row for row in read_rows(made.data / "test.jsonl") if row["label"] == "without"]
    table = write_rows(tmp_path / "some.jsonl", rows)
    record = score(made.model, table, name="classification")
    said = Predictor.load(str(made.model), precision="auto").predict(row["text"] for row in rows)
    right = sum(result["label"] == "without" for result in said)
    assert record["metrics"]["train"]["accuracy"] == right / len(rows)
    assert record["task"] == "some"


def test_sentences_with_only_some_of_the_models_entity_types(tuned, tmp_path):
    made = tuned("ner")
    folder = tmp_path / "people"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        text = (made.data / f"{split}.tsv").read_text()
        (folder / f"{split}.tsv").write_text(text.replace("B-Place", "O"))
    record = score(made.model, folder, output=tmp_path / "scores")
    lines = read_rows(tmp_path / "scores" / "predictions.jsonl")
    assert {tag for line in lines for tag in line["tags"]} == {"O", "B-Person"}
    # A river is still found, and is now wrong.
    assert any("B-Place" in line["predicted"] for line in lines)
    assert record["score"] < made.record["score"]


def test_a_directory_without_validation_and_test_is_parted_as_in_tuning(tuned, tmp_path):
    made = tuned("classification")
    folder = tmp_path / "own"
    folder.mkdir()
    shutil.copy(made.data / "train.jsonl", folder)
    record = score(made.model, folder, output=tmp_path / "scores", name="classification")
    assert (record["split"], record["rows"]) == ("validation", {"validation": 16})
    assert any("set apart" in note for note in record["notes"])
    apart = load_task(TaskRecipe(name="classification", data=str(folder))).splits["validation"]
    scored = read_rows(tmp_path / "scores" / "predictions.jsonl")
    assert [line["text"] for line in scored] == [row.text for row in apart]
    # Asked for train, all of it is meant.
    assert score(made.model, folder, "train", name="classification")["rows"] == {"train": 160}


def test_a_single_file_is_scored_as_a_whole(tuned):
    made = tuned("regression")
    record = score(made.model, made.data / "test.jsonl", name="regression")
    assert record["rows"] == {"train": 32}
    assert record["metrics"]["train"] == pytest.approx(made.record["metrics"]["test"])
    rows = read_rows(made.data / "test.jsonl")
    for given in (rows, {name: [row[name] for row in rows] for name in rows[0]}):
        in_memory = evaluate(made.model, given, progress=False).record
        assert (in_memory["rows"], in_memory["metrics"]) == (record["rows"], record["metrics"])


def test_a_split_without_labels_gets_predictions_alone(tuned, tmp_path):
    made = tuned("classification")
    folder = tmp_path / "own"
    shutil.copytree(made.data, folder)
    texts = [{"text": "the king of the river"}, {"text": "to the river"}]
    write_rows(folder / "test.jsonl", texts)
    record = score(made.model, folder, "test", output=tmp_path / "scores", name="classification")
    assert (record["score"], record["metrics"], record["rows"]) == (None, {}, {"test": 2})
    found = "test: no row has a label, so none is scored; found the columns 'text'"
    assert record["notes"] == [found]
    lines = read_rows(tmp_path / "scores" / "predictions.jsonl")
    assert [line["text"] for line in lines] == [row["text"] for row in texts]
    assert {line["label"] for line in lines} == {None}
    assert {line["predicted"] for line in lines} <= {"with", "without"}
    assert score(made.model, folder, name="classification")["split"] == "validation"


def test_notes_say_how_many_texts_were_cut(tuned, copy_of):
    made = tuned("classification")
    # Every word is one token, and two special ones are added.
    long = sum(len(row["text"].split()) > 6 for row in read_rows(made.data / "test.jsonl"))
    assert 0 < long < 32
    counts = [len(row["text"].split()) for row in read_rows(made.data / "test.jsonl")]
    share = sum(max(0, count - 6) for count in counts) / sum(counts)
    record = score(made.model, made.data, max_length=8, overlap=0, long_texts="cut")
    assert record["notes"] == [
        f"test: {long} of 32 texts were cut at 8 tokens; {share:.1%} of all tokens are not read"
    ]
    assert record["cut"] == {"test": {"rows": long, "share_of_tokens": pytest.approx(share, abs=1e-6)}}
    # Without the options, inputs are as long as in tuning, and read as in tuning.
    shorter = {"max_length": 8, "overlap": 0, "long_texts": "cut"}
    short = copy_of("classification", task=lambda values: values.update(shorter))
    assert score(short, made.data)["notes"] == record["notes"]


@pytest.mark.parametrize("long_texts", ["cut", "windows", None])
@pytest.mark.parametrize("kind", ["classification", "multi-label", "regression"])
def test_long_texts_are_scored_as_predict_reads_them(tuned, copy_of, tmp_path, kind, long_texts):
    made = tuned(kind)

    def change(values):
        values.update(max_length=8, overlap=2, long_texts=long_texts)
        if long_texts is None:  # a model from before there was the key
            del values["long_texts"]

    short = copy_of(kind, task=change)
    record = score(short, made.data, output=tmp_path / "scores")
    lines = read_rows(tmp_path / "scores" / "predictions.jsonl")
    found = list(Predictor.load(str(short)).predict([line["text"] for line in lines]))
    key = {"classification": "label", "multi-label": "labels", "regression": "score"}[kind]
    said = [result[key] for result in found]
    assert [line["predicted"] for line in lines] == (
        pytest.approx(said, abs=1e-5) if key == "score" else said
    )
    read_as = long_texts or "windows"
    assert record["long_texts"] == read_as
    assert any(("cut" if read_as == "cut" else "windows of 8 tokens") in note for note in record["notes"])
    assert any("does not say how long texts are read" in note for note in record["notes"]) == (not long_texts)
    assert any("windows" in result for result in found) == (read_as == "windows")
    assert any("cut" in result for result in found) == (read_as == "cut")


def test_the_two_ways_to_read_long_texts_differ(tuned, copy_of):
    """What decides stands behind the first window, too."""
    models = {
        way: Predictor.load(
            str(copy_of("classification", task=lambda values, way=way: values.update(
                max_length=8, overlap=2, long_texts=way), name=way))
        )
        for way in ("cut", "windows")
    }  # fmt: skip
    text = "of the to in is it of and king king king king king king"
    (cut,), (windows,) = (model.predict([text]) for model in models.values())
    assert (cut["label"], cut["cut"]) == ("without", 8)
    assert (windows["label"], windows["windows"]) == ("with", 3)


def test_sentences_of_words_are_windowed_rather_than_cut(tuned, tmp_path):
    made = tuned("ner")
    record = score(made.model, made.data, output=tmp_path / "scores", max_length=10, overlap=2)
    assert record["notes"] == []
    for line in read_rows(tmp_path / "scores" / "predictions.jsonl"):
        assert len(line["predicted"]) == len(line["tokens"])


def test_the_models_metric_unless_another_is_asked_for(tuned, copy_of):
    made = tuned("classification")
    model = copy_of("classification", task=lambda values: values.update(metric="f1_macro"))
    figures = made.record["metrics"]["test"]
    assert score(model, made.data)["score"] == figures["f1_macro"]
    assert score(model, made.data, metric="accuracy")["score"] == figures["accuracy"]


# Files


@pytest.mark.parametrize("kind", KINDS)
def test_output_holds_record_and_predictions(kind, tuned, tmp_path):
    made, folder = tuned(kind), tmp_path / "scores"
    record = score(made.model, made.data, output=folder)
    assert files_below(folder) == ["predictions.jsonl", "result.json"]
    assert json.loads((folder / "result.json").read_text()) == record
    assert str(tmp_path) not in (folder / "result.json").read_text()
    assert {"format_version", "versions", "machine"} <= set(record)
    lines = read_rows(folder / "predictions.jsonl")
    assert len(lines) == 32
    assert {line["split"] for line in lines} == {"test"}
    truth = load_task(TaskRecipe(name=kind, data=str(made.data))).splits["test"]
    predicted = [line["predicted"] for line in lines]
    figures = record["metrics"]["test"]
    if kind == "ner":
        assert [tuple(line["tokens"]) for line in lines] == [row.words for row in truth]
        assert [tuple(line["tags"]) for line in lines] == [row.tags for row in truth]
        said = [tag for tags in predicted for tag in tags]
        right = [tag == gold for tag, gold in zip(said, chain(*(row.tags for row in truth)), strict=True)]
        assert figures["token_accuracy"] == pytest.approx(sum(right) / len(right))
    else:
        assert [line["text"] for line in lines] == [row.text for row in truth]
    gold = [line.get("label") for line in lines]
    if kind == "regression":
        errors = [(left - right) ** 2 for left, right in zip(predicted, gold, strict=True)]
        assert figures["mean_squared_error"] == pytest.approx(sum(errors) / 32, rel=1e-5)  # of six digits
    elif kind != "ner":
        right = [label == true for label, true in zip(predicted, gold, strict=True)]
        assert figures["accuracy"] == sum(right) / 32


def test_an_earlier_evaluation_is_replaced_only_on_request(tuned, tmp_path):
    made, folder = tuned("classification"), tmp_path / "scores"
    score(made.model, made.data, output=folder)
    before = (folder / "result.json").read_text()
    with pytest.raises(UserError, match=r"holds a result\.json: give --overwrite"):
        score(made.model, made.data, "validation", output=folder)
    assert (folder / "result.json").read_text() == before
    record = score(made.model, made.data, "validation", output=folder, overwrite=True)
    assert json.loads((folder / "result.json").read_text()) == record
    assert len(read_rows(folder / "predictions.jsonl")) == 24
    (folder / "result.json").unlink()
    with pytest.raises(UserError, match=r"holds a predictions\.jsonl"):
        score(made.model, made.data, output=folder)


@pytest.mark.parametrize(
    ("text", "kind"),
    [('{"kind": "finetune"}', "finetune"), ("[]", "of no known kind"), ("{", "of no known kind")],
)
def test_another_runs_record_is_never_replaced(text, kind, tuned, tmp_path):
    made = tuned("classification")
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError, match=rf"is the record of another run \({kind}\): give another --output"):
        score(made.model, made.data, output=tmp_path, overwrite=True)
    assert files_below(tmp_path) == ["result.json"]
    assert (tmp_path / "result.json").read_text() == text


def test_an_output_that_cannot_be_written(tuned, tmp_path):
    made = tuned("classification")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file: expected a folder"):
        score(made.model, made.data, output=tmp_path / "file", overwrite=True)
    with pytest.raises(UserError, match=r"file/scores cannot be written \(Not a directory\)"):
        score(made.model, made.data, output=tmp_path / "file" / "scores")
    assert (tmp_path / "file").read_text() == "mine"


# What does not fit


def test_a_task_of_another_problem(tuned):
    made, other = tuned("classification"), tuned("ner")
    with pytest.raises(UserError, match="tuned was tuned for a single-label task, ner is a token one"):
        score(made.model, other.data, name="ner")
    with pytest.raises(UserError, match="tuned was tuned for a single-label task, stsb is a regression one"):
        score(made.model, other.data, name="stsb")
    with pytest.raises(UserError, match="tuned was tuned for a token task, classification is a single-label"):
        score(other.model, made.data, name="classification")


def test_a_model_for_other_labels(tuned, tmp_path):
    made = tuned("classification")
    other = tmp_path / "mood"
    other.mkdir()
    write_rows(other / "train.jsonl", [{"text": "a", "label": "glad"}, {"text": "b", "label": "sad"}])
    with pytest.raises(
        UserError, match="jsonl:1: the label 'glad' is not among those of the model: 'with', 'without'"
    ):
        score(made.model, other, name="classification")


def test_entities_of_other_types(tuned, tmp_path):
    made = tuned("ner")
    other = write_tiny_task(tmp_path / "animals", "ner")
    for file in other.iterdir():
        file.write_text(file.read_text().replace("Person", "Animal"))
    record = score(made.model, other)
    assert [
        note
        for note in record["notes"]
        if note.startswith("test: labels that are not among those of the model")
    ]
    assert record["metrics"]["test"]["per_type"]["Animal"]["recall"] == 0
    assert record["metrics"]["test"]["entity_recall"] < made.record["metrics"]["test"]["entity_recall"]


def test_a_row_with_a_label_that_the_model_does_not_have_is_missed(tuned, tmp_path):
    made = tuned("classification")
    folder = tmp_path / "own"
    shutil.copytree(made.data, folder)
    write_rows(folder / "test.jsonl", [{"text": "a", "label": "with"}, {"text": "b", "label": "perhaps"}])
    record = score(made.model, folder)
    assert (
        "test: labels that are not among those of the model count as missed: perhaps (1)" in record["notes"]
    )
    assert record["metrics"]["test"]["accuracy"] <= 0.5


def test_a_class_that_the_model_does_not_have_is_missed_beside_others(tuned, tmp_path):
    made = tuned("multi-label")
    rows = read_rows(made.data / "test.jsonl")
    rows[0]["label"] = [*rows[0]["label"], "other"]
    (tmp_path / "own").mkdir()
    write_rows(tmp_path / "own" / "test.jsonl", rows)
    metrics, before = score(made.model, tmp_path / "own")["metrics"]["test"], made.record["metrics"]["test"]
    assert metrics["f1_micro"] < before["f1_micro"] and metrics["f1_macro"] < before["f1_macro"]
    assert metrics["accuracy"] in (before["accuracy"], pytest.approx(before["accuracy"] - 1 / len(rows)))


@pytest.mark.parametrize("kind", ["classification", "multi-label", "ner"])
def test_a_test_split_alone_is_scored_and_what_was_read_is_told(kind, tuned, tmp_path, caplog):
    made = tuned(kind)
    (test,) = made.data.glob("test.*")
    (tmp_path / "theirs").mkdir()
    shutil.copy(test, tmp_path / "theirs")
    with caplog.at_level("INFO", "minialbert"):
        record = score(made.model, tmp_path / "theirs")
    assert record["metrics"] == {"test": made.record["metrics"]["test"]}
    assert ": 32 test rows; longest " in caplog.text
    assert record["data"]["rows"] == {"test": 32} and record["data"]["label_counts"]
    assert score(made.model, test)["metrics"] == {"train": made.record["metrics"]["test"]}
    assert score(made.model, tmp_path / "theirs", "test")["score"] == made.record["score"]


def test_pairs_for_a_model_of_single_texts(tuned, tmp_path):
    made = tuned("classification")
    rows = [
        {"text": row["text"], "text_pair": "a", "label": row["label"]}
        for row in read_rows(made.data / "test.jsonl")
    ]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(
        UserError, match="tuned on single texts, the data are pairs of texts .text, pair 'text_pair'"
    ):
        score(made.model, path)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_split(kind, tuned):
    made = tuned(kind)
    with pytest.raises(UserError, match=f"my-{kind} has no split 'tests': there are train, validation, test"):
        score(made.model, made.data, "tests")


def test_a_model_that_does_not_say_what_it_is_for(tuned, copy_of):
    made = tuned("classification")
    model = copy_of("classification")
    (model / "task.json").unlink()
    with pytest.raises(UserError, match="no task: give --task"):
        score(model, made.data)
    record = score(model, made.data, name="classification")
    assert record["metrics"]["test"] == made.record["metrics"]["test"]


def test_a_model_without_a_head(tiny_student_dir, tuned):
    with pytest.raises(UserError, match="has no task head"):
        score(tiny_student_dir, tuned("classification").data, name="classification")


WORDS = "minialbert.embeddings.word_embeddings.weight"


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_that_are_not_finite_are_refused(kind, tuned, copy_of, tmp_path):
    def damage(tensors):
        tensors["classifier.bias"][0] = torch.nan

    with pytest.raises(UserError, match=r"its weights hold NaN or infinity \(classifier.bias\)"):
        score(copy_of(kind, weights=damage), tuned(kind).data, output=tmp_path / "scores")
    # Numbers that overflow for one word, which the short input of loading does not hold.
    shutil.rmtree(tmp_path / "copy")
    word = load_tuned(tuned(kind).model)[1].convert_tokens_to_ids("king")
    overflowing = copy_of(kind, weights=lambda tensors: tensors[WORDS][word].fill_(3e38))
    with pytest.raises(UserError, match="the outputs of .* on test are not finite"):
        score(overflowing, tuned(kind).data, output=tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


# The benchmark's files


def write_glue(folder, **tables):
    folder.mkdir(parents=True)
    for split, lines in tables.items():
        (folder / f"{split}.tsv").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture
def cola(tmp_path):
    """CoLA in its official layout; whatever has a king is acceptable."""
    return write_glue(
        tmp_path / "CoLA",
        train=["x\t1\t\tthe king of it", "x\t0\t*\tthe river of it"],
        dev=["x\t1\t\tto the king", "x\t0\t*\tto the river", "x\t1\t\tone king", "x\t0\t*\tone to it"],
        test=["index\tsentence", "7\tking as it is", "3\triver as it is", "12\tin it was the king"],
    )


@pytest.fixture
def judge(copy_of):
    """A model for CoLA, of one that tells texts with a king from those without; its ids are in another order."""
    return copy_of(
        "classification",
        config=named("acceptable", "unacceptable"),
        task=lambda values: values.update(task="cola", metric="matthews_correlation"),
        name="judge",
    )


def test_a_submission_beside_the_figures(judge, cola, tmp_path):
    record = score(judge, cola, submission=tmp_path / "glue", output=tmp_path / "scores")
    assert (record["task"], record["split"], record["submission"]) == ("cola", "validation", ["CoLA.tsv"])
    assert record["rows"] == {"validation": 4}
    header, *lines = (tmp_path / "glue" / "CoLA.tsv").read_text().splitlines()
    assert header == "index\tprediction"
    texts = ["king as it is", "river as it is", "in it was the king"]
    said = [result["label"] for result in Predictor.load(str(judge), precision="auto").predict(texts)]
    assert set(said) == {"acceptable", "unacceptable"}
    spelled = ["1" if label == "acceptable" else "0" for label in said]
    assert lines == [f"{index}\t{label}" for index, label in zip((7, 3, 12), spelled, strict=True)]
    assert files_below(tmp_path / "glue") == ["CoLA.tsv"]
    # Predictions are those of the scored split.
    assert len(read_rows(tmp_path / "scores" / "predictions.jsonl")) == 4


def test_a_submission_of_the_split_that_is_scored_runs_it_once(judge, cola, tmp_path):
    record = score(judge, cola, "test", submission=tmp_path / "glue")
    assert "test: no row has a label, so none is scored" in record["notes"]
    assert (record["score"], record["rows"]) == (None, {"test": 3})
    assert len((tmp_path / "glue" / "CoLA.tsv").read_text().splitlines()) == 4


def test_an_earlier_submission_is_replaced_only_on_request(judge, cola, tmp_path):
    folder = tmp_path / "glue"
    folder.mkdir()
    (folder / "CoLA.tsv").write_text("an earlier one")
    with pytest.raises(UserError, match=r"CoLA\.tsv exists: give --overwrite"):
        score(judge, cola, submission=folder, output=tmp_path / "scores")
    assert (folder / "CoLA.tsv").read_text() == "an earlier one"
    assert not (tmp_path / "scores").exists()
    score(judge, cola, submission=folder, overwrite=True)
    assert (folder / "CoLA.tsv").read_text().startswith("index\tprediction\n")


def test_a_refused_submission_leaves_nothing(judge, cola, tmp_path):
    with (cola / "test.tsv").open("a") as file:
        file.write("7\tto the king\n")
    with pytest.raises(UserError, match="index 7 is repeated"):
        score(judge, cola, submission=tmp_path / "glue", output=tmp_path / "scores")
    assert not (tmp_path / "glue").exists() and not (tmp_path / "scores").exists()


def test_there_is_nothing_to_submit(tuned, judge, cola, tmp_path):
    made = tuned("classification")
    with pytest.raises(UserError, match="my-classification has no unlabelled split of the GLUE benchmark"):
        score(made.model, made.data, submission=tmp_path / "glue")
    (cola / "test.tsv").unlink()
    with pytest.raises(UserError, match=r"cola has no unlabelled split .* there are train, validation"):
        score(judge, cola, submission=tmp_path / "glue")
    assert not (tmp_path / "glue").exists()


MNLI_LABELS = ("entailment", "neutral", "contradiction")


def test_all_files_of_mnli_or_none(tiny_student_dir, tmp_path):
    task = Task("mnli", "single-label", MNLI_LABELS, "accuracy", {})
    torch.manual_seed(0)
    model, tokenizer, _ = load_for_tuning(str(tiny_student_dir), task)
    save_tuned(model, tokenizer, TaskInputs("mnli", "single-label", "accuracy", 32, 8), tmp_path / "nli")
    texts = "index\tsentence1\tsentence2"
    data = write_glue(
        tmp_path / "MNLI",
        train=[
            f"{texts}\tgold_label",
            *(f"{i}\tone\tthe king\t{name}" for i, name in enumerate(MNLI_LABELS)),
        ],
        dev_matched=[f"{texts}\tgold_label", "0\tthe king\tthe river\tneutral"],
        test_matched=[texts, "0\tthe king\tthe river"],
        test_mismatched=[texts, "5\tthe river\tthe king", "6\tit\tthe king"],
    )
    record = score(tmp_path / "nli", data, submission=tmp_path / "glue")
    assert record["submission"] == files_below(tmp_path / "glue") == ["MNLI-m.tsv", "MNLI-mm.tsv"]
    lines = (tmp_path / "glue" / "MNLI-mm.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["index", "5", "6"]
    assert {line.split("\t")[1] for line in lines[1:]} <= set(MNLI_LABELS)

    with (data / "test_mismatched.tsv").open("a") as file:
        file.write("6\tit\tit\n")
    with pytest.raises(UserError, match="index 6 is repeated"):
        score(tmp_path / "nli", data, submission=tmp_path / "again")
    assert files_below(tmp_path / "again") == []


def test_a_folder_of_ones_own_with_a_benchmarks_name(tuned, copy_of, tmp_path):
    """A model that was tuned on tables in a folder called cola has other labels than CoLA."""
    made = tuned("classification")
    model = copy_of("classification", task=lambda values: values.update(task="cola"))
    shutil.copytree(made.data, tmp_path / "cola")
    record = score(model, tmp_path / "cola")
    assert record["metrics"]["test"] == made.record["metrics"]["test"]
    assert display_name(model) == record["name"] == "copy"
