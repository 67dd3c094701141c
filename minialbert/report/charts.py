"""Charts by matplotlib: as SVG that takes its colours from the page's style, and as files of their own."""

from __future__ import annotations

import atexit
import io
import math
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import resources
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from minialbert.errors import needs_extra
from minialbert.report.blocks import LineChart, Point, ScatterChart
from minialbert.report.tables import clean, number
from minialbert.runs.files import free_name

LARGEST = 1e100  # beyond this, the width of an axis or its margins would overflow
LINE_POINTS, MARKS = 400, 9
TOLD = 12  # series or points that the name of a drawing tells
LONGEST = 30  # letters of a label
# What is drawn, by its id: its kind, the key of its series or group, and the place of a point.
_DRAWN = re.compile(r"(series|point|bar|label|lead)-(\d+)(?:-(\d+))?")
# What an element keeps on the page: no font, which the style sets, and no clipping, which nothing here needs.
_KEPT = {
    "d", "x", "y", "transform", "text-anchor", "fill", "stroke", "opacity", "stroke-width", "stroke-dasharray",
    "stroke-linecap", "viewBox",
}  # fmt: skip
_DECIMALS = re.compile(r"\d+\.\d{2,}")
_DASHES = ((), (7, 4), (2, 3), (9, 3, 2, 3), (14, 4), (5, 2), (9, 3, 2, 3, 2, 3), (4, 6))
_MARKS = "os^DvPX<"

Chart = LineChart | ScatterChart
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Drawing:
    """A chart as the page shows it."""

    svg: Markup
    legend: tuple[tuple[int, str, Markup], ...]  # key, name and a small drawing; empty for a single group
    names: tuple[str, ...]  # what numbers beside the points stand for, where names have no room


class Charts:
    """Draws the charts of one page, series of one name alike in all; `files` gets each as SVG, named by its title."""

    def __init__(self, files: dict[str, str]) -> None:
        self._files = files
        self._keys: dict[str, int] = {}

    def key(self, name: str) -> int:
        """Return the number of a series, group or bar, by which it looks alike on all charts."""
        return self._keys.setdefault(name, len(self._keys))

    def draw(self, chart: Chart) -> Drawing:
        """Return a chart, drawn; `placeable` has taken from it what has no place."""
        _keep_fonts_out_of_the_home()
        with needs_extra("report", "drawing charts", "matplotlib"):
            import matplotlib
            from matplotlib.figure import Figure
        if isinstance(chart, LineChart):
            named = [one.name for one in chart.series]
        else:
            named = [one.group for one in chart.points]
        keys = [self.key(name) for name in named]
        width, height = (640, 356) if isinstance(chart, LineChart) else (720, 420)
        with matplotlib.rc_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # letters that its own font lacks; the browser has others
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_settings())
            figure = Figure(figsize=(width / 72, height / 72), dpi=72)
            axes = figure.add_axes((54 / width, 46 / height, 1 - 76 / width, 1 - 84 / height))
            figure.patch.set_visible(False)
            axes.patch.set_visible(False)
            draw: Any = _draw_lines if isinstance(chart, LineChart) else _draw_points
            names = draw(axes, chart, keys)
            legend = {key: _line(name) or "other" for key, name in zip(keys, named, strict=True)}
            if isinstance(chart, ScatterChart) and len(legend) == 1:
                legend = {}
            name = stem(chart.title, "chart", self._files)
            svg, swatches = _inlined(_saved(figure), chart, f"c{len(self._files)}")
            self._files[name] = _file(figure, chart, legend, names)
        return Drawing(svg, tuple((key, name, swatches[key]) for key, name in legend.items()), names)


def _keep_fonts_out_of_the_home() -> None:
    """Give matplotlib a folder for its list of fonts that goes with the process."""
    if "matplotlib" not in sys.modules and "MPLCONFIGDIR" not in os.environ:
        os.environ["MPLCONFIGDIR"] = folder = tempfile.mkdtemp(prefix="minialbert-fonts-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def placeable(chart: Chart) -> Chart:
    """Return a chart without what has no place: what is not finite, or not above zero on a logarithmic axis."""
    if isinstance(chart, ScatterChart):
        shown = [one for one in chart.points if _usable(one.x, log=chart.log_x) and _usable(one.y)]
        return replace(chart, points=tuple(shown))
    series = []
    for one in chart.series:
        if points := tuple((x, y) for x, y in one.points if _usable(x) and _usable(y, log=chart.log_y)):
            series.append(replace(one, points=points))
    return replace(chart, series=tuple(series))


def stem(title: str, without: str, taken: Container[str]) -> str:
    """Return a name of letters, digits and hyphens for a title; with a number where it is taken."""
    letters = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60].strip("-")
    return free_name(letters or without, "-", taken)


