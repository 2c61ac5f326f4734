"""Unbiased random numbers from the operating system's source, in batches.

A generator that can be predicted from its output is unsuitable: clients see each address that is drawn, and
624 outputs of the Mersenne Twister reveal its state.
"""

from __future__ import annotations

import os

#: Numbers drawn by one system call.
BATCH = 256


def numbers_below(bound: int) -> list[int]:
    """Return between 1 and BATCH numbers, each uniform in 0 .. bound - 1.

    Draws at or above `bound` are rejected (rejection sampling), because a remainder would favour low
    numbers. On average more than half of the draws are kept; if `bound` is a power of two, all are.
    """
    bits = (bound - 1).bit_length()
    mask = (1 << bits) - 1
    size = (bits + 7) // 8
    if not size:
        return [0] * BATCH
    found: list[int] = []
    while not found:
        raw = os.urandom(size * BATCH)
        drawn = [int.from_bytes(raw[at : at + size], "big") & mask for at in range(0, len(raw), size)]
        found = drawn if bound == mask + 1 else [number for number in drawn if number < bound]
    return found
