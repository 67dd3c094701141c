"""Rates of the matrix products that a layer of the paper's size consists of, and of other ways to compute them.

    python benchmarks/speed/matrix_products.py --output results/matrix-products

GFLOP/s, medians of repeats in which all variants take turns. 2,048 tokens, 768 wide.
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
from distillation_step import machine
from torch import nn

from minialbert.runs.files import write_atomically
from minialbert.runs.records import write_result

TOKENS, WIDTH, WIDE = 2048, 768, 3072
ITERATIONS = 6
Variant = tuple[float, Callable[[], object]]


def variants() -> dict[str, Variant]:
    """Return operations and function of each variant."""
    torch.manual_seed(0)
    narrow, wide = torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, WIDE)
    square, up, down = torch.randn(WIDTH, WIDTH), torch.randn(WIDE, WIDTH), torch.randn(WIDTH, WIDE)
    bias, wide_bias = torch.randn(WIDTH), torch.randn(WIDE)
    joined = torch.randn(3 * WIDTH, WIDTH)
    three = [torch.randn(WIDTH, WIDTH) for _ in range(3)]
    inputs = [torch.randn(TOKENS, WIDTH) for _ in range(ITERATIONS)]
    gradients = [torch.randn(TOKENS, WIDE) for _ in range(ITERATIONS)]
    linear = nn.functional.linear
    small, large = 2.0 * TOKENS * WIDTH**2, 2.0 * TOKENS * WIDTH * WIDE
    found: dict[str, Variant] = {
        "768 to 768": (small, lambda: linear(narrow, square, bias)),
        "768 to 3072": (large, lambda: linear(narrow, up, wide_bias)),
        "3072 to 768": (large, lambda: linear(wide, down, bias)),
    }
    transposed = down.t().contiguous().t()
    found["3072 to 768, weights stored transposed"] = (large, lambda: linear(wide, transposed, bias))
    found["3072 to 768, bias added apart"] = (large, lambda: linear(wide, down).add_(bias))
    half = [values.bfloat16() for values in (narrow, up, wide_bias)]
    found["768 to 3072, bf16"] = (large, lambda: linear(*half))
    found["queries, keys and values, three products"] = (
        3 * small,
        lambda: [linear(narrow, weight) for weight in three],
    )
    found["queries, keys and values, one product"] = (3 * small, lambda: linear(narrow, joined))

    def apart() -> torch.Tensor:
        total = gradients[0].t() @ inputs[0]
        for gradient, values in zip(gradients[1:], inputs[1:], strict=True):
            total += gradient.t() @ values
        return total

    found["weight gradient of six iterations, one product each"] = (ITERATIONS * large, apart)
    found["weight gradient of six iterations, one product of all"] = (
        ITERATIONS * large,
        lambda: torch.cat(gradients).t() @ torch.cat(inputs),
    )
    return found


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    rates = record["metrics"]["gflops_per_second"]
    lines = ["| product, 2,048 tokens | GFLOP/s |", "|---|---|"]
    lines += [f"| {name} | {statistics.median(values):.0f} |" for name, values in rates.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print a table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    options = parser.parse_args()
    chosen = variants()
    rates: dict[str, list[float]] = {name: [] for name in chosen}
    for turn in range(options.repeats + 1):
        for name, (operations, function) in chosen.items():
            started = time.perf_counter()
            function()
            if turn:  # the first warms up
                rates[name].append(operations / (time.perf_counter() - started) / 1e9)
    options.output.mkdir(parents=True, exist_ok=True)
    record = {
        "kind": "matrix-products",
        "task": None,
        "seed": 0,
        "model": None,
        "machine": machine(),
        "metrics": {"gflops_per_second": rates},
    }
    write_result(options.output / "result.json", record)
    write_atomically(options.output / "table.md", table(record))
    sys.stdout.write(table(record))


if __name__ == "__main__":
    main()
