"""Each message that docs/troubleshooting.md quotes still stands in the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
# Fewer letters than this say nothing of a whole message, and fewer than that nothing of a part of one.
_WHOLE, _PART = 25, 10


@pytest.fixture(scope="module")
def templates():
    """The fixed parts of each string of the code, in order; None stands for a value between them."""
    found = set()
    files = [*(ROOT / "minialbert").rglob("*.py"), *(ROOT / "runtime" / "minialbert_runtime").rglob("*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            fixed = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            if any(isinstance(part, str) for part in fixed):
                found.add(tuple(part if isinstance(part, str) else None for part in fixed))
    return found


def _given(message: str, templates: set[tuple[str | None, ...]], least: int, end: str) -> bool:
    """Tell whether some string of the code with enough letters gives the message, behind what comes before a colon."""
    for template in templates:
        fixed = [part for part in template if part is not None]
        if sum(map(len, fixed)) >= least and all(part in message for part in fixed):
            wanted = "".join(".+" if part is None else re.escape(part) for part in template)
            if re.search(f"(?:^|: ){wanted}{end}", message):
                return True
    return False


def _stands(message: str, templates: set[tuple[str | None, ...]]) -> bool:
    """Tell whether the code gives a message: one string of it, or one for each part between semicolons."""
    return _given(message, templates, _WHOLE, "") or all(
        _given(part, templates, _PART, "$") or _given(f"; {part}", templates, _PART, "$")
        for part in message.split("; ")
    )


def test_every_message_of_the_page_stands_in_the_code(templates):
    messages = [
        line
        for block in re.findall(r"```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(messages) >= 20
    assert [message for message in messages if not _stands(message, templates)] == []


def test_a_message_that_has_changed_is_found(templates):
    message = "the windows are 256 tokens long, but the teacher takes at most 64: prepare them with --window-length 64"
    assert _stands(message, templates)
    assert not _stands(message.replace("takes at most", "reads at most"), templates)
    assert not _stands("--set: distill.hiden_weight: unknown name; did you mean hidden_weight?", templates)
