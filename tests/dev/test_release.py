"""One version in every place, its notes, its tags and its checksums; `make release-dry-run` builds the artefacts."""

import hashlib
import re
from pathlib import Path

from dev.scripts.release import (
    HOMES,
    PLACES,
    ROOT,
    find_foreign_homes,
    list_foreign_homes,
    list_mistakes,
    list_tags,
    read_notes,
    read_versions,
    replace_version,
    write_checksums,
)


def test_all_places_name_one_version() -> None:
    """Server, clients, image, manifests, pages and changelog; `python -m dev.scripts.release --set` writes it."""
    assert list_mistakes(read_versions()) == []


def test_a_place_that_was_forgotten_is_named() -> None:
    """And one that has no version any more."""
    versions = {**read_versions(), "pyproject.toml": "9.9.9", "clients/java/pom.xml": ""}
    found = list_mistakes(versions)
    assert "clients/java/pom.xml has no version, not 9.9.9" in found
    assert len(found) == len(PLACES) - 1


def test_all_places_name_one_home() -> None:
    """The addresses in pyproject.toml; whoever publishes elsewhere changes all of them."""
    assert find_foreign_homes() == []


def test_another_home_is_named() -> None:
    """In a client's metadata, in Go's import path, in Maven's group, or where the address is missing."""
    texts = {place: (ROOT / place).read_text("utf-8") for place in (*HOMES, "clients/go/go.mod")}
    texts["clients/python/README.md"] = "[hotslot](https://elsewhere.example)"
    assert list_foreign_homes("https://hotslot.io", "https://hotslot.io/hotslot", texts) == [
        "clients/python/README.md has https://elsewhere.example, not https://hotslot.io"
    ]
    texts["clients/python/README.md"] = ""
    found = list_foreign_homes("https://moved.example", "https://moved.example/code", texts)
    assert "clients/python/README.md has no address, not https://moved.example" in found
    assert found[-2:] == [
        "clients/go/go.mod has no module moved.example/client-go",
        "clients/java/pom.xml has no <groupId>example.moved</groupId>",
    ]


def test_a_version_is_written_to_every_place() -> None:
    """And nothing else is changed."""
    for place, pattern in PLACES.items():
        text = (ROOT / place).read_text("utf-8")
        changed = replace_version(text, pattern, "9.9.9")
        found = re.search(pattern, changed)
        assert found is not None
        assert found[2] == "9.9.9"
        assert replace_version(changed, pattern, read_versions()[place]) == text


def test_the_notes_are_the_changelogs_section() -> None:
    """From its heading to the next version's."""
    changelog = "# Changelog\n\n## 0.3.0\n\n- new\n\n## 0.2.0\n\n- first\n"
    assert read_notes("0.3.0", changelog) == "- new\n"
    assert read_notes("0.2.0", changelog) == "- first\n"
    assert read_notes("0.1.0", changelog) == ""
    assert read_notes(read_versions()["pyproject.toml"], (ROOT / "CHANGELOG.md").read_text("utf-8")) != ""


def test_tags_and_checksums(tmp_path: Path) -> None:
    """The Go module has a tag with its folder's name; the sums are as sha256sum reads them."""
    (tmp_path / "a.whl").write_bytes(b"a")
    assert write_checksums(tmp_path).read_text() == f"{hashlib.sha256(b'a').hexdigest()}  a.whl\n"
    assert list_tags("0.2.0") == ["v0.2.0", "clients/go/v0.2.0"]
