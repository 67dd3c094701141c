"""The fenced blocks of README.md and docs/, as a reader meets them: page by page, in order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXECUTED = ("bash", "python")
# Output, rows of data, files: nothing that anybody would run.
SHOWN = ("js", "text", "json", "yaml", "mermaid", "nginx", "dockerfile")
_FENCE = re.compile(
    r"(?:^[ ]*<!-- not run: (?P<reason>[^>]+?) -->\n+)?"
    r"^(?P<indent>[ ]*)```(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: the path of its page, from the root of the repository.
        line: where its fence begins, from 1.
        language: what its fence names first; "" where it names nothing.
        title: the file that a reader is to save it as, None for a block that is run.
        reason: why it is not run, None where it is.
        code: what stands in it.
    """

    page: str
    line: int
    language: str
    title: str | None
    reason: str | None
    code: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.language in EXECUTED and self.title is None and self.reason is None


def pages() -> list[str]:
    """Return the pages, README first."""
    docs = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", *docs]


def blocks_of(page: str) -> list[Block]:
    """Return the blocks of a page, in order."""
    return parsed(page, (ROOT / page).read_text(encoding="utf-8"))


def parsed(page: str, text: str) -> list[Block]:
    """Return the blocks of a text."""
    found = []
    for match in _FENCE.finditer(text):
        info, indent = match["info"].strip(), len(match["indent"])
        title = _TITLE.search(info)
        code = "".join(line[indent:] if line.strip() else line for line in match["code"].splitlines(True))
        language = info.split(" ")[0] if info else ""
        line = text.count("\n", 0, match.start("indent")) + 1
        found.append(Block(page, line, language, title and title[1], match["reason"], code))
    return found
