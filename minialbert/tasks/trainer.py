"""The tuning loop: Transformers' Trainer with rows grouped by length, losses by label, and the best state kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate.utils import broadcast_object_list
from pydantic import BaseModel, NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, TrainingArguments

from minialbert.data.task_inputs import Encoded, LengthGroupedSampler, PaddingCollator
from minialbert.data.task_types import task_type
from minialbert.method.elastic import ElasticObjective
from minialbert.method.encoders import forward_inputs
from minialbert.runs.fitting import Progress
from minialbert.runs.trainer import ResumableTrainer
from minialbert.tasks.losses import TaskTeacher, elastic_loss, hidden_state_loss, logits_of

BEST_FILE = "best.safetensors"
_NO_ROWS = "no_rows"  # marks the batch of a process for which an epoch's last step has no rows
_SECONDS_BETWEEN_CHECKPOINTS = 300.0


class _Best(BaseModel, strict=True, allow_inf_nan=False):
    score: float | None
    step: NonNegativeInt
    stale: NonNegativeInt
    sound: bool = True


class TuningProgress(Progress):
    """What `progress.json` holds of a tuning run."""

    best: _Best
    step_seconds: list[NonNegativeFloat]


class TuningTrainer(ResumableTrainer):
    """Tunes a model with a task head; parameters without `requires_grad` stay as they are.

    The loss of an optimiser step is a mean over its labels, whatever the micro-batches. After each
    evaluation, by `measure`, the trained tensors are kept when `metric` is better than before; `restore_best`
    puts them back. `batch_size` are the rows of an optimiser step. `patience` evaluations without a better
    one end the training. Other options are those of `ResumableTrainer`.
    """

    progress_form = TuningProgress

    def __init__(
        self,
        model: PreTrainedModel,
        problem: str,
        metric: str,
        *,
        args: TrainingArguments,
        train: Encoded,
        collator: PaddingCollator,
        measure: Callable[[], dict[str, Any]],
        batch_size: int,
        class_weights: Tensor | None = None,
        focal_gamma: float = 0.0,
        teacher: TaskTeacher | None = None,
        task_weight: float = 1.0,
        elastic: ElasticObjective | None = None,
        patience: int | None = None,
        **options: Any,
    ) -> None:
        self.kind, self.metric = task_type(problem).focal(focal_gamma), metric
        self.teacher, self.task_weight, self.elastic = teacher, task_weight, elastic
        self.class_weights = class_weights.to(args.device) if class_weights is not None else None
        self.patience = patience
        self.best_score: float | None = None
        self.best_step = 0
        self.best_is_sound = False
        self.step_seconds: list[float] = []
        self._best: dict[str, Tensor] = {}
        self._stale = 0
        self._measure = measure
        self._rows_per_step = batch_size
        self._last_save = self._step_begun = time.monotonic()
        self._save_is_due = False
        if teacher is not None and teacher.model is not None:
            teacher.model.to(args.device)
        super().__init__(
            verb="finetune",
            section="tuning",
            model=model,
            args=args,
            data_collator=_SharedCollator(collator, train),
            train_dataset=_SharedRows(train),
            eval_dataset=train,  # type: ignore[arg-type]  # Trainer wants one; `measure` knows the right one
            **options,
        )

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the loss terms beside the total; empty when there is one."""
        teacher = self.teacher
        weights = {
            "logit": teacher.logit_weight if teacher is not None else 0.0,
            "hidden": teacher.hidden_weight if teacher is not None else 0.0,
            "elastic": float(self.elastic is not None),
        }
        names = tuple(name for name, weight in weights.items() if weight)
        return ("task", *names) if names or teacher is not None else ()

    # One optimiser step

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """Return the micro-batches of one optimiser step, and what its losses are divided by.

        That is the weight of the labels, their number, and the tokens, over all processes.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        weights = self.class_weights.cpu() if self.class_weights is not None else None
        own = [batch for batch in batches if _NO_ROWS not in batch]
        labels = [batch["labels"].cpu() for batch in own]
        tokens = sum(int(batch["attention_mask"].sum()) for batch in own)
        *counts, clocks = self.sum_over_processes(
            [
                sum(float(self.kind.weight(part, weights)) for part in labels),
                sum(float(self.kind.weight(part)) for part in labels),
                tokens,
                float(time.monotonic() - self._last_save > _SECONDS_BETWEEN_CHECKPOINTS),
            ]
        )
        self._save_is_due = clocks > 0  # for all processes, whose clocks differ
        self._step_tokens = counts[2]
        self._step_begun = time.monotonic()
        return batches, counts

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return this micro-batch's share of the step's loss."""
        labels = inputs["labels"]
        weight, count, tokens = num_items_in_batch
        teacher = self.teacher
        tuned = self.accelerator.unwrap_model(model)
        needs_states = self.elastic is not None or bool(teacher is not None and teacher.hidden_weight)
        outputs = model(**forward_inputs(tuned, inputs), output_hidden_states=needs_states)
        logits = logits_of(outputs)
        loss, _ = self.kind.loss(logits, labels, self.class_weights)
        terms = {"task": loss / max(weight, 1e-9)}
        total = self.task_weight * terms["task"]
        if teacher is not None:
            with self.compute_loss_context_manager():
                teacher_logits, teacher_states = teacher.view(inputs)
            if teacher.logit_weight:
                summed = self.kind.logit_loss(logits, teacher_logits, labels, teacher.temperature)
                terms["logit"] = summed / max(count, 1e-9)
                total = total + teacher.logit_weight * terms["logit"]
            if teacher.hidden_weight:
                mask = inputs["attention_mask"]
                mean = hidden_state_loss(outputs.hidden_states, teacher_states, mask)
                terms["hidden"] = mean * (mask.sum() / tokens)
                total = total + teacher.hidden_weight * terms["hidden"]
        if self.elastic is not None:
            depth = self.elastic.draw(seed=self.args.seed, step=self.state.global_step)
            with self.compute_loss_context_manager():
                depth_logits = tuned.read_out(outputs.hidden_states[depth])
            terms["elastic"] = elastic_loss(
                self.elastic,
                depth_logits,
                logits,
                labels,
                self.kind,
                weight=weight,
                count=count,
                class_weights=self.class_weights,
            )
            total = total + terms["elastic"]
        if _NO_ROWS in inputs:
            terms, total = {name: 0.0 * value for name, value in terms.items()}, 0.0 * total
        # Gradients are averaged over processes.
        loss = self.note_terms({**terms, "total": total}, total) * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def end_step(self) -> None:
        """Close the books, note how long the step took, and save where the last time was minutes ago."""
        super().end_step()
        self.step_seconds.append(time.monotonic() - self._step_begun)
        if self._save_is_due and self.state.global_step < self.state.max_steps:
            self.control.should_save, self._last_save = True, time.monotonic()

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        assert isinstance(self.train_dataset, _SharedRows)
        together = self.args.train_batch_size * self.args.world_size
        return LengthGroupedSampler(
            self.train_dataset.lengths, self._rows_per_step, self.args.seed, multiple_of=together
        )

    # Evaluation, and the best state

    def measure_and_log(self) -> dict[str, float]:
        """Measure validation, log it, and keep the state when it is the best so far."""
        (metrics,) = broadcast_object_list([self._measure()])  # all decide by those of the first process
        score = float(metrics[self.metric])
        sign = -1 if self.metric in self.kind.lower_is_better else 1
        sound = self.kind.is_sound(metrics)
        if self.best_score is None or (sound, sign * score) > (self.best_is_sound, sign * self.best_score):
            self.best_score, self.best_step, self._stale = score, self.state.global_step, 0
            self.best_is_sound = sound
            self._best = {name: value.detach().cpu().clone() for name, value in self._trained()}
        else:
            self._stale += 1
            if self.patience is not None and self._stale >= self.patience:
                self.control.should_training_stop = True
        figures = {f"eval_{name}": value for name, value in metrics.items() if isinstance(value, float)}
        self.log({**figures, "eval_score": score, "eval_metric": self.metric})  # type: ignore[dict-item]
        return figures

    def begin_training(self) -> None:
        """Start the clock; a resumed run that was at its end, perhaps early, does not train on."""
        # Trainer looks for the end after a step alone, and there may be rows left in the epoch.
        super().begin_training()
        stopped_early = self.patience is not None and self._stale >= self.patience
        if stopped_early or self.state.global_step >= self.state.max_steps:
            raise _AtItsEnd

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as Transformers' Trainer does."""
        try:
            return super().train(*args, **kwargs)
        except _AtItsEnd:
            self.callback_handler.on_train_end(self.args, self.state, self.control)
            return None

    def _trained(self) -> list[tuple[str, Tensor]]:
        model = self.accelerator.unwrap_model(self.model)
        return [(name, value) for name, value in model.named_parameters() if value.requires_grad]

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the best state's values back into the model."""
        for name, value in self._trained():
            if name in self._best:
                value.copy_(self._best[name])

    # Checkpoints carry the best state too

    def progress(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside tensors."""
        best = {"score": self.best_score, "step": self.best_step, "stale": self._stale}
        best["sound"] = self.best_is_sound
        return {**super().progress(), "best": best, "step_seconds": self.step_seconds}

    def restore_progress(self, progress: Mapping[str, Any]) -> None:
        """Go on from what `progress` returned."""
        super().restore_progress(progress)
        best = progress["best"]
        self.best_score, self.best_step, self._stale = best["score"], best["step"], best["stale"]
        self.best_is_sound = best.get("sound", True)
        self.step_seconds[:] = progress["step_seconds"]

    def saved_tensors(self, progress: TuningProgress) -> dict[str, Mapping[str, Tensor]]:
        """Return what each safetensors file of a checkpoint holds; there is a best state once one was measured."""
        best = {BEST_FILE: dict(self._trained())} if progress.best.score is not None else {}
        return super().saved_tensors(progress) | best

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self._best:
            safetensors.torch.save_file(self._best, str(Path(output_dir or self.args.output_dir) / BEST_FILE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / BEST_FILE
        if path.is_file():
            self._best = safetensors.torch.load_file(str(path))


class _SharedRows(Dataset[dict[str, Any] | None]):
    """Rows, and None for an index beyond them, with which `LengthGroupedSampler` fills up an epoch."""

    def __init__(self, rows: Encoded) -> None:
        self.rows, self.lengths = rows, rows.lengths

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        return self.rows[index] if index < len(self.rows) else None


class _SharedCollator:
    """Pads the rows of a batch; one without rows gets any row, and a mark that it does not count.

    Its process has to run a step like the others: gradients are summed over all of them.
    """

    def __init__(self, collator: PaddingCollator, rows: Encoded) -> None:
        self._collator, self._any_row = collator, rows[0]

    def __call__(self, rows: Sequence[dict[str, Any] | None]) -> dict[str, Tensor]:
        own = [row for row in rows if row is not None]
        if own:
            return self._collator(own)
        return {**self._collator([self._any_row]), _NO_ROWS: torch.tensor(True)}


class _AtItsEnd(Exception):  # noqa: N818 - no error
    """A resumed run finds that no step is left."""
