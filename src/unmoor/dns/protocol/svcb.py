"""SVCB and HTTPS records (RFC 9460): data with address hints, and the targets of records."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

from unmoor.dns.protocol import message, names
from unmoor.dns.protocol.message import RRset
from unmoor.model.dns import ServiceBinding

#: Query types of service bindings.
TYPES = (message.HTTPS, message.SVCB)

# Service parameter keys (RFC 9460 section 14.3.2).
_ALPN, _PORT = 1, 3
IPV4_HINT, IPV6_HINT = 4, 6


def rdata(record: ServiceBinding, hints: Mapping[int, Sequence[bytes]]) -> bytes:
    """Encode a ServiceMode record's data with the owner as its target (section 2.2).

    `hints` maps IPV4_HINT and IPV6_HINT to addresses in network byte order. Parameters are in the order
    of their keys.
    """
    parameters = {_ALPN: b"".join(_prefixed(each.encode()) for each in record.alpn)}
    if record.port is not None:
        parameters[_PORT] = struct.pack("!H", record.port)
    parameters |= {key: b"".join(addresses) for key, addresses in hints.items() if addresses}
    written = (struct.pack("!2H", key, len(value)) + value for key, value in sorted(parameters.items()))
    return struct.pack("!Hx", record.priority) + b"".join(written)


def targets(rrset: RRset) -> Iterator[tuple[bytes, bool]]:
    """Yield each record's target in lower case, and whether it is in AliasMode (section 2.4.2).

    A target of the root means the owner in ServiceMode, and no target in AliasMode (section 2.5).
    """
    for pieces in rrset.rdatas:
        data = b"".join(pieces)
        is_alias, target = data[:2] == b"\0\0", names.fold(data[2 : names.end(data, 2)])
        if target != names.ROOT:
            yield target, is_alias
        elif not is_alias:
            yield names.fold(rrset.owner), is_alias


def _prefixed(text: bytes) -> bytes:
    return bytes((len(text),)) + text
