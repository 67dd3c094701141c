"""What helps a rare class: class weights, focal loss, or repeating its rows, on SST-2 with 5 % of one class.

python benchmarks/quality/rare_types.py run SST2_TRAIN_TSV STUDENT WORK
python benchmarks/quality/rare_types.py page

The first command draws 2,000 rows to train on, 1,000 for validation and 4,000 to score from the train split, each with
5 % negative ones, tunes STUDENT on them in each way with three seeds, and leaves the records in results/rare-types. The
second writes the page there. Focal loss is a task type of this script's own; the package has class weights alone.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import minialbert
from minialbert.data.task_inputs import IGNORED
from minialbert.data.task_types import SingleLabel, register_task_type
from minialbert.runs.files import write_atomically

RESULTS = Path("results") / "rare-types"
RARE, COMMON = "negative", "positive"
SIZES = {"train": 2000, "validation": 1000, "test": 4000}
SEEDS = (1, 2, 3)
GAMMA = 2.0
SETTINGS = {
    "tuning.epochs": 6.0, "tuning.learning_rate": 3e-4, "tuning.batch_size": 32, "task.positive": RARE,
    "task.metric": "f1", "task.max_length": 64,
}  # fmt: skip
WAYS = {
    "plain": "nothing",
    "weights": "class weights (`tuning.class_weights=balanced`)",
    "focal": "focal loss, gamma 2",
    "root": "rows repeated by the root of inverse frequency",
    "even": "rows repeated until both classes are even",
}
HEAD = """# A rare class

SST-2 with 5 % of negative rows: 2,000 rows to train on (100 of them rare), 1,000 to choose the checkpoint by F1 of the
rare class, 4,000 to score. Means over three seeds, with their standard deviation for F1. Made by
`python benchmarks/quality/rare_types.py page` from the records here.

| what is done | precision | recall | F1 of the rare class | average precision |
| --- | ---: | ---: | ---: | ---: |
"""


class Focal(SingleLabel):
    """One class of several, with the focal loss of Lin et al., 2017."""

    name, option = "focal", "focal"

    def loss(
        self, logits: Tensor, labels: Tensor, class_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of (1 - p)^gamma times cross-entropy, and the number of labels."""
        own = functional.cross_entropy(logits.float(), labels, reduction="none", ignore_index=IGNORED)
        return ((1 - torch.exp(-own)) ** GAMMA * own).sum(), self.weight(labels)


def run(source: Path, student: str, work: Path) -> None:
    """Leave the records of every way and seed."""
    register_task_type(Focal())
    rows = _drawn(source)
    for way in WAYS:
        train = [row for row in rows["train"] for _ in range(_times(way, row[1]))]
        for seed in SEEDS:
            output, target = work / f"{way}-{seed}", RESULTS / f"{way}-{seed}"
            if not (output / "result.json").exists():
                more = {"tuning.class_weights": "balanced"} if way == "weights" else {}
                if len(train) > SIZES["train"]:  # as many steps as the others
                    more |= {"tuning.epochs": SETTINGS["tuning.epochs"] * SIZES["train"] / len(train)}
                minialbert.finetune(
                    student, task="focal" if way == "focal" else "classification", data={**rows, "train": train},
                    seed=seed, settings=SETTINGS | more, output=output, resume=True, keep_model=False,
                )  # fmt: skip
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(output / "result.json", target / "result.json")


def _times(way: str, label: str) -> int:
    return {"root": 4, "even": 19}.get(way, 1) if label == RARE else 1


def _drawn(source: Path) -> dict[str, list[tuple[str, str]]]:
    """Return different rows for each split, with one in twenty of the rare class."""
    lines = [line.rsplit("\t", 1) for line in source.read_text(encoding="utf-8").splitlines()[1:]]
    texts = {
        name: [text for text, label in lines if label == given]
        for name, given in ((RARE, "0"), (COMMON, "1"))
    }
    drawn = random.Random(0)
    for part in texts.values():
        drawn.shuffle(part)
    rows = {}
    for split, size in SIZES.items():
        rows[split] = [(texts[RARE].pop(), RARE) for _ in range(size // 20)]
        rows[split] += [(texts[COMMON].pop(), COMMON) for _ in range(size - size // 20)]
        drawn.shuffle(rows[split])
    return rows


def page() -> str:
    """Return the page, made from the records."""
    lines = []
    for way, said in WAYS.items():
        files = [RESULTS / f"{way}-{seed}" / "result.json" for seed in SEEDS]
        found = [json.loads(file.read_text())["metrics"]["test"] for file in files if file.exists()]
        of_class = [one["per_class"][RARE] for one in found]
        precision, recall, f1 = (
            [100 * one[name] for one in of_class] for name in ("precision", "recall", "f1")
        )
        area = statistics.fmean(100 * one["average_precision"] for one in found)
        means = " | ".join(f"{statistics.fmean(values):.1f}" for values in (precision, recall))
        lines.append(
            f"| {said} | {means} | {statistics.fmean(f1):.1f} ± {statistics.stdev(f1):.1f} | {area:.1f} |"
        )
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["page"]:
        write_atomically(RESULTS / "README.md", page())
    else:
        _, verb, source_, student_, folder_ = sys.argv
        run(Path(source_), student_, Path(folder_))
