"""Requests whose answers differ, kept as private files."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from inference.server.model.pair import ShadowPolicy
from inference.server.model.samples import MAX_FOLDERS, SampleFiles
from inference.server.request import RequestTags
from inference.server.scheduling.admission import Capacity
from inference.server.scheduling.fair_queue import UNNAMED
from tests.server.simulator import World, ask


async def test_calls_that_two_revisions_answer_differently_are_kept(tmp_path: Path) -> None:
    """With what the caller sent, up to the limit, in files that only the server's user reads."""
    samples = SampleFiles(tmp_path / "samples" / "shapes", 2, pytest.fail)
    world = await World(tmp_path, capacity=Capacity(100, 1 << 20), samples=samples).serving()
    world.scores["r2"] = (0.2, 0.7, 0.1)
    load = await world.candidate()
    world.commands.set_shadow(load.load_id, ShadowPolicy(1.0), "t1", 0)
    for number in range(3):
        tags = RequestTags(f"id {number}")
        await world.manager.requests.predict(ask(f"text {number}"), world.clock.seconds + 30, UNNAMED, tags).outcome
        await world.settle()
    samples.close()

    (folder,) = (tmp_path / "samples" / "shapes").iterdir()
    assert folder.name.endswith("-t1")
    row = json.loads((folder / "0001.json").read_text(encoding="utf-8"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "0001.json",
        "0001.picture",
        "0002.json",
        "0002.picture",
    ]
    assert (row["request_id"], row["texts"]) == ("id 0", ["text 0"])
    assert (row["revision"], row["answers"], row["previous_answers"]) == ("r2", ["no"], ["yes"])
    assert (folder / "0001.picture").read_bytes() == ask("text 0").picture
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_samples_of_old_comparisons_are_removed(tmp_path: Path) -> None:
    """The newest are kept; what callers sent does not pile up."""
    samples = SampleFiles(tmp_path, 10, pytest.fail)
    for number in range(MAX_FOLDERS + 2):
        samples.begin(datetime(2030, 1, 1 + number, tzinfo=UTC), "update-1")
        samples.keep({"number": number}, b"")
    samples.close()

    assert sorted(path.name[7] for path in tmp_path.iterdir()) == ["3", "4", "5"]


def test_a_folder_that_cannot_be_written_is_told_and_costs_nothing(tmp_path: Path) -> None:
    """The comparison goes on."""
    (tmp_path / "samples").write_text("a file", encoding="utf-8")
    told: list[str] = []
    samples = SampleFiles(tmp_path / "samples" / "shapes", 10, told.append)
    samples.begin(datetime(2030, 1, 1, tzinfo=UTC), "update-1")
    samples.keep({}, b"")
    samples.close()

    assert told == ["a sample could not be written: Not a directory"]
