"""From a labelled task to a tuned model: plan a run, tune all of a model or its adapters, and leave a record."""

from __future__ import annotations

import json
import logging
import math
import shlex
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from minialbert_runtime.answers import Decision
from minialbert_runtime.words import WordRule
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from minialbert.data.corpora import Corpus, corpus_entries
from minialbert.data.examples import Task, repeats
from minialbert.data.masking import IGNORED_LABEL
from minialbert.data.metrics import check_package
from minialbert.data.rows import LabelledData, kept
from minialbert.data.task_inputs import Encoded
from minialbert.data.tasks import load_task, task_identity, task_summary, understood
from minialbert.data.tokenizers import tokenizer_fingerprint
from minialbert.data.words import learn_words, with_words
from minialbert.errors import UserError, display_name, listed
from minialbert.method.adapters import (
    TrainableCount,
    add_adapters,
    count_parameters,
    freeze_all_but_adapters,
    save_adapters,
)
from minialbert.method.costs import (
    Price,
    faster_precision,
    fitted_length,
    forward_flops_per_token,
    training_bytes,
    weighed,
)
from minialbert.method.elastic import ElasticObjective, mark_depths, plan_elastic
from minialbert.method.encoders import load_encoder_config, max_input_length
from minialbert.method.fast.recording import route_attention
from minialbert.method.live import AnyModel, lasting_name, model_identity, on_disk
from minialbert.recipes.load import (
    Settings,
    apply_overrides,
    keys_of,
    load_recipe,
    with_settings,
    without_effect,
)
from minialbert.recipes.schema import FinetuneRecipe, Mark, marked, without_places
from minialbert.runs.checkpoints import step_of
from minialbert.runs.device import peak_memory_mb, resolve_precision
from minialbert.runs.directory import RunDirectory
from minialbert.runs.files import writing
from minialbert.runs.muon import trained_matrices
from minialbert.runs.progress import seconds_of, speaking
from minialbert.runs.records import write_result
from minialbert.runs.results import ModelResult, output_folder
from minialbert.runs.run_progress import RunProgress
from minialbert.runs.stopping import StopRequested, rank, share_of
from minialbert.runs.trackers import check_trackers, trackers
from minialbert.runs.trainer import training_arguments
from minialbert.tasks.advice import few_steps, with_rate
from minialbert.tasks.losses import TaskTeacher, label_order
from minialbert.tasks.models import (
    Scale,
    TaskInputs,
    is_minialbert,
    load_for_tuning,
    load_tuned,
    model_labels,
    save_tuned,
    scale_of,
)
from minialbert.tasks.predictions import (
    Predictions,
    cut_record,
    evaluate_split,
    input_notes,
    make_collator,
    remarks,
)
from minialbert.tasks.trainer import TuningTrainer
from minialbert.tasks.unlabelled import Taught, add_soft_labels, teach

logger = logging.getLogger(__name__)


def finetune_command(recipe: FinetuneRecipe) -> str:
    """Return the command line of a recipe; models and data have their names there, without their folders."""
    model, task = str(display_name(recipe.model.name)), str(recipe.task.name)
    words = ["minialbert", "finetune", "--model", model, "--task", task]
    if recipe.task.data is not None:
        words += ["--data", str(display_name(recipe.task.data))]
    if recipe.tuning.mode == "adapters":
        words.append("--adapters")
    if recipe.teacher.model is not None:
        words += ["--teacher", str(display_name(recipe.teacher.model))]
    for place in recipe.teacher.unlabelled or ():
        words += ["--unlabelled", str(display_name(place))]
    shipped = "adapters" if recipe.tuning.mode == "adapters" else "default"
    defaults = load_recipe(shipped, FinetuneRecipe).model_dump()  # what the command line starts from
    for section, values in recipe.model_dump(include={"model", "task", "tuning", "teacher"}).items():
        for key, value in values.items():
            # Where a log goes is the user's own.
            elsewhere = f"{section}.{key}" in marked(Mark.OPTION, Mark.LOG)
            if not elsewhere and value != defaults[section][key]:
                words += ["--set", f"{section}.{key}={json.dumps(value, ensure_ascii=False)}"]
    return shlex.join(words)


@dataclass(frozen=True)
class FinetuningPlan:
    """Everything a tuning needs, checked, before anything is written.

    `adapters` is "pre-trained", "identity" or "as-published" when adapters are tuned, else None. `scale` are the units
    in which scores are learnt; `notes` tell what was decided, one line each.
    """

    recipe: FinetuneRecipe
    task: Task
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    encoded: dict[str, Encoded]
    teacher: TaskTeacher | None
    taught: Taught | None
    class_weights: Tensor | None
    elastic: ElasticObjective | None
    scale: Scale
    parameters: TrainableCount
    adapters: str | None
    inputs: TaskInputs
    steps_per_epoch: int
    max_steps: int
    notes: tuple[str, ...]


