"""Runs that may end at any moment: exact resume, stops between batches, and steps that are not finite."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainingArguments

from minialbert import MiniAlbertForMaskedLM
from minialbert.data.masking import MaskedLanguageModelCollator, ShuffledWindows
from minialbert.data.window_store import WindowDataset
from minialbert.errors import UserError
from minialbert.method.elastic import ElasticObjective
from minialbert.method.encoders import Teacher
from minialbert.method.objective import DistillationObjective
from minialbert.method.trainer import DistillationTrainer
from minialbert.recipes.load import apply_overrides, load_recipe
from minialbert.recipes.schema import FinetuneRecipe, Recipe
from minialbert.runs.checkpoints import MANIFEST, _seal, find_damage
from minialbert.runs.directory import RunDirectory
from minialbert.runs.muon import has_muon
from minialbert.runs.run_progress import RunProgress
from minialbert.runs.stopping import StopRequested
from minialbert.runs.trainer import PROGRESS_FILE, LossMeter, _step_seed, training_arguments

needs_muon = pytest.mark.skipif(not has_muon(), reason="needs PyTorch 2.10 or newer, which has Muon")

ELASTIC = DistillationObjective(elastic=ElasticObjective((1,)))


@pytest.fixture
def make(tiny_teacher, tiny_student_config, tiny_windows, tiny_tokenizer, tmp_path):
    """A run of six steps of two micro-batches with dropout, elastic depth, a log every third step and evaluations."""

    def make_trainer(
        folder="run", *, max_skipped_steps=10, weight_noise=None, optimizer="adamw", **arguments
    ):
        torch.manual_seed(0)
        config = copy.deepcopy(tiny_student_config)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.2
        run = RunDirectory(tmp_path / folder)
        run.path.mkdir(exist_ok=True)
        settings = {
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "logging_steps": 3,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "no",
            "learning_rate": 1e-2,
            "lr_scheduler_type": "linear",
            "logging_nan_inf_filter": False,
            "remove_unused_columns": False,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 1,
            **arguments,
        }
        args = TrainingArguments(output_dir=str(run.checkpoints), **settings)
        return DistillationTrainer(
            MiniAlbertForMaskedLM(config),
            Teacher(tiny_teacher, True),
            ELASTIC,
            args=args,
            train_dataset=ShuffledWindows(WindowDataset(tiny_windows, "train"), 48, seed=1),
            data_collator=MaskedLanguageModelCollator(tiny_tokenizer, seed=1),
            held_out=WindowDataset(tiny_windows, "held_out"),
            held_out_windows=16,
            max_skipped_steps=max_skipped_steps,
            weight_noise=weight_noise,
            optimizer=optimizer,
            callbacks=[RunProgress(run, terms=ELASTIC.weighted_terms, bar=False, lines=False)],
        ), run

    return make_trainer


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def log_of(run):
    """The log without what depends on the clock."""
    return [{k: v for k, v in record.items() if k != "tokens_per_second"} for record in run.read_log()]


@pytest.fixture
def whole(make):
    trainer, run = make("whole")
    trainer.train()
    return weights(trainer), log_of(run)


class _Calls:
    """Calls back before the n-th call of a method."""

    def __init__(self, monkeypatch, owner, name, at, action):
        self.count = 0
        original = getattr(owner, name)

        def call(*args, **kwargs):
            self.count += 1
            if self.count == at:
                action()
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)


def ask():
    os.kill(os.getpid(), signal.SIGTERM)


# Exact resume


@pytest.mark.parametrize("micro_batch", range(2, 13))
def test_a_run_asked_to_stop_before_any_batch_goes_on_as_if_nothing_had_happened(
    micro_batch, make, whole, monkeypatch
):
    trainer, run = make()
    _Calls(monkeypatch, trainer, "training_step", micro_batch, ask)
    with trainer.listening(), pytest.raises(StopRequested):
        trainer.train(resume_from_checkpoint=trainer.resume_point(run, resume=False))
    done = (micro_batch - 1) // 2  # whole steps
    checkpoints = sorted(path.name for path in run.checkpoints.glob("*"))
    assert checkpoints == ([f"checkpoint-{done}"] if done else [])
    again, run = make()
    again.train(resume_from_checkpoint=again.resume_point(run, resume=True))
    assert_equal(weights(again), whole[0])
    assert log_of(run) == whole[1]


@pytest.mark.parametrize(
    "way",
    [{"weight_noise": "int4"}, pytest.param({"optimizer": "muon"}, marks=needs_muon)],
    ids=["noise", "muon"],
)
def test_a_run_with_noise_or_muon_goes_on_exactly(way, make, whole, monkeypatch):
    trainer, _ = make("other", **way)
    trainer.train()
    expected = weights(trainer)
    assert any(not torch.equal(value, whole[0][name]) for name, value in expected.items())
    trainer, run = make(**way)
    _Calls(monkeypatch, trainer, "compute_loss", 8, ask)  # in the middle of a step, with noise on the weights
    with trainer.listening(), pytest.raises(StopRequested):
        trainer.train(resume_from_checkpoint=trainer.resume_point(run, resume=False))
    again, run = make(**way)
    again.train(resume_from_checkpoint=again.resume_point(run, resume=True))
    assert_equal(weights(again), expected)


@pytest.mark.parametrize("batch", [1, 3, 8, 11])
def test_a_stop_in_the_middle_of_an_evaluation_makes_up_for_it_later(batch, make, whole, monkeypatch):
    trainer, run = make()
    _Calls(monkeypatch, trainer, "_prepare_inputs", _inputs_before(batch), ask)
    with trainer.listening(), pytest.raises(StopRequested):
        trainer.train(resume_from_checkpoint=trainer.resume_point(run, resume=False))
    step = 2 * ((batch - 1) // 4 + 1)
    assert [path.name for path in run.checkpoints.iterdir()] == [f"checkpoint-{step}"]
    progress = json.loads((run.checkpoints / f"checkpoint-{step}" / PROGRESS_FILE).read_text())
    assert progress["evaluation_is_due"]
    assert not [
        record for record in run.read_log() if record["step"] == step and record["kind"] == "evaluation"
    ]
    again, run = make()
    again.train(resume_from_checkpoint=again.resume_point(run, resume=True))
    assert_equal(weights(again), whole[0])
    assert log_of(run) == whole[1]


def _inputs_before(batch):
    """How many batches a run has prepared when it is at this one of an evaluation: four for two steps, four for one."""
    return 4 * ((batch - 1) // 4 + 1) + batch


def test_twice_stopped_and_with_a_damaged_checkpoint(make, whole, monkeypatch, caplog):
    for stop_at in (5, 5):
        trainer, run = make(save_strategy="steps", save_steps=1, save_total_limit=2)
        with monkeypatch.context() as patch:
            _Calls(patch, trainer, "training_step", stop_at, ask)
            with trainer.listening(), pytest.raises(StopRequested):
                trainer.train(resume_from_checkpoint=trainer.resume_point(run, resume=True))
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["checkpoint-3", "checkpoint-4"]
    os.truncate(run.checkpoints / "checkpoint-4" / "optimizer.pt", 1000)
    again, run = make(save_strategy="steps", save_steps=1, save_total_limit=2)
    point = again.resume_point(run, resume=True)
    assert point.endswith("checkpoint-3")
    assert any("checkpoint-4 is damaged (optimizer.pt has 1000 bytes" in line for line in caplog.messages)
    again.train(resume_from_checkpoint=point)
    assert_equal(weights(again), whole[0])
    assert log_of(run) == whole[1]
    assert all(find_damage(path) is None for path in run.checkpoints.iterdir())


def _optimizer(change):
    def spoil(folder):
        state = torch.load(folder / "optimizer.pt", weights_only=True)
        change(state)
        torch.save(state, folder / "optimizer.pt")

    return spoil


def _every(name, value):
    """Set an entry of every weight's moments to what a function makes of it."""

    def change(state):
        for moments in state["state"].values():
            moments[name] = value(moments[name])

    return _optimizer(change)


