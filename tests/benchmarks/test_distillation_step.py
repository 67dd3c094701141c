"""The benchmark of a distillation step runs our own trainer, and holds each way of ours to the plain one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed" / "distillation_step.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("distillation_step", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shape = {"layers": 4, "iterations": 2, "width": 48, "heads": 4, "rank": 16}
    monkeypatch.setitem(module.GEOMETRIES, "small", shape)
    return module


def test_every_way_agrees_with_the_plain_one(script, tmp_path):
    batch = script.make_batch(2, 24)
    modes = ("plain", "fp32", "bf16", "open-rows", "open-vocabulary")
    steps = {mode: script.make_step(mode, "small", batch, str(tmp_path)) for mode in modes}
    differences = script.check_agreement(steps)
    assert sorted(differences) == sorted(modes[1:])
    for mode, terms in differences.items():
        assert set(terms) == {"mlm", "output", "attention", "hidden", "total", "gradient norm"}, mode
    assert max(differences["bf16"].values()) > max(differences["fp32"].values())


def test_a_way_that_differs_stops_the_benchmark(script, tmp_path):
    batch = script.make_batch(2, 24)
    steps = {mode: script.make_step(mode, "small", batch, str(tmp_path)) for mode in ("plain", "fp32")}
    steps["fp32"].trainer.objective = script.DistillationObjective(hidden_weight=3.01)
    with pytest.raises(SystemExit, match="fp32: .* differs by"):
        script.check_agreement(steps)
