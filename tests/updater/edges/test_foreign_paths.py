"""What is no regular file with one link is refused at once at every foreign path: nothing waits for a pipe."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from common.clock import SystemClock
from common.durable import NotRegular, open_regular, open_within, read_bounded
from common.source import MANIFEST_NAME, ConversionRefused, find_source
from dev.harness.revisions import MODEL, model_folder, publish_scripted
from hubserver.folder import HubFolder, NotOnHub
from updater.core.effects import FailureKind
from updater.core.ports import EffectFailed
from updater.hub.folder import DirectoryHub
from updater.hub.settings import TokenReader
from updater.store.transfer import fetch_file

WEIGHTS = "model.safetensors"
pytestmark = [pytest.mark.fault("H16"), pytest.mark.timeout(20)]


def pipe(path: Path) -> None:
    """A pipe that nobody writes into."""
    os.mkfifo(path)


def listening_socket(path: Path) -> None:
    """A socket."""
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def hard_link(path: Path) -> None:
    """The same content by a second name."""
    kept = path.parent.parent / f"kept-{path.name}"
    os.link(kept, path)


def symbolic_link(path: Path) -> None:
    """A link to the same content."""
    path.symlink_to(path.parent.parent / f"kept-{path.name}")


def folder(path: Path) -> None:
    """A folder."""
    path.mkdir()


KINDS = (pipe, listening_socket, hard_link, symbolic_link, folder)
Swap = Callable[[Path], None]


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A folder hub with two revisions."""
    for revision in ("v1.0.0", "v1.1.0"):
        publish_scripted(tmp_path / "hub", revision, tmp_path / f"made-{revision}")
    return tmp_path / "hub"


def swap(hub: Path, name: str, kind: Swap) -> Path:
    """Put something else in the place of a file of v1.1.0."""
    path = hub / MODEL / "v1.1.0" / name
    path.rename(path.parent.parent / f"kept-{name}")
    kind(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_that_is_no_regular_file_hides_no_other_revision(hub: Path, kind: Swap) -> None:
    """The revision is not ready, with the reason; a hub server does not list it."""
    swap(hub, MANIFEST_NAME, kind)
    adapter = DirectoryHub(hub, MODEL, SystemClock())
    release = adapter.release("v1.1.0", 10.0)
    assert (release.is_ready, bool(release.missing)) == (False, True)
    assert adapter.release("v1.0.0", 10.0).is_ready
    assert [row.name for row in HubFolder(hub).revisions(MODEL).revisions] == ["v1.0.0"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["configuration.json", WEIGHTS])
def test_a_file_that_is_no_regular_file_is_not_read(hub: Path, name: str, kind: Swap) -> None:
    """It may be repaired: nothing is blamed on the content that the digest names."""
    adapter, server = DirectoryHub(hub, MODEL, SystemClock()), HubFolder(hub)
    server.revision(MODEL, "v1.1.0")
    swap(hub, name, kind)
    adapter.release("v1.1.0", 10.0)
    with pytest.raises(EffectFailed) as caught:
        list(adapter.read("v1.1.0", name, 0, 10.0))
    assert (caught.value.failure.kind, caught.value.failure.reason) == (FailureKind.TRANSIENT, "NOT_REGULAR")
    with pytest.raises(NotOnHub):
        server.open(MODEL, "v1.1.0", name)


@pytest.mark.parametrize("name", ["configuration.json", "vocab.json"])
def test_an_import_does_not_wait_for_a_pipe(tmp_path: Path, name: str) -> None:
    """`hotslot bundle import` says which file it is."""
    made = model_folder(tmp_path / "made", "v1.0.0")
    (made / name).unlink()
    os.mkfifo(made / name)
    with pytest.raises(ConversionRefused):
        find_source(made).digest()


def test_a_token_file_may_be_a_link_but_not_a_pipe(tmp_path: Path) -> None:
    """Kubernetes mounts secrets as links."""
    (tmp_path / "token").write_text("word")
    (tmp_path / "link").symlink_to(tmp_path / "token")
    assert TokenReader(tmp_path / "link", "")() == "word"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EffectFailed) as caught:
        TokenReader(tmp_path / "pipe", "")()
    assert caught.value.failure.reason == "TOKEN_UNREADABLE"


def test_devices_and_pipes_of_the_own_folder_are_refused(tmp_path: Path) -> None:
    """Whatever a backup or a person has put there."""
    with pytest.raises(NotRegular):
        open_regular(Path("/dev/zero"))
    os.mkfifo(tmp_path / "committed.json")
    with pytest.raises(NotRegular):
        read_bounded(tmp_path / "committed.json", 10)


def test_a_staged_file_with_a_second_link_is_not_written(tmp_path: Path) -> None:
    """It would change what the other name means."""
    made = model_folder(tmp_path / "made", "v1.0.0") / WEIGHTS
    os.link(made, tmp_path / WEIGHTS)
    from common.bundle import hash_file  # noqa: PLC0415  used here alone

    with pytest.raises(NotRegular):
        fetch_file(lambda _offset: iter(()), tmp_path / WEIGHTS, hash_file(made), lambda: None)


def test_a_link_swapped_in_between_two_opens_is_seen(hub: Path) -> None:
    """Each open looks at what it has opened."""
    folder_ = hub / MODEL / "v1.1.0"
    open_within(folder_, WEIGHTS).close()
    swap(hub, WEIGHTS, symbolic_link)
    with pytest.raises(NotRegular):
        open_within(folder_, WEIGHTS)
    shutil.rmtree(folder_)
    with pytest.raises(FileNotFoundError):
        open_within(folder_.parent, WEIGHTS)
