"""The tuning loop against plain torch, against itself in micro-batches, and what it keeps and stops at."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import BertForSequenceClassification, TrainerCallback, TrainingArguments

from minialbert import (
    MiniAlbertForMaskedLM,
    MiniAlbertForSequenceClassification,
    MiniAlbertForTokenClassification,
)
from minialbert.data.task_inputs import Encoded, PaddingCollator
from minialbert.recipes.load import apply_overrides, load_recipe
from minialbert.recipes.schema import FinetuneRecipe
from minialbert.runs.directory import RunDirectory
from minialbert.tasks.finetune import make_tuning_trainer, plan_finetuning
from minialbert.tasks.losses import TaskTeacher
from minialbert.tasks.trainer import BEST_FILE, TuningTrainer

KINDS = {"single-label": "class", "multi-label": "classes", "regression": "score", "token": "token"}
METRICS = {
    "single-label": "accuracy", "multi-label": "f1_micro", "regression": "mean_squared_error",
    "token": "entity_f1",
}  # fmt: skip


def make_rows(problem: str, count: int, words: int) -> Encoded:
    """Random rows of 3 to 14 tokens; of a token task two in five positions are not labelled."""
    generator = torch.Generator().manual_seed(1)

    def draw(high: int, size: int) -> list[int]:
        return torch.randint(high, (size,), generator=generator).tolist()

    rows = []
    for _ in range(count):
        length = 3 + draw(12, 1)[0]
        row = {"input_ids": [5 + token for token in draw(words - 5, length)]}
        if problem == "token":
            row["labels"] = [
                label if kept > 1 else -100
                for label, kept in zip(draw(3, length), draw(5, length), strict=True)
            ]
            row["labels"][0] = 1
        elif problem == "multi-label":
            row["labels"] = [float(value) for value in draw(2, 3)]
        else:
            row["labels"] = draw(3, 1)[0] if problem == "single-label" else draw(100, 1)[0] / 20
        rows.append(row)
    return Encoded(rows, list(range(count)))


@pytest.fixture
def make(tiny_student_config, tmp_path):
    """Returns a trainer of a tiny student on random rows; without dropout unless asked for."""

    def trainer(
        problem="single-label", *, rows=16, measure=None, model=None, dropout=0.0, batch=8, micro=None, seed=1,
        class_weights=None, teacher=None, task_weight=1.0, patience=None, callbacks=None, folder="checkpoints",
        weight_noise=None, **arguments,
    ) -> TuningTrainer:  # fmt: skip
        config = copy.deepcopy(tiny_student_config)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = config.classifier_dropout = dropout
        config.num_labels = 1 if problem == "regression" else 3
        kind = MiniAlbertForTokenClassification if problem == "token" else MiniAlbertForSequenceClassification
        if model is None:
            torch.manual_seed(2)
            model = kind(config)
        micro = micro or batch
        settings = {
            "max_steps": 3, "learning_rate": 1e-3, "warmup_steps": 0, "adam_epsilon": 1e-4, "logging_steps": 1,
            "weight_decay": 0.01, "eval_strategy": "steps", "eval_steps": 100, **arguments,
        }  # fmt: skip
        args = TrainingArguments(
            output_dir=str(tmp_path / folder), per_device_train_batch_size=micro, use_cpu=True, seed=seed,
            gradient_accumulation_steps=batch // micro, save_strategy="no", save_total_limit=1,
            remove_unused_columns=False, report_to="none", disable_tqdm=True, **settings,
        )  # fmt: skip
        return TuningTrainer(
            model, problem, METRICS[problem], args=args, train=make_rows(problem, rows, config.vocab_size),
            collator=PaddingCollator(0, KINDS[problem]), batch_size=batch, class_weights=class_weights,
            measure=measure or (lambda: {METRICS[problem]: 0.5}), teacher=teacher, task_weight=task_weight,
            patience=patience, callbacks=callbacks, weight_noise=weight_noise,
        )  # fmt: skip

    return trainer


def weights(trainer: TuningTrainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((value - other[name]).detach().abs().max()) for name, value in one.items())


def losses(trainer: TuningTrainer) -> list[float]:
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


# One step


@pytest.mark.parametrize("problem", KINDS)
def test_three_steps_are_those_of_plain_torch(problem, make):
    trainer = make(problem, rows=8, max_steps=3, warmup_steps=1, max_grad_norm=0.5)
    model = copy.deepcopy(trainer.model)
    trainer.train()

    labels = torch.nn.utils.rnn.pad_sequence
    rows = trainer.train_dataset.rows
    ids = labels([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    mask = labels([torch.ones(len(row["input_ids"]), dtype=torch.long) for row in rows], batch_first=True)
    if problem == "token":
        gold = labels([torch.tensor(row["labels"]) for row in rows], batch_first=True, padding_value=-100)
    else:
        gold = torch.tensor([row["labels"] for row in rows])
    norms = {
        f"{name}.{key}"
        for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)
        for key in ("weight", "bias")
    }  # fmt: skip
    plain = {name for name, _ in model.named_parameters() if name in norms or name.endswith("bias")}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in model.named_parameters() if n not in plain], "weight_decay": 0.01},
            {"params": [p for n, p in model.named_parameters() if n in plain], "weight_decay": 0.0},
        ],
        eps=1e-4,
    )
    expected = []
    model.train()
    for rate in (0.0, 1e-3, 0.5e-3):  # one step of warm-up, then straight down
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = model(input_ids=ids, attention_mask=mask).logits
        if problem == "regression":
            loss = torch.nn.functional.mse_loss(logits[:, 0], gold)
        elif problem == "multi-label":
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, gold)
        else:
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), gold.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        expected.append(float(loss.detach()))
    assert losses(trainer) == pytest.approx(expected, rel=1e-5)
    assert distance(dict(model.named_parameters()), weights(trainer)) < 1e-6


def test_weight_decay_spares_biases_and_layer_norms(make):
    trainer = make()
    trainer.create_optimizer()
    names = {id(value): name for name, value in trainer.model.named_parameters()}
    decayed, spared = set(), set()
    for group in trainer.optimizer.param_groups:
        (decayed if group["weight_decay"] else spared).update(names[id(value)] for value in group["params"])
    assert decayed | spared == set(names.values())
    for name, value in trainer.model.named_parameters():
        assert (name in spared) == (value.ndim == 1), name  # here biases and LayerNorms alone are vectors
    assert any("adapters" in name and "LayerNorm" in name for name in spared)


@pytest.mark.parametrize("problem", KINDS)
def test_micro_batches_do_not_change_the_weights(problem, make):
    # 13 rows: the second step of each epoch has five, in micro-batches of 2, 2 and 1
    class_weights = torch.tensor([0.5, 1.0, 3.0]) if problem in ("single-label", "token") else None
    whole = make(problem, rows=13, max_steps=4, class_weights=class_weights)
    parts = make(problem, rows=13, max_steps=4, class_weights=class_weights, micro=2)
    whole.train()
    parts.train()
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    assert distance(weights(whole), weights(parts)) < 1e-6
    assert distance(weights(whole), weights(make(problem))) > 1e-4  # they did move


def test_noise_on_the_weights_is_that_of_the_step_in_all_its_micro_batches(make):
    plain, whole, parts = (
        make(rows=13, max_steps=4, **options)
        for options in ({}, {"weight_noise": "int4"}, {"weight_noise": "int4", "micro": 2})
    )
    for trainer in (plain, whole, parts):
        trainer.train()
    assert distance(weights(whole), weights(parts)) < 1e-6
    assert distance(weights(whole), weights(plain)) > 1e-5


def task_teacher(config, **settings):
    config = copy.deepcopy(config)
    config.num_labels = 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.weight *= 50  # a teacher that has opinions
    return TaskTeacher(model, torch.tensor([2, 0, 1]), **settings)


def test_micro_batches_do_not_change_distillation_either(make, tiny_teacher):
    settings = {"logit_weight": 0.7, "hidden_weight": 0.4, "temperature": 2.0}
    common = {"rows": 13, "max_steps": 4, "task_weight": 0.3, "class_weights": torch.tensor([0.5, 1.0, 3.0])}
    whole = make(**common, teacher=task_teacher(tiny_teacher.config, **settings))
    parts = make(**common, teacher=task_teacher(tiny_teacher.config, **settings), micro=2)
    whole.train()
    parts.train()
    assert whole.terms == ("task", "logit", "hidden")
    for a, b in zip(whole.state.log_history[:4], parts.state.log_history[:4], strict=True):
        for name in ("loss", "loss_task", "loss_logit", "loss_hidden"):
            assert a[name] == pytest.approx(b[name], rel=1e-5), name
    assert distance(weights(whole), weights(parts)) < 1e-6


def test_the_logit_term_is_a_mean_over_rows_whatever_the_class_weights(make, tiny_teacher):
    settings = {"logit_weight": 1.0, "hidden_weight": 0.0, "temperature": 2.0}
    logged = []
    for class_weights in (None, torch.tensor([10.0, 20.0, 30.0])):
        teacher = task_teacher(tiny_teacher.config, **settings)
        trainer = make(rows=8, max_steps=1, class_weights=class_weights, teacher=teacher)
        rows = [trainer.train_dataset[index] for index in range(8)]
        batch = PaddingCollator(0, "class")(rows)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            ours = trainer.model.eval()(**inputs).logits / 2
            theirs = teacher.model(**inputs).logits[:, [2, 0, 1]] / 2
        by_hand = 4 * torch.nn.functional.kl_div(
            ours.log_softmax(-1), theirs.softmax(-1), reduction="batchmean"
        )
        trainer.train()
        logged.append(trainer.state.log_history[0]["loss_logit"])
        assert logged[-1] == pytest.approx(float(by_hand), rel=1e-4)
    assert logged[0] == pytest.approx(logged[1], rel=1e-6)


def test_the_order_depends_on_the_seed_and_the_epoch(make):
    trainer = make(rows=40)
    sampler = trainer._get_train_sampler()
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert list(make(rows=40)._get_train_sampler()) == first
    assert list(make(rows=40, seed=2)._get_train_sampler()) != first


def test_every_epoch_has_its_own_order_in_training_too(make):
    trainer = make(rows=24, max_steps=6)
    seen = []
    original = trainer.compute_loss

    def remember(model, inputs, *args, **kwargs):
        seen.append(inputs["input_ids"].shape[1])
        return original(model, inputs, *args, **kwargs)

    trainer.compute_loss = remember
    trainer.train()
    sampler, expected = trainer._get_train_sampler(), []
    lengths = trainer.train_dataset.lengths
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order = list(sampler)
        expected += [max(lengths[row] for row in order[begin : begin + 8]) for begin in (0, 8, 16)]
    assert seen == expected
    assert seen[:3] != seen[3:]


# The best state


class _Scores:
    """Gives prepared scores, one per evaluation, and keeps the weights that each was given for."""

    def __init__(self, scores, metric="accuracy"):
        self.scores, self.metric, self.seen, self.trainer = list(scores), metric, [], None

    def __call__(self):
        self.seen.append(weights(self.trainer))
        return {self.metric: self.scores[len(self.seen) - 1], "per_type": {"not": "a figure"}}


@pytest.fixture
def make_scored(make):
    def scored(scores, problem="single-label", **options):
        measure = _Scores(scores, METRICS[problem])
        trainer = make(problem, measure=measure, eval_steps=1, **options)
        measure.trainer = trainer
        return trainer, measure

    return scored


def test_the_best_state_is_put_back(make_scored):
    trainer, measure = make_scored([0.1, 0.7, 0.9, 0.9, 0.3], max_steps=5)
    trainer.train()
    assert len(measure.seen) == 5  # the last step is measured once
    assert distance(weights(trainer), measure.seen[4]) == 0
    trainer.restore_best()
    assert (trainer.best_score, trainer.best_step) == (0.9, 3)  # the first of two equal ones
    assert distance(weights(trainer), measure.seen[2]) == 0
    assert distance(weights(trainer), measure.seen[4]) > 0


def test_the_lowest_error_is_the_best(make_scored):
    trainer, measure = make_scored([2.0, 0.5, 1.0], "regression", max_steps=3)
    trainer.train()
    trainer.restore_best()
    assert trainer.best_step == 2
    assert distance(weights(trainer), measure.seen[1]) == 0


def test_early_stopping(make_scored):
    trainer, measure = make_scored([0.1, 0.5, 0.5, 0.6, 0.2, 0.6, 0.9], max_steps=7, patience=2)
    trainer.train()
    assert trainer.state.global_step == 6
    assert trainer.best_step == 4
    assert len(measure.seen) == 6
    trainer, measure = make_scored([0.5, 0.4, 0.3, 0.2], max_steps=4, folder="patient")
    trainer.train()
    assert trainer.state.global_step == 4


def test_the_end_is_measured_where_steps_do_not_fall_on_it(make):
    calls = []
    trainer = make(
        max_steps=5, eval_steps=2, measure=lambda: calls.append(1) or {"accuracy": len(calls) / 10}
    )
    trainer.train()
    assert len(calls) == 3
    assert trainer.best_step == 5


def test_what_is_logged(make_scored):
    trainer, _ = make_scored([0.25, 0.5, 0.75], max_steps=3)
    trainer.train()
    evaluations = [record for record in trainer.state.log_history if "eval_score" in record]
    assert [record["eval_score"] for record in evaluations] == [0.25, 0.5, 0.75]
    assert evaluations[0]["eval_metric"] == "accuracy"
    assert "eval_per_type" not in evaluations[0]
    training = [record for record in trainer.state.log_history if "loss" in record]
    assert len(training) == 3
    assert all(record["tokens_per_second"] > 0 for record in training)


# Checkpoints


class _StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def test_the_best_state_and_patience_survive_a_restart(make_scored, tmp_path):
    scores = [0.2, 0.9, 0.5, 0.5, 0.5, 0.5]
    whole, _ = make_scored(scores, max_steps=6, patience=3, dropout=0.2, folder="whole")
    whole.train()
    assert whole.state.global_step == 5
    first, measure = make_scored(scores, max_steps=6, patience=3, dropout=0.2, callbacks=[_StopAt(3)])
    first.train()
    checkpoint = tmp_path / "checkpoints" / "checkpoint-3"
    assert (checkpoint / BEST_FILE).is_file()
    assert not list(checkpoint.glob("training_args*"))
    second, _ = make_scored(scores[3:], max_steps=6, patience=3, dropout=0.2)
    second.train(resume_from_checkpoint=str(checkpoint))
    assert second.state.global_step == 5  # one stale evaluation was before the restart
    assert distance(weights(second), weights(whole)) == 0
    second.restore_best()
    assert (second.best_score, second.best_step) == (0.9, 2)
    assert distance(weights(second), measure.seen[1]) == 0


def test_frozen_parameters_are_neither_changed_nor_kept(make, tiny_student_config):
    config = copy.deepcopy(tiny_student_config)
    config.num_labels = 3
    model = MiniAlbertForSequenceClassification(config)
    for name, value in model.named_parameters():
        value.requires_grad_("adapters" in name or name.startswith("classifier"))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer = make(model=model, eval_steps=1)
    trainer.train()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name, value in model.named_parameters() if value.requires_grad}
    assert set(trainer._best) == moved


# Arguments from a recipe


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "warmup_stable_decay"])
def test_every_schedule_follows_a_warm_up(schedule, tiny_student_config, tiny_tokenizer, tmp_path):
    MiniAlbertForMaskedLM(tiny_student_config).save_pretrained(tmp_path / "student")
    tiny_tokenizer.save_pretrained(tmp_path / "student")
    lines = [json.dumps({"text": f"the {word}", "label": word}) for word in ("cat", "dog") * 20]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    recipe = apply_overrides(
        load_recipe("default", FinetuneRecipe),
        [
            f"model.name={tmp_path / 'student'}", "task.name=classification", f"task.data={tmp_path / 'data.jsonl'}",
            f"tuning.lr_scheduler={schedule}", "tuning.batch_size=4", "tuning.micro_batch_size=2",
            "tuning.epochs=1.2", "tuning.warmup_ratio=0.4", "tuning.learning_rate=1e-3", "tuning.weight_noise=int8",
        ],
    )  # fmt: skip
    plan = plan_finetuning(recipe)
    assert (plan.steps_per_epoch, plan.max_steps) == (9, 11)  # 36 rows: four were set apart
    (tmp_path / "run").mkdir()
    trainer = make_tuning_trainer(plan, RunDirectory(tmp_path / "run"), progress=False)
    assert (trainer.args.gradient_accumulation_steps, trainer.args.train_batch_size) == (2, 2)
    assert trainer._weight_noise == "int8"
    scheduler = trainer.create_scheduler(11, trainer.create_optimizer())
    rates = []
    for _ in range(11):
        rates.append(scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([0, 0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert (rates[-1] == pytest.approx(1e-3)) == (schedule == "constant")
    if schedule == "warmup_stable_decay":  # a fifth of 11 steps, from the tenth on
        assert rates[4:] == pytest.approx([1e-3] * 6 + [0.5e-3])
