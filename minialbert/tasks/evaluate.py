"""Any tuned model on any split: its figures, its predictions, and the files that the GLUE benchmark takes."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from minialbert_runtime.answers import ANSWERS, Decision, entities_at
from minialbert_runtime.folder import is_exported
from minialbert_runtime.lines import to_json_line
from minialbert_runtime.words import WordRule, tags_to_spans
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from minialbert.data.columns import ROLES, is_by_split
from minialbert.data.examples import Example, Task, TextExample, TokenExample, check_metric
from minialbert.data.glue import GLUE_TASKS, glue_task_name, submission_file, write_submission
from minialbert.data.hub import split_name
from minialbert.data.metrics import check_package
from minialbert.data.rows import LabelledData, kept
from minialbert.data.task_types import TaskType, task_options, task_type
from minialbert.data.tasks import load_task, task_summary, understood
from minialbert.data.words import gold_spans, running_text, with_words
from minialbert.errors import UserError, display_name, listed, needs_extra
from minialbert.method.adapters import count_parameters
from minialbert.method.encoders import max_input_length
from minialbert.method.live import AnyModel, on_disk
from minialbert.recipes.load import Settings, keys_of
from minialbert.recipes.schema import TaskRecipe
from minialbert.runs.device import resolve_precision
from minialbert.runs.files import check_file, new_folder, write_atomically, writing
from minialbert.runs.progress import speaking
from minialbert.runs.records import PREDICTIONS_FILE, RESULT_FILE, check_output, write_result
from minialbert.runs.results import Result
from minialbert.tasks.certificate import certificate
from minialbert.tasks.finetune import tuning_recipe
from minialbert.tasks.losses import label_order
from minialbert.tasks.models import TaskInputs, check_labels, load_tuned, model_labels
from minialbert.tasks.predictions import (
    Predictions,
    cut_record,
    depth_arguments,
    depth_notes,
    evaluate_split,
    input_notes,
    make_collator,
    remarks,
)
from minialbert.tasks.vectors import METRICS, evaluate_vectors

logger = logging.getLogger(__name__)


def evaluate(
    model: AnyModel,
    data: LabelledData | None = None,
    *,
    task: str | TaskRecipe | None = None,
    split: str | None = None,
    output: str | Path | None = None,
    submission: str | Path | None = None,
    overwrite: bool = False,
    batch_size: int = 64,
    num_iterations: int | None = None,
    exit_threshold: float | None = None,
    reference: AnyModel | None = None,
    settings: Settings = (),
    tokenizer: Any = None,
    progress: bool = True,
) -> Result:
    """Score a tuned model on a split of a task, or a sentence encoder on similarity, retrieval or clustering.

    Labels of model and task are matched by name, whatever their ids. Tagged sentences longer than the model's input are
    read in windows; texts are cut or read in windows, as in `predict`. Inputs are as long as in tuning unless
    `max_length` or `overlap` is set. If you choose the number of iterations or early exit, the record holds that, and
    the mean number of iterations.

    The tasks "sts", "retrieval" and "clustering" score the vectors of a sentence encoder, by the evaluators and names
    of sentence-transformers and mteb. With a reference, such as the teacher, the record has its figures too, the share
    of them that is kept, those of texts (queries) by the model beside texts (documents) by the reference, and the
    texts at which the model loses most.

    Examples:
        >>> scored = minialbert.evaluate("tuned/model", {"test": [("A large house.", "large")]})
        >>> scored.metrics["test"]["accuracy"] in (0, 1)
        True

    Args:
        model: a directory or hub id of a tuned model, an exported folder, a live model, or the result of `finetune`.
        data: a directory, a file or `hub:OWNER/NAME`, or labelled rows in memory, as for `finetune`.
        task: as for `finetune`, or the section of a recipe; sts, retrieval or clustering for a sentence encoder, or
            anything with a method `encode`. Default: what the model was tuned for.
        split: default: test if it has labels, else validation (held out from train as in tuning if the directory has
            none); all rows of a single file, or of a list or data set in memory, as "train".
        output: directory for record and predictions.
        submission: directory for the files that the GLUE benchmark takes.
        overwrite: replace the files of an earlier evaluation.
        batch_size: inputs per forward pass, of a model in PyTorch.
        num_iterations: how often a MiniALBERT applies its block. Default: as trained.
        exit_threshold: confidence (0 to 1) at which an input leaves early. Default: as calibrated.
        reference: a sentence encoder to score beside the model.
        settings: keys of a recipe, as in `{"task.text": "sentence", "tuning.precision": "fp32"}`.
        tokenizer: of a live model.
        progress: show a bar.

    Returns:
        The record of kind "evaluation", and the directory if one was written.

    Raises:
        UserError: if model, task and split do not fit together, or files of an earlier evaluation are there.
    """
    if isinstance(task, str) and task in METRICS:
        if submission or (num_iterations, exit_threshold) != (None, None):
            raise UserError(f"{task} scores vectors: it takes no submission, iterations or threshold")
        columns, _, rows = task_recipe(task, data, settings)
        return evaluate_vectors(
            model, columns.data if rows is None else rows, columns=columns, split=split, reference=reference,
            output=output, overwrite=overwrite, batch_size=batch_size, tokenizer=tokenizer, progress=progress,
        )  # fmt: skip
    if reference is not None:
        raise UserError(
            f"a reference is for the tasks {listed(METRICS)}: compare tuned models with `report --compare`"
        )
    with speaking(progress), on_disk(model, tokenizer) as source:
        recipe, precision, rows = task_recipe(task, data, settings)
        if output is not None:
            check_output(Path(output), PREDICTIONS_FILE, kind="evaluation", overwrite=overwrite)
        tuned, tokenizer, inputs = load_any(source)
        depth_arguments(tuned, num_iterations, exit_threshold)
        tuned.to("cuda" if torch.cuda.is_available() else "cpu")
        shown_name = str(display_name(source))
        split = split_name(split)
        found = task_of_model(recipe, inputs, tuned, shown_name, split, rows)
        check_package(*found.type.package)
        chosen = _chosen_split(found, split, has_submission=submission is not None)
        submitted: dict[str, Path] = {}
        if submission is not None:
            submitted = _submission_files(found, Path(submission), overwrite=overwrite)
        order = label_ids(tuned, found, shown_name)
        decision = decision_for(recipe, inputs)
        started = time.perf_counter()
        notes = [*found.notes, *depth_notes(tuned, num_iterations), *_decision_notes(decision)]
        cut: dict[str, dict[str, float]] = {}
        reading, more = input_reading(recipe, inputs, tuned, found, shown_name)
        notes += more

        @functools.cache
        def run(name: str) -> Predictions:
            examples = found.splits[name]
            encoded = found.type.encode(examples, tokenizer, found, **reading)
            notes.extend(input_notes(name, examples, encoded, reading["max_length"]))
            if encoded.weights and not (recipe.long_texts or inputs.long_texts):
                notes.append(
                    f"{shown_name} does not say how long texts are read: in windows, as predict reads them"
                )
            cut.update(cut_record({name: encoded}))
            return evaluate_split(
                tuned,
                examples,
                encoded,
                found,
                make_collator(found, tokenizer),
                order=order,
                name=f"{shown_name} on {name}",
                decision=decision,
                batch_size=batch_size,
                precision=resolve_precision(precision),
                num_iterations=num_iterations,
                exit_threshold=exit_threshold,
                progress=name if progress else None,
            )

        results = {chosen: run(chosen)} if chosen is not None else {}
        for_benchmark = {name: run(name) for name in submitted}
        if submission is not None:
            _write_submission(found, for_benchmark, Path(submission))
        lines = [
            line_of(name, found, row)
            for name, result in results.items()
            for row in zip(found.splits[name], result.values, result.evidence, strict=True)
        ]
        sure = certificate(lines)
        record: dict[str, Any] = {
            "kind": "evaluation",
            "name": shown_name,
            "task": found.name,
            "problem": found.problem,
            "metric": found.metric,
            "split": chosen,
            "positive": found.positive,
            "score": results[chosen].metrics.get(found.metric) if chosen is not None else None,
            "metrics": {name: result.metrics for name, result in results.items() if result.metrics},
            **({"certificate": sure} if sure else {}),
            "seed": None,
            "model": model_entry(tuned, shown_name),
            "rows": {name: len(result.values) for name, result in results.items()},
            "data": task_summary(found),
            **_depth_record(tuned, num_iterations, exit_threshold, results),
            "decoding": decision.decoding if found.type.tagging else None,
            **({} if found.type.tagging else {"long_texts": reading["long_texts"], "cut": cut}),
            "notes": [*dict.fromkeys(notes), *_notes(results, chosen, notes), *remarks(found, results)],
            "wall_seconds": round(time.perf_counter() - started, 2),
            "submission": [path.name for path in submitted.values()],
        }
        if output is None:
            return Result(record)
        folder = Path(output)
        with writing(folder, advice=None):
            write_atomically(folder / PREDICTIONS_FILE, "".join(f"{to_json_line(line)}\n" for line in lines))
            return Result(write_result(folder / RESULT_FILE, record), folder)


def task_recipe(
    task: str | TaskRecipe | None, data: LabelledData | None, settings: Settings
) -> tuple[TaskRecipe, str, LabelledData | None]:
    """Return what a caller says of a task, where only what was given counts as set: all else is as in tuning.

    With it come the precision, and the labelled rows if they are in memory.
    """
    if isinstance(task, TaskRecipe):
        return task, "auto", kept(data) if data is not None else None
    in_memory = data is not None and not isinstance(data, str | Path)
    resolved = tuning_recipe(None, settings, task=task, data=None if in_memory or data is None else str(data))
    of_task = {key.removeprefix("task.") for key in keys_of(settings) if key.startswith("task.")}
    given = {"name", "data", *of_task}
    recipe = TaskRecipe(**resolved.task.model_dump(include=given))
    return recipe, resolved.tuning.precision, kept(data) if in_memory and data is not None else None


def load_any(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, TaskInputs]:
    """Return a tuned model, or the graph that was exported of one."""
    if not is_exported(name):
        return load_tuned(name)
    with needs_extra("export", "scoring an exported folder"):
        from minialbert.tasks.exported import load_exported
    model, tokenizer, inputs = load_exported(name)
    return cast("PreTrainedModel", model), tokenizer, inputs


def task_of_model(
    recipe: TaskRecipe,
    inputs: TaskInputs,
    model: PreTrainedModel,
    name: str,
    split: str | None,
    data: LabelledData | None = None,
) -> Task:
    """Return the task that a tuned model is to be scored on, with its data; labels are in whatever order.

    Without a name in the recipe it is the one that the model was tuned for. `split` is the one asked for,
    None for any; `data` are rows in memory, in place of the recipe's. Raises UserError if they do not fit
    together.
    """
    labels = model_labels(model)
    recipe = _named(recipe, inputs, labels)
    kind = _type_of(recipe)
    if kind is not None and kind is not inputs.type:
        raise UserError(f"{name} was tuned for a {inputs.problem} task, {recipe.name} is a {kind.name} one")
    task = _read_task(recipe, model, split, data)
    if recipe.positive is None and inputs.positive in task.labels:
        task = replace(task, positive=inputs.positive)
    if recipe.metric is None and inputs.metric and task.name == inputs.task:
        check_metric(task.type, inputs.metric)
        task = replace(task, metric=inputs.metric)
    if split is not None and split not in task.splits:
        raise UserError(f"{task.name} has no split {split!r}: there are {', '.join(task.splits)}")
    check_labels(model, task, name)
    if None not in (inputs.pairs, task.pairs) and inputs.pairs != task.pairs:
        own, other = ("pairs of texts", "single texts")[:: 1 if inputs.pairs else -1]
        advice = "name the columns (task.text, task.pair)"
        raise UserError(f"{name} was tuned on {own}, the data are {other} ({task.columns}): {advice}")
    for line in understood(task):
        logger.info("%s", line)
    return with_words(task, inputs.words or WordRule(), tuning=False) if task.type.tagging else task


def _named(recipe: TaskRecipe, inputs: TaskInputs, labels: tuple[str, ...]) -> TaskRecipe:
    """Name the task that the model was tuned for where the recipe names none."""
    if recipe.name is not None:
        return recipe
    if not inputs.task:
        raise UserError("no task: give --task; the model does not say which it was tuned for")
    glue = glue_task_name(inputs.task)
    # Tables of one's own may lie in a folder of such a name.
    if glue is not None and (not GLUE_TASKS[glue].labels or set(GLUE_TASKS[glue].labels) == set(labels)):
        return recipe.model_copy(update={"name": glue, "problem": None})
    if inputs.type.tagging:
        return recipe.model_copy(update={"name": inputs.type.option, "problem": None})
    return recipe.model_copy(update={"name": inputs.task, "problem": inputs.problem})


def _type_of(recipe: TaskRecipe) -> TaskType | None:
    if recipe.problem is None and (glue := glue_task_name(str(recipe.name))) is not None:
        return task_type(GLUE_TASKS[glue].problem)
    return task_type(recipe.problem) if recipe.problem else task_options().get(str(recipe.name))


def _read_task(
    recipe: TaskRecipe, model: PreTrainedModel, split: str | None, data: LabelledData | None
) -> Task:
    """Read the data, with the model's labels, and with a part of train for validation where that is to be scored."""
    labels = model_labels(model)
    task = load_task(recipe, data=data, carve=False, model_labels=labels)
    without_splits = (
        recipe.data is not None and Path(recipe.data).expanduser().is_file()
        if data is None
        else not is_by_split(data, recipe.model_dump(include=set(ROLES)))
    )
    by_default = split is None and task.reported_split == "validation" and not without_splits
    if "validation" not in task.splits and (split == "validation" or by_default):
        return load_task(recipe, data=data, model_labels=labels)
    return task


