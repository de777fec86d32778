"""Random faults on a running stack under load, while good and bad revisions are published.

Processes are killed, the hub fails or the disk is full for a while, the wall clock jumps by a year. Without permission
to mount, or without libfaketime, disk or clock faults are left out, which is reported. The seed gives the faults, their
order and the pauses between them; their effects differ from run to run.

At the end the seven promises must hold. Calls that a killed server held, or that arrived while no server ran, are
excused, counted and reported.
"""

import contextlib
import itertools
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil

from common.paths import RUN_FOLDER
from dev.chaos.catalog import Findings, Skipped, Task
from dev.chaos.promises import Promises
from dev.chaos.steps.clock import TRUE, YEAR_BACK, YEAR_FORWARD, Clock, library
from dev.chaos.steps.disk import fill, small_disk
from dev.harness.hub import Hub, hub
from dev.harness.load import Load, Refused
from dev.harness.memory_group import MemoryGroup
from dev.harness.numbers import ms, percentile
from dev.harness.revisions import MODEL
from dev.harness.settings import Sections
from dev.harness.supervised import ScriptedStack

SECONDS = 600.0
PAUSE_SECONDS = (0.3, 4.0)
BAD_SHARE = 0.3
# A model that dies three times a minute is given longer and longer pauses, which protects a machine from a crash loop.
# Kills are far more frequent here than on any real machine, so the pauses of a crash loop would only cost time.
PAUSES = {"respawn_cap_seconds": 1.0}
SERVER_REST_SECONDS = 6.0  # supervisord gives a program up that dies again and again before it counts as running
BACK_SECONDS = 2.0  # until every caller has dialled a new server
NEXT_SECONDS = 240.0  # the breaker may be open after so many failures
# What is done, and how often of a hundred.
ACTIONS = {
    "updater": 25,
    "active runner": 15,
    "other runner": 15,
    "server": 8,
    "both": 5,
    "hub": 7,
    "disk": 7,
    "clock": 7,
    "nothing": 11,
}
ROOM = 1.3  # of a control group, relative to what the stack uses at rest
AWAY_SECONDS = 2.0  # of a good hub, and of room on the disk
HUB_FAULTS = (
    *("any status=500", "any status=503 retry-after=1", "any status=429 retry-after=1", "any status=403"),
    *(
        "any reset",
        "any html",
        "file reset after=100",
        "file cut after=100",
        "file flip",
        "files short",
        "revisions html",
    ),
)


@dataclass(slots=True)
class Storm:
    """The faults so far, and the times without a server."""

    stack: ScriptedStack
    chance: random.Random
    hub: Hub
    counts: dict[str, int] = field(default_factory=dict)
    away: list[tuple[float, float]] = field(default_factory=list)  # time.monotonic(): killed, ready again
    published: list[str] = field(default_factory=list)
    bad: set[str] = field(default_factory=set)
    server_since: float = 0.0
    clock: Clock | None = None
    is_small: bool = False  # the disk

    def inject(self) -> None:
        """Inject one fault."""
        name = self.chance.choices(list(ACTIONS), list(ACTIONS.values()))[0]
        if name in ("server", "both") and time.monotonic() - self.server_since < SERVER_REST_SECONDS:
            name = "updater"
        actions: dict[str, Callable[[], bool]] = {
            "updater": self._updater,
            "server": self._server,
            "both": self._both,
            "active runner": lambda: self._runner(is_active=True),
            "other runner": lambda: self._runner(is_active=False),
            "hub": self._spoil_hub,
            "disk": self._fill_disk,
            "clock": self._jump,
            "nothing": lambda: True,
        }
        self.counts[name] = self.counts.get(name, 0) + actions[name]()

    def publish(self, number: int) -> None:
        """Publish a revision; three of ten are bad."""
        revision = f"v1.{number}.0"
        self.published.append(revision)
        if self.chance.random() < BAD_SHARE:
            self.bad.add(revision)
            self.stack.publish_bad(revision)
        else:
            self.stack.publish(revision)

    def is_excused(self, call: Refused) -> bool:
        """Whether no server was running that could have answered."""
        return call.code == "UNAVAILABLE" and any(since <= call.at <= until for since, until in self.away)

    def _updater(self) -> bool:
        return _killed(self.stack.pid("updater"))

    def _both(self) -> bool:
        return self._updater() and self._server()

    def _server(self) -> bool:
        began = time.monotonic()
        if not _killed(self.stack.pid("server")):
            return False
        self.stack.wait(lambda: self.stack.control.status().ready, "the server is back")
        self.server_since = time.monotonic()
        self.away.append((began, self.server_since + BACK_SECONDS))
        return True

    def _spoil_hub(self) -> bool:
        self.hub.arm(self.chance.choice(HUB_FAULTS))
        time.sleep(AWAY_SECONDS)
        self.hub.arm()
        return True

    def _fill_disk(self) -> bool:
        if not self.is_small:
            return False
        ballast = self.stack.state / RUN_FOLDER / "ballast"
        fill(ballast)
        time.sleep(AWAY_SECONDS)
        ballast.unlink()
        return True

    def _jump(self) -> bool:
        if self.clock is None:
            return False
        self.clock.set(self.chance.choice((YEAR_BACK, TRUE, YEAR_FORWARD)))
        return True

    def _runner(self, *, is_active: bool) -> bool:
        state = self.stack.model_state()
        slots = [] if state is None else list(state.slots)
        active = [slot.pid for slot in slots if state is not None and slot.load_id == state.active_load_id]
        others = [slot.pid for slot in slots if slot.pid not in active]
        return any(_killed(pid) for pid in (active if is_active else others))


