"""A teacher instead of gold labels: it labels plain texts; its answers stay on disk, and become rows to tune on."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from minialbert_runtime.answers import MAX_CHARACTERS, Logits, TextModel
from minialbert_runtime.folder import digest, is_exported
from minialbert_runtime.questions import QUESTIONS
from minialbert_runtime.windows import Text
from minialbert_runtime.words import WordRule

from minialbert.data.columns import ROLES
from minialbert.data.corpora import find_sources, read_documents
from minialbert.data.examples import Example, Task, TokenExample, counted_labels
from minialbert.data.rows import LabelledData
from minialbert.data.splits import shared_texts
from minialbert.data.tables import is_pair, read_pairs
from minialbert.data.task_inputs import Encoded
from minialbert.data.task_types import TaskType, task_options, task_type
from minialbert.data.tasks import load_task
from minialbert.data.text_streams import Asked, ReadStats
from minialbert.data.words import learn_words, running_text
from minialbert.errors import UserError, display_name, failing_as, listed, quoted
from minialbert.method.live import model_identity
from minialbert.recipes.schema import FinetuneRecipe, TaskRecipe, TaskTeacherRecipe
from minialbert.runs.files import to_json, write_json, writing
from minialbert.runs.progress import duration, progress_bar
from minialbert.runs.stopping import world_size
from minialbert.tasks.losses import label_order
from minialbert.tasks.models import load_tuned
from minialbert.tasks.predict import Predictor, load_predictor

logger = logging.getLogger(__name__)

_SHARD = 128  # texts that are labelled, and written, together
_LEAST = 1e-6  # probability
_FEWEST = 5  # texts without gold rows
_FEWEST_WORDS = 3  # of a text that is altered
_ASKED = Asked(text="teacher.text_field", documents="teacher.documents=", limit="")

_Answer = dict[str, Any]
_Soft = dict[Text, tuple[Sequence[Sequence[int]], Logits]]


@dataclass(frozen=True)
class Taught:
    """What is learnt where a teacher labels texts.

    `words` is the rule that cuts words, with a line on it, None where rows teach it. `soft` has the teacher's logits by
    text, a tagger's with the offsets of its words; nothing where it gives no probabilities. In the splits of
    `agreement` the labels are the teacher's. `identity` tells teacher and texts from others.
    """

    recipe: FinetuneRecipe
    task: Task
    words: tuple[WordRule, str] | None
    soft: _Soft
    agreement: tuple[str, ...]
    identity: dict[str, Any]


def teach(
    recipe: FinetuneRecipe,
    teacher: Any,
    unlabelled: Iterable[Any],
    gold_rows: LabelledData | None,
    folder: Path,
    *,
    progress: bool,
    max_hours: float | None,
) -> Taught:
    """Return rows that a teacher labels, behind gold rows if there are some; its answers are kept in a folder.

    The teacher is a place, a `TextModel`, or any callable from texts to what `_plain` reads. Raises UserError if it
    does not fit recipe and gold rows, or takes more hours than allowed.
    """
    name = str(display_name(recipe.teacher.model))
    model, identity = _load(teacher, recipe.teacher, name)
    own = model if isinstance(model, TextModel) else None
    kind = _kind(recipe.task, own, name)
    names = tuple(recipe.teacher.labels or ()) if own is None else own.labels if kind.has_classes else ()
    if kind.label != "classes" and len(names) == 1:
        raise UserError(f"teacher {name} has one class, {quoted(names[0])}: it tells nothing apart")
    named = {"name": recipe.task.name or kind.option or kind.name}
    recipe = recipe.model_copy(update={"task": recipe.task.model_copy(update=named)})
    gold = _gold_task(recipe, gold_rows, names, name)
    for key, least in (("gold_weight", 1), ("altered", 0)):
        if gold is None and getattr(recipe.teacher, key) > least:
            raise UserError(f"teacher.{key} is about gold rows, and there are none: give them as --data")
    theirs = False if kind.tagging else None if own is None else own._pairs
    pairs = _in_pairs(unlabelled, recipe.task, gold, theirs, name)
    texts, note = _read_texts(unlabelled, recipe, gold, pairs=pairs)
    labels = gold.labels if gold is not None else tuple(recipe.task.labels or names)
    order = label_order(names, labels, name).tolist() if names and labels else []
    gold_train = list(gold.splits.get("train", ())) if gold is not None else []
    if gold is None and len(texts) < _FEWEST:
        raise UserError(
            f"{len(texts)} texts to label, of which a tenth is to be held out: expected {_FEWEST} at least; give more, "
            "or gold rows beside them (--data)"
        )
    if gold is None and recipe.task.max_train_rows:
        texts = texts[: recipe.task.max_train_rows]
        note += f"; the first {len(texts):,} are used (task.max_train_rows)"
    known = dict.fromkeys(map(_text_of, gold_train))
    fresh = [text for text in texts if text not in known]
    note += f"; {len(texts) - len(fresh):,} more are gold rows" if known else ""
    asked = [*known, *fresh]
    texts_hash = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    identity = {"name": name, **identity, "labels": list(names), "problem": kind.name, "texts": texts_hash}
    said = _answers(asked, own.predict if own else model, kind, folder, identity, progress, max_hours)
    answers, column = dict(zip(asked, said, strict=True)), "spans" if kind.tagging else "label"
    given = [text for text in fresh if answers[text][column] is not None]
    rows = [_columns_of(text) | {column: answers[text][column]} for text in given]
    if not rows:
        beside = "beside the gold rows " * bool(known)
        raise UserError(f"teacher {name} gave none of the {len(fresh):,} texts {beside}a label")
    plain = dict.fromkeys((*ROLES, "format", "data", "max_train_rows"))
    read = recipe.task.model_copy(update=plain | {"problem": kind.name, "labels": list(labels) or None})
    carve = gold is None or "validation" not in gold.splits
    task = load_task(read, data={"train": rows}, carve=carve)
    used = {text: answers[text] for text in (*known, *given)}
    soft = _soft(used, kind, names or task.labels, order, name)
    what, keys = ("probabilities", {"logits", "scores"}) if kind.has_classes else ("scores", {"label"})
    note += f"; {len(fresh) - len(rows):,} got no label; {'with' if soft else 'without'} {what}"
    bare = sum(not any(one.get(key) is not None for key in keys) for one in used.values())
    if 0 < bare < len(used):
        note += f", which {bare:,} of {len(used):,} answers lack"
    notes = [f"labels: those of the teacher {name}; {note}"]
    notes += ["validation: no gold labels; figures are agreement with the teacher"] if carve else []
    task = replace(task, notes=(*notes, *task.notes))
    words = (own._words, "words: running text is cut as the teacher cuts it") if own is not None else None
    if gold is not None:
        task = _mixed(gold, gold_train * recipe.teacher.gold_weight, task)
        words = learn_words(gold_train) if gold_train and kind.tagging else words
    return Taught(recipe, task, words, soft, ("validation",) * carve, identity)


def _kind(task: TaskRecipe, own: TextModel | None, name: str) -> TaskType:
    """Return what kind of labels a teacher gives: its own, or of a callable that of the task."""
    option = task_options().get(task.name or "")
    asked = task.problem or (option.name if option else None)
    if own is not None and asked not in (None, own.problem):
        raise UserError(f"teacher {name} was tuned for a {own.problem} task, this is a {asked} task")
    if own is None and asked is None:
        raise UserError(f"no task: give --task, one of {', '.join(task_options())}, or task.problem")
    kind = task_type(own.problem if own is not None else asked or "")
    if kind.name == QUESTIONS:
        raise UserError(
            f"teacher {name} answers questions, and only classes, scores and entities can be learned from it"
        )
    return kind


def _load(teacher: Any, settings: TaskTeacherRecipe, name: str) -> tuple[Any, dict[str, Any]]:
    """Return what labels texts, and what tells it from others."""
    model, identity = teacher, dict[str, Any]()
    if isinstance(teacher, str) and is_exported(teacher):
        model = load_predictor(teacher)
    elif isinstance(teacher, str):
        tuned, tokenizer, inputs = load_tuned(teacher, revision=settings.revision)
        if len(settings.labels or ()) == tuned.config.num_labels:
            tuned.config.id2label = dict(enumerate(settings.labels or ()))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = Predictor(tuned.to(device), tokenizer, inputs, precision="auto")
    if isinstance(model, TextModel):
        if settings.labels and tuple(settings.labels) != model.labels:
            raise UserError(f"teacher.labels: {name} has {listed(model.labels)}; give a name for each")
        model = copy(model)  # a caller's own stays as it is
        model.keeps_logits = True
        model.max_characters = sys.maxsize  # gold texts have no limit without a teacher, either
    if isinstance(model, Predictor):
        identity = dict(model_identity(model.model.name_or_path, model.model.config))
    elif exported := getattr(model, "folder", None):
        identity = {"weights": digest(exported.path)}
    return model, identity


def _in_pairs(
    unlabelled: Iterable[Any], task: TaskRecipe, gold: Task | None, known: bool | None, teacher: str
) -> bool:
    """Return whether pairs of texts are labelled: gold rows tell, the teacher if it is known, tuples, `task.pair`."""
    tuples = sum(isinstance(one, tuple) and is_pair(one) for one in unlabelled) > 1  # one may hold two texts
    pairs = gold.pairs if gold is not None else known
    if gold is not None and pairs is not None and known not in (None, pairs):
        theirs, ours = ("single texts", "pairs of texts")[:: 1 if pairs else -1]
        raise UserError(f"teacher {teacher} was tuned on {theirs}, and the gold rows are {ours}")
    if gold is None and pairs is None:
        pairs = tuples or task.pair is not None
    if tuples and not pairs:
        raise UserError(f"teacher {teacher} labels single texts here, and unlabelled has pairs of texts")
    return bool(pairs)


def _read_texts(
    unlabelled: Iterable[Any], recipe: FinetuneRecipe, gold: Task | None, *, pairs: bool
) -> tuple[list[Text], str]:
    """Return the texts, each once, altered copies of gold ones behind them, and what was read and left out."""
    stats, settings, found, told = ReadStats(), recipe.teacher, list[Text](), list[str]()
    field, separator = settings.text_field, settings.documents
    if pairs:
        columns = {"text": recipe.task.text, "pair": recipe.task.pair}
        read = list(read_pairs(unlabelled, columns, told))
        found += (pair for pair in read if pair is not None)
        stats.skipped = len(read) - len(found)
    else:
        found += (
            document.text
            for source in (find_sources(unlabelled, field, asked=_ASKED) if unlabelled else ())
            for document in read_documents(source, separator=separator, text_field=field, stats=stats)
        )
    short = [text for text in found if max(map(len, _parts(text))) <= MAX_CHARACTERS]
    texts = list(dict.fromkeys(short))
    counts = (
        f"{stats.skipped:,} empty, {len(short) - len(texts):,} repeated, {len(found) - len(short):,} too long"
    )
    what = "pairs of texts" if pairs else f"texts (in .txt one a {separator})"
    note = "; ".join((f"{len(texts):,} {what}, left out {counts}", *told))
    if settings.altered and gold is not None:
        by_split = {name: list(map(_text_of, rows)) for name, rows in gold.splits.items()}
        own = by_split.pop("train", [])
        copies = altered_texts(own, settings.altered, chain(*by_split.values()))
        few = sum(all(len(part.split()) < _FEWEST_WORDS for part in _parts(text)) for text in own)
        note = f"{note}; " * bool(found) + f"{len(copies):,} altered gold texts"
        note += f", none of {few:,} with fewer than three words between spaces" if few else ""
        if not copies and not texts:
            raise UserError(f"teacher.altered: {note}; leave it out, or give --unlabelled texts")
        texts = list(dict.fromkeys((*texts, *copies)))
    if not texts:
        raise UserError("there is no unlabelled text: all are empty, or too long")
    return texts, note


def altered_texts(texts: Sequence[Text], copies: int, others: Iterable[Text] = ()) -> list[Text]:
    """Return copies of texts in which a word is left out, put in, exchanged, or turned with the one before it.

    It is neither the first nor the last word, so texts of two words have no copies; words stand between white space,
    which becomes one space, and those that come in are drawn from all texts. Of a pair one text is altered, which is
    drawn. The same texts give the same copies. But for case and punctuation, none is one of the texts, of `others` or
    of the copies before it.
    """
    draw, known = random.Random(0), {_letters(text) for text in (*texts, *others)}
    cut = [[part.split() for part in _parts(text)] for text in texts]
    words, made = [word for parts in cut for own in parts for word in own[1:-1]], list[Text]()
    for text, parts in ((text, parts) for text, parts in zip(texts, cut, strict=True) for _ in range(copies)):
        side = draw.randrange(len(parts)) if len(parts) > 1 else 0
        if len(parts[side]) < _FEWEST_WORDS:
            continue
        new, at, way = list(parts[side]), draw.randrange(1, len(parts[side]) - 1), draw.randrange(4)
        if way == 0:
            del new[at]
        elif way == 1:
            new.insert(at, draw.choice(words))
        elif way == 2:
            new[at] = draw.choice(words)
        else:
            new[at - 1 : at + 1] = new[at], new[at - 1]
        one, *other = (" ".join(new) if at == side else part for at, part in enumerate(_parts(text)))
        altered = (one, other[0]) if other else one
        if (letters := _letters(altered)) not in known:
            known.add(letters)
            made.append(altered)
    return made


def _parts(text: Text) -> Sequence[str]:
    """Return the texts of a pair, or the one text."""
    return (text,) if isinstance(text, str) else text


def _columns_of(text: Text) -> dict[str, Any]:
    """Return a text or pair as the cells of a row."""
    return {"text": text} if isinstance(text, str) else {"sentence1": text[0], "sentence2": text[1]}


def _letters(text: Text) -> tuple[str, ...]:
    return tuple("".join(filter(str.isalnum, part.casefold())) for part in _parts(text))


def _gold_task(
    recipe: FinetuneRecipe, data: LabelledData | None, names: Sequence[str], teacher: str
) -> Task | None:
    """Return the gold rows, None where there are none; refuse those with labels that the teacher does not give."""
    if data is None and recipe.task.data is None:
        return None
    gold = load_task(recipe.task, data=data, model_labels=names or None)
    known = {label[2:] if gold.type.tagging else label for label in gold.labels} - {""}
    if unknown := sorted({one for rows in gold.splits.values() for one in _labels_of(rows)} - known):
        raise UserError(
            f"gold rows have {listed(map(quoted, unknown))}, which teacher {teacher} does not label (it has "
            f"{listed(map(quoted, sorted(known)))}); if only names differ, give the teacher's by id as teacher.labels"
        )
    return gold


def _mixed(gold: Task, gold_train: list[Example], task: Task) -> Task:
    """Return gold rows with the teacher's behind them."""
    train = [*gold_train, *task.splits["train"]]
    splits = {**task.splits, **gold.splits, "train": train}
    notes = [f"train: {len(gold_train):,} gold rows and {len(train) - len(gold_train):,} of the teacher"]
    if gold_train and (only := sorted(_labels_of(train) - _labels_of(gold_train))):
        notes.append(f"train: the teacher gives {listed(map(quoted, only))}, which no gold row has")
    notes += shared_texts(
        {name: ["\n".join(_parts(_text_of(row))) for row in rows] for name, rows in splits.items()}
    )
    return replace(gold, splits=splits, notes=(*task.notes, *notes, *gold.notes))


