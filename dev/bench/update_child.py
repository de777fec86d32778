"""The shipped updater, timed step by step: `python -m dev.bench.update_child REPORT`, settings as the updater's.

It performs one update, exits when that has ended, and writes a report in JSON.
"""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from common import sealing
from updater import loop
from updater.core.effects import CommitLoad, Effect, EffectFailure, Result
from updater.core.facts import Facts
from updater.core.record import ModelRecord, Stage
from updater.core.rules import Rules
from updater.daemon import main
from updater.perform import Ports, perform
from updater.stages.commands import CommandResult
from updater.stages.machine import Step, decide
from updater.store.bundles import BundleStore

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seen:
    """The stop-watch's measurements of one update."""

    is_committed: bool
    seconds: dict[str, float]  # by effect of the updater, and by parts of verifying and sealing
    at: dict[str, float]  # moments: "EFFECT begins" (the first time), "EFFECT ends" (the last)
    updater_peak_bytes: int
    convert_peak_bytes: int  # pages of mapped files among them


class StopWatch:
    """Measures seconds by operation; from one thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.at: dict[str, float] = {}
        self.is_committed = False

    def timed(self, name: str, work: Callable[..., T]) -> Callable[..., T]:
        """Wrap a function so that its time is added under `name`."""

        def run(*arguments: Any, **named: Any) -> T:  # noqa: ANN401  whatever it takes
            began = time.perf_counter()
            try:
                return work(*arguments, **named)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

        return run

    def perform(self, effect: Effect, ports: Ports) -> Result:
        """Call the updater's `perform`, measured under the effect's name."""
        name = type(effect).__name__
        self.at.setdefault(f"{name} begins", time.perf_counter())
        done: Result = self.timed(name, perform)(effect, ports)
        self.at[f"{name} ends"] = time.perf_counter()
        self.is_committed |= isinstance(effect, CommitLoad) and not isinstance(done, EffectFailure)
        if self.is_committed:
            os.kill(os.getpid(), signal.SIGTERM)  # in order, after this step
        return done

    def decide(self, record: ModelRecord, facts: Facts, rules: Rules) -> Step | CommandResult:
        """Call the updater's `decide`; ends this process if the update was not committed."""
        if record.stage in (Stage.HELD, Stage.ROLLING_BACK):
            os.kill(os.getpid(), signal.SIGTERM)
        return decide(record, facts, rules)


def seen_by(watch: StopWatch) -> Seen:
    """Its measurements, and the peak memory of this process and its largest child."""
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Seen(watch.is_committed, watch.seconds, watch.at, 1024 * int(peak.split()[1]), 1024 * children.ru_maxrss)


if __name__ == "__main__":
    place, watch = Path(sys.argv.pop()), StopWatch()
    with (
        mock.patch.object(loop, "perform", watch.perform),
        mock.patch.object(loop, "decide", watch.decide),
        mock.patch.object(BundleStore, "verify", watch.timed("verify", BundleStore.verify)),
        mock.patch.object(sealing, "seal", watch.timed("seal", sealing.seal)),
    ):
        code = main()
    place.write_text(json.dumps(asdict(seen_by(watch))), encoding="utf-8")
    sys.exit(code)
