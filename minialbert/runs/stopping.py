"""How many processes train together, as torchrun and accelerate tell them, and how they speak with one voice."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from minialbert.errors import UserError

if TYPE_CHECKING:
    from transformers import TrainingArguments

# Long enough for a launcher to see that the first process has failed, and to end the others.
_SECONDS_TO_BE_ENDED = 5.0


def world_size() -> int:
    """Return the number of processes of this job."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Return this process's number, counted from 0; only that of 0 writes."""
    return _number("RANK", 0)


def share_of(batch_size: int, name: str) -> int:
    """Return how many rows of an optimiser step fall to each process; `name` is the setting, for the message."""
    share, rest = divmod(batch_size, world_size())
    if rest or share == 0:
        advice = "set it to a multiple of that"
        raise UserError(f"{name} {batch_size} cannot be split over {world_size()} processes: {advice}")
    return share


def refuse_data_parallel(args: TrainingArguments, verb: str) -> None:
    """Refuse torch's DataParallel, which the Trainer uses when one process sees several GPUs."""
    if args.n_gpu > 1:
        raise UserError(
            f"this process sees {args.n_gpu} GPUs, and DataParallel is not supported: start one process per GPU "
            f"(torchrun --nproc-per-node {args.n_gpu} -m minialbert {verb} …) or choose one with "
            "CUDA_VISIBLE_DEVICES=0"
        )


def refuse_several_processes(words: Sequence[str]) -> None:
    """Refuse a command line that several processes would each do alone, writing the same files."""
    if world_size() == 1:
        return
    verb = next((word for word in words if not word.startswith("-")), "")
    if verb == "finetune" and "--grid" in words:
        advice = "start it without torchrun or accelerate launch, and give --jobs for several runs at a time"
        raise UserError(f"--grid starts runs of its own and takes one process: {advice}")
    if verb not in ("distill", "finetune"):
        raise UserError(
            f"minialbert {verb} takes one process, and this job has {world_size()}: start it without torchrun or "
            "accelerate launch (or unset WORLD_SIZE); distill and finetune share their work between processes"
        )


def leave_talking_to_the_first() -> None:
    """Silence standard output and log of all processes but the first; an error is still told."""
    if rank() != 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
        logging.disable(logging.ERROR)


def let_the_first_fail_first() -> None:
    """Wait until the launcher ends this process, unless it is the first or the only one that has failed.

    Most mistakes are met by all processes at once, and one line about them is enough.
    """
    if rank() != 0:
        time.sleep(_SECONDS_TO_BE_ENDED)


def end_process_group() -> None:
    """Take leave of the other processes, where there are any."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def lost_the_others(error: BaseException) -> bool:
    """Return whether an error of torch says that another process has gone."""
    distributed = sys.modules.get("torch.distributed")
    if world_size() == 1 or distributed is None:
        return False
    if isinstance(error, distributed.DistError):
        return True
    message = str(error)  # gloo raises plain RuntimeErrors
    return isinstance(error, RuntimeError) and ("onnection" in message or "gloo" in message)


def _number(name: str, default: int) -> int:
    value = os.environ.get(name) or default
    try:
        return int(value)
    except ValueError:
        advice = "expected a number, as launchers set it; unset it"
        raise UserError(f"the environment variable {name} is {value!r}: {advice}") from None


@contextmanager
def handling(act: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    """Handle some signals inside the block, in the main thread, which alone may."""
    alone = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, act) for number in numbers if alone}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequested(KeyboardInterrupt):
    """The run was asked to stop, between two batches."""


class GracefulStop:
    """Remembers that the process was asked to stop.

    A single process stops before its next batch. Several have to end at the same step, or some would
    wait for the others forever: they tell each other at the start of every step (`agreed`) and stop at its end.
    """

    def __init__(self) -> None:
        self.requested = False
        self.agreed = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as requests inside the block; a second SIGINT interrupts a single process at once.

        The processes of a launcher get two for one Ctrl-C: from the terminal, and from the launcher.
        """

        def request(number: int, frame: FrameType | None) -> None:
            if self.requested and number == signal.SIGINT and world_size() == 1:
                raise KeyboardInterrupt
            self.requested = True

        with handling(request, signal.SIGINT, signal.SIGTERM):
            yield
