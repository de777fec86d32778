"""A server, a hub folder and an updater, all real but the conversion; and what must hold in them whatever happens."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import grpc

from cli.hub import publish
from common.bundle import bundle_folder, read_bundle
from common.paths import RUN_FOLDER
from dev.harness.answers import question
from dev.harness.deployment import LIMIT_SECONDS, Deployment
from dev.harness.process import ServerProcess, UpdaterProcess
from dev.harness.revisions import MODEL, write_golden
from dev.harness.settings import DEFAULTS, merged, write_settings
from dev.harness.stack import RUNNER_DEFAULTS, SERVER_DEFAULTS, Stack
from hotslot.updates.v1 import updates_pb2 as pb
from updater.store.journal import Journal
from updater.store.state_folder import STATE_ENTRIES

CALL_SECONDS = 0.02  # that a call of those who ask without pause takes
OBSERVE = {"window_seconds": 0.5, "max_seconds": 30.0, "min_answers": 5}


class World(Deployment):
    """A deployment whose processes a test starts one by one; closed, it fails if an invariant is broken."""

    def __init__(  # noqa: PLR0913  what a test may want to be otherwise
        self,
        folder: Path,
        *,
        committed: str | None = "v1.0.0",
        golden: bool = True,
        observe: Mapping[str, Any] | None = None,
        policy: Mapping[str, Any] | None = None,
        runner: Mapping[str, Any] | None = None,
        poll_seconds: float = 0.5,
        state: Path | None = None,
        hub_url: str = "",
    ) -> None:
        super().__init__(folder, state)
        self.stack = Stack(self.state, committed=None, models=(MODEL,), runner=runner)
        self.config = self.stack.config
        if golden:
            write_golden(self.golden)
        model = {"hub_model": f"acme/{MODEL}"} if hub_url else {"hub_folder": str(self.hub)}
        self._tables = merged(
            DEFAULTS,
            {
                "server": SERVER_DEFAULTS,
                "runner": {**RUNNER_DEFAULTS, **(runner or {})},
                "updater": {"hub_endpoint": hub_url},
                "model": {**model, "poll_seconds": poll_seconds, **({"golden": str(self.golden)} if golden else {})},
                "observe": {**OBSERVE, **(observe or {})},
                "policy": policy or {},
            },
        )
        self._more = ""  # TOML, after all other tables
        self.configure({})
        self.first = committed
        self._published = 0
        self.updater: UpdaterProcess | None = None

    def configure(self, observe: Mapping[str, Any], model: Mapping[str, Any] | None = None) -> None:
        """Write the settings, with other rules of observation and of the model; the next updater reads them."""
        tables = merged(self._tables, {"observe": observe, "model": model or {}})
        write_settings(self.config, {"state_dir": str(self.state), "node": "test-node"}, (MODEL,), tables)
        with self.config.open("a", encoding="utf-8") as file:
            file.write(self._more)

    def add_settings(self, text: str) -> None:
        """Append tables; the next updater reads them."""
        self._more += text
        self.configure({})

    # What a test does.

    def start(self) -> Self:
        """Start the server; the first revision comes in by the updater itself, as any other."""
        self.stack.start(until_ready=False)
        if self.first is not None:
            self.publish(self.first)
            self.start_updater()
            self.wait_committed(self.first)
            self.wait_rest()
        return self

    def start_with_short_window(self) -> None:
        """Install the first revision with quick rules; then the test's own hold."""
        self.configure(OBSERVE)
        self.start()
        assert self.updater is not None
        self.updater.stop()
        self.configure({})

    def updates_hold(self) -> None:
        """An operator holds updates."""
        self.operator.Pause(pb.PauseRequest(), timeout=30)

    def start_updater(self, crash_at: str = "") -> UpdaterProcess:
        """Start the updater, perhaps with a place to die at."""
        self.updater = UpdaterProcess(self.folder, self.config, crash_at)
        return self.updater

    def restart_server(self) -> None:
        """A supervisor starts a server that is gone again."""
        self.stack.hang_up()
        self.stack.process.destroy()
        self.stack.start(until_ready=False)

    def publish_next(self, **script: Any) -> str:  # noqa: ANN401  fields of Script
        """Publish the next revision; returns its name."""
        revision = self.next_revision()
        self.publish(revision, **script)
        return revision

    def next_revision(self) -> str:
        """A name that is newer than all before."""
        self._published += 1
        return f"v1.1.{self._published}"

    def publish_to(self, hub: Path, source: Path, revision: str) -> None:
        """Publish somewhere else."""
        publish(source, hub, MODEL, revision)

    def restart_updater(self) -> UpdaterProcess:
        """A supervisor starts an updater that is gone again."""
        assert self.updater is None or self.updater.exit_code is not None
        return self.start_updater()

    def calm(self) -> None:
        """Between two tests of a shared world: the updater has ended in order, the server is there."""
        if self.updater is not None and self.updater.exit_code is None:
            self.updater.kill()
        if self.stack.process.exit_code is not None:
            self.restart_server()
        self.wait(self.serving, "something serves")

    def serving(self) -> str:
        """Revision that answers a caller now; its answer must be that revision's own. Empty if none does."""
        try:
            response = self.stack.predict(question("there is a dog"), timeout=20)
        except grpc.RpcError:
            return ""
        return response.served_by.revision

    # What a test waits for.

    def logs(self) -> str:
        """The end of the updater's and the server's log."""
        return f"{self.updater.tail() if self.updater is not None else ''}\n{self.stack.process.tail()}"

    def ask_until(self, is_over: Callable[[], object], what: str, statement: str = "there is a cat") -> dict[str, int]:
        """Callers ask without pause until something is so; every call must be answered.

        The model takes its time for each: a call is under way at any moment, and not thousands a second.

        Returns:
            Answers by revision.
        """
        answers: dict[str, int] = {}
        end = time.monotonic() + LIMIT_SECONDS
        while not is_over():
            revision = self.stack.predict(question(f"{statement} !slow {CALL_SECONDS}"), timeout=20).served_by.revision
            answers[revision] = answers.get(revision, 0) + 1
            assert time.monotonic() < end, f"not in time: {what}; {self.updater.tail() if self.updater else ''}"
        return answers

    # What must hold.

    def check_invariants(self) -> None:
        """The seven of the fault list that a look at the end can show."""
        row = self.committed()
        state = self.control.status()
        active = next((slot for slot in state.slots if slot.load_id == state.active_load_id), None)
        if row is not None:
            assert active is not None, "nothing serves"
            assert active.bundle_digest == row.bundle_digest, "the serving bundle is not the committed one"
            assert self.serving() == row.revision
            read_bundle(bundle_folder(self.state, row.bundle_digest))
        journal = Journal(self.state / "journal.db")
        try:
            record = journal.load(MODEL)
        finally:
            journal.close()
        assert record is not None
        assert active is None or not record.is_quarantined(active.source_digest), "a quarantined revision serves"
        assert (row is None) == (record.committed is None)
        if row is not None and record.committed is not None:
            assert record.committed.bundle_digest == row.bundle_digest
        ours = {RUN_FOLDER, "hotslot.toml", "server.log", "server.err"}
        strays = {path.name for path in self.state.iterdir()} - STATE_ENTRIES - ours
        assert not strays, f"left in the state folder: {strays}"

    def close(self, *, check: bool = True) -> None:
        """Stop both; then look whether everything is as it must be."""
        if self.updater is not None and self.updater.exit_code is None:
            self.wait(lambda: self.status().stage in (pb.UPDATE_STAGE_IDLE, pb.UPDATE_STAGE_HELD), "the updater rests")
            assert self.updater.stop() == 0, self.updater.tail()
        try:
            if check:
                self.check_invariants()
        finally:
            self.disconnect()
            self.stack.close()

    def destroy(self) -> None:
        """After a failed test: leave nothing."""
        self.disconnect()
        if self.updater is not None:
            self.updater.kill()
        process: ServerProcess | None = getattr(self.stack, "process", None)
        if process is not None:
            process.destroy()


def signal_all(world: World, number: signal.Signals) -> None:
    """Signal server and updater, as a terminal does."""
    world.stack.process.send(number)
    if world.updater is not None:
        os.kill(world.updater.pid, number)
