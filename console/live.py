"""What the pages show now: asked once a second for all watchers together, and rarely while nobody looks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from common import logs
from common.clock import Clock
from common.failure_log import FailureLog
from common.status_details import StatusDetails
from console.history import History
from console.upstream import CallFailed, Upstream
from hotslot.control.v1 import control_pb2
from hotslot.status.v1 import status_pb2
from hotslot.updates.v1 import updates_pb2

WATCHED_SECONDS = 1.0
IDLE_SECONDS = 30.0  # the traffic of the last hour is drawn from these samples
MAX_WATCHERS = 256


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The answers to one round of questions. What could not be had is absent, and `problems` says why."""

    number: int = 0
    at: datetime | None = None
    server: status_pb2.GetServerStatusResponse | None = None
    models: tuple[status_pb2.Model, ...] = ()
    control: Mapping[str, control_pb2.ModelState] = field(default_factory=dict)
    updates: Mapping[str, updates_pb2.ModelUpdates] = field(default_factory=dict)
    under_way: Mapping[str, updates_pb2.GetUpdateResponse] = field(default_factory=dict)  # by model
    problems: tuple[StatusDetails, ...] = ()

    @property
    def has_server(self) -> bool:
        """Whether the server answered."""
        return self.server is not None


class Live:
    """Asks, keeps the last hour, and wakes who watches."""

    def __init__(self, upstream: Upstream, clock: Clock) -> None:
        """Ask nothing yet."""
        self._upstream, self._clock = upstream, clock
        self.snapshot = Snapshot()
        self.histories: dict[str, History] = {}
        self._watchers = 0
        self._changed = asyncio.Event()  # replaced at every snapshot
        self._watched = asyncio.Event()  # set while somebody watches

    @property
    def watchers(self) -> int:
        """How many pages watch."""
        return self._watchers

    async def run(self) -> None:
        """Poll the server and the updater until cancelled, also after a failure: often while a page is watched."""
        failures = FailureLog("refresh", logs.get_logger(), self._clock)
        while True:
            with failures:
                await self.refresh()
            if self._watchers:
                await asyncio.sleep(WATCHED_SECONDS)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._watched.wait(), IDLE_SECONDS)

    async def refresh(self) -> Snapshot:
        """Ask once, and return what is known now."""
        before = self.snapshot
        problems: list[StatusDetails] = []
        now = self._clock.now()
        server = models = control = updates = None
        try:
            server, models = await asyncio.gather(self._upstream.server_status(), self._upstream.models())
        except CallFailed as error:
            problems.append(error.details)
        if server is not None:
            try:
                control = await self._upstream.control_status()
            except CallFailed as error:
                problems.append(error.details)
        try:
            updates = await self._upstream.updates_status()
        except CallFailed as error:
            problems.append(error.details)
        states = {state.model: state for state in control.models} if control is not None else {}
        if control is not None:
            self._keep(control, states, now)
        followed = {one.model: one for one in updates or ()}
        self.snapshot = Snapshot(
            before.number + 1,
            now,
            server,
            tuple(models or ()),
            states,
            followed,
            await self._find_updates(followed),
            tuple(problems),
        )
        self._changed.set()
        self._changed = asyncio.Event()
        return self.snapshot

    async def current(self) -> Snapshot:
        """The present state, at most as old as a watched page shows."""
        at = self.snapshot.at
        if at is not None and self._watchers and (self._clock.now() - at).total_seconds() < 2 * WATCHED_SECONDS:
            return self.snapshot
        return await self.refresh()

    async def watch(self) -> AsyncIterator[Snapshot]:
        """Every snapshot from now on; a slow reader misses those in between.

        Raises:
            RuntimeError: too many watch; ask `is_full` before.
        """
        if self.is_full:
            raise RuntimeError("too many watch")
        self._watchers += 1
        self._watched.set()
        try:
            while True:
                changed = self._changed
                yield self.snapshot
                await changed.wait()
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._watched.clear()

    @property
    def is_full(self) -> bool:
        """Whether no further page may watch."""
        return self._watchers >= MAX_WATCHERS

    def _keep(
        self, control: control_pb2.GetStatusResponse, states: Mapping[str, control_pb2.ModelState], now: datetime
    ) -> None:
        started_at = control.server_started_at.ToNanoseconds() / 1e9
        for name, state in states.items():
            self.histories.setdefault(name, History()).add(state, started_at, self._clock.monotonic(), now)
        for gone in self.histories.keys() - states.keys():
            del self.histories[gone]

    async def _find_updates(
        self, followed: Mapping[str, updates_pb2.ModelUpdates]
    ) -> dict[str, updates_pb2.GetUpdateResponse]:
        """The events of each update under way."""
        found = {}
        for name, one in followed.items():
            if one.HasField("current"):
                request = updates_pb2.GetUpdateRequest(update_id=one.current.update_id)
                with contextlib.suppress(CallFailed):  # it has just ended
                    found[name] = await self._upstream.ask_updater("GetUpdate", request)
        return found
