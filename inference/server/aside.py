"""Reads that a broken disk may hold for minutes: each has a thread of its own.

It holds neither the event loop nor, at a stop, the end of the process, which waits for the threads of a pool.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def start_aside(read: Callable[[], T], name: str) -> Future[T]:
    """Begin to read; the future has the result, or the error.

    Args:
        read: to call, once.
        name: of the thread.

    Raises:
        RuntimeError: the system has no thread for it.
    """
    found: Future[T] = Future()
    found.set_running_or_notify_cancel()  # whoever awaits it may leave; the read goes on

    def run() -> None:
        try:
            result = read()
        except BaseException as error:  # noqa: BLE001  raised where the result is taken
            found.set_exception(error)
        else:
            found.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return found


async def read_aside(read: Callable[[], T], name: str) -> T:
    """Read, and await the result; one that awaits it no longer leaves the read to itself."""
    return await asyncio.wrap_future(start_aside(read, name))
