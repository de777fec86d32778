"""The server's metrics are those of its catalog; what is read at a scrape is read from the models."""

import asyncio
import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from common.metric_catalog import MetricKind
from common.metrics import ReadingCollector
from common.process_metrics import PROCESS_METRICS, make_process_reader, read_usage
from common.settings import ModelSettings
from common.settings_reload import SettingsReloader
from hotslot.runner.v1 import runner_pb2
from inference.server.access import Access, AccessRules
from inference.server.health import HealthRegistry, LoopLag
from inference.server.metric_catalog import CATALOG
from inference.server.metrics import EventMetrics
from inference.server.model.models import Models
from inference.server.readings import ServerReader
from inference.server.runner_client.fork_server import ForkServer
from inference.server.scheduling.held_bytes import HeldBytes, HeldRules
from inference.server.settings import ServerSettings
from tests.common.clock import KeptLog
from tests.runner.simulated_forks import SimulatedForks
from tests.server.simulated_connections import SimCalls, SimConnections, SimMemory
from tests.server.simulator import World


def reader(world: World, state_dir: Path = Path("/"), forks: ForkServer | None = None) -> ServerReader:
    """A reader of one model."""
    health = HealthRegistry(["", "shapes"])
    health.update({"": False, "shapes": True})
    held = HeldBytes(HeldRules(1000, 1000, 12.0), SimConnections(), SimMemory(), SimCalls())
    lag = LoopLag(world.clock.monotonic)
    models, access = Models([world.manager]), Access(None, AccessRules())
    is_draining = lambda: world.drain.is_draining  # noqa: E731
    return ServerReader(models, health, lag, is_draining, held, access, world.clock, state_dir, forks or unused_forks())


def unused_forks() -> ForkServer:
    """Runners are not forked."""
    return SimulatedForks().server


def registry_of(world: World, forks: ForkServer | None = None) -> CollectorRegistry:
    """A registry of what is read."""
    registry = CollectorRegistry()
    ReadingCollector(reader(world, forks=forks).read, registry)
    return registry


def read_nothing() -> ServerSettings:
    """The settings are not read again."""
    raise AssertionError


async def test_the_catalog_lists_every_metric_once(tmp_path: Path) -> None:
    """Counted and read ones together are the catalog, with its types; counters end with _total."""
    world = await World(tmp_path).serving()
    seen = EventMetrics()
    ReadingCollector(reader(world).read, seen.registry)
    ReadingCollector(make_process_reader("1.2.3"), seen.registry)

    settings = ServerSettings(models=(ModelSettings(name="shapes"),))
    reloader = SettingsReloader(settings, read_nothing, KeptLog(), world.clock)
    ReadingCollector(reloader.read_metrics, seen.registry)

    families = [(family.name, family.type) for family in seen.registry.collect()]

    listed = [(spec.name.removesuffix("_total"), spec.kind.value) for spec in CATALOG.metrics]
    assert sorted(families) == sorted(listed)
    for spec in CATALOG.metrics:
        assert spec.name.endswith("_total") == (spec.kind is MetricKind.COUNTER), spec.name
        assert {*spec.labels} <= {*CATALOG.labels}, spec.name
    assert {label for spec in CATALOG.metrics for label in spec.labels} | {"le"} == {*CATALOG.labels}


async def test_waiting_is_not_running(tmp_path: Path) -> None:
    """What a runner has is unanswered, but does not wait; a cancelled request is neither."""
    world = await World(tmp_path).serving()
    registry = registry_of(world)
    labels = {"model": "shapes", "priority": "interactive"}
    world.holds_items = world.holds_loads = True

    _, cancelled = world.ask("kept"), world.ask("cancelled")
    await world.settle()
    assert registry.get_sample_value("hotslot_unanswered_requests", {"model": "shapes"}) == 2
    assert registry.get_sample_value("hotslot_waiting_requests", labels) == 0

    world.runner("a").end()
    await world.settle()
    assert registry.get_sample_value("hotslot_waiting_requests", labels) == 2

    world.manager.requests.cancel(cancelled)
    assert registry.get_sample_value("hotslot_unanswered_requests", {"model": "shapes"}) == 1
    assert registry.get_sample_value("hotslot_waiting_requests", labels) == 1
    assert registry.get_sample_value("hotslot_waiting_rows", labels) == 1
    assert registry.get_sample_value("hotslot_max_held_bytes") == 1000


