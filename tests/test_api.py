"""The Python API: the verbs from the top level, with data and models as people have them in a notebook."""

from __future__ import annotations

import logging

import pytest
import torch

import minialbert

WORDS = "the king was small and large city by river he they were all of one house".split()  # noqa: SIM905
ROWS = [(" ".join(WORDS[index % 7 :][:4]), "even" if index % 2 else "odd") for index in range(24)]


@pytest.fixture
def teacher(tiny_teacher_dir):
    return str(tiny_teacher_dir)


def test_live_models_go_in_everywhere(tiny_teacher, tiny_tokenizer, tmp_path):
    data = {"train": ROWS, "validation": ROWS[:8]}
    tuned = minialbert.finetune(tiny_teacher, "classification", data, tokenizer=tiny_tokenizer, epochs=1)
    assert tuned.path.is_dir() and tuned.record["training"]["steps"] > 0
    texts = [text for text, _ in ROWS]
    from_folder = minialbert.predict(tuned.path / "model", texts)
    assert minialbert.predict(tuned.model, texts) == minialbert.predict(tuned, texts) == from_folder
    with torch.no_grad():
        tuned.model.classifier.bias += torch.tensor([100.0, 0.0])  # what is alive counts, not what was saved
    labels = {one["label"] for one in minialbert.predict(tuned.model, texts)}
    assert labels == {tuned.model.config.id2label[0]}


def test_texts_alone_are_cut_into_windows_on_the_way(tiny_teacher, tiny_tokenizer, tmp_path):
    texts = (" ".join(WORDS[index % 5 :]) + "." for index in range(60))
    distilled = minialbert.distill(
        tiny_teacher, texts, tokenizer=tiny_tokenizer, recipe="tiny", max_steps=1, output=tmp_path / "run",
        settings={"student.adapter_reduction_factor": 8},
    )  # fmt: skip
    assert (tmp_path / "run-windows" / "manifest.json").is_file() and distilled.record["training"][
        "steps"
    ] == 1


def test_named_entities_in_memory(tiny_teacher_dir, tmp_path):
    words = ["the", "king", "of", "city"]
    rows = [{"tokens": words, "tags": ["O", "B-Person", "O", "B-Place"]}] * 12
    tuned = minialbert.finetune(
        tiny_teacher_dir, task="ner", data={"train": rows, "validation": rows}, epochs=1
    )
    assert minialbert.predict(tuned, "the king of city")[0].keys() >= {"entities"}
    assert minialbert.evaluate(tuned, data=rows, split="train").metrics["train"]["per_type"].keys() == {
        "Person",
        "Place",
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: minialbert.predict(3, ["a"]), "expected a model .* found 'int'"),
        (lambda: minialbert.finetune("nowhere", task="classification", data=ROWS), "nowhere"),
        (lambda: minialbert.export("nowhere", "out", to="tflite"), "expected onnx, web or hub"),
        (lambda: minialbert.report("nowhere"), "nowhere"),
        (lambda: minialbert.report(minialbert.Result({})), "give its verb output=DIR"),
        (lambda: minialbert.distill(None, ["a text.", "another one."], recipe="tiny"), "give tokenizer too"),
        (lambda: minialbert.calibrate(torch.nn.Linear(1, 1)), "give its directory"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(call, message):
    with pytest.raises(minialbert.errors.UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_temporary_folder_is_said(tiny_teacher_dir, caplog):
    with caplog.at_level(logging.INFO, logger="minialbert"):
        tuned = minialbert.finetune(
            str(tiny_teacher_dir), "classification", {"train": ROWS, "validation": ROWS}, epochs=1
        )
    assert any(str(tuned.path) in line and "temporary" in line for line in caplog.messages)


def test_a_report_is_a_room_and_a_verb():
    import minialbert.report
    from minialbert.report.tables import Table

    assert callable(minialbert.report) and Table.__module__ == "minialbert.report.tables"


def test_a_run_with_a_live_model_is_the_same_run_again(tiny_teacher, tiny_tokenizer, tmp_path):
    def again(**options):
        return minialbert.finetune(
            tiny_teacher, "classification", {"train": ROWS, "validation": ROWS}, tokenizer=tiny_tokenizer, epochs=1,
            output=tmp_path / "run", **options,
        )  # fmt: skip

    record = again().record
    assert record["recipe"]["model"]["name"] == record["model"]["name"] == "BertForMaskedLM"
    with pytest.raises(minialbert.errors.UserError, match="holds a finished run"):  # not: of another recipe
        again(resume=True)
