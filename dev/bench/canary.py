"""`make bench-canary`: rollouts by steps of a percentage under load, some of them bad: no call may be lost.

Real processes with a scripted engine. At each step the share of the calls that the canary answers must be within
chance, a key that the canary has must stay there, and callers that name a version must get it. Bad revisions fail
calls, answer with NaN, crash, exit or hang; they are taken back at their second step.
"""

import argparse
import math
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dev.harness.answers import Question, question
from dev.harness.load import Load
from dev.harness.stack import Stack
from hotslot.control.v1 import control_pb2 as pb

STEPS = (5.0, 25.0, 50.0, 100.0)
BAD = ("error", "nan", "crash", "exit", "hang")  # commands of the scripted engine
ANSWERS_A_STEP = 120  # of the load
KEYS = 40
DEADLINE_SECONDS = 20.0
LEASE_SECONDS = 300
SPREAD = 4.0  # standard deviations of a share that are chance


@dataclass(slots=True)
class Found:
    """What came of all rollouts."""

    rollouts: int = 0
    bad: int = 0
    moved: int = 0  # keys that left the canary although its percentage grew
    strange: list[str] = field(default_factory=list)  # shares that are not chance, versions that were not given
    shares: dict[float, list[float]] = field(default_factory=dict)  # by percentage


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=50)
    parser.add_argument("--bad", type=int, default=10, help="of them, whose revision is bad")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hotslot-") as folder:
        found, lost, wrong, answered = run(Path(folder), options.rollouts, options.bad, random.Random(options.seed))
    calls = f"{answered} calls, {lost} lost, {wrong} wrong"
    table = Table(title=f"{found.rollouts} rollouts, {found.bad} of them bad: {calls}")
    for title in ("percentage", "steps", "mean share of the calls", "lowest", "highest"):
        table.add_column(title, justify="right")
    for percent, shares in sorted(found.shares.items()):
        mean = sum(shares) / len(shares)
        numbers = (f"{mean:.1%}", f"{min(shares):.1%}", f"{max(shares):.1%}")
        table.add_row(f"{percent:g} %", str(len(shares)), *numbers)
    console = Console(width=130)
    console.print(table)
    console.print(f"keys that left a growing canary: {found.moved}", *found.strange, sep="\n")
    return 1 if lost or wrong or found.moved or found.strange else 0


def run(folder: Path, rollouts: int, bad: int, chance: random.Random) -> tuple[Found, int, int, int]:
    """All rollouts under one load; returns what was found, calls lost, wrong answers, answers."""
    kinds = [BAD[number % len(BAD)] for number in range(bad)] + [""] * (rollouts - bad)
    chance.shuffle(kinds)
    names = [f"r{number + 2}{kind and '-' + kind}" for number, kind in enumerate(kinds)]
    stack, found = Stack(folder, runner={"min_timeout_seconds": 1}), Found()
    with stack:
        for name in names:
            stack.bundle(name)
        asked = {name: questions_of(name, kind) for name, kind in zip(names, kinds, strict=True)}
        every = tuple({one: None for questions in asked.values() for one in questions})
        with stack.load(("r1", *names), clients=8, questions=every, deadline=DEADLINE_SECONDS) as load:
            for name, kind in zip(names, kinds, strict=True):
                load.questions = asked[name]
                roll_out(stack, load, name, kind, found)
        report = load.report()
    return found, len(report.failed), len(report.wrong), report.answered


def questions_of(name: str, kind: str) -> tuple[Question, ...]:
    """What callers ask during a rollout: of a bad revision some questions are its own kind of trouble."""
    plain = [question(f"statement {number}") for number in range(15)]
    return tuple([*plain, question(f"!{kind}@{name}")] if kind else plain)


def roll_out(stack: Stack, load: Load, name: str, kind: str, found: Found) -> None:
    """One rollout, to its commit or, for a bad revision, until it is taken back."""
    control = stack.control
    before = control.status().active_load_id
    load_id = control.candidate(stack.answers.digest_of(name))
    found.rollouts += 1
    found.bad += bool(kind)
    with_canary: set[str] = set()
    for number, percent in enumerate(STEPS):
        set_percent(stack, load_id, percent, is_first=not number)
        share = share_of(load, name)
        if not kind:
            found.shares.setdefault(percent, []).append(share[0])
            if not is_chance(percent, *share):
                found.strange.append(f"{name}: {share[0]:.1%} of {share[1]} calls at {percent:g} %")
            now = {key for key in map(str, range(KEYS)) if ask(stack, ("x-routing-key", key)) == name}
            found.moved += len(with_canary - now)
            with_canary = now
            for version, expected in (("canary", name), ("stable", "")):
                got = ask(stack, ("x-model-version", version))
                if (got == name) != (expected == name):
                    found.strange.append(f"{name}: {version} is {got}")
        elif number == 1:
            control.activate(before)
            control.retire(load_id)
            return
    control.commit(load_id)
    control.retire(before)


def set_percent(stack: Stack, load_id: str, percent: float, *, is_first: bool) -> None:
    """Begin the trial, or change its percentage."""
    control = stack.control
    if is_first:
        begin = pb.ActivateSlotRequest(change=control.change(), load_id=load_id, percent=percent)
        begin.trial_lease.FromSeconds(LEASE_SECONDS)
        begin.shadow.share = 0.2
        control.stub.ActivateSlot(begin, timeout=DEADLINE_SECONDS)
        return
    mode = pb.TRAFFIC_MODE_CANARY
    request = pb.SetTrafficRequest(change=control.change(), load_id=load_id, percent=percent, mode=mode)
    control.stub.SetTraffic(request, timeout=DEADLINE_SECONDS)


def share_of(load: Load, name: str) -> tuple[float, int]:
    """The share of the calls, begun and answered from now on, that a revision answers; and of how many."""
    since = time.monotonic()
    load.wait_answers(ANSWERS_A_STEP)
    rows = [one for one in load.report().answers if one.at - one.seconds >= since]
    return sum(one.revision == name for one in rows) / max(1, len(rows)), len(rows)


def is_chance(percent: float, share: float, calls: int) -> bool:
    """Whether a share of so many calls is explained by chance."""
    expected = percent / 100
    return abs(share - expected) <= SPREAD * math.sqrt(expected * (1 - expected) / max(1, calls)) + 1 / max(1, calls)


def ask(stack: Stack, *metadata: tuple[str, str]) -> str:
    """The revision that answers a call."""
    asked: Any = stack.entailment.Predict
    return str(asked(question("a").request(), timeout=DEADLINE_SECONDS, metadata=metadata).served_by.revision)


if __name__ == "__main__":
    sys.exit(main())
