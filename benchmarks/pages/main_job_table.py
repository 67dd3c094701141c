"""Copies the records of `benchmarks/quality/main_job.sh` into results/ and makes table and curves from them.

    python benchmarks/pages/main_job_table.py OUTPUT results/main-job

Needs matplotlib (pip install 'minialbert[report]') for the curves.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

RUNS = {
    "distilled": "started from the teacher, distilled",
    "masked-lm": "(a) the same start, masked-LM alone",
    "random-start": "(b) random start, distilled",
    "today": "(c) today's recipe: from one layer of the teacher, hidden states alone, Muon",
}
TERMS = ("mlm", "attention", "hidden", "output", "embedding")


def main() -> None:
    """Copy, tabulate and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder that main_job.sh wrote")
    parser.add_argument("results", type=Path, help="folder for records, table and curves")
    arguments = parser.parse_args()
    records, logs = {}, {}
    for name in RUNS:
        source, target = arguments.output / name, arguments.results / name
        if not (source / "result.json").is_file():
            continue
        target.mkdir(parents=True, exist_ok=True)
        for file in ("result.json", "log.jsonl"):
            shutil.copyfile(source / file, target / file)
        records[name] = json.loads((target / "result.json").read_text())
        logs[name] = [json.loads(line) for line in (target / "log.jsonl").read_text().splitlines()]
    if not records:
        parser.error(f"{arguments.output} holds no finished run: run benchmarks/quality/main_job.sh first")
    (arguments.results / "README.md").write_text(page(records), encoding="utf-8")
    plot(logs, arguments.results / "curves.svg")


