"""ONNX Runtime's sessions, with the same options wherever a graph is run."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from .graph import check_graph

_FATAL = 4  # ONNX Runtime's log level: its errors come as exceptions, and need not be printed too


def open_session(
    graph: str | Path | bytes, threads: int = 0, *, rests: bool = False
) -> onnxruntime.InferenceSession:
    """Return a session on the CPU of a file or a serialised graph; `threads` of one run, 0 for its own choice.

    By default a session's threads go on spinning after a run, for the next one, and would take the cores from
    whatever runs between. With `rests` they stop when a run returns; within a run they spin as they always do.
    (Without spinning altogether every operator would have to wake them.) A file may come from anywhere: ValueError
    where it holds what no export has, `graph.check_graph`.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL
    if rests:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    if not isinstance(graph, bytes):
        check_graph(Path(graph))
    source = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
