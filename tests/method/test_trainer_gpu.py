"""What a GPU computes beside what the CPU does: `pytest -m gpu` on a machine with one."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from minialbert import MiniAlbertForMaskedLM
from minialbert.runs.device import resolve_precision

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
DEVICE = "cuda"


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_student_and_its_gradients_are_those_of_the_cpu(implementation, tiny_student_config):
    torch.manual_seed(0)
    model = MiniAlbertForMaskedLM(tiny_student_config).eval()
    model.set_attn_implementation(implementation)
    ids, mask = torch.randint(5, 100, (3, 20)), torch.ones(3, 20, dtype=torch.long)
    mask[1, 12:] = 0
    found = []
    for device in ("cpu", DEVICE):
        one = copy.deepcopy(model).to(device)
        loss = one(
            **{"input_ids": ids.to(device), "attention_mask": mask.to(device)}, labels=ids.to(device)
        ).loss
        loss.backward()
        gradients = {
            name: value.grad.cpu() for name, value in one.named_parameters() if value.grad is not None
        }
        found.append((loss.detach().cpu(), gradients))
    (loss, gradients), (other, others) = found
    torch.testing.assert_close(other, loss, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == others.keys() and any(value.abs().max() > 0.01 for value in gradients.values())
    for name, value in gradients.items():
        torch.testing.assert_close(others[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_a_distillation_runs_there_in_bf16(distilled):
    record = json.loads((distilled / "result.json").read_text(encoding="utf-8"))
    assert record["machine"]["device"] == torch.cuda.get_device_name()
    assert record["training"]["precision"] == resolve_precision("auto")
    losses = [json.loads(line) for line in (distilled / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    seen = [one["loss"] for one in losses if "loss" in one]
    assert seen[-1] < seen[0]