def _answers(
    texts: Sequence[Text],
    answer: Callable[[Sequence[Text]], Iterable[Any]],
    kind: TaskType,
    folder: Path,
    identity: Mapping[str, Any],
    progress: bool,
    max_hours: float | None,
) -> list[_Answer]:
    """Return the teacher's answers: those from before are read from the folder, others are added as they come."""
    file, manifest, name = folder / "labels.jsonl", folder / "manifest.json", identity["name"]
    if manifest.is_file() and manifest.read_text(encoding="utf-8") != to_json(identity) + "\n":
        raise UserError(f"{folder} has labels of another teacher or other texts; --overwrite begins anew")
    answers, size = _kept(file, texts)
    first, begun, left = len(answers), time.monotonic(), len(texts) - len(answers)
    characters = sum(len(part) for text in texts[first:] for part in _parts(text))
    if left and world_size() > 1:
        raise UserError("texts are labelled in one process: begin without torchrun, then go on with --resume")
    logger.info(f"teacher {name}: {left:,} of {len(texts):,} texts to label, {characters:,} characters")
    with progress_bar("labelling", shown=progress) as bar:
        shown = bar.add_task("labelling", total=len(texts), completed=first)
        for begin in range(first, len(texts), _SHARD):
            shard = texts[begin : begin + _SHARD]
            said = "".join(_lines(shard, answer(shard), kind, name)).encode()
            with writing(file):
                if not manifest.is_file():
                    write_json(manifest, identity)
                with file.open("ab") as opened:
                    opened.truncate(size)
                    size += opened.write(said)
            bar.update(shown, completed=begin + len(shard))
            if begin == first and len(shard) < left:
                seconds = (time.monotonic() - begun) / len(shard) * (left - len(shard))
                logger.info("teacher %s: about %s for the other texts", name, duration(seconds))
                if max_hours is not None and seconds > 3600 * max_hours:
                    raise UserError(
                        f"teacher {name} needs {duration(seconds)}, more than {max_hours:g} hours: give fewer texts, "
                        "or go on with --yes --resume"
                    )
    logger.info("teacher %s: its labels are in %s, and --resume goes on with them", name, folder)
    return _kept(file, texts)[0]