def plan_finetuning(
    recipe: FinetuneRecipe, data: LabelledData | None = None, taught: Taught | None = None
) -> FinetuningPlan:
    """Return a checked plan: data read, model loaded and frozen as asked, inputs encoded.

    `data` are rows in memory, in place of the recipe's; `taught` what a teacher of unlabelled texts says. Raises
    UserError if model, data and recipe do not fit together.
    """
    if recipe.model.name is None:
        raise UserError("no model: give --model, a directory or hub id")
    if recipe.teacher.labels_texts and taught is None:
        once = "run one, and give its teacher-labels/labels.jsonl as --data"
        once = "leave out teacher.altered" if recipe.teacher.altered else once
        raise UserError(f"a teacher labels texts for a single run: for several, {once}")
    task = load_task(recipe.task, data=data) if taught is None else taught.task
    check_package(*task.type.package)
    task.type.focal(recipe.tuning.focal_gamma)  # refused here where the kind has none
    lines = understood(task)
    words = None
    if task.type.tagging:
        words, statement = (taught and taught.words) or learn_words(task.splits["train"])
        task = with_words(replace(task, notes=(*task.notes, statement)), words, tuning=True)
    notes = [*lines, *task.notes]
    tuning = recipe.tuning
    set_seed(tuning.seed)
    model, tokenizer, model_notes = load_for_tuning(
        recipe.model.name, task, revision=recipe.model.revision, dropout=tuning.dropout
    )
    notes += model_notes
    recipe, told = with_rate(recipe, model)
    notes += told
    scale = scale_of(task, model)
    adapters = _prepare_adapters(recipe, model, notes)
    elastic = _plan_elastic(recipe, model, notes)
    parameters = freeze_all_but_adapters(model) if adapters else count_parameters(model)
    if tuning.optimizer == "muon":
        trained_matrices(model)  # refused before anything is written
    max_length = min(recipe.task.max_length, max_input_length(model))
    overlap = min(recipe.task.overlap, max_length - 8)
    lengths = {
        "max_length": max_length, "overlap": overlap, "all_pieces": recipe.task.label_pieces == "all",
    }  # fmt: skip
    teacher = _load_task_teacher(recipe, task, model, tokenizer, max_length, scale, taught)
    encoded, long_texts = _encode(task, tokenizer, words, recipe.task.long_texts, lengths)
    inputs = TaskInputs(
        task.name,
        task.problem,
        task.metric,
        max_length,
        overlap,
        words,
        task.pairs,
        task.positive,
        long_texts,
        Decision(decoding=recipe.task.decoding if task.type.tagging else "alone"),
    )
    for split, rows in encoded.items():
        notes += input_notes(split, task.splits[split], rows, max_length)
        if (more := len(rows) - len(task.splits[split])) and task.type.tagging:
            notes.append(f"{split}: {more:,} more windows than sentences, at {max_length} tokens a window")
    if recipe.task.metric is not None and not task.type.tagging:
        _check_metric_exists(task, encoded)
    if scale != Scale():
        scale.unfold(model)
        for row in encoded["train"].rows:
            row["labels"] = scale.to_standard(row["labels"])
    if taught is not None and taught.soft:
        add_soft_labels(encoded["train"], task.splits["train"], task, taught.soft)
    if tuning.repeat_rare is not None:
        notes.append(_repeat_rare(task, encoded["train"], tuning.repeat_rare))
    steps = math.ceil(len(encoded["train"]) / tuning.batch_size)
    max_steps = max(1, round(tuning.epochs * steps))
    notes += few_steps(steps, max_steps)
    plan = FinetuningPlan(
        recipe=recipe,
        task=task,
        model=model,
        tokenizer=tokenizer,
        encoded=encoded,
        teacher=teacher,
        taught=taught,
        class_weights=_class_weights(recipe, task, encoded["train"]),
        elastic=elastic,
        scale=scale,
        parameters=parameters,
        adapters=adapters,
        inputs=inputs,
        steps_per_epoch=steps,
        max_steps=max_steps,
        notes=tuple(notes),
    )
    tokens = (tuning.micro_batch_size or tuning.batch_size) * max_length
    precision, why = faster_precision(tuning.precision, model.config, tokens, tuning_price(plan))
    recipe = apply_overrides(recipe, {"tuning.precision": precision})
    return replace(plan, recipe=recipe, notes=(*notes, *why))


