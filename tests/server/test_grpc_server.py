"""No call can stop the server from accepting others; if it stops all the same, its process ends."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from common import logs
from common.clock import SystemClock
from common.paths import make_run_folder
from common.settings import CONFIG_VARIABLE, load_settings
from dev.harness import http2
from dev.harness.settings import write_settings
from inference.server.api.grpc_server import AioServer, make_server
from inference.server.api.standard_services import HEALTH_SERVICE, HealthApi
from inference.server.health import HealthRegistry, LoopLag
from inference.server.model.changes import ModelChanges
from inference.server.readiness import Readiness
from inference.server.runner_client.start import RunnerStarter
from inference.server.scheduling.held_bytes import HeldBytes
from inference.server.server import InferenceServer
from inference.server.settings import ServerSettings

CHECK = f"/{HEALTH_SERVICE}/Check"
NAMES = [b"/grpc.health.v1.Health/Ch\xa5eck", b"\xff", b"/\xed\xa0\x80/Check", b"/x/y", CHECK.encode() + b"\0"]


class Server:
    """A server of the health service, with its failures."""

    def __init__(self, on_failure: Callable[[], None] = lambda: None) -> None:
        health = HealthRegistry([""])
        health.update({"": True})
        self.failures: list[BaseException] = []
        self._on_failure = on_failure
        self.grpc = make_server(None, (), [HealthApi(health).handlers()], self._fail)
        self.port = self.grpc.add_insecure_port("127.0.0.1:0")

    def _fail(self, error: BaseException) -> None:
        self.failures.append(error)
        self._on_failure()

    async def is_serving(self) -> bool:
        """Whether it answers, on a new connection."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options) as channel:
            check: Any = channel.unary_unary(CHECK, None, health_pb2.HealthCheckResponse.FromString)
            answer = await check(b"", timeout=10)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """It accepts calls."""
    made = Server()
    await made.grpc.start()
    yield made
    await made.grpc.stop(0)


async def call_raw(port: int, path: bytes) -> bytes:
    """What comes back after a call of a method of any name, up to the end of its stream."""
    fields = {b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"t", b"te": b"trailers"}
    fields[b"content-type"] = b"application/grpc"
    block = b"".join(b"\x10" + b"".join(bytes([len(one)]) + one for one in pair) for pair in fields.items())
    source, sink = await asyncio.open_connection("127.0.0.1", port)
    sink.write(http2.opening() + http2.frame(http2.HEADERS, 4, 1, block) + http2.frame(http2.DATA, 1, 1, bytes(5)))
    received = b""
    while b"grpc-status" not in received and (more := await source.read(4096)):
        received += more
    sink.close()
    return received


@pytest.mark.fault("I19")
@pytest.mark.parametrize("path", NAMES, ids=range(len(NAMES)))
async def test_a_call_of_any_name_leaves_the_server_running(server: Server, path: bytes) -> None:
    """A method name that is not UTF-8 stopped the listener: one frame, and no caller was answered any more."""
    async with asyncio.timeout(20):
        received = await call_raw(server.port, path)

    assert b"unknown method" in received
    assert await server.is_serving()
    assert server.failures == []


async def test_unknown_methods_are_unimplemented(server: Server) -> None:
    """The status is that of the library."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call: Any = channel.unary_unary("/grpc.health.v1.Health/Guess")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(b"", timeout=10)

    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def fail(_server: object) -> None:
    """What accepts calls fails."""
    raise OSError("no such thing")


async def test_a_listener_that_fails_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the library's accepting task."""
    failed = asyncio.Event()
    server = Server(failed.set)
    monkeypatch.setattr(AioServer, "_request_call", fail)
    await server.grpc.start()
    async with asyncio.timeout(10):
        await failed.wait()

    assert [str(error) for error in server.failures] == ["no such thing"]


class RecordingStarter(RunnerStarter):
    """Keeps which models were stopping when it was closed first."""

    server: InferenceServer
    were_stopping: list[bool] | None = None

    def close(self) -> None:
        """Close it."""
        if self.were_stopping is None:
            self.were_stopping = [manager.pair.is_stopping for manager in self.server.models.all()]
        super().close()


def make_whole_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch, starter: RunnerStarter, drain_delay_seconds: float
) -> InferenceServer:
    """A server of one model without a bundle."""
    sections: Mapping[str, Any] = {
        "server": {"port": 0, "metrics_port": -1, "drain_delay_seconds": drain_delay_seconds},
        "runner": {"standby": False},
    }
    write_settings(folder / "hotslot.toml", {"state_dir": str(folder)}, ("shapes",), sections)
    monkeypatch.setenv(CONFIG_VARIABLE, str(folder / "hotslot.toml"))
    make_run_folder(folder)
    return InferenceServer(load_settings(ServerSettings), SystemClock(), logs.get_logger(), starter)


async def test_a_server_goes_on_when_its_checks_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without a free descriptor: calls are answered, and it stops in good order."""
    failed = asyncio.Semaphore(0)

    def fail_to_check(*_arguments: object) -> None:
        failed.release()
        raise OSError(24, "Too many open files")

    for kind, name in ((HeldBytes, "tick"), (ModelChanges, "tick"), (Readiness, "update"), (LoopLag, "measure")):
        monkeypatch.setattr(kind, name, fail_to_check)
    server = make_whole_server(tmp_path, monkeypatch, RunnerStarter(), 0)
    async with asyncio.timeout(20):
        running = asyncio.create_task(server.run())
        for _ in range(20):
            await failed.acquire()
        assert not running.done()
        monkeypatch.undo()
        server.request_stop()
        await running

    assert not server.has_failed


async def test_a_server_whose_listener_fails_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, without the delay of a drain, and supervisord starts another one; the exit code says why.

    What starts runners is closed last: the end of an unanswered fork would start another process in its slot.
    """
    monkeypatch.setattr(AioServer, "_request_call", fail)
    starter = RecordingStarter()
    server = starter.server = make_whole_server(tmp_path, monkeypatch, starter, 300)
    async with asyncio.timeout(20):
        await server.run()

    assert server.has_failed
    assert starter.were_stopping == [True]
