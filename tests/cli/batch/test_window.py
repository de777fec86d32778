"""Which rows are sent next: the window alone, with time as an argument."""

import pytest

from cli.batch.window import MAX_MESSAGE_BYTES, MAX_TRIES, STREAM_ROWS, Failure, Item, StopBatch, Window

INVALID, EXHAUSTED, UNAVAILABLE = 3, 8, 14


def filled(rows: int, *, max_out: int = 64, size: int = 1) -> Window:
    """A window with so many rows, numbered from 1."""
    window = Window(max_out, 1000, 1 << 30)
    for key in range(1, rows + 1):
        window.add(Item(key, None, size))
    return window


def take_all(window: Window, stream: int, now: float = 0.0) -> list[int | str]:
    """The keys of the rows that may go out on a stream now."""
    found: list[int | str] = []
    while items := window.take(stream, now):
        found += [item.key for item in items]
    return found


def refused(number: int, reason: str = "X", retry_seconds: float | None = None) -> Failure:
    """A failure with a code."""
    return Failure("X", number, reason, "no", retry_seconds=retry_seconds)


def test_rows_out_are_limited_for_each_stream_and_together() -> None:
    """A stream has what the server reads of it, and all have what the user allows."""
    window = filled(100, max_out=40)

    assert (len(take_all(window, 0)), len(take_all(window, 1))) == (STREAM_ROWS, 40 - STREAM_ROWS)
    window.on_answer(0, "1")
    assert take_all(window, 1) == [41]


def test_a_message_of_several_rows_stays_below_the_servers_limit() -> None:
    """Two large pictures are two messages; one that is larger than a message should be is alone in its own."""
    window = filled(3, size=MAX_MESSAGE_BYTES)

    assert [len(window.take(0, 0.0)) for _ in range(4)] == [1, 1, 1, 0]


def test_room_is_of_rows_and_bytes() -> None:
    """No row is read while the requests in memory have the limit."""
    window = Window(max_out=8, max_rows=3, max_bytes=100)
    window.add(Item(1, None, 60))
    assert (window.free_rows, window.free_bytes) == (2, 40)
    window.add(Item(2, None, 60))
    assert (window.has_room, window.free_rows, window.free_bytes) == (False, 0, 0)
    window.take(0, 0.0)
    window.on_answer(0, "1")
    assert (window.free_rows, window.free_bytes) == (2, 40)


def test_what_a_drained_stream_leaves_goes_out_first_on_the_next() -> None:
    """In order, before rows that were never sent; a drain is nobody's fault, however often."""
    window = filled(40)
    for stream in range(5):
        take_all(window, stream)
        window.on_answer(stream, "1")
        assert list(window.on_stream_end(stream, is_broken=False)) == []

    assert take_all(window, 9)[:3] == [2, 3, 4]


def test_a_row_that_breaks_every_stream_fails_alone() -> None:
    """The others, which were on its streams, are answered."""
    window = filled(5)
    failed: list[int | str] = []
    answered: list[int | str] = []
    for stream in range(20):
        keys = take_all(window, stream)
        if 3 in keys:
            failed += [item.key for item in window.on_stream_end(stream, is_broken=True)]
            continue
        for key in keys:
            assert window.on_answer(stream, str(key)) is not None
            answered.append(key)
        list(window.on_stream_end(stream, is_broken=False))

    assert (failed, sorted(map(int, answered)), len(window)) == ([3], [1, 2, 4, 5], 0)


def test_a_refusal_that_may_pass_is_sent_again_when_the_server_says() -> None:
    """Not before; and not for ever."""
    window = filled(1)
    now = 0.0
    for _ in range(MAX_TRIES - 1):
        assert take_all(window, 0, now) == [1]
        assert window.on_failure(0, "1", refused(EXHAUSTED, retry_seconds=2.0), now) is None
        assert (take_all(window, 0, now + 1.9), window.next_due()) == ([], now + 2.0)
        now += 2.0
    assert take_all(window, 0, now) == [1]
    failed = window.on_failure(0, "1", refused(EXHAUSTED), now)

    assert (failed is not None, len(window)) == (True, 0)


def test_a_server_that_cannot_answer_now_costs_a_row_no_try() -> None:
    """A model that loads for an hour leaves no row without an answer."""
    window = filled(1)
    for now in range(100):
        assert take_all(window, 0, float(now)) == [1]
        assert window.on_failure(0, "1", refused(UNAVAILABLE, "NOT_READY"), float(now)) is None


def test_wrong_input_is_final() -> None:
    """It is the row's own outcome."""
    window = filled(2)
    take_all(window, 0)
    failed = window.on_failure(0, "2", refused(INVALID, "IMAGE_UNREADABLE"), 0.0)

    assert failed is not None
    assert (failed.key, len(window)) == (2, 1)


def test_what_concerns_every_row_ends_the_batch() -> None:
    """An unknown model is not a million failed rows."""
    window = filled(2)
    take_all(window, 0)

    with pytest.raises(StopBatch):
        window.on_failure(0, "1", refused(5, "MODEL_UNKNOWN"), 0.0)


@pytest.mark.parametrize("item_id", ["", "7", "x", "²", "1" * 5000])
def test_an_outcome_of_no_row_on_this_stream_is_ignored(item_id: str) -> None:
    """A late one of another stream, an id that was never sent, the empty one of a broken message."""
    window = filled(1)
    take_all(window, 0)

    assert window.on_answer(0, item_id) is None
    assert window.on_answer(1, "1") is None
    assert len(window) == 1
