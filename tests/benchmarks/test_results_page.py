"""docs/results.md and the page in results/miniature are made from the records there."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

from minialbert.runs.packed import find_run_records, is_run_file, read_run_file

ROOT = Path(__file__).parents[2]
MINIATURE = ROOT / "results" / "miniature"


@pytest.fixture
def script(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "pages")
    module = importlib.import_module("results_page")
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


def test_no_record_names_a_folder_of_a_machine():
    records = find_run_records(MINIATURE / "cells")
    assert len(records) > 300
    logs = [file.with_name(name) for file in records for name in ("log.jsonl", "attention.json")]
    for file in [*records, *filter(is_run_file, logs)]:
        text = read_run_file(file)
        assert not any(f'"{root}/' in text for root in ("/home", "/work", "/tmp", "/root", "/data")), file
