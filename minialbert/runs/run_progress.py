"""What is shown of a training under way: a bar, a line per log, and `log.jsonl`."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from rich import progress as bars
from transformers import TrainerCallback, TrainerState

from minialbert.errors import in_words
from minialbert.runs.device import peak_memory_mb
from minialbert.runs.directory import RunDirectory
from minialbert.runs.progress import duration, progress_bar, size

logger = logging.getLogger(__name__)

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
