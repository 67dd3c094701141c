"""Whether averaged weights predict more than the last ones: exponential means kept beside one distillation.

python benchmarks/quality/weight_averages.py TEACHER WINDOWS OUTPUT SEED [SETTING=VALUE …]

The distillation is that of `miniature/hidden-only` with the settings; the means do not touch it. OUTPUT gets the run,
and `averages.json` with the held-out figures of the last weights and of each mean. results/optimiser has the record.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from minialbert.method import distill
from minialbert.runs.files import write_json

DECAYS = (0.9, 0.98, 0.99, 0.995)


class Averages(TrainerCallback):
    """Keep one exponential mean of all weights a decay."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.means = {decay: self.now(model) for decay in DECAYS}

    @staticmethod
    def now(model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Return a copy of the weights."""
        return {name: weight.detach().float().clone() for name, weight in model.named_parameters()}

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: torch.nn.Module, **_: Any) -> None:
        """Move every mean a little towards the weights; early ones forget their start sooner."""
        for decay, mean in self.means.items():
            share = 1 - min(decay, (1 + state.global_step) / (10 + state.global_step))
            for name, weight in model.named_parameters():
                mean[name].lerp_(weight.detach().float(), share)


def main(teacher: str, windows: str, output: str, seed: str, *settings: str) -> None:
    """Distil, then measure every mean."""
    kept: list[Any] = []
    make = distill.make_trainer

    def watched(*args: Any, **kwargs: Any) -> Any:
        trainer = make(*args, **kwargs)
        kept[:] = [trainer, Averages(trainer.model)]
        trainer.add_callback(kept[1])
        return trainer

    distill.make_trainer = watched
    distill.distill(
        teacher,
        windows,
        recipe="miniature/hidden-only",
        seed=int(seed),
        settings=list(settings),
        output=output,
    )
    trainer, averages = kept
    found = {"last": trainer.measure()[0].flat()}
    for decay, mean in averages.means.items():
        with torch.no_grad():
            for name, weight in trainer.model.named_parameters():
                weight.copy_(mean[name])
        trainer.state.global_step += 1  # what was measured at this step is not measured again
        found[str(decay)] = trainer.measure()[0].flat()
    write_json(
        Path(output) / "averages.json", {"settings": list(settings), "seed": int(seed), "held_out": found}
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
