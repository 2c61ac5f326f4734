"""Pins removed by hand, commands side by side, limits: one line and a fix, never a traceback."""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest

from support.program import run
from support.sockets import Bed, ask, document, listener, refuses
from unmoor.bpf import libbpf
from unmoor.bpf.pins import SHARED
from unmoor.commands import main
from unmoor.errors import UnmoorError
from unmoor.sockets.activation.registrar import RefusedError
from unmoor.sockets.dispatch import generation
from unmoor.sockets.observe.status import read_status

WEB = {"label": "web", "ports": [80]}
MORE = {"label": "more", "ports": [81]}


@pytest.fixture
def bed(bed: Bed) -> Bed:
    bed.load(WEB)
    return bed


def map_id(path: Path) -> int:
    with libbpf.opened(path) as fd:
        return libbpf.map_info(fd).id


def check(bed: Bed, service: str = "web", port: int = 80) -> None:
    """Check that registered sockets are reached, and that every shared pin is a map of the program."""
    with listener(says="registered") as server:
        bed.register(service, server)
        assert ask("198.18.1.1", port).startswith("registered")
    with libbpf.opened(bed.pins.current / "dispatch") as program:
        used = libbpf.program_maps(program)
    assert {map_id(bed.pins.root / name) for name in (*SHARED, "registry")} <= used
    assert read_status(bed.pins).destinations


@pytest.mark.parametrize("name", ["sockets", "registry"])
@pytest.mark.parametrize("services", [(WEB,), (WEB, MORE)], ids=["same", "changed"])
def test_one_name_of_the_map_of_sockets_is_missing(
    bed: Bed, name: str, services: tuple[dict[str, Any], ...]
) -> None:
    with listener(says="before") as server:
        bed.register("web", server)
        (bed.pins.root / name).unlink()
        assert f"restored the pin {name}" in bed.load(*services).repairs
        assert ask("198.18.1.1", 80).startswith("before"), "no socket is lost"
        check(bed)
        assert not bed.load(*services).changed


def test_both_names_are_missing(bed: Bed) -> None:
    with listener(says="before") as server:
        bed.register("web", server)
        for name in ("sockets", "registry"):
            (bed.pins.root / name).unlink()
        change = bed.load(WEB)
        assert change.repairs == ("created the map of sockets again: register every service again",)
        assert refuses("198.18.1.1", 80)
        check(bed)
        # The generation before has the map that is lost.
        with pytest.raises(
            UnmoorError, match=r"previous: its program uses other maps than those pinned as sockets\n +fix:"
        ):
            generation.rollback(bed.pins)
        check(bed)


def test_registry_left_on_a_map_of_another_time(bed: Bed, tmp_path: Path) -> None:
    """As a release did that made `sockets` again and kept `registry`."""
    other = libbpf.create_map(libbpf.MAP_SOCKMAP, "sockets", 4, 8, 65536)
    with libbpf.closing(other):
        bed.pins.registry.unlink()
        libbpf.pin(other, bed.pins.registry)
    wrong = r"registry is not the map that the dispatch program uses"
    with listener() as server, pytest.raises(RefusedError, match=wrong):
        bed.register("web", server)
    assert bed.load(WEB).repairs == ("restored the pin registry",)
    check(bed)


@pytest.mark.parametrize("name", ["counters", "addresses", "seen"])
def test_a_shared_pin_is_missing(bed: Bed, name: str) -> None:
    (bed.pins.root / name).unlink()
    done = run("sockets", "metrics", "--addresses", "--pins", str(bed.pins.root))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"unmoor: {bed.pins.root / name}: this pin is missing",
        "    fix: run unmoor sockets load, which creates it again",
    ]
    assert generation.plan(document(WEB), None, bed.pins).repairs == (f"the pin {name} is missing",)
    assert bed.load(WEB).repairs == (f"created the pin {name} again: its counts are lost",)
    check(bed)


@pytest.mark.parametrize("name", ["dispatch", "explain", "answers", "ports", "record"])
def test_a_pin_of_the_generation_is_missing(bed: Bed, name: str) -> None:
    (bed.pins.current / name).unlink()
    assert bed.load(WEB).repairs
    check(bed)
    assert not bed.load(WEB).changed


