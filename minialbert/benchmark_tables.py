"""A benchmark's record as tables: size, latency and throughput, each against the first model in the first engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .report.tables import escape

_DASH = "–"


@dataclass(frozen=True)
class BenchTable:
    """A part of the result, to print.

    Attributes:
        title: what it shows.
        header: names of the columns.
        rows: one per model and engine, in the same order in every table.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(record: Mapping[str, Any]) -> list[BenchTable]:
    """Return a record as tables: size, latency, throughput.

    Args:
        record: what `benchmark` returned.

    Returns:
        The tables; a dash stands for what could not be measured.
    """
    rows = [(model, engine) for model, engines in record["metrics"].items() for engine in engines]
    cells = {(model, engine): record["metrics"][model][engine] for model, engine in rows}
    size = tuple(
        (
            *pair,
            f"{record['models'][pair[0]]['parameters'] / 1e6:.2f} M",
            _megabytes(cells[pair]["bytes"]),
            _megabytes(cells[pair]["peak_memory_bytes"]),
        )
        for pair in rows
    )
    lengths, batch = record["settings"]["lengths"], record["settings"]["batch_size"]
    reference = f"{record['reference']['model']} in {record['reference']['engine']}"
    against = f"x: times as fast as {reference}"
    header = ("model", "engine", *(name for length in lengths for name in (f"{length} tokens", "x")))

    def timing_rows(size: int, figure: Callable[[Mapping[str, Any]], str]) -> tuple[tuple[str, ...], ...]:
        found = []
        for pair in rows:
            by_length = {t["length"]: t for t in cells[pair]["timings"] if t["batch_size"] == size}
            parts = [part for length in lengths for part in _figures(by_length.get(length), figure)]
            found.append((*pair, *parts))
        return tuple(found)

    return [
        BenchTable("Size", ("model", "engine", "parameters", "MB on disk", "peak memory, MB"), size),
        BenchTable(
            f"Latency: batch 1, median ms ({against})",
            header,
            timing_rows(1, lambda timing: _milliseconds(timing["seconds"]["median"])),
        ),
        BenchTable(
            f"Throughput: batch {batch}, tokens/s ({against})",
            header,
            timing_rows(batch, lambda timing: f"{timing['tokens_per_second']:,.0f}"),
        ),
    ]


def as_markdown(record: Mapping[str, Any]) -> str:
    """Return a record's tables and notes as Markdown."""
    parts = []
    for table in tables(record):
        rule = "|".join(["---"] * 2 + ["---:"] * (len(table.header) - 2))
        lines = [f"| {' | '.join(map(escape, row))} |" for row in (table.header, *table.rows)]
        parts.append("\n".join([f"**{escape(table.title)}**", "", lines[0], f"|{rule}|", *lines[1:]]))
    if record["notes"]:
        parts.append("\n".join(f"- {escape(note)}" for note in record["notes"]))
    return "\n\n".join(parts) + "\n"


def _figures(timing: Mapping[str, Any] | None, figure: Callable[[Mapping[str, Any]], str]) -> tuple[str, str]:
    if timing is None:
        return _DASH, _DASH
    ratio = timing["speed_ratio"]
    return figure(timing), _DASH if ratio is None else f"{ratio:.2f}"


def _megabytes(size: int | None) -> str:
    return _DASH if size is None else f"{size / 1e6:,.1f}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}" if seconds >= 0.01 else f"{1e3 * seconds:.2f}"
