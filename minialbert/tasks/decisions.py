"""How a calibrated model chooses: the temperature of its confidences, thresholds for a wanted recall or precision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from minialbert_runtime.answers import Decision, Logits, tags_of
from minialbert_runtime.questions import OPEN, SURE

from minialbert.data.examples import Example, Task
from minialbert.data.metrics import check_package
from minialbert.data.task_inputs import Encoded
from minialbert.errors import UserError, listed, quoted
from minialbert.tasks.certificate import Line, answers, calibration_error, confidences, ratios
from minialbert.tasks.evaluate import line_of

_ROUNDS = 3  # over labels
# Evenly by log-odds, 0.5 first.
_THRESHOLDS = sorted((1 / (1 + np.exp(-np.linspace(-12, 12, 97)))).tolist(), key=lambda one: abs(one - 0.5))
Wishes = Mapping[str, Mapping[str, float]]  # by label, the least recall or precision


@dataclass(frozen=True)
class Held:
    """Labelled examples, and a model's logits for each: (labels,), or (words, labels) for tags, with how to decode."""

    task: Task
    examples: Sequence[Example]
    logits: Sequence[Logits]
    decoding: str = field(default="alone", kw_only=True)

    @property
    def names(self) -> list[str]:
        """What each label counts as: a class its name, a tag its type."""
        return [label[2:] if self.task.type.tagging else label for label in self.task.labels]

    def lines(self, decision: Decision) -> list[Line]:
        """Return what a model with this decision says of the examples, as lines of `predictions.jsonl`."""
        over = decision.over(self.task.labels, tagging=self.task.type.tagging)
        scaled = [values / np.float32(decision.temperature) for values in self.logits]
        if self.task.type.tagging:
            found: Any = [tags_of(values, self.task.labels, over, self.decoding) for values in scaled]
        else:
            values, _ = self.task.type.answers(
                self.task, (np.stack(scaled) - (0 if over is None else over)).astype(np.float32), None
            )
            found = zip(values, scaled, strict=True)
        return [line_of("", self.task, (one, *said)) for one, said in zip(self.examples, found, strict=True)]

    def figures(self, name: str, decision: Decision) -> dict[str, float]:
        """Return precision, recall and F1 of a label; 0 where there is nothing to divide by."""
        counts = np.zeros(3)
        for gold, found in map(answers, self.lines(decision)):
            own, other = ({item for item in side if item[0] == name} for side in (gold, found))
            counts += len(own & other), len(other), len(own)
        return {figure: float(np.nan_to_num(value)) for figure, value in ratios(counts).items()}


@dataclass(frozen=True)
class HeldQuestions(Held):
    """Labelled questions, and a model's logits for each of their windows, (tokens, 2)."""

    encoded: Encoded
    said: dict[float, list[Any]] = field(default_factory=dict)  # by temperature

    def lines(self, decision: Decision) -> list[Line]:
        """Return what a model with this decision answers, as lines of `predictions.jsonl`."""
        heat = decision.temperature
        if heat not in self.said:
            scaled = [values / np.float32(heat) for values in self.logits]
            self.said[heat], _ = self.task.type.results(self.task, self.examples, self.encoded, scaled)
        lines: list[Line] = []
        least = decision.thresholds.get(OPEN[0], 0.5)
        for example, said in zip(self.examples, self.said[heat], strict=True):
            found = said
            if "answerable" in said:
                answered = bool(said["answers"]) and said["answerable"] > least
                found = said["answers"][0] if answered else {"answer": None, "score": 1 - said["answerable"]}
            lines.append(line_of("", self.task, (example, found, None)))
        return lines


def fit_temperature(known: Held) -> tuple[float, dict[str, Any]]:
    """Return the temperature at which confidences are likeliest, and the calibration error before and after.

    1 where the error would not fall, and where all answers are right or all wrong.
    """
    optimize = check_package("scipy.optimize", "scipy")

    def loss(log_temperature: float) -> float:
        scores, right = confidences(known.lines(Decision(math.exp(log_temperature))))
        return float(-np.log(np.clip(np.where(right, scores, 1 - scores), 1e-9, 1)).mean())

    scores, right = confidences(known.lines(Decision()))
    error: dict[str, Any] = {"answers": len(right), "wrong": int((~right).sum())}
    error |= dict.fromkeys(("before", "after"), calibration_error(scores, right))
    if not 0 < error["wrong"] < len(right):
        return 1.0, error
    best = math.exp(
        optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 0.01}).x
    )
    after = calibration_error(*confidences(known.lines(Decision(best))))
    return (round(best, 4), error | {"after": after}) if after < error["before"] else (1.0, error)


def choose_thresholds(known: Held, temperature: float, wishes: Wishes) -> Decision:
    """Return the decision with, for each label with wishes, the threshold that fulfils them with the highest F1.

    Raises UserError, with the nearest that can be reached, if there is none.
    """
    decision = Decision(temperature)
    for _ in range(_ROUNDS):  # labels compete, so that a later threshold may undo what an earlier one reached
        for name, least in wishes.items():
            tried = [Decision(temperature, {**decision.thresholds, name: one}) for one in _THRESHOLDS]
            figures = [known.figures(name, one) for one in tried]
            # Of those that fulfil the wishes, or come nearest.
            rank = [(min(0.0, _lacking(one, least)), one["f1"]) for one in figures]
            best = max(range(len(tried)), key=rank.__getitem__)
            if rank[best][0] < 0:
                asked = " and ".join(f"a {figure} of {value:g}" for figure, value in least.items())
                nearest = " and ".join(
                    f"a {one} of {figures[best][one]:.4f}" for one in ("recall", "precision")
                )
                raise UserError(
                    f"{asked} for {quoted(name)} cannot be reached on these rows, the nearest is {nearest}: nothing is "
                    "written, wish for less"
                )
            decision = tried[best]
        if all(_lacking(known.figures(name, decision), least) >= 0 for name, least in wishes.items()):
            return decision
    raise UserError(
        f"what is wished of {listed(wishes)} can be reached one by one, but not together: wish for less"
    )


def _lacking(figures: Mapping[str, float], least: Mapping[str, float]) -> float:
    return min(figures[figure] - value for figure, value in least.items())


def read_wishes(recalls: Mapping[str, float], precisions: Mapping[str, float], known: Held) -> Wishes:
    """Return the least recall and precision by label; UserError for what is no share, and for labels not there."""
    wishes: dict[str, dict[str, float]] = {}
    if known.task.labels == SURE and (recalls or precisions):
        told = "the model always answers, so that there is no threshold: tune it on questions without an answer, too"
        raise UserError(told)
    there = {item[0] for line in known.lines(Decision()) for item in answers(line)[0]} & set(known.names)
    for figure, given in (("recall", recalls), ("precision", precisions)):
        for label, value in given.items():
            if label not in there:
                raise UserError(
                    f"there is no {quoted(label)} in these rows: they have {listed(sorted(there))}"
                )
            if not 0 < value <= 1:
                raise UserError(
                    f"min_{figure} of {label}: expected a share above 0 and up to 1, found {value}"
                )
            wishes.setdefault(label, {})[figure] = value
    return wishes
