"""The preflight of large inventories, beside an older tree: `python bench/preflight.py [--base REVISION]`.

Runs `playbooks/preflight.yml` of this tree and of the base in turn on the same inventories, and prints wall
time, CPU time and the largest process as ratios to the base. No host is contacted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Edges and hostnames of each inventory.
SIZES = ((200, 50_000), (2_000, 1_000))
EDGES_PER_POP = 50

ZONE = "$TTL 300\n@ SOA ns h 1 7200 900 1209600 60\n@ NS ns\nns A 198.51.100.53\n"
VARIABLES = {
    "unmoor_prefixes": ["198.18.0.0/20", "2001:db8:100::/44"],
    "unmoor_pools": {
        "free": {"ipv4": ["198.18.0.0/21"], "ipv6": ["2001:db8:100::/45"]},
        "business": {"ipv4": ["198.18.8.0/21"], "ipv6": ["2001:db8:108::/45"]},
    },
    "unmoor_services": {"web": {"ports": [80], "check": "http"}},
    "unmoor_policies": [
        {
            "name": "business",
            "match": {"tags": {"account": "business"}},
            "answer": {"pool": "business", "ttl": 60},
        },
        {"name": "free", "answer": {"pool": "free", "ttl": 30}},
    ],
    "unmoor_zones": [
        {"name": "bench.test", "records_file": "zones/zone", "hostnames_file": "zones/names.csv"}
    ],
    "unmoor_dns_anycast": ["198.51.100.53"],
    "unmoor_gate_vantage": "localhost",
    "listener_http_service": "web",
    "listener_https_service": "",
    "listener_whoami_service": "",
    "listener_certificate": "/etc/ssl/edge.crt",
    "listener_certificate_key": "/etc/ssl/edge.key",
}


@dataclass(frozen=True)
class Run:
    """One run of the playbook: seconds, seconds of CPU, and the resident set of its largest process in MB."""

    wall: float
    cpu: float
    memory: float


def write_inventory(directory: Path, edges: int, hostnames: int) -> None:
    """Write an inventory of so many edges, all with the same zone."""
    first = int(ip_address("198.19.0.1"))
    pops: dict[str, dict[str, dict[str, dict[str, object]]]] = {}
    for number in range(edges):
        address = str(ip_address(first + number))
        host = {"ansible_host": address, "unmoor_dns_unicast": [address]}
        hosts = pops.setdefault(f"pop_p{number // EDGES_PER_POP}", {"hosts": {}})["hosts"]
        hosts[f"edge{number}"] = host
    (directory / "group_vars").mkdir(parents=True)
    (directory / "zones").mkdir()
    # JSON is YAML, and is read by the same loader.
    inventory = {"all": {"children": {"edges": {"children": pops}}}}
    (directory / "hosts.yml").write_text(json.dumps(inventory, indent=1), encoding="utf-8")
    (directory / "group_vars/edges.yml").write_text(json.dumps(VARIABLES, indent=1), encoding="utf-8")
    (directory / "zones/zone").write_text(ZONE, encoding="utf-8")
    rows = (f"name{at:06},{'business' if at % 10 == 0 else 'free'}\n" for at in range(hostnames))
    (directory / "zones/names.csv").write_text("name,account\n" + "".join(rows), encoding="utf-8")


def preflight(tree: Path, inventory: Path) -> Run:
    """Run the preflight of a tree. Raises RuntimeError with its output if it refuses the inventory."""
    collections = inventory.parent / f"collections-of-{tree.name}"
    (collections / "ansible_collections/unmoor").mkdir(parents=True)
    (collections / "ansible_collections/unmoor/unmoor").symlink_to(tree)
    environment = os.environ | {
        "ANSIBLE_COLLECTIONS_PATH": str(collections),
        "ANSIBLE_CONFIG": str(tree / "ansible.cfg"),
        "PYTHONPATH": str(tree / "src"),
        "ANSIBLE_NOCOLOR": "1",
    }
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory)]
    command.append(str(tree / "playbooks/preflight.yml"))
    with tempfile.TemporaryFile("w+") as output:
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=tree, env=environment, stdout=output, stderr=output)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        if status:
            output.seek(0)
            raise RuntimeError(output.read()[-2000:])
    # ru_maxrss, in KB, is that of the largest of the process and its children; each task has a process.
    return Run(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def compare(base: Path, edges: int, hostnames: int) -> None:
    """Run both trees on one inventory, and print the figures of both with their ratio."""
    with tempfile.TemporaryDirectory() as directory:
        inventory = Path(directory) / "inventory"
        write_inventory(inventory, edges, hostnames)
        new, old = preflight(ROOT, inventory), preflight(base, inventory)
    print(f"{edges:,} edges, one zone of {hostnames:,} hostnames: new / old = ratio")
    for name, unit in (("wall", "s"), ("cpu", "s"), ("memory", "MB")):
        ours, theirs = getattr(new, name), getattr(old, name)
        print(f"  {name:<6} {ours:8.1f} {unit} / {theirs:8.1f} {unit} = {ours / theirs:.3f}", flush=True)


def main() -> None:
    """Compare this tree with another revision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="main", help="revision to compare with")
    parser.add_argument("--size", action="append", metavar="EDGES,NAMES", help="instead of the usual sizes")
    arguments = parser.parse_args()
    sizes = [tuple(map(int, size.split(","))) for size in arguments.size or ()] or SIZES
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory) / "base"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(base), arguments.base], check=True)
        try:
            for edges, hostnames in sizes:
                compare(base, edges, hostnames)
        finally:
            subprocess.run([*git, "remove", "--force", str(base)], check=True)


if __name__ == "__main__":
    main()
