"""The server's side of the fork server: what it does when that fails, ends, or does not answer."""

import json
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from inference.fork_wire import ForkAnswer, receive_request
from inference.server.runner_client.fork_server import (
    ANSWER_SECONDS,
    PING_SECONDS,
    ForkedProcess,
    pause_seconds,
)
from tests.runner.simulated_forks import START_SECONDS, SimulatedForks, settle


@pytest.fixture
def forks() -> Iterator[SimulatedForks]:
    """One that is not started yet."""
    forks = SimulatedForks()
    yield forks
    forks.close()


def test_pauses_between_starts_grow() -> None:
    """The first failure may be an accident; a program that ends at once must not take the CPUs for ever."""
    assert [pause_seconds(failures) for failures in (1, 2, 3, 4, 60)] == [0.0, 1.0, 2.0, 4.0, 60.0]


async def test_a_runner_asked_for_gets_its_process_id_with_the_answer(forks: SimulatedForks) -> None:
    """The request carries arguments and copies of the descriptors; whoever waits for the process is called."""
    await forks.start()
    asked, theirs = socket.socketpair()
    with asked, theirs:
        process = forks.server.fork(["--engine=ofa"], [theirs.fileno()])
    called = record_answer(process)
    received = receive_request(forks.ends[-1])
    assert received is not None
    os.close(received[1][0])
    before = process.pid

    await forks.answer(ForkAnswer(received[0].number, pid=4711))
    process.returncode = 0  # there is no such process to end

    assert (before, process.pid, called) == (0, 4711, [4711])
    assert received[0].arguments == ("--engine=ofa",)


async def test_one_that_ends_is_replaced_and_what_it_was_asked_for_fails(forks: SimulatedForks) -> None:
    """At once, not with the next runner that is needed; until the imports are done, runners start as programs."""
    await forks.start()
    process = forks.server.fork(["--engine=ofa"], [])
    called = record_answer(process)

    await forks.end()
    meanwhile = forks.server.can_fork
    await forks.answer(ForkAnswer(0))

    assert called == [0]
    assert "ended" in process.failure
    assert (len(forks.ends), meanwhile, forks.server.can_fork) == (2, False, True)


async def test_one_that_does_not_answer_is_killed_and_replaced(forks: SimulatedForks) -> None:
    """A stopped or hanging process is found by a question every few seconds, not by the next runner's start."""
    await forks.start()
    killed = forks.server._process  # noqa: SLF001

    await forks.wait(PING_SECONDS + ANSWER_SECONDS + 2)

    assert killed is not None
    assert killed.wait() == -9
    assert len(forks.ends) == 2
    assert forks.reports[-1][1]["detail"] == "it does not answer"


async def test_one_that_answers_is_left_alone(forks: SimulatedForks) -> None:
    """Each question has its answer."""
    await forks.start()
    for _ in range(3):
        await forks.wait(PING_SECONDS)
        received = receive_request(forks.ends[-1])
        assert received is not None
        await forks.answer(ForkAnswer(received[0].number))

    assert len(forks.ends) == 1


async def test_imports_that_hang_are_ended(forks: SimulatedForks) -> None:
    """They have the time that a runner has for them."""
    forks.begin()

    await forks.wait(START_SECONDS + 1)

    assert len(forks.ends) == 2


async def test_imports_that_fail_are_not_tried_again(forks: SimulatedForks) -> None:
    """They would fail again, and each attempt takes seconds of a CPU; runners start as programs."""
    await forks.start()

    await forks.answer(ForkAnswer(0, error="ForkUnsafe('2 threads run')"))
    await forks.wait(100)

    assert (len(forks.ends), forks.server.can_fork, forks.server.is_watched) == (1, False, True)
    assert forks.reports[-1] == (
        "fork_server_failed",
        {"pid": forks.reports[-1][1]["pid"], "detail": "ForkUnsafe('2 threads run')", "failures": 1},
    )


async def test_a_fork_that_fails_fails_its_runner_only(forks: SimulatedForks) -> None:
    """The system may have no process left for a moment."""
    await forks.start()
    process = forks.server.fork(["--engine=ofa"], [])
    await forks.answer(ForkAnswer(1, error="OSError(11, 'Resource temporarily unavailable')"))

    assert "Resource temporarily unavailable" in process.failure
    assert forks.server.can_fork


async def test_an_answer_that_does_not_parse_ends_it(forks: SimulatedForks) -> None:
    """Whatever sent it cannot be relied on."""
    await forks.start()
    forks.ends[-1].send(json.dumps({"number": 1, "colour": "green"}).encode())
    await settle()

    assert len(forks.ends) == 2


async def test_one_that_cannot_be_started_is_reported_and_tried_again(forks: SimulatedForks) -> None:
    """A failure before anything is reported, as of the first start, is not lost."""
    forks.program = ["/no/such/program"]
    forks.server.start(["ofa"], {"PATH": "/usr/bin:/bin"})
    can_fork = forks.server.can_fork
    forks.attach()
    forks.program = ["sleep", "60"]

    await forks.wait(1)

    [(event, fields)] = forks.reports
    assert "No such file" in fields["detail"]
    assert (event, can_fork, len(forks.ends)) == ("fork_server_failed", False, 2)


def record_answer(process: ForkedProcess) -> list[int]:
    """The process id at each call to whoever waits for the process."""
    called: list[int] = []
    record: Callable[[], None] = lambda: called.append(process.pid)  # noqa: E731
    process.call_when_answered(record)
    return called
