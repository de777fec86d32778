"""Two real servers behind a real proxy: weights, a drain, a kill, blue and green, under load. No call may be lost."""

import contextlib
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dev.harness.answers import question
from dev.harness.load import Load
from dev.harness.process import free_port
from dev.harness.service_config import read_service_config
from dev.harness.stack import Stack
from dev.harness.waiting import eventually
from dev.production.proxies import Proxy
from dev.production.streams import StreamLoad

CALLERS, STREAMS, PACE_SECONDS = 8, 4, 0.02
DRAIN_DELAY_SECONDS = 3.0  # the proxies check health each second
ONE, TWO = "one", "two"  # the servers, and the revisions that they serve, so that an answer tells who gave it
# The shipped service config, and the longest pause between attempts to connect that docs/service-config.md names.
CLIENT_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_reconnect_backoff_ms", 5000),
    ("grpc.service_config", json.dumps(read_service_config())),
]


@dataclass(slots=True)
class Step:
    """One step of the story."""

    name: str
    seconds: float
    shares: dict[str, int]  # answers of unary calls by server
    longest_gap_seconds: float  # without any answer
    ended: float = 0.0  # seconds after the start of the load


@dataclass(slots=True)
class ProxyReport:
    """What callers saw behind one proxy."""

    proxy: str
    version: str
    calls: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: int = 0
    items: int = 0
    items_sent_again: int = 0
    streams: int = 0
    slowest_call_seconds: float = 0.0
    slowest_item_seconds: float = 0.0
    steps: list[Step] = field(default_factory=list)


class Story:
    """The steps of one proxy, measured while the load runs."""

    def __init__(self, report: ProxyReport, load: Load) -> None:
        self._report, self._load, self._began = report, load, time.monotonic()

    def wait_for(self, name: str) -> None:
        """Wait until a server that came back answers again."""
        begun = time.monotonic()
        eventually(lambda: (self._load.report().last_of(name) or 0) > begun, 30.0, f"{name} answers again", 0.2)

    @contextlib.contextmanager
    def step(self, name: str, answers: int = 150) -> Iterator[None]:
        """Measure what happens in the block, and until so many further answers came."""
        begun = time.monotonic()
        yield
        self._load.wait_answers(answers)
        now, seen = time.monotonic(), self._load.report()
        shares = Counter(one.revision for one in seen.answers if one.at >= begun)
        gap = seen.gap_between(begun, now)
        self._report.steps.append(
            Step(name, round(now - begun, 2), dict(shares), round(gap, 3), round(now - self._began, 1))
        )


def tell_story(proxy_of: Callable[..., Proxy], version: str, folder: Path) -> ProxyReport:
    """Play all steps behind one proxy."""
    report = ProxyReport(proxy_of.name, version)  # type: ignore[attr-defined]
    questions = tuple(question(f"statement {number}", image=b"picture %d" % number) for number in range(16))
    ports = (free_port(), free_port())
    settings = {"drain_delay_seconds": DRAIN_DELAY_SECONDS, "grace_seconds": 10}
    with contextlib.ExitStack() as opened:
        for name in (ONE, TWO):
            (folder / name).mkdir()
        stacks = tuple(
            Stack(folder / name, {**settings, "port": port}, committed=name)
            for name, port in zip((ONE, TWO), ports, strict=True)
        )
        for stack in stacks:
            stack.start()
            opened.callback(_destroy, stack)
        expected = {**stacks[0].answers.compute(questions, (ONE,)), **stacks[1].answers.compute(questions, (TWO,))}
        proxy = opened.enter_context(proxy_of(folder / "proxy", ports))
        streams = StreamLoad(proxy.address, questions, expected, STREAMS, CLIENT_OPTIONS)
        load = Load(proxy.address, questions, expected, CALLERS, 60.0, PACE_SECONDS, options=CLIENT_OPTIONS)
        with load, streams:
            _play(Story(report, load), proxy, stacks[0], stacks[1])
        _sum_up(report, load, streams)
        for stack in stacks:
            stack.close()
    return report


def _play(story: Story, proxy: Proxy, one: Stack, two: Stack) -> None:
    with story.step("both serve"):
        pass
    proxy.set_weights((3, 1))
    with story.step("weights 3 : 1", answers=400):
        pass
    proxy.set_weights((1, 1))
    with story.step("one drains and ends"):
        _drain(one)
    with story.step("one starts again"):
        one.start()
    story.wait_for(ONE)
    # With these a rolling restart, as at an upgrade of hotslot itself, is complete.
    with story.step("two drains and ends"):
        _drain(two)
    with story.step("two starts again after it"):
        two.start()
    story.wait_for(TWO)
    with story.step("two is killed, with its runners"):
        two.hang_up()
        two.process.destroy()
    with story.step("two starts again"):
        two.start()
    story.wait_for(TWO)
    with story.step("blue (one) alone"):
        proxy.set_weights((1, 0))
    with story.step("switched to green (two)"):
        proxy.set_weights((0, 1))
    with story.step("blue stopped, green answers"):
        _drain(one)
    one.start()


def _destroy(stack: Stack) -> None:
    stack.process.destroy()


def _drain(stack: Stack) -> None:
    stack.hang_up()
    stack.process.send(signal.SIGTERM)
    if stack.process.wait_exit() != 0:
        raise AssertionError(stack.process.tail())


def _sum_up(report: ProxyReport, load: Load, streams: StreamLoad) -> None:
    seen, items = load.report(), streams.report
    report.calls = seen.attempts
    began = seen.answers[0].at if seen.answers else 0.0
    failed = [f"{one.sentence}, {one.at - began:.1f} s after the start" for one in seen.refusals]
    report.failed = [*failed, *items.failed]
    report.wrong = len(seen.wrong) + items.wrong
    report.items, report.items_sent_again, report.streams = sum(items.revisions.values()), items.again, items.streams
    report.slowest_call_seconds, report.slowest_item_seconds = round(seen.slowest, 3), round(items.slowest, 3)
