"""A door for Prometheus: /metrics over HTTP, whatever is counted, read at each scrape."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from http import HTTPStatus
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from unmoor.errors import UnmoorError

#: Seconds that a client may take to ask.
_PATIENCE = 10.0


def server(registry: CollectorRegistry, address: str, port: int) -> WSGIServer:
    """A server of /metrics, ready to `serve_forever`. Raises OSError where it cannot listen.

    What cannot be read (OSError, UnmoorError) is told to the scraper, and the next scrape tries again.
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
    timeout = _PATIENCE

    def log_message(self, *_arguments: object) -> None:
        """A scrape is no news."""


def _refusal(start_response: StartResponse, status: HTTPStatus, why: str) -> list[bytes]:
    start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{why}\n".encode()]
