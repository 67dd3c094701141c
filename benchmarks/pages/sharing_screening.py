"""Write the page of results/sharing: rows of the suite `sharing`, distilled on 2 M tokens, and for 150 steps.

python benchmarks/pages/sharing_screening.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from minialbert.runs.files import write_atomically
from minialbert.runs.packed import find_run_records, read_run_file

RESULTS = Path("results") / "sharing"
SUITE, START, AGAIN = "two-million-tokens", "start", "-2"
TASKS = {"NCBI-disease": "ncbi-disease-1", "STS-B": "stsb-1"}
PLAIN = "one-none"
LONG = """# What iterations share, and what tells them apart

Rows of the suite `sharing` (`minialbert suite`): students of {iterations} iterations of a teacher of 6 layers, 384
wide. Made by `python benchmarks/pages/sharing_screening.py` from the records here.

## Two million tokens

Distilled by `miniature/muon` on {tokens} tokens, and tuned for two tasks from their labels: strict F1 of entities on
test, and the Spearman correlation on validation, in per cent. Masked tokens are the share of {masked:,} held-out
masked tokens that a student predicts. "Ahead" is the difference of a row's mean over the two tasks to that of
`{plain}`. MB are those of the encoder's int8 graph, from the screening below. **One seed of the distillation and one
of each tuning: differences of a point or two may be luck.** Blocks in turn start as the teacher's layers 1 and 2, one
block as layer 2. What the screening below says of rank and of a second block does not hold here: the screening ran
with other losses, with AdamW, and for a seventh of the tokens.

"""
LONG_TAIL = """
With another seed of the distillation (`--only second`) the order of these two turns round, so two seeds do not
show that bottlenecks pay, nor that they do not:

{again}
Without any distillation, `one-bottleneck` reaches {first:.1f} on STS-B where its block starts as layer 1, and
{second:.1f} from layer 2.

    minialbert suite run sharing --teacher TEACHER --data DATA --output runs/sharing --only first
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
states) and divergence (of attention rows) compare with the teacher, as means over iterations and seeds. MB are those
of the encoder's int8 graph, which was exported for its size alone: some lose more than an export allows. The last
column is the mean difference to `{plain}`, in points, for each MB that a row takes more.

"""
TAIL = """
The teacher predicts {teacher:.1f} %. Each row was made by these commands, with its settings in the suite as further
`--set`:

    minialbert prepare --recipe miniature/student-64 --corpus CORPUS --tokenizer TEACHER --output windows/
    minialbert distill --recipe miniature/student-64 --set student.num_hidden_layers=6 \\
      --set training.max_steps={steps} --set training.warmup_steps={warmup} --set training.eval_windows={windows} \\
      --teacher TEACHER --data windows/ --seed SEED --output ROW
    minialbert export --model ROW/model --head features --quantize int8 --tolerance 1 --output ROW-int8
"""
TITLES = (
    "row", "parameters", "MB, int8", "masked tokens, start", "masked tokens", "ahead, by seed", "cosine", "divergence",
    "points per MB",
)  # fmt: skip


def page() -> str:
    """Return the page, made from the records."""
    screening, sizes = _screening()
    return _long(sizes) + screening


def _long(sizes: dict[str, float]) -> str:
    """Return the part on the suite's own length, with the sizes of the screening's graphs."""
    folder, rows = RESULTS / SUITE, dict[str, dict[str, dict[str, Any]]]()
    for file in find_run_records(folder):
        row, *cell = file.relative_to(folder).parent.parts
        rows.setdefault(row, {})[cell[-1]] = json.loads(read_run_file(file))
    scores = {row: [100 * cells[cell]["score"] for cell in TASKS.values()] for row, cells in rows.items()}

    def table(end: str) -> str:
        """Return the rows whose names have this end."""
        titles = ("row", "parameters", "MB, int8", "masked tokens", *TASKS, "ahead")
        lines = [f"| {' | '.join(titles)} |", "| --- |" + " ---: |" * (len(titles) - 1)]
        named = [row for row in rows if row.endswith(AGAIN) == bool(end)]
        for row in sorted(named, key=lambda one: -statistics.fmean(scores[one])):
            record = rows[row]["distill"]
            ahead = statistics.fmean(scores[row]) - statistics.fmean(scores[PLAIN + end])
            cells = (
                f"`{row}`", f"{record['model']['encoder_parameters'] / 1e6:.2f} M",
                f"{sizes[row.removesuffix(AGAIN)]:.2f}",
                f"{100 * record['metrics']['student_end']['mlm_accuracy']:.1f}",
                *(f"{one:.1f}" for one in scores[row]), "-" if row == PLAIN + end else f"{ahead:+.1f}",
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    plain = rows[PLAIN]["distill"]
    head = LONG.format(
        iterations=plain["model"]["iterations"], plain=PLAIN,
        tokens=f"{plain['training']['windows'] * plain['recipe']['data']['window_length'] / 1e6:.1f} M",
        masked=plain["metrics"]["student_end"]["masked_tokens"],
    )  # fmt: skip
    first, second = (
        100 * json.loads(read_run_file(RESULTS / START / f"layer-{layer}" / "result.json"))["score"] for layer in (1, 2)
    )  # fmt: skip
    return head + table("") + LONG_TAIL.format(first=first, second=second, again=table(AGAIN))


def _screening() -> tuple[str, dict[str, float]]:
    """Return the part on the first steps, and the megabytes of each row's graph."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    sizes: dict[str, float] = {}
    for file in sorted(find_run_records(RESULTS)):
        record, row = json.loads(read_run_file(file)), file.relative_to(RESULTS).parts[0]
        if row in (SUITE, START):
            continue
        if record["kind"] == "export":
            sizes[row] = record["bytes"] / 1e6
        else:
            runs.setdefault(row, {})[record["seed"]] = record
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
    return head + "\n".join(lines) + "\n" + tail, sizes


if __name__ == "__main__":
    write_atomically(RESULTS / "README.md", page())
