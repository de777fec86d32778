"""The pulse: the device thread counts its own progress, a helper thread only reports the count."""

import threading
from collections.abc import Callable

from common.clock import Clock
from hotslot.runner.v1 import runner_pb2


class Pulse:
    """What the device thread is doing. It alone writes; reading needs no lock, each value stands for itself."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._step_since: float | None = None
        self.progress = 0
        self.batch_id = 0
        self.device_used_bytes = 0
        self.device_total_bytes = 0

    def begin(self, batch_id: int) -> None:
        """A batch, or with 0 a load, is begun."""
        self.batch_id = batch_id
        self._step_since = self._clock.monotonic()

    def step(self) -> None:
        """A device call, or a step of a load, has ended."""
        self.progress += 1
        self._step_since = self._clock.monotonic()

    def rest(self) -> None:
        """There is nothing to do."""
        self._step_since = None
        self.batch_id = 0

    def read(self) -> runner_pb2.Heartbeat:
        """What a heartbeat says now."""
        since = self._step_since
        return runner_pb2.Heartbeat(
            progress=self.progress,
            batch_id=self.batch_id,
            seconds_on_step=0.0 if since is None else max(0.0, self._clock.monotonic() - since),
            device_used_bytes=self.device_used_bytes,
            device_total_bytes=self.device_total_bytes,
        )


def start_heartbeat(pulse: Pulse, seconds: float, say: Callable[[runner_pb2.RunnerReply], None]) -> None:
    """Report the pulse for ever, from a thread of its own."""
    never = threading.Event()

    def beat() -> None:
        while True:
            say(runner_pb2.RunnerReply(heartbeat=pulse.read()))
            never.wait(seconds)

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()
