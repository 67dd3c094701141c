"""The schema of a distillation recipe: every key with its type, range, default and meaning."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from minialbert.errors import spelled_as_path


class Mark(Enum):
    """What a setting is to others than its own run; marks stand on the schema's fields, and nowhere else."""

    NAME = "names the recipe"
    PLACE = "a hub id or a path, which differ between machines"
    DATA = "such a place whose hub ids begin with hub:"
    SEED = "the seed"
    PACE = "paces or logs a run, and does not change what it learns"
    LOG = "where the log goes: a run may be resumed with another"
    OPTION = "the command line has an option for it"


def key(default: Any, meaning: str, **limits: Any) -> Any:
    """Return a key's default with its meaning, which the documentation shows, and the limits of its value."""
    return Field(default, description=meaning, **limits)


def _each_once(values: list[Any] | None) -> list[Any] | None:
    if values is not None and len(set(values)) < len(values):
        raise ValueError(f"has a value twice: {values}")
    return values


Once = AfterValidator(_each_once)
Fraction = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Place = Annotated[str | None, Field(min_length=1), Mark.PLACE]
Documents = Literal["blank-line", "line", "file"]
LoraLayers = Annotated[
    list[Literal["query", "key", "value", "dense", "ffn", "ffn_output"]] | None, Field(min_length=1), Once
]


def _as_list(value: object) -> object:
    """Return a single text as a list of one; anything else as it is."""
    return [value] if isinstance(value, str) else value


def _as_name(value: object) -> object:
    """Return a whole number as text: so it stands in a table, where names of labels and columns come from."""
    return str(value) if type(value) is int else value


Name = Annotated[str, BeforeValidator(_as_name)]


def _as_trackers(value: object) -> object:
    """Return one name as a list; "none", as Transformers spells it, and null as an empty one."""
    return [] if value is None or value == "none" else _as_list(value)


# What distilling and tuning have in common; where it stands among a section's keys is the section's own.
Paced = Annotated[Count, Mark.PACE]
PacedOrNone = Annotated[Count | None, Mark.PACE]
Schedule = Annotated[
    Literal["linear", "cosine", "constant", "warmup_stable_decay"],
    Field(
        description="Schedule after the warm-up (warmup_stable_decay: constant, and to zero in the last fifth)"
    ),
]
GradNorm = Annotated[Rate, Field(description="Gradient norm beyond which gradients are scaled down")]
Beta1 = Annotated[Fraction, Field(description="Decay of AdamW's first moment")]
Beta2 = Annotated[Fraction, Field(description="Decay of AdamW's second moment")]
Epsilon = Annotated[Rate, Field(description="AdamW's epsilon")]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    Field(description="Arithmetic of the forward passes (auto: the faster on this machine)"),
]
Seed = Annotated[int, Field(ge=0, lt=2**32), Mark.SEED]
LoggingSteps = Annotated[Count, Field(description="Steps between two log lines"), Mark.PACE]
SkippedSteps = Annotated[
    int, Field(ge=0, description="Steps in a row that may be skipped because loss or gradient is not finite")
]
Optimizer = Annotated[
    Literal["adamw", "muon"],
    Field(
        description="AdamW for all weights, or Muon for the matrices of the layers (where these rest, of the adapters)"
    ),
]
WeightNoise = Annotated[
    Literal["int8", "int4"] | None,
    Field(description="Noise of up to half a rounding step on the layers' matrices (null: none)"),
]
Trackers = Annotated[
    list[Literal["tensorboard", "wandb", "trackio"]],
    BeforeValidator(_as_trackers),
    Field(description="Trackers that get the log: tensorboard, wandb, trackio"),
    Mark.LOG,
    Mark.PACE,
]