def _json(name, **changes):
    def spoil(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def _weights(change):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        save_file(change(tensors), folder / "model.safetensors")

    return spoil


def _without_first(tensors):
    return dict(list(tensors.items())[1:])


# What a checkpoint from elsewhere may hold though its manifest is right, and what is said of it.
MISFITS = {
    "moments of three numbers": (_every("exp_avg", lambda _: torch.full((3,), 0.5)), "exp_avg is float32 [3]"),
    "moments with less memory than they say": (
        _every("exp_avg_sq", lambda old: torch.zeros([1] * old.dim()).expand(old.shape)),
        "optimizer.pt: exp_avg_sq is not a plain tensor",
    ),
    "a step of no number": (_every("step", lambda _: torch.zeros(0)), "optimizer.pt: step is float32 [0]"),
    "moments that are not tensors": (_every("exp_avg", lambda _: "x"), "optimizer.pt: exp_avg is not a plain tensor"),
    "moments that are not finite": (_every("exp_avg", lambda old: old * math.nan), "exp_avg holds numbers"),
    "squares below zero": (_every("exp_avg_sq", lambda old: old - 1), "exp_avg_sq holds negative numbers"),
    "moments of one kind": (_optimizer(lambda s: [m.pop("exp_avg") for m in s["state"].values()]), "it holds ['exp"),
    "moments of a strange weight": (_optimizer(lambda s: s["state"].update({999: {}})), "it is of 999, which is none"),
    "no moments": (_optimizer(lambda s: s.update(state={})), "it holds no moments"),
    "another optimiser": (_optimizer(lambda s: s.update(param_groups=[])), "optimizer.pt does not fit"),
    "other betas": (_optimizer(lambda s: s["param_groups"][0].update(betas="xy")), "betas is 'xy', expected"),
    "an infinite rate": (_optimizer(lambda s: s["param_groups"][0].update(lr=math.inf)), "lr is inf"),
    "no optimiser": (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "a list": (lambda folder: torch.save([1], folder / "scheduler.pt"), "scheduler.pt: it holds a list"),
    "a far step": (
        lambda folder: torch.save(torch.load(folder / "scheduler.pt") | {"last_epoch": 10**9}, folder / "scheduler.pt"),
        "scheduler.pt: it is of step 1000000000",
    ),
    "a method": (
        lambda folder: torch.save(torch.load(folder / "scheduler.pt") | {"step": 5}, folder / "scheduler.pt"),
        "scheduler.pt: it sets step",
    ),
    "a tensor less": (_weights(_without_first), "model.safetensors: "),
    "a tensor more": (_weights(lambda t: t | {"x": torch.zeros(1)}), "model.safetensors: x is none of the model's"),
    "weights that are not finite": (_weights(lambda t: {k: v * math.nan for k, v in t.items()}), "model.safetensors: "),
    "weights in halves": (_weights(lambda t: {k: v.half() for k, v in t.items()}), "model.safetensors: "),
    "no weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "model.safetensors does not"),
    "no meters": (_json("progress.json", meters=["x"]), "progress.json: meters.0: "),
    "steps below zero": (_json("progress.json", skipped_steps=-5), "progress.json: skipped_steps: "),
    "time without end": (_json("progress.json", seconds=math.inf), "progress.json: seconds: "),
    "a list for progress": (lambda folder: (folder / "progress.json").write_text("[]"), "progress.json: input"),
    "the state of another step": (_json("trainer_state.json", global_step=3), "trainer_state.json: it is of step 3"),
    "a step in words": (_json("trainer_state.json", global_step="6"), "trainer_state.json: global_step: "),
    "logs every 0 steps": (_json("trainer_state.json", logging_steps=0), "trainer_state.json: logging_steps: "),
    "an unknown key": (_json("trainer_state.json", evil=1), "trainer_state.json does not fit"),
}  # fmt: skip


def test_a_checkpoint_that_is_as_its_manifest_says_and_does_not_fit_is_passed_over(make, caplog):
    trainer, run = make(save_strategy="steps", save_steps=2)
    trainer.train()
    newest = run.checkpoints / "checkpoint-6"
    shutil.copytree(newest, run.path / "whole")
    again, run = make(save_strategy="steps", save_steps=2)
    assert again.resume_point(run, resume=True).endswith("checkpoint-6")
    for what, (spoil, told) in MISFITS.items():
        shutil.rmtree(newest)
        shutil.copytree(run.path / "whole", newest)
        (newest / MANIFEST).unlink()
        spoil(newest)
        _seal(newest, 6)
        caplog.clear()
        assert again.resume_point(run, resume=True).endswith("checkpoint-4"), what
        assert "checkpoint-6 is damaged" in caplog.text and told in caplog.text, (what, caplog.text)
    assert find_damage(newest) is None
    again.train(resume_from_checkpoint=str(run.checkpoints / "checkpoint-4"))
    assert again.resume_point(run, resume=True).endswith("checkpoint-6")  # it was written anew


def test_a_run_none_of_whose_checkpoints_fit_says_that_it_starts_anew(make, caplog):
    trainer, run = make(save_strategy="steps", save_steps=4, max_steps=4)
    trainer.train()
    checkpoint = run.checkpoints / "checkpoint-4"
    (checkpoint / MANIFEST).unlink()
    _json("progress.json", skipped_in_a_row=None)(checkpoint)
    _seal(checkpoint, 4)
    assert make()[0].resume_point(run, resume=True) is None
    assert "the run starts anew" in caplog.text


def test_a_checkpoint_holds_what_is_needed_and_no_state_of_generators(make):
    trainer, run = make(save_strategy="steps", save_steps=4)
    trainer.train()
    names = {path.name for path in (run.checkpoints / "checkpoint-4").iterdir()}
    assert names == {
        "manifest.json", "model.safetensors", "optimizer.pt", "progress.json", "scheduler.pt", "trainer_state.json"
    }  # fmt: skip


def test_the_time_of_a_run_is_that_of_all_its_sessions(make, monkeypatch):
    clock = itertools.count(step=60)
    monkeypatch.setattr("minialbert.runs.trainer.time.perf_counter", lambda: float(next(clock)))
    trainer, run = make()
    _Calls(monkeypatch, trainer, "training_step", 7, ask)
    with trainer.listening(), pytest.raises(StopRequested):
        trainer.train()
    first = trainer.times
    assert set(first) == {"wall_seconds"}
    again, run = make()
    again._load_from_checkpoint(str(run.checkpoints / "checkpoint-3"))
    assert 60 <= again.times["wall_seconds"] < first["wall_seconds"]
    assert again.progress()["session_seconds"][:-1] == [again.times["wall_seconds"]]
    again.restore_progress({**again.progress(), "session_seconds": [1200.04, 600.0]})
    assert again.times == {"wall_seconds": 1800.0, "session_seconds": [1200.0, 600.0]}
    older = {key: value for key, value in again.progress().items() if key != "session_seconds"}
    again.restore_progress({**older, "seconds": 300.0})  # as checkpoints of before have it
    assert again.times == {"wall_seconds": 300.0}


def test_every_step_and_process_draws_its_own_dropout():
    seeds = {_step_seed(*key) for key in itertools.product(range(5), range(100), range(8))}
    assert len(seeds) == 4000 and all(0 <= seed < 2**63 for seed in seeds)


def test_a_second_ctrl_c_ends_at_once(make, monkeypatch):
    trainer, run = make()

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    _Calls(monkeypatch, trainer, "training_step", 6, twice)
    ended = []
    monkeypatch.setattr(RunProgress, "on_train_end", lambda *_, **__: ended.append("the bar is put away"))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with trainer.listening(), pytest.raises(KeyboardInterrupt) as caught:
            trainer.train()
    finally:
        signal.signal(signal.SIGINT, before)
    assert type(caught.value) is KeyboardInterrupt
    assert ended and not trainer.model._forward_pre_hooks
    assert not list(run.checkpoints.glob("*"))


# Steps that are not finite


class _Poison(TrainerCallback):
    """Makes the gradient of one parameter infinite at some steps, counted from 1."""

    def __init__(self, trainer, steps):
        self.trainer, self.steps, self.before = trainer, steps, {}

    def on_step_begin(self, args, state, control, **kwargs):
        self.before[state.global_step + 1] = weights(self.trainer)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 in self.steps:
            next(p for p in self.trainer.model.parameters() if p.grad is not None).grad.view(-1)[0] = math.inf


@needs_muon
def test_a_checkpoint_of_another_optimiser_or_of_strange_momentum_is_passed_over(make, caplog):
    trainer, run = make(save_strategy="steps", save_steps=3, optimizer="muon")
    trainer.train()
    again, run = make(save_strategy="steps", save_steps=3)
    assert again.resume_point(run, resume=True) is None
    assert "optimizer.pt does not fit" in caplog.text
    newest = run.checkpoints / "checkpoint-6"
    state = torch.load(newest / "optimizer.pt", weights_only=True)
    next(m for m in state["state"].values() if "momentum_buffer" in m)["momentum_buffer"] = torch.zeros(3)
    torch.save(state, newest / "optimizer.pt")
    (newest / MANIFEST).unlink()
    _seal(newest, 6)
    again, run = make(save_strategy="steps", save_steps=3, optimizer="muon")
    assert again.resume_point(run, resume=True).endswith("checkpoint-3")
    assert "momentum_buffer is float32 [3]" in caplog.text


def test_an_unknown_optimizer_is_named(make):
    with pytest.raises(UserError, match="unknown optimizer 'sgd': expected adamw or muon"):
        make(optimizer="sgd")


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=needs_muon)])
def test_a_step_with_an_infinite_gradient_changes_neither_weights_nor_moments(optimizer, make):
    trainer, run = make(logging_steps=1, optimizer=optimizer)
    poison = _Poison(trainer, {3})
    trainer.add_callback(poison)
    trainer.train()
    assert_equal(poison.before[3], poison.before[4])
    assert any(not torch.equal(value, poison.before[5][name]) for name, value in poison.before[4].items())
    assert {float(state["step"]) for state in trainer.optimizer.state.values() if "step" in state} == {5.0}
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())
    (skipped,) = [record for record in run.read_log() if record["kind"] == "skipped"]
    assert skipped["step"] == 3 and skipped["non_finite"] == ["gradient"] and skipped["skipped_steps"] == 1
    # The 8 samples of the third step, by the order of the data.
    order = ShuffledWindows(trainer.train_dataset.windows, 48, seed=1)
    assert skipped["window_ids"] == sorted(order[index]["window_id"] for index in range(16, 24))
    assert trainer.skipped_steps == 1
    steps = [record["step"] for record in run.read_log() if record["kind"] == "training"]
    assert steps == [1, 2, 4, 5, 6]  # the third has no loss to tell
    rates = {
        record["step"]: record["learning_rate"] for record in run.read_log() if record["kind"] == "training"
    }
    assert rates[4] == pytest.approx(1e-2 * 3 / 6)  # the schedule moved on


