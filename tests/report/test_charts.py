"""Charts of a report: what is drawn is where its value is, by the drawing's own axes; and looks alike on all charts."""

from __future__ import annotations

import json
import math
import re
import sys
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib
import pytest

from minialbert.report.blocks import LineChart, Point, ScatterChart, Section, Series
from minialbert.report.charts import thinned
from minialbert.report.page import html_page
from minialbert.report.tables import number

SVG = "{http://www.w3.org/2000/svg}"
LETTERS = {"k": 1e3, "M": 1e6, "G": 1e9}


def lines(*series: Series, **changes: bool) -> LineChart:
    return LineChart("Loss", "step", "nats", series, **changes)


def steps(name: str, *values: float) -> Series:
    return Series(name, tuple((float(step), value) for step, value in enumerate(values)))


def scatter(*points: Point, **changes: object) -> ScatterChart:
    return ScatterChart("S", "size", "score", points, **changes)


class Figure:
    """A chart as its file has it: ticks, and what is drawn by its id."""

    def __init__(self, chart: LineChart | ScatterChart) -> None:
        files: dict[str, str] = {}
        self.page = html_page("t", [Section("s", (chart,))], figures=files)
        ((self.name, self.text),) = files.items()
        self.root = ElementTree.fromstring(self.text)
        self.x, self.y = ({tick: place for tick, place in self._ticks(name)} for name in "xy")

    def _ticks(self, name: str) -> list[tuple[float, float]]:
        found = []
        for group in self.root.iter(f"{SVG}g"):
            if group.get("id", "").startswith(f"{name}tick_"):
                text = next(group.iter(f"{SVG}text")).text
                if name == "x":
                    place = next(group.iter(f"{SVG}use")).get("x")
                else:  # the gridline
                    place = re.match(r"M \S+ (\S+)", next(group.iter(f"{SVG}path")).get("d"))[1]
                found.append((float(text.rstrip("kMG")) * LETTERS.get(text[-1], 1), float(place)))
        return found

    def ends_of_y(self) -> tuple[float, float]:
        """Return the values at the bottom and at the top of a scatter chart, whose axis is linear."""
        axes = next(group for group in self.root.iter(f"{SVG}g") if group.get("id") == "axes_1")
        spine = next(group for group in axes if group.get("id").startswith("patch_"))
        bottom = float(re.match(r"M \S+ (\S+)", spine.find(f"{SVG}path").get("d"))[1])
        return read(self.y, bottom, log=False), read(self.y, bottom - (420 - 84), log=False)

    def drawn(self, gid: str) -> list[tuple[float, float]]:
        """Return the corners of a line, or where a mark is."""
        group = next(group for group in self.root.iter(f"{SVG}g") if group.get("id") == gid)
        path = group.find(f"{SVG}path")
        if path is not None:
            return [(float(x), float(y)) for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path.get("d"))]
        return [(float(use.get("x")), float(use.get("y"))) for use in group.iter(f"{SVG}use")]

    def values(self, gid: str, *, log_x: bool = False, log_y: bool = False) -> list[tuple[float, float]]:
        """Return what is drawn as values, read off the ticks."""
        return [(read(self.x, x, log=log_x), read(self.y, y, log=log_y)) for x, y in self.drawn(gid)]

    def texts(self) -> list[str]:
        return [found.text for found in self.root.iter(f"{SVG}text")]


def read(ticks: dict[float, float], place: float, *, log: bool) -> float:
    low, high = min(ticks), max(ticks)
    share = (place - ticks[low]) / (ticks[high] - ticks[low])
    return low * (high / low) ** share if log else low + share * (high - low)


@pytest.mark.parametrize("log", [False, True])
def test_a_line_is_where_its_values_are(log):
    one, other = (8.0, 4.5, 2.0, 0.3), (1.0, 2.0, 90.0, 40.0)
    figure = Figure(lines(steps("a", *one), steps("b", *other), log_y=log))
    for gid, values in (("series-0", one), ("series-1", other)):
        found = figure.values(gid, log_y=log)
        assert [x for x, _ in found] == pytest.approx([0, 1, 2, 3], abs=1e-3)
        assert [y for _, y in found] == pytest.approx(values, rel=1e-3)


