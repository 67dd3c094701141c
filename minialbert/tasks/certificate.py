"""How sure a model's figures are: precision, recall and F1 of each class or type of entity, with intervals.

All is counted from the lines of `predictions.jsonl`: a record, a page and a comparison of two models count alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minialbert.data.metrics import normalised

RESAMPLES, LEVEL = 1000, 0.95
_BINS, _LONGEST = 15, 5  # of confidences; words, longer entities are counted together
Line = Mapping[str, Any]
Item = tuple[Any, ...]  # the name under which an answer is counted, and what tells it from others of its text
Floats = NDArray[np.float64]


def answers(line: Line) -> tuple[set[Item], set[Item]]:
    """Return what is annotated in a text and what a model says of it: its classes, its entities, or an answer.

    Of several right answers the one that was given counts, else the first.
    """
    if "answers" in line:
        right = [normalised(one) for one in line["answers"]]
        found = [normalised(one) for one in (line["predicted"],) if one is not None]
        gold = found if found and found[0] in right else right[:1]
        return {("answer", one) for one in gold}, {("answer", one) for one in found}
    if "gold" in line:
        sides: list[set[Item]] = [
            {(one["label"], one["start"], one["end"]) for one in line[key]} for key in ("gold", "entities")
        ]
    else:
        both = (line["label"], line["predicted"])
        sides = [{(name,) for name in (one if isinstance(one, list | tuple) else [one])} for one in both]
    return sides[0], sides[1]


def confidences(lines: Sequence[Line]) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the probability of each answer, and whether it is right.

    Answers are entities, the class of each text, or each class of each text where several may apply, or answers.
    """
    known: list[tuple[float, bool]] = []
    for line in lines:
        if "gold" in line:
            gold, _ = answers(line)
            known += [
                (one["score"], (one["label"], one["start"], one["end"]) in gold) for one in line["entities"]
            ]
        elif "answers" in line:
            gold, found = answers(line)
            known += [(line["score"], one in gold) for one in found]
        elif "scores" in line:
            known += [(score, name in line["label"]) for name, score in line["scores"].items()]
        elif "score" in line:
            known.append((line["score"], line["label"] == line["predicted"]))
    scores, right = np.array(known, float).reshape(-1, 2).T
    return scores, right.astype(bool)


def calibration_error(scores: Floats, right: NDArray[np.bool_]) -> float:
    """Return how far confidences lie from the share of right answers (ECE: mean over 15 bins of equal width)."""
    gaps = np.bincount(np.minimum((scores * _BINS).astype(int), _BINS - 1), scores - right, _BINS)
    return float(np.abs(gaps).sum() / max(1, len(scores)))


def units(lines: Sequence[Line]) -> list[Any]:
    """Return what each text is drawn with: the texts of its group (a document, a patient), or itself."""
    return [line.get("group", number) for number, line in enumerate(lines)]


def resampled(
    gold: Sequence[set[Item]], found: Sequence[set[Item]], drawn_with: Sequence[Any]
) -> dict[str, Floats]:
    """Return right, found and annotated answers by name, (1 + resamples, 3): of the texts, then of bootstrap samples.

    Two models on the same texts get the same samples, so that differences are paired. The name "" has all answers.
    """
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(drawn_with))}
    names: dict[str, int] = {}
    events = [
        (
            numbers[unit],
            names.setdefault(item[0], len(names)),
            item in one & other,
            item in other,
            item in one,
        )
        for unit, one, other in zip(drawn_with, gold, found, strict=True)
        for item in one | other
    ]
    unit, name, *flags = np.array(events, np.int64).reshape(-1, 5).T
    rng, counts = np.random.default_rng(0), np.empty((1 + RESAMPLES, len(names), 3))
    for sample in range(1 + RESAMPLES):
        drawn = rng.integers(len(numbers), size=len(numbers)) if sample else np.arange(len(numbers))
        weights = np.bincount(drawn, minlength=len(numbers))[unit]
        for column, flag in enumerate(flags):
            counts[sample, :, column] = np.bincount(name, weights * flag, len(names))
    return {"": counts.sum(axis=1)} | {one: counts[:, index] for one, index in sorted(names.items())}


