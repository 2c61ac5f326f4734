"""Answers packets: a fast path for the most common queries, and a slow path for all others."""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable
from functools import lru_cache
from itertools import product

from unmoor.dns.answer.prepared import Replies, head_index
from unmoor.dns.answer.rate_limit import NO_NAME, NOTIFY, Limiter, flow_of
from unmoor.dns.answer.resolver import Resolver
from unmoor.dns.answer.snapshot import Snapshot
from unmoor.dns.counters.counters import Counts, Event
from unmoor.dns.protocol import client_subnet, message
from unmoor.dns.protocol.edns import Options
from unmoor.dns.protocol.message import Reply
from unmoor.dns.protocol.tsig import Keys
from unmoor.dns.transfer.notify import NotifyHandler

log = logging.getLogger(__name__)

#: Takes a packet, the maximum size of the reply in octets, and the client's address; returns the reply, or
#: None if there is none.
Answerer = Callable[[bytes, int, str], bytes | None]

#: Internal errors that a worker logs with a traceback, so that clients cannot flood the log.
_MAX_TRACEBACKS = 10

#: Octets of the largest OPT record whose reply is cached.
_MAX_KEPT = 100

_AD, _CD = 0x0020, 0x0010


def _heads() -> dict[bytes, tuple[bytes, bool, int]]:
    """Map flags and counts of common queries to those of a reply with one address, whether it has OPT, and
    the place of other replies' flags and counts.

    RD is copied; AD and CD are cleared, as the server does not sign (RFC 4035 section 3.1.6).
    """
    heads = {}
    for desired, authentic, checking, opt in product((0, message.RD), (0, _AD), (0, _CD), (0, 1)):
        query = (desired | authentic | checking).to_bytes(2, "big") + bytes((0, 1, 0, 0, 0, 0, 0, opt))
        reply = (message.QR | message.AA | desired).to_bytes(2, "big") + bytes((0, 1, 0, 1, 0, 0, 0, opt))
        heads[query] = (reply, bool(opt), head_index(bool(desired), bool(opt)))
    return heads


_HEADS = _heads()


def answerer(
    snapshot: Snapshot,
    counts: Counts,
    options: Options,
    notify: NotifyHandler | None = None,
    limiter: Limiter | None = None,
) -> Answerer:
    """Make the function that answers packets from `snapshot`, subject to the rate limit of `limiter`.

    The fast path recognises A and AAAA queries for registered hostnames by the octets of the question,
    without parsing, and joins the reply from prepared parts; those that static records answer take a few
    look-ups more. Its replies equal those of the slow path (a tested property), which gets every packet that
    it does not recognise.
    """
    slow_path = _slow_path(snapshot, counts, options, notify or NotifyHandler({}, None), limiter)
    if limiter:
        skip, excess = limiter.skip, limiter.excess.__call__
    hostnames, registered = snapshot.hostnames, snapshot.registered
    static = _static_path(snapshot, counts, limiter, slow_path)
    heads, answers, join = _HEADS, counts.policies, b"".join
    plain_opt, secure_opt = message.opt_record(dnssec_ok=False), message.opt_record(dnssec_ok=True)
    with_options = _with_options(options)
    # By the octets after the UDP size: extended RCODE, version, flags, and a data length of zero.
    opts = {b"\0\0\0\0\0\0": plain_opt, b"\0\0\x80\0\0\0": secure_opt}

    def answer(packet: bytes, limit: int, address: str) -> bytes | None:
        head = heads.get(packet[2:12])
        if head is None:
            return slow_path(packet, limit, address)
        if head[1]:
            # The beginning of OPT: root, type 41. If a name contains these octets, what follows is not a
            # valid OPT record, or the name is not found below.
            at = packet.find(b"\0\0\x29", 13)
            opt = opts.get(packet[at + 5 :]) or with_options(packet[at:], limit, address)
            if opt is None:
                return slow_path(packet, limit, address)
            question = packet[12:at]
        else:
            opt = b""
            question = packet[12:]
        name = question[:-4].lower()
        target = hostnames.get(name) or (registered(name) if registered else None)
        kind = question[-4:]
        plan = target.fast.get(kind) if target else None
        if plan is None:
            return static(packet, limit, address, head, question, opt)
        if limiter is not None:
            # As `limiter.over`, without a call for most replies.
            if skip[0]:
                skip[0] -= 1
            elif (over := excess(address, name, kind)) and not limiter.is_exempt(packet, address):
                return limiter.cut(packet, over)
        counter, record, ready, draw = plan
        answers[counter] += 1
        return join((packet[:2], head[0], question, record, ready.pop() if ready else draw(), opt))

    return answer


