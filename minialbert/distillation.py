"""From windows of text to a student: plan a run, train, and leave model and record behind."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments, set_seed

from .attention_maps import attention_maps, write_attention_maps
from .compilation import compile_layers
from .data.masking import ShuffledWindows
from .data.packing import PackedCollator
from .data.windows import data_identity
from .distillation_plan import DistillationPlan, plan_distillation
from .errors import UserError
from .folders import whole_folder
from .objective import DistillationObjective
from .precision import resolve_precision
from .processes import rank
from .progress import RunProgress
from .recipe import Recipe
from .recipe_settings import without_places
from .runs import RunDirectory, display_name, write_result, writing
from .teacher_cache import CachedTeacherView, FixedMasks
from .tracking import check_trackers, trackers
from .trainer import DistillationTrainer
from .user_input import one_line

logger = logging.getLogger(__name__)


def distill(
    recipe: Recipe,
    *,
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Distil a student as a recipe says, and return the record that is left in `result.json`.

    The run directory receives the resolved recipe, `log.jsonl`, checkpoints, `model/` (student and tokenizer
    alone), `attention.json` (maps of student and teacher, where there is one) and `result.json`.

    Args:
        recipe: the resolved recipe.
        data: a folder made by `prepare`, or several of one tokenizer, whose windows are mixed; a resumed run takes
            the same ones in the same order.
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
    check_trackers(recipe.training.report_to)
    run = RunDirectory(output)
    plan = plan_distillation(recipe, data)
    with run.alone(resume=resume):
        return _distill(plan, run, resume=resume, overwrite=overwrite, progress=progress)


def _distill(
    plan: DistillationPlan, run: RunDirectory, *, resume: bool, overwrite: bool, progress: bool
) -> dict[str, Any]:
    finished = resume and run.result.is_file() and run.model.is_dir()
    if rank() == 0:
        run.open(plan.recipe, data=data_identity(plan.windows), resume=resume, overwrite=overwrite)
    if finished:
        raise UserError(
            f"{run.path} holds a finished run: nothing is left to resume; --overwrite starts it anew"
        )
    for note in plan.notes:
        logger.info("%s", note)
    set_seed(plan.recipe.training.seed)
    trainer = make_trainer(plan, run, progress=progress)
    with trainer.stop.listening():
        checkpoint = trainer.resume_point(run, resume=resume)
        start = _first_measurement(trainer, run, plan, resumed=checkpoint is not None)
        trainer.train(resume_from_checkpoint=checkpoint)
        end = _measurement(trainer)
    if not trainer.args.should_save:
        return {}
    with writing(run.model):
        save_student(plan, run.model)
    _write_attention(plan, run)
    with writing(run.result):
        return write_result(run.result, _record(plan, trainer, run, start, end))


def initialise(
    recipe: Recipe,
    *,
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a recipe's student with its first weights, which no step has changed, and return the record.

    It is what a distilled student is to be compared with to see what distillation gives.

    Args:
        recipe: the resolved recipe.
        data: as for `distill`; a start from the teacher is fitted on some of it, and the rest held out.
        output: the run directory.
        resume: take over a directory of the same recipe.
        overwrite: replace an earlier run.

    Returns:
        The record, of kind "initialisation", with the held-out figures.

    Raises:
        UserError: if models, data, recipe and directory do not fit together.
    """
    run = RunDirectory(output)
    plan = plan_distillation(recipe, data)
    with run.alone(resume=resume):
        run.open(recipe, data=data_identity(plan.windows), resume=resume, overwrite=overwrite)
        set_seed(recipe.training.seed)
        trainer = make_trainer(plan, run, progress=False)
        run.rewind_log(-1)
        start = _first_measurement(trainer, run, plan, resumed=False)
        with writing(run.model):
            save_student(plan, run.model)
        _write_attention(plan, run)
        record = _record(plan, trainer, run, start, {}) | {"kind": "initialisation"}
        record["training"] |= {"steps": 0, "windows": 0}
        with writing(run.result):
            return write_result(run.result, record)


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
    if training.compile:
        for model in (plan.student, plan.teacher.model if plan.teacher is not None else None):
            if model is not None:
                compile_layers(model)
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
        dataloader_num_workers=_loading_processes(training.num_workers),
        remove_unused_columns=False,
        report_to="none",  # see `trackers`
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
                "tokenizer": plan.windows.tokenizer.fingerprint,
            },
            num_windows=min(len(plan.windows), len(samples)),
        )
    return DistillationTrainer(
        plan.student,
        plan.teacher,
        plan.objective,
        args=args,
        train_dataset=train_dataset,
        data_collator=PackedCollator(plan.collator) if plan.packs else plan.collator,
        held_out_collator=plan.collator,
        held_out=plan.held_out,
        held_out_windows=training.eval_windows,
        teacher_view=teacher_view,
        max_skipped_steps=training.max_skipped_steps,
        callbacks=[
            RunProgress(run, terms=plan.objective.weighted_terms, bar=progress),
            *trackers(training.report_to, run, plan.recipe),
        ],
    )


def _loading_processes(asked: int | None) -> int:
    """Return how many processes mask and pack windows while the step runs.

    On a CPU they would take cores from a step of seconds for batches of milliseconds.
    """
    if asked is not None:
        return asked
    return min(4, os.cpu_count() or 1) if torch.cuda.is_available() else 0


def save_student(plan: DistillationPlan, directory: Path) -> None:
    """Write the student and its tokenizer, and nothing else, to a directory, which appears complete or not at all.

    Args:
        plan: the plan whose student was trained.
        directory: where to.
    """
    plan.student.eval()
    plan.student.set_attn_implementation("sdpa")
    with whole_folder(directory) as folder:
        plan.student.save_pretrained(folder)
        plan.tokenizer.save_pretrained(folder)


def _write_attention(plan: DistillationPlan, run: RunDirectory) -> None:
    """Write where the student attends beside its teacher."""
    if plan.teacher is None:
        return
    try:
        maps = attention_maps(
            plan.teacher,
            plan.student,
            plan.tokenizer,
            layers=plan.layers,
            teacher_name=str(display_name(plan.teacher.name)),
            student_name=plan.recipe.name,
        )
    except Exception as error:  # of whatever kind an encoder has: no run is to be lost for a picture
        logger.warning("%s is not written (%s: %s)", run.attention, type(error).__name__, one_line(error))
        return
    with writing(run.attention):
        write_attention_maps(run.attention, maps)


def _first_measurement(
    trainer: DistillationTrainer, run: RunDirectory, plan: DistillationPlan, *, resumed: bool
) -> dict[str, Any]:
    """Measure teacher and student before the first step; a resumed run reads them from its log."""
    if resumed:
        records = [record for record in run.read_log() if record.get("kind") == "start"]
        if records:
            return records[0]["metrics"]
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
    depths = {"depths": {str(depth): values for depth, values in whole.depths.items()}}
    return {
        **whole.flat(),
        "masked_tokens": whole.masked_tokens,
        **halves,
        **(depths if whole.depths else {}),
    }


def _record(
    plan: DistillationPlan,
    trainer: DistillationTrainer,
    run: RunDirectory,
    start: dict[str, Any],
    end: dict[str, Any],
) -> dict[str, Any]:
    recipe = without_places(plan.recipe.model_dump())
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
            "wall_seconds": round(trainer.training_seconds, 1),
            "skipped_steps": trainer.skipped_steps,
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
            "sources": [source.name for source in plan.windows.sources],
            **data_identity(plan.windows),
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


__all__ = ["DistillationObjective", "distill", "initialise", "make_trainer", "model_summary", "save_student"]
