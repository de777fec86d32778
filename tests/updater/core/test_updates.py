"""The way of an update: proven, tried, kept or taken back; and what crashes and operators do to it."""

import pytest

from tests.updater.core.world import RULES, World
from tests.updater.simulators import Quality, bundle_of, source_of
from updater.actions import Wish, WishKind
from updater.pipeline.wishes import refusal
from updater.ports import GoldenFacts
from updater.record import HeldFor, ModelRecord, Outcome, Stage
from updater.record_json import RecordUnreadable, from_json, to_json
from updater.rules import Mode, ObserveRules

NO_GOLDEN = GoldenFacts("")


def held_for(world: World) -> HeldFor | None:
    """Why it is held."""
    assert Stage.HELD is world.stage, world.told()[-6:]
    ending = world.record.under_way.ending
    return None if ending is None else ending.held_for


def digest(world: World, revision: str) -> str:
    """Source digest of what the hub has under a name."""
    return source_of(world.hub.contents[revision])


def test_a_good_revision_is_committed_without_a_lost_call(world: World) -> None:
    """The whole way, and the slot of the one before is given back after its warm time."""
    world.publish("1.1.0")
    world.settle()

    assert "1.1.0" == world.committed == world.serving == world.record.floor
    assert world.record.previous is not None
    assert "1.0.0" == world.record.previous.revision
    assert [True, False] == [held is None for held in world.front.slots]
    assert 0 == world.front.lost


@pytest.mark.fault("S7")
def test_what_fails_only_callers_is_taken_back_and_no_call_is_lost(world: World) -> None:
    """Right on golden items, NaN on live ones."""
    world.publish("1.1.0", Quality(fails_callers="NOT_FINITE"))
    world.settle()

    assert "1.0.0" == world.committed == world.serving
    assert {"1.1.0"} == world.quarantined
    assert [Outcome.ROLLED_BACK] == world.outcomes("1.1.0")
    assert 0 == world.front.lost


@pytest.mark.fault("S6")
def test_what_is_wrong_on_golden_answers_never_meets_a_caller(world: World) -> None:
    """Refused with the numbers and the first differing items."""
    world.publish("1.1.0", Quality(right=4))
    world.settle()

    assert [Outcome.REFUSED] == world.outcomes("1.1.0")
    evidence = world.last("candidate_refused").evidence
    assert evidence is not None
    assert evidence.differing
    assert bundle_of(world.hub.contents["1.1.0"]) not in world.front.activated


@pytest.mark.fault("C4")
def test_content_that_does_not_match_is_fetched_once_more_then_refused(world: World) -> None:
    """A flipped bit on the way is mended, one at the source is not."""
    world.publish("1.1.0", Quality(verifies=False))
    world.settle()

    assert 1 == world.told().count("content_mismatched")
    assert {"1.1.0"} == world.quarantined


@pytest.mark.fault("S4")
def test_what_does_not_fit_is_held_without_blame(world: World) -> None:
    """And a newer revision takes its place."""
    world.publish("1.1.0", Quality(loads="OUT_OF_MEMORY"))
    world.settle()
    assert HeldFor.DOES_NOT_FIT is held_for(world)
    assert set() == world.quarantined

    world.publish("1.2.0")
    world.settle()
    assert "1.2.0" == world.committed


def test_a_trial_out_of_memory_is_held_without_blame(world: World) -> None:
    """The previous slot has answered meanwhile."""
    world.publish("1.1.0", Quality(fails_callers="OUT_OF_MEMORY"))
    world.settle()

    assert HeldFor.DOES_NOT_FIT is held_for(world)
    assert set() == world.quarantined
    assert "1.0.0" == world.serving


@pytest.mark.fault("S5")
def test_a_slow_candidate_is_refused(world: World) -> None:
    """Three times the active model's device time."""
    world.publish("1.1.0", Quality(cost_seconds=3.0))
    world.settle()
    assert "COST" == world.last("candidate_refused").update.reason  # type: ignore[union-attr]


@pytest.mark.fault("S11")
def test_no_traffic_is_never_committed_silently(world: World) -> None:
    """On probes where policy allows them, recorded as such; else held."""
    world.requests_a_second = 0.0
    world.publish("1.1.0")
    world.settle()
    assert "1.1.0" == world.committed
    assert "on probes" in world.last("update_committed").message

    world.with_rules(observe=ObserveRules(window_seconds=30.0, max_seconds=120.0, probes_allowed=False))
    world.publish("1.2.0")
    world.settle()
    assert HeldFor.INCONCLUSIVE is held_for(world)
    assert "1.1.0" == world.committed == world.serving


