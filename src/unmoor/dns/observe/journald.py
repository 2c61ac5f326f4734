"""The query log to systemd's journal, by its native protocol: one datagram of fields for each entry."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from unmoor.dns.observe.query_log import Entry

DEFAULT_SOCKET = Path("/run/systemd/journal/socket")
#: For `journalctl MESSAGE_ID=`.
MESSAGE_ID = "5f3c1c1e6fb54d0c9a1a0d2f7c0f4b63"


class Journald:
    """Sends entries to the socket at `path`; an entry is dropped if the socket is full or missing."""

    def __init__(self, path: Path = DEFAULT_SOCKET) -> None:
        self._path = str(path)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def send(self, entry: Entry) -> bool:
        """Send an entry; False if it was dropped."""
        fields = entry.fields()
        message = {
            "MESSAGE": _sentence(fields),
            "MESSAGE_ID": MESSAGE_ID,
            "PRIORITY": "6",
            "SYSLOG_IDENTIFIER": "unmoor-dns-query",
            **{f"UNMOOR_{name.upper()}": value for name, value in fields.items()},
        }
        try:
            self._sock.sendto(serialized(message), self._path)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Send no more."""
        self._sock.close()


def _sentence(fields: Mapping[str, str]) -> str:
    asked = " ".join(fields[key] for key in ("name", "type") if key in fields) or "a malformed query"
    reply = " ".join(fields[key] for key in ("rcode", "address") if key in fields)
    by = f" by policy {fields['policy']}" if "policy" in fields else ""
    return f"{asked} from {fields['client']}: {reply}{by}"


def serialized(fields: Mapping[str, str]) -> bytes:
    """Serialize fields for the native protocol: the length precedes a value of several lines."""
    found = b""
    for name, text in fields.items():
        value = text.encode()
        if b"\n" in value:
            found += name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
        else:
            found += name.encode() + b"=" + value + b"\n"
    return found
