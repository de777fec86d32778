"""Streams as the shipped clients use them: items without an outcome are sent again when a stream ends."""

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc

from dev.harness.answers import Question, Scores, scores_of
from hotslot.entailment.v1 import entailment_pb2 as pb
from hotslot.entailment.v1.entailment_pb2_grpc import EntailmentServiceStub

WINDOW = 4  # items outstanding a stream
PAUSE_SECONDS = 0.02
AGAIN_SECONDS = 0.2  # before a stream is opened again
LIMIT_SECONDS = 30.0  # an item without an outcome for so long has failed
# Codes of a connection that broke, as in clients/go: nginx ends the streams of a killed server with INTERNAL.
_BROKEN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.ABORTED,
}
_TRANSIENT_NUMBERS = {code.value[0] for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)}


@dataclass(slots=True)
class StreamReport:
    """The outcomes of all items."""

    revisions: Counter[str] = field(default_factory=Counter)  # answers by revision
    failed: list[str] = field(default_factory=list)
    wrong: int = 0
    streams: int = 0  # that were opened
    again: int = 0  # items that were sent again
    slowest: float = 0.0  # seconds from an item's first sending to its answer


class StreamLoad:
    """Streams while the `with` lasts."""

    def __init__(
        self,
        address: str,
        questions: Sequence[Question],
        expected: Mapping[tuple[str, Any], Scores],
        streams: int,
        options: Sequence[tuple[str, Any]],
    ) -> None:
        self._address, self._questions, self._expected, self._options = address, questions, expected, options
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.report = StreamReport()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(streams)]

    def __enter__(self) -> Self:
        """Start."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send no further items, and wait for the outcomes of those that were sent."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * LIMIT_SECONDS)
            if thread.is_alive():
                raise AssertionError("a stream did not end")

    def _run(self, number: int) -> None:
        caller = _Caller(number, self._questions, self._stop)
        with grpc.insecure_channel(self._address, options=self._options) as channel:
            stub = EntailmentServiceStub(channel)
            while not self._stop.is_set() or caller.open:
                with self._lock:
                    self.report.streams += 1
                try:
                    for message in stub.StreamPredict(caller.messages(), wait_for_ready=True):
                        for result in message.results:
                            self._note(caller, result)
                except grpc.RpcError as error:
                    call: Any = error
                    if call.code() not in _BROKEN:
                        self._fail(f"stream {number}: {call.code().name}: {call.details()}")
                caller.end()
                if self._is_late(caller):
                    return
                time.sleep(AGAIN_SECONDS)

    def _is_late(self, caller: "_Caller") -> bool:
        late = [key for key, one in caller.open.items() if time.monotonic() - one.begun > LIMIT_SECONDS]
        for key in late:
            self._fail(f"item {key} has no outcome after {LIMIT_SECONDS:g} s")
        return bool(late)

    def _note(self, caller: "_Caller", result: pb.StreamResult) -> None:
        one = caller.open.get(result.item_id)
        if one is None:
            self._fail(f"a second outcome of {result.item_id}")
        elif result.WhichOneof("outcome") == "response":
            revision = result.response.served_by.revision
            with self._lock:
                self.report.revisions[revision] += 1
                self.report.wrong += scores_of(result.response) != self._expected.get((revision, one.asked))
                self.report.slowest = max(self.report.slowest, time.monotonic() - one.begun)
            caller.settle(result.item_id)
        elif result.error.code in _TRANSIENT_NUMBERS:
            with self._lock:
                self.report.again += 1
            caller.send_again(result.item_id)
        else:
            self._fail(f"item {result.item_id}: {result.error.code} {result.error.message}")
            caller.settle(result.item_id)

    def _fail(self, sentence: str) -> None:
        with self._lock:
            self.report.failed.append(sentence)


@dataclass(slots=True)
class _Item:
    asked: Question
    begun: float


class _Caller:
    """The items of one caller, over all its streams."""

    def __init__(self, number: int, questions: Sequence[Question], stop: threading.Event) -> None:
        self.open: dict[str, _Item] = {}
        self._number, self._questions, self._stop = number, questions, stop
        self._count = 0
        self._again: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._room = threading.Semaphore(WINDOW)
        self._ended = threading.Event()

    def messages(self) -> Iterator[pb.StreamPredictRequest]:
        """What one stream sends: what is open from the stream before, then further items as there is room."""
        self._again, self._ended = queue.SimpleQueue(), threading.Event()
        ended = self._ended
        for key in list(self.open):
            yield self._message(key)
        while not ended.is_set():
            while not self._again.empty():
                yield self._message(self._again.get())
            if self._stop.is_set():
                if not self.open:
                    return
                ended.wait(PAUSE_SECONDS)
            elif self._room.acquire(timeout=PAUSE_SECONDS):
                self._count += 1
                key = f"{self._number}-{self._count}"
                asked = self._questions[self._count % len(self._questions)]
                self.open[key] = _Item(asked, time.monotonic())
                yield self._message(key)
                ended.wait(PAUSE_SECONDS)

    def settle(self, key: str) -> None:
        """An item has its outcome."""
        del self.open[key]
        self._room.release()

    def send_again(self, key: str) -> None:
        """An item was refused for the moment."""
        self._again.put(key)

    def end(self) -> None:
        """The stream has ended."""
        self._ended.set()

    def _message(self, key: str) -> pb.StreamPredictRequest:
        item = pb.StreamItem(item_id=key, request=self.open[key].asked.request())
        return pb.StreamPredictRequest(items=[item])