class Section(BaseModel):
    """A part of a recipe: unknown keys, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _check_that_depths_learn(elastic: bool, **weights: float) -> None:
    if elastic and not any(weights.values()):
        raise ValueError(
            f"elastic is true but {' and '.join(weights)} are both 0, so the depths would learn nothing: give one a "
            "weight, or set elastic to false"
        )


class TeacherRecipe(Section):
    """The encoder to learn from."""

    model: Place = key(None, "Hub id or directory (null: named when running)")
    revision: str | None = key(None, "Commit, tag or branch on the hub", min_length=1)


# Which iterations share weights, and what tells them apart beside a bottleneck; recipes of earlier versions have none
# of these keys, and meant these values.
SHARING_DEFAULTS: dict[str, Any] = {
    "num_hidden_groups": 1, "hidden_group_order": "runs", "groups_share_attention": False,
    "adapter_kind": "bottleneck", "lora_rank": 8, "lora_layers": None,
}  # fmt: skip


class StudentRecipe(Section):
    """The encoder to train, and where its first weights come from."""

    arch: Literal["minialbert", "bert"] = key("minialbert", "Recursive encoder, or plain BERT")
    num_hidden_layers: int = key(6, "Iterations of the shared block (bert: layers)", ge=1, le=96)
    num_hidden_groups: Count = key(1, "Blocks of their own weights (1: all iterations share one)")
    hidden_group_order: Literal["runs", "turns", "ends"] = key(
        "runs", "Which block an iteration uses, of three: 112233, 123123 or 122223"
    )
    groups_share_attention: bool = key(False, "Let groups differ in their feed-forward networks alone")
    embedding_size: Count | None = key(128, "The paper's rank r (null: full rank)")
    hidden_size: Count | None = key(None, "Width d (null: the teacher's)")
    num_attention_heads: Count | None = key(None, "Heads per iteration (null: the teacher's)")
    intermediate_size: Count | None = key(
        None,
        "Width of the feed-forward block (null: the teacher's); narrower with init teacher and init_layer, or several "
        "groups: the units of the teacher's that move its output most, fitted to the whole",
    )
    hidden_act: str | None = key(None, "Feed-forward activation (null: the teacher's)", min_length=1)
    max_position_embeddings: Count | None = key(None, "Longest input in tokens (null: the teacher's)")
    own_vocabulary: bool = key(False, "Learn from a teacher whose tokenizer is another one")
    hidden_dropout_prob: Fraction = key(0.1, "Dropout on hidden states while distilling")
    attention_probs_dropout_prob: Fraction = key(0.1, "Dropout on attention rows while distilling")
    adapter_reduction_factor: Count | None = key(16, "Width over adapter width (null: no adapters)")
    adapter_layer_norm: bool = key(True, "LayerNorm after each adapter, which Eq. 3 lacks")
    adapter_init: Literal["as-published", "identity", "teacher"] = key(
        "as-published",
        "Random as in the release, a zero up-projection, or (lora, layer-norm) what tells the teacher's layers apart",
    )
    adapter_kind: str = key(
        "bottleneck",
        "What tells iterations apart: bottleneck, lora, layer-norm, scale, iteration-embedding; several with +",
    )
    lora_rank: Count = key(8, "Rank of adapter_kind lora")
    lora_layers: LoraLayers = key(None, "Linear layers that lora changes (null: all)")
    mlm_head: Literal["tied", "untied"] = key("tied", "Share the decoder with the word embeddings?")
    init: Literal["random", "teacher", "donor", "alternate-layers", "checkpoint"] = key(
        "teacher", "Where the first weights come from"
    )
    init_from: Place = key(None, "Hub id or directory of the donor or checkpoint")
    init_layer: Count | Literal["third"] | None = key(
        None,
        "With init teacher: its layer, from 1, that each block starts as; third: the one a third of the way up (null: "
        "mean of all; with several groups the layer that a group's first iteration stands for)",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.init in ("donor", "checkpoint")) != (self.init_from is not None):
            raise ValueError(
                f"init {self.init!r} {'needs' if self.init_from is None else 'takes no'} init_from"
            )
        if self.init_layer is not None and self.init != "teacher":
            raise ValueError(f"init {self.init!r} takes no init_layer: it is for init 'teacher'")
        if self.init == "alternate-layers" and self.arch != "bert":
            raise ValueError("init 'alternate-layers' needs arch 'bert': a recursive student has one layer")
        idle = [name for name, usual in SHARING_DEFAULTS.items() if getattr(self, name) != usual]
        if self.arch == "bert" and idle:
            raise ValueError(f"{idle[0]} is for arch 'minialbert': a bert has no groups and no adapters")
        if self.adapter_reduction_factor is None and self.adapter_kind != "bottleneck":
            raise ValueError(
                f"adapter_kind {self.adapter_kind!r} needs adapters, and adapter_reduction_factor null means none: "
                "leave one of the two out"
            )
        if self.adapter_init == "teacher" and self.init != "teacher":
            raise ValueError(f"adapter_init 'teacher' needs init 'teacher', got {self.init!r}")
        if self.adapter_reduction_factor and self.adapter_init != "as-published" and self.adapter_layer_norm:
            raise ValueError(
                "an adapter cannot start as the identity with a LayerNorm after it: "
                "set adapter_layer_norm to false, or adapter_init to as-published"
            )
        if self.embedding_size and self.hidden_size and self.embedding_size > self.hidden_size:
            raise ValueError(
                f"embedding_size {self.embedding_size} exceeds hidden_size {self.hidden_size}; "
                "null gives full rank"
            )
        if self.hidden_size and self.num_attention_heads and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        return self


class DataRecipe(Section):
    """Text, how it is cut into windows, and how it is masked."""

    corpus: Annotated[Annotated[list[str], BeforeValidator(_as_list)] | None, Mark.PLACE, Mark.DATA] = key(
        None, "Files, directories or hub:OWNER/NAME[:CONFIG:SPLIT]", min_length=1
    )
    tokenizer: Place = key(None, "Hub id or directory (null: the teacher's)")
    documents: Documents = key("blank-line", "What parts documents in .txt")
    text_field: Name = key(
        "text", "Column with the text in jsonl, csv, tsv, parquet and hub data", min_length=1
    )
    pair_field: Name | None = key(
        None,
        "Column with a text that belongs to it; both are cut to a window, and one micro-batch has both",
        min_length=1,
    )
    window_length: int = key(256, "Tokens per window, special tokens included", ge=8, le=65536)
    overlap: int = key(128, "Tokens that a window shares with the one before", ge=0)
    max_windows_per_document: Count | None = key(10, "Windows drawn per document (null: all)")
    truncate: bool = key(False, "Keep only each document's first window")
    held_out_fraction: Fraction = key(0.01, "Share of the documents kept for evaluation")
    mask_probability: float = key(0.15, "Share of the tokens to predict", gt=0, lt=1)
    whole_word_masking: bool = key(False, "Mask all pieces of a word together")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.overlap > self.window_length - 3:
            raise ValueError(
                f"overlap {self.overlap} leaves nothing new in a window of {self.window_length} tokens, "
                f"two of them special: give at most {self.window_length - 3}"
            )
        return self


VECTOR_KEYS = ("vector_weight", "similarity_weight", "triplet_weight", "vector_dims")


class DistillRecipe(Section):
    """The objective: a preset, and what differs from it (null: the preset's value)."""

    preset: Literal["default", "paper", "as-published", "embeddings"] = key(
        "default", "Which reading of Eqs. 6-12; embeddings: the vectors of a sentence encoder"
    )
    mlm_weight: Weight | None = key(None, "lambda 1, of Eq. 6")
    attention_weight: Weight | None = key(None, "lambda 2 on Eq. 7")
    hidden_weight: Weight | None = key(None, "lambda 2 on Eq. 8")
    output_weight: Weight | None = key(None, "lambda 3, of Eq. 10")
    embedding_weight: Weight | None = key(None, "Weight of Eq. 12")
    relation_weight: Weight | None = key(None, "Weight of MiniLMv2's relations, no term of the paper")
    relations: Annotated[list[Literal["query-key", "query-query", "key-key", "value-value"]] | None, Once] = (
        key(None, "Relations to compare (null: query-key and value-value)", min_length=1)
    )
    relation_heads: Count | None = key(None, "Heads to split them into (null: the teacher's number)")
    relation_layers: Literal["last", "all"] | None = key(
        None, "Compare relations of the last matched iteration (null), or of all"
    )
    layer_map: Literal["uniform", "last", "alternate"] | list[Annotated[int, Field(ge=0)]] | None = key(
        None, "g(l): a rule, or one teacher layer per iteration (1-based, 0: not aligned)"
    )
    kl_direction: Literal["teacher-student", "student-teacher"] | None = key(
        None, "KL(teacher || student) or KL(student || teacher)"
    )
    attention_reduction: Literal["rows", "elements"] | None = key(
        None, "Mean over attention rows (Eq. 7) or over all their elements"
    )
    token_reduction: Literal["mean", "sum"] | None = key(None, "Mean or sum over tokens (Eqs. 6 and 10)")
    temperature: float | None = key(None, "Softening of both distributions in Eq. 10", gt=0)
    output_positions: Literal["masked", "all"] | None = key(None, "Tokens that Eq. 10 compares")
    attention_heads: Literal["match", "average"] | None = key(
        None, "Compare head by head, or the mean over heads"
    )
    teacher_dropout: bool | None = key(None, "Run the teacher with dropout, as the release does")
    vector_weight: Weight | None = key(None, "embeddings: weight of the distance between vectors (null: 20)")
    similarity_weight: Weight | None = key(
        None, "embeddings: weight of the distance between similarities of two texts (null: 100)"
    )
    triplet_weight: Weight | None = key(
        None, "embeddings: weight of the margins to the nearest text (null: 0)"
    )
    vector_dims: Annotated[list[Count] | None, Once] = key(
        None, "embeddings: leading dimensions at which they count too (Matryoshka)", min_length=1
    )
    elastic: bool = key(False, "Train depths before the last too, one drawn per step")
    elastic_depths: list[Count] | None = key(
        None, "Which depths, in iterations (null: all but the last)", min_length=1
    )
    elastic_mlm_weight: Weight = key(1.0, "Weight of Eq. 6 at that depth")
    elastic_output_weight: Weight = key(5.0, "Weight of its divergence from the last depth's prediction")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        weights = (self.mlm_weight, self.attention_weight, self.hidden_weight, self.output_weight)
        learns = self.preset == "embeddings" or self.embedding_weight or self.relation_weight
        if all(weight == 0 for weight in weights) and not learns:
            raise ValueError("every weight is 0, so there is nothing to learn")
        of_vectors = self.model_dump(include=set(VECTOR_KEYS), exclude_none=True)
        if self.preset != "embeddings" and of_vectors:
            raise ValueError(f"{', '.join(of_vectors)} belong to distill.preset=embeddings")
        _check_that_depths_learn(
            self.elastic, **self.model_dump(include={"elastic_mlm_weight", "elastic_output_weight"})
        )
        return self


class TrainingRecipe(Section):
    """Length, batch, optimiser and schedule of one run."""

    max_steps: Count | None = key(None, "Length in optimiser steps")
    epochs: float | None = key(
        None, "Length in passes over the windows; with max_steps too, the shorter", gt=0
    )
    batch_size: Count = key(192, "Windows per optimiser step, over all devices")
    micro_batch_size: PacedOrNone = key(None, "Windows per forward pass and device (null: chosen)")
    learning_rate: float = key(5e-4, "Highest learning rate", gt=0)
    optimizer: Optimizer = "adamw"
    weight_decay: Weight = key(1e-4, "Decoupled weight decay")
    warmup_steps: int = key(5000, "Steps of linear warm-up", ge=0)
    lr_scheduler: Schedule = "linear"
    max_grad_norm: GradNorm = 1.0
    adam_beta1: Beta1 = 0.9
    adam_beta2: Beta2 = 0.999
    adam_epsilon: Epsilon = 1e-8
    precision: Precision = "auto"
    pack_windows: bool = key(True, "Lay short windows in one row; the losses stay the same")
    compile: bool = key(False, "Compile the layers (torch.compile); needs a C++ compiler, or a GPU")
    gradient_checkpointing: bool = key(False, "Recompute activations to save memory")
    seed: Seed = key(42, "Seed of weights, order, dropout and masks")
    logging_steps: LoggingSteps = 50
    eval_steps: Paced = key(1000, "Steps between two evaluations")
    save_steps: Paced = key(5000, "Steps between two checkpoints")
    keep_checkpoints: Paced = key(2, "Newest checkpoints to keep")
    max_skipped_steps: SkippedSteps = 10
    weight_noise: WeightNoise = None
    eval_windows: PacedOrNone = key(512, "Held-out windows per evaluation (null: all)")
    num_workers: Annotated[int | None, Mark.PACE] = key(
        None, "Processes that load data (null: 4 with a GPU, else none)", ge=0
    )
    cache_teacher: bool = key(False, "Keep the teacher's outputs on disk")
    report_to: Trackers = []

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_steps is None and self.epochs is None:
            raise ValueError("give max_steps or epochs, or both for the shorter; got neither")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}: "
                "set micro_batch_size too, or set it to null"
            )
        return self


