"""Repositories as they are really published, with the whole updater, over both adapters of the hub."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from common.clock import SystemClock
from dev.harness.hub import Hub, hub
from dev.harness.revisions import MODEL
from tests.updater.hub.conftest import WHOLE, HubBench, failure
from tests.updater.scripted_hub import Exchange, ScriptedHub
from tests.updater.simulators import Quality
from tests.updater.stories.world import RULES, StoryWorld
from updater.core.effects import FailureKind
from updater.core.facts import CommandKind, OperatorCommand
from updater.core.record import HeldFor, Stage
from updater.core.rules import ReleasePolicy
from updater.hub.client import HubHttpClient, HubHttpOptions
from updater.hub.folder import DirectoryHub
from updater.hub.modelscope import LISTING_LIMIT, PAGE_SIZE, ModelScopeHub

COMMIT = "5e8c4ac9d1f20b7730c8a4b8d4a1c0ffee123456"


@pytest.fixture(params=["folder", "http"])
def branch(request: pytest.FixtureRequest) -> Iterator[StoryWorld]:
    """An updater that follows master, of which the first content is committed."""
    world = StoryWorld(replace(RULES, policy=ReleasePolicy(branch="master")))
    with ScriptedHub(world.hub_folder, branches=("master",)) as server:
        server.commit = COMMIT
        if request.param == "http":
            world.hub = asking(server.url)  # type: ignore[assignment]
        world.publish("master", Quality())
        world.settle(500.0)
        yield world
    world.close()


def asking(url: str) -> ModelScopeHub:
    """The adapter for ModelScope's protocol."""
    client = HubHttpClient(HubHttpOptions(url), SystemClock(), lambda: "", lambda _scheme, _host: "")
    return ModelScopeHub(client, f"acme/{MODEL}", SystemClock(), lambda _: False)


def committed(world: StoryWorld) -> str:
    """Bundle digest of what is committed and serves."""
    row, active = world.record.committed, world.server.state(1.0).active
    assert row is not None
    assert active is not None
    assert row.bundle_digest == active.bundle_digest
    assert row.revision == f"master@{row.source_digest.removeprefix('sha256:')[:8]}"
    return row.bundle_digest


@pytest.mark.fault("H1")
def test_a_repository_of_only_master_is_followed(branch: StoryWorld) -> None:
    """Five contents in a row; a bad one is refused for good; a replayed one is held, and the next is taken."""
    old = branch.folder / "old"
    shutil.copytree(branch.hub_folder / "master", old)
    for _ in range(4):
        bundle = branch.publish("master", Quality())
        branch.settle(500.0)
        assert committed(branch) == bundle

    branch.publish("master", Quality(right=2))
    branch.settle(500.0)
    (branch.hub_folder / "master").rename(branch.hub_folder / "v9.0.0")
    shutil.copytree(old, branch.hub_folder / "master")
    branch.settle(500.0)
    update = branch.record.update
    assert update is not None
    assert update.ending is not None
    assert update.ending.held_for is HeldFor.SEEN_BEFORE
    branch.leave(OperatorCommand(CommandKind.UPDATE, "v9.0.0"))
    branch.settle(500.0)
    assert committed(branch) == bundle
    assert len(branch.record.quarantine) == 1

    bundle = branch.publish("master", Quality())
    branch.settle(500.0)
    assert committed(branch) == bundle
    assert branch.violations == []


@pytest.mark.fault("H2")
def test_a_commit_id_names_what_the_hub_lists(branch: StoryWorld) -> None:
    """If the hub tells it; a prefix is enough."""
    is_told = isinstance(branch.hub, ModelScopeHub)
    assert branch.record.committed is not None
    assert branch.record.committed.commit_id == (COMMIT if is_told else "")
    bundle = branch.publish("master", Quality())
    branch.leave(OperatorCommand(CommandKind.PAUSE))
    branch.settle(500.0)
    branch.leave(OperatorCommand(CommandKind.UPDATE, COMMIT[:7] if is_told else branch.sources[bundle][:12]))
    branch.settle(500.0)

    assert committed(branch) == bundle


@pytest.mark.fault("H6")
def test_a_release_that_is_published_again_is_an_alarm_over_http() -> None:
    """Its new content is not taken; the alarm ends when the hub has the old content again."""
    world = StoryWorld()
    with ScriptedHub(world.hub_folder) as server:
        world.hub = asking(server.url)  # type: ignore[assignment]
        world.publish("v1.0.0", Quality())
        world.settle(500.0)
        before = world.record.committed
        (world.hub_folder / "v1.0.0").rename(world.folder / "first")
        world.publish("v1.0.0", Quality())
        world.settle(500.0)
        assert [row.revision for row in world.record.watch.republished] == ["v1.0.0"]
        assert world.record.committed == before
        shutil.rmtree(world.hub_folder / "v1.0.0")
        (world.folder / "first").rename(world.hub_folder / "v1.0.0")
        world.settle(500.0)
        assert world.record.watch.republished == ()
    world.close()


@pytest.mark.fault("H7")
def test_a_hub_folder_that_is_gone_is_a_fault_until_it_is_back() -> None:
    """Never an empty hub; serving goes on, and the next revision is taken when it is back."""
    world = StoryWorld()
    world.publish("v1.0.0", Quality())
    world.settle(500.0)
    hub_folder = world.hub_folder.parent
    hub_folder.rename(world.folder / "away")
    world.leave(OperatorCommand(CommandKind.CHECK_NOW))
    for _ in range(20):
        world.step()
    assert world.record.watch.message.startswith("HUB_MISSING: the hub's folder")
    assert world.record.hub.failures == 0
    hub_folder.mkdir()  # the mount point, without its volume
    world.leave(OperatorCommand(CommandKind.CHECK_NOW))
    for _ in range(20):
        world.step()
    assert world.record.watch.message.startswith("HUB_MISSING: the hub's folder")

    hub_folder.rmdir()
    (world.folder / "away").rename(hub_folder)
    bundle = world.publish("v1.1.0", Quality())
    world.settle(500.0)
    assert world.pointer() == bundle
    world.close()


