"""Models for the bench: from a directory, the hub, a config alone, an exported folder, or a well-known shape."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from minialbert_runtime.folder import MODEL_FILE, find_folder, is_exported, read_folder
from minialbert_runtime.native import has_native
from minialbert_runtime.session import has_openvino
from transformers import PreTrainedConfig

from minialbert.deploy.bench_worker import STATIC
from minialbert.errors import UserError, display_name, one_line
from minialbert.method import encoders
from minialbert.method.configuration_minialbert import MiniAlbertConfig
from minialbert.runs.records import RESULT_FILE, load_record, look_up


def _bert(layers: int, width: int, inner: int) -> Callable[[], PreTrainedConfig]:
    return partial(
        transformers.BertConfig, hidden_size=width, num_hidden_layers=layers, intermediate_size=inner,
        num_attention_heads=12,
    )  # fmt: skip


# The paper's students and what they are compared with; no weights, so nothing is downloaded.
SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    **{f"minialbert-{rank}": partial(MiniAlbertConfig, embedding_size=rank) for rank in (128, 312, 768)},
    "distilbert": transformers.DistilBertConfig,
    "bert-base": transformers.BertConfig,
    "albert-base": partial(
        transformers.AlbertConfig, hidden_size=768, num_attention_heads=12, intermediate_size=3072
    ),
    "tinybert-4l-312": _bert(4, 312, 1200),
    "tinybert-6l-768": _bert(6, 768, 3072),
    "minilm-l6-h384": _bert(6, 384, 1536),
    "mobilebert": transformers.MobileBertConfig,
}
# A linear layer on the mean of the tokens' vectors, in NumPy: what a model without any context takes. Its width.
STATIC_SHAPES = {"static-256": 256}
_NAMES = (*SHAPES, *STATIC_SHAPES)
_VOCABULARY, _NO_LIMIT = 30522, 2**20
_CONFIG = "config:"
_HEAD, _TOKEN_HEAD = "sequence-classification", "token-classification"
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_MEMORY_LENGTH = 128


class ModelChoice(NamedTuple):
    """A model as asked for: the name of a shape, "config:" and a file, a directory or hub id; None: its own depth."""

    name: str
    source: str
    num_iterations: int | None = None

    @property
    def shown(self) -> str:
        """The source without the folders of a local path."""
        if self.source.startswith(_CONFIG):
            return Path(self.source.removeprefix(_CONFIG)).name
        return self.source if self.source in _NAMES else display_name(self.source) or self.source


class BenchModel(NamedTuple):
    """A model that is ready to run, in fp32 and eval mode, or what runs as it is: `ready` has its path by engine."""

    choice: ModelChoice
    architecture: str
    parameters: int | None  # shared ones counted once
    vocabulary: int
    padding: int | None
    max_length: int
    inputs: tuple[str, ...] = _INPUTS
    model: Any = None  # of PyTorch
    head: str = ""
    ready: Mapping[str, str] = {}

    @property
    def request(self) -> dict[str, Any]:
        """What a process must know to run it, beside engine and path; memory is measured at `length`."""
        depth = self.choice.num_iterations
        return {
            "inputs": self.inputs, "options": {} if depth is None else {"num_iterations": depth},
            "vocabulary": self.vocabulary, "padding": self.padding, "length": min(_MEMORY_LENGTH, self.max_length),
        }  # fmt: skip


def parse_models(values: Sequence[str]) -> list[ModelChoice]:
    """Return the models that `--model` names: "SOURCE", "NAME=SOURCE", "SOURCE@K" (K iterations), "NAME=SOURCE@K"."""
    if not values:
        raise UserError(f"no model to benchmark: give --model, such as {', '.join(_NAMES)}, or a directory")
    choices = [_parse(value) for value in values]
    names = [choice.name for choice in choices]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        called = ", ".join(twice)
        raise UserError(f"two models are called {called}: give --model NAME=PATH to tell them apart")
    return choices


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
        raise UserError(f"--model {value}: expected a model after =, such as {next(iter(SHAPES))}")
    suffix = "" if depth is None else f"@{depth}"
    name = name or f"{ModelChoice('', source).shown.removesuffix('.json')}{suffix}"
    return ModelChoice(name, source, depth)


def build_model(choice: ModelChoice, seed: int = 0, *, read: bool = True) -> BenchModel:
    """Return a model, `read` or with random weights; without a classification head it gets one of two labels."""
    name, head, depth = choice.source, _HEAD, choice.num_iterations
    if (as_it_is := _as_it_is(choice)) is not None:
        if depth is not None:
            raise UserError(f"{choice.name}: @{depth} is for a MiniALBERT that is not exported")
        return as_it_is
    has_weights = read and name not in SHAPES and not name.startswith(_CONFIG)
    config = _config_of(name)
    if has_weights and encoders.head_of(config) in (_HEAD, _TOKEN_HEAD):
        head = str(encoders.head_of(config))
    else:
        config.num_labels = 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if has_weights:
                model = encoders.load_encoder(name, head, config=config).model
            else:
                model = encoders.HEADS[head].auto.from_config(config, trust_remote_code=False)
        except UserError:
            raise
        except encoders.LOADING_ERRORS as error:
            raise UserError(f"a {config.model_type} cannot classify sequences ({one_line(error)})") from error
    if config.model_type == MiniAlbertConfig.model_type:
        model.config.exit_threshold = None  # times are those of a fixed depth
    elif depth is not None:
        raise UserError(
            f"{choice.name}: @{depth} sets the iterations of a MiniALBERT, and {name} is a {config.model_type}"
        )
    example = {name: torch.ones(1, 1, dtype=torch.int64) for name in _INPUTS}
    inputs = tuple(encoders.forward_inputs(model, example))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model = model.eval().requires_grad_(False)
    sizes = config.vocab_size, getattr(config, "pad_token_id", None), encoders.max_input_length(model)
    return BenchModel(choice, type(model).__name__, parameters, *sizes, inputs, model, head)


def _as_it_is(choice: ModelChoice) -> BenchModel | None:
    """Return static vectors, or an exported folder with the engines it was compared in; None for other models."""
    name = choice.source
    if (width := STATIC_SHAPES.get(name)) is not None:
        count, ready = (_VOCABULARY + 2) * width + 2, {STATIC: str(width)}
        return BenchModel(choice, "static vectors", count, _VOCABULARY, None, _NO_LIMIT, ready=ready)
    if not is_exported(name):
        return None
    folder, config = read_folder(name), encoders.load_encoder_config(find_folder(name))
    parameters = look_up(_record_of(name), "model", "parameters", kind=int)
    engines = [engine for engine in folder.engines if engine == "onnx" or has_openvino()]
    engines += ["native"] if folder.one_length and has_native() else []
    ready = {f"{engine}-{folder.precision}": str(folder.path / MODEL_FILE) for engine in engines}
    sizes = parameters, config.vocab_size, folder.pad_token_id, folder.max_length
    return BenchModel(choice, f"{config.model_type}, exported", *sizes, ready=ready)


def _record_of(source: str) -> Mapping[str, Any]:
    """Return the record in a folder, or of a run in the folder around its model; empty where there is none."""
    folder = find_folder(source).resolve()
    places = (folder, folder.parent) if folder.name == "model" else (folder,)
    return next((load_record(one / RESULT_FILE) for one in places if (one / RESULT_FILE).is_file()), {})


def recorded_quality(model: BenchModel) -> dict[str, Any] | None:
    """Return task, split, metric and score of a tuned model or an exported folder from its record, or None.

    `of` says what was scored: the model in PyTorch, or the exported graph.
    """
    record, depth = _record_of(model.choice.source), model.choice.num_iterations
    scored = {"finetune": record, "export": record.get("metrics")}.get(str(record.get("kind")))
    path = ["score" if scored is record else "after"]
    said = {name: look_up(scored, name, kind=str) for name in ("task", "split", "metric")}
    if model.model is not None and depth not in (None, model.model.config.num_hidden_layers):
        path = ["metrics_by_depth", str(depth), str(said["split"]), str(said["metric"])]
    score = look_up(scored, *path, kind=(int, float))
    if None in (*said.values(), score):
        return None
    if said["split"] in (record.get("agreement") or ()):
        said["metric"] += ", agreement with its teacher"
    return {**said, "score": score, "of": "PyTorch model" if scored is record else "exported graph"}


def _config_of(source: str) -> PreTrainedConfig:
    if source in SHAPES:
        return SHAPES[source]()
    file = source.removeprefix(_CONFIG)
    if file != source and not Path(file).is_file():
        raise UserError(f"{source}: there is no such file; expected the config.json of an encoder")
    try:
        return encoders.load_encoder_config(file)
    except UserError as error:
        if Path(file).exists():
            raise
        raise UserError(f"{error}. Names that need no files: {', '.join(_NAMES)}") from error
