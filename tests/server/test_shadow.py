"""Copies of answered requests for a second slot: they cost no caller anything, and show how two revisions compare."""

import itertools
from pathlib import Path

import pytest

from common.errors import Conflict, InputRefused
from inference.server.model.comparison import Comparison
from inference.server.model.pair import ShadowPolicy
from inference.server.model.shadow import (
    BUSY_SHARE,
    MAX_KEPT_SECONDS,
    PATIENT_SECONDS,
    YIELDING_SECONDS,
    Activity,
    may_compute,
)
from inference.server.request import EntailmentInput, RequestTags
from inference.server.scheduling.admission import Capacity
from inference.server.scheduling.fair_queue import UNNAMED
from inference.server.scheduling.held_bytes import HeldBytes, HeldRules
from tests.server.simulated_connections import SimCalls, SimConnections, SimMemory
from tests.server.simulator import SimRunner, World, ask
from tests.server.test_manager import stats

ALL = ShadowPolicy(1.0)
NO = (0.2, 0.7, 0.1)
_numbers = itertools.cycle(range(1000))  # of texts


async def start(state: Path, **changes: object) -> World:
    """A model that answers with r1."""
    return await World(state, **({"capacity": Capacity(1000, 1 << 20)} | changes)).serving()


async def trial(world: World, policy: ShadowPolicy = ALL, *, percent: float | None = None) -> str:
    """Let r2 answer on trial, and r1 a sample of the same requests."""
    load = await world.candidate()
    world.commands.activate(load.load_id, 60.0, "t1", 0, percent=percent, shadow=policy)
    await world.settle()
    return load.load_id


async def shadow(world: World, policy: ShadowPolicy = ALL) -> str:
    """Let r2 answer copies only."""
    load = await world.candidate()
    world.commands.set_shadow(load.load_id, policy, "t1", 0)
    return load.load_id


async def answered(world: World, count: int = 1, request_id: str = "", text: str = "") -> set[str]:
    """Send requests one after the other, all with this id or text or each with its own; returns who answered."""
    revisions = set()
    for number in range(count):
        tags = RequestTags(request_id or f"id {number}")
        asked = ask(text or f"t{next(_numbers):03d}")
        pending = world.manager.requests.predict(asked, world.clock.seconds + 30.0, UNNAMED, tags)
        await world.settle()
        revisions.add((await pending.outcome).served_by.revision)
    return revisions


def found(world: World) -> Comparison:
    """What was compared."""
    comparison = world.manager.requests.shadows.comparison
    assert comparison is not None
    return comparison


async def test_the_previous_slot_answers_the_same_requests_during_a_trial(tmp_path: Path) -> None:
    """Directions are from the previous revision to the one on trial; callers get the trial's answers."""
    world = await start(tmp_path)
    world.scores["r2"] = NO
    await trial(world)

    revisions = await answered(world, 3)

    comparison = found(world)
    assert revisions == {"r2"}
    assert (comparison.requests, comparison.equal_requests, comparison.answers) == (3, 0, 3)
    assert comparison.directions.counts == {"yes → no": 3}
    assert (comparison.reference_labels.counts, comparison.labels.counts) == ({"yes": 3}, {"no": 3})
    assert comparison.distances[-1] == 3, "half the sum of the differences is 0.5"
    assert [row.request_id for row in comparison.differing] == ["id 0", "id 1", "id 2"]


async def test_a_candidate_answers_copies_before_any_caller_meets_it(tmp_path: Path) -> None:
    """Callers get the active revision's answers only."""
    world = await start(tmp_path)
    world.scores["r2"] = NO
    await shadow(world)

    revisions = await answered(world, 3)

    assert revisions == {"r1"}
    assert found(world).directions.counts == {"yes → no": 3}
    assert stats(world, "r2")[0] == 0, "a copy is no answer to a caller"


async def test_beside_a_canary_either_slot_answers_the_others_requests(tmp_path: Path) -> None:
    """The direction is the same whoever was first."""
    world = await start(tmp_path)
    world.scores["r2"] = NO
    load_id = await trial(world, percent=0)

    revisions = await answered(world, 2)
    world.commands.set_percent(load_id, 100, "t1", 0)
    revisions |= await answered(world, 2)

    assert revisions == {"r1", "r2"}
    assert found(world).directions.counts == {"yes → no": 4}


