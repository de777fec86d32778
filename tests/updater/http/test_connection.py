"""Opening a connection within the time there is."""

import socket

import pytest

from tests.updater.core.world import ManualClock
from updater.http.client import allow_any_address
from updater.http.connection import Connector, Deadline


def test_no_address_is_tried_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with many unreachable addresses does not exceed the time of the request."""
    clock, tried = ManualClock(), []

    class SlowSocket(socket.socket):
        def connect(self, address: object) -> None:
            tried.append((address, self.gettimeout()))
            clock.seconds += self.gettimeout() or 0.0
            raise TimeoutError

    rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{number}", 80)) for number in range(4)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: rows)
    monkeypatch.setattr(socket, "socket", SlowSocket)
    deadline = Deadline(25.0, clock)
    with pytest.raises(TimeoutError):
        Connector(allow_any_address, 10.0, deadline).open("many.example", 80)
    deadline.close()
    assert tried == [(("192.0.2.0", 80), 10.0), (("192.0.2.1", 80), 10.0), (("192.0.2.2", 80), 5.0)]
