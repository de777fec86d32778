"""Events on their way out of a real updater, and what a committed bundle says of where it came from."""

import json
from itertools import groupby
from typing import Any

import pytest

from hotslot.updates.v1 import updates_pb2 as pb
from tests.updater.edges.conftest import MakeWorld
from tests.updater.webhooks.receiver import OK, LocalReceiver, receiving

pytestmark = [pytest.mark.timeout(180)]
_HOOK = """
[[updater.webhooks]]
name = "ops"
url = "{url}"
events = ["update_*", "bundle_sealed"]
"""


def received(receiver: LocalReceiver) -> list[dict[str, Any]]:
    """The events in the order of arrival; one that came twice in a row, once.

    What an updater had sent when it was killed may be read afterwards; the next updater sends it again.
    """
    rows = [json.loads(row.body) for row in receiver.requests]
    return [next(group) for _, group in groupby(rows, key=lambda row: row["id"])]


def test_events_reach_a_receiver_that_was_down_after_a_crash(make_world: MakeWorld) -> None:
    """The update is not delayed; the events come later, in order, each with one id."""
    with receiving() as receiver:
        receiver.answers[:] = [b"HTTP/1.1 503 Down\r\n\r\n"]
        world = make_world()
        world.add_settings(_HOOK.format(url=receiver.url()))
        world.start()  # the first revision is committed while no receiver accepts events
        assert receiver.came.acquire(timeout=30.0)
        assert world.updater is not None
        world.updater.kill()
        tried = {json.loads(row.body)["id"] for row in receiver.requests}
        receiver.requests.clear()
        receiver.answers[:] = [OK]
        world.start_updater()
        world.wait(lambda: len(received(receiver)) >= 3, "all that happened is told")
        rows = received(receiver)
        assert [row["event"] for row in rows][:3] == ["update_started", "bundle_sealed", "update_committed"]
        assert tried == {rows[0]["id"]}  # the one that it had refused comes again, as the same
        assert len(rows) == len({row["id"] for row in rows})
        assert (rows[2]["update"]["revision"], rows[2]["outcome"]) == ("v1.0.0", "COMMITTED")

        committed = world.status().committed_provenance
        assert (committed.hub_kind, committed.hub_model, committed.revision) == ("folder", "shapes", "v1.0.0")
        assert "6 SHA-256" in committed.checked
        (latest,) = world.operator.ListHistory(pb.ListHistoryRequest(), timeout=20).updates
        told = world.operator.GetUpdate(pb.GetUpdateRequest(update_id=latest.update_id), timeout=20)
        assert committed == told.provenance
        world.close()
