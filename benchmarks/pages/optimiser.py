"""Write the page of results/optimiser: AdamW and Muon at several learning rates.

python benchmarks/pages/optimiser.py
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from minialbert.runs.files import write_atomically
from minialbert.runs.packed import find_run_records
from minialbert.runs.records import load_record, mean_and_sd

RESULTS = Path("results") / "optimiser"
HEAD = """# AdamW and Muon

The student of `miniature/hidden-only` (3 iterations, 384 wide, rank 64), distilled on {windows:,} windows in {steps}
steps from the miniature's teacher, whose masked-token accuracy is {teacher:.1f} %. Held-out masked tokens in per cent,
with the seeds in brackets, and the cosine of the last iteration to the teacher's last layer. Made by
`python benchmarks/pages/optimiser.py` from the records here.

| optimiser | learning rate | masked tokens | cosine |
| --- | ---: | ---: | ---: |
"""
TAIL = """
One student, one teacher, and runs that are short: this says that the setting is worth a try at a higher rate than
AdamW's, and not what it gives at the end of a long run. The rows were made by

    minialbert distill --recipe miniature/hidden-only --teacher TEACHER --data windows/ --steps 250 --lr RATE \\
      --seed SEED --set training.optimizer=muon --set training.warmup_steps=25 --set training.eval_steps=250 \\
      --output ROW
"""


def page() -> str:
    """Return the page, made from the records."""
    found = defaultdict(list)
    for file in find_run_records(RESULTS):
        record = load_record(file)
        training = record["recipe"]["training"]
        found[training["optimizer"], training["learning_rate"]].append(record)
    rows = []
    for (optimiser, rate), records in sorted(found.items()):
        ends = [record["metrics"]["student_end"] for record in records]
        accuracy, cosine = (
            mean_and_sd([end[name] for end in ends])[0] for name in ("mlm_accuracy", "cosine_3")
        )
        seeds = ", ".join(str(record["seed"]) for record in records)
        rows.append(f"| {optimiser} | {rate:g} | {100 * accuracy:.1f} ({seeds}) | {cosine:.3f} |\n")
    of = records[0]["training"]
    teacher = 100 * records[0]["metrics"]["teacher"]["mlm_accuracy"]
    return HEAD.format(steps=of["steps"], windows=of["windows"], teacher=teacher) + "".join(rows) + TAIL


if __name__ == "__main__":
    write_atomically(RESULTS / "README.md", page())
