"""Whatever happens in whatever order: the promises hold, and a healed world comes to rest.

`HOTSLOT_TEST_STORIES=10000` tells so many stories of fifty events each.
"""

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.updater.core.world import RULES, World
from tests.updater.simulated_front import GIB, Card
from tests.updater.simulators import Quality, content_of, source_of
from updater.actions import Failed, FaultKind, Wish, WishKind
from updater.breaker import BreakerState
from updater.pipeline.versions import is_after
from updater.ports import GoldenFacts
from updater.record import HeldFor, Stage

QUALITIES = {
    "good": Quality(),
    "better": Quality(cost_seconds=0.5),
    "corrupt": Quality(verifies=False),
    "unconvertible": Quality(converts=False),
    "not loading": Quality(loads="LOAD_FAILED"),
    "too large": Quality(loads="OUT_OF_MEMORY"),
    "worse": Quality(right=4),
    "noisy": Quality(right=18),
    "doubtful": Quality(agrees=3),
    "not finite": Quality(failure="NOT_FINITE"),
    "slow": Quality(cost_seconds=4.0),
    "failing callers": Quality(fails_callers="NOT_FINITE"),
    "crashing": Quality(fails_callers="RUNNER_DIED"),
}
# At a first install there is nothing to be slower than, and nobody to disagree with.
NEVER_COMMITTED = set(QUALITIES) - {"good", "better", "noisy", "doubtful", "slow"}
HUB_FAULTS = [
    Failed(FaultKind.TRANSIENT, "HUB_UNREACHABLE", "connection refused"),
    Failed(FaultKind.TRANSIENT, "RATE_LIMITED", "429", retry_after_seconds=120.0),
    Failed(FaultKind.DENIED, "HUB_DENIED", "403"),
]


