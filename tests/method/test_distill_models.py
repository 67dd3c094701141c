"""Distillation from Python: models in memory or in folders, windows in memory or in folders, settings by name."""

from __future__ import annotations

import copy
import json
import logging
import re
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel, SqueezeBertConfig, SqueezeBertForMaskedLM

from minialbert import MiniAlbertForMaskedLM
from minialbert.data.window_store import WindowDataset
from minialbert.errors import UserError
from minialbert.method import objective as objective_module
from minialbert.method.distill import distill
from minialbert.method.elastic import ElasticObjective
from minialbert.method.encoders import Teacher
from minialbert.method.objective import DistillationObjective, register_loss
from minialbert.recipes.load import load_recipe
from minialbert.runs.directory import RunDirectory

TUNED = {"student.adapter_reduction_factor": 8, "training.eval_windows": 8}
SETTINGS = {"recipe": "tiny", "settings": TUNED, "progress": False}


def same(one, other) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("live", [False, True])
def test_it_is_the_run_of_the_recipe(live, distilled, tiny_teacher, tiny_teacher_dir, tiny_windows, tmp_path):
    record = json.loads((distilled / "result.json").read_text())
    teacher = copy.deepcopy(tiny_teacher) if live else tiny_teacher_dir
    data = WindowDataset(tiny_windows) if live else tiny_windows
    made = distill(teacher, data, output=tmp_path / "run", **SETTINGS)
    assert made.path == tmp_path / "run"
    assert made.record == json.loads((tmp_path / "run" / "result.json").read_text())
    assert made.record["metrics"] == record["metrics"]
    assert made.record["objective"] == record["objective"]
    saved = MiniAlbertForMaskedLM.from_pretrained(tmp_path / "run" / "model")
    assert same(saved, MiniAlbertForMaskedLM.from_pretrained(distilled / "model"))
    assert same(saved, made.model)
    assert not made.model.training and len(made.tokenizer) == tiny_teacher.config.vocab_size
    ours, theirs = (
        load_recipe(str(RunDirectory(at).recipe)).training for at in (tmp_path / "run", distilled)
    )
    assert ours == theirs


