"""Models and engines side by side on this machine: size, memory, latency at batch 1, throughput at a larger batch.

Times are taken in turns: every turn runs each model in each engine once, in an order that changes, so that what
else the machine does falls on all alike. Inputs have no padding. All models go through our own ONNX exporter and
quantiser, which favours the ones compared with as well. Threads of ONNX Runtime do not spin between runs
(`benchmark_memory.load_session`), or they would take the cores from the engine that is timed next.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .benchmark_engines import (
    ENGINES,
    ONNX_ENGINES,
    Engine,
    Run,
    measure_memory,
    memory_length,
    prepare_onnx,
    prepare_torch,
    quantized_backend,
    trace,
)
from .benchmark_memory import Inputs, make_inputs
from .benchmark_models import BenchModel, ModelChoice, build_model, parse_models
from .benchmark_tables import as_markdown
from .errors import MissingExtraError, UserError
from .progress import duration, stderr_console
from .runs import RunDirectory, write_atomically, write_result
from .scoring import check_output
from .teachers import one_line

logger = logging.getLogger(__name__)

KIND = "bench"
TABLE_FILE = "table.md"
DEFAULT_LENGTHS = (16, 128, 512)
_LEAST_REPEATS = 3
_SHORT = 0.25  # seconds; a run this short is made twice, and timed with its weights in the caches again
_BUSY = 0.5  # processes per core, of others

Pair = tuple[str, str]  # model, engine
Setting = tuple[int, int]  # batch size, length


@dataclass(frozen=True)
class Timed:
    """What takes its turn.

    Attributes:
        run: runs a batch of a size and a length.
        max_length: longest input, in tokens.
    """

    run: Callable[[int, int], object]
    max_length: int


@dataclass
class Times:
    """What `take_turns` measured.

    Attributes:
        seconds: by model and engine, then batch size and length: of each timed run.
        failures: by model and engine, why it could not be run.
    """

    seconds: dict[Pair, dict[Setting, list[float]]] = field(default_factory=dict)
    failures: dict[Pair, str] = field(default_factory=dict)


class Bar:
    """A bar on standard error with the time left; silent where that is no terminal.

    Args:
        shown: whether to show it at all.
    """

    def __init__(self, shown: bool) -> None:
        console = stderr_console()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            speed_estimate_period=600,  # a single step can take a minute
            disable=not (shown and console.is_terminal),
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, title: str, total: float) -> None:
        """Start a stretch of work anew."""
        self._bar.reset(self._task, description=title, total=total)

    def advance(self, amount: float = 1.0, title: str | None = None) -> None:
        """Tell that part of it is done, and what comes next."""
        self._bar.update(self._task, advance=amount, description=title)


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
    """Measure models in engines, taking turns.

    Args:
        models: see `benchmark_models.parse_models`; the first, in the first engine, is what others are compared with.
        engines: some of `ENGINES`.
        lengths: tokens per input; those that a model cannot take are left out for it.
        batch_size: of the throughput.
        repeats: timed runs of each cell, at most.
        seconds: what the timed runs of a cell may take together; three are made in any case.
        threads: of one run; None for torch's own number.
        seed: of random weights and inputs.
        memory: also measure peak memory, in a process per model and engine.
        output: directory for `result.json` and `table.md`.
        overwrite: replace what an earlier benchmark left there.
        progress: show a bar.

    Returns:
        The record. `metrics` has, by model and engine: `bytes`, `peak_memory_bytes` and `timings`, of which each has
        `batch_size`, `length`, `n`, `seconds` (median, min, q1, q3), `tokens_per_second` (by the median) and
        `speed_ratio` (the first pair's median over this one's).

    Raises:
        UserError: an unknown model or engine, an option out of range, or a directory that cannot be written.
        MissingExtraError: ONNX Runtime or the exporter is not installed.
    """
    choices = parse_models(models)
    _check_options(engines, lengths, batch_size=batch_size, repeats=repeats, seconds=seconds, threads=threads)
    if output is not None:
        _check_writable(output, overwrite=overwrite)
    load = _load_average()
    if load is not None and load > _BUSY * (os.cpu_count() or 1):
        logger.warning(
            "the machine is busy (load average %.1f): times will be longer, and less certain", load
        )
    before = torch.get_num_threads(), torch.backends.quantized.engine
    count = before[0] if threads is None else threads
    torch.set_num_threads(count)
    settings = list(dict.fromkeys((batch, length) for batch in (1, batch_size) for length in lengths))
    try:
        with Bar(progress) as bar:
            bench = _Bench(tuple(engines), count, seed, memory, bar)
            bar.begin("preparing", float(len(choices) * len(engines)))
            for choice in choices:
                with tempfile.TemporaryDirectory(prefix="minialbert-bench-") as folder:
                    bench.prepare(choice, Path(folder))
            times = take_turns(bench.timed, settings, repeats=repeats, seconds=seconds, bar=bar)
        for pair, failure in times.failures.items():
            bench.note(pair, failure)
        record = {
            "kind": KIND,
            "model": choices[0].name,
            "seed": seed,
            "settings": {
                "engines": list(engines),
                "lengths": list(lengths),
                "batch_size": batch_size,
                "repeats": repeats,
                "seconds": seconds,
                "threads": count,
                "load_average": load,
                "int8_kernels": quantized_backend() if "torch-int8" in engines else None,
                "onnxruntime": _version("onnxruntime") if set(engines) & set(ONNX_ENGINES) else None,
            },
            "reference": {"model": choices[0].name, "engine": engines[0]},
            "models": bench.models,
            "metrics": _metrics(bench, times, settings, (choices[0].name, engines[0])),
            "notes": bench.notes,
        }
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
    bar: Bar | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Time everything at every setting, in turns.

    Each cell is run once beforehand. What that took decides how often it is timed: `repeats` times, or as often as
    `seconds` allow, but three times at least. Turn t begins with the t-th of all, and every other goes backwards.

    Args:
        timed: what to run, by model and engine.
        settings: batch sizes and lengths.
        repeats: timed runs of a cell, at most.
        seconds: what they may take together.
        bar: tells how far it is.
        clock: tells the time, in seconds.

    Returns:
        The times, and what failed.
    """
    bar = bar or Bar(False)
    times = Times({pair: {} for pair in timed})
    cells = [
        (pair, setting) for setting in settings for pair in timed if setting[1] <= timed[pair].max_length
    ]
    bar.begin("first runs", float(sum(batch * length for _, (batch, length) in cells)))
    expected: dict[tuple[Pair, Setting], float] = {}
    for pair, (batch, length) in cells:
        bar.advance(0, f"first runs: {' '.join(pair)}, {batch} x {length}")
        if pair not in times.failures:
            started = clock()
            try:
                timed[pair].run(batch, length)
            except Exception as error:  # engines fail each in their own way, and the others go on
                times.failures[pair] = f"cannot be run at batch {batch} x {length} ({one_line(error)})"
            expected[pair, (batch, length)] = clock() - started
        bar.advance(batch * length)
    plan = {
        cell: _planned(one, repeats, seconds)
        for cell, one in expected.items()
        if cell[0] not in times.failures
    }
    total = sum(count * _cost(expected[cell]) for cell, count in plan.items())
    logger.info("timing %d cells, about %s", len(plan), duration(total))
    bar.begin("timing", total)
    for setting in settings:
        for turn in range(repeats):
            for pair in _order(list(timed), turn):
                if turn < plan.get((pair, setting), 0):
                    bar.advance(0, f"timing {' '.join(pair)}, {setting[0]} x {setting[1]}")
                    one = expected[pair, setting]
                    taken = _time(timed[pair].run, setting, twice=one < _SHORT, clock=clock)
                    times.seconds[pair].setdefault(setting, []).append(taken)
                    bar.advance(_cost(one))
    return times


