"""Processes of a living stack are killed at random while revisions, good and bad, are published and callers call.

The seed gives the kills, their order and the pauses between them; what the machine makes of it differs from run to run.
When the storm is over, the seven promises must hold. A call that a killed front held, or that came while no front
lived, has nobody who could answer it: such calls are excused, counted and told.
"""

import itertools
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
import psutil

from chaos.catalog import Findings, Task
from chaos.numbers import ms, percentile
from chaos.promises import Promises
from chaos.stack import ChaosStack
from tests.stack.load import Refused

SECONDS = 150.0
PAUSE_SECONDS = (0.3, 4.0)
BAD_SHARE = 0.3
FRONT_REST_SECONDS = 6.0  # supervisord gives a program up that dies again and again before it counts as running
BACK_SECONDS = 2.0  # until every caller has dialled a new front
NEXT_SECONDS = 240.0  # the breaker may be open after so many failures
# What is done, and how often of a hundred.
DEEDS = {"updater": 30, "active runner": 20, "other runner": 15, "front": 10, "both": 5, "nothing": 20}


@dataclass(slots=True)
class Storm:
    """What was done, and when no front lived."""

    stack: ChaosStack
    chance: random.Random
    done: dict[str, int] = field(default_factory=dict)
    away: list[tuple[float, float]] = field(default_factory=list)  # time.monotonic(): killed, ready again
    published: list[str] = field(default_factory=list)
    bad: set[str] = field(default_factory=set)
    front_since: float = 0.0

    def deed(self) -> None:
        """Do one thing."""
        name = self.chance.choices(list(DEEDS), list(DEEDS.values()))[0]
        if name in ("front", "both") and time.monotonic() - self.front_since < FRONT_REST_SECONDS:
            name = "updater"
        deeds: dict[str, Callable[[], bool]] = {
            "updater": self._updater,
            "front": self._front,
            "both": self._both,
            "active runner": lambda: self._runner(is_active=True),
            "other runner": lambda: self._runner(is_active=False),
            "nothing": lambda: True,
        }
        self.done[name] = self.done.get(name, 0) + deeds[name]()

    def publish(self, number: int) -> None:
        """Somebody publishes a revision; three of ten are bad."""
        revision = f"v1.{number}.0"
        self.published.append(revision)
        if self.chance.random() < BAD_SHARE:
            self.bad.add(revision)
            self.stack.publish_bad(revision)
        else:
            self.stack.publish(revision)

    def is_excused(self, call: Refused) -> bool:
        """Whether no front lived that could have answered."""
        return call.code == "UNAVAILABLE" and any(since <= call.at <= until for since, until in self.away)

    def _updater(self) -> bool:
        return _killed(self.stack.pid("updater"))

    def _both(self) -> bool:
        return self._updater() and self._front()

    def _front(self) -> bool:
        began = time.monotonic()
        if not _killed(self.stack.pid("front")):
            return False
        self.stack.wait(lambda: self.stack.hand.status().ready, "the front is back")
        self.front_since = time.monotonic()
        self.away.append((began, self.front_since + BACK_SECONDS))
        return True

    def _runner(self, *, is_active: bool) -> bool:
        state = self.stack.seen()
        slots = [] if state is None else list(state.slots)
        active = [slot.pid for slot in slots if state is not None and slot.load_id == state.active_load_id]
        others = [slot.pid for slot in slots if slot.pid not in active]
        return any(_killed(pid) for pid in (active if is_active else others))


def run(task: Task) -> Findings:
    """Let it storm, then look."""
    findings = Findings()
    with ChaosStack(task.folder) as stack, Promises(stack) as promises, stack.load() as load:
        storm = Storm(stack, random.Random(task.seed))
        rage(storm, task.seconds or SECONDS, task.say)
        findings.troubles += promises.kept(
            f"v1.{len(storm.published) + 1}.0", load, is_excused=storm.is_excused, limit=NEXT_SECONDS
        )
        report = load.report()
    shown = [name for name in promises.committed if name in storm.bad]
    findings.expect(so=not shown, otherwise=f"bad revisions were committed: {shown}")
    findings.count = sum(count for name, count in storm.done.items() if name != "nothing")
    findings.numbers = {f"killed_{name.replace(' ', '_')}": count for name, count in sorted(storm.done.items())}
    findings.numbers |= {
        "published": len(storm.published),
        "of_them_bad": len(storm.bad),
        "committed": len(promises.committed),
        "attempts": report.attempts,
        "without_a_front": sum(storm.is_excused(one) for one in report.refusals),
        "lost": sum(not storm.is_excused(one) for one in report.refusals),
        "not_their_own_revisions": len(report.wrong),
        "p99_ms": ms(percentile([one.seconds for one in report.answers], 0.99)),
        "slowest_ms": ms(report.slowest),
    }
    findings.numbers.pop("killed_nothing", None)
    return findings


def rage(storm: Storm, seconds: float, say: Callable[[str], None]) -> None:
    """Publish and kill until the time is over."""
    ends, numbers = time.monotonic() + seconds, itertools.count(1)
    while time.monotonic() < ends:
        if not storm.published or _has_ended(storm.stack, storm.published[-1]):
            storm.publish(next(numbers))
        time.sleep(storm.chance.uniform(*PAUSE_SECONDS))
        storm.deed()
    say(f"{len(storm.published)} published, {len(storm.bad)} of them bad; {storm.done}")


def _has_ended(stack: ChaosStack, revision: str) -> bool:
    """Whether an update is over; one that nobody can be asked about is not."""
    try:
        return bool(stack.outcome(revision, limit=1.0))
    except grpc.RpcError:
        return False


def _killed(pid: int) -> bool:
    if not pid:
        return False
    try:
        psutil.Process(pid).send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True
