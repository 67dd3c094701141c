"""Checkpoints that are either whole or not there, for every trainer of the package."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn
from transformers import Trainer

WEIGHTS_FILE = "model.safetensors"


class CheckpointingTrainer(Trainer):
    """Transformers' Trainer with checkpoints written aside, then renamed into place, without pickled arguments."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ANN401
        """Write a checkpoint beside its place, sync it, then rename it into place and drop the oldest."""
        root, limit = self.args.output_dir, self.args.save_total_limit
        name = f"checkpoint-{self.state.global_step}"
        partial = Path(root) / "partial"
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.args.output_dir, self.args.save_total_limit = str(partial), None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir, self.args.save_total_limit = root, limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for file in (partial / name).rglob("*"):
                if file.is_file():
                    sync(file)
            final = Path(root) / name
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial / name, final)
            sync(Path(root))
            shutil.rmtree(partial, ignore_errors=True)
            kept = sorted(Path(root).glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
            for old in kept[: -limit if limit else 0]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # The Trainer would pickle its arguments beside the weights, and cannot store tied weights of a module.
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_model(self.accelerator.unwrap_model(self.model), str(folder / WEIGHTS_FILE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        target = self.accelerator.unwrap_model(model if model is not None else self.model)
        safetensors.torch.load_model(target, str(Path(resume_from_checkpoint) / WEIGHTS_FILE))


def sync(path: Path) -> None:
    """Wait until a file or directory is on the disk.

    Args:
        path: the file or directory.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
