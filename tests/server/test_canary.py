"""A canary: a trial that gets a part of the requests."""

import uuid
from pathlib import Path

import pytest

from common.errors import Conflict, InputRefused, NotFound
from inference.server.model.route import locate
from inference.server.request import NO_TAGS, PendingRequest, RequestTags
from inference.server.scheduling.fair_queue import UNNAMED
from tests.server.simulator import World, ask


def send(world: World, tags: RequestTags = NO_TAGS, statement: str = "two red circles") -> PendingRequest:
    """Send a request with the metadata of its call."""
    return world.manager.requests.predict(ask(statement), world.clock.seconds + 30.0, UNNAMED, tags)


async def find_revision(world: World, tags: RequestTags, statement: str = "two red circles") -> str:
    """The revision that answers a request."""
    pending = send(world, tags, statement)
    await world.settle()
    return (await pending.outcome).served_by.revision


async def canary(world: World, percent: float) -> str:
    """Let r2 answer a part of the requests; returns its load id."""
    load = await world.candidate()
    world.commands.activate(load.load_id, 60.0, "t1", 0, percent=percent)
    await world.settle()
    return load.load_id


@pytest.mark.fault("T6")
async def test_a_higher_percentage_adds_keys_to_the_canary_and_takes_none_away(tmp_path: Path) -> None:
    """Shares are within chance at 5, 25, 50 and 100 percent, and a key that the canary has stays there."""
    world = await World(tmp_path).serving()
    load_id = await canary(world, 0)
    keys, before = [str(number) for number in range(400)], set[str]()

    for percent in (5, 25, 50, 100):
        world.commands.set_percent(load_id, percent, "t1", 0)
        served = {key: await find_revision(world, RequestTags("id", routing_key=key)) for key in keys}
        again = {key: await find_revision(world, RequestTags("other id", routing_key=key)) for key in keys[:50]}
        with_canary = {key for key, revision in served.items() if revision == "r2"}

        spread = 4 * (400 * percent / 100 * (1 - percent / 100)) ** 0.5  # four standard deviations
        assert abs(len(with_canary) - 4 * percent) <= spread
        assert before <= with_canary
        assert again == {key: served[key] for key in keys[:50]}
        before = with_canary


@pytest.mark.fault("T6")
async def test_callers_name_the_version_that_answers(tmp_path: Path) -> None:
    """By role, revision, digest, or the beginning of a digest."""
    world = await World(tmp_path).serving()
    await canary(world, 0)
    bundles = {revision: world.bundle(revision) for revision in ("r1", "r2")}
    names = ["", "canary", "stable", "r1", "r2"]
    for bundle in bundles.values():
        names += [bundle.bundle_digest, bundle.source_digest, bundle.source_digest.removeprefix("sha256:")]

    served = [await find_revision(world, RequestTags("id", version=name)) for name in names]

    assert served == ["r1", "r2", "r1", "r1", "r2", "r1", "r1", "r1", "r2", "r2", "r2"]


@pytest.mark.parametrize("begin", ["sha256:00000000", "00000000", "sha256:50000000"])
async def test_the_beginning_of_two_digests_is_the_stable_versions(tmp_path: Path, begin: str) -> None:
    """What is ambiguous brings no caller to a canary."""
    world = await World(tmp_path).serving()
    await canary(world, 0)
    assert await find_revision(world, RequestTags("id", version=begin)) == "r1"


@pytest.mark.fault("T6")
@pytest.mark.parametrize("version", ["canary", "r2", "sha256:", "sha256:0000000", "0000000", "Stable", "x" * 256])
async def test_a_version_that_no_slot_has_is_an_error_that_names_the_others(tmp_path: Path, version: str) -> None:
    """Nothing is guessed: a canary that is gone, a revision of yesterday, a mistake."""
    world = await World(tmp_path).serving()

    with pytest.raises(NotFound, match="there are stable, r1") as error:
        send(world, RequestTags("id", version=version))

    assert error.value.reason == "VERSION_UNKNOWN"
    assert world.manager.requests.waiting == 0


@pytest.mark.fault("T7")
@pytest.mark.parametrize("fault", ["!ENGINE_FAILED@r2", "!NOT_FINITE@r2", "!crash@r2", "!hang@r2"])
async def test_what_a_canary_fails_the_stable_version_answers(tmp_path: Path, fault: str) -> None:
    """Its callers notice nothing, even those that asked for it."""
    world = await World(tmp_path).serving()
    await canary(world, 50)
    pending = [send(world, RequestTags("id", version="canary"), fault), send(world, RequestTags("id"), fault)]
    await world.wait(8)

    assert {(await one.outcome).served_by.revision for one in pending} == {"r1"}


