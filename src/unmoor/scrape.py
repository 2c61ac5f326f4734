"""An HTTP server of /metrics for Prometheus, which collects at each scrape."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from http import HTTPStatus
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from unmoor.errors import UnmoorError

#: Seconds in which a client must send its request.
_TIMEOUT = 10.0


def server(registry: CollectorRegistry, address: str, port: int) -> WSGIServer:
    """Return a server of /metrics that listens; call `serve_forever`. Raises OSError when it cannot listen.

    A scrape during which collecting raises OSError or UnmoorError gets status 503 with the reason.
    """
    metrics = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/metrics":
            return _refusal(start_response, HTTPStatus.NOT_FOUND, "see /metrics")
        try:
            body: Iterable[bytes] = metrics(environ, start_response)
        except (OSError, UnmoorError) as error:
            return _refusal(start_response, HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        return body

    kind = _Server6 if ":" in address else ThreadingWSGIServer
    return make_server(address, port, app, kind, handler_class=_Handler)


class _Server6(ThreadingWSGIServer):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = _TIMEOUT

    def log_message(self, *_arguments: object) -> None:
        """Log nothing: scrapes are frequent."""


def _refusal(start_response: StartResponse, status: HTTPStatus, why: str) -> list[bytes]:
    start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{why}\n".encode()]
