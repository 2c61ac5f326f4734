"""EDNS options that do not depend on the question: cookies, NSID (RFC 5001), TCP keepalive (RFC 7828)."""

from __future__ import annotations

import os
import time

from unmoor.dns.protocol.cookies import Cookies
from unmoor.dns.protocol.message import COOKIE, FORMERR, Edns, QueryError
from unmoor.model import DnsDocument

NSID = 3
KEEPALIVE = 11
EXTENDED_ERROR = 15
#: Extended DNS Error 20, Not Authoritative (RFC 8914 section 4.21): the server has no such zone.
NOT_AUTHORITATIVE = (EXTENDED_ERROR, b"\0\x14")


class Options:
    """Builds a reply's options from a query's.

    `secret`, 16 octets, makes cookies if the document has no secret of its own. All workers of a server must
    share it; without it, one is drawn at random.
    """

    def __init__(self, document: DnsDocument, secret: bytes = b"") -> None:
        given = document.cookie_secret.get_secret_value()
        self._cookies = Cookies(bytes.fromhex(given) if given else secret or os.urandom(16))
        self._name = document.edge.encode() if document.tell_name else b""
        self._idle = (document.tcp_idle * 10).to_bytes(2, "big")

    def has_valid_cookie(self, edns: Edns, address: str) -> bool:
        """Report whether the query carries a valid server cookie. Raises QueryError for malformed options."""
        cookie = edns.option(COOKIE)
        return cookie is not None and self._cookies.is_valid(cookie, address, int(time.time()))

    def reply(self, edns: Edns, address: str, over_tcp: bool, now: int) -> list[tuple[int, bytes]]:
        """Return the options, (code, data), of the reply to a query from `address`.

        `now` is in seconds since 1970. Raises QueryError (FORMERR) if an option is malformed.
        """
        if not edns.options:
            return []
        found = []
        cookie = edns.option(COOKIE)
        if cookie is not None:
            found.append((COOKIE, self._cookies.reply(cookie, address, now)))
        if self._name and edns.option(NSID) is not None:
            found.append((NSID, self._name))
        if over_tcp and (keepalive := edns.option(KEEPALIVE)) is not None:
            if keepalive:  # clients send no timeout (RFC 7828 section 3.2.1)
                raise QueryError(FORMERR)
            found.append((KEEPALIVE, self._idle))
        return found
