"""The site of `make docs`: no link is dead, every page has its place, and no page loads anything from elsewhere."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

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


def test_the_page_of_recipes_lists_recipes_and_keys_as_they_are(site):
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert page == site.with_reference(page), "docs/recipes.md is out of date: run `make docs`"


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


def test_every_page_is_in_the_navigation_and_the_other_way_round(site):
    navigation = set(re.findall(r"[\w/-]+\.(?:md|ipynb)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    pages = {
        file.relative_to(ROOT / "docs").as_posix()
        for kind in ("md", "ipynb")
        for file in (ROOT / "docs").rglob(f"*.{kind}")
    }
    assert pages <= navigation
    assert {page for page in navigation - pages if not page.startswith("tutorials/")} == {
        site.COMMANDS,
        *site.PLACES.values(),
    }


def test_the_page_of_commands_has_every_verb_with_its_options_and_examples(site):
    page = site.command_line()
    verbs = "prepare distill finetune evaluate predict calibrate export bench report attention convert demo"
    for verb in (*verbs.split(), "convert-data", "recipes ls", "suite run"):
        assert f"\n## minialbert {verb}\n" in page
    distill = page.partition("## minialbert distill\n")[2].partition("\n## ")[0]
    assert "```bash\nminialbert distill --teacher" in distill
    assert "| `--steps NUMBER` | Length in optimiser steps." in distill
    runtime = page.partition("## minialbert-runtime\n")[2]
    assert "| `--threads THREADS` | threads of one run" in runtime and "| `TEXT` |" in runtime
    assert "| `--max-bytes NUMBER` |" in runtime.partition("## minialbert-runtime serve\n")[2]
    assert "SUPPRESS" not in page


def test_links_lead_to_where_files_stand_in_the_site(site):
    there = {"tasks.md", "contributing.md", "results/soak/README.md", "results/miniature/report.html"}
    files = SimpleNamespace(get_file_from_path=lambda path: path if path in there else None)

    def written(page: str, text: str) -> str:
        return site.on_page_markdown(text, SimpleNamespace(file=SimpleNamespace(src_uri=page)), None, files)

    assert written("reference/index.md", "[a](../tasks.md#words) [b](../../CONTRIBUTING.md)") == (
        "[a](../tasks.md#words) [b](../contributing.md)"
    )
    assert written("contributing.md", "[a](docs/tasks.md) [b](LICENSE) `[c](LICENSE)`") == (
        "[a](tasks.md) b `[c](LICENSE)`"
    )
    assert written("tasks.md", "[a](../results/miniature/report.md)") == "[a](results/miniature/report.html)"
    assert written("tasks.md", "[a](../results/soak) [b](gone.md) [c](#words)") == (
        "[a](results/soak/README.md) [b](gone.md) [c](#words)"
    )
    assert "pip install" in written("index.md", "<!-- README: Install -->")


def test_a_page_that_loads_from_another_machine_fails_the_build(site, tmp_path):
    mkdocs = pytest.importorskip("mkdocs.exceptions")
    config = SimpleNamespace(site_dir=str(tmp_path))
    (tmp_path / "a.html").write_text('<a href="https://x.invalid">x</a><img src="data:,"><script src="a.js">')
    site.on_post_build(config)
    for tag in ('<script src="https://x.invalid/a.js">', '<link rel="stylesheet" href="//x.invalid/a.css">'):
        (tmp_path / "b.html").write_text(tag)
        with pytest.raises(mkdocs.PluginError, match=r"b\.html would load (https:)?//x\.invalid"):
            site.on_post_build(config)
