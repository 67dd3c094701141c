"""What the sections of a page are made of: curves and maps of distillations, plots of scores, what made the records."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from minialbert.errors import UserError, failing_as, in_words, quoted, shown
from minialbert.method.attention_files import read_attention_maps
from minialbert.recipes.schema import flat_settings, without_places
from minialbert.report.blocks import (
    AttentionMaps,
    Block,
    LineChart,
    Listing,
    Point,
    ScatterChart,
    Section,
    Series,
    Text,
)
from minialbert.report.curves import Points, held_out_curves, read_curves
from minialbert.report.paper import PaperRow
from minialbert.report.tables import Table, number
from minialbert.runs.packed import is_run_file, read_run_file
from minialbert.runs.records import finite, look_up

_MOST_MAPS = 24  # of a page that shows many runs
_TERMS = {"loss": "total loss", "loss_mlm": "masked-LM loss", "loss_hidden": "hidden-state loss"}
# Titles, and the labels of the axis.
_HELD_OUT = {
    "mlm_accuracy": ("share of masked tokens predicted, held-out text", "share"),
    "mlm_loss": ("masked-LM loss, held-out text", "nats"),
    "output_kl": ("KL of the output, held-out text", "nats"),
    "vector_cosine": ("cosine of vectors with the teacher's, held-out text", "cosine"),
    "similarity_correlation": (
        "correlation of similarities with the teacher's, held-out text",
        "correlation",
    ),
}
_ALIGNED = {
    "cosine": ("cosine of hidden states with the matched layer, held-out text", "cosine"),
    "attention_kl": ("KL of attention rows from the matched layer, held-out text", "nats"),
}
ENGINE_NAMES = {
    **{f"torch-{precision}": f"PyTorch {precision}" for precision in ("fp32", "bf16", "int8")},
    **{f"onnx-{precision}": f"ONNX Runtime {precision}" for precision in ("fp32", "int8")},
    "onnx-int8-dynamic": "ONNX Runtime int8, dynamic",
    **{f"openvino-{precision}": f"OpenVINO {precision}" for precision in ("fp32", "bf16", "int8")},
    "native-int8": "native int8",
}
_FILE_ENDINGS = (".yaml", ".yml", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".gz", ".zst", ".parquet")
_HUB_OPTIONS = ("--model", "--teacher")  # take OWNER/NAME, which looks like a relative path


@dataclass(frozen=True)
class Run:
    """A record, with its log and attention maps beside it, and what the page calls it."""

    name: str
    file: Path
    record: Mapping[str, Any]

    def part(self, name: str) -> Mapping[str, Any]:
        """Return an object by its dotted name; one that is missing is empty, and anything else there is refused."""
        section, _, last = name.rpartition(".")
        found = (self.part(section) if section else self.record).get(last)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise UserError(f"{self.file}: the field {name} should be an object, but is {quoted(found)}")
        return found

    def end(self) -> Mapping[str, Any]:
        """Return what a distillation measured last; of first weights, their only measurement."""
        return self.part("metrics.student_end") or self.part("metrics.student_start")

    def figure(self, name: str) -> float | None:
        """Return a number by its dotted name, or None where there is none."""
        section, _, last = name.rpartition(".")
        return finite((self.part(section) if section else self.record).get(last))

    def log(self, read: Callable[[Path], dict[str, Points]]) -> dict[str, Points]:
        """Return what is read from its log; nothing where there is none."""
        log = self.file.parent / "log.jsonl"
        return read(log) if is_run_file(log) else {}


@dataclass(frozen=True)
class Bench:
    """What `minialbert bench` measured."""

    file: Path
    length: int  # tokens of the one input
    rows: tuple[tuple[str, str, float | None, float | None], ...]  # model, engine, bytes, median milliseconds


# Distillations


def training_sections(runs: Sequence[Run]) -> list[Section]:
    """Return what distillations looked like, where their logs and maps are at hand.

    Sections with training curves, held-out curves, alignment by iteration, and attention maps; those that would be
    empty are left out. A broken log or file of maps is a `UserError`.
    """
    parts = {
        "Training curves": _losses, "Held-out text during training": _held_out, "Alignment by iteration": _alignment,
        "Attention of teacher and student": _maps,
    }  # fmt: skip
    return [Section(title, blocks) for title, part in parts.items() if (blocks := tuple(part(runs)))]


def recipe_listing(title: str, record: Mapping[str, Any]) -> Listing:
    """Return the resolved recipe of a record as YAML, without what is not set."""
    recipe = _set(without_places(record.get("recipe") or {}))
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100)
    return Listing(title, tuple(text.splitlines()), language="yaml")


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: _set(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in kept.items() if value is not None and value != {}}


def _losses(runs: Sequence[Run]) -> Iterator[Block]:
    """Yield a chart per loss term, but for lines that are always 0: their term has no weight."""
    found = _lines(runs, read_curves)
    for term in (*_TERMS, *sorted(found.keys() - _TERMS.keys())):
        title = _TERMS.get(term, f"{term.removeprefix('loss_').replace('_', ' ')} loss")
        weighted = [line for line in found.get(term, ()) if any(value for _, value in line.points)]
        if weighted:
            yield _chart(title, "loss", weighted, log_y=True)


def _held_out(runs: Sequence[Run]) -> Iterator[Block]:
    found = _lines(runs, held_out_curves)
    for figure, (title, unit) in _HELD_OUT.items():
        if figure in found:
            yield _chart(title, unit, found[figure])


def _chart(title: str, unit: str, lines: Sequence[Series], *, log_y: bool = False) -> LineChart:
    return LineChart(title[:1].upper() + title[1:], "optimiser steps", unit, tuple(lines), log_y)


def _lines(runs: Sequence[Run], read: Callable[[Path], dict[str, Points]]) -> dict[str, list[Series]]:
    """Return a line per run by the name of what was logged."""
    lines: dict[str, list[Series]] = {}
    for run in runs:
        for name, points in run.log(read).items():
            lines.setdefault(name, []).append(Series(run.name, points))
    return lines


def _alignment(runs: Sequence[Run]) -> Iterator[Block]:
    for figure, (title, unit) in _ALIGNED.items():
        lines = []
        for run in runs:
            points = sorted(
                (float(found[1]), float(value))
                for key, value in run.end().items()
                if (found := re.fullmatch(rf"{figure}_(\d+)", key)) and isinstance(value, int | float)
            )
            if points:
                lines.append(Series(run.name, tuple(points)))
        if lines:
            yield replace(_chart(title, unit, lines), x_label="iteration")


def _maps(runs: Sequence[Run]) -> Iterator[Block]:
    files = {run.name: run.file.with_name("attention.json") for run in runs}
    files = {name: file for name, file in files.items() if is_run_file(file)}
    first, left = list(files)[:_MOST_MAPS], list(files)[_MOST_MAPS:]
    if left:
        yield Text(f"Maps of the first {_MOST_MAPS} runs; not of {', '.join(left)}.")
    if first:
        yield AttentionMaps("Attention maps", {name: read_attention_maps(files[name]) for name in first})


def figure_table(run: Run) -> Table:
    """Return every figure of a run's metrics."""
    figures = figures_of(run.part("metrics")).items()
    return Table(run.name, ("figure", "value"), tuple((name, number(value)) for name, value in figures))


