"""Limits of the activation service, and its client as far as it needs no kernel feature."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path

from support.checkout import ROOT
from unmoor.sockets.activation import client, service, workers
from unmoor.sockets.activation.protocol import Reply, Request

UNIT = ROOT / "roles/socket_activation/templates/unmoor-activation.service.j2"
_SPARE = 64  # the standard streams, the selector, and what a library opens for a moment


def test_the_unit_allows_as_many_descriptors_as_the_bounds_add_up_to() -> None:
    processes = workers.MAX_OF_ROOT + workers.MAX_OF_USERS + workers.MAX_DISCARDING + 1
    own = service.MAX_CLIENTS + service.MAX_LEFT + service.MAX_ACCEPTED + 2 * processes
    found = re.search(r"^LimitNOFILE=(\d+)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    # A worker starts with copies of all that the service has, and receives one message.
    assert own + workers.MAX_PASSED + _SPARE <= int(found.group(1))


def test_a_client_waits_while_the_backlog_is_full(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(str(path))
        listener.listen(0)
        other.connect(str(path))

        def serve() -> None:
            for reply in (b"", Reply(True, sockets=("tcp 127.0.0.1:80",)).encode()):
                with listener.accept()[0] as client:
                    if reply:
                        client.recv(4096)
                        client.sendall(reply)

        thread = threading.Timer(0.2, serve)  # however late, the client waits for it
        thread.start()
        assert client.send(path, Request("register", "web")).sockets == ("tcp 127.0.0.1:80",)
        thread.join()
