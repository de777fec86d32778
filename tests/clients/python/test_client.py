"""Both clients against a server whose calls go wrong as told: every item has one outcome, every error its reason."""

import asyncio
import itertools
import pickle
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import pytest

import hotslot_client as hc
from hotslot.entailment.v1 import entailment_pb2 as pb
from tests.clients.python.scripted_service import (
    Code,
    Service,
    answer_all,
    answered,
    break_after,
    make_status,
)

DRAINING = make_status(Code.UNAVAILABLE, "DRAINING", 0.02)
QUICK = hc.StreamRules(first_pause=0.01, max_pause=0.02, outage_seconds=0.2)
LIMIT_SECONDS = 20.0

Outcomes = list[hc.Outcome[hc.EntailmentItem, hc.Prediction]]


class Blocking:
    """The asyncio client behind the synchronous one's face, for tests of both."""

    def __init__(self, address: str, **options: Any) -> None:  # noqa: ANN401
        self._client = hc.AsyncClient(address, **options)
        self._loop = asyncio.new_event_loop()

    def predict(self, *given: Any, **named: Any) -> hc.Prediction:  # noqa: ANN401
        """Await one call."""
        return self._loop.run_until_complete(self._client.predict(*given, **named))

    def predict_many(self, items: Iterable[hc.EntailmentItem], **named: Any) -> Iterator[Any]:  # noqa: ANN401
        """Await each outcome."""

        async def source() -> AsyncIterator[hc.EntailmentItem]:
            for item in items:
                await asyncio.sleep(0)
                yield item

        outcomes = self._client.predict_many(source(), **named)
        try:
            while True:
                try:
                    yield self._loop.run_until_complete(anext(outcomes))
                except StopAsyncIteration:
                    return
        finally:
            self._loop.run_until_complete(outcomes.aclose())  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        """The client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it, and the loop."""
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


Make = Callable[..., Any]


