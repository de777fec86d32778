"""Invariants of the small world: of every state, of every step, and at rest."""

from collections.abc import Iterator

from tests.updater.core.crash_effects import is_failback
from tests.updater.core.crash_world import BRANCH, CARD, FIRST, OLDER, RULES, Card, Kind, World
from updater.core.breaker import BreakerState
from updater.core.record import HeldFor, Stage
from updater.core.rules import Rollout
from updater.core.versions import is_after, parse_version

_UNTOUCHED = ("committed", "previous", "min_version", "quarantine", "blocked", "known", "approved")  # by a failback


def state_violations(world: World) -> Iterator[str]:
    """Invariants that a state violates."""
    pointer, record, server = world.pointer, world.record, world.server
    if pointer is not None:
        if pointer.bundle_digest not in world.sealed:
            yield "the pointer names a bundle that is not there"
        if not _may_stay(world, pointer.bundle_digest):
            yield "a bad model is committed"
    if record.committed is not None and record.is_quarantined(record.committed.source_digest):
        yield "the committed revision is in quarantine"
    if server.serving and world.kind_of(server.serving) in (Kind.CORRUPT, Kind.REFUSED):
        yield "what failed verification or its gate answers callers"
    if server.is_up and pointer is not None and not server.serving:
        yield "nothing answers"
    yield from _journal_violations(world)
    if not world.crashed:
        bad = {row.source_digest for row in (*world.hub, *world.coming, FIRST) if row.kind in (Kind.GOOD, Kind.DOUBTED)}
        if any(row.source_digest in bad for row in record.quarantine):
            yield "a good revision is in quarantine though nothing has crashed"


def _may_stay(world: World, bundle: str) -> bool:
    """Whether a bundle may be committed: a good one, or one that a person has approved."""
    kind = world.kind_of(bundle)
    is_approved = bundle.replace("bundle", "source", 1) in world.allowed
    return kind in (Kind.GOOD, Kind.DOUBTED) or (kind is Kind.CHANGED and is_approved)


def _journal_violations(world: World) -> Iterator[str]:
    """What the journal must say, and what it must not have forgotten."""
    committed = world.record.committed
    is_opened = world.has_begun or not world.is_lost  # before that, nothing acts on what was put back
    if is_opened and committed is not None and committed.bundle_digest not in world.sealed:
        yield "the committed revision is not on disk"
    if world.is_stopped and not world.is_lost:
        yield "updates stop though no journal was lost"
    if _has_forgotten(world):
        yield "the minimal version was forgotten"


def _has_forgotten(world: World) -> bool:
    """Whether the updater works with a lower minimal version than the witness knew."""
    least, now = world.least, world.record.min_version
    if not least or not world.has_begun or world.is_stopped:
        return False
    return now != least and not is_after(now, least, RULES.policy)


def step_violations(before: World, effect: World, after: World, *, is_command: bool = False) -> list[str]:
    """Invariants that a step violates; a command may end a failback and change revisions."""
    rules: list[str] = []
    record = before.record
    floors = (record.min_version, after.record.min_version)
    if floors[0] != floors[1] and not is_after(floors[1], floors[0], RULES.policy):
        rules.append("the minimal version was lowered")
    if floors[0] != floors[1] and after.record.stage is not Stage.IDLE and not _is_recognised(before, floors[1]):
        rules.append("the minimal version rose without a commit")
    began = effect.server.on_trial and not before.server.on_trial
    rules += [] if is_command else _failback_violations(before, effect, after)
    rules += _rollout_violations(before, effect, after)
    if began:
        source = effect.server.serving.replace("bundle", "source", 1)
        if record.is_quarantined(source) or source in before.condemned:
            rules.append("a quarantined source digest is activated again")
        rules += _untimely_trials(before, source)
        is_committed = record.committed is not None and record.committed.bundle_digest == effect.server.serving
        is_change = effect.server.previous >= 0 and effect.server.slots[0] == effect.server.slots[1]
        if is_change and not (is_failback(before) and record.stage is Stage.ACTIVATING):
            rules.append("a device is tried on callers before that is recorded")
        if not is_committed and record.stage is not Stage.ACTIVATING:
            rules.append("a trial begins before that is recorded")
    moved = effect.pointer != before.pointer
    if moved and effect.pointer != record.committed and record.stage is not Stage.COMMITTING:
        rules.append("the pointer changes before a commit is recorded")
    return rules


def _rollout_violations(before: World, effect: World, after: World) -> list[str]:
    """Invariants of a shadow and of a canary."""
    rules: list[str] = []
    stages = (before.record.stage, after.record.stage)
    is_update = before.record.committed is not None and not is_failback(before)
    if before.rollout is Rollout.SHADOW and is_update and stages == (Stage.GATING, Stage.ACTIVATING):
        rules.append("a candidate meets callers before its shadow")
    if before.rollout is not Rollout.SHADOW and effect.server.shadow >= 0:
        rules.append("requests are copied for a candidate that has no shadow")
    update = before.record.update
    is_raised = effect.server.on_trial and effect.server.percent > before.server.percent
    if is_raised and (update is None or effect.server.percent > update.percent):
        rules.append("a canary gets more than is recorded")
    return rules


def _is_recognised(world: World, revision: str) -> bool:
    """Whether a revision on the hub has the committed content."""
    committed = world.record.committed
    rows = [row for row in world.hub if row.revision == revision]
    return committed is not None and any(row.source_digest == committed.source_digest for row in rows)