def test_a_loss_that_is_not_finite_is_skipped_by_name(make, monkeypatch):
    trainer, run = make()
    original, calls = type(trainer.objective).__call__, []

    def poisoned(self, *args, **kwargs):
        terms = original(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 4:  # second micro-batch of the second step
            terms.hidden = terms.hidden * math.nan
            terms.total = terms.total + math.inf  # whose derivative is finite
        return terms

    monkeypatch.setattr(type(trainer.objective), "__call__", poisoned)
    poison = _Poison(trainer, set())
    trainer.add_callback(poison)
    trainer.train()
    assert_equal(poison.before[2], poison.before[3])
    (skipped,) = [record for record in run.read_log() if record["kind"] == "skipped"]
    assert skipped["step"] == 2 and skipped["non_finite"] == ["hidden"]
    first = next(record for record in run.read_log() if record["kind"] == "training")
    assert first["step"] == 3 and math.isfinite(first["loss"]) and math.isfinite(first["loss_hidden"])


def test_a_mean_leaves_skipped_steps_out(make):
    clean, clean_run = make("clean", logging_steps=1)
    clean.train()
    trainer, run = make("poisoned", logging_steps=3)
    trainer.add_callback(_Poison(trainer, {3}))
    trainer.train()
    losses = [r["loss"] for r in clean_run.read_log() if r["kind"] == "training"]
    first = next(r for r in run.read_log() if r["kind"] == "training")
    assert first["loss"] == pytest.approx((losses[0] + losses[1]) / 2, rel=1e-12)


def test_too_many_in_a_row_end_the_run_and_keep_the_checkpoint(make):
    trainer, run = make(max_skipped_steps=2, save_strategy="steps", save_steps=1, save_total_limit=1)
    trainer.add_callback(_Poison(trainer, {1, 3, 4, 5, 6}))
    with pytest.raises(UserError) as caught:
        trainer.train()
    message = str(caught.value)
    assert message.startswith("step 5: loss or gradient was not finite (gradient) in 3 steps in a row")
    assert "training.max_skipped_steps is 2" in message and "\n" not in message
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-4"]
    skipped = [record["step"] for record in run.read_log() if record["kind"] == "skipped"]
    assert skipped == [1, 3, 4, 5]


def test_the_count_in_a_row_survives_a_restart(make):
    trainer, run = make(max_skipped_steps=2, max_steps=3, save_strategy="steps", save_steps=3)
    trainer.add_callback(_Poison(trainer, {2, 3}))
    trainer.train()
    again, run = make(max_skipped_steps=2)
    again.add_callback(_Poison(again, {4}))
    with pytest.raises(UserError, match="step 4: .* in 3 steps in a row"):
        again.train(resume_from_checkpoint=again.resume_point(run, resume=True))
    assert again.skipped_steps == 3


# The meter


def test_a_meter_survives_json_to_the_last_bit():
    meter, expected = LossMeter(), LossMeter()
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(7, 3, generator=generator)
    for index, row in enumerate(values):
        for target in (meter, expected):
            target.add({"a": row[0], "total": row[1] / 3})
            target.add({"a": row[2], "total": row[1] / 7})
            target.end_step(10, kept=index != 2)
        revived = LossMeter()
        revived.load(json.loads(json.dumps(meter.state())))
        meter = revived
    assert meter.means(list) == expected.means(list)
    kept = [row for index, row in enumerate(values.double().tolist()) if index != 2]
    assert meter.means(list)["a"] == pytest.approx(sum(row[0] + row[2] for row in kept) / 6, rel=1e-6)
    assert meter.tokens == 70


def test_a_meter_names_terms_and_the_total_only_where_it_is_alone():
    meter = LossMeter()
    meter.add({"a": torch.tensor(1.0), "b": torch.tensor(math.nan), "total": torch.tensor(math.nan)})
    assert meter.non_finite() == ["b"]
    meter.drop_step()
    meter.add({"a": torch.tensor(1.0), "total": torch.tensor(math.inf)})
    assert meter.non_finite() == ["total"]
    meter.drop_step()
    assert meter.non_finite() == [] and meter.means(list) == {}


def test_both_kinds_of_recipe_give_the_trainers_arguments(tmp_path):
    ours = {"output": tmp_path, "max_steps": 9, "micro_batch_size": 2, "accumulation": 4, "warmup_steps": 3}
    shared = [
        "learning_rate=0.25", "weight_decay=0.5", "lr_scheduler=constant", "max_grad_norm=2.5", "adam_beta1=0.8",
        "adam_beta2=0.75", "adam_epsilon=0.125", "seed=7", "logging_steps=5", "precision=bf16",
    ]  # fmt: skip
    for section, kind in (("training", Recipe), ("tuning", FinetuneRecipe)):
        recipe = apply_overrides(load_recipe("default", kind), [f"{section}.{setting}" for setting in shared])
        made = training_arguments(getattr(recipe, section), **ours, save_steps=11)
        assert (made.max_steps, made.per_device_train_batch_size, made.gradient_accumulation_steps) == (
            9,
            2,
            4,
        )
        assert (made.learning_rate, made.weight_decay, made.warmup_steps) == (0.25, 0.5, 3)
        assert made.lr_scheduler_type == "constant_with_warmup"
        assert (made.max_grad_norm, made.adam_beta1, made.adam_beta2, made.adam_epsilon) == (
            2.5,
            0.8,
            0.75,
            0.125,
        )
        assert (made.seed, made.logging_steps, made.save_steps, made.bf16, made.fp16) == (
            7,
            5,
            11,
            True,
            False,
        )
        assert made.report_to == [] and not made.remove_unused_columns