@pytest.mark.parametrize("request_id", ["", "the same"])
async def test_a_sample_is_a_share_of_the_requests(tmp_path: Path, request_id: str) -> None:
    """Also of a caller that gives all its requests one id; a share of 0 keeps what was counted."""
    world = await start(tmp_path)
    load_id = await trial(world, ShadowPolicy(0.25))

    await answered(world, 200, request_id)
    sampled = found(world).requests
    world.commands.set_shadow(load_id, ShadowPolicy(0.0), "t1", 0)
    await answered(world, 20)

    assert 25 <= sampled <= 75
    assert found(world).requests == sampled


async def test_what_callers_repeat_is_compared_once(tmp_path: Path) -> None:
    """One that asks the same all day decides neither for a revision nor against it."""
    world = await start(tmp_path)
    world.scores["r2"] = NO
    await trial(world)

    await answered(world, 50, text="what a monitor asks")
    await answered(world, 2)

    assert (found(world).requests, found(world).directions.counts) == (3, {"yes → no": 3})
    assert found(world).dropped == {"REPEATED": 49}


async def test_of_a_picture_with_ever_other_statements_two_requests_are_compared(tmp_path: Path) -> None:
    """Of the second one what is new: a model that sees the picture otherwise changes all answers about it."""
    world = await start(tmp_path)
    world.scores["r2"] = NO
    await trial(world)

    for texts in (("a cat", "a dog"), ("a cat",), ("a cow", "a dog"), ("a horse",), ("a sheep",)):
        payload = EntailmentInput(b"one picture", texts, "")
        await world.manager.requests.predict(payload, world.clock.seconds + 30.0).outcome
        await world.settle()

    assert (found(world).requests, found(world).answers) == (2, 3)
    assert found(world).dropped == {"REPEATED": 3}


async def test_what_waits_to_be_copied_is_not_kept_twice(tmp_path: Path) -> None:
    """A caller that repeats itself leaves the room to others; what is dropped then may be copied another time."""
    world = await start(tmp_path)
    await trial(world)
    world.runner("a").is_hung = True
    await answered(world, 3, text="again")
    await answered(world, 1)
    kept = world.manager.requests.shadows.kept_bytes
    world.clock.seconds += MAX_KEPT_SECONDS
    world.runner("a").refuse("CANCELLED")
    await world.settle()
    await answered(world, 1, text="again")

    assert kept == 7 + 16, "one is computed, and one is kept"
    assert found(world).dropped == {"REPEATED": 2, "BUSY": 1}
    assert world.manager.requests.shadows.kept_bytes > kept


async def test_a_copy_that_fails_counts_once_and_may_be_compared_later(tmp_path: Path) -> None:
    """A request that one caller repeats is no reason to refuse a revision that answers all others."""
    world = await start(tmp_path)
    await shadow(world)
    await answered(world, 3, text="!ENGINE_FAILED@r2")
    before = dict(found(world).failed)
    world.runner("b").always = "ENGINE_FAILED"
    await answered(world, 2, text="again")
    world.runner("b").always = ""
    await answered(world, 2, text="again")

    assert (before, found(world).failed) == ({"ENGINE_FAILED": 1}, {"ENGINE_FAILED": 2})
    assert (found(world).requests, found(world).dropped) == (1, {"REPEATED": 4})


async def test_copies_of_a_trial_tell_which_slot_has_failed_them(tmp_path: Path) -> None:
    """Of requests that the previous slot has answered first, what the one on trial answers and fails."""
    world = await start(tmp_path)
    load_id = await trial(world, percent=0)
    await answered(world, 2)
    await answered(world, 2, text="!NOT_FINITE@r2")
    await answered(world, 1, text="!ENGINE_FAILED@r2")
    world.commands.set_percent(load_id, 100, "t1", 0)
    await answered(world, 3)
    await answered(world, 1, text="!NOT_FINITE@r1")

    assert (found(world).requests, found(world).judged_answered) == (5, 2)
    assert found(world).failed == {"NOT_FINITE": 2, "ENGINE_FAILED": 1}
    assert found(world).judged_failed == {"NOT_FINITE": 1, "ENGINE_FAILED": 1}


