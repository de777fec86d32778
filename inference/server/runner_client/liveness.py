"""Decides when a runner has exceeded a timeout, counted in checks of the monitoring loop. Pure."""

from dataclasses import dataclass
from enum import Enum, auto


class Phase(Enum):
    """Phase of a runner: it decides which timeout applies."""

    STARTING = auto()  # until Hello
    IDLE_OR_SERVING = auto()  # only heartbeats are due
    LOADING = auto()  # progress of the load is due


class TimeoutKind(Enum):
    """What the runner did not send in time."""

    HELLO = auto()
    HEARTBEAT = auto()
    LOAD_PROGRESS = auto()
    REST_OF_FRAME = auto()


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts of a runner, in seconds."""

    start_seconds: float
    silence_seconds: float
    load_stall_seconds: float

    @property
    def tick_seconds(self) -> float:
        """Seconds between checks: a timeout is exceeded by an eighth at most."""
        return min(self.start_seconds, self.silence_seconds, self.load_stall_seconds) / 8


class LivenessMonitor:
    """Counts the checks at which nothing had arrived.

    It counts checks, not time: after the server itself was stopped for minutes, heartbeats wait unread in the
    socket, and the runner is not at fault.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._phase = Phase.STARTING
        self._since_heartbeat = 0
        self._since_progress = 0
        self._since_frame = 0
        self._amid_frame: int | None = None
        self._progress = 0

    @property
    def is_loading(self) -> bool:
        """Whether a load has begun and not ended."""
        return self._phase is Phase.LOADING

    @property
    def is_silent(self) -> bool:
        """Whether half of the silence timeout has passed without a heartbeat, from a runner that may be serving."""
        seconds = (self._since_heartbeat - 1) * self._timeouts.tick_seconds
        return self._phase is Phase.IDLE_OR_SERVING and seconds >= self._timeouts.silence_seconds / 2

    def enter_phase(self, phase: Phase) -> None:
        """Begin a phase; its counts start at zero."""
        self._phase = phase
        self._since_heartbeat = self._since_progress = 0

    def record_heartbeat(self, progress: int) -> None:
        """Record a heartbeat; `progress` is the progress counter of the device thread."""
        self._since_heartbeat = 0
        if progress != self._progress:
            self._progress = progress
            self._since_progress = 0

    def check(self, amid_frame: int | None) -> TimeoutKind | None:
        """Count one check; returns the timeout that is exceeded, if any.

        Args:
            amid_frame: number of the frame that has arrived in part; None if none has.
        """
        self._since_heartbeat += 1
        self._since_progress += 1
        is_stuck = amid_frame is not None and amid_frame == self._amid_frame
        self._since_frame = self._since_frame + 1 if is_stuck else 0
        self._amid_frame = amid_frame
        match self._phase:
            case Phase.STARTING:
                return self._exceeded(self._since_progress, self._timeouts.start_seconds, TimeoutKind.HELLO)
            case Phase.LOADING:
                # Creating a device context, or compiling, may hold the interpreter for seconds: only
                # progress counts here. A stopped process makes no progress either.
                return self._exceeded(
                    self._since_progress, self._timeouts.load_stall_seconds, TimeoutKind.LOAD_PROGRESS
                )
            case Phase.IDLE_OR_SERVING:
                silence = self._timeouts.silence_seconds
                return self._exceeded(self._since_heartbeat, silence, TimeoutKind.HEARTBEAT) or self._exceeded(
                    self._since_frame, silence, TimeoutKind.REST_OF_FRAME
                )

    def _exceeded(self, ticks: int, limit_seconds: float, timeout: TimeoutKind) -> TimeoutKind | None:
        # The first check may follow the start of the count at once, so it is not a whole tick.
        return timeout if (ticks - 1) * self._timeouts.tick_seconds >= limit_seconds else None
