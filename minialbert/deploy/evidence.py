"""What was measured of one model: its own run's record, and what other records say about it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minialbert.data.examples import METRICS
from minialbert.errors import UserError
from minialbert.method.configuration_minialbert import MiniAlbertConfig
from minialbert.runs.packed import find_run_records, read_run_file
from minialbert.runs.records import Cell, Record, Row, cell, find_records, group, known_task
from minialbert.tasks.models import TaskInputs

THIS_MODEL, ITS_TEACHER, ITS_SIBLINGS = "this model", "its teacher", "tuned alike"
_DISTILLED = ("distillation", "demo")


@dataclass(frozen=True)
class ModelFacts:
    """What a card says about a model without any record.

    Attributes:
        name: its name, never a path.
        architecture: name of its class.
        config: its configuration.
        parameters: all of them; shared tensors count once.
        encoder_parameters: those without the head.
        adapter_parameters: those of the adapters.
        max_tokens: longest input.
        mask_token: the tokenizer's, or None.
        labels: of its task head, in the order of their ids.
        task: what `task.json` says, or None.
        sentence_embeddings: whether it can be loaded by sentence-transformers.
    """

    name: str
    architecture: str
    config: MiniAlbertConfig
    parameters: int
    encoder_parameters: int
    adapter_parameters: int
    max_tokens: int
    mask_token: str | None = None
    labels: tuple[str, ...] = ()
    task: TaskInputs | None = None
    sentence_embeddings: bool = False

    @property
    def is_tuned(self) -> bool:
        """Whether it carries the head of a task."""
        return self.architecture not in ("MiniAlbertModel", "MiniAlbertForMaskedLM")


@dataclass(frozen=True)
class Result:
    """One measured figure.

    Attributes:
        what: what was measured: the model, its teacher, runs like the one that tuned it, or what was tuned from it.
        task: task name.
        problem: "masked-lm", or the kind of task as in records.
        split: what it was measured on.
        metric: name of the figure.
        value: the figure over its seeds.
    """

    what: str
    task: str
    problem: str
    split: str
    metric: str
    value: Cell


@dataclass(frozen=True)
class Evidence:
    """The records about one model.

    Attributes:
        distillation: how it, or the student that it was tuned from, was distilled.
        tuning: the run that tuned it.
        results: measured figures.
        used: files of the records that were used.
        passed_over: how many of the records that were named are about other models.
    """

    distillation: Mapping[str, Any] | None = None
    tuning: Record | None = None
    results: tuple[Result, ...] = ()
    used: tuple[Path, ...] = ()
    passed_over: int = 0


def gather_evidence(facts: ModelFacts, own: Path | None = None, records: Sequence[Path] = ()) -> Evidence:
    """Pick from run records what was measured of a model.

    For a distilled student, fine-tuning records count that tuned this student; for a tuned model those of its
    task and its way of tuning, which are its siblings of other seeds.

    Args:
        facts: the model.
        own: the `result.json` of the run that made it.
        records: further records, run directories, or trees of them.

    Returns:
        What they say about the model.

    Raises:
        UserError: if a record is damaged, if the model's own is not about it, if none of `records` is, or if they do
            not tell which of several runs it comes from.
    """
    paths = [*records, *([own] if own is not None else [])]
    if not paths:
        return Evidence()
    tuned = find_records(paths)  # which also refuses what is no record
    others = {
        file: data for file, data in _read(paths).items() if data.get("kind") not in ("finetune", "grid")
    }
    own = own.resolve() if own is not None else None

    tuning = next((record for record in tuned if record.file == own), None)
    if tuning is not None and not (facts.is_tuned and _fits_tuned(facts, tuning)):
        raise _not_about(facts, tuning.file, tuning.row.model)
    distilled_file = _distillation(facts, others, own, tuning.row.model if tuning is not None else None)
    distillation = others.get(distilled_file) if distilled_file is not None else None

    names = {facts.name, look_up(distillation, "model", "name", kind=str)}
    siblings = _siblings(facts, tuned, tuning) if facts.is_tuned else _offspring(facts, tuned, names)
    evaluations = {
        file: data for file, data in others.items() if data.get("kind") == "evaluation" and _fits(facts, data)
    }
    results: list[Result] = []
    if distillation is not None and not facts.is_tuned:
        results += _masked_lm_results(distillation)
    if tuning is not None:
        results += _own_results(tuning)
    for data in evaluations.values():
        results += _evaluation_results(data)
    results += _group_results(facts, siblings, tuning)

    chosen = [distilled_file] if distilled_file is not None else []
    used = {*chosen, *evaluations, *(record.file for record in siblings)} | ({own} if tuning else set())
    named = {record.file for record in tuned} | set(others)
    if records and not (used - {own}) and named - {own}:
        found = sorted({record.row.model for record in tuned if record.file != own} | _names(others, own))
        raise UserError(
            f"none of the {len(named - {own})} records is about this model ({facts.name}, {facts.architecture} of "
            f"{facts.encoder_parameters:,} encoder parameters); they are about {', '.join(found) or 'no model'}"
        )
    return Evidence(
        distillation, tuning, tuple(results), tuple(sorted(file for file in used if file)), len(named - used)
    )


def look_up(record: Mapping[str, Any] | None, *keys: str, kind: type | tuple[type, ...]) -> Any:  # noqa: ANN401
    """Return a field of a record, or None where it is missing or of another kind.

    Args:
        record: a record, or None.
        *keys: the path to the field.
        kind: what it must be; a number must be finite, and true is none.

    Returns:
        The field.
    """
    found: Any = record
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        return None
    return None if isinstance(found, float) and not math.isfinite(found) else found


def _read(paths: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    files = {file.resolve() for path in paths for file in find_run_records(path)}
    return {file: json.loads(read_run_file(file)) for file in sorted(files)}


def _distillation(
    facts: ModelFacts, others: Mapping[Path, Mapping[str, Any]], own: Path | None, student: str | None
) -> Path | None:
    """Return the record of the distillation that this model comes from; `student` is what was tuned."""
    if own is not None and own in others and others[own].get("kind") in _DISTILLED:
        if facts.is_tuned or not _is_backbone(facts, others[own]):
            raise _not_about(facts, own, str(look_up(others[own], "model", "name", kind=str)))
        return own
    fitting = [
        file for file, data in others.items() if data.get("kind") in _DISTILLED and _is_backbone(facts, data)
    ]
    wanted = student or facts.name
    named = [
        file
        for file in fitting
        if wanted in (file.parent.name, look_up(others[file], "model", "name", kind=str))
    ] or fitting
    if len(named) > 1:
        raise UserError(
            f"{len(named)} distillation records could be that of {wanted}: {', '.join(map(str, named[:4]))}; name "
            "the one that is"
        )
    return named[0] if named else None


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


def _fits(facts: ModelFacts, data: Mapping[str, Any]) -> bool:
    same_name = look_up(data, "model", "name", kind=str) == facts.name
    return same_name and look_up(data, "model", "parameters", kind=int) == facts.parameters


def _siblings(facts: ModelFacts, tuned: Sequence[Record], tuning: Record | None) -> list[Record]:
    """Return the records of a tuned model's task that tuned the same student in the same way."""
    fitting = [record for record in tuned if record.selected and _fits_tuned(facts, record)]
    if tuning is not None:
        return [record for record in fitting if (record.row, record.task) == (tuning.row, tuning.task)]
    kinds = sorted({f"{record.row.label} ({record.task})" for record in fitting})
    if len(kinds) > 1:
        raise UserError(
            f"records of {len(kinds)} ways of tuning could be about {facts.name}: {'; '.join(kinds[:4])}; name those "
            "of this model"
        )
    return fitting


