"""A real runner process and an ear for what it says, in the words of the tests."""

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from common.bundle import bundle_folder
from hotslot.runner.v1 import runner_pb2
from inference.server.runner_client.process import RunnerEnding, RunnerProcess, RunnerSpec
from tests.scripted_engine import ENGINES, NAME, make_scripted_bundle

LIMIT_SECONDS = 10.0  # for a test that fails; none waits for it
THREADS = 3  # that every load asks for
SPEC = RunnerSpec(engine=NAME, extra_engines=ENGINES, heartbeat_seconds=0.02)


class Ear:
    """Keeps what a runner says, and lets a test wait for something of it."""

    def __init__(self) -> None:
        self.hello: runner_pb2.Hello | None = None
        self.progress: list[runner_pb2.LoadProgress] = []
        self.loaded: runner_pb2.LoadOutcome | None = None
        self.replies: list[runner_pb2.BatchReply] = []
        self.heartbeat = runner_pb2.Heartbeat()
        self.endings: list[RunnerEnding] = []
        self.after_end: list[str] = []
        self.bug: Exception | None = None  # raised once
        self._heard = asyncio.Event()

    def on_hello(self, hello: runner_pb2.Hello) -> None:
        """Keep it."""
        self.hello = hello
        self._note("hello")

    def on_load_progress(self, progress: runner_pb2.LoadProgress) -> None:
        """Keep it."""
        self.progress.append(progress)
        self._note("load_progress")

    def on_load_outcome(self, outcome: runner_pb2.LoadOutcome) -> None:
        """Keep it."""
        self.loaded = outcome
        self._note("load_outcome")

    def on_batch_reply(self, reply: runner_pb2.BatchReply) -> None:
        """Keep it, unless a test wants a bug here."""
        bug, self.bug = self.bug, None
        if bug is not None:
            raise bug
        self.replies.append(reply)
        self._note("batch_reply")

    def on_heartbeat(self, heartbeat: runner_pb2.Heartbeat) -> None:
        """Keep the last one."""
        self.heartbeat = heartbeat
        self._note("heartbeat")

    def on_end(self, ending: RunnerEnding) -> None:
        """Keep it; there must be one."""
        self.endings.append(ending)
        self._heard.set()

    @property
    def outcomes(self) -> dict[int, runner_pb2.ItemOutcome]:
        """All outcomes so far, by item."""
        return {outcome.item_id: outcome for reply in self.replies for outcome in reply.outcomes}

    async def until(self, fact: Callable[[], object], limit_seconds: float = LIMIT_SECONDS) -> None:
        """Wait until something that was heard makes a fact true."""
        async with asyncio.timeout(limit_seconds):
            while not fact():
                self._heard.clear()
                await self._heard.wait()

    def _note(self, what: str) -> None:
        if self.endings:
            self.after_end.append(what)
        self._heard.set()


class Stage:
    """One runner with its bundles."""

    def __init__(self, state: Path, **spec: float | str) -> None:
        self.ear = Ear()
        self.state = state
        self.process = RunnerProcess(dataclasses.replace(SPEC, **spec), self.ear)  # type: ignore[arg-type]
        self._ids = itertools.count(1)
        self._batches = itertools.count(1)

    async def stand(self) -> None:
        """Spawn, and wait for Hello."""
        self.process.spawn()
        await self.ear.until(lambda: self.ear.hello)

    async def load(self, revision: str = "r1", device: str = "cpu", **script: float | str) -> runner_pb2.LoadOutcome:
        """Stand and load a scripted bundle; whatever comes of it."""
        await self.stand()
        self.begin_load(revision, device, **script)
        await self.ear.until(lambda: self.ear.loaded)
        assert self.ear.loaded is not None
        return self.ear.loaded

    def begin_load(self, revision: str = "r1", device: str = "cpu", **script: float | str) -> None:
        """Ask for a load and do not wait."""
        bundle = make_scripted_bundle(self.state, revision, **script)
        folder = bundle_folder(self.state, bundle.bundle_digest)
        self.process.load(runner_pb2.LoadBundle(directory=str(folder), device=device, threads=THREADS))

    def send(self, *items: Sequence[str], image: bytes = b"picture", seconds_left: float = 60.0) -> list[int]:
        """Send one batch, an item a list of statements; the items' ids."""
        rows = [
            runner_pb2.BatchItem(
                item_id=next(self._ids),
                seconds_left=seconds_left,
                entailment=runner_pb2.EntailmentTask(image=image, statements=statements),
            )
            for statements in items
        ]
        self.process.send_batch(runner_pb2.ComputeBatch(batch_id=next(self._batches), items=rows))
        return [row.item_id for row in rows]

    async def ask(
        self, *items: Sequence[str], image: bytes = b"picture", seconds_left: float = 60.0
    ) -> list[runner_pb2.ItemOutcome]:
        """Send one batch and wait for its outcomes, in the items' order."""
        ids = self.send(*items, image=image, seconds_left=seconds_left)
        await self.ear.until(lambda: set(ids) <= set(self.ear.outcomes))
        return [self.ear.outcomes[item_id] for item_id in ids]

    async def ended(self, limit_seconds: float = LIMIT_SECONDS) -> RunnerEnding:
        """Wait for its end, which is told once, and after which nothing is."""
        async with asyncio.timeout(limit_seconds):
            await self.process.wait_ended()
        [ending] = self.ear.endings
        assert self.ear.after_end == []
        return ending
