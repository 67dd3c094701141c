"""Compile the layers of an encoder, once for all lengths."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from minialbert.errors import failing_as


def compile_layers(model: PreTrainedModel) -> int:
    """Compile every transformer layer of a model in place, for batches of any size and length, and count them.

    A recursive student has one such layer. Attention stays outside (`recording.recording_attention`): what is fused
    is what lies between its matrix products, element-wise operations and LayerNorms. Raises UserError on a machine
    that cannot compile.
    """
    needed = "training.compile needs a working C++ compiler (g++ or clang++; Triton on a GPU)"
    with failing_as(f"{needed}, and torch's own check failed", Exception, "install one, or set it to false"):
        torch.compile(lambda values: values.sin() + 1)(torch.zeros(8))
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)