class RecipeBase(Section):
    """What every recipe begins with."""

    name: Annotated[str, Mark.NAME] = Field(
        min_length=1, description="What tables call it (default: the file's name)"
    )
    description: Annotated[str, Mark.NAME] = key("", "One sentence")
    paper: Annotated[str | None, Mark.NAME] = key(None, "Table and row of the paper")
    command: Annotated[str | None, Mark.NAME] = key(None, "The command that runs it")

    @classmethod
    def sections(cls) -> dict[str, type[Section]]:
        """Return the sections by name, in the schema's order."""
        fields = ((name, field.annotation) for name, field in cls.model_fields.items())
        return {name: kind for name, kind in fields if isinstance(kind, type) and issubclass(kind, Section)}

    @model_validator(mode="before")
    @classmethod
    def _empty_sections_are_absent(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None or key not in cls.sections()}


class Recipe(RecipeBase):
    """Everything that one distillation is made of."""

    teacher: TeacherRecipe = Field(default_factory=TeacherRecipe)
    student: StudentRecipe = Field(default_factory=StudentRecipe)
    data: DataRecipe = Field(default_factory=DataRecipe)
    distill: DistillRecipe = Field(default_factory=DistillRecipe)
    training: TrainingRecipe = Field()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        layer_map, iterations = self.distill.layer_map, self.student.num_hidden_layers
        if isinstance(layer_map, list) and len(layer_map) != iterations:
            raise ValueError(
                f"distill.layer_map has {len(layer_map)} entries but the student has {iterations} "
                "iterations; give one teacher layer per iteration (0: not aligned)"
            )
        if self.distill.elastic:
            if self.student.arch != "minialbert":
                raise ValueError(
                    f"distill.elastic needs student.arch minialbert, got {self.student.arch}: only a shared block "
                    "is trained for several depths"
                )
            try:
                resolve_depths(self.distill.elastic_depths, iterations)
            except ValueError as error:
                raise ValueError(f"distill: {error}") from error
        return self


