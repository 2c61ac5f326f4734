"""The outcome of one connection, and the causes of failures."""

from __future__ import annotations

import errno
import ssl
from dataclasses import dataclass

from unmoor.probe.clients.targets import Target

_CAUSES = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.ECONNABORTED: "reset",
    errno.EPIPE: "reset",
    errno.ETIMEDOUT: "timeout",
    errno.EHOSTUNREACH: "unreachable",
    errno.EHOSTDOWN: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.ENETDOWN: "unreachable",
    errno.EACCES: "unreachable",  # from a `prohibit` route
    errno.EINVAL: "unreachable",  # from a `blackhole` route
    errno.EMFILE: "local limit",
    errno.ENFILE: "local limit",
    errno.ENOBUFS: "local limit",
    errno.ENOMEM: "local limit",
    errno.EADDRNOTAVAIL: "local limit",  # no free local port for that pair, or no source address
    errno.EPERM: "local limit",  # SO_MARK without CAP_NET_ADMIN, or a local firewall
}

#: X509_V_ERR_* numbers whose text contains host names, which would split one cause into many.
_CERTIFICATE = {62: "wrong name", 64: "wrong name", 10: "certificate has expired"}


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a connection failed: a short cause, which is counted, and a detail for examples."""

    cause: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.cause}: {self.detail}" if self.detail else self.cause


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity in an answer; fields that the answer omits are empty."""

    edge: str = ""
    service: str = ""
    address: str = ""
    port: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one connection: `fault` is None if the right service answered.

    `seconds` is the time from connect() to the complete answer.
    """

    target: Target
    seconds: float
    identity: Identity
    fault: Fault | None


def os_fault(error: OSError, doing: str) -> Fault:
    """Return the fault of a failed system call; `doing` is the connection's phase."""
    reason = error.strerror or type(error).__name__
    return Fault(_CAUSES.get(error.errno or 0, "error"), f"{reason} while {doing}")


def tls_fault(error: ssl.SSLError) -> Fault:
    """Return the fault of a failed handshake, with OpenSSL's text; host names are part of the detail."""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = _CERTIFICATE.get(error.verify_code, error.verify_message)
        return Fault(f"tls: {reason}", error.verify_message)
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return Fault("tls: closed during the handshake")
    reason = (error.reason or "protocol error").lower().replace("_", " ")
    return Fault(f"tls: {reason}")
