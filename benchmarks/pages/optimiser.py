"""Write the page of results/optimiser: AdamW and Muon at several learning rates, and Muon for adapters alone.

python benchmarks/pages/optimiser.py
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from boxed_models import START, scores_of, tuned_from

from minialbert.runs.files import write_atomically
from minialbert.runs.packed import find_run_records
from minialbert.runs.records import load_record, mean_and_sd

RESULTS = Path("results") / "optimiser"
LONGER = Path("results") / "task-distillation" / "two-million-tokens"
HEAD = """# AdamW and Muon

The student of `miniature/hidden-only` (3 iterations, 384 wide, rank 64), distilled on {windows:,} windows in {steps}
steps from the miniature's teacher, whose masked-token accuracy is {teacher:.1f} %. Held-out masked tokens in per cent,
with the seeds in brackets, and the cosine of the last iteration to the teacher's last layer. Made by
`python benchmarks/pages/optimiser.py` from the records here.

| optimiser | learning rate | masked tokens | cosine |
| --- | ---: | ---: | ---: |
"""
LONG = """
On {tokens:.1f} M tokens, with rank {rank} ([records](../task-distillation/README.md#two-million-tokens)):

| optimiser | learning rate | masked tokens | cosine |
| --- | ---: | ---: | ---: |
"""
TAIL = """
One teacher, and runs that are short: this says that the setting is worth a try at a higher rate than AdamW's, and not
what it gives at the end of a run of 8 M tokens and more. The rows of the first table were made by

    minialbert distill --recipe miniature/hidden-only --teacher TEACHER --data windows/ --steps 250 --lr RATE \\
      --seed SEED --set training.optimizer=muon --set training.warmup_steps=25 --set training.eval_steps=250 \\
      --output ROW
"""

ADAPTERS = """
## Adapters alone

`english-4mb`, tuned with `--adapters`: {share:.1f} % of its weights change. Scores are those of
[its card](../../models/minialbert_models/english-4mb/README.md), in per cent, and stand beside those of full tuning
(AdamW, 3e-4, 3 epochs) with the same seeds. The last column is by how much a row is ahead of that.

| task | optimiser | learning rate | epochs | dropout | score | full tuning | ahead, by seed |
| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |
"""
TAIL_OF_ADAPTERS = """
{means}

Rate, epochs and dropout were set after tries on NCBI-disease with seed 1; the dropout costs STS-B points, and MRPC was
run without it too. Each row was made by the following, that of all weights without `--adapters`:

    minialbert finetune --model english-4mb --task TASK --data DATA --adapters --lr RATE --epochs EPOCHS --seed SEED \\
      --precision bf16 --set task.decoding=alone --set tuning.optimizer=OPTIMISER --set tuning.dropout=DROPOUT
"""


AVERAGES = """
## Averaged weights

Exponential means of all weights, kept beside the distillation of seed {seed} above. Held-out masked tokens in per
cent, their loss, and the divergence from the teacher's predictions: no mean is better than the last weights, so there
is no such option. A decay is at most (1 + step) / (10 + step), which is 0.991 at the end. One run.

| weights | masked tokens | loss | divergence |
| --- | ---: | ---: | ---: |
"""
TAIL_OF_AVERAGES = """
Made, on the windows of `benchmarks/quality/two_million_tokens.sh`, by

    python benchmarks/quality/weight_averages.py TEACHER windows/ ROW {seed} {settings}
"""


def score(record: Mapping[str, Any]) -> float:
    """Return what the card of `english-4mb` shows of a tuned model, in per cent."""
    ((_, scores),) = scores_of([record]).values()
    return scores[0]


def adapters(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of tuned adapters beside full tuning, pairs of one task and seed."""
    full = {
        (one["recipe"]["task"]["data"], one["seed"]): score(one)
        for one in tuned_from(Path("results") / "boxed" / START)
    }
    found = defaultdict(dict)
    for one in records:
        tuning, data = one["recipe"]["tuning"], one["recipe"]["task"]["data"]
        title = data if tuning["mode"] == "adapters" else f"{data}, all weights"
        key = (
            data,
            title,
            tuning["optimizer"],
            tuning["learning_rate"],
            tuning["epochs"],
            tuning["dropout"] or 0,
        )
        found[key][one["seed"]] = score(one)
    rows, best = [], {}
    for (data, title, optimiser, rate, epochs, dropout), scores in sorted(found.items()):
        pairs = {
            seed: (value, full[data, seed]) for seed, value in sorted(scores.items()) if (data, seed) in full
        }
        ours, all_weights = (mean(pair[at] for pair in pairs.values()) for at in (0, 1))
        ahead = ", ".join(f"{seed}: {one - other:+.1f}" for seed, (one, other) in pairs.items())
        settings = f"{title} | {optimiser} | {rate:g} | {epochs:g} | {dropout:g}"
        rows.append(f"| {settings} | {ours:.1f} | {all_weights:.1f} | {ahead} |\n")
        if optimiser == "muon" and len(pairs) >= len(best.get(data, ())):
            best[data] = [one - other for one, other in pairs.values()]
    parts = [f"{data} {mean(values):+.1f}" for data, values in best.items()]
    means = (
        f"Muon's row with the most seeds, mean over seeds: {', '.join(parts)}; over these {len(best)} tasks "
        f"{mean(mean(values) for values in best.values()):+.1f}."
    )
    model = next(one["model"] for one in records if one["mode"] == "adapters")
    share = 100 * model["trainable_parameters"] / model["parameters"]
    return ADAPTERS.format(share=share) + "".join(rows) + TAIL_OF_ADAPTERS.format(means=means)


def averages() -> str:
    """Return the table of averaged weights."""
    measured = json.loads((RESULTS / "averages.json").read_text(encoding="utf-8"))
    rows = [
        f"| {'the last' if decay == 'last' else f'mean, decay {decay}'} | {100 * end['mlm_accuracy']:.2f} | "
        f"{end['mlm_loss']:.3f} | {end['output_kl']:.4f} |\n"
        for decay, end in measured["held_out"].items()
    ]
    return (
        AVERAGES.format(seed=measured["seed"])
        + "".join(rows)
        + TAIL_OF_AVERAGES.format(seed=measured["seed"], settings=" ".join(measured["settings"]))
    )


def distilled(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of distillations, by optimiser and rate."""
    found = defaultdict(list)
    for record in records:
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
    return "".join(rows)


def page() -> str:
    """Return the page, made from the records."""
    every = [load_record(file) for file in find_run_records(RESULTS)]
    short, long = (
        [one for one in records if one["kind"] == "distillation"]
        for records in (every, map(load_record, find_run_records(LONGER)))
    )
    of, teacher = short[0]["training"], 100 * short[0]["metrics"]["teacher"]["mlm_accuracy"]
    tokens = long[0]["training"]["windows"] * long[0]["recipe"]["data"]["window_length"] / 1e6
    return (
        HEAD.format(steps=of["steps"], windows=of["windows"], teacher=teacher)
        + distilled(short)
        + LONG.format(tokens=tokens, rank=long[0]["recipe"]["student"]["embedding_size"])
        + distilled(long)
        + TAIL
        + averages()
        + adapters([one for one in every if one["kind"] == "finetune"])
    )


if __name__ == "__main__":
    write_atomically(RESULTS / "README.md", page())
