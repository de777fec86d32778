"""Connections that send nothing, half a request or half a form, or do not read, keep no browser waiting."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from console.connections import HEAD_SECONDS, MIN_READ_BYTES, STALL_SECONDS, BoundedProtocol

POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
ANSWER_BYTES = 24 << 20  # more than the system buffers
MOST = 8
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def app(_scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the form, then answers."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def answer_at_once(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answers with a single large chunk."""
    headers = [(b"content-length", b"%d" % ANSWER_BYTES)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(ANSWER_BYTES)})


class SimTimer:
    """A timer of `SimTimers`."""

    def __init__(self, at: float, callback: Callable[[], None]) -> None:
        self.at, self.callback, self.is_cancelled = at, callback, False

    def cancel(self) -> None:
        """Do not call it."""
        self.is_cancelled = True


class SimTimers:
    """The timers of an event loop, which go off by `advance`; tasks are the real loop's."""

    def __init__(self) -> None:
        self.now, self.timers = 0.0, list[SimTimer]()
        self.create_task = asyncio.get_running_loop().create_task

    def call_later(self, seconds: float, callback: Callable[[], None]) -> SimTimer:
        """Call it later."""
        self.timers.append(SimTimer(self.now + seconds, callback))
        return self.timers[-1]

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        due = [timer for timer in self.timers if timer.at <= self.now and not timer.is_cancelled]
        self.timers = [timer for timer in self.timers if timer.at > self.now]
        for timer in due:
            timer.callback()


class Bounded(BoundedProtocol):
    """With few connections."""

    max_connections = MOST
    max_unread_bytes = 2 * ANSWER_BYTES


class Console:
    """A console's listener, and what its clients do."""

    def __init__(self, port: int, timers: SimTimers, state: ServerState) -> None:
        self.port, self.timers, self.state = port, timers, state

    async def connect(self, sent: bytes = b"") -> Client:
        """A client's connection, on which something was sent and has arrived."""
        before = {row: row.number for row in self.state.connections if isinstance(row, BoundedProtocol)}
        client = await asyncio.open_connection("127.0.0.1", self.port)
        await self.settle(lambda: any(row not in before for row in self.state.connections))
        (new,) = (row for row in self.state.connections if row not in before)
        if sent:
            await self.send(client, sent, cast("BoundedProtocol", new))
        return client

    async def send(
        self,
        client: Client,
        sent: bytes,
        here: BoundedProtocol | None = None,
    ) -> None:
        """Send something more; returns when it has arrived."""
        rows = [here] if here is not None else [cast("BoundedProtocol", row) for row in self.state.connections]
        before = max(row.number for row in rows)
        client[1].write(sent)
        await self.settle(lambda: max(row.number for row in rows) > before)

    async def settle(self, is_so: Callable[[], bool]) -> None:
        """Let the loop turn until something is so."""
        async with asyncio.timeout(5):
            while not is_so():  # noqa: ASYNC110  no event says so
                await asyncio.sleep(0)

    async def read(self, client: Client, count: int) -> None:
        """Let the client read until so much less is held for it."""
        (row,) = (cast("BoundedProtocol", row) for row in self.state.connections)
        before = row.transport.get_write_buffer_size()
        async with asyncio.timeout(5):
            while row.transport.get_write_buffer_size() > before - count:
                assert await client[0].read(count)
                await asyncio.sleep(0)


@asynccontextmanager
async def listen(served: ASGIApp) -> AsyncIterator[Console]:
    """A console's listener before an application; its time is simulated."""
    config = uvicorn.Config(served, log_config=None, access_log=False, ws="none", lifespan="off")
    config.load()
    timers, state = SimTimers(), ServerState()
    loop = cast("asyncio.AbstractEventLoop", timers)
    server = await asyncio.get_running_loop().create_server(lambda: Bounded(config, state, {}, loop), "127.0.0.1", 0)
    yield Console(server.sockets[0].getsockname()[1], timers, state)
    for row in list(state.connections):
        cast("BoundedProtocol", row).drop()
    server.close()
    await server.wait_closed()


@pytest.fixture
async def console() -> AsyncIterator[Console]:
    """A listening console."""
    async with listen(app) as found:
        yield found


@pytest.fixture
async def large() -> AsyncIterator[Console]:
    """A listening console whose answers are large."""
    async with listen(answer_at_once) as found:
        yield found


async def test_a_browser_is_answered_beside_any_number_of_silent_connections(console: Console) -> None:
    """Those that have been silent longest are closed; none but these many stay."""
    silent = [await console.connect() for _ in range(4 * MOST)]
    reader, writer = await console.connect(GET)
    answer = await asyncio.wait_for(reader.read(15), 5)
    ended = await asyncio.wait_for(silent[0][0].read(), 5)
    assert (answer, ended, len(console.state.connections)) == (b"HTTP/1.1 200 OK", b"", MOST)
    for client in (*silent, (reader, writer)):
        client[1].close()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n"])
