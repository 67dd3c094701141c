"""Hostile inputs, and the hunt that feeds them to a reader: it must accept or refuse, and nothing else."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from minialbert.errors import UserError

FAST, SLOW = 30, 2_000
# Every property runs in two tiers: a few inputs that are the same every time, and thousands that are not.
tiers = pytest.mark.parametrize(
    "examples",
    [
        pytest.param(FAST, id="fast"),
        pytest.param(SLOW, id="slow", marks=[pytest.mark.slow, pytest.mark.timeout(1_800)]),
    ],
)

LONGEST_MESSAGE = 600
MOST_SECONDS = 10.0  # of computing; a machine that is busy with something else does not count


def hunt(
    reader: str,
    examples: int,
    inputs: SearchStrategy[Any],
    read: Callable[[Any], object],
    *,
    folder: Path | None = None,
    contract: tuple[type[Exception], ...] = (UserError,),
    shrink: bool = True,
) -> None:
    """Give a reader hostile inputs; print how many it accepted and refused.

    Args:
        reader: what the printed line calls it.
        examples: at least so many inputs.
        inputs: where they come from.
        read: calls the reader and checks what it returns.
        folder: whose path does not count as part of a message.
        contract: what a refusal may be.
        shrink: look for the smallest input that fails; not where a call takes long.
    """
    tally: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        derandomize=examples < SLOW,
        database=None,
        deadline=None,  # wall time; the check below counts what this process computes
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        phases=[phase for phase in Phase if shrink or phase not in (Phase.shrink, Phase.explain)],
    )
    @given(inputs)
    def attack(value: Any) -> None:
        start = time.process_time()
        try:
            read(value)
            outcome = "accepted"
        except contract as error:
            _check_message(str(error), folder)
            outcome = "refused"
        seconds = time.process_time() - start
        assert seconds < MOST_SECONDS, f"{reader} took {seconds:.1f} s"
        tally[outcome] += 1

    attack()
    accepted, refused = tally["accepted"], tally["refused"]
    sys.stdout.write(f"fuzz {reader}: {accepted + refused} inputs, {accepted} accepted, {refused} refused\n")
    assert accepted + refused >= examples
    if examples >= SLOW:  # a reader that takes everything, or nothing, was not put to the test
        assert accepted and refused


def _check_message(message: str, folder: Path | None) -> None:
    message = message.replace(str(folder), "") if folder else message
    # Printable means: no line end of any kind, no control character, no half of a surrogate pair.
    assert message.isprintable(), repr(message)
    assert 10 <= len(message) <= LONGEST_MESSAGE, f"{len(message)} characters: {message}"


# Bytes

SPICE: tuple[bytes, ...] = (
    b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1b[31m", b"\x07", b"\x7f",
    "\u2028".encode(), "\u2029".encode(), "\u0085".encode(), "\u00a0".encode(), "\u202e".encode(),
    "\u200d".encode(), "\u0301".encode(), "\U0001f600".encode(), b"\x0b", b"\x0c", b"\x1c",
    b"\t", b" ", b"\n", b"\r", b"\r\n", b"\n\n", b",", b";", b'"', b'""', b"'", b"|", b"\\", b"#", b"-",
    b"\\ud800", b'"\\udfff\\n\\u0000"', b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"0.5",
    b"9" * 5_000, b"0x" + b"f" * 5_000, b"x" * 5_000, b"\n" * 500, b"[" * 3_000, b'{"a":' * 3_000, b"a, " * 500,
    b"{}", b"[]", b"[1, 2]", b'{"start": 0}', b"B-", b"I-", b"O", b"B-X", b"I-Y", b"S-X", b"-DOCSTART-", b"%s{}",
    b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"BZh9", b"PK\x03\x04",
)  # fmt: skip

_Step = tuple[str, int, int, bytes]


def mutated(samples: Sequence[bytes], *, most_steps: int = 4) -> SearchStrategy[bytes]:
    """Return samples with up to a few changes, and now and then bytes that were never a sample."""
    position = st.integers(0, 2**16 - 1)
    step = st.tuples(st.sampled_from(sorted(_CHANGES)), position, position, st.sampled_from(SPICE))
    changed = st.builds(_changed, st.sampled_from(list(samples)), st.lists(step, max_size=most_steps))
    return st.one_of(changed, changed, changed, changed, st.binary(max_size=200), st.sampled_from(SPICE))


def _changed(content: bytes, steps: Sequence[_Step]) -> bytes:
    for change, one, other, spice in steps:
        at, to = (sorted((one, other))[i] * (len(content) + 1) >> 16 for i in (0, 1))
        content = _CHANGES[change](content, at, to, spice)
    return content[:200_000]


def _flip(content: bytes, at: int, to: int, spice: bytes) -> bytes:
    return (
        content[:at] + bytes([content[at] ^ (1 << to % 8)]) + content[at + 1 :] if content[at:] else content
    )


def _wide(content: bytes, at: int, to: int, spice: bytes) -> bytes:
    return content.decode("utf-8", "replace").encode("utf-16")


def _lines(change: Callable[[list[bytes], int], list[bytes]]) -> Callable[[bytes, int, int, bytes], bytes]:
    def changed(content: bytes, at: int, to: int, spice: bytes) -> bytes:
        return b"\n".join(change(content.split(b"\n"), content.count(b"\n", 0, at)))

    return changed


_CHANGES: dict[str, Callable[[bytes, int, int, bytes], bytes]] = {
    "insert": lambda content, at, to, spice: content[:at] + spice + content[at:],
    "insert again": lambda content, at, to, spice: (
        content[:at] + spice + content[at:to] + spice + content[to:]
    ),
    "replace": lambda content, at, to, spice: content[:at] + spice + content[at + len(spice) :],
    "replace a part": lambda content, at, to, spice: content[:at] + spice + content[to:],
    "in front": lambda content, at, to, spice: spice + content,
    "at the end": lambda content, at, to, spice: content + spice,
    "flip": _flip,
    "cut": lambda content, at, to, spice: content[:at],
    "cut the front": lambda content, at, to, spice: content[at:],
    "take out": lambda content, at, to, spice: content[:at] + content[at + to % 16 :],
    "twice": lambda content, at, to, spice: content[:to] + content[at:],
    "CRLF": lambda content, at, to, spice: content[:at] + content[at:].replace(b"\n", b"\r\n"),
    "CR": lambda content, at, to, spice: content[:at] + content[at:].replace(b"\n", b"\r"),
    "spaces": lambda content, at, to, spice: content[:at] + content[at:].replace(b"\t", b" "),
    "tabs": lambda content, at, to, spice: content[:at] + content[at:].replace(b" ", b"\t"),
    "UTF-16": _wide,
    "first line": _lines(lambda lines, at: lines[:1]),
    "without a line": _lines(lambda lines, at: lines[:at] + lines[at + 1 :]),
    "line twice": _lines(lambda lines, at: [*lines[: at + 1], *lines[at:]]),
    "line first": _lines(lambda lines, at: [lines[at], *lines]),
}


# Values, as JSON holds them

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 2**64, 10**30, 10**400, -(10**30), 0.5, -0.0, 1e308, 1e-320,
    float("nan"), float("inf"), float("-inf"), "", " ", "0", "1", "x", "O", "\n", "a\nb", "\x1b[31mred", "\0",
    "\ud800", "\u2028", "\u202e", "x" * 5_000, "../../x", "/", "~", "~nobody-at-all/x", "*", "hub:", "NaN", "true",
    [], [[]], [0], [1, 2], [-1], ["a", "b"], ["x", None], [True], [1.5], ["\n"], {}, {"a": 1}, {"0": "A"}, {"": ""},
    {"\n": "\n"}, [{}], [None], ["x" * 5_000], {"x" * 5_000: 1},
)  # fmt: skip


def values() -> SearchStrategy[Any]:
    """Return what JSON can spell: hostile values, and random ones."""
    text = st.text(st.characters(), max_size=20)
    scalar = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text)
    nested = st.recursive(
        scalar,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=5,
    )
    return st.one_of(st.sampled_from(VALUES), st.sampled_from(VALUES), nested)


def mutated_values(sample: Any, *, most_changes: int = 3) -> SearchStrategy[Any]:
    """Return a copy of nested values in which a few places hold something else, more, or nothing."""
    places = list(_places(sample, ()))
    change = st.tuples(
        st.sampled_from(places), st.sampled_from(("set", "set", "drop", "add", "wrap")), values()
    )
    return st.builds(_with_changes, st.just(json.dumps(sample)), st.lists(change, max_size=most_changes))


def _places(value: Any, path: tuple[Any, ...]) -> Any:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:30]:
        yield from _places(inner, (*path, key))


def _with_changes(sample: str, changes: Sequence[tuple[tuple[Any, ...], str, Any]]) -> Any:
    root = [json.loads(sample)]
    for path, how, shared in changes:
        owner: Any = root
        value = copy.deepcopy(shared)  # the same list in two places, one in the other, would be a circle
        try:
            for key in (0, *path)[:-1]:
                owner = owner[key]
            key = (0, *path)[-1]
            if how == "drop" and path:
                del owner[key]
            elif how == "add" and isinstance(owner[key], dict):
                owner[key]["x" if value is None else str(value)[:50]] = value
            elif how == "add" and isinstance(owner[key], list):
                owner[key].append(value)
            elif how == "wrap":
                owner[key] = [owner[key]]
            else:
                owner[key] = value
        except (LookupError, TypeError):  # an earlier change took the place away
            continue
    return root[0]


def spelled(value: Any) -> bytes:
    """Return values as a JSON file holds them, NaN and halves of surrogate pairs included."""
    return json.dumps(value).encode()


def mutated_json(sample: Any) -> SearchStrategy[bytes]:
    """Return JSON with other values, and JSON whose bytes were changed."""
    changed = st.builds(spelled, mutated_values(sample))
    return st.one_of(changed, changed, changed, mutated([spelled(sample)]))


# What people type

NAMES = st.one_of(
    st.sampled_from([value for value in VALUES if isinstance(value, str)]),
    st.text(st.characters(), max_size=30),
    st.sampled_from(["x/" * 3_000, "[", "a*[", "**", "-", "--", "owner/name:x:y:z", ".", "..", "a b"]),
)
