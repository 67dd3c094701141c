"""Tuning end to end: every kind of task, the record, what is frozen, resuming, teachers, and bad input."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import sys
from itertools import repeat
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
)

import minialbert
from minialbert import MiniAlbertForMaskedLM, MiniAlbertModel
from minialbert.cli import main
from minialbert.data.task_inputs import Encoded
from minialbert.data.tasks import load_task
from minialbert.errors import MissingExtraError, UserError
from minialbert.method import costs
from minialbert.method.adapters import load_adapters
from minialbert.recipes.load import apply_overrides, load_recipe
from minialbert.recipes.schema import FinetuneRecipe
from minialbert.runs.directory import RunDirectory
from minialbert.runs.muon import has_muon
from minialbert.runs.trainer import ResumableTrainer
from minialbert.tasks import finetune as finetuning
from minialbert.tasks.finetune import finetune, finetune_command, plan_finetuning, tuning_price
from minialbert.tasks.models import load_tuned
from minialbert.tasks.predictions import evaluate_split, make_collator
from minialbert.tasks.trainer import TuningTrainer

needs_muon = pytest.mark.skipif(not has_muon(), reason="needs PyTorch 2.10 or newer, which has Muon")

_TEXT = "the sat on mat and a ran in sun it was big red small old new house tree to of is at"
WORDS = _TEXT.split(" ")
FIELDS = {
    "kind", "name", "task", "problem", "metric", "split", "score", "metrics", "seed", "mode", "adapter_init",
    "teacher", "model", "training", "data", "notes", "recipe", "command",
}  # fmt: skip
PROBLEMS = {
    "single": ("classification", "single-label", "accuracy"),
    "pair": ("classification", "single-label", "accuracy"),
    "multi": ("multi-label", "multi-label", "f1_micro"),
    "regression": ("regression", "regression", "pearson_spearman"),
    "token": ("ner", "token", "entity_f1"),
}


def sentences(count: int, seed: int) -> list[list[str]]:
    """Sentences of 3 to 12 words; about half have a cat, about half a dog, anywhere."""
    generator = random.Random(seed)
    made = []
    for _ in range(count):
        words = generator.choices(WORDS, k=generator.randint(3, 10))
        for animal in ("cat", "dog"):
            if generator.random() < 0.5:
                words.insert(generator.randint(0, len(words)), animal)
        made.append(words)
    return made


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_task(folder: Path, kind: str, train: int = 40, validation: int = 16, test: int = 0) -> Path:
    """Write a task that one word decides; returns its directory."""
    folder.mkdir()
    for seed, (split, count) in enumerate({"train": train, "dev": validation, "test": test}.items()):
        made = sentences(count, seed)
        if not count:
            continue
        if kind == "token":
            lines = [
                [f"{word}\t{'B-Animal' if word in ('cat', 'dog') else 'O'}" for word in row] for row in made
            ]
            (folder / f"{'devel' if split == 'dev' else split}.tsv").write_text(
                "".join("\n".join(row) + "\n\n" for row in lines)
            )
            continue
        rows: list[dict[str, object]] = []
        for words in made:
            text = " ".join(words)
            cat = "cat" in words
            rows.append(
                {
                    "single": {"text": text, "label": "with" if cat else "without"},
                    "pair": {"sentence1": "the cat", "sentence2": text, "label": "same" if cat else "other"},
                    "multi": {"text": text, "label": [name for name in ("cat", "dog") if name in words]},
                    "regression": {"text": text, "label": 1.5 * words.count("cat") - words.count("dog")},
                }[kind]
            )
        write_rows(folder / f"{split}.jsonl", rows)
    return folder


@pytest.fixture
def student(tiny_student_config, tiny_tokenizer, tmp_path):
    """Saves a student, with adapters or without, and returns its directory."""

    def make(name: str = "student", **changes: object) -> Path:
        config = copy.deepcopy(tiny_student_config)
        for key, value in changes.items():
            setattr(config, key, value)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model = MiniAlbertForMaskedLM(config)
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def make_recipe(
    model: object, kind: str, data: object, *overrides: str, adapters: bool = False
) -> FinetuneRecipe:
    loaded = load_recipe("adapters" if adapters else "default", FinetuneRecipe)
    return apply_overrides(
        loaded,
        [
            f"model.name={model}", f"task.name={PROBLEMS[kind][0]}", f"task.data={data}", "tuning.batch_size=8",
            "tuning.epochs=2", "tuning.learning_rate=5e-3", "tuning.logging_steps=1", "tuning.precision=fp32",
            *overrides,
        ],
    )  # fmt: skip


@pytest.fixture
def run(student, tmp_path):
    """Tune a tiny student; returns the record."""

    def tune(kind="single", *overrides, model=None, data=None, output="run", adapters=False, **options):
        if model is None:
            model = tmp_path / "student" if (tmp_path / "student").exists() else student()
        if data is None:
            data = tmp_path / kind if (tmp_path / kind).exists() else write_task(tmp_path / kind, kind)
        recipe = make_recipe(model, kind, data, *overrides, adapters=adapters)
        return finetune(recipe=recipe, output=tmp_path / output, progress=False, **options).record

    return tune


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command in this process; returns exit status, standard output and standard error."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["minialbert", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return command


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# End to end


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("mode", ["full", "adapters"])
def test_every_kind_of_task(mode, kind, run, tmp_path, monkeypatch):
    last = {}
    measure = finetuning._measure

    def remember(plan, split):
        last["model"], last[split] = plan.model, measure(plan, split)
        return last[split]

    monkeypatch.setattr(finetuning, "_measure", remember)
    data = write_task(tmp_path / kind, kind, test=8)
    record = run(kind, data=data, adapters=mode == "adapters")
    name, problem, metric = PROBLEMS[kind]
    assert set(record) >= FIELDS
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == record
    assert (record["kind"], record["problem"], record["metric"]) == ("finetune", problem, metric)
    assert record["task"] == kind  # the folder's name
    assert record["split"] == "test"
    assert record["score"] == record["metrics"]["test"][metric]
    assert set(record["metrics"]) == {"validation", "test"}
    assert (record["seed"], record["mode"], record["teacher"]) == (42, mode, None)
    assert record["adapter_init"] == ("pre-trained" if mode == "adapters" else None)
    assert record["data"]["rows"] == {"train": 40, "validation": 16, "test": 8}
    assert record["training"]["steps"] == 10
    assert record["training"]["best_step"] in (5, 10)
    assert record["training"]["seconds_per_step"] > 0
    assert record["model"]["name"] == "student"
    assert record["recipe"]["task"]["data"] == kind
    assert str(tmp_path) not in json.dumps(record)

    # The saved model says what the tuned one said, here and through Transformers' own classes.
    model, tokenizer, inputs = load_tuned(str(tmp_path / "run" / "model"))
    assert (inputs.task, inputs.problem, inputs.metric) == (kind, problem, metric)
    assert (inputs.max_length, inputs.overlap) == (64, 32)
    recipe = make_recipe(tmp_path / "student", kind, data)
    task = load_task(recipe.task)
    rows = task.splits["test"]
    encoded = task.type.encode(rows, tokenizer, task, max_length=inputs.max_length, overlap=inputs.overlap)
    again = evaluate_split(model, rows, encoded, task, make_collator(task, tokenizer))
    assert again.values == last["test"].values
    assert again.metrics == record["metrics"]["test"]
    auto = AutoModelForTokenClassification if kind == "token" else AutoModelForSequenceClassification
    through_auto = auto.from_pretrained(tmp_path / "run" / "model").eval()
    if task.labels:
        assert tuple(through_auto.config.id2label[i] for i in range(len(task.labels))) == task.labels
        assert through_auto.config.label2id == {label: i for i, label in enumerate(task.labels)}
    assert through_auto.config.num_labels == (len(task.labels) or 1)
    batch = tokenizer([" ".join(row) for row in sentences(4, 9)], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits
        assert torch.equal(last["model"](**batch).logits, expected)
        assert torch.equal(through_auto(**batch).logits, expected)
        if mode == "adapters":
            backbone = MiniAlbertModel.from_pretrained(tmp_path / "student")
            adapted = load_adapters(backbone, tmp_path / "run" / "adapters")
            assert torch.equal(adapted(**batch).logits, expected)
            saved = json.loads((tmp_path / "run" / "adapters" / "adapter_config.json").read_text())
            assert saved["task"]["problem"] == problem
        else:
            assert not (tmp_path / "run" / "adapters").exists()


@pytest.mark.parametrize(("kind", "at_least"), [("token", 0.95), ("single", 0.9), ("multi", 0.8)])
def test_a_task_that_one_word_decides_is_learnt(kind, at_least, run, tmp_path):
    data = write_task(tmp_path / kind, kind, train=160)
    epochs = {"token": 2, "single": 4, "multi": 5}[kind]
    overrides = (f"tuning.epochs={epochs}", "tuning.learning_rate=3e-3", "tuning.dropout=0")
    record = run(kind, *overrides, data=data)
    assert record["score"] >= at_least


def test_only_adapters_and_head_change_in_adapters_mode(run, student, tmp_path):
    before = tensors(student())
    record = run(adapters=True)
    after = tensors(tmp_path / "run" / "model")
    moved = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    expected = {name for name in after if "adapters." in name or not name.startswith("minialbert.")}
    assert moved == expected
    assert {"classifier.weight", "classifier.bias"} < moved
    trained = sum(after[name].numel() for name in moved)
    assert record["model"]["trainable_parameters"] == trained
    assert record["model"]["parameters"] == sum(value.numel() for value in after.values())


def test_everything_changes_in_full_mode(run, student, tmp_path):
    before = tensors(student())
    record = run(kind="pair")  # pairs, so that both token types are used
    after = tensors(tmp_path / "run" / "model")
    same = {name for name in after if name in before and torch.equal(before[name], after[name])}
    assert not same
    assert record["model"]["trainable_parameters"] == record["model"]["parameters"]


def test_another_run_in_the_directory_is_refused(run, tmp_path):
    with RunDirectory(tmp_path / "run").alone(), pytest.raises(UserError, match="another run is running in"):
        run(overwrite=True)
    assert not any((tmp_path / "run").iterdir())


def test_keep_model_false_leaves_the_record_alone(run, tmp_path):
    run(adapters=True, keep_model=False)
    assert (tmp_path / "run" / "result.json").is_file()
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "adapters").exists()


def test_overwriting_a_run_leaves_nothing_of_the_former_one(run, tmp_path):
    run(adapters=True)
    (tmp_path / "run" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty: give --resume"):
        run()
    with pytest.raises(UserError, match="nothing is left to resume"):
        run(adapters=True, resume=True)
    run(overwrite=True)
    assert not (tmp_path / "run" / "adapters").exists()
    assert (tmp_path / "run" / "mine.txt").read_text() == "precious"


# Seeds, precision, and how the record's command runs it again


def test_the_same_seed_gives_the_same_weights_and_another_another_head(run, tmp_path):
    one, two = run(output="one"), run(output="two")
    assert_equal(tensors(tmp_path / "one" / "model"), tensors(tmp_path / "two" / "model"))
    assert one["metrics"] == two["metrics"]
    assert tensors(tmp_path / "one" / "model").keys() == tensors(tmp_path / "two" / "model").keys()
    heads = [
        plan_finetuning(make_recipe(tmp_path / "student", "single", tmp_path / "single", f"tuning.seed={seed}"))
        .model.classifier.weight.detach()
        for seed in (42, 42, 43)
    ]  # fmt: skip
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_bf16_keeps_the_weights_in_fp32(run, tmp_path):
    record = run("single", "tuning.precision=bf16")
    assert record["training"]["precision"] == "bf16"
    assert {value.dtype for value in tensors(tmp_path / "run" / "model").values()} == {torch.float32}


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [
            "tuning.learning_rate=5e-5",
            "tuning.epochs=3",
            "tuning.batch_size=32",
        ],  # what the other mode starts from
        ["tuning.learning_rate=5e-4", "tuning.epochs=5", "tuning.batch_size=32"],
        [
            "task.label_separator=','",
            "task.labels=['with', 'no', '1', 'a b']",
            "task.metric=f1",
            "task.text='no'",
        ],
        ["teacher.model=somebody/teacher", "teacher.temperature=4", "tuning.class_weights=[1, 2.5]"],
    ],
)
def test_the_command_of_a_record_runs_its_recipe(adapters, overrides, call, monkeypatch):
    mode = ["tuning.mode=adapters"] if adapters else []
    recipe = make_recipe("somebody/model", "single", "folder", *mode, *overrides, adapters=adapters)
    ran = []

    def noted(recipe, *_):
        ran.append(recipe)
        raise UserError("enough is known")

    monkeypatch.setattr(finetuning, "plan_finetuning", noted)
    words = shlex.split(finetune_command(recipe))
    assert words[:2] == ["minialbert", "finetune"]
    assert call(*words[1:], "--output", "run")[0] == 2
    assert ran == [recipe]


# Balanced class weights


def test_balanced_class_weights_by_hand(run, student, tmp_path):
    write_task(tmp_path / "single", "single")
    labels = ["with"] * 6 + ["without"] * 2
    rows = [{"text": "the cat", "label": label} for label in labels]
    write_rows(tmp_path / "single" / "train.jsonl", rows)
    arguments = (student(), "single", tmp_path / "single")
    plan = plan_finetuning(make_recipe(*arguments, "tuning.class_weights=balanced"))
    assert plan.class_weights.tolist() == pytest.approx([8 / (2 * 6), 8 / (2 * 2)])
    plan = plan_finetuning(make_recipe(*arguments, "tuning.class_weights=[1, 3]"))
    assert plan.class_weights.tolist() == [1, 3]
    with pytest.raises(UserError, match="has 3 values, single has 2 labels: with, without"):
        plan_finetuning(make_recipe(*arguments, "tuning.class_weights=[1, 3, 4]"))
    assert run("single", "tuning.class_weights=balanced")["score"] > 0


def test_balanced_weights_of_tokens_count_words_and_a_missing_class_weighs_one(student, tmp_path):
    write_task(tmp_path / "token", "token")
    (tmp_path / "token" / "train.tsv").write_text("the\tO\nmat\tO\nsat\tO\ncat\tB-Animal\n\n")
    plan = plan_finetuning(
        make_recipe(student(), "token", tmp_path / "token", "tuning.class_weights=balanced")
    )
    assert plan.task.labels == ("O", "B-Animal", "I-Animal")
    assert plan.class_weights.tolist() == pytest.approx([4 / (2 * 3), 4 / (2 * 1), 1.0])


def test_class_weights_need_classes(student, tmp_path):
    data = write_task(tmp_path / "regression", "regression")
    for setting in ("class_weights=balanced", "focal_gamma=2", "repeat_rare=root"):
        with pytest.raises(UserError, match="a regression task has no classes"):
            plan_finetuning(make_recipe(student(), "regression", data, f"tuning.{setting}"))


def test_rows_of_a_rare_class_are_repeated_in_train_and_a_note_says_so(run, tmp_path):
    write_task(tmp_path / "single", "single")
    rows = [{"text": "the cat", "label": label} for label in ["with"] * 8 + ["without"] * 2]
    write_rows(tmp_path / "single" / "train.jsonl", rows)
    record = run("single", "tuning.repeat_rare=even", "tuning.focal_gamma=2", "tuning.batch_size=4")
    assert record["training"]["steps"] == 4 * record["recipe"]["tuning"]["epochs"]  # 16 inputs
    said = "train: repeated because classes are rare: rows with without 4 times; 10 inputs became 16"
    assert said in record["notes"]


# Adapters for a model that has none


def test_fresh_adapters_start_as_the_identity_and_as_published_on_request(run, student, tmp_path):
    plain = student("plain", adapter_reduction_factor=None)
    data = write_task(tmp_path / "single", "single")
    plan = plan_finetuning(make_recipe(plain, "single", data, adapters=True))
    assert plan.adapters == "identity"
    assert "adapters: fresh (identity)" in plan.notes
    steps = math.ceil(len(plan.encoded["train"]) / 8)  # of a pass
    more = math.ceil(200 / steps)
    told = f"{2 * steps} steps in all are few for a new head; if the figures stay at chance, give more epochs"
    assert f"training: {told} (--epochs {more} makes them {more * steps})" in plan.notes
    narrow = "learning rate: 5e-05 suits encoders as wide as BERT (768); for a student 32 wide try 0.0003 (--lr 0.0003)"
    slow = plan_finetuning(make_recipe(plain, "single", data, "tuning.learning_rate=5e-5"))
    assert narrow in slow.notes and not any("wide try" in note for note in plan.notes)
    without = plan_finetuning(make_recipe(plain, "single", data)).model.eval()
    batch = {"input_ids": torch.tensor([[2, 30, 40, 3]]), "attention_mask": torch.ones(1, 4).long()}
    with torch.no_grad():
        assert torch.equal(plan.model.eval()(**batch).logits, without(**batch).logits)
    published = plan_finetuning(
        make_recipe(plain, "single", data, "model.adapter_init=as-published", adapters=True)
    )
    assert published.adapters == "as-published"
    assert published.model.config.adapter_layer_norm
    with torch.no_grad():
        assert not torch.equal(published.model.eval()(**batch).logits, without(**batch).logits)
    lora = ("model.adapter_kind=lora", "model.lora_rank=2", "model.lora_layers=[query,ffn]")
    plan = plan_finetuning(make_recipe(plain, "single", data, *lora, adapters=True))
    assert "adapters: fresh (lora, identity)" in plan.notes
    assert all(list(adapter.up) == ["query"] for adapter in plan.model.minialbert.attention_adapters)
    idle = (
        "adapters: none are added; without effect in the section model: adapter_kind, lora_rank, lora_layers"
    )
    assert idle not in plan.notes
    assert idle in plan_finetuning(make_recipe(plain, "single", data, *lora)).notes
    idle = "adapters: none are added; without effect in the section model: adapter_reduction_factor"
    wider = make_recipe(student(), "single", data, "model.adapter_reduction_factor=4", adapters=True)
    assert idle in plan_finetuning(wider).notes
    plan = plan_finetuning(make_recipe(student(), "single", data, *lora, adapters=True))
    assert "adapters: the student has some; further ones are fresh (lora, identity)" in plan.notes
    assert (plan.adapters, plan.model.config.adapter_kind) == ("pre-trained", "bottleneck+lora")
    record = run(model=plain, adapters=True)
    assert record["adapter_init"] == "identity"
    before, after = tensors(plain), tensors(tmp_path / "run" / "model")
    assert all(torch.equal(before[name], after[name]) for name in before if name in after)
    assert any(after[name].any() for name in after if name.endswith(".up.weight"))


def test_a_bert_has_no_adapters_to_tune(run, tiny_teacher_dir, tmp_path):
    with pytest.raises(UserError, match="adapter-tuning needs a MiniALBERT; teacher is a bert") as caught:
        run(model=tiny_teacher_dir, adapters=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    record = run(model=tiny_teacher_dir)
    assert record["model"]["model_type"] == "bert"


# Which head is kept


def test_a_head_is_kept_for_the_same_labels_and_new_for_others(run, tmp_path):
    run()
    tuned = tmp_path / "run" / "model"
    kept = plan_finetuning(make_recipe(tuned, "single", tmp_path / "single"))
    assert "head: the checkpoint's" in kept.notes
    assert torch.equal(kept.model.classifier.weight, tensors(tuned)["classifier.weight"])
    data = write_task(tmp_path / "pair", "pair")  # two labels as well, of other names
    other = plan_finetuning(make_recipe(tuned, "pair", data))
    assert "head: new (the checkpoint's is for with, without)" in other.notes
    assert not torch.equal(other.model.classifier.weight, tensors(tuned)["classifier.weight"])
    assert not other.model.classifier.bias.any()
    turned = plan_finetuning(
        make_recipe(tuned, "single", tmp_path / "single", "task.labels=['without', 'with']")
    )
    assert any(note.startswith("head: new") for note in turned.notes)


@pytest.mark.parametrize("name", ["student-mlm", "student-sequence-classification"])
def test_a_release_checkpoint_can_be_tuned(name, run, release_copy, tiny_tokenizer, tmp_path):
    source = release_copy(f"adapter-factorised/{name}")
    tiny_tokenizer.save_pretrained(source)
    record = run(model=source, adapters=True)
    assert record["model"]["model_type"] == "minialbert"
    assert record["adapter_init"] == "pre-trained"
    assert load_tuned(str(tmp_path / "run" / "model"))[0].config.model_type == "minialbert"


# Stopping and resuming


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=needs_muon)])
@pytest.mark.parametrize("mode", ["full", "adapters"])
def test_a_stopped_run_resumes_to_the_same_weights_and_log(mode, optimizer, run, tmp_path, monkeypatch):
    options = {"adapters": mode == "adapters"}
    overrides = (
        "single",
        f"tuning.optimizer={optimizer}",
        "tuning.dropout=0.2",
        "tuning.micro_batch_size=4",
        "tuning.evaluations_per_epoch=2",
    )
    whole = run(*overrides, output="whole", **options)
    original, calls = TuningTrainer.training_step, []

    def stop_in_the_second_epoch(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 13:  # two micro-batches a step, five steps an epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TuningTrainer, "training_step", stop_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            run(*overrides, output="stopped", **options)
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-6").is_dir()
    assert not (tmp_path / "stopped" / "result.json").exists()
    with pytest.raises(UserError, match="another recipe; different: learning_rate: 0.5"):
        run(*overrides, "tuning.learning_rate=0.5", output="stopped", resume=True, **options)
    resumed = run(*overrides, output="stopped", resume=True, **options)
    assert_equal(tensors(tmp_path / "whole" / "model"), tensors(tmp_path / "stopped" / "model"))
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["training"]["best_step"] == whole["training"]["best_step"]
    logs = []
    for name in ("whole", "stopped"):
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        logs.append([{key: v for key, v in line.items() if key != "tokens_per_second"} for line in lines])
    assert logs[0] == logs[1]


def test_resume_wants_the_same_rows_labels_and_models(run, student, tmp_path):
    data, model = write_task(tmp_path / "single", "single"), student()
    run()
    (tmp_path / "run" / "result.json").unlink()
    train, weights = data / "train.jsonl", model / "model.safetensors"
    rows, dev, before = train.read_text(), (data / "dev.jsonl").read_text(), weights.read_bytes()

    def refused() -> str:
        with pytest.raises(UserError, match="a run on other data") as caught:
            run(resume=True)
        return str(caught.value)

    train.write_text(rows.replace("without", "X").replace("with", "without").replace("X", "with"))
    assert "(data: train " in refused()
    train.write_text("".join(rows.splitlines(keepends=True)[:30]))
    assert "data: train rows 40, now 30; data: train " in refused()
    train.write_text(rows.replace('"with"', '"zith"'))
    (data / "dev.jsonl").write_text(dev.replace('"with"', '"zith"'))
    assert "data: labels with, without, now without, zith; " in refused()
    train.write_text(rows)
    (data / "dev.jsonl").write_text(dev)
    write_rows(data / "test.jsonl", [{"text": "a cat", "label": "with"}])
    assert "data: splits train, validation, now train, validation, test" in refused()
    (data / "test.jsonl").unlink()
    other = MiniAlbertForMaskedLM.from_pretrained(model)
    with torch.no_grad():
        other.get_input_embeddings().weight[7, 0] += 1.0
    other.save_pretrained(model)
    assert "(model: weights " in refused()
    weights.write_bytes(before)
    assert run(resume=True)["training"]["steps"] == 10


def test_resuming_an_empty_directory_starts_a_run(run):
    assert run(resume=True)["training"]["steps"] == 10


# A fine-tuned teacher


@pytest.fixture
def teacher(tiny_teacher, tiny_tokenizer, tmp_path):
    """Saves a BERT classifier whose labels come in an order, with the same weights per name whatever the order."""

    def make(labels=("with", "without"), name="tuned-teacher", tokenizer=None, **changes: object) -> Path:
        config = copy.deepcopy(tiny_teacher.config)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        for key, value in changes.items():
            setattr(config, key, value)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            model = BertForSequenceClassification(config)
            row = {label: torch.randn(config.hidden_size) for label in sorted(labels)}
            with torch.no_grad():
                for index, label in enumerate(labels):
                    model.classifier.weight[index] = row[label]
                    model.classifier.bias[index] = float(len(label))
        model.save_pretrained(tmp_path / name)
        (tokenizer or tiny_tokenizer).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def losses(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.startswith("loss")} for line in lines if "loss" in line]


def test_a_teacher_with_labels_in_another_order_teaches_the_same(run, teacher, tmp_path):
    straight = teacher(("with", "without"), "straight")
    turned = teacher(("without", "with"), "turned")
    one = run("single", f"teacher.model={straight}", output="one")
    run("single", f"teacher.model={turned}", output="two")
    run("single", output="alone")
    assert one["teacher"] == "straight"
    first, second = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(first) == 10
    assert all(row.keys() == {"loss", "loss_task", "loss_logit"} for row in first)
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
        assert a["loss"] == pytest.approx(0.5 * a["loss_task"] + 0.5 * a["loss_logit"], rel=1e-5)
    assert first[0]["loss_logit"] > 0.1
    alone = losses(tmp_path / "alone")
    assert alone[0].keys() == {"loss", "loss_task"}
    assert alone[0]["loss_task"] == pytest.approx(first[0]["loss_task"], rel=1e-5)
    # A teacher whose config has no names: they are given by id.
    nameless = teacher(("LABEL_0", "LABEL_1"), "nameless")
    with torch.no_grad():
        model = BertForSequenceClassification.from_pretrained(straight)
        model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
        model.save_pretrained(nameless)
    run("single", f"teacher.model={nameless}", "teacher.labels=['with', 'without']", output="named")
    assert losses(tmp_path / "named") == first


def test_the_hidden_states_of_an_equally_wide_teacher(run, teacher, tmp_path):
    run("single", f"teacher.model={teacher()}", "teacher.hidden_weight=1", "teacher.logit_weight=0")
    rows = losses(tmp_path / "run")
    assert rows[0].keys() == {"loss", "loss_task", "loss_hidden"}
    assert rows[-1]["loss_hidden"] < rows[0]["loss_hidden"]
    assert rows[0]["loss"] == pytest.approx(0.5 * rows[0]["loss_task"] + rows[0]["loss_hidden"], rel=1e-5)


def test_a_teacher_never_changes_and_is_measured_in_eval_mode(run, teacher, tmp_path):
    folder = teacher()
    before = tensors(folder)
    plan_of = {}
    make = finetuning.make_tuning_trainer

    def keep(plan, *args, **kwargs):
        plan_of["teacher"] = plan.teacher
        return make(plan, *args, **kwargs)

    finetuning.make_tuning_trainer, original = keep, finetuning.make_tuning_trainer
    try:
        run("single", f"teacher.model={folder}")
    finally:
        finetuning.make_tuning_trainer = original
    model = plan_of["teacher"].model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def other_tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat"])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="[UNK]")), pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


def test_teachers_that_do_not_fit(run, student, teacher, tmp_path):
    student()

    def refused(message: str, *overrides: str, kind: str = "single") -> None:
        with pytest.raises(UserError, match=message) as caught:
            run(kind, *overrides)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()

    refused(
        "teacher strange was tuned for other labels: it has a, b, the task has with, without.*teacher.labels",
        f"teacher.model={teacher(('a', 'b'), 'strange')}",
    )
    refused(
        "teacher foreign has another tokenizer",
        f"teacher.model={teacher(name='foreign', tokenizer=other_tokenizer())}",
    )
    good = teacher()
    refused(
        "teacher.labels has 3 names, the teacher 2 labels",
        f"teacher.model={good}",
        "teacher.labels=[a, b, c]",
    )
    wide = teacher(name="wide", hidden_size=64)
    refused(
        "needs equal widths: the teacher has 64, the model 32",
        f"teacher.model={wide}",
        "teacher.hidden_weight=1",
    )
    short = teacher(name="short", max_position_embeddings=16)
    refused("teacher short takes 16 tokens at most.*task.max_length to 16", f"teacher.model={short}")
    refused("tuned for a single-label task, token is a token task", f"teacher.model={good}", kind="token")
    refused("has no task head", f"teacher.model={tmp_path / 'student'}")


# Figures that mean something


def test_prices_are_predicted_as_prices(run, tmp_path):
    data = tmp_path / "prices"
    data.mkdir()
    for seed, (split, count) in enumerate({"train": 64, "dev": 16}.items()):
        made = sentences(count, seed)
        write_rows(
            data / f"{split}.jsonl",
            [{"text": " ".join(words), "label": 105_000 if "cat" in words else 95_000} for words in made],
        )
    record = run("regression", "tuning.epochs=8", data=data)
    assert record["metrics"]["validation"]["r2"] > 0.5
    assert any("learns in units of" in note for note in record["notes"])
    low, high = (
        answer["score"]
        for answer in minialbert.predict(tmp_path / "run" / "model", ["the mat", "the cat mat"])
    )
    assert 90_000 < low < 99_000 < 101_000 < high < 110_000
    evaluated = minialbert.evaluate(tmp_path / "run" / "model", data).record["metrics"]["validation"]
    assert evaluated["mean_squared_error"] == pytest.approx(
        record["metrics"]["validation"]["mean_squared_error"]
    )


def test_a_model_of_nan_is_no_result(run, student, tmp_path, monkeypatch):
    loaded = finetuning.load_for_tuning

    def broken(*args, **options):
        model, *rest = loaded(*args, **options)
        with torch.no_grad():
            model.classifier.bias.fill_(math.nan)
        return model, *rest

    monkeypatch.setattr(finetuning, "load_for_tuning", broken)
    with pytest.raises(UserError, match="not finite"):
        run("single", "tuning.epochs=1")
    assert not (tmp_path / "run" / "result.json").exists() and not (tmp_path / "run" / "model").exists()


def test_the_positive_class_goes_with_the_model(run, tmp_path):
    record = run("single", "task.positive=with", "task.metric=f1")
    figures = record["metrics"]["validation"]
    assert (record["positive"], record["score"]) == ("with", figures["per_class"]["with"]["f1"])
    other = tmp_path / "other.jsonl"
    write_rows(other, [{"text": "the cat", "label": "with"}] * 4 + [{"text": "a mat", "label": "without"}])
    evaluated = minialbert.evaluate(tmp_path / "run" / "model", other).record
    assert (
        evaluated["positive"] == "with" and evaluated["metrics"]["train"]["per_class"]["with"]["support"] == 4
    )


def test_a_metric_that_validation_cannot_have_is_refused_before_training(run, tmp_path):
    data = write_task(tmp_path / "alike", "single")
    write_rows(data / "dev.jsonl", [{"text": "a cat", "label": "with"}] * 3)
    with pytest.raises(UserError, match="validation: auroc cannot be computed .rows all of one class"):
        run("single", "task.metric=auroc", data=data)
    assert run(
        "single", "task.metric=auroc", "tuning.epochs=1", data=write_task(tmp_path / "both", "single")
    )["score"]


# Limits of the input


def test_long_inputs_are_counted_and_the_saved_overlap_is_the_one_that_was_used(run, student, tmp_path):
    folder = student("short", max_position_embeddings=16)
    data = write_task(tmp_path / "token", "token")
    (tmp_path / "token" / "train.tsv").write_text(
        "".join(f"{word}\tO\n" for word in WORDS) + "cat\tB-Animal\n\n"
    )
    record = run("token", "task.max_length=128", "task.overlap=100", model=folder, data=data)
    assert record["training"]["max_length"] == 16
    assert any("more windows than sentences, at 16 tokens a window" in note for note in record["notes"])
    inputs = load_tuned(str(tmp_path / "run" / "model"))[2]
    assert (inputs.max_length, inputs.overlap) == (16, 8)
    single = write_task(tmp_path / "single", "single")
    write_rows(
        single / "train.jsonl", [{"text": "the cat " * 20, "label": label} for label in ("with", "without")]
    )
    record = run(model=folder, data=single, output="cut")
    # Of 80 tokens 14 fit beside the special ones.
    (note,) = (
        note for note in record["notes"] if note.startswith("train: 2 of 2 texts were cut at 16 tokens; ")
    )
    assert note.endswith("% of all tokens are not read")
    assert record["training"]["cut"]["train"] == {"rows": 2, "share_of_tokens": 66 / 80}
    assert (
        record["training"]["long_texts"] == load_tuned(str(tmp_path / "cut" / "model"))[2].long_texts == "cut"
    )
    windows = run(
        "single",
        "task.long_texts=windows",
        "tuning.batch_size=1",
        model=folder,
        data=single,
        output="windows",
    )
    assert windows["training"]["long_texts"] == "windows"
    assert windows["training"]["cut"] == {}
    assert "train: 2 texts are read in 22 windows of 16 tokens; logits are averaged" in windows["notes"]


def test_a_model_whose_texts_fit_reads_longer_ones_in_windows(run, tmp_path):
    data = write_task(tmp_path / "data", "single")
    rows = [{"text": "the cat " * 40, "label": "with"}, {"text": "the", "label": "without"}]
    write_rows(data / "test.jsonl", rows)
    record = run("single", "task.max_length=32", "task.overlap=8", data=data)
    assert record["training"]["long_texts"] == "windows"
    assert load_tuned(str(tmp_path / "run" / "model"))[2].long_texts == "windows"
    assert any(note.startswith("test: 2 texts are read in") for note in record["notes"])


def test_missing_scoring_packages_are_told_before_anything_is_trained(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(MissingExtraError, match=r"needs scikit-learn: pip install .*\[tasks\]'"):
        run()
    assert not (tmp_path / "run").exists()


def test_a_diverging_run_says_so(run):
    with pytest.raises(
        UserError, match=r"not finite \(.*\) in 4 steps in a row.*: lower tuning.learning_rate"
    ):
        run("single", "tuning.learning_rate=1e38", "tuning.warmup_ratio=0", "tuning.max_skipped_steps=3")


# The command line


@pytest.fixture
def refuse(call, tmp_path):
    """Run `finetune` as it must not be run: status 2, one line, no traceback, no directory; returns the line."""

    def command(*arguments: object) -> str:
        status, _, err = call("finetune", "--output", tmp_path / "run", *arguments)
        assert status == 2, err
        assert "Traceback" not in err
        assert err.startswith("minialbert: ")
        assert len(err.strip().splitlines()) == 1, err
        assert not (tmp_path / "run").exists()
        return err

    return command


def test_settings_that_change_nothing_are_told(run):
    given = {"task.long_texts": "windows", "teacher.temperature": 3.0, "tuning.elastic_depths": [1]}
    record = run("token", "tuning.epochs=0.1", settings=given | {"task.label_pieces": "all"})
    told = [note for note in record["notes"] if note.startswith("settings:")]
    assert told == [
        "settings: without effect here: task.long_texts, teacher.temperature, tuning.elastic_depths"
    ]


def test_finetune_from_the_command_line(call, student, tmp_path, caplog):
    data = write_task(tmp_path / "token", "token", test=4)
    arguments = ("--model", student(), "--task", "ner", "--data", data, "--set", "tuning.epochs=1")
    status, out, _ = call("finetune", *arguments, "--output", tmp_path / "a", "--adapters", "--json")
    assert status == 0
    record = json.loads(out)
    assert record == json.loads((tmp_path / "a" / "result.json").read_text())
    assert (record["name"], record["mode"], record["recipe"]["tuning"]["learning_rate"]) == (
        "adapters", "adapters", 1e-3,
    )  # fmt: skip
    with caplog.at_level("INFO", "minialbert"):
        status, out, _ = call("finetune", *arguments, "--output", tmp_path / "b")
    assert status == 0
    assert "token, test" in out
    assert "entity F1" in out
    assert "Animal" in out
    assert "parameters are trained (100.00 %)" in caplog.text
    assert re.search(
        r"training: (\d+) of \1 steps, 32 rows each; [\d,]+ tokens, 1.0 passes over the data; under a minute on this ",
        caplog.text,
    )


def test_a_tuning_of_more_hours_than_allowed_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "_FEW_OPERATIONS", 0)
    monkeypatch.setattr(costs, "measured_matmul_rate", lambda precision: 1e3)
    with pytest.raises(
        UserError, match=r"2.0 passes over the data; about \d.*more than 24 hours. Give --yes"
    ):
        run(max_hours=24)
    assert not (tmp_path / "run").exists()
    price = tuning_price(plan_finetuning(make_recipe(tmp_path / "student", "single", tmp_path / "single")))
    run(max_hours=price.seconds / 3600 + 1)


def test_a_price_counts_validation_and_what_is_measured_at_the_end(student, tmp_path):
    data = write_task(tmp_path / "single", "single", test=1)
    for split, count in (("train", 8), ("dev", 24), ("test", 16)):
        rows = [{"text": "the cat", "label": label} for label in ("with", "without")]
        write_rows(data / f"{split}.jsonl", rows * (count // 2))
    tuning = {"epochs": 3, "batch_size": 4, "evaluations_per_epoch": 2}
    keys = [f"tuning.{key}={value}" for key, value in tuning.items()]
    price = tuning_price(plan_finetuning(make_recipe(student(), "single", data, *keys)))
    # Forward passes of rows of equal length: 6 times 24, then 24 and 16; a step has three of each row.
    assert price.evaluations == pytest.approx((6 * 24 + 24 + 16) / (3 * 3 * 8))


def test_a_time_chooses_the_number_of_epochs_and_a_resumed_run_keeps_it(run, tmp_path, monkeypatch):
    monkeypatch.setattr(ResumableTrainer, "rehearse", lambda _: repeat((1.0, 0.4)))  # seconds per token
    record = run(time="1h")
    kept = load_recipe(str(tmp_path / "run" / "recipe.yaml"), FinetuneRecipe).tuning
    steps = record["training"]["steps"]
    assert kept.epochs == record["recipe"]["tuning"]["epochs"] != 2.0
    assert f"length: {kept.epochs:.2f} epochs, so {steps:,} steps" in record["notes"]
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)
    monkeypatch.setattr(ResumableTrainer, "rehearse", lambda _: repeat((100.0, 40.0)))
    assert run(time="1h", resume=True)["training"]["steps"] == steps
    with pytest.raises(UserError, match="leave out --epochs"):
        run(time="1h", epochs=3, overwrite=True)
    with pytest.raises(UserError, match="time: too short"):
        run(time="30s", overwrite=True)


def test_a_rehearsed_tuning_is_the_same(run, tmp_path, monkeypatch):
    plain = run("single", "tuning.epochs=1.5", output="plain")
    steps = plain["training"]["steps"]

    def fitted_length(make_trainer, *_, **__):
        next(make_trainer(RunDirectory(tmp_path / "rehearsal")).rehearse())
        return steps, 9.0

    monkeypatch.setattr(finetuning, "fitted_length", fitted_length)
    timed = run("single", time="1m", output="timed")
    assert timed["metrics"] == plain["metrics"]
    assert timed["training"]["steps"] == plain["training"]["steps"]


def test_bad_input_is_one_line(refuse, student, tmp_path):
    model = student()
    data = write_task(tmp_path / "single", "single")
    usual = ("--task", "classification", "--data", data)
    assert "no model: give --model" in refuse(*usual)
    assert "nowhere does not exist" in refuse("--model", tmp_path / "nowhere", *usual)
    assert "no task: give --task, one of" in refuse("--model", model, "--data", data)
    assert "no task is called 'cols'" in refuse("--model", model, "--task", "cols", "--data", data)
    assert "has no data: give --data" in refuse("--model", model, "--task", "classification")
    assert "nodata" in refuse("--model", model, "--task", "classification", "--data", tmp_path / "nodata")
    assert "unknown key; did you mean learning_rate?" in refuse(
        "--model", model, *usual, "--set", "tuning.learning_rat=1"
    )
    assert "a single-label task has accuracy, f1" in refuse(
        "--model", model, *usual, "--set", "task.metric=entity_f1"
    )
    assert "no recipe is called 'adapter'; did you mean adapters?" in refuse(
        "--model", model, *usual, "--recipe", "adapter"
    )
    (data / "dev.jsonl").write_text('{"text": "the cat", "label": "perhaps"}\n')
    line = refuse("--model", model, *usual)
    assert "dev.jsonl" in line
    assert "perhaps" in line
    (data / "train.jsonl").write_text("")
    assert "train.jsonl" in refuse("--model", model, *usual)
    (data / "train.jsonl").unlink()
    assert "no train split" in refuse("--model", model, *usual)


def test_a_glue_directory_that_lacks_a_file(refuse, student, tmp_path):
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "train.tsv").write_text("x\t1\t\tthe cat sat\nx\t0\t*\tcat the sat\n")
    assert "dev.tsv" in refuse("--model", student(), "--task", "cola", "--data", tmp_path / "CoLA")


def test_models_that_cannot_be_tuned(refuse, student, tiny_teacher_dir, tmp_path):
    data = write_task(tmp_path / "single", "single")
    usual = ("--task", "classification", "--data", data)
    model = student()
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:500])
    assert "weights could not be loaded" in refuse("--model", model, *usual)
    assert "needs a MiniALBERT" in refuse("--model", tiny_teacher_dir, *usual, "--adapters")
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "less")
    values = json.loads((tmp_path / "less" / "config.json").read_text())
    (tmp_path / "less" / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 4}))
    assert "weights do not fit its config.json" in refuse("--model", tmp_path / "less", *usual)


def test_encoded_inputs_are_labelled_or_not():
    assert finetuning._is_labelled(Encoded([{"input_ids": [1], "labels": 0}], [0]))
    assert not finetuning._is_labelled(Encoded([{"input_ids": [1]}], [0]))
    assert not finetuning._is_labelled(Encoded([], []))