def resolve_depths(depths: Sequence[int] | None, iterations: int) -> tuple[int, ...]:
    """Return the depths to train besides the last, in rising order: between 1 and `iterations` - 1, None for all.

    A ValueError says if the model has one iteration only, or a depth is not between these, or given twice.
    """
    if iterations < 2:
        raise ValueError(
            f"elastic training needs at least 2 iterations, got {iterations}: there is no depth before the last"
        )
    if depths is None:
        depths = range(1, iterations)
    if not depths:
        raise ValueError("elastic_depths is empty: name depths, or give null for all before the last")
    wrong = [depth for depth in depths if not 1 <= depth < iterations]
    if wrong:
        raise ValueError(
            f"elastic_depths has {', '.join(map(str, wrong))}, but with {iterations} iterations depths go from 1 to "
            f"{iterations - 1}; the last is trained in any case"
        )
    if len(set(depths)) != len(depths):
        raise ValueError(f"elastic_depths names a depth twice: {', '.join(map(str, depths))}")
    return tuple(sorted(depths))


class ModelRecipe(Section):
    """The encoder to tune."""

    name: Annotated[Place, Mark.OPTION] = key(None, "Hub id or directory (null: named when running)")
    revision: str | None = key(None, "Commit, tag or branch on the hub", min_length=1)
    adapter_init: Literal["identity", "as-published"] = key(
        "identity", "Start of the adapters that a model without any gets"
    )
    adapter_reduction_factor: Count = key(16, "Width over adapter width of such adapters")
    adapter_kind: str = key("bottleneck", "Their kind, as in student.adapter_kind")
    lora_rank: Count = key(8, "Rank of adapter_kind lora")
    lora_layers: LoraLayers = key(None, "Linear layers that lora changes (null: all)")


