"""What ONNX Runtime's kernels take at the paper's size, and what it would fuse them into.

    python benchmarks/speed/onnx_kernels.py --output results/onnx-kernels

One text of 128 tokens, 768 wide, one thread: median CPU milliseconds of repeats in which all variants take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from distillation_step import machine
from minialbert_runtime.session import onnxruntime  # which sends nothing
from onnx import ModelProto, TensorProto, helper, numpy_helper

from minialbert.deploy.onnx.int8 import quantize_int8
from minialbert.runs.files import write_atomically
from minialbert.runs.records import write_result

TOKENS, WIDTH, WIDE, ADAPTER = 128, 768, 3072, 48
CONTRIB = "com.microsoft"


def onnx_model(nodes: list, inputs: dict[str, int], tensors: dict[str, np.ndarray]) -> ModelProto:
    """Return a graph of the nodes, whose output is y, with inputs (1, tokens, width)."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "t", size])
        for name, size in inputs.items()
    ]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "kernels", values, [result], stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def opened(model: ModelProto) -> onnxruntime.InferenceSession:
    """Return a session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def session(
    nodes: list, inputs: dict[str, int], tensors: dict[str, np.ndarray]
) -> onnxruntime.InferenceSession:
    """Return a session of `onnx_model`."""
    return opened(onnx_model(nodes, inputs, tensors))


def variants() -> dict[str, tuple[onnxruntime.InferenceSession, dict[str, int]]]:
    """Return a session of each variant and the widths of its inputs."""
    random = np.random.default_rng(0)
    node = helper.make_node
    gain = {"gain": np.ones(WIDTH, np.float32), "bias": np.zeros(WIDTH, np.float32)}
    wide_bias = {"bias": random.normal(size=WIDE).astype(np.float32)}
    two, wide = {"x": WIDTH, "r": WIDTH}, {"x": WIDE}
    gelu = node("Gelu", ["z"], ["y"], domain=CONTRIB)
    normal = node("LayerNormalization", ["z", "gain", "bias"], ["y"], epsilon=1e-12)
    found = {
        "residual sum and LayerNorm, as fused (SkipLayerNormalization)": (
            session([node("Add", ["x", "r"], ["z"]), normal], two, gain), two),
        "residual sum and LayerNorm, apart (Sum, LayerNormalization)": (
            session([node("Sum", ["x", "r"], ["z"]), normal], two, gain), two),
        "bias and GELU, 3072 wide, as fused (BiasGelu)": (
            session([node("Add", ["x", "bias"], ["z"]), gelu], wide, wide_bias), wide),
        "bias and GELU, 3072 wide, apart (Sum, Gelu)": (
            session([node("Sum", ["x", "bias"], ["z"]), gelu], wide, wide_bias), wide),
    }  # fmt: skip
    for rows, columns in ((WIDTH, WIDTH), (WIDTH, WIDE), (WIDE, WIDTH), (WIDTH, ADAPTER)):
        weight = random.normal(size=(rows, columns)).astype(np.float32)
        scales = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
        integers = np.rint(weight / scales).astype(np.int8)
        inputs = {"x": rows}
        product = node("MatMul", ["x", "w"], ["y"])
        found[f"product {rows} to {columns}, fp32"] = (session([product], inputs, {"w": weight}), inputs)
        dynamic = node("DynamicQuantizeMatMul", ["x", "w", "s"], ["y"], domain=CONTRIB)
        found[f"product {rows} to {columns}, int8, range at each call"] = (
            session([dynamic], inputs, {"w": integers, "s": scales}), inputs)  # fmt: skip
        by_token = onnx_model([product], inputs, {"w": weight})
        quantize_int8(by_token)
        found[f"product {rows} to {columns}, int8, range of each token"] = (opened(by_token), inputs)
        static = [
            node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
            node("MatMulIntegerToFloat", ["q", "w", "xs", "s", "xz"], ["y"], domain=CONTRIB),
        ]
        tensors = {
            "w": integers,
            "s": scales,
            "xs": np.array(8 / 255, np.float32),
            "xz": np.array(128, np.uint8),
        }
        found[f"product {rows} to {columns}, int8, range fixed"] = (session(static, inputs, tensors), inputs)
    return found


def measure(repeats: int) -> dict[str, float]:
    """Return median milliseconds of CPU time by variant."""
    random = np.random.default_rng(1)
    runs = variants()
    feeds = {
        name: {
            key: random.normal(size=(1, TOKENS, width)).astype(np.float32) for key, width in inputs.items()
        }
        for name, (_, inputs) in runs.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 3):
        for name, (kernels, _) in runs.items():
            started = time.thread_time()
            kernels.run(None, feeds[name])
            if turn >= 3:
                seconds[name].append(time.thread_time() - started)
    return {name: round(1000 * statistics.median(values), 4) for name, values in seconds.items()}


def table(record: dict) -> str:
    """Return the record as Markdown."""
    lines = ["| 128 tokens, one thread | CPU ms |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in record["milliseconds"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write the record and its table, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    arguments = parser.parse_args()
    record = {
        "kind": "onnx-kernels",
        "milliseconds": measure(arguments.repeats),
        "onnxruntime": onnxruntime.__version__,
        "machine": machine(),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    record = write_result(arguments.output / "result.json", record)
    write_atomically(arguments.output / "table.md", table(record))
    sys.stdout.write(table(record))


if __name__ == "__main__":
    main()
