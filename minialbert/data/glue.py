"""The nine GLUE tasks, read from the official TSV files or from the hub into one form."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minialbert.data.examples import Task, TextExample
from minialbert.data.hub import assign_splits, load_hub
from minialbert.data.rows import LabelledData, table_in_memory
from minialbert.data.table_files import file_error, numbered_lines
from minialbert.data.task_types import Regression, SingleLabel
from minialbert.errors import UserError, listed, local_path, quoted, shown
from minialbert.runs.files import write_atomically, writing

logger = logging.getLogger(__name__)

HUB_DATASET = "nyu-mll/glue"

_USUAL_FILES = {"train": ("train.tsv",), "validation": ("dev.tsv",), "test": ("test.tsv",)}
# dev.tsv is not in the official download; samples and cut-down copies of MNLI have it.
_MNLI_FILES: dict[str, tuple[str, ...]] = {
    "train": ("train.tsv",),
    "validation": ("dev_matched.tsv", "dev.tsv"),
    "validation_mismatched": ("dev_mismatched.tsv",),
    "test": ("test_matched.tsv",),
    "test_mismatched": ("test_mismatched.tsv",),
}
_HUB_SPLITS = {"validation_matched": "validation", "test_matched": "test"}
_INDEX_COLUMNS = ("index", "id")


@dataclass(frozen=True)
class GlueTask:
    """What is particular to one task."""

    name: str  # its key in `GLUE_TASKS` and its config on the hub
    folder: str  # in the official download
    columns: tuple[str, ...]  # the one or two text columns in the files
    # How the files spell each label, in the order of the hub's ids; None stands for "no label was agreed on", and such
    # rows are left out. Empty for a score from 0 to 5.
    spellings: Mapping[str, str | None]
    label_column: str = "label"  # in the files; on the hub it is always "label"
    hub_columns: tuple[str, ...] = ()  # the text columns on the hub, where they are called otherwise
    metric: str = "accuracy"  # that is reported
    header: tuple[str, ...] = ()  # of a train or dev file that has no header line
    # The names that each split may have, the first that is there being read.
    files: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _USUAL_FILES)
    # Whether the official files hold broken rows and empty texts, to be left out and counted.
    known_defects: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels in the order of their ids; empty for a score."""
        return tuple(name for name in self.spellings.values() if name is not None)

    @property
    def problem(self) -> str:
        """The kind of task."""
        return (SingleLabel if self.labels else Regression).name


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = {"entailment": "entailment", "not_entailment": "not_entailment"}
_MNLI_LABELS = {"entailment": "entailment", "neutral": "neutral", "contradiction": "contradiction", "-": None}
_TASKS = (
    GlueTask(
        "mnli", "MNLI", _PAIR, _MNLI_LABELS, label_column="gold_label", files=_MNLI_FILES,
        hub_columns=("premise", "hypothesis"),
    ),
    GlueTask(
        "qqp", "QQP", ("question1", "question2"), {"0": "not_duplicate", "1": "duplicate"},
        label_column="is_duplicate", metric="f1", known_defects=True,
    ),
    GlueTask("qnli", "QNLI", ("question", "sentence"), _ENTAILMENT),
    GlueTask("sst2", "SST-2", ("sentence",), {"0": "negative", "1": "positive"}),
    GlueTask(
        "cola", "CoLA", ("sentence",), {"0": "unacceptable", "1": "acceptable"}, metric="matthews_correlation",
        header=("source", "label", "mark", "sentence"),
    ),
    GlueTask("stsb", "STS-B", _PAIR, {}, label_column="score", metric="pearson_spearman"),
    GlueTask(
        "mrpc", "MRPC", ("#1 String", "#2 String"), {"0": "not_equivalent", "1": "equivalent"},
        label_column="Quality", metric="f1", hub_columns=_PAIR,
    ),
    GlueTask("rte", "RTE", _PAIR, _ENTAILMENT),
    GlueTask("wnli", "WNLI", _PAIR, {"0": "not_entailment", "1": "entailment"}),
)  # fmt: skip
GLUE_TASKS: dict[str, GlueTask] = {task.name: task for task in _TASKS}


def glue_task_name(name: str) -> str | None:
    """Return the key in `GLUE_TASKS` that a spelling ("CoLA", "sts-b", "SST2") means, or None."""
    key = name.strip().lower().replace("-", "").replace("_", "")
    return key if key in GLUE_TASKS else None


def glue_task(name: str) -> GlueTask:
    """Return a task by any spelling of its name ("CoLA", "sts-b", "sst2"); raise UserError if there is none."""
    key = glue_task_name(name)
    if key is None:
        raise UserError(f"{quoted(name)} is no GLUE task: expected one of {', '.join(sorted(GLUE_TASKS))}")
    return GLUE_TASKS[key]


