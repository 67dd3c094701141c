"""One view over all cells of a suite: a bar with the time left, and a line per finished cell."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..progress import duration, stderr_console
from .cells import Cell
from .estimates import time_left
from .records import Result
from .schema import Suite

logger = logging.getLogger(__name__)


class SuiteProgress:
    """Shows how far a suite is.

    Args:
        suite: the suite.
        cells: all cells that were asked for.
        left: what is to be run: those of them that are not done, and distillations that are made again.
        results: all records so far.
        jobs: cells at a time.
        shown: show anything at all.
    """

    def __init__(
        self,
        suite: Suite,
        cells: Sequence[Cell],
        left: Sequence[Cell],
        results: Mapping[str, Result],
        *,
        jobs: int,
        shown: bool,
    ) -> None:
        self._suite, self._jobs, self._shown = suite, jobs, shown
        self._left = {cell.name: cell for cell in left}
        self._results = dict(results)
        self._total = len(cells)
        self._done = sum(cell.name in results for cell in cells)
        self._asked = {cell.name for cell in cells}
        self._started: dict[str, float] = {}
        self._overheads: list[float] = []
        console = stderr_console()
        self._bar = Progress(
            TextColumn(f"suite {suite.name}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not (shown and console.is_terminal),
        )

    def __enter__(self) -> SuiteProgress:
        if self._shown:
            logger.info(
                "suite %s: %d of %d cells are done; %s",
                self._suite.name,
                self._done,
                self._total,
                self._told(),
            )
        self._bar.start()
        self._task = self._bar.add_task("suite", total=self._total, completed=self._done, left=self._told())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, name: str) -> None:
        """Remember when a cell's worker was started."""
        self._started[name] = time.monotonic()

    def finish(self, cell: Cell, result: Result) -> None:
        """Count a cell and say how it went."""
        if cell.name in self._started:
            took = time.monotonic() - self._started.pop(cell.name)
            self._overheads.append(max(0.0, took - result.seconds))
        again = cell.name in self._results
        self._left.pop(cell.name, None)
        self._results[cell.name] = result
        self._done += not again and cell.name in self._asked
        self._bar.update(self._task, completed=self._done, left=self._told())
        if self._shown:
            what = "made again" if again else _figure(cell, result)
            logger.info(
                "%d/%d %s: %s (%s)  suite: %s",
                self._done,
                self._total,
                cell.name,
                what,
                duration(result.seconds),
                self._told(),
            )

    def _told(self) -> str:
        if not self._left:
            return "nothing left"
        overhead = statistics.median(self._overheads) if self._overheads else 0.0
        return time_left(self._suite, self._left.values(), self._results, overhead).told(self._jobs)


def _figure(cell: Cell, result: Result) -> str:
    if not cell.is_distillation:
        return f"{str(result.record['metric']).replace('_', ' ')} {result.points:.1f} on {result.record['split']}"
    metrics = result.record["metrics"]
    end = metrics.get("student_end") or metrics.get("student_start") or {}
    accuracy = end.get("mlm_accuracy")
    return "made" if accuracy is None else f"masked-token accuracy {100 * accuracy:.1f} %"
