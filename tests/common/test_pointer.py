"""The committed pointer: concurrent writers lose no row of each other."""

import contextlib
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cli.bundles import import_bundle
from common.bundle import (
    BROKEN_POINTER_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    POINTER_NAME,
    Bundle,
    BundleBroken,
    BundleFile,
    Committed,
    Origin,
    Provenance,
    SchemaTooNew,
    bundle_folder,
    lock_pointer,
    read_bundle,
    read_committed,
    restore_pointer,
    update_pointer,
    write_bundle,
)
from common.clock import SystemClock
from common.durable import LockTimeout
from common.sealing import ConvertLimits
from dev.harness.pointer import commit_row
from updater.core.record import Installed
from updater.store.bundles import BundleStore, StoreOptions
from updater.store.garbage import References

ROUNDS = 60
ROOT = Path(__file__).resolve().parents[2]
A, B = (f"sha256:{digit * 64}" for digit in "ab")
ROW = Committed("a", A, A, "r0", Origin.UPDATE)


def run_updater(state: Path, rounds: int) -> None:
    """Commit model a again and again as the updater does; print the number of lost rows."""
    store = BundleStore(StoreOptions(state), "a", SystemClock(), lambda: None, References)
    store.write_pointer(Installed("r0", A, A))
    lost = 0
    _meet()
    for number in range(1, rounds + 1):
        lost += store.pointer() != Installed(f"r{number - 1}", A, A)
        store.write_pointer(Installed(f"r{number}", A, A))
    _report(lost + (store.pointer() != Installed(f"r{rounds}", A, A)))


def run_import(state: Path, rounds: int) -> None:
    """Import model b again and again as the command line does; print the number of lost rows."""

    def convert(
        source: Path,
        state: Path,
        revision: str,
        limits: ConvertLimits,
        precision: str,
        *,
        digest: str = "",
        provenance: Provenance | None = None,
    ) -> Bundle:
        del source, state, limits, digest
        made = B if int(revision) % 2 else A
        return Bundle(made, made, revision, "ofa", "visual-entailment", precision, "1", (), provenance=provenance)

    lost = 0
    _meet()
    for number in range(rounds):
        import_bundle(state, state, "b", str(number), "float32", convert)
        row = read_committed(state).get("b")
        lost += row is None or row.revision != str(number)
    _report(lost)


def _meet() -> None:
    """Report that this process is ready, and wait for the start signal."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()


def _report(lost: int) -> None:
    sys.stdout.write(str(lost))


def _start(call: str) -> "subprocess.Popen[str]":
    """Start one of the two loops in its own process; returns once it is ready."""
    code = f"from pathlib import Path; from tests.common.test_pointer import *; {call}"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_lose_no_row_of_each_other(tmp_path: Path) -> None:
    """The updater commits model a while the command line imports model b, both in a tight loop."""
    for digest in (A, B):
        bundle_folder(tmp_path, digest).mkdir(parents=True)
    arguments = f"(Path({str(tmp_path)!r}), {ROUNDS})"
    processes = [_start(f"{name}{arguments}") for name in ("run_updater", "run_import")]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    lost = [int(process.communicate(timeout=60)[0]) for process in processes]

    rows = read_committed(tmp_path)
    assert lost == [0, 0]
    assert {name: row.revision for name, row in rows.items()} == {"a": f"r{ROUNDS}", "b": str(ROUNDS - 1)}


def test_a_writer_waits_no_longer_than_its_limit(tmp_path: Path) -> None:
    """If the lock is not released in time, the writer raises, with a message that says so."""
    commit_row(tmp_path, ROW)
    with lock_pointer(tmp_path), pytest.raises(LockTimeout) as caught:
        update_pointer(tmp_path, "b", lambda _: ROW, wait_seconds=0.0)
    assert caught.value.strerror == "another process has held this lock for 0 s"
    assert read_committed(tmp_path) == {"a": ROW}


def test_a_writer_goes_on_when_the_lock_is_released(tmp_path: Path) -> None:
    """The lock also excludes threads of one process."""
    with lock_pointer(tmp_path):
        writer = threading.Thread(target=commit_row, args=(tmp_path, ROW))
        writer.start()
        assert read_committed(tmp_path) == {}
    writer.join(30.0)
    assert read_committed(tmp_path) == {"a": ROW}


def test_an_unchanged_row_is_not_written(tmp_path: Path) -> None:
    """A change that returns the current row leaves the file untouched."""
    assert commit_row(tmp_path, ROW) is None
    before = (tmp_path / POINTER_NAME).stat()
    assert update_pointer(tmp_path, "a", lambda row: row) == ROW
    assert (tmp_path / POINTER_NAME).stat().st_ino == before.st_ino


def test_a_change_that_fails_writes_nothing(tmp_path: Path) -> None:
    """The error is raised, the pointer is unchanged, and the lock is released."""
    commit_row(tmp_path, ROW)

    def fail(_row: Committed | None) -> Committed:
        raise BundleBroken("gone")

    with pytest.raises(BundleBroken, match="gone"):
        update_pointer(tmp_path, "a", fail)
    assert update_pointer(tmp_path, "a", lambda _: None, wait_seconds=0.0) == ROW
    assert read_committed(tmp_path) == {}


def test_a_malformed_pointer_is_replaced_only_on_request(tmp_path: Path) -> None:
    """The updater restores it from its journal; an import must not delete the rows of other models."""
    for content in ("{", '{"schema_version": 1, "models": [{"model": ["a"], "bundle_digest": 5}]}'):
        (tmp_path / POINTER_NAME).write_text(content)
        with pytest.raises(BundleBroken):
            commit_row(tmp_path, ROW)
        update_pointer(tmp_path, "a", lambda _: ROW, replace_broken=True)
        assert read_committed(tmp_path) == {"a": ROW}
        assert (tmp_path / BROKEN_POINTER_NAME).read_text() == content


@pytest.mark.parametrize("content", [b"{" * (2 * MAX_MANIFEST_BYTES), None])
def test_of_a_replaced_pointer_no_more_is_kept_than_a_pointer_has(tmp_path: Path, content: bytes | None) -> None:
    """Of a pipe, nothing."""
    path = tmp_path / POINTER_NAME
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    update_pointer(tmp_path, "a", lambda _: ROW, replace_broken=True)
    assert read_committed(tmp_path) == {"a": ROW}
    kept = tmp_path / BROKEN_POINTER_NAME
    assert (kept.stat().st_size if content else kept.exists()) == (MAX_MANIFEST_BYTES if content else False)


@pytest.mark.fault("H15")
@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_read_error_is_not_a_malformed_pointer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """It passes, and the file is whole; only a file that is not there is none. pathlib may hide such an error."""
    commit_row(tmp_path, ROW)

    def fail(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(Path, "exists", lambda _path: False)
        broken.setattr("common.durable._open_part", fail)
        for action in (lambda: read_committed(tmp_path), lambda: read_bundle(tmp_path)):
            with pytest.raises(OSError, match=os.strerror(code)):
                action()
        with pytest.raises(OSError, match=os.strerror(code)):
            update_pointer(tmp_path, "b", lambda _: ROW, replace_broken=True)
    assert read_committed(tmp_path) == {"a": ROW}
    assert not (tmp_path / BROKEN_POINTER_NAME).exists()


@pytest.mark.fault("H15")
def test_a_pointer_that_cannot_be_read_is_replaced_by_that_of_a_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backup is what a person has against that; if it cannot be flushed, it is not deleted, and may be repeated."""
    path = tmp_path / POINTER_NAME
    commit_row(tmp_path, ROW)
    content = path.read_bytes()

    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name in ("", "common.durable.sync_folder"):
        path.write_bytes(b"unreadable")
        with monkeypatch.context() as broken:
            broken.setattr("common.durable._open_part", fail)
            if name:
                broken.setattr(name, fail)
            with pytest.raises(OSError, match=os.strerror(errno.EIO)) if name else contextlib.nullcontext():
                restore_pointer(tmp_path, content)
        assert path.read_bytes() == content


