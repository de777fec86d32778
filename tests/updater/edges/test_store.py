"""Staging, verification, sealing and collection, on a real folder hub."""

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cli.bundles import bundle_folders
from common.bundle import Committed, Origin, bundle_folder, lock_pointer, read_committed, update_pointer
from common.clock import SystemClock
from common.durable import LockTimeout, read_bounded
from common.sealing import ConvertLimits, seal
from common.source import MANIFEST_NAME, ConversionRefused
from dev.harness.pointer import commit_row
from dev.harness.revisions import MODEL, convert_scripted, model_folder, publish_scripted
from dev.harness.scripted_engine import make_scripted_bundle
from dev.harness.scripted_updater import digest_of_scripted
from updater.core.effects import EffectFailure, FailureKind
from updater.core.facts import Release
from updater.core.ports import EffectFailed
from updater.core.record import Installed
from updater.hub.folder import DirectoryHub
from updater.store import garbage
from updater.store.bundles import BundleStore, ChildConverter, StoreOptions
from updater.store.garbage import References
from updater.store.staging import StagingLimits
from updater.store.state_folder import UnsafeStateFolder

ID = "20260102-030405-abcdef"
GIB = 1 << 30


@dataclass
class StoreFixture:
    """A hub and a store."""

    folder: Path
    hub: DirectoryHub
    store: BundleStore
    converter: ChildConverter

    @property
    def state(self) -> Path:
        """The folder of state."""
        return self.folder / "state"

    @property
    def published(self) -> Path:
        """The model's folder in the hub."""
        return self.folder / "hub" / MODEL

    @property
    def files(self) -> Path:
        """What is staged."""
        return self.state / "incoming" / ID / "files"

    def publish(self, revision: str = "v1.0.0", **script: Any) -> Release:  # noqa: ANN401  of Script
        """Publish and list a revision."""
        publish_scripted(self.folder / "hub", revision, **script)
        return self.hub.release(revision, 10.0)

    def stage(self, release: Release, *, is_fresh: bool = False) -> str:
        """Fetch a revision."""
        return self.store.stage(ID, release, self.hub, GIB, 60.0, is_fresh=is_fresh)

    def verify(self, digest: str, compatible_with: str = "") -> None:
        """Run the list over what is staged."""
        self.store.verify(self.store.source_folder(ID, digest, is_kept=False), digest, compatible_with)


@pytest.fixture
def bench(tmp_path: Path) -> StoreFixture:
    """An empty hub and an empty store."""
    clock = SystemClock()
    (tmp_path / "state").mkdir()
    shared = StoreOptions(tmp_path / "state", StagingLimits(reserve_bytes=0))
    return StoreFixture(
        tmp_path,
        DirectoryHub(tmp_path / "hub", MODEL, clock),
        BundleStore(shared, MODEL, clock, lambda: None, References, digest_of_scripted),
        ChildConverter(tmp_path / "state", ConvertLimits(), lambda: None, convert_scripted),
    )


def failure(action: Callable[[], object]) -> EffectFailure:
    """How something failed; it must."""
    with pytest.raises(EffectFailed) as caught:
        action()
    return caught.value.failure


def test_a_revision_is_staged_verified_sealed_and_kept(bench: StoreFixture) -> None:
    """The source files are kept for a newer converter."""
    release = bench.publish()
    digest = bench.stage(release)
    assert release.source_digest == digest
    bench.verify(digest)
    sealed = bench.converter.seal(bench.store.source_folder(ID, digest, is_kept=False), "v1.0.0", "float32", 60.0, None)
    bench.store.keep_source(ID, digest)
    assert {sealed} == bench.store.sealed()
    assert not (bench.state / "incoming" / ID).exists()
    assert sealed == bench.store.converts_to(Installed("v1.0.0", digest, sealed))


