"""The load of the update under way, as the front shows it: by bundle, and by device where the update names one. Pure.

Going back to a device that ran out of memory loads the very bundle that answers: there the bundle alone
tells nothing.
"""

from updater.ports import FrontState, SlotSeen
from updater.record import Counts, Update


def slot_of(update: Update, front: FrontState) -> SlotSeen | None:
    """The slot that holds it, if one does."""
    return front.holding(update.bundle_digest, update.device)


def is_on_trial(update: Update, front: FrontState) -> bool:
    """Whether the trial under way is this update's."""
    trial, slot = front.trial, slot_of(update, front)
    if trial is None or trial.bundle_digest != update.bundle_digest:
        return False
    return not update.device or (slot is not None and slot.load_id == trial.load_id)


def counts_of(update: Update, front: FrontState) -> Counts:
    """What the front has counted of it in this life."""
    return front.counts_of(update.bundle_digest, update.device)


def others(front: FrontState) -> list[SlotSeen]:
    """Loads that do not answer and may be retired; the front's own move to another device is left alone."""
    return [slot for slot in front.occupied if slot.load_id != front.active_load_id and slot.role != "FALLBACK"]
