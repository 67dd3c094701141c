"""From a PyTorch encoder to an ONNX graph with dynamic batch and length, through torch's current exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from onnx import ModelProto
from onnxscript import optimizer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from minialbert.deploy.onnx.graph import keep_layer_norms_apart, store_weights_once
from minialbert.method.encoders import forward_inputs, max_input_length
from minialbert.method.graph_weights import note_weights
from minialbert.method.sentence_vectors import Pooling

OPSETS = range(18, 24)
DEFAULT_OPSET = 23
_ATTENTION = "minialbert_onnx"
_ATTENTION_SINCE = 23  # the opset that has Attention as one operator
OUTPUTS = {"features": ("last_hidden_state",), "question-answering": ("start_logits", "end_logits")}


def trace_onnx(
    model: PreTrainedModel,
    head: str,
    *,
    opset: int = DEFAULT_OPSET,
    num_iterations: int | None = None,
    pooling: Pooling | None = None,
) -> ModelProto:
    """Return a model as an ONNX graph that holds every weight once.

    Inputs are `input_ids`, `attention_mask` and, where the model knows segments, `token_type_ids`, int64
    (batch, sequence), both free. Outputs are those of the head, fp32.

    The model is any encoder whose attention goes through Transformers' registry, in eval mode afterwards. `head` is one
    of `encoders.HEADS`, `num_iterations` the depth of a recursive model, None for all of it. With `pooling` the graph
    of a bare encoder gives `sentence_embedding` too, (batch, V).
    """
    model.eval()
    implementation = model.config._attn_implementation
    model.set_attn_implementation(_ATTENTION if opset >= _ATTENTION_SINCE else "eager")
    names = outputs_of(head, pooling)
    ids = torch.arange(2 * 7).reshape(2, 7) % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    example = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in forward_inputs(model, {**example, "token_type_ids": ids}):
        example["token_type_ids"] = torch.zeros_like(ids)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=max_input_length(model))}
    depth = {} if num_iterations is None else {"num_iterations": num_iterations}
    try:
        with _quietly():
            program = torch.onnx.export(
                _Positional(model, tuple(example), names, depth, pooling).eval(),
                tuple(example.values()), opset_version=opset, input_names=list(example), output_names=list(names),
                dynamic_shapes=(tuple(free for _ in example),), dynamo=True, verbose=False, optimize=False,
                external_data=False,
            )  # fmt: skip
            assert program is not None
            # The exporter's own way also fuses rotary positions into an operator that takes one text alone.
            optimizer.optimize(program.model)
    finally:
        model.set_attn_implementation(implementation)
    graph: ModelProto = program.model_proto
    graph.producer_name, graph.producer_version = "minialbert", ""
    body = graph.graph
    for part in (graph, body, *body.node, *body.initializer, *body.input, *body.output, *body.value_info):
        # Where each operator came from: lines of source, with paths of this machine.
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    store_weights_once(graph)
    note_weights(graph, model.state_dict())
    keep_layer_norms_apart(graph)
    return graph


def outputs_of(head: str, pooling: Pooling | None = None) -> tuple[str, ...]:
    """Return the names of what a graph gives."""
    return (*OUTPUTS.get(head, ("logits",)), *(["sentence_embedding"] if pooling is not None else []))


class _Positional(nn.Module):
    """Takes tensors by position and returns a tuple of the outputs wanted, as the exporter likes it."""

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        options: dict[str, Any],
        pooling: Pooling | None,
    ) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs
        self.options, self.pooling = options, pooling

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.inputs, tensors, strict=True))
        result = self.model(**given, **self.options)
        if self.pooling is not None:
            vectors = self.pooling.of_rows(result["last_hidden_state"], given["attention_mask"])
            result = {**result, "sentence_embedding": vectors}
        return tuple(result[name] for name in self.outputs)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return attended values (B, T, H, D/H) by ONNX's own Attention operator, which takes (B, T, D).

    Keys and values may have fewer heads, which those of the queries share.
    """
    batch, heads, length, size = query.shape

    def joined(states: Tensor) -> Tensor:
        return states.transpose(1, 2).reshape(batch, -1, states.shape[1] * size)

    q, k, v = map(joined, (query, key, value))
    scale = float(size**-0.5 if scaling is None else scaling)
    attended = torch.onnx.ops.attention(
        q, k, v, attention_mask, q_num_heads=heads, kv_num_heads=key.shape[1], scale=scale
    )[0]
    return attended.reshape(batch, length, heads, size), None


ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(_ATTENTION, eager_mask)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Leave out the exporter's progress, its warnings about packages that are not needed here, and its dumps."""
    names = ("torch.onnx", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        said = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
