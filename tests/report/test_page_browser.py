"""The HTML page of a report in a real browser: sorting, choices, keyboard, themes, small screens, no script."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from minialbert.method.attention_files import row_overlap
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
from minialbert.report.page import html_page
from minialbert.report.tables import Table
from minialbert.runs.records import Cell

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, which drives the browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver on the PATH"
    ),
]

TOKENS = ("[CLS]", "the", "cat", "sat", "[SEP]")
SCORES = {"b10": 0.61, "b9": 0.095, "a": None, "c": 0.7}
LONG = "unbroken" * 20


def encoded(size: int, shares: list[tuple[int, int]]) -> str:
    """Return one plane per share: that much for the token itself, and the rest, up to 255, for the first."""
    planes = bytearray()
    for own, first in shares:
        for row in range(size):
            plane = bytearray(size)
            plane[0] = first
            plane[row] = own
            planes += plane
    return base64.b64encode(planes).decode()


def attention(name: str, share: int, heads: int = 2) -> dict[str, object]:
    sentences = []
    for size in (5, 3):
        teacher = [encoded(size, [(204, 51), (51, 204)]) for _ in range(2)]
        student = [encoded(size, [(share + step, 255 - share - step)] * heads) for step in (0, 20)]
        tokens = list(TOKENS[:size])
        sentences.append({"text": " ".join(tokens), "tokens": tokens, "teacher": teacher, "student": student})
    return {
        "format_version": 1, "teacher": "big", "student": name, "layer_map": [2, 4], "teacher_heads": 2,
        "student_heads": heads, "sentences": sentences,
    }  # fmt: skip


def page() -> str:
    rows = tuple(
        (name, None if mean is None else Cell(mean, 0.01, 3, (1, 2, 3)), index, "held")
        for index, (name, mean) in enumerate(SCORES.items())
    )
    wide = tuple((f"row {index} {LONG}", *(Cell(0.5, 0.1, 3, ()) for _ in range(12))) for index in range(3))
    lines = tuple(
        Series(name, tuple((float(x), 1.0 / (x + 1)) for x in range(30))) for name in ("loss", "KL", LONG)
    )
    points = tuple(Point(f"model {index} {LONG}", 10.0**index, 70.0 + index, 1.0, "g") for index in range(5))
    maps = AttentionMaps("Maps", {"one": attention("one", 102), "two": attention("two", 153)})
    unequal = AttentionMaps("Unequal", {"three": attention("three", 102, heads=3)})
    return html_page(
        f"Report {LONG}",
        [
            Section("Tables", (Table("Scores", ("row", "score", "order", "verdict"), rows, (LONG,)),)),
            Section("Wide", (Table("Wide", ("row", *map(str, range(12))), wide),), (Section("Inner", ()),)),
            Section(
                "Charts",
                (
                    LineChart("Lines", "step", "nats", lines),
                    LineChart("More", "step", "nats", lines[1:], log_y=True),
                    ScatterChart("S", "x", "y", points, True),
                ),
            ),
            Section("Maps", (maps, unequal)),
            Section("Commands", (Listing("Commands", (LONG, "b"), folded=False), Listing("More", (LONG,)))),
        ],
        summary=(Text("All is well.", strong=True), Text(LONG)),
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    file: Path = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page(), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-quic", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", ",".join(filter(None, (os.environ.get("NO_PROXY"), "localhost,127.0.0.1"))))
        browser = webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))
        try:
            yield browser
        finally:
            browser.quit()


class Reader:
    """A reader at the page: what is seen, clicked and typed."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def all(self, selector: str) -> list:
        return self.browser.find_elements("css selector", selector)

    def one(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return [found.get_attribute("textContent") for found in self.all(selector)]

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.browser).send_keys(*keys).perform()

    def pick(self, figure: int, name: str, choice: str) -> None:
        from selenium.webdriver.support.select import Select

        found = self.all("figure.maps")[figure].find_element("css selector", f'[data-pick="{name}"]')
        Select(found).select_by_visible_text(choice)

    def ask(self, script: str):
        return self.browser.execute_script(f"return {script}")

    def drawn(self, side: str) -> list[str]:
        """Return the colours of a map, cell by cell."""
        return self.ask(f"""[...document.querySelector('[data-side="{side}"]').querySelectorAll('.cell')]
            .map((cell) => cell.style.fill)""")

    def rows(self) -> list[str]:
        return self.texts("#tables tbody th")


