"""Each item has one ItemEnded event, with its outcome, reason, revision and device."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import (
    DeadlineMissed,
    Failed,
    HotslotError,
    InputRefused,
    Interrupted,
    NotFound,
    NotReady,
    Overloaded,
)
from inference.server.api.entailment import EntailmentApi
from inference.server.api.interceptors import Call, current_call, is_deadline_reached
from inference.server.api.open_inference import OpenInferenceApi
from inference.server.api.predict import PredictApi, PredictRules
from inference.server.api.stream import StreamRules
from inference.server.api.task import InputLimits
from inference.server.events import ItemEnded, ItemOutcome
from inference.server.health import HealthRegistry
from inference.server.model.models import Models
from inference.server.model.stats import IncomingItem, classify_error
from inference.server.scheduling.held_bytes import HeldBytes, HeldRules
from inference.wire import EntailmentScores
from tests.server.simulated_connections import SimCalls, SimConnections, SimMemory
from tests.server.simulator import World


def ended(world: World) -> list[tuple[str, str, str, str]]:
    """Outcome, reason, revision and device of each item that has ended."""
    found = [event for event in world.events if isinstance(event, ItemEnded)]
    assert {event.model for event in found} <= {"shapes"}
    return [(event.outcome.value, event.reason, event.revision, event.device) for event in found]


async def test_an_answered_item_carries_its_answers(tmp_path: Path) -> None:
    """Revision, device and the answer to each statement; the self-test after the load is not an item."""
    world = await World(tmp_path).serving()

    await world.ask().outcome

    (event,) = [event for event in world.events if isinstance(event, ItemEnded)]
    assert (event.outcome, event.reason, event.labels) == (ItemOutcome.ANSWERED, "", ("yes",))
    assert (event.model, event.revision, event.device) == ("shapes", "r1", "cpu")


async def test_a_failed_item_carries_the_revision_and_device_that_failed(tmp_path: Path) -> None:
    """Also when no process is left to name them: the input ended two runners."""
    world = await World(tmp_path).serving()

    failed, refused, poison = world.ask("!ENGINE_FAILED"), world.ask("!OUT_OF_MEMORY"), world.ask("!crash")
    await world.wait(5)

    assert all(request.outcome.exception() for request in (failed, refused, poison))
    assert sorted(ended(world)) == [
        ("failed", "ENGINE_FAILED", "r1", "cpu"),
        ("failed", "POISON_INPUT", "r1", "cpu"),
        ("refused", "OUT_OF_MEMORY", "r1", "cpu"),
    ]


@pytest.mark.parametrize(("has_expired", "expected"), [(False, "cancelled"), (True, "expired")])
async def test_an_item_without_a_caller_is_cancelled_or_expired(
    tmp_path: Path, *, has_expired: bool, expected: str
) -> None:
    """As its call has ended; it is counted once, though the runner reports it too."""
    world = await World(tmp_path).serving()
    world.holds_items = True
    pending = world.ask()
    await world.settle()

    world.manager.requests.cancel(pending, has_expired=has_expired)
    world.manager.requests.cancel(pending)
    world.runner("a").answer(*world.runner("a").items)
    await world.wait(40)

    reason = "DEADLINE_EXPIRED" if has_expired else "CANCELLED"
    assert ended(world) == [(expected, reason, "r1", "cpu")]


async def test_an_item_whose_deadline_passes_is_expired(tmp_path: Path) -> None:
    """It carries the revision that it waited for."""
    world = await World(tmp_path).serving()
    world.holds_items = True
    world.ask(seconds=0.5)

    await world.wait(1)

    assert ended(world) == [("expired", "DEADLINE_EXPIRED", "r1", "cpu")]


async def test_a_handed_over_item_is_counted_once_where_it_ended(tmp_path: Path) -> None:
    """By the previous revision that answered it, or the last one that failed it."""
    world = await World(tmp_path).serving()
    await world.trial()

    world.ask("!ENGINE_FAILED@r2")
    await world.settle()
    world.ask("!ENGINE_FAILED")
    await world.settle()

    assert ended(world) == [("answered", "", "r1", "cpu"), ("failed", "ENGINE_FAILED", "r1", "cpu")]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InputRefused("bad", reason="IMAGE_MISSING"), ("invalid", "IMAGE_MISSING")),
        (NotFound("no"), ("invalid", "MODEL_UNKNOWN")),
        (Overloaded("full"), ("refused", "QUEUE_FULL")),
        (NotReady("drains", reason="DRAINING"), ("refused", "DRAINING")),
        (DeadlineMissed("short", reason="DEADLINE_TOO_SHORT"), ("refused", "DEADLINE_TOO_SHORT")),
        (DeadlineMissed("late"), ("expired", "DEADLINE_EXPIRED")),
        (Failed("broken", reason="RUNNER_DIED"), ("failed", "RUNNER_DIED")),
        (Interrupted("other"), ("failed", "LOAD_FAILED")),
        (ValueError("a bug"), ("failed", "INTERNAL")),
    ],
)
def test_an_error_at_acceptance_is_the_items_outcome(error: Exception, expected: tuple[str, str]) -> None:
    """One event, with the model as far as it was found, and the error goes on."""
    events: list[object] = []

    item = IncomingItem(events.append)
    item.model = "shapes"

    with pytest.raises(type(error)), item:
        raise error

    (outcome, reason) = expected
    assert events == [ItemEnded("shapes", "", "", ItemOutcome(outcome), reason)]
    assert classify_error(error) == (ItemOutcome(outcome), reason)
    assert isinstance(error, HotslotError) or reason == "INTERNAL"


@pytest.mark.fault("I14")
@pytest.mark.parametrize("method", ["Predict", "ModelInfer"])
@pytest.mark.parametrize(
    ("left", "expected"), [(0.0, ("expired", "DEADLINE_EXPIRED")), (3.0, ("cancelled", "CANCELLED"))]
)
async def test_a_call_that_ends_before_its_message_is_read_is_an_item(
    tmp_path: Path, method: str, left: float, expected: tuple[str, str]
) -> None:
    """It waits for memory or for its bytes, and its deadline passes or its caller leaves."""
    world = await World(tmp_path).serving()
    held = HeldBytes(HeldRules(1 << 20, 1 << 20, 12.0), SimConnections(), SimMemory(), SimCalls())
    rules = PredictRules(InputLimits(1000, 100), StreamRules(8), max_deadline_seconds=60.0)
    given = (world.clock, world.events.append, world.drain, held)
    predict = PredictApi(EntailmentApi(), Models([world.manager]), rules, *given)
    infer = OpenInferenceApi(
        {predict.api.task: predict},
        Models([world.manager]),
        HealthRegistry([]),
        held,
        world.drain,
        world.clock,
        world.events.append,
    )
    never = asyncio.get_running_loop().create_future()
    context: Any = SimpleNamespace(peer=lambda: "caller", read=lambda: _wait_for(never), time_remaining=lambda: left)
    current_call.set(Call("service", method, "unary", "id", "", 0.0, is_echoed=False, timeout=5.0))
    handler = predict.predict if method == "Predict" else infer.model_infer
    call = asyncio.create_task(handler(None, context))
    await asyncio.sleep(0)

    call.cancel()
    await asyncio.wait([call])

    assert call.cancelled()
    assert [event for event in world.events if isinstance(event, ItemEnded)] == [
        ItemEnded("", "", "", ItemOutcome(expected[0]), expected[1])
    ]


async def _wait_for(future: "asyncio.Future[bytes]") -> bytes:
    return await future


@pytest.mark.parametrize(
    ("left", "timeout", "expected"),
    [(0.0, 1.0, True), (-3.0, 1.0, True), (0.1, 1.0, True), (0.2, 1.0, False), (0.03, 0.1, False), (0.25, 20.0, True)],
)
def test_a_cancelled_call_has_reached_its_deadline(
    left: float | None, timeout: float | None, *, expected: bool
) -> None:
    """The caller's clock may end it a little before the server's does."""
    assert is_deadline_reached(left, timeout) is expected


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((0.5, 0.3, 0.2), "yes"),
        ((0.2, 0.5, 0.3), "no"),
        ((0.2, 0.3, 0.5), "maybe"),
        ((0.4, 0.4, 0.2), "yes"),
        ((0.4, 0.2, 0.4), "yes"),
        ((0.2, 0.4, 0.4), "no"),
    ],
)
def test_the_answer_is_the_most_probable_label(scores: tuple[float, float, float], expected: str) -> None:
    """Of equal ones the first."""
    assert EntailmentScores(*scores).label == expected
