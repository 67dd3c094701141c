"""Compiled layers: the same numbers, and one compilation for all lengths."""

from __future__ import annotations

import pytest
import torch

from minialbert import MiniAlbertForMaskedLM
from minialbert.errors import UserError
from minialbert.method.encoders import enable_recording, view_encoder
from minialbert.method.fast import compilation
from minialbert.method.fast.compilation import compile_layers
from minialbert.method.objective import Request


def test_a_machine_without_a_compiler_is_told_so(monkeypatch, tiny_student_config):
    def broken(function):
        def call(*arguments):
            raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found\nand a long trace")

        return call

    monkeypatch.setattr(compilation.torch, "compile", broken)
    with pytest.raises(UserError, match="needs a working C\\+\\+ compiler.*InvalidCxxCompiler[^\n]*$"):
        compile_layers(MiniAlbertForMaskedLM(tiny_student_config))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_layers_give_the_same_terms_at_every_length(tiny_teacher, tiny_student_config):
    import copy

    torch.manual_seed(0)
    config = copy.deepcopy(tiny_student_config)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    student = MiniAlbertForMaskedLM(config).train()
    compiled = copy.deepcopy(student)
    assert compile_layers(compiled) == 1
    for model in (student, compiled):
        enable_recording(model)
    compilations = []
    for rows, length in ((2, 16), (3, 24), (5, 40), (4, 8)):
        inputs = {"input_ids": torch.randint(5, config.vocab_size, (rows, length))}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        results = []
        for model in (student, compiled):
            model.zero_grad()
            view = view_encoder(model, inputs, Request(positions=inputs["input_ids"] > 5))
            view.logits.square().mean().backward()
            results.append((view.logits.detach(), model.minialbert.block.ffn.weight.grad))
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)
        compilations.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert compilations[0] > 0 and len(set(compilations[1:])) == 1
