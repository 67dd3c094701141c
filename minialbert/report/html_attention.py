"""Attention maps of a report page: their data, checked, and the frame in which the script draws them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError
from .blocks import AttentionMaps
from .html_markup import clean, escaped, json_script

FORMAT_VERSION = 1
_SIDES = ("teacher", "student")


def attention_maps(block: AttentionMaps) -> str:
    """Write the maps of some runs.

    Args:
        block: the maps.

    Returns:
        Markup with the data; equal maps, such as those of one teacher, are in it once.

    Raises:
        UserError: if the maps of a run do not have the documented form.
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
    where = f"attention maps of run {name}"
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{where}: expected format_version {FORMAT_VERSION}, got {version!r}: record them again with this version"
        )
    heads = {side: _count(content.get(f"{side}_heads"), f"{side}_heads", where) for side in _SIDES}
    layers = _list(content.get("layer_map"), "layer_map", where)
    for layer in layers:
        _count(layer, "a layer of layer_map", where)
    sentences = _list(content.get("sentences"), "sentences", where)
    return {
        "name": clean(name),
        **{side: clean(_text(content.get(side), side, where)) for side in _SIDES},
        "layers": layers,
        "heads": [heads[side] for side in _SIDES],
        "sentences": [
            _sentence(sentence, heads, len(layers), f"{where}, sentence {number}", pool)
            for number, sentence in enumerate(sentences, 1)
        ],
    }


def _sentence(
    sentence: Any, heads: Mapping[str, int], iterations: int, where: str, pool: dict[str, int]
) -> dict[str, Any]:
    if not isinstance(sentence, Mapping):
        raise _unfit(where, "an object with text, tokens, teacher and student", sentence)
    tokens = [_text(token, "a token", where) for token in _list(sentence.get("tokens"), "tokens", where)]
    found: dict[str, Any] = {
        "text": clean(_text(sentence.get("text"), "text", where)),
        "tokens": [clean(token) for token in tokens],
    }
    for side in _SIDES:
        maps = _list(sentence.get(side), side, where)
        if len(maps) != iterations:
            raise UserError(
                f"{where}: expected {iterations} maps of the {side}, one per entry of layer_map, got {len(maps)}: "
                "record them again"
            )
        size = heads[side] * len(tokens) ** 2
        for number, text in enumerate(maps, 1):
            _check_map(text, size, f"{where}, {side}, iteration {number}")
        found[side] = [pool.setdefault(text, len(pool)) for text in maps]
    return found


def _check_map(text: Any, size: int, where: str) -> None:
    try:
        got = len(base64.b64decode(text, validate=True)) if isinstance(text, str) else -1
    except (binascii.Error, ValueError):
        got = -1
    if got < 0:
        raise UserError(f"{where}: expected base64 of heads x tokens x tokens bytes, got something else")
    if got != size:
        raise UserError(
            f"{where}: expected {size} bytes (heads x tokens x tokens), got {got}: record the maps again"
        )


def _list(value: Any, what: str, where: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise _unfit(where, f"{what} to be a list with at least one entry", value)
    return value


def _count(value: Any, what: str, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _unfit(where, f"{what} to be a whole number above zero", value)
    return value


def _text(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str):
        raise _unfit(where, f"{what} to be text", value)
    return value


def _unfit(where: str, expected: str, value: Any) -> UserError:
    # The value may be large: its type tells enough, but for numbers.
    shown = repr(value) if isinstance(value, int | float | None) else type(value).__name__
    return UserError(f"{where}: expected {expected}, got {shown}: record the maps again")
