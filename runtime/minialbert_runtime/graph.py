"""What an ONNX file may not hold: data outside of it, and parts that run without bound or are nowhere read.

ONNX Runtime takes them all. Only the shell of the file is read, by the rules of protobuf: weights are passed over.
Products of integers are written anew for processors that would cut their sums.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Numbers of fields in onnx.proto: of a model, a graph, a node, an attribute, a sparse tensor, a tensor.
_GRAPH, _FUNCTIONS = 7, 25
_NODE, _INITIALIZER, _SPARSE = 1, 5, 15
_ATTRIBUTE = 5
_TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS = 5, 6, 10, 11  # control flow is made of graphs
_SPARSES = (22, 23)
_EXTERNAL, _LOCATION = 13, 14
_INPUT, _OUTPUT, _OPERATOR = 1, 2, 4
# Products of integers, with the place of the weights' zero among their inputs.
_PRODUCTS = {b"MatMulInteger": 3, b"MatMulIntegerToFloat": 5}
_TO_UINT8 = b"\n\x02to\x18\x02\xa0\x01\x02"  # Cast's attribute
# What else is read where a whole graph is: inputs and outputs; of an attribute its values; of a tensor its parts.
_INPUTS, _OUTPUTS, _NAME = 11, 12, 1
_FLOAT, _INT, _TEXT, _INTS = 2, 3, 4, 8
_DIMS, _TYPE, _TENSOR_NAME, _RAW = 1, 2, 8, 9
DTYPES: dict[int, Any] = {
    1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64,
}  # fmt: skip
_INT4 = 22
_MIDDLE = b"weights.middle"
_MIDDLE_TENSOR = b"\x10\x02\x42" + bytes([len(_MIDDLE)]) + _MIDDLE + b"\x4a\x01\x80"  # uint8, 128


@dataclass(frozen=True, slots=True)
class Node:
    """An operator with the names of what it reads and gives; attributes are numbers, lists of whole ones, or text."""

    operator: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph: names of its inputs and outputs, operators in their order, and stored tensors by name."""

    inputs: list[str]
    outputs: list[str]
    nodes: list[Node]
    tensors: dict[str, NDArray[Any]]


def read_graph(model: bytes) -> Graph:
    """Return the graph in an ONNX file; ValueError where it is cut off, or stores tensors as no export does."""
    graph = Graph([], [], [], {})
    for number, whole, _ in _fields(memoryview(model)):
        for kind, part, _ in _fields(whole) if number == _GRAPH else ():
            if kind == _NODE:
                graph.nodes.append(_read_node(part))
            elif kind == _INITIALIZER:
                name, values = _read_tensor(part)
                graph.tensors[name] = values
            elif kind in (_INPUTS, _OUTPUTS):
                names = graph.inputs if kind == _INPUTS else graph.outputs
                names += _texts(part, _NAME)
    return graph


def _texts(message: memoryview, number: int) -> list[str]:
    return [bytes(value).decode() for kind, value, _ in _fields(message) if kind == number]


def _read_node(node: memoryview) -> Node:
    attributes = {}
    for kind, attribute, _ in _fields(node):
        if kind == _ATTRIBUTE:
            name = "".join(_texts(attribute, _NAME))
            values = [_attribute_value(kind, value) for kind, value, _ in _fields(attribute)]
            whole = [
                number for one in values if isinstance(one, list) for number in one
            ]  # in one field, or several
            attributes[name] = whole or next((value for value in values if value is not None), [])
    return Node("".join(_texts(node, _OPERATOR)), _texts(node, _INPUT), _texts(node, _OUTPUT), attributes)


def _attribute_value(kind: int, value: memoryview) -> Any:
    if kind == _FLOAT:
        return float(np.frombuffer(value, np.float32)[0])
    if kind == _TEXT:
        return bytes(value).decode(errors="replace")
    return _numbers(value)[0] if kind == _INT else _numbers(value) if kind == _INTS else None


def _numbers(packed: memoryview) -> list[int]:
    found, position = [], 0
    while position < len(packed):
        value, position = _number(packed, position)
        found.append(value - (1 << 64) if value >> 63 else value)
    return found


def _read_tensor(tensor: memoryview) -> tuple[str, NDArray[Any]]:
    fields = [(kind, value) for kind, value, _ in _fields(tensor)]
    dims = [size for number, value in fields if number == _DIMS for size in _numbers(value)]
    (kind,) = [_numbers(value)[0] for number, value in fields if number == _TYPE]
    raw = [value for number, value in fields if number == _RAW]
    if len(raw) != 1 or (kind not in DTYPES and kind != _INT4):
        raise ValueError("it stores a tensor as no exported model does")
    name = "".join(_texts(tensor, _TENSOR_NAME))
    if kind != _INT4:
        return name, np.frombuffer(raw[0], DTYPES[kind]).reshape(dims)
    pairs = np.frombuffer(raw[0], np.uint8)  # of neighbours, the first in the low bits
    values = np.stack([pairs << 4, pairs & 240], axis=-1).view(np.int8) >> 4
    return name, values.reshape(-1)[: int(np.prod(dims))].reshape(dims)


