"""A report's sections as Markdown; charts, maps and what is folded are left to the HTML page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from minialbert.report.blocks import Block, Listing, Section, Text
from minialbert.report.tables import Table, escape


def markdown_page(title: str, sections: Sequence[Section], *, summary: Sequence[Block] = ()) -> str:
    """Return a page; sections without text, table or listing are left out, and `summary` stands before them."""
    parts = [f"# {escape(title)}", *_blocks(summary, title)]
    for section in sections:
        parts += _section(section, "##")
    return "\n\n".join(parts) + "\n"


def _section(section: Section, marks: str) -> list[str]:
    parts = list(_blocks(section.blocks, section.title))
    for below in section.sections:
        parts += _section(below, f"{marks}#")
    return [f"{marks} {escape(section.title)}", *parts] if parts else []


def _blocks(blocks: Sequence[Block], heading: str) -> Iterator[str]:
    for block in blocks:
        if isinstance(block, Text):
            yield f"**{escape(block.text)}**" if block.strong else escape(block.text)
        elif isinstance(block, Table) and block.rows and not block.page_only:
            if block.title and block.title != heading:
                yield f"**{escape(block.title)}**"
            yield block.to_markdown().rstrip("\n")
        elif isinstance(block, Listing) and block.lines and not block.folded:
            if block.title and block.title != heading:
                yield f"**{escape(block.title)}**"
            text = "\n".join(block.lines)
            fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text) or [""]))
            yield f"{fence}{block.language}\n{text}\n{fence}"
