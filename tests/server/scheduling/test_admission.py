"""Admission: what is refused, with which reason, and when the caller is told to come back."""

import pytest

from common.errors import DeadlineMissed, HotslotError, Overloaded
from inference.call_cost import CallCost
from inference.server.scheduling.admission import AdmissionController, AdmissionRequest, Capacity, Load, check_admission
from inference.server.scheduling.in_flight import Estimate

IDLE = Load(requests=0, size_bytes=0, lateness_seconds=0.0, max_queued_seconds=None)
CAPACITY = Capacity(max_requests=10, max_bytes=1000)


def request(
    left: float = 10.0, wait: float = 0.0, own: float = 0.1, quota: float = 0.0, size: int = 1, *, stream: bool = False
) -> AdmissionRequest:
    """A request of one row."""
    return AdmissionRequest(1, size, left, Estimate(0.0, wait, own, own), quota, is_stream_item=stream)


def refused(asked: AdmissionRequest, load: Load = IDLE) -> str:
    """The reason of a refusal; empty if the request is admitted."""
    refusal = check_admission(load, CAPACITY, asked)
    return refusal.reason if refusal else ""


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request(), ""),
        (request(left=0.0), "DEADLINE_EXPIRED"),
        (request(left=1.0, own=1.1), "DEADLINE_TOO_SHORT"),
        (request(left=1.0, own=0.4, wait=0.5), ""),
        (request(left=1.0, own=0.4, wait=0.7), "QUEUE_FULL"),
        (request(left=1.0, own=0.0, wait=0.0), ""),
        (request(quota=0.5), "QUOTA_EXCEEDED"),
    ],
)
def test_a_request_is_admitted_if_it_is_answered_in_time(asked: AdmissionRequest, reason: str) -> None:
    """The wait and its own time are compared with the time left; what is not known yet refuses nothing."""
    assert refused(asked) == reason


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request(wait=5.0, stream=True), ""),
        (request(left=1.0, wait=5.0, stream=True), ""),
        (request(quota=5.0, stream=True), ""),
        (request(left=1.0, own=2.0, stream=True), "DEADLINE_TOO_SHORT"),
        (request(left=0.0, stream=True), "DEADLINE_EXPIRED"),
    ],
)
def test_a_stream_item_is_not_refused_for_load(asked: AdmissionRequest, reason: str) -> None:
    """Its stream is read no further; only what could never be answered is refused."""
    assert refused(asked, Load(10, 0, 0.0, max_queued_seconds=0.25)) == reason


def test_in_overload_the_wait_is_limited() -> None:
    """A caller whose own wait is short is admitted, others are not, whatever their deadline."""
    load = Load(5, 0, 0.0, max_queued_seconds=0.25)
    assert (refused(request(wait=0.2), load), refused(request(wait=0.3), load)) == ("", "QUEUE_FULL")


def test_in_overload_the_only_request_of_a_flow_may_wait_for_half_of_its_time() -> None:
    """A caller that waits for its answers offers no more than is served, however many such callers there are."""
    load = Load(5, 0, 0.0, max_queued_seconds=0.25)

    def only(wait: float) -> AdmissionRequest:
        return AdmissionRequest(1, 1, 10.0, Estimate(0.0, wait, 0.1, 0.1, is_first=True))

    assert (refused(only(4.9), load), refused(only(5.1), load)) == ("", "QUEUE_FULL")


def test_limits_of_requests_and_bytes() -> None:
    """Tiny requests are bounded by their number, large ones by their bytes; a single request is never too large."""
    assert refused(request(), Load(10, 0, 0.0, None)) == "QUEUE_FULL"
    assert refused(request(size=600), Load(1, 600, 0.0, None)) == "QUEUE_FULL"
    assert refused(request(size=6000), Load(0, 0, 0.0, None)) == ""


