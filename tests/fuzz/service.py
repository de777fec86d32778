"""Target: the service in one process, with simulated runners: callers, runner replies, deaths and time in any order."""

import asyncio
import atexit
import contextlib
import math
import selectors
import shutil
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from common.errors import HotslotError
from hotslot.entailment.v1 import entailment_pb2
from hotslot.runner.v1 import runner_pb2
from inference.server.api.entailment import ENTAILMENT
from inference.server.api.interceptors import DETAILS_KEY, Callers, CallInterceptor
from inference.server.api.predict import PredictApi, PredictRules
from inference.server.api.stream import StreamRules
from inference.server.api.task import InputLimits
from inference.server.model.fallback_file import FILE_NAME
from inference.server.model.models import Models
from inference.server.request import Priority
from inference.server.runner_client.protocol import EndReason
from inference.server.runner_client.replies import find_impossible_number
from inference.server.scheduling.fair_queue import CallerRules
from inference.server.scheduling.held_bytes import HeldBytes, HeldRules
from tests.fuzz.requests import MAX_CHARS, MAX_IMAGE_BYTES, message_bytes, request_bytes
from tests.fuzz.source import Source
from tests.server.simulated_connections import SimCalls, SimConnections, SimMemory
from tests.server.simulator import SimRunner, World

_SERVICE = "/hotslot.entailment.v1.EntailmentService/"
_CALLERS = (
    CallerRules("bulk", Priority.BULK, weight=0.1, rows_per_second=50.0),
    CallerRules("fast", Priority.INTERACTIVE, weight=1e6),
)
_HELD = HeldRules(max_bytes=8000, max_message_bytes=4000, upload_seconds=12.0)
_MAX_STEPS = 24
_MAX_TURNS = 60  # of the event loop, for all that follows a step
_MAX_ANSWER_SECONDS = 90.0  # of simulated time: the longest deadline, and some
_DEADLINE_SECONDS = 60.0
_FLOATS = (0.0, 0.01, 1.0, 1e9, 1e10, -1.0, math.nan, math.inf)
_REASONS = (
    "ENGINE_FAILED",
    "IMAGE_UNREADABLE",
    "OUT_OF_MEMORY",
    "NOT_FINITE",
    "CANCELLED",
    "DEADLINE_EXPIRED",
    "",
    "odd\n",
)
_GOOD, _LAST = (
    entailment_pb2.PredictRequest(image=entailment_pb2.Image(content=picture), statements=["two dogs"])
    for picture in (b"picture", b"another")  # what has ended two runners is refused for a while
)


class Caller:
    """One call's other end, in the form of gRPC's context."""

    def __init__(self, source: Source, messages: list[bytes]) -> None:
        self.results: list[entailment_pb2.StreamResult] = []
        self.aborted: tuple[grpc.StatusCode, str] | None = None
        self._messages, self._first = messages, messages[:1]
        self._is_closed = False
        self._woken = asyncio.Event()
        self._peer = source.choose(("ipv4:127.0.0.1:1", "ipv4:127.0.0.1:2"))
        self._seconds = source.choose((None, 0.0, 0.1, 5.0, 1e9))
        self._metadata = [
            (source.choose(("x-caller", "x-caller", "x-request-id", "traceparent", "odd-bin")), self._value(source))
            for _ in range(source.integer(0, 2))
        ]
        self.context: Any = SimpleNamespace(
            time_remaining=lambda: self._seconds,
            invocation_metadata=lambda: self._metadata,
            set_trailing_metadata=lambda _: None,
            send_initial_metadata=self._accept,
            abort=self._abort,
            code=lambda: self.aborted[0] if self.aborted else None,
            peer=lambda: self._peer,
            read=self._read,
            write=self._write,
        )

    def send(self, raw: bytes) -> None:
        """Send a message of a stream."""
        self._messages.append(raw)
        self._woken.set()

    @property
    def statements(self) -> int:
        """Statements of the first message of a unary call."""
        if not self._first:
            return 0
        with contextlib.suppress(DecodeError):
            return len(entailment_pb2.PredictRequest.FromString(self._first[0]).statements)
        return 0

    def half_close(self) -> None:
        """Send no further messages."""
        self._is_closed = True
        self._woken.set()

    @staticmethod
    def _value(source: Source) -> str | bytes:
        values: tuple[str | bytes, ...] = ("bulk", "fast", source.text(140), source.take(8))
        return source.choose(values)

    async def _accept(self, _metadata: object) -> None:
        """Take initial metadata."""

    async def _abort(self, code: grpc.StatusCode, message: str, trailers: tuple[tuple[str, str | bytes], ...]) -> None:
        assert any(key == DETAILS_KEY for key, _ in trailers)
        self.aborted = (code, message)
        raise grpc.aio.AbortError

    async def _read(self) -> Any:  # noqa: ANN401  gRPC's end of stream is no message
        while not self._messages:
            if self._is_closed:
                return grpc.aio.EOF
            self._woken.clear()
            await self._woken.wait()
        return self._messages.pop(0)

    async def _write(self, message: entailment_pb2.StreamPredictResponse) -> None:
        self.results += message.results


