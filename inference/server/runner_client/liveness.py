"""Pure: when a runner is out of patience, counted in ticks of the watching loop itself."""

from dataclasses import dataclass
from enum import Enum, auto


class Phase(Enum):
    """What a runner is waited for."""

    STARTING = auto()  # its Hello
    STANDING = auto()  # nothing but a pulse
    LOADING = auto()  # progress of the load


class Overdue(Enum):
    """What did not come in time."""

    HELLO = auto()
    PULSE = auto()
    LOAD_PROGRESS = auto()
    REST_OF_FRAME = auto()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long each is waited for, in seconds."""

    start_seconds: float
    silence_seconds: float
    load_stall_seconds: float

    @property
    def tick_seconds(self) -> float:
        """How often to look: often enough that a limit is overrun by an eighth at most."""
        return min(self.start_seconds, self.silence_seconds, self.load_stall_seconds) / 8


class Watch:
    """Counts the looks at which nothing had come.

    Looks, not a clock: a server that was itself stopped for minutes finds heartbeats unread in the
    socket, and must not take its own absence for the runner's silence.
    """

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._phase = Phase.STARTING
        self._since_pulse = 0
        self._since_step = 0
        self._since_frame = 0
        self._amid_frame: int | None = None
        self._progress = 0

    @property
    def is_loading(self) -> bool:
        """Whether a load has begun and not ended."""
        return self._phase is Phase.LOADING

    def enter(self, phase: Phase) -> None:
        """Something else is waited for from now on."""
        self._phase = phase
        self._since_pulse = self._since_step = 0

    def pulse(self, progress: int) -> None:
        """A heartbeat has come; `progress` is the device thread's own count."""
        self._since_pulse = 0
        if progress != self._progress:
            self._progress = progress
            self._since_step = 0

    def look(self, amid_frame: int | None) -> Overdue | None:
        """Count one tick, and say what is overdue now, if anything is.

        Args:
            amid_frame: number of the answer that has come in part; None if none has.
        """
        self._since_pulse += 1
        self._since_step += 1
        is_stuck = amid_frame is not None and amid_frame == self._amid_frame
        self._since_frame = self._since_frame + 1 if is_stuck else 0
        self._amid_frame = amid_frame
        match self._phase:
            case Phase.STARTING:
                return self._over(self._since_step, self._patience.start_seconds, Overdue.HELLO)
            case Phase.LOADING:
                # Creating a device context, or compiling, may hold the interpreter for seconds: only
                # progress counts here. A stopped process makes none either.
                return self._over(self._since_step, self._patience.load_stall_seconds, Overdue.LOAD_PROGRESS)
            case Phase.STANDING:
                silence = self._patience.silence_seconds
                return self._over(self._since_pulse, silence, Overdue.PULSE) or self._over(
                    self._since_frame, silence, Overdue.REST_OF_FRAME
                )

    def _over(self, ticks: int, limit_seconds: float, overdue: Overdue) -> Overdue | None:
        # The first tick may come right after what it counts from, so that it is not a whole one.
        return overdue if (ticks - 1) * self._patience.tick_seconds >= limit_seconds else None
