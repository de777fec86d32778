"""The fork server: has imported torch and the engines, loads no model, and forks runners in milliseconds.

It stays single-threaded and never touches a GPU, because a fork copies only the thread that calls it, and no device
context. See docs/explanation/decisions/fork-server.md.
"""

import argparse
import ctypes
import importlib
import json
import os
import select
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from common.clock import SystemClock
from common.exit_codes import ExitCode
from inference.fork_wire import ForkAnswer, ForkRequest, receive_request, send_answer
from inference.runner import main as runner
from inference.runner.engines.base import loader_for
from inference.runner.process import bind_to_parent
from inference.runner.worker import without_garbage_collection

ADOPTION_SECONDS = 10.0  # until a forked runner has the server as its parent
_POLL_SECONDS = 0.0005
PR_SET_NAME = 15


class ForkUnsafe(Exception):
    """A thread runs in this process, and a fork would copy the locks that it holds."""


def main(argv: Sequence[str] | None = None) -> int:
    """Fork runners until the server ends; returns the exit code. In a forked runner it does not return."""
    arguments = _parser().parse_args(argv)
    if not bind_to_parent(arguments.parent):
        return ExitCode.PARENT_GONE
    connection = socket.socket(fileno=arguments.connection_fd)
    try:
        import_engines(arguments.engine)
        check_single_thread()
    except Exception as error:  # noqa: BLE001  an import can raise anything
        send_answer(connection, ForkAnswer(0, error=repr(error)))
        return ExitCode.ENGINE_MISSING
    send_answer(connection, ForkAnswer(0))
    while (received := receive_request(connection)) is not None:
        send_answer(connection, answer(connection, arguments.parent, *received))
    return ExitCode.PARENT_GONE


def import_engines(engines: Sequence[str]) -> None:
    """Import what runners of these engines import, and what each of them needs at once."""
    with without_garbage_collection():
        for engine in engines:
            loader_for(engine)
        importlib.import_module("inference.runner.device")


def check_single_thread() -> None:
    """Raise unless this process has one thread.

    Raises:
        ForkUnsafe: it has more.
    """
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise ForkUnsafe(f"{threads} threads run after the imports")


def answer(connection: socket.socket, server: int, request: ForkRequest, descriptors: Sequence[int]) -> ForkAnswer:
    """Fork a runner if the request has arguments; returns the answer. In the runner it does not return."""
    try:
        if not request.arguments:
            return ForkAnswer(request.number)
        return ForkAnswer(request.number, _fork_orphan(connection, server, request.arguments, descriptors))
    except OSError as error:
        return ForkAnswer(request.number, error=repr(error))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _fork_orphan(connection: socket.socket, server: int, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
    """Fork a process that forks the runner and ends, so that the server, a child subreaper, becomes its parent.

    Raises:
        OSError: the system has no process or memory left.
    """
    reading, writing = os.pipe()
    try:
        between = os.fork()
        if not between:
            os.close(reading)
            _fork_again(connection, server, arguments, descriptors, writing)
        os.close(writing)
        writing = -1
        text = os.read(reading, 32)
        os.waitpid(between, 0)
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    if not text:
        raise OSError("the second fork failed")
    return int(text)


def _fork_again(
    connection: socket.socket, server: int, arguments: Sequence[str], descriptors: Sequence[int], writing: int
) -> None:
    """Fork the runner and report its process id. Does not return, in either process."""
    code: int = ExitCode.INTERNAL_ERROR
    try:
        pid = os.fork()
        if pid:
            os.write(writing, str(pid).encode())
            code = ExitCode.DONE
        else:
            os.close(writing)
            connection.close()
            code = _run_runner(server, arguments, descriptors)
    except BaseException as error:  # noqa: BLE001  nothing may return into the loop of the fork server
        line = {"level": "error", "process": "runner", "event": "runner_fork_failed", "error": repr(error)}
        os.write(sys.stdout.fileno(), json.dumps(line).encode() + b"\n")
    finally:
        os._exit(code)


def _run_runner(server: int, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
    ctypes.CDLL(None).prctl(PR_SET_NAME, b"hotslot-runner", 0, 0, 0)
    clock = SystemClock()
    ends = clock.monotonic() + ADOPTION_SECONDS  # the process between ends at once
    while os.getppid() != server:
        if clock.monotonic() > ends:
            return ExitCode.PARENT_GONE
        select.select([], [], [], _POLL_SECONDS)
    names = ("--data-fd", "--control-fd", "--call-record-fd")
    inherited = [f"{name}={descriptor}" for name, descriptor in zip(names, descriptors, strict=True)]
    return runner.main([*inherited, *arguments])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m inference.runner.fork_server",
        description="Forks runners on the server's request. Started by the server, which passes a socket. "
        "Ends with the server and ignores SIGINT and SIGTERM.",
    )
    parser.add_argument("--connection-fd", type=int, required=True, help="socket for requests and answers")
    parser.add_argument("--parent", type=int, required=True, help="process id of the server")
    parser.add_argument("--engine", action="append", default=[], help="engine to import, repeatable")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
