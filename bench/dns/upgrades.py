"""Upgrade the server 20 times under 20,000 queries a second: `python bench/dns/upgrades.py`.

The two releases that take over from each other are programs of the same code.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

# Helpers that benches share with each other and with the tests.
sys.path.extend(str(Path(__file__).parents[2] / name) for name in ("bench", "tests"))
from figures import Figure
from ours import report, row
from reloads import RATE, Client, Seen, generation

from support.dns_release import Upgradable
from unmoor.dns.server.control import ask


def programs(directory: Path) -> list[str]:
    """Write the programs of two releases; returns their paths."""
    found = []
    for name in ("one", "two"):
        program = directory / name
        program.write_text(f"#!{sys.executable}\nfrom unmoor.commands import main\nmain()\n")
        program.chmod(0o755)
        found.append(str(program))
    return found


def measure(upgrades: int, rate: int) -> tuple[Seen, list[float]]:
    """Upgrade back and forth; returns what the clients saw, and the seconds that each upgrade took."""
    took = []
    with tempfile.TemporaryDirectory() as name:
        releases = programs(Path(name))
        server = Upgradable(Path(name), generation(1), releases[0])
        client = Client(rate)
        try:
            server.wait()
            client.start()
            for number in range(upgrades):
                before = time.monotonic()
                reply = ask(server.control, "upgrade", releases[(number + 1) % 2])
                took.append(time.monotonic() - before)
                if not reply.done:
                    raise SystemExit("\n".join(reply.lines))
        finally:
            client.enough.set()
            if client.ident:
                client.join()
            server.stop()
    return client.seen, took


def rows(upgrades: int = 20, rate: int = RATE) -> list[Figure]:
    """Measure; returns the figures."""
    seen, took = measure(upgrades, rate)
    wrong, reached = seen.lost + seen.mixed, seen.answered / seen.seconds
    what = f"{upgrades} new releases under {rate:,} q/s: "
    return [
        row(f"{what}queries lost or wrong", wrong, "", "<= 0", wrong == 0),
        row(f"{what}answered", seen.answered, ""),
        row(f"{what}answered a second", reached, "1/s", f">= {0.95 * rate:.0f}", reached >= 0.95 * rate),
        row(f"{what}an upgrade, median", statistics.median(took), "s"),
        row(f"{what}an upgrade, longest", max(took), "s"),
        row(f"{what}latency, longest", max(seen.latencies) * 1000, "ms"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--upgrades", type=int, default=20)
    parser.add_argument("--rate", type=int, default=RATE)
    chosen = parser.parse_args()
    sys.exit(report("dns-upgrades", rows(chosen.upgrades, chosen.rate)))


if __name__ == "__main__":
    main()
