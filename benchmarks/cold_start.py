"""From nothing to the first answer: a new process of the runtime without torch, beside one of PyTorch.

    python benchmarks/cold_start.py --model tuned/model --exported exported/ --output results/cold-start

Wall seconds of whole commands, in turns, files in the page cache: medians, least and most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from distillation_step import machine

from minialbert.runs import display_name, write_atomically, write_result

TEXT = "A mutation that causes cystic fibrosis was found."


def main() -> None:
    """Measure, write the record and its table, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a tuned model")
    parser.add_argument("--exported", required=True, help="its export")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    arguments = parser.parse_args()
    python = sys.executable
    commands = {
        "minialbert-runtime, exported": [python, "-m", "minialbert_runtime", arguments.exported, TEXT],
        "minialbert predict, exported": [
            python,
            "-m",
            "minialbert",
            "predict",
            "--model",
            arguments.exported,
            TEXT,
        ],
        "minialbert predict, PyTorch": [
            python,
            "-m",
            "minialbert",
            "predict",
            "--model",
            arguments.model,
            TEXT,
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(arguments.repeats + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            elapsed = time.perf_counter() - started
            json.loads(answer)
            if turn:
                seconds[name].append(elapsed)
    metrics = {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in seconds.items()
    }
    size = (Path(arguments.exported) / "model.onnx").stat().st_size
    record = {
        "kind": "cold-start",
        "model": display_name(arguments.model),
        "bytes": size,
        "seconds": metrics,
        "repeats": arguments.repeats,
        "machine": machine(),
    }
    lines = [
        f"| first answer of a new process, model of {size / 1e6:.1f} MB | seconds | least | most |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {v['median']:.2f} | {v['min']:.2f} | {v['max']:.2f} |" for name, v in metrics.items()
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_result(arguments.output / "result.json", record)
    write_atomically(arguments.output / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
