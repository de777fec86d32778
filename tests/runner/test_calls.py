"""Which rows a device call carries, and what is learnt when memory runs out."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dev.harness.scripted_engine import AcceleratorError, OutOfMemoryError
from inference.call_cost import CallCost
from inference.runner.plan import (
    GOOD_CALLS_TO_GROW,
    Call,
    CallLimits,
    MemoryLimit,
    WaitingRows,
    choose_call,
    choose_max_rows,
    is_device_lost,
    is_out_of_memory,
    limit_rows,
    should_clear,
)

ITEMS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def all_calls(rows: Sequence[int], max_rows: int) -> list[Call]:
    """Choose calls until nothing is left, as the device thread does."""
    done = [0] * len(rows)
    calls = []
    while left := [
        WaitingRows(place, done[place], count, math.inf) for place, count in enumerate(rows) if done[place] < count
    ]:
        calls.append(choose_call(left, max_rows, 0.0, lambda _: 0.0))
        for cut in calls[-1]:
            done[cut.item] = cut.stop
    return calls


@pytest.mark.parametrize(
    ("rows", "max_rows", "expected"),
    [
        ([1, 1, 1], 8, [[(0, 0, 1), (1, 0, 1), (2, 0, 1)]]),  # small ones share a call
        ([32], 8, [[(0, 0, 8)], [(0, 8, 16)], [(0, 16, 24)], [(0, 24, 32)]]),  # a large one is cut
        ([5, 5], 8, [[(0, 0, 5)], [(1, 0, 5)]]),  # one that fits whole is not cut
        ([5, 20], 8, [[(0, 0, 5), (1, 0, 3)], [(1, 3, 11)], [(1, 11, 19)], [(1, 19, 20)]]),  # one that cannot is
        ([5, 5, 2, 1], 8, [[(0, 0, 5), (2, 0, 2), (3, 0, 1)], [(1, 0, 5)]]),  # small ones fill what is left
        ([2, 1], 1, [[(0, 0, 1)], [(0, 1, 2)], [(1, 0, 1)]]),
    ],
)
def test_items_share_calls_and_are_split_only_if_no_call_could_hold_them(
    rows: list[int], max_rows: int, expected: list[list[tuple[int, int, int]]]
) -> None:
    """In order; what is left of a call is filled with items that fit."""
    calls = [[(cut.item, cut.start, cut.stop) for cut in call] for call in all_calls(rows, max_rows)]
    assert expected == calls


def test_an_item_that_must_be_alone_shares_no_call() -> None:
    """It waits until it is first, and then takes a call of its own."""
    first, alone, last = (WaitingRows(place, 0, 1, math.inf, is_alone=place == 1) for place in range(3))
    chosen = [[cut.item for cut in choose_call(row, 8, 0.0, float)] for row in ([first, alone, last], [alone, last])]
    assert chosen == [[0, 2], [1]]


@pytest.mark.parametrize(
    ("deadlines", "expected"),
    [
        ([9.0, 9.0, 9.0], [0, 1, 2]),
        ([1.5, 9.0, 9.0], [0]),  # two rows would make the first one late
        ([2.5, 9.0, 9.0], [0, 1]),
        ([9.0, 1.5, 9.0], [0, 2]),  # the second would be late itself, so it must not hold back the third
        ([0.5, 9.0, 9.0], [0]),  # the first one is always taken: its cost may be less than expected
    ],
)
def test_an_item_is_not_made_late_by_those_behind_it(deadlines: list[float], expected: list[int]) -> None:
    """At one second a row, rows are added while the call is expected to end before the earliest deadline in it."""
    waiting = [WaitingRows(place, 0, 1, deadline) for place, deadline in enumerate(deadlines)]
    assert expected == [cut.item for cut in choose_call(waiting, 8, 0.0, float)]


def test_a_large_item_must_have_time_for_its_other_calls() -> None:
    """Its rows after this call are counted too: ten rows in calls of four need two seconds a row."""
    large = WaitingRows(0, 0, 10, 10.0)
    small = [WaitingRows(place, 0, 1, math.inf) for place in (1, 2)]
    assert [cut.item for cut in choose_call([small[0], large, small[1]], 4, 0.0, float)] == [1, 2]
    assert [(cut.item, cut.rows) for cut in choose_call([small[0], large, small[1]], 4, -1.0, float)] == [
        (1, 1),
        (0, 3),
    ]


def test_a_small_item_is_not_passed_over_because_the_next_one_does_not_fit() -> None:
    """Where a call costs much besides its rows, full ones compute more rows a second; only deadlines are no excuse."""
    small, large = WaitingRows(0, 0, 1, 60.0), WaitingRows(1, 0, 8, 60.0)
    call = choose_call([small, large], 8, 0.0, lambda rows: 0.16 + 0.005 * rows)
    assert [cut.item for cut in call] == [0]


@given(ITEMS, st.integers(1, 16))
def test_packing_computes_every_row_once(rows: list[int], max_rows: int) -> None:
    """No row is lost or computed twice, and no call is empty or above its limit."""
    calls = all_calls(rows, max_rows)
    computed = sorted((cut.item, row) for call in calls for cut in call for row in range(cut.start, cut.stop))
    assert [(place, row) for place, count in enumerate(rows) for row in range(count)] == computed
    assert all(0 < sum(cut.rows for cut in call) <= max_rows for call in calls)


@pytest.mark.parametrize(
    ("limits", "row_seconds", "memory_rows", "expected"),
    [
        (CallLimits(16, 0.0), 1.0, None, 16),  # no bound of time
        (CallLimits(16, 2.0), 0.5, None, 4),
        (CallLimits(16, 2.0), 0.0, None, 16),  # cost unknown
        (CallLimits(16, 2.0), 5.0, None, 1),  # one row must go, however long it takes
        (CallLimits(16, 2.0), 0.5, 3, 3),  # memory is scarcer than time
        (CallLimits(16, 0.0), 1.0, 99, 16),
    ],
)
def test_the_least_limit_decides(
    limits: CallLimits, row_seconds: float, memory_rows: int | None, expected: int
) -> None:
    """Limits are the maximum of rows, the expected time and what memory has allowed."""
    assert limit_rows(limits, CallCost(row_seconds), memory_rows) == expected


def test_a_setting_lowers_the_engine_s_own_limit() -> None:
    """It never raises it, because the plan of the memory is the engine's."""
    assert [choose_max_rows(setting, 8) for setting in (0, 4, 8, 64)] == [8, 4, 8, 8]


