"""What an export costs: trace, quantisation and the comparison of graph and model, in CPU seconds.

    python benchmarks/speed/export_time.py --tokenizer TEACHER --output results/export-time

A classifier of each shape with random weights. Other processes on the machine change CPU time less than the clock.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from distillation_step import machine

from minialbert.data.tokenizers import load_tokenizer
from minialbert.deploy.bench_models import build_model, parse_models
from minialbert.deploy.onnx.export import export_onnx
from minialbert.runs.records import write_result
from minialbert.tasks.models import TaskInputs, save_tuned

SHAPES = ("minialbert-128", "distilbert")  # as in minialbert bench
PRECISIONS = ("fp32", "int8")


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True, help="directory or hub id, of at most 30,522 entries")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    arguments = parser.parse_args()
    metrics: dict[str, dict[str, dict[str, float]]] = {shape: {} for shape in SHAPES}
    with tempfile.TemporaryDirectory() as folder:
        for shape, found in metrics.items():
            tuned = Path(folder) / shape
            inputs = TaskInputs("export-time", "single-label", "accuracy", 128, 32)
            tokenizer = load_tokenizer(arguments.tokenizer)
            save_tuned(build_model(parse_models([shape])[0]).model, tokenizer, inputs, tuned)
            for precision in PRECISIONS:
                seconds, cpu = [], []
                for turn in range(arguments.repeats):
                    started, used = time.perf_counter(), time.process_time()
                    export_onnx(str(tuned), Path(folder) / f"{shape}-{precision}-{turn}", precision=precision)
                    seconds.append(time.perf_counter() - started)
                    cpu.append(time.process_time() - used)
                found[precision] = {"seconds": statistics.median(seconds), "cpu": statistics.median(cpu)}
    record = {"kind": "export-time", "metrics": metrics, "repeats": arguments.repeats, "machine": machine()}
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_result(arguments.output / "result.json", record)
    print(metrics)


if __name__ == "__main__":
    main()
