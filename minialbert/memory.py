"""Memory that a training step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import sys

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tell glibc's allocator not to hand large blocks back to the system when they are freed.

    A step allocates the same large tensors as the one before. By default each of them is mapped anew, and
    every page faults once: element-wise operations on logits take about four times as long.

    Returns:
        Whether the allocator took the setting; False anywhere but on Linux with glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another libc
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
