"""Trackers of a run: TensorBoard, Weights & Biases and trackio get what `log.jsonl` gets, and nothing unasked.

Transformers has callbacks for all three. They send every training argument with its paths, the host's name and the
command line, take their folder and run id from environment variables that outlive a run, and let a training fail with
them; those here send the recipe, and give way.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import yaml
from transformers import TrainerCallback, TrainerState

from minialbert.errors import MissingExtraError, UserError, failing_as, one_line
from minialbert.recipes.schema import Mark, RecipeBase, marked, without_places
from minialbert.runs.directory import RunDirectory
from minialbert.runs.files import check_own, write_atomically
from minialbert.runs.records import finite

logger = logging.getLogger(__name__)

PROJECT = "minialbert"
_TITLES = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases", "trackio": "trackio"}
# An upload that hangs must not keep a trained model from being saved.
_SECONDS_TO_FINISH = 60.0


class _Tracker(NamedTuple):
    write: Callable[[Mapping[str, float], int], None]  # figures, and their step
    finish: Callable[[], None]


def check_trackers(names: Iterable[str]) -> None:
    """Check that the packages of a recipe's `report_to` are there, before a run writes anything."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, "tracking", f"reporting to {_TITLES[name]}")


def trackers(names: Iterable[str], run: RunDirectory, recipe: RecipeBase) -> list[TrainerCallback]:
    """Return a callback for each tracker of a recipe's `report_to`."""
    return [RunTracking(name, run, recipe) for name in dict.fromkeys(names)]


class RunTracking(TrainerCallback):
    """Gives one tracker every figure that a run logs, from the first process alone.

    What cannot be started ends a run before its first step; whatever fails later is told once, and training goes on
    without it.
    """

    def __init__(self, name: str, run: RunDirectory, recipe: RecipeBase) -> None:
        self.name = name
        self._run = run
        self._recipe = recipe
        self._tracker: _Tracker | None = None
        self._is_over = False

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start the tracker."""
        self._begin(state)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Send the figures of one record."""
        if not logs or not state.is_world_process_zero or "train_runtime" in logs:  # as `RunProgress`
            return
        self._begin(state)  # a resumed run may measure before others are told that it begins
        self._write(logs, state.global_step)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """End the tracker's run."""
        if self._tracker is not None:
            self._attempt("be ended", self._tracker.finish)
        self._tracker, self._is_over = None, True

    def _begin(self, state: TrainerState) -> None:
        if self._tracker is not None or self._is_over or not state.is_world_process_zero:
            return
        step = state.global_step
        if step:
            self._attempt("go on", lambda: self._start(step))
            return
        advice = "fix that, or leave it out of report_to"
        with failing_as(f"{_TITLES[self.name]} cannot be started", Exception, advice, named=True):
            self._start(step)
        for record in self._run.read_log():
            if record.get("kind") == "start":  # measured before there was a training
                first = record["metrics"].get("student_start", {})
                self._write({f"eval_{name}": value for name, value in first.items()}, step)

    def _start(self, step: int) -> None:
        check_own(self._run.tracking)
        self._run.tracking.mkdir(exist_ok=True)
        # It is told names of files without their folders, and no command line.
        sent = without_places(self._recipe.model_dump(exclude=set(marked(Mark.NAME) - {"name"})))
        self._tracker = _TRACKERS[self.name](self._run, sent, step)

    def _write(self, logs: Mapping[str, Any], step: int) -> None:
        tracker = self._tracker
        if tracker is not None and (figures := named(logs)):
            self._attempt("take more figures", lambda: tracker.write(figures, step))

    def _attempt(self, what: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self._tracker, self._is_over = None, True
            told = f"{type(error).__name__}: {one_line(error)}"
            line = "%s cannot %s (%s); the run goes on without it, and log.jsonl has every figure"
            logger.warning(line, _TITLES[self.name], what, told)


def named(logs: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a log record under the names that Transformers gives them in trackers.

    Such as "train/loss_mlm" and "eval/mlm_accuracy"; text, lists and what is not finite are left out. Of a measurement
    only the figures of its own: the record of training has the others.
    """
    numbers = {name: float(one) for name, value in logs.items() if (one := finite(value)) is not None}
    measured = {name: value for name, value in numbers.items() if name.startswith("eval_")}
    if measured:
        return {f"eval/{name.removeprefix('eval_')}": value for name, value in measured.items()}
    return {f"train/{name}": value for name, value in numbers.items()}


def _tensorboard(run: RunDirectory, config: Mapping[str, Any], step: int) -> _Tracker:
    """Return event files in the run directory; what a resumed run writes again takes the place of what was there."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(log_dir=str(run.tracking), purge_step=step + 1 if step else 0)
    lines = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).splitlines()
    writer.add_text("recipe", "\n".join(f"    {line}" for line in lines), step)

    def write(figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return _Tracker(write, writer.close)


def _wandb(run: RunDirectory, config: Mapping[str, Any], step: int) -> _Tracker:
    """Return a run whose id stands in the run directory; a resumed one sends no step again."""
    import wandb

    file = run.tracking / "wandb-id"
    if not file.is_file():
        write_atomically(file, f"{secrets.token_hex(8)}\n")
    found = file.read_text(encoding="utf-8", errors="replace")[:100].strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found):
        raise UserError(f"{file} holds no id of a run: remove it, and Weights & Biases starts another run")
    client = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        name=run.path.resolve().name,
        id=found,
        resume="allow",
        reinit="create_new",
        dir=os.environ.get("WANDB_DIR") or str(run.tracking),
        config=dict(config),
        save_code=False,
        settings=wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            finish_timeout=_SECONDS_TO_FINISH,
            host="",
            program="minialbert",
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_save_requirements=False,
        ),
    )
    first = client.step

    def write(figures: Mapping[str, float], step: int) -> None:
        if step >= first:  # the same figures are there, from before the run was cut off
            client.log(dict(figures), step=step)

    return _Tracker(write, client.finish)


def _trackio(run: RunDirectory, config: Mapping[str, Any], step: int) -> _Tracker:
    """Return a run in trackio's own folder, or where its environment variables say."""
    import trackio

    # What the package prints is kept out of standard output, which belongs to --json.
    with contextlib.redirect_stdout(sys.stderr):
        client = trackio.init(
            project=PROJECT,
            name=run.path.resolve().name,
            config=dict(config),
            resume="allow" if step else "never",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def finish() -> None:
        with contextlib.redirect_stdout(sys.stderr):
            trackio.finish()  # which also keeps it from being finished again at exit, on standard output

    return _Tracker(lambda figures, step: client.log(dict(figures), step=step), finish)


_TRACKERS: dict[str, Callable[[RunDirectory, Mapping[str, Any], int], _Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}