def _lines(texts: Sequence[Text], given: Any, kind: TaskType, teacher: str) -> list[str]:
    """Return a line for each text with the teacher's answer; refuse answers that are none, and name the first."""
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise UserError(
            f"teacher {teacher}: expected a list with an answer for each text, found {quoted(given)}"
        )
    said, lines = list(given), list[str]()
    if len(said) != len(texts):
        raise UserError(f"teacher {teacher}: expected an answer a text, {len(texts)}, found {len(said)}")
    for text, one in zip(texts, said, strict=True):
        try:  # numbers may be numpy's
            line = json.dumps(_columns_of(text) | _plain(one, kind), default=lambda value: value.tolist())
        except (AttributeError, TypeError, ValueError) as error:
            expected = "spans" if kind.tagging else "a label, a number, or probabilities from 0 to 1 by label"
            raise UserError(
                f"teacher {teacher}: expected {expected} of {listed(map(quoted, _parts(text)))}, found {quoted(one)}"
            ) from error
        lines.append(line + "\n")
    return lines


def _kept(file: Path, texts: Sequence[Text]) -> tuple[list[_Answer], int]:
    """Return the answers that a file holds, whole shards of them, and how many bytes these take."""
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    whole = len(lines) - (bool(lines) and not lines[-1].endswith(b"\n"))  # killed while it was written
    whole -= 0 if whole == len(texts) else whole % _SHARD
    with failing_as(f"{file} is damaged", ValueError, "--overwrite replaces the run"):
        return [json.loads(line) for line in lines[:whole]], sum(map(len, lines[:whole]))


