"""Models and engines side by side on this machine: size, memory, latency at batch 1, throughput at a larger batch.

Times are taken in turns: every turn runs each model in each engine once, in an order that changes, so that what
else the machine does falls on all alike. Inputs have no padding. All models go through our own ONNX exporter and
quantiser, which store a shared weight once and undo fusions that cost time: that favours the ones compared with as
well. Threads of ONNX Runtime rest between runs, or they would take the cores from the engine that is timed next.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import io
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.progress import Progress, TaskID, TaskProgressColumn, TimeElapsedColumn, TimeRemainingColumn

from minialbert.deploy import bench_memory
from minialbert.deploy.bench_models import BenchModel, build_model, parse_models
from minialbert.errors import MissingExtraError, UserError, one_line
from minialbert.report.tables import escape
from minialbert.runs.directory import RunDirectory
from minialbert.runs.files import write_atomically, writing
from minialbert.runs.progress import duration, progress_bar
from minialbert.runs.records import check_output, write_result

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger(__name__)

TABLE_FILE = "table.md"
DEFAULT_LENGTHS = (16, 128, 512)
TORCH_ENGINES = ("torch-fp32", "torch-bf16", "torch-int8")
ONNX_ENGINES = ("onnx-fp32", "onnx-int8")
ENGINES = TORCH_ENGINES + ONNX_ENGINES
_LEAST_REPEATS = 3
_SHORT = 0.25  # seconds; a run this short is made twice, and timed with its weights in the caches again
_BUSY = 0.5  # processes per core, of others
_MEMORY_RUNS, _MEMORY_SECONDS = 3, 900
_TASK = TaskID(0)
_DASH = "–"

Pair = tuple[str, str]  # model, engine
Setting = tuple[int, int]  # batch size, length


class Engine(NamedTuple):
    """A model in one engine: what runs it, its bytes on disk, and the directory or ONNX file that the engine loads."""

    run: Callable[[bench_memory.Inputs], object]
    bytes: int
    path: Path


@dataclass
class Timed:
    """What takes its turn: runs a batch of a size and a length, up to `max_length` tokens; and what that takes.

    `seconds` are those of each timed run; `failure` is why it could not be run.
    """

    run: Callable[[int, int], object]
    max_length: int
    bytes: int | None = None
    peak: int | None = None
    seconds: dict[Setting, list[float]] = field(default_factory=dict)
    failure: str | None = None


class BenchTable(NamedTuple):
    """A part of the result, to print: one row per model and engine, in the same order in every table."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def benchmark(
    models: Sequence[str],
    *,
    engines: Sequence[str] = ENGINES,
    lengths: Sequence[int] = DEFAULT_LENGTHS,
    batch_size: int = 32,
    repeats: int = 15,
    seconds: float = 20.0,
    threads: int | None = None,
    seed: int = 0,
    memory: bool = True,
    output: Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure models in engines, taking turns, and return the record.

    Of `models` (see `parse_models`) the first, in the first engine, is what others are compared with. Of `lengths`
    (tokens) those that a model cannot take are left out for it. A cell is timed `repeats` times at most, or as often
    as `seconds` allow, but three times at least. Peak memory is that of a process per model and engine. `output` gets
    `result.json` and `table.md`.

    `metrics` has, by model and engine: `bytes`, `peak_memory_bytes` and `timings`, of which each has `batch_size`,
    `length`, `n`, `seconds` (median, min, q1, q3), `tokens_per_second` (by the median) and `speed_ratio` (the first
    pair's median over this one's). A UserError tells of an unknown model or engine, an option out of range, a package
    that is missing, or a directory that cannot be written.
    """
    choices = parse_models(models)
    numbers = {"batch size": batch_size, "number of repeats": repeats, "number of threads": threads}
    _check_options(engines, lengths, numbers, seconds, output, overwrite=overwrite)
    onnxruntime: Any = importlib.import_module("onnxruntime") if set(engines) & set(ONNX_ENGINES) else None
    load = None
    with contextlib.suppress(AttributeError, OSError):  # not on Windows
        load = os.getloadavg()[0]
    if load is not None and load > _BUSY * (os.cpu_count() or 1):
        logger.warning(
            "the machine is busy (load average %.1f): times will be longer, and less certain", load
        )
    before = torch.get_num_threads(), torch.backends.quantized.engine
    count = before[0] if threads is None else threads
    torch.set_num_threads(count)
    settings = list(dict.fromkeys((batch, length) for batch in (1, batch_size) for length in lengths))
    notes: list[str] = []
    about: dict[str, dict[str, Any]] = {}
    timed: dict[Pair, Timed] = {}
    try:
        with _progress_bar(progress) as bar:
            bar.reset(_TASK, total=float(len(choices) * len(engines)))
            for choice in choices:
                bar.update(_TASK, description=f"preparing {choice.name}")
                model = build_model(choice, seed)
                about[choice.name] = {
                    "source": choice.shown, "architecture": type(model.model).__name__,
                    "parameters": model.parameters, "num_iterations": choice.num_iterations,
                    "max_length": model.max_length, "memory_length": model.memory_length if memory else None,
                }  # fmt: skip
                timed |= _prepared(model, engines, notes, bar, threads=count, seed=seed, memory=memory)
                gc.collect()
            take_turns(timed, settings, repeats=repeats, seconds=seconds, bar=bar)
        notes += [f"{' '.join(pair)}: {one.failure}" for pair, one in timed.items() if one.failure]
        record = {
            "kind": "bench", "model": choices[0].name, "seed": seed,
            "settings": {
                "engines": list(engines), "lengths": list(lengths), "batch_size": batch_size, "repeats": repeats,
                "seconds": seconds, "threads": count, "load_average": load,
                "int8_kernels": bench_memory.quantized_backend() if "torch-int8" in engines else None,
                "onnxruntime": onnxruntime.__version__ if onnxruntime else None,
            },
            "reference": {"model": choices[0].name, "engine": engines[0]},
            "models": about, "metrics": _metrics(list(about), engines, timed, settings), "notes": notes,
        }  # fmt: skip
        if output is not None:
            record = write_result(RunDirectory(output).result, record)
            write_atomically(output / TABLE_FILE, as_markdown(record))
        return record
    finally:
        torch.set_num_threads(before[0])
        torch.backends.quantized.engine = before[1]


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

    Each cell is run once beforehand. What that took decides how often it is timed: `repeats` times, or as often as
    `seconds` allow, but three times at least. Turn t begins with the t-th of all, and every other goes backwards.
    `clock` tells the time, in seconds.
    """
    bar = bar or _progress_bar(False)
    cells = [
        (pair, setting) for setting in settings for pair in timed if setting[1] <= timed[pair].max_length
    ]
    total = float(sum(batch * length for _, (batch, length) in cells))
    bar.reset(_TASK, description="first runs", total=total)
    first: dict[tuple[Pair, Setting], float] = {}
    for pair, (batch, length) in cells:
        bar.update(_TASK, description=f"first runs: {' '.join(pair)}, {batch} x {length}")
        if timed[pair].failure is None:
            started = clock()
            try:
                timed[pair].run(batch, length)
            except Exception as error:  # engines fail each in their own way, and the others go on
                timed[pair].failure = f"cannot be run at batch {batch} x {length} ({one_line(error)})"
            first[pair, (batch, length)] = clock() - started
        bar.update(_TASK, advance=batch * length)
    plan = {
        cell: min(repeats, max(_LEAST_REPEATS, repeats if one * repeats <= seconds else int(seconds / one)))
        for cell, one in first.items()
        if timed[cell[0]].failure is None
    }
    cost = {cell: 2 * one if one < _SHORT else one for cell, one in first.items()}
    total = sum(count * cost[cell] for cell, count in plan.items())
    logger.info("timing %d cells, about %s", len(plan), duration(total))
    bar.reset(_TASK, description="timing", total=total)
    pairs = list(timed)
    for setting in settings:
        for turn in range(repeats):
            start = turn % max(1, len(pairs))
            for pair in (pairs[start:] + pairs[:start])[:: -1 if turn % 2 else 1]:
                cell = pair, setting
                if turn < plan.get(cell, 0):
                    bar.update(_TASK, description=f"timing {' '.join(pair)}, {setting[0]} x {setting[1]}")
                    if first[cell] < _SHORT:
                        timed[pair].run(*setting)
                    started = clock()
                    timed[pair].run(*setting)
                    timed[pair].seconds.setdefault(setting, []).append(clock() - started)
                    bar.update(_TASK, advance=cost[cell])