@pytest.mark.fault("S13")
def test_one_error_of_one_request_is_no_verdict(world: World) -> None:
    """It waits for more."""
    world.requests_a_second = 0.0
    world.publish("1.1.0")
    world.tick_until(Stage.OBSERVING)
    world.front.answers(1, lambda _: "ENGINE_FAILED")
    for _ in range(10):
        world.tick()
    assert Stage.OBSERVING is world.stage

    world.front.answers(200, lambda _: "")
    world.requests_a_second = 2.0
    world.settle()
    assert "1.1.0" == world.committed


@pytest.mark.fault("K11")
@pytest.mark.parametrize("stage", [Stage.STAGING, Stage.GATING, Stage.ACTIVATING, Stage.OBSERVING, Stage.ROLLING_BACK])
def test_an_updater_that_is_killed_again_and_again_ends_in_held(world: World, stage: Stage) -> None:
    """Forty-five times in one state, and the old model serves."""
    quality = Quality(fails_callers="NOT_FINITE") if stage is Stage.ROLLING_BACK else Quality()
    world.publish("1.1.0", quality)
    world.tick_until(stage)
    for _ in range(65 if stage is Stage.ROLLING_BACK else 45):
        world.start_updater()
        world.tick()
        world.tick(dies="before")
    world.settle()

    assert Stage.HELD is world.stage
    assert "1.0.0" == world.serving == world.committed
    assert not world.front.is_on_trial


@pytest.mark.fault("K2")
def test_a_front_that_crashes_in_observation_comes_back_on_the_old_model(world: World) -> None:
    """And the trial is to blame."""
    world.publish("1.1.0")
    world.tick_until(Stage.OBSERVING)
    world.crash_front()
    world.settle()

    assert "1.0.0" == world.serving
    assert {"1.1.0"} == world.quarantined


@pytest.mark.fault("K16")
@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("who", ["front", "both", "yielded"])
def test_an_orderly_stop_in_a_trial_blames_nobody(world: World, empty: World, who: str, *, is_first: bool) -> None:
    """The update starts again and is committed."""
    here = empty if is_first else world
    here.publish("1.1.0")
    here.tick_until(Stage.OBSERVING)
    if who == "both":  # the front does not say so; the updater was told to stop with it
        here.stop_updater()
        here.crash_front()
        here.start_updater()
    elif who == "yielded" and not is_first:
        here.front.yields()
    else:
        here.stop_front()
    here.settle()

    assert "1.1.0" == here.committed == here.serving
    assert set() == here.quarantined


@pytest.mark.fault("K17")
def test_a_term_that_runs_out_blames_nobody(world: World) -> None:
    """The updater was gone; the previous slot was back; the update starts again."""
    world.publish("1.1.0")
    world.tick_until(Stage.OBSERVING)
    world.passes(100.0)
    assert "1.0.0" == world.serving
    world.start_updater()
    world.settle()

    assert "1.1.0" == world.committed
    assert set() == world.quarantined


def test_a_first_install_that_crashes_the_front_is_held_after_a_few_tries(empty: World) -> None:
    """There is nothing to go back to, so it is tried again first."""
    empty.publish("1.0.0")
    for _ in range(RULES.max_crashes):
        empty.tick_until(Stage.OBSERVING)
        empty.crash_front()
        empty.tick()
    empty.settle()

    assert HeldFor.FRONT_CRASHED is held_for(empty)
    assert set() == empty.quarantined


@pytest.mark.fault("C13")
@pytest.mark.parametrize("problem", ["EMPTY", "UNREADABLE", "OTHER_TASK", ""])
def test_no_data_is_never_a_pass(world: World, problem: str) -> None:
    """A golden set that is missing or cannot be used holds the update, with what to do."""
    world.golden.set_facts = GoldenFacts("", problem=problem)
    world.publish("1.1.0")
    world.settle()

    assert (HeldFor.GOLDEN_UNUSABLE if problem else HeldFor.NO_GOLDEN) is held_for(world)
    assert "hotslot golden" in world.record.under_way.message


