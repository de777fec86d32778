"""The runner's process: one model on one device, spoken to over two sockets by the server that started it."""

import argparse
import faulthandler
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from common.clock import SystemClock
from common.exit_codes import ExitCode
from hotslot.runner.v1 import runner_pb2
from inference.runner import process
from inference.runner.hardware import Hardware, allowed
from inference.runner.prepare import PendingBatch, PendingItem, PreparePool, receive
from inference.runner.process import bind_to, keep_freed_memory
from inference.runner.reporting import EventLog, Outlet, Pulse, start_heartbeat
from inference.runner.worker import Ways, Worker
from inference.wire import FrameError, read_frame

RETIRE_SECONDS = 1.0  # between the end of the data way and the Retire frame, which took another way


@dataclass(slots=True)
class Outstanding:
    """Items that have come, for cancelling; forgotten with their batch."""

    _items: dict[int, PendingItem] = field(default_factory=dict)
    _batches: list[PendingBatch] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, batch: PendingBatch) -> None:
        """Remember a batch until the device is done with it."""
        with self._lock:
            for ended in [known for known in self._batches if known.is_done]:
                self._batches.remove(ended)
                for item in ended.items:
                    self._items.pop(item.item_id, None)
            self._batches.append(batch)
            self._items.update({item.item_id: item for item in batch.items})

    def cancel(self, item_ids: Sequence[int]) -> None:
        """Nobody waits for these; unknown ones are ended already."""
        with self._lock:
            for item_id in item_ids:
                if item_id in self._items:
                    self._items[item_id].is_cancelled = True


class Runner:
    """Wires the parts together and listens to the server on both ways."""

    def __init__(self, arguments: argparse.Namespace, log: EventLog) -> None:
        clock = SystemClock()
        self._log = log
        self._clock = clock
        self._policy: str = arguments.devices
        self._standing = process.inherited(arguments.oom_score_adj)
        self._data = socket.socket(fileno=arguments.data_fd)
        self._control = socket.socket(fileno=arguments.control_fd)
        self._say = Outlet(self._control, self._server_gone).say
        self._outstanding = Outstanding()
        self._retiring = threading.Event()
        self._pool = PreparePool(arguments.prepare_threads, clock, log.event)
        self._pulse = Pulse(clock)
        ways = Ways(Outlet(self._data, self._server_gone).say, self._say, log.event, self._leave, self._hello)
        extra = dict(arguments.extra_engine)
        self._worker = Worker(arguments.engine, extra, self._pulse, clock, ways)
        self._heartbeat_seconds: float = arguments.heartbeat_seconds

    def run(self) -> None:
        """Serve until the server says that it is over, or is gone. Does not return."""
        threading.excepthook = self._bug
        self._apply(is_serving=False)
        start_heartbeat(self._pulse, self._heartbeat_seconds, self._say)
        threading.Thread(target=self._hear_data, name="data", daemon=True).start()
        self._worker.start()
        self._hear_control()

    def _hello(self, hardware: Hardware) -> None:
        devices = allowed(hardware.devices(), self._policy)
        hello = runner_pb2.Hello(
            pid=os.getpid(), devices=[name for name, _ in devices], precisions=[precision for _, precision in devices]
        )
        self._say(runner_pb2.RunnerReply(hello=hello))

    def _hear_data(self) -> None:
        while (request := self._next(self._data)) is not None:
            if request.WhichOneof("body") != "batch" or not request.batch.items:
                self._leave(ExitCode.PROTOCOL_ERROR)
            batch = receive(request.batch, self._clock.monotonic())
            self._outstanding.add(batch)
            self._pool.submit(self._worker.engine, batch)
            self._worker.put(batch)
        # The server closes this way after its last batch; without a Retire it has not closed it, it is gone.
        if not self._retiring.wait(RETIRE_SECONDS):
            self._server_gone()
        self._worker.put(None)

    def _hear_control(self) -> None:
        while (request := self._next(self._control)) is not None:
            match request.WhichOneof("body"):
                case "load":
                    self._worker.put(request.load)
                case "cancel":
                    self._outstanding.cancel(request.cancel.item_ids)
                case "priority":
                    self._apply(is_serving=request.priority.serving)
                case "retire":
                    self._retire()
                case _:
                    self._leave(ExitCode.PROTOCOL_ERROR)
        self._server_gone()

    def _next(self, way: socket.socket) -> runner_pb2.RunnerRequest | None:
        try:
            payload = read_frame(way)
            if payload is None:
                return None
            # Any buffer is taken; a copy would cost as much as reading did.
            return runner_pb2.RunnerRequest.FromString(payload)  # type: ignore[arg-type]
        except OSError:
            return None
        except (FrameError, DecodeError) as error:
            self._log.event("server_not_understood", level="error", error=str(error))
            self._leave(ExitCode.PROTOCOL_ERROR)
            return None

    def _retire(self) -> None:
        self._retiring.set()
        if self._worker.engine is None:
            self._leave(ExitCode.DONE)  # imports and loads cannot be ended otherwise, and nobody waits for them

    def _apply(self, *, is_serving: bool) -> None:
        self._worker.serve(is_serving=is_serving)
        refused = self._standing.apply(is_serving=is_serving)
        if refused:
            self._log.event("runner_priority_refused", level="warning", serving=is_serving, refused=refused)

    def _server_gone(self) -> None:
        self._leave(ExitCode.PARENT_GONE)

    def _bug(self, failure: threading.ExceptHookArgs) -> None:
        self._log.event("runner_thread_failed", level="error", error=repr(failure.exc_value))
        self._leave(ExitCode.INTERNAL_ERROR)

    def _leave(self, code: ExitCode) -> None:
        # At once and from any thread: a device call that hangs, or a library's exit handler, must not keep it.
        self._log.event("runner_ended", exit_code=int(code), why=code.name.lower())
        self._log.flush()
        os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until the server ends it; returns only if there is no server."""
    arguments = _parser().parse_args(argv)
    if not bind_to(arguments.parent):
        return ExitCode.PARENT_GONE
    keep_freed_memory()
    faulthandler.enable()  # a crash in a library says where, which nothing else could say afterwards
    Runner(arguments, EventLog(SystemClock())).run()
    return ExitCode.INTERNAL_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m inference.runner.main",
        description="One model on one device. Started by the server, which speaks with it over two inherited sockets; "
        "by hand it is of no use. It ends with the server and ignores SIGINT and SIGTERM.",
    )
    parser.add_argument("--data-fd", type=int, required=True, help="socket of batches and their replies")
    parser.add_argument("--control-fd", type=int, required=True, help="socket of everything else")
    parser.add_argument("--parent", type=int, required=True, help="process id of the server")
    parser.add_argument("--engine", default="", help="engine whose imports are done before Hello")
    parser.add_argument(
        "--extra-engine", action="append", default=[], type=_pair, help="NAME=MODULE:FUNCTION, as often as needed"
    )
    parser.add_argument("--devices", default="auto", help="auto, cpu, cuda or cuda:N: which ones Hello may name")
    parser.add_argument("--heartbeat-seconds", type=float, default=0.1, help="between two signs of life")
    parser.add_argument("--oom-score-adj", type=int, default=0, help="added to the inherited one while not serving")
    parser.add_argument("--prepare-threads", type=int, default=2, help="threads that decode and tokenise")
    return parser


def _pair(text: str) -> tuple[str, str]:
    name, equals, where = text.partition("=")
    if not name or not equals or ":" not in where:
        raise argparse.ArgumentTypeError("must be NAME=MODULE:FUNCTION")
    return name, where


if __name__ == "__main__":
    raise SystemExit(main())
