"""The updater: composition root and lifecycle. One thread a model, one server for operators, one beat for the watchdog.

    0    it was asked to end
    2    the settings are wrong
    75   another updater runs on this state_dir

A journal that cannot be trusted does not end it: nothing is changed, status says so, and serving goes on.
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType

import grpc

from common import logs
from common.clock import Clock, SystemClock
from common.durable import AlreadyRunning, lock_instance
from common.exit_codes import ExitCode
from common.metrics_endpoint import MetricsEndpoint
from common.paths import HEARTBEAT, UPDATER_LOCK, UPDATES_SOCKET, make_run_folder, run_folder
from common.settings import SettingsInvalid, load_settings, use_settings_file
from updater.compose import Common, Conversion, Model, build_model
from updater.core.ports import JournalUnusable
from updater.core.record import ModelRecord
from updater.loop import CrashPoints
from updater.metrics import LogObserver, MetricsObserver, Observer, ToAll, create_registry
from updater.service.servicer import Served, UpdatesApi
from updater.settings import JOURNAL_NAME, UpdaterSettings, armed_crash_point, check_names
from updater.store.bundles import StoreOptions
from updater.store.database import JournalNotWritten, JournalUnreadable
from updater.store.journal import Journal
from updater.store.staging import StagingLimits
from updater.store.state_folder import check_state_dir, read_provenance
from updater.store.transfer import PaceRules
from updater.webhooks.metrics import DeliveryReporter
from updater.webhooks.service import Webhooks


def end_children() -> None:
    """Kill them; whoever waits for one sees it end."""
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError, ValueError):
            for pid in (task / "children").read_text().split():
                os.kill(int(pid), signal.SIGKILL)


BEAT_SECONDS = 2.0
STOP_SECONDS = 5.0  # until threads that do not stop are left behind
JOURNAL_PAUSE_SECONDS = 5.0  # between two tries to make a journal
_WORKERS = 8
_MAX_MESSAGE_BYTES = 1 << 20


class Updater:
    """All of it, for one state folder."""

    def __init__(
        self, settings: UpdaterSettings, clock: Clock, log: logs.Logger, conversion: Conversion | None = None
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            settings: checked.
            clock: tells the time to all parts.
            log: told what happens.
            conversion: how bundles are made; default: the shipped way.
        """
        self._settings = settings
        self._clock = clock
        self._log = log
        self._conversion = conversion or Conversion()
        self._state = Path(settings.state_dir).absolute()
        self._run_folder = run_folder(self._state)
        self._registry = create_registry()
        self._observer: Observer = ToAll(LogObserver(log), MetricsObserver(self._registry))
        hooks = settings.updater.webhooks
        reporter = DeliveryReporter(log, self._registry, tuple(one.shown_name for one in hooks))
        self._webhooks = Webhooks(hooks, reporter, clock)
        self._stopping = threading.Event()
        self._journal: Journal | None = None
        self._unreadable: JournalUnreadable | None = None
        self._models: dict[str, Model] = {}
        self._served: dict[str, Served] = {}

    def ask_to_stop(self) -> None:
        """End in order: a step that takes long is broken off."""
        self._stopping.set()
        for model in self._models.values():
            model.wake.set()

    def run(self) -> None:
        """References the models up to date until asked to stop.

        Raises:
            OSError: the socket or the metrics port cannot be had.
        """
        with self._served_to_operators(), self._serve_metrics():
            self._log.info("updater_started", models=sorted(self._settings.updater.models), pid=os.getpid())
            threads = self._start()
            while not self._stopping.is_set():
                self._beat()
                self._stopping.wait(BEAT_SECONDS)
            self._end(threads)
        self._log.info("updater_stopped")

    def _start(self) -> list[threading.Thread]:
        """Open the journal and start the models' threads; none if it cannot be trusted."""
        try:
            journal = self._open_journal()
            if journal is not None:
                self._build(journal)
                self._webhooks.start(journal.outbox)
        except JournalUnusable as error:
            self._distrust(error)
            return []
        threads = [
            threading.Thread(target=self._run_model, args=(name, model), name=f"model-{name}", daemon=True)
            for name, model in self._models.items()
        ]
        for thread in threads:
            thread.start()
        return threads

    def _open_journal(self) -> Journal | None:
        """Open it, or make it; a full disk is waited for. None if asked to stop meanwhile.

        Raises:
            JournalUnreadable: it is there, and cannot be trusted.
        """
        while not self._stopping.is_set():
            try:
                subscribers = self._webhooks.subscribers(self._settings.node)
                self._journal = Journal(self._state / JOURNAL_NAME, subscribers=subscribers)
            except JournalNotWritten as error:
                self._observer.troubled("", "journal_not_written", str(error))
                self._beat()
                self._stopping.wait(JOURNAL_PAUSE_SECONDS)
            else:
                return self._journal
        return None

    def _build(self, journal: Journal) -> None:
        common = Common(
            settings=self._settings,
            run_folder=self._run_folder,
            journal=journal,
            shared=StoreOptions(self._state, self._limits(), frozenset(self._settings.updater.known_sections)),
            clock=self._clock,
            observer=self._observer,
            crash=CrashPoints(armed_crash_point()),
            stopping=self._stopping,
            conversion=self._conversion,
        )
        configured = [model for model in self._settings.models if model.name in self._settings.updater.models]
        models = {one.name: build_model(common, one, self._records) for one in configured}
        self._models.update(models)
        self._served.update(
            {name: Served(model.loop.publisher, model.commands, model.progress) for name, model in models.items()}
        )

    def _limits(self) -> StagingLimits:
        section = self._settings.updater
        return StagingLimits(section.reserve_bytes, PaceRules(section.hub_min_bytes_a_second))

    def _run_model(self, name: str, model: Model) -> None:
        try:
            model.loop.run()
        except JournalUnusable as error:
            self._distrust(error)
        except Exception as error:  # noqa: BLE001  a bug: the others go on, and the watchdog sees no beat
            self._log.error("loop_crashed", model=name, exc_info=error)

    def _distrust(self, error: JournalUnusable) -> None:
        """Change nothing any more; say so, and let the server serve on."""
        self._unreadable = error if isinstance(error, JournalUnreadable) else JournalUnreadable(str(error))
        self._served.clear()
        self._log.error("journal_unreadable", detail=str(error))
        self._observer.troubled("", "journal_unreadable", str(error))

    def _trusted_journal(self) -> Journal:
        if self._unreadable is not None:
            raise self._unreadable
        if self._journal is None:
            raise JournalUnreadable("the journal is not open yet")
        return self._journal

    def _records(self) -> dict[str, ModelRecord]:
        return {name: model.loop.publisher.snapshot.record for name, model in self._models.items()}

    def _beat(self) -> None:
        """Touch the file that the watchdog looks at, while every model's step is within its limits."""
        if self._unreadable is not None or all(model.loop.is_moving() for model in self._models.values()):
            with contextlib.suppress(OSError):
                (self._run_folder / HEARTBEAT).touch()

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        self.ask_to_stop()
        ends = self._clock.monotonic() + STOP_SECONDS
        while any(thread.is_alive() for thread in threads) and self._clock.monotonic() < ends:
            end_children()  # a conversion that is cut off is done again
            for thread in threads:
                thread.join(0.2)
        self._webhooks.stop()
        for model in self._models.values():
            model.close()
        if self._journal is not None and not any(thread.is_alive() for thread in threads):
            self._journal.close()

    @contextlib.contextmanager
    def _served_to_operators(self) -> Iterator[None]:
        names = tuple(model.name for model in self._settings.models if model.name in self._settings.updater.models)
        provenance = partial(read_provenance, self._state)
        api = UpdatesApi(self._served, names, self._trusted_journal, provenance, self._log)
        options = [("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)]
        server = grpc.server(ThreadPoolExecutor(_WORKERS, "operator"), options=options)
        server.add_generic_rpc_handlers((api.handlers(),))
        path = self._run_folder / UPDATES_SOCKET
        path.unlink(missing_ok=True)  # a killed updater left it; the lock is ours
        mask = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{path}")
            server.start()
        finally:
            os.umask(mask)
        try:
            yield
        finally:
            server.stop(0.5).wait()

    @contextlib.contextmanager
    def _serve_metrics(self) -> Iterator[None]:
        section = self._settings.updater
        if section.metrics_port < 0:
            yield
            return
        endpoint = MetricsEndpoint(self._registry, section.metrics_host, section.metrics_port)
        endpoint.start()
        try:
            yield
        finally:
            endpoint.stop()


def main(conversion: Conversion | None = None) -> int:
    """Run until a signal; the exit code says what was wrong, if anything was."""
    parser = argparse.ArgumentParser(
        prog="python -m updater.daemon",
        description="Keeps the models up to date. It is started by supervisord; see `hotslot serve`.",
    )
    parser.add_argument("--config", type=Path, help="settings file (default: HOTSLOT_CONFIG or ./hotslot.toml)")
    options = parser.parse_args()
    if options.config is not None:
        use_settings_file(options.config)
    try:
        settings = load_settings(UpdaterSettings)
        check_names(settings)
        check_state_dir(settings)
    except SettingsInvalid as error:
        for mistake in error.mistakes:
            print(f"{mistake.key}: {mistake.message}", file=sys.stderr)  # noqa: T201  before there is a log
        return ExitCode.WRONG_USE
    with logs.configure("updater", settings.logs.level):
        return _serve(settings, logs.get_logger(), conversion)


def _serve(settings: UpdaterSettings, log: logs.Logger, conversion: Conversion | None) -> int:
    folder = make_run_folder(settings.state_dir)
    try:
        with lock_instance(folder / UPDATER_LOCK):
            updater = Updater(settings, SystemClock(), log, conversion)

            def stop(_number: int, _frame: FrameType | None) -> None:
                updater.ask_to_stop()

            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, stop)
            updater.run()
    except AlreadyRunning:
        log.error("updater_refused", detail="another updater runs on this state_dir")
        return ExitCode.BUSY
    except (OSError, RuntimeError) as error:
        log.error("updater_refused", detail=str(error))
        return ExitCode.BUSY
    return 0


if __name__ == "__main__":
    sys.exit(main())
