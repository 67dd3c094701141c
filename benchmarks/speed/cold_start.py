"""From nothing to the first answer: a new process of the runtime without torch, beside one of PyTorch.

    python benchmarks/speed/cold_start.py --tokenizer TEACHER --output results/cold-start

A classifier of the paper's size with random weights, in PyTorch and exported to int8. Wall seconds of whole commands,
in turns, files in the page cache: medians, least and most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from distillation_step import machine

from minialbert.data.tokenizers import load_tokenizer
from minialbert.deploy.bench_models import build_model, parse_models
from minialbert.deploy.onnx.export import export_onnx
from minialbert.runs.files import write_atomically
from minialbert.runs.records import write_result
from minialbert.tasks.models import TaskInputs, save_tuned

SHAPE = "minialbert-128"  # as in minialbert bench
TEXT = "A mutation that causes cystic fibrosis was found."


def measure(tuned: str, exported: str, repeats: int) -> dict[str, list[float]]:
    """Return seconds of each command, run after run."""
    python = sys.executable
    commands = {
        "minialbert-runtime, exported": [python, "-m", "minialbert_runtime", exported, TEXT],
        "minialbert predict, exported": [python, "-m", "minialbert", "predict", "--model", exported, TEXT],
        "minialbert predict, PyTorch": [python, "-m", "minialbert", "predict", "--model", tuned, TEXT],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(repeats + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            elapsed = time.perf_counter() - started
            json.loads(answer)
            if turn:
                seconds[name].append(elapsed)
    return seconds


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    size = f"model of {record['bytes'] / 1e6:.1f} MB"
    lines = [f"| first answer of a new process, {size} | seconds | least | most |", "|---|---|---|---|"]
    for name, seconds in record["seconds"].items():
        figures = " | ".join(f"{seconds[one]:.2f}" for one in ("median", "min", "max"))
        lines.append(f"| {name} | {figures} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write the record and its table, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True, help="directory or hub id, of at most 30,522 entries")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tuned, exported = Path(folder) / "tuned", Path(folder) / "exported"
        model = build_model(parse_models([SHAPE])[0]).model
        inputs = TaskInputs("cold-start", "single-label", "accuracy", 128, 32)
        save_tuned(model, load_tokenizer(arguments.tokenizer), inputs, tuned)
        size = export_onnx(str(tuned), exported, precision="int8")["bytes"]
        seconds = measure(str(tuned), str(exported), arguments.repeats)
    metrics = {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in seconds.items()
    }
    record = {
        "kind": "cold-start",
        "model": SHAPE,
        "bytes": size,
        "seconds": metrics,
        "repeats": arguments.repeats,
        "machine": machine(),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_result(arguments.output / "result.json", record)
    write_atomically(arguments.output / "table.md", table(record))
    print(table(record))


if __name__ == "__main__":
    main()