def test_approval_releases_one_held_digest(world: World) -> None:
    """Without a golden set it is then proven on built-in probes."""
    world.golden.set_facts = NO_GOLDEN
    world.publish("1.1.0")
    world.settle()
    world.wish(WishKind.APPROVE, digest(world, "1.1.0"))
    world.settle()

    assert "1.1.0" == world.committed


@pytest.mark.parametrize("quality", [Quality(right=18), Quality(agrees=2)], ids=["noise", "agreement"])
def test_a_doubt_is_held_and_can_be_approved(world: World, quality: Quality) -> None:
    """Looking worse without being significantly so, or answering otherwise: a person decides."""
    world.publish("1.1.0", quality)
    world.settle()
    assert held_for(world) in (HeldFor.NOISE, HeldFor.AGREEMENT)
    assert set() == world.quarantined

    world.wish(WishKind.APPROVE, digest(world, "1.1.0"))
    world.settle()
    assert "1.1.0" == world.committed


def test_policy_approve_asks_after_the_gate_and_does_not_run_it_twice(world: World) -> None:
    """The evidence is there when the person decides."""
    world.with_rules(mode=Mode.APPROVE)
    world.publish("1.1.0")
    world.settle()
    assert HeldFor.APPROVAL is held_for(world)

    runs = world.told().count("candidate_loaded")
    world.wish(WishKind.APPROVE, digest(world, "1.1.0"))
    world.settle()
    assert "1.1.0" == world.committed
    assert runs + 1 == world.told().count("candidate_loaded")


def test_what_does_not_fit_cannot_be_approved(world: World) -> None:
    """No approval mends it."""
    world.publish("1.1.0", Quality(loads="OUT_OF_MEMORY"))
    world.settle()
    refused = refusal(world.record, Wish(WishKind.APPROVE, digest(world, "1.1.0")), world.facts(), world.rules)
    assert refused is not None
    assert "NOT_APPROVABLE" == refused.reason


def test_rollback_by_hand_goes_back_holds_and_quarantines(world: World) -> None:
    """Until released and resumed; the floor stays, and what was released may be tried again."""
    world.install("1.1.0")
    world.wish(WishKind.ROLLBACK)
    world.settle()
    assert "1.0.0" == world.committed == world.serving
    assert {"1.1.0"} == world.quarantined
    assert world.record.on_hold
    assert "1.1.0" == world.record.floor

    world.wish(WishKind.RELEASE_QUARANTINE, digest(world, "1.1.0"))
    world.wish(WishKind.RESUME)
    world.settle()
    assert "1.1.0" == world.committed


def test_rollback_in_a_trial_takes_the_trial_back(world: World) -> None:
    """What serves is the trial."""
    world.publish("1.1.0")
    world.tick_until(Stage.OBSERVING)
    world.wish(WishKind.ROLLBACK)
    world.settle()

    assert "1.0.0" == world.serving
    assert {"1.1.0"} == world.quarantined
    assert world.record.on_hold


def test_rollback_with_nothing_to_go_back_to_is_refused(world: World) -> None:
    """It says so."""
    refused = refusal(world.record, Wish(WishKind.ROLLBACK), world.facts(), world.rules)
    assert refused is not None
    assert "NOTHING_TO_ROLL_BACK_TO" == refused.reason


@pytest.mark.parametrize("stage", [Stage.STAGING, Stage.VERIFYING, Stage.GATING, Stage.ACTIVATING, Stage.OBSERVING])
def test_hold_takes_back_what_is_under_way_without_blame(world: World, stage: Stage) -> None:
    """And resume takes it up again."""
    world.publish("1.1.0")
    world.tick_until(stage)
    world.wish(WishKind.HOLD, "a busy day")
    world.settle()
    assert (Stage.IDLE, "1.0.0", set()) == (world.stage, world.serving, world.quarantined)

    world.wish(WishKind.RESUME)
    world.settle()
    assert "1.1.0" == world.committed


@pytest.mark.fault("D9")
@pytest.mark.parametrize("reason", ["LOAD_FAILED", "BUNDLE_BROKEN"])
def test_a_committed_bundle_that_no_longer_loads_gives_way_to_the_one_before(world: World, reason: str) -> None:
    """Cold, after bounded respawns; held, and the floor is kept."""
    world.install("1.1.0")
    content = world.hub.contents["1.1.0"]
    world.qualities[content] = Quality(loads=reason)
    if reason == "BUNDLE_BROKEN":
        world.disk.sealed.remove(bundle_of(content))
    world.crash_front()
    for _ in range(20):
        world.tick()
        if world.front.serving == "" and world.front.active >= 0:
            world.front.respawns()
    world.settle()

    assert HeldFor.COMMITTED_BROKEN is held_for(world)
    assert "1.0.0" == world.serving == world.committed
    assert "1.1.0" == world.record.floor


