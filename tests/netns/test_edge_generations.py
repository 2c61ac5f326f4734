"""Generations on a booted host: applied, confirmed, undone by the edge itself, and interrupted."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import tarfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import unmoor
from support.checkout import ROOT
from support.lab import lab_command, ssh
from support.waiting import wait_until
from unmoor.lab import topology

NAME = "testlabg"
HOST = "edge1"
LAUNCHER = """#!/usr/bin/python3 -I
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "site"))
from unmoor.commands import main
main()
"""
RELEASES = ("one", "two")
HOME = "/var/lib/unmoor/generations"


def release() -> str:
    """Return a release with what `unmoor edge` needs, as a tar archive in base64."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        source = Path(unmoor.__file__).parent
        for path in map(source.joinpath, ("commands/__init__.py", "commands/root.py", "commands/edge.py")):
            tar.add(path, f"site/unmoor/{path.relative_to(source)}")
        for path in (*source.glob("*.py"), *source.glob("rollout/*.py")):
            tar.add(path, f"site/unmoor/{path.relative_to(source)}")
        tar.add(Path(click.__file__).parent, "site/click")
        launcher = tarfile.TarInfo("bin/unmoor")
        launcher.mode, launcher.size = 0o755, len(LAUNCHER)
        tar.addfile(launcher, io.BytesIO(LAUNCHER.encode()))
    return base64.b64encode(buffer.getvalue()).decode()


class Edge:
    """A booted host with two releases of the program."""

    def sh(self, script: str, stdin: str = "") -> str:
        """Run a shell script on the host; return its output. Fails if the script does."""
        return ssh(NAME, HOST, f"set -eu\n{script}", stdin)

    def unmoor(self, *arguments: str, stdin: str = "", release: str = "two") -> tuple[int, str]:
        """Run `unmoor edge` of a release; return its status and what it printed."""
        command = f"/opt/unmoor/releases/{release}/bin/unmoor edge {' '.join(arguments)}"
        output = self.sh(f'rc=0; {command} 2>&1 || rc=$?; echo "rc=$rc"', stdin)
        text, _, status = output.rstrip().rpartition("rc=")
        return int(status), text

    def ok(self, *arguments: str, stdin: str = "") -> str:
        """Run `unmoor edge`, which must succeed; return what it printed."""
        status, output = self.unmoor(*arguments, stdin=stdin)
        assert status == 0, output
        return output

    def apply(self, manifest: dict[str, Any], *arguments: str) -> str:
        """Apply a manifest, which must succeed."""
        return self.ok("apply", "-", *arguments, stdin=json.dumps(manifest))

    def confirmed(self, manifest: dict[str, Any]) -> None:
        """Apply a manifest and confirm it."""
        self.apply(manifest)
        self.ok("confirm")

    def state(self) -> dict[str, Any]:
        """Return the state of `unmoor edge status`."""
        status, output = self.unmoor("status", "--json")
        assert status in (0, 1), output
        found: dict[str, Any] = json.loads(output)
        return found

    def picture(self) -> str:
        """Return all that a generation may change: files with owners and modes, units, settings."""
        return self.sh(PICTURE)


#: The shell's own command line must not match the pattern of pgrep.
PICTURE = """
for dir in /etc/demo /etc/systemd/system; do
    [ -e $dir ] || continue
    echo $dir
    find $dir -path '*unmoor*' -prune -o -not -type d -printf '%p %m %u %g %l\\n' | sort
    find $dir -path '*unmoor*' -prune -o -type f -print | sort | xargs sha256sum
done
systemctl show --property=ActiveState,UnitFileState demo.service
pgrep -af '[s]leep 10000' | cut -d' ' -f2- || true
sysctl net.core.somaxconn
readlink /opt/unmoor/current || true
"""


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    data = yaml.safe_load((ROOT / topology.DEFAULT).read_text(encoding="utf-8"))
    for host in ("client", "edge2"):
        del data["hosts"][host]
    router = data["hosts"]["router"]
    router["routes"] = {prefix: ["edge1"] for prefix in router["routes"]}
    path = tmp_path_factory.mktemp("lab") / "topology.yml"
    path.write_text(json.dumps(data), encoding="utf-8")
    try:
        lab_command("up", "--name", NAME, "--topology", str(path))
        edge = Edge()
        for each in RELEASES:
            edge.sh(
                f"mkdir -p /opt/unmoor/releases/{each}; base64 -d | tar -xzC /opt/unmoor/releases/{each}",
                release(),
            )
        yield edge
    finally:
        lab_command("down", "--name", NAME)


