"""From windows of text to a student: plan a run, train, and leave model and record behind."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from .attention import checkpoint_activations
from .data.masking import MaskedLanguageModelCollator, ShuffledWindows
from .data.tokenizers import load_tokenizer
from .data.windows import WindowDataset, check_tokenizer
from .errors import UserError
from .interrupts import GracefulStop
from .objective import DistillationObjective, DistillationTerms, EncoderView, TokenCounts
from .precision import resolve_precision
from .processes import rank, share_of
from .progress import RunProgress
from .recipe import Recipe, dump_recipe
from .runs import RunDirectory, display_name, write_result
from .students import build_student
from .teacher_cache import CachedTeacherView, FixedMasks
from .teachers import Teacher, load_teacher
from .trainer import DistillationStudent, DistillationTrainer

logger = logging.getLogger(__name__)

# Real text for `init: teacher`; more changes the fit of the projection little.
_SAMPLE_WINDOWS = 64
_SAMPLE_BATCH = 16


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
    max_steps: int
    micro_batch_size: int
    accumulation: int
    notes: tuple[str, ...]


def plan_distillation(recipe: Recipe, data: str | Path) -> DistillationPlan:
    """Return a checked plan: models loaded, student initialised, objective resolved.

    Args:
        recipe: the resolved recipe; its `teacher.model` may be None for masked-LM alone.
        data: a folder made by `prepare`.

    Returns:
        The plan.

    Raises:
        UserError: if models, data and recipe do not fit together.
    """
    windows, held_out = WindowDataset(data, "train"), WindowDataset(data, "held_out")
    tokenizer = load_tokenizer(Path(data) / "tokenizer")
    check_tokenizer(windows.manifest, tokenizer)
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
        check_tokenizer(windows.manifest, teacher.tokenizer)
        _check_length(windows.manifest.options.window_length, "teacher", teacher.max_length)
    samples = _sample_batches(windows, collator)
    student, report = build_student(recipe.student, teacher, tokenizer, samples, seed=training.seed)
    if training.gradient_checkpointing:
        checkpoint_activations(student)
    notes += report
    objective = resolve_objective(recipe, teacher, student, notes)
    layers = objective.resolve_layers(student.config.num_hidden_layers, teacher.num_layers) if teacher else ()
    longest = int(student.config.max_position_embeddings)
    _check_length(windows.manifest.options.window_length, "student", longest)
    per_process = share_of(training.batch_size, "training.batch_size")
    micro = training.micro_batch_size or _micro_batch_size(
        per_process, windows.manifest.options.window_length
    )
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
    settings = recipe.distill.model_dump()
    objective = DistillationObjective.preset(settings.pop("preset"), **settings)
    if teacher is None:
        notes.append("no teacher: masked-LM alone")
        if not objective.mlm_weight:
            raise UserError("without a teacher only the MLM term is left, and distill.mlm_weight is 0")
        return objective.without("attention", "hidden", "output", "embedding")
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
    if student.config.hidden_size != teacher.hidden_size:
        notes.append(
            f"hidden states: a projection {student.config.hidden_size} -> {teacher.hidden_size}, in training only"
        )
    return objective


def distill(
    recipe: Recipe,
    *,
    data: str | Path,
    output: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Distil a student as a recipe says, and return the record that is left in `result.json`.

    The run directory receives the resolved recipe, `log.jsonl`, checkpoints, `model/` (student and tokenizer
    alone) and `result.json`.

    Args:
        recipe: the resolved recipe.
        data: a folder made by `prepare`.
        output: the run directory.
        resume: go on from the last checkpoint of the same recipe.
        overwrite: replace an earlier run.
        progress: show a progress bar on a terminal.

    Returns:
        The record.

    Raises:
        UserError: if models, data, recipe and directory do not fit together.
        KeyboardInterrupt: after a checkpoint, when the run was asked to stop by Ctrl-C or SIGTERM.
    """
    run = RunDirectory(output)
    finished = resume and run.result.is_file() and run.model.is_dir()
    plan = plan_distillation(recipe, data)
    if rank() == 0:
        run.open(dump_recipe(recipe), resume=resume, overwrite=overwrite)
    if finished:
        raise UserError(
            f"{output} holds a finished run: nothing is left to resume; --overwrite starts it anew"
        )
    for note in plan.notes:
        logger.info("%s", note)
    set_seed(recipe.training.seed)
    trainer = make_trainer(plan, run, progress=progress)
    stop = GracefulStop()
    trainer.add_callback(stop)
    checkpoint = run.last_checkpoint() if resume else None
    if checkpoint is not None:
        logger.info("resuming from %s", checkpoint.name)
    start = _first_measurement(trainer, run, plan, checkpoint)
    started = time.perf_counter()
    with stop.listening():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    if trainer.state.global_step < plan.max_steps:
        logger.info(
            "stopped after step %d of %d; a checkpoint is saved", trainer.state.global_step, plan.max_steps
        )
        raise KeyboardInterrupt
    wall_seconds = time.perf_counter() - started
    end = _measurement(trainer)
    if not trainer.args.should_save:
        return {}
    save_student(plan, run.model)
    return write_result(run.result, _record(plan, trainer, run, start, end, wall_seconds))


