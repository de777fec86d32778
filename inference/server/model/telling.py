"""What is told of slots: events for those who listen, errors for those who asked. Pure."""

from common import errors
from hotslot.runner.v1 import runner_pb2
from inference.server.events import SlotChanged
from inference.server.model.roles import Roles
from inference.server.model.shortage import SHORTAGES
from inference.server.model.slot import Slot


def slot_event(model: str, roles: Roles, slot: Slot, change: str, detail: str, reason: str = "") -> SlotChanged:
    """A change of a slot, with what it holds now."""
    load = slot.load
    return SlotChanged(
        model=model,
        slot=slot.name,
        change=change,
        state=slot.state,
        role=roles.role_of(slot),
        revision="" if load is None else load.bundle.revision,
        digest="" if load is None else load.bundle.bundle_digest,
        device="" if load is None else load.device,
        pid=0 if slot.process is None else slot.process.pid,
        seconds=0.0 if load is None else load.load_seconds,
        detail=detail,
        reason=reason,
    )


def load_error(outcome: runner_pb2.LoadOutcome) -> errors.HotslotError:
    """Say why a load failed in the words of the control socket."""
    failure = outcome.failure
    if failure.reason in SHORTAGES:
        numbers = {"needed_bytes": outcome.needed_bytes, "free_bytes": outcome.free_bytes}
        metadata = {"device": outcome.device, **{name: str(number) for name, number in numbers.items() if number}}
        return errors.Overloaded(failure.message, reason=failure.reason, metadata=metadata)
    if failure.reason in ("BUNDLE_BROKEN", "BUNDLE_FOREIGN"):
        return errors.Conflict(failure.message, reason=failure.reason)
    return errors.Interrupted(failure.message, reason=failure.reason or "LOAD_FAILED")
