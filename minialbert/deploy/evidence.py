"""What was measured of one model: its own run's record, and what other records say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minialbert.data.task_types import TASK_TYPES
from minialbert.errors import UserError
from minialbert.method.configuration_minialbert import MiniAlbertConfig
from minialbert.runs.records import (
    Cell,
    Record,
    cell,
    find_records,
    group,
    in_percent,
    known_task,
    load_record,
    look_up,
    record_files,
)
from minialbert.tasks.models import TaskInputs

THIS_MODEL, ITS_TEACHER, ITS_SIBLINGS = "this model", "its teacher", "tuned alike"
# Of a task's hidden states nobody knows what they are good for; with these a checkpoint is first of all an encoder.
ENCODERS = ("MiniAlbertModel", "MiniAlbertForMaskedLM")
_DISTILLED = ("distillation", "demo")


@dataclass(frozen=True)
class ModelFacts:
    """What a card says about a model without any record."""

    name: str  # never a path
    architecture: str
    config: MiniAlbertConfig
    parameters: int  # all of them; shared tensors count once
    encoder_parameters: int  # those without the head
    adapter_parameters: int
    max_tokens: int
    mask_token: str | None = None
    labels: tuple[str, ...] = ()  # of its task head, in the order of their ids
    task: TaskInputs | None = None
    sentence_embeddings: bool = False  # whether sentence-transformers can load it

    @property
    def is_tuned(self) -> bool:
        """Whether it carries the head of a task."""
        return self.architecture not in ENCODERS


@dataclass(frozen=True)
class Result:
    """One measured figure: of what, by which task, kind of task, split and metric, and its value over seeds."""

    what: str
    task: str
    problem: str
    split: str
    metric: str
    value: Cell


@dataclass(frozen=True)
class Evidence:
    """The records about one model."""

    distillation: Mapping[str, Any] | None = None  # of it, or of the student that it was tuned from
    tuning: Record | None = None
    results: tuple[Result, ...] = ()
    used: tuple[Path, ...] = ()
    passed_over: int = 0  # how many of the records that were named are about other models


def gather_evidence(facts: ModelFacts, own: Path | None = None, records: Sequence[Path] = ()) -> Evidence:
    """Return what was measured of a model: by the run that made it, and by further records.

    For a distilled student, fine-tuning records count that tuned this student; for a tuned model those of its
    task and its way of tuning, which are its siblings of other seeds. `own` is the `result.json` of the run that made
    it; `records` are further ones, run directories, or trees of them. A UserError tells that a record is damaged, that
    the model's own is not about it, that none of `records` is, or that they do not tell which of several runs it comes
    from.
    """
    paths = [*records, *([own] if own is not None else [])]
    if not paths:
        return Evidence()
    tuned = find_records(paths)
    read = {file: load_record(file) for file in record_files(paths)}
    others = {file: data for file, data in read.items() if data.get("kind") not in ("finetune", "grid")}
    own = own.resolve() if own is not None else None

    tuning = next((record for record in tuned if record.file == own), None)
    if tuning is not None and not (facts.is_tuned and _fits_tuned(facts, tuning)):
        raise _not_about(facts, tuning.file, tuning.row.model)
    source = _distillation(facts, others, own, tuning.row.model if tuning is not None else None)
    distilled = others[source] if source is not None else None
    names = {facts.name, _name_of(distilled)}
    alike = _siblings(facts, tuned, tuning) if facts.is_tuned else _offspring(facts, tuned, names)
    evaluations = {
        file: data
        for file, data in others.items()
        if (data.get("kind"), _name_of(data)) == ("evaluation", facts.name)
        and look_up(data, "model", "parameters", kind=int) == facts.parameters
    }
    used = {*evaluations, *(record.file for record in alike)} | {source, own if tuning else None} - {None}
    named = {record.file for record in tuned} | set(others)
    if records and not (used - {own}) and named - {own}:
        found = {record.row.model for record in tuned if record.file != own}
        found |= {_name_of(data) or "" for file, data in others.items() if file != own}
        raise UserError(
            f"none of the {len(named - {own})} records is about this model ({facts.name}, {facts.architecture} of "
            f"{facts.encoder_parameters:,} encoder parameters); they are about "
            f"{', '.join(sorted(found - {''})) or 'no model'}"
        )
    results = [] if facts.is_tuned else _held_out(distilled)
    if tuning is not None:
        figures = tuning.metrics.get(tuning.split)
        results += _figures(tuning.task, tuning.problem, tuning.split, tuning.metric, figures)
    for data in evaluations.values():
        said = [look_up(data, key, kind=str) for key in ("task", "problem", "split", "metric")]
        if None not in said:  # something was scored
            task, problem, split, metric = map(str, said)
            figures = look_up(data, "metrics", split, kind=Mapping)
            results += _figures(known_task(task), problem, split, metric, figures)
    results += _over_seeds(facts, alike, tuning)
    return Evidence(distilled, tuning, tuple(results), tuple(sorted(filter(None, used))), len(named - used))


def _name_of(record: Mapping[str, Any] | None) -> str | None:
    name: str | None = look_up(record, "model", "name", kind=str)
    return name


def _distillation(
    facts: ModelFacts, others: Mapping[Path, Mapping[str, Any]], own: Path | None, student: str | None
) -> Path | None:
    """Return the record of the distillation that this model comes from; `student` is what was tuned."""
    made = {file: data for file, data in others.items() if data.get("kind") in _DISTILLED}
    if own in made:
        if facts.is_tuned or not _is_backbone(facts, made[own]):
            raise _not_about(facts, own, str(_name_of(made[own])))
        return own
    fitting = {file: data for file, data in made.items() if _is_backbone(facts, data)}
    wanted = student or facts.name
    called = [file for file, data in fitting.items() if wanted in (file.parent.name, _name_of(data))]
    called = called or list(fitting)
    if len(called) > 1:
        advice = f"{', '.join(map(str, called[:4]))}; name the one that is"
        raise UserError(f"{len(called)} distillation records could be that of {wanted}: {advice}")
    return called[0] if called else None


def _is_backbone(facts: ModelFacts, data: Mapping[str, Any]) -> bool:
    # Adapters may have been added after distillation.
    whole = look_up(data, "model", "encoder_parameters", kind=int)
    adapters = look_up(data, "model", "adapter_parameters", kind=int)
    if whole is None or adapters is None:
        return False
    return bool(whole - adapters == facts.encoder_parameters - facts.adapter_parameters)


def _fits_tuned(facts: ModelFacts, record: Record) -> bool:
    same_task = facts.task is None or known_task(facts.task.task) == record.task
    return same_task and record.parameters == facts.encoder_parameters


def _siblings(facts: ModelFacts, tuned: Sequence[Record], tuning: Record | None) -> list[Record]:
    """Return the records of a tuned model's task that tuned the same student in the same way."""
    fitting = [record for record in tuned if record.selected and _fits_tuned(facts, record)]
    if tuning is not None:
        return [record for record in fitting if (record.row, record.task) == (tuning.row, tuning.task)]
    kinds = sorted({f"{record.row.label} ({record.task})" for record in fitting})
    if len(kinds) > 1:
        advice = f"{'; '.join(kinds[:4])}; name those of this model"
        raise UserError(f"records of {len(kinds)} ways of tuning could be about {facts.name}: {advice}")
    return fitting


