"""The HTML page of a report: nothing in it but what was meant, and numbers where they belong."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterator
from decimal import Decimal
from html.parser import HTMLParser

import pytest

from minialbert.report.blocks import (
    AttentionMaps,
    Bar,
    BarChart,
    LineChart,
    Listing,
    Point,
    ScatterChart,
    Section,
    Series,
    Text,
)
from minialbert.report.page import html_page
from minialbert.report.tables import Difference, Table, clean
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
    series = tuple(Series(name, ((0.0, 2.0), (1.0, 1.0))) for name in (text, "b"))
    points = (Point(text, 1.0, 2.0, 0.5, text), Point("b", 2.0, 3.0, None, "g"))
    bars = (Bar(text, 2.0, text, group=text), Bar("b", 1.0, "1", (0.5, 1.5), 0.0, "held"))
    blocks = (
        Text(text),
        Text(text, strong=True),
        Listing(text, (text, "")),
        Listing(text, (text,), folded=False),
        Table(text, (text, "b"), ((text, Cell(0.5, 0.1, 3, (1, 2, 3))), (None, 1)), (text,)),
        LineChart(text, text, text, series),
        ScatterChart(text, text, text, points),
        BarChart(text, bars),
        AttentionMaps(text, {text: maps(text)}),
    )
    return [Section(text, blocks, (Section(text, blocks[:1]),))]


def shape(page: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(tag, tuple(found)) for tag, found in Page(page).elements]


def test_hostile_text_adds_no_element_and_no_attribute():
    harmless = html_page("words", sections("words"), summary=(Text("words"),))
    hostile = html_page(HOSTILE, sections(HOSTILE), summary=(Text(HOSTILE),))
    # Long cells differ by a class: compare with harmless text of the same length.
    plain = "w" * len(HOSTILE)
    assert shape(hostile) == shape(html_page(plain, sections(plain), summary=(Text(plain),)))
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
    lines, points, bars, data = (json.loads(text) for text in page.texts["script"][1:])
    assert lines["series"][0][0] == points["rows"][0][0] == bars["rows"][0][0] == shown
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
    assert [one.get("type") for one in scripts] == [None, *["application/json"] * 4]
    assert not any("style" in found for _, found in page.elements)  # the policy would drop it


def test_no_reference_leaves_the_page():
    page = html_page("t", sections())
    assert "http:" not in page and "https:" not in page
    wanted = ("href", "src", "action", "data", "xlink:href")
    found = [one[name] for _, one in Page(page).elements for name in wanted if name in one]
    assert found and all(value.startswith("#") for value in found)
    assert "url(" not in page and "@import" not in page


def test_the_same_blocks_give_the_same_page():
    assert html_page("t", sections()) == html_page("t", sections())


def test_structure():
    page = Page(html_page("t", sections()))
    assert page.all("html")[0]["lang"] == "en"
    for landmark in ("header", "nav", "main", "h1"):
        assert len(page.all(landmark)) == 1, landmark
    assert page.all("a")[0] == {"class": "skip", "href": "#main"}
    assert (len(page.all("h2")), len(page.all("h3"))) == (1, 1)
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    assert {found["href"][1:] for found in page.all("a")} <= set(ids)


def test_anchors_are_unique():
    titles = ("Main", "GLUE, dev", "glue dev", "…", "±")
    page = Page(html_page("t", [Section(title, ()) for title in titles]))
    assert [found["id"] for found in page.all("section")] == [
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


def test_a_verdict_stands_second_and_a_column_without_values_is_left_out():
    columns, rows = ("a", "b", "without", "verdict"), (("x", "y", None, "held"), ("z", "w", "-", "reversed"))
    page = cells(Table("T", columns, rows))
    assert page.texts["button"][1:] == ["a", "verdict", "b"]  # after the button of the theme
    assert (page.texts["th"], page.texts["td"]) == (["x", "z"], ["y", "w"])
    assert len(page.all("td")) == 4
    nothing = cells(Table("T", ("a", "b"), ((None, None),)))
    assert (nothing.texts["th"], nothing.all("td")) == (["-"], [])


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


def test_a_table_without_rows_and_a_chart_without_points_say_so():
    assert "nothing measured" in cells(Table("T", ("a", "b"), ())).texts["td"]
    chart = LineChart("Loss", "step", "nats", (Series("a", ((0.0, math.nan),)),))
    page = Page(html_page("t", [Section("s", (chart,))]))
    assert "nothing measured" in page.texts["p"]
    assert not page.all("svg")


def test_bars_are_as_long_as_their_values_and_intervals_stand_over_one_axis():
    bars = (Bar("a", 4.0, "4 MB"), Bar("b", 1.0, "1 MB"), Bar("a, again", 2.0, "2 MB", group="a"))
    page = Page(html_page("t", [Section("s", (BarChart("Size", bars),))]))
    assert [(one["width"], one["fill"]) for one in page.all("rect")] == [
        ("320.0", "var(--c0)"), ("80.0", "var(--c1)"), ("160.0", "var(--c0)")
    ]  # fmt: skip
    intervals = (
        Bar("a", 1.0, "held", (0.5, 2.0), -2.0, "held"),
        Bar("b", -1.0, "reversed", (-1.5, 0.0), 1.0, "reversed"),
    )
    page = Page(html_page("t", [Section("s", (BarChart("Claims", intervals),))]))
    # From -2 to 2 are 640.
    assert [(one["cx"], one["fill"]) for one in page.all("circle")] == [
        ("480.0", "var(--held)"),
        ("160.0", "var(--reversed)"),
    ]
    places = [re.match(r"M([\d.]+)", one["d"])[1] for one in page.all("path")]
    assert places == ["320.0", "400.0", "0.0", "80.0", "480.0"]  # zero; an end and the bound of each
    nothing = Page(html_page("t", [Section("s", (BarChart("Size", ()),))]))
    assert "nothing measured" in nothing.texts["p"] and not nothing.all("svg")


def test_a_run_of_a_chart_looks_alike_in_tables():
    lines = LineChart("Loss", "step", "nats", tuple(Series(name, ((0.0, 2.0), (1.0, 1.0))) for name in "ab"))
    table = Table("T", ("row", "by task"), (("a", "x +1, y +2"), ("c", None)))
    text = html_page("t", [Section("s", (table, lines))])
    assert re.findall(r'<th scope="row">(?:<svg class="swatch".*?</svg>)?(\w)</th>', text) == ["a", "c"]
    assert text.count('<th scope="row"><svg class="swatch"') == 1
    assert "<details><summary>2 tasks</summary>x +1, y +2</details>" in text


def test_equal_maps_are_stored_once():
    page = Page(html_page("t", [Section("s", (AttentionMaps("m", {"a": maps(), "b": maps()}),))]))
    data = json.loads(page.texts["script"][1])
    parts = [encoded(2, 2), encoded(2, 2, 200), encoded(2, 2, 100)]
    assert zlib.decompress(base64.b64decode(data["maps"])) == b"".join(map(base64.b64decode, parts))
    assert [run["sentences"][0]["teacher"] for run in data["runs"]] == [[0, 0], [0, 0]]
    assert [run["sentences"][0]["student"] for run in data["runs"]] == [[8, 16], [8, 16]]
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
