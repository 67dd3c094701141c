"""The HTML page of a report: nothing in it but what was meant, and numbers where they belong."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from html.parser import HTMLParser

import pytest

from minialbert.report.blocks import (
    AttentionMaps,
    LineChart,
    Listing,
    Point,
    ScatterChart,
    Section,
    Series,
    Text,
)
from minialbert.report.charts import Box, axis, figure, log_ticks, nice_ticks, place_labels, thinned
from minialbert.report.html_markup import Anchors, clean
from minialbert.report.page import html_page
from minialbert.report.tables import Difference, Table
from minialbert.runs.records import Cell

HOSTILE = (
    '</script><script>alert(1)</script>"><img src=x onerror=alert(1)>\u2028\u202e</style><!--<a href="x">&lt;'
)


class Page(HTMLParser):
    """Elements, attributes and text of a page, by the standard library's reading of it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.comments: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag in ("style", "script"):
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        tag = self._open[-1] if self._open else ""
        if tag in ("style", "script"):
            self.texts[tag][-1] += data
        else:
            self.texts.setdefault(tag, []).append(data)

    def handle_comment(self, data):
        self.comments.append(data)

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = attributes.items()
        return [found for name, found in self.elements if name == tag and wanted <= found.items()]


def encoded(heads: int, tokens: int, byte: int = 255) -> str:
    """Return maps in which every token attends to itself."""
    plane = bytes(byte if row == column else 0 for row in range(tokens) for column in range(tokens))
    return base64.b64encode(plane * heads).decode()


def maps(text: str = "a b", **changes: object) -> dict[str, object]:
    sentence = {
        "text": text,
        "tokens": ["[CLS]", text],
        "teacher": [encoded(2, 2), encoded(2, 2)],
        "student": [encoded(2, 2, 200), encoded(2, 2, 100)],
    }
    found: dict[str, object] = {
        "format_version": 1, "teacher": text, "student": text, "layer_map": [2, 4], "teacher_heads": 2,
        "student_heads": 2, "sentences": [sentence],
    }  # fmt: skip
    return found | changes


def sections(text: str = "words") -> list[Section]:
    """Return one block of each kind, every text of which is `text`."""
    series = tuple(Series(name, ((0.0, 2.0), (1.0, 1.0)), run) for name in (text, "b") for run in (text, "r"))
    points = (Point(text, 1.0, 2.0, 0.5, text), Point("b", 2.0, 3.0, None, "g"))
    blocks = (
        Text(text),
        Text(text, strong=True),
        Listing(text, (text, "")),
        Listing(text, (text,), folded=False),
        Table(text, (text, "b"), ((text, Cell(0.5, 0.1, 3, (1, 2, 3))), (None, 1)), (text,)),
        LineChart(text, text, text, series),
        ScatterChart(text, text, text, points),
        AttentionMaps(text, {text: maps(text)}),
    )
    return [Section(text, blocks, (Section(text, blocks[:1]),))]


def shape(page: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(tag, tuple(found)) for tag, found in Page(page).elements]


def test_hostile_text_adds_no_element_and_no_attribute():
    harmless = html_page("words", sections("words"), summary=(Text("words"),), footer="words")
    hostile = html_page(HOSTILE, sections(HOSTILE), summary=(Text(HOSTILE),), footer=HOSTILE)
    # Long cells differ by a class: compare with harmless text of the same length.
    plain = "w" * len(HOSTILE)
    assert shape(hostile) == shape(html_page(plain, sections(plain), summary=(Text(plain),), footer=plain))
    assert Page(hostile).comments == []
    assert not any(name.startswith("on") for _, found in Page(hostile).elements for name in found)
    assert "\u2028" not in hostile and "\u202e" not in hostile
    assert {tag for tag, _ in Page(harmless).elements} == {tag for tag, _ in Page(hostile).elements}


def test_hostile_text_is_shown_as_it_is():
    page = Page(html_page(HOSTILE, sections(HOSTILE)))
    shown = clean(HOSTILE)
    assert "alert(1)" in shown
    assert "".join(page.texts["h1"]) == shown
    assert "".join(page.texts["pre"]).strip().startswith(shown)
    assert page.all("div", role="region")[0]["aria-label"] == shown
    data = json.loads(page.texts["script"][1])
    assert data["runs"][0]["name"] == shown
    assert data["runs"][0]["sentences"][0]["tokens"] == ["[CLS]", shown]


