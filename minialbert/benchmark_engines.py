"""Engines to benchmark a model with, and what each of them takes on disk and in memory.

Every model goes through the same exporter and the same quantiser, ours, which store a shared weight once and undo
fusions that cost time: the models that are compared with profit from that as much as the recursive ones.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from . import benchmark_memory
from .benchmark_memory import Inputs, load_session

if TYPE_CHECKING:
    from onnx import ModelProto

    from .benchmark_models import BenchModel

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
    from .onnx_tracing import trace_onnx

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

    from .onnx_int8 import quantize_int8
    from .onnx_tracing import finish_fp32

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
    package = Path(__file__).resolve().parent
    path = os.pathsep.join(filter(None, (str(package.parent), os.environ.get("PYTHONPATH"))))
    # -P: the script's own folder is this package, whose module names must not hide others.
    command = [sys.executable, "-P", benchmark_memory.__file__, json.dumps(request)]
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
