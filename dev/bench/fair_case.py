"""One row of `make bench-fair`: saturating streams for a while, then unary callers beside them."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.harness.device_calls import DeviceCall, read_device_calls
from dev.harness.envoy import running_envoy
from dev.harness.loadgen import Group, Outcome, Played, play
from dev.harness.numbers import percentile
from dev.harness.pointer import commit_bundle
from dev.harness.scripted_engine import CALLS_VARIABLE, SHARED_DEVICE_VARIABLE, picture_key
from dev.harness.stack import Stack
from hotslot.entailment.v1 import entailment_pb2 as pb

ROW_SECONDS, CALL_ROWS = 0.005, 8
SLOW_ROW_SECONDS = 0.020  # of the busy model of two
UNARY_CALLERS, UNARY_PAUSE, UNARY_ROWS = 4, 0.25, (1, 1, 1, 8)  # seldom in each other's way
OUTSTANDING = {1: 32, 32: 8}  # items of a stream, by the rows of an item
WARM_SECONDS = 3.0  # at the begin of each part, not measured
CALLER_KEY = "x-caller"
MAX_FACTOR, MIN_THROUGHPUT, MIN_STREAM_SHARE = 3.0, 0.97, 0.8
MIN_HALF = 0.4  # of one of two that saturate a device


@dataclass(frozen=True, slots=True)
class Case:
    """Who calls, and how."""

    name: str
    streams: int
    rows: int  # of an item
    placement: str  # "same connection", "other connections", "behind Envoy", "two models"
    is_unary: bool = True  # else the second half of the streams, of another caller, comes later
    few: int = 1  # streams of that other caller
    warm_seconds: float = WARM_SECONDS

    @property
    def cores(self) -> float:
        """About how much computing it needs."""
        return 0.3 if self.placement == "behind Envoy" else 0.25

    def __str__(self) -> str:
        return f"{self.name}: {self.streams} streams of {self.rows} row(s), {self.placement}"


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a case."""

    case: Case
    unary: int  # calls
    unary_failed: int
    unary_p50: float  # seconds
    unary_p99: float
    factor: float  # p99 of latency / (own device time + one device call)
    items: int
    items_failed: int
    throughput: float  # device seconds a second with the second part's callers, relative to that without them
    least_stream: float  # rows of the stream with the fewest, relative to the mean of its caller's streams
    share: float  # of the device's time in the second part that the second part's callers got
    misses: tuple[str, ...] = ()


def run_case(case: Case, folder: Path, seconds: float) -> Measured:
    """Start a server, play both parts, and measure."""
    calls = folder / "calls.jsonl"
    with contextlib.ExitStack() as opened:
        stack = opened.enter_context(_stack(case, folder, calls))
        address = stack.address
        if case.placement == "behind Envoy":
            address = opened.enter_context(running_envoy(stack.port, folder))
        groups = groups_of(case, seconds)
        connections = 1 + max((number for group in groups for number in group.connections), default=0)
        played = play(address, groups, 2 * seconds, folder, connections)
    return measure(case, groups, played, list(read_device_calls(calls)))


def groups_of(case: Case, seconds: float) -> list[Group]:
    """The first part's streams, and what joins them in the second part."""
    first, second = ("busy", "quiet") if case.placement == "two models" else ("", "")
    is_apart = case.placement in ("other connections", "two models")
    bulk = Group(
        "first",
        [request_of(case.rows, first)],
        mode="stream",
        clients=case.streams,
        window=OUTSTANDING[case.rows],
        leave=True,
        metadata={CALLER_KEY: "bulk"},
        connections=(0,),
    )
    if case.is_unary:
        joined = Group(
            "second",
            [request_of(rows, second) for rows in UNARY_ROWS],
            clients=UNARY_CALLERS,
            pause=UNARY_PAUSE,
            metadata={CALLER_KEY: "interactive"},
            connections=tuple(range(1, 1 + UNARY_CALLERS)) if is_apart else (0,),
            begin=seconds,
        )
    else:
        joined = Group(
            "second",
            [request_of(case.rows, second)],
            mode="stream",
            clients=case.few,
            window=OUTSTANDING[case.rows],
            leave=True,
            metadata={CALLER_KEY: "other bulk"},
            connections=(1,) if is_apart else (0,),
            begin=seconds,
        )
    return [bulk, joined]


def request_of(rows: int, model: str = "") -> pb.PredictRequest:
    """A request with statements about a small picture."""
    picture = pb.Image(content=os.urandom(1000))
    return pb.PredictRequest(model=model, image=picture, statements=[f"statement {number}" for number in range(rows)])


