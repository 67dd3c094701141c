"""Records: the types of what a verb leaves in result.json; written, found, read, and grouped over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from minialbert.errors import UserError, failing_as, quoted, shown
from minialbert.recipes.schema import SHARING_DEFAULTS, Mark, flat_settings, marked
from minialbert.runs.files import check_folder, write_json
from minialbert.runs.machine import environment
from minialbert.runs.packed import find_run_records, is_run_file, read_run_file

FORMAT_VERSION = 1
RESULT_FILE = "result.json"
PREDICTIONS_FILE = "predictions.jsonl"  # of evaluations, beside the record
MODES = ("full", "adapters")
ADAPTER_INITS = ("pre-trained", "as-published", "identity")

# The tasks of the paper's tables as records and columns spell them.
KNOWN_TASKS = (
    "mnli", "qqp", "qnli", "sst2", "cola", "stsb", "mrpc", "rte",
    "ncbi-disease", "bc5cdr-disease", "bc5cdr-chem", "bc2gm",
)  # fmt: skip


class _Part(BaseModel):
    """A part of a record; what this version does not know of it is kept."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)


class ModelPart(_Part):
    """The model that a record is about, by name and size."""

    name: str | None = None
    parameters: int | None = None
    encoder_parameters: int | None = None
    trainable_parameters: int | None = None


class TunedPart(ModelPart):
    """A model that was tuned."""

    name: str
    encoder_parameters: int
    trainable_parameters: int


class TrainingPart(_Part):
    """What a training took."""

    steps: int
    wall_seconds: float
    session_seconds: list[float] | None = None
    skipped_steps: int = 0
    precision: str | None = None
    tokens_per_second: float | None = None
    seconds_per_step: float | None = None
    peak_memory_mb: float | None = None
    best_step: int | None = None


class RunRecord(_Part):
    """A record of any kind, with what `write_result` adds to it."""

    kind: str
    format_version: int = FORMAT_VERSION
    metrics: dict[str, Any] = {}
    seed: int | list[int] | None = None
    notes: list[str] | None = None
    command: str | None = None
    versions: dict[str, Any] = {}
    commit: str | None = None
    machine: dict[str, Any] = {}


class DistillationRecord(RunRecord):
    """Of `distill` and `demo`, and a student with its first weights."""

    task: str | None = None
    model: ModelPart
    training: TrainingPart | None = None
    layer_map: list[int] = []
    objective: dict[str, Any] = {}
    data: dict[str, Any] = {}
    recipe: dict[str, Any] = {}


class MeasuredRecord(RunRecord):
    """Of a model's figures on the splits of a task."""

    name: str | None = None
    task: str
    problem: str
    metric: str
    split: str | None
    score: float | None
    model: ModelPart


class TunedRecord(MeasuredRecord):
    """Of a tuning, or of what a grid has selected."""

    split: str
    score: float
    metrics: dict[str, dict[str, Any]]
    mode: Literal["full", "adapters"]
    adapter_init: Literal["pre-trained", "as-published", "identity"] | None = None
    teacher: str | None = None
    model: TunedPart
    recipe: dict[str, Any]

    @model_validator(mode="after")
    def _adapters_have_a_start(self) -> Self:
        if self.mode == "adapters" and self.adapter_init is None:
            raise ValueError(
                f"the field adapter_init should be one of {', '.join(ADAPTER_INITS)}, but is None"
            )
        return self


class FinetuneRecord(TunedRecord):
    """Of `finetune`."""

    seed: int
    training: TrainingPart | None = None
    data: dict[str, Any] = {}
    metrics_by_depth: dict[str, Any] = {}
    agreement: list[str] = []  # splits whose labels a teacher gave


class SelectedPart(TunedRecord):
    """What a grid has selected: a mean over seeds."""

    n: int
    sd: float | None = None


class GridRecord(RunRecord):
    """Of `finetune --grid`."""

    selected: dict[str, Any]
    cells: list[Any]


class CalibrationRecord(MeasuredRecord):
    """Of `calibrate`."""

    exit_threshold: float | None
    mean_iterations: float
    thresholds: list[dict[str, Any]]


class ExportRecord(RunRecord):
    """Of `export`."""

    task: str | None
    model: ModelPart
    precision: str
    bytes: int
    parity: dict[str, Any]


class BenchRecord(RunRecord):
    """Of `bench`."""

    settings: dict[str, Any]
    models: dict[str, dict[str, Any]]


_TYPES: dict[str, type[RunRecord]] = {
    **dict.fromkeys(("distillation", "initialisation", "demo"), DistillationRecord),
    "finetune": FinetuneRecord,
    "grid": GridRecord,
    **dict.fromkeys(("evaluation", "answer-calibration"), MeasuredRecord),
    "exit-calibration": CalibrationRecord,
    "export": ExportRecord,
    "bench": BenchRecord,
}
# What pydantic's kinds of fault expect.
_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "dict_type": "an object",
    "model_type": "an object",
    "list_type": "a list",
}

