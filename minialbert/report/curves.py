"""Curves of a run: what its log says of the losses and of the held-out measurements, by step."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minialbert.errors import UserError, quoted
from minialbert.runs.packed import packed
from minialbert.runs.records import finite

Points = tuple[tuple[float, float], ...]

# A log of a million steps, written every tenth, has about 40 MB.
_MOST_BYTES = 256 * 2**20
_MOST_CURVES = 200
_NAME = re.compile(r"[A-Za-z]\w{0,59}", re.ASCII)


def read_curves(log: Path) -> dict[str, Points]:
    """Return the loss terms in a run's `log.jsonl`: points (step, value) by names such as "loss" and "loss_mlm".

    They come by rising step. Where a step was logged again, as by a run that was resumed, the later line counts.
    Figures that are not finite are left out. What cannot be read or is not a log is a `UserError`.
    """
    return _curves(log, _terms)


def held_out_curves(log: Path) -> dict[str, Points]:
    """Return what a run's log says of a student on held-out windows, or of a tuned model on validation.

    It is by the name of the figure, such as "mlm_accuracy" and "cosine_1", and like `read_curves` else. What a
    distillation measured before its first step stands at step 0.
    """
    return _curves(log, _measured)


def _terms(record: dict[str, Any]) -> dict[str, Any] | None:
    if record.get("kind") != "training":
        return None
    return {name: record[name] for name in record if name == "loss" or name.startswith("loss_")}


def _measured(record: dict[str, Any]) -> dict[str, Any] | None:
    if record.get("kind") == "start" and isinstance(record.get("metrics"), dict):
        start = record["metrics"].get("student_start")
        return start if isinstance(start, dict) else {}
    if record.get("kind") != "evaluation":
        return None
    # The score is the task's metric, by its second name.
    names = [name for name in record if name.startswith("eval_") and name != "eval_score"]
    return {name.removeprefix("eval_"): record[name] for name in names}


def _curves(log: Path, figures_of: Callable[[dict[str, Any]], dict[str, Any] | None]) -> dict[str, Points]:
    """Return the last value of each figure and step, of the records that have figures."""
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for record in _records(log):
        if (figures := figures_of(record)) is None:
            continue
        step = record.get("step")
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 2**53:
            raise UserError(f"{log} is not a log of a run: a record has the step {quoted(step)}")
        for name, value in figures.items():
            is_figure = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_figure or name == "masked_tokens" or not _NAME.fullmatch(name):
                continue
            if name not in values and len(values) == _MOST_CURVES:
                raise UserError(f"{log} is not a log of a run: it has more than {_MOST_CURVES} figures")
            if (number := finite(value)) is not None:
                values[name][step] = float(number)
            else:  # what an earlier line has of this step no longer holds
                values[name].pop(step, None)
    curves = {
        name: tuple((float(step), found[step]) for step in sorted(found)) for name, found in values.items()
    }
    return {name: points for name, points in curves.items() if points}


def _records(log: Path) -> Iterator[dict[str, Any]]:
    """Return the records of a log; a last line that was being written when the run was killed is passed over."""
    try:
        content = packed(log)
        if log.exists() and not log.is_file():  # a pipe would never end
            raise UserError(f"{log} is not a file: expected the log.jsonl of a run")
        if content is None and log.stat().st_size > _MOST_BYTES:
            advice = "expected the log.jsonl of a run, a record a line"
            raise UserError(f"{log} has more than {_MOST_BYTES // 2**20} MiB: {advice}")
        lines = (log.read_bytes() if content is None else content).splitlines()
    except OSError as error:
        advice = "expected the log of a run"
        raise UserError(f"{log} cannot be read ({error.strerror or error}): {advice}") from error
    expected = "expected a run's log, a record a line"
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                return
            raise UserError(f"{log}, line {number} is no JSON: {expected}") from error
        if not isinstance(record, dict):
            raise UserError(f"{log}, line {number} holds {quoted(record)}: {expected}")
        yield record
