"""Requests of ModelScope's clients, and the hub server's responses."""

import hashlib
import json
from pathlib import Path

import pytest

from common.source import MANIFEST_NAME
from dev.harness.hub import FILES, MODEL, Hub, hub
from hubserver.server import HubServerOptions

WORD = "open-sesame"
API = f"/api/v1/models/any/{MODEL}"


def test_branches_and_tags_are_told_apart(serving: Hub) -> None:
    """`master` and `main` are branches, every other revision is a tag; the newest version comes first."""
    serving.publish("v1.1.0")
    serving.publish("master")
    rows = serving.get(f"{API}/revisions").row["Data"]["RevisionMap"]
    assert [row["Revision"] for row in rows["Tags"]] == ["v1.1.0", "v1.0.0"]
    assert [row["Revision"] for row in rows["Branches"]] == ["master"]


def test_a_listing_has_sizes_and_hashes(serving: Hub) -> None:
    """And its folders, as the real hub lists them."""
    rows = serving.get(f"{API}/repo/files?Revision=v1.0.0&Recursive=True").row["Data"]["Files"]
    blobs = {row["Path"]: (row["Size"], row["Sha256"]) for row in rows if row["Type"] == "blob"}
    assert {name: (len(it), hashlib.sha256(it).hexdigest()) for name, it in FILES.items()} == blobs
    assert [row["Path"] for row in rows if row["Type"] == "tree"] == ["parts", "parts/deep"]


@pytest.mark.parametrize(
    ("query", "paths"),
    [
        ("Recursive=False", ["configuration.json", "empty", "parts", "weights.bin"]),
        ("Root=parts&Recursive=True", ["parts/deep", "parts/deep/vocab.txt"]),
        ("Root=parts&Recursive=False", ["parts/deep"]),
        ("Root=par", None),
    ],
)
def test_a_listing_can_be_asked_for_folder_by_folder(serving: Hub, query: str, paths: list[str] | None) -> None:
    """Clients do so for very many files; a folder that is not there is an error."""
    got = serving.get(f"{API}/repo/files?Revision=v1.0.0&{query}")
    assert paths == ([row["Path"] for row in got.row["Data"]["Files"]] if got.status == 200 else None)


@pytest.mark.parametrize("name", list(FILES))
def test_a_file_comes_as_it_was_published(serving: Hub, name: str) -> None:
    """Byte for byte, with its hash as entity tag."""
    got = serving.file(name)
    assert (200, FILES[name]) == (got.status, got.body)
    assert got.headers["etag"] == f'"{hashlib.sha256(FILES[name]).hexdigest()}"'


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [("bytes=0-0", 0, 0), ("bytes=100-199", 100, 199), ("bytes=262000-", 262000, 262143), ("bytes=-9", 262135, 262143)],
)
def test_a_part_of_a_file_can_be_asked_for(serving: Hub, wanted: str, first: int, last: int) -> None:
    """That is how a transfer goes on where it stopped."""
    got = serving.file("weights.bin", range=wanted)
    assert (got.status, got.headers["content-range"]) == (206, f"bytes {first}-{last}/262144")
    assert FILES["weights.bin"][first : last + 1] == got.body


def test_a_part_beyond_the_end_is_refused_with_the_size(serving: Hub) -> None:
    """The response names the limit that was exceeded."""
    got = serving.file("weights.bin", range="bytes=262144-")
    assert (got.status, got.headers["content-range"]) == (416, "bytes */262144")


@pytest.mark.parametrize("wanted", ["bytes=1-2,5-6", "lines=1-2", "bytes=5-2", "bytes=-"])
def test_a_range_that_is_not_understood_gives_the_whole(serving: Hub, wanted: str) -> None:
    """As HTTP has it."""
    assert (200, FILES["weights.bin"]) == ((got := serving.file("weights.bin", range=wanted)).status, got.body)


def test_a_part_of_another_content_is_not_handed_out(serving: Hub) -> None:
    """`If-Range` with another hash: the whole file comes."""
    assert serving.file("weights.bin", range="bytes=5-", if_range='"other"').status == 200


def test_a_head_is_an_answer_without_its_body(serving: Hub) -> None:
    """With the length that it would have."""
    got = serving.get(f"{API}/repo?Revision=v1.0.0&FilePath=weights.bin", "HEAD")
    assert (got.status, got.headers["content-length"], got.body) == (200, "262144", b"")


