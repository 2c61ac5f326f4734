"""Our server for a measurement, and where its figures go."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unmoor.dns.server.control import Reply, ask

RESULTS = Path(__file__).parents[1] / "results"
SOA = "$ORIGIN example.com.\n$TTL 30\n@ SOA ns1 h 1 7200 900 1209600 300\n@ NS ns1\nns1 A 198.18.0.53\n"


def document(port: int, prefix: str, ttl: int, names: int) -> dict[str, Any]:
    """One policy that answers `names` names, h0 and so on, from `prefix`, on loopback, by two workers."""
    return {
        "pop": "bench",
        "edge": "bench",
        "listen": ["127.0.0.1"],
        "port": port,
        "workers": 2,
        "pools": {"all": {"ipv4": [prefix]}},
        "policies": [{"name": "all", "answer": {"pool": "all", "ttl": ttl}}],
        "zones": [
            {"name": "example.com", "records": SOA, "hostnames": [{"names": [f"h{n}" for n in range(names)]}]}
        ],
    }


def query(ident: int, name: int) -> bytes:
    """Ask for the address of the name with this number."""
    label = b"h%d" % name
    question = bytes((len(label),)) + label + b"\7example\3com\0\0\1\0\1"
    return (ident & 0xFFFF).to_bytes(2, "big") + b"\0\0\0\1\0\0\0\0\0\0" + question


class Server:
    """A server that runs; `reload` brings another document into force, and waits until it is."""

    def __init__(self, directory: Path, first: dict[str, Any]) -> None:
        self._config, self._control = directory / "dns.json", directory / "control.sock"
        self._write(first)
        command = [sys.executable, "-c", "from unmoor.commands import main; main()", "dns", "serve"]
        log = directory / "log"
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [*command, "--config", str(self._config), "--control", str(self._control)], stderr=stream
            )
        while "serving" not in log.read_text():
            if self.process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.05)

    def _write(self, data: dict[str, Any]) -> None:
        fresh = self._config.with_suffix(".new")
        fresh.write_text(json.dumps(data))
        fresh.rename(self._config)

    def reload(self, data: dict[str, Any]) -> Reply:
        self._write(data)
        reply = ask(self._control, "reload")
        if not reply.done:
            raise SystemExit("\n".join(reply.lines))
        return reply


@contextmanager
def serving(first: dict[str, Any]) -> Iterator[Server]:
    """Run a server, which is gone afterwards."""
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name), first)
        try:
            yield server
        finally:
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(30)


def row(name: str, value: float, unit: str, goal: str = "", met: bool | None = None) -> dict[str, Any]:
    """Give one figure, without a baseline."""
    shown = {"name": name, "value": value, "unit": unit, "baseline": None, "ratio": None}
    return {**shown, "goal": goal, "met": met}


def report(name: str, rows: list[dict[str, Any]]) -> int:
    """Print the figures and keep them in bench/results; gives the exit status: 1 if a goal was missed."""
    for each in rows:
        goal = f"goal {each['goal']}: {'met' if each['met'] else 'MISSED'}" if each["goal"] else ""
        print(f"{each['name']:<76}{each['value']:>14,.4g} {each['unit']:<8}{goal}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(rows, indent=2) + "\n")
    return int(any(each["met"] is False for each in rows))
