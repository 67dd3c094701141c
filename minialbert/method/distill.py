"""From windows of text to a student: train as a plan says, and leave model and record behind.

`distill` takes plain arguments, models in memory among them. `initialise` leaves a student as it is before its first
step.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel, set_seed

from minialbert.data.masking import ShuffledWindows
from minialbert.data.packing import PackedCollator
from minialbert.data.prepare import prepare
from minialbert.data.tokenizers import load_tokenizer
from minialbert.data.window_store import WindowDataset, data_identity
from minialbert.errors import UserError, display_name, listed, one_line, quoted
from minialbert.method.attention_files import write_attention_maps
from minialbert.method.attention_maps import attention_maps
from minialbert.method.costs import Price, distillation_price, evaluations, fitted_length, weighed
from minialbert.method.encoders import Teacher, load_encoder_config, max_input_length
from minialbert.method.fast.compilation import compile_layers
from minialbert.method.live import AnyModel, model_identity, of_result
from minialbert.method.objective import PRESETS, DistillationObjective
from minialbert.method.plan import LENGTHS, DistillationPlan, Folders, plan_distillation, with_passes
from minialbert.method.sentence_vectors import write_pooling
from minialbert.method.start import SHAPE, described
from minialbert.method.teacher_cache import CachedTeacherView, FixedMasks, teacher_fingerprint
from minialbert.method.trainer import DistillationTrainer
from minialbert.recipes.load import (
    Settings,
    apply_overrides,
    keys_of,
    load_recipe,
    with_settings,
    without_effect,
)
from minialbert.recipes.schema import DataRecipe, DistillRecipe, Recipe, without_places
from minialbert.runs.checkpoints import has_known_data, step_of
from minialbert.runs.device import resolve_precision
from minialbert.runs.directory import RunDirectory
from minialbert.runs.files import whole_folder, writing
from minialbert.runs.progress import seconds_of, speaking
from minialbert.runs.records import write_result
from minialbert.runs.results import ModelResult, Result, output_folder
from minialbert.runs.run_progress import RunProgress
from minialbert.runs.stopping import rank, world_size
from minialbert.runs.trackers import check_trackers, trackers
from minialbert.runs.trainer import training_arguments

logger = logging.getLogger(__name__)


# What a recipe calls a model that has no name.
_IN_MEMORY = "(in memory)"


def initialise(
    recipe: Recipe, *, data: Folders, output: str | Path, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Write a recipe's student with its first weights, which no step has changed, and return the record.

    It is what a distilled student is to be compared with to see what distillation gives. The arguments are those of
    `distill`: a start from the teacher is fitted on some of the data, and the rest held out. The record is of kind
    "initialisation". Raises UserError if models, data, recipe and directory do not fit together.
    """
    start = {"student.init": recipe.student.init}  # which is not to be another one where there is no teacher
    return distill(
        None, data, recipe=recipe, settings=start, output=output, start_only=True, resume=resume, overwrite=overwrite,
        progress=False,
    ).record  # fmt: skip


