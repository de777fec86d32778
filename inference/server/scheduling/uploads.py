"""What holds memory for callers: messages that arrive, calls that stay open, and what is known of their connections."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Protocol

from common.errors import HotslotError


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes received by a connection, and since when it is quiet."""

    received_bytes: int
    quiet_seconds: float  # since the last byte


class Connections(Protocol):
    """The server's connections, by gRPC's names of the peers."""

    def read_traffic(self, names: Collection[str]) -> Mapping[str, Traffic]:
        """The traffic of those that are known."""
        ...

    @property
    def count(self) -> int:
        """How many there are, as far as the last round has found them."""
        ...

    @property
    def is_looking(self) -> bool:
        """Whether a round of looks has begun and not ended."""
        ...

    def can_close(self, name: str) -> bool:
        """Whether `close` can find it: one of TCP."""
        ...

    def close(self, names: Collection[str]) -> None:
        """Close some of them, with all their calls."""
        ...

    def look(self, in_use: Collection[str], *, most: int, closes_large: bool) -> None:
        """Look at some of them; close those without calls beyond `most`, and for which gRPC keeps large buffers."""
        ...


class TrafficReader:
    """Reads the traffic of a few connections at a time: that of one takes several system calls."""

    most = 128  # connections in one go: about a millisecond

    def __init__(self, network: Connections) -> None:
        self._network = network
        self.last: dict[str, Traffic | None] = {}  # as it was last read, the longest ago first; None: not known

    def read(self, names: Collection[str]) -> Mapping[str, Traffic]:
        """The traffic of at most `most` of them: those that were never read, then those read longest ago."""
        wanted = set(names)
        if len(wanted) > self.most:
            new = [name for name in wanted if name not in self.last]
            wanted = set(islice(chain(new, (name for name in self.last if name in wanted)), self.most))
        found = self._network.read_traffic(wanted) if wanted else {}
        for name in wanted:
            self.last.pop(name, None)
            self.last[name] = found.get(name)
        return found

    def keep(self, names: Collection[str]) -> None:
        """Forget all other connections."""
        self.last = {name: traffic for name, traffic in self.last.items() if name in names}


class Stream(Protocol):
    """The items of a stream."""

    @property
    def open_items(self) -> int:
        """Those that wait or are computed."""
        ...

    @property
    def unwritten_items(self) -> int:
        """Those whose outcome the caller has not taken; open ones too."""
        ...


class Upload(ABC):
    """A message that is to be read, or is being read; without a stream it is that of a unary call."""

    __slots__ = ("connection", "expected", "is_reserved", "is_small", "since", "stream")

    def __init__(self, connection: str, stream: Stream | None = None, *, is_small: bool = False) -> None:
        self.connection = connection
        self.is_small = is_small  # by its method, it has no picture and no texts; it does not wait for callers' bytes
        self.stream = stream
        self.since, self.expected = 0.0, 0  # when it was asked for; then, when its reading began
        self.is_reserved = False  # whether its expected size counts

    @property
    def is_unanswered(self) -> bool:
        """Whether items of its stream wait or are computed: they would be lost with it."""
        return self.stream is not None and self.stream.open_items > 0

    @property
    def is_idle_stream(self) -> bool:
        """Whether its stream has no outstanding items; such an upload has no time limit."""
        return self.stream is not None and not self.stream.unwritten_items

    @abstractmethod
    def on_turn(self) -> None:
        """It may be read now, after it had to wait."""

    @abstractmethod
    def on_end(self, error: HotslotError) -> None:
        """It is not read any further."""


class Memory(Protocol):
    """The memory of the process."""

    def read_growth(self) -> int:
        """Bytes in use beyond those of a server without calls."""
        ...

    def count_freed(self, size_bytes: int) -> None:
        """Record that gRPC freed the fragments of a completed message of `size_bytes`."""
        ...


class WatchCall(ABC):
    """An open call whose message has been read, and that stays to be told of changes."""

    __slots__ = ("connection",)

    def __init__(self, connection: str) -> None:
        self.connection = connection

    @abstractmethod
    def on_end(self, error: HotslotError) -> None:
        """It is ended, to make room for another one."""


class Watches:
    """The watches of all connections."""

    def __init__(self) -> None:
        self.count = 0
        self._of: dict[str, dict[WatchCall, None]] = {}  # by connection, in the order of time

    def add(self, watch: WatchCall, most: int) -> WatchCall | None:
        """Add one; if there are more than `most`, returns the one that is to be ended, which is removed.

        It is the oldest of the connection with most: a client has one, or one for each service.
        """
        self.count += 1
        self._of.setdefault(watch.connection, {})[watch] = None
        if self.count <= most:
            return None
        greediest = max(self._of, key=lambda connection: len(self._of[connection]))
        oldest = next(iter(self._of[greediest]))
        self.remove(oldest)
        return oldest

    def remove(self, watch: WatchCall) -> None:
        """Remove one, if it is there."""
        of_connection = self._of.get(watch.connection, {})
        if watch not in of_connection:
            return
        self.count -= 1
        del of_connection[watch]
        if not of_connection:
            del self._of[watch.connection]