@pytest.fixture
def reader(chromium: webdriver.Chrome, address: str) -> Iterator[Reader]:
    """Open the page anew at a large size; afterwards, nothing may have been said on the console.

    Motion is reduced: what scrolls smoothly would be clicked at before it has arrived.
    """
    size(chromium, 1400, 900)
    chromium.get(address)
    while chromium.execute_script("return localStorage.length"):
        chromium.execute_script("localStorage.clear()")
        chromium.refresh()
    chromium.get_log("browser")
    chromium.get(address)
    maps_are_drawn(chromium)
    yield Reader(chromium)
    assert chromium.get_log("browser") == []


def until(browser: webdriver.Chrome, holds: Callable[[], bool], message: str) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 20).until(lambda _: holds(), message)


def maps_are_drawn(browser: webdriver.Chrome) -> None:
    """Wait for the maps, which the script unpacks before it draws them."""
    hidden = "return document.querySelectorAll('.map-app[hidden]').length"
    until(browser, lambda: browser.execute_script(hidden) == 0, "maps are not drawn")


def size(browser: webdriver.Chrome, width: int, height: int, *, dark: bool = False) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wishes = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wishes.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def test_the_console_would_tell(chromium, tmp_path):
    # The other tests rely on an empty log: one that stays empty whatever happens would prove nothing.
    file = tmp_path / "broken.html"
    file.write_text(page().replace('"use strict";', '"use strict"; missing();'), encoding="utf-8")
    chromium.get(file.as_uri())
    assert "Content Security Policy" in chromium.get_log("browser")[0]["message"]


def test_numbers_sort_by_value_and_missing_ones_come_last(reader):
    button = reader.all("#tables .sort")[2]
    head = reader.all("#tables thead th")[2]
    assert head.get_attribute("aria-sort") is None
    button.click()
    assert (reader.rows(), head.get_attribute("aria-sort")) == (["b9", "b10", "c", "a"], "ascending")
    button.click()
    assert (reader.rows(), head.get_attribute("aria-sort")) == (["c", "b10", "b9", "a"], "descending")
    button.click()
    assert (reader.rows(), head.get_attribute("aria-sort")) == (["b10", "b9", "a", "c"], None)


