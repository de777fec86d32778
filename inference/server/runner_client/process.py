"""The server's side of one runner: spawn it, speak with it, notice its end, whatever kind of end it is."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from google.protobuf.message import DecodeError

from hotslot.runner.v1 import runner_pb2
from inference.server.runner_client.channel import FrameChannel
from inference.server.runner_client.child import Child, describe_exit
from inference.server.runner_client.liveness import Overdue, Phase, Watch
from inference.server.runner_client.protocol import EndReason, RunnerEnding, RunnerListener, RunnerSpec
from inference.wire import batch_frame, frame

__all__ = ["EndReason", "RunnerEnding", "RunnerListener", "RunnerProcess", "RunnerSpec"]

LAST_WORDS_SECONDS = 1.0  # for what a dead runner left in its sockets, should something else hold them open

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class RunnerProcess:
    """One runner, from spawn to its end. Every method on the loop's thread."""

    def __init__(self, spec: RunnerSpec, listener: RunnerListener) -> None:
        self._spec = spec
        self._listener = listener
        self._watch = Watch(spec.patience)
        self._verdict: tuple[EndReason, str] | None = None  # the first cause, once it is known
        self._is_retiring = False
        self._exit_code: int | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._ended = asyncio.Event()
        self.pid = 0

    def spawn(self) -> None:
        """Start the process; it answers with Hello when it can load. Once, from the loop's own thread.

        Raises:
            OSError: the system has no process or descriptor left; `on_end` will not be called.
        """
        self._loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            ways = [_way(ours, theirs) for _ in ("data", "control")]
            ends = [their.fileno() for _, their in ways]
            self._child = Child(self._loop, _arguments(self._spec, *ends), ends, self._on_exit)
            ours.pop_all()
        (data, _), (control, _) = ways
        self._data = FrameChannel(self._loop, data, self._on_data, self._on_closed)
        self._control = FrameChannel(self._loop, control, self._on_control, self._on_closed)
        self.pid = self._child.pid
        self._later(self._spec.patience.tick_seconds, self._look)

    def load(self, request: runner_pb2.LoadBundle) -> None:
        """Load a bundle; `on_load_outcome` tells how it went. Once in a runner's life."""
        self._watch.enter(Phase.LOADING)
        self._say(runner_pb2.RunnerRequest(load=request))

    def send_batch(
        self, batch: runner_pb2.ComputeBatch, items: Sequence[tuple[runner_pb2.BatchItem, bytes]] = ()
    ) -> None:
        """Compute items: the batch's own, then `items`, whose pictures come apart so that none is copied.

        What the socket does not take is held here: the caller's credit bounds it.

        Raises:
            FrameError: the batch is over the frame's cap; nothing was sent.
        """
        parts = [(item.SerializeToString(), image) for item, image in items]
        self._data.send(batch_frame(batch.SerializeToString(), parts))

    def cancel(self, item_ids: Sequence[int]) -> None:
        """Say that nobody waits for these items; those that have not begun cost nothing any more."""
        self._say(runner_pb2.RunnerRequest(cancel=runner_pb2.CancelItems(item_ids=item_ids)))

    def set_serving(self, serving: bool) -> None:  # noqa: FBT001  reads as a sentence where it is called
        """Say whether callers wait for this runner. A new one does not serve."""
        self._say(runner_pb2.RunnerRequest(priority=runner_pb2.SetPriority(serving=serving)))

    def retire(self) -> None:
        """End it politely: what was sent is answered first. Killed if that takes too long."""
        if self._is_retiring:
            return
        self._is_retiring = True
        self._say(runner_pb2.RunnerRequest(retire=runner_pb2.Retire()))
        self._data.finish()  # after the last batch, so that the runner knows what "has come"
        limit = self._spec.retire_seconds
        self._later(limit, lambda: self._condemn(EndReason.RETIRED, f"killed: not gone within {limit:g} s"))

    def kill(self, detail: str) -> None:
        """End it now; works on a stopped process too. Answers that are on their way may still be told."""
        self._condemn(EndReason.KILLED, detail)

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

    def _say(self, request: runner_pb2.RunnerRequest) -> None:
        self._control.send(frame(request.SerializeToString()))

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self._timers = [timer for timer in self._timers if timer.when() > self._loop.time()]
        self._timers.append(self._loop.call_later(seconds, act))

    def _on_data(self, payload: bytes) -> None:
        reply = self._understand(payload)
        if reply is None:
            return
        if reply.WhichOneof("body") != "batch":
            self._condemn(EndReason.GARBAGE, "no batch reply on the data way")
            return
        self._tell(lambda: self._listener.on_batch_reply(reply.batch))

    def _on_control(self, payload: bytes) -> None:
        reply = self._understand(payload)
        if reply is None:
            return
        listener = self._listener
        match reply.WhichOneof("body"):
            case "heartbeat":
                self._watch.pulse(reply.heartbeat.progress)
                self._tell(lambda: listener.on_heartbeat(reply.heartbeat))
            case "hello":
                if not self._watch.is_loading:
                    self._watch.enter(Phase.STANDING)
                self._tell(lambda: listener.on_hello(reply.hello))
            case "load_progress":
                self._tell(lambda: listener.on_load_progress(reply.load_progress))
            case "load_outcome":
                self._watch.enter(Phase.STANDING)
                self._tell(lambda: listener.on_load_outcome(reply.load_outcome))
            case _:
                self._condemn(EndReason.GARBAGE, "an unknown message on the control way")

    def _understand(self, payload: bytes) -> runner_pb2.RunnerReply | None:
        try:
            return runner_pb2.RunnerReply.FromString(payload)
        except DecodeError:
            self._condemn(EndReason.GARBAGE, "a frame that is no message")
            return None

    def _tell(self, tell: Callable[[], None]) -> None:
        try:
            tell()
        except Exception as error:  # noqa: BLE001  a listener's bug must not cost the frames behind this one
            context = {"message": "a runner's listener failed", "exception": error}
            self._loop.call_exception_handler(context)

    def _look(self) -> None:
        if self._child.has_ended:
            return
        overdue = self._watch.look(self._data.amid_frame if self._data.is_open else None)
        if overdue is not None:
            self._condemn(*_OVERDUE[overdue])
            return
        self._later(self._spec.patience.tick_seconds, self._look)

    def _on_closed(self, trouble: str) -> None:
        if trouble:
            self._condemn(EndReason.GARBAGE, trouble)
        # Whoever closes its sockets is gone or as good as gone. One that is just exiting keeps its own code.
        self._child.kill()
        self._settle()

    def _condemn(self, reason: EndReason, detail: str) -> None:
        self._verdict = self._verdict or (reason, detail)
        self._child.kill()

    def _on_exit(self, code: int) -> None:
        self._exit_code = code
        self._later(LAST_WORDS_SECONDS, self._finish)
        self._settle()

    def _settle(self) -> None:
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
        died = describe_exit(self._exit_code if self._exit_code is not None else 0)
        is_retired = self._is_retiring and self._exit_code == 0
        reason, detail = self._verdict or (EndReason.RETIRED if is_retired else EndReason.DIED, died)
        self._tell(lambda: self._listener.on_end(RunnerEnding(reason, detail, self._exit_code)))