def model_entry(model: PreTrainedModel, name: str) -> dict[str, Any]:
    """Return what a record says of a tuned model, and of an exported one the engine that it was scored in."""
    total = count_parameters(model).total
    entry = {"name": name, "model_type": model.config.model_type, "parameters": total}
    runtime = getattr(model, "runtime", None)
    return entry if runtime is None else {**entry, "engine": runtime.engine}


def label_ids(model: PreTrainedModel, task: Task, name: str) -> list[int] | None:
    """Return for each of the task's labels the model's id of the same name; None where they agree."""
    if not task.type.has_classes or model_labels(model) == task.labels:
        return None
    return list(label_order(model_labels(model), task.labels, name).tolist())


def decision_for(recipe: TaskRecipe, inputs: TaskInputs) -> Decision:
    """Return how answers are chosen: as the model says, but for a decoding of tags that the recipe sets."""
    if not inputs.type.tagging or "decoding" not in recipe.model_fields_set:
        return inputs.decision
    return replace(inputs.decision, decoding=recipe.decoding)


def input_reading(
    recipe: TaskRecipe, inputs: TaskInputs, model: PreTrainedModel, task: Task, name: str
) -> tuple[dict[str, Any], list[str]]:
    """Return how inputs are read, as `predict` does unless the recipe says otherwise, and notes on what is assumed."""
    given = recipe.model_fields_set
    reading: dict[str, Any] = {
        key: getattr(recipe if key in given else inputs, key) for key in ("max_length", "overlap")
    }
    reading["max_length"] = min(reading["max_length"], max_input_length(model))
    if not task.type.tagging:
        return reading | {"long_texts": recipe.long_texts or inputs.long_texts or "windows"}, []
    notes = [f"{name} has no rule of words: running text is cut at every punctuation mark"]
    return reading | {"rule": inputs.words or WordRule()}, notes if inputs.words is None else []


