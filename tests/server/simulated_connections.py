"""Connections, memory and calls of a server, as a test sets them."""

from collections.abc import Collection, Hashable, Mapping

from inference.server.scheduling.uploads import Traffic


class SimConnections:
    """What the kernel would say about connections."""

    def __init__(self) -> None:
        self.traffic: dict[str, Traffic] = {}
        self.closed: list[str] = []
        self.count = self.most = 0
        self.is_looking = False
        self.most_read = 0  # connections whose traffic was read in one go

    def read_traffic(self, names: Collection[str]) -> Mapping[str, Traffic]:
        """Those that a test has set."""
        self.most_read = max(self.most_read, len(names))
        return {name: self.traffic[name] for name in names if name in self.traffic}

    def can_close(self, name: str) -> bool:
        """Those of TCP."""
        return not name.startswith("unix:")

    def close(self, names: Collection[str]) -> None:
        """Remember them."""
        self.closed += names

    def look(self, in_use: Collection[str], *, most: int, closes_large: bool) -> None:
        """All at once; remember those that would be closed."""
        self.most = most
        if closes_large:
            self.closed += [name for name in self.traffic if name not in in_use]


class SimMemory:
    """The memory of the process."""

    def __init__(self) -> None:
        self.growth = 0
        self.freed: list[int] = []

    def read_growth(self) -> int:
        """What the test says."""
        return self.growth

    def count_freed(self, size_bytes: int) -> None:
        """Remember it."""
        self.freed.append(size_bytes)


class SimCalls:
    """The calls that gRPC would keep."""

    def __init__(self) -> None:
        self.answered: dict[Hashable, str] = {}  # with their connections

    @property
    def count(self) -> int:
        """Those that were answered; the others are not simulated."""
        return len(self.answered)

    def find_answered(self) -> Mapping[Hashable, str]:
        """Those whose callers have not taken the answer."""
        return self.answered