def _encode(
    task: Task,
    tokenizer: PreTrainedTokenizerFast,
    words: WordRule | None,
    asked: str | None,
    lengths: Mapping[str, Any],
) -> tuple[dict[str, Encoded], str | None]:
    """Return the inputs of each split, and how the model reads texts that are longer than an input.

    A model answers as it learnt: where texts that it is tuned on are cut, it reads beginnings alone; where all of them
    fit, each window of a longer text is like them. Tuning on windows is to be asked for.
    """

    def encode(split: str, long_texts: str) -> Encoded:
        how = (
            {"rule": None if split == "train" else words} if task.type.tagging else {"long_texts": long_texts}
        )
        return task.type.encode(task.splits[split], tokenizer, task, **lengths, **how)

    long_texts = asked or "cut"
    encoded = {split: encode(split, long_texts) for split in task.splits}
    if asked is None and not (encoded["train"].cut or encoded["validation"].cut):
        long_texts = "windows"
        encoded |= {split: encode(split, long_texts) for split, inputs in encoded.items() if inputs.cut}
    return encoded, None if task.type.tagging else long_texts


def _check_metric_exists(task: Task, encoded: Mapping[str, Encoded]) -> None:
    """Refuse a metric that the rows which it is to judge by do not have, before anything is trained."""
    for split in dict.fromkeys(("validation", task.reported_split)):
        gold = [row["labels"] for row in encoded[split].rows]
        try:
            _, figures = task.type.answers(
                task, np.zeros((len(gold), len(task.labels) or 1), np.float32), gold
            )
        except NotImplementedError:  # its answers are not of rows alone
            return
        if task.metric not in figures:
            raise UserError(
                f"{split}: {task.metric} cannot be computed (rows all of one class, or too many classes): "
                "choose another task.metric"
            )


def _plan_elastic(
    recipe: FinetuneRecipe, model: PreTrainedModel, notes: list[str]
) -> ElasticObjective | None:
    """Return how depths before the last are tuned, or None, and mark the model's config accordingly."""
    tuning = recipe.tuning
    if not tuning.elastic:
        mark_depths(model.config, None)
        return None
    if not is_minialbert(model):
        raise UserError(
            f"tuning.elastic needs a MiniALBERT; {display_name(recipe.model.name)} is a {model.config.model_type}: "
            "set it to false, or distil a student from it first"
        )
    chosen = tuning.elastic_depths
    if chosen is None and model.config.elastic_depths is not None:
        chosen = [
            depth for depth in model.config.elastic_depths if depth < model.config.num_hidden_layers
        ] or None
    weights = {"label_weight": tuning.elastic_task_weight, "last_weight": tuning.elastic_logit_weight}
    try:
        return plan_elastic(model, chosen, notes=notes, verb="tunes", **weights)
    except ValueError as error:
        raise UserError(f"tuning: {error}") from error


