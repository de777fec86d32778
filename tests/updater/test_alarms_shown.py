"""What a poll of the hub found out of the ordinary is shown everywhere an operator looks."""

import io

import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from cli.updates_view import show_history, show_status
from hotslot.updates.v1 import updates_pb2 as pb
from tests.updater.core.world import World
from updater.metrics import MetricsObserver
from updater.service import convert
from updater.status import StatusSnapshot
from updater.store.journal import PastEvent

ALARM = "v1.0 was published again with other content"


@pytest.fixture
def world() -> World:
    """1.0.0 was imported; the hub has it with other content, and names that are no releases."""
    made = World()
    made.imported("1.0.0")
    made.publish("v1.0", content="other")
    made.publish("master")
    made.settle()
    return made


@pytest.mark.fault("H6")
def test_a_version_that_was_published_again_is_shown_everywhere(world: World) -> None:
    """Status, check, history and metrics; the event goes to webhooks as any other."""
    state = convert.to_model_updates(StatusSnapshot(world.record))
    assert state.advice == ALARM
    assert ALARM in convert.describe_poll(world.record)
    status = _text(show_status(pb.GetStatusResponse(models=[state])))
    assert "v1.0 source 1.0.0 is source other on the hub since" in status

    event = world.last("revision_republished")
    past = PastEvent(event.at, event.stage, event.name, event.message)
    history = pb.ListHistoryResponse(alarms=[convert.to_alarm("shapes", past)])
    assert f"shapes  {ALARM}; it is not taken" in _text(show_history(history))
    assert _metric(world, "hotslot_republished_revisions") == 1.0


@pytest.mark.fault("H4")
def test_names_that_are_left_out_are_shown_everywhere(world: World) -> None:
    """Counted, and the first by name."""
    state = convert.to_model_updates(StatusSnapshot(world.record))
    assert "1 of 2 names: master" in _text(show_status(pb.GetStatusResponse(models=[state])))
    assert convert.describe_poll(world.record).endswith("1 of 2 names are left out: master")
    assert (_metric(world, "hotslot_hub_names"), _metric(world, "hotslot_hub_left_out_names")) == (2.0, 1.0)


def _text(shown: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _metric(world: World, name: str) -> float | None:
    registry = CollectorRegistry()
    MetricsObserver(registry).record_written(world.record, ())
    return registry.get_sample_value(name, {"model": "shapes"})
