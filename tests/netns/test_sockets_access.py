"""Which users may open which pins; readers can read, and change nothing."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.program import run
from support.sockets import ROOT_PEER, Bed, listener, make_local, refuses
from support.waiting import wait_until
from unmoor.bpf import libbpf
from unmoor.bpf import pins as pinned
from unmoor.bpf.pins import Pins
from unmoor.sockets.activation.explain import explain
from unmoor.sockets.activation.protocol import Question
from unmoor.sockets.activation.registrar import Peer, RefusedError, Registrar
from unmoor.sockets.dispatch import generation

WEB = {"label": "web", "ports": [80]}
# Users of these tests: the account `unmoor`, a member of its group, and neither.
ACCOUNT, MEMBER, STRANGER, GROUP = 65531, 65532, 65533, 65531

Python = Callable[[str], list[str]]


@pytest.fixture
def bed(netns: None, pins: Pins, code: bytes, monkeypatch: pytest.MonkeyPatch) -> Bed:
    """A loaded table on a computer that has the account `unmoor`."""
    make_local()
    accounts = {"unmoor": ACCOUNT, "root": 0}
    monkeypatch.setattr(
        pinned, "pwd", SimpleNamespace(getpwnam=lambda name: SimpleNamespace(pw_uid=accounts[name]))
    )
    monkeypatch.setattr(
        pinned, "grp", SimpleNamespace(getgrnam=lambda name: SimpleNamespace(gr_gid=accounts[name]))
    )
    assert all(each.pw_uid not in (ACCOUNT, MEMBER, STRANGER) for each in pwd.getpwall())
    bed = Bed(pins, code)
    bed.load(WEB)
    return bed


@pytest.fixture
def python_for_others(unmoor_for_others: list[str]) -> Python:
    """A command that runs this Python code, which may import Unmoor."""
    python, option, run = unmoor_for_others
    return lambda code: [python, option, run.split("from unmoor")[0] + code]


def as_user(user: int, group: int, *capabilities: str) -> list[str]:
    """A command prefix."""
    caps = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    prefix = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs"]
    return [*prefix, f"--inh-caps={caps}", f"--ambient-caps={caps}", f"--bounding-set={caps}"]


@contextmanager
def service(bed: Bed, unmoor: list[str], folder: Path) -> Iterator[Path]:
    """The activation service, with the rights of its unit; the path of its socket."""
    folder.mkdir()
    os.chown(folder, ACCOUNT, GROUP)
    path = folder / "a.sock"
    command = [*as_user(ACCOUNT, GROUP, "bpf", "net_admin"), *unmoor, "sockets", "serve"]
    process = subprocess.Popen(
        [*command, "--pins", str(bed.pins.root), "--socket", str(path)], stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: path.exists() or process.poll() is not None)
        yield path
    finally:
        process.kill()
        process.communicate()


ATTACH = """
import os, sys
from pathlib import Path
from unmoor.bpf import libbpf
namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
for path in sorted(Path(sys.argv[1]).rglob("*")):
    for open_pin in (libbpf.open_pin, libbpf.open_pin_to_read):
        try:
            os.close(libbpf.attach(open_pin(path), namespace))
        except OSError:
            continue
        print("attached", path.relative_to(sys.argv[1]))
