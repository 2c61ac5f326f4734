"""The corpus: packets that between them reach all of the answering half, one a line in corpus.txt, as hex.

`python tests/fuzz/corpus.py DIRECTORY` rewrites it. Of the packets that it has and those in a directory
that a fuzzer left, the shortest first, it keeps each that takes a step of the code that none before it took,
or takes one more often (twice, four times and so on).
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
    """Give all packets."""
    return [bytes.fromhex(line) for line in FILE.read_text(encoding="ascii").split()]


def steps(run: Callable[[], None]) -> set[Step]:
    """Run, and say which steps of the code that took."""
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
        harness.one(packet)  # what is cached afterwards is of no interest
        found = steps(lambda packet=packet: harness.one(packet))  # type: ignore[misc]
        if packet and not found <= known:
            known |= found
            kept.append(packet)
    FILE.write_text("".join(f"{packet.hex()}\n" for packet in kept), encoding="ascii")
    print(f"{len(kept)} of {len(packets)} packets, {len(known)} steps")


if __name__ == "__main__":
    main()
