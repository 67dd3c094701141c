"""From windows to a student on disk: the whole run, its refusals, its record."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, BertModel, pipeline

from minialbert import MiniAlbertForMaskedLM
from minialbert.errors import UserError
from minialbert.method import costs
from minialbert.method.costs import distillation_price, estimate, forward_flops_per_token
from minialbert.method.distill import _first_measurement, _parts, distill, initialise
from minialbert.method.held_out import HeldOutMetrics
from minialbert.method.plan import plan_distillation
from minialbert.recipes.load import apply_overrides, load_recipe
from minialbert.runs.directory import RunDirectory
from minialbert.runs.trainer import ResumableTrainer

TINY = ["student.adapter_reduction_factor=8", "training.eval_windows=8"]


def recipe(teacher: Path | None, *overrides: str):
    settings = [*TINY, *([] if teacher is None else [f"teacher.model='{teacher}'"]), *overrides]
    return apply_overrides(load_recipe("tiny"), settings)


@pytest.fixture
def run(tiny_teacher_dir, tiny_windows, tmp_path):
    def start(*overrides: str, teacher: Path | None = tiny_teacher_dir, output: str = "run", **arguments):
        return distill(
            None, tiny_windows, recipe=recipe(teacher, *overrides), output=tmp_path / output, **arguments
        ).record

    return start


@pytest.fixture
def earlier(distilled, tiny_teacher_dir, tmp_path):
    """Copy a run of the recipe without overrides, as `run` would make it, and return its record."""

    def copy(output: str = "run"):
        shutil.copytree(distilled, tmp_path / output)
        file = tmp_path / output / "recipe.yaml"
        file.write_text(file.read_text().replace(str(distilled.parent / "teacher"), str(tiny_teacher_dir)))
        return json.loads((tmp_path / output / "result.json").read_text())

    return copy


def test_a_run_leaves_student_log_and_record(run, tmp_path):
    record = run()
    root = tmp_path / "run"
    assert {path.name for path in root.iterdir()} == {
        "recipe.yaml",
        "data.json",
        "log.jsonl",
        "checkpoints",
        "model",
        "attention.json",
        "result.json",
    }
    assert {path.name for path in (root / "model").iterdir()} == {
        "config.json", "model.safetensors", "configuration_minialbert.py", "modeling_minialbert.py",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert json.loads((root / "result.json").read_text()) == record
    assert record["kind"] == "distillation"
    assert record["task"] == "masked-lm"
    assert record["seed"] == 42
    assert record["layer_map"] == [2, 4]
    assert record["model"]["teacher"] == "teacher"
    assert record["metrics"]["student_end"]["mlm_loss"] < record["metrics"]["student_start"]["mlm_loss"] + 1
    assert set(record["metrics"]) == {"teacher", "student_start", "student_end"}
    assert len(record["metrics"]["student_end"]["halves"]) == 2
    assert str(tmp_path) not in json.dumps({key: value for key, value in record.items() if key != "recipe"})
    lines = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "training"] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [2, 4]


def test_the_saved_student_is_the_trained_one(distilled, tiny_tokenizer):
    student = AutoModelForMaskedLM.from_pretrained(distilled / "model").eval()
    assert isinstance(student, MiniAlbertForMaskedLM)
    tokenizer = AutoTokenizer.from_pretrained(distilled / "model")
    assert tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
    answers = pipeline("fill-mask", model=student, tokenizer=tokenizer)("the [MASK] sat on the mat")
    assert len(answers) == 5


def test_the_same_seed_gives_the_same_student(run, distilled, tmp_path):
    run()
    one, two = (MiniAlbertForMaskedLM.from_pretrained(at / "model") for at in (distilled, tmp_path / "run"))
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )


def test_another_run_in_the_directory_is_refused(run, tiny_teacher_dir, tiny_windows, tmp_path):
    with RunDirectory(tmp_path / "run").alone():
        for start in (run, initialise):
            arguments = {"overwrite": True}
            if start is initialise:
                arguments |= {
                    "recipe": recipe(tiny_teacher_dir),
                    "data": tiny_windows,
                    "output": tmp_path / "run",
                }
            with pytest.raises(UserError, match="another run is running in"):
                start(**arguments)
    assert not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), UserError("no rows to show")])
def test_no_run_is_lost_for_a_picture(error, run, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("minialbert.method.distill.attention_maps", fail)
    record = run("training.max_steps=1")
    assert record == json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["kind"] == "distillation"
    assert not (tmp_path / "run" / "attention.json").exists()
    assert f"attention.json is not written ({type(error).__name__}: {error})" in caplog.text


def test_a_record_has_no_folders(tiny_teacher_dir, tiny_windows, tmp_path):
    chosen = recipe(tiny_teacher_dir, "data.corpus=['/home/me/texts/notes.txt']", "training.max_steps=1")
    record = distill(None, tiny_windows, recipe=chosen, output=tmp_path / "run").record
    assert record["recipe"]["data"]["corpus"] == ["notes.txt"]
    assert "/home/me" not in (tmp_path / "run" / "result.json").read_text()


def test_a_non_empty_directory_is_refused_without_resume_or_overwrite(run, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty: give --resume"):
        run()
    run(overwrite=True)
    assert (tmp_path / "run" / "mine.txt").read_text() == "precious"
    for start_only in (False, True):
        with pytest.raises(UserError, match="nothing is left to resume"):
            run(resume=True, start_only=start_only)
    (tmp_path / "run" / "report.html").touch()
    monkeypatch.setattr(
        "minialbert.method.distill.plan_distillation", None
    )  # nothing is read, and nothing said of it
    with pytest.raises(UserError, match="nothing is left to resume"):
        run(resume=True)


def test_a_training_that_has_begun_is_not_measured_anew(run, earlier, tmp_path):
    earlier()
    (tmp_path / "run" / "result.json").unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="holds a begun training: --start-only wants another --output"):
        run(resume=True, start_only=True)
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after == before


def test_resume_wants_the_same_recipe(run, earlier, tmp_path):
    earlier()
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(UserError, match="another recipe; different: learning_rate: 0.5"):
        run("training.learning_rate=0.5", resume=True)


def test_resume_wants_the_same_teacher(run, earlier, tiny_teacher_dir, tmp_path):
    earlier()
    (tmp_path / "run" / "result.json").unlink()
    model = AutoModelForMaskedLM.from_pretrained(tiny_teacher_dir)
    with torch.no_grad():
        model.get_input_embeddings().weight[7, 0] += 1.0
    model.save_pretrained(tiny_teacher_dir)
    with pytest.raises(
        UserError, match=r"a run on other data \(teacher: weights .*, now .*\): give the same"
    ):
        run(resume=True)


def test_a_run_stopped_by_sigterm_resumes_to_the_same_student_and_log(run, earlier, tmp_path, monkeypatch):
    from minialbert.method.trainer import DistillationTrainer

    earlier(output="whole")
    original = DistillationTrainer.training_step
    calls = []

    def stop_in_third_step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:  # two micro-batches a step
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "training_step", stop_in_third_step)
        with pytest.raises(KeyboardInterrupt):
            run(output="stopped")
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-2").is_dir()
    assert not (tmp_path / "stopped" / "model").exists()
    run(output="stopped", resume=True)
    whole, stopped = (
        MiniAlbertForMaskedLM.from_pretrained(tmp_path / name / "model") for name in ("whole", "stopped")
    )
    for (name, a), b in zip(whole.state_dict().items(), stopped.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    logs = []
    for name in ("whole", "stopped"):
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        logs.append([{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines])
    assert logs[0] == logs[1]


def test_a_teacher_without_masked_lm_head_switches_the_output_term_off(
    run, tiny_teacher, tiny_tokenizer, tmp_path
):
    folder = tmp_path / "headless"
    BertModel(tiny_teacher.config, add_pooling_layer=False).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    record = run(teacher=folder)
    assert "output term: off (the teacher has no masked-LM head)" in record["notes"]
    assert record["objective"]["output_weight"] == 0
    assert "teacher" not in record["metrics"]


def test_masked_lm_alone(run):
    record = run("student.init=random", teacher=None)
    assert record["layer_map"] == []
    assert record["metrics"]["student_end"]["mlm_loss"] > 0
    assert "cosine_1" not in record["metrics"]["student_end"]


def test_a_fully_parameterised_student(run, tmp_path):
    record = run("student.arch=bert", "student.init=alternate-layers")
    assert record["model"]["arch"] == "bert"
    assert isinstance(AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model"), BertForMaskedLM)


@pytest.mark.parametrize("preset", ["paper", "as-published"])
def test_the_other_presets_train(preset, run):
    record = run(f"distill.preset={preset}")
    assert record["training"]["last_logged_losses"]["loss_attention"] > 0


def test_cached_teacher_outputs_give_nearly_the_same_run(run):
    plain = run("training.epochs=0.5", output="plain")
    cached = run("training.epochs=0.5", "training.cache_teacher=true", output="cached")
    key = ("metrics", "student_end", "mlm_loss")
    assert plain[key[0]][key[1]][key[2]] == pytest.approx(cached[key[0]][key[1]][key[2]], rel=1e-2)


def test_gradient_checkpointing_does_not_change_the_result(run, earlier):
    plain = earlier(output="plain")
    saved = run("training.gradient_checkpointing=true", output="saved")
    for name, value in plain["metrics"]["student_end"].items():
        if isinstance(value, float):
            assert saved["metrics"]["student_end"][name] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill.layer_map=[1,9]"], "matches iteration 2 with teacher layer 9, but the teacher has layers 1-4"),
        (["student.num_attention_heads=2"], "2 attention heads and the teacher 4.*attention_heads=average"),
        (["training.batch_size=9", "training.micro_batch_size=3", "student.init=checkpoint",
          "student.init_from=/nowhere"], "/nowhere does not exist"),
        (["student.hidden_size=30"], "multiple of num_attention_heads"),
        (["student.num_hidden_layers=9", "distill.layer_map=alternate"], "would match 9 iterations"),
        (["distill.mlm_weight=0", "teacher.model=null", "student.init=random"], "only the MLM term is left"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(overrides, message, run, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        run(*overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_start_from_a_teacher_needs_one(run, tiny_windows, tmp_path):
    with pytest.raises(UserError, match="needs a teacher"):
        run("teacher.model=null", settings=["student.init=teacher"])
    with pytest.raises(UserError, match="needs a teacher"):
        initialise(recipe(None), data=tiny_windows, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_heads_can_be_averaged(run):
    record = run("student.num_attention_heads=2", "distill.attention_heads=average")
    assert record["training"]["last_logged_losses"]["loss_attention"] > 0


def test_hidden_states_alone_need_no_equal_heads(run):
    assert run("student.num_attention_heads=2", "distill.attention_weight=0")["layer_map"] == [2, 4]


def test_windows_of_another_tokenizer_are_refused(run, tiny_teacher, tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {
        token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "other"])
    }
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="[UNK]")), pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip
    tiny_teacher.save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="tokenizer"):
        run(teacher=tmp_path / "other")


def test_windows_longer_than_the_teacher_takes_are_refused(run, tiny_tokenizer, tmp_path):
    short = BertConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=16,
    )  # fmt: skip
    BertForMaskedLM(short).save_pretrained(tmp_path / "short")
    tiny_tokenizer.save_pretrained(tmp_path / "short")
    with pytest.raises(
        UserError, match="32 tokens long, but the teacher takes at most 16.*--window-length 16"
    ):
        run(teacher=tmp_path / "short")


def test_the_estimate_counts_the_arithmetic_of_the_paper(tiny_teacher_dir, tiny_windows):
    # At the paper's size: student 91.4 M and teacher 179.3 M operations per token forward, at length 256.
    from transformers import BertConfig

    from minialbert import MiniAlbertConfig

    teacher = forward_flops_per_token(BertConfig(), 256)
    student = forward_flops_per_token(MiniAlbertConfig(), 256)
    assert teacher == pytest.approx(179.3e6, rel=0.01)
    assert student == pytest.approx(91.4e6, rel=0.01)
    plan = plan_distillation(recipe(tiny_teacher_dir), tiny_windows)
    figures = estimate(plan)
    assert figures["steps"] == 4
    assert plan.packs and figures["tokens_in_all"] == round(
        4 * 8 * plan.windows.num_tokens / len(plan.windows)
    )
    padded = plan_distillation(recipe(tiny_teacher_dir, "training.pack_windows=false"), tiny_windows)
    assert estimate(padded)["tokens_in_all"] == 4 * 8 * 32 > figures["tokens_in_all"]


def test_of_two_lengths_the_shorter_counts(tiny_teacher_dir, tiny_windows):
    both = recipe(
        tiny_teacher_dir, "training.max_steps=1000", "training.epochs=2", "training.warmup_steps=50",
        "training.save_steps=500", "training.logging_steps=1",
    )  # fmt: skip
    plan = plan_distillation(both, tiny_windows)
    steps = round(2 * len(plan.windows) / 8)
    training = plan.recipe.training
    assert (plan.max_steps, training.max_steps, training.epochs) == (steps, steps, None)
    # What is counted in steps fits a short run; what is short enough stays.
    assert (training.warmup_steps, training.save_steps) == (steps // 10, steps // 4)
    assert (training.eval_steps, training.logging_steps) == (2, 1)
    note = f"length: 2 passes over {len(plan.windows)} windows, so max_steps {steps}, warmup_steps {steps // 10}, "
    assert any(told.startswith(note) for told in plan.notes)
    # The recipe that the run keeps gives the same plan again, so that a resumed run is the same.
    again = plan_distillation(plan.recipe, tiny_windows)
    assert (again.recipe, again.max_steps) == (plan.recipe, steps)
    longer = apply_overrides(both, {"training.max_steps": 3, "training.epochs": 2.0})
    plan = plan_distillation(longer, tiny_windows)
    assert (plan.max_steps, plan.recipe.training.warmup_steps) == (3, 50)


def test_more_than_ten_passes_are_pointed_out(tiny_teacher_dir, tiny_windows):
    def notes(*settings):
        plan = plan_distillation(recipe(tiny_teacher_dir, *settings), tiny_windows)
        return [note for note in plan.notes if note.startswith("passes")]

    assert notes("training.epochs=10") == []
    assert notes("training.epochs=10", "training.batch_size=100000") == []  # one step is more than ten passes
    (note,) = notes("training.epochs=30")
    assert "each window is read 30 times" in note and "--recipe small, or --set training.epochs=10" in note


def test_the_price_is_told_before_the_first_step(run, tmp_path, caplog):
    with caplog.at_level("INFO", "minialbert"):
        run()
    lines = [record.getMessage() for record in caplog.records]
    (price,) = (line for line in lines if line.startswith("training: "))
    assert re.search(
        r"4 of 4 steps, 8 windows each; \d+ tokens, \d\.\d passes .*; under a minute on this "
        r"machine, and [\d.]+ MB beside the libraries$",
        price,
    )
    assert lines.index(price) < next(place for place, line in enumerate(lines) if line.startswith("step 1/4"))


def test_the_price_counts_held_out_windows_before_between_and_after_the_steps(tiny_teacher_dir, tiny_windows):
    def share(*settings):
        steps = ("training.max_steps=40", "training.eval_steps=10", "training.pack_windows=false")
        plan = plan_distillation(recipe(tiny_teacher_dir, *steps, *settings), tiny_windows)
        return distillation_price(plan).evaluations

    one = share("training.eval_windows=1")
    assert share("training.eval_windows=2") == pytest.approx(2 * one) and 0 < one < 1
    assert share("training.eval_windows=1", "training.eval_steps=5") == pytest.approx(one * (8 + 3) / (4 + 3))


def test_a_resumed_run_tells_the_price_of_what_is_left(run, earlier, tmp_path, caplog):
    earlier()
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-4")
    with caplog.at_level("INFO", "minialbert"):
        run(resume=True)
    assert "training: 2 of 4 steps, 8 windows each; " in caplog.text


def test_a_run_of_more_hours_than_allowed_is_refused(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(costs, "_FEW_OPERATIONS", 0)
    monkeypatch.setattr(costs, "measured_matmul_rate", lambda precision: 1e3)
    with pytest.raises(
        UserError,
        match=r"about \d+:\d\d:\d\d with evaluations, at \d+ tokens/s on this .*more than 24 hours. Give --yes .*small",
    ):
        run(max_hours=24)
    assert not (tmp_path / "run").exists()
    with caplog.at_level("INFO", "minialbert"):
        run("training.max_steps=1", max_hours=1e9)
    assert "; under a minute " in caplog.text  # a few batches have shown it
    monkeypatch.setattr(costs, "_WORTH_MEASURING", math.inf)
    with caplog.at_level("INFO", "minialbert"):
        run("training.max_steps=1", max_hours=1e9, overwrite=True)
    assert "; about " in caplog.text


def test_a_time_chooses_the_number_of_steps_and_a_resumed_run_keeps_it(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        ResumableTrainer, "rehearse", lambda _: itertools.repeat((1.0, 0.5))
    )  # seconds per token
    with caplog.at_level("INFO", "minialbert"):
        record = run(time="2h")
    kept = load_recipe(str(tmp_path / "run" / "recipe.yaml")).training
    steps = record["training"]["steps"]
    assert steps == kept.max_steps > 4 and kept.epochs is None
    assert (kept.warmup_steps, kept.eval_steps) == (1, 2)
    (price,) = (line for line in caplog.messages if line.startswith("training: "))
    assert f"{steps:,} of {steps:,} steps" in price and " at 1 tokens/s on this machine, and " in price
    assert any(line.startswith("length: ") and f"so max_steps {steps}" in line for line in caplog.messages)
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    monkeypatch.setattr(ResumableTrainer, "rehearse", lambda _: itertools.repeat((100.0, 50.0)))
    assert run(time="2h", resume=True)["training"]["steps"] == steps
    with pytest.raises(UserError, match="leave out --steps, --epochs"):
        run(max_steps=3, time="2h", overwrite=True)
    with pytest.raises(UserError, match="time: too short, as a step takes"):
        run(time="1m", overwrite=True)
    with pytest.raises(
        UserError, match="time: expected a span such as 2h, 90m, 45s or 1h30m, found '2 days'"
    ):
        run(time="2 days", overwrite=True)


def test_a_rehearsal_teaches_nothing(run, tmp_path, monkeypatch):
    plain = run("training.max_steps=3", "training.eval_steps=1", "training.save_steps=1", output="plain")
    measured = []

    def fitted_length(make_trainer, *_, **__):
        measured.extend(itertools.islice(make_trainer(RunDirectory(tmp_path / "rehearsal")).rehearse(), 3))
        return 3, 60.0

    monkeypatch.setattr("minialbert.method.distill.fitted_length", fitted_length)
    timed = run(time="1m", output="timed")
    assert len(measured) == 3 and all(speed > 0 for speeds in measured for speed in speeds)
    assert timed["metrics"] == plain["metrics"]
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "timed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_whose_speed_was_measured_first_learns_the_same(run, tmp_path, monkeypatch):
    from minialbert.method.trainer import DistillationTrainer

    plain = run("training.max_steps=3", output="plain")
    calls, rehearse = [], DistillationTrainer.rehearse

    def counted(trainer):
        for seconds in rehearse(trainer):
            calls.append(seconds)
            yield seconds

    monkeypatch.setattr(costs, "_WORTH_MEASURING", -1)
    monkeypatch.setattr(costs, "_REHEARSAL", 0)
    monkeypatch.setattr(DistillationTrainer, "rehearse", counted)
    timed = run("training.max_steps=3", output="timed")
    assert len(calls) == 2 and timed["metrics"] == plain["metrics"]
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "timed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_processor_that_multiplies_bf16_faster_trains_in_it_and_goes_on_so(
    run, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(costs, "_FEW_OPERATIONS", 0)
    monkeypatch.setattr(costs, "bf16_speed", lambda *_: 3.8)
    with caplog.at_level("INFO", "minialbert"):
        record = run("training.precision=auto")
    assert (
        "precision: bf16; bf16 is 3.8 times as fast as fp32 in products of this size on this machine"
        in caplog.messages
    )
    assert record["training"]["precision"] == record["recipe"]["training"]["precision"] == "bf16"
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-4")
    monkeypatch.setattr(costs, "bf16_speed", lambda *_: 0.6)
    assert run("training.precision=auto", resume=True)["training"]["precision"] == "bf16"
    with pytest.raises(UserError, match="precision: fp32"):
        run("training.precision=fp32", resume=True)
    assert run("training.precision=auto", output="slow")["training"]["precision"] == "fp32"


def test_a_warm_up_longer_than_the_run_is_pointed_out(tiny_teacher_dir, tiny_windows):
    plan = plan_distillation(recipe(tiny_teacher_dir, "training.warmup_steps=4"), tiny_windows)
    assert any(note.startswith("warm-up: 4 steps") for note in plan.notes)
    plan = plan_distillation(recipe(tiny_teacher_dir), tiny_windows)
    assert not any(note.startswith("warm-up") for note in plan.notes)


def test_the_plan_starts_from_the_teacher_with_real_text(tiny_teacher_dir, tiny_windows):
    plan = plan_distillation(recipe(tiny_teacher_dir), tiny_windows)
    assert any("least squares" in note for note in plan.notes)
    assert "shared block: mean of the teacher's 4 layers" in plan.notes
    again = plan_distillation(recipe(tiny_teacher_dir), tiny_windows)
    for a, b in zip(plan.student.state_dict().values(), again.student.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_groups_and_kinds_are_distilled_resumed_and_taken_up_again(
    run, tiny_teacher_dir, tiny_windows, tmp_path
):
    sharing = [
        "student.num_hidden_layers=3", "student.num_hidden_groups=2", "student.groups_share_attention=true",
        "student.adapter_kind=layer-norm+lora", "student.lora_rank=2", "student.adapter_init=teacher",
        "student.adapter_layer_norm=false", "distill.elastic=true", "training.lr_scheduler=warmup_stable_decay",
        "training.save_steps=2", "training.warmup_steps=1",
    ]  # fmt: skip
    record = run(*sharing)
    assert "2 groups: the teacher's layers 2, 4" in record["notes"]
    assert any(note.endswith("parts from what the teacher's layers differ by") for note in record["notes"])
    model, resumed = tmp_path / "run" / "model", tmp_path / "resumed"
    shutil.copytree(tmp_path / "run", resumed)
    shutil.rmtree(resumed / "model")
    (resumed / "result.json").unlink()
    shutil.rmtree(resumed / "checkpoints" / "checkpoint-4")
    run(*sharing, output="resumed", resume=True)
    weights, again = (load_file(folder / "model.safetensors") for folder in (model, resumed / "model"))
    assert weights.keys() == again.keys() and all(torch.equal(weights[key], again[key]) for key in weights)
    assert "minialbert.further_blocks.0.ffn.weight" in weights
    # Taken up again, a student has to be the one that the recipe describes.
    taken = ["student.init=checkpoint", f"student.init_from={model}", "student.num_hidden_layers=3"]
    with pytest.raises(
        UserError,
        match="has num_hidden_groups=2, .*, the recipe asks for 1, .*: set student.num_hidden_groups=2",
    ):
        run(*taken, output="other")
    student = MiniAlbertForMaskedLM.from_pretrained(model)
    more = distill(
        None, tiny_windows, student=student, recipe=recipe(tiny_teacher_dir), output=tmp_path / "more"
    )
    written = more.record["recipe"]["student"]
    assert (written["num_hidden_groups"], written["adapter_kind"]) == (2, "layer-norm+lora")
    assert written["adapter_layer_norm"] is False and written["hidden_size"] is None
    with pytest.raises(UserError, match="the student has lora_rank=2, the recipe asks for 3"):
        distill(None, tiny_windows, student=student, recipe="tiny", settings={"student.lora_rank": 3})


def test_a_student_as_it_starts(earlier, tiny_teacher_dir, tiny_windows, tmp_path):
    output = tmp_path / "start"
    record = initialise(recipe(tiny_teacher_dir), data=tiny_windows, output=output)
    assert (record["kind"], record["training"]["steps"], record["training"]["windows"]) == (
        "initialisation",
        0,
        0,
    )
    assert record == json.loads((output / "result.json").read_text())
    student = AutoModelForMaskedLM.from_pretrained(output / "model")
    planned = plan_distillation(recipe(tiny_teacher_dir), tiny_windows).student
    for name, weight in planned.state_dict().items():
        assert torch.equal(student.state_dict()[name], weight), name
    assert record["metrics"]["student_start"] == earlier()["metrics"]["student_start"]
    assert "student_end" not in record["metrics"]
    with pytest.raises(UserError, match="is not empty"):
        initialise(recipe(tiny_teacher_dir), data=tiny_windows, output=output)
    (output / "result.json").unlink()
    again = initialise(recipe(tiny_teacher_dir), data=tiny_windows, output=output, resume=True)
    assert again["metrics"] == record["metrics"]


@pytest.mark.parametrize(
    "line", ['{"kind": "start", "step": 0}', '{"kind": "start", "step": 0, "metrics": [1]}']
)
def test_a_log_that_starts_without_metrics_is_told(line, tmp_path):
    run = RunDirectory(tmp_path)
    run.log.write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"log\.jsonl is damaged \(it starts without metrics\)"):
        _first_measurement(None, run, None, resumed=True)


def test_figures_that_are_not_finite_are_no_result():
    broken = HeldOutMetrics(mlm_loss=math.nan, mlm_accuracy=0.5, cosine={1: math.inf}, masked_tokens=4)
    with pytest.raises(UserError, match=r"figures of the teacher .* not finite \(mlm_loss, cosine_1\)"):
        _parts((broken, broken, broken), "teacher")
