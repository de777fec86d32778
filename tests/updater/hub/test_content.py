"""A hub's listings and files over HTTP: everything is checked."""

import shutil
from typing import Any

import pytest

from dev.harness.revisions import MODEL, model_folder
from tests.updater.hub.conftest import ID, REVISION, WEIGHTS, WHOLE, HubBench, failure
from tests.updater.scripted_hub import MODEL_ID, Exchange, says, truncates_after
from updater.core.effects import EffectFailure, FailureKind, Staged, StageRevision
from updater.perform import Ports, perform


def listed(bench: HubBench, **changed: Any) -> None:  # noqa: ANN401  fields of an entry
    """From now on the listing has one more entry."""
    row = {"Path": "extra.json", "Type": "blob", "Size": 4, "Sha256": "0" * 64, **changed}
    bench.server.change_rows = lambda rows: rows.append(row)


def changes(bench: HubBench, name: str, **changed: Any) -> None:  # noqa: ANN401  fields of an entry
    """From now on the listing says something else of one file."""

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["Path"] == name:
                row.update(changed)

    bench.server.change_rows = change


def everything(bench: HubBench) -> set[str]:
    """Every file outside the hub's own folder."""
    files = (path for path in bench.folder.rglob("*") if path.is_file())
    return {str(path) for path in files if bench.folder / "hub" not in path.parents}


def test_a_release_equals_that_of_the_folder_hub(bench: HubBench) -> None:
    """The same files and the same digest over both adapters."""
    from updater.hub.folder import DirectoryHub  # noqa: PLC0415  used here alone

    assert DirectoryHub(bench.folder / "hub", MODEL, bench.clock).release(REVISION, WHOLE) == bench.release()
    assert bench.release().source_digest == bench.stage()


@pytest.mark.fault("R3")
def test_a_listing_that_changes_during_the_download_is_not_ready(bench: HubBench) -> None:
    """Nothing is installed unless the listing is the same before and after."""
    release = bench.release()

    def publish_again(exchange: Exchange) -> None:
        bench.server.change_rows = lambda rows: rows.__delitem__(0)
        exchange.answer()

    for act in (publish_again, _with_another_hash(bench)):
        bench.server.change_rows = lambda _: None
        bench.server.fails(act, "file", name=WEIGHTS)
        shutil.rmtree(bench.staged, ignore_errors=True)
        failed = staged_by_the_core(bench, release.source_digest)
        assert isinstance(failed, EffectFailure)
        assert FailureKind.NOT_READY is failed.kind
    bench.server.change_rows = lambda _: None
    assert Staged(release.source_digest) == staged_by_the_core(bench, release.source_digest)


def _with_another_hash(bench: HubBench) -> Any:  # noqa: ANN401  an act
    def act(exchange: Exchange) -> None:
        changes(bench, "vocab.json", Sha256="1" * 64)
        exchange.answer()

    return act


def staged_by_the_core(bench: HubBench, digest: str) -> object:
    """The result of the action, performed as in the daemon."""
    from common.sealing import ConvertLimits  # noqa: PLC0415  used here alone
    from dev.harness.simulated_server import SimServer  # noqa: PLC0415
    from tests.updater.simulators import SimGolden  # noqa: PLC0415
    from updater.store.bundles import (  # noqa: PLC0415
        BundleStore,
        ChildConverter,
        StoreOptions,
    )
    from updater.store.garbage import References  # noqa: PLC0415
    from updater.store.staging import StagingLimits  # noqa: PLC0415

    state = bench.folder / "state"
    server = SimServer(lambda: "", lambda _: "")
    store = BundleStore(StoreOptions(state, StagingLimits(0)), MODEL, bench.clock, lambda: None, References)
    hub = bench.hub
    hub.release(REVISION, WHOLE)  # has seen that all of it is there: no more questions but those for bytes
    converter = ChildConverter(state, ConvertLimits(), lambda: None)
    ports = Ports(hub, server, SimGolden(server, {}), store, converter, bench.clock)
    return perform(StageRevision(ID, REVISION, digest, False, 1 << 30), ports)


@pytest.mark.fault("R4")
def test_a_branch_that_is_named_like_a_release_is_hidden(bench: HubBench) -> None:
    """A branch can be moved; other branches are listed, since an operator may request one."""
    for name in ("master", "v9.9.9"):
        bench.publish(name)
    bench.server.branches = ("master", "v9.9.9")
    assert bench.hub.revisions(WHOLE) == ("master", REVISION)


