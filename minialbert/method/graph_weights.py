"""A model's weights in the graph that it was exported to: where they are, and how to read them back."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from minialbert_runtime.folder import MODEL_FILE
from minialbert_runtime.graph import check_graph
from torch import Tensor

from minialbert.errors import UserError, failing_as, needs_extra

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

logger = logging.getLogger(__name__)

# Of the graph's metadata: {weight: [stored tensor, whether transposed]}, or where it has one value only [shape, value].
_KEY = "minialbert.weights"
_MOST_VALUES = 10**8  # of one value each; a damaged file could ask for any number


def note_weights(model: ModelProto, state: Mapping[str, Tensor]) -> None:
    """Write into an fp32 graph which stored tensor has each weight's values, perhaps transposed, in place."""
    from onnx import numpy_helper

    def identity(values: Any) -> tuple[tuple[int, ...], bytes]:
        return values.shape, np.ascontiguousarray(values).tobytes()

    stored = [(tensor.name, numpy_helper.to_array(tensor)) for tensor in model.graph.initializer]
    found = {identity(values.T): (name, True) for name, values in stored if values.ndim == 2}
    found |= {identity(values): (name, False) for name, values in stored}
    places: dict[str, tuple[str | list[int], bool | float]] = {}
    for key, tensor in state.items():
        values = tensor.detach().cpu().numpy()
        if (place := found.get(identity(values))) is not None:
            places[key] = place
        elif values.size and values.min() == values.max():  # zeros and ones are folded away
            places[key] = [*values.shape], float(values.flat[0])
    entry = model.metadata_props.add()
    entry.key, entry.value = _KEY, json.dumps(places, separators=(",", ":"))


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """Return the weights of the model in an exported folder, fp32, by their names in its checkpoint.

    Those of an fp32 export are the model's own, to the bit; others are rounded as the graph has them, which is said.
    Raises UserError if the folder was exported before graphs noted their weights, its file is damaged or refers to
    others, or `onnx` is not installed.
    """
    with needs_extra("export", "read the weights of an exported folder", "onnx"):
        import onnx
    file = Path(folder) / MODEL_FILE
    with failing_as(f"{file} is damaged or no graph of an export", Exception, "export the model again"):
        check_graph(file)  # it may come from anywhere: nothing is read from other files
        model = onnx.load(file, load_external_data=False)
    noted = next((entry.value for entry in model.metadata_props if entry.key == _KEY), None)
    if noted is None:
        raise UserError(
            f"{folder} was exported before folders could be trained again: export the model anew, or give the model "
            "that was exported"
        )
    weights: dict[str, Tensor] = {}
    with failing_as(f"{file}: what it notes of its weights is damaged", Exception, "export the model again"):
        for key, (place, how) in json.loads(noted).items():
            if isinstance(place, list):
                if math.prod(place) > _MOST_VALUES:
                    raise ValueError(f"{key} has {place} values")
                weights[key] = torch.full(place, float(how))
            elif (values := _values(model.graph, place)) is not None:
                weights[key] = torch.from_numpy(np.array(values.T if how else values, order="C"))
    if any(tensor.name.endswith(".scales") for tensor in model.graph.initializer):
        logger.info("weights: read from the graph of %s, rounded as it has them", folder)
    return weights


def has_type_int4(file: Path) -> bool:
    """Return whether a graph stores tensors of ONNX's type INT4, as int4 exports did before they packed them."""
    import onnx

    stored = onnx.load(file, load_external_data=False).graph.initializer
    return any(tensor.data_type == onnx.TensorProto.INT4 for tensor in stored)


def _values(graph: GraphProto, name: str) -> np.ndarray | None:
    """Return a tensor of the fp32 graph from what quantisation left of it; None if nothing is left."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.name.startswith(name)}
    part = {
        key.removeprefix(name): numpy_helper.to_array(stored[key])
        for key in (name, *(f"{name}.{end}" for end in ("int8", "int8.4", "int8.multipliers", "4", "scales")))
        if key in stored
    }
    if "" in part:
        return part[""]
    if ".4" in part:  # a lookup table
        return _unpacked(part[".4"], axis=1) * part[".scales"]
    if ".int8.4" in part:
        blocks = part[".int8.multipliers"].astype(np.float32)
        packed = part[".int8.4"]
        # Older exports stored numbers of ONNX's type INT4.
        levels = _unpacked(packed, axis=0) if packed.dtype == np.uint8 else packed.astype(np.float32)
        levels = (levels.reshape(len(blocks), -1, levels.shape[1]) * blocks).reshape(levels.shape)
    elif ".int8" in part:
        levels = part[".int8"].astype(np.float32)
    else:
        return None
    is_table = any(node.op_type == "Gather" and node.input[0] == f"{name}.int8" for node in graph.node)
    return levels * (part[".scales"][:, None] if is_table else part[".scales"])


def _unpacked(packed: np.ndarray, axis: int) -> np.ndarray:
    """Return numbers of 4 bits: the first half of an axis is in the low ones of the bytes, and 8 stands for zero."""
    return np.concatenate([packed & 15, packed >> 4], axis=axis).astype(np.float32) - 8
