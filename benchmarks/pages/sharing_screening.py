"""Write the page of results/sharing: rows of the suite `sharing`, distilled on 2 M tokens, and for 150 steps.

python benchmarks/pages/sharing_screening.py
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from boxed_models import scores_of

from minialbert.runs.files import write_atomically
from minialbert.runs.packed import find_run_records, read_run_file

RESULTS = Path("results") / "sharing"
SUITE, START = "two-million-tokens", "start"
AGAIN = re.compile(r"-[2-9]$")  # the end of a row that is another's with this seed of the distillation
TASKS = ("NCBI-disease", "STS-B")
PLAIN = "one-none"
LONG = """# What iterations share, and what tells them apart

Rows of the suite `sharing` (`minialbert suite`): students of {iterations} iterations, those of `three-` of 3, of a
teacher of 6 layers, 384 wide. Made by `python benchmarks/pages/sharing_screening.py` from the records here.

## Two million tokens

Distilled by `miniature/muon` on {tokens} tokens, and tuned for two tasks from their labels. Scores are those of
[the suite of the paper](../miniature/README.md), in per cent: strict F1 of entities on test, and on validation the mean
of Pearson's and Spearman's correlations. Masked tokens are the share of {masked:,} held-out masked tokens that a
student predicts. "Ahead" is the difference of a row's mean over the two tasks to that of `{plain}`. MB are those of the
encoder's int8 graph (`benchmarks/quality/sharing_sizes.py`). **One seed of the distillation and one of each tuning:
differences of a point or two may be luck;** [the study](../../docs/study.md) has intervals. Several blocks start as the
teacher's layers that their first iterations stand for (in turn: layers 1 and 2), one block as layer 2. What the
screening below says of rank and of a second block does not hold here: it ran with other losses, with AdamW, and for a
seventh of the tokens.

"""
LONG_TAIL = """
The same rows with other seeds of the distillation (`--only second`); "ahead" is the difference to `{plain}` with the
same seed:

{again}
Without any distillation, `one-bottleneck` reaches {first:.1f} on STS-B where its block starts as layer 1, and
{second:.1f} from layer 2.

    minialbert suite run sharing --teacher TEACHER --data DATA --output runs/sharing \\
      --only first,ends-none
    minialbert distill --recipe miniature/muon --set student.num_hidden_layers=6 --set student.init_layer=1 \\
      --start-only --teacher TEACHER --data windows/ --output start
    minialbert finetune --model start/model --task stsb --data STS-B --epochs 3 --lr 3e-4 --precision bf16 \\
      --seed 1 --output start-stsb
"""
HEAD = """
## A screening of more rows

Distilled by `miniature/student-64`, so with attention rows and AdamW, for {steps} steps in
{precision}, at most {tokens:,.0f} tokens, with the seeds {seeds}. **Short runs, no task: the screening says which rows
deserve a longer look, and no more.**

Masked tokens are the share of held-out masked tokens that a student predicts, as a mean over seeds: {masked}
tokens, the same for all rows of one seed. So a difference between two rows of one seed is surer than the standard
error of a row, {error:.1f} points; "ahead" is the difference to `{plain}` with the same seed. Cosine (of hidden
states) and divergence (of attention rows) compare with the teacher, as means over iterations and seeds. The last
column is the mean difference to `{plain}`, in points, for each MB that a row takes more.

"""
TAIL = """
The teacher predicts {teacher:.1f} %. Each row was made by these commands, with its settings in the suite as further
`--set`, and `three-none` with three iterations:

    minialbert prepare --recipe miniature/student-64 --corpus CORPUS --tokenizer TEACHER --output windows/
    minialbert distill --recipe miniature/student-64 --set student.num_hidden_layers=6 \\
      --set training.max_steps={steps} --set training.warmup_steps={warmup} --set training.eval_windows={windows} \\
      --teacher TEACHER --data windows/ --seed SEED --output ROW
"""
TITLES = (
    "row", "parameters", "MB, int8", "masked tokens, start", "masked tokens", "ahead, by seed", "cosine", "divergence",
    "points per MB",
)  # fmt: skip


class Row(NamedTuple):
    """A student that was tuned for all tasks."""

    record: dict[str, Any]  # of its distillation
    scores: list[float]  # by task, in per cent: means over the seeds of the tuning
    tunings: int  # of each task


def tuned() -> dict[str, Row]:
    """Return the rows that were distilled on two million tokens and tuned for all of `TASKS`, by name."""
    folder, found = RESULTS / SUITE, dict[str, list[dict[str, Any]]]()
    for file in find_run_records(folder):
        found.setdefault(file.relative_to(folder).parts[0], []).append(json.loads(read_run_file(file)))
    rows = {}
    for row, records in found.items():
        scores = scores_of(one for one in records if one["kind"] == "finetune")
        if set(TASKS) <= set(scores):
            (record,) = (one for one in records if one["kind"] == "distillation")
            means = [statistics.fmean(scores[task][1]) for task in TASKS]
            rows[row] = Row(record, means, min(len(scores[task][1]) for task in TASKS))
    return rows


def bytes_of() -> dict[str, int]:
    """Return the bytes of every shape's int8 graph."""
    return json.loads((RESULTS / "sizes.json").read_text(encoding="utf-8"))["bytes"]