def _static_path(
    snapshot: Snapshot, counts: Counts, limiter: Limiter | None, slow_path: Answerer
) -> Callable[[bytes, int, str, tuple[bytes, bool, int], bytes, bytes], bytes | None]:
    """Make the function that answers queries from static records and wildcards.

    It takes a packet, the reply's maximum size and the client's address, and what the fast path knows: the
    entry of `_HEADS`, the question, and the reply's OPT record.
    """
    find, answers, join = Replies(snapshot).find, counts.policies, b"".join

    def answer(
        packet: bytes, limit: int, address: str, head: tuple[bytes, bool, int], question: bytes, opt: bytes
    ) -> bytes | None:
        try:
            found = find(question[:-4].lower(), question[-4:])
        except Exception:  # an internal error, which the slow path meets and logs
            found = None
        if found is None or (found.tail is None and found.plan is None and limit == message.TCP_SIZE):
            return slow_path(packet, limit, address)
        if limiter and (over := limiter.over(packet, address, *found.subject)):
            return limiter.cut(packet, over)
        if found.plan:
            counter, record, ready, draw = found.plan
            answers[counter] += 1
            return join((packet[:2], head[0], question, record, ready.pop() if ready else draw(), opt))
        counts.add_rcode(found.rcode)
        start = message.HEADER_SIZE + len(question)
        if limit < message.TCP_SIZE:
            accepted = int.from_bytes(packet[start + 3 : start + 5], "big") if opt else 0
            limit = min(limit, max(accepted, message.CLASSIC_SIZE))
        if found.tail is None or start + len(found.tail) + len(opt) > limit:
            counts.add(Event.TRUNCATED)
            return join((packet[:2], found.cut[head[2]], question, opt))
        return join((packet[:2], found.heads[head[2]], question, found.tail, opt))

    return answer


def _now() -> int:
    """Return the Unix time rounded down to 64 s, so that replies to equal options can be cached."""
    return int(time.time()) & -64


def _with_options(options: Options) -> Callable[[bytes, int, str], bytes | None]:
    """Make the function that answers an OPT record with options.

    It takes the record, the reply's maximum size and the client's address, and returns the reply's OPT
    record, or None to use the slow path.
    """

    @lru_cache(maxsize=4096)
    def kept(opt: bytes, over_tcp: bool, address: str, now: int) -> bytes | None:
        try:
            edns = message.read_opt(opt, 0, len(opt))
            if edns.version or any(code == client_subnet.OPTION for code, _ in edns.options):
                return None
            replies = options.reply(edns, address, over_tcp, now)
        except (message.QueryError, struct.error):
            return None
        return message.opt_record(edns.dnssec_ok, 0, replies)

    def opt_record(opt: bytes, limit: int, address: str) -> bytes | None:
        # Bounds the memory that clients can fill through the cache.
        if (
            not message.OPT_SIZE < len(opt) < _MAX_KEPT
            or int.from_bytes(opt[9:11], "big") != len(opt) - message.OPT_SIZE
        ):
            return None
        return kept(opt, limit == message.TCP_SIZE, address, _now())

    return opt_record


def _slow_path(
    snapshot: Snapshot,
    counts: Counts,
    options: Options,
    notify: NotifyHandler,
    limiter: Limiter | None = None,
) -> Answerer:
    resolver, keys = Resolver(snapshot), Keys.of(snapshot.document.tsig_keys)
    tracebacks = iter(range(_MAX_TRACEBACKS))

    def written(packet: bytes, limit: int, address: str) -> tuple[Reply, bytes]:
        query = message.parse(packet)
        signed = keys.check(packet, query.tsig, int(time.time())) if query.tsig else None
        if signed and signed.error:
            reply = Reply(signed.rcode, authoritative=False)
        else:
            reply = resolver.resolve(query, address)
        if query.edns:
            reply.options += options.reply(query.edns, address, limit == message.TCP_SIZE, _now())
        if limit < message.TCP_SIZE:
            limit = min(limit, query.edns.size) if query.edns else message.CLASSIC_SIZE
        if signed is None:
            return reply, message.write(query, reply, limit)
        return reply, signed.sign(message.write(query, reply, limit - signed.size))

    def failed(packet: bytes, address: str, rcode: int) -> bytes | None:
        if limiter and (over := limiter.over(packet, address, NO_NAME, bytes((rcode,)))):
            return limiter.cut(packet, over)
        counts.add_rcode(rcode)
        return message.bare_error(packet, rcode)

    def notified(packet: bytes, address: str) -> bytes | None:
        reply = notify.answer(packet, address, counts)
        if reply and limiter and (over := limiter.over(packet, address, NO_NAME, NOTIFY)):
            return limiter.cut(packet, over)
        return reply

    def answer(packet: bytes, limit: int, address: str) -> bytes | None:
        try:
            if message.is_notify(packet):
                return notified(packet, address)
            reply, octets = written(packet, limit, address)
        except message.NoReplyError:
            counts.add(Event.IGNORED)
            return None
        except message.QueryError as error:
            return failed(packet, address, error.rcode)
        except Exception:
            # An internal error must not stop the worker: only this query gets SERVFAIL.
            if next(tracebacks, None) is not None:
                log.exception("no answer for the packet %s", packet[:512].hex())
            return failed(packet, address, message.SERVFAIL)
        if limiter and (over := limiter.over(packet, address, *flow_of(reply))):
            return limiter.cut(packet, over)
        if reply.counter is None:
            counts.add_rcode(reply.rcode)
        else:
            counts.policies[reply.counter] += 1
        if octets[2] & message.TC >> 8:
            counts.add(Event.TRUNCATED)
        return octets

    return answer
