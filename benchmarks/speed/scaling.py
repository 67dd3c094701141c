"""What a run of the paper's size takes on 1, 8 and 64 GPUs, and on 100 times the data: measured parts, then arithmetic.

    python benchmarks/speed/scaling.py --output results/scaling

Measured here: `order` (one position of a random order of 2.1 billion windows, against shuffling an array of them) and
`all-reduce` (both students' gradients between two processes over gloo on loopback, taking turns). Read from results/:
memory and tokens per second of a distillation step on a CPU, bytes of a log line, speed of `prepare`. Computed from the
operations per token and published rates of GPUs: `gpus` and `long-run`. No GPU was measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from minialbert import MiniAlbertConfig, MiniAlbertForMaskedLM
from minialbert.data.masking import permuted
from minialbert.method.costs import forward_flops_per_token, step_flops_per_token
from minialbert.runs.records import write_result

RESULTS = Path(__file__).resolve().parents[2] / "results"
WINDOWS, LENGTH, MASKED, BATCH = 21_000_000, 256, 0.15, 192  # the paper's: 5.4 billion tokens
TIMES = 100
EVAL_STEPS, EVAL_WINDOWS, LOGGING_STEPS = 1000, 512, 50  # defaults of a recipe
MOST_WINDOWS = 32768 // LENGTH  # of a forward pass on a GPU, as `minialbert distill` chooses it
# As their makers publish them: dense bf16 operations per second, bytes per second over NVLink in each direction.
GPUS = {"A100": (312e12, 300e9), "H100": (989e12, 450e9)}
UTILISATION = (0.5, 0.3)
PER_MACHINE, NETWORK = 8, 100e9 / 8
# GPUs, and windows per optimiser step: the paper's, and as many more as there are machines.
JOBS = ((1, BATCH), (8, BATCH), (64, BATCH), (64, 8 * BATCH))
BUCKET = 25 * 2**20  # bytes that DistributedDataParallel reduces at once
TURNS = 9
UNITS = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))


def students() -> dict[str, PreTrainedModel]:
    """Return the default recipe's student and one whose six layers have weights of their own, without memory."""
    common = {"vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 6}
    with torch.device("meta"):
        shared = MiniAlbertForMaskedLM(
            MiniAlbertConfig(
                embedding_size=128,
                adapter_reduction_factor=16,
                adapter_layer_norm=False,
                mlm_head="tied",
                **common,
            )
        )
        return {
            "MiniALBERT, rank 128": shared,
            "six layers of their own": BertForMaskedLM(BertConfig(**common)),
        }


def gradient_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of all gradients, fp32; a tensor that several layers use counts once."""
    return sum(4 * parameter.numel() for parameter in model.parameters())


def flops_per_token(model: PreTrainedModel) -> float:
    """Return the operations of a step per token, with BERT-base as the teacher."""
    return step_flops_per_token(model.config, BertConfig(), LENGTH, masked=MASKED, teacher_predicts=MASKED)


def ring_seconds(num_bytes: int, gpus: int, nvlink: float) -> float:
    """Return how long a ring all-reduce keeps its slowest link busy; latencies are not counted."""
    return ring_bytes(num_bytes, gpus) / (nvlink if gpus <= PER_MACHINE else NETWORK)


def ring_bytes(num_bytes: int, gpus: int) -> float:
    """Return the bytes that each process sends in a ring all-reduce."""
    return 2 * (gpus - 1) / gpus * num_bytes


def read(name: str) -> dict[str, Any]:
    """Return a record under results/."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def micro_batch(windows: int) -> int:
    """Return how many of a GPU's windows of a step go through the models at once."""
    return max(size for size in range(1, MOST_WINDOWS + 1) if windows % size == 0)


def memory_line() -> tuple[float, float]:
    """Return bytes that a step takes whatever its size, and bytes per token, from two measured sizes (fp32)."""
    peaks = read("distillation-step/memory/result.json")["metrics"]["peak_bytes"]
    small, large = peaks["8 × 256"]["fp32"], peaks["32 × 256"]["fp32"]
    slope = (large - small) / (24 * LENGTH)
    return small - slope * 8 * LENGTH, slope


def gpus() -> dict[str, Any]:
    """Return time, communication and memory of the paper's run by number of GPUs."""
    models, tokens = students(), WINDOWS * LENGTH
    fixed, per_token = memory_line()
    lines = [
        "| GPUs | windows per step, per GPU | tokens/s | 5.4 B tokens | all-reduce: MiniALBERT | of the step "
        "| all-reduce: own layers | of the step | memory per GPU |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    step = read("distillation-step/paper-8x256/result.json")
    rate = step["batch"] * step["length"] / statistics.median(step["metrics"]["seconds"]["fp32"])
    lines.append(
        f"| none: two CPU cores, measured | {step['batch']} | {rate:,.0f} | {time_range(tokens / rate)} | | | | "
        f"| {step['metrics']['peak_bytes']['fp32'] / 1e9:.1f} GB |"
    )
    rows = []
    for name, (peak, nvlink) in GPUS.items():
        for count, batch in JOBS:
            share = batch // count
            row: dict[str, Any] = {"gpu": name, "gpus": count, "batch": batch, "windows_per_gpu": share}
            for label, model in models.items():
                waits = ring_seconds(gradient_bytes(model), count, nvlink)
                works = [
                    batch * LENGTH * flops_per_token(model) / (count * peak * used) for used in UTILISATION
                ]
                row[label] = {
                    "all_reduce_seconds": waits,
                    "step_seconds": [work + waits for work in works],
                    "share": [waits / (work + waits) for work in works],
                    "tokens_per_second": [batch * LENGTH / (work + waits) for work in works],
                    "seconds_in_all": [tokens / (batch * LENGTH) * (work + waits) for work in works],
                }
            row["memory_bytes"] = fixed + per_token * micro_batch(share) * LENGTH
            rows.append(row)
            ours, own = (row[label] for label in models)
            cells = [
                f"{count} {name}",
                f"{batch:,}, {share}",
                " to ".join(f"{value:,.0f}" for value in reversed(rounded(ours["tokens_per_second"]))),
                time_range(*ours["seconds_in_all"]),
                *(
                    cell
                    for side in (ours, own)
                    for cell in (
                        (f"{1e3 * side['all_reduce_seconds']:.2g} ms", percent(sorted(side["share"])))
                        if count > 1
                        else ("", "")
                    )
                ),
                f"{row['memory_bytes'] / 1e9:.1f} GB",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return {
        "rows": rows,
        "flops_per_token": {label: flops_per_token(model) for label, model in models.items()},
        "gradient_bytes": {label: gradient_bytes(model) for label, model in models.items()},
        "assumed": {"gpus": GPUS, "utilisation": UTILISATION, "network_bytes_per_second": NETWORK},
        "memory": {"fixed_bytes": fixed, "bytes_per_token": per_token},
        "measured_tokens_per_second_cpu": rate,
        "table": lines,
    }


def order() -> dict[str, Any]:
    """Measure one position of a long random order, and shuffling an array as long as the paper's; CPU time."""
    count, asked = TIMES * WINDOWS, 200_000
    positions = np.random.default_rng(0).integers(0, count, asked).tolist()
    seconds = []
    for turn in range(5):
        started = time.process_time()
        for position in positions:
            permuted(position, count, seed=42, epoch=turn)
        seconds.append((time.process_time() - started) / asked)
    tracemalloc.start()
    for position in positions[:1000]:
        permuted(position, count, seed=42, epoch=9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    shuffles = []
    for turn in range(3):
        generator = np.random.Generator(np.random.Philox(turn))
        started = time.process_time()
        array = np.arange(WINDOWS, dtype=np.uint32)
        generator.shuffle(array)
        shuffles.append(time.process_time() - started)
    skips = []
    for _ in range(3):
        started = time.process_time()
        for _batch in BatchSampler(SequentialSampler(range(2_000_000)), 48, drop_last=False):
            pass
        skips.append((time.process_time() - started) / 2_000_000)
    each, whole, skip = (statistics.median(values) for values in (seconds, shuffles, skips))
    return {
        "windows": count,
        "seconds_per_index": seconds,
        "peak_bytes": peak,
        "shuffle_seconds_of_the_papers_windows": shuffles,
        "seconds_per_skipped_sample": skips,
        "table": [
            "| order of windows | at the start | per window | memory per process and epoch |",
            "|---|---|---|---|",
            f"| computed, 2.1 billion windows | none | {1e6 * each:.1f} µs | {peak / 1e3:.1f} kB |",
            f"| array shuffled, 21 million | {whole:.1f} s | | {4 * WINDOWS / 1e6:.0f} MB |",
            f"| array shuffled, 2.1 billion (computed) | {TIMES * whole:.0f} s or more | "
            f"| {4 * count / 1e9:.1f} GB |",
            f"| passing over windows on --resume | | {1e6 * skip:.2f} µs | |",
        ],
    }


def long_run(measured_order: dict[str, Any]) -> dict[str, Any]:
    """Return what grows with the length of a run, at the paper's size and at a hundred times as many windows."""
    lines = (RESULTS / "main-job/distilled/log.jsonl").read_text(encoding="utf-8").splitlines()
    line_bytes = statistics.median(len(line) + 1 for line in lines if '"kind": "training"' in line)
    prepared, speed = read("prepare/result.json")["metrics"]["10x"], read("prepare/speed.json")["metrics"]
    megabytes_per_core_second = speed["corpus_mb"] / statistics.median(speed["seconds"]["prepare, 2"]) / 2
    skip = statistics.median(measured_order["seconds_per_skipped_sample"])
    model = students()["MiniALBERT, rank 128"]
    forward = [forward_flops_per_token(c, LENGTH) for c in (model.config, BertConfig())]
    evaluation = {
        count: EVAL_WINDOWS * sum(forward) / (EVAL_STEPS * BATCH / count * flops_per_token(model))
        for count in (1, 8, 64)
    }
    rows = {
        "windows": [f"{n * WINDOWS / 1e6:,.0f} M" for n in (1, TIMES)],
        f"optimiser steps of {BATCH} windows": [f"{n * WINDOWS / BATCH / 1e3:,.0f} k" for n in (1, TIMES)],
        "windows on disk, at most": [
            f"{n * WINDOWS * LENGTH * prepared['bytes_per_token'] / 1e9:,.0f} GB" for n in (1, TIMES)
        ],
        "`log.jsonl`": [
            f"{n * WINDOWS / BATCH / LOGGING_STEPS * line_bytes / 1e6:,.1f} MB" for n in (1, TIMES)
        ],
        "a checkpoint's tensors": [f"{3 * gradient_bytes(model) / 1e6:,.0f} MB"] * 2,
        "passing over half of the samples on `--resume`": [
            f"{n * WINDOWS / 2 * skip:,.1f} s" for n in (1, TIMES)
        ],
    }
    return {
        "log_line_bytes": line_bytes,
        "prepare_megabytes_per_core_second": megabytes_per_core_second,
        "prepare_core_hours_per_terabyte": 1e6 / megabytes_per_core_second / 3600,
        "evaluation_share_of_training": evaluation,
        "rows": rows,
        "table": [
            "| | the paper's 21 M windows | 100 times as many |",
            "|---|---|---|",
            *(f"| {name} | {' | '.join(values)} |" for name, values in rows.items()),
        ],
    }


def all_reduce() -> dict[str, Any]:
    """Measure both students' gradients between two processes of this machine, over gloo."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        workers = [
            subprocess.Popen(
                [sys.executable, __file__, "--worker", str(rank), "--meeting", meeting],
                stdout=subprocess.PIPE,
            )
            for rank in range(2)
        ]
        answers = [worker.communicate(timeout=600)[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise SystemExit("a process of the all-reduce failed")
    seconds = json.loads(answers[0])
    sizes = {label: gradient_bytes(model) for label, model in students().items()}
    lines = ["| student | gradients | all-reduce, 2 processes, gloo on loopback |", "|---|---|---|"]
    for label, size in sizes.items():
        lines.append(f"| {label} | {size / 1e6:.1f} MB | {1e3 * statistics.median(seconds[label]):.0f} ms |")
    return {"seconds": seconds, "gradient_bytes": sizes, "bucket_bytes": BUCKET, "table": lines}


def work(rank: int, meeting: str) -> None:
    """Be one of two processes; the first prints seconds per all-reduce, students taking turns."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    sizes = {label: gradient_bytes(model) for label, model in students().items()}
    buckets = {
        label: [torch.ones(min(BUCKET, size - start) // 4) for start in range(0, size, BUCKET)]
        for label, size in sizes.items()
    }
    seconds: dict[str, list[float]] = {label: [] for label in sizes}
    for turn in range(TURNS + 1):
        for label, tensors in buckets.items():
            torch.distributed.barrier()
            started = time.perf_counter()
            handles = [torch.distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
            for handle in handles:
                handle.wait()
            if turn:
                seconds[label].append(time.perf_counter() - started)
            for tensor in tensors:
                tensor.fill_(1.0)
    torch.distributed.destroy_process_group()
    if rank == 0:
        sys.stdout.write(json.dumps(seconds))


def time_range(*seconds: float) -> str:
    """Return durations in the unit that suits the longest."""
    unit, size = next((unit, size) for unit, size in UNITS if max(seconds) >= 1.5 * size)
    return (
        " to ".join(
            f"{value / size:.2g}" if value < 100 * size else f"{value / size:.0f}" for value in seconds
        )
        + f" {unit}"
    )


def rounded(values: list[float]) -> list[float]:
    """Return figures of three digits: more would claim what was not measured."""
    return [float(f"{value:.3g}") for value in values]


def percent(shares: Any) -> str:
    """Return a range of shares."""
    return " to ".join(f"{100 * share:.2g}" for share in shares) + " %"


def main() -> None:
    """Measure, compute, print the tables and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, help="folder of the records")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--meeting", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.worker, options.meeting)
        return
    if options.output is None:
        parser.error("--output is needed")
    measured_order = order()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "order": lambda: measured_order,
        "all-reduce": all_reduce,
        "gpus": gpus,
        "long-run": lambda: long_run(measured_order),
    }
    for name, part in parts.items():
        metrics = part()
        record = {"kind": f"scaling-{name}", "task": None, "seed": 0, "model": None, "metrics": metrics}
        write_result(options.output / f"{name}.json", record)
        sys.stdout.write("\n".join(metrics["table"]) + "\n\n")


if __name__ == "__main__":
    main()