@pytest.fixture(params=["sync", "asyncio"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes a client of either kind."""
    return hc.Client if request.param == "sync" else Blocking


def items(count: int) -> Iterator[hc.EntailmentItem]:
    """Items that are told apart by their premise."""
    return (hc.EntailmentItem(b"picture", ["true?"], premise=str(number), key=number) for number in range(count))


def stream_with(make: Make, service: Service, count: int, **named: Any) -> Outcomes:  # noqa: ANN401
    """All outcomes of a stream of so many items; each must be there once and belong to its item."""
    with service.serve(), make(service.address) as client:
        outcomes = list(client.predict_many(items(count), **{"rules": QUICK, **named}))
    assert sorted(one.index for one in outcomes) == list(range(count))
    assert [one.item.key for one in outcomes] == [one.index for one in outcomes]
    return outcomes


def is_right(outcome: hc.Outcome[hc.EntailmentItem, hc.Prediction]) -> bool:
    """Whether the answer is that of the item."""
    return outcome.get().served_by.node == outcome.item.premise


def test_a_call_is_answered(make: Make, tmp_path: Path) -> None:
    """With typed results; a picture may be bytes or a path."""
    (tmp_path / "picture.png").write_bytes(b"picture")
    with Service().serve() as service, make(service.address) as client:
        for picture in (b"picture", tmp_path / "picture.png"):
            prediction = client.predict(picture, ["a", "b"], premise="p")
            assert prediction.labels == (hc.Label.YES, hc.Label.YES)
            assert [result.statement for result in prediction.results] == ["a", "b"]
            assert prediction.served_by.node == "p"


def test_a_refused_call_is_sent_again(make: Make) -> None:
    """When the server says; a large picture too."""
    service = Service(unary=[DRAINING, make_status(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", 0.02), None])
    with service.serve(), make(service.address) as client:
        assert client.predict(bytes(2 << 20), ["a"]).labels == ("yes",)

    assert len(service.metadata) == 3


@pytest.mark.parametrize(
    ("status", "kind", "attempts"),
    [
        (make_status(Code.INVALID_ARGUMENT, "IMAGE_UNREADABLE"), hc.InvalidRequest, 1),
        (make_status(Code.NOT_FOUND, "MODEL_UNKNOWN"), hc.NotFound, 1),
        (make_status(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", 0.01), hc.Overloaded, 5),
        (make_status(Code.UNAVAILABLE, "NOT_READY", 0.01), hc.Unavailable, 5),
        (make_status(Code.UNAUTHENTICATED, "TOKEN_MISSING"), hc.Unauthenticated, 1),
        (make_status(Code.INTERNAL, "POISON_INPUT"), hc.ServerFailed, 1),
        (make_status(Code.DATA_LOSS), hc.ServerFailed, 1),
    ],
)
def test_an_error_has_its_class_and_reason(make: Make, status: Any, kind: type[hc.HotslotError], attempts: int) -> None:  # noqa: ANN401
    """By the code; it can be sent to another process."""
    service = Service(unary=[status])
    with service.serve(), make(service.address) as client, pytest.raises(hc.HotslotError) as raised:
        client.predict(b"picture", ["a"])

    copy = pickle.loads(pickle.dumps(raised.value))  # noqa: S301  our own
    for error in (raised.value, copy):
        assert type(error) is kind
        assert error.reason == ("" if status.code == Code.DATA_LOSS.value[0] else status.message)
        assert error.message == status.message
    assert copy.__dict__ == raised.value.__dict__
    assert len(service.metadata) == attempts


def test_without_retries_the_first_error_is_raised(make: Make) -> None:
    """Of a call, of a stream, and as the outcome of an item."""
    busy = make_status(Code.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", 0.01)

    def refuse(found: Iterator[pb.StreamItem], _context: Any) -> Iterator[list[pb.StreamResult]]:  # noqa: ANN401
        for item in found:
            yield [pb.StreamResult(item_id=item.item_id, error=busy)]

    service = Service(unary=[DRAINING], streams=[answer_all, break_after(0, DRAINING), refuse])
    with service.serve(), make(service.address, retries=False) as client:
        with pytest.raises(hc.Unavailable, match="DRAINING"):
            client.predict(b"picture", ["a"])
        with pytest.raises(hc.Unavailable, match="DRAINING"):
            list(client.predict_many(items(3)))
        outcomes = list(client.predict_many(items(3)))

    assert [one.error.reason for one in outcomes] == ["OUT_OF_MEMORY"] * 3
    assert len(service.metadata) == 3


@pytest.mark.parametrize("is_ordered", [True, False])
def test_every_item_has_one_outcome(make: Make, is_ordered: bool) -> None:  # noqa: FBT001
    """In the order of the items, or as they come."""
    outcomes = stream_with(make, Service(), 300, ordered=is_ordered)

    assert all(map(is_right, outcomes))
    assert not is_ordered or [one.index for one in outcomes] == list(range(300))


@pytest.mark.parametrize(
    "status",
    [DRAINING, make_status(Code.UNAVAILABLE), make_status(Code.INTERNAL), make_status(Code.CANCELLED)],
    ids=["drained", "broken", "reset", "cancelled by a proxy"],
)
def test_what_a_broken_stream_leaves_is_sent_again(make: Make, status: Any) -> None:  # noqa: ANN401
    """Nothing that was answered is sent a second time, however often streams break."""
    service = Service(streams=[break_after(7, status), break_after(1, status), break_after(0, status), answer_all])
    outcomes = stream_with(make, service, 100)

    assert all(map(is_right, outcomes))
    assert len(service.metadata) == 4
    assert all(service.received[str(number)] == 1 for number in range(7))


def test_a_stream_that_ends_early_with_ok_is_broken_too(make: Make) -> None:
    """A proxy may do so."""

    def stop(found: Iterator[pb.StreamItem], _context: Any) -> Iterator[list[pb.StreamResult]]:  # noqa: ANN401
        yield [answered(next(found))]

    assert all(map(is_right, stream_with(make, Service(streams=[stop, answer_all]), 20)))


def test_further_outcomes_of_an_item_are_dropped(make: Make) -> None:
    """Of items that have one, and of items that were never sent."""

    def repeat(found: Iterator[pb.StreamItem], _context: Any) -> Iterator[list[pb.StreamResult]]:  # noqa: ANN401
        for item in found:
            stranger = pb.StreamResult(item_id="stranger", response=pb.PredictResponse())
            yield [answered(item), answered(item), stranger]

    assert all(map(is_right, stream_with(make, Service(streams=[repeat]), 50)))


def test_an_item_is_sent_again_while_that_may_help(make: Make) -> None:
    """One that is refused for a moment is answered; one that is wrong, or always refused, has its error."""
    seen: Counter[str] = Counter()

    def refuse(found: Iterator[pb.StreamItem], _context: Any) -> Iterator[list[pb.StreamResult]]:  # noqa: ANN401
        for item in found:
            seen[item.request.premise] += 1
            number = int(item.request.premise)
            busy = make_status(Code.UNAVAILABLE, "NOT_READY", 0.01)
            wrong = make_status(Code.INVALID_ARGUMENT, "IMAGE_UNREADABLE")
            error = {1: wrong, 2: busy}.get(number, busy if number == 3 and seen["3"] < 4 else None)
            yield [answered(item) if error is None else pb.StreamResult(item_id=item.item_id, error=error)]

    outcomes = stream_with(make, Service(streams=[refuse]), 6)

    reasons = [one.error.reason if isinstance(one.error, hc.HotslotError) else "" for one in outcomes]
    assert reasons == ["", "IMAGE_UNREADABLE", "NOT_READY", "", "", ""]
    assert seen == {"0": 1, "1": 1, "2": 5, "3": 4, "4": 1, "5": 1}


def test_an_item_that_breaks_every_stream_has_an_error(make: Make) -> None:
    """As one that is larger than a server of other settings accepts; the others are answered."""

    def choke(found: Iterator[pb.StreamItem], context: grpc.ServicerContext) -> Iterator[list[pb.StreamResult]]:
        for item in found:
            if item.request.premise == "5":
                context.abort(Code.RESOURCE_EXHAUSTED, "Received message larger than max")
            yield [answered(item)]

    outcomes = stream_with(make, Service(streams=[choke]), 20)

    (bad,) = [one for one in outcomes if one.error is not None]
    assert bad.index == 5
    assert isinstance(bad.error, hc.Overloaded)
    assert all(is_right(one) for one in outcomes if one is not bad)


def test_an_item_larger_than_a_message_has_an_error(make: Make, tmp_path: Path) -> None:
    """It is not sent; so have one whose file is missing, and one whose text is none."""
    given = [
        hc.EntailmentItem(bytes(33 << 20), ["a"]),
        hc.EntailmentItem(tmp_path / "none.png", ["a"]),
        hc.EntailmentItem(b"picture", ["\ud800"]),
        *items(2),
    ]
    with Service().serve() as service, make(service.address) as client:
        outcomes = list(client.predict_many(given))

    assert [type(one.error) for one in outcomes] == [
        hc.Overloaded,
        FileNotFoundError,
        UnicodeEncodeError,
        type(None),
        type(None),
    ]


@pytest.mark.parametrize("code", [Code.UNAUTHENTICATED, Code.UNIMPLEMENTED, Code.NOT_FOUND])
def test_a_stream_that_is_not_permitted_fails_at_once(make: Make, code: Code) -> None:
    """Sending it again would not help."""
    service = Service(streams=[break_after(0, make_status(code))])
    with service.serve(), make(service.address) as client, pytest.raises(hc.HotslotError) as raised:
        list(client.predict_many(items(3), rules=QUICK))

    assert raised.value.code == code.name
    assert len(service.metadata) == 1


def test_an_outage_is_reported(make: Make) -> None:
    """When no server has given any outcome for the time of the rules; what came before has been returned."""
    away = break_after(0, make_status(Code.UNAVAILABLE, "DRAINING", 0.0))
    with Service(streams=[break_after(3, DRAINING), away]).serve() as service, make(service.address) as client:
        outcomes = client.predict_many(items(9), rules=QUICK)
        assert [next(outcomes).index for _ in range(3)] == [0, 1, 2]
        with pytest.raises(hc.Unavailable):
            next(outcomes)

    assert len(service.metadata) >= 4


def test_a_stream_has_a_deadline(make: Make) -> None:
    """If the caller sets one."""

    def wait(found: Iterator[pb.StreamItem], context: grpc.ServicerContext) -> Iterator[list[pb.StreamResult]]:
        yield [answered(next(found))]
        left = threading.Event()
        context.add_callback(left.set)
        left.wait(LIMIT_SECONDS)

    with Service(streams=[wait]).serve() as service, make(service.address) as client:
        client.predict(b"picture", ["a"])  # connects, which does not count then
        outcomes = client.predict_many(items(3), timeout=2.0)
        assert is_right(next(outcomes))
        with pytest.raises(hc.DeadlineExceeded):
            next(outcomes)


def test_a_silent_stream_is_taken_for_broken(make: Make) -> None:
    """After `stall_seconds`; its items are sent on another one."""

    def stall(found: Iterator[pb.StreamItem], context: grpc.ServicerContext) -> Iterator[list[pb.StreamResult]]:
        yield [answered(next(found))]
        left = threading.Event()
        context.add_callback(left.set)
        left.wait(LIMIT_SECONDS)

    rules = hc.StreamRules(stall_seconds=0.2, first_pause=0.01)
    assert all(map(is_right, stream_with(make, Service(streams=[stall, answer_all]), 5, rules=rules)))


def test_the_window_bounds_what_is_taken_from_the_source(make: Make) -> None:
    """Also while the first item of an ordered stream has no outcome, and others have."""
    release = threading.Event()
    taken: list[int] = []

    def hold_first(found: Iterator[pb.StreamItem], _context: Any) -> Iterator[list[pb.StreamResult]]:  # noqa: ANN401
        first = next(found)
        for number, item in enumerate(found):
            yield [answered(item)]
            if number == 6:
                break
        yield [answered(first)]
        yield from answer_all(found, _context)

    def source() -> Iterator[hc.EntailmentItem]:
        for item in items(40):
            taken.append(int(item.premise))
            yield item

    with Service(streams=[hold_first]).serve() as service, make(service.address) as client:
        outcomes = client.predict_many(source(), window=8)
        assert next(outcomes).index == 0
        assert len(taken) <= 16
        assert [one.index for one in outcomes] == list(range(1, 40))
    release.set()


def test_a_source_that_raises_ends_the_stream(make: Make) -> None:
    """With its own error; the client stays usable."""

    def source() -> Iterator[hc.EntailmentItem]:
        yield from items(5)
        raise LookupError("the database has gone")

    with Service().serve() as service, make(service.address) as client:
        with pytest.raises(LookupError, match="the database has gone"):
            list(client.predict_many(source()))
        assert client.predict(b"picture", ["a"]).labels == ("yes",)


def test_a_caller_may_leave_an_endless_stream(make: Make) -> None:
    """Its call ends; the client stays usable."""
    ended = threading.Event()

    def watch(found: Iterator[pb.StreamItem], context: grpc.ServicerContext) -> Iterator[list[pb.StreamResult]]:
        context.add_callback(ended.set)
        yield from answer_all(found, context)

    endless = (hc.EntailmentItem(b"picture", ["a"], premise=str(number)) for number in itertools.count())
    with Service(streams=[watch]).serve() as service, make(service.address) as client:
        outcomes = client.predict_many(endless)
        assert [next(outcomes).index for _ in range(5)] == [0, 1, 2, 3, 4]
        outcomes.close()
        assert ended.wait(LIMIT_SECONDS)
        assert client.predict(b"picture", ["a"]).labels == ("yes",)


def test_a_source_may_wait_for_outcomes(make: Make) -> None:
    """With a window of one: what is asked next depends on the answer."""
    outcomes: list[int] = []

    def source() -> Iterator[hc.EntailmentItem]:
        for number, item in enumerate(items(5)):
            assert len(outcomes) == number
            yield item

    with Service().serve() as service, make(service.address) as client:
        for outcome in client.predict_many(source(), window=1):
            outcomes.append(outcome.index)  # noqa: PERF401  the source reads it meanwhile

    assert outcomes == [0, 1, 2, 3, 4]


def test_no_server_is_an_outage(make: Make) -> None:
    """A call says so when its attempts are used up, long before its deadline."""
    with Service().serve() as service:
        address = service.address
    began = time.monotonic()
    with make(address) as client, pytest.raises(hc.Unavailable):
        client.predict(b"picture", ["a"])

    assert time.monotonic() - began < 20


@pytest.mark.parametrize("timeout", [365 * 86_400.0, 1e12, float("inf")])
def test_a_timeout_may_be_as_long_as_one_likes(make: Make, timeout: float) -> None:
    """GRPC would take the longest for one that has passed."""
    with Service().serve() as service, make(service.address, timeout=timeout) as client:
        assert client.predict(b"picture", ["a"]).results
        assert client.predict(b"picture", ["a"], timeout=timeout).results
        assert len(list(client.predict_many(items(3), timeout=timeout))) == 3


def test_a_timeout_that_has_passed_sends_nothing(make: Make) -> None:
    """And one that is no number is refused."""
    with Service().serve() as service, make(service.address) as client:
        for timeout in (0.0, -1.0):
            with pytest.raises(hc.DeadlineExceeded):
                client.predict(b"picture", ["a"], timeout=timeout)
            with pytest.raises(hc.DeadlineExceeded):
                list(client.predict_many(items(1), timeout=timeout))
        with pytest.raises(ValueError, match="number of seconds"):
            client.predict(b"picture", ["a"], timeout=float("nan"))
        with pytest.raises(ValueError, match="number of seconds"):
            list(client.predict_many(items(1), timeout=float("nan")))
    with pytest.raises(ValueError, match="more than 0"):
        make("localhost:1", timeout=float("nan"))


def test_metadata_is_sent(make: Make) -> None:
    """The token, which may change, and the caller's request id."""
    tokens = iter(["first", "second\n"])
    with Service().serve() as service, make(service.address, token=lambda: next(tokens)) as client:
        client.predict(b"picture", ["a"], request_id="mine")
        list(client.predict_many(items(1)))

    sent = [(one.get("authorization"), one.get("x-request-id")) for one in service.metadata]
    assert sent == [("Bearer first", "mine"), ("Bearer second", None)]


@pytest.mark.parametrize("kind", [hc.Client, hc.AsyncClient])
def test_a_token_is_not_sent_unencrypted(kind: type[Any]) -> None:
    """Except to this machine."""
    for address in ("localhost:1", "127.0.0.1:1", "[::1]:1", "ipv4:127.0.0.1:1,127.0.0.2:2", "unix:/run/x.sock"):
        kind(address, token="t")  # noqa: S106
    for address in ("10.0.0.1:1", "hotslot.example:50051", "dns:///hotslot.example:1", "ipv4:127.0.0.1:1,10.0.0.1:2"):
        with pytest.raises(ValueError, match="unencrypted"):
            kind(address, token="t")  # noqa: S106
        kind(address, token="t", tls=True)  # noqa: S106


def test_wrong_arguments_are_refused_at_once(make: Make) -> None:
    """A string where a sequence or a path is meant would be something else than was meant."""
    with Service().serve() as service, make(service.address) as client:
        with pytest.raises(TypeError, match="not one string"):
            client.predict(b"picture", "there are two red circles")
        with pytest.raises(TypeError, match="Path"):
            client.predict("picture.png", ["a"])
        with pytest.raises(ValueError, match="window"):
            list(client.predict_many(items(1), window=0))
    with pytest.raises(ValueError, match="HOST:PORT"):
        make("http://127.0.0.1:50051")
    assert service.metadata == []


def test_calls_and_streams_name_a_version_and_a_key(make: Make) -> None:
    """As metadata; without them there is none."""
    with Service().serve() as service, make(service.address) as client:
        client.predict(b"picture", ["a"], model_version="canary", routing_key="shop-17", request_id="mine")
        list(client.predict_many(items(2), model_version="stable", routing_key="shop-18"))
        client.predict(b"picture", ["a"])

    keys = ("x-model-version", "x-routing-key", "x-request-id")
    found = [tuple(one.get(key) for key in keys) for one in service.metadata]
    assert found == [("canary", "shop-17", "mine"), ("stable", "shop-18", None), (None, None, None)]


@pytest.mark.parametrize("value", ["Müller", " a", "a\n", "x" * 257])
def test_a_version_or_key_that_cannot_be_sent_is_the_callers_error(make: Make, value: str) -> None:
    """The server would get another one, or none: nothing is sent."""
    with Service().serve() as service, make(service.address) as client:
        for name in ("model_version", "routing_key"):
            given: Any = {name: value}
            with pytest.raises(ValueError, match="256 printable ASCII characters"):
                client.predict(b"picture", ["a"], **given)
            with pytest.raises(ValueError, match="256 printable ASCII characters"):
                list(client.predict_many(items(1), **given))
    assert service.metadata == []
