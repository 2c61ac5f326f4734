"""The DNS server's answers, without sockets."""

from __future__ import annotations

from typing import Any

import dns.flags
import dns.message

from support.dns_document import document, model
from unmoor.dns.answer.fast_path import answerer
from unmoor.dns.answer.snapshot import Snapshot, build
from unmoor.dns.counters.counters import Counts
from unmoor.dns.protocol.edns import Options


def snapshot(data: dict[str, Any] | None = None) -> Snapshot:
    doc = model(data or document())
    return build(doc, "dns.json", {policy.name: at for at, policy in enumerate(doc.policies)})


class Local:
    """Answers queries of a document, without sockets."""

    def __init__(self, data: dict[str, Any] | None = None, secret: bytes = b"") -> None:
        """`secret` is the cookie secret if the document has none."""
        self.counts = Counts.private()
        self.snapshot = snapshot(data)
        self.answer = answerer(self.snapshot, self.counts, Options(self.snapshot.document, secret))

    def ask(
        self, name: str, rtype: str = "A", limit: int = 1232, address: str = "127.0.0.1", **options: Any
    ) -> dns.message.Message:
        """Query like a client; dnspython parses and checks the reply."""
        query = dns.message.make_query(name, rtype, **options)
        query.flags &= ~dns.flags.RD
        wire = self.answer(query.to_wire(), limit, address)
        assert wire is not None
        reply = dns.message.from_wire(wire)
        assert reply.id == query.id
        return reply


def records(section: list[Any]) -> list[str]:
    """A section as text, one line for each record."""
    return sorted(line for rrset in section for line in rrset.to_text().splitlines())
