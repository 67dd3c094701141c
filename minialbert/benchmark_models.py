"""Models to benchmark: from a directory, the hub, a config alone, or a well-known shape with random weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    MobileBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from .configuration_minialbert import MiniAlbertConfig
from .errors import UserError
from .model_files import check_config
from .modeling_minialbert import MiniAlbertForSequenceClassification, MiniAlbertForTokenClassification
from .runs import display_name
from .teachers import LOADING_ERRORS, forward_inputs, load_encoder_config, max_input_length, one_line

# The paper's students and what they are compared with; no weights, so nothing is downloaded.
SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "minialbert-128": lambda: MiniAlbertConfig(embedding_size=128),
    "minialbert-312": lambda: MiniAlbertConfig(embedding_size=312),
    "minialbert-768": lambda: MiniAlbertConfig(embedding_size=768),
    "distilbert": DistilBertConfig,
    "bert-base": BertConfig,
    "albert-base": lambda: AlbertConfig(
        embedding_size=128, hidden_size=768, num_attention_heads=12, intermediate_size=3072
    ),
    "tinybert-4l-312": lambda: BertConfig(
        hidden_size=312, num_hidden_layers=4, num_attention_heads=12, intermediate_size=1200
    ),
    "mobilebert": MobileBertConfig,
}
_CONFIG = "config:"
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class ModelChoice:
    """A model as it was asked for.

    Attributes:
        name: what the record calls it.
        source: a name in `SHAPES`, "config:" and a file, or a directory or hub id.
        num_iterations: depth of a recursive model; None for its own.
    """

    name: str
    source: str
    num_iterations: int | None = None

    @property
    def shown(self) -> str:
        """The source without the folders of a local path."""
        if self.source in SHAPES:
            return self.source
        if self.source.startswith(_CONFIG):
            return Path(self.source.removeprefix(_CONFIG)).name
        return display_name(self.source) or self.source


@dataclass(frozen=True)
class BenchModel:
    """A model that is ready to run.

    Attributes:
        choice: how it was asked for.
        model: in fp32 and eval mode.
        head: "sequence-classification" or "token-classification".
        inputs: names of the inputs that it takes.
        max_length: its longest input, in tokens.
        parameters: how many it has, shared ones counted once.
    """

    choice: ModelChoice
    model: PreTrainedModel
    head: str
    inputs: tuple[str, ...]
    max_length: int
    parameters: int

    @property
    def options(self) -> dict[str, Any]:
        """What its forward is called with beside the inputs."""
        depth = self.choice.num_iterations
        return {} if depth is None else {"num_iterations": depth}


def parse_models(values: Sequence[str]) -> list[ModelChoice]:
    """Return the models that `--models` names.

    Args:
        values: each "SOURCE", "NAME=SOURCE", "SOURCE@K" or "NAME=SOURCE@K", K being a number of iterations.

    Returns:
        One choice per value.

    Raises:
        UserError: none is given, a depth is below 1, or two have one name.
    """
    if not values:
        raise UserError(f"no model to benchmark: give --models, such as {', '.join(SHAPES)}, or a directory")
    choices = [_parse(value) for value in values]
    names = [choice.name for choice in choices]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"two models are called {', '.join(twice)}: give --models NAME=PATH to tell them apart"
        )
    return choices


def build_model(choice: ModelChoice, seed: int = 0) -> BenchModel:
    """Return a model, read or with random weights.

    A checkpoint keeps its classification head; one without gets a sequence classifier with two labels.

    Args:
        choice: which.
        seed: of random weights.

    Returns:
        The model.

    Raises:
        UserError: no such model, a damaged one, or a depth for one that is not recursive.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if choice.source in SHAPES:
            model = _from_config(SHAPES[choice.source]())
        elif choice.source.startswith(_CONFIG):
            model = _from_config(_read_config(choice.source.removeprefix(_CONFIG)))
        else:
            model = _from_checkpoint(choice.source)
    is_recursive = model.config.model_type == MiniAlbertConfig.model_type
    if is_recursive:
        model.config.exit_threshold = None  # times are those of a fixed depth
    elif choice.num_iterations is not None:
        raise UserError(
            f"{choice.name}: @{choice.num_iterations} sets the iterations of a MiniALBERT, and {choice.source} is a "
            f"{model.config.model_type}"
        )
    token = "TokenClassification" in type(model).__name__
    example = {name: torch.ones(1, 1, dtype=torch.int64) for name in _INPUTS}
    return BenchModel(
        choice,
        model.eval().requires_grad_(False),
        "token-classification" if token else "sequence-classification",
        tuple(forward_inputs(model, example)),
        max_input_length(model),
        sum(parameter.numel() for parameter in model.parameters()),
    )


def _parse(value: str) -> ModelChoice:
    name, separator, source = value.partition("=")
    if not separator or "/" in name or ":" in name or Path(value).exists():
        name, source = "", value
    depth = None
    found = re.fullmatch(r"(.+)@(\d+)", source)
    if found and not Path(source).exists():
        source, depth = found[1], int(found[2])
        if depth < 1:
            raise UserError(f"{value}: expected at least 1 iteration after @, found {depth}")
    if not source:
        raise UserError(f"--models {value}: expected a model after =, such as {next(iter(SHAPES))}")
    suffix = "" if depth is None else f"@{depth}"
    name = name or f"{ModelChoice('', source).shown.removesuffix('.json')}{suffix}"
    return ModelChoice(name, source, depth)


def _read_config(file: str) -> PreTrainedConfig:
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{_CONFIG}{file}: there is no such file; expected the config.json of an encoder")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if hasattr(config, "use_adapter"):  # of the paper's release
            config = MiniAlbertConfig.from_pretrained(path)
    except LOADING_ERRORS as error:
        raise UserError(f"{file} is not the config.json of an encoder ({one_line(error)})") from error
    check_config(config, file)
    return config


def _from_config(config: PreTrainedConfig) -> PreTrainedModel:
    config.num_labels = 2
    if isinstance(config, MiniAlbertConfig):
        return MiniAlbertForSequenceClassification(config)
    try:
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise UserError(f"a {config.model_type} cannot classify sequences ({one_line(error)})") from error


def _from_checkpoint(name: str) -> PreTrainedModel:
    try:
        config = load_encoder_config(name)
    except UserError as error:
        if Path(name).exists():
            raise
        raise UserError(f"{error}. Names that need no files: {', '.join(SHAPES)}") from error
    heads = " ".join(config.architectures or ())
    token = "TokenClassification" in heads
    if config.model_type == MiniAlbertConfig.model_type or hasattr(config, "use_adapter"):
        model_class: Any = MiniAlbertForTokenClassification if token else MiniAlbertForSequenceClassification
    else:
        model_class = AutoModelForTokenClassification if token else AutoModelForSequenceClassification
    options = {} if "Classification" in heads else {"num_labels": 2}
    try:
        return model_class.from_pretrained(name, dtype=torch.float32, trust_remote_code=False, **options)
    except LOADING_ERRORS as error:
        raise UserError(f"{name}: its weights could not be loaded ({one_line(error)})") from error
