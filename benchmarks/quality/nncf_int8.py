r"""int8 for OpenVINO by NNCF, beside our own: bytes, distance from fp32, a text's bits in company, and time.

    python -m venv nncf && nncf/bin/pip install openvino==2026.4.1 nncf==3.4.0 onnxruntime tokenizers
    nncf/bin/python benchmarks/quality/nncf_int8.py FP32 --way LABEL=FOLDER --way … \
      --calibration texts.txt --texts other.txt --work WORK --output results/nncf

NNCF quantises the graph of FP32 (`minialbert export`) with the first 256 texts, or what WORK has of an earlier call is
taken. It and the graph of each FOLDER are compared with FP32; those of OpenVINO are timed in turns, with two threads. A
folder with activations by token runs in ONNX Runtime and is not timed.

For results/nncf FP32 is biomedical-ner-2mb, exported from its rounded weights. All ranges are those of passages of
three sentences of BC5CDR's training texts, and outputs are compared on 150 sentences of its test, on a quiet machine.
The way "ours, 99.99 % of values" is what our ranges were before this comparison.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

LONGEST, TEXTS, SHAPES = 128, 256, ((1, 16), (1, 128), (8, 128))


def openvino() -> Any:
    """Return OpenVINO, which would report its import if that were not switched off."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


class Graph:
    """A graph on the CPU, in OpenVINO, or in ONNX Runtime where only that knows its operators."""

    def __init__(self, file: Path, threads: int) -> None:
        self.in_openvino = file.suffix == ".xml" or b"MatMulIntegerToFloat" not in file.read_bytes()
        if self.in_openvino:
            hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
            self.run: Any = (
                openvino().Core().compile_model(file, "CPU", hints | {"INFERENCE_NUM_THREADS": threads})
            )
            self.names = [one.get_any_name() for one in self.run.inputs]
        else:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            self.run = onnxruntime.InferenceSession(file, options)
            self.names = [one.name for one in self.run.get_inputs()]

    def __call__(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the first output of rows of tokens."""
        given = inputs(self.names, ids)
        return np.array(self.run(given)[0] if self.in_openvino else self.run.run(None, given)[0])


def inputs(names: list[str], ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Return what a graph takes: tokens, all of them attended to, of one segment."""
    return {
        name: np.ones_like(ids) * (ids if name == "input_ids" else name == "attention_mask") for name in names
    }


def quantize(source: Path, target: Path, rows: list[NDArray[np.int64]]) -> None:
    """Write a graph as NNCF quantises it."""
    import nncf

    model = openvino().Core().read_model(source)
    names = [one.get_any_name() for one in model.inputs]
    data = nncf.Dataset([inputs(names, row) for row in rows])
    found = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
    openvino().save_model(found, target, compress_to_fp16=False)


def compared(graph: Graph, exact: Graph, rows: list[NDArray[np.int64]]) -> dict[str, Any]:
    """Return how far outputs are from those of fp32, and how far a text's are alone from those beside seven others."""
    pairs = [(graph(row).ravel(), exact(row).ravel()) for row in rows]
    cosines = [float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)) for one, other in pairs]
    one, other = (np.concatenate(part) for part in zip(*pairs, strict=True))
    length = 16
    group = np.concatenate([row[:, :length] for row in rows if row.shape[1] >= length][:8])
    together, alone = graph(group), np.concatenate([graph(row[None]) for row in group])
    return {
        "error": float(np.linalg.norm(one - other) / np.linalg.norm(other)), "lowest_cosine": min(cosines),
        "median_cosine": float(np.median(cosines)), "same_bits_in_company": bool(np.array_equal(together, alone)),
    }  # fmt: skip


def measure(graphs: list[Graph], turns: int = 3, seconds: float = 1.0) -> list[dict[str, float]]:
    """Return the median milliseconds of each graph by shape, texts times tokens."""
    found: list[dict[str, float]] = [{} for _ in graphs]
    for shape in SHAPES:
        times: list[list[float]] = [[] for _ in graphs]
        ids = np.random.default_rng(0).integers(1000, 20000, shape)
        for _ in range(turns):
            for graph, its in zip(graphs, times, strict=True):
                graph(ids)
                until = time.perf_counter() + seconds
                while (started := time.perf_counter()) < until:
                    graph(ids)
                    its.append(1000 * (time.perf_counter() - started))
        for own, its in zip(found, times, strict=True):
            own[" x ".join(map(str, shape))] = float(np.median(its))
    return found


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    shapes = [" x ".join(map(str, shape)) for shape in SHAPES]
    lines = [
        f"| int8 | MB | error, % of fp32 | lowest cosine | same bits in company | ms for {', '.join(shapes)} |",
        "|---|---:|---:|---:|---|---|",
    ]
    for row in record["rows"]:
        times = ", ".join(f"{row['ms'][shape]:.2f}" for shape in shapes) if row["ms"] else "-"
        same = "yes" if row["same_bits_in_company"] else "no"
        lines.append(
            f"| {row['way']} | {row['bytes'] / 1e6:.2f} | {100 * row['error']:.1f} "
            f"| {row['lowest_cosine']:.4f} | {same} | {times} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Quantise, compare and time; write the record and its table, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="FP32", help="folder of the fp32 graph")
    parser.add_argument("--way", action="append", default=[], help="LABEL=FOLDER, of another int8 graph")
    parser.add_argument("--calibration", type=Path, required=True, help="texts for the ranges, one a line")
    parser.add_argument("--texts", type=Path, required=True, help="texts to compare on, one a line")
    parser.add_argument("--work", type=Path, required=True, help="folder for NNCF's graph")
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    given = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(given.source / "tokenizer.json"))

    def rows(file: Path) -> list[NDArray[np.int64]]:
        lines = file.read_text(encoding="utf-8").splitlines()
        return [np.array([tokenizer.encode(line).ids[:LONGEST]]) for line in lines]

    source, made = given.source / "model.onnx", given.work / "nncf.xml"
    if not made.is_file():
        given.work.mkdir(parents=True, exist_ok=True)
        quantize(source, made, rows(given.calibration)[:TEXTS])
    pairs = (way.split("=", 1) for way in given.way)
    files = {"NNCF": made} | {label: Path(folder) / "model.onnx" for label, folder in pairs}
    graphs = {way: Graph(file, 2) for way, file in files.items()}
    timed = [way for way in files if graphs[way].in_openvino]
    times = dict(zip(timed, measure([graphs[way] for way in timed]), strict=True))
    exact, texts, found = Graph(source, 2), rows(given.texts), []
    for way, file in files.items():
        parts = {file, file.with_suffix(".bin")}
        row = {"way": way, "bytes": sum(part.stat().st_size for part in parts if part.is_file())}
        found.append({**row, **compared(graphs[way], exact, texts), "ms": times.get(way)})
    versions = {name: version(name) for name in ("openvino", "nncf", "onnxruntime")}
    record = {"format_version": 1, "kind": "nncf", "rows": found, "versions": versions}
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "result.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (given.output / "table.md").write_text(table(record), encoding="utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
