"""Compile the layers of an encoder, once for all lengths."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from minialbert.errors import UserError, one_line


def compile_layers(model: PreTrainedModel) -> int:
    """Compile every transformer layer of a model in place, for batches of any size and length, and count them.

    A recursive student has one such layer. Attention stays outside (`recording.recording_attention`): what is fused
    is what lies between its matrix products, element-wise operations and LayerNorms. Raises UserError on a machine
    that cannot compile.
    """
    try:
        torch.compile(lambda values: values.sin() + 1)(torch.zeros(8))
    except Exception as error:
        raise UserError(
            "training.compile needs a working C++ compiler (g++ or clang++; Triton on a GPU), and torch's own "
            f"check failed ({one_line(error)}): install one, or set it to false"
        ) from error
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)
