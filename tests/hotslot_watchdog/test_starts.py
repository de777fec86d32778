"""A server has started when it says so."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dev.harness.process import stack_environment
from hotslot_watchdog.settings import choose_descriptors, temporary_folder
from hotslot_watchdog.stack import find_supervisor_config
from hotslot_watchdog.starts import StartMonitor
from hotslot_watchdog.supervisor import SupervisorEvent

pytestmark = pytest.mark.fault("L18")


def ended(pid: int, name: str = "PROCESS_STATE_EXITED", program: str = "server") -> SupervisorEvent:
    """The end of a process."""
    return SupervisorEvent(name, {"processname": program, "pid": str(pid)})


def test_a_server_that_never_starts_is_given_up(tmp_path: Path) -> None:
    """Whether supervisord took it for started or not; once."""
    starts = StartMonitor("server", tmp_path / "started", 3)
    events = [ended(1), ended(2, "PROCESS_STATE_BACKOFF"), ended(9, program="updater"), ended(3), ended(4)]

    assert [starts.handle_event(event) for event in events] == [False, False, False, True, False]


def test_a_server_that_had_started_counts_from_zero(tmp_path: Path) -> None:
    """Its file has its process id; that of another process does not count."""
    starts = StartMonitor("server", tmp_path / "started", 2)
    first = starts.handle_event(ended(1))
    (tmp_path / "started").write_text("2\n")

    assert [first, *(starts.handle_event(ended(pid)) for pid in (2, 3, 4))] == [False, False, False, True]


def test_a_file_that_is_no_process_id_is_none(tmp_path: Path) -> None:
    """It counts as a failed start."""
    starts = StartMonitor("server", tmp_path / "started", 1)
    (tmp_path / "started").write_bytes(b"\xff" * 100)

    assert starts.handle_event(ended(1))


@pytest.mark.fault("L19")
@pytest.mark.parametrize(
    ("hard", "asked"), [(1024, 1024), (4096, 4096), (1 << 20, 4096), (resource.RLIM_INFINITY, 4096)]
)
def test_supervisord_asks_for_no_more_files_than_it_may_have(hard: int, asked: int) -> None:
    """It would refuse to start in a container with a hard limit of 1024."""
    assert choose_descriptors(hard) == asked


@pytest.mark.fault("L20")
def test_a_read_only_root_has_a_temporary_folder_in_the_state_folder(tmp_path: Path) -> None:
    """Only if the environment names none and the usual ones cannot be written."""
    missing = (str(tmp_path / "missing"),)

    assert temporary_folder({}, tmp_path, missing) == {"TMPDIR": str(tmp_path / "tmp")}
    assert (tmp_path / "tmp").stat().st_mode & 0o777 == 0o700
    assert temporary_folder({"TMPDIR": "/scratch"}, tmp_path, missing) == {}
    assert temporary_folder({}, tmp_path, (str(tmp_path),)) == {}


@pytest.mark.fault("L20")
def test_supervisord_does_not_expand_the_path_of_the_temporary_folder() -> None:
    """By default it does, and fails for one with a per cent sign, such as that of a state folder."""
    text = find_supervisor_config().read_text(encoding="utf-8")

    assert "\nchildlogdir=%(ENV_HOTSLOT_STATE_DIR)s/run\n" in text


@pytest.mark.fault("L20")
def test_a_locale_without_utf_8_opens_every_state_folder(tmp_path: Path) -> None:
    """The programs start again in Python's UTF-8 mode."""
    config = tmp_path / "hotslot.toml"
    config.write_text(f'state_dir = "{tmp_path}/ä #%41"\n[[models]]\nname = "shapes"\n', encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "utf-8"}
    line = [
        sys.executable,
        "-P",
        "-m",
        "hotslot_watchdog.launch",
        "-m",
        "hotslot_watchdog.stack",
        "--config",
        str(config),
    ]
    script = tmp_path / "supervisor.conf"
    script.write_text("[supervisord]\nlogfile=%(ENV_HOTSLOT_STATE_DIR)s/run/seen.log\nnodaemon=maybe\n")
    done = subprocess.run(
        [*line, "--supervisor-config", str(script)],
        env=stack_environment("", locale),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert (tmp_path / "ä #%41" / "run" / "stack.lock").is_file()
