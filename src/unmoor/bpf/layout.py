"""Sizes and struct layouts of `dispatch.bpf.c`, for user space."""

from __future__ import annotations

from struct import Struct

#: Upper bound of the ids of services.
MAX_SERVICES = 2048
#: Sockets for one service, protocol and family; the first one that can take the packet gets it.
SOCKET_SLOTS = 8
#: One group of socket slots, and one set of counters, for each service, protocol and family.
GROUPS_PER_SERVICE = 4
#: A root of a trie with this bit is the number of a leaf, not of a node.
ROOT_IS_LEAF = 1 << 31
#: This bit is in every root of `struct port` for a protocol and family that has bindings to any port.
ROOT_AND_ANY = 1 << 30
#: Maximum depth of a trie, and of prefixes that contain one another.
MAX_DEPTH = 28
MAX_NESTING = 64
#: IPv4 addresses with a counter each: a /16. There are twice as many counters, enough for all addresses of a
#: generation beside those of the previous one.
ADDRESS_CHUNK = 1024
ADDRESS_CHUNKS = 128
COUNTERS_OF_ADDRESSES = ADDRESS_CHUNK * ADDRESS_CHUNKS
COUNTED_ADDRESSES = COUNTERS_OF_ADDRESSES // 2

#: Sets of recently counted IPv6 addresses, the entries of a set, and struct seen: high, low, count.
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
#: struct counters, with the names of its fields; the last one is padding.
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
#: Counters of look-ups that were refused because the socket could not take the packet.
ERRORS = ("wrong_family", "wrong_protocol", "wrong_state", "other_error")
#: struct answer: bound, service, length, ifindex, error, asked_ifindex.
ANSWER = Struct("=IIIIiI")
#: struct answers: struct answer, then for each group the slots that are known to be empty, a bit each.
HINTS_OFFSET = ANSWER.size
HINTS = MAX_SERVICES * GROUPS_PER_SERVICE
ANSWERS_SIZE = HINTS_OFFSET + HINTS
KEY = Struct("=I")
COOKIE = Struct("=Q")
DESCRIPTOR = Struct("=Q")
#: .rodata: roots of the tries for any port: TCP over IPv4 and IPv6, then UDP.
ANY_ROOTS = Struct("=4I")
#: struct bpf_sk_lookup for BPF_PROG_TEST_RUN: cookie, family, protocol, remote address v4 and v6,
#: remote port (network byte order) and two zero bytes, local address v4 and v6, local port,
#: interface (always 0).
CONTEXT = Struct("=QII4s16s4s4s16sII")

PROTOCOLS = ("tcp", "udp")
PROTOCOL_NUMBERS = {"tcp": 6, "udp": 17}
FAMILIES = (4, 6)
FAMILY_NUMBERS = {4: 2, 6: 10}


def group(service: int, protocol: str, family: int) -> int:
    """Return the index of the slots and counters of a service id, protocol and family (4 or 6)."""
    return service * GROUPS_PER_SERVICE + PROTOCOLS.index(protocol) * 2 + FAMILIES.index(family)
