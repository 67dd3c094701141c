"""What is shown of work under way: the one bar; of a training also a line per log, and `log.jsonl`."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

from rich import filesize
from rich import progress as bars
from rich.console import Console
from transformers import TrainerCallback, TrainerState

from minialbert.errors import StandardError, UserError, in_words, quoted
from minialbert.runs.directory import RunDirectory
from minialbert.runs.machine import peak_memory_mb

logger = logging.getLogger(__name__)

# How many blocks of all threads are quiet, and how Transformers spoke before the first of them.
_quiet, _spoken, _counting = 0, (0, False), threading.Lock()
# Seconds of a training without a line, after which one is said between two logs: the first wait, and the longest.
_PATIENCE, _LONGEST_PATIENCE = 30.0, 600.0


class RunProgress(TrainerCallback):
    """Writes every log record to the run directory and shows it: on a bar with a title, on a line with some terms."""

    def __init__(
        self,
        run: RunDirectory,
        *,
        terms: Sequence[str],
        bar: bool = True,
        title: str = "distilling",
        lines: bool = True,
    ) -> None:
        self.run = run
        self._terms, self._title, self._lines = tuple(terms), title, lines
        self._bar = progress_bar("{task.description}", shown=bar)
        self._task: bars.TaskID | None = None
        self._started = 0.0
        self._first_step = 0
        self._parts = 0  # micro-batches of the step under way
        self._spoke, self._patience = 0.0, _PATIENCE

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start the clock and the bar."""
        self._started = self._spoke = time.monotonic()
        self._first_step = state.global_step
        if state.is_world_process_zero:
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self._parts = 0
        if self._task is not None:
            self._bar.update(self._task, completed=state.global_step)
        if not control.should_log:
            self._end_silence(args, state)

    def on_substep_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Count a micro-batch, which may take a minute where a step takes ten."""
        self._parts += 1
        self._end_silence(args, state)

    def _end_silence(self, args: Any, state: TrainerState) -> None:
        """Say what was measured since the start where no log has come for long; `log.jsonl` stays as it is."""
        now = time.monotonic()
        if not self._lines or not state.is_world_process_zero or now - self._spoke < self._patience:
            return
        self._spoke, self._patience = now, min(2 * self._patience, _LONGEST_PATIENCE)
        part = self._parts / args.gradient_accumulation_steps
        step, memory = f"{state.global_step + part:.1f}/{state.max_steps}", size(1e6 * peak_memory_mb())
        logger.info("step %s under way  left %s  %s of memory in all", step, self._left(state, part), memory)

    def _left(self, state: TrainerState, part: float = 0.0) -> str:
        """Return the time left after some of a step, as steps took so far."""
        done = state.global_step + part
        seconds = (time.monotonic() - self._started) / max(done - self._first_step, 1e-9)
        return duration(seconds * (state.max_steps - done))

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write and show one record."""
        if not logs or not state.is_world_process_zero or "train_runtime" in logs:
            return
        kind = "evaluation" if any(name.startswith("eval_") for name in logs) else "training"
        kind = "skipped" if "non_finite" in logs else kind
        self.run.append_log({"kind": kind, "step": state.global_step, **logs})
        step = f"{state.global_step}/{state.max_steps}"
        if kind == "skipped":
            figures, count = ", ".join(logs["non_finite"]), logs["skipped_steps"]
            logger.warning("step %s  skipped: not finite (%s); %d so far", step, figures, count)
        if "loss" in logs and self._task is not None:
            figures = f"loss {logs['loss']:.3f}  {logs['tokens_per_second']:,.0f} tokens/s"
            self._bar.update(self._task, description=f"{self._title}  {figures}")
        if not self._lines:
            return
        self._spoke = time.monotonic()
        if kind == "evaluation":
            what = "validation" if "eval_score" in logs else "held-out"
            logger.info("step %s  %s: %s", step, what, _evaluation_line(logs))
        elif "loss" in logs:
            logger.info("%s", self._training_line(state, logs))

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Put the bar away."""
        self._bar.stop()

    def _training_line(self, state: TrainerState, logs: dict[str, Any]) -> str:
        terms = " ".join(f"{name} {logs[f'loss_{name}']:.3f}" for name in self._terms)
        terms = f" ({terms})" if terms else ""
        step = f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.3f}{terms}"
        pace = f"{logs['tokens_per_second']:,.0f} tokens/s  left {self._left(state)}"
        return f"{step}  lr {logs.get('learning_rate', 0):.2e}  {pace}"


def progress_bar(
    title: str,
    *columns: str | bars.ProgressColumn,
    shown: bool = True,
    transient: bool = False,
    in_files: bool = False,
) -> bars.Progress:
    """Return a bar on standard error: drawn where that is a terminal, or a notebook with ipywidgets.

    Its title may be a template of rich. After the bar stand `columns`; without, how many of how many, and the time gone
    by and left. `transient` leaves nothing behind; `in_files` writes its last state where standard error is a file or a
    pipe. It is a context, with rich's `add_task`, `update` and `track`.
    """
    console = Console(stderr=True)
    in_notebook = console.is_jupyter  # where rich can draw with ipywidgets alone
    drawn = find_spec("ipywidgets") is not None if in_notebook else in_files or console.is_terminal
    if not columns:
        left = bars.TimeRemainingColumn(elapsed_when_finished=False)
        columns = (bars.MofNCompleteColumn(), bars.TimeElapsedColumn(), "left", left)
    return bars.Progress(
        title, bars.BarColumn(), *columns, console=console, transient=transient, disable=not (shown and drawn)
    )


@contextmanager
def speaking(shown: bool = True) -> Iterator[None]:
    """Show our log lines inside the block, unless somebody has set up logging, who gets them there.

    Transformers' bars and loading reports, which frighten people who did nothing wrong, reach nobody in the meantime.
    """
    ours = logging.getLogger("minialbert")
    with quiet_transformers(), ExitStack() as stack:
        if shown and not ours.hasHandlers():
            handler = StandardError()
            ours.addHandler(handler)
            stack.callback(ours.removeHandler, handler)
            stack.callback(ours.setLevel, ours.level)
            ours.setLevel(logging.INFO)
        yield


def silence_transformers() -> None:
    """Keep Transformers' bars and loading reports off the screen until the process ends."""
    from transformers.utils import logging as theirs

    theirs.set_verbosity_error()
    theirs.disable_progress_bar()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep Transformers' bars and loading reports off the screen inside the block; what matters is in our lines.

    They are for all threads together, so the last one that leaves such a block restores them.
    """
    from transformers.utils import logging as theirs

    global _quiet, _spoken
    with _counting:
        _quiet += 1
        if _quiet == 1:
            _spoken = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
            silence_transformers()
    try:
        yield
    finally:
        with _counting:
            _quiet -= 1
            if not _quiet:
                theirs.set_verbosity(_spoken[0])
                if _spoken[1]:
                    theirs.enable_progress_bar()


def duration(seconds: float) -> str:
    """Return a time span as h:mm:ss or m:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def seconds_of(text: str) -> float:
    """Return the seconds of a time span such as "2h", "90m", "45s" or "1h30m"."""
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+)m)?(?:(\d+)s)?", str(text).strip())
    hours, minutes, seconds = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, 0.0)
    if not (total := 3600 * hours + 60 * minutes + seconds):
        raise UserError(f"time: expected a span such as 2h, 90m, 45s or 1h30m, found {quoted(text)}")
    return total


def size(num_bytes: float) -> str:
    """Return a number of bytes with its unit, as in "1.2 MB"."""
    return filesize.decimal(round(num_bytes))


def _evaluation_line(logs: dict[str, Any]) -> str:
    if "eval_score" in logs:  # of a task: its own metric
        return f"{in_words(logs['eval_metric'])} {logs['eval_score']:.4f}"
    if "eval_vector_cosine" in logs:
        return f"cosine of vectors to the teacher's {logs['eval_vector_cosine']:.3f}"
    values = []
    if "eval_mlm_accuracy" in logs:
        loss = f"{logs['eval_mlm_loss']:.3f}" if "eval_mlm_loss" in logs else "not finite"
        values.append(f"masked-token accuracy {100 * logs['eval_mlm_accuracy']:.1f} %, loss {loss}")
    for name in ("cosine", "attention_kl"):
        if parts := [f"{value:.3f}" for key, value in logs.items() if key.startswith(f"eval_{name}_")]:
            values.append(f"{name.replace('_', ' ')} {' / '.join(parts)}")
    return "; ".join(values)