@pytest.mark.fault("H7")
def test_a_served_hub_whose_folder_is_gone_fails(tmp_path: Path) -> None:
    """With 500, which is tried again; a model that is not there is a wrong setting."""
    with hub(tmp_path) as serving:
        serving.publish("v1.0.0")
        assert asking(serving.url).revisions(WHOLE) == ("v1.0.0",)
        serving.folder.rename(tmp_path / "away")
        assert failure(lambda: asking(serving.url).revisions(WHOLE)).kind is FailureKind.TRANSIENT
        serving.folder.mkdir()
        assert failure(lambda: asking(serving.url).revisions(WHOLE)).reason == "MODEL_UNKNOWN"
        serving.folder.rmdir()


@pytest.mark.fault("H8")
def test_more_revisions_than_a_page_are_all_listed(bench: HubBench) -> None:
    """In pages if the hub has them, and at once if not."""
    tags = [f"v0.{number}.0" for number in range(PAGE_SIZE)]
    for name in tags:
        (bench.server.folder / name).mkdir()
    for bench.server.pages in (True, False):
        assert bench.hub.revisions(WHOLE) == tuple(sorted([*tags, "v1.0.0"]))


@pytest.mark.fault("H8")
@pytest.mark.parametrize("total", [2 * PAGE_SIZE + 1, 0])
def test_pages_with_names_that_are_none_do_not_end_the_list(bench: HubBench, total: int) -> None:
    """Whether the hub tells a total or not."""

    def answer(exchange: Exchange) -> None:
        page = int(exchange.asked.query["PageNumber"])
        names = [".hidden"] * PAGE_SIZE if page == 1 else [f"v{page}.0"] * (PAGE_SIZE if page == 2 else 1)
        rows = {"RevisionMap": {"Tags": [{"Revision": name} for name in names]}, "TotalCount": total}
        exchange.body = json.dumps({"Code": 200, "Success": True, "Data": rows}).encode()
        exchange.answer()

    bench.server.fails(answer, "revisions", times=9)
    assert bench.hub.revisions(WHOLE) == ("v2.0", "v3.0")


@pytest.mark.fault("H8")
def test_the_served_hub_lists_the_newest_of_1001_revisions(tmp_path: Path) -> None:
    """By version, not by name: 0.1000.0 comes after 0.999.0."""
    with hub(tmp_path) as serving:
        serving.publish("v0.0.0", {"configuration.json": b"{}"})
        _copy_revisions(serving, 1001)
        rows = serving.get(f"/api/v1/models/any/{MODEL}/revisions").row["Data"]
        assert (len(rows["RevisionMap"]["Tags"]), rows["TotalCount"]) == (1000, 1001)
        assert [row["Revision"] for row in rows["RevisionMap"]["Tags"][:2]] == ["v0.1000.0", "v0.999.0"]
        assert len(asking(serving.url).revisions(WHOLE)) == 1001
        refused = serving.get(f"/api/v1/models/any/{MODEL}/revisions?PageNumber=0")
        assert refused.status == 400


def _copy_revisions(serving: Hub, number: int) -> None:
    first = serving.folder / MODEL / "v0.0.0"
    for minor in range(1, number):
        folder = first.with_name(f"v0.{minor}.0")
        folder.mkdir()
        for file in first.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())


@pytest.mark.fault("H8")
def test_a_listing_that_may_be_cut_is_not_trusted(bench: HubBench) -> None:
    """The top folder is listed alone, which has all files of a model; if that may be cut too, the revision waits."""
    whole = bench.release()
    bench.server.cut_at = LISTING_LIMIT

    def list_first(folder: str) -> None:
        more = [
            {"Path": f"{folder}{number}.txt", "Type": "blob", "Size": 1, "Sha256": "0" * 64} for number in range(3000)
        ]
        bench.server.change_rows = lambda rows: rows.__setitem__(slice(0, 0), more)

    list_first("docs/")
    assert bench.release().source_digest == whole.source_digest
    list_first("")
    release = bench.release()
    assert (release.is_ready, release.source_digest) == (False, "")
    assert release.missing == "the hub ends listings after 3000 files, so that this one may be incomplete"


def test_a_tag_deleted_while_it_is_fetched_is_not_blamed() -> None:
    """It is gone, not bad: under another name it is taken."""
    world = StoryWorld()
    world.publish("v1.0.0", Quality())
    world.settle(500.0)
    bundle = world.publish("v1.1.0", Quality())
    while world.record.stage is not Stage.STAGING:
        world.step()
    (world.hub_folder / "v1.1.0").rename(world.hub_folder / "v1.2.0")
    world.settle(500.0)

    assert world.record.quarantine == ()
    assert world.pointer() == bundle
    world.close()


def test_a_folder_hub_is_listed_by_its_names(tmp_path: Path) -> None:
    """An empty model is an answer, a missing one is not."""
    made = DirectoryHub(tmp_path, MODEL, SystemClock())
    assert failure(lambda: made.revisions(WHOLE)).reason == "HUB_MISSING"
    (tmp_path / MODEL).mkdir()
    assert made.revisions(WHOLE) == ()