def test_the_overhead_of_a_call_counts_against_its_time() -> None:
    """A call of eight rows at 1 + 0.5 s a row takes five seconds."""
    cost = CallCost()
    for rows in (1, 8) * 20:
        cost.learn(1.0 + 0.5 * rows, rows)
    assert limit_rows(CallLimits(16, 5.01), cost, None) == 8


def test_the_memory_limit_is_learnt_and_raised_again() -> None:
    """After a memory error calls stay small; after many successful calls larger ones are tried."""
    memory = MemoryLimit()
    memory.record_failure(16)
    assert memory.rows == 8
    memory.record_failure(8)
    assert memory.rows == 4
    for _ in range(GOOD_CALLS_TO_GROW):
        memory.record_success(3, max_rows=16)  # smaller than the limit: proves nothing
    assert memory.rows == 4
    for _ in range(GOOD_CALLS_TO_GROW):
        memory.record_success(4, max_rows=16)
    assert memory.rows == 8
    for _ in range(GOOD_CALLS_TO_GROW):
        memory.record_success(8, max_rows=16)
    assert memory.rows is None


def test_one_row_is_always_tried() -> None:
    """The learnt limit is never below one row."""
    memory = MemoryLimit()
    memory.record_failure(1)
    assert memory.rows == 1


