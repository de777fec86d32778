"""The run folder and its sockets: all processes use the kernel's limit for the length of a path."""

import os
import resource
import socket
from contextlib import closing
from pathlib import Path

import pytest

from common.address import MAX_SOCKET_PATH, ListenFailed, remove_socket
from common.durable import AlreadyRunning, LockUnusable, lock_instance
from common.paths import CONTROL_SOCKET, SERVER_LOCK, SUPERVISOR_SOCKET, make_run_folder, run_folder, socket_path
from common.settings import SettingsInvalid
from tests.common.users import NOBODY, without_rights


def state_of(tmp_path: Path, longest: str, size: int) -> Path:
    """A state folder in which the path of the socket `longest` has `size` bytes."""
    short = len(str(run_folder(tmp_path / "d") / longest))
    return tmp_path / ("d" * (1 + size - short))


def test_the_longest_allowed_path_can_be_bound_and_one_byte_more_cannot(tmp_path: Path) -> None:
    """The limit is exactly the kernel's."""
    fits, exceeds = (state_of(tmp_path, CONTROL_SOCKET, size) for size in (MAX_SOCKET_PATH, MAX_SOCKET_PATH + 1))
    for state in (fits, exceeds):
        make_run_folder(state)
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(socket_path(fits, CONTROL_SOCKET)))
    with closing(socket.socket(socket.AF_UNIX)) as listener, pytest.raises(OSError, match="too long"):
        listener.bind(str(run_folder(exceeds) / CONTROL_SOCKET))


@pytest.mark.parametrize(("name", "bound"), [(CONTROL_SOCKET, 12), (SUPERVISOR_SOCKET, 23)])
def test_a_path_that_is_too_long_is_refused_with_both_numbers(name: str, bound: int) -> None:
    """The message has the limit and the actual length; supervisord's temporary file name counts."""
    longest = Path("/" + "d" * (MAX_SOCKET_PATH - len("//run/") - bound))
    assert socket_path(longest, name) == longest / "run" / name
    with pytest.raises(SettingsInvalid, match="has 108 bytes, limit 107") as caught:
        socket_path(longest.with_name(longest.name + "d"), name)
    assert [mistake.key for mistake in caught.value.mistakes] == ["state_dir"]


@pytest.mark.fault("L20")
def test_a_state_folder_of_another_user_is_told_in_one_sentence(tmp_path: Path) -> None:
    """With the folder and both users."""
    tmp_path.chmod(0o500)
    refused = pytest.raises(SettingsInvalid, match=r"state_dir: cannot be used: .*: permission denied")
    with without_rights(), refused as error:
        make_run_folder(tmp_path / "state")
    assert (f"belongs to user 0, this process runs as {NOBODY}" in str(error.value)) is (os.geteuid() == 0)


def make_folder(path: Path) -> None:
    """With something in it."""
    path.mkdir()
    (path / "x").touch()


def test_a_folder_in_place_of_a_socket_is_named(tmp_path: Path) -> None:
    """What a killed process has left is removed; anything else is for a person to remove."""
    path = tmp_path / CONTROL_SOCKET
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
    remove_socket(path)
    remove_socket(path)
    assert not path.exists()
    make_folder(path)
    with pytest.raises(ListenFailed) as failed:
        remove_socket(path)
    assert str(failed.value) == f"{path} cannot be listened on: it is a folder, not a file; remove it"


def test_a_folder_in_place_of_a_lock_is_named(tmp_path: Path) -> None:
    """The process ends with this sentence."""
    path = tmp_path / SERVER_LOCK
    make_folder(path)
    with pytest.raises(LockUnusable) as failed, lock_instance(path):
        pass
    assert str(failed.value) == f"{path} cannot be locked: it is a folder, not a file; remove it"


def test_a_full_disk_keeps_no_process_from_its_lock(tmp_path: Path) -> None:
    """The stack could not be started again on a full disk; its process id in the file is for people alone."""
    path = tmp_path / SERVER_LOCK
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # every write to a file fails
    try:
        with lock_instance(path), pytest.raises(AlreadyRunning), lock_instance(path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b""
