"""`hotslot healthcheck` is a drop-in for grpc_health_probe: flags, words and exit codes."""

import subprocess
import sys

import pytest
from grpc_health.v1 import health_pb2

from cli.healthcheck import FlagsWrong, decode_response, encode_request, parse_duration, parse_flags
from cli.settings import PROJECT_FOLDER
from tests.cli.standin import StandIn

UNUSED = "127.0.0.1:1"


def probe(*flags: str) -> tuple[int, str]:
    """Run the program as a container's probe does."""
    command = [sys.executable, "-m", "cli.main", "healthcheck", *flags]
    done = subprocess.run(command, cwd=PROJECT_FOLDER, capture_output=True, text=True, timeout=20, check=False)
    return done.returncode, done.stderr.strip()


def test_0_a_serving_server_is_serving(server: StandIn) -> None:
    """Exit code 0, and the prober's words."""
    assert probe("-addr", server.address) == (0, "status: SERVING")


def test_1_a_missing_address_is_a_bad_argument() -> None:
    """Exit code 1."""
    assert probe("-service", "x") == (1, "error: -addr not specified")


def test_2_nobody_there_is_a_failed_connection() -> None:
    """Exit code 2, after the connection's own limit."""
    code, said = probe(f"--addr={UNUSED}", "-connect-timeout=100ms")
    assert code == 2
    assert said == f'timeout: failed to connect service "{UNUSED}" within 0.1s'


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
def test_3_a_call_that_fails_is_a_failed_call(server: StandIn, flags: tuple[str, ...], sentence: str) -> None:
    """Exit code 3 for an unknown name, for a timeout, and for every other failure; headers arrive."""
    assert (3, sentence) == probe("-addr", server.address, *flags)


def test_3_a_server_without_health_is_a_failed_call() -> None:
    """Exit code 3, and a sentence that says what is missing."""
    bare = StandIn(has_services=False)
    code, said = probe("-addr", bare.address, "-gzip", "-user-agent", "me")
    bare.stop()
    assert code == 3
    assert "does not implement the grpc health protocol" in said


def test_4_a_server_that_does_not_serve_is_unhealthy(server: StandIn) -> None:
    """Exit code 4."""
    assert probe("-addr", server.address, "-service", "down") == (4, 'service unhealthy (responded with "NOT_SERVING")')


def test_verbose_says_how_long_it_took(server: StandIn) -> None:
    """Each step has a line; the verdict stays the last."""
    code, said = probe("-v", "-addr", server.address)
    assert code == 0
    assert [line.split(" (")[0] for line in said.splitlines()[:2]] == [
        "establishing connection",
        "connection established",
    ]
    assert said.splitlines()[-1] == "status: SERVING"


def test_a_probe_pays_for_no_more_than_grpc() -> None:
    """Neither the terminal's libraries nor protobuf nor the settings are imported."""
    script = (
        "import sys, cli.main, cli.healthcheck; print(sorted({'typer', 'rich', 'pydantic', 'google'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT_FOLDER, capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("service", ["", "liveness", "x" * 127, "x" * 128, "ä" * 9000])
def test_requests_are_written_as_protobuf_writes_them(service: str) -> None:
    """The bytes are those of the generated message."""
    assert health_pb2.HealthCheckRequest(service=service).SerializeToString() == encode_request(service)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_responses_are_read_as_protobuf_reads_them(number: int) -> None:
    """Every status that the protocol knows; what is none is UNKNOWN."""
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(
        health_pb2.HealthCheckResponse.ServingStatus.values()[number]
    )
    raw = health_pb2.HealthCheckResponse(status=number).SerializeToString()
    assert status == decode_response(raw)
    assert decode_response(b"\xff\xff") == "UNKNOWN"


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("1s", 1.0), ("1m", 60.0), ("1m30s", 90.0), (".5s", 0.5)]
)
def test_durations_are_go_s(text: str, seconds: float) -> None:
    """As flags of Go programs have them."""
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
        ("-addr a b", "unexpected argument 'b'"),
        ("-addr a -spiffe", "not supported"),
    ],
)
def test_a_wrong_flag_is_named(flags: str, says: str) -> None:
    """The sentence says which flag, and what it should be."""
    with pytest.raises(FlagsWrong, match=says):
        parse_flags(flags.split())


def test_flags_are_read_in_all_of_go_s_ways() -> None:
    """One dash or two, value behind a space or an equals sign, switches with and without a value."""
    flags = parse_flags(["--addr=a:1", "-service", "s", "-gzip=false", "-tls", "--tls-server-name", "n", "-v=true"])
    assert (
        flags.address,
        flags.service,
        flags.gzip,
        flags.tls,
        flags.tls_server_name,
        flags.verbose,
    ) == ("a:1", "s", False, True, "n", True)
