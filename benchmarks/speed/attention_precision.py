"""What bf16 gains on this CPU: PyTorch's fused attention in bf16 and in fp32, and tuning steps with either.

    python benchmarks/speed/attention_precision.py --output results/bf16-attention

On a CPU `minialbert.method.fast.recording` attends in fp32 although the products around it are in bf16; this is why.
All variants of a shape take turns in one process; figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minialbert import MiniAlbertConfig, MiniAlbertForSequenceClassification
from minialbert.method.costs import measured_matmul_rate
from minialbert.method.fast.recording import route_attention
from minialbert.runs.device import autocast
from minialbert.runs.files import write_atomically
from minialbert.runs.records import write_result

SHAPES = ((32, 12, 16, 32), (32, 12, 48, 32), (16, 12, 128, 32), (16, 12, 128, 64))
KERNELS = ("fp32", "bf16", "bf16, attending in fp32")
MODEL = {
    "vocab_size": 30522,
    "embedding_size": 64,
    "hidden_size": 384,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "num_hidden_layers": 3,
    "adapter_reduction_factor": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,  # with dropout PyTorch has no fused kernel
}


def attend(shape: tuple[int, int, int, int], kernel: str) -> tuple[float, float]:
    """Return seconds of values and of gradients; B, H, T, D/H."""
    batch, heads, length, width = shape
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if kernel == "fp32" else torch.bfloat16
    inputs = [
        torch.randn(shape, generator=generator).to(dtype).transpose(1, 2).contiguous().requires_grad_()
        for _ in range(3)
    ]
    mask = torch.ones(batch, 1, length, length, dtype=torch.bool)
    mask[::2, :, :, -length // 8 :] = False
    started = time.perf_counter()
    given = [values.transpose(1, 2) for values in inputs]
    if kernel == KERNELS[2]:
        given = [values.float() for values in given]
    query, key, value = given
    attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).to(dtype)
    values = time.perf_counter()
    attended.backward(torch.ones_like(attended))
    return values - started, time.perf_counter() - values


def make_step(kernel: str, batch: int, length: int) -> Callable[[], float]:
    """Return one step of full tuning, which returns its seconds."""
    torch.manual_seed(0)
    model = MiniAlbertForSequenceClassification(MiniAlbertConfig(**MODEL)).train()
    if kernel == KERNELS[2]:
        route_attention(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(1000, 30000, (batch, length))
    mask = torch.ones_like(ids)
    mask[::2, -length // 8 :] = 0
    labels: Tensor = torch.randint(0, 2, (batch,))

    def step() -> float:
        started = time.perf_counter()
        with autocast("cpu", "fp32" if kernel == "fp32" else "bf16"):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    step()
    return step


def page(record: dict[str, Any]) -> str:
    """Return the page of a record."""
    metrics, fp32 = record["metrics"], []
    lines = ["| B, heads, T, head size | kernel | values, ms | gradients, ms |", "|---|---|---:|---:|"]
    for one in metrics["attention"]:
        values, gradients = (1000 * statistics.median(part) for part in zip(*one["seconds"], strict=True))
        shape = ", ".join(map(str, one["shape"]))
        lines.append(f"| {shape} | {one['kernel']} | {values:.1f} | {gradients:.1f} |")
    lines += ["", "| rows, tokens | a step of full tuning | ms | of fp32 |", "|---|---|---:|---:|"]
    for one in metrics["tuning"]:
        fp32 = one["seconds"] if one["kernel"] == "fp32" else fp32
        part = statistics.median(b / a for a, b in zip(fp32, one["seconds"], strict=True))
        milliseconds = 1000 * statistics.median(one["seconds"])
        lines.append(
            f"| {one['rows']}, {one['tokens']} | {one['kernel']} | {milliseconds:.0f} | {part:.2f} |"
        )
    return (
        "# bf16 on a CPU, and attention in it\n\n"
        f"`python benchmarks/speed/attention_precision.py --repeats {record['repeats']} --threads "
        f"{record['threads']}`: medians, variants take turns. This CPU multiplies matrices at "
        f"{metrics['gflops']['fp32']:.0f} GFLOP/s in fp32 and {metrics['gflops']['bf16']:.0f} in bf16; where the "
        "second is not the larger one, bf16 gains nothing but memory. Full tuning of a student of 3 iterations, 384 "
        "wide.\n\n" + "\n".join(lines) + "\n"
    )


def main() -> None:
    """Measure, and write record and page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("results/bf16-attention"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rates = {precision: measured_matmul_rate(precision) / 1e9 for precision in ("fp32", "bf16")}
    attention = []
    for shape in SHAPES:
        seconds: dict[str, list[tuple[float, float]]] = {kernel: [] for kernel in KERNELS}
        for _ in range(options.repeats):
            for kernel in KERNELS:
                seconds[kernel].append(attend(shape, kernel))
        for kernel, pairs in seconds.items():
            attention.append({"shape": shape, "kernel": kernel, "seconds": pairs})
    tuning = []
    for batch, length in ((32, 16), (32, 48), (16, 128)):
        steps = {kernel: make_step(kernel, batch, length) for kernel in KERNELS}
        times: dict[str, list[float]] = {kernel: [] for kernel in KERNELS}
        for _ in range(options.repeats):
            for kernel, step in steps.items():
                times[kernel].append(step())
        for kernel in KERNELS:
            tuning.append({"rows": batch, "tokens": length, "kernel": kernel, "seconds": times[kernel]})
    options.output.mkdir(parents=True, exist_ok=True)
    record = write_result(
        options.output / "result.json",
        {
            "kind": "bf16-attention",
            "task": None,
            "seed": 0,
            "model": MODEL,
            "repeats": options.repeats,
            "threads": options.threads,
            "metrics": {"gflops": rates, "attention": attention, "tuning": tuning},
        },
    )
    write_atomically(options.output / "README.md", page(record))
    sys.stdout.write(page(record))


if __name__ == "__main__":
    main()
