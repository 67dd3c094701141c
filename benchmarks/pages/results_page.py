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
    "hidden-only-20m": "student, distilled on 20 M tokens",
    "student-64": "student, distilled on 2 M tokens",
    "student-64/adapters": "the same, only its adapters tuned",
    "masked-lm-64": "the same start, 2 M tokens of masked-LM alone",
    "mean-start": "2 M tokens from the mean of the teacher's layers",
    "undistilled": "student before its first step",
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
        f"A 6-layer, 384-wide teacher into {depth} iterations of rank {rank}, on English text and two CPU cores: "
        "[the paper in miniature](docs/results.md).",
        "",
        f"| | parameters | masked tokens, held out | {' | '.join(labels)} |",
        "| --- | ---: | ---: |" + " ---: |" * len(TASKS),
    ]
    for side, name in ROWS.items():
        row = side.partition("/")[0]
        scores = [measured(suite, side, [task], results) for task in TASKS]
        if not any(scores):
            continue
        cells = [f"{100 * score.mean:.1f} ({score.n})" if score else "-" for score in scores]
        lines.append(f"| {name} | {_size(row, results)} | {_masked(row, results)} | {' | '.join(cells)} |")
    gain = difference(compare(suite, Comparison(a="student-64", b="undistilled", tasks=list(TASKS)), results))
    lines += [
        "",
        "Masked tokens predicted, entity F1 (strict IOB2, now `entity_f1_strict`), Matthews correlation and mean of "
        "both correlations, in per cent; in "
        f"brackets the number of seeds.{_kept(suite, results)} Two million tokens are a beginning, "
        f"{show(gain)} points (95 % interval) ahead of the start from the teacher's weights on these tasks; "
        "the paper's students saw 5.4 billion.",
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
    after, before = (f"{one.share:.1f} % ({one.n})" for one in shares)
    return (
        f" Over {len(keep.tasks)} tasks, tuned in full, the student of 20 M tokens keeps {after} of its teacher's "
        f"mean, before its first step {before}."
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
