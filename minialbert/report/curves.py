"""Curves of a run: what its log says of the losses and of the held-out measurements, by step."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minialbert.errors import UserError, quoted
from minialbert.runs.packed import packed

Points = tuple[tuple[float, float], ...]

# A log of a million steps, written every tenth, has about 40 MB.
_MOST_BYTES = 256 * 2**20
_MOST_CURVES = 200
_NAME = re.compile(r"[A-Za-z]\w{0,59}", re.ASCII)


def read_curves(log: Path) -> dict[str, Points]:
    """Read the loss terms that a training run logged.

    Args:
        log: a run's `log.jsonl`.

    Returns:
        Points (step, value) by the name of the term, such as "loss" and "loss_mlm", by rising step. Where a step
        was logged again, as by a run that was resumed, the later line counts. Figures that are not finite are left
        out.

    Raises:
        UserError: if the file cannot be read or is no log.
    """
    curves = _Curves(log)
    for record in _records(log):
        if record.get("kind") == "training":
            terms = {name: record[name] for name in record if name == "loss" or name.startswith("loss_")}
            curves.add(record, terms)
    return curves.points()


def held_out_curves(log: Path) -> dict[str, Points]:
    """Read the measurements that a run logged: of a student on held-out windows, or of a tuned model on validation.

    Args:
        log: a run's `log.jsonl`.

    Returns:
        Points (step, value) by the name of the figure, such as "mlm_accuracy" and "cosine_1", as `read_curves` has
        them. What a distillation measured before its first step stands at step 0.

    Raises:
        UserError: if the file cannot be read or is no log.
    """
    curves = _Curves(log)
    for record in _records(log):
        if record.get("kind") == "start" and isinstance(record.get("metrics"), dict):
            start = record["metrics"].get("student_start")
            curves.add(record, start if isinstance(start, dict) else {})
        elif record.get("kind") == "evaluation":
            figures = {
                name.removeprefix("eval_"): value
                for name, value in record.items()
                if name.startswith("eval_") and name != "eval_score"  # the task's metric, by its second name
            }
            curves.add(record, figures)
    return curves.points()


class _Curves:
    """Values by name and step, the last one of each."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._values: dict[str, dict[int, float]] = defaultdict(dict)

    def add(self, record: dict[str, Any], figures: dict[str, Any]) -> None:
        step = record.get("step")
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 2**53:
            raise UserError(f"{self._log} is no log of a run: a record has the step {quoted(step)}")
        for name, value in figures.items():
            number = _number(value)
            if number is None or name == "masked_tokens" or not _NAME.fullmatch(name):
                continue
            if name not in self._values and len(self._values) == _MOST_CURVES:
                raise UserError(f"{self._log} is no log of a run: it has more than {_MOST_CURVES} figures")
            if math.isfinite(number):
                self._values[name][step] = number
            else:  # what an earlier line has of this step no longer holds
                self._values[name].pop(step, None)

    def points(self) -> dict[str, Points]:
        return {
            name: tuple((float(step), values[step]) for step in sorted(values))
            for name, values in self._values.items()
            if values
        }


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _records(log: Path) -> Iterator[dict[str, Any]]:
    """Return the records of a log; a last line that was being written when the run was killed is passed over."""
    try:
        content = packed(log)
        if log.exists() and not log.is_file():  # a pipe would never end
            raise UserError(f"{log} is no file: expected the log.jsonl of a run")
        if content is None and log.stat().st_size > _MOST_BYTES:
            raise UserError(
                f"{log} has more than {_MOST_BYTES // 2**20} MiB: expected the log.jsonl of a run, a record a line"
            )
        lines = (log.read_bytes() if content is None else content).splitlines()
    except OSError as error:
        raise UserError(
            f"{log} cannot be read ({error.strerror or error}): expected the log of a run"
        ) from error
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                return
            raise UserError(
                f"{log}, line {number} is no JSON: expected a run's log, a record a line"
            ) from error
        if not isinstance(record, dict):
            raise UserError(
                f"{log}, line {number} holds {quoted(record)}: expected a run's log, a record a line"
            )
        yield record