def finetune(
    model: AnyModel | None = None,
    task: str | None = None,
    data: LabelledData | None = None,
    *,
    adapters: bool = False,
    teacher: AnyModel | Callable[[Sequence[str]], Iterable[Any]] | None = None,
    unlabelled: Corpus | None = None,
    recipe: str | FinetuneRecipe | None = None,
    epochs: float | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    time: str | None = None,
    settings: Settings = (),
    tokenizer: Any = None,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    keep_model: bool = True,
    max_hours: float | None = None,
) -> ModelResult:
    """Tune an encoder, or its adapters alone, on a labelled task, and return the best model with its record.

    The run directory receives the resolved recipe, `log.jsonl`, `model/` (the state that was best on validation,
    tokenizer, `task.json`), after adapter-tuning also `adapters/`, and `result.json`.

    Examples:
        >>> rows = [("A large house.", "large"), ("A small house.", "small")] * 20
        >>> tuned = minialbert.finetune(
        ...     "run/model", task="classification", data={"train": rows}, epochs=1, output="tuned"
        ... )
        >>> 0 <= tuned.score <= 1
        True

    Args:
        model: a directory or hub id, a live model, or the result of `distill`. Default: that of the recipe.
        task: a GLUE task, "ner", "classification", "multi-label", "regression", or a name of your own.
        data: a directory, a file or `hub:OWNER/NAME`; or labelled rows in memory: a data set or a dictionary of splits,
            rows as dictionaries or tuples, a pandas frame. GLUE tasks need none: they come from the hub.
        adapters: train only the adapters and the head.
        teacher: a model tuned for the task, to learn from while tuning; for unlabelled texts also an exported folder,
            or any callable that takes a list of texts and gives for each a label, probabilities by label, or spans.
        unlabelled: texts that the teacher labels, with gold rows (`data`) or without: files and folders, a list of
            texts, a data set. If its task has pairs of texts: tables, or pairs as tuples or dictionaries.
        recipe: name of a fine-tuning recipe, a YAML file, or a `FinetuneRecipe`.
        epochs: passes over the training rows.
        learning_rate: the highest of the schedule. Default: by the model's width.
        batch_size: rows per optimiser step.
        seed: random seed of head, order and dropout.
        time: how long the run may take, as in "2h" or "45m"; the number of epochs follows.
        settings: any other key of the recipe, as in `{"tuning.warmup_ratio": 0.1, "task.text": "sentence"}`.
        tokenizer: of a live model. Default: that of the directory the model was loaded from.
        output: the run directory. Default: a temporary one, which the log names.
        resume: continue from the last checkpoint of the same run.
        overwrite: replace an earlier run.
        progress: show a bar and lines.
        keep_model: write `model/` and `adapters/`.
        max_hours: refuse a new run that is estimated to take longer on this machine.

    Returns:
        The model that was best on validation, its tokenizer, the record of `result.json` (empty in all processes of a
        job but the first), and the run directory.

    Raises:
        UserError: if model, data, settings and directory do not fit together.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    named = {"epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "seed": seed}
    given = {f"tuning.{name}": value for name, value in named.items() if value is not None}
    started, allowed = monotonic(), None if time is None else seconds_of(time)
    if time is not None and (epochs or "tuning.epochs" in keys_of(settings)):
        raise UserError("--time chooses the length of a training: leave out --epochs")
    is_place = isinstance(data, str | Path)
    is_model = not callable(teacher) or isinstance(teacher, PreTrainedModel)
    called = None if is_model else str(getattr(teacher, "__name__", type(teacher).__name__))
    is_new = not resume
    with (
        speaking(progress),
        nullcontext() if model is None else on_disk(model, tokenizer) as source,
        nullcontext(called) if called or teacher is None else on_disk(teacher) as learned_from,
    ):
        texts = None if unlabelled is None else corpus_entries(unlabelled)
        if texts is not None and not texts:
            raise UserError("unlabelled holds no text: give files, folders or texts, or leave it out")
        named_texts = [str(one) if isinstance(one, str | Path) else "texts in memory" for one in texts or ()]
        resolved = tuning_recipe(
            recipe, settings, adapters=adapters, more=given, model=source, task=task, teacher=learned_from,
            data=str(data) if is_place else None, unlabelled=list(dict.fromkeys(named_texts)) or None,
        )  # fmt: skip
        if called and not resolved.teacher.labels_texts:
            raise UserError(f"teacher {called} labels texts, and there are none: give them as unlabelled")
        check_trackers(resolved.tuning.report_to)
        run = RunDirectory(output_folder(output, "finetune"))
        if resume and not overwrite:
            run.refuse_finished(run.page)  # one without a page gets it, if all is as before
        taught, rows = None, None if is_place or data is None else kept(data)
        if resolved.teacher.labels_texts and resolved.model.name is not None:
            load_encoder_config(resolved.model.name, revision=resolved.model.revision)
            with run.alone(resume=resume):
                run.make_room(resume=resume, overwrite=overwrite)
                taught = teach(
                    resolved, teacher if called else resolved.teacher.model, texts or resolved.teacher.unlabelled or (),
                    rows, run.teacher_labels, progress=progress, max_hours=max_hours if is_new else None,
                )  # fmt: skip
            resolved, resume, overwrite = taught.recipe, True, False  # its labels are part of the run
        if rank() == 0:
            run.check_room(resume=resume, overwrite=overwrite)  # before data are read and models are loaded
        begun = run.as_begun(resolved, "tuning", *(["epochs"] if time else [])) if resume else None
        plan = plan_finetuning(begun or resolved, rows, taught)
        attention = plan.model.config._attn_implementation
        told = without_effect(plan.recipe, settings, _idle(plan))
        plan = replace(plan, notes=(*plan.notes, *told))
        seconds = None
        if allowed is not None and begun is None:
            plan, seconds = _fitted(plan, started, allowed)
        places = {"model.name": resolved.model.name, "teacher.model": resolved.teacher.model}
        lasting = {key: lasting_name(place) for key, place in places.items()}
        plan = replace(plan, recipe=apply_overrides(plan.recipe, lasting))
        price = replace(tuning_price(plan), measured=seconds)
        price = weighed(price, max_hours if is_new else None, *_rehearsal(plan))
        with run.alone(resume=resume):
            record = _finetune(
                plan, run, price, resume=resume, overwrite=overwrite, progress=progress, keep_model=keep_model
            )
    plan.model.set_attn_implementation(attention)
    if keep_model and run.model.is_dir():
        plan.model.name_or_path = str(run.model)
    return ModelResult(record, run.path, plan.model.eval(), plan.tokenizer)


def tuning_recipe(
    recipe: str | FinetuneRecipe | None = None,
    settings: Settings = (),
    *,
    adapters: bool = False,
    more: Mapping[str, Any] | None = None,
    **places: str | list[str] | None,
) -> FinetuneRecipe:
    """Return a fine-tuning recipe with what a caller says in its place; `settings` count most.

    `more` are values by key, `places` are `model`, `task`, `data`, `teacher` and `unlabelled`.
    """
    keys = {"model": "model.name", "task": "task.name", "data": "task.data", "teacher": "teacher.model"}
    keys["unlabelled"] = "teacher.unlabelled"
    given = {keys[name]: value for name, value in places.items() if value is not None} | dict(more or {})
    if adapters:
        given["tuning.mode"] = "adapters"
    if not isinstance(recipe, FinetuneRecipe):
        recipe = load_recipe(recipe or ("adapters" if adapters else "default"), FinetuneRecipe)
    return with_settings(recipe, given, settings)


def _fitted(plan: FinetuningPlan, started: float, allowed: float) -> tuple[FinetuningPlan, float]:
    """Return a plan with as many steps as fit into the seconds allowed since a time, and their seconds."""
    rehearsed, step = _rehearsal(plan)
    steps, seconds = fitted_length(
        rehearsed, started, allowed, step=step, fewest=1, compiles=False, **_evaluations(plan)
    )
    epochs = steps / plan.steps_per_epoch
    notes = [note for note in plan.notes if not note.startswith("training: ")]  # of another length
    notes.append(f"length: {epochs:.2f} epochs, so {steps:,} steps")
    recipe = apply_overrides(plan.recipe, {"tuning.epochs": epochs})
    return replace(plan, recipe=recipe, max_steps=steps, notes=tuple(notes)), seconds


def _rehearsal(plan: FinetuningPlan) -> tuple[Callable[[RunDirectory], TuningTrainer], float]:
    """Return what makes a trainer whose steps are measured, and the tokens of one step."""
    quiet = replace(plan, recipe=apply_overrides(plan.recipe, {"tuning.report_to": []}))
    step = sum(plan.encoded["train"].lengths) / plan.steps_per_epoch
    return (lambda run: make_tuning_trainer(quiet, run, progress=False)), step


def _evaluations(plan: FinetuningPlan) -> dict[str, float]:
    """Return the tokens of one evaluation and of all after the steps, and the steps between two."""
    tokens = {split: sum(inputs.lengths) for split, inputs in plan.encoded.items()}
    last = (sum(tokens.values()) - tokens["train"]) * (1 + len(plan.elastic.depths if plan.elastic else ()))
    every = max(1.0, plan.steps_per_epoch / plan.recipe.tuning.evaluations_per_epoch)
    return {"evaluation": tokens["validation"], "apart": last, "every": every}


def _idle(plan: FinetuningPlan) -> dict[str, bool]:
    """Return by the beginning of settings' names whether nothing reads these."""
    recipe, tagging = plan.recipe, plan.task.type.tagging
    of_texts = {
        f"teacher.{key}": not recipe.teacher.labels_texts for key in ("documents", "text_field", "gold_")
    }
    of_tags = {f"task.{key}": not tagging for key in ("iob", "overlaps", "decoding", "label_pieces")}
    return of_texts | of_tags | {
        "tuning.elastic_": not recipe.tuning.elastic,
        "teacher.": recipe.teacher.model is None and plan.taught is None,
        "task.long_texts": tagging,
    }  # fmt: skip


