"""Who waits for the answer to a call of UpdatesService, and how many may: each waits in a thread of the server."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from threading import Lock

import grpc

from common.errors import NotReady
from updater.commands import OnEnd

COMMAND_SECONDS = 25.0
_SPARE_SECONDS = 1.0  # of a caller's time, for the way back
_PLACES = 4  # commands of one group to one model that wait at the same time


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


_MODELS = 16  # whose commands wait at the same time
GOLDEN_PLACES = 4  # calls about golden sets, which read files, at the same time
# Beside the threads in which these wait, eight answer all other calls: whatever waits, the status is answered.
WORKERS = len(CommandGroup) * _PLACES * _MODELS + GOLDEN_PLACES + 8


class CommandPlaces:
    """Limits the commands that wait: of each model, so that one in a long step refuses no command to another.

    From any thread.
    """

    def __init__(self) -> None:
        """No command waits."""
        self._lock = Lock()
        self._taken: Counter[tuple[str, CommandGroup]] = Counter()

    @contextmanager
    def take(self, model: str, group: CommandGroup) -> Iterator[None]:
        """Within the block a command to a model has a place.

        Raises:
            NotReady: "UPDATER_BUSY": all places of its group are taken.
        """
        with self._lock:
            of_group = sum(count for (_, other), count in self._taken.items() if other is group)
            if self._taken[model, group] >= _PLACES or of_group >= _PLACES * _MODELS:
                message = "as many such commands wait as may; nothing was changed, ask again"
                raise NotReady(message, reason="UPDATER_BUSY", retry_after_seconds=1.0)
            self._taken[model, group] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[model, group] -= 1
                self._taken += Counter()  # drops what is zero: a model may be removed
