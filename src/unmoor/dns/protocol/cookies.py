"""DNS cookies (RFC 7873) in the interoperable format for servers that share an address (RFC 9018)."""

from __future__ import annotations

import hmac
import struct
from functools import lru_cache

from unmoor.dns.protocol.client_subnet import Subnet
from unmoor.dns.protocol.message import FORMERR, QueryError

#: Seconds: the age from which a cookie is renewed, the age from which it is invalid, and how far its time
#: stamp may lie in the future (RFC 9018 section 4.3).
_RENEW, _OLDEST, _FUTURE = 1800, 3600, 300
_VERSION = b"\1\0\0\0"
_CLIENT_SIZE, _SERVER_SIZE = 8, 16
_WORD = (1 << 64) - 1


class Cookies:
    """Generates and validates server cookies with one secret of 16 octets."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        # Resolvers send the same cookie for minutes, and SipHash takes 20 us in Python.
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
        return siphash24(self._secret, data + client.number.to_bytes(client.length // 8, "big"))


def siphash24(key: bytes, data: bytes) -> bytes:
    """Return the 8 octets of SipHash-2-4 (Aumasson, Bernstein 2012) of `data` under a key of 16 octets."""
    low, high = struct.unpack("<2Q", key)
    state: list[int] = [word ^ each for word, each in zip((low, high, low, high), _CONSTANTS, strict=True)]
    end = len(data) - len(data) % 8
    last = int.from_bytes(data[end:], "little") | (len(data) & 0xFF) << 56
    for (word,) in (*struct.iter_unpack("<Q", data[:end]), (last,)):
        state[3] ^= word
        _mix(state, 2)
        state[0] ^= word
    state[2] ^= 0xFF
    _mix(state, 4)
    digest = state[0] ^ state[1] ^ state[2] ^ state[3]
    return digest.to_bytes(8, "little")


# 'somepseudorandomlygeneratedbytes', the paper's initial state.
_CONSTANTS = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)


def _mix(state: list[int], rounds: int) -> None:
    a, b, c, d = state
    for _ in range(rounds):
        a = (a + b) & _WORD
        b = _rotate(b, 13) ^ a
        a = _rotate(a, 32)
        c = (c + d) & _WORD
        d = _rotate(d, 16) ^ c
        a = (a + d) & _WORD
        d = _rotate(d, 21) ^ a
        c = (c + b) & _WORD
        b = _rotate(b, 17) ^ c
        c = _rotate(c, 32)
    state[:] = a, b, c, d


def _rotate(word: int, bits: int) -> int:
    return (word << bits | word >> (64 - bits)) & _WORD
