"""Muon for the matrices of layers or adapters, AdamW for all other weights, as one optimiser."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minialbert.errors import UserError
from minialbert.runs.noise import layer_matrices


def has_muon() -> bool:
    """Tell whether this PyTorch has Muon: it does from 2.10 on."""
    return hasattr(torch.optim, "Muon")


class MuonAdamW(torch.optim.Optimizer):
    """Moves matrices by the orthogonal part of their momentum (Muon), and what is no matrix of a layer by AdamW.

    Muon's step is scaled to the size of AdamW's (Liu et al. 2025, Muon is Scalable for LLM Training), so both have one
    learning rate. A recursive student has one block's matrices, so this costs it little.

    Args:
        params: groups of weights with their weight decay, as Transformers makes them.
        matrices: the weights among them that are Muon's; they decay as the first group does.
        lr: the learning rate of both.
        **adamw: other settings of AdamW.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], *, matrices: Sequence[Tensor], lr: float, **adamw: Any
    ) -> None:
        groups, own = [*params], {id(weight) for weight in matrices}
        rest = [group | {"params": [it for it in group["params"] if id(it) not in own]} for group in groups]
        muons = [weight for group in groups for weight in group["params"] if id(weight) in own]
        settings = {"lr": lr, "weight_decay": groups[0]["weight_decay"], "adjust_lr_fn": "match_rms_adamw"}
        of_adamw, of_muon = torch.optim.AdamW(rest, lr=lr, **adamw), torch.optim.Muon(muons, **settings)
        self._parts: tuple[torch.optim.Optimizer, ...] = of_adamw, of_muon
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    def is_matrix(self, weight: Tensor) -> bool:
        """Tell whether a weight is Muon's."""
        return any(weight is one for one in self.param_groups[-1]["params"])

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # gradients are computed before
        """Take a step with both; a weight without a gradient rests."""
        of_adamw, of_muon = self._parts
        of_adamw.param_groups, of_muon.param_groups = self.param_groups[:-1], self.param_groups[-1:]
        for part in self._parts:
            part.state = self.state  # one place, which checkpoints hold
            part.step()


def trained_matrices(model: nn.Module) -> Sequence[Tensor]:
    """Return the matrices of a model's layers that are trained; where the layers rest, those of its adapters.

    Raises UserError where there are none, or this PyTorch has no Muon to move them.
    """
    if not has_muon():
        raise UserError(
            f"optimizer=muon needs PyTorch 2.10 or newer, this is {torch.__version__}: leave it out"
        )
    of_layers = {id(weight) for weight in layer_matrices(model)}
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found = [weight for weight in trained.values() if id(weight) in of_layers]
    found = found or [it for name, it in trained.items() if "_adapters." in name and it.ndim == 2]
    if not found:
        raise UserError(
            "optimizer=muon moves matrices of layers or adapters, and none is trained here: leave it out"
        )
    return found
