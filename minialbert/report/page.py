"""A report as one HTML file that needs no network: a template shows the blocks, style and script travel inside it."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from minialbert.errors import MissingExtraError
from minialbert.report.blocks import AttentionMaps, BarChart, Block, LineChart, ScatterChart, Section
from minialbert.report.charts import LINE_POINTS, Chart, Charts, placeable, stem, thinned
from minialbert.report.tables import Difference, Marked, Table, Value, clean, number, show
from minialbert.runs.records import Cell

_NOTHING = ("", "-", "–", "N/A")
_VERDICTS = ("held", "reversed", "undecided", "unfinished")
# Text that is a number all the same: "+1.2", "98 %", "4,096", "4.6M", "-0.4 (-1.2, +0.4)".
_NUMBER = re.compile(r"([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)([KkMG]| ?%)?(?:\s*[±\[(].*)?")
_SIZES = {"K": 1e3, "k": 1e3, "M": 1e6, "G": 1e9}
# A duration: minutes and seconds, with hours before them where there are some: "0:40", "1:05:00".
_DURATION = re.compile(r"(?:(\d+):(?=\d\d:))?(\d+):([0-5]\d(?:\.\d+)?)")


def html_page(
    title: str,
    sections: Sequence[Section],
    *,
    summary: Sequence[Block] = (),
    figures: dict[str, str] | None = None,
) -> str:
    """Return a report as one HTML file: the same blocks give the same file.

    The page opens from a disk and may load nothing: its content security policy allows only the style and the script
    in it, by their hashes. Text, charts and tables are there without the script, which adds sorting, search, downloads,
    choices, the values of charts and the attention maps. Without matplotlib, each chart is a table of its values and a
    line that says why. The summary stands below the heading; `figures` gets each chart as an SVG file by its name.
    """
    view = _View(figures)
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    blocks = [view.block(block, title) for block in summary]
    page = _template().render(
        title=title, summary=blocks, parts=view.parts(sections), style=style, script=script, policy=policy,
        looks=view.looks,
    )  # fmt: skip
    return page.strip() + "\n"


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("minialbert.report", "assets"),
        autoescape=True,
        # What is shown is escaped by Jinja; letters that cannot be shown are replaced here, once for all.
        finalize=lambda value: clean(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.get_template("page.html.j2")


def _asset(name: str) -> str:
    """Return a file of the page with the line ends that a browser makes of it, so that its hash fits."""
    return resources.files(__package__).joinpath("assets", name).read_text("utf-8").replace("\r\n", "\n")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class _View:
    """Turns sections and blocks into what the template shows; anchors and looks are those of one page."""

    def __init__(self, figures: dict[str, str] | None) -> None:
        self._charts = Charts({} if figures is None else figures)
        self.looks: dict[str, Markup] = {}  # of runs, by their names, for the tables that name them
        self._anchors = {"main", "top"}

    def parts(self, sections: Iterable[Section]) -> list[dict[str, Any]]:
        parts = []
        for section in sections:
            # An id of its own, made from the words of the heading so that links outlive a new report.
            self._anchors.add(anchor := stem(section.title, "part", self._anchors))
            blocks = [self.block(block, section.title) for block in section.blocks]
            inner = self.parts(section.sections)
            parts.append({"title": section.title, "anchor": anchor, "blocks": blocks, "parts": inner})
        return parts

    def block(self, block: Block, heading: str) -> dict[str, Any]:
        shown: dict[str, Any] = {"kind": type(block).__name__, "block": block, "heading": heading}
        if isinstance(block, Table):
            shown["grid"] = _grid(block)
        elif isinstance(block, BarChart):
            shown |= {"drawing": None, **self._bars(block)}
        elif isinstance(block, LineChart | ScatterChart):
            shown |= {"drawing": None, **self._chart(placeable(block))}
        elif isinstance(block, AttentionMaps):
            shown["data"] = _attention_data(block)
        return shown

    def _bars(self, chart: BarChart) -> dict[str, Any]:
        """Return bars with their places on a common axis, in hundredths of its length, and their colours."""
        ends = [0.0, *(end for one in chart.bars for end in (one.value, *(one.ends or ()), one.bound or 0.0))]
        low = min(ends)
        length = max(chart.most, *ends) - low or 1.0
        names = [one.group or one.label for one in chart.bars]
        return {
            "data": _data(chart),
            "missing": None if chart.bars else "nothing measured",
            "intervals": any(one.ends for one in chart.bars),
            "place": lambda value: round(100 * (value - low) / length, 2),
            "colours": [name if name in _VERDICTS else f"c{self._charts.key(name) % 8}" for name in names],
        }

    def _chart(self, chart: Chart) -> dict[str, Any]:
        """Return the drawing and the values of a chart, or what is said in their place."""
        if not (chart.series if isinstance(chart, LineChart) else chart.points):
            return {"data": None, "missing": "nothing measured"}
        shown = {"block": chart, "data": _data(chart), "missing": None}
        try:
            drawing = self._charts.draw(chart)
        except MissingExtraError as error:
            return {**shown, "missing": str(error)}
        if isinstance(chart, LineChart):
            swatches = {key: swatch for key, _, swatch in drawing.legend}
            self.looks |= {one.name: swatches[self._charts.key(one.name)] for one in chart.series}
        return {**shown, "drawing": drawing}


@dataclass(frozen=True)
class _Shown:
    """A cell of a table as the page shows it: its text, the number that it is sorted by, the class of its badge."""

    text: str
    key: float | None = None
    verdict: str = ""
    marked: Marked | None = None

    @property
    def missing(self) -> bool:
        return self.key is None and self.text in _NOTHING

    @property
    def value(self) -> str:
        key = self.key or 0.0
        return str(int(key)) if key == int(key) and abs(key) < 1e15 else repr(key)


def _data(chart: Chart | BarChart) -> dict[str, Any]:
    """Return the values of a chart for the script: rows below columns; of lines, their y over one of the lists of x."""
    if isinstance(chart, LineChart):
        pool: dict[tuple[str, ...], int] = {}
        series = []
        for one in chart.series:
            points = [one.points[at] for at in thinned(len(one.points), LINE_POINTS)]
            steps = pool.setdefault(tuple(number(x) for x, _ in points), len(pool))
            series.append([clean(one.name), steps, [number(y) for _, y in points]])
        columns = ["series", clean(chart.x_label), clean(chart.y_label)]
        return {"columns": columns, "x": list(pool), "series": series}
    if isinstance(chart, ScatterChart):
        columns = ["label", "group", chart.x_label, chart.y_label, "sd"]
        found = [(one.label, one.group, one.x, one.y, one.sd) for one in chart.points]
    else:
        columns = ["label", "value", "from", "to", "bound"]
        found = [(one.label, one.value, *(one.ends or (None, None)), one.bound) for one in chart.bars]
    rows = [[clean(one) if isinstance(one, str) else _figure(one) for one in row] for row in found]
    return {"columns": [clean(column) for column in columns], "rows": rows}


def _figure(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else number(value)


def _grid(table: Table) -> dict[str, Any]:
    """Return a table for the template; what matters first stands first.

    A verdict follows the name of its row, wherever it stands among the columns. Columns without any value are left
    out.
    """
    heads = table.columns
    columns = [_column([row[index] for row in table.rows]) for index in range(len(heads))]
    rows = list(zip(*columns, strict=True)) if table.rows else []
    # Elsewhere, the same words are not a verdict: a model may be called "held".
    judged = {index for index, head in enumerate(heads) if head.strip().lower().startswith("verdict")}
    paper = [(0, "paper: "), *((index, "paper") for index, head in enumerate(heads) if head == "source")]
    kept = [at for at, column in enumerate(columns) if not rows or not all(one.missing for one in column)]
    kept = sorted({0, *kept} if heads else (), key=lambda index: (index > 0, index not in judged, index))
    named = []
    for at in kept:
        known = [one.key is not None for one in columns[at] if not one.missing]
        numeric = bool(known) and all(known)
        named.append({"name": heads[at], "numeric": numeric, "folded": heads[at] == "by task"})
    shown = []
    for row in rows:
        # By its name, or by what its column "source" says.
        of_paper = any(row[index].text.startswith(start) for index, start in paper)
        cells = [_judged(row[index]) if index in judged else row[index] for index in kept]
        shown.append({"paper": of_paper, "cells": cells})
    return {"columns": named, "rows": shown}


def _judged(one: _Shown) -> _Shown:
    bare = one.text[1:-1] if one.text[:1] + one.text[-1:] in ("()", "[]") else one.text
    kind = bare.removesuffix(", interim").removesuffix(" at this size")
    if kind not in _VERDICTS:
        return one
    return replace(one, verdict=kind if bare == one.text else f"{kind} aside")


def _column(values: Sequence[Value]) -> list[_Shown]:
    texts = [value.strip() for value in values if isinstance(value, str) and value.strip() not in _NOTHING]
    # One cell in words makes words of the others too: "1" beside "1 to 2" is not a number. Nor do numbers and durations
    # have an order.
    read = next((one for one in (_number, _duration) if all(one(text) is not None for text in texts)), None)
    return [_shown(value, read) for value in values]


def _number(text: str) -> float | None:
    match = _NUMBER.fullmatch(text)
    return None if match is None else round(float(match[1].replace(",", "")) * _SIZES.get(match[2], 1), 9)


def _duration(text: str) -> float | None:
    match = _DURATION.fullmatch(text)
    return None if match is None else 3600 * int(match[1] or 0) + 60 * int(match[2]) + float(match[3])


def _shown(value: Value, read: Callable[[str], float | None] | None) -> _Shown:
    if isinstance(value, Marked):
        return _Shown(str(value), value.share, marked=value)
    if isinstance(value, str):
        return _Shown(value, None if read is None else read(value.strip()))
    if value is None:
        return _Shown(show(None))
    if isinstance(value, Cell):
        key = round(value.mean * (100 if value.percent else 1), 9)  # as shown, beside printed figures
    else:
        key = float(value.mean if isinstance(value, Difference) else value)
    # What is not a number, such as a diverged loss, is shown and sorted as missing.
    return _Shown(show(value), key) if math.isfinite(key) else _Shown(show(None))


def _attention_data(block: AttentionMaps) -> dict[str, Any]:
    """Return the maps for the script: their bytes in one compressed text, and where in it each begins.

    Equal maps, such as those of one teacher, are in it once.
    """
    pool: dict[str, int] = {}
    content = bytearray()

    def place(text: str) -> int:
        if text not in pool:
            pool[text] = len(content)
            content.extend(base64.b64decode(text))
        return pool[text]

    sides = ("teacher", "student")
    runs = []
    for name, maps in block.runs.items():
        sentences = []
        for one in maps["sentences"]:
            said = {"text": clean(one["text"]), "tokens": list(map(clean, one["tokens"]))}
            sentences.append(said | {side: list(map(place, one[side])) for side in sides})
        run = {
            "name": clean(name),
            **{side: clean(maps[side]) for side in sides},
            "layers": maps["layer_map"],
        }
        runs.append({**run, "heads": [maps[f"{side}_heads"] for side in sides], "sentences": sentences})
    return {"runs": runs, "maps": base64.b64encode(zlib.compress(content, 9)).decode()}
