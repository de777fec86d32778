"""Who waits for the answer to a call of UpdatesService, and how many may: each waits in a thread of the server."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from threading import BoundedSemaphore

import grpc

from common.errors import NotReady
from updater.commands import OnEnd

COMMAND_SECONDS = 25.0
_SPARE_SECONDS = 1.0  # of a caller's time, for the way back
_PLACES = 4  # commands of one group that wait at the same time


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of one command."""

    seconds_left: Callable[[], float]  # until its answer must be sent
    on_end: OnEnd  # of the call, whoever ends it


def build_caller(context: grpc.ServicerContext) -> Caller:
    """The caller of the call in progress."""

    def seconds_left() -> float:
        left = context.time_remaining()
        return COMMAND_SECONDS if left is None else max(0.0, left - _SPARE_SECONDS)

    return Caller(seconds_left, context.add_callback)


class CommandGroup(Enum):
    """Commands that wait for the same thing, and so for about as long; a full group refuses no command of another."""

    URGENT = auto()  # interrupts a long step
    STEP = auto()  # waits for the end of the step in progress
    HUB = auto()  # waits for the hub, too


# Beside the threads in which commands wait, eight answer all other calls: whatever waits, the status is answered.
WORKERS = len(CommandGroup) * _PLACES + 8


class CommandPlaces:
    """Limits the commands that wait. From any thread."""

    def __init__(self) -> None:
        """No command waits."""
        self._places = {group: BoundedSemaphore(_PLACES) for group in CommandGroup}

    @contextmanager
    def take(self, group: CommandGroup) -> Iterator[None]:
        """Within the block a command has a place.

        Raises:
            NotReady: "UPDATER_BUSY": all places of its group are taken.
        """
        places = self._places[group]
        if not places.acquire(blocking=False):
            message = f"{_PLACES} such commands wait already; nothing was changed, ask again"
            raise NotReady(message, reason="UPDATER_BUSY", retry_after_seconds=1.0)
        try:
            yield
        finally:
            places.release()
