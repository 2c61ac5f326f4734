"""Starting other programs: output, and errors that name command, status, last lines and fix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unmoor import process
from unmoor.process import ProcessError

PYTHON = sys.executable


def python(code: str) -> list[str]:
    return [PYTHON, "-c", code]


def test_output_is_decoded_whatever_it_is() -> None:
    done = process.run(["sh", "-c", r"printf '\303\244\377'; cat >&2"], stdin="ä\n")
    assert done == process.Output(0, "ä\N{REPLACEMENT CHARACTER}", "ä\n")


def test_without_stdin_there_is_no_input() -> None:
    reader, writer = os.pipe()  # never at its end: a program that inherited it would wait
    saved = os.dup(0)
    try:
        os.dup2(reader, 0)
        assert process.run(["cat"], timeout=60).stdout == ""
    finally:
        os.dup2(saved, 0)
        for each in (saved, reader, writer):
            os.close(each)


def test_the_environment_is_added_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMOOR_OLD", "1")
    done = process.run(["sh", "-c", "echo $UNMOOR_OLD $UNMOOR_NEW"], env={"UNMOOR_NEW": "2"})
    assert done.stdout == "1 2\n"


def test_a_failure_names_command_status_last_lines_and_fix() -> None:
    command = python("import sys; print(*range(40), sep='\\n', file=sys.stderr); sys.exit(3)")
    with pytest.raises(ProcessError) as raised:
        process.run(command, fixes={"no such text": "wrong", "39": "count less"})
    error = raised.value
    assert (error.command, error.status, error.fix) == (tuple(command), 3, "count less")
    assert error.stderr.split() == [str(number) for number in range(25, 40)]
    first, *lines = str(error).splitlines()
    assert first.startswith(f"{PYTHON} -c 'import sys;")
    assert first.endswith("exit status 3:")
    assert lines[-2:] == ["    39", "    fix: count less"]


def test_a_failure_without_errors_shows_the_output() -> None:
    with pytest.raises(ProcessError, match=r"exit status 1:\n    out$"):
        process.run(["sh", "-c", "echo out; exit 1"])
    with pytest.raises(ProcessError, match=r"exit status 1$"):
        process.run(["false"])
    assert process.run(["false"], check=False).status == 1


def test_a_killed_program_is_named_by_its_signal() -> None:
    with pytest.raises(ProcessError, match=r"killed by SIGTERM$"):
        process.run(["sh", "-c", "kill -TERM $$"])
    assert process.run(["sh", "-c", "kill -KILL $$"], check=False).status == -9


def test_a_program_that_does_not_end_is_killed() -> None:
    with pytest.raises(ProcessError, match=r"had not ended after 0\.5 s") as raised:
        process.run(["sleep", "1000"], timeout=0.5, check=False)
    assert raised.value.status is None


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for call in (process.run, process.start):
        with pytest.raises(ProcessError, match=r"^ip: no such program\n    fix: install .* iproute2$"):
            call(["ip", "route"])
    with pytest.raises(ProcessError, match=r"^ip: no such program\n"):
        process.become(["ip", "route"], {"PATH": str(tmp_path)})
    unknown = tmp_path / "unknown"
    with pytest.raises(ProcessError, match=r"unknown: no such program$"):
        process.run([str(unknown)])
    unknown.mkdir()
    with pytest.raises(ProcessError, match=r"unknown: cannot be run: Permission denied$"):
        process.run([str(unknown)])


def test_a_long_command_is_shortened() -> None:
    shown = process.shown(["apt-get", "install", *(f"package{number}" for number in range(100))])
    assert len(shown) < 250
    assert shown.startswith("apt-get install package0 ")
    assert shown.endswith(" package99")


def test_a_started_program_outlives_the_call(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with (tmp_path / "log").open("wb") as log:
        started = process.start(
            ["sh", "-c", f"read line </dev/fd/{reader}; echo $line; echo $WORD >&2; exit 4"],
            env={"WORD": "error"},
            descriptors=[reader],
            output=log,
        )
    assert process.wait(started, 0.01) is None
    os.write(writer, b"line\n")
    assert process.wait(started, 60) == 4
    assert (tmp_path / "log").read_text() == "line\nerror\n"
    for each in (reader, writer):
        os.close(each)


def test_standard_error_can_be_read() -> None:
    started = process.start(["sh", "-c", "echo error >&2"], capture_errors=True)
    assert started.stderr is not None
    with started.stderr as stream:
        assert stream.read() == b"error\n"
    assert process.wait(started, 60) == 0


def test_with_a_session_an_interrupt_of_the_terminal_does_not_reach_it() -> None:
    code = "import os; print(os.getsid(0) == os.getpid())"
    assert process.run(python(code), session=True).stdout == "True\n"
    assert process.run(python(code)).stdout == "False\n"


def test_the_command_line_prints_an_error_without_a_traceback(tmp_path: Path) -> None:
    program = Path(PYTHON).with_name("unmoor")
    done = subprocess.run(
        [program, "anyip", "remove"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "unmoor: ip: no such program\n    fix: install the Debian package iproute2\n"
