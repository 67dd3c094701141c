"""Models and engines side by side on this machine: size, memory, latency at batch 1, throughput at a larger batch.

Each model runs in each engine in a process of its own, all with the same number of threads, and the processes take
turns, in an order that changes, so that what else the machine does falls on all alike. In one process the thread pools
of several engines would take each other's cores. Inputs have no padding. A batch runs as the runtime runs many texts:
in parts, side by side on the threads in ONNX Runtime; the engine native takes it as it comes. So does
`onnx-int8-dynamic`, with one range for all inputs of a matrix, which is the arithmetic of ONNX Runtime's own quantiser.
All models go through our own ONNX exporter and quantiser, which store a shared weight once and undo fusions that cost
time: that favours the ones compared with as well.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from minialbert_runtime.native import NATIVE, has_native
from minialbert_runtime.session import has_openvino
from rich.progress import Progress, TaskID, TaskProgressColumn, TimeElapsedColumn, TimeRemainingColumn

from minialbert.deploy import bench_worker
from minialbert.deploy.bench_models import BenchModel, build_model, parse_models, recorded_quality
from minialbert.errors import MissingExtraError, UserError, listed, one_line
from minialbert.report.tables import Table, Value, escape
from minialbert.runs.directory import RunDirectory
from minialbert.runs.files import new_folder, write_atomically, writing
from minialbert.runs.machine import instruction_sets
from minialbert.runs.progress import progress_bar
from minialbert.runs.records import check_output, in_percent, write_result

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger(__name__)

TABLE_FILE = "table.md"
DEFAULT_LENGTHS = (16, 128, 512)
TORCH_ENGINES = ("torch-fp32", "torch-bf16", "torch-int8")
ONNX_ENGINES = ("onnx-fp32", "onnx-int8", "onnx-int8-dynamic")
OPENVINO_ENGINES = ("openvino-fp32", "openvino-bf16", "openvino-int8")
NATIVE_ENGINES = ("native-int8",)
ENGINES = TORCH_ENGINES + ONNX_ENGINES + OPENVINO_ENGINES + NATIVE_ENGINES
_INSTALLED = (OPENVINO_ENGINES if has_openvino() else ()) + (NATIVE_ENGINES if has_native() else ())
DEFAULT_ENGINES = TORCH_ENGINES + ONNX_ENGINES[:2] + _INSTALLED
_LEAST_TURNS = 3
_REST = 0.05  # seconds until the threads of an engine have stopped waiting for more
_BUSY = 0.5  # processes per core, of others
_TASK = TaskID(0)

Pair = tuple[str, str]  # model, engine
Setting = tuple[int, int]  # batch size, length


@dataclass
class Timed:
    """What takes its turn: `run` returns the seconds of some runs of a batch size and a length up to `max_length`.

    `seconds` are those of all turns; `failure` is why it could not be run.
    """

    run: Callable[[int, int], list[float]]
    max_length: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: dict[Setting, list[float]] = field(default_factory=dict)
    failure: str | None = None


def benchmark(
    models: Sequence[str],
    *,
    engines: Sequence[str] = DEFAULT_ENGINES,
    lengths: Sequence[int] = DEFAULT_LENGTHS,
    batch_size: int = 32,
    repeats: int = 15,
    seconds: float = 20.0,
    threads: int | None = None,
    seed: int = 0,
    output: Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure models in engines, taking turns, and return the record.

    Of `models` (see `parse_models`) the first, in the first engine, is what others are compared with. Of `lengths`
    (tokens) those that a model cannot take are left out, with a note. Exported folders and static vectors have engines
    of their own. A cell has `repeats` turns at most, or as many as `seconds` allow, but three at least; short runs are
    repeated within a turn. `output` gets `result.json` and `table.md`.

    `metrics` has, by model and engine: `bytes`, `peak_memory_bytes` of its process after runs at batch 1, and
    `timings`, of which each has `batch_size`, `length`, `n`, `seconds` (median, p95, min, q1, q3), `tokens_per_second`
    (by the median) and `speed_ratio` (the first pair's median over this one's). `ceilings` are the rates of matrix
    products on the same threads. `models` has the score in a model's own record as `quality`. A UserError tells of an
    unknown model or engine, an option out of range, a package that is missing, or a directory that cannot be written.
    """
    choices = parse_models(models)
    numbers = {"batch size": batch_size, "number of repeats": repeats, "number of threads": threads}
    _check_options(engines, lengths, numbers, seconds)
    if output is not None:
        check_output(output, TABLE_FILE, kind="bench", overwrite=overwrite)
    with torch.device("meta"):
        limits = {one.name: build_model(one, read=False).max_length for one in choices}
    lengths, notes = _fitting(limits, lengths)
    load = None
    with suppress(AttributeError, OSError):  # not on Windows
        load = os.getloadavg()[0]
    if load is not None and load > _BUSY * (os.cpu_count() or 1):
        told = "times are longer if other processes still run"
        logger.warning("the load average of the last minute is %.1f: %s", load, told)
    count = torch.get_num_threads() if threads is None else threads
    settings = list(dict.fromkeys((batch, length) for batch in (1, batch_size) for length in lengths))
    about: dict[str, dict[str, Any]] = {}
    pairs: list[Pair] = []
    timed: dict[Pair, Timed] = {}
    with ExitStack() as stack:
        if output is not None:
            with writing(output, advice=None):
                stack.enter_context(new_folder(output))
                tempfile.TemporaryFile(dir=output).close()
        bar = stack.enter_context(_progress_bar(progress))
        bar.reset(_TASK, total=float(len(choices) * len(engines)))
        with Worker({"engine": bench_worker.PRODUCTS, "threads": count}) as products:
            ceilings = products.facts
        for choice in choices:
            bar.update(_TASK, description=f"preparing {choice.name}")
            model = build_model(choice, seed)
            about[choice.name] = {
                "source": choice.shown, "architecture": model.architecture, "parameters": model.parameters,
                "num_iterations": choice.num_iterations, "max_length": model.max_length,
                "memory_length": model.request["length"], "quality": recorded_quality(model),
            }  # fmt: skip
            request = {"threads": count, "seed": seed, **model.request}
            own = tuple(model.ready or engines)
            pairs += [(choice.name, engine) for engine in own]
            for engine, worker in _started(model, own, request, notes, bar):
                run = stack.enter_context(worker).time
                timed[choice.name, engine] = Timed(run, model.max_length, worker.facts)
        take_turns(timed, settings, repeats=repeats, seconds=seconds, bar=bar)
    notes += [f"{' '.join(pair)}: {one.failure}" for pair, one in timed.items() if one.failure]
    record = {
        "kind": "bench", "model": choices[0].name, "seed": seed,
        "settings": {
            "engines": list(engines), "lengths": list(lengths), "batch_size": batch_size, "repeats": repeats,
            "seconds": seconds, "threads": count, "load_average": load,
        },
        "instructions": instruction_sets(), "ceilings": ceilings,
        "reference": dict(zip(("model", "engine"), pairs[0], strict=True)),
        "models": about, "metrics": _metrics(pairs, timed, settings), "notes": notes,
    }  # fmt: skip
    if output is not None:
        record = write_result(RunDirectory(output).result, record)
        write_atomically(output / TABLE_FILE, as_markdown(record))
    return record


