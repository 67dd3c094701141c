"""Write the page of results/task-distillation: CoLA learned from labels, and from a teacher tuned for it.

python benchmarks/pages/task_distillation.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from minialbert.runs.files import write_atomically
from minialbert.runs.packed import find_run_records, read_run_file

RESULTS = Path("results") / "task-distillation"
MINIATURE = Path("results") / "miniature" / "cells"
STUDENT = "student, 3e-4"
ROWS = {
    "teacher, 1e-4": (MINIATURE / "teacher" / "full-glue-1e-4", "cola-*"),
    STUDENT: (MINIATURE / "hidden-only-20m" / "full", "cola-*"),
    "student, 1e-4": (RESULTS, "lr1e-4-*"),
    "student, 3e-4, from a tuned teacher": (RESULTS, "from-teacher-*"),
}
HEAD = """# CoLA from a teacher that was tuned for it

CoLA, validation, Matthews correlation (-100 to 100), of the miniature's student of 20 M tokens (`hidden-only-20m`),
where it is furthest behind its teacher: mean and sample standard deviation over seeds, each seed, and by how much each
is ahead of the first student's. Made by `python benchmarks/pages/task_distillation.py` from the records here and
those of [the suite](../miniature/README.md).

"""
NOTES = """
- With a tuned teacher the loss is half that of the labels and half the teacher's soft answers at temperature 2, the
  defaults of `minialbert finetune --teacher`; nothing of it was tuned. It is one teacher, that of seed 1, for all
  seeds. The smaller rate helps with every seed alike; a tuned teacher by 0 to 7 points, so three seeds do not settle
  by how much. Both together were not tried.
- Validation chooses the epoch and is what is reported, for every row.

The records were made by

    minialbert finetune --model TEACHER --task cola --data CoLA --output tuned-teacher/ \\
      --set tuning.learning_rate=1e-4 --set tuning.epochs=3 --set tuning.precision=bf16 --set tuning.seed=1
    minialbert finetune --model hidden-only-20m --task cola --data CoLA --output from-teacher-1/ \\
      --teacher tuned-teacher/model \\
      --set tuning.learning_rate=3e-4 --set tuning.epochs=3 --set tuning.precision=bf16 --set tuning.seed=1

and the second without `--teacher` at 1e-4.
"""


def page() -> str:
    """Return the page, made from the records."""
    lines = ["| model, rate | mean | sd | seeds | ahead |", "| --- | ---: | ---: | --- | --- |"]
    scores = {name: _scores(folder, pattern) for name, (folder, pattern) in ROWS.items()}
    for name, own in scores.items():
        each = ", ".join(f"{seed}: {score:.1f}" for seed, score in own.items())
        gains = [own[seed] - score for seed, score in scores[STUDENT].items() if seed in own]
        ahead = "-" if name == STUDENT else ", ".join(f"{gain:+.1f}" for gain in gains)
        mean, spread = statistics.mean(own.values()), statistics.stdev(own.values())
        lines.append(f"| {name} | {mean:.1f} | {spread:.1f} | {each} | {ahead} |")
    return HEAD + "\n".join(lines) + "\n" + NOTES


def _scores(folder: Path, pattern: str) -> dict[int, float]:
    """Return the score of every seed, in per cent."""
    files = [file for file in find_run_records(folder) if file.match(f"{pattern}/result.json")]
    records = [json.loads(read_run_file(file)) for file in files]
    scores = {record["seed"]: 100 * record["metrics"]["validation"][record["metric"]] for record in records}
    return dict(sorted(scores.items()))


if __name__ == "__main__":
    write_atomically(RESULTS / "README.md", page())
