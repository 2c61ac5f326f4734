"""Sizes and layouts that `dispatch.bpf.c` and user space share."""

from __future__ import annotations

from struct import Struct

#: Services, each with a stable id below this.
MAX_SERVICES = 2048
#: Sockets for one service, protocol and family; the first that is alive takes the packet.
SOCKET_SLOTS = 8
#: One group of socket slots, and one set of counters, for each service, protocol and family.
GROUPS_PER_SERVICE = 4
#: The trie may be so deep, and so many prefixes may contain one another.
MAX_DEPTH = 28
MAX_NESTING = 64
#: IPv4 addresses that have a counter of their own: a /16. There are twice as many counters, so that a
#: generation has them all while the one before it keeps its own.
ADDRESS_CHUNK = 1024
ADDRESS_CHUNKS = 128
COUNTERS_OF_ADDRESSES = ADDRESS_CHUNK * ADDRESS_CHUNKS
COUNTED_ADDRESSES = COUNTERS_OF_ADDRESSES // 2

#: Sets of IPv6 addresses seen, and struct seen: high, low, count.
SEEN_SETS = 4096
SEEN_WAYS = 4
SEEN = Struct("=QQQ")
#: struct port: the roots for IPv4 and IPv6.
PORT = Struct("=II")
#: struct node: first, pos, bits, zero.
NODE = Struct("=IBBH")
#: struct leaf: high, low, masks of both; parent, service, ifindex, length, address_base.
LEAF = Struct("=QQQQIIIIQ8x")
#: struct question: high, low, expected.
QUESTION = Struct("=QQQ")
#: struct batch: port, is_ipv6, ifindex, next, end, wrong, first_wrong, found.
BATCH = Struct("=8I")
#: struct counters: see COUNTERS for the names.
COUNTERS_STRUCT = Struct("=8Q")
COUNTERS = (
    "lookups",
    "misses",
    "wrong_family",
    "wrong_protocol",
    "wrong_state",
    "replaced",
    "other_error",
)
#: Those of look-ups that were refused since the socket could not take the packet.
ERRORS = ("wrong_family", "wrong_protocol", "wrong_state", "other_error")
#: struct answer: bound, service, length, ifindex, error, asked_ifindex.
ANSWER = Struct("=IIIIiI")
KEY = Struct("=I")
COOKIE = Struct("=Q")
DESCRIPTOR = Struct("=Q")
#: .rodata: roots of 'any port' for TCP and UDP, each IPv4 then IPv6.
ANY_ROOTS = Struct("=4I")
#: struct bpf_sk_lookup as BPF_PROG_TEST_RUN takes it: cookie, family, protocol, remote address v4 and v6,
#: remote port (network byte order) and two zero bytes, local address v4 and v6, local port,
#: interface (always 0).
CONTEXT = Struct("=QII4s16s4s4s16sII")

PROTOCOLS = ("tcp", "udp")
PROTOCOL_NUMBERS = {"tcp": 6, "udp": 17}
FAMILIES = (4, 6)
FAMILY_NUMBERS = {4: 2, 6: 10}


def group(service: int, protocol: str, family: int) -> int:
    """The number of the group of slots and counters of a service, protocol and family (4 or 6)."""
    return service * GROUPS_PER_SERVICE + PROTOCOLS.index(protocol) * 2 + FAMILIES.index(family)