def test_data_of_the_script_cannot_end_it():
    page = html_page("t", [Section("s", (AttentionMaps("m", {HOSTILE: maps(HOSTILE)}),))])
    data = re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1]
    assert not set("<>&\u2028\u2029") & set(data)


def test_text_that_utf8_cannot_hold_is_replaced():
    page = html_page("a\ud800b\x00c", [])
    assert "a\ufffdb\ufffdc" in page
    page.encode()


def test_the_policy_allows_what_is_inlined_and_nothing_else():
    page = Page(html_page("t", sections()))
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for kind in ("style", "script"):
        content = page.texts[kind][0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
        assert len(content) > 1000
    assert len(page.texts["style"]) == 1
    scripts = page.all("script")
    assert [one.get("type") for one in scripts] == [None, "application/json"]
    assert not any("style" in found for _, found in page.elements)  # the policy would drop it


def test_no_reference_leaves_the_page():
    page = html_page("t", sections(), footer="f")
    assert "http:" not in page and "https:" not in page
    wanted = ("href", "src", "action", "data", "xlink:href")
    found = [one[name] for _, one in Page(page).elements for name in wanted if name in one]
    assert found and all(value.startswith("#") for value in found)
    assert "url(" not in page and "@import" not in page


def test_the_same_blocks_give_the_same_page():
    assert html_page("t", sections()) == html_page("t", sections())


def test_structure():
    page = Page(html_page("t", sections(), footer="f"))
    assert page.all("html")[0]["lang"] == "en"
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert len(page.all(landmark)) == 1, landmark
    assert page.all("a")[0] == {"class": "skip", "href": "#main"}
    assert (len(page.all("h2")), len(page.all("h3"))) == (1, 1)
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    assert {found["href"][1:] for found in page.all("a")} <= set(ids)


def test_anchors_are_unique():
    anchors = Anchors()
    assert [anchors.new(title) for title in ("Main", "GLUE, dev", "glue dev", "…", "±")] == [
        "main-2", "glue-dev", "glue-dev-2", "part", "part-2"
    ]  # fmt: skip


def cells(table: Table) -> Page:
    return Page(html_page("t", [Section("s", (table,))]))


def test_cells_carry_what_they_are_sorted_by():
    rows = (
        ("a", Cell(0.4125, 0.013, 3, (1, 2)), 4_600_000, Decimal("81.2"), "1,024", Difference(1.24, (-0.1, 2.5))),
        ("b", None, None, None, None, "-"),
        ("c", Cell(math.nan, None, 1, (1,)), 9, Decimal("-3"), "12", "-0.4 (-1, 0.2)"),
    )  # fmt: skip
    page = cells(Table("T", ("row", "score", "#params", "paper", "tokens", "difference"), rows))
    values = [found.get("data-value") for found in page.all("td")]
    assert values == [
        "41.25", "4600000", "81.2", "1024", "1.24",
        None, None, None, None, None,
        None, "9", "-3", "12", "-0.4",
    ]  # fmt: skip
    missing = ["data-missing" in found for found in page.all("td")]
    assert missing == [False] * 5 + [True] * 6 + [False] * 4
    assert page.texts["td"][0] == "41.2 ± 1.3 (3)"
    heads = page.all("th", scope="col")
    assert [found.get("class") for found in heads] == [None, *["number"] * 5]
    assert len(page.all("button", **{"class": "sort"})) == 6


def test_measured_and_printed_figures_share_a_unit():
    figures = (Cell(0.5, None, 1, ()), Decimal("49.9"), Cell(0.5, None, 1, (), percent=False))
    page = cells(Table("T", ("row", "score"), tuple(("r", figure) for figure in figures)))
    assert [found["data-value"] for found in page.all("td")] == ["50", "49.9", "0.5"]


def test_rows_of_the_paper_are_marked():
    rows = (("paper: BERT", "x"), ("paperwork", "x"), ("BERT", "paper, Table 1"))
    page = cells(Table("T", ("model", "source"), rows))
    assert [found.get("class") for found in page.all("tr")] == [None, "paper", None, "paper"]


BADGES = {
    "held": "held", "reversed": "reversed", "undecided at this size": "undecided", "(unfinished)": "unfinished aside",
    "reversed, interim": "reversed", "(held, interim)": "held aside",
}  # fmt: skip


@pytest.mark.parametrize("heading", ["verdict", "Verdict of the paper"])
@pytest.mark.parametrize("text", list(BADGES))
def test_verdicts_get_a_badge_with_their_words(text, heading):
    page = cells(Table("T", ("claim", heading, "run"), (("c", text, text), ("d", "held by a hair", ""))))
    badges = [found["class"] for found in page.all("span") if "badge" in (found.get("class") or "")]
    assert badges == [f"badge {BADGES[text]}"]
    assert text in page.texts["span"] and {text, "held by a hair"} <= {*page.texts["td"]}


@pytest.mark.parametrize(
    ("column", "keys"),
    [
        (("0:40", "12:30", "-", "1:05:00"), ["40", "750", None, "3900"]),
        (("110M", 4_600_000, "0.9M", "830.1K"), ["110000000", "4600000", "900000", "830100"]),
        (("4.6M", 109_482_240, 12), ["4600000", "109482240", "12"]),
        (("12:30", "4.6"), [None] * 2), (("12:75", "1:00"), [None] * 2), (("4.0M to 4.1M", "12"), [None] * 2),
    ],
)  # fmt: skip
def test_durations_and_sizes_are_numbers_and_words_are_not(column, keys):
    page = cells(Table("T", ("row", "value"), tuple(("r", value) for value in column)))
    assert [found.get("data-value") for found in page.all("td")] == keys
    assert {found.get("class") for found in page.all("td")} == {"number" if any(keys) else None}


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]), (0.13, 0.87, [0.2, 0.4, 0.6, 0.8]), (-3, 4, [-2, 0, 2, 4]),
        (0, 45_000, [0, 10_000, 20_000, 30_000, 40_000]), (0.0, 0.3, [0.0, 0.1, 0.2, 0.3]),
        (98.2, 99.1, [98.2, 98.4, 98.6, 98.8, 99.0]),
    ],
)  # fmt: skip
def test_ticks_are_round(low, high, ticks):
    assert nice_ticks(low, high) == ticks


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1, 100, [1, 2, 5, 10, 20, 50, 100]), (0.3, 7, [0.5, 1, 2, 5]), (30, 60, [30, 40, 50, 60]),
        (1e-6, 10, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 10]),
    ],
)  # fmt: skip
def test_ticks_of_a_logarithmic_axis(low, high, ticks):
    assert log_ticks(low, high) == pytest.approx(ticks)


