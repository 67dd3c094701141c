"""Files from elsewhere are data: no pickle, no YAML tag and no Python file in them is ever run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    dynamic_module_utils,
)

from minialbert import MiniAlbertForMaskedLM, MiniAlbertForSequenceClassification
from minialbert.data.examples import Task
from minialbert.data.tokenizers import load_tokenizer
from minialbert.data.window_store import WindowsManifest
from minialbert.deploy.hub import export_to_hub_folder
from minialbert.errors import UserError
from minialbert.method.adapters import load_adapters, save_adapters
from minialbert.method.configuration_minialbert import AUTO_MAP
from minialbert.method.distill import distill
from minialbert.method.encoders import load_teacher
from minialbert.recipes.load import apply_overrides, load_recipe
from minialbert.recipes.schema import FinetuneRecipe
from minialbert.tasks.finetune import finetune
from minialbert.tasks.models import TaskInputs, load_for_tuning, load_tuned, save_tuned
from minialbert.tasks.trainer import TuningTrainer

DATA = Path(__file__).parent / "fixtures"
PICKLES = ("plain", "zip", "legacy")
VERBS = (
    "teacher", "checkpoint", "donor", "finetune", "task teacher", "evaluate", "predict", "calibrate", "onnx", "hub",
    "bench",
)  # fmt: skip


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return exec, (f"open({str(self.marker)!r}, 'w').close()",)


@pytest.fixture
def marker(tmp_path):
    """The file that must never appear."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "code from a file was run"


def plant(path: Path, marker: Path, form: str = "plain") -> Path:
    """Write a pickle that leaves the marker, as pickle itself, torch of today or torch of old writes one."""
    bomb = {"weight": Bomb(marker)}
    if form == "plain":
        path.write_bytes(pickle.dumps(bomb, protocol=2))  # torch warns of others
    else:
        torch.save(bomb, path, _use_new_zipfile_serialization=form == "zip")
    return path


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def classifier(tiny_student_config, tiny_tokenizer, tmp_path) -> Path:
    """A MiniALBERT with a head for two labels, as `finetune` leaves it."""
    folder = tmp_path / "classifier"
    config = type(tiny_student_config).from_dict(
        {**tiny_student_config.to_dict(), "problem_type": "single_label_classification"}
    )
    inputs = TaskInputs("classification", "single-label", "accuracy", 32, 8)
    save_tuned(MiniAlbertForSequenceClassification(config), tiny_tokenizer, inputs, folder)
    return folder


@pytest.fixture
def rows(tmp_path) -> Path:
    folder = tmp_path / "rows"
    folder.mkdir()
    lines = [{"text": f"the cat sat {n}", "label": f"LABEL_{n % 2}"} for n in range(24)]
    for split in ("train", "dev", "test"):
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


@pytest.fixture
def commands(tiny_windows, tiny_corpus, tiny_student_dir, rows, tmp_path):
    """Every command that loads a model or a tokenizer by its folder, as arguments."""

    def of(model: Path) -> dict[str, list[object]]:
        output = ["--output", tmp_path / "output"]
        task = ["--task", "classification", "--data", rows]
        tiny = ["distill", "--data", tiny_windows, *output, "--recipe", "tiny"]
        start = ["--set", f"student.init_from={model}"]
        return {
            "teacher": [*tiny, "--teacher", model, "--set", "student.adapter_reduction_factor=8"],
            "checkpoint": [*tiny, "--teacher", tiny_student_dir, *start, "--set", "student.init=checkpoint"],
            "donor": [*tiny, "--teacher", tiny_student_dir, *start, "--set", "student.init=donor"],
            "finetune": ["finetune", "--model", model, *task, *output],
            "task teacher": ["finetune", "--model", tiny_student_dir, "--teacher", model, *task, *output],
            "evaluate": ["evaluate", "--model", model, *task],
            "predict": ["predict", "--model", model, "the cat"],
            "calibrate": ["calibrate", "--model", model, *task, "--dry-run"],
            "onnx": ["export", "--model", model, *output],
            "hub": ["export", "--to", "hub", "--model", model, *output],
            "bench": ["bench", "--model", model, "--engines", "torch-fp32"],
        }

    return of


# The attacks are real


@pytest.mark.parametrize("form", PICKLES)
def test_what_is_planted_does_run_where_pickles_are_trusted(form, tmp_path):
    file = plant(tmp_path / "file.bin", tmp_path / "ran", form)
    pickle.loads(file.read_bytes()) if form == "plain" else torch.load(file, weights_only=False)
    assert (tmp_path / "ran").exists()