def _offspring(facts: ModelFacts, tuned: Sequence[Record], names: set[str | None]) -> list[Record]:
    """Return the records of models that were tuned from a student."""

    def is_of_its_size(record: Record) -> bool:
        fresh = record.row.adapter_init in ("identity", "as-published") and not facts.adapter_parameters
        return record.parameters == facts.encoder_parameters or (
            fresh and record.parameters > facts.encoder_parameters
        )

    fitting = [record for record in tuned if record.selected and is_of_its_size(record)]
    named = [record for record in fitting if record.row.model in names]
    found = sorted({record.row.model for record in fitting})
    if named or len(found) <= 1:
        return named or fitting
    raise UserError(
        f"the fine-tuning records are about {', '.join(found)}, all of this model's size, and none is called "
        f"{facts.name}: name those of this model"
    )


def _masked_lm_results(data: Mapping[str, Any]) -> list[Result]:
    results = []
    for what, part in ((THIS_MODEL, "student_end"), (ITS_TEACHER, "teacher")):
        for metric in ("mlm_accuracy", "mlm_loss"):
            value = look_up(data, "metrics", part, metric, kind=(int, float))
            if value is not None:
                measured = _single(metric, value)
                results.append(Result(what, "masked-lm", "masked-lm", "held-out windows", metric, measured))
    return results


