"""Each channel argument has its effect on a client, and gRPC knows its name."""

import ast
import asyncio
import contextlib
import importlib.util
import re
import resource
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from dev.harness import http2
from dev.harness.process import ROOT
from inference.server import channel_arguments
from inference.server.channel_arguments import (
    Arguments,
    ConnectionTimes,
    control_arguments,
    health_arguments,
    public_arguments,
)
from inference.server.descriptors import max_connections, raise_limit

MIB = 1 << 20
LIMIT_SECONDS = 20.0
PACKAGES = ("cli", "common", "dev", "hotslot_watchdog", "hubserver", "inference", "updater")
SERVICE = "test.Echo"


def names_in(source: str) -> Iterator[str]:
    """The texts in a module that can only be names of channel arguments."""
    for node in ast.walk(ast.parse(source)):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and re.fullmatch(r"grpc\.[a-z0-9_.]+", text) and not re.search(r"\.v\d|\.yaml$", text):
            yield text


def unknown_names(sources: Iterable[str]) -> set[str]:
    """The names that the installed gRPC does not contain."""
    extension = importlib.util.find_spec("grpc._cython.cygrpc")
    library = Path(str(extension and extension.origin)).read_bytes()
    names = {name for source in sources for name in names_in(source)}
    return {name for name in names if name.encode() + b"\0" not in library}


@pytest.mark.fault("L22")
def test_grpc_knows_every_argument() -> None:
    """In all packages; a name that it does not contain would be ignored without a word."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    sources = [text for text in (path.read_text(encoding="utf-8") for path in files) if '"grpc.' in text]
    wrong = "grpc.http2.min_recv_ping_interval_without_data_ms"

    assert unknown_names(sources) == set()
    assert unknown_names([f'OPTIONS = [("{wrong}", 1), ("grpc.keepalive_time_ms", 1)]']) == {wrong}


def arguments(connections: int = 1000, **times: float) -> Arguments:
    """Those of the public server, with short times."""
    return public_arguments(2 * MIB, connections, ConnectionTimes(**{"age": 600.0, **times}))


def without(given: Arguments, *names: str) -> Arguments:
    """All arguments but some: the test of a test."""
    return [(name, value) for name, value in given if name not in names]


async def _echo(request: bytes, _context: Any) -> bytes:  # noqa: ANN401  gRPC's context
    return len(request).to_bytes(8, "big")


async def _stay(_request: bytes, context: Any) -> None:  # noqa: ANN401
    await context.write(b"begun")
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def serving(
    given: Arguments, address: str = "127.0.0.1:0", extra: Mapping[str, Any] | None = None
) -> AsyncIterator[int]:
    """A server with these arguments; yields its port."""
    server = grpc.aio.server(options=given)
    methods: dict[str, Any] = {
        "Echo": grpc.unary_unary_rpc_method_handler(_echo),
        "Stay": grpc.unary_stream_rpc_method_handler(_stay),
        **(extra or {}),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def calling(port: int, **options: int) -> AsyncIterator[Any]:
    """A client of its own."""
    given = [(f"grpc.{name}", value) for name, value in {"use_local_subchannel_pool": 1, **options}.items()]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=given) as channel:
        yield channel


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection without a call, after the openings of both sides."""
    source, sink = await asyncio.open_connection("127.0.0.1", port)
    sink.write(http2.opening())
    try:
        yield source, sink
    finally:
        sink.close()


async def settings_of(port: int) -> dict[int, int]:
    """The limits that a server sends to its clients."""
    async with connected(port) as (source, _):
        kind, _, payload = await http2.read_frame(source)
        assert kind == http2.SETTINGS
        return http2.read_settings(payload)


async def wait_closed(source: asyncio.StreamReader, sink: asyncio.StreamWriter | None = None) -> list[int]:
    """The kinds of frames until the server closes the connection; pings are answered if there is a sink."""
    kinds = []
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            kind, flags, payload = await asyncio.wait_for(http2.read_frame(source), LIMIT_SECONDS)
            kinds.append(kind)
            if sink is not None and kind == http2.PING and not flags:
                sink.write(http2.frame(http2.PING, http2.ACK, 0, payload))
    return kinds


async def ping_on_a_quiet_stream(given: Arguments) -> grpc.StatusCode:
    """How a stream without messages ends whose client sends keepalive pings every second, gRPC's shortest interval."""
    options = {"keepalive_time_ms": 1000, "http2.max_pings_without_data": 0}
    async with serving(given) as port, calling(port, **options) as channel:
        call: Any = channel.unary_stream(f"/{SERVICE}/Stay")(b"", timeout=4.5)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in call:
                pass
    return error.value.code()


