"""`make soak`: an hour of mixed traffic with faults, on the whole supervised stack with the scripted engine.

Several callers send unary calls of various sizes and deadlines, streams, invalid, oversized and poisonous requests;
some cancel, read slowly, or never read; runners are killed and stopped; good and bad revisions are published one after
the other. A line is printed each minute, and a verdict at the end: no call is lost, each answer is right and of one
revision, memory, descriptors, threads and tasks stay the same, and the metrics say what the callers counted.

    make soak ARGS="--minutes 5 --seed 7"
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from dev.chaos.catalog import Findings
from dev.chaos.usage import Look, judge, look
from dev.harness.loadgen import Loadgen, Outcome, playing
from dev.harness.numbers import percentile
from dev.harness.process import free_port
from dev.harness.settings import NEVER_HELD, Sections, merged
from dev.harness.supervised import ScriptedStack
from dev.soak.counts import MetricCounts, OwnCounts
from dev.soak.faults import Disturbances
from dev.soak.traffic import CALLER_KEY, MAX_REFUSED, Expected, Kind, kinds_of

MINUTE_SECONDS, QUIET_SECONDS, SETTLE_SECONDS = 60.0, 20.0, 12.0
CONNECTIONS = 6
OBSERVE_SECONDS = 4.0  # longer than a call waits beside saturating streams, so that a bad revision's answers are seen
MAX_GROWTH = 0.05
MIN_LOOKS = 10  # for a judgement of growth
SHOWN_PROBLEMS = 20
SCRIPT = {"call_seconds": 0.002, "row_seconds": 0.002, "warm_up_seconds": 0.2}
COLUMNS = (
    *("minute", "answered/s", "refused", "cancelled", "expired", "invalid", "poison", "p50 ms", "p99 ms"),
    *("good", "bad", "faults", "MiB", "files", "threads", "tasks", "updater", "problems"),
)


@dataclass(slots=True)
class Soak:
    """A run with what was seen so far."""

    stack: ScriptedStack
    port: int  # of the server's metrics
    expected: Expected
    counts: MetricCounts
    own: OwnCounts = field(default_factory=OwnCounts)
    problems: list[str] = field(default_factory=list)
    looks: dict[str, list[Look]] = field(default_factory=lambda: {"server": [], "updater": []})

    def take(self, outcomes: list[Outcome]) -> None:
        """Count and check outcomes."""
        self.own.add(outcomes)
        self.problems += [problem for one in outcomes if (problem := self.expected.problem_of(one))]

    def look(self) -> None:
        """Look at the processes and at the metrics."""
        self.looks["server"].append(look(self.stack.pid("server"), self.port))
        self.looks["updater"].append(look(self.stack.pid("updater")))
        self.counts.look()

    def verdict(self) -> list[str]:
        """Everything that was wrong."""
        findings = Findings()
        for program, looks in self.looks.items():
            if len(looks) >= MIN_LOOKS:
                judge(program, looks, MAX_GROWTH, findings)
        for group in ("interactive", "large pictures"):
            share = self.own.refused_share(group)
            findings.expect(so=share <= MAX_REFUSED, otherwise=f"{share:.1%} of {group} refused")
        return [*self.problems, *self.own.differences(self.counts), *findings.troubles]


def main() -> int:
    """Run, and print; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--log", type=Path, default=Path(".bench/soak.log"), help="the stack's (default: %(default)s)")
    options = parser.parse_args()
    say(f"seed {options.seed}, {options.minutes:g} minutes")
    with tempfile.TemporaryDirectory(prefix="hotslot-", ignore_cleanup_errors=True) as folder:
        try:
            problems = run(Path(folder), options.seed, options.minutes * MINUTE_SECONDS)
        finally:
            options.log.parent.mkdir(exist_ok=True)
            shutil.copyfile(Path(folder) / "stack.log", options.log)
    for problem in problems[:SHOWN_PROBLEMS]:
        say(f"wrong: {problem}")
    say(f"{len(problems)} wrong; {options.log}" if problems else "nothing was lost or wrong")
    return 1 if problems else 0


