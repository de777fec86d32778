"""supervisord's event listener: logs what happens to the processes and restarts those that run but do not answer.

When the server is given up, the stack ends with its exit code. Any other program that cannot run is only logged.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from common import logs
from common.address import unix_target
from common.clock import SystemClock
from common.exit_codes import ExitCode
from common.paths import CONTROL_SOCKET, HEARTBEAT, SERVER_STARTED, SUPERVISOR_SOCKET
from common.settings import SettingsInvalid, load_settings
from hotslot_watchdog.monitor import (
    HealthProbe,
    HeartbeatProbe,
    LivenessProbe,
    MonitorDependencies,
    ProcessMonitor,
    RestartPolicy,
)
from hotslot_watchdog.settings import StackSettings
from hotslot_watchdog.stack import write_exit_code
from hotslot_watchdog.starts import StartMonitor
from hotslot_watchdog.supervisor import SupervisorEvent, kill_child, list_running, read_events

SERVER, UPDATER = "server", "updater"
_LOG_EVENTS = {
    "PROCESS_STATE_STARTING": "process_started",
    "PROCESS_STATE_EXITED": "process_exited",
    "PROCESS_STATE_BACKOFF": "process_failed_to_start",
    "PROCESS_STATE_FATAL": "process_given_up",
}


def handle_event(event: SupervisorEvent, log: logs.Logger, end_stack: Callable[[int], None]) -> None:
    """Log one event; end the stack if supervisord has given up the server."""
    name = _LOG_EVENTS.get(event.name)
    if name is None:
        return
    program = event.fields.get("processname", "")
    details = {key: event.fields[key] for key in ("pid", "tries", "expected") if key in event.fields}
    write = log.info if name == "process_started" else log.error
    write(name, program=program, **details)
    if name == "process_given_up" and program == SERVER:
        end_stack(ExitCode.INTERNAL_ERROR)


def main() -> int:
    """Handle events until supervisord ends; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hotslot_watchdog",
        description="supervisord's event listener; started by supervisord, see supervisor.conf.",
    )
    parser.add_argument("--run-folder", type=Path, required=True, help="folder for the stack's exit code")
    run_folder = parser.parse_args().run_folder
    supervisord = os.getppid()

    def end_stack(code: int) -> None:
        write_exit_code(run_folder, code)
        if os.getppid() == supervisord:
            os.kill(supervisord, signal.SIGTERM)

    def on_terminate(_number: int, _frame: FrameType | None) -> None:
        sys.exit(0)  # not os._exit: the log is written out first

    signal.signal(signal.SIGTERM, on_terminate)
    with _reserve_stdout() as sink, logs.configure("watchdog", "info", sys.stderr):
        log = logs.get_logger()
        settings = read_settings(log)
        monitor = make_monitor(settings, run_folder, supervisord, log, end_stack)
        starts = StartMonitor(SERVER, run_folder / SERVER_STARTED, settings.watchdog.max_failed_starts)
        for event in read_events(sys.stdin.buffer, sink):
            if starts.has_given_up and event.name == "PROCESS_STATE_FATAL":
                continue  # supervisord gives up after the same start: the stack ends already
            handle_event(event, log, end_stack)
            monitor.handle_event(event)
            if starts.handle_event(event):
                log.error("process_given_up", program=SERVER, failed_starts=starts.failed)
                end_stack(ExitCode.INTERNAL_ERROR)
    return 0


def read_settings(log: logs.Logger) -> StackSettings:
    """The settings; the defaults if the file was changed after the stack had read it, and is wrong now."""
    try:
        return load_settings(StackSettings)
    except SettingsInvalid as error:
        log.error("settings_invalid", detail=str(error))
        return StackSettings.model_construct()


def make_monitor(
    settings: StackSettings, run_folder: Path, supervisord: int, log: logs.Logger, end_stack: Callable[[int], None]
) -> ProcessMonitor:
    """A monitor of server and updater, initialised with the processes that are already running."""

    def kill(pid: int) -> None:
        kill_child(pid, supervisord)

    def give_up(program: str) -> None:
        if program == SERVER:
            end_stack(ExitCode.INTERNAL_ERROR)

    section = settings.watchdog
    probes: dict[str, LivenessProbe] = {
        UPDATER: HeartbeatProbe(run_folder / HEARTBEAT),
        SERVER: HealthProbe(unix_target(run_folder / CONTROL_SOCKET), section.probe_timeout_seconds),
    }
    policy = RestartPolicy(section.initial_delay_seconds, section.failure_threshold, section.max_restarts)
    monitor = ProcessMonitor(MonitorDependencies(probes, policy, SystemClock(), log, kill, give_up))
    try:
        for program, pid in list_running(run_folder / SUPERVISOR_SOCKET):
            if program in probes:
                monitor.set_process(program, pid)
    except OSError as error:
        log.warning("process_list_failed", detail=str(error))
    return monitor


def _reserve_stdout() -> BinaryIO:
    """Standard output for the event protocol alone; what libraries print goes to standard error instead."""
    protocol = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return protocol


if __name__ == "__main__":
    sys.exit(main())