@pytest.fixture
def edge(booted: Edge) -> Iterator[Edge]:
    """The host, on generation zero before and after the test."""
    yield booted
    if booted.state()["pending"]:
        booted.ok("rollback")
    if booted.state()["confirmed"]:
        booted.ok("rollback", "zero")
        booted.ok("confirm")
    booted.sh("umount -q /etc/demo || true; rm -rf /etc/demo; systemctl reset-failed")


def unit(number: int) -> str:
    return textwrap.dedent(
        f"""\
        [Unit]
        Description=Demo {number}
        [Service]
        ExecStart=/usr/bin/sleep 10000{number}
        ExecReload=/bin/true
        [Install]
        WantedBy=multi-user.target
        """
    )


def generation(number: int, *, late: bool = True, padding: int = 0) -> dict[str, Any]:
    """Return a manifest with a release, a service with its files and a setting, and a last part."""
    release_ = {
        "name": "release",
        "order": 0,
        "files": [{"path": "/opt/unmoor/current", "link": "releases/one"}],
    }
    running = f"grep -q 10000{number} /proc/$(systemctl show -P MainPID demo.service)/cmdline"
    demo = {
        "name": "demo",
        "order": 10,
        "files": [
            {
                "path": "/etc/demo/conf",
                "content": f"{number}\n" + "#" * padding,
                "mode": "0640",
                "group": "adm",
            },
            {"path": "/etc/demo/link", "link": f"conf{number}"},
            {"path": "/etc/systemd/system/demo.service", "content": unit(number)},
        ],
        "units": [{"name": "demo.service"}],
        "sysctls": {"net.core.somaxconn": str(5000 + number)},
        "checks": [["/bin/grep", "-q", "^[0-9]", "@/etc/demo/conf"]],
        "rules": [
            {
                "on": ["/etc/systemd/system/demo.service"],
                "run": ["/usr/bin/systemctl", "restart", "demo.service"],
                "unit": "demo.service",
            },
            {
                "on": ["/etc/demo/conf"],
                "run": ["/usr/bin/systemctl", "reload", "demo.service"],
                "unit": "demo.service",
            },
        ],
        "verify": [["/bin/sh", "-c", running]],
    }
    late_ = {
        "name": "late",
        "order": 90,
        "files": [{"path": f"/etc/demo/late{number}", "content": f"{number}\n"}],
    }
    return {"format": 1, "parts": [release_, demo, *([late_] if late else [])]}


def with_part(manifest: dict[str, Any], name: str, order: int, **keys: Any) -> dict[str, Any]:
    """Return the manifest with one more part."""
    return {**manifest, "parts": [*manifest["parts"], {"name": name, "order": order, **keys}]}


def test_a_generation_that_nobody_confirms_is_undone(edge: Edge) -> None:
    before = edge.picture()
    edge.apply(generation(1), "--within", "3")
    assert "sleep 100001" in edge.picture()
    wait_until(lambda: not edge.state()["pending"])
    assert edge.picture() == before
    assert edge.state()["returned"]["why"] == "was not confirmed in time"
    edge.confirmed(generation(1))
    first = edge.picture()
    edge.apply(generation(2), "--within", "3")
    wait_until(lambda: not edge.state()["pending"])
    assert edge.picture() == first


