"""The runner process: one model on one device, controlled by the server that started it over two sockets."""

import argparse
import contextlib
import faulthandler
import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError

from common.cgroup import count_usable_cpus
from common.clock import SystemClock
from common.engine_files import ENGINES, Task
from common.exit_codes import ExitCode
from hotslot.runner.v1 import runner_pb2
from inference.call_record import CallRecord
from inference.runner import process
from inference.runner.hardware import Hardware, filter_devices
from inference.runner.items import ReceivedItems, read_items
from inference.runner.prepare import PreparePool
from inference.runner.process import bind_to_parent, keep_freed_memory, leave_batch_policy
from inference.runner.reporting import DeviceProgress, EventLog, FrameWriter, start_heartbeat
from inference.runner.worker import Worker, WorkerCallbacks
from inference.wire import FrameError, read_frame

T = TypeVar("T")

MAX_PREPARE_PROCESSES = 16  # by default
_PICTURE_ENGINES = {files.engine for files in ENGINES if files.task is Task.VISUAL_ENTAILMENT}
RETIRE_SECONDS = 1.0  # longest delay of the Retire frame, on the control socket, after the data socket was closed


class Runner:
    """Composes the runner's parts and receives the server's requests on both sockets."""

    def __init__(self, arguments: argparse.Namespace, log: EventLog) -> None:
        clock = SystemClock()
        self._log = log
        self._clock = clock
        self._policy: str = arguments.devices
        self._priority = process.read_priority(arguments.oom_score_adj)
        self._data = socket.socket(fileno=arguments.data_fd)
        self._control = socket.socket(fileno=arguments.control_fd)
        self._send = FrameWriter(self._control, self._on_disconnect).send
        self._received = ReceivedItems()
        self._retiring = threading.Event()
        self._progress = DeviceProgress(clock, CallRecord(arguments.call_record_fd))
        send_data = FrameWriter(self._data, self._on_disconnect).send
        callbacks = WorkerCallbacks(send_data, self._send, log.event, self._exit, self._send_hello)
        extra = dict(arguments.extra_engine)
        self._worker = Worker(
            arguments.engine, extra, self._progress, clock, callbacks, self._received, arguments.kernels
        )
        self._pool = PreparePool(
            arguments.prepare_processes or min(MAX_PREPARE_PROCESSES, count_usable_cpus()),
            arguments.prepare_memory_bytes,
            arguments.prepare_timeout_seconds,
            clock,
            log.event,
            self._worker.on_prepared,
        )
        self._pool.decoders.set_priority = self._priority.set_child
        self._heartbeat_seconds: float = arguments.heartbeat_seconds
        self._has_pictures = arguments.engine in _PICTURE_ENGINES

    def run(self) -> None:
        """Serve until the server retires this runner or disconnects. Does not return."""
        threading.excepthook = self._on_thread_error
        self._apply(is_serving=False)
        start_heartbeat(self._make_heartbeat, self._heartbeat_seconds, self._send)
        threading.Thread(target=self._receive_items, name="data", daemon=True).start()
        self._worker.start()
        self._receive_control()

    def _send_hello(self, hardware: Hardware) -> None:
        devices = filter_devices(hardware.devices(), self._policy)
        hello = runner_pb2.Hello(
            pid=os.getpid(), devices=[name for name, _ in devices], precisions=[precision for _, precision in devices]
        )
        self._send(runner_pb2.RunnerReply(hello=hello))

    def _make_heartbeat(self) -> runner_pb2.Heartbeat:
        heartbeat = self._progress.make_heartbeat()
        heartbeat.waiting_items = len(self._received)
        heartbeat.preparing_items, heartbeat.oldest_preparation_seconds = self._pool.measure()
        heartbeat.queued_preparations, heartbeat.picture_bytes = self._pool.measure_queue()
        for total in self._pool.pictures.read():
            heartbeat.pictures.add(format=total.format, outcome=total.outcome, count=total.count, seconds=total.seconds)
        return heartbeat

    def _receive_items(self) -> None:
        while (received := self._read(self._data, read_items)) is not None:
            now, engine = self._clock.monotonic(), self._worker.engine
            for item in [self._received.add(message, now, picture) for message, picture in received]:
                self._pool.submit(engine, item)
            del received, item  # not held while the next frame is awaited
        # A server closes the data socket after its last item and sends Retire; without Retire it has ended.
        if not self._retiring.wait(RETIRE_SECONDS):
            self._on_disconnect()
        self._worker.finish()

    def _receive_control(self) -> None:
        while (request := self._read(self._control, _parse_request)) is not None:
            match request.WhichOneof("body"):
                case "load":
                    self._worker.load(request.load)
                    if self._has_pictures:
                        with contextlib.suppress(RuntimeError):  # no thread is left: the first picture tries again
                            self._pool.decoders.start()  # for the self-test, which follows the load at once
                case "cancel":
                    self._received.cancel(request.cancel.item_ids)
                case "priority":
                    self._apply(is_serving=request.priority.serving, yields=request.priority.yields)
                case "retire":
                    self._retire()
                case _:
                    self._exit(ExitCode.PROTOCOL_ERROR)
        self._on_disconnect()

    def _read(self, connection: socket.socket, parse: Callable[[bytearray], T]) -> T | None:
        """The next frame; None at the end of the connection."""
        try:
            payload = read_frame(connection)
            return None if payload is None else parse(payload)
        except OSError:
            return None
        except (FrameError, DecodeError) as error:
            self._log.event("server_frame_invalid", level="error", error=str(error))
            self._exit(ExitCode.PROTOCOL_ERROR)
            return None

    def _retire(self) -> None:
        self._retiring.set()
        if self._worker.engine is None:
            self._exit(ExitCode.DONE)  # imports and loads cannot be interrupted otherwise

    def _apply(self, *, is_serving: bool, yields: bool = False) -> None:
        self._worker.set_serving(is_serving=is_serving)
        refused = self._priority.apply(self._pool.decoders.pids, is_serving=is_serving, yields=yields)
        if refused:
            self._log.event("runner_priority_refused", level="warning", serving=is_serving, refused=refused)

    def _on_disconnect(self) -> None:
        self._exit(ExitCode.PARENT_GONE)

    def _on_thread_error(self, failure: threading.ExceptHookArgs) -> None:
        self._log.event("runner_thread_failed", level="error", error=repr(failure.exc_value))
        self._exit(ExitCode.INTERNAL_ERROR)

    def _exit(self, code: ExitCode) -> None:
        # Immediately and from any thread: a hanging device call or a library's exit handler must not delay the exit.
        self._log.event("runner_ended", exit_code=int(code), reason=code.name.lower())
        self._log.flush()
        os._exit(code)


