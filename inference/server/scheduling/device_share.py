"""Shares the seconds of one device between the models on it. Pure; time is an argument.

A call that runs while another model uses the device takes longer: on a GPU the processes take turns, on a CPU they
share cores. So a call is charged what its rows cost while the model had the device for itself.
"""

import copy
import math
from collections.abc import Callable

from inference.call_cost import CallCost

LEAD_SECONDS = 0.1  # by which a model may be ahead of another that waits, at least
LEAD_CALLS = 2  # device calls by which it may be ahead, at least
STALLED_SECONDS = 1.0  # a model that completes nothing for this long, or for some calls, holds no other back
STALLED_CALLS = 4


class _ModelUse:
    """One model's use of the device, all its slots together."""

    def __init__(self) -> None:
        self.used_seconds = 0.0
        self.call_seconds = 0.0  # of its latest call
        self.progress_at = 0.0
        self.idle_since = -math.inf  # meaningful while it does not wait
        self.slots: set[DeviceUser] = set()
        self.waiting_slots = 0  # that have rows to compute

    @property
    def is_waiting(self) -> bool:
        """Whether a slot has rows to compute."""
        return self.waiting_slots > 0

    def is_stalled(self, now: float) -> bool:
        """Whether it completes no call although it has rows to compute."""
        return now - self.progress_at > max(STALLED_SECONDS, STALLED_CALLS * self.call_seconds)


class DeviceUser:
    """A slot on a device, on behalf of its model.

    While it is alone, its dispatcher need not tell it anything: seconds count from when another model joins.
    """

    def __init__(self, share: "DeviceShare", use: _ModelUse, wake: Callable[[], None], cost: CallCost) -> None:
        self._share = share
        self._use = use
        self.wake = wake
        self._cost = cost  # while the model had the device for itself
        self.is_waiting = False  # whether it has rows to compute
        self.is_held_back = False
        self.learns = True  # whether the cost is its own, and no other code adds its calls
        self.is_alone = not share.is_shared  # no other model has joined: there is nothing to ask or to tell
        use.slots.add(self)

    def begin_waiting(self, now: float) -> None:
        """Record that it has rows to compute; its model gets no credit for the time before."""
        if self.is_waiting:
            return
        use = self._use
        if not use.waiting_slots:
            use.progress_at = now
            if self._share.is_shared:
                use.used_seconds = max(use.used_seconds, self._share.lowest_use(but=use))
        self.is_waiting = True
        use.waiting_slots += 1

    def end_waiting(self, now: float) -> None:
        """Record that it has nothing to compute."""
        if self.is_waiting:
            self.is_waiting = self.is_held_back = False
            self._use.waiting_slots -= 1
            self._use.idle_since = now
            if self._share.is_shared:
                self._share.wake_held_back()

    def add_call(self, seconds: float, rows: int, now: float) -> None:
        """Charge a device call that has ended."""
        use = self._use
        if not self._share.is_shared:
            if self.learns:
                self._cost.learn(seconds, rows)
            use.used_seconds += seconds
            use.call_seconds, use.progress_at = seconds, now
            return
        if seconds < self._cost.expected(rows) or not self._share.was_used(but=use, since=now - seconds):
            self._cost.learn(seconds, rows)
        charged = min(seconds, self._cost.at_best(rows)) if self._cost.is_known else seconds
        use.used_seconds += charged
        use.call_seconds, use.progress_at = charged, now
        self._share.wake_held_back()

    @property
    def is_contended(self) -> bool:
        """Whether another model has rows to compute."""
        return self._share.is_shared and self._share.has_waiting(but=self._use)

    def may_send(self, now: float) -> bool:
        """Whether it may send rows now; if not, `wake` is called when it may."""
        self.is_held_back = self._share.is_shared and self._share.is_ahead(self._use, now)
        return not self.is_held_back

    def begin_sharing(self) -> None:
        """Learn the cost of calls beside no other model apart from now on: another one has joined."""
        self.is_alone = False
        if not self.learns:
            self._cost, self.learns = copy.deepcopy(self._cost), True

    def leave(self, now: float) -> None:
        """Leave the device."""
        self._use.slots.discard(self)
        self.end_waiting(now)


class DeviceShare:
    """The models on one device: one that is ahead of another waiting one waits."""

    def __init__(self) -> None:
        self._uses: dict[str, _ModelUse] = {}  # by model
        self.is_shared = False  # whether more than one model has joined it; else nothing is to be shared

    def join(
        self, model: str, wake: Callable[[], None], row_seconds: float = 0.0, cost: CallCost | None = None
    ) -> DeviceUser:
        """Add a slot of a model.

        Args:
            model: its name.
            wake: called when the slot may send again after it was held back.
            row_seconds: cost of a row, measured by the load; 0 if unknown.
            cost: to which all calls of the slot are added anyway; used while no other model has joined.
        """
        use = self._uses.setdefault(model, _ModelUse())
        if len(self._uses) > 1 and not self.is_shared:
            self.is_shared = True
            for other in self._uses.values():
                for slot in other.slots:
                    slot.begin_sharing()
        is_apart = cost is None or self.is_shared
        user = DeviceUser(self, use, wake, CallCost(row_seconds) if cost is None or self.is_shared else cost)
        user.learns = is_apart
        return user

    def was_used(self, but: _ModelUse, since: float) -> bool:
        """Whether another model has had rows to compute since then."""
        others = [use for use in self._uses.values() if use is not but]
        return any(use.is_waiting or use.idle_since > since for use in others)

    def has_waiting(self, but: _ModelUse) -> bool:
        """Whether another model has rows to compute."""
        return any(use.is_waiting for use in self._uses.values() if use is not but)

    def lowest_use(self, but: _ModelUse) -> float:
        """The least seconds used by another model that waits; without one the most of all, to which nothing is owed."""
        others = [use for use in self._uses.values() if use is not but]
        waiting = [use.used_seconds for use in others if use.is_waiting]
        return min(waiting) if waiting else max((use.used_seconds for use in others), default=0.0)

    def is_ahead(self, use: _ModelUse, now: float) -> bool:
        """Whether a model has used more than another one that waits and makes progress."""
        lead = max(LEAD_SECONDS, LEAD_CALLS * use.call_seconds)
        return any(
            use.used_seconds > other.used_seconds + lead
            for other in self._uses.values()
            if other is not use and other.is_waiting and not other.is_stalled(now)
        )

    def wake_held_back(self) -> None:
        """Let the slots that were held back try again."""
        for use in self._uses.values():
            for slot in [slot for slot in use.slots if slot.is_held_back]:
                slot.wake()


class DeviceShares:
    """The shares of all devices of a server."""

    def __init__(self) -> None:
        self._shares: dict[str, DeviceShare] = {}

    def of(self, device: str) -> DeviceShare:
        """The share of a device, for example "cuda:0"."""
        return self._shares.setdefault(device, DeviceShare())
