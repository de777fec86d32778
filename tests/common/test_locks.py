"""Locks on files: also on one whose file is deleted, as an operator may do."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from common.durable import AlreadyRunning, LockTimeout, LockUnusable, hold_lock, lock_instance

Take = Callable[[Path], AbstractContextManager[None]]
LOCKS: list[tuple[Take, type[Exception]]] = [
    (lambda path: hold_lock(path, 0.0), LockTimeout),
    (lock_instance, AlreadyRunning),
]


@contextlib.contextmanager
def deleted_when_locked(patched: pytest.MonkeyPatch, path: Path, times: int, *, again: bool) -> Iterator[None]:
    """Another process deletes the file just before it is locked, and holds one of the same name, if `again`."""
    lock, held = fcntl.flock, list[int]()

    def delete(descriptor: int, how: int) -> None:
        if len(held) < times:
            path.unlink()
            held.append(os.open(path, os.O_RDWR | os.O_CREAT) if again else -1)
            if again:
                lock(held[-1], fcntl.LOCK_EX)
        lock(descriptor, how)

    with patched.context() as context:
        context.setattr(fcntl, "flock", delete)
        yield
    for descriptor in held:
        if descriptor >= 0:
            os.close(descriptor)


@pytest.mark.parametrize(("take", "refused"), LOCKS, ids=["hold", "instance"])
def test_a_lock_on_a_deleted_file_excludes_the_holder_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: Take, refused: type[Exception]
) -> None:
    """Who has opened the old file and waits for it would hold a lock beside that of the new one."""
    path = tmp_path / "a.lock"
    with deleted_when_locked(monkeypatch, path, 1, again=True), pytest.raises(refused), take(path):
        pass
    with take(path):
        pass


@pytest.mark.parametrize(("take", "refused"), LOCKS, ids=["hold", "instance"])
def test_what_is_locked_is_the_file_that_others_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: Take, refused: type[Exception]
) -> None:
    """However often it is deleted before, up to a limit."""
    path = tmp_path / "a.lock"
    with contextlib.ExitStack() as stack:
        with deleted_when_locked(monkeypatch, path, 3, again=False):
            stack.enter_context(take(path))
        with pytest.raises(refused), take(path):
            pass
    limit = pytest.raises((LockTimeout, LockUnusable), match="deleted again and again")
    with deleted_when_locked(monkeypatch, path, 99, again=False), limit, take(path):
        pass


@pytest.mark.parametrize(("take", "refused"), LOCKS, ids=["hold", "instance"])
def test_a_file_that_is_numbered_anew_after_it_was_opened_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: Take, refused: type[Exception]
) -> None:
    """As some file systems in user space do, where no lock could be taken."""
    lock, compare, fresh = fcntl.flock, os.path.samestat, list[int]()

    def lock_anew(descriptor: int, how: int) -> None:
        lock(descriptor, how)
        fresh.append(descriptor)

    def compare_late(one: os.stat_result, other: os.stat_result) -> bool:
        is_first = bool(fresh)
        fresh.clear()
        return not is_first and compare(one, other)

    monkeypatch.setattr(fcntl, "flock", lock_anew)
    monkeypatch.setattr(os.path, "samestat", compare_late)
    path = tmp_path / "a.lock"
    with take(path):
        assert fresh == []  # it was compared once more
        with pytest.raises(refused), take(path):
            pass
