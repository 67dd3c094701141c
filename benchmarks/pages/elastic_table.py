"""Tables of elastic_runs.sh: the price of elastic training at full depth, and of fewer iterations after it.

    python benchmarks/pages/elastic_table.py RUNS results/elastic --fixed results/task-distillation/two-million-tokens

RUNS has elastic/TASK-SEED, and fixed/TASK-SEED unless another folder has them. Copies the records of RUNS, and writes
result.json and table.md. Differences are paired by seed, with a 95 % interval by
Student's t. A task on which the fixed student is at chance (its interval holds the chance score) is shown but not
averaged.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scipy import stats

from minialbert.runs.files import write_atomically
from minialbert.runs.packed import find_run_records, pack_files, read_run_file
from minialbert.runs.records import write_result

KINDS = ("fixed", "elastic")
# What a constant answer scores: correlations 0, entity F1 0, accuracy the share of the most frequent class.
CHANCE = {"matthews_correlation": 0.0, "pearson_spearman": 0.0, "entity_f1": 0.0}
SST2_MAJORITY = 444 / 872  # positive sentences of the development set


def read(runs: Path, fixed: Path | None = None) -> dict[str, dict[int, dict[str, dict[str, Any]]]]:
    """Return records by task, seed and kind, of seeds that have both; `fixed` may hold the fixed ones instead."""
    found: dict[str, dict[int, dict[str, dict[str, Any]]]] = {}
    for kind in KINDS:
        for file in find_run_records(fixed if fixed is not None and kind == "fixed" else runs / kind):
            task, _, seed = file.parent.name.rpartition("-")
            record = json.loads(read_run_file(file))
            found.setdefault(task, {}).setdefault(int(seed), {})[kind] = record
    return {
        task: {seed: pair for seed, pair in sorted(seeds.items()) if len(pair) == len(KINDS)}
        for task, seeds in found.items()
    }


def figures(values: list[float]) -> dict[str, float | None]:
    """Return mean and half the width of its 95 % interval, which a single value has not."""
    if len(values) < 2:
        return {"mean": values[0], "interval": None}
    spread = statistics.stdev(values) / len(values) ** 0.5
    return {"mean": statistics.mean(values), "interval": float(stats.t.ppf(0.975, len(values) - 1)) * spread}


def differences(ones: list[float], others: list[float]) -> dict[str, float | None]:
    """Return the figures of paired differences."""
    return figures([one - other for one, other in zip(ones, others, strict=True)])


def by_depth(record: dict[str, Any]) -> dict[int, float]:
    """Return the reported score of an elastic run at every depth, in points."""
    split, metric = record["split"], record["metric"]
    scores = {int(k): 100 * v[split][metric] for k, v in record["metrics_by_depth"].items()}
    iterations = max(scores) + 1
    return {**scores, iterations: 100 * record["score"]}


def compare(fixed: list[float], elastic: dict[str, list[float]]) -> dict[str, Any]:
    """Return figures and paired differences of scores by seed; the last depth is the full one."""
    full = elastic[max(elastic, key=int)]
    return {
        "fixed": figures(fixed),
        "elastic": {depth: figures(scores) for depth, scores in elastic.items()},
        "elastic_minus_fixed": {depth: differences(scores, fixed) for depth, scores in elastic.items()},
        "depth_minus_full": {
            depth: differences(scores, full) for depth, scores in elastic.items() if scores is not full
        },
    }


def summarise(pairs: dict[int, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return scores and paired differences of one task."""
    first = next(iter(pairs.values()))["fixed"]
    fixed = [100 * pair["fixed"]["score"] for pair in pairs.values()]
    runs = [by_depth(pair["elastic"]) for pair in pairs.values()]
    elastic = {str(depth): [run[depth] for run in runs] for depth in sorted(runs[0])}
    found = compare(fixed, elastic)
    chance = 100 * CHANCE.get(first["metric"], SST2_MAJORITY)
    return {
        "metric": first["metric"],
        "split": first["split"],
        "seeds": sorted(pairs),
        **found,
        "scores": {"fixed": fixed, "elastic": elastic},
        "chance": chance,
        "at_chance": abs(found["fixed"]["mean"] - chance) <= (found["fixed"]["interval"] or 0),
    }


