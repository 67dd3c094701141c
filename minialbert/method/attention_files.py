"""The file of attention maps: written, checked, read, and what its rows share; without PyTorch."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from minialbert.errors import UserError
from minialbert.runs.files import write_json
from minialbert.runs.packed import packed
from minialbert.runs.untrusted import record_from_plain

FORMAT_VERSION = 1
MAX_TOKENS = 48
MOST_SENTENCES, MOST_LETTERS = 20, 1_000  # of 24 layers and 16 heads, 47 MB
_MOST_BYTES = 64 * 2**20


def row_overlap(maps: dict[str, Any]) -> list[float]:
    """Return how far the rows of student and teacher agree, one figure between 0 and 1 per iteration.

    It is what two distributions share, 1 - total variation, so 1 for equal rows and 0 for rows that look at different
    tokens; the mean over rows, then heads, then sentences. Where the numbers of heads differ, rows are averaged over
    heads first. What maps keep of a probability, 8 bits, is normalised to rows of sum 1 again.
    """
    averaged = maps["teacher_heads"] != maps["student_heads"]

    def rows_of(side: str, sentence: dict[str, Any], index: int) -> np.ndarray:
        heads = maps[f"{side}_heads"]
        rows = decode_map(sentence[side][index], heads, len(sentence["tokens"])).astype(np.float64)
        rows /= np.maximum(rows.sum(-1, keepdims=True), 1)
        return rows.mean(0, keepdims=True) if averaged else rows

    figures = []
    for index in range(len(maps["layer_map"])):
        pairs = [[rows_of(side, one, index) for side in ("teacher", "student")] for one in maps["sentences"]]
        figures.append(float(np.mean([np.minimum(*pair).sum(-1).mean() for pair in pairs])))
    return figures


def decode_map(encoded: str, heads: int, tokens: int) -> np.ndarray:
    """Return one map as uint8 (heads, tokens, tokens), probabilities times 255; ValueError if it is none."""
    return np.frombuffer(base64.b64decode(encoded, validate=True), np.uint8).reshape(heads, tokens, tokens)


def write_attention_maps(path: str | Path, maps: dict[str, Any]) -> None:
    """Write maps as JSON; a crash leaves either the old file or the new one."""
    write_json(Path(path), maps, indent=None)


def read_attention_maps(path: str | Path) -> dict[str, Any]:
    """Return the maps in a file, every field of which has been checked; texts and names may hold any characters.

    Raises UserError, naming the file and the field that no version of this program writes.
    """
    path = Path(path)
    try:
        content = packed(path)
        if content is None and not path.is_file():
            raise UserError(f"{path} is not a file: expected the attention maps of a run (attention.json)")
        if content is None:
            # Not by the size that the system tells, which a growing or a special file does not have.
            with path.open("rb") as file:
                content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    if len(content) > _MOST_BYTES:
        raise UserError(f"{path} is larger than {_MOST_BYTES // 2**20} MB: attention maps are not")
    try:
        maps = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not JSON") from error
    try:
        _check_fields(record_from_plain(_Maps, maps))
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise UserError(f"{path} holds no attention maps of this program: {reason}") from error
    assert isinstance(maps, dict)
    return maps


_Name = Annotated[str, Field(max_length=1_000)]
_Heads = Annotated[int, Field(ge=1, le=1_000)]
_Layers = Field(min_length=1, max_length=1_000)


@dataclass(frozen=True)
class _Sentence:
    """One sentence as the file has it."""

    text: Annotated[str, Field(min_length=1, max_length=MOST_LETTERS)]
    tokens: Annotated[list[_Name], Field(min_length=1, max_length=MAX_TOKENS)]
    teacher: Annotated[list[str], _Layers]
    student: Annotated[list[str], _Layers]


@dataclass(frozen=True)
class _Maps:
    """What the file has, before maps are compared with the counts beside them."""

    format_version: Annotated[int, Field(ge=FORMAT_VERSION, le=FORMAT_VERSION)]  # a Literal takes True for 1
    teacher: _Name
    student: _Name
    layer_map: Annotated[list[Annotated[int, Field(ge=1, le=1_000)]], _Layers]
    teacher_heads: _Heads
    student_heads: _Heads
    sentences: Annotated[list[_Sentence], Field(min_length=1, max_length=MOST_SENTENCES)]


def _check_fields(maps: _Maps) -> None:
    """Raise ValueError for values of the right types that do not fit each other."""
    iterations = len(maps.layer_map)
    for number, sentence in enumerate(maps.sentences):
        sides = (sentence.teacher, maps.teacher_heads), (sentence.student, maps.student_heads)
        for side, (encoded, heads) in zip(("teacher", "student"), sides, strict=True):
            place = f"sentences.{number}.{side}"
            if len(encoded) != iterations:
                raise ValueError(f"{place}: {len(encoded)} maps, and layer_map has {iterations} iterations")
            for index, text in enumerate(encoded):
                _check_map(f"{place}.{index}", text, heads * len(sentence.tokens) ** 2)


def _check_map(place: str, encoded: str, size: int) -> None:
    letters = 4 * -(-size // 3)
    if len(encoded) != letters:
        raise ValueError(
            f"{place}: {len(encoded):,} letters, and {letters:,} are {size:,} bytes (heads x tokens x tokens) in base64"
        )
    try:
        found = len(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError):
        raise ValueError(f"{place}: it is not base64") from None
    if found != size:
        raise ValueError(f"{place}: {found:,} bytes, not {size:,} (heads x tokens x tokens)")
