"""What is decided before a request is queued: the slot that it goes to, and whether it is let in.

The slot follows from the version that the caller names, the canary's part and the trial's time; these functions are
pure. `Intake` admits by expected completion and quotas, and lets streams read in turn.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

from common import errors
from common.bundle import Bundle
from common.records import record
from inference.server.events import OverloadChanged
from inference.server.model.options import ModelOptions
from inference.server.model.pair import ALL_PERCENT, Pair, SlotRecord
from inference.server.model.slot import Slot
from inference.server.request import PendingRequest, RequestTags
from inference.server.scheduling.admission import AdmissionController, AdmissionRequest
from inference.server.scheduling.dispatcher import Dispatcher
from inference.server.scheduling.fair_queue import Caller
from inference.server.scheduling.in_flight import Estimate
from inference.server.scheduling.turns import TurnGate

STABLE, CANARY = "stable", "canary"  # values of the metadata key, beside revisions and digests
DIGEST_PREFIX = "sha256:"  # may be left out
MIN_DIGEST_CHARS = 8  # after the prefix, of a digest that is cut short

# Time reserved for handing a request over from a trial to the previous slot: ticks, frames, a busy machine.
HANDOVER_SECONDS = 0.2  # at least
HANDOVER_SHARE = 0.25  # of the time left until the deadline

MAX_BEHIND_SECONDS = 0.2  # of work, that may wait for a canary beyond what waits for stable; less than in overload


@record
class RouteDecision:
    """The slot that a request goes to."""

    slot: str
    previous: str | None = None  # answers if the first one fails the request
    handover_at: float | None = None  # clock.monotonic() at which `previous` gets it; None: never


def choose_route(pair: Pair, slots: Mapping[str, Slot], request: PendingRequest, now: float) -> RouteDecision | None:
    """Choose the slot for a request; None if no slot is active.

    Without a trial this is the active slot, even while it is being reloaded. During a trial it is the slot on trial if
    the deadline leaves enough time for both slots and for what waits there, else the previous slot. While the previous
    slot is being reloaded, the trial may use the whole time; a request that it fails then waits for the previous slot.
    A canary gets its part of the requests only; while the previous slot is being reloaded, it gets all that do not name
    the stable version.

    Raises:
        NotFound: the caller names a version that no slot answers with.
        NotReady: the version that it names is unloaded for the one on trial.
    """
    if pair.trial is None and not request.tags.version:
        return None if pair.active is None else RouteDecision(pair.active)
    return _choose_version(pair, slots, request, now)


def _choose_version(pair: Pair, slots: Mapping[str, Slot], request: PendingRequest, now: float) -> RouteDecision | None:
    """The route during a trial, or of a request that names a version."""
    active, previous = pair.active_slot, pair.previous_of_trial
    if active is None:
        return None
    named = find_version(pair, request.tags.version)
    if named is not None and named is not active:
        return _route_to_other(pair, slots, request, now, named)
    if previous is None or previous.load is None:
        return RouteDecision(active.name)
    if active.is_loaded and not previous.is_loaded:
        return RouteDecision(active.name, previous.name, request.deadline)
    is_for_trial = active.is_loaded and (named is active or is_for_canary(pair, request.tags))
    if is_for_trial and pair.is_canary:
        is_for_trial = not _is_behind(slots[active.name], slots[previous.name], request)
    handover_at = _find_handover(slots[active.name], slots[previous.name], request, now) if is_for_trial else None
    if handover_at is None:
        return RouteDecision(previous.name)
    return RouteDecision(active.name, previous.name, handover_at)


def _route_to_other(
    pair: Pair, slots: Mapping[str, Slot], request: PendingRequest, now: float, named: SlotRecord
) -> RouteDecision:
    """The route of a request that names the previous slot's version; outside a trial the active slot helps it out."""
    active = pair.active_slot
    if pair.trial is not None or active is None or not active.is_loaded:
        return RouteDecision(named.name)
    handover_at = _find_handover(slots[named.name], slots[active.name], request, now)
    return RouteDecision(named.name) if handover_at is None else RouteDecision(named.name, active.name, handover_at)