def _plain(given: Any, kind: TaskType) -> _Answer:
    """Return an answer as `spans`, or `label` with `scores`; None instead of them for a text that gets no label.

    It is what `predict` gives, or the spans, label, labels or score alone, or probabilities by label.
    """
    said = given if isinstance(given, Mapping) else {"spans" if kind.tagging else "label": given}
    if kind.tagging:
        plain = {"spans": said.get("entities", said.get("spans"))}
        logits = {"words": said["words"], "logits": said["logits"].round(3)} if "logits" in said else {}
        return plain | logits
    scores = said.get("scores", {} if said.keys() & {"label", "labels", "score"} else said)
    label = said.get("labels", said.get("label", said.get("score")))
    if kind.label != "classes" and isinstance(label, Iterable) and not isinstance(label, str):
        raise ValueError("a text has one label")
    if not all(0 <= float(chance) <= 1 for chance in scores.values()):
        raise ValueError("probabilities lie between 0 and 1")
    if scores and not said.keys() & {"label", "labels"}:
        over = [one for one, chance in scores.items() if chance > 0.5]
        label = over if kind.label == "classes" else max(scores, key=lambda one: scores[one])
    if not kind.has_classes and label is not None and not math.isfinite(label := float(label)):
        raise ValueError("a score is finite")
    return {"label": label} | ({"scores": scores} if scores else {})


