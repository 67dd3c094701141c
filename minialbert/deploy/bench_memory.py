"""What a benchmark needs without torch: inputs, ONNX Runtime sessions, and as a script the peak memory of one engine.

The script is started by its path, so that nothing of the package, which needs torch, is imported for ONNX Runtime.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Inputs = dict[str, NDArray[np.int64]]
_FATAL = 4  # ONNX Runtime's log level: its errors come as exceptions


def make_inputs(
    names: tuple[str, ...], vocabulary: int, padding: int | None, batch: int, length: int, seed: int = 0
) -> Inputs:
    """Return inputs of random tokens without padding.

    Args:
        names: which of `input_ids`, `attention_mask` and `token_type_ids` are wanted.
        vocabulary: tokens to draw from.
        padding: a token that is not drawn: RoBERTa's kin count positions by it.
        batch: rows.
        length: tokens per row.
        seed: of the draw.

    Returns:
        int64 (batch, length) each.
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


def load_session(path: str | Path, threads: int) -> Any:
    """Return an ONNX Runtime session on the CPU.

    By default a session's threads go on spinning after a run, for the next one, and would take the cores from
    whichever engine is timed next. `force_spinning_stop` ends that when a run returns; within a run they spin as
    they always do. (Without spinning altogether every operator would have to wake them.)

    Args:
        path: an ONNX file.
        threads: threads of one run.

    Returns:
        The session.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


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
        session = load_session(request["path"], request["threads"])
        return lambda inputs: session.run(None, inputs)
    from minialbert.deploy.bench import load_torch, torch_runner

    module = load_torch(request["path"], request["engine"], request["threads"])
    run = torch_runner(module, request["options"])
    return lambda inputs: run(inputs)


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
