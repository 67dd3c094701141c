"""Sections about distillations: curves of every loss term, alignment by iteration, attention maps, recipes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..attention_maps import read_attention_maps
from ..recipe_settings import without_places
from .blocks import AttentionMaps, Block, LineChart, Listing, Section, Series, Text
from .curves import Points, held_out_curves, read_curves

# Of a page that shows many runs.
_MOST_MAPS = 24

_TERMS = {
    "loss": "total loss",
    "loss_mlm": "masked-LM loss",
    "loss_attention": "attention loss",
    "loss_hidden": "hidden-state loss",
    "loss_output": "output loss",
    "loss_embedding": "embedding loss",
    "loss_relation": "relation loss",
    "loss_elastic": "elastic loss",
}
_HELD_OUT = {
    "mlm_accuracy": "share of masked tokens predicted, held-out text",
    "mlm_loss": "masked-LM loss, held-out text",
    "output_kl": "KL of the output, held-out text",
}
_NATS = "nats"


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
        Section("Training curves", _losses(runs)),
        Section("Held-out text during training", _held_out(runs)),
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
    text = yaml.safe_dump(
        _set(without_places(record.get("recipe") or {})), sort_keys=False, allow_unicode=True, width=100
    )
    return Listing(title, tuple(text.splitlines()), language="yaml")


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: _set(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in kept.items() if value is not None and value != {}}


def _losses(runs: Sequence[Distilled]) -> tuple[Block, ...]:
    """Return a chart per loss term, but for those that are always 0: they have no weight."""
    lines = _lines(runs, read_curves)
    weighted = {
        term: [line for line in found if any(value for _, value in line.points)]
        for term, found in lines.items()
    }
    terms = [term for term in (*_TERMS, *sorted(lines.keys() - _TERMS.keys())) if weighted.get(term)]
    return tuple(
        LineChart(
            _title(_TERMS.get(term, term)), "optimiser steps", "loss", tuple(weighted[term]), log_y=True
        )
        for term in terms
    )


def _held_out(runs: Sequence[Distilled]) -> tuple[Block, ...]:
    lines = _lines(runs, held_out_curves)
    return tuple(
        LineChart(
            _title(title), "optimiser steps", "share" if "share" in title else _NATS, tuple(lines[figure])
        )
        for figure, title in _HELD_OUT.items()
        if figure in lines
    )


def _lines(runs: Sequence[Distilled], read: Callable[[Path], dict[str, Points]]) -> dict[str, list[Series]]:
    """Return a line per run by the name of what was logged."""
    lines: dict[str, list[Series]] = {}
    for run in runs:
        log = run.folder / "log.jsonl"
        for name, points in read(log).items() if log.is_file() else ():
            lines.setdefault(name, []).append(Series(run.name, points))
    return lines


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
                LineChart(
                    f"{title}, held-out text",
                    "iteration",
                    _NATS if "kl" in figure else "cosine",
                    tuple(lines),
                )
            )
    return tuple(blocks)


def _maps(runs: Sequence[Distilled]) -> tuple[Block, ...]:
    found = {run.name: run.folder / "attention.json" for run in runs}
    found = {name: file for name, file in found.items() if file.is_file()}
    shown = {name: read_attention_maps(found[name]) for name in list(found)[:_MOST_MAPS]}
    if not shown:
        return ()
    left = list(found)[_MOST_MAPS:]
    note = [Text(f"Maps of the first {_MOST_MAPS} runs; not of {', '.join(left)}.")] if left else []
    return (*note, AttentionMaps("Attention maps", shown))


def _title(text: str) -> str:
    return text[:1].upper() + text[1:]


__all__ = ["Distilled", "recipe_listing", "training_sections"]
