"""Prepare the servers of a comparison: ours, and other DNS servers that are unpacked or installed.

Each serves host0 to hostN of example.com on its own port, and answers in the way closest to ours that it
supports: see the names. A pool of 4096 addresses for each of 100,000 names does not fit into the memory of
the others (Knot takes 270 octets for each pair), so they have the pool at a wildcard, which is no slower.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from support import peers
from support.peers import KNOT as KNOT_SERVER
from support.peers import NSD as NSD_SERVER
from support.peers import OPTIONS
from support.program import UNMOOR

FIRST_PORT = 5390
ZONE = "example.com"
SOA = "$TTL 30\n@ SOA ns1 h 1 7200 900 1209600 300\n@ NS ns1\nns1 A 198.18.0.53\n"

KNOT, KNOT_COOKIES = "knot, 1 of 4096 weighted", "knot with cookies, 1 of 4096 weighted"
BIND, PDNS = "bind, static", "pdns, 1 of 256 by Lua"

#: All optional features of our server. The rate limit is never reached, so that it does not stop the
#: measurement, but it counts each query.
FEATURES: dict[str, Any] = {
    "cookie_secret": "000102030405060708090a0b0c0d0e0f",
    "rate_limit": 1_000_000_000,
    "tell_name": True,
    "tell_version": True,
}

KNOT_CONF = (
    KNOT_SERVER
    + """
mod-geoip:
  - id: pool
    config-file: {directory}/pool.conf
    ttl: 30
    mode: weighted
zone:
  - domain: example.com
    storage: {directory}
    file: zone
    module: [{modules}]
"""
)
NSD_CONF = (
    NSD_SERVER
    + """
zone:
  name: example.com
  zonefile: zone
"""
)
NAMED_CONF = """
options {{ directory "{d}"; pid-file "{d}/pid"; session-keyfile "{d}/key"; recursion no;
  listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; }};
controls {{ }};
zone "example.com" {{ type primary; file "zone"; }};
"""
PDNS_CONF = """
launch=bind
bind-config={d}/named.zones
local-address=127.0.0.1
local-port={port}
socket-dir={d}
enable-lua-records={lua}
receiver-threads=1
distributor-threads=1
"""
GDNSD_CONF = """
options => {{ listen => 127.0.0.1, dns_port => {port}, udp_threads => 1, tcp_threads => 1,
              run_dir => "{d}/run", state_dir => "{d}/state" }}
