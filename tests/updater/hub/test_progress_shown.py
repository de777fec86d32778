"""How far a transfer has come, on the screen."""

from rich.console import Console

from cli.updates_view import show_status
from dev.harness.revisions import MODEL
from hotslot.updates.v1 import updates_pb2 as pb
from updater.core.record import ModelRecord
from updater.service.convert import to_model_updates
from updater.status import Share, StatusSnapshot

MIB = 1 << 20


def shown(share: Share) -> str:
    """The status as a terminal shows it."""
    state = to_model_updates(StatusSnapshot(ModelRecord(MODEL)), share)
    console = Console(width=120, force_terminal=False)
    with console.capture() as captured:
        console.print(show_status(pb.GetStatusResponse(models=[state])))
    return captured.get()


def test_a_download_has_a_progress_bar() -> None:
    """With the downloaded bytes."""
    page = shown(Share(3 * MIB, 12 * MIB))
    assert "3.0 MiB of 12 MiB" in page
    assert "25%" in page
    assert 7 <= page.count("━") <= 30


def test_without_a_download_there_is_no_progress_bar() -> None:
    """Whether nothing is in progress, or another stage."""
    assert "downloaded" not in shown(Share())
