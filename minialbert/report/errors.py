"""Where a model is wrong: figures by class or type, which is taken for which, labels to check, and its texts."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from minialbert_runtime.reading import digits, marked, parts

from minialbert.errors import failing_as
from minialbert.report.blocks import Section, Text
from minialbert.report.sections import Run
from minialbert.report.tables import Marked, Table
from minialbert.runs.packed import is_run_file, read_run_file
from minialbert.runs.records import PREDICTIONS_FILE

_MOST_CLASSES, _MOST_WRONG, _MOST_RIGHT = 25, 150, 30  # of a page
_MOST_RUNS, _MOST_PAIRS, _SURE = 6, 15, 0.9
_LOOKS = {"missed": 1, "invented": 3, "wrong boundary": 4, "wrong type": 5, "right": 2}
# What the numbers of a text mean.
_OF_ENTITIES = (
    "The number beside an entity, from 0 to 1, says how sure the model was of its answer there: of the entity that it "
    "found, or that there is none. The confidence of a text is the highest number of its errors, or the lowest if all "
    "is right."
)
_OF_CLASSES = "The confidence is the probability of the answer; of several labels that of the least sure one."
_OF_SCORES = "The first number was annotated, the second predicted."
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
        by_label = _by_label({**figures, **run.part("certificate")})
        blocks = (*by_label, *_confusion(figures.get("confusion") or {}), *_texts(run))
        if blocks:
            shown.append(Section(f"{run.name}: {run.record.get('task')}, {split}", blocks))
    return Section("Errors", (Text(left),) if len(runs) > _MOST_RUNS else (), tuple(shown))


def _by_label(figures: Mapping[str, Any]) -> Iterator[Table]:
    for key, title, counted in (
        ("per_type", "entity type", "entities"), ("per_class", "class", "rows"), ("per_length", "length", "entities")
    ):  # fmt: skip
        found = list((figures.get(key) or {}).items())
        if key != "per_length":  # which is in order of length
            found.sort(key=lambda item: -item[1]["support"])
        rows = []
        for name, one in found[:_MOST_CLASSES]:
            f1, *others = (_share(one, figure) for figure in ("f1", "precision", "recall"))
            rows.append((name, _bar(one["f1"], f1), *others, f"{one['support']:,}"))
        if rows:
            told = "In brackets: 95 % intervals, from {resamples:,} bootstrap samples of {units:,} {drawn}."
            notes = [told.format(**figures)] if "intervals" in found[0][1] else []
            columns = (title, "F1", "precision", "recall", counted)
            yield Table(f"F1 by {title}", columns, tuple(rows), (*_left_out(len(found)), *notes))


def _share(figures: Mapping[str, Any], name: str) -> str:
    ends = (figures.get("intervals") or {}).get(name)
    return f"{figures[name]:.1%}" + (f" ({ends[0]:.0%} to {ends[1]:.0%})" if ends else "")


def _bar(share: float, text: str) -> Marked:
    return Marked(((text, None, ""),), share)


def _count(count: int, total: int) -> Marked:
    return _bar(count / total, f"{count:,} ({count / total:.0%})")


def _left_out(count: int) -> tuple[str, ...]:
    told = f"The {_MOST_CLASSES} most frequent of {count:,}; the record has all."
    return (told,) if count > _MOST_CLASSES else ()


def _confusion(counts: Mapping[str, Mapping[str, int]]) -> Iterator[Table]:
    totals = Counter({gold: sum(row.values()) for gold, row in counts.items()})
    golds = [gold for gold, _ in totals.most_common(_MOST_CLASSES)]
    names = [*golds, *sorted({name for row in counts.values() for name in row} - set(golds))][:_MOST_CLASSES]
    rows = [
        (gold, *(_count(counts[gold][one], totals[gold]) if one in counts[gold] else None for one in names))
        for gold in golds
    ]  # fmt: skip
    if rows:
        told = "A row has the texts annotated as its class, and a column what was predicted for them."
        yield Table("Confusion matrix", ("annotated", *names), tuple(rows), (told, *_left_out(len(totals))))


def labelled_lines(run: Run) -> list[dict[str, Any]]:
    """Return the labelled lines of the predictions beside an evaluation, of its reported split; else none."""
    file = run.file.with_name(PREDICTIONS_FILE)
    if run.record["kind"] != "evaluation" or not is_run_file(file):
        return []
    with readable(run):
        lines = [json.loads(line) for line in read_run_file(file).split("\n") if line]
        own = [line for line in lines if line["split"] == str(run.record.get("split"))]
        return [line for line in own if line.get("gold", line.get("label")) is not None]


def readable(run: Run) -> AbstractContextManager[None]:
    """Turn what goes wrong with lines that are no predictions into a UserError that names their file."""
    what = f"{run.file.with_name(PREDICTIONS_FILE)} is not a file of predictions"
    return failing_as(what, (ValueError, KeyError, TypeError, AttributeError), "evaluate again", named=True)


def _texts(run: Run) -> Iterator[Table]:
    """Yield the predictions beside an evaluation, those first where the model is wrong and surest of it."""
    rows = labelled_lines(run)
    with readable(run):
        judged = [_entities(row) if "gold" in row else _label(row) for row in rows]
        kinds = list(_kinds_of_errors(rows))
    yield from kinds
    wrong = sorted((one for one in judged if one[0] != "right"), key=lambda one: -one[2])
    right = sorted((one for one in judged if one[0] == "right"), key=lambda one: one[2])
    shown = [*wrong[:_MOST_WRONG], *right[:_MOST_RIGHT]]
    kept = min(len(wrong), _MOST_WRONG)
    scored = isinstance(rows[0].get("label"), float | int) if rows else False
    unit, first, last = (
        ("difference", "largest", "smallest") if scored else ("confidence", "surest", "least sure")
    )
    note = (
        f"{len(wrong):,} of {len(judged):,} texts have an error. The table shows {kept:,} of them, the {first} first, "
        f"then {len(shown) - kept:,} correct texts, the {last} first."
    )
    if shown:
        told = tuple((error, text, digits(sure)) for error, text, sure in shown)
        meaning = _OF_ENTITIES if "gold" in rows[0] else _OF_SCORES if scored else _OF_CLASSES
        yield Table("Texts and errors", ("error", "text", unit), told, (note, meaning), page_only=True)


def _kinds_of_errors(rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Yield what became of entities by type, what is taken for what, and annotations that the model doubts."""
    fates: dict[str, Counter[str]] = defaultdict(Counter)
    pairs: Counter[tuple[str, str]] = Counter()
    doubts: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        for text, gold, found in _parts(row):
            names = [[one["label"] for one in side] for side in (gold, found)]
            for name in dict.fromkeys(names[0] or names[1]) if "gold" in row else ():
                fates[name][_error(gold, found)] += 1
            pairs.update((one, other) for one in names[0] for other in names[1] if one != other)
            told = [", ".join(map(_named, side)) or "-" for side in (gold, found)]
            sure = max((one.get("score", row.get("score", 0.0)) for one in (*gold, *found)), default=0.0)
            if told[0] != told[1] and sure >= _SURE:
                doubts[text, told[0], told[1]].append(sure)
    if fates:
        kinds = ("right", *(kind for kind in _LOOKS if kind != "right"))
        table = [(name, *(f"{of[kind]:,}" for kind in kinds)) for name, of in sorted(fates.items())]
        yield Table("What became of entities", ("entity type", *kinds), tuple(table[:_MOST_CLASSES]))
    if pairs:
        common = [(*pair, f"{count:,}") for pair, count in pairs.most_common(_MOST_PAIRS)]
        yield Table("Most confused pairs", ("annotated", "predicted", "times"), tuple(common))
    if doubts:
        first = sorted(doubts.items(), key=lambda one: (-len(one[1]), -max(one[1])))[:_MOST_RIGHT]
        columns = ("text", "annotated", "predicted", "times", "confidence")
        shown = tuple((*what, str(len(scores)), digits(max(scores))) for what, scores in first)
        note = f"The model is at least {_SURE:.0%} sure of another answer. Some of these annotations may be wrong."
        yield Table("Annotations to check", columns, shown, (note,), page_only=True)