@pytest.mark.parametrize(
    "target",
    [
        "/api/v1/models/any/nobody/revisions",
        f"{API}/repo/files?Revision=v9",
        f"{API}/repo?Revision=v1.0.0&FilePath=nothing",
        f"{API}/repo?Revision=v1.0.0&FilePath=../v1.0.0/empty",
        f"{API}/repo?Revision=../shapes/v1.0.0&FilePath=empty",
        f"{API}/repo?Revision=v1.0.0&FilePath={MANIFEST_NAME}",
        "/api/v1/models/any/..%2fshapes/revisions",
        "/api/v1/models/any/../revisions",
        "/api/v1/datasets/any/shapes/revisions",
    ],
)
def test_what_is_not_published_is_not_there(serving: Hub, target: str) -> None:
    """Only names that a manifest lists are opened; the error says so in the hub's envelope."""
    got = serving.get(target)
    assert (got.status, got.row["Success"], got.row["Code"]) == (404, False, 404)
    assert str(serving.folder) not in got.row["Message"]


def test_a_model_that_is_not_there_is_told_in_its_interface_s_own_words(serving: Hub) -> None:
    """The two interfaces of the hub have an envelope each."""
    assert serving.get("/openapi/v1/models/any/shapes").row["data"]["id"] == "any/shapes"
    got = serving.get("/openapi/v1/models/any/nobody")
    assert (got.status, got.row["success"], got.row["code"]) == (404, False, "ResourceNotFound")


def test_a_revision_that_is_still_being_copied_is_not_told_of(serving: Hub) -> None:
    """Its manifest came before its weights."""
    serving.publish("v1.1.0")
    weights = serving.folder / MODEL / "v1.1.0" / "weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert serving.get(f"{API}/repo/files?Revision=v1.1.0").status == 404
    weights.write_bytes(whole)
    assert serving.get(f"{API}/repo/files?Revision=v1.1.0").status == 200


def test_a_revision_with_a_broken_manifest_hides_no_other(serving: Hub) -> None:
    """A hand-written manifest is handled like any other."""
    broken = serving.folder / MODEL / "v0.9.0"
    broken.mkdir()
    row = {"schema_version": 1, "files": [{"name": "../x", "size": 1, "sha256": "0" * 64}]}
    (broken / MANIFEST_NAME).write_text(json.dumps(row))
    tags = serving.get(f"{API}/revisions").row["Data"]["RevisionMap"]["Tags"]
    assert [row["Revision"] for row in tags] == ["v1.0.0"]


@pytest.mark.parametrize(("shown", "status"), [({}, 401), ({"Authorization": "Bearer guess"}, 403)])
def test_a_token_is_asked_for(tmp_path: Path, shown: dict[str, str], status: int) -> None:
    """Without it every request is refused, also listings; and it is never logged."""
    with hub(tmp_path, HubServerOptions(find_token=lambda token: {WORD: "reader"}.get(token, ""))) as made:
        made.publish("v1.0.0")
        assert status == made.get(f"{API}/revisions", headers=shown).status
        assert status == made.get("/api/v1/models/any/nobody/revisions", headers=shown).status
        for right in ({"Authorization": f"Bearer {WORD}"}, {"Cookie": f"a=b; m_session_id={WORD}"}):
            assert made.get(f"{API}/revisions", headers=right).status == 200
        assert WORD not in str(made.events)
        assert [line["caller"] for line in made.answered()] == ["", "", "reader", "reader"]


def test_a_hub_is_read_only(serving: Hub) -> None:
    """Publishing over HTTP is not supported."""
    for method in ("POST", "PUT", "DELETE"):
        assert serving.get(f"{API}/repo?Revision=v1.0.0&FilePath=empty", method).status == 405


def test_every_request_is_a_line_in_the_log(serving: Hub) -> None:
    """Who asked for what, how it ended, and under which name both sides know it."""
    serving.file("weights.bin", range="bytes=10-", x_request_id="abc-1")
    (line,) = serving.answered()
    assert tuple(line[key] for key in ("method", "status", "bytes", "range", "request_id")) == (
        "GET",
        206,
        262134,
        "bytes=10-",
        "abc-1",
    )
    assert "FilePath=weights.bin" in line["target"]