class Model:
    """A model whose requests take 0.1 s each."""

    def __init__(self) -> None:
        self.now = 100.0
        self.cost = CallCost(0.1)
        self.admission = AdmissionController(CAPACITY, self.now)

    def refuse(self, asked: AdmissionRequest) -> HotslotError:
        """The error of a request that is refused."""
        with pytest.raises(HotslotError) as caught:
            self.admission.admit(asked, self.cost, self.now)
        return caught.value


def test_a_refused_caller_is_told_when_there_is_room_for_it() -> None:
    """The excess of the wait over what its deadline allows."""
    error = Model().refuse(request(left=2.0, wait=10.0))
    assert (type(error), error.reason) == (Overloaded, "QUEUE_FULL")
    assert error.retry_after_seconds == pytest.approx(11.0 + 0.1 - 2.0)


def test_refused_callers_are_told_to_come_back_one_after_the_other() -> None:
    """Ten callers that are refused at once come back as fast as they can be served, not together."""
    model = Model()
    delays = [model.refuse(request(left=2.0, wait=2.0)).retry_after_seconds or 0.0 for _ in range(5)]
    assert delays == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7])
    model.now += 60
    assert model.refuse(request(left=2.0, wait=2.0)).retry_after_seconds == pytest.approx(0.3)


def test_the_time_to_come_back_is_bounded_and_never_zero() -> None:
    """Thousands of refusals do not send the last one away for an hour."""
    model = Model()
    delays = [model.refuse(request(left=2.0, wait=1.9)).retry_after_seconds or 0.0 for _ in range(1000)]
    assert min(delays) >= 0.02
    assert max(delays) < 12.0


def test_a_deadline_that_no_server_could_meet_has_no_time_to_come_back() -> None:
    """Waiting does not help, so the caller is not told to wait."""
    error = Model().refuse(request(left=1.0, own=1.1))
    assert (type(error), error.retry_after_seconds) == (DeadlineMissed, None)


def test_a_caller_over_its_quota_is_told_when_it_is_within_it() -> None:
    """Independently of the load."""
    error = Model().refuse(request(quota=0.7))
    assert (error.reason, error.retry_after_seconds) == ("QUOTA_EXCEEDED", 0.7)


def test_what_is_admitted_is_counted_until_it_is_released() -> None:
    """By number and bytes; a refusal counts nothing."""
    model = Model()
    model.admission.admit(request(size=400), model.cost, model.now)
    model.refuse(request(size=601))
    assert (model.admission.requests, model.admission.size_bytes) == (1, 400)
    model.admission.release(400, 1)
    assert (model.admission.requests, model.admission.size_bytes) == (0, 0)


def test_items_of_streams_take_no_place_of_unary_requests() -> None:
    """However many wait, and however large they are: they wait in their own order, and their streams are held back."""
    model = Model()
    for _ in range(3 * CAPACITY.max_requests):
        model.admission.admit(request(size=CAPACITY.max_bytes, stream=True), model.cost, model.now)
    for _ in range(CAPACITY.max_requests):
        model.admission.admit(request(), model.cost, model.now)
    assert model.refuse(request()).reason == "QUEUE_FULL"
    for _ in range(3 * CAPACITY.max_requests):
        model.admission.release(CAPACITY.max_bytes, 1, is_stream_item=True)
    assert (model.admission.requests, model.admission.size_bytes) == (CAPACITY.max_requests, CAPACITY.max_requests)


def test_what_comes_later_than_expected_is_kept_free() -> None:
    """Once answers were late, less is admitted at the limit; at most a quarter of the deadline is kept."""
    model = Model()
    at_limit = request(left=1.0, wait=0.75)
    model.admission.admit(at_limit, model.cost, model.now)
    for _ in range(30):
        model.admission.learn_lateness(0.2)
    assert model.refuse(at_limit).reason == "QUEUE_FULL"
    model.admission.admit(request(left=1.0, wait=0.5), model.cost, model.now)
    for _ in range(30):
        model.admission.learn_lateness(5.0)
    model.admission.admit(request(left=1.0, wait=0.5), model.cost, model.now)
