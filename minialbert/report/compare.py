"""Two runs of one kind side by side: what differs in their settings, figures, cost, curves and origin."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minialbert.data.examples import LOWER_IS_BETTER
from minialbert.errors import UserError, quoted, shown
from minialbert.recipes.schema import Mark, flat_settings, marked, without_folders
from minialbert.report import write_page
from minialbert.report.blocks import Block, LineChart, Listing, Section, Series, Text
from minialbert.report.curves import Points, held_out_curves, read_curves
from minialbert.report.markdown import markdown_page
from minialbert.report.sections import without_paths
from minialbert.report.tables import Table
from minialbert.runs.records import load_record

TITLE = "Comparison of two runs"

_KINDS = {
    "distillation": "distillation",
    "initialisation": "distillation",
    "finetune": "fine-tuning",
    "evaluation": "evaluation",
}
_COST = {
    "steps": "training.steps",
    "best step": "training.best_step",
    "skipped steps": "training.skipped_steps",
    "windows": "training.windows",
    "seconds": "training.wall_seconds",
    "seconds per step": "training.seconds_per_step",
    "tokens per second": "training.tokens_per_second",
    "parameters": "model.parameters",
    "encoder parameters": "model.encoder_parameters",
    "adapter parameters": "model.adapter_parameters",
    "trainable parameters": "model.trainable_parameters",
    "peak memory (MB)": "training.peak_memory_mb",
}


@dataclass(frozen=True)
class _Run:
    """A record and what the page calls it.

    Attributes:
        letter: "A" or "B".
        name: of its directory.
        file: the record.
        record: what is in it.
    """

    letter: str
    name: str
    file: Path
    record: Mapping[str, Any]

    @property
    def label(self) -> str:
        return f"{self.letter}: {self.name}"

    @property
    def kind(self) -> str:
        return _KINDS[self.record["kind"]]

    def part(self, name: str) -> Mapping[str, Any]:
        """Return an object of the record; one that is missing is empty, and anything else in its place refused."""
        found = self.record.get(name)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise UserError(f"{self.file}: the field {name} should be an object, but is {quoted(found)}")
        return found

    def figure(self, path: str) -> float | None:
        """Return a number by its dotted name, or None where there is none."""
        section, _, name = path.rpartition(".")
        return _number((self.part(section) if section else self.record).get(name))


@dataclass(frozen=True)
class _Reported:
    """The figure that a run is judged by.

    Attributes:
        what: its name and where it is measured.
        value: the figure.
        less: whether less of it is better.
    """

    what: str
    value: float
    less: bool = False


def compare_runs(a: Path, b: Path) -> list[Section]:
    """Put two runs of one kind side by side.

    Args:
        a: a run directory or its `result.json`; of a distillation, a fine-tuning or an evaluation.
        b: another.

    Returns:
        Sections: summary, settings that differ, results, cost, training curves where a run has a log, what else
        differs, and commands.

    Raises:
        UserError: if a record is missing or broken, or if the two are of different kinds.
    """
    runs = _read("A", a), _read("B", b)
    if runs[0].kind != runs[1].kind:
        raise UserError(
            f"{runs[0].file} is a record of {runs[0].kind}, {runs[1].file} one of {runs[1].kind}: compare two runs of "
            "one kind"
        )
    curves = _curves(runs)
    sections = [
        _summary(runs),
        Section("Settings that differ", (_differences("Settings that differ", "setting", runs, _settings),)),
        Section("Results", tuple(_results(runs))),
        Section("Cost", (_cost(runs),)),
        Section("Training curves", tuple(curves)),
        Section("Versions and machines", (_differences("Versions and machines", "what", runs, _origin),)),
        Section("Commands", tuple(_commands(runs))),
    ]
    return [section for section in sections if section.blocks]


def comparison_markdown(sections: Sequence[Section]) -> str:
    """Write a comparison for a terminal.

    Args:
        sections: of `compare_runs`.

    Returns:
        Markdown, without the charts; their first and last values stand in a table.
    """
    return markdown_page(TITLE, sections)


def write_comparison(a: Path, b: Path, output: Path) -> None:
    """Write `compare.md` and `compare.html`.

    Args:
        a: as for `compare_runs`.
        b: as for `compare_runs`.
        output: the directory.

    Raises:
        UserError: as `compare_runs`, or if the directory cannot be written.
    """
    write_page(TITLE, compare_runs(a, b), output, name="compare")


def _read(letter: str, path: Path) -> _Run:
    file = path / "result.json" if path.is_dir() else path
    if not file.is_file():
        what = "has no result.json" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}: name the directory of a finished run, or its result.json")
    record = load_record(file)
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UserError(
            f"{file} is of kind {quoted(kind)}: expected a record of distill, finetune or evaluate"
        )
    run = _Run(letter, shown(file.resolve().parent.name), file, record)
    if not run.part("metrics"):
        raise UserError(f"{file} has no metrics: name the record of a run that measured something")
    return run


# The summary


def _summary(runs: tuple[_Run, _Run]) -> Section:
    blocks: list[Block] = [Text(_verdict(runs), strong=True)]
    blocks.append(
        Table(
            "Runs",
            ("", "kind", "model", "seed"),
            tuple(
                (
                    run.label,
                    str(run.record["kind"]),
                    shown(run.part("model").get("name") or "-"),
                    _text(run.record.get("seed")),
                )
                for run in runs
            ),
        )
    )
    if _identity(runs[0]) != _identity(runs[1]):
        blocks.append(
            Text("The runs were measured on different data, so their figures are of different texts.")
        )
    blocks.append(Text("One run each: seeds alone may make a difference as large."))
    return Section("Summary", tuple(blocks))


def _verdict(runs: tuple[_Run, _Run]) -> str:
    one, other = (_reported(run) for run in runs)
    if one is None or other is None:
        missing = " and ".join(
            run.letter for run, figure in zip(runs, (one, other), strict=True) if figure is None
        )
        return f"No verdict: {missing} has no reported figure."
    if one.what != other.what:
        return f"No verdict: A reports {one.what}, B {other.what}."
    figures = f"{one.what} {_text(one.value)} of A, {_text(other.value)} of B"
    if _text(one.value) == _text(other.value):
        return f"Equal as far as shown: {figures}."
    better = runs[(other.value > one.value) != one.less]
    return f"{better.letter} ({better.name}) is better: {figures} ({_signed(other.value - one.value)})."


def _reported(run: _Run) -> _Reported | None:
    if run.kind == "distillation":
        value = _number(_end(run).get("mlm_accuracy"))
        return None if value is None else _Reported("masked-token accuracy on held-out text", value)
    split, metric, score = (run.record.get(name) for name in ("split", "metric", "score"))
    value = _number(score)
    if not (isinstance(split, str) and isinstance(metric, str)) or value is None:
        return None
    what = f"{metric.replace('_', ' ')} of {run.record.get('task')} on {split}"
    return _Reported(shown(what, 100), value, metric in LOWER_IS_BETTER)


def _identity(run: _Run) -> object:
    """Return what tells apart the data that a run was measured on, as far as its record has it."""
    data = run.part("data")
    if run.kind == "distillation":
        folders = data.get("folders")
        prints = [one.get("fingerprint") for one in folders or () if isinstance(one, dict)]
        return prints, flat_settings(run.part("recipe")).get("training.eval_windows")
    rows = data.get("rows")
    measured = rows.get(str(run.record.get("split"))) if isinstance(rows, dict) else run.record.get("rows")
    return run.record.get("task"), measured


def _end(run: _Run) -> Mapping[str, Any]:
    """Return what a distillation measured last; of first weights, their only measurement."""
    metrics = run.part("metrics")
    for name in ("student_end", "student_start"):
        if isinstance(metrics.get(name), dict):
            return metrics[name]
    return {}


# Settings and origin


def _settings(run: _Run) -> dict[str, str]:
    flat = flat_settings(run.part("recipe"))
    flat = {name: value for name, value in flat.items() if name not in marked(Mark.NAME, Mark.LOG)}
    for name in marked(Mark.PLACE) & flat.keys():
        flat[name] = without_folders(flat[name], name)
    flat |= flat_settings({"objective": run.part("objective")})
    for name in ("layer_map", "adapter_init"):
        if name in run.record:
            flat[f"{name} (resolved)"] = run.record[name]
    if "precision" in run.part("training"):
        flat["precision (resolved)"] = run.part("training")["precision"]
    if run.kind == "evaluation":  # which has no recipe
        flat |= {f"model.{name}": run.part("model").get(name) for name in ("name", "model_type")}
        names = ("task", "problem", "split", "num_iterations", "exit_threshold")
        flat |= {name: run.record[name] for name in names if name in run.record}
    return {shown(name): _text(value) for name, value in flat.items()}


def _origin(run: _Run) -> dict[str, str]:
    found = {
        **flat_settings(run.part("versions")),
        "commit": str(run.record.get("commit") or "-")[:12],
        **flat_settings({"machine": run.part("machine")}),
    }
    return {shown(name): _text(value) for name, value in found.items()}


def _differences(title: str, what: str, runs: tuple[_Run, _Run], read: Any) -> Block:  # noqa: ANN401
    one, other = (read(run) for run in runs)
    rows = tuple(
        (name, one.get(name, "-"), other.get(name, "-"))
        for name in dict.fromkeys((*one, *other))
        if one.get(name) != other.get(name)
    )
    return Table(title, (what, *(run.label for run in runs)), rows) if rows else Text("None.")


# Results and cost


def _results(runs: tuple[_Run, _Run]) -> Iterator[Table]:
    if runs[0].kind == "distillation":
        yield _held_out(runs)
        return
    splits = [run.record.get("split") for run in runs]
    named = dict.fromkeys(
        [
            *(split for split in splits if isinstance(split, str)),
            *runs[0].part("metrics"),
            *runs[1].part("metrics"),
        ]
    )
    for split in named:
        one, other = (_numbers(run.part("metrics").get(split)) for run in runs)
        first = [run.record.get("metric") for run in runs if run.record.get("split") == split]
        names = dict.fromkeys([*(name for name in first if name in one or name in other), *one, *other])
        rows = tuple(
            (shown(name), _text(one.get(name)), _text(other.get(name)), _gap(one.get(name), other.get(name)))
            for name in names
        )
        if rows:
            yield Table(shown(split), ("figure", *(run.label for run in runs), "B - A"), rows)


def _held_out(runs: tuple[_Run, _Run]) -> Table:
    columns = [
        (_numbers(run.part("metrics").get("student_start")), _numbers(run.part("metrics").get("student_end")))
        for run in runs
    ]
    names = dict.fromkeys(name for pair in columns for part in pair for name in part)
    first = [name for name in names if name == "mlm_accuracy"]
    rows = []
    for name in dict.fromkeys([*first, *names]):
        values = [part.get(name) for pair in columns for part in pair]
        last = [after if after is not None else before for before, after in (values[:2], values[2:])]
        rows.append((shown(name), *map(_text, values), _gap(*last)))
    teachers = [_numbers(run.part("metrics").get("teacher")) for run in runs]
    for name in dict.fromkeys(name for figures in teachers for name in figures):
        one, other = (figures.get(name) for figures in teachers)
        rows.append((f"teacher: {shown(name)}", "-", _text(one), "-", _text(other), _gap(one, other)))
    heads = (f"{run.label}, {when}" for run in runs for when in ("before", "after"))
    return Table("Held-out text", ("figure", *heads, "B - A"), tuple(rows))


def _cost(runs: tuple[_Run, _Run]) -> Table:
    a, b = runs
    rows = [(name, a.figure(path), b.figure(path)) for name, path in _COST.items()]
    rows.append(("rows per second", _rows_per_second(a), _rows_per_second(b)))
    if a.kind == "evaluation":
        rows.append(("seconds", a.figure("wall_seconds"), b.figure("wall_seconds")))
    return Table(
        "Cost",
        ("what", *(run.label for run in runs), "B / A"),
        tuple(
            (name, _amount(one), _amount(other), f"{other / one:.2f}" if one and other is not None else "-")
            for name, one, other in rows
            if one is not None or other is not None
        ),
    )


def _rows_per_second(run: _Run) -> float | None:
    if run.kind == "evaluation":
        rows, seconds = sum(_numbers(run.record.get("rows")).values()), run.figure("wall_seconds")
    else:
        rows = _number(flat_settings(run.part("recipe")).get("tuning.batch_size")) or 0.0
        seconds = run.figure("training.seconds_per_step")
    return rows / seconds if rows and seconds else None


# Curves and commands


def _curves(runs: tuple[_Run, _Run]) -> Iterator[Block]:
    logs = [run.file.parent / "log.jsonl" for run in runs]
    read = [(read_curves(log), held_out_curves(log)) if log.is_file() else ({}, {}) for log in logs]
    charts, rows = [], []
    for part, where in enumerate(("", "held out" if runs[0].kind == "distillation" else "validation")):
        one, other = (curves[part] for curves in read)
        for name in dict.fromkeys((*one, *other)):
            lines = [(run, curves.get(name, ())) for run, curves in zip(runs, (one, other), strict=True)]
            if not any(value for _, points in lines for _, value in points):  # a term without a weight
                continue
            title = f"{name.replace('_', ' ')}{f', {where}' if where else ''}"
            series = tuple(Series(run.label, points) for run, points in lines if points)
            charts.append(LineChart(title, "optimiser steps", name.replace("_", " "), series))
            rows.append((title, *(text for _, points in lines for text in _ends(points))))
    if rows:
        heads = (f"{run.label}, {when}" for run in runs for when in ("first", "last"))
        yield Table("First and last figures", ("curve", *heads), tuple(rows))
    yield from charts


def _ends(points: Points) -> tuple[str, str]:
    return (_text(points[0][1]), _text(points[-1][1])) if points else ("-", "-")


def _commands(runs: Iterable[_Run]) -> Iterator[Listing]:
    for run in runs:
        command = run.record.get("command") or run.part("recipe").get("command")
        if isinstance(command, str):
            yield Listing(run.label, (without_paths(command)[0],), folded=False, language="sh")


# Figures


def _numbers(values: object) -> dict[str, float]:
    """Return the figures of an object by dotted names; lists, text and counts of masked tokens are left out."""
    flat = flat_settings(values) if isinstance(values, dict) else {}
    numbers = ((name, _number(value)) for name, value in flat.items())
    return {
        name: value
        for name, value in numbers
        if value is not None and not re.search(r"(^|\.)masked_tokens$", name)
    }


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


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


def _signed(value: float) -> str:
    if abs(value) < 1e-6:  # rounding
        return "0.0000"
    return f"{value:+.4f}" if 5e-4 <= abs(value) < 1e6 else f"{value:+.4g}"


def _gap(one: float | None, other: float | None) -> str:
    return "-" if one is None or other is None else _signed(other - one)


__all__ = ["compare_runs", "comparison_markdown", "write_comparison"]