def run(task: Task) -> Findings:
    """Inject faults, then check the promises."""
    return run_in(task, task.seconds or SECONDS, None)


def run_in(task: Task, seconds: float, group: MemoryGroup | None) -> Findings:
    """Inject faults for some time, then check the promises; the stack runs in a control group, if one is given."""
    findings = Findings()
    clock = _clock(task)
    with hub(task.folder) as served, open_state(task) as (state, is_small):
        sections: Sections = {
            "model": {"hub_model": f"any/{MODEL}"},
            "updater": {"hub_endpoint": served.url},
            "runner": PAUSES,
        }
        whole = ScriptedStack(task.folder, state, {} if clock is None else clock.environment(library()), sections)
        whole.group = group
        with whole as stack, Promises(stack) as promises, stack.load() as load:
            storm = Storm(stack, random.Random(task.seed), served, clock=clock, is_small=is_small)
            if group is not None:
                findings.numbers["limit_mib"] = narrow(group, load, task.say) >> 20
            run_storm(storm, seconds, task.say)
            if clock is not None:
                clock.set(TRUE)
            findings.troubles += promises.kept(
                f"v1.{len(storm.published) + 1}.0", load, is_excused=storm.is_excused, limit=NEXT_SECONDS
            )
            report = load.report()
    shown = [name for name in promises.committed if name in storm.bad]
    findings.expect(so=not shown, otherwise=f"bad revisions were committed: {shown}")
    findings.count = sum(count for name, count in storm.counts.items() if name != "nothing")
    findings.numbers |= {name.replace(" ", "_"): count for name, count in sorted(storm.counts.items())}
    if group is not None:
        findings.numbers["killed_by_the_kernel"] = group.kills
        findings.expect(so=not group.kills, otherwise=f"the kernel killed {group.kills} processes")
    findings.numbers |= {
        "published": len(storm.published),
        "of_them_bad": len(storm.bad),
        "committed": len(promises.committed),
        "attempts": report.attempts,
        "without_a_server": sum(storm.is_excused(one) for one in report.refusals),
        "lost": sum(not storm.is_excused(one) for one in report.refusals),
        "not_their_own_revisions": len(report.wrong),
        "p99_ms": ms(percentile([one.seconds for one in report.answers], 0.99)),
        "slowest_ms": ms(report.slowest),
    }
    findings.numbers.pop("nothing", None)
    return findings


def narrow(group: MemoryGroup, load: Load, say: Callable[[str], None]) -> int:
    """Limit the group to little more than the stack uses at rest; returns the limit."""
    load.wait_answers(200)
    limit = round(ROOM * group.used)
    group.limit(limit)
    say(f"the stack uses {group.used >> 20} MiB, its limit is {limit >> 20} MiB")
    return limit


def _clock(task: Task) -> Clock | None:
    try:
        library()
    except Skipped as reason:
        task.say(f"the clock stays: {reason}")
        return None
    clock = Clock(task.folder / "clock")
    clock.set(TRUE)
    return clock


@contextlib.contextmanager
def open_state(task: Task) -> Iterator[tuple[Path, bool]]:
    """The stack's own folder, and whether its disk is small enough to be filled."""
    place = task.folder / "state"
    with contextlib.ExitStack() as opened:
        try:
            opened.enter_context(small_disk(place))
        except Skipped as reason:
            task.say(f"the disk stays: {reason}")
            yield place, False
        else:
            yield place, True


def run_storm(storm: Storm, seconds: float, say: Callable[[str], None]) -> None:
    """Publish revisions and inject faults until the time is over."""
    ends, numbers = time.monotonic() + seconds, itertools.count(1)
    while time.monotonic() < ends:
        if not storm.published or _has_ended(storm.stack, storm.published[-1]):
            storm.publish(next(numbers))
        time.sleep(storm.chance.uniform(*PAUSE_SECONDS))
        storm.inject()
    say(f"{len(storm.published)} published, {len(storm.bad)} of them bad; {storm.counts}")


def _has_ended(stack: ScriptedStack, revision: str) -> bool:
    """Whether an update has ended; false while the updater does not answer."""
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