async def test_a_head_that_does_not_come_is_not_waited_for(console: Console, sent: bytes) -> None:
    """Further bytes do not prolong it."""
    reader, writer = client = await console.connect(sent)
    console.timers.advance(HEAD_SECONDS - 1)
    await console.send(client, b"G" if not sent else b"X: ")
    before = len(console.state.connections)
    console.timers.advance(1)
    ended = await asyncio.wait_for(read_all(reader), 5)
    writer.close()
    assert (before, ended, console.state.connections) == (1, b"", set())


async def test_the_next_heads_first_byte_is_no_excuse(console: Console) -> None:
    """On a connection that was used before."""
    reader, writer = client = await console.connect(GET)
    await reader.readuntil(b"ok")
    await console.send(client, b"G")
    console.timers.advance(HEAD_SECONDS)
    ended = await asyncio.wait_for(read_all(reader), 5)
    writer.close()
    assert (ended, console.state.connections) == (b"", set())


async def test_a_form_may_take_long_if_it_goes_on(console: Console) -> None:
    """One of which nothing comes is closed."""
    _, first = going = await console.connect(POST)
    _, second = await console.connect(POST)
    console.timers.advance(STALL_SECONDS - 1)
    await console.send(going, b"csrf")
    console.timers.advance(1)
    left = len(console.state.connections)
    going[1].write(b"=1234")
    answer = await asyncio.wait_for(going[0].read(15), 5)
    for writer in (first, second):
        writer.close()
    assert (left, answer) == (1, b"HTTP/1.1 200 OK")


async def test_connections_whose_request_is_being_answered_stay(console: Console) -> None:
    """When there are too many, those that wait for their client are closed."""

    @asynccontextmanager
    async def asked() -> AsyncIterator[Any]:
        client = await console.connect(GET)
        yield client
        client[1].close()

    async with asked() as (reader, _):
        await reader.readuntil(b"ok")
        served = next(iter(console.state.connections))
        cast("BoundedProtocol", served).cycle.response_complete = False  # as if it were being answered
        others = [await console.connect() for _ in range(2 * MOST)]
        stays = served in console.state.connections
        cast("BoundedProtocol", served).cycle.response_complete = True
        for client in others:
            client[1].close()
    assert stays is True


@pytest.mark.parametrize("asked", [GET, CLOSE])
async def test_an_answer_that_is_not_read_is_not_held(large: Console, asked: bytes) -> None:
    """Also when it is complete, and the connection is being closed."""
    _, writer = await large.connect(asked)
    (row,) = (cast("BoundedProtocol", row) for row in large.state.connections)
    await large.settle(lambda: row.cycle.response_complete)
    held = row.transport.get_write_buffer_size()
    large.timers.advance(STALL_SECONDS - 1)  # uvicorn closes it
    large.timers.advance(1)
    writer.close()
    left = row.transport.get_write_buffer_size()
    assert (held > ANSWER_BYTES // 2, row.transport.is_closing(), left, large.state.connections) == (
        True,
        True,
        0,
        set(),
    )


@pytest.mark.parametrize("asked", [GET, CLOSE])
async def test_a_large_answer_may_take_long_if_it_is_read(large: Console, asked: bytes) -> None:
    """It arrives whole; one of which nothing more is read is dropped."""
    client = await large.connect(asked)
    await large.settle(lambda: any(cast("BoundedProtocol", row).flow.write_paused for row in large.state.connections))
    for _ in range(4):
        await large.read(client, MIN_READ_BYTES)
        large.timers.advance(STALL_SECONDS)
    stays = len(large.state.connections)
    large.timers.advance(STALL_SECONDS)
    client[1].close()
    assert (stays, large.state.connections) == (1, set())


async def test_what_all_clients_have_not_read_is_bounded(large: Console) -> None:
    """However they read: the oldest large answers are dropped, and a further one is sent."""
    clients = []
    for _ in range(4):
        clients.append(await large.connect(GET))
        newest = max((cast("BoundedProtocol", row) for row in large.state.connections), key=lambda row: row.number)
        await large.settle(lambda row=newest: row.cycle.response_complete)  # type: ignore[misc]
    held = sum(cast("BoundedProtocol", row).transport.get_write_buffer_size() for row in large.state.connections)
    reader, _ = clients[-1]
    await reader.readuntil(b"\r\n\r\n")
    whole = await asyncio.wait_for(reader.readexactly(ANSWER_BYTES), 5)
    for _, other in clients:
        other.close()
    assert (held <= 2 * ANSWER_BYTES, len(whole)) == (True, ANSWER_BYTES)


async def test_a_large_answer_is_read_to_its_end(large: Console) -> None:
    """And the connection then waits for a further request."""
    reader, writer = client = await large.connect(GET)
    await reader.readuntil(b"\r\n\r\n")
    await asyncio.wait_for(reader.readexactly(ANSWER_BYTES // 2), 5)
    large.timers.advance(1)
    await asyncio.wait_for(reader.readexactly(ANSWER_BYTES // 2), 5)
    await large.send(client, GET)
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 OK") is True


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """What comes until the end; a reset is an end."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""