def _named(answer: Mapping[str, Any]) -> str:
    return f"{answer['text']} ({answer['label']})" if "text" in answer else str(answer["label"])


def _parts(row: Mapping[str, Any]) -> Iterator[tuple[str, Entities, Entities]]:
    """Yield a text in parts, each with what is annotated and what is found there; of classes the whole text."""
    if "gold" not in row:
        if isinstance(row["label"], str):
            yield row["text"], [{"label": row["label"]}], [{"label": row["predicted"]}]
        return
    own = set(map(id, row["gold"]))
    for text, here in marked(row["text"], [*row["gold"], *row["entities"]]):
        gold, found = ([one for one in here if (id(one) in own) is side] for side in (True, False))
        yield text, gold, found


def _entities(row: Mapping[str, Any]) -> tuple[str, Marked, float]:
    """Return the errors of a text, the text with its entities, and how sure the model was of the errors."""
    shown: list[tuple[str, int | None, str]] = []
    errors: dict[str, float] = {}  # each with the highest score
    least = 1.0
    for text, gold, found in _parts(row):
        if not (gold or found):
            shown.append((text, None, ""))
            continue
        error, scores = _error(gold, found), [one["score"] for one in (*gold, *found)]
        key = "text" if error == "wrong boundary" else "label"
        tag = ", ".join(f"{one[key]} {digits(one['score'])}" for one in found or gold)
        if gold and not found:
            tag = f"{', '.join(one['label'] for one in gold)} (none found: {digits(max(scores))})"
        if error == "right":
            least = min(least, *scores)
        else:
            told = ", ".join(one[key] for one in gold)
            tag = f"{error}: {tag}" if not (found and gold) else f"{error}: found {tag}; annotated: {told}"
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