def load_glue(name: str, data: LabelledData | None = None) -> Task:
    """Read a GLUE task.

    The splits are "train", "validation" and, where its file is there, "test", whose examples have no label but
    the benchmark's index as `id`. MNLI also has "validation_mismatched", "test_mismatched" and, with a
    `diagnostic.tsv` in its folder or in a folder `diagnostic` beside it, "diagnostic". What was left out stands in the
    notes.

    The data are the task's own directory, the directory that holds it under its official name, None or "hub" for the
    hub, or rows in memory by split, with the hub's columns and the names of classes or their ids.
    """
    task = glue_task(name)
    if data is None or str(data) == "hub":
        advice = f"check the network, or give the directory with {task.folder}/train.tsv as the task's data"
        failure = f"could not get {HUB_DATASET} ({task.name}) from the hub: {advice}"
        return _of_rows(task, f"{HUB_DATASET} ({task.name})", load_hub(HUB_DATASET, task.name, failure))
    if not isinstance(data, str | Path):
        return _of_rows(task, f"rows in memory ({task.name})", data)
    folder = _find_folder(task, local_path(data))
    parts: dict[str, _Split] = {}
    notes = []
    for split, path in _find_files(task, folder).items():
        parts[split] = _read_file(task, path, labelled=_has_labels(split))
        expected = task.files[split][0] if split in task.files else path.name
        if path.name != expected:
            notes.append(f"{split}: {path.name}, as there is no {expected}")
    return _task(task, parts, notes)


def _of_rows(task: GlueTask, title: str, data: Any) -> Task:
    """Return a task of rows in memory, such as the hub's, as `load_glue` returns one of files.

    Ids of labels are those of the column's own `ClassLabel` where it has one, else the order of the task's labels.
    """
    splits = data if isinstance(data, Mapping) else {"train": data}
    stems = {split: _HUB_SPLITS.get(split, split) for split in splits}
    known = assign_splits(stems, title)
    known |= {stem: split for split, stem in stems.items() if stem.endswith("_mismatched")}
    for split in ("train", "validation"):
        if split not in known:
            raise UserError(f"{title} has no split {split}; the splits are: {listed(splits)}")
    parts = {split: _convert_rows(task, title, key, splits[key]) for split, key in known.items()}
    return _task(task, parts, [])


@dataclass
class _Split:
    """Examples of one split, gathered row by row, and a count of what was left out."""

    task: GlueTask
    source: str  # what notes call the split: the file's name, or the hub's name of the split
    columns: Sequence[str]  # names of the texts, for messages
    spellings: Mapping[str, str | None]  # as in `GlueTask`; for rows in memory, also ids and names
    labelled: bool
    examples: list[TextExample] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def may_leave_out(self) -> bool:
        """Whether a defect costs the row only. Never in a test split: the benchmark wants every index."""
        return self.task.known_defects and self.labelled

    def add(self, where: str, texts: Sequence[str], label: str | None, row_id: str | None) -> None:
        texts = [text.strip() for text in texts]
        if not all(texts) and not self.task.known_defects:
            column = self.columns[texts.index("")]
            raise UserError(f"{where}: {column!r} is empty; expected a text in every row")
        if not all(texts) and self.may_leave_out:
            self.left_out["with an empty question"] += 1
            return
        value = self._label(where, (label or "").strip()) if self.labelled else None
        if self.labelled and value is None:
            self.left_out["without an agreed label"] += 1
        else:
            pair = texts[1] if len(texts) == 2 else None
            self.examples.append(TextExample(texts[0], pair, value, row_id))

    def _label(self, where: str, spelled: str) -> str | float | None:
        if not self.spellings:
            return _score(where, spelled)
        if spelled not in self.spellings:
            allowed = ", ".join(spelling for spelling, name in self.spellings.items() if name is not None)
            raise UserError(f"{where}: unknown label {quoted(spelled)}; expected one of {allowed}")
        return self.spellings[spelled]

    def notes(self) -> list[str]:
        counts = sorted(self.left_out.items())
        return [f"{self.source}: left out {n:,} row{'s' if n > 1 else ''} {reason}" for reason, n in counts]


def _score(where: str, spelled: str) -> float:
    try:
        score = float(spelled)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 5:
        raise UserError(f"{where}: score {quoted(spelled)}; expected a number from 0 to 5")
    return score


def _has_labels(split: str) -> bool:
    return not split.startswith(("test", "diagnostic"))


