"""Noise of the size of rounding: how large it is, on which weights, and that it leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minialbert import MiniAlbertForMaskedLM
from minialbert.errors import UserError
from minialbert.runs.noise import layer_matrices, rounding_noise, rounding_steps


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_noise_is_uniform_within_half_a_step_and_leaves_no_trace(precision):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(24, 64) * torch.linspace(0.1, 5, 24)[:, None])
    before, found = weight.detach().clone(), []
    for seed in (1, 1, 2):
        with pytest.raises(RuntimeError, match="within"), rounding_noise([weight], precision, seed):
            found.append((weight.detach() - before) / rounding_steps(before, precision))
            (weight**2).sum().backward()
            raise RuntimeError("within")
        assert torch.equal(weight, before)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert found[0].abs().max() <= 0.5 + 1e-4
    assert found[0].abs().mean() == pytest.approx(0.25, abs=0.01) and abs(found[0].mean()) < 0.02
    moved = sum(before + one * rounding_steps(before, precision) for one in found)
    torch.testing.assert_close(weight.grad, 2 * moved)  # at the moved weights


def test_steps_are_those_of_the_quantiser():
    pytest.importorskip("onnx")
    from minialbert.deploy.onnx.int8 import four_bits

    weight = torch.tensor([[1.27, -0.5, *[0.0] * 30], [0.0, 0.254, *[0.0] * 30]])
    torch.testing.assert_close(rounding_steps(weight, "int8"), torch.tensor([[0.01], [0.002]]))
    steps = rounding_steps(weight, "int4")
    assert steps[0, 0] == pytest.approx(1.27 / 7) and steps[0, 16] == 0 and steps.shape == weight.shape
    levels = (weight / rounding_steps(weight, "int8")).T.numpy()
    assert four_bits(levels)[1][0, 0, 0] * 0.01 == pytest.approx(steps[0, 0].item(), rel=0.05)
    assert rounding_steps(weight[:, :10], "int4").shape == (
        2,
        1,
    )  # a width that the quantiser leaves at 8 bits


def test_the_noise_is_on_what_the_iterations_share(tiny_student_config):
    model = MiniAlbertForMaskedLM(tiny_student_config)
    noisy = {id(weight) for weight in layer_matrices(model)}
    names = {name for name, value in model.named_parameters() if id(value) in noisy}
    assert all(name.startswith("minialbert.block.") for name in names)
    parts = {name.split(".")[-2] for name in names}
    assert parts == {"query", "key", "value", "dense", "ffn", "ffn_output"} and len(names) == 6
    with pytest.raises(UserError, match="this one has none: leave them out"):
        layer_matrices(nn.Linear(2, 2))
