"""A real runner process, and a listener that records its messages."""

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from common.bundle import bundle_folder
from dev.harness.scripted_engine import ENGINES, NAME, make_scripted_bundle
from hotslot.runner.v1 import runner_pb2
from inference.server.runner_client.process import RunnerProcess
from inference.server.runner_client.protocol import RunnerEnding
from inference.server.runner_client.start import RunnerSpec

LIMIT_SECONDS = 40.0  # after which a waiting test fails; the machine may be busy
THREADS = 3  # requested by every load
SPEC = RunnerSpec(NAME, start_seconds=60.0, load_stall_seconds=60.0, extra_engines=ENGINES, heartbeat_seconds=0.02)


class RecordingListener:
    """Records a runner's messages and lets a test wait for one."""

    def __init__(self) -> None:
        self.hello: runner_pb2.Hello | None = None
        self.progress: list[runner_pb2.LoadProgress] = []
        self.loaded: runner_pb2.LoadOutcome | None = None
        self.replies: list[runner_pb2.ItemsReply] = []
        self.heartbeat = runner_pb2.Heartbeat()
        self.endings: list[RunnerEnding] = []
        self.after_end: list[str] = []
        self.on_beat: Callable[[runner_pb2.Heartbeat], object] = lambda _: None
        self.bug: Exception | None = None  # raised once
        self._waiting: set[Callable[[], None]] = set()  # called at every message

    def on_hello(self, hello: runner_pb2.Hello) -> None:
        """Record it."""
        self.hello = hello
        self._note("hello")

    def on_load_progress(self, progress: runner_pb2.LoadProgress) -> None:
        """Record it."""
        self.progress.append(progress)
        self._note("load_progress")

    def on_load_outcome(self, outcome: runner_pb2.LoadOutcome) -> None:
        """Record it."""
        self.loaded = outcome
        self._note("load_outcome")

    def on_items_reply(self, reply: runner_pb2.ItemsReply) -> None:
        """Record it, or raise the error that a test has set."""
        bug, self.bug = self.bug, None
        if bug is not None:
            raise bug
        self.replies.append(reply)
        self._note("items_reply")

    def on_heartbeat(self, heartbeat: runner_pb2.Heartbeat) -> None:
        """Record the last one."""
        self.heartbeat = heartbeat
        self.on_beat(heartbeat)
        self._note("heartbeat")

    def on_end(self, ending: RunnerEnding) -> None:
        """Record it; there must be exactly one."""
        self.endings.append(ending)
        self._wake()

    @property
    def outcomes(self) -> dict[int, runner_pb2.ItemOutcome]:
        """All outcomes so far, by item."""
        return {outcome.item_id: outcome for reply in self.replies for outcome in reply.outcomes}

    @property
    def calls(self) -> list[runner_pb2.DeviceCall]:
        """All device calls so far."""
        return [call for reply in self.replies for call in reply.calls]

    async def until(self, condition: Callable[[], object], limit_seconds: float = LIMIT_SECONDS) -> None:
        """Wait until recorded messages make a condition true.

        The condition is checked at every message: one that is true of a single heartbeat is not missed, however late
        the waiting task goes on.
        """
        is_true = asyncio.get_running_loop().create_future()

        def check() -> None:
            try:
                if not is_true.done() and condition():
                    is_true.set_result(None)
            except Exception as error:  # noqa: BLE001  raised in the test that waits
                is_true.set_exception(error)

        check()
        self._waiting.add(check)
        try:
            async with asyncio.timeout(limit_seconds):
                await is_true
        finally:
            self._waiting.discard(check)

    def _note(self, what: str) -> None:
        if self.endings:
            self.after_end.append(what)
        self._wake()

    def _wake(self) -> None:
        for check in tuple(self._waiting):
            check()


class RunnerHarness:
    """One runner with its bundles."""

    def __init__(self, state: Path, **spec: float | str) -> None:
        self.listener = RecordingListener()
        self.state = state
        self.rules: runner_pb2.PictureRules | None = None  # of the next load
        self.reserved_bytes = 0  # by other loads, in the next load
        self.process = RunnerProcess(dataclasses.replace(SPEC, **spec), self.listener)  # type: ignore[arg-type]
        self._ids = itertools.count(1)

    async def start(self) -> None:
        """Spawn the process and wait for Hello."""
        self.process.spawn()
        await self.listener.until(lambda: self.listener.hello)

    async def load(self, revision: str = "r1", device: str = "cpu", **script: float | str) -> runner_pb2.LoadOutcome:
        """Start, load a scripted bundle and return the outcome."""
        await self.start()
        self.begin_load(revision, device, **script)
        await self.listener.until(lambda: self.listener.loaded)
        assert self.listener.loaded is not None
        return self.listener.loaded

    def begin_load(self, revision: str = "r1", device: str = "cpu", **script: float | str) -> None:
        """Request a load without waiting for its outcome."""
        bundle = make_scripted_bundle(self.state, revision, **script)
        folder = bundle_folder(self.state, bundle.bundle_digest)
        request = runner_pb2.LoadBundle(
            directory=str(folder),
            device=device,
            threads=THREADS,
            pictures=self.rules,
            reserved_bytes=self.reserved_bytes,
        )
        self.process.load(request)

    def send(
        self,
        *items: Sequence[str],
        image: bytes = b"picture",
        seconds_left: float = 60.0,
        priority: int = 0,
        may_take_long: bool = False,
    ) -> list[int]:
        """Send items, each a list of statements, in one frame; return their ids."""
        messages = [
            runner_pb2.Item(
                item_id=next(self._ids),
                seconds_left=seconds_left,
                entailment=runner_pb2.EntailmentTask(statements=statements),
                priority=priority,
                may_take_long=may_take_long,
            )
            for statements in items
        ]
        self.process.send_items([(message, image) for message in messages])
        return [message.item_id for message in messages]

    async def ask(
        self,
        *items: Sequence[str],
        image: bytes = b"picture",
        seconds_left: float = 60.0,
        may_take_long: bool = False,
    ) -> list[runner_pb2.ItemOutcome]:
        """Send items and wait for their outcomes, in the items' order."""
        ids = self.send(*items, image=image, seconds_left=seconds_left, may_take_long=may_take_long)
        await self.listener.until(lambda: set(ids) <= set(self.listener.outcomes))
        return [self.listener.outcomes[item_id] for item_id in ids]

    async def ended(self, limit_seconds: float = LIMIT_SECONDS) -> RunnerEnding:
        """Wait for the end of the process; checks that it is reported once and is the last message."""
        async with asyncio.timeout(limit_seconds):
            await self.process.wait_ended()
        [ending] = self.listener.endings
        assert self.listener.after_end == []
        return ending