def tuning_identity(plan: FinetuningPlan) -> dict[str, Any]:
    """Return what a tuning reads, to be known again when it is resumed: its data, its model, its teacher."""
    models = {"model": plan.model, "teacher": plan.teacher.model if plan.teacher is not None else None}
    asked = {} if plan.taught is None else {"teacher": plan.taught.identity}
    found = {
        role: model_identity(model.name_or_path, model.config)
        for role, model in models.items()
        if model is not None
    }
    return {"data": task_identity(plan.task), **found, **asked}


def tuning_price(plan: FinetuningPlan) -> Price:
    """Return what a tuning costs: forward and backward passes over the tokens of its rows, a teacher's among them."""
    tuning, config, lengths = plan.recipe.tuning, plan.model.config, plan.encoded["train"].lengths
    passes, length = plan.max_steps / plan.steps_per_epoch, round(statistics.fmean(lengths))
    flops = 3 * (forward := forward_flops_per_token(config, length))
    frozen = plan.parameters.total - plan.parameters.trainable
    if plan.teacher is not None and plan.teacher.model is not None:
        flops += forward_flops_per_token(plan.teacher.model.config, length)
        frozen += plan.teacher.model.num_parameters()
    tokens = (tuning.micro_batch_size or tuning.batch_size) * max(lengths)
    memory = training_bytes(config, plan.parameters.trainable, frozen, tokens)
    tokens, precision = round(passes * sum(lengths)), resolve_precision(tuning.precision)
    one = _evaluations(plan)
    evaluated = one["evaluation"] * max(1, plan.max_steps / one["every"]) + one["apart"]
    more = evaluated * forward / (tokens * flops)
    return Price(plan.max_steps, tuning.batch_size, "rows", passes, tokens, flops, precision, memory, more)