def test_every_step_is_idempotent(bench: StoreFixture) -> None:
    """A crash between an effect and its record costs nothing."""
    release = bench.publish()
    digest = bench.stage(release)
    assert digest == bench.stage(release)
    for _ in range(2):
        folder = bench.store.source_folder(ID, digest, is_kept=False)
        bench.store.verify(folder, digest, "")
        bench.converter.seal(folder, "v1.0.0", "float32", 60.0, None)
        bench.store.keep_source(ID, digest)


def test_only_declared_files_are_staged(bench: StoreFixture) -> None:
    """An edited README does not change the source digest."""
    release = bench.publish("v1.0.0")
    made = bench.folder / "made" / "made-v1.0.0"
    (made / "README.md").write_text("better words")
    shutil.copytree(made, bench.folder / "again")
    (bench.folder / "again" / "run.py").write_text("import os")
    from cli.hub import publish  # noqa: PLC0415  used here alone

    publish(bench.folder / "again", bench.folder / "hub", MODEL, "v1.0.1")
    other = bench.hub.release("v1.0.1", 10.0)
    assert release.source_digest == other.source_digest
    bench.stage(other)
    assert not {"README.md", "run.py"} & {path.name for path in bench.files.iterdir()}


@pytest.mark.fault("R15")
@pytest.mark.parametrize("name", ["model.safetensors", "configuration.json", MANIFEST_NAME])
def test_a_revision_whose_file_is_missing_is_not_ready(bench: StoreFixture, name: str) -> None:
    """Neither an update nor a failure."""
    bench.publish()
    (bench.published / "v1.0.0" / name).unlink()
    release = bench.hub.release("v1.0.0", 10.0)
    assert not release.is_ready
    assert release.missing


@pytest.mark.fault("R15")
def test_a_revision_whose_weights_are_short_is_not_ready(bench: StoreFixture) -> None:
    """Also if they are truncated during the download."""
    release = bench.publish()
    os.truncate(bench.published / "v1.0.0" / "model.safetensors", 100)
    assert not bench.hub.release("v1.0.0", 10.0).is_ready
    assert FailureKind.NOT_READY is failure(lambda: bench.stage(release)).kind


def test_a_folder_without_a_manifest_is_not_ready(bench: StoreFixture) -> None:
    """It may still be being copied."""
    (bench.published / "v1.0.0").mkdir(parents=True)
    assert not bench.hub.release("v1.0.0", 10.0).is_ready


def test_a_missing_hub_folder_is_a_fault_of_the_hub(bench: StoreFixture) -> None:
    """It may be mounted later; it is no empty hub."""
    assert failure(lambda: bench.hub.revisions(10.0)).reason == "HUB_MISSING"
    assert failure(lambda: bench.hub.release("v1.0.0", 10.0)).reason == "REVISION_UNKNOWN"


@pytest.mark.fault("C4")
def test_a_flipped_bit_is_refused(bench: StoreFixture) -> None:
    """Size and name match the listing."""
    release = bench.publish()
    weights = bench.published / "v1.0.0" / "model.safetensors"
    weights.write_bytes(b"\x01" + weights.read_bytes()[1:])
    failed = failure(lambda: bench.stage(release))
    assert (failed.kind, failed.reason) == (FailureKind.TRANSIENT, "CONTENT_MISMATCH")


@pytest.mark.fault("C1")
@pytest.mark.parametrize("name", ["config.json", "vocab.json", "model.safetensors"])
def test_a_revision_without_a_needed_file_is_refused(bench: StoreFixture, name: str) -> None:
    """Waiting does not help: its listing is complete."""
    folder = model_folder(bench.folder / "made", "v1.0.0")
    (folder / name).unlink()
    from cli.hub import publish  # noqa: PLC0415  used here alone

    publish(folder, bench.folder / "hub", MODEL, "v1.0.0")
    release = bench.hub.release("v1.0.0", 10.0)
    assert release.source_digest
    assert failure(lambda: bench.stage(release)).reason == "FILES_MISSING"


