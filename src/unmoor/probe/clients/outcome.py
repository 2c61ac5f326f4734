"""What came of one connection, and the names of the causes when nothing good did."""

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
    errno.EACCES: "unreachable",  # what a `prohibit` route answers
    errno.EINVAL: "unreachable",  # what a `blackhole` route answers
    errno.EMFILE: "local limit",
    errno.ENFILE: "local limit",
    errno.ENOBUFS: "local limit",
    errno.ENOMEM: "local limit",
    errno.EADDRNOTAVAIL: "local limit",  # every local port to that pair is taken, or no source address
    errno.EPERM: "local limit",  # SO_MARK without CAP_NET_ADMIN, or a local firewall
}

#: X509_V_ERR_* numbers whose text would name hosts and so split one cause into many.
_CERTIFICATE = {62: "wrong name", 64: "wrong name", 10: "certificate has expired"}


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a connection did not do: a short cause that is counted, and a detail for the examples."""

    cause: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.cause}: {self.detail}" if self.detail else self.cause


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answered, in its own words; what it did not say is empty."""

    edge: str = ""
    service: str = ""
    address: str = ""
    port: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one connection: `fault` is None when the right service answered.

    `seconds` runs from connect() to the whole answer.
    """

    target: Target
    seconds: float
    identity: Identity
    fault: Fault | None


def os_fault(error: OSError, doing: str) -> Fault:
    """The fault that a failed system call stands for; `doing` is what the connection was at."""
    reason = error.strerror or type(error).__name__
    return Fault(_CAUSES.get(error.errno or 0, "error"), f"{reason} while {doing}")


def tls_fault(error: ssl.SSLError) -> Fault:
    """The fault of a failed handshake, in OpenSSL's words; names differ by place, so they are a detail."""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = _CERTIFICATE.get(error.verify_code, error.verify_message)
        return Fault(f"tls: {reason}", error.verify_message)
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return Fault("tls: closed during the handshake")
    reason = (error.reason or "protocol error").lower().replace("_", " ")
    return Fault(f"tls: {reason}")
