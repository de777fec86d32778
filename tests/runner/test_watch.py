"""When a runner is out of patience, without one."""

from inference.server.runner_client.liveness import Overdue, Patience, Phase, Watch

PATIENCE = Patience(start_seconds=60.0, silence_seconds=2.0, load_stall_seconds=30.0)
TICK = PATIENCE.tick_seconds


def looks_until_overdue(watch: Watch, most: int = 1000, amid_frame: int | None = None) -> tuple[int, Overdue | None]:
    """Count the looks until something is overdue, `most` at most."""
    for count in range(1, most):
        overdue = watch.look(amid_frame)
        if overdue is not None:
            return count, overdue
    return most, None


def test_a_runner_that_never_says_hello_is_given_up() -> None:
    """The start has a limit of its own; heartbeats do not prolong it."""
    looks, overdue = looks_until_overdue(Watch(PATIENCE))
    assert overdue is Overdue.HELLO
    assert 60.0 <= looks * TICK <= 60.0 + 2 * TICK


def test_silence_is_overdue_and_a_heartbeat_ends_it() -> None:
    """Each heartbeat starts the count again, whether or not there is progress."""
    watch = Watch(PATIENCE)
    watch.enter(Phase.STANDING)
    for _ in range(100):
        assert watch.look(None) is None
        watch.pulse(progress=0)
    looks, overdue = looks_until_overdue(watch)
    assert overdue is Overdue.PULSE
    assert 2.0 <= looks * TICK <= 2.0 + 2 * TICK


def test_a_load_is_measured_by_progress_not_by_heartbeats() -> None:
    """Heartbeats without progress do not save it; progress without a Hello does."""
    watch = Watch(PATIENCE)
    watch.enter(Phase.LOADING)
    for progress in range(1, 500):
        watch.pulse(progress)
        assert watch.look(None) is None
    looks = 0
    overdue = None
    while overdue is None:
        watch.pulse(499)
        overdue = watch.look(None)
        looks += 1
    assert overdue is Overdue.LOAD_PROGRESS
    assert 30.0 <= looks * TICK <= 30.0 + 2 * TICK


def test_a_loading_runner_may_be_silent_for_a_while() -> None:
    """Creating a device context may hold the interpreter longer than silence is borne otherwise."""
    watch = Watch(PATIENCE)
    watch.enter(Phase.LOADING)
    assert looks_until_overdue(watch, most=100) == (100, None)


def test_half_a_frame_is_overdue_although_the_heart_beats() -> None:
    """The rest of a frame must come; a different frame in part each time is a busy runner."""
    watch = Watch(PATIENCE)
    watch.enter(Phase.STANDING)
    for number in range(100):
        watch.pulse(number)
        assert watch.look(number) is None
    for _ in range(20):
        watch.pulse(1)
        overdue = watch.look(7)
        if overdue:
            break
    assert overdue is Overdue.REST_OF_FRAME


def test_the_server_s_own_absence_counts_once() -> None:
    """Looks are counted, not time: a server that was stopped for minutes has looked once since."""
    watch = Watch(PATIENCE)
    watch.enter(Phase.STANDING)
    assert watch.look(None) is None  # minutes late: whatever the clock says, it is one look
    watch.pulse(1)
    assert watch.look(None) is None
