"""The tools themselves, against a plain gRPC server: the ground on which they judge ours."""

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).resolve().parents[3]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
STATES = {"": SERVING, "down": NOT_SERVING}


class PlainHealth(health_pb2_grpc.HealthServicer):
    """Answers from a table; "slow" never in time."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.seen: dict[str, str] = {}

    def Check(  # noqa: N802  gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """The state of one service."""
        self.seen = {key: str(value) for key, value in context.invocation_metadata()}
        if request.service == "slow":
            self.released.wait(10)
        if request.service not in STATES:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=STATES[request.service])


@pytest.fixture
def health() -> PlainHealth:
    """The servicer, whose recorded requests are checked."""
    return PlainHealth()


@pytest.fixture
def address(health: PlainHealth) -> Iterator[str]:
    """Where a plain server without reflection listens."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    health.released.set()
    server.stop(None).wait(5)


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end."""
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=30, check=False)


def probe(tool: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the health checker with generous limits, unless the arguments say otherwise: the last of a flag counts."""
    return run(tool, "-connect-timeout=10s", "-rpc-timeout=10s", *arguments)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 0),
        (["-service", "down"], 4),
        (["-service", "unknown"], 3),
        (["-service", "slow", "-rpc-timeout", "100ms"], 3),
        (["-tls", "-tls-no-verify", "-connect-timeout", "300ms"], 2),
        (["-rpc-timeout", "0s"], 1),
        (["-tls-no-verify"], 1),
        (["-tls", "-tls-client-cert", "x"], 1),
        (["-rpc-header", "nonsense"], 1),
    ],
)
def test_exit_codes_are_those_of_grpc_health_probe(
    go_healthcheck: Path, address: str, arguments: list[str], code: int
) -> None:
    """0 serving, 1 usage, 2 no connection, 3 call failed, 4 not serving."""
    assert code == probe(go_healthcheck, "-addr", address, *arguments).returncode


def test_a_missing_address_is_a_usage_error(go_healthcheck: Path) -> None:
    """`-addr` is required."""
    assert run(go_healthcheck).returncode == 1


def test_nobody_there_and_a_frozen_server_are_no_connection(go_healthcheck: Path) -> None:
    """A server that takes the connection and says nothing is as unreachable as none."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        address = f"127.0.0.1:{frozen.getsockname()[1]}"
        assert run(go_healthcheck, "-addr", address, "-connect-timeout", "300ms").returncode == 2
    assert run(go_healthcheck, "-addr", address, "-connect-timeout", "300ms").returncode == 2


def test_headers_and_user_agent_are_sent(go_healthcheck: Path, address: str, health: PlainHealth) -> None:
    """What a mesh or an auth proxy asks for can be given."""
    done = probe(
        go_healthcheck, "-addr", address, "-rpc-header", "x-team: search", "-user-agent", "probe/1", "-gzip", "-v"
    )
    assert done.returncode == 0
    assert health.seen["x-team"] == "search"
    assert health.seen["user-agent"].startswith("probe/1 ")
    assert "time elapsed: connect=" in done.stderr


def test_grpcurl_is_the_pinned_one(grpcurl: Path) -> None:
    """Its version is that of dev/tools/go/go.mod."""
    pinned = next(
        line.split()[1] for line in (ROOT / "dev/tools/go/go.mod").read_text().splitlines() if "/grpcurl v" in line
    )
    assert run(grpcurl, "-version").stderr.strip() == f"grpcurl {pinned}"


def test_health_is_asked_by_files_without_reflection(grpcurl: Path, address: str) -> None:
    """The health contract in dev/third_party is the standard's."""
    files = ["-import-path", ROOT / "dev/third_party", "-proto", "grpc/health/v1/health.proto"]
    done = run(grpcurl, "-plaintext", *files, "-d", '{"service": "down"}', address, "grpc.health.v1.Health/Check")
    assert json.loads(done.stdout) == {"status": "NOT_SERVING"}