def measure(case: Case, groups: Sequence[Group], played: Played, device_calls: Sequence[DeviceCall]) -> Measured:
    """Compare the parts."""
    half = played.seconds / 2
    first = [one for one in played.of("first") if one.ended >= half]
    second = [one for one in played.of("second") if one.at >= half + case.warm_seconds]
    row_seconds = _row_seconds(case, device_calls)
    call = CALL_ROWS * row_seconds["first"]
    unary = [one for one in second if one.is_answer] if case.is_unary else []
    factors = [one.took / (one.rows * row_seconds["second"] + call) for one in unary]
    warm = case.warm_seconds
    used = [_used(group, row_seconds[group.name], played, device_calls, warm) for group in groups]
    alone, beside = [sum(shares) for shares in zip(*used, strict=True)]
    items = [*played.of("first"), *([] if case.is_unary else second)]
    measured = Measured(
        case,
        len(second) if case.is_unary else 0,
        sum(not one.is_answer for one in second) if case.is_unary else 0,
        percentile([one.took for one in unary], 0.5),
        percentile([one.took for one in unary], 0.99),
        percentile(factors, 0.99),
        len(items),
        sum(not one.is_answer for one in items),
        beside / alone if alone else 0.0,
        _least(first, case.streams),
        used[1][1] / beside if beside else 0.0,
    )
    misses = tuple(judge(measured))
    return Measured(**{**{name: getattr(measured, name) for name in Measured.__slots__}, "misses": misses})


def judge(found: Measured) -> Iterator[str]:
    """The goals that were missed."""
    if found.case.is_unary and not found.factor <= MAX_FACTOR:
        yield f"unary p99 is {found.factor:.1f} times its device time and one call"
    if found.unary_failed or (found.case.is_unary and not found.unary):
        yield f"{found.unary_failed} of {found.unary} unary calls failed"
    if found.items_failed:
        yield f"{found.items_failed} of {found.items} items failed"
    if found.throughput < MIN_THROUGHPUT:
        yield f"throughput falls to {found.throughput:.1%}"
    if found.least_stream < MIN_STREAM_SHARE:
        yield f"a stream gets {found.least_stream:.0%} of the mean"
    if not found.case.is_unary and not MIN_HALF <= found.share <= 1 - MIN_HALF:
        yield f"the later caller gets {found.share:.0%} of the device"


def _stack(case: Case, folder: Path, calls: Path) -> Stack:
    is_two = case.placement == "two models"
    environment = {CALLS_VARIABLE: str(calls)}
    if is_two:
        environment[SHARED_DEVICE_VARIABLE] = str(folder / "device")
    if case.placement == "behind Envoy":
        environment["HOTSLOT_SCHEDULING__CALLER_METADATA_KEY"] = CALLER_KEY
    script: Mapping[str, Any] = {"row_seconds": SLOW_ROW_SECONDS if is_two else ROW_SECONDS, "max_call_rows": CALL_ROWS}
    stack = Stack(
        folder,
        # A device that sleeps must not be taken for a hung one because this machine is busy.
        runner={"min_timeout_seconds": 20},
        models=("busy", "quiet") if is_two else ("shapes",),
        script=script,
        environment=environment,
    )
    if is_two:
        quiet = stack.bundle("quiet", row_seconds=ROW_SECONDS, max_call_rows=CALL_ROWS)
        commit_bundle(folder, quiet, "quiet")
    return stack


def _row_seconds(case: Case, device_calls: Sequence[DeviceCall]) -> dict[str, float]:
    """Device time of a row, by group; measured, except where a call's time includes waiting for the other model."""
    if case.placement == "two models":
        return {"first": SLOW_ROW_SECONDS, "second": ROW_SECONDS}
    rows = sum(count for call in device_calls for _, count in call.rows)
    seconds = sum(call.seconds for call in device_calls) / rows if rows else ROW_SECONDS
    return {"first": seconds, "second": seconds}


def _used(
    group: Group, row_seconds: float, played: Played, device_calls: Sequence[DeviceCall], warm: float
) -> tuple[float, float]:
    """Device seconds of a group's rows, a second: before the second part, and in it."""
    pictures = pictures_of(group)
    half = played.seconds / 2

    def within(since: float, until: float) -> float:
        found = 0.0
        for call in device_calls:
            ended = call.ended - played.began
            inside = min(ended, until) - max(ended - call.seconds, since)
            if inside > 0:
                found += row_seconds * call.rows_of(pictures) * inside / call.seconds
        return found / (until - since)

    return within(warm, half), within(half + warm, played.seconds)


def pictures_of(group: Group) -> set[str]:
    """The keys of the pictures that a group sends."""
    return {picture_key(request.image.content) for request in group.requests if not isinstance(request, bytes)}


def _least(outcomes: Sequence[Outcome], streams: int) -> float:
    """Answered rows of the stream with the fewest, and the item that it waits for, relative to the mean."""
    rows = [0] * streams
    for one in outcomes:
        rows[one.caller] += one.rows * one.is_answer
    item = max((one.rows for one in outcomes), default=0)
    return min(1.0, (min(rows) + item) * streams / sum(rows)) if sum(rows) else 0.0
