"""Probes of a trial: sent one after the other, within their time."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common import errors
from common.engine_files import Task
from hotslot.control.v1 import control_pb2 as pb
from hotslot.entailment.v1 import entailment_pb2
from updater.control.prober import ComputeCost, Prober
from updater.core.effects import EffectFailure, FailureKind
from updater.core.facts import ServerState
from updater.core.ports import EffectFailed
from updater.golden_files import GoldenFiles

Send = Callable[..., tuple[int, int, int]]
TASK = Task.VISUAL_ENTAILMENT
CANDIDATE, PREVIOUS = "candidate", "previous"
OUT_OF_TIME = EffectFailure(FailureKind.TRANSIENT, "DEADLINE", "the server did not answer in time")


@dataclass
class SlowSlots:
    """Slots that need some time for each item, and fail some of them; also the clock by which they do."""

    item_seconds: float = 0.0
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)  # (load, statement) → why it is failed
    asked: list[tuple[str, str]] = field(default_factory=list)  # in order
    seconds: float = 100.0

    def monotonic(self) -> float:
        """Passes while items are computed."""
        return self.seconds

    def now(self) -> datetime:
        """Not used."""
        return datetime(2026, 6, 1, tzinfo=UTC)

    def state(self, deadline_seconds: float) -> ServerState:
        """Not used by a probe."""
        raise NotImplementedError

    def measure_cost(self, load_id: str, deadline_seconds: float) -> ComputeCost:
        """Not used by a probe."""
        raise NotImplementedError

    def probe(self, request: pb.ProbeSlotRequest, deadline_seconds: float) -> pb.ProbeSlotResponse:
        """The answers of one slot; the call ends at its deadline."""
        response = pb.ProbeSlotResponse()
        needed = self.item_seconds * len(request.entailment.requests)
        self.seconds += min(needed, deadline_seconds)
        if needed > deadline_seconds:
            raise EffectFailed(OUT_OF_TIME)
        for one in request.entailment.requests:
            (statement,) = one.statements
            self.asked.append((request.load_id, statement))
            outcome, reason = response.outcomes.add(), self.reasons.get((request.load_id, statement))
            if reason is None:
                outcome.entailment.results.add(label=entailment_pb2.LABEL_YES)
            else:
                outcome.error.CopyFrom(errors.to_status(errors.Failed("it failed", reason=reason)))
        return response


@pytest.fixture
def slots() -> SlowSlots:
    """They answer everything at once."""
    return SlowSlots()


@pytest.fixture
def probe(tmp_path: Path, slots: SlowSlots) -> Send:
    """Sends probes to the candidate, of a set of five questions."""
    (tmp_path / "one.png").write_bytes(b"a picture")
    rows = [{"item": f"item-{name}", "image": "one.png", "statements": [name]} for name in "abcde"]
    (tmp_path / "golden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    prober = Prober(GoldenFiles(tmp_path, TASK), slots, TASK, slots, lambda: None)

    def send(items: int, seconds: float = 60.0, previous: str = PREVIOUS) -> tuple[int, int, int]:
        return prober.probe(CANDIDATE, previous, items, seconds)

    return send


def test_no_probe_begins_that_would_not_end_in_time(slots: SlowSlots, probe: Send) -> None:
    """As many as fit are counted, and the next call continues with the one after them."""
    slots.item_seconds = 4.0
    assert probe(10, 15.0) == (3, 0, 0)
    assert probe(1, 15.0) == (1, 0, 0)
    assert [statement for _, statement in slots.asked] == ["a", "b", "c", "d"]
    assert slots.seconds == 116.0


@pytest.mark.parametrize("reason", ["", "DEADLINE_EXPIRED", "DEADLINE_TOO_SHORT", "PREPARE_TIMEOUT"])
def test_a_probe_whose_time_runs_out_counts_as_none(slots: SlowSlots, probe: Send, reason: str) -> None:
    """Whichever side notices it first: the time is a probe's own, and no caller's."""
    slots.item_seconds = 1.0 if reason else 90.0
    slots.reasons = {(CANDIDATE, "a"): reason, (CANDIDATE, "e"): reason} if reason else {}
    with pytest.raises(EffectFailed) as caught:
        probe(10)
    assert caught.value.failure.reason == "DEADLINE"

    slots.item_seconds = 1.0
    assert probe(10) == ((3, 0, 0) if reason else (10, 0, 0))


@pytest.mark.fault("S11")
def test_an_item_that_the_previous_load_fails_too_is_void(slots: SlowSlots, probe: Send) -> None:
    """As at the gate, which the candidate has passed with it. Only what it fails is sent to both."""
    slots.reasons = {(load, "b"): "IMAGE_UNREADABLE" for load in (CANDIDATE, PREVIOUS)}
    slots.reasons |= {(CANDIDATE, "d"): "NOT_FINITE", (CANDIDATE, "e"): "ENGINE_FAILED"}
    assert probe(10) == (4, 4, 2)
    assert [statement for load, statement in slots.asked if load == PREVIOUS] == ["b", "d", "e"] * 2


def test_without_a_previous_load_each_failure_counts(slots: SlowSlots, probe: Send) -> None:
    """At a first install the gate has passed no item that fails."""
    slots.reasons = {(CANDIDATE, "b"): "IMAGE_UNREADABLE"}
    assert probe(5, previous="") == (4, 1, 0)


def test_a_failure_that_the_previous_load_has_no_time_to_confirm_does_not_count(slots: SlowSlots, probe: Send) -> None:
    """The next call has time for both."""
    slots.item_seconds, slots.reasons = 4.0, {(CANDIDATE, "b"): "ENGINE_FAILED"}
    assert probe(5, 10.0) == (1, 0, 0)
    assert probe(5, 16.5) == (4, 0, 0)
    assert probe(2) == (1, 1, 0)
