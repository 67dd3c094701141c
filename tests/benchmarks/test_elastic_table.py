"""The table of elastic runs, on records whose means and intervals are worked out by hand."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location(
        "elastic_table", ROOT / "benchmarks" / "pages" / "elastic_table.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write(folder, kind, task, seed, score, metric, shallow=None):
    target = folder / kind / f"{task}-{seed}"
    target.mkdir(parents=True)
    record = {
        "kind": "finetune",
        "score": score,
        "metric": metric,
        "split": "test",
        "seed": seed,
        "task": task,
    }
    if shallow is not None:
        record["metrics_by_depth"] = {"1": {"test": {metric: shallow}}}
    (target / "result.json").write_text(json.dumps(record))


@pytest.fixture
def runs(tmp_path):
    for seed, fixed, full, shallow in ((1, 0.50, 0.51, 0.48), (2, 0.60, 0.59, 0.58), (3, 0.70, 0.72, 0.68)):
        _write(tmp_path, "fixed", "my-ner", seed, fixed, "entity_f1")
        _write(tmp_path, "elastic", "my-ner", seed, full, "entity_f1", shallow)
    for seed, fixed in ((1, -0.01), (2, 0.02), (3, 0.0)):
        _write(tmp_path, "fixed", "cola", seed, fixed, "matthews_correlation")
        _write(tmp_path, "elastic", "cola", seed, fixed, "matthews_correlation", fixed)
    _write(tmp_path, "elastic", "stsb", 1, 0.2, "pearson_spearman", 0.1)  # a seed without its pair
    return tmp_path


def test_differences_are_paired_and_chance_is_left_out(script, runs):
    found = {task: pairs for task, pairs in script.read(runs).items() if pairs}
    assert set(found) == {"my-ner", "cola"}
    ner = script.summarise(found["my-ner"])
    # 50, 60, 70: sd 10, t of 2 degrees of freedom 4.3027.
    assert ner["fixed"] == {
        "mean": pytest.approx(60),
        "interval": pytest.approx(4.302653 * 10 / math.sqrt(3)),
    }
    # +1, -1, +2: mean 2/3, sd sqrt(7/3).
    wanted = {
        "mean": pytest.approx(2 / 3),
        "interval": pytest.approx(4.302653 * math.sqrt(7 / 3) / math.sqrt(3)),
    }
    assert ner["elastic_minus_fixed"]["2"] == wanted
    assert ner["depth_minus_full"]["1"]["mean"] == pytest.approx((-3 - 1 - 4) / 3)
    cola = script.summarise(found["cola"])
    assert cola["at_chance"] and not ner["at_chance"]
    mean = script.mean_of_tasks({"my-ner": ner, "cola": cola})
    assert mean["tasks"] == ["my-ner"] and mean["elastic_minus_fixed"]["2"] == wanted
    page = script.table({"tasks": {"cola": cola, "my-ner": ner}, "mean": mean})
    assert "| cola (at chance) | 3 |" in page
    assert "| **mean** | 3 | 60.00 ± 24.84 | 60.67 ± 26.33 |" in page
    assert "Mean over my-ner." in page
