"""Random orders that are never written down: each position is computed when it is asked for.

A permutation of n things is a Feistel network over pairs (left, right), left below a and right below b, where
a x b is n rounded up: each round adds to one half a mixed function of the other, which can be undone, so no two
positions meet. A result of n or more goes through the network again (cycle walking); there are fewer than a
such pairs, so this is rare.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from math import isqrt

_ROUNDS = 8
_MASK = 2**64 - 1


def permuted(position: int, count: int, *, seed: int, epoch: int) -> int:
    """Returns what stands at a position of a random order of 0, ..., count - 1.

    The order is a function of (count, seed, epoch), and takes neither memory nor preparation.

    Args:
        position: in [0, count).
        count: length of the order, below 2^64.
        seed: in [0, 2^64).
        epoch: in [0, 2^64); another one gives another order.

    Returns:
        A number in [0, count), another one for each position.

    Raises:
        IndexError: there is no such position.
    """
    if not 0 <= position < count:
        raise IndexError(f"position {position} of {count}")
    width, height, keys = _network(count, seed, epoch)
    value = position
    while True:
        left, right = divmod(value, height)
        for even, odd in keys:
            left = (left + _mix(right ^ even)) % width
            right = (right + _mix(left ^ odd)) % height
        value = left * height + right
        if value < count:
            return value


@lru_cache(
    maxsize=4
)  # two, for batches that straddle the end of an epoch, of training and of a test beside it
def _network(count: int, seed: int, epoch: int) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    """Returns a, b and the keys of each pair of rounds."""
    width = isqrt(count - 1) + 1
    height = -(-count // width)
    words = b"".join(number.to_bytes(8, "little") for number in (seed, epoch, count))
    material = b"".join(
        hashlib.blake2b(words, digest_size=16, salt=pair.to_bytes(16, "little")).digest()
        for pair in range(_ROUNDS // 2)
    )
    keys = [int.from_bytes(material[i : i + 8], "little") for i in range(0, len(material), 8)]
    return width, height, tuple(zip(keys[::2], keys[1::2], strict=True))


def _mix(number: int) -> int:
    """Returns 64 well mixed bits of 64 (the finaliser of splitmix64)."""
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)
