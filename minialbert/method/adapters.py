"""Adapters apart from the model: add them, train them alone, keep them in a file, switch them on one backbone.

A student's embeddings and shared block are the backbone; what a task adds to them are the adapters of every
iteration and a task head, a few megabytes where the whole student has tens.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minialbert.errors import (
    UserError,
    display_name,
    failing_as,
    listed,
    one_line,
    quoted,
    shown,
    spelled_as_path,
)
from minialbert.method.configuration_minialbert import LATER, MiniAlbertConfig
from minialbert.method.encoders import ARCHITECTURES, LOADING_ERRORS, repository_file, tell_misfit
from minialbert.method.modeling_minialbert import (
    CombinedAdapter,
    MiniAlbertForQuestionAnswering,
    MiniAlbertForSequenceClassification,
    MiniAlbertForTokenClassification,
    MiniAlbertModel,
    MiniAlbertPreTrainedModel,
    build_adapters,
)
from minialbert.runs.files import check_folder, whole_folder, writing

FORMAT_VERSION = 1
WEIGHTS_NAME = "adapters.safetensors"
CONFIG_NAME = "adapter_config.json"

AdaptedModel = (
    MiniAlbertForSequenceClassification | MiniAlbertForTokenClassification | MiniAlbertForQuestionAnswering
)
_ARCHITECTURES = [cls.__name__ for cls in get_args(AdaptedModel)]

_ADAPTER_PREFIXES = ("attention_adapters.", "ffn_adapters.")
# What changes the function of a backbone without changing the shape of any of its tensors.
_FUNCTIONAL_FIELDS = ("num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps")
# Fields of a model's configuration that belong to its task and travel with the adapters.
_TASK_FIELDS = (
    "adapter_reduction_factor", "adapter_layer_norm", "adapter_init", "problem_type", "classifier_dropout",
    "elastic_depths", "adapter_kind", "lora_rank", "lora_layers",
)  # fmt: skip


class _Record(BaseModel):
    """Contents of `adapter_config.json`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format_version: int
    architecture: str
    backbone: str | None
    backbone_fingerprint: str
    num_iterations: int
    adapter_reduction_factor: int
    adapter_kind: str = "bottleneck"
    lora_rank: int = 8
    lora_layers: list[str] | None = None
    adapter_layer_norm: bool
    adapter_init: str
    num_labels: int
    id2label: dict[str, str]
    label2id: dict[str, int]
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification", None]
    classifier_dropout: int | float
    elastic_depths: list[int] | None = None
    task: dict[str, Any]


@dataclass(frozen=True)
class TrainableCount:
    """How many parameters training changes, and how many there are; shared tensors count once."""

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Trainable parameters as a fraction of all."""
        return self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters are trained ({100 * self.share:.2f} %)"


def count_parameters(model: nn.Module) -> TrainableCount:
    """Return how many parameters a model has and how many of them require a gradient."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return TrainableCount(sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes))


def freeze_all_but_adapters(model: PreTrainedModel) -> TrainableCount:
    """Let training change the adapters (with their LayerNorms) and the task head, and count what it may change.

    Raises UserError for a model that is no MiniALBERT or has no adapters.
    """
    encoder = _encoder(model)
    if not has_adapters(encoder):
        raise UserError(
            "this student has no adapters to train: add some with add_adapters(model), or load it with "
            "adapter_reduction_factor set in its config"
        )
    # A tied masked-LM decoder is the word table, which is the encoder's.
    frozen = {id(parameter) for name, parameter in encoder.named_parameters() if not _is_adapter(name)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) not in frozen)
    return count_parameters(model)


def has_adapters(model: MiniAlbertPreTrainedModel) -> bool:
    """Return whether a MiniALBERT, under any head or bare, has adapters."""
    return len(_encoder(model).attention_adapters) > 0