def take_turns(
    timed: Mapping[Pair, Timed],
    settings: Sequence[Setting],
    *,
    repeats: int,
    seconds: float,
    bar: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Time everything at every setting, in turns, and note the times and failures in `timed`.

    Turn t begins with the t-th of all, and every other goes backwards. What has had `seconds` of a setting by `clock`,
    and three turns, has no more of them.
    """
    bar = bar or _progress_bar(False)
    bar.reset(_TASK, total=float(len(settings) * repeats * len(timed)))
    pairs = list(timed)
    for setting in settings:
        spent = dict.fromkeys(pairs, 0.0)
        for turn in range(repeats):
            start = turn % max(1, len(pairs))
            for pair in (pairs[start:] + pairs[:start])[:: -1 if turn % 2 else 1]:
                bar.update(_TASK, advance=1, description=f"{' '.join(pair)}, {setting[0]} x {setting[1]}")
                one = timed[pair]
                had_enough = turn >= _LEAST_TURNS and spent[pair] >= seconds
                if one.failure or setting[1] > one.max_length or had_enough:
                    continue
                started = clock()
                try:
                    one.seconds.setdefault(setting, []).extend(one.run(*setting))
                except Exception as error:  # engines fail each in their own way, and the others go on
                    del one.seconds[setting]
                    one.failure = f"cannot be run at batch {setting[0]} x {setting[1]} ({one_line(error)})"
                spent[pair] += clock() - started


class Worker:
    """A process of `bench_worker`: `facts` are its first answer."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        # -P: the script's own folder is part of this package, whose module names must not hide others.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(bench_worker.__file__), json.dumps(request)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        try:
            self.facts = self._answer()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *failure: object) -> None:
        self._process.kill()
        self._process.communicate()

    def time(self, batch: int, length: int) -> list[float]:
        """Return the seconds of each run of a turn."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"[{batch}, {length}]\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = json.loads(line or json.dumps({"error": f"its process ended, {self._process.wait()}"}))
        if "error" in found:
            raise RuntimeError(found["error"])
        time.sleep(_REST)
        return found["answer"]


def _started(
    model: BenchModel, engines: Sequence[str], request: Mapping[str, Any], notes: list[str], bar: Progress
) -> Iterator[tuple[str, Worker]]:
    """Yield a model's engines with their processes; those in which it cannot be run get a note."""
    graph: ModelProto | Exception | None = None
    if not set(engines) <= {*TORCH_ENGINES, *model.ready}:
        try:
            graph = trace(model)
        except Exception as error:  # of the exporter, of many kinds
            graph = error  # told of every engine: tracing takes long, and is not tried again
    with tempfile.TemporaryDirectory(prefix="minialbert-bench-") as folder:
        for engine in engines:
            try:
                path = model.ready.get(engine) or _saved(model, graph, engine, Path(folder) / engine)
                yield engine, Worker({"engine": engine, "path": str(path), **request})
            except Exception as error:  # of the exporter, of ONNX Runtime, of torch: no common base
                reason = f"{type(error).__name__}: {one_line(error)}"
                notes.append(f"{model.choice.name} {engine}: cannot be prepared ({reason})")
            bar.advance(_TASK)


