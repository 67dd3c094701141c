"""Write the page of results/four-bits: what int8 and int4 cost taggers that were tuned from the same encoder.

python benchmarks/pages/four_bits.py
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from minialbert.runs.files import write_atomically
from minialbert.runs.packed import find_run_records
from minialbert.runs.records import load_record, mean_and_sd

RESULTS = Path("results") / "four-bits"
HEAD = """# What four bits cost a small tagger

`english-4mb` tuned on NCBI-disease with {count} seeds, those behind
[its card](../../models/minialbert_models/english-4mb/README.md), then exported, and scored on the test split by exact
spans. Differences are those to the tuned model, seed by seed. Made by `python benchmarks/pages/four_bits.py` from the
records here.

| | MB | F1 | difference | by seed |
| --- | ---: | ---: | ---: | --- |
"""
TAIL = """
`--tolerance` is for the comparison of single outputs, which four bits do not pass; the score is what counts here.

    minialbert export --model TUNED/model --quantize int4 --tolerance 1 --output TUNED-int4/
    minialbert evaluate --model TUNED-int4/ --data NCBI-disease --split test --output int4-SEED
"""


def page() -> str:
    """Return the page, made from the records."""
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    size: dict[str, float] = {}
    for file in find_run_records(RESULTS):
        record, (name, other) = load_record(file), file.parent.name.split("-")
        if name == "graph":
            size |= {other: record["bytes"] / 1e6, "fp32": record["model"]["bytes"] / 1e6}
        else:
            scores[name][other] = 100 * record["score"]
    rows = []
    for precision in ("fp32", "int8", "int4"):
        found = [scores[precision][seed] - scores["fp32"][seed] for seed in sorted(scores["fp32"])]
        change = "" if precision == "fp32" else f"{mean_and_sd(found)[0]:+.2f}"
        each = "" if precision == "fp32" else ", ".join(f"{one:+.2f}" for one in found)
        score = mean_and_sd(list(scores[precision].values()))[0]
        rows.append(f"| {precision} | {size[precision]:.1f} | {score:.1f} | {change} | {each} |\n")
    return HEAD.format(count=len(scores["fp32"])) + "".join(rows) + TAIL


if __name__ == "__main__":
    write_atomically(RESULTS / "README.md", page())
