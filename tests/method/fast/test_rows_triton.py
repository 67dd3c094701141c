"""Attention kernels against the plain formula in fp64: on a GPU as compiled, elsewhere in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minialbert.method.fast.rows import AttentionInputs

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Triton reads the variable when it is imported, which other packages do before this file is reached: without
# a GPU the tests run in a process of their own.
here = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="runs in test_in_the_interpreter"
)
DEVICE = "cpu" if INTERPRETED else "cuda"
DIRECTIONS = ("teacher-student", "student-teacher")


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="the tests below run in this process")
def test_in_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    ran = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert "12 passed, 1 skipped" in ran.stdout


def projection(batch, heads, length, size, dtype=torch.float32):
    """What a projection leaves: (B, H, T, d) that lies in memory as (B, T, H, d)."""
    return torch.randn(batch, length, heads, size, device=DEVICE).to(dtype).transpose(1, 2)


def layers(
    batch=1, heads=2, length=20, size=32, other_size=32, mask=None, dtype=torch.float32, other_dtype=None
):
    torch.manual_seed(0)
    shape = (batch, heads, length)
    inputs = AttentionInputs(*(projection(*shape, size, dtype) for _ in range(3)), mask, 0.3)
    other_dtype = other_dtype or dtype
    return inputs, AttentionInputs(
        *(projection(*shape, other_size, other_dtype) for _ in range(2)), None, mask
    )


def plain(inputs, reference, direction, keep=None):
    """Outputs and gradients by the formula, in fp64: rows, their divergence, and autograd."""
    leaves = [each.detach().double().requires_grad_() for each in (inputs.query, inputs.key, inputs.value)]
    query, key, value = leaves

    def log_rows(layer, query, key):
        scores = query @ key.transpose(-1, -2) * (layer.scaling or query.shape[-1] ** -0.5)
        if layer.mask is not None:
            scores = scores.masked_fill(~layer.mask, -1e30)
        return scores.log_softmax(-1), scores.logsumexp(-1)

    student, normaliser = log_rows(inputs, query, key)
    teacher, other = log_rows(reference, reference.query.double(), reference.key.double())
    target, log = (teacher, student) if direction == "teacher-student" else (student, teacher)
    weights = student.exp() if keep is None else student.exp() * keep
    return leaves, (weights @ value, (target.exp() * (target - log)).sum(-1), normaliser, other)


def close(found, expected, tolerance):
    assert found.shape == expected.shape
    scale = expected.abs().max().clamp(min=1)
    torch.testing.assert_close(found.double() / scale, expected / scale, rtol=0, atol=tolerance)


def check(inputs, reference, direction, *, tolerance=5e-6, dropout=0.0, keep=None, rows=None):
    """Compare everything with `plain`; `rows`: those whose log sum exp and divergence mean something."""
    from minialbert.method.fast import rows_triton

    assert rows_triton.supports(inputs, reference, dropout)
    leaves, expected = plain(inputs, reference, direction, keep)
    outputs = rows_triton.forward(inputs, reference, direction, dropout, 2**61 + 7)
    assert outputs[0].dtype == inputs.value.dtype and outputs[0].transpose(1, 2).is_contiguous()
    close(outputs[0], expected[0].detach(), tolerance)
    for found, wanted in zip(outputs[1:], expected[1:], strict=True):
        assert found.dtype == torch.float32
        rows = torch.ones_like(found, dtype=torch.bool) if rows is None else rows
        close(found[rows], wanted.detach()[rows], tolerance)
    d_attended, d_divergence = torch.randn_like(outputs[0]), torch.randn_like(outputs[1])
    found = rows_triton.backward(
        inputs, reference, *outputs, d_attended, d_divergence, direction, dropout, 2**61 + 7
    )
    wanted = torch.autograd.grad(expected[:2], leaves, (d_attended.double(), d_divergence.double()))
    for gradient, truth in zip(found, wanted, strict=True):
        assert gradient.dtype == inputs.query.dtype
        close(gradient, truth, tolerance)


def padding(lengths, length):
    return (torch.arange(length) < torch.tensor(lengths)[:, None])[:, None, None].to(DEVICE)


@here
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_several_blocks_and_a_rest(direction):
    check(*layers(length=40, size=40, other_size=64), direction)


@here
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_key_padding(direction):
    check(*layers(2, length=20, size=64, mask=padding([20, 9], 20)), direction)


@here
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_blocks_on_the_diagonal_and_rows_without_keys(direction):
    segment = torch.tensor([0] * 30 + [1] * 35 + [2] * 3, device=DEVICE)
    mask = (segment[:, None] == segment) & (segment < 2)  # the last three are padding: they see nothing
    full = mask[None, None]
    inputs, reference = layers(heads=1, length=68, mask=full)
    check(inputs, reference, direction, rows=(segment < 2)[None, None])


@pytest.fixture
def products_of_bf16(monkeypatch):
    """The interpreter keeps bf16 as its bits, and would multiply those: it is given fp32 of the same value."""
    if not INTERPRETED:
        return
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    create_dot = InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    monkeypatch.setattr(
        InterpreterBuilder,
        "create_dot",
        lambda self, left, right, *rest: create_dot(self, widened(left), widened(right), *rest),
    )


@here
@pytest.mark.usefixtures("products_of_bf16")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_half_precision_beside_a_teacher_of_another(dtype, tolerance):
    inputs, reference = layers(size=32, dtype=dtype, other_dtype=torch.float32)
    check(inputs, reference, "teacher-student", tolerance=tolerance)


@here
def test_large_scores_and_large_heads():
    inputs, reference = layers(heads=1, length=40, size=128, other_size=16)
    inputs.query.mul_(30)
    check(inputs, reference, "teacher-student", tolerance=2e-5)


@here
def test_without_values_and_with_two_masks():
    from minialbert.method.fast import rows_triton

    inputs, reference = layers(2, length=20, mask=padding([20, 12], 20))
    reference = replace(reference, mask=reference.mask.clone(), query=reference.query.contiguous())
    _, expected = plain(inputs, reference, "teacher-student")
    bare = replace(inputs, value=None)
    attended, *others = rows_triton.forward(bare, reference, "teacher-student", 0.0, 0)
    assert attended is None
    close(others[0], expected[1].detach(), 5e-6)
    weight = torch.randn(1, device=DEVICE).expand_as(others[0])  # as the gradient of a sum: without memory
    leaves, (_, divergence, _, _) = plain(inputs, reference, "teacher-student")
    *found, d_value = rows_triton.backward(
        bare, reference, None, *others, None, weight, "teacher-student", 0.0, 0
    )
    assert d_value is None
    wanted = torch.autograd.grad(divergence, leaves[:2], weight.double())
    for gradient, truth in zip(found, wanted, strict=True):
        close(gradient, truth, 5e-6)


@here
def test_dropout_is_the_same_forward_and_backward():
    from minialbert.method.fast import rows_triton

    # With the identity as values what is attended to are the rows themselves: those of 40 keys, in two blocks.
    inputs, reference = layers(length=40, size=64)
    identity = torch.eye(40, 64, device=DEVICE).expand_as(inputs.value)
    dropped, *_ = rows_triton.forward(
        replace(inputs, value=identity), reference, "teacher-student", 0.3, 2**61 + 7
    )
    kept = dropped[..., :40] != 0
    assert abs(kept.double().mean() - 0.7) < 0.03  # 3200 draws: 0.008 is one standard deviation
    assert 0.5 < (kept[:, 0] == kept[:, 1]).double().mean() < 0.66  # 0.58 for heads that are drawn apart
    check(inputs, reference, "student-teacher", dropout=0.3, keep=kept / 0.7)


@here
def test_what_is_not_supported():
    from minialbert.method.fast.rows_triton import supports

    inputs, reference = layers(length=3, size=16)
    assert supports(inputs, reference, 0.1)
    assert supports(replace(inputs, mask=torch.ones(3, dtype=torch.bool, device=DEVICE)), reference, 0.1)
    additive = torch.zeros(1, 1, 3, 3, device=DEVICE)
    longer = layers(length=4, size=16)[1]
    large = layers(length=3, size=129)[0]
    for ours, theirs in [
        (replace(inputs, mask=additive), reference),
        (inputs, replace(reference, bias=additive)),
        (replace(inputs, query=inputs.query.double()), reference),
        (large, reference),
        (inputs, longer),
    ]:
        assert not supports(ours, theirs, 0.0)
