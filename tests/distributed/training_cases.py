"""Trains tiny models as one of several processes, or alone, and leaves what came of it for a test to compare.

    training_cases.py INPUTS OUTPUT CASE...

INPUTS is a folder with `windows`, `teacher` and `tokenizer`; OUTPUT receives CASE.json and CASE.safetensors.
"""

import contextlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import AutoTokenizer, BertForMaskedLM, TrainerCallback, TrainingArguments

from minialbert import (
    MiniAlbertConfig,
    MiniAlbertForMaskedLM,
    MiniAlbertForSequenceClassification,
    MiniAlbertForTokenClassification,
)
from minialbert.data.masking import MaskedLanguageModelCollator, ShuffledWindows
from minialbert.data.packing import PackedCollator
from minialbert.data.task_inputs import Encoded, PaddingCollator
from minialbert.data.window_store import WindowDataset
from minialbert.method.adapters import freeze_all_but_adapters
from minialbert.method.elastic import ElasticObjective
from minialbert.method.encoders import Teacher
from minialbert.method.fast.recording import checkpoint_activations
from minialbert.method.objective import DistillationObjective
from minialbert.method.trainer import DistillationTrainer
from minialbert.runs.stopping import StopRequested, end_process_group, rank, world_size
from minialbert.runs.trainer import ResumableTrainer
from minialbert.tasks.losses import TaskTeacher
from minialbert.tasks.trainer import TuningTrainer

ROWS_PER_STEP, MICRO = 8, 2
HIDDEN_ONLY = {"mlm_weight": 0.0, "output_weight": 0.0, "attention_weight": 0.0}

DISTILLATION: dict[str, dict[str, Any]] = {
    "default": {},
    "packed": {"packed": True},
    "paper": {"preset": "paper"},
    "elastic": {"objective": {"elastic": ElasticObjective((1,))}},
    "hidden-only": {"objective": HIDDEN_ONLY},
    "projection-unused": {"objective": {"hidden_weight": 0.0, "attention_weight": 0.0}, "width": 16},
    "masked-lm-alone": {"teacher": False},
    "checkpointing": {"checkpointing": True},
    "single-precision": {"double": False, "steps": 3},
    "not-finite": {"poison": True, "steps": 12},
    "stopped": {"steps": 20},
}  # fmt: skip
TUNING: dict[str, dict[str, Any]] = {
    "classification": {"weights": [0.5, 1.0, 2.5], "rows": 17},
    "task-teacher": {"teacher": True, "rows": 21},
    "ner": {"problem": "token", "weights": [0.5, 1.0, 2.5], "rows": 19},
    "multi-label": {"problem": "multi-label", "rows": 17, "elastic": True},
    "regression": {"problem": "regression", "rows": 18},
    "adapters": {"adapters": True, "rows": 17, "elastic": True},
    "early-stopping": {"patience": 2, "rows": 17},
}
KINDS = {"single-label": "class", "multi-label": "classes", "regression": "score", "token": "token"}


