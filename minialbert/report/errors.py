"""Where a model is wrong: figures by class or type, which class is taken for which, and its texts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minialbert_runtime.reading import digits, marked, parts

from minialbert.errors import UserError
from minialbert.report.blocks import Section, Text
from minialbert.report.sections import Run
from minialbert.report.tables import Marked, Table
from minialbert.runs.packed import is_run_file, read_run_file
from minialbert.runs.records import PREDICTIONS_FILE

_MOST_CLASSES, _MOST_WRONG, _MOST_RIGHT = 25, 150, 30  # of a page
_MOST_RUNS = 6
_LOOKS = {"missed": 1, "invented": 3, "wrong boundary": 4, "wrong type": 5, "right": 2}
Entities = Sequence[Mapping[str, Any]]


def error_section(runs: Sequence[Run]) -> Section:
    """Return what tuned models do right and wrong, by the records of tunings and evaluations and texts beside them."""
    left = (
        f"These are {_MOST_RUNS} of {len(runs)} runs, evaluations first. For other ones, report fewer runs."
    )
    shown = []
    for run in runs[:_MOST_RUNS]:
        split = str(run.record.get("split"))
        figures = run.part("metrics").get(split) or {}
        blocks = (*_by_label(figures), *_confusion(figures.get("confusion") or {}), *_texts(run, split))
        if blocks:
            shown.append(Section(f"{run.name}: {run.record.get('task')}, {split}", blocks))
    return Section("Errors", (Text(left),) if len(runs) > _MOST_RUNS else (), tuple(shown))


def _by_label(figures: Mapping[str, Any]) -> Iterator[Table]:
    for key, title, counted in (("per_type", "entity type", "entities"), ("per_class", "class", "rows")):
        found = sorted((figures.get(key) or {}).items(), key=lambda item: -item[1]["support"])
        rows = [
            (name, _bar(one["f1"]), f"{one['precision']:.1%}", f"{one['recall']:.1%}", f"{one['support']:,}")
            for name, one in found[:_MOST_CLASSES]
        ]
        if rows:
            columns = (title, "F1", "precision", "recall", counted)
            yield Table(f"F1 by {title}", columns, tuple(rows), _left_out(len(found)))


def _bar(share: float, count: str = "") -> Marked:
    return Marked(((f"{count} ({share:.0%})" if count else f"{share:.1%}", None, ""),), share)


def _left_out(count: int) -> tuple[str, ...]:
    return (
        (f"The {_MOST_CLASSES} most frequent of {count:,}; the record has all.",)
        if count > _MOST_CLASSES
        else ()
    )


def _confusion(counts: Mapping[str, Mapping[str, int]]) -> Iterator[Table]:
    totals = Counter({gold: sum(row.values()) for gold, row in counts.items()})
    golds = [gold for gold, _ in totals.most_common(_MOST_CLASSES)]
    names = [*golds, *sorted({name for row in counts.values() for name in row} - set(golds))][:_MOST_CLASSES]
    rows = [
        (gold, *(_bar(counts[gold][one] / totals[gold], f"{counts[gold][one]:,}") if one in counts[gold] else None
                 for one in names))
        for gold in golds
    ]  # fmt: skip
    if rows:
        told = "A row has the texts annotated as its class, and a column what was predicted for them."
        yield Table("Confusion matrix", ("annotated", *names), tuple(rows), (told, *_left_out(len(totals))))


def _texts(run: Run, split: str) -> Iterator[Table]:
    """Yield the predictions beside an evaluation, those first where the model is wrong and surest of it."""
    file = run.file.with_name(PREDICTIONS_FILE)
    if run.record["kind"] != "evaluation" or not is_run_file(file):
        return
    try:
        rows = [json.loads(line) for line in read_run_file(file).split("\n") if line]
        judged = [
            _entities(row) if "gold" in row else _label(row)
            for row in rows
            if row["split"] == split and row.get("gold", row.get("label")) is not None
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not a file of predictions ({type(error).__name__}: {error}): evaluate again"
        ) from error
    wrong = sorted((one for one in judged if one[0] != "right"), key=lambda one: -one[2])
    right = sorted((one for one in judged if one[0] == "right"), key=lambda one: one[2])
    shown = [*wrong[:_MOST_WRONG], *right[:_MOST_RIGHT]]
    kept = min(len(wrong), _MOST_WRONG)
    note = (
        f"{len(wrong):,} of {len(judged):,} texts have an error. The table shows {kept:,} of them, the most confident "
        f"first, then {len(shown) - kept:,} correct texts, the least confident first."
    )
    if shown:
        told = tuple((error, text, digits(sure)) for error, text, sure in shown)
        yield Table("Texts and errors", ("error", "text", "confidence"), told, (note,), page_only=True)


def _entities(row: Mapping[str, Any]) -> tuple[str, Marked, float]:
    """Return the errors of a text, the text with its entities, and how sure the model was of the errors."""
    own = set(map(id, row["gold"]))
    shown: list[tuple[str, int | None, str]] = []
    errors: dict[str, float] = {}  # each with the highest score
    least = 1.0
    for text, here in marked(row["text"], [*row["gold"], *row["entities"]]):
        if not here:
            shown.append((text, None, ""))
            continue
        gold, found = ([one for one in here if (id(one) in own) is side] for side in (True, False))
        error, scores = _error(gold, found), [one["score"] for one in here]
        key = "text" if error == "wrong boundary" else "label"
        tag = ", ".join(f"{one[key]} {digits(one['score'])}" for one in found or gold)
        if error == "right":
            least = min(least, *scores)
        else:
            told = ", ".join(one[key] for one in gold)
            tag = f"{error}: {tag}" + (f"; annotated: {told}" if found and gold else "")
            errors[error] = max(errors.get(error, 0.0), *scores)
        shown.append((text, _LOOKS[error], tag))
    return ", ".join(errors) or "right", Marked(tuple(shown)), max(errors.values(), default=least)


def _error(gold: Entities, found: Entities) -> str:
    """Return what became of annotated entities and found ones that overlap."""
    if not (gold and found):
        return "missed" if gold else "invented"
    places = [[(one["start"], one["end"]) for one in side] for side in (gold, found)]
    labels = [[one["label"] for one in side] for side in (gold, found)]
    if places[0] == places[1]:
        return "right" if labels[0] == labels[1] else "wrong type"
    return "wrong boundary" if set(labels[0]) == set(labels[1]) else "wrong type"


def _label(row: Mapping[str, Any]) -> tuple[str, Marked, float]:
    """Return the same of a text with classes or a score."""
    gold, found, sure = row["label"], row["predicted"], row.get("score", 0.0)
    if isinstance(gold, str):
        error = "right" if gold == found else f"{gold} → {found}"
    elif isinstance(gold, list):
        errors = [f"missed: {name}" for name in gold if name not in found]
        error = "; ".join(errors + [f"invented: {name}" for name in found if name not in gold]) or "right"
    else:
        error, sure = f"{digits(gold)} → {digits(found)}" if gold != found else "right", abs(gold - found)
    *_, (text, _, _) = parts({name: row[name] for name in ("text", "pair") if name in row} | {"labels": []})
    return error, Marked(((text[1:], None, ""),)), sure
