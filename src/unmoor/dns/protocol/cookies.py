"""DNS cookies (RFC 7873) in the interoperable format for servers that share an address (RFC 9018)."""

from __future__ import annotations

import hmac
from functools import lru_cache

from unmoor.dns.protocol.client_subnet import Subnet
from unmoor.dns.protocol.message import FORMERR, QueryError
from unmoor.dns.protocol.siphash import keyed

#: Seconds: the age from which a cookie is renewed, the age from which it is invalid, and how far its time
#: stamp may lie in the future (RFC 9018 section 4.3).
_RENEW, _OLDEST, _FUTURE = 1800, 3600, 300
_VERSION = b"\1\0\0\0"
_CLIENT_SIZE, _SERVER_SIZE = 8, 16


class Cookies:
    """Generates and validates server cookies with one secret of 16 octets."""

    def __init__(self, secret: bytes) -> None:
        self._siphash = keyed(secret)
        # Resolvers send the same cookie for minutes.
        self._hash = lru_cache(maxsize=4096)(self._compute)

    def reply(self, option: bytes, address: str, now: int) -> bytes:
        """Return the data of the reply's option: the client's cookie followed by a valid server cookie.

        `now` is in seconds since 1970. Raises QueryError (FORMERR) if the option's length is not a
        cookie's (RFC 7873 section 5.2.2).
        """
        if len(option) != _CLIENT_SIZE and not 16 <= len(option) <= 40:
            raise QueryError(FORMERR)
        client, server = option[:_CLIENT_SIZE], option[_CLIENT_SIZE:]
        if self._is_fresh(client, server, address, now, _RENEW):
            return option
        return client + self._make(client, address, now)

    def is_valid(self, option: bytes, address: str, now: int) -> bool:
        """Report whether the option holds a server cookie issued to `address` within the last hour."""
        return self._is_fresh(option[:_CLIENT_SIZE], option[_CLIENT_SIZE:], address, now, _OLDEST)

    def _is_fresh(self, client: bytes, server: bytes, address: str, now: int, oldest: int) -> bool:
        # The three reserved octets after the version are not checked, but are hashed (RFC 9018 section 4.2).
        if len(server) != _SERVER_SIZE or server[:1] != _VERSION[:1]:
            return False
        # Serial number arithmetic (RFC 1982): the time stamp has 32 bits.
        age = (now - int.from_bytes(server[4:8], "big") + 0x80000000) % 0x100000000 - 0x80000000
        return -_FUTURE <= age <= oldest and hmac.compare_digest(
            server[8:], self._hash(client + server[:8], address)
        )

    def _make(self, client: bytes, address: str, now: int) -> bytes:
        head = _VERSION + (now & 0xFFFFFFFF).to_bytes(4, "big")
        return head + self._hash(client + head, address)

    def _compute(self, data: bytes, address: str) -> bytes:
        client = Subnet.of_address(address)
        return self._siphash(data + client.number.to_bytes(client.length // 8, "big"))
