"""The numbered list itself: on what was staged, and against what serves; and the page that tells of it."""

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


def test_the_numbers_are_a_list() -> None:
    """From 1 on without a gap; the code runs those that a folder can tell, in their order."""
    assert list(range(1, len(CHECKS) + 1)) == [row.number for row in CHECKS]
    assert [row.number for row, _ in STEPS] == [2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13]


def test_a_reason_belongs_to_one_number() -> None:
    """Whoever reads it knows where to look."""
    reasons = [reason for row in CHECKS for reason in row.reasons]
    assert len(reasons) == len(set(reasons))
    assert all(re.fullmatch(r"[A-Z0-9_]{3,63}", reason) for reason in reasons)
    with pytest.raises(RuntimeError):
        make_check_failure(CHECKS[1], "EXECUTABLE", "of another number")


def test_no_reason_is_raised_that_the_list_does_not_know() -> None:
    """The child that converts knows the list by its reasons only; what befalls the child blames nobody."""
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
    blameless = {"CONVERT_FAILED", "IO_FAILED", "SOURCE_UNREADABLE", "TIME_LIMIT"}
    known = {reason for row in CHECKS for reason in row.reasons}
    assert {"WEIGHTS_BROKEN", "CONFIG_UNSUPPORTED"} <= found
    assert found - known - blameless == set()
    assert make_failure_by_reason("WEIGHTS_BROKEN", "a tensor is missing").failure.message.startswith("check 14 ")


def test_the_page_is_fresh() -> None:
    """`python -m dev.scripts.verification` changes nothing."""
    assert verification.PAGE.read_text(encoding="utf-8") == verification.render()


def test_every_reason_has_a_test() -> None:
    """And no test claims one that is not on the list."""
    known = {reason for row in CHECKS for reason in row.reasons}
    assert known == set(verification.list_tests_by_reason())


@pytest.mark.reason("STATE_DIR_TRUSTED")
@pytest.mark.fault("P14")
@pytest.mark.parametrize("name", ["damo", "iic", "iic--ofa", "damo/deep/state"])
def test_a_state_folder_that_would_be_trusted_is_refused(tmp_path: Path, name: str) -> None:
    """At any part of its path."""
    with pytest.raises(ValueError, match=r"^check 1 state folder: ") as caught:
        check_state_path(tmp_path / name)
    assert getattr(caught.value, "reason", "") == "STATE_DIR_TRUSTED"
    check_state_path(tmp_path / "damocles" / "state")


@pytest.mark.reason("NOT_REGULAR")
@pytest.mark.fault("P6")
@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "second name"])
def test_only_regular_files_of_one_name_pass(staged: Path, kind: str) -> None:
    """Whatever else stands there could be something else tomorrow."""
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
    assert reason_of(lambda: check(staged, rows)) == (3, "NOT_REGULAR", FailureKind.PERMANENT)


@pytest.mark.reason("UNSAFE_NAME")
@pytest.mark.fault("P4")
@pytest.mark.parametrize("name", ["a\nb.json", "a\\b.json", "CONFIG.json"])
def test_a_name_on_the_disk_is_as_safe_as_a_listed_one(staged: Path, name: str) -> None:
    """Whoever put it there."""
    rows = listed(staged)
    (staged / name).write_text("{}")
    assert reason_of(lambda: check(staged, rows)) == (2, "UNSAFE_NAME", FailureKind.PERMANENT)


@pytest.mark.reason("FILES_UNKNOWN")
@pytest.mark.fault("C2")
@pytest.mark.parametrize("name", ["extra.txt", "run.py", "pytorch_model.bin"])
def test_no_file_lies_beside_the_declared_ones(staged: Path, name: str) -> None:
    """Whatever came there after staging is not converted."""
    rows = listed(staged)
    (staged / name).write_text("import os")
    assert reason_of(lambda: check(staged, rows)) == (4, "FILES_UNKNOWN", FailureKind.PERMANENT)


