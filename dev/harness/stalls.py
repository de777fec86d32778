"""How long this machine itself makes a process wait that has something to do; what stands beside a measured gap.

`python -m dev.harness.stalls` wakes up every few milliseconds and prints when it was late.
"""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from dev.harness.process import ROOT

PERIOD_SECONDS, MIN_STALL_SECONDS = 0.003, 0.010


@dataclass(slots=True)
class Stalls:
    """The stalls so far: when each ended (time.monotonic()) and how long it was."""

    found: list[tuple[float, float]] = field(default_factory=list)

    def within(self, since: float, until: float) -> float:
        """Seconds of an interval in which the machine stalled."""
        spans = [(max(ended - length, since), min(ended, until)) for ended, length in list(self.found)]
        return sum(max(0.0, end - begin) for begin, end in spans)


@contextlib.contextmanager
def watching_stalls() -> Iterator[Stalls]:
    """Watch the machine in a process of its own."""
    stalls = Stalls()
    command = [sys.executable, "-m", "dev.harness.stalls"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                ended, length = line.split()
                stalls.found.append((float(ended), float(length)))

        reader = threading.Thread(target=read, name="stalls", daemon=True)
        reader.start()
        try:
            yield stalls
        finally:
            process.terminate()
            reader.join(10)


def main() -> None:
    """Print each stall until terminated."""
    last = time.monotonic()
    while True:
        time.sleep(PERIOD_SECONDS)
        now = time.monotonic()
        if now - last - PERIOD_SECONDS >= MIN_STALL_SECONDS:
            sys.stdout.write(f"{now:.6f} {now - last - PERIOD_SECONDS:.6f}\n")
            sys.stdout.flush()
        last = now


if __name__ == "__main__":
    main()
