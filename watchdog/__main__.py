"""supervisord's event listener: tells what happens to the processes, and ends the stack when the front is given up.

Only the front's end for good is the stack's end: anything else that cannot run is told and costs no answer.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from common import logs
from watchdog import exit_code
from watchdog.protocol import Event, events

FRONT = "front"
_TOLD = {
    "PROCESS_STATE_STARTING": "process_started",
    "PROCESS_STATE_EXITED": "process_exited",
    "PROCESS_STATE_BACKOFF": "process_failed_to_start",
    "PROCESS_STATE_FATAL": "process_given_up",
}


def handle(event: Event, log: logs.Logger, end_stack: Callable[[int], None]) -> None:
    """Tell one event; if the front is given up, end the stack."""
    name = _TOLD.get(event.name)
    if name is None:
        return
    program = event.fields.get("processname", "")
    details = {key: event.fields[key] for key in ("pid", "tries", "expected") if key in event.fields}
    tell = log.info if name == "process_started" else log.error
    tell(name, program=program, **details)
    if name == "process_given_up" and program == FRONT:
        end_stack(exit_code.FRONT_GAVE_UP)


def main() -> int:
    """Listen until supervisord is gone."""
    parser = argparse.ArgumentParser(prog="python -m watchdog", description="supervisord's event listener.")
    parser.add_argument("--run-folder", type=Path, required=True, help="folder where the exit code is left")
    run_folder = parser.parse_args().run_folder
    supervisord = os.getppid()

    def end_stack(code: int) -> None:
        exit_code.leave(run_folder, code)
        if os.getppid() == supervisord:
            os.kill(supervisord, signal.SIGTERM)

    def leave(_number: int, _frame: FrameType | None) -> None:
        sys.exit(0)  # in order, so that what was told last is written

    signal.signal(signal.SIGTERM, leave)
    # Standard output speaks the protocol, so that events of our own go to standard error.
    with logs.configure("watchdog", "info", sys.stderr):
        log = logs.get_logger()
        for event in events(sys.stdin.buffer, sys.stdout.buffer):
            handle(event, log, end_stack)
    return 0


if __name__ == "__main__":
    sys.exit(main())
