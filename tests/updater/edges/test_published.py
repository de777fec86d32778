"""Publishing a plain folder, and what a manifest may say."""

import fcntl
import json
import os
from hashlib import sha256
from pathlib import Path

import pytest

from cli.hub import publish
from cli.problems import CommandFailed
from common.bundle import BundleFile
from common.source import MANIFEST_NAME, ManifestBroken, check_files, check_names, read_manifest
from updater.revision import describe_release

SHA = "0" * 64


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder as downloaded."""
    folder = tmp_path / "download"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "notes.txt").write_text("notes")
    (folder / ".mdl").write_text("the hub client's own")
    return folder


def test_a_plain_folder_becomes_a_revision(model: Path, tmp_path: Path) -> None:
    """With all files in its manifest, except hidden ones."""
    done = publish(model, tmp_path / "hub", "shapes", "v1.0.0")
    assert [file.name for file in read_manifest(done.folder)] == ["config.json", "sub/notes.txt"]
    assert (done.folder / "sub" / "notes.txt").read_text() == "notes"
    assert not (done.folder / ".mdl").exists()


def test_publishing_again_changes_nothing(model: Path, tmp_path: Path) -> None:
    """The same content under the same name."""
    publish(model, tmp_path / "hub", "shapes", "v1.0.0")
    assert not publish(model, tmp_path / "hub", "shapes", "v1.0.0").is_new
    assert [path.name for path in (tmp_path / "hub" / "shapes").iterdir()] == ["v1.0.0"]


def test_a_revision_never_changes(model: Path, tmp_path: Path) -> None:
    """Different content needs another name."""
    publish(model, tmp_path / "hub", "shapes", "v1.0.0")
    (model / "config.json").write_text("[]")
    with pytest.raises(CommandFailed, match="never changes"):
        publish(model, tmp_path / "hub", "shapes", "v1.0.0")


def test_what_a_killed_command_has_left_is_deleted(model: Path, tmp_path: Path) -> None:
    """By the next one; a folder that is being filled by a command that lives is not."""
    left, filled = (tmp_path / "hub" / "shapes" / f".adding-{name}" for name in ("left", "filled"))
    for folder in (left, filled):
        folder.mkdir(parents=True)
        (folder / "weights.bin").write_bytes(b"half")
    descriptor = os.open(filled, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    publish(model, tmp_path / "hub", "shapes", "v1.0.0")
    assert sorted(path.name for path in left.parent.iterdir()) == [".adding-filled", "v1.0.0"]

    os.close(descriptor)
    publish(model, tmp_path / "hub", "shapes", "v1.0.0")
    assert [path.name for path in left.parent.iterdir()] == ["v1.0.0"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_branch_has_another_content_afterwards(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    can_exchange: bool,  # noqa: FBT001  a parameter
) -> None:
    """`master` and `main` are branches; clients see the old files or the new ones, where the system can exchange."""
    if not can_exchange:
        monkeypatch.setattr("cli.hub.exchange_folders", lambda *_: False)
    first = publish(model, tmp_path / "hub", "shapes", "master")
    (model / "config.json").write_text("[]")
    second = publish(model, tmp_path / "hub", "shapes", "master")

    assert second.is_new
    assert first.files != second.files
    assert read_manifest(tmp_path / "hub" / "shapes" / "master") == second.files
    assert [path.name for path in (tmp_path / "hub" / "shapes").iterdir()] == ["master"]


def test_a_symbolic_link_is_not_published(model: Path, tmp_path: Path) -> None:
    """Its target could change later."""
    (model / "weights.bin").symlink_to("/etc/passwd")
    with pytest.raises(CommandFailed, match="not a regular file"):
        publish(model, tmp_path / "hub", "shapes", "v1.0.0")


@pytest.mark.parametrize("revision", ["", "../v1", "a/b", ".hidden", "x" * 129, "v1\n"])
def test_a_revision_name_must_be_safe(model: Path, tmp_path: Path, revision: str) -> None:
    """It becomes a folder name."""
    with pytest.raises(CommandFailed, match="cannot name"):
        publish(model, tmp_path / "hub", "shapes", revision)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("../evil", marks=pytest.mark.fault("P1")),
        pytest.param("a/../../evil", marks=pytest.mark.fault("P1")),
        pytest.param("/etc/passwd", marks=pytest.mark.fault("P2")),
        pytest.param("a\\b", marks=pytest.mark.fault("P3")),
        pytest.param("c:evil", marks=pytest.mark.fault("P3")),
        pytest.param("a\0b", marks=pytest.mark.fault("P4")),
        pytest.param("a\nb", marks=pytest.mark.fault("P4")),
        pytest.param("x" * 300, marks=pytest.mark.fault("P5")),
        pytest.param("/".join(["x" * 200] * 10), marks=pytest.mark.fault("P5")),
        pytest.param("", marks=pytest.mark.fault("P1")),
        pytest.param("a//b", marks=pytest.mark.fault("P1")),
        pytest.param("./a", marks=pytest.mark.fault("P1")),
    ],
)
def test_an_unsafe_name_in_a_manifest_is_refused(name: str) -> None:
    """Before any path is built from it."""
    with pytest.raises(ManifestBroken):
        check_names([name])


@pytest.mark.fault("C7")
@pytest.mark.parametrize("names", [("a.txt", "a.txt"), ("a.bin", "A.bin"), ("caf\u00e9.json", "cafe\u0301.json")])
def test_a_duplicate_name_is_refused(names: tuple[str, str]) -> None:
    """Also one that differs only in case or Unicode form."""
    with pytest.raises(ManifestBroken, match="twice"):
        check_names(names)


@pytest.mark.fault("C6")
@pytest.mark.parametrize("sha", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64])
def test_a_malformed_hash_in_a_manifest_is_refused(sha: str) -> None:
    """It is not compared with anything."""
    with pytest.raises(ManifestBroken, match="SHA-256"):
        check_files([BundleFile("a", 1, sha)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({"schema_version": 2, "files": []}),
        json.dumps({"schema_version": 1, "files": [{"name": "a"}]}),
        json.dumps({"schema_version": 1, "files": [{"name": "a", "size": True, "sha256": SHA}]}),
        json.dumps({"schema_version": 1, "files": [{"name": "a", "size": -1, "sha256": SHA}]}),
        json.dumps(
            {"schema_version": 1, "files": [{"name": f"{i}.json", "size": 1, "sha256": SHA} for i in range(2001)]}
        ),
        "[" * 100_000,
        " " * (3 << 20),
    ],
)
def test_a_malformed_manifest_is_refused(tmp_path: Path, text: str) -> None:
    """Its content is not trusted."""
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(ManifestBroken):
        read_manifest(tmp_path)


@pytest.mark.fault("R16")
def test_a_listing_has_the_digest_of_an_earlier_build_too() -> None:
    """Builds before did not count the tokenizer's files; a revision without them has one digest."""
    small = {"configuration.json": b'{"task": "visual-entailment", "model": {"type": "ofa"}}'}
    names = ("configuration.json", "config.json", "pytorch_model.bin", "vocab.json", "merges.txt")
    plain = [BundleFile(name, 9, sha256(name.encode()).hexdigest()) for name in names]
    added = BundleFile("added_tokens.json", 2, "a" * 64)

    before = describe_release("1.0.0", plain, lambda file: small[file.name], lambda _: "")
    after = describe_release("1.0.0", [*plain, added], lambda file: small[file.name], lambda _: "")

    assert after.former_digest == before.source_digest != after.source_digest
    assert before.former_digest == ""
