"""Any tuned model on any split: its figures, its predictions, and the files that the GLUE benchmark takes."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from .adapters import count_parameters
from .data.examples import Task, TextExample, TokenExample
from .data.glue import glue_task_name
from .data.submissions import write_submission
from .data.tasks import load_task
from .errors import UserError
from .evaluation import Predictions, encode, evaluate_split, make_collator
from .precision import resolve_precision
from .runs import RunDirectory, display_name, write_atomically, write_result
from .task_losses import label_order
from .task_models import TaskInputs, check_labels, load_tuned, model_labels
from .teachers import max_input_length
from .tuning_schema import TaskRecipe

logger = logging.getLogger(__name__)

PREDICTIONS_FILE = "predictions.jsonl"


def evaluate(
    model_name: str,
    recipe: TaskRecipe,
    *,
    split: str | None = None,
    output: str | Path | None = None,
    submission: str | Path | None = None,
    overwrite: bool = False,
    batch_size: int = 64,
    precision: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Score a tuned model on a split, and return the record.

    The model's labels are matched with the task's by name, whatever their ids. Sentences of words that are
    longer than the model's input are read in windows; texts are cut, as in tuning, and counted.

    Args:
        model_name: directory or hub id of a model with a task head.
        recipe: the task; without a name, the one that the model was tuned for.
        split: "train", "validation", "test", …; None for test where it has labels, else validation.
        output: directory for `result.json` and `predictions.jsonl`; None to write neither.
        submission: directory for the benchmark's files of every unlabelled split of a GLUE task.
        overwrite: replace what an earlier evaluation left in `output`.
        batch_size: inputs per forward pass.
        precision: "auto", "fp32", "bf16" or "fp16".
        progress: show a progress bar on a terminal.

    Returns:
        A record of kind "evaluation".

    Raises:
        UserError: if model, task and split do not fit together, or a directory is not empty.
    """
    model, tokenizer, inputs = load_tuned(model_name)
    recipe, task = _task_of(recipe, inputs, model, model_name, split)
    order = _order(model, task, model_name)
    longest = max_input_length(model)
    max_length = min(recipe.max_length if not inputs.max_length else inputs.max_length, longest)
    results: dict[str, Predictions] = {}
    started = time.perf_counter()

    def run(name: str) -> Predictions:
        rows = task.splits[name]
        encoded = encode(
            rows, tokenizer, task, max_length=max_length, overlap=min(inputs.overlap, max_length - 8)
        )
        return evaluate_split(
            model,
            rows,
            encoded,
            task,
            make_collator(task, tokenizer),
            order=order,
            batch_size=batch_size,
            precision=resolve_precision(precision),
            progress=name if progress else None,
        )

    written = []
    if submission is not None:
        written = _write_submissions(task, run, Path(submission))
    chosen = _chosen_split(task, split, has_submission=submission is not None)
    if chosen is not None:
        results[chosen] = run(chosen)
    record: dict[str, Any] = {
        "kind": "evaluation",
        "name": display_name(model_name),
        "task": task.name,
        "problem": task.problem,
        "metric": task.metric,
        "split": chosen,
        "score": results[chosen].metrics.get(task.metric) if chosen is not None else None,
        "metrics": {name: result.metrics for name, result in results.items() if result.metrics},
        "seed": None,
        "model": {
            "name": display_name(model_name),
            "model_type": model.config.model_type,
            "parameters": count_parameters(model).total,
        },
        "rows": {name: len(result.values) for name, result in results.items()},
        "notes": [*task.notes, *_notes(task, results, max_length)],
        "wall_seconds": round(time.perf_counter() - started, 2),
        "submission": [path.name for path in written],
    }
    if output is None:
        return record
    return _write(Path(output), record, task, results, overwrite=overwrite)


