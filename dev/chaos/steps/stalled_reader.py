"""L17: the reader of the stack's output stalls under load: a killed server is restarted, and SIGTERM ends the stack."""

import contextlib
import json
import os
import signal
import threading
import time

from dev.chaos.catalog import Findings, Task
from dev.harness.supervised import ScriptedStack

SECONDS = 30.0
STALLED_SECONDS = 3.0  # until the pipe is full again
CALLERS, PACE_SECONDS = 6, 0.0  # enough lines to fill every pipe and queue on the way
BACK_SECONDS, END_SECONDS = 15.0, 10.0  # limits: generous on a busy machine; without the copier neither ever came


def run(task: Task) -> Findings:
    """Read nothing for half a minute, and kill the server meanwhile; read, stall again, and end the stack."""
    findings = Findings()
    descriptor, writer = os.pipe()
    stack, reader = ScriptedStack(task.folder), _Reader(descriptor)
    stack.output = writer
    reader.read()
    with stack:
        os.close(writer)
        with stack.load(CALLERS, PACE_SECONDS) as load:
            reader.stall()
            time.sleep((task.seconds or SECONDS) / 2)
            killed = time.monotonic()
            old = stack.send_signal("server", signal.SIGKILL)
            stack.wait(lambda: stack.pid("server") not in (0, old) and stack.is_serving(), "the server is back")
            back = time.monotonic() - killed
            load.wait_answers(1)
            time.sleep((task.seconds or SECONDS) / 2)
            reader.read()
            dropped = stack.wait(reader.count_dropped, "the stack says how many lines it has dropped")
            reader.stall()
            time.sleep(STALLED_SECONDS)
            report = load.report()
        began = time.monotonic()
        code = stack.end()
        ended = time.monotonic() - began
        left = len(stack.living())
    findings.count = len(report.answers)
    findings.numbers = {
        "back_seconds": round(back, 2),
        "end_seconds": round(ended, 2),
        "lines_dropped": dropped,
        "answers": len(report.answers),
        "refused_without_a_server": len(report.refusals),
    }
    findings.expect(so=back < BACK_SECONDS, otherwise=f"the killed server was back after {back:.1f} s")
    findings.expect(so=ended < END_SECONDS, otherwise=f"SIGTERM ended the stack after {ended:.1f} s")
    findings.expect(so=(code, left) == (0, 0), otherwise=f"the stack ended with {code}, {left} processes left")
    findings.expect(so=not report.wrong, otherwise=f"{len(report.wrong)} answers of no revision's own")
    return findings


class _Reader:
    """Reads a pipe in a thread, with pauses."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._content = bytearray()
        self._reads = threading.Event()
        os.set_blocking(descriptor, False)
        threading.Thread(target=self._run, daemon=True).start()

    def read(self) -> None:
        """Read from now on."""
        self._reads.set()

    def stall(self) -> None:
        """Read no further."""
        self._reads.clear()

    def _run(self) -> None:
        while self._reads.wait():
            with contextlib.suppress(BlockingIOError):
                content = os.read(self._descriptor, 1 << 16)
                if not content:
                    return
                self._content += content
                continue
            time.sleep(0.01)

    def count_dropped(self) -> int:
        """Lines that the stack has dropped, as it says."""
        rows = [json.loads(line) for line in bytes(self._content).splitlines() if b'"output_dropped"' in line]
        return sum(int(row["lines"]) for row in rows)
