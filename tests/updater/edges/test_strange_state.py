"""A state folder as an operator may leave it, and a real updater on it: it tells what it found, and serving goes on."""

from pathlib import Path

import grpc
import pytest

from common.bundle import POINTER_NAME, Committed, Origin
from dev.harness.pointer import commit_row
from dev.harness.revisions import MODEL
from dev.harness.scripted_engine import make_scripted_bundle
from hotslot.updates.v1 import updates_pb2 as pb
from tests.stack.refusal import refusal_of
from tests.updater.edges.conftest import MakeWorld
from tests.updater.edges.test_witness import interrupt_a_write
from tests.updater.edges.world import World
from updater.settings import JOURNAL_NAME
from updater.store.journal import Journal
from updater.store.witness import rollback_path, witness_path

pytestmark = [pytest.mark.timeout(180)]


@pytest.fixture
def imported(make_world: MakeWorld) -> World:
    """A world in which somebody has imported a model under a name that is no version, before the first start."""
    world = make_world(committed=None)
    bundle = make_scripted_bundle(world.state, "lab")
    commit_row(world.state, Committed(MODEL, bundle.bundle_digest, bundle.source_digest, "lab", Origin.IMPORT))
    return world.start()


def other_rollback_journal(folder: Path) -> bytes:
    """What a kill in the middle of a write left beside another journal."""
    folder.mkdir()
    Journal(folder / JOURNAL_NAME).close()
    return interrupt_a_write(folder / JOURNAL_NAME)[1]


@pytest.mark.fault("H2")
@pytest.mark.fault("H5")
@pytest.mark.fault("H13")
@pytest.mark.fault("H14")
def test_an_import_is_not_replaced_before_an_operator_has_looked(imported: World) -> None:
    """Neither by the first release, nor while the pointer is torn, nor beside another journal's rollback journal."""
    imported.publish("v0.9.0")
    updater = imported.start_updater()
    imported.wait_rest("HELD")
    held = imported.status().current
    assert (held.revision, held.reason) == ("v0.9.0", "FIRST_CONTACT")
    assert imported.serving() == "lab"
    updater.stop()

    pointer, journal = imported.state / POINTER_NAME, imported.state / JOURNAL_NAME
    whole = pointer.read_bytes()
    rollback_path(journal).write_bytes(other_rollback_journal(imported.folder / "other"))
    updater = imported.start_updater()
    imported.wait(lambda: "journal.db-journal was left by another" in imported.status().fault, "it is not applied")
    updater.stop()

    for path in (journal, rollback_path(journal), witness_path(journal)):
        path.unlink()
    pointer.write_bytes(whole[: len(whole) // 2])
    updater = imported.start_updater()
    imported.wait(lambda: "cannot be read" in imported.status().fault, "a torn pointer is no first start")
    with pytest.raises(grpc.RpcError) as caught:
        imported.operator.Update(pb.UpdateRequest(revision="v0.9.0"), timeout=20)
    assert refusal_of(caught.value).brief[0] == "UNAVAILABLE"
    assert imported.serving() == "lab"
    assert not journal.exists()
    updater.stop()

    pointer.write_bytes(whole)
    imported.restart_updater()
    imported.wait_rest("HELD")
    digest = imported.status().current.source_digest
    imported.operator.Approve(pb.ApproveRequest(source_digest=digest.removeprefix("sha256:")[:6]), timeout=20)
    imported.wait_committed("v0.9.0")
    imported.close()