def thinned(count: int, most: int) -> list[int]:
    """Return at most so many positions, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def _usable(value: float, *, log: bool = False) -> bool:
    return math.isfinite(value) and abs(value) < LARGEST and (not log or value > 1 / LARGEST)


def _spread(one: Point) -> float:
    return one.sd if one.sd is not None and _usable(one.sd) and one.sd > 0 else 0.0


def _told(chart: Chart) -> list[str]:
    """Return in words what each series or point shows."""
    if isinstance(chart, LineChart):
        ends = [(one.name, number(one.points[0][1]), number(one.points[-1][1])) for one in chart.series]
        return [f"{name} from {first} to {last}" for name, first, last in ends]
    spreads = [f" ± {number(_spread(one))}" if _spread(one) else "" for one in chart.points]
    points = zip(chart.points, spreads, strict=True)
    return [f"{one.label}: {number(one.x)}, {number(one.y)}{spread}" for one, spread in points]


# Drawing


@cache
def _palette() -> dict[str, str]:
    """Return the colours of the light theme by their names in the style, which is the one place that has them."""
    style = resources.files(__package__).joinpath("assets", "page.css").read_text("utf-8")
    return dict(re.findall(r"--([\w-]+): light-dark\((#\w{6}),", style))


def _settings() -> dict[str, Any]:
    colours = _palette()
    return {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "minialbert",  # the same chart gives the same file
        "text.parse_math": False, "text.color": colours["text"], "font.size": 10.5, "legend.frameon": False,
        "axes.axisbelow": True, "axes.edgecolor": colours["control"], "axes.unicode_minus": False,
        "axes.grid": True, "axes.grid.axis": "y", "grid.color": colours["rule"],
        "axes.labelcolor": colours["muted"], "axes.labelpad": 8,
        "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False,
        "axes.titlecolor": colours["muted"], "axes.titlelocation": "left", "axes.titlepad": 14, "axes.titlesize": 10.5,
        "lines.linewidth": 1.8, "lines.markeredgewidth": 0.8, "lines.markersize": 8, "lines.scale_dashes": False,
        "xtick.color": colours["control"], "xtick.labelcolor": colours["muted"], "xtick.minor.size": 0,
        "ytick.labelcolor": colours["muted"], "ytick.major.pad": 9, "ytick.major.size": 0, "ytick.minor.size": 0,
    }  # fmt: skip


def _style(key: int, *, line: bool) -> dict[str, Any]:
    """Return the look of a series or group: after every round of the colours, dash and mark move on by one."""
    moved = (key + key // len(_DASHES)) % len(_DASHES)
    dashes = "" if not line else (0, _DASHES[moved]) if moved else "-"
    look = {"color": _palette()[f"c{key % len(_DASHES)}"], "linestyle": dashes, "marker": _MARKS[moved]}
    return {**look, "markeredgecolor": _palette()["page"], "clip_on": False}


def _draw_lines(axes: Any, chart: LineChart, keys: Sequence[int]) -> tuple[str, ...]:
    """Draw lines, their marks evenly spread; no numbers have to stand for names."""
    for one, key in zip(chart.series, keys, strict=True):
        points = [one.points[at] for at in thinned(len(one.points), LINE_POINTS)]
        marked = thinned(len(points), MARKS)
        axes.plot(*zip(*points, strict=True), gid=f"series-{key}", markevery=marked, **_style(key, line=True))
    ends = sorted(one.points[-1][0] for one in chart.series)
    # One long run would squeeze the others into a corner.
    stretched = "symlog" if 0 < 5 * ends[len(ends) // 2] < ends[-1] else ""
    axes.margins(0, 0.05)
    every = [point for one in chart.series for point in one.points]
    _frame(axes, chart, every, stretched, "log" * chart.log_y)
    return ()


def _draw_points(axes: Any, chart: ScatterChart, keys: Sequence[int]) -> tuple[str, ...]:
    """Draw points with their spread and their names; return the names if numbers had to stand for them."""
    for at, (one, key) in enumerate(zip(chart.points, keys, strict=True)):
        style = _style(key, line=False)
        axes.plot([one.x], [one.y], gid=f"point-{key}-{at}", zorder=3, **style)
        if spread := _spread(one):
            ends = [one.y - spread, one.y + spread]
            axes.plot([one.x] * 2, ends, color=style["color"], lw=1.3, marker="_", gid=f"bar-{key}-{at}")
    axes.margins(0.06, 0.1)
    reach = [(one.x, one.y + sign * _spread(one)) for one in chart.points for sign in (-1, 1)]
    _frame(axes, chart, reach, "log" * chart.log_x, "")
    low, high = axes.transData.transform(reach[::2]), axes.transData.transform(reach[1::2])
    spots = [(x, (y + top) / 2) for (x, y), (_, top) in zip(low, high, strict=True)]
    bars = zip(spots, low, high, strict=True)
    taken = [(x - 5, min(one, y - 5), x + 5, max(other, y + 5)) for (x, y), (_, one), (_, other) in bars]
    inside = (axes.bbox.x0, axes.bbox.y0 + 2, axes.bbox.x1 + 16, axes.bbox.y1 + 8)
    labels = [_line(one.label, LONGEST) for one in chart.points]
    places = _places(labels, spots, taken, inside, 64)
    if numbered := len(places) < len(labels):
        labels = [str(at) for at in range(1, len(labels) + 1)]
        places = _places(labels, spots, taken, inside, 240)
    for at, (one, key) in enumerate(zip(chart.points, keys, strict=True)):
        across, up, side, far = places.get(at, (9.0, 0.0, "left", False))
        lead = {"arrowstyle": "-", "lw": 0.8, "color": _palette()["control"], "shrinkA": 0, "shrinkB": 0}
        label = axes.annotate(
            labels[at], (one.x, one.y), (across, up), textcoords="offset points", ha=side, va="center_baseline",
            gid=f"label-{key}-{at}", arrowprops=lead if far else None,
        )  # fmt: skip
        if label.arrow_patch is not None:
            label.arrow_patch.set_gid(f"lead-{key}-{at}")
    return tuple(one.label for one in chart.points) if numbered else ()


def _places(
    labels: Sequence[str],
    spots: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    inside: Box,
    farthest: int,
) -> dict[int, tuple[float, float, str, bool]]:
    """Return where labels cover nothing: their offsets, the side they start at, and whether a line leads to the point.

    A label looks for room in rings around its point, those on the right first; one that finds none is left out.
    """
    covered = list(taken)
    turns = [math.tau * turn / 16 for turn in (0, 8, 4, 12, 2, 6, 14, 10, 1, 15, 7, 9, 3, 13, 5, 11)]
    found = {}
    for at in sorted(range(len(spots)), key=lambda at: (-spots[at][0], spots[at][1])):
        width = 6.6 * len(labels[at])  # of its letters, a little generous
        for radius, turn in ((radius, turn) for radius in range(9, farthest, 8) for turn in turns):
            across, up = radius * math.cos(turn), (radius + 3) * math.sin(turn)
            side = "center" if abs(across) < 1 else "left" if across > 0 else "right"
            left = spots[at][0] + across - {"left": 0, "center": width / 2, "right": width}[side]
            low, high = spots[at][1] + up - 7, spots[at][1] + up + 7
            held = inside[0] <= left and left + width <= inside[2] and inside[1] <= low and high <= inside[3]
            # Side by side, "16" and "2" would read "162".
            box = (left - 4, low, left + width + 4, high)
            if held and not any(_shared(box, other) for other in covered):
                covered.append(box)
                found[at] = (across, up, side, radius > 9)
                break
    return found


def _shared(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _line(text: str, longest: int | None = None) -> str:
    """Return text in one line, and shortened where it is longer than that many letters."""
    line = " ".join(clean(text).split())
    return line if longest is None or len(line) <= longest else line[: longest - 1].rstrip() + "…"


def _frame(axes: Any, chart: Chart, values: Sequence[tuple[float, float]], *scales: str) -> None:
    """Set scales, limits, ticks and labels for what is drawn; a scale that is not linear is told."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    most = 100.0 if isinstance(chart, ScatterChart) else math.inf
    for name, scale, held in zip("xy", scales, zip(*values, strict=True), strict=True):
        axis = axes.xaxis if name == "x" else axes.yaxis
        if scale == "symlog":
            axes.set_xscale(scale, linthresh=min(value for value in held if value > 0))
        elif scale:
            low, high = min(held), max(held)
            room = (high / low) ** axes.margins()[name == "y"] if high > 1.001 * low else 1.5
            axes.set(**{f"{name}scale": scale, f"{name}lim": (low / room, high * room)})
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,)))
        else:
            whole = name == "x" and all(value == int(value) for value in held)
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=whole))
            low, high = axis.get_view_interval()
            axes.set(**{f"{name}lim": _limits(low, high, held, most if name == "y" else math.inf)})
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    pairs = zip((chart.x_label, chart.y_label), scales, strict=True)
    x_label, y_label = (_line(label) + ", logarithmic" * bool(scale) for label, scale in pairs)
    axes.set_xlabel(x_label)
    axes.set_title(y_label, x=-50 / axes.bbox.width)


