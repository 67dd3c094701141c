"""Pages beside records are those that their scripts write from these records today."""

from __future__ import annotations

import importlib
import json
import re
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


def test_the_guide_to_tuning_has_the_figures_of_these_pages():
    guide = " ".join((ROOT / "docs" / "tasks.md").read_text(encoding="utf-8").split())
    rates, adapters = (
        (ROOT / "results" / name / "README.md").read_text(encoding="utf-8") for name in ("tuning-rate", "optimiser")
    )  # fmt: skip
    cells = [
        line.strip("| ").split(" | ") for line in (rates + adapters).splitlines() if line.startswith("| ")
    ]
    low, high = ("fp32", "0.0001"), ("bf16", "0.0003")
    mean = {tuple(row[:5]): row[6] for row in cells if row[1] == "student-64"}
    for task in ("NCBI-disease", "CoLA"):
        both = (mean[task, "student-64", "full", *how] for how in (low, high))
        assert f"{next(both)} on {task} at 1e-4 (fp32) and {next(both)} at 3e-4 (bf16)" in guide
    first = {row[4]: row[7][3:].split(",")[0] for row in cells if row[:2] == ["CoLA", "teacher"]}  # of seed 1
    assert f"gets {first['0.0001']} on CoLA at 1e-4 and {first['0.0003']} at 3e-4 (one seed)" in guide
    cola, stsb, whole = re.search(
        r"CoLA (\S+), .* STS-B (\S+); over these 4 tasks (\S+)\.\n", adapters
    ).groups()
    assert f"{whole} points as the mean of four tasks, from {stsb} on STS-B to {cola} on CoLA" in guide
    share = re.search(r"`--adapters`: (\S+ % of its weights)", adapters)[1]
    assert f"the adapters of `english-4mb`, {share}, reach" in guide
    (behind,) = (row[7].removeprefix("1: -") for row in cells if row[:2] == ["MRPC", "adamw"])
    assert f"{behind} points behind on MRPC (one seed)" in guide


def test_the_table_of_emulated_processors_is_made_from_its_record(script):
    folder = ROOT / "results" / "emulation"
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    written = script("quality", "emulated").table(record["rows"], record["processors"])
    assert (folder / "table.md").read_text(encoding="utf-8") == written
