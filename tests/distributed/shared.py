"""What jobs train on, and when two logs tell of the same training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_tiny_task
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerBase


def write_inputs(folder: Path, windows: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Write windows, tokenizer, a teacher and a task into a folder, and return it."""
    shutil.copytree(windows, folder / "windows")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = BertForMaskedLM(
            BertConfig(
                vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
                intermediate_size=64, max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
    for name in ("teacher", "tokenizer"):
        tokenizer.save_pretrained(folder / name)
    teacher.save_pretrained(folder / "teacher")
    write_tiny_task(folder / "task", "classification")
    return folder


def logged(record: dict[str, Any]) -> dict[str, float]:
    """The figures of a record but for those of the clock; the epoch is rounded."""
    left_out = ("step", "epoch", "tokens_per_second", "eval_runtime")
    return {k: v for k, v in record.items() if isinstance(v, float) and k not in left_out}


def assert_same_log(one: list[dict[str, Any]], other: list[dict[str, Any]], tolerance: float) -> None:
    assert [(record["step"], sorted(record)) for record in one] == [
        (record["step"], sorted(record)) for record in other
    ]
    for record, expected in zip(other, one, strict=True):
        assert logged(record) == pytest.approx(logged(expected), rel=tolerance, abs=1e-12), record["step"]