def trace(model: BenchModel) -> ModelProto:
    """Return a model as an ONNX graph in fp32."""
    from minialbert.deploy.onnx.trace import trace_onnx

    return trace_onnx(model.model, model.head, num_iterations=model.choice.num_iterations)


def _saved(model: BenchModel, graph: ModelProto | Exception | None, engine: str, path: Path) -> Path:
    """Save what an engine loads, a folder or one file, and return its path."""
    if engine in TORCH_ENGINES:
        model.model.save_pretrained(path)
        return path
    if isinstance(graph, Exception):
        raise graph
    import onnx

    from minialbert.deploy.onnx.graph import keep_biases_apart, slim
    from minialbert.deploy.onnx.int8 import activation_ranges, quantize_int8

    own = onnx.ModelProto()
    own.CopyFrom(graph)
    if engine.endswith(("fp32", "bf16")):
        keep_biases_apart(own)
    elif engine in ONNX_ENGINES + NATIVE_ENGINES:
        quantize_int8(own, by_call=engine == "onnx-int8-dynamic")
    else:
        request = model.request
        names, vocabulary, padding = (request[name] for name in ("inputs", "vocabulary", "padding"))
        inputs = bench_worker.make_inputs(names, vocabulary, padding, 0, 1, request["length"])
        quantize_int8(own, activation_ranges(own, [inputs]))
    onnx.save(slim(own), path)
    return path


def _progress_bar(shown: bool) -> Progress:
    """Return a bar of one task with the time left."""
    columns = TaskProgressColumn(), TimeRemainingColumn(), TimeElapsedColumn()
    bar = progress_bar("{task.description}", *columns, shown=shown, transient=True)
    bar.speed_estimate_period = 600  # a single step can take a minute
    bar.add_task("", total=None)
    return bar


def _check_options(
    engines: Sequence[str], lengths: Sequence[int], numbers: Mapping[str, int | None], seconds: float
) -> None:
    """Refuse now what would fail after an hour."""
    unknown = [engine for engine in engines if engine not in ENGINES]
    rules = {
        f"engines: expected some of {listed(ENGINES)}, found {listed(unknown)}": engines and not unknown,
        f"engines: expected each once, found {listed(engines)}": len(set(engines)) == len(engines),
        f"lengths: expected numbers of tokens from 1, found {listed(lengths)}": lengths and min(lengths) >= 1,
        f"expected a number of seconds above 0, found {seconds:g}": seconds > 0,
    } | {
        f"expected a {name} of at least 1, found {value}": value is None or value >= 1
        for name, value in numbers.items()
    }
    for fault, holds in rules.items():
        if not holds:
            raise UserError(fault)
    graphs = ONNX_ENGINES + OPENVINO_ENGINES + NATIVE_ENGINES
    needed = {name: ("export", graphs) for name in ("onnx", "onnxruntime", "onnxscript")}
    for package, (extra, some) in {**needed, "openvino": ("openvino", OPENVINO_ENGINES)}.items():
        if set(engines) & set(some) and find_spec(package) is None:
            raise MissingExtraError(package, extra, f"benchmarking {listed(some)}")
    if set(engines) & set(NATIVE_ENGINES) and not has_native():
        raise UserError(f"{listed(NATIVE_ENGINES)} needs {NATIVE}")


def _fitting(limits: Mapping[str, int], asked: Sequence[int]) -> tuple[list[int], list[str]]:
    """Return the lengths to measure, and a note for each model that takes not all; refuse one that no model takes."""
    most = max(limits.values())
    if (beyond := [length for length in asked if length > most]) and asked is not DEFAULT_LENGTHS:
        raise UserError(f"lengths: no model takes {listed(beyond)} tokens, {most} at most: leave them out")
    kept = [length for length in asked if length <= most] or [most]
    return kept, [f"{name}: {one} tokens at most" for name, one in limits.items() if one < max(asked)]


