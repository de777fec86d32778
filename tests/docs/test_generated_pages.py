"""Pages that are made from the code are what the code says."""

import pytest

from common import paths
from dev.documents.blocks import ROOT
from dev.documents.generated import PAGES
from dev.documents.state_reference import ENTRIES
from inference.server.model import fallback_file
from updater.store.state_folder import STATE_ENTRIES


@pytest.mark.parametrize("page", PAGES)
def test_a_generated_page_is_up_to_date(page: str) -> None:
    """If this fails: `python -m dev.documents.generated`."""
    assert (ROOT / page).read_text("utf-8") == PAGES[page]()


def test_the_page_of_the_state_folder_has_every_entry() -> None:
    """Those of the updater, of the server, and of the run folder."""
    run = {
        f"{paths.RUN_FOLDER}/{name}"
        for name in (
            *(paths.CONTROL_SOCKET, paths.UPDATES_SOCKET, paths.SUPERVISOR_SOCKET, paths.SERVER_STARTED),
            *(paths.SERVER_LOCK, paths.UPDATER_LOCK, paths.STACK_LOCK, paths.HEARTBEAT),
            "tmp",  # of the watchdog, on a read-only root
        )
    }
    kept = {name for name in STATE_ENTRIES if not name.endswith(".replaced")}
    servers = {fallback_file.FILE_NAME, paths.SAMPLES_FOLDER, paths.KERNELS_FOLDER}
    assert {entry.name for entry in ENTRIES} == kept | servers | run | {paths.RUN_FOLDER, "*.replaced", "hub"}
