"""The numbered checks: on staged files and against the serving bundle; and the generated page."""

import ast
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.bundle import Bundle, BundleFile, Interface, compute_source_digest, hash_file
from dev.harness.revisions import model_folder
from dev.harness.scripted_engine import make_scripted_bundle
from dev.scripts import verification
from updater.core.checks import CHECKS, CheckFailed, make_check_failure, make_failure_by_reason
from updater.core.effects import FailureKind
from updater.store.state_folder import check_state_path, read_fetch_record
from updater.store.verify import STEPS, check_compatible, verify


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    """A good revision's files, as they lie after staging."""
    return model_folder(tmp_path, "v1.0.0")


def listed(folder: Path) -> list[BundleFile]:
    """What a hub says of them."""
    return [hash_file(path) for path in sorted(folder.iterdir())]


def reason_of(action: Callable[[], object]) -> tuple[int, str, FailureKind]:
    """Which number refused it, why, and whose fault it is."""
    with pytest.raises(CheckFailed) as caught:
        action()
    return caught.value.check.number, caught.value.failure.reason, caught.value.failure.kind


def check(folder: Path, rows: list[BundleFile], check_stop: Callable[[], None] = lambda: None) -> tuple[str, ...]:
    """Run the list."""
    return verify(folder, compute_source_digest(rows), rows, check_stop)[1]


def test_the_checks_are_numbered_without_gaps() -> None:
    """Those on a folder run in the order of their numbers."""
    assert list(range(1, len(CHECKS) + 1)) == [row.number for row in CHECKS]
    assert [row.number for row, _ in STEPS] == [2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13]


def test_a_reason_belongs_to_one_check() -> None:
    """So that it identifies the check."""
    reasons = [reason for row in CHECKS for reason in row.reasons]
    assert len(reasons) == len(set(reasons))
    assert all(re.fullmatch(r"[A-Z0-9_]{3,63}", reason) for reason in reasons)
    with pytest.raises(RuntimeError):
        make_check_failure(CHECKS[1], "EXECUTABLE", "of another number")


def test_every_reason_of_the_converter_belongs_to_a_check() -> None:
    """Except failures of the child process itself, which are not the revision's fault."""
    root = Path(__file__).resolve().parents[3]
    paths = [*(root / "inference" / "runner").rglob("*.py"), root / "common" / "source.py", root / "common/sealing.py"]
    found = {
        node.args[0].value
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "ConversionRefused"
        and isinstance(node.args[0], ast.Constant)
    }
    blameless = {
        *("CONVERT_FAILED", "IO_FAILED", "SOURCE_UNREADABLE", "TIME_LIMIT"),
        *("DISK_FULL", "DOES_NOT_FIT", "OUT_OF_MEMORY"),
    }
    known = {reason for row in CHECKS for reason in row.reasons}
    assert {"WEIGHTS_BROKEN", "CONFIG_UNSUPPORTED"} <= found
    assert found - known - blameless == set()
    assert make_failure_by_reason("WEIGHTS_BROKEN", "a tensor is missing").failure.message.startswith("check 14 ")


def test_the_page_is_up_to_date() -> None:
    """`python -m dev.scripts.verification` changes nothing."""
    assert verification.PAGE.read_text(encoding="utf-8") == verification.render()


def test_every_reason_has_a_test() -> None:
    """And no test is marked with an unknown reason."""
    known = {reason for row in CHECKS for reason in row.reasons}
    assert known == set(verification.list_tests_by_reason())


@pytest.mark.reason("STATE_DIR_TRUSTED")
@pytest.mark.fault("P14")
@pytest.mark.parametrize("name", ["damo", "iic", "iic--ofa", "damo/deep/state"])
def test_a_state_folder_with_a_trusted_name_is_refused(tmp_path: Path, name: str) -> None:
    """At any part of its path."""
    with pytest.raises(ValueError, match=r"^check 1 state folder: ") as caught:
        check_state_path(tmp_path / name)
    assert getattr(caught.value, "reason", "") == "STATE_DIR_TRUSTED"
    check_state_path(tmp_path / "damocles" / "state")


@pytest.mark.reason("NOT_REGULAR")
@pytest.mark.fault("P6")
@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "second name"])
def test_only_regular_files_with_one_hard_link_pass(staged: Path, kind: str) -> None:
    """Anything else could be changed after the check."""
    rows, path = listed(staged), staged / "merges.txt"
    elsewhere = staged.parent / "elsewhere"
    path.rename(elsewhere)
    made: dict[str, Callable[[], object]] = {
        "link": lambda: path.symlink_to(elsewhere),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "second name": lambda: path.hardlink_to(elsewhere),
    }
    made[kind]()
    assert reason_of(lambda: check(staged, rows)) == (3, "NOT_REGULAR", FailureKind.TRANSIENT)


