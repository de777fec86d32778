"""One model's slots: who answers, who is run again, who is blamed."""

from pathlib import Path

import pytest

from common.errors import Conflict, DeadlineMissed, Failed, InputRefused, NotFound, NotReady, Overloaded
from inference.server.model.stats import StatsKey
from tests.server.simulator import World


def stats(world: World, revision: str) -> tuple[int, dict[str, int], int, int, int]:
    """Answered, failed, answered by previous, restarts, void restarts."""
    row = world.manager.stats.get(StatsKey(world.bundle(revision).bundle_digest, "cpu"))
    return row.answered, row.failed, row.answered_by_previous, row.restarts, row.void_restarts


async def test_boots_the_committed_bundle_and_stands_by(tmp_path: Path) -> None:
    """A server serves what is committed from slot a while slot b stands ready without a model."""
    world = await World(tmp_path).serving()

    answer = await world.ask().outcome

    assert (answer.served_by.revision, answer.served_by.slot) == ("r1", "a")
    assert world.roles.slots["b"].state.name == "READY"
    assert world.roles.is_ready()


async def test_without_a_committed_bundle_callers_are_told(tmp_path: Path) -> None:
    """With nothing committed a request is refused as not ready, and the server lives on."""
    world = World(tmp_path)

    assert "nothing is committed" in world.commands.boot()

    with pytest.raises(NotReady):
        world.ask()


async def test_death_of_the_active_runner_is_not_seen_by_callers(tmp_path: Path) -> None:
    """What a dead runner held is answered by the process that stood ready; meanwhile nothing is ready."""
    world = await World(tmp_path).serving()
    world.holds_batches = True
    held, waiting = world.ask("held"), [world.ask(f"waits {number}") for number in range(5)]
    world.holds_loads = True
    world.runner("a").end()
    await world.settle()
    assert not world.roles.is_ready()

    world.holds_batches = world.holds_loads = False
    world.runner("b").load(world.runner("b").loaded)  # type: ignore[arg-type]
    await world.settle()

    answers = [await pending.outcome for pending in (held, *waiting)]
    assert {answer.served_by.slot for answer in answers} == {"b"}
    assert world.roles.is_ready()
    assert world.roles.slots["a"].state.name == "READY"


async def test_suspects_are_run_again_alone(tmp_path: Path) -> None:
    """Each request that a dead runner held meets nobody else the second time."""
    world = await World(tmp_path).serving()
    world.holds_batches = True
    pending = []
    for number in range(6):
        pending.append(world.ask(f"item {number}"))
        await world.settle()
    world.runner("a").end()
    world.holds_batches = False
    await world.settle()

    assert [await pending.outcome for pending in pending]
    runs = [batch for batch in world.runner("b").seen if batch != ["self-test"]]
    assert sum(len(batch) for batch in runs) == len(pending)
    assert runs[-2:] == [["item 0"], ["item 1"]], "suspect_requests come last, and singly"


@pytest.mark.fault("K13")
async def test_poison_is_answered_once_and_the_others_are_answered(tmp_path: Path) -> None:
    """An input that kills any runner is found by running it alone; its neighbours get their answers."""
    world = await World(tmp_path).serving()
    world.holds_batches = True
    first = world.ask("first")
    neighbours = [world.ask(f"item {number}") for number in range(2)]
    poison = world.ask("!crash")
    world.holds_batches = False
    await world.wait(10)

    assert [await pending.outcome for pending in (first, *neighbours)]
    with pytest.raises(Failed) as error:
        await poison.outcome
    assert error.value.reason == "POISON_INPUT"
    assert poison.runs <= 3
    assert stats(world, "r1")[3] == 0, "a caller's input counts against no model"


@pytest.mark.fault("K8")
async def test_a_hung_runner_is_ended_and_its_requests_are_answered(tmp_path: Path) -> None:
    """A runner without progress within its batch's limit is killed; the request is run again elsewhere."""
    world = await World(tmp_path).serving()
    world.holds_batches = True
    pending = world.ask()
    await world.wait(1.9)
    assert not world.runners[0].has_ended
    world.holds_batches = False
    await world.wait(0.3)

    assert "limit" in world.runners[0].killed_by
    assert (await pending.outcome).served_by.slot == "b"


async def test_respawn_pauses_grow_and_end_in_giving_up(tmp_path: Path) -> None:
    """A bundle that no longer loads is tried again ever more slowly, then liveness fails."""
    world = await World(tmp_path).serving()
    folder = next((tmp_path / "bundles").iterdir()).name
    world.refused[folder] = "LOAD_FAILED"
    world.runner("a").end()
    await world.wait(1)
    early = len(world.runners)
    await world.wait(60)

    assert early <= 6
    assert len(world.runners) <= 24
    assert world.manager.recovery.has_given_up


async def test_a_candidate_meets_no_caller_until_it_is_activated(tmp_path: Path) -> None:
    """Loading a second revision changes nothing for callers; activating it does."""
    world = await World(tmp_path).serving()
    load = await world.candidate()
    assert (await world.ask().outcome).served_by.revision == "r1"

    world.commands.activate(load.load_id, 60.0, "t1", world.roles.generation)

    assert (await world.ask().outcome).served_by.revision == "r2"
    assert world.runner("b").serving is True


