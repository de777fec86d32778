"""Which processes run now, asked of supervisord once: a listener that was started again has missed their events."""

import socket
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path

from supervisor.xmlrpc import SupervisorTransport

TIMEOUT_SECONDS = 5.0


def running(socket_path: Path) -> Iterator[tuple[str, int]]:
    """Each program that runs, with its process.

    Args:
        socket_path: supervisord's; nobody but its own user can reach it.

    Raises:
        OSError: it does not answer.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)  # its transport knows no other way
    try:
        transport = SupervisorTransport(None, None, f"unix://{socket_path}")
        proxy = xmlrpc.client.ServerProxy("http://supervisord", transport=transport)
        rows = proxy.supervisor.getAllProcessInfo()
    except (xmlrpc.client.Error, ValueError, TypeError) as error:
        raise OSError(f"supervisord's answer cannot be used: {error}") from error
    finally:
        socket.setdefaulttimeout(before)
    if not isinstance(rows, list):
        raise OSError("supervisord's answer is no list")
    for row in rows:
        if isinstance(row, dict) and row.get("statename") == "RUNNING":
            yield str(row["name"]), int(row["pid"])
