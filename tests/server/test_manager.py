"""One model's slots: routing, retries, failure attribution."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import Conflict, DeadlineMissed, Failed, InputRefused, NotFound, NotReady, Overloaded
from inference.server.events import Event, SlotChanged
from inference.server.model.policy import BRIEF_DEATHS_SECONDS, BRIEF_SECONDS, RespawnRules, list_brief_deaths
from inference.server.model.stats import StatsKey
from inference.server.model.transitions import STANDBY_DELAY_SECONDS
from tests.server.simulator import World


def stats(world: World, revision: str) -> tuple[int, dict[str, int], int, int, int]:
    """Answered, failed, answered by previous, deaths, void deaths."""
    row = world.manager.stats.get(StatsKey(world.bundle(revision).bundle_digest, "cpu"))
    return row.answered, row.failed, row.answered_by_previous, row.deaths, row.void_deaths


async def test_boot_loads_the_committed_bundle_and_keeps_a_standby(tmp_path: Path) -> None:
    """Slot a loads the committed bundle; slot b holds an idle process."""
    world = await World(tmp_path).serving()

    answer = await world.ask().outcome

    assert (answer.served_by.revision, answer.served_by.slot) == ("r1", "a")
    assert world.pair["b"].state.name == "READY"
    assert world.pair.is_ready()


async def test_the_standby_process_starts_when_the_model_answers(tmp_path: Path) -> None:
    """Its imports would take the CPUs that the load needs; a load that takes long does not keep it away."""
    world = World(tmp_path)
    world.holds_loads = True
    await world.serving()
    before = world.pair["b"].state.name
    world.clock.seconds += STANDBY_DELAY_SECONDS
    world.manager.tick()
    await world.settle()

    assert (before, world.pair["a"].state.name) == ("EMPTY", "LOADING")
    assert world.pair["b"].state.name == "READY"


async def test_without_a_committed_bundle_requests_are_not_ready(tmp_path: Path) -> None:
    """Requests fail with NOT_READY."""
    world = World(tmp_path)

    assert "nothing is committed" in world.commands.boot()

    with pytest.raises(NotReady):
        world.ask()


async def test_the_death_of_the_active_runner_fails_no_request(tmp_path: Path) -> None:
    """The standby process answers its requests; until then the model is not ready."""
    world = await World(tmp_path).serving()
    world.holds_items = True
    held, waiting = world.ask("held"), [world.ask(f"waits {number}") for number in range(5)]
    world.holds_loads = True
    world.runner("a").end()
    await world.settle()
    assert not world.pair.is_ready()

    world.holds_items = world.holds_loads = False
    world.runner("b").load(world.runner("b").loaded)  # type: ignore[arg-type]
    await world.settle()

    answers = [await pending.outcome for pending in (held, *waiting)]
    assert {answer.served_by.slot for answer in answers} == {"b"}
    assert world.pair.is_ready()
    assert world.pair["a"].state.name == "READY"


async def test_what_the_device_computed_at_the_end_is_run_again_alone(tmp_path: Path) -> None:
    """Each is computed while the runner holds nothing else."""
    world = World(tmp_path)
    world.call_rows = 1  # so that the runner holds two of them
    await world.serving()
    world.holds_items = True
    pending = []
    for number in range(6):
        pending.append(world.ask(f"item {number}"))
        await world.settle()
    world.runner("a").end()
    world.holds_items = False
    await world.settle()

    assert [await pending.outcome for pending in pending]
    runs = [call for call in world.runner("b").calls if call != ["self-test"]]
    assert sum(len(call) for call in runs) == len(pending)
    assert runs[-1] == ["item 0"], "the suspect comes last, and alone"
    assert ["item 1"] in runs[:2], "what the runner held and did not compute comes before what waited"


@pytest.mark.fault("K13")
async def test_a_poison_input_fails_and_the_others_are_answered(tmp_path: Path) -> None:
    """An input that ends two runners fails as POISON_INPUT; the other requests get their answers."""
    world = await World(tmp_path).serving()
    world.holds_items = True
    first = world.ask("first")
    neighbours = [world.ask(f"item {number}") for number in range(2)]
    poison = world.ask("!crash")
    world.holds_items = False
    await world.wait(10)

    assert [await pending.outcome for pending in (first, *neighbours)]
    with pytest.raises(Failed) as error:
        await poison.outcome
    assert error.value.reason == "POISON_INPUT"
    assert poison.deaths == 2
    assert stats(world, "r1")[3] == 0, "a caller's input counts against no model"


async def test_restart_pauses_grow_until_the_model_has_given_up(tmp_path: Path) -> None:
    """A bundle that no longer loads is retried with growing pauses."""
    world = await World(tmp_path).serving()
    folder = next((tmp_path / "bundles").iterdir()).name
    world.refused[folder] = "LOAD_FAILED"
    world.runner("a").end()
    await world.wait(1)
    early = len(world.runners)
    await world.wait(60)

    assert early <= 6
    assert len(world.runners) <= 24
    assert world.manager.has_given_up


async def test_a_model_that_answered_for_longer_than_its_restart_takes_is_restarted_without_a_pause(
    tmp_path: Path,
) -> None:
    """Its deaths are no crash loop: no pause is longer than the time for which callers had answers."""
    world = await World(tmp_path, standby=False).serving()
    for _ in range(6):
        await world.wait(2)
        world.runner("a").end()
        await world.settle()
    in_row = world.pair["a"].deaths_in_row
    world.runner("a").end()
    await world.settle()

    assert in_row == 1
    assert world.pair["a"].respawn_at is not None, "it answered for no second: the second death in a row"


async def test_a_model_that_always_dies_soon_after_its_load_has_given_up(tmp_path: Path) -> None:
    """It has no pauses, as it answers between the deaths; after a steady minute it has recovered."""
    world = await World(tmp_path, standby=False).serving()
    given_up = []
    for _ in range(5):
        await world.wait(2)
        world.runner("a").end()
        await world.settle()
        given_up.append(world.manager.has_given_up)
    in_row = world.pair["a"].deaths_in_row
    await world.wait(61)

    assert (in_row, given_up) == (1, [False] * 4 + [True])
    assert not world.manager.has_given_up


async def test_deaths_after_longer_service_or_long_ago_are_not_given_up(tmp_path: Path) -> None:
    """One in two minutes, or after ten seconds of answers, keeps the model in service."""
    world = await World(tmp_path, standby=False).serving()
    for _ in range(6):
        await world.wait(BRIEF_SECONDS + 1)
        world.runner("a").end()
        await world.settle()
    slot = replace(world.pair["a"], load=None, brief_deaths=(0.0, 1.0, BRIEF_DEATHS_SECONDS))
    rules = RespawnRules(first_seconds=1.0, cap_seconds=8.0, give_up=5)

    assert not world.manager.has_given_up
    assert list_brief_deaths(slot, BRIEF_DEATHS_SECONDS + 1, rules) == (
        BRIEF_DEATHS_SECONDS,
        BRIEF_DEATHS_SECONDS + 1,
    )


async def test_a_candidate_gets_no_requests_until_it_is_activated(tmp_path: Path) -> None:
    """Only the activation changes the answering revision."""
    world = await World(tmp_path).serving()
    load = await world.candidate()
    assert (await world.ask().outcome).served_by.revision == "r1"

    world.commands.activate(load.load_id, 60.0, "t1", world.pair.generation)

    assert (await world.ask().outcome).served_by.revision == "r2"
    assert world.runner("b").serving is True


async def test_a_commit_holds_although_the_pointer_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial has ended; what a restart loads is shown as before."""
    world = await World(tmp_path).serving()
    load, before = await world.trial(), world.manager.committed

    def fail(_: Path) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", fail)
        world.commands.commit(load.load_id, "t2", 0)

    assert world.pair.trial is None
    assert world.manager.committed == before