@pytest.mark.parametrize("log", [False, True])
def test_a_point_is_where_its_values_are(log):
    points = (Point("small", 4.0, 61.0, 1.5), Point("middle", 17.0, 63.5), Point("teacher", 110.0, 84.0))
    figure = Figure(scatter(*points, log_x=log))
    for at, one in enumerate(points):
        assert figure.values(f"point-0-{at}", log_x=log) == [pytest.approx((one.x, one.y), rel=1e-3)]
    bar = figure.values("bar-0-0", log_x=log)
    assert [y for _, y in bar] == pytest.approx([59.5, 62.5], rel=1e-3)
    assert "bar-0-1" not in figure.text


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0, 9], [0, 2, 4, 6, 8]), ([0, 45_000], [0, 10_000, 20_000, 30_000, 40_000]), ([98.2, 99.1], None),
        ([0.13, 0.87], [0.2, 0.4, 0.6, 0.8]), ([0, 3e6], [0, 1e6, 2e6, 3e6]),
    ],
)  # fmt: skip
def test_ticks_are_round(values, ticks):
    found = list(Figure(lines(steps("a", *map(float, values)))).y)
    if ticks:
        assert found == pytest.approx(ticks)
    (step,) = {round(after - before, 9) for before, after in pairwise(found)}
    assert float(f"{step:e}".split("e")[0]) in (1, 2, 5) and 4 <= len(found) <= 8


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((1, 100), [1, 2, 5, 10, 20, 50, 100]), ((0.3, 7), [0.5, 1, 2, 5]), ((32, 58), None),
        ((1e-6, 10), None),
    ],
)  # fmt: skip
def test_ticks_of_a_logarithmic_axis(values, ticks):
    found = list(Figure(lines(steps("a", *map(float, values)), log_y=True)).y)
    assert len(found) >= 3
    if ticks:
        assert found == pytest.approx(ticks)
    elif values[0] < 1:
        assert all(math.log10(tick) == pytest.approx(round(math.log10(tick))) for tick in found)


def test_large_ticks_have_a_letter():
    texts = Figure(lines(Series("a", ((0.0, 0.0), (3e6, 2e4))))).texts()
    assert {"1M", "2M", "3M", "10k", "20k"} <= set(texts)


def test_whole_numbers_get_whole_ticks():
    for values, ticks in (((1, 2), [1, 2]), ((1, 3), [1, 2, 3]), ((0, 50, 100), [0, 20, 40, 60, 80, 100])):
        assert list(Figure(lines(Series("a", tuple((float(x), 0.0) for x in values)))).x) == ticks
    assert not all(x == int(x) for x in Figure(lines(Series("a", ((1.5, 0.0), (2.5, 0.0))))).x)


@pytest.mark.parametrize("values", [[80], [100], [60, 80], [60, 99], [90, 101], [73.4, 73.8]])
def test_an_axis_of_percents_ends_at_100_and_spans_five_points(values):
    points = [Point(f"m{at}", float(at), float(value)) for at, value in enumerate(values)]
    figure = Figure(scatter(*points))
    low, high = figure.ends_of_y()
    assert 0 <= low <= min(values) and max(values) <= high + 1e-3 <= max(100, *values) + 2e-3
    assert high - low >= 4.99 or high == pytest.approx(max(100, *values))


@pytest.mark.parametrize("values", [[3.0], [0.0], [-2.0], [1e99, -1e99], [5e-324, 0.0], [1e16, 1e16 + 2]])
@pytest.mark.parametrize("log", [False, True])
def test_odd_values_are_drawn_inside(values, log):
    if log and min(values) <= 1e-99:
        values = [1.0]
    for chart in (
        lines(steps("a", *values), log_y=log),
        scatter(*(Point("p", one if log else abs(one), one, 1.0) for one in values), log_x=log),
    ):
        figure = Figure(chart)
        width, height = (float(one) for one in figure.root.get("viewBox").split()[2:])
        drawn = "series-0" if isinstance(chart, LineChart) else "point-0-0"
        assert figure.y and all(0 <= x <= width and 0 <= y <= height for x, y in figure.drawn(drawn))
        assert "nan" not in figure.text.lower() and "inf" not in figure.text.lower()


def test_a_scale_that_is_not_linear_is_told():
    assert {"step", "nats"} <= set(Figure(lines(steps("a", 1, 2))).texts())
    assert {"step", "nats, logarithmic"} <= set(Figure(lines(steps("a", 1, 2), log_y=True)).texts())
    assert {"size, logarithmic", "score"} <= set(Figure(scatter(Point("a", 1, 2), log_x=True)).texts())


def test_one_long_run_does_not_squeeze_the_others():
    runs = [Series(f"r{at}", ((0.0, 3.0), (50.0, 2.0), (1000.0, 1.0))) for at in range(3)]
    alike = Figure(lines(*runs))
    assert alike.values("series-0")[1][0] == pytest.approx(50, abs=0.1)
    figure = Figure(lines(*runs, Series("long", ((0.0, 3.0), (10_000.0, 1.0)))))
    assert "step, logarithmic" in figure.texts()
    (start, _), (early, _), (end, _) = figure.drawn("series-0")
    longest = figure.drawn("series-3")[-1][0]
    assert (end - start) / (longest - start) > 0.6 and start < early < end
    assert end == pytest.approx(figure.x[1000.0], abs=0.01) and longest == pytest.approx(
        figure.x[10_000.0], abs=0.01
    )


