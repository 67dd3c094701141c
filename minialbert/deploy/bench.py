"""Models and engines side by side on this machine: size, memory, latency at batch 1, throughput at a larger batch.

Times are taken in turns: every turn runs each model in each engine once, in an order that changes, so that what
else the machine does falls on all alike. Inputs have no padding. All models go through our own ONNX exporter and
quantiser, which store a shared weight once and undo fusions that cost time: that favours the ones compared with as
well. Threads of ONNX Runtime do not spin between runs (`bench_memory.load_session`), or they would take the cores
from the engine that is timed next.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import importlib.util
import io
import json
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.progress import Progress, TaskID, TimeElapsedColumn
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    MobileBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from minialbert.deploy import bench_memory
from minialbert.deploy.bench_memory import (
    Inputs,
    converted,
    load_session,
    make_inputs,
    quantized_backend,
    quiet_about_quantization,
    torch_runner,
)
from minialbert.errors import MissingExtraError, UserError, display_name
from minialbert.method.configuration_minialbert import MiniAlbertConfig
from minialbert.method.encoders import (
    LOADING_ERRORS,
    forward_inputs,
    load_encoder_config,
    max_input_length,
    one_line,
)
from minialbert.method.modeling_minialbert import (
    MiniAlbertForSequenceClassification,
    MiniAlbertForTokenClassification,
)
from minialbert.report.tables import escape
from minialbert.runs.directory import RunDirectory
from minialbert.runs.files import write_atomically
from minialbert.runs.progress import duration, stderr_console
from minialbert.runs.records import check_output, write_result
from minialbert.runs.untrusted import check_config

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger(__name__)

TABLE_FILE = "table.md"
DEFAULT_LENGTHS = (16, 128, 512)
TORCH_ENGINES = ("torch-fp32", "torch-bf16", "torch-int8")
ONNX_ENGINES = ("onnx-fp32", "onnx-int8")
ENGINES = TORCH_ENGINES + ONNX_ENGINES
# The paper's students and what they are compared with; no weights, so nothing is downloaded.
SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "minialbert-128": lambda: MiniAlbertConfig(embedding_size=128),
    "minialbert-312": lambda: MiniAlbertConfig(embedding_size=312),
    "minialbert-768": lambda: MiniAlbertConfig(embedding_size=768),
    "distilbert": DistilBertConfig,
    "bert-base": BertConfig,
    "albert-base": lambda: AlbertConfig(
        embedding_size=128, hidden_size=768, num_attention_heads=12, intermediate_size=3072
    ),
    "tinybert-4l-312": lambda: BertConfig(
        hidden_size=312, num_hidden_layers=4, num_attention_heads=12, intermediate_size=1200
    ),
    "mobilebert": MobileBertConfig,
}
_CONFIG = "config:"
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_LEAST_REPEATS = 3
_SHORT = 0.25  # seconds; a run this short is made twice, and timed with its weights in the caches again
_BUSY = 0.5  # processes per core, of others
_MEMORY_RUNS, _MEMORY_LENGTH, _MEMORY_SECONDS = 3, 128, 900
_TASK = TaskID(0)
_DASH = "–"

Pair = tuple[str, str]  # model, engine
Setting = tuple[int, int]  # batch size, length
Run = Callable[[Inputs], object]


class ModelChoice(NamedTuple):
    """A model as asked for: a name in `SHAPES`, "config:" and a file, or a directory or hub id; None: its own depth."""

    name: str
    source: str
    num_iterations: int | None = None

    @property
    def shown(self) -> str:
        """The source without the folders of a local path."""
        if self.source.startswith(_CONFIG):
            return Path(self.source.removeprefix(_CONFIG)).name
        return self.source if self.source in SHAPES else display_name(self.source) or self.source


class BenchModel(NamedTuple):
    """A model that is ready to run, in fp32 and eval mode, with the names of its inputs and its longest input."""

    choice: ModelChoice
    model: PreTrainedModel
    head: str
    inputs: tuple[str, ...]
    max_length: int

    @property
    def parameters(self) -> int:
        """How many it has, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def options(self) -> dict[str, Any]:
        """What its forward is called with beside the inputs."""
        depth = self.choice.num_iterations
        return {} if depth is None else {"num_iterations": depth}

    @property
    def memory_length(self) -> int:
        """The length at which memory is measured."""
        return min(_MEMORY_LENGTH, self.max_length)