def _task(task: GlueTask, parts: Mapping[str, _Split], notes: list[str]) -> Task:
    for part in parts.values():
        if not part.examples:
            kind = "labelled row" if part.labelled else "row"
            raise UserError(f"{task.name}: {part.source} has no {kind}: expected at least one")
        notes += part.notes()
    splits = {split: part.examples for split, part in parts.items()}
    if task.name == "mnli" and "validation_mismatched" not in splits:
        notes.append("no mismatched validation split (dev_mismatched.tsv): MNLI-mm is not reported")
    positive = task.labels[1] if len(task.labels) == 2 else None
    return Task(task.name, task.problem, task.labels, task.metric, splits, tuple(notes), positive=positive)


def _find_folder(task: GlueTask, data: Path) -> Path:
    if not data.is_dir():
        state = "is a file" if data.is_file() else "does not exist"
        advice = f"expected the directory {task.folder}, or the one that holds it, for {task.name}"
        raise UserError(f"{data} {state}: {advice}")
    if any((data / name).is_file() for names in task.files.values() for name in names):
        return data
    folders = sorted(entry for entry in data.iterdir() if entry.is_dir())
    for entry in (*folders, data):
        if glue_task_name(entry.name) == task.name:
            return entry
    files = f"{_alternatives(task, 'train')}, {_alternatives(task, 'validation')}"
    lacks = f"neither a directory {task.folder} nor the files of {task.name} ({files})"
    raise UserError(f"{data} has {lacks}; there is: {_listing(data)}")


def _find_files(task: GlueTask, folder: Path) -> dict[str, Path]:
    found = {}
    for split, names in task.files.items():
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is not None:
            found[split] = path
        elif split in ("train", "validation"):
            lacks = f"no {_alternatives(task, split)}, which {task.name} needs"
            raise UserError(f"{folder} has {lacks}; there is: {_listing(folder)}")
    if task.name == "mnli":
        places = (folder, folder.absolute().parent / "diagnostic")
        there = [place / "diagnostic.tsv" for place in places if (place / "diagnostic.tsv").is_file()]
        found |= {"diagnostic": there[0]} if there else {}
    return found


def _alternatives(task: GlueTask, split: str) -> str:
    return " or ".join(task.files[split])


def _listing(folder: Path, at_most: int = 12) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return (listed(names[:at_most]) if names else "nothing") + more


def _read_file(task: GlueTask, path: Path, *, labelled: bool) -> _Split:
    part = _Split(task, path.name, task.columns, task.spellings, labelled)
    # Split by hand at LF and TAB: the fields hold bare quotation marks, and characters such as U+2028 that
    # `str.splitlines` takes for line ends.
    rows = ((number, line.split("\t")) for number, line in numbered_lines(path) if line)
    header: Sequence[str] = task.header
    if not (labelled and header):
        _, header = next(rows, (0, []))
        if not header:
            raise UserError(f"{path} is empty: expected a header line and rows")
    names = [column.strip() for column in header]
    wanted = [*task.columns, task.label_column] if labelled else list(task.columns)
    if missing := [column for column in wanted if column not in names]:
        known = listed(dict.fromkeys(names))
        raise UserError(f"{path} has no column {', '.join(missing)}; the columns are: {known}")
    index = next((column for column in _INDEX_COLUMNS if column in names), None)
    for line, fields in rows:
        # A stray TAB in a text moves the fields after it; the label column could then hold another valid label.
        if len(fields) < len(header) or any(extra.strip() for extra in fields[len(header) :]):
            if not part.may_leave_out:
                expected = f"expected {len(header)} columns split at TAB"
                raise file_error(path, line, f"{expected}, found {len(fields)}")
            part.left_out["with too few or too many columns"] += 1
            continue
        cells = dict(zip(names, fields, strict=False))  # what is behind the last column is blank
        row_id = None if index is None else cells[index].strip() or None
        label = cells[task.label_column] if labelled else None
        part.add(f"{path}:{line}", [cells[column] for column in task.columns], label, row_id)
    return part


def _convert_rows(task: GlueTask, title: str, split: str, rows: Any) -> _Split:
    labelled = _has_labels(split)
    names: dict[str, str | None] = {str(number): name for number, name in enumerate(task.labels)}
    names |= {name: name for name in task.labels}
    if None in task.spellings.values():
        names |= {"-1": None, "None": None}
    columns = task.hub_columns or task.columns
    part = _Split(task, split, columns, names, labelled)
    needed = [*columns, "label"] if labelled else columns
    table = table_in_memory(rows, f"{title}, {split}", in_words=False)
    bare = ("text", "label") if len(columns) == 1 else ("sentence1", "sentence2", "label")  # of tuples
    names_of = dict(zip(bare, (*columns, "label"), strict=True)) if table.columns == bare else {}
    for number, cells in table.rows:
        row = {names_of.get(column, column): cell for column, cell in cells.items()}
        where = f"{title}, {split}, row {number}"
        missing = [column for column in needed if column not in row]
        if missing:
            raise UserError(f"{where}: no column {', '.join(missing)}; the columns are: {listed(row)}")
        for column in columns:
            if not isinstance(row[column], str | None):
                raise UserError(f"{where}: expected a text in {column!r}, found {quoted(row[column])}")
        label, row_id = row["label"] if labelled else None, row.get("idx")
        if isinstance(label, float):  # stored in single precision: 3.8 comes back as 3.799999952
            label = round(label, 6)
        texts = [row[column] or "" for column in columns]
        part.add(where, texts, str(label), None if row_id is None else str(row_id))
    return part