@pytest.mark.parametrize(("count", "most"), [(1, 5), (5, 5), (6, 5), (1000, 80), (81, 80), (3, 2)])
def test_thinning_keeps_first_and_last(count, most):
    kept = thinned(count, most)
    assert (kept[0], kept[-1], len(kept)) == (0, count - 1, min(count, most))
    assert kept == sorted(set(kept))
    gaps = {later - earlier for earlier, later in pairwise(kept)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_numbers_of_a_chart():
    assert [number(one) for one in (3.0, 0.12345, 12345.6, -2.5, 1e-7, 0.0, 9999.7, -9999.5, 9999.4)] == [
        "3", "0.1235", "12346", "-2.5", "1e-07", "0", "10000", "-10000", "9999"
    ]  # fmt: skip


def data_of(page: str) -> dict[str, list]:
    """Return what the script of a page has of its one chart: downloads and the table of values are made of it."""
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])


def cells(page: str) -> list[str]:
    """Return the figures of the one chart of a page, as its table of values has them."""
    data = data_of(page)
    if "rows" in data:
        return [figure for row in data["rows"] for figure in row[2:] if figure]
    return [
        one
        for _, at, values in data["series"]
        for pair in zip(data["x"][at], values, strict=True)
        for one in pair
    ]


def test_a_long_line_is_thinned():
    figure = Figure(lines(steps("a", *(1.0 / (step + 1) for step in range(5000)))))
    found = figure.values("series-0")
    assert 10 < len(found) <= 400
    assert [y for _, y in found] == pytest.approx([1 / (x + 1) for x, _ in found], abs=1e-3)
    assert (found[0], found[-1]) == (pytest.approx((0, 1), abs=1e-3), pytest.approx((4999, 0), abs=0.5))
    figures = [float(one) for one in cells(figure.page)]
    assert len(figures) == 2 * 400
    assert (figures[0], figures[-2]) == (0, 4999)
    assert 'aria-label="Loss: a from 1 to 0.0002"' in figure.page


@pytest.mark.parametrize(("log", "kept"), [(False, ["0", "2", "4"]), (True, ["2"])])
def test_points_without_a_place_are_left_out(log, kept):
    figure = Figure(lines(steps("a", 0.0, math.nan, 5.0, math.inf, -1.0), log_y=log))
    assert cells(figure.page)[::2] == kept
    assert len(figure.drawn("series-0")) == len(kept)


def looks(page: str) -> tuple[list[dict[str, tuple[str, ...]]], list[dict[str, tuple[str, ...]]]]:
    """Return colour, dash and mark of every name, as the legend of each chart shows them, and as they are drawn."""
    # The standard library reads no HTML as a tree, and markup of this page is not quite XML.
    shapes = {name: shape for shape, name in re.findall(r'<path d="([^"]*)"[^>]* id="([^"]*)"', page)}

    def look(markup: str) -> tuple[str, ...]:
        dash = re.search(r'stroke-dasharray="([^"]*)"', markup)
        use = re.search(r"<use [^>]*>", markup)[0]
        colour, mark = re.search(r'fill="var\(--(c\d)\)"', use)[1], re.search(r'href="#([^"]*)"', use)[1]
        return colour, dash[1] if dash else "", shapes[mark]

    legends, drawn = [], []
    for figure in re.findall(r'<figure class="chart-block.*?</figure>', page, re.DOTALL):
        entries = re.findall(r'data-key="(\d+)" disabled>(<svg.*?</svg>)(.*?)</button>', figure)
        legends.append({name: look(swatch) for _, swatch, name in entries})
        names = {key: name for key, _, name in entries}
        groups = re.findall(r'<g class="(?:series|point)" data-key="(\d+)"(.*?<use [^>]*>)', figure)
        drawn.append({names[key]: look(group) for key, group in groups})
    return legends, drawn


def test_series_differ_and_look_alike_on_all_charts_and_in_legends():
    series = [steps(f"s{at}", 1.0, 2.0) for at in range(23)]
    points = [Point(f"p{at}", at, at, None, f"s{at}") for at in (7, 3)]
    charts = (lines(*series), lines(*series[:4:-1]), scatter(*points))
    legends, drawn = looks(html_page("t", [Section("s", charts)]))
    assert len(set(legends[0].values())) == 23
    assert [look[0] for look in legends[0].values()][:9] == [*(f"c{at}" for at in range(8)), "c0"]
    assert legends[0] == drawn[0]
    assert legends[1] == drawn[1] == {one.name: legends[0][one.name] for one in series[5:]}
    # Points have the colour and the mark, and no line.
    alike = {name: (look[0], "", look[2]) for name, look in legends[0].items() if name in ("s3", "s7")}
    assert legends[2] == drawn[2] == alike


