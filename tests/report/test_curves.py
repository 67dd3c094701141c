"""Curves out of logs: every case is small enough to be read off the lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from minialbert.errors import UserError
from minialbert.report import curves
from minialbert.report.curves import held_out_curves, read_curves


def write_log(path: Path, *records: Any) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def training(step: int, **figures: Any) -> dict[str, Any]:
    return {"kind": "training", "step": step, **figures}


def test_loss_terms_by_step(tmp_path: Path) -> None:
    log = write_log(
        tmp_path / "log.jsonl",
        {"kind": "start", "step": 0, "notes": [], "metrics": {}},
        training(10, loss=3.0, loss_mlm=2.0, loss_hidden=1.0, learning_rate=1e-3, tokens_per_second=7.0),
        {"kind": "skipped", "step": 15, "skipped_steps": 1, "non_finite": ["mlm"], "window_ids": [3]},
        training(20, loss=2.5, loss_mlm=1.75, loss_hidden=0.75, grad_norm=1.0),
        {"kind": "evaluation", "step": 20, "eval_mlm_loss": 1.5},
    )
    assert read_curves(log) == {
        "loss": ((10.0, 3.0), (20.0, 2.5)),
        "loss_mlm": ((10.0, 2.0), (20.0, 1.75)),
        "loss_hidden": ((10.0, 1.0), (20.0, 0.75)),
    }


def test_later_lines_of_a_step_win_and_steps_rise(tmp_path: Path) -> None:
    log = write_log(
        tmp_path / "log.jsonl",
        training(10, loss=3.0),
        training(20, loss=9.0),
        training(30, loss=8.0),
        training(20, loss=2.0),
        training(5, loss=4.0),
    )
    assert read_curves(log) == {"loss": ((5.0, 4.0), (10.0, 3.0), (20.0, 2.0), (30.0, 8.0))}


def test_what_is_no_finite_number_is_left_out(tmp_path: Path) -> None:
    log = write_log(
        tmp_path / "log.jsonl",
        training(1, loss=float("nan"), loss_mlm=True, loss_hidden="low", loss_output=None),
        training(2, loss=1.0, loss_huge=10**400),
        training(3, loss=5.0),
        training(3, loss=float("inf")),
    )
    assert read_curves(log) == {"loss": ((2.0, 1.0),)}


def test_a_line_that_was_being_written_is_passed_over(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", training(1, loss=1.0))
    with log.open("a", encoding="utf-8") as file:
        file.write('{"kind": "training", "step": 2, "lo')
    assert read_curves(log) == {"loss": ((1.0, 1.0),)}


def test_held_out_measurements_of_a_distillation(tmp_path: Path) -> None:
    start = {"mlm_accuracy": 0.1, "cosine_1": 0.5, "masked_tokens": 90, "halves": [{"mlm_accuracy": 0.1}]}
    log = write_log(
        tmp_path / "log.jsonl",
        {"kind": "start", "step": 0, "metrics": {"teacher": {"mlm_accuracy": 0.6}, "student_start": start}},
        training(10, loss=3.0),
        {"kind": "evaluation", "step": 10, "eval_mlm_accuracy": 0.2, "eval_cosine_1": 0.7, "epoch": 0.5},
        {"kind": "evaluation", "step": 20, "eval_mlm_accuracy": 0.3, "eval_attention_kl_1": 1.5},
    )
    assert held_out_curves(log) == {
        "mlm_accuracy": ((0.0, 0.1), (10.0, 0.2), (20.0, 0.3)),
        "cosine_1": ((0.0, 0.5), (10.0, 0.7)),
        "attention_kl_1": ((20.0, 1.5),),
    }


def test_validation_of_a_tuning_has_the_metric_once(tmp_path: Path) -> None:
    log = write_log(
        tmp_path / "log.jsonl",
        {
            "kind": "evaluation",
            "step": 4,
            "eval_accuracy": 0.75,
            "eval_score": 0.75,
            "eval_metric": "accuracy",
        },
    )
    assert held_out_curves(log) == {"accuracy": ((4.0, 0.75),)}
    assert read_curves(log) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kind": "training", "step": 1}\nno json\n{}\n', "line 2 is no JSON"),
        ("[" * 100_000 + "\n{}\n", "line 1 is no JSON"),
        (b"\xff\xfe\x00\n{}\n", "line 1 is no JSON"),
        ("[1, 2]\n", r"line 1 holds \[1, 2\]"),
        ('{"kind": "training", "step": "one", "loss": 1.0}\n', "the step 'one'"),
        ('{"kind": "training", "loss": 1.0}\n', "the step None"),
        (f'{{"kind": "training", "step": {10**60}, "loss": 1.0}}\n', "the step 1000"),
        ('{"kind": "evaluation", "step": true, "eval_x": 1.0}\n', "the step True"),
    ],
)
def test_no_log(tmp_path: Path, text: str | bytes, message: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError, match=message) as raised:
        read_curves(log)
        held_out_curves(log)
    assert "\n" not in str(raised.value)


def test_strange_names_have_no_curve(tmp_path: Path) -> None:
    log = write_log(
        tmp_path / "log.jsonl",
        training(1, **{"loss": 1.0, "loss_<b>": 2.0, "loss_" + "x" * 500: 3.0, "loss_\n": 4.0}),
    )
    assert read_curves(log) == {"loss": ((1.0, 1.0),)}


def test_too_many_figures(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", training(1, **{f"loss_{i}": 1.0 for i in range(201)}))
    with pytest.raises(UserError, match="more than 200 figures"):
        read_curves(log)


def test_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write_log(tmp_path / "log.jsonl", training(1, loss=1.0))
    monkeypatch.setattr(curves, "_MOST_BYTES", log.stat().st_size - 1)
    with pytest.raises(UserError, match="has more than"):
        read_curves(log)


def test_missing_log_folder_and_pipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_curves(tmp_path / "log.jsonl")
    with pytest.raises(UserError, match="is not a file"):
        read_curves(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a file"):
        read_curves(tmp_path / "pipe")