class Engine(NamedTuple):
    """A model in one engine: what runs it, its bytes on disk, and the directory or ONNX file that the engine loads."""

    run: Run
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
    """Measure models in engines, taking turns.

    Args:
        models: see `parse_models`; the first, in the first engine, is what others are compared with.
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
    numbers = {"batch size": batch_size, "number of repeats": repeats, "number of threads": threads}
    _check_options(engines, lengths, numbers, seconds)
    onnxruntime: Any = importlib.import_module("onnxruntime") if set(engines) & set(ONNX_ENGINES) else None
    if output is not None:
        _check_writable(output, overwrite=overwrite)
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
            bar.reset(_TASK, description="preparing", total=float(len(choices) * len(engines)))
            for choice in choices:
                with tempfile.TemporaryDirectory(prefix="minialbert-bench-") as folder:
                    bar.update(_TASK, description=f"preparing {choice.name}")
                    model = build_model(choice, seed)
                    about[choice.name] = {
                        "source": choice.shown, "architecture": type(model.model).__name__,
                        "parameters": model.parameters, "num_iterations": choice.num_iterations,
                        "max_length": model.max_length, "memory_length": model.memory_length if memory else None,
                    }  # fmt: skip
                    for pair, made in _prepared(
                        model, engines, Path(folder), notes, threads=count, seed=seed, memory=memory
                    ):
                        bar.advance(_TASK)
                        if made is not None:
                            timed[pair] = made
            take_turns(timed, settings, repeats=repeats, seconds=seconds, bar=bar)
        notes += [f"{' '.join(pair)}: {one.failure}" for pair, one in timed.items() if one.failure]
        record = {
            "kind": "bench", "model": choices[0].name, "seed": seed,
            "settings": {
                "engines": list(engines), "lengths": list(lengths), "batch_size": batch_size, "repeats": repeats,
                "seconds": seconds, "threads": count, "load_average": load,
                "int8_kernels": quantized_backend() if "torch-int8" in engines else None,
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

    Args:
        timed: what to run, by model and engine.
        settings: batch sizes and lengths.
        repeats: timed runs of a cell, at most.
        seconds: what they may take together.
        bar: tells how far it is.
        clock: tells the time, in seconds.
    """
    bar = bar or _progress_bar(False)
    cells = [
        (pair, setting) for setting in settings for pair in timed if setting[1] <= timed[pair].max_length
    ]
    bar.reset(
        _TASK, description="first runs", total=float(sum(batch * length for _, (batch, length) in cells))
    )
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
    for setting in settings:
        for turn in range(repeats):
            for pair in _order(list(timed), turn):
                cell = pair, setting
                if turn < plan.get(cell, 0):
                    bar.update(_TASK, description=f"timing {' '.join(pair)}, {setting[0]} x {setting[1]}")
                    if first[cell] < _SHORT:
                        timed[pair].run(*setting)
                    started = clock()
                    timed[pair].run(*setting)
                    timed[pair].seconds.setdefault(setting, []).append(clock() - started)
                    bar.update(_TASK, advance=cost[cell])


def _order(pairs: list[Pair], turn: int) -> list[Pair]:
    start = turn % len(pairs) if pairs else 0
    order = pairs[start:] + pairs[:start]
    return order[::-1] if turn % 2 else order


def _progress_bar(shown: bool) -> Progress:
    """Return a bar on standard error with the time left; silent where that is no terminal."""
    console = stderr_console()
    bar = Progress(
        *Progress.get_default_columns(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        speed_estimate_period=600,  # a single step can take a minute
        disable=not (shown and console.is_terminal),
    )
    bar.add_task("", total=None)
    return bar


# --- models: from a directory, the hub, a config alone, or a well-known shape with random weights


def parse_models(values: Sequence[str]) -> list[ModelChoice]:
    """Return the models that `--models` names: "SOURCE", "NAME=SOURCE", "SOURCE@K" (K iterations), "NAME=SOURCE@K"."""
    if not values:
        raise UserError(f"no model to benchmark: give --models, such as {', '.join(SHAPES)}, or a directory")
    choices = [_parse(value) for value in values]
    names = [choice.name for choice in choices]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"two models are called {', '.join(twice)}: give --models NAME=PATH to tell them apart"
        )
    return choices