def _task_of(
    recipe: TaskRecipe, inputs: TaskInputs, model: PreTrainedModel, model_name: str, split: str | None
) -> tuple[TaskRecipe, Task]:
    """Read the task; a table of one's own takes the model's labels, so that rows of all of them need not occur."""
    if recipe.name is None:
        if not inputs.task:
            raise UserError("no task: give --task; the model does not say which it was tuned for")
        glue = glue_task_name(inputs.task)
        recipe = recipe.model_copy(
            update={"name": glue or inputs.task, "problem": None if glue else inputs.problem}
        )
        if inputs.problem == "token" and glue is None:
            recipe = recipe.model_copy(update={"name": "ner", "problem": None})
    is_glue = glue_task_name(str(recipe.name)) is not None and recipe.problem is None
    labels = list(model_labels(model))
    if not is_glue and recipe.labels is None and inputs.problem in ("single-label", "multi-label"):
        recipe = recipe.model_copy(update={"labels": labels})
    task = load_task(recipe, carve=False)
    if task.problem != inputs.problem:
        raise UserError(
            f"{model_name} was tuned for a {inputs.problem} task, {task.name} is a {task.problem} one"
        )
    if split is not None and split not in task.splits:
        raise UserError(f"{task.name} has no split {split!r}: there are {', '.join(task.splits)}")
    check_labels(model, task, str(display_name(model_name)))
    return recipe, task


def _order(model: PreTrainedModel, task: Task, model_name: str) -> list[int] | None:
    if task.problem == "regression" or model_labels(model) == task.labels:
        return None
    order: list[int] = label_order(model_labels(model), task.labels, str(display_name(model_name))).tolist()
    return order


def _chosen_split(task: Task, split: str | None, *, has_submission: bool) -> str | None:
    if split is not None:
        return split
    if task.reported_split in task.splits:
        return task.reported_split
    return None if has_submission else "train"


def _write_submissions(task: Task, run: Any, folder: Path) -> list[Path]:  # noqa: ANN401
    glue = glue_task_name(task.name)
    splits = [
        name
        for name, rows in task.splits.items()
        if all(isinstance(row, TextExample) and row.label is None for row in rows)
    ]
    if glue is None or not splits:
        raise UserError(
            f"--submission: {task.name} has no unlabelled split of the GLUE benchmark (test.tsv); there are "
            f"{', '.join(task.splits)}"
        )
    written = []
    for name in splits:
        ids = [row.id for row in task.splits[name] if isinstance(row, TextExample)]
        written.append(write_submission(glue, name, ids, run(name).values, folder))
        logger.info("%s: %s", name, written[-1])
    return written


def _notes(task: Task, results: dict[str, Predictions], max_length: int) -> list[str]:
    notes = []
    for name, result in results.items():
        if result.cut:
            notes.append(
                f"{name}: {result.cut:,} of {len(result.values):,} texts were cut at {max_length} tokens"
            )
        if not result.metrics:
            notes.append(f"{name}: no labels, so there are predictions alone")
    return notes


def _write(
    folder: Path, record: dict[str, Any], task: Task, results: dict[str, Predictions], *, overwrite: bool
) -> dict[str, Any]:
    result_file = RunDirectory(folder).result
    if result_file.exists() and not overwrite:
        raise UserError(f"{folder} holds a result.json: give --overwrite to replace it, or another --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps(_line(name, example, value), ensure_ascii=False)
            for name, result in results.items()
            for example, value in zip(task.splits[name], result.values, strict=True)
        ]
        write_atomically(folder / PREDICTIONS_FILE, "".join(f"{line}\n" for line in lines))
        return write_result(result_file, record)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error})") from error


def _line(split: str, example: TextExample | TokenExample, value: Any) -> dict[str, Any]:  # noqa: ANN401
    if isinstance(example, TokenExample):
        return {"split": split, "tokens": example.words, "tags": example.tags, "predicted": value}
    pair = {"pair": example.pair} if example.pair is not None else {}
    return {"split": split, "text": example.text, **pair, "label": example.label, "predicted": value}
