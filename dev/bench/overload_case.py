"""One row of `make bench-overload`: a server whose engine computes a known number of rows a second, offered more."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from dev.bench.goodput import Calls, count_calls, delivered_rows, possible_rows
from dev.harness.device_calls import DeviceCall, read_device_calls
from dev.harness.loadgen import PLACEHOLDER, Group, Played, numbered, play
from dev.harness.scripted_engine import CALLS_VARIABLE, picture_key
from dev.harness.stack import Stack
from hotslot.entailment.v1 import entailment_pb2 as pb

PICTURE = os.urandom(1000) + PLACEHOLDER
CALL_ROWS = 8
CONNECTIONS = 8
MIN_DELIVERED, MAX_WASTED, MAX_REFUSAL_SECONDS = 0.95, 0.03, 0.020
# Of the offered calls: admitted ones that are dropped before they cost anything, because callers that had less came.
MAX_LOST = 0.03
CORES_A_CALL, CORES_A_SERVER = 0.0008, 0.05  # of the server and the load generator together


@dataclass(frozen=True, slots=True)
class Case:
    """What is offered to which engine."""

    rows_per_second: float  # of the engine
    load: float  # offered, as a multiple of it
    deadline: float  # seconds
    rows: int  # of each request
    arrivals: str = "uniform"

    @property
    def row_seconds(self) -> float:
        """Device time of a row."""
        return 1 / self.rows_per_second

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.load * self.rows_per_second / self.rows

    @property
    def window(self) -> float:
        """Seconds of a window."""
        return 15.0 if self.rows_per_second < 20 else 5.0

    @property
    def is_possible(self) -> bool:
        """Whether an idle server can answer a request in time."""
        return self.rows * self.row_seconds < self.deadline

    @property
    def cores(self) -> float:
        """About how much computing it needs."""
        return CORES_A_SERVER + CORES_A_CALL * self.rate

    def __str__(self) -> str:
        return f"{self.rows_per_second:g} rows/s, {self.load:g}×, {self.deadline:g} s, {self.rows} row(s)"


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a case."""

    case: Case
    calls: Calls
    windows: tuple[float, ...]  # delivered rows, as a share of what a perfect server delivers
    capacity: tuple[float, ...]  # … of what the engine computes in the same time without a pause
    wasted: float  # share of the computed rows whose answer did not reach its caller
    misses: tuple[str, ...] = field(default=())


def run_case(case: Case, folder: Path, seconds: float) -> Measured:
    """Start a server, play the load, and measure."""
    calls = folder / "calls.jsonl"
    script = {"row_seconds": case.row_seconds, "max_call_rows": CALL_ROWS}
    # A device that sleeps must not be taken for a hung one because this machine is busy.
    stack = Stack(folder, runner={"min_timeout_seconds": 20}, script=script, environment={CALLS_VARIABLE: str(calls)})
    statements = [f"statement {number}" for number in range(case.rows)]
    request = pb.PredictRequest(image=pb.Image(content=PICTURE), statements=statements)
    with stack:
        group = Group("calls", [request], rate=case.rate, arrivals=case.arrivals, deadline=case.deadline)
        played = play(stack.address, [group], seconds, folder, CONNECTIONS)
    return measure(case, played, list(read_device_calls(calls)))


def measure(case: Case, played: Played, device_calls: list[DeviceCall]) -> Measured:
    """Compare the outcomes with the device's own count."""
    sent = {one.number: picture_key(numbered(PICTURE, one.number)) for one in played.outcomes}
    answered = {sent[one.number] for one in played.outcomes if one.is_answer}
    computed = sum(call.rows_of(set(sent.values())) for call in device_calls)
    useful = sum(call.rows_of(answered) for call in device_calls)
    rows = sum(count for call in device_calls for _, count in call.rows)
    row_seconds = sum(call.seconds for call in device_calls) / rows if computed else case.row_seconds
    windows = max(1, int(played.seconds / case.window))
    length = min(case.window, played.seconds)
    delivered = delivered_rows(device_calls, answered, played.began, length, windows)
    possible = possible_rows(played.outcomes, case.deadline, row_seconds, length, windows)
    measured = Measured(
        case,
        count_calls(played.outcomes),
        tuple(got / most if most else 1.0 for got, most in zip(delivered, possible, strict=True)),
        tuple(got * row_seconds / length for got in delivered),
        (computed - useful) / computed if computed else 0.0,
    )
    return Measured(case, measured.calls, measured.windows, measured.capacity, measured.wasted, tuple(judge(measured)))


def judge(found: Measured) -> list[str]:
    """The goals that were missed."""
    calls, misses = found.calls, []
    lowest = min(found.windows[1:] or found.windows)
    if found.case.is_possible and lowest < MIN_DELIVERED:
        misses.append(f"a window with {lowest:.0%} of the rows")
    if not found.case.is_possible and calls.refused < calls.offered:
        misses.append(f"{calls.offered - calls.refused} impossible calls not refused")
    if found.wasted > MAX_WASTED:
        misses.append(f"{found.wasted:.1%} of the device's time wasted")
    if calls.refusal_p99 > MAX_REFUSAL_SECONDS:
        misses.append(f"refusals take {1000 * calls.refusal_p99:.0f} ms")
    if calls.lost > MAX_LOST * calls.offered:
        misses.append(f"{calls.lost} neither answered nor refused")
    if calls.without_retry_delay:
        misses.append(f"{calls.without_retry_delay} refused without a retry delay")
    return misses