@pytest.mark.fault("C2")
def test_an_extra_file_is_refused(bench: StoreFixture) -> None:
    """It appeared after staging."""
    digest = bench.stage(bench.publish())
    (bench.files / "extra.txt").write_text("hello")
    assert failure(lambda: bench.verify(digest)).reason == "FILES_UNKNOWN"


@pytest.mark.fault("P12")
def test_code_beside_the_files_is_refused(bench: StoreFixture) -> None:
    """Nothing executable is kept."""
    digest = bench.stage(bench.publish())
    (bench.files / "run.py").write_text("import os")
    assert failure(lambda: bench.verify(digest)).reason == "FILES_UNKNOWN"


@pytest.mark.fault("C8")
@pytest.mark.parametrize(
    "change", [{"task": "image-classification"}, {"model": {"type": "bert"}}, {"model": "ofa"}, {"task": None}]
)
def test_another_task_or_model_type_is_refused(bench: StoreFixture, change: dict[str, Any]) -> None:
    """No engine of this build serves it."""
    release = bench.publish(configuration=change)
    assert failure(lambda: bench.stage(release)).reason == "ENGINE_UNKNOWN"


@pytest.mark.fault("P13")
@pytest.mark.parametrize("key", ["plugins", "allow_remote", "auto_map"])
def test_a_configuration_that_asks_for_code_is_refused(bench: StoreFixture, key: str) -> None:
    """At any depth of the configuration."""
    digest = bench.stage(bench.publish(configuration={"pipeline": {"type": "x", "deep": [{key: ["a.b"]}]}}))
    assert failure(lambda: bench.verify(digest)).reason == "CONFIG_ASKS_FOR_CODE"


@pytest.mark.fault("P7")
def test_a_link_swapped_in_after_staging_is_refused(bench: StoreFixture) -> None:
    """The verified files must be the converted ones."""
    digest = bench.stage(bench.publish())
    weights = bench.files / "model.safetensors"
    weights.rename(bench.folder / "elsewhere")
    weights.symlink_to(bench.folder / "elsewhere")
    assert failure(lambda: bench.verify(digest)).reason == "NOT_REGULAR"


@pytest.mark.reason("SOURCE_CHANGED")
@pytest.mark.fault("P7")
def test_files_swapped_after_verification_are_not_sealed(bench: StoreFixture) -> None:
    """The converter must read the verified files."""
    digest = bench.stage(bench.publish())
    bench.verify(digest)
    (bench.files / "model.safetensors").write_bytes(b"another model")
    assert (
        failure(lambda: bench.converter.seal(bench.files, "v1.0.0", "float32", 60.0, None)).reason == "SOURCE_CHANGED"
    )


@pytest.mark.fault("P6")
def test_a_link_in_the_hub_is_refused(bench: StoreFixture) -> None:
    """A folder hub is not trusted either."""
    release = bench.publish()
    weights = bench.published / "v1.0.0" / "model.safetensors"
    weights.rename(bench.folder / "elsewhere")
    weights.symlink_to(bench.folder / "elsewhere")
    assert failure(lambda: bench.stage(release)).reason == "NOT_REGULAR"


@pytest.mark.fault("P1")
@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil", "a\nb"])
def test_a_listing_with_a_dangerous_name_is_refused(bench: StoreFixture, name: str) -> None:
    """Nothing is written; the revision is identified by its digest."""
    bench.publish()
    manifest = bench.published / "v1.0.0" / MANIFEST_NAME
    row = json.loads(manifest.read_text())
    row["files"].append({"name": name, "size": 1, "sha256": "0" * 64})
    manifest.write_text(json.dumps(row))
    release = bench.hub.release("v1.0.0", 10.0)
    assert release.is_ready
    assert release.source_digest
    assert failure(lambda: bench.stage(release)).reason == "LISTING_UNSAFE"
    assert not bench.files.exists()


