"""One Predict after another through the server's own code, without gRPC and without a computing process.

The runner is this process: frames go through real sockets, and a script answers them. What is left out of a server is
gRPC itself, and what it reports is written: metrics are counted, log lines are queued.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import logs
from common.clock import SystemClock
from hotslot.entailment.v1 import entailment_pb2
from hotslot.runner.v1 import runner_pb2
from inference.call_record import CallRecord, create_memory
from inference.server.api.entailment import ENTAILMENT
from inference.server.api.interceptors import Callers, CallInterceptor
from inference.server.api.predict import PredictApi, PredictRules
from inference.server.api.stream import StreamRules
from inference.server.api.task import InputLimits
from inference.server.event_log import EventLogger
from inference.server.events import emit_to_all
from inference.server.metrics import EventMetrics
from inference.server.model.models import Models
from inference.server.runner_client.process import RunnerProcess
from inference.server.runner_client.protocol import RunnerListener
from inference.server.runner_client.start import RunnerSpec, StartedRunner
from inference.server.scheduling.admission import Capacity
from inference.server.scheduling.held_bytes import HeldBytes, HeldRules
from inference.server.trace_events import CallTracer
from inference.wire import FrameDecoder, frame, split_items
from tests.server.simulated_connections import SimCalls, SimConnections, SimMemory
from tests.server.simulator import World

METHOD = "/hotslot.entailment.v1.EntailmentService/Predict"
PICTURE_BYTES = 100_000


class ScriptedRunner:
    """The other end of a runner's sockets: it loads at once, and answers every item."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._process = subprocess.Popen(["sleep", "60"])  # noqa: S607  what the server would kill
        self._decoders = {"data": FrameDecoder(), "control": FrameDecoder()}
        self._ends: dict[str, socket.socket] = {}

    def start(self, _spec: RunnerSpec) -> StartedRunner:
        """Begin to answer."""
        ours: dict[str, socket.socket] = {}
        loop = asyncio.get_running_loop()
        for name in ("data", "control"):
            ours[name], end = socket.socketpair()
            end.setblocking(False)
            self._ends[name] = end
            loop.add_reader(end, self._read, name)
        descriptor = create_memory()
        record = CallRecord(descriptor)
        os.close(descriptor)
        self._reply("control", hello=runner_pb2.Hello(pid=self.pid, devices=["cpu"], precisions=["float32"]))
        return StartedRunner(self._process, ours["data"], ours["control"], record)

    def stop(self) -> None:
        """End."""
        self._process.kill()
        self._process.wait()
        for end in self._ends.values():
            asyncio.get_running_loop().remove_reader(end)
            end.close()

    def _read(self, name: str) -> None:
        for payload in self._decoders[name].feed(self._ends[name].recv(1 << 20)):
            if name == "data":
                message, _ = split_items(bytearray(payload))
                self._reply("data", items=answer_items(runner_pb2.ComputeItems.FromString(bytes(message))))
                continue
            request = runner_pb2.RunnerRequest.FromString(payload)
            if request.HasField("load"):
                outcome = runner_pb2.LoadOutcome(device="cpu", precision="float32", row_seconds=1e-5, call_rows=64)
                self._reply("control", load_outcome=outcome)

    def _reply(self, name: str, **body: Any) -> None:  # noqa: ANN401  a message
        self._ends[name].sendall(b"".join(frame(runner_pb2.RunnerReply(**body).SerializeToString())))


def answer_items(items: runner_pb2.ComputeItems) -> runner_pb2.ItemsReply:
    """The answers, of one device call."""
    rows = sum(len(item.entailment.statements) for item in items.items)
    reply = runner_pb2.ItemsReply(call_rows=64)
    reply.calls.add(items=len(items.items), rows=rows, computed_seconds=1e-5 * rows)
    for item in items.items:
        outcome = reply.outcomes.add(item_id=item.item_id, computed_rows=len(item.entailment.statements))
        outcome.prepared_seconds, outcome.computed_seconds = 1e-6, 1e-5
        for _ in item.entailment.statements:
            outcome.entailment.scores.add(yes=0.5, no=0.25, maybe=0.25)
    return reply


class CallableServer:
    """A server whose only method is Predict, called without a network."""

    def __init__(self, world: World, emit: Callable[[Any], None], tracer: CallTracer | None = None) -> None:
        models = Models([world.manager])
        rules = PredictRules(InputLimits(1 << 20, 1000), StreamRules(64), 60.0)
        held = HeldBytes(HeldRules(1 << 30, 1 << 25, 12.0), SimConnections(), SimMemory(), SimCalls())
        api = PredictApi(ENTAILMENT, models, rules, world.clock, emit, world.drain, held)
        interceptor = CallInterceptor(world.clock, emit, lambda *_: None, Callers((), "", 0.0), held, tracer=tracer)
        service, _, method = METHOD.strip("/").partition("/")
        details: Any = SimpleNamespace(method=METHOD, invocation_metadata=())
        found: Any = api.handlers().service(details)
        self._handler: Any = interceptor.wrap(found, service, method)
        request = entailment_pb2.PredictRequest(statements=["there are two red circles"])
        request.image.content = bytes(PICTURE_BYTES)
        self._request = request.SerializeToString()

    async def predict(self) -> bytes:
        """The encoded answer to one request.

        Raises:
            AssertionError: it failed.
        """
        context: Any = SimpleNamespace(
            time_remaining=lambda: 30.0,
            invocation_metadata=lambda: (("user-agent", "grpc-go/1.80"),),
            set_trailing_metadata=lambda _: None,
            code=lambda: None,
            peer=lambda: "ipv4:127.0.0.1:50000",
            read=self._read,
            abort=_abort,
        )
        response = await self._handler.stream_unary(None, context)
        answer: bytes = self._handler.response_serializer(response)
        return answer

    async def _read(self) -> bytes:
        received = asyncio.get_running_loop().create_future()
        received.set_result(self._request)
        raw: bytes = await received
        return bytes(memoryview(raw))  # another object for each call, as gRPC makes it


async def _abort(code: object, message: str, _trailers: object) -> None:
    raise AssertionError(f"{code}: {message}")


@contextlib.asynccontextmanager
async def serve_calls(state: Path, tracer: CallTracer | None = None) -> AsyncIterator[CallableServer]:
    """A serving model, with its metrics and its log; `tracer` decides which calls are recorded."""
    with (state / "log").open("wb") as log, logs.LogWriter("server", log.fileno(), SystemClock()) as writer:
        emit = emit_to_all([EventLogger(_make_log(writer)).handlers(), EventMetrics().handlers()])
        runner = ScriptedRunner()
        spec = RunnerSpec("", 60.0, 60.0, silence_seconds=60.0)

        def make_process(listener: RunnerListener) -> RunnerProcess:
            return RunnerProcess(spec, listener, runner.start)

        capacity = Capacity(max_requests=64, max_bytes=1 << 30)
        world = World(
            state, make_process=make_process, emit=emit, clock=SystemClock(), capacity=capacity, standby=False
        )
        world.clock = SystemClock()  # type: ignore[assignment]  # real sockets need real time
        await world.serving()
        try:
            yield CallableServer(world, emit, tracer)
        finally:
            await world.commands.stop(0.0)
            runner.stop()


def _make_log(writer: logs.LogWriter) -> Any:  # noqa: ANN401  a logger
    logs._connected.writer = writer  # noqa: SLF001
    return logs.get_logger()