def _progress_bar(shown: bool) -> Progress:
    """Return a bar of one task with the time left."""
    columns = TaskProgressColumn(), TimeRemainingColumn(), TimeElapsedColumn()
    bar = progress_bar("{task.description}", *columns, shown=shown, transient=True)
    bar.speed_estimate_period = 600  # a single step can take a minute
    bar.add_task("", total=None)
    return bar


def _check_options(
    engines: Sequence[str],
    lengths: Sequence[int],
    numbers: Mapping[str, int | None],
    seconds: float,
    output: Path | None,
    *,
    overwrite: bool,
) -> None:
    """Refuse now what would fail after an hour."""
    unknown = ", ".join(engine for engine in engines if engine not in ENGINES)
    listed = ", ".join(map(str, lengths))
    rules = {
        f"engines: expected some of {', '.join(ENGINES)}, found {unknown or 'none'}": engines and not unknown,
        f"engines: expected each once, found {', '.join(engines)}": len(set(engines)) == len(engines),
        f"lengths: expected numbers of tokens from 1, found {listed or 'none'}": lengths
        and min(lengths) >= 1,
        **{
            f"expected a {name} of at least 1, found {value}": value is None or value >= 1
            for name, value in numbers.items()
        },
        f"expected a number of seconds above 0, found {seconds:g}": seconds > 0,
    }
    for fault, holds in rules.items():
        if not holds:
            raise UserError(fault)
    for package in ("onnx", "onnxruntime", "onnxscript") if set(engines) & set(ONNX_ENGINES) else ():
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "export", "benchmarking with ONNX Runtime")
    if output is not None:
        check_output(output, TABLE_FILE, kind="bench", overwrite=overwrite)
        with writing(output, advice=None):
            output.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=output).close()


