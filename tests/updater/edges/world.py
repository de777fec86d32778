"""A server, a hub folder and an updater, all real but the conversion; and what must hold in them whatever happens."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import grpc

from cli.hub import publish
from common.bundle import Committed, bundle_folder, read_bundle, read_committed
from common.paths import RUN_FOLDER, UPDATES_SOCKET, run_folder
from dev.harness import ControlClient, ServerProcess, Stack, eventually
from dev.harness.answers import question
from dev.harness.control import RECONNECT_OPTIONS
from dev.harness.process import ROOT
from dev.harness.revisions import MODEL, publish_scripted, write_golden
from hotslot.updates.v1 import updates_pb2 as pb
from hotslot.updates.v1.updates_pb2_grpc import UpdatesServiceStub
from updater.store.journal import Journal
from updater.store.state_folder import STATE_ENTRIES

LIMIT_SECONDS = 60.0
PAUSE_SECONDS = 0.03  # between two looks; each is a call of updater or server, and the shortest stage lasts 0.5 s
CALL_SECONDS = 0.02  # that a call of those who ask without pause takes
OBSERVE = {
    "window_seconds": 0.5,
    "max_seconds": 30.0,
    "min_answers": 5,
    "trial_lease_seconds": 20.0,
    "keep_warm_seconds": 1.0,
}
PROGRAM = "dev.harness.scripted_updater"


class UpdaterProcess:
    """One updater."""

    def __init__(self, folder: Path, config: Path, crash_at: str = "", program: str = PROGRAM) -> None:
        self.log_path = folder / "updater.log"
        self._begin = self.log_path.stat().st_size if self.log_path.exists() else 0
        environment = {
            **os.environ,
            "HOTSLOT_CONFIG": str(config),
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "protos"))),
            "HOTSLOT_CRASH_AT": crash_at,
        }
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", program],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.poll()

    def wait_exit(self, limit: float = LIMIT_SECONDS) -> int:
        """Wait for its end."""
        try:
            return self._process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the updater has not ended within {limit:g} s; {self.tail()}") from None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait(10)

    def is_frozen(self) -> bool:
        """Whether it has frozen itself."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM, and wait."""
        self._process.terminate()
        return self.wait_exit()

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """Lines of its log, in order."""
        with self.log_path.open("rb") as log:
            log.seek(self._begin)
            lines = log.read().rpartition(b"\n")[0].splitlines()
        rows = [json.loads(line) for line in lines if line.startswith(b"{")]
        return [row for row in rows if not name or row["event"] == name]

    def tail(self) -> str:
        """The end of its log."""
        return self.log_path.read_text(errors="replace")[-4000:]


