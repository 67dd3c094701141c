"""From windows of text to a student: plan a run, train, and leave model and record behind."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from minialbert.data.masking import MaskedLanguageModelCollator, ShuffledWindows
from minialbert.data.packing import PackedCollator
from minialbert.data.tokenizers import load_tokenizer
from minialbert.data.window_store import WindowDataset, check_tokenizer, data_identity
from minialbert.errors import UserError, display_name, one_line
from minialbert.method.attention_maps import attention_maps, write_attention_maps
from minialbert.method.elastic import ElasticObjective, mark_depths
from minialbert.method.encoders import Teacher, load_teacher, supports_packing
from minialbert.method.fast.compilation import compile_layers
from minialbert.method.fast.recording import checkpoint_activations, records_attention
from minialbert.method.objective import DistillationObjective
from minialbert.method.start import build_student
from minialbert.method.teacher_cache import CachedTeacherView, FixedMasks
from minialbert.method.trainer import DistillationTrainer
from minialbert.recipes.schema import DistillRecipe, Recipe, TrainingRecipe, resolve_depths, without_places
from minialbert.runs.directory import RunDirectory
from minialbert.runs.files import whole_folder, writing
from minialbert.runs.machine import resolve_precision
from minialbert.runs.progress import RunProgress
from minialbert.runs.records import write_result
from minialbert.runs.stopping import rank, share_of
from minialbert.runs.trackers import check_trackers, trackers
from minialbert.runs.trainer import training_arguments

logger = logging.getLogger(__name__)


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
    if training.compile:
        for model in (plan.student, plan.teacher.model if plan.teacher is not None else None):
            if model is not None:
                compile_layers(model)
    args = training_arguments(
        training,
        output=run.checkpoints,
        max_steps=plan.max_steps,
        micro_batch_size=plan.micro_batch_size,
        accumulation=plan.accumulation,
        warmup_steps=training.warmup_steps,
        per_device_eval_batch_size=plan.micro_batch_size,
        eval_strategy="steps" if len(plan.held_out) else "no",
        eval_steps=training.eval_steps,
        save_strategy="steps",
        save_steps=training.save_steps,
        save_total_limit=training.keep_checkpoints,
        dataloader_num_workers=_loading_processes(training.num_workers),
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
