"""Channel arguments of the gRPC servers.

gRPC ignores a name that it does not know: a test compares every name with the installed library, and tests show the
effect of each one on a client.
"""

from dataclasses import dataclass

Arguments = list[tuple[str, int]]

MAX_METADATA_BYTES = 16 << 10  # of one call, with 32 bytes for each key; gRPC's own limit is vague between 8 and 16 KiB
MAX_CONTROL_MESSAGE_BYTES = 32 << 20
MAX_HEALTH_MESSAGE_BYTES, MAX_HEALTH_CONNECTIONS, HEALTH_IDLE_SECONDS = 4096, 64, 10.0
MAX_HEALTH_STREAMS = 16  # calls at a time on a connection to the health port
LOOKAHEAD_BYTES = 128 << 10  # buffered of a message that the server has not asked for; an ordinary picture fits
IDENTITY_ALONE = 1  # bits of algorithms: a few KB of gzip are megabytes in memory before anything can measure them
MAX_STREAMS = 256  # calls at a time on one connection; further ones wait in the client


@dataclass(frozen=True, slots=True)
class ConnectionTimes:
    """How long connections are kept, in seconds."""

    age: float  # after which a connection is closed gracefully, so that clients reconnect
    idle: float = 300.0  # without a call, after which a connection is closed gracefully
    handshake: float = 20.0  # for a client's first bytes, else the connection is closed
    ping_after: float = 60.0  # without data from the client
    ping_timeout: float = 20.0  # a connection whose ping is not answered is closed; keepalive_timeout_ms has no effect
    client_pings: float = 5.0  # shortest interval of a client's pings; clients commonly send one every 10 to 20 s


def public_arguments(max_message_bytes: int, max_connections: int, times: ConnectionTimes) -> Arguments:
    """The arguments of the public server; the reasons are in docs/explanation/decisions/server.md."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.compression_enabled_algorithms_bitset", IDENTITY_ALONE),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.http2.bdp_probe", 0),  # it lets each stream buffer megabytes that the server has not asked for
        ("grpc.http2.lookahead_bytes", LOOKAHEAD_BYTES),
        ("grpc.max_allowed_incoming_connections", max_connections),  # further ones are closed at once
        ("grpc.server_handshake_timeout_ms", _milliseconds(times.handshake)),
        ("grpc.max_connection_idle_ms", _milliseconds(times.idle)),
        ("grpc.max_connection_age_ms", _milliseconds(times.age)),
        ("grpc.keepalive_time_ms", _milliseconds(times.ping_after)),
        ("grpc.http2.ping_timeout_ms", _milliseconds(times.ping_timeout)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(times.client_pings)),
    ]


def control_arguments() -> Arguments:
    """The arguments of the server on the control socket."""
    return [("grpc.max_receive_message_length", MAX_CONTROL_MESSAGE_BYTES)]


def health_arguments() -> Arguments:
    """The arguments of the server on the health port, which has a reserve of its own."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", MAX_HEALTH_MESSAGE_BYTES),
        ("grpc.max_concurrent_streams", MAX_HEALTH_STREAMS),
        ("grpc.max_allowed_incoming_connections", MAX_HEALTH_CONNECTIONS),
        ("grpc.max_connection_idle_ms", _milliseconds(HEALTH_IDLE_SECONDS)),
    ]


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
