"""The server and its lifecycle: start, serve, drain, stop. `main` is the program."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from common import logs
from common.address import ListenFailed, add_port, parse_address, remove_socket, unix_target
from common.clock import Clock, SystemClock
from common.durable import write_atomic
from common.exit_codes import ExitCode
from common.metrics import ReadingCollector
from common.metrics_endpoint import MetricsEndpoint
from common.paths import CONTROL_SOCKET, SERVER_STARTED, run_folder, socket_path
from common.process_metrics import installed_version, make_process_reader
from common.settings import SettingsInvalid
from common.tls import ServerContexts
from inference.server import compose
from inference.server.access import Access
from inference.server.api import open_inference, standard_services, status
from inference.server.api.grpc_server import OpenCalls, make_server
from inference.server.api.interceptors import CallInterceptor
from inference.server.api.predict import PredictApi
from inference.server.api.tasks import TASK_APIS
from inference.server.background import BackgroundTasks
from inference.server.channel_arguments import control_arguments, health_arguments
from inference.server.connections import TcpConnections
from inference.server.control import servicer
from inference.server.cpu_policy import PAUSE_SECONDS, CpuPolicy
from inference.server.event_log import EventLogger
from inference.server.events import emit_to_all
from inference.server.health import LoopLag
from inference.server.live_settings import LiveParts, LiveSettings
from inference.server.memory import MemoryGauge, set_heap_limits
from inference.server.metrics import EventMetrics
from inference.server.model.changes import ModelChanges
from inference.server.model.models import Models
from inference.server.readiness import PUBLIC_SERVICES, Readiness
from inference.server.readings import ServerReader
from inference.server.runner_client.fork_server import TICK_SECONDS as RUNNER_TICK_SECONDS
from inference.server.runner_client.start import RunnerStarter
from inference.server.scheduling.admission import Drain
from inference.server.scheduling.held_bytes import HeldBytes
from inference.server.settings import ServerSettings

TICK_SECONDS = 0.05
BUSY_TICK_SECONDS = 0.01  # while uploads could soon exceed the limit of what is held
REFUSE_SECONDS = 0.1  # between the first refusals of a drain and the end of the listeners
STOP_SECONDS = 5.0  # for the runners to end, after the last call


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses that a server listens on."""

    port: int
    control: str
    metrics_port: int
    health_port: int


