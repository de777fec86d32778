"""How a client reaches a server: the service config, the channel arguments that it cannot hold, TLS, the token."""

import ipaddress
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, NamedTuple

import grpc

from hotslot_client.errors import DeadlineExceeded
from hotslot_client.types import Tls

Token = str | Callable[[], str]
MAX_TAG_CHARS = 256  # of a routing key or version, that count
MAX_MESSAGE_BYTES = 32 << 20  # as the service config says
_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:")
_DEFAULTS: Mapping[str, Any] = {
    # A request that is larger than this buffer is never retried; gRPC's default is 256 KiB.
    "grpc.per_rpc_retry_buffer_size": MAX_MESSAGE_BYTES + (1 << 20),
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.min_reconnect_backoff_ms": 5_000,  # also the limit of one attempt to connect
    "grpc.max_reconnect_backoff_ms": 5_000,
    "grpc.use_local_subchannel_pool": 1,  # connections of its own
}


MAX_TIMEOUT_SECONDS = 365 * 86_400.0


def limit_timeout(seconds: float) -> float:
    """A timeout that gRPC understands: it takes one of centuries for one that has passed.

    Raises:
        ValueError: it is no number.
    """
    if math.isnan(seconds):
        raise ValueError("the timeout is a number of seconds")
    return min(seconds, MAX_TIMEOUT_SECONDS)


class CallTags(NamedTuple):
    """What a call says beside its content."""

    request_id: str = ""
    model_version: str = ""
    routing_key: str = ""

    def check(self) -> None:
        """Refuse what the server would not receive as given: metadata is text of printable ASCII characters.

        Raises:
            ValueError: the version or the key is something else.
        """
        for name, value in (("model_version", self.model_version), ("routing_key", self.routing_key)):
            is_kept = value.isascii() and value.isprintable() and value == value.strip()
            if not is_kept or len(value) > MAX_TAG_CHARS:
                message = f"{name} is at most {MAX_TAG_CHARS} printable ASCII characters, and no space at its ends"
                raise ValueError(f"{message}; send a hash of another key" if name == "routing_key" else message)


@dataclass(frozen=True)
class Connection:
    """Where a client calls, and how.

    Attributes:
        address: "HOST:PORT", or a name as gRPC takes it, for example "dns:///hotslot.example:50051".
        tls: None: without TLS.
        token: sent with every call; or a function that returns it, for a token that changes. Empty: none.
        timeout: deadline of a call that names none, seconds.
        is_retrying: whether calls and items are sent again.
        uses_proxy: whether the proxy of the environment is used; None: unless the address is this machine's.
        service_config: instead of the shipped one, as JSON.
        options: further channel arguments.
    """

    address: str
    tls: Tls | None = None
    token: Token = field(default="", repr=False)
    timeout: float = 60.0
    is_retrying: bool = True
    uses_proxy: bool | None = None
    service_config: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what would fail late, or not at all."""
        if not self.address or (self.address.startswith(("http://", "https://"))):
            raise ValueError(f"the address is HOST:PORT, not {self.address!r}")
        if not self.timeout > 0:
            raise ValueError("the timeout is a number of seconds, more than 0")
        if self.token and self.tls is None and not is_local(self.address):
            raise ValueError(f"the token would be sent unencrypted to {self.address}: use TLS")

    def choose_timeout(self, timeout: float | None) -> float:
        """Seconds of a call: the given ones, or those of the client.

        Raises:
            DeadlineExceeded: there is no time left; gRPC might send the call all the same.
            ValueError: the timeout is no number.
        """
        found = limit_timeout(self.timeout if timeout is None else timeout)
        if found <= 0:
            raise DeadlineExceeded("the deadline had passed before the call")
        return found

    def channel_options(self, service: str) -> list[tuple[str, Any]]:
        """The channel arguments for one service."""
        uses_proxy = not is_local(self.address) if self.uses_proxy is None else self.uses_proxy
        options = {
            **_DEFAULTS,
            "grpc.enable_http_proxy": int(uses_proxy),
            "grpc.enable_retries": int(self.is_retrying),
            "grpc.service_config": self.service_config or service_config(service),
        }
        if self.tls is not None and self.tls.server_name:
            options["grpc.ssl_target_name_override"] = self.tls.server_name
        return list({**options, **self.options}.items())

    def credentials(self) -> grpc.ChannelCredentials | None:
        """TLS credentials; None without TLS.

        Raises:
            OSError: a file cannot be read.
        """
        tls = self.tls
        if tls is None:
            return None
        return grpc.ssl_channel_credentials(_pem(tls.ca), _pem(tls.key), _pem(tls.certificate))

    def metadata(self, tags: CallTags) -> tuple[tuple[str, str], ...]:
        """Metadata of a call."""
        token = (self.token() if callable(self.token) else self.token).strip()  # files end with a line end
        pairs = (
            ("authorization", f"Bearer {token}" if token else ""),
            ("x-request-id", tags.request_id),
            ("x-model-version", tags.model_version),
            ("x-routing-key", tags.routing_key),
        )
        return tuple(pair for pair in pairs if pair[1])


def service_config(service: str = "") -> str:
    """The service config that ships with the contracts, as JSON.

    Args:
        service: full name of the service whose health counts; empty: the server's as a whole.
    """
    config = json.loads(files("hotslot_client").joinpath("service_config.json").read_text(encoding="utf-8"))
    config["healthCheckConfig"] = {"serviceName": service}
    return json.dumps(config)


def is_local(address: str) -> bool:
    """Whether calls to an address stay on this machine."""
    if address.startswith("unix"):
        return True
    scheme = next((scheme for scheme in _SCHEMES if address.startswith(scheme)), "")
    places = address[len(scheme) :].rpartition("/")[2].split(",")
    return all(_is_loopback(place) for place in places)


def _is_loopback(place: str) -> bool:
    host = place.rpartition(":")[0] if place.count(":") == 1 or place.startswith("[") else place
    host = host.strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _pem(source: bytes | os.PathLike[str] | None) -> bytes | None:
    if source is None or isinstance(source, bytes):
        return source
    with open(source, "rb") as file:
        return file.read()