@pytest.mark.fault("R11")
def test_a_deleted_tag_is_unknown(bench: HubBench) -> None:
    """Only this tag is missing; the hub works otherwise."""
    shutil.rmtree(bench.folder / "hub" / MODEL / REVISION)
    bench.publish("v1.0.1")
    failed = failure(bench.release)
    assert (failed.kind, failed.reason) == (FailureKind.PERMANENT, "REVISION_UNKNOWN")


def test_a_hub_that_denies_every_listing_is_not_the_revisions_fault(bench: HubBench) -> None:
    """The revision is not quarantined."""
    bench.server.fails(says(404), "listing")
    failed = failure(bench.release)
    assert (failed.kind, failed.reason) == (FailureKind.NOT_READY, "NOT_LISTED")
    bench.server.fails(says(404), times=2)
    failed = failure(bench.release)
    assert (failed.kind, failed.reason) == (FailureKind.DENIED, "MODEL_UNKNOWN")


@pytest.mark.fault("R15")
@pytest.mark.parametrize("name", ["configuration.json", WEIGHTS])
def test_a_revision_with_a_missing_file_is_not_ready(bench: HubBench, name: str) -> None:
    """The tag exists before the weights; it is checked again at the next poll."""
    place = bench.folder / "hub" / MODEL / REVISION / name
    content = place.read_bytes()
    hub = bench.hub
    for there in (None, content[:-1]):
        if there is None:
            place.unlink()
        else:
            place.write_bytes(there)
        release = hub.release(REVISION, WHOLE)
        assert not release.is_ready
        assert name in release.missing
    place.write_bytes(content)
    assert hub.release(REVISION, WHOLE).is_ready
    bench.server.asked.clear()
    assert hub.release(REVISION, WHOLE).is_ready
    assert bench.server.of_kind("file") == [], "what was seen whole is asked for again"


def test_weights_that_disappear_before_the_download_are_not_ready(bench: HubBench) -> None:
    """Between the poll and the download."""
    release = bench.release()
    weights = bench.folder / "hub" / MODEL / REVISION / WEIGHTS
    content = weights.read_bytes()
    weights.unlink()
    assert _kind(failure(lambda: bench.stage(release))) == (FailureKind.NOT_READY, "FILE_MISSING")
    weights.write_bytes(content[:100])
    assert _kind(failure(lambda: bench.stage(release))) == (FailureKind.NOT_READY, "FILE_SHORT")
    assert _kind(failure(lambda: bench.stage(release))) == (FailureKind.NOT_READY, "FILE_SHORT")
    weights.write_bytes(content)
    assert release.source_digest == bench.stage(release)


def _kind(failed: EffectFailure) -> tuple[FailureKind, str]:
    return failed.kind, failed.reason


@pytest.mark.fault("C4")
def test_a_file_with_a_flipped_bit_is_downloaded_once_more(bench: HubBench) -> None:
    """A second flipped bit fails the attempt."""
    release = bench.release()

    def flips(exchange: Exchange) -> None:
        exchange.body = bytes([exchange.body[0] ^ 1]) + exchange.body[1:]
        exchange.answer()

    bench.server.fails(flips, "file", name=WEIGHTS)
    assert release.source_digest == bench.stage(release)
    shutil.rmtree(bench.staged)
    bench.server.fails(flips, "file", times=2, name=WEIGHTS)
    assert _kind(failure(lambda: bench.stage(release))) == (FailureKind.TRANSIENT, "CONTENT_MISMATCH")


@pytest.mark.fault("C4")
def test_a_flipped_bit_in_the_configuration_hides_no_other_revision(bench: HubBench) -> None:
    """The poll continues; staging reports the reason."""
    place = bench.folder / "hub" / MODEL / REVISION / "configuration.json"
    place.write_bytes(place.read_bytes()[:-1] + b" ")
    release = bench.release()
    assert release.is_ready
    assert _kind(failure(lambda: bench.stage(release))) == (FailureKind.TRANSIENT, "CONTENT_MISMATCH")


@pytest.mark.fault("C5")
def test_a_file_that_is_one_byte_short_is_not_ready(bench: HubBench) -> None:
    """Whether the hub has a shorter file, or the response ends early."""
    release = bench.release()
    bench.server.fails(truncates_after(4095), "file", name=WEIGHTS)
    assert _kind(failure(lambda: bench.stage(release))) == (FailureKind.TRANSIENT, "HUB_BROKE_OFF")
    assert release.source_digest == bench.stage(release)
    shutil.rmtree(bench.staged)

    def shorter(exchange: Exchange) -> None:
        exchange.body = exchange.body[:-1]
        exchange.answer()

    bench.server.fails(shorter, "file", name=WEIGHTS)
    assert _kind(failure(lambda: bench.stage(release))) == (FailureKind.NOT_READY, "FILE_SHORT")