def test_a_renewed_deadline_holds(edge: Edge) -> None:
    edge.apply(generation(1), "--within", "4")
    edge.ok("confirm", "--renew", "60")
    edge.sh("sleep 5")
    assert edge.state()["pending"]
    edge.ok("confirm")
    assert edge.ok("status").startswith("confirmed: ")
    status, output = edge.unmoor("confirm", "--renew", "60")
    assert status == 2
    assert "no generation is pending" in output


def test_every_kept_generation_can_be_restored_and_left_again(edge: Edge) -> None:
    host = edge.picture()
    pictures = {}
    for number in range(1, 8):
        edge.confirmed(generation(number, late=number % 2 == 0))
        pictures[edge.state()["confirmed"]] = edge.picture()
    last = edge.state()["confirmed"]
    kept = [each["id"] for each in json.loads(edge.ok("list", "--json"))["history"]]
    assert len(kept) == 5
    for each in kept:
        for target in (each, last):
            edge.ok("rollback", target[:16])
            edge.ok("confirm", target)
            assert edge.picture() == pictures[target]
    stored = edge.sh(f"ls {HOME}/manifests | wc -l")
    assert int(stored) == 6
    edge.ok("rollback", "zero")
    edge.ok("confirm")
    assert edge.picture() == host
    assert edge.sh(f"ls /etc/systemd/system/unmoor-return* {HOME}/program 2>/dev/null || true") == ""


def test_what_the_host_had_comes_back(edge: Edge) -> None:
    edge.sh(
        "mkdir -p /etc/demo; echo mine > /etc/demo/conf; chmod 600 /etc/demo/conf;"
        " ln -s elsewhere /etc/demo/late1"
    )
    before = edge.picture()
    edge.confirmed(with_part(generation(1), "gone", 20, files=[{"path": "/etc/demo/gone", "absent": True}]))
    edge.confirmed(generation(2))
    assert edge.sh("readlink /etc/demo/late1").strip() == "elsewhere", "a path that no part has any more"
    edge.ok("rollback", "zero")
    edge.ok("confirm")
    assert edge.picture() == before


FAILING_RULE = {
    "files": [{"path": "/etc/demo/x", "content": "x"}],
    "rules": [{"on": ["/etc/demo/x"], "run": ["/bin/false"]}],
}


@pytest.mark.parametrize(
    ("order", "keys"),
    [
        (5, FAILING_RULE),
        (95, FAILING_RULE),
        (95, {"units": [{"name": "missing.service"}]}),
        (95, {"sysctls": {"net.core.missing": "1"}}),
        (95, {"files": [{"path": "/etc/demo/x", "content": "x", "owner": "nobody-here"}]}),
        (95, {"files": [{"path": "/etc/systemd", "content": "x"}]}),
        (95, {"units": [{"name": "fails.service"}], "files": [{
            "path": "/etc/systemd/system/fails.service",
            "content": "[Service]\nType=oneshot\nExecStart=/bin/false\n[Install]\nWantedBy=basic.target\n",
        }]}),
    ],
    ids=["first rule", "last rule", "unit", "sysctl", "owner", "directory", "start"],
)  # fmt: skip
def test_a_part_that_fails_leaves_the_edge_as_it_was(edge: Edge, order: int, keys: dict[str, Any]) -> None:
    edge.confirmed(generation(1))
    before = edge.picture()
    status, output = edge.unmoor(
        "apply", "-", stdin=json.dumps(with_part(generation(2), "bad", order, **keys))
    )
    assert status == 2, output
    assert "Traceback" not in output
    assert edge.picture() == before
    assert edge.state()["pending"] is None
    assert edge.state()["differences"] == []
    assert edge.sh("find /etc/demo /etc/systemd/system -name '.unmoor-*'") == ""


