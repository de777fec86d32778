"""What happens beside the traffic of a soak run: deaths of runners, good and bad revisions, connections that idle."""

import contextlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc
import psutil

from dev.harness import http2
from dev.harness.control import CHANNEL_OPTIONS
from dev.harness.supervised import ScriptedStack
from hotslot.entailment.v1 import entailment_pb2 as pb
from hotslot.entailment.v1.entailment_pb2_grpc import EntailmentServiceStub

PAUSE_SECONDS = (5.0, 15.0)
BAD_SHARE = 0.3
IDLE_CONNECTIONS = 100
DEAF_ITEMS, DEAF_REASON = 5000, "ITEM_ID_TOO_LONG"


class Disturbances:
    """Injects faults and publishes revisions while the `with` lasts; `seconds` after its start it only waits."""

    def __init__(self, stack: ScriptedStack, seed: int, seconds: float) -> None:
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.good: list[str] = []  # published revisions
        self.bad: list[str] = []
        self._stack, self._chance = stack, random.Random(seed)
        self._until = time.monotonic() + seconds
        self._stop = threading.Event()
        self._opened = contextlib.ExitStack()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._fault, self._publish, self._idle)]

    def __enter__(self) -> Self:
        """Start."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and wait for the last revision's end."""
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
        self._opened.close()

    @property
    def last(self) -> str:
        """The good revision that was published last."""
        return self.good[-1] if self.good else ""

    def _goes_on(self, pause: float) -> bool:
        return not self._stop.wait(pause) and time.monotonic() < self._until

    def _fault(self) -> None:
        actions: dict[str, Callable[[], bool]] = {
            "active runner killed": lambda: self._signal(signal.SIGKILL, is_active=True),
            "other runner killed": lambda: self._signal(signal.SIGKILL, is_active=False),
            "active runner stopped": lambda: self._signal(signal.SIGSTOP, is_active=True),
        }
        while self._goes_on(self._chance.uniform(*PAUSE_SECONDS)):
            name = self._chance.choice(list(actions))
            self.counts[name] += actions[name]()

    def _signal(self, number: signal.Signals, *, is_active: bool) -> bool:
        """Send a signal to a runner; never while an update is under way that it would fail for a reason not its own."""
        state = self._stack.model_state()
        if state is None or state.HasField("trial") or not state.ready:
            return False
        slots = [slot.pid for slot in state.slots if (slot.load_id == state.active_load_id) is is_active and slot.pid]
        with contextlib.suppress(psutil.Error):
            for pid in slots[:1]:
                psutil.Process(pid).send_signal(number)
                return True
        return False

    def _publish(self) -> None:
        number = 0
        while self._goes_on(self._chance.uniform(1.0, 5.0)):
            number += 1
            revision, is_bad = f"v1.{number}.0", self._chance.random() < BAD_SHARE
            (self.bad if is_bad else self.good).append(revision)
            try:
                (self._stack.publish_bad if is_bad else self._stack.publish)(revision)
                self._await_end(revision, is_bad=is_bad)
            except AssertionError as error:
                self.problems.append(f"{revision}: {str(error).splitlines()[0]}")

    def _await_end(self, revision: str, *, is_bad: bool) -> None:
        ended = self._stack.wait(lambda: self._stack.outcome(revision), f"{revision} has ended", 240.0)
        reason = self._stack.reason(revision)
        self.counts[f"{'bad' if is_bad else 'good'} {ended.lower()} {reason}".strip()] += 1
        if is_bad and ended == "COMMITTED":
            self.problems.append(f"{revision} is bad and was committed")

    def _idle(self) -> None:
        """Keep connections without calls open, and streams whose caller never reads; replace them now and then."""
        while self._goes_on(1.0):
            with contextlib.ExitStack() as held:
                for _ in range(IDLE_CONNECTIONS):
                    held.enter_context(http2.connect(self._stack.port)).sendall(http2.opening())
                channel = held.enter_context(grpc.insecure_channel(self._stack.address, options=CHANNEL_OPTIONS))
                call: Any = EntailmentServiceStub(channel).StreamPredict(_pour(self._stop))
                held.callback(call.cancel)
                self.counts["callers that never read"] += 1
                self._goes_on(30.0)


def _pour(stop: threading.Event) -> Iterator[pb.StreamPredictRequest]:
    """Messages whose outcomes are never read; all are refused for a reason that no other caller sees."""
    for _ in range(DEAF_ITEMS):
        if stop.is_set():
            return
        yield pb.StreamPredictRequest(items=[pb.StreamItem(item_id="deaf" * 100)])