@pytest.mark.fault("P14")
@pytest.mark.parametrize("name", ["damo", "iic", "damo--ofa"])
def test_a_folder_with_a_trusted_name_is_refused(tmp_path: Path, name: str) -> None:
    """The hub's library runs code of a model because of its folder's name."""
    with pytest.raises(UnsafeStateFolder):
        BundleStore(StoreOptions(tmp_path / name), MODEL, SystemClock(), lambda: None, References)


def test_another_task_than_the_serving_one_is_refused(bench: StoreFixture) -> None:
    """It must be configured as a separate model."""
    other = make_scripted_bundle(bench.state, "other")
    folder = bundle_folder(bench.state, other.bundle_digest)
    text = (folder / "bundle.json").read_text().replace("visual-entailment", "token-classification")
    (folder / "bundle.json").write_text(text)
    digest = bench.stage(bench.publish())
    assert failure(lambda: bench.verify(digest, other.bundle_digest)).reason == "TASK_CHANGED"


@pytest.mark.reason("TOO_LARGE")
def test_a_revision_over_max_revision_bytes_is_refused(bench: StoreFixture) -> None:
    """Before its weights are downloaded."""
    release = bench.publish(weights_bytes=100_000)
    failed = failure(lambda: bench.store.stage(ID, release, bench.hub, 50_000, 60.0, is_fresh=False))
    assert failed.reason == "TOO_LARGE"
    assert not (bench.files / "model.safetensors").exists()