def build_model(choice: ModelChoice, seed: int = 0) -> BenchModel:
    """Return a model, read or with random weights.

    A checkpoint keeps its classification head; one without gets a sequence classifier with two labels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if choice.source in SHAPES:
            model = _from_config(SHAPES[choice.source]())
        elif choice.source.startswith(_CONFIG):
            model = _from_config(_read_config(choice.source.removeprefix(_CONFIG)))
        else:
            try:
                config = load_encoder_config(choice.source)
            except UserError as error:
                if Path(choice.source).exists():
                    raise
                raise UserError(f"{error}. Names that need no files: {', '.join(SHAPES)}") from error
            model = _from_checkpoint(choice.source, config)
    if model.config.model_type == MiniAlbertConfig.model_type:
        model.config.exit_threshold = None  # times are those of a fixed depth
    elif choice.num_iterations is not None:
        raise UserError(
            f"{choice.name}: @{choice.num_iterations} sets the iterations of a MiniALBERT, and {choice.source} is a "
            f"{model.config.model_type}"
        )
    token = "TokenClassification" in type(model).__name__
    example = {name: torch.ones(1, 1, dtype=torch.int64) for name in _INPUTS}
    return BenchModel(
        choice,
        model.eval().requires_grad_(False),
        "token-classification" if token else "sequence-classification",
        tuple(forward_inputs(model, example)),
        max_input_length(model),
    )


def _parse(value: str) -> ModelChoice:
    name, separator, source = value.partition("=")
    if not separator or "/" in name or ":" in name or Path(value).exists():
        name, source = "", value
    depth = None
    found = re.fullmatch(r"(.+)@(\d+)", source)
    if found and not Path(source).exists():
        source, depth = found[1], int(found[2])
        if depth < 1:
            raise UserError(f"{value}: expected at least 1 iteration after @, found {depth}")
    if not source:
        raise UserError(f"--models {value}: expected a model after =, such as {next(iter(SHAPES))}")
    suffix = "" if depth is None else f"@{depth}"
    name = name or f"{ModelChoice('', source).shown.removesuffix('.json')}{suffix}"
    return ModelChoice(name, source, depth)


def _read_config(file: str) -> PreTrainedConfig:
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{_CONFIG}{file}: there is no such file; expected the config.json of an encoder")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if hasattr(config, "use_adapter"):  # of the paper's release
            config = MiniAlbertConfig.from_pretrained(path)
    except LOADING_ERRORS as error:
        raise UserError(f"{file} is not the config.json of an encoder ({one_line(error)})") from error
    check_config(config, file)
    return config


def _from_config(config: PreTrainedConfig) -> PreTrainedModel:
    config.num_labels = 2
    if isinstance(config, MiniAlbertConfig):
        return MiniAlbertForSequenceClassification(config)
    try:
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise UserError(f"a {config.model_type} cannot classify sequences ({one_line(error)})") from error


def _from_checkpoint(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    heads = " ".join(config.architectures or ())
    token = "TokenClassification" in heads
    if config.model_type == MiniAlbertConfig.model_type or hasattr(config, "use_adapter"):
        model_class: Any = MiniAlbertForTokenClassification if token else MiniAlbertForSequenceClassification
    else:
        model_class = AutoModelForTokenClassification if token else AutoModelForSequenceClassification
    options = {} if "Classification" in heads else {"num_labels": 2}
    try:
        return model_class.from_pretrained(name, dtype=torch.float32, trust_remote_code=False, **options)
    except LOADING_ERRORS as error:
        raise UserError(f"{name}: its weights could not be loaded ({one_line(error)})") from error


# --- engines, and what each takes on disk and in memory


def _prepared(
    model: BenchModel,
    engines: Sequence[str],
    folder: Path,
    notes: list[str],
    *,
    threads: int,
    seed: int,
    memory: bool,
) -> Iterator[tuple[Pair, Timed | None]]:
    """Yield a model in each engine, or None and a note where it cannot be prepared."""
    config = model.model.config
    padding = getattr(config, "pad_token_id", None)
    # Inputs are made in the first run of a setting, which is not timed.
    feed = functools.cache(
        functools.partial(make_inputs, model.inputs, config.vocab_size, padding, seed=seed)
    )
    graph: ModelProto | Exception | None = None  # traced once, and a failure is kept too: it takes long
    for name in engines:
        pair = (model.choice.name, name)
        try:
            if name in ONNX_ENGINES:
                graph = _traced(model) if graph is None else graph
                if isinstance(graph, Exception):
                    raise graph
                engine = prepare_onnx(graph, name, folder / name, threads)
            else:
                engine = prepare_torch(model, name, folder / name)
        except Exception as error:  # of the exporter, of ONNX Runtime, of torch: no common base
            notes.append(f"{' '.join(pair)}: cannot be prepared ({type(error).__name__}: {one_line(error)})")
            yield pair, None
            continue
        peak = None
        try:
            peak = _measure_memory(model, name, engine, threads) if memory else None
        except Exception as error:
            notes.append(f"{' '.join(pair)}: memory was not measured ({one_line(error)})")
        run = functools.partial(lambda run, batch, length: run(feed(batch, length)), engine.run)
        yield pair, Timed(run, model.max_length, engine.bytes, peak)
    gc.collect()


def _traced(model: BenchModel) -> ModelProto | Exception:
    try:
        return trace(model)
    except Exception as error:  # of the exporter, of many kinds
        return error


def trace(model: BenchModel) -> ModelProto:
    """Return a model as an ONNX graph in fp32."""
    from minialbert.deploy.onnx.trace import trace_onnx

    return trace_onnx(model.model, model.head, num_iterations=model.choice.num_iterations)


def prepare_onnx(graph: ModelProto, engine: str, folder: Path, threads: int) -> Engine:
    """Return a traced model, which is left as it is, in one of `ONNX_ENGINES`, saved as `model.onnx` in its folder."""
    import onnx

    from minialbert.deploy.onnx.int8 import quantize_int8
    from minialbert.deploy.onnx.trace import finish_fp32

    own = onnx.ModelProto()
    own.CopyFrom(graph)
    (quantize_int8 if engine == "onnx-int8" else finish_fp32)(own)
    folder.mkdir(parents=True)
    path = folder / "model.onnx"
    onnx.save(own, path)
    del own
    session = load_session(path, threads)
    return Engine(lambda inputs: session.run(None, inputs), path.stat().st_size, path)


def prepare_torch(model: BenchModel, engine: str, folder: Path) -> Engine:
    """Return a model, which is left as it is, in one of `TORCH_ENGINES`, and save what that engine loads.

    Its bytes are those of the safetensors file, or of the serialised state of an int8 model.
    """
    module = converted(model.model, engine)
    if engine == "torch-int8":  # its state holds packed weights, which safetensors cannot; loaded as fp32
        buffer = io.BytesIO()
        with quiet_about_quantization():
            torch.save(module.state_dict(), buffer)
        size = len(buffer.getvalue())
        model.model.save_pretrained(folder)
    else:
        module.save_pretrained(folder)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return Engine(torch_runner(module, model.options), size, folder)


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
    root = str(resources.files("minialbert").joinpath(os.pardir))
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # -P: the script's own folder is part of this package, whose module names must not hide others.
    done = subprocess.run(
        [sys.executable, "-P", str(bench_memory.__file__), json.dumps(request)],
        capture_output=True, text=True, timeout=_MEMORY_SECONDS, check=False, env={**os.environ, "PYTHONPATH": path},
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
    metrics, models = record["metrics"], record["models"]
    cells = {(model, engine): metrics[model][engine] for model in metrics for engine in metrics[model]}
    counts = {model: f"{models[model]['parameters'] / 1e6:.2f} M" for model in metrics}
    sizes = tuple(
        (*pair, counts[pair[0]], _megabytes(cell["bytes"]), _megabytes(cell["peak_memory_bytes"]))
        for pair, cell in cells.items()
    )
    lengths, batch = record["settings"]["lengths"], record["settings"]["batch_size"]
    against = f"x: times as fast as {record['reference']['model']} in {record['reference']['engine']}"
    header = ("model", "engine", *(name for length in lengths for name in (f"{length} tokens", "x")))

    def timings(size: int, figure: Callable[[Mapping[str, Any]], str]) -> tuple[tuple[str, ...], ...]:
        found = []
        for pair, cell in cells.items():
            row = {t["length"]: t for t in cell["timings"] if t["batch_size"] == size}
            parts = [part for length in lengths for part in _figures(row.get(length), figure)]
            found.append((*pair, *parts))
        return tuple(found)

    return [
        BenchTable("Size", ("model", "engine", "parameters", "MB on disk", "peak memory, MB"), sizes),
        BenchTable(f"Latency: batch 1, median ms ({against})", header, timings(1, _milliseconds)),
        BenchTable(
            f"Throughput: batch {batch}, tokens/s ({against})",
            header,
            timings(batch, lambda timing: f"{timing['tokens_per_second']:,.0f}"),
        ),
    ]


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


def _figures(timing: Mapping[str, Any] | None, figure: Callable[[Mapping[str, Any]], str]) -> tuple[str, str]:
    if timing is None:
        return _DASH, _DASH
    ratio = timing["speed_ratio"]
    return figure(timing), _DASH if ratio is None else f"{ratio:.2f}"


def _megabytes(size: int | None) -> str:
    return _DASH if size is None else f"{size / 1e6:,.1f}"


def _milliseconds(timing: Mapping[str, Any]) -> str:
    seconds = timing["seconds"]["median"]
    return f"{1e3 * seconds:.1f}" if seconds >= 0.01 else f"{1e3 * seconds:.2f}"


# --- checks before anything is measured


def _check_options(
    engines: Sequence[str], lengths: Sequence[int], numbers: Mapping[str, int | None], seconds: float
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
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise UserError(f"expected a {name} of at least 1, found {value}")
    if not seconds > 0:
        raise UserError(f"expected a number of seconds above 0, found {seconds:g}")
    if set(engines) & set(ONNX_ENGINES):
        for package in ("onnx", "onnxruntime", "onnxscript"):
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(package, "export", "benchmarking with ONNX Runtime")


def _check_writable(output: Path, *, overwrite: bool) -> None:
    """Refuse an output now that could not be written after an hour."""
    check_output(output, TABLE_FILE, kind="bench", overwrite=overwrite)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror or error})") from error
