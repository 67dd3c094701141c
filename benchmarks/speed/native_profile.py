"""Where the time of the compiled engine goes, at the paper's size: by leaving out what a part is, and measuring again.

Integer products are done twice, on what is quantised already, and the time that this adds is theirs: the floor under an
engine that multiplies the same integers with the same kernel, whatever it does better beside that.

python benchmarks/speed/native_profile.py --output results/native-profile
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from distillation_step import machine
from minialbert_runtime import native, registers
from minialbert_runtime.registers import ATTEND, BIAS, INT8_MATRIX, LINEAR, NORM, Program

from minialbert.deploy.bench_models import build_model, parse_models
from minialbert.deploy.onnx.int8 import quantize_int8
from minialbert.deploy.onnx.trace import trace_onnx
from minialbert.runs.files import write_atomically
from minialbert.runs.records import write_result

TEXTS = (1, 16), (1, 128), (32, 128)  # how many, and their tokens
ACTIVATION, RESIDUAL = BIAS + 1, BIAS + 2  # places in a LINEAR
NOTHING = {ACTIVATION: 0, RESIDUAL: -1}
Code = list[list[Any]]
Change = Callable[
    [Code, Callable[[list[Any]], bool]], Code
]  # of instructions, which may ask for integer products


def without(*places: int) -> Change:
    """Return what makes integer products without an activation or a residual."""
    kept = {place: NOTHING[place] for place in places}
    return lambda code, whole: [
        [kept.get(at, value) for at, value in enumerate(one)] if whole(one) else one for one in code
    ]


def twice(code: Code, whole: Callable[[list[Any]], bool]) -> Code:
    """Put before each integer product the same without what joins it."""
    bare = without(*NOTHING)(code, whole)
    return [
        one
        for first, last in zip(bare, code, strict=True)
        for one in ([first, last] if whole(last) else [last])
    ]


def less(gone: Callable[[list[Any], bool], bool]) -> Change:
    """Return what leaves instructions out: registers keep what was there before."""
    return lambda code, whole: [one for one in code if not gone(one, whole(one))]


# What is changed, and whether that adds the part's time or takes it away.
PARTS: dict[str, tuple[Change, int]] = {
    "integer products with weights": (twice, 1),
    "attention": (less(lambda one, _: one[0] == ATTEND), -1),
    "adapters and other products of fp32": (less(lambda one, whole: one[0] == LINEAR and not whole), -1),
    "GELU": (without(ACTIVATION), -1),
    "residual sums": (without(RESIDUAL), -1),
    "LayerNorm": (less(lambda one, _: one[0] == NORM), -1),
}
WHOLE, REST = "together", "the rest: quantising, tables, masks, waiting"


def session(graph: bytes, threads: int, change: Change | None) -> native.NativeSession:
    """Return a session of the graph's program, changed."""

    def changed(*given: Any) -> Program:
        program = registers.Program(**vars(compiled(*given)))
        if change is not None:
            last = program.code[-1]
            whole = lambda one: one[0] == LINEAR and program.weights[one[3]].kind == INT8_MATRIX  # noqa: E731
            program.code = [*change(program.code[:-1], whole), last]
        return program

    compiled = native.compile_graph
    with mock.patch.object(native, "compile_graph", changed):
        return native.NativeSession(graph, threads)


def profile(graph: bytes, threads: int, turns: int) -> dict[str, dict[str, float]]:
    """Return milliseconds by part for each of `TEXTS`: medians over turns, in which all sessions run."""
    sessions = {name: session(graph, threads, change) for name, (change, _) in PARTS.items()}
    sessions[WHOLE] = session(graph, threads, None)
    found: dict[str, dict[str, float]] = {}
    for texts, tokens in TEXTS:
        ids = np.random.default_rng(0).integers(1000, 30000, (texts, tokens))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        taken: dict[str, list[float]] = {name: [] for name in sessions}
        for turn in range(turns + 1):
            for name, one in sessions.items():
                runs = max(2, 512 // (texts * tokens))
                seconds = [_seconds(one, feeds) for _ in range(runs)][1:]  # the first finds the cache cold
                taken[name] += seconds if turn else []
        found[f"{texts} x {tokens}"] = by_part(
            {name: 1000 * statistics.median(taken[name]) for name in taken}
        )
    return found


def _seconds(one: native.NativeSession, feeds: Mapping[str, Any]) -> float:
    started = time.perf_counter()
    one.run(None, feeds)
    return time.perf_counter() - started


def by_part(times: Mapping[str, float]) -> dict[str, float]:
    """Return the milliseconds of each part, those of the rest, and the whole."""
    parts = {name: sign * (times[name] - times[WHOLE]) for name, (_, sign) in PARTS.items()}
    every = {**parts, REST: times[WHOLE] - sum(parts.values()), WHOLE: times[WHOLE]}
    return {name: round(value, 3) for name, value in every.items()}


def table(record: Mapping[str, Any]) -> str:
    """Return the record as Markdown: milliseconds, and shares."""
    found = record["milliseconds"]
    lines = [
        f"| texts x tokens, {record['threads']} threads | {' | '.join(found)} |",
        "|---" * (len(found) + 1) + "|",
    ]
    for name in (*PARTS, REST, WHOLE):
        cells = [
            f"{round(parts[name], 2) + 0.0:.2f} ms"
            + f", {round(parts[name] / parts[WHOLE], 2) + 0.0:.0%}" * (name != WHOLE)
            for parts in found.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write the record and its table, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minialbert-128", help="a shape, as in minialbert bench")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    arguments = parser.parse_args()
    model = build_model(parse_models([arguments.model])[0]).model
    graph = trace_onnx(model, "sequence-classification")
    quantize_int8(graph)
    record = {
        "kind": "native-profile",
        "model": arguments.model,
        "milliseconds": profile(graph.SerializeToString(), arguments.threads, arguments.turns),
        "threads": arguments.threads,
        "turns": arguments.turns,
        "machine": machine(),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_result(arguments.output / "result.json", record)
    write_atomically(arguments.output / "table.md", table(record))
    print(table(record))


if __name__ == "__main__":
    main()
