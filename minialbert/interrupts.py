"""Ctrl-C and SIGTERM end a run at once, as far as its last whole optimiser step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .processes import world_size


class StopRequested(KeyboardInterrupt):
    """The run was asked to stop, between two batches."""


class GracefulStop(TrainerCallback):
    """Remembers that the process was asked to stop, and ends the training.

    A single process stops before its next batch. Several have to end at the same step, or some would
    wait for the others forever: they tell each other at the start of every step (`agreed`) and stop at its end.
    """

    def __init__(self) -> None:
        self.requested = False
        self.agreed = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Turn a request that all processes know of into Trainer's own save and stop flags."""
        asked = self.agreed if args.world_size > 1 else self.requested
        if asked and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as requests inside the block; a second SIGINT interrupts a single process at once.

        The processes of a launcher get two for one Ctrl-C: from the terminal, and from the launcher.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(number: int, frame: FrameType | None) -> None:
            if self.requested and number == signal.SIGINT and world_size() == 1:
                raise KeyboardInterrupt
            self.requested = True

        before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
