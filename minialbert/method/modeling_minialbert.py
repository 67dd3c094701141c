"""The recursive student: rank-r embeddings, a block that iterations share, adapters that differ per iteration.

The paper's Eq. 4 is the loop in `MiniAlbertModel.forward`. Shapes in comments: B batch, T tokens,
H heads, D hidden size, R rank of the embeddings, V vocabulary.

This file imports nothing of the package but its configuration: both travel with every checkpoint.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_minialbert import ATTENTION_LAYERS, FFN_LAYERS, MiniAlbertConfig

# The release's adapters and masked-LM head build their LayerNorms with this epsilon whatever the config says.
RELEASE_LAYER_NORM_EPS = 1e-12

# Key of the paper's release -> key of ours, as regular expressions applied in order. A release file holds
# `albert.albert.*` (its own wrapper round an AlbertModel), or `albert.*` when the bare encoder was saved.
_RELEASE_BLOCK = r"encoder\.albert_layer_groups\.0\.albert_layers\.0\."
RELEASE_KEY_MAPPING = {
    r"^(?:albert\.)?albert\.embeddings\.": "minialbert.embeddings.",
    rf"^(?:albert\.)?albert\.{_RELEASE_BLOCK}full_layer_layer_norm\.": "minialbert.block.LayerNorm.",
    rf"^(?:albert\.)?albert\.{_RELEASE_BLOCK}": "minialbert.block.",
    r"^(?:albert\.)?projector\.": "minialbert.embeddings.projection.",
    r"^(?:albert\.)?att_adapters\.(\d+)\.block\.0\.": r"minialbert.attention_adapters.\1.down.",
    r"^(?:albert\.)?att_adapters\.(\d+)\.block\.2\.": r"minialbert.attention_adapters.\1.up.",
    r"^(?:albert\.)?att_adapters\.(\d+)\.norm\.": r"minialbert.attention_adapters.\1.LayerNorm.",
    r"^(?:albert\.)?mlp_adapters\.(\d+)\.block\.0\.": r"minialbert.ffn_adapters.\1.down.",
    r"^(?:albert\.)?mlp_adapters\.(\d+)\.block\.2\.": r"minialbert.ffn_adapters.\1.up.",
    r"^(?:albert\.)?mlp_adapters\.(\d+)\.norm\.": r"minialbert.ffn_adapters.\1.LayerNorm.",
    r"^vocab_transform\.": "mlm_head.dense.",
    r"^vocab_layer_norm\.": "mlm_head.LayerNorm.",
    r"^vocab_projector\.": "mlm_head.decoder.",
}
# What a release file carries and no student uses: the pooler of its inner AlbertModel, and a buffer.
RELEASE_UNUSED_KEYS = (r"albert\.pooler\.(?:weight|bias)$", r"embeddings\.position_ids$")


@dataclass
class MiniAlbertSequenceClassifierOutput(SequenceClassifierOutput):
    """`SequenceClassifierOutput`, and where samples could leave early their iterations.

    Args:
        exit_iterations: how often the block was applied to each sample, int64 (B,); None where all ran in full.
    """

    exit_iterations: Tensor | None = None


@dataclass
class MiniAlbertTokenClassifierOutput(TokenClassifierOutput):
    """`TokenClassifierOutput`, and where samples could leave early their iterations.

    Args:
        exit_iterations: how often the block was applied to each sample, int64 (B,); None where all ran in full.
    """

    exit_iterations: Tensor | None = None


class MiniAlbertEmbeddings(nn.Module):
    """Word + position + token-type tables and LayerNorm in rank R, then one projection to width D (Eq. 5)."""

    def __init__(self, config: MiniAlbertConfig) -> None:
        super().__init__()
        rank = config.embedding_size
        self.word_embeddings = nn.Embedding(config.vocab_size, rank, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, rank)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, rank)
        self.LayerNorm = nn.LayerNorm(rank, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.projection = nn.Linear(rank, config.hidden_size) if rank != config.hidden_size else nn.Identity()

    def forward(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)  # (B, T, R)
        length = inputs_embeds.shape[1]
        longest = self.position_embeddings.num_embeddings
        if position_ids is None:
            if length > longest:
                raise ValueError(
                    f"the input has {length} tokens but this model has positions for {longest}: truncate it "
                    f"(tokenizer(..., truncation=True, max_length={longest})) or split it"
                )
            position_ids = torch.arange(length, device=inputs_embeds.device).unsqueeze(0)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        embeddings = (
            inputs_embeds
            + self.token_type_embeddings(token_type_ids)
            + self.position_embeddings(position_ids)
        )
        return self.projection(self.dropout(self.LayerNorm(embeddings)))


class AdapterLinear(nn.Linear):
    """Linear that starts with torch's own default (as the release did) or at zero, not as the model's others.

    A class of its own, because Transformers initialises each module that owns parameters by itself and
    passes over those that own none, such as the adapter as a whole.
    """

    def __init__(self, in_features: int, out_features: int, *, zero: bool = False, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.zero = zero

    @torch.no_grad()
    def initialize(self) -> None:
        """Set the starting values of all parameters that were not loaded."""
        bound = self.in_features**-0.5
        if self.zero:
            init.zeros_(self.weight)
        else:
            init.kaiming_uniform_(self.weight, a=5**0.5)
        if self.bias is not None:
            init.zeros_(self.bias) if self.zero else init.uniform_(self.bias, -bound, bound)


class BottleneckAdapter(nn.Module):
    """phi(X) = W_up gelu(W_down X) + X (Eq. 3), then a LayerNorm where the config asks for the release's.

    With `adapter_init="identity"` the up-projection starts at zero, and so the adapter as the identity.
    """

    def __init__(self, config: MiniAlbertConfig) -> None:
        super().__init__()
        assert config.adapter_size is not None
        self.down = AdapterLinear(config.hidden_size, config.adapter_size)
        self.up = AdapterLinear(
            config.adapter_size, config.hidden_size, zero=config.adapter_init == "identity"
        )
        self.LayerNorm = (
            nn.LayerNorm(config.hidden_size, eps=RELEASE_LAYER_NORM_EPS)
            if config.adapter_layer_norm
            else nn.Identity()
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return phi(X), of the input's shape (B, T, D)."""
        return self.LayerNorm(self.up(nn.functional.gelu(self.down(hidden_states))) + hidden_states)


