"""Learning rates by the model, and what a tuning that learnt nothing is told."""

from __future__ import annotations

import copy
import json
from itertools import repeat

import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from minialbert import MiniAlbertModel
from minialbert.errors import UserError
from minialbert.recipes.load import apply_overrides, load_recipe
from minialbert.recipes.schema import FinetuneRecipe
from minialbert.runs.muon import has_muon
from minialbert.runs.trainer import ResumableTrainer
from minialbert.tasks.advice import is_chance, remedy, with_rate
from minialbert.tasks.finetune import finetune

STUDENT = "a recursive student {} wide"
ENCODER = "an encoder {} wide"


@pytest.fixture
def make_model(tiny_student_config):
    """Return a model of a kind and width; its weights are shapes alone."""

    def make(kind: str, width: int):
        config = copy.deepcopy(tiny_student_config)
        config.hidden_size = width
        small = {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 8, "vocab_size": 30}
        with torch.device("meta"):
            if kind == "student":
                return MiniAlbertModel(config)
            if kind == "bert":
                return BertModel(BertConfig(hidden_size=width, **small))
            return DistilBertModel(
                DistilBertConfig(dim=width, n_layers=1, n_heads=4, hidden_dim=8, vocab_size=30)
            )

    return make


@pytest.mark.parametrize(
    ("kind", "width", "name", "rate", "what"),
    [
        ("student", 384, "default", 3e-4, f"all of it; {STUDENT}"),
        ("student", 384, "adapters", 1e-3, f"its adapters; {STUDENT}"),
        ("student", 508, "default", 3e-4, f"all of it; {STUDENT}"),
        ("student", 512, "default", 5e-5, f"all of it; {STUDENT}"),
        ("student", 768, "default", 5e-5, f"all of it; {STUDENT}"),
        ("student", 768, "adapters", 5e-4, f"its adapters; {STUDENT}"),
        ("bert", 384, "default", 1e-4, f"all of it; {ENCODER}"),
        ("bert", 768, "default", 5e-5, f"all of it; {ENCODER}"),
        ("distilbert", 768, "default", 5e-5, f"all of it; {ENCODER}"),
    ],
)
def test_a_rate_that_is_left_open_is_that_of_the_model(kind, width, name, rate, what, make_model):
    recipe, notes = with_rate(load_recipe(name, FinetuneRecipe), make_model(kind, width))
    assert recipe.tuning.learning_rate == rate
    tip = "; with more passes and Muon they learn more (--epochs 8 --set tuning.optimizer=muon)"
    tip *= rate == 1e-3 and has_muon()
    assert notes == [f"learning rate: {rate:g}, by the model ({what.format(width)}){tip}"]
    changed = {"tuning.learning_rate": rate}
    assert recipe == apply_overrides(load_recipe(name, FinetuneRecipe), changed)


@pytest.mark.parametrize(
    ("width", "name", "rate"), [(384, "adapters", 2e-3), (768, "adapters", 5e-4), (384, "default", 3e-4)]
)
def test_muon_for_the_adapters_of_a_narrow_student_has_a_rate_of_its_own(width, name, rate, make_model):
    muon = apply_overrides(load_recipe(name, FinetuneRecipe), {"tuning.optimizer": "muon"})
    recipe, (note,) = with_rate(muon, make_model("student", width))
    assert recipe.tuning.learning_rate == rate
    assert "Muon" not in note


