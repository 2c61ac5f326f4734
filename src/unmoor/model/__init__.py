"""Types of the inventory and of the two documents, with their validation and compilation."""

from unmoor.model.common import Document, Prefix, Protocol, load, parse, parse_ports, read, validate
from unmoor.model.dns import Answer, DnsDocument, Hostnames, Match, Policy, Pool, RegistryFile, Zone
from unmoor.model.edge import Binding, EdgeDocument, Service

__all__ = [
    "Answer",
    "Binding",
    "DnsDocument",
    "Document",
    "EdgeDocument",
    "Hostnames",
    "Match",
    "Policy",
    "Pool",
    "Prefix",
    "Protocol",
    "RegistryFile",
    "Service",
    "Zone",
    "load",
    "parse",
    "parse_ports",
    "read",
    "validate",
]