def check_graph(path: Path) -> None:
    """Raise ValueError for a file that is no ONNX, or has control flow, functions or outside data, as no export has."""
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed when its last slice is gone
    for problem in _problems(memoryview(content)):
        raise ValueError(f"it holds {problem}, which no exported model has")


def with_uint8_weights(model: bytes) -> bytes:
    """Return an ONNX file in which products of uint8 with int8 weights are the same products of uint8 with uint8.

    128 is added to the weights when the file is opened, and is their zero. Weights are known by the ends of their
    names, which are the same in every export.
    """
    return b"".join(
        _field(_GRAPH, b"".join(_graph_with_uint8(value))) if number == _GRAPH else whole
        for number, value, whole in _fields(memoryview(model))
    )


def _graph_with_uint8(graph: memoryview) -> Iterator[bytes | memoryview]:
    raised: set[bytes] = set()
    for number, node, whole in _fields(graph):
        fields = list(_fields(node)) if number == _NODE else []
        inputs = [bytes(value) for kind, value, _ in fields if kind == _INPUT]
        operator = next((bytes(value) for kind, value, _ in fields if kind == _OPERATOR), b"")
        zero = _PRODUCTS.get(operator, 0)
        weight = inputs[1] if 1 < len(inputs) <= zero else b""
        if not weight.endswith((b".int8", b"_int8")):
            yield whole
            continue
        inputs[1] = weight + b".raised"
        if weight not in raised:  # shared by iterations
            raised.add(weight)
            bits = weight + b".bits"
            cast = _field(_OUTPUT, bits) + _field(_OPERATOR, b"Cast") + _field(_ATTRIBUTE, _TO_UINT8)
            yield _node([weight], cast)
            yield _node([bits, _MIDDLE], _field(_OUTPUT, inputs[1]) + _field(_OPERATOR, b"BitwiseXor"))
        inputs += [b""] * (zero - len(inputs)) + [_MIDDLE]
        yield _node(inputs, b"".join(field for kind, _, field in fields if kind != _INPUT))
    if raised:
        yield _field(_INITIALIZER, _MIDDLE_TENSOR)


def _node(inputs: list[bytes], rest: bytes) -> bytes:
    return _field(_NODE, b"".join(_field(_INPUT, name) for name in inputs) + rest)


def _problems(model: memoryview) -> Iterator[str]:
    for number, value, _ in _fields(model):
        if number == _FUNCTIONS:
            yield "functions"
        elif number == _GRAPH:
            for kind, part, _ in _fields(value):
                if kind == _NODE:
                    yield from _node_problems(part)
                elif kind == _INITIALIZER:
                    yield from _tensor_problems(part)
                elif kind == _SPARSE:
                    yield "sparse weights"


def _node_problems(node: memoryview) -> Iterator[str]:
    for number, value, _ in _fields(node):
        if number == _ATTRIBUTE:
            for kind, part, _ in _fields(value):
                if kind in (_SUBGRAPH, _SUBGRAPHS):
                    yield "a graph within the graph"
                elif kind in _SPARSES:
                    yield "sparse weights"
                elif kind in (_TENSOR, _TENSORS):
                    yield from _tensor_problems(part)


def _tensor_problems(tensor: memoryview) -> Iterator[str]:
    for number, value, _ in _fields(tensor):
        if number == _EXTERNAL or (number == _LOCATION and bytes(value) != b"\0"):
            yield "weights outside of the file"


def _field(number: int, content: bytes) -> bytes:
    """Return a field of a message: its number, the size of its content, and that."""
    head, size = bytearray([number << 3 | 2]), len(content)
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes([*head, size]) + content


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yield number and content of each field of a message, and all of it; a number is as it is stored."""
    position = 0
    while position < len(message):
        start = position
        key, position = _number(message, position)
        kind, size = key & 7, 0
        if kind == 0:
            size = _number(message, position)[1] - position
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        elif kind == 2:
            size, position = _number(message, position)
        else:
            raise ValueError("it is no ONNX file")
        if position + size > len(message):
            raise ValueError("it is cut off, or no ONNX file")
        yield key >> 3, message[position : position + size], message[start : position + size]
        position += size


def _number(message: memoryview, position: int) -> tuple[int, int]:
    """Return the number that begins at a position, seven bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        value |= (byte & 127) << shift
        position += 1
        if byte < 128:
            return value, position
    raise ValueError("it is cut off, or no ONNX file")
