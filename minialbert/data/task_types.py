"""What sets one kind of task apart from another: its labels, head, loss, answers and figures, in one object.

Everything else asks the object. Records, recipes and `task.json` name it (`problem`). Another kind is a subclass of
`TaskType` or of one of its four, given to `register_task_type`; see docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from minialbert_runtime.answers import ANSWERS, Logits, class_of, classes_over, score_of
from torch import Tensor
from torch.nn import functional

from minialbert.data.masking import IGNORED_LABEL
from minialbert.data.metrics import (
    class_metrics,
    confusion,
    multi_label_metrics,
    never_predicted,
    regression_metrics,
    single_label_metrics,
)
from minialbert.data.task_inputs import Encoded, encode_sentences, encode_texts
from minialbert.errors import UserError, quoted
from minialbert.runs.records import ERRORS, NO_SHARES, TAGGING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from minialbert.data.examples import Task, TextExample


# The answer to each example, and the figures where all have gold labels (else none).
Answers = tuple[list[Any], dict[str, Any]]
# Summed over labels, and the weight that it sums over.
Loss = tuple[Tensor, Tensor]
_OF_CLASSES = (
    "f1_weighted", "precision_macro", "precision_weighted", "recall_macro", "recall_weighted", "auroc",
    "average_precision",
)  # fmt: skip


class TaskType:
    """A kind of task; a subclass says what is other in its own.

    Attributes:
        name: what records, recipes and `task.json` call it.
        option: what --task calls it; "" for a kind that only `task.problem` names.
        metrics: its figures, the one that selects and is reported first.
        lower_is_better: those of them that are errors.
        label: what an example's label is: a class by its name, several, a score, a tag for each word, or
            the answers to a question.
        head: Transformers' class of model ("question-answering", ...).
        problem_type: what the model's config says to Transformers.
        package: module and package that its figures need.
        class_weights: whether classes can be weighed against each other.
        focal_gamma: None for a kind whose loss cannot be focal; else the exponent, see `focal`.
    """

    name: ClassVar[str]
    option: ClassVar[str] = ""
    metrics: ClassVar[tuple[str, ...]]
    lower_is_better: ClassVar[tuple[str, ...]] = ()
    label: ClassVar[Literal["class", "classes", "score", "token", "answer"]] = "class"
    head: ClassVar[str] = "sequence-classification"
    problem_type: ClassVar[str | None] = None
    package: ClassVar[tuple[str, str]] = ("sklearn.metrics", "scikit-learn")
    class_weights: ClassVar[bool] = False
    focal_gamma: float | None = None

    def focal(self, gamma: float) -> Self:
        """Return this kind with a focal loss (Lin et al., 2017): that of a label of probability p times (1 - p)^gamma.

        Raises UserError for a kind without one.
        """
        if gamma and self.focal_gamma is None:
            raise UserError(f"tuning.focal_gamma: a {self.name} task has no classes to focus on")
        if not gamma:
            return self
        focused = copy(self)
        focused.focal_gamma = gamma
        return focused

    @property
    def tagging(self) -> bool:
        """Whether words are labelled rather than texts."""
        return self.label == "token"

    @property
    def has_classes(self) -> bool:
        """Whether labels are names, rather than scores."""
        return self.label != "score"

    def read_cell(self, cell: object) -> Any:
        """Return the label of a table's cell that is not empty; NotImplemented: as any label of its sort is read.

        Raises ValueError with what was expected.
        """
        return NotImplemented

    def checked(self, example: TextExample) -> TextExample:
        """Return the example of a row as it is kept; ValueError where its label is not one of its texts."""
        return example

    def encode(
        self,
        examples: Sequence[Any],
        tokenizer: PreTrainedTokenizerFast,
        task: Task,
        *,
        max_length: int,
        overlap: int,
        long_texts: str = "cut",
        **_: Any,  # of words
    ) -> Encoded:
        """Return examples as model inputs, with `labels` as the loss wants them; long texts "cut" or in "windows"."""
        how: dict[str, Any] = {"max_length": max_length, "overlap": overlap, "long_texts": long_texts}
        return encode_texts(examples, tokenizer, task, **how)

    def weight(self, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Return what a batch's loss is divided by: its labels, each with the weight of its class."""
        return _count(labels)

    def loss(self, logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Loss:
        """Return the summed loss on gold labels, and the weight it sums over, as scalars in fp32.

        Their quotient, taken over a whole optimiser step, is the mean that torch's losses take over a batch. Logits
        are (B, L), or (B, T, L) for tags; labels (B,), (B, L) or (B, T), -100 ignored.
        """
        raise NotImplementedError

    def logit_loss(self, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """Return the summed loss between a student's and a teacher's logits of one shape, in fp32."""
        raise NotImplementedError

    def shifted(self, logits: Logits, over: Any) -> Logits:
        """Return logits from which is taken what a decision's thresholds ask of each label, see `Decision.over`."""
        return np.asarray(logits - over, np.float32)

    def results(
        self, task: Task, examples: Sequence[Any], encoded: Encoded, logits: Sequence[Logits]
    ) -> Answers:
        """Return the model's answer to each example, and the figures where all have gold labels (else none)."""
        gold = [row.get("labels") for row in encoded.rows]
        labelled = all(label is not None for label in gold)
        return self.answers(task, np.stack(logits), gold if labelled else None)

    def answers(self, task: Task, logits: Logits, gold: list[Any] | None) -> Answers:
        """Return the answers to texts with logits (rows, L), and the figures against gold labels as encoded."""
        raise NotImplementedError

    def is_sound(self, figures: Mapping[str, Any]) -> bool:
        """Return whether a state of such figures may be kept for its metric alone, rather than as a last resort."""
        return True

    def remarks(self, figures: Mapping[str, Any]) -> list[str]:
        """Return what a reader of figures has to be told, a line each."""
        return never_predicted(figures)

    # What `predict` says of a text with logits (L,), from labels and the threshold of several classes.
    answer = staticmethod(class_of)


class SingleLabel(TaskType):
    """One class of several."""

    name, option = "single-label", "classification"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1", "f1_macro", "matthews_correlation", *_OF_CLASSES)
    problem_type: ClassVar[str | None] = "single_label_classification"
    class_weights = True
    focal_gamma = 0.0

    def weight(self, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Return the number of labels, each with the weight of its class."""
        targets = labels.flatten()
        targets = targets[targets != IGNORED_LABEL]
        return _count(targets) if class_weights is None else class_weights.to(targets.device)[targets].sum()

    def loss(self, logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Loss:
        """Return cross-entropy in nats, weighted by class, (L,), where weights are given."""
        flat, targets = logits.float().flatten(0, -2), labels.flatten()
        each = partial(functional.cross_entropy, flat, targets, ignore_index=IGNORED_LABEL)
        if self.focal_gamma:
            weighted, nats = each(weight=class_weights, reduction="none"), each(reduction="none")
            loss = _focused(weighted, nats, self.focal_gamma)
        else:
            loss = each(weight=class_weights, reduction="sum")
        return loss, self.weight(labels, class_weights)

    def logit_loss(self, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """Return T^2 KL(teacher || student) of the softened distributions at labelled positions.

        As Hinton et al., 2015, and Eq. 10.
        """
        kept = labels.flatten() != IGNORED_LABEL
        flat = (logits.float().flatten(0, -2)[kept] / temperature for logits in (student, teacher))
        ours, theirs = (torch.log_softmax(logits, dim=-1) for logits in flat)
        return temperature**2 * functional.kl_div(ours, theirs, reduction="sum", log_target=True)

    def answers(self, task: Task, logits: Logits, gold: list[Any] | None) -> Answers:
        """Return the likeliest class of each text."""
        ids = logits.argmax(axis=1).tolist()
        named = [task.labels[index] for index in ids]
        if gold is None:
            return named, {}
        count = len(task.labels)
        positive = None if task.positive is None else task.labels.index(task.positive)
        # A gold label of a class that the model does not have is none of its own.
        true, chosen = (np.equal.outer(rows, np.arange(count)) for rows in (gold, ids))
        # In 64 bits, as `predict` says them: in 32 all that are surer than 1 - 3e-8 would be equal.
        chances = torch.from_numpy(logits).double().softmax(-1).numpy()
        by_class = class_metrics(true, chosen, chances, task.labels, positive)
        one = single_label_metrics(gold, ids, count, 1 if positive is None else positive)
        return named, {**by_class, **one, "confusion": confusion(gold, ids, task.labels)}


class Token(SingleLabel):
    """A tag for each word. Its answers are read by words, in tasks/predictions."""

    name, option, label = "token", "ner", "token"
    metrics = (
        "entity_f1", "entity_precision", "entity_recall", "entity_f1_strict", "entity_f1_subword", "token_accuracy",
    )  # fmt: skip
    head, problem_type = "token-classification", None
    package = ("seqeval.metrics", "seqeval")
    encode = staticmethod(encode_sentences)


class MultiLabel(TaskType):
    """All classes that apply, perhaps none."""

    name = option = "multi-label"
    label = "classes"
    metrics = ("f1_micro", "f1_macro", "accuracy", *_OF_CLASSES)
    problem_type = "multi_label_classification"
    focal_gamma = 0.0

    def loss(self, logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Loss:
        """Return binary cross-entropy over all classes, in nats."""
        losses = functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
        loss = _focused(losses, losses, self.focal_gamma) if self.focal_gamma else losses.sum()
        return loss, self.weight(labels)

    def logit_loss(self, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """Return T^2 KL(teacher || student) of the softened Bernoulli variables."""
        targets = torch.sigmoid(teacher / temperature)
        cross, entropy = (
            functional.binary_cross_entropy_with_logits(logits / temperature, targets, reduction="sum")
            for logits in (student.float(), teacher)
        )
        return temperature**2 * (cross - entropy)

    def answers(self, task: Task, logits: Logits, gold: list[Any] | None) -> Answers:
        """Return the names of the classes whose probability is above one half."""
        chosen = logits > 0
        named = [tuple(name for name, is_in in zip(task.labels, row, strict=True) if is_in) for row in chosen]
        if gold is None:
            return named, {}
        true = np.array(gold, dtype=bool)
        by_class = class_metrics(true, chosen, logits, task.labels)
        return named, {**by_class, **multi_label_metrics(true, chosen)}

    def results(
        self, task: Task, examples: Sequence[Any], encoded: Encoded, logits: Sequence[Logits]
    ) -> Answers:
        """Return answers and figures; classes that the model does not have count as one that it never names."""
        answers, metrics = super().results(task, examples, encoded, logits)
        unknown = [bool(set(example.label or ()) - set(task.labels)) for example in examples]
        if metrics and any(unknown):
            gold = np.column_stack([[row["labels"] for row in encoded.rows], unknown]).astype(bool)
            named = np.column_stack([np.stack(logits) > 0, np.zeros_like(unknown)])
            metrics |= multi_label_metrics(gold, named)
        return answers, metrics

    answer = staticmethod(classes_over)


class Regression(TaskType):
    """A score."""

    name = option = "regression"
    label = "score"
    metrics = ("pearson_spearman", "pearson", "spearmanr", "mean_squared_error", "r2")
    lower_is_better = ("mean_squared_error",)
    problem_type = "regression"
    package = ("scipy.stats", "scipy")

    def loss(self, logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Loss:
        """Return squared errors."""
        return functional.mse_loss(logits.float().squeeze(-1), labels, reduction="sum"), self.weight(labels)

    def logit_loss(self, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """Return squared differences."""
        return functional.mse_loss(student.float(), teacher, reduction="sum")

    def answers(self, task: Task, logits: Logits, gold: list[Any] | None) -> Answers:
        """Return the scores."""
        scores = logits[:, 0].tolist()
        return scores, regression_metrics(gold, scores) if gold is not None else {}

    def is_sound(self, figures: Mapping[str, Any]) -> bool:
        """Return whether the scores have the right size, which no correlation sees.

        Of scores whose only fault is noise `r2` is the square of Pearson's correlation.
        """
        return bool(figures.get("r2", 0.0) >= figures.get("pearson", 0.0) ** 2 / 2)

    def remarks(self, figures: Mapping[str, Any]) -> list[str]:
        """Return a line where the model says hardly more than the mean, or where there is nothing to tell apart."""
        if "r2" not in figures:
            return ["all scores are the same, of which there is no correlation: it is 0 here"]
        if figures["r2"] > 0.1:
            return []
        error = figures["mean_squared_error"]
        return [
            f"the mean squared error, {error:.4g}, is not clearly below the variance of the scores, "
            f"{error / (1 - figures['r2']):.4g}: the model says hardly more than their mean"
        ]

    answer = staticmethod(score_of)


_KINDS: tuple[TaskType, ...] = (SingleLabel(), MultiLabel(), Regression(), Token())
TASK_TYPES = {kind.name: kind for kind in _KINDS}


def register_task_type(kind: TaskType) -> None:
    """Let tasks be of another kind, until the process ends; exported folders of texts can be run, too.

    Raises UserError if its name is taken.
    """
    if kind.name in TASK_TYPES or kind.option in task_options():
        raise UserError(f"there is a task type {quoted(kind.name)} already: give another name")
    TASK_TYPES[kind.name] = kind
    NO_SHARES.update(kind.lower_is_better)
    ERRORS.update(kind.lower_is_better)
    if kind.tagging:
        TAGGING.add(kind.name)
    else:
        ANSWERS[kind.name] = kind.answer


def task_type(name: str) -> TaskType:
    """Return the kind of task of a name; a UserError where nobody registered it."""
    if name not in TASK_TYPES:
        raise UserError(f"unknown problem {quoted(name)}; expected one of {', '.join(TASK_TYPES)}")
    return TASK_TYPES[name]


def task_options() -> dict[str, TaskType]:
    """Return kinds by what --task calls them."""
    return {kind.option: kind for kind in TASK_TYPES.values() if kind.option}


def _focused(losses: Tensor, own: Tensor, gamma: float) -> Tensor:
    """Return the sum of losses, each times (1 - p)^gamma, where `own` is -log p."""
    # The clamp keeps the gradient finite where p is 1 and gamma below 1.
    return (losses * (-torch.expm1(-own)).clamp_min(1e-6) ** gamma).sum()


def _count(tensor: Tensor) -> Tensor:
    return torch.tensor(float(tensor.numel()), device=tensor.device)
