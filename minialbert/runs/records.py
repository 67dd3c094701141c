"""Fine-tuning records: found in run directories, checked, and grouped over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minialbert.errors import UserError, quoted
from minialbert.recipes.schema import Mark, flat_settings, marked
from minialbert.runs.directory import FORMAT_VERSION

MODES = ("full", "adapters")
ADAPTER_INITS = ("pre-trained", "as-published", "identity")

_KINDS: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "a whole number": (int,),
    "a number": (int, float),
    "an object": (dict,),
    "a list": (list,),
}

# The tasks of the paper's tables as records and columns spell them.
KNOWN_TASKS = (
    "mnli",
    "qqp",
    "qnli",
    "sst2",
    "cola",
    "stsb",
    "mrpc",
    "rte",
    "ncbi-disease",
    "bc5cdr-disease",
    "bc5cdr-chem",
    "bc2gm",
)


@dataclass(frozen=True)
class Row:
    """What runs share that stand in one row of a table: the model and the way it was tuned.

    Attributes:
        model: name of the tuned model.
        mode: "full" or "adapters".
        adapter_init: where tuned adapters come from: "pre-trained", "as-published", "identity" or None.
        teacher: the task teacher, or None without task-specific distillation.
    """

    model: str
    mode: str
    adapter_init: str | None
    teacher: str | None

    @property
    def label(self) -> str:
        """The row's name, with the paper's marks: † adapter-tuned, ∗ with adapters that were fresh."""
        start = {
            "pre-trained": "adapters (pre-trained) †",
            "as-published": "adapters (random) †∗",
            "identity": "adapters (fresh, start as identity) †∗",
        }
        tuned = "full" if self.mode == "full" else start[self.adapter_init or ""]
        return f"{self.model}, {tuned}" + (f", teacher {self.teacher}" if self.teacher else "")

    @property
    def order(self) -> tuple[str, str, int, int, str]:
        """Where it stands in a table: by model, then full before adapters."""
        init = ADAPTER_INITS.index(self.adapter_init) if self.adapter_init in ADAPTER_INITS else -1
        return (self.model.casefold(), self.model, MODES.index(self.mode), init, self.teacher or "")


@dataclass(frozen=True)
class Record:
    """One fine-tuning run, or the summary of a grid's selected runs where those are not at hand.

    Attributes:
        file: the record's file.
        row: model and way of tuning.
        task: task name, as the paper's columns spell it where they have it.
        problem: "single-label", "multi-label", "regression" or "token".
        metric: the figure that is reported, a key of its split's metrics.
        split: the split it is measured on.
        metrics: all figures by split.
        score: the reported figure; a mean where `n` is above 1.
        seed: its seed; None in a summary.
        parameters: parameters of the model without its head.
        trainable_parameters: parameters that were tuned, head included.
        settings: the recipe, flattened to dotted keys, without what does not change a result.
        notes: what was left out or repaired in the data.
        command: the command that made it.
        versions: package versions.
        commit: the code's commit.
        machine: the machine, as recorded.
        grid: the grid record it belongs to.
        selected: False for the runs of a grid that the grid did not choose.
        n: how many seeds the score is a mean of.
        sd: sample standard deviation over them.
    """

    file: Path
    row: Row
    task: str
    problem: str
    metric: str
    split: str
    metrics: Mapping[str, Any]
    score: float
    seed: int | None
    parameters: int
    trainable_parameters: int
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    command: str | None = None
    versions: Mapping[str, Any] = field(default_factory=dict)
    commit: str | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)
    grid: Path | None = None
    selected: bool = True
    n: int = 1
    sd: float | None = None

    def value(self, keys: Sequence[str], split: str | None = None) -> float | None:
        """Look up one of the recorded figures.

        Args:
            keys: the path to it below the split, such as ("entity_f1",).
            split: another split than the reported one.

        Returns:
            The figure, or None where it is missing or no finite number.
        """
        found: Any = self.metrics.get(split or self.split)
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            return None
        return float(found)


@dataclass(frozen=True)
class Cell:
    """A measured figure over seeds.

    Attributes:
        mean: the mean, as recorded (a fraction unless `percent` is false).
        sd: sample standard deviation (ddof 1); None for one seed, or where a summary does not have it.
        n: number of seeds.
        seeds: the seeds that are known.
        percent: whether it is a fraction, to be shown in percent.
    """

    mean: float
    sd: float | None
    n: int
    seeds: tuple[int, ...]
    percent: bool = True


def find_records(paths: Sequence[Path]) -> list[Record]:
    """Find the fine-tuning records below some paths.

    Records of other kinds are passed over. The cells of a grid are records like others, `selected` where the
    grid chose their hyper-parameters; without its cells, a grid counts by its summary.

    Args:
        paths: records, run directories, or trees of them.

    Returns:
        The records in the order of their files.

    Raises:
        UserError: if a path has no record, if a file is not JSON or lacks a field, or if a grid's summary is not
            the mean of its cells.
    """
    tuned: dict[Path, Record] = {}
    grids: dict[Path, dict[str, Any]] = {}
    for file in record_files(paths):
        data = load_record(file)
        if data.get("kind") == "finetune":
            tuned[file] = _record(data, file)
        elif data.get("kind") == "grid":
            grids[file] = data
    summaries = []
    for file in sorted(grids, key=lambda file: len(file.parts), reverse=True):  # a nested grid first
        summaries += _take_in_grid(file, grids[file], tuned)
    return sorted([*tuned.values(), *summaries], key=lambda record: (record.file.as_posix(), record.task))


def group(records: Iterable[Record]) -> dict[tuple[Row, str], tuple[Record, ...]]:
    """Group selected records by row and task.

    Args:
        records: as `find_records` returns them.

    Returns:
        The groups, rows in the order of tables, each group by seed.

    Raises:
        UserError: if two records of a group have the same seed or differ in more than the seed, since their mean
            would mean nothing.
    """
    groups: dict[tuple[Row, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.selected:
            groups[record.row, record.task].append(record)
    rows: dict[Row, Record] = {}
    for (row, task), members in groups.items():
        _check_same_model(rows.setdefault(row, members[0]), members[0])
        for later, record in enumerate(members):
            for earlier in members[:later]:
                _check_averageable(earlier, record, f"{row.label}, {task}")
    return {
        key: tuple(sorted(groups[key], key=lambda record: record.seed or 0))
        for key in sorted(groups, key=lambda key: (key[0].order, key[1]))
    }


def cell(records: Sequence[Record], keys: Sequence[str] = (), *, mismatched: bool = False) -> Cell | None:
    """Average one figure over the records of a group.

    Args:
        records: one group of `group`.
        keys: the path to another figure than the reported one.
        mismatched: take it from the mismatched half of the reported split (MNLI).

    Returns:
        The cell, or None where no record has the figure.
    """
    first = records[0]
    metric = keys[-1] if keys else first.metric
    percent = not any(part in metric for part in ("mse", "mae", "loss", "error"))
    if first.n > 1:
        if not keys and not mismatched:
            return Cell(first.score, first.sd, first.n, (), percent)
        measured = first.value((first.metric,))
        if measured is None or not math.isclose(
            measured, first.score, abs_tol=1e-6
        ):  # figures of one run beside a mean of several
            return None
    split = f"{first.split}_mismatched" if mismatched else None
    found = [(record, record.value(keys or (record.metric,), split)) for record in records]
    values = [value for _, value in found if value is not None]
    if not values:
        return None
    sd = statistics.stdev(values) if len(values) > 1 else None
    seeds = tuple(record.seed for record, value in found if value is not None and record.seed is not None)
    return Cell(statistics.fmean(values), sd, first.n if first.n > 1 else len(values), seeds, percent)


def _check_same_model(earlier: Record, later: Record) -> None:
    for what, one, other in (
        ("model.encoder_parameters", earlier.parameters, later.parameters),
        ("model.name of the recipe", earlier.settings.get("model.name"), later.settings.get("model.name")),
        ("model.revision", earlier.settings.get("model.revision"), later.settings.get("model.revision")),
    ):
        if one != other:
            raise UserError(
                f"{earlier.file} and {later.file} both tune a model called {later.row.model}, but {what} is {one} "
                f"and {other}; report them apart"
            )


def _check_averageable(earlier: Record, later: Record, where: str) -> None:
    files = f"{earlier.file} and {later.file}"
    settings = earlier.settings.keys() | later.settings.keys()
    different = sorted(key for key in settings if earlier.settings.get(key) != later.settings.get(key))
    different += [
        name
        for name in ("problem", "split", "metric", "parameters", "trainable_parameters")
        if getattr(earlier, name) != getattr(later, name)
    ]
    if different:
        raise UserError(
            f"{where}: {files} differ in {', '.join(different)}, so they have no common mean; report them apart"
        )
    if earlier.seed is None or later.seed is None or earlier.seed == later.seed:
        seed = "" if later.seed is None else f" of seed {later.seed}"
        raise UserError(f"{where}: {files} are two results{seed}; name only one of them")


def record_files(paths: Sequence[Path]) -> list[Path]:
    """Return every `result.json` below some paths, or the files themselves; see `find_records`."""
    files: set[Path] = set()
    for path in paths:
        if path.is_file():
            found = [path]
        elif path.is_dir():
            found = list(path.rglob("result.json"))
        else:
            raise UserError(
                f"{path} does not exist: expected a result.json, a run directory or a tree of them"
            )
        if not found:
            raise UserError(f"{path} has no result.json below it: name the directory of a finished run")
        files.update(file.resolve() for file in found)
    return sorted(files)


def load_record(file: Path) -> dict[str, Any]:
    """Return a record as it is written.

    Args:
        file: a `result.json`.

    Returns:
        The record.

    Raises:
        UserError: if it is no JSON object, or of a later format.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}): expected a run's result.json") from error
    if not isinstance(data, dict):
        raise UserError(f"{file} holds {type(data).__name__}, not an object: expected a run's result.json")
    version = data.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{file} has format_version {version}, but this version reads up to {FORMAT_VERSION}: "
            "update minialbert"
        )
    return data


