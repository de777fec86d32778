"""Effects in the small world: what each does to the server, the hub and the disk."""

from dataclasses import replace

from tests.updater.core.crash_world import (
    CARD,
    CPU,
    GONE,
    OTHER,
    Card,
    Kind,
    Published,
    Server,
    World,
    gate_answers,
    keep,
    release_of,
)
from updater.core import effects as act
from updater.core.effects import Effect, EffectFailure, FailureKind, Result
from updater.core.record import ModelRecord, Stage, UpdateKind
from updater.core.versions import hub_name
from updater.stages.choice import select_names

_MOVED = EffectFailure(FailureKind.TRANSIENT, "SERVER_UNREACHABLE", "")


def perform(world: World, action: Effect) -> tuple[World, Result]:  # noqa: PLR0911  one line an action
    """The world after an effect, and its result."""
    match action:
        case act.PollHub():
            wanted = select_names([row.revision for row in world.hub], action)
            rows = tuple(release_of(row) for row in world.hub if row.revision in wanted)
            return world, act.Listed(tuple(row.revision for row in world.hub), rows)
        case act.StageRevision():
            return world, _stage(world, action)
        case act.VerifyAndSeal():
            return _seal(world, action)
        case act.WritePointer(installed):
            return world._replace(pointer=installed), None
        case act.CollectGarbage():
            return world._replace(sealed=world.sealed & action.keep_bundles), None
        case act.LoadBundle() | act.RunGate() | act.ActivateLoad() | act.ActivatePrevious():
            return _ask_server(world, action) if world.server.is_up else (world, _MOVED)
        case act.CommitLoad() | act.RetireLoad() | act.CopyRequests() | act.SetPercent():
            return _tell_server(world, action) if world.server.is_up else (world, _MOVED)
        case act.Probe():
            return _probe(world, action) if world.server.is_up else (world, _MOVED)
        case _:
            return world, None


def end_server(world: World, *, orderly: bool) -> World:
    """The server's process ends, and with it everything that was in memory only."""
    # A trial that ended by itself a moment before looks no different to the updater.
    is_blamed = world.record.stage in (Stage.ACTIVATING, Stage.OBSERVING, Stage.COMMITTING) and not orderly
    is_blamed = is_blamed and not is_failback(world)  # whose device may be blamed, and no revision
    server = Server(is_up=False, ended_orderly=orderly)
    world = world._replace(server=server, crashed=world.crashed or is_blamed)
    return world._replace(record=keep(_forget_incarnation(world)))


def cut_power(world: World) -> World:
    """The machine loses its power: both processes end, and a trial under way is not to blame."""
    crashed, update = world.crashed, world.record.update
    world = end_server(world, orderly=False)._replace(has_begun=False, crashed=crashed)
    if update is None or not update.boot_id:
        return world
    return world._replace(record=keep(world.record.with_update(boot_id=OTHER)))


def start_server(world: World) -> World:
    """A server starts and loads what the pointer names."""
    server = world.server._replace(is_up=True)
    if world.pointer is not None and world.pointer.bundle_digest in world.sealed:
        device = CARD if world.card is not None and not world.fallback else CPU
        server = server.with_load(0, world.pointer.bundle_digest, device)._replace(active=0)
    return world._replace(server=server)


def let_breaker_wait(world: World) -> World:
    """The open time of the device breaker has passed."""
    record = replace(world.record, device=replace(world.record.device, left_seconds=0.0))
    return world._replace(record=keep(record), must_wait_for_breaker=False)


def is_failback(world: World) -> bool:
    """Whether a failback is under way."""
    return world.record.update is not None and world.record.update.kind is UpdateKind.FAILBACK


def send_traffic(world: World) -> World:
    """Callers send enough requests for a verdict on the trial."""
    if world.card is Card.SPIKY and world.server.serving_on == CARD:
        return run_out_of_memory(world)
    return world._replace(server=world.server._replace(traffic=world.server.traffic + 1))


def run_out_of_memory(world: World) -> World:
    """An item is too large for the card: the previous slot answers it, or the server falls back to the CPU."""
    server = world.server
    if server.on_trial:
        return world._replace(server=server.with_previous_active("ROLLED_BACK", "OUT_OF_MEMORY"))
    other = 1 - server.active
    taken = server.load_id(other)
    server = server.with_load(server.active, "").with_load(other, server.serving)._replace(active=other, previous=-1)
    number = world.fallbacks + 1
    world = world._replace(server=server, fallback=number, fallbacks=number, must_wait_for_breaker=True)
    return world._replace(record=keep(_forget_load(world, taken)))


def _stage(world: World, action: act.StageRevision) -> Result:
    found = _on_hub(world, action.revision)
    if found is None:
        return EffectFailure(FailureKind.PERMANENT, "REVISION_UNKNOWN", "")
    if found.source_digest != action.source_digest:
        return EffectFailure(FailureKind.NOT_READY, "LISTING_CHANGED", "")
    return act.Staged(found.source_digest)


def _seal(world: World, action: act.VerifyAndSeal) -> tuple[World, Result]:
    kind = action.source_digest.rsplit(" ", 1)[1]
    if kind == Kind.CORRUPT:
        return world, EffectFailure(FailureKind.TRANSIENT, "CONTENT_MISMATCH", "")
    digest = action.source_digest.replace("source", "bundle", 1)
    return world._replace(sealed=world.sealed | {digest}), act.Sealed(digest, action.source_digest)


