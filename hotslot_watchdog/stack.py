"""Runs the whole stack in the foreground: supervisord with all processes, until a signal or until the server gives up.

supervisord always ends with 0. The stack ends with:

    0    a signal asked it to end
    2    the settings are wrong
    75   another stack runs on this state_dir
    70   the server failed again and again and was given up
    78   another package in this environment hides hotslot's, or this is not Linux (`hotslot_watchdog.launch`)
    else supervisord's own exit code, or 128 + the signal that killed it
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from common.clock import SystemClock
from common.durable import AlreadyRunning, LockUnusable, lock_instance, read_bounded, write_atomic
from common.exit_codes import ExitCode, to_shell_code
from common.paths import STACK_LOCK, SUPERVISOR_SOCKET, make_run_folder, socket_path
from common.settings import SettingsInvalid, format_mistake, load_settings, settings_path, use_settings_file
from common.stop_signals import StopSignals
from hotslot_watchdog.copier import copy_output
from hotslot_watchdog.settings import StackSettings, make_child_environment

WAKE_SECONDS = 0.1
STOPPING_WAKE_SECONDS = 0.02
LAST_OUTPUT_SECONDS = 0.5  # longest wait for supervisord's last lines to be copied

_EXIT_CODE_FILE = "exit-code"
_MAX_EXIT_CODE_BYTES = 16
_HERE = Path(__file__).resolve().parent
_CONFIG_PATHS = (_HERE / "supervisor.conf", _HERE.parent / "supervisor.conf")  # in a wheel, in the source tree
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def main() -> int:
    """Run the stack until it ends; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="deploy/run-stack",
        description="Runs supervisord with the server, the updater and the watchdog in the foreground, as the command "
        "of a container or a systemd unit. SIGTERM and Ctrl-C end it in order.",
        epilog="Example:  deploy/run-stack --config /etc/hotslot.toml    Then:  hotslot status",
    )
    parser.add_argument("--config", type=Path, help="settings file (default: HOTSLOT_CONFIG or ./hotslot.toml)")
    parser.add_argument(
        "--supervisor-config", type=Path, default=find_supervisor_config(), help="default: the one that ships"
    )
    options = parser.parse_args()
    if options.config is not None:
        use_settings_file(options.config)
    try:
        return run_stack(load_settings(StackSettings), options.supervisor_config)
    except SettingsInvalid as error:
        return _fail("\n".join([*map(format_mistake, error.mistakes), _name_sources()]), ExitCode.WRONG_USE)


def run_stack(settings: StackSettings, config: Path) -> int:
    """Run supervisord on one state folder; returns the stack's exit code.

    Raises:
        SettingsInvalid: the path of the state folder is too long for supervisord's socket.
    """
    supervisor = socket_path(settings.state_dir, SUPERVISOR_SOCKET)
    folder = make_run_folder(settings.state_dir)
    try:
        with lock_instance(folder / STACK_LOCK):
            take_exit_code(folder)  # an earlier stack's
            code = Supervisord(supervisor).run(config, make_child_environment(settings))
            written = take_exit_code(folder)
    except AlreadyRunning:
        return _fail("another hotslot runs on this state_dir; stop it, or set another state_dir", ExitCode.BUSY)
    except LockUnusable as error:
        return _fail(str(error), ExitCode.BUSY)
    if written is not None:
        return written
    if code < 0:
        return _fail(f"supervisord was killed by signal {-code}; the server may still run", to_shell_code(code))
    return code


def find_supervisor_config() -> Path:
    """The path of the supervisor.conf that ships with this code."""
    return next((path for path in _CONFIG_PATHS if path.is_file()), _CONFIG_PATHS[0])


def write_exit_code(run_folder: Path, code: int) -> None:
    """Set the exit code with which the stack will end."""
    write_atomic(run_folder / _EXIT_CODE_FILE, f"{code}\n".encode())


def take_exit_code(run_folder: Path) -> int | None:
    """Read and delete the exit code that was written, if one was."""
    path = run_folder / _EXIT_CODE_FILE
    try:
        content = read_bounded(path, _MAX_EXIT_CODE_BYTES)
        path.unlink()
        return int(content)
    except FileNotFoundError:
        return None
    except ValueError:
        return ExitCode.INTERNAL_ERROR  # unreadable; it is written only for a failure


class Supervisord:
    """supervisord as a child process: signals to this process end it in order, and its output is copied to ours."""

    def __init__(self, socket_path: Path) -> None:
        """Install the signal handlers; nothing runs yet."""
        self._socket_path = str(socket_path)
        self._child = 0  # process id; 0 before its start and after its end
        self._has_ended = threading.Event()
        self._signals = StopSignals(_STOP_SIGNALS, self._terminate_child)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)  # held by `launch` until now

    def run(self, config: Path, environment: dict[str, str]) -> int:
        """Run supervisord until it ends; returns its exit code.

        It gets its own session: a terminal's Ctrl-C reaches it once, through this process, and the SIGHUP of a closed
        terminal, which supervisord takes as a reload, does not reach it. Its output goes through a pipe, because
        supervisord opens /dev/fd/1 by name: that fails for a socket (journald) and overwrites a shared file.
        """
        if self._signals.is_requested:
            return 0
        command = [sys.executable, "-P", "-m", "supervisor.supervisord", "--nodaemon", "--configuration", str(config)]
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
        )
        self._child = child.pid
        if self._signals.is_requested:
            self._terminate_child()
        output = child.stdout
        if output is None:
            raise RuntimeError("supervisord was started without a pipe")
        threading.Thread(target=self._wake_periodically, daemon=True).start()
        places = (output.fileno(), sys.stdout.fileno(), LAST_OUTPUT_SECONDS, SystemClock())
        copier = threading.Thread(target=copy_output, args=places, daemon=True)
        copier.start()
        child.returncode = _wait_for_child(child.pid)
        self._child = 0
        self._has_ended.set()
        copier.join(LAST_OUTPUT_SECONDS)
        return child.returncode

    def _terminate_child(self) -> None:
        """Send SIGTERM; not by `Popen.terminate`, which may take the child's exit code from `_wait_for_child`."""
        if self._child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGTERM)

    def _wake_periodically(self) -> None:
        """Connect to supervisord's socket again and again.

        Its loop checks for dead children and signals only once a second, or when a connection arrives.
        """
        while not self._has_ended.is_set():
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
                connection.setblocking(False)
                connection.connect(self._socket_path)
            if self._signals.is_requested:
                self._has_ended.wait(STOPPING_WAKE_SECONDS)
            else:
                self._signals.wait(WAKE_SECONDS)


def _wait_for_child(child: int) -> int:
    """Wait for one child and return its exit code; as a container's first process, reap orphans too."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def _name_sources() -> str:
    """Where the settings come from: in a container or a unit nothing else shows it, and the file may be another one."""
    path = settings_path()
    missing = "" if os.path.lexists(path) else ", which does not exist"
    return f"settings: {path}{missing}, and variables HOTSLOT_…; `hotslot config check` shows all mistakes"


def _fail(sentence: str, code: int) -> int:
    sys.stderr.write(f"hotslot: {sentence}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
