"""The options of every command that calls the server: address, TLS and token; and the channel that they describe."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import grpc
import typer

from cli.healthcheck import to_target
from cli.problems import WronglyUsed
from cli.settings import Settings, listening_address, read_settings
from common.address import join_host, parse_address
from common.durable import read_bounded
from common.reload import FileUnusable
from common.settings import DEFAULT_HOST, DEFAULT_PORT, settings_path
from common.tls import read_chain, read_names
from common.tokens import HEADER, read_token

ADDRESS_VARIABLE = "HOTSLOT_ADDRESS"
_MAX_PEM_BYTES = 1 << 20
# A stream over hours: a server that is gone without a word is noticed, and found again soon after it is back.
_LONG_CALLS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
R = TypeVar("R")


def _file(flag: str, variable: str, about: str) -> Any:  # noqa: ANN401  Typer's option
    return typer.Option(flag, metavar="FILE", envvar=variable, help=about, show_default=False)


_Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        "-a",
        metavar="HOST:PORT",
        envvar=ADDRESS_VARIABLE,
        help="Address of the server. Default: from hotslot.toml, with its TLS; else 127.0.0.1:50051.",
        show_default=False,
    ),
]
_Tls = Annotated[bool, typer.Option("--tls", help="Use TLS, with the CAs that come with gRPC.", show_default=False)]
_TlsCa = Annotated[Path | None, _file("--tls-ca", "HOTSLOT_TLS_CA", "Use TLS; CA certificates to trust.")]
_TlsCert = Annotated[Path | None, _file("--tls-cert", "HOTSLOT_TLS_CERT", "Use TLS; the certificate to show.")]
_TlsKey = Annotated[Path | None, _file("--tls-key", "HOTSLOT_TLS_KEY", "The key of that certificate.")]
_TlsName = Annotated[
    str, typer.Option("--tls-name", metavar="NAME", help="Name in the server's certificate.", show_default=False)
]
_TokenFile = Annotated[Path | None, _file("--token-file", "HOTSLOT_TOKEN_FILE", "File with the token to send.")]
_OPTIONS: dict[str, tuple[Any, object]] = {  # annotation and default
    "address": (_Address, None),
    "tls": (_Tls, False),
    "tls_ca": (_TlsCa, None),
    "tls_cert": (_TlsCert, None),
    "tls_key": (_TlsKey, None),
    "tls_name": (_TlsName, ""),
    "token_file": (_TokenFile, None),
}


@dataclass(frozen=True, slots=True)
class TlsTrust:
    """How a client speaks TLS."""

    ca: bytes | None = None  # None: the CAs that come with gRPC
    certificate: bytes | None = None
    key: bytes | None = None
    name: str = ""  # in the server's certificate; empty: the host of the address


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, and how it is called."""

    address: str
    trust: TlsTrust | None = None  # None: without TLS
    token: str = ""
    again: "Callable[[], Endpoint] | None" = field(default=None, compare=False, repr=False)  # what its options name now

    def open(self) -> grpc.Channel:
        """A channel to it. HTTP proxies of the environment are ignored: the server is usually on this machine."""
        if self.trust is None:
            channel = grpc.insecure_channel(to_target(self.address), options=self._options())
        else:
            channel = grpc.secure_channel(to_target(self.address), self._credentials(self.trust), self._options())
        return grpc.intercept_channel(channel, _TokenSender(self.token)) if self.token else channel

    def open_async(self) -> grpc.aio.Channel:
        """The same for asyncio; `metadata` goes with each call."""
        options = [*self._options(), *_LONG_CALLS]
        if self.trust is None:
            return grpc.aio.insecure_channel(to_target(self.address), options=options)
        return grpc.aio.secure_channel(to_target(self.address), self._credentials(self.trust), options=options)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata that calls of an `open_async` channel must carry: the token."""
        return ((HEADER, f"Bearer {self.token}"),) if self.token else ()

    def _options(self) -> list[tuple[str, Any]]:
        options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0)]
        if self.trust is not None and self.trust.name:
            options.append(("grpc.ssl_target_name_override", self.trust.name))
        return options

    @staticmethod
    def _credentials(trust: TlsTrust) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(trust.ca, trust.key, trust.certificate)


class _TokenSender(
    grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamStreamClientInterceptor
):
    """Sends a token with every call."""

    def __init__(self, token: str) -> None:
        self._metadata = (HEADER, f"Bearer {token}")

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:  # noqa: ANN401
        """Send a unary call."""
        return self._send(continuation, client_call_details, request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:  # noqa: ANN401
        """Send a call that is answered by a stream."""
        return self._send(continuation, client_call_details, request)

    def intercept_stream_stream(
        self,
        continuation: Any,  # noqa: ANN401  gRPC's types
        client_call_details: Any,  # noqa: ANN401
        request_iterator: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Begin a stream."""
        return self._send(continuation, client_call_details, request_iterator)

    def _send(self, continuation: Any, details: Any, request: Any) -> Any:  # noqa: ANN401
        metadata = (*(details.metadata or ()), self._metadata)
        return continuation(details._replace(metadata=metadata), request)


