"""Labs of two booted hosts: up, in, down, and everything that can be killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.checkout import ROOT
from support.waiting import wait_until
from unmoor.lab import cgroup, lab, layout, topology
from unmoor.lab.layout import Layout

UNMOOR = Path(sys.executable).with_name("unmoor")
# The first stays up for the tests that do no harm to it; each of the others starts and ends with nothing.
SHARED, OWN = "testlaba", "testlabb"


def unmoor(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [UNMOOR, "lab", *args], input=stdin, capture_output=True, text=True, check=False, timeout=300
    )


def ok(*args: str, stdin: str = "") -> str:
    done = unmoor(*args, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The default topology, and so the cached image, without the client and the second edge."""
    data = yaml.safe_load((ROOT / topology.DEFAULT).read_text(encoding="utf-8"))
    for host in ("client", "edge2"):
        del data["hosts"][host]
    router = data["hosts"]["router"]
    router["routes"] = {prefix: ["edge1"] for prefix in router["routes"]}
    path = tmp_path_factory.mktemp("lab") / "topology.yml"
    path.write_text(json.dumps(data), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def shared(two_hosts: str) -> Iterator[str]:
    try:
        yield ok("up", "--name", SHARED, "--topology", two_hosts)
    finally:
        ok("down", "--name", SHARED)


@pytest.fixture
def up(two_hosts: str) -> Iterator[Callable[..., str]]:
    try:
        yield lambda *more: ok("up", "--name", OWN, "--topology", two_hosts, *more)
    finally:
        ok("down", "--name", OWN)


def guest(*command: str, name: str = SHARED, host: str = "edge1", stdin: str = "") -> str:
    return ok("exec", "--name", name, host, "--", *command, stdin=stdin)


def status(name: str = SHARED, host: str = "edge1") -> dict[str, Any]:
    shown = json.loads(unmoor("status", "--name", name, "--json").stdout)["hosts"]
    found: dict[str, Any] = next(each for each in shown if each["host"] == host)
    return found


def remains(name: str) -> dict[str, list[str]]:
    """List everything of the lab that exists on this computer, of every kind that it could leave behind."""

    def said(path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""  # the process has ended

    place = Layout(name)
    # A process that has ended, and waits for its parent to hear of it, has no memory (nor mounts).
    alive = [pid for pid in Path("/proc").glob("[0-9]*") if said(pid / "maps")]
    groups = [root / "unmoor-lab" / name for root in cgroup.hierarchies()]
    return {
        "namespaces": [path.name for path in Path("/run/netns").glob(f"unmoor-{name}-*")],
        "processes": [
            said(pid / "cmdline").replace("\0", " ")
            for pid in alive
            if f"/unmoor-lab/{name}/" in said(pid / "cgroup") + said(pid / "cmdline")
            or f"unmoor-{name}-" in said(pid / "cmdline")
        ],
        "mounts": [
            line
            for pid in alive
            for line in said(pid / "mountinfo").splitlines()
            if f"unmoor-{name}-" in line or f"/unmoor-lab/{name}/" in line or f"/disks/{name}/" in line
        ],
        "cgroups": [str(path) for path in groups if path.exists()],
        "files": [str(path) for path in (place.state, layout.cache() / "disks" / name) if path.exists()],
    }


NOTHING: dict[str, list[str]] = {
    "namespaces": [], "processes": [], "mounts": [], "cgroups": [], "files": []
}  # fmt: skip


def nothing_is_left(name: str) -> None:
    # The kernel takes its time to be done with the last of the killed processes.
    wait_until(lambda: remains(name) == NOTHING, f"nothing is left: {remains(name)}")


def running(name: str = SHARED) -> bool:
    return guest("systemctl", "is-system-running", name=name) == "running\n"


def over_ssh(name: str, *command: str) -> str:
    args = ["ssh", "-F", str(Layout(name).ssh_config), "edge1", *command]
    done = subprocess.run(args, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout


@pytest.mark.usefixtures("shared")
def test_a_command_runs_in_the_guest_as_root() -> None:
    assert running()
    assert guest("hostname") == "edge1\n"
    assert guest("cat", stdin="through\n") == "through\n"
    assert guest("sh", "-c", "echo $HOME; pwd; command -v clang") == "/root\n/root\n/usr/bin/clang\n"
    assert unmoor("exec", "--name", SHARED, "edge1", "--", "sh", "-c", "exit 7").returncode == 7
    assert over_ssh(SHARED, "hostname") == "edge1\n"


@pytest.mark.usefixtures("shared")
def test_a_command_ends_with_the_one_that_asked_for_it() -> None:
    asking = subprocess.Popen([UNMOOR, "lab", "exec", "--name", SHARED, "edge1", "--", "sleep", "4321"])

    def asleep() -> bool:
        return unmoor("exec", "--name", SHARED, "edge1", "--", "pgrep", "-f", "^sleep 4321").returncode == 0

    wait_until(asleep, "it runs")
    asking.kill()
    asking.wait()
    wait_until(lambda: not asleep(), "it has ended")


@pytest.mark.usefixtures("shared")
def test_a_command_that_was_stopped_ends_as_well() -> None:
    """A guest that shuts down stops all its processes, ends them, and waits until each is reaped."""
    asking = subprocess.Popen([UNMOOR, "lab", "exec", "--name", SHARED, "edge1", "--", "sleep", "4322"])

    def send(number: str) -> bool:
        kill = ("pkill", f"--signal={number}", "-f", "^sleep 4322")
        return unmoor("exec", "--name", SHARED, "edge1", "--", *kill).returncode == 0

    wait_until(lambda: send("STOP"), "it runs")
    wait_until(lambda: guest("pgrep", "--runstates=T", "-f", "^sleep 4322") != "", "it is stopped")
    time.sleep(0.5)  # long enough to be seen by a waiting command; if not, the test is only weaker
    for number in ("TERM", "CONT"):
        assert send(number)
    try:
        assert asking.wait(60) in (-15, 128 + 15)
    finally:
        asking.kill()


@pytest.mark.usefixtures("shared")
def test_up_again_changes_nothing_and_another_topology_is_refused(two_hosts: str) -> None:
    leader = status()["leader"]
    ok("up", "--name", SHARED, "--topology", two_hosts)
    refused = unmoor("up", "--name", SHARED, "--topology", two_hosts, "--image", "bare")
    assert (refused.returncode, f"unmoor lab down --name {SHARED}" in refused.stderr) == (2, True)
    assert (status()["leader"], status()["phase"]) == (leader, "ready")


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("exec", "--name", "testnone", "edge1", "true"), "unmoor lab up --name testnone"),
        (("exec", "--name", SHARED, "edge7", "true"), "it has router, edge1"),
        (("up", "--name", SHARED, "--topology", "none.yml"), "none.yml"),
        (("down", "--name", "A/b"), "cannot be the name of a lab"),
    ],
)
def test_mistakes_are_named_with_their_fix(args: tuple[str, ...], said: str) -> None:
    done = unmoor(*args)
    assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (2, True, False)


