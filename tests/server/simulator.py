"""One model with simulated runners and a manual clock, to test the server's decisions without processes."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from common.bundle import Bundle, bundle_folder, write_bundle
from common.engine_files import Task
from dev.harness.pointer import commit_bundle
from hotslot.runner.v1 import runner_pb2
from inference.server.events import Event
from inference.server.model.commands import SlotCommands
from inference.server.model.fallback_file import FILE_NAME, CpuFallbackFile
from inference.server.model.manager import ModelManager
from inference.server.model.options import ModelOptions
from inference.server.model.pair import Pair, SlotRecord
from inference.server.model.policy import DeviceRules, RespawnRules, SlotRules
from inference.server.model.slot import LoadProgress
from inference.server.request import EntailmentInput, PendingRequest
from inference.server.runner_client.protocol import EndReason, RunnerEnding, RunnerListener
from inference.server.scheduling.admission import Capacity, Drain
from inference.server.scheduling.device_memory import DeviceMemories
from inference.server.scheduling.device_share import DeviceShares
from inference.server.scheduling.limits import LimitRules
from inference.wire import Picture

UNIT_SECONDS = 0.01
SCORES = (0.7, 0.2, 0.1)  # yes, no, maybe


class ManualClock:
    """A clock that only a test advances."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""
        return self.seconds

    def now(self) -> datetime:
        """The wall clock's time."""
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)