class InferenceServer:
    """The gRPC server with its models: `run` serves until `request_stop`."""

    def __init__(
        self, settings: ServerSettings, clock: Clock, log: logs.Logger, early: RunnerStarter | None = None
    ) -> None:
        """Read certificate and tokens; nothing runs yet.

        Args:
            settings: of the server.
            clock: of all parts.
            log: of the process.
            early: runners that were started before.

        Raises:
            SettingsInvalid: certificate or tokens cannot be used.
        """
        self._access = compose.build_access(settings, log, clock)
        self._early = early or RunnerStarter()
        self._clock = clock
        self._log = log
        self._drain, self._open_calls = Drain(), OpenCalls()
        self._stop_requested, self._hurry = asyncio.Event(), asyncio.Event()
        self._traces, self._tracer = compose.build_traces(settings, clock, log)
        self._metrics = EventMetrics()
        self._emit = emit_to_all([EventLogger(log).handlers(), self._metrics.handlers()])
        factory = compose.ModelFactory(
            Path(settings.state_dir),
            clock,
            self._emit,
            self._drain,
            self._warn_of_fallback_file,
            self._early,
            lambda: self._held.total > self._held.rules.max_bytes // 2,
        )
        self.models = Models([factory.make(settings, model) for model in settings.models])
        self._changes = ModelChanges(self.models, self._metrics.forget_slots, log)
        self._callers, self._lag = compose.build_callers(settings, clock), LoopLag(clock.monotonic)
        self._connections, self._memory = TcpConnections(), MemoryGauge(settings.server.max_waiting_bytes)
        self._held = HeldBytes(compose.held_rules(settings), self._connections, self._memory, self._open_calls)
        more = [open_inference.SERVICE] if settings.server.open_inference else []
        self._readiness = Readiness(self.models, self._drain, settings.health.overall, log, more)
        uses = (self._access, self._callers, self._held, self._memory, self._readiness)
        self._parts = LiveParts(factory, self._changes, *uses)
        self._live = LiveSettings(settings, self._parts, self._drain, clock, log)
        self._started_at = clock.now()
        self.addresses: Addresses | None = None
        self.has_failed = False  # a listener has ended without a request to stop

    @property
    def _settings(self) -> ServerSettings:
        """The settings in use; they change with a reload."""
        return self._live.current

    def request_reload(self) -> None:
        """Take over the settings file as it is now."""
        self._live.reload_requested.set()

    def request_stop(self) -> None:
        """Begin the drain; a second call stops at once."""
        if self._stop_requested.is_set():
            self._hurry.set()
        self._stop_requested.set()

    def _on_failure(self, error: BaseException) -> None:
        """Stop, so that supervisord starts another process: a server that accepts no calls is of no use."""
        self._log.error("listener_failed", exc_info=error)
        self.has_failed = True
        self._stop_requested.set()

    async def run(self) -> None:
        """Serve until a stop is requested, then drain.

        Raises:
            ListenFailed: says what is wrong with an address.
        """
        async with (
            self._send_traces(),
            self._serve_metrics() as metrics_port,
            self._serve_public() as (server, port),
            self._serve_control() as control,
            self._serve_health() as health_port,
        ):
            self.addresses = Addresses(port, control, metrics_port, health_port)
            for manager in self.models.all():
                self._changes.boot(manager)
            self._early.discard_waiting()
            with contextlib.suppress(OSError):  # a full disk
                write_atomic(run_folder(self._settings.state_dir) / SERVER_STARTED, f"{os.getpid()}\n".encode())
            ports = {"port": port, "metrics_port": metrics_port, "health_port": health_port}
            self._log.info("server_started", **ports, pid=os.getpid())
            for sentence in self._access.state(self._clock.now()).warnings:
                self._log.warning("access_warning", detail=sentence)
            async with asyncio.TaskGroup() as tasks:
                background = self._make_background().start(tasks)
                await self._stop_requested.wait()
                await self._drain_calls()
                # Ticks continue for the requests in flight.
                await self._stop(server, self._settings.server.grace_seconds)
                for task in background:
                    task.cancel()

    @contextlib.asynccontextmanager
    async def _send_traces(self) -> AsyncIterator[None]:
        """Spans are sent while it runs, if a collector is configured."""
        if self._traces is None:
            yield
            return
        self._traces.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self._traces.stop)

    async def _drain_calls(self) -> None:
        """Report NOT_SERVING, keep serving for `drain_delay_seconds`, then end streams and health watchers."""
        section = self._settings.server
        self._drain.is_leaving = True
        self._readiness.update()
        unanswered = sum(manager.requests.waiting for manager in self.models.all())
        self._log.info("drain_begun", drain_delay_seconds=section.drain_delay_seconds, unanswered=unanswered)
        if section.drain_delay_seconds and not self.has_failed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), section.drain_delay_seconds)
        self._drain.begin()
        self._readiness.health.close()
        # gRPC cancels calls that arrive while it ends a listener, and clients do not send those again. Now all are
        # refused with UNAVAILABLE: in a moment, those that retry are waiting.
        if not self.has_failed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), REFUSE_SECONDS)

    def _make_background(self) -> BackgroundTasks:
        """What is repeated until the last call has ended."""
        self._early.attach(self._log.info, self._log.warning)
        made = BackgroundTasks(self._log, self._clock)
        made.add("models", self._changes.tick, TICK_SECONDS)
        made.add("readiness", self._readiness.update, TICK_SECONDS)
        made.add("memory", self._tick_memory, lambda: BUSY_TICK_SECONDS if self._held.is_busy else TICK_SECONDS)
        made.add("loop_lag", self._lag.measure)
        made.add("access", self._access.check_files)
        made.add("reload", self._live.reload_when_requested)
        made.add("runners", self._early.tick, RUNNER_TICK_SECONDS)
        made.add("cpu_policy", CpuPolicy(self._clock).update, PAUSE_SECONDS)
        return made

    def _tick_memory(self) -> None:
        self._held.tick(self._clock.monotonic())
        self._memory.trim(self._open_calls.count, self._held.message_bytes)
        self._memory.check()
        self._connections.check()

    @contextlib.asynccontextmanager
    async def _serve_public(self) -> AsyncIterator[tuple[grpc.aio.Server, int]]:
        """The public gRPC server and its port; on exit the runners are stopped."""
        settings, section = self._settings, self._settings.server
        wrap, arguments = self._interceptor(self._held, self._access).wrap, compose.server_arguments(settings)
        server = make_server(wrap, arguments, self._make_handlers(), self._on_failure, self._open_calls)
        listening = parse_address(section.host, section.port)
        self._connections.port = port = add_port(server, listening, self._access.make_credentials)
        await server.start()
        try:
            yield server, port
        finally:
            await server.stop(0)
            seconds = 0.0 if self._hurry.is_set() else STOP_SECONDS
            await self._changes.stop(seconds)
            self._early.close()  # now a fork without an answer ends, and no slot starts another process for it
            self._log.info("server_stopped")

    def _make_handlers(self) -> list[grpc.GenericRpcHandler]:
        """The handlers of the public server."""
        settings = self._settings
        rules = compose.predict_rules(settings)
        facts = status.ServerFacts(
            node=settings.node_name,
            version=installed_version(),
            started_at=self._started_at,
            state_dir=Path(settings.state_dir),
            limits=compose.advertised_limits(settings),
            lag=self._lag,
            dropped_lines=logs.count_dropped_lines,
            access=self._access,
            settings=self._live.facts,
        )
        parts = self._parts
        parts.predict_apis = [
            PredictApi(api, self.models, rules, self._clock, self._emit, self._drain, self._held)
            for api in TASK_APIS.values()
        ]
        parts.status_api = status.StatusApi(self.models, facts, self._clock, self._drain)
        handlers = [
            *(api.handlers() for api in parts.predict_apis),
            parts.status_api.handlers(),
            standard_services.HealthApi(self._readiness.health).handlers(),
        ]
        names = [*PUBLIC_SERVICES, standard_services.HEALTH_SERVICE]
        if settings.server.open_inference:
            names.append(open_inference.SERVICE)
            handlers.append(self._make_open_inference().handlers())
        if settings.server.reflection:
            handlers += standard_services.ReflectionApi(names).handlers()
        return handlers

    def _make_open_inference(self) -> open_inference.OpenInferenceApi:
        tasks = {api.api.task: api for api in self._parts.predict_apis}
        health = self._readiness.health
        return open_inference.OpenInferenceApi(
            tasks, self.models, health, self._held, self._drain, self._clock, self._emit
        )

    async def _stop(self, server: grpc.aio.Server, grace_seconds: float) -> None:
        """End the calls: within the grace period, or at once after a second stop request."""
        self._held.unread.is_stopping = True
        stop = asyncio.create_task(server.stop(grace_seconds))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait((stop, hurry), return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not stop.done():
            await server.stop(0)
        await stop

    @contextlib.asynccontextmanager
    async def _serve_control(self) -> AsyncIterator[str]:
        """The server on the control socket, and its address."""
        path = socket_path(self._settings.state_dir, CONTROL_SOCKET)
        remove_socket(path)
        limits = compose.predict_rules(self._settings).inputs
        api = servicer.ControlApi(self.models, limits, self._clock, self._started_at, self._live.reload)
        self._parts.control_api = api
        handlers = [api.handlers(), standard_services.HealthApi(self._readiness.health).handlers()]
        server = make_server(self._interceptor().wrap, control_arguments(), handlers, self._on_failure)
        mask = os.umask(0o177)
        try:
            server.add_insecure_port(unix_target(path))
            await server.start()
        finally:
            os.umask(mask)
        try:
            yield unix_target(path)
        finally:
            await server.stop(0.5)

    @contextlib.asynccontextmanager
    async def _serve_health(self) -> AsyncIterator[int]:
        """The health port; -1 if it is off."""
        section = self._settings.health
        if section.port < 0:
            yield -1
            return
        handlers = [standard_services.HealthApi(self._readiness.health).handlers()]
        server = make_server(self._interceptor().wrap, health_arguments(), handlers, self._on_failure)
        port = add_port(server, parse_address(section.host, section.port))
        await server.start()
        try:
            yield port
        finally:
            await server.stop(0.5)

    @contextlib.asynccontextmanager
    async def _serve_metrics(self) -> AsyncIterator[int]:
        section = self._settings.server
        ReadingCollector(make_process_reader(installed_version()), self._metrics.registry)
        ReadingCollector(self._reader().read, self._metrics.registry)
        ReadingCollector(self._live.reloader.read_metrics, self._metrics.registry)
        if section.metrics_port < 0:
            yield -1
            return
        address = parse_address(section.metrics_host, section.metrics_port)
        certificate = self._access.certificate if self._settings.tls.metrics else None
        tls = None if certificate is None else ServerContexts(certificate).current
        endpoint = MetricsEndpoint(self._metrics.registry, address, tls=tls)
        endpoint.start()
        try:
            yield endpoint.port
        finally:
            endpoint.stop()

    def _reader(self) -> ServerReader:
        """Reads the metrics that no event counts."""
        return ServerReader(
            models=self.models,
            health=self._readiness.health,
            lag=self._lag,
            is_draining=self._stop_requested.is_set,
            held=self._held,
            access=self._access,
            clock=self._clock,
            state_dir=Path(self._settings.state_dir),
            forks=self._early.fork_server,
        )

    def _interceptor(self, held: HeldBytes | None = None, access: Access | None = None) -> CallInterceptor:
        return CallInterceptor(self._clock, self._emit, self._log_crash, self._callers, held, access, self._tracer)

    def _log_crash(self, where: str, error: BaseException) -> None:
        self._log.error("call_crashed", rpc=where, exc_info=error)

    def _warn_of_fallback_file(self, sentence: str) -> None:
        self._log.warning("cpu_fallback_file_unusable", detail=sentence)


def serve(settings: ServerSettings, early: RunnerStarter) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. No thread may have been started before.

    Args:
        settings: of the server.
        early: runners that were started before.
    """
    set_heap_limits(settings.server.max_waiting_bytes)
    with logs.configure("server", settings.logs.level):
        log = logs.get_logger()
        try:
            return asyncio.run(_run(settings, log, early))
        except ListenFailed as error:
            log.error("server_refused", detail=str(error))
            return ExitCode.BUSY
        except SettingsInvalid as error:
            log.error("server_refused", detail=str(error))
            return ExitCode.WRONG_USE


async def _run(settings: ServerSettings, log: logs.Logger, early: RunnerStarter) -> int:
    server = InferenceServer(settings, SystemClock(), log, early)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.request_stop)
    loop.add_signal_handler(signal.SIGHUP, server.request_reload)
    await server.run()
    return ExitCode.INTERNAL_ERROR if server.has_failed else ExitCode.DONE
