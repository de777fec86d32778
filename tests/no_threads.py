"""A system that has no thread left, for tests."""

import threading

import pytest


def refuse_threads(patch: pytest.MonkeyPatch, count: int, name: str = "") -> None:
    """Let the next `count` starts of a thread fail; only those of this name, if one is given."""
    start, left = threading.Thread.start, [count]

    def start_or_fail(thread: threading.Thread) -> None:
        if left[0] and name in ("", thread.name):
            left[0] -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    patch.setattr(threading.Thread, "start", start_or_fail)
