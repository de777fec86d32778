"""When the device waits for rows that come back: callers and a device in simulated time."""

import heapq
import random
from collections.abc import Callable, Iterator

import pytest

from inference.call_cost import CallCost
from inference.runner.plan import Gathering

CALL_ROWS = 8
OVERHEAD, ROW = 0.0065, 0.0011  # seconds of a call, and of each of its rows
CALLS = 400


def measured_cost() -> CallCost:
    """The cost of a call, as it is learnt."""
    cost = CallCost()
    for rows in (1, 8) * 40:
        cost.learn(OVERHEAD + ROW * rows, rows)
    return cost


class Device:
    """A device that computes what has arrived, as the runner's does; calls of the second half are counted.

    Args:
        arrivals: times of the first rows.
        answer: the times at which rows come back that were answered at a time, with their number.
        is_contended: whether another model has rows to compute all the time.
    """

    def __init__(
        self, arrivals: list[float], answer: Callable[[float, int], list[float]], *, is_contended: bool = False
    ) -> None:
        self.gathering, self.cost = Gathering(), measured_cost()
        self.gathering.is_device_contended = is_contended
        self.coming, self.answer = sorted(arrivals), answer
        self.calls: list[tuple[float, int]] = []  # end and rows
        self.waited = 0.0  # seconds
        self._run()

    @property
    def rows_per_second(self) -> float:
        """Of the second half."""
        half = self.calls[CALLS // 2 :]
        return sum(rows for _, rows in half[1:]) / (half[-1][0] - half[0][0])

    @property
    def rows_of_calls(self) -> list[int]:
        """Of the second half."""
        return [rows for _, rows in self.calls[CALLS // 2 :]]

    def _run(self) -> None:
        now, ready = 0.0, 0
        while len(self.calls) < CALLS:
            if not ready and self.coming[0] > now:
                now = self.coming[0]
            ready += self._take(now)
            while (wait := self.gathering.choose_wait(now, ready, CALL_ROWS, self.cost)) > 0:
                until = min(now + wait, self.coming[0]) if self.coming else now + wait
                if len(self.calls) >= CALLS // 2:
                    self.waited += until - now
                now = until
                ready += self._take(now)
            rows = min(CALL_ROWS, ready)
            now += OVERHEAD + ROW * rows
            ready -= rows
            self.calls.append((now, rows))
            self.gathering.end_call(now, rows, ready)
            for time in self.answer(now, rows):
                heapq.heappush(self.coming, time)

    def _take(self, now: float) -> int:
        count = 0
        while self.coming and self.coming[0] <= now + 1e-12:
            self.gathering.add(heapq.heappop(self.coming), 1, self.cost)
            count += 1
        return count


def closed_loop(callers: int, first: float, each: float, jitter: float = 0.0, *, is_contended: bool = False) -> Device:
    """Callers that ask again: the first row is back after `first` seconds, further ones every `each`."""
    chance = random.Random(1)

    def answer(now: float, rows: int) -> list[float]:
        return [now + first + number * each + chance.uniform(0, jitter) for number in range(rows)]

    return Device([number * each for number in range(callers)], answer, is_contended=is_contended)


def open_loop(rate: float) -> Device:
    """Callers that ask whenever they want."""
    chance = random.Random(1)

    def times() -> Iterator[float]:
        now = 0.0
        while True:
            now += chance.expovariate(rate)
            yield now

    source = times()
    return Device([next(source) for _ in range(CALLS * CALL_ROWS * 2)], lambda _now, _rows: [])


@pytest.mark.parametrize("callers", [2, 4, 6, 8])
def test_callers_who_are_back_soon_are_computed_in_one_call(callers: int) -> None:
    """All of them: a cycle takes their way and one call, instead of two calls."""
    device = closed_loop(callers, first=0.001, each=0.0003, jitter=0.0003)

    cycle = 0.0013 + callers * 0.0003 + OVERHEAD + ROW * callers
    assert set(device.rows_of_calls) == {callers}
    assert device.rows_per_second > callers / cycle


def test_rows_of_a_model_beside_another_one_that_has_rows_are_not_waited_for() -> None:
    """The other one would get the device meanwhile."""
    assert closed_loop(4, first=0.001, each=0.0003, is_contended=True).waited == 0.0


def test_callers_who_are_back_late_are_computed_in_two_groups() -> None:
    """Their way takes longer than the overhead that one call for all would save."""
    device = closed_loop(8, first=0.002, each=0.001)

    assert device.waited == 0.0
    assert device.rows_per_second == pytest.approx(8 / (2 * OVERHEAD + 8 * ROW), rel=0.05)


@pytest.mark.parametrize("callers", [1, 16, 32, 64])
def test_one_caller_and_callers_enough_for_full_calls_are_never_waited_for(callers: int) -> None:
    """The next row of one comes after its answer; of many, a call's rows are there."""
    assert closed_loop(callers, first=0.001, each=0.0003).waited == pytest.approx(0.0, abs=0.01)


def test_a_call_is_filled_up_where_the_next_rows_are_back_at_once() -> None:
    """Twelve callers make calls of eight and of four; a short wait makes all of eight."""
    device = closed_loop(12, first=0.0002, each=0.0001)

    assert set(device.rows_of_calls) == {8}


@pytest.mark.parametrize("rate", [20, 60, 100, 150, 200, 300, 450])
def test_rows_that_come_at_any_time_are_not_waited_for(rate: float) -> None:
    """An open loop, from light load to nearly what the device can compute."""
    device = open_loop(rate)

    assert device.waited < 0.01 * device.calls[-1][0]


def test_callers_who_stop_cost_little() -> None:
    """After the last answer of seven of eight callers, the device waits for them a few times, then no more."""
    asked = [0]

    def answer(now: float, rows: int) -> list[float]:
        asked[0] += 1
        return [now + 0.001 + number * 0.0003 for number in range(rows if asked[0] < CALLS // 2 else 1)]

    device = Device([number * 0.0003 for number in range(8)], answer)

    assert device.waited < 2 * OVERHEAD
    assert device.rows_of_calls[-100:] == [1] * 100


def test_an_engine_without_overhead_never_waits() -> None:
    """There is nothing to save."""
    gathering, cost = Gathering(), CallCost(0.5)
    for number in range(40):
        gathering.end_call(10.0 * number, 4, 4)
        gathering.add(10.0 * number + 0.1, 4, cost)

    assert gathering.choose_wait(400.0, 4, 8, cost) <= 0.0
