"""The script for a GPU: each part in small on a CPU, and what is told where packages are missing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SPEED)
    import gpu

    return gpu


def test_missing_packages_are_named_with_the_command_that_fetches_them(script):
    script.check_packages(("torch", "pytest"))
    with pytest.raises(SystemExit) as told:
        script.check_packages(("torch", "no_such_one", "nor_this"))
    first, fetch = str(told.value).splitlines()
    assert first.startswith("missing here: no-such-one, nor-this;")
    assert fetch.startswith("  pip download ") and fetch.endswith(" -d wheels --no-deps no-such-one nor-this")


def test_int8_is_the_linear_layer_and_a_shared_one_stays_shared(script):
    torch.manual_seed(0)
    shared = nn.Linear(64, 32, bias=False)
    model = nn.Sequential(shared, nn.Tanh(), nn.Linear(32, 64), shared)
    x = torch.randn(2, 40, 64)
    with torch.inference_mode():
        wanted = model(x)
        found = script.in_int8(model)(x)
    assert model[0] is model[3] and isinstance(model[0], script.Int8Linear)
    assert found.shape == wanted.shape and (found - wanted).norm() / wanted.norm() < 0.02
    # By hand: a row of (1, -2) has the scale 2 / 127, weights of (3, 0.5) the scale 3 / 127.
    layer = nn.Linear(2, 1)
    layer.weight.data, layer.bias.data = torch.tensor([[3.0, 0.5]]), torch.tensor([10.0])
    product = (64 * 127 + -127 * 21) * (2 / 127) * (3 / 127)
    with torch.inference_mode():
        assert float(script.Int8Linear(layer)(torch.tensor([[1.0, -2.0]]))) == pytest.approx(product + 10)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_part_runs_in_small(tmp_path):
    command = [SPEED / "gpu.sh", tmp_path / "gpu", "--small"]
    subprocess.run(["bash", *map(str, command)], check=True, capture_output=True)
    parts = json.loads((tmp_path / "gpu" / "gpu.json").read_text(encoding="utf-8"))["parts"]
    assert list(parts) == ["kernels", "step", "run", "inference"]
    assert [part["failed"] for part in parts.values() if "failed" in part] == []
    assert parts["run"]["largest_difference_after_resume"] == 0
    assert len(parts["inference"]["texts_per_second"]) == 6
    assert min(parts["inference"]["mean_cosine_to_fp32"].values()) > 0.99
    table = (tmp_path / "gpu" / "table.md").read_text(encoding="utf-8")
    assert "| plain |" in table and "| bf16 |" in table