# --- engines, and what each takes on disk and in memory


def _prepared(
    model: BenchModel,
    engines: Sequence[str],
    notes: list[str],
    bar: Progress,
    *,
    threads: int,
    seed: int,
    memory: bool,
) -> dict[Pair, Timed]:
    """Return a model in each engine; those in which it cannot be prepared get a note."""
    config = model.model.config
    padding = getattr(config, "pad_token_id", None)
    # Inputs are made in the first run of a setting, which is not timed.
    feed = cache(partial(bench_memory.make_inputs, model.inputs, config.vocab_size, padding, seed=seed))
    found: dict[Pair, Timed] = {}
    graph: ModelProto | Exception | None = None
    if set(engines) & set(ONNX_ENGINES):
        try:
            graph = trace(model)
        except Exception as error:  # of the exporter, of many kinds
            graph = error  # told of every engine: tracing takes long, and is not tried again
    with tempfile.TemporaryDirectory(prefix="minialbert-bench-") as folder:
        for name in engines:
            pair, path = (model.choice.name, name), Path(folder) / name
            try:
                if name in ONNX_ENGINES:
                    if isinstance(graph, Exception):
                        raise graph
                    assert graph is not None
                    engine = prepare_onnx(graph, name, path, threads)
                else:
                    engine = prepare_torch(model, name, path)
            except Exception as error:  # of the exporter, of ONNX Runtime, of torch: no common base
                reason = f"{type(error).__name__}: {one_line(error)}"
                notes.append(f"{' '.join(pair)}: cannot be prepared ({reason})")
                continue
            finally:
                bar.advance(_TASK)
            peak = None
            try:
                peak = _measure_memory(model, name, engine, threads) if memory else None
            except Exception as error:
                notes.append(f"{' '.join(pair)}: memory was not measured ({one_line(error)})")
            run = partial(lambda run, batch, length: run(feed(batch, length)), engine.run)
            found[pair] = Timed(run, model.max_length, engine.bytes, peak)
    return found


