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
    MAX_RESTARTS,
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
    """Never stop."""


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


def test_a_file_is_downloaded_completely(tmp_path: Path, target: Path) -> None:
    """With the listed content."""
    assert len(CONTENT) == fetch_file(Remote(CONTENT, tmp_path), target, listed(), go_on)
    assert target.read_bytes() == CONTENT


def test_a_complete_file_is_not_downloaded_again(tmp_path: Path, target: Path) -> None:
    """It is only hashed."""
    target.write_bytes(CONTENT)
    remote = Remote(CONTENT, tmp_path)
    assert fetch_file(remote, target, listed(), go_on) == 0
    assert remote.offsets == []


def test_an_interrupted_download_continues(tmp_path: Path, target: Path) -> None:
    """Kept bytes are hashed again, and only the rest is downloaded."""
    target.write_bytes(CONTENT[:1000])
    remote = Remote(CONTENT, tmp_path)
    assert len(CONTENT) - 1000 == fetch_file(remote, target, listed(), go_on)
    assert remote.offsets == [1000]
    assert target.read_bytes() == CONTENT


def test_a_damaged_partial_file_is_found(tmp_path: Path, target: Path) -> None:
    """The next attempt starts from the beginning."""
    target.write_bytes(b"x" * 1000)
    with pytest.raises(TransferBroken, match="SHA-256"):
        fetch_file(Remote(CONTENT, tmp_path), target, listed(), go_on)
    assert len(CONTENT) == fetch_file(Remote(CONTENT, tmp_path), target, listed(), go_on)


@pytest.mark.fault("C4")
def test_one_flipped_bit_is_found(tmp_path: Path, target: Path) -> None:
    """By the listed SHA-256."""
    wrong = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    with pytest.raises(TransferBroken, match="SHA-256"):
        fetch_file(Remote(wrong, tmp_path), target, listed(), go_on)


@pytest.mark.fault("C5")
def test_one_byte_short_is_found(tmp_path: Path, target: Path) -> None:
    """The partial file is kept: the rest may still be uploading."""
    with pytest.raises(TransferBroken, match="ends after"):
        fetch_file(Remote(CONTENT[:-1], tmp_path), target, listed(), go_on)
    assert len(CONTENT) - 1 == target.stat().st_size


def test_one_byte_more_is_found(tmp_path: Path, target: Path) -> None:
    """At most one byte more than the listed size is read."""
    with pytest.raises(TransferBroken, match="longer"):
        fetch_file(Remote(CONTENT + b"x", tmp_path), target, listed(), go_on)


@pytest.mark.fault("C3")
def test_an_empty_file_is_downloaded(tmp_path: Path, target: Path) -> None:
    """Zero bytes are a valid size."""
    assert fetch_file(Remote(b"", tmp_path), target, listed(b""), go_on) == 0
    assert target.read_bytes() == b""


@pytest.mark.fault("D2")
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_failed_fsync_discards_the_file(
    failing: int, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After EIO the kernel may drop dirty pages of any part, so everything is downloaded again."""
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


def test_a_file_is_synced_while_it_grows(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single sync of gigabytes would block all other syncs of that disk."""
    sizes: list[int] = []
    monkeypatch.setattr(transfer, "SYNC_BYTES", 1)
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))

    fetch_file(Remote(CONTENT, tmp_path), target, listed(), go_on)

    assert sorted(sizes) == sizes
    assert len(CONTENT) // 2 > sizes[0]
    assert len(CONTENT) == sizes[-1]


@pytest.mark.fault("P6")
@pytest.mark.parametrize("name", ["link", "folder-link/file"])
def test_no_symbolic_link_is_followed(tmp_path: Path, name: str) -> None:
    """Neither in the last part of a name nor in a folder."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"secret")
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "link").symlink_to(outside / "file")
    (hub / "folder-link").symlink_to(outside)
    with pytest.raises(NotRegular):
        open_within(hub, name)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """Opening it would block."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotRegular):
        open_within(tmp_path, "pipe")


def test_hashing_is_bounded(tmp_path: Path) -> None:
    """A file that is longer than listed is not read to its end."""
    (tmp_path / "long").write_bytes(b"x" * 100)
    with pytest.raises(TransferBroken):
        hash_file(tmp_path, "long", 99, go_on)


def test_a_download_can_be_stopped(tmp_path: Path, target: Path) -> None:
    """An orderly stop does not wait for gigabytes."""

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        fetch_file(Remote(CONTENT, tmp_path), target, listed(), stop)


@pytest.mark.fault("N9")
def test_a_download_that_slows_down_is_cancelled(tmp_path: Path, target: Path) -> None:
    """Even if it was fast at first: each window is checked."""
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


def test_a_download_above_the_minimum_speed_completes(tmp_path: Path, target: Path) -> None:
    """Pauses within a window do not matter."""
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
def test_a_broken_connection_with_progress_is_resumed_at_once(target: Path) -> None:
    """So that a large file can be downloaded over a bad line."""
    content = bytes(3 * MIN_PROGRESS_BYTES)
    remote = Breaking(content, MIN_PROGRESS_BYTES)
    assert len(content) == fetch_file(remote, target, listed(content), go_on)
    assert remote.offsets == [0, MIN_PROGRESS_BYTES, 2 * MIN_PROGRESS_BYTES]


@pytest.mark.fault("N10")
def test_a_broken_connection_without_progress_fails(target: Path) -> None:
    """Downloaded bytes are kept."""
    content = bytes(3 * MIN_PROGRESS_BYTES)
    remote = Breaking(content, MIN_PROGRESS_BYTES - 1)
    with pytest.raises(LinkBroken):
        fetch_file(remote, target, listed(content), go_on)
    assert remote.offsets == [0]
    assert target.stat().st_size == MIN_PROGRESS_BYTES - 1


class Republished:
    """A file that is published again, with another content of the same size, while a connection breaks."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = list(contents)
        self.offsets: list[int] = []

    def __call__(self, offset: int) -> Iterator[bytes]:
        self.offsets.append(offset)
        content = self.contents.pop(0)
        yield content[offset : offset + MIN_PROGRESS_BYTES]
        if self.contents:
            raise LinkBroken(EffectFailure(FailureKind.TRANSIENT, "HUB_BROKE_OFF", "broken"))
        yield content[offset + MIN_PROGRESS_BYTES :]


def test_a_file_without_a_hash_is_never_of_two_contents(target: Path) -> None:
    """Nothing would find it: a broken connection begins the file again."""
    old, new = b"o" * 2 * MIN_PROGRESS_BYTES, b"n" * 2 * MIN_PROGRESS_BYTES
    remote = Republished(old, new)
    fetch_file(remote, target, BundleFile("weights.bin", len(new), ""), go_on)
    assert remote.offsets == [0, 0]
    assert target.read_bytes() == new


def test_a_file_without_a_hash_begins_again_a_few_times(target: Path) -> None:
    """A connection that always breaks ends the attempt."""
    content = b"o" * 2 * MIN_PROGRESS_BYTES
    remote = Republished(*[content] * 20)
    with pytest.raises(LinkBroken):
        fetch_file(remote, target, BundleFile("weights.bin", len(content), ""), go_on)
    assert remote.offsets == [0] * (MAX_RESTARTS + 1)
