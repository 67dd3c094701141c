"""Plots of size and latency against score, of what was measured and of what the paper prints."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .blocks import Point, ScatterChart
from .paper import PaperRow

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
        record = json.loads(file.read_text(encoding="utf-8"))
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