def test_checks_come_before_any_change(edge: Edge) -> None:
    edge.confirmed(generation(1))
    before = edge.picture()
    bad = generation(2)
    bad["parts"][1]["files"][0]["content"] = "wrong\n"
    bad["parts"][1]["checks"] = [["/bin/sh", "-c", 'echo "$1: wrong" >&2; exit 1', "sh", "@/etc/demo/conf"]]
    status, output = edge.unmoor(
        "apply", "-", stdin=json.dumps(with_part(bad, "x", 20, requires=["/opt/missing"]))
    )
    assert status == 2
    assert "/etc/demo/conf: wrong" in output
    assert "/opt/missing: is missing" in output
    assert edge.picture() == before
    assert edge.state()["returned"] is None


def test_another_operators_change_is_left_alone(edge: Edge) -> None:
    edge.apply(generation(1), "--by", "ann")
    status, output = edge.unmoor("apply", "-", "--by", "bob", stdin=json.dumps(generation(2)))
    assert status == 2
    assert "of ann is pending since" in output
    edge.apply(generation(2), "--by", "ann")
    edge.ok("confirm")
    assert "sleep 100002" in edge.picture()


def test_lost_settings_and_effects_are_repaired_and_edited_files_reported(edge: Edge) -> None:
    made = {
        "verify": [["/bin/test", "-e", "/run/demo-effect"]],
        "repair": [["/bin/touch", "/run/demo-effect"]],
    }
    edge.sh("touch /run/demo-effect")
    edge.confirmed(with_part(generation(1), "effect", 50, **made))
    before = edge.state()["repairs"]
    edge.sh("rm /run/demo-effect; sysctl -q net.core.somaxconn=77; echo edited >> /etc/demo/late1")
    found = edge.state()["differences"]
    assert len(found) == 3
    assert len(edge.ok("repair").splitlines()) == 2
    assert [line for line in edge.state()["differences"] if "late1" in line] == edge.state()["differences"]
    assert edge.state()["repairs"] == before + 2
    edge.ok("apply", f"{HOME}/manifests/{edge.state()['confirmed']}.json")
    edge.ok("confirm")
    assert edge.state()["differences"] == []


def test_the_watch_repairs_what_is_lost(edge: Edge) -> None:
    program = "/opt/unmoor/releases/two/bin/unmoor"
    watch = {
        "files": [
            {
                "path": "/etc/systemd/system/late.service",
                "content": f"[Service]\nType=notify\nExecStart={program} edge watch --interval 0.5\n",
            }
        ],
        "units": [{"name": "late.service", "enabled": False}],
        "verify": [["/bin/test", "-e", "/run/demo-effect"], [program, "edge", "list"]],
        "repair": [["/bin/touch", "/run/demo-effect"]],
    }
    edge.sh("touch /run/demo-effect")
    edge.confirmed(with_part(generation(1), "watch", 50, **watch))
    before = edge.state()["repairs"]
    edge.sh("rm /run/demo-effect; sysctl -q net.core.somaxconn=77; echo edited >> /etc/demo/late1")
    wait_until(lambda: edge.state()["repairs"] >= before + 2)
    assert edge.sh("sysctl -n net.core.somaxconn; ls /run/demo-effect").split() == [
        "5001",
        "/run/demo-effect",
    ]
    assert [line.split(": ")[1] for line in edge.state()["differences"]] == ["/etc/demo/late1"]
    log = edge.sh("journalctl -b -o cat -u late.service")
    assert "net.core.somaxconn = 5001" in log
    assert "/run/demo-effect" in log
    assert "Traceback" not in log


def test_a_killed_apply_is_undone_in_time(edge: Edge) -> None:
    edge.confirmed(generation(1))
    before = edge.picture()
    seed = random.randrange(1000)
    chance = random.Random(seed)
    for attempt in range(6):
        delay = chance.uniform(0.05, 1.2)
        edge.sh(
            "/opt/unmoor/releases/two/bin/unmoor edge apply - --within 3 > /run/apply.log 2>&1 & pid=$!;"
            f" sleep {delay:.3f}; kill -9 $pid 2>/dev/null || true; wait $pid || true",
            json.dumps(generation(2)),
        )
        wait_until(lambda: not edge.state()["pending"])
        assert edge.picture() == before, f"seed {seed}, attempt {attempt}, after {delay:.3f} s"
        assert edge.sh("find /etc/demo /etc/systemd/system -name '.unmoor-*'") == ""


