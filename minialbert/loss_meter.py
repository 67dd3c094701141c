"""Means of loss terms from one log to the next, in a form that a checkpoint can hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class LossMeter:
    """Adds up loss terms over the micro-batches of a step, and over the steps since the last log.

    A step that is skipped leaves no trace in the means.
    """

    def __init__(self) -> None:
        self.tokens = 0.0
        self.steps = 0
        self._sums: dict[str, float] = {}
        self._step: dict[str, Tensor] = {}

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add a micro-batch's share of the step's terms."""
        for name, value in terms.items():
            value = value.detach()
            self._step[name] = self._step[name] + value if name in self._step else value

    def step_terms(self) -> dict[str, float]:
        """Return the terms of the step under way, as one transfer from the device."""
        if not self._step:
            return {}
        return dict(zip(self._step, torch.stack(list(self._step.values())).tolist(), strict=True))

    def non_finite(self) -> list[str]:
        """Return the terms of the step under way that are not finite; the total only where no other is."""
        names = [name for name, value in self.step_terms().items() if not math.isfinite(value)]
        return [name for name in names if name != "total"] or names

    def end_step(self, tokens: float, *, kept: bool) -> None:
        """Close the step under way.

        Args:
            tokens: that it covered.
            kept: whether it changed the model.
        """
        if kept:
            for name, value in self.step_terms().items():
                self._sums[name] = self._sums.get(name, 0.0) + value
            self.steps += 1
        self.tokens += tokens
        self._step = {}

    def drop_step(self) -> None:
        """Forget the step under way."""
        self._step = {}

    def means(self, over_processes: Callable[[Sequence[float]], Sequence[float]]) -> dict[str, float]:
        """Return the mean of each term over the steps since the last log.

        Args:
            over_processes: sums figures over processes, each of which holds its share.

        Returns:
            Means by name; empty without a step.
        """
        if not self.steps:
            return {}
        sums = over_processes(list(self._sums.values()))
        return {name: value / self.steps for name, value in zip(self._sums, sums, strict=True)}

    def reset(self) -> None:
        """Start anew after a log."""
        self._sums, self.steps, self.tokens = {}, 0, 0.0

    def state(self) -> dict[str, Any]:
        """Return what `load` takes, as plain data: 64-bit floats survive JSON unchanged."""
        return {"sums": self._sums, "steps": self.steps, "tokens": self.tokens}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._sums = {str(name): float(value) for name, value in state["sums"].items()}
        self.steps, self.tokens = int(state["steps"]), float(state["tokens"])
        self._step = {}


def share_of_meters(states: Sequence[Mapping[str, Any]], process: int, processes: int) -> Mapping[str, Any]:
    """Return what a process's meter goes on from.

    Args:
        states: of the meters of all processes, perhaps of another number of them.
        process: which one, counted from 0.
        processes: how many there are now.

    Returns:
        Its own state; where their number has changed, the first takes all sums and the others none.
    """
    if len(states) == processes:
        return states[process]
    sums = {name: sum(state["sums"][name] for state in states) for name in states[0]["sums"]}
    return {**states[0], "sums": sums if process == 0 else dict.fromkeys(sums, 0.0)}