def _finetune(
    plan: FinetuningPlan,
    run: RunDirectory,
    price: Price,
    *,
    resume: bool,
    overwrite: bool,
    progress: bool,
    keep_model: bool,
) -> dict[str, Any]:
    if rank() == 0:
        run.open(plan.recipe, data=tuning_identity(plan), resume=resume, overwrite=overwrite)
    if resume:
        run.refuse_finished()  # by another process, for whose end this one has waited
    if progress:
        for note in plan.notes:
            logger.info("%s", note)
        logger.info("%s", plan.parameters)
    trainer = make_tuning_trainer(plan, run, progress=progress)
    with trainer.listening():
        checkpoint = trainer.resume_point(run, resume=resume)
        if progress:
            logger.info("%s", price.line(step_of(Path(checkpoint)) if checkpoint else 0))
        trainer.train(resume_from_checkpoint=checkpoint)
        try:
            predictions, by_depth = _measure_best(plan, trainer)
        except StopRequested:  # the training is over, and not to be lost
            trainer.save_for_resume()
            raise
    if plan.scale != Scale():
        plan.scale.fold(plan.model)
    if not trainer.args.should_save:
        return {}
    for line in remarks(plan.task, predictions) if progress else ():
        logger.warning("%s", line)
    if keep_model:
        with writing(run.model):
            save_tuned(plan.model, plan.tokenizer, plan.inputs, run.model)
        if plan.adapters:
            details = asdict(plan.inputs)
            save_adapters(
                plan.model, run.adapters, tokenizer=plan.tokenizer, metadata=details, overwrite=True
            )
    record = _record(plan, trainer, predictions)
    with writing(run.result):
        return write_result(run.result, record | ({"metrics_by_depth": by_depth} if by_depth else {}))


def make_tuning_trainer(plan: FinetuningPlan, run: RunDirectory, *, progress: bool = True) -> TuningTrainer:
    """Return the trainer of a plan, ready for `train()`; log and checkpoints go into the run's directory."""
    tuning = plan.recipe.tuning
    per_process = share_of(tuning.batch_size, "tuning.batch_size")
    micro = min(tuning.micro_batch_size or per_process, per_process)
    if per_process % micro:
        raise UserError(
            f"tuning.micro_batch_size {micro} does not divide the {per_process} rows of each process and step"
        )
    args = training_arguments(
        tuning,
        output=run.checkpoints,
        max_steps=plan.max_steps,
        micro_batch_size=micro,
        accumulation=per_process // micro,
        warmup_steps=round(tuning.warmup_ratio * plan.max_steps),
        eval_strategy="steps",
        eval_steps=max(1, math.ceil(plan.steps_per_epoch / tuning.evaluations_per_epoch)),
        save_strategy="no",
        save_total_limit=1,
    )
    route_attention(plan.model)  # faster in half precision on a CPU
    trainer = TuningTrainer(
        plan.model,
        plan.task.problem,
        plan.task.metric,
        args=args,
        train=plan.encoded["train"],
        collator=make_collator(plan.task, plan.tokenizer),
        measure=lambda: _measure(plan, "validation").metrics,
        batch_size=tuning.batch_size,
        class_weights=plan.class_weights,
        focal_gamma=tuning.focal_gamma,
        teacher=plan.teacher,
        task_weight=plan.recipe.teacher.task_weight if plan.teacher is not None else 1.0,
        elastic=plan.elastic,
        patience=tuning.early_stopping_patience,
        **tuning.model_dump(include={"max_skipped_steps", "weight_noise", "optimizer"}),
    )
    title = f"tuning {plan.task.name}"
    trainer.add_callback(RunProgress(run, terms=trainer.terms, bar=progress, title=title, lines=progress))
    for tracker in trackers(tuning.report_to, run, plan.recipe):
        trainer.add_callback(tracker)
    return trainer


