"""Every relative link and anchor of the pages at the top, in docs/ and in results/ leads somewhere."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "results").glob("*/*.md")),
]


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "tools" / "site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that a forge and the site both give the headings of a page, and names of the API reference."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = set(re.findall(r"^::: (\S+)", text, re.MULTILINE))
    for heading in re.findall(r"^#+ +(.*)", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower().strip()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


def dead_links(page: Path, site) -> list[str]:
    text, place = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    targets = [link["target"] for link in site.links(text)]
    pictures = re.findall(r"<(?:img|source)[^>]* (?:src|srcset)=\"([^\"]+)\"", text)
    dead = []
    for target in targets + pictures:
        file, anchor = site.target_of(target, place)
        if file == f"docs/{site.COMMANDS}" and place.startswith("docs/"):  # made when the site is built
            continue
        there = (ROOT / file).exists()
        if not there or (anchor and file.endswith(".md") and anchor not in anchors(ROOT / file)):
            dead.append(target)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_link_is_dead(page, site):
    assert dead_links(page, site) == []


def test_a_dead_link_is_found(site, tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "a.md"
    page.write_text(
        "# One `two`, three\n[a](a.md#one-two-three) [b](#four) [c](gone.md)\n"
        '`[d](code.md)` [e](https://x.invalid) <img alt="f" src="f.svg">\n```\n[g](code.md)\n```\n'
        "![h](h.png) [over\ntwo lines](two.md) [`i`](i.md#x)\n"
    )
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    monkeypatch.setattr(site, "ROOT", tmp_path)
    assert dead_links(page, site) == ["#four", "gone.md", "h.png", "two.md", "i.md#x", "f.svg"]


def test_every_page_is_in_the_navigation():
    navigation = set(re.findall(r"[\w/-]+\.(?:md|ipynb)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    pages = {
        file.relative_to(ROOT / "docs").as_posix()
        for kind in ("md", "ipynb")
        for file in (ROOT / "docs").rglob(f"*.{kind}")
    }
    assert pages <= navigation