def make_trainer(plan: DistillationPlan, run: RunDirectory, *, progress: bool = True) -> DistillationTrainer:
    """Return the trainer of a plan.

    Args:
        plan: the plan.
        run: where log and checkpoints go.
        progress: show a progress bar on a terminal.

    Returns:
        The trainer, ready for `train()`.
    """
    training = plan.recipe.training
    precision = resolve_precision(training.precision)
    args = TrainingArguments(
        output_dir=str(run.checkpoints),
        max_steps=plan.max_steps,
        per_device_train_batch_size=plan.micro_batch_size,
        per_device_eval_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup_steps=training.warmup_steps,
        # Transformers' "constant" has no warm-up.
        lr_scheduler_type=training.lr_scheduler.replace("constant", "constant_with_warmup"),
        max_grad_norm=training.max_grad_norm,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        seed=training.seed,
        logging_steps=training.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if len(plan.held_out) else "no",
        eval_steps=training.eval_steps,
        save_strategy="steps",
        save_steps=training.save_steps,
        save_total_limit=training.keep_checkpoints,
        dataloader_num_workers=training.num_workers,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )
    samples = ShuffledWindows(plan.windows, plan.max_steps * training.batch_size, training.seed)
    train_dataset: Dataset = samples
    teacher_view = None
    if training.cache_teacher and plan.teacher is not None:
        train_dataset = FixedMasks(samples)
        teacher_view = CachedTeacherView(
            plan.teacher,
            run.teacher_cache,
            objective=plan.objective,
            layers=plan.layers,
            masking={
                "seed": plan.collator.seed,
                "mask_probability": plan.collator.mask_probability,
                "whole_word": plan.collator.whole_word,
                "tokenizer": plan.windows.manifest.tokenizer.fingerprint,
            },
            num_windows=min(len(plan.windows), len(samples)),
        )
    return DistillationTrainer(
        plan.student,
        plan.teacher,
        plan.objective,
        args=args,
        train_dataset=train_dataset,
        data_collator=plan.collator,
        held_out=plan.held_out,
        held_out_windows=training.eval_windows,
        teacher_view=teacher_view,
        callbacks=[RunProgress(run, terms=plan.objective.weighted_terms, bar=progress)],
    )


def save_student(plan: DistillationPlan, directory: Path) -> None:
    """Write the student and its tokenizer, and nothing else, to a directory.

    Args:
        plan: the plan whose student was trained.
        directory: where to.
    """
    plan.student.eval()
    plan.student.set_attn_implementation("sdpa")
    plan.student.save_pretrained(directory)
    plan.tokenizer.save_pretrained(directory)


