"""What a report page is made of: text, tables, charts and attention maps, before they become HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minialbert.report.tables import Table


@dataclass(frozen=True)
class Text:
    """A paragraph; markup in it is shown as text.

    Attributes:
        text: the paragraph.
        strong: set it off, as a verdict.
    """

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Listing:
    """Commands or settings, as they are.

    Attributes:
        title: what they are.
        lines: one per line.
        folded: shown only when the reader opens it.
        language: what they are written in, as "sh" or "yaml".
    """

    title: str
    lines: tuple[str, ...]
    folded: bool = True
    language: str = ""


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: for the legend.
        points: (x, y), by rising x.
        run: what it belongs to where a chart shows several runs; a reader can pick one.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    run: str = ""


@dataclass(frozen=True)
class LineChart:
    """Lines over a common axis.

    Attributes:
        title: what it shows.
        x_label: of the axis, with its unit.
        y_label: of the axis, with its unit.
        series: the lines.
        log_y: a logarithmic axis.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_y: bool = False


@dataclass(frozen=True)
class Point:
    """One model of a scatter plot.

    Attributes:
        label: its name.
        x: size or latency.
        y: its score.
        sd: spread of the score over seeds, where there are several.
        group: what is drawn alike, such as "measured" and "paper".
    """

    label: str
    x: float
    y: float
    sd: float | None = None
    group: str = ""


@dataclass(frozen=True)
class ScatterChart:
    """Models by size or latency and by score.

    Attributes:
        title: what it shows.
        x_label: of the axis, with its unit.
        y_label: of the axis, with its unit.
        points: the models.
        log_x: a logarithmic axis.
        y_most: the largest value that y can have, such as 100 of percents.
    """

    title: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]
    log_x: bool = False
    y_most: float = math.inf


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of teachers and students side by side; the reader picks run, sentence, iteration and head.

    Attributes:
        title: what they show.
        runs: the maps by the name of the run, as `attention_maps.read_attention_maps` has checked them.
    """

    title: str
    runs: Mapping[str, Mapping[str, Any]]


Block = Text | Listing | Table | LineChart | ScatterChart | AttentionMaps


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading, which the table of contents names.

    Attributes:
        title: the heading.
        blocks: what is below it.
        sections: parts of it, with headings of their own.
    """

    title: str
    blocks: tuple[Block, ...]
    sections: tuple[Section, ...] = field(default=())


__all__ = [
    "AttentionMaps",
    "Block",
    "LineChart",
    "Listing",
    "Point",
    "ScatterChart",
    "Section",
    "Series",
    "Text",
]
