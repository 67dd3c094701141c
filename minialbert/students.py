"""Building a student: its configuration from a teacher's shape, and its first weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .configuration_minialbert import MiniAlbertConfig
from .errors import UserError
from .initialization import initialize_from_alternate_layers, initialize_from_donor, initialize_from_teacher
from .modeling_minialbert import MiniAlbertForMaskedLM
from .recipe_schema import StudentRecipe
from .runs import display_name
from .teachers import LOADING_ERRORS, Teacher, load_encoder_config, one_line


def build_student(
    recipe: StudentRecipe,
    teacher: Teacher | None,
    tokenizer: PreTrainedTokenizerBase,
    batches: Iterable[dict[str, Tensor]],
    *,
    seed: int,
) -> tuple[PreTrainedModel, list[str]]:
    """Return a student with its first weights, and one line per part on where they come from.

    Args:
        recipe: architecture and initialisation; shapes left open are the teacher's, or BERT-base's.
        teacher: the teacher, or None.
        tokenizer: the tokenizer that student and teacher share.
        batches: a few batches of real text, used by `init: teacher`.
        seed: of random weights.

    Returns:
        The student in train mode, and the report.

    Raises:
        UserError: if the recipe asks for what cannot be had.
    """
    torch.manual_seed(seed)
    if recipe.init == "checkpoint":
        return _from_checkpoint(recipe, tokenizer)
    config = student_config(recipe, teacher, tokenizer)
    if isinstance(config, BertConfig):
        student: PreTrainedModel = BertForMaskedLM(config)
        if recipe.init == "alternate-layers":
            return student.train(), initialize_from_alternate_layers(student, _required(teacher, recipe.init))
        if recipe.init != "random":
            raise UserError(
                f"student.init {recipe.init!r} is for recursive students; arch bert starts 'random', from "
                "'alternate-layers' or from a 'checkpoint'"
            )
        return student.train(), ["all weights: random"]
    student = MiniAlbertForMaskedLM(config)
    if recipe.init == "teacher":
        report = initialize_from_teacher(
            student, _required(teacher, recipe.init), batches, layer=recipe.init_layer
        )
    elif recipe.init == "donor":
        report = initialize_from_donor(student, _load_donor(recipe))
    else:
        report = ["all weights: random"]
    return student.train(), report


def student_config(
    recipe: StudentRecipe, teacher: Teacher | None, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedConfig:
    """Return the configuration of a student; what the recipe leaves open is the teacher's, or BERT-base's.

    Args:
        recipe: architecture and shapes.
        teacher: the teacher, or None.
        tokenizer: gives the padding id, and the vocabulary size when there is no teacher.

    Returns:
        A `MiniAlbertConfig`, or a `BertConfig` for a fully parameterised student.

    Raises:
        UserError: if the shapes contradict each other.
    """
    source = teacher.model.config if teacher is not None else BertConfig()
    hidden_size = recipe.hidden_size or source.hidden_size
    shape = {
        "vocab_size": source.vocab_size if teacher is not None else len(tokenizer),
        "hidden_size": hidden_size,
        "num_hidden_layers": recipe.num_hidden_layers,
        "num_attention_heads": recipe.num_attention_heads or source.num_attention_heads,
        "intermediate_size": recipe.intermediate_size or _first(source, "intermediate_size", "hidden_dim"),
        "hidden_act": recipe.hidden_act or _first(source, "hidden_act", "activation", "hidden_activation"),
        "max_position_embeddings": recipe.max_position_embeddings or (teacher.max_length if teacher else 512),
        "type_vocab_size": max(getattr(source, "type_vocab_size", 0) or 0, 1),
        "layer_norm_eps": _first(source, "layer_norm_eps", "norm_eps", default=1e-12),
        "hidden_dropout_prob": recipe.hidden_dropout_prob,
        "attention_probs_dropout_prob": recipe.attention_probs_dropout_prob,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        if recipe.arch == "bert":
            return BertConfig(**shape)
        return MiniAlbertConfig(
            **shape,
            embedding_size=recipe.embedding_size or hidden_size,
            adapter_reduction_factor=recipe.adapter_reduction_factor,
            adapter_layer_norm=recipe.adapter_layer_norm,
            adapter_init=recipe.adapter_init,
            tie_word_embeddings=recipe.mlm_head == "tied",
        )
    except ValueError as error:
        raise UserError(f"student: {one_line(error)}") from error


def _from_checkpoint(
    recipe: StudentRecipe, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, list[str]]:
    assert recipe.init_from is not None
    model_class = BertForMaskedLM if recipe.arch == "bert" else MiniAlbertForMaskedLM
    load_encoder_config(recipe.init_from)
    try:
        student = model_class.from_pretrained(recipe.init_from, dtype=torch.float32, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise UserError(f"student {recipe.init_from}: could not be loaded ({one_line(error)})") from error
    if student.config.vocab_size < len(tokenizer):
        raise UserError(
            f"student {recipe.init_from} has {student.config.vocab_size} word embeddings, the tokenizer "
            f"{len(tokenizer)} entries: take a checkpoint of the same tokenizer"
        )
    if student.config.num_hidden_layers != recipe.num_hidden_layers:
        raise UserError(
            f"student {recipe.init_from} has {student.config.num_hidden_layers} iterations, the recipe "
            f"asks for {recipe.num_hidden_layers}: set "
            f"student.num_hidden_layers={student.config.num_hidden_layers}"
        )
    return student.train(), [f"all weights: checkpoint {display_name(recipe.init_from)}"]


def _load_donor(recipe: StudentRecipe) -> PreTrainedModel:
    assert recipe.init_from is not None
    load_encoder_config(recipe.init_from)
    try:
        return AutoModel.from_pretrained(recipe.init_from, dtype=torch.float32, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise UserError(f"donor {recipe.init_from}: could not be loaded ({one_line(error)})") from error


def _required(teacher: Teacher | None, init: str) -> Teacher:
    if teacher is None:
        raise UserError(f"student.init {init!r} needs a teacher: give --teacher, or student.init=random")
    return teacher


def _first(config: PreTrainedConfig, *names: str, default: object = None) -> object:
    for name in names:
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    return default
