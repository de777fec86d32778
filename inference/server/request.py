"""The records of a request inside the server: input, pending state, prediction, failure."""

import asyncio
import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, Protocol

from common.errors import DeadlineMissed, HotslotError
from common.records import record
from hotslot.runner.v1 import runner_pb2
from inference.server.events import CallTrace
from inference.wire import AddressSpan, EntailmentScores, Picture, count_address_rows

MAX_DEATHS = 2  # a request that ended two runners, the second time computed alone, is the cause
_request_ids = itertools.count(1)


class Payload(Protocol):
    """A checked request of a task."""

    @property
    def rows(self) -> int:
        """Device rows that it costs."""
        ...

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the request; each has one result."""
        ...

    @property
    def size_bytes(self) -> int:
        """Approximate memory that it occupies while it waits."""
        ...

    @property
    def picture(self) -> Picture:
        """The picture's bytes, sent beside the message so that they are not copied; empty if there is none."""
        ...

    @property
    def holder(self) -> object | None:
        """The object with which its memory is gone; takes weak references. None if it holds no caller's memory."""
        ...

    def identify(self) -> "InputId":
        """The same for the same input only."""
        ...

    def write(self, item: runner_pb2.Item) -> None:
        """Write it into the runner's message, but for the picture."""
        ...


@record
class EntailmentInput:
    """A checked request: one picture and the statements to judge."""

    image: Picture  # JPEG, PNG or WebP file
    statements: tuple[str, ...]  # 1..32
    premise: str  # may be empty

    @property
    def rows(self) -> int:
        """Device rows: one per statement."""
        return len(self.statements)

    @property
    def texts(self) -> tuple[str, ...]:
        """The statements."""
        return self.statements

    @property
    def size_bytes(self) -> int:
        """Approximate memory that it occupies while it waits."""
        return len(self.image) + 4 * (sum(map(len, self.statements)) + len(self.premise))

    @property
    def picture(self) -> Picture:
        """The picture."""
        return self.image

    @property
    def holder(self) -> object | None:
        """The view of the message that the picture arrived in."""
        return self.image if isinstance(self.image, memoryview) else None

    def identify(self) -> "InputId":
        """The same for the same picture, premise and statements only."""
        return _identify(self.size_bytes, self.image, (self.premise, *self.statements))

    def write(self, item: runner_pb2.Item) -> None:
        """Write it into the runner's message, but for the picture."""
        item.entailment.statements.extend(self.statements)
        item.entailment.premise = self.premise


@dataclass(frozen=True, slots=True, weakref_slot=True)
class AddressInput:
    """A checked request: the addresses to tag."""

    addresses: tuple[str, ...]  # 1..64

    @property
    def rows(self) -> int:
        """Device rows: one or more per address, by its length."""
        return sum(map(count_address_rows, self.addresses))

    @property
    def texts(self) -> tuple[str, ...]:
        """The addresses."""
        return self.addresses

    @property
    def size_bytes(self) -> int:
        """Approximate memory that it occupies while it waits."""
        return 4 * sum(map(len, self.addresses))

    @property
    def picture(self) -> Picture:
        """None."""
        return b""

    @property
    def holder(self) -> object | None:
        """Itself: its texts are copies."""
        return self

    def identify(self) -> "InputId":
        """The same for the same addresses only."""
        return _identify(self.size_bytes, b"", self.addresses)

    def write(self, item: runner_pb2.Item) -> None:
        """Write it into the runner's message."""
        item.address.addresses.extend(self.addresses)


@dataclass(frozen=True, slots=True)
class InputId:
    """Identifies an input without keeping it."""

    size_bytes: int
    digest: bytes  # SHA-256


def _identify(size_bytes: int, picture: Picture, texts: tuple[str, ...]) -> InputId:
    digest = hashlib.sha256(picture)
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(4))
        digest.update(encoded)
    return InputId(size_bytes, digest.digest())


RELEASED = AddressInput(())  # the payload of a request that is done
Result = EntailmentScores | tuple[AddressSpan, ...]  # of one text
Outcome = tuple[Result, ...]  # one per text


def read_results(outcome: runner_pb2.ItemOutcome) -> Outcome:
    """The results in an item's outcome; none if it has failed."""
    match outcome.WhichOneof("outcome"):
        case "entailment":
            return tuple(EntailmentScores(one.yes, one.no, one.maybe) for one in outcome.entailment.scores)
        case "address":
            return tuple(
                tuple(AddressSpan(span.kind, span.start, span.end, span.probability) for span in address.spans)
                for address in outcome.address.addresses
            )
        case _:
            return ()


def list_labels(outcome: Outcome) -> tuple[str, ...]:
    """The labels of an outcome: the answer of each statement, the kind of each part of an address."""
    labels: list[str] = []
    for result in outcome:
        if isinstance(result, EntailmentScores):
            labels.append(result.label)
        else:
            labels += [span.kind for span in result]
    return tuple(labels)


class Priority(IntEnum):
    """The class of a request; the lower number is computed first."""

    INTERACTIVE = 0
    BULK = 1


@record
class Flow:
    """Requests that are served in order: all unary calls of a caller, or the items of one stream."""

    priority: Priority
    caller: str
    weight: float = 1.0  # of the caller
    stream: int = 0  # number of the stream; 0 for unary calls


INTERNAL = Flow(Priority.INTERACTIVE, "")  # self-tests and probes
COPY = Flow(Priority.BULK, "")  # copies of requests, for comparison


