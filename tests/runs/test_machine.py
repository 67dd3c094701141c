"""The allocator settings of CPU training."""

from __future__ import annotations

import subprocess
import sys

import pytest

from minialbert.runs import device

# Frees and allocates the same two blocks of 64 MB again and again, and counts the page faults of the last eight rounds:
# as glibc does it, with what is freed kept, and with that handed back. The heap grows for up to five rounds before.
_SCRIPT = """
import resource
from minialbert.runs.machine import keep_freed_memory, release_freed_memory
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def rounds(release):
    for count in range(18):
        if count == 10:
            before = faults()
        block = torch.ones(16_000_000)
        other = block.exp()
        del block, other
        if release:
            release_freed_memory()
    return faults() - before
default = rounds(False)
assert keep_freed_memory()
print(default, rounds(False), rounds(True))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
def test_memory_that_is_freed_is_used_again_without_page_faults():
    command = [sys.executable, "-c", _SCRIPT]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    default, kept, released = map(int, answer.stdout.split())
    assert kept < default / 2
    assert released > 2 * kept


def test_bf16_products_are_timed_against_fp32(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(device.time, "perf_counter", lambda: float(next(clock)))
    assert device.bf16_speed(8, 16, 4) == 1.0  # by a clock that ticks once a look