# Name without suffix and number of rows, by task and split.
_FILES: dict[tuple[str, str], tuple[str, int]] = {
    ("cola", "test"): ("CoLA", 1_063),
    ("sst2", "test"): ("SST-2", 1_821),
    ("mrpc", "test"): ("MRPC", 1_725),
    ("stsb", "test"): ("STS-B", 1_379),
    ("qqp", "test"): ("QQP", 390_965),
    ("mnli", "test"): ("MNLI-m", 9_796),
    ("mnli", "test_mismatched"): ("MNLI-mm", 9_847),
    ("mnli", "diagnostic"): ("AX", 1_104),
    ("qnli", "test"): ("QNLI", 5_463),
    ("rte", "test"): ("RTE", 3_000),
    ("wnli", "test"): ("WNLI", 146),
}


def submission_file(task: str, split: str, folder: Path) -> Path:
    """Return the path of the benchmark's file for an unlabelled split; raise UserError if it takes no such split."""
    name = glue_task(task).name
    if (name, split) not in _FILES:
        splits = ", ".join(known for glue, known in _FILES if glue == name)
        raise UserError(f"no submission for split {quoted(split)} of {name}: expected one of {splits}")
    return folder / f"{_FILES[name, split][0]}.tsv"


def write_submission(
    task: str, split: str, ids: Sequence[str | None], predictions: Sequence[str | float], folder: Path
) -> Path:
    """Write the predictions for an unlabelled split as the benchmark's file, such as `CoLA.tsv`, and return its path.

    A number of rows other than the official one is logged as a warning: the benchmark would refuse the file. Given are
    the benchmark's index of each row, as the examples have it (all None: rows count from 0), and for each row the name
    of its label, or its score (STS-B), which is cut to 0 to 5.
    """
    glue, path = glue_task(task), submission_file(task, split, Path(folder))
    name, official_rows = _FILES[glue.name, split]
    if len(ids) != len(predictions) or not predictions:
        advice = "expected one for each row"
        raise UserError(f"{name}.tsv: {len(predictions)} predictions for {len(ids)} rows; {advice}")
    lines = [
        f"{index}\t{_spell(glue, prediction, f'{name}.tsv, index {shown(index)}')}\n"
        for index, prediction in zip(_indexes(ids, name), predictions, strict=True)
    ]
    if len(lines) != official_rows:
        told = "%s.tsv: %d rows, but the official split has %d: the benchmark would refuse the file"
        logger.warning(told, name, len(lines), official_rows)
    with writing(path, advice=None):
        write_atomically(path, "index\tprediction\n" + "".join(lines))
    return path


def _indexes(ids: Sequence[str | None], name: str) -> list[str]:
    given = [index for index in ids if index is not None]
    if not given:
        return [str(row) for row in range(len(ids))]
    if len(given) != len(ids):
        without = len(ids) - len(given)
        raise UserError(f"{name}.tsv: {without} of {len(ids)} rows have no index: expected all or none")
    seen: set[str] = set()
    for index in given:
        if not index or not index.isprintable():  # a TAB or line end would be read as another row
            raise UserError(f"{name}.tsv: index {quoted(index)}; expected the benchmark's number of the row")
        if index in seen:
            raise UserError(f"{name}.tsv: index {shown(index)} is repeated; expected each index once")
        seen.add(index)
    return given


def _spell(task: GlueTask, prediction: str | float, where: str) -> str:
    if not task.labels:
        # The comparison also holds for integers beyond floats.
        if isinstance(prediction, str) or not -math.inf < prediction < math.inf:
            raise UserError(f"{where}: score {quoted(prediction)}; expected a finite number")
        return f"{float(min(max(prediction, 0.0), 5.0)):.3f}"
    for spelling, label in task.spellings.items():
        if label is not None and label == prediction:
            return spelling
    raise UserError(f"{where}: unknown label {quoted(prediction)}; expected one of {', '.join(task.labels)}")
