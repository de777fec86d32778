"""The small file by which the listener tells the stack how to end: supervisord itself always ends with 0."""

from pathlib import Path

from common.durable import read_bounded, write_atomic
from common.exit_codes import ExitCode

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