AnyRecord = TypeVar("AnyRecord", bound=RunRecord)
_Key = TypeVar("_Key")
_Item = TypeVar("_Item")


def write_result(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write a `result.json`, of the type that its kind has, and return it, with versions, commit and machine."""
    complete = {"format_version": FORMAT_VERSION, **record, **environment()}
    if record["kind"] in _TYPES:  # benchmarks have kinds of their own
        try:
            _TYPES[record["kind"]].model_validate(complete)
        except ValidationError as error:
            if any(fault["type"] != "finite_number" for fault in error.errors()):
                raise  # a figure that is not finite is no reason to lose a run
    write_json(path, complete)
    return complete


def typed_record(values: Mapping[str, Any], kind: type[AnyRecord], file: Path) -> AnyRecord:
    """Return a record with its fields checked; a `UserError` names the file, the field, and what it should be."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name, context = ".".join(map(shown, fault["loc"])), fault.get("ctx", {})
        names = str(context.get("expected", fault["msg"])).replace("'", "")
        expected = _EXPECTED.get(fault["type"], f"one of {names}" if "," in names else names)
        found = json.dumps(fault["input"], default=repr)[:60]
        told = f": the field {name} should be {expected}, but is {found}"
        if fault["type"] == "missing":
            told = f" lacks the field {name} (of a {kind.__name__}): write it again"
        elif fault["type"] == "value_error":
            told = f": {context['error']}"
        raise UserError(f"{file}{told}") from None


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation (ddof 1) over seeds; None for one."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def grouped(pairs: Iterable[tuple[_Key, _Item]]) -> dict[_Key, list[_Item]]:
    """Return the items of each key, in their order."""
    groups: dict[_Key, list[_Item]] = {}
    for key, item in pairs:
        groups.setdefault(key, []).append(item)
    return groups


def look_up(record: Mapping[str, Any] | None, *keys: str, kind: type | tuple[type, ...]) -> Any:
    """Return a field of a record, or None where it is missing or of another kind; a number must be finite."""
    found: Any = record
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        return None
    return finite(found) if isinstance(found, int | float) else found


def finite(value: object) -> float | None:
    """Return a finite number as it is, and None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


@dataclass(frozen=True)
class Row:
    """What runs share that stand in one row of a table: the model and the way it was tuned."""

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
    """One fine-tuning run, or the summary of a grid's selected runs where those are not at hand."""

    file: Path
    row: Row
    task: str  # as the paper's columns spell it where they have it
    problem: str
    metric: str  # that is reported, a key of its split's metrics
    split: str
    metrics: Mapping[str, Any]  # all figures by split
    score: float  # a mean where `n` is above 1
    seed: int | None  # None in a summary
    parameters: int  # without the head
    trainable_parameters: int
    settings: Mapping[str, Any]  # by dotted names, without what does not change a result
    made: TunedRecord  # as it is written, with notes, command and what it was made with
    grid: Path | None = None  # the grid's record that it belongs to
    selected: bool = True  # False for the runs of a grid that the grid did not choose
    n: int = 1
    sd: float | None = None

    def value(self, keys: Sequence[str], split: str | None = None) -> float | None:
        """Return a figure by its path below the split, such as ("entity_f1",); None where there is no finite one."""
        found = look_up(self.metrics, split or self.split, *keys, kind=(int, float))
        return None if found is None else float(found)


@dataclass(frozen=True)
class Cell:
    """A measured figure over seeds."""

    mean: float  # as recorded: a fraction unless `percent` is false
    sd: float | None  # None for one seed, or where a summary does not have it
    n: int
    seeds: tuple[int, ...]  # those that are known
    percent: bool = True  # whether it is to be shown in percent


def check_output(folder: Path, *others: str, kind: str, overwrite: bool) -> None:
    """Refuse a directory with an earlier record, or others of these files, and of another kind even to overwrite it."""
    check_folder(folder, "record", overwrite=True)
    result_file = folder / RESULT_FILE
    for name in (RESULT_FILE, *others):
        if (folder / name).exists() and not overwrite:
            raise UserError(f"{folder} holds a {name}: give --overwrite to replace it, or another --output")
    if not result_file.exists():
        return
    try:
        found = json.loads(result_file.read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, TypeError, LookupError):
        found = "of no known kind"
    if found != kind:
        raise UserError(f"{result_file} is the record of another run ({found}): give another --output")


def find_records(paths: Sequence[Path]) -> list[Record]:
    """Return the fine-tuning records below some paths, in the order of their files.

    Paths are records, run directories, or trees of them. Records of other kinds are passed over. The cells of a grid
    are records like others, `selected` where the grid chose their hyper-parameters; without its cells, a grid counts by
    its summary, which has to be their mean.
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
    """Return selected records by row and task, rows in the order of tables, each group by seed.

    Refused are two of a group that have the same seed or differ in more than the seed: their mean would mean nothing.
    """
    groups = grouped(((record.row, record.task), record) for record in records if record.selected)
    rows: dict[Row, Record] = {}
    for (row, task), members in groups.items():
        _check_same_model(rows.setdefault(row, members[0]), members[0])
        for later, record in enumerate(members):
            for earlier in members[:later]:
                _check_averageable(earlier, record, f"{row.label}, {task}")
    order = sorted(groups, key=lambda key: (key[0].order, key[1]))
    return {key: tuple(sorted(groups[key], key=lambda record: record.seed or 0)) for key in order}


# Parts of names of figures that are not shares, figures of which less is better, and kinds of task whose words are
# labelled; a kind of task that is registered adds its own.
NO_SHARES = {"mse", "mae", "loss", "error"}
ERRORS, TAGGING = {"mean_squared_error"}, {"token"}


def is_tagging(problem: str) -> bool:
    """Return whether words are labelled in a record's kind of task; a kind that is not known here labels texts."""
    return problem in TAGGING


def lower_is_better(metric: str | None) -> bool:
    """Return whether a figure of any kind of task is an error."""
    return metric in ERRORS


def in_percent(metric: str) -> bool:
    """Return whether a figure is shown in per cent."""
    return not any(part in metric for part in NO_SHARES)


def cell(records: Sequence[Record], keys: Sequence[str] = (), *, mismatched: bool = False) -> Cell | None:
    """Return one figure averaged over a group of `group`, or None where no record has it.

    `keys` is the path to another figure than the reported one, `mismatched` takes it from the mismatched half of the
    reported split (MNLI).
    """
    first = records[0]
    percent = in_percent(keys[-1] if keys else first.metric)
    if first.n > 1:
        if not keys and not mismatched:
            return Cell(first.score, first.sd, first.n, (), percent)
        measured = first.value((first.metric,))
        # Its figures may be those of one run, beside a mean of several.
        if measured is None or not math.isclose(measured, first.score, abs_tol=1e-6):
            return None
    split = f"{first.split}_mismatched" if mismatched else None
    found = [(record, record.value(keys or (record.metric,), split)) for record in records]
    values = [value for _, value in found if value is not None]
    if not values:
        return None
    mean, sd = mean_and_sd(values)
    seeds = tuple(record.seed for record, value in found if value is not None and record.seed is not None)
    return Cell(mean, sd, first.n if first.n > 1 else len(values), seeds, percent)


def _check_same_model(earlier: Record, later: Record) -> None:
    known = {"model.name": "model.name of the recipe", "model.revision": "model.revision"}
    said = [(what, earlier.settings.get(key), later.settings.get(key)) for key, what in known.items()]
    for what, one, other in (("model.encoder_parameters", earlier.parameters, later.parameters), *said):
        if one != other:
            raise UserError(
                f"{earlier.file} and {later.file} both tune a model called {later.row.model}, but {what} is {one} "
                f"and {other}; report them apart"
            )


def _check_averageable(earlier: Record, later: Record, where: str) -> None:
    files = f"{earlier.file} and {later.file}"
    settings = earlier.settings.keys() | later.settings.keys()
    different = sorted(key for key in settings if earlier.settings.get(key) != later.settings.get(key))
    names = ("problem", "split", "metric", "parameters", "trainable_parameters")
    different += [name for name in names if getattr(earlier, name) != getattr(later, name)]
    if different:
        raise UserError(
            f"{where}: {files} differ in {', '.join(different)}, so they have no common mean; report them apart"
        )
    if earlier.seed is None or later.seed is None or earlier.seed == later.seed:
        seed = "" if later.seed is None else f" of seed {later.seed}"
        raise UserError(f"{where}: {files} are two results{seed}; name only one of them")


def record_files(paths: Sequence[Path]) -> list[Path]:
    """Return every `result.json` below some paths, packed or not, or the files themselves; see `find_records`."""
    files: set[Path] = set()
    for path in paths:
        found = find_run_records(path)
        if not found and not path.is_dir():
            advice = "expected a result.json, a run directory or a tree of them"
            raise UserError(f"{path} does not exist: {advice}")
        if not found:
            raise UserError(f"{path} has no result.json below it: name the directory of a finished run")
        files.update(file.resolve() for file in found)
    return sorted(files)


def load_record(file: Path) -> dict[str, Any]:
    """Return a record as it is written, a JSON object of no later format; `typed_record` checks its fields."""
    expected = "expected a run's result.json"
    with failing_as(f"{file} cannot be read as JSON", (OSError, ValueError, RecursionError), expected):
        data = json.loads(read_run_file(file))
    if not isinstance(data, dict):
        raise UserError(f"{file} holds {type(data).__name__}, not an object: {expected}")
    version = data.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{file} has format_version {version}, but this version reads up to {FORMAT_VERSION}: "
            "update minialbert"
        )
    return data


