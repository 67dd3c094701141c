"""Two runs of one kind side by side: what differs in their settings, figures, cost, curves and origin."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minialbert.errors import UserError, in_words, quoted, shown
from minialbert.recipes.schema import Mark, flat_settings, marked, without_folders
from minialbert.report.blocks import Block, LineChart, Listing, Section, Series, Text
from minialbert.report.curves import Points, held_out_curves, read_curves
from minialbert.report.errors import labelled_lines, readable
from minialbert.report.sections import Run, figures_of, without_paths
from minialbert.report.tables import Difference, Table, Value
from minialbert.runs.packed import is_run_file
from minialbert.runs.records import finite, load_record, lower_is_better
from minialbert.tasks.certificate import RESAMPLES, answers, ratios, resampled, units

_KINDS = dict.fromkeys(("distillation", "initialisation"), "distillation")
_KINDS |= {"finetune": "fine-tuning", "evaluation": "evaluation"}
_COST = ("steps", "best_step", "skipped_steps", "windows", "seconds", "seconds_per_step", "tokens_per_second")
_SIZES = ("parameters", "encoder_parameters", "adapter_parameters", "trainable_parameters")

_MOST = 100  # texts that changed
_Pair = tuple[Run, Run]


def compare_runs(a: Path, b: Path) -> list[Section]:
    """Return the sections of a page that puts two runs of one kind side by side.

    Each is given as its directory or its `result.json`; of a distillation, a fine-tuning or an evaluation. A record
    that is missing or broken, and two of different kinds, are a `UserError`.
    """
    runs = _read("A", a), _read("B", b)
    one, other = map(_kind, runs)
    if one != other:
        advice = "compare two runs of one kind"
        raise UserError(f"{runs[0].file} is a record of {one}, {runs[1].file} one of {other}: {advice}")
    sections = [
        Section("Summary", tuple(_summary(runs))),
        _differences("Settings that differ", "setting", runs, _settings),
        Section("Results", tuple(_results(runs))),
        Section("The same texts", tuple(_paired(runs))),
        Section("Cost", (_cost(runs),)),
        Section("Training curves", tuple(_curves(runs))),
        _differences("Versions and machines", "what", runs, _origin),
        Section("Commands", tuple(_commands(runs))),
    ]
    return [section for section in sections if section.blocks]


def _read(letter: str, path: Path) -> Run:
    file = path if path.is_file() or path.name == "result.json" else path / "result.json"
    if not is_run_file(file):
        what = "has no result.json" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}: name the directory of a finished run, or its result.json")
    record = load_record(file)
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        advice = "expected a record of distill, finetune or evaluate"
        raise UserError(f"{file} is of kind {quoted(kind)}: {advice}")
    run = Run(f"{letter}: {shown(file.resolve().parent.name)}", file, record)
    if not run.part("metrics"):
        raise UserError(f"{file} has no metrics: name the record of a run that measured something")
    return run


def _kind(run: Run) -> str:
    return _KINDS[run.record["kind"]]


# The summary


def _summary(runs: _Pair) -> Iterator[Block]:
    yield Text(_verdict(runs), strong=True)
    models = (shown(run.part("model").get("name") or "-") for run in runs)
    named = zip(runs, models, strict=True)
    rows = ((a.name, a.record["kind"], name, _text(a.record.get("seed"))) for a, name in named)
    yield Table("Runs", ("", "kind", "model", "seed"), tuple(rows))
    if _identity(runs[0]) != _identity(runs[1]):
        yield Text("The runs were measured on different data, so their figures are of different texts.")
    yield Text("One run each: seeds alone may make a difference as large.")


def _verdict(runs: _Pair) -> str:
    (what, one), (other_what, other) = map(_reported, runs)
    if one is None or other is None:
        missing = " and ".join(["A"] * (one is None) + ["B"] * (other is None))
        return f"No verdict: {missing} has no reported figure."
    if what != other_what:
        return f"No verdict: A reports {what}, B {other_what}."
    figures = f"{what} {_text(one)} of A, {_text(other)} of B"
    if _text(one) == _text(other):
        return f"Equal as far as shown: {figures}."
    better = runs[(other > one) != lower_is_better(runs[0].record.get("metric"))]
    letter, _, name = better.name.partition(": ")
    return f"{letter} ({name}) is better: {figures} ({_gap(one, other)})."


def _reported(run: Run) -> tuple[str, float | None]:
    """Return the figure that a run is judged by, after its name and where it was measured."""
    if _kind(run) == "distillation":
        return "masked-token accuracy on held-out text", finite(run.end().get("mlm_accuracy"))
    split, metric = run.record.get("split"), run.record.get("metric")
    if not (isinstance(split, str) and isinstance(metric, str)):
        return "", None
    what = f"{in_words(metric)} of {run.record.get('task')} on {split}"
    return shown(what, 100), run.figure("score")


def _identity(run: Run) -> object:
    """Return what tells apart the data that a run was measured on, as far as its record has it."""
    data = run.part("data")
    if _kind(run) == "distillation":
        prints = [one.get("fingerprint") for one in data.get("folders") or () if isinstance(one, dict)]
        return prints, flat_settings(run.part("recipe")).get("training.eval_windows")
    rows = data.get("rows")
    measured = rows.get(str(run.record.get("split"))) if isinstance(rows, dict) else run.record.get("rows")
    return run.record.get("task"), measured


# Settings and origin


def _settings(run: Run) -> dict[str, Any]:
    flat = flat_settings(run.part("recipe"))
    flat = {name: value for name, value in flat.items() if name not in marked(Mark.NAME, Mark.LOG)}
    for name in marked(Mark.PLACE) & flat.keys():
        flat[name] = without_folders(flat[name], name)
    flat |= flat_settings({"objective": run.part("objective")})
    resolved = {"layer_map": run.record, "adapter_init": run.record, "precision": run.part("training")}
    flat |= {f"{name} (resolved)": part[name] for name, part in resolved.items() if name in part}
    if _kind(run) == "evaluation":  # which has no recipe
        flat |= {f"model.{name}": run.part("model").get(name) for name in ("name", "model_type")}
        names = ("task", "problem", "split", "num_iterations", "exit_threshold")
        flat |= {name: run.record[name] for name in names if name in run.record}
    return flat


def _origin(run: Run) -> dict[str, Any]:
    commit = {"commit": str(run.record.get("commit") or "-")[:12]}
    return flat_settings(run.part("versions")) | commit | flat_settings({"machine": run.part("machine")})


def _differences(title: str, what: str, runs: _Pair, read: Callable[[Run], dict[str, Any]]) -> Section:
    one, other = ({shown(name): _text(value) for name, value in read(run).items()} for run in runs)
    differ = [name for name in dict.fromkeys((*one, *other)) if one.get(name) != other.get(name)]
    rows = tuple((name, one.get(name, "-"), other.get(name, "-")) for name in differ)
    return Section(title, (Table(title, (what, *_labels(runs)), rows) if rows else Text("None."),))


def _labels(runs: _Pair, *whens: str) -> list[str]:
    """Return headings: the runs, or each at some times."""
    return [f"{run.name}{f', {when}' if when else ''}" for run in runs for when in whens or ("",)]


# Results and cost


def _results(runs: _Pair) -> Iterator[Table]:
    if _kind(runs[0]) == "distillation":
        yield _held_out(runs)
        return
    reported = [split for run in runs if isinstance(split := run.record.get("split"), str)]
    for split in dict.fromkeys([*reported, *runs[0].part("metrics"), *runs[1].part("metrics")]):
        figures = [figures_of(run.part("metrics").get(split)) for run in runs]
        first = [run.record.get("metric") for run in runs if run.record.get("split") == split]
        if rows := _rows(figures, [name for name in first if isinstance(name, str)]):
            yield Table(shown(split), ("figure", *_labels(runs), "B - A"), rows)


def _rows(
    figures: Sequence[Mapping[str, float]], first: Sequence[str] = (), prefix: str = ""
) -> tuple[tuple[str, ...], ...]:
    """Return a row per name: the figures of each column, and how far the second run's last is above the first's.

    With more columns than runs, those of a run follow each other, and a later one counts before an earlier.
    """
    named = dict.fromkeys(name for column in figures for name in column)
    rows, half = [], len(figures) // 2
    for name in dict.fromkeys([*(name for name in first if name in named), *named]):
        values = [column.get(name) for column in figures]
        sides = (values[:half], values[half:])
        last = [[value for value in side if value is not None][-1:] for side in sides]
        gap = _gap(last[0][0], last[1][0]) if all(last) else "-"
        rows.append((prefix + shown(name), *map(_text, values), gap))
    return tuple(rows)


def _held_out(runs: _Pair) -> Table:
    whens = ("student_start", "student_end")
    students = [figures_of(run.part("metrics").get(when)) for run in runs for when in whens]
    rows = _rows(students, ["mlm_accuracy"])
    # A teacher does not change: it stands where its student is afterwards.
    teachers = [side for run in runs for side in ({}, figures_of(run.part("metrics").get("teacher")))]
    rows += _rows(teachers, prefix="teacher: ")
    return Table("Held-out text", ("figure", *_labels(runs, "before", "after"), "B - A"), rows)


def _paired(runs: _Pair) -> Iterator[Block]:
    """Yield how two evaluations of the same texts differ: F1 with intervals, a test, and the texts that changed."""
    a, b = map(labelled_lines, runs)
    if not (a and b) or isinstance(a[0].get("label"), int | float):
        return
    with readable(runs[0]), readable(runs[1]):
        (gold, one), (gold_b, other) = (zip(*map(answers, lines), strict=True) for lines in (a, b))
        told = [[_told(line, side) for line in lines] for lines, side in ((a, 0), (a, 1), (b, 1))]
    texts = [line["text"] for line in a]
    if texts != [line["text"] for line in b] or gold != gold_b:
        yield Text("The texts or their annotations differ, so the predictions cannot be compared one by one.")
        return
    counts = [resampled(gold, found, units(a)) for found in (one, other)]
    rows: list[tuple[Value, ...]] = []
    for name in dict.fromkeys((*counts[0], *counts[1])):
        f1 = [100 * np.nan_to_num(ratios(of.get(name, np.zeros((1 + RESAMPLES, 3))))["f1"]) for of in counts]
        low, high = np.quantile((f1[1] - f1[0])[1:], [0.025, 0.975]).tolist()
        gap = Difference(float(f1[1][0] - f1[0][0]), (low, high))
        rows.append((name or "all", *(f"{of[0]:.1f}" for of in f1), gap))
    note = f"In brackets: 95 % intervals of the difference, from {RESAMPLES:,} paired bootstrap samples."
    yield Table("F1 on the same texts", ("", *_labels(runs), "B - A, points"), tuple(rows), (note,))
    right = [(mine == true, theirs == true) for true, mine, theirs in zip(gold, one, other, strict=True)]
    if "gold" not in a[0]:
        of_a, of_b = right.count((True, False)), right.count((False, True))
        p = f"p = {mcnemar(of_a, of_b):.3g} by McNemar's test"
        yield Text(f"A alone is right in {of_a:,} texts, B alone in {of_b:,}: {p}.")
    changed = []
    for is_right, mine, theirs, *words in zip(right, one, other, texts, *told, strict=True):
        if mine != theirs:
            changed.append(("better" if is_right[1] else "worse" if is_right[0] else "as wrong", *words))
    if changed:
        changed.sort(key=lambda row: row[0], reverse=True)
        most = min(len(changed), _MOST)
        said = f"{len(changed):,} of {len(a):,} texts have another answer. The table shows {most:,}."
        columns = ("B is", "text", "annotated", *_labels(runs))
        yield Table("Texts that changed", columns, tuple(changed[:_MOST]), (said,), page_only=True)


def mcnemar(a: int, b: int) -> float:
    """Return McNemar's exact two-sided p, of the numbers of texts that one model alone gets right."""
    n = a + b
    of_n = math.lgamma(n + 1) - n * math.log(2)
    chances = (math.exp(of_n - math.lgamma(k + 1) - math.lgamma(n - k + 1)) for k in range(min(a, b) + 1))
    return min(1.0, 2 * math.fsum(chances))