def _ask_server(  # noqa: PLR0911  one line a case
    world: World, action: act.LoadBundle | act.RunGate | act.ActivateLoad | act.ActivatePrevious
) -> tuple[World, Result]:
    server = world.server
    match action:
        case act.LoadBundle():
            return _load(world, action.bundle_digest, action.device)
        case act.RunGate():
            slot = server.holding(action.load_id)
            if slot < 0:
                return world, EffectFailure(FailureKind.TRANSIENT, "LOAD_UNKNOWN", "")
            return world, act.Gated(gate_answers(world, slot))
        case act.ActivatePrevious():
            if not server.on_trial or server.holding(action.load_id) != server.previous:
                return world, EffectFailure(FailureKind.TRANSIENT, "LOAD_UNKNOWN", "")
            return world._replace(server=server.with_previous_active("ROLLED_BACK")), None
    slot = server.holding(action.load_id)
    if slot < 0:
        return world, EffectFailure(FailureKind.TRANSIENT, "LOAD_UNKNOWN", "")
    if slot != server.active:
        if server.on_trial:
            return world, EffectFailure(FailureKind.TRANSIENT, "GENERATION_CONFLICT", "")
        percent = 100.0 if action.percent is None else action.percent
        server = server._replace(
            active=slot, on_trial=True, previous=server.active, traffic=0, shadow=-1, percent=percent
        )
    return world._replace(server=server), act.Activated()


def _tell_server(
    world: World, action: act.CommitLoad | act.RetireLoad | act.CopyRequests | act.SetPercent
) -> tuple[World, Result]:
    server = world.server
    slot = server.holding(action.load_id)
    if isinstance(action, act.CopyRequests | act.SetPercent):
        return _set_traffic(world, action, slot)
    if isinstance(action, act.CommitLoad):
        if slot < 0 or slot != server.active:
            return world, EffectFailure(FailureKind.TRANSIENT, "NOT_ON_TRIAL", "")
        left = 0 if server.serving_on == CARD else world.fallback
        return world._replace(
            server=server.with_trial_ended("COMMITTED") if server.on_trial else server, fallback=left
        ), None
    if slot < 0:
        return world, None
    if server.on_trial and slot == server.active and server.previous < 0:
        server = server.with_trial_ended("ROLLED_BACK")._replace(active=-1)
    elif slot in (server.active, server.previous):
        return world, EffectFailure(FailureKind.TRANSIENT, "SLOT_IN_USE", "")
    world = world._replace(server=server.with_load(slot, ""))
    return world._replace(record=keep(_forget_load(world, action.load_id))), None


def _set_traffic(world: World, action: act.CopyRequests | act.SetPercent, slot: int) -> tuple[World, Result]:
    server = world.server
    if isinstance(action, act.CopyRequests):
        if slot < 0 or slot in (server.active, server.previous):
            return world, EffectFailure(FailureKind.TRANSIENT, "SLOT_IN_USE", "")
        return world._replace(server=server._replace(shadow=slot, traffic=0)), None
    if slot < 0 or slot != server.active or not server.on_trial:
        return world, EffectFailure(FailureKind.TRANSIENT, "NOT_ON_TRIAL", "")
    return world._replace(server=server._replace(percent=action.percent)), None


def _load(world: World, digest: str, device: str) -> tuple[World, Result]:
    server = world.server
    configured = CARD if world.card is not None and not world.fallback else CPU
    device = device or server.serving_on or configured
    for number in (0, 1):
        if (server.slots[number], server.devices[number]) == (digest, device):
            return world, act.Loaded(server.load_id(number))
    if digest not in world.sealed:
        return world, EffectFailure(FailureKind.PERMANENT, "BUNDLE_UNKNOWN", "")
    if device == CARD and world.card is Card.FULL:
        return world, EffectFailure(FailureKind.PERMANENT, "DOES_NOT_FIT", "")
    free = next((number for number in (0, 1) if not server.slots[number] and number != server.active), None)
    if free is None:
        return world, EffectFailure(FailureKind.TRANSIENT, "NO_FREE_SLOT", "")
    server = server.with_load(free, digest, device)
    return world._replace(server=server), act.Loaded(server.load_id(free))


def _probe(world: World, action: act.Probe) -> tuple[World, Result]:
    if world.server.holding(action.load_id) != world.server.active:
        return world, EffectFailure(FailureKind.TRANSIENT, "LOAD_UNKNOWN", "")
    if world.card is Card.SPIKY and world.server.serving_on == CARD:
        return run_out_of_memory(world), act.Probed(0, 1)
    return world, act.Probed(1, 0)


def _on_hub(world: World, revision: str) -> Published | None:
    return next((row for row in world.hub if row.revision == hub_name(revision)), None)


def _forget_incarnation(world: World) -> ModelRecord:
    """Ids are not reused by a real server: those in the record match nothing after its end."""
    update = world.record.update
    if update is None:
        return world.record
    return world.record.with_update(
        load_id=GONE if update.load_id else "", server_incarnation=OTHER if update.server_incarnation else ""
    )


def _forget_load(world: World, load_id: str) -> ModelRecord:
    update = world.record.update
    if update is None or update.load_id != load_id:
        return world.record
    return world.record.with_update(load_id=GONE)
