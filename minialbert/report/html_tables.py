"""Tables of a report page: headings that sort, figures with their value, verdicts as badges."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minialbert.report.html_markup import escaped, scrolled
from minialbert.report.tables import Difference, Table, Value, show
from minialbert.runs.records import Cell

VERDICTS = {
    "held": "held",
    "reversed": "reversed",
    "undecided at this size": "undecided",
    "undecided": "undecided",
    "unfinished": "unfinished",
}
LONG = 28  # letters; longer text may wrap
_NOTHING = ("", "-", "–", "N/A")
# Text that is a number all the same: "+1.2", "98 %", "4,096", "4.6M", "-0.4 (-1.2, +0.4)".
_NUMBER = re.compile(r"([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)([KkMG]| ?%)?(?:\s*[±\[(].*)?")
_SIZES = {"K": 1e3, "k": 1e3, "M": 1e6, "G": 1e9}
# A duration: minutes and seconds, with hours before them where there are some: "0:40", "1:05:00".
_DURATION = re.compile(r"(?:(\d+):(?=\d\d:))?(\d+):([0-5]\d(?:\.\d+)?)")


@dataclass(frozen=True)
class Shown:
    """A cell as the page shows it.

    Attributes:
        text: what it says.
        key: the number that it is sorted by; None for text.
    """

    text: str
    key: float | None = None


def table_html(table: Table, heading: str = "") -> str:
    """Write a table with its notes.

    Args:
        table: the table.
        heading: of the section that it stands in; a caption that says the same is left to screen readers.

    Returns:
        Markup; headings carry buttons that the script makes usable.
    """
    columns = [_column([row[index] for row in table.rows]) for index in range(len(table.columns))]
    rows = list(zip(*columns, strict=True)) if table.rows else []
    notes = "".join(f"<li>{escaped(note)}</li>" for note in table.notes)
    notes = f'<ul class="notes">{notes}</ul>' if notes else ""
    markup = grid(table.title, table.columns, rows, sources=True, quiet=table.title == heading)
    return f'<div class="table">{markup}{notes}</div>'


def grid(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Shown]],
    *,
    sources: bool = False,
    quiet: bool = False,
) -> str:
    """Write headings and cells in a part that scrolls by itself.

    Args:
        caption: what the table shows.
        columns: the headings.
        rows: as many cells as headings.
        sources: mute rows of the paper.
        quiet: keep the caption for screen readers.

    Returns:
        Markup.
    """
    numeric = [
        any(row[index].key is not None for row in rows)
        and all(row[index].key is not None or row[index].text in _NOTHING for row in rows)
        for index in range(len(columns))
    ]
    heads = "".join(
        f'<th scope="col"{_number_class(right)}><button type="button" class="sort" disabled>{escaped(column)}'
        "</button></th>"
        for column, right in zip(columns, numeric, strict=True)
    )
    # Elsewhere, the same words are no verdict: a model may be called "held".
    judged = [column.strip().lower().startswith("verdict") for column in columns]
    body = "".join(_row(row, numeric, judged, muted=sources and _from_paper(columns, row)) for row in rows)
    if not rows:
        body = f'<tr><td colspan="{len(columns)}" class="missing">nothing measured</td></tr>'
    kind = ' class="quiet"' if quiet else ""
    return scrolled(
        f"<table><caption{kind}><span>{escaped(caption)}</span></caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table>",
        caption,
    )


def _row(row: Sequence[Shown], numeric: Sequence[bool], judged: Sequence[bool], *, muted: bool) -> str:
    cells = [
        f"{_attributes(one, right)}>{_verdict(one) if verdict else escaped(one.text)}"
        for one, right, verdict in zip(row, numeric, judged, strict=True)
    ]
    first = f'<th scope="row"{cells[0]}</th>' if cells else ""
    rest = "".join(f"<td{cell}</td>" for cell in cells[1:])
    kind = ' class="paper"' if muted else ""
    return f"<tr{kind}>{first}{rest}</tr>"


def _attributes(one: Shown, numeric: bool) -> str:
    missing = one.key is None and one.text in _NOTHING
    key = "" if one.key is None else f' data-value="{_plain(one.key)}"'
    kind = ' class="long"' if not numeric and len(one.text) > LONG else _number_class(numeric)
    return (" data-missing" if missing else "") + key + kind


def _number_class(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) and abs(number) < 1e15 else repr(number)


def _verdict(one: Shown) -> str:
    bare = one.text[1:-1] if one.text[:1] + one.text[-1:] in ("()", "[]") else one.text
    kind = VERDICTS.get(bare.removesuffix(", interim"))
    if kind is None:
        return escaped(one.text)
    aside = "" if bare == one.text else " aside"
    return f'<span class="badge {kind}{aside}">{escaped(one.text)}</span>'


def _from_paper(columns: Sequence[str], row: Sequence[Shown]) -> bool:
    """Tell whether a row is the paper's: by its name, or by what its column "source" says."""
    if row[0].text.startswith("paper: "):
        return True
    return any(
        column == "source" and one.text.startswith("paper") for column, one in zip(columns, row, strict=True)
    )


def _column(values: Sequence[Value]) -> list[Shown]:
    texts = [value.strip() for value in values if isinstance(value, str) and value.strip() not in _NOTHING]
    # One cell in words makes words of the others too: "1" beside "1 to 2" is no number. Nor do numbers and durations
    # have an order.
    read = next((one for one in (_number, _duration) if all(one(text) is not None for text in texts)), None)
    return [_shown(value, read) for value in values]


def _number(text: str) -> float | None:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    return round(float(match[1].replace(",", "")) * _SIZES.get(match[2], 1), 9)


def _duration(text: str) -> float | None:
    match = _DURATION.fullmatch(text)
    return None if match is None else 3600 * int(match[1] or 0) + 60 * int(match[2]) + float(match[3])


def _shown(value: Value, read: Callable[[str], float | None] | None) -> Shown:
    if isinstance(value, str):
        return Shown(value, None if read is None else read(value.strip()))
    if value is None:
        return Shown(show(None))
    if isinstance(value, Cell):
        key = round(value.mean * (100 if value.percent else 1), 9)  # as shown, beside printed figures
    else:
        key = float(value.mean if isinstance(value, Difference) else value)
    # What is no number, such as a diverged loss, is shown and sorted as missing.
    return Shown(show(value), key) if math.isfinite(key) else Shown(show(None))
