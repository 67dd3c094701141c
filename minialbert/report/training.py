"""Sections about distillations: curves of every loss term, alignment by iteration, attention maps, recipes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..attention_maps import read_attention_maps
from .blocks import AttentionMaps, Block, LineChart, Listing, Section, Series
from .curves import Points, held_out_curves, read_curves

# Of a page that shows many runs.
_MOST_MAPS = 12

_TERMS = {
    "loss": "total loss",
    "loss_mlm": "masked-LM loss",
    "loss_attention": "attention loss",
    "loss_hidden": "hidden-state loss",
    "loss_output": "output loss",
    "loss_embedding": "embedding loss",
    "loss_relation": "relation loss",
}
_HELD_OUT = {
    "mlm_accuracy": "masked tokens predicted, held-out text",
    "mlm_loss": "masked-LM loss, held-out text",
    "output_kl": "KL of the output, held-out text",
}


@dataclass(frozen=True)
class Distilled:
    """A distillation, or the first weights of one.

    Attributes:
        name: what the page calls it.
        folder: where its log and its attention maps are.
        record: its result.
    """

    name: str
    folder: Path
    record: Mapping[str, Any]


def training_sections(runs: Sequence[Distilled]) -> list[Section]:
    """Return what distillations looked like, where their logs and maps are at hand.

    Args:
        runs: the distillations.

    Returns:
        Sections with training curves, held-out curves, alignment by iteration, and attention maps; those that would be
        empty are left out.

    Raises:
        UserError: if a log or a file of maps is broken.
    """
    sections = [
        Section("Training curves", _curves(runs, read_curves, _TERMS, "loss")),
        Section("Held-out text during training", _curves(runs, held_out_curves, _HELD_OUT, "value")),
        Section("Alignment by iteration", _alignment(runs)),
        Section("Attention of teacher and student", _maps(runs)),
    ]
    return [section for section in sections if section.blocks]


def recipe_listing(title: str, record: Mapping[str, Any]) -> Listing:
    """Return the resolved recipe of a record as YAML, without what is not set.

    Args:
        title: whose it is.
        record: the record.

    Returns:
        The listing.
    """
    text = yaml.safe_dump(_set(record.get("recipe") or {}), sort_keys=False, allow_unicode=True, width=100)
    return Listing(title, tuple(text.splitlines()), language="yaml")


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: _set(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in kept.items() if value is not None and value != {}}


def _curves(
    runs: Sequence[Distilled],
    read: Callable[[Path], dict[str, Points]],
    titles: Mapping[str, str],
    y_label: str,
) -> tuple[Block, ...]:
    """Return a chart per term with a line per run."""
    lines: dict[str, list[Series]] = {}
    for run in runs:
        log = run.folder / "log.jsonl"
        if not log.is_file():
            continue
        for term, points in read(log).items():
            if any(value for _, value in points):  # a term without a weight
                lines.setdefault(term, []).append(Series(run.name, points))
    named = [term for term in titles if term in lines]
    return tuple(
        LineChart(_title(titles[term]), "optimiser steps", y_label, tuple(lines[term]), log_y=term in _TERMS)
        for term in named
    )


def _alignment(runs: Sequence[Distilled]) -> tuple[Block, ...]:
    charts = {
        "cosine": "Cosine of hidden states with the matched layer",
        "attention_kl": "KL of attention rows from the matched layer",
    }
    blocks = []
    for figure, title in charts.items():
        lines = []
        for run in runs:
            metrics = run.record.get("metrics") or {}
            end = metrics.get("student_end") or metrics.get("student_start") or {}
            points = sorted(
                (float(found[1]), float(value))
                for key, value in end.items()
                if (found := re.fullmatch(rf"{figure}_(\d+)", key)) and isinstance(value, int | float)
            )
            if points:
                lines.append(Series(run.name, tuple(points)))
        if lines:
            blocks.append(
                LineChart(f"{title}, held-out text", "iteration", figure.replace("_", " "), tuple(lines))
            )
    return tuple(blocks)


def _maps(runs: Sequence[Distilled]) -> tuple[Block, ...]:
    found = {run.name: run.folder / "attention.json" for run in runs}
    maps = {name: read_attention_maps(file) for name, file in found.items() if file.is_file()}
    shown = dict(list(maps.items())[:_MOST_MAPS])
    return (AttentionMaps("Attention maps", shown),) if shown else ()


def _title(text: str) -> str:
    return text[:1].upper() + text[1:]


__all__ = ["Distilled", "recipe_listing", "training_sections"]