@pytest.mark.fault("T7")
async def test_a_canary_that_falls_behind_gets_no_more_than_it_computes(tmp_path: Path) -> None:
    """The stable version answers what would have to wait or be refused there."""
    world = World(tmp_path)
    world.call_rows = 1
    await world.serving()
    await canary(world, 100)
    for _ in range(3):
        await find_revision(world, RequestTags("id", version="canary"))
    load_id = world.active.load.load_id if world.active.load else ""
    world.commands.set_percent(load_id, 99, "t1", 0)
    world.holds_items = True
    world.manager.requests.intake.admission.capacity = type(world.manager.options.capacity)(1000, 1 << 20)
    sent = [send(world, RequestTags("id", version="canary")) for _ in range(100)]
    await world.settle()
    slots = {slot: sum(one.on_slot == slot for one in sent) for slot in ("a", "b")}
    world.holds_items = False
    for slot in ("a", "b"):
        world.runner(slot).compute()
    await world.wait(3)

    assert all(one.outcome.result() for one in sent)
    assert slots["a"] > 10
    assert slots["b"] > 10


@pytest.mark.fault("T7")
async def test_taking_a_canary_back_costs_no_answer(tmp_path: Path) -> None:
    """Requests that it holds are answered; later ones go to the stable version."""
    world = await World(tmp_path).serving()
    await canary(world, 50)
    world.holds_items = True
    pending = [send(world, RequestTags(uuid.uuid4().hex)) for _ in range(8)]
    await world.settle()
    stable = world.previous.load
    assert stable is not None

    world.commands.activate(stable.load_id, 0.0, "t2", 0)
    world.holds_items = False
    for slot in ("a", "b"):
        world.runner(slot).compute()
    await world.wait(1)

    assert len([await one.outcome for one in pending]) == 8
    assert await find_revision(world, RequestTags("id")) == "r1"
    assert world.pair.last_trial is not None
    assert world.pair.last_trial.outcome == "ROLLED_BACK"


async def test_a_canary_answers_all_while_the_stable_version_starts_again(tmp_path: Path) -> None:
    """A caller's answer outranks a percentage; only who names the stable version waits for it."""
    world = await World(tmp_path).serving()
    await canary(world, 0)
    world.holds_loads = True
    world.runner("a").end()
    await world.settle()

    assert await find_revision(world, RequestTags("id")) == "r2"
    waiting = send(world, RequestTags("id", version="stable"))
    await world.settle()
    assert not waiting.is_done

    world.holds_loads = False
    world.runner("a").end()
    await world.wait(3)
    assert (await waiting.outcome).served_by.revision == "r1"


async def test_a_warm_previous_version_answers_who_names_it(tmp_path: Path) -> None:
    """After a commit, too; what it fails, the active one answers."""
    world = await World(tmp_path).serving()
    load = await world.trial()
    world.commands.commit(load.load_id, "t1", 0)

    served = [await find_revision(world, RequestTags("id", version=name)) for name in ("r1", "r2", "stable")]
    helped = await find_revision(world, RequestTags("id", version="r1"), "!ENGINE_FAILED@r1")

    assert served == ["r1", "r2", "r2"]
    assert helped == "r2"


@pytest.mark.parametrize("percent", [-1.0, 100.1, float("nan"), float("inf")])
async def test_a_percentage_out_of_range_changes_nothing(tmp_path: Path, percent: float) -> None:
    """It is refused at activation and later."""
    world = await World(tmp_path).serving()
    load = await world.candidate()

    with pytest.raises(InputRefused) as error:
        world.commands.activate(load.load_id, 60.0, "t1", 0, percent=percent)
    assert world.pair.trial is None
    await world.trial()
    with pytest.raises(InputRefused):
        world.commands.set_percent(load.load_id, percent, "t1", 0)

    assert error.value.reason == "PERCENT_OUT_OF_RANGE"
    assert world.pair.trial is not None
    assert world.pair.trial.percent == 100.0


async def test_only_a_trial_beside_a_previous_slot_is_a_canary(tmp_path: Path) -> None:
    """A candidate is activated first; a first install has nobody beside it."""
    world = await World(tmp_path / "installed").serving()
    load = await world.candidate()
    first = World(tmp_path / "first")
    first.commands.boot()
    alone = await first.candidate()
    first.commands.activate(alone.load_id, 60.0, "t1", 0, percent=5)

    for commands, load_id in ((world.commands, load.load_id), (first.commands, alone.load_id)):
        with pytest.raises(Conflict) as error:
            commands.set_percent(load_id, 5, "t1", 0)
        assert error.value.reason == "NOT_ON_TRIAL"
    assert await find_revision(first, RequestTags("id")) == "r2"
    assert await find_revision(first, RequestTags("id", version="canary")) == "r2"


def test_places_of_keys_are_spread_evenly_and_never_reach_one() -> None:
    """Ten bins of 10,000 keys differ from 1,000 by chance only."""
    places = [locate("salt", str(number)) for number in range(10_000)]
    bins = [sum(number <= 10 * place < number + 1 for place in places) for number in range(10)]

    assert max(places) < 1.0
    assert max(abs(count - 1000) for count in bins) < 130
    assert locate("salt", "key") == locate("salt", "key") != locate("other salt", "key")