@pytest.mark.fault("D1")
def test_a_full_disk_is_found_before_the_download(bench: StoreFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan counts the download, the conversion until it is sealed, and the reserve; the numbers are told."""
    release = bench.publish(weights_bytes=10 << 20)
    usage = shutil._ntuple_diskusage(10**9, 10**9 - (20 << 20), 20 << 20)  # noqa: SLF001
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    failed = failure(lambda: bench.stage(release))
    assert "27.5 MiB of disk space (10.0 MiB to download, 17.5 MiB to convert and seal" in failed.message
    assert failed.shortage is not None
    assert (failed.shortage.needed_bytes >> 20, failed.shortage.free_bytes >> 20) == (27, 20)
    assert (failed.kind, failed.reason) == (FailureKind.TRANSIENT, "DISK_FULL")


@pytest.mark.fault("H17")
def test_a_conversion_that_does_not_fit_is_not_begun(bench: StoreFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is sealed, its space is not asked for again."""
    digest = bench.stage(bench.publish(weights_bytes=10 << 20))
    folder = bench.store.source_folder(ID, digest, is_kept=False)
    usage = shutil._ntuple_diskusage(10**9, 10**9 - (16 << 20), 16 << 20)  # noqa: SLF001
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _path: usage)
        failed = failure(lambda: bench.converter.seal(folder, "v1.0.0", "float32", 60.0, None))
    assert (failed.kind, failed.reason) == (FailureKind.TRANSIENT, "DISK_FULL")
    assert not list((bench.state / "staging").glob("*"))


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        pytest.param(errno.ENOSPC, FailureKind.TRANSIENT, "DISK_FULL", marks=pytest.mark.fault("D1")),
        pytest.param(errno.EIO, FailureKind.TRANSIENT, "IO_FAILED", marks=pytest.mark.fault("D2")),
        pytest.param(errno.EROFS, FailureKind.DENIED, "READ_ONLY", marks=pytest.mark.fault("D3")),
        pytest.param(errno.EDQUOT, FailureKind.TRANSIENT, "QUOTA_EXCEEDED", marks=pytest.mark.fault("D4")),
    ],
)
def test_a_disk_error_is_reported_and_retried(
    bench: StoreFixture, monkeypatch: pytest.MonkeyPatch, code: int, kind: FailureKind, reason: str
) -> None:
    """At the sync of each file; the next attempt syncs every byte."""
    release = bench.publish()

    def fail(_descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        failed = failure(lambda: bench.stage(release))
    assert (kind, reason) == (failed.kind, failed.reason)
    assert release.source_digest == bench.stage(release)


@pytest.mark.fault("D1")
@pytest.mark.fault("D5")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EXDEV])
def test_a_failed_write_keeps_the_pointer(bench: StoreFixture, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The old pointer is intact, and the next attempt succeeds."""
    bundles = [make_scripted_bundle(bench.state, revision) for revision in ("r1", "r2")]
    old, new = (Installed(row.revision, row.source_digest, row.bundle_digest) for row in bundles)
    bench.store.write_pointer(old)

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", fail)
        failure(lambda: bench.store.write_pointer(new))
    assert old == bench.store.pointer()
    bench.store.write_pointer(new)
    assert new == bench.store.pointer()
    assert not [path for path in bench.state.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.fault("D2")
def test_a_pointer_whose_folder_cannot_be_flushed_is_put_back(
    bench: StoreFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial would be committed on what a crash of the machine undoes; the next attempt writes it again."""
    bundles = [make_scripted_bundle(bench.state, revision) for revision in ("r1", "r2")]
    old, new = (Installed(row.revision, row.source_digest, row.bundle_digest) for row in bundles)
    sync = os.fsync

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    for before, after in ((None, old), (old, new)):
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", fail)
            assert failure(partial(bench.store.write_pointer, after)).reason == "IO_FAILED"
        assert bench.store.pointer() == before
        bench.store.write_pointer(after)
        assert bench.store.pointer() == after


def test_rows_of_other_models_are_kept(bench: StoreFixture) -> None:
    """One file has the rows of all models."""
    bundle = make_scripted_bundle(bench.state, "r1")
    other = Committed("other", bundle.bundle_digest, bundle.source_digest, "r1", Origin.IMPORT)
    commit_row(bench.state, other)
    bench.store.write_pointer(Installed("r1", bundle.source_digest, bundle.bundle_digest))
    bench.store.write_pointer(None)
    assert bench.store.pointer() is None
    assert {"other": other} == read_committed(bench.state)


def fail_to_read(code: int, patched: pytest.MonkeyPatch) -> None:
    """Every read of a manifest or the pointer fails."""

    def fail(path: Path, _limit: int) -> bytes:
        raise OSError(code, os.strerror(code), path)

    patched.setattr("common.bundle.read_bounded", fail)


@pytest.mark.fault("H15")
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EIO, FailureKind.TRANSIENT),
        (errno.ESTALE, FailureKind.TRANSIENT),
        (errno.EACCES, FailureKind.DENIED),
    ],
)
def test_a_pointer_that_cannot_be_read_now_loses_no_row_and_no_bundle(
    bench: StoreFixture, monkeypatch: pytest.MonkeyPatch, code: int, kind: FailureKind
) -> None:
    """A row of an imported model is in no journal: neither it nor its bundle could be made again."""
    imported, ours = (make_scripted_bundle(bench.state, name) for name in ("imported", "ours"))
    other = Committed("other", imported.bundle_digest, imported.source_digest, "imported", Origin.IMPORT)
    commit_row(bench.state, other)
    installed = Installed("ours", ours.source_digest, ours.bundle_digest)
    with monkeypatch.context() as broken:
        fail_to_read(code, broken)
        with pytest.raises(OSError, match=os.strerror(code)):
            bench.store.pointer()
        assert failure(lambda: bench.store.write_pointer(installed)).kind is kind
        assert failure(lambda: bench.store.collect(frozenset(), frozenset(), "", 0)).kind is kind
    assert {"other": other} == read_committed(bench.state)
    assert {imported.bundle_digest, ours.bundle_digest} == bench.store.sealed()

    bench.store.write_pointer(installed)
    assert sorted(read_committed(bench.state)) == ["other", MODEL]