def _take(data: Mapping[str, Any], keys: str | Sequence[str], kind: str, file: Path) -> Any:
    """Return a required field; its keys are dotted, or a list where a name may hold a dot."""
    path = keys.split(".") if isinstance(keys, str) else keys
    name = ".".join(path)
    found: Any = data
    for key in path:
        if not isinstance(found, dict) or key not in found:
            raise UserError(
                f"{file} lacks the field {name} ({kind}): write it again with minialbert finetune"
            )
        found = found[key]
    if not isinstance(found, _KINDS[kind]) or isinstance(found, bool):
        raise UserError(f"{file}: the field {name} should be {kind}, but is {json.dumps(found)[:60]}")
    if isinstance(found, float) and not math.isfinite(found):
        raise UserError(f"{file}: the field {name} should be a finite number, but is {found}")
    return found


def _row(data: Mapping[str, Any], file: Path) -> Row:
    mode, init = _take(data, "mode", "text", file), data.get("adapter_init")
    if mode not in MODES:
        raise UserError(f"{file}: the field mode should be {' or '.join(MODES)}, but is {mode!r}")
    if mode == "adapters" and init not in ADAPTER_INITS:
        raise UserError(
            f"{file}: the field adapter_init should be one of {', '.join(ADAPTER_INITS)}, but is {init!r}"
        )
    teacher = _take(data, "teacher", "text", file) if data.get("teacher") is not None else None
    name = _take(data, "model.name", "text", file)
    return Row(name, mode, init if mode == "adapters" else None, teacher)