def _record(data: Mapping[str, Any], file: Path, *, summary: bool = False) -> Record:
    made: TunedRecord = typed_record(data, SelectedPart if summary else FinetuneRecord, file)
    if not summary:
        measured = made.metrics.get(made.split, {}).get(made.metric)
        name = f"metrics.{made.split}.{made.metric}"
        if isinstance(measured, bool) or not isinstance(measured, int | float):
            raise UserError(f"{file} lacks the field {name} (a number): write it again")
        if not math.isclose(made.score, measured, rel_tol=1e-6, abs_tol=1e-9):
            raise UserError(f"{file}: score is {made.score}, but {name} is {measured}")
    same = ("problem", "metric", "split", "metrics", "score")
    return Record(
        file=file,
        row=Row(made.model.name, made.mode, made.adapter_init if made.mode != "full" else None, made.teacher),
        task=known_task(made.task),
        seed=made.seed if isinstance(made, FinetuneRecord) else None,
        parameters=made.model.encoder_parameters,
        trainable_parameters=made.model.trainable_parameters,
        settings=_settings(made.recipe, getattr(made, "training", None)),
        made=made,
        **{name: getattr(made, name) for name in (*same, *(("n", "sd") if summary else ()))},
    )


def _settings(recipe: Mapping[str, Any], training: TrainingPart | None = None) -> dict[str, Any]:
    sections = [section for section in ("student", "model") if section in recipe]
    later = {f"{section}.{name}": value for section in sections for name, value in SHARING_DEFAULTS.items()}
    flat = later | flat_settings(recipe)
    if training is not None and flat.get("tuning.precision") == "auto":  # as in recipes of earlier versions
        flat["tuning.precision"] = training.precision
    # Paths of the same files differ between machines; a run's name and what it holds ("distilled/model") do not.
    for name in marked(Mark.PLACE) & flat.keys():
        if isinstance(flat[name], str):
            flat[name] = "/".join(Path(flat[name]).parts[-2:])
    immaterial = marked(Mark.NAME, Mark.SEED, Mark.PACE)
    return {key: flat[key] for key in flat if key not in immaterial and not key.startswith("grid.")}


