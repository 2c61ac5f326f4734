"""The command as an operator runs it: a process, its exit status, its output.

Every prefix here is in loopback, also in refused input: if a refusal were missing, no packet would leave this
computer.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path

import pytest

from support.probe_servers import answering, dns_answer, listening, make_certificate, web
from support.program import UNMOOR, output
from support.waiting import wait_until

ADDRESSES = [f"127.9.1.{host}" for host in range(16)]
PREFIX = "127.9.1.0/28"


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*UNMOOR, "probe", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def probe(*arguments: str, status: int = 0) -> str:
    return output(started(*arguments), status)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@contextmanager
def silent():
    """Listeners on all ADDRESSES that never answer."""
    with ExitStack() as stack:
        port = 0
        for address in ADDRESSES:
            listener = stack.enter_context(socket.socket())
            listener.bind((address, port))
            listener.listen()
            port = listener.getsockname()[1]
        yield port


@contextmanager
def running(*arguments: str):
    """A process that has started its workers; killed at the end if it still runs."""
    with started(*arguments) as process:
        try:
            wait_until(lambda: len(children(process.pid)) == 2, "two workers")
            yield process
        finally:
            process.kill()


def test_every_pair_of_plain_and_tls_ports(certificate):
    server, authority = certificate
    with (
        listening(web(service="web-http"), [*ADDRESSES, "::1"]) as plain,
        listening(web(service="web-https", edge="edge2"), [*ADDRESSES, "::1"], tls=server) as tls,
    ):
        options = (PREFIX, "::1", "--tcp", str(plain), "--tls", str(tls), "--sni", "www.unmoor.test")
        labels = ("--service", f"web-http={plain}", "--service", f"web-https={tls}")
        trust = ("--ca", str(authority), "--processes", "2")
        found = json.loads(probe("reach", *options, *labels, *trust, "--json", "--seed", "s"))
        text = probe("reach", *options, *labels, *trust)
    assert (found["pairs"], found["answered"], found["failed"]) == (34, 34, 0)
    assert found["families"] == {
        "ipv4": {"pairs": 32, "answered": 32},
        "ipv6": {"pairs": 2, "answered": 2},
    }
    assert found["edges"] == {"edge1": 17, "edge2": 17}
    assert found["services"] == {"web-http": 17, "web-https": 17}
    assert found["seed"] == "s"
    assert set(found["rate"]) == set(found["latency_ms"]) == {"plain", "tls"}
    for times in found["latency_ms"].values():
        assert 0 < times["p50"] <= times["p99"] <= times["max"]
    assert text.startswith("34 of 34 (address, port) pairs answered\n")
    assert "IPv4: 32 of 32 (address, port) pairs answered" in text


def test_one_silent_address_fails_the_run_and_is_named():
    with listening(web(), ADDRESSES[:-1]) as port:
        found = json.loads(probe("reach", PREFIX, "--tcp", str(port), "--json", status=1))
        text = probe("reach", PREFIX, "--tcp", str(port), status=1)
    assert (found["pairs"], found["answered"], found["failed"]) == (16, 15, 1)
    assert found["causes"] == {"refused": 1}
    assert "127.9.1.15" in found["examples"]["refused"][0]
    assert "1 failed:\n  1 refused\n      127.9.1.15" in text


def test_only_the_edge_named_will_do():
    with listening(web(edge="edge2"), ADDRESSES) as port:
        found = json.loads(probe("reach", PREFIX, "--tcp", str(port), "--edge", "edge1", "--json", status=1))
        probe("reach", PREFIX, "--tcp", str(port), "--edge", "edge2")
    assert found["causes"] == {"wrong edge": 16}


def test_the_examples_are_bounded():
    with listening(web()) as port:
        pass
    found = json.loads(probe("reach", PREFIX, "--tcp", str(port), "--json", "--examples", "2", status=1))
    assert found["causes"] == {"refused": 16}
    assert len(found["examples"]["refused"]) == 2


HANGING = (PREFIX, "--timeout", "600", "--processes", "2", "--concurrency", "4", "--json", "--quiet")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_prints_what_is_known(number):
    with silent() as port, running("reach", *HANGING, "--tcp", str(port)) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "")
    found = json.loads(out)
    assert found["interrupted"]
    assert (found["pairs"], found["tried"], found["answered"]) == (16, 0, 0)


def test_a_worker_that_dies_fails_the_run():
    with silent() as port, running("reach", *HANGING, "--tcp", str(port)) as process:
        for worker in children(process.pid):
            os.kill(worker, signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert json.loads(out)["causes"] == {"local limit": 2}


def test_workers_end_with_a_parent_that_was_killed():
    with silent() as port, running("reach", *HANGING, "--tcp", str(port)) as process:
        workers = children(process.pid)
        process.kill()
        process.communicate(timeout=60)  # ends once no worker holds the pipe
    wait_until(lambda: not any(_alive(worker) for worker in workers), "no worker")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_progress_goes_to_standard_error_only():
    with listening(web()) as port:
        process = started("reach", "127.0.0.1", "--tcp", str(port), "--json")
        out, _ = process.communicate(timeout=60)
    assert json.loads(out)["answered"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("reach", "127.9.1.1/28", "--tcp", "80"), "has host bits set"),
        (("reach", PREFIX), "name ports with --tcp or --tls"),
        (("reach", PREFIX, "--tcp", "80", "--tls", "80"), "is also named by --tcp"),
        (("reach", PREFIX, "--tcp", "http"), "write ports as in"),
        (("reach", PREFIX, "--tcp", "80", "--service", "web"), "is not LABEL=PORTS"),
        (("reach", PREFIX, "--tcp", "80", "--service", "a=80", "--service", "b=80"), "already"),
        (("reach", "127.0.0.0/8", "--tcp", "80"), "--sample"),
        (("reach", PREFIX, "--tcp", "80", "--via", "edge1"), "is not an IP address"),
        (("reach", PREFIX, "::1", "--tcp", "80", "--via", "127.0.0.1"), "names no IPv6 gateway"),
        (("reach", PREFIX, "--tcp", "80", "--via", "127.0.0.1"), "is an address of this machine"),
        (("reach", PREFIX, "--tls", "443", "--ca", "/dev/null"), "has no certificate in PEM form"),
        (("uniformity", "www.test", "--server", "ns1"), "is not an IP address"),
        (("uniformity", "a b", "--server", "127.0.0.1"), "is not a hostname"),
        (("uniformity", "www.test", "--server", "127.0.0.1", "--pool", "::/64"), "is no answer of type A"),
        (("watch", "127.0.0.1", "--tcp", "80", "--name", "www.test"), "--server"),
    ],
)
def test_bad_input_is_one_message_with_its_fix(arguments, said):
    err = probe(*arguments, status=2)
    assert said in err
    assert "Traceback" not in err
    assert len(err.splitlines()) < 24


def test_even_answers_pass(tmp_path):
    from random import Random

    random = Random(11)

    def reply(query: bytes) -> bytes:
        return dns_answer(query, f"127.9.1.{random.randrange(16)}")

    options = ("--server", "127.0.0.1", "--pool", PREFIX, "--queries", "2000")
    with answering(reply) as port:
        svg = tmp_path / "load.svg"
        text = probe("uniformity", "www.test", *options, "--port", str(port), "--svg", str(svg))
        found = json.loads(probe("uniformity", "www.test", *options, "--port", str(port), "--json"))
    assert "2000 queries sent, 2000 answered, 0 datagrams lost" in text
    assert "16 distinct addresses seen, 16 expected" in text
    assert "█" in text
    assert svg.read_text().startswith("<svg")
    assert (found["queries"], found["answered"], found["distinct"], found["outside"]) == (2000, 2000, 16, 0)
    assert found["p"] > 1e-6
    assert found["load"]["min"] <= 125 <= found["load"]["max"]


def test_uneven_answers_fail():
    hosts = cycle([0, 0, 0, *range(16)])
    options = ("--server", "127.0.0.1", "--pool", PREFIX, "--queries", "2000", "--quiet", "--json")
    with answering(lambda query: dns_answer(query, f"127.9.1.{next(hosts)}")) as port:
        found = json.loads(probe("uniformity", "www.test", *options, "--port", str(port), status=1))
    assert found["p"] < 1e-6
    assert found["failed"] == 0


def test_answers_by_turns_are_called_suspicious():
    hosts = cycle(range(16))
    options = ("--server", "127.0.0.1", "--pool", PREFIX, "--queries", "2000", "--quiet")
    with answering(lambda query: dns_answer(query, f"127.9.1.{next(hosts)}")) as port:
        assert "suspiciously even" in probe("uniformity", "www.test", *options, "--port", str(port))


def test_an_answer_outside_of_the_pool_fails():
    hosts = cycle(range(17))
    options = ("--server", "127.0.0.1", "--pool", PREFIX, "--queries", "1700", "--quiet", "--json")
    with answering(lambda query: dns_answer(query, f"127.9.1.{next(hosts)}")) as port:
        found = json.loads(probe("uniformity", "www.test", *options, "--port", str(port), status=1))
    assert found["outside"] == found["causes"]["outside of the pool"] == 100
    assert "127.9.1.16" in found["examples"]["outside of the pool"][0]


def test_a_refusing_server_fails():
    options = ("--server", "127.0.0.1", "--queries", "10", "--quiet", "--json")
    with answering(lambda query: dns_answer(query, rcode=5)) as port:
        found = json.loads(probe("uniformity", "www.test", *options, "--port", str(port), status=1))
    assert found["causes"] == {"REFUSED": 10}


def test_a_server_that_is_not_there_ends_it_early():
    with answering(lambda _: None) as port:
        pass
    options = ("--server", "127.0.0.1", "--queries", "1000000", "--quiet", "--json")
    found = json.loads(probe("uniformity", "www.test", *options, "--port", str(port), status=1))
    assert found["answered"] == 0
    assert found["queries"] < 10_000


def test_a_watch_sees_no_failure_and_when_the_answers_moved(tmp_path):
    hosts = iter(range(16))
    stop = tmp_path / "stop"

    def reply(query: bytes) -> bytes:
        host = next(hosts, None)
        if host is None:
            stop.touch()
        return dns_answer(query, "127.9.1.1" if host is not None else "127.9.2.1")

    with listening(web(), ["127.9.1.1", "127.9.2.1"]) as tcp, answering(reply) as port:
        options = ("--tcp", str(tcp), "--server", "127.0.0.1", "--port", str(port), "--name", "www.test")
        found = json.loads(
            probe("watch", "127.9.1.1", "127.9.2.1", *options, "--until-file", str(stop), "--json")
        )
    assert found["failed"] == 0
    assert found["connections"] == found["connected"] >= 17
    assert found["queries"] == found["answered"] >= 17
    first, second = found["answers"].items()
    assert (first[0], first[1]["count"]) == ("127.9.1.0/24", 16)
    assert second[0] == "127.9.2.0/24"
    assert first[1]["first"] <= first[1]["last"] <= second[1]["first"]


def test_a_watch_reports_what_failed_and_when():
    with listening(web()) as port, listening(web(), ["127.9.1.1"]) as other:
        process = started("watch", "127.9.1.0/30", "--tcp", f"{port},{other}", "--rate", "200", "--json")
        assert process.stderr is not None
        assert process.stderr.readline() == "watching\n"
        time.sleep(1)  # the longer, the more is counted
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    found = json.loads(out)
    assert set(found["causes"]) == {"refused"}
    assert found["connections"] == found["connected"] + found["failed"]
    assert found["failed"] == len(found["failures"])
    times = [failure["time"] for failure in found["failures"]]
    assert times == sorted(times)
    assert found["began"] <= times[0]
    assert times[-1] <= found["ended"]


def test_a_watch_connects_to_nothing_outside_of_the_prefixes():
    with listening(web(), ["127.9.1.1"]) as tcp, answering(lambda q: dns_answer(q, "127.9.9.9")) as port:
        options = ("--tcp", str(tcp), "--server", "127.0.0.1", "--port", str(port), "--name", "www.test")
        text = probe("watch", "127.9.1.1", *options, "--seconds", "1", status=1)
    assert "outside of the prefixes: 127.9.9.9" in text
    assert "connect 127.9.9.9" not in text
