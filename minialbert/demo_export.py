"""The demo's end: the tuned student as one int8 file, the proof that it is the same model, and what it gains."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import PreTrainedModel

from .errors import MissingExtraError
from .task_models import load_tuned

_LENGTHS = (16, 128)
_TURNS = 15


def export_and_time(
    tuned: Path, output: Path, teacher: PreTrainedModel, tell: Callable[[Any], None]
) -> dict[str, Any]:
    """Export a tuned student to int8 and time it beside itself in PyTorch and beside its teacher.

    Args:
        tuned: directory of the tuned student.
        output: the folder of the export.
        teacher: the teacher's encoder.
        tell: receives what to show.

    Returns:
        Sizes, the proof of parity, and median milliseconds for one text by length.

    Raises:
        MissingExtraError: without onnx, onnxruntime or onnxscript.
    """
    try:
        from .export import export_onnx
        from .onnx_model import load_exported
    except ImportError as error:
        raise MissingExtraError(str(error.name), "demo", "the demo's export") from error
    from .onnx_parity import parity_line

    tell("Export: the tuned student as one ONNX file with int8 weights, each stored once.")
    record = export_onnx(str(tuned), output, precision="int8", overwrite=True)
    tell(f"Parity with PyTorch: {parity_line(record['parity'])}.")
    student, graph = load_tuned(str(tuned))[0], load_exported(output)[0]
    bytes_of = {
        "teacher, PyTorch fp32": 4 * teacher.num_parameters(),
        "student, PyTorch fp32": record["model"]["bytes"],
        "student, ONNX Runtime int8": record["bytes"],
    }
    milliseconds = median_latencies(dict(zip(bytes_of, (teacher, student, graph), strict=True)), _LENGTHS)
    table = Table("model", "bytes", *(f"ms, 1 x {length} tokens" for length in _LENGTHS), title="Latency")
    for name, size in bytes_of.items():
        table.add_row(
            name, f"{size / 1e6:.1f} MB", *(f"{value:.1f}" for value in milliseconds[name].values())
        )
    tell(table)
    return {
        "bytes": bytes_of,
        "parity": record["parity"],
        "milliseconds": {
            name: {str(length): round(value, 3) for length, value in values.items()}
            for name, values in milliseconds.items()
        },
    }


@torch.inference_mode()
def median_latencies(
    models: dict[str, torch.nn.Module], lengths: tuple[int, ...], *, turns: int = _TURNS
) -> dict[str, dict[int, float]]:
    """Return median milliseconds of one text by model and length, measured in turns.

    Args:
        models: take `input_ids` and `attention_mask`.
        lengths: tokens of the text.
        turns: how often each model runs.

    Returns:
        Milliseconds.
    """
    seconds: dict[str, dict[int, list[float]]] = {name: {length: [] for length in lengths} for name in models}
    for length in lengths:
        ids = torch.arange(1, length + 1).unsqueeze(0)
        mask = torch.ones_like(ids)
        for turn in range(turns + 1):
            for name, model in models.items():
                model.eval()
                started = time.perf_counter()
                model(input_ids=ids, attention_mask=mask)
                if turn:  # the first run of each is a warm-up
                    seconds[name][length].append(time.perf_counter() - started)
    return {
        name: {length: 1000 * statistics.median(values) for length, values in by_length.items()}
        for name, by_length in seconds.items()
    }