def page(records: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown page."""
    first = next(iter(records.values()))
    machine, training = first["machine"], first["training"]
    lines = [
        "# The main job on real text",
        "",
        "Made from the records beside this page by",
        "",
        "    benchmarks/quality/main_job.sh TEACHER CORPUS OUTPUT",
        "    python benchmarks/pages/main_job_table.py OUTPUT results/main-job",
        "",
        "at commit "
        + ", ".join(f"{record['commit'][:7]} ({name})" for name, record in records.items())
        + (
            ". A later one may start students otherwise (CHANGELOG): to make a run again, check its commit out first. "
            "What `today` is, the script of its commit calls `distilled`."
        ),
        "",
        f"Teacher: {first['model']['teacher']}, {first['model']['teacher_parameters']:,} parameters with its masked-LM "
        f"head. Student: {first['model']['iterations']} iterations, {first['model']['parameters']:,} parameters "
        f"({first['model']['encoder_parameters']:,} without head; {first['model']['adapter_parameters']:,} in "
        f"adapters). {training['steps']} steps of {first['recipe']['training']['batch_size']} windows of "
        f"{first['recipe']['data']['window_length']} tokens, seed {first['seed']}.",
        *(
            f"{name} was made with `--set training.precision={record['training']['precision']}`: on this processor "
            "fp32 matrix products are faster than bf16 ones (`minialbert distill --dry-run` measures the rate)."
            for name, record in records.items()
            if record["training"]["precision"] != training["precision"]
        ),
        f"Machine: {machine['processor']}, {machine['cores']} cores, shared with other work, so tokens per second "
        "(median over log intervals) are a lower bound.",
        "",
        f"Held-out: {first['metrics']['student_end']['masked_tokens']:,} masked tokens of documents that no training "
        "window comes from. Behind ±: half the difference between the two halves of the held-out windows.",
        "",
        "| | steps, precision | masked-token accuracy | masked-LM loss | output KL | cosine 1 / 2 / 3 "
        "| attention KL 1 / 2 / 3 | tokens/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    if "teacher" in first["metrics"]:
        lines.append(row("teacher", "", first["metrics"]["teacher"], ""))
    for name, record in records.items():
        steps = record["training"]["steps"]
        if name != "masked-lm":
            lines.append(row(f"{RUNS[name]}: at the start", "0", record["metrics"]["student_start"], ""))
        speed = f"{record['training']['tokens_per_second']:,.0f}"
        lines.append(
            row(
                RUNS[name],
                f"{steps}, {record['training']['precision']}",
                record["metrics"]["student_end"],
                speed,
            )
        )
    lines += [
        "",
        "## Expectations",
        "",
        *comparisons(records),
        "",
        "## Loss terms at the end of training",
        "",
    ]
    lines += ["Unweighted, mean of the last logged interval; alignment summed over the iterations.", ""]
    lines += ["| | " + " | ".join(TERMS) + " | weighted sum |", "|---|" + "---|" * (len(TERMS) + 1)]
    for name, record in records.items():
        losses = record["training"]["last_logged_losses"]
        values = [losses.get(f"loss_{term}", 0.0) for term in TERMS] + [losses["loss"]]
        lines.append(
            f"| {RUNS[name]} | " + " | ".join(f"{value:.3f}" if value else "–" for value in values) + " |"
        )
    lines += ["", "![Loss terms and held-out metrics over the steps](curves.svg)", ""]
    return "\n".join(lines)


def row(name: str, steps: str, metrics: dict[str, Any], speed: str) -> str:
    """Return one table row."""

    def value(key: str, scale: float = 1.0, digits: int = 3) -> str:
        if key not in metrics:
            return ""
        return f"{scale * metrics[key]:.{digits}f} ± {scale * spread(metrics, key):.{digits}f}"

    def triple(key: str) -> str:
        found = [metrics[f"{key}_{i}"] for i in range(1, 99) if f"{key}_{i}" in metrics]
        return " / ".join(f"{item:.3f}" for item in found)

    cells = [
        value("mlm_accuracy", 100, 1) + " %",
        value("mlm_loss"),
        value("output_kl"),
        triple("cosine"),
        triple("attention_kl"),
        speed,
    ]
    return f"| {name} | {steps} | " + " | ".join(cells) + " |"


def spread(metrics: dict[str, Any], key: str) -> float:
    """Return half the difference between the two held-out halves."""
    one, two = (half[key] for half in metrics["halves"])
    return abs(one - two) / 2


def comparisons(records: dict[str, dict[str, Any]]) -> list[str]:
    """Return what was expected and what came out, half by half: the halves are the same windows for all runs."""
    lines = []
    distilled = records.get("distilled", {}).get("metrics", {}).get("student_end")
    for other, keys in (
        ("masked-lm", ("mlm_accuracy",)),
        (
            "random-start",
            (
                "mlm_accuracy",
                "mlm_loss",
                "cosine_1",
                "cosine_2",
                "cosine_3",
                "attention_kl_1",
                "attention_kl_2",
                "attention_kl_3",
            ),
        ),
        ("today", ("mlm_accuracy", "mlm_loss", "cosine_3")),
    ):
        if distilled is None or other not in records:
            lines.append(f"- against {RUNS[other]}: not finished")
            continue
        end = records[other]["metrics"]["student_end"]
        for key in keys:
            scale, unit = (100, " points") if key == "mlm_accuracy" else (1, "")
            whole = scale * (distilled[key] - end[key])
            halves = [
                scale * (a[key] - b[key]) for a, b in zip(distilled["halves"], end["halves"], strict=True)
            ]
            parts = " and ".join(f"{half:+.3f}" for half in halves)
            lines.append(
                f"- {key.replace('_', ' ')}, distilled minus {RUNS[other]}: {whole:+.3f}{unit} (halves {parts})"
            )
    return lines


def plot(logs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw every loss term and the held-out metrics over the steps."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "minialbert"  # the same records give the same file
    from matplotlib import pyplot

    panels = [f"loss_{term}" for term in TERMS[:4]] + ["eval_mlm_accuracy", "eval_mlm_loss", "eval_cosine_3"]
    colours = {name: f"C{index}" for index, name in enumerate(RUNS)}  # a run keeps its own in every panel
    figure, axes = pyplot.subplots(2, 4, figsize=(15, 6.5))
    for axis, panel in zip(axes.flat, panels, strict=False):
        for name, log in logs.items():
            points = [(entry["step"], entry[panel]) for entry in log if entry.get(panel)]
            start = next((entry["metrics"]["student_start"] for entry in log if entry["kind"] == "start"), {})
            if panel.startswith("eval_") and panel[5:] in start:
                points.insert(0, (0, start[panel[5:]]))
            if points:
                marker = "o" if "eval" in panel else None
                axis.plot(
                    *zip(*points, strict=True), color=colours[name], label=RUNS[name], marker=marker, ms=3
                )
        axis.set_title(panel.replace("eval_", "held-out ").replace("_", " "), fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    axes.flat[-1].axis("off")
    axes.flat[-1].legend(handles, labels, loc="center")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