def distill(
    teacher: AnyModel | None,
    data: Any,
    *,
    student: AnyModel | None = None,
    student_arch: str | None = None,
    recipe: str | Path | Recipe | None = None,
    objective: DistillationObjective | str | None = None,
    max_steps: int | None = None,
    epochs: float | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    time: str | None = None,
    settings: Settings = (),
    tokenizer: Any = None,
    output: str | Path | None = None,
    start_only: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    max_hours: float | None = None,
) -> ModelResult:
    """Distil a teacher into a student, either of which may be in memory, and return the student.

    A model in memory is not copied: the student is trained in place, the teacher is frozen and, in half precision,
    cast. Give copies to keep the originals unchanged. The run directory receives the resolved recipe, `log.jsonl`,
    checkpoints, `model/` (student and tokenizer alone), `attention.json` (maps of student and teacher, where there
    is one) and `result.json`.

    Examples:
        >>> distilled = minialbert.distill(
        ...     "bert-base-uncased", "windows", recipe="tiny", max_steps=2, output="run"
        ... )
        >>> distilled.record["training"]["steps"]
        2

    Args:
        teacher: a model, its directory or hub id, or the result of a verb; None for masked-LM alone.
        data: the result of `prepare`, its folder, several folders with one tokenizer, or a `WindowDataset`; or texts in
            memory as `prepare` takes them, which are first cut into windows in `OUTPUT-windows`.
        student: a masked-LM model to train on, its directory or hub id, or the result of a verb; None for one that the
            recipe builds.
        student_arch: "minialbert" (recursive) or "bert" (full), of a student that the recipe builds.
        recipe: a name, a YAML file, or a `Recipe`, with all settings that are not arguments here. Default: "default",
            or "embeddings" for that objective.
        objective: loss terms and weights, or the name of a preset, as in "embeddings" for the vectors of a sentence
            encoder; None for the recipe's.
        max_steps: length in optimiser steps.
        epochs: length in passes over the windows; with `max_steps` too, the shorter.
        learning_rate: the highest of the schedule.
        batch_size: windows per optimiser step.
        seed: random seed of order, masks and dropout.
        time: how long the run may take, as in "2h" or "45m"; the number of steps follows.
        settings: any other key of the recipe, as in `{"student.num_hidden_layers": 3, "distill.output_weight": 4}`.
        tokenizer: where `data` is a corpus, and the teacher was not loaded from anywhere or the student's vocabulary is
            its own: a directory, hub id, or tokenizer.
        output: the run directory. Default: a temporary one, which the log names.
        start_only: measure the student before its first step, without training.
        resume: continue from the last checkpoint of the same run.
        overwrite: replace an earlier run.
        progress: show a bar and lines.
        max_hours: refuse a new run that is estimated to take longer on this machine.

    Returns:
        The student, its tokenizer, the record of `result.json` (empty in all processes of a job but the first), and the
        run directory.

    Raises:
        UserError: if models, data, settings and directory do not fit together.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    started, allowed = monotonic(), None if time is None else seconds_of(time)
    if output is None and (resume or world_size() > 1):
        raise UserError("a run that is resumed, or has several processes, needs a directory: give output")
    teacher, student = of_result(teacher), of_result(student)
    afterwards = ExitStack()
    if isinstance(teacher, PreTrainedModel):
        afterwards.callback(teacher.set_attn_implementation, teacher.config._attn_implementation)
        has_head = teacher.get_output_embeddings() is not None
        teacher = Teacher(teacher, has_head, name=teacher.config.name_or_path)
    live = teacher if isinstance(teacher, Teacher) else None
    if live is not None:
        live.name = live.name or _IN_MEMORY
    named = None if teacher is None else live.name if live is not None else str(teacher)
    lengths = {
        "max_steps": max_steps, "epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size,
        "seed": seed,
    }  # fmt: skip
    given: dict[str, Any] = {f"training.{key}": value for key, value in lengths.items() if value is not None}
    trained = student.train() if isinstance(student, PreTrainedModel) else None
    if trained is not None:
        given |= _student_settings(trained.config, trained.config.name_or_path or _IN_MEMORY)
    elif student is not None:
        given |= _student_settings(load_encoder_config(str(student)), str(student))
    resolved = distillation_recipe(
        recipe, settings, teacher=named, student_arch=student_arch, objective=objective, more=given
    )
    objective = None if isinstance(objective, str) else objective
    check_trackers(resolved.training.report_to)
    run = RunDirectory(output_folder(output, "distill"))
    if time is not None and (
        max_steps or epochs or start_only or {"training.max_steps", "training.epochs"} & keys_of(settings)
    ):
        raise UserError(
            "--time chooses the number of steps of a training: leave out --steps, --epochs and --start-only"
        )
    if rank() == 0:
        run.check_room(resume=resume, overwrite=overwrite)  # before models are loaded and steps are timed
    if resume:
        run.refuse_finished(run.model, run.page)  # one without a page gets it, if all is as before
    begun = run.as_begun(resolved, "training", *(LENGTHS if time else ())) if resume else None
    with speaking(progress), afterwards:
        windows = _as_windows(data, run, resolved, live, tokenizer, progress=progress)
        plan = plan_distillation(
            begun or resolved, windows, teacher=live, student=trained, objective=objective
        )
        prepared = isinstance(data, str | Path | WindowDataset | Result) or isinstance(windows, list)
        idle = without_effect(plan.recipe, settings, _idle(plan, prepared=prepared, objective=objective))
        plan = replace(plan, notes=(*plan.notes, *idle))
        seconds = None
        if allowed is not None and begun is None:
            plan, seconds = _fitted(plan, started, allowed)
        price = None if start_only else replace(distillation_price(plan), measured=seconds)
        if price is not None:
            hours, compiles = None if resume else max_hours, plan.recipe.training.compile
            price = weighed(price, hours, *_rehearsal(plan), compiles=compiles)
        with run.alone(resume=resume):
            if rank() == 0:
                identity = _identity(plan, live_teacher=live is not None, live_student=trained is not None)
                run.open(plan.recipe, data=identity, resume=resume, overwrite=overwrite)
            record = _run(plan, run, price, resume=resume, progress=progress)
    _finish(plan.student)
    model = plan.student if plan.objective.vectors is None else plan.student.base_model
    model.name_or_path = str(run.model)
    return ModelResult(record, run.path, model, plan.tokenizer)


def distillation_recipe(
    recipe: str | Path | Recipe | None = None,
    settings: Settings = (),
    *,
    teacher: str | None = None,
    student_arch: str | None = None,
    objective: DistillationObjective | str | None = None,
    more: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return a recipe (a name, a YAML file, or a `Recipe`) with what a caller says in its place.

    Without one it is "default", or "embeddings" for that objective; the name of an objective is its preset, with the
    preset's own weights. `settings` count most, `more` are values by key. A full student has neither an embedding rank
    nor adapters, and starts from its teacher's alternate layers; without a teacher a student that would start from it
    starts at random.
    """
    named = objective if isinstance(objective, str) else None
    recipe = recipe or ("embeddings" if named == "embeddings" else "default")
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe))
    if named is not None and named != loaded.distill.preset:
        if named not in PRESETS:
            raise UserError(f"no objective {quoted(named)}: give one of {listed(PRESETS)}")
        chosen = DistillRecipe.model_validate({"preset": named})
        loaded = loaded.model_copy(update={"distill": chosen})
    given = dict(more or {})
    if student_arch is not None:
        given["student.arch"] = student_arch
        if student_arch == "bert":
            given |= {"student.embedding_size": None, "student.adapter_reduction_factor": None}
            if loaded.student.init not in ("alternate-layers", "checkpoint"):
                given["student.init"] = "alternate-layers" if teacher else "random"
    if teacher is not None:
        given["teacher.model"] = teacher
    elif loaded.teacher.model is None and loaded.student.init == "teacher" and "student.init" not in given:
        given["student.init"] = "random"
    return with_settings(loaded, given, settings)