def trace(model: BenchModel) -> ModelProto:
    """Return a model as an ONNX graph in fp32."""
    from minialbert.deploy.onnx.trace import trace_onnx

    return trace_onnx(model.model, model.head, num_iterations=model.choice.num_iterations)


def prepare_onnx(graph: ModelProto, engine: str, folder: Path, threads: int) -> Engine:
    """Return a traced model, which is left as it is, in one of `ONNX_ENGINES`, saved as `model.onnx` in its folder."""
    import onnx
    from minialbert_runtime.session import open_session

    from minialbert.deploy.onnx.graph import keep_biases_apart
    from minialbert.deploy.onnx.int8 import quantize_int8

    own = onnx.ModelProto()
    own.CopyFrom(graph)
    (quantize_int8 if engine == "onnx-int8" else keep_biases_apart)(own)
    folder.mkdir(parents=True)
    path = folder / "model.onnx"
    onnx.save(own, path)
    del own
    session = open_session(path, threads, rests=True)
    return Engine(lambda inputs: session.run(None, inputs), path.stat().st_size, path)


def prepare_torch(model: BenchModel, engine: str, folder: Path) -> Engine:
    """Return a model, which is left as it is, in one of `TORCH_ENGINES`, and save what that engine loads.

    Its bytes are those of the safetensors file, or of the serialised state of an int8 model.
    """
    module = bench_memory.converted(model.model, engine)
    if engine == "torch-int8":  # its state holds packed weights, which safetensors cannot; loaded as fp32
        buffer = io.BytesIO()
        with bench_memory.quiet_about_quantization():
            torch.save(module.state_dict(), buffer)
        size = len(buffer.getvalue())
        model.model.save_pretrained(folder)
    else:
        module.save_pretrained(folder)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return Engine(bench_memory.torch_runner(module, model.options), size, folder)


