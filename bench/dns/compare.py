"""Queries a second and CPU time a query, beside other servers: `python bench/dns/compare.py [--names N]`.

Each server runs on one core with one worker, dnsperf on another; rounds alternate, so that a machine that
drifts does so for all. What to compare is CPU time a query: what dnsperf can send bounds the rate of quick
servers. Needs dnsperf; takes whichever of knotd, nsd, named, pdns_server are installed. Prints one
table, ratios to Knot first, and writes bench/results/dns.json.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import dns.exception
import dns.message
import dns.query

POOL = "198.18.0.0/20"
PORT = 5390
SOA = "$ORIGIN example.com.\n$TTL 30\n@ SOA ns1 h 1 7200 900 1209600 300\n@ NS ns1\nns1 A 198.18.0.53\n"

KNOT = """
server:
  rundir: {d}
  user: root:root
  listen: 127.0.0.1@{port}
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
database:
  storage: {d}/db
zone:
  - domain: example.com
    storage: {d}
    file: example.com.zone
"""
NSD = """
server:
  ip-address: 127.0.0.1@{port}
  zonesdir: {d}
  zonelistfile: {d}/zone.list
  xfrdfile: {d}/xfrd.state
  xfrdir: {d}
  pidfile: {d}/pid
  username: root
  server-count: 1
remote-control:
  control-enable: no
zone:
  name: example.com
  zonefile: example.com.zone
"""
NAMED = """
options {{ directory "{d}"; pid-file "{d}/pid"; session-keyfile "{d}/key"; recursion no;
  listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; }};
