"""The updater process: one thread for each model, a gRPC server for operators, a heartbeat for the watchdog.

Exit codes:
    0    stopped by a signal
    2    invalid settings
    75   another updater uses this state_dir, or a socket or port cannot be opened

If the journal cannot be trusted the process keeps running: it changes nothing and reports this in its status, and the
server keeps serving. A model whose loop cannot be built is tried again, beside the loops of the others; they run also
while it hangs.
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc

from common import logs
from common.address import parse_address, remove_socket, unix_target
from common.clock import Clock, SystemClock
from common.durable import AlreadyRunning, lock_instance
from common.exit_codes import ExitCode
from common.exposure import METRICS_STEP, describe_exposure
from common.failure_log import start_repeating
from common.metric_catalog import Reading
from common.metrics import ReadingCollector, create_registry
from common.metrics_endpoint import MetricsEndpoint
from common.paths import HEARTBEAT, UPDATER_LOCK, UPDATES_SOCKET, make_run_folder, run_folder
from common.process_metrics import installed_version, make_process_reader
from common.reload import FileUnusable
from common.settings import Mistake, SettingsInvalid, load_settings, use_settings_file
from common.settings_reload import ReadSettings, SettingsReloader
from common.stop_signals import RepeatedSignal, StopSignals
from common.tls import ServerContexts, watch_certificate
from hotslot.control.v1 import control_pb2
from hotslot.status.v1 import status_pb2
from updater.compose import Conversion, UpdaterDependencies
from updater.core.ports import JournalUnusable
from updater.loop import CrashPoints
from updater.metric_catalog import GOLDEN_SET, LOOP_RUNNING
from updater.metrics import BroadcastObserver, LogObserver, MetricsObserver, Observer
from updater.models import UpdatedModels, settings_of_models
from updater.service import convert
from updater.service.callers import WORKERS
from updater.service.golden import GoldenApi, GoldenPlace
from updater.service.health import UpdaterHealth
from updater.service.servicer import SettingsCalls, UpdatesApi
from updater.settings import JOURNAL_NAME, UpdaterSettings, check_names, read_crash_point
from updater.store.bundles import StoreOptions
from updater.store.database import JournalNotWritten, JournalUnreadable
from updater.store.journal import Journal
from updater.store.staging import StagingLimits
from updater.store.state_folder import check_state_dir, read_provenance
from updater.store.transfer import PaceRules
from updater.trace_observer import TraceObserver, open_exporter
from updater.webhooks.metrics import DeliveryReporter
from updater.webhooks.service import Webhooks

HEARTBEAT_SECONDS = 2.0
STOP_SECONDS = 5.0  # then a reload, or threads, that have not ended are abandoned
JOURNAL_PAUSE_SECONDS = 5.0  # between two attempts to create the journal
_MAX_MESSAGE_BYTES = 17 << 20  # a golden item with its picture


class Updater:
    """Keeps the configured models of one state folder up to date."""

    def __init__(
        self, settings: UpdaterSettings, clock: Clock, log: logs.Logger, conversion: Conversion | None = None
    ) -> None:
        """Open nothing yet.

        Args:
            settings: validated.
            clock: of all parts.
            log: of the process.
            conversion: how sources are converted; default: by the shipped converter.
        """
        self._clock = clock
        self._log = log
        self._conversion = conversion or Conversion()
        self._state = Path(settings.state_dir).absolute()
        self._run_folder = run_folder(self._state)
        self._registry = create_registry()
        ReadingCollector(make_process_reader(installed_version()), self._registry)
        metrics = MetricsObserver(self._registry)
        self._traces = open_exporter(settings.traces, log)
        traced = [] if self._traces is None else [TraceObserver(self._traces.put)]
        self._observer: Observer = BroadcastObserver(LogObserver(log), metrics, *traced)
        hooks = settings.updater.webhooks
        reporter = DeliveryReporter(log, self._registry, tuple(one.shown_name for one in hooks))
        self._webhooks = Webhooks(hooks, reporter, clock)
        self._stopping = threading.Event()
        self._journal: Journal | None = None
        self._unreadable: JournalUnreadable | None = None
        self._crash = CrashPoints(read_crash_point())
        self._models = UpdatedModels(log, clock, self._observer, self._stop_updates, metrics.forget)
        self._reloader = SettingsReloader(settings, read_settings, log, clock, settings_of_models)
        self._reload_lock = threading.Lock()
        self._has_started = False  # whether the loops were built and started; changes under the lock above
        self._starting_fault = ""  # why the journal could not be opened yet
        ReadingCollector(self._read_models, self._registry)
        ReadingCollector(self._reloader.read_metrics, self._registry)

    def request_stop(self) -> None:
        """Stop in good order; a long step is interrupted. From any thread, not from a signal handler."""
        self._stopping.set()
        self._models.request_stop()

    def run(self) -> None:
        """Run until `request_stop` is called.

        Raises:
            OSError: the socket or the metrics port cannot be opened.
            SettingsInvalid: the certificate of the metrics port cannot be used.
        """
        with self._serve_operators(), self._serve_metrics():
            if self._traces is not None:
                self._traces.start()
            self._log.info("updater_started", models=sorted(self._reloader.settings.updater.models), pid=os.getpid())
            self._start()
            while not self._stopping.is_set():
                self._write_heartbeat()
                self._stopping.wait(HEARTBEAT_SECONDS)
            self._stop()
            if self._traces is not None:
                self._traces.stop()
        self._log.info("updater_stopped")

    def _start(self) -> None:
        """Open the journal and start the threads; none if the journal cannot be trusted."""
        try:
            journal = self._open_journal()
            if journal is None:
                return
            with self._reload_lock:  # a reload would build and start loops beside these
                self._models.build(self._dependencies(self._reloader.settings, journal))
                self._webhooks.start(journal.outbox)
                self._models.start()
                self._has_started = True
        except JournalUnusable as error:
            self._stop_updates(error)

    def _open_journal(self) -> Journal | None:
        """Open or create the journal, retrying while the disk is full; None if the process stops meanwhile.

        Raises:
            JournalUnreadable: the journal exists but cannot be trusted.
        """
        while not self._stopping.is_set():
            try:
                subscribers = self._webhooks.subscribers(self._reloader.settings.node)
                path = self._state / JOURNAL_NAME
                self._journal = Journal(path, subscribers=subscribers, report=partial(self._observer.report_error, ""))
            except JournalNotWritten as error:
                self._starting_fault = str(error)
                self._observer.report_error("", "journal_not_written", str(error))
                self._write_heartbeat()
                self._stopping.wait(JOURNAL_PAUSE_SECONDS)
            else:
                self._starting_fault = ""
                return self._journal
        return None

    def _dependencies(self, settings: UpdaterSettings, journal: Journal) -> UpdaterDependencies:
        section = settings.updater
        pace = PaceRules(section.hub_min_bytes_a_second)
        limits = StagingLimits(section.reserve_bytes, pace, computes_hashes=section.missing_hashes == "compute")
        return UpdaterDependencies(
            settings=settings,
            run_folder=self._run_folder,
            journal=journal,
            store=StoreOptions(self._state, limits),
            clock=self._clock,
            observer=self._observer,
            crash=self._crash,
            stopping=self._stopping,
            conversion=self._conversion,
        )

    @property
    def _names(self) -> tuple[str, ...]:
        """The configured models, in order."""
        return tuple(settings_of_models(self._reloader.settings))

    def reload(self, *, check_only: bool = False) -> control_pb2.SettingsReload:
        """Take over the settings file as it is now, whole or not at all; `check_only`: say what would be."""
        with self._reload_lock:
            found = self._reloader.read()
            refusal = found.refusal
            if not refusal and self._stopping.is_set():
                refusal = "the updater stops; it reads the file when it is started again"
            elif not refusal and self._unreadable is not None:
                refusal = "updates do not run; the updater reads the file when it is started again"
            elif not refusal and not self._has_started:
                refusal = "the updater is starting, with the settings as they were; reload again when updates run"
            if refusal and not check_only:
                self._reloader.refuse(found, refusal)
            if not refusal and not check_only and found.settings is not None and self._journal is not None:
                refusal = self._apply(found, self._dependencies(found.settings, self._journal))
            return control_pb2.SettingsReload(**found.as_fields(refusal, is_applied=not refusal and not check_only))

    def _apply(self, found: ReadSettings[UpdaterSettings], dependencies: UpdaterDependencies) -> str:
        """Take over settings; returns why they were not."""
        try:
            self._models.apply(dependencies, found.plan, partial(self._reloader.accept, found))
        except JournalUnusable as error:
            self._stop_updates(error)
            refusal = str(error)
        except Exception as error:  # noqa: BLE001  whatever a new loop needs and does not find
            refusal = f"the loop of an added model cannot be built: {error or type(error).__name__}"
        else:
            return ""
        self._reloader.refuse(found, refusal)
        return refusal

    def _settings_status(self) -> status_pb2.SettingsStatus:
        return convert.to_settings_status(self._reloader.state)

    def _loop_states(self) -> dict[str, bool]:
        """For each model whether its loop runs; False while the journal cannot be trusted or is not open yet."""
        running = self._models.running()
        return {name: self._unreadable is None and running.get(name, False) for name in self._names}

    def _read_models(self) -> list[Reading]:
        sections = self._reloader.settings.updater.models
        return [
            Reading(LOOP_RUNNING, {(name,): float(is_so) for name, is_so in self._loop_states().items()}),
            Reading(GOLDEN_SET, {(name,): float(sections[name].golden is not None) for name in self._names}),
        ]

    def _stop_updates(self, error: JournalUnusable) -> None:
        """Stop all updates, because the journal cannot be trusted; the server keeps serving."""
        self._unreadable = error if isinstance(error, JournalUnreadable) else JournalUnreadable(str(error))
        self._models.request_stop()
        name = self._unreadable.reason.lower()  # "journal_unreadable" or "journal_lost"
        self._observer.report_error("", name, f"{error}; {self._unreadable.advice}")

    def _get_journal(self) -> Journal:
        if self._unreadable is not None:
            raise self._unreadable
        if self._journal is None:
            raise JournalNotWritten(self._starting_fault or "the journal is not open yet")
        return self._journal

    def _write_heartbeat(self) -> None:
        """Touch the file that the watchdog checks, unless a step of a model exceeds its time limit."""
        if self._unreadable is not None or self._models.is_moving():
            with contextlib.suppress(OSError):
                (self._run_folder / HEARTBEAT).touch()

    def _stop(self) -> None:
        # A reload in progress may start loops, and reads the journal; each later one is refused.
        is_alone = self._reload_lock.acquire(timeout=STOP_SECONDS)
        if is_alone:
            self._reload_lock.release()
        self.request_stop()
        have_ended = self._models.await_end(STOP_SECONDS)
        self._webhooks.stop()
        self._models.close()
        if self._journal is not None and is_alone and have_ended:
            self._journal.close()

    @contextlib.contextmanager
    def _serve_operators(self) -> Iterator[None]:
        provenance = partial(read_provenance, self._state)
        settings = SettingsCalls(lambda: self._names, self._settings_status, self.reload)
        api = UpdatesApi(
            lambda model: None if self._unreadable is not None else self._models.handle_of(model),
            settings,
            self._get_journal,
            provenance,
            self._log,
            GoldenApi(self._golden_places, self._log),
            lambda model: self._starting_fault or self._models.fault_of(model),
            self._state,
        )
        options = [("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)]
        server = grpc.server(ThreadPoolExecutor(WORKERS, "operator"), options=options)
        server.add_generic_rpc_handlers((api.handlers(), UpdaterHealth(self._loop_states).handlers()))
        path = self._run_folder / UPDATES_SOCKET
        remove_socket(path)
        mask = os.umask(0o177)
        try:
            server.add_insecure_port(unix_target(path))
            server.start()
        finally:
            os.umask(mask)
        try:
            yield
        finally:
            server.stop(0.5).wait()

    def _golden_places(self) -> dict[str, GoldenPlace]:
        """The golden sets by the settings in force; operators read them beside each model's thread."""
        settings, found = self._reloader.settings, {}
        for model in settings.models:
            section = settings.updater.models.get(model.name)
            if section is not None:
                found[model.name] = GoldenPlace(section.golden, model.task, section.golden_min_accuracy)
        return found

    @contextlib.contextmanager
    def _serve_metrics(self) -> Iterator[None]:
        section = self._reloader.settings.updater
        if section.metrics_port < 0:
            yield
            return
        address = parse_address(section.metrics_host, section.metrics_port)
        files = self._reloader.settings.tls.metrics_files
        for sentence in describe_exposure("the metrics port", address, METRICS_STEP, has_tls=files is not None):
            self._log.warning("access_warning", detail=sentence)
        try:
            certificate = None if files is None else watch_certificate(files, self._log, self._clock)
        except FileUnusable as error:
            raise SettingsInvalid([Mistake("tls", str(error))]) from error
        tls = None if certificate is None else ServerContexts(certificate).current
        endpoint = MetricsEndpoint(self._registry, address, self._clock, tls)
        endpoint.start()
        try:
            yield
        finally:
            endpoint.stop()


