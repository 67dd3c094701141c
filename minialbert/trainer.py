"""The training loop: Transformers' Trainer, with the teacher beside the trained module and a sum of named terms."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler, Subset
from transformers import PreTrainedModel, ProgressCallback, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from .attention_comparison import AttentionInputs
from .checkpoints import CheckpointingTrainer
from .data.windows import WindowDataset
from .errors import UserError
from .held_out import HeldOutMetrics, measure_held_out
from .losses import KLDirection
from .memory import keep_freed_memory, release_freed_memory
from .objective import DistillationObjective, DistillationTerms, EncoderView, TokenCounts
from .processes import refuse_data_parallel
from .teachers import Teacher, enable_recording, records_attention, view_encoder

logger = logging.getLogger(__name__)


class DistillationStudent(nn.Module):
    """What is trained: the student and, where widths differ, one projection onto the teacher's.

    The projection exists only in training; `student` alone is what is saved as the result.

    Args:
        student: a masked-LM model.
        teacher_hidden_size: width of the teacher's hidden states; None without a teacher.
    """

    def __init__(self, student: PreTrainedModel, teacher_hidden_size: int | None = None) -> None:
        super().__init__()
        self.student = student
        enable_recording(student)
        width = student.config.hidden_size
        self.projection: nn.Module = nn.Identity()
        if teacher_hidden_size is not None and teacher_hidden_size != width:
            self.projection = nn.Linear(width, teacher_hidden_size, bias=False)
            nn.init.orthogonal_(self.projection.weight)

    def forward(
        self,
        batch: Mapping[str, Tensor],
        *,
        attention_layers: Sequence[int] = (),
        positions: Tensor | None = None,
        after_dropout: bool = False,
        attention_inputs: Sequence[int] = (),
        references: Mapping[int, AttentionInputs] | None = None,
        direction: KLDirection = "teacher-student",
        depths: Sequence[int] = (),
    ) -> EncoderView:
        """Return the student's view of a batch, its hidden states in the teacher's width."""
        view = view_encoder(
            self.student,
            batch,
            attention_layers=attention_layers,
            positions=positions,
            after_dropout=after_dropout,
            attention_inputs=attention_inputs,
            references=references,
            direction=direction,
        )
        if depths:
            masked = batch["labels"] != -100
            view.depth_logits = {
                depth: self.student.read_out(view.hidden_states[depth][masked]) for depth in depths
            }
        if not isinstance(self.projection, nn.Identity):
            view.hidden_states = {
                layer: self.projection(states) for layer, states in view.hidden_states.items()
            }
        return view


class DistillationTrainer(CheckpointingTrainer):
    """Trains a student on windows of text, by a distillation objective or, without a teacher, by masked-LM alone.

    The teacher stays outside the trained module: always in eval mode (unless the objective asks for the
    release's dropout), never given to the optimiser, never saved. Losses are normalised by the masked and
    valid tokens of the whole optimiser step, over its micro-batches and processes.

    Args:
        student: a masked-LM model.
        teacher: the teacher, or None.
        objective: weights, layer map, directions and reductions.
        args: Transformers' arguments; `output_dir` receives the checkpoints.
        train_dataset: masked by `data_collator`, in an order of its own (`ShuffledWindows`).
        data_collator: makes masked batches, perhaps packed; masks depend on seed, epoch and window alone.
        held_out_collator: makes those of evaluation; `data_collator` when absent.
        held_out: windows for evaluation.
        held_out_windows: how many of them to use, evenly spread; None for all.
        teacher_view: where the teacher's view of a batch comes from; by default the teacher itself (a cache
            may stand in).
        callbacks: further callbacks.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: Teacher | None,
        objective: DistillationObjective,
        *,
        args: TrainingArguments,
        train_dataset: Dataset | None = None,
        data_collator: Any = None,  # noqa: ANN401 - any callable
        held_out_collator: Any = None,  # noqa: ANN401
        held_out: WindowDataset | None = None,
        held_out_windows: int | None = None,
        teacher_view: Any = None,  # noqa: ANN401 - any callable with Teacher.view's signature
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        refuse_data_parallel(args, "distill")
        if args.device.type == "cpu":
            keep_freed_memory()
        self.teacher = teacher
        self.objective = objective
        self.student = student
        self.layers: tuple[int, ...] = ()
        if teacher is not None:
            # In half precision its weights are cast once, not by autocast in every step.
            teacher.model.to(args.device, torch.bfloat16 if args.bf16 else None)
            self.layers = objective.resolve_layers(student.config.num_hidden_layers, teacher.num_layers)
        self._teacher_view = teacher_view or (teacher.view if teacher is not None else None)
        enable_recording(student)
        self._compares_as_it_attends = (
            teacher is not None
            and teacher_view is None  # a cache keeps rows
            and objective.compares_plain_rows
            and teacher.num_heads == student.config.num_attention_heads
            and records_attention(teacher.model)
            and records_attention(student)
        )
        self._held_out_collator = held_out_collator or data_collator
        self._held_out = _evenly_spread(held_out, held_out_windows)
        self._term_sums: dict[str, Tensor] = {}
        self._steps_summed = 0
        self._tokens = 0.0
        self._clock = time.perf_counter()
        self._measured: tuple[int, tuple[HeldOutMetrics, HeldOutMetrics, HeldOutMetrics]] | None = None
        self._logged_evaluation = -1
        super().__init__(
            model=DistillationStudent(student, teacher.hidden_size if teacher else None),
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=self._held_out,
            callbacks=callbacks,
        )
        self.loss_is_scaled_for_ga = True  # the counts cover the whole optimiser step
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    # One optimiser step

    def get_batch_samples(
        self,
        epoch_iterator: Any,  # noqa: ANN401 - Trainer's signature
        num_batches: int,
        device: torch.device,
    ) -> tuple[list, Any]:
        """Return the micro-batches of one optimiser step, and what they hold over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.tensor(
            [
                [
                    float((batch["labels"] != -100).sum()),
                    float(batch["attention_mask"].sum()),
                    len(batch["window_ids"]),  # a row may hold several
                ]
                for batch in batches
            ],
            dtype=torch.float64,
            device="cpu" if device.type == "mps" else device,
        ).sum(0)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        masked, valid, windows = counts.tolist()
        self._tokens += valid
        self._steps_summed += 1
        return batches, TokenCounts(masked, valid, windows)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ANN401 - Trainer's name; here TokenCounts
    ) -> Any:  # noqa: ANN401
        """Return this micro-batch's share of the step's loss."""
        labels, mask = inputs["labels"], inputs["attention_mask"]
        objective = self.objective
        positions = objective.positions(labels, mask)
        matched = [(iteration, layer) for iteration, layer in enumerate(self.layers, 1) if layer]
        if not objective.needs_attention:
            matched = []
        teacher_view = None
        related = objective.related_layers(self.layers)
        compares = self._compares_as_it_attends
        asked_of_teacher: dict[str, Any] = {}
        if compares or related:
            asked_of_teacher["attention_inputs"] = {
                layer for _, layer in (*related, *(matched if compares else ()))
            }
        if not compares:
            asked_of_teacher["attention_layers"] = [layer for _, layer in matched]
        if self._teacher_view is not None and objective.needs_teacher:
            with self._autocast():
                teacher_view = self._teacher_view(
                    inputs,
                    positions=positions if objective.output_weight else None,
                    dropout=objective.teacher_dropout,
                    **asked_of_teacher,
                )
        asked_of_student: dict[str, Any] = {"attention_inputs": [iteration for iteration, _ in related]}
        if teacher_view is not None and compares:
            asked_of_student["references"] = {
                iteration: teacher_view.attention_inputs[layer] for iteration, layer in matched
            }
            asked_of_student["direction"] = objective.kl_direction
        elif teacher_view is not None:
            asked_of_student["attention_layers"] = [iteration for iteration, _ in matched]
        if objective.elastic is not None:
            asked_of_student["depths"] = [
                objective.elastic.draw(seed=self.args.seed, step=self.state.global_step)
            ]
        student_view = model(
            inputs, positions=positions, after_dropout=objective.teacher_dropout, **asked_of_student
        )
        terms = objective(
            student_view,
            teacher_view,
            labels=labels,
            attention_mask=mask,
            counts=num_items_in_batch,
            num_teacher_layers=self.teacher.num_layers if self.teacher is not None else None,
        )
        self._refuse_non_finite(terms)
        for name, value in terms.items():
            self._term_sums[name] = self._term_sums.get(name, 0.0) + value.detach()
        # Gradients are averaged over processes, but the counts are already those of all of them.
        loss = terms.total * self.args.world_size
        return (loss, student_view) if return_outputs else loss

    def _autocast(self) -> torch.autocast:
        dtype = torch.bfloat16 if self.args.bf16 else torch.float16
        return torch.autocast(self.args.device.type, dtype=dtype, enabled=self.args.bf16 or self.args.fp16)

    def _refuse_non_finite(self, terms: DistillationTerms) -> None:
        if torch.isfinite(terms.total):
            return
        bad = [name for name, value in terms.items() if name != "total" and not torch.isfinite(value)]
        raise UserError(
            f"step {self.state.global_step + 1}: the {', '.join(bad) or 'total'} term is not finite; lower "
            "training.learning_rate, or train in bf16 or fp32 rather than fp16"
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        # ShuffledWindows has its own order, a function of seed and position, so resuming needs no state.
        dataset: Any = train_dataset if train_dataset is not None else self.train_dataset
        return SequentialSampler(dataset)

    # What is reported

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of every term since the last log, and tokens per second, to what the Trainer logs."""
        if "loss" in logs and self._steps_summed:
            sums = torch.stack([value.double().cpu() for value in self._term_sums.values()])
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(sums.to(self.args.device), reduction="sum").cpu()
            means = (sums / self._steps_summed).tolist()
            logs |= {f"loss_{name}": value for name, value in zip(self._term_sums, means, strict=True)}
            logs["loss"] = logs.pop("loss_total")
            logs["tokens_per_second"] = self._tokens / max(time.perf_counter() - self._clock, 1e-9)
            if self.args.device.type == "cpu":
                release_freed_memory()
            self._reset_meter()
        super().log(logs, start_time)

    def _reset_meter(self) -> None:
        self._term_sums, self._steps_summed, self._tokens = {}, 0, 0.0
        self._clock = time.perf_counter()

    def measure(self) -> tuple[HeldOutMetrics, HeldOutMetrics, HeldOutMetrics]:
        """Return held-out metrics of the student over all windows, and over each half of them.

        The Trainer may ask more than once after the same step; it is measured once.
        """
        step = self.state.global_step
        if self._measured is None or self._measured[0] != step:
            depths = self.objective.elastic.depths if self.objective.elastic is not None else ()
            self._measured = (step, self._measure(self.model, with_teacher=True, depths=depths))
        return self._measured[1]

    def measure_teacher(self) -> tuple[HeldOutMetrics, HeldOutMetrics, HeldOutMetrics]:
        """Return the teacher's own masked-LM metrics on the same windows and masks."""
        assert self.teacher is not None and self.teacher.has_mlm_head
        return self._measure(self.teacher.view, with_teacher=False)

    def _measure(
        self,
        view: Any,  # noqa: ANN401 - a module or a bound method
        *,
        with_teacher: bool,
        depths: Sequence[int] = (),
    ) -> tuple[HeldOutMetrics, HeldOutMetrics, HeldOutMetrics]:
        assert self._held_out is not None
        loader = DataLoader(
            self._held_out,
            batch_size=self.args.eval_batch_size,
            collate_fn=self._held_out_collator,
            shuffle=False,
        )
        was_training = self.model.training
        self.model.eval()
        try:
            with self._autocast():
                return measure_held_out(
                    view,
                    self.teacher.view if with_teacher and self.teacher is not None else None,
                    (self._prepare_inputs(batch) for batch in loader),
                    layers=self.layers,
                    with_attention=self._comparable_rows(),
                    depths=depths,
                    attention_heads=self.objective.attention_heads,
                    num_windows=len(self._held_out),  # type: ignore[arg-type]
                )
        finally:
            self.model.train(was_training)

    def _comparable_rows(self) -> bool:
        if self.teacher is None:
            return False
        same = self.teacher.num_heads == self.student.config.num_attention_heads
        return same or self.objective.attention_heads == "average"

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:  # noqa: ANN401, ARG002
        """Log and return held-out metrics of the student."""
        if self._held_out is None:
            return {}
        started = time.perf_counter()
        metrics = self.measure()[0].flat("eval_")
        self._clock += time.perf_counter() - started  # throughput is that of training alone
        if self._logged_evaluation != self.state.global_step:
            self.log(dict(metrics))
            self._logged_evaluation = self.state.global_step
        return metrics


def _evenly_spread(windows: WindowDataset | None, limit: int | None) -> Dataset | None:
    if windows is None or len(windows) == 0:
        return None
    if limit is None or limit >= len(windows):
        return windows
    return Subset(windows, [index * len(windows) // limit for index in range(limit)])
