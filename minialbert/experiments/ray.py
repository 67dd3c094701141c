"""The pool of a grid on a Ray cluster: one task per cell, which starts the same process on some node."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minialbert.errors import UserError, failing_as, needs_extra, one_line
from minialbert.experiments import pool


class RayWorkers(pool.Workers):
    """Tasks of a Ray cluster at an address, which keeps what does not fit waiting; so many jobs share a node."""

    def __init__(self, address: str, jobs: int) -> None:
        self._ray = import_ray()
        self._owner = not self._ray.is_initialized()
        if self._owner:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent unasked
            options = {"include_dashboard": False} if address == "local" else {}
            silent = f"--ray {address}: no Ray cluster answers there"
            advice = "`ray start --head` starts one, --ray local runs an instance for this grid alone"
            with failing_as(silent, (ConnectionError, ValueError, RuntimeError), advice):
                self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        cpus, gpus = node_share(self._ray.nodes(), jobs)
        # The driver counts attempts itself, so that one that was killed is told from one that was stopped.
        self._task = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(run_on_node)
        self._threads = cpus
        self._running: dict[Any, pool.Job] = {}

    def start(self, job: pool.Job) -> None:
        """Hand a job to the cluster."""
        self._running[self._task.remote(asdict(job), self._threads)] = job

    def wait(self, seconds: float) -> list[tuple[pool.Job, pool.Outcome]]:
        """Return the jobs that ended, after that time at most."""
        ended, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        found = []
        for reference in ended:
            try:
                outcome = pool.Outcome(**self._ray.get(reference))
            except self._ray.exceptions.RayError as error:  # its node or its Ray worker is gone
                outcome = pool.Outcome("crashed", one_line(error))
            found.append((self._running.pop(reference), outcome))
        return found

    def stop(self) -> None:
        """Cancel all tasks, wait for what they save, and leave the cluster."""
        references = list(self._running)
        try:
            for reference in references:
                self._ray.cancel(reference, force=False)
            if references:
                self._ray.wait(references, num_returns=len(references), timeout=pool.GRACE_SECONDS + 5)
        finally:
            self._running.clear()
            if self._owner:
                self._ray.shutdown()


def import_ray() -> Any:
    """Return the module ray, or raise a `MissingExtraError`."""
    with needs_extra("ray", "--ray"):
        import ray
    return ray


def node_share(nodes: Iterable[dict[str, Any]], jobs: int) -> tuple[int, float]:
    """Return whole cores and GPUs (at most 1) of one cell, when so many share a node as `ray.nodes()` describes it.

    They are those of the smallest node that has any; a `UserError` if no node has a core to give.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    cpus = [node["CPU"] for node in alive if node.get("CPU", 0) >= 1]
    gpus = [node["GPU"] for node in alive if node.get("GPU", 0) >= 1]
    if not cpus:
        raise UserError("the Ray cluster has no node with a free core: add one, or leave out --ray")
    return max(1, int(min(cpus)) // jobs), min(1.0, min(gpus) / jobs) if gpus else 0.0


def run_on_node(values: dict[str, Any], threads: int) -> dict[str, Any]:
    """Run a job, given by its fields, on the machine that this is called on; return the fields of an `Outcome`."""
    job = pool.Job(**values)
    for path in (job.recipe_file, job.directory):
        if not Path(path).exists():
            advice = "give an --output (and run from a directory) on storage that all nodes share under the same path"
            mistake = f"{path} is not there on node {platform.node()}: with --ray, {advice}"
            return asdict(pool.Outcome("mistake", mistake))
    process = pool.start_process(job, threads)
    try:
        while process.poll() is None:  # in short waits, because Ray cancels between two bytecodes
            time.sleep(pool.POLL_SECONDS)
        return asdict(pool.outcome_of(job, process))
    finally:
        pool.end_processes([process])
