"""The mix of labels of a revision's answers against that of the one before, at the same hours of the day."""

from dataclasses import replace

import pytest

from tests.updater.core.world import World
from tests.updater.simulators import bundle_of
from updater.core.label_mix import MAX_LABELS, OTHER, LabelCount, LabelMix, add_labels, compare_mixes
from updater.core.record import Stage
from updater.core.rules import CompareRules
from updater.store.record_json import from_json, to_json

EMPTY = LabelMix("b", "1.0.0")


def answer(world: World, yes: int, no: int) -> None:
    """The revision that serves has given these labels since the server started; its counters are read."""
    world.server.labels[world.server.serving] = (LabelCount("yes", yes), LabelCount("no", no))
    world.passes(1.0)
    world.tick()
    world.tick()


def give(world: World, hours: int, yes: int, no: int) -> None:
    """Each hour has as many labels."""
    start = {row.label: row.count for row in world.server.labels.get(world.server.serving, ())}
    for hour in range(hours + 1):
        answer(world, start.get("yes", 0) + yes * hour, start.get("no", 0) + no * hour)
        world.clock.wall = world.clock.wall.replace(hour=(8 + hour) % 24)


@pytest.fixture
def two() -> World:
    """1.0.0 has served mornings, then 1.1.0 is committed."""
    world = World()
    world.clock.wall = world.clock.wall.replace(hour=7)
    world.install("1.0.0")
    give(world, 4, yes=400, no=600)
    world.clock.wall = world.clock.wall.replace(hour=7)
    world.install("1.1.0")
    return world


def test_mixes_are_compared_at_common_hours_alone() -> None:
    """Night traffic of one of them is no difference, and neither is more of the same."""
    before = add_labels(add_labels(EMPTY, 8, {"yes": 600, "no": 400}), 23, {"yes": 0, "no": 5000})
    now = add_labels(add_labels(EMPTY, 8, {"yes": 1200, "no": 800}), 3, {"yes": 5000})
    found = compare_mixes(before, now, 500)
    assert found is not None
    assert (round(found.distance, 6), found.labels) == (0.0, 1000)
    assert compare_mixes(before, add_labels(EMPTY, 8, {"yes": 100}), 500) is None


def test_the_distance_is_the_share_of_labels_that_moved() -> None:
    """From 40 to 60 % yes: a fifth; the largest shift is named first."""
    before, now = add_labels(EMPTY, 8, {"yes": 400, "no": 600}), add_labels(EMPTY, 8, {"yes": 600, "no": 400})
    found = compare_mixes(before, now, 500)
    assert found is not None
    assert found.distance == pytest.approx(0.2)
    assert {label for label, _, _ in found.shifts} == {"yes", "no"}


def test_an_hour_keeps_a_bounded_number_of_labels() -> None:
    """The rarest ones are counted as one."""
    mix = add_labels(EMPTY, 8, {f"kind {n}": n + 1 for n in range(100)})
    (hour,) = mix.hours
    assert (len(hour.labels), hour.labels[-1].label, hour.total) == (MAX_LABELS + 1, OTHER, 5050)


def give_day(world: World, mornings: int, evenings: int) -> None:
    """So many thousand labels at 8 h, of which 40 % are yes, and at 20 h, of which 80 % are."""
    start = {row.label: row.count for row in world.server.labels.get(world.server.serving, ())}
    yes, no = start.get("yes", 0), start.get("no", 0)
    for hour, thousands, shares in ((8, mornings, (400, 600)), (20, evenings, (800, 200))):
        world.clock.wall = world.clock.wall.replace(hour=hour)
        answer(world, yes, no)
        yes, no = yes + thousands * shares[0], no + thousands * shares[1]
        answer(world, yes, no)


@pytest.mark.fault("T3")
def test_a_mix_that_moves_with_the_traffic_of_the_hours_is_no_change() -> None:
    """1.0.0 has served busy mornings, 1.1.0 serves busy evenings: of all answers 47 % were yes, now 73 %."""
    world = World()
    world.install("1.0.0")
    give_day(world, mornings=5, evenings=1)
    world.install("1.1.0")
    give_day(world, mornings=1, evenings=5)
    assert "label_mix_changed" not in world.event_names()
    assert world.record.mix is not None
    assert world.record.mix_distance < 0.05


@pytest.mark.fault("T3")
def test_a_mix_that_shifts_during_a_trial_for_both_models_alike_is_kept() -> None:
    """Answers to the same requests are compared, not the labels of yesterday's with those of today's."""
    world = World(requests_a_second=10.0)
    world.install("1.0.0")
    give(world, 3, yes=900, no=100)
    world.publish("1.1.0")
    world.tick_until(Stage.OBSERVING)
    for digest in (bundle_of(world.hub.contents[name]) for name in ("1.0.0", "1.1.0")):
        world.server.labels[digest] = (LabelCount("yes", 2700), LabelCount("no", 9000))
    world.settle()
    assert (world.committed, world.quarantined, world.stage) == ("1.1.0", set(), Stage.IDLE)


def test_a_mix_that_leaves_the_one_before_is_told_once(two: World) -> None:
    """With the labels that moved most."""
    give(two, 5, yes=600, no=400)
    assert two.event_names().count("label_mix_changed") == 1
    assert "1.1.0 answers with other labels than 1.0.0 did at the same hours: " in two.last("label_mix_changed").message
    assert two.record.mix_distance == pytest.approx(0.2, abs=0.05)


def test_a_server_that_starts_again_counts_from_nothing(two: World) -> None:
    """Nothing is counted twice, and nothing is subtracted."""
    give(two, 2, yes=400, no=600)
    before = sum(hour.total for hour in two.record.mix.hours) if two.record.mix else 0
    two.crash_server()
    two.server.labels[bundle_of(two.hub.contents["1.1.0"])] = ()
    give(two, 2, yes=400, no=600)
    after = sum(hour.total for hour in two.record.mix.hours) if two.record.mix else 0
    assert before <= after <= before + 2000


def test_nothing_is_noted_if_any_mix_is_allowed() -> None:
    """`max_mix_change = 0`; a record without mixes is that of an earlier build."""
    world = World(rules=replace(World().rules, compare=CompareRules(max_mix_change=0.0)))
    world.install("1.0.0")
    give(world, 3, yes=400, no=600)
    assert world.record.mix is None
    row = to_json(world.record)
    for name in ("mix", "mix_before", "mix_mark", "mix_distance", "is_mix_changed"):
        del row[name]
    assert from_json(row) == world.record
