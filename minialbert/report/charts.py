"""Charts of a report page, as SVG that is complete without the script: lines over an axis, models as points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minialbert.report.blocks import LineChart, Point, ScatterChart, Series
from minialbert.report.html_markup import escaped, scrolled
from minialbert.report.html_tables import Shown, grid

# Beyond this, the width of an axis or its margins would overflow.
LARGEST = 1e100


def nice_ticks(low: float, high: float, target: int = 5, *, least: float = 0.0) -> list[float]:
    """Return round numbers between two values, a step of 1, 2 or 5 times a power of ten apart.

    Args:
        low: the lowest value.
        high: the highest value, above `low`.
        target: about how many steps.
        least: the smallest step; 1 for whole numbers only.

    Returns:
        The numbers in [low, high], rising.
    """
    step = max(_step(low, high, target), least)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [_exact(count, step) for count in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return ticks of a logarithmic axis: powers of ten, with 2 and 5 times them where the axis is short.

    Args:
        low: the lowest value, above zero.
        high: the highest value, above `low`.

    Returns:
        The numbers in [low, high], rising; round numbers as on a linear axis where it spans hardly a power of ten.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [10.0**power for power in powers if low * (1 - 1e-9) <= 10.0**power <= high * (1 + 1e-9)]
    fine = [float(f"{factor}e{power}") for power in powers for factor in (1, 2, 5)]
    fine = [tick for tick in fine if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    if len(fine) < 3:
        return [tick for tick in nice_ticks(low, high) if tick > 0]
    if len(fine) <= 8:
        return fine
    return inside[:: math.ceil(len(inside) / 8)]


@dataclass(frozen=True)
class Axis:
    """A range of values along a range of the page.

    Attributes:
        low: the value at its start.
        high: the value at its end.
        start: where it starts.
        end: where it ends.
        log: whether equal ratios are equally far apart.
        ticks: values to mark.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Return where a value lies.

        Args:
            value: the value.

        Returns:
            The coordinate.
        """
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def labels(self) -> list[str]:
        """Return the ticks as they are written, in one unit."""
        if self.log:
            return [_short(tick, tick) for tick in self.ticks]
        most = max((abs(tick) for tick in self.ticks), default=0)
        return [_short(tick, most) for tick in self.ticks]


def axis(
    values: Sequence[float],
    start: float,
    end: float,
    *,
    log: bool = False,
    whole: bool = False,
    counts: bool = False,
    margin: float = 0.0,
    most: float = math.inf,
) -> Axis:
    """Make an axis that holds some values.

    Args:
        values: what it must hold, at least one; above zero where `log` is set.
        start: where it starts on the page.
        end: where it ends.
        log: make it logarithmic.
        whole: begin and end it at a tick.
        counts: mark whole numbers only; no effect where `log` is set.
        margin: share of its range to leave free at both ends.
        most: where it ends at the latest, unless a value lies above; no effect where `log` or `whole` is set.

    Returns:
        The axis.
    """
    low, high = min(values), max(values)
    most = max(most, high)
    if log:
        if high / low < 1.001:
            low, high = low / 1.5, high * 1.5
        room = (high / low) ** margin
        low, high = low / room, high * room
        return Axis(low, high, start, end, log, tuple(log_ticks(low, high)))
    if high - low <= max(1 / LARGEST, 1e-9 * max(abs(low), abs(high))):
        room = abs(high) / 2 or 1.0
        low, high = low - room, high + room
    room = (high - low) * margin
    low, high = low - (min(room, low) if low >= 0 else room), high + room  # no sizes or scores below zero
    if low < most < high and not whole:
        high = most
    least = 1.0 if counts else 0.0
    if whole:
        step = max(_step(low, high, 5), least)
        low = _exact(math.floor(low / step + 1e-9), step)
        high = _exact(math.ceil(high / step - 1e-9), step)
    return Axis(low, high, start, end, log, tuple(nice_ticks(low, high, least=least)))


def usable(value: float, *, log: bool = False) -> bool:
    """Tell whether a value has a place on an axis: finite, and above zero on a logarithmic one.

    Args:
        value: the value.
        log: whether the axis is logarithmic.

    Returns:
        Whether it has.
    """
    return math.isfinite(value) and abs(value) < LARGEST and (not log or value > 1 / LARGEST)


def thinned(count: int, most: int) -> list[int]:
    """Choose positions evenly, the first and the last among them.

    Args:
        count: how many there are.
        most: how many to choose at most; at least 2.

    Returns:
        The positions, rising.
    """
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def figure(value: float) -> str:
    """Write a number of a chart for a reader.

    Args:
        value: the number.

    Returns:
        Four significant digits, and large numbers whole.
    """
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    # From here on, four digits round up to five, which "g" would write as 1e+04.
    return f"{value:.0f}" if 9999.5 <= abs(value) < 1e15 else f"{value:.4g}"


def _step(low: float, high: float, target: int) -> float:
    raw = (high - low) / target
    power = math.floor(math.log10(raw))
    return next(step for factor in (1, 2, 5, 10) if (step := float(f"{factor}e{power}")) >= raw * (1 - 1e-9))


def _exact(count: int, step: float) -> float:
    # 3 * 0.1 is not 0.3: go back to the nearest number that the step can make.
    digits = max(0, 1 - math.floor(math.log10(step)))
    return round(count * step, digits) + 0.0  # never -0


def _short(tick: float, most: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if most >= size:
            return "0" if tick == 0 else f"{tick / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{tick:g}"


LONGEST = 30
_LETTER = 6.6  # width of an average letter, a little generous, in the unit of the drawing
_HEIGHT = 14.0
_GAP = 4.0
_NEAR = ((9, 4, "start"), (-9, 4, "end"), (0, -9, "middle"), (0, 18, "middle"))
_CORNERS = ((7, -7, "start"), (-7, -7, "end"), (7, 15, "start"), (-7, 15, "end"))
# Farther away, a thin line leads to the point.
_FAR = tuple(
    (side * across, down, "start" if side > 0 else "end")
    for down in (-24, 30, -40, 46, -58, 64)
    for across in (16, 34)
    for side in (1, -1)
)


@dataclass(frozen=True)
class Box:
    """A rectangle, y growing downwards.

    Attributes:
        left: its left side.
        top: its upper side.
        right: its right side.
        bottom: its lower side.
    """

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: Box) -> float:
        """Return the area that both cover.

        Args:
            other: another rectangle.

        Returns:
            The area.
        """
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    @property
    def area(self) -> float:
        """Its area."""
        return (self.right - self.left) * (self.bottom - self.top)


@dataclass(frozen=True)
class Label:
    """A label and its place.

    Attributes:
        text: what it says, shortened where it is long.
        x: of its anchor.
        y: of its base line.
        anchor: "start", "middle" or "end", as in SVG.
        lead: where a line from the point to a far label ends.
    """

    text: str
    x: float
    y: float
    anchor: str
    lead: tuple[float, float] | None = None

    def box(self) -> Box:
        """Return about what it covers."""
        width = len(self.text) * _LETTER
        left = self.x - {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
        return Box(left, self.y - 0.78 * _HEIGHT, left + width, self.y + 0.22 * _HEIGHT)


def place_labels(
    texts: Sequence[str],
    spots: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    bounds: Box,
    *,
    anywhere: bool = False,
) -> list[Label]:
    """Put a label beside each point.

    Args:
        texts: what they say.
        spots: the points.
        taken: what should not be covered either.
        bounds: where labels may be.
        anywhere: look for free places much farther away too, which suits short labels.

    Returns:
        The labels, in the order of the points. Where there is no free place, the one that covers least.
    """
    covered = [*taken, *(Box(x - 5, y - 5, x + 5, y + 5) for x, y in spots)]
    found: dict[int, Label] = {}
    # From the edges inwards: a point between others has fewer places, but those outside keep clear of it.
    for index in sorted(range(len(spots)), key=lambda at: (-spots[at][0], spots[at][1])):
        text = _short_label(texts[index])
        label = _best(text, spots[index], covered, bounds)
        if anywhere and not _free(label.box(), covered, bounds):
            found_far = (far for far in _around(text, spots[index]) if _free(far.box(), covered, bounds))
            label = next(found_far, label)
        box = label.box()
        # Side by side, "16" and "2" would read "162".
        covered.append(Box(box.left - _GAP, box.top, box.right + _GAP, box.bottom))
        found[index] = label
    return [found[index] for index in range(len(spots))]


def crowded(labels: Sequence[Label], spots: Sequence[tuple[float, float]]) -> bool:
    """Tell whether labels cover each other, or points.

    Args:
        labels: the labels.
        spots: the points.

    Returns:
        Whether they do.
    """
    boxes = [label.box() for label in labels]
    marks = [Box(x - 3, y - 3, x + 3, y + 3) for x, y in spots]
    return any(one.shared(other) > 0 for at, one in enumerate(boxes) for other in (*boxes[:at], *marks))


def _free(box: Box, covered: Sequence[Box], bounds: Box) -> bool:
    inside = box.area - box.shared(bounds) < 1e-6
    return inside and not any(box.shared(other) for other in covered)


def _around(text: str, spot: tuple[float, float]) -> Iterator[Label]:
    """Yield labels in rings around a point, the nearest first, each with a line to its middle."""
    for radius in range(24, 244, 8):
        count = max(12, round(math.tau * radius / 14))
        for place in range(count):
            turn = math.tau * place / count
            x, y = spot[0] + radius * math.cos(turn), spot[1] - radius * math.sin(turn)
            yield Label(text, x, y + 0.28 * _HEIGHT, "middle", (x, y))


def _best(text: str, spot: tuple[float, float], covered: Sequence[Box], bounds: Box) -> Label:
    candidates = [
        Label(text, spot[0] + across, spot[1] + down, anchor) for across, down, anchor in _NEAR + _CORNERS
    ]
    candidates += [
        Label(
            text, spot[0] + across, spot[1] + down, anchor, (spot[0] + across, spot[1] + down - 0.3 * _HEIGHT)
        )
        for across, down, anchor in _FAR
    ]

    def cost(label: Label) -> float:
        box = label.box()
        outside = box.area - box.shared(bounds)
        return 10 * outside + sum(box.shared(other) for other in covered)

    # min() keeps the first of equals, and the nearest come first.
    return min(candidates, key=cost)


def _short_label(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"


LINE_POINTS = 400
MARKED_POINTS = 80
TABLE_ROWS = 60
STYLES = 8
# From so many series on, a legend has buttons for all of them; beyond the other number it scrolls.
MANY_SERIES, MOST_SERIES = 7, 12
NAMED_POINTS = 15
COUNTED_VALUES = 24
# Paths from the middle of a mark: circle, square, triangle, diamond, triangle on its head, plus, cross, bar.
_SHAPES = (
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "m-3.6-3.6h7.2v7.2h-7.2z",
    "m0-5l4.6 8h-9.2z",
    "m0-5.2l4.8 5.2-4.8 5.2-4.8-5.2z",
    "m0 5l4.6-8h-9.2z",
    "m-1.5-4.8h3v3.3h3.3v3h-3.3v3.3h-3v-3.3h-3.3v-3h3.3z",
    "m0-2.1l2.7-2.7 2.1 2.1-2.7 2.7 2.7 2.7-2.1 2.1-2.7-2.7-2.7 2.7-2.1-2.1 2.7-2.7-2.7-2.7 2.1-2.1z",
    "m-5.4-2h10.8v4h-10.8z",
)


@dataclass(frozen=True)
class _Style:
    """How a series is drawn; None for what it does not show."""

    colour: int | None
    dash: int | None = None
    mark: int | None = None

    @property
    def classes(self) -> str:
        colour = "plain" if self.colour is None else f"c{self.colour}"
        return colour if self.dash is None else f"{colour} d{self.dash}"

    @property
    def shape(self) -> str:
        return "" if self.mark is None else _SHAPES[self.mark]


@dataclass(frozen=True)
class _Look:
    """What colour, dash and mark of a chart's lines stand for."""

    by_run: bool
    runs: int

    def line(self, key: int, run: int) -> _Style:
        if self.by_run or self.runs == 1:
            return _style(key)
        if self.runs <= STYLES:
            return _Style(key % STYLES, run, _style(key).mark)
        # Dashes alone are too few for the runs.
        return _Style(key % STYLES, _style(run).dash, run % STYLES)

    def key(self, key: int) -> _Style:
        if self.by_run or self.runs == 1:
            return _style(key)
        return _Style(key % STYLES, 0, _style(key).mark if self.runs <= STYLES else None)

    def run(self, run: int) -> _Style:
        one = self.line(0, run)
        return _Style(None, one.dash, one.mark if self.runs > STYLES else None)