async def test_requests_are_copied_for_as_long_as_was_asked(tmp_path: Path) -> None:
    """Then the comparison stays as it is."""
    world = await start(tmp_path)
    await shadow(world, ShadowPolicy(1.0, max_seconds=5.0))
    await answered(world, 2)
    await world.wait(6)
    await answered(world, 2)

    assert found(world).requests == 2


@pytest.mark.fault("T3")
async def test_labels_that_shift_for_both_slots_alike_are_no_change(tmp_path: Path) -> None:
    """The traffic has changed; the labels of both are counted, and no direction is."""
    world = await start(tmp_path)
    await trial(world)
    await answered(world, 3)
    world.scores = {"r1": NO, "r2": NO}
    await answered(world, 9)

    comparison = found(world)
    assert comparison.directions.counts == {}
    assert comparison.labels.counts == comparison.reference_labels.counts == {"yes": 3, "no": 9}


@pytest.mark.fault("T4")
async def test_a_copy_waits_until_no_caller_waits(tmp_path: Path) -> None:
    """On a full machine nothing is copied; what got no time is counted."""
    world = await start(tmp_path)
    await trial(world)
    world.holds_items = True
    first = world.ask("first")
    await world.settle()
    others = [world.ask(f"other {number}") for number in range(6)]
    await world.settle()
    trial_runner, previous = world.runner("b"), world.runner("a")
    before = len(previous.received)

    trial_runner.answer(trial_runner.items[0])
    await world.wait(0.5)
    world.manager.requests.shadows.update(world.clock.seconds + MAX_KEPT_SECONDS)

    assert first.is_done
    assert not any(one.is_done for one in others)
    assert len(previous.received) == before
    assert found(world).dropped == {"BUSY": 1}


@pytest.mark.parametrize(
    ("activity", "blocked_seconds", "expected"),
    [
        (Activity(is_waiting=False, is_computing=False, busy_share=1.0, is_on_cpu=True), 0.0, True),
        (Activity(is_waiting=True, is_computing=False, busy_share=0.0, is_on_cpu=True), 9.0, False),
        (Activity(is_waiting=False, is_computing=True, busy_share=0.0, is_on_cpu=True), 9.0, False),
        (Activity(is_waiting=False, is_computing=True, busy_share=0.0, is_on_cpu=False), 0.0, False),
        (Activity(is_waiting=False, is_computing=True, busy_share=BUSY_SHARE, is_on_cpu=False), PATIENT_SECONDS, True),
        (Activity(is_waiting=False, is_computing=True, busy_share=BUSY_SHARE + 0.01, is_on_cpu=False), 9.0, False),
    ],
)
def test_idle_time_comes_first(activity: Activity, blocked_seconds: float, *, expected: bool) -> None:
    """A card that is never idle computes copies beside callers' requests, unless it has much to do; a CPU does not."""
    assert may_compute(activity, blocked_seconds) == expected


async def test_a_handed_over_request_comes_before_copies(tmp_path: Path) -> None:
    """The previous slot drops the copy that it has not begun, and computes at full priority again."""
    world = await start(tmp_path)
    await trial(world)
    await answered(world)
    previous = world.runner("a")
    assert previous.serving is False, "while it has copies only, its priority is low"
    world.holds_items = True
    pending = world.ask("!ENGINE_FAILED@r2")
    await world.settle()
    world.runner("b").refuse("ENGINE_FAILED")
    await world.settle()

    assert previous.serving is True
    previous.answer(*previous.items)
    assert (await pending.outcome).served_by.revision == "r1"
    assert found(world).requests == 1, "what the trial has failed is not compared"


async def copying(world: World) -> SimRunner:
    """Let the trial answer a request and the previous slot hold its copy; returns the previous slot's runner."""
    await trial(world)
    world.ask("first")
    world.holds_items = True
    await world.settle()
    runner = world.runner("b")
    runner.answer(*runner.items)
    await world.settle()
    return world.runner("a")


