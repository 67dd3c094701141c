"""Peak memory of a distillation step by batch and window length, with rows compared as they are made and in the open.

    python benchmarks/speed/distillation_memory.py --output results/distillation-step/memory

Paper geometry, fp32, each case in a process of its own, whole batches (no micro-batches).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from distillation_step import GEOMETRIES, machine, peak_in_process

from minialbert.runs.files import write_atomically
from minialbert.runs.records import write_result

MODES = ("fp32", "open-rows")
# The batch of the target, and the same 2,048 tokens in ever longer windows.
CASES = ((32, 256), (16, 128), (8, 256), (4, 512), (2, 1024))


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    lines = ["| batch × length | rows compared as they are made | rows kept |", "|---|---|---|"]
    for name, peaks in record["metrics"]["peak_bytes"].items():
        lines.append(f"| {name} | {' | '.join(f'{peaks[mode] / 1e6:,.0f} MB' for mode in MODES)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print a table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.geometry = "paper"
    peaks: dict[str, dict[str, int]] = {}
    for options.batch, options.length in CASES:
        case = peaks[f"{options.batch} × {options.length}"] = {
            mode: peak_in_process(mode, options) for mode in MODES
        }
        sys.stderr.write(f"{options.batch} × {options.length}: {case}\n")
    options.output.mkdir(parents=True, exist_ok=True)
    record = {
        "kind": "distillation-memory",
        "task": None,
        "seed": 0,
        "model": GEOMETRIES["paper"],
        "machine": machine(),
        "metrics": {"peak_bytes": peaks},
    }
    write_result(options.output / "result.json", record)
    write_atomically(options.output / "table.md", table(record))


if __name__ == "__main__":
    main()