class TaskRecipe(Section):
    """The labelled data, and what its columns mean."""

    name: Annotated[str | None, Mark.OPTION] = key(
        None, "A GLUE task, ner, qa, or a name of your own (null: named when running)", min_length=1
    )
    data: Annotated[Place, Mark.DATA, Mark.OPTION] = key(None, "Directory, file, or hub:OWNER/NAME")
    problem: str | None = key(
        None,
        "Kind of a task of your own: single-label, multi-label, regression, token (GLUE and ner know theirs)",
    )
    format: str | None = key(None, "Format of the files, as in pubtator (null: recognised)")
    text: Name | None = key(None, "Column of the text (null: found by its usual names)")
    pair: Name | None = key(None, "Column of the second text")
    label: Name | list[Name] | None = key(
        None, "Column of the label; of several classes also the columns with a 0 or 1 for each"
    )
    tokens: Name | None = key(None, "Column of the words")
    tags: Name | None = key(None, "Column of the words' tags")
    spans: Name | None = key(None, "Column of character spans")
    group: Name | None = key(
        None, "Column whose rows of one value are not parted (patient, document)", min_length=1
    )
    labels: Annotated[list[Name] | None, Once] = key(
        None, "Label names in the order of their ids (null: sorted)", min_length=1
    )
    label_separator: str | None = key(
        None,
        "Between labels of a multi-label cell (null: found, one of | ; , and others)",
        min_length=1,
    )
    positive: Name | None = key(
        None, "Of two classes the one that f1 is about (null: by a rule)", min_length=1
    )
    metric: str | None = key(None, "What selects and is reported (null: the task's own)")
    max_train_rows: Count | None = key(None, "Use the first N training rows")
    validation_fraction: float = key(
        0.1, "Share of train for validation where there is no such split", gt=0, lt=1
    )
    iob: Literal["repair", "refuse"] = key(
        "repair", "An I- tag that follows nothing: read as B-, or refuse the file"
    )
    overlaps: Literal["refuse", "longest", "first"] = key(
        "refuse", "Spans that share a word: refuse them, or keep one and count the others"
    )
    decoding: Literal["alone", "viterbi"] = key(
        "alone", "Tags: each word its likeliest, or the likeliest path without an I- tag that follows nothing"
    )
    max_length: int = key(128, "Tokens per input, special tokens included", ge=8, le=65536)
    overlap: int = key(32, "Tokens that windows of a long sentence or text share", ge=0)
    long_texts: Literal["cut", "windows"] | None = key(
        None,
        "A text longer than an input: cut, or windows, averaged (null: cut where training texts are longer)",
    )
    label_pieces: Literal["first", "all"] = key("first", "Which pieces of a word learn its tag")


