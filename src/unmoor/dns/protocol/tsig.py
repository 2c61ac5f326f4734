"""Transaction signatures (RFC 8945): verify requests and sign replies.

A request costs one look-up of its key and, if the key is known, one HMAC over the request.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import dns.exception
import dns.name
import dns.tsig

from unmoor.dns.protocol import message, names
from unmoor.dns.protocol.message import FORMERR, NOERROR, NOTAUTH, QueryError
from unmoor.model.dns import TsigKey

# TSIG errors (RFC 8945 section 3).
BADSIG, BADKEY, BADTIME, BADTRUNC = 16, 17, 18, 22

#: Octets that a truncated MAC has at least; half of the whole MAC if that is more (RFC 8945 section 5.2.2.1).
_MIN_MAC = 10
_TTL = b"\0\0\0\0"
_CLASS = struct.pack("!H", message.ANY_CLASS)


def shared_key(name: str, shared: TsigKey) -> dns.tsig.Key:
    """Convert a document's key to dnspython's type, which signs requests to primaries."""
    return dns.tsig.Key(dns.name.from_text(name), shared.secret.get_secret_value(), shared.algorithm)


@dataclass(frozen=True, slots=True)
class Key:
    """A shared key.

    `name` and `algorithm` are domain names in wire form and lower case; `digest` is the hash's name.
    """

    name: bytes
    algorithm: bytes
    digest: str
    secret: bytes

    @classmethod
    def of(cls, shared: dns.tsig.Key) -> Key:
        """Convert a key that `shared_key` returned."""
        name, algorithm = (each.canonicalize().to_wire() or b"" for each in (shared.name, shared.algorithm))
        digest = shared.algorithm.labels[0].decode().removeprefix("hmac-")
        return cls(name, algorithm, digest, shared.secret)

    def mac(self, *parts: bytes) -> bytes:
        """Return the MAC of the concatenated parts."""
        return hmac.digest(self.secret, b"".join(parts), self.digest)


class Keys:
    """Keys by name and algorithm; a key is valid with one algorithm only."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._keys = {(key.name, key.algorithm): key for key in keys}

    @classmethod
    def of(cls, shared: Mapping[str, TsigKey]) -> Keys:
        """Convert the keys of a document."""
        return cls(Key.of(shared_key(name, each)) for name, each in shared.items())

    def check(self, packet: bytes, start: int, now: int) -> Signed:
        """Verify the TSIG record from `start` to the end of a request; `now` is in seconds since 1970.

        An invalid signature gives a result with an error. Raises QueryError (FORMERR) if the record is
        malformed.
        """
        record = _Record.read(packet, start)
        key = self._keys.get((record.name, record.algorithm))
        if key is None:
            return Signed(record, packet[:2], None, BADKEY, now)
        (count,) = struct.unpack_from("!H", packet, 10)
        unsigned = record.original_id + packet[2:10] + struct.pack("!H", count - 1) + packet[12:start]
        expected = key.mac(unsigned, record.variables())
        size = len(record.mac)
        if not max(_MIN_MAC, len(expected) // 2) <= size <= len(expected):
            raise QueryError(FORMERR)
        if not hmac.compare_digest(expected[:size], record.mac):
            return Signed(record, packet[:2], None, BADSIG, now)
        error = NOERROR
        if abs(now - record.time) > record.fudge:
            error = BADTIME
        elif size < len(expected):
            error = BADTRUNC
        return Signed(record, packet[:2], key, error, now)


@dataclass(frozen=True, slots=True)
class Signed:
    """The result of verifying a request's signature. `error` is a TSIG error, NOERROR if it is valid.

    `key` is set if the MAC is correct; then the reply is signed. Otherwise the reply has a TSIG record that
    holds the error and an empty MAC (section 5.3.2).
    """

    record: _Record
    ident: bytes
    key: Key | None
    error: int
    now: int

    @property
    def rcode(self) -> int:
        """The response code: NOTAUTH if the signature is invalid, NOERROR otherwise."""
        return NOTAUTH if self.error else NOERROR

    @property
    def size(self) -> int:
        """The number of octets that `sign` adds to a reply."""
        return len(self._encode(len(self.key.mac()) * b"\0" if self.key else b""))

    def sign(self, message: bytes) -> bytes:
        """Return the encoded reply `message` with a TSIG record appended (section 5.3)."""
        mac = b""
        if self.key:
            asked = len(self.record.mac).to_bytes(2, "big") + self.record.mac
            mac = self.key.mac(asked, message, self._reply_record(b"").variables())
        (count,) = struct.unpack_from("!H", message, 10)
        return message[:10] + struct.pack("!H", count + 1) + message[12:] + self._encode(mac)

    def _encode(self, mac: bytes) -> bytes:
        return self._reply_record(mac).write()

    def _reply_record(self, mac: bytes) -> _Record:
        """The reply's record; on BADTIME it has the server's time in Other Data (section 5.2.3)."""
        good = self.error == NOERROR
        other = self.now.to_bytes(6, "big") if self.error == BADTIME else b""
        asked = self.record
        time = self.now if good else asked.time
        return _Record(asked.name, asked.algorithm, time, asked.fudge, mac, self.ident, self.error, other)


@dataclass(frozen=True, slots=True)
class _Record:
    """A TSIG record (section 4.2). `time` and `fudge` are seconds."""

    name: bytes
    algorithm: bytes
    time: int
    fudge: int
    mac: bytes
    original_id: bytes
    error: int
    other: bytes

    @classmethod
    def read(cls, packet: bytes, start: int) -> _Record:
        """Parse the record from `start` to the packet's end. Raises QueryError (FORMERR)."""
        try:
            owner, size = dns.name.from_wire(packet, start)
            at = start + size
            name = names.fold(owner.to_wire() or names.ROOT)
            if packet[at + 2 : at + 8] != _CLASS + _TTL:
                raise QueryError(FORMERR)
            data = packet[at + 10 :]
            at = names.end(data)
            algorithm = names.fold(data[:at])
            if at > names.MAX_NAME or any(len(label) > names.MAX_LABEL for label in names.labels(algorithm)):
                raise QueryError(FORMERR)
            high, low, fudge, mac_size = struct.unpack_from("!HIHH", data, at)
            at += 10
            mac, at = data[at : at + mac_size], at + mac_size
            original_id, error, other_size = struct.unpack_from("!2sHH", data, at)
            other, at = data[at + 6 : at + 6 + other_size], at + 6 + other_size
        except (IndexError, struct.error, dns.exception.DNSException):
            raise QueryError(FORMERR) from None
        if at != len(data):
            raise QueryError(FORMERR)
        return cls(name, algorithm, high << 32 | low, fudge, mac, original_id, error, other)

    def variables(self) -> bytes:
        """Return the TSIG variables that the MAC covers besides the message (section 4.3.3)."""
        return b"".join(
            (
                self.name,
                _CLASS,
                _TTL,
                self.algorithm,
                self._times(),
                struct.pack("!2H", self.error, len(self.other)),
                self.other,
            )
        )

    def write(self) -> bytes:
        """Encode the record; neither of its names may be compressed (section 4.2)."""
        data = b"".join(
            (
                self.algorithm,
                self._times(),
                struct.pack("!H", len(self.mac)),
                self.mac,
                self.original_id,
                struct.pack("!2H", self.error, len(self.other)),
                self.other,
            )
        )
        head = struct.pack("!H", message.TSIG) + _CLASS + _TTL + struct.pack("!H", len(data))
        return self.name + head + data

    def _times(self) -> bytes:
        return struct.pack("!HIH", self.time >> 32, self.time & 0xFFFFFFFF, self.fudge)
