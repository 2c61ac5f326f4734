"""The sizes and layouts of layout.py are those of dispatch.bpf.c, as clang compiles it."""

from __future__ import annotations

import json
import subprocess
from importlib.resources import as_file, files
from itertools import accumulate
from pathlib import Path
from struct import Struct, calcsize
from typing import Any

import pytest

from unmoor.bpf import layout
from unmoor.bpf.compiler import compile_program

#: Struct of C -> its layout in Python and the names of its fields in order, without padding at the end.
STRUCTS: dict[str, tuple[Struct, str]] = {
    "port": (layout.PORT, "ipv4 ipv6"),
    "node": (layout.NODE, "first pos bits zero"),
    "leaf": (
        layout.LEAF,
        "high low mask_high mask_low parent service ifindex length address_base",
    ),
    "seen": (layout.SEEN, "high low count"),
    "question": (layout.QUESTION, "high low expected"),
    "batch": (layout.BATCH, "port is_ipv6 ifindex next end wrong first_wrong found"),
    "answer": (layout.ANSWER, "bound service length ifindex error asked_ifindex"),
    "counters": (layout.COUNTERS_STRUCT, " ".join((*layout.COUNTERS, "zero"))),
}
CONSTANTS = (
    "MAX_SERVICES",
    "SOCKET_SLOTS",
    "MAX_DEPTH",
    "MAX_NESTING",
    "ADDRESS_CHUNK",
    "ADDRESS_CHUNKS",
    "SEEN_SETS",
    "SEEN_WAYS",
)


@pytest.fixture(scope="module")
def structs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Structs by name, from the compiled program's debugging information (BTF)."""
    compiled = tmp_path_factory.mktemp("layout") / "dispatch.o"
    compile_program(compiled)
    dump = subprocess.run(
        ["bpftool", "--json", "btf", "dump", "file", str(compiled)],
        capture_output=True,
        text=True,
        check=True,
    )
    return {each["name"]: each for each in json.loads(dump.stdout)["types"] if each["kind"] == "STRUCT"}


def offsets(form: Struct) -> list[int]:
    """Where each field of a packed layout without padding between fields begins, in octets."""
    codes = form.format.lstrip("=").replace("8x", "")
    expanded: list[str] = []
    count = ""
    for char in codes:
        if char.isdigit():
            count += char
        else:
            expanded += [char] * int(count or 1)
            count = ""
    return [0, *accumulate(calcsize(f"={code}") for code in expanded)][:-1]


@pytest.mark.parametrize("name", STRUCTS)
def test_structs(name: str, structs: dict[str, Any]) -> None:
    form, fields = STRUCTS[name]
    found = structs[name]
    assert found["size"] == form.size
    there = {each["name"]: each["bits_offset"] // 8 for each in found["members"]}
    assert dict(zip(fields.split(), offsets(form), strict=True)).items() <= there.items()


def test_hints_follow_the_answer(structs: dict[str, Any]) -> None:
    found = structs["answers"]
    there = {each["name"]: each["bits_offset"] // 8 for each in found["members"]}
    assert there == {"answer": 0, "empty": layout.HINTS_OFFSET}
    assert found["size"] == layout.ANSWERS_SIZE


def test_the_marks_of_roots() -> None:
    with as_file(files("unmoor.sockets.dispatch") / "dispatch.bpf.c") as source:
        text = Path(source).read_text(encoding="utf-8")
    for name in ("ROOT_IS_LEAF", "ROOT_AND_ANY"):
        assert f"#define {name} (1u << {getattr(layout, name).bit_length() - 1})\n" in text


def test_constants() -> None:
    with as_file(files("unmoor.sockets.dispatch") / "dispatch.bpf.c") as source:
        text = Path(source).read_text(encoding="utf-8")
    defined = {
        words[1]: int(words[2])
        for line in text.splitlines()
        if len(words := line.split()) == 3 and words[0] == "#define" and words[2].isdigit()
    }
    assert {name: defined[name] for name in CONSTANTS} == {name: getattr(layout, name) for name in CONSTANTS}
