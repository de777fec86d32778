"""Performing effects through the ports: each has a deadline, and may be performed twice."""

from dataclasses import dataclass

from common.clock import Clock
from common.source import describe_odd_names
from updater.core import checks
from updater.core.checks import MISMATCH_REASONS, make_check_failure
from updater.core.effects import (
    Activated,
    ActivateLoad,
    ActivatePrevious,
    CollectGarbage,
    CommitLoad,
    CopyRequests,
    Effect,
    EffectFailure,
    FailureKind,
    Gated,
    Listed,
    LoadBundle,
    Loaded,
    PollHub,
    Probe,
    Probed,
    Result,
    RetireLoad,
    RunGate,
    Sealed,
    SetPercent,
    Staged,
    StageRevision,
    VerifyAndSeal,
    WritePointer,
)
from updater.core.facts import Release
from updater.core.ports import Control, Converter, EffectFailed, Golden, Hub, Store
from updater.core.versions import hub_name, is_commit_id
from updater.stages.choice import find_meant, select_names

_STATE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Ports:
    """The outside world of one model."""

    hub: Hub
    control: Control
    golden: Golden
    store: Store
    converter: Converter
    clock: Clock


def perform(effect: Effect, ports: Ports) -> Result:
    """Perform an effect and return its result. Blocks, at most as long as the effect's deadline."""
    try:
        return _perform(effect, ports)
    except EffectFailed as error:
        return error.failure
    except OSError as error:  # what no port has classified, for example the lack of open files
        return EffectFailure(FailureKind.TRANSIENT, "IO_FAILED", (error.strerror or type(error).__name__).lower())


def _perform(effect: Effect, ports: Ports) -> Result:  # noqa: PLR0911  one line an effect
    match effect:
        case PollHub():
            return poll_hub(effect, ports.hub, ports.clock)
        case StageRevision():
            return _stage(effect, ports)
        case VerifyAndSeal():
            return _verify_and_seal(effect, ports)
        case RunGate():
            digest = "" if effect.golden is None else effect.golden.digest
            limit = effect.deadline_seconds
            return Gated(ports.golden.run(effect.load_id, effect.active_load_id, digest, limit))
        case Probe():
            loads = (effect.load_id, effect.previous_load_id)
            return Probed(*ports.golden.probe(*loads, effect.items, effect.deadline_seconds))
        case WritePointer():
            ports.store.write_pointer(effect.installed)
            return None
        case CollectGarbage():
            keep = (effect.keep_bundles, effect.keep_sources, effect.keep_update_id)
            ports.store.collect(*keep, effect.cap_bytes)
            return None
        case _:
            return _change_slots(effect, ports.control)


def _change_slots(
    effect: LoadBundle | ActivateLoad | CopyRequests | SetPercent | CommitLoad | ActivatePrevious | RetireLoad,
    control: Control,
) -> Result:
    change = (effect.transaction_id, effect.expected_generation, effect.deadline_seconds)
    match effect:
        case LoadBundle():
            return Loaded(control.load(effect.bundle_digest, effect.device, *change))
        case ActivateLoad():
            lease = effect.trial_lease_seconds
            control.activate(effect.load_id, lease, *change, percent=effect.percent, copies=effect.copies)
            return Activated()
        case CopyRequests():
            control.copy_requests(effect.load_id, effect.copies, *change)
        case SetPercent():
            control.set_percent(effect.load_id, effect.percent, *change)
        case CommitLoad():
            control.commit(effect.load_id, *change)
        case ActivatePrevious():
            control.activate(effect.load_id, 0.0, *change)
        case RetireLoad():
            control.retire(effect.load_id, *change, gap_lease_seconds=effect.gap_lease_seconds)
    return None


def poll_hub(effect: PollHub, hub: Hub, clock: Clock) -> Listed:
    """List the hub's names, and the files of those that matter.

    Raises:
        EffectFailed: the hub does not answer.
    """
    ends = clock.monotonic() + effect.deadline_seconds
    names = hub.revisions(effect.deadline_seconds)
    releases: list[Release] = []
    for name in select_names(names, effect):
        left = ends - clock.monotonic()
        if left <= 0 and effect.recognise and releases:
            break
        if left <= 0:
            raise EffectFailed.transient("HUB_SLOW", "looking at the hub took too long")
        releases.append(_list_release(name, hub, left))
        if effect.recognise and releases[-1].source_digest == effect.recognise:
            break
    listed = Listed(tuple(names), tuple(releases))
    if is_commit_id(effect.only) and not find_meant(effect.only, listed):
        listed = _list_commit(effect.only, listed, hub, max(_STATE_SECONDS, ends - clock.monotonic()))
    return listed


