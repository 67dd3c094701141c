"""A labelled task as every reader returns it: examples by split, labels by name, and the metric that counts.

Labels are kept as names. Ids are given in one place, by the order of `Task.labels`, and saved with the model
(`id2label`); so files, teachers and students with other ids still agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from minialbert_runtime.words import Span

from minialbert.data.question_answering import Gold
from minialbert.data.task_types import TaskType, task_type
from minialbert.errors import UserError, quoted


@dataclass(frozen=True, slots=True)
class TextExample:
    """A text or a pair of texts to classify or score.

    Its label is the name of its class, its score, the names of all classes that apply, the answers to a question
    (`Gold`; `pair` is the text that holds them), or None when unlabelled.
    """

    text: str
    pair: str | None = None
    label: str | float | tuple[str, ...] | None = None
    id: str | None = None  # what the file calls the row, for submissions
    group: str | None = None  # whose rows stay together when some are set apart (a patient)


@dataclass(frozen=True, slots=True)
class TokenExample:
    """A sentence as words, each with an IOB2 tag."""

    words: tuple[str, ...]  # none of them empty
    tags: tuple[str, ...] | None = None  # as many ("O", "B-Disease", "I-Disease"), or None when unlabelled
    text: str | None = None  # the running text that the words were cut from, where the file has it
    offsets: tuple[tuple[int, int], ...] | None = None  # first and last character (exclusive) of each word
    spans: tuple[Span, ...] | None = None  # entities, where they need not end where a word does
    group: str | None = None


Example = TextExample | TokenExample


@dataclass(frozen=True)
class Task:
    """One labelled task."""

    name: str  # what records and tables call it ("cola", "ncbi-disease")
    problem: str  # its kind, a name of `task_types`
    labels: tuple[str, ...]  # in the order of their ids; empty for regression
    metric: str  # that selects checkpoints and is reported (one of its type's)
    splits: Mapping[str, Sequence[Example]]  # train, validation, test (MNLI: also "validation_mismatched")
    notes: tuple[str, ...] = ()  # what a reader repaired or left out, a line each; shown and recorded
    columns: str = ""  # which columns of a table were used, and which were left out
    positive: str | None = None  # of two classes the one that `f1` is about; the last where nobody said

    @property
    def type(self) -> TaskType:
        """What kind of task it is."""
        return task_type(self.problem)

    @property
    def reported_split(self) -> str:
        """The split that a result is quoted on: test where it has labels, else validation."""
        labelled = any(label_of(example) is not None for example in self.splits.get("test", ())[:1])
        return "test" if labelled else "validation"

    @property
    def pairs(self) -> bool | None:
        """Whether rows (of train, if there) are pairs of texts; None where they differ, or are words."""
        rows = self.splits.get("train") or next(iter(self.splits.values()), ())
        kinds = {example.pair is not None for example in rows if isinstance(example, TextExample)}
        return kinds.pop() if len(kinds) == 1 else None


def check_metric(kind: TaskType, name: str) -> None:
    """Raise UserError for a metric that a kind of task does not have."""
    if name not in kind.metrics:
        raise UserError(f"task.metric {quoted(name)}: a {kind.name} task has {', '.join(kind.metrics)}")


def first_rows(task: Task, limit: int | None) -> Task:
    """Returns a task with its first training rows alone, which a note says; None keeps all."""
    if limit is not None and limit < 1:
        raise UserError(f"max_train_rows is {limit}: expected at least 1, or None for all")
    train = task.splits.get("train", ())
    if limit is None or limit >= len(train):
        return task
    note = f"train: the first {limit:,} of {len(train):,} rows"
    return replace(task, splits={**task.splits, "train": train[:limit]}, notes=(*task.notes, note))


def label_of(example: Example) -> str | float | tuple[str, ...] | None:
    """Returns an example's label, or its tags; None where it has none."""
    return example.tags if isinstance(example, TokenExample) else example.label


def counted_labels(example: Example) -> tuple[str, ...]:
    """Returns the classes of an example, or the types of its entities, one for each; () for scores."""
    label = label_of(example)
    if isinstance(label, Gold):
        return ("answer",) if label else ("no answer",)
    if isinstance(example, TokenExample):
        return tuple(tag[2:] for tag in example.tags or () if tag.startswith("B-"))
    return label if isinstance(label, tuple) else (label,) if isinstance(label, str) else ()


def repeats(examples: Sequence[Example], power: float) -> tuple[list[int], dict[str, int]]:
    """Returns how often each row should stand in train, and how often rows of each class do, the rarest first.

    A class that c of the rows have stands (c_max / c)^power times, rounded, and a row as often as its rarest class, as
    Gupta et al., 2019, do. Rows without a class count as one more class, and stand once.
    """
    classes = [set(counted_labels(example)) for example in examples]
    counts = Counter(name for row in classes for name in row or {""})
    most = max(counts.values(), default=1)
    rarest_first = sorted(counts, key=counts.__getitem__)
    times = {name: round((most / counts[name]) ** power) for name in rarest_first}
    times.pop("", None)
    return [max((times[name] for name in row), default=1) for row in classes], times
