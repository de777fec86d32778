"""The flags of `hotslot healthcheck`, in Go's way: `-flag value`, `-flag=value`, one dash or two."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

USAGE = """\
usage: hotslot healthcheck -addr HOST:PORT [flags]

Checks the health of a gRPC server once (grpc.health.v1), with the flags and exit codes of grpc_health_probe.

  -addr HOST:PORT        where the server listens; also unix:///path (required)
  -service NAME          name to check: a service, a model, or liveness (default "": all)
  -connect-timeout 1s    limit of connecting; for example 250ms, 1.5s, 1m
  -rpc-timeout 1s        limit of the call
  -rpc-header "K: V"     metadata of the call; may be given more than once
  -user-agent NAME       (default "hotslot-healthcheck")
  -gzip                  compress the request
  -v                     say more
  -tls                   use TLS; the flags below need it
  -tls-ca-cert FILE      trusted certificates (default: those that come with gRPC)
  -tls-client-cert FILE  certificate to show; needs -tls-client-key
  -tls-client-key FILE   its key
  -tls-server-name NAME  name that the server's certificate must have
  -tls-no-verify         refused: gRPC for Python always verifies; trust the certificate with -tls-ca-cert

exit codes: 0 serving, 1 bad arguments, 2 cannot connect, 3 the call failed, 4 not serving

example: hotslot healthcheck -addr 127.0.0.1:50051 -service liveness"""

_TEXTS = ("addr", "service", "user-agent", "tls-ca-cert", "tls-client-cert", "tls-client-key", "tls-server-name")
_DURATIONS = ("connect-timeout", "rpc-timeout")
_SWITCHES = ("v", "gzip", "tls", "tls-no-verify")
_HEADER = "rpc-header"
_NOT_BUILT = ("alts", "spiffe")
_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false")
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class FlagsWrong(ValueError):
    """The command line cannot be used; says why."""


class HelpWanted(Exception):
    """The caller asks for the usage."""


@dataclass(slots=True)
class ProbeFlags:
    """What a check is told."""

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


_FIELDS = {"addr": "address", "v": "verbose", "connect-timeout": "connect_seconds", "rpc-timeout": "rpc_seconds"}


def parse_flags(arguments: Sequence[str]) -> ProbeFlags:
    """Read a command line.

    Raises:
        FlagsWrong: a flag is unknown, lacks its value, or does not go with another.
        HelpWanted: -h or -help is among them.
    """
    flags = ProbeFlags()
    words = list(arguments)
    while words:
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
    _check_together(flags)
    return flags


def parse_duration(text: str) -> float:
    """Seconds of a Go duration, for example "250ms" or "1m30s".

    Raises:
        ValueError: it is none.
    """
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(text)
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)


def _split(word: str) -> tuple[str, str | None]:
    if not word.startswith("-") or word in ("-", "--"):
        raise FlagsWrong(f"unexpected argument {word!r}; flags begin with a dash")
    name, found, value = word.removeprefix("-").removeprefix("-").partition("=")
    if name in ("h", "help"):
        raise HelpWanted
    return name, value if found else None


def _set(flags: ProbeFlags, name: str, value: str | float | bool) -> None:  # noqa: FBT001  a switch's value
    setattr(flags, _FIELDS.get(name, name.replace("-", "_")), value)


def _switch(name: str, value: str | None) -> bool:
    if value is None or value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise FlagsWrong(f"invalid boolean value {value!r} for -{name}")


def _duration(name: str, value: str) -> float:
    try:
        seconds = parse_duration(value)
    except ValueError:
        raise FlagsWrong(f"invalid value {value!r} for flag -{name}: a duration such as 250ms, 1s or 1m") from None
    if seconds <= 0:
        raise FlagsWrong(f"-{name} must be greater than zero (specified: {value})")
    return seconds


def _header(value: str) -> tuple[str, str]:
    name, found, text = value.partition(":")
    if not found or not name.strip():
        raise FlagsWrong(f"invalid RPC header {value!r}, expected 'name: value'")
    return name.strip().lower(), text.strip()


def _unknown(name: str) -> str:
    if name in _NOT_BUILT:
        return f"-{name} is not supported by this build; use grpc_health_probe for it"
    return f"flag provided but not defined: -{name}; `hotslot healthcheck -h` lists the flags"


def _check_together(flags: ProbeFlags) -> None:
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
