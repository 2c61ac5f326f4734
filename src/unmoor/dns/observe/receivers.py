"""The receiver of a document's query log."""

from __future__ import annotations

from pathlib import Path

from unmoor.dns.observe import journald
from unmoor.dns.observe.dnstap import Dnstap
from unmoor.dns.observe.journald import Journald
from unmoor.dns.observe.query_log import Receiver
from unmoor.model import DnsDocument


def receiver_for(document: DnsDocument) -> Receiver | None:
    """Return the receiver; None if nothing is logged."""
    wanted = document.query_log
    if not wanted.sample:
        return None
    if wanted.to == "dnstap":
        return Dnstap(Path(wanted.socket), document.edge)
    return Journald(Path(wanted.socket) if wanted.socket else journald.DEFAULT_SOCKET)
