"""Test that a million answers from a /24 are even, and independent of the answers before them.

`python bench/dns/uniformity.py [--queries N]` queries a server with two workers from some sockets. Answers
are ordered as each socket received them.
"""

from __future__ import annotations

import argparse
import math
import socket
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

# Helpers that benches share with each other and with the tests.
sys.path.extend(str(Path(__file__).parents[2] / name) for name in ("bench", "tests"))
from figures import Figure
from ours import document, query, report, row, serving

from unmoor.probe.results.statistics import chi_square

PORT = 5393
SOCKETS = 4
WINDOW = 32
CELLS = 256
LAGS = range(1, 9)
#: Standard deviations. With eight lags of random data, one exceeds this in one of two thousand runs.
MAX_CORRELATION = 4.0


def collect(count: int) -> bytes:
    """Return the last octets of `count` answers to one socket, in order."""
    found = bytearray()
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.connect(("127.0.0.1", PORT))
        while len(found) < count:
            for number in range(WINDOW):
                sock.send(query(number, len(found) % 100))
            for number in range(WINDOW):
                reply = sock.recv(512)
                # One worker answers a socket, in order; the pool is 198.18.0.0/24.
                if reply[:4] != bytes((0, number)) + b"\x84\0" or reply[-4:-1] != b"\xc6\x12\0":
                    raise ValueError(f"a wrong answer: {reply.hex()}")
                found.append(reply[-1])
    return bytes(found)


def ask(count: int) -> list[bytes]:
    """Query from all sockets at once."""
    sequences: list[bytes] = []
    each = -(-count // SOCKETS)
    threads = [threading.Thread(target=lambda: sequences.append(collect(each))) for _ in range(SOCKETS)]
    with serving(document(PORT, "198.18.0.0/24", 30, 100)):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if len(sequences) != SOCKETS:
        raise SystemExit("an answer was lost or wrong")
    return sequences


def correlation(sequences: Sequence[bytes], lag: int) -> float:
    """Serial correlation at this lag, in standard deviations: normal (0, 1) for random data."""
    mean = (CELLS - 1) / 2
    variance = (CELLS**2 - 1) / 12
    total = sum(
        (one - mean) * (other - mean)
        for each in sequences
        for one, other in zip(each, each[lag:], strict=False)
    )
    pairs = sum(len(each) - lag for each in sequences)
    return total / variance / math.sqrt(pairs)


def rows(count: int = 1_000_000) -> list[Figure]:
    """Measure; returns the figures."""
    sequences = ask(count)
    singles = Counter(b"".join(sequences))
    pairs = Counter(pair for each in sequences for pair in pairwise(each))
    spread = chi_square("addresses", [singles[cell] for cell in range(CELLS)], [1 / CELLS] * CELLS)
    cells = [(one, other) for one in range(CELLS) for other in range(CELLS)]
    following = chi_square("pairs", [pairs[cell] for cell in cells], [1 / len(cells)] * len(cells))
    scores = {lag: correlation(sequences, lag) for lag in LAGS}
    inside, what = "in 0.001 .. 0.999", "a million queries to a /24: "
    found = [
        row(f"{what}answers", sum(singles.values()), ""),
        row(f"{what}chi-square p", spread.p, "", inside, 0.001 <= spread.p <= 0.999),
        row(f"{what}addresses seen", len(singles), "", f">= {CELLS}", len(singles) == CELLS),
        row(f"{what}pairs, p", following.p, "", inside, 0.001 <= following.p <= 0.999),
    ]
    return found + [
        row(
            f"{what}correlation, lag {lag}",
            score,
            "sd",
            f"within {MAX_CORRELATION:.0f}",
            abs(score) < MAX_CORRELATION,
        )
        for lag, score in scores.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--queries", type=int, default=1_000_000)
    sys.exit(report("dns-uniformity", rows(parser.parse_args().queries)))


if __name__ == "__main__":
    main()