class LowRankAdapter(nn.Module):
    """(W + B A) X instead of W X in linear layers of the block (LoRA); B starts at zero, and so as the identity."""

    def __init__(self, config: MiniAlbertConfig, layers: tuple[str, ...]) -> None:
        super().__init__()
        width, inner, rank = config.hidden_size, config.intermediate_size, config.lora_rank
        chosen = [name for name in layers if config.lora_layers is None or name in config.lora_layers]
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        for name in chosen:
            self.down[name] = AdapterLinear(inner if name == "ffn_output" else width, rank, bias=False)
            self.up[name] = AdapterLinear(rank, inner if name == "ffn" else width, zero=True, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return what the block reads: the input as it is."""
        return hidden_states

    def change(self, name: str, inputs: Tensor) -> Tensor | None:
        """Return B A X, which is added to the output of a linear layer."""
        return self.up[name](self.down[name](inputs)) if name in self.up else None


class AdapterVectors(nn.Module):
    """Y = (1 + scale) X + shift, by dimension; both start at zero, where weight decay leads too."""

    def __init__(self, width: int, *, scales: bool, shifts: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width)) if scales else None
        self.shift = nn.Parameter(torch.zeros(width)) if shifts else None

    @torch.no_grad()
    def initialize(self) -> None:
        """Set the starting values of all parameters that were not loaded."""
        for parameter in self.parameters():
            init.zeros_(parameter)

    def forward(self, values: Tensor) -> Tensor:
        if self.scale is not None:
            values = values * (1 + self.scale)
        return values if self.shift is None else values + self.shift


class VectorAdapter(nn.Module):
    """An iteration's own scales and shifts of what layers of the block give, or ("input") of what it reads.

    A LayerNorm's scale and shift give it a gain and a bias of its own; a linear layer's shift, a bias.
    """

    def __init__(
        self, config: MiniAlbertConfig, scales: tuple[str, ...] = (), shifts: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.vectors = nn.ModuleDict()
        for name in dict.fromkeys((*scales, *shifts)):
            width = config.intermediate_size if name == "ffn" else config.hidden_size
            self.vectors[name] = AdapterVectors(width, scales=name in scales, shifts=name in shifts)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return what the block reads."""
        return self.finish("input", hidden_states)

    def finish(self, name: str, output: Tensor) -> Tensor:
        """Return what becomes of the output of a layer."""
        return self.vectors[name](output) if name in self.vectors else output


class CombinedAdapter(nn.ModuleList):
    """Adapters of several kinds as one."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return what the block reads."""
        for adapter in self:
            hidden_states = adapter(hidden_states)
        return hidden_states

    def change(self, name: str, inputs: Tensor) -> Tensor | None:
        """Return the sum of what is added to the output of a linear layer."""
        changes = (getattr(adapter, "change", None) for adapter in self)
        found = [change(name, inputs) for change in changes if change is not None]
        added = [one for one in found if one is not None]
        return sum(added[1:], added[0]) if added else None

    def finish(self, name: str, output: Tensor) -> Tensor:
        """Return what becomes of the output of a layer."""
        for adapter in self:
            output = finished(name, output, adapter)
        return output


Build = Callable[[MiniAlbertConfig], nn.Module]
# What builds an adapter before the attention, and one before the feed-forward network.
ADAPTER_KINDS: dict[str, tuple[Build, Build]] = {
    "bottleneck": (BottleneckAdapter, BottleneckAdapter),
    "lora": (partial(LowRankAdapter, layers=ATTENTION_LAYERS), partial(LowRankAdapter, layers=FFN_LAYERS)),
    "layer-norm": (
        partial(VectorAdapter, scales=("LayerNorm",), shifts=("LayerNorm", *ATTENTION_LAYERS)),
        partial(VectorAdapter, scales=("LayerNorm",), shifts=("LayerNorm", *FFN_LAYERS)),
    ),
    "scale": (partial(VectorAdapter, scales=("dense",)), partial(VectorAdapter, scales=("ffn_output",))),
    "iteration-embedding": (partial(VectorAdapter, shifts=("input",)), VectorAdapter),
}
_OWN_KINDS = tuple(ADAPTER_KINDS)


def register_adapter(kind: str, build: Build, *, ffn: Build | None = None) -> None:
    """Let configurations name a kind of adapter, until the process ends: `build(config)` makes one.

    Each iteration has two, called on hidden states (B, T, D) before the attention and before the feed-forward network,
    for which `ffn` may build another. What a method `change(name, inputs)` returns, if it has one and it is not None,
    is added to the output of the linear layer of that name: query, key, value and dense of the attention, ffn and
    ffn_output of the network. What a method `finish(name, output)` returns takes the place of the output of such a
    layer, and of the LayerNorm after it ("LayerNorm"). Linear layers that are `AdapterLinear` start at torch's default
    or at zero, others as the model's own; other modules with parameters of their own have a method `initialize`.
    """
    if kind in _OWN_KINDS:
        raise ValueError(f"the adapter kind {kind!r} is the package's own: give another name")
    if "+" in kind:
        raise ValueError(f"the adapter kind {kind!r} has a +, which joins kinds: give another name")
    ADAPTER_KINDS[kind] = build, ffn or build


def known_kinds(named: str) -> list[str]:
    """Return the kinds of adapters that a name joins by "+"; refuse unknown ones, and one that stands there twice."""
    kinds = named.split("+")
    for kind in kinds:
        if kind not in ADAPTER_KINDS:
            raise ValueError(
                f"the adapter kind {kind!r} is not known ({', '.join(ADAPTER_KINDS)}): call register_adapter with its "
                "class first"
            )
    if len({*kinds}) < len(kinds):
        raise ValueError(f"adapter_kind names each kind once, got {named!r}")
    return kinds


def build_adapters(config: MiniAlbertConfig, count: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return adapters of the kinds that a configuration names: those of the attention, those of the network."""
    kinds = known_kinds(config.adapter_kind)

    def build(place: int) -> nn.Module:
        parts = [ADAPTER_KINDS[kind][place](config) for kind in kinds]
        return parts[0] if len(parts) == 1 else CombinedAdapter(parts)

    return [build(0) for _ in range(count)], [build(1) for _ in range(count)]


class IterationAdapter:
    """An adapter as an argument of the block, and no module itself.

    Accelerate moves modules among arguments before their weights have come from the disk; here it does not see one.
    """

    def __init__(self, adapter: nn.Module) -> None:
        self.adapter = adapter
        self.change, self.finish = (getattr(adapter, name, None) for name in ("change", "finish"))

    def __call__(self, hidden_states: Tensor) -> Tensor:
        return self.adapter(hidden_states)


def adapted(layer: nn.Linear, name: str, inputs: Tensor, adapter: Any) -> Tensor:
    """Return what a linear layer gives, changed where the kind of the iteration's adapter does so."""
    change = getattr(adapter, "change", None)
    added = None if change is None else change(name, inputs)
    return finished(name, layer(inputs) if added is None else layer(inputs) + added, adapter)


def finished(name: str, output: Tensor, adapter: Any) -> Tensor:
    """Return what the iteration's adapter makes of the output of a layer."""
    finish = getattr(adapter, "finish", None)
    return output if finish is None else finish(name, output)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Return attended values (B, T, H, D/H) and attention rows before dropout (B, H, T, T), softmax in fp32."""
    scores = torch.matmul(query, key.transpose(2, 3)) * (scaling or query.shape[-1] ** -0.5)
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    rows = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    weights = nn.functional.dropout(rows, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), rows


class MiniAlbertSelfAttention(nn.Module):
    """Multi-head self-attention with a post-LN residual: `att` of Eq. 4."""

    def __init__(self, config: MiniAlbertConfig) -> None:
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.is_causal = False

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        output_attentions: bool,
        num_queries: int | None = None,
        adapter: Callable | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        batch = hidden_states.shape[0]
        asking = hidden_states
        if num_queries is not None:  # the first tokens look at all, and nobody asks what the others would see
            asking = hidden_states[:, :num_queries].contiguous()
            attention_mask = None if attention_mask is None else attention_mask[:, :, :num_queries]
        query, key, value = (
            adapted(projection, name, states, adapter)
            .view(batch, -1, self.config.num_attention_heads, self.head_size)
            .transpose(1, 2)  # (B, H, T, D/H)
            for projection, name, states in (
                (self.query, "query", asking), (self.key, "key", hidden_states), (self.value, "value", hidden_states)
            )
        )  # fmt: skip
        attention: Callable = eager_attention
        if not output_attentions:  # the fused kernels return no rows
            attention = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, eager_attention
            )
        attended, rows = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.head_size**-0.5,
        )
        attended = self.dropout(adapted(self.dense, "dense", attended.flatten(2), adapter))
        return finished("LayerNorm", self.LayerNorm(asking + attended), adapter), rows


class MiniAlbertBlock(GradientCheckpointingLayer):
    """The one block that every iteration applies: attention, then a feed-forward network, both post-LN.

    Without an attention of its own it applies that of another block, which `forward` is given.
    """

    def __init__(self, config: MiniAlbertConfig, *, has_attention: bool = True) -> None:
        super().__init__()
        if has_attention:
            self.attention = MiniAlbertSelfAttention(config)
        self.ffn = nn.Linear(config.hidden_size, config.intermediate_size)
        self.ffn_output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        attention_adapter: Callable,
        ffn_adapter: Callable,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        num_queries: int | None = None,
        attention: Callable | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        # O_i = mlp(phi_mlp^i(att(phi_att^i(O_{i-1}))))  (Eq. 4)
        attended, rows = (attention or self.attention)(
            attention_adapter(hidden_states),
            attention_mask,
            output_attentions,
            num_queries,
            attention_adapter,
        )
        attended = ffn_adapter(attended)
        widened = self.activation(adapted(self.ffn, "ffn", attended, ffn_adapter))
        transformed = adapted(self.ffn_output, "ffn_output", widened, ffn_adapter)
        return finished("LayerNorm", self.LayerNorm(transformed + attended), ffn_adapter), rows


class MiniAlbertPreTrainedModel(PreTrainedModel):
    """Weight initialisation, loading (ours and the release's) and saving, common to all heads."""

    config_class = MiniAlbertConfig
    config: MiniAlbertConfig
    base_model_prefix = "minialbert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["MiniAlbertBlock"]
    _keys_to_ignore_on_load_unexpected = list(RELEASE_UNUSED_KEYS)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # older versions of Transformers guess it from a function's name in this file

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initialize = getattr(module, "initialize", None)
        if initialize is not None:  # a part of an adapter
            initialize()
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """Load a student from a directory or hub id: one of ours, or one of the paper's release.

        Arguments and what is returned are those of Transformers. Keys of the release are renamed on the way in.
        Raises ValueError if a release checkpoint lacks a key of the encoder, has one that is not known, or one of
        another shape (for the task head, `ignore_mismatched_sizes=True` allows that).
        """
        wants_info = kwargs.pop("output_loading_info", False)
        release = _is_release_checkpoint(pretrained_model_name_or_path, kwargs)
        keep_mismatched = kwargs.get("ignore_mismatched_sizes", False)
        if release:
            kwargs["key_mapping"] = RELEASE_KEY_MAPPING
            kwargs["ignore_mismatched_sizes"] = True  # told below, by key name
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        if release:
            _check_release_keys(model, info, str(pretrained_model_name_or_path), keep_mismatched)
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Write weights (safetensors), config and the two files that define the model to a directory."""
        kwargs.setdefault("save_original_format", False)  # never write the release's key names back
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            _write_code(save_directory)

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        # Within Transformers' `save_pretrained`, where it is told to push.
        _write_code(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)


def _write_code(directory: str | os.PathLike) -> None:
    for source in (inspect.getfile(MiniAlbertConfig), __file__):
        target = Path(directory) / Path(source).name
        if not target.exists() or not target.samefile(source):
            shutil.copyfile(source, target)


def _is_release_checkpoint(name: str | os.PathLike | None, kwargs: dict[str, Any]) -> bool:
    if name is None:
        return False
    hub_arguments = {
        key: kwargs[key]
        for key in ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
        if key in kwargs
    }
    config_dict, _ = PreTrainedConfig.get_config_dict(name, **hub_arguments)  # as written, not translated
    return config_dict.get("model_type") == "albert"


def _check_release_keys(
    model: PreTrainedModel, info: dict[str, Any], name: str, keep_mismatched: bool
) -> None:
    # A head may be missing (an encoder loaded for a new task), a part of the encoder may not.
    def of_encoder(key: str) -> bool:
        return isinstance(model, MiniAlbertModel) or key.startswith("minialbert.")

    missing = sorted(key for key in info["missing_keys"] if of_encoder(key))
    heads = ("classifier.", "mlm_head.", "vocab_")
    unknown = sorted(key for key in info["unexpected_keys"] if not key.startswith(heads))
    mismatched = [
        f"{key} (file {tuple(found)}, model {tuple(expected)})"
        for key, found, expected in sorted(info["mismatched_keys"])
        if of_encoder(key) or not keep_mismatched
    ]
    found = {"missing": missing, "unknown": unknown, "of another shape": mismatched}
    problems = [f"{what}: {', '.join(keys)}" for what, keys in found.items() if keys]
    if problems:
        raise ValueError(
            f"{name} is not a complete checkpoint of the MiniALBERT release; {'; '.join(problems)}"
        )


class MiniAlbertModel(MiniAlbertPreTrainedModel):
    """The encoder: embeddings, then the shared block applied `num_hidden_layers` times with its adapters.

    Examples:
        >>> config = minialbert.MiniAlbertConfig(vocab_size=100, num_hidden_layers=3)
        >>> model = minialbert.MiniAlbertModel(config)
        >>> model(torch.tensor([[2, 17, 3]])).last_hidden_state.shape
        torch.Size([1, 3, 768])
        >>> len(model(torch.tensor([[2, 17, 3]]), num_iterations=2, output_hidden_states=True).hidden_states)
        3

    Args:
        config: shape of a new model with random weights; `from_pretrained` loads one that was trained.
    """

    def __init__(self, config: MiniAlbertConfig) -> None:
        super().__init__(config)
        self.embeddings = MiniAlbertEmbeddings(config)
        self.block = MiniAlbertBlock(config)
        self.further_blocks = nn.ModuleList(
            MiniAlbertBlock(config, has_attention=not config.groups_share_attention)
            for _ in range(1, config.num_hidden_groups)
        )
        count = config.num_hidden_layers if config.adapter_reduction_factor is not None else 0
        attention_adapters, ffn_adapters = build_adapters(config, count) if count else ([], [])
        self.attention_adapters = nn.ModuleList(attention_adapters)
        self.ffn_adapters = nn.ModuleList(ffn_adapters)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word table, of shape (V, R)."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word table."""
        self.embeddings.word_embeddings = value

    def _adapters(self, iteration: int) -> tuple[Callable, Callable]:
        """Return the adapter pair of an iteration; past the last trained one, the last pair repeats."""
        if not len(self.attention_adapters):
            return nn.Identity(), nn.Identity()
        index = min(iteration, len(self.attention_adapters) - 1)
        return IterationAdapter(self.attention_adapters[index]), IterationAdapter(self.ffn_adapters[index])

    @property
    def blocks(self) -> list[MiniAlbertBlock]:
        """The blocks of all groups."""
        return [self.block, *self.further_blocks]  # type: ignore[list-item]

    def depth(self, num_iterations: int | None) -> int:
        """Return how often to apply the block: what was asked for, else what the model is trained for."""
        iterations = self.config.num_hidden_layers if num_iterations is None else num_iterations
        if iterations < 1:
            raise ValueError(f"num_iterations must be at least 1, got {iterations}")
        return iterations

    def begin(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the embedding output, (B, T, D), and the mask that the attention implementation wants."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden_states = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        return hidden_states, mask

    def iterate(
        self,
        iteration: int,
        hidden_states: Tensor,
        mask: Tensor | None,
        output_attentions: bool = False,
        first_token_only: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output of one iteration, counted from 0, and its attention rows where asked for."""
        attention_adapter, ffn_adapter = self._adapters(iteration)
        # A mask of another kind (of flash or flex attention) has no row per query that could be picked.
        has_rows = mask is None or (isinstance(mask, Tensor) and mask.ndim == 4)
        num_queries = 1 if first_token_only and has_rows else None
        block = self.blocks[self.config.group_of(iteration)]
        # Not the module itself: see `IterationAdapter`.
        attention = None if hasattr(block, "attention") else self.block.attention.__call__
        return block(
            hidden_states, attention_adapter, ffn_adapter, mask, output_attentions, num_queries, attention
        )

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_iterations: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        first_token_only: bool = False,
    ) -> BaseModelOutput:
        """Return the hidden states of the last iteration, of shape (B, T, D); with `return_dict=False` as a tuple.

        Args:
            input_ids: token ids, int64 (B, T).
            attention_mask: 1 for tokens, 0 for padding, (B, T).
            token_type_ids: segment ids, int64 (B, T); zeros when absent.
            position_ids: positions, int64 (B, T); 0, 1, 2, … when absent.
            inputs_embeds: word embeddings of shape (B, T, R) instead of `input_ids`.
            num_iterations: how often to apply the block; `config.num_hidden_layers` when absent. Beyond
                that the last adapter pair repeats.
            output_attentions: also return the attention rows of every iteration, (B, H, T, T), before
                dropout, whatever the attention implementation.
            output_hidden_states: also return the embedding output and the output of every iteration.
            first_token_only: leave out of the last iteration what the first token does not depend on: a classifier
                reads no other. Its output is then (B, 1, D), equal to the first row of the full one. Without effect
                where hidden states or attention rows are asked for.

        Returns:
            `BaseModelOutput`; `hidden_states` has one entry more than there are iterations.

        Raises:
            ValueError: if not exactly one of `input_ids` and `inputs_embeds` is given, if the input is
                longer than the position table, or if `num_iterations` is less than 1.
        """
        iterations = self.depth(num_iterations)
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        hidden_states, mask = self.begin(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        )
        all_hidden_states, all_attentions = [hidden_states], []
        first_token_only = first_token_only and not (output_hidden_states or output_attentions)
        for iteration in range(iterations):
            is_last = iteration == iterations - 1
            hidden_states, rows = self.iterate(
                iteration, hidden_states, mask, output_attentions, first_token_only and is_last
            )
            all_hidden_states.append(hidden_states)
            all_attentions.append(rows)

        return BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(all_attentions) if output_attentions else None,
        )


class MiniAlbertMaskedLMHead(nn.Module):
    """Linear, exact GELU, LayerNorm (all of width D), then the vocabulary.

    Tied (our default): one projection D -> R, and the decoder is the word table, V x R; so the decoder is
    factorised like the embeddings, and a teacher's own head can be carried over. Untied (the release): a
    decoder of its own, V x D, 24 M parameters at BERT-base size that exist only while distilling.
    """

    def __init__(self, config: MiniAlbertConfig) -> None:
        super().__init__()
        width, rank = config.hidden_size, config.embedding_size
        factorised = config.tie_word_embeddings and rank != width
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=RELEASE_LAYER_NORM_EPS)
        self.projection = nn.Linear(width, rank, bias=False) if factorised else nn.Identity()
        self.decoder = nn.Linear(rank if factorised else width, config.vocab_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.decoder(self.projection(self.LayerNorm(nn.functional.gelu(self.dense(hidden_states)))))


class _MiniAlbertWithHead(MiniAlbertPreTrainedModel):
    """What every head shares: the call of the encoder, and the loss where there are labels."""

    output_class: type[ModelOutput]
    reads_first_token_only = False

    def __init__(self, config: MiniAlbertConfig) -> None:
        super().__init__(config)
        self.minialbert = MiniAlbertModel(config)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_iterations: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ModelOutput:
        """Return logits as `read_out` does, and with `labels` the loss, which is described at `_loss`.

        The other arguments are those of `MiniAlbertModel.forward`.
        """
        outputs = self.minialbert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, num_iterations,
            output_attentions, output_hidden_states, self.reads_first_token_only, return_dict=True,
        )  # fmt: skip
        logits = self.read_out(outputs.last_hidden_state)
        loss = None if labels is None else self._loss(logits, labels)
        return self.output_class(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class MiniAlbertForMaskedLM(_MiniAlbertWithHead):
    """A student with a masked-language-model head, as it leaves distillation.

    Examples:
        >>> student = minialbert.MiniAlbertForMaskedLM.from_pretrained("run/model")
        >>> tokenizer = transformers.AutoTokenizer.from_pretrained("run/model")
        >>> logits = student(**tokenizer("The [MASK] was small.", return_tensors="pt")).logits
        >>> logits.shape[-1] == len(tokenizer)
        True

    Args:
        config: shape of a new model with random weights; `from_pretrained` loads one that was trained.
    """

    output_class = MaskedLMOutput
    _tied_weights_keys = {"mlm_head.decoder.weight": "minialbert.embeddings.word_embeddings.weight"}

    def __init__(self, config: MiniAlbertConfig) -> None:
        super().__init__(config)
        self.mlm_head = MiniAlbertMaskedLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """Return the decoder onto the vocabulary."""
        return self.mlm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the decoder onto the vocabulary."""
        self.mlm_head.decoder = new_embeddings

    def read_out(self, hidden_states: Tensor) -> Tensor:
        """Return logits over the vocabulary, (B, T, V), from the output of any iteration, (B, T, D)."""
        return self.mlm_head(hidden_states)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean of Eq. 6 in nats; labels int64 (B, T), -100 ignored."""
        return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


class _MiniAlbertClassifier(_MiniAlbertWithHead):
    """What the classifying heads share: in eval mode, samples that are sure enough leave the batch early."""

    def __init__(self, config: MiniAlbertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_iterations: int | None = None,
        exit_threshold: float | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ModelOutput:
        """Return logits, (B, num_labels) or of every token (B, T, num_labels), and with `labels` the loss.

        With `exit_threshold` (above 0, up to 1; `config.exit_threshold` when absent) a sample leaves the batch
        after the iteration at which its `confidence` reaches it, and `exit_iterations` says which that was.
        Logits of padding mean nothing then. That is for eval mode, and excludes labels, attention rows and
        hidden states: asked for beside these it is a ValueError, and one that only the config asks for is
        passed over.

        The other arguments are those of `MiniAlbertModel.forward`; labels are described at `_loss`.
        """
        threshold = self._exit_threshold(
            exit_threshold, attention_mask, labels, output_attentions, output_hidden_states
        )
        if threshold is None:
            return super().forward(
                input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, labels, num_iterations,
                output_attentions, output_hidden_states, return_dict=True,
            )  # fmt: skip
        logits, taken = self._run_until_sure(
            threshold, num_iterations, attention_mask, input_ids=input_ids, token_type_ids=token_type_ids,
            position_ids=position_ids, inputs_embeds=inputs_embeds,
        )  # fmt: skip
        return self.output_class(logits=logits, exit_iterations=taken)

    def confidence(self, logits: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return how sure the logits of each sample are, fp32 (B,).

        Of one class of several, the highest probability; of several classes at once, that of the least sure
        decision, max(p, 1 - p). Of token labels, the highest probability at the least sure token: padding does
        not count, special tokens do, because the model is not told which they are.
        """
        if self.config.problem_type == "multi_label_classification":
            return logits.float().abs().sigmoid().amin(dim=-1)
        highest = logits.float().softmax(dim=-1).amax(dim=-1)  # (B,), or (B, T) of token labels
        if highest.ndim == 1:
            return highest
        if attention_mask is not None:
            highest = highest.masked_fill(attention_mask == 0, 1.0)
        return highest.amin(dim=-1)

    def _exit_threshold(
        self,
        given: float | None,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
    ) -> float | None:
        """Return the threshold of this call; one that only the config asks for gives way to whatever excludes it."""
        threshold = self.config.exit_threshold if given is None else given
        if threshold is None:
            return None
        config = self.config
        rows = config.output_attentions if output_attentions is None else output_attentions
        states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        is_odd_mask = attention_mask is not None and attention_mask.ndim != 2
        is_traced = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined]
        obstacles = {
            "needs eval mode: call model.eval()": self.training,
            "excludes labels: a sample that left has no output of the last iteration": labels is not None,
            "excludes output_attentions": rows,
            "excludes output_hidden_states": states,
            "needs an attention_mask of shape (B, T)": is_odd_mask,
            "excludes export, which fixes the iterations: give num_iterations": is_traced,
            "needs a classifier, because a score has no confidence: give num_iterations": (
                not self.has_confidence
            ),
        }
        found = [obstacle for obstacle, holds in obstacles.items() if holds]
        if given is not None:
            if not 0 < given <= 1:
                raise ValueError(f"exit_threshold must lie above 0 and up to 1, got {given}")
            if found:
                raise ValueError(f"exit_threshold {'; it '.join(found)}")
        return None if found else threshold

    @property
    def has_confidence(self) -> bool:
        """Whether the head classifies: a score has no confidence."""
        problem = self.config.problem_type
        is_one_score = self.config.num_labels == 1 and problem != "multi_label_classification"
        return problem != "regression" and not is_one_score

    def _run_until_sure(
        self, threshold: float, num_iterations: int | None, attention_mask: Tensor | None, **inputs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the logits of each sample at the iteration where it left, and that iteration, int64 (B,).

        The head reads after each of `config.elastic_depths`, or after every iteration without them. Samples
        that stay go on as a smaller batch, without the columns that are padding to all of them.
        """
        encoder = self.minialbert
        depth = encoder.depth(num_iterations)
        exits = range(1, depth) if self.config.elastic_depths is None else self.config.elastic_depths
        hidden_states, mask = encoder.begin(attention_mask=attention_mask, **inputs)
        batch, length = hidden_states.shape[:2]
        samples = torch.arange(batch, device=hidden_states.device)  # where those that stay were in the batch
        attended = attention_mask
        ends = _attended_lengths(hidden_states, attention_mask)
        taken = torch.full_like(samples, depth)
        logits: Tensor | None = None
        for iteration in range(1, depth + 1):
            first_token_only = self.reads_first_token_only and iteration == depth
            hidden_states, _ = encoder.iterate(
                iteration - 1, hidden_states, mask, first_token_only=first_token_only
            )
            if iteration < depth and iteration not in exits:
                continue
            current = self.read_out(hidden_states)
            if logits is None:
                logits = current.clone()
            else:  # of token labels, padding that was cut away keeps what was read before
                logits[samples, : current.shape[1]] = current
            if iteration == depth:
                break
            leaves = self.confidence(current, attended) >= threshold
            taken[samples] = torch.where(leaves, iteration, depth)
            # The one wait for the device in an iteration.
            leaving, lengths = torch.stack((leaves.to(ends.dtype), ends)).tolist()
            needed = [columns for left, columns in zip(leaving, lengths, strict=True) if not left]
            if not needed:
                break
            if len(needed) == len(leaving):
                continue
            length = max(needed)
            # Those that stay, in their order.
            rows = leaves.to(ends.dtype).argsort(stable=True)[: len(needed)]
            samples, ends = samples[rows], ends[rows]
            hidden_states = hidden_states[rows, :length]
            attended = None if attended is None else attended[rows, :length]
            mask = None if mask is None else mask[rows][..., :length, :length]
        assert logits is not None
        return logits, taken


def _attended_lengths(hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return how many columns each sample needs, int64 (B,): up to its last token, or all if it has none."""
    batch, length = hidden_states.shape[:2]
    if attention_mask is None:
        return torch.full((batch,), length, device=hidden_states.device)
    columns = torch.arange(1, length + 1, device=hidden_states.device)
    last = (columns * (attention_mask != 0)).amax(dim=1)
    return torch.where(last > 0, last, length)


class MiniAlbertForSequenceClassification(_MiniAlbertClassifier):
    """A student that classifies (or scores) a text: `[CLS]` -> dropout -> Linear, no pooler, as in the release.

    Examples:
        >>> config = minialbert.MiniAlbertConfig(vocab_size=100, num_labels=3)
        >>> classifier = minialbert.MiniAlbertForSequenceClassification(config)
        >>> classifier(torch.tensor([[2, 17, 3]])).logits.shape
        torch.Size([1, 3])
    """

    reads_first_token_only = True
    output_class = MiniAlbertSequenceClassifierOutput

    def read_out(self, hidden_states: Tensor) -> Tensor:
        """Return logits, (B, num_labels), from the output of any iteration, (B, T, D)."""
        return self.classifier(self.dropout(hidden_states[:, 0]))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of `config.problem_type`, or of what `num_labels` and the labels' type tell without one.

        Labels are int64 (B,) for one class of several, float (B,) for regression, float (B, num_labels) for
        several classes at once.
        """
        problem = self.config.problem_type
        if problem == "regression" or (problem is None and self.num_labels == 1):
            scores = logits.float().squeeze(-1)
            return nn.functional.mse_loss(scores, labels.float().view(scores.shape))
        if problem == "multi_label_classification" or (problem is None and labels.is_floating_point()):
            return nn.functional.binary_cross_entropy_with_logits(logits.float(), labels.float())
        return nn.functional.cross_entropy(logits.float(), labels.view(-1))


class MiniAlbertForTokenClassification(_MiniAlbertClassifier):
    """A student that labels every token: each position -> dropout -> Linear, as in the release.

    Examples:
        >>> config = minialbert.MiniAlbertConfig(vocab_size=100, num_labels=5)
        >>> tagger = minialbert.MiniAlbertForTokenClassification(config)
        >>> tagger(torch.tensor([[2, 17, 3]])).logits.shape
        torch.Size([1, 3, 5])
    """

    output_class = MiniAlbertTokenClassifierOutput

    def read_out(self, hidden_states: Tensor) -> Tensor:
        """Return logits, (B, T, num_labels), from the output of any iteration, (B, T, D)."""
        return self.classifier(self.dropout(hidden_states))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats; labels int64 (B, T), -100 ignored."""
        return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


class MiniAlbertForQuestionAnswering(_MiniAlbertWithHead):
    """A student that marks the span of an answer: each position -> Linear -> start and end score.

    Examples:
        >>> model = minialbert.MiniAlbertForQuestionAnswering(minialbert.MiniAlbertConfig(vocab_size=100))
        >>> model(torch.tensor([[2, 17, 3]])).start_logits.shape
        torch.Size([1, 3])

    Args:
        config: shape of a new model with random weights; `from_pretrained` loads one that was trained.
    """

    def __init__(self, config: MiniAlbertConfig) -> None:
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def read_out(self, hidden_states: Tensor) -> Tensor:
        """Return start and end logits, (B, T, 2), from the output of any iteration, (B, T, D)."""
        return self.qa_outputs(hidden_states)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        num_iterations: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> QuestionAnsweringModelOutput:
        """Return start and end logits, each (B, T), and with positions the mean of the two cross-entropies in nats.

        Positions outside the input are ignored. The other arguments are those of `MiniAlbertModel.forward`.
        """
        outputs = self.minialbert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, num_iterations,
            output_attentions, output_hidden_states, return_dict=True,
        )  # fmt: skip
        start_logits, end_logits = self.read_out(outputs.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            length = start_logits.shape[1]
            sides = ((start_logits, start_positions), (end_logits, end_positions))
            loss = sum(
                nn.functional.cross_entropy(side.float(), at.view(-1).clamp(0, length), ignore_index=length)
                / 2
                for side, at in sides
            )
        return QuestionAnsweringModelOutput(
            loss=loss, start_logits=start_logits, end_logits=end_logits,
            hidden_states=outputs.hidden_states, attentions=outputs.attentions,
        )  # fmt: skip


__all__ = [
    "BottleneckAdapter",
    "MiniAlbertForMaskedLM",
    "MiniAlbertForQuestionAnswering",
    "MiniAlbertForSequenceClassification",
    "MiniAlbertForTokenClassification",
    "MiniAlbertModel",
    "MiniAlbertPreTrainedModel",
    "MiniAlbertSequenceClassifierOutput",
    "MiniAlbertTokenClassifierOutput",
]
