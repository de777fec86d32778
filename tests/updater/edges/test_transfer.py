"""Bringing files in from a hub: bounded, resumable, never through a link."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.bundle import BundleFile
from common.durable import NotRegular, open_within
from tests.updater.core.world import ManualClock
from updater.core.effects import EffectFailure, FailureKind
from updater.core.ports import EffectFailed, LinkBroken
from updater.store import transfer
from updater.store.transfer import (
    MIN_PROGRESS_BYTES,
    PaceRules,
    TransferBroken,
    enforce_pace,
    fetch_file,
    hash_file,
)

CONTENT = bytes(range(256)) * 40


def listed(content: bytes = CONTENT) -> BundleFile:
    """How a hub would list it."""
    return BundleFile("weights.bin", len(content), hashlib.sha256(content).hexdigest())


def go_on() -> None:
    """Nobody stops it."""


class Remote:
    """A source that notes from where it was read."""

    def __init__(self, content: bytes, folder: Path) -> None:
        self._path = folder / "remote"
        self._path.write_bytes(content)
        self.offsets: list[int] = []

    def __call__(self, offset: int) -> Iterator[bytes]:
        self.offsets.append(offset)
        with self._path.open("rb") as file:
            file.seek(offset)
            while piece := file.read(1024):
                yield piece


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where it goes."""
    return tmp_path / "weights.bin"


def test_a_file_arrives_whole(tmp_path: Path, target: Path) -> None:
    """What was listed is what lies there."""
    assert len(CONTENT) == fetch_file(Remote(CONTENT, tmp_path), target, listed(), go_on)
    assert target.read_bytes() == CONTENT


def test_a_file_that_is_there_is_not_fetched_again(tmp_path: Path, target: Path) -> None:
    """The same again costs a hash, no transfer."""
    target.write_bytes(CONTENT)
    remote = Remote(CONTENT, tmp_path)
    assert fetch_file(remote, target, listed(), go_on) == 0
    assert remote.offsets == []


def test_an_interrupted_transfer_goes_on_where_it_stopped(tmp_path: Path, target: Path) -> None:
    """Kept bytes are hashed again, and only the rest is fetched."""
    target.write_bytes(CONTENT[:1000])
    remote = Remote(CONTENT, tmp_path)
    assert len(CONTENT) - 1000 == fetch_file(remote, target, listed(), go_on)
    assert remote.offsets == [1000]
    assert target.read_bytes() == CONTENT


def test_kept_bytes_that_changed_are_found(tmp_path: Path, target: Path) -> None:
    """A damaged beginning never becomes part of a file that counts as whole; the next attempt starts anew."""
    target.write_bytes(b"x" * 1000)
    with pytest.raises(TransferBroken, match="SHA-256"):
        fetch_file(Remote(CONTENT, tmp_path), target, listed(), go_on)
    assert len(CONTENT) == fetch_file(Remote(CONTENT, tmp_path), target, listed(), go_on)


@pytest.mark.fault("C4")
def test_one_flipped_bit_is_found(tmp_path: Path, target: Path) -> None:
    """The listed SHA-256 decides."""
    wrong = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    with pytest.raises(TransferBroken, match="SHA-256"):
        fetch_file(Remote(wrong, tmp_path), target, listed(), go_on)


@pytest.mark.fault("C5")
def test_one_byte_short_is_found(tmp_path: Path, target: Path) -> None:
    """The beginning is kept: a revision may still be arriving."""
    with pytest.raises(TransferBroken, match="ends after"):
        fetch_file(Remote(CONTENT[:-1], tmp_path), target, listed(), go_on)
    assert len(CONTENT) - 1 == target.stat().st_size


def test_one_byte_more_is_found(tmp_path: Path, target: Path) -> None:
    """Nothing is read beyond the declared size but the one byte that shows it."""
    with pytest.raises(TransferBroken, match="longer"):
        fetch_file(Remote(CONTENT + b"x", tmp_path), target, listed(), go_on)


@pytest.mark.fault("C3")
def test_an_empty_file_is_one_too(tmp_path: Path, target: Path) -> None:
    """Zero bytes are a size like any other."""
    assert fetch_file(Remote(b"", tmp_path), target, listed(b""), go_on) == 0
    assert target.read_bytes() == b""