@pytest.mark.usefixtures("shared")
def test_a_reboot_comes_back_with_the_labs_network_and_the_disk() -> None:
    guest("sh", "-c", "echo kept >/root/note; ip route add local 198.18.0.0/20 dev lo")
    boots, boot = status()["boots"], guest("cat", "/proc/sys/kernel/random/boot_id")
    guest("systemctl", "reboot")
    wait_until(lambda: status()["boots"] == boots + 1 and status()["phase"] == "ready", "it has booted again")
    assert guest("cat", "/proc/sys/kernel/random/boot_id") != boot
    assert guest("cat", "/root/note") == "kept\n"
    assert "local 198.18.0.0/20" not in guest("ip", "route", "show", "table", "local")
    assert "ttl=64" in guest("ping", "-c1", "-W2", "198.19.1.1")


@pytest.mark.usefixtures("shared")
def test_a_host_that_is_off_is_reported_and_started_again(two_hosts: str) -> None:
    guest("systemctl", "poweroff")
    wait_until(lambda: status()["phase"] == "off", "it is off")
    assert unmoor("status", "--name", SHARED).returncode == 1
    refused = unmoor("exec", "--name", SHARED, "edge1", "--", "true")
    assert (refused.returncode, "is off" in refused.stderr) == (2, True)
    ok("up", "--name", SHARED, "--topology", two_hosts)
    assert running()


