"""Requests whose pictures take long to decode: they wait apart, so that they keep no other request waiting. Pure."""

from inference.server.request import PendingRequest
from inference.server.scheduling.fair_queue import FairQueue
from inference.server.scheduling.in_flight import MAX_IN_FLIGHT_BYTES, InFlight


class SlowPictures:
    """Requests that the runner has postponed, in fair order.

    A runner that is sent such a picture without notice says what it takes and drops it. It is sent again when the
    runner holds fewer than it can decode at once; it does not count in the window of the others.
    """

    def __init__(self, interactive_share: float) -> None:
        self.queue: FairQueue[PendingRequest] = FairQueue(interactive_share)
        self.places = 1  # such items that the runner takes at once, as it says

    def postpone(self, request: PendingRequest, seconds: float, places: int) -> None:
        """Let a request wait until the runner has a place for it.

        Args:
            request: the runner has looked at its picture.
            seconds: what decoding takes, by its estimate.
            places: such items that the runner takes at once.
        """
        request.decoding_seconds = seconds
        self.places = max(1, places)
        self.put(request)

    def put(self, request: PendingRequest) -> None:
        """Append a request of which a runner has said what it takes."""
        self.queue.put(request, request.rows, request.flow)

    def choose(self, held: InFlight) -> PendingRequest | None:
        """The request to send now, which stays in the queue; None if there is none or no place.

        Args:
            held: what the runner holds.
        """
        request = self.queue.peek()
        if request is None or not held:
            return request
        if request.alone or held.is_alone or held.slow_items >= self.places:
            return None
        return request if held.size_bytes + request.size_bytes <= MAX_IN_FLIGHT_BYTES else None
