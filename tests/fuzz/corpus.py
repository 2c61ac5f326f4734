"""The corpus: packets that together reach all code that answers queries, one per line of corpus.txt, in hex.

`python tests/fuzz/corpus.py DIRECTORY` rewrites it from its packets and those of a directory that a fuzzer
left. Shortest first, it keeps each packet that takes a step of the code that no packet before it took, or
that takes one more often (twice, four times and so on).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

FILE = Path(__file__).parent / "corpus.txt"
_CODE = "/unmoor/dns/"

#: From one line of a file to the next one that ran, and how often, as its number of bits.
Step = tuple[str, int, int, int]


def read() -> list[bytes]:
    """Return all packets."""
    return [bytes.fromhex(line) for line in FILE.read_text(encoding="ascii").split()]


def steps(run: Callable[[], None]) -> set[Step]:
    """Run `act`; returns the steps of the code that it took."""
    taken: Counter[tuple[str, int, int]] = Counter()
    at: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if event == "call" and _CODE not in frame.f_code.co_filename:
            return None
        taken[frame.f_code.co_filename, at.get(frame, 0), frame.f_lineno] += 1
        at[frame] = frame.f_lineno
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
    return {(*step, count.bit_length()) for step, count in taken.items()}


def main() -> None:
    """Replace the corpus."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import harness

    packets = {*read(), *(path.read_bytes() for path in Path(sys.argv[1]).iterdir())}
    known: set[Step] = set()
    kept = []
    for packet in sorted(packets, key=lambda packet: (len(packet), packet)):
        harness.one(packet)  # fills caches, so that cached steps do not count
        found = steps(lambda packet=packet: harness.one(packet))  # type: ignore[misc]
        if packet and not found <= known:
            known |= found
            kept.append(packet)
    FILE.write_text("".join(f"{packet.hex()}\n" for packet in kept), encoding="ascii")
    print(f"{len(kept)} of {len(packets)} packets, {len(known)} steps")


if __name__ == "__main__":
    main()