_OVERDUE = {
    Overdue.HELLO: (EndReason.START_TIMEOUT, "no Hello in time"),
    Overdue.PULSE: (EndReason.SILENT, "no heartbeat in time"),
    Overdue.LOAD_PROGRESS: (EndReason.LOAD_STALLED, "the load made no progress in time"),
    Overdue.REST_OF_FRAME: (EndReason.GARBAGE, "half a frame"),
}


def _way(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    our, their = socket.socketpair()
    return ours.enter_context(our), theirs.enter_context(their)


def _arguments(spec: RunnerSpec, data_fd: int, control_fd: int) -> list[str]:
    extra = [f"--extra-engine={name}={where}" for name, where in spec.extra_engines.items()]
    return [
        sys.executable,
        "-P",  # the working folder is no place to import from
        "-m",
        "hotslot_watchdog.launch",  # refuses an environment in which another package hides ours
        "-m",
        "inference.runner.main",
        f"--data-fd={data_fd}",
        f"--control-fd={control_fd}",
        f"--parent={os.getpid()}",
        f"--engine={spec.engine}",
        f"--devices={spec.device_policy}",
        f"--heartbeat-seconds={spec.heartbeat_seconds}",
        f"--oom-score-adj={spec.oom_score_adj}",
        f"--prepare-threads={spec.prepare_threads}",
        *extra,
    ]
