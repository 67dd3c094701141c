"""Elastic tuning: the loss of a depth before the last, which depths are tuned, and what a run leaves behind."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import write_tiny_task
from safetensors.torch import load_file
from transformers import BertForSequenceClassification

from minialbert import MiniAlbertConfig, MiniAlbertForMaskedLM
from minialbert.data.task_types import task_type
from minialbert.errors import UserError
from minialbert.method.elastic import ElasticObjective
from minialbert.recipes.load import apply_overrides, load_recipe
from minialbert.recipes.schema import FinetuneRecipe
from minialbert.runs.directory import RunDirectory
from minialbert.tasks.finetune import finetune, make_tuning_trainer, plan_finetuning
from minialbert.tasks.losses import elastic_loss
from minialbert.tasks.models import load_tuned
from minialbert.tasks.predictions import evaluate_split, make_collator
from minialbert.tasks.trainer import TuningTrainer

KINDS = ("classification", "multi-label", "regression", "ner")


@pytest.fixture(scope="module")
def student(tiny_tokenizer, tmp_path_factory) -> Path:
    """A student of three iterations with random weights."""
    folder = tmp_path_factory.mktemp("elastic") / "student"
    config = MiniAlbertConfig(
        vocab_size=len(tiny_tokenizer), embedding_size=16, hidden_size=32, num_hidden_layers=3,
        num_attention_heads=4, intermediate_size=64, max_position_embeddings=64, adapter_reduction_factor=8,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        MiniAlbertForMaskedLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tasks")
    return {kind: write_tiny_task(folder / kind, kind) for kind in KINDS}


@pytest.fixture
def make_recipe(student, tasks):
    def make(*overrides: str, kind: str = "classification", model: Path = student) -> FinetuneRecipe:
        settings = [
            f"model.name={model}", f"task.name={kind}", f"task.data={tasks[kind]}", "tuning.elastic=true",
            "task.max_train_rows=32", "tuning.batch_size=8", "tuning.epochs=1", "tuning.logging_steps=1",
            "tuning.learning_rate=1e-3", "tuning.dropout=0",
        ]  # fmt: skip
        return apply_overrides(load_recipe("default", FinetuneRecipe), [*settings, *overrides])

    return make


@pytest.fixture
def make_trainer(make_recipe, tmp_path):
    def make(*overrides: str, **options) -> TuningTrainer:
        plan = plan_finetuning(make_recipe(*overrides, **options))
        return make_tuning_trainer(plan, RunDirectory(tmp_path / "trainer"), progress=False)

    return make


def first_batch(trainer: TuningTrainer):
    batches, counts = trainer.get_batch_samples(
        iter(trainer.get_train_dataloader()), trainer.args.gradient_accumulation_steps, torch.device("cpu")
    )
    return batches[0], counts


def logged(trainer: TuningTrainer, name: str) -> list[float]:
    return [record[name] for record in trainer.state.log_history if name in record]


# The term


def test_the_term_by_hand():
    # Probabilities (3/4, 1/4) at the depth, (1/2, 1/2) at the last; the second row's label is ignored.
    logits = torch.tensor([[[1.0986123, 0.0], [9.0, 0.0]]])
    labels = torch.tensor([[1, -100]])
    elastic = ElasticObjective((1,), label_weight=2.0, last_weight=3.0)
    value = elastic_loss(
        elastic, logits, torch.zeros(1, 2, 2), labels, task_type("token"), weight=4.0, count=2.0
    )
    cross_entropy, divergence = 1.3862944, 0.1438410  # ln 4, and ln(2/3)/2 + ln(2)/2
    assert value.item() == pytest.approx(2 * cross_entropy / 4 + 3 * divergence / 2, rel=1e-5)


@pytest.mark.parametrize("problem", ["single-label", "multi-label", "regression"])
def test_the_last_depth_gets_no_gradient_from_it(problem):
    width = 1 if problem == "regression" else 3
    depth, last = (torch.randn(4, width, requires_grad=True) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 0]) if problem == "single-label" else torch.rand(4, width)
    labels = labels.squeeze(-1) if problem == "regression" else labels
    elastic = ElasticObjective((1,), 1.0, 1.0)
    elastic_loss(elastic, depth, last, labels, task_type(problem), weight=4, count=4).backward()
    assert depth.grad.abs().sum() > 0 and last.grad is None


# One step


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_adds_the_loss_of_a_shallower_run(kind, make_trainer):
    weights = ["tuning.class_weights=[0.5, 2]"] if kind == "classification" else []
    trainer = make_trainer("tuning.elastic_depths=[2]", "tuning.elastic_logit_weight=3", *weights, kind=kind)
    batch, counts = first_batch(trainer)
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts).detach()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        last, shallow = (trainer.model(**inputs, num_iterations=number).logits for number in (3, 2))
    labels, functions = batch["labels"], torch.nn.functional
    if kind == "regression":
        gold = [functions.mse_loss(logits[:, 0], labels) for logits in (last, shallow)]
        divergence = functions.mse_loss(shallow, last)
    elif kind == "multi-label":
        gold = [functions.binary_cross_entropy_with_logits(logits, labels) for logits in (last, shallow)]
        ours, theirs = (torch.stack([-logits, logits]) / 2 for logits in (shallow, last))
        pairs = functions.kl_div(
            ours.log_softmax(0), theirs.log_softmax(0), log_target=True, reduction="none"
        )
        divergence = pairs.sum(0).mean()
    else:
        kept = labels.flatten() != -100
        last, shallow, labels = (
            last.flatten(0, -2)[kept], shallow.flatten(0, -2)[kept], labels.flatten()[kept]
        )  # fmt: skip
        class_weights = torch.tensor([0.5, 2.0]) if weights else None
        gold = [functions.cross_entropy(logits, labels, class_weights) for logits in (last, shallow)]
        divergence = functions.kl_div(
            shallow.log_softmax(-1), last.log_softmax(-1), log_target=True, reduction="batchmean"
        )
    torch.testing.assert_close(loss, gold[0] + gold[1] + 3 * divergence)
    expected = (gold[1] + 3 * divergence).item()
    assert trainer.meter.step_terms()["elastic"] == pytest.approx(expected, rel=1e-5)
    assert trainer.terms == ("task", "elastic")


def test_off_leaves_every_number_as_it_was(make_trainer):
    off, weightless = make_trainer("tuning.elastic=false"), make_trainer()
    weightless.elastic = ElasticObjective((1, 2), 0.0, 0.0)
    for trainer in (off, weightless):
        trainer.train()
    assert off.terms == () and "loss_elastic" not in off.state.log_history[0]
    assert logged(weightless, "loss_elastic") == [0.0] * 4
    # Off, the last iteration computes the first token alone: other sums, the same values.
    assert logged(off, "loss") == pytest.approx(logged(weightless, "loss"), rel=1e-4)


def test_the_depth_changes_from_step_to_step_and_not_between_micro_batches(make_trainer, monkeypatch):
    drawn = []
    compute_loss = TuningTrainer.compute_loss

    def remember(self, model, inputs, **options):
        drawn.append(self.elastic.draw(seed=self.args.seed, step=self.state.global_step))
        return compute_loss(self, model, inputs, **options)

    whole = make_trainer("tuning.epochs=2")
    whole.train()
    monkeypatch.setattr(TuningTrainer, "compute_loss", remember)
    parts = make_trainer("tuning.epochs=2", "tuning.micro_batch_size=2")
    parts.train()
    assert drawn == [ElasticObjective((1, 2)).draw(seed=42, step=step) for step in range(8) for _ in range(4)]
    assert set(drawn) == {1, 2}
    assert logged(parts, "loss_elastic") == pytest.approx(logged(whole, "loss_elastic"), rel=1e-4)


def test_bf16_gives_nearly_the_same_term(make_trainer):
    values = []
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(f"tuning.precision={precision}")
        trainer.train()
        values.append(logged(trainer, "loss_elastic")[0])
    assert values[0] == pytest.approx(values[1], rel=2e-2)


# Which depths


def test_the_depths_of_the_model_are_those_tuned(make_recipe, tmp_path, student, tiny_tokenizer):
    model = MiniAlbertForMaskedLM.from_pretrained(student)
    model.config.elastic_depths = [2, 3]  # the last is tuned in any case
    model.save_pretrained(tmp_path / "marked")
    tiny_tokenizer.save_pretrained(tmp_path / "marked")
    assert plan_finetuning(make_recipe(model=tmp_path / "marked")).elastic == ElasticObjective((2,), 1.0, 1.0)
    chosen = plan_finetuning(make_recipe("tuning.elastic_depths=[1]", model=tmp_path / "marked"))
    assert chosen.elastic == ElasticObjective((1,), 1.0, 1.0) and chosen.model.config.elastic_depths == [1]
    assert plan_finetuning(make_recipe()).elastic == ElasticObjective((1, 2), 1.0, 1.0)
    off = plan_finetuning(make_recipe("tuning.elastic=false", model=tmp_path / "marked"))
    assert off.elastic is None and off.model.config.elastic_depths is None


def test_models_without_such_depths(make_recipe, tiny_teacher, tiny_tokenizer, tmp_path):
    with pytest.raises(UserError, match="tuning: elastic_depths has 3, but with 3 iterations depths go"):
        plan_finetuning(make_recipe("tuning.elastic_depths=[3]"))
    BertForSequenceClassification(tiny_teacher.config).save_pretrained(tmp_path / "bert")
    tiny_tokenizer.save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="tuning.elastic needs a MiniALBERT; bert is a bert") as caught:
        plan_finetuning(make_recipe(model=tmp_path / "bert"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tuning.elastic_task_weight=0", "tuning.elastic_logit_weight=0"], "the depths would learn nothing"),
        (["tuning.elastic_depths=[0]"], "greater than or equal to 1"),
        (["tuning.elastic_depths=[]"], "at least 1 item"),
        (["tuning.elastic_task_weight=-1"], "greater than or equal to 0"),
    ],
)
def test_recipes_that_cannot_be_elastic(overrides, message, make_recipe):
    with pytest.raises(UserError, match=message):
        make_recipe(*overrides)


# A whole run


@pytest.mark.parametrize("mode", ["full", "adapters"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_records_every_depth(mode, kind, make_recipe, tmp_path):
    recipe = make_recipe(f"tuning.mode={mode}", kind=kind)
    record = finetune(recipe=recipe, output=tmp_path / "run", progress=False).record
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == record
    assert record["metrics_by_depth"].keys() == {"1", "2"}
    assert "elastic: besides depth 3, every step tunes one of 1, 2" in record["notes"]
    model, tokenizer, inputs = load_tuned(str(tmp_path / "run" / "model"))
    assert model.config.elastic_depths == [1, 2]
    task = plan_finetuning(recipe).task
    rows = task.splits["test"]
    encoded = task.type.encode(rows, tokenizer, task, max_length=inputs.max_length, overlap=inputs.overlap)
    for depth, figures in record["metrics_by_depth"].items():
        assert figures.keys() == record["metrics"].keys()
        measured = evaluate_split(
            model, rows, encoded, task, make_collator(task, tokenizer), num_iterations=int(depth)
        )
        assert measured.metrics == figures["test"]


def test_every_depth_learns_a_task_that_one_word_decides(make_recipe, tmp_path):
    overrides = ("task.max_train_rows=160", "tuning.epochs=6", "tuning.learning_rate=3e-3")
    record = finetune(recipe=make_recipe(*overrides), output=tmp_path / "run", progress=False).record
    assert record["score"] >= 0.9
    for figures in record["metrics_by_depth"].values():
        assert figures["test"]["accuracy"] >= 0.9


def test_without_elastic_tuning_the_record_has_no_depths(make_recipe, tmp_path):
    record = finetune(
        recipe=make_recipe("tuning.elastic=false"), output=tmp_path / "run", progress=False
    ).record
    assert "metrics_by_depth" not in record
    assert load_tuned(str(tmp_path / "run" / "model"))[0].config.elastic_depths is None


def test_a_task_teacher_and_depths_together(make_recipe, tmp_path):
    finetune(recipe=make_recipe("tuning.elastic=false"), output=tmp_path / "teacher", progress=False)
    recipe = make_recipe(f"teacher.model={tmp_path / 'teacher' / 'model'}")
    plan = plan_finetuning(recipe)
    trainer = make_tuning_trainer(plan, RunDirectory(tmp_path / "run"), progress=False)
    trainer.train()
    assert trainer.terms == ("task", "logit", "elastic")
    for record in (line for line in trainer.state.log_history if "loss" in line):
        expected = 0.5 * record["loss_task"] + 0.5 * record["loss_logit"] + record["loss_elastic"]
        assert record["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_stopped_run_resumes_to_the_same_weights_and_figures(make_recipe, tmp_path, monkeypatch):
    recipe = make_recipe("tuning.dropout=0.2", "tuning.epochs=2", "tuning.micro_batch_size=4")
    whole = finetune(recipe=recipe, output=tmp_path / "whole", progress=False).record
    original, calls = TuningTrainer.training_step, []

    def stop_in_the_sixth_step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 11:  # two micro-batches a step
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TuningTrainer, "training_step", stop_in_the_sixth_step)
        with pytest.raises(KeyboardInterrupt):
            finetune(recipe=recipe, output=tmp_path / "stopped", progress=False)
    resumed = finetune(recipe=recipe, output=tmp_path / "stopped", resume=True, progress=False).record
    assert len(calls) > 8
    states = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "stopped")]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert resumed["metrics_by_depth"] == whole["metrics_by_depth"]
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    elastic = [[json.loads(line).get("loss_elastic") for line in lines] for lines in logs]
    assert elastic[0] == elastic[1]