def _measure_memory(model: BenchModel, name: str, engine: Engine, threads: int) -> int | None:
    """Return the peak memory of a process that loads a model and runs it three times at batch 1, in bytes.

    The whole process counts: Python, the engine's own code, mapped files. For ONNX Runtime that is a process
    without torch, which the package imports: so the script is started by its path, and not with -m. torch-int8 loads
    fp32 weights and quantises them, as torch wants it, which counts too. None where the system does not tell.
    """
    request = {
        "engine": name, "path": str(engine.path), "threads": threads, "options": model.options,
        "inputs": model.inputs, "vocabulary": model.model.config.vocab_size,
        "padding": getattr(model.model.config, "pad_token_id", None), "length": model.memory_length,
        "runs": _MEMORY_RUNS,
    }  # fmt: skip
    # -P: the script's own folder is part of this package, whose module names must not hide others.
    done = subprocess.run(
        [sys.executable, "-P", str(bench_memory.__file__), json.dumps(request)],
        capture_output=True, text=True, timeout=_MEMORY_SECONDS, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"the process that measures memory failed: {lines[-1]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert answer["torch"] == (name in TORCH_ENGINES)
    peak: int | None = answer["peak_bytes"]
    return peak


# --- the record, and its tables


def _metrics(
    models: Sequence[str], engines: Sequence[str], timed: Mapping[Pair, Timed], settings: Sequence[Setting]
) -> dict[str, Any]:
    """Return sizes and times by model, then engine; engines that failed have none."""
    nothing = Timed(lambda batch, length: None, 0)
    base = timed.get((models[0], engines[0]), nothing).seconds
    metrics: dict[str, Any] = {model: {} for model in models}
    for model, engine in ((model, engine) for model in models for engine in engines):
        one = timed.get((model, engine), nothing)
        timings = [_timing(key, one.seconds[key], base.get(key)) for key in settings if key in one.seconds]
        metrics[model][engine] = {"bytes": one.bytes, "peak_memory_bytes": one.peak, "timings": timings}
    return metrics


def _timing(setting: Setting, seconds: list[float], base: list[float] | None) -> dict[str, Any]:
    median = statistics.median(seconds)
    q1, _, q3 = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else (median,) * 3
    return {
        "batch_size": setting[0], "length": setting[1], "n": len(seconds),
        "seconds": {"median": median, "min": min(seconds), "q1": q1, "q3": q3},
        "tokens_per_second": setting[0] * setting[1] / median,
        "speed_ratio": None if base is None else statistics.median(base) / median,
    }  # fmt: skip


def tables(record: Mapping[str, Any]) -> list[BenchTable]:
    """Return a record as three tables, size, latency and throughput; a dash is what could not be measured."""
    lengths, batch = record["settings"]["lengths"], record["settings"]["batch_size"]
    against = f"x: times as fast as {record['reference']['model']} in {record['reference']['engine']}"
    figures = [name for length in lengths for name in (f"{length} tokens", "x")]
    described = [
        ("Size", ["parameters", "MB on disk", "peak memory, MB"]),
        (f"Latency: batch 1, median ms ({against})", figures),
        (f"Throughput: batch {batch}, tokens/s ({against})", figures),
    ]
    rows: list[list[tuple[str, ...]]] = [[], [], []]
    for model, engine in ((model, engine) for model, found in record["metrics"].items() for engine in found):
        cell = record["metrics"][model][engine]
        sizes = [
            _shown(cell[key], lambda size: f"{size / 1e6:,.1f}") for key in ("bytes", "peak_memory_bytes")
        ]
        rows[0].append((model, engine, f"{record['models'][model]['parameters'] / 1e6:.2f} M", *sizes))
        timings = {(timing["batch_size"], timing["length"]): timing for timing in cell["timings"]}
        for part, size, figure in (
            (rows[1], 1, _milliseconds),
            (rows[2], batch, lambda timing: f"{timing['tokens_per_second']:,.0f}"),
        ):
            part.append((model, engine))
            for timing in (timings.get((size, length)) for length in lengths):
                ratio = timing and timing["speed_ratio"]
                part[-1] += (_shown(timing, figure), _shown(ratio, "{:.2f}".format))
    return [
        BenchTable(title, ("model", "engine", *columns), tuple(part))
        for (title, columns), part in zip(described, rows, strict=True)
    ]


def _shown(value: Any, figure: Callable[[Any], str]) -> str:  # noqa: ANN401
    return _DASH if value is None else figure(value)


def _milliseconds(timing: Mapping[str, Any]) -> str:
    seconds = timing["seconds"]["median"]
    return f"{1e3 * seconds:.1f}" if seconds >= 0.01 else f"{1e3 * seconds:.2f}"


def as_markdown(record: Mapping[str, Any]) -> str:
    """Return a record's tables and notes as Markdown."""
    parts = []
    for table in tables(record):
        rule = "|".join(["---"] * 2 + ["---:"] * (len(table.header) - 2))
        lines = [f"| {' | '.join(map(escape, row))} |" for row in (table.header, *table.rows)]
        parts.append("\n".join([f"**{escape(table.title)}**", "", lines[0], f"|{rule}|", *lines[1:]]))
    if record["notes"]:
        parts.append("\n".join(f"- {escape(note)}" for note in record["notes"]))
    return "\n\n".join(parts) + "\n"