@pytest.mark.fault("D10")
def test_a_new_converter_whose_result_fails_is_blocked_and_its_source_is_not(world: World) -> None:
    """The old bundle serves on, and the next release is taken."""
    before = world.record.committed
    content = world.hub.contents["1.0.0"]
    world.store.converter = "2"
    world.qualities[bundle_of(content, "2")] = Quality(right=2)
    world.settle()

    assert HeldFor.CONVERSION is held_for(world)
    assert (bundle_of(content, "2"),) == world.record.blocked
    assert set() == world.quarantined
    assert before == world.record.committed

    world.install("1.1.0")


def test_a_new_converter_is_proven_and_swapped_in(world: World) -> None:
    """The same source, another bundle."""
    world.store.converter = "2"
    world.settle()

    assert world.record.committed is not None
    assert bundle_of(world.hub.contents["1.0.0"], "2") == world.record.committed.bundle_digest
    assert "1.0.0" == world.record.floor


def test_a_pointer_that_was_there_first_is_adopted(empty: World) -> None:
    """A bundle imported by hand is where updates start."""
    empty.imported("1.0.0")
    empty.settle()
    assert "1.0.0" == empty.committed == empty.record.floor


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_pointer_that_disagrees_is_repaired_from_the_record(world: World, *, is_readable: bool) -> None:
    """The record is the truth."""
    world.install("1.1.0")
    world.disk.pointer = world.record.previous
    world.disk.pointer_is_readable = is_readable
    world.crash_front()
    world.start_updater()
    world.settle()

    assert world.record.committed == world.disk.pointer
    assert "1.1.0" == world.serving


@pytest.mark.fault("K3")
def test_a_pointer_lost_in_the_middle_of_a_commit_is_written_again(empty: World) -> None:
    """The front was told already: the commit stands."""
    empty.publish("1.0.0")
    empty.tick_until(Stage.COMMITTING)
    empty.tick()
    empty.tick(dies="after")
    empty.disk.pointer_is_readable = False
    empty.settle()

    assert "1.0.0" == empty.committed == empty.serving


@pytest.mark.fault("D7")
def test_what_nothing_refers_to_is_collected(world: World) -> None:
    """The last two committed bundles stay."""
    for minor in (1, 2, 3):
        world.install(f"1.{minor}.0")
    world.disk.staged["orphan"] = "left behind"
    world.start_updater()
    world.settle()

    kept = {bundle_of(world.hub.contents[revision]) for revision in ("1.2.0", "1.3.0")}
    assert kept == world.disk.sealed
    assert {} == world.disk.staged


@pytest.mark.fault("D1")
def test_a_full_disk_is_nobodys_fault(world: World) -> None:
    """Nothing is blamed, and when there is room the update goes on."""
    world.publish("1.1.0")
    world.disk.is_full = True
    for _ in range(30):
        world.tick()
    assert "1.0.0" == world.serving

    world.disk.is_full = False
    world.settle(3000.0)
    assert "1.1.0" == world.committed
    assert set() == world.quarantined


@pytest.mark.fault("D2")
def test_a_record_that_cannot_be_written_changes_nothing(world: World) -> None:
    """No effect comes before its intent."""
    world.publish("1.1.0")
    world.tick_until(Stage.GATING)
    world.disk.journal_fails = True
    activated = len(world.front.activated)
    for _ in range(30):
        world.tick()

    assert activated == len(world.front.activated)


def test_a_record_reads_back_as_it_was(world: World) -> None:
    """At every stage of a whole update."""
    world.publish("1.1.0")
    while world.committed != "1.1.0":
        world.tick()
        assert from_json(to_json(world.record)) == world.record


@pytest.mark.fault("D6")
@pytest.mark.parametrize(
    "change",
    [{"schema_version": 2}, {"schema_version": None}, {"stage": "FLYING"}, {"floor": 7}, {"extra": 1}, {"model": None}],
)
def test_a_record_that_is_not_understood_is_refused(change: dict[str, object]) -> None:
    """It must steer nothing."""
    with pytest.raises(RecordUnreadable):
        from_json({**to_json(ModelRecord("shapes")), **change})