def read_settings() -> UpdaterSettings:
    """Read and check the settings of the updater.

    Raises:
        SettingsInvalid: has all mistakes.
    """
    settings = load_settings(UpdaterSettings)
    check_names(settings)
    check_state_dir(settings)
    return settings


def main(conversion: Conversion | None = None) -> int:
    """Run until a signal; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m updater.daemon",
        description="Keeps the configured models up to date. Started by supervisord; see `hotslot serve`.",
    )
    parser.add_argument("--config", type=Path, help="settings file (default: HOTSLOT_CONFIG or ./hotslot.toml)")
    options = parser.parse_args()
    if options.config is not None:
        use_settings_file(options.config)
    try:
        settings = read_settings()
        folder = make_run_folder(settings.state_dir)
    except SettingsInvalid as error:
        for mistake in error.mistakes:
            print(f"{mistake.key}: {mistake.message}", file=sys.stderr)  # noqa: T201  the log is not configured yet
        return ExitCode.WRONG_USE
    with logs.configure("updater", settings.logs.level):
        return _run(settings, folder, logs.get_logger(), conversion)


def _run(settings: UpdaterSettings, folder: Path, log: logs.Logger, conversion: Conversion | None) -> int:
    try:
        with lock_instance(folder / UPDATER_LOCK):
            updater = Updater(settings, SystemClock(), log, conversion)
            signals = StopSignals((signal.SIGTERM, signal.SIGINT))  # caught until the process ends

            def stop() -> None:
                signals.wait()
                updater.request_stop()

            threading.Thread(target=stop, name="stop-signals", daemon=True).start()
            hang_up = RepeatedSignal(signal.SIGHUP)

            def reload() -> None:
                hang_up.wait()
                updater.reload()

            start_repeating("reload-signal", reload, log)
            updater.run()
    except AlreadyRunning:
        log.error("updater_refused", detail="another updater runs on this state_dir")
        return ExitCode.BUSY
    except (OSError, RuntimeError) as error:
        log.error("updater_refused", detail=str(error))
        return ExitCode.BUSY
    except SettingsInvalid as error:
        log.error("updater_refused", detail=str(error))
        return ExitCode.WRONG_USE
    return 0


if __name__ == "__main__":
    sys.exit(main())