def test_a_changed_partial_file_is_downloaded_again(bench: HubBench) -> None:
    """Kept bytes are hashed again before the download continues."""
    release = bench.release()
    bench.server.fails(truncates_after(2000), "file", name=WEIGHTS)
    failure(lambda: bench.stage(release))
    (bench.staged / WEIGHTS).write_bytes(b"x" * 2000)
    assert release.source_digest == bench.stage(release)


@pytest.mark.fault("C6")
def test_a_hash_in_upper_case_is_the_same_hash(bench: HubBench) -> None:
    """A hash of another length is refused."""
    plain = bench.release()
    changes(bench, WEIGHTS, Sha256=next(file.sha256 for file in plain.files if file.name == WEIGHTS).upper())
    assert plain.source_digest == bench.release().source_digest == bench.stage()
    for sha256 in ("0" * 63, "g" * 64, "0" * 64 + "\n"):
        changes(bench, WEIGHTS, Sha256=sha256)
        assert failure(bench.stage).reason == "LISTING_UNSAFE"


def test_an_undeclared_file_needs_no_hash(bench: HubBench) -> None:
    """It is not downloaded and does not change the source digest."""
    plain = bench.release()
    listed(bench, Path="docs/README.md", Sha256="")
    assert plain == bench.release()
    assert plain.source_digest == bench.stage()


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("../evil.json", marks=pytest.mark.fault("P1")),
        pytest.param("a/../../evil.json", marks=pytest.mark.fault("P1")),
        pytest.param("", marks=pytest.mark.fault("P1")),
        pytest.param("/tmp/evil.json", marks=pytest.mark.fault("P2")),  # noqa: S108  is never opened
        pytest.param("..\\evil.json", marks=pytest.mark.fault("P3")),
        pytest.param("c:evil.json", marks=pytest.mark.fault("P3")),
        pytest.param("evil\x00.json", marks=pytest.mark.fault("P4")),
        pytest.param("evil\n.json", marks=pytest.mark.fault("P4")),
        pytest.param("evil\ud800.json", marks=pytest.mark.fault("P4")),
        pytest.param("e" * 300, marks=pytest.mark.fault("P5")),
        pytest.param("/".join(["e" * 200] * 10), marks=pytest.mark.fault("P5")),
        pytest.param("CONFIG.json", marks=pytest.mark.fault("C7")),
        pytest.param("config.json", marks=pytest.mark.fault("C7")),
    ],
)
def test_an_unsafe_name_writes_nothing(bench: HubBench, path: str) -> None:
    """The revision is refused by its listing, and no path is built from the name."""
    listed(bench, Path=path)
    before = everything(bench)
    release = bench.release()
    assert release.is_ready
    assert release.source_digest
    failed = failure(lambda: bench.stage(release))
    assert _kind(failed) == (FailureKind.PERMANENT, "LISTING_UNSAFE")
    assert before == everything(bench)
    assert bench.server.of_kind("file") == []


@pytest.mark.parametrize("size", [-1, 1 << 41])
def test_an_invalid_size_is_refused(bench: HubBench, size: int) -> None:
    """Before anything is downloaded."""
    changes(bench, WEIGHTS, Size=size)
    assert bench.release().is_ready
    assert failure(bench.stage).reason == "LISTING_UNSAFE"


def test_a_path_in_the_configuration_is_not_followed(bench: HubBench) -> None:
    """Only top-level names of the listing are allowed."""
    configuration = {"model": {"type": "ofa", "answer2label": "../../answers.json"}}
    made = model_folder(bench.folder / "made2", "v1.0.1", configuration)
    from cli.hub import publish  # noqa: PLC0415  used here alone

    publish(made, bench.folder / "hub", MODEL, "v1.0.1")
    release = bench.hub.release("v1.0.1", WHOLE)
    assert failure(lambda: bench.stage(release)).reason == "FILES_MISSING"


def test_the_model_name_is_part_of_the_request_path(bench: HubBench) -> None:
    """Owner and name, as in the protocol."""
    bench.hub.revisions(WHOLE)
    (asked,) = bench.server.asked
    assert asked.target.startswith(f"/api/v1/models/{MODEL_ID}/revisions?")
    assert asked.headers["accept-encoding"] == "identity"