def page() -> str:
    """Return the page, made from the records."""
    return _long() + _screening()


def _long() -> str:
    """Return the part on the suite's own length."""
    rows, sizes = tuned(), bytes_of()
    scores = {name: statistics.fmean(row.scores) for name, row in rows.items()}

    def table(*, again: bool) -> str:
        """Return the rows that are others' with another seed, or those that are not."""
        titles = ("row", "parameters", "MB, int8", "masked tokens", *TASKS, "ahead")
        lines = [f"| {' | '.join(titles)} |", "| --- |" + " ---: |" * (len(titles) - 1)]
        for name in sorted(rows, key=lambda one: -scores[one]):
            end = AGAIN.search(name)
            if bool(end) != again:
                continue
            record, plain = rows[name].record, PLAIN + (end[0] if end else "")
            ahead = "-" if name == plain or plain not in scores else f"{scores[name] - scores[plain]:+.1f}"
            cells = (
                f"`{name}`", f"{record['model']['encoder_parameters'] / 1e6:.2f} M",
                f"{sizes[AGAIN.sub('', name)] / 1e6:.2f}",
                f"{100 * record['metrics']['student_end']['mlm_accuracy']:.1f}",
                *(f"{one:.1f}" for one in rows[name].scores), ahead,
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    plain = rows[PLAIN].record
    head = LONG.format(
        iterations=plain["model"]["iterations"], plain=PLAIN,
        tokens=f"{plain['training']['windows'] * plain['recipe']['data']['window_length'] / 1e6:.1f} M",
        masked=plain["metrics"]["student_end"]["masked_tokens"],
    )  # fmt: skip
    first, second = (
        100 * json.loads(read_run_file(RESULTS / START / f"layer-{layer}" / "result.json"))["score"] for layer in (1, 2)
    )  # fmt: skip
    tail = LONG_TAIL.format(first=first, second=second, plain=PLAIN, again=table(again=True))
    return head + table(again=False) + tail


def screened() -> dict[str, dict[int, dict[str, Any]]]:
    """Return the records of the first steps, by row and seed."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for file in sorted(find_run_records(RESULTS)):
        row = file.relative_to(RESULTS).parts[0]
        if row not in (SUITE, START):
            record = json.loads(read_run_file(file))
            runs.setdefault(row, {})[record["seed"]] = record
    return runs


def _screening() -> str:
    """Return the part on the first steps."""
    runs, sizes = screened(), {row: size / 1e6 for row, size in bytes_of().items()}
    seeds = sorted(runs[PLAIN])
    points = {
        row: [100 * of_seed[seed]["metrics"]["student_end"]["mlm_accuracy"] for seed in seeds]
        for row, of_seed in runs.items()
    }
    lines = [f"| {' | '.join(TITLES)} |", "| --- |" + " ---: |" * (len(TITLES) - 1)]
    for row in sorted(runs, key=lambda one: -statistics.fmean(points[one])):
        ends = [runs[row][seed]["metrics"]["student_end"] for seed in seeds]
        start = statistics.fmean(
            runs[row][seed]["metrics"]["student_start"]["mlm_accuracy"] for seed in seeds
        )
        cosine, divergence = (
            statistics.fmean(value for end in ends for name, value in end.items() if name.startswith(what))
            for what in ("cosine_", "attention_kl_")
        )
        ahead = [one - plain for one, plain in zip(points[row], points[PLAIN], strict=True)]
        more = sizes[row] - sizes[PLAIN]
        cells = (
            f"`{row}`", f"{runs[row][seeds[0]]['model']['encoder_parameters'] / 1e6:.2f} M", f"{sizes[row]:.2f}",
            f"{100 * start:.1f}", f"{statistics.fmean(points[row]):.1f}",
            "-" if row == PLAIN else ", ".join(f"{one:+.1f}" for one in ahead), f"{cosine:.3f}", f"{divergence:.3f}",
            f"{statistics.fmean(ahead) / more:+.2f}" if more > 0 else "-",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    plain = runs[PLAIN][seeds[0]]
    training, metrics = plain["recipe"]["training"], plain["metrics"]
    masked = [runs[PLAIN][seed]["metrics"]["student_end"]["masked_tokens"] for seed in seeds]
    share = metrics["student_end"]["mlm_accuracy"]
    steps = training["max_steps"]
    head = HEAD.format(
        steps=steps, precision=plain["training"]["precision"],
        tokens=steps * training["batch_size"] * plain["recipe"]["data"]["window_length"], plain=PLAIN,
        masked=" and ".join(f"{one:,}" for one in masked), seeds=" and ".join(map(str, seeds)),
        error=100 * (share * (1 - share) / masked[0]) ** 0.5,
    )  # fmt: skip
    teacher = 100 * statistics.fmean(
        run["metrics"]["teacher"]["mlm_accuracy"] for run in runs[PLAIN].values()
    )
    tail = TAIL.format(
        teacher=teacher, steps=steps, warmup=training["warmup_steps"], windows=training["eval_windows"]
    )
    return head + "\n".join(lines) + "\n" + tail


if __name__ == "__main__":
    write_atomically(RESULTS / "README.md", page())
