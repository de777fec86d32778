"""Which connections are ended because their callers do not take their answers, in simulated time."""

from collections import Counter
from collections.abc import Callable

import pytest

from inference.server.scheduling.held_bytes import CALL_BYTES
from inference.server.scheduling.unread import (
    LOOK_SECONDS,
    MAX_ENDS,
    MIN_UNREAD,
    STOP_SECONDS,
    UNREAD_SECONDS,
    UNREAD_SHARE,
)
from tests.server.scheduling.uploads import LIMIT, TICK_SECONDS, Server

pytestmark = pytest.mark.fault("L26")
MOST = int(UNREAD_SHARE * (LIMIT // CALL_BYTES))
STREAMS = 256  # calls at a time of a connection


class Callers:
    """Connections that do not take their answers; when one is closed, gRPC ends its calls."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.server = Server(limit)
        self.most_ended = 0  # calls in one tick

    @property
    def closed(self) -> list[str]:
        """The connections that the server has closed."""
        return self.server.network.closed

    def answer(self, connection: str, count: int) -> None:
        """Calls that are answered now."""
        answered = self.server.calls.answered
        answered.update((object(), connection) for _ in range(count))

    def take(self, connection: str) -> None:
        """The caller takes its oldest answer."""
        answered = self.server.calls.answered
        del answered[next(one for one, name in answered.items() if name == connection)]

    def wait(self, seconds: float, each: Callable[[], object] = lambda: None) -> None:
        """Ticks."""

        def end_closed() -> None:
            answered = self.server.calls.answered
            gone = [one for one, name in answered.items() if name in self.closed]
            self.most_ended = max(self.most_ended, len(gone))
            for one in gone:
                del answered[one]
            each()

        self.server.wait(seconds, end_closed)


def test_answers_count_until_they_are_taken() -> None:
    """As open calls do: gRPC keeps them."""
    callers = Callers()
    callers.answer("a", 10)
    assert callers.server.held.total == 10 * CALL_BYTES

    callers.take("a")
    assert callers.server.held.total == 9 * CALL_BYTES


def test_of_too_many_those_of_greedy_connections_are_ended() -> None:
    """Few calls in each tick; one that takes its answers slowly keeps them."""
    callers = Callers()
    callers.answer("slow", 20)
    for number in range(12):
        callers.answer(f"greedy {number}", STREAMS)
    callers.wait(2.0)

    assert callers.server.calls.count <= MOST
    assert Counter(callers.server.calls.answered.values())["slow"] == 20
    assert callers.most_ended <= MAX_ENDS
    assert len(callers.closed) == len(set(callers.closed)) == 10


def test_callers_of_a_unix_socket_are_not_closed() -> None:
    """They cannot be told apart; those that can be closed have no more and no less for it."""
    callers = Callers()
    callers.answer("unix:", 2 * MOST)
    callers.answer("tcp", MOST + 1)
    callers.wait(2 * UNREAD_SECONDS)

    assert callers.closed == ["tcp"]
    assert callers.server.calls.count == 2 * MOST


def test_a_low_limit_leaves_some() -> None:
    """A tenth of it would be no call at all."""
    callers = Callers(limit=100_000)
    callers.answer("a", MIN_UNREAD)
    callers.wait(2.0)
    assert callers.closed == []

    callers.answer("a", 1)
    callers.wait(2.0)
    assert callers.closed == ["a"]


def test_answers_on_their_way_are_not_unread() -> None:
    """At each look there are many, and they are others."""
    callers = Callers()

    def go_on() -> None:
        callers.server.calls.answered.clear()
        callers.answer("busy", 2 * MOST)

    callers.wait(2 * UNREAD_SECONDS, go_on)

    assert callers.closed == []


def test_a_slow_reader_is_not_cut() -> None:
    """One answer in 5 s, for minutes; a connection that takes nothing is ended when its time is over."""
    callers = Callers()
    callers.answer("slow", 60)
    callers.answer("stuck", 1)
    steps = 0

    def take_some() -> None:
        nonlocal steps
        steps += 1
        if steps % round(5 / TICK_SECONDS) == 0:
            callers.take("slow")

    callers.wait(UNREAD_SECONDS - 1.0, take_some)
    assert callers.closed == []

    callers.wait(2.0, take_some)
    assert callers.closed == ["stuck"]
    callers.wait(3 * UNREAD_SECONDS, take_some)
    assert callers.closed == ["stuck"]


def test_the_consumer_of_a_stream_may_pause() -> None:
    """For any time; when the server stops, which has to wait for it, for as long as any that takes nothing."""
    callers = Callers()
    callers.server.held.open_call("paused")
    callers.server.held.unread.begin_write("paused")
    callers.wait(10 * UNREAD_SECONDS)
    assert callers.closed == []

    callers.server.held.unread.is_stopping = True
    callers.wait(STOP_SECONDS - 0.5)
    assert callers.closed == []

    callers.wait(1.5)
    assert callers.closed[:1] == ["paused"]


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_connection_whose_other_answers_are_taken_at_once_is_not_cut(*, is_stream: bool) -> None:
    """No look sees these; a call, or a message of a stream, that waits for ever holds less than a tenth."""
    callers = Callers()
    callers.answer("live", 1)
    callers.answer("stuck", 1)
    held = callers.server.held

    def answer() -> None:
        if is_stream:
            held.unread.end_write(held.unread.begin_write("live"))
        else:
            held.open_call("live")
            held.close_call("live")

    callers.wait(3 * UNREAD_SECONDS, answer)

    assert callers.closed == ["stuck"]


def test_further_answers_that_are_not_taken_are_no_progress() -> None:
    """Each of their calls has ended."""
    callers = Callers()
    callers.answer("stuck", 1)
    for _ in range(round(UNREAD_SECONDS)):
        callers.wait(1.0)
        callers.server.held.open_call("stuck")
        callers.answer("stuck", 1)
        callers.server.held.close_call("stuck")
    callers.wait(1.0)

    assert callers.closed == ["stuck"]


@pytest.mark.parametrize("is_stopping", [False, True])
def test_a_pause_of_the_process_is_no_time_of_its_callers(*, is_stopping: bool) -> None:
    """What was on its way is taken as soon as tasks go on; for what is not, the time of the pause does not count."""
    callers = Callers()
    callers.server.held.unread.is_stopping = is_stopping
    callers.answer("live", 2 * MOST)
    callers.answer("stuck", 1)
    callers.wait(LOOK_SECONDS)
    callers.server.now += 10 * UNREAD_SECONDS
    callers.wait(TICK_SECONDS)
    for _ in range(2 * MOST):
        callers.take("live")
    limit = STOP_SECONDS if is_stopping else UNREAD_SECONDS
    callers.wait(limit - 2 * LOOK_SECONDS)
    assert callers.closed == []

    callers.wait(3 * LOOK_SECONDS)
    assert callers.closed == ["stuck"]


def test_a_stop_waits_for_a_slow_reader() -> None:
    """It takes something every few seconds; one that takes nothing is ended before the grace period is over."""
    callers = Callers()
    callers.server.held.unread.is_stopping = True
    callers.answer("slow", 5)
    callers.answer("stuck", 1)
    callers.wait(5.0)
    callers.take("slow")
    callers.wait(STOP_SECONDS - 5.0 + 1.0)

    assert callers.closed == ["stuck"]


def test_streams_that_nobody_reads_are_ended_if_they_are_too_many() -> None:
    """Each waits in a write, with an item that is unwritten."""
    callers = Callers()
    unread = callers.server.held.unread
    writes = [unread.begin_write(f"connection {number % 5}") for number in range(MOST + 1)]
    callers.wait(0.5)
    assert callers.closed == []

    callers.wait(0.5)
    assert len(callers.closed) == 1
    for write in writes:
        unread.end_write(write)
    callers.wait(1.0)
    assert len(callers.closed) == 1
