"""The schema of a fine-tuning recipe: model, task, tuning, task-specific distillation and grid."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .recipe_schema import Count, Fraction, RecipeBase, Section, Trackers, Weight

Rate = Annotated[float, Field(gt=0)]


class ModelRecipe(Section):
    """The encoder to tune."""

    name: str | None = Field(None, min_length=1, description="Hub id or directory (null: named when running)")
    revision: str | None = Field(None, min_length=1, description="Commit, tag or branch on the hub")
    adapter_init: Literal["identity", "as-published"] = Field(
        "identity", description="Start of the adapters that a model without any gets"
    )
    adapter_reduction_factor: Count = Field(16, description="Width over adapter width of such adapters")


class TaskRecipe(Section):
    """The labelled data, and what its columns mean."""

    name: str | None = Field(
        None, min_length=1, description="A GLUE task, ner, or a name of your own (null: named when running)"
    )
    data: str | None = Field(None, min_length=1, description="Directory, file, or hub:OWNER/NAME")
    problem: Literal["single-label", "multi-label", "regression", "token"] | None = Field(
        None, description="Kind of a task of your own (GLUE and ner know theirs)"
    )
    text: str | None = Field(None, description="Column of the text (null: found by its usual names)")
    pair: str | None = Field(None, description="Column of the second text")
    label: str | None = Field(None, description="Column of the label")
    tokens: str | None = Field(None, description="Column of the words")
    tags: str | None = Field(None, description="Column of the words' tags")
    spans: str | None = Field(None, description="Column of character spans")
    labels: list[str] | None = Field(
        None, min_length=1, description="Label names in the order of their ids (null: sorted)"
    )
    label_separator: str = Field("|", min_length=1, description="Between labels of a multi-label csv cell")
    metric: str | None = Field(None, description="What selects and is reported (null: the task's own)")
    max_train_rows: Count | None = Field(None, description="Use the first N training rows")
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="Share of train for validation where there is no such split"
    )
    iob: Literal["repair", "refuse"] = Field(
        "repair", description="An I- tag that follows nothing: read as B-, or refuse the file"
    )
    max_length: int = Field(128, ge=8, le=65536, description="Tokens per input, special tokens included")
    overlap: int = Field(
        32, ge=0, description="Tokens that windows of a long sentence share (token labels, prediction)"
    )
    label_pieces: Literal["first", "all"] = Field("first", description="Which pieces of a word learn its tag")


class TuningRecipe(Section):
    """What is trained, and how."""

    mode: Literal["full", "adapters"] = Field("full", description="Everything, or adapters and head alone")
    epochs: Rate = Field(3.0, description="Passes over the training rows")
    batch_size: Count = Field(32, description="Rows per optimiser step")
    micro_batch_size: Count | None = Field(None, description="Rows per forward pass (null: batch_size)")
    learning_rate: Rate = Field(5e-5, description="Highest learning rate of AdamW")
    weight_decay: Weight = Field(0.01, description="Decoupled, not on biases and LayerNorms")
    warmup_ratio: Fraction = Field(0.06, description="Share of the steps with a rising learning rate")
    lr_scheduler: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Schedule after the warm-up"
    )
    max_grad_norm: Rate = Field(1.0, description="Gradient norm beyond which gradients are scaled down")
    adam_beta1: Fraction = Field(0.9, description="Decay of AdamW's first moment")
    adam_beta2: Fraction = Field(0.999, description="Decay of AdamW's second moment")
    adam_epsilon: Rate = Field(1e-8, description="AdamW's epsilon")
    dropout: Fraction | None = Field(None, description="Dropout while tuning (null: the model's own)")
    class_weights: Literal["balanced"] | list[Rate] | None = Field(
        None, description="Weight of each class in the loss, or inverse frequency"
    )
    elastic: bool = Field(False, description="Tune depths before the last too, one drawn per step")
    elastic_depths: list[Count] | None = Field(
        None, min_length=1, description="Which depths, in iterations (null: the model's own, or all)"
    )
    elastic_task_weight: Weight = Field(1.0, description="Weight of the task's loss at that depth")
    elastic_logit_weight: Weight = Field(
        1.0, description="Weight of its divergence from the last depth's logits"
    )
    evaluations_per_epoch: Count = Field(1, description="How often validation is measured")
    early_stopping_patience: Count | None = Field(
        None, description="Stop after so many evaluations without a better one"
    )
    max_skipped_steps: int = Field(
        10, ge=0, description="Steps in a row that may be skipped because loss or gradient is not finite"
    )
    eval_batch_size: Count = Field(64, description="Rows per forward pass in evaluation")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Arithmetic of the forward passes"
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of the head, the order and dropout")
    logging_steps: Count = Field(50, description="Steps between two log lines")
    report_to: Trackers = Field([], description="Trackers that get the log: tensorboard, wandb, trackio")

    @model_validator(mode="after")
    def _depths_learn(self) -> Self:
        if self.elastic and not (self.elastic_task_weight or self.elastic_logit_weight):
            raise ValueError(
                "elastic is true but elastic_task_weight and elastic_logit_weight are both 0, so the depths would "
                "learn nothing: give one a weight, or set elastic to false"
            )
        return self


class TaskTeacherRecipe(Section):
    """A fine-tuned teacher, for task-specific distillation."""

    model: str | None = Field(None, min_length=1, description="Hub id or directory (null: none)")
    revision: str | None = Field(None, min_length=1, description="Commit, tag or branch on the hub")
    labels: list[str] | None = Field(
        None, min_length=1, description="The teacher's label names by id, where its config has none"
    )
    task_weight: Weight = Field(0.5, description="Weight of the loss on the gold labels")
    logit_weight: Weight = Field(0.5, description="Weight of the loss on the teacher's logits")
    hidden_weight: Weight = Field(0.0, description="Weight of Eq. 8 between matched layers")
    temperature: Rate = Field(2.0, description="Softening of both distributions")


class GridRecipe(Section):
    """Lists of values; every combination is one cell, repeated for every seed. Empty: the recipe's own value."""

    learning_rate: list[Rate] = Field([], description="Learning rates to try")
    batch_size: list[Count] = Field([], description="Batch sizes to try")
    epochs: list[Rate] = Field([], description="Lengths to try")
    seed: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field([], description="Seeds of every cell")

    @model_validator(mode="after")
    def _no_value_twice(self) -> Self:
        for name in type(self).model_fields:
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"grid.{name} has a value twice: {values}")
        return self


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
                f"tuning.batch_size {tuning.batch_size} is no multiple of tuning.micro_batch_size "
                f"{tuning.micro_batch_size}: set both, or micro_batch_size to null"
            )
        if task.overlap > task.max_length - 8:
            raise ValueError(
                f"task.overlap {task.overlap} leaves too little new in {task.max_length} tokens: "
                f"give at most {task.max_length - 8}"
            )
        if self.teacher.model and not (self.teacher.logit_weight or self.teacher.hidden_weight):
            raise ValueError("teacher.logit_weight and teacher.hidden_weight are 0, so the teacher is unused")
        return self