def test_remote_code_that_is_planted_does_run_where_it_is_trusted(
    remote_code, tiny_teacher_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    AutoConfig.from_pretrained(remote_code(tiny_teacher_dir, tmp_path / "ran"), trust_remote_code=True)
    assert (tmp_path / "ran").exists()


# Pickles


@pytest.mark.parametrize("verb", VERBS)
def test_no_command_runs_a_pickle_that_stands_for_weights(verb, classifier, commands, refuse, marker):
    (classifier / "model.safetensors").unlink()
    plant(classifier / "pytorch_model.bin", marker, "zip")
    assert "holds code, which is never run" in refuse(*commands(classifier)[verb])


@pytest.mark.parametrize("form", PICKLES)
def test_a_pickle_in_any_form_is_refused(form, tiny_teacher_dir, release_copy, refuse, marker, tmp_path):
    (tiny_teacher_dir / "model.safetensors").unlink()
    plant(tiny_teacher_dir / "pytorch_model.bin", marker, form)
    with pytest.raises(UserError, match="holds code, which is never run"):
        load_teacher(tiny_teacher_dir)
    release = release_copy()
    plant(release / "pytorch_model.bin", marker, form)
    with pytest.raises(pickle.UnpicklingError):  # PyTorch's own refusal
        MiniAlbertForMaskedLM.from_pretrained(release)
    assert "holds code" in refuse("convert", release, "--output", tmp_path / "converted")


@pytest.mark.parametrize("form", PICKLES)
def test_a_pickle_that_poses_as_safetensors_is_refused(form, classifier, tiny_teacher_dir, marker):
    for folder, load in ((tiny_teacher_dir, load_teacher), (classifier, lambda path: load_tuned(str(path)))):
        plant(folder / "model.safetensors", marker, form)
        with pytest.raises(UserError, match="could not be loaded"):
            load(folder)


def test_weights_in_two_formats_are_read_from_safetensors(tiny_teacher_dir, marker):
    plant(tiny_teacher_dir / "pytorch_model.bin", marker)
    assert load_teacher(tiny_teacher_dir).has_mlm_head


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
)
def test_a_pickle_that_poses_as_a_tokenizer_is_refused_or_ignored(name, tiny_teacher_dir, marker):
    plant(tiny_teacher_dir / name, marker)
    try:
        assert load_tokenizer(tiny_teacher_dir).is_fast
    except UserError as error:
        assert "no tokenizer could be loaded" in str(error)


