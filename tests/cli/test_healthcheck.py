"""`hotslot healthcheck` has the flags, messages and exit codes of grpc_health_probe."""

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from grpc_health.v1 import health_pb2

from cli.healthcheck import (
    CONNECT_FAILED,
    FlagsWrong,
    check,
    decode_response,
    encode_request,
    parse_duration,
    parse_flags,
)
from cli.settings import PROJECT_FOLDER
from tests.cli.probe_table import DIFFERENT, PROBE
from tests.cli.scripted_server import ScriptedServer

UNUSED = "127.0.0.1:1"
GENEROUS = ("-connect-timeout=10s", "-rpc-timeout=10s")  # the last of a flag counts, so that a test may set its own


def probe(*flags: str) -> tuple[int, str]:
    """Run the program as a container's probe does; returns exit code and standard error."""
    command = [sys.executable, "-m", "cli.main", "healthcheck", *GENEROUS, *flags]
    done = subprocess.run(command, cwd=PROJECT_FOLDER, capture_output=True, text=True, timeout=40, check=False)
    return done.returncode, done.stderr.strip()


def test_0_a_server_that_serves(server: ScriptedServer) -> None:
    """Exit code 0, and the message of grpc_health_probe."""
    assert probe("-addr", server.address) == (0, "status: SERVING")


def test_1_a_missing_address() -> None:
    """Exit code 1."""
    assert probe("-service", "x") == (1, "error: -addr not specified")


def test_2_a_refused_connection() -> None:
    """Exit code 2, after the connect timeout."""
    code, output = probe(f"--addr={UNUSED}", "-connect-timeout=100ms")
    assert code == 2
    assert output == f'timeout: failed to connect service "{UNUSED}" within 0.1s'


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("-service", "unknown"), "error: health rpc failed: NOT_FOUND: no such service"),
        (("-service", "slow", "-rpc-timeout", "50ms"), "timeout: health rpc did not complete within 0.05s"),
        (
            ("-service", "header", "-rpc-header", "X-Team: red"),
            "error: health rpc failed: PERMISSION_DENIED: x-team is red",
        ),
    ],
)
def test_3_a_failed_call(server: ScriptedServer, flags: tuple[str, ...], sentence: str) -> None:
    """Exit code 3 for an unknown name, a timeout, and every other failure; headers are sent."""
    assert (3, sentence) == probe("-addr", server.address, *flags)


def test_3_a_server_without_a_health_service() -> None:
    """Exit code 3; the message says what is missing."""
    bare = ScriptedServer(has_services=False)
    code, output = probe("-addr", bare.address, "-gzip", "-user-agent", "me")
    bare.stop()
    assert code == 3
    assert "does not implement the grpc health protocol" in output
    assert output.endswith("leave -gzip out")


def test_4_a_server_that_does_not_serve(server: ScriptedServer) -> None:
    """Exit code 4."""
    assert probe("-addr", server.address, "-service", "down") == (4, 'service unhealthy (responded with "NOT_SERVING")')


def test_verbose_prints_each_step(server: ScriptedServer) -> None:
    """Each step has a line; the result is the last one."""
    code, output = probe("-v", "-addr", server.address)
    assert code == 0
    assert [line.split(" (")[0] for line in output.splitlines()[:2]] == [
        "establishing connection",
        "connection established",
    ]
    assert output.splitlines()[-1] == "status: SERVING"


def test_a_probe_imports_only_grpc() -> None:
    """It imports neither Typer, Rich, protobuf nor the settings."""
    script = (
        "import sys, cli.main, cli.healthcheck; print(sorted({'typer', 'rich', 'pydantic', 'google'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT_FOLDER, capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("service", ["", "liveness", "x" * 127, "x" * 128, "ä" * 9000])
def test_requests_are_encoded_like_protobuf(service: str) -> None:
    """The bytes are equal to those of the generated message."""
    assert health_pb2.HealthCheckRequest(service=service).SerializeToString() == encode_request(service)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_responses_are_decoded_like_protobuf(number: int) -> None:
    """Every status of the protocol; a malformed response is UNKNOWN."""
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(
        health_pb2.HealthCheckResponse.ServingStatus.values()[number]
    )
    raw = health_pb2.HealthCheckResponse(status=number).SerializeToString()
    assert status == decode_response(raw)
    assert decode_response(b"\xff\xff") == "UNKNOWN"


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("1s", 1.0), ("1m", 60.0), ("1m30s", 90.0), (".5s", 0.5)]
)
def test_durations_have_the_syntax_of_go(text: str, seconds: float) -> None:
    """As in the flags of Go programs."""
    assert seconds == pytest.approx(parse_duration(text))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("-addr a -rpc-timeout 5", "a duration such as 250ms"),
        ("-addr a -rpc-timeout 0s", "must be greater than zero"),
        ("-addr a -nope", "flag provided but not defined: -nope"),
        ("-addr", "flag needs an argument: -addr"),
        ("-addr a -tls-ca-cert f", "without specifying -tls"),
        ("-addr a -tls -tls-no-verify", "gRPC for Python always verifies"),
        ("-addr a -tls -tls-client-cert f", "together"),
        ("-addr a -rpc-header x", "expected 'name: value'"),
        ("-addr a -v=perhaps", "invalid boolean value"),
        ("-addr a -spiffe", "not supported"),
    ],
)
def test_a_wrong_flag_is_reported(flags: str, says: str) -> None:
    """The message names the flag and what is expected."""
    with pytest.raises(FlagsWrong, match=says):
        parse_flags(flags.split())


def test_flags_have_the_syntax_of_go() -> None:
    """One dash or two, value after a space or an equals sign, switches with and without a value."""
    flags = parse_flags(["--addr=a:1", "-service", "s", "-gzip=false", "-tls", "--tls-server-name", "n", "-v=true"])
    assert (
        flags.address,
        flags.service,
        flags.gzip,
        flags.tls,
        flags.tls_server_name,
        flags.verbose,
    ) == ("a:1", "s", False, True, "n", True)
    assert (flags.connect_seconds, flags.rpc_seconds) == (1.0, 1.0)  # unless they are given


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """Values of the table's placeholders: a server on IPv4, IPv6 and a Unix socket."""
    folder = tmp_path_factory.mktemp("probe")
    server = ScriptedServer(addresses=("[::]:0", f"unix:{folder / 'a.sock'}"))
    with socket.create_server(("127.0.0.1", 0)) as freed:
        free = freed.getsockname()[1]
    port = server.address.rpartition(":")[2]
    yield {"port": port, "unix": folder / "a.sock", "free": free, "missing": folder / "missing"}
    server.stop()


@pytest.mark.parametrize("line", PROBE)
def test_the_real_probe_and_ours_agree(places: dict[str, object], line: str) -> None:
    """On the exit code of every command line, but for those that differ on purpose."""
    flags = line.format(**places).split()
    expected = DIFFERENT.get(line, PROBE[line])
    limits = ("-connect-timeout=100ms",) if expected == CONNECT_FAILED else GENEROUS if flags else ()

    assert check([*limits, *flags]) == expected