def test_points_of_a_scatter_chart():
    big, none = Point("big", 1e8, 80.0, None, "paper"), Point("none", 0.0, 1.0)
    figure = Figure(scatter(Point("small", 1e6, 70.0, 2.0, "measured"), big, none, log_x=True))
    groups = re.findall(r'<g class="(\w+)" data-key="(\d)" data-at="(\d)"', figure.page)
    assert sorted(groups) == [
        ("bar", "0", "0"), ("label", "0", "0"), ("label", "1", "1"), ("point", "0", "0"), ("point", "1", "1")
    ]  # fmt: skip
    titles = re.findall(r"<title>(.*?)</title>", figure.page)[1:]
    assert titles == ["small: 1000000, 70 ± 2", "big: 100000000, 80"]
    assert cells(figure.page) == ["1000000", "70", "2", "100000000", "80"]
    assert [row[:2] for row in data_of(figure.page)["rows"]] == [["small", "measured"], ["big", "paper"]]


def test_points_without_room_for_names_are_numbered():
    crowd = [Point(f"a rather long name {at}", 1.0, 1.0) for at in range(23)]
    apart = [Point(f"m{at}", float(at), float(at)) for at in range(16)]
    for points, numbered in ((crowd[:3], False), (crowd, True), (apart, False)):
        figure = Figure(scatter(*points))
        numbers = [str(at) for at in range(1, len(points) + 1)]
        names = re.findall(r"<li><b>(\d+)</b> (.*?)</li>", figure.page)
        assert names == (
            [(at, one.label) for at, one in zip(numbers, points, strict=True)] if numbered else []
        )
        expected = numbers if numbered else [one.label for one in points]
        assert set(re.findall(r"<text[^>]*>([^<]*)</text>", figure.page)) >= set(expected)
        listed = [f"{at} {one.label}" for at, one in zip(numbers, points, strict=True)]
        assert set(figure.texts()) >= {*expected, *(listed if numbered else ())}


def test_a_long_label_is_shortened_and_kept_in_the_values():
    figure = Figure(scatter(Point("n" * 80, 1.0, 2.0)))
    assert "n" * 29 + "…" in figure.texts() and "n" * 30 not in "".join(figure.texts())
    assert data_of(figure.page)["rows"][0][0] == "n" * 80


def test_the_same_chart_gives_the_same_file_whatever_the_user_has_set(monkeypatch):
    chart = scatter(Point("a", 1.0, 2.0, 0.5, "g"), Point("b", 2.0, 2.0, None, "h"))
    one = Figure(chart)
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 40)
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    other = Figure(chart)
    assert (one.text, one.page) == (other.text, other.page)
    assert matplotlib.rcParams["font.size"] == 40
    assert "<dc:date>" not in one.text and "Matplotlib" not in one.text


def test_a_file_has_title_and_legend_and_a_name_of_its_own():
    files: dict[str, str] = {}
    charts = [lines(steps("first", 1, 2), steps("second", 2, 1))] * 2 + [scatter(Point("a", 1, 2))]
    html_page("t", [Section("s", tuple(charts))], figures=files)
    assert list(files) == ["loss", "loss-2", "s"]
    for name in ("loss", "loss-2"):
        texts = [text.text for text in ElementTree.fromstring(files[name]).iter(f"{SVG}text")]
        assert {"Loss", "first", "second"} <= set(texts)


@pytest.mark.parametrize(
    "text", ["$x^2$", "</svg><script>", "a & b", "\x00\u202e", "…\ud800", "漢字", "a\n\nb", ""]
)
def test_any_name_is_text(text):
    figure = Figure(lines(steps(text, 1, 2), steps("b", 2, 1)))
    shown = {"\x00\u202e": "\ufffd\ufffd", "…\ud800": "…\ufffd", "": "other", "a\n\nb": "a b"}.get(text, text)
    assert shown in figure.texts()
    figure = Figure(scatter(Point(text, 1.0, 2.0)))
    assert shown in figure.texts() or shown == "other"
    assert "<script>" not in figure.page.partition("</head>")[2]


def test_without_matplotlib_a_chart_is_its_values_and_a_line_that_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    files: dict[str, str] = {}
    page = html_page("t", [Section("s", (lines(steps("a", 1.0, 2.0)),))], figures=files)
    assert "drawing charts needs matplotlib: pip install -e &#39;.[report]&#39; in the checkout" in page
    assert '<details class="values" open' in page and cells(page) == ["0", "1", "1", "2"]
    assert "<svg" not in page.partition("</head>")[2] and files == {}