def _depth_record(
    model: PreTrainedModel,
    num_iterations: int | None,
    exit_threshold: float | None,
    results: Mapping[str, Predictions],
) -> dict[str, Any]:
    record: dict[str, Any] = {} if num_iterations is None else {"num_iterations": num_iterations}
    means = {name: result.mean_iterations for name, result in results.items()}
    if any(mean is not None for mean in means.values()):
        record["exit_threshold"] = model.config.exit_threshold if exit_threshold is None else exit_threshold
        record["mean_iterations"] = means
    return record


def _chosen_split(task: Task, split: str | None, *, has_submission: bool) -> str | None:
    if split is not None:
        return split
    if task.reported_split in task.splits:
        return task.reported_split
    return None if has_submission else next(iter(task.splits))


def _submission_files(task: Task, folder: Path, *, overwrite: bool) -> dict[str, Path]:
    """Return the benchmark's file of each unlabelled split."""
    splits = [
        name
        for name, rows in task.splits.items()
        if all(isinstance(row, TextExample) and row.label is None for row in rows)
    ]
    if glue_task_name(task.name) is None or not splits:
        raise UserError(
            f"--submission: {task.name} has no unlabelled split of the GLUE benchmark (test.tsv); there are "
            f"{', '.join(task.splits)}"
        )
    files = {split: submission_file(task.name, split, folder) for split in splits}
    for file in files.values():
        check_file(
            file, overwrite=overwrite, advice="give --overwrite to replace it, or another --submission"
        )
    return files


