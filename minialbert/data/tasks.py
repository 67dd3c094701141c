"""One door to labelled data: a GLUE task, tagged sentences, or a user's own table, by name."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from minialbert.data.columns import ROLES
from minialbert.data.examples import (
    Example,
    Task,
    TextExample,
    TokenExample,
    check_metric,
    counted_labels,
    first_rows,
    label_of,
)
from minialbert.data.glue import GLUE_TASKS, glue_task_name, load_glue
from minialbert.data.rows import LabelledData
from minialbert.data.splits import apart, shared_texts
from minialbert.data.tables import load_table
from minialbert.data.task_types import TASK_TYPES, task_options, task_type
from minialbert.errors import UserError, listed, quoted, shown
from minialbert.recipes.schema import TaskRecipe


def load_task(
    recipe: TaskRecipe,
    *,
    data: LabelledData | None = None,
    carve: bool = True,
    model_labels: Sequence[str] | None = None,
) -> Task:
    """Return the task that a recipe names.

    The data may be others than the recipe's, also rows in memory, see `load_table`; `carve` sets rows of train apart
    for validation where there is no such split. With the labels of a model to be scored no train split is needed.
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
            own = f"a name of your own with task.problem ({', '.join(TASK_TYPES)})"
            raise UserError(f"no task is called {quoted(name)}: expected one of {known}, or {own}")
        if data is None:
            raise UserError(f"task {name} has no data: give --data, a directory or file")
        how = recipe.model_dump(include={"labels", "label_separator", "overlaps", "format"})
        how |= {"columns": recipe.model_dump(include=set(ROLES)), "repair": recipe.iob}
        title = None if name in options else name
        task = load_table(data, kind.name, name=title, model_labels=model_labels, **how)
    if recipe.group is not None and all(row.group is None for rows in task.splits.values() for row in rows):
        raise UserError("task.group names a column of a table, and this data has none: leave it out")
    task = first_rows(task, recipe.max_train_rows)
    if recipe.metric is not None:
        check_metric(task.type, recipe.metric)
        task = replace(task, metric=recipe.metric)
    task = _with_positive(task, recipe.positive)
    if carve and "validation" not in task.splits and "train" in task.splits:
        task = _carve_validation(task, recipe.validation_fraction, recipe.group)
    if glue is None:
        texts = {split: [_text_of(row) for row in rows] for split, rows in task.splits.items()}
        task = replace(task, notes=(*task.notes, *shared_texts(texts)))
    return task


# Names by which one of two classes is the one that is looked for.
_POSITIVE = ("1", "true", "yes", "positive", "pos", "present", "case", "cases")


def _with_positive(task: Task, named: str | None) -> Task:
    """Return a task that says which of its two classes `f1` is about.

    That is the one named; else, but for GLUE, where it is class 1, the one of a name in `_POSITIVE` where the other has
    none of them; else the rarer one of train; else the last.
    """
    is_one_of_two = named in task.labels and len(task.labels) == 2
    if named is not None and not (is_one_of_two and task.type.class_weights):
        known = listed(map(quoted, task.labels))
        advice = f"expected one of two classes, and {task.name} has {known}"
        raise UserError(f"task.positive {quoted(named)}: {advice}")
    if len(task.labels) != 2 or task.type.label != "class" or (task.positive is not None and named is None):
        return task
    found = [label for label in task.labels if label.strip().lower() in _POSITIVE]
    counts = Counter(label_of(example) for example in task.splits.get("train", ()))
    rarer = min(reversed(task.labels), key=lambda label: counts[label])
    return replace(task, positive=named or (found[0] if len(found) == 1 else rarer))


def _carve_validation(task: Task, fraction: float, group: str | None) -> Task:
    """Part the training rows, so that each class (or type of entity) has its share in both parts, see `apart`.

    Rows of one group stay together, and rows of one text too, unless these are too few to part.
    """
    train = task.splits["train"]
    found = [counted_labels(row) for row in train]
    texts = [row.group or _text_of(row) for row in train]
    rows = [row.group or index for index, row in enumerate(train)]
    chosen = apart(found, texts, fraction) or apart(found, rows, fraction)
    if not chosen:
        few = f"{len(train)} training rows are too few to set some apart for validation"
        advice = "with rows of each class left to train on; give a validation file"
        raise UserError(f"{task.name}: {few}, {advice}")
    parts: dict[str, Sequence[Example]] = {
        **task.splits,
        "train": [row for index, row in enumerate(train) if index not in chosen],
        "validation": [row for index, row in enumerate(train) if index in chosen],
    }
    kinds = {kind for row in train for kind in counted_labels(row)}
    how = " by class" if kinds else ""
    grouped = any(row.group is not None for row in train)
    how += f"; rows of one {group or 'document'} stay together" if grouped else ""
    notes = [f"validation: {len(chosen):,} of the {len(train):,} training rows, set apart at random{how}"]
    if without := kinds.difference(*(counted_labels(row) for row in parts["validation"])):
        notes.append(f"validation: no row of {listed(map(quoted, sorted(without)))}")
    return replace(task, splits=parts, notes=(*task.notes, *notes))