async def test_requests_in_flight_finish_on_the_slot_that_took_them(tmp_path: Path) -> None:
    """A swap affects new requests only; the old slot retires after its last answer."""
    world = await World(tmp_path).serving()
    load = await world.candidate()
    world.holds_items = True
    old = world.ask()
    await world.settle()
    old_load = world.active.load
    assert old_load is not None
    world.commands.activate(load.load_id, 60.0, "t1", 0)
    world.commands.commit(load.load_id, "t1", 0)
    world.commands.retire(old_load.load_id, 0)
    await world.settle()
    assert not world.runners[0].has_ended, "it still holds a request"

    world.runner("a").answer(*world.runner("a").items)
    await world.settle()

    assert (await old.outcome).served_by.revision == "r1"
    assert world.runners[0].has_ended
    assert world.pair["a"].state.name == "READY"


async def test_a_trial_does_not_wait_for_the_pause_of_the_previous_slot(tmp_path: Path) -> None:
    """A runner that has died several times pauses before its next start; when a trial begins it is started at once."""
    world = await World(tmp_path).serving()
    load = await world.candidate()
    for _ in range(2):  # the second before it has answered anything
        world.runner("a").end()
        await world.settle()
    assert not world.pair["a"].has_process

    world.commands.activate(load.load_id, 60.0, "t1", world.pair.generation)
    await world.wait(0.2)

    assert world.pair["a"].is_loaded


