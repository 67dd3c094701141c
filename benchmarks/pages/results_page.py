"""Write the page of results/miniature, its tables, docs/results.md and the README's table anew from the records there.

python benchmarks/pages/results_page.py
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import task_distillation

from minialbert.experiments.suite.cells import Result, expand, find_results
from minialbert.experiments.suite.claims import compare, judge, kept
from minialbert.experiments.suite.page import difference, measured, write_suite_report
from minialbert.experiments.suite.schema import Claim, Comparison, Suite, load_suite
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
FIGURE = "Share of the teacher's score that a student keeps, against the tokens it was distilled on"
HEAD = """# Results: the paper in miniature

Does a small student show what the paper claims of a large one? {description}

{done} of {tunings} tunings and {made} of {students} distillations are done.

**[The full report](../results/miniature/report.html)** has every comparison, table, training curve and attention map in
one file. Its [README](../results/miniature/README.md) says what is measured, and how. This page comes from the same
records: `python benchmarks/pages/results_page.py` writes it. [Suites](suite.md) explains how to run such a study.

## What is kept

![{figure}](img/tokens-light.svg#only-light)
![{figure}](img/tokens-dark.svg#only-dark)

The figure has four tasks: NCBI-disease, CoLA, STS-B and MRPC.

{headline}
## Claims

| claim | verdict | deciding comparison | difference | bound |
| --- | --- | --- | ---: | ---: |
{claims}

Each comparison tests "A beats B by more than the bound", in points. The difference is the mean over tasks, with its
{confidence:g} % interval in brackets. If the whole interval lies above the bound, the claim holds. If all of it lies
below, the opposite does. Otherwise it is undecided. A claim holds if each of its comparisons does. The table shows the
first comparison that decides. An interim verdict still lacks pairs of runs.

## What these results do not say

- Each student was distilled once. The intervals cover the seeds of tuning alone, not another distillation of the same
  student.
- They say nothing about other tasks, and about one verdict in twenty may be wrong by chance.
- Levels cannot be compared with the paper's: its models are twice as wide, and saw more than a thousand times the text.
"""


def main() -> None:
    """Write the report beside its records, the page of the documentation, and the table of the README."""
    suite = load_suite("miniature")
    write_suite_report(suite, RESULTS, RESULTS)
    results = find_results(suite, [RESULTS])
    PAGE.write_text(page(suite, results), encoding="utf-8")
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    table = summary(suite, results)
    README.write_text(f"{before}{BEGIN}\n{table}{END}{after}", encoding="utf-8")


def page(suite: Suite, results: Mapping[str, Result]) -> str:
    """Return the page of the documentation: how much is kept, and the verdicts."""
    cells = expand(suite)
    students = sum(cell.is_distillation for cell in cells)
    made = sum(name.endswith("/distill") for name in results)
    return HEAD.format(
        description=suite.description,
        figure=FIGURE,
        done=len(results) - made,
        tunings=len(cells) - students,
        made=made,
        students=students,
        headline=_headline(suite, results).replace("](results/", "](../results/"),
        claims="\n".join(_claim(suite, claim, results) for claim in suite.claims),
        confidence=100 * suite.confidence,
    )


def _claim(suite: Suite, claim: Claim, results: Mapping[str, Result]) -> str:
    compared = [compare(suite, one, results) for one in claim.comparisons]
    verdict = judge(claim, compared)
    said, found = next(
        (said, found)
        for said, found in zip(claim.comparisons, compared, strict=True)
        if said.counts and found.verdict == verdict
    )
    interim = ", interim" if any(one.interim for one in compared) and verdict != "unfinished" else ""
    what = f"{said.a}{f' ({said.label})' if said.label else ''} against {said.b}"
    bound = f"{said.exceeds:+g}" + (" %" if said.figure == "step-time" else "")
    return f"| {claim.text} | {verdict}{interim} | {what} | {show(difference(found))} | {bound} |"


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
    seeds = set[int]()
    for side, name in ROWS.items():
        row = side.partition("/")[0]
        scores = [measured(suite, side, [task], results) for task in TASKS]
        if not all(scores):
            continue
        seeds |= {score.n for score in scores if score}
        cells = [f"{100 * score.mean:.1f}" for score in scores if score]
        lines.append(f"| {name} | {_size(row, results)} | {_masked(row, results)} | {' | '.join(cells)} |")
    lines += [
        "",
        "In per cent: masked tokens of held-out text that are predicted, entity F1 (`entity_f1_strict`), Matthews "
        "correlation, and the mean of Pearson's and Spearman's correlations. Scores are means over "
        f"{' to '.join(map(str, sorted(seeds)))} tuning seeds; each student was distilled once.",
        "",
        _headline(suite, results),
        "",
    ]
    return "\n".join(lines)


def _headline(suite: Suite, results: Mapping[str, Result]) -> str:
    gain = compare(suite, Comparison(a="student-64", b="undistilled", tasks=list(TASKS)), results)
    assert gain.interval is not None
    tells = "significant" if min(gain.interval) > 0 else "not significant"
    *some, last = (suite.tasks[task].label for task in TASKS)
    return (
        f"{_kept(suite, results)}- After 2 M tokens, distillation adds {show(difference(gain))} points on "
        f"{', '.join(some)} and {last} (95 % interval; {tells}). The paper's students saw 5.4 billion tokens.\n"
    )


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
        f"{task_distillation.headline()}"
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
