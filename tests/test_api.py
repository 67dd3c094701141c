"""The Python API: the verbs from the top level, with data and models as people have them in a notebook."""

from __future__ import annotations

import copy
import logging

import numpy
import pytest
import torch
import transformers

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


def test_a_model_that_came_of_a_verb_is_free(tiny_teacher, tiny_tokenizer):
    data = {"train": ROWS, "validation": ROWS[:8]}
    tuned = minialbert.finetune(tiny_teacher, "classification", data, tokenizer=tiny_tokenizer, epochs=1)
    assert not tuned.model._forward_pre_hooks and tuned.model.config._attn_implementation == "sdpa"
    copied = copy.deepcopy(tuned.model)
    assert minialbert.predict(copied, ["the king"]) == minialbert.predict(tuned, ["the king"])


def test_what_of_a_live_model_is_not_read_is_said(tiny_teacher_dir, caplog):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_teacher_dir)
    model(torch.tensor([[5, 6]]), output_hidden_states=True)  # after which Transformers has hooks of its own
    caplog.clear()
    expected = minialbert.predict(model, ["the king"])
    assert not caplog.messages
    model.classifier.register_forward_hook(lambda module, inputs, logits: -logits)
    model.dropout.__class__ = type("Louder", (torch.nn.Dropout,), {"__module__": "mine"})
    assert minialbert.predict(model, ["the king"]) == expected
    told = "is read by weights and configuration, without code of its own: Louder, <lambda>"
    assert [told in line for line in caplog.messages] == [True]
    model.bert.encoder.layer[1].output.dense.lora_A = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(
        minialbert.errors.UserError, match=r"not describe \(bert\.encoder\.layer\.1\.output\.dense\.lora_A\)"
    ):
        minialbert.predict(model, ["the king"])


def test_a_message_names_a_live_model_as_its_caller_does(tiny_teacher_dir):
    model = transformers.AutoModelForMaskedLM.from_pretrained(tiny_teacher_dir)
    with pytest.raises(minialbert.errors.UserError, match=f"^{tiny_teacher_dir} has no task head"):
        minialbert.predict(model, ["the king"])


def test_results_live_models_and_numbers_of_numpy_go_into_distil(tiny_teacher_dir, tmp_path):
    live = transformers.AutoModelForMaskedLM.from_pretrained(tiny_teacher_dir)
    texts = [" ".join(WORDS * 20)] * 12  # of more letters than the name of a file may have
    settings = {"student.adapter_reduction_factor": 8, "training.eval_windows": numpy.int64(2)}
    options = {"recipe": "tiny", "max_steps": numpy.int64(1), "settings": settings}
    first = minialbert.distill(live, texts, output=tmp_path / "first", **options)
    windows = tmp_path / "first-windows"
    assert minialbert.distill(first, windows, **options).record["model"]["teacher"] == "first"
    again = minialbert.distill(live, windows, student=first, **options)
    assert again.record["recipe"]["student"]["init_from"] == "first"
    for student, message in ((live, "the teacher itself"), (live.bert, "a BertModel, has no masked-LM head")):
        with pytest.raises(minialbert.errors.UserError, match=message):
            minialbert.distill(live, windows, student=student, **options)


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
        (lambda: minialbert.export("x", "out", evaluate="ner", data=ROWS), "rows in memory cannot be scored here"),
        (lambda: minialbert.finetune("x", "ner", ROWS, settings={3: 1}), "settings: 3: unknown"),
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
