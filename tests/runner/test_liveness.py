"""The liveness monitor of a runner, without a process."""

from inference.server.runner_client.liveness import LivenessMonitor, Phase, TimeoutKind, Timeouts

TIMEOUTS = Timeouts(start_seconds=60.0, silence_seconds=2.0, load_stall_seconds=30.0)
TICK = TIMEOUTS.tick_seconds


def checks_until_timeout(
    monitor: LivenessMonitor, most: int = 1000, amid_frame: int | None = None
) -> tuple[int, TimeoutKind | None]:
    """Check until a timeout is exceeded, at most `most` times; returns the count and the timeout."""
    for count in range(1, most):
        timeout = monitor.check(amid_frame)
        if timeout is not None:
            return count, timeout
    return most, None


def test_a_runner_that_never_sends_hello_exceeds_the_start_timeout() -> None:
    """The start timeout is separate from the heartbeat timeout."""
    checks, timeout = checks_until_timeout(LivenessMonitor(TIMEOUTS))
    assert timeout is TimeoutKind.HELLO
    assert 60.0 <= checks * TICK <= 60.0 + 2 * TICK


def test_a_heartbeat_resets_the_silence_timeout() -> None:
    """With or without progress."""
    monitor = LivenessMonitor(TIMEOUTS)
    monitor.enter_phase(Phase.IDLE_OR_SERVING)
    for _ in range(100):
        assert monitor.check(None) is None
        monitor.record_heartbeat(progress=0)
    checks, timeout = checks_until_timeout(monitor)
    assert timeout is TimeoutKind.HEARTBEAT
    assert 2.0 <= checks * TICK <= 2.0 + 2 * TICK


def test_a_runner_is_silent_before_it_exceeds_the_timeout() -> None:
    """From half of the timeout on, until the next heartbeat; not while it loads."""
    monitor = LivenessMonitor(TIMEOUTS)
    monitor.enter_phase(Phase.IDLE_OR_SERVING)
    checks = 0
    while not monitor.is_silent:
        assert monitor.check(None) is None
        checks += 1
    assert 1.0 <= checks * TICK <= 1.0 + 2 * TICK
    monitor.record_heartbeat(progress=0)
    assert not monitor.is_silent
    monitor.enter_phase(Phase.LOADING)
    checks_until_timeout(monitor, most=100)
    assert not monitor.is_silent


def test_a_load_is_measured_by_progress_not_by_heartbeats() -> None:
    """Heartbeats without progress do not reset the load timeout; progress before Hello does."""
    monitor = LivenessMonitor(TIMEOUTS)
    monitor.enter_phase(Phase.LOADING)
    for progress in range(1, 500):
        monitor.record_heartbeat(progress)
        assert monitor.check(None) is None
    checks = 0
    timeout = None
    while timeout is None:
        monitor.record_heartbeat(499)
        timeout = monitor.check(None)
        checks += 1
    assert timeout is TimeoutKind.LOAD_PROGRESS
    assert 30.0 <= checks * TICK <= 30.0 + 2 * TICK


def test_a_loading_runner_may_be_silent_for_a_while() -> None:
    """Creating a device context may hold the interpreter for longer than the silence timeout."""
    monitor = LivenessMonitor(TIMEOUTS)
    monitor.enter_phase(Phase.LOADING)
    assert checks_until_timeout(monitor, most=100) == (100, None)


def test_an_incomplete_frame_exceeds_the_silence_timeout_despite_heartbeats() -> None:
    """The rest of a frame must arrive; a different incomplete frame at each check is a busy runner."""
    monitor = LivenessMonitor(TIMEOUTS)
    monitor.enter_phase(Phase.IDLE_OR_SERVING)
    for number in range(100):
        monitor.record_heartbeat(number)
        assert monitor.check(number) is None
    for _ in range(20):
        monitor.record_heartbeat(1)
        timeout = monitor.check(7)
        if timeout:
            break
    assert timeout is TimeoutKind.REST_OF_FRAME


def test_a_stopped_server_counts_one_check() -> None:
    """Checks are counted, not time: after minutes of being stopped, the server has checked once."""
    monitor = LivenessMonitor(TIMEOUTS)
    monitor.enter_phase(Phase.IDLE_OR_SERVING)
    assert monitor.check(None) is None  # minutes late: it counts as one check
    monitor.record_heartbeat(1)
    assert monitor.check(None) is None
