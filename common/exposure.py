"""Sentences about listeners that other machines can reach without protection; pure."""

from collections.abc import Iterator

from common.address import ListenAddress

GRPC_STEP = "set [tls]"
METRICS_STEP = "set metrics = true in [tls], or listen on 127.0.0.1"


def describe_exposure(what: str, address: ListenAddress, step: str, *, has_tls: bool) -> Iterator[str]:
    """A warning if a listener sends in the clear to other machines.

    Args:
        what: the listener, in words.
        address: where it listens.
        step: what to do.
        has_tls: whether it speaks TLS.
    """
    if not address.is_loopback and not has_tls:
        yield f"{what} {address} has no TLS: what is sent can be read and changed on its way; {step}"


def describe_open_calls(address: ListenAddress, *, asks_who: bool) -> Iterator[str]:
    """A warning if every client that reaches the gRPC port may call it.

    Args:
        address: of the gRPC port.
        asks_who: whether callers need a token or a certificate.
    """
    if not address.is_loopback and not asks_who:
        yield (f"the gRPC port {address} answers all who reach it; set server.tokens_file or tls.client_ca_file")