"""


def test_a_member_can_attach_no_program(bed: Bed, python_for_others: Python) -> None:
    bed.load({**WEB, "ports": [81]})
    command = [*as_user(MEMBER, GROUP), *python_for_others(ATTACH), str(bed.pins.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "")


def test_an_attached_explain_moves_no_connection(bed: Bed) -> None:
    with (
        listener(says="old") as old,
        libbpf.opened(bed.pins.current / "explain") as program,
        generation.OWN_NETNS.open("rb") as namespace,
        libbpf.closing(libbpf.attach(program, namespace.fileno())),
    ):
        bed.register("web", old)
        bed.load({**WEB, "ports": [81]})
        reached = sum(not refuses("198.18.1.1", 80) for _ in range(200))
        assert reached == 0, f"{reached} of 200 connections to the port moved away reached the old socket"
        assert not refuses("198.18.1.1", 81)


def test_modes(bed: Bed) -> None:
    bed.load({**WEB, "ports": [81]})
    found = {}
    for path in bed.pins.root.rglob("*"):
        at = path.stat()
        found[str(path.relative_to(bed.pins.root))] = f"{at.st_mode & 0o777:o} {at.st_uid}:{at.st_gid}"
    generations = {
        "": f"750 0:{GROUP}",
        "/dispatch": "600 0:0",
        "/explain": f"600 {ACCOUNT}:0",
        "/answers": f"660 {ACCOUNT}:0",
        **{f"/{name}": f"640 0:{GROUP}" for name in ("ports", "nodes", "leaves", "record")},
    }
    assert found == {
        "link": "600 0:0",
        "lock": "700 0:0",
        "guard": f"750 {ACCOUNT}:0",
        "registry": f"640 {ACCOUNT}:0",
        **dict.fromkeys(pinned.SHARED, f"640 0:{GROUP}"),
        **{f"current{name}": text for name, text in generations.items()},
        **{f"previous{name}": text for name, text in generations.items()},
    }


def test_the_next_load_corrects_the_modes_of_an_earlier_release(bed: Bed) -> None:
    bed.load({**WEB, "ports": [81]})
    for directory in (bed.pins.current, bed.pins.previous):
        for name in ("explain", "answers"):
            (directory / name).chmod(0o660)
            os.chown(directory / name, 0, GROUP)
    bed.pins.registry.chmod(0o600)
    (bed.pins.root / "guard").rmdir()
    assert not bed.load({**WEB, "ports": [81]}).changed
    test_modes(bed)


def test_a_member_asks_the_service(bed: Bed, unmoor_for_others: list[str], open_path: Path) -> None:
    question = ["sockets", "explain", "tcp", "198.18.3.7", "80", "--pins", str(bed.pins.root), "--socket"]
    with listener() as four, service(bed, unmoor_for_others, open_path / "run") as path:

        def ask_as(user: int, group: int) -> subprocess.CompletedProcess[str]:
            command = [*as_user(user, group), *unmoor_for_others, *question, str(path)]
            return subprocess.run(command, capture_output=True, text=True, check=False)

        assert ask_as(MEMBER, GROUP).stdout == (
            "tcp 198.18.3.7 port 80: miss\n"
            "  binding  tcp 198.18.0.0/20 80 -> web\n"
            "  because  no socket is registered: the packet is refused and counted as a miss\n"
        )
        bed.register("web", four)
        done = ask_as(MEMBER, GROUP)
        assert (done.returncode, done.stdout) == (0, run(*question, str(path)).stdout)
        done = ask_as(STRANGER, STRANGER)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    done = ask_as(MEMBER, GROUP)
    assert (done.returncode, "is unmoor-activation.service running?" in done.stderr) == (2, True)


def test_users_who_may_query(bed: Bed) -> None:
    question = Question("tcp", ip_address("198.18.3.7"), 80)
    registry = Registrar(bed.pins)
    for peer in (ROOT_PEER, Peer(1, MEMBER, frozenset({7, GROUP}))):
        assert registry.explain(question, peer)["service"] == 0
    with pytest.raises(RefusedError, match="user id 65533 may not read the pins"):
        registry.explain(question, Peer(1, STRANGER, frozenset({STRANGER})))


HOLD = """
import fcntl, os, sys
from pathlib import Path
held = []
for path in [Path(sys.argv[1]), *sorted(Path(sys.argv[1]).rglob("*"))]:
    try:
        held.append(os.open(path, os.O_RDONLY))
        fcntl.flock(held[-1], fcntl.LOCK_EX)
    except OSError:
        pass
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_member_cannot_block_root(bed: Bed, python_for_others: Python) -> None:
    bed.load({**WEB, "ports": [80, 81]})
    command = [*as_user(MEMBER, GROUP), *python_for_others(HOLD), str(bed.pins.root)]
    pins = ("--pins", str(bed.pins.root))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as member:
        try:
            assert member.stdout
            assert member.stdout.readline() == "locked\n"
            assert run("sockets", "explain", "tcp", "198.18.3.7", "80", *pins, timeout=30).returncode == 1
            assert run("sockets", "rollback", *pins, timeout=30).returncode == 0
            assert run("sockets", "unload", *pins, timeout=30).returncode == 0
        finally:
            member.kill()


def test_explain_agrees_with_itself_while_loads_go_on(bed: Bed) -> None:
    child = os.fork()
    if not child:
        try:
            for number in range(8):
                bed.load({**WEB, "ports": [80, 81 + number % 2]})
            os._exit(0)
        finally:
            os._exit(1)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        assert explain(bed.pins, "tcp", ip_address("198.18.3.7"), 80).service == "web"
        if ended:
            break
    assert os.waitstatus_to_exitcode(status) == 0