def test_two_models_and_an_objective_without_a_folder(
    tiny_teacher, tiny_student_config, tiny_windows, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    student = MiniAlbertForMaskedLM(tiny_student_config)
    before = copy.deepcopy(student)
    objective = replace(DistillationObjective.preset("paper"), attention_epsilon=1e-9)
    distilled = distill(
        tiny_teacher, tiny_windows, student=student, objective=objective, max_steps=2, learning_rate=1e-3,
        **SETTINGS | {"settings": {**TUNED, "name": "mine"}},
    )  # fmt: skip
    assert distilled.model is student and not same(student, before)
    assert distilled.path.parent == tmp_path and (distilled.path / "result.json").is_file()
    record = distilled.record
    assert record["training"]["steps"] == 2 and record["recipe"]["training"]["learning_rate"] == 1e-3
    assert record["objective"] == objective.to_dict()
    assert (record["model"]["name"], record["model"]["teacher"]) == ("mine", "(in memory)")
    assert record["model"]["parameters"] == student.num_parameters()


def test_elastic_depths_of_an_objective(tiny_teacher, tiny_student_config, tiny_windows):
    objective = DistillationObjective(elastic=ElasticObjective((1,)))
    student = MiniAlbertForMaskedLM(tiny_student_config)
    distilled = distill(
        tiny_teacher, tiny_windows, student=student, objective=objective, max_steps=1, **SETTINGS
    )
    assert distilled.record["training"]["last_logged_losses"]["loss_elastic"] > 0
    assert distilled.model.config.elastic_depths == [1]


def test_a_student_goes_on_where_it_was(tiny_teacher, tiny_windows, tmp_path):
    first = distill(tiny_teacher, tiny_windows, output=tmp_path / "first", max_steps=1, **SETTINGS)
    again = distill(
        None, tiny_windows, student=tmp_path / "first" / "model", output=tmp_path / "second", max_steps=1,
        **SETTINGS,
    )  # fmt: skip
    assert again.record["metrics"]["student_start"]["mlm_loss"] == pytest.approx(
        first.record["metrics"]["student_end"]["mlm_loss"], rel=1e-6
    )
    assert again.record["layer_map"] == [] and "no teacher: masked-LM alone" in again.record["notes"]


def test_a_live_teacher_keeps_its_kind_of_attention(tiny_teacher, tiny_windows):
    tiny_teacher.set_attn_implementation("eager")
    distill(tiny_teacher, tiny_windows, start_only=True, **SETTINGS)
    outputs = tiny_teacher(torch.tensor([[5, 6, 7]]), output_attentions=True)
    assert [rows.shape for rows in outputs.attentions] == [(1, 4, 3, 3)] * 4


def test_settings_that_change_nothing_are_told(tiny_teacher, tiny_windows, tiny_student_config):
    def idle(settings, **options):
        settings = TUNED | settings
        made = distill(
            tiny_teacher, tiny_windows, recipe="tiny", settings=settings, start_only=True, **options
        )
        return [note.partition("here: ")[2] for note in made.record["notes"] if note.startswith("settings:")]

    given = {"data.window_length": 64, "distill.elastic_depths": [1], "distill.relation_heads": 2}
    assert idle(given) == ["data.window_length, distill.elastic_depths, distill.relation_heads"]
    used = {"data.mask_probability": 0.3, "distill.relation_weight": 1.0, "distill.relation_heads": 2}
    assert (
        idle(used | {"distill.temperature": 2.0, "distill.elastic": True, "distill.elastic_depths": [1]})
        == []
    )
    of_objective = {"distill.hidden_weight": 1.0, "distill.output_weight": 0}
    assert idle(of_objective, objective=DistillationObjective()) == ["distill.hidden_weight"]


def test_without_a_teacher_a_student_starts_from_noise(tiny_windows):
    distilled = distill(None, tiny_windows, max_steps=1, **SETTINGS)
    assert "all weights: random" in distilled.record["notes"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_teacher_without_a_head_gives_no_logits(wrapped, tiny_teacher, tiny_windows):
    encoder = BertModel(tiny_teacher.config, add_pooling_layer=False)
    teacher = Teacher(encoder, has_mlm_head=False) if wrapped else encoder
    distilled = distill(teacher, tiny_windows, max_steps=1, **SETTINGS)
    assert distilled.record["objective"]["output_weight"] == 0
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_full_student_can_be_given(tiny_teacher, tiny_windows):
    shape = tiny_teacher.config.to_dict() | {"num_hidden_layers": 2}
    student = BertForMaskedLM(BertConfig(**shape))
    distilled = distill(
        tiny_teacher, tiny_windows, student=student, max_steps=1,
        **SETTINGS | {"settings": {"training.eval_windows": 8}},
    )  # fmt: skip
    assert distilled.record["model"]["arch"] == "bert"
    assert distilled.record["recipe"]["student"]["arch"] == "bert"


def test_maps_that_are_no_probabilities_are_left_out(tiny_windows, tmp_path, caplog, monkeypatch):
    torch.manual_seed(0)
    teacher = SqueezeBertForMaskedLM(
        SqueezeBertConfig(
            vocab_size=135, hidden_size=32, embedding_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=64,
        )
    )  # fmt: skip
    run = distill(teacher, tiny_windows, max_steps=2, output=tmp_path / "run", **SETTINGS)
    note = next(note for note in run.record["notes"] if note.startswith("attention rows"))
    assert re.fullmatch(r"attention rows: .* \(the teacher's layer 1 has rows that sum to .*\)", note)
    assert run.record["objective"]["attention_weight"] == 0
    measured = run.record["metrics"]["student_end"]
    assert "cosine_1" in measured and not any(name.startswith("attention") for name in measured)
    assert not (tmp_path / "run" / "attention.json").exists() and "its maps cannot be shown" in caplog.text
    monkeypatch.setattr(objective_module, "_REGISTERED", {})
    register_loss("rows", needs=("attention_rows",))(lambda *_: torch.zeros(()))
    wanted = DistillationObjective(extra={"rows": 1.0})
    with pytest.raises(
        UserError, match="a registered term reads attention rows, but the teacher's layer 1 has"
    ):
        distill(teacher, tiny_windows, objective=wanted, output=tmp_path / "other", **SETTINGS)
    assert not (tmp_path / "other").exists()


def test_a_damaged_teacher_is_told_before_anything_is_written(tiny_teacher, tiny_windows, tmp_path):
    tiny_teacher.bert.embeddings.word_embeddings.weight.data[134] = float("nan")  # of a rare word
    with pytest.raises(
        UserError, match=r"its weights hold NaN or infinity \(bert.embeddings.word_embeddings"
    ):
        distill(tiny_teacher, tiny_windows, output=tmp_path / "run", **SETTINGS)
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_one_line(tiny_teacher, tiny_windows, tmp_path):
    small = BertForMaskedLM(BertConfig(**(tiny_teacher.config.to_dict() | {"vocab_size": 50})))
    for teacher, arguments, message in (
        (small, {}, "the teacher has 50 word embeddings, and the windows' tokenizer 135 entries"),
        (tiny_teacher, {"resume": True}, "needs a directory: give output"),
        (tiny_teacher, {"settings": {"learning_rat": 1}}, "settings.*learning_rat"),
        (tiny_teacher, {"settings": {"training.learning_rat": 1}}, "learning_rat.*learning_rate"),
        (
            tiny_teacher,
            {"student": tmp_path / "nowhere"},
            "student .*nowhere does not exist|nowhere does not",
        ),
    ):
        with pytest.raises(UserError, match=message) as caught:
            distill(teacher, tiny_windows, **SETTINGS | arguments)
        assert "\n" not in str(caught.value)


def test_nothing_frightening_is_said(
    tiny_teacher, tiny_tokenizer, tiny_windows, tmp_path, caplog, monkeypatch
):
    folder = tmp_path / "headless"
    BertModel(tiny_teacher.config, add_pooling_layer=False).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="transformers")  # which the command line lowers
    distill(folder, tiny_windows, max_steps=1, **SETTINGS)
    assert not any(
        word in caplog.text for word in ("newly initialized", "MISSING", "LOAD REPORT", "corrupted")
    )
