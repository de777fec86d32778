"""Whether a process still does its work: the server is asked over gRPC, the updater shows a file that it touches."""

from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.paths import LIVENESS


class ServerProbe:
    """Asks the server's health service about `liveness`, over a connection of its own each time."""

    def __init__(self, address: str, deadline_seconds: float) -> None:
        """Ask nobody yet.

        Args:
            address: host and port as a caller on this machine dials them.
            deadline_seconds: for connecting and answering together.
        """
        self._address = address
        self._deadline = deadline_seconds

    def is_live(self) -> bool:
        """Whether it said in time that it lives."""
        request = health_pb2.HealthCheckRequest(service=LIVENESS)
        with grpc.insecure_channel(self._address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            try:
                seen = health_pb2_grpc.HealthStub(channel).Check(request, timeout=self._deadline)
            except grpc.RpcError:
                return False
        return bool(seen.status == health_pb2.HealthCheckResponse.SERVING)


class FileTouched:
    """Looks whether a file was touched since the last look; what time it says does not matter."""

    def __init__(self, path: Path) -> None:
        """Remember how it looks now."""
        self._path = path
        self._last = self._look()

    def is_live(self) -> bool:
        """Whether it was touched."""
        before, self._last = self._last, self._look()
        return self._last not in (0, before)

    def _look(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0
