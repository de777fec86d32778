"""Random events in random order, on the real store: the seven promises of the fault list hold.

The loop, its decisions, the SQLite journal, staging, sealing, collection, the pointer and the folder hub are the
shipped ones; the server and the answers of models are simulated. `HOTSLOT_TEST_STORIES=10000` tells so many stories of
fifty events each.
"""

import errno
import os
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.bundle import read_committed
from dev.harness.simulated_card import GIB
from tests.updater.simulators import Quality
from tests.updater.stories.world import RULES, WEIGHTS, StoryWorld
from updater.core.breaker import BreakerState
from updater.core.effects import EffectFailure, FailureKind
from updater.core.facts import CommandKind, OperatorCommand
from updater.core.record import HeldFor, Stage
from updater.core.versions import is_after, parse_version
from updater.store.state_folder import STATE_ENTRIES

QUALITIES = {
    "good": Quality(),
    "better": Quality(cost_seconds=0.5),
    "corrupt": Quality(verifies=False),
    "unconvertible": Quality(converts=False),
    "asking for code": Quality(converts=False),
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
# At a first install there is no active model to compare cost and answers with.
NEVER_COMMITTED = set(QUALITIES) - {"good", "better", "noisy", "doubtful", "slow"}
NEVER_ACTIVATED = {"corrupt", "unconvertible", "asking for code", "worse", "not finite", "too large", "not loading"}
HUB_FAULTS = [
    EffectFailure(FailureKind.TRANSIENT, "HUB_UNREACHABLE", "connection refused"),
    EffectFailure(FailureKind.TRANSIENT, "RATE_LIMITED", "429", retry_after_seconds=120.0),
    EffectFailure(FailureKind.DENIED, "HUB_DENIED", "403"),
]
SPOILT = b"spoilt"
FAR = timedelta(days=300)
STAGES = st.sampled_from([None, None, *Stage])  # that the updater reaches first, if it does
CALLS = st.sampled_from(["", "journal", "journal", "write", "replace", "fsync"])  # "": any
FEW = st.one_of(st.integers(0, 2), st.integers(0, 90))  # operations


class Anything(RuleBasedStateMachine):
    """One story."""

    def __init__(self) -> None:
        super().__init__()
        self.world = StoryWorld()
        self.name_of: dict[str, str] = {}  # names of qualities, by bundle digest
        self.contents: dict[str, str] = {}  # bundle digest by revision, of what is on the hub
        self.short: dict[str, bytes] = {}  # missing end of a revision's weights
        self.outside = self.world.outside()
        self.minor = 0
        self.floor = ""
        self.activated = 0
        self.lost = 0
        self.overwritten = ""  # what the pointer named before it was overwritten
        self.is_blind = True  # the server started with nothing to load

    @initialize(is_installed=st.sampled_from([True, True, True, False]))
    def begin(self, *, is_installed: bool) -> None:
        """Mostly a revision is committed already."""
        if is_installed:
            self.publish("good", 0)
            self.world.settle(400.0)
            self.world.keep_journal()
            self.outside = self.world.outside()
            self.is_blind = False

    # The hub.

    @rule(
        name=st.sampled_from([*sorted(QUALITIES), *["good"] * 6, *["failing callers"] * 3]),
        jump=st.sampled_from([0, 0, 0, 1, 7]),
    )
    def publish(self, name: str, jump: int) -> None:
        """A revision is published."""
        self.minor += 1
        self._put(f"{1 + jump}.{self.minor}.0", name)

    @precondition(lambda self: self.contents)
    @rule(data=st.data(), name=st.sampled_from(["good", "worse", "failing callers"]))
    def publish_again(self, data: st.DataObject, name: str) -> None:
        """A revision changes its content."""
        self._put(self._some(data), name)

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """A revision is deleted from the hub."""
        revision = self._some(data)
        self._assert_nothing_outside_changed()
        (self.world.hub_folder / revision).rename(self.world.folder / f"gone-{self.minor}-{len(self.contents)}")
        del self.contents[revision]
        self.short.pop(revision, None)
        self.outside = self.world.outside()

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def upload(self, data: st.DataObject) -> None:
        """The end of a revision's weights is missing, or is uploaded."""
        revision = self._some(data)
        self._assert_nothing_outside_changed()
        weights = self.world.hub_folder / revision / WEIGHTS
        if revision in self.short:
            weights.write_bytes(weights.read_bytes() + self.short.pop(revision))
        else:
            content = weights.read_bytes()
            self.short[revision] = content[20:]
            weights.write_bytes(content[:20])
        self.outside = self.world.outside()

    @rule(fault=st.sampled_from(HUB_FAULTS), times=st.integers(1, 7))
    def hub_fails(self, fault: EffectFailure, times: int) -> None:
        """The hub fails for some calls."""
        self.world.hub.faults = [fault] * times

    @rule(mangles=st.lists(st.sampled_from(["short", "flipped", "long"]), min_size=1, max_size=3))
    def transfer_is_corrupted(self, mangles: list[str]) -> None:
        """The next reads of weights are cut, changed or extended."""
        self.world.hub.mangles = mangles

    # Time, processes and the disk.

    @rule(steps=st.integers(1, 12))
    def tick(self, steps: int) -> None:
        """The updater steps."""
        self._steps(steps)

    @rule(stage=st.sampled_from([*Stage]))
    def tick_until(self, stage: Stage) -> None:
        """The updater steps until it reaches a stage, or for a while."""
        self._until(stage)

    @rule(stage=STAGES, where=CALLS, operations=FEW)
    def updater_dies(self, stage: Stage | None, where: str, operations: int) -> None:
        """The updater is killed at one operation on its disk."""
        self._until(stage)
        self.world.disk.kills(operations, where)
        starts = self.world.starts
        for _ in range(12):
            self._steps(1)
            if self.world.starts != starts:
                return
        self.world.end_updater()

    @rule(stage=STAGES, where=CALLS, operations=FEW)
    def both_die(self, stage: Stage | None, where: str, operations: int) -> None:
        """The machine loses power."""
        self.updater_dies(stage, where, operations)
        self.world.end_updater()
        self.server_ends(orderly=False)

    @rule()
    def updater_stops(self) -> None:
        """The updater is stopped in good order and started."""
        self.world.end_updater(orderly=True)

    @rule(orderly=st.booleans())
    def server_ends(self, *, orderly: bool) -> None:
        """The server is killed, or stopped, and started."""
        if self.is_blind:
            self.lost = self.world.server.lost  # requests before the first install had no model
        self.world.server.end(orderly=orderly)
        self.world.server.start()
        self.is_blind = not self.world.server.serving
        assert not self.is_blind or not self.world.pointer()

    @rule()
    def slot_is_needed(self) -> None:
        """The server ends a trial because it needs the slot."""
        self.world.server.yields()

    @rule(seconds=st.sampled_from([1.0, 20.0, 400.0, 4000.0]))
    def time_passes(self, seconds: float) -> None:
        """The updater does not run for a while."""
        self.world.passes(seconds)

    @rule(days=st.sampled_from([-400, -1, 1, 400]))
    def clock_jumps(self, days: int) -> None:
        """The wall clock is set."""
        self.world.clock.wall += timedelta(days=days)

    @rule(
        code=st.sampled_from([errno.ENOSPC, errno.EIO, errno.EIO, errno.EROFS, errno.EDQUOT]),
        stage=STAGES,
        where=CALLS,
        after=FEW,
        times=st.sampled_from([1, 1, 2, 5, 40]),
    )
    def disk_fails(self, code: int, stage: Stage | None, where: str, after: int, times: int) -> None:
        """Some operations on the disk fail, sooner or later."""
        self._until(stage)
        self.world.disk.fails(code, where, after, times)

    @rule()
    def disk_recovers(self) -> None:
        """The disk works again."""
        self.world.disk.heals()

    @rule()
    def pointer_is_lost(self) -> None:
        """The pointer file is overwritten with garbage."""
        path = self.world.state / "committed.json"
        if path.exists():
            self.overwritten = self.world.pointer() or self.overwritten
            path.write_bytes(SPOILT)

    @precondition(lambda self: self.world.has_whole_pointer())
    @rule(how=st.sampled_from(["deleted", "emptied", "older", "older"]), steps=st.sampled_from([0, 3, 60, 60]))
    def journal_is_lost(self, how: str, steps: int) -> None:
        """The journal is lost, and made anew from its witness. Without a pointer, too, it takes a backup."""
        self._steps(steps)
        self.world.disk.kills(None)
        self._assert_nothing_outside_changed()
        self.world.lose_journal(how)
        self.outside = self.world.outside()

    # The card.

    @rule(gib=st.sampled_from([0, 0, 3, 6, 9]), plan=st.sampled_from(["honest", "kind", "blind"]))
    def card_memory_changes(self, gib: int, plan: str) -> None:
        """Other processes take memory of the card, or release it."""
        self.world.card.strangers, self.world.card.plan = gib * GIB, plan

    # Operators.

    @rule(kind=st.sampled_from([CommandKind.PAUSE, CommandKind.RESUME, CommandKind.ROLLBACK, CommandKind.CHECK_NOW]))
    def operator_sends_command(self, kind: CommandKind) -> None:
        """An operator sends a command."""
        self.world.leave(OperatorCommand(kind))

    @rule(name=st.sampled_from(["hub", "activation", "device"]))
    def operator_resets(self, name: str) -> None:
        """An operator resets a breaker."""
        self.world.leave(OperatorCommand(CommandKind.RESET_BREAKER, name))

    @precondition(lambda self: self.world.record.quarantine)
    @rule(data=st.data())
    def operator_unquarantines(self, data: st.DataObject) -> None:
        """An operator takes a digest out of quarantine."""
        rows = [row.source_digest for row in self.world.record.quarantine]
        self.world.leave(OperatorCommand(CommandKind.UNQUARANTINE, rows[data.draw(st.integers(0, len(rows) - 1))]))

    @precondition(lambda self: self.world.record.stage is Stage.HELD)
    @rule()
    def operator_approves(self) -> None:
        """An operator approves what is held."""
        self.world.leave(OperatorCommand(CommandKind.APPROVE, self.world.record.under_way.source_digest))

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def operator_updates(self, data: st.DataObject) -> None:
        """An operator requests a revision."""
        self.world.leave(OperatorCommand(CommandKind.UPDATE, self._some(data)))

    # Invariants.

    @invariant()
    def what_serves_is_committed_or_on_trial(self) -> None:
        """No call is lost, once something was committed and could be read at the server's start."""
        server, record = self.world.server, self.world.record
        committed = "" if record.committed is None else record.committed.bundle_digest
        pointer = self.world.pointer()
        if not pointer and record.stage is Stage.COMMITTING:
            pointer = record.under_way.bundle_digest  # it was written before it was overwritten
        if server.serving and not server.is_on_trial:
            # While a rollback is under way the pointer still named what is rolled back, before it was overwritten.
            assert server.serving in (committed, pointer or self.overwritten)
        if self.is_blind:
            self.is_blind = not (server.serving and not server.is_on_trial)
            self.lost = server.lost
        assert server.lost == self.lost, "callers met nothing"
        assert self.is_blind or server.serving

    @invariant()
    def nothing_bad_is_committed(self) -> None:
        """The pointer is readable, unless it was overwritten, and names a complete bundle of a good revision."""
        path = self.world.state / "committed.json"
        bundle = self.world.pointer()
        assert bundle or not path.exists() or path.read_bytes() == SPOILT or not read_committed(self.world.state)
        if bundle:
            assert self.world.is_whole(bundle)
            assert self.name_of[bundle] not in NEVER_COMMITTED

    @invariant()
    def the_minimal_version_is_never_lowered(self) -> None:
        """Neither by faults nor by operators."""
        floor = self.world.record.min_version
        assert floor == self.floor or is_after(floor, self.floor, RULES.policy)
        self.floor = floor

    @invariant()
    def every_trial_was_recorded_and_allowed(self) -> None:
        """A trial is recorded before it begins; nothing in quarantine, nothing that failed before, is tried."""
        assert not self.world.violations
        for bundle in self.world.server.activated[self.activated :]:
            assert self.name_of[bundle] not in NEVER_ACTIVATED
        self.activated = len(self.world.server.activated)

    def teardown(self) -> None:
        """Without further faults it comes to rest by itself, and the next good revision is taken."""
        try:
            self._end_all_faults()
            self._assert_rest()
            self._assert_good_revision_taken()
            self._assert_no_garbage()
            self._assert_nothing_outside_changed()
        finally:
            self.world.close()

    def _end_all_faults(self) -> None:
        world = self.world
        world.hub.faults, world.hub.mangles = [], []
        world.disk.heals()
        world.disk.kills(None)
        world.card.strangers, world.card.plan = 0, "honest"
        self._assert_nothing_outside_changed()
        for revision in list(self.short):
            weights = world.hub_folder / revision / WEIGHTS
            weights.write_bytes(weights.read_bytes() + self.short.pop(revision))
        self.outside = world.outside()
        version = parse_version(self.floor, RULES.policy)
        self.minor += 1
        self._put(f"{1 if version is None else version.first}.{self.minor}.0", "good")

    def _assert_rest(self) -> None:
        world = self.world
        world.settle(40_000.0)
        record, bundle = world.record, world.pointer()
        committed = "" if record.committed is None else record.committed.bundle_digest
        assert committed == bundle == world.server.serving
        assert not world.server.is_on_trial
        assert world.server.fallback == record.cpu_fallback
        assert record.min_version in world.committed_revisions() | {""}, "the floor rose without a commit"
        for each in (self.what_serves_is_committed_or_on_trial, self.nothing_bad_is_committed):
            each()
        self.every_trial_was_recorded_and_allowed()
        self.the_minimal_version_is_never_lowered()

    def _assert_good_revision_taken(self) -> None:
        """A good revision after the minimal version is taken, unless a person or a breaker has to decide first."""
        world, record = self.world, self.world.record
        if record.stage is Stage.HELD:
            assert record.under_way.reason in {*HeldFor}
            return
        if record.paused or record.activation.state is not BreakerState.CLOSED:
            return
        least = parse_version(record.min_version, RULES.policy)
        for revision, bundle in self.contents.items():
            version, source = parse_version(revision, RULES.policy), world.sources[bundle]
            is_new = is_after(revision, record.min_version, RULES.policy)
            is_near = version is not None and (least is None or version.first <= least.first + 1)
            is_known = record.known_digests.get(revision, source) == source
            is_allowed = is_new and is_near and is_known and not record.is_quarantined(source)
            is_good = self.name_of[bundle] in ("good", "better")
            assert not (is_allowed and is_good), f"{revision} was never taken: {record.watch.message}"

    def _assert_no_garbage(self) -> None:
        """The next start collects all files without references."""
        world = self.world
        world.end_updater()
        world.clock.wall = datetime.now(UTC) + FAR
        world.settle(40_000.0)
        record = world.record
        rows = [row for row in (record.committed, record.previous) if row is not None]
        bundles = {row.bundle_digest for row in rows}
        update = record.update
        if update is not None:
            bundles.add(update.bundle_digest)
        found = {path.name for path in world.state.iterdir()}
        assert found <= STATE_ENTRIES, f"left in the state folder: {found - STATE_ENTRIES}"
        kept = {path.name.replace("-", ":") for path in (world.state / "bundles").glob("*")}
        assert kept <= bundles
        assert not list((world.state / "staging").glob("*"))
        updates = {path.name for path in (world.state / "incoming").glob("*")}
        assert updates <= ({update.update_id} if update is not None else set())

    def _assert_nothing_outside_changed(self) -> None:
        assert self.outside == self.world.outside()

    def _put(self, revision: str, name: str) -> None:
        self._assert_nothing_outside_changed()
        script = {"fail_convert": "WEIGHTS_BROKEN"} if name == "unconvertible" else {}
        configuration = {"plugins": ["odd"]} if name == "asking for code" else None
        bundle = self.world.publish(revision, QUALITIES[name], configuration, **script)
        self.name_of[bundle], self.contents[revision] = name, bundle
        self.short.pop(revision, None)
        self.outside = self.world.outside()

    def _some(self, data: st.DataObject) -> str:
        names = sorted(self.contents)
        return names[data.draw(st.integers(0, len(names) - 1))]

    def _until(self, stage: Stage | None) -> None:
        for _ in range(0 if stage is None else 25):
            self._steps(1)
            if self.world.record.stage is stage:
                return

    def _steps(self, steps: int) -> None:
        for _ in range(steps):
            self.world.step()


TestAnything = Anything.TestCase
TestAnything.settings = settings(
    max_examples=int(os.environ.get("HOTSLOT_TEST_STORIES", "500")),
    database=None,
    stateful_step_count=50,
    deadline=None,
    derandomize="HOTSLOT_TEST_STORIES" not in os.environ,  # then they come from --hypothesis-seed
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(36_000)]
