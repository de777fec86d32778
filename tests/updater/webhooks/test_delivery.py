"""Events stay in the journal until they are delivered; updates never wait for a receiver."""

import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from common import logs
from common.clock import SystemClock
from tests.updater.webhooks.receiver import receiving
from updater.core.record import Event, ModelRecord, Outcome, Stage, Update, UpdateKind
from updater.store import database, outbox
from updater.store.database import JournalNotWritten
from updater.store.journal import Journal
from updater.store.outbox import Subscribers, Subscription
from updater.webhook_settings import WebhookSection
from updater.webhooks.delivery import (
    CAP_SECONDS,
    MAX_REFUSALS,
    DeliveryWorker,
    PostFailed,
    Receiver,
    ReceiverResponse,
    compute_pause,
)
from updater.webhooks.metrics import DeliveryReporter
from updater.webhooks.service import Webhooks, encode_event

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
UPDATE = Update("20260102-030405-abc", UpdateKind.RELEASE, "v1.1.0", NOW, source_digest="sha256:s", reason="R")
RECORD = ModelRecord("shapes", Stage.STAGING, UPDATE)


def event(name: str = "update_committed", outcome: Outcome | None = None) -> Event:
    """Something that happened."""
    return Event(NOW, "shapes", Stage.IDLE, name, "a sentence", UPDATE, outcome)


@dataclass
class Deliveries:
    """A journal, and a receiver with configured responses."""

    path: Path
    hooks: tuple[Subscription, ...] = (Subscription("ops", ("*",)),)
    answers: list[int | str] = field(default_factory=lambda: [200])  # a status, or why there is none; the last for ever
    sent: list[dict[str, Any]] = field(default_factory=list)
    told: list[tuple[str, ...]] = field(default_factory=list)
    woken: int = 0

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        """A new life of the updater."""
        subscribers = Subscribers(self.hooks, partial(encode_event, node="node-1"), self._wake, self.dropped)
        self.journal = Journal(self.path, subscribers=subscribers)
        receiver = Receiver("ops", "http://ops.example/", 1.0)
        self.worker = DeliveryWorker(receiver, self.journal.outbox, self._post, self, lambda: 0.5)

    def restart(self) -> None:
        """End without any order."""
        self.journal.close()
        self.open()

    def deliver(self) -> list[float | None]:
        """Step until nothing waits, or a pause is due; the pauses."""
        pauses: list[float | None] = []
        while not pauses or pauses[-1] == 0.0:
            pauses.append(self.worker.step())
        return pauses

    def names(self) -> list[str]:
        """What was received."""
        return [row["event"] for row in self.sent]

    def delivered(self, hook: str) -> None:
        self.told.append(("delivered", hook))

    def failed(self, hook: str, reason: str) -> None:
        self.told.append(("failed", hook, reason))

    def given_up(self, hook: str, event: str, reason: str) -> None:
        self.told.append(("given up", hook, event, reason))

    def dropped(self, hook: str, count: int) -> None:
        self.told.append(("dropped", hook, str(count)))

    def _wake(self) -> None:
        self.woken += 1

    def _post(self, _receiver: Receiver, _event: str, event_id: str, body: bytes) -> ReceiverResponse:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, str):
            raise PostFailed(answer)
        row = json.loads(body)
        assert event_id == row["id"]
        self.sent.append(row)
        return ReceiverResponse(answer)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Deliveries]:
    """A receiver that takes everything."""
    made = Deliveries(tmp_path / "journal.db")
    yield made
    made.journal.close()


def test_an_event_is_delivered_as_it_was_recorded(bench: Deliveries) -> None:
    """The body has all fields of docs/webhooks.md, with the values at the time of the event."""
    bench.journal.write(RECORD, [event(outcome=Outcome.COMMITTED)])
    assert bench.woken == 1
    assert bench.deliver() == [0.0, None]
    (row,) = bench.sent
    assert len(row.pop("id")) == 32
    assert row == {
        "schema_version": 1,
        "event": "update_committed",
        "at": "2026-01-02T03:04:05+00:00",
        "node": "node-1",
        "model": "shapes",
        "stage": "IDLE",
        "message": "a sentence",
        "outcome": "COMMITTED",
        "update": {
            "id": "20260102-030405-abc",
            "kind": "RELEASE",
            "revision": "v1.1.0",
            "source_digest": "sha256:s",
            "bundle_digest": "",
            "started_at": "2026-01-02T03:04:05+00:00",
            "reason": "R",
        },
    }


def test_events_are_delivered_in_order(bench: Deliveries) -> None:
    """Also across journal writes."""
    bench.journal.write(RECORD, [event("a"), event("b")])
    bench.journal.write(RECORD, [event("c")])
    bench.deliver()
    assert bench.names() == ["a", "b", "c"]


