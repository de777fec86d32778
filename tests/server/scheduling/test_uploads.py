"""Which messages are read, wait or are ended, so that what the server holds stays within its limit."""

import pytest

from common.errors import HotslotError, Overloaded
from inference.server.scheduling.held_bytes import (
    CALL_BYTES,
    CONNECTION_BYTES,
    IDLE_BYTES,
    LOOKAHEAD_BYTES,
    MAX_CONNECTIONS,
    MAX_SMALL,
    MAX_WAIT_SECONDS,
    SLOW_SECONDS,
    YOUNG_SECONDS,
)
from inference.server.scheduling.uploads import Traffic, TrafficReader, WatchCall
from tests.server.scheduling.uploads import LARGEST, LIMIT, MIB, TICK_SECONDS, UPLOAD_SECONDS, Arrival, Items, Server

PEAK_FACTOR = 1.3  # of the limit, with what arrives before it is measured


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


class News(WatchCall):
    """A watch of a test; it is closed when it is ended, as a call's task does."""

    def __init__(self, server: Server, connection: str) -> None:
        super().__init__(connection)
        self.server, self.reason = server, ""
        server.held.open_call(connection)
        server.held.open_watch(self)

    def on_end(self, error: HotslotError) -> None:
        """Close the call."""
        self.reason = error.reason
        self.server.held.close_watch(self)
        self.server.held.close_call(self.connection)


