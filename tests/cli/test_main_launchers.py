"""Jobs from the command line over several processes: one voice, and an end that all of them share.

They are real ones, of torch's and accelerate's launchers, on loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from distributed.launching import SCRIPTS, accelerate_launch, free_port, job, torchrun
from distributed.shared import assert_same_log, write_inputs


@pytest.fixture(scope="module")
def inputs(tiny_windows, tiny_tokenizer, tmp_path_factory):
    """Windows, tokenizer, a teacher and a task, as files."""
    return write_inputs(tmp_path_factory.mktemp("inputs"), tiny_windows, tiny_tokenizer)


@dataclass(frozen=True)
class Cli:
    """The command that distils, with settings for a short run or a longer one."""

    inputs: Path

    def distill(self, output: Path, *more: object) -> list[object]:
        return [
            "-m", "minialbert", "distill", "--data", self.inputs / "windows", "--teacher", self.inputs / "teacher",
            "--output", output, "--recipe", "tiny", "--set", "student.adapter_reduction_factor=8",
            "--set", "training.eval_windows=8", "--set", "training.micro_batch_size=2", *more,
        ]  # fmt: skip

    def long(self, output: Path, *more: object, dropout: float = 0.0) -> list[object]:
        """Return a run of 120 steps, which takes long enough to be cut off."""
        return self.distill(
            output, "--set", "training.max_steps=120", "--set", "training.save_steps=20",
            "--set", "training.eval_steps=50", "--set", "training.logging_steps=7",
            "--set", f"student.hidden_dropout_prob={dropout}", *more,
        )  # fmt: skip

    def finetune(self, model: Path, output: Path, *more: object) -> list[object]:
        return [
            "-m", "minialbert", "finetune", "--model", model, "--task", "classification",
            "--data", self.inputs / "task", "--output", output, "--set", "tuning.batch_size=12",
            "--set", "tuning.epochs=2", "--set", "tuning.dropout=0", "--set", "tuning.logging_steps=1", *more,
        ]  # fmt: skip


@pytest.fixture
def cli(inputs):
    return Cli(inputs)


def log_of(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "tokens_per_second"} for record in records]


def assert_said_once(running: Any) -> None:
    """Check that no line came from two processes, and none is a warning."""
    lines = [line.strip() for line in (running.out + running.err).splitlines() if "step " in line]
    assert lines and len(lines) == len(set(lines)), running.err
    text = running.out + running.err
    for noise in ("find_unused_parameters", "destroy_process_group", "Warning:", "Traceback"):
        assert noise not in text, text
    assert text.count("result.json") == 1


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_distill_and_finetune_from_the_command_line(cli, tmp_path):
    runs = {"one": torchrun(1), "torchrun": torchrun(2), "accelerate": accelerate_launch(2)}
    for name, words in runs.items():
        with job([*words, *cli.distill(tmp_path / name)]) as running:
            running.succeed()
            assert_said_once(running)
            assert running.members() == []
    expected = log_of(tmp_path / "one")
    assert [record["step"] for record in expected if record["kind"] == "training"] == [1, 2, 3, 4]
    for name in ("torchrun", "accelerate"):
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(
            path.name for path in (tmp_path / "one").iterdir()
        )
        assert_same_log(expected, log_of(tmp_path / name), 1e-3)
        results = [json.loads((tmp_path / run / "result.json").read_text()) for run in ("one", name)]
        assert results[1]["training"]["windows"] == results[0]["training"]["windows"]
        student = safetensors.torch.load_file(tmp_path / name / "model" / "model.safetensors")
        assert all(torch.isfinite(value).all() for value in student.values())

    model = tmp_path / "one" / "model"
    for name, words in (("tuned-one", torchrun(1)), ("tuned-two", torchrun(2))):
        with job([*words, *cli.finetune(model, tmp_path / name)]) as running:
            running.succeed()
            assert_said_once(running)
    # 160 rows in steps of 12: the last one of an epoch has 4.
    assert len([record for record in log_of(tmp_path / "tuned-one") if record["kind"] == "training"]) == 28
    assert_same_log(log_of(tmp_path / "tuned-one"), log_of(tmp_path / "tuned-two"), 2e-3)


def last_step(run: Path) -> int:
    """Return the last step in a log that is being written."""
    if not (run / "log.jsonl").is_file():
        return 0
    return max((record["step"] for record in log_of(run)), default=0)


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """The run of 120 steps in two processes that nobody disturbs, without and with dropout."""
    made: dict[float, Path] = {}

    def run(dropout: float) -> Path:
        if dropout not in made:
            output = tmp_path_factory.mktemp("whole") / "run"
            with job([*torchrun(2), *Cli(inputs).long(output, dropout=dropout)]) as running:
                running.succeed()
            made[dropout] = output
        return made[dropout]

    return run


def assert_same_run(one: Path, other: Path) -> None:
    """Check that two runs agree to the last bit."""
    assert log_of(one) == log_of(other)
    weights = [safetensors.torch.load_file(run / "model" / "model.safetensors") for run in (one, other)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_that_dies_ends_the_job_and_any_number_of_them_goes_on(cli, whole, tmp_path):
    run = tmp_path / "run"
    with job([*torchrun(2), *cli.long(run)]) as running:
        running.until(lambda: last_step(run) >= 42)
        os.kill(running.worker(1), signal.SIGKILL)
        died = time.monotonic()
        assert running.wait(60) != 0
        seconds = time.monotonic() - died
        assert "SIGKILL" in running.err and "exitcode  : -9" in running.err
        assert "minialbert: process 0 stops: another one has gone" in running.err
        assert running.members() == []
    assert seconds < 45
    assert not (run / "result.json").exists()
    for processes_now in (2, 1, 4):
        copy = tmp_path / f"resumed-by-{processes_now}"
        shutil.copytree(run, copy)
        with job([*torchrun(processes_now), *cli.long(copy, "--resume")]) as running:
            running.succeed()
            assert running.err.count("resuming from checkpoint-") == 1
        if processes_now == 2:
            assert_same_run(whole(0.0), copy)
        else:
            losses = [
                [record["loss"] for record in log_of(path) if record["kind"] == "training"]
                for path in (whole(0.0), copy)
            ]
            assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_saves_a_checkpoint(number, cli, whole, tmp_path):
    run = tmp_path / "run"
    with job([*torchrun(2), *cli.long(run, dropout=0.2)]) as running:
        running.until(lambda: last_step(run) >= 28)
        if number == signal.SIGINT:
            for (
                member
            ) in running.members():  # as a terminal may: the launcher, which passes it on, and all others
                os.kill(member, number)
        else:
            os.kill(running.process.pid, number)
        asked = time.monotonic()
        assert running.wait(40) != 0
        assert time.monotonic() - asked < 30
        assert running.err.count("a checkpoint is saved") == 1
        assert running.err.count("minialbert: interrupted; the same command with --resume goes on") == 1
        assert running.members() == []
    (newest,) = sorted((run / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))[-1:]
    assert 28 <= int(newest.name.split("-")[1]) < 120
    with job([*torchrun(2), *cli.long(run, "--resume", dropout=0.2)]) as running:
        running.succeed()
    assert_same_run(whole(0.2), run)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_mistake_is_told_once_and_ends_the_job(cli, inputs, tmp_path):
    odd = ["--set", "training.batch_size=9", "--set", "training.micro_batch_size=3"]
    with job([*torchrun(2), *cli.distill(tmp_path / "a", *odd)]) as running:
        assert running.wait() != 0
        assert running.err.count("minialbert: training.batch_size 9 cannot be split over 2 processes") == 1
    # One that only the second process makes.
    words = [*torchrun(2), SCRIPTS / "only_in_one.py", *cli.distill(tmp_path / "b")[2:]]
    with job(words) as running:
        started = time.monotonic()
        assert running.wait() != 0
        lines = [line for line in running.err.splitlines() if line.startswith("minialbert: ")]
        assert any("elsewhere" in line for line in lines), running.err
        assert time.monotonic() - started < 100
        assert running.members() == []
    assert not (tmp_path / "b" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["meeting", "numbered"])
def test_two_machines_on_loopback(way, cli, tmp_path):
    port, runs = free_port(), []
    for machine in range(2):
        if way == "meeting":
            where = ["--rdzv-id", "try", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"]
        else:
            where = ["--node-rank", str(machine), "--master-addr", "localhost", "--master-port", str(port)]
        runs.append([*torchrun(1, "--nnodes", "2", *where), *cli.distill(tmp_path / "two")])
    with (
        job(runs[0]) as first,
        job(runs[1]) as second,
        job([*torchrun(1), *cli.distill(tmp_path / "one")]) as one,
    ):
        for running in (first, second, one):
            running.succeed(200)
        assert (first.out + second.out).count("result.json") == 1
    assert_same_log(log_of(tmp_path / "one"), log_of(tmp_path / "two"), 1e-3)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_only_the_first_process_writes_and_all_fill_the_teachers_cache(cli, tmp_path):
    cached = ["--set", "training.cache_teacher=true"]
    traced = [*torchrun(2), SCRIPTS / "traced.py", tmp_path / "written", tmp_path / "two"]
    with job([*traced, *cli.distill(tmp_path / "two", *cached)[2:]]) as running:
        running.succeed()
        assert_said_once(running)
    with job([*torchrun(1), *cli.distill(tmp_path / "one", *cached)]) as running:
        running.succeed()
    assert_same_log(log_of(tmp_path / "one"), log_of(tmp_path / "two"), 1e-3)
    written = [json.loads((tmp_path / f"written.{process}").read_text()) for process in range(2)]
    assert {"log.jsonl", "model", "checkpoints", "result.json", ".result.json.partial"} & set(written[0])
    assert set(written[1]) == {"teacher-cache"}  # the answers to its own windows
    names = [
        {path.name for path in (tmp_path / run / "teacher-cache").rglob("*.safetensors")}
        for run in ("one", "two")
    ]
    assert names[0] == names[1] and names[0]
