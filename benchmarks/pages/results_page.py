"""Write the page of results/miniature, its tables, docs/results.md and the README's table anew from the records there.

python benchmarks/pages/results_page.py
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from minialbert.experiments.suite.cells import Result, find_results
from minialbert.experiments.suite.claims import compare, kept
from minialbert.experiments.suite.page import difference, measured, write_suite_report
from minialbert.experiments.suite.schema import Comparison, Suite, load_suite
from minialbert.report.tables import show

RESULTS = Path("results") / "miniature"
PAGE = Path("docs") / "results.md"
README = Path("README.md")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
TASKS = ("ncbi-disease", "cola", "stsb")  # MRPC: nothing here of 2 M tokens is off its majority class
ROWS = {
    "teacher/full-glue-1e-4": "teacher",
    "hidden-only-20m": "student, 20 M tokens of distillation",
    "student-64": "student, 2 M tokens of distillation",
    "student-64/adapters": "… with only its adapters tuned",
    "masked-lm-64": "student, 2 M tokens of masked-LM training, no distillation",
    "mean-start": "student, 2 M tokens, started from the mean of the teacher's layers",
    "undistilled": "student, not trained: it starts from its teacher's weights",
}
HEAD = """# Results: the paper in miniature

Made by `python benchmarks/pages/results_page.py` from the records in [results/miniature](../results/miniature), which
[a suite](suite.md) left there; not written by hand. The same as one file with plots, training curves and attention
maps: [results/miniature/report.html](../results/miniature/report.html).
"""


def main() -> None:
    """Write the report beside its records, the page of the documentation, and the table of the README."""
    suite = load_suite("miniature")
    report = write_suite_report(suite, RESULTS, RESULTS)
    _, _, body = report.partition("\n")
    PAGE.write_text(f"{HEAD}{body}", encoding="utf-8")
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    table = summary(suite, find_results(suite, [RESULTS]))
    README.write_text(f"{before}{BEGIN}\n{table}{END}{after}", encoding="utf-8")


def summary(suite: Suite, results: Mapping[str, Result]) -> str:
    """Return the table of the README: what is known of the smallest student, its teacher and its other starts."""
    student = results["student-64/distill"].record
    rank, depth = student["recipe"]["student"]["embedding_size"], student["model"]["iterations"]
    labels = [suite.tasks[task].label for task in TASKS]
    lines = [
        "**Measured here, at small scale.** The teacher has 6 layers, 384 wide. The students have "
        f"{depth} iterations of rank {rank} and saw English text on two CPU cores: "
        "[the paper in miniature](docs/results.md).",
        "",
        f"| | parameters | masked tokens | {' | '.join(labels)} |",
        "| --- | ---: | ---: |" + " ---: |" * len(TASKS),
    ]
    for side, name in ROWS.items():
        row = side.partition("/")[0]
        scores = [measured(suite, side, [task], results) for task in TASKS]
        if not any(scores):
            continue
        cells = [f"{100 * score.mean:.1f} ({score.n})" if score else "-" for score in scores]
        lines.append(f"| {name} | {_size(row, results)} | {_masked(row, results)} | {' | '.join(cells)} |")
    gain = compare(suite, Comparison(a="student-64", b="undistilled", tasks=list(TASKS)), results)
    assert gain.interval is not None
    tells = "significant" if min(gain.interval) > 0 else "not significant"
    lines += [
        "",
        "In per cent: masked tokens of held-out text that are predicted, entity F1 (`entity_f1_strict`), Matthews "
        "correlation, and the mean of Pearson's and Spearman's correlations. The number of tuning seeds is in "
        "brackets; each student was distilled once.",
        "",
        f"{_kept(suite, results)}- After 2 M tokens, distillation adds {show(difference(gain))} points on these "
        f"three tasks (95 % interval; {tells}). The paper's students saw 5.4 billion tokens.",
        "",
        "",
    ]
    return "\n".join(lines)


def _kept(suite: Suite, results: Mapping[str, Result]) -> str:
    keep = suite.reach
    if keep is None:
        return ""
    shares = [kept(suite, keep, side, results) for side in (keep.of, *keep.beside)]
    if any(one.share is None for one in shares):
        return ""
    after, before = (f"{one.share:.1f} %" for one in shares)
    return (
        f"- Over {len(keep.tasks)} tasks the student of 20 M tokens keeps {after} of its teacher's mean score. The "
        f"student that was not trained keeps {before}: most of what is kept comes from the teacher's weights.\n"
    )


def _size(row: str, results: Mapping[str, Result]) -> str:
    model = results["student-64/distill"].record["model"]
    size = model["teacher_encoder_parameters"]
    if row != "teacher":
        size = results[f"{row}/distill"].record["model"]["encoder_parameters"]
    return f"{size / 1e6:.1f} M"


def _masked(row: str, results: Mapping[str, Result]) -> str:
    if row == "teacher":
        metrics = results["student-64/distill"].record["metrics"]["teacher"]
    else:
        found = results[f"{row}/distill"].record["metrics"]
        metrics = found.get("student_end") or found["student_start"]
    return f"{100 * metrics['mlm_accuracy']:.1f}"


if __name__ == "__main__":
    main()
