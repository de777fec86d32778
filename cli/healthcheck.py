"""`hotslot healthcheck`: one health check with the flags, messages and exit codes of grpc_health_probe.

For images without that program. To start fast it imports only gRPC: the two messages of grpc.health.v1 have one field
each, and are encoded and decoded here.
"""

import os
import re
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata

import grpc

from common.clock import SystemClock

USAGE = """\
usage: hotslot healthcheck -addr HOST:PORT [flags]

Checks the health of a gRPC server once (grpc.health.v1), with the flags and exit codes of grpc_health_probe.

  -addr HOST:PORT        where the server listens; :PORT is this machine; also unix:///path (required)
  -service NAME          a service, a model, or "liveness" (default "": all models are ready)
  -connect-timeout 1s    limit of connecting; for example 250ms, 1.5s, 1m
  -rpc-timeout 1s        limit of the call
  -rpc-header "K: V"     metadata of the call; may be given more than once
  -user-agent NAME       (default "hotslot-healthcheck")
  -gzip                  compress the request
  -v                     print each step
  -version               print the version
  -tls                   use TLS; the flags below need it
  -tls-ca-cert FILE      trusted certificates (default: those that come with gRPC)
  -tls-client-cert FILE  certificate to show; needs -tls-client-key
  -tls-client-key FILE   its key
  -tls-server-name NAME  name that the server's certificate must have
  -token-file FILE       send the bearer token in it; grpc_health_probe lacks this flag
  -tls-no-verify         refused: gRPC for Python always verifies; trust the certificate with -tls-ca-cert

exit codes: 0 serving, 1 bad arguments, 2 cannot connect, 3 the call failed, 4 not serving

Example:  hotslot healthcheck -addr 127.0.0.1:50051 -service liveness

Next:  `hotslot status` shows why a server is not serving."""

_TEXTS = (
    *("addr", "service", "user-agent", "token-file"),
    *("tls-ca-cert", "tls-client-cert", "tls-client-key", "tls-server-name"),
)
_DURATIONS = ("connect-timeout", "rpc-timeout")
_SWITCHES = ("v", "gzip", "tls", "tls-no-verify")
_HEADER = "rpc-header"
_UNSUPPORTED = ("alts", "spiffe")
_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


_PASSTHROUGH = "passthrough:///"
_BRACKETED = re.compile(r"\[([^\]:]*)\](:.*)")


def to_target(address: str) -> str:
    """GRPC's target for an address as Go takes it: ":50051" is this machine, brackets may enclose any host."""
    address = address.removeprefix(_PASSTHROUGH)
    bracketed = _BRACKETED.fullmatch(address)
    if bracketed:
        return bracketed[1] + bracketed[2]
    return f"localhost{address}" if address.startswith(":") else address


class FlagsWrong(ValueError):
    """The command line is wrong; the message says how."""


class HelpWanted(Exception):
    """The command line asks for the usage."""


class VersionWanted(Exception):
    """The command line asks for the version."""


@dataclass(slots=True)
class ProbeFlags:
    """The parsed command line."""

    address: str = ""
    service: str = ""
    connect_seconds: float = 1.0
    rpc_seconds: float = 1.0
    user_agent: str = "hotslot-healthcheck"
    headers: list[tuple[str, str]] = field(default_factory=list)
    verbose: bool = False
    gzip: bool = False
    tls: bool = False
    tls_no_verify: bool = False
    tls_ca_cert: str = ""
    tls_client_cert: str = ""
    tls_client_key: str = ""
    tls_server_name: str = ""
    token_file: str = ""


_FIELDS = {"addr": "address", "v": "verbose", "connect-timeout": "connect_seconds", "rpc-timeout": "rpc_seconds"}


def parse_flags(arguments: Sequence[str]) -> ProbeFlags:
    """Parse a command line.

    Raises:
        FlagsWrong: a flag is unknown, lacks its value, or contradicts another.
        HelpWanted: it has -h or -help.
        VersionWanted: it has -version.
    """
    flags = ProbeFlags()
    words = list(arguments)
    while words and words[0].startswith("-") and words[0] not in ("-", "--"):  # as in Go, the rest is ignored
        name, value = _split(words.pop(0))
        if name in _SWITCHES:
            _set(flags, name, _switch(name, value))
            continue
        if name not in (*_TEXTS, *_DURATIONS, _HEADER):
            raise FlagsWrong(_unknown(name))
        if value is None:
            if not words:
                raise FlagsWrong(f"flag needs an argument: -{name}")
            value = words.pop(0)
        if name == _HEADER:
            flags.headers.append(_header(value))
        else:
            _set(flags, name, _duration(name, value) if name in _DURATIONS else value)
    _check_combination(flags)
    return flags