async def test_a_copy_on_a_card_makes_way_for_a_caller_of_either_slot(tmp_path: Path) -> None:
    """The runner skips it unless it has begun; it is computed at the next idle moment."""
    world = await start(tmp_path, device="cuda:0")
    world.devices = ["cuda:0"]
    previous = await copying(world)
    (copy,) = previous.items

    pending = [world.ask(name) for name in ("second", "third")]
    await world.settle()
    cancelled = list(previous.cancelled)
    previous.refuse("CANCELLED")
    await world.settle()
    while_callers_wait = list(previous.items)
    trial_runner = world.runner("b")
    trial_runner.answer(*trial_runner.items)
    await world.settle()

    assert copy.priority == 2
    assert cancelled == [copy.item_id], "once, however many callers come"
    assert while_callers_wait == []
    assert [(await one.outcome).served_by.revision for one in pending] == ["r2", "r2"]
    assert found(world).dropped == {}
    assert [item.entailment.statements for item in previous.items] == [copy.entailment.statements]


async def test_a_copy_on_the_cpus_makes_way_for_a_caller_of_its_own_slot_only(tmp_path: Path) -> None:
    """Beside calls of the other slot it goes on, in what these leave of the CPUs."""
    world = await start(tmp_path)
    previous = await copying(world)
    (copy,) = previous.items
    pending = world.ask("second")
    await world.settle()
    beside_another = list(previous.cancelled)
    world.runner("b").refuse("ENGINE_FAILED")
    await world.settle()
    of_its_own = list(previous.cancelled)
    previous.answer(previous.items[1])
    previous.refuse("CANCELLED")
    await world.settle()

    assert (beside_another, of_its_own) == ([], [copy.item_id])
    assert (await pending.outcome).served_by.revision == "r1"


async def test_a_copy_that_makes_way_too_long_is_dropped(tmp_path: Path) -> None:
    """It is counted as one that got no time."""
    world = await start(tmp_path, device="cuda:0")
    world.devices = ["cuda:0"]
    previous = await copying(world)
    world.ask("second")
    await world.settle()
    world.clock.seconds += MAX_KEPT_SECONDS
    previous.refuse("CANCELLED")
    await world.settle()
    assert found(world).dropped == {"BUSY": 1}


async def test_a_process_that_computes_copies_yields_the_cpus_for_a_moment(tmp_path: Path) -> None:
    """Later it has a candidate's priority, so that a full machine does not silence it; a caller gives it all back."""
    world = await start(tmp_path)
    previous = await copying(world)
    shadows = world.manager.requests.shadows
    levels = [(previous.serving, previous.yields)]
    shadows.update(world.clock.seconds + 0.9 * YIELDING_SECONDS)
    levels.append((previous.serving, previous.yields))
    shadows.update(world.clock.seconds + YIELDING_SECONDS)
    levels.append((previous.serving, previous.yields))
    previous.answer(*previous.items)
    await world.settle()
    pending = world.ask("second")
    await world.settle()
    world.runner("b").refuse("ENGINE_FAILED")
    await world.settle()
    levels.append((previous.serving, previous.yields))
    previous.answer(*previous.items)

    assert levels == [(False, True), (False, True), (False, False), (True, False)]
    assert (await pending.outcome).served_by.revision == "r1"


async def test_a_process_without_a_copy_yields_no_longer(tmp_path: Path) -> None:
    """It sends its heartbeats in time on a full machine."""
    world = await start(tmp_path)
    previous = await copying(world)
    previous.answer(*previous.items)
    await world.settle()
    world.manager.requests.shadows.update(world.clock.seconds)
    assert (previous.serving, previous.yields) == (False, False)


async def test_a_card_computes_a_copy_beside_a_caller_after_a_second_without_an_idle_moment(
    tmp_path: Path,
) -> None:
    """The time for which a copy waits for its share of the card's time does not count."""
    world = await start(tmp_path, device="cuda:0")
    world.devices = ["cuda:0"]
    previous = await copying(world)
    shadows, trial_runner, began = world.manager.requests.shadows, world.runner("b"), world.clock.seconds
    world.clock.seconds += 0.2  # a twentieth of about four seconds
    previous.answer(*previous.items)
    await world.settle()
    world.ask("second")
    await world.settle()
    trial_runner.answer(*trial_runner.items)
    await world.settle()
    world.ask("is computed")
    await world.settle()

    async def sent_after(seconds: float) -> int:
        while world.clock.seconds < began + seconds:
            world.clock.seconds += 0.05
            shadows.update(world.clock.seconds)
            await world.settle()
        return len(previous.items)

    assert [await sent_after(seconds) for seconds in (3.0, 4.0, 4.0 + PATIENT_SECONDS)] == [0, 0, 1]