class World:
    """Closed, it fails the test if an invariant is broken or a process is left."""

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
        self.folder = folder
        self.state = state or folder / "state"
        self.state.mkdir(exist_ok=True)
        self.hub = folder / "hub"
        self.stack = Stack(self.state, committed=None, models=(MODEL,), runner=runner)
        self.golden = folder / "golden"
        if golden:
            write_golden(self.golden)
        place = {"hub_model": f"acme/{MODEL}"} if hub_url else {"hub_folder": str(self.hub)}
        section: dict[str, Any] = {**place, "poll_seconds": poll_seconds}
        if golden:
            section["golden"] = str(self.golden)
        tables: dict[str, Mapping[str, Any]] = {
            "updater": {
                "metrics_port": -1,
                "reserve_bytes": 0,
                "breaker_first_seconds": 1.0,
                "retained_bytes": 0,
                "max_failures_an_hour": 100,
                "hub_endpoint": hub_url,
            },
            f"updater.models.{MODEL}": section,
            f"updater.models.{MODEL}.observe": {**OBSERVE, **(observe or {})},
            f"updater.models.{MODEL}.gate": {"min_agreement": 0.0, "max_cost_factor": 100.0},
            f"updater.models.{MODEL}.policy": policy or {},
        }
        self._base = self.stack.config.read_text(encoding="utf-8")
        self._more = ""  # TOML, behind all other tables
        self._tables = tables
        self.configure({})
        self.first = committed
        self._published = 0
        self.updater: UpdaterProcess | None = None
        self._status: grpc.Channel | None = None

    def configure(self, observe: Mapping[str, Any]) -> None:
        """Write the settings, with other rules of observation; the next updater reads them."""
        name = f"updater.models.{MODEL}.observe"
        tables = {**self._tables, name: {**self._tables[name], **observe}}
        text = self._base
        for table, values in tables.items():
            rows = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
            text += f"[{table}]\n{rows}"
        text += self._more
        self.stack.config.write_text(text, encoding="utf-8")

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
        self.updates().Pause(pb.PauseRequest(), timeout=30)

    def start_updater(self, crash_at: str = "") -> UpdaterProcess:
        """Start the updater, perhaps with a place to die at."""
        self.updater = UpdaterProcess(self.folder, self.stack.config, crash_at)
        return self.updater

    def restart_server(self) -> None:
        """A supervisor starts a server that is gone again."""
        self.stack.hang_up()
        self.stack.process.destroy()
        self.stack.start(until_ready=False)

    def publish(self, revision: str, **script: Any) -> None:  # noqa: ANN401  fields of Script
        """Somebody publishes a revision."""
        publish_scripted(self.hub, revision, **script)

    def publish_next(self, **script: Any) -> str:  # noqa: ANN401  fields of Script
        """Somebody publishes the next revision; returns its name."""
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

    def is_quarantined(self, revision: str) -> bool:
        """Whether a revision may never serve again."""
        return any(row.revision == revision for row in self.status().quarantine)

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

    def updates(self) -> UpdatesServiceStub:
        """A client of the operators' socket."""
        channel = grpc.insecure_channel(f"unix:{run_folder(self.state) / UPDATES_SOCKET}")
        return UpdatesServiceStub(channel)

    def status(self) -> pb.ModelUpdates:
        """Where updates stand; over one connection, because tests ask for it a hundred times a second."""
        if self._status is None:
            address = f"unix:{self.state / 'run' / 'updates.sock'}"
            self._status = grpc.insecure_channel(address, options=RECONNECT_OPTIONS)
        stub = UpdatesServiceStub(self._status)
        (model,) = stub.GetStatus(pb.GetStatusRequest(), timeout=20, wait_for_ready=True).models
        return model

    def serving(self) -> str:
        """Revision that answers a caller now; its answer must be that revision's own. Empty if none does."""
        try:
            response = self.stack.predict(question("there is a dog"), timeout=20)
        except grpc.RpcError:
            return ""
        return response.served_by.revision

    def committed(self) -> Committed | None:
        """What a restart would load."""
        return read_committed(self.state).get(MODEL)

    @property
    def control(self) -> ControlClient:
        """A client of the control socket."""
        return self.stack.control

    # What a test waits for.

    def wait(self, is_so: Callable[[], object], what: str, limit: float = LIMIT_SECONDS) -> None:
        """Wait; tells the end of the log if it does not come."""
        try:
            eventually(is_so, limit, what, PAUSE_SECONDS)
        except AssertionError as error:
            tail = self.updater.tail() if self.updater is not None else ""
            raise AssertionError(f"{error}\n{tail}\n{self.stack.process.tail()}") from None

    def wait_stage(self, stage: str) -> None:
        """Wait for a stage, by its name."""
        number = pb.UpdateStage.Value(f"UPDATE_STAGE_{stage}")
        self.wait(lambda: self.status().stage == number, f"stage {stage}")

    def wait_committed(self, revision: str) -> None:
        """Wait until a revision is committed and serves."""

        def is_so() -> bool:
            row = self.committed()
            return row is not None and row.revision == revision and self.serving() == revision

        self.wait(is_so, f"{revision} is committed and serves")

    def wait_rest(self, stage: str = "IDLE") -> None:
        """Wait until the updater rests, and nothing but what serves is loaded."""
        self.wait_stage(stage)
        self.wait(lambda: not self.control.status().HasField("trial"), "no trial is left")

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
            assert active.bundle_digest == row.bundle_digest, "what serves is not committed"
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
            self._hang_up()
            self.stack.close()

    def destroy(self) -> None:
        """After a failed test: leave nothing."""
        self._hang_up()
        if self.updater is not None:
            self.updater.kill()
        process: ServerProcess | None = getattr(self.stack, "process", None)
        if process is not None:
            process.destroy()

    def _hang_up(self) -> None:
        if self._status is not None:
            self._status.close()
        self._status = None


def signal_all(world: World, number: signal.Signals) -> None:
    """Signal server and updater, as a terminal does."""
    world.stack.process.send(number)
    if world.updater is not None:
        os.kill(world.updater.pid, number)