def test_a_bare_host_installs_packages_without_a_network(up: Callable[..., str]) -> None:
    up("--image", "bare")
    assert unmoor("exec", "--name", OWN, "edge1", "--", "nginx", "-v").returncode == 127
    guest("apt-get", "install", "--yes", "nginx", name=OWN)
    assert guest("systemctl", "is-active", "nginx", name=OWN) == "active\n"


def test_a_lab_works_below_another_root_directory(two_hosts: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    commands = """
        mount --rbind / "$1"
        exec chroot "$1" sh -ec '
            trap "$1 lab down --name $2 >&2" EXIT
            "$1" lab up --name "$2" --topology "$3" >&2
            "$1" lab exec --name "$2" edge1 -- sh -c "hostname; pwd; cat /etc/hostname"' sh "$2" "$3" "$4"
    """
    args = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", commands, "sh"]
    done = subprocess.run(
        [*args, root, UNMOOR, OWN, two_hosts], capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "edge1\n/root\nedge1\n"), done.stderr
    nothing_is_left(OWN)


@pytest.mark.usefixtures("shared")
def test_two_labs_side_by_side_know_nothing_of_each_other(up: Callable[..., str]) -> None:
    up()
    for name in (SHARED, OWN):
        guest("sh", "-c", f"echo {name} >/root/note", name=name)
    for name in (SHARED, OWN):
        assert over_ssh(name, "cat", "/root/note") == f"{name}\n"
    assert {SHARED, OWN} <= set(lab.names())
    ok("down", "--name", OWN)
    nothing_is_left(OWN)
    assert OWN not in lab.names()
    assert unmoor("status", "--name", OWN).returncode == 1
    assert over_ssh(SHARED, "cat", "/root/note") == f"{SHARED}\n"
    assert "ttl=64" in guest("ping", "-c1", "-W2", "198.19.1.1")


def victims() -> list[Callable[[], int]]:
    """The processes that hold a host: its supervisor, the nspawn below it, the first one in the guest."""

    def supervisor() -> int:
        text = (Layout(OWN).host("edge1") / "state.json").read_text(encoding="utf-8")
        return int(json.loads(text)["supervisor"])

    def nspawn() -> int:
        children = Path(f"/proc/{supervisor()}/task/{supervisor()}/children")
        return int(children.read_text(encoding="ascii"))

    def leader() -> int:
        return int(status(OWN)["leader"])

    return [supervisor, nspawn, leader]


def test_what_is_killed_is_repaired_by_up_and_removed_by_down(up: Callable[..., str]) -> None:
    up()
    over_ssh(OWN, "true")  # leaves a shared connection behind
    before = remains(OWN)
    assert all(before.values()), f"this test would not see what is left: {before}"
    for victim in victims():
        os.kill(victim(), signal.SIGKILL)
        wait_until(lambda: status(OWN)["phase"] == "off", "it is off")
        up()
        assert running(OWN)
    for pid in [victim() for victim in victims()]:
        os.kill(pid, signal.SIGKILL)
    ok("down", "--name", OWN)
    nothing_is_left(OWN)
    ok("down", "--name", OWN)


@pytest.mark.parametrize("stage", ["files", "cgroups", "namespaces", "processes"])
def test_an_up_that_was_killed_is_cleaned_by_down_and_by_the_next_up(
    stage: str, up: Callable[..., str], two_hosts: str
) -> None:
    def killed() -> None:
        args = [UNMOOR, "lab", "up", "--name", OWN, "--topology", two_hosts]
        building = subprocess.Popen(args, stdout=subprocess.DEVNULL)
        wait_until(lambda: bool(remains(OWN)[stage]), f"there are {stage}")
        building.kill()
        building.wait()

    killed()
    ok("down", "--name", OWN)
    nothing_is_left(OWN)
    killed()
    up()
    assert running(OWN)