def test_no_tip_names_an_optimiser_that_this_torch_lacks(make_model, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    _, (note,) = with_rate(load_recipe("adapters", FinetuneRecipe), make_model("student", 384))
    assert note.endswith("384 wide)")


def test_a_rate_that_is_given_stays(make_model):
    for rate, low in ((5e-5, True), (1e-4, True), (2e-4, False), (3e-3, False)):
        given = apply_overrides(load_recipe("default", FinetuneRecipe), {"tuning.learning_rate": rate})
        recipe, notes = with_rate(given, make_model("student", 384))
        assert (recipe, bool(notes)) == (given, low)
        for kind, width in (("bert", 384), ("student", 768)):
            assert with_rate(given, make_model(kind, width)) == (given, [])
    given = apply_overrides(load_recipe("adapters", FinetuneRecipe), {"tuning.learning_rate": 5e-5})
    assert with_rate(given, make_model("student", 384)) == (given, [])


@pytest.fixture
def tune(tiny_student_dir, tuned, tmp_path):
    """Tune a student that is 32 wide for one pass; returns the record and the rate that the optimiser had."""
    data = tuned("classification").data

    def run(*settings: str, output: str = "run", **options):
        # Constant from the first step on, so that the log has the rate as it is.
        settings = (
            "tuning.lr_scheduler=constant",
            "tuning.warmup_ratio=0",
            "tuning.logging_steps=1",
            *settings,
        )
        options = {"epochs": 1.0, "model": tiny_student_dir} | options
        folder = tmp_path / output
        record = finetune(
            task="classification", data=data, settings=settings, output=folder, progress=False, **options
        ).record
        lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        (rate,) = {line["learning_rate"] for line in lines if line["kind"] == "training"}
        stored = load_recipe(str(folder / "recipe.yaml"), FinetuneRecipe)
        assert rate == stored.tuning.learning_rate == record["recipe"]["tuning"]["learning_rate"]
        assert f"tuning.learning_rate={rate}" in record["command"]
        return record, rate

    return run


def test_the_record_holds_the_rate_and_why(tune, tiny_teacher_dir, tuned, monkeypatch):
    record, rate = tune()
    assert rate == 3e-4
    line = "learning rate: 0.0003, by the model (all of it; a recursive student 32 wide)"
    assert line in record["notes"]
    assert tune(adapters=True, output="adapters")[1] == 1e-3
    assert tune(model=tiny_teacher_dir, output="encoder")[1] == 1e-4
    assert tune(teacher=tuned("classification").run / "model", output="taught")[1] == 3e-4
    assert tune("tuning.learning_rate=null", learning_rate=2e-3, output="open")[1] == 3e-4
    record, rate = tune(learning_rate=2e-3, output="given")
    assert rate == 2e-3
    assert not any(note.startswith("learning rate: ") for note in record["notes"])
    monkeypatch.setattr(ResumableTrainer, "rehearse", lambda _: repeat((1.0, 0.4)))  # seconds per token
    record, rate = tune(epochs=None, time="1h", output="timed")
    assert rate == 3e-4 and line in record["notes"]


@pytest.mark.parametrize("rate", [None, 5e-5])  # 5e-5 is what runs of earlier versions have written down
def test_a_resumed_run_keeps_its_rate(rate, tune, tmp_path):
    before, began = tune(learning_rate=rate)
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(UserError, match="another recipe; different: learning_rate: 0.5"):
        tune(learning_rate=0.5, resume=True)
    after, kept = tune(resume=True)
    assert kept == began == (rate or 3e-4)
    assert after["metrics"] == before["metrics"]
    assert tune(overwrite=True)[1] == 3e-4


# Chance


def by_class(**recalls):
    return {"per_class": {name: {"recall": recall, "support": 9} for name, recall in recalls.items()}}


@pytest.mark.parametrize(
    ("figures", "chance"),
    [
        (by_class(a=1.0, b=0.0), True),
        (by_class(a=0.4, b=0.6, c=0.0), True),
        (by_class(a=0.95, b=0.2), False),  # a rare class, found now and then
        (by_class(a=0.0), False),  # one class alone: nothing to tell apart
        (by_class(a=0.9, b=0.0) | {"f1_micro": 0.08}, True),
        (by_class(a=0.5, b=0.5) | {"f1_micro": 0.5}, False),
        ({"entity_f1": 0.03, "per_type": {}}, True),
        ({"entity_f1": 0.3, "per_type": {}}, False),
        ({"r2": 0.02, "pearson": 0.2}, True),
        ({"r2": 0.4, "pearson": 0.7}, False),
        ({"exact_match": 0.02, "f1": 0.06, "per_class": {}}, True),
        ({"exact_match": 0.6, "f1": 0.7}, False),
        # Every question said to have no answer, which half of them have not; and half of the answers found.
        ({"exact_match": 0.5, "f1": 0.5, "unanswerable_accuracy": 1.0, "answered_f1": 0.0}, True),
        ({"exact_match": 0.2, "f1": 0.25, "unanswerable_accuracy": 0.0, "answered_f1": 0.5}, False),
        ({"rouge": 0.0}, False),  # what chance is of another kind is not known
    ],
)
def test_figures_at_chance_are_told(figures, chance):
    assert is_chance(figures) is chance


def test_what_to_change_is_said_again():
    record = {
        "split": "test", "metrics": {"test": {"entity_f1": 0.03}}, "notes": ["train: 9 rows"],
        "recipe": {"tuning": {"learning_rate": 3e-4}},
    }  # fmt: skip
    start = "the figures are hardly above chance, so tune again before an export; "
    other = "give more rows, a longer training (--epochs) or another learning rate (--lr, it was 0.0003)"
    assert remedy(record) == start + other
    few = (
        "training: 3 steps in all are few for a new head; if …, give more epochs (--epochs 67 makes them 201)"
    )
    record["notes"] += ["learning rate: 0.0003, by the model (…)", few]
    assert remedy(record) == start + few
    record["metrics"]["test"]["entity_f1"] = 0.5
    assert remedy(record) is None


def test_the_command_proposes_an_export_only_of_what_learnt_something(
    call, tiny_student_dir, tuned, tmp_path
):
    usual = (
        "finetune",
        "--model",
        tiny_student_dir,
        "--task",
        "classification",
        "--data",
        tuned("classification").data,
    )
    status, out, _ = call(*usual, "--epochs", "0.1", "--output", tmp_path / "short")
    assert status == 0
    assert "next: the figures are hardly above chance" in out and "(--epochs " in out
    assert "minialbert export" not in out
    good = ("--epochs", 6, "--batch-size", 8, "--lr", "3e-3", "--set", "tuning.dropout=0")
    status, out, _ = call(*usual, *good, "--output", tmp_path / "long")
    assert status == 0
    assert "next: minialbert export --quantize int8" in out and "chance" not in out