def test_places_on_an_axis():
    linear = axis([1, 9], 0, 100, whole=True)
    assert (linear.low, linear.high, linear.place(5)) == (0, 10, 50)
    log = axis([1, 100], 300, 100, log=True)
    assert [log.place(value) for value in (1, 10, 100)] == pytest.approx([300, 200, 100])
    assert axis([0, 3e6], 0, 1, whole=True).labels() == ["0", "1M", "2M", "3M"]


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([80], 32, 100), ([100], 40, 100), ([60, 80], 58, 82), ([60, 99], 56.1, 100), ([90, 101], 88.9, 101)],
)
def test_an_axis_of_percents_ends_at_100(values, low, high):
    found = axis(values, 0, 1, margin=0.1, most=100)
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("values", [[3.0], [0.0], [-2.0], [1e99, -1e99], [5e-324, 0.0], [1e16, 1e16 + 2]])
@pytest.mark.parametrize("log", [False, True])
def test_an_axis_of_odd_values_holds_them(values, log):
    if log and min(values) <= 1e-99:
        values = [1.0]
    found = axis(values, 0, 100, log=log, whole=True)
    assert found.ticks
    assert all(-1e-6 <= found.place(value) <= 100 + 1e-6 for value in [*values, *found.ticks])


@pytest.mark.parametrize(("count", "most"), [(1, 5), (5, 5), (6, 5), (1000, 80), (81, 80), (3, 2)])
def test_thinning_keeps_first_and_last(count, most):
    kept = thinned(count, most)
    assert (kept[0], kept[-1], len(kept)) == (0, count - 1, min(count, most))
    assert kept == sorted(set(kept))
    gaps = {later - earlier for earlier, later in zip(kept, kept[1:], strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_numbers_of_a_chart():
    assert [figure(one) for one in (3.0, 0.12345, 12345.6, -2.5, 1e-7, 0.0, 9999.7, -9999.5, 9999.4)] == [
        "3", "0.1235", "12346", "-2.5", "1e-07", "0", "10000", "-10000", "9999"
    ]  # fmt: skip


def test_whole_numbers_get_whole_ticks():
    for values, ticks in (((1, 2), "12"), ((2,), "123"), ((1, 3), "123"), ((1.5, 2.5), ["1.6", "1.8"])):
        page = chart(Series("a", tuple((float(x), 0.0) for x in values)))
        assert re.findall(r'dy="\.9em"[^>]*>([^<]*)<', page)[: len(ticks)] == list(ticks)


def chart(*series: Series, **changes: bool) -> str:
    return html_page("t", [Section("s", (LineChart("Loss", "step", "nats", series, **changes),))])


def test_a_long_line_is_thinned():
    page = chart(Series("a", tuple((float(step), 1.0 / (step + 1)) for step in range(5000))))
    line = Page(page).all("polyline")[0]["points"].split(" ")
    assert len(line) == 400
    circles = Page(page).all("circle")
    assert len(circles) == 80
    assert line[0] == f"{circles[0]['cx']},{circles[0]['cy']}"
    assert line[-1] == f"{circles[-1]['cx']},{circles[-1]['cy']}"
    figures = [float(found["data-value"]) for found in Page(page).all("td")]
    assert len(figures) == 2 * 60
    assert (figures[0], figures[-2]) == (0, 4999)
    assert Page(page).all("svg", role="img")[0]["aria-label"] == "Loss: a from 1 to 0.0002"


@pytest.mark.parametrize(("log", "kept"), [(False, ["0", "2", "4"]), (True, ["2"])])
def test_points_without_a_place_are_left_out(log, kept):
    values = (0.0, math.nan, 5.0, math.inf, -1.0)
    page = Page(chart(Series("a", tuple((float(x), y) for x, y in enumerate(values))), log_y=log))
    assert [found["data-value"] for found in page.all("td")][::2] == kept
    assert "nan" not in page.all("polyline")[0]["points"]


def test_a_table_without_rows_and_a_chart_without_points_say_so():
    assert "nothing measured" in cells(Table("T", ("a", "b"), ())).texts["td"]
    page = Page(chart(Series("a", ((0.0, math.nan),))))
    assert "nothing measured" in page.texts["p"]
    assert not page.all("polyline")


@pytest.mark.parametrize("by_run", [False, True])
def test_series_differ_in_colour_dash_and_mark(by_run):
    names = [("s", f"r{at}") if by_run else (f"s{at}", "") for at in range(23)]
    page = Page(chart(*(Series(name, ((0.0, 1.0), (1.0, 1.0)), run) for name, run in names)))
    groups = [found["class"] for found in page.all("g") if "series" in (found["class"] or "")]
    assert groups[:8] == [f"series c{index} d{index}" for index in range(8)]
    shapes = [found["d"].split("m", 1)[1].split("M")[0] for found in page.all("path", **{"class": "mark"})]
    swatches = [found["class"] for found in page.all("svg") if "swatch" in found["class"]]
    legend, drawn = zip(swatches, shapes[:23], strict=True), zip(groups, shapes[23:], strict=True)
    looks = [(kind.removeprefix("series "), shape) for kind, shape in drawn]
    assert len(set(looks)) == 23
    assert [(kind.removeprefix("swatch "), shape) for kind, shape in legend] == looks
    assert len(page.all("select")) == by_run and page.all("ul", **{"class": "legend many"})


def test_runs_can_be_picked_and_differ_in_dash():
    points = ((0.0, 1.0), (1.0, 2.0))
    page = Page(chart(*(Series(name, points, run) for name in ("x", "y") for run in ("p", "q"))))
    groups = [found for found in page.all("g") if "series" in (found["class"] or "")]
    assert [(one["class"], one["data-key"], one["data-run"]) for one in groups] == [
        (f"series c{key} d{run}", str(key), str(run)) for key in (0, 1) for run in (0, 1)
    ]
    assert page.texts["option"] == ["all", "p", "q"]
    assert len(page.all("button", **{"aria-pressed": "true"})) == 2
    many = chart(*(Series(name, points, f"r{at}") for name in "xy" for at in range(31)))
    found = re.findall(r'class="series ([^"]*)".*?class="mark" d="M[\d.]+ [\d.]+(m.*?z)M', many)
    assert len(found) == len(set(found)) == 62


def test_points_of_a_scatter_chart():
    big, none = Point("big", 1e8, 80.0, None, "paper"), Point("none", 0.0, 1.0)
    points = (Point("small", 1e6, 70.0, 2.0, "measured"), big, none)
    page = Page(html_page("t", [Section("s", (ScatterChart("S", "size", "score", points, log_x=True),))]))
    assert [found.get("data-key") for found in page.all("g")[1:]] == ["0", "1"]
    assert len(page.all("path", **{"class": "bar"})) == 1
    assert {"small: 1000000, 70 ± 2", "big: 100000000, 80"} <= set(page.texts["title"])
    assert [found.get("data-value") for found in page.all("td")] == [
        None, "1000000", "70", "2", None, "100000000", "80", None
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "spots"),
    [
        ("student-384", [(100.0 + 14 * step, 200.0 + 9 * (step % 3)) for step in range(8)]),
        ("23", [(300.0, 200.0)] * 23), ("23", [(4 + step / 4, 396.0 - 7 * step % 23) for step in range(23)]),
    ],
)  # fmt: skip
def test_labels_keep_clear_of_each_other(text, spots):
    bounds = Box(0, 0, 600, 400)
    labels = place_labels([text] * len(spots), spots, [], bounds, anywhere=text == "23")
    boxes = [label.box() for label in labels]
    assert all(one.shared(bounds) == pytest.approx(one.area) for one in boxes)
    assert sum(one.shared(other) for at, one in enumerate(boxes) for other in boxes[:at]) == 0


def test_points_without_room_for_names_are_numbered():
    crowd = tuple(Point(f"a rather long name {at}", 1.0, 1.0) for at in range(15))
    apart = tuple(Point(f"m{at}", float(at), float(at)) for at in range(16))
    for points, numbered in ((crowd[:2], False), (crowd, True), (apart[:15], False), (apart, True)):
        page = Page(html_page("t", [Section("s", (ScatterChart("S", "x", "y", points),))]))
        numbers = [str(number) for number in range(1, len(points) + 1)]
        assert page.texts.get("b", []) == (numbers if numbered else [])
        assert {*page.texts["text"]} >= {*(numbers if numbered else [one.label for one in points])}


def test_equal_maps_are_stored_once():
    page = Page(html_page("t", [Section("s", (AttentionMaps("m", {"a": maps(), "b": maps()}),))]))
    data = json.loads(page.texts["script"][1])
    assert data["maps"] == [encoded(2, 2), encoded(2, 2, 200), encoded(2, 2, 100)]
    assert [run["sentences"][0]["student"] for run in data["runs"]] == [[1, 2], [1, 2]]
    assert [run["heads"] for run in data["runs"]] == [[2, 2]] * 2


def colours() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the colours of both themes, as the style names them."""
    style = Page(html_page("t", [])).texts["style"][0]
    pairs = re.findall(r"--([a-z0-9-]+): light-dark\((#\w{6}), (#\w{6})\)", style)
    assert len(pairs) > 20
    yield "light", {name: light for name, light, _ in pairs}
    yield "dark", {name: dark for name, _, dark in pairs}


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [value / 255 for value in bytes.fromhex(colour[1:])]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("theme", "named"), list(colours()), ids=["light", "dark"])
def test_contrast(theme, named):
    for text in ("text", "muted", "accent"):
        for ground in ("page", "surface"):
            assert contrast(named[text], named[ground]) >= 4.5, (theme, text, ground)
    for verdict in ("held", "reversed", "undecided", "unfinished"):
        assert contrast(named[verdict], named[f"{verdict}-back"]) >= 4.5, (theme, verdict)
        assert contrast(named[verdict], named["page"]) >= 4.5, (theme, verdict)
    for drawn in [*(f"c{index}" for index in range(8)), "control"]:
        assert contrast(named[drawn], named["page"]) >= 3, (theme, drawn)
    assert contrast(named["map-high"], named["map-low"]) > 7
