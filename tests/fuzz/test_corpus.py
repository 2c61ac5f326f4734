"""The corpus and the seeds are answered correctly, whole and truncated at every length."""

from __future__ import annotations

import random
import resource

import corpus
import harness
import pytest
import seeds

SEEDS = {**dict(seeds.good()), **dict(seeds.odd())}
FORMERR = 1


def test_nothing_in_the_corpus_breaks_it() -> None:
    packets = corpus.read()
    assert len(packets) >= 100
    for packet in packets:
        try:
            harness.one(packet, thorough=True)
        except Exception as error:
            raise AssertionError(f"packet {packet.hex()}: {error}") from error


@pytest.mark.parametrize("what", SEEDS)
def test_seeds_whole_and_truncated(what: str) -> None:
    packet = SEEDS[what]
    harness.one(packet, thorough=True)
    for size in range(min(len(packet), 200)):
        harness.one(packet[:size])


@pytest.mark.parametrize("what", [what for what, packet in seeds.good() if len(packet) < 100])
def test_good_queries_that_are_cut_off_are_malformed(what: str) -> None:
    packet = SEEDS[what]
    for size in range(harness.HEADER, len(packet)):
        reply = harness.ANSWER(packet[:size], 1232, "127.0.0.1")
        assert reply is not None
        assert reply[3] & 0xF == FORMERR


def test_the_checks_can_fail() -> None:
    query = SEEDS["host0.example.com A"]
    reply = harness.ANSWER(query, 1232, "127.0.0.1")
    assert reply is not None
    harness.check(query, reply, 1232, thorough=True)
    loop = reply[:-16] + b"\xc0" + bytes((len(reply) - 16,)) + reply[-14:]
    wrong = {
        "another id": b"\xff" + reply[1:],
        "no response": reply[:2] + b"\0" + reply[3:],
        "SERVFAIL": reply[:3] + b"\2" + reply[4:],
        "another count": reply[:7] + b"\2" + reply[8:],
        "cut off": reply[:-1],
        "one octet more": reply + b"\0",
        "another question": reply[:13] + b"x" + reply[14:],
        "a name that points at itself": loop,
        "none": None,
    }
    for each in wrong.values():
        with pytest.raises((AssertionError, IndexError)):
            harness.check(query, each, 1232, thorough=False)


def test_memory_does_not_grow_with_what_is_asked() -> None:
    chance, packets = random.Random(2), list(SEEDS.values())

    def some(count: int) -> None:
        for _ in range(count):
            harness.one(seeds.mutated(chance, chance.choice(packets)))

    # The caches of cookies and options fill, as far as they may.
    some(3000)
    early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    some(6000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - early < 4096
