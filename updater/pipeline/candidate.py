"""The load of the update under way, as the server shows it: by bundle, and by device where the update names one. Pure.

Going back to a device that ran out of memory loads the very bundle that answers: there the bundle alone
tells nothing.
"""

from updater.ports import ServerState, SlotSeen
from updater.record import Counts, Update


def slot_of(update: Update, server: ServerState) -> SlotSeen | None:
    """The slot that holds it, if one does."""
    return server.holding(update.bundle_digest, update.device)


def is_on_trial(update: Update, server: ServerState) -> bool:
    """Whether the trial under way is this update's."""
    trial, slot = server.trial, slot_of(update, server)
    if trial is None or trial.bundle_digest != update.bundle_digest:
        return False
    return not update.device or (slot is not None and slot.load_id == trial.load_id)


def counts_of(update: Update, server: ServerState) -> Counts:
    """What the server has counted of it in this life."""
    return server.counts_of(update.bundle_digest, update.device)


def others(server: ServerState) -> list[SlotSeen]:
    """Loads that do not answer and may be retired; the server's own move to another device is left alone."""
    return [slot for slot in server.occupied if slot.load_id != server.active_load_id and slot.role != "FALLBACK"]