async def test_requests_in_flight_finish_on_the_slot_that_took_them(tmp_path: Path) -> None:
    """A swap moves new requests only; what the old slot holds is answered by it, and it retires after."""
    world = await World(tmp_path).serving()
    load = await world.candidate()
    world.holds_batches = True
    old = world.ask()
    await world.settle()
    old_load = world.active.load
    assert old_load is not None
    world.commands.activate(load.load_id, 60.0, "t1", 0)
    world.commands.commit(load.load_id, "t1", 0)
    world.commands.retire(old_load.load_id, 0)
    await world.settle()
    assert not world.runners[0].has_ended, "it still holds a request"

    world.runner("a").answer(world.runner("a").batches[0])
    await world.settle()

    assert (await old.outcome).served_by.revision == "r1"
    assert world.runners[0].has_ended
    assert world.roles.slots["a"].state.name == "READY"


@pytest.mark.parametrize("fault", ["NOT_FINITE", "ENGINE_FAILED", "OUT_OF_MEMORY"])
async def test_what_a_trial_fails_the_previous_slot_answers(tmp_path: Path, fault: str) -> None:
    """A trial costs no answer: its failure is counted against it, the caller gets the previous revision's answer."""
    world = await World(tmp_path).serving()
    await world.trial()

    answer = await world.ask(f"!{fault}@r2").outcome

    assert answer.served_by.revision == "r1"
    assert stats(world, "r2")[1:3] == ({fault: 1}, 1)


@pytest.mark.fault("K7")
@pytest.mark.parametrize("fault", ["NOT_FINITE", "ENGINE_FAILED"])
async def test_what_a_trial_fails_waits_for_a_previous_slot_that_is_loaded_again(tmp_path: Path, fault: str) -> None:
    """The previous runner has died in the trial: whoever the trial fails meanwhile gets its answer when it is back."""
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


async def test_what_both_fail_blames_nobody(tmp_path: Path) -> None:
    """An input that the previous slot fails as well is the caller's, and counts against no revision."""
    world = await World(tmp_path).serving()
    await world.trial()

    with pytest.raises(Failed):
        await world.ask("!ENGINE_FAILED").outcome

    assert stats(world, "r2")[1] == {}
    assert stats(world, "r1")[1] == {}


@pytest.mark.fault("K15")
async def test_a_trial_that_hangs_is_overtaken_in_time(tmp_path: Path) -> None:
    """With a short deadline the previous slot takes over early enough to answer."""
    world = await World(tmp_path).serving()
    await world.trial()

    pending = world.ask("!hang@r2", seconds=1.0)
    await world.wait(0.99)

    assert (await pending.outcome).served_by.revision == "r1"
    assert stats(world, "r2")[1] == {"TOO_SLOW": 1}


async def test_without_room_for_both_the_previous_slot_answers_uncounted(tmp_path: Path) -> None:
    """A deadline that leaves no time for a second try is not risked on a trial."""
    world = await World(tmp_path).serving()
    await world.trial()

    answer = await world.ask("!ENGINE_FAILED@r2", seconds=0.015).outcome

    assert answer.served_by.revision == "r1"
    assert stats(world, "r2")[1] == {}


@pytest.mark.fault("K7")
async def test_death_of_a_trial_costs_no_answer_and_counts_once(tmp_path: Path) -> None:
    """All that a dead trial held is answered by the previous slot; one death is one event."""
    world = await World(tmp_path).serving()
    await world.trial()
    world.holds_batches = True
    pending = [world.ask(f"item {number}") for number in range(4)]
    await world.settle()
    world.holds_batches = False
    world.runner("b").end()
    await world.wait(1)

    assert {(await pending.outcome).served_by.revision for pending in pending} == {"r1"}
    assert stats(world, "r2")[3] == 1
    assert world.active.is_loaded, "the trial goes on"


@pytest.mark.fault("K13")
async def test_poison_in_a_trial_does_not_blame_the_revision(tmp_path: Path) -> None:
    """If the input kills the previous slot too, the trial's death is void."""
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
async def test_a_trial_whose_term_runs_out_is_taken_back(tmp_path: Path) -> None:
    """When nobody extends the trial lease, the previous slot answers again by itself."""
    world = await World(tmp_path).serving()
    load = await world.trial(term=5.0)
    await world.wait(4)
    world.commands.activate(load.load_id, 5.0, "t1", 0)
    await world.wait(4)
    assert (await world.ask().outcome).served_by.revision == "r2"

    await world.wait(2)

    assert (await world.ask().outcome).served_by.revision == "r1"
    assert world.roles.last_trial is not None
    assert world.roles.last_trial.outcome == "LEASE_EXPIRED"