def _offspring(facts: ModelFacts, tuned: Sequence[Record], names: set[str | None]) -> list[Record]:
    """Return the records of models that were tuned from a student."""
    fitting = []
    for record in tuned:
        fresh = record.row.adapter_init in ("identity", "as-published") and not facts.adapter_parameters
        added = record.parameters - facts.encoder_parameters
        if record.selected and (added == 0 or (fresh and added > 0)):
            fitting.append(record)
    named = [record for record in fitting if record.row.model in names]
    found = sorted({record.row.model for record in fitting})
    if named or len(found) <= 1:
        return named or fitting
    raise UserError(
        f"the fine-tuning records are about {', '.join(found)}, all of this model's size, and none is called "
        f"{facts.name}: name those of this model"
    )


def _held_out(data: Mapping[str, Any] | None) -> list[Result]:
    results = []
    for what, part in ((THIS_MODEL, "student_end"), (ITS_TEACHER, "teacher")):
        figures = look_up(data, "metrics", part, kind=Mapping)
        results += _figures("masked-lm", "masked-lm", "held-out windows", "mlm_accuracy", figures, what)
    return results


def _figures(
    task: str, problem: str, split: str, reported: str, figures: Any, what: str = THIS_MODEL
) -> list[Result]:
    """Return the figures that a problem has, as one run measured them; the reported one first."""
    known: dict[str, Sequence[str]] = {"masked-lm": ("mlm_accuracy", "mlm_loss")}
    known.update({name: kind.metrics for name, kind in TASK_TYPES.items()})
    results = []
    for metric in dict.fromkeys((reported, *known.get(problem, ()))):
        value = look_up(figures, metric, kind=(int, float))
        if value is not None:
            measured = Cell(float(value), None, 1, (), in_percent(metric))
            results.append(Result(what, task, problem, split, metric, measured))
    return results


def _over_seeds(facts: ModelFacts, records: Sequence[Record], tuning: Record | None) -> list[Result]:
    results = []
    for (row, task), members in group(records).items():
        measured = cell(members)
        if measured is None or (tuning is not None and measured.n == 1):  # its own figures are there already
            continue
        start = {"identity": ", fresh adapters", "as-published": ", fresh adapters with random values"}
        way = "fine-tuned" if row.mode == "full" else "adapter-tuned" + start.get(row.adapter_init or "", "")
        way += ", with a teacher of the task" if row.teacher is not None else ""
        what, first = ITS_SIBLINGS if facts.is_tuned else way, members[0]
        results.append(Result(what, task, first.problem, first.split, first.metric, measured))
    return results


def _not_about(facts: ModelFacts, file: Path | None, name: str) -> UserError:
    task = f", task {facts.task.task}" if facts.task is not None else ""
    return UserError(
        f"{file} is the record of another model ({name}) than the one beside it ({facts.architecture} of "
        f"{facts.encoder_parameters:,} encoder parameters{task}): move one of them away"
    )
