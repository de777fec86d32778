"""Uploads of callers to a server whose memory is simulated."""

from collections.abc import Callable
from dataclasses import dataclass

from common.errors import HotslotError
from inference.server.scheduling.held_bytes import HeldBytes, HeldRules
from inference.server.scheduling.uploads import Traffic, Upload
from tests.server.simulated_connections import SimCalls, SimConnections, SimMemory

MIB = 1 << 20
LIMIT, LARGEST = 128 * MIB, 16 * MIB  # a first message is expected to be as large as any
UPLOAD_SECONDS = 12.0
TICK_SECONDS = 0.05


@dataclass
class Items:
    """The items of a stream."""

    open_items: int = 0
    unwritten_items: int = 0


class Picture:
    """Something that holds bytes in memory."""


class Arrival(Upload):
    """A message that arrives at some rate."""

    def __init__(self, connection: str, stream: Items | None = None, *, is_small: bool = False) -> None:
        super().__init__(connection, stream, is_small=is_small)
        self.is_reading = False
        self.arrived = 0
        self.error: HotslotError | None = None

    def on_turn(self) -> None:
        """Bytes of it may arrive."""
        self.is_reading = True

    def on_end(self, error: HotslotError) -> None:
        """Remember the first."""
        self.error = self.error or error

    @property
    def reason(self) -> str:
        """Why it was ended."""
        return "" if self.error is None else self.error.reason


class Server:
    """The messages of callers in simulated time; what has arrived of incomplete ones is the process's growth."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.memory, self.network, self.calls = SimMemory(), SimConnections(), SimCalls()
        self.held = HeldBytes(HeldRules(limit, LARGEST, UPLOAD_SECONDS), self.network, self.memory, self.calls)
        self.now = 0.0
        self.own_growth = self.peak = 0
        self.uploads: list[Arrival] = []
        self.pictures: list[tuple[Picture, int]] = []  # complete messages

    def upload(self, connection: str, stream: Items | None = None, *, is_small: bool = False) -> Arrival:
        """Begin a message, or let it wait."""
        upload = Arrival(connection, stream, is_small=is_small)
        upload.is_reading = self.held.ask(upload, self.now)
        self.uploads.append(upload)
        return upload

    def hold(self, connection: str, size_bytes: int) -> None:
        """A complete message that waits for its answer."""
        self.pictures.append((Picture(), size_bytes))
        self.held.hold(connection, self.pictures[-1][0], size_bytes)

    def answer(self, count: int = 1) -> None:
        """Forget the oldest complete messages."""
        del self.pictures[:count]

    def wait(self, seconds: float, each: Callable[[], object] = lambda: None) -> None:
        """Ticks; `each` is called before each."""
        for _ in range(round(seconds / TICK_SECONDS)):
            self.now += TICK_SECONDS
            each()
            held = sum(size for _, size in self.pictures)
            self.memory.growth = held + self.own_growth + sum(one.arrived for one in self.uploads)
            self.peak = max(self.peak, self.memory.growth)
            self.held.tick(self.now)
            for one in [one for one in self.uploads if one.error is not None]:
                self.uploads.remove(one)
                self.held.finish(one, None)

    def receive(self, bytes_each: int, up_to: int) -> None:
        """Bytes arrive of all that are read."""
        for one in self.uploads:
            if one.is_reading:
                one.arrived = min(up_to, one.arrived + bytes_each)
                self.network.traffic[one.connection] = Traffic(one.arrived, 0.0)

    def complete(self, size_bytes: int) -> None:
        """Messages that have arrived whole become pictures that wait."""
        for one in [one for one in self.uploads if one.arrived >= size_bytes]:
            self.uploads.remove(one)
            self.held.finish(one, size_bytes)
            self.hold(one.connection, size_bytes)