def _told(line: Mapping[str, Any], side: int) -> str:
    """Return what is annotated (0) or found (1) in a text."""
    if "gold" in line:
        named = [f"{one['text']} ({one['label']})" for one in line[("gold", "entities")[side]]]
    else:
        named = sorted(str(name) for (name,) in answers(line)[side])
    return ", ".join(named) or "-"


def _cost(runs: _Pair) -> Table:
    paths = {name: f"training.{name}" for name in _COST} | {name: f"model.{name}" for name in _SIZES}
    paths |= {"seconds": "training.wall_seconds", "peak memory (MB)": "training.peak_memory_mb"}
    pairs = {in_words(name): [run.figure(path) for run in runs] for name, path in paths.items()}
    pairs["rows per second"] = list(map(_rows_per_second, runs))
    if _kind(runs[0]) == "evaluation":
        pairs["seconds"] = [run.figure("wall_seconds") for run in runs]
    rows = tuple(
        (name, _amount(one), _amount(other), f"{other / one:.2f}" if one and other is not None else "-")
        for name, (one, other) in pairs.items()
        if one is not None or other is not None
    )
    return Table("Cost", ("what", *_labels(runs), "B / A"), rows)


def _rows_per_second(run: Run) -> float | None:
    if _kind(run) == "evaluation":
        rows, seconds = sum(figures_of(run.record.get("rows")).values()), run.figure("wall_seconds")
    else:
        rows = finite(flat_settings(run.part("recipe")).get("tuning.batch_size")) or 0.0
        seconds = run.figure("training.seconds_per_step")
    return rows / seconds if rows and seconds else None