@pytest.mark.fault("L22")
async def test_clients_may_send_keepalive_pings_on_quiet_streams() -> None:
    """A stream stays open until its deadline; by gRPC's default it ends with "Too many pings" at the third one."""
    given = arguments(client_pings=0.5)
    bare = without(given, "grpc.http2.min_ping_interval_without_data_ms")

    ends = tuple(await asyncio.gather(ping_on_a_quiet_stream(given), ping_on_a_quiet_stream(bare)))

    assert ends == (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
    assert ConnectionTimes(age=600.0).client_pings <= 10 / 2, "clients commonly ping every 10 s, not exactly"


async def ping_without_calls(given: Arguments) -> int:
    """How many of ten pings a server answers on a connection without a call."""
    async with serving(given) as port, connected(port) as (source, sink):
        for number in range(10):
            sink.write(http2.frame(http2.PING, 0, 0, bytes(8)))
            kind = flags = -1
            while (kind, flags) != (http2.PING, http2.ACK):
                kind, flags, _ = await asyncio.wait_for(http2.read_frame(source), LIMIT_SECONDS)
                if kind == http2.GOAWAY:
                    return number
    return 10


@pytest.mark.fault("L22")
async def test_clients_may_ping_on_idle_connections() -> None:
    """To keep a connection between calls; by gRPC's default the third ping ends it."""
    given = arguments(client_pings=0.0)

    assert await ping_without_calls(given) == 10
    assert await ping_without_calls(without(given, "grpc.keepalive_permit_without_calls")) < 10


async def test_a_client_that_does_not_answer_pings_is_disconnected() -> None:
    """After the server's ping and its timeout."""
    async with serving(arguments(ping_after=0.1, ping_timeout=0.1)) as port, connected(port) as (source, _):
        assert http2.PING in await wait_closed(source)


async def test_an_old_connection_is_closed_gracefully() -> None:
    """With GOAWAY: clients reconnect, and a load balancer can move them."""
    async with serving(arguments(age=0.1)) as port, connected(port) as (source, sink):
        assert http2.GOAWAY in await wait_closed(source, sink)


@pytest.mark.fault("L19")
async def test_an_idle_connection_is_closed_gracefully() -> None:
    """One without a call; the client connects again for its next one."""
    async with serving(arguments(idle=0.1)) as port, connected(port) as (source, sink):
        assert http2.GOAWAY in await wait_closed(source, sink)


@pytest.mark.fault("L19")
async def test_a_connection_that_says_nothing_is_closed() -> None:
    """It would hold a descriptor."""
    async with serving(arguments(handshake=0.1)) as port:
        source, sink = await asyncio.open_connection("127.0.0.1", port)
        await wait_closed(source)
        is_closed = source.at_eof()
        sink.close()
    assert is_closed


@pytest.mark.fault("L19")
@pytest.mark.parametrize(("given", "limit"), [(arguments(connections=20), 20), (health_arguments(), 64)])
async def test_connections_leave_a_reserve(given: Arguments, limit: int) -> None:
    """Further ones are closed at once; a call on an open one is answered, and a new one as soon as one is closed."""
    async with serving(given) as port, contextlib.AsyncExitStack() as held, calling(port) as channel:
        echo = channel.unary_unary(f"/{SERVICE}/Echo")
        await echo(b"", timeout=LIMIT_SECONDS)
        others = [await held.enter_async_context(connected(port)) for _ in range(limit - 1)]
        for source, _ in others:
            await http2.read_frame(source)
        async with connected(port) as (source, _):
            assert await wait_closed(source) == []
        await echo(b"", timeout=LIMIT_SECONDS)
        others[0][1].close()
        async with calling(port) as another:
            await another.unary_unary(f"/{SERVICE}/Echo")(b"", timeout=LIMIT_SECONDS, wait_for_ready=True)


@pytest.mark.fault("L19")
@pytest.mark.parametrize(("limit", "connections"), [(256, 128), (512, 256), (1024, 768), (65536, 65280)])
def test_the_reserve_of_descriptors(limit: int, connections: int) -> None:
    """At most half of a small limit."""
    assert max_connections(limit) == connections


@pytest.mark.fault("L19")
def test_the_soft_limit_is_raised() -> None:
    """To the hard one."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] // 2, before[1]))
        assert raise_limit(before[0]) == before[0]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_limits_are_sent_to_every_client() -> None:
    """The number of calls at a time, the bytes of a message that is not asked for, and the size of metadata."""
    async with serving(arguments()) as port:
        limits = await settings_of(port)

    assert limits[http2.MAX_CONCURRENT_STREAMS] == channel_arguments.MAX_STREAMS
    async with serving(health_arguments()) as port:
        assert (await settings_of(port))[http2.MAX_CONCURRENT_STREAMS] == channel_arguments.MAX_HEALTH_STREAMS
    assert limits[http2.INITIAL_WINDOW_SIZE] == channel_arguments.LOOKAHEAD_BYTES
    assert limits[http2.MAX_HEADER_LIST_SIZE] == channel_arguments.MAX_METADATA_BYTES


async def test_a_second_server_on_the_port_is_refused() -> None:
    """Instead of receiving half of the connections."""
    async with serving(arguments()) as port:
        with pytest.raises(RuntimeError, match="bind"):
            async with serving(arguments(), f"127.0.0.1:{port}"):
                pass


@pytest.mark.parametrize(("size", "code"), [(12_000, grpc.StatusCode.OK), (17_000, grpc.StatusCode.RESOURCE_EXHAUSTED)])
async def test_metadata_has_a_limit(size: int, code: grpc.StatusCode) -> None:
    """Twenty calls out of twenty: between gRPC's two default limits it refuses by chance."""
    async with serving(arguments()) as port, calling(port, absolute_max_metadata_size=MIB) as channel:
        calls = [channel.unary_unary(f"/{SERVICE}/Echo")(b"", metadata=(("x-big", "x" * size),)) for _ in range(20)]
        assert {await call.code() for call in calls} == {code}


@pytest.mark.parametrize(
    ("given", "fits", "too_large"),
    [
        (arguments(), 2 * MIB, 2 * MIB + 1),
        (control_arguments(), 32 * MIB, 32 * MIB + 1),
        (health_arguments(), 4096, 4097),
    ],
)
async def test_messages_have_a_limit(given: Arguments, fits: int, too_large: int) -> None:
    """More than gRPC's default of 4 MiB on the control socket, and no byte more than the limit."""
    async with serving(given) as port, calling(port) as channel:
        echo = channel.unary_unary(f"/{SERVICE}/Echo")
        assert int.from_bytes(await echo(bytes(fits)), "big") == fits
        assert await echo(bytes(too_large)).code() == grpc.StatusCode.RESOURCE_EXHAUSTED


COMPRESSIONS = [grpc.Compression.Gzip, grpc.Compression.Deflate]


async def send_compressed(given: Arguments) -> set[grpc.StatusCode]:
    """How calls with compressed messages end, one a connection of each algorithm; one without is answered."""
    codes = set()
    async with serving(given) as port, calling(port) as channel:
        for compression in COMPRESSIONS:
            call = channel.unary_unary(f"/{SERVICE}/Echo")
            codes.add(await call(bytes(MIB), compression=compression, timeout=LIMIT_SECONDS).code())
        accepts = (("grpc-accept-encoding", "identity, deflate, gzip"),)  # what clients send that take such answers
        assert await channel.unary_unary(f"/{SERVICE}/Echo")(bytes(7), metadata=accepts) == (7).to_bytes(8, "big")
    return codes


@pytest.mark.fault("I7")
async def test_compressed_messages_are_refused_unread() -> None:
    """But on the health port, whose messages are small when unpacked: probes have a switch for it."""
    given = arguments()

    assert await send_compressed(given) == {grpc.StatusCode.UNIMPLEMENTED}
    bare = without(given, "grpc.compression_enabled_algorithms_bitset")
    assert await send_compressed(bare) == {grpc.StatusCode.OK}
    async with serving(health_arguments()) as port, calling(port) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Echo")(bytes(64), compression=grpc.Compression.Gzip)
        assert await call.code() == grpc.StatusCode.OK


async def poured(given: Arguments) -> int:
    """How many bytes a client can send to a stream whose handler has read 8 MiB and then stops reading."""
    has_stopped, sent = asyncio.Event(), 0

    async def read_some(requests: AsyncIterator[bytes], _context: Any) -> None:  # noqa: ANN401
        count = 0
        async for _ in requests:
            count += 1
            if count == 8 * 16:
                has_stopped.set()
                await asyncio.Event().wait()

    pour: dict[str, Any] = {"Pour": grpc.stream_stream_rpc_method_handler(read_some)}
    async with serving(given, extra=pour) as port, calling(port) as channel:
        call = channel.stream_stream(f"/{SERVICE}/Pour")()
        with contextlib.suppress(TimeoutError):
            while True:
                patience = 0.5 if has_stopped.is_set() else LIMIT_SECONDS
                await asyncio.wait_for(call.write(bytes(MIB // 16)), patience)
                sent += MIB // 16
        call.cancel()
    return sent - 8 * MIB


async def test_a_stream_that_is_not_read_buffers_little() -> None:
    """Less than a megabyte; with gRPC's measurement of the bandwidth several."""
    given = arguments()

    assert await poured(given) < MIB
    assert await poured(without(given, "grpc.http2.bdp_probe")) > 2 * MIB