@pytest.mark.parametrize("name", ["adapters.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("form", PICKLES)
def test_a_pickle_that_poses_as_adapters_is_refused(name, form, classifier, marker, tmp_path):
    model = load_tuned(str(classifier))[0]
    folder = save_adapters(model, tmp_path / "adapters")
    plant(folder / name, marker, form)
    with pytest.raises(UserError, match="damaged|not readable JSON"):
        load_adapters(model, folder)


def test_object_arrays_are_read_nowhere(tiny_windows, tmp_path, marker):
    array = np.array([Bomb(marker)], dtype=object)
    folder = tmp_path / "windows"
    for name in ("train.tokens.bin", "train.windows.bin", "manifest.json"):
        shutil.copytree(tiny_windows, folder)
        with (folder / name).open("wb") as file:
            np.save(file, array, allow_pickle=True)
        with pytest.raises(UserError):
            WindowsManifest.load(folder)
        shutil.rmtree(folder)


def test_pickles_in_a_teacher_cache_are_computed_again(tiny_teacher_dir, tiny_windows, tmp_path, marker):
    settings = [
        f"teacher.model={tiny_teacher_dir}",
        "training.cache_teacher=true",
        "student.adapter_reduction_factor=8",
    ]
    recipe = apply_overrides(load_recipe("tiny"), settings)
    run = tmp_path / "run"
    distill(None, tiny_windows, recipe=recipe, output=run, progress=False)
    entries = sorted((run / "teacher-cache").rglob("*.safetensors"))
    assert entries
    for file in entries:
        plant(file, marker)
    for name in ("model", "checkpoints"):
        shutil.rmtree(run / name)
    (run / "result.json").unlink()
    distill(None, tiny_windows, recipe=recipe, output=run, resume=True, progress=False)
    assert load_file(entries[0])


# Checkpoints of a run that goes on

CHECKPOINT_FILES = (
    "training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth", "rng_state_0.pth",
    "scaler.pt", "pytorch_model.bin", "model.safetensors",
)  # fmt: skip


def sabotage(run: Path, marker: Path, how: str) -> None:
    """Put pickles in place of what checkpoints hold: of all, of all but JSON with hashes to match, or beside it."""
    folders = [path for path in (run / "checkpoints").iterdir() if path.is_dir()]
    assert folders
    for folder in folders:
        files = [path for path in folder.rglob("*") if path.is_file()]
        planted = {}
        for file in files:
            if how != "beside" and (how == "all" or file.suffix != ".json"):
                before = hashlib.sha256(file.read_bytes()).hexdigest()
                content = plant(file, marker, "zip").read_bytes()
                planted[before] = (hashlib.sha256(content).hexdigest(), len(content))
        if how == "with hashes":
            for file in folder.rglob("*.json"):
                values = json.loads(file.read_text())
                match(values, planted)
                file.write_text(json.dumps(values))
        else:
            for name in CHECKPOINT_FILES:
                if not (folder / name).exists():
                    plant(folder / name, marker)
    (run / "result.json").unlink(missing_ok=True)
    shutil.rmtree(run / "model", ignore_errors=True)


def match(values: object, planted: dict[str, tuple[str, int]]) -> None:
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        match(value, planted)
    if isinstance(values, dict) and values.get("sha256") in planted:
        values["sha256"], values["bytes"] = planted[values["sha256"]]


@pytest.mark.parametrize("how", ["all", "with hashes", "beside"])
def test_pickles_in_a_checkpoint_are_not_run_when_distillation_goes_on(
    how, tiny_teacher_dir, tiny_windows, tmp_path, marker
):
    settings = [f"teacher.model={tiny_teacher_dir}", "student.adapter_reduction_factor=8"]
    recipe = apply_overrides(load_recipe("tiny"), settings)
    distill(None, tiny_windows, recipe=recipe, output=tmp_path / "run", progress=False)
    sabotage(tmp_path / "run", marker, how)
    goes_on_or_is_refused(
        lambda: distill(None, tiny_windows, recipe=recipe, output=tmp_path / "run", resume=True).record
    )


@pytest.mark.parametrize("how", ["all", "with hashes"])
def test_pickles_in_a_checkpoint_are_not_run_when_tuning_goes_on(
    how, tiny_student_dir, rows, tmp_path, marker, monkeypatch
):
    original = TuningTrainer.training_step
    calls = []

    def stop_in_the_third_step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    settings = [f"model.name={tiny_student_dir}", "task.name=classification", f"task.data={rows}",
                "tuning.batch_size=4", "tuning.epochs=1"]  # fmt: skip
    recipe = apply_overrides(load_recipe("default", FinetuneRecipe), settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TuningTrainer, "training_step", stop_in_the_third_step)
        finetune(recipe=recipe, output=tmp_path / "run", progress=False)
    sabotage(tmp_path / "run", marker, how)
    goes_on_or_is_refused(lambda: finetune(recipe=recipe, output=tmp_path / "run", resume=True).record)


def goes_on_or_is_refused(resume) -> None:
    try:
        assert resume()["metrics"]
    except UserError as error:
        assert len(str(error).splitlines()) == 1


# YAML


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        "!!python/object/new:os.system ['touch {marker}']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1, 2]",
        "!mine {{a: 1}}",
        "!!binary aGVsbG8=",
        "!!set {{a, b}}",
    ],
)
def test_a_recipe_with_a_tag_is_refused_with_its_line(value, marker, tmp_path, refuse):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: mine\ntraining:\n  seed: {value.format(marker=marker)}\n")
    for verb in (["recipes", "show", recipe], ["distill", "--data", "w", "--output", "o", "--recipe", recipe],
                 ["finetune", "--output", "o", "--recipe", recipe]):  # fmt: skip
        told = refuse(*verb)
        assert str(recipe) in told
        assert "line 3" in told
    told = refuse(
        "distill", "--data", "w", "--output", "o", "--set", f"training.seed={value.format(marker=marker)}"
    )
    assert "seed" in told


def test_the_first_of_these_tags_does_run_where_yaml_is_trusted(tmp_path):
    yaml.unsafe_load(f"!!python/object/apply:os.system ['touch {tmp_path / 'ran'}']")
    assert (tmp_path / "ran").exists()


# Code that comes with a model


@pytest.fixture
def remote_code(marker):
    """Give a model's folder code of its own, under a model type that Transformers does not know, or under its own."""

    def spoil(folder: Path, mark: Path = marker, *, known: bool = False) -> Path:
        (folder / "evil.py").write_text(
            f"open({str(mark)!r}, 'w').close()\n"
            "from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast\n"
            "class Config(BertConfig):\n    model_type = 'evil'\n"
            "class Model(BertForMaskedLM):\n    config_class = Config\n"
            "class Tokenizer(BertTokenizerFast):\n    pass\n"
        )
        autos = {key: "evil.Model" for key in AUTO_MAP} | {"AutoConfig": "evil.Config"}
        autos["AutoTokenizer"] = ["evil.Tokenizer", "evil.Tokenizer"]
        edit(folder / "config.json", auto_map=autos, **({} if known else {"model_type": "evil"}))
        edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": autos["AutoTokenizer"]},
             **({} if known else {"tokenizer_class": "Tokenizer"}))  # fmt: skip
        return folder

    return spoil


