"""`hotslot healthcheck`: one health check with the flags, words and exit codes of grpc_health_probe.

For images that do not have that program. It must start fast, so it imports gRPC and nothing else: the two
messages of grpc.health.v1 have one field each, and are written and read here by hand.
"""

import sys
from collections.abc import Sequence

import grpc

from cli.healthcheck_flags import USAGE, FlagsWrong, HelpWanted, ProbeFlags, parse_flags
from common.clock import SystemClock

SERVING = 0
BAD_ARGUMENTS = 1
CONNECT_FAILED = 2
RPC_FAILED = 3
NOT_SERVING = 4

_METHOD = "/grpc.health.v1.Health/Check"
_STATUS_NAMES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_IS_SERVING = 1
_SERVICE_TAG = b"\x0a"  # field 1, length-delimited
_STATUS_TAG = 0x08  # field 1, varint
_MAX_PEM_BYTES = 1 << 20


def check(arguments: Sequence[str]) -> int:
    """Check once; the exit code says how it went, and one line on standard error says it in words."""
    try:
        flags = parse_flags(arguments)
        credentials = _credentials(flags)
    except HelpWanted:
        _say(USAGE)
        return SERVING
    except FlagsWrong as error:
        _say(f"error: {error}")
        return BAD_ARGUMENTS
    channel = _channel(flags, credentials)  # ends with the process: to close it in order would take 0.2 s
    return _check(channel, flags) if _is_connected(channel, flags) else CONNECT_FAILED


def encode_request(service: str) -> bytes:
    """The bytes of a HealthCheckRequest."""
    name = service.encode()
    return _SERVICE_TAG + _varint(len(name)) + name if name else b""


def decode_response(raw: bytes) -> str:
    """The name of the status in a HealthCheckResponse; UNKNOWN for bytes that hold none."""
    if len(raw) < len(_SERVICE_TAG) + 1 or raw[0] != _STATUS_TAG or raw[1] >= len(_STATUS_NAMES):
        return _STATUS_NAMES[0]
    return _STATUS_NAMES[raw[1]]


def _is_connected(channel: grpc.Channel, flags: ProbeFlags) -> bool:
    clock = SystemClock()
    started = clock.monotonic()
    if flags.verbose:
        _say("establishing connection")
    try:
        grpc.channel_ready_future(channel).result(timeout=flags.connect_seconds)
    except grpc.FutureTimeoutError:
        _say(f'timeout: failed to connect service "{flags.address}" within {flags.connect_seconds:g}s')
        return False
    if flags.verbose:
        _say(f"connection established (took {1000 * (clock.monotonic() - started):.1f}ms)")
    return True


def _check(channel: grpc.Channel, flags: ProbeFlags) -> int:
    call = channel.unary_unary(_METHOD, request_serializer=encode_request, response_deserializer=decode_response)
    clock = SystemClock()
    started = clock.monotonic()
    compression = grpc.Compression.Gzip if flags.gzip else None
    try:
        status = call(flags.service, timeout=flags.rpc_seconds, metadata=tuple(flags.headers), compression=compression)
    except grpc.RpcError as error:
        _say(_rpc_failure(error, flags))
        return RPC_FAILED
    if status != _STATUS_NAMES[_IS_SERVING]:
        _say(f'service unhealthy (responded with "{status}")')
        return NOT_SERVING
    if flags.verbose:
        _say(f"time elapsed: rpc={1000 * (clock.monotonic() - started):.1f}ms")
    _say(f"status: {status}")
    return SERVING


def _rpc_failure(error: grpc.RpcError, flags: ProbeFlags) -> str:
    code = error.code() if isinstance(error, grpc.Call) else None
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"timeout: health rpc did not complete within {flags.rpc_seconds:g}s"
    details = error.details() if isinstance(error, grpc.Call) else ""
    return f"error: health rpc failed: {code.name if code else 'UNKNOWN'}{': ' if details else ''}{details}"


def _channel(flags: ProbeFlags, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    options: list[tuple[str, str | int]] = [
        ("grpc.primary_user_agent", flags.user_agent),
        ("grpc.enable_http_proxy", 0),  # a probe looks at this server, not at a proxy
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
    ]
    if flags.tls_server_name:
        options.append(("grpc.ssl_target_name_override", flags.tls_server_name))
    if credentials is None:
        return grpc.insecure_channel(flags.address, options=options)
    return grpc.secure_channel(flags.address, credentials, options=options)


def _credentials(flags: ProbeFlags) -> grpc.ChannelCredentials | None:
    if not flags.tls:
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=_pem(flags.tls_ca_cert),
        private_key=_pem(flags.tls_client_key),
        certificate_chain=_pem(flags.tls_client_cert),
    )


def _pem(path: str) -> bytes | None:
    if not path:
        return None
    try:
        with open(path, "rb") as file:  # noqa: PTH123  pathlib is not worth its import here
            return file.read(_MAX_PEM_BYTES)
    except OSError as error:
        raise FlagsWrong(f"cannot read {path}: {error.strerror}") from error


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:  # noqa: PLR2004  seven bits a byte
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
