"""B9: the machine's wall clock jumps a year forward and back while a breaker is open and while a trial is observed.

libfaketime shifts the wall clock of all processes of the stack; the monotonic clock is unchanged, as when a clock is
set. Files keep their real times.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dev.chaos.catalog import Findings, Skipped, Task
from dev.chaos.promises import Promises
from dev.harness.supervised import ScriptedStack
from hotslot.updates.v1 import updates_pb2 as pb

LIBRARY = "libfaketime.so.1"
PLACES = ("/usr/lib/*/faketime", "/usr/lib/faketime", "/usr/lib64/faketime", "/usr/local/lib/faketime")
YEAR_FORWARD, YEAR_BACK, TRUE = "+365d", "-365d", "+0d"
WINDOW_SECONDS, OPEN_SECONDS = 6.0, 15.0
JITTER = 0.2  # of the open time
SLACK_SECONDS = 3.0  # of a busy machine, and of what is written down only now and then
OPEN = "OPEN"


@dataclass(slots=True)
class Clock:
    """The wall clock of the stack."""

    file: Path

    def set(self, offset: str) -> None:
        """Set the shift for all processes, by one rename since it may be read at any time."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"{offset}\n", encoding="utf-8")
        fresh.rename(self.file)

    def environment(self, library: str) -> dict[str, str]:
        """The environment variables that load libfaketime."""
        return {
            "LD_PRELOAD": library,
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "NO_FAKE_STAT": "1",
        }


def run(task: Task) -> Findings:
    """Jump during a trial, then with an open breaker, then across a restart of the updater."""
    clock = Clock(task.folder / "clock")
    clock.set(TRUE)
    findings = Findings()
    sections = {
        "observe": {"window_seconds": WINDOW_SECONDS},
        "updater": {"breaker_first_seconds": OPEN_SECONDS},
    }
    whole = ScriptedStack(task.folder, environment=clock.environment(library()), sections=sections)
    with whole as stack, Promises(stack) as promises, stack.load() as load:
        findings.expect(so=is_faked(stack, clock), otherwise="libfaketime does not move the updater's clock")
        in_observation(stack, clock, findings)
        task.say("the clock jumped in a trial")
        while_open(stack, clock, findings)
        task.say("the clock jumped before an open breaker")
        clock.set(TRUE)
        findings.troubles += promises.kept("v1.99.0", load)
        report = load.report()
    findings.numbers |= {"attempts": report.attempts, "failed": len(report.failed)}
    return findings


def library() -> str:
    """The path of libfaketime.

    Raises:
        Skipped: it is not installed.
    """
    found = [path for place in PLACES for path in Path("/").glob(f"{place[1:]}/{LIBRARY}")]
    if not found:
        raise Skipped(f"{LIBRARY} is not there: apt-get install libfaketime")
    return str(found[0])


def is_faked(stack: ScriptedStack, clock: Clock) -> bool:
    """Whether the updater uses the shifted clock, by the time that it reports for the hub's last answer."""
    clock.set(YEAR_FORWARD)
    now = time.time()

    def year_later() -> bool:
        return stack.status().last_checked_at.seconds > now + 300 * 86_400

    stack.wait(year_later, "the updater's clock is a year ahead")
    clock.set(TRUE)
    stack.wait(lambda: not year_later(), "the updater's clock is right again")
    return True


def in_observation(stack: ScriptedStack, clock: Clock, findings: Findings) -> None:
    """The clock jumps during a trial: its duration does not change, and the good revision is committed."""
    for number, offsets in enumerate([(YEAR_FORWARD, TRUE), (YEAR_BACK, TRUE), (YEAR_FORWARD, YEAR_BACK)], 1):
        revision = f"v1.{number}.0"
        stack.publish(revision)
        stack.wait_stage("OBSERVING")
        began = time.monotonic()
        for offset in offsets:
            clock.set(offset)
            time.sleep(1.0)
        stack.wait_committed(revision)
        took = time.monotonic() - began
        findings.numbers[f"observed_{number}_seconds"] = round(took, 1)
        is_right = WINDOW_SECONDS - 1.0 <= took <= WINDOW_SECONDS + 3 * SLACK_SECONDS
        otherwise = f"observed for {took:.1f} s under a jumping clock, the window is {WINDOW_SECONDS:g} s"
        findings.expect(so=is_right, otherwise=otherwise)
        clock.set(TRUE)
        stack.wait_alone()
        findings.count += len(offsets)


def while_open(stack: ScriptedStack, clock: Clock, findings: Findings) -> None:
    """The clock jumps while a breaker is open: its open time does not change, also across a restart."""

    def restarting() -> None:
        restarted(stack, clock, YEAR_BACK)

    jumps: list[tuple[str, Callable[[], None]]] = [
        ("a year forward", lambda: clock.set(YEAR_FORWARD)),
        ("a year back", lambda: clock.set(YEAR_BACK)),
        ("a year back, and a restart", restarting),
    ]
    for number, (name, jump) in enumerate(jumps, 1):
        clock.set(TRUE)
        open_breaker(stack, number)
        left, began = open_left(stack), time.monotonic()
        jump()
        stack.wait(lambda: list(stack.status().breakers), "the updater has read its journal")
        still = open_left(stack)
        passed = time.monotonic() - began
        # What passed since the record was written is not known to the next life, if the clock went back meanwhile.
        unknown = passed if jump is restarting else 0.0
        is_same = -SLACK_SECONDS <= still - (left - passed) <= SLACK_SECONDS + unknown
        otherwise = f"{name}: {left:.1f} s were left, {passed:.1f} s later {still:.1f} s"
        findings.expect(so=is_same, otherwise=otherwise)
        stack.publish(f"v1.{10 * number + 5}.0")
        stack.wait_committed(f"v1.{10 * number + 5}.0", limit=left * (1 + JITTER) + 30)
        took = time.monotonic() - began
        findings.numbers[f"open_{number}"] = (
            f"{name}: {left:.1f} s were left, tried again and committed {took:.1f} s later"
        )
        findings.expect(so=took >= left - SLACK_SECONDS, otherwise=f"{name}: the breaker closed after {took:.1f} s")
        stack.wait_alone()
        stack.operator.ResetBreaker(pb.ResetBreakerRequest(breaker="activation"), timeout=10)
        findings.count += 1


def open_breaker(stack: ScriptedStack, number: int) -> None:
    """Three revisions in a row fail on live traffic."""
    for last in range(1, 4):
        revision = f"v1.{10 * number + last}.0"
        stack.publish_bad(revision)
        stack.wait(lambda name=revision: stack.outcome(name), f"{revision} has ended")  # type: ignore[misc]
    stack.wait(lambda: open_left(stack), "the breaker is open")


def open_left(stack: ScriptedStack) -> float:
    """Seconds until the breaker allows an attempt; 0 if it does."""
    (breaker,) = [row for row in stack.status().breakers if row.name == "activation"]
    return breaker.open_left.ToNanoseconds() / 1e9 if breaker.state == OPEN else 0.0


def restarted(stack: ScriptedStack, clock: Clock, offset: str) -> None:
    """Restart the updater with the clock shifted in between."""
    old = stack.send_signal("updater", signal.SIGKILL)
    clock.set(offset)
    stack.wait(lambda: stack.pid("updater") not in (0, old), "another updater runs")
