"""What early exit saves on a whole development set, in wall time, and what it costs.

    python benchmarks/speed/early_exit_time.py --model RUN/model --task sst2 --data DIR --output results/early-exit

The model's config has an exit_threshold (minialbert calibrate). Full depth, every fixed depth and early exit take
turns; medians. Batches of 32, longest inputs first, PyTorch fp32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from distillation_step import machine

from minialbert.errors import display_name
from minialbert.recipes.schema import TaskRecipe
from minialbert.runs.files import write_atomically
from minialbert.runs.records import write_result
from minialbert.tasks.evaluate import input_reading, label_ids, task_of_model
from minialbert.tasks.models import load_tuned
from minialbert.tasks.predictions import evaluate_split, make_collator


def measure(name: str, recipe: TaskRecipe, split: str, repeats: int, batch_size: int) -> dict[str, Any]:
    """Return score, mean iterations and seconds of each way to run the model."""
    model, tokenizer, inputs = load_tuned(name)
    threshold, depth = model.config.exit_threshold, model.config.num_hidden_layers
    if threshold is None:
        sys.exit(f"{name} has no exit_threshold: run minialbert calibrate first")
    model.config.exit_threshold = None
    task = task_of_model(recipe, inputs, model, name, split)
    reading, _ = input_reading(recipe, inputs, model, task, name)
    rows = task.splits[split]
    lengths = {key: reading[key] for key in ("max_length", "overlap")}
    encoded = task.type.encode(rows, tokenizer, task, **lengths)
    collator, order = make_collator(task, tokenizer), label_ids(model, task, name)
    ways: dict[str, dict[str, Any]] = {f"{depth} iterations": {}}
    ways |= {f"{k} iterations": {"num_iterations": k} for k in range(depth - 1, 0, -1)}
    ways["early exit"] = {"exit_threshold": threshold}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, dict[str, Any]] = {}
    for turn in range(repeats + 1):
        for way, options in ways.items():
            started = time.perf_counter()
            result = evaluate_split(
                model, rows, encoded, task, collator, order=order, batch_size=batch_size, **options
            )
            if turn:
                seconds[way].append(time.perf_counter() - started)
            found[way] = {"score": result.metrics[task.metric], "mean_iterations": result.mean_iterations}
    full = statistics.median(seconds[f"{depth} iterations"])
    for way, values in seconds.items():
        median = statistics.median(values)
        found[way] |= {"seconds": round(median, 4), "speed": round(full / median, 4)}
        found[way]["mean_iterations"] = found[way]["mean_iterations"] or int(way.split()[0])
    return {
        "task": task.name,
        "metric": task.metric,
        "split": split,
        "rows": len(rows),
        "exit_threshold": threshold,
        "batch_size": batch_size,
        "repeats": repeats,
        "ways": found,
    }


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    lines = [
        f"| {record['task']}, {record['split']} | {record['metric']} | mean iterations | seconds | speed |"
    ]
    lines.append("|---|---|---|---|---|")
    for way, row in record["ways"].items():
        shown = f"{way} (threshold {record['exit_threshold']:.4f})" if way == "early exit" else way
        figures = f"{100 * row['score']:.2f} | {row['mean_iterations']:.2f} | {row['seconds']:.2f}"
        lines.append(f"| {shown} | {figures} | {row['speed']:.2f}x |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write the record and its table, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a tuned model with an exit_threshold")
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    arguments = parser.parse_args()
    recipe = TaskRecipe(name=arguments.task, data=arguments.data)
    measured = measure(arguments.model, recipe, arguments.split, arguments.repeats, arguments.batch_size)
    record = {
        "kind": "early-exit",
        **measured,
        "model": display_name(arguments.model),
        "threads": torch.get_num_threads(),
        "machine": machine(),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    record = write_result(arguments.output / "result.json", record)
    write_atomically(arguments.output / "table.md", table(record))
    print(table(record))


if __name__ == "__main__":
    main()
