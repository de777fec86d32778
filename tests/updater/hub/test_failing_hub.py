"""A failing hub, with the whole updater: once in memory, once over HTTP. Serving is not affected."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from common.clock import SystemClock
from tests.updater.scripted_hub import ScriptedHub, drips, says, stalls
from tests.updater.simulators import Quality
from tests.updater.stories.world import StoryWorld
from updater.core.breaker import BreakerState
from updater.core.effects import EffectFailure, FailureKind
from updater.core.record import Outcome, Stage
from updater.hub.client import HubHttpClient, HubHttpOptions
from updater.hub.modelscope import ModelScopeHub

FOREVER = 10**4


@dataclass
class Line:
    """One way to a hub, and how it is made to fail."""

    world: StoryWorld
    fails: Callable[[str, int], None]  # how, and how many questions
    mends: Callable[[], None]
    asked: Callable[[], int] = field(default=lambda: 0)  # questions so far

    def steps(self, seconds: float) -> None:
        """Let the updater go on for so long."""
        ends = self.world.clock.seconds + seconds
        while self.world.clock.seconds < ends:
            self.world.step()


def in_memory(world: StoryWorld) -> Line:
    """The folder hub of the stories, on a bad line."""
    faults = {
        "500": EffectFailure(FailureKind.TRANSIENT, "HUB_FAILED", "500"),
        "429": EffectFailure(FailureKind.TRANSIENT, "RATE_LIMITED", "429", retry_after_seconds=300.0),
        "403": EffectFailure(FailureKind.DENIED, "HUB_DENIED", "403"),
        "stall": EffectFailure(FailureKind.TRANSIENT, "HUB_STALLED", "silence"),
        "drip": EffectFailure(FailureKind.TRANSIENT, "HUB_SLOW", "a byte a second"),
    }
    counted = _Counted(world)

    def fails(how: str, times: int) -> None:
        counted.faults.extend([faults[how]] * times)

    return Line(world, fails, counted.faults.clear, counted.asked)


class _Counted:
    """Counts the questions to the hub in memory."""

    def __init__(self, world: StoryWorld) -> None:
        self.faults = world.hub.faults
        self._count = 0
        ask = world.hub.revisions

        def revisions(deadline_seconds: float) -> tuple[str, ...]:
            self._count += 1
            return ask(deadline_seconds)

        world.hub.revisions = revisions  # type: ignore[method-assign]

    def asked(self) -> int:
        return self._count


def over_http(world: StoryWorld, server: ScriptedHub) -> Line:
    """The same folder, behind a socket."""
    rules = HubHttpOptions(server.url, stall_seconds=2.0)
    client = HubHttpClient(rules, SystemClock(), lambda: "", lambda _scheme, _host: "")
    world.hub = ModelScopeHub(client, "acme/shapes", SystemClock(), lambda _: False)  # type: ignore[assignment]
    acts = {"500": says(500), "429": says(429, Retry_After="300"), "403": says(403), "stall": stalls, "drip": drips}

    def fails(how: str, times: int) -> None:
        server.fails(acts[how], times=times)

    return Line(world, fails, server.faults.clear, lambda: len(server.of_kind("revisions")))


@pytest.fixture(params=["in memory", "over http"])
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    """v1.0.0 is committed and serves."""
    world = StoryWorld()
    world.publish("v1.0.0", Quality())
    server = ScriptedHub(world.hub_folder)
    made = over_http(world, server) if request.param == "over http" else in_memory(world)
    world.settle(500.0)
    assert committed(world) == "v1.0.0"
    yield made
    server.close()
    world.close()


def committed(world: StoryWorld) -> str:
    """The revision that is committed and serves."""
    row = world.record.committed
    active = world.server.state(1.0).active
    assert row is not None
    assert active is not None
    assert row.bundle_digest == active.bundle_digest == world.pointer()
    return row.revision


@pytest.mark.fault("N1")
@pytest.mark.parametrize("how", ["500", "stall"])
def test_a_hub_that_fails_once_delays_an_update(line: Line, how: str) -> None:
    """During a poll, and during a download."""
    world = line.world
    world.publish("v1.1.0", Quality())
    line.fails(how, 1)
    world.settle(500.0)
    assert committed(world) == "v1.1.0"
    world.publish("v1.2.0", Quality())
    while world.record.stage is not Stage.STAGING:
        world.step()
    line.fails(how, 1)
    world.settle(500.0)
    assert committed(world) == "v1.2.0"
    assert world.record.failure_ages == (), "the revision was blamed"


@pytest.mark.fault("N2")
def test_polls_of_a_failing_hub_back_off(line: Line) -> None:
    """The breaker opens, serving goes on, and the update follows when the hub works again."""
    world = line.world
    began = line.asked()
    line.steps(300.0)
    often = line.asked() - began
    line.fails("500", FOREVER)
    line.steps(600.0)
    assert BreakerState.OPEN is world.record.hub.state
    began = line.asked()
    line.steps(1200.0)
    assert line.asked() - began < often / 4
    assert committed(world) == "v1.0.0"
    line.mends()
    world.publish("v1.1.0", Quality())
    world.settle(5000.0)
    assert committed(world) == "v1.1.0"


@pytest.mark.fault("N3")
def test_retry_after_of_the_hub_is_respected(line: Line) -> None:
    """No request is sent before that time."""
    world = line.world
    line.fails("429", 1)
    while "RATE_LIMITED" not in world.record.watch.message:
        world.step()
    began, asked = world.clock.seconds, line.asked()
    while line.asked() == asked:
        world.step()
    assert world.clock.seconds - began >= 290.0


@pytest.mark.fault("N4")
def test_denied_access_does_not_open_the_breaker(line: Line) -> None:
    """The operator is advised to change a setting; then updates continue."""
    world = line.world
    line.fails("403", 40)
    line.steps(200.0)
    assert (world.record.hub.state, world.record.hub.failures) == (BreakerState.CLOSED, 0)
    assert "HUB_DENIED" in world.record.watch.message
    line.mends()
    world.publish("v1.1.0", Quality())
    world.settle(500.0)
    assert committed(world) == "v1.1.0"


@pytest.mark.fault("N1")
def test_an_outage_of_minutes_keeps_downloaded_bytes(line: Line) -> None:
    """The same update continues."""
    world = line.world
    world.publish("v1.1.0", Quality())
    while world.record.stage is not Stage.STAGING:
        world.step()
    update = world.record.under_way.update_id
    line.fails("500", FOREVER)
    line.steps(120.0)
    line.mends()
    world.settle(1000.0)
    assert committed(world) == "v1.1.0"
    assert [(update, Outcome.COMMITTED)] == world.updates_of("v1.1.0")


@pytest.mark.fault("N8")
def test_a_stalled_download_is_resumed(line: Line) -> None:
    """Within the same update, without quarantine."""
    world = line.world
    world.publish("v1.1.0", Quality())
    while world.record.stage is not Stage.STAGING:
        world.step()
    line.fails("stall", 2)
    world.settle(500.0)
    assert committed(world) == "v1.1.0"
    assert world.record.failure_ages == ()