def _style(key: int) -> _Style:
    # After every round of the colours, dash and mark move on by one: the next series of a colour differs in both.
    moved = (key + key // STYLES) % STYLES
    return _Style(key % STYLES, moved, moved)


@dataclass(frozen=True)
class _Frame:
    """A drawing area with its axes."""

    width: float
    height: float
    x: Axis
    y: Axis

    def lines(self, x_label: str, y_label: str) -> str:
        """Return gridlines, ticks and labels."""
        left, right, top, bottom = self.x.start, self.x.end, self.y.end, self.y.start
        parts = ['<g class="grid">']
        for tick, label in zip(self.y.ticks, self.y.labels(), strict=True):
            y = _n(self.y.place(tick))
            parts.append(f'<path d="M{_n(left)} {y}H{_n(right)}"/>')
            parts.append(f'<text x="{_n(left - 8)}" y="{y}" dy=".35em" text-anchor="end">{label}</text>')
        for tick, label in zip(self.x.ticks, self.x.labels(), strict=True):
            x = _n(self.x.place(tick))
            parts.append(f'<path d="M{x} {_n(bottom)}v5"/>')
            parts.append(f'<text x="{x}" y="{_n(bottom + 8)}" dy=".9em" text-anchor="middle">{label}</text>')
        parts.append(f'<path class="base" d="M{_n(left)} {_n(bottom)}H{_n(right)}"/></g>')
        middle = (left + right) / 2
        parts.append(
            f'<text class="axis" x="{_n(middle)}" y="{_n(self.height - 6)}" text-anchor="middle">'
            f"{escaped(x_label)}</text>"
        )
        parts.append(f'<text class="axis" x="4" y="{_n(top - 18)}">{escaped(y_label)}</text>')
        return "".join(parts)

    def svg(self, kind: str, label: str, description: str, content: str) -> str:
        return (
            f'<svg class="{kind}" viewBox="0 0 {_n(self.width)} {_n(self.height)}" role="img" '
            f'aria-label="{escaped(label)}"><desc>{escaped(description)}</desc>{content}</svg>'
        )


def line_chart(chart: LineChart) -> str:
    """Write lines over a common axis.

    Args:
        chart: the chart; points that are not finite, and those that a logarithmic axis cannot hold, are left out.

    Returns:
        Markup: the legend, the drawing and its numbers as a table.
    """
    series = [
        Series(one.name, points, one.run)
        for one in chart.series
        if (points := tuple((x, y) for x, y in one.points if usable(x) and usable(y, log=chart.log_y)))
    ]
    if not series:
        return _empty(chart.title)
    runs = list(dict.fromkeys(one.run for one in series))
    names = list(dict.fromkeys(one.name for one in series))
    # One measure of many runs: what the lines differ in is the run.
    by_run = len(names) == 1 and len(runs) > 1
    keys = runs if by_run else names
    look = _Look(by_run, len(runs))
    over = {x for one in series for x, _ in one.points}
    counts = len(over) <= COUNTED_VALUES and all(x == int(x) for x in over)
    frame = _Frame(
        640,
        356,
        axis(sorted(over), 60, 618, counts=counts),
        axis([y for one in series for _, y in one.points], 300, 36, log=chart.log_y, whole=True),
    )
    several = len(runs) > 1
    hover = max(20, min(MARKED_POINTS, 6 * MARKED_POINTS // len(series)))
    lines = []
    for one in series:
        key, run = keys.index(one.run if by_run else one.name), runs.index(one.run)
        style = look.line(key, run)
        name = _name(one) if several else one.name
        lines.append(
            f'<g class="series {style.classes}" data-key="{key}" data-run="{run}">'
            f"{_line(one, name, frame, style.shape, hover)}</g>"
        )
    ends = [f"{_name(one)} from {figure(one.points[0][1])} to {figure(one.points[-1][1])}" for one in series]
    most = 12
    told = "; ".join(ends[:most]) + (f"; and {len(ends) - most} more" if len(ends) > most else "")
    drawing = frame.svg(
        "chart",
        f"{chart.title}: {told}",
        f"{chart.y_label} over {chart.x_label}: {'; '.join(ends)}",
        frame.lines(chart.x_label, chart.y_label) + "".join(lines),
    )
    legend = _legend([(key, look.key(index)) for index, key in enumerate(keys)])
    picker = _run_picker(runs, None if by_run else look) if several else ""
    columns = ["series", *(["run"] if several else []), chart.x_label, chart.y_label]
    return _chart(chart.title, picker + legend, drawing, columns, _line_rows(series, several))


def scatter_chart(chart: ScatterChart) -> str:
    """Write models as points with labels.

    Args:
        chart: the chart; points that are not finite, and those that a logarithmic axis cannot hold, are left out.

    Returns:
        Markup: the legend, the drawing and its numbers as a table.
    """
    points = [one for one in chart.points if usable(one.x, log=chart.log_x) and usable(one.y)]
    if not points:
        return _empty(chart.title)
    groups = list(dict.fromkeys(one.group for one in points))
    reach = [one.y + sign * _spread(one) for one in points for sign in (-1, 1)]
    frame = _Frame(
        720,
        420,
        axis([one.x for one in points], 60, 698, log=chart.log_x, margin=0.06),
        axis(reach, 370, 36, margin=0.08, most=chart.y_most),
    )
    spots = [(frame.x.place(one.x), frame.y.place(one.y)) for one in points]
    bars = [
        Box(x - 3, frame.y.place(one.y + _spread(one)), x + 3, frame.y.place(one.y - _spread(one)))
        for one, (x, _) in zip(points, spots, strict=True)
        if _spread(one)
    ]
    bounds = Box(frame.x.start, frame.y.end - 8, frame.x.end + 16, frame.y.start - 2)
    labels = place_labels([one.label for one in points], spots, bars, bounds)
    numbered = len(points) > NAMED_POINTS or crowded(labels, spots)
    if numbered:
        numbers = [str(number) for number in range(1, len(points) + 1)]
        labels = place_labels(numbers, spots, bars, bounds, anywhere=True)
    styles = [_Style(index % STYLES, None, _style(index).mark) for index in range(len(groups))]
    drawn = "".join(
        f'<g class="series {styles[index].classes}" data-key="{index}">'
        + "".join(
            _scatter_point(one, spot, label, frame, styles[index].shape)
            for one, spot, label in zip(points, spots, labels, strict=True)
            if one.group == name
        )
        + "</g>"
        for index, name in enumerate(groups)
    )
    several = len(groups) > 1
    told = "; ".join(f"{one.label} at {figure(one.x)}, {_with_spread(one)}" for one in points)
    drawing = frame.svg(
        "chart scatter",
        f"{chart.title}: {len(points)} points, {chart.y_label} over {chart.x_label}",
        told,
        frame.lines(chart.x_label, chart.y_label) + drawn,
    )
    legend = _legend(list(zip(groups, styles, strict=True))) if several else ""
    names = _names([one.label for one in points]) if numbered else ""
    columns = ["label", *(["group"] if several else []), chart.x_label, chart.y_label, "sd"]
    rows = [
        [
            Shown(one.label),
            *([Shown(one.group)] if several else []),
            Shown(figure(one.x), one.x),
            Shown(figure(one.y), one.y),
            Shown(figure(one.sd), one.sd) if one.sd is not None and usable(one.sd) else Shown("-"),
        ]
        for one in points
    ]
    return _chart(chart.title, legend, scrolled(drawing, chart.title) + names, columns, rows)


def _chart(
    title: str, controls: str, drawing: str, columns: Sequence[str], rows: Sequence[Sequence[Shown]]
) -> str:
    values = grid(f"{title}: values", columns, rows)
    return (
        f'<figure class="chart-block"><figcaption>{escaped(title)}</figcaption>{controls}{drawing}'
        f"<details><summary>Values</summary>{values}</details></figure>"
    )


def _empty(title: str) -> str:
    return (
        f'<figure class="chart-block"><figcaption>{escaped(title)}</figcaption>'
        '<p class="missing">nothing measured</p></figure>'
    )


def _line(one: Series, name: str, frame: _Frame, shape: str, hover: int) -> str:
    spots = [(frame.x.place(x), frame.y.place(y)) for x, y in one.points]
    kept = thinned(len(spots), LINE_POINTS)
    path = " ".join(f"{_n(spots[index][0])},{_n(spots[index][1])}" for index in kept)
    marks = "".join(f"M{_n(spots[at][0])} {_n(spots[at][1])}{shape}" for at in thinned(len(spots), 9))
    # Marks that are seen stay few; those that answer the pointer are many and unseen until it comes.
    answers = "".join(
        f'<circle cx="{_n(spots[at][0])}" cy="{_n(spots[at][1])}" r="5"><title>{escaped(name)}: '
        f"{figure(one.points[at][0])}, {figure(one.points[at][1])}</title></circle>"
        for at in thinned(len(spots), hover)
    )
    return f'<polyline points="{path}"/><path class="mark" d="{marks}"/>{answers}'


def _scatter_point(one: Point, spot: tuple[float, float], label: Label, frame: _Frame, shape: str) -> str:
    x, y = _n(spot[0]), _n(spot[1])
    bar = ""
    if _spread(one):
        top, bottom = _n(frame.y.place(one.y + _spread(one))), _n(frame.y.place(one.y - _spread(one)))
        left, right = _n(spot[0] - 4), _n(spot[0] + 4)
        bar = f'<path class="bar" d="M{x} {top}V{bottom}M{left} {top}H{right}M{left} {bottom}H{right}"/>'
    lead = ""
    if label.lead is not None:
        lead = f'<path class="lead" d="M{x} {y}L{_n(label.lead[0])} {_n(label.lead[1])}"/>'
    return (
        f'{lead}{bar}<path class="mark" d="M{x} {y}{shape}"><title>{escaped(one.label)}: {figure(one.x)}, '
        f"{escaped(_with_spread(one))}</title></path>"
        f'<text x="{_n(label.x)}" y="{_n(label.y)}" text-anchor="{label.anchor}">{escaped(label.text)}</text>'
    )


def _line_rows(series: Sequence[Series], several: bool) -> list[list[Shown]]:
    # Many series would bury the reader, and swell the page.
    most = max(10, min(TABLE_ROWS, 10 * TABLE_ROWS // len(series)))
    return [
        [Shown(one.name), *([Shown(one.run)] if several else []), Shown(figure(x), x), Shown(figure(y), y)]
        for one in series
        for x, y in (one.points[at] for at in thinned(len(one.points), most))
    ]


def _names(labels: Sequence[str]) -> str:
    # Numbers as text: a list without its style keeps them, and they can be searched for.
    items = "".join(f"<li><b>{number}</b> {escaped(label)}</li>" for number, label in enumerate(labels, 1))
    return f'<ul class="names" aria-label="Numbered points">{items}</ul>'


def _legend(entries: Sequence[tuple[str, _Style]]) -> str:
    """Return what stands for what, as buttons that the script makes usable."""
    items = "".join(
        f'<li><button type="button" aria-pressed="true" data-key="{key}" disabled>'
        f"{_swatch(style)}{escaped(name or 'other')}</button></li>"
        for key, (name, style) in enumerate(entries)
    )
    choices = ""
    if len(entries) >= MANY_SERIES:
        choices = (
            '<div class="choices" role="group" aria-label="Show" hidden>Show '
            '<button type="button" data-show="true">all</button>'
            '<button type="button" data-show="false">none</button></div>'
        )
    return f'{choices}<ul class="legend{_many(entries)}" aria-label="Legend">{items}</ul>'


def _many(entries: Sequence[object]) -> str:
    return " many" if len(entries) > MOST_SERIES else ""


def _run_picker(runs: Sequence[str], look: _Look | None) -> str:
    """Return a choice of runs and, where there is a look, what each of them looks like."""
    options = "".join(f'<option value="{index}">{escaped(run)}</option>' for index, run in enumerate(runs))
    picker = (
        '<label class="pick" hidden>Run <select data-pick="run"><option value="">all</option>'
        f"{options}</select></label>"
    )
    if look is None:
        return picker
    items = "".join(
        f"<li>{_swatch(look.run(index))}{escaped(run or 'other')}</li>" for index, run in enumerate(runs)
    )
    return f'{picker}<ul class="legend runs{_many(runs)}" aria-label="Runs">{items}</ul>'


def _swatch(style: _Style) -> str:
    line = "" if style.dash is None else '<path class="line" d="M1 7H33"/>'
    mark = f'<path class="mark" d="M17 7{style.shape}"/>' if style.shape else ""
    left, width = (8, 18) if style.dash is None else (0, 34)
    return (
        f'<svg class="swatch {style.classes}" viewBox="{left} 0 {width} 14" width="{width}" height="14" '
        f'aria-hidden="true">{line}{mark}</svg>'
    )


def _spread(one: Point) -> float:
    return one.sd if one.sd is not None and usable(one.sd) and one.sd > 0 else 0.0


def _with_spread(one: Point) -> str:
    return figure(one.y) + (f" ± {figure(one.sd)}" if one.sd is not None and usable(one.sd) else "")


def _name(one: Series) -> str:
    return f"{one.run}, {one.name}" if one.run else one.name


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
