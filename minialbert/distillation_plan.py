"""What a distillation run needs, checked before anything is written: models, objective, windows, batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .attention import checkpoint_activations, records_attention
from .data.masking import MaskedLanguageModelCollator
from .data.tokenizers import load_tokenizer
from .data.windows import WindowDataset, check_tokenizer
from .elastic import ElasticObjective, mark_depths, resolve_depths
from .errors import UserError
from .objective import DistillationObjective
from .processes import share_of
from .recipe import Recipe
from .recipe_schema import DistillRecipe, TrainingRecipe
from .students import build_student
from .teachers import Teacher, load_teacher, supports_packing

# Real text for `init: teacher`; more changes the fit of the projection little.
_SAMPLE_WINDOWS = 256
_SAMPLE_BATCH = 16

_ELASTIC_KEYS = ("elastic", "elastic_depths", "elastic_mlm_weight", "elastic_output_weight")


@dataclass(frozen=True)
class DistillationPlan:
    """Everything a run needs, checked, before anything is written.

    Args:
        recipe: the resolved recipe.
        teacher: the teacher, or None for masked-LM alone.
        student: the student with its first weights.
        tokenizer: the tokenizer of both.
        objective: the objective, without what this teacher cannot give.
        layers: the teacher layer of each iteration (0: none); empty without a teacher.
        windows: training windows.
        held_out: evaluation windows.
        collator: masks batches.
        packs: whether short windows share rows in training.
        max_steps: optimiser steps.
        micro_batch_size: windows per forward pass and process.
        accumulation: micro-batches per optimiser step and process.
        notes: what was decided, one line each.
    """

    recipe: Recipe
    teacher: Teacher | None
    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    objective: DistillationObjective
    layers: tuple[int, ...]
    windows: WindowDataset
    held_out: WindowDataset
    collator: MaskedLanguageModelCollator
    packs: bool
    max_steps: int
    micro_batch_size: int
    accumulation: int
    notes: tuple[str, ...]


def plan_distillation(recipe: Recipe, data: str | Path | Sequence[str | Path]) -> DistillationPlan:
    """Return a checked plan: models loaded, student initialised, objective resolved.

    Args:
        recipe: the resolved recipe; its `teacher.model` may be None for masked-LM alone.
        data: a folder made by `prepare`, or several of one tokenizer, whose windows are mixed.

    Returns:
        The plan.

    Raises:
        UserError: if models, data and recipe do not fit together.
    """
    windows, held_out = WindowDataset(data, "train"), WindowDataset(data, "held_out")
    tokenizer = load_tokenizer(windows.directories[0] / "tokenizer")
    check_tokenizer(windows.tokenizer, tokenizer)
    training = recipe.training
    notes: list[str] = []
    collator = MaskedLanguageModelCollator(
        tokenizer,
        mask_probability=recipe.data.mask_probability,
        whole_word=recipe.data.whole_word_masking,
        seed=training.seed,
    )
    teacher = None
    if recipe.teacher.model is not None:
        teacher = load_teacher(recipe.teacher.model, revision=recipe.teacher.revision)
        assert teacher.tokenizer is not None
        check_tokenizer(windows.tokenizer, teacher.tokenizer)
        _check_length(windows.window_length, "teacher", teacher.max_length)
    samples = _sample_batches(windows, collator)
    student, report = build_student(recipe.student, teacher, tokenizer, samples, seed=training.seed)
    if training.gradient_checkpointing:
        checkpoint_activations(student)
    notes += report
    objective = resolve_objective(recipe, teacher, student, notes)
    mark_depths(student.config, objective.elastic.depths if objective.elastic is not None else None)
    layers = objective.resolve_layers(student.config.num_hidden_layers, teacher.num_layers) if teacher else ()
    longest = int(student.config.max_position_embeddings)
    _check_length(windows.window_length, "student", longest)
    per_process = share_of(training.batch_size, "training.batch_size")
    micro = training.micro_batch_size or _micro_batch_size(per_process, windows.window_length)
    if per_process % micro:
        raise UserError(
            f"training.micro_batch_size {micro} does not divide the {per_process} windows of each process and step"
        )
    max_steps = training.max_steps
    if max_steps is None:
        assert training.epochs is not None
        max_steps = max(1, round(training.epochs * len(windows) / training.batch_size))
    if training.warmup_steps >= max_steps:
        notes.append(
            f"warm-up: {training.warmup_steps} steps are not fewer than the {max_steps} of the run, so the learning "
            "rate never reaches its highest value; set training.warmup_steps"
        )
    return DistillationPlan(
        recipe=recipe,
        teacher=teacher,
        student=student,
        tokenizer=tokenizer,
        objective=objective,
        layers=layers,
        windows=windows,
        held_out=held_out,
        collator=collator,
        packs=_can_pack(training, objective, student, teacher),
        max_steps=max_steps,
        micro_batch_size=micro,
        accumulation=per_process // micro,
        notes=tuple(notes),
    )


def resolve_objective(
    recipe: Recipe, teacher: Teacher | None, student: PreTrainedModel, notes: list[str]
) -> DistillationObjective:
    """Return the recipe's objective for this pair of models; what is switched off is added to `notes`.

    Args:
        recipe: preset and overrides.
        teacher: the teacher, or None.
        student: the student.
        notes: receives a line for every term that this teacher cannot give.

    Returns:
        The objective.

    Raises:
        UserError: if it asks for a comparison that cannot be made.
    """
    settings = recipe.distill.model_dump(exclude=set(_ELASTIC_KEYS))
    settings["elastic"] = _elastic_objective(recipe.distill, student, notes)
    objective = DistillationObjective.preset(settings.pop("preset"), **settings)
    if teacher is None:
        notes.append("no teacher: masked-LM alone")
        if not objective.mlm_weight:
            raise UserError("without a teacher only the MLM term is left, and distill.mlm_weight is 0")
        return objective.without("attention", "hidden", "output", "embedding", "relation")
    if not teacher.has_mlm_head and objective.output_weight:
        notes.append("output term: off (the teacher has no masked-LM head)")
        objective = objective.without("output")
    try:
        objective.resolve_layers(student.config.num_hidden_layers, teacher.num_layers)
    except ValueError as error:
        raise UserError(f"distill.{error}") from error
    heads, teacher_heads = student.config.num_attention_heads, teacher.num_heads
    if objective.attention_weight and objective.attention_heads == "match" and heads != teacher_heads:
        raise UserError(
            f"the student has {heads} attention heads and the teacher {teacher_heads}, so their maps cannot be "
            f"compared head by head: set student.num_attention_heads={teacher_heads}, distill.attention_heads=average "
            "to compare the mean over heads, or distill.attention_weight=0 for hidden states only"
        )
    if objective.relation_weight:
        _check_relations(objective, teacher, student, cached=recipe.training.cache_teacher)
    if student.config.hidden_size != teacher.hidden_size:
        notes.append(
            f"hidden states: a projection {student.config.hidden_size} -> {teacher.hidden_size}, in training only"
        )
    return objective


def _elastic_objective(
    recipe: DistillRecipe, student: PreTrainedModel, notes: list[str]
) -> ElasticObjective | None:
    if not recipe.elastic:
        return None
    iterations = student.config.num_hidden_layers
    depths = resolve_depths(recipe.elastic_depths, iterations)
    notes.append(
        f"elastic: besides depth {iterations}, every step trains one of {', '.join(map(str, depths))}"
    )
    return ElasticObjective(depths, recipe.elastic_mlm_weight, recipe.elastic_output_weight)


def _sample_batches(
    windows: WindowDataset, collator: MaskedLanguageModelCollator
) -> Iterator[dict[str, Tensor]]:
    """Yield a few unmasked batches, evenly spread over the training windows."""
    count = min(_SAMPLE_WINDOWS, len(windows))
    chosen = [windows[index * len(windows) // count] for index in range(count)]
    for begin in range(0, count, _SAMPLE_BATCH):
        batch = collator(chosen[begin : begin + _SAMPLE_BATCH])
        for row, example in enumerate(chosen[begin : begin + _SAMPLE_BATCH]):
            ids = torch.as_tensor(example["input_ids"])
            batch["input_ids"][row, : len(ids)] = ids  # undo the masking
        yield batch


def _check_length(window_length: int, whose: str, longest: int) -> None:
    if window_length > longest:
        raise UserError(
            f"the windows are {window_length} tokens long, but the {whose} takes at most {longest}: prepare them "
            f"with --window-length {longest}"
        )


def _can_pack(
    training: TrainingRecipe,
    objective: DistillationObjective,
    student: PreTrainedModel,
    teacher: Teacher | None,
) -> bool:
    """Return whether packed windows give these models the same losses as padded ones."""
    by_length = objective.needs_attention and objective.attention_reduction == "elements"
    return (
        training.pack_windows
        and not training.cache_teacher  # a cache keeps one row per window
        and not by_length
        and supports_packing(student)
        and (teacher is None or supports_packing(teacher.model))
    )


def _check_relations(
    objective: DistillationObjective, teacher: Teacher, student: PreTrainedModel, *, cached: bool
) -> None:
    heads = objective.relation_heads or teacher.num_heads
    for whose, width in (("student", int(student.config.hidden_size)), ("teacher", teacher.hidden_size)):
        if width % heads:
            raise UserError(
                f"the {whose}'s width {width} cannot be split into {heads} relation heads: set "
                "distill.relation_heads to a divisor of both widths"
            )
    if not records_attention(teacher.model):
        raise UserError(
            f"distill.relation_weight: a teacher of the kind {teacher.model.config.model_type} does not show its "
            "queries and keys; set it to 0"
        )
    if cached:
        raise UserError("training.cache_teacher keeps no relations: set it, or distill.relation_weight, to 0")


def _micro_batch_size(per_process: int, window_length: int) -> int:
    """Return the largest divisor of a process's windows that fits a usual memory."""
    budget = 32768 if torch.cuda.is_available() else 4096  # tokens
    most = max(1, budget // window_length)
    return max(size for size in range(1, per_process + 1) if per_process % size == 0 and size <= most)


__all__ = ["DistillationPlan", "plan_distillation", "resolve_objective"]
