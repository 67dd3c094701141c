"""Where the time of one int8 run goes: a text of 128 tokens at the paper's size, by ONNX Runtime's own profile.

python benchmarks/speed/onnx_profile.py --output results/onnx-profile
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from distillation_step import machine
from minialbert_runtime.session import onnxruntime  # which sends nothing

from minialbert.deploy.bench_models import build_model, parse_models
from minialbert.deploy.onnx.int8 import quantize_int8
from minialbert.deploy.onnx.trace import trace_onnx
from minialbert.runs.files import write_atomically
from minialbert.runs.records import write_result

TOKENS = 128
PARTS = {
    "products with weights, int8": ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "DynamicQuantizeLinear"),
    "attention": ("Attention",),
    "LayerNorm": ("LayerNormalization",),
    "residual sums": ("Sum",),
    "GELU": ("Gelu",),
}


def profile(graph: bytes, threads: int, runs: int) -> dict[str, float]:
    """Return milliseconds of a run by kind of operator: sums of medians over runs."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        ids = np.arange(1, TOKENS + 1, dtype=np.int64)[None]
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        for _ in range(runs):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            nodes[event["args"]["op_name"], event["name"]].append(event["dur"])
    found: dict[str, float] = defaultdict(float)
    for (kind, _), microseconds in nodes.items():
        part = next((part for part, kinds in PARTS.items() if kind in kinds), "the rest")
        found[part] += statistics.median(microseconds) / 1000
    return {part: round(found[part], 3) for part in (*PARTS, "the rest")}


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    parts, head = record["milliseconds"], f"one int8 run of {TOKENS} tokens, {record['threads']} threads"
    total = sum(parts.values())
    lines = [f"| {head} | ms | share |", "|---|---|---|"]
    lines += [f"| {part} | {value:.1f} | {value / total:.0%} |" for part, value in parts.items()]
    return "\n".join([*lines, f"| together | {total:.1f} | |"]) + "\n"


def main() -> None:
    """Measure, write the record and its table, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minialbert-128", help="a shape, as in minialbert bench")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    arguments = parser.parse_args()
    model = build_model(parse_models([arguments.model])[0]).model
    graph = trace_onnx(model, "sequence-classification")
    quantize_int8(graph)
    parts = profile(graph.SerializeToString(), arguments.threads, arguments.runs)
    record = {
        "kind": "onnx-profile",
        "model": arguments.model,
        "milliseconds": parts,
        "threads": arguments.threads,
        "runs": arguments.runs,
        "machine": machine(),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_result(arguments.output / "result.json", record)
    write_atomically(arguments.output / "table.md", table(record))
    print(table(record))


if __name__ == "__main__":
    main()