class QuickWorld(World):
    """A simulated model that stops to wait when nothing is left to do; the memory for callers' messages is small."""

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        self.memory = SimMemory()
        self.held = HeldBytes(_HELD, SimConnections(), self.memory, SimCalls())

    async def wait(self, seconds: float, step: float = 0.05) -> None:
        """Let time pass, ticking."""
        for _ in range(round(seconds / step)):
            await super().wait(step, step)
            self.held.tick(self.clock.seconds)
            await self.settle()

    async def settle(self) -> None:
        """Let everything happen that needs no time."""
        loop: Any = asyncio.get_running_loop()
        for _ in range(_MAX_TURNS):
            await asyncio.sleep(0)
            if not loop._ready:  # noqa: SLF001  asyncio has no public way to ask
                return


class Story:
    """A server in memory and its callers."""

    def __init__(self, source: Source) -> None:
        self._source = source
        state, _ = _state()
        (state / FILE_NAME).unlink(missing_ok=True)
        self.world = QuickWorld(state)
        self._troubles: list[object] = []
        rules = PredictRules(InputLimits(MAX_IMAGE_BYTES, MAX_CHARS), StreamRules(4), _DEADLINE_SECONDS)
        world = self.world
        models = Models([world.manager])
        api = PredictApi(ENTAILMENT, models, rules, world.clock, world.events.append, world.drain, world.held)
        self._handlers = api.handlers()
        callers = Callers(_CALLERS, "x-caller", world.clock.seconds)
        self._interceptor = CallInterceptor(world.clock, world.events.append, self._report, callers, world.held)
        self._calls: list[tuple[Caller, asyncio.Task[Any]]] = []
        self._sent_items = 0

    async def tell(self) -> None:
        """Let things happen as the source says, then let all calls end, and send a good one."""
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: self._troubles.append(context))
        assert self.world.commands.boot() == ""
        await self.world.settle()
        for _ in range(_MAX_STEPS):
            if self._source.is_empty:
                break
            await self._source.choose(_STEPS)(self)
        await self._end_all()
        await self._check_good_call()
        assert not self._troubles, self._troubles[0]

    async def call(self) -> None:
        """A unary call begins."""
        messages = [request_bytes(self._source) for _ in range(self._source.choose((1, 1, 1, 0, 2)))]
        await self._begin("Predict", messages)

    async def good_call(self) -> None:
        """A valid unary call begins."""
        await self._begin("Predict", [_GOOD.SerializeToString()])

    async def stream(self) -> None:
        """A stream begins."""
        await self._begin("StreamPredict", [])

    async def send(self) -> None:
        """A caller sends a message on a stream."""
        if self._calls:
            self._source.choose(self._calls)[0].send(message_bytes(self._source))
            await self.world.settle()

    async def half_close(self) -> None:
        """A caller sends no more."""
        if self._calls:
            self._source.choose(self._calls)[0].half_close()
            await self.world.settle()

    async def leave(self) -> None:
        """A caller leaves."""
        if self._calls:
            self._source.choose(self._calls)[1].cancel()
            await self.world.settle()

    async def hold(self) -> None:
        """Runners stop to answer, or answer again."""
        self.world.holds_items = not self.world.holds_items
        self._compute_all()
        await self.world.settle()

    async def reply(self) -> None:
        """A runner sends a reply of any content."""
        runner = self._runner()
        if runner is None:
            return
        source, reply = self._source, runner_pb2.ItemsReply(call_rows=self._source.choose((0, 1, 4, (1 << 31) - 1)))
        held = [item.item_id for item in runner.items] or [0]
        for _ in range(source.integer(0, 3)):
            outcome = reply.outcomes.add(
                item_id=source.choose((*held, 0, 1 << 60)), computed_rows=source.integer(0, 40)
            )
            outcome.prepared_seconds, outcome.computed_seconds = source.choose(_FLOATS), source.choose(_FLOATS)
            if source.is_one_in(2):
                outcome.failure.reason = source.choose(_REASONS)
                outcome.failure.message = source.text(20)
                outcome.failure.field = source.choose(("", "image.content", "statements[40]"))
            if source.is_one_in(4):
                outcome.entailment.SetInParent()
            for _ in range(source.integer(0, 2)):
                outcome.entailment.scores.add(yes=source.choose(_FLOATS), no=source.choose(_FLOATS), maybe=0.1)
        for _ in range(source.integer(0, 2)):
            reply.calls.add(
                items=1,
                rows=source.integer(0, 40),
                computed_seconds=source.choose(_FLOATS),
                cpu_seconds=source.choose(_FLOATS),
            )
        done = {outcome.item_id for outcome in reply.outcomes}
        runner.items = [item for item in runner.items if item.item_id not in done]
        if find_impossible_number(runner_pb2.RunnerReply(items=reply)):
            runner.end(EndReason.GARBAGE)
        else:
            runner.listener.on_items_reply(reply)
        await self.world.settle()

    async def heartbeat(self) -> None:
        """A runner sends a heartbeat of any content."""
        runner = self._runner()
        if runner is not None:
            heartbeat = runner_pb2.Heartbeat()
            for field in heartbeat.DESCRIPTOR.fields:
                if field.cpp_type == field.CPPTYPE_DOUBLE:
                    setattr(heartbeat, field.name, self._source.choose(_FLOATS))
            heartbeat.rows_on_step = self._source.choose((0, 1, 1000))
            heartbeat.waiting_items = self._source.choose((len(runner.items), 0, 9))
            if find_impossible_number(runner_pb2.RunnerReply(heartbeat=heartbeat)):
                runner.end(EndReason.GARBAGE)
            else:
                runner.listener.on_heartbeat(heartbeat)
            await self.world.settle()

    async def grow(self) -> None:
        """The process's memory grows or shrinks."""
        self.world.memory.growth = self._source.choose((0, 1000, 4000, 40_000, 1 << 20))

    async def die(self) -> None:
        """A runner ends."""
        runner = self._runner()
        if runner is not None:
            runner.end()
            await self.world.settle()

    async def wait(self) -> None:
        """Time passes."""
        await self.world.wait(self._source.choose((0.05, 0.5, 3.0)), step=0.5)

    async def operate(self) -> None:
        """The updater commands something, possible now or not."""
        commands, loads = self.world.commands, [slot.load.load_id for slot in self.world.pair if slot.load is not None]
        load_id = self._source.choose(loads or ["none"])
        with contextlib.suppress(HotslotError):
            match self._source.integer(0, 4):
                case 0 | 1:
                    commands.load(_state()[1], "", "t1", 0)
                case 2 | 3:
                    commands.activate(load_id, self._source.choose((1.0, 60.0)), "t1", 0)
                case _:
                    commands.retire(load_id, 0)
        await self.world.settle()

    async def _begin(self, method: str, messages: list[bytes]) -> None:
        caller = Caller(self._source, messages)
        self._calls.append((caller, asyncio.create_task(self._run(method, caller))))
        await self.world.settle()

    async def _run(self, method: str, caller: Caller) -> Any:  # noqa: ANN401
        details: Any = SimpleNamespace(method=_SERVICE + method, invocation_metadata=())
        found: Any = self._handlers.service(details)
        handler: Any = self._interceptor.wrap(found, _SERVICE.strip("/"), method)
        if method == "StreamPredict":
            return await handler.stream_stream(None, caller.context)
        return await handler.stream_unary(None, caller.context)

    async def _end_all(self) -> None:
        """Every call ends within the longest deadline, with an answer or one documented error."""
        self.world.holds_items = False
        for caller, _ in self._calls:
            caller.half_close()
        self._compute_all()
        waited = 0.0
        while (left := [task for _, task in self._calls if not task.done()]) and waited < _MAX_ANSWER_SECONDS:
            await self.world.wait(3.0, step=1.5)
            waited += 3.0
            await asyncio.sleep(0.004 if waited < 10 else 0)  # a half-closed stream ends after a short time of the loop
        assert not left, f"{len(left)} calls did not end"
        for caller, task in self._calls:
            if task.cancelled():
                continue
            error = task.exception()
            assert error is None or isinstance(error, grpc.aio.AbortError), error
            if error is None and task.result() is not None:
                _check_response(task.result(), caller.statements)
        self._calls.clear()
        admission = self.world.manager.requests.intake.admission
        assert (admission.requests, admission.size_bytes) == (0, 0)
        await self._check_held()

    async def _check_held(self) -> None:
        """No call is open."""
        self.world.memory.growth = 0
        await self.world.wait(1.0, step=0.5)
        assert self.world.held.calls == 0

    async def _check_good_call(self) -> None:
        await self.world.wait(20.0, step=2.0)  # pauses before a runner is started again
        caller = Caller(Source(b""), [_LAST.SerializeToString()])
        task = asyncio.create_task(self._run("Predict", caller))
        await self.world.settle()
        for _ in range(10):
            if not task.done():
                await self.world.wait(1.0, step=0.5)
        assert task.done()
        assert task.exception() is None, caller.aborted
        _check_response(task.result(), 1)

    def _compute_all(self) -> None:
        for runner in self.world.runners:
            runner.compute()

    def _runner(self) -> SimRunner | None:
        """One that has loaded its model and runs."""
        loaded = [runner for runner in self.world.runners if runner.loaded is not None and not runner.has_ended]
        return self._source.choose(loaded) if loaded else None

    def _report(self, where: str, error: BaseException) -> None:
        self._troubles.append((where, error))


