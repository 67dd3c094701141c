"""Tokens that a step computes with padded and with packed windows.

    python benchmarks/speed/padding.py --data windows/ --output results/padding

Batches are those of a run: windows in the order of a seed, padded to the longest of a batch or packed into rows of
that length.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from minialbert.data.masking import MaskedLanguageModelCollator, ShuffledWindows
from minialbert.data.packing import PackedCollator
from minialbert.data.tokenizers import load_tokenizer
from minialbert.data.window_store import WindowDataset
from minialbert.runs.files import write_atomically
from minialbert.runs.records import write_result

BATCHES = (8, 16, 32)


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    lines = ["| batch | tokens | padded | packed | packed of padded |", "|---|---|---|---|---|"]
    for batch, counts in record["metrics"].items():
        cells = " | ".join(f"{value:,}" for value in counts.values())
        lines.append(f"| {batch} | {cells} | {counts['packed'] / counts['padded']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Count, print a table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="a folder made by prepare")
    parser.add_argument("--windows", type=int, default=4096, help="how many to look at")
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    options = parser.parse_args()
    windows = WindowDataset(options.data, "train")
    padding = MaskedLanguageModelCollator(load_tokenizer(options.data / "tokenizer"))
    packing = PackedCollator(padding)
    samples = ShuffledWindows(windows, options.windows, seed=0)
    metrics = {}
    for batch in BATCHES:
        counts = {"tokens": 0, "padded": 0, "packed": 0}
        for start in range(0, options.windows - batch + 1, batch):
            examples = [samples[index] for index in range(start, start + batch)]
            padded = padding(examples)
            counts["tokens"] += int(padded["attention_mask"].sum())
            counts["padded"] += padded["input_ids"].numel()
            counts["packed"] += packing(examples)["input_ids"].numel()
        metrics[str(batch)] = counts
    options.output.mkdir(parents=True, exist_ok=True)
    record = {
        "kind": "padding",
        "task": None,
        "seed": 0,
        "model": None,
        "window_length": windows.window_length,
        "metrics": metrics,
    }
    write_result(options.output / "result.json", record)
    write_atomically(options.output / "table.md", table(record))
    sys.stdout.write(table(record))


if __name__ == "__main__":
    main()