def find_version(pair: Pair, version: str) -> SlotRecord | None:
    """The slot that answers with the version that a caller names; None if it names none.

    Raises:
        NotFound: no slot does.
        NotReady: the model that does is unloaded for the one on trial.
    """
    if not version:
        return None
    trial, previous = pair.trial, pair.previous_of_trial
    if version == CANARY and trial is not None:
        return pair[trial.slot]
    stable = pair.active_slot if trial is None else previous
    if version == STABLE and stable is not None:
        return stable
    warm = pair[pair.previous] if trial is None and pair.previous is not None else None
    # The stable slot first: a name or the beginning of a digest that two slots have is not the canary's.
    slots = (previous, pair.active_slot, warm if warm is not None and warm.is_loaded else None)
    bundles = [(slot, slot.load.bundle) for slot in slots if slot is not None and slot.load is not None]
    for has_name in _NAMES:
        for slot, bundle in bundles:
            if has_name(bundle, version):
                return slot
    gap = pair.gap
    if gap is not None and (version == STABLE or any(has(gap.load.bundle, version) for has in _NAMES)):
        raise errors.NotReady("this version is unloaded for the one on trial", retry_after_seconds=1.0)
    roles = [*([STABLE] if stable is not None else []), *([CANARY] if trial is not None else [])]
    names = [*roles, *(bundle.revision for _, bundle in bundles)]
    raise errors.NotFound(
        f"no version {version[:64]!r} here; there are {', '.join(names) or 'none'}",
        reason="VERSION_UNKNOWN",
        resource=("version", version[:128]),
    )


def _has_revision(bundle: Bundle, version: str) -> bool:
    return version == bundle.revision


def _has_digest(bundle: Bundle, version: str) -> bool:
    """Whether it is the beginning of the bundle's digest or of its source's, as tables show them."""
    digits = version.removeprefix(DIGEST_PREFIX)
    digests = (bundle.bundle_digest, bundle.source_digest)
    return len(digits) >= MIN_DIGEST_CHARS and any(one.startswith(DIGEST_PREFIX + digits) for one in digests)


_NAMES = (_has_revision, _has_digest)


def is_for_canary(pair: Pair, tags: RequestTags) -> bool:
    """Whether a request that names no version belongs to the trial's part of the requests.

    A higher percentage adds keys to the part and takes none away. Another bundle gets other keys first.
    """
    trial = pair.trial
    if trial is None or trial.percent >= ALL_PERCENT:
        return True
    return locate(pair[trial.slot].digest, tags.key) * ALL_PERCENT < trial.percent


def locate(salt: str, key: str) -> float:
    """The place of a key between 0 and 1, evenly spread: the same for the same salt and key, on every server."""
    digest = hashlib.blake2b(f"{salt}\0{key}".encode(errors="replace"), digest_size=7).digest()
    return int.from_bytes(digest) / (1 << 56)  # 56 bits: as a float it is below 1


def _is_behind(canary: Slot, stable: Slot, request: PendingRequest) -> bool:
    """Whether so much more waits for the canary that a request would be refused there and not by the stable version."""
    waits = [slot.dispatcher.estimate(request.flow, request.rows).wait for slot in (canary, stable)]
    return waits[0] > waits[1] + MAX_BEHIND_SECONDS


def _find_handover(first: Slot, second: Slot, request: PendingRequest, now: float) -> float | None:
    """The time until which the first slot may use a request; None if the second one has to answer it at once."""
    own, other = first.dispatcher, second.dispatcher
    rows = request.rows
    need = 2 * other.estimate(request.flow, rows).total if other.cost.is_known else other.limit_of(rows)
    expected = own.estimate(request.flow, rows)
    handover_at = trial_limit(now, request.deadline, expected.wait + own.limit_of(rows), need)
    return None if handover_at is None or now + expected.total > handover_at else handover_at


