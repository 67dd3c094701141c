"""The tables of measurements in docs/ are those of the records."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLES = {
    "performance.md": 8, "deployment.md": 5, "scaling.md": 4, "choosing-a-size.md": 3, "how-long.md": 2, "memory.md": 2,
    "comparison.md": 1, "serving.md": 1, "browser.md": 2, "annotations.md": 1, "tasks.md": 1,
}  # fmt: skip


@pytest.fixture
def script(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "pages")  # guide_tables
    spec = importlib.util.spec_from_file_location(
        "page", ROOT / "benchmarks" / "pages" / "performance_page.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in TABLES:
        shutil.copyfile(ROOT / "docs" / name, tmp_path / name)
    monkeypatch.setattr(module, "RESULTS", ROOT / "results")
    monkeypatch.setattr(module, "PAGES", tuple(tmp_path / name for name in TABLES))
    return module


def test_the_tables_are_those_of_the_records(script):
    before = [page.read_text() for page in script.PAGES]
    counts = [len(re.findall(r":begin -->\n+(?:[^<|]*\n)*\|", text)) for text in before]
    assert counts == list(TABLES.values())
    script.main()
    assert [page.read_text() for page in script.PAGES] == before


def test_a_changed_table_is_put_right(script):
    page = script.PAGES[0]
    before = page.read_text()
    page.write_text(before.replace("| plain |", "| slow |"))
    script.main()
    assert page.read_text() == before