class TuningRecipe(Section):
    """What is trained, and how."""

    mode: Annotated[Literal["full", "adapters"], Mark.OPTION] = key(
        "full", "Everything, or adapters and head alone"
    )
    epochs: Rate = key(3.0, "Passes over the training rows")
    batch_size: Count = key(32, "Rows per optimiser step")
    micro_batch_size: PacedOrNone = key(None, "Rows per forward pass (null: batch_size)")
    learning_rate: Rate | None = key(None, "Highest learning rate (null: by the model's width)")
    optimizer: Optimizer = "adamw"
    weight_decay: Weight = key(0.01, "Decoupled, not on biases and LayerNorms")
    warmup_ratio: Fraction = key(0.06, "Share of the steps with a rising learning rate")
    lr_scheduler: Schedule = "linear"
    max_grad_norm: GradNorm = 1.0
    adam_beta1: Beta1 = 0.9
    adam_beta2: Beta2 = 0.999
    adam_epsilon: Epsilon = 1e-8
    dropout: Fraction | None = key(None, "Dropout while tuning (null: the model's own)")
    class_weights: Literal["balanced"] | list[Rate] | None = key(
        None, "Weight of each class in the loss, or inverse frequency"
    )
    focal_gamma: Weight = key(0.0, "Focal loss: exponent of 1 - p on the loss of each label (0: none)")
    repeat_rare: Literal["root", "even"] | None = key(
        None, "Repeat training rows of rarer classes: until they are even, or by the root of that"
    )
    elastic: bool = key(False, "Tune depths before the last too, one drawn per step")
    elastic_depths: list[Count] | None = key(
        None, "Which depths, in iterations (null: the model's own, or all)", min_length=1
    )
    elastic_task_weight: Weight = key(1.0, "Weight of the task's loss at that depth")
    elastic_logit_weight: Weight = key(1.0, "Weight of its divergence from the last depth's logits")
    evaluations_per_epoch: Count = key(1, "How often validation is measured")
    early_stopping_patience: Count | None = key(None, "Stop after so many evaluations without a better one")
    max_skipped_steps: SkippedSteps = 10
    weight_noise: WeightNoise = None
    eval_batch_size: Paced = key(64, "Rows per forward pass in evaluation")
    precision: Precision = "auto"
    seed: Seed = key(42, "Seed of the head, the order and dropout")
    logging_steps: LoggingSteps = 50
    report_to: Trackers = []

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_that_depths_learn(
            self.elastic, **self.model_dump(include={"elastic_task_weight", "elastic_logit_weight"})
        )
        return self