controls {{ }};
zone "example.com" {{ type primary; file "example.com.zone"; }};
"""
PDNS = """
launch=bind
bind-config={d}/named.zones
local-address=127.0.0.1
local-port={port}
socket-dir={d}
enable-lua-records=yes
receiver-threads=1
distributor-threads=1
"""


@dataclass
class Server:
    """A program that serves the names; `config` is written to `file` before it starts."""

    name: str
    command: list[str]
    file: str = ""
    config: str = ""
    rates: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    memory: int = 0


def candidates(directory: Path, options: str) -> list[Server]:
    """Give ours, and those of the others that are installed."""
    d = str(directory)
    ours = [sys.executable, "-c", "from unmoor.commands import main; main()", "dns", "serve"]
    ours += ["--config", f"{d}/dns.json", "--control", f"{d}/control.sock"]
    others = [
        Server("knot, static", ["knotd", "-c", f"{d}/knot.conf"], "knot.conf", KNOT),
        Server("nsd, static", ["nsd", "-d", "-c", f"{d}/nsd.conf"], "nsd.conf", NSD),
        Server("bind, static", ["named", "-n", "1", "-f", "-c", f"{d}/named.conf"], "named.conf", NAMED),
        Server("pdns, lua pickrandom", ["pdns_server", f"--config-dir={d}"], "pdns.conf", PDNS),
    ]
    chosen = [each for each in others if shutil.which(each.command[0]) and each.name.split(",")[0] in options]
    return [Server("unmoor, random of a /20", ours), *chosen]


def write_inputs(directory: Path, count: int) -> None:
    """Write the document, the static zone, the Lua zone and the queries."""
    names = [f"host{number}" for number in range(count)]
    document = {
        "pop": "bench",
        "edge": "bench",
        "listen": ["127.0.0.1"],
        "port": PORT,
        "workers": 1,
        "pools": {"all": {"ipv4": [POOL]}},
        "policies": [{"name": "all", "answer": {"pool": "all", "ttl": 30}}],
        "zones": [{"name": "example.com", "records": SOA, "hostnames": [{"names": names}]}],
    }
    (directory / "dns.json").write_text(json.dumps(document))
    with (directory / "example.com.zone").open("w") as zone:
        zone.write(SOA)
        zone.writelines(f"{name} A 198.18.{at >> 8 & 15}.{at & 255}\n" for at, name in enumerate(names))
    addresses = ",".join(f"'198.18.0.{n}'" for n in range(256))
    with (directory / "lua.zone").open("w") as zone:
        zone.write(SOA)
        zone.writelines(f'{name} LUA A "pickrandom({{{addresses}}})"\n' for name in names[: min(count, 2000)])
    (directory / "named.zones").write_text(
        f'zone "example.com" {{ type native; file "{directory}/lua.zone"; }};'
    )
    chance = random.Random(1)
    for file, limit in (("queries", count), ("queries.lua", min(count, 2000))):
        lines = (f"host{chance.randrange(limit)}.example.com A\n" for _ in range(200_000))
        (directory / file).write_text("".join(lines))


def cpu_time(pid: int) -> int:
    """CPU time of a process and its descendants that live, nanoseconds."""
    total = sum(
        int(task.joinpath("schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()
    )
    return total + sum(cpu_time(child) for child in children(pid))


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, task.joinpath("children").read_text().split())
    return found


def memory(pid: int) -> int:
    """Proportional memory of a process and its descendants, KiB."""
    own = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(own[1] if own else 0) + sum(memory(child) for child in children(pid))


def wait_until_it_serves(process: subprocess.Popen[bytes], log: Path) -> None:
    query = dns.message.make_query("host1.example.com", "A")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if dns.query.udp(query, "127.0.0.1", timeout=0.5, port=PORT).answer:
                return
        except (OSError, dns.exception.DNSException):
            time.sleep(0.1)
    raise SystemExit(f"{process.args!r} does not serve:\n{log.read_text(errors='replace')[-2000:]}")


def one_round(server: Server, directory: Path, seconds: int, log: IO[bytes]) -> None:
    if server.file:
        (directory / server.file).write_text(server.config.format(d=directory, port=PORT))
    process = subprocess.Popen(["taskset", "-c", "0", *server.command], stdout=log, stderr=log)
    try:
        wait_until_it_serves(process, directory / "log")
        before = cpu_time(process.pid)
        file = "queries.lua" if "lua" in server.name else "queries"
        generator = [
            "dnsperf",
            "-s",
            "127.0.0.1",
            "-p",
            str(PORT),
            "-d",
            str(directory / file),
            "-l",
            str(seconds),
        ]
        shown = subprocess.run(
            ["taskset", "-c", "1", *generator, "-e"], capture_output=True, text=True, check=True
        ).stdout
        spent = cpu_time(process.pid) - before
        completed = re.search(r"Queries completed:\s+(\d+)", shown)
        rate = re.search(r"Queries per second:\s+([\d.]+)", shown)
        if completed is None or rate is None:
            raise SystemExit(f"dnsperf said:\n{shown}")
        server.rates.append(float(rate[1]))
        server.costs.append(spent / int(completed[1]) / 1000)
        server.memory = memory(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--names", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--servers", default="knot nsd bind pdns", help="which others to run")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, (Path(name) / "log").open("wb") as log:
        directory = Path(name)
        write_inputs(directory, chosen.names)
        servers = candidates(directory, chosen.servers)
        for number in range(chosen.rounds):
            for server in servers:
                one_round(server, directory, chosen.seconds, log)
                print(f"round {number + 1}: {server.name}: {server.rates[-1]:,.0f} q/s", file=sys.stderr)
    report(servers, chosen.names)


def report(servers: list[Server], names: int) -> None:
    reference = next((each for each in servers if each.name.startswith("knot")), servers[0])
    base = statistics.median(reference.costs)
    print(f"{names:,} names, one core each; {reference.name} = 1.00")
    print(f"{'server':<26}{'by CPU':>8}{'us/query':>10}{'q/s':>10}{'memory MiB':>12}")
    rows = []
    for each in servers:
        cost, rate = statistics.median(each.costs), statistics.median(each.rates)
        print(f"{each.name:<26}{base / cost:>8.2f}{cost:>10.1f}{rate:>10,.0f}{each.memory / 1024:>12.0f}")
        rows.append(
            {"server": each.name, "ratio": base / cost, "us_per_query": cost, "qps": rate, "kib": each.memory}
        )
    results = Path(__file__).parents[1] / "results"
    results.mkdir(exist_ok=True)
    (results / "dns.json").write_text(json.dumps({"names": names, "servers": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
