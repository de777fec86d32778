"""Random stories of one model of the server: callers, commands, deaths and full devices in any order.

Admission, queues, dispatchers, transitions and effects are the shipped ones; the runners and the clock are simulated.
`HOTSLOT_TEST_STORIES=10000` runs so many stories of sixty events each.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from common.errors import HotslotError
from inference.server.model.pair import ANSWERING_ROLES, SLOT_NAMES, Load
from inference.server.request import PendingRequest
from inference.server.runner_client.protocol import EndReason
from tests.server.pair_model import check_pair
from tests.server.simulator import SimRunner, World

CARD, CPU = "cuda:0", "cpu"
FAULTS = ("OUT_OF_MEMORY", "crash", "hang", "ENGINE_FAILED", "NOT_FINITE")
SCOPES = ("", "@r1", "@r2", f"@{CARD}")
REVISIONS = ("r1", "r2", "r3")
STATEMENTS = st.sampled_from(["fine"] * 12 + [f"!{fault}{scope}" for fault in FAULTS for scope in SCOPES])
DEADLINES = st.sampled_from([30.0, 30.0, 30.0, 5.0, 1.5, 0.5, 0.1])
NAMES = st.sampled_from(SLOT_NAMES)
END_SECONDS = 100  # every deadline, pause and self-test is over


class AnyOrder(RuleBasedStateMachine):
    """One story."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._on_error)
        self.folder = tempfile.TemporaryDirectory()
        self.errors: list[str] = []
        self.requests: list[tuple[PendingRequest, set[str]]] = []  # with the revisions that could answer it
        self.waiting: list[tuple[PendingRequest, set[str]]] = []  # those that may still be answered
        self.generation = 1
        self.active: str | None = None

    @initialize(device=st.sampled_from(["auto", "auto", "cuda", CPU]), allow=st.booleans(), standby=st.booleans())
    def begin(self, device: str, *, allow: bool, standby: bool) -> None:
        """The server starts with r1 committed."""
        self.world = World(Path(self.folder.name), device=device, allow_cpu_fallback=allow, standby=standby)
        self.world.devices = [CPU] if device == CPU else [CARD, CPU]
        self.loop.run_until_complete(self.world.serving())
        self.generation, self.active = self.world.pair.generation, self.world.pair.active

    # Callers.

    @rule(statement=STATEMENTS, seconds=DEADLINES)
    def ask(self, statement: str, seconds: float) -> None:
        """A caller sends a request."""

        def send() -> None:
            request = self.world.ask(statement, seconds)
            self.requests.append((request, self._answering()))
            self.waiting.append(self.requests[-1])

        self._do(send)

    @rule(number=st.integers(0, 7))
    def cancel(self, number: int) -> None:
        """A caller hangs up."""
        waiting = [request for request, _ in self.requests if not request.is_done]
        if waiting:
            self._do(lambda: self.world.manager.requests.cancel(waiting[number % len(waiting)]))

    # The updater.

    @rule(revision=st.sampled_from(REVISIONS), device=st.sampled_from(["", "", CPU, CARD]))
    def load(self, revision: str, device: str) -> None:
        """A candidate is loaded."""
        digest = self.world.bundle(revision).bundle_digest
        self._do(lambda: self.world.commands.load(digest, device, "t", 0))

    @rule(name=NAMES, seconds=st.sampled_from([5.0, 60.0]))
    def activate(self, name: str, seconds: float) -> None:
        """A trial begins, is extended, or is rolled back."""
        self._with_load(name, lambda load: self.world.commands.activate(load.load_id, seconds, "t", 0))

    @rule(name=NAMES)
    def commit(self, name: str) -> None:
        """A trial is committed."""
        self._with_load(name, lambda load: self.world.commands.commit(load.load_id, "t", 0))

    @rule(name=NAMES)
    def retire(self, name: str) -> None:
        """A slot is emptied."""
        self._with_load(name, lambda load: self.world.commands.retire(load.load_id, 0))

    # Runners.

    @rule(name=NAMES, reason=st.sampled_from([EndReason.DIED, EndReason.SILENT, EndReason.LOAD_STALLED]))
    def die(self, name: str, reason: EndReason) -> None:
        """A runner ends."""
        self._with_runner(name, lambda runner: runner.end(reason))

    @rule(revision=st.sampled_from(REVISIONS), reason=st.sampled_from(["", "", "LOAD_FAILED", "OUT_OF_MEMORY"]))
    def refuse(self, revision: str, reason: str) -> None:
        """A bundle no longer loads, or loads again."""
        folder = self.world.bundle(revision).bundle_digest.replace(":", "-")
        self.world.refused[folder] = reason

    @rule(reason=st.sampled_from(["", "", "OUT_OF_MEMORY", "DOES_NOT_FIT"]))
    def fill_card(self, reason: str) -> None:
        """The GPU is full, or has room again."""
        self.world.card = reason

    @rule(holds=st.booleans())
    def hold_loads(self, *, holds: bool) -> None:
        """Loads take long, or end at once."""
        self.world.holds_loads = holds
        if not holds:
            self._do(self._release_loads)

    @rule(holds=st.booleans())
    def hold_items(self, *, holds: bool) -> None:
        """Items take long, or are computed at once."""
        self.world.holds_items = holds
        if not holds:
            self._do(self._release_items)

    @rule(name=NAMES, fault=st.sampled_from(["", "", "OUT_OF_MEMORY", "ENGINE_FAILED"]))
    def break_runner(self, name: str, fault: str) -> None:
        """A runner fails every item, or none."""

        def set_fault(runner: SimRunner) -> None:
            runner.always = fault

        self._with_runner(name, set_fault)

    # Time.

    @rule(steps=st.sampled_from([1, 4, 10, 20]))
    def wait(self, steps: int) -> None:
        """Up to a second passes."""
        self._wait(steps, 0.05)

    @rule(steps=st.sampled_from([24, 70]))
    def wait_long(self, steps: int) -> None:
        """Half a minute passes."""
        self._wait(steps, 0.5)

    # What holds in every state.

    @invariant()
    def pair_is_sound(self) -> None:
        """The rules of the pair; no error of our own; one process a slot; the generation grows with every swap."""
        if not hasattr(self, "world"):
            return
        pair = self.world.pair
        check_pair(pair)
        assert self.errors == []
        living = [runner for runner in self.world.runners if not runner.has_ended]
        slots = self.world.manager.machine.slots.values()
        assert {id(runner) for runner in living} == {id(slot.process) for slot in slots if slot.process is not None}
        assert pair.generation >= self.generation
        assert pair.active == self.active or pair.generation > self.generation
        self.generation, self.active = pair.generation, pair.active

    @invariant()
    def requests_are_counted_once(self) -> None:
        """What waits is what admission counts; an answer is of a revision that answered while the request waited."""
        if not hasattr(self, "world"):
            return
        waiting = [request for request, _ in self.requests if not request.is_done]
        assert self.world.manager.requests.waiting == len(waiting)
        for request, revisions in self.requests:
            if request.is_done and not request.outcome.cancelled() and request.outcome.exception() is None:
                assert request.outcome.result().served_by.revision in revisions

    def teardown(self) -> None:
        """When nothing is broken any more, every request is done, nothing is leased, and the model is ready."""
        try:
            if hasattr(self, "world"):
                self._end()
        finally:
            self.loop.close()
            self.folder.cleanup()

    def _end(self) -> None:
        self.world.refused.clear()
        self.world.card, self.world.holds_loads, self.world.holds_items = "", False, False
        for runner in self.world.runners:
            runner.always = ""
        self._do(self._release_loads)
        self._do(self._release_items)
        self._wait(END_SECONDS, 1.0)
        self.pair_is_sound()
        self.requests_are_counted_once()
        assert all(request.is_done for request, _ in self.requests)
        assert not any(slot.is_leased for slot in self.world.manager.machine.slots.values())
        assert self.world.pair.active is None or self.world.pair.is_ready()
        self._settle()

    # Helpers.

    def _do(self, act: Callable[[], object]) -> None:
        async def run() -> None:
            with contextlib.suppress(HotslotError):
                act()
            await self.world.settle()

        before = self._answering()
        self.loop.run_until_complete(run())
        self._note(before)

    def _wait(self, steps: int, seconds: float) -> None:
        for _ in range(steps):
            before = self._answering()
            self.loop.run_until_complete(self.world.wait(seconds, seconds))
            self._note(before)

    def _note(self, before: set[str]) -> None:
        """Add the revisions that could have answered in the last event."""
        revisions = before | self._answering()
        for _, known in self.waiting:
            known.update(revisions)
        self.waiting = [row for row in self.waiting if not row[0].is_done]

    def _answering(self) -> set[str]:
        pair = self.world.pair
        loads = [slot.load for slot in pair if pair.role_of(slot.name) in ANSWERING_ROLES]
        return {load.bundle.revision for load in loads if load is not None}

    def _with_load(self, name: str, act: Callable[[Load], object]) -> None:
        load = self.world.pair[name].load
        if load is not None:
            self._do(lambda: act(load))

    def _with_runner(self, name: str, act: Callable[[SimRunner], object]) -> None:
        process = self.world.manager.machine.slots[name].process
        if isinstance(process, SimRunner):
            self._do(lambda: act(process))

    def _release_loads(self) -> None:
        for name in SLOT_NAMES:
            process = self.world.manager.machine.slots[name].process
            is_loading = self.world.pair[name].state.name == "LOADING"
            if is_loading and isinstance(process, SimRunner) and process.loaded is not None:
                process.load(process.loaded)

    def _release_items(self) -> None:
        for runner in self.world.runners:
            runner.compute()

    def _settle(self) -> None:
        """Read every outcome, or asyncio logs that one was never retrieved."""
        for request, _ in self.requests:
            if request.is_done and not request.outcome.cancelled():
                request.outcome.exception()

    def _on_error(self, _loop: object, context: dict[str, object]) -> None:
        self.errors.append(str(context.get("exception") or context["message"]))


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=int(os.environ.get("HOTSLOT_TEST_STORIES", "500")),
    database=None,
    stateful_step_count=60,
    deadline=None,
    derandomize="HOTSLOT_TEST_STORIES" not in os.environ,  # then they come from --hypothesis-seed
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(36_000)]
