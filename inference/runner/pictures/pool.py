"""The decoder processes of a runner: started when they are needed, replaced when they end, closed when idle."""

import contextlib
import threading
from collections.abc import Callable

from common.clock import Clock
from inference.runner.pictures.process import DecoderEnded, DecoderProcess

IDLE_SECONDS = 30.0  # after which a process that is not needed is closed
RETRY_SECONDS = 1.0  # after a process could not be started
TICK_SECONDS = 0.2  # between two looks at whether a caller may still wait for a process


class DecodersMissing(Exception):
    """No decoder process could be started while the caller might wait."""


class DecoderPool:
    """Up to `most` processes, each used by one thread at a time; a picture may take `wall_seconds` by the clock.

    While fewer than `most` exist, one is started ahead, so that a process that ends costs nobody its start. Its imports
    take 0.1 s of a CPU, at low priority while others decode: all start at once when a runner begins to serve.

    Attributes:
        set_priority: gives a process the priority of this one, or a lower one, as whether it is needed at once.
        ended: processes that ended when they were to decode a picture, or before.
    """

    def __init__(self, most: int, wall_seconds: float, clock: Clock, log: Callable[..., None]) -> None:
        self._most = most
        self._wall_seconds = wall_seconds
        self._clock = clock
        self._log = log
        self._lock = threading.Lock()
        self._available = threading.Condition(self._lock)  # a process can be taken
        self._needed = threading.Condition(self._lock)  # a process has to be started
        self._idle: list[DecoderProcess] = []  # the last used one last
        self._busy: set[DecoderProcess] = set()
        self._starting: DecoderProcess | None = None
        self._keeper: threading.Thread | None = None
        self.set_priority: Callable[[int, bool], None] = lambda _pid, _is_needed: None
        self.ended = 0

    @property
    def pids(self) -> list[int]:
        """The ids of all processes, one that starts included. Any thread."""
        with self._lock:
            starting = [] if self._starting is None else [self._starting]
            return [decoder.pid for decoder in (*self._idle, *self._busy, *starting)]

    def start(self) -> None:
        """Start the first process, if none was started yet; does not wait for it. Any thread.

        Raises:
            RuntimeError: the system has no thread left; the next call tries again.
        """
        with self._lock:
            self._start_keeper()

    def take(self, may_wait: Callable[[], bool]) -> DecoderProcess:
        """Return an idle process, for this thread; waits for one if necessary.

        Args:
            may_wait: called at first and from time to time; the wait ends when it returns False. It must be quick and
                must not use this pool.

        Raises:
            DecodersMissing: none could be started while the caller might wait.
        """
        with self._lock:
            is_available = False
            while not is_available:
                if not may_wait():
                    raise DecodersMissing("no decoder process could be started")
                with contextlib.suppress(RuntimeError):  # as a process that cannot be started: another time
                    self._start_keeper()
                is_available = self._available.wait_for(lambda: bool(self._idle), TICK_SECONDS)
            decoder = self._idle.pop()
            self._busy.add(decoder)
            self._notify_keeper()
            return decoder

    def give_back(self, decoder: DecoderProcess) -> None:
        """Return a process that can be used again."""
        with self._lock:
            self._busy.discard(decoder)
            decoder.idle_since = self._clock.monotonic()
            self._idle.append(decoder)
            self._available.notify()

    def drop(self, decoder: DecoderProcess) -> None:
        """Forget a process that has ended, or was closed; another one takes its place."""
        with self._lock:
            self._busy.discard(decoder)
            self.ended += 1
            self._notify_keeper()

    def close(self) -> None:
        """End the idle processes; none is started any more."""
        with self._lock:
            self._most = 0
            idle, self._idle = self._idle, []
        for decoder in idle:
            decoder.close()

    def _start_keeper(self) -> None:
        if self._keeper is None:
            keeper = threading.Thread(target=self._keep, name="decoders", daemon=True)
            keeper.start()
            self._keeper = keeper

    def _keep(self) -> None:
        """Start and close processes until the pool is closed: they end with the thread that started them."""
        while self._most:
            with self._lock:
                self._needed.wait_for(self._needs_one, IDLE_SECONDS)
                is_needed, unneeded = self._needs_one(), self._take_unneeded()
            for decoder in unneeded:
                decoder.close()
            if is_needed:
                self._start_one()

    def _notify_keeper(self) -> None:
        """Wake the keeper only if it has something to do: on one CPU a wake-up takes it from another thread."""
        if self._needs_one():
            self._needed.notify()

    def _needs_one(self) -> bool:
        return not self._idle and len(self._busy) < self._most

    def _take_unneeded(self) -> list[DecoderProcess]:
        since = self._clock.monotonic() - IDLE_SECONDS
        unneeded = [decoder for decoder in self._idle[:-1] if decoder.idle_since < since]
        self._idle = [decoder for decoder in self._idle if decoder not in unneeded]
        return unneeded

    def _start_one(self) -> None:
        try:
            decoder = DecoderProcess(self._clock, self._wall_seconds)
            self._await_start(decoder)
        except (OSError, DecoderEnded) as error:
            self._log("decoder_not_started", level="error", error=str(error))
            with self._lock:
                self._needed.wait_for(lambda: False, RETRY_SECONDS)
            return
        with self._lock:
            self._starting = None
            if self._most:
                self._idle.insert(0, decoder)
                self._available.notify()
                return
        decoder.close()

    def _await_start(self, decoder: DecoderProcess) -> None:
        """Wait until it is ready. It stays the one that starts until it can be taken: `pids` always has it."""
        with self._lock:
            self._starting, is_needed = decoder, not self._busy
        self.set_priority(decoder.pid, is_needed)
        try:
            decoder.wait_ready()
        except BaseException:
            self._starting = None
            decoder.close()
            raise
        self.set_priority(decoder.pid, True)
