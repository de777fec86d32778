"""Who is let in: admission by expected completion, quotas, and the turns of streams to read."""

from collections.abc import Callable, Sequence

from common import errors
from inference.server.events import OverloadChanged
from inference.server.model.options import ModelOptions
from inference.server.request import Payload, PendingRequest
from inference.server.scheduling.admission import AdmissionController, AdmissionRequest
from inference.server.scheduling.dispatcher import Dispatcher
from inference.server.scheduling.fair_queue import Source
from inference.server.scheduling.in_flight import Estimate
from inference.server.scheduling.turns import TurnGate


class Intake:
    """The entrance of one model. Loop thread only."""

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

    def admit(self, payload: Payload, deadline: float, source: Source, dispatcher: Dispatcher) -> float:
        """Count a request; `release` must follow.

        Args:
            payload: of the request.
            deadline: clock.monotonic() at which it fails.
            source: its caller and flow.
            dispatcher: of the slot that it would go to.

        Returns:
            Expected seconds until its answer; 0 if unknown, and for an item of a stream.

        Raises:
            HotslotError: refused.
        """
        now, rows, caller = self._options.clock.monotonic(), payload.rows, source.caller
        is_stream, cost = source.flow.stream > 0, dispatcher.cost
        quota = 0.0 if is_stream or caller.quota is None else caller.quota_wait(now)
        # An item of a stream is not refused for the work before it: only its own decides.
        estimate = Estimate(own=cost.at_best(rows)) if is_stream else dispatcher.estimate(source.flow, rows)
        facts = AdmissionRequest(rows, payload.size_bytes, deadline - now, estimate, quota, is_stream)
        try:
            self.admission.admit(facts, cost, now)
        except errors.DeadlineMissed as error:
            self.is_cost_doubted = self.is_cost_doubted or error.reason == "DEADLINE_TOO_SHORT"
            raise
        if is_stream:
            self.turns.add_unsent(rows)
            return 0.0
        if caller.quota is not None:
            caller.use_quota(rows, now)
        return estimate.total

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
        self.admission.release(request.size_bytes, 0 if request.is_abandoned else request.rows)

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
