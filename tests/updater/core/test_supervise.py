"""A model's loop that dies is started again, and everybody can see it meanwhile."""

import threading
from collections.abc import Callable
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2

from common.logs import Logger
from tests.common.clock import KeptLog
from tests.updater.core.world import MODEL, NoObserver, World
from updater.core.ports import JournalUnusable
from updater.loop import ModelLoop
from updater.metrics import LogObserver
from updater.service.health import UpdaterHealth
from updater.supervise import CALM_SECONDS, RESTART_SECONDS, LoopSupervisor


class Stopping(threading.Event):
    """Notes pauses instead of waiting; the process stops after the last one."""

    def __init__(self, pauses: int, during: Callable[[], None]) -> None:
        super().__init__()
        self.pauses: list[float] = []
        self._most, self._during = pauses, during

    def wait(self, timeout: float | None = None) -> bool:
        """A pause."""
        self._during()
        self.pauses.append(timeout or 0.0)
        if len(self.pauses) >= self._most:
            self.set()
        return self.is_set()


class FailingLoop:
    """Fails as told; then runs until the process stops."""

    def __init__(self, world: World, *failures: Exception, seconds: float = 0.0) -> None:
        self.publisher = world.loop.publisher
        self.clock, self.seconds = world.clock, seconds
        self.failures, self.reloads = list(failures), 0

    def reload(self) -> None:
        """From the journal."""
        self.reloads += 1

    def run(self) -> None:
        """Fail, if that is next."""
        self.clock.passes(self.seconds + 0.5)
        if self.failures:
            raise self.failures.pop(0)


def supervise(
    world: World, loop: FailingLoop, pauses: int = 99
) -> tuple[LoopSupervisor, Stopping, list[bool], KeptLog]:
    """Run until the loop ends; returns also whether it was shown as running in each pause."""
    shown, log = list[bool](), KeptLog()
    stopping = Stopping(pauses, lambda: shown.append(supervisor.is_running))
    unusable: list[JournalUnusable] = []
    observer = LogObserver(cast("Logger", log))
    supervisor = LoopSupervisor(MODEL, cast("ModelLoop", loop), world.clock, observer, stopping, unusable.append)
    supervisor.run()
    return supervisor, stopping, shown, log


@pytest.mark.fault("H15")
def test_a_loop_that_dies_is_started_again_with_growing_pauses(world: World) -> None:
    """From the journal, as a new process would; it is not shown as running meanwhile, and each failure is one line."""
    loop = FailingLoop(world, *(ValueError("bug") for _ in range(7)))
    supervisor, stopping, shown, log = supervise(world, loop, pauses=7)
    assert stopping.pauses == [*RESTART_SECONDS, 60.0, 60.0]
    assert shown == [False] * 7
    assert log.events == ["loop_crashed"] * 7
    assert [fields["retry_in_seconds"] for _, fields in log.lines] == stopping.pauses
    assert loop.reloads == 6
    assert not supervisor.is_running


def test_a_loop_that_ran_long_begins_with_the_first_pause(world: World) -> None:
    """Two failures a day are not a row."""
    loop = FailingLoop(world, ValueError("bug"), ValueError("bug"), seconds=CALM_SECONDS)
    _, stopping, _, _ = supervise(world, loop, pauses=2)
    assert stopping.pauses == [1.0, 1.0]


def test_a_command_ends_the_pause_of_a_loop_that_has_failed(world: World) -> None:
    """Who rolls back does not wait for a minute; the pause after that is as long as before."""
    stopping = threading.Event()
    pauses: list[float] = []

    class Wake(threading.Event):
        """A command comes in each pause but the last, in which the process stops."""

        def wait(self, timeout: float | None = None) -> bool:
            assert not self.is_set()
            self.set()
            pauses.append(timeout or 0.0)
            if len(pauses) == 3:
                stopping.set()
            return True

    loop = FailingLoop(world, *(ValueError("bug") for _ in range(9)))
    LoopSupervisor(
        MODEL,
        cast("ModelLoop", loop),
        world.clock,
        NoObserver(),
        stopping,
        lambda _: None,
        Wake(),
    ).run()
    assert pauses == [*RESTART_SECONDS[:3]]
    assert loop.reloads == 2


def test_the_status_says_that_the_loop_has_failed(world: World) -> None:
    """Until the next step is written."""
    loop = FailingLoop(world, ValueError("bug"))
    supervise(world, loop, pauses=1)
    assert "the update loop has failed (ValueError" in world.loop.publisher.snapshot.fault
    world.tick()
    world.publish("1.1.0")
    world.settle()
    assert world.loop.publisher.snapshot.fault == ""


def test_a_lost_journal_ends_the_loop_for_good(world: World) -> None:
    """A person must decide."""
    world.disk.journal_is_lost = True
    unusable: list[JournalUnusable] = []
    supervisor = LoopSupervisor(MODEL, world.loop, world.clock, NoObserver(), threading.Event(), unusable.append)
    supervisor.run()
    assert len(unusable) == 1
    assert not supervisor.is_running


def test_a_loop_continues_from_the_journal(world: World) -> None:
    """Whatever it had in memory."""
    world.publish("1.1.0")
    world.settle()
    world.loop.reload()
    world.settle()
    assert world.committed == "1.1.0"


def test_health_tells_each_model_and_all() -> None:
    """SERVING only while the loop runs."""
    health = UpdaterHealth(lambda: {"a": True, "b": False})
    handlers = cast("Any", health.handlers())._method_handlers  # noqa: SLF001  what gRPC would call
    check = next(row for name, row in handlers.items() if name.endswith("/Check"))
    list_ = next(row for name, row in handlers.items() if name.endswith("/List"))
    names = {
        name: check.unary_unary(health_pb2.HealthCheckRequest(service=name), None).status for name in ("a", "b", "")
    }
    assert names == {"a": 1, "b": 2, "": 2}
    assert set(list_.unary_unary(health_pb2.HealthListRequest(), None).statuses) == {"a", "b", ""}


def test_health_knows_no_other_names() -> None:
    """NOT_FOUND, as the server says."""

    class Context:
        """Ends the call."""

        def abort(self, code: grpc.StatusCode, _details: str) -> None:
            raise LookupError(code)

    handlers = cast("Any", UpdaterHealth(dict).handlers())._method_handlers  # noqa: SLF001  what gRPC would call
    check = next(row for name, row in handlers.items() if name.endswith("/Check"))
    with pytest.raises(LookupError, match="NOT_FOUND"):
        check.unary_unary(health_pb2.HealthCheckRequest(service="c"), Context())