class Anything(RuleBasedStateMachine):
    """One story."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(rules=RULES, card=Card())
        self.world.golden.set_facts = GoldenFacts("golden", questions=40, expected=20, floor=0.5)
        self.quality_of: dict[str, str] = {}
        self.minor = 0
        self.floor = ""
        self.activated = 0

    @rule(name=st.sampled_from(sorted(QUALITIES)), jump=st.sampled_from([0, 0, 0, 1, 7]))
    def publish(self, name: str, jump: int) -> None:
        """A revision appears."""
        self.minor += 1
        self._put(f"{1 + jump}.{self.minor}.0", name)

    @precondition(lambda self: self.world.hub.contents)
    @rule(data=st.data(), name=st.sampled_from(["good", "worse", "failing callers"]))
    def publish_again(self, data: st.DataObject, name: str) -> None:
        """A revision changes its content."""
        self._put(data.draw(st.sampled_from(sorted(self.world.hub.contents))), name)

    @precondition(lambda self: self.world.hub.contents)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """A revision is gone from the hub."""
        del self.world.hub.contents[data.draw(st.sampled_from(sorted(self.world.hub.contents)))]

    @precondition(lambda self: self.world.hub.contents)
    @rule(data=st.data())
    def upload(self, data: st.DataObject) -> None:
        """A revision becomes incomplete, or complete."""
        self.world.hub.unready ^= {data.draw(st.sampled_from(sorted(self.world.hub.contents)))}

    @rule(fault=st.sampled_from(HUB_FAULTS), times=st.integers(1, 7))
    def hub_fails(self, fault: Failed, times: int) -> None:
        """The hub fails for some calls."""
        self.world.hub.faults = [fault] * times

    @rule(steps=st.integers(1, 12))
    def tick(self, steps: int) -> None:
        """The updater steps."""
        self._steps(steps)

    @rule(steps=st.integers(20, 80))
    def days_without_news(self, steps: int) -> None:
        """Nothing else happens for a while."""
        self._steps(steps)

    @rule(steps=st.integers(0, 6), when=st.sampled_from(["before", "after"]))
    def updater_dies(self, steps: int, when: str) -> None:
        """The updater is killed around an effect."""
        self._steps(steps)
        self.world.tick(dies=when)

    @rule(steps=st.integers(0, 3), when=st.sampled_from(["before", "after"]))
    def both_die(self, steps: int, when: str) -> None:
        """The machine is gone for a moment."""
        self._steps(steps)
        self.world.tick(dies=when)
        self.world.crash_front()

    @rule(orderly=st.booleans())
    def front_ends(self, *, orderly: bool) -> None:
        """The front is killed or stopped, and comes back."""
        if orderly:
            self.world.stop_front()
        else:
            self.world.crash_front()

    @rule()
    def slot_is_needed(self) -> None:
        """A trial yields."""
        self.world.front.yields()

    @rule(seconds=st.sampled_from([1.0, 20.0, 400.0, 4000.0]))
    def time_passes(self, seconds: float) -> None:
        """The updater is asleep for a while."""
        self.world.passes(seconds)

    @rule(days=st.sampled_from([-400, -1, 1, 400]))
    def clock_jumps(self, days: int) -> None:
        """The wall clock is set."""
        self.world.clock.wall += days * (self.world.clock.wall.resolution * 86_400_000_000)

    @rule(is_full=st.booleans(), journal_fails=st.booleans())
    def disk_changes(self, *, is_full: bool, journal_fails: bool) -> None:
        """The disk is full, or no longer."""
        self.world.disk.is_full, self.world.disk.journal_fails = is_full, journal_fails

    @rule()
    def pointer_is_lost(self) -> None:
        """Somebody has spoilt the pointer file."""
        self.world.disk.pointer_is_readable = False

    @rule(kind=st.sampled_from([WishKind.HOLD, WishKind.RESUME, WishKind.ROLLBACK, WishKind.CHECK_NOW]))
    def operator_speaks(self, kind: WishKind) -> None:
        """An operator asks for something."""
        self.world.wishes.append(Wish(kind))

    @rule(gib=st.sampled_from([0, 0, 3, 6, 9]), plan=st.sampled_from(["honest", "kind", "blind"]))
    def card_fills(self, gib: int, plan: str) -> None:
        """Strangers take memory of the card, or give it back."""
        assert self.world.card is not None
        self.world.card.strangers, self.world.card.plan = gib * GIB, plan

    @rule(name=st.sampled_from(["hub", "activation", "device"]))
    def operator_resets(self, name: str) -> None:
        """An operator closes a breaker."""
        self.world.wishes.append(Wish(WishKind.RESET_BREAKER, name))

    @precondition(lambda self: self.world.record.quarantine)
    @rule(data=st.data())
    def operator_releases(self, data: st.DataObject) -> None:
        """An operator lets a digest out of quarantine."""
        rows = [row.source_digest for row in self.world.record.quarantine]
        self.world.wishes.append(Wish(WishKind.RELEASE_QUARANTINE, data.draw(st.sampled_from(rows))))

    @precondition(lambda self: self.world.stage is Stage.HELD)
    @rule()
    def operator_approves(self) -> None:
        """An operator approves what is held."""
        self.world.wishes.append(Wish(WishKind.APPROVE, self.world.record.under_way.source_digest))

    @precondition(lambda self: self.world.hub.contents)
    @rule(data=st.data())
    def operator_updates(self, data: st.DataObject) -> None:
        """An operator names a revision."""
        revision = data.draw(st.sampled_from(sorted(self.world.hub.contents)))
        self.world.wishes.append(Wish(WishKind.UPDATE, revision))

    @invariant()
    def nothing_bad_is_committed(self) -> None:
        """The pointer names a bundle that is there and was good enough."""
        disk = self.world.disk
        if disk.pointer is not None:
            assert disk.pointer.bundle_digest in disk.sealed
            assert self.quality_of[content_of(disk.pointer.bundle_digest)] not in NEVER_COMMITTED

    @invariant()
    def the_floor_never_goes_down(self) -> None:
        """Neither by faults nor by operators."""
        floor = self.world.record.floor
        assert floor == self.floor or is_after(floor, self.floor, RULES.policy)
        self.floor = floor

    def teardown(self) -> None:
        """Healed, it comes to rest by itself."""
        world = self.world
        world.hub.faults, world.hub.unready = [], set()
        world.disk.is_full = world.disk.journal_fails = False
        assert world.card is not None
        world.card.strangers, world.card.plan = 0, "honest"
        world.settle(40_000.0)
        record = world.record
        committed = "" if record.committed is None else record.committed.bundle_digest
        assert committed == world.front.serving
        assert record.committed == world.disk.pointer
        assert not world.front.is_on_trial
        assert world.front.fallback == record.fallback
        self._check_newest()

    def _check_newest(self) -> None:
        """A good revision above the floor is taken, unless somebody or something has to decide first."""
        world, record = self.world, self.world.record
        if record.stage is Stage.HELD:
            assert record.under_way.reason in {*HeldFor}
            return
        if record.on_hold or record.activation.state is not BreakerState.CLOSED:
            return
        for revision, content in world.hub.contents.items():
            is_new = is_after(revision, record.floor, RULES.policy) and revision[:1] in "12"
            is_known = record.known_digests.get(revision, source_of(content)) == source_of(content)
            is_allowed = is_new and is_known and not record.is_quarantined(source_of(content))
            if is_allowed and self.quality_of[content] in ("good", "better"):
                newer = [name for name in world.hub.contents if is_after(name, revision, RULES.policy)]
                assert newer, f"{revision} was never taken: {record.watch.message}"

    def _put(self, revision: str, name: str) -> None:
        self.world.publish(revision, QUALITIES[name])
        self.quality_of[self.world.hub.contents[revision]] = name

    def _steps(self, steps: int) -> None:
        world = self.world
        for _ in range(steps):
            before = {row.source_digest for row in world.record.quarantine}
            stage, committed = world.stage, world.record.committed
            world.tick()
            for bundle in world.front.activated[self.activated :]:
                if committed is None or bundle != committed.bundle_digest:
                    assert stage is Stage.ACTIVATING
                    assert source_of(content_of(bundle)) not in before
                assert self.quality_of[content_of(bundle)] not in {"corrupt", "worse", "not finite", "too large"}
            self.activated = len(world.front.activated)


TestAnything = Anything.TestCase
TestAnything.settings = settings(
    max_examples=int(os.environ.get("HOTSLOT_TEST_STORIES", "500")),
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(36_000)]