def calls_server(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options; it receives the `endpoint` that they describe instead of them."""

    @functools.wraps(command)
    def with_options(*arguments: Any, **given: Any) -> R:  # noqa: ANN401  of any command
        resolve = functools.partial(resolve_endpoint, **{name: given.pop(name) for name in _OPTIONS})
        return command(*arguments, endpoint=replace(resolve(), again=resolve), **given)

    own = [one for one in inspect.signature(command).parameters.values() if one.name != "endpoint"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _OPTIONS.items()
    ]
    with_options.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in (*own, *added)}
    return with_options


def resolve_endpoint(
    address: str | None = None,
    *,
    tls: bool = False,
    tls_ca: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    tls_name: str = "",
    token_file: Path | None = None,
) -> Endpoint:
    """The server that the options name; without an address, that of the settings file, with its TLS.

    Raises:
        SettingsInvalid: the settings file is wrong.
        WronglyUsed: an option is wrong.
    """
    if (tls_cert is None) != (tls_key is None):
        raise WronglyUsed("give --tls-cert and --tls-key together")
    settings = read_settings() if address is None and settings_path().is_file() else None
    place = address or (join_host(DEFAULT_HOST, DEFAULT_PORT) if settings is None else listening_address(settings))
    trust = TlsTrust() if settings is None else _own_trust(settings)
    is_secure = tls or tls_ca is not None or tls_cert is not None or (trust is not None and settings is not None)
    if tls_name and not is_secure:
        raise WronglyUsed("--tls-name needs --tls or --tls-ca")
    trust = trust or TlsTrust()
    ca = trust.ca if tls_ca is None else _pem(tls_ca)
    chosen = TlsTrust(ca, _pem(tls_cert), _pem(tls_key), tls_name or (trust.name if tls_ca is None else ""))
    token = _token(token_file)
    if token and not is_secure and not _is_local(place):
        raise WronglyUsed(f"the token would be sent unencrypted to {place}; use TLS with --tls-ca or --tls")
    return Endpoint(place, chosen if is_secure else None, token)


def _own_trust(settings: Settings) -> TlsTrust | None:
    """Trust in the certificate file of this machine's own server; None if it speaks no TLS."""
    files = settings.tls.files
    if files is None:
        return None
    try:
        chain = read_chain(files.certificate)
        names = read_names(chain)
    except FileUnusable as error:
        raise WronglyUsed(f"{error}; name the server with --address and its CA with --tls-ca") from error
    host = settings.server.host
    usable = [name.replace("*", "any") for name in names]
    return TlsTrust(ca=chain, name="" if host in usable or not usable else usable[0])


def _token(path: Path | None) -> str:
    try:
        return "" if path is None else read_token(path)
    except FileUnusable as error:
        raise WronglyUsed(f"{path}: {error}") from error


def _pem(path: Path | None) -> bytes | None:
    try:
        content = None if path is None else read_bounded(path, _MAX_PEM_BYTES)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", "") or str(error)).lower()
        raise WronglyUsed(f"{path} cannot be read: {reason}") from error
    if content is not None and b"-----BEGIN " not in content:
        raise WronglyUsed(f"{path} has no certificate or key in PEM")
    return content


def _is_local(address: str) -> bool:
    """Whether calls to an address stay on this machine."""
    target = to_target(address)
    if target.startswith("unix:"):
        return True
    try:
        return parse_address(target.rpartition(":")[0] or target, 0).is_loopback
    except ValueError:
        return False
