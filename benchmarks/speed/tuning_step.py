"""Adapter-tuning against full fine-tuning: time per step, interleaved in one process, and peak memory of each.

    python benchmarks/speed/tuning_step.py --output results/tuning-step

Two geometries, both from a configuration alone (the time of a step does not depend on the weights): the paper's
(768 wide, 6 iterations, rank 128) and the small one (384 wide, 3 iterations). A step is forward, backward, clipping
and AdamW. Peak memory is that of a process of its own per mode, above what it held before the model was built.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from minialbert import MiniAlbertConfig, MiniAlbertForSequenceClassification
from minialbert.method.adapters import count_parameters, freeze_all_but_adapters
from minialbert.runs.device import peak_memory_mb
from minialbert.runs.files import write_atomically
from minialbert.runs.machine import keep_freed_memory
from minialbert.runs.records import write_result

GEOMETRIES = {
    "paper": {
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "num_hidden_layers": 6,
    },
    "small": {
        "hidden_size": 384,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "num_hidden_layers": 3,
    },
}
MODES = ("full", "adapters")


def make_step(geometry: str, mode: str, batch: int, length: int) -> tuple[Callable[[], None], str]:
    """Return one training step, and how many parameters it trains."""
    torch.manual_seed(0)
    config = MiniAlbertConfig(
        vocab_size=30522, embedding_size=128, adapter_reduction_factor=16, **GEOMETRIES[geometry]
    )
    model = MiniAlbertForSequenceClassification(config).train()
    counted = freeze_all_but_adapters(model) if mode == "adapters" else count_parameters(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1000, 30000, (batch, length), generator=generator)
    labels = torch.randint(0, 2, (batch,), generator=generator)

    def step() -> None:
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, f"{counted.trainable:,} of {counted.total:,}"


def measure_times(geometry: str, batch: int, length: int, repeats: int) -> dict[str, dict[str, object]]:
    """Return per mode the seconds of each step, modes taking turns."""
    steps = {mode: make_step(geometry, mode, batch, length) for mode in MODES}
    for step, _ in steps.values():
        step()
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(repeats):
        for mode, (step, _) in steps.items():
            started = time.perf_counter()
            step()
            seconds[mode].append(time.perf_counter() - started)
    return {mode: {"seconds": seconds[mode], "trained_parameters": steps[mode][1]} for mode in MODES}


def peak_bytes(geometry: str, mode: str, batch: int, length: int) -> int:
    """Return the memory that three steps need, measured in this process."""
    before = peak_memory_mb()
    step, _ = make_step(geometry, mode, batch, length)
    for _ in range(3):
        step()
    return round((peak_memory_mb() - before) * 1e6)


def page(record: dict[str, Any]) -> str:
    """Return the page of a record."""
    lines = [
        "| geometry | mode | trained parameters | ms per step (median) | ratio | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for geometry, timed in record["metrics"].items():
        for mode in MODES:
            ratio = f"{timed['median_ratio']:.2f}x" if mode == "adapters" else "1"
            milliseconds, peak = (
                1000 * statistics.median(timed[mode]["seconds"]),
                timed[mode]["peak_bytes"] / 1e6,
            )
            counts = timed[mode]["trained_parameters"]
            lines.append(f"| {geometry} | {mode} | {counts} | {milliseconds:.0f} | {ratio} | {peak:.0f} MB |")
    batch, length, repeats = (record[name] for name in ("batch", "length", "repeats"))
    return (
        "# A step of adapter-tuning beside a step of full fine-tuning\n\n"
        f"`python benchmarks/speed/tuning_step.py --batch {batch} --length {length} --repeats {repeats}`: batch "
        f"{batch} × {length} tokens, fp32, {record['machine']['threads']} threads; the two modes take turns in one "
        "process, the ratio is the median of the pairs. Peak memory: what a process needs above what it held before "
        "the model was built.\n\n" + "\n".join(lines) + "\n"
    )


def main() -> None:
    """Measure, print a table and write record and page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("results/tuning-step"))
    parser.add_argument("--peak-of", nargs=2, metavar=("GEOMETRY", "MODE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        sys.stdout.write(str(peak_bytes(*options.peak_of, options.batch, options.length)))
        return
    keep_freed_memory()
    metrics: dict[str, dict[str, object]] = {}
    for geometry in GEOMETRIES:
        timed = measure_times(geometry, options.batch, options.length, options.repeats)
        ratios = [f / a for f, a in zip(timed["full"]["seconds"], timed["adapters"]["seconds"], strict=True)]
        for mode in MODES:
            command = [
                sys.executable,
                __file__,
                "--batch",
                str(options.batch),
                "--length",
                str(options.length),
            ]
            answer = subprocess.run(
                [*command, "--peak-of", geometry, mode], capture_output=True, text=True, check=True
            )
            timed[mode]["peak_bytes"] = int(answer.stdout)
        metrics[geometry] = {**timed, "median_ratio": statistics.median(ratios), "ratios": ratios}
    options.output.mkdir(parents=True, exist_ok=True)
    record = write_result(
        options.output / "result.json",
        {
            "kind": "tuning-step",
            "task": None,
            "metrics": metrics,
            "seed": 0,
            "model": {"geometries": GEOMETRIES, "embedding_size": 128, "adapter_reduction_factor": 16},
            "batch": options.batch,
            "length": options.length,
            "repeats": options.repeats,
        },
    )
    write_atomically(options.output / "README.md", page(record))
    ratios = {name: values["median_ratio"] for name, values in metrics.items()}
    sys.stdout.write(json.dumps(ratios) + "\n" + page(record))


if __name__ == "__main__":
    main()
