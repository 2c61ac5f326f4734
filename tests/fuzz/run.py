"""Fuzz the answering of queries: each packet gets a valid reply or none, and memory does not grow.

    python tests/fuzz/run.py [--count N] [--seed N]             mutations of the corpus and of the seeds
    python tests/fuzz/run.py --atheris DIRECTORY [--count N]    guided by coverage

The second form needs atheris (PyPI), which is not a dependency. It leaves the packets that reach more code in
the directory: then run corpus.py. A failure prints the packet: add it to seeds.py.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import corpus
import seeds

#: One packet in so many is also read by dnspython, which is slow.
THOROUGH = 100
#: Maximum growth of the process after the first quarter, KiB: room for bounded caches.
ROOM = 8192


def main() -> None:
    """Run, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--atheris", type=Path, metavar="DIRECTORY")
    chosen = parser.parse_args()
    if chosen.atheris:
        guided(chosen.atheris, chosen.count)
    else:
        by_chance(chosen.count, chosen.seed)


def by_chance(count: int, seed: int) -> None:
    """Half are mutations, a quarter random octets behind a good header, a quarter two packets joined."""
    import harness

    chance = random.Random(seed)
    packets = [packet for _, packet in (*seeds.good(), *seeds.odd())] + corpus.read()
    started, early = time.monotonic(), 0
    for number in range(count):
        packet = chance.choice(packets)
        if number % 2:
            packet = seeds.mutated(chance, packet)
        elif number % 4:
            packet = packet[:12] + chance.randbytes(chance.randrange(80))
        else:
            other = chance.choice(packets)
            packet = packet[: chance.randrange(len(packet) + 1)] + other[chance.randrange(len(other) + 1) :]
        try:
            harness.one(packet, thorough=not number % THOROUGH)
        except Exception:
            print(f"seed {seed}, packet {number}: {packet.hex()}")
            raise
        if number == count // 4:
            early = memory()
    grown = memory() - early
    rate = count / (time.monotonic() - started)
    print(f"{count:,} packets, seed {seed}: all replies valid; {rate:,.0f}/s")
    print(f"{grown:,} KiB more memory than after the first quarter")
    if grown > ROOM:
        sys.exit("memory grows with the number of queries")


def memory() -> int:
    """Return the peak memory of this process, KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def guided(directory: Path, count: int) -> None:
    """Let libFuzzer search for packets that reach new code."""
    import atheris

    with atheris.instrument_imports(include=["unmoor.dns"]):
        import harness
    directory.mkdir(exist_ok=True)
    if not any(directory.iterdir()):
        begin = [packet for _, packet in (*seeds.good(), *seeds.odd())] + corpus.read()
        for number, packet in enumerate(begin):
            (directory / f"{number:04}").write_bytes(packet)
    done = iter(range(1, sys.maxsize))

    def one(packet: bytes) -> None:
        harness.one(packet, thorough=not next(done) % THOROUGH)

    words = ["-max_len=1500", "-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1", f"-runs={count}"]
    atheris.Setup([sys.argv[0], *words, str(directory)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