def _text_of(row: Example) -> str:
    """Returns the text of a row, or both of a pair."""
    if isinstance(row, TokenExample):
        return row.text if row.text is not None else " ".join(row.words)
    return row.text if row.pair is None else f"{row.text}\n{row.pair}"


_SHOWN = 12  # labels whose counts a line has


def understood(task: Task) -> list[str]:
    """Return what was read, in lines to look at before anything is trained or scored.

    They are the rows of each split, the columns, the longest text, and the labels with their counts in each split.
    """
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in task.splits.items())
    length, unit = _longest(task)
    read = f"{shown(task.name)}: {sizes} rows; longest {length:,} {unit}"
    lines = [f"{read}; {task.columns}" if task.columns else read]
    if not task.type.has_classes:
        for name, split in task.splits.items():
            scores = [score for row in split if isinstance(score := label_of(row), float)]
            lines += [f"{name}: scores from {min(scores):g} to {max(scores):g}"] if scores else []
        return lines
    counts = _label_counts(task)
    labelled = [name for name, rows in task.splits.items() if any(label_of(row) is not None for row in rows)]
    order = sorted(counts, key=lambda label: -sum(counts[label].values()))
    told = (f"{name} {'/'.join(f'{counts[name].get(split, 0):,}' for split in labelled)}" for name in order)
    more = f" and {len(order) - _SHOWN:,} more" if len(order) > _SHOWN else ""
    what = {"token": "entities", "answer": "questions"}.get(task.type.label, "labels")
    taught = [label for label in order if "train" in counts[label]]
    if "train" in labelled and what != "questions" and len(taught) < (1 if task.type.tagging else 2):
        lines.append(f"train: nothing to tell apart: the {what} are {listed(taught)}")
    return [*lines, f"{what} ({'/'.join(labelled)}): {listed(islice(told, _SHOWN), 600)}{more}"]


def _longest(task: Task) -> tuple[int, str]:
    """Return the characters of the longest text or pair, or the words of the longest sentence."""
    texts = [row for split in task.splits.values() for row in split]
    if task.type.tagging:
        return max((len(row.words) for row in texts if isinstance(row, TokenExample)), default=0), "words"
    lengths = (len(row.text) + len(row.pair or "") for row in texts if isinstance(row, TextExample))
    return max(lengths, default=0), "characters"


def _label_counts(task: Task) -> dict[str, dict[str, int]]:
    """Return for each class or entity type how often each split has it, and rows of several classes without one."""
    counts: dict[str, Counter[str]] = {}
    for label in task.labels if task.type.label != "answer" else ():
        counts.setdefault(label[2:] if task.type.tagging else label, Counter())
    for name, split in task.splits.items():
        for row in split:
            found = counted_labels(row)
            if task.type.label == "classes" and found == () and label_of(row) is not None:
                found = ("(none)",)
            for label in found:
                counts.setdefault(label, Counter())[name] += 1
    counts.pop("", None)
    return {label: dict(count) for label, count in counts.items()}


def task_summary(task: Task) -> dict[str, Any]:
    """Return what a record says about a task: rows and labels per split, columns, the longest text, and notes."""
    length, unit = _longest(task)
    return {
        "rows": {name: len(rows) for name, rows in task.splits.items()},
        "labels": list(task.labels),
        "label_counts": _label_counts(task),
        "columns": task.columns,
        f"longest_{unit}": length,
        "notes": list(task.notes),
    }


def task_identity(task: Task) -> dict[str, Any]:
    """Return what a run keeps of labelled data to know them again: labels, splits, and a fingerprint of each split.

    It is the SHA-256 of texts and labels as they were read, whatever files they came from; a million short rows take
    less than a second.
    """
    said: dict[str, Any] = {"labels": list(task.labels), "splits": list(task.splits)}
    for split, rows in task.splits.items():
        digest = hashlib.sha256()
        for row in rows:
            texts = [row.words] if isinstance(row, TokenExample) else [row.text, row.pair]
            digest.update(repr([*texts, label_of(row)]).encode())
        said |= {f"{split} rows": len(rows), split: digest.hexdigest()}
    return said
