"""A process that holds a model in one engine and times it: requests and answers are lines of JSON.

It is started by its path, so that an engine without torch pays nothing for what the package imports.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Inputs = dict[str, NDArray[np.int64]]
PRODUCTS = "products"  # in place of an engine: the rates of matrix products
STATIC = "numpy"  # the engine of static vectors, whose width stands in place of a path
_BACKENDS = ("x86", "onednn", "fbgemm", "qnnpack")  # of torch's int8 kernels, best first
_TURN, _MOST = 0.2, 20  # seconds and runs of a turn
_LONG = 0.25  # seconds of a run that needs no other to warm up
_PRODUCT = 1024, 768, 3072  # rows, inputs, outputs: a large batch meets the widest matrix of a BERT-base


def timed_runs(run: Callable[[], object], *, new: bool) -> list[float]:
    """Return the seconds of each run in a turn; one that only warms up is left out, and so is the first of a kind."""

    def once() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    first = once()
    seconds = [first] if first >= _LONG and not new else [once()]
    while sum(seconds) < _TURN and len(seconds) < _MOST:
        seconds.append(once())
    return seconds


def make_inputs(
    names: Sequence[str], vocabulary: int, padding: int | None, seed: int, batch: int, length: int
) -> Inputs:
    """Return inputs of random tokens without padding, int64 (batch, length) each.

    The padding token is not drawn: RoBERTa's kin count positions by it.
    """
    tokens = np.setdiff1d(np.arange(vocabulary), [] if padding is None else [padding])
    ids = np.random.default_rng(seed).choice(tokens, (batch, length)).astype(np.int64)
    every = {
        "input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids),
    }  # fmt: skip
    return {name: every[name] for name in names}


def load_torch(path: str, engine: str) -> Any:
    """Return a classifier of a folder, in eval mode, as one of PyTorch's engines runs it."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

    import minialbert  # noqa: F401 - registers our models

    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    token = "TokenClassification" in config.architectures[0]
    model_class: Any = AutoModelForTokenClassification if token else AutoModelForSequenceClassification
    dtype = torch.bfloat16 if engine == "torch-bf16" else torch.float32
    model = model_class.from_pretrained(path, dtype=dtype, trust_remote_code=False).eval()
    return quantized(model) if engine == "torch-int8" else model


def quantized(model: Any) -> Any:
    """Return a model with PyTorch's own int8, in place."""
    import torch

    supported = torch.backends.quantized.supported_engines
    torch.backends.quantized.engine = next(name for name in _BACKENDS if name in supported)
    with _quiet_about_quantization():
        # Of torch itself as long as it is there: torchao, where it is moving to, is one more dependency.
        from torch.ao.quantization import quantize_dynamic

        return quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)


@contextlib.contextmanager
def _quiet_about_quantization() -> Iterator[None]:
    """Leave out torch's announcements that torch.ao.quantization and its storages are to go."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=UserWarning, message=".*(TypedStorage|quantiz).*")
        yield


def torch_runner(module: Any, options: Mapping[str, Any]) -> Callable[[Inputs], object]:
    """Return what runs a PyTorch model on inputs, with further arguments of its forward."""
    import torch

    def run(inputs: Inputs) -> object:
        with torch.inference_mode():  # from_numpy copies nothing
            return module(**{name: torch.from_numpy(values) for name, values in inputs.items()}, **options)

    return run


def static_classifier(width: int, vocabulary: int, seed: int) -> tuple[Callable[[Inputs], object], int]:
    """Return what runs a linear layer of two labels on the mean of tokens' vectors, and its bytes."""
    random = np.random.default_rng(seed)
    table, layer = (random.standard_normal((rows, width), np.float32) for rows in (vocabulary, 2))
    bias = np.zeros(2, np.float32)
    size = table.nbytes + layer.nbytes + bias.nbytes
    return lambda inputs: table[inputs["input_ids"]].mean(axis=1) @ layer.T + bias, size