@record
class RequestTags:
    """A request's ids, routing key, version and trace, from its call."""

    request_id: str = ""  # of the call
    item_id: str = ""  # of an item of a stream
    routing_key: str = ""  # requests of one key go to the same revision
    version: str = ""  # "canary", "stable", a revision or a digest; empty: any
    trace: CallTrace | None = None  # of the call, if it is recorded

    @property
    def key(self) -> str:
        """The key by which its route is chosen: the caller's, else its own."""
        return self.routing_key or f"{self.request_id}/{self.item_id}"


NO_TAGS = RequestTags()


class ServedBy(NamedTuple):
    """Which model answered, on which device, slot and node."""

    model: str
    revision: str
    digest: str
    device: str
    slot: str
    node: str


@record
class Prediction:
    """The result of a request, and the time of each stage."""

    outcome: Outcome
    labels: tuple[str, ...]  # all labels of the outcome
    texts: tuple[str, ...]  # that the results are about, in order
    served_by: ServedBy
    queued_seconds: float
    prepared_seconds: float
    computed_seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an item failed in the runner."""

    reason: str  # for example "ENGINE_FAILED"
    message: str
    field: str = ""  # the field of the request that is wrong; empty if the input is valid

    @property
    def is_input_error(self) -> bool:
        """Whether the input is wrong, so that no model is at fault."""
        return bool(self.field)


@dataclass(frozen=True, slots=True)
class Attribution:
    """A failure of the trial; it is counted against it once the previous slot has answered the request."""

    bundle_digest: str
    device: str
    reason: str  # empty for a runner death, which is counted by DeathTracker


class Lease(Protocol):
    """The right to use a slot's load until it is ended."""

    def end(self) -> None:
        """End the lease; a second call does nothing."""
        ...


@dataclass(slots=True, eq=False)
class PendingRequest:
    """An accepted request, until its outcome is set, exactly once."""

    payload: Payload  # RELEASED once it is done: a runner that still computes it must not keep it in memory
    accepted_at: float  # clock.monotonic()
    deadline: float  # clock.monotonic() at which it fails
    outcome: asyncio.Future[Prediction]
    id: int = field(default_factory=_request_ids.__next__)
    deaths: int = 0  # runners that ended while computing it
    interruptions: int = 0  # runners that ended while they held it
    flow: Flow = INTERNAL
    tags: RequestTags = NO_TAGS
    expected_seconds: float = 0.0  # until its answer, when it was admitted; 0 if unknown
    is_unsent_item: bool = False  # a stream item that no runner was sent yet
    decoding_seconds: float = 0.0  # of its picture, by a runner's estimate, if that takes long
    alone: bool = False  # must be computed while the runner holds nothing else
    on_slot: str = ""  # the slot that it was last given to; failures of another slot are ignored
    revision: str = ""  # of the load that it was last given to
    device: str = ""  # of that load
    handover_at: float | None = None  # clock.monotonic() at which a trial must have answered; None: no handover
    attribution: Attribution | None = None  # set when the trial has failed it
    sent_at: float = 0.0
    internal: bool = False  # probe, self-test or copy: not subject to admission, not counted as traffic
    is_copy: bool = False  # of an answered request, for comparison: computed when nothing else is
    has_expired: bool = False  # its call was ended by the deadline; the outcome is cancelled
    out_of_memory_on: tuple[str, ...] = ()  # placements of the loads that had no memory for it
    leases: list[Lease] = field(default_factory=list)
    on_done: Callable[["PendingRequest"], None] | None = None
    priority: Priority = field(init=False)  # of its flow
    rows: int = field(init=False)  # device rows of the payload
    results: int = field(init=False)  # that the payload gets
    size_bytes: int = field(init=False)  # of the payload

    def __post_init__(self) -> None:
        """Keep the facts that outlive the payload."""
        payload = self.payload
        self.rows, self.size_bytes, self.results = payload.rows, payload.size_bytes, len(payload.texts)
        self.priority = self.flow.priority

    @property
    def is_done(self) -> bool:
        """Whether the outcome is set or cancelled."""
        return self.outcome.done()

    @property
    def is_abandoned(self) -> bool:
        """Whether it is done without having been computed: it was cancelled, or its deadline has passed."""
        return self.outcome.done() and (
            self.outcome.cancelled() or isinstance(self.outcome.exception(), DeadlineMissed)
        )

    @property
    def can_hand_over(self) -> bool:
        """Whether another slot answers if the trial fails it."""
        return self.handover_at is not None

    @property
    def time_limit(self) -> float:
        """clock.monotonic() until which its slot may use it: the handover, or its deadline."""
        return self.deadline if self.handover_at is None else self.handover_at

    def is_handover_due(self, now: float) -> bool:
        """Whether the trial has had the request for as long as it may."""
        return self.handover_at is not None and now >= self.handover_at

    def finish(self, result: Prediction | HotslotError) -> bool:
        """Set the outcome, unless it is set, and release the leases and the admission.

        Returns:
            Whether this call set the outcome.
        """
        was_open = not self.outcome.done()
        if was_open and isinstance(result, HotslotError):
            self.outcome.set_exception(result)
        elif was_open and isinstance(result, Prediction):
            self.outcome.set_result(result)
        self.release()
        return was_open

    def release_leases(self) -> None:
        """End the leases; the request stays pending."""
        for lease in self.leases:
            lease.end()
        self.leases.clear()

    def release(self) -> None:
        """End the leases and the admission, and drop the payload; cancels the outcome if it is not set.

        A second call does nothing.
        """
        if not self.outcome.done():
            self.outcome.cancel()
        self.release_leases()
        if self.on_done is not None:
            on_done, self.on_done = self.on_done, None
            on_done(self)
        self.payload = RELEASED