# Curves and commands


def _curves(runs: _Pair) -> Iterator[Block]:
    charts, rows = [], []
    measured = ", held out" if _kind(runs[0]) == "distillation" else ", validation"
    for read, where in ((read_curves, ""), (held_out_curves, measured)):
        found = [run.log(read) for run in runs]
        for name in dict.fromkeys((*found[0], *found[1])):
            lines = [curves.get(name, ()) for curves in found]
            if not any(value for points in lines for _, value in points):  # a term without a weight
                continue
            called = in_words(name)
            series = (Series(run.name, points) for run, points in zip(runs, lines, strict=True) if points)
            charts.append(LineChart(f"{called}{where}", "optimiser steps", called, tuple(series)))
            rows.append((f"{called}{where}", *(text for points in lines for text in _ends(points))))
    if rows:
        yield Table("First and last figures", ("curve", *_labels(runs, "first", "last")), tuple(rows))
    yield from charts


def _ends(points: Points) -> tuple[str, str]:
    return (_text(points[0][1]), _text(points[-1][1])) if points else ("-", "-")


def _commands(runs: Iterable[Run]) -> Iterator[Listing]:
    for run in runs:
        command = run.record.get("command") or run.part("recipe").get("command")
        if isinstance(command, str):
            yield Listing(run.name, (without_paths(command)[0],), folded=False, language="sh")


# Figures


def _text(value: object) -> str:
    """Return a value as the page shows it."""
    if isinstance(value, str):
        return shown(value, 120)
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e6 or value == 0 else f"{value:.4g}"
    if value is None:
        return "-"
    try:
        return shown(json.dumps(value, ensure_ascii=False), 120)
    except (RecursionError, ValueError):  # as `quoted`
        return quoted(value)


def _amount(value: float | None) -> str:
    if value is None:
        return "-"
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"


def _gap(one: float, other: float) -> str:
    """Return how far one figure is above another."""
    value = other - one
    if abs(value) < 1e-6:  # rounding
        return "0.0000"
    return f"{value:+.4f}" if 5e-4 <= abs(value) < 1e6 else f"{value:+.4g}"
