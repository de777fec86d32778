"""supervisord's event listener: tells what happens to the processes, and starts anew what runs without answering.

Only the server's end for good is the stack's end: anything else that cannot run is told and costs no answer.
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
from common.clock import SystemClock
from common.exit_codes import ExitCode
from common.paths import HEARTBEAT, SUPERVISOR_SOCKET
from common.settings import SettingsInvalid, load_settings
from hotslot_watchdog import stack
from hotslot_watchdog.protocol import Event, events
from hotslot_watchdog.settings import StackSettings
from hotslot_watchdog.watch import Asked, FileTouched, Patience, ServerProbe, Watch, WatchParts, end_child, running

SERVER, UPDATER = "server", "updater"
_TOLD = {
    "PROCESS_STATE_STARTING": "process_started",
    "PROCESS_STATE_EXITED": "process_exited",
    "PROCESS_STATE_BACKOFF": "process_failed_to_start",
    "PROCESS_STATE_FATAL": "process_given_up",
}


def handle(event: Event, log: logs.Logger, end_stack: Callable[[int], None]) -> None:
    """Tell one event; if the server is given up, end the stack."""
    name = _TOLD.get(event.name)
    if name is None:
        return
    program = event.fields.get("processname", "")
    details = {key: event.fields[key] for key in ("pid", "tries", "expected") if key in event.fields}
    tell = log.info if name == "process_started" else log.error
    tell(name, program=program, **details)
    if name == "process_given_up" and program == SERVER:
        end_stack(ExitCode.INTERNAL_ERROR)


def main() -> int:
    """Listen until supervisord is gone."""
    parser = argparse.ArgumentParser(prog="python -m hotslot_watchdog", description="supervisord's event listener.")
    parser.add_argument("--run-folder", type=Path, required=True, help="folder where the exit code is left")
    run_folder = parser.parse_args().run_folder
    supervisord = os.getppid()

    def end_stack(code: int) -> None:
        stack.leave(run_folder, code)
        if os.getppid() == supervisord:
            os.kill(supervisord, signal.SIGTERM)

    def leave(_number: int, _frame: FrameType | None) -> None:
        sys.exit(0)  # in order, so that what was told last is written

    signal.signal(signal.SIGTERM, leave)
    with _protocol_output() as sink, logs.configure("watchdog", "info", sys.stderr):
        log = logs.get_logger()
        watch = make_watch(run_folder, supervisord, log, end_stack)
        for event in events(sys.stdin.buffer, sink):
            handle(event, log, end_stack)
            watch.see(event)
    return 0


def make_watch(run_folder: Path, supervisord: int, log: logs.Logger, end_stack: Callable[[int], None]) -> Watch:
    """Put the watch together; what runs already is known to it."""

    def kill(pid: int) -> None:
        end_child(pid, supervisord)

    def give_up(program: str) -> None:
        if program == SERVER:
            end_stack(ExitCode.INTERNAL_ERROR)

    try:
        settings = load_settings(StackSettings)
    except SettingsInvalid as error:  # the stack has read them well: they were changed since
        log.error("settings_invalid", detail=str(error))
        settings = StackSettings.model_construct()
    rules = settings.watchdog
    asked: dict[str, Asked] = {UPDATER: FileTouched(run_folder / HEARTBEAT)}
    if settings.server.address is not None:
        asked[SERVER] = ServerProbe(settings.server.address, rules.answer_seconds)
    patience = Patience(rules.grace_seconds, rules.misses, rules.restarts)
    watch = Watch(WatchParts(asked, patience, SystemClock(), log, kill, give_up))
    try:
        for program, pid in running(run_folder / SUPERVISOR_SOCKET):
            if program in asked:
                watch.note(program, pid)
    except OSError as error:
        log.warning("roll_call_failed", detail=str(error))
    return watch


def _protocol_output() -> BinaryIO:
    """Standard output for the protocol alone: one stray line of a library's would be its end."""
    protocol = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return protocol


if __name__ == "__main__":
    sys.exit(main())