def timing_table(name: str, bench: Bench) -> Table:
    """Return size and latency of every model in every engine of a benchmark."""
    rows = []
    for model, engine, *figures in bench.rows:
        rows.append((model, engine, *(None if one is None else number(one) for one in figures)))
    return Table(name, ("model", "engine", "bytes", f"ms, text of {bench.length} tokens"), tuple(rows))


def tuning_curves(runs: Sequence[Run]) -> Section:
    """Return the losses of tunings, and their scores on validation by metric, as far as there are logs."""
    lines: dict[str, list[Series]] = {}
    for run in runs:
        metric = str(run.record.get("metric"))
        found = {"training loss": run.log(read_curves).get("loss")}
        found[f"{in_words(metric)}, validation"] = run.log(held_out_curves).get(metric)
        for what, points in found.items():
            if points:
                lines.setdefault(what, []).append(Series(run.name, points))
    charts = (_chart(what, what, found, log_y=what == "training loss") for what, found in lines.items())
    return Section("Learning curves of tunings", tuple(charts))


def figures_of(values: object) -> dict[str, float]:
    """Return the figures of an object by dotted names; lists, text and counts of masked tokens are left out."""
    flat = flat_settings(values) if isinstance(values, dict) else {}
    found = {name: one for name, value in flat.items() if (one := finite(value)) is not None}
    return {name: one for name, one in found.items() if name.rpartition(".")[2] != "masked_tokens"}


# Size and latency against score


def read_bench(file: Path) -> Bench:
    """Return a benchmark's latencies at batch 1 and 128 tokens, or the length nearest; a `UserError` if it is none."""
    kinds = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
    advice = "remove it, or measure again"
    with failing_as(f"{file} is not a record of minialbert bench", kinds, advice, named=True):
        record = json.loads(read_run_file(file))
        if record["kind"] != "bench":
            raise ValueError(f"its kind is {record['kind']}")
        lengths = [int(length) for length in record["settings"]["lengths"]]
        length = min(lengths, key=lambda one: (abs(one - 128), one))
        rows = []
        for model, engines in record["metrics"].items():
            for engine, figures in engines.items():
                median = None
                for timing in figures["timings"]:
                    if (timing["batch_size"], timing["length"]) == (1, length):
                        median = float(timing["seconds"]["median"])
                        if not 0 < median < math.inf:
                            raise ValueError(f"a median of {median} s")
                ms = None if median is None else 1000 * median
                rows.append((model, engine, look_up(figures, "bytes", kind=int), ms))
    return Bench(file, length, tuple(rows))