def _first_measurement(
    trainer: DistillationTrainer, run: RunDirectory, plan: DistillationPlan, checkpoint: Path | None
) -> dict[str, Any]:
    """Measure teacher and student before the first step; a resumed run reads them from its log."""
    if checkpoint is not None:
        run.rewind_log(int(checkpoint.name.rpartition("-")[2]))
        records = [record for record in run.read_log() if record.get("kind") == "start"]
        if records:
            return records[0]["metrics"]
    elif run.log.is_file():
        run.log.unlink()
    metrics: dict[str, Any] = {}
    if len(plan.held_out):
        if plan.teacher is not None and plan.teacher.has_mlm_head:
            metrics["teacher"] = _parts(trainer.measure_teacher())
        metrics["student_start"] = _parts(trainer.measure())
    if trainer.args.should_save:
        run.append_log({"kind": "start", "step": 0, "notes": list(plan.notes), "metrics": metrics})
    return metrics


def _measurement(trainer: DistillationTrainer) -> dict[str, Any]:
    return {"student_end": _parts(trainer.measure())} if trainer.eval_dataset is not None else {}


def _parts(measured: tuple[Any, Any, Any]) -> dict[str, Any]:
    whole, first, second = measured
    halves = {"halves": [first.flat(), second.flat()]}
    return {**whole.flat(), "masked_tokens": whole.masked_tokens, **halves}


def _record(
    plan: DistillationPlan,
    trainer: DistillationTrainer,
    run: RunDirectory,
    start: dict[str, Any],
    end: dict[str, Any],
    wall_seconds: float,
) -> dict[str, Any]:
    recipe = plan.recipe.model_dump()
    recipe["teacher"]["model"] = display_name(plan.recipe.teacher.model)
    recipe["student"]["init_from"] = display_name(plan.recipe.student.init_from)
    steps = [record for record in run.read_log() if "loss" in record]
    speeds = sorted(record["tokens_per_second"] for record in steps)
    return {
        "kind": "distillation",
        "task": "masked-lm",
        "metrics": {**start, **end},
        "training": {
            "steps": plan.max_steps,
            "windows": plan.max_steps * plan.recipe.training.batch_size,
            "wall_seconds": round(wall_seconds, 1),
            "tokens_per_second": speeds[len(speeds) // 2] if speeds else None,
            "last_logged_losses": {key: value for key, value in steps[-1].items() if key.startswith("loss")}
            if steps
            else {},
            "precision": resolve_precision(plan.recipe.training.precision),
        },
        "seed": plan.recipe.training.seed,
        "model": model_summary(plan),
        "layer_map": list(plan.layers),
        "objective": plan.objective.to_dict(),
        "notes": list(plan.notes),
        "data": {
            "windows": len(plan.windows),
            "held_out_windows": len(plan.held_out),
            "sources": [source.name for source in plan.windows.manifest.sources],
        },
        "recipe": recipe,
    }


def model_summary(plan: DistillationPlan) -> dict[str, Any]:
    """Return names and parameter counts of a plan's student and teacher."""
    student = plan.student
    summary: dict[str, Any] = {
        "name": plan.recipe.name,
        "arch": student.config.model_type,
        "parameters": student.num_parameters(),
        "encoder_parameters": student.base_model.num_parameters(),
        "adapter_parameters": sum(
            p.numel() for name, p in student.named_parameters() if "_adapters." in name
        ),
        "iterations": student.config.num_hidden_layers,
    }
    if plan.teacher is not None:
        summary["teacher"] = display_name(plan.teacher.name)
        summary["teacher_parameters"] = plan.teacher.model.num_parameters()
        summary["teacher_encoder_parameters"] = plan.teacher.model.base_model.num_parameters()
    return summary


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


def _micro_batch_size(per_process: int, window_length: int) -> int:
    """Return the largest divisor of a process's windows that fits a usual memory."""
    budget = 32768 if torch.cuda.is_available() else 4096  # tokens
    most = max(1, budget // window_length)
    return max(size for size in range(1, per_process + 1) if per_process % size == 0 and size <= most)


__all__ = [
    "DistillationObjective",
    "DistillationPlan",
    "DistillationStudent",
    "DistillationTerms",
    "DistillationTrainer",
    "EncoderView",
    "TokenCounts",
    "distill",
    "make_trainer",
    "model_summary",
    "plan_distillation",
    "resolve_objective",
    "save_student",
]
