"""Which messages are read, wait or are ended, so that what the server holds stays within its limit."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from common.errors import HotslotError, Overloaded
from inference.server.scheduling.held_bytes import (
    CALL_BYTES,
    IDLE_BYTES,
    LOOKAHEAD_BYTES,
    MAX_WAIT_SECONDS,
    SLOW_SECONDS,
    HeldBytes,
    HeldRules,
    Traffic,
    Upload,
)  # fmt: skip
from tests.server.simulated_connections import SimConnections, SimMemory

MIB = 1 << 20
LIMIT, LARGEST = 128 * MIB, 16 * MIB  # a first message is expected to be as large as any
UPLOAD_SECONDS = 12.0
TICK_SECONDS = 0.05
PEAK_FACTOR = 1.3  # of the limit, with what arrives before it is measured


@dataclass
class Items:
    """The items of a stream."""

    open_items: int = 0
    unwritten_items: int = 0


class Picture:
    """Something that holds bytes in memory."""


class Arrival(Upload):
    """A message that arrives at some rate."""

    def __init__(self, connection: str, stream: Items | None = None) -> None:
        super().__init__(connection, stream)
        self.is_reading = False
        self.arrived = 0
        self.error: HotslotError | None = None

    def on_turn(self) -> None:
        """Bytes of it may arrive."""
        self.is_reading = True

    def on_end(self, error: HotslotError) -> None:
        """Remember the first."""
        self.error = self.error or error

    @property
    def reason(self) -> str:
        """Why it was ended."""
        return "" if self.error is None else self.error.reason


class Server:
    """The messages of callers in simulated time; what has arrived of incomplete ones is the process's growth."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.memory, self.network = SimMemory(), SimConnections()
        self.held = HeldBytes(HeldRules(limit, LARGEST, UPLOAD_SECONDS), self.network, self.memory)
        self.now = 0.0
        self.own_growth = self.peak = 0
        self.uploads: list[Arrival] = []
        self.pictures: list[tuple[Picture, int]] = []  # complete messages

    def upload(self, connection: str, stream: Items | None = None) -> Arrival:
        """Begin a message, or let it wait."""
        upload = Arrival(connection, stream)
        upload.is_reading = self.held.ask(upload, self.now)
        self.uploads.append(upload)
        return upload

    def hold(self, connection: str, size_bytes: int) -> None:
        """A complete message that waits for its answer."""
        self.pictures.append((Picture(), size_bytes))
        self.held.hold(connection, self.pictures[-1][0], size_bytes)

    def answer(self, count: int = 1) -> None:
        """Forget the oldest complete messages."""
        del self.pictures[:count]

    def wait(self, seconds: float, each: Callable[[], object] = lambda: None) -> None:
        """Ticks; `each` is called before each."""
        for _ in range(round(seconds / TICK_SECONDS)):
            self.now += TICK_SECONDS
            each()
            held = sum(size for _, size in self.pictures)
            self.memory.growth = held + self.own_growth + sum(one.arrived for one in self.uploads)
            self.peak = max(self.peak, self.memory.growth)
            self.held.tick(self.now)
            for one in [one for one in self.uploads if one.error is not None]:
                self.uploads.remove(one)
                self.held.finish(one, None)

    def receive(self, bytes_each: int, up_to: int) -> None:
        """Bytes arrive of all that are read."""
        for one in self.uploads:
            if one.is_reading:
                one.arrived = min(up_to, one.arrived + bytes_each)
                self.network.traffic[one.connection] = Traffic(one.arrived, 0.0)

    def complete(self, size_bytes: int) -> None:
        """Messages that have arrived whole become pictures that wait."""
        for one in [one for one in self.uploads if one.arrived >= size_bytes]:
            self.uploads.remove(one)
            self.held.finish(one, size_bytes)
            self.hold(one.connection, size_bytes)


@pytest.mark.fault("L6")
def test_a_unary_message_is_ended_when_its_time_is_over() -> None:
    """However little it holds; the next one has a time of its own."""
    server = Server()
    slow = server.upload("a")
    server.wait(UPLOAD_SECONDS - 2 * TICK_SECONDS)
    assert slow.reason == ""

    server.wait(3 * TICK_SECONDS)
    later = server.upload("a")
    server.wait(1.0)

    assert (slow.reason, later.reason) == ("UPLOAD_TOO_SLOW", "")