def _write_submission(task: Task, results: Mapping[str, Predictions], folder: Path) -> None:
    """Write all files or none."""
    with (
        writing(folder, advice=None),
        new_folder(folder),
        tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial,
    ):
        written = []
        for split, result in results.items():
            ids = [row.id for row in task.splits[split] if isinstance(row, TextExample)]
            written.append(write_submission(task.name, split, ids, result.values, Path(partial)))
        for file in written:
            os.replace(file, folder / file.name)


def _notes(results: Mapping[str, Predictions], chosen: str | None, said: Sequence[str]) -> list[str]:
    told = [
        f"{name}: no row has a label, so none is scored" for name, one in results.items() if not one.metrics
    ]
    notes = [line for line in told if not any(note.startswith(line) for note in said)]
    if chosen == "train":
        notes.append("train: the figures say nothing about other texts if the model was tuned on these rows")
    return notes


def _decision_notes(decision: Decision) -> list[str]:
    """Return a line that says by what a calibrated model decides."""
    figures = {**decision.thresholds, "temperature": decision.temperature}
    told = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
    return [f"calibrated: {told}"] if replace(decision, decoding="alone") != Decision() else []


def line_of(split: str, task: Task, row: tuple[Example, Any, Any]) -> dict[str, Any]:
    """Return an example and what was found; entities, and the confidence in classes, as `predict` has them."""
    example, value, evidence = row
    group = {"group": example.group} if example.group is not None else {}
    if isinstance(example, TokenExample):
        text, offsets = running_text(example)
        spans = {"entities": tags_to_spans(value, offsets, text)}
        if example.tags is not None:
            spans["gold"] = gold_spans(example)
        found = {name: entities_at(text, offsets, one, evidence) for name, one in spans.items()}
        tokens = {"tokens": list(example.words), "tags": example.tags and list(example.tags)}
        return {"split": split, **group, **tokens, "predicted": value, "text": text, **found}
    pair = {"pair": example.pair} if example.pair is not None else {}
    line = {"split": split, **group, "text": example.text, **pair, "label": example.label, "predicted": value}
    if task.type.label == "answer":
        gold = {"answers": line.pop("label"), "predicted": value["answer"], "score": value["score"]}
        return {**line, **gold}
    answer = ANSWERS[task.problem](evidence, task.labels, 0.0)
    if "scores" in answer and "score" in answer:
        line["score"] = answer["score"]
    elif "scores" in answer:
        scores = answer["scores"]
        line |= {"score": min(max(one, 1 - one) for one in scores.values()), "scores": scores}
    return line