def _list_release(name: str, hub: Hub, deadline_seconds: float) -> Release:
    """One revision; if its listing is unusable, a release that is not ready, so that it hides no other."""
    try:
        return hub.release(name, deadline_seconds)
    except EffectFailed as error:
        if error.failure.kind not in (FailureKind.PERMANENT, FailureKind.NOT_READY):
            raise
        return Release(name, (), "", is_ready=False, missing=error.failure.message)


def _list_commit(commit_id: str, listed: Listed, hub: Hub, deadline_seconds: float) -> Listed:
    """The listing with a commit that is named by no branch or tag, if the hub knows it."""
    try:
        found = hub.release(commit_id, deadline_seconds)
    except EffectFailed as error:
        if error.failure.kind not in (FailureKind.PERMANENT, FailureKind.NOT_READY):
            raise
        return listed
    return Listed(listed.names, (*listed.releases, found))


def _stage(effect: StageRevision, ports: Ports) -> Result:
    ends = ports.clock.monotonic() + effect.deadline_seconds
    before = _ready_release(effect, ports.hub, effect.deadline_seconds)
    left = ends - ports.clock.monotonic()
    try:
        staged = ports.store.stage(
            effect.update_id, before, ports.hub, effect.max_bytes, left, is_fresh=effect.is_fresh
        )
    except EffectFailed as error:
        if error.failure.reason in MISMATCH_REASONS:
            _check_listing_unchanged(effect, before, ports)
        raise
    _check_listing_unchanged(effect, before, ports)
    return Staged(staged, describe_odd_names([file.name for file in before.files]))


def _check_listing_unchanged(effect: StageRevision, before: Release, ports: Ports) -> None:
    """Fail if the revision was published again while it was fetched: it is listed anew at the next poll."""
    after = _ready_release(effect, ports.hub, _STATE_SECONDS)
    if after.files != before.files:
        message = f"{effect.revision} changed while it was fetched"
        raise make_check_failure(checks.UNCHANGED, "LISTING_CHANGED", message, FailureKind.NOT_READY)


def _ready_release(effect: StageRevision, hub: Hub, deadline_seconds: float) -> Release:
    """List the revision again; fails if the listing differs from the one that the effect was decided for."""
    try:
        release = hub.release(hub_name(effect.revision), deadline_seconds)
    except EffectFailed as error:
        if error.failure.reason != "REVISION_UNKNOWN":
            raise
        message = f"the hub does not have {effect.revision} any more"  # its content is not at fault
        raise EffectFailed.not_ready("REVISION_GONE", message) from error
    if not release.is_ready:
        raise EffectFailed.not_ready("NOT_READY", release.missing)
    if effect.source_digest and release.source_digest not in ("", effect.source_digest):
        message = f"{effect.revision} is not what it was when it was listed"
        raise make_check_failure(checks.UNCHANGED, "LISTING_CHANGED", message, FailureKind.NOT_READY)
    return release


def _verify_and_seal(effect: VerifyAndSeal, ports: Ports) -> Result:
    ends = ports.clock.monotonic() + effect.deadline_seconds
    folder = ports.store.source_folder(effect.update_id, effect.source_digest, is_kept=effect.is_kept_source)
    provenance = ports.store.verify(folder, effect.source_digest, effect.compatible_with)
    left = ends - ports.clock.monotonic()
    if left <= 0:
        return EffectFailure(FailureKind.TRANSIENT, "DEADLINE", "verification took too long")
    digest = ports.converter.seal(folder, effect.revision, effect.precision, left, provenance)
    labels = effect.may_change_labels
    ports.store.check_compatible(digest, effect.compatible_with, may_change_labels=labels)  # check 15
    if not effect.is_kept_source:
        ports.store.keep_source(effect.update_id, effect.source_digest)
    return Sealed(digest, effect.source_digest, ports.store.notes(digest))
