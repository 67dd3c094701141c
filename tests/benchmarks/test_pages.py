"""Pages beside records are those that their scripts write from these records today."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {
    "four_bits": "four-bits",
    "optimiser": "optimiser",
    "regression_start": "regression-start",
    "sharing_screening": "sharing",
    "task_distillation": "task-distillation",
    "tuning_rate": "tuning-rate",
}


@pytest.fixture
def script(monkeypatch):
    """Return a script of benchmarks by folder and name, at home where it is run."""

    def load(folder, name):
        monkeypatch.chdir(ROOT)
        monkeypatch.syspath_prepend(ROOT / "benchmarks" / folder)
        return importlib.import_module(name)

    return load


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_made_from_its_records(name, script):
    path = ROOT / "results" / PAGES[name] / "README.md"
    assert path.read_text(encoding="utf-8") == script("pages", name).page(), f"run benchmarks/pages/{name}.py"


def test_the_table_of_emulated_processors_is_made_from_its_record(script):
    folder = ROOT / "results" / "emulation"
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    written = script("quality", "emulated").table(record["rows"], record["processors"])
    assert (folder / "table.md").read_text(encoding="utf-8") == written