class SimRunner:
    """A runner that does what the test says; answers at once unless configured to hold."""

    next_pid = 100

    def __init__(self, listener: RunnerListener, world: "World") -> None:
        SimRunner.next_pid += 1
        self.pid = SimRunner.next_pid
        self.resident_bytes = 1 << 20
        self.listener = listener
        self.world = world
        self.items: list[runner_pb2.Item] = []  # without an outcome
        self.received: list[str] = []  # first statement of each item
        self.calls: list[list[str]] = []  # the same, by device call
        self.is_hung = False
        self.is_silent = False
        self.step_began: float | None = None  # the device call that is held, or hangs
        self.cancelled: list[int] = []
        self.serving: bool | None = None
        self.yields = False
        self.priorities: list[bool] = []  # every value that `serving` had
        self.loaded: runner_pb2.LoadBundle | None = None
        self.has_ended = False
        self.gone = asyncio.Event()
        self.killed_by = ""
        self.is_retiring = False  # when it was killed
        self.always = ""  # a fault of every item

    def spawn(self) -> None:
        """Start."""
        self.world.runners.append(self)
        self._soon(self._hello)

    def load(self, request: runner_pb2.LoadBundle) -> None:
        """Load, unless the world says that this bundle is bad."""
        self.loaded = request
        reason = self.world.refused.get(Path(request.directory).name)
        if request.device.startswith("cuda"):
            reason = reason or self.world.card
        device = request.device
        outcome = runner_pb2.LoadOutcome(
            device=device, precision="float32", row_seconds=UNIT_SECONDS, call_rows=self.world.call_rows
        )
        if reason:
            outcome = runner_pb2.LoadOutcome(failure=runner_pb2.Failure(reason=reason, message="bad"), device=device)
        if not self.world.holds_loads:
            self._soon(lambda: self.listener.on_load_outcome(outcome))

    def send_items(self, items: Sequence[tuple[runner_pb2.Item, Picture]]) -> None:
        """Take items; compute them unless held."""
        self.items += [item for item, _ in items]
        self.received += [item.entailment.statements[0] for item, _ in items]
        self._soon(self.compute)

    def cancel(self, item_ids: Sequence[int]) -> None:
        """Remember."""
        self.cancelled += item_ids

    def set_serving(self, serving: bool) -> None:  # noqa: FBT001
        """Remember."""
        self.serving = serving
        self.priorities.append(serving)
        self.yields = False

    def yield_cpus(self) -> None:
        """Remember that it runs when no other process wants the CPUs."""
        self.serving, self.yields = False, True

    def retire(self) -> None:
        """End politely."""
        self._soon(lambda: self.end(EndReason.RETIRED, "exit 0"))

    def kill(self, detail: str, *, is_retiring: bool = False) -> None:
        """End at once."""
        self.is_retiring = is_retiring
        self.killed_by = detail
        self._soon(lambda: self.end(EndReason.KILLED, detail))

    async def wait_ended(self) -> None:
        """Wait for the end."""
        await self.gone.wait()

    def end(self, reason: EndReason = EndReason.DIED, detail: str = "signal 9") -> None:
        """The process is gone."""
        if not self.has_ended:
            self.has_ended = True
            self.gone.set()
            self.listener.on_end(RunnerEnding(reason, detail, self.computing))

    @property
    def computing(self) -> tuple[int, ...]:
        """The items of the device call that is held, hangs, or ends the runner."""
        return tuple(item.item_id for item in self.call) if self.step_began is not None else ()

    @property
    def call(self) -> list[runner_pb2.Item]:
        """The items of the next device call."""
        return sorted(self.items, key=lambda item: item.priority)[: self.world.call_rows]

    def answer(self, *items: runner_pb2.Item) -> None:
        """Answer items in one device call, as the world's script says."""
        rows = sum(len(item.entailment.statements) for item in items)
        reply = runner_pb2.ItemsReply(call_rows=self.world.call_rows)
        reply.calls.add(items=len(items), rows=rows, computed_seconds=rows * UNIT_SECONDS)
        for item in items:
            outcome = reply.outcomes.add(item_id=item.item_id, computed_rows=len(item.entailment.statements))
            fault = self._fault(item)
            if fault:
                outcome.failure.reason = fault
                outcome.failure.message = "as scripted"
                continue
            yes, no, maybe = self.world.find_scores(self.loaded)
            for _ in item.entailment.statements:
                outcome.entailment.scores.add(yes=yes, no=no, maybe=maybe)
        self._reply(reply)

    def refuse(self, reason: str) -> None:
        """Fail all items that the runner holds."""
        reply = runner_pb2.ItemsReply()
        for item in self.items:
            reply.outcomes.add(item_id=item.item_id).failure.reason = reason
        self._reply(reply)

    def _reply(self, reply: runner_pb2.ItemsReply) -> None:
        done = {outcome.item_id for outcome in reply.outcomes}
        self.items = [item for item in self.items if item.item_id not in done]
        self.step_began = self.world.clock.seconds if self.items else None
        self.listener.on_items_reply(reply)

    def _hello(self) -> None:
        if not self.has_ended:
            devices = self.world.devices
            precisions = ["float32"] * len(devices)
            self.listener.on_hello(runner_pb2.Hello(pid=self.pid, devices=devices, precisions=precisions))

    def beat(self) -> None:
        """Send a heartbeat: a device call that is held, or hangs, sleeps."""
        rows, seconds = 0, 0.0
        if self.step_began is not None and self.items:
            rows = min(sum(len(item.entailment.statements) for item in self.items), self.world.call_rows)
            seconds = self.world.clock.seconds - self.step_began
        self.listener.on_heartbeat(
            runner_pb2.Heartbeat(
                rows_on_step=rows, seconds_on_step=seconds, seconds_asleep=seconds, waiting_items=len(self.items)
            )
        )

    def compute(self) -> None:
        """Compute what the runner holds in one device call: answer, die or hang of it, as the world's script says."""
        if self.has_ended or not self.items or self.is_hung:
            return
        if self.step_began is None:
            self.step_began = self.world.clock.seconds
        if self.world.holds_items:
            return
        items = self.call
        self.calls.append([item.entailment.statements[0] for item in items])
        faults = [self._fault(item) for item in items]
        if "crash" in faults:
            self.end()
        elif "hang" in faults:
            self.is_hung = True
        else:
            self.answer(*items)
            self._soon(self.compute)

    def _fault(self, item: runner_pb2.Item) -> str:
        """What goes wrong: `!fault` in a statement for all revisions, `!fault@r2` for one, or for a device."""
        text, _, scope = item.entailment.statements[0].partition("@")
        scopes = ("", *((self.world.revision_of(self.loaded), self.loaded.device) if self.loaded else ()))
        return text[1:] if text.startswith("!") and scope in scopes else self.always

    def _soon(self, act: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(lambda: None if self.has_ended else act())


class World:
    """One model with simulated runners, in a state folder of its own."""

    def __init__(self, state: Path, **changes: object) -> None:
        self.state = state
        self.clock = ManualClock()
        self.runners: list[SimRunner] = []
        self.refused: dict[str, str] = {}  # folder name → reason
        self.holds_items = False
        self.call_rows = 4  # most rows of a device call
        self.holds_loads = False
        self.scores: dict[str, tuple[float, float, float]] = {}  # of all answers, by revision
        self.devices = ["cpu"]
        self.card = ""  # why no load fits on a card
        self.events: list[Event] = []
        self.complaints: list[str] = []
        self.prepared = 0  # processes that were to be started for later
        self.drain = Drain()
        options: dict[str, Any] = {
            "model": "shapes",
            "task": Task.VISUAL_ENTAILMENT,
            "device": "cpu",
            "precision": "",
            "allow_cpu_fallback": True,
            "cpu_fallback_file": CpuFallbackFile(state / FILE_NAME, self.complaints.append),
            "node": "test",
            "state_dir": state,
            "clock": self.clock,
            "emit": self.events.append,
            "drain": self.drain,
            "capacity": Capacity(max_requests=8, max_bytes=1000),
            "device_shares": DeviceShares(),
            "device_memories": DeviceMemories(),
            "interactive_share": 0.5,
            "limits": LimitRules(min_timeout_seconds=2.0, factor=8.0, prepare_timeout_seconds=10.0),
            "respawn": RespawnRules(first_seconds=1.0, cap_seconds=8.0, give_up=5),
            "standby": True,
            "threads": 1,
            "max_call_rows": 0,
            "max_call_seconds": 1.0,
            "pictures": runner_pb2.PictureRules(),
            "poison_seconds": 600.0,
            "self_test": ask("self-test"),
            "self_test_seconds": 10.0,
            "make_process": lambda listener: SimRunner(listener, self),
            "prepare_process": self._prepare,
            "engines": {"scripted": Task.VISUAL_ENTAILMENT},
        }
        options |= changes
        device = DeviceRules(options.pop("device"), options.pop("allow_cpu_fallback"))
        rules = SlotRules(options["model"], device, options.pop("respawn"), options.pop("standby"))
        self.manager = ModelManager(ModelOptions(**options, rules=rules))
        self.commands = SlotCommands(self.manager)

    def _prepare(self) -> None:
        self.prepared += 1

    def bundle(self, revision: str) -> Bundle:
        """A sealed bundle."""
        digest = "sha256:" + revision.encode().hex().rjust(64, "0")
        source = digest.replace("sha256:00000000", "sha256:50000000")
        bundle = Bundle(digest, source, revision, "scripted", Task.VISUAL_ENTAILMENT.value, "float32", "1", ())
        folder = bundle_folder(self.state, digest)
        folder.mkdir(parents=True, exist_ok=True)
        write_bundle(folder, bundle)
        return bundle

    def find_scores(self, loaded: runner_pb2.LoadBundle | None) -> tuple[float, float, float]:
        """The scores of a runner's answers."""
        return SCORES if loaded is None else self.scores.get(self.revision_of(loaded), SCORES)

    def revision_of(self, loaded: runner_pb2.LoadBundle) -> str:
        """The revision that a runner has loaded."""
        return bytes.fromhex(Path(loaded.directory).name.removeprefix("sha256-")).lstrip(b"\0").decode()

    async def serving(self, revision: str = "r1") -> "World":
        """Boot with a committed revision; when it answers, the standby process starts."""
        commit_bundle(self.state, self.bundle(revision), "shapes")
        assert self.commands.boot() == ""
        await self.settle()
        self.manager.tick()
        await self.settle()
        return self

    async def candidate(self, revision: str = "r2") -> LoadProgress:
        """Load a second revision."""
        load = self.commands.load(self.bundle(revision).bundle_digest, "", "t1", 0)
        await self.settle()
        return load

    async def trial(self, revision: str = "r2", term: float = 60.0) -> LoadProgress:
        """Load a second revision and let it answer on trial."""
        load = await self.candidate(revision)
        self.commands.activate(load.load_id, term, "t1", 0)
        await self.settle()
        return load

    def ask(self, statement: str = "two red circles", seconds: float = 30.0) -> PendingRequest:
        """Send a request."""
        return self.manager.requests.predict(ask(statement), self.clock.seconds + seconds)

    async def settle(self) -> None:
        """Let everything happen that needs no time."""
        loop: Any = asyncio.get_running_loop()
        for _ in range(40):
            await asyncio.sleep(0)
            if not loop._ready:  # noqa: SLF001  nothing but this task is left: further turns would change nothing
                return

    async def wait(self, seconds: float, step: float = 0.05) -> None:
        """Let time pass, ticking."""
        for _ in range(round(seconds / step)):
            self.clock.seconds += step
            for runner in self.runners:
                if not runner.has_ended and runner.loaded is not None:
                    runner.beat()
            self.manager.tick()
            await self.settle()

    def runner(self, slot: str) -> SimRunner:
        """The runner in a slot."""
        process = self.manager.machine.slots[slot].process
        assert isinstance(process, SimRunner)
        return process

    @property
    def pair(self) -> Pair:
        """Both slots."""
        return self.manager.pair

    @property
    def active(self) -> SlotRecord:
        """The slot that is to answer."""
        assert self.pair.active_slot is not None
        return self.pair.active_slot

    @property
    def previous(self) -> SlotRecord:
        """The slot that answered before."""
        assert self.pair.previous is not None
        return self.pair[self.pair.previous]

    def changes(self) -> list[str]:
        """Names of what happened."""
        return [str(getattr(event, "change", "")) for event in self.events]


def ask(statement: str) -> EntailmentInput:
    """A request's input: one picture for each statement."""
    picture = hashlib.blake2b(statement.encode(), digest_size=7).digest()
    return EntailmentInput(image=picture, statements=(statement,), premise="")
