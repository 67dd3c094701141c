"""Muon's step against its definition by singular values, and AdamW's beside it against torch's own."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import write_tiny_task
from torch import nn

from minialbert import MiniAlbertConfig, MiniAlbertForTokenClassification
from minialbert.errors import UserError
from minialbert.method.adapters import freeze_all_but_adapters
from minialbert.runs.muon import MuonAdamW, has_muon, trained_matrices

needs_muon = pytest.mark.skipif(not has_muon(), reason="needs PyTorch 2.10 or newer, which has Muon")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 24), nn.Linear(24, 3))


def optimizer_of(model, **settings):
    decayed = [weight for weight in model.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if weight.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return groups, MuonAdamW(groups, matrices=[model[1].weight], lr=0.01, **settings)


@needs_muon
def test_a_step_is_the_orthogonal_part_of_the_gradient_and_adamw_elsewhere(model):
    _, optimizer = optimizer_of(model)
    ours = [model[0].weight, model[2].weight, model[1].bias, model[2].bias]
    theirs = [weight.detach().clone().requires_grad_() for weight in ours]
    twin = torch.optim.AdamW(
        [{"params": theirs[:2], "weight_decay": 0.1}, {"params": theirs[2:], "weight_decay": 0}], lr=0.01
    )
    before, gradients = model[1].weight.detach().clone(), []
    for _ in range(3):
        for weight in model.parameters():
            weight.grad = torch.randn_like(weight)
        for weight, other in zip(ours, theirs, strict=True):
            other.grad = weight.grad.clone()
        gradients.append(model[1].weight.grad.clone())
        optimizer.step()
        twin.step()
        if len(gradients) == 1:
            after = model[1].weight.detach().clone()
    for weight, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(weight, other, rtol=0, atol=0)
    # The first step: decay, then 0.2 sqrt(24) times the nearest orthogonal matrix, which the iteration meets roughly.
    step = (before * (1 - 0.01 * 0.1) - after) / (0.01 * 0.2 * math.sqrt(24))
    left, _, right = torch.linalg.svd(gradients[0], full_matrices=False)
    inner = left.T @ step @ right.T
    assert ((inner.diagonal() > 0.6) & (inner.diagonal() < 1.3)).all()
    assert (inner - inner.diagonal().diag()).abs().max() < 0.05


@needs_muon
def test_a_state_that_is_saved_and_read_goes_on_alike(model):
    _, optimizer = optimizer_of(model)
    gradients = [[torch.randn_like(weight) for weight in model.parameters()] for _ in range(4)]

    def steps(optimizer, rows):
        for row in rows:
            for weight, gradient in zip(model.parameters(), row, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
        return [weight.detach().clone() for weight in model.parameters()]

    middle = steps(optimizer, gradients[:2])
    saved = copy.deepcopy(optimizer.state_dict())
    expected = steps(optimizer, gradients[2:])
    with torch.no_grad():
        for weight, value in zip(model.parameters(), middle, strict=True):
            weight.copy_(value)
    _, again = optimizer_of(model)
    again.load_state_dict(saved)
    for one, other in zip(steps(again, gradients[2:]), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("verb", ["distill", "finetune"])
def test_a_torch_without_muon_is_named_before_anything_is_written(
    verb, refuse, tiny_windows, tiny_teacher_dir, tiny_student_dir, tmp_path, monkeypatch
):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    given = {
        "distill": ("--recipe", "tiny", "--teacher", tiny_teacher_dir, "--data", tiny_windows,
                    "--set", "student.adapter_reduction_factor=8", "--set", "training.optimizer=muon"),
        "finetune": ("--model", tiny_student_dir, "--task", "ner", "--data", write_tiny_task(tmp_path / "task", "ner"),
                     "--set", "tuning.optimizer=muon"),
    }  # fmt: skip
    said = refuse(verb, *given[verb], "--output", tmp_path / "run")
    assert "optimizer=muon needs PyTorch 2.10 or newer, this is " in said
    assert not (tmp_path / "run").exists()


def names(model):
    of = {id(weight): name for name, weight in model.named_parameters()}
    return [of[id(weight)] for weight in trained_matrices(model)]


@needs_muon
def test_it_moves_the_shared_block_or_the_adapters_of_a_block_that_rests():
    config = MiniAlbertConfig(
        vocab_size=20, embedding_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, adapter_reduction_factor=4,
    )  # fmt: skip
    model = MiniAlbertForTokenClassification(config)
    block = "minialbert.block."
    parts = ("attention.query", "attention.key", "attention.value", "attention.dense", "ffn", "ffn_output")
    assert names(model) == [f"{block}{part}.weight" for part in parts]
    freeze_all_but_adapters(model)
    assert names(model) == [
        f"minialbert.{place}_adapters.{iteration}.{part}.weight"
        for place in ("attention", "ffn")
        for iteration in (0, 1)
        for part in ("down", "up")
    ]
    for weight in model.parameters():
        weight.requires_grad_(False)
    with pytest.raises(UserError, match="none is trained here"):
        trained_matrices(model)