def parse_duration(text: str) -> float:
    """The seconds of a Go duration, for example "250ms" or "1m30s".

    Raises:
        ValueError: it is malformed.
    """
    sign, bare = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    parts = _PART.findall(bare)
    if bare == "0":
        return 0.0
    if not parts or "".join(number + unit for number, unit in parts) != bare:
        raise ValueError(text)
    return sign * sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)


def _split(word: str) -> tuple[str, str | None]:
    name, found, value = word.removeprefix("-").removeprefix("-").partition("=")
    if not name or name.startswith("-"):
        raise FlagsWrong(f"bad flag syntax: {word}")
    if name in ("h", "help"):
        raise HelpWanted
    if name == "version":
        raise VersionWanted
    return name, value if found else None


def _set(flags: ProbeFlags, name: str, value: str | float | bool) -> None:  # noqa: FBT001  a switch's value
    setattr(flags, _FIELDS.get(name, name.replace("-", "_")), value)


def _switch(name: str, value: str | None) -> bool:
    if value is None or value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise FlagsWrong(f"invalid boolean value {value!r} for -{name}")


def _duration(name: str, value: str) -> float:
    try:
        seconds = parse_duration(value)
    except ValueError:
        raise FlagsWrong(f"invalid value {value!r} for flag -{name}: a duration such as 250ms, 1s or 1m") from None
    if seconds <= 0:
        raise FlagsWrong(f"-{name} must be greater than zero (specified: {value})")
    if seconds > _MAX_SECONDS:
        raise FlagsWrong(f"-{name} must be at most 24h (specified: {value[:_MAX_SHOWN]})")
    return seconds


def _header(value: str) -> tuple[str, str]:
    name, found, text = value.partition(":")
    if not found or not name.strip():
        raise FlagsWrong(f"invalid RPC header {value!r}, expected 'name: value'")
    name, text = name.strip().lower(), text.strip()
    if not _HEADER_NAME.fullmatch(name) or not (text.isascii() and text.isprintable()):
        raise FlagsWrong(
            f"invalid RPC header {value!r}: a name has letters, digits and - _ . and a value is plain ASCII"
        )
    return name, text


def _unknown(name: str) -> str:
    if name in _UNSUPPORTED:
        return f"-{name} is not supported by this build; use grpc_health_probe for it"
    return f"flag provided but not defined: -{name}; `hotslot healthcheck -h` lists the flags"


def _check_combination(flags: ProbeFlags) -> None:
    if not flags.address:
        raise FlagsWrong("-addr not specified")
    tls_only = ("tls_no_verify", "tls_ca_cert", "tls_client_cert", "tls_client_key", "tls_server_name")
    for name in tls_only:
        if getattr(flags, name) and not flags.tls:
            raise FlagsWrong(f"specified -{name.replace('_', '-')} without specifying -tls")
    if flags.tls_no_verify:
        raise FlagsWrong("-tls-no-verify is not possible: gRPC for Python always verifies; use -tls-ca-cert")
    if bool(flags.tls_client_cert) != bool(flags.tls_client_key):
        raise FlagsWrong("specify -tls-client-cert and -tls-client-key together")


SERVING = 0
BAD_ARGUMENTS = 1
CONNECT_FAILED = 2
RPC_FAILED = 3
NOT_SERVING = 4

_MAX_SECONDS = 86_400.0
_MAX_SHOWN = 60  # characters of a value in a message
_HEADER_NAME = re.compile(r"[a-z0-9._-]+")
_LOCAL_HOSTS = ("localhost", "[::1]", "unix")
_METHOD = "/grpc.health.v1.Health/Check"
_STATUS_NAMES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_IS_SERVING = 1
_SERVICE_TAG = b"\x0a"  # field 1, length-delimited
_STATUS_TAG = 0x08  # field 1, varint
_MAX_PEM_BYTES = 1 << 20


def check(arguments: Sequence[str]) -> int:
    """Check once; returns the exit code and prints the result on standard error."""
    try:
        flags = parse_flags(arguments)
        credentials = _credentials(flags)
        flags.headers += _token_header(flags)
    except HelpWanted:
        _print(USAGE)
        return SERVING
    except VersionWanted:
        _print(metadata.version("hotslot"))
        return SERVING
    except FlagsWrong as error:
        _print(f"error: {error}")
        return BAD_ARGUMENTS
    channel = _channel(flags, credentials)  # not closed: that takes 0.2 s, and the process ends anyway
    return _check(channel, flags) if _is_connected(channel, flags) else CONNECT_FAILED