class TaskTeacherRecipe(Section):
    """A fine-tuned teacher, for task-specific distillation."""

    model: Annotated[Place, Mark.OPTION] = key(None, "Hub id or directory (null: none)")
    revision: str | None = key(None, "Commit, tag or branch on the hub", min_length=1)
    labels: Annotated[list[Name] | None, Once] = key(
        None, "The teacher's label names by id, where its config has none", min_length=1
    )
    task_weight: Weight = key(0.5, "Weight of the loss on the gold labels")
    logit_weight: Weight = key(0.5, "Weight of the loss on the teacher's logits")
    hidden_weight: Weight = key(0.0, "Weight of Eq. 8 between matched layers")
    temperature: Rate = key(2.0, "Softening of both distributions")
    unlabelled: Annotated[
        Annotated[list[str], BeforeValidator(_as_list)] | None, Mark.PLACE, Mark.DATA, Mark.OPTION
    ] = key(
        None,
        "Texts for the teacher to label: files, directories or hub:OWNER/NAME[:CONFIG:SPLIT]",
        min_length=1,
    )
    documents: Documents = key("line", "What parts such texts in .txt")
    text_field: Name = key(
        "text", "Column with such texts in jsonl, csv, tsv, parquet and hub data", min_length=1
    )
    altered: int = key(0, "How many altered copies of each gold text are such texts, too", ge=0, le=100)
    gold_weight: Count = key(1, "Weight of a gold row beside such a text: how often it stands in train")

    @property
    def labels_texts(self) -> bool:
        """Whether there are texts for the teacher to label."""
        return self.unlabelled is not None or self.altered > 0


class GridRecipe(Section):
    """Lists of values; every combination is one cell, repeated for every seed. Empty: the recipe's own value."""

    learning_rate: Annotated[list[Rate], Once] = key([], "Learning rates to try")
    batch_size: Annotated[list[Count], Once] = key([], "Batch sizes to try")
    epochs: Annotated[list[Rate], Once] = key([], "Lengths to try")
    seed: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Once] = key([], "Seeds of every cell")


