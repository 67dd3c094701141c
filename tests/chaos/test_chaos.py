"""Runs killed at any moment and resumed leave what an undisturbed run leaves, to the last bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
from chaos import SHARES, Chaos, Kill, draw, everywhere
from comparing import differences
from injected import Fault
from inputs import make_commands
from processes import ROOT, ForkServer, environment

from minialbert.method.distill import distill
from minialbert.recipes.load import apply_overrides, load_recipe
from minialbert.runs.directory import RunDirectory


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ForkServer(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture(scope="module")
def commands(server, tmp_path_factory):
    return make_commands(tmp_path_factory.mktemp("inputs") / "inputs", server)


@pytest.fixture
def say(capsys):
    def tell(line):
        with capsys.disabled():
            print(f"\n{line}", end="", flush=True)  # noqa: T201

    return tell


def assert_survived(outcomes, kills, say, record_property):
    struck, resumed = sum(len(o.kills) for o in outcomes), sum(o.resumed for o in outcomes)
    line = f"{struck} kills, {resumed} resumed to identical results"
    say(line)
    record_property("measured", line)
    assert [line for outcome in outcomes for line in outcome.wrong] == []
    assert struck == resumed == kills


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", list(SHARES))
def test_kills_drawn_by_a_seed(kind, server, commands, tmp_path, say, record_property):
    chaos = Chaos(server, commands[kind], tmp_path, say)
    outcome = chaos.strike(draw(kind, SHARES[kind], seed=0))
    assert_survived([outcome], SHARES[kind], say, record_property)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["distill", "finetune", "prepare"])
def test_twice_in_a_row_at_every_point(kind, server, commands, tmp_path, say, record_property):
    chaos = Chaos(server, commands[kind], tmp_path, say)
    runs = everywhere(kind)
    outcomes = [chaos.strike(kills) for kills in runs]
    assert_survived(outcomes, sum(map(len, runs)), say, record_property)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_stopped_early_and_is_killed_then_does_not_train_on(
    server, commands, tmp_path, say, record_property
):
    # A rate of nothing: no evaluation is better than the first, and the run stops at the third.
    early = commands["finetune"].changed("tuning.early_stopping_patience=2", "tuning.learning_rate=1e-9")
    chaos = Chaos(server, early, tmp_path, say)
    steps = json.loads((chaos.reference / "result.json").read_text())["training"]["steps"]
    assert steps == 21
    kills = [Kill("final measurement"), Kill("model: half of the weights")]
    assert_survived([chaos.strike(kills)], 2, say, record_property)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_was_overwriting_another_when_it_was_killed(server, commands, tmp_path):
    """What is left of the earlier run is not taken for the beginning of the new one."""
    first, second = commands["distill"].changed("training.seed=1"), commands["distill"]
    assert server.run(second.into(tmp_path / "reference")).status == 0
    output = tmp_path / "run"
    assert server.run(first.into(output)).status == 0
    words = [word for word in second.into(output, "--overwrite") if word != "--resume"]
    ended = server.run(words, Fault(point="removing model"))
    assert ended.killed
    refused = server.run(second.into(output))
    assert refused.status == 2 and "another recipe" in refused.line
    assert server.run(words).status == 0
    assert differences("distill", tmp_path / "reference", output) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_minute_of_the_soak_with_a_tiny_teacher(commands, tmp_path):
    inputs = Path(commands["distill"].words[4]).parent
    sets = ["training.max_steps=120", "student.num_hidden_layers=2", "student.embedding_size=16",
            "training.logging_steps=2", "training.eval_windows=8", "student.adapter_reduction_factor=4"]  # fmt: skip
    command = [
        sys.executable, str(ROOT / "benchmarks" / "quality" / "soak.py"), "--minutes", "1.5",
        "--output", str(tmp_path / "soak"),
        "--teacher", str(inputs / "teacher"), "--corpus", str(inputs / "corpus.txt"), "--kill-after", "12", "40",
        "--sample-seconds", "0.2", "--window-length", "64", "--first-steps", "20",
        *(word for override in sets for word in ("--set", override)),
    ]  # fmt: skip
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    record = json.loads((tmp_path / "soak" / "soak.json").read_text())
    metrics = record["metrics"]
    assert metrics["failed"] == 0 and metrics["segments"] == len(record["segments"]) > 1
    assert metrics["rounds"] == metrics["identical_rounds"] > 0
    assert metrics["memory_slope"]["low"] < metrics["memory_slope"]["high"]
    assert 50 < metrics["maximum_mb"] < 5000
    assert metrics["minutes"] > 1.4 and record["machine"]["cores"] and record["versions"]["torch"]


# The same without a process of its own: what a kill leaves, made by an error that nothing catches.


class _Killed(BaseException):
    pass


@pytest.fixture
def run(tiny_teacher_dir, tiny_windows, tmp_path):
    overrides = [f"teacher.model='{tiny_teacher_dir}'", "training.max_steps=5", "training.save_steps=2",
                 "student.hidden_dropout_prob=0.1"]  # fmt: skip
    recipe = apply_overrides(load_recipe("tiny"), overrides)

    def start(name):
        distill(None, tiny_windows, recipe=recipe, output=tmp_path / name, resume=True, progress=False)

    return start


def test_half_a_checkpoint_and_half_a_line_are_not_missed(run, tmp_path, monkeypatch):
    run("reference")
    save, append = safetensors.torch.save_model, RunDirectory.append_log
    for step in (2, 4):
        with monkeypatch.context() as patch:

            def half_model(model, path, step=step):
                save(model, path)
                if (tmp_path / "run" / "checkpoints" / f"checkpoint-{step - 2}").is_dir() or step == 2:
                    Path(path).write_bytes(Path(path).read_bytes()[:-1000])
                    raise _Killed

            patch.setattr(safetensors.torch, "save_model", half_model)
            with pytest.raises(_Killed):
                run("run")
        assert (tmp_path / "run" / "checkpoints" / "partial").is_dir()
    with monkeypatch.context() as patch:

        def half_line(self, record):
            if record["step"] == 5:
                with self.log.open("a") as file:
                    file.write(json.dumps(record)[:20])
                raise _Killed
            append(self, record)

        patch.setattr(RunDirectory, "append_log", half_line)
        with pytest.raises(_Killed):
            run("run")
    run("run")
    assert differences("distill", tmp_path / "reference", tmp_path / "run") == []


def test_the_comparison_sees_a_bit_a_line_and_a_file(run, tmp_path):
    run("reference")
    for number, (change, seen) in enumerate(
        {
            "weights": "model/model.safetensors (",
            "log": "log.jsonl",
            "file": ".model.1.partial is only in one",
            "checkpoint": "checkpoint: progress.json (skipped_steps)",
        }.items()
    ):
        other = tmp_path / str(number)
        shutil.copytree(tmp_path / "reference", other)
        assert differences("distill", tmp_path / "reference", other) == []
        if change == "weights":
            path = other / "model" / "model.safetensors"
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
        elif change == "log":
            (other / "log.jsonl").write_text("".join((other / "log.jsonl").read_text().splitlines(True)[:-1]))
        elif change == "file":
            (other / ".model.1.partial").mkdir()
        else:
            path = other / "checkpoints" / "checkpoint-5" / "progress.json"
            path.write_text(path.read_text().replace('"skipped_steps": 0', '"skipped_steps": 1'))
        found = differences("distill", tmp_path / "reference", other)
        assert len(found) == 1 and found[0].startswith(seen), found


def test_draws_are_those_of_their_seed():
    for kind, count in SHARES.items():
        kills = draw(kind, count, seed=3)
        assert len(kills) == count and kills == draw(kind, count, seed=3) != draw(kind, count, seed=4)