def run(folder: Path, seed: int, seconds: float) -> list[str]:
    """The whole run; returns everything that was wrong."""
    kinds = kinds_of(seed)
    port = free_port()
    sections: Sections = {
        "server": {"metrics_port": port},
        "updater": {"breaker_first_seconds": 0.1},
        "observe": {"window_seconds": OBSERVE_SECONDS, "min_answers": 100},
    }
    whole = ScriptedStack(
        folder,
        environment={"HOTSLOT_SCHEDULING__CALLER_METADATA_KEY": CALLER_KEY},
        sections=merged(NEVER_HELD, sections),
        script=SCRIPT,
    )
    with whole as stack:
        soak = Soak(stack, port, Expected(kinds), MetricCounts(port))
        say(f"began at {datetime.now(UTC):%H:%M:%S}, {folder}")
        soak.counts.look()
        play(soak, kinds, folder, seed, seconds)
        soak.problems += last_update(stack)
        return soak.verdict()


def play(soak: Soak, kinds: dict[str, Kind], folder: Path, seed: int, seconds: float) -> None:
    """Play the load with all disturbances, and print a line each minute."""
    groups = [kind.group for kind in kinds.values()]
    place = folder / "load"
    place.mkdir()
    say(" ".join(f"{name:>9}" for name in COLUMNS))
    loadgen = Loadgen(soak.stack.address, groups, seconds, place, CONNECTIONS, seed)
    with playing(loadgen) as load, Disturbances(soak.stack, seed, seconds - QUIET_SECONDS) as faults:
        ends, minute = time.monotonic() + seconds, 0
        while time.monotonic() < ends:
            minute += 1
            began = time.monotonic()
            time.sleep(max(0.1, min(MINUTE_SECONDS, ends - began)))
            outcomes = load.take()
            soak.take(outcomes)
            soak.look()
            soak.problems += faults.problems
            faults.problems = []
            say(line_of(minute, outcomes, time.monotonic() - began, faults.counts, soak))
        soak.take(list(load.wait().outcomes))
    time.sleep(SETTLE_SECONDS)  # what callers left is done
    soak.counts.look()
    say(", ".join(f"{name} {count}" for name, count in sorted(faults.counts.items())))
    say(", ".join(f"{' '.join(key).strip()} {count}" for key, count in sorted(soak.own.items.items())))


def line_of(minute: int, outcomes: list[Outcome], seconds: float, faults: Counter[str], soak: Soak) -> str:
    """One line of the table."""
    seen = OwnCounts()
    seen.add(outcomes)
    by_kind: Counter[str] = Counter()
    for (kind, _), count in seen.items.items():
        by_kind[kind] += count
    unary = [one.took for one in outcomes if one.is_answer and one.group == "interactive"]
    server, updater = soak.looks["server"][-1], soak.looks["updater"][-1]
    values = (
        minute,
        f"{by_kind['answered'] / seconds:.0f}",
        *(by_kind[kind] for kind in ("refused", "unknown", "expired", "invalid", "failed")),
        f"{1000 * percentile(unary, 0.5):.0f}",
        f"{1000 * percentile(unary, 0.99):.0f}",
        sum(count for name, count in faults.items() if name.startswith("good")),
        sum(count for name, count in faults.items() if name.startswith("bad")),
        sum(count for name, count in faults.items() if "runner" in name),
        f"{server.resident_mib:.0f}",
        server.descriptors,
        server.threads,
        server.tasks,
        f"{updater.resident_mib:.0f}",
        len(soak.problems),
    )
    return " ".join(f"{value:>9}" for value in values)


def last_update(stack: ScriptedStack) -> list[str]:
    """Publish one more good revision; it must be committed by itself."""
    try:
        stack.publish("v2.0.0")
        stack.wait_committed("v2.0.0")
        stack.wait_alone()
    except AssertionError as error:
        return [f"the healthy update at the end did not succeed: {str(error).splitlines()[0]}"]
    code = stack.end()
    return [] if code == 0 else [f"the stack ended with {code}"]


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