class _Bench:
    """Prepares models one after another and keeps what is to be timed."""

    def __init__(self, engines: tuple[str, ...], threads: int, seed: int, memory: bool, bar: Bar) -> None:
        self.engines, self.threads, self.seed, self.memory = engines, threads, seed, memory
        self.bar = bar
        self.timed: dict[Pair, Timed] = {}
        self.sizes: dict[Pair, tuple[int, int | None]] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.notes: list[str] = []

    def note(self, pair: Pair, text: str) -> None:
        self.notes.append(f"{' '.join(pair)}: {text}")

    def prepare(self, choice: ModelChoice, folder: Path) -> None:
        self.bar.advance(0, f"preparing {choice.name}")
        model = build_model(choice, self.seed)
        self.models[choice.name] = {
            "source": choice.shown,
            "architecture": type(model.model).__name__,
            "parameters": model.parameters,
            "num_iterations": choice.num_iterations,
            "max_length": model.max_length,
            "memory_length": memory_length(model) if self.memory else None,
        }
        # Inputs are made in the first run of a setting, which is not timed.
        feed = functools.cache(functools.partial(self._inputs, model))
        graph = _Once(lambda: trace(model))
        for name in self.engines:
            pair = (choice.name, name)
            self.bar.advance(0, f"preparing {choice.name} {name}")
            try:
                if name in ONNX_ENGINES:
                    engine = prepare_onnx(graph.get(), name, folder / name, self.threads)
                else:
                    engine = prepare_torch(model, name, folder / name)
            except Exception as error:  # of the exporter, of ONNX Runtime, of torch: no common base
                self.note(pair, f"cannot be prepared ({type(error).__name__}: {one_line(error)})")
            else:
                self.sizes[pair] = engine.bytes, self._peak(model, name, engine)
                self.timed[pair] = Timed(functools.partial(_run, engine.run, feed), model.max_length)
            self.bar.advance(1)
        gc.collect()

    def _inputs(self, model: BenchModel, batch: int, length: int) -> Inputs:
        config = model.model.config
        padding = getattr(config, "pad_token_id", None)
        return make_inputs(model.inputs, config.vocab_size, padding, batch, length, self.seed)

    def _peak(self, model: BenchModel, name: str, engine: Engine) -> int | None:
        if not self.memory:
            return None
        try:
            return measure_memory(model, name, engine, self.threads)
        except Exception as error:
            self.note((model.choice.name, name), f"memory was not measured ({one_line(error)})")
            return None


