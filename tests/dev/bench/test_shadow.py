"""What the measurement of copies concludes from its loads."""

from dev.bench.shadow import MAX_SLOWER, Arm, Ratio, estimate, tail


def slower(copied: list[Arm], without: list[Arm]) -> Ratio:
    """p99 with copies, as a multiple of that without."""
    return estimate(list(zip(copied, without, strict=True)), lambda a, b: tail(a) / tail(b))


def arm(tail_seconds: float) -> Arm:
    """A load of which two of 100 calls take long."""
    return Arm([0.01] * 98 + [tail_seconds] * 2, 1.0, 0)


def test_equal_loads_meet_the_goal() -> None:
    """The ratio is 1, and so is its interval."""
    found = slower([arm(0.1)] * 6, [arm(0.1)] * 6)
    assert (found.value, found.low, found.high, found.judge("p99")) == (1.0, 1.0, 1.0, [])


def test_a_tail_that_is_longer_in_every_pair_misses_it() -> None:
    """By ten percent."""
    found = slower([arm(0.11)] * 6, [arm(0.1)] * 6)
    assert found.low > MAX_SLOWER
    assert found.judge("p99") == ["p99 × 1.100 (1.100 to 1.100)"]


def test_one_slow_pair_changes_nothing_and_three_decide_nothing() -> None:
    """Another program ran beside these loads: the interval says so."""
    one = slower([arm(0.1)] * 5 + [arm(1.0)], [arm(0.1)] * 6)
    three = slower([arm(0.1)] * 3 + [arm(1.0)] * 3, [arm(0.1)] * 6)
    assert one.judge("p99") == []
    assert three.judge("p99") == ["p99 not decided"]
