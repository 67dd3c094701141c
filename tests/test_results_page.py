"""docs/results.md and the page in results/miniature are made from the records there."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MINIATURE = ROOT / "results" / "miniature"


@pytest.fixture
def script(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "benchmarks" / "results_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shutil.copytree(
        MINIATURE, tmp_path / "miniature", ignore=shutil.ignore_patterns("*.html", "*.md", "*.csv")
    )
    monkeypatch.setattr(module, "RESULTS", tmp_path / "miniature")
    monkeypatch.setattr(module, "PAGE", tmp_path / "results.md")
    monkeypatch.setattr(module, "README", Path(shutil.copy(ROOT / "README.md", tmp_path)))
    return module


def test_pages_and_tables_are_those_of_the_records(script):
    script.main()
    assert script.PAGE.read_text(encoding="utf-8") == (ROOT / "docs" / "results.md").read_text(
        encoding="utf-8"
    )
    assert script.README.read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8")
    made = {path.name for path in script.RESULTS.iterdir() if path.suffix in (".md", ".html", ".csv")}
    assert {"report.md", "report.html", "claims.csv", "distillation.csv"} <= made
    for name in made:
        assert (script.RESULTS / name).read_bytes() == (MINIATURE / name).read_bytes(), name


def test_the_table_of_starts_is_that_of_its_record(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = importlib.import_module("low_rank_start")
    folder = ROOT / "results" / "low-rank-start"
    made = script.table(json.loads((folder / "result.json").read_text(encoding="utf-8"))["ranks"])
    assert made == (folder / "table.md").read_text(encoding="utf-8")
    assert made in (ROOT / "docs" / "method.md").read_text(encoding="utf-8")


def test_the_table_of_word_matching_is_that_of_its_record(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = importlib.import_module("word_matching")
    folder = ROOT / "results" / "block-start"
    made = script.table(json.loads((folder / "matching.json").read_text(encoding="utf-8"))["models"])
    assert made == (folder / "matching.md").read_text(encoding="utf-8")


def test_no_record_names_a_folder_of_a_machine():
    records = sorted((MINIATURE / "cells").rglob("*.json*"))
    assert records
    for file in records:
        text = file.read_text(encoding="utf-8")
        assert not any(f'"{root}/' in text for root in ("/home", "/work", "/tmp", "/root", "/data")), file
