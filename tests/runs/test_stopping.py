"""Training over several processes: what each knows of the others, and the same losses as one.

The jobs are real ones, on loopback; what they train is in `distributed/`, their command line in `test_launchers.py`.
"""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from distributed.launching import SCRIPTS, job, torchrun
from distributed.shared import assert_same_log, write_inputs
from distributed.training_cases import run_case

from minialbert.errors import UserError
from minialbert.runs import stopping
from minialbert.runs.trainer import share_of_meters

CASES = SCRIPTS / "training_cases.py"
DISTILLATION = (
    "default", "packed", "paper", "elastic", "hidden-only", "projection-unused", "masked-lm-alone", "checkpointing",
)  # fmt: skip
TUNING = ("classification", "task-teacher", "ner", "multi-label", "regression", "adapters", "early-stopping")
OF_FOUR = ("default", "hidden-only", "classification", "ner", "early-stopping")


@pytest.fixture(scope="module")
def inputs(tiny_windows, tiny_tokenizer, tmp_path_factory):
    """Windows, tokenizer, a teacher and a task, as files."""
    return write_inputs(tmp_path_factory.mktemp("inputs"), tiny_windows, tiny_tokenizer)


# What a process knows of the others


@pytest.fixture
def several(monkeypatch):
    """Makes this process one of several."""

    def pretend(world_size: object, rank: object = 0) -> None:
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        monkeypatch.setenv("RANK", str(rank))

    return pretend


def test_a_step_is_shared_out_evenly_or_not_at_all(several):
    several(4)
    assert stopping.share_of(32, "training.batch_size") == 8
    for rows in (30, 2):
        with pytest.raises(UserError, match=f"training.batch_size {rows} cannot be split over 4 processes"):
            stopping.share_of(rows, "training.batch_size")