def _limits(low: float, high: float, values: Sequence[float], most: float) -> tuple[float, float]:
    """Return the ends of an axis: not below zero if no value is, not above the most; percents span five at least."""
    if math.isfinite(most):
        room = max(0.0, most / 20 - (high - low)) / 2
        low, high = low - room, min(high + room, max(most, *values))
    return max(low, 0.0) if min(values) >= 0 else low, high


def _tick(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size <= abs(value) < 1e15:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:g}"


# Writing


def _saved(figure: Any, **settings: Any) -> str:
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # the same chart gives the same file
    figure.savefig(file, format="svg", metadata=nothing, **settings)
    return file.getvalue()


def _file(figure: Any, chart: Chart, legend: Mapping[int, str], names: Sequence[str]) -> str:
    """Return a drawing as a file of its own, in light colours, with its title, legend and numbered names."""
    from matplotlib.lines import Line2D

    figure.patch.set_visible(True)
    figure.suptitle(_line(chart.title), x=0.01, y=1.02, ha="left", va="bottom", fontsize=12)
    if legend:
        looks = [Line2D([], [], **_style(key, line=isinstance(chart, LineChart))) for key in legend]
        figure.legend(looks, list(legend.values()), loc="upper left", bbox_to_anchor=(1, 0.95))
    if names:
        figure.text(0.02, -0.02, "\n".join(f"{at} {_line(one)}" for at, one in enumerate(names, 1)), va="top")
    return _saved(figure, bbox_inches="tight")