def test_a_receiver_gets_the_events_it_subscribed_to(tmp_path: Path) -> None:
    """By name or pattern; without a matching event nothing is queued and no thread is woken."""
    bench = Deliveries(tmp_path / "journal.db", (Subscription("ops", ("update_*", "gate_passed")),))
    bench.journal.write(RECORD, [event("hub_unanswered")])
    assert bench.woken == 0
    bench.journal.write(RECORD, [event("update_held"), event("gate_passed"), event("gate_interrupted")])
    bench.deliver()
    assert bench.names() == ["update_held", "gate_passed"]
    bench.journal.close()


def test_an_event_that_was_not_recorded_is_not_delivered(bench: Deliveries) -> None:
    """Event and queue row are one transaction: on a full disk neither is written."""
    too_large = [replace(event("noise"), message="x" * (1 << 20)) for _ in range(4)]
    pages = bench.journal._database.rows("PRAGMA page_count")[0][0]  # noqa: SLF001  where the disk would fail
    bench.journal._database.rows(f"PRAGMA max_page_count={pages}")  # noqa: SLF001
    with pytest.raises(JournalNotWritten):
        bench.journal.write(RECORD, too_large)
    assert (bench.woken, bench.journal.outbox.count_waiting("ops")) == (0, 0)
    assert bench.deliver() == [None]


def test_a_recorded_event_is_delivered_after_a_crash(bench: Deliveries) -> None:
    """The next process delivers it; a second delivery has the same id."""
    bench.journal.write(RECORD, [event("a"), event("b")])
    bench.restart()
    first = bench.journal.outbox.next("ops")
    assert first is not None
    bench._post(bench.worker.receiver, "a", first.event_id, first.body.encode())  # noqa: SLF001  died right after
    bench.restart()
    bench.deliver()
    assert bench.names() == ["a", "a", "b"]
    assert len({row["id"] for row in bench.sent}) == 2


def test_retries_to_an_unreachable_receiver_back_off(bench: Deliveries) -> None:
    """No event is lost, given up or overtaken."""
    bench.journal.write(RECORD, [event("a"), event("b")])
    bench.answers[:] = ["UNREACHABLE"] * 10 + ["TIMEOUT", 500, 503, 429, 200]
    pauses = [bench.worker.step() or 0.0 for _ in range(14)]
    assert pauses[:3] == [2.0, 4.0, 8.0]
    assert sorted(pauses) == pauses
    assert pauses[-1] == CAP_SECONDS
    assert set(bench.names()) == {"a"}  # each answer of a server that failed was to the first
    assert bench.deliver() == [0.0, 0.0, None]
    assert bench.names()[-2:] == ["a", "b"]
    assert not [row for row in bench.told if row[0] == "given up"]


def test_pauses_stay_within_their_jitter_and_respect_retry_after() -> None:
    """Never shorter than Retry-After, which counts for at most an hour."""
    assert (compute_pause(1, 0.0), compute_pause(1, 1.0)) == (1.5, 2.5)
    assert compute_pause(10**6, 1.0) == 750.0
    assert compute_pause(1, 0.5, 90.0) == 90.0
    assert compute_pause(1, 0.5, 1e9) == 3600.0


def test_an_event_that_is_refused_repeatedly_is_given_up(bench: Deliveries) -> None:
    """Refusals are counted across restarts; then the next event is sent."""
    bench.journal.write(RECORD, [event("bad"), event("good")])
    bench.answers[:] = [*[400] * MAX_REFUSALS, 200]
    for _ in range(MAX_REFUSALS):
        assert (bench.worker.step() or 0.0) > 0
        bench.restart()
    bench.deliver()
    assert bench.names() == ["bad"] * MAX_REFUSALS + ["good"]
    assert [row for row in bench.told if row[0] == "given up"] == [("given up", "ops", "bad", "HTTP_400")]


