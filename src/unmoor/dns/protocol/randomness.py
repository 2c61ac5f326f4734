"""Unpredictable numbers without bias, from the operating system's source, many at a time.

Never a generator that can be predicted from what it gave: a client sees each address that is drawn, and
the state of the Mersenne twister follows from 624 of its outputs.
"""

from __future__ import annotations

import os

#: How many numbers one call of the operating system yields.
BATCH = 256


def numbers_below(bound: int) -> list[int]:
    """Draw about BATCH numbers, each uniform in 0 .. bound - 1.

    Fewer when `bound` is no power of two: a draw at or above it is thrown away (rejection sampling), since
    a remainder would favour the low numbers. More than half of the draws are kept; at least one number is
    always returned.
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
