"""Actions become effects: each is performed through the ports, has a deadline, and may be performed twice."""

from dataclasses import dataclass

from updater.core import checks
from updater.core.checks import refused
from updater.core.effects import (
    Action,
    Activated,
    ActivateLoad,
    ActivatePrevious,
    Adopt,
    ApplyCommand,
    Begin,
    Collected,
    CollectGarbage,
    CommitLoad,
    Done,
    Enter,
    Failed,
    FaultKind,
    Gated,
    Listed,
    LoadBundle,
    Loaded,
    LookAtHub,
    Probe,
    Probed,
    Result,
    RetireLoad,
    RunGate,
    Sealed,
    Staged,
    StageRevision,
    VerifyAndSeal,
    Wait,
    WritePointer,
)
from updater.core.ports import Clock, Control, Converter, EffectFailed, Golden, Hub, Release, Store
from updater.stages.watch import worth_listing

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


def perform(action: Action, ports: Ports) -> Result:
    """Do what was decided, and say what came of it. Blocks, at most as long as the action's deadline."""
    try:
        return _perform(action, ports)
    except EffectFailed as error:
        return error.failed


def _perform(action: Action, ports: Ports) -> Result:  # noqa: PLR0911  one row an action
    match action:
        case Begin() | Wait() | Enter() | Adopt() | ApplyCommand():
            return Done()
        case LookAtHub():
            return _look(action, ports)
        case StageRevision():
            return _stage(action, ports)
        case VerifyAndSeal():
            return _verify_and_seal(action, ports)
        case RunGate():
            digest = "" if action.golden is None else action.golden.digest
            limit = action.deadline_seconds
            return Gated(ports.golden.run(action.load_id, action.active_load_id, digest, limit))
        case Probe():
            return Probed(*ports.golden.probe(action.load_id, action.items, action.deadline_seconds))
        case WritePointer():
            ports.store.write_pointer(action.installed)
            return Done()
        case CollectGarbage():
            keep = (action.keep_bundles, action.keep_sources, action.keep_update_id)
            return Collected(*ports.store.collect(*keep, action.cap_bytes))
        case _:
            return _change_slots(action, ports.control)


def _change_slots(
    action: LoadBundle | ActivateLoad | CommitLoad | ActivatePrevious | RetireLoad, control: Control
) -> Result:
    change = (action.transaction_id, action.expected_generation, action.deadline_seconds)
    match action:
        case LoadBundle():
            return Loaded(control.load(action.bundle_digest, action.device, *change))
        case ActivateLoad():
            return Activated(control.activate(action.load_id, action.trial_lease_seconds, *change).incarnation)
        case CommitLoad():
            control.commit(action.load_id, *change)
        case ActivatePrevious():
            control.activate(action.load_id, 0.0, *change)
        case RetireLoad():
            control.retire(action.load_id, *change)
    return Done()


def _look(action: LookAtHub, ports: Ports) -> Result:
    ends = ports.clock.monotonic() + action.deadline_seconds
    names = ports.hub.revisions(action.deadline_seconds)
    releases: list[Release] = []
    for name in worth_listing(names, action):
        left = ends - ports.clock.monotonic()
        if left <= 0:
            raise EffectFailed.transient("HUB_SLOW", "looking at the hub took too long")
        try:
            releases.append(ports.hub.release(name, left))
        except EffectFailed as error:
            # One revision that cannot be listed must not hide the others.
            if error.failed.kind not in (FaultKind.PERMANENT, FaultKind.NOT_READY):
                raise
            releases.append(Release(name, (), "", is_ready=False, missing=error.failed.message))
    return Listed(tuple(names), tuple(releases))


def _stage(action: StageRevision, ports: Ports) -> Result:
    ends = ports.clock.monotonic() + action.deadline_seconds
    before = _ready_release(action, ports.hub, action.deadline_seconds)
    staged = ports.store.stage(
        action.update_id,
        before,
        ports.hub,
        action.max_bytes,
        ends - ports.clock.monotonic(),
        is_fresh=action.is_fresh,
    )
    after = _ready_release(action, ports.hub, max(_STATE_SECONDS, ends - ports.clock.monotonic()))
    if after.files != before.files:
        message = f"{action.revision} changed while it was fetched"
        raise refused(checks.UNCHANGED, "LISTING_CHANGED", message, FaultKind.NOT_READY)
    return Staged(staged)


def _ready_release(action: StageRevision, hub: Hub, deadline_seconds: float) -> Release:
    """The revision as it is listed now, if that is what was decided for."""
    release = hub.release(action.revision, deadline_seconds)
    if not release.is_ready:
        raise EffectFailed.not_ready("NOT_READY", release.missing)
    if action.source_digest and release.source_digest not in ("", action.source_digest):
        message = f"{action.revision} is not what it was when it was listed"
        raise refused(checks.UNCHANGED, "LISTING_CHANGED", message, FaultKind.NOT_READY)
    return release


def _verify_and_seal(action: VerifyAndSeal, ports: Ports) -> Result:
    ends = ports.clock.monotonic() + action.deadline_seconds
    folder = ports.store.source_folder(action.update_id, action.source_digest, is_kept=action.is_kept_source)
    provenance = ports.store.verify(folder, action.source_digest, action.compatible_with)
    left = ends - ports.clock.monotonic()
    if left <= 0:
        return Failed(FaultKind.TRANSIENT, "DEADLINE", "verification took too long")
    digest = ports.converter.seal(folder, action.revision, action.precision, left, provenance)
    ports.store.check_compatible(digest, action.compatible_with)  # check 15
    if not action.is_kept_source:
        ports.store.keep_source(action.update_id, action.source_digest)
    return Sealed(digest, action.source_digest)
