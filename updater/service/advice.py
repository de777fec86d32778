"""What a person should do, in one sentence; empty where nothing must be done. Pure."""

from updater.core.breaker import BreakerState
from updater.core.record import HeldFor, ModelRecord, Outcome, Stage
from updater.store.journal import PastUpdate

_APPROVE = (
    "look at it with `hotslot updates show {id}`, then `hotslot updates approve {digest}` or publish a better one"
)
_HELD = {
    HeldFor.APPROVAL: "policy asks a person: " + _APPROVE,
    HeldFor.AGREEMENT: "it answers otherwise than what serves, which may be better: " + _APPROVE,
    HeldFor.NOISE: "the golden set is too small to tell: add items with expectations, or " + _APPROVE,
    HeldFor.SLOWER: "it needs more device time, or answers later, than what serves, which may be the machine's doing: "
    "`hotslot updates resume` tries it again; or " + _APPROVE,
    HeldFor.NO_GOLDEN: "make a golden set with `hotslot golden record FOLDER` and name it in hotslot.toml, or "
    + _APPROVE,
    HeldFor.GOLDEN_UNUSABLE: "mend the golden set (`hotslot golden show` says what is wrong), or " + _APPROVE,
    HeldFor.DOES_NOT_FIT: "it needs more memory than there is: free some, then `hotslot updates resume` tries it again",
    HeldFor.INCONCLUSIVE: "it came to no verdict: see `hotslot updates show {id}`, then `hotslot updates resume`",
    HeldFor.CONVERSION: "this hotslot cannot convert what is committed; what serves stays: `hotslot updates resume`",
    HeldFor.SERVER_CRASHED: "the server died while it was tried: see its log, then `hotslot updates resume`",
    HeldFor.TAKEN_BACK: "somebody else ended its trial: find out who, then `hotslot updates resume`",
    HeldFor.COMMITTED_BROKEN: "the committed revision no longer loads, the one before serves: publish a new revision",
    HeldFor.STUCK: "it took too many steps: see `hotslot updates show {id}`, then `hotslot updates resume`",
}


def advice_for(record: ModelRecord) -> str:
    """What to do about a model's updates as they stand."""
    update = record.update
    if record.stage is Stage.HELD and update is not None:
        held_for = None if update.ending is None else update.ending.held_for
        text = _HELD.get(held_for or HeldFor.STUCK, _HELD[HeldFor.STUCK])
        return text.format(id=update.update_id, digest=_short(update.source_digest)) + _waiting_return(record)
    if record.paused:
        why = f" ({record.pause_reason})" if record.pause_reason else ""
        return f"updates are on hold{why}: `hotslot updates resume` takes them again" + _waiting_return(record)
    return _about_breakers(record) or record.watch.message


def advice_for_past(past: PastUpdate, record: ModelRecord | None) -> str:
    """What to do about one update."""
    is_current = record is not None and record.update is not None and record.update.update_id == past.update.update_id
    if is_current and record is not None:
        return advice_for(record)
    is_blocked = record is not None and record.is_quarantined(past.update.source_digest)
    if is_blocked:
        digest = _short(past.update.source_digest)
        return f"publish a better revision; if this one is wrongly accused, `hotslot updates unquarantine {digest}`"
    if past.outcome is Outcome.ABANDONED:
        return "nothing: it stopped without blame and is taken up again by itself"
    return ""


def _about_breakers(record: ModelRecord) -> str:
    """The breaker that waits, the one first that a person can do something about."""
    if record.activation.state is BreakerState.OPEN:
        return "too many updates failed: see `hotslot updates history`, then `hotslot updates breaker reset activation`"
    if record.cpu_fallback is not None and record.device.state is BreakerState.OPEN:
        return (
            f"{record.cpu_fallback.device} ran out of memory: free some; it is tried again by itself, or at once with "
            "`hotslot updates breaker reset device`"
        )
    if record.hub.state is BreakerState.OPEN:
        return f"the hub does not answer: {record.hub.reason or 'see the log'}; it is asked again by itself"
    return ""


def _waiting_return(record: ModelRecord) -> str:
    """What else waits for a person: from HELD or on hold no device is tried."""
    return "" if record.cpu_fallback is None else f"; the way back to {record.cpu_fallback.device} waits for this too"


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