def add_adapters(
    model: MiniAlbertPreTrainedModel,
    *,
    reduction_factor: int = 16,
    initialization: Literal["identity", "as-published"] = "identity",
    layer_norm: bool | None = None,
    seed: int | None = None,
    kind: str = "bottleneck",
    lora_rank: int = 8,
    lora_layers: Sequence[str] | None = None,
) -> None:
    """Give a student fresh adapters, in place, and say so in its configuration.

    With "identity" the outputs stay the same to the bit until the first training step. Beside adapters that a student
    has, those of further kinds work on what these return.

    Args:
        model: a MiniALBERT under any head or bare, without adapters of these kinds.
        reduction_factor: hidden size divided by the width of the bottleneck.
        initialization: "identity" for a zero up-projection, "as-published" for the release's random start.
        layer_norm: whether each adapter ends in a LayerNorm; None for False with "identity" and True, as in
            the release, with "as-published".
        seed: of the random values; None draws from torch's global generator.
        kind: what `MiniAlbertConfig` takes as `adapter_kind`; so `lora_rank` and `lora_layers`. Of a student with
            adapters, the kinds to add.
        lora_rank: rank of the kind "lora".
        lora_layers: the linear layers that it changes; None for all.

    Raises:
        UserError: if the model is no MiniALBERT, has adapters of such a kind already, or cannot have such ones.
    """
    encoder = _encoder(model)
    own = encoder.config.adapter_kind.split("+") if has_adapters(encoder) else []
    if twice := [one for one in kind.split("+") if one in own]:
        raise UserError(
            f"this student has adapters of the kind {twice[0]} already (reduction factor "
            f"{encoder.config.adapter_reduction_factor}): train those, add another kind, or start from a student "
            "without adapters"
        )
    values: dict[str, Any] = {
        "adapter_kind": kind,
        "lora_rank": lora_rank,
        "lora_layers": None if lora_layers is None else list(lora_layers),
    }
    if not own:
        values |= {
            "adapter_reduction_factor": reduction_factor,
            "adapter_init": initialization,
            "adapter_layer_norm": initialization == "as-published" if layer_norm is None else layer_norm,
        }
    elif "lora" in own:  # its rank stays that of the adapters that are there
        values = {"adapter_kind": kind}
    config = _changed_config(encoder.config, values, "adapters")
    places = (encoder.attention_adapters, encoder.ffn_adapters)
    for there, fresh in zip(places, _started(config, seed), strict=True):
        for adapter in fresh:
            adapter.to(device=encoder.device, dtype=encoder.dtype).train(encoder.training)
        if own:
            pairs = zip(there, fresh, strict=True)
            fresh = [CombinedAdapter([*_parts(one), *_parts(new)]) for one, new in pairs]
            del there[:]
        there.extend(fresh)
    values["adapter_kind"] = "+".join((*own, kind))
    for owner in (model, encoder):
        for name, value in values.items():
            setattr(owner.config, name, value)


def _started(config: MiniAlbertConfig, seed: int | None) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return adapters at their start, for the attention and for the network of every iteration."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None), torch.device("cpu"):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        try:
            pairs = build_adapters(config, config.num_hidden_layers)
        except ValueError as error:
            raise UserError(str(error)) from error
        for adapter in (*pairs[0], *pairs[1]):  # their LayerNorms start at one and zero, as torch's do
            for module in adapter.modules():
                initialize = getattr(module, "initialize", None)
                if initialize is not None:
                    initialize()
    return pairs


def _parts(adapter: nn.Module) -> Iterable[nn.Module]:
    return adapter if isinstance(adapter, CombinedAdapter) else [adapter]