def ratios(counts: Floats) -> dict[str, Floats]:
    """Return precision, recall and F1 of counts (..., 3); not a number where nothing was found or annotated."""
    right, found, gold = np.moveaxis(counts, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"precision": right / found, "recall": right / gold, "f1": 2 * right / (found + gold)}


def _figures(counts: Floats, gold: set[Any], found: set[Any]) -> dict[str, Any]:
    """Return precision, recall and F1 with their intervals, from counts as `resampled` gives them.

    Of a figure that is 0 or 1 all samples are alike. Its interval then reaches to where as many units as it is counted
    over would show no other in 2.5 % of cases (Clopper and Pearson): those in which the name is annotated (`gold`) for
    recall, those in which it is `found` for precision, and all of them for F1. Any other figure over a single unit has
    no interval, since nothing shows how units differ.
    """
    shown: dict[str, Any] = {"support": int(counts[0, 2]), "predicted": int(counts[0, 1])}
    intervals: dict[str, list[float] | None] = {}
    tail, over = (1 - LEVEL) / 2, {"precision": found, "recall": gold, "f1": gold | found}
    for name, (value, *samples) in ratios(counts).items():
        shown[name] = float(np.nan_to_num(value))
        known = np.array(samples)[np.isfinite(samples)]
        ends = np.quantile(known, [tail, 1 - tail]).tolist() if len(known) else None
        if value in (0, 1):
            edge = tail ** (1 / len(over[name]))
            ends = [edge, 1.0] if value else [0.0, 1 - edge]
        elif len(over[name]) < 2:
            ends = None
        intervals[name] = None if np.isnan(value) else ends
    return {**shown, "intervals": intervals}


def certificate(lines: Sequence[Line]) -> dict[str, Any]:
    """Return figures by class or by type of entity, by length of entities and over all, with 95 % intervals.

    Samples are drawn of groups where texts have one, else of texts. Empty where no text is labelled, or by a score.
    `lines` are those of `predictions.jsonl`, of one split.
    """
    labels = [line.get("gold", line.get("label", line.get("answers"))) for line in lines]
    if not lines or any(label is None or isinstance(label, int | float) for label in labels):
        return {}
    gold, found = zip(*map(answers, lines), strict=True)
    drawn_with, tagging = units(lines), "gold" in lines[0]
    parts = {"per_type" if tagging else "per_class": _part(gold, found, drawn_with)}
    overall = parts[next(iter(parts))].pop("", None)
    if tagging:
        one, other = (
            [{(_length(line, item), *item) for item in row} for line, row in zip(lines, side, strict=True)]
            for side in (gold, found)
        )
        parts["per_length"] = _part(one, other, drawn_with)
        parts["per_length"].pop("", None)
    return {
        "level": LEVEL, "resamples": RESAMPLES, "units": len(set(drawn_with)),
        "drawn": "groups" if any("group" in line for line in lines) else "texts", "all": overall,
        "calibration_error": calibration_error(*confidences(lines)), **parts,
    }  # fmt: skip


def _part(gold: Sequence[set[Item]], found: Sequence[set[Item]], drawn_with: Sequence[Any]) -> dict[str, Any]:
    """Return the figures of each name; "" has those of all."""
    holders: dict[str, tuple[set[Any], set[Any]]] = defaultdict(lambda: (set(), set()))
    for unit, *sides in zip(drawn_with, gold, found, strict=True):
        for place, side in enumerate(sides):
            for item in side:
                holders[item[0]][place].add(unit)
                holders[""][place].add(unit)
    counts = resampled(gold, found, drawn_with)
    return {name: _figures(counts[name], *units) for name, units in sorted(holders.items())}


def _length(line: Line, item: Item) -> str:
    words = len(line["text"][item[1] : item[2]].split())
    return f"{words} word{'s' * (words > 1)}" if words < _LONGEST else f"{_LONGEST} words or more"
