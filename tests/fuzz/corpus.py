"""The corpus: packets that between them reach all of the answering half, one a line in corpus.txt, as hex.

`python tests/fuzz/corpus.py DIRECTORY` writes it anew from a directory of files that a fuzzer minimised.
"""

from __future__ import annotations

import sys
from pathlib import Path

FILE = Path(__file__).parent / "corpus.txt"


def read() -> list[bytes]:
    """Give all packets."""
    return [bytes.fromhex(line) for line in FILE.read_text(encoding="ascii").split()]


def main() -> None:
    """Replace the corpus; shortest first."""
    packets = {path.read_bytes() for path in Path(sys.argv[1]).iterdir()} - {b""}
    ordered = sorted(packets, key=lambda packet: (len(packet), packet))
    FILE.write_text("".join(f"{packet.hex()}\n" for packet in ordered), encoding="ascii")


if __name__ == "__main__":
    main()