def backbone_fingerprint(encoder: MiniAlbertModel) -> str:
    """Return 64 hex digits that tell one backbone from another, whatever adapters and head it carries.

    SHA-256 over name, shape and values of the tensors that are not adapters, and over the fields of the configuration
    that change what they compute. Values count as rounded to bfloat16, so that a student loaded in float32 and in
    bfloat16 has one fingerprint.
    """
    fields = {name: getattr(encoder.config, name) for name in _FUNCTIONAL_FIELDS}
    if encoder.config.num_hidden_groups > 1:
        fields["hidden_group_order"] = encoder.config.hidden_group_order
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        if not _is_adapter(name):
            digest.update(f"\n{name} {list(tensor.shape)}\n".encode())
            rounded = tensor.detach().to(torch.bfloat16).cpu().contiguous()
            digest.update(rounded.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def save_adapters(
    model: AdaptedModel,
    directory: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    metadata: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the adapters and the task head of a student, without its backbone, to a directory, and return that.

    The directory appears complete or not at all.

    Args:
        model: a MiniALBERT with adapters and a task head.
        directory: where to write `adapters.safetensors` and `adapter_config.json`.
        tokenizer: saved beside them when given.
        metadata: anything JSON can hold about the task, kept under "task".
        overwrite: replace what a directory holds under the same names. Its other files stay.

    Returns:
        The directory.

    Raises:
        UserError: if the model, the metadata or the directory do not serve.
    """
    encoder = _encoder(model)
    architecture = type(model).__name__
    if architecture not in _ARCHITECTURES:
        raise UserError(
            f"{architecture} has no task head to save: expected one of {', '.join(_ARCHITECTURES)}"
        )
    if not has_adapters(encoder):
        raise UserError("this student has no adapters to save: use model.save_pretrained(directory) instead")
    config = model.config
    record = {
        "format_version": FORMAT_VERSION,
        "architecture": architecture,
        "backbone": display_name(config.name_or_path),
        "backbone_fingerprint": backbone_fingerprint(encoder),
        "num_iterations": config.num_hidden_layers,
        "num_labels": config.num_labels,
        "id2label": {str(index): str(label) for index, label in config.id2label.items()},
        "label2id": {str(label): int(index) for label, index in config.label2id.items()},
        **{name: getattr(config, name) for name in _TASK_FIELDS},
        "task": metadata or {},
    }
    record = {key: value for key, value in record.items() if key not in LATER or value != LATER[key]}
    with failing_as("metadata of adapters must be what JSON can hold", (TypeError, ValueError)):
        text = json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False)
    # clone: safetensors refuses tensors that are views of one memory
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in _task_tensors(model)}

    target = Path(directory).expanduser().resolve()
    advice = "give overwrite=True to replace it, or another directory"
    check_folder(target, "adapters", overwrite=overwrite, advice=advice)
    with writing(directory, advice=None), whole_folder(target) as staging:
        save_file(tensors, staging / WEIGHTS_NAME, metadata={"format": "pt"})
        (staging / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
    return Path(directory)


def load_adapters(
    backbone: MiniAlbertPreTrainedModel, directory_or_hub_id: str | Path, *, revision: str | None = None
) -> AdaptedModel:
    """Return a full model in eval mode: the backbone's own modules with the adapters and the head of a file.

    `embeddings` and blocks are shared in memory, so training one model's backbone changes it for all, and so does a
    switch between train and eval mode. The backbone's own adapters, head and configuration, if any, are neither used
    nor changed.

    Args:
        backbone: a MiniALBERT under any head or bare, with other adapters or none.
        directory_or_hub_id: what `save_adapters` wrote.
        revision: git revision on the hub.

    Returns:
        A model of the saved architecture, on the device and in the dtype of the backbone.

    Raises:
        UserError: if the adapters were trained on another backbone, or a file is not whole.
    """
    encoder = _encoder(backbone)
    source = str(directory_or_hub_id)
    record = _read_record(_locate(source, CONFIG_NAME, revision), source)
    found = backbone_fingerprint(encoder)
    if found != record.backbone_fingerprint:
        raise UserError(
            f"{source}: these adapters were trained on the backbone {shown(record.backbone or 'without a name')} "
            f"({record.backbone_fingerprint[:12]}), but this one is "
            f"{display_name(encoder.config.name_or_path) or 'without a name'} ({found[:12]}): load the student "
            "they were trained on, or train adapters for this one"
        )
    if record.num_iterations != encoder.config.num_hidden_layers:
        raise UserError(
            f"{source}: {CONFIG_NAME}: num_iterations is {record.num_iterations}, and the backbone that they were "
            f"trained on has {encoder.config.num_hidden_layers}: save the adapters again"
        )
    values = {name: getattr(record, name) for name in _TASK_FIELDS}
    values["id2label"] = {int(index): label for index, label in record.id2label.items()}
    values["label2id"] = dict(record.label2id)
    values["architectures"] = [record.architecture]
    values["exit_threshold"] = None  # of the backbone's own task
    config = _changed_config(encoder.config, values, f"{source}: {CONFIG_NAME}")
    try:
        with torch.device("meta"):  # shapes alone: every tensor comes from the backbone or the file
            model = ARCHITECTURES[record.architecture].ours(config)
    except ValueError as error:
        raise UserError(f"{source}: {one_line(error)}") from error
    tensors = _read_tensors(_locate(source, WEIGHTS_NAME, revision), model, source)

    model.minialbert.embeddings = encoder.embeddings
    model.minialbert.block, model.minialbert.further_blocks = encoder.block, encoder.further_blocks
    for key, tensor in tensors.items():
        tensor = tensor.to(device=encoder.device, dtype=encoder.dtype)
        owner, _, name = (f"minialbert.{key}" if _is_adapter(key) else key).rpartition(".")
        setattr(model.get_submodule(owner), name, nn.Parameter(tensor))
    return model.eval()


def _locate(source: str, name: str, revision: str | None) -> Path:
    folder = Path(source).expanduser()
    if not folder.is_dir() and (folder.exists() or spelled_as_path(source)):
        raise UserError(f"{source} is not a directory: expected one written by save_adapters, or a hub id")
    found = repository_file(source, name, revision)
    if found is None:
        raise UserError(
            f"{source} has no {name}: expected a directory written by save_adapters, with {CONFIG_NAME} and "
            f"{WEIGHTS_NAME}"
        )
    return found


def _read_record(path: Path, source: str) -> _Record:
    where = f"{source}: {CONFIG_NAME}"
    with failing_as(f"{where} is not readable JSON", (OSError, ValueError, RecursionError), "save it again"):
        values = json.loads(path.read_text(encoding="utf-8"))
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{where}: expected format_version {FORMAT_VERSION}, as save_adapters writes it, got {quoted(version)}"
        )
    try:
        record = _Record.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        told = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
        raise UserError(f"{where}: {shown(told, 400)}") from None
    if record.architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise UserError(f"{where}: architecture must be one of {known}, got {quoted(record.architecture)}")
    ids = list(record.id2label)
    if sorted(ids) != sorted(map(str, range(len(ids)))) or len(ids) != record.num_labels:
        raise UserError(
            f"{where}: id2label must number {record.num_labels} labels as 0, 1, 2, …; got {listed(ids[:5])}"
        )
    return record


def _read_tensors(path: Path, model: AdaptedModel, source: str) -> dict[str, Tensor]:
    where = f"{source}: {WEIGHTS_NAME}"
    with failing_as(f"{where} is damaged", LOADING_ERRORS, "save the adapters again"):
        tensors: dict[str, Tensor] = load_file(path)
    told = tell_misfit(_shapes(_task_tensors(model)), _shapes(tensors.items()))
    if told:
        raise UserError(f"{where} does not fit its {CONFIG_NAME}; {told}")
    return tensors


def _shapes(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors}


def _task_tensors(model: AdaptedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield what belongs to the task, under its key in the file."""
    for key, tensor in model.state_dict().items():
        inner = key.removeprefix("minialbert.")
        if inner == key or _is_adapter(inner):
            yield inner, tensor


class AdaptedTasks:
    """Several tasks on one backbone (under any head or bare) that is in memory once; each call names its task.

    Modules are shared as `load_adapters` says; gradients are the caller's choice, as with any model.
    """

    def __init__(self, backbone: MiniAlbertPreTrainedModel) -> None:
        self.backbone = _encoder(backbone)
        self._models: dict[str, AdaptedModel] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the loaded tasks, in the order of loading."""
        return tuple(self._models)

    def load(self, name: str, source: str | Path, *, revision: str | None = None) -> AdaptedModel:
        """Add a task under a name of its own and return its model, or raise as `load_adapters` does."""
        if name in self._models:
            raise UserError(f"a task {name!r} is loaded already: unload it first, or take another name")
        self._models[name] = load_adapters(self.backbone, source, revision=revision)
        return self._models[name]

    def unload(self, name: str) -> None:
        """Forget a task; the backbone and the other tasks stay."""
        self[name]
        del self._models[name]

    def __getitem__(self, name: str) -> AdaptedModel:
        try:
            return self._models[name]
        except KeyError:
            loaded = ", ".join(self._models) or "none"
            raise UserError(f"no task {name!r} is loaded: expected one of those loaded ({loaded})") from None

    def __call__(self, name: str, /, **inputs: Any) -> Any:
        """Return the outputs of a task's model."""
        return self[name](**inputs)


def _encoder(model: PreTrainedModel) -> MiniAlbertModel:
    if isinstance(model, MiniAlbertModel):
        return model
    if isinstance(model, MiniAlbertPreTrainedModel):
        return model.minialbert
    kind = getattr(getattr(model, "config", None), "model_type", "a module")
    raise UserError(
        f"adapter-tuning needs a MiniALBERT student; got {kind} ({type(model).__name__}): leave out --adapters, "
        "or distil a student first"
    )


def _is_adapter(key: str) -> bool:
    return key.startswith(_ADAPTER_PREFIXES)


def _changed_config(config: MiniAlbertConfig, values: dict[str, Any], where: str) -> MiniAlbertConfig:
    """Return a copy with other values, all of them checked as on construction."""
    try:
        MiniAlbertConfig.from_dict({**config.to_dict(), **values})
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {one_line(error)}") from error
    changed = copy.deepcopy(config)
    for name, value in values.items():
        setattr(changed, name, value)
    return changed
