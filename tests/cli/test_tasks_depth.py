"""Running models less deep from the command line: the verb that calibrates, and the options of the others."""

from __future__ import annotations

import json
import shutil

import pytest
import typer
from typer.testing import CliRunner

from minialbert.cli.tasks import calibrate


def test_a_dry_run_then_a_threshold_in_the_config(tuned, tmp_path):
    app = typer.Typer()
    app.command()(calibrate)
    folder, data = tmp_path / "copy", tuned("classification").data
    shutil.copytree(tuned("classification").model, folder)
    common = ["--model", str(folder), "--data", str(data), "--split", "validation", "--max-drop", "30"]
    shown = CliRunner().invoke(app, [*common, "--dry-run"], catch_exceptions=False)
    assert shown.exit_code == 0
    for part in ("threshold", "accuracy", "full depth", "100%", "nothing is written"):
        assert part in shown.output
    done = CliRunner().invoke(app, [*common, "--json"], catch_exceptions=False)
    record = json.loads(done.stdout)
    assert record["written"]
    assert f"exit_threshold {record['exit_threshold']:g}" in shown.output
    assert json.loads((folder / "config.json").read_text())["exit_threshold"] == record["exit_threshold"]


def test_evaluate_and_predict_at_another_depth(call, refuse, tuned):
    made = tuned("classification")
    evaluating = ("evaluate", "--model", made.model, "--data", made.data)
    status, out, _ = call(*evaluating, "--num-iterations", 1, "--json")
    assert status == 0
    shallow = json.loads(out)
    assert shallow["num_iterations"] == 1
    status, out, _ = call(*evaluating, "--exit-threshold", 0.5)
    assert status == 0
    assert "test: 1.00 iterations per input on average, at threshold 0.5" in out
    assert f"{shallow['score']:.4f}" in out
    assert "above 0 and up to 1, found 2.0" in refuse(*evaluating, "--exit-threshold", 2)
    predicting = ("predict", "--model", made.model, "the king")
    results = []
    for options in (("--num-iterations", 1), ("--exit-threshold", 0.5), ()):
        status, out, _ = call(*predicting, *options)
        assert status == 0
        results.append(json.loads(out)["score"])
    assert results[0] == pytest.approx(results[1], abs=1e-6)
    assert results[0] != pytest.approx(results[2], abs=1e-6)
    assert "expected at least 1, found 0" in refuse(*predicting, "--num-iterations", 0)
