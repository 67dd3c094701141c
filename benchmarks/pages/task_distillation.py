"""Write the page of results/task-distillation: tasks learned from labels, and from teachers tuned for them.

python benchmarks/pages/task_distillation.py
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boxed_models import START, scores_of, tuned_from
from elastic_table import figures

from minialbert.runs.files import write_atomically
from minialbert.runs.packed import find_run_records, read_run_file
from minialbert.runs.records import load_record

RESULTS = Path("results") / "task-distillation"
MINIATURE = Path("results") / "miniature" / "cells"
BOXED = Path("results") / "boxed" / START
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

NINE = """
## Nine tasks

`english-4mb` ({parameters:.1f} M parameters, distilled on {tokens:.1f} M tokens), tuned for each task in the best of
the ways that were tried: seven tasks from a teacher that was tuned for them and labels further texts. Scores are those
of [the suite](../miniature/README.md): GLUE's of validation, which also chooses the epoch, and strict F1 of entities
on test, in per cent. The teacher's are the suite's means of three seeds. "From labels" is full tuning as in
[the student's card](../../models/minialbert_models/english-4mb/README.md), where it was done.

| task | teacher | from labels | best | by seed | kept |
| --- | ---: | ---: | ---: | --- | ---: |
"""
NINE_NOTES = """
"Kept" is the share of the teacher's score; in the last row, of its mean. It is {least:.1f} % there if no task counts
as more than its teacher's score.

- The teacher labels further texts: 10,000 sentences of other abstracts for each set of entities, the rows of SST-2
  behind the first 20,000, without their labels, four altered copies of each sentence of CoLA (`teacher.altered=4`), and
  for STS-B 6,300 pairs of MNLI and an altered copy of each of its own. None of these texts and pairs is scored. Neither
  the teachers nor the students "from labels" were tuned on these texts.
- MRPC and RTE, which have pairs, are learned from labels, as a teacher could not label pairs when they were measured:
  MRPC by adapters with Muon ([records](../optimiser/README.md)), RTE in full.
- One student, distilled once. The teacher that teaches is that of seed 1.

Made by `benchmarks/quality/nine_tasks.sh`; `benchmarks/quality/task_texts.py` writes the texts.
"""


TWO_TASKS = ("CoLA", "NCBI-disease", "STS-B")
TWO = """
## Two million tokens

A student of 3 iterations, rank {rank} and {parameters:.2f} M parameters, distilled on {tokens:.1f} M tokens with Muon
at {rate:g}, three times: each distillation has another seed, so other windows in another order, and its student is
tuned once, with that seed. Scores are those of the tables above; masked tokens are those of held-out text, in per cent.

| | masked tokens | CoLA | NCBI-disease | STS-B | mean |
| --- | ---: | ---: | ---: | ---: | ---: |
"""
TWO_NOTES = """
The mean is {mean:.1f} ± {half:.1f}, an interval of 95 % over the three distillations. Half way from `student-64` to the
teacher is {half_way:.1f}, so {verdict}.

- `student-64` is [the suite's](../miniature/README.md): one distillation of as many tokens, rank 64, AdamW, tuned from
  labels with three seeds, as is the teacher. So what is between the rows is the rank, Muon, and above all the tuning.
- Tuned as for nine tasks: the same teachers, of seed 1, label the same further texts, altered copies of CoLA's
  sentences, and for STS-B 6,300 pairs of MNLI and an altered copy of each of its own.
- What labelled pairs are worth, STS-B of the first of these students:
  {ways}.
- With AdamW at {adamw_rate:g}, the recipe's own, the first of these students predicts {adamw:.1f} % of the masked
  tokens.

Made by `benchmarks/quality/two_million_tokens.sh`.
"""


def page() -> str:
    """Return the page, made from the records."""
    return _cola() + _nine() + _two()


def headline() -> str:
    """Return the lines of README and docs about students that learn from tuned teachers."""
    scores = _nine_scores()
    kept, least = _kept(scores)
    records = _two_records()
    teacher, _, *means = (statistics.mean(own) for own in two_scores(records).values())
    mean, half = figures(means).values()
    size = next(one["model"]["encoder_parameters"] for one in records if _optimiser(one) == "muon") / 1e6
    return (
        f"- `english-4mb` keeps {kept:.1f} % over the same {len(scores)} tasks, seven of them learned from teachers "
        f"that label further texts, or {least:.1f} % if none counts as more than its teacher's score "
        "([one seed for most](results/task-distillation/README.md#nine-tasks)).\n"
        f"- With such teachers, a student of {size:.1f} M parameters that was distilled on 2 M tokens comes to "
        f"{mean:.1f} ± {half:.1f} (three distillations) as its mean on {', '.join(TWO_TASKS[:-1])} and "
        f"{TWO_TASKS[-1]}; its teacher has "
        f"{teacher:.1f} ([how](results/task-distillation/README.md#two-million-tokens)).\n"
    )


def _kept(scores: Mapping[str, tuple[float, list[float]]]) -> tuple[float, float]:
    """Return the share of the teacher's mean in per cent, as scores are, and with none above its teacher's."""
    theirs = [teacher for teacher, _ in scores.values()]
    ours = [statistics.mean(own) for _, own in scores.values()]
    return 100 * sum(ours) / sum(theirs), 100 * sum(map(min, ours, theirs)) / sum(theirs)


def _nine_records() -> list[Mapping[str, Any]]:
    """Return the records of the section: those made for it, and of MRPC those of another page."""
    adapters = [
        one
        for one in tuned_from(Path("results") / "optimiser")
        if one["recipe"]["tuning"]["optimizer"] == "muon" and one["recipe"]["task"]["data"] == "MRPC"
    ]
    return sorted([*tuned_from(RESULTS / "nine-tasks"), *adapters], key=lambda one: one["seed"])


def _nine_scores() -> dict[str, tuple[float, list[float]]]:
    """Return by task the teacher's mean and what each seed of the student has, in per cent."""
    with (Path("results") / "miniature" / "reach.csv").open(encoding="utf-8", newline="") as lines:
        teacher = next(row for row in csv.DictReader(lines) if row["row"] == "teacher")
    scores = scores_of(_nine_records())
    return {data: (float(teacher[data]), own) for data, (_, own) in sorted(scores.items())}


def _nine() -> str:
    """Return the section about nine tasks."""
    labels, scores, rows, averages = scores_of(tuned_from(BOXED)), _nine_scores(), list[str](), list[float]()
    for data, (teacher, own) in scores.items():
        plain = f"{statistics.mean(labels[data][1]):.1f}" if data in labels else "-"
        ours, each = statistics.mean(own), ", ".join(f"{score:.1f}" for score in own)
        averages.append(ours)
        rows.append(
            f"| {data} | {teacher:.1f} | {plain} | {ours:.1f} | {each} | {100 * ours / teacher:.1f} |\n"
        )
    means = [statistics.mean(one) for one in ([teacher for teacher, _ in scores.values()], averages)]
    kept, least = _kept(scores)
    rows.append("| **mean** | {:.1f} | | {:.1f} | | **{:.1f}** |\n".format(*means, kept))
    run = json.loads((BOXED / "distillation.json").read_text(encoding="utf-8"))
    tokens = run["training"]["windows"] * run["recipe"]["data"]["window_length"] / 1e6
    parameters = _nine_records()[0]["model"]["encoder_parameters"] / 1e6
    return NINE.format(parameters=parameters, tokens=tokens) + "".join(rows) + NINE_NOTES.format(least=least)


def _two_records() -> list[Mapping[str, Any]]:
    """Return the records of the section about two million tokens."""
    return [load_record(file) for file in find_run_records(RESULTS / "two-million-tokens")]


def two_scores(records: Sequence[Mapping[str, Any]] | None = None) -> dict[str, list[float]]:
    """Return the scores of each row of the section, in the order of TWO_TASKS; those of distillations stand last."""
    records = _two_records() if records is None else records
    before = scores_of(tuned_from(MINIATURE / "student-64" / "full"))
    scores = {
        "teacher": [_nine_scores()[name][0] for name in TWO_TASKS],
        "`student-64`": [statistics.mean(before[name][1]) for name in TWO_TASKS],
    }
    for seed in sorted({one["seed"] for one in records if _optimiser(one) == "muon"}):
        own = scores_of(
            one for one in records if one["kind"] == "finetune" and one["seed"] == seed and _labels_texts(one)
        )
        scores[f"distilled with seed {seed}"] = [own[name][1][0] for name in TWO_TASKS]
    return scores


def _two() -> str:
    """Return the section about two million tokens."""
    records = _two_records()
    runs = {one["seed"]: one for one in records if _optimiser(one) == "muon"}
    (adamw,) = (one for one in records if _optimiser(one) == "adamw")
    scores, one = two_scores(records), runs[min(runs)]
    means = [statistics.mean(own) for own in scores.values()]
    masked = [
        f"{_masked(adamw, 'teacher'):.1f}",
        "-",
        *(f"{_masked(runs[seed]):.1f}" for seed in sorted(runs)),
    ]
    rows = "".join(
        f"| {title} | {share} | " + " | ".join(f"{score:.1f}" for score in (*own, mean)) + " |\n"
        for (title, own), share, mean in zip(scores.items(), masked, means, strict=True)
    )
    mean, half = figures(means[2:]).values()
    half_way = (means[0] + means[1]) / 2
    how = "" if mean >= half_way else "not "
    whole = ", with the whole interval" if mean - half >= half_way else ""
    return TWO.format(
        rank=one["recipe"]["student"]["embedding_size"],
        parameters=one["model"]["encoder_parameters"] / 1e6,
        tokens=one["training"]["windows"] * one["recipe"]["data"]["window_length"] / 1e6,
        rate=one["recipe"]["training"]["learning_rate"],
    ) + rows + TWO_NOTES.format(
        mean=mean, half=half, half_way=half_way, verdict=f"the distance is {how}halved{whole}", ways=_ways(records),
        adamw=_masked(adamw), adamw_rate=adamw["recipe"]["training"]["learning_rate"],
    )  # fmt: skip


def _labels_texts(record: Mapping[str, Any]) -> bool:
    """Whether a teacher labelled further texts for a tuning."""
    teacher = record["recipe"]["teacher"]
    return bool(teacher["unlabelled"] or teacher["altered"])


def _ways(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the scores on STS-B of the first student, by what it learned from."""
    found = {}
    for one in records:
        teacher = one["recipe"].get("teacher", {})
        if one["kind"] == "finetune" and one["recipe"]["task"]["data"] == "STS-B" and one["seed"] == 1:
            way = "labelled pairs" if _labels_texts(one) else "rows" if teacher["model"] else "labels"
            ((_, found[way]),) = scores_of([one]).values()
    return (
        f"{found['labels'][0]:.1f} from the labels of its rows, {found['rows'][0]:.1f} with the teacher's answers to "
        f"these rows beside them,\n  {found['labelled pairs'][0]:.1f} with the further pairs, too"
    )


def _optimiser(record: Mapping[str, Any]) -> str | None:
    """Return the optimiser of a distillation, None for a tuning."""
    return record["recipe"]["training"]["optimizer"] if record["kind"] == "distillation" else None


def _masked(record: Mapping[str, Any], who: str = "student_end") -> float:
    """Return the share of held-out masked tokens that is predicted, in per cent."""
    return 100 * record["metrics"][who]["mlm_accuracy"]


def _cola() -> str:
    """Return the first section, made from the records."""
    lines = ["| model, rate | mean | sd | seeds | ahead |", "| --- | ---: | ---: | --- | --- |"]
    scores = {name: by_seed(folder, pattern) for name, (folder, pattern) in ROWS.items()}
    for name, own in scores.items():
        each = ", ".join(f"{seed}: {score:.1f}" for seed, score in own.items())
        gains = [own[seed] - score for seed, score in scores[STUDENT].items() if seed in own]
        ahead = "-" if name == STUDENT else ", ".join(f"{gain:+.1f}" for gain in gains)
        mean, spread = statistics.mean(own.values()), statistics.stdev(own.values())
        lines.append(f"| {name} | {mean:.1f} | {spread:.1f} | {each} | {ahead} |")
    return HEAD + "\n".join(lines) + "\n" + NOTES


def by_seed(folder: Path, pattern: str) -> dict[int, float]:
    """Return the score of every seed, in per cent."""
    files = [file for file in find_run_records(folder) if file.match(f"{pattern}/result.json")]
    records = [json.loads(read_run_file(file)) for file in files]
    scores = {record["seed"]: 100 * record["metrics"]["validation"][record["metric"]] for record in records}
    return dict(sorted(scores.items()))


if __name__ == "__main__":
    write_atomically(RESULTS / "README.md", page())
