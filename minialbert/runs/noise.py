"""Noise of the size of rounding errors: a model trained with it bears the weights of an int8 or int4 export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from minialbert.errors import UserError

LEVELS = {"int8": 127, "int4": 7}  # of the largest weight of an output; in 4 bits, of a block of its inputs
BLOCK = 16


def layer_matrices(model: nn.Module) -> list[Tensor]:
    """Return the matrices of a model's layers; of a recursive student those that its iterations share."""
    layers = (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    parts = [part for layer in layers for part in layer.modules() if isinstance(part, nn.Linear)]
    if not parts:
        raise UserError(
            "weight_noise and Muon are for models of Transformers' layers, and this one has none: leave them out"
        )
    return list(dict.fromkeys(part.weight for part in parts))


def rounding_steps(weight: Tensor, precision: str) -> Tensor:
    """Return the distance between two values that a weight (out, in) can be rounded to, (out, 1) or (out, in)."""
    if precision == "int4" and weight.shape[1] % BLOCK == 0:
        largest = weight.abs().unflatten(1, (-1, BLOCK)).amax(2)
        return largest.repeat_interleave(BLOCK, 1) / LEVELS["int4"]
    return weight.abs().amax(1, keepdim=True) / LEVELS["int8"]


@contextmanager
def rounding_noise(weights: Sequence[Tensor], precision: str, seed: int) -> Iterator[None]:
    """Move weights by up to half a rounding step, uniformly, as a function of the seed, and put them back to the bit.

    Gradients computed within are those at the moved weights, for the weights as they are (straight-through).
    """
    generators = {weight.device: torch.Generator(weight.device).manual_seed(seed) for weight in weights}
    with restored(weights):
        with torch.no_grad():
            for weight in weights:
                noise = torch.empty_like(weight).uniform_(-0.5, 0.5, generator=generators[weight.device])
                weight.add_(noise * rounding_steps(weight, precision))
        yield


@contextmanager
def restored(weights: Sequence[Tensor]) -> Iterator[None]:
    """Give weights the very numbers back after the block that they had before it."""
    kept = [weight.detach().clone() for weight in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