async def test_a_restarted_slot_retires_after_its_last_request(tmp_path: Path) -> None:
    """Retried requests hold leases on the new process; none of them moves to another revision."""
    world = await World(tmp_path).serving()
    load = await world.candidate()
    world.holds_items = True
    pending = [world.ask(f"item {number}") for number in range(3)]
    await world.settle()
    world.runner("a").end()
    await world.settle()
    old_load = world.active.load
    assert old_load is not None
    world.commands.activate(load.load_id, 60.0, "t1", 0)
    world.commands.commit(load.load_id, "t1", 0)
    world.commands.retire(old_load.load_id, 0)

    runner = world.runner("a")
    for _ in range(5):
        runner.answer(*runner.items)
        await world.settle()

    assert [request.is_done and request.outcome.result().served_by.revision for request in pending] == ["r1"] * 3
    assert runner.has_ended


@pytest.mark.parametrize("fault", ["NOT_FINITE", "ENGINE_FAILED", "OUT_OF_MEMORY"])
async def test_the_previous_slot_answers_what_a_trial_fails(tmp_path: Path, fault: str) -> None:
    """The failure is counted against the trial; the caller gets the previous revision's answer."""
    world = await World(tmp_path).serving()
    await world.trial()

    answer = await world.ask(f"!{fault}@r2").outcome

    assert answer.served_by.revision == "r1"
    assert stats(world, "r2")[1:3] == ({fault: 1}, 1)


@pytest.mark.fault("K7")
@pytest.mark.parametrize("fault", ["NOT_FINITE", "ENGINE_FAILED"])
async def test_requests_that_a_trial_fails_wait_for_the_previous_slot_to_reload(tmp_path: Path, fault: str) -> None:
    """They are answered when the previous slot is loaded again."""
    world = await World(tmp_path).serving()
    await world.trial()
    world.holds_loads = True
    world.runner("a").end()
    await world.wait(1)

    failed, fine = world.ask(f"!{fault}@r2"), world.ask("fine")
    await world.wait(1)
    assert (await fine.outcome).served_by.revision == "r2"
    assert not failed.is_done

    world.holds_loads = False
    world.runner("a").load(world.runner("a").loaded)  # type: ignore[arg-type]
    await world.wait(1)
    assert (await failed.outcome).served_by.revision == "r1"


async def test_a_request_that_both_slots_fail_is_not_counted(tmp_path: Path) -> None:
    """The input is at fault, not a revision."""
    world = await World(tmp_path).serving()
    await world.trial()

    with pytest.raises(Failed):
        await world.ask("!ENGINE_FAILED").outcome

    assert stats(world, "r2")[1] == {}
    assert stats(world, "r1")[1] == {}


@pytest.mark.fault("K15")
@pytest.mark.parametrize("deadline", [0.9, 2.0])
async def test_the_previous_slot_takes_over_from_a_hung_trial_within_the_deadline(
    tmp_path: Path, deadline: float
) -> None:
    """Also with a short deadline."""
    world = await World(tmp_path).serving()
    await world.trial()

    pending = world.ask("!hang@r2", seconds=deadline)
    await world.wait(deadline - 0.1)

    assert pending.is_done
    assert (await pending.outcome).served_by.revision == "r1"
    assert stats(world, "r2")[1] == {"TOO_SLOW": 1}


