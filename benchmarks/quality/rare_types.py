"""What helps a rare class: class weights, focal loss, or repeating its rows, on SST-2 with 5 % of one class.

python benchmarks/quality/rare_types.py run SST2_TRAIN_TSV STUDENT WORK
python benchmarks/quality/rare_types.py page

The first command draws 2,000 rows to train on, 1,000 for validation and 4,000 to score from the train split, each with
5 % negative ones, tunes STUDENT (runs/demo/model of `make demo`) on them in each way with three seeds, and leaves the
records in results/rare-types, one seed after the other. A run that is there is not made again. The second writes the
page and its table of the seeds that every way has.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import sys
from pathlib import Path

import minialbert
from minialbert.runs.files import write_atomically

RESULTS = Path("results") / "rare-types"
RARE, COMMON = "negative", "positive"
SIZES = {"train": 2000, "validation": 1000, "test": 4000}
SEEDS = (1, 2, 3)
EPOCHS = 6.0
SETTINGS = {
    "tuning.learning_rate": 3e-4, "tuning.batch_size": 32, "task.positive": RARE, "task.metric": "f1",
    "task.max_length": 64,
}  # fmt: skip
# Of each way its settings, and how many times as many rows train has: epochs are fewer by as much.
WAYS: dict[str, tuple[dict[str, object], float]] = {
    "plain": ({}, 1),
    "weights": ({"tuning.class_weights": "balanced"}, 1),
    "focal": ({"tuning.focal_gamma": 2.0}, 1),
    "root": ({"tuning.repeat_rare": "root"}, 0.95 + 0.05 * 4),
    "even": ({"tuning.repeat_rare": "even"}, 0.95 + 0.05 * 19),
}
HEAD = """# A rare class

SST-2 with 5 % of negative rows: 2,000 rows to train on (100 of them rare), 1,000 to choose the checkpoint by F1 of the
rare class, 4,000 to score. Every way takes equally many steps. Means over {seeds} seeds; of F1 the standard deviation,
too. Made by `python benchmarks/quality/rare_types.py page` from the records here.

"""
COLUMNS = """| option | precision | recall | F1 of the rare class | average precision |
| --- | ---: | ---: | ---: | ---: |
"""


def run(source: Path, student: str, work: Path) -> None:
    """Leave the records of every way and seed, one seed after the other."""
    rows = _drawn(source)
    for seed in SEEDS:
        for way, (settings, longer) in WAYS.items():
            output, target = work / f"{way}-{seed}", RESULTS / f"{way}-{seed}"
            if not (output / "result.json").exists():
                more = SETTINGS | settings | {"tuning.epochs": EPOCHS / longer}
                minialbert.finetune(
                    student, task="classification", data=rows, seed=seed, settings=more, output=output,
                    resume=True, keep_model=False,
                )  # fmt: skip
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(output / "result.json", target / "result.json")


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


def table() -> str:
    """Return the table of the seeds that every way has, made from the records."""
    lines, notes = [], []
    for way, (settings, _) in WAYS.items():
        found = [_record(way, seed)["metrics"]["test"] for seed in _seeds()]
        precision, recall, f1 = (
            [100 * one["per_class"][RARE][name] for one in found] for name in ("precision", "recall", "f1")
        )
        area = statistics.fmean(100 * one["average_precision"] for one in found)
        option = ", ".join(f"`{name}={value}`" for name, value in settings.items()) or "none"
        means = " | ".join(f"{statistics.fmean(values):.1f}" for values in (precision, recall))
        spread = f"{statistics.fmean(f1):.1f} ± {statistics.stdev(f1):.1f}"
        lines.append(f"| {option} | {means} | {spread} | {area:.1f} |")
        if never := sum(value == 0 for value in recall):
            with_it = f"With {option}" if settings else "Without an option"
            notes.append(f"\n{with_it}, {never} of {len(recall)} runs never named the rare class.")
    return COLUMNS + "\n".join([*lines, *notes]) + "\n"


def page() -> str:
    """Return the page, made from the records."""
    return HEAD.format(seeds=len(_seeds())) + table()


def _seeds() -> list[int]:
    return [seed for seed in SEEDS if all((RESULTS / f"{way}-{seed}").is_dir() for way in WAYS)]


def _record(way: str, seed: int) -> dict:
    return json.loads((RESULTS / f"{way}-{seed}" / "result.json").read_text())


if __name__ == "__main__":
    if sys.argv[1:] == ["page"]:
        write_atomically(RESULTS / "README.md", page())
        write_atomically(RESULTS / "table.md", table())
    else:
        _, verb, source_, student_, folder_ = sys.argv
        run(Path(source_), student_, Path(folder_))
