"""One model: its two slots and its requests, and the periodic checks of both."""

from common.bundle import Committed
from inference.server.model import messages as m
from inference.server.model.effects import PairMachine
from inference.server.model.options import ModelOptions
from inference.server.model.pair import Pair
from inference.server.model.requests import Requests
from inference.server.model.transitions import has_given_up
from inference.server.request import Priority
from inference.server.scheduling.fair_queue import QueueDepth


class ModelManager:
    """One model of the server. Loop thread only."""

    def __init__(self, options: ModelOptions) -> None:
        self.options = options
        self.requests = Requests(options)
        self.machine: PairMachine = self.requests.machine
        self.stats = self.requests.stats
        self.committed: Committed | None = None
        self.boot_failure = ""  # why its start has begun no load; empty when a command has
        self.boot_again_at: float | None = None  # clock.monotonic(); None: nothing failed that may pass by itself
        self.boot_failed_at: float | None = None  # clock.monotonic() of the first such failure
        self.commands_under_way = 0  # of the updater

    @property
    def pair(self) -> Pair:
        """The two slots as they are now."""
        return self.machine.pair

    @property
    def is_ready(self) -> bool:
        """Whether the model answers: it has passed its last self-test, and its runner does not seem to hang."""
        return self.pair.is_ready() and not self.requests.is_stalled

    @property
    def has_given_up(self) -> bool:
        """Whether the active slot's process has ended too often in a row."""
        return has_given_up(self.pair, self.options.rules)

    def read_queue(self) -> dict[str, QueueDepth]:
        """The waiting requests and rows by priority; from any thread."""
        dispatchers = [slot.dispatcher for slot in self.machine.slots.values()]
        return {
            priority.name.lower(): sum((dispatcher.depth(priority) for dispatcher in dispatchers), QueueDepth(0, 0))
            for priority in Priority
        }

    def tick(self) -> None:
        """Check deadlines, stuck runners, leases, restarts and the self-test; called about every 50 ms."""
        now = self.options.clock.monotonic()
        self.requests.expire(now)
        self.requests.update_load(now)
        if self.commands_under_way:
            self.machine.apply(m.RenewGap())
        self.machine.apply(m.Tick())
        self.requests.shadows.update(now)
        if not self.pair.is_stopping:
            self.requests.send_self_test_if_due(now)