async def test_a_trial_is_rolled_back_warm(tmp_path: Path) -> None:
    """Activating the previous slot ends the trial at once; the old generation is refused."""
    world = await World(tmp_path).serving()
    await world.trial()
    previous = world.roles.previous
    assert previous is not None
    assert previous.load is not None
    seen = world.roles.generation

    with pytest.raises(Conflict):
        world.commands.activate(previous.load.load_id, 0.0, "t1", seen - 1)
    world.commands.activate(previous.load.load_id, 0.0, "t1", seen)

    assert (await world.ask().outcome).served_by.revision == "r1"


async def test_a_load_is_idempotent_by_digest_and_device(tmp_path: Path) -> None:
    """Asked again for the same bundle and device it is the same load; for another, there is no slot."""
    world = await World(tmp_path).serving()
    load = await world.candidate("r2")

    again = await world.candidate("r2")

    assert again is load
    with pytest.raises(Conflict) as error:
        await world.candidate("r3")
    assert error.value.reason == "NO_FREE_SLOT"


async def test_a_candidate_that_fails_to_load_frees_its_slot(tmp_path: Path) -> None:
    """A refused load is told by its reason, and the slot stands ready again."""
    world = await World(tmp_path).serving()
    digest = world.bundle("r2").bundle_digest
    world.refused[digest.replace(":", "-")] = "BUNDLE_BROKEN"

    load = await world.candidate("r2")

    assert load.failure is not None
    assert load.failure.reason == "BUNDLE_BROKEN"
    assert world.roles.slots["b"].state.name == "READY"
    assert (await world.ask().outcome).served_by.revision == "r1"


@pytest.mark.fault("S10")
async def test_only_a_loaded_slot_can_be_activated(tmp_path: Path) -> None:
    """Activating a load that no slot holds changes nothing."""
    world = await World(tmp_path).serving()

    with pytest.raises(NotFound):
        world.commands.activate("nothing", 60.0, "t1", 0)
    load = await world.candidate()
    with pytest.raises(InputRefused) as error:
        world.commands.activate(load.load_id, 0.0, "t1", 0)
    assert error.value.reason == "LEASE_OUT_OF_RANGE"
    assert (await world.ask().outcome).served_by.revision == "r1"


async def test_neither_the_active_nor_the_net_of_a_trial_can_be_retired(tmp_path: Path) -> None:
    """A slot that callers may need is not emptied."""
    world = await World(tmp_path).serving()
    await world.trial()

    for slot in world.roles.slots.values():
        assert slot.load is not None
        with pytest.raises(Conflict) as error:
            world.commands.retire(slot.load.load_id, 0)
        assert error.value.reason == "SLOT_IN_USE"


async def test_a_full_entrance_refuses_and_recovers(tmp_path: Path) -> None:
    """Beyond the limit a request is refused at once with a time to come back; a place is freed by an answer."""
    world = await World(tmp_path).serving()
    world.holds_batches = True
    pending = [world.ask(f"item {number}") for number in range(8)]
    with pytest.raises(Overloaded) as error:
        world.ask()
    assert error.value.retry_after_seconds

    world.holds_batches = False
    await world.settle()
    for batch in list(world.runner("a").batches):
        world.runner("a").answer(batch)
    await world.settle()

    assert [await pending.outcome for pending in pending]
    assert world.manager.waiting == 0


async def test_an_expired_request_costs_the_runner_nothing(tmp_path: Path) -> None:
    """What waits past its deadline is answered so and never sent."""
    world = await World(tmp_path).serving()
    world.holds_batches = True
    busy = []
    for number in range(2):
        busy.append(world.ask(f"busy {number}"))
        await world.settle()
    late = world.ask("late", seconds=1.0)
    await world.wait(1.1)

    with pytest.raises(DeadlineMissed):
        await late.outcome
    assert all("late" not in batch for batch in world.runner("a").seen)
    assert not any(pending.is_done for pending in busy)


@pytest.mark.fault("I14")
async def test_a_caller_that_hangs_up_frees_its_place_and_leases(tmp_path: Path) -> None:
    """Nothing is kept for a caller that is gone; the batch keeps its own lease."""
    world = await World(tmp_path).serving()
    world.holds_batches = True
    pending = world.ask()
    await world.settle()

    world.manager.cancel_request(pending)

    load = world.active.load
    assert load is not None
    assert world.manager.waiting == 0
    assert world.runner("a").cancelled == [pending.id]
    assert load.leases == 1, "the batch still reads these weights"


async def test_a_draining_server_takes_nothing_new(tmp_path: Path) -> None:
    """While it drains a request is sent elsewhere."""
    world = await World(tmp_path).serving()
    world.drain.begun.set()

    with pytest.raises(NotReady) as error:
        world.ask()
    assert error.value.reason == "DRAINING"


async def test_readiness_falls_with_a_failed_self_test(tmp_path: Path) -> None:
    """Without traffic a self-test goes the real way; when it fails, nothing is ready any more."""
    world = await World(tmp_path).serving()
    assert world.roles.is_ready()
    world.runner("a").always = "ENGINE_FAILED"

    await world.wait(11)

    assert not world.roles.is_ready()