def trial_limit(now: float, deadline: float, own_limit: float, previous_need: float) -> float | None:
    """The time until which a trial may use a request before its handover; None if the deadline is too short for both.

    Args:
        now: the clock, seconds.
        deadline: of the request, on the same clock.
        own_limit: the trial's time limit, from its own load and measured cost, seconds.
        previous_need: seconds that the previous slot needs.
    """
    left = deadline - now
    room = left - previous_need - max(HANDOVER_SECONDS, HANDOVER_SHARE * left)
    if room <= 0:
        return None
    return now + min(own_limit, room)


def choose_handover_slot(pair: Pair, name: str) -> SlotRecord | None:
    """The slot for requests that a slot fails: the previous one in a trial, after a rollback the active one."""
    target = pair.active if pair.active != name else pair.previous
    return None if target is None or pair[target].load is None else pair[target]


class Intake:
    """Admits the requests of one model, and gives its streams their turns to read. Loop thread only."""

    def __init__(self, options: ModelOptions, find_dispatcher: Callable[[], Dispatcher | None]) -> None:
        """Create it.

        Args:
            options: of the model.
            find_dispatcher: the queue of the slot that answers, if any.
        """
        self._options = options
        self._find_dispatcher = find_dispatcher
        self.admission = AdmissionController(options.capacity, options.clock.monotonic())
        self.turns = TurnGate(options.interactive_share, options.clock, self._look_ahead_rows)
        self.is_cost_doubted = False  # a request was refused for the cost of its rows, and nothing was computed since

    def admit(self, request: PendingRequest, caller: Caller, dispatcher: Dispatcher) -> None:
        """Count a request, and note when its answer is expected; `release` must follow.

        Args:
            request: just made.
            caller: whose it is.
            dispatcher: of the slot that it would go to.

        Raises:
            HotslotError: refused.
        """
        now, rows, flow = request.accepted_at, request.rows, request.flow
        is_stream, cost = flow.stream > 0, dispatcher.cost
        quota = 0.0 if is_stream or caller.quota is None else caller.quota_wait(now)
        # An item of a stream is not refused for the work before it: only its own decides.
        estimate = Estimate(own=cost.at_best(rows)) if is_stream else dispatcher.estimate(flow, rows)
        facts = AdmissionRequest(rows, request.size_bytes, request.deadline - now, estimate, quota, is_stream)
        try:
            self.admission.admit(facts, cost, now)
        except errors.DeadlineMissed as error:
            self.is_cost_doubted = self.is_cost_doubted or error.reason == "DEADLINE_TOO_SHORT"
            raise
        if caller.quota is not None:
            caller.use_quota(rows, now)
        if is_stream:
            request.is_unsent_item = True
            self.turns.add_unsent(rows)
            return
        request.expected_seconds = estimate.total

    def count_sent(self, request: PendingRequest) -> None:
        """Count a stream item that was sent to the device, or is done without: its stream may read on."""
        if request.is_unsent_item:
            request.is_unsent_item = False
            self.turns.remove_unsent(request.rows)

    def release(self, request: PendingRequest) -> None:
        """Subtract an admitted request that is done."""
        if request.is_unsent_item:
            self.count_sent(request)
        if request.expected_seconds > 0 and not request.outcome.cancelled() and request.outcome.exception() is None:
            seconds = self._options.clock.monotonic() - request.accepted_at
            self.admission.learn_lateness(seconds - request.expected_seconds)
        served_rows = 0 if request.is_abandoned else request.rows
        self.admission.release(request.size_bytes, served_rows, is_stream_item=request.flow.stream > 0)

    def update(self, dispatchers: Sequence[Dispatcher], now: float) -> None:
        """Judge the load, and send and read what is due; called about every 50 ms."""
        for dispatcher in dispatchers:
            dispatcher.dispatch()  # the rows of the next device call are sent shortly before it
        self.turns.grant()
        answering = self._find_dispatcher()
        if answering is None:
            return
        is_idle = all(dispatcher.is_idle for dispatcher in dispatchers)
        if self.admission.update(answering.cost, is_idle=is_idle, now=now):
            self._options.emit(OverloadChanged(self._options.model, self.admission.overload.is_overloaded))

    def _look_ahead_rows(self) -> int:
        dispatcher = self._find_dispatcher()
        return 1 if dispatcher is None else dispatcher.look_ahead_rows
