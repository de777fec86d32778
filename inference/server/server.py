"""The server process: composition root and lifecycle: start, serve, drain, stop.

Run as `python -m inference.server.server`; settings are read from hotslot.toml, see `hotslot config check`.
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from common import logs
from common.clock import Clock, SystemClock
from common.durable import AlreadyRunning, lock_instance
from common.exit_codes import ExitCode
from common.metrics_endpoint import MetricsEndpoint
from common.paths import CONTROL_SOCKET, LIVENESS, SERVER_LOCK, make_run_folder, socket_path
from common.settings import SettingsInvalid, format_mistake, load_settings, use_settings_file
from inference.server import compose
from inference.server.api import address, entailment, health, status
from inference.server.api.interceptors import CallInterceptor
from inference.server.api.reflection import ReflectionApi
from inference.server.control import servicer
from inference.server.health import HealthBoard, LoopLag
from inference.server.metrics import LogObserver, MetricsObserver, tell_all, watch_gauges
from inference.server.model.models import Models
from inference.server.scheduling.admission import Drain
from inference.server.settings import ServerSettings

TICK_SECONDS = 0.05
STOP_SECONDS = 5.0  # for the runners, after the calls have ended


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server listens."""

    port: int
    control: str
    metrics_port: int


class InferenceServer:
    """One server: builds its parts, then `run` serves until it is asked to stop."""

    def __init__(self, settings: ServerSettings, clock: Clock, log: logs.Logger) -> None:
        self._settings = settings
        self._clock = clock
        self._log = log
        self._drain = Drain()
        self._is_stopping = False
        self._asked = asyncio.Event()
        self._hurry = asyncio.Event()
        self._metrics = MetricsObserver()
        self._emit = tell_all([LogObserver(log), self._metrics])
        self.models: Models = compose.build_models(
            settings, clock, self._emit, self._drain, lambda: self._is_stopping, self._complain_of_fallbacks
        )
        self._lag = LoopLag(clock.monotonic)
        self._board = HealthBoard(self._health_names())
        self._started_at = clock.now()
        self.addresses: Addresses | None = None

    def ask_to_stop(self) -> None:
        """Begin the drain; asked twice, stop at once."""
        if self._asked.is_set():
            self._hurry.set()
        self._asked.set()

    async def run(self) -> None:
        """Serve until asked to stop, then drain.

        Raises:
            RuntimeError: a port is taken.
        """
        async with self._serve_metrics() as metrics_port, self._public() as (server, port), self._control() as control:
            self.addresses = Addresses(port, control, metrics_port)
            for commands in self.models.commands():
                reason = commands.boot()
                if reason:
                    self._log.warning("boot_without_model", model=commands.manager.options.model, detail=reason)
            self._log.info("server_started", port=port, metrics_port=metrics_port, pid=os.getpid())
            async with asyncio.TaskGroup() as tasks:
                background = [tasks.create_task(self._tick()), tasks.create_task(self._lag.run())]
                await self._asked.wait()
                await self._drain_calls()
                await self._stop(server, self._settings.server.grace_seconds)  # time goes on for what is in flight
                for task in background:
                    task.cancel()

    async def _drain_calls(self) -> None:
        """Say NOT_SERVING, serve on for a while, then end streams and watchers; calls end in `_public`."""
        section = self._settings.server
        self._drain.is_leaving = True
        self._post_health()
        self._log.info("drain_begun", drain_delay_seconds=section.drain_delay_seconds)
        if section.drain_delay_seconds:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), section.drain_delay_seconds)
        self._drain.begun.set()
        self._board.end()

    async def _tick(self) -> None:
        while True:
            for manager in self.models.all():
                manager.tick()
            self._post_health()
            await asyncio.sleep(TICK_SECONDS)

    @contextlib.asynccontextmanager
    async def _public(self) -> AsyncIterator[tuple[grpc.aio.Server, int]]:
        """The server that callers meet, and its port; on the way out the runners end."""
        settings, section = self._settings, self._settings.server
        server = grpc.aio.server(interceptors=[self._interceptor()], options=compose.server_options(settings))
        rules = compose.predict_rules(settings)
        facts = status.ServerFacts(
            node=settings.node_name,
            version=version(),
            started_at=self._started_at,
            state_dir=Path(settings.state_dir),
            limits=compose.told_limits(settings),
            lag=self._lag,
            dropped_lines=logs.count_dropped_lines,
        )
        handlers = [
            entailment.EntailmentApi(self.models, rules, self._clock, self._emit, self._drain).handlers(),
            address.AddressApi().handlers(),
            status.StatusApi(self.models, facts, self._clock, self._drain).handlers(),
            health.HealthApi(self._board).handlers(),
        ]
        if section.reflection:
            handlers.append(ReflectionApi([*_public_services(), health.SERVICE]).handlers())
        server.add_generic_rpc_handlers(tuple(handlers))
        port = server.add_insecure_port(f"{section.host}:{section.port}")
        await server.start()
        try:
            yield server, port
        finally:
            await server.stop(0)
            self._is_stopping = True
            seconds = 0.0 if self._hurry.is_set() else STOP_SECONDS
            await asyncio.gather(*(commands.stop(seconds) for commands in self.models.commands()))
            self._log.info("server_stopped")

    async def _stop(self, server: grpc.aio.Server, grace_seconds: float) -> None:
        """End the calls: within the grace, or at once when asked to hurry."""
        stop = asyncio.create_task(server.stop(grace_seconds))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait((stop, hurry), return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not stop.done():
            await server.stop(0)
        await stop

    @contextlib.asynccontextmanager
    async def _control(self) -> AsyncIterator[str]:
        """The control socket."""
        path = socket_path(self._settings.state_dir, CONTROL_SOCKET)
        path.unlink(missing_ok=True)  # a killed server left it; the lock is ours
        server = grpc.aio.server(
            interceptors=[self._interceptor()], options=[("grpc.max_receive_message_length", 32 << 20)]
        )
        limits = compose.predict_rules(self._settings).inputs
        api = servicer.ControlApi(self.models, limits, self._clock, self._started_at)
        server.add_generic_rpc_handlers((api.handlers(),))
        mask = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{path}")
            await server.start()
        finally:
            os.umask(mask)
        try:
            yield f"unix:{path}"
        finally:
            await server.stop(0.5)

    @contextlib.asynccontextmanager
    async def _serve_metrics(self) -> AsyncIterator[int]:
        section = self._settings.server
        gauges = {
            "hotslot_draining": ("Whether the server is about to end.", lambda: float(self._asked.is_set())),
            "hotslot_log_lines_dropped": ("Log lines nobody read in time.", lambda: float(logs.count_dropped_lines())),
            "hotslot_loop_lag_seconds": ("Longest hold-up of the loop.", lambda: self._lag.worst_seconds),
            "hotslot_queue_requests": (
                "Accepted requests without an answer.",
                lambda: float(sum(manager.waiting for manager in self.models.all())),
            ),
        }
        watch_gauges(self._metrics.registry, gauges)
        if section.metrics_port < 0:
            yield -1
            return
        endpoint = MetricsEndpoint(self._metrics.registry, section.metrics_host, section.metrics_port)
        try:
            endpoint.start()
        except OSError as error:
            raise RuntimeError(f"the metrics port cannot be listened on: {error.strerror}") from error
        try:
            yield endpoint.port
        finally:
            endpoint.stop()

    def _interceptor(self) -> CallInterceptor:
        return CallInterceptor(self._clock, self._emit, self._report)

    def _report(self, where: str, error: BaseException) -> None:
        self._log.error("call_crashed", rpc=where, exc_info=error)

    def _complain_of_fallbacks(self, sentence: str) -> None:
        self._log.warning("fallbacks_not_kept", detail=sentence)

    def _health_names(self) -> list[str]:
        models = [manager.options.model for manager in self.models.all()]
        return ["", LIVENESS, *_public_services(), *models]

    def _post_health(self) -> None:
        """The truth as it is now: readiness of each model, of each service, of all."""
        is_leaving = self._drain.is_leaving
        managers = self.models.all()
        ready = {manager.options.model: manager.roles.is_ready() and not is_leaving for manager in managers}
        is_all = all(ready.values())
        entailment_models = [
            manager.options.model for manager in managers if manager.options.task.value == "visual-entailment"
        ]
        states = {
            **ready,
            "": is_all,
            entailment.SERVICE: bool(entailment_models) and all(ready[model] for model in entailment_models),
            address.SERVICE: False,
            status.SERVICE: not is_leaving,
            LIVENESS: not any(manager.recovery.has_given_up for manager in managers),
        }
        for name, state in self._board.post(states):
            self._log.info("health_changed", service=name, serving=state)


def version() -> str:
    """The installed version of hotslot."""
    try:
        return importlib.metadata.version("hotslot")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def main() -> int:
    """Serve until a signal; the exit code says what was wrong, if anything was."""
    parser = argparse.ArgumentParser(
        prog="python -m inference.server.server",
        description="The gRPC server of hotslot. It is started by supervisord; see `hotslot serve`.",
    )
    parser.add_argument("--config", type=Path, help="settings file (default: HOTSLOT_CONFIG or ./hotslot.toml)")
    options = parser.parse_args()
    if options.config is not None:
        use_settings_file(options.config)
    try:
        settings = load_settings(ServerSettings)
        socket_path(settings.state_dir, CONTROL_SOCKET)
    except SettingsInvalid as error:
        for mistake in error.mistakes:
            print(format_mistake(mistake), file=sys.stderr)  # noqa: T201  before there is a log
        return ExitCode.WRONG_USE
    with logs.configure("server", settings.logs.level):
        return _serve(settings, logs.get_logger())


def _serve(settings: ServerSettings, log: logs.Logger) -> int:
    folder = make_run_folder(settings.state_dir)
    try:
        with lock_instance(folder / SERVER_LOCK):
            asyncio.run(_run(settings, log))
    except AlreadyRunning:
        log.error("server_refused", detail="another server runs on this state_dir")
        return ExitCode.BUSY
    except RuntimeError as error:
        log.error("server_refused", detail=str(error))
        return ExitCode.BUSY
    return 0


async def _run(settings: ServerSettings, log: logs.Logger) -> None:
    server = InferenceServer(settings, SystemClock(), log)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.ask_to_stop)
    await server.run()


def _public_services() -> list[str]:
    return [entailment.SERVICE, address.SERVICE, status.SERVICE]


if __name__ == "__main__":
    sys.exit(main())