class _Once:
    """What is made at most once; a failure is kept too, because a trace takes long."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.made: Any = None
        self.error: Exception | None = None

    def get(self) -> Any:
        if self.error is None and self.made is None:
            try:
                self.made = self.make()
            except Exception as error:
                self.error = error
        if self.error is not None:
            raise self.error
        return self.made


def _run(run: Run, feed: Callable[[int, int], Inputs], batch: int, length: int) -> object:
    return run(feed(batch, length))


def _time(
    run: Callable[[int, int], object], setting: Setting, *, twice: bool, clock: Callable[[], float]
) -> float:
    if twice:
        run(*setting)
    started = clock()
    run(*setting)
    return clock() - started


def _planned(one: float, repeats: int, seconds: float) -> int:
    allowed = repeats if one * repeats <= seconds else int(seconds / one)
    return min(repeats, max(_LEAST_REPEATS, allowed))


def _cost(one: float) -> float:
    return 2 * one if one < _SHORT else one


def _order(pairs: list[Pair], turn: int) -> list[Pair]:
    start = turn % len(pairs) if pairs else 0
    order = pairs[start:] + pairs[:start]
    return order[::-1] if turn % 2 else order


def _metrics(bench: _Bench, times: Times, settings: list[Setting], reference: Pair) -> dict[str, Any]:
    """Return sizes and times by model, then engine; engines that failed have none."""
    base = {setting: statistics.median(all_) for setting, all_ in times.seconds.get(reference, {}).items()}
    metrics: dict[str, Any] = {}
    for model in bench.models:
        metrics[model] = {}
        for engine in bench.engines:
            size, peak = bench.sizes.get((model, engine), (None, None))
            measured = times.seconds.get((model, engine), {})
            metrics[model][engine] = {
                "bytes": size,
                "peak_memory_bytes": peak,
                "timings": [
                    _timing(setting, measured[setting], base.get(setting))
                    for setting in settings
                    if setting in measured
                ],
            }
    return metrics


def _timing(setting: Setting, seconds: list[float], base: float | None) -> dict[str, Any]:
    median = statistics.median(seconds)
    q1, _, q3 = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else (median,) * 3
    return {
        "batch_size": setting[0],
        "length": setting[1],
        "n": len(seconds),
        "seconds": {"median": median, "min": min(seconds), "q1": q1, "q3": q3},
        "tokens_per_second": setting[0] * setting[1] / median,
        "speed_ratio": None if base is None else base / median,
    }


def _check_options(
    engines: Sequence[str],
    lengths: Sequence[int],
    *,
    batch_size: int,
    repeats: int,
    seconds: float,
    threads: int | None,
) -> None:
    unknown = [engine for engine in engines if engine not in ENGINES]
    if unknown or not engines:
        raise UserError(
            f"engines: expected some of {', '.join(ENGINES)}, found {', '.join(unknown) or 'none'}"
        )
    if len(set(engines)) < len(engines):
        raise UserError(f"engines: expected each once, found {', '.join(engines)}")
    if not lengths or min(lengths) < 1:
        raise UserError(
            f"lengths: expected numbers of tokens from 1, found {', '.join(map(str, lengths)) or 'none'}"
        )
    numbers = {"batch size": batch_size, "number of repeats": repeats}
    if threads is not None:
        numbers["number of threads"] = threads
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"expected a {name} of at least 1, found {value}")
    if not seconds > 0:
        raise UserError(f"expected a number of seconds above 0, found {seconds:g}")
    if set(engines) & set(ONNX_ENGINES):
        for package in ("onnx", "onnxruntime", "onnxscript"):
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(package, "export", "benchmarking with ONNX Runtime")


def _check_writable(output: Path, *, overwrite: bool) -> None:
    """Refuse an output now that could not be written after an hour."""
    check_output(output, TABLE_FILE, kind=KIND, overwrite=overwrite)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror or error})") from error


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # not on Windows
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # such as onnxruntime-gpu, of the same module
        return None
