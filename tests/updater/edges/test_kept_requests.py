"""Requests that two revisions answered differently, as the server keeps them and operators see them."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.errors import NotFound
from common.paths import SAMPLES_FOLDER
from inference.server.model.samples import SampleFiles
from updater.service.samples import MAX_SHOWN, list_kept, read_picture

AT = datetime(2030, 1, 1, tzinfo=UTC)


def keep(state: Path, update_id: str, count: int = 1, at: datetime = AT) -> None:
    """Let the server keep requests of an update."""
    samples = SampleFiles(state / SAMPLES_FOLDER / "shapes", 1000, pytest.fail)
    samples.begin(at, update_id)
    for number in range(count):
        row = {
            "request_id": f"id {number}",
            "item_id": "",
            "texts": ["a dog", "a cat"],
            "answers": ["no", "yes"],
            "previous_answers": ["yes", "yes"],
        }
        while not samples.keep(row, b"picture"):
            pass  # the writer is behind
    samples.close()


def test_an_update_shows_its_own_requests(tmp_path: Path) -> None:
    """Of its shadow and of its trial, with both answers to each text, and the picture by name."""
    keep(tmp_path, "20300101-1", 2)
    keep(tmp_path, "20300101-1", 1, AT.replace(hour=1))
    keep(tmp_path, "20300101-2", 1, AT.replace(hour=2))
    rows = list(list_kept(tmp_path, "shapes", "20300101-1"))

    assert [row.request_id for row in rows] == ["id 0", "id 1", "id 0"]
    first = [(answer.text, answer.active, answer.candidate) for answer in rows[0].answers]
    assert first == [("a dog", "yes", "no"), ("a cat", "yes", "yes")]
    assert read_picture(tmp_path, "shapes", "20300101-1", rows[0].name) == b"picture"
    assert list(list_kept(tmp_path, "shapes", "")) == []


def test_what_is_shown_is_bounded_and_malformed_files_are_left_out(tmp_path: Path) -> None:
    """A file that another hand has changed costs only itself."""
    keep(tmp_path, "u1", MAX_SHOWN + 5)
    (folder,) = (tmp_path / SAMPLES_FOLDER / "shapes").iterdir()
    (folder / "0001.json").write_text("[]", encoding="utf-8")
    rows = list(list_kept(tmp_path, "shapes", "u1"))
    assert len(rows) == MAX_SHOWN - 1


@pytest.mark.parametrize("name", ["../../secret", "", "20300101T000000-u1/0009"])
def test_only_pictures_of_kept_requests_are_returned(tmp_path: Path, name: str) -> None:
    """A name is compared, never taken for a path."""
    keep(tmp_path, "u1")
    (tmp_path / "secret.picture").write_bytes(b"secret")
    with pytest.raises(NotFound) as error:
        read_picture(tmp_path, "shapes", "u1", name)
    assert error.value.reason == "SAMPLE_UNKNOWN"


def test_nothing_is_left_when_the_settings_keep_nothing(tmp_path: Path) -> None:
    """A server with `keep_samples = 0` deletes what was kept before."""
    keep(tmp_path, "u1")
    SampleFiles(tmp_path / SAMPLES_FOLDER / "shapes", 0, pytest.fail).remove_all()
    assert list((tmp_path / SAMPLES_FOLDER).iterdir()) == []
