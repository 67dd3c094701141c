"""What an ONNX file may not hold: data outside of it, and parts that run without bound or are nowhere read.

ONNX Runtime takes them all. Only the shell of the file is read, by the rules of protobuf: weights are passed over.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

# Numbers of fields in onnx.proto: of a model, a graph, a node, an attribute, a sparse tensor, a tensor.
_GRAPH, _FUNCTIONS = 7, 25
_NODE, _INITIALIZER, _SPARSE = 1, 5, 15
_ATTRIBUTE = 5
_TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS = 5, 6, 10, 11  # control flow is made of graphs
_SPARSES = (22, 23)
_NAME, _RAW, _EXTERNAL, _LOCATION = 8, 9, 13, 14
# What activations are rounded by token by token; with these values sums of two products fit 16 bits.
_SEVEN_BITS = {b"rows.step": struct.pack("<f", 1 / 63), b"rows.middle": bytes([64])}


def check_graph(path: Path) -> None:
    """Raise ValueError for a file that is no ONNX, or has control flow, functions or outside data, as no export has."""
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed when its last slice is gone
    for problem in _problems(memoryview(content)):
        raise ValueError(f"it holds {problem}, which no exported model has")


def with_seven_bits(model: bytes) -> bytearray:
    """Return an ONNX file in which activations that are rounded token by token keep 7 bits in place of 8."""
    changed = bytearray(model)
    for number, graph in _fields(memoryview(changed)):
        for kind, tensor in _fields(graph) if number == _GRAPH else ():
            if kind == _INITIALIZER:
                parts = dict(_fields(tensor))
                value = _SEVEN_BITS.get(bytes(parts.get(_NAME, b"")))
                if value is not None and len(parts.get(_RAW, b"")) == len(value):
                    parts[_RAW][:] = value
    return changed


def _problems(model: memoryview) -> Iterator[str]:
    for number, value in _fields(model):
        if number == _FUNCTIONS:
            yield "functions"
        elif number == _GRAPH:
            for kind, part in _fields(value):
                if kind == _NODE:
                    yield from _node_problems(part)
                elif kind == _INITIALIZER:
                    yield from _tensor_problems(part)
                elif kind == _SPARSE:
                    yield "sparse weights"


def _node_problems(node: memoryview) -> Iterator[str]:
    for number, value in _fields(node):
        if number == _ATTRIBUTE:
            for kind, part in _fields(value):
                if kind in (_SUBGRAPH, _SUBGRAPHS):
                    yield "a graph within the graph"
                elif kind in _SPARSES:
                    yield "sparse weights"
                elif kind in (_TENSOR, _TENSORS):
                    yield from _tensor_problems(part)


def _tensor_problems(tensor: memoryview) -> Iterator[str]:
    for number, value in _fields(tensor):
        if number == _EXTERNAL or (number == _LOCATION and bytes(value) != b"\0"):
            yield "weights outside of the file"


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of each field of a message; a number is as it is stored."""
    position = 0
    while position < len(message):
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
        yield key >> 3, message[position : position + size]
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