def _record(data: Mapping[str, Any], file: Path, *, summary: bool = False) -> Record:
    split, metric = _take(data, "split", "text", file), _take(data, "metric", "text", file)
    score = float(_take(data, "score", "a number", file))
    if not summary:
        measured = _take(data, ("metrics", split, metric), "a number", file)
        if not math.isclose(score, measured, rel_tol=1e-6, abs_tol=1e-9):
            raise UserError(f"{file}: score is {score}, but metrics.{split}.{metric} is {measured}")
    n = _take(data, "n", "a whole number", file) if summary else 1
    has_sd = summary and data.get("sd") is not None
    return Record(
        file=file,
        row=_row(data, file),
        task=known_task(_take(data, "task", "text", file)),
        problem=_take(data, "problem", "text", file),
        metric=metric,
        split=split,
        metrics=_take(data, "metrics", "an object", file),
        score=score,
        seed=None if summary else _take(data, "seed", "a whole number", file),
        parameters=_take(data, "model.encoder_parameters", "a whole number", file),
        trainable_parameters=_take(data, "model.trainable_parameters", "a whole number", file),
        settings=_settings(_take(data, "recipe", "an object", file)),
        notes=tuple(str(note) for note in data.get("notes") or ()),
        command=data["command"] if isinstance(data.get("command"), str) else None,
        versions=data["versions"] if isinstance(data.get("versions"), dict) else {},
        commit=data["commit"] if isinstance(data.get("commit"), str) else None,
        machine=data["machine"] if isinstance(data.get("machine"), dict) else {},
        n=n,
        sd=float(_take(data, "sd", "a number", file)) if has_sd else None,
    )


