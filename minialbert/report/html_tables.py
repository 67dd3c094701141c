"""Tables of a report page: headings that sort, figures with their value, verdicts as badges."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .html_markup import escaped, scrolled
from .records import Cell
from .tables import Difference, Table, Value, show

VERDICTS = {
    "held": "held",
    "reversed": "reversed",
    "undecided at this size": "undecided",
    "undecided": "undecided",
    "unfinished": "unfinished",
}
LONG = 28  # letters; longer text may wrap
_NOTHING = ("", "-", "–", "N/A")
# Text that is a number all the same: "+1.2", "98 %", "4,096", "-0.4 (-1.2, +0.4)".
_NUMBER = re.compile(r"([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)(?: ?%)?(?:\s*[±\[(].*)?")


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
    body = "".join(_row(row, numeric, muted=sources and _from_paper(columns, row)) for row in rows)
    if not rows:
        body = f'<tr><td colspan="{len(columns)}" class="missing">nothing measured</td></tr>'
    kind = ' class="quiet"' if quiet else ""
    return scrolled(
        f"<table><caption{kind}><span>{escaped(caption)}</span></caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table>",
        caption,
    )


def _row(row: Sequence[Shown], numeric: Sequence[bool], *, muted: bool) -> str:
    first = f'<th scope="row"{_attributes(row[0], numeric[0])}>{_content(row[0])}</th>' if row else ""
    rest = "".join(
        f"<td{_attributes(one, right)}>{_content(one)}</td>"
        for one, right in zip(row[1:], numeric[1:], strict=True)
    )
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


def _content(one: Shown) -> str:
    bare = one.text[1:-1] if one.text[:1] + one.text[-1:] in ("()", "[]") else one.text
    if bare not in VERDICTS:
        return escaped(one.text)
    aside = "" if bare == one.text else " aside"
    return f'<span class="badge {VERDICTS[bare]}{aside}">{escaped(one.text)}</span>'


def _from_paper(columns: Sequence[str], row: Sequence[Shown]) -> bool:
    """Tell whether a row is the paper's: by its name, or by what its column "source" says."""
    if row[0].text.startswith("paper: "):
        return True
    return any(
        column == "source" and one.text.startswith("paper") for column, one in zip(columns, row, strict=True)
    )


def _column(values: Sequence[Value]) -> list[Shown]:
    texts = [value.strip() for value in values if isinstance(value, str) and value.strip() not in _NOTHING]
    found = [_NUMBER.fullmatch(text) for text in texts]
    # One cell in words makes words of the others too: "1" beside "1 to 2" is no number.
    in_text = bool(found) and all(found)
    return [_shown(value, in_text) for value in values]


def _shown(value: Value, number_in_text: bool) -> Shown:
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value.strip()) if number_in_text else None
        return Shown(value, float(match[1].replace(",", "")) if match else None)
    if value is None:
        return Shown(show(None))
    if isinstance(value, Cell):
        key = round(value.mean * (100 if value.percent else 1), 9)  # as shown, beside printed figures
    else:
        key = float(value.mean if isinstance(value, Difference) else value)
    # What is no number, such as a diverged loss, is shown and sorted as missing.
    return Shown(show(value), key) if math.isfinite(key) else Shown(show(None))
