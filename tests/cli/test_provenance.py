"""The origin of a bundle and the checks that it has passed, as commands show them."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console, RenderableType

from cli.updates_view import show_status, show_update
from common.bundle import Bundle, HubKind, HubLocation, Provenance, bundle_folder, write_bundle
from dev.harness.scripted_engine import make_scripted_bundle
from hotslot.updates.v1 import updates_pb2 as pb
from tests.cli.conftest import Hotslot

PLACE = HubLocation(HubKind.MODELSCOPE, "iic/ofa", "hub.example:8443")
PROVENANCE = Provenance(
    PLACE, "v1.2.0", "2026-01-02T03:04:05Z", "2026-01-02T03:05:00Z", ("2 names", "6 SHA-256", "14 weights")
)


def sealed(state: Path, provenance: Provenance | None) -> Bundle:
    """A bundle with this provenance."""
    bundle = replace(make_scripted_bundle(state, "r1"), provenance=provenance)
    write_bundle(bundle_folder(state, bundle.bundle_digest), bundle)
    return bundle


def printed(part: RenderableType) -> str:
    """The text on a wide screen, on one line."""
    console = Console(width=300)
    with console.capture() as capture:
        console.print(part)
    return " ".join(capture.get().split())


def test_a_bundle_is_shown_with_its_origin(hotslot: Hotslot, tmp_path: Path) -> None:
    """Hub, model, revision and time; and the checks."""
    bundle = sealed(tmp_path, PROVENANCE)
    ended = hotslot("bundle", "show", bundle.bundle_digest, "--state-dir", str(tmp_path))
    words = " ".join(ended.out.split())
    assert "from the hub hub.example:8443: iic/ofa v1.2.0, fetched 2026-01-02T03:04:05Z" in words
    assert "checked 2026-01-02T03:05:00Z: 2 names, 6 SHA-256, 14 weights" in words


def test_an_imported_bundle_is_shown_as_imported(hotslot: Hotslot, tmp_path: Path) -> None:
    """It has only the check of the conversion."""
    place = HubLocation(HubKind.IMPORT, "shapes")
    bundle = sealed(tmp_path, Provenance(place, "v1", "2026-01-02T03:04:05Z", "", ("14 weights",)))
    words = " ".join(hotslot("bundle", "show", bundle.bundle_digest, "--state-dir", str(tmp_path)).out.split())
    assert "from `hotslot bundle import`: shapes v1" in words
    assert "checked 14 weights" in words


def test_the_origin_of_an_older_bundle_is_unknown(hotslot: Hotslot, tmp_path: Path) -> None:
    """Older versions of hotslot did not record it."""
    bundle = sealed(tmp_path, None)
    ended = hotslot("bundle", "show", bundle.bundle_digest, "--state-dir", str(tmp_path))
    assert (ended.code, "unknown: sealed by an older hotslot" in " ".join(ended.out.split())) == (0, True)


def test_the_status_of_updates_has_the_origin_too() -> None:
    """For the committed bundle, and for every update whose bundle still exists."""
    row = pb.Provenance(hub_kind="folder", hub_model="shapes", revision="v1.2.0", checked=["2 names"])
    row.fetched_at.FromJsonString("2026-01-02T03:04:05Z")
    status = pb.GetStatusResponse(models=[pb.ModelUpdates(model="shapes", committed_provenance=row)])
    shown = "from a folder hub: shapes v1.2.0, fetched 2026-01-02 03:04:05Z checked 2 names"
    assert shown in printed(show_status(status))
    assert shown in printed(show_update(pb.GetUpdateResponse(provenance=row)))
    assert "from" not in printed(show_update(pb.GetUpdateResponse()))