def _inlined(svg: str, chart: Chart, prefix: str) -> tuple[Markup, dict[int, Markup]]:
    """Return a drawing for the page, and by key a small one for the legend.

    What the page's policy forbids becomes what it allows: rules of style are attributes of their own. Colours become
    variables of the page's style, and marks get ids that no other chart has.
    """
    root = ElementTree.fromstring(svg)
    variables = {colour: f"var(--{name})" for name, colour in _palette().items()}
    for parent in list(root.iter()):
        for child in [one for one in parent if one.tag.endswith(("}metadata", "}style", "}clipPath"))]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        old = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        rules = (rule.partition(":") for rule in old.pop("style", "").split(";"))
        old |= {name.strip(): value.strip() for name, _, value in rules}
        kept = {name: variables.get(value, value) for name, value in old.items() if name in _KEPT}
        rounded = partial(_DECIMALS.sub, lambda found: f"{float(found[0]):.1f}")
        element.attrib = {name: rounded(value) for name, value in kept.items()}
        if "href" in old:
            element.set("href", f"#{prefix}-{old['href'][1:]}")
        elif drawn := _DRAWN.fullmatch(old.get("id", "")):
            parts = zip(("class", "data-key", "data-at"), drawn.groups(), strict=True)
            element.attrib = {name: value for name, value in parts if value}
        elif element.tag == "path" and "id" in old:
            element.set("id", f"{prefix}-{old['id']}")
    told = _told(chart)
    swatches: dict[int, Markup] = {}
    groups = [one for one in root.iterfind(".//g[@data-key]") if one.get("class") in ("series", "point")]
    for group, text in zip(groups, told, strict=True):
        swatches.setdefault(int(group.get("data-key", 0)), _swatch(group))
        group.insert(0, _element("title", clean(text)))
    more = [f"and {len(told) - TOLD} more"] if len(told) > TOLD else []
    root.attrib = {
        "class": "chart scatter" if isinstance(chart, ScatterChart) else "chart",
        "viewBox": root.get("viewBox", ""),
        "role": "img",
        "aria-label": clean(f"{chart.title}: {'; '.join(told[:TOLD] + more)}"),
    }
    return _markup(root), swatches


def _swatch(group: ElementTree.Element) -> Markup:
    """Return the line and the mark of a series or point, as small as a legend has them."""
    left, width = ("0", "34") if group.get("class") == "series" else ("8", "18")
    look = {"viewBox": f"{left} 0 {width} 14", "width": width, "height": "14", "aria-hidden": "true"}
    swatch = _element("svg", **{"class": "swatch"}, **look)
    swatch.extend(_element("path", **line.attrib | {"d": "M1 7H33"}) for line in group.iterfind("path"))
    swatch.extend([_element("use", **mark.attrib | {"x": "17", "y": "7"}) for mark in group.iter("use")][:1])
    return _markup(swatch)


def _element(tag: str, text: str | None = None, **attributes: str) -> ElementTree.Element:
    element = ElementTree.Element(tag, attributes)
    element.text = text
    return element


def _markup(element: ElementTree.Element) -> Markup:
    """Return an element as markup: its texts are escaped."""
    text = re.sub(r"\s*\n\s*", " ", ElementTree.tostring(element, encoding="unicode"))
    return Markup(text.replace("> <", "><"))
