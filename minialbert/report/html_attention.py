"""Attention maps of a report page: their data, and the frame in which the script draws them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .blocks import AttentionMaps
from .html_markup import clean, escaped, json_script

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