def encode_request(service: str) -> bytes:
    """Encode a HealthCheckRequest."""
    name = service.encode()
    return _SERVICE_TAG + _varint(len(name)) + name if name else b""


def decode_response(raw: bytes) -> str:
    """The name of the status in a HealthCheckResponse; UNKNOWN if it is missing or malformed."""
    if len(raw) < len(_SERVICE_TAG) + 1 or raw[0] != _STATUS_TAG or raw[1] >= len(_STATUS_NAMES):
        return _STATUS_NAMES[0]
    return _STATUS_NAMES[raw[1]]


def _is_connected(channel: grpc.Channel, flags: ProbeFlags) -> bool:
    clock = SystemClock()
    started = clock.monotonic()
    if flags.verbose:
        _print("establishing connection")
    try:
        grpc.channel_ready_future(channel).result(timeout=flags.connect_seconds)
    except grpc.FutureTimeoutError:
        _print(f'timeout: failed to connect service "{flags.address}" within {flags.connect_seconds:g}s')
        return False
    if flags.verbose:
        _print(f"connection established (took {1000 * (clock.monotonic() - started):.1f}ms)")
    return True


def _check(channel: grpc.Channel, flags: ProbeFlags) -> int:
    call = channel.unary_unary(_METHOD, request_serializer=encode_request, response_deserializer=decode_response)
    clock = SystemClock()
    started = clock.monotonic()
    compression = grpc.Compression.Gzip if flags.gzip else None
    try:
        status = call(flags.service, timeout=flags.rpc_seconds, metadata=tuple(flags.headers), compression=compression)
    except grpc.RpcError as error:
        _print(_rpc_failure(error, flags))
        return RPC_FAILED
    if status != _STATUS_NAMES[_IS_SERVING]:
        _print(f'service unhealthy (responded with "{status}")')
        return NOT_SERVING
    if flags.verbose:
        _print(f"time elapsed: rpc={1000 * (clock.monotonic() - started):.1f}ms")
    _print(f"status: {status}")
    return SERVING


def _rpc_failure(error: grpc.RpcError, flags: ProbeFlags) -> str:
    code = error.code() if isinstance(error, grpc.Call) else None
    if code is grpc.StatusCode.UNIMPLEMENTED:
        or_gzip = ", or accepts no compressed requests: leave -gzip out" if flags.gzip else ""
        return f"error: this server does not implement the grpc health protocol (grpc.health.v1.Health){or_gzip}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"timeout: health rpc did not complete within {flags.rpc_seconds:g}s"
    details = error.details() if isinstance(error, grpc.Call) else ""
    return f"error: health rpc failed: {code.name if code else 'UNKNOWN'}{': ' if details else ''}{details}"


def _channel(flags: ProbeFlags, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    options: list[tuple[str, str | int]] = [
        ("grpc.primary_user_agent", flags.user_agent),
        ("grpc.enable_http_proxy", 0),  # the probe checks this server, not a proxy
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
    ]
    if flags.tls_server_name:
        options.append(("grpc.ssl_target_name_override", flags.tls_server_name))
    if credentials is None:
        return grpc.insecure_channel(to_target(flags.address), options=options)
    return grpc.secure_channel(to_target(flags.address), credentials, options=options)


def _credentials(flags: ProbeFlags) -> grpc.ChannelCredentials | None:
    if not flags.tls:
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=_pem(flags.tls_ca_cert),
        private_key=_pem(flags.tls_client_key),
        certificate_chain=_pem(flags.tls_client_cert),
    )


def _token_header(flags: ProbeFlags) -> list[tuple[str, str]]:
    """The header with the token.

    Raises:
        FlagsWrong: the file cannot be read, or the token would be sent in the clear to another machine.
    """
    if not flags.token_file:
        return []
    host = to_target(flags.address).rpartition(":")[0]
    if not flags.tls and host not in _LOCAL_HOSTS and not host.startswith(("unix", "127.")):
        raise FlagsWrong("-token-file needs -tls: the token would be sent unencrypted")
    return [("authorization", f"Bearer {_read(flags.token_file).decode('ascii', 'replace').strip()}")]


def _pem(path: str) -> bytes | None:
    content = _read(path) if path else None
    if content is not None and b"-----BEGIN " not in content:
        raise FlagsWrong(f"{path} has no certificate or key in PEM")
    return content


def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe is not waited for
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FlagsWrong(f"cannot read {path}: it is not a regular file")
            return os.read(descriptor, _MAX_PEM_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FlagsWrong(f"cannot read {path}: {error.strerror}") from error


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:  # noqa: PLR2004  seven bits a byte
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _print(line: str) -> None:
    print(line, file=sys.stderr)
