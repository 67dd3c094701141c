"""What noise of the size of rounding does to int8 and int4 exports: accuracy, and errors by iteration.

python benchmarks/quality/weight_noise.py STUDENT DATA WORK

STUDENT is tuned on DATA without noise and with `tuning.weight_noise=int4`, two seeds each, exported in int8 and
int4, and scored on the test split in PyTorch and as each graph. results/weight-noise gets the record and a table.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import minialbert
from minialbert.runs.files import write_atomically, write_json
from minialbert.runs.records import load_record, write_result

RESULTS = Path("results") / "weight-noise"
SEEDS, EPOCHS = (1, 2), 4.0
WAYS: dict[str, str | None] = {"without noise": None, "noise of int4": "int4"}
PRECISIONS = ("int8", "int4")


def measure(student: str, data: str, work: Path, seed: int, noise: str | None) -> dict[str, Any]:
    """Return accuracy in PyTorch and as each graph, and the graphs' errors by iteration."""
    settings = {"tuning.epochs": EPOCHS, "tuning.learning_rate": 2e-4, "task.max_length": 96}
    output = work / f"{noise}-{seed}"
    done = output / "measured.json"
    if done.is_file():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    if not (output / "result.json").is_file():
        minialbert.finetune(
            student, task="classification", data=data, seed=seed, settings=settings | {"tuning.weight_noise": noise},
            output=output, resume=True,
        )  # fmt: skip
    found: dict[str, Any] = {"fp32": {"accuracy": load_record(output / "result.json")["score"]}}
    for precision in PRECISIONS:
        exported = minialbert.export(
            output / "model",
            output / precision,
            quantize=precision,
            tolerance=1.0,
            overwrite=True,
            progress=False,
        )
        scored = minialbert.evaluate(exported.path, data=data, split="test", progress=False)
        errors = exported.record["errors_by_iteration"]
        found[precision] = {"accuracy": scored.record["score"], "errors_by_iteration": errors}
    write_json(done, found)
    return found


def table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return means over the seeds as Markdown."""
    lines = [
        "| tuned | weights | accuracy, % | error of the hidden states after each iteration, % |",
        "|---|---|---:|---|",
    ]
    for way in WAYS:
        of = [one for name, one in runs.items() if name.startswith(way)]
        for precision in ("fp32", *PRECISIONS):
            accuracy = [100 * one[precision]["accuracy"] for one in of]
            errors = zip(*(one[precision].get("errors_by_iteration", ()) for one in of), strict=True)
            shown = ", ".join(f"{100 * statistics.fmean(part):.2f}" for part in errors) or "-"
            spread = f"{statistics.fmean(accuracy):.1f} ± {statistics.stdev(accuracy):.1f}"
            lines.append(f"| {way} | {precision} | {spread} | {shown} |")
    made = (
        "`python benchmarks/quality/weight_noise.py STUDENT DATA WORK`, with student and task of `make demo`"
    )
    return (
        "\n".join(lines) + f"\n\nMeans over {len(SEEDS)} seeds, ± their standard deviation. Made by {made}.\n"
    )


def main() -> None:
    """Measure all, and write record and table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("student", "data", "work"):
        parser.add_argument(name)
    given = parser.parse_args()
    runs = {
        f"{way}, seed {seed}": measure(given.student, given.data, Path(given.work), seed, noise)
        for seed in SEEDS
        for way, noise in WAYS.items()
    }
    write_result(
        RESULTS / "result.json",
        {"kind": "weight-noise", "settings": {"seeds": list(SEEDS), "epochs": EPOCHS}, "metrics": runs},
    )
    write_atomically(RESULTS / "table.md", table(runs))


if __name__ == "__main__":
    main()
