"""Models and engines side by side on this machine: size, memory, latency at batch 1, throughput at a larger batch.

Times are taken in turns: every turn runs each model in each engine once, in an order that changes, so that what
else the machine does falls on all alike. Inputs have no padding. All models go through our own ONNX exporter and
quantiser, which favours the ones compared with as well. Threads of ONNX Runtime do not spin between runs
(`bench_memory.load_session`), or they would take the cores from the engine that is timed next.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
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
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn
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
from minialbert.deploy.bench_memory import Inputs, load_session, make_inputs
from minialbert.errors import MissingExtraError, UserError
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
from minialbert.runs.directory import RunDirectory, display_name, write_atomically, write_result
from minialbert.runs.progress import duration, stderr_console
from minialbert.runs.untrusted import check_config
from minialbert.tasks.evaluate import check_output

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger(__name__)


TORCH_ENGINES = ("torch-fp32", "torch-bf16", "torch-int8")
ONNX_ENGINES = ("onnx-fp32", "onnx-int8")
ENGINES = TORCH_ENGINES + ONNX_ENGINES
Run = Callable[[Inputs], object]

_BACKENDS = ("x86", "onednn", "fbgemm", "qnnpack")  # of torch's int8 kernels, best first
_MEMORY_RUNS = 3
_MEMORY_LENGTH = 128
_MEMORY_LIMIT = 900  # seconds


@dataclass(frozen=True)
class Engine:
    """A model in one engine.

    Attributes:
        run: runs it on inputs.
        bytes: what it takes on disk.
        path: what the engine loads: a directory, or an ONNX file.
    """

    run: Run
    bytes: int
    path: Path


def prepare_torch(model: BenchModel, engine: str, folder: Path) -> Engine:
    """Return a model in one of PyTorch's engines, and save what that engine loads.

    Args:
        model: the model; left as it is.
        engine: one of `TORCH_ENGINES`.
        folder: where to save to.

    Returns:
        The engine. Its bytes are those of the safetensors file, or of the serialised state of an int8 model.
    """
    module = _converted(model.model, engine)
    if engine == "torch-int8":  # its state holds packed weights, which safetensors cannot; loaded as fp32
        buffer = io.BytesIO()
        with _quiet_about_quantization():
            torch.save(module.state_dict(), buffer)
        size = len(buffer.getvalue())
        model.model.save_pretrained(folder)
    else:
        module.save_pretrained(folder)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return Engine(torch_runner(module, model.options), size, folder)


def load_torch(path: str, engine: str, threads: int) -> nn.Module:
    """Return the model that `prepare_torch` saved, as its engine runs it.

    Args:
        path: the directory.
        engine: one of `TORCH_ENGINES`.
        threads: threads of one run.

    Returns:
        The model, in eval mode.
    """
    torch.set_num_threads(threads)
    architectures = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))["architectures"]
    token = "TokenClassification" in architectures[0]
    model_class: Any = AutoModelForTokenClassification if token else AutoModelForSequenceClassification
    dtype = torch.bfloat16 if engine == "torch-bf16" else torch.float32
    model = model_class.from_pretrained(path, dtype=dtype, trust_remote_code=False).eval()
    return _converted(model, engine, inplace=True)


def torch_runner(module: nn.Module, options: Mapping[str, Any]) -> Run:
    """Return what runs a PyTorch model on inputs.

    Args:
        module: the model.
        options: further arguments of its forward.

    Returns:
        A function of the inputs.
    """

    def run(inputs: Inputs) -> object:
        with torch.inference_mode():  # from_numpy copies nothing
            return module(**{name: torch.from_numpy(values) for name, values in inputs.items()}, **options)

    return run


def trace(model: BenchModel) -> ModelProto:
    """Return a model as an ONNX graph in fp32."""
    from minialbert.deploy.onnx.trace import trace_onnx

    return trace_onnx(model.model, model.head, num_iterations=model.choice.num_iterations)


def prepare_onnx(graph: ModelProto, engine: str, folder: Path, threads: int) -> Engine:
    """Return a traced model in one of ONNX Runtime's engines, and save what that engine loads.

    Args:
        graph: what `trace` returned; left as it is.
        engine: one of `ONNX_ENGINES`.
        folder: where to save to; made.
        threads: threads of one run.

    Returns:
        The engine. Its bytes are those of `model.onnx`.
    """
    import onnx

    from minialbert.deploy.onnx.int8 import quantize_int8
    from minialbert.deploy.onnx.trace import finish_fp32

    own = onnx.ModelProto()
    own.CopyFrom(graph)
    if engine == "onnx-int8":
        quantize_int8(own)
    else:
        finish_fp32(own)
    folder.mkdir(parents=True)
    path = folder / "model.onnx"
    onnx.save(own, path)
    del own
    session = load_session(path, threads)
    return Engine(lambda inputs: session.run(None, inputs), path.stat().st_size, path)


def measure_memory(model: BenchModel, name: str, engine: Engine, threads: int) -> int | None:
    """Return the peak memory of a process that loads a model and runs it three times at batch 1, in bytes.

    The whole process counts: Python, the engine's own code, mapped files. For ONNX Runtime that is a process
    without torch. torch-int8 loads fp32 weights and quantises them, as torch wants it, which counts too.

    Args:
        model: the model.
        name: of the engine.
        engine: what is loaded.
        threads: threads of one run.

    Returns:
        The peak; None where the system does not tell.

    Raises:
        RuntimeError: if that process fails.
    """
    request = {
        "engine": name,
        "path": str(engine.path),
        "threads": threads,
        "options": model.options,
        "inputs": model.inputs,
        "vocabulary": model.model.config.vocab_size,
        "padding": getattr(model.model.config, "pad_token_id", None),
        "length": memory_length(model),
        "runs": _MEMORY_RUNS,
    }
    package = Path(__file__).resolve().parents[1]
    path = os.pathsep.join(filter(None, (str(package.parent), os.environ.get("PYTHONPATH"))))
    # -P: the script's own folder is this package, whose module names must not hide others.
    command = [sys.executable, "-P", bench_memory.__file__, json.dumps(request)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=_MEMORY_LIMIT,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"the process that measures memory failed: {lines[-1]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert answer["torch"] == (name in TORCH_ENGINES)
    peak: int | None = answer["peak_bytes"]
    return peak


def memory_length(model: BenchModel) -> int:
    """Return the length at which memory is measured: 128, or the model's longest."""
    return min(_MEMORY_LENGTH, model.max_length)


