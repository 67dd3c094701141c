"""The tuning loop: Transformers' Trainer with rows grouped by length, losses by label, and the best state kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, ProgressCallback, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from .checkpoints import CheckpointingTrainer
from .data.examples import Problem
from .data.task_encoding import Encoded, LengthGroupedSampler, PaddingCollator
from .elastic_tuning import ElasticTuning
from .errors import UserError
from .memory import keep_freed_memory, release_freed_memory
from .metrics import LOWER_IS_BETTER
from .processes import refuse_data_parallel
from .task_losses import TaskTeacher, hidden_state_loss, label_weight, logit_loss, task_loss
from .teachers import forward_inputs

BEST_FILE = "best.safetensors"
_SECONDS_BETWEEN_CHECKPOINTS = 300.0


class TuningTrainer(CheckpointingTrainer):
    """Tunes a model with a task head.

    The loss of an optimiser step is a mean over its labels, whatever the micro-batches. After each evaluation
    the trained tensors are kept when validation is better than before; `restore_best` puts them back.

    Args:
        model: the model; parameters without `requires_grad` stay as they are.
        problem: the kind of task.
        metric: the figure that tells which state is best.
        args: Transformers' arguments.
        train: training inputs.
        collator: pads batches.
        measure: returns the validation figures of the model as it is.
        batch_size: rows per optimiser step, for the order of rows.
        class_weights: (L,) or None.
        teacher: a fine-tuned teacher, or None.
        task_weight: weight of the loss on gold labels (1 without a teacher).
        elastic: how depths before the last are tuned too; None for the last alone.
        patience: evaluations without a better one after which to stop; None for never.
        callbacks: further callbacks.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        problem: Problem,
        metric: str,
        *,
        args: TrainingArguments,
        train: Encoded,
        collator: PaddingCollator,
        measure: Callable[[], dict[str, Any]],
        batch_size: int,
        class_weights: Tensor | None = None,
        teacher: TaskTeacher | None = None,
        task_weight: float = 1.0,
        elastic: ElasticTuning | None = None,
        patience: int | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        refuse_data_parallel(args, "finetune")
        if args.device.type == "cpu":
            keep_freed_memory()
        self.problem, self.metric = problem, metric
        self.teacher, self.task_weight, self.elastic = teacher, task_weight, elastic
        self.class_weights = class_weights.to(args.device) if class_weights is not None else None
        self.patience = patience
        self.best_score: float | None = None
        self.best_step = 0
        self.step_seconds: list[float] = []
        self._best: dict[str, Tensor] = {}
        self._stale = 0
        self._evaluated_at = -1
        self._measure = measure
        self._rows_per_step = batch_size
        self._sums: dict[str, Tensor] = {}
        self._steps_summed = 0
        self._tokens = 0
        self._clock = time.perf_counter()
        if teacher is not None:
            teacher.model.to(args.device)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train,  # type: ignore[arg-type]
            eval_dataset=train,  # type: ignore[arg-type]  # Trainer wants one; `measure` knows the right one
            callbacks=[*(callbacks or []), _Periodic(), _StepTimes(self.step_seconds)],
        )
        self.loss_is_scaled_for_ga = True  # the weights cover the whole optimiser step
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

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
        self,
        epoch_iterator: Any,  # noqa: ANN401 - Trainer's signature
        num_batches: int,
        device: torch.device,
    ) -> tuple[list, Any]:
        """Return the micro-batches of one optimiser step, and what its losses are divided by.

        That is the weight of the labels, their number, and the tokens, over all processes.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        weights = self.class_weights.cpu() if self.class_weights is not None else None
        labels = [batch["labels"].cpu() for batch in batches]
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        counts = torch.tensor(
            [
                sum(float(label_weight(part, self.problem, weights)) for part in labels),
                sum(float(label_weight(part, self.problem)) for part in labels),
                tokens,
            ],
            dtype=torch.float64,
            device=device,
        )
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        self._tokens += tokens
        self._steps_summed += 1
        return batches, counts.tolist()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ANN401 - Trainer's name; here the counts of get_batch_samples
    ) -> Any:  # noqa: ANN401
        """Return this micro-batch's share of the step's loss."""
        labels = inputs["labels"]
        weight, count, tokens = num_items_in_batch
        teacher = self.teacher
        tuned = self.accelerator.unwrap_model(model)
        needs_states = self.elastic is not None or bool(teacher is not None and teacher.hidden_weight)
        outputs = model(**forward_inputs(tuned, inputs), output_hidden_states=needs_states)
        loss, _ = task_loss(outputs.logits, labels, self.problem, self.class_weights)
        terms = {"task": loss / max(weight, 1e-9)}
        total = self.task_weight * terms["task"]
        if teacher is not None:
            with self.compute_loss_context_manager():
                teacher_logits, teacher_states = teacher.view(inputs)
            if teacher.logit_weight:
                summed = logit_loss(outputs.logits, teacher_logits, labels, self.problem, teacher.temperature)
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
            terms["elastic"] = self.elastic(
                depth_logits,
                outputs.logits,
                labels,
                self.problem,
                weight=weight,
                count=count,
                class_weights=self.class_weights,
            )
            total = total + terms["elastic"]
        if not torch.isfinite(total):
            raise UserError(
                f"step {self.state.global_step + 1}: the loss is not finite; lower tuning.learning_rate, or tune in "
                "bf16 or fp32 rather than fp16"
            )
        for name, value in {**terms, "total": total}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
        loss = total * self.args.world_size  # gradients are averaged over processes
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        assert isinstance(self.train_dataset, Encoded)
        return LengthGroupedSampler(self.train_dataset.lengths, self._rows_per_step, self.args.seed)

    # Evaluation, and the best state

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:  # noqa: ANN401, ARG002
        """Measure validation, log it, and keep the state when it is the best so far."""
        if self._evaluated_at == self.state.global_step:  # the Trainer asks again after the last step
            return {}
        self._evaluated_at = self.state.global_step
        started = time.perf_counter()
        metrics = self._measure()
        self._clock += time.perf_counter() - started
        score = float(metrics[self.metric])
        sign = -1 if self.metric in LOWER_IS_BETTER else 1
        if self.best_score is None or sign * score > sign * self.best_score:
            self.best_score, self.best_step, self._stale = score, self.state.global_step, 0
            self._best = {name: value.detach().cpu().clone() for name, value in self._trained()}
        else:
            self._stale += 1
            if self.patience is not None and self._stale >= self.patience:
                self.control.should_training_stop = True
        figures = {f"eval_{name}": value for name, value in metrics.items() if isinstance(value, float)}
        self.log({**figures, "eval_score": score, "eval_metric": self.metric})  # type: ignore[dict-item]
        return figures

    def _trained(self) -> list[tuple[str, Tensor]]:
        model = self.accelerator.unwrap_model(self.model)
        return [(name, value) for name, value in model.named_parameters() if value.requires_grad]

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the best state's values back into the model."""
        for name, value in self._trained():
            if name in self._best:
                value.copy_(self._best[name])

    # What is reported

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of every term since the last log, and tokens per second, to what the Trainer logs."""
        if "loss" in logs and self._steps_summed:
            for name, value in self._sums.items():
                logs[f"loss_{name}"] = float(value) / self._steps_summed
            logs["loss"] = logs.pop("loss_total")
            logs["tokens_per_second"] = self._tokens / max(time.perf_counter() - self._clock, 1e-9)
            if self.args.device.type == "cpu":
                release_freed_memory()
            self._sums, self._steps_summed, self._tokens = {}, 0, 0
            self._clock = time.perf_counter()
        super().log(logs, start_time)

    # Checkpoints carry the best state too

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self._best:
            facts = {"score": self.best_score, "step": self.best_step, "stale": self._stale}
            path = Path(output_dir or self.args.output_dir) / BEST_FILE
            safetensors.torch.save_file(self._best, str(path), metadata={"best": json.dumps(facts)})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / BEST_FILE
        if path.is_file():
            with safetensors.safe_open(str(path), framework="pt") as file:
                facts = json.loads(file.metadata()["best"])
                self._best = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.best_score, self.best_step, self._stale = facts["score"], facts["step"], facts["stale"]


class _Periodic(TrainerCallback):
    """Saves a checkpoint when the last one is some minutes old, so that short runs write none."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        if (
            time.monotonic() - self._last > _SECONDS_BETWEEN_CHECKPOINTS
            and state.global_step < state.max_steps
        ):
            control.should_save = True
            self._last = time.monotonic()


class _StepTimes(TrainerCallback):
    """Notes how long each optimiser step took, data loading and evaluation apart."""

    def __init__(self, seconds: list[float]) -> None:
        self._seconds = seconds
        self._started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        self._seconds.append(time.perf_counter() - self._started)