@pytest.mark.reason("UNSAFE_NAME")
@pytest.mark.fault("P4")
@pytest.mark.parametrize("name", ["a\nb.json", "a\\b.json", "CONFIG.json"])
def test_names_on_disk_are_checked_too(staged: Path, name: str) -> None:
    """Not only those of the listing."""
    rows = listed(staged)
    (staged / name).write_text("{}")
    assert reason_of(lambda: check(staged, rows)) == (2, "UNSAFE_NAME", FailureKind.PERMANENT)


@pytest.mark.reason("FILES_UNKNOWN")
@pytest.mark.fault("C2")
@pytest.mark.parametrize("name", ["extra.txt", "run.py", "pytorch_model.bin"])
def test_an_extra_staged_file_is_refused(staged: Path, name: str) -> None:
    """It appeared after staging, and is not converted."""
    rows = listed(staged)
    (staged / name).write_text("import os")
    assert reason_of(lambda: check(staged, rows)) == (4, "FILES_UNKNOWN", FailureKind.PERMANENT)


@pytest.mark.reason("SIZE_MISMATCH")
@pytest.mark.fault("C5")
@pytest.mark.parametrize("content", [b"", b"#version\n more"])
def test_a_wrong_size_on_disk_is_refused(staged: Path, content: bytes) -> None:
    """Before anything is hashed; it says nothing about the revision, so it is fetched again."""
    rows = listed(staged)
    (staged / "merges.txt").write_bytes(b"#version\n")
    rows = [replace(row, size=9) if row.name == "merges.txt" else row for row in rows]
    (staged / "merges.txt").write_bytes(content)
    assert reason_of(lambda: check(staged, rows)) == (5, "SIZE_MISMATCH", FailureKind.TRANSIENT)


@pytest.mark.reason("CONTENT_MISMATCH")
@pytest.mark.fault("C4")
def test_a_bit_that_flips_on_disk_is_found(staged: Path) -> None:
    """Files that were hashed during the download are hashed again from disk."""
    rows, path = listed(staged), staged / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert reason_of(lambda: check(staged, rows)) == (6, "CONTENT_MISMATCH", FailureKind.TRANSIENT)


@pytest.mark.reason("SOURCE_MISMATCH")
def test_files_of_another_revision_are_refused(staged: Path) -> None:
    """Each file matches the listing, but the digest is not that of the update."""
    rows = listed(staged)
    failed = reason_of(lambda: verify(staged, "sha256:" + "0" * 64, rows, lambda: None))
    assert failed == (7, "SOURCE_MISMATCH", FailureKind.TRANSIENT)


@pytest.mark.reason("EXECUTABLE")
@pytest.mark.fault("P12")
@pytest.mark.parametrize("mode", [0o100, 0o010, 0o001])
def test_an_executable_mode_is_refused(staged: Path, mode: int) -> None:
    """For user, group and others."""
    rows = listed(staged)
    (staged / "vocab.json").chmod(0o600 | mode)
    assert reason_of(lambda: check(staged, rows)) == (9, "EXECUTABLE", FailureKind.PERMANENT)


@pytest.mark.reason("FILES_CHANGED")
@pytest.mark.fault("P7")
@pytest.mark.parametrize("what", ["content", "swap", "another"])
def test_a_file_that_is_changed_during_the_checks_is_noticed(staged: Path, what: str) -> None:
    """The revision is not at fault and is tried again."""
    rows, path, seen = listed(staged), staged / "config.json", [0]

    def touch() -> None:
        seen[0] += 1
        if seen[0] != 4:  # with the last piece that is hashed: the small files are hashed already
            return
        if what == "another":
            (staged / "extra.txt").write_text("hello")
        elif what == "swap":
            (staged.parent / "other").write_bytes(path.read_bytes())
            (staged.parent / "other").replace(path)
        else:
            path.write_bytes(path.read_bytes())

    assert reason_of(lambda: check(staged, rows, touch)) == (13, "FILES_CHANGED", FailureKind.TRANSIENT)


def test_the_recorded_origin_decides_nothing(tmp_path: Path) -> None:
    """Without it, or if it is damaged, the files still pass; the bundle then has no provenance."""
    assert read_fetch_record(tmp_path / "gone") is None
    for text in ("", "{}", '{"place": {"kind": "other"}}', "[" * 5000):
        (tmp_path / "origin.json").write_text(text)
        assert read_fetch_record(tmp_path / "origin.json") is None


# Against the serving bundle.


def sealed(folder: Path, vocabulary: dict[str, int], merges: str = "#\na b\n", **fields: Any) -> Bundle:  # noqa: ANN401  of Bundle
    """A bundle of the entailment engine, with its words."""
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text(merges)
    files = (hash_file(folder / "vocab.json"), hash_file(folder / "merges.txt"))
    interface = Interface("ofa", 480, ("yes", "no", "maybe"))
    bundle = Bundle("b", "s", "r", "ofa", "visual-entailment", "float32", "ofa-1", files, interface=interface)
    return replace(bundle, **fields)


WORDS = {"a": 0, "b": 1, "ab": 2}