plugins => {{ weighted => {{ multi => false, pool => {{ {pool} }} }} }}
"""


@dataclass(frozen=True)
class Server:
    """A program that serves the names from files in its own directory."""

    name: str
    port: int
    command: list[str]

    def start(self, core: int, log: Path) -> subprocess.Popen[bytes]:
        """Start it on one core."""
        with log.open("wb") as output:
            return subprocess.Popen(["taskset", "-c", str(core), *self.command], stdout=output, stderr=output)


def document(port: int, **more: Any) -> dict[str, Any]:
    """A document of ours, without zones: one policy with a pool of 4096 addresses, one worker on loopback."""
    return {
        "pop": "bench",
        "edge": "bench",
        "listen": ["127.0.0.1"],
        "port": port,
        "workers": 1,
        "pools": {"all": {"ipv4": ["198.18.0.0/20"]}},
        "policies": [{"name": "all", "answer": {"pool": "all", "ttl": 30}}],
        **more,
    }


def write(directory: Path, data: dict[str, Any]) -> None:
    """Write our document into a directory, which is created."""
    directory.mkdir(exist_ok=True)
    (directory / "dns.json").write_text(json.dumps(data))


def serving(name: str, directory: Path, port: int) -> Server:
    """Our server of the document in a directory."""
    paths = ["--config", str(directory / "dns.json"), "--control", str(directory / "control.sock")]
    return Server(name, port, [*UNMOOR, "dns", "serve", *paths])


def ours(name: str, directory: Path, port: int, count: int, **more: Any) -> Server:
    """Write a document of `count` names; returns our server of it."""
    names = [f"host{number}" for number in range(count)]
    zone = {"name": ZONE, "records": SOA, "hostnames": [{"names": names}] if names else []}
    write(directory, document(port, zones=[zone], **more))
    return serving(name, directory, port)


def others(directory: Path, count: int) -> Iterator[Server]:
    """Write the files of every other server that is unpacked or installed."""
    for at, (name, program, prepare) in enumerate(OTHERS):
        if not peers.has(program):
            print(f"{program} is not here: tools/peers fetch", file=sys.stderr)
            continue
        port, folder = FIRST_PORT + 10 + at, directory / str(at)
        folder.mkdir()
        arguments = prepare(folder, port, count)
        yield Server(name, port, list(map(str, peers.command(program, *arguments))))


def _static(folder: Path, count: int) -> None:
    """One address for each name."""
    with (folder / "zone").open("w") as zone:
        zone.write(SOA)
        zone.writelines(f"host{at} A 198.18.{at >> 8 & 15}.{at & 255}\n" for at in range(count))


def _knot(modules: str, folder: Path, port: int, count: int) -> list[str]:
    _static(folder, count)
    with (folder / "pool.conf").open("w") as pool:
        pool.write(f"*.{ZONE}:\n")
        pool.writelines(f"  - weight: 1\n    A: 198.18.{at >> 8}.{at & 255}\n" for at in range(4096))
    (folder / "conf").write_text(KNOT_CONF.format(directory=folder, port=port, modules=modules))
    return [*OPTIONS["knotd"], str(folder / "conf")]


def _nsd(folder: Path, port: int, count: int) -> list[str]:
    _static(folder, count)
    (folder / "conf").write_text(NSD_CONF.format(directory=folder, port=port))
    return [*OPTIONS["nsd"], str(folder / "conf")]


def _bind(folder: Path, port: int, count: int) -> list[str]:
    _static(folder, count)
    (folder / "conf").write_text(NAMED_CONF.format(d=folder, port=port))
    return ["-n", "1", "-f", "-c", str(folder / "conf")]


def _gdnsd(folder: Path, port: int, count: int) -> list[str]:
    for name in ("zones", "run", "state"):
        (folder / name).mkdir()
    pool = ", ".join(f"a{at} => [198.18.0.{at}, 1]" for at in range(64))
    (folder / "config").write_text(GDNSD_CONF.format(d=folder, port=port, pool=pool))
    with (folder / "zones" / ZONE).open("w") as zone:
        zone.write(SOA)
        zone.writelines(f"host{at} DYNA weighted!pool\n" for at in range(count))
    return ["-c", str(folder), "start"]


def _pdns(lua: str, folder: Path, port: int, _: int) -> list[str]:
    addresses = ",".join(f"'198.18.0.{at}'" for at in range(256))
    (folder / "zone").write_text(f'$ORIGIN {ZONE}.\n{SOA}* LUA A "pickrandom({{{addresses}}})"\n')
    (folder / "named.zones").write_text(f'zone "{ZONE}" {{ type native; file "{folder}/zone"; }};')
    (folder / "pdns.conf").write_text(PDNS_CONF.format(d=folder, port=port, lua=lua))
    return [f"--config-dir={folder}"]


#: Name, program, and a function that writes its files and returns its arguments.
OTHERS: list[tuple[str, str, Callable[[Path, int, int], list[str]]]] = [
    (KNOT, "knotd", partial(_knot, "mod-geoip/pool")),
    (KNOT_COOKIES, "knotd", partial(_knot, "mod-cookies, mod-geoip/pool")),
    ("nsd, static", "nsd", _nsd),
    (BIND, "named", _bind),
    ("gdnsd, 1 of 64 weighted", "gdnsd", _gdnsd),
    (PDNS, "pdns_server", partial(_pdns, "yes")),
    ("pdns, the same with a shared Lua state", "pdns_server", partial(_pdns, "shared")),
]
