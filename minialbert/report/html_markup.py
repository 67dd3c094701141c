"""What every part of a report page needs: text that cannot become markup, anchors, data for the script."""

from __future__ import annotations

import html
import json
import re
from typing import Any

# Controls, line separators, lone surrogates, and marks that would turn the text after them around.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """Return text in which letters that UTF-8 or a browser cannot show are replaced by U+FFFD."""
    return _UNSEEN.sub("\ufffd", text)


def escaped(text: str) -> str:
    """Return text for an element or a quoted attribute, in which it is nothing but text."""
    return html.escape(clean(text), quote=True)


def scrolled(content: str, label: str) -> str:
    """Put wide content into a part of its own that scrolls, also by keyboard.

    Args:
        content: markup.
        label: what it is, as text.

    Returns:
        The markup.
    """
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escaped(label)}">{content}</div>'


def json_script(data: Any) -> str:
    """Return data in an element that nothing runs and no text in the data can end.

    Args:
        data: what JSON can hold, without NaN.

    Returns:
        The element.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json">{text}</script>'


class Anchors:
    """Gives every heading an id of its own, made from its words so that links outlive a new report."""

    def __init__(self) -> None:
        self._taken = {"main", "top"}

    def new(self, title: str) -> str:
        """Return an id of letters, digits and hyphens for a title.

        Args:
            title: the heading.

        Returns:
            The id; with a number where headings are alike.
        """
        base = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60].strip("-") or "part"
        found, number = base, 1
        while found in self._taken:
            number += 1
            found = f"{base}-{number}"
        self._taken.add(found)
        return found
