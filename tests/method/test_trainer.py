"""The training loop: what is trained, how its loss is normalised, what it saves."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import TrainingArguments

from minialbert import MiniAlbertConfig, MiniAlbertForMaskedLM
from minialbert.data.masking import MaskedLanguageModelCollator, ShuffledWindows
from minialbert.data.packing import PackedCollator
from minialbert.data.window_store import WindowDataset
from minialbert.errors import UserError
from minialbert.method.encoders import Teacher
from minialbert.method.fast.recording import checkpoint_activations
from minialbert.method.objective import DistillationObjective, TokenCounts
from minialbert.method.trainer import DistillationStudent, DistillationTrainer


@pytest.fixture
def make_trainer(tiny_teacher, tiny_student_config, tiny_windows, tiny_tokenizer, tmp_path):
    def make(*, objective=None, teacher="default", config=None, max_skipped_steps=10, **arguments):
        torch.manual_seed(0)
        student = MiniAlbertForMaskedLM(config or tiny_student_config)
        settings = {
            "output_dir": str(tmp_path / "checkpoints"),
            "max_steps": 3,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "logging_steps": 1,
            "save_strategy": "no",
            "learning_rate": 1e-3,
            "remove_unused_columns": False,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 1,
            **arguments,
        }
        args = TrainingArguments(**settings)
        windows = WindowDataset(tiny_windows, "train")
        samples = args.max_steps * args.per_device_train_batch_size * args.gradient_accumulation_steps
        return DistillationTrainer(
            student,
            Teacher(tiny_teacher, True) if teacher == "default" else teacher,
            objective or DistillationObjective(),
            args=args,
            train_dataset=ShuffledWindows(windows, samples, seed=1),
            data_collator=MaskedLanguageModelCollator(tiny_tokenizer, seed=1),
            held_out=WindowDataset(tiny_windows, "held_out"),
            held_out_windows=16,
            max_skipped_steps=max_skipped_steps,
        )

    return make


def no_dropout(config: MiniAlbertConfig) -> MiniAlbertConfig:
    config = copy.deepcopy(config)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return config


def test_training_lowers_the_loss_and_moves_only_the_student(make_trainer, tiny_teacher):
    before = {name: value.clone() for name, value in tiny_teacher.state_dict().items()}
    trainer = make_trainer(max_steps=12, learning_rate=3e-3)
    start = trainer.measure()[0]
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert losses[-1] < losses[0]
    assert trainer.measure()[0].cosine[2] > start.cosine[2]
    assert all(torch.equal(before[name], value) for name, value in tiny_teacher.state_dict().items())


def test_the_teacher_is_no_part_of_what_is_trained_and_stays_in_eval_mode(make_trainer, tiny_teacher):
    trainer = make_trainer()
    modes = []
    tiny_teacher.register_forward_hook(lambda module, *_: modes.append(module.training))
    trainer.train()
    teacher_parameters = {id(parameter) for parameter in tiny_teacher.parameters()}
    assert not teacher_parameters & {id(parameter) for parameter in trainer.model.parameters()}
    assert modes and not any(modes)
    assert not any(parameter.requires_grad for parameter in tiny_teacher.parameters())


def test_as_published_runs_the_teacher_with_its_dropout(make_trainer, tiny_teacher):
    trainer = make_trainer(objective=DistillationObjective.preset("as-published"))
    modes = []
    tiny_teacher.register_forward_hook(lambda module, *_: modes.append(module.training))
    trainer.train()
    assert modes and all(modes)


@pytest.mark.parametrize("preset", ["default", "paper", "as-published"])
def test_two_micro_batches_give_the_gradient_of_one_batch(preset, make_trainer, tiny_student_config):
    # Eight windows of different lengths, so that the halves hold different numbers of tokens.
    # The release divides attention by the padded key length, which is the same here in both cuts.
    objective = DistillationObjective.preset(preset, teacher_dropout=False)
    config = no_dropout(tiny_student_config)
    norms = []
    for size, parts in ((8, 1), (4, 2)):
        trainer = make_trainer(
            objective=objective, config=config, max_steps=1, per_device_train_batch_size=size,
            gradient_accumulation_steps=parts, max_grad_norm=1e9,
        )  # fmt: skip
        trainer.train()
        record = next(record for record in trainer.state.log_history if "loss" in record)
        norms.append((record["grad_norm"], record["loss"], record["loss_mlm"], record["loss_hidden"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_counts_cover_all_micro_batches(make_trainer):
    trainer = make_trainer(per_device_train_batch_size=2, gradient_accumulation_steps=3, max_steps=1)
    batches = list(trainer.get_train_dataloader())
    _, counts = trainer.get_batch_samples(iter(batches), 3, torch.device("cpu"))
    masked = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    valid = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert counts == TokenCounts(masked, valid, 6)


def test_every_term_is_logged_and_adds_up(make_trainer):
    trainer = make_trainer()
    trainer.train()
    records = [record for record in trainer.state.log_history if "loss" in record]
    assert len(records) == 3
    for record in records:
        total = (
            record["loss_mlm"]
            + 3 * record["loss_attention"]
            + 3 * record["loss_hidden"]
            + 5 * record["loss_output"]
        )
        assert record["loss"] == pytest.approx(total, rel=1e-4)
        assert record["tokens_per_second"] > 0
        assert record["learning_rate"] >= 0


def test_logits_are_computed_at_masked_positions_only(make_trainer):
    trainer = make_trainer(max_steps=1)
    rows = []
    trainer.student.mlm_head.register_forward_hook(
        lambda module, args, output: rows.append(output.shape[:-1].numel())
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, batch)
    assert rows == [int((batch["labels"] != -100).sum())]


@pytest.mark.parametrize("as_it_attends", [True, False])
def test_attention_rows_are_computed_at_matched_layers_only(make_trainer, as_it_attends):
    from minialbert.method.fast import recording

    # Rows averaged over heads are compared in the open.
    objective = DistillationObjective(attention_heads="match" if as_it_attends else "average")
    trainer = make_trainer(max_steps=1, objective=objective)
    batch = next(iter(trainer.get_train_dataloader()))
    recorded = []
    original = recording.AttentionRecorder.__init__

    def spy(self, *args, **kwargs):
        original(self, *args, **kwargs)
        recorded.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording.AttentionRecorder, "__init__", spy)
        trainer.compute_loss(trainer.model, batch)
    teacher, student = sorted(recorded, key=lambda recorder: -recorder.calls)
    if as_it_attends:
        assert sorted(teacher.inputs) == [2, 4] and sorted(student.divergences) == [1, 2]
        assert not teacher.rows and not student.rows and not student.inputs
    else:
        assert sorted(teacher.rows) == [2, 4] and sorted(student.rows) == [1, 2]
        assert not teacher.inputs and not student.divergences
    assert sorted(recorder.calls for recorder in recorded) == [2, 4]


def loss_and_gradients(trainer, batch):
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    named = trainer.model.named_parameters()
    return loss.detach(), {name: value.grad.clone() for name, value in named if value.grad is not None}


def batches_of_mixed_lengths(trainer, count=8):
    """Windows of several lengths, as short documents leave them."""
    examples = [trainer.train_dataset[index] for index in range(count)]
    return [
        {**example, "input_ids": [*example["input_ids"][: 4 + 3 * index], example["input_ids"][-1]]}
        for index, example in enumerate(examples)
    ]


@pytest.mark.parametrize("direction", ["teacher-student", "student-teacher"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_rows_compared_as_they_are_made_give_the_same_gradients(
    make_trainer, tiny_student_config, direction, checkpointed
):
    objective = DistillationObjective(kl_direction=direction)
    trainer = make_trainer(objective=objective, config=no_dropout(tiny_student_config))
    if checkpointed:
        checkpoint_activations(trainer.student)
    batch = trainer.data_collator(batches_of_mixed_lengths(trainer))
    loss, gradients = loss_and_gradients(trainer, batch)
    assert trainer._compares_as_it_attends
    trainer._compares_as_it_attends = False
    expected, expected_gradients = loss_and_gradients(trainer, batch)
    torch.testing.assert_close(loss, expected)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_packed_windows_train_as_padded_ones(make_trainer, tiny_student_config):
    config = no_dropout(tiny_student_config)
    padded = make_trainer(config=config)
    packed = make_trainer(config=config)
    packed.data_collator = PackedCollator(packed.data_collator)
    examples = batches_of_mixed_lengths(padded)
    results, cells, counts = [], [], []
    for trainer in (padded, packed):
        batches, count = trainer.get_batch_samples(
            iter([trainer.data_collator(examples)]), 1, torch.device("cpu")
        )
        cells.append(batches[0]["input_ids"].numel())
        counts.append(count)
        results.append(loss_and_gradients(trainer, batches[0]))
    assert cells[1] < 0.75 * cells[0] and counts[0] == counts[1]
    assert counts[0].windows == 8
    torch.testing.assert_close(results[1][0], results[0][0])
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-4, atol=1e-6)


def test_relations_are_a_term_of_their_own(make_trainer):
    objective = DistillationObjective(
        attention_weight=0.0, hidden_weight=0.0, relation_weight=2.0, relation_heads=2
    )
    trainer = make_trainer(objective=objective, max_steps=1)
    trainer.train()
    record = next(record for record in trainer.state.log_history if "loss" in record)
    expected = record["loss_mlm"] + 5 * record["loss_output"] + 2 * record["loss_relation"]
    assert record["loss"] == pytest.approx(expected) and record["loss_relation"] > 0


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_teacher_holds_its_weights_in_the_precision_of_the_run(make_trainer, dtype):
    trainer = make_trainer(max_steps=1, bf16=dtype == "bf16")
    assert trainer.teacher.model.dtype == (torch.bfloat16 if dtype == "bf16" else torch.float32)
    assert trainer.student.dtype == torch.float32
    trainer.train()
    trainer.teacher.model.float()  # the fixture is shared
    assert trainer.state.log_history[0]["loss"] > 0


def test_half_precision_gives_nearly_the_same_terms(make_trainer, tiny_student_config):
    terms = []
    for half in (False, True):
        trainer = make_trainer(max_steps=1, bf16=half, config=no_dropout(tiny_student_config))
        trainer.train()
        terms.append(trainer.state.log_history[0])
        trainer.teacher.model.float()
    for name in ("loss_mlm", "loss_attention", "loss_hidden", "loss_output", "grad_norm"):
        assert terms[1][name] == pytest.approx(terms[0][name], rel=2e-2), name


def test_without_a_teacher_masked_lm_alone_is_trained(make_trainer):
    objective = DistillationObjective().without("attention", "hidden", "output")
    trainer = make_trainer(teacher=None, objective=objective, max_steps=2)
    trainer.train()
    record = next(record for record in trainer.state.log_history if "loss" in record)
    assert record["loss"] == pytest.approx(record["loss_mlm"])
    assert trainer.evaluate()["eval_mlm_loss"] > 0


def test_another_width_trains_through_a_projection_that_is_not_saved(
    make_trainer, tiny_student_config, tmp_path
):
    config = copy.deepcopy(tiny_student_config)
    config.hidden_size, config.intermediate_size = 16, 32
    config = MiniAlbertConfig(**{**config.to_dict(), "hidden_size": 16, "embedding_size": 8})
    trainer = make_trainer(config=config, max_steps=2)
    assert trainer.model.projection.weight.shape == (32, 16)
    before = trainer.model.projection.weight.clone()
    trainer.train()
    assert not torch.equal(before, trainer.model.projection.weight)
    trainer.student.save_pretrained(tmp_path / "model")
    loaded = MiniAlbertForMaskedLM.from_pretrained(tmp_path / "model")
    assert not any(
        "projection" in name and value.shape == (32, 16) for name, value in loaded.named_parameters()
    )


def test_same_width_has_no_projection(tiny_student_config):
    student = DistillationStudent(MiniAlbertForMaskedLM(tiny_student_config), teacher_hidden_size=32)
    assert isinstance(student.projection, torch.nn.Identity)


def test_a_checkpoint_holds_no_teacher_and_no_pickled_arguments(make_trainer, tmp_path):
    from safetensors import safe_open

    trainer = make_trainer(save_strategy="steps", save_steps=1, save_total_limit=2)
    trainer.train()
    root = tmp_path / "checkpoints"
    assert sorted(path.name for path in root.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    names = {path.name for path in (root / "checkpoint-3").iterdir()}
    assert "training_args.bin" not in names
    assert "model.safetensors" in names
    with safe_open(root / "checkpoint-3" / "model.safetensors", "pt") as file:
        saved = set(file.keys())
    assert all(name.startswith(("student.", "projection.")) for name in saved)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_resumed_run_equals_an_uninterrupted_one(dropout, make_trainer, tiny_student_config, tmp_path):
    config = copy.deepcopy(tiny_student_config)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    arguments = {"config": config, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(**arguments)
    whole.train()
    expected = {name: value.clone() for name, value in whole.model.state_dict().items()}
    resumed = make_trainer(**arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-2"))
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_held_out_metrics_do_not_depend_on_the_batch_size(make_trainer):
    small, large = (make_trainer(per_device_eval_batch_size=size).measure()[0].flat() for size in (3, 16))
    assert small == pytest.approx(large, rel=1e-4)


def test_the_teacher_agrees_with_itself(make_trainer, tiny_teacher):
    trainer = make_trainer()
    trainer.layers = (2, 4)
    identical = Teacher(tiny_teacher, True)

    def view(batch, request):
        seen = identical.view(batch, replace(request, attention_layers=[2, 4]))
        seen.hidden_states = {1: seen.hidden_states[2], 2: seen.hidden_states[4]}
        seen.attention_rows = {1: seen.attention_rows[2], 2: seen.attention_rows[4]}
        return seen

    metrics = trainer._measure(view, with_teacher=True)[0]
    assert metrics.cosine == pytest.approx({1: 1.0, 2: 1.0}, abs=1e-5)
    assert metrics.attention_kl == pytest.approx({1: 0.0, 2: 0.0}, abs=1e-5)
    assert metrics.output_kl == pytest.approx(0.0, abs=1e-5)


def test_evaluation_leaves_the_student_in_train_mode(make_trainer):
    trainer = make_trainer()
    trainer.model.train()
    trainer.evaluate()
    assert trainer.model.training


def test_a_loss_that_is_never_finite_names_its_terms(make_trainer):
    trainer = make_trainer(max_skipped_steps=1)
    with torch.no_grad():
        trainer.student.mlm_head.decoder.bias.fill_(float("nan"))
    with pytest.raises(UserError, match=r"step 2: .* not finite \(mlm, output\) in 2 steps in a row"):
        trainer.train()


def test_a_run_of_which_every_step_was_skipped_fails(make_trainer):
    trainer = make_trainer(max_skipped_steps=100)
    with torch.no_grad():
        trainer.student.mlm_head.decoder.bias.fill_(float("nan"))
    with pytest.raises(UserError, match=r"not finite \(mlm, output\) in all \d+ steps: lower"):
        trainer.train()


def test_bf16_autocast_stays_close_to_fp32(make_trainer, tiny_student_config):
    config = no_dropout(tiny_student_config)
    losses = []
    for bf16 in (False, True):
        trainer = make_trainer(config=config, bf16=bf16, max_steps=1)
        trainer.train()
        losses.append(next(record["loss"] for record in trainer.state.log_history if "loss" in record))
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_data_parallel_is_refused_with_advice(make_trainer, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(UserError, match="torchrun --nproc-per-node 2"):
        make_trainer()