def test_without_a_launcher_there_is_one_process(monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (stopping.world_size(), stopping.rank()) == (1, 0)
    stopping.refuse_several_processes(["prepare"])


def test_a_number_that_is_none_is_named(several):
    several("two")
    with pytest.raises(UserError, match="WORLD_SIZE is 'two'"):
        stopping.world_size()


@pytest.mark.parametrize(
    "words",
    [["prepare", "--corpus", "x"], ["evaluate"], ["predict"], ["export"], ["demo"], ["report"], ["bench"]],
)
def test_what_several_processes_would_each_do_alone_is_refused(words, several, refuse):
    several(2)
    line = refuse(*words)
    assert f"minialbert {words[0]} takes one process, and this job has 2" in line and "torchrun" in line


def test_a_grid_takes_one_process(several, refuse):
    several(2)
    assert "--grid starts runs of its own" in refuse("finetune", "--grid", "--output", "x")


def test_what_trains_is_not_refused(several):
    several(2)
    stopping.refuse_several_processes(["distill", "--data", "x"])
    stopping.refuse_several_processes(["finetune", "--output", "grid"])


def test_of_a_mistake_that_all_make_the_first_one_tells_at_once(several, monkeypatch):
    waited = []
    monkeypatch.setattr(stopping.time, "sleep", waited.append)
    several(3, 0)
    stopping.let_the_first_fail_first()
    assert waited == []
    several(3, 2)
    stopping.let_the_first_fail_first()
    assert len(waited) == 1 and waited[0] > 1


def test_an_error_of_the_connection_points_at_another_process(several):
    several(2)
    assert stopping.lost_the_others(RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:1234"))
    assert stopping.lost_the_others(torch.distributed.DistBackendError("NCCL error"))
    assert not stopping.lost_the_others(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    several(1)
    assert not stopping.lost_the_others(RuntimeError("Connection closed by peer"))


def test_ctrl_c_reaches_a_process_twice_under_a_launcher(several):
    from minialbert.runs.stopping import GracefulStop

    several(2)
    stop = GracefulStop()
    with stop.listening():
        for _ in range(2):  # from the terminal and from the launcher
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested


def test_meters_go_on_in_any_number_of_processes():
    states = [
        {"sums": {"a": 1.0, "total": 2.0}, "steps": 3, "tokens": 9.0},
        {"sums": {"a": 0.5, "total": 0.25}, "steps": 3, "tokens": 9.0},
    ]
    assert [share_of_meters(states, process, 2) for process in range(2)] == states
    shares = [share_of_meters(states, process, 3) for process in range(3)]
    assert [share["sums"] for share in shares] == [{"a": 1.5, "total": 2.25}] + 2 * [{"a": 0.0, "total": 0.0}]
    assert all((share["steps"], share["tokens"]) == (3, 9.0) for share in shares)
    assert share_of_meters(states, 0, 1)["sums"] == {"a": 1.5, "total": 2.25}


@pytest.mark.parametrize("rows", [17, 21, 24])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_row_of_an_epoch_falls_to_one_process(rows, world_size):
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    from minialbert.data.task_inputs import LengthGroupedSampler

    lengths = [3 + index % 5 for index in range(rows)]
    alone = list(LengthGroupedSampler(lengths, 8, seed=1))
    sampler = LengthGroupedSampler(lengths, 8, seed=1, multiple_of=2 * world_size)
    assert len(sampler) == len(list(sampler))
    shards = [
        list(BatchSamplerShard(BatchSampler(sampler, 2, drop_last=False), world_size, process))
        for process in range(world_size)
    ]
    assert len({len(shard) for shard in shards}) == 1
    micro_batches = 8 // 2 // world_size
    for step in range(math.ceil(rows / 8)):
        parts = [shard[step * micro_batches : (step + 1) * micro_batches] for shard in shards]
        seen = sorted(row for part in parts for batch in part for row in batch if row < rows)
        assert seen == sorted(alone[8 * step : 8 * step + 8])


# The same training


def read(folder: Path, case: str, process: int = 0) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    text = (folder / f"{case}.{process}.json").read_text()
    return json.loads(text), safetensors.torch.load_file(folder / f"{case}.{process}.safetensors")


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest relative distance of a tensor. No loss depends on the bias of keys: rounding alone moves it."""
    assert one.keys() == other.keys()
    return max(
        float((value - other[name]).norm() / value.norm().clamp_min(1e-9))
        for name, value in one.items()
        if not name.endswith(("key.bias", "k_proj.bias"))
    )


def train_cases(words, inputs, output, cases, seconds):
    with job([*words, CASES, inputs, output, *cases]) as running:
        running.succeed(seconds)
        assert "find_unused_parameters" not in running.err
        assert "Warning" not in running.err and "destroy_process_group" not in running.err
    return output


def test_two_processes_take_the_first_steps_of_one(inputs, tmp_path):
    cases = ("single-precision",)
    (tmp_path / "one").mkdir()
    with job([*torchrun(2), CASES, inputs, tmp_path / "two", *cases]) as two:
        run_case(*cases, inputs, tmp_path / "one")
        two.succeed()
    (alone, _), (record, weights), (second, same) = (
        read(tmp_path / "one", *cases), read(tmp_path / "two", *cases), read(tmp_path / "two", *cases, process=1),
    )  # fmt: skip
    assert_same_log(alone["log"][:1], record["log"][:1], 1e-5)
    assert_same_log(alone["log"], record["log"], 1e-3)
    assert all(torch.equal(value, same[name]) for name, value in weights.items())
    assert record["bytes"] == second["bytes"] == [record["gradient_bytes"]] * 3


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("alone")
    return train_cases(torchrun(1), inputs, output, (*DISTILLATION, *TUNING, "not-finite"), 400)


@pytest.fixture(scope="module")
def by_two(inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("two")
    return train_cases(torchrun(2), inputs, output, (*DISTILLATION, *TUNING, "not-finite"), 500)


@pytest.fixture(scope="module")
def by_four(inputs, tmp_path_factory):
    return train_cases(torchrun(4), inputs, tmp_path_factory.mktemp("four"), OF_FOUR, 400)


def assert_same_training(alone: Path, together: Path, case: str, world_size: int) -> None:
    """Compare fifty steps in float64 term by term, their weights, and all processes with each other."""
    expected, expected_weights = read(alone, case)
    results = [read(together, case, process) for process in range(world_size)]
    for record, weights in results:
        assert record["steps"] == expected["steps"]
        assert_same_log(expected["log"], record["log"], 1e-5)
        assert distance(expected_weights, weights) < 1e-5
        assert record.get("best_step") == expected.get("best_step")
        assert all(torch.equal(value, weights[name]) for name, value in results[0][1].items())
        # Each gradient once per step, however many micro-batches and iterations it has.
        assert set(record["bytes"]) == {record["gradient_bytes"]}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", [*DISTILLATION, *TUNING])
def test_two_processes_train_as_one_does(case, alone, by_two):
    assert_same_training(alone, by_two, case, 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", OF_FOUR)
def test_four_processes_train_as_one_does(case, alone, by_four):
    assert_same_training(alone, by_four, case, 4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_stop_early_by_the_figures_of_the_first(alone, by_two):
    record, _ = read(by_two, "early-stopping", 1)
    assert (record["steps"], record["best_step"]) == (40, 20)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_loss_that_is_not_finite_in_one_process_is_skipped_by_all(alone, by_two):
    assert_same_training(alone, by_two, "not-finite", 2)
    for process in range(2):
        log = read(by_two, "not-finite", process)[0]["log"]
        (skipped,) = [record for record in log if "non_finite" in record]
        assert skipped["step"] == 3 and skipped["non_finite"] == ["hidden"]
        assert len(skipped["window_ids"]) == 8  # those of both


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_one_process_asked_to_stop_in_an_evaluation_stops_all_there(inputs, tmp_path):
    train_cases(torchrun(2), inputs, tmp_path / "two", ("stopped",), 150)
    for process in range(2):
        assert read(tmp_path / "two", "stopped", process)[0]["steps"] == 10
    (checkpoint,) = (tmp_path / "two" / "stopped-checkpoints").iterdir()
    assert checkpoint.name == "checkpoint-10"
    progress = json.loads((checkpoint / "progress.json").read_text())
    assert progress["evaluation_is_due"] and len(progress["meters"]) == 2