async def test_pictures_are_counted_by_format_and_outcome(tmp_path: Path) -> None:
    """As the runner's last heartbeat says; a process that has ended has no row."""
    world = await World(tmp_path).serving()
    registry = registry_of(world)
    labels = {"model": "shapes", "slot": "a"}
    refused = {**labels, "format": "png", "picture_outcome": "IMAGE_TOO_COSTLY"}
    row = runner_pb2.PictureCount(format="png", outcome="IMAGE_TOO_COSTLY", count=3, seconds=0.5)
    beat = runner_pb2.Heartbeat(pictures=[row], queued_preparations=4, picture_bytes=1 << 20)

    world.manager.machine.slots["a"].on_heartbeat(beat)

    assert registry.get_sample_value("hotslot_pictures_total", refused) == 3
    assert registry.get_sample_value("hotslot_picture_seconds_total", refused) == 0.5
    assert registry.get_sample_value("hotslot_queued_preparations", labels) == 4
    assert registry.get_sample_value("hotslot_picture_bytes", labels) == 1 << 20
    world.runner("a").end()
    await world.settle()
    assert registry.get_sample_value("hotslot_pictures_total", refused) is None


@pytest.mark.parametrize(("kernels", "value"), [("AVX512", 1.0), ("none", 0.0), ("", None)])
async def test_kernels_of_a_model_are_those_that_its_runner_has_named(
    kernels: str, value: float | None, tmp_path: Path
) -> None:
    """None for a model that has no use for them, and after the end of its runner."""
    world = await World(tmp_path).serving()
    registry, labels = registry_of(world), {"model": "shapes", "slot": "a", "instructions": kernels}
    outcome = runner_pb2.LoadOutcome(device="cpu", precision="float32", row_seconds=0.01, call_rows=4, kernels=kernels)

    world.manager.machine.slots["a"].on_load_outcome(outcome)

    assert registry.get_sample_value("hotslot_compiled_kernels", labels) == value
    world.runner("a").end()
    await world.settle()
    assert registry.get_sample_value("hotslot_compiled_kernels", labels) is None


async def test_the_fork_server_has_its_memory_and_failures(tmp_path: Path) -> None:
    """Not ready until its imports are done, and no series without one."""
    world, forks = await World(tmp_path).serving(), SimulatedForks()
    registry = registry_of(world, forks.server)
    names = ("ready", "failures_total", "resident_memory_bytes")
    rows = [[registry.get_sample_value(f"hotslot_fork_server_{name}") for name in names]]
    await forks.start()
    rows.append([registry.get_sample_value(f"hotslot_fork_server_{name}") for name in names])
    await forks.end()
    rows.append([registry.get_sample_value(f"hotslot_fork_server_{name}") for name in names])
    forks.close()

    assert [row[:2] for row in rows] == [[None, None], [1.0, 0.0], [0.0, 1.0]]
    assert [(row[2] or 0) > 1000 for row in rows] == [False, True, True]


async def test_readiness_has_a_series_for_each_service_name(tmp_path: Path) -> None:
    """The whole server is the empty name."""
    world = await World(tmp_path).serving()
    registry = registry_of(world)

    assert registry.get_sample_value("hotslot_ready", {"service": ""}) == 0
    assert registry.get_sample_value("hotslot_ready", {"service": "shapes"}) == 1


async def test_a_process_that_is_not_ours_has_no_row(tmp_path: Path) -> None:
    """Its id was a runner's, and was given to another process."""
    world = await World(tmp_path).serving()
    world.runner("a").pid = os.getppid()
    registry = registry_of(world)

    assert read_usage(os.getppid()) is not None
    assert registry.get_sample_value("hotslot_runner_threads", {"model": "shapes", "slot": "a"}) is None


def test_a_process_reads_what_it_uses() -> None:
    """CPU time, memory, descriptors, threads and versions; a process that is gone reads nothing."""
    registry = CollectorRegistry()
    ReadingCollector(make_process_reader("1.2.3"), registry)

    for spec in PROCESS_METRICS:
        if not spec.labels:
            assert (registry.get_sample_value(spec.name) or 0) > 0, spec.name
    assert 'hotslot_build_info{grpc="' in generate_latest(registry).decode()
    assert read_usage(0) is None


def test_no_counter_has_a_second_series() -> None:
    """Prometheus does not use when a counter was created."""
    assert "_created" not in generate_latest(EventMetrics().registry).decode()


async def test_a_disk_that_cannot_be_read_has_no_sample(tmp_path: Path) -> None:
    """A share of nothing would be an alert about nothing."""
    world = await World(tmp_path).serving()
    read = {row.metric.name: row.values for row in reader(world, tmp_path).read()}
    lost = {row.metric.name: row.values for row in reader(world, tmp_path / "gone").read()}

    assert 0 < read["hotslot_disk_free_bytes"][()] < read["hotslot_disk_total_bytes"][()]
    assert lost["hotslot_disk_free_bytes"] == lost["hotslot_disk_total_bytes"] == {}


async def test_the_tasks_of_the_loop_are_counted() -> None:
    """A task that waits is one more."""
    lag = LoopLag(asyncio.get_running_loop().time, interval_seconds=0.001)
    waiting = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        others = [tasks.create_task(waiting.wait()) for _ in range(3)]
        await lag.measure()
        assert lag.tasks == len(others) + 1
        waiting.set()