def test_services_without_a_record_get_no_socket_of_others(bed: Bed) -> None:
    with listener(says="web") as server:
        bed.register("web", server)
        (bed.pins.current / "record").unlink()
        bed.load(MORE)  # it gets the id that web had
        assert refuses("198.18.1.1", 81)


@pytest.mark.parametrize("name", ["link", "current/dispatch", "sockets", "registry", "counters"])
@pytest.mark.parametrize("other", ["map", "program"])
def test_a_pin_of_another_kind(bed: Bed, name: str, other: str) -> None:
    kind = {"link": "link", "current/dispatch": "program"}.get(name, "map")
    if kind == other:
        return
    path = bed.pins.root / name
    source = bed.pins.current / ("ports" if other == "map" else "explain")
    with libbpf.opened(source) as fd:
        path.unlink()
        libbpf.pin(fd, path)
    edge, program = write(bed)
    pins = ("--pins", str(bed.pins.root))
    for command in (("load", "--config", str(edge), "--object", str(program)), ("rollback",)):
        done = run("sockets", *command, *pins)
        assert done.returncode == 2
        if command[0] == "load":
            assert done.stderr.splitlines() == [
                f"unmoor: {path}: this pin is a {other}, not a {kind}",
                "    fix: remove it, then run unmoor sockets load, which creates it again",
            ]
        assert "Traceback" not in done.stderr
    assert "Traceback" not in run("sockets", "status", *pins).stderr
    path.unlink()
    bed.load(WEB)
    check(bed)


def write(bed: Bed) -> tuple[Path, Path]:
    folder = bed.pins.root.parent.parent
    edge, program = folder / "edge.json", folder / "dispatch.o"
    text = {"pop": "ams", "edge": "edge1", "prefixes": ["198.18.0.0/20"], "services": [WEB]}
    edge.write_text(json.dumps(text))
    program.write_bytes(bed.code)
    return edge, program


def in_child(act: Callable[[], object], errors: Path) -> int:
    """Start a process that runs this and writes its errors to `errors`; returns its pid."""
    child = os.fork()
    if child:
        return child
    try:
        act()
        os._exit(0)
    except BaseException:
        with errors.open("a") as file:
            file.write(traceback.format_exc())
    finally:
        os._exit(1)


def test_load_beside_unload(bed: Bed, tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    errors.touch()

    def loads() -> None:
        for number in range(24):
            bed.load(*((WEB,) if number % 2 else (WEB, MORE)))

    def unloads() -> None:
        for _ in range(60):
            generation.unload(bed.pins)

    def reads() -> None:
        for _ in range(200):
            with suppress(UnmoorError):
                read_status(bed.pins)

    children = [in_child(act, errors) for act in (loads, loads, unloads, unloads, reads)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert (errors.read_text(), codes) == ("", [0] * 5)
    bed.load(WEB)
    check(bed)
    assert generation.unload(bed.pins)
    assert not bed.pins.root.exists()


def limited(output: Path, arguments: list[str], limit: int) -> int:
    """`unmoor` with these arguments and so many descriptors beside 0, 1 and 2; returns its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 9
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(file, number)
        os.closerange(3, 1024)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3 + limit, 3 + limit))
        sys.argv = ["unmoor", *arguments]
        with os.fdopen(1, "w", closefd=False) as out, redirect_stdout(out), redirect_stderr(out):
            try:
                main()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)


def test_out_of_descriptors(bed: Bed, tmp_path: Path) -> None:
    edge, program = write(bed)
    load = ["load", "--config", str(edge), "--object", str(program)]
    codes = []
    for command in (load, ["status"], ["explain", "tcp", "198.18.1.1", "80"], ["rollback"]):
        bed.load(WEB, MORE)
        for limit in range(20):
            output = tmp_path / "output"
            arguments = ["sockets", *command, "--pins", str(bed.pins.root)]
            codes.append(limited(output, arguments, limit))
            text = output.read_text()
            assert "Traceback" not in text, f"{command} with {limit} descriptors: {text}"
            assert codes[-1] in (0, 1, 2), text
            if codes[-1] == 2:
                assert text.splitlines()[-2:] == [
                    "unmoor: file descriptor limit reached",
                    "    fix: raise it: ulimit -n 1024, or LimitNOFILE=1024 in the unit",
                ]
    assert set(codes) > {0, 2}
    check(bed)