async def test_a_short_deadline_goes_to_the_previous_slot_uncounted(tmp_path: Path) -> None:
    """If the deadline is too short for both slots, the trial does not get the request."""
    world = await World(tmp_path).serving()
    await world.trial()

    answer = await world.ask("!ENGINE_FAILED@r2", seconds=0.015).outcome

    assert answer.served_by.revision == "r1"
    assert stats(world, "r2")[1] == {}


@pytest.mark.fault("K7")
async def test_the_death_of_a_trial_loses_no_request_and_counts_once(tmp_path: Path) -> None:
    """The previous slot answers all its requests."""
    world = await World(tmp_path).serving()
    await world.trial()
    world.holds_items = True
    pending = [world.ask(f"item {number}") for number in range(4)]
    await world.settle()
    world.holds_items = False
    world.runner("b").end()
    await world.wait(1)

    assert {(await pending.outcome).served_by.revision for pending in pending} == {"r1"}
    assert stats(world, "r2")[3] == 1
    assert world.active.is_loaded, "the trial goes on"


@pytest.mark.fault("K13")
async def test_a_poison_input_is_not_counted_against_a_trial(tmp_path: Path) -> None:
    """If the input also ends the previous slot's runner, both deaths are void."""
    world = await World(tmp_path).serving()
    await world.trial()

    poison = world.ask("!crash")
    await world.wait(5)

    with pytest.raises(Failed) as error:
        await poison.outcome
    assert error.value.reason == "POISON_INPUT"
    assert stats(world, "r2")[3:] == (0, 1)
    assert stats(world, "r1")[3:] == (0, 1)
    assert (await world.ask().outcome).served_by.revision == "r2"


@pytest.mark.fault("K17")
async def test_a_trial_whose_lease_expires_is_rolled_back(tmp_path: Path) -> None:
    """The previous slot becomes active again."""
    world = await World(tmp_path).serving()
    load = await world.trial(term=5.0)
    await world.wait(4)
    world.commands.activate(load.load_id, 5.0, "t1", 0)
    await world.wait(4)
    assert (await world.ask().outcome).served_by.revision == "r2"

    await world.wait(2)

    assert (await world.ask().outcome).served_by.revision == "r1"
    assert world.pair.last_trial is not None
    assert world.pair.last_trial.outcome == "LEASE_EXPIRED"


async def test_activating_the_previous_slot_rolls_back_the_trial(tmp_path: Path) -> None:
    """At once; the old generation is refused afterwards."""
    world = await World(tmp_path).serving()
    await world.trial()
    previous = world.previous
    assert previous.load is not None
    seen = world.pair.generation

    with pytest.raises(Conflict):
        world.commands.activate(previous.load.load_id, 0.0, "t1", seen - 1)
    world.commands.activate(previous.load.load_id, 0.0, "t1", seen)

    assert (await world.ask().outcome).served_by.revision == "r1"


async def test_a_load_is_idempotent_by_digest_and_device(tmp_path: Path) -> None:
    """The same bundle and device return the same load; another bundle finds no slot."""
    world = await World(tmp_path).serving()
    load = await world.candidate("r2")

    again = await world.candidate("r2")

    assert again is load
    with pytest.raises(Conflict) as error:
        await world.candidate("r3")
    assert error.value.reason == "NO_FREE_SLOT"


async def test_a_candidate_that_fails_to_load_frees_its_slot(tmp_path: Path) -> None:
    """The load reports the reason, and the slot becomes a standby again."""
    world = await World(tmp_path).serving()
    digest = world.bundle("r2").bundle_digest
    world.refused[digest.replace(":", "-")] = "BUNDLE_BROKEN"

    load = await world.candidate("r2")

    assert load.failure is not None
    assert load.failure.reason == "BUNDLE_BROKEN"
    assert world.pair["b"].state.name == "READY"
    assert (await world.ask().outcome).served_by.revision == "r1"


@pytest.mark.fault("S10")
async def test_only_a_loaded_slot_can_be_activated(tmp_path: Path) -> None:
    """An unknown load id changes nothing."""
    world = await World(tmp_path).serving()

    with pytest.raises(NotFound):
        world.commands.activate("nothing", 60.0, "t1", 0)
    load = await world.candidate()
    with pytest.raises(InputRefused) as error:
        world.commands.activate(load.load_id, 0.0, "t1", 0)
    assert error.value.reason == "LEASE_OUT_OF_RANGE"
    assert (await world.ask().outcome).served_by.revision == "r1"