def quantized_backend() -> str | None:
    """Return whose int8 kernels torch uses for `torch-int8`."""
    supported = torch.backends.quantized.supported_engines
    return next((backend for backend in _BACKENDS if backend in supported), None)


def _converted(model: Any, engine: str, *, inplace: bool = False) -> Any:
    if engine == "torch-fp32":
        return model
    if engine == "torch-bf16":
        return (model if inplace else copy.deepcopy(model)).to(torch.bfloat16)
    backend = quantized_backend()
    if backend is None:
        raise RuntimeError("this build of torch has no int8 kernels")
    torch.backends.quantized.engine = backend
    with _quiet_about_quantization():
        # Of torch itself as long as it is there: torchao, where it is moving to, is one more dependency.
        from torch.ao.quantization import quantize_dynamic

        return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=inplace)


@contextlib.contextmanager
def _quiet_about_quantization() -> Iterator[None]:
    """Leave out torch's announcements that torch.ao.quantization and its storages are to go."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=UserWarning, message=".*(TypedStorage|quantiz).*")
        yield


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


@dataclass(frozen=True)
class ModelChoice:
    """A model as it was asked for.

    Attributes:
        name: what the record calls it.
        source: a name in `SHAPES`, "config:" and a file, or a directory or hub id.
        num_iterations: depth of a recursive model; None for its own.
    """

    name: str
    source: str
    num_iterations: int | None = None

    @property
    def shown(self) -> str:
        """The source without the folders of a local path."""
        if self.source in SHAPES:
            return self.source
        if self.source.startswith(_CONFIG):
            return Path(self.source.removeprefix(_CONFIG)).name
        return display_name(self.source) or self.source


@dataclass(frozen=True)
class BenchModel:
    """A model that is ready to run.

    Attributes:
        choice: how it was asked for.
        model: in fp32 and eval mode.
        head: "sequence-classification" or "token-classification".
        inputs: names of the inputs that it takes.
        max_length: its longest input, in tokens.
        parameters: how many it has, shared ones counted once.
    """

    choice: ModelChoice
    model: PreTrainedModel
    head: str
    inputs: tuple[str, ...]
    max_length: int
    parameters: int

    @property
    def options(self) -> dict[str, Any]:
        """What its forward is called with beside the inputs."""
        depth = self.choice.num_iterations
        return {} if depth is None else {"num_iterations": depth}


def parse_models(values: Sequence[str]) -> list[ModelChoice]:
    """Return the models that `--models` names.

    Args:
        values: each "SOURCE", "NAME=SOURCE", "SOURCE@K" or "NAME=SOURCE@K", K being a number of iterations.

    Returns:
        One choice per value.

    Raises:
        UserError: none is given, a depth is below 1, or two have one name.
    """
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

    Args:
        choice: which.
        seed: of random weights.

    Returns:
        The model.

    Raises:
        UserError: no such model, a damaged one, or a depth for one that is not recursive.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if choice.source in SHAPES:
            model = _from_config(SHAPES[choice.source]())
        elif choice.source.startswith(_CONFIG):
            model = _from_config(_read_config(choice.source.removeprefix(_CONFIG)))
        else:
            model = _from_checkpoint(choice.source)
    is_recursive = model.config.model_type == MiniAlbertConfig.model_type
    if is_recursive:
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
        sum(parameter.numel() for parameter in model.parameters()),
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


def _from_checkpoint(name: str) -> PreTrainedModel:
    try:
        config = load_encoder_config(name)
    except UserError as error:
        if Path(name).exists():
            raise
        raise UserError(f"{error}. Names that need no files: {', '.join(SHAPES)}") from error
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


_DASH = "–"


@dataclass(frozen=True)
class BenchTable:
    """A part of the result, to print.

    Attributes:
        title: what it shows.
        header: names of the columns.
        rows: one per model and engine, in the same order in every table.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(record: Mapping[str, Any]) -> list[BenchTable]:
    """Return a record as tables: size, latency, throughput.

    Args:
        record: what `benchmark` returned.

    Returns:
        The tables; a dash stands for what could not be measured.
    """
    rows = [(model, engine) for model, engines in record["metrics"].items() for engine in engines]
    cells = {(model, engine): record["metrics"][model][engine] for model, engine in rows}
    size = tuple(
        (
            *pair,
            f"{record['models'][pair[0]]['parameters'] / 1e6:.2f} M",
            _megabytes(cells[pair]["bytes"]),
            _megabytes(cells[pair]["peak_memory_bytes"]),
        )
        for pair in rows
    )
    lengths, batch = record["settings"]["lengths"], record["settings"]["batch_size"]
    reference = f"{record['reference']['model']} in {record['reference']['engine']}"
    against = f"x: times as fast as {reference}"
    header = ("model", "engine", *(name for length in lengths for name in (f"{length} tokens", "x")))

    def timing_rows(size: int, figure: Callable[[Mapping[str, Any]], str]) -> tuple[tuple[str, ...], ...]:
        found = []
        for pair in rows:
            by_length = {t["length"]: t for t in cells[pair]["timings"] if t["batch_size"] == size}
            parts = [part for length in lengths for part in _figures(by_length.get(length), figure)]
            found.append((*pair, *parts))
        return tuple(found)

    return [
        BenchTable("Size", ("model", "engine", "parameters", "MB on disk", "peak memory, MB"), size),
        BenchTable(
            f"Latency: batch 1, median ms ({against})",
            header,
            timing_rows(1, lambda timing: _milliseconds(timing["seconds"]["median"])),
        ),
        BenchTable(
            f"Throughput: batch {batch}, tokens/s ({against})",
            header,
            timing_rows(batch, lambda timing: f"{timing['tokens_per_second']:,.0f}"),
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


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}" if seconds >= 0.01 else f"{1e3 * seconds:.2f}"


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
        models: see `bench.parse_models`; the first, in the first engine, is what others are compared with.
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
