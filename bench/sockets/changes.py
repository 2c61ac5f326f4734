"""(c) Measure the time to replace a table, and count connections that fail meanwhile."""

from __future__ import annotations

import gc
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import floods
import tables

from support.program import UNMOOR
from support.sockets import Bed, listener
from unmoor import model
from unmoor.bpf.pins import Pins
from unmoor.model import EdgeDocument
from unmoor.sockets.dispatch import generation

CLIENTS, REPLACEMENTS, UPGRADES = 10, 200, 50


@dataclass(frozen=True)
class Seconds:
    """Seconds to replace a table: from memory, from its file, by the command; and CPU time of the first."""

    memory: float
    file: float
    command: float
    cpu: float


def replace(
    make: Callable[[int], EdgeDocument], pins: Pins, code: bytes, directory: Path, turns: int
) -> Seconds:
    """Return medians of turns in which two tables replace each other."""
    program, paths = directory / "dispatch.o", []
    program.write_bytes(code)
    for seed in (1, 2):
        paths.append(directory / f"edge{seed}.json")
        paths[-1].write_text(make(seed).model_dump_json(), encoding="utf-8")
    documents = [model.load(EdgeDocument, path) for path in paths]

    def in_memory(turn: int) -> None:
        change = generation.load(documents[turn % 2], code, pins)
        if len(change.added) < 1000:
            raise RuntimeError("the load replaced fewer than 1000 bindings")

    def from_file(turn: int) -> None:
        generation.load(model.load(EdgeDocument, paths[turn % 2]), code, pins)

    def command(turn: int) -> None:
        arguments = ["--config", paths[turn % 2], "--object", program, "--pins", pins.root]
        subprocess.run([*UNMOOR, "sockets", "load", *map(str, arguments)], check=True, capture_output=True)

    in_memory(1)
    cpu: list[float] = []
    memory = _median(in_memory, turns, cpu)
    gc.disable()  # as the command does
    file = _median(from_file, turns)
    gc.enable()
    found = Seconds(memory, file, _median(command, turns), statistics.median(cpu))
    generation.unload(pins)
    return found


def _median(act: Callable[[int], None], turns: int, cpu: list[float] | None = None) -> float:
    times = []
    for turn in range(turns + turns % 2):  # even, so that the last table is the first again
        begin, begin_cpu = time.perf_counter(), time.process_time()
        act(turn)
        times.append(time.perf_counter() - begin)
        if cpu is not None:
            cpu.append(time.process_time() - begin_cpu)
    return statistics.median(times)


def failures(pins: Pins, code: bytes) -> tuple[int, int]:
    """Return the number of connections during changes of tables and programs, and how many failed."""
    floods.run("ip", "route", "replace", "local", "198.18.0.0/20", "dev", "lo")
    wrong: list[str] = []
    made = [0] * CLIENTS
    stopping = threading.Event()

    def hammer(number: int) -> None:
        while not stopping.is_set():
            address = f"198.18.{number}.{made[number] % 256}"
            try:
                with socket.create_connection((address, 80), timeout=5) as client:
                    if client.recv(100) != f"web {address} 80".encode():
                        wrong.append("misdirected")
            except OSError as error:
                wrong.append(str(error))
            made[number] += 1

    documents = [tables.thirteen(), tables.thirteen(ports=tables.PORTS[:7])]
    generation.load(documents[0], code, pins)
    with listener(says="web", backlog=1024) as server, ExitStack() as stack:
        Bed(pins, code).register("web", server)
        threads = [threading.Thread(target=hammer, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            stack.callback(thread.join)
        stack.callback(stopping.set)
        for thread in threads:
            thread.start()
        for turn in range(REPLACEMENTS):
            generation.load(documents[(turn + 1) % 2], code, pins)
        for turn in range(UPGRADES):
            generation.load(documents[0], code + bytes(1 + turn % 2), pins)
    generation.unload(pins)
    return sum(made), len(wrong)