async def test_neither_the_active_nor_the_previous_slot_of_a_trial_can_be_retired(tmp_path: Path) -> None:
    """Both are refused with SLOT_IN_USE."""
    world = await World(tmp_path).serving()
    await world.trial()

    for slot in world.pair:
        assert slot.load is not None
        with pytest.raises(Conflict) as error:
            world.commands.retire(slot.load.load_id, 0)
        assert error.value.reason == "SLOT_IN_USE"


async def test_admission_refuses_over_the_limit_and_recovers(tmp_path: Path) -> None:
    """A request over the limit is refused with a retry delay; an answer frees its place."""
    world = await World(tmp_path).serving()
    world.holds_items = True
    pending = [world.ask(f"item {number}") for number in range(8)]
    with pytest.raises(Overloaded) as error:
        world.ask()
    assert error.value.retry_after_seconds

    world.holds_items = False
    await world.settle()
    world.runner("a").compute()
    await world.settle()

    assert [await pending.outcome for pending in pending]
    assert world.manager.requests.waiting == 0


async def test_an_expired_request_is_not_sent_to_the_runner(tmp_path: Path) -> None:
    """It fails when its deadline passes in the queue."""
    world = World(tmp_path)
    world.call_rows = 1
    await world.serving()
    world.holds_items = True
    busy = []
    for number in range(2):
        busy.append(world.ask(f"busy {number}"))
        await world.settle()
    late = world.ask("late", seconds=1.0)
    await world.wait(1.1)

    with pytest.raises(DeadlineMissed):
        await late.outcome
    assert "late" not in world.runner("a").received
    assert not any(pending.is_done for pending in busy)


@pytest.mark.fault("I14")
async def test_a_cancelled_request_releases_its_admission_and_leases(tmp_path: Path) -> None:
    """The item in the runner keeps a lease of its own."""
    world = await World(tmp_path).serving()
    world.holds_items = True
    pending = world.ask()
    await world.settle()

    world.manager.requests.cancel(pending)

    assert world.manager.requests.waiting == 0
    assert world.runner("a").cancelled == [item.item_id for item in world.runner("a").items]
    assert world.manager.machine.slots["a"].is_leased, "the device still reads these weights"


async def test_a_draining_server_refuses_requests(tmp_path: Path) -> None:
    """With a retry delay."""
    world = await World(tmp_path).serving()
    world.drain.begin()

    with pytest.raises(NotReady) as error:
        world.ask()
    assert error.value.reason == "DRAINING"


async def test_readiness_falls_with_a_failed_self_test(tmp_path: Path) -> None:
    """Without traffic a self-test runs; if it fails, the model is not ready."""
    world = await World(tmp_path).serving()
    assert world.pair.is_ready()
    world.runner("a").always = "ENGINE_FAILED"

    await world.wait(11)

    assert not world.pair.is_ready()


async def test_a_trial_that_fails_its_self_tests_leaves_the_model_ready(tmp_path: Path) -> None:
    """The previous slot answers what the trial fails; when neither passes, the model is not ready."""
    world = await World(tmp_path).serving()
    await world.trial(term=600.0)
    world.runner("b").always = "ENGINE_FAILED"
    await world.wait(11)
    assert world.pair.answering_slot() == world.pair["b"]

    answered = await world.ask().outcome

    assert (answered.served_by.slot, world.pair["b"].is_proven, world.pair.is_ready()) == ("a", False, True)


async def test_an_effect_that_raises_does_not_keep_back_the_others(tmp_path: Path) -> None:
    """The command fails, but the pair has changed: the process gets its priority, and the new revision answers."""
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        if getattr(event, "change", "") == "slot_activated":
            raise OSError("the log is full")

    world = await World(tmp_path, emit=emit).serving()
    load = await world.candidate()

    with pytest.raises(OSError, match="full"):
        world.commands.activate(load.load_id, 60.0, "t1", 0)

    assert (await world.ask().outcome).served_by.revision == "r2"
    assert world.runner("b").serving is True
    assert [event.change for event in events if isinstance(event, SlotChanged)][-2:] == ["role_changed"] * 2
