"""The training loop: Transformers' Trainer, with the teacher beside the trained module and a sum of named terms."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from minialbert.data.pairs import compared
from minialbert.data.window_store import WindowDataset
from minialbert.method.encoders import Teacher, enable_recording, evaluating, view_encoder
from minialbert.method.fast.recording import records_attention
from minialbert.method.held_out import HeldOutMetrics, measure_held_out
from minialbert.method.objective import (
    DistillationObjective,
    DistillationTerms,
    EncoderView,
    Request,
    TokenCounts,
)
from minialbert.runs.trainer import ResumableTrainer

logger = logging.getLogger(__name__)


class DistillationStudent(nn.Module):
    """What is trained: the student and, where widths differ, one projection onto the teacher's.

    The projection exists only in training; `student` alone is what is saved as the result.
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
        request: Request,
        compare: Callable[[EncoderView], DistillationTerms] | None = None,
    ) -> EncoderView | DistillationTerms:
        """Return the student's view of a batch, hidden states in the teacher's width, or what `compare` makes of it.

        Between processes, torch sees by what a module returns which weights get a gradient: a loss says it exactly.
        """
        projects = not isinstance(self.projection, nn.Identity)
        view = view_encoder(self.student, batch, replace(request, pooling=None) if projects else request)
        if projects:
            view.hidden_states = {
                layer: self.projection(states) for layer, states in view.hidden_states.items()
            }
            if request.pooling is not None:
                view.vectors = request.pooling(view.hidden_states[max(view.hidden_states)], batch)
        if compare is None:
            return view
        with torch.autocast(batch["input_ids"].device.type, enabled=False):
            return compare(view)


