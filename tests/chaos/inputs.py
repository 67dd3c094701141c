"""A tiny teacher, student, corpus and task, and the commands that are disturbed."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from processes import HERE, ROOT, ForkServer
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

sys.path[:0] = [str(HERE.parent), str(ROOT)]  # as a script, too
from conftest import _TEXT, _student_config, write_tiny_task  # noqa: E402

_TOKENIZER = HERE.parent / "fixtures" / "tiny-tokenizer"
# Dropout in the student, a depth drawn per step, logs, evaluations and checkpoints out of step with each other.
_DISTILL = (
    "student.num_hidden_layers=3", "student.hidden_dropout_prob=0.1", "student.attention_probs_dropout_prob=0.1",
    "distill.elastic=true", "training.max_steps=14", "training.logging_steps=3", "training.eval_steps=4",
    "training.save_steps=2", "training.lr_scheduler=linear",
)  # fmt: skip
_TUNE = (
    "tuning.batch_size=8", "tuning.epochs=1.5", "tuning.learning_rate=3e-3", "tuning.dropout=0.1",
    "tuning.logging_steps=4", "tuning.evaluations_per_epoch=3",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command that writes to one directory.

    Attributes:
        kind: "distill", "finetune", "grid" or "prepare".
        words: its arguments, without the directory.
    """

    kind: str
    words: tuple[str, ...]

    def into(self, output: Path, *more: str) -> list[str]:
        """Return the command line that starts it, or goes on with it.

        Args:
            output: the directory.
            *more: further words.

        Returns:
            The arguments.
        """
        resume = ["--resume"] if self.kind in ("distill", "finetune") else []
        return [*self.words, "--output", str(output), *resume, *more]

    def changed(self, *overrides: str) -> Command:
        """Return the command with further settings.

        Args:
            *overrides: as `--set` takes them.

        Returns:
            The command.
        """
        return Command(self.kind, (*self.words, *_sets(overrides)))


def make_commands(folder: Path, server: ForkServer) -> dict[str, Command]:
    """Write what the commands read, and return them by kind.

    Args:
        folder: where to.
        server: runs the first `prepare`.

    Returns:
        A command for each kind.
    """
    from minialbert import MiniAlbertForMaskedLM

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(_TOKENIZER)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    for name, model in (
        ("teacher", BertForMaskedLM(config)),
        ("student", MiniAlbertForMaskedLM(_student_config(tokenizer))),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    generator = random.Random(0)
    documents = [
        " ".join(generator.choices(_TEXT.split(" "), k=generator.randint(20, 200))) for _ in range(120)
    ]
    (folder / "corpus.txt").write_text("\n\n".join(documents) + "\n")
    prepare = Command(
        "prepare",
        (
            "prepare", "--corpus", str(folder / "corpus.txt"), "--tokenizer", str(_TOKENIZER), "--window-length", "32",
            "--overlap", "8", "--held-out-fraction", "0.15", "--workers", "1",
        ),
    )  # fmt: skip
    made = server.run(prepare.into(folder / "windows"))
    assert made.status == 0, made.err
    write_tiny_task(folder / "task", "classification")
    distill = (
        "distill",
        "--data",
        str(folder / "windows"),
        "--teacher",
        str(folder / "teacher"),
        "--recipe",
        "tiny",
    )
    tune = (
        "finetune",
        "--model",
        str(folder / "student"),
        "--task",
        "classification",
        "--data",
        str(folder / "task"),
    )
    grid = ("--grid", *_sets(["tuning.epochs=0.5", "grid.learning_rate=[1e-3,3e-3]"]))
    return {
        "distill": Command("distill", (*distill, *_sets(_DISTILL))),
        "finetune": Command("finetune", (*tune, *_sets(_TUNE))),
        "grid": Command("grid", (*tune, *_sets(_TUNE), *grid)),
        "prepare": prepare,
    }


def _sets(overrides: list[str] | tuple[str, ...]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]
