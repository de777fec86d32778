"""How a batch is packed into device calls, and how calls are split when memory runs out."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dev.harness.scripted_engine import AcceleratorError, OutOfMemoryError
from inference.runner.engines.base import RowRange
from inference.runner.plan import (
    GOOD_CALLS_TO_GROW,
    Call,
    CallLimits,
    MemoryLimit,
    halve_call,
    is_device_lost,
    is_out_of_memory,
    limit_rows,
    next_call,
    should_clear,
    split_by_item,
)

ITEMS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def items(*rows: int) -> list[RowRange[int]]:
    """Whole items of so many rows."""
    return [RowRange(place, 0, count) for place, count in enumerate(rows)]


def all_calls(rows: Sequence[int], max_rows: int) -> list[Call]:
    """Pack until nothing is left, as the device thread does."""
    done = [0] * len(rows)
    calls = []
    while left := [RowRange(place, done[place], count) for place, count in enumerate(rows) if done[place] < count]:
        calls.append(next_call(left, max_rows))
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
        ([2, 1], 1, [[(0, 0, 1)], [(0, 1, 2)], [(1, 0, 1)]]),
    ],
)
def test_items_are_packed_in_order(rows: list[int], max_rows: int, expected: list[list[tuple[int, int, int]]]) -> None:
    """Items share calls, and are split only if no call could hold them."""
    calls = [[(cut.item, cut.start, cut.stop) for cut in call] for call in all_calls(rows, max_rows)]
    assert expected == calls


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
    assert expected == limit_rows(limits, row_seconds, memory_rows)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([1], []),  # cannot be split: the item's own failure
        ([2], [[(0, 0, 1)], [(0, 1, 2)]]),
        ([1, 1], [[(0, 0, 1)], [(1, 0, 1)]]),
        ([3, 2], [[(0, 0, 2)], [(0, 2, 3), (1, 0, 2)]]),
        ([1, 1, 1, 5], [[(0, 0, 1), (1, 0, 1), (2, 0, 1), (3, 0, 1)], [(3, 1, 5)]]),
    ],
)
def test_a_failed_call_is_halved(rows: list[int], expected: list[list[tuple[int, int, int]]]) -> None:
    """Both halves keep the order of the rows."""
    assert expected == [[(cut.item, cut.start, cut.stop) for cut in half] for half in halve_call(tuple(items(*rows)))]


@given(ITEMS)
def test_both_halves_together_are_the_call(rows: list[int]) -> None:
    """Neither half is much larger than the other."""
    call = items(*rows)
    halves = halve_call(tuple(call))
    computed = sorted((cut.item, row) for half in halves for cut in half for row in range(cut.start, cut.stop))
    whole = [(cut.item, row) for cut in call for row in range(cut.start, cut.stop)]
    assert (computed == whole) if len(whole) > 1 else (halves == [])
    assert all(half for half in halves)


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


def test_items_of_a_failed_call_are_computed_one_by_one() -> None:
    """The item that breaks the engine then fails alone."""
    assert split_by_item(tuple(items(2, 3))) == [(RowRange(0, 0, 2),), (RowRange(1, 0, 3),)]