@pytest.mark.fault("L6")
@pytest.mark.parametrize(("growth", "reason"), [(IDLE_BYTES, ""), (2 * IDLE_BYTES, "UPLOAD_TOO_SLOW")])
def test_a_message_of_which_nothing_arrives_is_ended_while_it_holds_memory(growth: int, reason: str) -> None:
    """After three seconds; one of which bytes arrive is not, nor any while nothing much is held."""
    server = Server()
    quiet, slow = server.upload("quiet"), server.upload("slow")
    server.network.traffic = {"quiet": Traffic(MIB, SLOW_SECONDS), "slow": Traffic(MIB, 0.1)}
    server.own_growth = growth

    server.wait(SLOW_SECONDS - 2 * TICK_SECONDS)
    assert quiet.reason == ""
    server.wait(1.0)

    assert (quiet.reason, slow.reason) == (reason, "")


@pytest.mark.fault("L6")
@pytest.mark.parametrize("connections", [1, 60])
def test_uploads_that_never_end_hold_no_more_than_the_limit(connections: int) -> None:
    """Sixty that stop before their last bytes: those above the limit are ended, and other callers are read again."""
    server = Server()
    for number in range(60):
        server.upload(str(number % connections))

    server.wait(30.0, lambda: server.receive(MIB, LARGEST - 1))

    assert server.peak <= PEAK_FACTOR * LIMIT
    assert server.uploads == []
    assert server.upload("honest").is_reading


@pytest.mark.fault("L6")
def test_a_stream_with_unanswered_items_is_ended_last() -> None:
    """Its items would be lost with it."""
    server = Server()
    stream, unary = server.upload("a", Items(open_items=1, unwritten_items=1)), server.upload("b")
    server.wait(1.0)
    server.own_growth = LIMIT - MIB
    server.wait(TICK_SECONDS)

    assert (stream.reason, unary.reason) == ("", "QUEUE_FULL")


@pytest.mark.fault("L6")
def test_one_that_is_alone_may_be_larger_than_the_limit() -> None:
    """A limit below one message would serve nobody."""
    server = Server(limit=4 * MIB)
    alone = server.upload("a")
    server.wait(1.0, lambda: server.receive(MIB, LARGEST))

    assert (alone.is_reading, alone.reason) == (True, "")


@pytest.mark.fault("L6")
def test_idle_streams_are_ended_when_memory_grew_by_nothing_else() -> None:
    """Half of them at a time; once that frees nothing, the growth is the process's own, and the others stay."""
    server = Server(limit=1 << 30)
    streams = [server.upload(str(number % 4), Items()) for number in range(40)]
    server.wait(2.0)
    server.own_growth = 20 * MIB
    server.wait(UPLOAD_SECONDS)
    first = [one for one in streams if one.reason == "STREAM_IDLE"]
    server.wait(60.0)

    assert len(first) == 20
    assert [one for one in streams if one.reason] == first
    assert server.held.measured_bytes == 0


@pytest.mark.fault("L6")
def test_idle_streams_stay_while_nothing_is_held() -> None:
    """A stream may wait for its next message for as long as its caller likes."""
    server = Server()
    stream = server.upload("a", Items())
    server.wait(10 * UPLOAD_SECONDS)

    assert stream.reason == ""


@pytest.mark.fault("L7")
def test_pictures_at_the_byte_limit_are_read_in_turn() -> None:
    """Thirty of the largest size, as the server computes four a second: all are read, never more than it may hold."""
    server = Server()
    for number in range(30):
        server.upload(str(number))
    answered: list[float] = []

    def go_on() -> None:
        server.receive(2 * MIB, LARGEST)
        server.complete(LARGEST)
        if server.pictures and server.now - (answered or [0.0])[-1] >= 0.1:
            server.answer()
            answered.append(server.now)

    server.wait(10.0, go_on)

    assert server.peak <= PEAK_FACTOR * LIMIT
    assert len(answered) == 30


