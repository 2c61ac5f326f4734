"""What is counted, for Prometheus: its text format, printed once or served over HTTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from unmoor.errors import UnmoorError
from unmoor.sockets.counts import address_counts
from unmoor.sockets.layout import COUNTERS
from unmoor.sockets.pins import Pins
from unmoor.sockets.status import Status, read_status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PATIENCE = 10.0

Samples = Iterable[tuple[dict[str, str], int]]


def render(pins: Pins, addresses: bool = False) -> str:
    """All metrics of the live generation; with `addresses` a sample for each address that was looked up.

    Raises UnmoorError when nothing is loaded.
    """
    status = read_status(pins)
    lines = list(_services(status))
    lines += _metric("bindings", "gauge", "Lines of the dispatch table.", _bindings(status))
    lines += _metric(
        "generation", "gauge", "Number of the live generation.", [({}, status.record.generation)]
    )
    lines += _metric(
        "foreign_programs",
        "gauge",
        "sk_lookup programs in the namespace that are not Unmoor's.",
        [({}, len(status.foreign))],
    )
    if addresses:
        samples = [({"address": str(address)}, count) for address, count in address_counts(pins).items()]
        lines += _metric("address_lookups_total", "counter", "Look-ups by address.", samples)
    return "\n".join(lines) + "\n"


def _services(status: Status) -> Iterator[str]:
    labelled = [
        ({"service": each.service, "protocol": each.protocol, "family": f"ipv{each.family}"}, each)
        for each in status.destinations
    ]
    for name, text in (
        ("lookups", "Look-ups that matched a binding."),
        ("misses", "Look-ups refused because no socket was registered."),
    ):
        samples = [(labels, each.counters[name]) for labels, each in labelled]
        yield from _metric(f"{name}_total", "counter", text, samples)
    errors = [
        ({**labels, "error": name}, each.counters[name]) for labels, each in labelled for name in COUNTERS[2:]
    ]
    yield from _metric("errors_total", "counter", "Look-ups refused: the socket cannot take them.", errors)
    sockets = [(labels, len(each.sockets)) for labels, each in labelled]
    yield from _metric("registered", "gauge", "Sockets registered.", sockets)


def _bindings(status: Status) -> Samples:
    found = Counter((each.service, each.protocol, each.prefix.version) for each in status.bindings)
    for (service, protocol, family), count in sorted(found.items()):
        yield {"service": service, "protocol": protocol, "family": f"ipv{family}"}, count


def _metric(name: str, kind: str, text: str, samples: Samples) -> Iterator[str]:
    full = f"unmoor_sockets_{name}"
    yield f"# HELP {full} {text}"
    yield f"# TYPE {full} {kind}"
    for labels, value in samples:
        # No label needs escaping: they are labels of services, addresses, and words of ours.
        inside = ",".join(f'{key}="{text}"' for key, text in labels.items())
        yield f"{full}{{{inside}}} {value}" if inside else f"{full} {value}"


def serve(pins: Pins, address: str, port: int, addresses: bool = False) -> ThreadingHTTPServer:
    """A server of /metrics, ready to `serve_forever`. Raises OSError where it cannot listen."""

    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE
        server_version = "unmoor"

        def do_GET(self) -> None:
            if self.path != "/metrics":
                self.send_error(HTTPStatus.NOT_FOUND, explain="see /metrics")
                return
            try:
                body = render(pins, addresses).encode()
            except (OSError, UnmoorError) as error:
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=str(error))
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """A scrape is no news."""

    return ThreadingHTTPServer((address, port), Handler)
