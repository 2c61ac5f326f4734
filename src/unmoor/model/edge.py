"""The document of an edge's sockets half: `/etc/unmoor/edge.json`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from pydantic import Field

from unmoor.model.common import Document, Label, Ports, Prefix, Protocol, parse_ports


class ServiceBody(Document):
    """A service without its label: ports and prefixes it is bound to, and users that register its sockets."""

    protocols: tuple[Protocol, ...] = Field(("tcp",), min_length=1, description="Transport protocols.")
    ports: tuple[Ports, ...] = Field(
        min_length=1, description="Ports: numbers, ranges such as '8000-8099', or 'any'."
    )
    prefixes: tuple[Prefix, ...] | None = Field(
        None, min_length=1, description="Prefixes the service is bound to; without it, all of the edge's."
    )
    interface: str = Field("", max_length=15, description="Only packets received on this interface.")
    users: tuple[str, ...] = Field(
        ("root",), description="Users that may register this service's sockets (SO_PEERCRED)."
    )
    groups: tuple[str, ...] = Field((), description="Groups whose members may register as well.")
    check: Literal["http", "https", "banner", "connect", "none"] = Field(
        "connect",
        description="What a probe accepts as an answer: an HTTP response (over TLS), a line on connect, or "
        "the connection alone. All but the last must name the service and the destination address.",
    )


class Service(ServiceBody):
    """A service: its label, protocols, ports, and the prefixes it is bound to."""

    label: Label


class Binding(NamedTuple):
    """One line of the dispatch table: protocol, prefix, first and last port, and the service.

    `interface` is the interface that packets must arrive on, or empty for any. A named tuple, because an
    edge may have a hundred thousand bindings.
    """

    protocol: Protocol
    prefix: Prefix
    first_port: int
    last_port: int
    service: str
    interface: str = ""


class EdgeDocument(Document):
    """Prefixes bound on an edge, and the services that answer on them."""

    version: Literal[1] = 1
    pop: Label = Field(description="The PoP that the edge belongs to.")
    edge: str = Field(min_length=1, description="The edge's name in the inventory.")
    prefixes: tuple[Prefix, ...] = Field(min_length=1, description="Prefixes made local and bound.")
    addresses: tuple[Prefix, ...] = Field(
        (), description="Addresses made local but bound to no service: those of the DNS servers."
    )
    services: tuple[Service, ...] = ()

    def bindings(self) -> Iterator[Binding]:
        """Yield every line of the dispatch table, in the order of the document."""
        for service in self.services:
            ranges = [parse_ports(ports) for ports in service.ports]
            for protocol in service.protocols:
                for prefix in service.prefixes or self.prefixes:
                    for first, last in ranges:
                        yield Binding(protocol, prefix, first, last, service.label, service.interface)
