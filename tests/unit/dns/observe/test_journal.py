"""The journal of addresses: the records of a server, and what `unmoor dns journal` reads from them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.dns_document import document, model
from support.dns_server import running
from support.program import run
from support.waiting import wait_until
from unmoor.dns.observe import history, journal
from unmoor.dns.observe.history import History, Moment
from unmoor.dns.observe.journal import Journal
from unmoor.dns.server import control
from unmoor.errors import UnmoorError
from unmoor.model import DnsDocument

START = datetime(2026, 11, 23, 6, 0, 0, tzinfo=UTC)
INSIDE_24 = ip_address("198.18.3.7")
OUTSIDE_24 = ip_address("198.18.9.9")


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def at(self, minutes: float) -> None:
        self.now = START + timedelta(minutes=minutes)


def minute(number: float) -> Moment:
    moment = START + timedelta(minutes=number)
    return Moment(moment, moment)


def opened(directory: Path, clock: Clock) -> Journal:
    found = Journal(directory, clock)
    found.take()
    return found


def narrow(**changes: Any) -> DnsDocument:
    """The small document, with the pool `free` cut down to a /24."""
    data = document(**changes)
    data["pools"]["free"]["ipv4"] = ["198.18.3.0/24"]
    return model(data)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def written(tmp_path: Path, clock: Clock) -> Journal:
    """From minute 0 the /20; from minute 10 (in force by 10:06) the /24; stopped at minute 20."""
    found = opened(tmp_path, clock)
    found.start(model(document()), 1)
    clock.at(10)
    found.change(narrow(), 2)
    clock.at(10.1)
    found.settle(narrow(), 2)
    clock.at(20)
    found.stop(narrow(), 2)
    return found


def spans(
    found: History, address: Any, moment: Moment | None = None
) -> list[tuple[str, float, float | None]]:
    """Policy, and from which minute to which, of each interval."""
    return [
        (
            each.use.policy,
            (each.start - START) / timedelta(minutes=1),
            None if each.end is None else (each.end - START) / timedelta(minutes=1),
        )
        for each in found.of(address, moment)
    ]


@pytest.mark.usefixtures("written")
def test_policies_of_an_address_at_a_time(tmp_path: Path) -> None:
    found = history.read(tmp_path)
    # One interval, though the pool changed around it.
    assert spans(found, INSIDE_24) == [("free", 0, 20)]
    # The old workers answered until the change was in force.
    assert spans(found, OUTSIDE_24) == [("free", 0, 10.1)]
    assert spans(found, ip_address("2001:db8::77")) == [("free", 0, 20)]
    assert spans(found, ip_address("198.51.100.77")) == [("business", 0, 20)]
    assert spans(found, ip_address("198.51.100.200")) == []
    assert spans(found, ip_address("203.0.113.1")) == []


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize(
    ("at", "met", "answered"),
    [(-0.1, False, False), (5, True, True), (10.05, True, True), (10.3, True, False), (10.7, False, False)],
)
def test_an_address_is_in_use_for_the_ttl_after_it_was_answered_last(
    tmp_path: Path, at: float, met: bool, answered: bool
) -> None:
    found = history.read(tmp_path).of(OUTSIDE_24, minute(at))
    assert bool(found) == met
    assert any(each.answered(minute(at)) for each in found) == answered
    if found:
        assert found[0].cached_until == START + timedelta(minutes=10.1, seconds=30)


def test_what_a_record_holds(tmp_path: Path, clock: Clock) -> None:
    policies = [
        {"name": "elsewhere", "match": {"pops": ["ams"]}, "answer": {"pool": "free", "ttl": 5}},
        {
            "name": "fixed",
            "match": {"types": ["A"], "tags": {"account_type": "free"}},
            "answer": {
                "pool": "free",
                "ttl": 60,
                "strategy": "pinned",
                "addresses": ["198.18.0.9", "2001:db8::9"],
            },
        },
        {"name": "rest", "answer": {"pool": "free", "ttl": 30, "weight": 9, "also": {"business": 1}}},
    ]
    pools = {
        "free": {"ipv4": ["198.18.0.0/24"], "ipv6": ["2001:db8::/64"], "exclude": ["198.18.0.0/31"]},
        "business": {"ipv4": ["198.51.100.1/32"]},
    }
    opened(tmp_path, clock).start(model(document(policies=policies, pools=pools)), 1)
    (path,) = journal.files(tmp_path)
    assert path.name == "journal-2026-11.jsonl"
    assert path.stat().st_mode & 0o777 == 0o640
    assert json.loads(path.read_text()) == {
        "version": 1,
        "time": "2026-11-23T06:00:00.000000Z",
        "pop": "lab",
        "edge": "edge1",
        "event": "start",
        "generation": 1,
        "policies": [
            {
                "policy": "fixed",
                "strategy": "pinned",
                "ttl": 60,
                "pools": [{"pool": "free", "weight": 1, "addresses": ["198.18.0.9"]}],
            },
            {
                "policy": "rest",
                "strategy": "random",
                "ttl": 30,
                "pools": [
                    {
                        "pool": "free",
                        "weight": 9,
                        "addresses": ["198.18.0.2-198.18.0.255", "2001:db8::-2001:db8::ffff:ffff:ffff:ffff"],
                        "excluded": ["198.18.0.0/31"],
                    },
                    {"pool": "business", "weight": 1, "addresses": ["198.51.100.1"]},
                ],
            },
        ],
    }


def test_a_reload_that_changes_no_address_is_no_change(tmp_path: Path, clock: Clock) -> None:
    written = opened(tmp_path, clock)
    written.start(model(document()), 1)
    clock.at(1)
    written.change(model(document(rate_limit=5)), 2)
    written.settle(model(document(rate_limit=5)), 2)
    records = [json.loads(line) for line in journal.files(tmp_path)[0].read_text().splitlines()]
    assert [(record["event"], record["generation"]) for record in records] == [("start", 1), ("same", 2)]
    assert "policies" not in records[1]


def test_a_change_that_fails_was_answered_for_a_moment_only(tmp_path: Path, clock: Clock) -> None:
    written = opened(tmp_path, clock)
    written.start(narrow(), 1)
    clock.at(1)
    written.change(model(document()), 2)
    clock.at(2)
    written.refuse(narrow(), 1)
    clock.at(3)
    written.change(narrow(), 2)  # the state in force has a record again: no change
    written.stop(narrow(), 2)
    found = history.read(tmp_path)
    assert spans(found, OUTSIDE_24) == [("free", 1, 2)]
    assert spans(found, INSIDE_24) == [("free", 0, 3)]


def test_restarts(tmp_path: Path, clock: Clock) -> None:
    """A quick one is no gap, since resolvers kept the addresses meanwhile; a long one is."""
    for began, ended in ((0, 5), (5.2, 10), (60, 70)):
        written = opened(tmp_path, clock)
        clock.at(began)
        written.start(model(document()), 1)
        clock.at(ended)
        written.stop(model(document()), 1)
        written.release()
    found = history.read(tmp_path)
    assert spans(found, INSIDE_24) == [("free", 0, 10), ("free", 60, 70)]
    assert [found.ran(minute(at)) for at in (-1, 3, 5.1, 7, 30, 65, 71)] == [
        *(False, True, False, True, False, True, False),
    ]
    said = list(history.lines(found, INSIDE_24, minute(30)))
    assert said[1] == (
        "the server was not running then: it had stopped by 2026-11-23T06:10:00Z, "
        "began again at 2026-11-23T07:00:00Z"
    )
    assert said[2] == "no policy answered with it then"


@pytest.mark.parametrize(
    ("seconds", "intervals"),
    [
        (29.9, [("free", 0, 15)]),
        (30, [("free", 0, 15)]),
        (30.1, [("free", 0, 5), ("free", pytest.approx(5 + 30.1 / 60), 15)]),
    ],
)
def test_a_restart_within_the_ttl_joins_intervals(
    tmp_path: Path, clock: Clock, seconds: float, intervals: list[tuple[str, float, float]]
) -> None:
    for began, ended in ((0, 5), (5 + seconds / 60, 15)):
        written = opened(tmp_path, clock)
        clock.at(began)
        written.start(model(document()), 1)  # its TTL is 30 s
        clock.at(ended)
        written.stop(model(document()), 1)
        written.release()
    assert spans(history.read(tmp_path), INSIDE_24) == intervals


def test_an_interval_that_has_not_ended_takes_in_the_next(tmp_path: Path, clock: Clock) -> None:
    written = opened(tmp_path, clock)
    written.start(model(document()), 1)
    clock.at(10)
    written.change(narrow(), 2)  # not in force yet: both ranges are in use
    assert spans(history.read(tmp_path), INSIDE_24) == [("free", 0, None)]
    assert spans(history.read(tmp_path), OUTSIDE_24) == [("free", 0, None)]


def test_an_end_without_a_record(tmp_path: Path, clock: Clock) -> None:
    first = opened(tmp_path, clock)
    first.start(model(document()), 1)
    first.release()  # as when its processes are killed
    found = history.read(tmp_path)
    (interval,) = found.of(INSIDE_24)
    assert not interval.recorded
    assert interval.end
    clock.at(10)
    second = opened(tmp_path, clock)
    second.start(narrow(), 1)
    found = history.read(tmp_path)
    assert spans(found, OUTSIDE_24) == [("free", 0, 10)]
    assert "some time before 2026-11-23T06:10:00Z (the server ended without a record)" in "\n".join(
        history.lines(found, OUTSIDE_24, None)
    )
    assert spans(found, INSIDE_24) == [("free", 0, None)]
    assert found.of(INSIDE_24)[0].recorded


def test_a_release_that_fails_after_it_wrote(tmp_path: Path, clock: Clock) -> None:
    old, new = opened(tmp_path, clock), Journal(tmp_path, clock)
    old.start(narrow(), 1)
    clock.at(10)
    old.release()
    new.take()
    new.change(model(document()), 2)
    new.release()
    clock.at(11)
    old.resume(narrow(), 1)
    assert journal.is_held(tmp_path)
    found = history.read(tmp_path)
    assert spans(found, OUTSIDE_24) == [("free", 10, 11)]
    assert spans(found, INSIDE_24) == [("free", 0, None)]


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_torn_line_costs_nothing_but_itself(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, cut: int
) -> None:
    first = opened(tmp_path, clock)
    first.start(model(document()), 1)
    clock.at(5)
    first.stop(model(document()), 1)
    first.release()
    (path,) = journal.files(tmp_path)
    whole = path.read_bytes()
    clock.at(10)
    torn = opened(tmp_path, clock)
    torn.start(narrow(), 1)
    torn.release()
    path.write_bytes(path.read_bytes()[:-cut])
    third = opened(tmp_path, clock)
    clock.at(20)
    third.start(narrow(), 1)
    assert path.read_bytes().startswith(whole)
    assert "is torn" in caplog.text
    found = history.read(tmp_path)
    assert spans(found, OUTSIDE_24) == [("free", 0, 5)]
    # Cut off by no more than its end of line, the record is whole.
    assert spans(found, INSIDE_24) == [("free", 0, 5), ("free", 10 if cut == 1 else 20, None)]
    assert len(found.unreadable) == (cut != 1)
    assert all(f"{path}:3" in line for line in found.unreadable)


def test_a_month_begins_with_what_is_in_force_and_old_files_go(tmp_path: Path, clock: Clock) -> None:
    short = narrow(journal_keep=40)
    written = opened(tmp_path, clock)
    written.start(short, 1)
    for days, doc in ((10, short), (45, short), (75, model(document(journal_keep=40)))):
        clock.now = START + timedelta(days=days)
        written.change(doc, 2)
        written.settle(doc, 2)
    # November's last day is 68 days before the last record, December's 37.
    assert [path.name for path in journal.files(tmp_path)] == [
        *("journal-2026-12.jsonl", "journal-2027-01.jsonl", "journal-2027-02.jsonl")
    ]
    found = history.read(tmp_path)
    assert spans(found, INSIDE_24) == [("free", 0, None)]
    assert found.of(OUTSIDE_24)[0].start == START + timedelta(days=75)
    assert found.unreadable == ()


def test_files_are_kept_for_journal_keep_days(tmp_path: Path, clock: Clock) -> None:
    written = opened(tmp_path, clock)
    written.start(model(document()), 1)
    for days in range(30, 900, 30):
        clock.now = START + timedelta(days=days)
        written.change(model(document()), 2)
    kept = journal.files(tmp_path)
    oldest = datetime.strptime(kept[0].stem, "journal-%Y-%m").replace(tzinfo=UTC)
    assert timedelta(days=400) <= clock.now - oldest < timedelta(days=400 + 62)


def test_the_server_answers_while_the_disk_accepts_nothing(tmp_path: Path, clock: Clock) -> None:
    place = tmp_path / "journal-2026-11.jsonl"
    place.mkdir()  # root may write everywhere, but not to a directory
    written = opened(tmp_path, clock)
    written.start(model(document()), 1)
    assert "Is a directory" in (written.failure or "")
    clock.at(10)
    place.rmdir()
    written.change(narrow(), 2)
    written.settle(narrow(), 2)
    assert written.failure is None
    # Waiting records are not lost.
    assert spans(history.read(tmp_path), OUTSIDE_24) == [("free", 0, 10)]


def test_two_servers_do_not_share_a_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_LOCK_TIMEOUT", 0.1)
    first = Journal(tmp_path)
    first.take()
    with pytest.raises(UnmoorError, match="another server keeps the journal"):
        Journal(tmp_path).take()
    assert first.failure is None


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2026-11-23", START - timedelta(hours=6), START + timedelta(hours=18, microseconds=-1)),
        ("2026-11-23T06:00", START, START),
        ("2026-11-23 06:00:00", START, START),
        ("2026-11-23T06:00:00Z", START, START),
        ("2026-11-23T08:00:00+02:00", START, START),
        ("20261123T060000Z", START, START),
    ],
)
def test_times(text: str, first: datetime, last: datetime) -> None:
    assert history.parse_time(text) == (first, last)


@pytest.mark.parametrize(
    "text", ["yesterday", "", "2026-13-01", "10:00", "0001-01-01T00:00+14:00", "2026-11-23T"]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UnmoorError, match="write 2026-11-23"):
        history.parse_time(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
EVENTS = st.sampled_from(["start", "change", "in force", "refused", "same", "stop", "carried", "?"])
RECORDS = st.fixed_dictionaries(
    {
        "time": st.datetimes().map(lambda at: at.isoformat() + "Z") | JSON,
        "event": EVENTS,
        "generation": st.integers(),
        "pop": st.just("lab"),
        "edge": st.just("edge1"),
    },
    optional={
        "since": st.datetimes().map(lambda at: at.isoformat() + "Z"),
        "policies": JSON
        | st.lists(
            st.fixed_dictionaries(
                {
                    "policy": st.sampled_from("ab"),
                    "strategy": st.just("random"),
                    "ttl": st.integers(-5, 2**40),
                    "pools": st.lists(
                        st.fixed_dictionaries(
                            {
                                "pool": st.just("free"),
                                "addresses": st.lists(
                                    st.sampled_from(["198.18.3.7", "198.18.0.0-198.18.15.255", "x"])
                                ),
                            }
                        )
                    ),
                }
            )
        ),
    },
)


@given(st.lists(RECORDS | JSON | st.binary(), max_size=8))
def test_any_file_can_be_read(tmp_path_factory: pytest.TempPathFactory, lines: list[Any]) -> None:
    directory = tmp_path_factory.mktemp("journal")
    content = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (directory / "journal-2026-11.jsonl").write_bytes(b"\n".join(content))
    found = history.read(directory)
    for moment in (None, minute(0)):
        assert list(history.lines(found, INSIDE_24, moment))
        json.dumps(history.as_json(found, INSIDE_24, moment))
    list(history.change_lines(found))


# -- the server and the command --------------------------------------------------------------------------


def unmoor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("dns", "journal", *arguments)


def test_a_server_keeps_it(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        at = ("--state", str(server.state))
        shown = json.loads(unmoor("198.18.9.9", *at, "--json").stdout)
        assert [(each["policy"], each["to"]) for each in shown["intervals"]] == [("free", None)]
        changed = json.loads(json.dumps(server.data))
        changed["pools"]["free"]["ipv4"] = ["198.18.3.0/24"]
        server.write(changed)
        assert server.reload().done
        shown = json.loads(unmoor("198.18.9.9", *at, "--json").stdout)
        (interval,) = shown["intervals"]
        ended = datetime.fromisoformat(interval["to"])
        assert datetime.fromisoformat(interval["cached_until"]) - ended == timedelta(seconds=30)
        server.write({**changed, "pools": {}})
        assert not server.reload().done
        assert server.status()["journal"] == {"kept": True, "failure": None}
        server.stop()
        events = json.loads(unmoor(*at, "--json").stdout)["changes"]
        assert [(each["event"], each["generation"]) for each in events] == [
            *(("start", 1), ("change", 2), ("in force", 2), ("stop", 2)),
        ]
        text = unmoor("198.18.3.7", datetime.now(UTC).date().isoformat(), *at).stdout
        assert "policy free, pool free, random, TTL 30 s\n    answered from 20" in text
        assert "    + policy free, pool free, random, TTL 30 s: 198.18.3.0-198.18.3.255" in unmoor(*at).stdout


@pytest.mark.parametrize("works", [True, False])
def test_a_new_release_goes_on_with_it(tmp_path: Path, works: bool) -> None:
    program = tmp_path / "unmoor"
    fails = "" if works else "import os; os.kill(os.getppid(), 0); raise SystemExit(3)\n"
    code = f"import sys\n{fails}from unmoor.commands import main\nmain()\n"
    program.write_text(f"#!{sys.executable}\n{code}")
    program.chmod(0o755)
    with running(tmp_path) as server:
        changed = json.loads(json.dumps(server.data))
        changed["pools"]["free"]["ipv4"] = ["198.18.3.0/24"]
        server.write(changed)
        reply = control.ask(server.control, "upgrade", str(program))
        assert reply.done == works, reply.lines
        if not works:
            assert server.reload().done
        found = history.read(server.state)
        assert found.unreadable == ()
        (interval,) = found.of(OUTSIDE_24)
        assert interval.end
        assert interval.recorded
        assert [each.end for each in found.of(INSIDE_24)] == [None]
        assert journal.is_held(server.state)
        pid = server.status()["pid"]
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not journal.is_held(server.state))
        events = [each.event for each in history.read(server.state).changes]
        assert events == ["start", "change", "in force", "stop"]


def test_what_a_killed_server_leaves(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        shown = json.loads(unmoor("198.18.9.9", "--state", str(server.state), "--json").stdout)
        assert shown["intervals"][0]["end_recorded"] is False


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("198.18.3", "--state", "."), "is no IP address"),
        (("198.18.3.7", "noon", "--state", "."), "is no date or time"),
        (("198.18.3.7", "--state", "/nonexistent"), "no such directory"),
    ],
)
def test_what_the_command_refuses(arguments: tuple[str, ...], reason: str) -> None:
    shown = unmoor(*arguments)
    assert shown.returncode == 2
    assert reason in shown.stderr
    assert "Traceback" not in shown.stderr