class DistillationTrainer(ResumableTrainer):
    """Trains a student on windows of text, by a distillation objective or, without a teacher, by masked-LM alone.

    The teacher stays outside the trained module: always in eval mode (unless the objective asks for the
    release's dropout), never given to the optimiser, never saved. Losses are normalised by the masked and
    valid tokens of the whole optimiser step, over its micro-batches and processes.

    Examples:
        >>> from minialbert.data.masking import MaskedLanguageModelCollator, ShuffledWindows
        >>> from minialbert.data.window_store import WindowDataset
        >>> from minialbert.method.encoders import load_teacher
        >>> student = minialbert.MiniAlbertForMaskedLM.from_pretrained("run/model")
        >>> tokenizer = transformers.AutoTokenizer.from_pretrained("run/model")
        >>> trainer = minialbert.DistillationTrainer(
        ...     student, load_teacher("bert-base-uncased"), minialbert.DistillationObjective(),
        ...     args=transformers.TrainingArguments("trained", max_steps=1, remove_unused_columns=False),
        ...     train_dataset=ShuffledWindows(WindowDataset("windows", "train"), 8, seed=1),
        ...     data_collator=MaskedLanguageModelCollator(tokenizer, seed=1),
        ... )
        >>> trainer.train().global_step
        1

    Args:
        student: a model with a masked-LM head, which is trained in place.
        teacher: what it learns from; None for masked-LM alone.
        objective: the loss terms and their weights.
        args: Transformers' own, with `remove_unused_columns=False`.
        train_dataset: windows in an order of their own, see `ShuffledWindows`.
        data_collator: masks the windows of a batch, and may pack them.
        held_out_collator: the same for evaluation; `data_collator` when absent.
        held_out: windows to evaluate on.
        held_out_windows: how many of them, evenly spread; None for all.
        teacher_view: what the teacher says of a batch, from a cache; `teacher.view` when absent.
        max_skipped_steps: end the run after more steps in a row whose loss or gradient is not finite.
        weight_noise: "int8" or "int4" to train with noise of the size of such rounding on the student's layers.
        optimizer: "adamw", or "muon" for the matrices of the student's layers.
        callbacks: Transformers' own.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: Teacher | None,
        objective: DistillationObjective,
        *,
        args: TrainingArguments,
        train_dataset: Dataset | None = None,
        data_collator: Any = None,
        held_out_collator: Any = None,
        held_out: WindowDataset | None = None,
        held_out_windows: int | None = None,
        teacher_view: Any = None,
        max_skipped_steps: int = 10,
        weight_noise: str | None = None,
        optimizer: str = "adamw",
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.teacher = teacher
        self.objective = objective
        self.student = student
        self.layers: tuple[int, ...] = ()
        if teacher is not None:
            # In half precision its weights are cast once, not by autocast in every step.
            teacher.model.to(args.device, torch.bfloat16 if args.bf16 else None)
            self.layers = objective.resolve_layers(student.config.num_hidden_layers, teacher.num_layers)
        self._teacher_view = teacher_view or (teacher.view if teacher is not None else None)
        model = DistillationStudent(student, teacher.hidden_size if teacher else None)
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
        # ShuffledWindows has its own order, a function of seed and position, so resuming needs no state.
        args.train_sampling_strategy = "sequential"
        self._measured: tuple[int, tuple[HeldOutMetrics, HeldOutMetrics, HeldOutMetrics]] | None = None
        super().__init__(
            verb="distill",
            section="training",
            max_skipped_steps=max_skipped_steps,
            weight_noise=weight_noise,
            optimizer=optimizer,
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=self._held_out,
            callbacks=callbacks,
            some_weights_rest=not _reaches_every_weight(objective, student, teacher),
        )

    # One optimiser step

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """Return the micro-batches of one optimiser step, and what they hold over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = [
            torch.stack(
                [(batch["labels"] != -100).sum(), compared(batch).sum(), batch["attention_mask"].sum()]
            )
            for batch in batches
        ]
        windows_here = sum(len(batch["window_ids"]) for batch in batches)  # a row of tokens may hold several
        # As one transfer from the device.
        masked, valid, self._step_tokens, windows = self.sum_over_processes(
            [*torch.stack(counts).sum(0).tolist(), windows_here]
        )
        return batches, TokenCounts(masked, valid, windows)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return this micro-batch's share of the step's loss."""
        labels, mask = inputs["labels"], compared(inputs)
        objective, compares = self.objective, self._compares_as_it_attends
        positions = objective.positions(labels, mask)
        teacher_view = None
        if self._teacher_view is not None and objective.needs_teacher:
            asked = objective.teacher_request(self.layers, positions, as_it_attends=compares)
            with self._autocast():
                teacher_view = self._teacher_view(inputs, asked)
        elastic = objective.elastic
        asked = objective.student_request(
            self.layers,
            positions,
            teacher=teacher_view,
            as_it_attends=compares,
            depths=[elastic.draw(seed=self.args.seed, step=self.state.global_step)] if elastic else (),
        )
        compare = partial(
            objective,
            teacher_outputs=teacher_view,
            labels=labels,
            attention_mask=mask,
            counts=num_items_in_batch,
            num_teacher_layers=self.teacher.num_layers if self.teacher is not None else None,
        )
        terms = model(inputs, asked, compare)
        # Gradients are averaged over processes, but the counts are already those of all of them.
        loss = self.note_terms(dict(terms.items()), terms.total, inputs["window_ids"]) * self.args.world_size
        return (loss, terms) if return_outputs else loss

    def _autocast(self) -> torch.autocast:
        dtype = torch.bfloat16 if self.args.bf16 else torch.float16
        return torch.autocast(self.args.device.type, dtype=dtype, enabled=self.args.bf16 or self.args.fp16)

    # What is reported

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
        self, view: Any, *, with_teacher: bool, depths: Sequence[int] = ()
    ) -> tuple[HeldOutMetrics, HeldOutMetrics, HeldOutMetrics]:
        assert self._held_out is not None
        loader = DataLoader(
            self._held_out,
            batch_size=self.args.eval_batch_size,
            collate_fn=self._held_out_collator,
            shuffle=False,
        )
        with evaluating(self.model), self._autocast():
            return measure_held_out(
                view,
                self.teacher.view if with_teacher and self.teacher is not None else None,
                self._until_stopped(loader),
                layers=self.layers,
                with_attention=self._comparable_rows(),
                depths=depths,
                attention_heads=self.objective.attention_heads,
                pooling=self.objective.vectors.pooling if self.objective.vectors is not None else None,
                num_windows=len(self._held_out),  # type: ignore[arg-type]
            )

    def _comparable_rows(self) -> bool:
        if self.teacher is None or self.teacher.attention_fault:
            return False
        same = self.teacher.num_heads == self.student.config.num_attention_heads
        return same or self.objective.attention_heads == "average"

    def _until_stopped(self, loader: DataLoader) -> Iterator[Any]:
        for batch in loader:
            self.check_for_stop()
            yield self._prepare_inputs(batch)

    def measure_and_log(self) -> dict[str, float]:
        """Log and return held-out metrics of the student."""
        if self._held_out is None:
            return {}
        figures = self.measure()[0].flat("eval_").items()
        metrics = {name: value for name, value in figures if math.isfinite(value)}
        self.log(dict(metrics))
        return metrics


def _reaches_every_weight(
    objective: DistillationObjective, student: PreTrainedModel, teacher: Teacher | None
) -> bool:
    """Return whether every step gives every trained weight a gradient.

    Logits of the last depth have one from every weight of the student, hidden states from the projection.
    """
    if not (objective.mlm_weight or objective.output_weight):
        return False
    projects = teacher is not None and teacher.hidden_size != student.config.hidden_size
    return not projects or bool(objective.hidden_weight or objective.embedding_weight)


def _evenly_spread(windows: WindowDataset | None, limit: int | None) -> Dataset | None:
    if windows is None or len(windows) == 0:
        return None
    if limit is None or limit >= len(windows):
        return windows
    return Subset(windows, [index * len(windows) // limit for index in range(limit)])
