"""One door to labelled data: a GLUE task, tagged sentences, or a user's own table, by name."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from minialbert.data.examples import Example, Task, TokenExample, check_metric, first_rows
from minialbert.data.glue import GLUE_TASKS, glue_task_name, load_glue
from minialbert.data.hub import PREFIX
from minialbert.data.ner import load_ner
from minialbert.data.rows import LabelledData
from minialbert.data.table_files import EXTENSIONS
from minialbert.data.tables import ROLES, load_table
from minialbert.data.task_types import TASK_TYPES, task_options, task_type
from minialbert.errors import UserError, local_path, quoted
from minialbert.recipes.schema import TaskRecipe


def load_task(recipe: TaskRecipe, *, data: LabelledData | None = None, carve: bool = True) -> Task:
    """Return the task that a recipe names.

    The data may be others than the recipe's, also rows in memory, see `load_table`; `carve` sets rows of train apart
    for validation where there is no such split.
    """
    name, data = recipe.name, recipe.data if data is None else data
    options = task_options()
    known = ", ".join([*GLUE_TASKS, *options])
    if name is None:
        raise UserError(f"no task: give --task, one of {known}, or task.problem")
    glue = glue_task_name(name) if recipe.problem is None else None
    if glue is not None:
        task = load_glue(glue, data)
    else:
        kind = task_type(recipe.problem) if recipe.problem else options.get(name)
        if kind is None:
            raise UserError(
                f"no task is called {quoted(name)}: expected one of {known}, or a name of your own with task.problem "
                f"({', '.join(TASK_TYPES)})"
            )
        if data is None:
            raise UserError(f"task {name} has no data: give --data, a directory or file")
        own_name = None if name in options else name
        # A name of one's own is for tables alone.
        if own_name is None and kind.tagging and isinstance(data, str | Path) and not _is_table(data):
            task = load_ner(data, name=own_name, repair=recipe.iob)
        else:
            task = load_table(
                data,
                kind.name,
                name=own_name,
                columns=recipe.model_dump(include=set(ROLES)),
                labels=recipe.labels,
                label_separator=recipe.label_separator,
                repair=recipe.iob,
            )
    task = first_rows(task, recipe.max_train_rows)
    if recipe.metric is not None:
        check_metric(task.type, recipe.metric)
        task = replace(task, metric=recipe.metric)
    if carve and "validation" not in task.splits:
        task = _carve_validation(task, recipe.validation_fraction)
    return task


def _is_table(data: str | Path) -> bool:
    """Tell whether a path holds csv, jsonl or parquet, or is on the hub, rather than two-column tagged lines."""
    if str(data).startswith(PREFIX):
        return True
    path = local_path(data)
    tables = {extension for extension in EXTENSIONS if extension != ".tsv"}
    files = path.iterdir() if path.is_dir() else [path]
    return any(file.suffix.lower() in tables for file in files)


def _carve_validation(task: Task, fraction: float) -> Task:
    """Part the training rows; which are chosen depends on their number alone, so all seeds share them."""
    train = task.splits["train"]
    count = max(1, round(fraction * len(train)))
    if count >= len(train):
        raise UserError(
            f"{task.name}: {len(train)} training rows are too few to set some apart for validation; give a "
            "validation file"
        )
    chosen = set(random.Random(0).sample(range(len(train)), count))
    parts: dict[str, Sequence[Example]] = {
        **task.splits,
        "train": [row for index, row in enumerate(train) if index not in chosen],
        "validation": [row for index, row in enumerate(train) if index in chosen],
    }
    note = f"validation: {count:,} of the {len(train):,} training rows, set apart at random"
    return replace(task, splits=parts, notes=(*task.notes, note))


def task_summary(task: Task) -> dict[str, Any]:
    """Return what a record says about a task: rows per split and notes."""
    return {
        "rows": {name: len(rows) for name, rows in task.splits.items()},
        "labels": list(task.labels),
        "notes": list(task.notes),
    }


def task_identity(task: Task) -> dict[str, Any]:
    """Return what a run keeps of labelled data to know them again: labels, splits, and a fingerprint of each split.

    It is the SHA-256 of texts and labels as they were read, whatever files they came from; a million short rows take
    about three seconds.
    """
    said: dict[str, Any] = {"labels": list(task.labels), "splits": list(task.splits)}
    for split, rows in task.splits.items():
        digest = hashlib.sha256()
        for row in rows:
            of_words = isinstance(row, TokenExample)
            facts = [
                getattr(row, name) for name in (("words", "tags") if of_words else ("text", "pair", "label"))
            ]
            digest.update(repr(facts).encode())
        said |= {f"{split} rows": len(rows), split: digest.hexdigest()}
    return said