def _prepare_adapters(recipe: FinetuneRecipe, model: PreTrainedModel, notes: list[str]) -> str | None:
    """Give a model the adapters that it lacks where adapters are to be tuned; return where they come from."""
    own = getattr(model.config, "adapter_reduction_factor", None) is not None
    changed = recipe.model.model_dump(exclude_defaults=True, exclude={"name", "revision"})
    further = own and is_minialbert(model) and "adapter_kind" in changed
    if changed and ((own and not further) or recipe.tuning.mode != "adapters"):
        notes.append(f"adapters: none are added; without effect in the section model: {listed(changed)}")
    if recipe.tuning.mode != "adapters":
        return None
    if not is_minialbert(model):
        raise UserError(
            f"adapter-tuning needs a MiniALBERT; {display_name(recipe.model.name)} is a {model.config.model_type}: "
            "leave out --adapters, or distil a student from it first"
        )
    if own and not further:
        return "pre-trained"
    start = recipe.model.adapter_init
    add_adapters(
        model,
        reduction_factor=recipe.model.adapter_reduction_factor,
        initialization=start,
        seed=recipe.tuning.seed,
        kind=recipe.model.adapter_kind,
        lora_rank=recipe.model.lora_rank,
        lora_layers=recipe.model.lora_layers,
    )
    kind = "" if recipe.model.adapter_kind == "bottleneck" else f"{recipe.model.adapter_kind}, "
    notes.append(
        f"adapters: {'the student has some; further ones are ' if own else ''}fresh "
        f"({kind}{'random, as published' if start == 'as-published' else 'identity'})"
    )
    return "pre-trained" if own else start


def _load_task_teacher(
    recipe: FinetuneRecipe,
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    scale: Scale,
    taught: Taught | None,
) -> TaskTeacher | None:
    settings = recipe.teacher
    if taught is not None and taught.soft and settings.logit_weight:
        order = torch.arange(len(task.labels))
        return TaskTeacher(None, order, settings.logit_weight, 0.0, settings.temperature, scale)
    if settings.model is None or taught is not None:
        return None
    teacher, teacher_tokenizer, inputs = load_tuned(settings.model, revision=settings.revision)
    name = display_name(settings.model)
    if inputs.type.tagging != task.type.tagging:
        raise UserError(
            f"teacher {name} was tuned for a {inputs.problem} task, {task.name} is a {task.problem} task"
        )
    if tokenizer_fingerprint(teacher_tokenizer) != tokenizer_fingerprint(tokenizer):
        raise UserError(
            f"teacher {name} has another tokenizer than the model to tune: both see the same "
            "tokens, so they need one vocabulary, but not if the teacher labels texts (--unlabelled, teacher.altered)"
        )
    if max_input_length(teacher) < max_length:
        raise UserError(
            f"teacher {name} takes {max_input_length(teacher)} tokens at most, and inputs have up to {max_length}: "
            f"set task.max_length to {max_input_length(teacher)}"
        )
    names = tuple(settings.labels) if settings.labels else model_labels(teacher)
    if len(names) != teacher.config.num_labels:
        raise UserError(
            f"teacher.labels has {len(names)} names, the teacher {teacher.config.num_labels} labels"
        )
    width = teacher.config.hidden_size
    if settings.hidden_weight and width != model.config.hidden_size:
        raise UserError(
            f"teacher.hidden_weight needs equal widths: the teacher has {width}, the model "
            f"{model.config.hidden_size}; set it to 0"
        )
    order = label_order(names, task.labels, str(name))
    return TaskTeacher(
        teacher, order, settings.logit_weight, settings.hidden_weight, settings.temperature, scale
    )


def _class_weights(recipe: FinetuneRecipe, task: Task, train: Encoded) -> Tensor | None:
    wanted = recipe.tuning.class_weights
    if wanted is None:
        return None
    if not task.type.class_weights:
        raise UserError(
            f"tuning.class_weights: a {task.problem} task has no classes to weigh against each other"
        )
    if isinstance(wanted, list):
        if len(wanted) != len(task.labels):
            raise UserError(
                f"tuning.class_weights has {len(wanted)} values, {task.name} has {len(task.labels)} labels: "
                f"{', '.join(task.labels)}"
            )
        return torch.tensor(wanted)
    labels = (row["labels"] for row in train.rows)
    flat = (value for label in labels for value in (label if isinstance(label, list) else [label]))
    counts = Counter(value for value in flat if value != IGNORED_LABEL)
    total, present = sum(counts.values()), len(counts)
    return torch.tensor(
        [total / (present * counts[i]) if counts[i] else 1.0 for i in range(len(task.labels))]
    )