@pytest.mark.fault("D2")
@pytest.mark.parametrize("content", [b"{" * (2 * MAX_MANIFEST_BYTES), None])
def test_what_was_no_pointer_is_neither_deleted_nor_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    """Without a pointer nothing would be committed, and half of a large file is no file."""
    path = tmp_path / POINTER_NAME
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)

    def fail_when_written(_folder: Path) -> None:
        if path.is_file() and path.stat().st_size < MAX_MANIFEST_BYTES:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr("common.durable.sync_folder", fail_when_written)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            update_pointer(tmp_path, "a", lambda _: ROW, replace_broken=True)
    assert read_committed(tmp_path) == {"a": ROW}


def test_a_file_of_a_bundle_that_links_to_itself_is_missing(tmp_path: Path) -> None:
    """The bundle is broken, as with any other that is not there, and can be made again."""
    (tmp_path / "w.safetensors").symlink_to("w.safetensors")
    file = BundleFile("w.safetensors", 1, "0" * 64)
    write_bundle(tmp_path, Bundle(A, A, "r1", "ofa", "visual-entailment", "float32", "1", (file,)))
    with pytest.raises(BundleBroken, match="is missing"):
        read_bundle(tmp_path)


@pytest.mark.fault("D6")
def test_a_pointer_of_a_newer_schema_is_not_replaced_on_request(tmp_path: Path) -> None:
    """It is whole; the newer hotslot reads it."""
    path = tmp_path / POINTER_NAME
    path.write_text('{"schema_version": 99, "models": [{"model": "b", "new": true}]}')
    before = path.read_bytes()
    with pytest.raises(SchemaTooNew, match="start the newer hotslot again"):
        update_pointer(tmp_path, "a", lambda _: ROW, replace_broken=True)
    assert path.read_bytes() == before


def test_a_bundle_that_was_deleted_is_not_committed(tmp_path: Path) -> None:
    """Between sealing and committing no row names the bundle, so the updater may delete it to free space."""

    def convert(*_arguments: object, **_named: object) -> Bundle:
        return Bundle(A, A, "r1", "ofa", "visual-entailment", "float32", "1", ())

    with pytest.raises(BundleBroken, match="deleted to free space"):
        import_bundle(tmp_path, tmp_path, "a", "r1", "float32", convert)
    assert read_committed(tmp_path) == {}


@pytest.mark.parametrize("name", [POINTER_NAME, MANIFEST_NAME])
@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"models":' * 900 + b"1" + b"}" * 900])
def test_a_file_with_deep_brackets_is_broken(tmp_path: Path, name: str, content: bytes) -> None:
    """As any other damaged one."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BundleBroken, match=f"{name} cannot be read"):
        read_committed(tmp_path) if name == POINTER_NAME else read_bundle(tmp_path)