def size_chart(title: str, points: Sequence[Point], what: str) -> ScatterChart:
    """Return a plot of size, by the number of parameters, against score in percent."""
    millions = tuple(replace(one, x=one.x / 1e6) for one in points)
    return ScatterChart(title, "parameters of the encoder, millions", what, millions, log_x=True)


def latency_charts(points: Sequence[Point], benches: Sequence[Bench], what: str) -> list[Block]:
    """Return plots of latency against score, per engine and benchmark (which are not comparable), by models' names.

    One or two points are a table.
    """
    charts: list[Block] = []
    for bench in benches:
        place = f" ({bench.file.parent.name})" if len(benches) > 1 else ""
        for engine, name in ENGINE_NAMES.items():
            medians = {model: ms for model, other, _, ms in bench.rows if other == engine and ms is not None}
            found = tuple(replace(one, x=medians[one.label]) for one in points if one.label in medians)
            title = f"Latency against score, {name}{place}"
            label = f"ms per text of {bench.length} tokens, batch 1, {name}"
            names = (f"{one.label}, {one.group}".rstrip(", ") for one in found)
            rows = tuple((name, number(one.x), number(one.y)) for name, one in zip(names, found, strict=True))
            if len(found) > 2:
                charts.append(ScatterChart(title, label, what, found))
            elif found:
                charts.append(Table(title, ("", label, what), rows))
    return charts


def paper_chart(rows: Sequence[PaperRow]) -> ScatterChart:
    """Return a plot of the rows of one of the paper's tables, but for those that tune, and print, adapters alone."""
    points = []
    for row in rows:
        size = re.fullmatch(r"([\d.]+)M", row.params)
        if size and "†" not in row.marks:
            group = "students of the paper" if "Mini" in row.model else "others"
            points.append(Point(row.label, float(size[1]), float(row.average), None, group))
    title, x = f"The paper's {rows[0].source}: size against score", "parameters, millions, as printed"
    return ScatterChart(title, x, "average, %, as printed", tuple(points), log_x=True)


# What made the records: commands without the paths of a machine, versions, machines


def command_lines(commands: Iterable[str]) -> tuple[str, ...]:
    """Return commands with placeholders for paths and seeds, each once, with its seeds in a comment."""
    found: dict[str, set[str]] = {}
    for command, seeds in map(without_paths, commands):
        found.setdefault(command, set()).update(seeds)
    numbers = {command: sorted(seeds, key=lambda seed: (len(seed), seed)) for command, seeds in found.items()}
    told = {command: f"  # SEED: {', '.join(seeds)}" if seeds else "" for command, seeds in numbers.items()}
    return tuple(command + told[command] for command in sorted(found))


def without_paths(command: str) -> tuple[str, list[str]]:
    """Return a recorded command with placeholders for its paths and its seed, and the values of the seed."""
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in command).split())
    try:
        words = shlex.split(plain)
    except ValueError:  # a quote that is not closed
        words = plain.split()
    seeds: list[str] = []
    told = [Path(word).name for word in words[:1]]
    option = ""
    for word in words[1:]:
        name, equals, value = word.partition("=")
        before, option = option, ""
        if equals and re.fullmatch(r"-{0,2}[\w.-]+", name):
            told.append(f"{name}={_placeholder(value, name, seeds)}")
        elif word.startswith("-"):
            told.append(word)
            option = word
        else:
            told.append(_placeholder(word, before, seeds))
    return shlex.join(told), seeds


def _placeholder(value: str, option: str, seeds: list[str]) -> str:
    name = option.lstrip("-").rpartition(".")[2].replace("-", "_").upper() or "PATH"
    if name == "SEED":
        seeds.append(value)
        return name
    return name if name == "OUTPUT" or _is_path(value, option) else value


def _is_path(value: str, option: str) -> bool:
    if value.startswith(("/", "~", "./", "../")) or "\\" in value or value.count("/") > 1:
        return True
    if "/" not in value or value.startswith("hub:"):
        return False
    return value.endswith(_FILE_ENDINGS) or (option.startswith("-") and option not in _HUB_OPTIONS)


def made_with(records: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return versions, commits and machines of records: a line per package, one for commits, one per machine."""
    versions: dict[str, set[str]] = {}
    commits: set[str] = set()
    machines: set[str] = set()
    for record in records:
        for package, version in (record.get("versions") or {}).items():
            versions.setdefault(str(package), set()).add(str(version))
        machine = record.get("machine") or {}
        machines.add(", ".join(str(machine[key]) for key in ("processor", "device") if machine.get(key)))
        if record.get("commit"):
            commits.add(str(record["commit"])[:12])
    lines = [f"{package} {', '.join(sorted(versions[package]))}" for package in sorted(versions)]
    lines += [f"commit {', '.join(sorted(commits))}"] if commits else []
    lines += [f"machine: {machine}" for machine in sorted(machines) if machine]
    return tuple(shown(line, 200) for line in lines)
