"""Callers of the drill: threads that ask questions with commands for the scripted engine."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc

from dev.harness.answers import Question, question
from dev.harness.supervised import ScriptedStack
from hotslot.entailment.v1.entailment_pb2_grpc import EntailmentServiceStub


@contextmanager
def asking(
    stack: ScriptedStack,
    *statements: str,
    callers: int = 2,
    pause: float = 0.05,
    timeout: float = 20.0,
    image: bytes = b"",
) -> Iterator[None]:
    """Ask again and again while the block runs; errors are what is wanted.

    Args:
        stack: whose server is asked.
        statements: asked in turn, each by itself.
        callers: at once.
        pause: of a caller between two calls.
        timeout: of a call.
        image: for every question; each has one of its own by default.
    """
    stopping = threading.Event()
    threads = [
        threading.Thread(target=_ask, args=(stack.address, statements, pause, timeout, image, stopping), daemon=True)
        for _ in range(callers)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join(timeout + 5)


def ask_once(stack: ScriptedStack, asked: Question, timeout: float = 20.0) -> str:
    """One call; the name of its code."""
    with grpc.insecure_channel(stack.address) as channel:
        try:
            EntailmentServiceStub(channel).Predict(asked.request(), timeout=timeout)
        except grpc.RpcError as error:
            return str(error.code().name) if isinstance(error, grpc.Call) else "UNKNOWN"
    return "OK"


def _ask(
    address: str, statements: tuple[str, ...], pause: float, timeout: float, image: bytes, stopping: threading.Event
) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = EntailmentServiceStub(channel)
        for statement in itertools.cycle(statements):
            if stopping.is_set():
                return
            with suppress(grpc.RpcError):
                stub.Predict(question(statement, image=image).request(), timeout=timeout)
            stopping.wait(pause)
