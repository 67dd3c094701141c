"""Sessions of each engine, with the same options wherever a graph is run."""

from __future__ import annotations

import os
import sys
import threading
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from .errors import UserError
from .graph import check_graph, with_uint8_weights
from .native import NativeSession, Port

_FATAL = 4  # ONNX Runtime's log level: its errors come as exceptions, and need not be printed too
# Of one run among many. A core that takes few texts through all iterations finds weights and activations in its cache.
_TOKENS = {"onnx": 256, "openvino": 1024, "native": 4096}
_TYPES = {"i64": "tensor(int64)", "f32": "tensor(float)"}  # OpenVINO's names and ONNX Runtime's
# An ONNX file: y = MatMulInteger(x, w), where x are uint8 (2, 4), and w four times 127 as int8.
_PRODUCT = b64decode(
    "CAg6WAoYCgF4CgF3EgF5Ig1NYXRNdWxJbnRlZ2VyEgFnKg8IBAgBEANCAXdKBH9/f39aEwoBeBIOCgwIAhIICgIIAgoCCARiEwoBeRIOCgwIBhIICgII"
    "AgoCCAFCBAoAEA0="
)

_Batch = TypeVar("_Batch")
_Result = TypeVar("_Result")


def open_session(
    graph: str | Path | bytes, threads: int = 0, *, engine: str = "onnx"
) -> onnxruntime.InferenceSession | OpenVinoSession | NativeSession:
    """Return a session on the CPU of a file or a serialised graph; `threads` of one run, 0 for its own choice.

    A file may come from anywhere: ValueError where it holds what no export has, `graph.check_graph`. Where the
    processor cuts sums, `cuts_sums`, weights are uint8 like the activations: those sums are slower, and whole.
    """
    if not isinstance(graph, bytes):
        check_graph(Path(graph))
    source = graph if isinstance(graph, bytes) else str(graph)
    if engine != "onnx":
        return (OpenVinoSession if engine == "openvino" else NativeSession)(source, threads)
    if cuts_sums():
        source = with_uint8_weights(graph if isinstance(graph, bytes) else Path(graph).read_bytes())
    return _onnx_session(source, threads)


@cache
def cuts_sums() -> bool:
    """Tell whether ONNX Runtime's products of uint8 with int8 add in 16 bits here and cut what is larger.

    They do on x86 processors with AVX2 and without VNNI. ONNX Runtime's own remedy, `session.x64quantprecision`, fails
    on graphs that use a weight more than once.
    """
    values = np.full((2, 4), 255, dtype=np.uint8)
    (sums,) = _onnx_session(_PRODUCT, 1).run(None, {"x": values})
    return bool((sums != 255 * 127 * 4).any())


def _onnx_session(source: str | bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL
    if _owner_of_the_arena() == os.getpid():
        options.add_session_config_entry("session.use_env_allocators", "1")
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@cache
def _owner_of_the_arena() -> int:
    """Return the process whose sessions take their working memory from one arena, and make that.

    With an arena each, most of what a second small model costs is working memory that waits for its next run, once it
    has had long texts. A child of this process gives each of its sessions its own: the lock of this one may be held in
    the moment of the fork.
    """
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    place = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(place, None)
    return os.getpid()


def rows_per_run(length: int, engine: str) -> int:
    """Return how many inputs of a length, in tokens, an engine takes at once where there are many."""
    return max(1, _TOKENS[engine] // max(1, length))


def run_side_by_side(
    run: Callable[[_Batch], _Result], batches: Sequence[_Batch], threads: int
) -> list[_Result]:
    """Return what `run`, on a session of one thread, makes of each batch, on several threads at a time.

    No thread waits for another within a run, and one session serves all of them.
    """
    contexts = [copy_context() for _ in batches]  # a service keeps there until when a request has time
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda context, batch: context.run(run, batch), contexts, batches))


def has_openvino() -> bool:
    """Tell whether OpenVINO is installed."""
    return find_spec("openvino") is not None


class OpenVinoSession:
    """A graph in OpenVINO, with those methods of ONNX Runtime's session that are used here.

    Threads may run it at the same time. What is not quantised is computed in fp32, whatever the processor has, or in
    the `precision` that is named.
    """

    def __init__(self, graph: str | bytes, threads: int = 0, precision: str = "f32") -> None:
        if not has_openvino():
            raise UserError("openvino is missing: pip install openvino, or choose the engine onnx")
        # The import would otherwise send an event over the network, and leave a file in the home directory.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino

        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1}
        core = openvino.Core()
        threading_ = {"INFERENCE_NUM_THREADS": threads} if threads else {}
        self._compiled = core.compile_model(core.read_model(graph), "CPU", settings | threading_)
        used = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != precision:
            raise UserError(f"OpenVINO has no {precision} on this processor, and would compute in {used}")
        self._of_thread = threading.local()

    def get_inputs(self) -> list[Port]:
        """Return names and types of the inputs."""
        return [_port(one) for one in self._compiled.inputs]

    def get_outputs(self) -> list[Port]:
        """Return names and types of the outputs."""
        return [_port(one) for one in self._compiled.outputs]

    def run(self, names: Sequence[str] | None, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the outputs of these names, or all."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        found = self._of_thread.request.infer(dict(inputs))
        return [np.asarray(found[name]) for name in names or [one.name for one in self.get_outputs()]]


def _port(node: Any) -> Port:
    kind = node.element_type.get_type_name()
    return Port(node.get_any_name(), _TYPES.get(kind, kind))