@pytest.mark.parametrize("how", ["reboot", "power loss"])
def test_an_edge_that_restarts_with_a_pending_generation_boots_the_one_before(edge: Edge, how: str) -> None:
    edge.confirmed(generation(1))
    before = edge.picture()
    edge.apply(with_part(generation(2), "more", 95, files=[{"path": "/etc/demo/more", "content": "x"}]))
    edge.sh("touch /run/still-this-boot")
    if how == "reboot":
        edge.sh("systemctl reboot --no-block")
    else:
        # Stops nothing and syncs nothing.
        edge.sh("systemd-run --quiet --on-active=300ms systemctl reboot --force --force")
    wait_until(lambda: rebooted(edge))
    wait_until(lambda: not edge.state()["pending"])
    assert edge.picture() == before
    started = edge.sh("journalctl -b -o cat -u demo.service | grep Started")
    assert "Demo 1" in started
    assert "Demo 2" not in started, "the services started with the files of the generation before"


def rebooted(edge: Edge) -> bool:
    try:
        return "gone" in edge.sh(
            "test -e /run/still-this-boot || echo gone; systemctl is-active -q multi-user.target"
        )
    except AssertionError:
        return False


def test_a_full_disk_changes_nothing_and_leaves_nothing(edge: Edge) -> None:
    edge.sh("mkdir -p /etc/demo && mount -t tmpfs -o size=96k,mode=755 demo /etc/demo")
    edge.confirmed(generation(1, padding=8000))
    before = edge.picture()
    status, output = edge.unmoor("apply", "-", stdin=json.dumps(generation(2, padding=90000)))
    assert status == 2
    assert "No space left" in output
    assert "fix: free space" in output
    assert edge.picture() == before
    assert edge.state()["pending"] is None
    assert edge.sh("find /etc/demo -name '.unmoor-*'") == ""
    # Filled by the change itself: what a return needs has been reserved.
    fill = {
        "files": [],
        "verify": [["/bin/sh", "-c", "dd if=/dev/zero of=/etc/demo/fill bs=4k 2>/dev/null; false"]],
    }
    bad = with_part(generation(3, padding=8000), "fill", 20, **fill)
    bad["parts"][-1]["files"] = [{"path": "/etc/demo/x", "content": "x"}]
    bad["parts"][-1]["rules"] = [
        {"on": ["/etc/demo/x"], "run": ["/bin/sh", "-c", "dd if=/dev/zero of=/etc/demo/fill bs=4k; false"]}
    ]
    status, output = edge.unmoor("apply", "-", stdin=json.dumps(bad))
    assert status == 2
    edge.sh("rm /etc/demo/fill")
    assert edge.picture() == before
    assert edge.state()["differences"] == []


def test_the_release_before_returns_the_edge_when_the_new_one_is_broken(edge: Edge) -> None:
    edge.confirmed(generation(1))
    before = edge.picture()
    broken = generation(2)
    broken["parts"][0]["files"][0]["link"] = "releases/broken"
    edge.sh("cp -a /opt/unmoor/releases/two /opt/unmoor/releases/broken")
    edge.apply(broken, "--within", "3")
    edge.sh("rm -r /opt/unmoor/releases/broken/site")
    wait_until(lambda: not edge.state()["pending"])
    assert edge.picture() == before


def test_damaged_generations_are_refused(edge: Edge) -> None:
    edge.confirmed(generation(1))
    edge.confirmed(generation(2))
    old = edge.state()["history"][0]["id"]
    digest = hashlib.sha256(b"1\n").hexdigest()
    edge.sh(f"echo damaged > {HOME}/blobs/{digest}")
    before = edge.picture()
    status, output = edge.unmoor("rollback", old)
    assert status == 2
    assert "is damaged" in output
    assert "fix:" in output
    assert edge.picture() == before
    edge.sh(f"printf '1\\n' > {HOME}/blobs/{digest}")