class Communication(TrainerCallback):
    """Counts the gradients that processes send each other."""

    def __init__(self) -> None:
        self.bytes: list[int] = []
        self.trainer: ResumableTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        if args.world_size > 1:
            self.trainer.model_wrapped.register_comm_hook(None, self._send)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bytes.append(0)

    def _send(self, group: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.bytes[-1] += bucket.buffer().numel() * bucket.buffer().element_size()
        return allreduce_hook(group, bucket)


class AskedInEvaluation(TrainerCallback):
    """Asks the last process to stop, when an evaluation is about to begin."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.stop.requested = control.should_evaluate and rank() == world_size() - 1


class Poison(TrainerCallback):
    """Makes the loss of one micro-batch of the last process infinite, in the third step."""

    def __init__(self) -> None:
        self.trainer: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != 2 or rank() != world_size() - 1:
            return
        trainer, original = self.trainer, self.trainer.note_terms

        def poisoned(terms: Any, total: torch.Tensor, *rest: Any) -> torch.Tensor:
            trainer.note_terms = original
            return original({**terms, "hidden": terms["hidden"] * math.nan}, total + math.inf, *rest)

        trainer.note_terms = poisoned


def arguments(folder: Path, steps: int, **more: Any) -> TrainingArguments:
    """Return the settings that all cases share; the micro-batches of a step are split over the processes."""
    return TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=ROWS_PER_STEP // MICRO // world_size(), learning_rate=2e-3, warmup_steps=2,
        adam_epsilon=1e-6, weight_decay=0.01, logging_steps=1, logging_nan_inf_filter=False, save_strategy="no",
        remove_unused_columns=False, report_to="none", disable_tqdm=True, use_cpu=True, seed=1, **more,
    )  # fmt: skip


def student_config(vocabulary: int, width: int = 32, **more: Any) -> MiniAlbertConfig:
    """Return a student without dropout."""
    return MiniAlbertConfig(
        vocab_size=vocabulary, embedding_size=16, hidden_size=width, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, adapter_reduction_factor=8, pad_token_id=0,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0, **more,
    )  # fmt: skip


def distillation(
    inputs: Path, folder: Path, *, packed: bool = False, preset: str = "default", width: int = 32, steps: int = 50,
    teacher: bool = True, checkpointing: bool = False, double: bool = True, poison: bool = False,
    objective: dict[str, Any] | None = None,
) -> tuple[DistillationTrainer, Communication]:  # fmt: skip
    """Return the trainer of a distillation."""
    tokenizer = AutoTokenizer.from_pretrained(inputs / "tokenizer")
    torch.manual_seed(rank())  # the processes begin with the weights of the first, whatever theirs are
    student = MiniAlbertForMaskedLM(student_config(len(tokenizer), width))
    if checkpointing:
        checkpoint_activations(student)
    terms = DistillationObjective.preset(preset, **(objective or {}))
    if not teacher:
        terms = terms.without("attention", "hidden", "output", "embedding", "relation")
    model = BertForMaskedLM.from_pretrained(inputs / "teacher")
    masks = MaskedLanguageModelCollator(tokenizer, seed=1)
    communication, infinite = Communication(), Poison()
    trainer = DistillationTrainer(
        student,
        Teacher(model.double() if double else model, True) if teacher else None,
        terms,
        args=arguments(folder, steps, eval_strategy="steps", eval_steps=10),
        train_dataset=ShuffledWindows(
            WindowDataset(inputs / "windows", "train"), steps * ROWS_PER_STEP, seed=1
        ),
        data_collator=PackedCollator(masks) if packed else masks,
        held_out_collator=masks,
        held_out=WindowDataset(inputs / "windows", "held_out"),
        held_out_windows=8,
        callbacks=[communication, *([infinite] if poison else [])],
    )
    if double:
        trainer.model.double()
    communication.trainer = infinite.trainer = trainer
    return trainer, communication


def tuning_rows(problem: str, count: int, words: int) -> Encoded:
    """Return random rows of 3 to 14 tokens; of a token task two in five positions are not labelled."""
    generator = torch.Generator().manual_seed(1)

    def draw(high: int, size: int) -> list[int]:
        return torch.randint(high, (size,), generator=generator).tolist()

    rows = []
    for _ in range(count):
        length = 3 + draw(12, 1)[0]
        row: dict[str, Any] = {"input_ids": [5 + token for token in draw(words - 5, length)]}
        if problem == "token":
            labels = zip(draw(3, length), draw(5, length), strict=True)
            row["labels"] = [1, *(label if kept > 1 else -100 for label, kept in labels)][:length]
        elif problem == "multi-label":
            row["labels"] = [float(value) for value in draw(2, 3)]
        else:
            row["labels"] = draw(3, 1)[0] if problem == "single-label" else draw(100, 1)[0] / 20
        rows.append(row)
    return Encoded(rows, list(range(count)))


def tuning(
    inputs: Path, folder: Path, *, rows: int, problem: str = "single-label", weights: list[float] | None = None,
    teacher: bool = False, elastic: bool = False, adapters: bool = False, patience: int | None = None,
) -> tuple[TuningTrainer, Communication]:  # fmt: skip
    """Return the trainer of a tuning whose epochs end with a step of fewer rows."""
    tokenizer = AutoTokenizer.from_pretrained(inputs / "tokenizer")
    labels = 1 if problem == "regression" else 3
    kind = MiniAlbertForTokenClassification if problem == "token" else MiniAlbertForSequenceClassification
    torch.manual_seed(rank())
    model = kind(student_config(len(tokenizer), num_labels=labels)).double()
    if adapters:
        freeze_all_but_adapters(model)
    torch.manual_seed(7)
    task_teacher = kind(student_config(len(tokenizer), num_labels=labels)).double() if teacher else None
    communication = Communication()
    metric = "mean_squared_error" if problem == "regression" else "score"
    best_at = {10: 0.5, 20: 0.7, 30: 0.6, 40: 0.65, 50: 0.9}

    def measure() -> dict[str, float]:
        # What other processes measure must not count: for them, every evaluation is a better one.
        step = trainer.state.global_step
        return {metric: best_at[step] if rank() == 0 else float(step)}

    trainer = TuningTrainer(
        model, problem, metric,  # type: ignore[arg-type]
        args=arguments(folder, 50, eval_strategy="steps", eval_steps=10, save_total_limit=1),
        train=tuning_rows(problem, rows, len(tokenizer)),
        collator=PaddingCollator(0, KINDS[problem]),
        measure=measure,
        batch_size=ROWS_PER_STEP,
        class_weights=torch.tensor(weights) if weights else None,
        teacher=TaskTeacher(task_teacher, torch.arange(labels), 0.7, 0.4, 2.0) if task_teacher else None,
        task_weight=0.6 if teacher else 1.0,
        elastic=ElasticObjective((1,), 1.0, 1.0) if elastic else None,
        patience=patience,
        callbacks=[communication],
    )  # fmt: skip
    communication.trainer = trainer
    return trainer, communication


def run_case(name: str, inputs: Path, output: Path) -> None:
    """Train one case and write what came of it, in the first process."""
    folder = output / f"{name}-checkpoints"
    trainer: ResumableTrainer
    if name in DISTILLATION:
        trainer, communication = distillation(inputs, folder, **DISTILLATION[name])
    else:
        trainer, communication = tuning(inputs, folder, **TUNING[name])
    if name == "stopped":
        trainer.add_callback(AskedInEvaluation(trainer))
    with contextlib.suppress(StopRequested):
        trainer.train()
    best = {}
    if isinstance(trainer, TuningTrainer):
        trainer.restore_best()
        best = {"best_step": trainer.best_step, "best_score": trainer.best_score}
    written = {
        "steps": trainer.state.global_step,
        "log": [record for record in trainer.state.log_history if "train_runtime" not in record],
        "bytes": communication.bytes,
        "gradient_bytes": sum(
            parameter.numel() * parameter.element_size()
            for parameter in trainer.model.parameters()
            if parameter.requires_grad
        ),
        **best,
    }
    # Every process writes what it knows: a test compares them.
    (output / f"{name}.{rank()}.json").write_text(json.dumps(written))
    safetensors.torch.save_model(trainer.model, str(output / f"{name}.{rank()}.safetensors"))


def main() -> None:
    """Run all cases that were asked for, one after the other."""
    torch.set_num_threads(1)
    inputs, output = Path(sys.argv[1]), Path(sys.argv[2])
    output.mkdir(exist_ok=True)
    for name in sys.argv[3:]:
        run_case(name, inputs, output)
    end_process_group()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