@pytest.mark.fault("T5")
async def test_a_previous_slot_that_dies_of_a_copy_costs_no_answer(tmp_path: Path) -> None:
    """The trial goes on, the copy is counted as failed, and the slot starts again."""
    world = await start(tmp_path)
    await trial(world)
    pending = world.ask("!crash@r1")
    await world.wait(3)

    assert (await pending.outcome).served_by.revision == "r2"
    assert world.pair.trial is not None
    assert world.pair["a"].is_loaded
    assert found(world).failed == {"RUNNER_DIED": 1}
    assert stats(world, "r2")[1:] == ({}, 0, 0, 0)
    assert await answered(world) == {"r2"}
    assert found(world).requests == 1


@pytest.mark.fault("T5")
async def test_nothing_is_copied_to_a_slot_that_does_not_answer(tmp_path: Path) -> None:
    """It is counted, and nothing waits for it."""
    world = await start(tmp_path)
    await trial(world)
    world.holds_loads = True
    world.runner("a").end()
    await world.settle()

    assert await answered(world) == {"r2"}
    assert found(world).dropped == {"SLOT_DOWN": 1}


async def test_a_candidate_that_dies_of_a_copy_is_gone_and_nothing_else(tmp_path: Path) -> None:
    """No caller has met it; the comparison is over."""
    world = await start(tmp_path)
    await shadow(world)
    pending = world.ask("!crash@r2")
    await world.wait(1)

    assert (await pending.outcome).served_by.revision == "r1"
    assert world.pair.shadow is None
    assert world.manager.requests.shadows.comparison is None
    assert await answered(world) == {"r1"}


@pytest.mark.parametrize("reason", ["ENGINE_FAILED", "NOT_FINITE", "OUT_OF_MEMORY"])
async def test_what_fails_a_copy_is_told_apart_from_what_fails_callers(tmp_path: Path, reason: str) -> None:
    """It is evidence of the comparison; no failure of a trial, no CPU fallback."""
    world = await start(tmp_path)
    await shadow(world)
    pending = world.ask(f"!{reason}@r2")
    await world.settle()

    assert (await pending.outcome).served_by.revision == "r1"
    assert found(world).failed == {reason: 1}
    assert stats(world, "r2")[:2] == (0, {})
    assert world.pair.cpu_fallback is None


async def test_what_is_kept_is_limited(tmp_path: Path) -> None:
    """In number, and in bytes: a share of what the model's requests may hold, none of it while callers need it."""
    world = await start(tmp_path, capacity=Capacity(1000, 16 * (7 + 16) * 2))
    await trial(world)
    world.runner("a").is_hung = True
    await answered(world, 4)

    assert found(world).dropped == {"MEMORY": 2}, "one is computed, and may have to make way; one is kept"
    assert world.manager.requests.shadows.kept_bytes == 7 + 16


async def test_what_is_kept_is_dropped_when_callers_need_the_memory(tmp_path: Path) -> None:
    """Their messages outrank it."""
    is_tight = [False]
    world = await start(tmp_path, is_memory_tight=lambda: is_tight[0])
    await trial(world)
    world.runner("a").is_hung = True
    await answered(world, 3)
    is_tight[0] = True
    world.manager.tick()
    await answered(world, 1)

    assert found(world).dropped == {"MEMORY": 3}


async def test_what_is_kept_is_counted_as_held(tmp_path: Path) -> None:
    """A message that a caller sent is held until its copy is computed, like those of callers that wait."""
    held = HeldBytes(HeldRules(1 << 20, 1 << 20, 12.0), SimConnections(), SimMemory(), SimCalls())
    world = await start(tmp_path)
    await trial(world)
    world.runner("a").is_hung = True
    for number in range(2):
        payload = EntailmentInput(memoryview(b"picture %d" % number), (f"text {number}",), "")
        pending = world.manager.requests.predict(payload, world.clock.seconds + 30.0)
        held.hold("caller", payload.holder, payload.size_bytes)
        del payload
        assert (await pending.outcome).served_by.revision == "r2"
        del pending
        await world.settle()
    held.tick(0.0)
    kept = held.message_bytes
    world.commands.activate(world.previous.load.load_id if world.previous.load else "", 0.0, "t2", 0)
    world.manager.tick()
    await world.settle()
    held.tick(1.0)

    assert kept == 2 * (9 + 4 * 6)
    assert held.message_bytes == 0