@pytest.fixture
def saying_yes(monkeypatch):
    """A standard input that agrees to whatever it is asked."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))


@pytest.mark.parametrize("verb", VERBS)
def test_no_command_runs_code_that_comes_with_a_model(
    verb, classifier, commands, remote_code, refuse, marker, saying_yes
):
    remote_code(classifier)
    told = refuse(*commands(classifier)[verb])
    assert "which is never run" in told or (verb == "hub" and "model of type 'evil'" in told)


def test_conversion_and_config_files_run_no_code_either(
    release_copy, remote_code, refuse, tiny_tokenizer, tmp_path, saying_yes
):
    folder = release_copy()
    tiny_tokenizer.save_pretrained(folder)
    remote_code(folder)
    assert "not a checkpoint of the MiniALBERT release" in refuse(
        "convert", folder, "--output", tmp_path / "o"
    )
    assert "config.json" in refuse("bench", "--model", f"config:{folder / 'config.json'}")


def test_a_tokenizer_with_code_of_its_own_is_read_without_it(
    tiny_teacher_dir, remote_code, tiny_corpus, call, tmp_path, saying_yes
):
    remote_code(tiny_teacher_dir)
    for known in (False, True):
        if known:
            edit(tiny_teacher_dir / "config.json", model_type="bert")
        try:
            load_tokenizer(tiny_teacher_dir).save_pretrained(tmp_path / "saved")
            assert "evil" not in (tmp_path / "saved" / "tokenizer_config.json").read_text()
        except UserError as error:
            assert "no tokenizer could be loaded" in str(error)
        call("prepare", "--corpus", tiny_corpus, "--tokenizer", tiny_teacher_dir, "--output", tmp_path / "w",
             "--overwrite", "--workers", 1, "--window-length", 32, "--overlap", 8)  # fmt: skip


def test_our_classes_load_a_folder_in_spite_of_its_code_and_pass_none_of_it_on(
    classifier, tiny_teacher_dir, remote_code, tmp_path, saying_yes, marker
):
    remote_code(classifier, known=True)
    model, tokenizer, _ = load_tuned(str(classifier))
    assert type(model) is MiniAlbertForSequenceClassification
    record = export_to_hub_folder(classifier, tmp_path / "hub")
    assert "evil.py" not in record["files"]
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["auto_map"] == AUTO_MAP
    remote_code(tiny_teacher_dir, known=True)
    task = Task("t", "single-label", ("a", "b"), "accuracy", {})
    tuned, tokenizer, _ = load_for_tuning(str(tiny_teacher_dir), task)
    save_tuned(tuned, tokenizer, TaskInputs("t", "single-label", "accuracy", 32, 8), tmp_path / "tuned")
    assert all("evil" not in file.read_text() for file in (tmp_path / "tuned").glob("*.json"))


def test_a_hub_export_loads_by_our_classes_without_the_code_in_it(tiny_student_dir, tmp_path, marker):
    export_to_hub_folder(tiny_student_dir, tmp_path / "hub")
    for file in (tmp_path / "hub").glob("*.py"):
        file.write_text(f"open({str(marker)!r}, 'w').close()\n")
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "hub", trust_remote_code=False)
    assert type(loaded) is MiniAlbertForMaskedLM
    assert type(load_teacher(tmp_path / "hub").model) is MiniAlbertForMaskedLM
    assert AutoTokenizer.from_pretrained(tmp_path / "hub", trust_remote_code=False).is_fast


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_model_gets_no_kernel_from_the_hub(key, classifier, tiny_teacher_dir, commands, refuse):
    edit(tiny_teacher_dir / "config.json", **{key: "someone/kernel"})
    with pytest.raises(
        UserError, match=r"wants the attention kernel 'someone/kernel', and no code is fetched"
    ):
        load_teacher(tiny_teacher_dir)
    edit(classifier / "config.json", **{key: "someone/kernel"})
    for verb in ("finetune", "checkpoint", "hub", "bench", "onnx"):
        assert "no code is fetched" in refuse(*commands(classifier)[verb])


def test_the_models_of_these_tests_load_when_nothing_is_wrong(tiny_teacher_dir, classifier):
    assert isinstance(load_teacher(tiny_teacher_dir).model, BertForMaskedLM)
    assert load_tuned(str(classifier))[2].problem == "single-label"
