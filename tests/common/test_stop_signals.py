"""Signals that ask a process to stop: at any moment, several at once."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from common.stop_signals import StopSignals
from dev.harness.process import ROOT

# Every line that the handler runs is interrupted by another signal, whose handler then runs inside of it.
INTERRUPTED = """
import signal, sys
from pathlib import Path
{prepare}
lines = []
def trace(frame, event, argument):
    if event == "line":
        lines.append(frame.f_lineno)
        signal.raise_signal(signal.SIGTERM)
    return trace
sys.settrace(trace)
signal.raise_signal(signal.SIGTERM)
sys.settrace(None)
print("done", len(lines) > 1)
"""
HANDLERS = {
    "stack": "from hotslot_watchdog.stack import Supervisord\nsupervisord = Supervisord(Path('none'))",
    "serve": "from cli.serve import _signals_forwarded\nforwarded = _signals_forwarded()\nforwarded.__enter__()",
}


@pytest.mark.parametrize("prepare", HANDLERS.values(), ids=HANDLERS)
def test_a_signal_within_a_handler_does_not_block_the_process(prepare: str) -> None:
    """A lock that the interrupted handler holds would be waited for for ever."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "protos")))
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(prepare=prepare)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("done True\n", "")


def test_a_wait_ends_with_the_signal_and_later_waits_return_at_once() -> None:
    """In every thread, and `on_signal` is called for each signal."""
    calls: list[int] = []
    before = signal.getsignal(signal.SIGUSR1)
    with StopSignals((signal.SIGUSR1,), lambda: calls.append(1)) as signals:
        assert not signals.wait(0.0)
        results: list[bool] = []
        waiting = threading.Thread(target=lambda: results.append(signals.wait()))
        waiting.start()

        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        waiting.join(10)

        assert signals.wait()
        assert (results, len(calls)) == ([True], 2)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_more_signals_than_the_pipe_holds_are_harmless() -> None:
    """The pipe is never read: it only has to be readable."""
    with StopSignals((signal.SIGUSR1,)) as signals:
        for _ in range(70_000):
            signal.raise_signal(signal.SIGUSR1)
        assert signals.wait(0.0)
