"""Attention rows where they are wanted, a fused kernel everywhere else.

Transformers routes attention through a registry of functions. The function registered here under
`RECORDING` behaves like SDPA, except inside `record_attention`. There it keeps what is asked for of each
layer: the rows, computed in the open; or what rows are made of; or how far they are from a reference's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from minialbert.method.fast.rows import AttentionInputs, attend_and_compare

if TYPE_CHECKING:
    from minialbert.method.objective import Request

RECORDING = "minialbert_recording"


@dataclass
class AttentionRecorder:
    """Counts attention calls and keeps of some what a request asks for: rows, inputs, or divergences.

    Layers (or iterations) are counted from 1 in the order of the calls: some models do not number their
    attention modules, and a recursive one has a single module.
    """

    request: Request
    calls: int = 0
    rows: dict[int, Tensor] = field(default_factory=dict)
    inputs: dict[int, AttentionInputs] = field(default_factory=dict)
    divergences: dict[int, Tensor] = field(default_factory=dict)


_ACTIVE: ContextVar[AttentionRecorder | None] = ContextVar("minialbert_attention_recorder", default=None)


def record_attention(request: Request) -> AbstractContextManager[AttentionRecorder]:
    """Record attention of the models called inside the block, as a request asks.

    The recorder's `rows` map a layer to (B, H, T, T), fp32, its `divergences` to (B, H, T).
    """
    return _active(AttentionRecorder(request))


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute a model's layers in the backward pass, to save memory; recorded rows keep their gradients.

    The backward pass runs outside `record_attention`, so each layer takes along what it has to record again.
    """
    options = {"use_reentrant": False, "context_fn": _checkpoint_contexts}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(options)
    else:  # its name in the first releases of Transformers 5
        model.gradient_checkpointing_enable(options)


def _checkpoint_contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Return contexts of a layer's forward pass and of its recomputation."""
    recorder = _ACTIVE.get()
    if recorder is None:
        return nullcontext(), nullcontext()
    again = AttentionRecorder(recorder.request, recorder.calls)  # goes on, and does the same
    return nullcontext(), _active(again)


@contextmanager
def _active(recorder: AttentionRecorder) -> Iterator[AttentionRecorder]:
    token = _ACTIVE.set(recorder)
    try:
        yield recorder
    finally:
        _ACTIVE.reset(token)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it depends on a context and counts calls
def recording_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return attended values; under `record_attention`, keep what is asked for of this layer.

    Query, key and value are (B, H, T, D/H), key and value perhaps of fewer heads; the mask is what `sdpa_mask`
    made: bool, additive, or None when nothing is padded. Scores are scaled by 1 / sqrt(D/H) unless told
    otherwise. The values are (B, T, H, D/H); None stands in the place of the rows, as with SDPA.
    """
    recorder = _ACTIVE.get()
    layer = 0
    if recorder is not None:
        recorder.calls += 1
        layer, asked = recorder.calls, recorder.request
        groups = query.shape[1] // key.shape[1]  # of heads that share their keys and values (EuroBERT)
        keys, values = (part if groups == 1 else part.repeat_interleave(groups, 1) for part in (key, value))
        inputs = AttentionInputs(query, keys, values, attention_mask, scaling, kwargs.get("position_bias"))
        if layer in asked.attention_inputs:
            recorder.inputs[layer] = inputs
        if layer in asked.references:
            drop = dropout if module.training else 0.0
            attended, recorder.divergences[layer] = attend_and_compare(
                inputs, asked.references[layer], direction=asked.direction, dropout=drop
            )
            return attended.transpose(1, 2).contiguous(), None
    if recorder is None or layer not in recorder.request.attention_layers:
        return _fused_attention(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scores = torch.matmul(query, keys.transpose(2, 3)).float() * (scaling or query.shape[-1] ** -0.5)
    if kwargs.get("position_bias") is not None:
        scores = scores + kwargs["position_bias"]
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    log_rows = nn.functional.log_softmax(scores, dim=-1)
    weights = nn.functional.dropout(log_rows.exp(), p=dropout, training=module.training)
    recorder.rows[layer] = weights if recorder.request.after_dropout else log_rows
    attended = torch.matmul(weights.to(value.dtype), values)
    return attended.transpose(1, 2).contiguous(), None


def _fused_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return what SDPA does; half precision on a CPU attends in fp32."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    if query.device.type != "cpu" or not half or dropout > 0:  # with dropout there is no fused kernel
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, **kwargs)
    # PyTorch's CPU kernel takes two to ten times as long for the gradient in bf16 as in fp32
    # (results/bf16-attention), and about as long for the values.
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        attended, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **kwargs
        )
    return attended.to(query.dtype), None


def route_attention(model: PreTrainedModel) -> bool:
    """Route a model's attention through `recording_attention`, where Transformers' registry reaches it.

    Returns False for models that do not use the registry (MPNet), which stay as they are.
    """
    if getattr(model, "_supports_attention_backend", False) or model.config.model_type == "minialbert":
        with suppress(ValueError, KeyError):
            model.set_attn_implementation(RECORDING)
    return records_attention(model)


def records_attention(model: PreTrainedModel) -> bool:
    """Return whether a model's attention is routed through `recording_attention`."""
    return bool(model.config._attn_implementation == RECORDING)


ALL_ATTENTION_FUNCTIONS.register(RECORDING, recording_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(RECORDING, sdpa_mask)