def mean_of_tasks(tasks: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return the same of the mean over the tasks that are not at chance, for the seeds that all of them have."""
    counted = {name: task for name, task in tasks.items() if not task["at_chance"]}
    if not counted:
        return None
    seeds = sorted(set.intersection(*(set(task["seeds"]) for task in counted.values())))

    def mean(pick: Callable[[dict[str, Any]], list[float]]) -> list[float]:
        rows = [[pick(task)[task["seeds"].index(seed)] for seed in seeds] for task in counted.values()]
        return [statistics.mean(row) for row in zip(*rows, strict=True)]

    depths = next(iter(counted.values()))["scores"]["elastic"]
    elastic = {depth: mean(lambda task, d=depth: task["scores"]["elastic"][d]) for depth in depths}
    fixed = mean(lambda task: task["scores"]["fixed"])
    return {"tasks": list(counted), "seeds": seeds, **compare(fixed, elastic)}


def cell(value: dict[str, float], sign: bool = False) -> str:
    """Return mean and interval as text."""
    number = f"{value['mean']:+.2f}" if sign else f"{value['mean']:.2f}"
    return number if value["interval"] is None else f"{number} ± {value['interval']:.2f}"


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    rows = dict(record["tasks"])
    if record["mean"] is not None:
        rows["**mean**"] = record["mean"]
    depths = sorted(next(iter(rows.values()))["elastic"], key=int)
    full = depths[-1]
    lines = [
        f"| task | seeds | fixed, {full} iterations | "
        + " | ".join(f"elastic, {k}" for k in reversed(depths))
        + " | "
        + " | ".join(
            [f"elastic {full} minus fixed", *(f"elastic {k} minus {full}" for k in reversed(depths[:-1]))]
        )
        + " |",
        "|---" * (3 + 2 * len(depths)) + "|",
    ]
    for name, row in rows.items():
        shown = f"{name} (at chance)" if row.get("at_chance") else name
        cells = [shown, str(len(row["seeds"])), cell(row["fixed"])]
        cells += [cell(row["elastic"][k]) for k in reversed(depths)]
        cells += [cell(row["elastic_minus_fixed"][full], sign=True)]
        cells += [cell(row["depth_minus_full"][k], sign=True) for k in reversed(depths[:-1])]
        lines.append(f"| {' | '.join(cells)} |")
    counted = ", ".join(record["mean"]["tasks"]) if record["mean"] else "none"
    lines += [
        "",
        f"Points; ± half a 95 % interval over seeds, differences paired by seed. Mean over {counted}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write records and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder that elastic_runs.sh wrote")
    parser.add_argument("output", type=Path, help="folder for records and table")
    parser.add_argument(
        "--fixed", type=Path, help="folder with the fixed ones (TASK-SEED); they are not copied"
    )
    arguments = parser.parse_args()
    found = {task: pairs for task, pairs in read(arguments.runs, arguments.fixed).items() if pairs}
    copied = KINDS if arguments.fixed is None else ("elastic",)
    for kind in copied:
        files = [f"{task}-{seed}/result.json" for task, pairs in found.items() for seed in pairs]
        pack_files(
            arguments.output / kind,
            {file: read_run_file(arguments.runs / kind / file) for file in files},
        )
    tasks = {task: summarise(pairs) for task, pairs in sorted(found.items())}
    record = {"kind": "elastic-depth", "tasks": tasks, "mean": mean_of_tasks(tasks)}
    write_result(arguments.output / "result.json", record)
    write_atomically(arguments.output / "table.md", table(record))
    print(table(record))


if __name__ == "__main__":
    main()
