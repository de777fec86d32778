"""Frames from the runner's threads to the server, one at a time on each way."""

import socket
import threading
from collections.abc import Callable

from hotslot.runner.v1 import runner_pb2
from inference.wire import write_frame


class Outlet:
    """One way to the server. Any thread; blocks while the server does not read.

    Args:
        on_gone: called when the server is gone; must not return.
    """

    def __init__(self, way: socket.socket, on_gone: Callable[[], None]) -> None:
        self._way = way
        self._on_gone = on_gone
        self._lock = threading.Lock()

    def say(self, reply: runner_pb2.RunnerReply) -> None:
        """Send one message."""
        payload = reply.SerializeToString()
        try:
            with self._lock:
                write_frame(self._way, payload)
        except OSError:
            self._on_gone()
