"""What a report page is made of: text, tables, charts and attention maps, before they become HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minialbert.report.tables import Table


@dataclass(frozen=True)
class Text:
    """A paragraph, set off where it is strong, as a verdict; markup in it is shown as text."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Listing:
    """Commands or settings, as they are, in a language such as "sh"; folded ones are seen when opened."""

    title: str
    lines: tuple[str, ...]
    folded: bool = True
    language: str = ""


@dataclass(frozen=True)
class Series:
    """One line of a chart: its points by rising x. Lines of one name look alike on all charts of a page."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class LineChart:
    """Lines over a common axis; labels of the axes have the unit."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_y: bool = False


@dataclass(frozen=True)
class Point:
    """One model of a scatter plot: its size or latency, and its score with the spread over seeds, if there is one."""

    label: str
    x: float
    y: float
    sd: float | None = None
    group: str = ""  # what is drawn alike, such as "measured" and "paper"


@dataclass(frozen=True)
class ScatterChart:
    """Models by size or latency and by score, in percent."""

    title: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]
    log_x: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar of a chart, with its figure in words; with `ends` it is an interval, held against a bound."""

    label: str
    value: float
    text: str
    ends: tuple[float, float] | None = None
    bound: float | None = None
    group: str = ""  # a verdict, or whose it is: bars of one group look alike on all charts of a page


@dataclass(frozen=True)
class BarChart:
    """Bars from zero, or intervals over a common axis, each below its label; the axis reaches `most` at least."""

    title: str
    bars: tuple[Bar, ...]
    most: float = 0.0


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of teachers and students side by side; the reader picks run, sentence, iteration and head.

    The maps are by the name of the run, as `attention_maps.read_attention_maps` has checked them.
    """

    title: str
    runs: Mapping[str, Mapping[str, Any]]


Block = Text | Listing | Table | LineChart | ScatterChart | BarChart | AttentionMaps


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading, which the table of contents names, and parts of its own."""

    title: str
    blocks: tuple[Block, ...]
    sections: tuple[Section, ...] = ()