async def test_copies_use_no_more_of_their_slots_time_than_allowed(tmp_path: Path) -> None:
    """What the budget leaves no time for is dropped after a while, and counted as such."""
    world = await start(tmp_path)
    await trial(world, ShadowPolicy(1.0, busy_share=0.01))
    world.holds_items = True
    pending = world.ask("first")
    await world.settle()
    world.runner("b").answer(*world.runner("b").items)
    await world.settle()
    await world.wait(1)
    world.runner("a").answer(*world.runner("a").items)
    world.holds_items = False
    await answered(world, 2)
    await world.wait(MAX_KEPT_SECONDS + 0.1)

    assert pending.is_done
    assert found(world).requests == 1
    assert found(world).dropped == {"BUDGET": 2}


async def test_a_rollback_and_a_commit_end_the_comparison(tmp_path: Path) -> None:
    """Nothing is copied any more, and nothing is kept."""
    world = await start(tmp_path)
    load_id = await trial(world)
    await answered(world)
    world.commands.commit(load_id, "t1", 0)
    await world.wait(0.1)
    received = len(world.runner("a").received)
    await answered(world)

    assert world.pair.shadow is None
    assert world.manager.requests.shadows.comparison is None
    assert len(world.runner("a").received) == received


async def test_the_trial_of_a_shadowed_candidate_counts_anew(tmp_path: Path) -> None:
    """What was compared before belongs to the candidate."""
    world = await start(tmp_path)
    load_id = await shadow(world)
    await answered(world, 2)
    world.commands.activate(load_id, 60.0, "t1", 0, shadow=ALL)
    await answered(world, 1)

    assert found(world).requests == 1


async def test_extending_the_lease_changes_neither_shadow_nor_percentage(tmp_path: Path) -> None:
    """The updater extends it every few seconds."""
    world = await start(tmp_path)
    load_id = await trial(world, percent=50)
    await answered(world, 2)
    before = world.pair.shadow
    world.clock.seconds += 5
    world.commands.activate(load_id, 60.0, "t1", 0)

    assert world.pair.shadow == before
    assert world.pair.trial is not None
    assert world.pair.trial.percent == 50.0
    assert found(world).requests == 2


@pytest.mark.parametrize(
    "policy",
    [
        ShadowPolicy(-0.1),
        ShadowPolicy(1.1),
        ShadowPolicy(float("nan")),
        ShadowPolicy(0.5, busy_share=-1.0),
        ShadowPolicy(0.5, busy_share=2.0),
        ShadowPolicy(0.5, max_seconds=-1.0),
    ],
)
async def test_a_policy_out_of_range_changes_nothing(tmp_path: Path, policy: ShadowPolicy) -> None:
    """It is refused with the field's name."""
    world = await start(tmp_path)
    load = await world.candidate()

    with pytest.raises(InputRefused) as error:
        world.commands.set_shadow(load.load_id, policy, "t1", 0)

    assert error.value.reason == "SHADOW_OUT_OF_RANGE"
    assert world.pair.shadow is None


async def test_a_slot_that_answers_callers_is_no_shadow(tmp_path: Path) -> None:
    """Neither the active one nor a warm previous one; a load that is not complete is none yet."""
    world = await start(tmp_path)
    active = world.active.load
    assert active is not None
    with pytest.raises(Conflict) as in_use:
        world.commands.set_shadow(active.load_id, ALL, "t1", 0)
    world.holds_loads = True
    load = await world.candidate()
    with pytest.raises(Conflict) as not_loaded:
        world.commands.set_shadow(load.load_id, ALL, "t1", 0)

    assert in_use.value.reason == "SLOT_IN_USE"
    assert not_loaded.value.reason == "NOT_LOADED"