def _settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    flat = flat_settings(recipe)
    # Paths of the same files differ between machines; a run's name and what it holds ("distilled/model") do not.
    for name in marked(Mark.PLACE) & flat.keys():
        if isinstance(flat[name], str):
            flat[name] = "/".join(Path(flat[name]).parts[-2:])
    immaterial = marked(Mark.NAME, Mark.SEED, Mark.PACE)
    return {key: flat[key] for key in flat if key not in immaterial and not key.startswith("grid.")}


def _take_in_grid(file: Path, data: Mapping[str, Any], tuned: dict[Path, Record]) -> list[Record]:
    """Mark a grid's cells among the tuned records, and return what has to be added to them."""
    chosen = _record({**data, **_take(data, "selected", "an object", file)}, file, summary=True)
    chosen = replace(chosen, grid=file)
    within = [path for path, record in tuned.items() if file.parent in path.parents and record.grid is None]
    cells = {path: replace(tuned[path], grid=file) for path in within if tuned[path].task == chosen.task}
    inline = []
    for entry in _take(data, "cells", "a list", file):
        if isinstance(entry, dict) and entry.get("kind") == "finetune":
            inline.append(replace(_record(entry, file), grid=file))
        elif isinstance(entry, str):
            path = (file.parent / entry).resolve()
            if file.parent not in path.parents:
                raise UserError(
                    f"{file} names a cell outside of its folder ({quoted(entry)}): expected cells/NAME"
                )
            path = path / "result.json" if path.is_dir() else path
            if path not in cells and path.is_file():
                cells[path] = replace(_record(load_record(path), path), grid=file)

    def is_chosen(record: Record) -> bool:
        same = all(record.settings.get(key) == value for key, value in chosen.settings.items())
        return same and (record.row, record.task) == (chosen.row, chosen.task)

    runs = [record for record in cells.values() if is_chosen(record)]
    added = []
    if len(runs) < chosen.n and sum(map(is_chosen, inline)) >= chosen.n:
        runs = added = [record for record in inline if is_chosen(record)]
    if len(runs) < chosen.n:
        runs, added = [], [chosen if chosen.n > 1 else replace(chosen, seed=_seed(data["selected"]))]
    elif not math.isclose(statistics.fmean(run.score for run in runs), chosen.score, abs_tol=1e-6):
        raise UserError(
            f"{file}: selected.score is {chosen.score}, but the {len(runs)} cells with its settings have a mean of "
            f"{statistics.fmean(run.score for run in runs)}: run the grid again, or move old cells away"
        )
    for path, record in cells.items():
        tuned[path] = replace(record, selected=record in runs)
    return added


def _seed(selected: Mapping[str, Any]) -> int | None:
    seed = selected.get("seed")
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None


def known_task(name: str) -> str:
    """Spell a task as the paper's columns do ("STS-B" is "stsb").

    Args:
        name: the task as a record names it.

    Returns:
        That spelling, or a name of no such task unchanged.
    """
    return _KNOWN.get(_letters(name), name)


def _letters(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


_KNOWN = {_letters(task): task for task in KNOWN_TASKS}
