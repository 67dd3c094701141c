"""What runs a model in one engine: inputs, PyTorch's engines; and as a script, the engine's peak memory.

The script is started by its path, so that nothing of the package, which needs torch, is imported for ONNX Runtime. For
PyTorch's engines it imports what they need and no more, which would count too.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Inputs = dict[str, NDArray[np.int64]]
_BACKENDS = ("x86", "onednn", "fbgemm", "qnnpack")  # of torch's int8 kernels, best first


def make_inputs(
    names: tuple[str, ...], vocabulary: int, padding: int | None, batch: int, length: int, seed: int = 0
) -> Inputs:
    """Return inputs of random tokens without padding, int64 (batch, length) each.

    The padding token is not drawn: RoBERTa's kin count positions by it.
    """
    tokens = np.setdiff1d(np.arange(vocabulary), [] if padding is None else [padding])
    shape = (batch, length)
    ids = np.random.default_rng(seed).choice(tokens, shape).astype(np.int64)
    every = {
        "input_ids": ids,
        "attention_mask": np.ones(shape, np.int64),
        "token_type_ids": np.zeros(shape, np.int64),
    }
    return {name: every[name] for name in names}


def load_torch(path: str, engine: str, threads: int) -> Any:
    """Return a classifier of a folder, in eval mode, as one of PyTorch's engines runs it."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

    import minialbert  # noqa: F401 - registers our models

    torch.set_num_threads(threads)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    token = "TokenClassification" in config.architectures[0]
    model_class: Any = AutoModelForTokenClassification if token else AutoModelForSequenceClassification
    dtype = torch.bfloat16 if engine == "torch-bf16" else torch.float32
    model = model_class.from_pretrained(path, dtype=dtype, trust_remote_code=False).eval()
    return converted(model, engine, inplace=True)


def torch_runner(module: Any, options: Mapping[str, Any]) -> Callable[[Inputs], object]:
    """Return what runs a PyTorch model on inputs, with further arguments of its forward."""
    import torch

    def run(inputs: Inputs) -> object:
        with torch.inference_mode():  # from_numpy copies nothing
            return module(**{name: torch.from_numpy(values) for name, values in inputs.items()}, **options)

    return run


def quantized_backend() -> str | None:
    """Return whose int8 kernels torch uses for `torch-int8`."""
    import torch

    supported = torch.backends.quantized.supported_engines
    return next((backend for backend in _BACKENDS if backend in supported), None)


def converted(model: Any, engine: str, *, inplace: bool = False) -> Any:
    """Return a model as one of PyTorch's engines runs it; the model itself stays as it is, unless `inplace`."""
    import torch
    from torch import nn

    if engine == "torch-fp32":
        return model
    if engine == "torch-bf16":
        return (model if inplace else copy.deepcopy(model)).to(torch.bfloat16)
    backend = quantized_backend()
    if backend is None:
        raise RuntimeError("this build of torch has no int8 kernels")
    torch.backends.quantized.engine = backend
    with quiet_about_quantization():
        # Of torch itself as long as it is there: torchao, where it is moving to, is one more dependency.
        from torch.ao.quantization import quantize_dynamic

        return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=inplace)


@contextlib.contextmanager
def quiet_about_quantization() -> Iterator[None]:
    """Leave out torch's announcements that torch.ao.quantization and its storages are to go."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=UserWarning, message=".*(TypedStorage|quantiz).*")
        yield


def peak_bytes() -> int | None:
    """Return the most memory that this process has held, mapped files included; None where it cannot be told."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's figure would include what the parent held when it started this process
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _load(request: Mapping[str, Any]) -> Callable[[Inputs], object]:
    if request["engine"].startswith("onnx"):
        from minialbert_runtime.session import open_session

        session = open_session(request["path"], request["threads"], rests=True)
        return lambda inputs: session.run(None, inputs)
    module = load_torch(request["path"], request["engine"], request["threads"])
    return torch_runner(module, request["options"])


def main() -> None:
    """Load what the request (JSON, first argument) names, run it, and write the peak as JSON."""
    request = json.loads(sys.argv[1])
    run = _load(request)
    inputs = make_inputs(
        tuple(request["inputs"]), request["vocabulary"], request["padding"], 1, request["length"]
    )
    for _ in range(request["runs"]):
        run(inputs)
    sys.stdout.write(json.dumps({"peak_bytes": peak_bytes(), "torch": "torch" in sys.modules}) + "\n")


if __name__ == "__main__":
    main()