@pytest.mark.fault("L6")
@pytest.mark.parametrize(("connections", "limit"), [(11, 64 * MIB), (90, 512 * MIB)])
def test_watches_hold_a_tenth_of_the_limit(connections: int, limit: int) -> None:
    """Those of greedy connections are ended, the oldest first: a client with one keeps it, and others are served."""
    server = Server(limit)
    modest = News(server, "modest")
    greedy = [News(server, f"greedy {number % connections}") for number in range(256 * connections)]
    server.hold("computed", 100_000)
    second = server.upload("second")
    server.wait(TICK_SECONDS)

    assert server.held.calls * CALL_BYTES <= limit // 10
    assert (modest.reason, greedy[0].reason, greedy[-1].reason) == ("", "STREAM_IDLE", "")
    assert second.is_reading == (second.expected <= limit // 2)


@pytest.mark.fault("L6")
def test_idle_streams_are_ended_while_they_shut_a_message_out() -> None:
    """Down to a quarter of the limit, those of greedy connections first; none while no message waits."""
    server = Server(64 * MIB)
    names = ["modest", *(f"greedy {number % 10}" for number in range(256 * 10))]
    streams = []
    for name in names:
        server.held.open_call(name)
        streams.append(server.upload(name, Items()))
        server.now += 2 * YOUNG_SECONDS
    server.own_growth = CALL_BYTES * len(names)
    closed: set[Arrival] = set()

    def close_ended() -> None:
        for one in [one for one in streams if one.reason and one not in closed]:
            closed.add(one)
            server.held.close_call(one.connection)
            server.own_growth -= CALL_BYTES

    server.wait(1.0, close_ended)
    assert closed == set()
    server.hold("computed", 100_000)
    second = server.upload("second")
    server.wait(MAX_WAIT_SECONDS - 0.5, close_ended)

    assert (second.is_reading, streams[0].reason, bool(closed)) == (True, "", True)


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

    server.held.close_call("busy")
    server.wait(1.0)
    assert set(server.network.closed) == {"idle", "busy"}


@pytest.mark.fault("L19")
def test_idle_connections_are_no_incomplete_messages() -> None:
    """Under a limit of 64 MiB, 500 explain what they hold; their number has a limit, so that messages are read."""
    server = Server(64 * MIB)
    server.network.count = 500
    server.own_growth = 500 * CONNECTION_BYTES
    server.wait(TICK_SECONDS)

    assert server.held.measured_bytes == 0
    assert server.network.most * CONNECTION_BYTES == 8 * MIB
    server.hold("computed", MIB)
    assert server.upload("second").is_reading


@pytest.mark.fault("L6")
def test_a_slow_message_is_ended_for_one_that_waits() -> None:
    """Only once another one has waited for half a second; until then it may take its time."""
    server = Server()
    slow = server.upload("slow")

    def arrive() -> None:
        server.network.traffic["slow"] = Traffic(40 * MIB, 0.0)

    server.own_growth = 40 * MIB
    server.wait(SLOW_SECONDS + 1.0, arrive)
    assert slow.reason == ""

    for _ in range(5):
        server.hold("other", LARGEST)
    waiting = server.upload("next")
    server.wait(0.4, arrive)
    assert (waiting.is_reading, slow.reason) == (False, "")
    server.wait(1.0, arrive)

    assert slow.reason == "QUEUE_FULL"


@pytest.mark.fault("L6")
@pytest.mark.parametrize(("received", "reason"), [(5 * MIB, "UPLOAD_TOO_SLOW"), (3 * MIB, "")])
def test_a_quiet_stream_is_ended_in_the_middle_of_a_message_only(received: int, reason: str) -> None:
    """More than half of what its connection has received belongs to no complete message."""
    server = Server()
    for size in (MIB, MIB):
        first = server.upload("a", Items())
        server.held.finish(first, size)
        server.uploads.remove(first)
    stream = server.upload("a", Items())
    server.network.traffic["a"] = Traffic(received, SLOW_SECONDS)
    server.own_growth = 2 * IDLE_BYTES
    server.wait(SLOW_SECONDS + 1.0)

    assert stream.reason == reason


@pytest.mark.fault("L6")
def test_those_in_the_middle_of_a_message_are_ended_first() -> None:
    """Then those of the connection with most uploads."""
    server = Server(limit=1 << 30)
    between, amid = server.upload("between"), server.upload("amid")
    several = [server.upload("several") for _ in range(3)]
    server.network.traffic = {
        "between": Traffic(0, 0.0), "amid": Traffic(8 * MIB, 0.0), "several": Traffic(0, 0.0)
    }  # fmt: skip
    server.wait(1.0)
    over = 3 * (1 << 30) // 4
    server.own_growth = over + MIB
    server.wait(TICK_SECONDS)
    assert [one.reason for one in (amid, between, *several)] == ["QUEUE_FULL", "", "", "", ""]

    server.wait(TICK_SECONDS)
    assert [one.reason for one in (between, *several)] == ["", "QUEUE_FULL", "", ""]


@pytest.mark.fault("L6")
def test_of_many_connections_some_are_read_in_each_tick() -> None:
    """Of 500 idle streams all are looked at within a second: the one in the middle of a message is ended."""
    server = Server(limit=1 << 30)
    streams = [server.upload(str(number), Items()) for number in range(4 * TrafficReader.most)]
    server.network.traffic = {one.connection: Traffic(100, 60.0) for one in streams}
    server.network.traffic["500"] = Traffic(8 * MIB, 60.0)
    server.own_growth = 2 * IDLE_BYTES
    server.wait(SLOW_SECONDS + 1.0)

    assert [one.connection for one in streams if one.reason] == ["500"]
    assert streams[500].reason == "UPLOAD_TOO_SLOW"
    assert server.network.most_read <= TrafficReader.most


@pytest.mark.fault("L6")
def test_of_many_connections_those_in_the_middle_of_a_message_are_found_while_too_much_is_held() -> None:
    """Within a few ticks, whichever of 500 they are, even if they were between messages when they were last read."""
    server = Server(limit=1 << 30)
    streams = [server.upload(str(number), Items()) for number in range(4 * TrafficReader.most)]
    amid = {"0", "200", "500"}
    server.network.traffic = {one.connection: Traffic(100, 0.0) for one in streams}
    server.own_growth = 2 * IDLE_BYTES
    server.wait(SLOW_SECONDS + 1.0)
    server.network.traffic |= {name: Traffic(8 * MIB, 0.0) for name in amid}
    server.own_growth = 3 * (1 << 30) // 4 + MIB
    server.wait(8 * TICK_SECONDS)

    assert all(one.reason == "QUEUE_FULL" for one in streams if one.connection in amid)
    assert server.network.most_read <= TrafficReader.most


def test_only_streams_that_were_idle_for_long_are_ended() -> None:
    """One that has just begun is younger than an upload may be; one with items is not idle."""
    server = Server(limit=1 << 30)
    old, busy = server.upload("a", Items()), server.upload("b", Items(unwritten_items=1))
    server.wait(UPLOAD_SECONDS - 1.0)
    young = server.upload("c", Items())
    server.own_growth = 3 * IDLE_BYTES
    server.wait(3.0)

    assert [one.reason for one in (old, busy, young)] == ["STREAM_IDLE", "", ""]


def test_a_small_message_is_read_beside_a_full_memory_and_ended_late() -> None:
    """A health check has half a second before it may be ended for the memory that others hold."""
    server = Server()
    for _ in range(8):
        server.hold("a", LARGEST)
    check = server.upload("probe", is_small=True)
    assert check.is_reading

    server.own_growth = LIMIT
    server.wait(0.4)
    assert check.reason == ""
    server.wait(0.2)
    assert check.reason == "QUEUE_FULL"


@pytest.mark.fault("I6")
def test_large_messages_for_an_observers_method_are_ended_at_once() -> None:
    """They are read without a wait, because such messages are small; these are as large as any."""
    server = Server()
    probe = server.upload("probe", is_small=True)
    large = [server.upload(f"large {number}", is_small=True) for number in range(MAX_SMALL - 1)]

    def arrive() -> None:
        server.receive(2 * MIB, LARGEST - 1)
        probe.arrived = 0
        server.network.traffic["probe"] = Traffic(100, 0.0)

    server.wait(0.45, arrive)

    assert server.peak <= PEAK_FACTOR * LIMIT
    assert (probe.reason, any(one.reason for one in large)) == ("", True)


def test_the_next_message_is_expected_to_be_like_the_last_one() -> None:
    """Of a connection with small pictures many are read at once; a first message counts as the largest."""
    server = Server()
    for size in (MIB, None):  # a message that was not complete says nothing
        one = server.upload("small")
        server.held.finish(one, size)
    many = [server.upload("small").is_reading for _ in range(33)]
    first = [Server().upload("new").is_reading, server.upload("new").is_reading]

    assert many == [True] * 32 + [False]
    assert first == [True, False]


def test_expected_bytes_count_until_the_message_is_there() -> None:
    """Four of the largest size; when one is complete, or a quarter of a second is over, the next one is read."""
    server = Server()
    uploads = [server.upload("a") for _ in range(4)]
    assert server.held.total == 4 * LARGEST

    server.held.finish(uploads.pop(), LARGEST)
    assert server.held.total == 3 * LARGEST
    server.now += 1.0
    assert server.upload("b").is_reading
    assert server.held.total == LARGEST


def test_memory_that_became_free_counts_at_once() -> None:
    """Without a tick in between."""
    server = Server()
    for _ in range(8):
        server.hold("a", LARGEST)
    server.answer()

    assert server.upload("b").is_reading


def test_expected_messages_of_a_connection_count_as_its_own() -> None:
    """With 200 of 512 MiB held and 56 that arrive, it has its half; another connection may begin."""
    server = Server(limit=4 * LIMIT)  # a first message counts for 1 MiB
    server.hold("greedy", 200 * MIB)
    server.hold("other", MIB)
    begun = [server.upload("greedy").is_reading for _ in range(57)]
    assert begun == [True] * 56 + [False]

    server.wait(TICK_SECONDS)
    assert server.upload("other").is_reading is False  # behind the one that waits, until the next tick
    server.wait(TICK_SECONDS)
    assert server.uploads[-1].is_reading
    assert not server.uploads[-2].is_reading


def test_what_a_connection_has_had_does_not_count_against_it() -> None:
    """Beside another one that holds something, it sends a hundred large messages, one after the other."""
    server = Server()
    server.hold("other", MIB)
    for _ in range(100):
        upload = server.upload("busy")
        assert upload.is_reading
        server.held.finish(upload, LARGEST)
        server.hold("busy", LARGEST)
        del server.pictures[-1]

    for _ in range(4):
        server.hold("busy", LARGEST)
    assert not server.upload("busy").is_reading, "its half is what it holds now"


def test_a_caller_that_leaves_while_it_waits_gets_no_turn() -> None:
    """Its upload is forgotten."""
    server = Server()
    for _ in range(8):
        server.hold("a", LARGEST)
    gone = server.upload("b")
    server.held.finish(gone, None)
    server.answer(8)
    server.wait(1.0)

    assert not gone.is_reading


def test_what_a_complete_message_frees_is_reported_to_the_memory() -> None:
    """Its pieces; an upload that ended early reports nothing."""
    server = Server()
    for size in (MIB, None):
        server.held.finish(server.upload("a"), size)

    assert server.memory.freed == [MIB]


def test_many_connections_are_forgotten_when_nothing_of_them_is_left() -> None:
    """What is expected of one is that of a first message again; one that has something is remembered."""
    server = Server()
    server.hold("holds", MIB)
    reads = server.upload("reads")
    server.held.open_call("calls")
    server.held.finish(server.uploads.pop(), MIB)
    reads = server.upload("reads")
    for number in range(MAX_CONNECTIONS):
        gone = Arrival(f"gone {number}")
        server.held.ask(gone, server.now)
        server.held.finish(gone, MIB)
    server.wait(TICK_SECONDS)

    before = server.held.total
    server.upload("gone 7")
    assert server.held.total - before == LARGEST
    server.held.finish(reads, MIB)
    server.held.close_call("calls")
    server.answer()
    server.wait(TICK_SECONDS)
    assert server.held.total == LARGEST


def test_it_is_measured_more_often_while_uploads_could_exceed_the_limit() -> None:
    """More than half of it is held, and something is being read."""
    server = Server()
    for _ in range(5):
        server.hold("a", LARGEST)
    assert not server.held.is_busy

    upload = server.upload("b")
    assert server.held.is_busy
    server.answer(5)
    server.wait(1.0)
    assert (upload.is_reading, server.held.is_busy) == (True, False)
