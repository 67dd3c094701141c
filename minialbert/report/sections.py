"""Sections about distillations: curves of every loss term, alignment by iteration, attention maps, recipes."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from minialbert.errors import UserError, shown
from minialbert.method.attention_maps import read_attention_maps
from minialbert.recipes.schema import without_places
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
from minialbert.runs.packed import is_run_file, read_run_file

# Of a page that shows many runs.
_MOST_MAPS = 24

_TERMS = {
    "loss": "total loss",
    "loss_mlm": "masked-LM loss",
    "loss_attention": "attention loss",
    "loss_hidden": "hidden-state loss",
    "loss_output": "output loss",
    "loss_embedding": "embedding loss",
    "loss_relation": "relation loss",
    "loss_elastic": "elastic loss",
}
_HELD_OUT = {
    "mlm_accuracy": "share of masked tokens predicted, held-out text",
    "mlm_loss": "masked-LM loss, held-out text",
    "output_kl": "KL of the output, held-out text",
}
_NATS = "nats"


@dataclass(frozen=True)
class Distilled:
    """A distillation, or the first weights of one.

    Attributes:
        name: what the page calls it.
        folder: where its log and its attention maps are.
        record: its result.
    """

    name: str
    folder: Path
    record: Mapping[str, Any]


def training_sections(runs: Sequence[Distilled]) -> list[Section]:
    """Return what distillations looked like, where their logs and maps are at hand.

    Args:
        runs: the distillations.

    Returns:
        Sections with training curves, held-out curves, alignment by iteration, and attention maps; those that would be
        empty are left out.

    Raises:
        UserError: if a log or a file of maps is broken.
    """
    sections = [
        Section("Training curves", _losses(runs)),
        Section("Held-out text during training", _held_out(runs)),
        Section("Alignment by iteration", _alignment(runs)),
        Section("Attention of teacher and student", _maps(runs)),
    ]
    return [section for section in sections if section.blocks]


def recipe_listing(title: str, record: Mapping[str, Any]) -> Listing:
    """Return the resolved recipe of a record as YAML, without what is not set.

    Args:
        title: whose it is.
        record: the record.

    Returns:
        The listing.
    """
    text = yaml.safe_dump(
        _set(without_places(record.get("recipe") or {})), sort_keys=False, allow_unicode=True, width=100
    )
    return Listing(title, tuple(text.splitlines()), language="yaml")


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: _set(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in kept.items() if value is not None and value != {}}


def _losses(runs: Sequence[Distilled]) -> tuple[Block, ...]:
    """Return a chart per loss term, but for those that are always 0: they have no weight."""
    lines = _lines(runs, read_curves)
    weighted = {
        term: [line for line in found if any(value for _, value in line.points)]
        for term, found in lines.items()
    }
    terms = [term for term in (*_TERMS, *sorted(lines.keys() - _TERMS.keys())) if weighted.get(term)]
    return tuple(
        LineChart(
            _title(_TERMS.get(term, term)), "optimiser steps", "loss", tuple(weighted[term]), log_y=True
        )
        for term in terms
    )


def _held_out(runs: Sequence[Distilled]) -> tuple[Block, ...]:
    lines = _lines(runs, held_out_curves)
    return tuple(
        LineChart(
            _title(title), "optimiser steps", "share" if "share" in title else _NATS, tuple(lines[figure])
        )
        for figure, title in _HELD_OUT.items()
        if figure in lines
    )


def _lines(runs: Sequence[Distilled], read: Callable[[Path], dict[str, Points]]) -> dict[str, list[Series]]:
    """Return a line per run by the name of what was logged."""
    lines: dict[str, list[Series]] = {}
    for run in runs:
        log = run.folder / "log.jsonl"
        for name, points in read(log).items() if is_run_file(log) else ():
            lines.setdefault(name, []).append(Series(run.name, points))
    return lines


def _alignment(runs: Sequence[Distilled]) -> tuple[Block, ...]:
    charts = {
        "cosine": "Cosine of hidden states with the matched layer",
        "attention_kl": "KL of attention rows from the matched layer",
    }
    blocks = []
    for figure, title in charts.items():
        lines = []
        for run in runs:
            metrics = run.record.get("metrics") or {}
            end = metrics.get("student_end") or metrics.get("student_start") or {}
            points = sorted(
                (float(found[1]), float(value))
                for key, value in end.items()
                if (found := re.fullmatch(rf"{figure}_(\d+)", key)) and isinstance(value, int | float)
            )
            if points:
                lines.append(Series(run.name, tuple(points)))
        if lines:
            blocks.append(
                LineChart(
                    f"{title}, held-out text",
                    "iteration",
                    _NATS if "kl" in figure else "cosine",
                    tuple(lines),
                )
            )
    return tuple(blocks)


def _maps(runs: Sequence[Distilled]) -> tuple[Block, ...]:
    found = {run.name: run.folder / "attention.json" for run in runs}
    found = {name: file for name, file in found.items() if is_run_file(file)}
    shown = {name: read_attention_maps(found[name]) for name in list(found)[:_MOST_MAPS]}
    if not shown:
        return ()
    left = list(found)[_MOST_MAPS:]
    note = [Text(f"Maps of the first {_MOST_MAPS} runs; not of {', '.join(left)}.")] if left else []
    return (*note, AttentionMaps("Attention maps", shown))


def _title(text: str) -> str:
    return text[:1].upper() + text[1:]


__all__ = ["Distilled", "recipe_listing", "training_sections"]


_ENGINES = {
    "torch-fp32": "PyTorch fp32",
    "torch-bf16": "PyTorch bf16",
    "torch-int8": "PyTorch int8",
    "onnx-fp32": "ONNX Runtime fp32",
    "onnx-int8": "ONNX Runtime int8",
}
_MOST = 100.0  # every score is in percent
_PARAMETERS = "parameters of the encoder, millions"


@dataclass(frozen=True)
class Bench:
    """Latencies that `minialbert bench` measured.

    Attributes:
        file: its record.
        length: tokens of the one input.
        milliseconds: medians by engine and model.
    """

    file: Path
    length: int
    milliseconds: Mapping[str, Mapping[str, float]]


def read_bench(file: Path) -> Bench:
    """Read the latencies of a benchmark's record, at batch 1 and 128 tokens or the length nearest to it.

    Args:
        file: a `result.json` of `minialbert bench`.

    Returns:
        The latencies.

    Raises:
        UserError: if it is no such record.
    """
    try:
        record = json.loads(read_run_file(file))
        if record["kind"] != "bench":
            raise ValueError(f"its kind is {record['kind']}")
        lengths = [int(length) for length in record["settings"]["lengths"]]
        length = min(lengths, key=lambda one: (abs(one - 128), one))
        medians: dict[str, dict[str, float]] = {}
        for model, engines in record["metrics"].items():
            for engine, figures in engines.items():
                for timing in figures["timings"]:
                    if (timing["batch_size"], timing["length"]) == (1, length):
                        medians.setdefault(engine, {})[model] = 1000 * _positive(timing["seconds"]["median"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file} is no record of minialbert bench ({type(error).__name__}: {error}): remove it, or measure again"
        ) from error
    return Bench(file, length, medians)


def size_chart(title: str, points: Sequence[Point], what: str) -> ScatterChart:
    """Return a plot of size against score.

    Args:
        title: what it shows.
        points: models; x in parameters.
        what: the score, in percent.

    Returns:
        The plot, with the parameters in millions.
    """
    shown = tuple(Point(one.label, one.x / 1e6, one.y, one.sd, one.group) for one in points)
    return ScatterChart(title, _PARAMETERS, what, shown, log_x=True, y_most=_MOST)


def latency_charts(points: Sequence[Point], benches: Sequence[Bench], what: str) -> list[ScatterChart]:
    """Return plots of latency against score, one per engine in which a model was measured.

    Args:
        points: models, by the names that they have in a benchmark.
        benches: the benchmarks; each makes plots of its own, since two are not comparable.
        what: the score, in percent.

    Returns:
        The plots.
    """
    charts = []
    for bench in benches:
        for engine, name in _ENGINES.items():
            medians = bench.milliseconds.get(engine, {})
            found = [
                Point(one.label, medians[one.label], one.y, one.sd, one.group)
                for one in points
                if one.label in medians
            ]
            if found:
                label = f"ms per text of {bench.length} tokens, batch 1, {name}"
                title = f"Latency against score, {name}" + (
                    f" ({bench.file.parent.name})" if len(benches) > 1 else ""
                )
                charts.append(ScatterChart(title, label, what, tuple(found), y_most=_MOST))
    return charts


def paper_chart(rows: Sequence[PaperRow]) -> ScatterChart:
    """Return a plot of the paper's own rows.

    Args:
        rows: of its Table 1 or 2.

    Returns:
        The plot; rows that tune adapters alone print those parameters only, and are left out.
    """
    points = []
    for row in rows:
        size = re.fullmatch(r"([\d.]+)M", row.params)
        if size and "†" not in row.marks:
            group = "students of the paper" if "Mini" in row.model else "others"
            points.append(Point(row.label, float(size[1]), float(row.average), None, group))
    title = f"The paper's {rows[0].source}: size against score"
    return ScatterChart(
        title,
        "parameters, millions, as printed",
        "average, %, as printed",
        tuple(points),
        log_x=True,
        y_most=_MOST,
    )


def _positive(value: Any) -> float:  # noqa: ANN401 - from a file
    number = float(value)
    if not math.isfinite(number) or number <= 0:
        raise ValueError(f"a median of {value} s")
    return number


__all__ = ["Bench", "latency_charts", "paper_chart", "read_bench", "size_chart"]


_FILE_ENDINGS = (".yaml", ".yml", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".gz", ".zst", ".parquet")
_HUB_OPTIONS = ("--model", "--teacher")  # take OWNER/NAME, which looks like a relative path


def command_lines(commands: Iterable[str]) -> tuple[str, ...]:
    """Return commands with placeholders for paths and seeds, each once.

    Args:
        commands: as records have them.

    Returns:
        A line per command, with its seeds in a comment.
    """
    found: dict[str, set[str]] = {}
    for one in commands:
        command, seeds = without_paths(one)
        found.setdefault(command, set()).update(seeds)
    lines = []
    for command in sorted(found):
        numbers = sorted(found[command], key=lambda seed: (len(seed), seed))
        lines.append(command + (f"  # SEED: {', '.join(numbers)}" if numbers else ""))
    return tuple(lines)


def without_paths(command: str) -> tuple[str, list[str]]:
    """Put placeholders for a command's paths and its seed.

    Args:
        command: as a record has it.

    Returns:
        The command, and the values that stood for the seed.
    """
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in command).split())
    try:
        words = shlex.split(plain)
    except ValueError:  # a quote that is not closed
        words = plain.split()
    seeds: list[str] = []
    shown: list[str] = []
    option = ""
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if number == 0:
            shown.append(Path(word).name)
        elif equals and re.fullmatch(r"-{0,2}[\w.-]+", name):
            shown.append(f"{name}={_placeholder(value, name, seeds)}")
        elif word.startswith("-"):
            shown.append(word)
            option = word
            continue
        else:
            shown.append(_placeholder(word, option, seeds))
        option = ""
    return shlex.join(shown), seeds


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
    """Return versions, commits and machines of records.

    Args:
        records: the records.

    Returns:
        A line per package, one for the commits, one per machine.
    """
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


__all__ = ["command_lines", "made_with", "without_paths"]