@pytest.mark.parametrize(
    ("reason", "vocabulary", "merges", "fields"),
    [
        pytest.param("TASK_CHANGED", WORDS, "#\na b\n", {"task": "image-captioning"}),
        pytest.param("TYPE_CHANGED", WORDS, "#\na b\n", {"engine": "mgeo"}),
        pytest.param("TYPE_CHANGED", WORDS, "#\na b\n", {"interface": Interface("ofa2", 480, ("yes", "no", "maybe"))}),
        pytest.param(
            "PICTURE_SIZE_CHANGED", WORDS, "#\na b\n", {"interface": Interface("ofa", 384, ("yes", "no", "maybe"))}
        ),
        pytest.param("LABELS_CHANGED", WORDS, "#\na b\n", {"interface": Interface("ofa", 480, ("no", "yes", "maybe"))}),
        pytest.param("LABELS_CHANGED", WORDS, "#\na b\n", {"interface": Interface("ofa", 480, ("yes", "no"))}),
        pytest.param("VOCABULARY_CHANGED", {"a": 1, "b": 0, "ab": 2}, "#\na b\n", {}),
        pytest.param("VOCABULARY_CHANGED", {"a": 0, "b": 1}, "#\na b\n", {}),
        pytest.param("VOCABULARY_CHANGED", WORDS, "#\nb a\na b\n", {}),
        pytest.param("VOCABULARY_CHANGED", WORDS, "#\n", {}),
    ],
)
@pytest.mark.reason("TASK_CHANGED")
@pytest.mark.reason("TYPE_CHANGED")
@pytest.mark.reason("PICTURE_SIZE_CHANGED")
@pytest.mark.reason("LABELS_CHANGED")
@pytest.mark.reason("VOCABULARY_CHANGED")
@pytest.mark.fault("C8")
def test_an_incompatible_bundle_is_refused(
    tmp_path: Path, reason: str, vocabulary: dict[str, int], merges: str, fields: dict[str, object]
) -> None:
    """Another task, interface or vocabulary must be a separate model."""
    serving, candidate = sealed(tmp_path / "s", WORDS), sealed(tmp_path / "c", vocabulary, merges, **fields)
    failed = reason_of(lambda: check_compatible(candidate, tmp_path / "c", serving, tmp_path / "s"))
    assert (15, reason, FailureKind.PERMANENT) == failed


@pytest.mark.parametrize(
    ("vocabulary", "merges", "fields"),
    [
        (WORDS, "#\na b\n", {}),
        ({**WORDS, "ba": 3}, "#\na b\nb a\n", {}),  # new words come behind
        (WORDS, "#\na b\n", {"interface": None}),  # of an older hotslot
        (WORDS, "#\na b\n", {"revision": "r2", "precision": "bfloat16", "notes": ("a note",)}),
    ],
)
def test_a_compatible_bundle_passes(
    tmp_path: Path, vocabulary: dict[str, int], merges: str, fields: dict[str, object]
) -> None:
    """With appended words, another precision, or properties that older bundles do not record."""
    serving, candidate = sealed(tmp_path / "s", WORDS), sealed(tmp_path / "c", vocabulary, merges, **fields)
    check_compatible(candidate, tmp_path / "c", serving, tmp_path / "s")


@pytest.mark.fault("C8")
def test_the_difference_of_labels_is_named_and_may_be_approved(tmp_path: Path) -> None:
    """New, gone and moved labels; approved, all else is still compared."""
    serving = sealed(tmp_path / "s", WORDS, interface=Interface("mgeo", 0, ("O", "B-prov", "E-prov", "B-poi")))
    candidate = sealed(tmp_path / "c", WORDS, interface=Interface("mgeo", 0, ("O", "E-prov", "B-prov", "B-road")))
    other = sealed(tmp_path / "o", WORDS, interface=Interface("other", 0, ("O",)))

    with pytest.raises(CheckFailed) as failed:
        check_compatible(candidate, tmp_path / "c", serving, tmp_path / "s")
    with pytest.raises(CheckFailed) as other_type:
        check_compatible(other, tmp_path / "o", serving, tmp_path / "s", may_change_labels=True)
    check_compatible(candidate, tmp_path / "c", serving, tmp_path / "s", may_change_labels=True)

    difference = "new: B-road; gone: B-poi; with another number: E-prov, B-prov"
    assert difference in failed.value.failure.message
    assert other_type.value.failure.reason == "TYPE_CHANGED"


def test_a_bundle_of_an_older_build_is_read(tmp_path: Path) -> None:
    """Without provenance and interface."""
    from common.bundle import MANIFEST_NAME, bundle_folder, read_bundle  # noqa: PLC0415  used here alone

    bundle = make_scripted_bundle(tmp_path, "r1")
    path = bundle_folder(tmp_path, bundle.bundle_digest) / MANIFEST_NAME
    row = json.loads(path.read_text())
    for key in ("interface", "provenance"):
        row.pop(key)
    path.write_text(json.dumps(row))
    assert bundle == read_bundle(path.parent)
