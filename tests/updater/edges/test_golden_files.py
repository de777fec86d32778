"""A golden set on disk: read in slices, noticed whenever it changes, and each of its questions counted once."""

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.clock import SystemClock
from common.engine_files import Task
from common.golden_set import read_folder
from dev.harness.simulated_server import SimServer
from hotslot.control.v1 import control_pb2 as pb
from hotslot.entailment.v1 import entailment_pb2
from tests.updater.simulators import bundle_of
from updater import golden_files
from updater.control.prober import ComputeCost, Prober
from updater.core.facts import ServerState
from updater.core.rules import GateRules
from updater.golden_files import GoldenFiles, Stamp
from updater.stages.gate_verdict import GateVerdict, judge

TASK = Task.VISUAL_ENTAILMENT
YES, NO = entailment_pb2.LABEL_YES, entailment_pb2.LABEL_NO


class SlowDisk:
    """A clock by which each look at it, so each picture that is read, takes a second."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        """A second more."""
        self.seconds += 1.0
        return self.seconds

    def now(self) -> datetime:
        """Not used."""
        return datetime(2026, 6, 1, tzinfo=UTC)


def write_set(folder: Path, pictures: int) -> None:
    """A set with one question to each picture."""
    rows: list[dict[str, object]] = [
        {"item": f"item-{number}", "image": f"{number}.png", "statements": ["a"], "expected": ["yes"]}
        for number in range(pictures)
    ]
    for number in range(pictures):
        (folder / f"{number}.png").write_bytes(b"picture %d" % number)
    write_rows(folder, rows)


def write_rows(folder: Path, rows: list[dict[str, object]]) -> None:
    """The lines of a set."""
    (folder / "golden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_large_set_is_read_in_several_looks(tmp_path: Path) -> None:
    """None of them takes longer than it may, and what was read is not read again."""
    write_set(tmp_path, 12)
    files = GoldenFiles(tmp_path, TASK, clock=SlowDisk(), look_seconds=5.0)
    looks = [files.facts() for _ in range(3)]
    assert [look.is_read for look in looks] == [False, False, True]
    assert {look.problem for look in looks} == {""}
    assert looks[-1].digest == read_folder(tmp_path, TASK.value).digest
    assert looks[-1].questions == 12

    (tmp_path / "7.png").write_bytes(b"another picture")
    changed = files.facts()
    assert changed.is_read
    assert changed.digest == read_folder(tmp_path, TASK.value).digest


def test_a_set_that_is_slow_to_list_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look reads a picture, also where the lines and what is known of the others take all of its time."""
    write_set(tmp_path, 3)
    disk = SlowDisk()

    def stat(path: Path) -> Stamp:
        disk.seconds += 5.0
        return stat_file(path)

    stat_file = golden_files._stat_file  # noqa: SLF001  a disk that answers slowly
    monkeypatch.setattr(golden_files, "_stat_file", stat)
    files = GoldenFiles(tmp_path, TASK, clock=disk, look_seconds=5.0)
    looks = [files.facts() for _ in range(3)]
    assert [look.is_read for look in looks] == [False, False, True]


@pytest.mark.parametrize("way", ["written over", "renamed over"])
def test_a_picture_of_the_same_size_and_time_is_noticed(tmp_path: Path, way: str) -> None:
    """As `cp -p` and rsync leave it."""
    write_set(tmp_path, 2)
    files = GoldenFiles(tmp_path, TASK)
    before, path = files.facts().digest, tmp_path / "1.png"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    target = path if way == "written over" else tmp_path / "new"
    target.write_bytes(b"PICTURE 1")
    os.utime(target, ns=times)
    target.replace(path)
    assert files.facts().digest == read_folder(tmp_path, TASK.value).digest
    assert files.facts().digest != before


def copies(folder: Path) -> None:
    """Seven items with one question, under two names of one picture, and three questions of their own."""
    for name in ("a.png", "again.png"):
        (folder / name).write_bytes(b"one picture")
    row: dict[str, object] = {"statements": ["there is a dog"], "expected": ["yes"]}
    rows = [{"item": f"copy-{number}", "image": ("a.png", "again.png")[number % 2], **row} for number in range(6)]
    first: dict[str, object] = {"item": "first", "image": "a.png", "statements": ["there is a dog", "there is a cat"]}
    other: dict[str, object] = {**row, "item": "other", "image": "a.png", "premise": "at night"}
    write_rows(folder, [first, *rows, other, {**row, "item": "last", "image": "a.png", "statements": ["it rains"]}])


def test_a_copied_question_counts_once(tmp_path: Path) -> None:
    """Where it has an expected answer; another premise makes another question. The set stays valid, and whole."""
    copies(tmp_path)
    found = read_folder(tmp_path, TASK.value)
    kept = [(item.item, item.texts, item.expected) for item in found.distinct.items]
    assert kept == [
        ("first", ("there is a cat",), ()),
        ("copy-0", ("there is a dog",), ("yes",)),
        ("other", ("there is a dog",), ("yes",)),
        ("last", ("it rains",), ("yes",)),
    ]
    assert (found.golden.questions, found.distinct.questions, found.copies) == (10, 4, 6)
    assert GoldenFiles(tmp_path, TASK).facts().questions == 4


@dataclass
class Slots:
    """Two slots; the candidate answers "no" to what the other answers "yes" to, if it is about a dog."""

    asked: list[str] = field(default_factory=list)

    def state(self, deadline_seconds: float) -> ServerState:
        """The active slot is the candidate's, too: only the answers matter here."""
        server = SimServer(lambda: bundle_of("r1"), lambda _: "")
        server.start()
        return server.state(deadline_seconds)

    def probe(self, request: pb.ProbeSlotRequest, deadline_seconds: float) -> pb.ProbeSlotResponse:
        """The answers of one slot."""
        del deadline_seconds
        response = pb.ProbeSlotResponse()
        for one in request.entailment.requests:
            results = response.outcomes.add().entailment.results
            for statement in one.statements:
                is_lost = request.load_id == self.candidate and statement == "there is a dog" and not one.premise
                self.asked += [statement] if request.load_id == self.candidate else []
                results.add(label=NO if is_lost else YES)
        return response

    def measure_cost(self, load_id: str, deadline_seconds: float) -> ComputeCost:
        """Nothing costs anything."""
        del load_id, deadline_seconds
        return ComputeCost(0.0, 0)

    @property
    def candidate(self) -> str:
        """The load that is judged."""
        return self.state(1.0).active_load_id


def test_copies_of_one_lost_question_refuse_no_revision(tmp_path: Path) -> None:
    """Six times the same question is one piece of evidence: a person decides, nothing goes into quarantine."""
    copies(tmp_path)
    slots, clock = Slots(), SystemClock()
    prober = Prober(GoldenFiles(tmp_path, TASK), slots, TASK, clock, lambda: None)
    answers = prober.run(slots.candidate, "active", prober.facts().digest, 10.0)
    assert sorted(slots.asked) == ["it rains", "there is a cat", "there is a dog", "there is a dog"]
    assert judge(answers, GateRules()).verdict is GateVerdict.HOLD
