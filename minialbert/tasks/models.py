"""Any encoder with a head for one task: loaded for tuning, or as tuned before."""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from minialbert_runtime.answers import Decision, decision_of
from minialbert_runtime.words import WordRule, word_rule
from tokenizers import pre_tokenizers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from minialbert.data.examples import Task, TextExample
from minialbert.data.task_types import TASK_TYPES, TaskType, task_type
from minialbert.data.tokenizers import load_tokenizer
from minialbert.errors import UserError, failing_as, quoted
from minialbert.method.encoders import (
    check_vocabulary,
    head_of,
    load_encoder,
    load_encoder_config,
    max_input_length,
    repository_file,
)
from minialbert.runs.files import whole_folder, write_json
from minialbert.runs.noise import restored

logger = logging.getLogger(__name__)

TASK_FILE = "task.json"
_SMALLEST_SPREAD = 1e-30  # of scores: a weight of a hundredth of it is still exact in 32 bits
# Names under which architectures keep their dropout.
_DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "attention_dropout",
    "seq_classif_dropout", "embedding_dropout", "mlp_dropout", "pooler_dropout",
)  # fmt: skip


@dataclass(frozen=True)
class TaskInputs:
    """How a tuned model wants its inputs; kept beside it in `task.json`.

    `metric` is what the task is reported by, `overlap` the tokens that windows of a long text share. `words` cuts
    running text for a tagger; without, every punctuation mark is a word, as for models from before there was a rule.
    `pairs` tells whether it was tuned on pairs of texts (None in a file that does not say so), `positive` which of two
    classes `f1` is about.
    `long_texts` says whether a text that is longer than an input is "cut" or read in "windows", whose logits are
    averaged, each weighted by the tokens that no window before it held; without, it is read in windows.
    `decision` says how a calibrated model chooses, and how a tagger decodes.
    """

    task: str
    problem: str
    metric: str
    max_length: int
    overlap: int
    words: WordRule | None = None
    pairs: bool | None = None
    positive: str | None = None
    long_texts: str | None = None
    decision: Decision = Decision()

    def to_json(self) -> dict[str, Any]:
        """Return what `task.json` holds; a decision only where it differs, so that others can be read by all."""
        values = asdict(self)
        if self.decision == Decision():
            del values["decision"]
        elif self.decision.decoding == "alone":  # as before there was another
            del values["decision"]["decoding"]
        return values

    @property
    def type(self) -> TaskType:
        """What kind of task it is."""
        return task_type(self.problem)


def load_for_tuning(
    name: str, task: Task, *, revision: str | None = None, dropout: float | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, list[str]]:
    """Return an encoder in fp32 with a head for a task, its tokenizer, and notes about the head.

    A head that comes with the checkpoint is kept only when its labels are the task's, in the same order;
    otherwise a new one is drawn from torch's global generator. That of a regression starts from the mean of
    the training scores: a bias moves by about one learning rate per step, so from 0 the encoder has to make
    up for it, and a small one sits on a plateau first. Without `dropout` the model's own stays. Raises
    UserError if the model cannot be loaded or is not an encoder.
    """
    config = load_encoder_config(name, revision=revision)
    saved = list(config.id2label.values())
    config.num_labels = len(task.labels) or 1
    if task.labels:
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: index for index, label in config.id2label.items()}
    config.problem_type = task.type.problem_type
    if getattr(config, "exit_threshold", None) is not None:
        config.exit_threshold = None  # it was calibrated for what the model was before
    if dropout is not None:
        for field in _DROPOUTS:
            if hasattr(config, field):
                setattr(config, field, dropout)
    loaded = load_encoder(name, task.type.head, config=config, revision=revision, new_head=True)
    model, has_head = loaded.model, loaded.has_head
    notes = []
    is_foreign = saved != (list(task.labels) or saved)
    if has_head and is_foreign:
        _reset_head(model)
        notes.append(f"head: new (the checkpoint's is for {_some(saved)})")
    if has_head and not is_foreign and not loaded.misshapen:
        notes.append("head: the checkpoint's")
    elif not task.type.has_classes:
        notes += _start_at_mean(model, task)
    tokenizer = load_task_tokenizer(name, words=task.type.tagging, revision=revision)
    check_vocabulary(model, tokenizer, name)
    return model, tokenizer, notes


