"""Rollouts on real processes: a shadow, a canary, and the bridge over the CPU where a card has room for one model."""

import time
from collections.abc import Iterator

import grpc
import pytest

from dev.harness.answers import question
from dev.harness.scripted_engine import CARD_VARIABLE, DEVICES_VARIABLE
from hotslot.updates.v1 import updates_pb2 as pb
from tests.stack.refusal import refusal_of
from tests.updater.edges.world import World

CARD, CPU = "cuda:0", "cpu"
FIRST = "v1.0.0"
LEASE = 5.0  # seconds
SHADOW = {"share": 1.0, "min_answers": 10, "max_seconds": 30}

pytestmark = [pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server that serves v1.0.0 from a card, and a hub; all revisions answer as v1.0.0 does."""
    folder = tmp_path_factory.mktemp("rollouts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DEVICES_VARIABLE, f"{CARD},{CPU}")
        patch.setenv(CARD_VARIABLE, str(folder / "card"))
        world = World(folder, observe={"window_seconds": 0.6})
        try:
            world.start()
            yield world
            world.close()
        except BaseException:
            world.destroy()
            raise


def begin(world: World, rollout: str, revision: str, *, fills_card: bool = False, **settings: object) -> None:
    """Publish a revision that is rolled out in a way."""
    window = {"window_seconds": settings.pop("window_seconds", 0.6)}
    world.configure(window, {"rollout": rollout, **settings})
    world.start_updater()
    world.publish(revision, salt=FIRST, fills_card=fills_card)


def events(world: World, revision: str) -> list[str]:
    """Names of the events of the last update to a revision, in order."""
    rows = world.operator.ListHistory(pb.ListHistoryRequest(page_size=20), timeout=20).updates
    update = next(row for row in rows if row.revision == revision)
    found = world.operator.GetUpdate(pb.GetUpdateRequest(update_id=update.update_id), timeout=20)
    return [event.name for event in found.events]


def places(world: World) -> dict[str, str]:
    """Which device each loaded revision is on."""
    return {slot.revision: slot.device for slot in world.control.status().slots if slot.load_id}


def route(world: World, key: str, version: str = "") -> str:
    """Which revision answers a caller with a routing key, or one that names a version."""
    metadata = (("x-routing-key", key), *((("x-model-version", version),) if version else ()))
    asked = question("there is a dog").request()
    return world.stack.entailment.Predict(asked, timeout=20, metadata=metadata).served_by.revision


def test_a_shadow_answers_copies_before_any_caller_meets_it(world: World) -> None:
    """Then its trial begins, and it is committed."""
    begin(world, "shadow", "v1.1.0", shadow=SHADOW)
    served = world.ask_until(lambda: world.status().stage == pb.UPDATE_STAGE_OBSERVING, "its trial begins")
    assert "v1.1.0" not in served or served[FIRST] > 10 * served["v1.1.0"]
    world.ask_until(lambda: world.serving() == "v1.1.0" and world.status().stage == pb.UPDATE_STAGE_IDLE, "kept")

    names = events(world, "v1.1.0")
    assert names.index("shadow_ended") < names.index("trial_began") < names.index("trial_kept")


def test_a_shadow_that_fails_copies_is_refused_and_no_caller_met_it(world: World) -> None:
    """Callers ask what it cannot answer, and all of them are answered by the active model."""
    before = world.serving()
    begin(world, "shadow", "v1.2.0", shadow=SHADOW)
    served = world.ask_until(lambda: world.is_quarantined("v1.2.0"), "it is refused", "a bird !error@v1.2.0")
    world.wait_rest()

    assert list(served) == [before]
    assert world.reason("v1.2.0") == "COPIES_FAILED"
    assert "trial_began" not in events(world, "v1.2.0")


def test_a_canary_gets_its_part_by_key_and_by_name_until_it_is_promoted(world: World) -> None:
    """A key stays on its side; an unknown version is an error that tells; a promotion gives it all requests."""
    before = world.serving()
    begin(world, "canary", "v1.3.0", steps=[25, 100], window_seconds=30.0)
    world.wait_stage("OBSERVING")
    keys = [f"key {number}" for number in range(80)]
    first = [route(world, key) for key in keys]
    assert first == [route(world, key) for key in keys]
    assert 8 <= first.count("v1.3.0") <= 34  # 20 expected, with a chance of less than 1 in 1,000 to be outside
    assert [route(world, "k", name) for name in ("canary", "stable", "v1.3.0", before)] == ["v1.3.0", before] * 2
    with pytest.raises(grpc.RpcError) as refused:
        route(world, "k", "v9.9.9")
    assert refusal_of(refused.value).reason == "VERSION_UNKNOWN"

    world.operator.Promote(pb.PromoteRequest(), timeout=20)
    world.wait(lambda: world.control.status().trial.percent == 100, "it gets all requests")
    assert {route(world, key) for key in keys} == {"v1.3.0"}
    world.operator.Rollback(pb.RollbackRequest(), timeout=20)
    world.wait(lambda: world.serving() == before, "it is taken back")
    world.wait_rest()
    assert {route(world, key) for key in keys} == {before}
    world.operator.Resume(pb.ResumeRequest(), timeout=20)  # a rollback by hand pauses updates


@pytest.mark.fault("K14")
def test_a_revision_that_does_not_fit_beside_the_active_one_crosses_the_bridge(world: World) -> None:
    """The active model answers from the CPU meanwhile, and returns to the card when the revision has failed."""
    before = world.serving()
    begin(world, "cpu_bridge", "v1.4.0", fills_card=True)
    bad = "a bird !nan@v1.4.0"
    served = world.ask_until(lambda: world.is_quarantined("v1.4.0"), "it is rolled back", bad)
    world.ask_until(lambda: not world.status().bridge_device, "the active model is back", bad)
    world.wait_alone()
    assert (list(served), places(world)) == ([before], {before: CARD})

    world.publish("v1.5.0", salt=FIRST, fills_card=True)
    seen: list[dict[str, str]] = []

    def is_committed() -> bool:
        seen.append(places(world))
        return world.serving() == "v1.5.0" and world.status().stage == pb.UPDATE_STAGE_IDLE

    world.ask_until(is_committed, "it is committed")
    world.wait_alone()
    assert {before: CPU, "v1.5.0": CARD} in seen
    assert places(world) == {"v1.5.0": CARD}


@pytest.mark.fault("K14")
def test_a_gap_in_which_the_updater_dies_ends_with_its_lease(world: World) -> None:
    """Calls are refused within their deadline until the model before answers again; a new updater tries once more."""
    before = world.serving()
    world.configure({"window_seconds": 0.6, "trial_lease_seconds": LEASE}, {"rollout": "unload_first"})
    updater = world.start_updater()
    world.publish("v1.6.0", salt=FIRST, fills_card=True, load_seconds=3.0)
    world.wait(lambda: not world.control.status().active_load_id, "the model is unloaded")
    killed = time.monotonic()
    updater.kill()
    answers: list[str] = []
    refused: set[str] = set()
    while not answers:
        try:
            asked = question("there is a cat").request()
            answers.append(world.stack.entailment.Predict(asked, timeout=20).served_by.revision)
        except grpc.RpcError as error:
            refused.add(refusal_of(error).reason)
        assert time.monotonic() - killed < LEASE + 60
    assert (answers, refused, updater.exit_code is None) == ([before], {"NOT_READY"}, False)
    world.stack.process.wait_event("gap_lease_expired", revision=before)

    world.restart_updater()
    world.wait(lambda: world.serving() == "v1.6.0", "the gap is opened once more")
    world.wait_alone()
    assert places(world) == {"v1.6.0": CARD}