@pytest.mark.fault("L7")
def test_a_message_waits_while_there_is_no_room_for_it() -> None:
    """It begins when answers have made room, and is refused if none is made within five seconds."""
    server = Server()
    for _ in range(8):
        server.hold("a", LARGEST)
    first, second = server.upload("b"), server.upload("c")
    server.wait(1.0)
    assert (first.is_reading, second.is_reading) == (False, False)

    server.answer()
    server.wait(TICK_SECONDS)
    assert (first.is_reading, second.is_reading) == (True, False)
    server.wait(MAX_WAIT_SECONDS - 1.0, lambda: server.receive(MIB, LARGEST - 1))

    assert (first.reason, second.reason) == ("", "QUEUE_FULL")


@pytest.mark.fault("L7")
def test_a_stream_waits_on_while_messages_hold_the_memory() -> None:
    """They will be computed; a unary caller had better ask elsewhere."""
    server = Server()
    for _ in range(8):
        server.hold("a", LARGEST)
    stream, unary = server.upload("b", Items()), server.upload("c")
    server.wait(3 * MAX_WAIT_SECONDS)
    assert (stream.reason, unary.reason) == ("", "QUEUE_FULL")

    server.answer()
    server.wait(TICK_SECONDS)

    assert stream.is_reading


@pytest.mark.fault("L7")
def test_one_connection_has_half_while_there_are_others() -> None:
    """The connection that holds little goes first, although it has asked later."""
    server = Server()
    for _ in range(4):
        server.hold("greedy", LARGEST)
    server.hold("other", MIB)
    greedy, modest = server.upload("greedy"), server.upload("modest")
    assert greedy.is_reading is False
    server.wait(TICK_SECONDS)

    assert (greedy.is_reading, modest.is_reading) == (False, True)


@pytest.mark.fault("L7")
def test_of_callers_that_wait_for_room_only_so_many_are_kept() -> None:
    """GRPC keeps the beginning of each message that waits: a quarter of the limit at most."""
    server = Server()
    for _ in range(8):
        server.hold("a", LARGEST)
    waiting = LIMIT // (4 * LOOKAHEAD_BYTES)
    for number in range(waiting):
        server.upload(str(number))

    with pytest.raises(Overloaded) as caught:
        server.upload("one more")

    assert caught.value.reason == "QUEUE_FULL"


@pytest.mark.fault("L5")
def test_what_callers_leave_behind_counts_until_it_is_gone() -> None:
    """Requests whose callers have hung up hold memory while a call computes: no message is read in their place."""
    server = Server()
    for number in range(8):
        server.hold(str(number), LARGEST)
    upload = server.upload("next")
    server.wait(1.0)
    assert (server.held.message_bytes, upload.is_reading) == (LIMIT, False)

    server.answer(8)
    server.wait(TICK_SECONDS)

    assert (server.held.message_bytes, upload.is_reading) == (0, True)


def test_open_calls_are_counted() -> None:
    """At a fixed size, until they are closed."""
    server = Server()
    for _ in range(10):
        server.held.open_call("a")
    assert server.held.total == 10 * CALL_BYTES

    for _ in range(10):
        server.held.close_call("a")
    assert server.held.total == 0


def test_growth_of_the_process_itself_is_no_message() -> None:
    """What has grown and stays while no message is arriving; it takes at most a quarter of the limit from callers."""
    server = Server()
    server.own_growth = 20 * MIB
    server.wait(2.0)
    assert server.held.measured_bytes == 0

    server.own_growth = LIMIT
    server.wait(2.0)

    assert server.held.measured_bytes == LIMIT - LIMIT // 4


def test_connections_without_a_call_are_closed_while_memory_is_held() -> None:
    """For idle connections gRPC keeps large buffers."""
    server = Server()
    server.held.open_call("busy")
    server.upload("busy")
    server.network.traffic = {"busy": Traffic(MIB, 0.0), "idle": Traffic(MIB, 9.0)}
    server.wait(2.0)
    assert server.network.closed == []

    server.own_growth = 2 * IDLE_BYTES
    server.wait(1.0)

    assert set(server.network.closed) == {"idle"}