def _take_in_grid(file: Path, data: Mapping[str, Any], tuned: dict[Path, Record]) -> list[Record]:
    """Mark a grid's cells among the tuned records, and return what has to be added to them."""
    grid = typed_record(data, GridRecord, file)
    chosen = replace(_record({**data, **grid.selected}, file, summary=True), grid=file)
    within = [path for path, record in tuned.items() if file.parent in path.parents and record.grid is None]
    cells = {path: replace(tuned[path], grid=file) for path in within if tuned[path].task == chosen.task}
    inline = []
    for entry in grid.cells:
        if isinstance(entry, dict) and entry.get("kind") == "finetune":
            inline.append(replace(_record(entry, file), grid=file))
        elif isinstance(entry, str):
            path = (file.parent / entry).resolve()
            if file.parent not in path.parents:
                raise UserError(
                    f"{file} names a cell outside of its folder ({quoted(entry)}): expected cells/NAME"
                )
            path = path if path.is_file() else path / "result.json"
            if path not in cells and is_run_file(path):
                cells[path] = replace(_record(load_record(path), path), grid=file)

    def is_chosen(record: Record) -> bool:
        same = all(record.settings.get(key) == value for key, value in chosen.settings.items())
        return same and (record.row, record.task) == (chosen.row, chosen.task)

    runs, added = list(filter(is_chosen, cells.values())), []
    if len(runs) < chosen.n <= len(found := list(filter(is_chosen, inline))):
        runs = added = found
    if len(runs) < chosen.n:
        seed = grid.selected.get("seed")
        known = chosen.n == 1 and isinstance(seed, int) and not isinstance(seed, bool)
        runs, added = [], [replace(chosen, seed=seed if known else None)]
    elif not math.isclose(statistics.fmean(run.score for run in runs), chosen.score, abs_tol=1e-6):
        raise UserError(
            f"{file}: selected.score is {chosen.score}, but the {len(runs)} cells with its settings have a mean of "
            f"{statistics.fmean(run.score for run in runs)}: run the grid again, or move old cells away"
        )
    for path, record in cells.items():
        tuned[path] = replace(record, selected=record in runs)
    return added


def known_task(name: str) -> str:
    """Return a task as the paper's columns spell it ("STS-B" is "stsb"), or the name of no such task as it is."""
    return _KNOWN.get(_letters(name), name)


def _letters(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


_KNOWN = {_letters(task): task for task in KNOWN_TASKS}