class FinetuneRecipe(RecipeBase):
    """Everything that one fine-tuning, or a grid of them, is made of."""

    model: ModelRecipe = Field(default_factory=ModelRecipe)
    task: TaskRecipe = Field(default_factory=TaskRecipe)
    tuning: TuningRecipe = Field(default_factory=TuningRecipe)
    teacher: TaskTeacherRecipe = Field(default_factory=TaskTeacherRecipe)
    grid: GridRecipe = Field(default_factory=GridRecipe)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        tuning, task = self.tuning, self.task
        if tuning.micro_batch_size and tuning.batch_size % tuning.micro_batch_size:
            raise ValueError(
                f"tuning.batch_size {tuning.batch_size} is not a multiple of tuning.micro_batch_size "
                f"{tuning.micro_batch_size}: set both, or micro_batch_size to null"
            )
        if task.overlap > task.max_length - 8:
            raise ValueError(
                f"task.overlap {task.overlap} leaves too little new in {task.max_length} tokens: "
                f"give at most {task.max_length - 8}"
            )
        teacher = self.teacher
        if teacher.labels_texts and not teacher.model:
            given = "unlabelled" if teacher.unlabelled else "altered"
            raise ValueError(
                f"teacher.{given} needs a teacher to label the texts: give --teacher (teacher.model)"
            )
        if teacher.labels_texts and teacher.hidden_weight:
            raise ValueError(
                "teacher.hidden_weight needs labelled rows: of unlabelled texts, labels alone are kept"
            )
        if teacher.model and not (teacher.labels_texts or teacher.logit_weight or teacher.hidden_weight):
            raise ValueError("teacher.logit_weight and teacher.hidden_weight are 0, so the teacher is unused")
        return self


# What of a recipe Transformers' arguments are made of.
Optimisation = TrainingRecipe | TuningRecipe

# Schemas have one level; what is nested more deeply comes from a file that no run wrote.
_MOST_LEVELS = 10
# Defaults of the time before a setting could be left open: records and recipes of that time have them written out.
_FORMER = {"task.label_separator": "|"}


@cache
def marked(*marks: Mark) -> frozenset[str]:
    """Return the settings of both kinds of recipe that have one of these marks, by names such as "training.seed"."""
    sections: list[tuple[str, type[Section]]] = [
        ("", RecipeBase),
        *Recipe.sections().items(),
        *FinetuneRecipe.sections().items(),
    ]
    return frozenset(
        f"{name}.{key}" if name else key
        for name, section in sections
        for key, field in section.model_fields.items()
        if any(mark in marks for mark in field.metadata)
    )


def learned_settings(recipe: RecipeBase) -> dict[str, Any]:
    """Return what makes a run the one it is, by dotted names: all settings but where its log goes."""
    return {
        key: value for key, value in flat_settings(recipe.model_dump()).items() if key not in marked(Mark.LOG)
    }


def flat_settings(values: Mapping[str, Any], prefix: str = "", levels: int = _MOST_LEVELS) -> dict[str, Any]:
    """Return nested settings by dotted names such as "training.seed", in their order, down to some levels."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and levels:
            flat |= flat_settings(value, f"{prefix}{key}.", levels - 1)
        else:
            flat[f"{prefix}{key}"] = None if value == _FORMER.get(f"{prefix}{key}") else value
    return flat


def without_places(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's dump without the folders of a machine, to be shown or sent; see `without_folders`."""
    shown = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for place in marked(Mark.PLACE):
        section, _, key = place.partition(".")
        if isinstance(shown.get(section), dict) and key in shown[section]:
            shown[section][key] = without_folders(shown[section][key], place)
    return shown


def without_folders(value: Any, place: str) -> Any:
    """Return the value of a place (`Mark.PLACE`) without the folders of a machine.

    That is the last part of a path, and for the folder `model` of a run also the run's name; of a list those of each;
    anything else as it is.
    """
    if isinstance(value, list):
        return [without_folders(entry, place) for entry in value]
    if not isinstance(value, str) or re.match(r"hub:[^/]", value):
        return value
    if not spelled_as_path(value, slashes=0 if place in marked(Mark.DATA) else 1):
        return value
    parts = Path(value.replace("\\", "/")).parts
    return "/".join(parts[-2:] if parts[-1:] == ("model",) else parts[-1:])