def product_rates(threads: int) -> dict[str, float]:
    """Return the rate of matrix products of each type in torch's kernels, 10^9 operations a second: the ceilings."""
    import torch

    torch.set_num_threads(threads)
    rows, inputs, outputs = _PRODUCT
    left, right = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    half = left.bfloat16(), right.bfloat16()
    whole = (10 * left).to(torch.int8), (10 * right).to(torch.int8)
    products = {
        "fp32": lambda: left @ right.T, "bf16": lambda: half[0] @ half[1].T,
        "int8": lambda: torch._int_mm(whole[0], whole[1].T),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in products}
    for turn in range(3):
        for name, product in products.items():
            seconds[name] += timed_runs(product, new=not turn)
    work = 2e-9 * rows * inputs * outputs
    return {name: work / statistics.median(taken) for name, taken in seconds.items()}


def peak_bytes() -> int | None:
    """Return the most memory that this process has held, mapped files included; None where Linux does not tell it."""
    status = Path("/proc/self/status")
    # getrusage's figure would include what the parent held when it started this process.
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def _load(request: Mapping[str, Any]) -> tuple[Callable[[Inputs], object], Callable[[], int]]:
    """Return what runs a model, and what tells its bytes on disk."""
    path, engine, threads = (request[name] for name in ("path", "engine", "threads"))
    if engine == STATIC:
        run, size = static_classifier(int(path), request["vocabulary"], request["seed"])
        return run, lambda: size
    if engine.startswith("torch"):
        import torch

        torch.set_num_threads(threads)
        module = load_torch(path, engine)
        return torch_runner(module, request["options"]), partial(_state_bytes, module)
    return _Session(path, engine, threads), lambda: Path(path).stat().st_size


class _Session:
    """Runs a graph's inputs as the runtime does, and those of int8-dynamic as they come."""

    def __init__(self, path: str, engine: str, threads: int) -> None:
        from minialbert_runtime.session import OpenVinoSession, open_session, rows_per_run

        kind = engine.partition("-")[0]
        self._open: Callable[[int], Any] = partial(open_session, path, engine=kind)
        if engine == "openvino-bf16":
            self._open = partial(OpenVinoSession, path, precision="bf16")
        self._threads = threads
        self._session = self._open(threads)
        self._names = [one.name for one in self._session.get_inputs()]
        self._rows = None if engine.endswith("dynamic") else partial(rows_per_run, engine=kind)
        self._single = self._session if kind != "onnx" else None

    def prepare_many(self) -> None:
        """Open the session of one thread, as long as the file is there."""
        if self._single is None and self._threads > 1 and self._rows is not None:
            self._single = self._open(1)

    def __call__(self, inputs: Inputs) -> object:
        from minialbert_runtime.session import run_side_by_side

        rows, length = inputs[self._names[0]].shape
        step = rows if self._rows is None else self._rows(length)
        starts = range(0, rows, step)
        parts = [{name: inputs[name][at : at + step] for name in self._names} for at in starts]
        if len(parts) == 1 or self._single in (None, self._session):
            return [self._session.run(None, part) for part in parts]
        return run_side_by_side(partial(self._single.run, None), parts, self._threads)


def _state_bytes(module: Any) -> int:
    import torch

    buffer = io.BytesIO()
    with _quiet_about_quantization():
        torch.save(module.state_dict(), buffer)
    return len(buffer.getvalue())


def _answers(request: Mapping[str, Any]) -> Iterator[Any]:
    """Yield facts about a model, then for each batch size and length from standard input the seconds of runs."""
    if request["engine"] == PRODUCTS:
        yield product_rates(request["threads"])
        return
    own = (request[name] for name in ("inputs", "vocabulary", "padding", "seed"))
    feed = cache(partial(make_inputs, *own))
    run, size = _load(request)
    for _ in range(3):
        run(feed(1, request["length"]))
    facts = {"peak_memory_bytes": peak_bytes(), "torch": "torch" in sys.modules, "bytes": size()}
    if isinstance(run, _Session):
        run.prepare_many()
    yield facts
    seen = set()
    for line in sys.stdin:
        yield timed_runs(partial(run, feed(*json.loads(line))), new=line not in seen)
        seen.add(line)


def main() -> None:
    """Answer what the request (JSON, first argument) and the lines after it ask for, until one of them fails."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        for found in _answers(json.loads(sys.argv[1])):
            channel.write(json.dumps({"answer": found}) + "\n")
            channel.flush()
    except Exception as error:  # of engines, without a common base
        channel.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")


if __name__ == "__main__":
    main()