@pytest.mark.parametrize(
    ("error", "is_memory", "is_lost"),
    [
        (OutOfMemoryError("CUDA out of memory"), True, False),
        (MemoryError(), True, False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling …"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), True, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True, False),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True, False),
        (RuntimeError("CUDA driver error: out of memory"), True, False),
        (AcceleratorError("CUDA error: out of memory"), True, False),  # passes
        (AcceleratorError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling …"), False, True),
        (RuntimeError("shape mismatch"), False, False),
        (ValueError("can't allocate memory"), False, False),
    ],
)
def test_device_errors_are_recognised_by_name(error: Exception, is_memory: bool, is_lost: bool) -> None:  # noqa: FBT001
    """No device library is imported for it."""
    assert is_memory == is_out_of_memory(error)
    assert is_lost == is_device_lost(error)


def test_cached_memory_is_freed_only_on_a_full_card() -> None:
    """A card is full above 90 %; a CPU has no card."""
    assert not should_clear(0, 0)
    assert not should_clear(90, 100)
    assert should_clear(91, 100)


def seconds_with_overhead(rows: int) -> float:
    """Of a call: 1 s, and 0.1 s a row."""
    return 1.0 + 0.1 * rows


def test_an_item_close_to_its_deadline_does_not_shrink_the_calls_of_all_others() -> None:
    """Eight rows in 1.8 s, not one in 1.1 s: in overload every item at the first is close to its deadline."""
    waiting = [WaitingRows(place, 0, 1, 1.15 + 0.01 * place) for place in range(4)]
    patient = [WaitingRows(place, 0, 1, 9.0) for place in range(4, 12)]
    call = choose_call([*waiting, *patient], 8, 0.0, seconds_with_overhead)
    assert [part.item for part in call] == list(range(4, 12))


@pytest.mark.parametrize(
    ("first", "behind"),
    [
        (WaitingRows(0, 0, 1, 1.15, priority=0), [WaitingRows(place, 0, 1, 9.0, priority=1) for place in range(1, 9)]),
        (WaitingRows(0, 0, 1, 1.15, is_alone=True), [WaitingRows(place, 0, 1, 9.0) for place in range(1, 9)]),
        (WaitingRows(0, 0, 1, 1.15), [WaitingRows(place, 0, 1, 9.0) for place in range(1, 8)]),
    ],
    ids=["interactive before bulk", "a suspect", "no more waits than a call takes"],
)
def test_an_item_close_to_its_deadline_is_computed_first_where_nothing_is_lost(
    first: WaitingRows, behind: list[WaitingRows]
) -> None:
    """Others of its priority count; those behind an interactive item, or a suspect one, wait."""
    call = choose_call([first, *behind], 8, 0.0, seconds_with_overhead)
    assert call[0].item == 0


@pytest.mark.parametrize(
    ("overhead_seconds", "expected"),
    [(0.0, [0, 1]), (0.005, [0, 1]), (0.02, [0, 1, 2, 3, 4, 5, 6, 7])],
    ids=["none", "small", "large"],
)
def test_an_interactive_call_is_filled_up_with_bulk_rows_only_where_a_further_call_costs(
    overhead_seconds: float, expected: list[int]
) -> None:
    """Without overhead its items wait for their own rows, and the bulk rows lose nothing."""
    interactive = [WaitingRows(place, 0, 1, 9.0, priority=0) for place in range(2)]
    bulk = [WaitingRows(place, 0, 1, 9.0, priority=1) for place in range(2, 12)]

    call = choose_call([*interactive, *bulk], 8, 0.0, cost_of(overhead_seconds, 0.1).expected)
    assert [part.item for part in call] == expected


def cost_of(overhead_seconds: float, row_seconds: float) -> CallCost:
    """A known cost."""
    cost = CallCost(row_seconds)
    cost.overhead_seconds = overhead_seconds
    return cost