@pytest.mark.reason("SIZE_MISMATCH")
@pytest.mark.fault("C5")
@pytest.mark.parametrize("content", [b"", b"#version\n more"])
def test_a_size_on_the_disk_is_the_listed_one(staged: Path, content: bytes) -> None:
    """Told before anything is hashed."""
    rows = listed(staged)
    (staged / "merges.txt").write_bytes(b"#version\n")
    rows = [replace(row, size=9) if row.name == "merges.txt" else row for row in rows]
    (staged / "merges.txt").write_bytes(content)
    assert reason_of(lambda: check(staged, rows)) == (5, "SIZE_MISMATCH", FailureKind.PERMANENT)


@pytest.mark.reason("CONTENT_MISMATCH")
@pytest.mark.fault("C4")
def test_a_bit_that_flips_on_the_disk_is_found(staged: Path) -> None:
    """What was hashed while it came is hashed again from where it lies."""
    rows, path = listed(staged), staged / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert reason_of(lambda: check(staged, rows)) == (6, "CONTENT_MISMATCH", FailureKind.PERMANENT)


@pytest.mark.reason("SOURCE_MISMATCH")
def test_files_of_another_revision_are_refused(staged: Path) -> None:
    """Each as listed, and all together not what was decided for."""
    rows = listed(staged)
    failed = reason_of(lambda: verify(staged, "sha256:" + "0" * 64, rows, lambda: None))
    assert failed == (7, "SOURCE_MISMATCH", FailureKind.PERMANENT)


@pytest.mark.reason("EXECUTABLE")
@pytest.mark.fault("P12")
@pytest.mark.parametrize("mode", [0o100, 0o010, 0o001])
def test_no_file_has_a_mode_to_be_run(staged: Path, mode: int) -> None:
    """By nobody at all."""
    rows = listed(staged)
    (staged / "vocab.json").chmod(0o600 | mode)
    assert reason_of(lambda: check(staged, rows)) == (9, "EXECUTABLE", FailureKind.PERMANENT)


@pytest.mark.reason("FILES_CHANGED")
@pytest.mark.fault("P7")
@pytest.mark.parametrize("what", ["content", "swap", "another"])
def test_a_file_that_is_touched_while_it_is_checked_is_noticed(staged: Path, what: str) -> None:
    """By whoever can write there; the revision is not to blame, and it is looked at again."""
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


def test_where_it_came_from_decides_nothing(tmp_path: Path) -> None:
    """Damaged or gone, the files pass as before; the bundle then does not say."""
    assert read_fetch_record(tmp_path / "gone") is None
    for text in ("", "{}", '{"place": {"kind": "other"}}', "[" * 5000):
        (tmp_path / "origin.json").write_text(text)
        assert read_fetch_record(tmp_path / "origin.json") is None


# Against what serves.


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
def test_what_callers_would_notice_does_not_change(
    tmp_path: Path, reason: str, vocabulary: dict[str, int], merges: str, fields: dict[str, object]
) -> None:
    """A revision of a model does what the model does; another one is a model of its own."""
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
def test_what_callers_do_not_notice_may_change(
    tmp_path: Path, vocabulary: dict[str, int], merges: str, fields: dict[str, object]
) -> None:
    """New words, another precision, whatever older bundles did not say."""
    serving, candidate = sealed(tmp_path / "s", WORDS), sealed(tmp_path / "c", vocabulary, merges, **fields)
    check_compatible(candidate, tmp_path / "c", serving, tmp_path / "s")


def test_an_older_bundle_is_read_as_it_is(tmp_path: Path) -> None:
    """Without a word of where it came from, and of what callers meet."""
    from common.bundle import MANIFEST_NAME, bundle_folder, read_bundle  # noqa: PLC0415  used here alone

    bundle = make_scripted_bundle(tmp_path, "r1")
    path = bundle_folder(tmp_path, bundle.bundle_digest) / MANIFEST_NAME
    row = json.loads(path.read_text())
    for key in ("interface", "provenance"):
        row.pop(key)
    path.write_text(json.dumps(row))
    assert bundle == read_bundle(path.parent)