def _parse_request(payload: bytearray) -> runner_pb2.RunnerRequest:
    return runner_pb2.RunnerRequest.FromString(bytes(payload))


def main(argv: Sequence[str] | None = None) -> int:
    """Run until the server ends the process; returns an exit code only if there is no server."""
    arguments = make_parser().parse_args(argv)
    if not bind_to_parent(arguments.parent):
        return ExitCode.PARENT_GONE
    leave_batch_policy()
    keep_freed_memory()
    faulthandler.enable()  # prints the stack of a crash in a native library
    Runner(arguments, EventLog(SystemClock())).run()
    return ExitCode.INTERNAL_ERROR


def make_parser() -> argparse.ArgumentParser:
    """The parser of a runner's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m inference.runner.main",
        description="Serves one model on one device. Started by the server, which passes two sockets. "
        "Ends with the server and ignores SIGINT and SIGTERM.",
    )
    parser.add_argument("--data-fd", type=int, required=True, help="socket for items and their outcomes")
    parser.add_argument("--control-fd", type=int, required=True, help="socket for all other messages")
    parser.add_argument("--call-record-fd", type=int, required=True, help="memory for the items of the device call")
    parser.add_argument("--parent", type=int, required=True, help="process id of the server")
    parser.add_argument("--engine", default="", help="engine to import before Hello is sent")
    parser.add_argument(
        "--extra-engine", action="append", default=[], type=_pair, help="NAME=MODULE:FUNCTION, repeatable"
    )
    parser.add_argument("--devices", default="auto", help="auto, cpu, cuda or cuda:N: devices that Hello may list")
    parser.add_argument("--heartbeat-seconds", type=float, default=0.1, help="interval of heartbeats")
    parser.add_argument("--oom-score-adj", type=int, default=0, help="added to the inherited value while not serving")
    parser.add_argument("--prepare-processes", type=int, default=0, help="decoders of pictures that take long")
    parser.add_argument("--prepare-memory-bytes", type=int, default=512 << 20, help="memory of all decoders together")
    parser.add_argument(
        "--kernels",
        default="",
        type=_optional_path,
        help="folder of compiled kernels, which may be missing; empty: none",
    )
    parser.add_argument("--prepare-timeout-seconds", type=float, default=30.0, help="after which this process is ended")
    return parser


def _optional_path(text: str) -> Path | None:
    return Path(text) if text else None


def _pair(text: str) -> tuple[str, str]:
    name, equals, location = text.partition("=")
    if not name or not equals or ":" not in location:
        raise argparse.ArgumentTypeError("must be NAME=MODULE:FUNCTION")
    return name, location


if __name__ == "__main__":
    raise SystemExit(main())
