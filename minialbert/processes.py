"""How many processes train together, as torchrun and accelerate tell them."""

from __future__ import annotations

import os

from transformers import TrainingArguments

from .errors import UserError


def world_size() -> int:
    """Return the number of processes of this job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return this process's number, counted from 0; only that of 0 writes."""
    return int(os.environ.get("RANK", "0"))


def share_of(batch_size: int, name: str) -> int:
    """Return how many rows of an optimiser step fall to each process.

    Args:
        batch_size: rows of the whole step.
        name: the setting, for the message.

    Returns:
        Rows per process.

    Raises:
        UserError: if they cannot be shared out evenly.
    """
    share, rest = divmod(batch_size, world_size())
    if rest or share == 0:
        raise UserError(f"{name} {batch_size} cannot be split over {world_size()} processes")
    return share


def refuse_data_parallel(args: TrainingArguments, verb: str) -> None:
    """Refuse torch's DataParallel, which the Trainer uses when one process sees several GPUs.

    Args:
        args: Transformers' arguments.
        verb: the command that runs.

    Raises:
        UserError: if this process sees several GPUs.
    """
    if args.n_gpu > 1:
        raise UserError(
            f"this process sees {args.n_gpu} GPUs, and DataParallel is not supported: start one process per GPU "
            f"(torchrun --nproc-per-node {args.n_gpu} -m minialbert {verb} …) or choose one with "
            "CUDA_VISIBLE_DEVICES=0"
        )