def _untimely_trials(world: World, source: str) -> list[str]:
    """Invariants that the trial of a content violates: it comes back, or may be older than an import."""
    committed = world.record.committed
    if source in world.allowed or (committed is not None and committed.source_digest == source):
        return []
    rules = ["a replaced content comes back by itself"] if source in world.replaced else []
    if world.is_imported and committed is not None and not world.replaced:
        if source == OLDER.source_digest:
            rules.append("an older release is tried after an import")
        if not any(row.source_digest == committed.source_digest for row in (*world.hub, *world.coming)):
            rules.append("a release is tried whose age is not known")
    return rules


def _failback_violations(before: World, effect: World, after: World) -> list[str]:
    """Invariants of a failback that a step violates."""
    rules: list[str] = []
    if is_failback(after) and not is_failback(before):
        if before.must_wait_for_breaker:
            rules.append("a failback begins before the breaker's open time is over")
        if before.record.stage is not Stage.IDLE or before.record.paused:
            rules.append("a failback begins outside of IDLE, or while updates are paused")
    if before.fallback and not effect.fallback and before.record.stage is not Stage.COMMITTING:
        rules.append("a device is committed before it is proven")
    if not is_failback(before):
        return rules
    is_tried = before.record.stage in (Stage.GATING, Stage.ACTIVATING, Stage.OBSERVING)
    if is_tried and effect.server != before.server and before.record.device.state is not BreakerState.HALF_OPEN:
        rules.append("a failback continues after its probe time")
    if any(getattr(before.record, name) != getattr(after.record, name) for name in _UNTOUCHED):
        rules.append("a failback changes revisions")
    if effect.pointer != before.pointer and before.pointer == before.record.committed:
        rules.append("a failback changes the pointer")
    return rules


def rest_violations(world: World) -> Iterator[str]:
    """Invariants that a world at rest violates."""
    record, server = world.record, world.server
    committed = "" if record.committed is None else record.committed.bundle_digest
    if record.stage not in (Stage.IDLE, Stage.HELD):
        yield "an update is never finished"
    if server.serving != committed:
        yield "at rest another model serves than is committed"
    if world.pointer != record.committed:
        yield "at rest the pointer is not the committed revision"
    if server.on_trial:
        yield "at rest a trial goes on"
    if any(bundle and number != server.active for number, bundle in enumerate(server.slots)):
        yield "at rest another load is left"
    if server.serving and not _may_stay(world, server.serving):
        yield "at rest a bad model serves"
    yield from _hold_violations(world)
    yield from _fallback_violations(world)


def _hold_violations(world: World) -> Iterator[str]:
    """Only what a person must decide is held, and every good revision is taken."""
    record = world.record
    allowed = {HeldFor.AGREEMENT, HeldFor.SERVER_CRASHED, HeldFor.MISMATCH}
    allowed |= {HeldFor.DOES_NOT_FIT} if world.card else set()
    if (
        record.stage is Stage.HELD
        and world.kind_of(record.under_way.bundle_digest or f"none {Kind.GOOD}") is Kind.CHANGED
    ):
        allowed.add(HeldFor.CHANGED_ANSWERS)
    if record.stage is Stage.HELD and record.under_way.source_digest in world.replaced:
        allowed.add(HeldFor.SEEN_BEFORE)
    if world.is_imported and not any(_is_recognised(world, row.revision) for row in world.hub):
        allowed.add(HeldFor.FIRST_CONTACT)
    if record.stage is Stage.HELD and record.under_way.reason not in allowed:
        yield f"it is held for {record.under_way.reason}"
    if record.stage is Stage.IDLE and not record.paused:
        yield from _missed_revisions(world)


def _fallback_violations(world: World) -> Iterator[str]:
    """A fallback opens the breaker, and a good device is returned to."""
    record, server = world.record, world.server
    if record.device.state is BreakerState.HALF_OPEN:
        yield "at rest a probe is still out"
    if record.paused or record.stage is not Stage.IDLE or not server.serving or world.card is None:
        return
    if world.fallback and record.device.state is BreakerState.CLOSED:
        yield "a fallback has opened no breaker"
    if world.card is Card.GOOD and (world.fallback or server.serving_on != CARD):
        yield "a good device is never returned to"


def _missed_revisions(world: World) -> Iterator[str]:
    """The newest good revision is taken without an operator."""
    record = world.record
    if world.follows_branch:
        yield from _missed_contents(world)
        return
    for row in world.hub:
        version = parse_version(row.revision, RULES.policy)
        known = None if version is None else record.known_digests.get(version.text)
        is_new = is_after(row.revision, record.min_version, RULES.policy)
        is_itself = known in (None, row.source_digest) and not record.is_quarantined(row.source_digest)
        if row.kind is Kind.GOOD and is_new and is_itself:
            yield "a good revision is never taken"


def _missed_contents(world: World) -> Iterator[str]:
    """A good content of the branch is taken, unless it was replaced before."""
    record = world.record
    committed = "" if record.committed is None else record.committed.source_digest
    for row in world.hub:
        is_known = row.source_digest in world.replaced or record.is_quarantined(row.source_digest)
        if row.revision == BRANCH and row.kind is Kind.GOOD and not is_known and row.source_digest != committed:
            yield "a good content of the branch is never taken"