def test_the_queue_is_bounded(bench: Deliveries, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest events are dropped, and their number is reported."""
    monkeypatch.setattr(outbox, "MAX_ROWS", 3)
    bench.journal.write(RECORD, [event(f"e{number}") for number in range(5)])
    bench.journal.write(RECORD, [event("e5")])
    assert bench.told == [("dropped", "ops", "2"), ("dropped", "ops", "1")]
    bench.deliver()
    assert bench.names() == ["e3", "e4", "e5"]


def test_a_delivered_event_is_not_sent_again_while_the_journal_cannot_be_written(
    bench: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that is full for a while."""
    bench.journal.write(RECORD, [event("a"), event("b")])
    with monkeypatch.context() as broken:
        broken.setattr(bench.journal.outbox, "remove", _full)
        for _ in range(3):
            assert (bench.worker.step() or 0.0) > 0
    bench.deliver()
    assert bench.names() == ["a", "b"]


def test_events_of_removed_receivers_are_deleted(bench: Deliveries) -> None:
    """At the next start."""
    bench.journal.write(RECORD, [event()])
    bench.hooks = (Subscription("new", ("*",)),)
    bench.restart()
    bench.journal.outbox.delete_unsubscribed()
    assert bench.journal.outbox.count_waiting("ops") == 0


def test_a_stalled_receiver_delays_neither_the_journal_nor_other_receivers(tmp_path: Path) -> None:
    """Over real HTTP and threads; the metrics show its queue."""
    registry, silent = CollectorRegistry(), threading.Event()
    with receiving() as good, receiving() as bad, logs.configure("test", "error"):
        bad.answers[:] = [lambda _connection: (silent.wait(20.0) and None) or None]
        sections = tuple(WebhookSection(url=one.url(), name=name) for name, one in (("good", good), ("bad", bad)))
        reporter = DeliveryReporter(logs.get_logger(), registry, ("good", "bad"))
        webhooks = Webhooks(sections, reporter, SystemClock())
        journal = Journal(tmp_path / "journal.db", subscribers=webhooks.subscribers("node-1"))
        webhooks.start(journal.outbox)
        for number in range(3):
            journal.write(RECORD, [event(f"e{number}")])
            assert good.came.acquire(timeout=20.0)
        assert [json.loads(row.body)["event"] for row in good.requests] == ["e0", "e1", "e2"]
        assert registry.get_sample_value("hotslot_webhook_queued_events", {"hook": "bad"}) == 3.0
        silent.set()
        webhooks.stop()
        assert (registry.get_sample_value("hotslot_webhook_delivered_total", {"hook": "good"}) or 0) >= 2
        journal.close()


def test_a_long_message_is_truncated() -> None:
    """So that it cannot fill the journal."""
    assert len(encode_event(replace(event(), message="x" * 10**6), "i", "n")) < 4000


# The journal's schema.

V1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE records (model TEXT PRIMARY KEY, row TEXT NOT NULL) STRICT;
CREATE TABLE events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, model TEXT NOT NULL, update_id TEXT NOT NULL,
  stage TEXT NOT NULL, name TEXT NOT NULL, message TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_update ON events (update_id, seq);
CREATE TABLE updates (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, update_id TEXT NOT NULL UNIQUE, model TEXT NOT NULL, row TEXT NOT NULL
) STRICT;
CREATE INDEX updates_by_model ON updates (model, seq);
CREATE TABLE evidence (update_id TEXT NOT NULL, kind TEXT NOT NULL, row TEXT NOT NULL, PRIMARY KEY (update_id, kind))
STRICT;
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
INSERT INTO meta VALUES ('schema_version', '1');
PRAGMA application_id=1213418580;
PRAGMA user_version=1;
"""


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A journal of schema 1 with a record, an event and an update."""
    path = tmp_path / "older.db"
    made = Journal(tmp_path / "made.db")
    made.write(RECORD, [event("update_started")])
    made.close()
    with sqlite3.connect(path) as connection:
        connection.executescript(V1)
        connection.execute("ATTACH ? AS made", (str(tmp_path / "made.db"),))
        for table in ("records", "events", "updates"):
            connection.execute(f"INSERT INTO {table} SELECT * FROM made.{table}")  # noqa: S608  our own names
    connection.close()
    return path


@pytest.mark.fault("D8")
def test_a_journal_of_schema_1_is_upgraded(older: Path) -> None:
    """Records, audit trail and history are unchanged, and new events are queued."""
    bench = Deliveries(older)
    assert bench.journal.load("shapes") == RECORD
    assert [row.name for row in bench.journal.events(UPDATE.update_id)] == ["update_started"]
    assert [past.update for _, past in bench.journal.history("", 9, 0)] == [UPDATE]
    bench.journal.write(RECORD, [event("a")])
    bench.restart()  # it is brought up once
    bench.deliver()
    assert bench.names() == ["a"]
    bench.journal.close()
    with sqlite3.connect(older) as connection:
        assert connection.execute("PRAGMA user_version").fetchall() == [(database.JOURNAL_SCHEMA,)]
        assert connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchall() == [("3",)]
    connection.close()


@pytest.mark.fault("D8")
@pytest.mark.fault("D1")
def test_a_failed_upgrade_leaves_the_journal_unchanged(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start, with free disk space, upgrades it."""
    before = older.read_bytes()
    pages = os.stat(older).st_size // 4096  # noqa: PTH116  one number
    with monkeypatch.context() as full:
        full.setattr(database, "_MAX_PAGES", pages)
        with pytest.raises(JournalNotWritten, match="schema 2"):
            Journal(older)
    assert before == older.read_bytes()
    Journal(older).close()


def _full(*_: object) -> None:
    raise JournalNotWritten("the journal cannot be written: database or disk is full")