def test_figures_and_tables_can_be_taken_away(reader, tmp_path):
    where = {"behavior": "allow", "downloadPath": str(tmp_path)}
    reader.browser.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    reader.browser.execute_script("window.print = () => {}")
    for button in (
        *reader.all("#charts figure:nth-of-type(2) .tools button:not([hidden])"),
        *reader.all("#tables .tools button"),
    ):
        button.click()
    names = {"more.svg", "more.png", "more.csv", "scores.csv", "scores.tex"}
    until(reader.browser, lambda: {file.name for file in tmp_path.iterdir()} == names, "files")
    assert (tmp_path / "more.csv").read_text().startswith("series,step,nats\nKL,0,1\nKL,1,0.5\n")
    assert (
        (tmp_path / "scores.csv")
        .read_text()
        .startswith("row,verdict,score,order\nb10,held,61.0 ± 1.0 (3),0.0K\n")
    )
    assert "b10 & held & 61.0 $\\pm$ 1.0 (3) & 0.0K \\\\\n" in (tmp_path / "scores.tex").read_text()
    drawing = (tmp_path / "more.svg").read_text()
    assert (
        ">More</text>" in drawing
        and ">KL</text>" in drawing
        and "var(" not in drawing
        and "#c2450a" in drawing
    )
    assert (tmp_path / "more.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_is_printed_alone(reader):
    script = "window.print = () => { window.alone = document.querySelectorAll('.alone').length }"
    reader.browser.execute_script(script)
    figure = reader.one("#charts figure:nth-of-type(2)")
    next(
        button for button in reader.all("#charts figure:nth-of-type(2) .tools button") if button.text == "PDF"
    ).click()
    assert reader.browser.execute_script("return window.alone") == 1
    reader.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert figure.is_displayed() and not reader.one("h1").is_displayed()
    assert not reader.one("#charts figure:nth-of-type(1)").is_displayed()
    reader.browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert reader.one("h1").is_displayed()
    reader.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_part_of_a_chart_is_shown_by_dragging(chromium, tmp_path):
    from selenium.webdriver import ActionChains

    points = tuple((float(step), 100.0 if step < 50 else 1 + step / 100) for step in range(0, 101, 5))
    reader = opened(chromium, tmp_path, LineChart("L", "step", "loss", (Series("run", points),)))
    drawing, texts = reader.one(".chart"), "[...document.querySelectorAll('.chart text:not([visibility])')]"
    before = reader.ask("document.querySelector('.series path').getAttribute('d')")
    width = drawing.size["width"]  # the axis reaches from 54 to 618 of 640
    middle, end = (round(place / 640 * width - width / 2) for place in (330, 630))
    drag = (
        ActionChains(chromium, duration=20).move_to_element_with_offset(drawing, middle, 0).click_and_hold()
    )
    drag.move_to_element_with_offset(drawing, end, 0).release().perform()
    shown = reader.ask(f"{texts}.map((one) => one.textContent)")
    assert {"60", "100", "1.5", "2", "step", "loss"} <= set(shown) and "0" not in shown, shown
    path = reader.ask("document.querySelector('.series path').getAttribute('d')")
    assert path.startswith("M") and path.split("L")[-1].split()[0] == "618.0"
    heights = [float(place.split()[1]) for place in path[1:].split("L")]
    assert heights == sorted(heights, reverse=True) and 280 < heights[0] < 310 and 38 < heights[-1] < 60
    reader.one(".tools button:not([hidden])[aria-label='Show the whole chart']").click()
    assert reader.ask("document.querySelector('.series path').getAttribute('d')") == before
    assert not reader.all(".chart [visibility]") and not reader.all(".chart .frame")
    smooth = "Show a moving average"
    reader.one(f".tools button[aria-label='{smooth}']").click()
    path = reader.ask("document.querySelector('.series path').getAttribute('d')")
    heights = [float(place.split()[1]) for place in path[1:].split("L")]
    falls = [low - high for high, low in zip(heights, heights[1:], strict=False)]
    assert len(heights) == 21 and 80 < max(falls) < 130  # one fall of all of the chart's height before
    reader.one(".tools button:not([hidden])[aria-label='Show the whole chart']").click()
    assert reader.ask("document.querySelector('.series path').getAttribute('d')") == before


def test_a_long_table_is_searched(chromium, tmp_path):
    table = Table("Long", ("name", "n"), tuple((f"Row {at}", str(at)) for at in range(20)))
    reader = opened(chromium, tmp_path, table)
    reader.one(".tools input").send_keys("row 1")
    assert len([row for row in reader.all("tbody tr") if row.is_displayed()]) == 11
    assert not reader.all(".values")


def test_words_sort_by_keyboard(reader):
    reader.browser.execute_script("document.querySelector('#tables .sort').focus()")
    reader.press("\ue007")  # Enter
    assert reader.rows() == ["a", "b9", "b10", "c"]
    reader.press(" ")
    assert reader.rows() == ["c", "b10", "b9", "a"]
    reader.all("#tables .sort")[2].click()
    sorted_heads = [head for head in reader.all("#tables thead th") if head.get_attribute("aria-sort")]
    assert [head.text for head in sorted_heads] == ["score"]


def test_the_legend_hides_a_series_in_all_charts(reader):
    def seen() -> list[list[str]]:
        charts = reader.ask("document.querySelectorAll('.chart:not(.scatter)').length")
        return [
            reader.ask(
                f"""[...document.querySelectorAll('.chart:not(.scatter)')[{at}].querySelectorAll('.series')]
                .filter((one) => getComputedStyle(one).display != 'none').map((one) => one.dataset.key)"""
            )
            for at in range(charts)
        ]

    def pressed(key: str) -> set[str]:
        return {one.get_attribute("aria-pressed") for one in reader.all(f'.legend [data-key="{key}"]')}

    assert seen() == [["0", "1", "2"], ["1", "2"]]
    button = reader.one('.legend [data-key="1"]')
    button.click()
    assert (seen(), pressed("1"), pressed("2")) == ([["0", "2"], ["2"]], {"false"}, {"true"})
    # What hides a series takes its mark along, but not that of a series whose mark has the same shape.
    assert reader.ask("document.querySelector('.series[data-key=\"2\"] use').getBBox().width") > 0
    button.click()
    assert (seen(), pressed("1")) == ([["0", "1", "2"], ["1", "2"]], {"true"})


def test_a_chart_takes_its_colours_from_the_theme(reader):
    def colours() -> list[str]:
        return reader.ask("""[...document.querySelectorAll('.series > path, .series use, .chart text, .swatch *')]
            .map((one) => getComputedStyle(one)).map((one) => one.stroke + one.fill)""")

    light = colours()
    size(reader.browser, 1400, 900, dark=True)
    dark = colours()
    assert "rgb(88, 96, 112)" in "".join(light) and "rgb(163, 171, 184)" in "".join(dark)  # muted
    assert "rgb(0, 105, 180)" in "".join(light) and "rgb(88, 177, 245)" in "".join(dark)  # the first series
    assert not any("rgb(0, 0, 0)" in one for one in light + dark)
    assert all(one != other for one, other in zip(light, dark, strict=True))


def test_maps_follow_what_is_picked(reader):
    pictures = [(reader.drawn("teacher"), reader.drawn("student"))]
    assert [len(one) for one in pictures[0]] == [25, 25]
    steps = [("run", "two"), ("iteration", "iteration 2 = layer 4"), ("head", "head 1"), ("head", "head 2")]
    for name, choice in steps:
        reader.pick(0, name, choice)
        pictures.append((reader.drawn("teacher"), reader.drawn("student")))
    teachers, students = zip(*pictures, strict=True)
    assert teachers[0] == teachers[1] == teachers[2]  # one teacher, alike in both layers
    assert len({tuple(one) for one in teachers[2:]}) == 3
    assert len({tuple(one) for one in students[:3]}) == 3
    assert "student two" in reader.texts(".map-title")[1].lower()
    reader.pick(0, "sentence", "[CLS] the cat")
    assert len(reader.drawn("teacher")) == len(reader.drawn("student")) == 9
    assert reader.texts('[data-side="teacher"] text[data-row]')[:3] == ["[CLS]", "the", "cat"]


def test_colours_and_overlap_are_computed_from_the_bytes(reader):
    # Head 1: the teacher gives 204 of 255 to the token itself, the student 102; both give the rest to the first.
    reader.pick(0, "head", "head 1")
    teacher, student = reader.drawn("teacher"), reader.drawn("student")
    # sqrt(0.8) = 0.894: 78.9 % of the way from the middle to the end; sqrt(0.4) = 0.632: 26.5 %.
    assert "var(--map-high) 78.9%" in teacher[6] and "var(--map-high) 26.5%" in student[6]
    # sqrt(0.2) = 0.447: 89.4 % of the way from zero to the middle.
    assert "var(--map-middle) 89.4%" in teacher[5] and "var(--map-low)" in teacher[5]
    assert teacher[7] == student[7] and "var(--map-middle) 0%" in teacher[7].replace("0.0%", "0%")
    # Rows 2 to 5 share 0.4 + 0.2; in row 1, the first token is the token itself, and all is shared.
    assert reader.texts(".overlap")[0].endswith(", head 1: 0.680")


@pytest.mark.parametrize("heads", [(2, 2), (2, 3)])
def test_the_overlap_is_the_one_of_python(chromium, tmp_path, heads):
    # Heads that look at different tokens, rows that do not sum to 255, and one that sums to nothing.
    shares = ([(255, 0), (0, 255)], [(0, 250), (90, 10), (200, 55)])
    sides = [encoded(3, one[:count]) for one, count in zip(shares, heads, strict=True)]
    sides[0] = base64.b64encode(bytes(3) + base64.b64decode(sides[0])[3:]).decode()
    sentence = {"text": "t", "tokens": ["a", "b", "c"], "teacher": sides[:1], "student": sides[1:]}
    maps = attention("one", 0) | {
        "layer_map": [1], "teacher_heads": heads[0], "student_heads": heads[1], "sentences": [sentence]
    }  # fmt: skip
    (right,) = row_overlap(maps)
    planes = [np.frombuffer(base64.b64decode(one), np.uint8).reshape(-1, 3, 3) / 255 for one in sides]
    of_means = np.minimum(*(plane.mean(0) for plane in planes)).sum(-1).mean()
    assert abs(right - of_means) > 0.02  # what would be shown if heads were averaged first, bytes as they are
    file = tmp_path / "overlap.html"
    file.write_text(html_page("t", [Section("s", (AttentionMaps("m", {"one": maps}),))]), encoding="utf-8")
    chromium.get(file.as_uri())
    maps_are_drawn(chromium)
    told = Reader(chromium).texts(".overlap")[0]
    assert told.endswith(f": {right:.3f}")
    assert ("mean over heads" in told, "maps averaged over heads" in told) == (
        heads == (2, 2),
        heads != (2, 2),
    )


def test_a_long_legend(chromium, tmp_path):
    lines = tuple(Series(f"run {at}", ((1.0, at), (2.0, at + 1.0))) for at in range(23))
    reader = opened(chromium, tmp_path, LineChart("L", "iteration", "y", lines))
    shown = "document.querySelectorAll('.series:not([hidden])').length"
    everything, none = reader.all(".choices button")
    none.click()
    assert reader.ask(shown) == 0
    reader.all(".legend button")[3].click()
    assert reader.ask(shown) == 1
    chromium.execute_script("arguments[0].focus()", everything)
    reader.press("\ue007")  # Enter
    assert reader.ask(shown) == 23
    reader.press("\ue004", " ")  # Tab to "none"
    assert reader.ask(shown) == 0
    assert set(reader.ask("[...document.querySelectorAll('.legend button')].map((b) => b.ariaPressed)")) == {
        "false"
    }


@pytest.mark.parametrize(
    "points",
    [
        [(f"model {at}", 1 + at / 1000, 1 + (at * 7 % 23) / 50) for at in range(23)] + [("far", 2, 3)],
        [("student-384", 100.0 + 14 * step, 200.0 + 9 * (step % 3)) for step in range(8)],
        [("a name for each", 300.0, 200.0)] * 23,
        [("another name", 4 + step / 4, 396.0 - 7 * step % 23) for step in range(23)],
    ],
)
def test_labels_keep_clear_of_each_other(chromium, tmp_path, points):
    chart = ScatterChart("S", "x", "y", tuple(Point(*one) for one in points))
    reader = opened(chromium, tmp_path, chart)
    # By the letters as they are drawn, not as they were estimated.
    boxes = reader.ask("""[...document.querySelectorAll('.scatter .label text')]
        .map((one) => one.getBBox()).map((box) => [box.x, box.y, box.x + box.width, box.y + box.height])""")
    assert len(boxes) == len(points)
    assert all(
        left >= 0 and top >= 0 and right <= 722 and bottom <= 420 for left, top, right, bottom in boxes
    )
    for at, one in enumerate(boxes):
        for other in boxes[:at]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (one, other)


def opened(browser: webdriver.Chrome, folder: Path, *blocks: LineChart | ScatterChart | Table) -> Reader:
    file = folder / "charts.html"
    file.write_text(html_page("t", [Section("s", blocks)]), encoding="utf-8")
    size(browser, 1400, 900)
    browser.get(file.as_uri())
    return Reader(browser)


def test_the_difference_is_shown_on_demand(reader):
    assert not reader.one('[data-side="difference"]').is_displayed()
    reader.one('[data-pick="difference"]').click()
    assert reader.one('[data-side="difference"]').is_displayed()
    reader.pick(0, "head", "head 1")
    drawn = reader.drawn("difference")
    assert "--map-less" in drawn[6] and "--map-more" in drawn[5]
    reader.one('[data-pick="difference"]').click()
    assert not reader.one('[data-side="difference"]').is_displayed()


def test_only_the_mean_is_offered_where_heads_differ(reader):
    heads = reader.all("figure.maps")[1].find_elements("css selector", '[data-pick="head"] option')
    assert [head.text for head in heads] == ["mean over heads"]
    assert not reader.all("figure.maps")[1].find_elements("css selector", '[data-pick="run"]')


def test_a_map_is_read_by_keyboard_and_pointer(reader):
    reader.pick(0, "head", "head 1")
    reader.browser.execute_script("document.querySelector('.map svg').focus()")
    assert reader.texts(".reading")[0] == "[CLS] → [CLS]: teacher 0.80, student 0.40"
    reader.press("\ue015")  # down
    assert reader.texts(".reading")[0] == "the → [CLS]: teacher 0.20, student 0.60"
    reader.press("\ue014", "\ue014")  # right
    assert reader.texts(".reading")[0] == "the → cat: teacher 0.00, student 0.00"
    reader.press("\ue010")  # End
    assert reader.texts(".reading")[0].startswith("the → [SEP]:")
    reader.press("\ue013", "\ue013")  # up, and no farther than the edge
    assert reader.texts(".reading")[0].startswith("[CLS] → [SEP]:")
    assert reader.texts('[data-side="student"] text.at') == ["[CLS]", "[SEP]"]
    cell = reader.one('[data-side="student"] [data-at="12"]')
    webdriver.ActionChains(reader.browser).move_to_element(cell).perform()
    assert reader.texts(".reading")[0] == "cat → cat: teacher 0.80, student 0.40"
    assert reader.one(".reading").aria_role == "status"


def test_the_first_tab_reaches_the_skip_link(reader):
    reader.press("\ue004")  # Tab
    link = reader.browser.switch_to.active_element
    assert link.text == "Skip to the content"
    assert link.rect["y"] >= 0
    reader.press("\ue007")
    assert reader.browser.switch_to.active_element.get_attribute("id") == "main"


def test_motion_follows_the_wish_of_the_reader(reader):
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    assert reader.ask(behaviour) == "auto"
    reader.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert reader.ask(behaviour) == "smooth"


def test_the_theme_button(reader):
    def look() -> tuple[str, str]:
        return reader.one(".theme").text, reader.ask("getComputedStyle(document.body).backgroundColor")

    def remembered(theme: str) -> bool:
        while look()[0] != theme:
            reader.one(".theme").click()
        reader.browser.refresh()
        return look()[0] == theme

    light, dark = "rgb(255, 255, 255)", "rgb(19, 22, 27)"
    assert look() == ("Theme: auto", light)
    size(reader.browser, 1400, 900, dark=True)
    assert look() == ("Theme: auto", dark)
    reader.one(".theme").click()
    assert look() == ("Theme: light", light)
    size(reader.browser, 1400, 900)
    reader.one(".theme").click()
    assert look() == ("Theme: dark", dark)
    # Chromium loses what is stored right before a page is read again, once in some hundred times on a busy machine.
    until(reader.browser, lambda: remembered("Theme: dark"), "the theme is forgotten")
    assert look() == ("Theme: dark", dark)
    reader.one(".theme").click()
    assert look() == ("Theme: auto", light)


def test_a_browser_that_refuses_storage_has_themes_too(reader):
    source = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no'); }})"
    added = reader.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
    try:
        reader.browser.refresh()
        reader.one(".theme").click()
        assert reader.one(".theme").text == "Theme: light"
    finally:
        reader.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


@pytest.mark.parametrize(("width", "height"), [(360, 740), (1400, 900)])
def test_the_page_never_scrolls_sideways(reader, width, height):
    size(reader.browser, width, height)
    reader.browser.refresh()
    maps_are_drawn(reader.browser)
    reader.one('[data-pick="difference"]').click()
    reader.browser.execute_script(
        "document.querySelectorAll('details').forEach((one) => { one.open = true })"
    )
    assert reader.ask("innerWidth") == width
    assert reader.ask("document.documentElement.scrollWidth") <= width
    # What is wider than the screen scrolls in its own part, which the keyboard reaches.
    wide = reader.ask("""[...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > one.clientWidth)
        .map((one) => one.tabIndex)""")
    assert wide and set(wide) == {0}


def test_contents_are_folded_on_small_screens_only(reader):
    assert reader.one(".contents ol").is_displayed()
    size(reader.browser, 360, 740)
    reader.browser.refresh()
    assert not reader.one(".contents ol").is_displayed()
    reader.one(".contents summary").click()
    assert [link.text for link in reader.all(".contents a")] == [
        "Tables", "Wide", "Inner", "Charts", "Maps", "Commands"
    ]  # fmt: skip


def test_contents_tell_where_the_reader_is(reader):
    reader.one('.contents a[href="#charts"]').click()
    marked = ".contents [aria-current]"
    until(reader.browser, lambda: reader.texts(marked) == ["Charts"], "the entry is not marked")


def test_the_script_leaves_no_globals(reader):
    before = reader.ask("(() => { const f = document.createElement('iframe'); document.body.append(f); "
                        "return Object.keys(f.contentWindow) })()")  # fmt: skip
    assert set(reader.ask("Object.keys(window)")) <= {
        *before,
        "0",
        "ret_nodes",
    }  # the frame, and the driver's own


def test_everything_but_the_maps_is_there_without_the_script(reader):
    reader.browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        reader.browser.refresh()
        assert not reader.one(".theme").is_displayed()
        assert reader.one("#tables table").is_displayed()
        assert not reader.one("#tables .sort").is_enabled()
        assert len([line for line in reader.all(".series > path") if line.is_displayed()]) == 5
        assert reader.one(".scatter").is_displayed()
        assert not reader.one(".map-app").is_displayed()
        assert "script" in reader.one("noscript").text
        assert reader.one(".contents ol").is_displayed()
    finally:
        reader.browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