def _as_windows(
    data: Any, run: RunDirectory, recipe: Recipe, teacher: Teacher | None, tokenizer: Any, *, progress: bool
) -> Folders | WindowDataset:
    """Return the windows that were handed over, or those of texts, which are prepared beside the run directory."""
    if isinstance(data, WindowDataset):
        return data
    if isinstance(data, Result):
        data = data.path
    if isinstance(data, str | Path):
        return data
    if isinstance(data, list | tuple) and data and all(_is_place(one) for one in data):
        return list(data)
    name, revision = recipe.teacher.model, recipe.teacher.revision
    if tokenizer is None and name in (None, _IN_MEMORY):
        raise UserError(
            "these texts are not windows yet, and no teacher was loaded from a place: give tokenizer too"
        )
    source = tokenizer if tokenizer is not None else load_tokenizer(str(name), revision=revision)
    config = teacher.model.config if teacher is not None else None
    if config is None and name is not None:
        config = load_encoder_config(name, revision=revision)
    longest = getattr(config, "max_position_embeddings", None) or recipe.data.window_length
    length = min(recipe.data.window_length, longest)
    lengths = {"window_length": length, "overlap": min(recipe.data.overlap, length // 2)}
    folder = run.path.with_name(f"{run.path.name}-windows")
    prepare(data, source, folder, recipe=recipe, progress=progress, **lengths)
    return folder


def _is_place(one: Any) -> bool:
    return isinstance(one, Path) or (isinstance(one, str) and os.path.isdir(one))  # a text may be any length


def _student_settings(config: PreTrainedConfig, name: str) -> dict[str, Any]:
    """Return what a recipe says of a student that is given as it is; its shape, but for the depth, stays open."""
    recursive = config.model_type == "minialbert"
    says = {"embedding_size": None, "adapter_reduction_factor": None, **described(config)}
    says |= {"init": "checkpoint", "init_from": name, "arch": "minialbert" if recursive else "bert"}
    return {f"student.{key}": value for key, value in says.items() if key not in SHAPE[1:]}


def _run(
    plan: DistillationPlan, run: RunDirectory, price: Price | None, *, resume: bool, progress: bool
) -> dict[str, Any]:
    """Carry a plan out in a directory that is open, with its training if it has a price, and return the record."""
    trains = price is not None
    if resume:
        run.refuse_finished(run.model)  # by another process, for whose end this one has waited
    if trains:
        documents = sum(m.splits["train"].documents for m in plan.windows.manifests)
        sources = listed((source.name for source in plan.windows.sources), 80)
        logger.info("windows: %s from %s documents (%s)", f"{len(plan.windows):,}", f"{documents:,}", sources)
    for note in plan.notes if trains else ():
        logger.info("%s", note)
    set_seed(plan.recipe.training.seed)
    trainer = make_trainer(plan, run, progress=progress)
    end: dict[str, Any] = {}
    if price is not None:
        with trainer.listening():
            checkpoint = trainer.resume_point(run, resume=resume)
            logger.info("%s", price.line(step_of(Path(checkpoint)) if checkpoint else 0))
            start = _first_measurement(trainer, run, plan, resumed=checkpoint is not None)
            trainer.train(resume_from_checkpoint=checkpoint)
            if trainer.eval_dataset is not None:
                end = {"student_end": _parts(trainer.measure(), "student")}
    else:
        if has_known_data(run.checkpoints) is not None:
            raise UserError(f"{run.path} holds a begun training: --start-only wants another --output")
        run.rewind_log(-1)
        start = _first_measurement(trainer, run, plan, resumed=False)
    if not trainer.args.should_save:
        return {}
    with writing(run.model):
        save_student(plan, run.model, getattr(trainer.model.projection, "weight", None))
    _write_attention(plan, run)
    record = _record(plan, trainer, run, start, end)
    if not trains:
        record["kind"] = "initialisation"
        record["training"] |= {"steps": 0, "windows": 0}
    with writing(run.result):
        return write_result(run.result, record)


def _idle(
    plan: DistillationPlan, *, prepared: bool, objective: DistillationObjective | None
) -> dict[str, bool]:
    """Return by the beginning of settings' names whether nothing reads these."""
    found, arch = plan.objective, plan.recipe.student.arch
    of_masks = ("mask_probability", "whole_word_masking")
    idle = {f"data.{key}": prepared for key in DataRecipe.model_fields if key not in of_masks}
    idle |= {f"data.{key}": found.vectors is not None for key in of_masks}
    own = ("embedding_size", "adapter_", "mlm_head")
    return idle | {f"student.{key}": arch == "bert" for key in own} | {
        "distill.": objective is not None,
        "distill.elastic_": found.elastic is None,
        "distill.relation": not found.relation_weight,
        "distill.attention_reduction": not found.needs_attention,
        "distill.output_positions": not found.output_weight,
        "distill.temperature": not found.output_weight and found.elastic is None,
    }  # fmt: skip


def _identity(plan: DistillationPlan, *, live_teacher: bool, live_student: bool) -> dict[str, Any]:
    """Return what the run reads, to be known again when it is resumed."""
    said = data_identity(plan.windows)
    if plan.teacher is not None and live_teacher:
        # One in half precision may be what an earlier call has cast in place.
        is_whole = plan.teacher.model.dtype == torch.float32
        said["teacher"] = {"weights": teacher_fingerprint(plan.teacher) if is_whole else None}
    elif plan.teacher is not None:
        said["teacher"] = model_identity(plan.teacher.model.name_or_path, plan.teacher.model.config)
    # A live student is trained in place, so it is another one when its run is resumed.
    if plan.recipe.student.init_from is not None and not live_student:
        config = plan.student.config if plan.recipe.student.init == "checkpoint" else None
        said["student"] = model_identity(plan.recipe.student.init_from, config)
    return said


def _fitted(plan: DistillationPlan, started: float, allowed: float) -> tuple[DistillationPlan, float]:
    """Return a plan with as many steps as fit into the seconds allowed since a time, and their seconds."""
    training, (rehearsed, step) = plan.recipe.training, _rehearsal(plan)
    steps, seconds = fitted_length(
        rehearsed, started, allowed, step=step, fewest=10, compiles=training.compile, **evaluations(plan)
    )
    return with_passes(plan, steps * training.batch_size / len(plan.windows)), seconds


def _rehearsal(plan: DistillationPlan) -> tuple[Callable[[RunDirectory], DistillationTrainer], float]:
    """Return what makes a trainer whose steps are measured, and the tokens of one step."""
    recipe = apply_overrides(plan.recipe, {"training.report_to": [], "training.cache_teacher": False})
    quiet, training = replace(plan, recipe=recipe), plan.recipe.training
    step = plan.windows.num_tokens / len(plan.windows) * training.batch_size
    return (lambda run: make_trainer(quiet, run, progress=False)), step


def make_trainer(plan: DistillationPlan, run: RunDirectory, *, progress: bool = True) -> DistillationTrainer:
    """Return the trainer of a plan, ready for `train()`; log and checkpoints go into the run's directory."""
    training = plan.recipe.training
    if training.compile:
        compile_layers(plan.student)
        if plan.teacher is not None:
            compile_layers(plan.teacher.model)
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
        weight_noise=training.weight_noise,
        optimizer=training.optimizer,
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


def save_student(plan: DistillationPlan, directory: Path, projection: Tensor | None = None) -> None:
    """Write a plan's student and tokenizer to a directory that appears complete or not at all.

    One that learnt vectors is an encoder without a head, with what sentence-transformers reads; the `projection` to its
    teacher's width (D', D) is then a part of it.
    """
    _finish(plan.student)
    vectors = plan.objective.vectors
    with whole_folder(directory) as folder:
        plan.tokenizer.save_pretrained(folder)
        if vectors is None or vectors.pooling is None:
            plan.student.save_pretrained(folder)
            return
        encoder, pooling = plan.student.base_model, vectors.pooling
        encoder.save_pretrained(folder)
        longest = min(pooling.max_tokens or plan.windows.window_length, max_input_length(encoder))
        pooling = pooling if projection is None else pooling.projected(projection)
        write_pooling(folder, pooling, width=encoder.config.hidden_size, max_tokens=longest)


def _finish(student: PreTrainedModel) -> None:
    student.eval()
    student.set_attn_implementation("sdpa")


def _write_attention(plan: DistillationPlan, run: RunDirectory) -> None:
    """Write where the student attends beside its teacher, where both read the same tokens."""
    if plan.teacher is None or plan.teacher.translation is not None:
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
        if records and isinstance(found := records[0].get("metrics"), dict):
            return found
        if records:
            raise UserError(
                f"{run.log} is damaged (it starts without metrics): start the run anew with --overwrite"
            )
    metrics: dict[str, Any] = {}
    if trainer.eval_dataset is not None:
        logger.info("held-out: %d windows are measured first", len(trainer.eval_dataset))
        teacher, vectors = plan.teacher, plan.objective.vectors
        if teacher and teacher.has_mlm_head and teacher.translation is None and vectors is None:
            metrics["teacher"] = _parts(trainer.measure_teacher(), "teacher")
        metrics["student_start"] = _parts(trainer.measure(), "student")
    if trainer.args.should_save:
        run.append_log({"kind": "start", "step": 0, "notes": list(plan.notes), "metrics": metrics})
    return metrics


def _parts(measured: tuple[Any, Any, Any], who: str) -> dict[str, Any]:
    whole, first, second = measured
    if broken := [name for name, value in whole.flat().items() if not math.isfinite(value)]:
        raise UserError(
            f"figures of the {who} on held-out windows are not finite ({', '.join(broken)}): its weights are damaged, "
            "or it needs training.precision=fp32"
        )
    parts = {
        **whole.flat(), "masked_tokens": whole.masked_tokens, "halves": [first.flat(), second.flat()],
    }  # fmt: skip
    if whole.depths:
        parts["depths"] = {str(depth): values for depth, values in whole.depths.items()}
    return parts


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
    speeds = sorted(
        speed for step in steps if isinstance(speed := step.get("tokens_per_second"), int | float)
    )
    return {
        "kind": "distillation",
        "task": "masked-lm",
        "metrics": {**start, **end},
        "training": {
            "steps": plan.max_steps,
            "windows": plan.max_steps * plan.recipe.training.batch_size,
            **trainer.times,
            "skipped_steps": trainer.skipped_steps,
            "tokens_per_second": speeds[len(speeds) // 2] if speeds else None,
            "last_logged_losses": {
                key: value for step in steps[-1:] for key, value in step.items() if key.startswith("loss")
            },
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
            "folders": json.loads(run.data.read_text(encoding="utf-8"))["folders"],
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