@pytest.mark.fault("D6")
def test_a_pointer_of_a_newer_hotslot_is_never_replaced(bench: StoreFixture) -> None:
    """A downgrade would lose the rows of all models without an updater; the sentence says what to do."""
    bundle = make_scripted_bundle(bench.state, "r1")
    path = bench.state / "committed.json"
    path.write_text('{"schema_version": 99, "models": {}}')
    before = path.read_bytes()
    for action in (
        bench.store.pointer,
        lambda: bench.store.write_pointer(Installed("r1", bundle.source_digest, bundle.bundle_digest)),
        lambda: bench.store.collect(frozenset(), frozenset(), "", 0),
    ):
        failed = failure(action)
        assert (failed.kind, failed.reason) == (FailureKind.DENIED, "POINTER_TOO_NEW")
        assert "start the newer hotslot again" in failed.message
    assert path.read_bytes() == before
    assert {bundle.bundle_digest} == bench.store.sealed()


@pytest.mark.fault("D7")
def test_bundles_of_a_malformed_pointer_that_was_replaced_are_kept(bench: StoreFixture) -> None:
    """Until a person has deleted it: an imported model's row and bundle can be had back."""
    imported, ours = (make_scripted_bundle(bench.state, name) for name in ("imported", "ours"))
    commit_row(bench.state, Committed("other", imported.bundle_digest, imported.source_digest, "r", Origin.IMPORT))
    path, kept = bench.state / "committed.json", bench.state / "committed.json.broken"
    torn = path.read_bytes()[:-3]
    path.write_bytes(torn)
    bench.store.write_pointer(Installed("ours", ours.source_digest, ours.bundle_digest))
    assert list(read_committed(bench.state)) == [MODEL]
    assert kept.read_bytes() == torn
    bench.store.collect(frozenset(), frozenset(), "", 0)
    assert {imported.bundle_digest, ours.bundle_digest} == bench.store.sealed()

    kept.unlink()
    bench.store.collect(frozenset(), frozenset(), "", 0)
    assert {ours.bundle_digest} == bench.store.sealed()