def _repeat_rare(task: Task, train: Encoded, how: str) -> str:
    """Let inputs of rare classes stand several times in train; return a line that says how often."""
    if not task.type.has_classes:
        raise UserError(f"tuning.repeat_rare: a {task.problem} task has no classes")
    times, by_class = repeats(task.splits["train"], 0.5 if how == "root" else 1.0)
    before = len(train)
    rows = zip(train.rows, train.owners, strict=True)
    repeated = [(row, owner) for row, owner in rows for _ in range(times[owner])]
    train.rows[:], train.owners[:] = map(list, zip(*repeated, strict=True))
    rare = [f"{name} {count} times" for name, count in by_class.items() if count > 1]
    done = f"rows with {listed(rare)}" if rare else "no class is rare enough"
    return f"train: repeated because classes are rare: {done}; {before:,} inputs became {len(train):,}"


def _is_labelled(encoded: Encoded) -> bool:
    return bool(encoded.rows) and all("labels" in row for row in encoded.rows)


def _measure(plan: FinetuningPlan, split: str, num_iterations: int | None = None) -> Predictions:
    with plan.scale.folded(plan.model):
        return evaluate_split(
            plan.model,
            plan.task.splits[split],
            plan.encoded[split],
            plan.task,
            make_collator(plan.task, plan.tokenizer),
            name=f"the model on {split}",
            decision=plan.inputs.decision,
            batch_size=plan.recipe.tuning.eval_batch_size,
            precision=resolve_precision(plan.recipe.tuning.precision),
            num_iterations=num_iterations,
        )


def _measure_best(
    plan: FinetuningPlan, trainer: TuningTrainer
) -> tuple[dict[str, Predictions], dict[str, Any]]:
    """Return predictions for every labelled split but train, and figures by depth, of the best state."""
    trainer.restore_best()
    predictions = {
        split: _measure(plan, split)
        for split in plan.task.splits
        if split != "train" and _is_labelled(plan.encoded[split])
    }
    by_depth = {
        str(depth): {split: _measure(plan, split, num_iterations=depth).metrics for split in predictions}
        for depth in (plan.elastic.depths if plan.elastic is not None else ())
    }
    return predictions, by_depth


def _record(
    plan: FinetuningPlan, trainer: TuningTrainer, predictions: dict[str, Predictions]
) -> dict[str, Any]:
    recipe = without_places(plan.recipe.model_dump())
    recipe["model"]["name"] = display_name(plan.recipe.model.name)
    recipe["teacher"]["model"] = display_name(plan.recipe.teacher.model)
    recipe["task"]["data"] = display_name(plan.recipe.task.data)
    split = plan.task.reported_split
    agreement = {} if plan.taught is None else {"agreement": list(plan.taught.agreement)}
    seconds = trainer.step_seconds
    per_step = statistics.median(seconds) if seconds else None
    return {
        "kind": "finetune",
        "name": plan.recipe.name,
        "task": plan.task.name,
        "problem": plan.task.problem,
        "metric": plan.task.metric,
        "split": split,
        "positive": plan.task.positive,
        "decoding": plan.inputs.decision.decoding if plan.task.type.tagging else None,
        "score": predictions[split].metrics[plan.task.metric],
        "metrics": {name: result.metrics for name, result in predictions.items()},
        "seed": plan.recipe.tuning.seed,
        "mode": plan.recipe.tuning.mode,
        "adapter_init": plan.adapters,
        "teacher": display_name(plan.recipe.teacher.model),
        **agreement,
        "model": {
            "name": display_name(plan.recipe.model.name),
            "model_type": plan.model.config.model_type,
            "parameters": plan.parameters.total,
            "encoder_parameters": plan.model.base_model.num_parameters(),
            "trainable_parameters": plan.parameters.trainable,
        },
        "training": {
            "steps": trainer.state.global_step,
            "best_step": trainer.best_step,
            **trainer.times,
            "skipped_steps": trainer.skipped_steps,
            "seconds_per_step": per_step,
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "precision": resolve_precision(plan.recipe.tuning.precision),
            "max_length": plan.inputs.max_length,
            "long_texts": plan.inputs.long_texts,
            "cut": cut_record(plan.encoded),
        },
        "data": task_summary(plan.task),
        "notes": [*plan.notes, *remarks(plan.task, predictions)],
        "recipe": recipe,
        "command": finetune_command(plan.recipe),
    }
