"""A report as one HTML file that needs no network: blocks become markup, style and script travel inside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from minialbert.report.blocks import AttentionMaps, Block, LineChart, Listing, ScatterChart, Section, Text
from minialbert.report.charts import line_chart, scatter_chart
from minialbert.report.html_markup import Anchors, clean, escaped, json_script, scrolled
from minialbert.report.html_tables import table_html

_SIDES = ("teacher", "student")


def attention_maps(block: AttentionMaps) -> str:
    """Write the maps of some runs.

    Args:
        block: the maps.

    Returns:
        Markup with the data; equal maps, such as those of one teacher, are in it once.
    """
    pool: dict[str, int] = {}
    runs = [_run(name, content, pool) for name, content in block.runs.items()]
    if not runs:
        return (
            f'<figure class="maps"><figcaption>{escaped(block.title)}</figcaption>'
            '<p class="missing">nothing recorded</p></figure>'
        )
    data = json_script({"runs": runs, "maps": list(pool)})
    pickers = "".join(
        f'<label class="pick">{name} <select data-pick="{key}"></select></label>'
        for key, name in (
            ("run", "Run"),
            ("sentence", "Sentence"),
            ("iteration", "Iteration"),
            ("head", "Head"),
        )
        if key != "run" or len(runs) > 1
    )
    maps = "".join(
        f'<div class="map" data-side="{side}"{hidden}><p class="map-title"></p><div class="map-area">'
        '<svg role="application" aria-roledescription="attention map" tabindex="0"></svg></div></div>'
        for side, hidden in (("teacher", ""), ("student", ""), ("difference", " hidden"))
    )
    return (
        f'<figure class="maps"><figcaption>{escaped(block.title)}</figcaption>{data}'
        '<noscript><p class="missing">The attention maps are drawn by a script, which is switched off here.</p>'
        '</noscript><div class="map-app" hidden>'
        f'<div class="pickers">{pickers}<label class="pick"><input type="checkbox" data-pick="difference"> '
        "show difference</label></div>"
        f'<p class="overlap"></p><div class="map-pair">{maps}</div>'
        '<output class="reading"></output>'
        '<div class="scale"><svg aria-hidden="true"></svg><span>Attention from a row’s token to a column’s, 0 to 1; '
        "the colour follows the square root, so that small values can be told apart.</span></div>"
        "</div></figure>"
    )


def _run(name: str, content: Mapping[str, Any], pool: dict[str, int]) -> dict[str, Any]:
    return {
        "name": clean(name),
        **{side: clean(content[side]) for side in _SIDES},
        "layers": content["layer_map"],
        "heads": [content[f"{side}_heads"] for side in _SIDES],
        "sentences": [
            {
                "text": clean(sentence["text"]),
                "tokens": [clean(token) for token in sentence["tokens"]],
                **{side: [pool.setdefault(text, len(pool)) for text in sentence[side]] for side in _SIDES},
            }
            for sentence in content["sentences"]
        ],
    }


def html_page(
    title: str, sections: Sequence[Section], *, summary: Sequence[Block] = (), footer: str = ""
) -> str:
    """Write a report as one HTML file: the same blocks give the same file.

    The page opens from a disk and may load nothing: its content security policy allows only the style and the script
    in it, by their hashes. Text, charts and tables are there without the script, which adds sorting, choices and the
    attention maps.

    Args:
        title: heading of the page.
        sections: its parts.
        summary: blocks below the heading.
        footer: a line at the end.

    Returns:
        The file.
    """
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    anchors = Anchors()
    # The script stands in the head, to set the theme before anything is painted.
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{escaped(title)}</title>",
        f"<style>{style}</style>",
        f"<script>{script}</script>",
        "</head>",
        '<body id="top">',
        '<a class="skip" href="#main">Skip to the content</a>',
        "<header>",
        f'<div class="head"><h1>{escaped(title)}</h1>'
        '<button type="button" class="theme" hidden>Theme: auto</button></div>',
        *(_block(block, title) for block in summary),
        "</header>",
    ]
    named = [_Part(section, anchors) for section in sections]
    parts += _contents(named)
    parts += [
        '<main id="main" tabindex="-1">',
        *(line for part in named for line in part.lines(2)),
        "</main>",
    ]
    if footer:
        parts.append(f"<footer><p>{escaped(footer)}</p></footer>")
    return "\n".join([*parts, "</body>", "</html>", ""])


class _Part:
    """A section and its anchor, which the contents and the heading share."""

    def __init__(self, section: Section, anchors: Anchors) -> None:
        self.section = section
        self.anchor = anchors.new(section.title)
        self.parts = [_Part(inner, anchors) for inner in section.sections]

    def lines(self, level: int) -> list[str]:
        heading = f"h{min(level, 6)}"
        return [
            f'<section id="{self.anchor}">',
            f"<{heading}>{escaped(self.section.title)}</{heading}>",
            *(_block(block, self.section.title) for block in self.section.blocks),
            *(line for part in self.parts for line in part.lines(level + 1)),
            "</section>",
        ]

    def entry(self) -> str:
        inner = f"<ol>{''.join(part.entry() for part in self.parts)}</ol>" if self.parts else ""
        return f'<li><a href="#{self.anchor}">{escaped(self.section.title)}</a>{inner}</li>'


def _contents(parts: Sequence[_Part]) -> list[str]:
    if not parts:
        return []
    # Open, so that it can be read without the script, which folds it on small screens.
    return [
        '<nav class="contents" aria-label="Contents"><details open><summary>Contents</summary>',
        f"<ol>{''.join(part.entry() for part in parts)}</ol>",
        "</details></nav>",
    ]


def _block(block: Block, heading: str) -> str:
    if isinstance(block, Text):
        kind = ' class="verdict"' if block.strong else ""
        return f"<p{kind}>{escaped(block.text)}</p>"
    if isinstance(block, Listing):
        return _listing(block, heading)
    if isinstance(block, LineChart):
        return line_chart(block)
    if isinstance(block, ScatterChart):
        return scatter_chart(block)
    if isinstance(block, AttentionMaps):
        return attention_maps(block)
    return table_html(block, heading)


def _listing(block: Listing, heading: str) -> str:
    # A first line end right after <pre> is not shown; one more keeps an empty first line.
    lines = "\n".join(escaped(line) for line in block.lines)
    text = scrolled(f"<pre>\n{lines}</pre>", block.title)
    if block.folded:
        return f'<details class="listing"><summary>{escaped(block.title)}</summary>{text}</details>'
    if block.title == heading:
        return f'<div class="listing">{text}</div>'
    return f'<figure class="listing"><figcaption>{escaped(block.title)}</figcaption>{text}</figure>'


def _asset(name: str) -> str:
    """Return a file of the page with the line ends that a browser makes of it, so that its hash fits."""
    text = resources.files(__package__).joinpath("assets", name).read_text("utf-8")
    return text.replace("\r\n", "\n")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


__all__ = ["html_page"]
