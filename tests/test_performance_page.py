"""The tables of docs/performance.md are those of the records."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def script(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("page", ROOT / "benchmarks" / "performance_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shutil.copyfile(ROOT / "docs" / "performance.md", tmp_path / "performance.md")
    monkeypatch.setattr(module, "RESULTS", ROOT / "results")
    monkeypatch.setattr(module, "PAGE", tmp_path / "performance.md")
    return module


def test_the_tables_are_those_of_the_records(script):
    before = script.PAGE.read_text()
    assert len(re.findall(r":begin -->\n\|", before)) == 7
    script.main()
    assert script.PAGE.read_text() == before


def test_a_changed_table_is_put_right(script):
    before = script.PAGE.read_text()
    script.PAGE.write_text(before.replace("| plain |", "| slow |"))
    script.main()
    assert script.PAGE.read_text() == before