def load_tuned(
    name: str, *, revision: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, TaskInputs]:
    """Return a tuned model (by `finetune`, or by anyone), its tokenizer, and how it wants its inputs.

    It is in eval mode. Raises UserError if it cannot be loaded or has no task head.
    """
    config = load_encoder_config(name, revision=revision)
    inputs = read_task_file(name, revision=revision)
    kind = inputs.type if inputs is not None else _saved_type(name, config, head_of(config))
    loaded = load_encoder(name, kind.head, config=config, revision=revision, new_head=True)
    model = loaded.model
    if keys := sorted([*loaded.missing, *loaded.misshapen]):
        raise UserError(
            f"{name} has no trained head for {kind.head.replace('-', ' ')} (missing: "
            f"{', '.join(keys[:3])}): give a model that `minialbert finetune` wrote"
        )
    inputs = inputs or usual_inputs(name, model, kind.head)
    tokenizer = load_task_tokenizer(name, words=kind.tagging, revision=revision)
    check_vocabulary(model, tokenizer, name)
    return model.eval(), tokenizer, inputs


def usual_inputs(name: str, model: PreTrainedModel, head: str) -> TaskInputs:
    """Return how a model that others tuned wants its inputs, of which nothing is said."""
    kind, longest = _saved_type(name, model.config, head), max_input_length(model)
    return TaskInputs("", kind.name, "", min(512, longest), min(64, longest // 4))


def save_tuned(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, inputs: TaskInputs, directory: Path
) -> None:
    """Write model, tokenizer and `task.json` to a directory, which appears complete or not at all."""
    model.eval()
    with whole_folder(directory) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / TASK_FILE, inputs.to_json())


def load_task_tokenizer(name: str, *, words: bool, revision: str | None = None) -> PreTrainedTokenizerFast:
    """Return a model's fast tokenizer, perhaps one that takes words, or a UserError."""
    tokenizer = load_tokenizer(name, revision=revision)
    if words:
        # Byte-level BPE tells a word by the space before it; words alone have none.
        if getattr(tokenizer, "add_prefix_space", None) is False:
            tokenizer = load_tokenizer(name, revision=revision, add_prefix_space=True)
        # A class that reads tokenizer.json as it is (ModernBERT's) leaves its rule alone.
        rule = tokenizer.backend_tokenizer.pre_tokenizer
        if isinstance(rule, pre_tokenizers.ByteLevel):
            rule.add_prefix_space = True
    if not isinstance(tokenizer.model_max_length, int | float):
        raise UserError(f"the model_max_length of the tokenizer of {name} is not a number: mend its config")
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of {name} has no padding token: add one, as pad_token in its config")
    return tokenizer


def model_labels(model: PreTrainedModel) -> tuple[str, ...]:
    """Return a model's label names in the order of their ids."""
    id2label = model.config.id2label
    return tuple(id2label[index] for index in sorted(id2label))


def check_labels(model: PreTrainedModel, task: Task, name: str) -> None:
    """Refuse a model whose labels are not the task's, in whatever order, naming those that differ."""
    labels = model_labels(model)
    if not task.type.has_classes:
        if model.config.num_labels != 1:
            raise UserError(f"{name} has {model.config.num_labels} classes, but {task.name} is a regression")
        return
    if set(labels) != set(task.labels):
        raise UserError(
            f"{name} was tuned for other labels: it has {_some(labels)}, {task.name} has {_some(task.labels)}"
        )


def is_minialbert(model: PreTrainedModel) -> bool:
    """Tell whether a model is one of ours."""
    return model.config.model_type == "minialbert"


def _reset_head(model: PreTrainedModel) -> None:
    spread = getattr(model.config, "initializer_range", 0.02)
    for layer in _head_layers(model):
        nn.init.normal_(layer.weight, std=spread)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _head_layers(model: PreTrainedModel) -> list[nn.Linear]:
    """Return the linear layers outside the encoder, in order."""
    heads = (module for child, module in model.named_children() if child != model.base_model_prefix)
    return [layer for head in heads for layer in head.modules() if isinstance(layer, nn.Linear)]


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of the training scores, in whose units a head of one output learns.

    Outside training the model answers in the scores' own unit: both are folded into the head.
    """

    mean: float = 0.0
    deviation: float = 1.0

    def to_standard(self, score: Any) -> Any:
        """Return a score, or a tensor of them, in standard units."""
        return (score - self.mean) / self.deviation

    @torch.no_grad()
    def fold(self, model: PreTrainedModel) -> None:
        """Let a model that answers in standard units answer in the scores' own."""
        head = _score_layer(model)
        assert head is not None
        head.weight.mul_(self.deviation)
        head.bias.mul_(self.deviation).add_(self.mean)

    def unfold(self, model: PreTrainedModel) -> None:
        """Let a model that answers in the scores' own unit answer in standard units."""
        Scale(-self.mean / self.deviation, 1 / self.deviation).fold(model)

    @contextmanager
    def folded(self, model: PreTrainedModel) -> Iterator[None]:
        """Fold for a while; afterwards the head has the very numbers it had."""
        head = _score_layer(model)
        if head is None or self == Scale():
            yield
            return
        with restored([head.weight, head.bias]):
            self.fold(model)
            yield


def scale_of(task: Task, model: PreTrainedModel) -> Scale:
    """Return the units in which a task's scores are learnt.

    Those of a spread between one half and two are learnt as they are, others in standard units, and so nothing but
    their unit changes what is learnt. So are scores without a spread, and those of a head that is not a linear layer.
    A spread that is lost in 32 bits is refused.
    """
    scores = _scores(task)
    mean, deviation = (statistics.fmean(scores), statistics.pstdev(scores)) if scores else (0.0, 0.0)
    if 0 < deviation < max(_SMALLEST_SPREAD, torch.finfo(torch.float32).eps * abs(mean)):
        raise UserError(
            f"the training scores' spread, {deviation:.4g} around {mean:.9g}, is too small for 32 bits: "
            "subtract their mean, or multiply them"
        )
    usual = 0.5 <= deviation <= 2 or deviation == 0 or not math.isfinite(deviation)
    return Scale() if usual or _score_layer(model) is None else Scale(mean, deviation)


def _scores(task: Task) -> list[float]:
    texts = (example for example in task.splits.get("train", ()) if isinstance(example, TextExample))
    return [float(text.label) for text in texts if isinstance(text.label, int | float)]


def _score_layer(model: PreTrainedModel) -> nn.Linear | None:
    """Return the last layer of a head of one output; None where it has no bias or is not a linear layer."""
    outputs = [part for part in _head_layers(model) if part.out_features == 1 and part.bias is not None]
    return outputs[-1] if outputs else None


def _start_at_mean(model: PreTrainedModel, task: Task) -> list[str]:
    """Let a new head of one output start from the training scores' mean, and their spread; return a note about it."""
    scores, head = _scores(task), _score_layer(model)
    if not scores or head is None:
        return []
    scale = scale_of(task, model)
    mean = sum(scores) / len(scores)
    Scale(mean, scale.deviation).fold(model)
    nn.init.constant_(head.bias, mean)
    note = f"head: new, starts from {mean:.4g}, the mean of the training scores"
    return [
        note + (f", and learns in units of {scale.deviation:.4g}, their spread" if scale != Scale() else "")
    ]


def _saved_type(name: str, config: PreTrainedConfig, head: str | None) -> TaskType:
    kinds = [kind for kind in TASK_TYPES.values() if kind.head == head]
    if not kinds:
        named = " ".join(config.architectures or ())
        raise UserError(
            f"{name} has no task head ({named or 'no architecture in its config.json'}): give a model that "
            "`minialbert finetune` wrote"
        )
    exact = (kind for kind in kinds if kind.problem_type == config.problem_type)
    usual = (kind for kind in kinds if kind.has_classes == (config.num_labels > 1))
    return next(exact, None) or next(usual, kinds[0])


def read_task_file(name: str | Path, *, revision: str | None = None) -> TaskInputs | None:
    """Return what `task.json` in a model's directory or on the hub says, None where there is none.

    Raises UserError if it is damaged, or the hub does not tell.
    """
    path = repository_file(name, TASK_FILE, revision, required=False)
    if path is None:
        known = Path(name).exists() or try_to_load_from_cache(str(name), TASK_FILE, revision=revision)
        if not known:
            logger.warning(
                "%s: the hub could not be asked for its %s; if minialbert tuned it, its inputs are read as by default",
                name, TASK_FILE,
            )  # fmt: skip
        return None
    kinds = (OSError, ValueError, TypeError, AttributeError, RecursionError)
    with failing_as(f"{path} is damaged", kinds, "write the model again"):
        values = json.loads(path.read_text(encoding="utf-8"))
        read = {"words": word_rule(values.get("words")), "decision": decision_of(values.get("decision"))}
        inputs = TaskInputs(**{**values, **read})
        if not _is_sound(inputs):
            raise ValueError("a value is out of range, or of another type")
    if inputs.problem not in TASK_TYPES:
        known = ", ".join(TASK_TYPES)
        raise UserError(
            f"{path} is damaged, or its kind of task {quoted(inputs.problem)} is not registered: there are {known}"
        )
    return inputs


def _is_sound(inputs: TaskInputs) -> bool:
    texts: tuple[Any, ...] = (inputs.task, inputs.problem, inputs.metric)
    counts: tuple[Any, ...] = (inputs.max_length, inputs.overlap)
    texts += () if inputs.positive is None else (inputs.positive,)
    if not all(isinstance(text, str) for text in texts) or not all(type(count) is int for count in counts):
        return False
    if inputs.pairs not in (None, False, True) or inputs.long_texts not in (None, "cut", "windows"):
        return False
    return 8 <= inputs.max_length <= 65536 and inputs.overlap >= 0


def _some(labels: Any) -> str:
    names = [str(label) for label in labels]
    return ", ".join(names[:6]) + (f" … ({len(names)})" if len(names) > 6 else "") if names else "no labels"
