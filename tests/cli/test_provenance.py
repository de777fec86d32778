"""Where a bundle came from and what it passed, on the screen."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console, RenderableType

from cli.updates_view import show_status, show_update
from common.bundle import Bundle, HubKind, HubLocation, Provenance, bundle_folder, write_bundle
from hotslot.updates.v1 import updates_pb2 as pb
from tests.cli.conftest import Hotslot
from tests.scripted_engine import make_scripted_bundle

PLACE = HubLocation(HubKind.MODELSCOPE, "iic/ofa", "hub.example:8443")
PROVENANCE = Provenance(
    PLACE, "v1.2.0", "2026-01-02T03:04:05Z", "2026-01-02T03:05:00Z", ("2 names", "6 SHA-256", "14 weights")
)


def sealed(state: Path, provenance: Provenance | None) -> Bundle:
    """A bundle that says so."""
    bundle = replace(make_scripted_bundle(state, "r1"), provenance=provenance)
    write_bundle(bundle_folder(state, bundle.bundle_digest), bundle)
    return bundle


def printed(part: RenderableType) -> str:
    """As it stands on a wide screen, in one line."""
    console = Console(width=300)
    with console.capture() as capture:
        console.print(part)
    return " ".join(capture.get().split())


def test_a_bundle_says_where_it_came_from(hotslot: Hotslot, tmp_path: Path) -> None:
    """Hub, model, revision, when; and the numbers of the list."""
    bundle = sealed(tmp_path, PROVENANCE)
    ended = hotslot("bundle", "show", bundle.bundle_digest, "--state-dir", str(tmp_path))
    words = " ".join(ended.out.split())
    assert "from the hub at hub.example:8443: iic/ofa v1.2.0, fetched 2026-01-02T03:04:05Z" in words
    assert "checked 2026-01-02T03:05:00Z: 2 names, 6 SHA-256, 14 weights" in words


def test_a_bundle_that_was_brought_in_by_hand_says_so(hotslot: Hotslot, tmp_path: Path) -> None:
    """Nobody ran the list over it."""
    place = HubLocation(HubKind.IMPORT, "shapes")
    bundle = sealed(tmp_path, Provenance(place, "v1", "2026-01-02T03:04:05Z", "", ("14 weights",)))
    words = " ".join(hotslot("bundle", "show", bundle.bundle_digest, "--state-dir", str(tmp_path)).out.split())
    assert "from by hand, with `hotslot bundle import`: shapes v1" in words
    assert "checked 14 weights" in words


def test_an_older_bundle_says_nothing(hotslot: Hotslot, tmp_path: Path) -> None:
    """And that is told."""
    bundle = sealed(tmp_path, None)
    ended = hotslot("bundle", "show", bundle.bundle_digest, "--state-dir", str(tmp_path))
    assert (ended.code, "does not say: sealed by an older hotslot" in " ".join(ended.out.split())) == (0, True)


def test_status_and_an_update_say_it_too() -> None:
    """The committed one, and any update whose bundle is still there."""
    row = pb.Provenance(hub_kind="folder", hub_model="shapes", revision="v1.2.0", checked=["2 names"])
    row.fetched_at.FromJsonString("2026-01-02T03:04:05Z")
    status = pb.GetStatusResponse(models=[pb.ModelUpdates(model="shapes", committed_provenance=row)])
    told = "from a folder hub: shapes v1.2.0, fetched 2026-01-02 03:04:05Z checked 2 names"
    assert told in printed(show_status(status))
    assert told in printed(show_update(pb.GetUpdateResponse(provenance=row)))
    assert "from" not in printed(show_update(pb.GetUpdateResponse()))
