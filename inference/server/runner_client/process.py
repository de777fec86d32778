"""The server's side of one runner process: start, messages, liveness, end."""

import asyncio
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from google.protobuf.message import DecodeError

from common.cgroup import count_oom_kills
from hotslot.runner.v1 import runner_pb2
from inference.server.runner_client.channel import FrameChannel
from inference.server.runner_client.child import Child, describe_exit
from inference.server.runner_client.liveness import LivenessMonitor, Phase, TimeoutKind
from inference.server.runner_client.protocol import EndReason, RunnerEnding, RunnerListener
from inference.server.runner_client.replies import find_impossible_number
from inference.server.runner_client.start import RunnerSpec, StartedRunner, start_runner
from inference.wire import Picture, frame, items_frame

KILL_SECONDS = 5.0  # from SIGKILL until a process that has not ended is given up
# The same for one that retires: its memory is freed after its sockets are closed, and what is loaded next needs that
# memory, while callers do not wait for it. With the default of `retire_seconds` it is less than RetireSlot waits.
END_SECONDS = 45.0
SOCKET_DRAIN_SECONDS = 1.0  # to read what an ended runner left in its sockets, if another process holds them open

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class RunnerProcess:
    """One runner, from spawn to its end. Loop thread only."""

    def __init__(
        self,
        spec: RunnerSpec,
        listener: RunnerListener,
        start: Callable[[RunnerSpec], StartedRunner] = start_runner,
    ) -> None:
        self._spec = spec
        self._start = start
        self._listener = listener
        self._liveness = LivenessMonitor(spec.timeouts)
        self._end_cause: tuple[EndReason, str] | None = None  # the first one, once it is known
        self._is_retiring = False
        self._end_limit = math.inf  # seconds from SIGKILL until it is given up; no SIGKILL was sent yet
        self._exit_code: int | None = None
        self._oom_kills = count_oom_kills()
        self._timers: list[asyncio.TimerHandle] = []
        self._ended = asyncio.Event()

    @property
    def pid(self) -> int:
        """Process id; 0 until a forked process has one. After `spawn`."""
        return self._child.pid

    def spawn(self) -> None:
        """Start the process; it sends Hello when it can load. Call it once, on the loop's thread.

        Raises:
            OSError: the system has no process or descriptor left; `on_end` will not be called.
        """
        self._loop = asyncio.get_running_loop()
        runner = self._start(self._spec)
        self._call_record, self._fork_failures = runner.call_record, runner.fork_failures
        self._on_given_up = runner.on_given_up
        self._child = Child(self._loop, runner.process, self._on_exit)
        self._data = FrameChannel(self._loop, runner.data, self._on_data, self._on_closed)
        self._control = FrameChannel(self._loop, runner.control, self._on_control, self._on_closed)
        self._later(self._spec.timeouts.tick_seconds, self._check_liveness)

    def load(self, request: runner_pb2.LoadBundle) -> None:
        """Load a bundle; `on_load_outcome` reports the result. Once per runner."""
        self._liveness.enter_phase(Phase.LOADING)
        self._send_control(runner_pb2.RunnerRequest(load=request))

    def send_items(self, items: Sequence[tuple[runner_pb2.Item, Picture]]) -> None:
        """Compute items, each with its picture (empty if it has none), so that no picture is copied.

        Bytes that the socket does not accept are buffered; the dispatcher's window bounds them.

        Raises:
            FrameError: the items exceed the maximum frame size; nothing was sent.
        """
        message = runner_pb2.ComputeItems()
        for item, picture in items:
            item.picture_bytes = len(picture)
            message.items.append(item)
        pictures = [picture for _, picture in items if picture]
        self._data.send(items_frame(message.SerializeToString(), pictures))

    def cancel(self, item_ids: Sequence[int]) -> None:
        """Cancel items; the runner skips those that it has not begun."""
        self._send_control(runner_pb2.RunnerRequest(cancel=runner_pb2.CancelItems(item_ids=item_ids)))

    def set_serving(self, serving: bool) -> None:  # noqa: FBT001  reads as a sentence where it is called
        """Set whether requests may be routed to this runner; initially false."""
        self._send_control(runner_pb2.RunnerRequest(priority=runner_pb2.SetPriority(serving=serving)))

    def yield_cpus(self) -> None:
        """Compute only when no other process wants the CPUs, until `set_serving`."""
        self._send_control(runner_pb2.RunnerRequest(priority=runner_pb2.SetPriority(yields=True)))

    def retire(self) -> None:
        """End the process after it has answered what was sent; kill it after `retire_seconds`."""
        if self._is_retiring:
            return
        self._is_retiring = True
        self._send_control(runner_pb2.RunnerRequest(retire=runner_pb2.Retire()))
        self._data.finish()  # end of stream after the last item: the runner answers all before it
        limit = self._spec.retire_seconds
        self._later(limit, lambda: self._kill_because(EndReason.RETIRED, f"killed: still running after {limit:g} s"))

    def kill(self, detail: str, *, is_retiring: bool = False) -> None:
        """Kill the process, even a stopped one. Replies already in the socket are still delivered.

        One that has not ended after KILL_SECONDS, or END_SECONDS if it retires, is given up: `on_end` is called all the
        same.

        Args:
            detail: why.
            is_retiring: nobody waits for its successor, and the next load needs its memory.
        """
        self._is_retiring = self._is_retiring or is_retiring
        self._kill_because(EndReason.KILLED, detail)

    async def wait_ended(self) -> None:
        """Wait until `on_end` was called."""
        await self._ended.wait()

    @property
    def resident_bytes(self) -> int:
        """Resident memory; 0 if it cannot be read."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * PAGE_BYTES if not self._child.has_ended else 0

    @property
    def is_silent(self) -> bool:
        """Whether SIGKILL was sent, or half of the silence timeout has passed without a heartbeat."""
        return self._liveness.is_silent or self._end_limit < math.inf

    def _send_control(self, request: runner_pb2.RunnerRequest) -> None:
        self._control.send(frame(request.SerializeToString()))

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self._timers = [timer for timer in self._timers if timer.when() > self._loop.time()]
        self._timers.append(self._loop.call_later(seconds, act))

    def _on_data(self, payload: bytes) -> None:
        reply = self._parse_reply(payload)
        if reply is None:
            return
        if reply.WhichOneof("body") != "items":
            self._kill_because(EndReason.GARBAGE, "not a reply to items on the data socket")
            return
        try:
            self._listener.on_items_reply(reply.items)
        except Exception as error:  # noqa: BLE001  as in `_notify`, without its call
            self._report(error)

    def _on_control(self, payload: bytes) -> None:
        reply = self._parse_reply(payload)
        if reply is None:
            return
        listener = self._listener
        match reply.WhichOneof("body"):
            case "heartbeat":
                self._liveness.record_heartbeat(reply.heartbeat.progress)
                self._notify(lambda: listener.on_heartbeat(reply.heartbeat))
            case "hello":
                self._record_start("")
                if not self._liveness.is_loading:
                    self._liveness.enter_phase(Phase.IDLE_OR_SERVING)
                self._notify(lambda: listener.on_hello(reply.hello))
            case "load_progress":
                self._notify(lambda: listener.on_load_progress(reply.load_progress))
            case "load_outcome":
                self._liveness.enter_phase(Phase.IDLE_OR_SERVING)
                self._notify(lambda: listener.on_load_outcome(reply.load_outcome))
            case _:
                self._kill_because(EndReason.GARBAGE, "an unknown message on the control socket")

    def _parse_reply(self, payload: bytes) -> runner_pb2.RunnerReply | None:
        try:
            reply = runner_pb2.RunnerReply.FromString(payload)
        except DecodeError:
            self._kill_because(EndReason.GARBAGE, "a frame that does not parse")
            return None
        fault = find_impossible_number(reply)
        if fault:
            self._kill_because(EndReason.GARBAGE, fault)
            return None
        return reply

    def _notify(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  a listener's bug must not lose the frames that follow
            self._report(error)

    def _report(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": "a runner's listener failed", "exception": error})

    def _check_liveness(self) -> None:
        if self._child.has_ended or self._end_limit < math.inf:
            return
        timeout = self._liveness.check(self._data.amid_frame if self._data.is_open else None)
        if timeout is not None:
            self._kill_because(*_TIMEOUT_CAUSES[timeout])
            return
        self._later(self._spec.timeouts.tick_seconds, self._check_liveness)

    def _on_closed(self, trouble: str) -> None:
        if trouble:
            self._kill_because(EndReason.GARBAGE, trouble)
        # A runner that closes its sockets is ending; if it exits by itself now, it keeps its exit code.
        self._kill(self._seconds_to_end)
        self._finish_if_closed()

    def _kill_because(self, reason: EndReason, detail: str) -> None:
        self._end_cause = self._end_cause or (reason, detail)
        self._kill(self._seconds_to_end)

    @property
    def _seconds_to_end(self) -> float:
        return END_SECONDS if self._is_retiring else KILL_SECONDS

    def _kill(self, limit_seconds: float) -> None:
        self._child.kill()
        if limit_seconds < self._end_limit and not self._ended.is_set():
            self._end_limit = limit_seconds
            self._await_end()

    def _await_end(self) -> None:
        """Give up the process if it does not end in time; one without an id gets SIGKILL as soon as it has one."""
        self._later(self._end_limit, self._give_up if self.pid else self._await_end)

    def _give_up(self) -> None:
        """Report the end of a process that SIGKILL does not end, as in a driver's call; it is reaped if it ends yet."""
        if not self._child.has_ended and not self._ended.is_set():
            self._on_given_up()
            self._finish()

    def _on_exit(self, code: int) -> None:
        if self._ended.is_set():
            return
        self._exit_code = code
        self._later(SOCKET_DRAIN_SECONDS, self._finish)
        self._finish_if_closed()

    def _record_start(self, failure: str) -> None:
        """Record how the start of a forked process ended: the first call, with Hello or the process's end."""
        failures, self._fork_failures = self._fork_failures, None
        if failures is not None:
            failures.record(failure)

    def _finish_if_closed(self) -> None:
        if self._child.has_ended and not self._data.is_open and not self._control.is_open:
            self._finish()

    def _finish(self) -> None:
        if self._ended.is_set():
            return
        self._ended.set()
        for timer in self._timers:
            timer.cancel()
        self._data.close()
        self._control.close()
        reason, detail = self._describe_end()
        if reason not in (EndReason.KILLED, EndReason.RETIRED):
            self._record_start(detail)
        computing = self._call_record.read()
        self._call_record.close()
        self._notify(lambda: self._listener.on_end(RunnerEnding(reason, detail, computing)))

    def _describe_end(self) -> tuple[EndReason, str]:
        if self._exit_code is None:
            reason, detail = self._end_cause or (EndReason.RETIRED if self._is_retiring else EndReason.DIED, "")
            text = f"not ended {self._end_limit:g} s after SIGKILL"
            return reason, f"{detail}; {text}" if detail else text
        exit_text = self._child.failure or describe_exit(self._exit_code, count_oom_kills() - self._oom_kills)
        is_retired = self._is_retiring and self._exit_code == 0
        return self._end_cause or (EndReason.RETIRED if is_retired else EndReason.DIED, exit_text)


_TIMEOUT_CAUSES = {
    TimeoutKind.HELLO: (EndReason.START_TIMEOUT, "no Hello in time"),
    TimeoutKind.HEARTBEAT: (EndReason.SILENT, "no heartbeat in time"),
    TimeoutKind.LOAD_PROGRESS: (EndReason.LOAD_STALLED, "the load made no progress in time"),
    TimeoutKind.REST_OF_FRAME: (EndReason.GARBAGE, "an incomplete frame"),
}
