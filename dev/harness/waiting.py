"""Waits until a condition holds, by polling, up to a generous limit."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
LIMIT_SECONDS = 20.0  # the machine may be busy with other things
PAUSE_SECONDS = 0.01


def eventually(ask: Callable[[], T], limit: float = LIMIT_SECONDS, what: str = "", pause: float = PAUSE_SECONDS) -> T:
    """Call `ask` until its result is true.

    Args:
        ask: called about a hundred times a second, unless another pause is given.
        limit: seconds after which the test fails.
        what: for the message of the failure.
        pause: between two calls, seconds.

    Returns:
        The first answer that is true.
    """
    end = time.monotonic() + limit
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() >= end:
            raise AssertionError(f"not within {limit:g} s: {what or ask}; last answer {answer!r}")
        time.sleep(pause)