@pytest.mark.fault("D2")
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_failed_fsync_is_not_made_good_by_asking_again(
    failing: int, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After EIO the kernel may forget the lost pages, of the middle too: all is fetched again from nothing."""
    syncs = iter(range(1, failing + 1))

    def fail(_descriptor: int) -> None:
        if next(syncs) == failing:
            raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(transfer, "SYNC_BYTES", len(CONTENT) // 3)
        broken.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            fetch_file(Remote(CONTENT, tmp_path), target, listed(), go_on)
    assert not target.exists()


def test_a_file_goes_to_the_disk_as_it_grows(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than some megabytes wait to be written: a sync of gigabytes would hold up all others of that disk."""
    sizes: list[int] = []
    monkeypatch.setattr(transfer, "SYNC_BYTES", 1)
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))

    fetch_file(Remote(CONTENT, tmp_path), target, listed(), go_on)

    assert sorted(sizes) == sizes
    assert len(CONTENT) // 2 > sizes[0]
    assert len(CONTENT) == sizes[-1]


@pytest.mark.fault("P6")
@pytest.mark.parametrize("name", ["link", "folder-link/file"])
def test_no_link_is_followed(tmp_path: Path, name: str) -> None:
    """Neither at the end of a name nor on the way to it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"secret")
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "link").symlink_to(outside / "file")
    (hub / "folder-link").symlink_to(outside)
    with pytest.raises(NotRegular):
        open_within(hub, name)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """A reader must not wait for a writer that never comes."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotRegular):
        open_within(tmp_path, "pipe")


def test_a_hash_is_bounded(tmp_path: Path) -> None:
    """A file that is longer than listed is not read to its end."""
    (tmp_path / "long").write_bytes(b"x" * 100)
    with pytest.raises(TransferBroken):
        hash_file(tmp_path, "long", 99, go_on)


def test_a_transfer_can_be_stopped(tmp_path: Path, target: Path) -> None:
    """An orderly end of the updater does not wait for gigabytes."""

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        fetch_file(Remote(CONTENT, tmp_path), target, listed(), stop)


@pytest.mark.fault("N9")
def test_a_transfer_that_slows_down_is_broken_off(tmp_path: Path, target: Path) -> None:
    """However fast it began: every minute has to bring its share."""
    clock = ManualClock()

    def source(_offset: int) -> Iterator[bytes]:
        yield CONTENT[:9000]
        for byte in CONTENT[9000:]:
            clock.passes(1.0)
            yield bytes([byte])

    rules = PaceRules(min_bytes_a_second=10.0, window_seconds=60.0)
    with pytest.raises(EffectFailed) as caught:
        fetch_file(lambda offset: enforce_pace(source(offset), rules, clock, "weights"), target, listed(), go_on)
    assert (caught.value.failure.kind, caught.value.failure.reason) == (FailureKind.TRANSIENT, "HUB_SLOW")
    assert clock.seconds <= 1120.0
    assert 9000 < target.stat().st_size < 9130, "what came is not kept"


def test_a_slow_transfer_that_is_fast_enough_arrives(tmp_path: Path, target: Path) -> None:
    """Its pauses are its own business."""
    clock = ManualClock()

    def source(_offset: int) -> Iterator[bytes]:
        for begin in range(0, len(CONTENT), 1000):
            clock.passes(59.0)
            yield CONTENT[begin : begin + 1000]

    rules = PaceRules(min_bytes_a_second=10.0, window_seconds=60.0)
    fetch_file(lambda offset: enforce_pace(source(offset), rules, clock, "weights"), target, listed(), go_on)
    assert target.read_bytes() == CONTENT


class Breaking:
    """A source whose link breaks after so many bytes, each time."""

    def __init__(self, content: bytes, after: int) -> None:
        self._content, self._after = content, after
        self.offsets: list[int] = []

    def __call__(self, offset: int) -> Iterator[bytes]:
        self.offsets.append(offset)
        yield self._content[offset : offset + self._after]
        if offset + self._after < len(self._content):
            raise LinkBroken(EffectFailure(FailureKind.TRANSIENT, "HUB_BROKE_OFF", "broken"))


@pytest.mark.fault("N10")
def test_a_link_that_breaks_with_progress_is_taken_up_at_once(target: Path) -> None:
    """A large file comes through a line that never holds."""
    content = bytes(3 * MIN_PROGRESS_BYTES)
    remote = Breaking(content, MIN_PROGRESS_BYTES)
    assert len(content) == fetch_file(remote, target, listed(content), go_on)
    assert remote.offsets == [0, MIN_PROGRESS_BYTES, 2 * MIN_PROGRESS_BYTES]


@pytest.mark.fault("N10")
def test_a_link_that_breaks_without_progress_is_told(target: Path) -> None:
    """Who brings nothing is not asked again at once; what came is kept."""
    content = bytes(3 * MIN_PROGRESS_BYTES)
    remote = Breaking(content, MIN_PROGRESS_BYTES - 1)
    with pytest.raises(LinkBroken):
        fetch_file(remote, target, listed(content), go_on)
    assert remote.offsets == [0]
    assert target.stat().st_size == MIN_PROGRESS_BYTES - 1