def _own_results(record: Record) -> list[Result]:
    results = []
    for metric in _metrics(record.metric, record.problem):
        value = record.value((metric,))
        if value is not None:
            results.append(
                Result(THIS_MODEL, record.task, record.problem, record.split, metric, _single(metric, value))
            )
    return results


def _evaluation_results(data: Mapping[str, Any]) -> list[Result]:
    task, problem, split, metric = (
        look_up(data, key, kind=str) for key in ("task", "problem", "split", "metric")
    )
    if task is None or problem is None or split is None or metric is None:  # nothing was scored
        return []
    results = []
    for name in _metrics(metric, problem):
        value = look_up(data, "metrics", split, name, kind=(int, float))
        if value is not None:
            results.append(Result(THIS_MODEL, known_task(task), problem, split, name, _single(name, value)))
    return results


def _group_results(facts: ModelFacts, records: Sequence[Record], tuning: Record | None) -> list[Result]:
    results = []
    for (row, task), members in group(records).items():
        measured = cell(members)
        if measured is None or (tuning is not None and measured.n == 1):  # its own figures are there already
            continue
        what = ITS_SIBLINGS if facts.is_tuned else _way_of_tuning(row)
        first = members[0]
        results.append(Result(what, task, first.problem, first.split, first.metric, measured))
    return results


def _way_of_tuning(row: Row) -> str:
    start = {"identity": ", fresh adapters", "as-published": ", fresh adapters with random values"}
    way = "fine-tuned" if row.mode == "full" else "adapter-tuned" + start.get(row.adapter_init or "", "")
    return way + (", with a teacher of the task" if row.teacher is not None else "")


def _metrics(reported: str, problem: str) -> list[str]:
    known: Mapping[str, Sequence[str]] = {str(name): metrics for name, metrics in METRICS.items()}
    return list(dict.fromkeys([reported, *known.get(problem, ())]))


def _single(metric: str, value: float) -> Cell:
    percent = not any(part in metric for part in ("mse", "mae", "loss", "error"))
    return Cell(float(value), None, 1, (), percent)


def _names(others: Mapping[Path, Mapping[str, Any]], own: Path | None) -> set[str]:
    names = {look_up(data, "model", "name", kind=str) for file, data in others.items() if file != own}
    return {name for name in names if name is not None}


def _not_about(facts: ModelFacts, file: Path, name: str) -> UserError:
    task = f", task {facts.task.task}" if facts.task is not None else ""
    return UserError(
        f"{file} is the record of another model ({name}) than the one beside it ({facts.architecture} of "
        f"{facts.encoder_parameters:,} encoder parameters{task}): move one of them away"
    )