# --- the record, and its tables


def _metrics(
    pairs: Sequence[Pair], timed: Mapping[Pair, Timed], settings: Sequence[Setting]
) -> dict[str, Any]:
    """Return sizes and times by model, then engine; engines that failed have none."""
    nothing = Timed(lambda batch, length: [], 0)
    base = timed.get(pairs[0], nothing).seconds
    metrics: dict[str, Any] = {}
    for model, engine in pairs:
        one = timed.get((model, engine), nothing)
        metrics.setdefault(model, {})[engine] = {
            "bytes": one.facts.get("bytes"), "peak_memory_bytes": one.facts.get("peak_memory_bytes"),
            "timings": [_timing(key, one.seconds[key], base.get(key)) for key in settings if key in one.seconds],
        }  # fmt: skip
    return metrics


def _timing(setting: Setting, seconds: list[float], base: list[float] | None) -> dict[str, Any]:
    q1, median, q3, p95 = (float(value) for value in np.quantile(seconds, (0.25, 0.5, 0.75, 0.95)))
    return {
        "batch_size": setting[0], "length": setting[1], "n": len(seconds),
        "seconds": {"median": median, "p95": p95, "min": min(seconds), "q1": q1, "q3": q3},
        "tokens_per_second": setting[0] * setting[1] / median,
        "speed_ratio": statistics.median(base) / median if base else None,
    }  # fmt: skip


def tables(record: Mapping[str, Any]) -> list[Table]:
    """Return a record as tables: size, latency and throughput by model and engine; scores where models have some."""
    lengths, batch = record["settings"]["lengths"], record["settings"]["batch_size"]
    against = f"x: times as fast as {record['reference']['model']} in {record['reference']['engine']}"
    size, latency, throughput = [], [], []
    for model, engine in ((model, engine) for model, found in record["metrics"].items() for engine in found):
        cell, parameters = record["metrics"][model][engine], record["models"][model]["parameters"]
        of = {(timing["batch_size"], timing["length"]): timing for timing in cell["timings"]}
        row: tuple[Value, ...] = model, engine
        megabytes = (_figure(cell[name], 1e-6) for name in ("bytes", "peak_memory_bytes"))
        size.append((*row, None if parameters is None else f"{parameters / 1e6:.2f} M", *megabytes))
        one, many = row, row
        for length in lengths:
            single, several = of.get((1, length), {}), of.get((batch, length), {})
            times = (_figure(single.get("seconds", {}).get(name), 1e3) for name in ("median", "p95"))
            one += *times, _figure(single.get("speed_ratio"))
            many += _figure(several.get("tokens_per_second")), _figure(several.get("speed_ratio"))
        latency.append(one)
        throughput.append(many)
    names, per_length = ("model", "engine"), [f"{length} tokens" for length in lengths]
    columns = (*names, *(name for length in per_length for name in (length, "95 %", "x")))
    rates = (*names, *(name for length in per_length for name in (length, "x")))
    scores: list[tuple[Value, ...]] = []
    for name, about in record["models"].items():
        if one := about.get("quality"):
            shown = f"{100 * one['score']:.1f} %" if in_percent(one["metric"]) else f"{one['score']:.3g}"
            scores.append((name, *(one[key] for key in ("of", "task", "split", "metric")), shown))
    scored = Table("Quality", ("model", "scored", "task", "split", "metric", "score"), tuple(scores))
    return [
        Table("Size", (*names, "parameters", "MB on disk", "peak memory, MB"), tuple(size)),
        Table(f"Latency: batch 1, median and 95th percentile in ms ({against})", columns, tuple(latency)),
        Table(f"Throughput: batch {batch}, tokens/s ({against})", rates, tuple(throughput)),
        *([scored] if scores else []),
    ]


def _figure(value: float | None, factor: float = 1) -> Decimal | None:
    """Return a figure with two decimals, one from 10 on, none from 1,000 on."""
    if value is None:
        return None
    value *= factor
    return Decimal(f"{value:.{2 if value < 10 else 1 if value < 1000 else 0}f}")


def machine_line(record: Mapping[str, Any]) -> str:
    """Return what the processor can do, which bounds every figure."""
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in record["ceilings"].items())
    reach = f"matrix products reach {rates}, in 10^9 operations a second"
    return f"{record['settings']['threads']} threads, instructions {listed(record['instructions'])}; {reach}"


def as_markdown(record: Mapping[str, Any]) -> str:
    """Return a record's tables and notes as Markdown."""
    parts = [f"**{escape(table.title)}**\n\n{table.to_markdown()}" for table in tables(record)]
    parts += ["\n".join(f"- {escape(note)}" for note in (machine_line(record), *record["notes"])) + "\n"]
    return "\n".join(parts)