_STEPS = (
    *(Story.call, Story.good_call, Story.stream, Story.send, Story.send, Story.half_close, Story.leave, Story.hold),
    *(Story.reply, Story.reply, Story.heartbeat, Story.die, Story.grow, Story.wait, Story.operate, Story.operate),
)


def check(data: bytes) -> None:
    """Tell one story."""
    _loop().run_until_complete(Story(Source(data)).tell())


def _check_response(response: entailment_pb2.PredictResponse, statements: int) -> None:
    assert len(response.results) == statements
    for result in response.results:
        assert result.label != entailment_pb2.LABEL_UNSPECIFIED


class _SkippingSelector(selectors.DefaultSelector):
    """Skips the time for which a loop would wait: in a story nothing comes from outside."""

    skipped_seconds = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Nothing, at once."""
        if timeout is None:  # no timer either: the story is stuck, which the fuzzer's own time limit tells
            return super().select()
        self.skipped_seconds += max(0.0, timeout)
        return []


class _StoryLoop(asyncio.SelectorEventLoop):
    """A loop that never sleeps; its time goes on by what it would have slept."""

    def __init__(self) -> None:
        self._skipping = _SkippingSelector()
        super().__init__(self._skipping)

    def time(self) -> float:
        """Seconds since some fixed moment."""
        return super().time() + self._skipping.skipped_seconds


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = _StoryLoop()
    atexit.register(loop.close)
    return loop


@cache
def _state() -> tuple[Path, str]:
    """A state folder with a committed bundle, for all stories, and the digest of a second one."""
    folder = Path(tempfile.mkdtemp(prefix="hotslot-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    world = World(folder)
    _loop().run_until_complete(world.serving())
    return folder, world.bundle("r2").bundle_digest