@pytest.mark.fault("H15")
def test_a_bundle_that_cannot_be_read_now_is_neither_deleted_nor_unknown(
    bench: StoreFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for a broken one, which the next conversion replaces, and with which nothing is compared."""
    bundle = make_scripted_bundle(bench.state, "r1")
    sealed, staging = bundle_folder(bench.state, bundle.bundle_digest), bench.state / "staging" / "convert-1"
    shutil.copytree(sealed, staging)
    inode = sealed.stat().st_ino

    def fail(path: Path, limit: int) -> bytes:
        if path.parent == sealed:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return read_bounded(path, limit)

    with monkeypatch.context() as broken:
        broken.setattr("common.bundle.read_bounded", fail)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            seal(staging, bench.state)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            bench.store.check_compatible("sha256:" + "0" * 64, bundle.bundle_digest, may_change_labels=False)
    assert sealed.stat().st_ino == inode
    assert {bundle.bundle_digest} == bench.store.sealed()


@pytest.mark.fault("D6")
def test_a_bundle_that_a_newer_hotslot_has_sealed_is_not_replaced(bench: StoreFixture) -> None:
    """It is whole, and the newer hotslot may be started again."""
    bundle = make_scripted_bundle(bench.state, "r1")
    sealed, staging = bundle_folder(bench.state, bundle.bundle_digest), bench.state / "staging" / "convert-1"
    shutil.copytree(sealed, staging)
    manifest = sealed / "bundle.json"
    row = json.loads(manifest.read_bytes())
    manifest.unlink()
    manifest.write_text(json.dumps({**row, "schema_version": 99}))
    before = manifest.read_bytes()
    with pytest.raises(ConversionRefused, match="start the newer hotslot again"):
        seal(staging, bench.state)
    assert manifest.read_bytes() == before


@pytest.mark.fault("D7")
def test_orphans_are_collected_and_references_are_kept(bench: StoreFixture) -> None:
    """Orphans are staging folders, temporary files and unreferenced bundles."""
    kept, pointed, orphan = (make_scripted_bundle(bench.state, name) for name in ("kept", "pointed", "orphan"))
    bench.store.write_pointer(Installed("pointed", pointed.source_digest, pointed.bundle_digest))
    bench.stage(bench.publish())
    shutil.copytree(bench.state / "incoming" / ID, bench.state / "incoming" / "20250101-000000-dead")
    (bench.state / "bundles" / ".dropped-sha256-x").mkdir()
    old = bench.state / "staging" / "convert-old"
    young = bench.state / "staging" / "convert-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
    temp = bench.state / ".committed.json.abc.tmp"
    temp.write_text("half")
    past = (datetime.now(UTC) - timedelta(hours=3)).timestamp()
    for path in (old, temp):
        os.utime(path, (past, past))

    bench.store.collect(frozenset({kept.bundle_digest}), frozenset(), ID, 0)
    assert {kept.bundle_digest, pointed.bundle_digest} == bench.store.sealed()
    assert orphan.bundle_digest not in bench.store.sealed()
    assert [path.name for path in (bench.state / "incoming").iterdir()] == [ID]
    assert [young] == list((bench.state / "staging").iterdir())
    assert not temp.exists()


@pytest.mark.fault("D7")
@pytest.mark.parametrize("ends", ["deleted", "killed", "stopped"])
def test_gigabytes_are_deleted_without_the_lock_of_the_pointer(
    bench: StoreFixture, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Other models' commits would time out. What a crash in between leaves is no bundle, and goes with the next run."""
    orphan = make_scripted_bundle(bench.state, "orphan")
    leftover = bench.state / "bundles" / f".dropped-{orphan.bundle_digest.replace(':', '-')}"
    leftover.mkdir()
    remove, deleted = shutil.rmtree, list[str]()

    def remove_and_commit(path: Path) -> None:
        update_pointer(bench.state, "other", lambda row: row, wait_seconds=0.0)
        deleted.append(path.name)
        if ends == "killed":
            raise KeyboardInterrupt
        remove(path)

    def check_stop() -> None:
        if ends == "stopped":
            raise KeyboardInterrupt

    stop = pytest.raises(KeyboardInterrupt) if ends != "deleted" else contextlib.nullcontext()
    with monkeypatch.context() as watched, stop:
        watched.setattr(shutil, "rmtree", remove_and_commit)
        watched.setattr(bench.store, "_check_stop", check_stop)
        bench.store.collect(frozenset(), frozenset(), "", 0)
    assert len(deleted) == {"deleted": 2, "killed": 1, "stopped": 0}[ends]
    assert (bench.store.sealed(), bundle_folders(bench.state)) == (frozenset(), [])
    assert len(list((bench.state / "bundles").iterdir())) == 2 - len(deleted) + (ends == "killed")

    bench.store.collect(frozenset(), frozenset(), "", 0)
    assert not list((bench.state / "bundles").iterdir())


@pytest.mark.fault("D7")
def test_a_bundle_that_an_import_seals_and_commits_anew_is_kept(
    bench: StoreFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The import replaces a broken one without the lock, just before that would be renamed; what it seals has a row."""
    bundle = make_scripted_bundle(bench.state, "imported")
    sealed, rename = bundle_folder(bench.state, bundle.bundle_digest), Path.rename
    (bench.state / "bundles" / ".dropped-x").mkdir()

    def rename_late(path: Path, target: Path) -> Path:
        if path == sealed:
            shutil.rmtree(sealed)
        return rename(path, target)

    def commit_import() -> None:
        if not sealed.exists():
            make_scripted_bundle(bench.state, "imported")
            row = Committed("other", bundle.bundle_digest, bundle.source_digest, "imported", Origin.IMPORT)
            commit_row(bench.state, row)

    with monkeypatch.context() as raced:
        raced.setattr(Path, "rename", rename_late)
        raced.setattr(bench.store, "_check_stop", commit_import)
        bench.store.collect(frozenset(), frozenset(), "", 0)
    assert {bundle.bundle_digest} == bench.store.sealed()


@pytest.mark.fault("D7")
@pytest.mark.parametrize("refused", ["iterdir", "rename", "rmtree"])
def test_what_cannot_be_deleted_keeps_nothing_else(
    bench: StoreFixture, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """A folder of another owner, or one that is mounted, would fill the disk; each collection reports it."""
    staging = bench.state / "staging"
    theirs, ours = staging / "convert-1", staging / "convert-2"
    past = (datetime.now(UTC) - timedelta(hours=3)).timestamp()
    for folder in (theirs, ours):
        folder.mkdir(parents=True)
        os.utime(folder, (past, past))
    make_scripted_bundle(bench.state, "orphan")
    owner, name = (shutil, refused) if refused == "rmtree" else (Path, refused)
    real = getattr(owner, name)

    def refuse(path: Path, *rest: Path) -> object:
        if path.name.endswith(theirs.name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(owner, name, refuse)
        for _ in range(2):
            failed = failure(lambda: bench.store.collect(frozenset(), frozenset(), "", 0))
            assert "permission denied" in failed.message
    assert [path.name.removeprefix(garbage.DROPPED_PREFIX) for path in staging.iterdir()] == [theirs.name]
    assert not list((bench.state / "bundles").iterdir())

    bench.store.collect(frozenset(), frozenset(), "", 0)
    assert not list(staging.iterdir())


def test_a_folder_that_two_delete_is_gone_after_both(bench: StoreFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each finds files that the other has deleted."""
    remove, folder = shutil.rmtree, bench.state / "bundles" / ".dropped-x"
    (folder / "inner").mkdir(parents=True)

    def remove_a_part(path: Path) -> None:
        if (path / "inner").exists():
            (path / "inner").rmdir()
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "inner")
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", remove_a_part)
    garbage.delete(folder)
    assert not folder.exists()


def test_the_newest_unreferenced_bundles_are_kept_under_the_cap(bench: StoreFixture) -> None:
    """So that a rollback by hand needs no conversion."""
    bundles = [make_scripted_bundle(bench.state, f"r{number}") for number in range(4)]
    for age, bundle in enumerate(reversed(bundles)):
        then = datetime.now(UTC).timestamp() - 100 * age
        os.utime(bundle_folder(bench.state, bundle.bundle_digest), (then, then))
    size = sum(path.stat().st_size for path in bundle_folder(bench.state, bundles[0].bundle_digest).iterdir())
    bench.store.collect(frozenset(), frozenset(), "", int(2.5 * size))
    assert {bundle.bundle_digest for bundle in bundles[2:]} == bench.store.sealed()


def test_references_of_other_models_are_kept(bench: StoreFixture) -> None:
    """All models share one state folder."""
    bundle = make_scripted_bundle(bench.state, "theirs")
    others = References(frozenset({bundle.bundle_digest}), frozenset(), frozenset({"20250101-000000-them"}))
    store = BundleStore(StoreOptions(bench.state), MODEL, SystemClock(), lambda: None, lambda: others)
    (bench.state / "incoming" / "20250101-000000-them").mkdir(parents=True)
    store.collect(frozenset(), frozenset(), "", 0)
    assert {bundle.bundle_digest} == store.sealed()
    assert (bench.state / "incoming" / "20250101-000000-them").exists()


def test_other_models_are_asked_for_their_references_under_the_lock(bench: StoreFixture) -> None:
    """The wait for it is long enough for another model to begin an update."""
    asked = []

    def list_references() -> References:
        with pytest.raises(LockTimeout), lock_pointer(bench.state, wait_seconds=0.0):
            pass
        asked.append("others")
        return References()

    store = BundleStore(StoreOptions(bench.state), MODEL, SystemClock(), lambda: None, list_references)
    store.collect(frozenset(), frozenset(), "", 0)
    assert asked == ["others"]