def _soft(
    answers: Mapping[Text, _Answer], kind: TaskType, labels: Sequence[str], order: list[int], teacher: str
) -> _Soft:
    """Return logits by text, in the task's order of labels; nothing where an answer has no probabilities."""
    found: _Soft = {}
    for text, answer in answers.items():
        if "logits" in answer:
            logits = np.array(answer["logits"], np.float16).reshape(-1, len(labels))
        elif not kind.has_classes and answer["label"] is not None:
            logits = np.array([answer["label"]])
        elif answer.get("scores"):
            if answer["scores"].keys() != {*labels}:
                said = f"{listed(answer['scores'])}, expected {listed(labels)}"
                raise UserError(f"teacher {teacher} gives probabilities of {said}")
            chances = np.array([answer["scores"][label] for label in labels]).clip(_LEAST, 1 - _LEAST)
            logits = np.log(chances) - (np.log1p(-chances) if kind.label == "classes" else 0)
        else:
            return {}
        kept = np.float16 if kind.has_classes else np.float32  # scores have any size
        found[text] = answer.get("words", ()), (logits[..., order] if order else logits).astype(kept)
    return found


def add_soft_labels(encoded: Encoded, examples: Sequence[Example], task: Task, soft: _Soft) -> None:
    """Give each input the teacher's logits; those of a tagger stand at the pieces of words, with zeros elsewhere.

    A word has those of the teacher's word that it begins in. Where none of the teacher's words begins, no entity does:
    what the teacher gives B-TYPE there is I-TYPE's.
    """
    for at, (row, owner) in enumerate(zip(encoded.rows, encoded.owners, strict=True)):
        example = examples[owner]
        theirs, logits = soft[_text_of(example)]
        if isinstance(example, TokenExample):
            offsets, words = running_text(example)[1], encoded.windows[at].words
            held = [piece for piece, word in enumerate(words) if word >= 0]
            starts = [offsets[words[piece]][0] for piece in held]
            places = [bisect_right(theirs, start, key=itemgetter(0)) - 1 for start in starts]
            begins = np.isin(held, encoded.windows[at].first_pieces[0])
            begins &= np.array([theirs[place][0] for place in places]) == starts
            chances = logits[places].astype(np.float32)
            chances -= np.logaddexp.reduce(chances, axis=-1, keepdims=True)
            for label in range(len(task.labels)):
                inside = "I" + task.labels[label][1:]
                if task.labels[label].startswith("B-") and inside in task.labels:
                    moved = chances[~begins, label], chances[~begins, task.labels.index(inside)]
                    chances[~begins, task.labels.index(inside)] = np.logaddexp(*moved)
                    chances[~begins, label] = np.log(_LEAST)
            logits = np.zeros((len(words), len(task.labels)), np.float16)
            logits[held] = chances
        row["teacher_logits"] = logits


def _labels_of(rows: Iterable[Example]) -> set[str]:
    return {label for row in rows for label in counted_labels(row)}


def _text_of(row: Example) -> Text:
    if isinstance(row, TokenExample):
        return running_text(row)[0]
    return row.text if row.pair is None else (row.text, row.pair)
