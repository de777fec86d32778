"""One memory plan for each device, over the loads of all models. Pure.

A runner plans its load against the free memory that it measures, and takes what it has planned only little by little:
two that load at the same time would both count on the same memory. So a load is started when the plans of the loads
before it are known, and is told how much of the free memory these have still to take. What a loaded model has planned
and not taken, for example for its largest call, counts too.
"""

from collections.abc import Callable, Mapping, Sequence

_CPU = "cpu"


class LoadReservation:
    """The memory that one load has planned on its device; it counts until it is released."""

    __slots__ = ("_memory", "_start", "is_planned", "needed_bytes", "taken_bytes")

    def __init__(self, memory: "DeviceMemory", start: Callable[[int], None]) -> None:
        self._memory = memory
        self._start: Callable[[int], None] | None = start  # None: it has been started
        self.is_planned = False
        self.needed_bytes = 0  # by the plan; 0 if there is none
        self.taken_bytes = 0

    @property
    def is_started(self) -> bool:
        """Whether the load was started."""
        return self._start is None

    @property
    def outstanding_bytes(self) -> int:
        """Bytes that are planned and not allocated yet."""
        return max(0, self.needed_bytes - self.taken_bytes)

    def begin(self, reserved_bytes: int) -> None:
        """Start the load."""
        start, self._start = self._start, None
        if start is not None:
            start(reserved_bytes)

    def update(self, needed_bytes: int, taken_bytes: int) -> None:
        """Record the plan, and what is taken of it; the next load may start."""
        self.is_planned = True
        self.needed_bytes, self.taken_bytes = needed_bytes, taken_bytes
        self._memory.start_next()

    def release(self) -> None:
        """The load has failed, or its process has ended; a second call does nothing."""
        self._memory.release(self)


def spread_devices(devices: Sequence[str], plans: Mapping[str, Sequence[int]]) -> list[str]:
    """Order the devices for a model that may be loaded on any: the card with the least planned memory first.

    A load whose plan is not known yet counts as much as the largest that is known. Among equal cards the order stays,
    and the CPU stays behind all cards.

    Args:
        devices: that a runner can compute on, best first.
        plans: by device, the bytes that each load on it has planned; 0: not known yet.
    """
    largest = max((needed for rows in plans.values() for needed in rows), default=0) or 1
    weights = {device: sum(needed or largest for needed in plans.get(device, ())) for device in devices}
    cards = [device for device in devices if device != _CPU]
    return [*sorted(cards, key=weights.__getitem__), *(device for device in devices if device == _CPU)]


class DeviceMemory:
    """The loads on one device, in the order in which they were requested."""

    def __init__(self) -> None:
        self._reservations: list[LoadReservation] = []

    @property
    def plans(self) -> list[int]:
        """The bytes that each load has planned; 0: not known yet."""
        return [one.needed_bytes for one in self._reservations]

    def reserve(self, start: Callable[[int], None]) -> LoadReservation:
        """Add a load.

        Args:
            start: starts the load, at once or when the plans of those before it are known; its argument is how many
                bytes of the device's free memory other loads have planned.
        """
        reservation = LoadReservation(self, start)
        self._reservations.append(reservation)
        self.start_next()
        return reservation

    def release(self, reservation: LoadReservation) -> None:
        """Remove a load, whether it was started or not."""
        if reservation in self._reservations:
            self._reservations.remove(reservation)
            self.start_next()

    def start_next(self) -> None:
        """Start the next load, if the plans of all that were started are known."""
        if any(one.is_started and not one.is_planned for one in self._reservations):
            return
        waiting = next((one for one in self._reservations if not one.is_started), None)
        if waiting is not None:
            waiting.begin(sum(one.outstanding_bytes for one in self._reservations))


class DeviceMemories:
    """The memory plans of all devices of a server."""

    def __init__(self) -> None:
        self._memories: dict[str, DeviceMemory] = {}

    def of(self, device: str) -> DeviceMemory:
        """The plan of a device, for example "cuda:0"."""
        return self._memories.setdefault(device, DeviceMemory())

    def spread(self, devices: Sequence[str]) -> list[str]:
        """The devices for a model that may be loaded on any, the one for its next load first."""
        return spread_devices(devices, {name: memory.plans for name, memory in self._memories.items()})
