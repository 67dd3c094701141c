"""Elastic training: which depth a step draws, what it adds to the loss, and what a run leaves behind."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from minialbert import MiniAlbertConfig, MiniAlbertForMaskedLM
from minialbert.data.masking import MaskedLanguageModelCollator, ShuffledWindows
from minialbert.data.packing import PackedCollator
from minialbert.data.window_store import WindowDataset
from minialbert.errors import UserError
from minialbert.method.distill import distill
from minialbert.method.elastic import ElasticObjective, mark_depths
from minialbert.method.encoders import Teacher
from minialbert.method.objective import DistillationObjective, EncoderView
from minialbert.method.trainer import DistillationTrainer
from minialbert.recipes.load import apply_overrides, load_recipe
from minialbert.recipes.schema import resolve_depths

# Which depths


def test_all_depths_but_the_last_unless_some_are_named():
    assert resolve_depths(None, 4) == (1, 2, 3)
    assert resolve_depths([3, 1], 4) == (1, 3)


@pytest.mark.parametrize(
    ("depths", "iterations", "message"),
    [
        (None, 1, "at least 2 iterations, got 1"),
        ([1, 4], 4, "has 4, but with 4 iterations depths go from 1 to 3"),
        ([0], 4, "has 0, but with 4"),
        ([2, 2], 4, "a depth twice: 2, 2"),
        ([], 4, "is empty"),
    ],
)
def test_depths_that_cannot_be_trained(depths, iterations, message):
    with pytest.raises(ValueError, match=message):
        resolve_depths(depths, iterations)


def test_a_draw_depends_on_seed_and_step_alone():
    drawn = [ElasticObjective((1, 2, 3)).draw(seed=7, step=step) for step in range(50)]
    torch.manual_seed(123)
    assert drawn == [ElasticObjective((1, 2, 3)).draw(seed=7, step=step) for step in range(50)]
    assert drawn != [ElasticObjective((1, 2, 3)).draw(seed=8, step=step) for step in range(50)]


def test_every_depth_is_as_likely_as_the_others():
    steps = 6000
    counts = Counter(ElasticObjective((1, 3, 5)).draw(seed=42, step=step) for step in range(steps))
    assert set(counts) == {1, 3, 5}
    chi_squared = sum((count - steps / 3) ** 2 / (steps / 3) for count in counts.values())
    assert chi_squared < 13.8  # one in a thousand, with two degrees of freedom
    pairs = Counter(
        (
            ElasticObjective((1, 2)).draw(seed=42, step=step),
            ElasticObjective((1, 2)).draw(seed=42, step=step + 1),
        )
        for step in range(steps)
    )
    assert all(abs(count - steps / 4) < 4 * math.sqrt(steps * 3 / 16) for count in pairs.values())


def test_a_mark_survives_in_the_config_and_is_taken_away(tmp_path: Path):
    config = MiniAlbertConfig(num_hidden_layers=3)
    mark_depths(config, (1, 2))
    config.save_pretrained(tmp_path)
    loaded = MiniAlbertConfig.from_pretrained(tmp_path)
    assert loaded.elastic_depths == [1, 2]
    mark_depths(loaded, None)
    mark_depths(loaded, None)
    assert getattr(loaded, "elastic_depths", None) is None


# The term


def test_the_term_by_hand():
    # Two tokens over two words: probabilities (3/4, 1/4) and (1/2, 1/2) at the depth, (1/2, 1/2) at the last.
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    labels = torch.tensor([1, 0])
    elastic = ElasticObjective((1,), label_weight=2.0, last_weight=5.0)
    cross_entropy = math.log(4) + math.log(2)
    divergence = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    value = elastic({1: logits}, torch.zeros(2, 2), labels, count=4)
    assert value.item() == pytest.approx((2 * cross_entropy + 5 * divergence) / 4)


def test_the_temperature_softens_the_divergence_alone():
    generator = torch.Generator().manual_seed(0)
    logits, last = torch.randn(2, 3, 5, generator=generator).double()
    labels = torch.tensor([0, 4, 2])
    value = ElasticObjective((1,), 1.0, 3.0)({1: logits}, last, labels, count=3, temperature=2.0)
    divergence = torch.nn.functional.kl_div(
        (logits / 2).log_softmax(-1), (last / 2).log_softmax(-1), log_target=True, reduction="sum"
    )
    expected = torch.nn.functional.cross_entropy(logits, labels) + 3 * 4 * divergence / 3
    torch.testing.assert_close(value, expected)


def test_the_last_depth_gets_no_gradient_from_it():
    depth = torch.randn(3, 5, requires_grad=True)
    last = torch.randn(3, 5, requires_grad=True)
    ElasticObjective((1,), 0.0, 1.0)({1: depth}, last, torch.tensor([0, 1, 2]), count=3).backward()
    expected = (depth.softmax(-1) - last.softmax(-1)) / 3
    torch.testing.assert_close(depth.grad, expected)
    assert last.grad is None


LABELS = torch.tensor([[-100, 3, -100, 7], [-100, -100, 5, -100]])


@pytest.mark.parametrize("positions", ["masked", "all"])
def test_the_term_is_added_to_the_total(positions):
    generator = torch.Generator().manual_seed(0)
    last, depth = torch.randn(2, 2, 4, 11, generator=generator)
    masked = LABELS != -100
    seen = masked if positions == "masked" else torch.ones_like(masked)
    settings = {"output_positions": positions, "attention_weight": 0.0, "hidden_weight": 0.0}
    student = EncoderView({}, logits=last[seen], depth_logits={2: depth[masked]})
    teacher = EncoderView({}, logits=depth[seen])
    plain = DistillationObjective(**settings)(student, teacher, labels=LABELS)
    elastic = ElasticObjective((2,), 1.0, 2.0)
    terms = DistillationObjective(**settings, elastic=elastic)(student, teacher, labels=LABELS)
    expected = elastic({2: depth[masked]}, last[masked], LABELS[masked], count=3)
    torch.testing.assert_close(terms.elastic, expected)
    torch.testing.assert_close(terms.total, plain.total + expected)
    assert dict(terms.items()).keys() - dict(plain.items()).keys() == {"elastic"}


def test_the_objective_says_what_it_trains():
    plain, elastic = DistillationObjective(), DistillationObjective(elastic=ElasticObjective((1, 2)))
    assert "elastic" not in plain.to_dict() and "elastic" not in plain.weighted_terms
    assert elastic.to_dict() == {
        **plain.to_dict(),
        "elastic": {"depths": [1, 2], "mlm_weight": 1.0, "output_weight": 5.0},
    }
    assert elastic.weighted_terms == (*plain.weighted_terms, "elastic")
    assert not elastic.without("attention", "hidden", "output").needs_teacher


def test_missing_logits_are_named():
    labels = torch.tensor([[1, -100]])
    student = EncoderView({}, logits=torch.zeros(1, 4))
    with pytest.raises(ValueError, match="logits at the last depth and at one before it"):
        DistillationObjective(elastic=ElasticObjective((1,)))(student, None, labels=labels)


# One step


@pytest.fixture
def config(tiny_student_config):
    tiny_student_config.num_hidden_layers = 3
    tiny_student_config.hidden_dropout_prob = tiny_student_config.attention_probs_dropout_prob = 0.0
    return tiny_student_config


@pytest.fixture
def make_trainer(tiny_teacher, config, tiny_windows, tiny_tokenizer, tmp_path):
    def make(*, elastic=None, teacher=True, packs=False, weights=None, **arguments):
        torch.manual_seed(0)
        args = TrainingArguments(
            **{
                "output_dir": str(tmp_path / "checkpoints"), "max_steps": 4, "per_device_train_batch_size": 4,
                "per_device_eval_batch_size": 8, "logging_steps": 1, "save_strategy": "no", "seed": 1,
                "learning_rate": 1e-3, "remove_unused_columns": False, "report_to": "none",
                "disable_tqdm": True, "use_cpu": True, **arguments,
            }
        )  # fmt: skip
        samples = args.max_steps * args.per_device_train_batch_size * args.gradient_accumulation_steps
        collator = MaskedLanguageModelCollator(tiny_tokenizer, seed=1)
        objective = DistillationObjective(elastic=elastic, layer_map=(0, 2, 4), **(weights or {}))
        return DistillationTrainer(
            MiniAlbertForMaskedLM(config),
            Teacher(tiny_teacher, True) if teacher else None,
            objective if teacher else objective.without("attention", "hidden", "output"),
            args=args,
            train_dataset=ShuffledWindows(WindowDataset(tiny_windows, "train"), samples, seed=1),
            data_collator=PackedCollator(collator) if packs else collator,
            held_out_collator=collator,
            held_out=WindowDataset(tiny_windows, "held_out"),
            held_out_windows=8,
        )

    return make


ELASTIC = ElasticObjective((1, 2))


def logged(trainer, name):
    return [record[name] for record in trainer.state.log_history if name in record]


def test_a_step_trains_the_depth_of_a_shallower_run(make_trainer):
    trainer = make_trainer(elastic=ElasticObjective((2,), 1.0, 3.0), teacher=False)
    (batch,) = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))[0]
    trainer.compute_loss(trainer.model.eval(), batch)
    masked = batch["labels"] != -100
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        last, shallow = (
            trainer.student(**inputs, num_iterations=number).logits[masked].log_softmax(-1)
            for number in (3, 2)
        )
    labels = batch["labels"][masked]
    divergence = torch.nn.functional.kl_div(shallow, last, log_target=True, reduction="batchmean")
    expected = torch.nn.functional.nll_loss(shallow, labels) + 3 * divergence
    assert trainer.meter.step_terms()["elastic"] == pytest.approx(expected.item(), rel=1e-5)


def test_only_iterations_up_to_the_depth_get_its_gradient(make_trainer):
    trainer = make_trainer(elastic=ElasticObjective((1,)), teacher=False, weights={"mlm_weight": 0.0})
    (batch,) = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))[0]
    trainer.compute_loss(trainer.model.train(), batch).backward()
    norms = [
        sum(float(p.grad.abs().sum()) if p.grad is not None else 0.0 for p in adapter.parameters())
        for adapter in trainer.student.minialbert.ffn_adapters
    ]
    assert norms[0] > 0 and norms[1:] == [0, 0]
    assert trainer.student.mlm_head.dense.weight.grad.abs().sum() > 0


def test_off_leaves_every_number_as_it_was(make_trainer):
    runs = []
    for elastic in (None, ElasticObjective((1,), 0.0, 0.0)):
        trainer = make_trainer(elastic=elastic)
        trainer.train()
        runs.append(trainer)
    off, weightless = runs
    assert "loss_elastic" not in off.state.log_history[0]
    assert logged(weightless, "loss_elastic") == [0.0] * 4
    assert logged(off, "loss") == logged(weightless, "loss")
    assert off.measure()[0].depths == {}


def test_the_micro_batches_of_a_step_train_the_same_depth(make_trainer):
    losses = []
    for size, parts in ((4, 1), (2, 2)):
        trainer = make_trainer(
            elastic=ELASTIC, per_device_train_batch_size=size, gradient_accumulation_steps=parts,
            max_steps=2, max_grad_norm=1e9,
        )  # fmt: skip
        trainer.train()
        losses.append(logged(trainer, "loss_elastic") + logged(trainer, "grad_norm"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_packed_windows_give_the_same_term(make_trainer):
    padded, packed = make_trainer(elastic=ELASTIC), make_trainer(elastic=ELASTIC, packs=True)
    for trainer in (padded, packed):
        trainer.train()
    assert logged(padded, "loss_elastic") == pytest.approx(logged(packed, "loss_elastic"), rel=1e-4)


def test_bf16_gives_nearly_the_same_term(make_trainer):
    exact, half = (
        make_trainer(elastic=ELASTIC, max_steps=1),
        make_trainer(elastic=ELASTIC, max_steps=1, bf16=True),
    )
    exact.train()
    half.train()
    half.teacher.model.float()  # the fixture is shared
    assert logged(half, "loss_elastic") == pytest.approx(logged(exact, "loss_elastic"), rel=2e-2)


def test_a_resumed_run_draws_what_an_uninterrupted_one_draws(make_trainer, tmp_path):
    arguments = {"elastic": ELASTIC, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(**arguments)
    whole.train()
    expected = {name: value.clone() for name, value in whole.model.state_dict().items()}
    resumed = make_trainer(**arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-2"))
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    after = logged(resumed, "loss_elastic")
    assert after and logged(whole, "loss_elastic")[-len(after) :] == after


def test_training_lowers_the_loss_of_every_depth(make_trainer):
    trainer = make_trainer(elastic=ELASTIC, teacher=False, max_steps=30, learning_rate=3e-3)
    before = trainer.measure()[0].depths
    trainer.train()
    after = trainer.measure()[0].depths
    for depth in (1, 2):
        assert after[depth]["mlm_loss"] < before[depth]["mlm_loss"] - 0.5


def test_held_out_numbers_of_a_depth_are_those_of_a_shallower_run(make_trainer):
    trainer = make_trainer(elastic=ElasticObjective((1,)))
    measured = trainer.measure()[0].depths
    loader = torch.utils.data.DataLoader(
        trainer.eval_dataset, batch_size=8, collate_fn=trainer._held_out_collator
    )
    (batch,) = list(loader)
    masked = batch["labels"] != -100
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        logits = trainer.student.eval()(**inputs, num_iterations=1).logits[masked]
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"][masked]).item()
    accuracy = (logits.argmax(-1) == batch["labels"][masked]).float().mean().item()
    assert measured == {1: pytest.approx({"mlm_loss": loss, "mlm_accuracy": accuracy}, rel=1e-4)}


# A whole run


@pytest.fixture(scope="module")
def run(distilled, tiny_windows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elastic")

    def start(*overrides: str, teacher: Path | None = distilled.parent / "teacher", output: str):
        settings = [
            "student.adapter_reduction_factor=8", "training.eval_windows=8", "distill.elastic=true",
            *([] if teacher is None else [f"teacher.model='{teacher}'"]), *overrides,
        ]  # fmt: skip
        recipe = apply_overrides(load_recipe("tiny"), settings)
        return distill(None, tiny_windows, recipe=recipe, output=folder / output)

    return start


@pytest.fixture(scope="module")
def plain(run):
    """A run without overrides."""
    return run(output="plain")


def test_a_run_records_the_depths_it_trained(run):
    made = run(
        "student.num_hidden_layers=3", "distill.elastic_depths=[2]", "student.hidden_size=16", output="third"
    )
    record = made.record
    assert json.loads((made.path / "result.json").read_text()) == record
    assert record["objective"]["elastic"] == {"depths": [2], "mlm_weight": 1.0, "output_weight": 5.0}
    for when in ("student_start", "student_end"):
        assert record["metrics"][when]["depths"].keys() == {"2"}
        assert record["metrics"][when]["depths"]["2"].keys() == {"mlm_loss", "mlm_accuracy"}
    assert "depths" not in record["metrics"]["teacher"]
    assert "elastic: besides depth 3, every step trains one of 2" in record["notes"]
    lines = [json.loads(line) for line in (made.path / "log.jsonl").read_text().splitlines()]
    assert all(line["loss_elastic"] > 0 for line in lines if line["kind"] == "training")
    student = MiniAlbertForMaskedLM.from_pretrained(made.path / "model")
    assert student.config.elastic_depths == [2]


def test_a_later_run_for_one_depth_takes_the_mark_away(run, plain):
    start = [f"student.init_from='{plain.path / 'model'}'", "student.init=checkpoint"]
    later = run(*start, "distill.elastic=false", output="later")
    assert not any("elastic" in key for key in later.record["training"]["last_logged_losses"])
    assert "depths" not in later.record["metrics"]["student_end"]
    student = MiniAlbertForMaskedLM.from_pretrained(later.path / "model")
    assert getattr(student.config, "elastic_depths", None) is None


def test_masked_lm_alone_trains_depths_too(run):
    record = run("student.init=random", teacher=None, output="alone").record
    assert record["training"]["last_logged_losses"]["loss_elastic"] > 0


@pytest.mark.parametrize("way", ["training.cache_teacher=true", "training.gradient_checkpointing=true"])
def test_other_ways_to_run_give_nearly_the_same_term(way, run, plain):
    other = run(way, output=way.partition("=")[0])
    losses = [made.record["training"]["last_logged_losses"]["loss_elastic"] for made in (plain, other)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["distill.elastic_depths=[1,2]"],
            "elastic_depths has 2, but with 2 iterations depths go from 1 to 1",
        ),
        (["student.num_hidden_layers=1"], "needs at least 2 iterations, got 1"),
        (["student.arch=bert", "student.init=random"], "needs student.arch minialbert, got bert"),
        (
            ["distill.elastic_mlm_weight=0", "distill.elastic_output_weight=0"],
            "the depths would learn nothing",
        ),
        (["distill.elastic_depths=[0]"], "elastic_depths"),
    ],
)
def test_recipes_that_cannot_be_elastic(overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        apply_overrides(load_recipe("tiny"), ["distill.elastic=true", *overrides])
    assert "\n" not in str(caught.value)
