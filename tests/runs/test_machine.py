"""The allocator settings of CPU training."""

from __future__ import annotations

import subprocess
import sys

import pytest

from minialbert.runs import machine

# Frees and allocates the same two blocks of 64 MB eight times, and counts the page faults of all rounds but the first.
_SCRIPT = """
import resource, sys
from minialbert.runs.machine import keep_freed_memory, release_freed_memory
import torch
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for count in range(8):
    if count == 1:
        before = faults()
    block = torch.ones(16_000_000)
    other = block.exp()
    del block, other
    if sys.argv[2] == "release":
        release_freed_memory()
print(faults() - before)
"""


def faults(*arguments: str) -> int:
    answer = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    return int(answer.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
def test_memory_that_is_freed_is_used_again_without_page_faults():
    default, kept, released = (
        faults(*arguments) for arguments in (("no", "no"), ("keep", "no"), ("keep", "release"))
    )
    assert kept < default / 2
    assert released > 2 * kept


def test_bf16_products_are_timed_against_fp32(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: float(next(clock)))
    assert machine.bf16_speed(8, 16, 4) == 1.0  # by a clock that ticks once a look
