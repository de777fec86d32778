"""Runs the whole stack in the foreground: supervisord with all processes, until a signal or until the server gives up.

supervisord ends with 0 whatever happened; this ends with what really was:

    0    it was asked to end
    2    the settings are wrong
    75   another stack runs on this state_dir
    70   the server died again and again
    78   another package in this environment hides hotslot's, or this is not Linux (`hotslot_watchdog.launch`)
    else what supervisord ended with, or 128 + the signal that killed it
"""

import argparse
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType

from common.durable import AlreadyRunning, instance_lock, read_bounded, write_atomic
from common.exit_codes import ExitCode, with_signal
from common.paths import STACK_LOCK, SUPERVISOR_SOCKET, make_run_folder, socket_path
from common.settings import SettingsInvalid, load_settings, sentence_of, use_settings_file
from hotslot_watchdog.settings import StackSettings, environment_of_children

_NAME = "exit-code"
_MAX_BYTES = 16


def leave(run_folder: Path, code: int) -> None:
    """Say with which code the stack is to end."""
    write_atomic(run_folder / _NAME, f"{code}\n".encode())


def take(run_folder: Path) -> int | None:
    """The code that was left, if one was; it is gone afterwards."""
    path = run_folder / _NAME
    try:
        content = read_bounded(path, _MAX_BYTES)
        path.unlink()
        return int(content)
    except FileNotFoundError:
        return None
    except ValueError:
        return ExitCode.INTERNAL_ERROR  # somebody wanted a failure, whatever it says


VISIT_SECONDS = 0.2  # a dead server is started again so soon
STOPPING_VISIT_SECONDS = 0.02
LAST_LINES_SECONDS = 0.5  # how long a reader of ours may take with them

_HERE = Path(__file__).resolve().parent
_CONFIG_PLACES = (_HERE / "supervisor.conf", _HERE.parent / "supervisor.conf")  # of a wheel, of the source tree
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Supervisord:
    """supervisord as a child: every signal that asks us to end asks it to end, and what it says passes through us."""

    def __init__(self, socket_path: Path) -> None:
        """Nothing runs yet; signals are noted."""
        self._socket_path = str(socket_path)
        self._child: subprocess.Popen[bytes] | None = None
        self._stop_asked = threading.Event()
        self._has_ended = threading.Event()
        for number in _STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def run(self, config: Path, environment: dict[str, str]) -> int:
        """Run it to its end and return its exit code.

        It gets a session of its own: a terminal's Ctrl-C reaches it once, through us, and a terminal that is closed
        does not tell it to reload (its meaning of SIGHUP). It gets a pipe, since it opens its output by name: that
        fails where ours is a socket (journald), and writes over others' lines where ours is a file.
        """
        command = [sys.executable, "-P", "-m", "supervisor.supervisord", "--nodaemon", "--configuration", str(config)]
        self._child = child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
        )
        if self._stop_asked.is_set():
            child.terminate()
        output = child.stdout
        if output is None:
            raise RuntimeError("a pipe was asked for")
        threading.Thread(target=self._visit, daemon=True).start()
        copier = threading.Thread(target=_copy, args=(output.fileno(), sys.stdout.fileno()), daemon=True)
        copier.start()
        child.returncode = _await_child(child.pid)
        self._has_ended.set()
        copier.join(LAST_LINES_SECONDS)
        return child.returncode

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_asked.set()
        if self._child is not None:
            self._child.terminate()

    def _visit(self) -> None:
        """Keep its loop turning: it looks for dead children and signals once a second, or when somebody comes."""
        while not self._has_ended.is_set():
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as visitor:
                visitor.setblocking(False)
                visitor.connect(self._socket_path)
            if self._stop_asked.is_set():
                self._has_ended.wait(STOPPING_VISIT_SECONDS)
            else:
                self._stop_asked.wait(VISIT_SECONDS)


def _copy(source: int, sink: int) -> None:
    """Copy until the source ends; with the sink gone, read on, so that nobody waits for us."""
    is_heard = True
    while content := os.read(source, 1 << 16):
        while content and is_heard:
            try:
                content = content[os.write(sink, content) :]
            except BlockingIOError:
                select.select((), (sink,), (), 1.0)
            except OSError:
                is_heard = False


def _await_child(child: int) -> int:
    """Wait for one child; as a container's first process we are also given orphans to bury."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def run_stack(settings: StackSettings, config: Path) -> int:
    """Run supervisord on one state folder, and say with which code to end.

    Raises:
        SettingsInvalid: the state folder's path is too long for supervisord's socket.
    """
    supervisor = socket_path(settings.state_dir, SUPERVISOR_SOCKET)
    folder = make_run_folder(settings.state_dir)
    try:
        with instance_lock(folder / STACK_LOCK):
            take(folder)  # of an earlier life
            ended = Supervisord(supervisor).run(config, environment_of_children(settings))
            left = take(folder)
    except AlreadyRunning:
        return _refuse("another hotslot runs on this state_dir", ExitCode.BUSY)
    if left is not None:
        return left
    if ended < 0:
        return _refuse(
            f"supervisord was killed by signal {-ended}; the server may still be serving", with_signal(ended)
        )
    return ended


def shipped_config() -> Path:
    """The supervisor.conf that ships with this code."""
    return next((place for place in _CONFIG_PLACES if place.is_file()), _CONFIG_PLACES[0])


def main() -> int:
    """Run the stack until it ends; for the command line."""
    parser = argparse.ArgumentParser(prog="deploy/run-stack", description="Runs hotslot in the foreground.")
    parser.add_argument("--config", type=Path, help="settings file (default: HOTSLOT_CONFIG or ./hotslot.toml)")
    parser.add_argument("--supervisor-config", type=Path, default=shipped_config(), help="default: the one that ships")
    options = parser.parse_args()
    if options.config is not None:
        use_settings_file(options.config)
    try:
        return run_stack(load_settings(StackSettings), options.supervisor_config)
    except SettingsInvalid as error:
        return _refuse("\n".join(map(sentence_of, error.mistakes)), ExitCode.WRONG_USE)


def _refuse(sentence: str, code: int) -> int:
    sys.stderr.write(f"hotslot: {sentence}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
